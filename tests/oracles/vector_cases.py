"""Seeded MMX, SSE and AVX cases for the host CPU. No assertion here.

Registers and memory hold mixtures of what matters to some instruction: edge integers, edge floats (zeros,
denormals, infinities, NaNs of both kinds, halves, the ends of integer ranges), copies of other lanes, noise.
What no operand names is noise.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from iced_x86 import Code, EncodingKind

from isa.decode import code_names, opcode_info
from isa.state import M64
from tests.oracles.native_vector import WINDOW, WINDOW_SIZE, Case, FxState
from tests.oracles.vector_forms import forms
from tests.oracles.vector_operands import INDEX_REGISTER, encoded, shape

AC = 0x4_0000

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
    """A random case of the form `code`: what its operands hold is biased to edges, the rest is noise."""
    made = encoded(rng, code)
    noise = [int.from_bytes(rng.randbytes(16), "little") for _ in range(32)]
    xmm, ymmh = noise[:16], noise[16:]
    is_vex = opcode_info(code).encoding == EncodingKind.VEX
    used = sorted(made.vectors)
    for n in used:
        xmm[n] = register128(rng)
        if is_vex:
            ymmh[n] = xmm[n] if rng.random() < 0.1 else register128(rng)
    for n in used:
        if rng.random() < 0.3:  # lanes in common with another register
            keep = rng.choice(((1 << 64) - 1, 0xFF00FF00_FFFF0000_FFFFFFFF_00FF00FF, (1 << 128) - 1))
            other = rng.choice(used)
            xmm[n] = xmm[n] & ~keep | xmm[other] & keep
            if is_vex:
                ymmh[n] = ymmh[n] & ~keep | ymmh[other] & keep
    if opcode_info(code).requires_unique_reg_nums:
        xmm[INDEX_REGISTER], ymmh[INDEX_REGISTER] = indices(rng, code), indices(rng, code)
    regs = [rng.getrandbits(64) for _ in range(16)]
    for n in made.general:
        regs[n] = register64(rng)
    for n, value in made.address.items():
        regs[n] = value & M64
    pending = rng.random() < (0.4 if code == Code.WAIT else 0.02)
    is_mmx = "MM_" in code_names()[code] or any(kind.startswith("MM") for kind in shape(code))
    fx = FxState(
        control=0x37E if pending else 0x37F,
        status=rng.randrange(8) << 11 | (0x8081 if pending else 0),
        tags=rng.randrange(256),
        mxcsr=mxcsr(rng),
        st=tuple(
            rng.getrandbits(16) << 64 | register128(rng) & M64 if is_mmx else rng.getrandbits(80)
            for _ in range(8)
        ),
        xmm=tuple(xmm),
        ymmh=tuple(ymmh),
    )
    window = bytearray(rng.randbytes(WINDOW_SIZE))
    if made.memory_at:
        first = made.memory_at - WINDOW & ~15
        near = range(first, first + 48, 16) if "VSIB" not in str(shape(code)) else range(0, WINDOW_SIZE, 16)
        for at in near:
            if 0 <= at < WINDOW_SIZE:
                block = xmm[rng.choice(used)] if rng.random() < 0.3 else register128(rng)
                window[at : at + 16] = block.to_bytes(16, "little")
    if "LDMXCSR" in code_names()[code] and rng.random() < 0.8:  # no reserved bit set
        window = bytearray(b"".join(mxcsr(rng).to_bytes(4, "little") for _ in range(WINDOW_SIZE // 4)))
    flags = 0x202 | rng.getrandbits(12) & 0x8D5
    # In VEX forms and masked stores AMD checks the whole operand, Intel the parts of up to 8 bytes
    if not is_vex and "MASKMOV" not in code_names()[code] and rng.random() < 0.02:
        flags |= AC
    return Case(made.code, tuple(regs), flags, fx, bytes(window))


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
