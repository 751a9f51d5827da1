"""Bitwise logic: AND OR XOR NOT TEST ANDN. Single bits are in `bits`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.helpers import PARITY, set_szp
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu

# AF is undefined after these; Intel and AMD CPUs clear it.


@insn("AND")
def and_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST AND SRC"""
    result = dst.value & src.value
    dst.value = result
    cpu.cf = 0
    cpu.of = 0
    cpu.af = 0
    cpu.sf = result >> (dst.bits - 1)
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("OR")
def or_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST OR SRC"""
    result = dst.value | src.value
    dst.value = result
    cpu.cf = 0
    cpu.of = 0
    cpu.af = 0
    cpu.sf = result >> (dst.bits - 1)
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("XOR")
def xor(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST XOR SRC"""
    result = dst.value ^ src.value
    dst.value = result
    cpu.cf = 0
    cpu.of = 0
    cpu.af = 0
    cpu.sf = result >> (dst.bits - 1)
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("TEST")
def test(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """flags of SRC1 AND SRC2"""
    result = dst.value & src.value
    cpu.cf = 0
    cpu.of = 0
    cpu.af = 0
    cpu.sf = result >> (dst.bits - 1)
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("NOT")
def not_(cpu: Cpu, dst: Operand) -> None:
    """DEST := NOT DEST; no flag"""
    dst.value = dst.value ^ dst.mask


@insn("ANDN")
def andn(cpu: Cpu, dst: Operand, first: Operand, second: Operand) -> None:
    """DEST := (NOT SRC1) AND SRC2"""
    result = ~first.value & second.value
    dst.value = result
    # AF and PF are undefined; these are AMD's.
    cpu.cf = 0
    cpu.of = 0
    cpu.af = 0
    set_szp(cpu, result, dst)
