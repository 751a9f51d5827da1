"""x87 data transfer: loads, stores, constants, exchanges, conditional moves, tags. No arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.extended import (
    C1,
    CHOP,
    IE,
    INDEFINITE,
    OE,
    ONE,
    RC_SHIFT,
    SF,
    UE,
    ZERO,
    directed,
    from_bcd,
    from_float,
    from_integer,
    round_shift,
    to_bcd,
    to_float,
    to_integer,
)
from isa.operands import Location, Operand
from isa.semantics.helpers import signed
from isa.semantics.registry import insn
from isa.semantics.x87 import (
    BEFORE,
    UNDERFLOWN,
    accept,
    begin,
    empty,
    locate,
    locate_memory,
    pop,
    push,
    read,
    stack_register,
    write,
)

if TYPE_CHECKING:
    from isa.cpu import Cpu

# A store to memory is not done for these, unmasked
STORE_FATAL = BEFORE | OE | UE

# Constants as (biased exponent, 128 bits of significand); rounding control decides about the 64 bits kept
LOG2_10 = (0x4000, 0xD49A_784B_CD1B_8AFE_492B_F6FF_4DAF_DB4C)
LOG2_E = (0x3FFF, 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E88)
PI = (0x4000, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1)
LOG10_2 = (0x3FFD, 0x9A20_9A84_FBCF_F798_8F89_59AC_0B7C_9178)
LN_2 = (0x3FFE, 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF)


# ---- loads --------------------------------------------------------------------------------------------


@insn("FLD_STI", inline=False, located=True)
def fld_register(cpu: Cpu, where: Location, src: Operand) -> None:
    """temp := ST(i); TOP := TOP - 1; ST(0) := temp"""
    begin(cpu)
    locate(cpu, where)
    i = stack_register(src)
    if empty(cpu, i):
        push(cpu, INDEFINITE, UNDERFLOWN)
    else:
        push(cpu, read(cpu, i))


@insn("FLD_M32FP", "FLD_M64FP", inline=False, located=True)
def fld_float(cpu: Cpu, where: Location, src: Operand) -> None:
    """TOP := TOP - 1; ST(0) := ConvertToDoubleExtendedPrecisionFP(SRC)"""
    begin(cpu)
    pattern = src.value
    locate_memory(cpu, where, src)
    value, flags = from_float(pattern, src.bits)
    push(cpu, value | 1 << 62 if flags & IE else value, flags)


@insn("FLD_M80FP", inline=False, located=True)
def fld_extended(cpu: Cpu, where: Location, src: Operand) -> None:
    """TOP := TOP - 1; ST(0) := SRC"""
    begin(cpu)
    value = src.value
    locate_memory(cpu, where, src)
    push(cpu, value)


@insn("FILD", inline=False, located=True)
def fild(cpu: Cpu, where: Location, src: Operand) -> None:
    """TOP := TOP - 1; ST(0) := ConvertToDoubleExtendedPrecisionFP(integer SRC)"""
    begin(cpu)
    value = signed(src.value, src.bits)
    locate_memory(cpu, where, src)
    push(cpu, from_integer(value))


@insn("FBLD", inline=False, located=True)
def fbld(cpu: Cpu, where: Location, src: Operand) -> None:
    """TOP := TOP - 1; ST(0) := ConvertToDoubleExtendedPrecisionFP(packed decimal SRC)"""
    begin(cpu)
    packed = src.value
    locate_memory(cpu, where, src)
    push(cpu, from_bcd(packed))


def push_constant(cpu: Cpu, where: Location, constant: tuple[int, int]) -> None:
    """Push a constant, rounded to 64 bits; the inexact result is not reported."""
    begin(cpu)
    locate(cpu, where)
    exponent, significand = constant
    away, nearest = directed(cpu.fpu.control, 0)
    push(cpu, exponent << 64 | round_shift(significand, 64, away, nearest)[0])


@insn("FLD1", inline=False, located=True)
def fld1(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := +1.0"""
    begin(cpu)
    locate(cpu, where)
    push(cpu, ONE)


