"""x87 arithmetic and comparison. No transcendental functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.extended import (
    C0,
    C1,
    C2,
    C3,
    DE,
    INDEFINITE,
    SF,
    SIGN,
    UNORDERED,
    ZERO,
    add,
    compare,
    div,
    extract,
    from_float,
    from_integer,
    is_denormal,
    is_infinite,
    is_nan,
    is_unsupported,
    is_zero,
    mul,
    remainder,
    reversed_div,
    reversed_sub,
    round_to_integer,
    scale,
    sqrt,
    sub,
)
from isa.operands import Location, Operand
from isa.semantics.helpers import signed
from isa.semantics.registry import insn
from isa.semantics.x87 import (
    OVERFLOWN,
    UNDERFLOWN,
    accept,
    begin,
    empty,
    integer_operation,
    locate,
    locate_memory,
    memory_operation,
    pop,
    read,
    register_operation,
    stack_register,
    write,
)

if TYPE_CHECKING:
    from isa.cpu import Cpu

CONDITION_CODES = C0 | C1 | C2 | C3

# ---- add, multiply, subtract, divide ------------------------------------------------------------------


@insn("FADD", inline=False, located=True)
def fadd(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) + ST(src)"""
    begin(cpu)
    register_operation(cpu, where, add, stack_register(dst), stack_register(src))


@insn("FADD_M32FP", "FADD_M64FP", inline=False, located=True)
def fadd_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) + SRC"""
    begin(cpu)
    memory_operation(cpu, where, add, src)


@insn("FIADD", inline=False, located=True)
def fiadd(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) + ConvertToDoubleExtendedPrecisionFP(integer SRC)"""
    begin(cpu)
    integer_operation(cpu, where, add, src)


@insn("FADDP", inline=False, located=True)
def faddp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) + ST(0); pop"""
    begin(cpu)
    if register_operation(cpu, where, add, stack_register(dst), 0):
        pop(cpu)


@insn("FMUL", inline=False, located=True)
def fmul(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) * ST(src)"""
    begin(cpu)
    register_operation(cpu, where, mul, stack_register(dst), stack_register(src))


@insn("FMUL_M32FP", "FMUL_M64FP", inline=False, located=True)
def fmul_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) * SRC"""
    begin(cpu)
    memory_operation(cpu, where, mul, src)


@insn("FIMUL", inline=False, located=True)
def fimul(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) * ConvertToDoubleExtendedPrecisionFP(integer SRC)"""
    begin(cpu)
    integer_operation(cpu, where, mul, src)


@insn("FMULP", inline=False, located=True)
def fmulp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) * ST(0); pop"""
    begin(cpu)
    if register_operation(cpu, where, mul, stack_register(dst), 0):
        pop(cpu)


@insn("FSUB", inline=False, located=True)
def fsub(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) - ST(src)"""
    begin(cpu)
    register_operation(cpu, where, sub, stack_register(dst), stack_register(src))


@insn("FSUB_M32FP", "FSUB_M64FP", inline=False, located=True)
def fsub_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) - SRC"""
    begin(cpu)
    memory_operation(cpu, where, sub, src)


@insn("FISUB", inline=False, located=True)
def fisub(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) - ConvertToDoubleExtendedPrecisionFP(integer SRC)"""
    begin(cpu)
    integer_operation(cpu, where, sub, src)


@insn("FSUBP", inline=False, located=True)
def fsubp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) - ST(0); pop"""
    begin(cpu)
    if register_operation(cpu, where, sub, stack_register(dst), 0):
        pop(cpu)


@insn("FSUBR", inline=False, located=True)
def fsubr(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(src) - ST(dst)"""
    begin(cpu)
    register_operation(cpu, where, reversed_sub, stack_register(dst), stack_register(src))


@insn("FSUBR_M32FP", "FSUBR_M64FP", inline=False, located=True)
def fsubr_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := SRC - ST(0)"""
    begin(cpu)
    memory_operation(cpu, where, reversed_sub, src)


@insn("FISUBR", inline=False, located=True)
def fisubr(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ConvertToDoubleExtendedPrecisionFP(integer SRC) - ST(0)"""
    begin(cpu)
    integer_operation(cpu, where, reversed_sub, src)


@insn("FSUBRP", inline=False, located=True)
def fsubrp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(0) - ST(dst); pop"""
    begin(cpu)
    if register_operation(cpu, where, reversed_sub, stack_register(dst), 0):
        pop(cpu)


@insn("FDIV", inline=False, located=True)
def fdiv(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) / ST(src)"""
    begin(cpu)
    register_operation(cpu, where, div, stack_register(dst), stack_register(src))


