"""Exits in other formats: which there are, and the plain ones - CSV, JSON lines, SQLite, Parquet.

Perfetto and ftrace have rooms of their own. Numbers that may exceed 2**53 are hexadecimal in texts; in SQLite
they are 64-bit integers in two's complement, which is what its own hexadecimal literals are.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from pysim_vm.errors import AxErrorKind
from pysim_vm.record_format import RecordError
from pysim_vm.trace.ftrace import write_ftrace
from pysim_vm.trace.perfetto import write_perfetto
from pysim_vm.trace.record import Block
from pysim_vm.trace.rows import ExitRow
from pysim_vm.trace.trace import Trace
from pysim_vm.trace.words import irq_words

Target = str | os.PathLike[str] | TextIO | BinaryIO
CSV_HEAD: Final = (
    "number", "retired", "ns", "vcpu", "rip", "symbol", "reason", "direction", "address", "width", "value",
    "device", "raised",
)  # fmt: skip
SQL_TABLE: Final = """
create table exits (
    number integer primary key, retired integer, ns integer, vcpu integer, rip integer, symbol text,
    reason text, direction text, address integer, width integer, value integer, device text, raised integer,
    words text
)
"""
SQL_VIEW: Final = """
create view exits_in_hexadecimal as select number, retired, ns, vcpu, printf('0x%x', rip) as rip, symbol,
    reason, direction, printf('0x%x', address) as address, width, printf('0x%x', value) as value, device,
    raised, words from exits
"""
SQL_BATCH: Final = 10_000  # rows held at a time


@dataclass(frozen=True, slots=True)
class Format:
    """One format: what it is called in a sentence, whether it is binary, whether it needs a path of its own,
    and how it is written; `write` returns the number of exits."""

    what: str
    binary: bool
    by_path: bool
    write: Callable[[Trace, Any], int]


def export(trace: Trace, target: Target, form: str) -> int:
    """Write the exits of a trace or of a selection to a path or an open file; how many were written.

    AxError for an unknown format or a library that is missing, OSError if the host cannot write.
    """
    found = FORMATS.get(form)
    if found is None:
        raise RecordError(
            f"export: no format {form!r}; there are {', '.join(FORMATS)}", AxErrorKind.InvalidInput
        )
    if found.by_path:
        if not isinstance(target, str | os.PathLike):
            raise RecordError(f"export: {form} needs the path of a file", AxErrorKind.InvalidInput)
        return found.write(trace, Path(target))
    with _open(target, found.binary) as file:
        return found.write(trace, file)


@contextmanager
def _open(target: Target, binary: bool) -> Iterator[Any]:
    if not isinstance(target, str | os.PathLike):
        yield target
        return
    path = Path(target)
    with path.open("wb") if binary else path.open("w", encoding="utf-8", newline="") as file:
        yield file


def _write_csv(trace: Trace, file: TextIO) -> int:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(CSV_HEAD)
    count = 0
    for row in trace:
        table.writerow(
            (row.number, row.retired, row.ns, row.vcpu, f"{row.rip:#x}", row.symbol, row.reason,
             row.direction, f"{row.address:#x}", row.width, f"{row.value:#x}", row.device,
             irq_words(row.raised) if row.raised else "")
        )  # fmt: skip
        count += 1
    return count


def _write_json_lines(trace: Trace, file: TextIO) -> int:
    count = 0
    for row in trace:
        file.write(json.dumps(row.as_dict()) + "\n")
        count += 1
    return count


def _write_sqlite(trace: Trace, path: Path) -> int:
    """A database with the table `exits` and a view with hexadecimal numbers. An old one is replaced."""
    path.unlink(missing_ok=True)
    count = 0
    try:
        base = sqlite3.connect(path)
        try:
            base.execute(SQL_TABLE)
            batch: list[tuple[object, ...]] = []
            for row in trace:
                batch.append(_sql_row(row))
                count += 1
                if len(batch) >= SQL_BATCH:
                    base.executemany(f"insert into exits values ({', '.join('?' * 14)})", batch)
                    batch.clear()
            base.executemany(f"insert into exits values ({', '.join('?' * 14)})", batch)
            base.execute("create index exits_address on exits (reason, address)")
            base.execute(SQL_VIEW)
            base.commit()
        finally:
            base.close()
    except sqlite3.Error as error:
        raise OSError(0, str(error), str(path)) from error
    return count


def _sql_row(row: ExitRow) -> tuple[object, ...]:
    raised = sum(1 << line for line in row.raised)
    return (row.number, _signed(row.retired), _signed(row.ns), row.vcpu, _signed(row.rip), row.symbol,
            row.reason, row.direction, _signed(row.address), row.width, _signed(row.value), row.device,
            _signed(raised), row.words())  # fmt: skip


def _signed(value: int) -> int:
    """A 64-bit number as SQLite keeps it."""
    return value - (1 << 64) if value >> 63 else value


def _write_parquet(trace: Trace, path: Path) -> int:
    """One row group for each chunk of the record."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise RecordError(
            "export: parquet needs pyarrow, which is not installed; pip install 'pysim-vm[parquet]'",
            AxErrorKind.Unsupported,
        ) from None
    from pysim_vm.record_format import Kind
    from pysim_vm.trace.trace import columns

    count = 0

    def table_of(blocks: list[Block]) -> Any:
        return arrow.table(
            {
                name: arrow.array(column.tolist(), arrow.string()) if column.dtype == object
                else arrow.array(column)
                for name, column in columns(trace.record, Kind.EXITS, blocks).items()
            }
        )  # fmt: skip

    empty = table_of([])
    with parquet.ParquetWriter(path, empty.schema) as writer:
        for block in trace.blocks():
            writer.write_table(table_of([block]))
            count += len(block.numbers)
    return count


FORMATS: Final[Mapping[str, Format]] = {
    "perfetto": Format("a Perfetto trace", True, False, write_perfetto),
    "csv": Format("comma-separated values", False, False, _write_csv),
    "jsonl": Format("JSON lines", False, False, _write_json_lines),
    "sqlite": Format("an SQLite database", True, True, _write_sqlite),
    "parquet": Format("a Parquet file", True, True, _write_parquet),
    "ftrace": Format("ftrace's text", False, False, write_ftrace),
}
