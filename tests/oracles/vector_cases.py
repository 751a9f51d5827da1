"""Seeded MMX, SSE and AVX cases for the host CPU, and this CPU's answer to the same case. No assertion here.

Registers and memory hold mixtures of what matters to some instruction: edge integers, edge floats (zeros,
denormals, infinities, NaNs of both kinds, halves, the ends of integer ranges), copies of other lanes, noise.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from functools import cache

from iced_x86 import (
    Encoder,
    EncodingKind,
    Instruction,
    OpCodeOperandKind,
    OpKind,
    Register,
    RegisterExt,
)

from isa.cpu import Cpu
from isa.decode import code_names, decode, feature_names, form_features, opcode_info
from isa.faults import Fault
from isa.memory import PhysicalMemory
from isa.state import (
    CR0_NE,
    CR0_PE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    EFER_LMA,
    EFER_LME,
    GPR_NAMES,
    M32,
    M64,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
)
from tests.oracles.native_vector import BASE, CODE, SIGFPE, WINDOW, WINDOW_SIZE, Case, FxState, Outcome

FAMILIES = frozenset(("MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "SHA"))
VEX_FAMILIES = frozenset(("AVX", "AVX2", "FMA", "F16C", "VAES", "VPCLMULQDQ"))
# No vector register in sight, or state that the oracle does not carry
NOT_HERE = ("FISTTP", "PREFETCH", "LFENCE", "MFENCE", "SFENCE", "CRC32")
# Results that differ from CPU to CPU within the manual's error bound
ESTIMATES = (
    "RCPPS", "RCPSS", "RSQRTPS", "RSQRTSS",
    "VEX_VRCPPS", "VEX_VRCPSS", "VEX_VRSQRTPS", "VEX_VRSQRTSS",
)  # fmt: skip
ALL_FEATURES = frozenset(feature_names().values())

RSI, RDI = 6, 7
INDEX_REGISTER = 5  # of gathers
SIGNALS = {6: 4, 13: 11, 14: 11, 16: 8, 19: 8}  # exception vector -> signal that Linux makes of it
CHECKED_FLAGS = 0x8D5

SINGLES = (
    0x0000_0000, 0x8000_0000, 0x0000_0001, 0x8000_0001, 0x007F_FFFF, 0x0080_0000, 0x8080_0000, 0x0080_0001,
    0x3F80_0000, 0xBF80_0000, 0x3F80_0001, 0x3F00_0000, 0x3FC0_0000, 0x4020_0000, 0xC020_0000, 0x3EFF_FFFF,
    0x7F7F_FFFF, 0xFF7F_FFFF, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0xFFC0_0000, 0x7F80_0001, 0xFFA1_2345,
    0x7FC1_2345, 0x4EFF_FFFF, 0x4F00_0000, 0xCF00_0000, 0xCF00_0001, 0x5F00_0000, 0xDF00_0000, 0x5EFF_FFFF,
    0x4B00_0000, 0x4B00_0001, 0x4AFF_FFFF, 0x3380_0000, 0x3380_0001, 0x2000_0000, 0x1FFF_FFFF, 0x0CA0_0000,
)  # fmt: skip
DOUBLES = (
    0, 1 << 63, 1, 1 << 63 | 1, (1 << 52) - 1, 1 << 52, 1 << 63 | 1 << 52, (1 << 52) + 1,
    0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000, 0x3FF0_0000_0000_0001, 0x3FE0_0000_0000_0000,
    0x3FF8_0000_0000_0000, 0x4004_0000_0000_0000, 0xC004_0000_0000_0000, 0x3FDF_FFFF_FFFF_FFFF,
    0x7FEF_FFFF_FFFF_FFFF, 0xFFEF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000,
    0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 0xFFF4_1234_5678_9ABC,
    0x7FF9_1234_5678_9ABC, 0x41DF_FFFF_FFC0_0000, 0x41DF_FFFF_FFE0_0000, 0x41E0_0000_0000_0000,
    0xC1E0_0000_0000_0000, 0xC1E0_0000_0020_0000, 0xC1E0_0000_0010_0000, 0x43E0_0000_0000_0000,
    0xC3E0_0000_0000_0000, 0x43DF_FFFF_FFFF_FFFF, 0x4330_0000_0000_0000, 0x4330_0000_0000_0001,
    0x432F_FFFF_FFFF_FFFF, 0x3CA0_0000_0000_0000, 0x3CA0_0000_0000_0001, 0x2000_0000_0000_0000,
    0x36A0_0000_0000_0000, 0x3690_0000_0000_0000, 0x3810_0000_0000_0000, 0x380F_FFFF_FFFF_FFFF,
    0x47EF_FFFF_E000_0000, 0x47EF_FFFF_F000_0000, 0x3800_0000_0000_0000, 0x380F_FFFF_E000_0000,
)  # fmt: skip
BYTE_EDGES = (0, 1, 0x7F, 0x80, 0x81, 0xFF, 0x0F, 0x10)
WORD_EDGES = (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x7F, 0x80, 0xFF, 0x100, 0xFF80, 0xFF7F)
DWORD_EDGES = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000, 0xFFFF_8000)


@cache
def forms() -> tuple[int, ...]:
    """Every legacy form of the vector families, by iced Code number."""
    found = []
    for code in code_names():
        info = opcode_info(code)
        if info.encoding == EncodingKind.LEGACY and info.is_instruction and info.mode64:
            name = code_names()[code]
            if not FAMILIES.isdisjoint(form_features(code)) and not name.startswith(NOT_HERE):
                found.append(code)
    return tuple(found)


@cache
def vex_forms() -> tuple[int, ...]:
    """Every VEX form of AVX, AVX2, FMA, F16C, VAES and VPCLMULQDQ, by iced Code number."""
    found = []
    for code in code_names():
        info = opcode_info(code)
        if info.encoding == EncodingKind.VEX and info.is_instruction and info.mode64:
            name = code_names()[code]
            features = form_features(code)
            vex = not VEX_FAMILIES.isdisjoint(features) and set(features) <= VEX_FAMILIES | FAMILIES
            if vex and not name.startswith(("VEX_VLDMXCSR", "VEX_VSTMXCSR")):
                found.append(code)
    return tuple(found)


@cache
def _kinds() -> dict[int, str]:
    return {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}


def _operand(rng: random.Random, kind: str, instruction: Instruction, n: int, memory: bool) -> None:
    """Fill operand n of `instruction`."""
    if kind.startswith("IMM8"):
        setattr(instruction, f"op{n}_kind", OpKind.IMMEDIATE8)
        instruction.immediate8 = rng.choice((rng.randrange(256), rng.randrange(20), 1 << rng.randrange(8)))
    elif kind == "SEG_RDI":
        setattr(instruction, f"op{n}_kind", OpKind.MEMORY_SEG_RDI)
    elif "VSIB" in kind:
        _vector_index(rng, kind, instruction, n)
    elif kind.startswith("MEM") or (memory and "OR_MEM" in kind):
        setattr(instruction, f"op{n}_kind", OpKind.MEMORY)
        instruction.memory_base = Register.RSI
        # Zen 4 does not check the alignment for SHA; the manual (exceptions type 4) asks for it
        aligned = rng.random() < 0.97 or code_names()[instruction.code].startswith("SHA")
        displacement = rng.randrange(-4, 4) * 16 if aligned else rng.randrange(-64, 64)
        instruction.memory_displacement = displacement & M64
        instruction.memory_displ_size = 1
    else:
        setattr(instruction, f"op{n}_kind", OpKind.REGISTER)
        if kind.startswith("YMM"):
            register = Register.YMM0 + rng.choice((rng.randrange(16), rng.randrange(3)))
        elif kind.startswith("XMM"):
            register = Register.XMM0 + rng.choice((rng.randrange(16), rng.randrange(3)))
        elif kind.startswith("MM"):
            register = Register.MM0 + rng.choice((rng.randrange(8), rng.randrange(3)))
        else:
            first = Register.RAX if kind.startswith("R64") else Register.EAX
            register = first + rng.choice((0, 1, 2, 3, 5, 7, 8, 13, 15))
        setattr(instruction, f"op{n}_register", register)


def _vector_index(rng: random.Random, kind: str, instruction: Instruction, n: int) -> None:
    """Make operand n memory at RSI with a vector index."""
    setattr(instruction, f"op{n}_kind", OpKind.MEMORY)
    instruction.memory_base = Register.RSI
    first = Register.YMM0 if kind.endswith("Y") else Register.XMM0
    instruction.memory_index = first + INDEX_REGISTER  # type: ignore[assignment]
    instruction.memory_index_scale = rng.choice((1, 2, 4, 8))
    instruction.memory_displacement = rng.randrange(-16, 16) & M64
    instruction.memory_displ_size = 1


def encoded(rng: random.Random, code: int) -> bytes:
    """The form `code` with operands of the generator's choice."""
    info = opcode_info(code)
    kinds = [_kinds()[info.op_kind(n)] for n in range(info.op_count)]
    memory = rng.random() < 0.4
    instruction = Instruction()
    instruction.code = code  # type: ignore[assignment]
    for n, kind in enumerate(kinds):
        _operand(rng, kind, instruction, n, memory)
    if info.requires_unique_reg_nums:  # destination, index and mask have to be three registers
        base = Register.YMM0 if RegisterExt.is_ymm(instruction.op_register(0)) else Register.XMM0
        destination, mask = rng.sample([r for r in range(16) if r != INDEX_REGISTER], 2)
        instruction.op0_register = base + destination  # type: ignore[assignment]
        instruction.op2_register = base + mask  # type: ignore[assignment]
    encoder = Encoder(64)
    encoder.encode(instruction, CODE)
    return bytes(encoder.take_buffer())


