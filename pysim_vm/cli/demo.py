"""`pysim-vm demo`: the demo guest's console, then every exit it took, counted and a few explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from isa.exits import (
    ExitReason,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    SysRegRead,
    SystemDown,
)
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.table import table_text
from pysim_vm.cli.terminal import ConsoleOutput
from pysim_vm.cli.watch import ExitRecord, ExitTracer
from pysim_vm.demo import (
    BUDGET,
    CALCULATOR_BASE,
    CALCULATOR_MSR,
    CALCULATOR_PORT,
    ORIGIN,
    build_demo,
    image_path,
)
from pysim_vm.layout import ACPI_PM_CONTROL_PORT, COM1_PORT, PIC_MASTER_PORT, PIT_PORT
from pysim_vm.record_format import RecordError
from pysim_vm.report import exit_words, plural

LINE_STATUS = COM1_PORT + 5
OCW2_EOI = 0x20


@dataclass(frozen=True, slots=True)
class Lesson:
    """An exit worth a sentence: the first one that `shows` accepts."""

    shows: Callable[[ExitReason], bool]
    words: str


LESSONS = (
    Lesson(
        lambda r: isinstance(r, IoRead) and r.port == LINE_STATUS,
        'IN leaves the guest before it happens. The UART says "ready" (bit 5), AL gets it, on it goes.',
    ),
    Lesson(
        lambda r: isinstance(r, IoWrite) and r.port == COM1_PORT,
        "One letter, one exit: this is how every character above came out of the machine.",
    ),
    Lesson(
        lambda r: isinstance(r, IoRead) and r.port == CALCULATOR_PORT,
        "A device of one's own: a Python class with read and write, here on a port. 0x434c4143 spells CALC.",
    ),
    Lesson(
        lambda r: isinstance(r, MmioWrite) and r.addr == CALCULATOR_BASE,
        "An ordinary MOV to memory. The page tables lead to an address where a device is and no RAM: MMIO.",
    ),
    Lesson(
        lambda r: isinstance(r, MmioRead) and r.addr == CALCULATOR_BASE + 16,
        "The MOV waits for the device's answer and puts it into RAX.",
    ),
    Lesson(
        lambda r: isinstance(r, SysRegRead) and r.addr == CALCULATOR_MSR,
        "RDMSR of a register that the CPU does not have: the same device answers on its third bus.",
    ),
    Lesson(
        lambda r: isinstance(r, IoWrite) and r.port == PIT_PORT,
        "The 8254 counts down from here, in virtual time: so many nanoseconds for every instruction.",
    ),
    Lesson(
        lambda r: isinstance(r, Halt),
        "Nothing to do: virtual time jumps to the 8254's interrupt, which wakes the CPU through the 8259A.",
    ),
    Lesson(
        lambda r: isinstance(r, IoWrite) and r.port == PIC_MASTER_PORT and r.data == OCW2_EOI,
        "End of interrupt: without it the 8259A would send no second tick.",
    ),
    Lesson(
        lambda r: isinstance(r, IoWrite) and r.port == ACPI_PM_CONTROL_PORT,
        "The ACPI power switch: the VM returns SystemDown, and the program ends with code 0.",
    ),
)


def run_demo(
    stdout: BinaryIO, stderr: TextIO, *, as_json: bool = False, color: bool = False, record: str | None = None
) -> int:
    """Run the demo and show it; the exit code. `record` is the file for a record of it."""
    vm = build_demo()
    if record is not None:
        try:
            vm.record(record)
        except RecordError as error:
            raise CommandError(ExitStatus.HOST_IO, f"--record: {error}") from error
    console = ConsoleOutput(stdout, "standard output", flush_always=True)
    lessons: dict[int, ExitRecord] = {}

    def note(record: ExitRecord) -> None:
        for number, lesson in enumerate(LESSONS):
            if number not in lessons and lesson.shows(record.reason):
                lessons[number] = record

    if not as_json:
        vm.console.listener = console.write
        console.write(b"The guest's console:\r\n\r\n")
    tracer = ExitTracer(vm, note)
    reason = vm.run(BUDGET)
    tracer.close()
    if vm.recorder is not None:
        vm.recorder.close()
    status = ExitStatus.OK if isinstance(reason, SystemDown) else ExitStatus.INTERNAL
    instructions = vm.vcpu(0).retired
    rows = sorted(tracer.counts.items(), key=lambda item: (-item[1], item[0]))
    if as_json:
        document = {
            "outcome": "power-off" if status is ExitStatus.OK else type(reason).__name__,
            "exit_status": int(status),
            "instructions": instructions,
            "virtual_ns": vm.now_ns(),
            "console": vm.console.text(),
            "exits": [{"reason": kind, "answered_by": by, "count": count} for (kind, by), count in rows],
            "explained": [lessons[n].as_dict() | {"why": LESSONS[n].words} for n in sorted(lessons)],
        }
        stdout.write(json.dumps(document, indent=2).encode() + b"\n")
    else:
        table = [(kind, by or "the VM itself", f"{count:,}") for (kind, by), count in rows]
        head = (
            f"{plural(instructions, 'instruction')}, {plural(tracer.number, 'exit')}, "
            f"{vm.now_ns() / 1e6:.1f} ms of guest time. Every VM exit it took:"
        )
        console.write(("\n" + head + "\n\n").encode())
        console.write(table_text(("exit", "answered by", "count"), table, "llr", color=color).encode())
        console.write(b"\nA few of them, in order:\n\n")
        for number in sorted(lessons, key=lambda n: lessons[n].number):
            lesson = lessons[number]
            line = f"  #{lesson.number:<4} {exit_words(lesson.reason, lesson.value)}"
            console.write(f"{line}\n        {LESSONS[number].words}\n".encode())
        console.write(f"\nNext: pysim-vm step {_near(image_path())} --load-address {ORIGIN:#x}\n".encode())
    console.flush()
    if console.failure:
        stderr.write(f"pysim-vm: {console.failure}\n")
        return ExitStatus.HOST_IO
    if status is not ExitStatus.OK:
        stderr.write(f"pysim-vm: the demo ended with {exit_words(reason)}; please report it\n")
    return status


def _near(path: Path) -> str:
    """The path as one would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
