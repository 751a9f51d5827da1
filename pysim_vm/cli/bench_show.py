"""`pysim-vm bench`: runs workloads and shows them, compares results, writes the report. It measures nothing
itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pysim_vm.benchmark.compare import MARGIN, SAME, Comparison, compare
from pysim_vm.benchmark.model import CostModel, default_costs, load_costs
from pysim_vm.benchmark.result import (
    ModelRow,
    ResultError,
    Results,
    TimedRow,
    as_document,
    read_results,
    results_of,
    write_results,
)
from pysim_vm.benchmark.run import ENGINES, Model, Timed, model_of, suite
from pysim_vm.benchmark.workload import Workload, find_workload, library
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.table import table_text
from pysim_vm.errors import AxError, AxErrorKind, DeviceFault
from pysim_vm.report import plural

RULE = f"beyond the spread: the middle halves do not touch and the medians are {MARGIN:.0%} or more apart"
CHANGES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What `bench run` was asked for. `engines` is None for both, empty for the model alone."""

    workloads: tuple[str, ...]
    engines: tuple[str, ...] | None
    exit_path: str
    rounds: int
    cost_model: str | None
    output: str | None
    record: str | None
    as_json: bool
    color: bool


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What `bench report` was asked for. `plots` is "auto", "figures" or "bars"."""

    output: str | None
    title: str
    author: str
    plots: str
    as_json: bool


def show_library(stdout: TextIO, *, as_json: bool, color: bool) -> int:
    """The workloads that come with the package, a line each."""
    found = [find_workload(name) for name in library()]
    if as_json:
        rows = [
            {"workload": each.name, "summary": each.summary, "count": each.count, "per": each.per}
            for each in found
        ]
        stdout.write(json.dumps({"exit_status": 0, "workloads": rows}, indent=2) + "\n")
        return ExitStatus.OK
    stdout.write(table_text(("workload", "what it does"), [(each.name, each.summary) for each in found], "ll",
                            color=color))  # fmt: skip
    return ExitStatus.OK


def run_bench(options: BenchOptions, stdout: TextIO, stderr: TextIO) -> int:
    """Run, show and write; the exit code. CommandError for a mistake."""
    try:
        costs = default_costs() if options.cost_model is None else load_costs(options.cost_model)
        workloads = [find_workload(name) for name in dict.fromkeys(options.workloads or library())]
        _refuse_twice(workloads)
        if options.output is not None:
            _check_writable(options.output)
        if options.record is not None:
            model_of(workloads[0], exit_path=options.exit_path, record=options.record)
        engines = ENGINES if options.engines is None else options.engines
        runs = suite(workloads, engines, options.exit_path, options.rounds)
        results = results_of(_told(runs, workloads, stderr), costs)
        if options.output is not None:
            write_results(results, options.output)
    except AxError as error:
        raise _command_error(error) from error
    if options.as_json:
        stdout.write(json.dumps({"exit_status": 0, **as_document(results)}, indent=2) + "\n")
    else:
        stdout.write(_run_text(results, options.color))
    return ExitStatus.OK


def run_compare(paths: Sequence[str], stdout: TextIO, *, fail_on: str, as_json: bool, color: bool) -> int:
    """Compare two files and show it; the exit code is 98 if the model changed, or as `fail_on` says."""
    try:
        first, second = (read_results(path) for path in paths)
    except AxError as error:
        raise _command_error(error) from error
    found = compare(first, second)
    differs = found.changed or (fail_on == "slower" and found.slower)
    status = ExitStatus.DIFFERENT if differs else ExitStatus.OK
    if as_json:
        stdout.write(json.dumps({"exit_status": int(status), **found.as_dict()}, indent=2) + "\n")
    else:
        stdout.write(_compare_text(found, color))
    return status


def run_report(path: str, options: ReportOptions, stdout: TextIO, stderr: TextIO) -> int:
    """Write the page; a sentence on standard error if the figures became bars for want of matplotlib."""
    from pysim_vm.benchmark.report import page

    try:
        results = read_results(path)
    except AxError as error:
        raise _command_error(error) from error
    figures: Mapping[str, str] = {}
    if options.plots != "bars":
        try:
            from pysim_vm.benchmark.plots import figures_of
        except ImportError:
            advice = 'pip install "pysim-vm[report]"'
            if options.plots == "figures":
                raise CommandError(
                    ExitStatus.USAGE, f"--plots figures needs matplotlib; {advice}, or take --plots bars"
                ) from None
            stderr.write(f"pysim-vm: matplotlib is not there, so the plots are plain bars; {advice}\n")
        else:
            figures = figures_of(results)
    text = page(results, title=options.title, author=options.author, figures=figures)
    if options.output is not None:
        _check_writable(options.output)
        Path(options.output).write_text(text, encoding="utf-8")
    if options.as_json:
        document = {
            "exit_status": 0,
            "file": options.output,
            "plots": "figures" if figures else "bars",
        }
        if options.output is None:
            document["html"] = text
        stdout.write(json.dumps(document, indent=2) + "\n")
    elif options.output is None:
        stdout.write(text)
    return ExitStatus.OK


def _command_error(error: AxError) -> CommandError:
    """With the code that the same mistake has elsewhere."""
    status = ExitStatus.CONFIG
    if isinstance(error, DeviceFault):
        status = ExitStatus.DEVICE
    elif error.kind is AxErrorKind.Io:
        status = ExitStatus.HOST_IO
    return CommandError(status, str(error))


def _check_writable(output: str) -> None:
    """Say so before minutes of work, not after them. A file that is not there yet is not left behind."""
    path = Path(output)
    try:
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(
            ExitStatus.HOST_IO, f"--output: {output} cannot be written ({reason}); check the path"
        ) from error


def _refuse_twice(workloads: Sequence[Workload]) -> None:
    """A file of results has one row a name."""
    names = [each.name for each in workloads]
    for name in names:
        if names.count(name) > 1:
            raise ResultError(f"two workloads are called {name}; rename one of the files")


def _told(
    runs: Iterator[tuple[Workload, Model, list[Timed]]], workloads: Sequence[Workload], stderr: TextIO
) -> Iterator[tuple[Workload, Model, list[Timed]]]:
    """Pass the runs on and say at a terminal which one is next."""
    tells = stderr.isatty()
    for number, each in enumerate(workloads, 1):
        if tells:
            stderr.write(f"\r\x1b[K{number} of {len(workloads)}: {each.name}")
            stderr.flush()
        yield next(runs)
    if tells:
        stderr.write("\r\x1b[K")


# ---- tables ------------------------------------------------------------------------------------------------


def digits(number: float) -> str:
    """A measured number with as many digits as mean something."""
    size = abs(number)
    return f"{number:.{0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"


def mostly(row: ModelRow) -> str:
    """The most frequent exit of a row, and how many other kinds there are."""
    if not row.exits:
        return "-"
    kind = max(row.exits, key=lambda name: row.exits[name])
    others = len(row.exits) - 1
    return kind if not others else f"{kind} +{others}"


def _run_text(results: Results, color: bool) -> str:
    rows, aligned = [], "lrlrr"
    head = ["workload", "exits", "mostly", "instructions", "virtual cycles"]
    if results.machine is not None:
        head += ["engine", "units", "middle half", "here", "per"]
        aligned += "lrrrl"
    for row in results.models:
        numbers = (f"{row.instructions:,}", f"{row.virtual_cycles:,}")
        model = [row.workload, f"{row.taken:,}", mostly(row), *numbers]
        if results.machine is None:
            rows.append(model)
        for timed in results.timed:
            if timed.workload == row.workload:
                rows.append([*model, *_timed_cells(timed)])
                model = [""] * len(model)
    text = table_text(head, rows, aligned, color=color, width=120)
    text += f"\nvirtual cycles: {_costs_words(results.costs)}\n"
    if results.machine is not None:
        text += (
            "1 unit = one round of `x = (x + y) & M64` in a Python loop, measured in turns; medians\n"
            f"here: {', '.join(results.machine.values())}\n"
        )
    return text


def _costs_words(costs: CostModel) -> str:
    source = f" ({costs.source})" if costs.source else ""
    return f"cost model {costs.name}{source}"


def _timed_cells(row: TimedRow) -> list[str]:
    here = row.ns
    time = f"{digits(here)} ns" if here < 1e4 else f"{digits(here / 1e3)} us"
    return [row.engine, digits(row.units), f"{digits(row.low)}-{digits(row.high)}", time, row.per]


def _compare_text(found: Comparison, color: bool) -> str:
    rows = []
    for row in found.models:
        shown = "; ".join(row.changes[:CHANGES_SHOWN])
        more = len(row.changes) - CHANGES_SHOWN
        rows.append((row.workload, row.verdict, shown + (f"; {more} more" if more > 0 else "")))
    text = table_text(("workload", "model", "what changed"), rows, "lll", color=color)
    if found.timed:
        lines = [
            (row.workload, row.engine, *("-" if value is None else digits(value)
                                         for value in (row.first, row.second)),
             "-" if row.ratio is None else f"{100 * (row.ratio - 1):+.1f} %", row.verdict)
            for row in found.timed
        ]  # fmt: skip
        head = ("workload", "engine", "units", "then", "change", "verdict")
        text += "\n" + table_text(head, lines, "llrrrl", color=color)
    changed = sum(row.verdict != SAME for row in found.models)
    text += f"\n{plural(len(found.models), 'model')}, {changed} changed"
    if found.timed:
        counts = [
            f"{sum(row.verdict == word for row in found.timed)} {word}" for word in ("faster", "slower")
        ]
        text += f"; {plural(len(found.timed), 'measurement')}, {', '.join(counts)} {RULE}"
    if not found.same_costs:
        text += "; the cost models differ, so virtual cycles were not compared"
    return text + "\n"