@insn("FLDZ", inline=False, located=True)
def fldz(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := +0.0"""
    begin(cpu)
    locate(cpu, where)
    push(cpu, ZERO)


@insn("FLDL2T", inline=False, located=True)
def fldl2t(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := log2(10)"""
    push_constant(cpu, where, LOG2_10)


@insn("FLDL2E", inline=False, located=True)
def fldl2e(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := log2(e)"""
    push_constant(cpu, where, LOG2_E)


@insn("FLDPI", inline=False, located=True)
def fldpi(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := pi"""
    push_constant(cpu, where, PI)


@insn("FLDLG2", inline=False, located=True)
def fldlg2(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := log10(2)"""
    push_constant(cpu, where, LOG10_2)


@insn("FLDLN2", inline=False, located=True)
def fldln2(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; ST(0) := ln(2)"""
    push_constant(cpu, where, LN_2)


# ---- stores -------------------------------------------------------------------------------------------


def store_register(cpu: Cpu, where: Location, dst: Operand) -> bool:
    """ST(i) := ST(0). False where an unmasked exception prevents it."""
    begin(cpu)
    locate(cpu, where)
    if empty(cpu, 0):
        value, flags = INDEFINITE, UNDERFLOWN
    else:
        value, flags = read(cpu, 0), 0
    stored = accept(cpu, flags)
    if stored:
        write(cpu, stack_register(dst), value)
    return stored


def store_memory(cpu: Cpu, where: Location, dst: Operand, value: int, flags: int) -> bool:
    """DEST := value, unless one of its exceptions is unmasked: then only the flags are set, and False."""
    unmasked = flags & ~cpu.fpu.control & STORE_FATAL
    if unmasked:
        flags &= unmasked | BEFORE | SF  # nothing was rounded
    else:
        dst.value = value
    locate_memory(cpu, where, dst)
    accept(cpu, flags)
    return not unmasked


def store_float(cpu: Cpu, where: Location, dst: Operand) -> bool:
    """DEST := ST(0) rounded to a 32- or 64-bit float."""
    begin(cpu)
    if empty(cpu, 0):
        value, flags = to_float(INDEFINITE, dst.bits, 0)[0], UNDERFLOWN
    else:
        value, flags = to_float(read(cpu, 0), dst.bits, cpu.fpu.control)
    return store_memory(cpu, where, dst, value, flags)


def store_integer(cpu: Cpu, where: Location, dst: Operand, control: int) -> bool:
    """DEST := ST(0) rounded to a signed integer."""
    begin(cpu)
    if empty(cpu, 0):
        value, flags = 1 << dst.bits - 1, UNDERFLOWN
    else:
        value, flags = to_integer(read(cpu, 0), dst.bits, control)
    return store_memory(cpu, where, dst, value, flags)


@insn("FST_STI", inline=False, located=True)
def fst_register(cpu: Cpu, where: Location, dst: Operand) -> None:
    """ST(i) := ST(0)"""
    store_register(cpu, where, dst)


@insn("FSTP_STI", "FSTP_STI_DFD0", "FSTP_STI_DFD8", inline=False, located=True)
def fstp_register(cpu: Cpu, where: Location, dst: Operand) -> None:
    """ST(i) := ST(0); pop"""
    if store_register(cpu, where, dst):
        pop(cpu)


@insn("FSTPNCE", inline=False, located=True)
def fstpnce(cpu: Cpu, where: Location, dst: Operand) -> None:
    """IF ST(0) not empty THEN ST(i) := ST(0); pop; never a stack fault"""
    begin(cpu)
    locate(cpu, where)
    if not empty(cpu, 0):
        write(cpu, stack_register(dst), read(cpu, 0))
    pop(cpu)
    cpu.fpu.status &= ~C1


@insn("FST", inline=False, located=True)
def fst(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := ConvertToReal(ST(0))"""
    store_float(cpu, where, dst)


@insn("FSTP", inline=False, located=True)
def fstp(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := ConvertToReal(ST(0)); pop"""
    if store_float(cpu, where, dst):
        pop(cpu)


@insn("FSTP_M80FP", inline=False, located=True)
def fstp_extended(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := ST(0); pop"""
    begin(cpu)
    if empty(cpu, 0):
        value, flags = INDEFINITE, UNDERFLOWN
    else:
        value, flags = read(cpu, 0), 0
    if store_memory(cpu, where, dst, value, flags):
        pop(cpu)


@insn("FIST", inline=False, located=True)
def fist(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := Integer(ST(0))"""
    store_integer(cpu, where, dst, cpu.fpu.control)


@insn("FISTP", inline=False, located=True)
def fistp(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := Integer(ST(0)); pop"""
    if store_integer(cpu, where, dst, cpu.fpu.control):
        pop(cpu)


@insn("FISTTP", inline=False, located=True)
def fisttp(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := Truncate(ST(0)); pop"""
    if store_integer(cpu, where, dst, CHOP << RC_SHIFT):
        pop(cpu)


@insn("FBSTP", inline=False, located=True)
def fbstp(cpu: Cpu, where: Location, dst: Operand) -> None:
    """DEST := BCD(ST(0)); pop"""
    begin(cpu)
    if empty(cpu, 0):
        value, flags = to_bcd(INDEFINITE, 0)[0], UNDERFLOWN
    else:
        value, flags = to_bcd(read(cpu, 0), cpu.fpu.control)
    if store_memory(cpu, where, dst, value, flags):
        pop(cpu)


# ---- registers ----------------------------------------------------------------------------------------


@insn("FXCH", inline=False, located=True)
def fxch(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """temp := ST(0); ST(0) := ST(i); ST(i) := temp"""
    begin(cpu)
    locate(cpu, where)
    i = stack_register(src)
    first = INDEFINITE if empty(cpu, 0) else read(cpu, 0)
    second = INDEFINITE if empty(cpu, i) else read(cpu, i)
    if accept(cpu, UNDERFLOWN if empty(cpu, 0) or empty(cpu, i) else 0):
        write(cpu, 0, second)
        write(cpu, i, first)


def move_if(cpu: Cpu, where: Location, condition: object, src: Operand) -> None:
    """IF condition THEN ST(0) := ST(i). An empty register is invalid whatever the condition."""
    begin(cpu)
    locate(cpu, where)
    i = stack_register(src)
    if empty(cpu, 0) or empty(cpu, i):
        if accept(cpu, UNDERFLOWN):
            write(cpu, 0, INDEFINITE)
    elif condition:  # C1 stays
        write(cpu, 0, read(cpu, i))


@insn("FCMOVB", inline=False, located=True)
def fcmovb(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF CF = 1 THEN ST(0) := ST(i)"""
    move_if(cpu, where, cpu.cf, src)


@insn("FCMOVE", inline=False, located=True)
def fcmove(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF ZF = 1 THEN ST(0) := ST(i)"""
    move_if(cpu, where, cpu.zf, src)


@insn("FCMOVBE", inline=False, located=True)
def fcmovbe(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF CF = 1 or ZF = 1 THEN ST(0) := ST(i)"""
    move_if(cpu, where, cpu.cf or cpu.zf, src)


@insn("FCMOVU", inline=False, located=True)
def fcmovu(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF PF = 1 THEN ST(0) := ST(i)"""
    move_if(cpu, where, cpu.pf, src)


@insn("FCMOVNB", inline=False, located=True)
def fcmovnb(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF CF = 0 THEN ST(0) := ST(i)"""
    move_if(cpu, where, not cpu.cf, src)


@insn("FCMOVNE", inline=False, located=True)
def fcmovne(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF ZF = 0 THEN ST(0) := ST(i)"""
    move_if(cpu, where, not cpu.zf, src)


@insn("FCMOVNBE", inline=False, located=True)
def fcmovnbe(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF CF = 0 and ZF = 0 THEN ST(0) := ST(i)"""
    move_if(cpu, where, not (cpu.cf or cpu.zf), src)


@insn("FCMOVNU", inline=False, located=True)
def fcmovnu(cpu: Cpu, where: Location, dst: Operand, src: Operand) -> None:
    """IF PF = 0 THEN ST(0) := ST(i)"""
    move_if(cpu, where, not cpu.pf, src)


@insn("FFREE", inline=False, located=True)
def ffree(cpu: Cpu, where: Location, dst: Operand) -> None:
    """TAG(i) := 11B"""
    begin(cpu)
    locate(cpu, where)
    fpu = cpu.fpu
    fpu.tags[fpu.top + stack_register(dst) & 7] = 1
    fpu.status &= ~C1


@insn("FFREEP", inline=False, located=True)
def ffreep(cpu: Cpu, where: Location, dst: Operand) -> None:
    """TAG(i) := 11B; pop"""
    begin(cpu)
    locate(cpu, where)
    fpu = cpu.fpu
    fpu.tags[fpu.top + stack_register(dst) & 7] = 1
    fpu.status &= ~C1
    pop(cpu)


@insn("FINCSTP", inline=False, located=True)
def fincstp(cpu: Cpu, where: Location) -> None:
    """TOP := TOP + 1; no tag changes"""
    begin(cpu)
    locate(cpu, where)
    fpu = cpu.fpu
    fpu.top = fpu.top + 1 & 7
    fpu.status &= ~C1


@insn("FDECSTP", inline=False, located=True)
def fdecstp(cpu: Cpu, where: Location) -> None:
    """TOP := TOP - 1; no tag changes"""
    begin(cpu)
    locate(cpu, where)
    fpu = cpu.fpu
    fpu.top = fpu.top - 1 & 7
    fpu.status &= ~C1


@insn("FNOP", inline=False, located=True)
def fnop(cpu: Cpu, where: Location) -> None:
    """Nothing but the check for a pending exception"""
    begin(cpu)
    locate(cpu, where)
