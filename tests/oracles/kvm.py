"""`python -m tests.oracles.kvm`: this CPU against KVM's, as many cases as asked. Linux with /dev/kvm only.

    python -m tests.oracles.kvm --cases 100_000 --seed 5
    python -m tests.oracles.kvm --cases 20_000 --mode real --kind program
    python -m tests.oracles.kvm --deviations         what is known of KVM

A case differs in its exits (reason, address, width, value, order), in registers or in memory. What the manual
leaves undefined is not compared, nor what KVM cannot execute; a deviation of KVM that is understood is in
`kvm_deviations`. The exit code is 1 if anything else differs, 2 where KVM cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from iced_x86 import Decoder

from isa.decode import code_names, disassemble
from isa.state import GPR_NAMES
from pysim_vm.kvm import state as kvm_state
from pysim_vm.kvm.binding import KvmError
from tests.oracles.kvm_cases import forms, program_case, single_case, undefined_flags
from tests.oracles.kvm_deviations import TABLE, deviation
from tests.oracles.kvm_system import system_case, vector_case
from tests.oracles.kvm_twins import BEYOND, CODE, DEVICE, MODES, Case, Outcome, Twins

KINDS = ("single", "program", "system", "vector")
SHOWN = 30  # differing cases that are printed
PER_FORM = 2  # of one form


@dataclass(slots=True)
class Report:
    """What became of the cases. `lacking` counts by what one of the CPUs does not have."""

    cases: int = 0
    agreed: int = 0
    faults: int = 0
    exits: int = 0
    lacking: Counter[str] = field(default_factory=Counter)
    deviating: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def differences(case: Case, ours: Outcome, theirs: Outcome) -> list[str]:
    """What differs, in words; [] if nothing does that is defined."""
    found = []
    for n in range(max(len(ours.events), len(theirs.events))):
        mine = ours.events[n] if n < len(ours.events) else None
        other = theirs.events[n] if n < len(theirs.events) else None
        if mine != other:
            found.append(f"exit {n + 1}: {_event(mine)}, KVM {_event(other)}")
            break
    if ours.end != theirs.end:
        found.append(f"end: {ours.end}, KVM {theirs.end}")
    if found or ours.end in ("exits", "steps", "triple fault"):
        return found  # stopped in the middle, or in a state that is nobody's
    undefined = undefined_flags(case.code, MODES[case.mode].bits)
    state = dict(ours.state)
    other_state = {name: theirs.state[name] for name in state if name in theirs.state}
    for name in state.keys() - other_state.keys():
        del state[name]
    if ours.port:
        del state["rip"]  # KVM stands behind the OUT, we before it
    for name, mine_value, other_value in kvm_state.differences(state, other_state):
        if name == "rflags" and not (mine_value ^ other_value) & ~undefined:
            continue
        found.append(f"{name}: {mine_value:#x}, KVM {other_value:#x}")
    found += _memory(ours, theirs)
    return found


def _event(event: tuple[str, int, int, int] | None) -> str:
    if event is None:
        return "nothing"
    reason, address, width, value = event
    return f"{reason} {address:#x} width {width} value {value:#x}"


def _memory(ours: Outcome, theirs: Outcome) -> list[str]:
    found = []
    if not np.array_equal(ours.ram, theirs.ram):
        places = np.flatnonzero(ours.ram != theirs.ram).tolist()
        shown = [at if at < DEVICE else at - DEVICE + BEYOND for at in places[:8]]
        text = " ".join(
            f"{at:#x}:{int(ours.ram[n]):02x}/{int(theirs.ram[n]):02x}"
            for at, n in zip(shown, places, strict=False)
        )
        found.append(f"memory, {len(places)} bytes: {text}")
    if ours.device != theirs.device:
        found.append("memory of the device")
    return found


def is_lacking(outcome: Outcome) -> bool:
    """The CPU stopped at something that it does not have."""
    return outcome.end.startswith("lacks")


def first_form(case: Case) -> str:
    """iced's name of the first instruction."""
    return code_names()[Decoder(MODES[case.mode].bits, case.code).decode().code]


