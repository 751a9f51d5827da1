"""The trace: a record opened for questions - which exits, when, from where, and who wrote that byte.

It runs no guest and writes nothing. A `Trace` is the sequence of all exits of a record; `where` and slices
make smaller ones, which read the file again piece by piece, so that a question about a record of gigabytes
needs the memory of a few chunks::

    trace = Trace.open("boot.rec")
    for row in trace.where(reason="io_write", port=0x3F8)[:10]:
        print(row.line())
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from pysim_vm.errors import AxErrorKind
from pysim_vm.record_format import (
    LINE_SHIFT,
    MSR_REGISTER,
    NO_ERROR_CODE,
    ROW_TYPES,
    Event,
    Kind,
    RecordError,
    RecordFile,
    StoreBy,
)
from pysim_vm.report import Change, changes
from pysim_vm.trace.record import Array, Block, Record, Test
from pysim_vm.trace.rows import EventRow, ExitRow, InstructionRow, StoreRow
from pysim_vm.trace.where import condition

Row = TypeVar("Row", bound=ExitRow | StoreRow | InstructionRow | EventRow)
Tests = tuple[Test, ...]
Picked = range | npt.NDArray[np.int64]

WRITERS: Final = 16  # answers of `who_wrote` unless told otherwise


class Rows(Generic[Row]):
    """A selection of rows of one kind: a sequence that is read when it is asked for.

    `len`, iteration, `rows[5]`, `rows[100:200]` (places within this selection), `where`, `to_numpy`,
    `to_pandas`, `to_polars`.
    """

    kind: Kind = Kind.EXITS

    def __init__(self, record: Record, kind: Kind, tests: Tests = (), picked: Picked | None = None) -> None:
        self.record = record
        self.kind = kind
        self._tests: Tests = tests
        self._picked: Picked = range(record.count(kind)) if picked is None else picked

    def _with(self, tests: Tests, picked: Picked) -> Rows[Row]:
        return Rows(self.record, self.kind, tests, picked)

    # ---- choosing ------------------------------------------------------------------------------------------

    def where(self, **conditions: Any) -> Rows[Row]:
        """The rows that meet all conditions; see `Trace.where`."""
        tests = tuple(condition(self.record, self.kind, name, wanted) for name, wanted in conditions.items())
        return self._with((*self._tests, *tests), self._picked)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Rows[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Rows[Row]:
        numbers = self.numbers()
        if isinstance(at, slice):
            if at.step is not None and at.step < 1:
                raise ValueError(
                    f"a slice of rows with the step {at.step}: rows go forward in time; use 1 or more"
                )
            return self._with((), numbers[at])
        try:
            number = int(numbers[at])
        except IndexError:
            raise IndexError(f"row {at}: there are {len(numbers)}") from None
        return next(iter(self._with((), range(number, number + 1))))

    def numbers(self) -> Picked:
        """The numbers of the rows within the record."""
        if self._tests:
            parts = [block.numbers for block in self.blocks()]
            self._picked = np.concatenate(parts) if parts else range(0)
            self._tests = ()
        return self._picked

    def __len__(self) -> int:
        if self._tests:
            return sum(len(block.numbers) for block in self.blocks())
        return len(self._picked)

    def __bool__(self) -> bool:
        return next(self.blocks(), None) is not None

    def blocks(self) -> Iterator[Block]:
        """The chosen rows, chunk by chunk, none of them empty."""
        record, picked = self.record, self._picked
        for chunk in record.chunks[self.kind]:
            places = _places(picked, chunk.first, chunk.count)
            if places is None:
                continue
            table = record.table(chunk)
            ns = record.times(chunk, table) if self.kind is Kind.EXITS else None
            block = _chosen(Block(np.arange(chunk.first, chunk.first + chunk.count), table, ns), places)
            for test in self._tests:
                if len(block.numbers) == 0:
                    break
                block = _chosen(block, np.flatnonzero(test(block)))
            if len(block.numbers):
                yield block

    def __repr__(self) -> str:
        # Without a look into the file: a selection is counted when it is asked for
        count = "chosen" if self._tests else f"{len(self._picked):,}"
        return f"<{type(self).__name__}: {count} {self.kind.name.lower()} of {self.record.name}>"

    def __str__(self) -> str:
        from pysim_vm.display.exits import rows_picture

        return str(rows_picture(self))

    def _repr_html_(self) -> str:
        from pysim_vm.display.exits import rows_picture

        return rows_picture(self)._repr_html_()

    def __iter__(self) -> Iterator[Row]:
        make: Callable[[Record, Block], Iterator[Any]] = _MAKERS[self.kind]
        for block in self.blocks():
            yield from make(self.record, block)

    # ---- other forms ---------------------------------------------------------------------------------------

    def to_numpy(self) -> Array:
        """The rows as one structured array (`record_format` has the types), in memory at once."""
        tables = [block.table for block in self.blocks()]
        if not tables:
            return np.zeros(0, ROW_TYPES[self.kind])
        return np.concatenate(tables)

    def columns(self) -> dict[str, Array]:
        """The rows as arrays by column name, names in place of numbers where a name is meant."""
        return columns(self.record, self.kind, list(self.blocks()))

    def to_pandas(self) -> Any:
        """A pandas DataFrame; RecordError with the line to type if pandas is not there."""
        return _library("pandas", "to_pandas").DataFrame(self.columns())

    def to_polars(self) -> Any:
        """A polars DataFrame; RecordError with the line to type if polars is not there."""
        return _library("polars", "to_polars").DataFrame(self.columns())


class Trace(Rows[ExitRow]):
    """The exits of a record, or a selection of them.

    `header` is the record's identity, `notes` are sentences about a file that was not closed or is cut short,
    `events` are exceptions and interrupts; `stores` and `instructions` are rows where they were recorded.
    """

    def __init__(
        self,
        record: Record,
        kind: Kind = Kind.EXITS,
        tests: Tests = (),
        picked: Picked | None = None,
    ) -> None:
        super().__init__(record, Kind.EXITS, tests, picked)

    @classmethod
    def open(cls, source: str | os.PathLike[str] | bytes) -> Trace:
        """Open a record file, or the bytes of one. RecordError, one sentence, if it is none.

        A file that is still being written is seen as it is now; open it again to see more.
        """
        return cls(Record(RecordFile(source)))

    def close(self) -> None:
        """Let the file go."""
        self.record.file.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _with(self, tests: Tests, picked: Picked) -> Trace:
        return Trace(self.record, Kind.EXITS, tests, picked)

    def where(self, **conditions: Any) -> Trace:
        """The exits that meet all conditions.

        `number`, `retired`, `ns`, `vcpu`, `rip`, `width`, `value`, `address` take a number, a range or
        several numbers. `gpa`, `port` and `msr` do the same for accesses of that bus and find every access
        that touches the byte. `reason` takes axvm's names ("mmio_read", or "mmio", "io" and "msr" for both
        directions), `device` and `symbol` names, `direction` "read" or "write", `irq` a line that rose.
        AxError for a condition or name that does not exist::

            trace.where(reason="mmio_read", gpa=range(0xFEE00000, 0xFEE01000), ns=range(0, 10**9))
        """
        selected = super().where(**conditions)
        assert isinstance(selected, Trace)
        return selected

    @overload
    def __getitem__(self, at: int) -> ExitRow: ...
    @overload
    def __getitem__(self, at: slice) -> Trace: ...
    def __getitem__(self, at: int | slice) -> ExitRow | Trace:
        found = super().__getitem__(at)
        assert isinstance(found, ExitRow | Trace)
        return found

    @property
    def header(self) -> dict[str, Any]:
        """The record's header: the machine, its guest, its devices."""
        return self.record.header

    @property
    def notes(self) -> list[str]:
        """What is wrong with the file, in sentences; empty for a record that was closed."""
        return self.record.notes

    @property
    def stores(self) -> Rows[StoreRow]:
        """Every write to RAM, if the record was made with `stores=True`."""
        return Rows(self.record, Kind.STORES)

    @property
    def instructions(self) -> Rows[InstructionRow]:
        """Every instruction, if the record was made with `instructions=True`."""
        return Rows(self.record, Kind.INSTRUCTIONS)

    @property
    def events(self) -> Rows[EventRow]:
        """Exceptions, interrupts, INT n and the shutdown, in their order."""
        return Rows(self.record, Kind.EVENTS)

    @property
    def exceptions(self) -> Rows[EventRow]:
        """The exceptions among the events, each with the check that failed."""
        return self.events.where(event="exception")

    @property
    def retired(self) -> int:
        """Instructions retired when the recording ended, or at its last row if it was never closed."""
        end = self.record.end.get("retired")
        if isinstance(end, int):
            return end
        lasts = [chunks[-1].retired[1] for chunks in self.record.chunks.values() if chunks]
        return max(lasts, default=self.record.start_retired)

    def who_wrote(
        self, address: int | None = None, *, port: int | None = None, msr: int | None = None,
        before: int | None = None, limit: int = WRITERS,
    ) -> list[ExitRow | StoreRow]:  # fmt: skip
        """Who wrote the byte at guest-physical `address` (or the port, or the MSR), the newest write first.

        RAM needs a record of stores, device memory does not. `before` is a retired count: only writes before
        it. At most `limit` rows. AxError if RAM is asked for in a record without its stores.
        """
        end = 1 << 64 if before is None else before
        if address is None:
            conditions = {"port": port} if port is not None else {"msr": msr}
            if (port is None) == (msr is None):
                raise RecordError("who_wrote: give one of address, port= and msr=", AxErrorKind.InvalidInput)
        else:
            conditions = {"gpa": address}
        writes: list[ExitRow | StoreRow] = []
        if address is not None and self.record.holds_stores_to(address):
            writes += _stores_at(self.record, address, end, limit)
        elif address is not None and self.record.in_ram(address) and self.record.header.get("stores"):
            raise RecordError(
                f"who_wrote({address:#x}): {self.record.name} holds the stores to other addresses; record "
                f"with --record-stores-to {address:#x} (in Python: stores=[range(...)])",
                AxErrorKind.InvalidInput,
            )
        elif address is not None and self.record.in_ram(address):
            raise RecordError(
                f"who_wrote({address:#x}): that is RAM, and {self.record.name} holds no stores; record with "
                "--record-stores (in Python: stores=True)",
                AxErrorKind.InvalidInput,
            )
        exits = self.where(direction="write", retired=range(0, end), **conditions)
        writes += _newest(exits, limit)
        writes.sort(key=lambda row: row.retired, reverse=True)
        return writes[:limit]

    def digest(self) -> str:
        """SHA-256 over the header (but for the command that made the record) and all rows: the same for two
        records of the same guest, however they were cut or compressed."""
        header = {key: value for key, value in self.header.items() if key != "command"}
        found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for kind, chunks in self.record.chunks.items():
            found.update(bytes((kind,)))
            for chunk in chunks:
                found.update(self.record.file.payload(chunk))
        return found.hexdigest()


