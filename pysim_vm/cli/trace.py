"""`pysim-vm stat`, `trace`, `diff` and `export`: questions to a record, answered as text or JSON."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.table import table_text
from pysim_vm.config import parse_number
from pysim_vm.errors import AxError, AxErrorKind
from pysim_vm.record_format import RecordError
from pysim_vm.report import plural
from pysim_vm.trace import Trace
from pysim_vm.trace.rows import EventRow, ExitRow, InstructionRow, StoreRow
from pysim_vm.trace.stat import COLUMNS, Stat, stat
from pysim_vm.trace.words import time_words

LIVE_SECONDS: Final = 1.0  # between two looks at a record that is being written
LIVE_TRIES: Final = 20  # to read a record that is being written
NARROW: Final = 100  # below this many columns the table leaves its bars out
BAR: Final = 12  # columns of a full bar
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Filters:
    """The filter options of `trace`, `stat` and `export`, as typed."""

    reason: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    port: str | None = None
    gpa: str | None = None
    msr: str | None = None
    symbol: tuple[str, ...] = ()
    irq: str | None = None
    direction: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What `trace` shows."""

    filters: Filters = field(default_factory=Filters)
    rows: str = "exits"
    first: int | None = None
    last: int | None = None
    who_wrote: str | None = None
    as_json: bool = False


@contextlib.contextmanager
def opened(path: str) -> Iterator[Trace]:
    """A record for a command; CommandError with its sentence if it is none or a question makes no sense."""
    try:
        with Trace.open(path) as trace:
            yield trace
    except RecordError as error:
        raise CommandError(_status(error), str(error)) from error


def _status(error: AxError) -> ExitStatus:
    match error.kind:
        case AxErrorKind.InvalidInput | AxErrorKind.Unsupported:
            return ExitStatus.USAGE
        case AxErrorKind.Io:
            return ExitStatus.HOST_IO
        case _:
            return ExitStatus.LOAD


# ---- filters -----------------------------------------------------------------------------------------------


def chosen(trace: Trace, filters: Filters) -> Trace:
    """The exits that the options ask for."""
    conditions: dict[str, Any] = {}
    for name in ("reason", "device", "symbol"):
        given = getattr(filters, name)
        if given:
            conditions[name] = given
    for name in ("port", "gpa", "msr", "irq"):
        text = getattr(filters, name)
        if text is not None:
            conditions[name] = addresses(f"--{name}", text)
    if filters.direction is not None:
        conditions["direction"] = filters.direction
    conditions |= times(filters)
    return trace.where(**conditions) if conditions else trace


def addresses(option: str, text: str) -> range:
    """`0x3f8` or `0x3f8-0x3ff`, the last one included."""
    low, dash, high = text.partition("-")
    try:
        first = parse_number(low)
        return range(first, (parse_number(high) if dash else first) + 1)
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"{option}: {error}") from None


UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


def times(filters: Filters) -> dict[str, range]:
    """--since and --until: retired instructions, or virtual time with a unit (`2ms`, `1.5s`)."""
    found: dict[str, list[int]] = {}
    for option, text, place in (("--since", filters.since, 0), ("--until", filters.until, 1)):
        if text is None:
            continue
        name, value = moment(option, text)
        found.setdefault(name, [0, 1 << 64])[place] = value
    return {name: range(*bounds) for name, bounds in found.items()}


def moment(option: str, text: str) -> tuple[str, int]:
    """("ns", 2_000_000) for `2ms`, ("retired", 5000) for `5000`."""
    for unit in ("ns", "us", "ms", "s"):
        number = text.removesuffix(unit)
        if number != text and number[-1:].isdigit():
            try:
                return "ns", round(float(number) * UNITS[unit])
            except (ValueError, OverflowError):
                break
    try:
        return "retired", parse_number(text)
    except ValueError:
        raise CommandError(
            ExitStatus.USAGE,
            f"{option}: {text!r} is no moment; write instructions (5000) or virtual time (2ms)",
        ) from None


# ---- stat --------------------------------------------------------------------------------------------------


