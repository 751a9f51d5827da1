"""`pysim-vm sweep`: many jobs on the command line, with a bar while they run and a table at the end.

The jobs are run by `sweep`; here are the files' names, the words and the exit codes.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from pysim_vm.cli.run import end_signals
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.table import table_text
from pysim_vm.errors import AxErrorKind, ConfigError
from pysim_vm.report import plural
from pysim_vm.sweep import JobResult, Results, Sweep, SweepError, SweepInterrupted
from pysim_vm.sweep.results import DIGEST_SHOWN, write_whole

SUFFIX: Final = ".results.jsonl"
JOURNAL_SUFFIX: Final = ".journal"
SHOWN: Final = 5  # sentences about jobs without a final result
REFRESH: Final = 4  # times a second the bar is drawn
_SHARD: Final = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What `sweep` was asked for; paths are host paths, None where not given."""

    jobs: int | None = None
    dask: str | None = None
    output: str | None = None
    journal: str | None = None
    shard: str | None = None
    seconds: str | None = None
    fresh: bool = False
    keep_unfinished: bool = False
    quiet: bool = False
    as_json: bool = False
    color: bool = False


def run_sweep(path: str, options: SweepOptions, stdout: TextIO, stderr: TextIO) -> int:
    """Run a jobs file, or go on with it; the exit code."""
    with _sentences():
        sweep = Sweep.load(path)
        shard = _shard(options.shard)
        numbers = sweep.numbers(shard)
        output = Path(options.output or _name(path, shard))
        journal = Path(options.journal or f"{output}{JOURNAL_SUFFIX}")
        known = [] if options.fresh else _known(output, sweep)
        if options.fresh:
            _remove(journal)
        before = Counter[bool]()
        with contextlib.ExitStack() as opened:
            opened.enter_context(end_signals(_interrupt))
            try:
                executor = opened.enter_context(_executor(options))
                note = opened.enter_context(_bar(stderr, len(numbers), options))
                results = sweep.run(
                    executor, workers=options.jobs, shard=shard, journal=journal, known=known,
                    keep_unfinished=options.keep_unfinished, on_result=_counting(before, note),
                )  # fmt: skip
            except SweepInterrupted as stop:
                words = (
                    f"interrupted after {stop.done:,} of {plural(stop.jobs, 'job')}; the same command goes on"
                )
                raise CommandError(ExitStatus.INTERRUPTED, words) from None
            except KeyboardInterrupt:
                raise CommandError(ExitStatus.INTERRUPTED, "interrupted; the same command goes on") from None
        results.write(output)
        if options.seconds is not None:
            write_whole(Path(options.seconds), _seconds_text(results).encode())
        unfinished = [result for result in results if not result.final]
        if not unfinished:
            _remove(journal)
    status = ExitStatus.UNFINISHED if unfinished else ExitStatus.OK
    if options.as_json:
        document = _document(results, status, output, sum(before.values()))
        stdout.write(json.dumps(document | {"sweep": sweep.digest}, indent=2) + "\n")
    elif not options.quiet:
        stdout.write(summary(results, color=options.color))
        new = sum(before.values())
        done = f", {len(results) - new:,} of them from an earlier run" if new < len(results) else ""
        stdout.write(f"\n{plural(len(results), 'job')}{done}; the results are in {output}\n")
    _complain(unfinished, stderr)
    return status


def merge_sweeps(output: str, paths: Sequence[str], stdout: TextIO, stderr: TextIO, *, as_json: bool) -> int:
    """Put the results of shards together; the exit code."""
    with _sentences():
        results = Results.merge(paths)
        results.write(output)
    unfinished = [result for result in results if not result.final]
    status = ExitStatus.UNFINISHED if unfinished else ExitStatus.OK
    if as_json:
        document = _document(results, status, Path(output), 0) | {"sweep": results.sweep}
        stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        stdout.write(f"{plural(len(results), 'job')} of {plural(len(paths), 'file')} are now in {output}\n")
    _complain(unfinished, stderr)
    return status


# ---- files and executors -----------------------------------------------------------------------------------