# ---- blocks and rows ---------------------------------------------------------------------------------------


def _places(picked: Picked, first: int, count: int) -> Any:
    """Which rows of a chunk are picked, as an index of its table; None for none."""
    if isinstance(picked, range):
        step = picked.step
        low = max(0, -((picked.start - first) // step)) if picked.start < first else 0
        start = picked.start + low * step - first
        stop = min(count, picked.stop - first)
        return slice(start, stop, step) if start < stop else None
    low, high = np.searchsorted(picked, (first, first + count))
    return picked[low:high] - first if low < high else None


def _chosen(block: Block, places: Any) -> Block:
    ns = None if block.ns is None else block.ns[places]
    return Block(block.numbers[places], block.table[places], ns)


def _exit_rows(record: Record, block: Block) -> Iterator[ExitRow]:
    assert block.ns is not None
    kinds, symbol, device = record.kinds, record.symbol, record.device
    for number, ns, row in zip(block.numbers.tolist(), block.ns.tolist(), block.table.tolist(), strict=True):
        retired, vcpu, rip, kind, address, width, value, answered, raised = row
        reason = kinds[kind] if kind < len(kinds) else f"kind_{kind}"
        lines = tuple(n for n in range(64) if raised >> n & 1) if raised else ()
        yield ExitRow(number, retired, ns, vcpu, rip, symbol(rip), reason, address, width, value,
                      device(answered), lines)  # fmt: skip


def _store_rows(record: Record, block: Block) -> Iterator[StoreRow]:
    names = [member.name.lower() for member in StoreBy]
    for number, row in zip(block.numbers.tolist(), block.table.tolist(), strict=True):
        retired, rip, address, linear, value, size, by, vcpu = row
        yield StoreRow(number, retired, vcpu, rip, record.symbol(rip), address, linear, size, value,
                       names[by] if by < len(names) else f"by_{by}")  # fmt: skip


def _instruction_rows(record: Record, block: Block) -> Iterator[InstructionRow]:
    names = [member.name.lower() for member in Event]
    counts = block.table["retired"]
    span = range(int(counts.min()), int(counts.max()) + 1)
    changed: dict[int, list[Change]] = {}
    for retired, register, word, old, new in _between(record, Kind.CHANGES, span):
        name = _register_name(record, register)
        known = changed.setdefault(retired, [])
        shift = 64 * (word & 3)
        last = known.pop() if word and known and known[-1].name == name else Change(name, 0, 0)
        known.append(Change(name, last.before | old << shift, last.after | new << shift))
    stores: dict[int, list[StoreRow]] = {}
    for store in Rows[StoreRow](record, Kind.STORES).where(retired=span):
        stores.setdefault(store.retired, []).append(store)
    for number, row in zip(block.numbers.tolist(), block.table.tolist(), strict=True):
        retired, rip, vcpu, bits, event, vector, length, raw = row
        yield InstructionRow(
            number, retired, vcpu, rip, record.symbol(rip), bits if bits in (16, 32, 64) else 64,
            bytes(raw[: min(length, 15)]), names[event] if 0 < event < len(names) else "",
            vector, _flag_by_flag(changed.get(retired, ())), tuple(stores.get(retired, ())),
        )  # fmt: skip


def _event_rows(record: Record, block: Block) -> Iterator[EventRow]:
    names = [member.name.lower() for member in Event]
    for number, row in zip(block.numbers.tolist(), block.table.tolist(), strict=True):
        retired, rip, vcpu, event, vector, nested, cpl, error_code, address, words, length = row
        yield EventRow(
            number, retired, vcpu, rip, record.symbol(rip), names[event] if event < len(names) else "",
            vector, None if error_code == NO_ERROR_CODE else error_code, address, cpl, bool(nested),
            record.words(words, length),
        )  # fmt: skip


def _flag_by_flag(found: Iterable[Change]) -> tuple[Change, ...]:
    """RFLAGS as the flags that changed, as `step` shows them."""
    shown: list[Change] = []
    for change in found:
        shown += changes({change.name: change.before}, {change.name: change.after})
    return tuple(shown)


def _between(record: Record, kind: Kind, span: range) -> Iterator[tuple[int, ...]]:
    for chunk in record.chunks[kind]:
        if chunk.retired[1] >= span.start and chunk.retired[0] < span.stop:
            table = record.file.rows(chunk)
            inside = (table["retired"] >= span.start) & (table["retired"] < np.uint64(span.stop))
            yield from table[inside].tolist()


def _register_name(record: Record, register: int) -> str:
    if register & MSR_REGISTER:
        return f"msr {register & 0xFFFF_FFFF:#x}"
    return record.registers[register] if register < len(record.registers) else f"register {register}"


_MAKERS: Final[Mapping[Kind, Callable[[Record, Block], Iterator[Any]]]] = {
    Kind.EXITS: _exit_rows,
    Kind.STORES: _store_rows,
    Kind.INSTRUCTIONS: _instruction_rows,
    Kind.EVENTS: _event_rows,
}


# ---- who wrote ---------------------------------------------------------------------------------------------


def _stores_at(record: Record, address: int, before: int, limit: int) -> list[StoreRow]:
    """The newest stores that touch a byte. From the end, chunk by chunk; an index rules most of them out."""
    found: list[StoreRow] = []
    line = address >> LINE_SHIFT
    for chunk in reversed(record.chunks[Kind.STORES]):
        if chunk.retired[0] >= before:
            continue
        index = record.lines.get(chunk.first)
        if index is not None:
            low, high = index.addresses
            if not low <= line <= high or not record.file.search(index, line, line):
                continue
        rows = Rows[StoreRow](record, Kind.STORES, (), range(chunk.first, chunk.first + chunk.count))
        found += _newest(rows.where(gpa=address, retired=range(0, before)), limit - len(found))
        if len(found) >= limit:
            break
    return found


def _newest(rows: Any, limit: int) -> list[Any]:
    """The last `limit` rows of a selection, newest first."""
    numbers = rows.numbers()
    return list(rows[max(0, len(numbers) - limit) :])[::-1] if limit > 0 else []


# ---- columns -----------------------------------------------------------------------------------------------


def columns(record: Record, kind: Kind, blocks: list[Block]) -> dict[str, Array]:
    """Blocks as arrays by column name."""
    if not blocks:
        blocks = [Block(np.zeros(0, np.int64), np.zeros(0, ROW_TYPES[kind]), np.zeros(0, np.uint64))]
    table = np.concatenate([block.table for block in blocks])
    found: dict[str, Array] = {"number": np.concatenate([block.numbers for block in blocks])}
    names = table.dtype.names or ()
    if kind is Kind.EXITS:
        found["ns"] = np.concatenate([block.ns for block in blocks if block.ns is not None])
    for name in names:
        column = np.ascontiguousarray(table[name])
        match name:
            case "kind":
                found["reason"] = _named(column, record.kinds)
            case "device":
                found["device"] = _named(column, record.devices)
            case "by":
                found["by"] = _named(column, [member.name.lower() for member in StoreBy])
            case "event":
                found["event"] = _named(column, [member.name.lower() for member in Event])
            case "raw":
                found["raw"] = np.array([bytes(row) for row in column], object)
            case _:
                found[name] = column
    places, inverse = np.unique(table["rip"], return_inverse=True)
    found["symbol"] = np.array([record.symbol(int(place)) for place in places], object)[inverse]
    return found


def _named(column: Array, names: list[str]) -> Array:
    table = np.array([*names, ""], object)
    known = (column >= 0) & (column < len(names))
    named: Array = table[np.where(known, column, len(names)).astype(np.intp)]
    return named


def _library(name: str, who: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise RecordError(
            f"{who}: {name} is not installed; pip install {name}", AxErrorKind.Unsupported
        ) from None
