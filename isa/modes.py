"""How code runs, as far as decoding and translating it depend on it. The CPU's state itself is in `state`."""

from __future__ import annotations

from typing import NamedTuple

from isa.state import M16, M32, M64

ContextKey = tuple[int, int, int, int, int]  # code size, CPL, base and limit of CS, `mode_bits`

VM_BIT, PROTECTED_BIT, LONG_BIT, YMM_BIT, SSE_BIT, WIDE_STACK_BIT = (1 << n for n in range(6))


def mode_bits(vm: int, protected: bool, long_mode: bool, ymm: bool, sse: bool, wide_stack: bool) -> int:
    """What else a context depends on: EFLAGS.VM, CR0.PE without it, EFER.LMA, AVX on, SSE on, SS.B."""
    return vm | protected << 1 | long_mode << 2 | ymm << 3 | sse << 4 | wide_stack << 5


class Mode(NamedTuple):
    """What an instruction becomes in translated code depends on these, and on nothing else of the machine."""

    code_bits: int
    cpl: int
    limit: int  # of CS
    stack_mask: int  # of the part of RSP that is used
    protected: bool  # and not virtual-8086
    vm: bool

    @classmethod
    def of(cls, key: ContextKey) -> Mode:
        """The mode of a code context."""
        bits, cpl, _, limit, kind = key
        stack_mask = M64 if bits == 64 else M32 if kind & WIDE_STACK_BIT else M16
        return cls(bits, cpl, limit, stack_mask, bool(kind & PROTECTED_BIT), bool(kind & VM_BIT))

    @property
    def mode64(self) -> bool:
        """64-bit mode: segments are flat."""
        return self.code_bits == 64

    @property
    def address_mask(self) -> int:
        """Of a linear address."""
        return M64 if self.mode64 else M32
