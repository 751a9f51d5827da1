"""`pysim-vm run`: the loop between the guest, the terminal and the user, and the words at its end.

The guest runs in slices, so that keys arrive; without a keyboard or scripted input it runs in one piece. What
ends a run early (a key, a signal, a text seen, a broken pipe) asks the CPU for attention and so comes between
two instructions.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, BinaryIO, Final, TextIO

from isa.exits import (
    Budget,
    ExitReason,
    ExternalInterrupt,
    FailEntry,
    Halt,
    Hypercall,
    NestedPageFault,
    SystemDown,
    TripleFault,
    Unimplemented,
)
from pysim_vm.cli.machine import Machine, output_limit_words
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.terminal import (
    HELP,
    LONGEST_WAIT,
    ConsoleInput,
    ConsoleOutput,
    Escape,
    EscapeFilter,
    is_terminal,
    raw_terminal,
)
from pysim_vm.cli.watch import ExitRecord, ExitTracer, Stepper, trace_lines
from pysim_vm.errors import DeviceFault
from pysim_vm.record_format import RecordError
from pysim_vm.recorder import DEFAULT_LIMIT, Recorder
from pysim_vm.report import (
    exit_words,
    instruction_at,
    place,
    plural,
    register_dump,
    registers_dict,
    triple_fault_report,
)

KEY_SLICE: Final = 20_000  # instructions between two looks at the keyboard: some 20 ms
COLLECTIONS: Final = (50_000, 20, 50)  # thresholds of the garbage collector's three generations
FEED_SLICE: Final = 100_000  # between two looks at a pipe; also where scripted input goes on
RECENT: Final = 16  # instructions that a triple-fault report shows if they were traced
ATTENTION: Final = 0  # vector of the exit by which this loop gets the CPU back
WHOLE_RUN: Final = 1 << 62
RECORD_SLICE: Final = 1_000_000  # between two moments at which a record is complete in its file


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `run` was asked for beyond the machine; paths are host paths, "" or None where not given."""

    budget: int | None = None
    trace: str = ""
    trace_file: str | None = None
    screen: bool = False
    registers: bool = False
    as_json: bool = False
    quiet: bool = False
    output: str | None = None
    log_file: str | None = None
    input_file: str | None = None
    type_text: str = ""
    type_after: str = ""
    keys: str = "serial"
    stop_on: str = ""
    read_stdin: bool = True
    record: str | None = None
    record_stores: bool | Sequence[range] = False
    record_instructions: bool = False
    record_limit: int | None = None
    record_compress: bool = False
    command: Mapping[str, Any] | None = None  # for the record: what makes the same run again


@dataclass(slots=True)
class Outcome:
    """How a run ended: the code for the shell, one sentence, and the exit that said so."""

    status: int
    sentence: str
    kind: str
    reason: ExitReason | None = None
    details: list[str] = field(default_factory=list)
    triple_fault: dict[str, object] | None = None


class TextWatch:
    """Looks for a text in a stream of bytes, across the borders of writes, keeping only what it must."""

    def __init__(self, text: str) -> None:
        self._wanted = text.encode()
        self._tail = b""
        self.seen = not self._wanted

    def feed(self, data: bytes) -> bool:
        """True at the moment the text is complete for the first time."""
        if self.seen:
            return False
        joined = self._tail + data
        if self._wanted in joined:
            self.seen = True
            return True
        keep = len(self._wanted) - 1
        self._tail = joined[-keep:] if keep else b""
        return False


class GuestInput:
    """Bytes on their way to the guest's serial port or keyboard; what does not fit waits."""

    def __init__(self, machine: Machine, keys: str) -> None:
        self._board = machine.vm.board
        self._keys = keys
        self._waiting: deque[bytes] = deque()
        if keys == "ps2" and self._board is not None and self._board.i8042 is None:
            raise CommandError(ExitStatus.USAGE, "--keys ps2: this board has no keyboard; use --keys serial")

    def add(self, data: bytes) -> None:
        """Queue `data` and hand over what fits; without a board it goes nowhere."""
        if data and self._board is not None:
            self._waiting.append(data)
            self.pump()

    def pump(self) -> None:
        """Hand over what fits now."""
        board = self._board
        while self._waiting and board is not None:
            data = self._waiting.popleft()
            if self._keys == "ps2" and board.i8042 is not None:
                text = data.decode("latin-1").replace("\r", "\n")
                rest = text[board.i8042.type_text(text) :].encode("latin-1")
            else:
                rest = data[board.com1.receive(data) :]
            if rest:
                self._waiting.appendleft(rest)
                return

    def send_break(self) -> None:
        """A break condition on the serial line."""
        if self._board is not None:
            self._board.com1.receive_break()


