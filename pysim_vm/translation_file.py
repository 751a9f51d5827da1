"""One file of the translation cache: its header, batches of entries, their checksums. It chooses no place.

A file is a header and batches. A batch is an index, which says of each entry for which code it is, and the
payloads; it is written in one go at the end. Nothing in a payload is looked at before its checksum fits. What
follows the last whole batch (a writer was killed, the disk was full) counts as not there.

    header   magic 8, program 32, machine 32, length of text 2, text, check 16
    batch    marker 4, entries 4, bytes of index 4, bytes of payloads 8, check 32 (of the index)
    entry    offset in the payloads 8, size 4, check 32, variant 16, numbers of key 1, of heads 2, the numbers

Payloads are `marshal` data, as in Python's own .pyc files: code objects, numbers, texts. Whoever can write
such a file decides what is executed; `translation_cache` therefore opens only what belongs to the user alone.
"""

from __future__ import annotations

import marshal
import os
import struct
from collections.abc import Iterable
from hashlib import blake2b
from types import CodeType
from typing import Any, Final, NamedTuple

from isa.translate import Draft

MAGIC: Final = b"pysimTC1"
MARKER: Final = b"BTCH"
TEXT_MAX: Final = 1024  # bytes of the header's text
ENTRIES_MAX: Final = 1 << 16  # in one batch
INDEX_MAX: Final = 1 << 25  # bytes of one batch's index
PAYLOAD_MAX: Final = 1 << 23  # bytes of one entry: the longest region has some hundred KiB
NUMBERS_MAX: Final = 1 << 10  # heads of one entry

_HEADER: Final = struct.Struct("<8s32s32sH")
_BATCH: Final = struct.Struct("<4sIIQ32s")
_ENTRY: Final = struct.Struct("<QI32s16sBH")
_CHECK_SIZE: Final = 16
_U64_MAX: Final = (1 << 64) - 1

Numbers = tuple[int, ...]


class Header(NamedTuple):
    """For whom a file was written: digests of the program and of the CPU's features, and words for people."""

    program: bytes
    machine: bytes
    text: str

    def encoded(self) -> bytes:
        """The header's bytes."""
        text = self.text.encode()[:TEXT_MAX]
        data = _HEADER.pack(MAGIC, self.program, self.machine, len(text)) + text
        return data + blake2b(data, digest_size=_CHECK_SIZE).digest()


class Entry(NamedTuple):
    """Where a translation is, and for which code it was made."""

    key: Numbers  # the mode: isa.code_cache.ContextKey
    heads: Numbers
    variant: bytes  # digest of everything but the code object: tells translations of the same heads apart
    offset: int
    size: int
    check: bytes


class Packed(NamedTuple):
    """A translation on its way into a file."""

    key: Numbers
    heads: Numbers
    variant: bytes
    payload: bytes


class Contents(NamedTuple):
    """What a file holds: `end` is behind the last whole batch, `size` of the whole file."""

    header: Header
    start: int
    entries: list[Entry]
    batches: int
    end: int
    size: int


# ---- one translation ---------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The same value of types that `marshal` takes: named tuples become tuples."""
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {plain(name): plain(part) for name, part in value.items()}
    if isinstance(value, frozenset):
        return frozenset(plain(part) for part in value)
    return value


def _dumped(value: Any, version: int) -> bytes:
    """`marshal.dumps`; most fields of a draft are plain as they are, which is quicker to try than to make."""
    try:
        return marshal.dumps(value, version)
    except ValueError:
        return marshal.dumps(plain(value), version)


def variant_of(draft: Draft) -> bytes:
    """The digest that tells drafts of the same heads apart. It is the same in every process."""
    digest = blake2b(digest_size=16)
    for field in draft:
        if not isinstance(field, CodeType):
            digest.update(_dumped(field, 2))  # version 2 knows no references, which differ between processes
    return digest.digest()


def pack(key: Numbers, heads: Numbers, variant: bytes, draft: Draft) -> Packed | None:
    """A draft as bytes; None if it does not fit into the format."""
    numbers = (*key, *heads)
    if len(numbers) > NUMBERS_MAX or len(key) > 0xFF or not all(0 <= n <= _U64_MAX for n in numbers):
        return None
    payload = marshal.dumps(tuple(_dumped(field, marshal.version) for field in draft))
    return Packed(key, heads, variant, payload) if len(payload) <= PAYLOAD_MAX else None