@insn("FDIV_M32FP", "FDIV_M64FP", inline=False, located=True)
def fdiv_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) / SRC"""
    begin(cpu)
    memory_operation(cpu, where, div, src)


@insn("FIDIV", inline=False, located=True)
def fidiv(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ST(0) / ConvertToDoubleExtendedPrecisionFP(integer SRC)"""
    begin(cpu)
    integer_operation(cpu, where, div, src)


@insn("FDIVP", inline=False, located=True)
def fdivp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(dst) / ST(0); pop"""
    begin(cpu)
    if register_operation(cpu, where, div, stack_register(dst), 0):
        pop(cpu)


@insn("FDIVR", inline=False, located=True)
def fdivr(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(src) / ST(dst)"""
    begin(cpu)
    register_operation(cpu, where, reversed_div, stack_register(dst), stack_register(src))


@insn("FDIVR_M32FP", "FDIVR_M64FP", inline=False, located=True)
def fdivr_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := SRC / ST(0)"""
    begin(cpu)
    memory_operation(cpu, where, reversed_div, src)


@insn("FIDIVR", inline=False, located=True)
def fidivr(cpu: Cpu, where: Location, src: Operand) -> None:
    """ST(0) := ConvertToDoubleExtendedPrecisionFP(integer SRC) / ST(0)"""
    begin(cpu)
    integer_operation(cpu, where, reversed_div, src)


@insn("FDIVRP", inline=False, located=True)
def fdivrp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ST(dst) := ST(0) / ST(dst); pop"""
    begin(cpu)
    if register_operation(cpu, where, reversed_div, stack_register(dst), 0):
        pop(cpu)


# ---- one operand --------------------------------------------------------------------------------------


@insn("FSQRT", inline=False, located=True)
def fsqrt(cpu: Cpu, where: Location) -> None:
    """ST(0) := SquareRoot(ST(0))"""
    begin(cpu)
    locate(cpu, where)
    result, flags = (INDEFINITE, UNDERFLOWN) if empty(cpu, 0) else sqrt(read(cpu, 0), cpu.fpu.control)
    if accept(cpu, flags):
        write(cpu, 0, result)


@insn("FRNDINT", inline=False, located=True)
def frndint(cpu: Cpu, where: Location) -> None:
    """ST(0) := RoundToIntegralValue(ST(0))"""
    begin(cpu)
    locate(cpu, where)
    if empty(cpu, 0):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        result, flags = round_to_integer(read(cpu, 0), cpu.fpu.control)
    if accept(cpu, flags):
        write(cpu, 0, result)


@insn("FABS", inline=False, located=True)
def fabs(cpu: Cpu, where: Location) -> None:
    """ST(0) := |ST(0)|"""
    begin(cpu)
    locate(cpu, where)
    result, flags = (INDEFINITE, UNDERFLOWN) if empty(cpu, 0) else (read(cpu, 0) & ~SIGN, 0)
    if accept(cpu, flags):
        write(cpu, 0, result)


@insn("FCHS", inline=False, located=True)
def fchs(cpu: Cpu, where: Location) -> None:
    """SignBit(ST(0)) := NOT SignBit(ST(0))"""
    begin(cpu)
    locate(cpu, where)
    result, flags = (INDEFINITE, UNDERFLOWN) if empty(cpu, 0) else (read(cpu, 0) ^ SIGN, 0)
    if accept(cpu, flags):
        write(cpu, 0, result)


# ---- scale, exponent, remainder -----------------------------------------------------------------------


@insn("FSCALE", inline=False, located=True)
def fscale(cpu: Cpu, where: Location) -> None:
    """ST(0) := ST(0) * 2**RoundTowardZero(ST(1))"""
    begin(cpu)
    register_operation(cpu, where, scale, 0, 1)


@insn("FXTRACT", inline=False, located=True)
def fxtract(cpu: Cpu, where: Location) -> None:
    """TEMP := Significand(ST(0)); ST(0) := Exponent(ST(0)); TOP := TOP - 1; ST(0) := TEMP"""
    begin(cpu)
    locate(cpu, where)
    if empty(cpu, 0):
        significand, exponent, flags = INDEFINITE, INDEFINITE, UNDERFLOWN
    elif not empty(cpu, 7):
        significand, exponent, flags = INDEFINITE, INDEFINITE, OVERFLOWN
    else:
        significand, exponent, flags = extract(read(cpu, 0))
    if accept(cpu, flags):
        write(cpu, 0, exponent)
        cpu.fpu.top = cpu.fpu.top - 1 & 7
        write(cpu, 0, significand)


