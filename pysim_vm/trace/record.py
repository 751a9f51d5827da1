"""A record for queries: its parts checked and its names made safe. It selects nothing and makes no rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pysim_vm.record_format import NAME_LIMIT, Chunk, Kind, RecordError, RecordFile, printable
from pysim_vm.symbols import Symbol, SymbolTable

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

NAMES_MAX: Final = 1 << 15  # devices of a VM: their numbers are 16 bits
SYMBOLS_MAX: Final = 4_000_000
M64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one chunk: their numbers, the array, and for exits their virtual times in ns."""

    numbers: npt.NDArray[np.int64]
    table: Array
    ns: npt.NDArray[np.uint64] | None


Test = Callable[[Block], Mask]


class Record:
    """A record's parts, checked: what a Trace and its selections share."""

    def __init__(self, file: RecordFile) -> None:
        self.file = file
        self.notes = file.notes
        header = file.header
        self.header = header
        self.name = file.name
        self.kinds = self._names("kinds", header.get("kinds"), 256)
        later = file.document(Kind.DEVICES)
        self.devices = self._names("devices", header.get("devices") if later is None else later, NAMES_MAX)
        self.ns_per_instruction = self._number(header.get("ns_per_instruction"), 1, 1 << 32)
        self.registers = self._names("registers", header.get("registers", []), 4096)
        start = header.get("start")
        self.start_retired = self._number(start.get("retired") if isinstance(start, dict) else None, 0, M64)
        self.chunks: dict[Kind, list[Chunk]] = {}
        self.firsts: dict[Kind, list[int]] = {}
        for kind in (Kind.EXITS, Kind.STORES, Kind.INSTRUCTIONS, Kind.CHANGES, Kind.EVENTS, Kind.WORDS):
            found = file.of_kind(kind)
            expected = 0
            for chunk in found:
                if chunk.first != expected:
                    raise RecordError(
                        f"{self.name}: the chunk at offset {chunk.offset:#x} starts with row {chunk.first}, "
                        f"not {expected}; the file is damaged, record it again"
                    )
                expected += chunk.count
            self.chunks[kind] = found
            self.firsts[kind] = [chunk.first for chunk in found]
        self.lines = {chunk.first: chunk for chunk in file.of_kind(Kind.STORE_LINES)}
        self.halt = self.kinds.index("halt") if "halt" in self.kinds else -1
        end = file.document(Kind.END)
        self.end: dict[str, Any] = end if isinstance(end, dict) else {}
        self._cached: tuple[Chunk, Array] | None = None
        self._cached_words: tuple[Chunk, bytes] | None = None

    def _names(self, what: str, value: object, limit: int) -> list[str]:
        if not isinstance(value, list) or len(value) > limit or not all(isinstance(n, str) for n in value):
            raise RecordError(f"{self.name}: its list of {what} is damaged; record it again")
        return [printable(name) for name in value]

    def _number(self, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise RecordError(f"{self.name}: the header is damaged; record it again")
        return value

    def count(self, kind: Kind) -> int:
        """Rows of a kind."""
        chunks = self.chunks[kind]
        return chunks[-1].first + chunks[-1].count if chunks else 0

    def table(self, chunk: Chunk) -> Array:
        """The rows of a chunk; the last one asked for is kept."""
        if self._cached is None or self._cached[0] is not chunk:
            self._cached = chunk, self.file.rows(chunk)
        return self._cached[1]

    def times(self, chunk: Chunk, table: Array) -> npt.NDArray[np.uint64]:
        """Virtual times of exits: retired instructions at their price, plus what HLT skipped before."""
        skipped = np.where(table["kind"] == self.halt, table["value"], np.uint64(0)).astype(np.uint64)
        before = np.cumsum(skipped, dtype=np.uint64) - skipped + np.uint64(chunk.base_ns & M64)
        times: npt.NDArray[np.uint64] = table["retired"] * np.uint64(self.ns_per_instruction) + before
        return times

    @cached_property
    def symbols(self) -> SymbolTable:
        """The guest's symbols that the record brings along."""
        found: list[Symbol] = []
        for chunk in self.file.of_kind(Kind.SYMBOLS):
            for line in self.file.payload(chunk).decode("utf-8", "replace").splitlines():
                address, _, name = line.partition(" ")
                try:
                    found.append(Symbol(printable(name)[:NAME_LIMIT], int(address, 16) & M64))
                except ValueError:
                    raise RecordError(f"{self.name}: its symbols are damaged; record it again") from None
                if len(found) > SYMBOLS_MAX:
                    raise RecordError(f"{self.name}: too many symbols; record it again")
        return SymbolTable(found)

    def symbol(self, address: int) -> str:
        """`name+0x1c`, or "" where no symbol is near."""
        if not self.file.of_kind(Kind.SYMBOLS):
            return ""
        location = self.symbols.lookup(address)
        return "" if location is None else str(location)

    def words(self, at: int, length: int) -> str:
        """The sentence in bytes [at, at + length) of the WORDS; what a killed recording lost is missing."""
        found = b""
        for chunk in self.chunks[Kind.WORDS]:
            if chunk.first < at + length and at < chunk.first + chunk.count:
                payload = self._payload(chunk)
                found += payload[max(0, at - chunk.first) : at + length - chunk.first]
        return printable(found.decode("utf-8", "replace"), length)

    def _payload(self, chunk: Chunk) -> bytes:
        if self._cached_words is None or self._cached_words[0] is not chunk:
            self._cached_words = chunk, self.file.payload(chunk)
        return self._cached_words[1]

    def device(self, number: int) -> str:
        """The name of a device, "" for none."""
        return self.devices[number] if 0 <= number < len(self.devices) else ""

    def in_ram(self, address: int) -> bool:
        """Whether the machine had RAM there when the recording began."""
        return any(base <= address < base + size for base, size in _pairs(self.header.get("memory")))

    def holds_stores_to(self, address: int) -> bool:
        """Whether stores to that address were recorded, in RAM or beside it."""
        stores = self.header.get("stores")
        return stores is True or any(start <= address < stop for start, stop in _pairs(stores))


def _pairs(found: object) -> list[tuple[int, int]]:
    """The pairs of numbers in a list of a header, whatever else may be in it."""
    if not isinstance(found, list):
        return []
    pairs = [tuple(pair) for pair in found if isinstance(pair, list) and len(pair) == 2]
    return [(one, two) for one, two in pairs if isinstance(one, int) and isinstance(two, int)]