def unpack(payload: bytes) -> Draft | None:
    """The draft in a payload whose checksum was right; None if it is no draft after all."""
    try:
        fields = marshal.loads(payload)
        if not isinstance(fields, tuple) or len(fields) != len(Draft._fields):
            return None
        made = Draft(*map(marshal.loads, fields))
    except (EOFError, ValueError, TypeError):
        return None
    return made if isinstance(made.code, CodeType) else None


# ---- reading -----------------------------------------------------------------------------------------------


def read_header(fd: int) -> tuple[Header, int] | None:
    """The header and where it ends; None if this is no file of ours or its header is damaged."""
    fixed = os.pread(fd, _HEADER.size, 0)
    if len(fixed) != _HEADER.size:
        return None
    magic, program, machine, length = _HEADER.unpack(fixed)
    if magic != MAGIC or length > TEXT_MAX:
        return None
    rest = os.pread(fd, length + _CHECK_SIZE, _HEADER.size)
    text = rest[:length]
    if rest[length:] != blake2b(fixed + text, digest_size=_CHECK_SIZE).digest():
        return None
    return Header(program, machine, text.decode("utf-8", "replace")), _HEADER.size + len(rest)


def read_contents(fd: int) -> Contents | None:
    """The index of a file, without its payloads; None if it is no file of ours."""
    found = read_header(fd)
    if found is None:
        return None
    header, start = found
    size = os.fstat(fd).st_size
    entries: list[Entry] = []
    at, batches = start, 0
    while True:
        batch = _read_batch(fd, at, size)
        if batch is None:
            return Contents(header, start, entries, batches, at, size)
        entries += batch[0]
        at = batch[1]
        batches += 1


def _read_batch(fd: int, at: int, size: int) -> tuple[list[Entry], int] | None:
    """The entries of the batch at `at` and where it ends; None if no whole one is there."""
    fixed = os.pread(fd, _BATCH.size, at)
    if len(fixed) != _BATCH.size:
        return None
    marker, count, index_size, payloads, check = _BATCH.unpack(fixed)
    first = at + _BATCH.size + index_size  # of the payloads
    if marker != MARKER or count > ENTRIES_MAX or index_size > INDEX_MAX or first + payloads > size:
        return None
    index = os.pread(fd, index_size, at + _BATCH.size)
    if _batch_check(count, payloads, index) != check:
        return None
    entries: list[Entry] = []
    place = 0
    for _ in range(count):
        if place + _ENTRY.size > index_size:
            return None
        offset, length, payload_check, variant, keys, heads = _ENTRY.unpack_from(index, place)
        place += _ENTRY.size
        if place + 8 * (keys + heads) > index_size or offset + length > payloads or length > PAYLOAD_MAX:
            return None
        numbers = struct.unpack_from(f"<{keys + heads}Q", index, place)
        place += 8 * len(numbers)
        entries.append(Entry(numbers[:keys], numbers[keys:], variant, first + offset, length, payload_check))
    return entries, first + payloads


def _batch_check(count: int, payloads: int, index: bytes) -> bytes:
    return blake2b(struct.pack("<IQ", count, payloads) + index, digest_size=32).digest()


def read_payload(fd: int, entry: Entry) -> bytes | None:
    """The payload of an entry; None if its checksum is wrong or the file has become shorter."""
    data = os.pread(fd, entry.size, entry.offset)
    if len(data) != entry.size or blake2b(data, digest_size=32).digest() != entry.check:
        return None
    return data


# ---- writing -----------------------------------------------------------------------------------------------


def batch_of(packed: Iterable[Packed]) -> bytes:
    """The bytes of one batch."""
    index, payloads, offset, count = bytearray(), [], 0, 0
    for each in packed:
        numbers = (*each.key, *each.heads)
        check = blake2b(each.payload, digest_size=32).digest()
        index += _ENTRY.pack(
            offset, len(each.payload), check, each.variant, len(each.key), len(each.heads)
        ) + struct.pack(f"<{len(numbers)}Q", *numbers)
        payloads.append(each.payload)
        offset += len(each.payload)
        count += 1
    check = _batch_check(count, offset, bytes(index))
    return b"".join((_BATCH.pack(MARKER, count, len(index), offset, check), index, *payloads))


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`; OSError if the host cannot, and then the file ends at `offset` again."""
    view = memoryview(data)
    try:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)
    except OSError:
        os.ftruncate(fd, offset)
        raise
