"""AVX2 gathers: loads of elements whose addresses are lanes of a register. AVX2 has no scatters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import Fault
from isa.operands import Operand, VectorIndexedMemory
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn(
    "VPGATHERDD", "VPGATHERDQ", "VPGATHERQD", "VPGATHERQQ",
    "VGATHERDPS", "VGATHERDPD", "VGATHERQPS", "VGATHERQPD", inline=False,
)  # fmt: skip
def gather(cpu: Cpu, dst: Operand, src: VectorIndexedMemory, mask: Operand) -> None:
    """DEST[i] := MASK[i] < 0 ? [BASE + INDEX[i] * SCALE + DISP] : DEST[i]; MASK := 0"""
    check_sse(cpu)
    width = src.bits
    lane = src.mask
    offsets = src.offsets()[: dst.bits // width]
    kept = (1 << width * len(offsets)) - 1  # four quadword indices fill half a register with doublewords
    result = dst.value & kept
    left = mask.value & kept
    for n, offset in enumerate(offsets):
        at = n * width
        if left >> at + width - 1 & 1:
            try:
                loaded = cpu.read_data(src.segment, offset, src.bytes)
            except Fault:
                # The elements below are done, and the mask says so: the instruction goes on from here
                keep_elements(cpu, dst, kept, result)
                keep_elements(cpu, mask, kept, left)
                raise
            result = result & ~(lane << at) | loaded << at
        left &= ~(lane << at)
    dst.value = result
    mask.value = 0


def keep_elements(cpu: Cpu, operand: Operand, elements: int, value: int) -> None:
    """Set the bits `elements` of a register. What lies above stays: only a finished gather zeroes it."""
    whole = operand.value & ~elements | value
    if operand.bits == 128:
        setattr(cpu, operand.register, whole)  # type: ignore[attr-defined]  # a vector register
    else:
        operand.value = whole
