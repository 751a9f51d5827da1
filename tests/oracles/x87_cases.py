"""Generated x87 cases: every encoding, operands biased to edges, all rounding and precision modes.

Everything is drawn from one seeded generator: the same seed gives the same cases.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from iced_x86 import Decoder, Instruction

from isa.decode import code_names, mnemonic_names
from tests.oracles.native_x87 import WINDOW_SIZE, Case, Image

M64 = (1 << 64) - 1
# A 32-bit address, and overrides that say nothing in 64-bit code
PREFIXES = bytes.fromhex("67 26 2e 36 3e")
TOP_BIT = 1 << 63
INTEGERS = (0, 1, 2, 3, 0x7F, 0x7FFF, 0x8000, 0x8001, 0x7FFF_FFFF, 0x8000_0000, 0x8000_0001, (1 << 53) - 1,
            (1 << 53) + 1, TOP_BIT - 1, TOP_BIT, 10**18 - 1, 10**18, 10**17 + 1)  # fmt: skip
SIGNIFICANDS = (TOP_BIT, TOP_BIT | 1, M64, M64 - 1, M64 << 40 & M64, M64 << 11 & M64, M64 << 39 & M64,
                M64 << 10 & M64, TOP_BIT | 1 << 39, TOP_BIT | 1 << 10, TOP_BIT | 3 << 39, TOP_BIT | 3 << 10,
                TOP_BIT | 1 << 40, TOP_BIT | 1 << 11, 3 << 62, 0xC90F_DAA2_2168_C235)  # fmt: skip
# Interesting exponents: the ends of each format's range, and where integers end
EXPONENTS = (1, 2, 0x7FFE, 0x7FFD, 16383 - 1023, 16383 - 1022, 16383 - 1074, 16383 - 1075, 16383 + 1023,
             16383 + 1024, 16383 - 127, 16383 - 126, 16383 - 149, 16383 - 150, 16383 + 127, 16383 + 128,
             16383 + 62, 16383 + 63, 16383 + 64, 16383 - 1, 16383, 16383 + 30, 16383 + 31, 16383 + 14,
             16383 + 15, 64, 65, 16383 - 64, 16383 + 59)  # fmt: skip


def encodings() -> Iterator[tuple[bytes, str, str]]:
    """(bytes, iced form, mnemonic) of everything behind D8-DF that is an instruction of this CPU."""
    instruction = Instruction()
    for prefix in (b"", b"\x66"):
        for opcode in range(0xD8, 0xE0):
            for modrm in (*range(7, 0x40, 8), *range(0xC0, 0x100)):
                raw = prefix + bytes((opcode, modrm))
                Decoder(64, raw).decode_out(instruction)
                form = code_names()[instruction.code]
                if instruction.is_invalid or form in ("FRSTPM", "FNSTDW_AX", "FNSTSG_AX"):
                    continue  # 287XL and 387SL only
                if prefix and not form.endswith(("M14BYTE", "M94BYTE")):
                    continue
                yield raw, form, mnemonic_names()[instruction.mnemonic]


def extended(rng: random.Random) -> int:
    """An 80-bit pattern, often at an edge."""
    sign = rng.getrandbits(1) << 79
    kind = rng.randrange(32)
    significand = rng.choice(SIGNIFICANDS) if rng.getrandbits(1) else rng.getrandbits(63) | TOP_BIT
    match kind:
        case 0 | 1:
            return sign
        case 2:
            return sign | (rng.getrandbits(63) >> rng.randrange(63))  # denormal
        case 3:
            return sign | significand  # pseudo-denormal
        case 4 | 5:
            return sign | 0x7FFF << 64 | TOP_BIT  # infinity
        case 6:
            return sign | 0x7FFF << 64 | 3 << 62 | rng.getrandbits(62) >> rng.randrange(62)
        case 7:
            return sign | 0x7FFF << 64 | TOP_BIT | 1 | rng.getrandbits(62) >> rng.randrange(62)
        case 8:
            return sign | rng.randrange(1, 0x8000) << 64 | significand ^ TOP_BIT  # unnormal, pseudo-NaN
        case 9:
            return sign | 0x7FFF << 64 | rng.choice((0, 1, 1 << 62, 3 << 62, TOP_BIT | 1, M64))
        case 10 | 11 | 12 | 13:
            return sign | rng.choice(EXPONENTS) << 64 | significand
        case 14 | 15 | 16:
            value = rng.choice(INTEGERS)
            if value:
                width = value.bit_length()
                return sign | 16382 + width << 64 | value << 64 - width
            return sign
        case 17 | 18 | 19 | 20:  # an integer and a fraction
            width = rng.randrange(1, 64)
            bits = rng.getrandbits(width) | 1 << width - 1
            halves = bits << 64 - width | rng.choice((0, 1, 1 << 63 - width, (1 << 63 - width) - 1))
            return sign | rng.randrange(16380, 16450) << 64 | halves & M64
        case 21:
            return sign | rng.randrange(1, 0x7FFF) << 64 | significand
        case _:
            return sign | rng.randrange(16383 - 70, 16383 + 70) << 64 | significand


def near(rng: random.Random, value: int) -> int:
    """A number close to another: the same exponent or one around it, so that sums cancel."""
    exponent = (value >> 64 & 0x7FFF) + rng.choice((0, 0, 0, 1, -1, 2, 24, 53, 63, 64, 65, -64, 40, 11))
    close = (value & M64, value + 1 & M64, value - 1 & M64, rng.getrandbits(64))
    significand = rng.choice((*close, *SIGNIFICANDS))
    return rng.getrandbits(1) << 79 | max(0, min(0x7FFF, exponent)) << 64 | significand


def memory(rng: random.Random, form: str) -> bytes:
    """The bytes of a memory operand for `form`."""
    value = extended(rng)
    if "FP" in form.rsplit("_", 1)[-1] and not form.endswith("M80FP"):
        bits = 32 if form.endswith("M32FP") else 64
        if rng.randrange(4) == 0:
            return rng.getrandbits(bits).to_bytes(bits // 8, "little")
        fraction_bits, top = (23, 255) if bits == 32 else (52, 2047)
        middle = top // 2
        exponent = rng.choice((0, 0, 1, 2, top, top - 1, middle, middle + fraction_bits, rng.randrange(top)))
        ones = (1 << fraction_bits) - 1
        fraction = rng.choice((0, 1, ones, 1 << fraction_bits - 1, value & ones))
        pattern = rng.getrandbits(1) << bits - 1 | exponent << fraction_bits | fraction
        return pattern.to_bytes(bits // 8, "little")
    if form.endswith("INT"):
        number = rng.choice(INTEGERS) if rng.getrandbits(1) else rng.getrandbits(64) >> rng.randrange(64)
        return (-number if rng.getrandbits(1) else number).to_bytes(9, "little", signed=True)[:8]
    if form.endswith("BCD"):
        limit = 16 if rng.randrange(8) == 0 else 10
        digits = sum(rng.randrange(limit) << 4 * n for n in range(18))
        digits >>= rng.choice((0, 0, 4 * rng.randrange(18)))
        return (rng.getrandbits(8) << 72 | digits).to_bytes(10, "little")
    return value.to_bytes(10, "little")


def make_case(rng: random.Random, code: bytes, form: str) -> Case:
    """One case of an encoding, sometimes with a prefix for its memory operand."""
    if code[-1] < 0xC0 and rng.random() < 0.15:
        code = bytes((rng.choice(PREFIXES),)) + code
    masks = 0x3F
    if rng.randrange(8) >= 5:
        masks = rng.choice((0, rng.getrandbits(6), 0x3F ^ 1 << rng.randrange(6)))
    precision, rounding, infinity = rng.choice((0, 2, 3, 3, 3, 1)), rng.randrange(4), rng.getrandbits(1)
    control = masks | precision << 8 | rounding << 10 | 0x40 | infinity << 12
    sticky = rng.getrandbits(6) & masks if rng.getrandbits(1) else 0
    if form.startswith("FN") and form != "FNOP" and rng.getrandbits(1):
        sticky = rng.getrandbits(6)  # these do not wait: an exception may be pending
    top = rng.randrange(8)
    status = sticky | rng.getrandbits(1) << 6 | rng.randrange(8) << 8 | rng.getrandbits(1) << 14 | top << 11
    registers = [extended(rng) for _ in range(8)]
    if rng.randrange(3) == 0:
        other = code[-1] & 7 or 1
        registers[other] = near(rng, registers[0])
    if form in ("FSCALE",) and rng.randrange(4):
        registers[1] = rng.getrandbits(1) << 79 | rng.randrange(16380, 16402) << 64 | rng.choice(SIGNIFICANDS)
    if form in ("F2XM1", "FYL2XP1") and rng.randrange(4):  # where the manual defines the result
        registers[0] = rng.getrandbits(1) << 79 | rng.randrange(16310, 16382) << 64 | rng.choice(SIGNIFICANDS)
        registers[0] ^= rng.getrandbits(63)
    kind = rng.randrange(8)
    if kind < 5:
        depth = rng.randrange(2, 8)
        empty = [n >= depth for n in range(8)]
    elif kind == 5:
        empty = [False] * 8
    else:
        empty = [bool(rng.getrandbits(1)) for _ in range(8)]
    tags = sum(3 << 2 * (top + n & 7) for n in range(8) if empty[n])
    image = Image(control, status, tags, rng.getrandbits(32), 0, rng.getrandbits(11), rng.getrandbits(32), 0,
                  tuple(registers))  # fmt: skip
    window = memory(rng, form)
    if form.startswith(("FLDENV", "FRSTOR")):
        window = b"".join(struct.pack("<H", rng.getrandbits(16)) for _ in range(14))
        window += b"".join(extended(rng).to_bytes(10, "little") for _ in range(8))
    if form.startswith("FLDCW"):
        window = rng.getrandbits(16).to_bytes(2, "little")
    window = window + bytes(rng.getrandbits(8) for _ in range(WINDOW_SIZE - len(window)))
    return Case(code, image, rng.getrandbits(12) & 0x8D5, window)