def run_stat(
    path: str, by: str, filters: Filters, stdout: TextIO, stderr: TextIO, *,
    live: bool = False, top: int | None = None, as_json: bool = False, color: bool = False,
) -> int:  # fmt: skip
    """Show the table, with `live` again and again until the recording ends."""
    while True:
        found, notes, closed = _counted(path, by, filters, LIVE_TRIES if live else 1)
        if as_json:
            stdout.write(json.dumps(found.as_dict() | {"notes": notes}) + "\n")
        else:
            if live and color:
                stdout.write("\x1b[H\x1b[J")
            width = shutil.get_terminal_size((100, 24)).columns
            stdout.write(stat_text(found, top, color, width, _draws(stdout)))
        stdout.flush()
        if not live or closed:
            break
        time.sleep(LIVE_SECONDS)
    if not live and not as_json:
        stderr.writelines(f"pysim-vm: {note}\n" for note in notes)
    return ExitStatus.OK


def _counted(path: str, by: str, filters: Filters, tries: int) -> tuple[Stat, list[str], bool]:
    """The counts, the notes, and whether the recording is over.

    A recording that goes on puts complete chunks where small ones were, so one that was there a moment ago
    may read as damaged: then the file is opened again.
    """
    while True:
        tries -= 1
        try:
            with opened(path) as trace:
                return stat(chosen(trace, filters), by), list(trace.notes), bool(trace.record.end)
        except CommandError as error:
            if not tries or "damaged" not in str(error):
                raise
        time.sleep(LIVE_SECONDS / LIVE_TRIES)


def stat_text(found: Stat, top: int | None, color: bool, width: int, draws: bool = True) -> str:
    """The table as text for a terminal of `width` columns."""
    wide = width >= NARROW
    rows = []
    for row in found.rows[:top]:
        bars = ((bar(row.share) if draws else plain_bar(row.share)).rstrip(),) if wide else ()
        shown = (row.min_ns, row.mean_ns, row.max_ns)
        rows.append(
            (*row.key, f"{row.count:,}", f"{row.share:.1%}", *bars, _rate(row.per_thousand),
             *(time_words(ns) for ns in shown))
        )  # fmt: skip
    head = (*COLUMNS[found.by], "count", "share", *(("",) if wide else ()), "per 1k", "min", "mean", "max")
    align = "l" * len(COLUMNS[found.by]) + ("rrlrrrr" if wide else "rrrrrr")
    lines = [
        f"{plural(found.exits, 'exit')} in {plural(found.instructions, 'instruction')} and "
        f"{time_words(found.ns)} of virtual time; per thousand instructions, and time to the next exit",
        "",
    ]
    if width < len(lines[0]):
        first, second = lines[0].split("; ")
        lines[:1] = [first + ";", second]
    text = table_text(head, rows, align, color=color, width=width)
    left = len(found.rows) - len(rows)
    more = (
        f"\n  and {plural(left, 'more line')}; --top {len(found.rows)} shows them all\n" if left > 0 else ""
    )
    return "\n".join(lines) + "\n" + text + more


