"""Shifts and rotates, double shifts and the BMI2 forms without flags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.helpers import set_szp, signed
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu

# Counts are taken modulo 32, or modulo 64 for 64-bit operands; a count of zero changes no flag. OF is defined
# for a count of 1 only and AF never. Here, as on AMD's Zen, the formula for 1 serves every count, and shifts
# set AF.


@insn("SHL", "SAL")
def shl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST << COUNT; CF := last bit shifted out"""
    count = src.value & (63 if dst.bits == 64 else 31)
    a = dst.value
    wide = a << count
    result = wide & dst.mask
    dst.value = result
    if count:
        cpu.cf = wide >> dst.bits & 1
        cpu.of = result >> (dst.bits - 1) ^ cpu.cf
        cpu.af = 1
        set_szp(cpu, result, dst)


@insn("SHR")
def shr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST >> COUNT (unsigned); CF := last bit shifted out"""
    count = src.value & (63 if dst.bits == 64 else 31)
    a = dst.value
    result = a >> count
    dst.value = result
    if count:
        cpu.cf = a >> (count - 1) & 1
        cpu.of = a >> (dst.bits - 1) if count == 1 else 0
        cpu.af = 1
        set_szp(cpu, result, dst)


@insn("SAR")
def sar(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST >> COUNT (signed); CF := last bit shifted out"""
    count = src.value & (63 if dst.bits == 64 else 31)
    a = signed(dst.value, dst.bits)
    result = a >> count & dst.mask
    dst.value = result
    if count:
        cpu.cf = a >> (count - 1) & 1
        cpu.of = 0
        cpu.af = 1
        set_szp(cpu, result, dst)


@insn("ROL")
def rol(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST rotated left by COUNT MOD size; CF := LSB(DEST)"""
    count = src.value & (63 if dst.bits == 64 else 31)
    turn = count & (dst.bits - 1)
    a = dst.value
    result = (a << turn | a >> (dst.bits - turn)) & dst.mask
    dst.value = result
    if count:
        cpu.cf = result & 1
        cpu.of = result >> (dst.bits - 1) ^ cpu.cf


@insn("ROR")
def ror(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST rotated right by COUNT MOD size; CF := MSB(DEST)"""
    count = src.value & (63 if dst.bits == 64 else 31)
    turn = count & (dst.bits - 1)
    a = dst.value
    result = (a >> turn | a << (dst.bits - turn)) & dst.mask
    dst.value = result
    if count:
        cpu.cf = result >> (dst.bits - 1)
        cpu.of = cpu.cf ^ result >> (dst.bits - 2) & 1


@insn("RCL")
def rcl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF:DEST rotated left by COUNT MOD (size + 1)"""
    count = src.value & (63 if dst.bits == 64 else 31)
    turn = count % (dst.bits + 1)
    wide = cpu.cf << dst.bits | dst.value
    turned = wide << turn | wide >> (dst.bits + 1 - turn)
    result = turned & dst.mask
    dst.value = result
    if count:
        cpu.cf = turned >> dst.bits & 1
        cpu.of = result >> (dst.bits - 1) ^ cpu.cf


@insn("RCR")
def rcr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF:DEST rotated right by COUNT MOD (size + 1)"""
    count = src.value & (63 if dst.bits == 64 else 31)
    turn = count % (dst.bits + 1)
    wide = cpu.cf << dst.bits | dst.value
    turned = wide >> turn | wide << (dst.bits + 1 - turn)
    result = turned & dst.mask
    dst.value = result
    if count:
        cpu.cf = turned >> dst.bits & 1
        cpu.of = (result >> (dst.bits - 1) ^ result >> (dst.bits - 2)) & 1


# A 16-bit double shift by more than 16 is undefined altogether: AMD's Zen shifts SRC in twice, and CF and OF
# come from DEST alone, which is gone by then.


@insn("SHLD")
def shld(cpu: Cpu, dst: Operand, src: Operand, amount: Operand) -> None:
    """DEST := upper half of DEST:SRC << COUNT; CF := last bit shifted out"""
    count = amount.value & (63 if dst.bits == 64 else 31)
    b = src.value
    shifted = dst.value << count
    result = (shifted | (b << dst.bits | b) << count >> 2 * dst.bits) & dst.mask
    dst.value = result
    if count:
        cpu.cf = shifted >> dst.bits & 1
        cpu.of = shifted >> (dst.bits - 1) & 1 ^ cpu.cf
        cpu.af = 1
        set_szp(cpu, result, dst)


@insn("SHRD")
def shrd(cpu: Cpu, dst: Operand, src: Operand, amount: Operand) -> None:
    """DEST := lower half of SRC:DEST >> COUNT; CF := last bit shifted out"""
    count = amount.value & (63 if dst.bits == 64 else 31)
    a = dst.value
    b = src.value
    result = ((b << dst.bits | b) << dst.bits | a) >> count & dst.mask
    dst.value = result
    if count:
        cpu.cf = a >> (count - 1) & 1
        cpu.of = (result >> (dst.bits - 1) ^ result >> (dst.bits - 2)) & 1
        cpu.af = 1
        set_szp(cpu, result, dst)


@insn("RORX")
def rorx(cpu: Cpu, dst: Operand, src: Operand, amount: Operand) -> None:
    """DEST := SRC rotated right by COUNT; no flag"""
    count = amount.value & (dst.bits - 1)
    a = src.value
    dst.value = (a >> count | a << (dst.bits - count)) & dst.mask


@insn("SARX")
def sarx(cpu: Cpu, dst: Operand, src: Operand, amount: Operand) -> None:
    """DEST := SRC >> COUNT (signed); no flag"""
    dst.value = signed(src.value, src.bits) >> (amount.value & (dst.bits - 1)) & dst.mask


@insn("SHLX")
def shlx(cpu: Cpu, dst: Operand, src: Operand, amount: Operand) -> None:
    """DEST := SRC << COUNT; no flag"""
    dst.value = src.value << (amount.value & (dst.bits - 1)) & dst.mask


@insn("SHRX")
def shrx(cpu: Cpu, dst: Operand, src: Operand, amount: Operand) -> None:
    """DEST := SRC >> COUNT (unsigned); no flag"""
    dst.value = src.value >> (amount.value & (dst.bits - 1))
