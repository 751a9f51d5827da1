"""Exits as pictures: a reason, a row of a record, a trace, the instructions of one, and statistics.

The words are those of `report` and `trace.words`; a long trace shows its beginning and its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from isa.exits import ExitReason, TripleFault, Unimplemented
from pysim_vm.display.html import Drawn, Note, Part, Picture, Row, Span, Table, cut, ends, joined
from pysim_vm.display.registers import change_spans
from pysim_vm.record_format import Kind
from pysim_vm.report import exit_kind, exit_words, plural, value_words
from pysim_vm.trace.rows import EventRow, ExitRow, InstructionRow
from pysim_vm.trace.words import event_sentence, irq_words, sentence, time_words

if TYPE_CHECKING:
    from pysim_vm.trace.stat import Stat
    from pysim_vm.trace.trace import Rows

ROWS_SHOWN: Final = 24
STAT_ROWS_SHOWN: Final = 30
STORES_SHOWN: Final = 8  # of one instruction

# Kind of rows -> one of them, many, the table's head and the sides of its columns
_LOOKS: Final[Mapping[Kind, tuple[str, str, tuple[str, ...], str]]] = {
    Kind.EXITS: ("exit", "exits", ("#", "instructions", "time", "at", "what the guest did"), "rrrlw"),
    Kind.STORES: ("write to RAM", "writes to RAM", ("#", "instructions", "at", "what was written"), "rrlw"),
    Kind.INSTRUCTIONS: (
        "instruction", "instructions", ("#", "at", "bytes", "instruction", "what changed"), "rlllw",
    ),
    Kind.EVENTS: ("event", "events", ("#", "instructions", "at", "what came"), "rrlw"),
}  # fmt: skip


# ---- one exit ----------------------------------------------------------------------------------------------


def reason_picture(reason: ExitReason) -> Picture:
    """An exit reason: its name, what the guest did, its fields."""
    parts: list[Part] = [Note(type(reason).__name__, "title")]
    if isinstance(reason, TripleFault):
        parts.append(Note("triple fault: the CPU shut down"))
        rows = tuple(Row((f"{n}.", text)) for n, text in enumerate(reason.chain, 1))
        return Drawn((*parts, Table((), "rw", rows)))
    if isinstance(reason, Unimplemented):
        return Drawn((*parts, Note(str(reason))))
    parts.append(Note(sentence(exit_words(reason), exit_kind(reason))))
    rows = tuple(_fields(reason))
    if rows:
        parts.append(Table((), "nl", rows))
    return Drawn(tuple(parts))


def _fields(reason: ExitReason) -> Iterator[Row]:
    width = getattr(reason, "width", 0)
    for each in fields(reason):  # type: ignore[arg-type]  # every reason is a dataclass
        value: Any = getattr(reason, each.name)
        if value is None or each.name.startswith("_"):
            continue
        if isinstance(value, bool) or each.name in ("width", "reg_width", "reg", "retired", "signed_ext"):
            text = f"{value:,}" if each.name == "retired" else str(value)
        elif isinstance(value, int):
            text = value_words(value, width) if each.name == "data" else f"{value:#x}"
        elif isinstance(value, tuple):
            text = ", ".join(f"{item:#x}" if isinstance(item, int) else str(item) for item in value)
        else:
            text = str(value)
        yield Row((each.name, text))


def row_picture(row: Any) -> Picture:
    """One row of a record: an exit, an exception, a store, an instruction."""
    facts: list[tuple[str, str]] = [("instructions before it", f"{row.retired:,}"), ("at", row.where)]
    title = row.words()
    match row:
        case ExitRow():
            title = f"Exit #{row.number + 1:,}: {title}"
            facts += _facts_of_exit(row)
        case EventRow():
            if row.error_code is not None:
                facts.append(("error code", f"{row.error_code:#x}"))
            facts.append(("CPL", str(row.cpl)))
        case InstructionRow():
            facts.append(("bytes", row.raw.hex(" ")))
    return Drawn((Note(title, "title"), Table((), "nl", tuple(Row(fact) for fact in facts))))


def _facts_of_exit(row: ExitRow) -> Iterator[tuple[str, str]]:
    yield "virtual time", time_words(row.ns)
    yield "reason", row.reason
    if row.direction:
        yield "address", f"{row.address:#x}"
        yield "width", plural(row.width, "byte")
        yield "answer" if row.direction == "read" else "value", value_words(row.value, row.width)
        yield "answered by", row.device or "nobody"
    if row.raised:
        yield "raised", irq_words(row.raised)


# ---- many --------------------------------------------------------------------------------------------------


def rows_picture(rows: Rows[Any]) -> Picture:
    """Rows of a record, all of one kind: the first and the last ones."""
    count = len(rows)
    one, many, head, align = _LOOKS.get(rows.kind, _LOOKS[Kind.EVENTS])
    shown: list[Row] = []
    for number, places in enumerate(ends(count, ROWS_SHOWN)):
        if number:
            skipped = Span(f"… {count - ROWS_SHOWN:,} more …", "dim")
            shown.append(Row((*[""] * (len(head) - 1), skipped)))
        shown += [_row(row) for row in rows[places.start : places.stop]]
    title = f"{count:,} {one if count == 1 else many}"
    return Drawn((Note(title, "title"), Table(head, align, tuple(shown))))


def _row(row: Any) -> Row:
    if isinstance(row, InstructionRow):
        told = joined(_effects(row), ", ")
        tone = "here" if row.event else ""
        return Row((f"{row.retired:,}", row.where, Span(row.raw.hex(" "), "dim"), row.text, told), tone)
    times = (time_words(row.ns),) if isinstance(row, ExitRow) else ()
    return Row((f"{row.number + 1:,}", f"{row.retired:,}", *times, row.where, row.words()))


def _effects(row: InstructionRow) -> Iterator[Span]:
    """What an instruction changed: an event in its place, registers, memory."""
    event = event_sentence(row.event, row.vector)
    if event:
        yield Span(event, "strong")
    yield from change_spans(row.changes)
    for store in row.stores[:STORES_SHOWN]:
        yield Span(store.words())
    if len(row.stores) > STORES_SHOWN:
        yield Span(f"… {plural(len(row.stores) - STORES_SHOWN, 'more store')}", "dim")


# ---- statistics --------------------------------------------------------------------------------------------


def stat_picture(found: Stat) -> Picture:
    """The table of `trace.stat.stat`: the most frequent lines, with a bar for the share."""
    from pysim_vm.trace.stat import COLUMNS, rows_as_text

    columns = COLUMNS[found.by]
    rows = []
    texts = rows_as_text(found, time_words)[:STAT_ROWS_SHOWN]
    for row, cells in zip(found.rows, texts, strict=False):
        key, (count, share, *rest) = cells[: len(columns)], cells[len(columns) :]
        rows.append(Row((*key, count, share, Span("", "bar", row.share), *rest)))
    head = (*columns, "count", "share", "", "per 1k", "min", "mean", "max")
    title = (
        f"{plural(found.exits, 'exit')} in {plural(found.instructions, 'instruction')} "
        f"and {time_words(found.ns)} of virtual time"
    )
    return Drawn((
        Note(title, "title"),
        Note("per thousand instructions, and the time from each exit to the next one"),
        Table(head, "l" * len(columns) + "rrlrrrr", tuple(rows)),
        *cut(len(found.rows), STAT_ROWS_SHOWN, "line"),
    ))  # fmt: skip
