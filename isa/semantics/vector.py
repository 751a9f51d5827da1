"""Lanes of a vector register, which is one integer. No instruction is defined here.

Most lane arithmetic is done on all lanes of the 128-bit integer at once: the sign bits are kept out of the
carry chain, so that no lane disturbs its neighbour. A 64-bit MMX value is a 128-bit one with zeros above; who
calls masks the result where a function says that zero lanes do not stay zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING

from isa.faults import DeviceNotAvailable, InvalidOpcode
from isa.operands import Operand
from isa.semantics.fpu_control import check_pending, check_sse
from isa.semantics.registry import HALVES
from isa.state import CR0_EM, CR0_TS, CR4_OSFXSR, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

M128 = (1 << 128) - 1
LOW32_OUT = M128 ^ 0xFFFF_FFFF  # keeps all but the low doubleword: scalar single writes
LOW64_OUT = M128 ^ M64  # keeps all but the low quadword: scalar double writes


class Lanes:
    """Constants of one lane width: `one` has the lowest bit of every lane, `sign` the highest."""

    __slots__ = ("mask", "one", "rest", "sign", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.mask = (1 << width) - 1
        self.one = M128 // self.mask
        self.sign = self.one << width - 1
        self.rest = M128 ^ self.sign


BYTES, WORDS, DWORDS, QWORDS = (Lanes(width) for width in (8, 16, 32, 64))

U8, S8, U16, S16, U32, S32, U64, S64 = (
    Struct("<" + shape) for shape in ("16B", "16b", "8H", "8h", "4I", "4i", "2Q", "2q")
)


def split(value: int, shape: Struct) -> tuple[int, ...]:
    """The lanes of a register, lowest first; `shape` is U8 ... S64."""
    return shape.unpack(value.to_bytes(16, "little"))


def join(lanes: Iterable[int], shape: Struct) -> int:
    """The register made of `lanes`, which fit `shape`."""
    return int.from_bytes(shape.pack(*lanes), "little")


# ---- control checks --------------------------------------------------------------------------------------


def check_vector(cpu: Cpu, register: Operand) -> None:
    """The checks of an instruction that has an XMM and an MMX form; `register` is one of its registers."""
    if register.bits == 64:
        check_mmx(cpu)
    elif cpu.cr0 & (CR0_EM | CR0_TS) or not cpu.cr4 & CR4_OSFXSR:
        check_sse(cpu)


def check_mmx(cpu: Cpu) -> None:
    """#UD with CR0.EM, #NM with CR0.TS, #MF for an x87 exception that is pending."""
    if cpu.cr0 & CR0_EM:
        raise InvalidOpcode("MMX instruction with CR0.EM=1")
    if cpu.cr0 & CR0_TS:
        raise DeviceNotAvailable("MMX instruction with CR0.TS=1")
    check_pending(cpu)


def enter_mmx(cpu: Cpu) -> None:
    """All x87 registers valid, TOP 0: the end of every MMX instruction. A write to MMn does it itself."""
    cpu.fpu.tags = [0] * 8
    cpu.fpu.top = 0


# ---- 256 bits ---------------------------------------------------------------------------------------------


class Half:
    """128 bits of a wider operand, on their way through a definition that works on 128."""

    __slots__ = ("value",)
    bits = 128
    bytes = 16
    mask = M128
    in_memory = False

    def __init__(self, value: int) -> None:
        self.value = value


@cache
def on_halves(function: Callable[..., None], part: int) -> Callable[..., None]:
    """A 256-bit form of an instruction that treats each 128 bits alike.

    With `part` HALVES the sources of 256 bits are halved and the others (shift counts, immediates) serve both
    halves; with less, `part` bits of a source make 128 bits of the result.
    """

    def run(cpu: Cpu, dst: Operand, *sources: Operand) -> None:
        check_sse(cpu)  # before memory is read
        old = dst.value
        low: list[Half] = []
        high: list[Half] = []
        for source in sources:
            value = source.value
            if part != HALVES:
                low.append(Half(value))
                high.append(Half(value >> part))
            elif source.bits == 256:
                low.append(Half(value & M128))
                high.append(Half(value >> 128))
            else:
                both_use = Half(value)
                low.append(both_use)
                high.append(both_use)
        first, second = Half(old & M128), Half(old >> 128)
        function(cpu, first, *low)
        function(cpu, second, *high)
        dst.value = first.value | second.value << 128

    return run


# ---- masks -----------------------------------------------------------------------------------------------


def filled(signs: int, lanes: Lanes) -> int:
    """All ones in the lanes whose sign bit is set in `signs`, which has no other bit."""
    return (signs << 1) - (signs >> lanes.width - 1)


def equal(a: int, b: int, lanes: Lanes) -> int:
    """All ones where the lanes are equal; two zero lanes are."""
    difference = a ^ b
    unequal = ((difference & lanes.rest) + lanes.rest | difference) & lanes.sign
    return filled(unequal ^ lanes.sign, lanes)


