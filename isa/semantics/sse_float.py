"""SSE to SSE4.1 and AVX floating point. Not the arithmetic (`isa.floats`) nor conversions with MMn (`mmx`).

An instruction raises at most one #XM, after its operands are read and before its destination changes; the
flags in MXCSR are set either way (SDM Vol. 1, "SIMD Floating-Point Exception Conditions").
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

from isa.faults import InvalidOpcode, SimdException
from isa.floats import (
    BINARY32,
    BINARY64,
    EQUAL,
    GREATER,
    LESS,
    MASK_SHIFT,
    PRE_COMPUTATION,
    PRECISION,
    ROUND_SHIFT,
    TOWARD_ZERO,
    UNORDERED,
    Binary,
    Result,
)
from isa.operands import Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import WIDE, insn
from isa.semantics.sse_move import dword_mask, quadword_mask
from isa.semantics.vector import LOW32_OUT, LOW64_OUT, M128
from isa.state import CR4_OSXMMEXCPT, M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

Unary = Callable[[int, int], Result]  # (operand, MXCSR)
Binary2 = Callable[[int, int, int], Result]  # (first, second, MXCSR)

EXCEPTION_NAMES = ("invalid", "denormal", "divide by zero", "overflow", "underflow", "precision")
RC_FIELD = 3 << ROUND_SHIFT

# ---- exceptions and lanes ------------------------------------------------------------------------------


def report(cpu: Cpu, flags: int) -> None:
    """Set the MXCSR flags; #XM if one is unmasked, #UD instead without CR4.OSXMMEXCPT."""
    unmasked = flags & ~(cpu.mxcsr >> MASK_SHIFT)
    if unmasked & PRE_COMPUTATION:
        flags &= PRE_COMPUTATION  # nothing was computed
    cpu.mxcsr |= flags
    if unmasked:
        names = ", ".join(name for n, name in enumerate(EXCEPTION_NAMES) if unmasked >> n & 1)
        if not cpu.cr4 & CR4_OSXMMEXCPT:
            raise InvalidOpcode(f"unmasked SSE exception ({names}) with CR4.OSXMMEXCPT = 0")
        raise SimdException(f"unmasked SSE exception: {names}")


def settled(cpu: Cpu, outcome: Result) -> int:
    """The result of an operation after its flags are dealt with."""
    result, flags = outcome
    if flags:
        report(cpu, flags)
    return result


def each(cpu: Cpu, form: Binary, operation: Binary2, a: int, b: int, bits: int) -> int:
    """`operation` on every lane of a and b, which have `bits` bits."""
    control = cpu.mxcsr
    mask = form.sign | form.magnitude
    result = flags = 0
    for at in range(0, bits, form.bits):
        lane, raised = operation(a >> at & mask, b >> at & mask, control)
        result |= lane << at
        flags |= raised
    if flags:
        report(cpu, flags)
    return result


def packed(
    cpu: Cpu,
    form: Binary,
    quick: Callable[[float, float], float],
    operation: Binary2,
    a: int,
    b: int,
    bits: int,
) -> int:
    """`operation` on every lane of a and b; `quick` is the same for Python's floats."""
    result = form.quick_lanes(quick, a & M128, b & M128, cpu.mxcsr)
    if result is not None and bits == 256:
        high = form.quick_lanes(quick, a >> 128, b >> 128, cpu.mxcsr)
        result = None if high is None else result | high << 128
    return each(cpu, form, operation, a, b, bits) if result is None else result


def each_of(cpu: Cpu, operation: Unary, a: int, narrow: int, wide: int, count: int) -> int:
    """`operation` on `count` lanes of a, `narrow` bits apart; its results are `wide` bits apart."""
    control = cpu.mxcsr
    mask = (1 << narrow) - 1
    result = flags = 0
    for n in range(count):
        lane, raised = operation(a >> n * narrow & mask, control)
        result |= lane << n * wide
        flags |= raised
    if flags:
        report(cpu, flags)
    return result


# ---- arithmetic ----------------------------------------------------------------------------------------


@insn("ADDPS", vex=WIDE)
def addps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + SRC[i], singles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY32, operator.add, BINARY32.add, dst.value, src.value, dst.bits)


