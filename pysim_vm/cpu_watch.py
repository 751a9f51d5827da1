"""A glass over one CPU: who looks through it hears of exceptions, interrupts, accesses to RAM, instructions.

It is not a CPU and keeps no record: `watch` makes a live Cpu a WatchedCpu, a class of its own that adds no
state, and `unwatch` makes it what it was. Any number of watchers share one glass, which holds what one of
them wants and nothing else: to hear of exceptions and interrupts costs nothing in between.

Both engines run under the glass with the same results; only what has to be seen goes the long way. Pages that
are watched stay out of the TLB, so that blocks leave every access to them to the step engine, where the
instruction count is exact; instructions that are watched are no part of any block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, Final

from isa.code_cache import CodeCache
from isa.cpu import Cpu
from isa.decode import Insn
from isa.exits import Budget, ExitReason, TripleFault, VmExit
from isa.faults import Fault
from isa.memory import PAGE, PAGE_SHIFT, READ, WRITE
from isa.mmu import ACCESS_READ, ACCESS_WRITE, TLB_ENTRIES, NotPlain, Tlb

NOWHERE: Final[Sequence[range]] = ()
EVERYWHERE: Final[Sequence[range]] = (range(1 << 64),)


class CpuWatcher:
    """What a watcher may hear; override what is wanted.

    `stores` and `loads` are the guest-physical ranges whose pages are watched; what is seen may lie beside
    them in the same page. `stepwise` asks for `before_step` and `after_step`, which is slow.
    """

    stepwise = False
    stores: Sequence[range] = NOWHERE
    loads: Sequence[range] = NOWHERE
    instructions = False  # `wants_instruction` is to be asked

    def saw_fault(self, cpu: Cpu, fault: Fault, nested: bool) -> None:
        """An exception is about to be delivered; `nested`: it came while another event was."""

    def saw_interrupt(self, cpu: Cpu, vector: int) -> None:
        """An external interrupt or NMI is about to be delivered."""

    def saw_software(self, cpu: Cpu, ip: int, vector: int, kind: int) -> None:
        """INT n, INT3, INTO or INT1 (`kind`, of isa.interrupts) at `ip` was delivered."""

    def saw_shutdown(self, cpu: Cpu, chain: Sequence[str]) -> None:
        """A triple fault: the CPU shut down. `chain` has the words of the faults that led there."""

    def after_event(self, cpu: Cpu, retired: int) -> None:
        """An exception or interrupt was delivered; `retired` is the count before it."""

    def saw_store(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int, before: bytes) -> None:
        """`size` bytes of RAM in one page were written; `before` is what was there."""

    def saw_load(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int) -> None:
        """`size` bytes of RAM in one page were read as data."""

    def saw_walk(self, cpu: Cpu, gpa: int, size: int, value: int) -> None:
        """The page walk set bits in an entry, which is `value` now."""

    def saw_host_write(self, cpu: Cpu, gpa: int, size: int) -> None:
        """A device or the host wrote `size` bytes of RAM."""

    def wants_instruction(self, cpu: Cpu, linear: int, insn: Insn) -> bool:
        """Whether to hear of an instruction that was just decoded."""
        return False

    def before_instruction(self, cpu: Cpu, insn: Insn) -> None:
        """An instruction, or an element of a REP instruction, is about to be executed; RIP is behind it."""

    def after_instruction(self, cpu: Cpu, retired: int, insn: Insn) -> None:
        """It was executed, or left unfinished; `retired` is the count before it."""

    def before_step(self, cpu: Cpu) -> None:
        """The CPU is about to run for one retired instruction at most."""

    def after_step(self, cpu: Cpu, retired: int) -> None:
        """It did; `retired` is the count before, the same as now if an exit or nothing came."""


def watch(cpu: Cpu, watcher: CpuWatcher) -> None:
    """Let one more watcher look at a CPU; between two runs only."""
    _wear(cpu, (*watchers_of(cpu), watcher))


def unwatch(cpu: Cpu, watcher: CpuWatcher) -> None:
    """Take a watcher away, in any order; between two runs only. One that is not there is no error."""
    watchers = watchers_of(cpu)
    if any(other is watcher for other in watchers):
        _wear(cpu, tuple(other for other in watchers if other is not watcher))


def watch_again(cpu: Cpu) -> None:
    """A watcher wants something else than before; between two runs only."""
    _wear(cpu, watchers_of(cpu))


def watchers_of(cpu: Cpu) -> tuple[CpuWatcher, ...]:
    """Who looks at a CPU, the first one first."""
    found: tuple[CpuWatcher, ...] = getattr(type(cpu), "watchers", ())
    return found


def running_ip(cpu: Cpu) -> int:
    """The address of the instruction that runs now, for a watcher: RIP itself is already that of the next.

    Only the CPU's loop knows it, in its local `ip`, or the block that called the instruction, by its line.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        block = frame.f_globals
        if "CALLED" in block:
            called: int = block["IPS"][block["AT"][frame.f_lineno]]
            return called
        if frame.f_code in (Cpu.run.__code__, Cpu.run_blocks.__code__):
            ip: int = frame.f_locals["ip"]
            return ip
        frame = frame.f_back
    return cpu.rip