def below(a: int, b: int, lanes: Lanes) -> int:
    """All ones where a < b, unsigned."""
    difference = subtracted(a, b, lanes)
    inverse = a ^ M128
    return filled((inverse & b | (inverse | b) & difference) & lanes.sign, lanes)


def greater(a: int, b: int, lanes: Lanes) -> int:
    """All ones where a > b, signed."""
    return below(b ^ lanes.sign, a ^ lanes.sign, lanes)


def negative(a: int, lanes: Lanes) -> int:
    """All ones in the lanes that are negative."""
    return filled(a & lanes.sign, lanes)


def chosen(mask: int, a: int, b: int) -> int:
    """Bits of a where `mask` is set, else of b."""
    return b ^ (a ^ b) & mask


def sign_bits(a: int) -> int:
    """The highest bits of the 16 bytes as a number of 16 bits."""
    # The factor moves the top bit of byte i of a quadword to bit 56 + i; no two products meet
    a &= BYTES.sign
    if not a:
        return 0
    low = (a & M64) * 0x0002_0408_1020_4081 >> 56 & 0xFF
    return low | (a >> 64) * 0x0002_0408_1020_4081 >> 48 & 0xFF00


# ---- addition and subtraction ------------------------------------------------------------------------------


def added(a: int, b: int, lanes: Lanes) -> int:
    """a + b, wrapping."""
    return (a & lanes.rest) + (b & lanes.rest) ^ (a ^ b) & lanes.sign


def subtracted(a: int, b: int, lanes: Lanes) -> int:
    """a - b, wrapping."""
    return (a | lanes.sign) - (b & lanes.rest) ^ (a ^ b ^ M128) & lanes.sign


def added_unsigned(a: int, b: int, lanes: Lanes) -> int:
    """a + b with unsigned saturation."""
    total = added(a, b, lanes)
    return total | filled((a & b | (a | b) & ~total) & lanes.sign, lanes)


def subtracted_unsigned(a: int, b: int, lanes: Lanes) -> int:
    """a - b with unsigned saturation: 0 where a < b."""
    return subtracted(a, b, lanes) & (M128 ^ below(a, b, lanes))


def limits(a: int, lanes: Lanes) -> int:
    """The largest number, or the smallest where a is negative."""
    return lanes.rest ^ negative(a, lanes)


def added_signed(a: int, b: int, lanes: Lanes) -> int:
    """a + b with signed saturation."""
    total = added(a, b, lanes)
    overflow = (a ^ total) & (b ^ total) & lanes.sign
    return chosen(filled(overflow, lanes), limits(a, lanes), total) if overflow else total


def subtracted_signed(a: int, b: int, lanes: Lanes) -> int:
    """a - b with signed saturation."""
    difference = subtracted(a, b, lanes)
    overflow = (a ^ b) & (a ^ difference) & lanes.sign
    return chosen(filled(overflow, lanes), limits(a, lanes), difference) if overflow else difference


def average(a: int, b: int, lanes: Lanes) -> int:
    """(a + b + 1) >> 1, unsigned."""
    return (a | b) - (((a ^ b) & (M128 ^ lanes.one)) >> 1)


def smaller_unsigned(a: int, b: int, lanes: Lanes) -> int:
    """The smaller lane, unsigned."""
    return chosen(below(a, b, lanes), a, b)


def larger_unsigned(a: int, b: int, lanes: Lanes) -> int:
    """The larger lane, unsigned."""
    return chosen(below(a, b, lanes), b, a)


def smaller_signed(a: int, b: int, lanes: Lanes) -> int:
    """The smaller lane, signed."""
    return chosen(greater(a, b, lanes), b, a)


def larger_signed(a: int, b: int, lanes: Lanes) -> int:
    """The larger lane, signed."""
    return chosen(greater(a, b, lanes), a, b)


def absolute(a: int, lanes: Lanes) -> int:
    """|a|; the smallest number stays what it is."""
    mask = negative(a, lanes)
    return subtracted(a ^ mask, mask, lanes)


def signed_like(a: int, b: int, lanes: Lanes) -> int:
    """-a where b is negative, 0 where b is zero, else a."""
    mask = negative(b, lanes)
    return subtracted(a ^ mask, mask, lanes) & (M128 ^ equal(b, 0, lanes))


# ---- shifts ------------------------------------------------------------------------------------------------


def shifted_left(a: int, count: int, lanes: Lanes) -> int:
    """Every lane << count; 0 from the lane width on."""
    if count >= lanes.width:
        return 0
    return (a & (lanes.mask >> count) * lanes.one) << count


def shifted_right(a: int, count: int, lanes: Lanes) -> int:
    """Every lane >> count, zeros from the left."""
    if count >= lanes.width:
        return 0
    return a >> count & (lanes.mask >> count) * lanes.one


