"""What an exit costs, round trip: from the guest's instruction through the VM to a device and back.

Each guest is a loop of one exit and one jump, so the jump is part of the number. The devices answer 0 and
forget: what a real one does comes on top. The same work on the full way and with its exits recorded shows
what the short way and a record are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pysim_vm import AxVM, Budget, Device, Hypercall
from pysim_vm.short_exits import ExitRow

PORT, MMIO, MSR = 0x300, 0x80_0000, 0x1234
IDT, VECTOR, TICK_NS = 0x2_0000, 0x40, 6_400
RAM_BYTES = "4M"
ROUND = 2  # instructions of a loop: the exit and the jump

OUT = "mov dx, 0x300\nloop: out dx, al\n jmp loop"
IN = "mov dx, 0x300\nloop: in al, dx\n jmp loop"
MMIO_READ = "mov ebx, 0x800000\nloop: mov eax, [rbx]\n jmp loop"
MMIO_WRITE = "mov ebx, 0x800000\nloop: mov [rbx], eax\n jmp loop"
RDMSR = "mov ecx, 0x1234\nloop: rdmsr\n jmp loop"
WRMSR = "mov ecx, 0x1234\nloop: wrmsr\n jmp loop"
REP_OUTS = "cld\nmov dx, 0x300\nloop: mov esi, 0x10000\n mov ecx, 0x1000\n rep outsb\n jmp loop"
VMCALL = "loop: vmcall\n jmp loop"
CPUID = "loop: xor eax, eax\n cpuid\n jmp loop"
HALT = "mov rsp, 0x9000\nlidt [idtr]\nsti\nloop: hlt\n jmp loop\nidtr: dw 0xfff\n dq 0x20000"


class Latch(Device):
    """The simplest device: it answers 0 and forgets."""

    name = "latch"

    def read(self, offset: int, width: int) -> int:
        """Always 0."""
        return 0


@dataclass(frozen=True, slots=True)
class ExitWork:
    """A loop that takes `count` exits of the kind `reason`, or, for CPUID, that many instructions."""

    name: str
    text: str
    reason: str
    count: int = 20_000
    exit_path: str = "short"
    recorded: bool = False

    @property
    def per(self) -> str:
        """What one operation is."""
        return "exit"

    def longer(self, factor: int) -> ExitWork:
        """The same for `factor` times as many exits."""
        return replace(self, count=self.count * factor)

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that runs when it is called, and returns the exits taken."""
        vm = AxVM.from_asm(self.text, memory=RAM_BYTES, engine=engine, exit_path=self.exit_path)
        devices = vm.get_devices()
        devices.add_port_dev(Latch(), PORT, 8)
        devices.add_mmio_dev(Latch(), MMIO, 0x1000)
        devices.add_sys_reg_dev(Latch(), MSR, 1)
        if self.recorded:
            vm.exit_log, vm.exit_sink = [], list[ExitRow].clear
        return self._calls(vm) if self.reason == "Hypercall" else self._runs(vm)

    def _runs(self, vm: AxVM) -> Callable[[], int]:
        """Run it for as many instructions as it takes."""
        if self.reason == "Halt":
            _tick(vm)

        def run() -> int:
            taken = 0
            while taken < self.count:
                reason = vm.run_vcpu(0, (self.count - taken) * ROUND)
                assert isinstance(reason, Budget), f"{self.name}: {reason}"
                taken = vm.exit_counts[self.reason] if self.reason else vm.vcpu(0).retired // ROUND
            return taken

        return run

    def _calls(self, vm: AxVM) -> Callable[[], int]:
        """Answer hypercalls, which go to the caller."""

        def run() -> int:
            for _ in range(self.count):
                reason = vm.run_vcpu(0)
                assert isinstance(reason, Hypercall), f"{self.name}: {reason}"
                vm.vcpu(0).set_return_value(0)
            return self.count

        return run


def _tick(vm: AxVM) -> None:
    """A timer whose interrupt wakes the CPU from HLT, for ever; its handler only returns."""
    handler = 0x3_0000
    vm.write_to_guest(handler, b"\x48\xcf")  # iretq
    selector = vm.vcpu(0).regs.cs.to_bytes(2, "little")
    gate = (handler & 0xFFFF).to_bytes(2, "little") + selector + b"\x00\x8e"
    vm.write_to_guest(IDT + 16 * VECTOR, gate + (handler >> 16).to_bytes(2, "little") + bytes(8))

    def tick(now_ns: int) -> None:
        vm.vcpu(0).inject_interrupt(VECTOR)
        vm.clock.call_at(now_ns + TICK_NS, tick)

    vm.clock.call_at(TICK_NS, tick)


EXITS = (
    ExitWork("OUT", OUT, "IoWrite"),
    ExitWork("IN", IN, "IoRead"),
    ExitWork("MMIO read", MMIO_READ, "MmioRead"),
    ExitWork("MMIO write", MMIO_WRITE, "MmioWrite"),
    ExitWork("RDMSR", RDMSR, "SysRegRead"),
    ExitWork("WRMSR", WRMSR, "SysRegWrite"),
    ExitWork("REP OUTSB", REP_OUTS, "IoWrite"),
    ExitWork("OUT recorded", OUT, "IoWrite", recorded=True),
    ExitWork("OUT, full way", OUT, "IoWrite", count=3_000, exit_path="full"),
    ExitWork("MMIO, full way", MMIO_READ, "MmioRead", count=3_000, exit_path="full"),
    ExitWork("VMCALL", VMCALL, "Hypercall", count=3_000),
    ExitWork("CPUID", CPUID, ""),
    ExitWork("HLT with timer", HALT, "Halt", count=1_000),
)