def _wear(cpu: Cpu, watchers: tuple[CpuWatcher, ...]) -> None:
    """Put the glass on a CPU that these watchers need."""
    before: Any = type(cpu)
    had_instructions = getattr(before, "holds_instructions", False)
    if had_instructions:
        cpu.drafts = before.drafts_aside
    made: Any = Cpu
    shown = getattr(before, "shown", None) or _Shown()
    instructions = any(watcher.instructions for watcher in watchers)
    if watchers:
        made = _event_glass(made, watchers, shown)
        if any(watcher.stores or watcher.loads for watcher in watchers):
            made = _memory_glass(made, watchers, shown)
        if instructions:
            made = _instruction_glass(made, watchers, shown)
            made.drafts_aside, cpu.drafts = cpu.drafts, None  # translations with gaps are of no use to others
        if any(watcher.stepwise for watcher in watchers):
            made = _step_glass(made, watchers)
        made.watchers, made.shown = watchers, shown
    cpu.__class__ = made
    if instructions or had_instructions:
        cpu.cache = CodeCache()
    cpu.memory.on_write = cpu.cache_written
    cpu.flush_tlb()
    cpu.update_mode()


# ---- events ------------------------------------------------------------------------------------------------


class _Shown:
    """What of the running instruction or delivery was shown: an exit makes it begin again, a stop comes
    before it. The next glass of the same CPU goes on with it."""

    __slots__ = ("access", "accesses", "at", "faults", "instruction", "nested", "pending", "retired")

    def __init__(self) -> None:
        self.instruction = -1  # the count at which one was announced
        self.pending = False  # an exit cut a delivery short
        self.nested = False  # an exception of it is not the first event
        self.faults = self.at = 0  # of this delivery: shown, and met since it began (again)
        self.retired = -1  # the count of the instruction with these accesses
        self.accesses = self.access = 0  # shown, and met since it began (again)


def _event_glass(base: Any, watchers: Sequence[CpuWatcher], shown: _Shown) -> Any:
    class EventGlass(base):  # type: ignore[misc]  # the class of a CPU
        """Exceptions, interrupts, INT n and the shutdown."""

        __slots__ = ()

        def reset(self) -> None:
            shown.pending = False
            super().reset()

        def _take(self, fault: Fault) -> ExitReason | None:
            shown.nested = False
            return self._shown(super()._take, fault)

        def _interrupt(self, vector: int) -> ExitReason | None:
            shown.nested = True
            if not shown.pending:
                for watcher in watchers:
                    watcher.saw_interrupt(self, vector)
            return self._shown(super()._interrupt, vector)

        def _shown(
            self, deliver: Callable[[Any], ExitReason | None], event: Fault | int
        ) -> ExitReason | None:
            if not shown.pending:
                shown.faults = 0
            shown.at = 0
            retired = self.retired
            reason = deliver(event)
            shown.pending = self.undelivered is not None
            if not shown.pending:
                for watcher in watchers:
                    watcher.after_event(self, retired)
                    if isinstance(reason, TripleFault):
                        watcher.saw_shutdown(self, reason.chain)
            return reason

        def _record(self, fault: Fault) -> None:
            shown.at += 1
            if shown.at > shown.faults:
                shown.faults = shown.at
                for watcher in watchers:
                    watcher.saw_fault(self, fault, shown.nested)
            shown.nested = True
            super()._record(fault)

        def software_interrupt(self, vector: int, kind: int) -> None:
            ip = running_ip(self)
            super().software_interrupt(vector, kind)
            for watcher in watchers:
                watcher.saw_software(self, ip, vector, kind)

    return EventGlass


