"""Instructions whose answer is the machine's own, that wait, or that do nothing or nothing but #UD.

SDM Vol. 2: CPUID, RDRAND, RDSEED, MONITOR, MWAIT, INVPCID, XSETBV, UD, RSM, GETSEC, NOP, SERIALIZE, WBNOINVD,
LOOP/LOOPcc, JrCXZ. What CPUID tells is the bench's: everything that a configuration can offer, on CPU 0 of a
machine of 1 GHz; the bit numbers are those of the tables behind "CPUID".
"""

from __future__ import annotations

from collections.abc import Callable

from tests.matrices import model_paging as paging
from tests.matrices.model_paging import bits
from tests.matrices.model_segments import linear_address
from tests.matrices.spec import ARITHMETIC, CF, GP, M16, M32, M64, UD, ZF, Fault, Machine, canonical, low

Model = Callable[[Machine], None]
Leaf = tuple[int, int, int, int]

ANSWER = 0x8765_4321_0FED_CBA9  # what the hypervisor answers to RDMSR and VMCALL
PCIDE, OSXSAVE = 1 << 17, 1 << 18
HIGHEST_BASIC, HIGHEST_EXTENDED = 0x16, 0x8000_0008


def random_value(number: int) -> int:
    """The `number`-th random number of a case."""
    return 0xF0E1_D2C3_B4A5_9687 * (2 * number + 1) & M64


def ring0(m: Machine) -> None:
    """#GP(0) outside of ring 0."""
    if m.cpl:
        raise Fault(GP, 0)


# ---- CPUID -------------------------------------------------------------------------------------------------

# Tables "Feature Information Returned in the ECX Register", "... in the EDX Register" and
# "Information Returned by CPUID Instruction", leaves 7, 0DH and 80000001H
FEATURES_ECX = bits(0, 1, 3, 9, 12, 13, 17, (26, 19), (30, 28)) & ~bits(18, 27)
FEATURES_EDX = bits((6, 0), 8, 9, (13, 11), (17, 15), 19, (26, 23))
HYPERVISOR, OSXSAVE_SEEN = 1 << 31, 1 << 27
LEAF7: Leaf = (0, bits(0, 3, 5, (10, 7), (20, 18), 23, 24, 29), bits(2, 9, 10, 22), bits(4))
EXTENDED: Leaf = (0, 0, bits(0, 5, 8), bits(11, 20, 26, 27, 29))
LEGACY_AREA, AVX_STATE = 512 + 64, 256  # bytes: "XSAVE Area", legacy region and header; YMM0-15[255:128]
LINE = 64  # bytes of a cache line, and of what MONITOR watches


def text(*letters: bytes) -> tuple[int, ...]:
    """Registers that hold four letters each."""
    return tuple(int.from_bytes(part, "little") for part in letters)


def caches(subleaf: int) -> Leaf:
    """Leaf 4: two L1 caches of 32 KiB and an L2 cache of 512 KiB with 8 ways and lines of 64 bytes."""
    kinds = {0: (1, 1, 32 << 10), 1: (2, 1, 32 << 10), 2: (3, 2, 512 << 10)}
    if subleaf not in kinds:
        return 0, 0, 0, 0
    kind, level, size = kinds[subleaf]
    ways = 8
    return kind | level << 5 | 1 << 8, (ways - 1) << 22 | LINE - 1, size // (ways * LINE) - 1, 0


def extended_state(m: Machine, subleaf: int) -> Leaf:
    """Leaf 0DH: the components of XCR0, sizes of the area for what is enabled and for what could be."""
    enabled = LEGACY_AREA + (AVX_STATE if m.xcr0 & 4 else 0)
    if subleaf == 0:
        return 7, enabled, LEGACY_AREA + AVX_STATE, 0
    if subleaf == 1:
        return 3, enabled, 0, 0  # XSAVEOPT, XSAVEC
    return (AVX_STATE, LEGACY_AREA, 0, 0) if subleaf == 2 else (0, 0, 0, 0)


def topology(subleaf: int) -> Leaf:
    """Leaf 0BH: one thread of one core."""
    level = {0: 1, 1: 2}.get(subleaf, 0)
    return 0, int(level > 0), level << 8 | subleaf & 0xFF, 0