def bar(share: float) -> str:
    """A bar of BAR columns, filled to an eighth of a column."""
    eighths = round(share * BAR * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(BAR)


def plain_bar(share: float) -> str:
    """The bar for an output without block characters."""
    return ("#" * round(share * BAR)).ljust(BAR)


def _rate(value: float) -> str:
    return f"{value:,.3f}"


def _draws(stream: TextIO) -> bool:
    """Whether the stream's encoding has block characters."""
    try:
        EIGHTHS.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# ---- trace -------------------------------------------------------------------------------------------------


def run_trace(path: str, options: TraceOptions, stdout: TextIO, stderr: TextIO, color: bool = False) -> int:
    """Show rows of a record, one line each."""
    with opened(path) as trace:
        for row in _rows(trace, options):
            if options.as_json:
                stdout.write(json.dumps(row.as_dict()) + "\n")
            else:
                stdout.write(_line(row, color) + "\n")
        stdout.flush()
        if not options.as_json:
            stderr.writelines(f"pysim-vm: {note}\n" for note in trace.notes)
    return ExitStatus.OK


def _rows(trace: Trace, options: TraceOptions) -> Any:
    if options.who_wrote is not None:
        return _writers(trace, options)
    if options.rows == "exits":
        rows: Any = chosen(trace, options.filters)
    else:
        rows = getattr(trace, options.rows)
        if options.rows in ("stores", "instructions") and not trace.header.get(options.rows):
            raise CommandError(
                ExitStatus.USAGE,
                f"--{options.rows}: the record holds none; make it with run --record-{options.rows}",
            )
        limits = times(options.filters)
        if "ns" in limits:
            raise CommandError(
                ExitStatus.USAGE, f"--since, --until: --{options.rows} are counted in instructions"
            )
        rows = rows.where(**limits)
        if options.rows == "stores" and options.filters.gpa is not None:
            rows = rows.where(gpa=addresses("--gpa", options.filters.gpa))
    if options.first is not None:
        rows = rows[: options.first]
    if options.last is not None:
        rows = rows[max(0, len(rows) - options.last) :]
    return rows


def _writers(trace: Trace, options: TraceOptions) -> list[ExitRow | StoreRow]:
    """--who-wrote ADDRESS, port:ADDRESS or msr:ADDRESS."""
    text = options.who_wrote or ""
    bus, colon, number = text.rpartition(":")
    if bus not in ("", "port", "msr"):
        raise CommandError(ExitStatus.USAGE, f"--who-wrote: {text!r}; write 0xb8000, port:0x3f8 or msr:0x1b")
    where = addresses("--who-wrote", number).start
    before = times(options.filters).get("retired", range(1 << 64)).stop
    limit = options.first or options.last or 16
    if colon:
        return trace.who_wrote(before=before, limit=limit, **{bus: where})
    return trace.who_wrote(where, before=before, limit=limit)


def _line(row: ExitRow | StoreRow | InstructionRow | EventRow, color: bool) -> str:
    if not color:
        return row.line()
    place, _, words = row.line().partition(": ")
    return f"\x1b[2m{place}:\x1b[0m {words}"


# ---- diff --------------------------------------------------------------------------------------------------


def run_diff(
    paths: tuple[str, str], stdout: TextIO, *, context: int = 5, states: bool = True, as_json: bool = False
) -> int:
    """Show where two records part; DIFFERENT if they do."""
    from pysim_vm.cli.rerun import state_at
    from pysim_vm.trace.diff import diff, diff_dict, diff_lines

    with opened(paths[0]) as one, opened(paths[1]) as other:
        found = diff(one, other, context=context)
        if found.divergence is not None and states:
            found.divergence.states = tuple(
                state_at(trace, found.divergence.retired) for trace in (one, other)
            )
        if as_json:
            stdout.write(json.dumps(diff_dict(found), indent=2) + "\n")
        else:
            stdout.writelines(f"{line}\n" for line in diff_lines(found, paths))
    stdout.flush()
    return ExitStatus.DIFFERENT if found.divergence is not None else ExitStatus.OK


# ---- export ------------------------------------------------------------------------------------------------


def run_export(
    path: str, form: str, output: str | None, filters: Filters, stdout: TextIO, stderr: TextIO
) -> int:
    """Write the exits in another format, to a file or (texts) to standard output."""
    from pysim_vm.trace.export import FORMATS, export

    if output is None and FORMATS[form].binary:
        raise CommandError(
            ExitStatus.USAGE, f"--format {form} is no text; say where it goes with --output FILE"
        )
    with opened(path) as trace:
        selected = chosen(trace, filters)
        try:
            if output is None:
                export(selected, stdout, form)
            else:
                count = export(selected, output, form)
                stderr.write(f"pysim-vm: {output}: {plural(count, 'exit')} as {FORMATS[form].what}\n")
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise CommandError(
                ExitStatus.HOST_IO,
                f"--output: {output} cannot be written ({error.strerror or error}); check the path",
            ) from error
        stderr.writelines(f"pysim-vm: {note}\n" for note in trace.notes)
    return ExitStatus.OK


def terminal_color(color: bool | None = None) -> bool:
    """Whether standard output is a terminal that wants colour (NO_COLOR is honoured)."""
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") if color is None else color