@insn("ADDPD", vex=WIDE)
def addpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + SRC[i], doubles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY64, operator.add, BINARY64.add, dst.value, src.value, dst.bits)


@insn("ADDSS", vex=WIDE)
def addss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := DEST[31:0] + SRC[31:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW32_OUT | settled(cpu, BINARY32.add(a & M32, src.value & M32, cpu.mxcsr))


@insn("ADDSD", vex=WIDE)
def addsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[63:0] + SRC[63:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW64_OUT | settled(cpu, BINARY64.add(a & M64, src.value & M64, cpu.mxcsr))


@insn("SUBPS", vex=WIDE)
def subps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i], singles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY32, operator.sub, BINARY32.sub, dst.value, src.value, dst.bits)


@insn("SUBPD", vex=WIDE)
def subpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i], doubles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY64, operator.sub, BINARY64.sub, dst.value, src.value, dst.bits)


@insn("SUBSS", vex=WIDE)
def subss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := DEST[31:0] - SRC[31:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW32_OUT | settled(cpu, BINARY32.sub(a & M32, src.value & M32, cpu.mxcsr))


@insn("SUBSD", vex=WIDE)
def subsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[63:0] - SRC[63:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW64_OUT | settled(cpu, BINARY64.sub(a & M64, src.value & M64, cpu.mxcsr))


@insn("MULPS", vex=WIDE)
def mulps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] * SRC[i], singles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY32, operator.mul, BINARY32.mul, dst.value, src.value, dst.bits)


@insn("MULPD", vex=WIDE)
def mulpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] * SRC[i], doubles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY64, operator.mul, BINARY64.mul, dst.value, src.value, dst.bits)


@insn("MULSS", vex=WIDE)
def mulss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := DEST[31:0] * SRC[31:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW32_OUT | settled(cpu, BINARY32.mul(a & M32, src.value & M32, cpu.mxcsr))


@insn("MULSD", vex=WIDE)
def mulsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[63:0] * SRC[63:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW64_OUT | settled(cpu, BINARY64.mul(a & M64, src.value & M64, cpu.mxcsr))


@insn("DIVPS", vex=WIDE)
def divps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] / SRC[i], singles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY32, operator.truediv, BINARY32.div, dst.value, src.value, dst.bits)


@insn("DIVPD", vex=WIDE)
def divpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] / SRC[i], doubles"""
    check_sse(cpu)
    dst.value = packed(cpu, BINARY64, operator.truediv, BINARY64.div, dst.value, src.value, dst.bits)


@insn("DIVSS", vex=WIDE)
def divss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := DEST[31:0] / SRC[31:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW32_OUT | settled(cpu, BINARY32.div(a & M32, src.value & M32, cpu.mxcsr))


@insn("DIVSD", vex=WIDE)
def divsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[63:0] / SRC[63:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW64_OUT | settled(cpu, BINARY64.div(a & M64, src.value & M64, cpu.mxcsr))


@insn("MINPS", vex=WIDE)
def minps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] < SRC[i] ? DEST[i] : SRC[i], singles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY32, BINARY32.min, dst.value, src.value, dst.bits)


@insn("MINPD", vex=WIDE)
def minpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] < SRC[i] ? DEST[i] : SRC[i], doubles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY64, BINARY64.min, dst.value, src.value, dst.bits)


@insn("MINSS", vex=WIDE)
def minss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := DEST[31:0] < SRC[31:0] ? DEST[31:0] : SRC[31:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW32_OUT | settled(cpu, BINARY32.min(a & M32, src.value & M32, cpu.mxcsr))


@insn("MINSD", vex=WIDE)
def minsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[63:0] < SRC[63:0] ? DEST[63:0] : SRC[63:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW64_OUT | settled(cpu, BINARY64.min(a & M64, src.value & M64, cpu.mxcsr))


@insn("MAXPS", vex=WIDE)
def maxps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] > SRC[i] ? DEST[i] : SRC[i], singles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY32, BINARY32.max, dst.value, src.value, dst.bits)


@insn("MAXPD", vex=WIDE)
def maxpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] > SRC[i] ? DEST[i] : SRC[i], doubles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY64, BINARY64.max, dst.value, src.value, dst.bits)


@insn("MAXSS", vex=WIDE)
def maxss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := DEST[31:0] > SRC[31:0] ? DEST[31:0] : SRC[31:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW32_OUT | settled(cpu, BINARY32.max(a & M32, src.value & M32, cpu.mxcsr))


@insn("MAXSD", vex=WIDE)
def maxsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := DEST[63:0] > SRC[63:0] ? DEST[63:0] : SRC[63:0]"""
    check_sse(cpu)
    a = dst.value
    dst.value = a & LOW64_OUT | settled(cpu, BINARY64.max(a & M64, src.value & M64, cpu.mxcsr))


