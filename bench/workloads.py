"""What is measured: small guest programs, each about one thing that a machine spends its time on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pysim_vm import AxVM, Budget

ALU = """
loop:   add rax, rbx
        xor rcx, rax
        lea rdx, [rcx + rax * 2 + 7]
        sub rsi, rdx
        cmp rsi, rdi
        jne loop
        jmp loop
"""
MEMORY = """
        mov rbx, 0x40000
loop:   mov rax, [rbx]
        add rax, 3
        mov [rbx + 8], rax
        add dword [rbx + 16], eax
        movzx ecx, byte [rbx + 5]
        jmp loop
"""
CALLS = """
loop:   push rax
        call work
        pop rax
        jmp loop
work:   inc rax
        ret
"""
FLOATS = """
        mov rbx, 0x40000
        mov dword [rbx], 1
        cvtsi2sd xmm0, dword [rbx]
        movapd xmm1, xmm0
loop:   addsd xmm1, xmm0
        mulsd xmm1, xmm1
        movsd [rbx], xmm1
        sqrtsd xmm1, [rbx]
        jmp loop
"""
RAM_BYTES = "4M"


@dataclass(frozen=True, slots=True)
class Workload:
    """A guest program, of which `instructions` are run each time."""

    name: str
    text: str
    instructions: int

    @property
    def per(self) -> str:
        """What one operation is."""
        return "instruction"

    def longer(self, factor: int) -> Workload:
        """The same program run for `factor` times as many instructions."""
        return replace(self, instructions=self.instructions * factor)

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that runs when it is called, and returns the operations done."""
        vm = AxVM.from_asm(self.text, memory=RAM_BYTES, engine=engine)

        def run() -> int:
            reason = vm.run_vcpu(0, self.instructions)
            assert isinstance(reason, Budget), f"{self.name}: {reason}"
            return vm.vcpu(0).retired

        return run


WORKLOADS = (
    Workload("ALU loop", ALU, 30_000),
    Workload("memory loop", MEMORY, 30_000),
    Workload("call and return", CALLS, 30_000),
    Workload("SSE arithmetic", FLOATS, 10_000),
)
