"""Counting exits: how many of which kind, how often, how long until the next one. Nothing is shown here.

The table is that of `perf kvm stat`. An answer takes no virtual time in this machine, so the time of an exit
is that from it to the next exit: the sleep of a HLT, and for any other exit how long the guest then ran.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pysim_vm.errors import AxErrorKind
from pysim_vm.record_format import Kind, RecordError
from pysim_vm.trace.record import Array, Block, Record
from pysim_vm.trace.trace import Trace
from pysim_vm.trace.where import REASON_GROUPS
from pysim_vm.trace.words import ACCESSES

COLUMNS: Final = {
    "reason": ("exit", "answered by"),
    "device": ("answered by",),
    "port": ("port", "answered by"),
    "address": ("exit", "address", "answered by"),
    "rip": ("instruction at",),
    "symbol": ("symbol",),
    "vcpu": ("vcpu",),
}
GROUPS: Final = tuple(COLUMNS)
_KEYS: Final = {
    "reason": ("kind", "device"),
    "device": ("device",),
    "port": ("address", "device"),
    "address": ("kind", "address", "device"),
    "rip": ("rip",),
    "symbol": ("rip",),
    "vcpu": ("vcpu",),
}
GROUPS_MAX: Final = 1 << 20  # different keys: a guest may exit at every address


@dataclass(slots=True)
class StatRow:
    """One line: `key` is text for each column of `COLUMNS[by]`. Times are virtual nanoseconds until the next
    exit; `share` is of all exits counted, `per_thousand` exits per thousand retired instructions."""

    key: tuple[str, ...]
    count: int = 0
    share: float = 0.0
    per_thousand: float = 0.0
    total_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0

    @property
    def mean_ns(self) -> float:
        """The mean time until the next exit."""
        return self.total_ns / self.count if self.count else 0.0

    def as_dict(self) -> dict[str, object]:
        """The line for JSON."""
        return {
            "key": list(self.key),
            "count": self.count,
            "share": round(self.share, 6),
            "per_thousand_instructions": round(self.per_thousand, 6),
            "min_ns": self.min_ns,
            "mean_ns": round(self.mean_ns, 3),
            "max_ns": self.max_ns,
        }


@dataclass(slots=True)
class Stat:
    """The whole table, most frequent first, and what it was counted over."""

    by: str
    exits: int
    instructions: int
    ns: int
    rows: list[StatRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """The table for JSON."""
        return {
            "by": self.by,
            "columns": list(COLUMNS[self.by]),
            "exits": self.exits,
            "instructions": self.instructions,
            "virtual_ns": self.ns,
            "rows": [row.as_dict() for row in self.rows],
        }

    def __str__(self) -> str:
        from pysim_vm.display.exits import stat_picture

        return str(stat_picture(self))

    def _repr_html_(self) -> str:
        from pysim_vm.display.exits import stat_picture

        return stat_picture(self)._repr_html_()


def stat(trace: Trace, by: str = "reason") -> Stat:
    """Count the exits of a trace or of a selection, grouped by "reason", "device", "port", "address", "rip",
    "symbol" or "vcpu". AxError for another group."""
    if by not in COLUMNS:
        raise RecordError(f"stat: no group {by!r}; there are {', '.join(GROUPS)}", AxErrorKind.InvalidInput)
    record = trace.record
    if by == "port":
        trace = trace.where(reason=[name for name in REASON_GROUPS["io"] if name in record.kinds])
    keys = _KEYS[by]
    groups: dict[tuple[int, ...], StatRow] = {}
    for block in trace.blocks():
        _count(record, keys, block, groups)
    total = sum(row.count for row in groups.values())
    first_retired = record.start_retired
    instructions = max(trace.retired - first_retired, 0)
    names = _namer(record, by)
    rows: dict[tuple[str, ...], StatRow] = {}
    for key, found in groups.items():
        text = names(key)
        row = rows.get(text)
        if row is None:
            found.key = text
            rows[text] = found
        else:
            row.min_ns, row.max_ns = min(row.min_ns, found.min_ns), max(row.max_ns, found.max_ns)
            row.count, row.total_ns = row.count + found.count, row.total_ns + found.total_ns
    for row in rows.values():
        row.share = row.count / total if total else 0.0
        row.per_thousand = row.count * 1000 / instructions if instructions else 0.0
    ordered = sorted(rows.values(), key=lambda row: (-row.count, row.key))
    return Stat(by, total, instructions, _end_ns(record) - _start_ns(record), ordered)


def _count(
    record: Record, keys: tuple[str, ...], block: Block, groups: dict[tuple[int, ...], StatRow]
) -> None:
    """Add the exits of one chunk."""
    elapsed = _elapsed(record, block)
    table = np.stack([block.table[name].astype(np.int64) for name in keys], axis=1)
    found, inverse = np.unique(table, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse, minlength=len(found))
    totals = np.zeros(len(found), np.uint64)
    np.add.at(totals, inverse, elapsed)
    least = np.full(len(found), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, inverse, elapsed)
    most = np.zeros(len(found), np.uint64)
    np.maximum.at(most, inverse, elapsed)
    for place, key in enumerate(map(tuple, found.tolist())):
        row = groups.get(key)
        if row is None:
            if len(groups) >= GROUPS_MAX:
                raise RecordError(
                    f"stat: more than {GROUPS_MAX:,} groups; count a part of the record, or by reason",
                    AxErrorKind.InvalidInput,
                )
            row = groups[key] = StatRow((), min_ns=int(least[place]))
        row.count += int(counts[place])
        row.total_ns += int(totals[place])
        row.min_ns = min(row.min_ns, int(least[place]))
        row.max_ns = max(row.max_ns, int(most[place]))


def _elapsed(record: Record, block: Block) -> Array:
    """Virtual time from each exit of a block to the next exit of the record, in ns."""
    chunks, firsts = record.chunks[Kind.EXITS], record.firsts[Kind.EXITS]
    at = int(np.searchsorted(firsts, block.numbers[0], side="right")) - 1
    chunk = chunks[at]
    times = record.times(chunk, record.table(chunk))
    if at + 1 < len(chunks):
        after = chunks[at + 1]
        end = after.retired[0] * record.ns_per_instruction + after.base_ns
    else:
        end = _end_ns(record)
    following = np.append(times[1:], np.uint64(end & (1 << 64) - 1))
    elapsed = np.where(following > times, following - times, np.uint64(0))
    mine: Array = elapsed[block.numbers - chunk.first]
    return mine


def _end_ns(record: Record) -> int:
    """When the recording ended, or its last exit if it was never closed."""
    end = record.end.get("ns")
    if isinstance(end, int) and 0 <= end < 1 << 63:
        return end
    chunks = record.chunks[Kind.EXITS]
    return int(record.times(chunks[-1], record.table(chunks[-1]))[-1]) if chunks else _start_ns(record)


def _start_ns(record: Record) -> int:
    start = record.header.get("start")
    skipped = start.get("skipped_ns", 0) if isinstance(start, dict) else 0
    return record.start_retired * record.ns_per_instruction + (skipped if isinstance(skipped, int) else 0)


def _namer(record: Record, by: str) -> Callable[[tuple[int, ...]], tuple[str, ...]]:
    """From a key of numbers to the texts of its columns."""

    def kind(number: int) -> str:
        return record.kinds[number] if number < len(record.kinds) else f"kind_{number}"

    def device(number: int, access: bool = True) -> str:
        return record.device(number) or ("nobody" if access else "")

    def place(rip: int) -> str:
        name = record.symbol(rip & (1 << 64) - 1)
        return f"{rip & (1 << 64) - 1:#x}" + (f" <{name}>" if name else "")

    def symbol(rip: int) -> str:
        location = record.symbols.lookup(rip & (1 << 64) - 1)
        return "(none)" if location is None else location.symbol.name

    match by:
        case "reason":
            return lambda key: (kind(key[0]), device(key[1], kind(key[0]) in ACCESSES))
        case "device":
            return lambda key: (device(key[0]),)
        case "port":
            return lambda key: (f"{key[0]:#x}", device(key[1]))
        case "address":
            return lambda key: (
                kind(key[0]), f"{key[1] & (1 << 64) - 1:#x}", device(key[2], kind(key[0]) in ACCESSES)
            )  # fmt: skip
        case "rip":
            return lambda key: (place(key[0]),)
        case "symbol":
            return lambda key: (symbol(key[0]),)
        case _:
            return lambda key: (str(key[0]),)


def rows_as_text(found: Stat, times: Callable[[float], str]) -> list[tuple[str, ...]]:
    """The lines as texts: the key's columns, count, share, per thousand, and the three times."""
    lines: list[tuple[str, ...]] = []
    for row in found.rows:
        numbers: tuple[Any, ...] = (row.min_ns, row.mean_ns, row.max_ns)
        lines.append(
            (*row.key, f"{row.count:,}", f"{row.share:.1%}", f"{row.per_thousand:.3f}", *map(times, numbers))
        )
    return lines
