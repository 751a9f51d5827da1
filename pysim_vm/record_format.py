"""The record on disk: a header that names the machine, then chunks of rows. It records and queries nothing.

A record starts with PREAMBLE and a JSON header. The header holds the identity of the VM and nothing that
differs between engines, hash seeds, hosts or times, so two recordings of one guest are the same file. Chunks
come after it: CHUNK_HEAD, then `count` rows of one structured type (`ROW_TYPES`), little-endian, as they are
or as columns, and deflated by zlib if that was asked for. Every head and every payload has a CRC-32.

A chunk is complete or it does not count: what a killed recording left behind its last complete chunk is
dropped when the record is opened. Nothing here is trusted: sizes are bounded before memory is taken, and
numbers come out of bytes through `numpy.frombuffer` alone.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pysim_vm.errors import AxError, AxErrorKind

MAGIC: Final = b"PYSIMREC"
VERSION: Final = 2  # 2 added EVENTS, WORDS and COLUMNS
READABLE: Final = (1, 2)
PREAMBLE: Final = struct.Struct("<8sIIII")  # magic, version, bytes of the header, its CRC-32, CRC-32 of these
CHUNK_MAGIC: Final = b"CHNK"
# magic, kind, flags, count, row bytes, first row, stored bytes, raw bytes, base ns, lowest and highest
# retired count, lowest and highest address, CRC-32 of the stored bytes, CRC-32 of this head
CHUNK_HEAD: Final = struct.Struct("<4sHHIIQQQQQQQQII")
DEFLATED: Final = 1  # flag: the stored bytes are a zlib stream of what would be stored without
COLUMNS: Final = 2  # flag: columns in place of rows
COLUMN_HEAD: Final = struct.Struct("<BQ")  # bytes a value takes, the least value

HEADER_LIMIT: Final = 16 << 20
CHUNK_LIMIT: Final = 64 << 20  # raw bytes of one chunk
NAME_LIMIT: Final = 200  # characters of a name that a record brings along
LINE_SHIFT: Final = 3  # stores are indexed by lines of 8 bytes

Rows = npt.NDArray[np.void]
Unsigned = npt.NDArray[np.unsignedinteger[Any]]


class Kind(IntEnum):
    """What the rows of a chunk are."""

    EXITS = 1
    STORES = 2
    INSTRUCTIONS = 3
    CHANGES = 4  # registers that the instructions changed
    STORE_LINES = 5  # sorted line numbers that the STORES chunk before it touches
    SYMBOLS = 6  # bytes: lines "address name" in hexadecimal
    DEVICES = 7  # bytes: the JSON list of device names, when devices came after the header was written
    END = 8  # bytes: a JSON object; the recording was closed
    EVENTS = 9  # exceptions, interrupts, INT n, the shutdown
    WORDS = 10  # bytes: the sentences that events point to, each once for as long as the recorder knew it


class StoreBy(IntEnum):
    """Who stored to RAM."""

    CPU = 0
    DMA = 1  # a device, a loader or the host, through PhysicalMemory.write
    WALK = 2  # the page walk, setting accessed and dirty bits


class Event(IntEnum):
    """What a step was, or an event."""

    INSTRUCTION = 0
    INTERRUPT = 1  # delivered in place of the instruction
    EXCEPTION = 2  # the instruction, or its fetch, raised it
    SOFTWARE = 3  # INT n
    SHUTDOWN = 4  # a triple fault


EXIT_TYPE: Final = np.dtype(
    [("retired", "<u8"), ("vcpu", "<u2"), ("rip", "<u8"), ("kind", "u1"), ("address", "<u8"), ("width", "u1"),
     ("value", "<u8"), ("device", "<i2"), ("raised", "<u8")]
)  # fmt: skip
EXIT_PACK: Final = struct.Struct("<QHQBQBQhQ")  # the same row, from the tuple of AxVM.exit_log
STORE_TYPE: Final = np.dtype(
    [("retired", "<u8"), ("rip", "<u8"), ("address", "<u8"), ("linear", "<u8"), ("value", "<u8"),
     ("size", "<u4"), ("by", "u1"), ("vcpu", "<u2")]
)  # fmt: skip
STORE_PACK: Final = struct.Struct("<QQQQQIBH")
INSTRUCTION_TYPE: Final = np.dtype(
    [("retired", "<u8"), ("rip", "<u8"), ("vcpu", "<u2"), ("bits", "u1"), ("event", "u1"), ("vector", "u1"),
     ("length", "u1"), ("raw", "u1", (15,))]
)  # fmt: skip
INSTRUCTION_PACK: Final = struct.Struct("<QQHBBBB15s")
CHANGE_TYPE: Final = np.dtype(
    [("retired", "<u8"), ("register", "<u8"), ("word", "u1"), ("before", "<u8"), ("after", "<u8")]
)
CHANGE_PACK: Final = struct.Struct("<QQBQQ")
EVENT_TYPE: Final = np.dtype(
    [("retired", "<u8"), ("rip", "<u8"), ("vcpu", "<u2"), ("event", "u1"), ("vector", "u1"), ("nested", "u1"),
     ("cpl", "u1"), ("error_code", "<i4"), ("address", "<u8"), ("words", "<u8"), ("length", "<u2")]
)  # fmt: skip
EVENT_PACK: Final = struct.Struct("<QQHBBBBiQQH")
NO_ERROR_CODE: Final = -1
ROW_TYPES: Final[Mapping[Kind, np.dtype[Any]]] = {
    Kind.EXITS: EXIT_TYPE,
    Kind.STORES: STORE_TYPE,
    Kind.INSTRUCTIONS: INSTRUCTION_TYPE,
    Kind.CHANGES: CHANGE_TYPE,
    Kind.STORE_LINES: np.dtype("<u8"),
    Kind.SYMBOLS: np.dtype("u1"),
    Kind.DEVICES: np.dtype("u1"),
    Kind.END: np.dtype("u1"),
    Kind.EVENTS: EVENT_TYPE,
    Kind.WORDS: np.dtype("u1"),
}
# Rows a complete chunk holds. A chunk is the unit of loss when a recording is killed and of work for a query.
CHUNK_ROWS: Final[Mapping[Kind, int]] = {
    Kind.EXITS: 1 << 13,
    Kind.STORES: 1 << 15,
    Kind.INSTRUCTIONS: 1 << 14,
    Kind.CHANGES: 1 << 15,
    Kind.WORDS: 1 << 16,
    Kind.EVENTS: 1 << 12,
}
COLUMN_KINDS: Final = frozenset({Kind.EXITS, Kind.STORES, Kind.CHANGES, Kind.EVENTS})
MSR_REGISTER: Final = (
    1 << 32
)  # `register` of a change: 1 << 32 | index for an MSR, else a place in the header


class RecordError(AxError):
    """A record cannot be read, written or asked for that: one sentence with the file and what to do."""

    def __init__(self, message: str, kind: AxErrorKind = AxErrorKind.InvalidData) -> None:
        super().__init__(kind, message)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a chunk is and what its head says. `offset` is that of its payload; `first` is the number of its
    first row; `base_ns` is the virtual time that HLT had skipped before that row."""

    kind: Kind
    flags: int
    count: int
    first: int
    offset: int
    stored: int
    raw: int
    base_ns: int
    retired: tuple[int, int]
    addresses: tuple[int, int]
    crc: int