def describe(case: Case) -> str:
    """The case in words: mode, instructions, state."""
    bits = MODES[case.mode].bits
    decoder = Decoder(bits, case.code, ip=CODE)
    lines = []
    for instruction in decoder:
        at = instruction.ip - CODE
        raw = case.code[at : at + instruction.len]
        lines.append(f"    {instruction.ip:#x}  {raw.hex(' '):<24} {disassemble(raw, bits, instruction.ip)}")
    registers = " ".join(f"{name}={case.registers[name]:#x}" for name in GPR_NAMES[: 16 if bits == 64 else 8])
    segments = " ".join(f"{n}={b:#x}/{l:#x}/{a:#x}" for n, (b, l, a) in case.segments.items())
    return f"{case.mode}: flags={case.flags:#x} {registers}\n    {segments}\n" + "\n".join(lines)


def generated(mode: str, kind: str, seed: int, count: int) -> Iterator[Case]:
    """`count` draws of a mode: the forms in turn, or programs. The same seed gives the same cases."""
    rng = Random(f"{seed} {mode} {kind}")
    every = list(forms(mode))
    rng.shuffle(every)
    for n in range(count):
        if kind == "single":
            case = single_case(rng, mode, every[n % len(every)])
        else:
            case = {"program": program_case, "system": system_case, "vector": vector_case}[kind](rng, mode)
        if case is not None:
            yield case


def examine(twins: Twins, case: Case, report: Report) -> None:
    """Run one case and note what came of it."""
    if case.mode in report.lacking:
        return
    problem = twins.problem(case.mode)
    if problem:
        report.lacking[case.mode] += 1
        report.findings.append(f"not compared: {problem}")
        return
    ours, theirs = twins.run(case)
    report.cases += 1
    report.exits += len(theirs.events)
    form = first_form(case)
    if "steps" in (ours.end, theirs.end):
        report.lacking["an end: they run on"] += 1
        return
    if is_lacking(ours) or is_lacking(theirs):
        report.lacking[ours.end if is_lacking(ours) else f"{form} in {case.mode} mode"] += 1
        return
    found = differences(case, ours, theirs)
    if not found:
        report.agreed += 1
        report.faults += ours.end == "halt"
        return
    known = deviation(twins.variant, case, ours, theirs, found)
    if known:
        report.deviating[known] += 1
        return
    report.differing[f"{form} in {case.mode} mode"] += 1
    if report.differing[f"{form} in {case.mode} mode"] <= PER_FORM and len(report.findings) < SHOWN:
        report.findings.append(describe(case) + "\n" + "\n".join(f"    ! {text}" for text in found))


def table(report: Report) -> str:
    """The summary."""
    rows = [
        f"{report.cases:,} cases, {report.exits:,} exits: {report.agreed:,} agree ({report.faults:,} end in "
        f"a fault handler), {sum(report.differing.values()):,} differ",
        f"{sum(report.lacking.values()):,} cases need what a CPU lacks ({len(report.lacking):,} forms)",
    ]
    rows += [f"{count:>7,}  {text}" for text, count in report.deviating.most_common()]
    rows += [f"{count:>7,}  differ: {text}" for text, count in report.differing.most_common(SHOWN)]
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    """0 if all cases agree, 1 if some differ, 2 where KVM cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.oracles.kvm", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases, as 100_000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=(*MODES, "all"), default="all")
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--deviations", action="store_true", help="print what is known of KVM, and stop")
    options = parser.parse_args(arguments)
    if options.deviations:
        print("\n".join(f"{row.what}\n    {row.why}" for row in TABLE))
        return 0
    modes = list(MODES) if options.mode == "all" else [options.mode]
    kinds = list(KINDS) if options.kind == "all" else [options.kind]
    share = -(-options.cases // (len(modes) * len(kinds)))
    report, start = Report(), time.monotonic()
    try:
        with Twins() as twins:
            for mode in modes:
                for kind in kinds:
                    for case in generated(mode, kind, options.seed, share):
                        examine(twins, case, report)
                    rate = report.cases / max(time.monotonic() - start, 0.001)
                    done = f"{mode} {kind}: {report.cases:,} cases, {rate:,.0f}/s"
                    print(f"{done}, {sum(report.differing.values())} differ", file=sys.stderr, flush=True)
    except KvmError as error:
        print(f"python -m tests.oracles.kvm: {error}", file=sys.stderr)
        return 2
    for text in report.findings:
        print(f"\n{text}")
    print("\n" + table(report))
    return 1 if report.differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
