"""AVX and AVX2: permutations and shifts by a count of each lane. SSE's shuffles are in `sse_int`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import HALVES, insn
from isa.semantics.vector import M128, shuffled_dwords
from isa.state import M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

Shift = Callable[[int, int], int]


# ---- within 128 bits -------------------------------------------------------------------------------------


@insn("VEX_VPERMILPS_XMM_XMMM128_IMM8", "VEX_VPERMILPS_YMM_YMMM256_IMM8", part=HALVES)
def vpermilps_fixed(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """doubleword i of DEST := doubleword ORDER[2i+1:2i] of the same half of SRC"""
    check_sse(cpu)
    dst.value = shuffled_dwords(src.value, order.value)


@insn("VEX_VPERMILPD_XMM_XMMM128_IMM8", "VEX_VPERMILPD_YMM_YMMM256_IMM8", inline=False, called=True)
def vpermilpd_fixed(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """quadword i of DEST := quadword ORDER[i] of the same half of SRC"""
    check_sse(cpu)
    pick = order.value
    dst.value = gathered(src.value, [pick >> n & 1 | n & 2 for n in range(dst.bits // 64)], 64)


@insn("VPERMILPS", inline=False, called=True)
def vpermilps(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """doubleword i of DEST := doubleword ORDER[32i+1:32i] of the same half of SRC"""
    check_sse(cpu)
    pick = order.value
    dst.value = gathered(src.value, [pick >> 32 * n & 3 | n & 4 for n in range(dst.bits // 32)], 32)


@insn("VPERMILPD", inline=False, called=True)
def vpermilpd(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """quadword i of DEST := quadword ORDER[64i+1] of the same half of SRC"""
    check_sse(cpu)
    pick = order.value
    dst.value = gathered(src.value, [pick >> 64 * n + 1 & 1 | n & 2 for n in range(dst.bits // 64)], 64)


# ---- across 256 bits -------------------------------------------------------------------------------------


def gathered(a: int, order: Iterable[int], width: int) -> int:
    """Lanes of a, `width` bits each, in a new order."""
    mask = (1 << width) - 1
    result = 0
    for n, index in enumerate(order):
        result |= (a >> index * width & mask) << n * width
    return result


@insn("VPERMD", "VPERMPS", inline=False, called=True)
def vpermd(cpu: Cpu, dst: Operand, order: Operand, src: Operand) -> None:
    """doubleword i of DEST := doubleword ORDER[32i+2:32i] of SRC"""
    check_sse(cpu)
    pick = order.value
    dst.value = gathered(src.value, [pick >> 32 * n & 7 for n in range(8)], 32)


@insn("VPERMQ", "VPERMPD", inline=False, called=True)
def vpermq(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """quadword i of DEST := quadword ORDER[2i+1:2i] of SRC"""
    check_sse(cpu)
    pick = order.value
    dst.value = gathered(src.value, [pick >> 2 * n & 3 for n in range(4)], 64)


@insn("VPERM2F128", "VPERM2I128")
def vperm2x128(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """each half of DEST := imm8[3] (7) ? 0 : half imm8[1:0] (5:4) of SRC2:SRC1"""
    check_sse(cpu)
    pick = select.value
    both = src.value << 256 | dst.value
    low = 0 if pick & 8 else both >> ((pick & 3) << 7) & M128
    high = 0 if pick & 128 else both >> ((pick & 48) << 3) & M128
    dst.value = low | high << 128


# ---- shifts of each lane by its own count ----------------------------------------------------------------


def shifted_each(a: int, counts: int, bits: int, width: int, shift: Shift) -> int:
    """`shift(lane, count)` on every lane."""
    mask = (1 << width) - 1
    result = 0
    for at in range(0, bits, width):
        result |= shift(a >> at & mask, counts >> at & mask) << at
    return result


def left32(lane: int, count: int) -> int:
    """A doubleword << count."""
    return lane << count & M32 if count < 32 else 0


def left64(lane: int, count: int) -> int:
    """A quadword << count."""
    return lane << count & M64 if count < 64 else 0


def right(lane: int, count: int) -> int:
    """A lane >> count; 0 from its width on, because it has no more bits."""
    return lane >> count


def arithmetic32(lane: int, count: int) -> int:
    """A doubleword >> count with copies of the sign."""
    return lane - (lane >> 31 << 32) >> min(count, 31) & M32


@insn("VPSLLVD")
def vpsllvd(cpu: Cpu, dst: Operand, counts: Operand) -> None:
    """DEST[i] := SRC1[i] << SRC2[i], doublewords"""
    check_sse(cpu)
    dst.value = shifted_each(dst.value, counts.value, dst.bits, 32, left32)


@insn("VPSLLVQ")
def vpsllvq(cpu: Cpu, dst: Operand, counts: Operand) -> None:
    """DEST[i] := SRC1[i] << SRC2[i], quadwords"""
    check_sse(cpu)
    dst.value = shifted_each(dst.value, counts.value, dst.bits, 64, left64)


@insn("VPSRLVD")
def vpsrlvd(cpu: Cpu, dst: Operand, counts: Operand) -> None:
    """DEST[i] := SRC1[i] >> SRC2[i], doublewords"""
    check_sse(cpu)
    dst.value = shifted_each(dst.value, counts.value, dst.bits, 32, right)


@insn("VPSRLVQ")
def vpsrlvq(cpu: Cpu, dst: Operand, counts: Operand) -> None:
    """DEST[i] := SRC1[i] >> SRC2[i], quadwords"""
    check_sse(cpu)
    dst.value = shifted_each(dst.value, counts.value, dst.bits, 64, right)


@insn("VPSRAVD")
def vpsravd(cpu: Cpu, dst: Operand, counts: Operand) -> None:
    """DEST[i] := SRC1[i] >> SRC2[i] (sign), doublewords"""
    check_sse(cpu)
    dst.value = shifted_each(dst.value, counts.value, dst.bits, 32, arithmetic32)
