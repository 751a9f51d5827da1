"""AVX and AVX2: broadcasts, inserts, extracts, masked moves, VZEROUPPER. What SSE has too is in `sse_move`.

Every instruction that writes a vector register zeroes the bits above the operand; the operand does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Memory, Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import insn
from isa.semantics.vector import (
    DWORDS,
    M128,
    QWORDS,
    masked_runs,
    negative,
    sign_bits,
    store_masked,
)
from isa.state import M32, M64, XMM_NAMES, YMM_HIGH_NAMES

if TYPE_CHECKING:
    from isa.cpu import Cpu

# A number with the lowest bit of every lane of a 256-bit register set
EACH_BYTE, EACH_WORD, EACH_DWORD, EACH_QWORD, EACH_HALF = (
    ((1 << 256) - 1) // ((1 << width) - 1) for width in (8, 16, 32, 64, 128)
)


# ---- broadcasts ------------------------------------------------------------------------------------------


@insn("VPBROADCASTB")
def vpbroadcastb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """every byte of DEST := SRC[7:0]"""
    check_sse(cpu)
    dst.value = (src.value & 0xFF) * EACH_BYTE & dst.mask


@insn("VPBROADCASTW")
def vpbroadcastw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """every word of DEST := SRC[15:0]"""
    check_sse(cpu)
    dst.value = (src.value & 0xFFFF) * EACH_WORD & dst.mask


@insn("VPBROADCASTD", "VBROADCASTSS")
def vpbroadcastd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """every doubleword of DEST := SRC[31:0]"""
    check_sse(cpu)
    dst.value = (src.value & M32) * EACH_DWORD & dst.mask


@insn("VPBROADCASTQ", "VBROADCASTSD")
def vpbroadcastq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """every quadword of DEST := SRC[63:0]"""
    check_sse(cpu)
    dst.value = (src.value & M64) * EACH_QWORD & dst.mask


@insn("VBROADCASTF128", "VBROADCASTI128")
def vbroadcast128(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[255:128] := SRC; DEST[127:0] := SRC"""
    check_sse(cpu)
    dst.value = src.value * EACH_HALF


# ---- halves ----------------------------------------------------------------------------------------------


