"""`pysim-vm step`: one instruction after the other, each with what it changed. The guest gets no input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from isa.exits import Budget, ExitReason, Hypercall, SystemDown, TripleFault
from pysim_vm.cli.machine import Machine
from pysim_vm.cli.status import ExitStatus
from pysim_vm.cli.watch import Stepper, StepRecord, step_lines
from pysim_vm.errors import DeviceFault
from pysim_vm.report import exit_words, place, plural, register_dump, triple_fault_report

DEFAULT_COUNT = 20


@dataclass(frozen=True, slots=True)
class StepOptions:
    """`skip` instructions run at full speed first, then `count` are shown; `until` is a RIP that ends it."""

    count: int = DEFAULT_COUNT
    skip: int = 0
    until: int | None = None
    registers: bool = False
    as_json: bool = False


@dataclass(slots=True)
class StepEnd:
    """Why stepping ended."""

    status: int
    kind: str
    sentence: str
    details: tuple[str, ...] = ()


def step_machine(
    machine: Machine,
    options: StepOptions,
    stdout: TextIO,
    stderr: TextIO,
    ask: Callable[[], int] | None = None,
) -> int:
    """Step a machine; the exit code.

    `ask`, for a terminal, is called when the count is used up; it returns how many more, 0 to leave. With
    `as_json` every line is one JSON object, the last one being the end.
    """
    printer = _Printer(machine, options, stdout)
    end = _skip(machine, options.skip)
    if end is None:
        stepper = Stepper(machine.vm, symbols=machine.symbols)
        try:
            end = _steps(machine, stepper, printer, options, ask)
        finally:
            stepper.close()
    if options.as_json:
        stdout.write(
            json.dumps({"outcome": end.kind, "exit_status": end.status, "sentence": end.sentence}) + "\n"
        )
    else:
        if options.registers:
            stdout.writelines(f"{line}\n" for line in register_dump(machine.vm.vcpu(0).cpu))
        stdout.flush()
        stderr.write(f"pysim-vm: {end.sentence}\n")
        stderr.writelines(f"{line}\n" for line in end.details)
    stdout.flush()
    return end.status


class _Printer:
    """Shows records, and the console's output where it came."""

    def __init__(self, machine: Machine, options: StepOptions, stdout: TextIO) -> None:
        self._vm = machine.vm
        self._as_json = options.as_json
        self._stdout = stdout
        self._shown = 0

    def show(self, record: StepRecord) -> None:
        console = bytes(self._vm.console.data[self._shown :])
        self._shown += len(console)
        if record.empty:
            return
        if self._as_json:
            document = record.as_dict()
            if console:
                document["console"] = console.decode("utf-8", "replace")
            self._stdout.write(json.dumps(document) + "\n")
            return
        lines = step_lines(record)
        if console:
            lines.append(f"             console prints {console.decode('utf-8', 'replace')!r}")
        self._stdout.write("\n".join(lines) + "\n")


def _skip(machine: Machine, count: int) -> StepEnd | None:
    vm = machine.vm
    goal = vm.vcpu(0).retired + count
    while vm.vcpu(0).retired < goal:
        try:
            reason = vm.run(goal - vm.vcpu(0).retired)
        except DeviceFault as error:
            return StepEnd(ExitStatus.DEVICE, "device", str(error))
        end = _end_of(machine, reason)
        if end is not None:
            return end
    return None


def _steps(
    machine: Machine,
    stepper: Stepper,
    printer: _Printer,
    options: StepOptions,
    ask: Callable[[], int] | None,
) -> StepEnd:
    left, done = options.count, 0
    while True:
        if left <= 0:
            left = ask() if ask is not None else 0
            if left <= 0:
                at = place(machine.vm.vcpu(0).cpu, symbols=machine.symbols)
                return StepEnd(
                    ExitStatus.OK, "steps", f"{plural(done, 'step')}; the next instruction is at {at}"
                )
        try:
            record = stepper.step()
        except DeviceFault as error:
            printer.show(stepper.last)
            return StepEnd(ExitStatus.DEVICE, "device", str(error))
        printer.show(record)
        left -= not record.empty
        done += not record.empty
        assert record.reason is not None  # a step that returned has a reason
        end = _end_of(machine, record.reason)
        if end is not None:
            return end
        if options.until is not None and record.next_ip == options.until:
            return StepEnd(
                ExitStatus.OK, "until", f"RIP reached {options.until:#x} after {plural(done, 'step')}"
            )


def _end_of(machine: Machine, reason: ExitReason) -> StepEnd | None:
    """The end of stepping for an exit that run_vcpu returned; None: go on."""
    vm = machine.vm
    cpu = vm.vcpu(0).cpu
    if isinstance(reason, Budget):
        total = vm.config().pysim.budget_instructions
        if cpu.retired < total:
            return None
        return StepEnd(ExitStatus.BUDGET, "budget", f"budget of {plural(total, 'instruction')} used up")
    if isinstance(reason, Hypercall):
        return None
    kind = type(reason).__name__
    sentence = f"{kind} at {place(cpu, symbols=machine.symbols)}: {exit_words(reason)}"
    if isinstance(reason, SystemDown):
        code = vm.exit_code
        if code is not None:
            return StepEnd(code & 0xFF, "guest-exit", f"the guest ended the run with code {code & 0xFF}")
        return StepEnd(ExitStatus.OK, "power-off", "the guest switched the machine off")
    if isinstance(reason, TripleFault):
        report = triple_fault_report(cpu, reason, machine.symbols)
        return StepEnd(ExitStatus.TRIPLE_FAULT, "triple-fault", sentence, tuple(report.text().splitlines()))
    status = {
        "Halt": ExitStatus.HALTED,
        "Unimplemented": ExitStatus.UNIMPLEMENTED,
        "NestedPageFault": ExitStatus.NESTED_PAGE_FAULT,
    }.get(kind, ExitStatus.UNANSWERED)
    return StepEnd(status, kind.lower(), sentence)
