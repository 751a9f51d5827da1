"""Single steps: every instruction hands the registers to Python, while the exits are recorded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pysim_vm import AxVM

# Arithmetic, memory and calls in equal parts
TEXT = """
        mov rbx, 0x40000
loop:   add rax, rcx
        lea rdx, [rcx + rax * 2 + 7]
        cmp rsi, rdi
        jne there
there:  mov rsi, [rbx]
        add dword [rbx + 16], eax
        movzx ecx, byte [rbx + 5]
        mov [rbx + 8], rax
        push rax
        call work
        pop rax
        jmp loop
work:   ret
"""


@dataclass(frozen=True, slots=True)
class SingleSteps:
    """`count` steps: by iterating over `AxVM.steps`, or `one_by_one` by `VCpu.step`."""

    name: str
    one_by_one: bool = False
    count: int = 10_000

    @property
    def per(self) -> str:
        """What one operation is."""
        return "step"

    def longer(self, _: int) -> SingleSteps:
        """The same: a block is never as short as a step."""
        return self

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that steps when it is called, and returns the steps done."""
        vm = AxVM.from_asm(TEXT, memory="4M", engine=engine)
        vm.record()
        return lambda: self._singly(vm) if self.one_by_one else self._iterate(vm)

    def _iterate(self, vm: AxVM) -> int:
        deque(vm.steps(self.count), maxlen=1)
        return vm.vcpu(0).retired

    def _singly(self, vm: AxVM) -> int:
        vcpu = vm.vcpu(0)
        for _ in range(self.count):
            vcpu.step()
        return vcpu.retired


STEPS = (SingleSteps("AxVM.steps"), SingleSteps("VCpu.step", one_by_one=True))