class Session:
    """One run of a machine. `run` gives the outcome; all that the user sees on the way goes through here."""

    def __init__(self, machine: Machine, options: RunOptions, stdout: BinaryIO, stderr: TextIO) -> None:
        self.vm = machine.vm
        self.cpu = machine.vm.vcpu(0).cpu
        self._machine = machine
        self._options = options
        self._stderr = stderr
        self._stop: Outcome | None = None
        self._files = contextlib.ExitStack()
        self._input = GuestInput(machine, options.keys)
        self._scripted = _scripted(options)
        self._type_after = TextWatch(options.type_after)
        self._stop_on = TextWatch(options.stop_on)
        self._stdin: ConsoleInput | None = None
        self._escapes = EscapeFilter()
        self._interactive = False
        self._trace_stream: TextIO = stderr
        self._log: ConsoleOutput | None = None
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._console: ConsoleOutput | None = None
        if options.output is not None:
            self._console = ConsoleOutput(self._open(options.output, "--output"), options.output)
        elif not options.as_json:
            self._console = ConsoleOutput(stdout, "standard output", flush_always=_is_tty(stdout))
        if options.trace_file is not None:
            self._trace_stream = self._open_text(options.trace_file)
        if options.log_file is not None:
            self._log = ConsoleOutput(self._open(options.log_file, "--log-file"), options.log_file)

    # ---- the run -------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run to the end; host files are closed and the terminal is as before, whatever happens."""
        vm, options = self.vm, self._options
        with self._files:
            self._open_stdin()
            vm.console.listener = self._printed
            if self._log is not None:
                vm.debug_console.listener = self._log.write
            vm.on_idle = self._idle
            recorder = self._start_recording()
            interactive = raw_terminal(sys.stdin.fileno()) if self._interactive else contextlib.nullcontext()
            with end_signals(self._signalled), interactive, rare_collections():
                if self._scripted and self._type_after.seen:
                    self._feed_script()
                outcome = self._run_traced() if options.trace else self._run_slices(self._slice)
            for stream in (self._console, self._log):
                if stream is not None:
                    stream.flush()
            failure = ""
            try:
                self._trace_stream.flush()
            except (OSError, ValueError) as error:
                failure = self._trace_failure(error)
            if recorder is not None:
                recorder.close()
                if recorder.failed:
                    failure = failure or recorder.stopped
                elif recorder.stopped:
                    self._tell([f"pysim-vm: {recorder.stopped}"])
        failure = failure or (self._console.failure if self._console is not None else "")
        failure = failure or (self._log.failure if self._log is not None else "")
        if failure and outcome.status != ExitStatus.HOST_IO:
            outcome = Outcome(ExitStatus.HOST_IO, failure, "host-io", outcome.reason)
        return outcome

    def _start_recording(self) -> Recorder | None:
        """The recorder of --record, closed with the other files whatever happens."""
        options = self._options
        if options.record is None:
            return None
        try:
            recorder = self.vm.record(
                options.record,
                stores=options.record_stores,
                instructions=options.record_instructions,
                limit=DEFAULT_LIMIT if options.record_limit is None else options.record_limit,
                compress=options.record_compress,
                command=options.command,
            )
        except RecordError as error:
            raise CommandError(ExitStatus.HOST_IO, f"--record: {error}") from error
        self._files.callback(recorder.close)
        return recorder

    def _run_traced(self) -> Outcome:
        if self._options.trace == "instructions":
            stepper = Stepper(self.vm, details=False, symbols=self._machine.symbols)
            try:
                return self._run_slices(lambda budget: self._trace_slice(stepper, budget))
            finally:
                stepper.close()
        tracer = ExitTracer(self.vm, self._trace_exit, self._machine.symbols)
        try:
            return self._run_slices(self._slice)
        finally:
            tracer.close()

    def _run_slices(self, run_slice: Callable[[int], ExitReason]) -> Outcome:
        """Slices until something ends the run."""
        total = self.vm.config().pysim.budget_instructions
        if self._options.budget is not None:
            total = min(total, self.cpu.retired + self._options.budget)
        length = KEY_SLICE if self._interactive else FEED_SLICE
        if self._stdin is None and not self._scripted:
            length = WHOLE_RUN
        if self._options.record is not None:
            length = min(length, RECORD_SLICE)
        while True:
            if self._stop is not None:
                return self._stop
            left = total - self.cpu.retired
            if left <= 0:
                return self._budget_used(total)
            self._look_at_input(0.0)
            try:
                reason = run_slice(min(length, left))
            except DeviceFault as error:
                return Outcome(ExitStatus.DEVICE, str(error), "device")
            if self._stop is not None:
                return self._stop
            outcome = self._judge(reason)
            if outcome is not None:
                return outcome
            if self._console is not None:
                self._console.flush()

    def _slice(self, budget: int) -> ExitReason:
        return self.vm.run(budget)

    def _trace_slice(self, stepper: Stepper, budget: int) -> ExitReason:
        """`budget` instructions, one line each."""
        end = self.cpu.retired + budget
        while True:
            record = stepper.step()
            if record.empty:
                pass
            elif self._options.as_json:
                self._trace_line(json.dumps(record.as_dict()))
            else:
                for line in trace_lines(record):
                    self._trace_line(line)
                self._recent.append(record.line())
            if not isinstance(record.reason, Budget) or self.cpu.retired >= end or self._stop is not None:
                assert record.reason is not None  # a step that returned has a reason
                return record.reason

    def _judge(self, reason: ExitReason) -> Outcome | None:
        """What an exit that run_vcpu returned means for the run; None: go on."""
        at = place(self.cpu, symbols=self._machine.symbols)
        after = f"after {plural(self.cpu.retired, 'instruction')}"
        match reason:
            case Budget() | ExternalInterrupt():
                return None
            case Hypercall():
                return None  # nobody hears it: the VM answers with an error code
            case SystemDown() if self.vm.exit_code is not None:
                code = self.vm.exit_code & 0xFF
                return Outcome(
                    code,
                    f"the guest ended the run {after} with code {code} (isa-debug-exit)",
                    "guest-exit",
                    reason,
                )
            case SystemDown():
                return Outcome(
                    ExitStatus.OK, f"the guest switched the machine off {after}", "power-off", reason
                )
            case Halt() if self._waits_for_keys():
                self._look_at_input(LONGEST_WAIT)
                return None
            case Halt():
                return Outcome(ExitStatus.HALTED, f"{self._halted(at)}, {after}", "halted", reason)
            case TripleFault():
                report = triple_fault_report(self.cpu, reason, self._machine.symbols, tuple(self._recent))
                sentence = (
                    f"triple fault at {at} {after}: {exit_words(reason)}; the report says how it came to that"
                )
                return Outcome(
                    ExitStatus.TRIPLE_FAULT, sentence, "triple-fault", reason,
                    report.text().splitlines(), report.as_dict(),
                )  # fmt: skip
            case Unimplemented():
                sentence = f"{reason}; this CPU does not have it, so the run ends {after}"
                return Outcome(ExitStatus.UNIMPLEMENTED, sentence, "unimplemented", reason)
            case NestedPageFault():
                return Outcome(
                    ExitStatus.NESTED_PAGE_FAULT, self._hole(reason, at, after), "nested-page-fault", reason
                )
            case FailEntry():
                sentence = f"the CPU cannot start at {at}: {exit_words(reason)}"
                return Outcome(ExitStatus.UNANSWERED, sentence, "fail-entry", reason)
            case _:
                sentence = f"exit at {at} {after} that the command line does not answer: {exit_words(reason)}"
                return Outcome(ExitStatus.UNANSWERED, sentence, "unanswered", reason)

    def _budget_used(self, total: int) -> Outcome:
        at = place(self.cpu, symbols=self._machine.symbols)
        _, text = instruction_at(self.cpu, self.cpu.rip)
        sentence = f"budget of {plural(total, 'instruction')} used up at {at} ({text}); --budget gives more"
        return Outcome(ExitStatus.BUDGET, sentence, "budget", Budget(self.cpu.retired))

    def _halted(self, at: str) -> str:
        if not self.cpu.if_:
            return f"the guest halted for good at {at}: HLT with interrupts off"
        if self._stdin is not None and self._stdin.ended:
            return f"the guest waits in HLT at {at} for input, but the input has ended"
        return f"the guest waits in HLT at {at} for an interrupt that no device will raise"

    def _hole(self, reason: NestedPageFault, at: str, after: str) -> str:
        if reason.access_flags & 4:
            did = f"jumped to {at}, guest-physical {reason.addr:#x}, where no memory is to run from"
        else:
            verb = "wrote to" if reason.access_flags & 2 else "read"
            did = f"{verb} guest-physical {reason.addr:#x} at {at}, where neither RAM nor a device is"
        return f"the guest {did}, {after}; give it more --memory or correct the address"

    # ---- input and output ----------------------------------------------------------------------------------

    def _open_stdin(self) -> None:
        options = self._options
        if not options.read_stdin or self.vm.board is None:
            return
        try:
            descriptor = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):  # closed, or replaced by something without a descriptor
            return
        self._interactive = is_terminal(descriptor) and not options.as_json
        if is_terminal(descriptor) and not self._interactive:
            return
        if self._scripted and not self._interactive:
            return  # a scripted run depends on its script alone
        self._stdin = ConsoleInput(descriptor)

    def _waits_for_keys(self) -> bool:
        waits = self._stdin is not None and not self._stdin.ended and bool(self.cpu.if_)
        return waits or (self._scripted != b"" and self._type_after.seen and bool(self.cpu.if_))

    def _look_at_input(self, wait_seconds: float) -> None:
        if self._scripted and self._type_after.seen:
            self._feed_script()
            wait_seconds = 0.0
        self._input.pump()
        if self._stdin is None:
            return
        data = self._stdin.read(wait_seconds)
        if not self._interactive:
            self._input.add(data)
            return
        for part in self._escapes.feed(data):
            if isinstance(part, bytes):
                self._input.add(part)
            else:
                self._escape(part)

    def _feed_script(self) -> None:
        script, self._scripted = self._scripted, b""
        self._input.add(script)

    def _idle(self, nanoseconds: int) -> None:
        """The guest sleeps: at a terminal wait about as long as it would, otherwise only look."""
        if self._console is not None:
            self._console.flush()
        wait = 0.0
        if self._interactive:
            wait = LONGEST_WAIT if nanoseconds < 0 else nanoseconds / 1e9
        self._look_at_input(wait)

    def _printed(self, data: bytes) -> None:
        """Console bytes, from inside the device that printed them."""
        if self._console is not None:
            self._console.write(data)
            if self._console.failure:
                self._end(Outcome(ExitStatus.HOST_IO, self._console.failure, "host-io"))
        if self._type_after.feed(data):
            self._attention()
        if self._stop_on.feed(data):
            after = plural(self.cpu.retired, "instruction")
            sentence = f"the console printed {self._options.stop_on!r} after {after}"
            self._end(Outcome(ExitStatus.OK, sentence, "stop-on"))

    def _escape(self, command: Escape) -> None:
        match command:
            case Escape.HELP:
                self._tell(HELP.splitlines())
            case Escape.LEAVE:
                sentence = f"left with Ctrl-A x after {plural(self.cpu.retired, 'instruction')}"
                self._end(Outcome(ExitStatus.OK, sentence, "left"))
            case Escape.STATUS:
                self._tell([status_line(self._machine)])
            case Escape.SCREEN:
                self._tell(screen_lines(self._machine) or ["no VGA text screen on this board"])
            case Escape.BREAK:
                self._input.send_break()

    def _tell(self, lines: list[str]) -> None:
        self._stderr.write("".join(f"\n{line}" for line in lines) + "\n")
        self._stderr.flush()

    # ---- ends from outside --------------------------------------------------------------------------------

    def _end(self, outcome: Outcome) -> None:
        if self._stop is None:
            self._stop = outcome
        self._attention()

    def _attention(self) -> None:
        self.cpu.host_interrupt = ATTENTION
        self.cpu.request_attention()

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        sentence = f"interrupted by {name} after {plural(self.cpu.retired, 'instruction')}"
        self._end(Outcome(ExitStatus.INTERRUPTED, sentence, "interrupted"))

    # ---- traces and files ----------------------------------------------------------------------------------

    def _trace_exit(self, record: ExitRecord) -> None:
        self._trace_line(json.dumps(record.as_dict()) if self._options.as_json else record.line())

    def _trace_line(self, line: str) -> None:
        try:
            self._trace_stream.write(line + "\n")
        except (OSError, ValueError) as error:
            self._end(Outcome(ExitStatus.HOST_IO, self._trace_failure(error), "host-io"))

    def _trace_failure(self, error: Exception) -> str:
        where = self._options.trace_file or "standard error"
        return f"the trace cannot be written to {where} ({_reason(error)}); check where it goes"

    def _open(self, path: str, option: str) -> BinaryIO:
        try:
            stream = Path(path).open("wb")  # noqa: SIM115  (closed with the others)
        except (OSError, ValueError) as error:
            raise CommandError(
                ExitStatus.HOST_IO, f"{option}: {path} cannot be written ({_reason(error)}); check the path"
            ) from None
        self._files.callback(_close, stream)
        return stream

    def _open_text(self, path: str) -> TextIO:
        try:
            stream = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  (closed with the others)
        except (OSError, ValueError) as error:
            raise CommandError(
                ExitStatus.HOST_IO,
                f"--trace-file: {path} cannot be written ({_reason(error)}); check the path",
            ) from None
        self._files.callback(_close, stream)
        return stream