@insn("VINSERTF128", "VINSERTI128")
def vinsert128(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """DEST := SRC1 with half imm8[0] replaced by SRC2"""
    check_sse(cpu)
    a = dst.value
    b = src.value
    dst.value = a & M128 | b << 128 if select.value & 1 else a >> 128 << 128 | b


@insn("VEXTRACTF128", "VEXTRACTI128")
def vextract128(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """DEST := half imm8[0] of SRC"""
    check_sse(cpu)
    dst.value = src.value >> 128 if select.value & 1 else src.value & M128


@insn("VZEROUPPER")
def vzeroupper(cpu: Cpu) -> None:
    """YMMn[255:128] := 0 for every n; n is 0 to 7 outside 64-bit mode"""
    check_sse(cpu)
    cpu.ymmh0 = 0
    cpu.ymmh1 = 0
    cpu.ymmh2 = 0
    cpu.ymmh3 = 0
    cpu.ymmh4 = 0
    cpu.ymmh5 = 0
    cpu.ymmh6 = 0
    cpu.ymmh7 = 0
    if cpu.mode64:
        cpu.ymmh8 = 0
        cpu.ymmh9 = 0
        cpu.ymmh10 = 0
        cpu.ymmh11 = 0
        cpu.ymmh12 = 0
        cpu.ymmh13 = 0
        cpu.ymmh14 = 0
        cpu.ymmh15 = 0


@insn("VZEROALL", inline=False)
def vzeroall(cpu: Cpu) -> None:
    """YMMn := 0 for every n; n is 0 to 7 outside 64-bit mode"""
    check_sse(cpu)
    count = 16 if cpu.mode64 else 8
    for name in (*XMM_NAMES[:count], *YMM_HIGH_NAMES[:count]):
        setattr(cpu, name, 0)


# ---- masks -----------------------------------------------------------------------------------------------


def signs_256(a: int) -> int:
    """The highest bits of the 32 bytes as a number of 32 bits."""
    return sign_bits(a & M128) | sign_bits(a >> 128) << 16


def selected_dwords(mask: int) -> int:
    """All ones in the doublewords whose sign bit is set."""
    return negative(mask & M128, DWORDS) | negative(mask >> 128, DWORDS) << 128


def selected_qwords(mask: int) -> int:
    """All ones in the quadwords whose sign bit is set."""
    return negative(mask & M128, QWORDS) | negative(mask >> 128, QWORDS) << 128


def load_masked(cpu: Cpu, src: Memory, selected: int) -> int:
    """The bytes of SRC where `selected` is all ones, else 0; no other byte is touched."""
    result = 0
    for start, length in masked_runs(signs_256(selected)):
        offset = src.offset + start & src.address_mask
        result |= cpu.read_data(src.segment, offset, length) << 8 * start
    return result


@insn("VEX_VMASKMOVPS_XMM_XMM_M128", "VEX_VMASKMOVPS_YMM_YMM_M256",
      "VEX_VPMASKMOVD_XMM_XMM_M128", "VEX_VPMASKMOVD_YMM_YMM_M256", inline=False)  # fmt: skip
def vmaskmovps_load(cpu: Cpu, dst: Operand, mask: Operand, src: Memory) -> None:
    """doubleword i of DEST := MASK[32i+31] ? SRC[i] : 0; what is masked out is not accessed"""
    check_sse(cpu)
    dst.value = load_masked(cpu, src, selected_dwords(mask.value))


@insn("VEX_VMASKMOVPD_XMM_XMM_M128", "VEX_VMASKMOVPD_YMM_YMM_M256",
      "VEX_VPMASKMOVQ_XMM_XMM_M128", "VEX_VPMASKMOVQ_YMM_YMM_M256", inline=False)  # fmt: skip
def vmaskmovpd_load(cpu: Cpu, dst: Operand, mask: Operand, src: Memory) -> None:
    """quadword i of DEST := MASK[64i+63] ? SRC[i] : 0; what is masked out is not accessed"""
    check_sse(cpu)
    dst.value = load_masked(cpu, src, selected_qwords(mask.value))


@insn("VMASKMOVPS", "VPMASKMOVD", inline=False)
def vmaskmovps_store(cpu: Cpu, dst: Memory, mask: Operand, src: Operand) -> None:
    """DEST[i] := doubleword i of SRC where MASK[32i+31]; what is masked out is not accessed"""
    check_sse(cpu)
    store_masked(cpu, dst, src.value, signs_256(selected_dwords(mask.value)))


@insn("VMASKMOVPD", "VPMASKMOVQ", inline=False)
def vmaskmovpd_store(cpu: Cpu, dst: Memory, mask: Operand, src: Operand) -> None:
    """DEST[i] := quadword i of SRC where MASK[64i+63]; what is masked out is not accessed"""
    check_sse(cpu)
    store_masked(cpu, dst, src.value, signs_256(selected_qwords(mask.value)))


def test_signs(cpu: Cpu, both: int, only: int) -> None:
    """ZF := `both` has no sign bit set; CF := `only` has none; OF, AF, PF, SF := 0"""
    cpu.zf = not both
    cpu.cf = not only
    cpu.of = 0
    cpu.af = 0
    cpu.pf = 0
    cpu.sf = 0


@insn("VTESTPS")
def vtestps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF := no sign of SRC AND DEST is set; CF := none of SRC AND NOT DEST; signs of singles"""
    check_sse(cpu)
    a = dst.value
    b = src.value
    signs = EACH_DWORD << 31 & dst.mask
    test_signs(cpu, a & b & signs, ~a & b & signs)


@insn("VTESTPD")
def vtestpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF := no sign of SRC AND DEST is set; CF := none of SRC AND NOT DEST; signs of doubles"""
    check_sse(cpu)
    a = dst.value
    b = src.value
    signs = EACH_QWORD << 63 & dst.mask
    test_signs(cpu, a & b & signs, ~a & b & signs)