def basic_leaf(m: Machine, leaf: int, subleaf: int) -> Leaf:
    """Leaves 0 to 16H; one that is not defined is zero."""
    ebx, edx, ecx = text(b"Genu", b"ineI", b"ntel")
    seen = OSXSAVE_SEEN if m.cr4 & OSXSAVE else 0
    mhz = 1000
    crystal = 25_000_000  # Hz
    known: dict[int, Leaf] = {
        0: (HIGHEST_BASIC, ebx, ecx, edx),
        1: (0x6F1, 1 << 16 | LINE // 8 << 8, FEATURES_ECX | HYPERVISOR | seen, FEATURES_EDX),
        2: (1, 0, 0, 0),
        4: caches(subleaf),
        5: (LINE, LINE, 0, 0),
        7: (0, 0, 0, 0) if subleaf else LEAF7,
        0xB: topology(subleaf),
        0xD: extended_state(m, subleaf),
        0x15: (1, mhz * 1_000_000 // crystal, crystal, 0),
        0x16: (mhz, mhz, 100, 0),
    }
    return known.get(leaf, (0, 0, 0, 0))


def extended_leaf(leaf: int) -> Leaf:
    """Leaves 80000000H to 80000008H."""
    brand = b"pysim_vm virtual CPU".ljust(48, b"\0")
    at = (leaf - 0x8000_0002) * 16
    if 0 <= at < 48:
        a, b, c, d = text(*(brand[at + 4 * n : at + 4 * n + 4] for n in range(4)))
        return a, b, c, d
    known: dict[int, Leaf] = {
        0x8000_0000: (HIGHEST_EXTENDED, 0, 0, 0),
        0x8000_0001: EXTENDED,
        0x8000_0006: (0, 0, 512 << 16 | 8 << 12 | 1 << 8 | LINE, 0),
        0x8000_0008: (48 << 8 | paging.MAXPHYADDR, 0, 0, 0),
    }
    return known.get(leaf, (0, 0, 0, 0))


def cpuid(m: Machine) -> None:
    """CPUID: "higher than the maximum input value": the data of the highest basic leaf"""
    leaf, subleaf = m.rax & M32, m.rcx & M32
    if 0x4000_0000 <= leaf <= 0x4000_00FF:  # "Reserved for hypervisor use": this one's two leaves
        found: Leaf = (0, 0, 0, 0)
        if leaf == 0x4000_0000:
            b, c, d = text(b"RVMR", b"VMRV", b"MRVM")
            found = 0x4000_0001, b, c, d
    elif 0x8000_0000 <= leaf <= HIGHEST_EXTENDED:
        found = extended_leaf(leaf)
    else:
        found = basic_leaf(m, min(leaf, HIGHEST_BASIC), subleaf)
    m.rax, m.rbx, m.rcx, m.rdx = found


# ---- random numbers, calls, waiting ------------------------------------------------------------------------


def random(register: str, size: int) -> Model:
    """RDRAND and RDSEED: this machine always has one; CF = 1, OF, SF, ZF, AF, PF = 0"""

    def instruction(m: Machine) -> None:
        mask = (1 << 8 * size) - 1
        value = random_value(len(m.ports))
        m.ports = (*m.ports, ("random",))
        m.set(**{register: low(getattr(m, register), value, mask)})
        m.rflags = m.rflags & ~ARITHMETIC | CF

    return instruction


def hypercall(m: Machine) -> None:
    """VMCALL and VMMCALL, in every mode and at every level: the number in rAX, six arguments; RAX answers"""
    mask = M64 if m.mode64 else M32
    arguments = (m.rdi, m.rsi, m.rdx, m.rcx, *((m.r8, m.r9) if m.mode64 else (0, 0)))
    m.ports = (("hypercall", m.rax & mask, tuple(value & mask for value in arguments)),)
    m.rax = ANSWER & mask


def monitor(bits: int) -> Model:
    """MONITOR: a byte load from DS:rAX; no extension exists"""

    def instruction(m: Machine) -> None:
        if m.v86 or m.cpl:
            raise Fault(UD)
        if m.rcx & (M64 if m.mode64 else M32):
            raise Fault(GP, 0)
        offset = m.rax & (1 << bits) - 1
        paging.load(m, linear_address(m, "ds", offset, 1, write=False), 1)

    return instruction


def mwait(m: Machine) -> None:
    """MWAIT; CPUID.05H:ECX[bit 1] is 0, so that RCX[0] is refused too"""
    if m.v86 or m.cpl:
        raise Fault(UD)
    if m.rcx & (M64 if m.mode64 else M32):
        raise Fault(GP, 0)
    m.halted = True


def invpcid(m: Machine) -> None:
    """INVPCID rAX, [rBX]"""
    ring0(m)
    wide = m.mode64
    kind = m.rax & (M64 if wide else M32)
    offset = m.rbx & (M64 if wide else M32 if m.cs.db else M16)
    descriptor = paging.load(m, linear_address(m, "ds", offset, 16, write=False), 16)
    pcid, reserved, address = descriptor & 0xFFF, descriptor >> 12 & (1 << 52) - 1, descriptor >> 64
    if kind > 3 or reserved:
        raise Fault(GP, 0)
    if kind < 2 and pcid and not m.cr4 & PCIDE:
        raise Fault(GP, 0)
    if kind == 0 and not canonical(address):
        raise Fault(GP, 0)


def xsetbv(m: Machine) -> None:
    """XSETBV: XCR0 has x87, SSE and AVX; AVX needs SSE"""
    if m.v86:
        raise Fault(GP, 0)
    if not m.cr4 & OSXSAVE:
        raise Fault(UD)
    ring0(m)
    value = (m.rdx & M32) << 32 | m.rax & M32
    if m.rcx & M32 or not value & 1 or value & ~7 or value & 6 == 4:
        raise Fault(GP, 0)
    m.xcr0 = value


# ---- nothing, and nothing but #UD --------------------------------------------------------------------------


def undefined(m: Machine) -> None:
    """UD0, UD1, UD2; RSM outside of system-management mode; GETSEC without CR4.SMXE"""
    raise Fault(UD)


def nothing(m: Machine) -> None:
    """NOP and what is one on this machine"""


# ---- counting branches -------------------------------------------------------------------------------------


def counting(opcode: int, address: int, operand: int, distance: int) -> Model:
    """LOOPNE, LOOPE, LOOP and JrCXZ; `address` bits of rCX count, a target has `operand` bits.

    In 64-bit mode "Near branches" have 64-bit operands whatever the prefixes, on Intel's CPUs.
    """

    def instruction(m: Machine) -> None:
        mask = (1 << address) - 1
        count = m.rcx & mask
        if opcode == 0xE3:
            taken, after = not count, m.rcx
        else:
            count = count - 1 & mask
            zero = bool(m.rflags & ZF)
            taken = count != 0 and {0xE0: not zero, 0xE1: zero, 0xE2: True}[opcode]
            after = low(m.rcx, count, mask)
        if taken:
            target = m.rip + distance & (1 << (64 if m.mode64 else operand)) - 1
            if not canonical(target) if m.mode64 else target > m.cs.limit:
                raise Fault(GP, 0)
            m.rip = target
        m.rcx = after

    return instruction
