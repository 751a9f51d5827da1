"""Exits as the text that ftrace prints for KVM's events, so that scripts for those read them.

The lines are those of `trace-cmd report` on a VMX host: `kvm_exit` for every exit, then `kvm_pio`, `kvm_mmio`
or `kvm_msr` for what it was about. Time is virtual time.
Sources: Linux, arch/x86/kvm/trace.h and include/trace/events/kvm.h; SDM Vol. 3, "VMX Basic Exit Reasons" and
"Exit Qualification for I/O Instructions".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TextIO

from pysim_vm.trace.rows import ExitRow
from pysim_vm.trace.trace import Trace

# KVM's names of the VMX basic exit reasons; an exit that VMX does not have keeps ours in capitals.
VMX_REASONS: Final[Mapping[str, str]] = {
    "mmio_read": "EPT_MISCONFIG",
    "mmio_write": "EPT_MISCONFIG",
    "io_read": "IO_INSTRUCTION",
    "io_write": "IO_INSTRUCTION",
    "sys_reg_read": "MSR_READ",
    "sys_reg_write": "MSR_WRITE",
    "nested_page_fault": "EPT_VIOLATION",
    "hypercall": "VMCALL",
    "halt": "HLT",
    "external_interrupt": "EXTERNAL_INTERRUPT",
    "triple_fault": "TRIPLE_FAULT",
    "fail_entry": "INVALID_STATE",
}
HEAD: Final = "# tracer: nop\n#\n#           TASK-PID     CPU#     TIMESTAMP  FUNCTION\n"
QUALIFICATION_IN: Final = 1 << 3  # exit qualification of an I/O instruction: direction
TASK: Final = "pysim-vm-1"  # no process of a host made these lines


def write_ftrace(trace: Trace, file: TextIO) -> int:
    """Write the exits as text; how many."""
    file.write(HEAD)
    count = 0
    for row in trace:
        head = f"{TASK:>16}     [{row.vcpu:03}] {row.ns // 1_000_000_000:5}.{row.ns // 1_000 % 1_000_000:06}:"
        for event in events(row):
            file.write(f"{head} {event}\n")
        count += 1
    return count


def events(row: ExitRow) -> list[str]:
    """`kvm_exit: ...` and what belongs to it, without the time."""
    reason = VMX_REASONS.get(row.reason, row.reason.upper())
    first, second = _information(row)
    lines = [
        f"kvm_exit:             vcpu {row.vcpu} reason {reason} rip {row.rip:#x} info1 {first:#018x} "
        f"info2 {second:#018x} intr_info 0x00000000 error_code 0x00000000"
    ]
    match row.reason:
        case "io_read" | "io_write":
            name = "pio_read" if row.reason == "io_read" else "pio_write"
            lines.append(
                f"kvm_pio:              {name} at {row.address:#x} size {row.width} count 1 "
                f"val {row.value:#x} "
            )
        case "mmio_read" | "mmio_write":
            way = "read" if row.reason == "mmio_read" else "write"
            lines.append(
                f"kvm_mmio:             mmio {way} len {row.width} gpa {row.address:#x} val {row.value:#x}"
            )
        case "sys_reg_read" | "sys_reg_write":
            way = "read" if row.reason == "sys_reg_read" else "write"
            fault = "" if row.device else " (#GP)"
            lines.append(f"kvm_msr:              msr_{way} {row.address:x} = {row.value:#x}{fault}")
        case "hypercall":
            lines.append(f"kvm_hypercall:        nr {row.address:#x} a0 0x0 a1 0x0 a2 0x0 a3 0x0")
    return lines


def _information(row: ExitRow) -> tuple[int, int]:
    """info1 and info2: the exit qualification, and the guest-physical address of an EPT exit."""
    match row.reason:
        case "io_read" | "io_write":
            way = QUALIFICATION_IN if row.reason == "io_read" else 0
            return row.address << 16 | way | max(row.width - 1, 0), 0
        case "nested_page_fault":
            return row.value & 7, 0
        case _:
            return 0, 0
