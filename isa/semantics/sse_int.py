"""SSE2 to AVX2 integer instructions and bitwise logic, in XMM, YMM and, where they exist, MM registers.

Not here: moves of whole registers (`sse_move`), forms that exist for MM only (`mmx`), strings (`sse_string`).
The lane arithmetic itself is in `vector`. Loops over lanes read both operands first.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import HALVES, WIDE, insn
from isa.semantics.sse_move import dword_mask, quadword_mask
from isa.semantics.vector import (
    BYTES,
    DWORDS,
    LOW64_OUT,
    M128,
    QWORDS,
    S8,
    S16,
    S32,
    S64,
    U8,
    U16,
    U32,
    WORDS,
    absolute,
    added,
    added_signed,
    added_unsigned,
    average,
    both,
    bytes_to_words,
    check_vector,
    chosen,
    dwords_to_qwords,
    dwords_to_words,
    equal,
    greater,
    join,
    larger_signed,
    larger_unsigned,
    negative,
    shifted_arithmetic,
    shifted_left,
    shifted_right,
    shuffled_dwords,
    shuffled_words,
    sign_extended,
    signed_like,
    smaller_signed,
    smaller_unsigned,
    split,
    subtracted,
    subtracted_signed,
    subtracted_unsigned,
    words_to_bytes,
    words_to_dwords,
)
from isa.state import M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu


# ---- bitwise ---------------------------------------------------------------------------------------------


@insn("PAND", vex=WIDE)
def pand(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST AND SRC"""
    check_vector(cpu, dst)
    dst.value = dst.value & src.value


@insn("ANDPS", "ANDPD", vex=WIDE)
def andp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST AND SRC"""
    check_sse(cpu)
    dst.value = dst.value & src.value


@insn("PANDN", vex=WIDE)
def pandn(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := NOT DEST AND SRC"""
    check_vector(cpu, dst)
    dst.value = ~dst.value & src.value


@insn("ANDNPS", "ANDNPD", vex=WIDE)
def andnp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := NOT DEST AND SRC"""
    check_sse(cpu)
    dst.value = ~dst.value & src.value


@insn("POR", vex=WIDE)
def por(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST OR SRC"""
    check_vector(cpu, dst)
    dst.value = dst.value | src.value


@insn("ORPS", "ORPD", vex=WIDE)
def orp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST OR SRC"""
    check_sse(cpu)
    dst.value = dst.value | src.value


@insn("PXOR", vex=WIDE)
def pxor(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST XOR SRC"""
    check_vector(cpu, dst)
    dst.value = dst.value ^ src.value


@insn("XORPS", "XORPD", vex=WIDE)
def xorp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST XOR SRC"""
    check_sse(cpu)
    dst.value = dst.value ^ src.value


@insn("PTEST", vex=WIDE)
def ptest(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF := (DEST AND SRC) = 0; CF := (NOT DEST AND SRC) = 0; OF, AF, PF, SF := 0"""
    check_sse(cpu)
    a = dst.value
    b = src.value
    cpu.zf = not a & b
    cpu.cf = not ~a & b
    cpu.of = 0
    cpu.af = 0
    cpu.pf = 0
    cpu.sf = 0


# ---- addition, subtraction, average, absolute value ------------------------------------------------------


@insn("PADDB", vex=HALVES)
def paddb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + SRC[i], bytes"""
    check_vector(cpu, dst)
    dst.value = added(dst.value, src.value, BYTES)


@insn("PADDW", vex=HALVES)
def paddw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + SRC[i], words"""
    check_vector(cpu, dst)
    dst.value = added(dst.value, src.value, WORDS)


@insn("PADDD", vex=HALVES)
def paddd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + SRC[i], doublewords"""
    check_vector(cpu, dst)
    dst.value = added(dst.value, src.value, DWORDS)


@insn("PADDQ", vex=HALVES)
def paddq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + SRC[i], quadwords"""
    check_vector(cpu, dst)
    dst.value = added(dst.value, src.value, QWORDS)


@insn("PSUBB", vex=HALVES)
def psubb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i], bytes"""
    check_vector(cpu, dst)
    dst.value = subtracted(dst.value, src.value, BYTES)


@insn("PSUBW", vex=HALVES)
def psubw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i], words"""
    check_vector(cpu, dst)
    dst.value = subtracted(dst.value, src.value, WORDS)


@insn("PSUBD", vex=HALVES)
def psubd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i], doublewords"""
    check_vector(cpu, dst)
    dst.value = subtracted(dst.value, src.value, DWORDS)


@insn("PSUBQ", vex=HALVES)
def psubq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i], quadwords"""
    check_vector(cpu, dst)
    dst.value = subtracted(dst.value, src.value, QWORDS)


