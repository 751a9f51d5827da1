"""What the machine answers for itself, in every mode and at every level: CPUID, random numbers, hypercalls.

With them what waits (MONITOR, MWAIT), INVPCID, XSETBV, LMSW, counting branches and what does nothing.
"""

from __future__ import annotations

import pytest

from tests.matrices import model_control as control
from tests.matrices import model_machine as machine
from tests.matrices import model_paging as paging
from tests.matrices.bench import FEATURES
from tests.matrices.model_segments import reference
from tests.matrices.model_system import privileged_nothing
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import ARITHMETIC, CF, IF, M16, M32, M64, OF, TS, ZF, Machine
from tests.matrices.test_segment_loads import prefix
from tests.matrices.world import BITS, CODE_END, DATA, World, identity_paging

ALL = ("real", "v86", "16", "32", "compat", "64")
ONE_LEVEL = ("real", "v86")
TABLES, PAGED_RAM = 0x1_0000, 0x1_8000
GARBAGE = 0xDEAD_BEEF_0000_0000


def level(c: Combination) -> int | None:
    """The level of a machine, None where the mode has but one and this is another."""
    if c["mode"] in ONE_LEVEL:
        return 0 if c["cpl"] == 0 else None
    return int(c["cpl"])


def widened(mode: str, bits: int) -> bytes | None:
    """The prefix of an operand size, None where there is no such size."""
    if bits == 64:
        return b"\x48" if mode == "64" else None
    return b"\x66" if mode == "64" and bits == 16 else prefix(mode, bits)


# ---- CPUID -------------------------------------------------------------------------------------------------


def cpuid(world: World, c: Combination) -> Case | None:
    """A leaf and a subleaf, with garbage above them in 64-bit mode."""
    cpl = level(c)
    if cpl is None:
        return None
    m = world.machine(c["mode"], cpl)
    m.cr4 |= machine.OSXSAVE if c["osxsave"] else 0
    m.xcr0 = c["xcr0"]
    above = GARBAGE if c["mode"] == "64" else 0
    m.rax, m.rcx = c["leaf"] | above, c["subleaf"] | above
    return Case(m, b"\x0f\xa2", machine.cpuid)


# ---- random numbers ----------------------------------------------------------------------------------------


