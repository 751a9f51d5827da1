"""Packed and unpacked decimal adjustment. None of these exists in 64-bit mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import DivideError
from isa.operands import Operand
from isa.semantics.helpers import PARITY
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu


# OF is undefined after all of these, and more flags after some. What the manual leaves open is AMD's Zen: the
# flags of the addition or subtraction inside.


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
    result = al + (6 if low else 0) + (0x60 if high else 0) & 0xFF
    cpu.af = 1 if low else 0
    cpu.cf = 1 if high else 0
    cpu.of = ~al & result & 0x80
    set_al(cpu, result)


@insn("DAS")
def das(cpu: Cpu) -> None:
    """Decimal adjust AL after subtraction"""
    al = cpu.rax & 0xFF
    low = (al & 15) > 9 or cpu.af
    high = al > 0x99 or cpu.cf
    result = al - (6 if low else 0) - (0x60 if high else 0) & 0xFF
    cpu.af = 1 if low else 0
    cpu.cf = 1 if high or (low and al < 6) else 0
    cpu.of = al & ~result & 0x80
    set_al(cpu, result)


@insn("AAA")
def aaa(cpu: Cpu) -> None:
    """IF AL[3:0] > 9 or AF THEN AX := AX + 106H; AF, CF := 1 ELSE AF, CF := 0; AL := AL AND 0FH"""
    ax = cpu.rax & 0xFFFF
    carry = 1 if (ax & 15) > 9 or cpu.af else 0
    total = ax + 0x106 * carry & 0xFFFF
    cpu.of = ~ax & total & 0x8000
    set_ascii(cpu, total, carry)


@insn("AAS")
def aas(cpu: Cpu) -> None:
    """IF AL[3:0] > 9 or AF THEN AX := AX - 106H; AF, CF := 1 ELSE AF, CF := 0; AL := AL AND 0FH"""
    ax = cpu.rax & 0xFFFF
    borrow = 1 if (ax & 15) > 9 or cpu.af else 0
    difference = ax - 0x106 * borrow & 0xFFFF
    cpu.of = ax & ~difference & 0x8000
    set_ascii(cpu, difference, borrow)


def set_ascii(cpu: Cpu, ax: int, carry: int) -> None:
    """AX with the upper half of AL cleared; AF and CF; the undefined SF, ZF and PF come from before that."""
    cpu.rax = cpu.rax & ~0xFFFF | ax & 0xFF0F
    cpu.af = carry
    cpu.cf = carry
    cpu.sf = ax >> 15
    cpu.zf = not ax
    cpu.pf = PARITY[ax & 0xFF]


@insn("AAM")
def aam(cpu: Cpu, base: Operand) -> None:
    """AH := AL / imm8; AL := AL MOD imm8"""
    al = cpu.rax & 0xFF
    if base.value == 0:
        raise DivideError("AAM with base 0")
    quotient = al // base.value
    cpu.rax = cpu.rax & ~0xFFFF | quotient << 8
    cpu.cf = 0
    cpu.of = 0
    cpu.af = 0
    set_al(cpu, al - quotient * base.value)


@insn("AAD")
def aad(cpu: Cpu, base: Operand) -> None:
    """AL := AL + AH * imm8; AH := 0"""
    al = cpu.rax & 0xFF
    tens = (cpu.rax >> 8 & 0xFF) * base.value & 0xFF
    total = al + tens
    result = total & 0xFF
    cpu.rax = cpu.rax & ~0xFFFF
    cpu.cf = total >> 8
    cpu.of = (al ^ result) & (tens ^ result) & 0x80
    cpu.af = (al ^ tens ^ result) & 16
    set_al(cpu, result)