# ---- accesses to RAM ---------------------------------------------------------------------------------------


class _Pages:
    """The pages of host memory behind ranges of guest-physical addresses."""

    __slots__ = ("everywhere", "ranges", "spans")

    def __init__(self, ranges: Iterable[range]) -> None:
        self.ranges = tuple(ranges)
        self.everywhere = any(wanted == EVERYWHERE[0] for wanted in self.ranges)
        self.spans: tuple[tuple[int, int], ...] = ()

    def look_up(self, cpu: Cpu) -> None:
        """Find the pages, as RAM is mapped now."""
        spans = []
        for region in cpu.memory.regions:
            for wanted in self.ranges:
                low, high = max(wanted.start, region.base), min(wanted.stop, region.base + region.size)
                if low < high:
                    first = region.host + low - region.base
                    spans.append((first >> PAGE_SHIFT, (first + high - low - 1 >> PAGE_SHIFT) + 1))
        self.spans = tuple(spans)

    def hold(self, page: int) -> bool:
        """Whether a page of host memory is one of them."""
        return any(first <= page < end for first, end in self.spans)


def _memory_glass(base: Any, watchers: Sequence[CpuWatcher], shown: _Shown) -> Any:
    # Watched pages that the TLB would hold: (which TLB, linear page) -> physical minus linear address. The
    # TLBs of a CPU live as long as it does, so their identities are names.
    known: dict[tuple[int, int], int] = {}
    stores = _Pages(wanted for watcher in watchers for wanted in watcher.stores)
    loads = _Pages(wanted for watcher in watchers for wanted in watcher.loads)
    storing = [watcher for watcher in watchers if watcher.stores]
    loading = [watcher for watcher in watchers if watcher.loads]

    def fresh(cpu: Cpu) -> bool:
        """This access was not shown yet, in an execution of the instruction that an exit cut short."""
        if cpu.retired != shown.retired:
            shown.retired, shown.accesses, shown.access = cpu.retired, 0, 0
        shown.access += 1
        if shown.access <= shown.accesses:
            return False
        shown.accesses = shown.access
        return True

    class MemoryGlass(base):  # type: ignore[misc]
        """Loads and stores of RAM."""

        __slots__ = ()
        steps_plainly = False

        def flush_tlb(self) -> None:
            known.clear()
            stores.look_up(self)
            loads.look_up(self)
            super().flush_tlb()

        def fill_tlb(self, tlb: Tlb, page: int) -> int:
            watched = stores if tlb.write else loads
            if watched.everywhere:
                raise NotPlain
            delta: int = super().fill_tlb(tlb, page)
            if watched.hold((page << PAGE_SHIFT) + delta >> PAGE_SHIFT):
                del tlb[page]
                raise NotPlain
            return delta

        def _step_carefully(self, insn: Insn) -> None:
            shown.access = 0
            super()._step_carefully(insn)

        def _load_slow(self, linear: int, size: int, tlb: Tlb, user: bool, stack: bool) -> int:
            delta = known.get((id(tlb), linear >> PAGE_SHIFT))
            value: int
            if delta is None or (linear & 0xFFF) + size > PAGE:
                value = super()._load_slow(linear, size, tlb, user, stack)
            else:
                self._check_access(linear, size, ACCESS_READ, user, stack)
                value = self._physical_load(linear + delta, size, linear, tlb)
            return value

        def _physical_load(self, gpa: int, size: int, linear: int, tlb: Tlb) -> int:
            value: int = super()._physical_load(gpa, size, linear, tlb)
            if loading:
                host = self.memory.host_page(gpa, READ)
                if host is not None and loads.hold(host >> PAGE_SHIFT):
                    self._forget(tlb, linear, gpa)
                    if fresh(self):
                        for watcher in loading:
                            watcher.saw_load(self, gpa, linear, size, value)
            return value

        def _store_slow(
            self, linear: int, size: int, value: int, reads: Tlb, writes: Tlb, user: bool, stack: bool
        ) -> None:
            delta = known.get((id(writes), linear >> PAGE_SHIFT))
            if delta is None or (linear & 0xFFF) + size > PAGE:
                super()._store_slow(linear, size, value, reads, writes, user, stack)
            else:
                self._check_access(linear, size, ACCESS_WRITE, user, stack)
                self._physical_store(linear + delta, size, value, linear, reads, writes)

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
            page = host >> PAGE_SHIFT
            if loading and loads.hold(page):
                self._forget(reads, linear, gpa)
            if storing and stores.hold(page):
                self._forget(writes, linear, gpa)
                if fresh(self):
                    for watcher in storing:
                        watcher.saw_store(self, gpa, linear, size, value, before)

        def _forget(self, tlb: Tlb, linear: int, gpa: int) -> None:
            """A watched page does not stay in the TLB; where it lies is not walked for again, either."""
            if tlb.pop(linear >> PAGE_SHIFT, None) is not None and len(known) < TLB_ENTRIES:
                known[id(tlb), linear >> PAGE_SHIFT] = gpa - linear

        def _mark(self, gpa: int, entry: int, size: int, bits: int) -> None:
            super()._mark(gpa, entry, size, bits)
            if entry & bits != bits:
                for watcher in storing:
                    watcher.saw_walk(self, gpa & self.memory.address_mask, size, entry | bits)

        def cache_written(self, host: int, size: int) -> None:
            super().cache_written(host, size)
            for region in self.memory.regions:
                if region.host <= host < region.host + region.size:
                    for watcher in storing:
                        watcher.saw_host_write(self, region.base + host - region.host, size)
                    return

    return MemoryGlass


