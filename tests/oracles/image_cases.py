"""Seeded cases of FXSAVE, FXRSTOR, XSAVE and its kin for the host CPU. No assertion here."""

from __future__ import annotations

import random

from iced_x86 import Decoder, Instruction, Register, RegisterExt

from isa.decode import code_names
from isa.state import M32, M64
from tests.oracles.native_vector import CODE, DATA, FS_BASE, GS_BASE, Case, FxState
from tests.oracles.vector_cases import mxcsr
from tests.oracles.vector_operands import Encoded, bytes_of, put_address

IMAGE_WINDOW = 1024
LARGEST = 832  # bytes of an area with x87, SSE and AVX
MXCSR_MASK_AT = 28  # in an image; the mask is the CPU's own
COMPACTED = 1 << 63


def make_image_case(rng: random.Random, code: int) -> Case:
    """A case of FXSAVE, FXRSTOR, XSAVE or its kin: an area of any content, mostly one that can be loaded.

    The components asked for and named are those of this CPU: x87, SSE, AVX.
    """
    name = code_names()[code]
    alignment = 16 if name.startswith("FX") else 64
    at = alignment * rng.randrange((IMAGE_WINDOW - LARGEST) // alignment + 1)
    made = Encoded(b"", {}, DATA + 0x1000 - IMAGE_WINDOW // 2 + at, set(), set())
    if rng.random() < 0.04:
        made.memory_at += rng.choice((1, 8, 16, 32))
    if rng.random() < 0.03:
        made.memory_at = DATA + 0x2000 - alignment * rng.randrange(1, 5)
    instruction = Instruction()
    instruction.code = code  # type: ignore[assignment]
    put_address(rng, instruction, 0, made)
    made.code = bytes_of(instruction)
    wanted, header = rng.randrange(8), rng.randrange(8)
    regs = [rng.getrandbits(64) for _ in range(16)]
    for n, value in made.address.items():
        regs[n] = value & M64
    if not made.address.keys() & {0, 2}:
        regs[0], regs[2] = regs[0] & ~M32 | wanted, regs[2] & ~M32
    elif not name.startswith("FX"):  # the address takes what names the components
        return make_image_case(rng, code)
    window = bytearray(rng.randbytes(IMAGE_WINDOW))
    value = mxcsr(rng) if rng.random() < 0.9 else rng.getrandbits(32)
    window[at + 24 : at + 28] = value.to_bytes(4, "little")
    if not name.startswith("FX"):
        compact = COMPACTED | header | rng.randrange(8) if rng.random() < 0.4 else 0
        if rng.random() < 0.1:
            header ^= 1 << rng.choice((0, 1, 2, 40, 62))
        if rng.random() < 0.06:
            compact ^= 1 << rng.choice((0, 1, 2, 41, 61, 63))
        rest = bytes(48)
        if rng.random() >= 0.9:  # a reserved byte that is perhaps not zero
            rest = rng.randbytes(1).rjust(rng.randrange(1, 49), b"\0").ljust(48, b"\0")
        raw = header.to_bytes(8, "little") + compact.to_bytes(8, "little") + rest
        window[at + 512 : at + 576] = raw
    xmm, ymmh = ([int.from_bytes(rng.randbytes(16), "little") for _ in range(16)] for _ in range(2))
    fx = FxState(
        control=0x37F, status=rng.randrange(8) << 11 | rng.getrandbits(11) & 0x4700, tags=rng.randrange(256),
        mxcsr=mxcsr(rng), st=tuple(rng.getrandbits(80) for _ in range(8)), xmm=tuple(xmm), ymmh=tuple(ymmh),
    )  # fmt: skip
    return Case(made.code, tuple(regs), 0x202 | rng.getrandbits(12) & 0x8D5, fx, bytes(window))


def without_mxcsr_mask(case: Case, window: bytes) -> bytes:
    """A window with the mask of MXCSR that an image holds left out: it is the CPU's own."""
    instruction = Decoder(64, case.code, ip=CODE).decode()
    base, index = instruction.memory_base, instruction.memory_index
    at = instruction.memory_displacement
    if base not in (Register.NONE, Register.RIP, Register.EIP):
        at += case.regs[RegisterExt.number(base)]
    if index != Register.NONE:
        at += case.regs[RegisterExt.number(index)] * instruction.memory_index_scale
    if RegisterExt.size(base) == 4:
        at &= M32
    at += {Register.FS: FS_BASE, Register.GS: GS_BASE}.get(instruction.memory_segment, 0)
    at = (at & M64) - (DATA + 0x1000 - IMAGE_WINDOW // 2) + MXCSR_MASK_AT
    return window[: max(at, 0)] + bytes(4) + window[at + 4 :] if 0 <= at < len(window) else window
