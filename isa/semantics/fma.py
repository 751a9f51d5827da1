"""FMA and F16C: fused multiply-add in all its forms, half precision. The arithmetic is in `isa.floats`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from isa.floats import BINARY16, BINARY32, BINARY64, FTZ, Binary, Result
from isa.operands import Memory, Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import insn
from isa.semantics.sse_float import each_of, report, rounding

if TYPE_CHECKING:
    from isa.cpu import Cpu

# ---- fused multiply-add ----------------------------------------------------------------------------------

# Sign of the product and of the addend: in even lanes, in odd lanes
OPERATIONS = {
    "VFMADD": ((0, 0), (0, 0)),
    "VFMSUB": ((0, 1), (0, 1)),
    "VFNMADD": ((1, 0), (1, 0)),
    "VFNMSUB": ((1, 1), (1, 1)),
    "VFMADDSUB": ((0, 1), (0, 0)),
    "VFMSUBADD": ((0, 0), (0, 1)),
}
ORDERS = {"132": (0, 2, 1), "213": (1, 0, 2), "231": (1, 2, 0)}  # operands: multiplicand, multiplier, addend
FORMATS = {"PS": (BINARY32, False), "PD": (BINARY64, False), "SS": (BINARY32, True), "SD": (BINARY64, True)}


class Fused(NamedTuple):
    """What a mnemonic says: VFMADD132PS, and so on."""

    signs: tuple[tuple[int, int], tuple[int, int]]
    order: tuple[int, int, int]
    format: Binary
    scalar: bool


FUSED = {
    operation + order + suffix: Fused(OPERATIONS[operation], ORDERS[order], *FORMATS[suffix])
    for operation, order, suffix in product(OPERATIONS, ORDERS, FORMATS)
    if suffix[0] == "P" or OPERATIONS[operation][0] == OPERATIONS[operation][1]
}


@insn(*FUSED, named=True, inline=False, called=True)
def fused(cpu: Cpu, mnemonic: str, dst: Operand, second: Operand, third: Operand) -> None:
    """DEST[i] := +-(A[i] * B[i]) +- C[i], rounded once; 132, 213, 231: which operands A, B and C are"""
    check_sse(cpu)
    what = FUSED[mnemonic]
    form = what.format
    lane = form.sign | form.magnitude
    values = (dst.value, second.value, third.value)
    a, b, c = (values[n] for n in what.order)
    control = cpu.mxcsr
    bits = form.bits if what.scalar else dst.bits
    result = values[0] & ~lane if what.scalar else 0
    flags = 0
    for n, at in enumerate(range(0, bits, form.bits)):
        one, raised = multiply_add(
            form, what.signs[n & 1], a >> at & lane, b >> at & lane, c >> at & lane, control
        )
        result |= one << at
        flags |= raised
    if flags:
        report(cpu, flags)
    dst.value = result


def multiply_add(form: Binary, signs: tuple[int, int], a: int, b: int, c: int, control: int) -> Result:
    """+-(a * b) +- c; the sign of a NaN stays."""
    if signs[0] and not form.is_nan(a):
        a ^= form.sign
    if signs[1] and not form.is_nan(c):
        c ^= form.sign
    return form.fma(a, b, c, control)


# ---- half precision --------------------------------------------------------------------------------------


def single_from_half(a: int, control: int) -> Result:
    """A half as a single: exact, and a denormal one is neither flushed nor reported."""
    result, flags = BINARY32.from_format(BINARY16, a, 0x1F80)
    return result, flags & 1


@insn("VCVTPH2PS")
def vcvtph2ps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """single i of DEST := half i of SRC"""
    check_sse(cpu)
    dst.value = each_of(cpu, single_from_half, src.value, 16, 32, dst.bits // 32)


def check_store(cpu: Cpu, dst: Memory) -> None:
    """Raise what a store to the operand would raise; store nothing."""
    linear = cpu.linear_address(dst.segment, dst.offset, dst.bytes, True)
    cpu.check_write(linear, dst.bytes, dst.segment is cpu.ss)


@insn("VCVTPS2PH", inline=False, called=True)
def vcvtps2ph(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """half i of DEST := single i of SRC, rounded by imm8[1:0] or, with imm8[2], MXCSR.RC"""
    check_sse(cpu)
    word = rounding(cpu, control.value) & ~FTZ

    def half_from_single(a: int, _: int) -> Result:
        return BINARY16.from_format(BINARY32, a, word)

    if dst.in_memory:  # a fault of the store comes before one of the arithmetic
        check_store(cpu, dst)  # type: ignore[arg-type]  # a Memory
    before = cpu.mxcsr
    halves = each_of(cpu, half_from_single, src.value, 32, 16, src.bits // 32)
    cpu.mxcsr, after = before, cpu.mxcsr
    dst.value = halves  # may leave as an exit: the flags are not committed yet
    cpu.mxcsr = after
