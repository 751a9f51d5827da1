"""What x87 instructions share: the register stack, exceptions, the last-instruction pointers. No instruction.

Source: SDM Vol. 1, "Programming with the x87 FPU". An exception that the control word masks gives its default
result; an unmasked one sets ES and B and is reported by the next waiting instruction. Invalid operation,
denormal operand and divide by zero leave the operands alone when unmasked; overflow, underflow and inexact
results do not keep a register from being written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from isa.extended import (
    C1,
    DE,
    EXCEPTIONS,
    IE,
    INDEFINITE,
    SF,
    ZE,
    Operation,
    from_float,
    from_integer,
    is_nan,
)
from isa.operands import Location, Memory, Operand
from isa.semantics.fpu_control import check_fpu, check_pending, update_summary
from isa.semantics.helpers import signed

if TYPE_CHECKING:
    from isa.cpu import Cpu

BEFORE = IE | DE | ZE  # found before the result is known
UNDERFLOWN = IE | SF  # the stack had nothing there
OVERFLOWN = IE | SF | C1  # the stack was full


def begin(cpu: Cpu) -> None:
    """#NM, then #MF of an earlier instruction: what every waiting x87 instruction checks first."""
    check_fpu(cpu)
    check_pending(cpu)


def locate(cpu: Cpu, where: Location) -> None:
    """FIP, FCS and FOP of an x87 instruction without a memory operand."""
    fpu = cpu.fpu
    fpu.ip = where.ip
    fpu.cs = cpu.cs.selector
    fpu.opcode = where.opcode


def locate_memory(cpu: Cpu, where: Location, operand: Operand) -> None:
    """FIP, FCS, FOP, FDP and FDS of an x87 instruction with a memory operand, after its last access."""
    fpu = cpu.fpu
    fpu.ip = where.ip
    fpu.cs = cpu.cs.selector
    fpu.opcode = where.opcode
    memory = cast("Memory", operand)
    fpu.dp = memory.offset
    fpu.ds = memory.segment.selector


def stack_register(operand: Operand) -> int:
    """i of an ST(i) operand."""
    number: int = operand.number  # type: ignore[attr-defined]  # STn
    return number


def empty(cpu: Cpu, i: int) -> int:
    """True where ST(i) is tagged empty."""
    fpu = cpu.fpu
    return fpu.tags[fpu.top + i & 7]


def read(cpu: Cpu, i: int) -> int:
    """ST(i), whatever its tag."""
    fpu = cpu.fpu
    return fpu.regs[fpu.top + i & 7]


def write(cpu: Cpu, i: int, value: int) -> None:
    """ST(i) := value, not empty."""
    fpu = cpu.fpu
    n = fpu.top + i & 7
    fpu.regs[n] = value
    fpu.tags[n] = 0


def pop(cpu: Cpu) -> None:
    """ST(0) becomes empty, TOP := TOP + 1."""
    fpu = cpu.fpu
    fpu.tags[fpu.top] = 1
    fpu.top = fpu.top + 1 & 7


def accept(cpu: Cpu, flags: int, fatal: int = BEFORE) -> bool:
    """Record exception flags and C1. False where an unmasked exception of `fatal` keeps the result back."""
    fpu = cpu.fpu
    unmasked = flags & ~fpu.control & fatal
    if unmasked & BEFORE:
        flags &= BEFORE | SF | (C1 if flags & SF else 0)
    fpu.status = fpu.status & ~C1 | flags
    if flags & EXCEPTIONS:
        update_summary(cpu)
    return not unmasked


def push(cpu: Cpu, value: int, flags: int = 0) -> None:
    """TOP := TOP - 1; ST(0) := value. A full stack is invalid: the default NaN, C1 = 1.

    An unmasked denormal operand is reported, but does not keep a load back.
    """
    fpu = cpu.fpu
    top = fpu.top - 1 & 7
    if not (fpu.tags[top] or flags & SF):
        value, flags = INDEFINITE, OVERFLOWN
    if accept(cpu, flags, IE):
        fpu.top = top
        fpu.regs[top] = value
        fpu.tags[top] = 0


def register_operation(cpu: Cpu, where: Location, operation: Operation, dst: int, src: int) -> bool:
    """ST(dst) := operation(ST(dst), ST(src)). False where an unmasked exception kept the result back."""
    locate(cpu, where)
    if empty(cpu, dst) or empty(cpu, src):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        result, flags = operation(read(cpu, dst), read(cpu, src), cpu.fpu.control)
    stored = accept(cpu, flags)
    if stored:
        write(cpu, dst, result)
    return stored


def memory_operation(cpu: Cpu, where: Location, operation: Operation, src: Operand) -> None:
    """ST(0) := operation(ST(0), SRC), SRC a 32- or 64-bit float."""
    pattern = src.value
    locate_memory(cpu, where, src)
    if empty(cpu, 0):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        value, source_flags = from_float(pattern, src.bits)
        result, flags = operation(read(cpu, 0), value, cpu.fpu.control)
        if source_flags & DE and not flags & (IE | ZE) and not is_nan(result):
            flags |= DE
    if accept(cpu, flags):
        write(cpu, 0, result)


def integer_operation(cpu: Cpu, where: Location, operation: Operation, src: Operand) -> None:
    """ST(0) := operation(ST(0), SRC), SRC a 16- or 32-bit integer."""
    value = from_integer(signed(src.value, src.bits))
    locate_memory(cpu, where, src)
    if empty(cpu, 0):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        result, flags = operation(read(cpu, 0), value, cpu.fpu.control)
    if accept(cpu, flags):
        write(cpu, 0, result)
