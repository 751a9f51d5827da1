"""Integer multiplication and division.

Multiplication leaves SF, ZF, AF and PF undefined; AMD's CPUs do not change them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import DivideError
from isa.operands import Operand
from isa.semantics.helpers import set_wide, signed
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn("MUL")
def mul(cpu: Cpu, src: Operand) -> None:
    """AX, DX:AX, EDX:EAX or RDX:RAX := accumulator * SRC; CF, OF := upper half != 0"""
    product = (cpu.rax & src.mask) * src.value
    high = product >> src.bits
    set_wide(cpu, src, product & src.mask, high)
    cpu.cf = high != 0
    cpu.of = cpu.cf


@insn("IMUL_RM8", "IMUL_RM16", "IMUL_RM32", "IMUL_RM64")
def imul_wide(cpu: Cpu, src: Operand) -> None:
    """AX, DX:AX, EDX:EAX or RDX:RAX := accumulator * SRC (signed); CF, OF := lower half too small"""
    product = signed(cpu.rax & src.mask, src.bits) * signed(src.value, src.bits)
    low = product & src.mask
    set_wide(cpu, src, low, product >> src.bits & src.mask)
    cpu.cf = signed(low, src.bits) != product
    cpu.of = cpu.cf


@insn("IMUL_R16_RM16", "IMUL_R32_RM32", "IMUL_R64_RM64")
def imul(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST * SRC (signed, truncated)"""
    imul_into(cpu, dst, dst, src)


@insn("IMUL")
def imul_immediate(cpu: Cpu, dst: Operand, first: Operand, second: Operand) -> None:
    """DEST := SRC1 * SRC2 (signed, truncated)"""
    imul_into(cpu, dst, first, second)


def imul_into(cpu: Cpu, dst: Operand, first: Operand, second: Operand) -> None:
    """dst := first * second; CF, OF where the product does not fit."""
    a = first.value
    b = second.value
    result = a * b & dst.mask  # the low half is the same for signed and unsigned numbers
    dst.value = result
    cpu.cf = signed(result, dst.bits) != signed(a, dst.bits) * signed(b, dst.bits)
    cpu.of = cpu.cf


@insn("MULX")
def mulx(cpu: Cpu, high: Operand, low: Operand, src: Operand) -> None:
    """DEST1:DEST2 := RDX * SRC (unsigned); no flag"""
    product = (cpu.rdx & src.mask) * src.value
    low.value = product & src.mask
    high.value = product >> src.bits  # last: where both are one register the upper half stays


def set_divided(cpu: Cpu) -> None:
    """Every flag is undefined after a division; AMD's Zen leaves CF and OF and sets the others so."""
    cpu.pf = 0
    cpu.af = 1
    cpu.zf = 0
    cpu.sf = 0


@insn("DIV")
def div(cpu: Cpu, src: Operand) -> None:
    """accumulator := wide accumulator / SRC; remainder to AH or rDX"""
    divisor = src.value
    if src.bits == 8:
        dividend = cpu.rax & 0xFFFF
    else:
        dividend = (cpu.rdx & src.mask) << src.bits | cpu.rax & src.mask
    if divisor == 0:
        raise DivideError("DIV by zero")
    quotient = dividend // divisor
    if quotient > src.mask:
        raise DivideError(f"DIV quotient {quotient:#x} does not fit {src.bits} bits")
    set_wide(cpu, src, quotient, dividend - quotient * divisor)
    set_divided(cpu)


@insn("IDIV")
def idiv(cpu: Cpu, src: Operand) -> None:
    """accumulator := wide accumulator / SRC (signed, towards zero); remainder to AH or rDX"""
    divisor = signed(src.value, src.bits)
    if src.bits == 8:
        dividend = signed(cpu.rax & 0xFFFF, 16)
    else:
        dividend = signed((cpu.rdx & src.mask) << src.bits | cpu.rax & src.mask, 2 * src.bits)
    if divisor == 0:
        raise DivideError("IDIV by zero")
    size = abs(dividend) // abs(divisor)
    quotient = size if (dividend < 0) == (divisor < 0) else -size
    if quotient != signed(quotient & src.mask, src.bits):
        raise DivideError(f"IDIV quotient {quotient:#x} does not fit {src.bits} bits")
    set_wide(cpu, src, quotient & src.mask, dividend - quotient * divisor & src.mask)
    set_divided(cpu)