def partial_remainder(cpu: Cpu, where: Location, nearest: bool) -> None:
    """One step of the remainder: C2 = 1 where it has to be repeated, else C0, C3, C1 = quotient bits 2, 1, 0.

    Without a quotient (NaN, invalid operand, empty register) C2 := 0 and C0 and C3 stay: AMD Zen 4.
    """
    begin(cpu)
    locate(cpu, where)
    quotient = 0
    if empty(cpu, 0) or empty(cpu, 1):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        result, flags, quotient = remainder(read(cpu, 0), read(cpu, 1), cpu.fpu.control, nearest=nearest)
    fpu = cpu.fpu
    fpu.status &= ~C2
    if accept(cpu, flags):
        write(cpu, 0, result)
        if not is_nan(result):
            if quotient < 0:
                codes = C2
            else:
                codes = (C0 if quotient & 4 else 0) | (C3 if quotient & 2 else 0) | (quotient & 1) * C1
            fpu.status = fpu.status & ~CONDITION_CODES | codes


@insn("FPREM", inline=False, located=True)
def fprem(cpu: Cpu, where: Location) -> None:
    """ST(0) := ST(0) - ST(1) * Truncate(ST(0) / ST(1))"""
    partial_remainder(cpu, where, False)


@insn("FPREM1", inline=False, located=True)
def fprem1(cpu: Cpu, where: Location) -> None:
    """ST(0) := ST(0) - ST(1) * RoundToNearest(ST(0) / ST(1))"""
    partial_remainder(cpu, where, True)


# ---- comparisons --------------------------------------------------------------------------------------


def set_codes(cpu: Cpu, codes: int, flags: int) -> bool:
    """C3, C2, C0 := codes, C1 := 0. False where an unmasked exception keeps registers from being popped.

    The SDM leaves the codes alone after an unmasked invalid operand; AMD Zen 4 sets them.
    """
    done = accept(cpu, flags)
    cpu.fpu.status = cpu.fpu.status & ~(C3 | C2 | C0) | codes
    return done


def compare_registers(cpu: Cpu, where: Location, i: int, quiet: bool) -> bool:
    """Compare ST(0) with ST(i)."""
    begin(cpu)
    locate(cpu, where)
    if empty(cpu, 0) or empty(cpu, i):
        codes, flags = UNORDERED, UNDERFLOWN
    else:
        codes, flags = compare(read(cpu, 0), read(cpu, i), quiet=quiet)
    return set_codes(cpu, codes, flags)


def compare_memory(cpu: Cpu, where: Location, src: Operand) -> bool:
    """Compare ST(0) with a 32- or 64-bit float."""
    begin(cpu)
    pattern = src.value
    locate_memory(cpu, where, src)
    if empty(cpu, 0):
        codes, flags = UNORDERED, UNDERFLOWN
    else:
        value, source_flags = from_float(pattern, src.bits)
        codes, flags = compare(read(cpu, 0), value)
        if codes != UNORDERED:
            flags |= source_flags & DE
    return set_codes(cpu, codes, flags)


def compare_integer(cpu: Cpu, where: Location, src: Operand) -> bool:
    """Compare ST(0) with a 16- or 32-bit integer."""
    begin(cpu)
    value = from_integer(signed(src.value, src.bits))
    locate_memory(cpu, where, src)
    codes, flags = (UNORDERED, UNDERFLOWN) if empty(cpu, 0) else compare(read(cpu, 0), value)
    return set_codes(cpu, codes, flags)


def compare_to_flags(cpu: Cpu, where: Location, src: Operand, quiet: bool) -> bool:
    """Compare ST(0) with ST(i): ZF, PF, CF as C3, C2, C0 would be; OF, SF, AF := 0.

    C1 stays unless a register is empty, and the flags are set even when the exception is unmasked: Zen 4.
    """
    begin(cpu)
    locate(cpu, where)
    i = stack_register(src)
    if empty(cpu, 0) or empty(cpu, i):
        codes, flags = UNORDERED, UNDERFLOWN
    else:
        codes, flags = compare(read(cpu, 0), read(cpu, i), quiet=quiet)
    kept = 0 if flags & SF else cpu.fpu.status & C1
    done = accept(cpu, flags)
    cpu.fpu.status |= kept
    cpu.zf = bool(codes & C3)
    cpu.pf = bool(codes & C2)
    cpu.cf = bool(codes & C0)
    cpu.of = cpu.sf = cpu.af = 0
    return done