# ---- instructions ------------------------------------------------------------------------------------------


def _instruction_glass(base: Any, watchers: Sequence[CpuWatcher], shown: _Shown) -> Any:
    class InstructionGlass(base):  # type: ignore[misc]
        """Single instructions: those that are watched call who watches them."""

        __slots__ = ()
        steps_plainly = False
        holds_instructions = True

        def _bind(self, instruction: Any, raw: bytes, ip: int) -> Insn:
            insn: Insn = super()._bind(instruction, raw, ip)
            linear = ip if self.mode64 else self.cs.base + ip & 0xFFFF_FFFF
            wanted = [watcher for watcher in watchers if watcher.wants_instruction(self, linear, insn)]
            if not wanted:
                return insn
            function = insn.function
            repeats = function is self.table["REP"].function

            def watched(cpu: Cpu, *operands: Any) -> None:
                retired, until = cpu.retired, cpu.stop_at
                if shown.instruction != retired:
                    shown.instruction = retired
                    for watcher in wanted:
                        watcher.before_instruction(cpu, insn)
                    if cpu.kicked:
                        raise VmExit(Budget(retired))
                if repeats:
                    cpu.stop_at = 0  # one element: the next one is announced, too
                try:
                    function(cpu, *operands)
                finally:
                    if repeats:
                        cpu.stop_at = until
                    for watcher in wanted:
                        watcher.after_instruction(cpu, retired, insn)

            insn.function = watched
            return insn

    return InstructionGlass


def _step_glass(base: Any, watchers: Sequence[CpuWatcher]) -> Any:
    class StepGlass(base):  # type: ignore[misc]
        """Runs of one instruction."""

        __slots__ = ()
        steps_plainly = False

        def run(self, until: int) -> ExitReason:
            while True:
                stepwise = [watcher for watcher in watchers if watcher.stepwise]
                if not stepwise:
                    return super().run(until)  # type: ignore[no-any-return]
                retired = self.retired
                for watcher in stepwise:
                    watcher.before_step(self)
                reason: ExitReason = super().run(min(until, retired + 1))
                for watcher in stepwise:
                    watcher.after_step(self, retired)
                if reason.__class__ is not Budget or self.retired >= until or self.retired == retired:
                    return reason

    return StepGlass