@insn("SQRTPS", vex=WIDE)
def sqrtps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := sqrt(SRC[i]), singles"""
    check_sse(cpu)
    dst.value = each_of(cpu, BINARY32.sqrt, src.value, 32, 32, dst.bits // 32)


@insn("SQRTPD", vex=WIDE)
def sqrtpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := sqrt(SRC[i]), doubles"""
    check_sse(cpu)
    dst.value = each_of(cpu, BINARY64.sqrt, src.value, 64, 64, dst.bits // 64)


@insn("SQRTSS", vex=WIDE)
def sqrtss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := sqrt(SRC[31:0])"""
    check_sse(cpu)
    dst.value = dst.value & LOW32_OUT | settled(cpu, BINARY32.sqrt(src.value & M32, cpu.mxcsr))


@insn("SQRTSD", vex=WIDE)
def sqrtsd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := sqrt(SRC[63:0])"""
    check_sse(cpu)
    dst.value = dst.value & LOW64_OUT | settled(cpu, BINARY64.sqrt(src.value & M64, cpu.mxcsr))


def reciprocal(a: int, control: int) -> Result:
    """About 1 / a, single. Denormals count as zero, a denormal result becomes one; no flags."""
    # Quirk: the manual asks for a relative error of at most 1.5 * 2**-12 and real CPUs differ from each
    # other in the low bits; this one returns the nearest single.
    return estimate(a, BINARY32.div(ONE, a & BINARY32.sign if not a & BINARY32.exponent else a, ESTIMATE)[0])


def reciprocal_root(a: int, control: int) -> Result:
    """About 1 / sqrt(a), single. Denormals count as zero; no flags."""
    # Quirk: as for `reciprocal`, the nearest single instead of a table's 12 bits
    if not a & BINARY32.exponent:
        return a & BINARY32.sign | BINARY32.infinity, 0
    if a & BINARY32.sign and not BINARY32.is_nan(a):
        return BINARY32.indefinite, 0
    wide, _ = BINARY64.from_format(BINARY32, a, ESTIMATE)
    root, _ = BINARY64.sqrt(wide, ESTIMATE)
    inverse, _ = BINARY64.div(ONE_DOUBLE, root, ESTIMATE)
    return estimate(a, BINARY32.from_format(BINARY64, inverse, ESTIMATE)[0])


def estimate(a: int, result: int) -> Result:
    """A NaN goes through quieted; a tiny result is a zero."""
    if BINARY32.is_nan(a):
        return a | BINARY32.quiet, 0
    return result, 0


ONE, ONE_DOUBLE = 0x3F80_0000, 0x3FF0_0000_0000_0000
ESTIMATE = 0x9F80  # MXCSR with everything masked, FTZ, RC nearest


@insn("RCPPS", vex=WIDE)
def rcpps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := approximately 1 / SRC[i], singles"""
    check_sse(cpu)
    dst.value = each_of(cpu, reciprocal, src.value, 32, 32, dst.bits // 32)


@insn("RCPSS", vex=WIDE)
def rcpss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := approximately 1 / SRC[31:0]"""
    check_sse(cpu)
    dst.value = dst.value & LOW32_OUT | settled(cpu, reciprocal(src.value & M32, cpu.mxcsr))


@insn("RSQRTPS", vex=WIDE)
def rsqrtps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := approximately 1 / sqrt(SRC[i]), singles"""
    check_sse(cpu)
    dst.value = each_of(cpu, reciprocal_root, src.value, 32, 32, dst.bits // 32)


@insn("RSQRTSS", vex=WIDE)
def rsqrtss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := approximately 1 / sqrt(SRC[31:0])"""
    check_sse(cpu)
    dst.value = dst.value & LOW32_OUT | settled(cpu, reciprocal_root(src.value & M32, cpu.mxcsr))


# ---- horizontal and alternating arithmetic -------------------------------------------------------------


def mixed(cpu: Cpu, form: Binary, operations: tuple[Binary2, ...], pairs: tuple[tuple[int, int], ...]) -> int:
    """Lane i of the result: operations[i mod their number] on pairs[i]."""
    control = cpu.mxcsr
    result = flags = 0
    for n, (a, b) in enumerate(pairs):
        lane, raised = operations[n % len(operations)](a, b, control)
        result |= lane << n * form.bits
        flags |= raised
    if flags:
        report(cpu, flags)
    return result


def lanes_of(form: Binary, a: int, bits: int) -> list[int]:
    """The singles or doubles of a register, lowest first."""
    mask = form.sign | form.magnitude
    return [a >> at & mask for at in range(0, bits, form.bits)]


def neighbours(form: Binary, a: int, b: int, bits: int) -> tuple[tuple[int, int], ...]:
    """In every 128 bits: pairs of neighbouring lanes of a, then of b."""
    per_half = 128 // form.bits
    x, y = lanes_of(form, a, bits), lanes_of(form, b, bits)
    both = [
        lane for at in range(0, len(x), per_half) for lane in (*x[at : at + per_half], *y[at : at + per_half])
    ]
    return tuple(zip(both[0::2], both[1::2], strict=True))


def opposites(form: Binary, a: int, b: int, bits: int) -> tuple[tuple[int, int], ...]:
    """Lane i of a with lane i of b."""
    return tuple(zip(lanes_of(form, a, bits), lanes_of(form, b, bits), strict=True))


@insn("HADDPS", vex=WIDE)
def haddps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[2i] + SRC[2i+1] above DEST[2i] + DEST[2i+1], singles"""
    check_sse(cpu)
    dst.value = mixed(cpu, BINARY32, (BINARY32.add,), neighbours(BINARY32, dst.value, src.value, dst.bits))


@insn("HSUBPS", vex=WIDE)
def hsubps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[2i] - SRC[2i+1] above DEST[2i] - DEST[2i+1], singles"""
    check_sse(cpu)
    dst.value = mixed(cpu, BINARY32, (BINARY32.sub,), neighbours(BINARY32, dst.value, src.value, dst.bits))


@insn("HADDPD", vex=WIDE)
def haddpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[0] + SRC[1] above DEST[0] + DEST[1], doubles"""
    check_sse(cpu)
    dst.value = mixed(cpu, BINARY64, (BINARY64.add,), neighbours(BINARY64, dst.value, src.value, dst.bits))


@insn("HSUBPD", vex=WIDE)
def hsubpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC[0] - SRC[1] above DEST[0] - DEST[1], doubles"""
    check_sse(cpu)
    dst.value = mixed(cpu, BINARY64, (BINARY64.sub,), neighbours(BINARY64, dst.value, src.value, dst.bits))


@insn("ADDSUBPS", vex=WIDE)
def addsubps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] - SRC[i] (i even), DEST[i] + SRC[i] (i odd), singles"""
    check_sse(cpu)
    lanes = opposites(BINARY32, dst.value, src.value, dst.bits)
    dst.value = mixed(cpu, BINARY32, (BINARY32.sub, BINARY32.add), lanes)


@insn("ADDSUBPD", vex=WIDE)
def addsubpd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[0] := DEST[0] - SRC[0]; DEST[1] := DEST[1] + SRC[1], doubles"""
    check_sse(cpu)
    lanes = opposites(BINARY64, dst.value, src.value, dst.bits)
    dst.value = mixed(cpu, BINARY64, (BINARY64.sub, BINARY64.add), lanes)


