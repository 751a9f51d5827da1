"""SSE4.2 string instructions: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM. CRC32 is in `bits`.

Source: SDM Vol. 2, "Imm8 Control Byte Operation for PCMPESTRI / PCMPESTRM / PCMPISTRI / PCMPISTRM". The first
operand is the set, the ranges, the string or the needle; the second is the text. Results are bit masks with
one bit per element of the text: the manual's IntRes1 and IntRes2.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import WIDE, insn
from isa.semantics.vector import BYTES, S8, S16, U8, U16, WORDS, filled, split

if TYPE_CHECKING:
    from isa.cpu import Cpu

FORMATS: tuple[Struct, ...] = (U8, U16, S8, S16)  # imm8[1:0]
WORD_ELEMENTS = 1  # imm8[0]
EQUAL_ANY, RANGES, EQUAL_EACH, EQUAL_ORDERED = range(4)  # imm8[3:2]
NEGATIVE, MASKED = 1 << 4, 1 << 5  # polarity
MOST_SIGNIFICANT = EXPANDED = 1 << 6  # ...I: which index; ...M: a mask of elements


def elements(value: int, imm8: int) -> tuple[int, ...]:
    """The 16 bytes or 8 words of a register, signed or not."""
    return split(value, FORMATS[imm8 & 3])


def implicit_length(value: int, imm8: int) -> int:
    """Elements before the first zero."""
    lanes = elements(value, imm8)
    return lanes.index(0) if 0 in lanes else len(lanes)


def explicit_length(register: int, bits: int, imm8: int) -> int:
    """|register|, signed, but at most the number of elements."""
    number = register & (1 << bits) - 1
    if number >> bits - 1:
        number = (1 << bits) - number
    return min(number, 8 if imm8 & WORD_ELEMENTS else 16)


def equal_any(first: tuple[int, ...], text: tuple[int, ...]) -> int:
    """Elements of the text that are in the set."""
    members = frozenset(first)
    return sum((element in members) << n for n, element in enumerate(text))


def in_ranges(first: tuple[int, ...], text: tuple[int, ...]) -> int:
    """Elements of the text within one of the ranges; half a range at the end is none."""
    ranges = list(zip(first[0::2], first[1::2], strict=False))
    return sum(any(low <= element <= high for low, high in ranges) << n for n, element in enumerate(text))


def equal_each(first: tuple[int, ...], text: tuple[int, ...], count: int) -> int:
    """Positions where both strings have the same element, or both have ended."""
    same = sum((a == b) << n for n, (a, b) in enumerate(zip(first, text, strict=False)))
    return same | (1 << count) - (1 << max(len(first), len(text)))


def equal_ordered(first: tuple[int, ...], text: tuple[int, ...], count: int) -> int:
    """Positions where the needle starts; at the end of the register its beginning suffices."""
    return sum((text[n : n + len(first)] == first[: count - n]) << n for n in range(count))


def matches(first: int, first_length: int, second: int, second_length: int, imm8: int) -> int:
    """IntRes2: the aggregation imm8[3:2] over the valid elements, then the polarity imm8[5:4]."""
    count = 8 if imm8 & WORD_ELEMENTS else 16
    needle = elements(first, imm8)[:first_length]
    text = elements(second, imm8)[:second_length]
    match imm8 >> 2 & 3:
        case 0:
            found = equal_any(needle, text)
        case 1:
            found = in_ranges(needle, text)
        case 2:
            found = equal_each(needle, text, count)
        case _:
            found = equal_ordered(needle, text, count)
    if imm8 & NEGATIVE:
        found ^= (1 << (second_length if imm8 & MASKED else count)) - 1
    return found


def index_of(found: int, imm8: int) -> int:
    """ECX: the lowest or highest match, or the number of elements."""
    if not found:
        return 8 if imm8 & WORD_ELEMENTS else 16
    if imm8 & MOST_SIGNIFICANT:
        return found.bit_length() - 1
    return (found & -found).bit_length() - 1


def mask_of(found: int, imm8: int) -> int:
    """XMM0: the matches as bits, or each as a whole element."""
    if not imm8 & EXPANDED:
        return found
    lanes = WORDS if imm8 & WORD_ELEMENTS else BYTES
    return filled(sum((found >> n & 1) << (n + 1) * lanes.width - 1 for n in range(16)), lanes)


def set_flags(cpu: Cpu, found: int, first_length: int, second_length: int, imm8: int) -> None:
    """CF: a match; ZF, SF: the text, the first operand ends early; OF: the text's first element matches"""
    count = 8 if imm8 & WORD_ELEMENTS else 16
    cpu.cf = found != 0
    cpu.zf = second_length < count
    cpu.sf = first_length < count
    cpu.of = found & 1
    cpu.af = 0
    cpu.pf = 0