def shifted_arithmetic(a: int, count: int, lanes: Lanes) -> int:
    """Every lane >> count, copies of the sign from the left."""
    count = min(count, lanes.width - 1)
    keep = (lanes.mask >> count) * lanes.one
    return a >> count & keep | negative(a, lanes) & (M128 ^ keep)


# ---- changes of shape --------------------------------------------------------------------------------------

_EVEN = {width: M128 // ((1 << 2 * width) - 1) * ((1 << width) - 1) for width in (8, 16, 32)}
EVEN_BYTES, EVEN_WORDS, EVEN_DWORDS = _EVEN[8], _EVEN[16], _EVEN[32]


def bytes_to_words(a: int) -> int:
    """Zero-extend the low 8 bytes to words."""
    a &= M64
    a = (a | a << 32) & EVEN_DWORDS
    a = (a | a << 16) & EVEN_WORDS
    return (a | a << 8) & EVEN_BYTES


def words_to_dwords(a: int) -> int:
    """Zero-extend the low 4 words to doublewords."""
    a &= M64
    a = (a | a << 32) & EVEN_DWORDS
    return (a | a << 16) & EVEN_WORDS


def dwords_to_qwords(a: int) -> int:
    """Zero-extend the low 2 doublewords to quadwords."""
    return a & 0xFFFF_FFFF | (a >> 32 & 0xFFFF_FFFF) << 64


def sign_extended(a: int, narrow: int, lanes: Lanes) -> int:
    """Lanes holding zero-extended `narrow`-bit numbers, sign-extended."""
    sign = lanes.one << narrow - 1
    return subtracted(a ^ sign, sign, lanes)


# A word -> the byte that it saturates to
_SIGNED_BYTE = bytes(range(128)) + b"\x7f" * 0x7F80 + b"\x80" * 0x7F80 + bytes(range(128, 256))
_UNSIGNED_BYTE = bytes(range(256)) + b"\xff" * 0x7F00 + bytes(0x8000)
_WORDS_OF = {16: Struct("<8H"), 32: Struct("<16H")}
_DWORDS_OF = {16: Struct("<4i"), 32: Struct("<8i")}


def both(a: int, b: int, size: int) -> bytes:
    """a below b, each of `size` bytes."""
    return (b << 8 * size | a).to_bytes(2 * size, "little")


def words_to_bytes(raw: bytes, *, signed: bool) -> int:
    """16 or 32 bytes of signed words, saturated to bytes."""
    table = _SIGNED_BYTE if signed else _UNSIGNED_BYTE
    return int.from_bytes(bytes(map(table.__getitem__, _WORDS_OF[len(raw)].unpack(raw))), "little")


def dwords_to_words(raw: bytes, least: int, most: int) -> int:
    """16 or 32 bytes of signed doublewords, saturated to words between `least` and `most`."""
    clamped = [least if x < least else most if x > most else x for x in _DWORDS_OF[len(raw)].unpack(raw)]
    return int.from_bytes(b"".join([(x & 0xFFFF).to_bytes(2, "little") for x in clamped]), "little")


def shuffled_dwords(a: int, order: int) -> int:
    """Doubleword i of the result is doubleword order[2i+1:2i] of a."""
    return (
        a >> ((order & 3) << 5) & 0xFFFF_FFFF
        | (a >> ((order & 12) << 3) & 0xFFFF_FFFF) << 32
        | (a >> ((order & 48) << 1) & 0xFFFF_FFFF) << 64
        | (a >> ((order & 192) >> 1) & 0xFFFF_FFFF) << 96
    )


def shuffled_words(a: int, order: int) -> int:
    """The low 4 words of a in a new order, as a quadword."""
    return (
        a >> ((order & 3) << 4) & 0xFFFF
        | (a >> ((order & 12) << 2) & 0xFFFF) << 16
        | (a >> (order & 48) & 0xFFFF) << 32
        | (a >> ((order & 192) >> 2) & 0xFFFF) << 48
    )


def masked_runs(mask: int) -> list[tuple[int, int]]:
    """(start, length) of every run of ones in a 16-bit mask."""
    runs = []
    at = 0
    while mask >> at:
        if mask >> at & 1:
            ones = mask >> at
            length = (~ones & ones + 1).bit_length() - 1
            runs.append((at, length))
            at += length
        else:
            at += 1
    return runs


def store_masked(cpu: Cpu, dst: Operand, value: int, mask: int) -> None:
    """Store the bytes of `value` whose bit in `mask` is set, and touch no other byte."""
    # Every run is checked before the first is stored, so that a fault leaves memory as it was.
    runs = masked_runs(mask)
    places = []
    for start, length in runs:
        offset = dst.offset + start & dst.address_mask  # type: ignore[attr-defined]
        linear = cpu.linear_address(dst.segment, offset, length, True)  # type: ignore[attr-defined]
        cpu.check_write(linear, length)
        places.append((linear, length, value >> 8 * start & (1 << 8 * length) - 1))
    for linear, length, part in places:
        cpu.store(linear, length, part)
