"""`pysim-vm kvm-compare`: both exit streams side by side, counts, host cost, a verdict. It runs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO

import click

from pysim_vm.cli.machine import Machine, MachineOptions
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.demo import build_demo
from pysim_vm.kvm.binding import Kvm, KvmError
from pysim_vm.kvm.compare import DEFAULT_LIMIT, DEFAULT_SECONDS, Comparison, Event, Side, compare
from pysim_vm.report import plural
from pysim_vm.vm import AxVM

SHOWN_FIRST: Final = 10  # exits of a long stream
SHOWN_LAST: Final = 4
SHOWN_BEFORE: Final = 5  # the first difference
SOFTWARE_KVM: Final = "kvm_pvm"
SOFTWARE_NOTE: Final = (
    "kvm_pvm executes kernel code in software, a part of the instructions and not always as the manual says;",
    "docs/kvm-compare.md tells what is known of it.",
    "",
)
NARROWEST, WIDEST = 60, 120  # columns


@dataclass(frozen=True, slots=True)
class KvmOptions:
    """The command's options; `show_all` lists every exit. `limit` counts exits, `budget` instructions."""

    limit: int = DEFAULT_LIMIT
    budget: int | None = None
    seconds: float = DEFAULT_SECONDS
    show_all: bool = False
    as_json: bool = False


def demo_machine() -> Machine:
    """The machine of `pysim-vm demo`."""
    return Machine(build_demo(), "The guest of pysim-vm demo: three modes, a device of its own, a timer.")


def refuse_shared_disks(options: MachineOptions) -> None:
    """CommandError USAGE for a disk file that both machines would write."""
    for text in options.disks:
        if text.endswith(",write"):
            raise CommandError(
                ExitStatus.USAGE,
                f"--disk {text}: two machines run, and both would write it; leave ,write out",
            )


def compare_machines(
    build: Callable[[], Machine], options: KvmOptions, stdout: TextIO, stderr: TextIO, *, color: bool = False
) -> int:
    """Build the machine twice, run both and show what came of it; the exit code.

    CommandError UNAVAILABLE where KVM is not there or refuses the machine.
    """
    try:
        with Kvm() as kvm:
            ours, theirs = build(), build()
            result = compare(
                ours.vm, theirs.vm, kvm=kvm, limit=options.limit, budget=options.budget,
                seconds=options.seconds,
            )  # fmt: skip
    except KvmError as error:
        raise CommandError(ExitStatus.UNAVAILABLE, str(error)) from error
    status = exit_status(result)
    sentence = verdict(result, ours.vm)
    if options.as_json:
        stdout.write(json.dumps(document(result, ours, options, status, sentence), indent=2) + "\n")
        return status
    for warning in ours.warnings:
        stderr.write(f"warning: {warning}\n")
    width = min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
    stdout.write("\n".join(report(result, ours, sentence, width, options.show_all, color)) + "\n")
    return status


def exit_status(result: Comparison) -> ExitStatus:
    """DIFFERENT for a difference, UNAVAILABLE where KVM could not run the guest, else OK."""
    if result.differs:
        return ExitStatus.DIFFERENT
    if result.theirs.end.kind in ("Unable", "Timeout") or result.ours.end.kind == "Unable":
        return ExitStatus.UNAVAILABLE
    return ExitStatus.OK


def verdict(result: Comparison, vm: AxVM) -> str:
    """The sentence that people are to remember."""
    exits = plural(result.compared, "exit")
    if result.first is not None:
        time = f" ({result.timer} tells the time, and KVM's is another)" if result.timer else ""
        return f"{exits} are the same, number {result.first + 1:,} differs, at {result.where}{time}"
    if result.registers or result.memory:
        what = " and ".join(
            name for name, found in (("registers", result.registers), ("RAM", result.memory)) if found
        )
        return f"{exits}, the same on both; {what} at the end differ"
    if result.whole:
        mib = sum(region.size for region in vm.memory.regions) / (1 << 20)
        return f"{exits}, no difference; all registers and {mib:g} MiB of RAM at the end are the same"
    theirs, ours = result.theirs.end, result.ours.end
    if theirs.kind in ("Unable", "Timeout", "Reset"):
        return f"{exits}, no difference as far as KVM came: {theirs.words}"
    if ours.kind in ("Stopped", "Timeout", "Unable"):
        return f"{exits}, no difference as far as we looked: {ours.words}"
    return f"{exits}, no difference; both ended alike: {ours.words}"


# ---- for people ------------------------------------------------------------------------------------------


def report(
    result: Comparison, machine: Machine, sentence: str, width: int, show_all: bool, color: bool
) -> list[str]:
    """The lines of the whole report."""
    lines = [f"{machine.description}", f"KVM: {result.kvm}", ""]
    lines += stream_lines(result, width, show_all, color)
    lines += ["", *_count_lines(result), "", *_cost_lines(result), ""]
    for name, mine, theirs in result.registers or ():
        lines.append(f"  {name:<14} ours {mine:#x}, KVM {theirs:#x}")
    for gpa, size in result.memory or ():
        lines.append(f"  RAM {gpa:#x}  {plural(size, 'byte')} differ")
    if result.differs and result.kvm == SOFTWARE_KVM:
        lines += SOFTWARE_NOTE
    lines.append(_paint(sentence + ".", "red" if result.differs else "green", color))
    return lines