def random(world: World, c: Combination) -> Case | None:
    """RDRAND and RDSEED of one register."""
    cpl, mode = level(c), c["mode"]
    head = widened(mode, c["bits"])
    number = c["register"]
    if cpl is None or head is None or (number > 7 and mode != "64"):
        return None
    m = world.machine(mode, cpl)
    m.rflags |= c["flags"]
    name = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))[number]
    rex = (0x48 if c["bits"] == 64 else 0x40) | number >> 3
    if mode == "64":
        head = (b"\x66" if c["bits"] == 16 else b"") + bytes((rex,))
    raw = head + bytes((0x0F, 0xC7, 0xC0 | (6 if c["how"] == "rdrand" else 7) << 3 | number & 7))
    return Case(m, raw, machine.random(name, c["bits"] // 8))


# ---- the hypervisor, and what waits ------------------------------------------------------------------------

CALLS = {"vmcall": b"\x0f\x01\xc1", "vmmcall": b"\x0f\x01\xd9"}


def hypercall(world: World, c: Combination) -> Case | None:
    """VMCALL and VMMCALL."""
    cpl, mode = level(c), c["mode"]
    if cpl is None:
        return None
    m = world.machine(mode, cpl)
    m.rax = c["number"] & (M64 if mode == "64" else M32)
    m.rdi = c["argument"] & (M64 if mode == "64" else M32)
    return Case(m, CALLS[c["how"]], machine.hypercall)


def wait(world: World, c: Combination) -> Case | None:
    """MONITOR with each address size, MWAIT, HLT is `test_debug`'s."""
    cpl, mode, address = level(c), c["mode"], c["address"]
    if cpl is None or address == (16 if mode == "64" else 64):
        return None
    m = world.machine(mode, cpl)
    mask = M64 if mode == "64" else M32
    if c["rcx"] > mask or (c["how"] == "mwait" and c["rax"] != DATA):
        return None
    if address == 64 and c["rax"] >> 32 == 1:  # no RAM there
        return None
    m.rax, m.rcx = c["rax"] & mask, c["rcx"]
    m.rflags |= c["flags"]
    if mode not in ("64", *ONE_LEVEL):
        m.ds = m.ds._replace(limit=c["limit"])
    if c["how"] == "mwait":
        return Case(m, b"\x0f\x01\xc9", machine.mwait)
    head = b"" if address == BITS[mode] else b"\x67"
    return Case(m, head + b"\x0f\x01\xc8", machine.monitor(address))


def invpcid(world: World, c: Combination) -> Case | None:
    """INVPCID rAX, [rBX]; PCIDs are on in IA-32e mode only."""
    cpl, mode = level(c), c["mode"]
    if cpl is None or (c["pcide"] and mode not in ("64", "compat")):
        return None
    m = world.machine(mode, cpl)
    m.cr4 |= machine.PCIDE if c["pcide"] else 0
    m.rax = c["type"] & (M64 if mode == "64" else M32)
    m.rbx = c["at"]
    if mode not in ("64", *ONE_LEVEL):
        m.ds = m.ds._replace(limit=c["limit"])
    m.put(DATA, 8, c["low"])
    m.put(DATA + 8, 8, c["address"])
    return Case(m, b"\x66\x0f\x38\x82" + (b"\x07" if BITS[mode] == 16 else b"\x03"), machine.invpcid)


def xsetbv(world: World, c: Combination) -> Case | None:
    """XSETBV with a bit of EDX:EAX turned over."""
    cpl, mode = level(c), c["mode"]
    if cpl is None:
        return None
    m = world.machine(mode, cpl)
    m.cr4 |= machine.OSXSAVE if c["osxsave"] else 0
    value = c["value"] ^ (1 << c["bit"] if c["bit"] >= 0 else 0)
    above = GARBAGE if mode == "64" else 0
    m.rax, m.rdx, m.rcx = value & M32 | above, value >> 32 | above, c["rcx"] | above
    return Case(m, b"\x0f\x01\xd1", machine.xsetbv)


def lmsw(world: World, c: Combination) -> Case | None:
    """LMSW of a register or of a word in memory."""
    cpl, mode = level(c), c["mode"]
    head = widened(mode, c["bits"])
    if cpl is None or head is None:
        return None
    m = world.machine(mode, cpl)
    if m.long:
        identity_paging(m, TABLES)
    m.cr0 = m.cr0 & ~0xE | c["old"]
    m.rbx = DATA
    m.put(DATA, 2, c["value"])
    if c["register"]:
        m.rax = m.rax & ~M16 | c["value"]
        return Case(m, head + b"\x0f\x01\xf0", lambda m: control.lmsw(m, m.rax & M16))

    def instruction(m: Machine) -> None:
        machine.ring0(m)
        mask = M64 if m.mode64 else M32 if m.cs.db else M16
        control.lmsw(m, paging.load(m, reference(m, "ds", m.rbx & mask, 2, write=False), 2))

    return Case(m, head + b"\x0f\x01" + (b"\x37" if BITS[mode] == 16 else b"\x33"), instruction)


# ---- nothing, and nothing but #UD --------------------------------------------------------------------------

NOWHERE = 0x7FFF_0000_0000  # of the memory operand that nothing may look at
PLAIN = {
    "ud0 r": (b"\x0f\xff\xc1", machine.undefined), "ud0 m": (b"\x0f\xff\x03", machine.undefined),
    "ud0": (b"\x0f\xff", machine.undefined), "ud1 r": (b"\x0f\xb9\xc1", machine.undefined),
    "ud1 m": (b"\x0f\xb9\x03", machine.undefined), "ud2": (b"\x0f\x0b", machine.undefined),
    "rsm": (b"\x0f\xaa", machine.undefined), "getsec": (b"\x0f\x37", machine.undefined),
    "nop r": (b"\x0f\x0d\xc1", machine.nothing), "nop m": (b"\x0f\x1f\x03", machine.nothing),
    "rdssp": (b"\xf3\x0f\x1e\xc9", machine.nothing), "serialize": (b"\x0f\x01\xe8", machine.nothing),
    "wbnoinvd": (b"\xf3\x0f\x09", privileged_nothing),
}  # fmt: skip
SIZED = ("ud0 r", "ud0 m", "ud1 r", "ud1 m", "nop r", "nop m", "rdssp")


def plain(world: World, c: Combination) -> Case | None:
    """An instruction that has no result."""
    cpl, mode, what = level(c), c["mode"], c["what"]
    head = widened(mode, c["bits"])
    if cpl is None or head is None:
        return None
    raw, model = PLAIN[what]
    if what not in SIZED:
        if c["bits"] != (32 if mode == "64" else BITS[mode]):
            return None
    elif what == "rdssp":  # its F3 comes before REX; 66 would make it another instruction
        if c["bits"] == 16 or (c["bits"] == 32 and BITS[mode] == 16):
            return None
        head, raw = raw[:1] + head, raw[1:]
    m = world.machine(mode, cpl)
    m.rbx = NOWHERE if mode == "64" else NOWHERE >> 16
    m.rflags |= c["flags"]
    return Case(m, head + raw, model)


# ---- counting branches -------------------------------------------------------------------------------------


def counting(world: World, c: Combination) -> Case | None:
    """LOOPNE, LOOPE, LOOP, JrCXZ with both prefixes."""
    cpl, mode = level(c), c["mode"]
    if cpl is None:
        return None
    wide = BITS[mode]
    address = {64: 32, 32: 16, 16: 32}[wide] if c["a"] else wide
    operand = {64: 64, 32: 16, 16: 32}[wide] if c["o"] else wide
    m = world.machine(mode, cpl)
    m.rcx = c["rcx"] & (M64 if mode == "64" else M32)
    m.rflags |= c["flags"]
    if c["limit"] and mode != "64":
        m.cs = m.cs._replace(limit=CODE_END - 1 - m.cs.base)
    head = (b"\x67" if c["a"] else b"") + (b"\x66" if c["o"] else b"")
    raw = head + bytes((c["opcode"], c["distance"] & 0xFF))
    return Case(m, raw, machine.counting(c["opcode"], address, operand, c["distance"]))


LEAVES = (*range(0x18), *range(0x8000_0000, 0x8000_000A), 0x20, 0x3FFF_FFFF, 0x4000_0000, 0x4000_0001,
          0x4000_00FF, 0x4000_0100, 0x7FFF_FFFF, 0x8FFF_FFFF, 0xC000_0000, M32)  # fmt: skip
CPUID = Matrix(
    "CPUID",
    (
        Space("leaves", mode=ALL, cpl=(0, 3), leaf=LEAVES, subleaf=(0, 1, 2, 3, 0x100, M32), osxsave=(0, 1),
              xcr0=(1, 3, 7)),
    ),
    cpuid,
    1500,
)  # fmt: skip
RANDOM = Matrix(
    "RDRAND and RDSEED",
    (
        Space("random", mode=ALL, cpl=(0, 3), how=("rdrand", "rdseed"), bits=(16, 32, 64), register=range(16),
              flags=(0, ARITHMETIC, CF | ZF, OF | IF)),
    ),
    random,
    800,
)  # fmt: skip
HYPERCALLS = Matrix(
    "VMCALL and VMMCALL",
    (
        Space("calls", mode=ALL, cpl=range(4), how=tuple(CALLS), number=(0, 8, M32, GARBAGE | 7),
              argument=(0, M64, 0x1234)),
    ),
    hypercall,
    400,
)  # fmt: skip
WAIT = Matrix(
    "MONITOR and MWAIT",
    (
        Space("wait", mode=ALL, cpl=range(4), how=("monitor", "monitor", "mwait"), address=(16, 32, 64),
              rax=(DATA, 1 << 32 | DATA, 1 << 47 | DATA, DATA + 0xFFF, DATA + 0x1000),
              rcx=(0, 0, 0, 1, 2, 1 << 31, 1 << 32, 1 << 63), limit=(M32, DATA + 0xFFF), flags=(0, IF)),
    ),
    wait,
    1200,
)  # fmt: skip
INVPCID = Matrix(
    "INVPCID",
    (
        Space("descriptors", mode=ALL, cpl=(0, 0, 1, 3), type=(0, 1, 2, 3, 4, 1 << 31, 1 << 32, M64),
              pcide=(0, 1),
              low=(0, 0, 1, 0xFFF, 0x1000, 1 << 63, M64), address=(0, 1 << 47, 0xFFFF_8000_0000_0000, M64),
              at=(DATA, DATA, 1 << 47), limit=(M32, M32, DATA + 14, DATA + 15)),
    ),
    invpcid,
    1500,
)  # fmt: skip
XSETBV = Matrix(
    "XSETBV",
    (
        Space("bits", mode=ALL, cpl=(0, 0, 1, 2, 3), osxsave=(1, 1, 0), value=(1, 3, 5, 7, 0),
              bit=(*(-1,) * 40, *range(64)),
              rcx=(0, 0, 1, M32)),
    ),
    xsetbv,
    1000,
)  # fmt: skip
LMSW = Matrix(
    "LMSW",
    (
        Space("words", mode=ALL, cpl=range(4), bits=(16, 32, 64), register=(0, 1), old=(0, 2, TS, 0xE),
              value=(*range(16), 0xFFF0, M16)),
    ),
    lmsw,
    800,
    PAGED_RAM,
)  # fmt: skip
NOTHING = Matrix(
    "instructions without a result",
    (Space("plain", mode=ALL, cpl=range(4), what=tuple(PLAIN), bits=(16, 32, 64), flags=(0, ARITHMETIC)),),
    plain,
    900,
    features=FEATURES - {"CET_SS"},
)
COUNTING = Matrix(
    "LOOP and JRCXZ",
    (
        Space("counters", mode=ALL, cpl=(0, 3), opcode=(0xE0, 0xE1, 0xE2, 0xE3), a=(0, 1), o=(1, 0),
              rcx=(0, 1, 2, 0x1_0000, 0x1_0001, 1 << 32, 1 << 32 | 1, M64), flags=(0, ZF, CF),
              distance=(0, 0x10, 0x7F, -2, -128), limit=(0, 1)),
    ),
    counting,
    1500,
)  # fmt: skip

MATRICES = (CPUID, RANDOM, HYPERCALLS, WAIT, INVPCID, XSETBV, LMSW, NOTHING, COUNTING)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [
        (CPUID, ("done",)), (RANDOM, ("done",)), (HYPERCALLS, ("done",)), (WAIT, ("done", "#GP", "#UD")),
        (INVPCID, ("done", "#GP")), (XSETBV, ("done", "#GP", "#UD")), (LMSW, ("done", "#GP")),
        (NOTHING, ("done", "#GP", "#UD")), (COUNTING, ("done",)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_what_the_machine_itself_answers_follows_the_manual(
    matrix: Matrix, outcomes: tuple[str, ...], blocks: bool
) -> None:
    verify(matrix, *outcomes, blocks=blocks)
