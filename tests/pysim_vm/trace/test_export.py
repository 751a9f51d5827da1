"""Records in other formats: every exit is there, and the programs they are for can read them."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysim_vm import AxError, AxVM
from pysim_vm.demo import BUDGET, build_demo
from pysim_vm.trace import Trace
from pysim_vm.trace.export import FORMATS, export
from pysim_vm.trace.ftrace import events


@pytest.fixture(scope="module")
def demo() -> Trace:
    vm = build_demo()
    with vm.record():
        vm.run(BUDGET)
    return vm.trace


def text(trace: Trace, form: str) -> str:
    out = io.StringIO()
    assert export(trace, out, form) == len(trace)
    return out.getvalue()


def test_csv_has_a_line_for_every_exit(demo: Trace) -> None:
    rows = list(csv.DictReader(io.StringIO(text(demo, "csv"))))
    assert len(rows) == len(demo)
    assert rows[1] == {
        "number": "1", "retired": "19", "ns": "1216", "vcpu": "0", "rip": "0x7c3c", "symbol": "",
        "reason": "io_write", "direction": "write", "address": "0x3f8", "width": "1", "value": "0x72",
        "device": "uart16550", "raised": "",
    }  # fmt: skip


def test_json_lines_are_objects_with_words(demo: Trace) -> None:
    rows = [json.loads(line) for line in text(demo[:3], "jsonl").splitlines()]
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert rows[1]["words"] == "OUT 0x3f8 <- 'r' (0x72): I/O exit, answered by uart16550"


def test_sqlite_is_asked_in_sql(demo: Trace, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("an old file")
    assert export(demo, path, "sqlite") == len(demo)
    base = sqlite3.connect(path)
    counts = dict(base.execute("select device, count(*) from exits group by device"))
    assert counts["uart16550"] == len(demo.where(device="uart16550"))
    found = base.execute("select value from exits where reason = 'mmio_read' and address = 0xfeb00010")
    assert found.fetchall() == [(42,)]
    shown = base.execute("select rip, address from exits_in_hexadecimal where number = 1").fetchall()
    assert shown == [("0x7c3c", "0x3f8")]
    base.close()


def test_sqlite_keeps_addresses_beyond_63_bits(tmp_path: Path) -> None:
    vm = AxVM.from_asm("mov rax, -2\nmov [0x800000], rax\nhlt", missing_device="ones")
    with vm.record():
        vm.run(5)
    export(vm.trace, tmp_path / "a.db", "sqlite")
    base = sqlite3.connect(tmp_path / "a.db")
    query = "select number from exits where value = 0xfffffffffffffffe"
    assert base.execute(query).fetchall() == [(0,)]
    assert base.execute("select value from exits_in_hexadecimal").fetchone() == ("0xfffffffffffffffe",)
    base.close()


# What scripts for KVM's events look for (the patterns are those of the kernel's own format strings)
KVM_EXIT = re.compile(r"kvm_exit: +vcpu (\d+) reason (\w+) rip (0x[0-9a-f]+) info1 (0x[0-9a-f]{16}) info2 0x")
KVM_PIO = re.compile(r"kvm_pio: +pio_(read|write) at (0x[0-9a-f]+) size (\d) count 1 val (0x[0-9a-f]+) ")
KVM_MMIO = re.compile(r"kvm_mmio: +mmio (read|write) len (\d) gpa (0x[0-9a-f]+) val (0x[0-9a-f]+)")
KVM_MSR = re.compile(r"kvm_msr: +msr_(read|write) ([0-9a-f]+) = (0x[0-9a-f]+)( \(#GP\))?$")
LINE = re.compile(r" +\S+-\d+ +\[\d{3}\] +\d+\.\d{6}: kvm_\w+: ")


def test_ftrace_lines_are_those_of_the_kernels_kvm_events(demo: Trace) -> None:
    lines = [line for line in text(demo, "ftrace").splitlines() if not line.startswith("#")]
    assert all(LINE.match(line) for line in lines)
    assert sum(bool(KVM_EXIT.search(line)) for line in lines) == len(demo)
    assert sum(bool(KVM_PIO.search(line)) for line in lines) == len(demo.where(reason="io"))
    assert sum(bool(KVM_MMIO.search(line)) for line in lines) == len(demo.where(reason="mmio"))
    assert sum(bool(KVM_MSR.search(line)) for line in lines) == len(demo.where(reason="msr"))


def test_an_ftrace_exit_has_the_exit_qualification_of_the_manual(demo: Trace) -> None:
    first, second = events(demo[0])
    found = KVM_EXIT.search(first)
    assert found is not None
    assert found.groups() == ("0", "IO_INSTRUCTION", "0x7c32", f"{0x3FD << 16 | 8:#018x}")
    port = KVM_PIO.search(second)
    assert port is not None and port.groups() == ("read", "0x3fd", "1", "0x60")
    reasons = {KVM_EXIT.search(events(row)[0])[2] for row in demo}  # type: ignore[index]
    assert reasons >= {"IO_INSTRUCTION", "EPT_MISCONFIG", "MSR_READ", "HLT"}


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: varints and byte strings."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2
            length = varint()
            yield key >> 3, data[at : at + length]
            at += length


def perfetto(trace: Trace) -> bytes:
    out = io.BytesIO()
    assert export(trace, out, "perfetto") == len(trace)
    return out.getvalue()


def test_perfetto_events_lie_on_tracks_that_were_described(demo: Trace) -> None:
    tracks: dict[int, str] = {}
    used: set[int] = set()
    last = 0
    for number, packet in fields(perfetto(demo)):
        assert number == 1 and isinstance(packet, bytes)
        parts = dict(fields(packet))
        if 60 in parts:
            track = dict(fields(parts[60]))  # type: ignore[arg-type]
            tracks[track[1]] = bytes(track.get(2, b"")).decode()  # type: ignore[index, arg-type]
        if 11 in parts:
            event = dict(fields(parts[11]))  # type: ignore[arg-type]
            used.add(event[11])  # type: ignore[arg-type]
            last = max(last, parts[8])  # type: ignore[type-var]
    assert used <= set(tracks)
    names = {tracks[track] for track in used}
    assert names == {"vCPU 0", "uart16550", "pic8259", "pit8254", "calculator", "acpi_pm", "exits per ms",
                     "instructions retired"}  # fmt: skip
    assert last == demo[-1].ns


def test_a_halt_is_a_slice_as_long_as_the_sleep(demo: Trace) -> None:
    halt = demo.where(reason="halt")[0]
    events_of = [dict(fields(packet)) for _, packet in fields(perfetto(demo[halt.number : halt.number + 1]))  # type: ignore[arg-type]
                 if isinstance(packet, bytes)]  # fmt: skip
    times = [packet[8] for packet in events_of if 11 in packet and dict(fields(packet[11]))[9] in (1, 2)]  # type: ignore[arg-type]
    assert times == [halt.ns, halt.ns + halt.value]


def test_perfettos_own_descriptors_read_every_field(demo: Trace) -> None:
    pytest.importorskip("perfetto", reason="pip install perfetto")
    from google.protobuf.unknown_fields import UnknownFieldSet
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

    read = protos.Trace()
    read.ParseFromString(perfetto(demo))
    assert read.ByteSize() == len(perfetto(demo))

    def unknown(message: object) -> int:
        count = len(UnknownFieldSet(message))
        for field, value in message.ListFields():  # type: ignore[attr-defined]
            if field.message_type is not None:
                many = value if field.is_repeated else [value]
                count += sum(unknown(each) for each in many)
        return count

    assert unknown(read) == 0
    instants = [p.track_event for p in read.packet if p.track_event.type == protos.TrackEvent.TYPE_INSTANT]
    vcpu = next(p.track_descriptor.uuid for p in read.packet if p.track_descriptor.name == "vCPU 0")
    on_vcpu = [event for event in instants if event.track_uuid == vcpu]
    assert [event.name for event in on_vcpu] == [row.reason for row in demo if row.reason != "halt"]
    assert on_vcpu[1].debug_annotations[0].string_value == demo[1].words()


def test_parquet_has_the_columns_or_says_what_to_install(
    demo: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(AxError, match=r"pip install 'pysim-vm\[parquet\]'"):
            export(demo, tmp_path / "a.parquet", "parquet")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    assert export(demo, tmp_path / "a.parquet", "parquet") == len(demo)
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["device"][:2] == ["uart16550"] * 2
    assert table["value"] == [row.value for row in demo]
    assert export(demo[:0], tmp_path / "b.parquet", "parquet") == 0


def test_an_unknown_format_says_which_there_are(demo: Trace) -> None:
    with pytest.raises(AxError, match="no format 'xml'; there are perfetto, csv"):
        export(demo, "x", "xml")


def test_a_database_needs_a_path(demo: Trace) -> None:
    with pytest.raises(AxError, match="sqlite needs the path of a file"):
        export(demo, io.StringIO(), "sqlite")


@pytest.mark.parametrize("form", [name for name, found in FORMATS.items() if not found.by_path])
def test_a_path_and_an_open_file_get_the_same_bytes(demo: Trace, form: str, tmp_path: Path) -> None:
    export(demo[:50], tmp_path / "a", form)
    if FORMATS[form].binary:
        assert (tmp_path / "a").read_bytes() == perfetto(demo[:50])
    else:
        assert (tmp_path / "a").read_text(encoding="utf-8") == text(demo[:50], form)