def register128(rng: random.Random) -> int:
    """128 bits of one of the mixtures."""
    match rng.randrange(9):
        case 0 | 1 | 2:
            singles = [rng.choice(SINGLES) if rng.random() < 0.7 else _near(rng, 32) for _ in range(4)]
            return int.from_bytes(struct.pack("<4I", *singles), "little")
        case 3 | 4 | 5:
            doubles = [rng.choice(DOUBLES) if rng.random() < 0.7 else _near(rng, 64) for _ in range(2)]
            return int.from_bytes(struct.pack("<2Q", *doubles), "little")
        case 6:
            return rng.getrandbits(128)
        case 7:
            edges, size = rng.choice(((BYTE_EDGES, 1), (WORD_EDGES, 2), (DWORD_EDGES, 4)))
            return int.from_bytes(
                b"".join(rng.choice(edges).to_bytes(size, "little") for _ in range(16 // size)), "little"
            )
    return rng.choice(
        (
            rng.randrange(20),
            rng.randrange(130),
            int.from_bytes(bytes(rng.choice(b"\0abc\xff") for _ in range(16)), "little"),
        )
    )


def _near(rng: random.Random, bits: int) -> int:
    """A float with a random fraction, often of few bits, near the middle or an end of the exponent range."""
    fraction_bits, exponents = (23, 255) if bits == 32 else (52, 2047)
    middle = exponents // 2
    exponent = rng.choice(
        (rng.randrange(exponents), middle + rng.randrange(-3, 34), middle + rng.randrange(-2, 66),
         rng.randrange(4), exponents - 1 - rng.randrange(3), middle // 2 + rng.randrange(-3, 3))
    )  # fmt: skip
    fraction = rng.getrandbits(fraction_bits)
    if rng.random() < 0.5:
        fraction &= -1 << rng.randrange(fraction_bits)
    return rng.getrandbits(1) << bits - 1 | (exponent & exponents) << fraction_bits | fraction


def register64(rng: random.Random) -> int:
    """A general register: noise, a small number of either sign, an end of a range."""
    edges = (0x7FFF_FFFF, 0x8000_0000, 1 << 63, (1 << 63) - 1, (1 << 53) + 1, 0x1FF_FFFF)
    return rng.choice(
        (rng.getrandbits(64), rng.randrange(40), rng.randrange(-40, 0) & M64, rng.choice(edges))
    )


def mxcsr(rng: random.Random) -> int:
    """Mostly all exceptions masked; every rounding mode, DAZ, FTZ; flags of the past."""
    masks = 0x1F80 if rng.random() < 0.7 else rng.randrange(64) << 7
    value = masks | rng.randrange(4) << 13 if rng.random() < 0.6 else masks
    if rng.random() < 0.2:
        value |= rng.choice((0x40, 0x8000, 0x8040))
    return value | rng.choice((0, 0, 0x20, 0x20, 0x3F, rng.randrange(64)))


def make_case(rng: random.Random, code: int) -> Case:
    """A random case of the form `code`."""
    xmm = [register128(rng) for _ in range(16)]
    for n in range(16):
        if rng.random() < 0.3:  # lanes in common with another register
            keep = rng.choice(((1 << 64) - 1, 0xFF00FF00_FFFF0000_FFFFFFFF_00FF00FF, (1 << 128) - 1))
            xmm[n] = xmm[n] & ~keep | xmm[rng.randrange(16)] & keep
    regs = [register64(rng) for _ in range(16)]
    regs[RSI] = WINDOW + WINDOW_SIZE // 2 + rng.choice((0, 0, 16, -16, 32))
    regs[RDI] = WINDOW + WINDOW_SIZE // 2 + rng.randrange(-40, 40)
    pending = rng.random() < 0.02
    if opcode_info(code).encoding == EncodingKind.VEX:
        ymmh = [xmm[rng.randrange(16)] if rng.random() < 0.3 else register128(rng) for _ in range(16)]
        if opcode_info(code).requires_unique_reg_nums:
            xmm[INDEX_REGISTER], ymmh[INDEX_REGISTER] = indices(rng, code), indices(rng, code)
    else:
        ymmh = [value ^ (1 << 128) - 1 for value in xmm]  # only has to stay
    fx = FxState(
        control=0x37E if pending else 0x37F,
        status=rng.randrange(8) << 11 | (0x8081 if pending else 0),
        tags=rng.randrange(256),
        mxcsr=mxcsr(rng),
        st=tuple(rng.getrandbits(16) << 64 | register128(rng) & (1 << 64) - 1 for _ in range(8)),
        xmm=tuple(xmm),
        ymmh=tuple(ymmh),
    )
    window = b"".join(
        (rng.choice(xmm) if rng.random() < 0.3 else register128(rng)).to_bytes(16, "little")
        for _ in range(WINDOW_SIZE // 16)
    )
    if code_names()[code] == "LDMXCSR_M32" and rng.random() < 0.8:  # no reserved bit set
        window = b"".join(mxcsr(rng).to_bytes(4, "little") for _ in range(WINDOW_SIZE // 4))
    return Case(encoded(rng, code), tuple(regs), 0x202 | rng.getrandbits(12) & 0x8D5, fx, window)


def indices(rng: random.Random, code: int) -> int:
    """Indices of a gather: mostly near, so that most elements are in the window."""
    width = 32 if "VM32" in code_names()[code] else 64
    most = rng.choice((4, 8, 20))
    lanes = [rng.randrange(-most, most) & (1 << width) - 1 for _ in range(128 // width)]
    return sum(lane << n * width for n, lane in enumerate(lanes))


def cases(
    seed: int, rounds: int, only: str = "", among: tuple[int, ...] | None = None
) -> Iterator[tuple[str, Case]]:
    """(form name, case): `rounds` of every form in `among` (the legacy forms) which starts with `only`."""
    rng = random.Random(seed)
    for _ in range(rounds):
        for code in forms() if among is None else among:
            name = code_names()[code]
            if name.startswith(only):
                yield name, make_case(rng, code)


class Model:
    """This CPU on the oracle's memory map, in 64-bit mode without paging."""

    def __init__(self) -> None:
        self.memory = PhysicalMemory()
        self.memory.add_ram(BASE, 0x8000)
        self.cpu = Cpu(self.memory, ALL_FEATURES, lambda cpu, leaf, subleaf: (0, 0, 0, 0))
        cpu = self.cpu
        cpu.cr0 |= CR0_NE | CR0_PE
        cpu.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        cpu.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX
        cpu.efer |= EFER_LME | EFER_LMA
        cpu.cs.load_raw(0x08, 0, 0xFFFF_FFFF, 0xA09B)
        for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
            segment.load_raw(0x10, 0, 0xFFFF_FFFF, 0xC093)
        cpu.update_mode()

    def run(self, case: Case) -> Outcome:
        """What this CPU makes of `case`."""
        cpu = self.cpu
        for name, value in zip(GPR_NAMES, case.regs, strict=True):
            setattr(cpu, name, value)
        for n, value in enumerate(case.fx.xmm):
            setattr(cpu, f"xmm{n}", value)
        for n, value in enumerate(case.fx.ymmh):
            setattr(cpu, f"ymmh{n}", value)
        cpu.set_rflags_raw(case.flags)
        cpu.mxcsr = case.fx.mxcsr
        fpu = cpu.fpu
        fpu.control = case.fx.control
        fpu.top = case.fx.status >> 11 & 7
        fpu.status = case.fx.status & ~0x3800
        fpu.tags = [1 - (case.fx.tags >> n & 1) for n in range(8)]
        for n in range(8):
            fpu.regs[(fpu.top + n) & 7] = case.fx.st[n]
        self.memory.write(WINDOW, case.window)
        insn = cpu._bind(decode(case.code, 64, CODE), case.code, CODE)
        signal = 0
        try:
            insn.function(cpu, *insn.operands)
        except Fault as fault:
            signal = SIGNALS[fault.vector]
        fx = FxState(
            fpu.control, fpu.status_word(), sum((1 - tag) << n for n, tag in enumerate(fpu.tags)), cpu.mxcsr,
            tuple(fpu.regs[(fpu.top + n) & 7] for n in range(8)),
            tuple(getattr(cpu, f"xmm{n}") for n in range(16)),
            tuple(getattr(cpu, f"ymmh{n}") for n in range(16)),
        )  # fmt: skip
        regs = tuple(getattr(cpu, name) for name in GPR_NAMES)
        return Outcome(signal, regs, cpu.rflags(), fx, bytes(self.memory.read(WINDOW, WINDOW_SIZE)))


def close(ours: int, host: int) -> bool:
    """Two estimates of one single: equal, or both within the manual's 1.5 * 2**-12 of the exact value."""
    if ours == host or (ours & 0x7FFF_FFFF == 0x0080_0000 and host == ours & 0x8000_0000):
        return True  # around the least normal number a result may or may not be tiny
    a, b = (struct.unpack("<f", struct.pack("<I", single))[0] for single in (ours, host))
    return bool(abs(a - b) <= 1.5 * 2.0**-12 * abs(a))  # ours is the nearest single


def close_lanes(ours: int, host: int) -> bool:
    """`close` in all four lanes."""
    return all(close(ours >> at & M32, host >> at & M32) for at in (0, 32, 64, 96))


def differences(name: str, case: Case, ours: Outcome, host: Outcome) -> list[str]:
    """What the two outcomes of the form `name` disagree on, one line each; empty where they agree."""
    same = close_lanes if name.startswith(ESTIMATES) else int.__eq__
    found = []
    # Quirk of ours: CVTPS2PI and friends leave the x87 state alone when they raise #XM
    transition = ours.signal == host.signal == SIGFPE and host.fx.status == 0 and host.fx.tags == 0xFF
    if ours.signal != host.signal:
        found.append(f"signal {ours.signal}, host {host.signal}")
    for n in range(16):
        if n != 4 and ours.regs[n] != host.regs[n]:
            found.append(f"{GPR_NAMES[n]} {ours.regs[n]:#x}, host {host.regs[n]:#x}")
        if not same(ours.fx.xmm[n], host.fx.xmm[n]):
            found.append(
                f"xmm{n} {ours.fx.xmm[n]:032x}, host {host.fx.xmm[n]:032x}, was {case.fx.xmm[n]:032x}"
            )
        if not same(ours.fx.ymmh[n], host.fx.ymmh[n]):
            found.append(
                f"ymmh{n} {ours.fx.ymmh[n]:032x}, host {host.fx.ymmh[n]:032x}, was {case.fx.ymmh[n]:032x}"
            )
    for n in range(0 if transition else 8):
        if ours.fx.st[n] != host.fx.st[n]:
            found.append(f"st{n} {ours.fx.st[n]:020x}, host {host.fx.st[n]:020x}, was {case.fx.st[n]:020x}")
    if (ours.flags ^ host.flags) & CHECKED_FLAGS:
        found.append(f"flags {ours.flags & CHECKED_FLAGS:#x}, host {host.flags & CHECKED_FLAGS:#x}")
    for register in ("mxcsr",) if transition else ("mxcsr", "tags", "status"):
        a, b = getattr(ours.fx, register), getattr(host.fx, register)
        if a != b:
            found.append(f"{register} {a:#x}, host {b:#x}, was {getattr(case.fx, register):#x}")
    if ours.window != host.window:
        found.append("memory")
    return found
