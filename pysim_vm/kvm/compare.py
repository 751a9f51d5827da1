"""One guest on two CPUs, ours and KVM's, through the same kind of devices: are the exits the same? No output.

Both sides run one after the other, ours first, each on a machine of its own that was made alike. KVM's exits
are held against ours as they come, so that it stops soon after the first difference. Registers and RAM are
compared where both guests ended by themselves. Host time is measured, and is about the host alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Final

import numpy as np

from devices.bus import BusKind
from isa.exits import (
    Budget,
    ExitReason,
    ExternalInterrupt,
    Halt,
    Hypercall,
    IoRead,
    MmioRead,
    NestedPageFault,
    Nothing,
    SysRegRead,
    SystemDown,
    TripleFault,
    Unimplemented,
)
from isa.memory import PAGE
from pysim_vm.errors import DeviceFault
from pysim_vm.exit_kinds import fields_of
from pysim_vm.kvm import state as kvm_state
from pysim_vm.kvm.binding import Kvm, variant
from pysim_vm.kvm.machine import KvmEnd, KvmMachine, alarm
from pysim_vm.report import exit_words
from pysim_vm.vcpu import VCpu
from pysim_vm.vm import AxVM

DEFAULT_LIMIT: Final = 100_000  # exits
DEFAULT_SECONDS: Final = 30.0  # of host time, each side
AFTERWARDS: Final = 5  # exits that KVM may take beyond the first difference, to be shown
RANGES_SHOWN: Final = 16  # differing ranges of RAM that are listed

# Devices whose answers depend on virtual time
TIMERS: Final = frozenset(("pit8254", "rtc_cmos", "acpi_pm", "hpet", "local-apic", "local-apic-msrs"))

# How a guest ends by itself: with the same end on both sides, registers and RAM mean something
COMPLETE: Final = ("SystemDown", "GuestExit", "Halt")
# Ends of the guest, after which another exit on the other side is a difference
ENDS: Final = (*COMPLETE, "TripleFault", "NestedPageFault", "Device")


@dataclass(frozen=True, slots=True)
class Event:
    """One exit: why, what a device answered to a read (None: nothing, or not asked), and RIP, 0 if unknown.

    Two events are alike when kind, address, width and value are; where they come from does not count.
    """

    reason: ExitReason
    answer: int | None
    rip: int = 0

    @property
    def key(self) -> tuple[str, int, int, int, int | None]:
        """What is compared."""
        return (type(self.reason).__name__, *fields_of(self.reason), self.answer)

    def words(self) -> str:
        """`OUT 0x3f8 <- 'H' (0x48)`."""
        if isinstance(self.reason, TripleFault):
            return "triple fault"
        return exit_words(self.reason, self.answer)


@dataclass(slots=True)
class Side:
    """What one CPU did: its exits in order, why it ended, and host nanoseconds for all of it."""

    events: list[Event] = field(default_factory=list)
    end: KvmEnd = field(default_factory=lambda: KvmEnd("", ""))
    host_ns: int = 0
    inside_ns: int = 0  # of it inside KVM_RUN
    instructions: int | None = None  # KVM does not count them

    def counts(self, first: int | None = None) -> Counter[str]:
        """Exits by reason, of the first so many."""
        return Counter(type(event.reason).__name__ for event in self.events[:first])


@dataclass(slots=True)
class Comparison:
    """The result. `first` is the index of the first exit that differs, None if none does.

    `registers` holds (name, ours, KVM's) and `memory` (address, size) of what differs at the end; None where
    the guests did not end by themselves. `where` is the place of the first difference in the guest.
    """

    ours: Side
    theirs: Side
    kvm: str
    first: int | None = None
    where: str = ""
    timer: str = ""  # the device that gave different answers at that place, if it is one that tells the time
    registers: list[tuple[str, int, int]] | None = None
    memory: list[tuple[int, int]] | None = None
    memory_digest: str = ""

    @property
    def compared(self) -> int:
        """How many exits were the same."""
        both = min(len(self.ours.events), len(self.theirs.events))
        return both if self.first is None else self.first

    @property
    def differs(self) -> bool:
        """Something that can be compared is not the same."""
        return self.first is not None or bool(self.registers) or bool(self.memory)

    @property
    def whole(self) -> bool:
        """Both guests ended by themselves, so that everything was compared."""
        return self.registers is not None and self.first is None

    def rows(self) -> Iterator[tuple[int, Event | None, Event | None]]:
        """(index, our event, KVM's) up to the longer one's end; KVM's stops where the comparison did."""
        ours, theirs = self.ours.events, self.theirs.events
        if self.first is not None:
            length = self.first + 1 + AFTERWARDS
        else:  # where KVM ended early, its end is a row too
            length = len(theirs) + (self.theirs.end.kind != "Stopped")
        for n in range(min(length, max(len(ours), len(theirs)))):
            yield n, ours[n] if n < len(ours) else None, theirs[n] if n < len(theirs) else None


def compare(
    ours: AxVM,
    board: AxVM,
    *,
    kvm: Kvm | None = None,
    limit: int = DEFAULT_LIMIT,
    budget: int | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> Comparison:
    """Run `ours` on our CPU and `board`, a machine made alike, on KVM.

    `limit` bounds the exits, `budget` our instructions, `seconds` the host time of each side. KvmError if KVM
    is not there or refuses the machine::

        result = compare(AxVM.from_asm(text), AxVM.from_asm(text))
        assert not result.differs
    """
    with KvmMachine(board, kvm) as machine:
        our_side = run_ours(ours, limit, budget, seconds)
        result = Comparison(our_side, Side(), variant())
        _run_theirs(machine, result, seconds)
        _compare_ends(result)
        if result.first is None and our_side.end.kind in COMPLETE and our_side.end == result.theirs.end:
            cpu = ours.vcpu(0).cpu
            state = kvm_state.state_of_cpu(cpu)
            result.registers = kvm_state.differences(state, kvm_state.state_of_vcpu(machine.vcpu))
            result.memory = memory_differences(ours, board)
            result.memory_digest = memory_digest(ours)
        elif result.first is not None:
            result.where = _place_of(result, machine)
            result.timer = _timer_of(result, ours)
    return result


# ---- our side --------------------------------------------------------------------------------------------


def run_ours(vm: AxVM, limit: int, budget: int | None, seconds: float) -> Side:
    """Run a machine on our CPU and keep its exits. It takes the VM's `on_exit` and the devices' `on_access`.

    Our CPU interprets here, whatever the engine of the configuration: a translator that looks ahead may set
    accessed bits of page tables early, which would be a difference in RAM.
    """
    side = Side()
    devices = vm.get_devices()
    cpu = vm.vcpu(0).cpu
    cpu.use_blocks = False
    pending: list[ExitReason] = []
    target = (0, 0)
    answer: int | None = None
    rip = 0
    stopped = timed_out = False

    def flush() -> None:
        nonlocal answer, stopped
        if pending:
            side.events.append(Event(pending.pop(), answer, rip))
            if len(side.events) >= limit and not stopped:
                stopped = True
                vm.kick()
        answer = None

    def on_exit(vcpu: VCpu, reason: ExitReason) -> None:
        nonlocal target, rip
        flush()
        if isinstance(reason, ExternalInterrupt | NestedPageFault | Hypercall | Unimplemented):
            return  # ours, a lazy page, or what KVM has no exit for
        pending.append(reason)
        rip = vcpu.cpu.rip
        address, width, _ = fields_of(reason)
        target = address, width

    def on_access(_: str, kind: BusKind, direction: str, address: int, width: int, value: int) -> None:
        nonlocal answer
        if not pending:
            return
        if direction == "read":
            answer = (answer or 0) | value << 8 * (address - target[0])
        if kind is BusKind.SYS_REG or (address, width) == target:
            flush()

    def over() -> None:
        nonlocal timed_out
        timed_out = True
        vm.kick()

    vm.on_exit, devices.on_access = on_exit, on_access
    before = perf_counter_ns()
    try:
        with alarm(seconds, over):
            reason: ExitReason | DeviceFault = vm.run(budget)
    except DeviceFault as error:
        reason = error
    finally:
        side.host_ns = perf_counter_ns() - before
        vm.on_exit = devices.on_access = None
    flush()
    if isinstance(reason, NestedPageFault):
        side.events.append(Event(reason, None, cpu.rip))
    side.instructions = cpu.retired
    side.end = _our_end(vm, side, reason, stopped, timed_out)
    return side


def _our_end(
    vm: AxVM, side: Side, reason: ExitReason | DeviceFault, stopped: bool, timed_out: bool
) -> KvmEnd:
    match reason:
        case DeviceFault():
            return KvmEnd("Device", str(reason))
        case _ if side.events and isinstance(side.events[-1].reason, TripleFault):
            return KvmEnd("TripleFault", "the guest's CPU shut down after a triple fault")
        case SystemDown() if vm.exit_code is not None:
            return KvmEnd("GuestExit", f"the guest ended the run with code {vm.exit_code & 0xFF}")
        case SystemDown():
            return KvmEnd("SystemDown", "the guest switched the machine off")
        case Halt():
            return KvmEnd("Halt", "the CPU sleeps in HLT and nothing can wake it")
        case NestedPageFault():
            return KvmEnd("NestedPageFault", f"the guest used {reason.addr:#x}, where nothing is")
        case Hypercall():
            return KvmEnd("Unable", "the guest made a hypercall, which KVM answers itself and does not show")
        case Unimplemented():
            return KvmEnd("Unable", f"our CPU lacks {reason.text}")
        case Nothing() if timed_out:
            return KvmEnd("Timeout", "the time is over")
        case Nothing() if stopped:
            return KvmEnd("Stopped", "the limit of exits is reached")
        case Budget():
            return KvmEnd("Stopped", "the budget of instructions is used up")
        case _:
            return KvmEnd("Unable", f"{type(reason).__name__} needs a second CPU or a manager")


# ---- KVM's side ------------------------------------------------------------------------------------------


def _run_theirs(machine: KvmMachine, result: Comparison, seconds: float) -> None:
    """Run KVM along our events until it ends, differs, or our side has no more to compare with."""
    ours, side = result.ours, result.theirs
    expected, events = ours.events, side.events
    ended = ours.end.kind in ENDS

    def on_exit(reason: ExitReason, answer: int | None) -> bool:
        n = len(events)
        event = Event(reason, answer)
        if result.first is None and (n >= len(expected) or event.key != expected[n].key):
            result.first = n
            event = Event(reason, answer, machine.vcpu.regs()["rip"])
        events.append(event)
        if result.first is not None:
            return len(events) <= result.first + AFTERWARDS
        return ended or len(events) < len(expected)

    if not ended and not expected:
        side.end = KvmEnd("Stopped", "there is nothing to compare with")
        return
    before = perf_counter_ns()
    side.end = machine.run(on_exit, seconds)
    side.host_ns = perf_counter_ns() - before
    side.inside_ns = machine.run_ns


def _compare_ends(result: Comparison) -> None:
    """A guest that ended where the other one goes on, or otherwise, differs after its last exit."""
    ours, theirs = result.ours, result.theirs
    if result.first is not None or theirs.end.kind not in ENDS:
        return
    if len(theirs.events) < len(ours.events) or (ours.end.kind in ENDS and ours.end.kind != theirs.end.kind):
        result.first = len(theirs.events)


def _place_of(result: Comparison, machine: KvmMachine) -> str:
    """Where in the guest the first difference is: our RIP, or KVM's, which may be an instruction further."""
    ours, theirs = result.ours.events, result.theirs.events
    assert result.first is not None
    if result.first < len(ours):
        return f"RIP {ours[result.first].rip:#x}"
    if result.first < len(theirs):
        return f"KVM's RIP {theirs[result.first].rip:#x}"
    return f"KVM's RIP {machine.vcpu.regs()['rip']:#x}"


def _timer_of(result: Comparison, vm: AxVM) -> str:
    """The name of the timer whose answers differ at the first difference, or ""."""
    ours, theirs, n = result.ours.events, result.theirs.events, result.first
    if n is None or n >= len(ours) or n >= len(theirs) or ours[n].key[:-1] != theirs[n].key[:-1]:
        return ""
    match ours[n].reason:
        case IoRead(port=address):
            kind = BusKind.PORT
        case MmioRead(addr=address):
            kind = BusKind.MMIO
        case SysRegRead(addr=address):
            kind = BusKind.SYS_REG
        case _:
            return ""
    entry = vm.get_devices().bus(kind).find(address)
    return entry.device.name if entry is not None and entry.device.name in TIMERS else ""


# ---- memory ----------------------------------------------------------------------------------------------


def memory_differences(ours: AxVM, theirs: AxVM) -> list[tuple[int, int]]:
    """(guest-physical address, size) of the ranges of RAM that differ, at most RANGES_SHOWN of them."""
    found: list[tuple[int, int]] = []
    mine, other = ours.memory, theirs.memory
    for region, twin in zip(mine.regions, other.regions, strict=True):
        for at in range(0, region.size, PAGE):
            a = mine.pool[region.host + at : region.host + at + PAGE]
            b = other.pool[twin.host + at : twin.host + at + PAGE]
            if np.array_equal(a, b):
                continue
            for n in np.flatnonzero(a != b).tolist():
                gpa = region.base + at + n
                if found and found[-1][0] + found[-1][1] == gpa:
                    found[-1] = (found[-1][0], found[-1][1] + 1)
                elif len(found) == RANGES_SHOWN:
                    return found
                else:
                    found.append((gpa, 1))
    return found


def memory_digest(vm: AxVM) -> str:
    """SHA-256 of RAM: of every page that is not all zeros, behind its address."""
    digest = hashlib.sha256()
    for region in vm.memory.regions:
        pages = vm.memory.pool[region.host : region.host + region.size].reshape(-1, PAGE)
        for n in np.flatnonzero(pages.any(axis=1)).tolist():
            digest.update((region.base + n * PAGE).to_bytes(8, "little"))
            digest.update(pages[n].tobytes())
    return digest.hexdigest()