def _name(path: str, shard: tuple[int, int] | None) -> str:
    """The results of jobs.toml are jobs.results.jsonl, in the folder one is in."""
    part = "" if shard is None else f".{shard[0]}-of-{shard[1]}"
    return f"{Path(path).stem}{part}{SUFFIX}"


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = _SHARD.fullmatch(text)
    if found is None:
        raise CommandError(ExitStatus.USAGE, f"--shard: {text!r} is no shard; write I/N, such as 1/4")
    return int(found[1]), int(found[2])


def _known(output: Path, sweep: Sweep) -> list[JobResult]:
    """What an earlier run of the same sweep left. A file of something else is not to be written over."""
    if not output.exists():
        return []
    results = Results.open(output)
    return list(results) if results.sweep == sweep.digest[:DIGEST_SHOWN] else []


def _remove(journal: Path) -> None:
    try:
        journal.unlink(missing_ok=True)
    except OSError as error:
        raise SweepError(
            f"{journal} cannot be removed ({error.strerror}); remove it by hand", AxErrorKind.Io
        ) from None


@contextlib.contextmanager
def _executor(options: SweepOptions) -> Iterator[Executor | None]:
    """dask's executor, or None for processes of the sweep's own."""
    if options.dask is None:
        yield None
        return
    from pysim_vm.sweep.dask import dask_executor

    with dask_executor(options.dask, options.jobs) as executor:
        yield executor


def _interrupt(number: int) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Mistakes as the command line reports them."""
    try:
        yield
    except ConfigError as error:
        raise CommandError(ExitStatus.CONFIG, str(error)) from error
    except SweepError as error:
        asked = error.kind in (AxErrorKind.InvalidInput, AxErrorKind.Unsupported)
        raise CommandError(ExitStatus.USAGE if asked else ExitStatus.HOST_IO, str(error)) from error


# ---- what is shown -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bar(stderr: TextIO, jobs: int, options: SweepOptions) -> Iterator[Callable[[], None]]:
    """A progress bar, only for a terminal; the callable says that one more job is done."""
    if options.quiet or not stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=stderr)
    with Progress(*columns, console=console, transient=True, refresh_per_second=REFRESH) as progress:
        task = progress.add_task("sweep", total=jobs)
        yield lambda: progress.advance(task)


def _counting(counts: Counter[bool], note: Callable[[], None]) -> Callable[[JobResult, float], None]:
    def count(result: JobResult, seconds: float) -> None:
        counts[result.final] += 1
        note()

    return count


def summary(results: Results, *, color: bool = False) -> str:
    """A table with a line for each guest, configuration and outcome."""
    groups: dict[tuple[str, str, str], list[JobResult]] = {}
    for result in results:
        groups.setdefault((result.guest, result.configuration, result.outcome), []).append(result)
    rows = [
        (
            *names, f"{len(group):,}",
            _span([result.instructions for result in group]),
            _span([sum(result.exits.values()) if result.final else None for result in group]),
        )
        for names, group in groups.items()
    ]  # fmt: skip
    head = ("guest", "configuration", "outcome", "jobs", "instructions", "exits")
    return table_text(head, rows, "lllrrr", color=color)


def _span(numbers: Sequence[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _complain(unfinished: Sequence[JobResult], stderr: TextIO) -> None:
    for result in unfinished[:SHOWN]:
        stderr.write(f"pysim-vm: {result.job}: {result.sentence}\n")
    if len(unfinished) > SHOWN:
        stderr.write(f"pysim-vm: and {plural(len(unfinished) - SHOWN, 'more job')} without a final result\n")


def _document(results: Results, status: int, output: Path, new: int) -> dict[str, Any]:
    return {
        "exit_status": int(status),
        "sweep": results.sweep,
        "jobs": len(results),
        "new": new,
        "outcomes": dict(sorted(results.outcomes().items())),
        "unfinished": [result.job for result in results if not result.final],
        "results": str(output),
        "sha256": results.digest(),
    }


def _seconds_text(results: Results) -> str:
    """What the jobs took on this host, as CSV; empty where an earlier run's time is not known."""
    lines = ["job,seconds"]
    for result in results:
        took = results.seconds.get(result.number)
        lines.append(f"{result.job},{'' if took is None else format(took, '.6f')}")
    return "\n".join(lines) + "\n"