@insn("PADDSB", vex=HALVES)
def paddsb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] + SRC[i]), signed bytes"""
    check_vector(cpu, dst)
    dst.value = added_signed(dst.value, src.value, BYTES)


@insn("PADDSW", vex=HALVES)
def paddsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] + SRC[i]), signed words"""
    check_vector(cpu, dst)
    dst.value = added_signed(dst.value, src.value, WORDS)


@insn("PADDUSB", vex=HALVES)
def paddusb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] + SRC[i]), unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = added_unsigned(dst.value, src.value, BYTES)


@insn("PADDUSW", vex=HALVES)
def paddusw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] + SRC[i]), unsigned words"""
    check_vector(cpu, dst)
    dst.value = added_unsigned(dst.value, src.value, WORDS)


@insn("PSUBSB", vex=HALVES)
def psubsb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] - SRC[i]), signed bytes"""
    check_vector(cpu, dst)
    dst.value = subtracted_signed(dst.value, src.value, BYTES)


@insn("PSUBSW", vex=HALVES)
def psubsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] - SRC[i]), signed words"""
    check_vector(cpu, dst)
    dst.value = subtracted_signed(dst.value, src.value, WORDS)


@insn("PSUBUSB", vex=HALVES)
def psubusb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] - SRC[i]), unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = subtracted_unsigned(dst.value, src.value, BYTES)


@insn("PSUBUSW", vex=HALVES)
def psubusw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[i] - SRC[i]), unsigned words"""
    check_vector(cpu, dst)
    dst.value = subtracted_unsigned(dst.value, src.value, WORDS)


@insn("PAVGB", vex=HALVES)
def pavgb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (DEST[i] + SRC[i] + 1) >> 1, unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = average(dst.value, src.value, BYTES)


@insn("PAVGW", vex=HALVES)
def pavgw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (DEST[i] + SRC[i] + 1) >> 1, unsigned words"""
    check_vector(cpu, dst)
    dst.value = average(dst.value, src.value, WORDS)


@insn("PABSB", vex=HALVES)
def pabsb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := |SRC[i]|, bytes"""
    check_vector(cpu, dst)
    dst.value = absolute(src.value, BYTES)


@insn("PABSW", vex=HALVES)
def pabsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := |SRC[i]|, words"""
    check_vector(cpu, dst)
    dst.value = absolute(src.value, WORDS)


@insn("PABSD", vex=HALVES)
def pabsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := |SRC[i]|, doublewords"""
    check_vector(cpu, dst)
    dst.value = absolute(src.value, DWORDS)


@insn("PSIGNB", vex=HALVES)
def psignb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := -DEST[i], 0 or DEST[i] by the sign of SRC[i], bytes"""
    check_vector(cpu, dst)
    dst.value = signed_like(dst.value, src.value, BYTES)


@insn("PSIGNW", vex=HALVES)
def psignw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := -DEST[i], 0 or DEST[i] by the sign of SRC[i], words"""
    check_vector(cpu, dst)
    dst.value = signed_like(dst.value, src.value, WORDS)


@insn("PSIGND", vex=HALVES)
def psignd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := -DEST[i], 0 or DEST[i] by the sign of SRC[i], doublewords"""
    check_vector(cpu, dst)
    dst.value = signed_like(dst.value, src.value, DWORDS)


# ---- comparison, minimum, maximum ------------------------------------------------------------------------


@insn("PCMPEQB", vex=HALVES)
def pcmpeqb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] = SRC[i] ? ones : 0, bytes"""
    check_vector(cpu, dst)
    dst.value = equal(dst.value, src.value, BYTES) & dst.mask


@insn("PCMPEQW", vex=HALVES)
def pcmpeqw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] = SRC[i] ? ones : 0, words"""
    check_vector(cpu, dst)
    dst.value = equal(dst.value, src.value, WORDS) & dst.mask


@insn("PCMPEQD", vex=HALVES)
def pcmpeqd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] = SRC[i] ? ones : 0, doublewords"""
    check_vector(cpu, dst)
    dst.value = equal(dst.value, src.value, DWORDS) & dst.mask


@insn("PCMPEQQ", vex=HALVES)
def pcmpeqq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] = SRC[i] ? ones : 0, quadwords"""
    check_sse(cpu)
    dst.value = equal(dst.value, src.value, QWORDS)


@insn("PCMPGTB", vex=HALVES)
def pcmpgtb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] > SRC[i] ? ones : 0, signed bytes"""
    check_vector(cpu, dst)
    dst.value = greater(dst.value, src.value, BYTES)