@dataclass(frozen=True, slots=True)
class Column:
    """One field of many rows: the least and the greatest value, and the values unless all are the same."""

    least: int
    most: int
    values: Unsigned | None = None

    @classmethod
    def of(cls, values: Unsigned) -> Column:
        """A column of these unsigned values."""
        least, most = int(values.min()), int(values.max())
        return cls(least, most, None if least == most else values)


Columns = Mapping[str, Column]


def columns_of(kind: Kind, rows: bytes | memoryview) -> Columns:
    """Rows as columns; RecordError for a kind that has none (COLUMN_KINDS)."""
    table = np.frombuffer(rows, ROW_TYPES[kind])
    if kind not in COLUMN_KINDS:
        raise RecordError(f"rows of kind {kind.name.lower()} have no columns", AxErrorKind.InvalidInput)
    return {
        name: Column.of(np.ascontiguousarray(table[name]).view(f"<u{table[name].itemsize}"))
        for name in table.dtype.names or ()
    }


def packed_columns(columns: Columns) -> bytes:
    """Columns as they are stored: for each how many bytes a value takes and the least one, then for each what
    its values have more than that. It depends on the rows alone."""
    heads, parts = [], []
    for column in columns.values():
        span = column.most - column.least
        size = 0 if column.values is None else next(size for size in (1, 2, 4, 8) if span >> 8 * size == 0)
        heads.append(COLUMN_HEAD.pack(size, column.least))
        if column.values is not None:
            more = column.values - column.values.dtype.type(column.least)
            parts.append(more.astype(f"<u{size}").tobytes())
    return b"".join((*heads, *parts))


