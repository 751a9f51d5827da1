"""What is measured: small guest programs, each about one thing that a machine spends its time on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pysim_vm import AxVM, Budget, Device

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
COPY = """
loop:   mov rsi, 0x40000
        mov rdi, 0x60000
        mov ecx, 0x2000
        rep movsq
        jmp loop
"""
OUT = "mov dx, 0x300\nloop: out dx, al\n jmp loop"
IN = "mov dx, 0x300\nloop: in al, dx\n jmp loop"
MMIO_READ = "mov ebx, 0x800000\nloop: mov eax, [rbx]\n jmp loop"
MMIO_WRITE = "mov ebx, 0x800000\nloop: mov [rbx], eax\n jmp loop"
RDMSR = "mov ecx, 0x1234\nloop: rdmsr\n jmp loop"
RAM_BYTES = "4M"
PORT, MMIO, MSR = 0x300, 0x80_0000, 0x1234


class Latch(Device):
    """The simplest device: it answers 0 and forgets."""

    name = "latch"

    def read(self, offset: int, width: int) -> int:
        """Always 0."""
        return 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A guest program; `instructions` are run each time. Counted are instructions or, for `exits`, exits:
    every second instruction is one there. `kib` counts KiB copied instead."""

    name: str
    text: str
    instructions: int
    exits: bool = False
    kib: bool = False

    @property
    def per(self) -> str:
        """What one operation is."""
        return "exit" if self.exits else "KiB" if self.kib else "instruction"

    def longer(self, factor: int) -> Workload:
        """The same program run for `factor` times as many instructions, unless they are exits."""
        return self if self.exits or self.kib else replace(self, instructions=self.instructions * factor)

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that runs when it is called, and returns the operations done."""
        vm = AxVM.from_asm(self.text, memory=RAM_BYTES, engine=engine)
        devices = vm.get_devices()
        devices.add_port_dev(Latch(), PORT, 8)
        devices.add_mmio_dev(Latch(), MMIO, 0x1000)
        devices.add_sys_reg_dev(Latch(), MSR, 1)

        def run() -> int:
            reason = vm.run_vcpu(0, self.instructions)
            assert isinstance(reason, Budget), f"{self.name}: {reason}"
            if self.kib:
                return vm.vcpu(0).retired // 128  # eight bytes an iteration
            if self.exits:
                return sum(vm.exit_counts.values())
            return vm.vcpu(0).retired

        return run


WORKLOADS = (
    Workload("ALU loop", ALU, 30_000),
    Workload("memory loop", MEMORY, 30_000),
    Workload("call and return", CALLS, 30_000),
    Workload("SSE arithmetic", FLOATS, 10_000),
    Workload("REP MOVSQ", COPY, 4_000_000, kib=True),
    Workload("OUT", OUT, 6_000, exits=True),
    Workload("IN", IN, 6_000, exits=True),
    Workload("MMIO read", MMIO_READ, 6_000, exits=True),
    Workload("MMIO write", MMIO_WRITE, 6_000, exits=True),
    Workload("RDMSR", RDMSR, 6_000, exits=True),
)
