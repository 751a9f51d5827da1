"""MMX instructions that exist for MM registers only, and the traffic between MM and XMM registers.

The arithmetic that MM and XMM registers share is in `sse_int`; EMMS is in `fpu_control`. Every instruction
here but EMMS leaves all x87 tags valid and TOP 0: a write to MMn does that, `enter_mmx` where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Memory, Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import insn
from isa.semantics.sse_float import (
    double_from_int32,
    each_of,
    int32_from_double,
    int32_from_single,
    single_from_int32,
    truncated_double,
    truncated_single,
)
from isa.semantics.vector import (
    LOW64_OUT,
    check_mmx,
    enter_mmx,
    shuffled_words,
    sign_bits,
    store_masked,
)
from isa.state import M64

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn("MOVD_MM_RM32", "MOVQ_MM_RM64", "MOVQ_MM_MMM64")
def movd_mm_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := ZeroExtend(SRC)"""
    check_mmx(cpu)
    dst.value = src.value


@insn("MOVD_RM32_MM", "MOVQ_RM64_MM", "MOVQ_MMM64_MM", "MOVNTQ")
def movd_mm_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[OperandSize-1:0]"""
    check_mmx(cpu)
    dst.value = src.value & dst.mask
    enter_mmx(cpu)


@insn("PSHUFW")
def pshufw(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """word i of DEST := word ORDER[2i+1:2i] of SRC"""
    check_mmx(cpu)
    dst.value = shuffled_words(src.value, order.value)


@insn("MASKMOVQ", inline=False)
def maskmovq(cpu: Cpu, dst: Memory, src: Operand, mask: Operand) -> None:
    """byte i of DS:[rDI] := byte i of SRC where MASK[8i+7]"""
    check_mmx(cpu)
    store_masked(cpu, dst, src.value, sign_bits(mask.value))
    enter_mmx(cpu)


@insn("MOVQ2DQ")
def movq2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := SRC; DEST[127:64] := 0"""
    check_sse(cpu)
    check_mmx(cpu)
    dst.value = src.value
    enter_mmx(cpu)


@insn("MOVDQ2Q")
def movdq2q(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[63:0]"""
    check_sse(cpu)
    check_mmx(cpu)
    dst.value = src.value & M64


@insn("CVTPI2PS")
def cvtpi2ps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """single i of DEST := doubleword i of SRC; DEST[127:64] stays; a memory SRC leaves the x87 state alone"""
    check_sse(cpu)
    if not src.in_memory:
        check_mmx(cpu)
    dst.value = dst.value & LOW64_OUT | each_of(cpu, single_from_int32, src.value, 32, 32, 2)
    if not src.in_memory:
        enter_mmx(cpu)


@insn("CVTPI2PD")
def cvtpi2pd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """double i of DEST := doubleword i of SRC; a memory SRC leaves the x87 state alone"""
    check_sse(cpu)
    if not src.in_memory:
        check_mmx(cpu)
    dst.value = each_of(cpu, double_from_int32, src.value, 32, 64, 2)
    if not src.in_memory:
        enter_mmx(cpu)


# Quirk: where one of the following four raises #XM the x87 tags and TOP stay, as the manual's rule for faults
# has it; Zen 4 has set them by then.


@insn("CVTPS2PI")
def cvtps2pi(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(single i of SRC), by MXCSR.RC"""
    check_sse(cpu)
    check_mmx(cpu)
    dst.value = each_of(cpu, int32_from_single, src.value, 32, 32, 2)


@insn("CVTTPS2PI")
def cvttps2pi(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(single i of SRC), truncated"""
    check_sse(cpu)
    check_mmx(cpu)
    dst.value = each_of(cpu, truncated_single, src.value, 32, 32, 2)


@insn("CVTPD2PI")
def cvtpd2pi(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(double i of SRC), by MXCSR.RC"""
    check_sse(cpu)
    check_mmx(cpu)
    dst.value = each_of(cpu, int32_from_double, src.value, 64, 32, 2)


@insn("CVTTPD2PI")
def cvttpd2pi(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(double i of SRC), truncated"""
    check_sse(cpu)
    check_mmx(cpu)
    dst.value = each_of(cpu, truncated_double, src.value, 64, 32, 2)
