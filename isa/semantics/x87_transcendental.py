"""x87 transcendental instructions. The functions themselves are in `isa.transcendental`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from isa.extended import C1, C2, INDEFINITE, ONE, Operation, Result, is_nan
from isa.operands import Location
from isa.semantics.registry import insn
from isa.semantics.x87 import OVERFLOWN, UNDERFLOWN, accept, begin, empty, locate, pop, read, write
from isa.transcendental import (
    arc_tangent,
    cosine,
    in_range,
    power_minus_one,
    sine,
    tangent,
    times_log2,
    times_log2_plus_one,
)

if TYPE_CHECKING:
    from isa.cpu import Cpu

Function = Callable[[int, int], Result]


def trigonometric(cpu: Cpu, where: Location, function: Function, second: Function | None = None) -> None:
    """ST(0) := function(ST(0)); with `second`, push second(ST(0)). Out of range: C2 := 1 and nothing else."""
    begin(cpu)
    locate(cpu, where)
    fpu = cpu.fpu
    fpu.status &= ~(C1 | C2)
    value, control = read(cpu, 0), fpu.control
    result = pushed = INDEFINITE
    if empty(cpu, 0):
        flags = UNDERFLOWN
    elif second is not None and not empty(cpu, 7):
        flags = OVERFLOWN
    elif in_range(value):
        result, flags = function(value, control)
        if second is not None:
            pushed, more = second(value, control)
            flags |= more
    else:
        fpu.status |= C2
        return
    if accept(cpu, flags):
        write(cpu, 0, result)
        if second is not None:
            fpu.top = fpu.top - 1 & 7
            write(cpu, 0, pushed)


def function_of_two(cpu: Cpu, where: Location, function: Operation) -> None:
    """ST(1) := function(ST(1), ST(0)); pop"""
    begin(cpu)
    locate(cpu, where)
    if empty(cpu, 0) or empty(cpu, 1):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        result, flags = function(read(cpu, 1), read(cpu, 0), cpu.fpu.control)
    if accept(cpu, flags):
        write(cpu, 1, result)
        pop(cpu)


def one_or_nan(a: int, control: int) -> Result:
    """What FPTAN pushes: 1.0, or the NaN that the tangent is."""
    result, _ = tangent(a, control)
    return (result if is_nan(result) else ONE), 0


@insn("FSIN", inline=False, located=True)
def fsin(cpu: Cpu, where: Location) -> None:
    """ST(0) := fsin(ST(0)); C2 := 1 instead if |ST(0)| >= 2**63"""
    trigonometric(cpu, where, sine)


@insn("FCOS", inline=False, located=True)
def fcos(cpu: Cpu, where: Location) -> None:
    """ST(0) := fcosine(ST(0)); C2 := 1 instead if |ST(0)| >= 2**63"""
    trigonometric(cpu, where, cosine)


@insn("FSINCOS", inline=False, located=True)
def fsincos(cpu: Cpu, where: Location) -> None:
    """TEMP := fcosine(ST(0)); ST(0) := fsin(ST(0)); TOP := TOP - 1; ST(0) := TEMP; C2 := 1 if out of range"""
    trigonometric(cpu, where, sine, cosine)


@insn("FPTAN", inline=False, located=True)
def fptan(cpu: Cpu, where: Location) -> None:
    """ST(0) := fptan(ST(0)); TOP := TOP - 1; ST(0) := 1.0; C2 := 1 instead if out of range"""
    trigonometric(cpu, where, tangent, one_or_nan)


@insn("FPATAN", inline=False, located=True)
def fpatan(cpu: Cpu, where: Location) -> None:
    """ST(1) := fpatan(ST(1) / ST(0)); pop"""
    function_of_two(cpu, where, arc_tangent)


@insn("F2XM1", inline=False, located=True)
def f2xm1(cpu: Cpu, where: Location) -> None:
    """ST(0) := 2**ST(0) - 1"""
    begin(cpu)
    locate(cpu, where)
    if empty(cpu, 0):
        result, flags = INDEFINITE, UNDERFLOWN
    else:
        result, flags = power_minus_one(read(cpu, 0), cpu.fpu.control)
    if accept(cpu, flags):
        write(cpu, 0, result)


@insn("FYL2X", inline=False, located=True)
def fyl2x(cpu: Cpu, where: Location) -> None:
    """ST(1) := ST(1) * log2(ST(0)); pop"""
    function_of_two(cpu, where, times_log2)


@insn("FYL2XP1", inline=False, located=True)
def fyl2xp1(cpu: Cpu, where: Location) -> None:
    """ST(1) := ST(1) * log2(ST(0) + 1.0); pop"""
    function_of_two(cpu, where, times_log2_plus_one)
