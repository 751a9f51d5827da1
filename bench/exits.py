"""What an exit costs, round trip: from the guest's instruction through the VM to a device and back.

The guests are workloads of the library (`pysim_vm/benchmark/workloads/`), under the names that the tables of
docs/performance.md have for them. Each is a loop of one exit and one jump, so the jump is part of the number.
The devices answer 0 and forget: what a real one does comes on top. The same work on the full way and with its
exits recorded shows what the short way and a record are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pysim_vm.benchmark.run import build, run
from pysim_vm.benchmark.workload import find_workload
from pysim_vm.exit_log import ExitLog


@dataclass(frozen=True, slots=True)
class ExitWork:
    """A workload of the library, doing what it does `count` times;
    `elements` are the exits of one such time."""

    name: str
    workload: str
    count: int = 20_000
    exit_path: str = "short"
    recorded: bool = False
    elements: int = 1

    @property
    def per(self) -> str:
        """What one operation is."""
        return "exit"

    def longer(self, factor: int) -> ExitWork:
        """The same for `factor` times as many exits."""
        return replace(self, count=self.count * factor)

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that runs when it is called, and returns the exits taken."""
        workload = find_workload(self.workload).with_count(self.count)
        vm = build(workload, engine, self.exit_path)
        if self.recorded:
            vm.exit_log, vm.exit_sink = ExitLog(), ExitLog.clear

        def work() -> int:
            run(vm, workload)
            return self.count * self.elements

        return work


EXITS = (
    ExitWork("OUT", "io_write"),
    ExitWork("IN", "io_read"),
    ExitWork("MMIO read", "mmio_read"),
    ExitWork("MMIO write", "mmio_write"),
    ExitWork("RDMSR", "sys_reg_read"),
    ExitWork("WRMSR", "sys_reg_write"),
    ExitWork("REP OUTSB", "rep_outs", count=5, elements=0x1000),
    ExitWork("OUT recorded", "io_write", recorded=True),
    ExitWork("OUT, full way", "io_write", count=3_000, exit_path="full"),
    ExitWork("MMIO, full way", "mmio_read", count=3_000, exit_path="full"),
    ExitWork("VMCALL", "hypercall", count=3_000),
    ExitWork("CPUID", "cpuid"),
    ExitWork("HLT with timer", "halt", count=1_000),
)