def unpacked_columns(kind: Kind, count: int, packed: bytes) -> bytes | None:
    """The rows that `packed_columns` packed, or None if they are not that."""
    table = np.zeros(count, ROW_TYPES[kind])
    names = table.dtype.names or ()
    at = COLUMN_HEAD.size * len(names)
    if len(packed) < at:
        return None
    for number, name in enumerate(names):
        size, least = COLUMN_HEAD.unpack_from(packed, COLUMN_HEAD.size * number)
        column = np.full(count, least, "<u8")
        if size:
            if size not in (1, 2, 4, 8) or len(packed) - at < size * count:
                return None
            column += np.frombuffer(packed, f"<u{size}", count, at)
            at += size * count
        table[name] = column.astype(f"<u{table[name].itemsize}").view(table[name].dtype)
    return table.tobytes() if at == len(packed) else None


def preamble(header: Mapping[str, Any]) -> bytes:
    """The first bytes of a record: PREAMBLE and `header` as JSON, keys sorted."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    if len(text) > HEADER_LIMIT:
        raise RecordError(f"the header of a record would take {len(text)} bytes; at most {HEADER_LIMIT}")
    head = PREAMBLE.pack(MAGIC, VERSION, len(text), zlib.crc32(text), 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head)) + text


def chunk_parts(
    kind: Kind,
    payload: bytes | memoryview,
    *,
    columns: Columns | None = None,
    count: int = 0,
    first: int = 0,
    base_ns: int = 0,
    retired: tuple[int, int] = (0, 0),
    addresses: tuple[int, int] = (0, 0),
    deflate: bool = False,
) -> tuple[bytes, bytes | memoryview]:
    """The head and the stored bytes of a chunk.

    These are `payload`, the rows, or its `columns` if those are smaller, and with `deflate` compressed if
    that makes them smaller still. An empty `payload` says that there are `count` rows, given as columns.
    """
    size = ROW_TYPES[kind].itemsize
    stored, flags, raw = payload, 0, len(payload) or count * size
    if columns is not None:
        packed = packed_columns(columns)
        if len(packed) < raw:
            stored, flags = packed, COLUMNS
    if deflate:
        packed = zlib.compress(stored, 1)
        if len(packed) < len(stored):
            stored, flags = packed, flags | DEFLATED
    head = CHUNK_HEAD.pack(
        CHUNK_MAGIC, kind, flags, raw // size, size, first, len(stored), raw, base_ns,
        *retired, *addresses, zlib.crc32(stored), 0,
    )[:-4]  # fmt: skip
    return head + struct.pack("<I", zlib.crc32(head)), stored


def chunk_bytes(kind: Kind, payload: bytes, **fields: Any) -> bytes:
    """A whole chunk; `fields` as for chunk_parts."""
    return b"".join(chunk_parts(kind, payload, **fields))


class RecordFile:
    """A record opened for reading: `header`, `chunks` in file order, `notes` about what is wrong with it.

    RecordError if it is no record, of another version, or damaged at its start. `source` is a path, which is
    mapped and not read, or the bytes themselves.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self.notes: list[str] = []
        self._map: mmap.mmap | None = None
        if isinstance(source, bytes):
            self.name, self._bytes = "the record", memoryview(source)
        else:
            self.name = os.fspath(source)
            self._bytes = self._open(Path(source))
        self.header, start = self._read_header()
        self.chunks: list[Chunk] = list(self._scan(start))

    def _open(self, path: Path) -> memoryview:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0:
                    return memoryview(b"")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise RecordError(
                f"record {path} cannot be read ({why}); check the path", AxErrorKind.Io
            ) from None
        return memoryview(self._map)

    def close(self) -> None:
        """Let the file go; rows handed out stay valid, because they are copies."""
        self._bytes.release()
        if self._map is not None:
            self._map.close()
            self._map = None

    def _read_header(self) -> tuple[dict[str, Any], int]:
        data = self._bytes
        if len(data) < PREAMBLE.size or bytes(data[:8]) != MAGIC:
            raise RecordError(f"{self.name} is no record of pysim-vm; `pysim-vm run --record FILE` makes one")
        _, version, size, crc, head_crc = PREAMBLE.unpack_from(data)
        if version not in READABLE:
            raise RecordError(
                f"{self.name} is a record of version {version}, this program reads versions up to {VERSION}; "
                "record it again"
            )
        text = bytes(data[PREAMBLE.size : PREAMBLE.size + min(size, HEADER_LIMIT)])
        if zlib.crc32(data[: PREAMBLE.size - 4]) != head_crc or len(text) != size or zlib.crc32(text) != crc:
            raise RecordError(f"{self.name}: the header is damaged; record it again")
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise RecordError(f"{self.name}: the header is no JSON object; record it again")
        return header, PREAMBLE.size + size

    def _scan(self, at: int) -> Iterator[Chunk]:
        """All chunk heads; stops, with a note, at the first place that is none."""
        end = len(self._bytes)
        last: Chunk | None = None
        while at < end:
            chunk = self._head(at)
            if chunk is None:
                if last is None or last.kind is not Kind.END:
                    self.notes.append(
                        f"{self.name} ends in the middle of a chunk, as a recording that was killed does; "
                        f"its last {end - at:,} bytes are left out"
                    )
                return
            last = chunk
            yield chunk
            at = chunk.offset + chunk.stored
        if last is None or last.kind is not Kind.END:
            self.notes.append(f"{self.name} was not closed: the recording still runs, or it was killed")

    def _head(self, at: int) -> Chunk | None:
        """The chunk at an offset, or None if none is there or its payload runs over the end."""
        data = self._bytes
        if len(data) - at < CHUNK_HEAD.size:
            return None
        (
            magic,
            kind,
            flags,
            count,
            size,
            first,
            stored,
            raw,
            base_ns,
            low,
            high,
            least,
            most,
            crc,
            head_crc,
        ) = CHUNK_HEAD.unpack_from(data, at)
        if magic != CHUNK_MAGIC or zlib.crc32(data[at : at + CHUNK_HEAD.size - 4]) != head_crc:
            return None
        if kind not in Kind.__members__.values() or flags & ~(DEFLATED | COLUMNS):
            return None
        if flags & COLUMNS and kind not in COLUMN_KINDS:
            return None
        row = ROW_TYPES[Kind(kind)].itemsize
        offset = at + CHUNK_HEAD.size
        if size != row or count * row != raw or raw > CHUNK_LIMIT or stored > max(raw, 1) or first >> 62:
            return None
        if offset + stored > len(data):
            return None
        if offset + stored == len(data) and zlib.crc32(data[offset : offset + stored]) != crc:
            return None  # the last one is where a killed recording tears
        return Chunk(
            Kind(kind), flags, count, first, offset, stored, raw, base_ns, (low, high), (least, most), crc
        )

    def payload(self, chunk: Chunk) -> bytes:
        """The raw bytes of a chunk, checked. RecordError if it is damaged."""
        stored = bytes(self._bytes[chunk.offset : chunk.offset + chunk.stored])
        if zlib.crc32(stored) != chunk.crc:
            raise self._damaged(chunk)
        if chunk.flags & DEFLATED:
            machine = zlib.decompressobj()
            try:
                stored = machine.decompress(stored, chunk.raw + 1)
            except zlib.error:
                raise self._damaged(chunk) from None
        raw = unpacked_columns(chunk.kind, chunk.count, stored) if chunk.flags & COLUMNS else stored
        if raw is None or len(raw) != chunk.raw:
            raise self._damaged(chunk)
        return raw

    def rows(self, chunk: Chunk) -> npt.NDArray[Any]:
        """The rows of a chunk as an array of its row type, read-only."""
        return np.frombuffer(self.payload(chunk), dtype=ROW_TYPES[chunk.kind])

    def search(self, chunk: Chunk, low: int, high: int) -> bool:
        """Whether a STORE_LINES chunk holds a number in [low, high]; reads a few pages of the file."""
        if chunk.flags & DEFLATED:
            lines = self.rows(chunk)
        else:
            lines = np.frombuffer(self._bytes, np.dtype("<u8"), chunk.count, chunk.offset)
        at = int(np.searchsorted(lines, np.uint64(low)))
        return at < len(lines) and int(lines[at]) <= high

    def of_kind(self, kind: Kind) -> list[Chunk]:
        """The chunks of one kind, in order."""
        return [chunk for chunk in self.chunks if chunk.kind is kind]

    def document(self, kind: Kind) -> Any:
        """The JSON of the last chunk of a kind, or None; RecordError if it is none."""
        found = self.of_kind(kind)
        if not found:
            return None
        try:
            return json.loads(self.payload(found[-1]))
        except (ValueError, RecursionError):
            raise self._damaged(found[-1]) from None

    def _damaged(self, chunk: Chunk) -> RecordError:
        return RecordError(
            f"{self.name}: the chunk at offset {chunk.offset:#x} ({chunk.kind.name.lower()}) is damaged; "
            "record it again"
        )


def printable(text: object, limit: int = NAME_LIMIT) -> str:
    """A name out of a record, safe for a terminal: control characters replaced, and not too long."""
    cut = str(text)[:limit]
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
