"""Packed and unpacked decimal adjustment. None of these exists in 64-bit mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import DivideError
from isa.operands import Operand
from isa.semantics.helpers import PARITY
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu


def set_al(cpu: Cpu, al: int) -> None:
    """AL, and SF, ZF, PF from it."""
    cpu.rax = cpu.rax & ~0xFF | al
    cpu.sf = al >> 7
    cpu.zf = not al
    cpu.pf = PARITY[al]


@insn("DAA")
def daa(cpu: Cpu) -> None:
    """Decimal adjust AL after addition"""
    al = cpu.rax & 0xFF
    low = (al & 15) > 9 or cpu.af
    high = al > 0x99 or cpu.cf
    cpu.af = 1 if low else 0
    cpu.cf = 1 if high else 0
    set_al(cpu, al + (6 if low else 0) + (0x60 if high else 0) & 0xFF)


@insn("DAS")
def das(cpu: Cpu) -> None:
    """Decimal adjust AL after subtraction"""
    al = cpu.rax & 0xFF
    low = (al & 15) > 9 or cpu.af
    high = al > 0x99 or cpu.cf
    cpu.af = 1 if low else 0
    cpu.cf = 1 if high or (low and al < 6) else 0
    set_al(cpu, al - (6 if low else 0) - (0x60 if high else 0) & 0xFF)


@insn("AAA")
def aaa(cpu: Cpu) -> None:
    """IF AL[3:0] > 9 or AF THEN AX := AX + 106H; AF, CF := 1 ELSE AF, CF := 0; AL := AL AND 0FH"""
    ax = cpu.rax & 0xFFFF
    if (ax & 15) > 9 or cpu.af:
        ax = ax + 0x106 & 0xFFFF
        cpu.af = 1
        cpu.cf = 1
    else:
        cpu.af = 0
        cpu.cf = 0
    cpu.rax = cpu.rax & ~0xFFFF | ax & 0xFF0F


@insn("AAS")
def aas(cpu: Cpu) -> None:
    """IF AL[3:0] > 9 or AF THEN AX := AX - 106H; AF, CF := 1 ELSE AF, CF := 0; AL := AL AND 0FH"""
    ax = cpu.rax & 0xFFFF
    if (ax & 15) > 9 or cpu.af:
        ax = ax - 0x106 & 0xFFFF
        cpu.af = 1
        cpu.cf = 1
    else:
        cpu.af = 0
        cpu.cf = 0
    cpu.rax = cpu.rax & ~0xFFFF | ax & 0xFF0F


@insn("AAM")
def aam(cpu: Cpu, base: Operand) -> None:
    """AH := AL / imm8; AL := AL MOD imm8"""
    al = cpu.rax & 0xFF
    if base.value == 0:
        raise DivideError("AAM with base 0")
    quotient = al // base.value
    cpu.rax = cpu.rax & ~0xFFFF | quotient << 8
    set_al(cpu, al - quotient * base.value)


@insn("AAD")
def aad(cpu: Cpu, base: Operand) -> None:
    """AL := AL + AH * imm8; AH := 0"""
    ax = cpu.rax & 0xFFFF
    cpu.rax = cpu.rax & ~0xFFFF
    set_al(cpu, ax + (ax >> 8) * base.value & 0xFF)
