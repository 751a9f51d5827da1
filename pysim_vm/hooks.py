"""Hooks: functions of the user's that hear of exits, instructions, memory, registers and exceptions.

They run nothing and decide nothing: what they hear of has happened (or, for an instruction, is about to) and
happens in the same way without them. What they get are the rows of a trace. Exits come from the exit loop of
`AxVM`, everything else from the glass over the CPU (`cpu_watch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from isa.cpu import Cpu
from isa.decode import Insn
from isa.faults import Fault
from isa.interrupts import INT_N
from isa.stepping import plain_functions
from pysim_vm.cpu_watch import EVERYWHERE, CpuWatcher, running_ip, unwatch, watch, watch_again
from pysim_vm.errors import AxError, AxErrorKind
from pysim_vm.exit_kinds import KINDS
from pysim_vm.exit_log import ExitRow as ExitTuple
from pysim_vm.report import Change
from pysim_vm.trace.rows import EventRow, ExitRow, InstructionRow, LoadRow, RegisterRow, StoreRow
from pysim_vm.trace.where import REASON_GROUPS
from pysim_vm.trace.words import SOFTWARE_WORDS
from pysim_vm.why import exception_row, symbol_at

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

Numbers = int | range | Iterable[int]
Function = Callable[[Any], object]

EXIT, INSTRUCTION, READ, WRITE, REGISTER, EXCEPTION, INTERRUPT = range(7)
LINES: Final = 64
BUSES: Final = {"port": ("io_read", "io_write"), "gpa": ("mmio_read", "mmio_write"),
                "msr": ("sys_reg_read", "sys_reg_write")}  # fmt: skip
# Registers that no instruction writes which may be part of a block: blocks go on at full speed
SYSTEM_REGISTERS: Final = frozenset(
    ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "cs", "ss",
     "ds", "es", "fs", "gs", "ldtr", "tr", "cs_base", "ss_base", "ds_base", "es_base", "ldtr_base", "tr_base",
     "gdtr_base", "idtr_base")
)  # fmt: skip


class Hook:
    """A function that is called until `remove`; as a context manager, until the end of the block."""

    __slots__ = ("_hooks", "function", "kind", "matches", "names", "ranges", "values")

    def __init__(
        self, hooks: Hooks, kind: int, function: Function, *, matches: Callable[[Any], bool] | None = None,
        ranges: Sequence[range] = (), names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._hooks: Hooks | None = hooks
        self.kind = kind
        self.function = function
        self.matches = matches
        self.ranges = tuple(ranges)
        self.names = tuple(names)
        self.values: list[int] = []  # of the registers, when they were last looked at

    @property
    def active(self) -> bool:
        """False once it is removed."""
        return self._hooks is not None

    def remove(self) -> None:
        """Never call the function again, at once, also from inside of a hook. Twice does nothing."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.forget(self)

    def __call__(self, row: Any) -> object:
        """The function itself, for a name that a decorator bound to the hook."""
        return self.function(row)

    def __enter__(self) -> Hook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Hooks(CpuWatcher):
    """The hooks of one VM: `vm.hooks`.

    Each `on_...` returns a Hook; without a function it returns a decorator. The function gets one row of the
    kinds that a trace has. What it raises ends the run once the instruction is over (`on_instruction`: before
    it is executed) and comes out of `run`, which goes on from there when it is called again: nothing is lost
    or done twice. `vm.stop`, `vm.pause` and `vm.kick` end the run there, too.
    """

    def __init__(self, vm: AxVM) -> None:
        self._vm = vm
        self._cpu = vm.vcpu(0).cpu
        self._hooks: dict[int, list[Hook]] = {kind: [] for kind in range(7)}
        self._regs = vm.vcpu(0).regs
        self._watching = False
        self.due = False  # `settle` has something to do
        self.failure: BaseException | None = None
        self.hears_exits = False
        self._counts = [0] * 7
        self._all_instructions = self._plain_registers = self._system_registers = False
        self._spans: tuple[range, ...] = ()

    # ---- the user's side -----------------------------------------------------------------------------------

    def on_exit(
        self,
        function: Callable[[ExitRow], object] | None = None,
        *,
        reason: str | Iterable[str] | None = None,
        port: Numbers | None = None,
        gpa: Numbers | None = None,
        msr: Numbers | None = None,
        device: str | None = None,
    ) -> Any:
        """Call with an ExitRow after each exit, answered, its instruction not yet finished.

        `reason` takes the names of `Trace.where`; `port`, `gpa` and `msr` an address, a range or several, of
        that bus alone. All conditions given must hold. Exits take the full way meanwhile.
        """
        reasons = None if reason is None else _reasons(reason)
        spans = {bus: _spans(bus, wanted) for bus, wanted in (("port", port), ("gpa", gpa), ("msr", msr))
                 if wanted is not None}  # fmt: skip

        def matches(row: ExitRow) -> bool:
            if reasons is not None and row.reason not in reasons:
                return False
            if device is not None and row.device != device:
                return False
            for bus, wanted in spans.items():
                size = 1 if bus == "msr" else max(row.width, 1)
                if row.reason not in BUSES[bus] or not _touches(wanted, row.address, size):
                    return False
            return True

        return self._made(EXIT, function, matches=matches)

    def on_instruction(
        self, function: Callable[[InstructionRow], object] | None = None, addresses: Numbers | None = None
    ) -> Any:
        """Call with an InstructionRow before each instruction, and each iteration of a REP instruction.

        `addresses` are linear addresses where instructions start: one, a range or several; without them it is
        every instruction. Those instructions run in the step engine, all others as ever.
        """
        return self._made(
            INSTRUCTION, function, ranges=EVERYWHERE if addresses is None else _spans("addresses", addresses)
        )

    def on_read(
        self, function: Callable[[LoadRow], object] | None = None, addresses: Numbers | None = None
    ) -> Any:
        """Call with a LoadRow after each read of RAM as data in these guest-physical addresses.

        Fetches, page walks and DMA are no such reads. Accesses to these pages run in the step engine.
        """
        return self._made(
            READ, function, ranges=EVERYWHERE if addresses is None else _spans("addresses", addresses)
        )

    def on_write(
        self, function: Callable[[StoreRow], object] | None = None, addresses: Numbers | None = None
    ) -> Any:
        """Call with a StoreRow after each write to RAM in these guest-physical addresses, whoever writes: an
        instruction, the page walk, a device, the host (`by`)."""
        return self._made(
            WRITE, function, ranges=EVERYWHERE if addresses is None else _spans("addresses", addresses)
        )

    def on_register(self, name: str, function: Callable[[RegisterRow], object] | None = None) -> Any:
        """Call with a RegisterRow when an instruction, interrupt or exception has changed the register.

        `name` is one of `vm.vcpu(0).regs`: rax, al, rflags, zf, xmm0, cs, cr3. Control and segment registers
        cost little; for all others every instruction runs in the step engine.
        """
        try:
            self._regs[name]
        except KeyError as error:
            raise AxError(AxErrorKind.InvalidInput, f"on_register: {error.args[0]}") from None
        return self._made(REGISTER, function, names=(name.lower(),))

    def on_exception(
        self, function: Callable[[EventRow], object] | None = None, vector: Numbers | None = None
    ) -> Any:
        """Call with an EventRow for each exception, before its handler runs; also for those that come while
        another event is delivered. INT3, INTO and INT1 are exceptions here, INT n is none."""
        return self._made(EXCEPTION, function, matches=_vectors(vector))

    def on_interrupt(
        self, function: Callable[[EventRow], object] | None = None, vector: Numbers | None = None
    ) -> Any:
        """Call with an EventRow for each interrupt that is about to be delivered, and after each INT n."""
        return self._made(INTERRUPT, function, matches=_vectors(vector))

    def clear(self) -> None:
        """Remove all hooks."""
        for hooks in self._hooks.values():
            for hook in tuple(hooks):
                hook.remove()

    def __iter__(self) -> Any:
        """The hooks that are there."""
        return iter([hook for hooks in self._hooks.values() for hook in hooks])

    def _made(self, kind: int, function: Function | None, **options: Any) -> Any:
        if function is None:
            return lambda wanted: self._made(kind, wanted, **options)
        if not callable(function):
            raise AxError(
                AxErrorKind.InvalidInput,
                f"hooks: {function!r} cannot be called; give a function that takes one row",
            )
        hook = Hook(self, kind, function, **options)
        self._hooks[kind].append(hook)
        self._changed()
        return hook

    def forget(self, hook: Hook) -> None:
        """`Hook.remove` calls it."""
        self._hooks[hook.kind] = [other for other in self._hooks[hook.kind] if other is not hook]
        self._changed()

    # ---- the machine's side --------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Other hooks than before: at once if the CPU stands still, else where it next does."""
        self.due = True
        if self._vm.current_vcpu() is None:
            self.settle()
        else:
            self._cpu.kick()

    def settle(self) -> None:
        """Make the CPU show what the hooks want to see; it runs nothing now."""
        registers = [hook for hook in self._hooks[REGISTER] if hook.active]
        for hook in registers:
            hook.values = [self._regs[name] for name in hook.names]
        if not self.due:
            return
        self.due = False
        self.hears_exits = bool(self._hooks[EXIT])
        names = {name for hook in registers for name in hook.names}
        self._plain_registers = not names <= SYSTEM_REGISTERS
        self._system_registers = bool(names)
        self._spans = tuple(wanted for hook in self._hooks[INSTRUCTION] for wanted in hook.ranges)
        before = self.stores, self.loads, self.instructions
        self.stores = tuple(wanted for hook in self._hooks[WRITE] for wanted in hook.ranges)
        self.loads = tuple(wanted for hook in self._hooks[READ] for wanted in hook.ranges)
        self.instructions = bool(self._spans or names)
        wanted = any(self._hooks[kind] for kind in range(7) if kind != EXIT)
        if wanted != self._watching:
            (watch if wanted else unwatch)(self._cpu, self)
            self._watching = wanted
        elif wanted and (self.instructions or before != (self.stores, self.loads, False)):
            watch_again(self._cpu)
        self._vm._choose_exit_path()

    def raise_failure(self) -> None:
        """What a hook raised."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _tell(self, hook: Hook, row: Any) -> None:
        """Call one function. What it raises waits for the end of the instruction."""
        if not hook.active:  # removed by another hook of the same event
            return
        try:
            hook.function(row)
        except BaseException as error:
            if self.failure is None:
                self.failure = error
            else:
                self.failure.add_note(f"another hook raised {type(error).__name__} meanwhile: {error}")
            self._cpu.kick()

    def _next(self, kind: int) -> int:
        number = self._counts[kind]
        self._counts[kind] += 1
        return number

    # ---- what the VM and the CPU show ----------------------------------------------------------------------

    def saw_exit(self, row: ExitTuple) -> None:
        """One exit, from the exit loop."""
        if not self.hears_exits:
            return
        retired, vcpu, rip, kind, address, width, value, device, raised = row
        names = self._vm.get_devices().device_names
        shown = ExitRow(
            self._next(EXIT), retired, self._vm.now_ns(), vcpu, rip, symbol_at(self._vm, rip), KINDS[kind],
            address, width, value, names[device] if device >= 0 else "",
            tuple(line for line in range(LINES) if raised >> line & 1),
        )  # fmt: skip
        self._show(EXIT, shown)

    def _show(self, kind: int, row: Any) -> None:
        for hook in tuple(self._hooks[kind]):
            if hook.matches is None or hook.matches(row):
                self._tell(hook, row)

    def saw_fault(self, cpu: Cpu, fault: Fault, nested: bool) -> None:
        """An exception is about to be delivered."""
        if self._hooks[EXCEPTION]:
            row = exception_row(
                fault, number=self._next(EXCEPTION), retired=cpu.retired, rip=cpu.rip,
                symbol=symbol_at(self._vm, cpu.rip), cpl=cpu.cpl, nested=nested,
            )  # fmt: skip
            self._show(EXCEPTION, row)

    def saw_interrupt(self, cpu: Cpu, vector: int) -> None:
        """An interrupt is about to be delivered."""
        if self._hooks[INTERRUPT]:
            self._show(INTERRUPT, self._event(cpu, INTERRUPT, cpu.rip, "interrupt", vector, ""))

    def saw_software(self, cpu: Cpu, ip: int, vector: int, kind: int) -> None:
        """INT n and its relatives."""
        if kind == INT_N and self._hooks[INTERRUPT]:
            self._show(INTERRUPT, self._event(cpu, INTERRUPT, ip, "software", vector, ""))
        elif kind != INT_N and self._hooks[EXCEPTION]:
            self._show(EXCEPTION, self._event(cpu, EXCEPTION, ip, "exception", vector, SOFTWARE_WORDS[kind]))

    def _event(self, cpu: Cpu, kind: int, rip: int, event: str, vector: int, why: str) -> EventRow:
        return EventRow(
            self._next(kind), cpu.retired, 0, rip, symbol_at(self._vm, rip), event, vector, None, 0, cpu.cpl,
            False, why,
        )  # fmt: skip

    def after_event(self, cpu: Cpu, retired: int) -> None:
        """An event was delivered: what it did to registers."""
        if self._system_registers:
            self._look_at_registers(cpu, retired, cpu.last_ip)

    def saw_store(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int, before: bytes) -> None:
        """An instruction wrote RAM."""
        self._stored(cpu, running_ip(cpu), gpa, linear, size, value, "cpu")

    def saw_walk(self, cpu: Cpu, gpa: int, size: int, value: int) -> None:
        """The page walk set bits."""
        self._stored(cpu, running_ip(cpu), gpa, 0, size, value, "walk")

    def saw_host_write(self, cpu: Cpu, gpa: int, size: int) -> None:
        """A device or the host wrote RAM."""
        self._stored(cpu, cpu.rip, gpa, 0, size, 0, "dma")

    def _stored(self, cpu: Cpu, rip: int, gpa: int, linear: int, size: int, value: int, by: str) -> None:
        found = [hook for hook in self._hooks[WRITE] if _touches(hook.ranges, gpa, size)]
        if found:
            row = StoreRow(self._next(WRITE), cpu.retired, 0, rip, symbol_at(self._vm, rip), gpa, linear,
                           size, value, by)  # fmt: skip
            for hook in found:
                self._tell(hook, row)

    def saw_load(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int) -> None:
        """An instruction read RAM."""
        found = [hook for hook in self._hooks[READ] if _touches(hook.ranges, gpa, size)]
        if found:
            rip = running_ip(cpu)
            row = LoadRow(self._next(READ), cpu.retired, 0, rip, symbol_at(self._vm, rip), gpa, linear, size,
                          value)  # fmt: skip
            for hook in found:
                self._tell(hook, row)

    def wants_instruction(self, cpu: Cpu, linear: int, insn: Insn) -> bool:
        """Whether a hook is on it, or it may change a register that one is on."""
        if self._plain_registers or any(linear in wanted for wanted in self._spans):
            return True
        return self._system_registers and insn.function not in plain_functions()

    def before_instruction(self, cpu: Cpu, insn: Insn) -> None:
        """Call who wants to hear of it."""
        if not self._spans:
            return
        linear = insn.ip if cpu.mode64 else cpu.cs.base + insn.ip & 0xFFFF_FFFF
        found = [hook for hook in self._hooks[INSTRUCTION] if any(linear in wanted for wanted in hook.ranges)]
        if found:
            row = InstructionRow(
                self._next(INSTRUCTION), cpu.retired, 0, insn.ip, symbol_at(self._vm, insn.ip), cpu.code_bits,
                insn.raw, "", 0, (), (),
            )  # fmt: skip
            for hook in found:
                self._tell(hook, row)

    def after_instruction(self, cpu: Cpu, retired: int, insn: Insn) -> None:
        """What it did to registers."""
        if self._system_registers:
            self._look_at_registers(cpu, retired, insn.ip)

    def _look_at_registers(self, cpu: Cpu, retired: int, rip: int) -> None:
        for hook in tuple(self._hooks[REGISTER]):
            for n, name in enumerate(hook.names):
                before, after = hook.values[n], self._regs[name]
                if after != before:
                    hook.values[n] = after
                    row = RegisterRow(self._next(REGISTER), retired, 0, rip, symbol_at(self._vm, rip),
                                      Change(name, before, after))  # fmt: skip
                    self._tell(hook, row)


def _reasons(wanted: str | Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for name in [wanted] if isinstance(wanted, str) else wanted:
        names = REASON_GROUPS.get(name, (name,))
        for each in names:
            if each not in KINDS:
                raise AxError(
                    AxErrorKind.InvalidInput,
                    f"on_exit: no reason {each!r}; there are {', '.join(sorted((*KINDS, *REASON_GROUPS)))}",
                )
        found.update(names)
    return frozenset(found)


def _spans(name: str, wanted: Numbers) -> tuple[range, ...]:
    """Ranges of step 1 for what was asked for."""
    if isinstance(wanted, int):
        return (range(wanted, wanted + 1),)
    if isinstance(wanted, range) and wanted.step == 1:
        return (wanted,)
    try:
        numbers = sorted(set(wanted))
        return tuple(range(number, number + 1) for number in numbers)
    except TypeError:
        raise AxError(
            AxErrorKind.InvalidInput, f"hooks: {name}={wanted!r}; give a number, a range or several numbers"
        ) from None


def _touches(spans: Sequence[range], address: int, size: int) -> bool:
    return any(span.start < address + size and address < span.stop for span in spans)


def _vectors(wanted: Numbers | None) -> Callable[[Any], bool] | None:
    if wanted is None:
        return None
    spans = _spans("vector", wanted)
    return lambda row: _touches(spans, row.vector, 1)
