"""A magnifying glass over a VM: exit lines, and single steps with everything they changed. It runs no loop.

`ExitTracer` hears of every exit and of the device that answered it; it costs nothing per instruction.
`Stepper` runs one instruction at a time on a CPU whose stores and events are watched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from devices.bus import BusKind
from isa.cpu import Cpu
from isa.exits import (
    ExitReason,
    ExternalInterrupt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    SysRegRead,
    SysRegWrite,
)
from isa.faults import Fault
from pysim_vm.cpu_watch import EVERYWHERE, CpuWatcher, unwatch, watch
from pysim_vm.report import (
    Change,
    changes,
    exit_kind,
    exit_words,
    instruction_at,
    place,
    plural,
    snapshot,
    vector_words,
)
from pysim_vm.symbols import SymbolTable
from pysim_vm.trace.words import NOBODY, sentence
from pysim_vm.vcpu import VCpu
from pysim_vm.vm import AxVM

STORES_SHOWN = 64  # of one step: a task switch writes some thirty


# ---- exits -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ExitRecord:
    """One exit: which, when (instructions retired), where, and who answered with what."""

    number: int
    retired: int
    where: str
    reason: ExitReason
    answered_by: list[str] = field(default_factory=list)
    value: int | None = None

    def line(self) -> str:
        """`#12 @1,234 0x7c31: OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550`."""
        return f"#{self.number:,} @{self.retired:,} {self.where}: {self.words()}"

    def words(self) -> str:
        """`OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550`."""
        return sentence(exit_words(self.reason, self.value), exit_kind(self.reason), self.answered_by)

    def as_dict(self) -> dict[str, object]:
        """The exit for JSON: numbers that may exceed 2**53 as hexadecimal text."""
        fields: dict[str, object] = {
            "exit": self.number,
            "retired": self.retired,
            "where": self.where,
            "reason": type(self.reason).__name__,
            "words": exit_words(self.reason, self.value),
            "answered_by": list(self.answered_by),
        }
        if self.value is not None:
            fields["value"] = f"{self.value:#x}"
        return fields


class ExitTracer:
    """Hears of every exit of a VM and hands each out once, as soon as all is known about it.

    `on_record` gets the records; `counts` counts (reason name, who answered). `close` hands out the last one
    and lets the VM go. It takes the VM's `on_exit` and the devices' `on_access` for itself.
    """

    def __init__(
        self, vm: AxVM, on_record: Callable[[ExitRecord], None], symbols: SymbolTable | None = None
    ) -> None:
        self._vm = vm
        self._on_record = on_record
        self._symbols = symbols
        self._pending: ExitRecord | None = None
        self.number = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        vm.on_exit = self._exit
        vm.get_devices().on_access = self._access

    def close(self) -> None:
        """Hand out the exit that is still open and stop listening."""
        self._flush()
        self._vm.on_exit = None
        self._vm.get_devices().on_access = None

    def flush(self) -> None:
        """Hand out the exit that is still open: nothing more will be known about it."""
        self._flush()

    def _exit(self, vcpu: VCpu, reason: ExitReason) -> None:
        self._flush()
        if isinstance(reason, ExternalInterrupt):
            return  # ours: the run loop asks for attention this way
        self.number += 1
        cpu = vcpu.cpu
        self._pending = ExitRecord(self.number, cpu.retired, place(cpu, symbols=self._symbols), reason)

    def _access(self, name: str, kind: BusKind, direction: str, address: int, width: int, value: int) -> None:
        record = self._pending
        if record is None:
            return
        base, size = _target(record.reason)
        if name not in record.answered_by:
            record.answered_by.append(name if name != "none" else NOBODY)
        if direction == "read":
            record.value = (record.value or 0) | value << 8 * (address - base)
        if kind is BusKind.SYS_REG or (address == base and width == size):
            self._flush()

    def _flush(self) -> None:
        record, self._pending = self._pending, None
        if record is not None:
            self.counts[type(record.reason).__name__, " and ".join(record.answered_by)] += 1
            self._on_record(record)


def _target(reason: ExitReason) -> tuple[int, int]:
    """Address and width of an access exit; (0, 0) for another one."""
    match reason:
        case IoRead() | IoWrite():
            return reason.port, reason.width
        case MmioRead() | MmioWrite():
            return reason.addr, reason.width
        case SysRegRead() | SysRegWrite():
            return reason.addr, 8
        case _:
            return 0, 0


# ---- steps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Store:
    """One store to RAM: linear and physical address, width in bytes, and what was there before."""

    linear: int
    gpa: int
    size: int
    before: int
    after: int

    def __str__(self) -> str:
        at = f"[{self.linear:#x}]" + ("" if self.linear == self.gpa else f" (physical {self.gpa:#x})")
        return f"{at} {self.before:#0{2 * self.size + 2}x} -> {self.after:#0{2 * self.size + 2}x}"


@dataclass(slots=True)
class StepRecord:
    """One step: the instruction at its place, and what came of it.

    `events` tell of interrupts and exceptions in words; with `executed` False an event came instead of the
    instruction, with `interrupt` True it was not even looked at. `retired` is the count afterwards,
    `more_stores` counts stores beyond the first STORES_SHOWN, `reason` is what `run_vcpu` returned.
    """

    number: int
    where: str
    ip: int
    mode: str
    raw: bytes
    text: str
    executed: bool = True
    interrupt: bool = False
    events: list[str] = field(default_factory=list)
    exits: list[ExitRecord] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    more_stores: int = 0
    next_ip: int = 0
    retired: int = 0
    reason: ExitReason | None = None

    @property
    def empty(self) -> bool:
        """Nothing happened: the machine had stopped with the step before."""
        return self.retired == self.number and not self.events and not self.exits

    @property
    def jumped(self) -> bool:
        """RIP is not that of the next instruction in memory."""
        return self.next_ip != self.ip + len(self.raw)

    def line(self) -> str:
        """Place, bytes and text in one line."""
        return f"{self.where:<18} {self.raw.hex(' '):<30} {self.text}"

    def as_dict(self) -> dict[str, object]:
        """The step for JSON."""
        return {
            "step": self.number,
            "where": self.where,
            "mode": self.mode,
            "bytes": self.raw.hex(),
            "text": self.text,
            "executed": self.executed,
            "events": list(self.events),
            "exits": [record.as_dict() for record in self.exits],
            "changes": {
                change.name: [f"{change.before:#x}", f"{change.after:#x}"] for change in self.changes
            },
            "stores": [
                {
                    "linear": f"{store.linear:#x}",
                    "physical": f"{store.gpa:#x}",
                    "bytes": store.size,
                    "before": f"{store.before:#x}",
                    "after": f"{store.after:#x}",
                }
                for store in self.stores
            ],
            "next": f"{self.next_ip:#x}",
        }


class Stepper(CpuWatcher):
    """Single-steps vCPU 0 of a VM and says what each step did.

    `details` also compares all registers and notes every store, which a plain instruction trace does not
    need. While a Stepper lives the CPU's write TLB stays empty, so that every store takes the road where it
    can be seen; `close` gives the CPU back as it was.
    """

    stores = EVERYWHERE

    def __init__(self, vm: AxVM, *, details: bool = True, symbols: SymbolTable | None = None) -> None:
        self._vm = vm
        self._cpu = vm.vcpu(0).cpu
        self._symbols = symbols
        self._details = details
        self._record = StepRecord(0, "", 0, "", b"", "")
        self._exits = ExitTracer(vm, self._note_exit, symbols)
        watch(self._cpu, self)

    def close(self) -> None:
        """Stop watching."""
        unwatch(self._cpu, self)
        self._exits.close()

    @property
    def last(self) -> StepRecord:
        """The newest record, also of a step that raised."""
        return self._record

    def step(self) -> StepRecord:
        """Run one instruction, or deliver one interrupt. AxError as from `run_vcpu`."""
        cpu = self._cpu
        raw, text = instruction_at(cpu, cpu.rip)
        record = StepRecord(
            cpu.retired, place(cpu, symbols=self._symbols), cpu.rip, cpu.mode_name(), raw, text
        )
        self._record = record
        before = snapshot(cpu) if self._details else {}
        try:
            record.reason = self._vm.run(budget=1)
        finally:
            self._exits.flush()
            record.next_ip = cpu.rip
            record.retired = cpu.retired
            if self._details:
                record.changes = changes(before, snapshot(cpu))
        return record

    def _note_exit(self, record: ExitRecord) -> None:
        self._record.exits.append(record)

    # What the watched CPU reports

    def saw_fault(self, cpu: Cpu, fault: Fault, nested: bool) -> None:
        """An exception is about to be delivered."""
        if not nested and (not fault.is_trap or fault.vector == 1):
            self._record.executed = False
        lead = "while that was delivered: " if nested else ""
        self._record.events.append(f"{lead}exception {fault} goes to vector {vector_words(fault.vector)}")

    def saw_shutdown(self, cpu: Cpu, chain: Sequence[str]) -> None:
        """A triple fault."""
        self._record.events.append(f"while that was delivered: {chain[-1]}; the CPU shut down (triple fault)")

    def saw_interrupt(self, cpu: Cpu, vector: int) -> None:
        """An external interrupt or NMI is about to be delivered."""
        self._record.executed = False
        self._record.interrupt = True
        self._record.events.append(f"interrupt, vector {vector_words(vector)}")

    def saw_store(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int, before: bytes) -> None:
        """RAM was written."""
        if len(self._record.stores) < STORES_SHOWN:
            old = int.from_bytes(before, "little")
            self._record.stores.append(Store(linear, gpa, size, old, value))
        else:
            self._record.more_stores += 1


def step_lines(record: StepRecord) -> list[str]:
    """A step for people: the instruction, then what it changed, indented."""
    if record.empty:
        return []
    if record.interrupt:  # the instruction at RIP has to wait, so it is not shown yet
        lines = [f"{record.number:>9,}  {record.where:<18} ! {event}" for event in record.events]
    else:
        lines = [f"{record.number:>9,}  {record.line()}"]
        lines += [f"             ! {event}" for event in record.events]
    lines += [f"             exit {exit_line(each)}" for each in record.exits]
    if record.changes:
        lines.append("             " + ", ".join(str(change) for change in record.changes))
    lines += [f"             {store}" for store in record.stores]
    if record.more_stores:
        lines.append(f"             and {plural(record.more_stores, 'more store')}")
    if record.executed and record.raw and record.jumped:
        again = " (the same again)" if record.next_ip == record.ip else ""
        lines.append(f"             goes to {record.next_ip:#x}{again}")
    elif not record.executed:
        lines.append(f"             goes to {record.next_ip:#x}")
    return lines


def trace_lines(record: StepRecord) -> list[str]:
    """A step for an instruction trace: the instruction, and events if any came."""
    return step_lines(record)[: 1 + len(record.events)]


def exit_line(record: ExitRecord) -> str:
    """An exit inside a step: its place is known there."""
    return f"#{record.number:,}: {record.words()}"