@insn("DPPS", vex=WIDE)
def dpps(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """SUM of DEST[i] * SRC[i] where imm8[4+i]; DEST[i] := imm8[i] ? SUM : 0, singles"""
    check_sse(cpu)
    pick = select.value
    taken = repeated(dword_mask(pick >> 4), dst.bits)
    products = each(cpu, BINARY32, BINARY32.mul, dst.value & taken, src.value & taken, dst.bits)
    pairs = mixed(cpu, BINARY32, (BINARY32.add,), pairs_of(BINARY32, products, dst.bits))
    sums = mixed(cpu, BINARY32, (BINARY32.add,), pairs_of(BINARY32, pairs, dst.bits // 2))
    dst.value = spread(BINARY32, sums, dst.bits) & repeated(dword_mask(pick), dst.bits)


def pairs_of(form: Binary, a: int, bits: int) -> tuple[tuple[int, int], ...]:
    """Pairs of neighbouring lanes."""
    lanes = lanes_of(form, a, bits)
    return tuple(zip(lanes[0::2], lanes[1::2], strict=True))


def repeated(a: int, bits: int) -> int:
    """128 bits, once or twice."""
    return a if bits == 128 else a | a << 128


def spread(form: Binary, a: int, bits: int) -> int:
    """Lane i of a in all lanes of the i-th 128 bits."""
    ones = sum(1 << at for at in range(0, 128, form.bits))
    lanes = lanes_of(form, a, bits // 128 * form.bits)
    return sum(lane * ones << 128 * n for n, lane in enumerate(lanes))


@insn("DPPD", vex=WIDE)
def dppd(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """SUM of DEST[i] * SRC[i] where imm8[4+i]; DEST[i] := imm8[i] ? SUM : 0, doubles"""
    check_sse(cpu)
    pick = select.value
    taken = quadword_mask(pick >> 4)
    products = each(cpu, BINARY64, BINARY64.mul, dst.value & taken, src.value & taken, 128)
    total = settled(cpu, BINARY64.add(products & M64, products >> 64, cpu.mxcsr))
    dst.value = (total | total << 64) & quadword_mask(pick)


# ---- comparison ----------------------------------------------------------------------------------------


def set_relation(cpu: Cpu, relation: int) -> None:
    """ZF, PF, CF as COMISD has them; OF, SF, AF := 0"""
    cpu.zf = relation in (EQUAL, UNORDERED)
    cpu.pf = relation == UNORDERED
    cpu.cf = relation in (LESS, UNORDERED)
    cpu.of = 0
    cpu.sf = 0
    cpu.af = 0


def relation_of(cpu: Cpu, form: Binary, a: int, b: int, quiet: bool) -> int:
    """LESS, EQUAL, GREATER or UNORDERED, flags dealt with."""
    relation, flags = form.compare(a, b, cpu.mxcsr, quiet)
    if flags:
        report(cpu, flags)
    return relation


@insn("UCOMISS", vex=WIDE)
def ucomiss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := 111 unordered, 000 greater, 001 less, 100 equal; a quiet NaN is not invalid"""
    check_sse(cpu)
    set_relation(cpu, relation_of(cpu, BINARY32, dst.value & M32, src.value & M32, True))


@insn("UCOMISD", vex=WIDE)
def ucomisd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := 111 unordered, 000 greater, 001 less, 100 equal; a quiet NaN is not invalid"""
    check_sse(cpu)
    set_relation(cpu, relation_of(cpu, BINARY64, dst.value & M64, src.value & M64, True))


@insn("COMISS", vex=WIDE)
def comiss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := 111 unordered, 000 greater, 001 less, 100 equal; any NaN is invalid"""
    check_sse(cpu)
    set_relation(cpu, relation_of(cpu, BINARY32, dst.value & M32, src.value & M32, False))


@insn("COMISD", vex=WIDE)
def comisd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := 111 unordered, 000 greater, 001 less, 100 equal; any NaN is invalid"""
    check_sse(cpu)
    set_relation(cpu, relation_of(cpu, BINARY64, dst.value & M64, src.value & M64, False))


# Predicate imm8[3:0] of CMPPS and friends (legacy forms: 2:0) -> relations for which it holds
PREDICATES = (
    (EQUAL,),  # EQ
    (LESS,),  # LT
    (LESS, EQUAL),  # LE
    (UNORDERED,),  # UNORD
    (LESS, GREATER, UNORDERED),  # NEQ
    (EQUAL, GREATER, UNORDERED),  # NLT
    (GREATER, UNORDERED),  # NLE
    (LESS, EQUAL, GREATER),  # ORD
    (EQUAL, UNORDERED),  # EQ_UQ
    (LESS, UNORDERED),  # NGE
    (LESS, EQUAL, UNORDERED),  # NGT
    (),  # FALSE
    (LESS, GREATER),  # NEQ_OQ
    (EQUAL, GREATER),  # GE
    (GREATER,),  # GT
    (LESS, EQUAL, GREATER, UNORDERED),  # TRUE
)
# Whether a quiet NaN leaves the invalid flag alone; imm8[4] turns it around
QUIET_PREDICATES = (True, False, False, True, True, False, False, True) * 2


def predicate(form: Binary, imm8: int) -> Binary2:
    """The comparison imm8[4:0] as an operation that answers all ones or 0."""
    holds = PREDICATES[imm8 & 15]
    quiet = QUIET_PREDICATES[imm8 & 15] != bool(imm8 & 16)
    ones = form.sign | form.magnitude

    def operation(a: int, b: int, control: int) -> Result:
        relation, flags = form.compare(a, b, control, quiet)
        return ones if relation in holds else 0, flags

    return operation


@insn("CMPPS")
def cmpps(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[i] := DEST[i] predicate(imm8[2:0]) SRC[i] ? ones : 0, singles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY32, predicate(BINARY32, kind.value & 7), dst.value, src.value, dst.bits)


@insn("CMPPD")
def cmppd(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[i] := DEST[i] predicate(imm8[2:0]) SRC[i] ? ones : 0, doubles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY64, predicate(BINARY64, kind.value & 7), dst.value, src.value, dst.bits)


@insn("CMPSS")
def cmpss(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[31:0] := DEST[31:0] predicate(imm8[2:0]) SRC[31:0] ? ones : 0"""
    check_sse(cpu)
    a = dst.value
    compared = predicate(BINARY32, kind.value & 7)
    dst.value = a & LOW32_OUT | settled(cpu, compared(a & M32, src.value & M32, cpu.mxcsr))


@insn("CMPSD_XMM_XMMM64_IMM8")
def cmpsd(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[63:0] := DEST[63:0] predicate(imm8[2:0]) SRC[63:0] ? ones : 0"""
    check_sse(cpu)
    a = dst.value
    compared = predicate(BINARY64, kind.value & 7)
    dst.value = a & LOW64_OUT | settled(cpu, compared(a & M64, src.value & M64, cpu.mxcsr))


@insn("VCMPPS")
def vcmpps(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[i] := SRC1[i] predicate(imm8[4:0]) SRC2[i] ? ones : 0, singles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY32, predicate(BINARY32, kind.value), dst.value, src.value, dst.bits)


@insn("VCMPPD")
def vcmppd(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[i] := SRC1[i] predicate(imm8[4:0]) SRC2[i] ? ones : 0, doubles"""
    check_sse(cpu)
    dst.value = each(cpu, BINARY64, predicate(BINARY64, kind.value), dst.value, src.value, dst.bits)


@insn("VCMPSS")
def vcmpss(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[31:0] := SRC1[31:0] predicate(imm8[4:0]) SRC2[31:0] ? ones : 0"""
    check_sse(cpu)
    a = dst.value
    compared = predicate(BINARY32, kind.value)
    dst.value = a & LOW32_OUT | settled(cpu, compared(a & M32, src.value & M32, cpu.mxcsr))


@insn("VCMPSD")
def vcmpsd(cpu: Cpu, dst: Operand, src: Operand, kind: Operand) -> None:
    """DEST[63:0] := SRC1[63:0] predicate(imm8[4:0]) SRC2[63:0] ? ones : 0"""
    check_sse(cpu)
    a = dst.value
    compared = predicate(BINARY64, kind.value)
    dst.value = a & LOW64_OUT | settled(cpu, compared(a & M64, src.value & M64, cpu.mxcsr))


# ---- conversion with integers --------------------------------------------------------------------------


def signed32(number: int) -> int:
    """The two's complement reading of 32 bits."""
    return number - (number >> 31 << 32)


def single_from_int32(number: int, control: int) -> Result:
    """A doubleword as a single."""
    return BINARY32.from_int(signed32(number), control)


def double_from_int32(number: int, control: int) -> Result:
    """A doubleword as a double: always exact."""
    return BINARY64.from_int(signed32(number), control)


def int32_from_single(a: int, control: int) -> Result:
    """A single as a doubleword, by MXCSR.RC."""
    return BINARY32.to_int(a, 32, control)


def int32_from_double(a: int, control: int) -> Result:
    """A double as a doubleword, by MXCSR.RC."""
    return BINARY64.to_int(a, 32, control)


def truncated_single(a: int, control: int) -> Result:
    """A single as a doubleword, truncated."""
    return BINARY32.to_int(a, 32, control | TOWARD_ZERO)


def truncated_double(a: int, control: int) -> Result:
    """A double as a doubleword, truncated."""
    return BINARY64.to_int(a, 32, control | TOWARD_ZERO)


@insn("CVTSI2SS", vex=WIDE)
def cvtsi2ss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := single(SRC)"""
    check_sse(cpu)
    number = src.value
    number = number - (number >> src.bits - 1 << src.bits)
    dst.value = dst.value & LOW32_OUT | settled(cpu, BINARY32.from_int(number, cpu.mxcsr))


@insn("CVTSI2SD", vex=WIDE)
def cvtsi2sd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := double(SRC)"""
    check_sse(cpu)
    number = src.value
    number = number - (number >> src.bits - 1 << src.bits)
    dst.value = dst.value & LOW64_OUT | settled(cpu, BINARY64.from_int(number, cpu.mxcsr))


@insn("CVTSS2SI", vex=WIDE)
def cvtss2si(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := integer(SRC[31:0]), by MXCSR.RC"""
    check_sse(cpu)
    dst.value = settled(cpu, BINARY32.to_int(src.value & M32, dst.bits, cpu.mxcsr))


@insn("CVTSD2SI", vex=WIDE)
def cvtsd2si(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := integer(SRC[63:0]), by MXCSR.RC"""
    check_sse(cpu)
    dst.value = settled(cpu, BINARY64.to_int(src.value & M64, dst.bits, cpu.mxcsr))


@insn("CVTTSS2SI", vex=WIDE)
def cvttss2si(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := integer(SRC[31:0]), truncated"""
    check_sse(cpu)
    dst.value = settled(cpu, BINARY32.to_int(src.value & M32, dst.bits, cpu.mxcsr | TOWARD_ZERO))


@insn("CVTTSD2SI", vex=WIDE)
def cvttsd2si(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := integer(SRC[63:0]), truncated"""
    check_sse(cpu)
    dst.value = settled(cpu, BINARY64.to_int(src.value & M64, dst.bits, cpu.mxcsr | TOWARD_ZERO))


@insn("CVTDQ2PS", vex=WIDE)
def cvtdq2ps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """single i of DEST := doubleword i of SRC"""
    check_sse(cpu)
    dst.value = each_of(cpu, single_from_int32, src.value, 32, 32, dst.bits // 32)


@insn("CVTDQ2PD", vex=WIDE)
def cvtdq2pd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """double i of DEST := doubleword i of SRC"""
    check_sse(cpu)
    dst.value = each_of(cpu, double_from_int32, src.value, 32, 64, dst.bits // 64)


@insn("CVTPS2DQ", vex=WIDE)
def cvtps2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(single i of SRC), by MXCSR.RC"""
    check_sse(cpu)
    dst.value = each_of(cpu, int32_from_single, src.value, 32, 32, dst.bits // 32)


@insn("CVTTPS2DQ", vex=WIDE)
def cvttps2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(single i of SRC), truncated"""
    check_sse(cpu)
    dst.value = each_of(cpu, truncated_single, src.value, 32, 32, dst.bits // 32)


@insn("CVTPD2DQ", vex=WIDE)
def cvtpd2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(double i of SRC), by MXCSR.RC; DEST[127:64] := 0"""
    check_sse(cpu)
    dst.value = each_of(cpu, int32_from_double, src.value, 64, 32, src.bits // 64)


@insn("CVTTPD2DQ", vex=WIDE)
def cvttpd2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """doubleword i of DEST := integer(double i of SRC), truncated; DEST[127:64] := 0"""
    check_sse(cpu)
    dst.value = each_of(cpu, truncated_double, src.value, 64, 32, src.bits // 64)


# ---- conversion between formats, rounding --------------------------------------------------------------


def widened(a: int, control: int) -> Result:
    """A single as a double."""
    return BINARY64.from_format(BINARY32, a, control)


def narrowed(a: int, control: int) -> Result:
    """A double as a single."""
    return BINARY32.from_format(BINARY64, a, control)


@insn("CVTSS2SD", vex=WIDE)
def cvtss2sd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[63:0] := double(SRC[31:0])"""
    check_sse(cpu)
    dst.value = dst.value & LOW64_OUT | settled(cpu, widened(src.value & M32, cpu.mxcsr))


@insn("CVTSD2SS", vex=WIDE)
def cvtsd2ss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := single(SRC[63:0])"""
    check_sse(cpu)
    dst.value = dst.value & LOW32_OUT | settled(cpu, narrowed(src.value & M64, cpu.mxcsr))


@insn("CVTPS2PD", vex=WIDE)
def cvtps2pd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """double i of DEST := single i of SRC"""
    check_sse(cpu)
    dst.value = each_of(cpu, widened, src.value, 32, 64, dst.bits // 64)


@insn("CVTPD2PS", vex=WIDE)
def cvtpd2ps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """single i of DEST := double i of SRC; DEST[127:64] := 0"""
    check_sse(cpu)
    dst.value = each_of(cpu, narrowed, src.value, 64, 32, src.bits // 64)


def rounding(cpu: Cpu, imm8: int) -> int:
    """The control word of ROUNDSS and friends: RC from imm8[1:0] unless imm8[2]."""
    if imm8 & 4:
        return cpu.mxcsr
    return cpu.mxcsr & ~RC_FIELD | (imm8 & 3) << ROUND_SHIFT


def integral(form: Binary, control: int, imm8: int) -> Unary:
    """Rounding to an integer as an operation; imm8[3] keeps the precision flag out."""
    dropped = ~PRECISION if imm8 & 8 else ~0

    def operation(a: int, _: int) -> Result:
        result, flags = form.integral(a, control)
        return result, flags & dropped

    return operation


@insn("ROUNDPS", vex=WIDE)
def roundps(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """DEST[i] := SRC[i] rounded to an integer, singles"""
    check_sse(cpu)
    operation = integral(BINARY32, rounding(cpu, control.value), control.value)
    dst.value = each_of(cpu, operation, src.value, 32, 32, dst.bits // 32)


@insn("ROUNDPD", vex=WIDE)
def roundpd(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """DEST[i] := SRC[i] rounded to an integer, doubles"""
    check_sse(cpu)
    operation = integral(BINARY64, rounding(cpu, control.value), control.value)
    dst.value = each_of(cpu, operation, src.value, 64, 64, dst.bits // 64)


@insn("ROUNDSS", vex=WIDE)
def roundss(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """DEST[31:0] := SRC[31:0] rounded to an integer"""
    check_sse(cpu)
    operation = integral(BINARY32, rounding(cpu, control.value), control.value)
    dst.value = dst.value & LOW32_OUT | settled(cpu, operation(src.value & M32, 0))


@insn("ROUNDSD", vex=WIDE)
def roundsd(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """DEST[63:0] := SRC[63:0] rounded to an integer"""
    check_sse(cpu)
    operation = integral(BINARY64, rounding(cpu, control.value), control.value)
    dst.value = dst.value & LOW64_OUT | settled(cpu, operation(src.value & M64, 0))