def _close(stream: IO[Any]) -> None:
    """Close a file whose last flush was looked at: what could not be written then cannot be written now."""
    with contextlib.suppress(OSError):
        stream.close()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _is_tty(stream: BinaryIO) -> bool:
    try:
        return os.isatty(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return False


def _scripted(options: RunOptions) -> bytes:
    data = b""
    if options.input_file is not None:
        try:
            data = Path(options.input_file).read_bytes()
        except (OSError, ValueError) as error:
            raise CommandError(
                ExitStatus.LOAD,
                f"--input: {options.input_file} cannot be read ({_reason(error)}); check the path",
            ) from None
    return data + unescape(options.type_text)


def unescape(text: str) -> bytes:
    r"""The bytes that `--type` stands for: \r \n \t \e \\ and \xNN; other letters after a backslash stay."""
    single = {"r": b"\r", "n": b"\n", "t": b"\t", "e": b"\x1b", "\\": b"\\"}
    out = bytearray()
    at = 0
    while at < len(text):
        letter = text[at + 1 : at + 2]
        if text[at] != "\\" or not letter:
            out += text[at].encode()
            at += 1
        elif letter in single:
            out += single[letter]
            at += 2
        elif (
            letter == "x"
            and len(text) >= at + 4
            and all(c in "0123456789abcdefABCDEF" for c in text[at + 2 : at + 4])
        ):
            out.append(int(text[at + 2 : at + 4], 16))
            at += 4
        else:
            out += text[at].encode()
            at += 1
    return bytes(out)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """The garbage collector looks seldom. What is made while a guest runs, decoded and translated code, lives
    as long as the VM; looking through it again and again takes a tenth of a kernel's boot."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def end_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the run between two instructions; the old handlers come back."""

    def receive(number: int, frame: FrameType | None) -> None:
        handler(number)

    before: list[tuple[int, Any]] = []
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                before.append((number, signal.signal(number, receive)))
            except ValueError:  # not the main thread: signals are somebody else's
                break
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


# ---- what is shown at the end ------------------------------------------------------------------------------


def status_line(machine: Machine) -> str:
    """Where the guest is, in one line."""
    vm, cpu = machine.vm, machine.vm.vcpu(0).cpu
    instructions, exits = plural(cpu.retired, "instruction"), plural(sum(vm.exit_counts.values()), "exit")
    return (
        f"{cpu.mode_name()} mode at {place(cpu, symbols=machine.symbols)}, {instructions}, {exits}, "
        f"{vm.now_ns() / 1e9:.3f} s of guest time"
    )


def screen_lines(machine: Machine) -> list[str]:
    """The VGA text screen in a frame; empty without one."""
    board = machine.vm.board
    if board is None or board.vga is None:
        return []
    rows = [row.rstrip() for row in board.vga.screen()]
    width = board.vga.size()[0]
    frame = "+" + "-" * width + "+"
    return [frame, *(f"|{row:<{width}}|" for row in rows), frame]


def outcome_dict(machine: Machine, outcome: Outcome, options: RunOptions) -> dict[str, object]:
    """The JSON document of a run."""
    vm, cpu = machine.vm, machine.vm.vcpu(0).cpu
    document: dict[str, object] = {
        "outcome": outcome.kind,
        "exit_status": int(outcome.status),
        "sentence": outcome.sentence,
        "guest": machine.description,
        "instructions": cpu.retired,
        "virtual_ns": vm.now_ns(),
        "exits": dict(sorted(vm.exit_counts.items())),
        "console": vm.console.text(),
        "console_dropped": vm.console.dropped,
        "debug_console": vm.debug_console.text(),
        "registers": registers_dict(cpu),
        "warnings": [*machine.warnings, *_cache_notes(machine)],
    }
    if outcome.triple_fault is not None:
        document["triple_fault"] = outcome.triple_fault
    if options.screen and vm.board is not None and vm.board.vga is not None:
        document["screen"] = [row.rstrip() for row in vm.board.vga.screen()]
    return document


def _cache_notes(machine: Machine) -> list[str]:
    """What went wrong with the translation cache."""
    cache = machine.vm.translation_cache
    return [] if cache is None else cache.notes


def run_machine(machine: Machine, options: RunOptions, stdout: BinaryIO, stderr: TextIO) -> int:
    """Run a machine and show what came of it; the exit code. CommandError for host files that fail."""
    for warning in machine.warnings:
        stderr.write(f"pysim-vm: warning: {warning}\n")
    session = Session(machine, options, stdout, stderr)
    outcome = session.run()
    machine.vm.keep_translations()
    if options.stop_on and outcome.kind not in ("stop-on", "interrupted", "host-io"):
        outcome.sentence = f"the console never printed {options.stop_on!r}: {outcome.sentence}"
        outcome.status, outcome.kind = ExitStatus.TEXT_MISSING, "text-missing"
    if options.as_json:
        stdout.write(json.dumps(outcome_dict(machine, outcome, options), indent=2).encode() + b"\n")
        stdout.flush()
    elif options.screen and outcome.status != ExitStatus.HOST_IO:
        stdout.write(("\n" + "\n".join(screen_lines(machine)) + "\n").encode())
        stdout.flush()
    if outcome.status or not options.quiet:
        data = machine.vm.console.data
        unfinished = bool(data) and not data.endswith((b"\n", b"\r")) and options.output is None
        stderr.write(("\n" if unfinished and not options.as_json else "") + f"pysim-vm: {outcome.sentence}\n")
        dropped = output_limit_words(machine.vm)
        if dropped:
            stderr.write(f"pysim-vm: {dropped}\n")
    stderr.writelines(f"pysim-vm: warning: {note}\n" for note in _cache_notes(machine))
    if not options.as_json:
        stderr.writelines(f"{line}\n" for line in outcome.details)
        if options.registers and not outcome.details:
            stderr.writelines(f"{line}\n" for line in register_dump(machine.vm.vcpu(0).cpu))
    stderr.flush()
    return int(outcome.status)
