"""A glass over one CPU: who looks through it hears of every store to RAM, every event, every instruction.

It is not a CPU and keeps no record: `watch` makes a live Cpu a WatchedCpu of its own class, which adds no
state, and `unwatch` makes it what it was. Both engines run under the glass with the same results; only what
has to be seen goes the long way: the write TLB stays empty, so that blocks leave every store to the step
engine, where the instruction count is exact.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from isa.cpu import Cpu
from isa.exits import Budget, ExitReason
from isa.faults import Fault
from isa.memory import PAGE, WRITE
from isa.mmu import ACCESS_WRITE, TLB_ENTRIES, NotPlain, Tlb


class CpuWatcher:
    """What a watcher may hear; override what is wanted. `stepwise` asks for `saw_step`, which is slow."""

    stepwise = False

    def saw_fault(self, cpu: Cpu, fault: Fault) -> None:
        """An exception is about to be delivered."""

    def saw_interrupt(self, cpu: Cpu, vector: int) -> None:
        """An external interrupt or NMI is about to be delivered."""

    def saw_store(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int, before: bytes) -> None:
        """`size` bytes of RAM in one page were written; `before` is what was there."""

    def saw_walk(self, cpu: Cpu, gpa: int, size: int, value: int) -> None:
        """The page walk set bits in an entry, which is `value` now."""

    def before_step(self, cpu: Cpu) -> None:
        """The CPU is about to run for one retired instruction at most."""

    def after_step(self, cpu: Cpu, retired: int) -> None:
        """It did; `retired` is the count before, the same as now if an exit or nothing came."""


def watch(cpu: Cpu, watcher: CpuWatcher) -> type[Cpu]:
    """Put the glass over a CPU between two runs; the class that `unwatch` needs."""
    before = type(cpu)
    cpu.__class__ = _watched(before, watcher)
    cpu.forget_writes()
    return before


def unwatch(cpu: Cpu, before: type[Cpu]) -> None:
    """Take the glass away. Glasses come off in the opposite order of `watch`."""
    cpu.__class__ = before
    cpu.flush_tlb()


def running_ip(cpu: Cpu) -> int:
    """The address of the instruction that runs now, for a watcher: RIP itself is already that of the next.

    Only the CPU's loop knows it, in its local `ip`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in (Cpu.run.__code__, Cpu.run_blocks.__code__):
            ip: int = frame.f_locals["ip"]
            return ip
        frame = frame.f_back
    return cpu.rip


def _watched(base: Any, watcher: CpuWatcher) -> type[Cpu]:
    # Pages of RAM that the write TLB would hold: (which TLB, linear page) -> physical minus linear address.
    # The TLBs of a CPU live as long as it does, so their identities are names.
    known: dict[tuple[int, int], int] = {}

    class WatchedCpu(base):  # type: ignore[misc]  # the class of a CPU that may be watched already
        """The CPU under the glass."""

        __slots__ = ()

        def _take(self, fault: Fault) -> ExitReason | None:
            watcher.saw_fault(self, fault)
            return super()._take(fault)  # type: ignore[no-any-return]

        def _interrupt(self, vector: int) -> ExitReason | None:
            watcher.saw_interrupt(self, vector)
            return super()._interrupt(vector)  # type: ignore[no-any-return]

        def fill_tlb(self, tlb: Tlb, page: int) -> int:
            if tlb.write:
                raise NotPlain
            return super().fill_tlb(tlb, page)  # type: ignore[no-any-return]

        def _store_slow(
            self, linear: int, size: int, value: int, reads: Tlb, writes: Tlb, user: bool, stack: bool
        ) -> None:
            delta = known.get((id(writes), linear >> 12))
            if delta is None or (linear & 0xFFF) + size > PAGE:
                super()._store_slow(linear, size, value, reads, writes, user, stack)
            else:
                self._check_access(linear, size, ACCESS_WRITE, user, stack)
                self._physical_store(linear + delta, size, value, linear, reads, writes)

        def flush_tlb(self) -> None:
            known.clear()
            super().flush_tlb()

        def _physical_store(
            self, gpa: int, size: int, value: int, linear: int, reads: Tlb, writes: Tlb
        ) -> None:
            host = self.memory.host_page(gpa, WRITE)
            if host is None:
                super()._physical_store(gpa, size, value, linear, reads, writes)
                return
            at = host + (gpa & 0xFFF)
            before = bytes(self.ram[at : at + size])
            super()._physical_store(gpa, size, value, linear, reads, writes)
            if writes.pop(linear >> 12, None) is not None and len(known) < TLB_ENTRIES:
                known[id(writes), linear >> 12] = gpa - linear
            watcher.saw_store(self, gpa, linear, size, value, before)

        def _mark(self, gpa: int, entry: int, size: int, bits: int) -> None:
            super()._mark(gpa, entry, size, bits)
            if entry & bits != bits:
                watcher.saw_walk(self, gpa & self.memory.address_mask, size, entry | bits)

        def run(self, until: int) -> ExitReason:
            if not watcher.stepwise:
                return super().run(until)  # type: ignore[no-any-return]
            while True:
                retired = self.retired
                watcher.before_step(self)
                reason: ExitReason = super().run(min(until, retired + 1))
                watcher.after_step(self, retired)
                if reason.__class__ is not Budget or self.retired >= until or self.retired == retired:
                    return reason

    return WatchedCpu
