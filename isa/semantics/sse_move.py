"""SSE to SSE4.1 and AVX: moves between vector and general registers and memory. No arithmetic, no shuffles.

The 128-bit memory operands of all but MOVU* and LDDQU have to be aligned; the operand itself checks that.
Non-temporal hints change nothing: there is no cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Memory, Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import HALVES, WIDE, insn
from isa.semantics.vector import (
    LOW32_OUT,
    LOW64_OUT,
    M128,
    check_vector,
    enter_mmx,
    sign_bits,
    store_masked,
)
from isa.state import M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn(
    "MOVAPS", "MOVAPD", "MOVUPS", "MOVUPD", "MOVDQA", "MOVDQU", "LDDQU",
    "MOVNTPS", "MOVNTPD", "MOVNTDQ", "MOVNTDQA",
    vex=WIDE,
)  # fmt: skip
def mova(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC"""
    check_sse(cpu)
    dst.value = src.value


@insn("MOVNTI")
def movnti(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC"""
    dst.value = src.value


@insn("MOVD_XMM_RM32", "MOVQ_XMM_RM64", vex=WIDE)
def movd_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := ZeroExtend(SRC)"""
    check_sse(cpu)
    dst.value = src.value


@insn("MOVD_RM32_XMM", "MOVQ_RM64_XMM", vex=WIDE)
def movd_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[OperandSize-1:0]"""
    check_sse(cpu)
    dst.value = src.value & dst.mask


@insn("MOVQ_XMM_XMMM64", "MOVQ_XMMM64_XMM", vex=WIDE)
def movq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC[63:0]; the upper half of a register becomes 0"""
    check_sse(cpu)
    dst.value = src.value & M64


@insn("VEX_VMOVSS_XMM_XMM_XMM", "VEX_VMOVSS_XMM_XMM_XMM_0F11", "VEX_VMOVSS_XMM_M32")
@insn("MOVSS_XMM_XMMM32")
def movss_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := SRC[31:0]; the rest becomes 0 if SRC is memory, else stays"""
    check_sse(cpu)
    dst.value = src.value if src.in_memory else dst.value & LOW32_OUT | src.value & M32


@insn("MOVSS_XMMM32_XMM", "VEX_VMOVSS_M32_XMM")
def movss_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := SRC[31:0]; the rest of a register stays"""
    check_sse(cpu)
    dst.value = src.value & M32 if dst.in_memory else dst.value & LOW32_OUT | src.value & M32


@insn("VEX_VMOVSD_XMM_XMM_XMM", "VEX_VMOVSD_XMM_XMM_XMM_0F11", "VEX_VMOVSD_XMM_M64")
@insn("MOVSD_XMM_XMMM64")
def movsd_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC[63:0]; the rest becomes 0 if SRC is memory, else stays"""
    check_sse(cpu)
    dst.value = src.value if src.in_memory else dst.value & LOW64_OUT | src.value & M64


@insn("MOVSD_XMMM64_XMM", "VEX_VMOVSD_M64_XMM")
def movsd_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC[63:0]; the rest of a register stays"""
    check_sse(cpu)
    dst.value = src.value & M64 if dst.in_memory else dst.value & LOW64_OUT | src.value & M64


@insn("MOVLPS_XMM_M64", "MOVLPD_XMM_M64", "VEX_VMOVLPS_XMM_XMM_M64", "VEX_VMOVLPD_XMM_XMM_M64")
def movlp_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC; DEST[127:64] stays"""
    check_sse(cpu)
    dst.value = src.value | dst.value & LOW64_OUT


@insn("MOVLPS_M64_XMM", "MOVLPD_M64_XMM", vex=WIDE)
def movlp_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[63:0]"""
    check_sse(cpu)
    dst.value = src.value & M64


@insn("VEX_VMOVHPS_XMM_XMM_M64", "VEX_VMOVHPD_XMM_XMM_M64", "VMOVLHPS")
@insn("MOVHPS_XMM_M64", "MOVHPD_XMM_M64", "MOVLHPS")
def movhp_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[127:64] := SRC[63:0]; DEST[63:0] stays"""
    check_sse(cpu)
    dst.value = (src.value & M64) << 64 | dst.value & M64


@insn("MOVHPS_M64_XMM", "MOVHPD_M64_XMM", vex=WIDE)
def movhp_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[127:64]"""
    check_sse(cpu)
    dst.value = src.value >> 64


@insn("MOVHLPS", vex=HALVES)
def movhlps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC[127:64]; DEST[127:64] stays"""
    check_sse(cpu)
    dst.value = dst.value & LOW64_OUT | src.value >> 64


@insn("MOVDDUP", vex=HALVES)
def movddup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC[63:0]; DEST[127:64] := SRC[63:0]"""
    check_sse(cpu)
    low = src.value & M64
    dst.value = low << 64 | low


@insn("MOVSLDUP", vex=HALVES)
def movsldup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The even doublewords of SRC, each twice"""
    check_sse(cpu)
    even = src.value & 0x0000_0000_FFFF_FFFF_0000_0000_FFFF_FFFF
    dst.value = even << 32 | even


@insn("MOVSHDUP", vex=HALVES)
def movshdup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The odd doublewords of SRC, each twice"""
    check_sse(cpu)
    odd = src.value & 0xFFFF_FFFF_0000_0000_FFFF_FFFF_0000_0000
    dst.value = odd | odd >> 32


# ---- single lanes and masks --------------------------------------------------------------------------------


@insn("PMOVMSKB", vex=WIDE)
def pmovmskb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := SRC[8i+7], the rest 0"""
    check_vector(cpu, src)
    a = src.value
    dst.value = sign_bits(a) if src.bits <= 128 else sign_bits(a & M128) | sign_bits(a >> 128) << 16
    if src.bits == 64:
        enter_mmx(cpu)


@insn("MOVMSKPS", vex=WIDE)
def movmskps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := SRC[32i+31], the rest 0"""
    check_sse(cpu)
    a = src.value
    low = a >> 31 & 1 | a >> 62 & 2 | a >> 93 & 4 | a >> 124 & 8
    dst.value = (
        low if src.bits == 128 else low | a >> 155 & 16 | a >> 186 & 32 | a >> 217 & 64 | a >> 248 & 128
    )


@insn("MOVMSKPD", vex=WIDE)
def movmskpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := SRC[64i+63], the rest 0"""
    check_sse(cpu)
    a = src.value
    low = a >> 63 & 1 | a >> 126 & 2
    dst.value = low if src.bits == 128 else low | a >> 189 & 4 | a >> 252 & 8


@insn("PEXTRW", vex=HALVES)
def pextrw(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """DEST := ZeroExtend(word COUNT of SRC)"""
    check_vector(cpu, src)
    dst.value = src.value >> ((index.value << 4) & (src.bits - 1)) & 0xFFFF
    if src.bits == 64:
        enter_mmx(cpu)


@insn("PINSRW", vex=HALVES)
def pinsrw(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """word COUNT of DEST := SRC[15:0]"""
    check_vector(cpu, dst)
    at = (index.value << 4) & (dst.bits - 1)
    dst.value = dst.value & ~(0xFFFF << at) | (src.value & 0xFFFF) << at


@insn("PEXTRB", vex=HALVES)
def pextrb(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """DEST := ZeroExtend(byte COUNT of SRC)"""
    check_sse(cpu)
    dst.value = src.value >> ((index.value & 15) << 3) & 0xFF


@insn("PEXTRD", "EXTRACTPS", vex=HALVES)
def pextrd(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """DEST := ZeroExtend(doubleword COUNT of SRC)"""
    check_sse(cpu)
    dst.value = src.value >> ((index.value & 3) << 5) & M32


@insn("PEXTRQ", vex=HALVES)
def pextrq(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """DEST := quadword COUNT of SRC"""
    check_sse(cpu)
    dst.value = src.value >> ((index.value & 1) << 6) & M64


@insn("PINSRB", vex=HALVES)
def pinsrb(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """byte COUNT of DEST := SRC[7:0]"""
    check_sse(cpu)
    at = (index.value & 15) << 3
    dst.value = dst.value & ~(0xFF << at) | (src.value & 0xFF) << at


@insn("PINSRD", vex=HALVES)
def pinsrd(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """doubleword COUNT of DEST := SRC"""
    check_sse(cpu)
    at = (index.value & 3) << 5
    dst.value = dst.value & ~(M32 << at) | src.value << at


@insn("PINSRQ", vex=HALVES)
def pinsrq(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """quadword COUNT of DEST := SRC"""
    check_sse(cpu)
    at = (index.value & 1) << 6
    dst.value = dst.value & ~(M64 << at) | src.value << at


@insn("INSERTPS", vex=HALVES)
def insertps(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """doubleword COUNT_D of DEST := doubleword COUNT_S of SRC (or memory); then ZMASK lanes := 0"""
    check_sse(cpu)
    order = control.value
    lane = src.value if src.in_memory else src.value >> (order >> 6 << 5) & M32
    at = (order >> 4 & 3) << 5
    merged = dst.value & ~(M32 << at) | lane << at
    dst.value = merged & ~dword_mask(order)


def dword_mask(select: int) -> int:
    """All ones in the four doublewords whose bit of `select` is set."""
    return (
        (select & 1) * M32
        | (select >> 1 & 1) * (M32 << 32)
        | (select >> 2 & 1) * (M32 << 64)
        | (select >> 3 & 1) * (M32 << 96)
    )


def quadword_mask(select: int) -> int:
    """All ones in the two quadwords whose bit of `select` is set."""
    return (select & 1) * M64 | (select >> 1 & 1) * LOW64_OUT


@insn("MASKMOVDQU", inline=False, vex=WIDE)
def maskmovdqu(cpu: Cpu, dst: Memory, src: Operand, mask: Operand) -> None:
    """byte i of DS:[rDI] := byte i of SRC where MASK[8i+7]"""
    check_sse(cpu)
    store_masked(cpu, dst, src.value, sign_bits(mask.value))
