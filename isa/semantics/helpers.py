"""What several instructions share: sign, flag formulas, stack words. No instruction is defined here.

Helpers follow the language of instructions (see `registry`). `cpu.cf` is always 0, 1, False or True, because
ADC, SBB, RCL and RCR count with it; the other flags need only be true or false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Operand, Width
from isa.state import M16

if TYPE_CHECKING:
    from isa.cpu import Cpu

# 1 where a byte has an even number of ones: PF
PARITY = bytes(1 - byte.bit_count() % 2 for byte in range(256))


def set_szp(cpu: Cpu, result: int, width: Operand | Width) -> None:
    """SF, ZF, PF from a result of the operand's width."""
    cpu.sf = result >> (width.bits - 1)
    cpu.zf = result == 0
    cpu.pf = PARITY[result & 0xFF]


def compare(cpu: Cpu, a: int, b: int, width: Operand | Width) -> None:
    """All six flags of a - b."""
    result = a - b & width.mask
    cpu.cf = a < b
    cpu.of = ((a ^ b) & (a ^ result)) >> (width.bits - 1)
    cpu.af = (a ^ b ^ result) >> 4 & 1
    set_szp(cpu, result, width)


def signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned `bits`-wide value."""
    return (value ^ 1 << (bits - 1)) - (1 << (bits - 1))


def low_part(register: int, value: int, mask: int) -> int:
    """A 64-bit register after a write of its `mask`-wide low part: a 32-bit write clears the upper half."""
    return value if mask > M16 else register & ~mask | value


def advanced(register: int, step: int, mask: int) -> int:
    """A pointer register moved by `step` within its address size; a 32-bit one clears the upper half."""
    return low_part(register, register + step & mask, mask)


def set_wide(cpu: Cpu, width: Operand, low: int, high: int) -> None:
    """high:low to AX (bytes), DX:AX, EDX:EAX or RDX:RAX."""
    if width.bits == 8:
        cpu.rax = cpu.rax & ~0xFFFF | high << 8 | low
    else:
        cpu.rax = low_part(cpu.rax, low, width.mask)
        cpu.rdx = low_part(cpu.rdx, high, width.mask)


def push_value(cpu: Cpu, size: int, value: int) -> None:
    """RSP := RSP - size; SS:[RSP] := value, with the stack's address size."""
    top = cpu.rsp - size & cpu.stack_mask
    cpu.write_data(cpu.ss, top, size, value)
    cpu.rsp = cpu.rsp & ~cpu.stack_mask | top


def stack_value(cpu: Cpu, size: int) -> int:
    """SS:[RSP]; RSP stays until `drop` so that a later fault needs no undo."""
    return cpu.read_data(cpu.ss, cpu.rsp & cpu.stack_mask, size)


def drop(cpu: Cpu, size: int) -> None:
    """RSP := RSP + size, with the stack's address size."""
    cpu.rsp = cpu.rsp & ~cpu.stack_mask | cpu.rsp + size & cpu.stack_mask