def stream_lines(result: Comparison, width: int, show_all: bool, color: bool) -> list[str]:
    """Both streams side by side, `=` between exits that are alike; of long ones the beginning and the end."""
    rows = list(result.rows())
    number = max(len(f"{len(rows):,}"), 4)
    side = (width - number - 7) // 2
    lines = [
        f"{'exit':>{number}}  {'pysim_vm':<{side}}   KVM",
        f"{'-' * number}  {'-' * side}   {'-' * side}",
    ]
    last = len(rows) - SHOWN_LAST if result.first is None else max(result.first - SHOWN_BEFORE, 0)
    hidden = 0
    for n, ours, theirs in rows:
        if not show_all and SHOWN_FIRST <= n < last:
            hidden += 1
            continue
        if hidden:
            lines.append(f"{'...':>{number}}  {hidden:,} more, the same on both")
            hidden = 0
        same = ours is not None and theirs is not None and ours.key == theirs.key
        mark = "=" if same else "!" if result.first is not None and n >= result.first else " "
        cells = _cell(ours, result.ours, side), _cell(theirs, result.theirs, side)
        line = f"{n + 1:>{number},}  {cells[0]} {mark} {cells[1]}"
        lines.append(_paint(line.rstrip(), "" if mark != "!" else "red", color))
    return lines


def _cell(event: Event | None, side: Side, width: int) -> str:
    if event is None:
        text = f"({side.end.words})" if side.end.kind != "Stopped" else "(not looked at)"
    else:
        text = event.words()
    return (text if len(text) <= width else text[: width - 3] + "...").ljust(width)


def _count_lines(result: Comparison) -> list[str]:
    theirs = result.theirs.counts()
    ours = result.ours.counts(max(len(result.theirs.events), 1))
    names = sorted({*ours, *theirs}, key=lambda name: (-ours[name], name))
    rows = [(name, f"{ours[name]:,}", f"{theirs[name]:,}") for name in names]
    return _aligned([("reason", "pysim_vm", "KVM"), *rows])


def _cost_lines(result: Comparison) -> list[str]:
    ours, theirs = result.ours, result.theirs
    rows = [("host time", "pysim_vm", "KVM"), ("whole run", _ms(ours.host_ns), _ms(theirs.host_ns))]
    rows.append(("an exit", _us(ours.host_ns, ours), _us(theirs.host_ns, theirs)))
    rows.append(("  of it in KVM_RUN", "", _us(theirs.inside_ns, theirs)))
    rows.append(("instructions", f"{ours.instructions:,}", "not counted"))
    return _aligned(rows)


def _ms(ns: int) -> str:
    return f"{ns / 1e6:,.1f} ms"


def _us(ns: int, side: Side) -> str:
    return f"{ns / 1e3 / len(side.events):,.1f} us" if side.events else "-"


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    return [
        f"  {name:<{widths[0]}}  {ours:>{widths[1]}}  {theirs:>{widths[2]}}".rstrip()
        for name, ours, theirs in rows
    ]


def _paint(text: str, colour: str, color: bool) -> str:
    return click.style(text, fg=colour) if color and colour else text


# ---- for programs ----------------------------------------------------------------------------------------


def document(
    result: Comparison, machine: Machine, options: KvmOptions, status: ExitStatus, sentence: str
) -> dict[str, object]:
    """The result for JSON: numbers that may exceed 2**53 as hexadecimal text.

    `exits` are those around the first difference, or all of them if all are wanted.
    """
    first = len(result.ours.events) if result.first is None else result.first - SHOWN_BEFORE
    return {
        "exit_status": int(status),
        "sentence": sentence,
        "guest": machine.description,
        "warnings": list(machine.warnings),
        "kvm": result.kvm,
        "compared": result.compared,
        "first_difference": None if result.first is None else result.first + 1,
        "where": result.where,
        "pysim_vm": _side(result.ours),
        "kvm_side": _side(result.theirs),
        "registers": None
        if result.registers is None
        else [{"name": name, "pysim_vm": f"{a:#x}", "kvm": f"{b:#x}"} for name, a, b in result.registers],
        "memory": None
        if result.memory is None
        else [{"address": f"{gpa:#x}", "bytes": size} for gpa, size in result.memory],
        "memory_sha256": result.memory_digest,
        "exits": [
            _row(n, ours, theirs) for n, ours, theirs in result.rows() if options.show_all or n >= first
        ],
    }


def _side(side: Side) -> dict[str, object]:
    return {
        "end": side.end.kind,
        "words": side.end.words,
        "exits": len(side.events),
        "counts": dict(sorted(side.counts().items())),
        "instructions": side.instructions,
        "host_ns": side.host_ns,
        "kvm_run_ns": side.inside_ns,
    }


def _row(n: int, ours: Event | None, theirs: Event | None) -> dict[str, object]:
    same = ours is not None and theirs is not None and ours.key == theirs.key
    return {
        "exit": n + 1,
        "same": same,
        "pysim_vm": None if ours is None else ours.words(),
        "kvm": None if theirs is None else theirs.words(),
        "rip": None if ours is None else f"{ours.rip:#x}",
    }
