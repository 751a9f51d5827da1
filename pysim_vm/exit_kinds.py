"""The kinds of exits as numbers, for records: one table, one look-up. It answers no exit and keeps no record.

The names are axvm's AxVCpuExitReason in snake case; the numbers are an index into `KINDS` and part of every
file that holds them, so a new kind goes to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from isa.exits import (
    Budget,
    CpuDown,
    CpuUp,
    ExitReason,
    ExternalInterrupt,
    FailEntry,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    Nothing,
    SendIPI,
    SysRegRead,
    SysRegWrite,
    SystemDown,
    TripleFault,
    Unimplemented,
)

REASONS: Final[tuple[type[ExitReason], ...]] = (
    MmioRead,  # 0-5: what a device answers, in the order of axvm's run_vcpu
    MmioWrite,
    IoRead,
    IoWrite,
    SysRegRead,
    SysRegWrite,
    NestedPageFault,
    Hypercall,
    Halt,
    ExternalInterrupt,
    CpuUp,
    CpuDown,
    SendIPI,
    SystemDown,
    Nothing,
    FailEntry,
    TripleFault,
    Unimplemented,
    Budget,
)
KINDS: Final = (
    "mmio_read",
    "mmio_write",
    "io_read",
    "io_write",
    "sys_reg_read",
    "sys_reg_write",
    "nested_page_fault",
    "hypercall",
    "halt",
    "external_interrupt",
    "cpu_up",
    "cpu_down",
    "send_ipi",
    "system_down",
    "nothing",
    "fail_entry",
    "triple_fault",
    "unimplemented",
    "budget",
)
MMIO_READ, MMIO_WRITE, IO_READ, IO_WRITE, SYS_REG_READ, SYS_REG_WRITE = range(6)
ANSWERED: Final = 6  # kinds below this one are accesses: a device answers them
NAMES: Final = tuple(reason.__name__ for reason in REASONS)  # the keys of AxVM.exit_counts
SYS_REG_BYTES: Final = 8  # a model-specific register is 64 bits wide

_KIND_OF: Final[Mapping[type[ExitReason], int]] = MappingProxyType(
    {reason: number for number, reason in enumerate(REASONS)}
)


def _nothing(reason: Any) -> tuple[int, int, int]:
    return 0, 0, 0


_FIELDS: Final[Mapping[type[ExitReason], Callable[[Any], tuple[int, int, int]]]] = MappingProxyType(
    dict.fromkeys(REASONS, _nothing)
    | {
        MmioRead: lambda reason: (reason.addr, reason.width, 0),
        MmioWrite: lambda reason: (reason.addr, reason.width, reason.data),
        IoRead: lambda reason: (reason.port, reason.width, 0),
        IoWrite: lambda reason: (reason.port, reason.width, reason.data),
        SysRegRead: lambda reason: (reason.addr, SYS_REG_BYTES, 0),
        SysRegWrite: lambda reason: (reason.addr, SYS_REG_BYTES, reason.value),
        NestedPageFault: lambda reason: (reason.addr, 0, reason.access_flags),
        Hypercall: lambda reason: (reason.nr, 0, 0),
        ExternalInterrupt: lambda reason: (0, 0, reason.vector),
        CpuUp: lambda reason: (reason.target_cpu, 0, reason.entry_point),
        SendIPI: lambda reason: (reason.target_cpu, 0, reason.vector),
        CpuDown: lambda reason: (0, 0, reason._state),
        FailEntry: lambda reason: (0, 0, reason.hardware_entry_failure_reason),
    }
)


def kind_of(reason: ExitReason) -> int:
    """The number of the reason's kind; KeyError for a class that is none of axvm's or the CPU's."""
    return _KIND_OF[reason.__class__]


def fields_of(reason: ExitReason) -> tuple[int, int, int]:
    """(address, width in bytes, value) of an exit, 0 where it has none.

    An access has its guest-physical address, port or register number; a write its data; a read 0, as its
    answer is not known yet. A hypercall has its number as address; a nested page fault its address and, as
    value, the access flags; CpuUp and SendIPI the target's id, and the entry point or the vector;
    ExternalInterrupt its vector, CpuDown its state and FailEntry its basic exit reason as value.
    """
    fields: tuple[int, int, int] = _FIELDS[reason.__class__](reason)
    return fields
