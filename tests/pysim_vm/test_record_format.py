"""The record on disk: every damaged, hostile or half-written file is one sentence or a shorter record."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysim_vm.record_format import (
    CHUNK_HEAD,
    CHUNK_LIMIT,
    EXIT_PACK,
    EXIT_TYPE,
    PREAMBLE,
    STORE_PACK,
    STORE_TYPE,
    Kind,
    RecordError,
    RecordFile,
    chunk_bytes,
    preamble,
    printable,
)
from pysim_vm.trace import Trace
from pysim_vm.trace.export import export
from pysim_vm.trace.stat import GROUPS, stat
from tests.pysim_vm.records import chunk_offsets, mixed, recorded, with_crc

HEADER = {"kinds": ["io_read"], "devices": ["a"], "ns_per_instruction": 64, "start": {"retired": 0}}
M64 = (1 << 64) - 1
ROW = (7, 0, 0x1000, 0, 0x3F8, 1, 0x48, 0, 0)


def record(rows: int = 3) -> bytes:
    return preamble(HEADER) + chunk_bytes(Kind.EXITS, EXIT_PACK.pack(*ROW) * rows, retired=(7, 7))


def test_a_row_of_the_exit_log_has_the_layout_of_the_row_type() -> None:
    assert EXIT_PACK.size == EXIT_TYPE.itemsize and STORE_PACK.size == STORE_TYPE.itemsize
    file = RecordFile(record(1))
    assert file.rows(file.chunks[0]).tolist() == [ROW]


def test_a_file_that_is_no_record_says_so() -> None:
    with pytest.raises(RecordError, match="is no record of pysim-vm"):
        RecordFile(b"\x7fELF" + bytes(100))
    with pytest.raises(RecordError, match="is no record of pysim-vm"):
        RecordFile(b"")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        RecordFile(tmp_path / "none.rec")


def test_another_version_is_refused() -> None:
    data = bytearray(record())
    struct.pack_into("<I", data, 8, 3)
    with pytest.raises(RecordError, match="version 3, this program reads versions up to 2"):
        RecordFile(bytes(data))


def test_a_changed_header_is_refused() -> None:
    data = bytearray(record())
    data[PREAMBLE.size + 3] ^= 1
    with pytest.raises(RecordError, match="the header is damaged"):
        RecordFile(bytes(data))


def test_a_header_that_claims_gigabytes_takes_no_memory() -> None:
    head = PREAMBLE.pack(b"PYSIMREC", 1, 0xFFFF_FFFF, 0, 0)
    with pytest.raises(RecordError, match="the header is damaged"):
        RecordFile(with_crc(head) + b"{}")


@pytest.mark.parametrize("text", [b"[]", b"{", b"1" * 20, b"[" * 100_000])
def test_a_header_that_is_no_object_is_refused(text: bytes) -> None:
    head = with_crc(PREAMBLE.pack(b"PYSIMREC", 1, len(text), zlib.crc32(text), 0))
    with pytest.raises(RecordError, match=r"no JSON object|damaged"):
        RecordFile(head + text)


@pytest.mark.parametrize(
    "change", [{"kinds": 5}, {"kinds": [1]}, {"devices": None}, {"ns_per_instruction": 0},
               {"ns_per_instruction": "64"}, {"start": []}, {"start": {"retired": -1}}],
)  # fmt: skip
def test_a_header_with_wrong_fields_is_refused_by_the_trace(change: dict[str, object]) -> None:
    with pytest.raises(RecordError, match="damaged"):
        Trace.open(preamble({**HEADER, **change}))


def test_the_chunk_that_a_killed_recording_tore_is_left_out_with_a_note() -> None:
    whole = record(3) + chunk_bytes(Kind.EXITS, EXIT_PACK.pack(*ROW) * 2, first=3, retired=(7, 7))
    start = chunk_offsets(whole)[1]
    for end in range(start + 1, len(whole)):
        trace = Trace.open(whole[:end])
        assert len(trace) == 3
        assert "ends in the middle of a chunk" in trace.notes[0]


def test_a_record_without_an_end_says_that_it_was_not_closed() -> None:
    trace = Trace.open(record())
    assert len(trace) == 3
    assert "was not closed" in trace.notes[0]


def test_a_closed_record_has_no_notes() -> None:
    assert recorded().notes == []


def test_a_flipped_bit_in_the_rows_is_found_when_they_are_read() -> None:
    data = bytearray(record(3) + record(3)[len(preamble(HEADER)) :])
    data[len(preamble(HEADER)) + CHUNK_HEAD.size + 5] ^= 0x10
    file = RecordFile(bytes(data))
    with pytest.raises(RecordError, match="is damaged"):
        file.rows(file.chunks[0])


def test_chunks_out_of_order_are_refused() -> None:
    with pytest.raises(RecordError, match="starts with row 9, not 0"):
        Trace.open(preamble(HEADER) + chunk_bytes(Kind.EXITS, EXIT_PACK.pack(*ROW), first=9))


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [(4, "<H", 99), (6, "<H", 4), (8, "<I", 0xFFFF_FFFF), (12, "<I", 1), (24, "<Q", 1 << 62),
     (32, "<Q", CHUNK_LIMIT * 2)],
)  # fmt: skip
def test_a_head_with_impossible_sizes_ends_the_record(at: int, form: str, value: int) -> None:
    data = bytearray(record())
    start = chunk_offsets(bytes(data))[0]
    struct.pack_into(form, data, start + at, value)
    data[start : start + CHUNK_HEAD.size] = with_crc(bytes(data[start : start + CHUNK_HEAD.size]))
    assert RecordFile(bytes(data)).chunks == []


def test_a_zip_bomb_is_refused_before_it_grows() -> None:
    bomb = zlib.compress(bytes(1 << 24))
    whole = chunk_bytes(Kind.EXITS, bytes(46 * 1000), deflate=True)
    head = bytearray(whole[: CHUNK_HEAD.size])
    struct.pack_into("<Q", head, 24, len(bomb))
    struct.pack_into("<I", head, CHUNK_HEAD.size - 8, zlib.crc32(bomb))
    file = RecordFile(preamble(HEADER) + with_crc(bytes(head)) + bomb)
    with pytest.raises(RecordError, match="is damaged"):
        file.rows(file.chunks[0])


@cache
def small() -> bytes:
    """A record of everything."""
    vm = mixed(2)
    recorder = vm.record(instructions=True)
    vm.run(1_000)
    recorder.close()
    source = recorder.source()
    assert isinstance(source, bytes)
    return source


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_change_of_a_record_gives_anything_but_rows_or_a_sentence(data: st.DataObject) -> None:
    whole = bytearray(small())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        trace = Trace.open(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
        for rows in (trace, trace.stores, trace.instructions):
            for row in rows:
                assert row.line()
        trace.who_wrote(0x40000)
    except RecordError as error:
        assert str(error).count("\n") == 0


@given(st.binary(min_size=46 * 4, max_size=46 * 4))
@settings(max_examples=100, deadline=None)
def test_rows_of_any_bits_can_be_shown_counted_and_exported(rows: bytes) -> None:
    trace = Trace.open(preamble(HEADER) + chunk_bytes(Kind.EXITS, rows, base_ns=M64, retired=(0, M64)))
    assert len([row.line() for row in trace]) == 4
    for by in GROUPS:
        assert sum(row.count for row in stat(trace, by).rows) <= 4
    for form in ("perfetto", "csv", "jsonl", "ftrace"):
        target: Any = io.BytesIO() if form == "perfetto" else io.StringIO()
        assert export(trace, target, form) == 4


def test_names_out_of_a_record_are_safe_for_a_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"
    assert len(printable("x" * 10_000)) == 200
    bad = preamble({**HEADER, "devices": ["\x1b]0;title\x07"]})
    assert Trace.open(bad).record.devices == ["?]0;title?"]


def test_the_header_is_the_same_text_for_any_order_of_its_keys() -> None:
    assert preamble(dict(reversed(HEADER.items()))) == preamble(HEADER)