@insn("PCMPGTW", vex=HALVES)
def pcmpgtw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] > SRC[i] ? ones : 0, signed words"""
    check_vector(cpu, dst)
    dst.value = greater(dst.value, src.value, WORDS)


@insn("PCMPGTD", vex=HALVES)
def pcmpgtd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] > SRC[i] ? ones : 0, signed doublewords"""
    check_vector(cpu, dst)
    dst.value = greater(dst.value, src.value, DWORDS)


@insn("PCMPGTQ", vex=HALVES)
def pcmpgtq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] > SRC[i] ? ones : 0, signed quadwords"""
    check_sse(cpu)
    dst.value = greater(dst.value, src.value, QWORDS)


@insn("PMINUB", vex=HALVES)
def pminub(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := min(DEST[i], SRC[i]), unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = smaller_unsigned(dst.value, src.value, BYTES)


@insn("PMINUW", vex=HALVES)
def pminuw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := min(DEST[i], SRC[i]), unsigned words"""
    check_sse(cpu)
    dst.value = smaller_unsigned(dst.value, src.value, WORDS)


@insn("PMINUD", vex=HALVES)
def pminud(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := min(DEST[i], SRC[i]), unsigned doublewords"""
    check_sse(cpu)
    dst.value = smaller_unsigned(dst.value, src.value, DWORDS)


@insn("PMAXUB", vex=HALVES)
def pmaxub(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := max(DEST[i], SRC[i]), unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = larger_unsigned(dst.value, src.value, BYTES)


@insn("PMAXUW", vex=HALVES)
def pmaxuw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := max(DEST[i], SRC[i]), unsigned words"""
    check_sse(cpu)
    dst.value = larger_unsigned(dst.value, src.value, WORDS)


@insn("PMAXUD", vex=HALVES)
def pmaxud(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := max(DEST[i], SRC[i]), unsigned doublewords"""
    check_sse(cpu)
    dst.value = larger_unsigned(dst.value, src.value, DWORDS)


@insn("PMINSB", vex=HALVES)
def pminsb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := min(DEST[i], SRC[i]), signed bytes"""
    check_sse(cpu)
    dst.value = smaller_signed(dst.value, src.value, BYTES)


@insn("PMINSW", vex=HALVES)
def pminsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := min(DEST[i], SRC[i]), signed words"""
    check_vector(cpu, dst)
    dst.value = smaller_signed(dst.value, src.value, WORDS)


@insn("PMINSD", vex=HALVES)
def pminsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := min(DEST[i], SRC[i]), signed doublewords"""
    check_sse(cpu)
    dst.value = smaller_signed(dst.value, src.value, DWORDS)


@insn("PMAXSB", vex=HALVES)
def pmaxsb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := max(DEST[i], SRC[i]), signed bytes"""
    check_sse(cpu)
    dst.value = larger_signed(dst.value, src.value, BYTES)


@insn("PMAXSW", vex=HALVES)
def pmaxsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := max(DEST[i], SRC[i]), signed words"""
    check_vector(cpu, dst)
    dst.value = larger_signed(dst.value, src.value, WORDS)


@insn("PMAXSD", vex=HALVES)
def pmaxsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := max(DEST[i], SRC[i]), signed doublewords"""
    check_sse(cpu)
    dst.value = larger_signed(dst.value, src.value, DWORDS)


# ---- multiplication and sums -----------------------------------------------------------------------------


@insn("PMULLW", vex=HALVES)
def pmullw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (DEST[i] * SRC[i])[15:0], words"""
    check_vector(cpu, dst)
    dst.value = products_low(dst.value, src.value)


@insn("PMULHW", vex=HALVES)
def pmulhw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (DEST[i] * SRC[i])[31:16], signed words"""
    check_vector(cpu, dst)
    dst.value = products_high(dst.value, src.value, S16)


@insn("PMULHUW", vex=HALVES)
def pmulhuw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (DEST[i] * SRC[i])[31:16], unsigned words"""
    check_vector(cpu, dst)
    dst.value = products_high(dst.value, src.value, U16)


@insn("PMULHRSW", vex=HALVES)
def pmulhrsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (((DEST[i] * SRC[i]) >> 14) + 1) >> 1, signed words"""
    check_vector(cpu, dst)
    dst.value = products_rounded(dst.value, src.value)


@insn("PMULLD", vex=HALVES)
def pmulld(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := (DEST[i] * SRC[i])[31:0], doublewords"""
    check_sse(cpu)
    dst.value = products_low_dwords(dst.value, src.value)


@insn("PMULUDQ", vex=HALVES)
def pmuludq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[2i] * SRC[2i], unsigned doublewords to quadwords"""
    check_vector(cpu, dst)
    a = dst.value
    b = src.value
    dst.value = (a & M32) * (b & M32) | (a >> 64 & M32) * (b >> 64 & M32) << 64


@insn("PMULDQ", vex=HALVES)
def pmuldq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[2i] * SRC[2i], signed doublewords to quadwords"""
    check_sse(cpu)
    dst.value = products_signed(dst.value, src.value)


@insn("PMADDWD", vex=HALVES)
def pmaddwd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[2i] * SRC[2i] + DEST[2i+1] * SRC[2i+1], signed words to doublewords"""
    check_vector(cpu, dst)
    dst.value = sums_of_products(dst.value, src.value)


@insn("PMADDUBSW", vex=HALVES)
def pmaddubsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(DEST[2i] * SRC[2i] + DEST[2i+1] * SRC[2i+1]), DEST unsigned, SRC signed"""
    check_vector(cpu, dst)
    dst.value = sums_of_mixed_products(dst.value, src.value)


@insn("PSADBW", vex=HALVES)
def psadbw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := sum of |DEST[j] - SRC[j]| over its unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = sums_of_differences(dst.value, src.value)


@insn("PHADDW", vex=HALVES)
def phaddw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[2i] + SRC[2i+1] above DEST[2i] + DEST[2i+1], words"""
    check_vector(cpu, dst)
    dst.value = pair_sums(dst.value, src.value, dst.bytes, 16)


@insn("PHADDD", vex=HALVES)
def phaddd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[2i] + SRC[2i+1] above DEST[2i] + DEST[2i+1], doublewords"""
    check_vector(cpu, dst)
    dst.value = pair_sums(dst.value, src.value, dst.bytes, 32)


@insn("PHSUBW", vex=HALVES)
def phsubw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[2i] - SRC[2i+1] above DEST[2i] - DEST[2i+1], words"""
    check_vector(cpu, dst)
    dst.value = pair_differences(dst.value, src.value, dst.bytes, 16)


@insn("PHSUBD", vex=HALVES)
def phsubd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[2i] - SRC[2i+1] above DEST[2i] - DEST[2i+1], doublewords"""
    check_vector(cpu, dst)
    dst.value = pair_differences(dst.value, src.value, dst.bytes, 32)


@insn("PHADDSW", vex=HALVES)
def phaddsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := saturate(SRC[2i] + SRC[2i+1]) above saturate(DEST[2i] + DEST[2i+1]), words"""
    check_vector(cpu, dst)
    dst.value = pair_sums_saturated(dst.value, src.value, dst.bytes)


@insn("PHSUBSW", vex=HALVES)
def phsubsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := saturate(SRC[2i] - SRC[2i+1]) above saturate(DEST[2i] - DEST[2i+1]), words"""
    check_vector(cpu, dst)
    dst.value = pair_differences_saturated(dst.value, src.value, dst.bytes)


@insn("PHMINPOSUW", vex=HALVES)
def phminposuw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[15:0] := the smallest unsigned word of SRC; DEST[18:16] := its index; the rest 0"""
    check_sse(cpu)
    dst.value = smallest_word(src.value)


@insn("MPSADBW", vex=WIDE)
def mpsadbw(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """word i of DEST := sum of |DEST[a+i+j] - SRC[b+j]|, j = 0..3; imm8[2] is a/4 (5), imm8[1:0] b/4 (4:3)"""
    check_sse(cpu)
    order = control.value
    a = dst.value
    b = src.value
    low = sliding_differences(a >> ((order & 4) << 3), b >> ((order & 3) << 5) & M32)
    dst.value = low if dst.bits == 128 else low | sliding_differences_above(a, b, order >> 3) << 128


# ---- shifts ----------------------------------------------------------------------------------------------


@insn("PSLLW", vex=HALVES)
def psllw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] << COUNT, words; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_left(dst.value, src.value & M64, WORDS)


@insn("PSLLD", vex=HALVES)
def pslld(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] << COUNT, doublewords; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_left(dst.value, src.value & M64, DWORDS)


@insn("PSLLQ", vex=HALVES)
def psllq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] << COUNT, quadwords; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_left(dst.value, src.value & M64, QWORDS)


@insn("PSRLW", vex=HALVES)
def psrlw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] >> COUNT, words; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_right(dst.value, src.value & M64, WORDS)


@insn("PSRLD", vex=HALVES)
def psrld(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] >> COUNT, doublewords; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_right(dst.value, src.value & M64, DWORDS)


@insn("PSRLQ", vex=HALVES)
def psrlq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] >> COUNT, quadwords; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_right(dst.value, src.value & M64, QWORDS)


@insn("PSRAW", vex=HALVES)
def psraw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] >> COUNT (sign), words; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_arithmetic(dst.value, src.value & M64, WORDS)


@insn("PSRAD", vex=HALVES)
def psrad(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] >> COUNT (sign), doublewords; COUNT is imm8 or SRC[63:0]"""
    check_vector(cpu, dst)
    dst.value = shifted_arithmetic(dst.value, src.value & M64, DWORDS)


@insn("PSLLDQ", vex=HALVES)
def pslldq(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """DEST := DEST << 8 * COUNT; 0 from 16 on"""
    check_sse(cpu)
    dst.value = dst.value << (count.value << 3) & M128


@insn("PSRLDQ", vex=HALVES)
def psrldq(cpu: Cpu, dst: Operand, count: Operand) -> None:
    """DEST := DEST >> 8 * COUNT; 0 from 16 on"""
    check_sse(cpu)
    dst.value = dst.value >> (count.value << 3)


@insn("PALIGNR", vex=HALVES)
def palignr(cpu: Cpu, dst: Operand, src: Operand, count: Operand) -> None:
    """DEST := (DEST:SRC >> 8 * COUNT)[operand size-1:0]"""
    check_vector(cpu, dst)
    dst.value = (dst.value << dst.bits | src.value) >> (count.value << 3) & dst.mask


# ---- shuffles, packs and unpacks -------------------------------------------------------------------------


@insn("PSHUFB", vex=HALVES)
def pshufb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := SRC[i][7] ? 0 : DEST[SRC[i] mod size], bytes"""
    check_vector(cpu, dst)
    dst.value = shuffled_bytes(dst.value, src.value, dst.bytes)


@insn("PSHUFD", vex=HALVES)
def pshufd(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """doubleword i of DEST := doubleword ORDER[2i+1:2i] of SRC"""
    check_sse(cpu)
    dst.value = shuffled_dwords(src.value, order.value)


@insn("PSHUFLW", vex=HALVES)
def pshuflw(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """word i of DEST := word ORDER[2i+1:2i] of SRC for i = 0..3; the upper half is SRC's"""
    check_sse(cpu)
    a = src.value
    dst.value = a & LOW64_OUT | shuffled_words(a, order.value)


@insn("PSHUFHW", vex=HALVES)
def pshufhw(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """word 4+i of DEST := word 4+ORDER[2i+1:2i] of SRC for i = 0..3; the lower half is SRC's"""
    check_sse(cpu)
    a = src.value
    dst.value = a & M64 | shuffled_words(a >> 64, order.value) << 64


@insn("SHUFPS", vex=HALVES)
def shufps(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """Two doublewords of DEST below two of SRC, each chosen by two bits of ORDER"""
    check_sse(cpu)
    pick = order.value
    a = dst.value
    dst.value = shuffled_dwords(a, pick) & M64 | shuffled_dwords(src.value, pick) & LOW64_OUT


@insn("SHUFPD", vex=WIDE)
def shufpd(cpu: Cpu, dst: Operand, src: Operand, order: Operand) -> None:
    """A quadword of DEST below one of SRC, each chosen by one bit of ORDER; so again in the upper half"""
    check_sse(cpu)
    pick = order.value
    a = dst.value
    b = src.value
    low = a >> ((pick & 1) << 6) & M64 | (b >> ((pick & 2) << 5) & M64) << 64
    a, b = a >> 128, b >> 128
    high = a >> ((pick & 4) << 4) & M64 | (b >> ((pick & 8) << 3) & M64) << 64
    dst.value = low if dst.bits == 128 else low | high << 128


@insn("PUNPCKLBW", vex=HALVES)
def punpcklbw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """bytes of the lower halves of DEST and SRC in turn"""
    check_vector(cpu, dst)
    dst.value = (bytes_to_words(dst.value) | bytes_to_words(src.value) << 8) & dst.mask


@insn("PUNPCKHBW", vex=HALVES)
def punpckhbw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """bytes of the upper halves of DEST and SRC in turn"""
    check_vector(cpu, dst)
    dst.value = bytes_to_words(dst.value >> dst.bits // 2) | bytes_to_words(src.value >> dst.bits // 2) << 8


@insn("PUNPCKLWD", vex=HALVES)
def punpcklwd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """words of the lower halves of DEST and SRC in turn"""
    check_vector(cpu, dst)
    dst.value = (words_to_dwords(dst.value) | words_to_dwords(src.value) << 16) & dst.mask


@insn("PUNPCKHWD", vex=HALVES)
def punpckhwd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """words of the upper halves of DEST and SRC in turn"""
    check_vector(cpu, dst)
    dst.value = (
        words_to_dwords(dst.value >> dst.bits // 2) | words_to_dwords(src.value >> dst.bits // 2) << 16
    )


@insn("PUNPCKLDQ", vex=HALVES)
def punpckldq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doublewords of the lower halves of DEST and SRC in turn"""
    check_vector(cpu, dst)
    dst.value = (dwords_to_qwords(dst.value) | dwords_to_qwords(src.value) << 32) & dst.mask


@insn("PUNPCKHDQ", vex=HALVES)
def punpckhdq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doublewords of the upper halves of DEST and SRC in turn"""
    check_vector(cpu, dst)
    dst.value = (
        dwords_to_qwords(dst.value >> dst.bits // 2) | dwords_to_qwords(src.value >> dst.bits // 2) << 32
    )


@insn("UNPCKLPS", vex=HALVES)
def unpcklps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doublewords of the lower halves of DEST and SRC in turn"""
    check_sse(cpu)
    dst.value = dwords_to_qwords(dst.value) | dwords_to_qwords(src.value) << 32


@insn("UNPCKHPS", vex=HALVES)
def unpckhps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doublewords of the upper halves of DEST and SRC in turn"""
    check_sse(cpu)
    dst.value = dwords_to_qwords(dst.value >> 64) | dwords_to_qwords(src.value >> 64) << 32


@insn("PUNPCKLQDQ", "UNPCKLPD", vex=HALVES)
def punpcklqdq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[127:64] := SRC[63:0]"""
    check_sse(cpu)
    dst.value = dst.value & M64 | (src.value & M64) << 64


@insn("PUNPCKHQDQ", "UNPCKHPD", vex=HALVES)
def punpckhqdq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[127:64]; DEST[127:64] := SRC[127:64]"""
    check_sse(cpu)
    dst.value = dst.value >> 64 | src.value & LOW64_OUT


@insn("PACKSSWB", vex=HALVES)
def packsswb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(SRC:DEST[i]), words to signed bytes"""
    check_vector(cpu, dst)
    dst.value = words_to_bytes(both(dst.value, src.value, dst.bytes), signed=True)


@insn("PACKSSDW", vex=HALVES)
def packssdw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(SRC:DEST[i]), doublewords to signed words"""
    check_vector(cpu, dst)
    dst.value = dwords_to_words(both(dst.value, src.value, dst.bytes), -0x8000, 0x7FFF)


@insn("PACKUSWB", vex=HALVES)
def packuswb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(SRC:DEST[i]), signed words to unsigned bytes"""
    check_vector(cpu, dst)
    dst.value = words_to_bytes(both(dst.value, src.value, dst.bytes), signed=False)


@insn("PACKUSDW", vex=HALVES)
def packusdw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := saturate(SRC:DEST[i]), signed doublewords to unsigned words"""
    check_sse(cpu)
    dst.value = dwords_to_words(both(dst.value, src.value, 16), 0, 0xFFFF)


@insn("PMOVZXBW", vex=64)
def pmovzxbw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """word i of DEST := ZeroExtend(byte i of SRC)"""
    check_sse(cpu)
    dst.value = bytes_to_words(src.value)


@insn("PMOVZXBD", vex=32)
def pmovzxbd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := ZeroExtend(byte i of SRC)"""
    check_sse(cpu)
    dst.value = words_to_dwords(bytes_to_words(src.value))


@insn("PMOVZXBQ", vex=16)
def pmovzxbq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := ZeroExtend(byte i of SRC)"""
    check_sse(cpu)
    dst.value = dwords_to_qwords(words_to_dwords(bytes_to_words(src.value)))


@insn("PMOVZXWD", vex=64)
def pmovzxwd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := ZeroExtend(word i of SRC)"""
    check_sse(cpu)
    dst.value = words_to_dwords(src.value)


@insn("PMOVZXWQ", vex=32)
def pmovzxwq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := ZeroExtend(word i of SRC)"""
    check_sse(cpu)
    dst.value = dwords_to_qwords(words_to_dwords(src.value))


@insn("PMOVZXDQ", vex=64)
def pmovzxdq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := ZeroExtend(doubleword i of SRC)"""
    check_sse(cpu)
    dst.value = dwords_to_qwords(src.value)


@insn("PMOVSXBW", vex=64)
def pmovsxbw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """word i of DEST := SignExtend(byte i of SRC)"""
    check_sse(cpu)
    dst.value = sign_extended(bytes_to_words(src.value), 8, WORDS)


@insn("PMOVSXBD", vex=32)
def pmovsxbd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := SignExtend(byte i of SRC)"""
    check_sse(cpu)
    dst.value = sign_extended(words_to_dwords(bytes_to_words(src.value)), 8, DWORDS)


@insn("PMOVSXBQ", vex=16)
def pmovsxbq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := SignExtend(byte i of SRC)"""
    check_sse(cpu)
    dst.value = sign_extended(dwords_to_qwords(words_to_dwords(bytes_to_words(src.value))), 8, QWORDS)


@insn("PMOVSXWD", vex=64)
def pmovsxwd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := SignExtend(word i of SRC)"""
    check_sse(cpu)
    dst.value = sign_extended(words_to_dwords(src.value), 16, DWORDS)


@insn("PMOVSXWQ", vex=32)
def pmovsxwq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := SignExtend(word i of SRC)"""
    check_sse(cpu)
    dst.value = sign_extended(dwords_to_qwords(words_to_dwords(src.value)), 16, QWORDS)


@insn("PMOVSXDQ", vex=64)
def pmovsxdq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := SignExtend(doubleword i of SRC)"""
    check_sse(cpu)
    dst.value = sign_extended(dwords_to_qwords(src.value), 32, QWORDS)


# ---- blends ----------------------------------------------------------------------------------------------


@insn("VPBLENDVB", part=HALVES)
def vpblendvb(cpu: Cpu, dst: Operand, src: Operand, mask: Operand) -> None:
    """byte i of DEST := MASK[8i+7] ? byte i of SRC2 : byte i of SRC1"""
    check_sse(cpu)
    dst.value = chosen(negative(mask.value, BYTES), src.value, dst.value)


@insn("VBLENDVPS", part=HALVES)
def vblendvps(cpu: Cpu, dst: Operand, src: Operand, mask: Operand) -> None:
    """doubleword i of DEST := MASK[32i+31] ? doubleword i of SRC2 : doubleword i of SRC1"""
    check_sse(cpu)
    dst.value = chosen(negative(mask.value, DWORDS), src.value, dst.value)


@insn("VBLENDVPD", part=HALVES)
def vblendvpd(cpu: Cpu, dst: Operand, src: Operand, mask: Operand) -> None:
    """quadword i of DEST := MASK[64i+63] ? quadword i of SRC2 : quadword i of SRC1"""
    check_sse(cpu)
    dst.value = chosen(negative(mask.value, QWORDS), src.value, dst.value)


@insn("PBLENDVB")
def pblendvb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """byte i of DEST := XMM0[8i+7] ? byte i of SRC : byte i of DEST"""
    check_sse(cpu)
    dst.value = chosen(negative(cpu.xmm0, BYTES), src.value, dst.value)


@insn("BLENDVPS")
def blendvps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := XMM0[32i+31] ? doubleword i of SRC : doubleword i of DEST"""
    check_sse(cpu)
    dst.value = chosen(negative(cpu.xmm0, DWORDS), src.value, dst.value)


@insn("BLENDVPD")
def blendvpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """quadword i of DEST := XMM0[64i+63] ? quadword i of SRC : quadword i of DEST"""
    check_sse(cpu)
    dst.value = chosen(negative(cpu.xmm0, QWORDS), src.value, dst.value)


@insn("PBLENDW", vex=HALVES)
def pblendw(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """word i of DEST := SELECT[i] ? word i of SRC : word i of DEST"""
    check_sse(cpu)
    dst.value = chosen(word_mask(select.value), src.value, dst.value)


@insn("VPBLENDD")
@insn("BLENDPS", vex=WIDE)
def blendps(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """doubleword i of DEST := SELECT[i] ? doubleword i of SRC : doubleword i of DEST"""
    check_sse(cpu)
    pick = select.value
    taken = dword_mask(pick) | dword_mask(pick >> 4) << 128
    dst.value = chosen(taken & dst.mask, src.value, dst.value)


@insn("BLENDPD", vex=WIDE)
def blendpd(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """quadword i of DEST := SELECT[i] ? quadword i of SRC : quadword i of DEST"""
    check_sse(cpu)
    pick = select.value
    taken = quadword_mask(pick) | quadword_mask(pick >> 2) << 128
    dst.value = chosen(taken & dst.mask, src.value, dst.value)


# ---- lane by lane ----------------------------------------------------------------------------------------


def products_low(a: int, b: int) -> int:
    """Low words of the products of words."""
    return join([x * y & 0xFFFF for x, y in zip(split(a, U16), split(b, U16), strict=True)], U16)


def products_high(a: int, b: int, shape: Struct) -> int:
    """High words of the products of words, signed or unsigned by `shape`."""
    return join([x * y >> 16 & 0xFFFF for x, y in zip(split(a, shape), split(b, shape), strict=True)], U16)


def products_rounded(a: int, b: int) -> int:
    """Products of signed fractions of 15 bits, rounded."""
    pairs = zip(split(a, S16), split(b, S16), strict=True)
    return join([(x * y >> 14) + 1 >> 1 & 0xFFFF for x, y in pairs], U16)


def products_low_dwords(a: int, b: int) -> int:
    """Low doublewords of the products of doublewords."""
    return join([x * y & M32 for x, y in zip(split(a, U32), split(b, U32), strict=True)], U32)


def products_signed(a: int, b: int) -> int:
    """Products of the even signed doublewords."""
    x, y = split(a, S32), split(b, S32)
    return join((x[0] * y[0], x[2] * y[2]), S64)


def sums_of_products(a: int, b: int) -> int:
    """x0 * y0 + x1 * y1 over pairs of signed words; (-0x8000)**2 * 2 wraps to 0x80000000."""
    p = [x * y for x, y in zip(split(a, S16), split(b, S16), strict=True)]
    return join([x + y & M32 for x, y in zip(p[0::2], p[1::2], strict=True)], U32)


def sums_of_mixed_products(a: int, b: int) -> int:
    """x0 * y0 + x1 * y1 over pairs of bytes, x unsigned, y signed, saturated to signed words."""
    p = [x * y for x, y in zip(split(a, U8), split(b, S8), strict=True)]
    return join([max(-0x8000, min(0x7FFF, x + y)) for x, y in zip(p[0::2], p[1::2], strict=True)], S16)


def sums_of_differences(a: int, b: int) -> int:
    """Sums of the absolute differences of the bytes of each quadword."""
    apart = split(subtracted_unsigned(a, b, BYTES) | subtracted_unsigned(b, a, BYTES), U8)
    return sum(apart[:8]) | sum(apart[8:]) << 64


def sliding_differences(a: int, b: int) -> int:
    """Word i: the sum of absolute differences between bytes i..i+3 of a and the 4 bytes b."""
    x, y = (a & M128).to_bytes(16, "little"), b.to_bytes(4, "little")
    return join([sum(abs(x[i + j] - y[j]) for j in range(4)) for i in range(8)], U16)


def sliding_differences_above(a: int, b: int, order: int) -> int:
    """The same for the upper halves of 256 bits."""
    return sliding_differences(a >> 128 + ((order & 4) << 3), b >> 128 + ((order & 3) << 5) & M32)


def smallest_word(a: int) -> int:
    """The smallest unsigned word, the first of equals, and above it its index."""
    words = split(a, U16)
    least = min(words)
    return least | words.index(least) << 16


def pairs(a: int, b: int, size: int, width: int, signed: bool) -> list[tuple[int, int]]:
    """Neighbouring lanes of b:a."""
    step = width // 8
    raw = both(a, b, size)
    lanes = [int.from_bytes(raw[n : n + step], "little", signed=signed) for n in range(0, len(raw), step)]
    return list(zip(lanes[0::2], lanes[1::2], strict=True))


def pair_sums(a: int, b: int, size: int, width: int) -> int:
    """Sums of neighbouring lanes of b:a, wrapping."""
    mask = (1 << width) - 1
    sums = [x + y & mask for x, y in pairs(a, b, size, width, False)]
    return sum(lane << n * width for n, lane in enumerate(sums))


def pair_differences(a: int, b: int, size: int, width: int) -> int:
    """Differences of neighbouring lanes of b:a, wrapping."""
    mask = (1 << width) - 1
    differences = [x - y & mask for x, y in pairs(a, b, size, width, False)]
    return sum(lane << n * width for n, lane in enumerate(differences))


def saturated(number: int) -> int:
    """A number as a signed word, as 16 bits."""
    return max(-0x8000, min(0x7FFF, number)) & 0xFFFF


def pair_sums_saturated(a: int, b: int, size: int) -> int:
    """Sums of neighbouring words of b:a, saturated."""
    return sum(saturated(x + y) << 16 * n for n, (x, y) in enumerate(pairs(a, b, size, 16, True)))


def pair_differences_saturated(a: int, b: int, size: int) -> int:
    """Differences of neighbouring words of b:a, saturated."""
    return sum(saturated(x - y) << 16 * n for n, (x, y) in enumerate(pairs(a, b, size, 16, True)))


def shuffled_bytes(a: int, order: int, size: int) -> int:
    """Bytes of a by index; 0 for an index with bit 7 set."""
    table = a.to_bytes(size, "little") * (128 // size) + bytes(128)
    return int.from_bytes(order.to_bytes(size, "little").translate(table), "little")


def word_mask(select: int) -> int:
    """All ones in the words whose bit of `select` is set."""
    return sum((select >> n & 1) * 0xFFFF << 16 * n for n in range(8))