@insn("FCOM", inline=False, located=True)
def fcom(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """C3, C2, C0 := compare ST(0) with ST(i)"""
    compare_registers(cpu, where, stack_register(src), False)


@insn("FCOMP", inline=False, located=True)
def fcomp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """C3, C2, C0 := compare ST(0) with ST(i); pop"""
    if compare_registers(cpu, where, stack_register(src), False):
        pop(cpu)


@insn("FCOMPP", inline=False, located=True)
def fcompp(cpu: Cpu, where: Location) -> None:
    """C3, C2, C0 := compare ST(0) with ST(1); pop; pop"""
    if compare_registers(cpu, where, 1, False):
        pop(cpu)
        pop(cpu)


@insn("FCOM_M32FP", "FCOM_M64FP", inline=False, located=True)
def fcom_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """C3, C2, C0 := compare ST(0) with SRC"""
    compare_memory(cpu, where, src)


@insn("FCOMP_M32FP", "FCOMP_M64FP", inline=False, located=True)
def fcomp_memory(cpu: Cpu, where: Location, src: Operand) -> None:
    """C3, C2, C0 := compare ST(0) with SRC; pop"""
    if compare_memory(cpu, where, src):
        pop(cpu)


@insn("FICOM", inline=False, located=True)
def ficom(cpu: Cpu, where: Location, src: Operand) -> None:
    """C3, C2, C0 := compare ST(0) with integer SRC"""
    compare_integer(cpu, where, src)


@insn("FICOMP", inline=False, located=True)
def ficomp(cpu: Cpu, where: Location, src: Operand) -> None:
    """C3, C2, C0 := compare ST(0) with integer SRC; pop"""
    if compare_integer(cpu, where, src):
        pop(cpu)


@insn("FUCOM", inline=False, located=True)
def fucom(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """C3, C2, C0 := unordered compare ST(0) with ST(i)"""
    compare_registers(cpu, where, stack_register(src), True)


@insn("FUCOMP", inline=False, located=True)
def fucomp(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """C3, C2, C0 := unordered compare ST(0) with ST(i); pop"""
    if compare_registers(cpu, where, stack_register(src), True):
        pop(cpu)


@insn("FUCOMPP", inline=False, located=True)
def fucompp(cpu: Cpu, where: Location) -> None:
    """C3, C2, C0 := unordered compare ST(0) with ST(1); pop; pop"""
    if compare_registers(cpu, where, 1, True):
        pop(cpu)
        pop(cpu)


@insn("FCOMI", inline=False, located=True)
def fcomi(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := compare ST(0) with ST(i)"""
    compare_to_flags(cpu, where, src, False)


@insn("FCOMIP", inline=False, located=True)
def fcomip(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := compare ST(0) with ST(i); pop"""
    if compare_to_flags(cpu, where, src, False):
        pop(cpu)


@insn("FUCOMI", inline=False, located=True)
def fucomi(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := unordered compare ST(0) with ST(i)"""
    compare_to_flags(cpu, where, src, True)


@insn("FUCOMIP", inline=False, located=True)
def fucomip(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """ZF, PF, CF := unordered compare ST(0) with ST(i); pop"""
    if compare_to_flags(cpu, where, src, True):
        pop(cpu)


@insn("FTST", inline=False, located=True)
def ftst(cpu: Cpu, where: Location) -> None:
    """C3, C2, C0 := compare ST(0) with 0.0"""
    begin(cpu)
    locate(cpu, where)
    codes, flags = (UNORDERED, UNDERFLOWN) if empty(cpu, 0) else compare(read(cpu, 0), ZERO)
    set_codes(cpu, codes, flags)


@insn("FXAM", inline=False, located=True)
def fxam(cpu: Cpu, where: Location) -> None:
    """C1 := sign of ST(0); C3, C2, C0 := class of ST(0)"""
    begin(cpu)
    locate(cpu, where)
    value = read(cpu, 0)
    if empty(cpu, 0):
        codes = C3 | C0
    elif is_unsupported(value):
        codes = 0
    elif is_nan(value):
        codes = C0
    elif is_infinite(value):
        codes = C2 | C0
    elif is_zero(value):
        codes = C3
    elif is_denormal(value):
        codes = C3 | C2
    else:
        codes = C2
    cpu.fpu.status = cpu.fpu.status & ~CONDITION_CODES | codes | (C1 if value & SIGN else 0)