def explicit(cpu: Cpu, dst: Operand, src: Operand, imm8: int, bits: int) -> int:
    """IntRes2 and the flags of strings whose lengths are in rAX and rDX."""
    first_length = explicit_length(cpu.rax, bits, imm8)
    second_length = explicit_length(cpu.rdx, bits, imm8)
    found = matches(dst.value, first_length, src.value, second_length, imm8)
    set_flags(cpu, found, first_length, second_length, imm8)
    return found


def implicit(cpu: Cpu, dst: Operand, src: Operand, imm8: int) -> int:
    """IntRes2 and the flags of strings that end with a zero element."""
    first, second = dst.value, src.value
    first_length = implicit_length(first, imm8)
    second_length = implicit_length(second, imm8)
    found = matches(first, first_length, second, second_length, imm8)
    set_flags(cpu, found, first_length, second_length, imm8)
    return found


@insn("PCMPESTRI", vex=WIDE)
def pcmpestri(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """ECX := index of the first or last match; lengths in EAX and EDX"""
    check_sse(cpu)
    cpu.rcx = index_of(explicit(cpu, dst, src, control.value, 32), control.value)


@insn("PCMPESTRI64", vex=WIDE)
def pcmpestri64(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """ECX := index of the first or last match; lengths in RAX and RDX"""
    check_sse(cpu)
    cpu.rcx = index_of(explicit(cpu, dst, src, control.value, 64), control.value)


@insn("PCMPESTRM")
def pcmpestrm(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """XMM0 := mask of the matches; lengths in EAX and EDX"""
    check_sse(cpu)
    cpu.xmm0 = mask_of(explicit(cpu, dst, src, control.value, 32), control.value)


@insn("VPCMPESTRM")
def vpcmpestrm(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """XMM0 := mask of the matches, the bits above 0; lengths in EAX and EDX"""
    check_sse(cpu)
    cpu.xmm0 = mask_of(explicit(cpu, dst, src, control.value, 32), control.value)
    cpu.ymmh0 = 0


@insn("PCMPESTRM64")
def pcmpestrm64(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """XMM0 := mask of the matches; lengths in RAX and RDX"""
    check_sse(cpu)
    cpu.xmm0 = mask_of(explicit(cpu, dst, src, control.value, 64), control.value)


@insn("VPCMPESTRM64")
def vpcmpestrm64(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """XMM0 := mask of the matches, the bits above 0; lengths in RAX and RDX"""
    check_sse(cpu)
    cpu.xmm0 = mask_of(explicit(cpu, dst, src, control.value, 64), control.value)
    cpu.ymmh0 = 0


@insn("PCMPISTRI", vex=WIDE)
def pcmpistri(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """ECX := index of the first or last match; the strings end with a zero element"""
    check_sse(cpu)
    cpu.rcx = index_of(implicit(cpu, dst, src, control.value), control.value)


@insn("PCMPISTRM")
def pcmpistrm(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """XMM0 := mask of the matches; the strings end with a zero element"""
    check_sse(cpu)
    cpu.xmm0 = mask_of(implicit(cpu, dst, src, control.value), control.value)


@insn("VPCMPISTRM")
def vpcmpistrm(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """XMM0 := mask of the matches, the bits above 0; the strings end with a zero element"""
    check_sse(cpu)
    cpu.xmm0 = mask_of(implicit(cpu, dst, src, control.value), control.value)
    cpu.ymmh0 = 0
