"""Questions to a record: rows, conditions, slices, who wrote a byte, data frames."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pysim_vm import AxError, AxVM
from pysim_vm.demo import BUDGET, build_demo
from pysim_vm.record_format import CHUNK_ROWS, Kind, RecordError
from pysim_vm.symbols import Symbol, SymbolTable
from pysim_vm.trace import Trace
from pysim_vm.trace.rows import ExitRow, StoreRow
from pysim_vm.trace.words import exit_sentence, time_words
from tests.pysim_vm.records import recorded


@pytest.fixture(scope="module")
def demo() -> Trace:
    vm = build_demo()
    with vm.record(stores=True):
        vm.run(BUDGET)
    return vm.trace


def test_a_row_says_in_words_what_happened(demo: Trace) -> None:
    assert demo[1].words() == "OUT 0x3f8 <- 'r' (0x72): I/O exit, answered by uart16550"
    assert demo[1].line() == f"#2 @19 0x7c3c: {demo[1].words()}"
    assert (
        demo.where(reason="halt")[0]
        .words()
        .startswith("HLT: halt exit, the CPU sleeps 9.96 ms, raises IRQ 0")
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("io_read", 0x1F0, 2, 0x1234, "ide", ()), "IN 0x1f0 (2 bytes) -> 0x1234: I/O exit, answered by ide"),
        (("mmio_read", 0xFEE0_0020, 4, 0, "local_apic", ()),
         "load 0xfee00020 (4 bytes) -> 0x0: MMIO exit, answered by local_apic"),
        (("mmio_write", 0x10, 1, 0x48, "", (4, 12)),
         "store 0x10 <- 'H' (0x48): MMIO exit, answered by nobody, an open bus, raises IRQ 4 and 12"),
        (("sys_reg_write", 0x1B, 8, 0x900, "apic", ()), "WRMSR 0x1b <- 0x900: MSR exit, answered by apic"),
        (("nested_page_fault", 0x5000, 0, 4, "", ()), "fetch of guest-physical 0x5000: nested page fault"),
        (("hypercall", 7, 0, 0, "", ()), "VMCALL 0x7: hypercall"),
        (("triple_fault", 0, 0, 0, "", ()), "triple fault: the CPU shut down"),
        (("system_down", 0, 0, 0, "", ()), "power off: exit"),
        (("kind_77", 0, 0, 0, "", ()), "kind 77: exit"),
    ],
)  # fmt: skip
def test_every_reason_has_its_sentence(
    row: tuple[str, int, int, int, str, tuple[int, ...]], words: str
) -> None:
    assert exit_sentence(*row) == words


def test_times_have_three_digits() -> None:
    assert [time_words(ns) for ns in (0, 64, 1280, 10e6, 2.35e9, 123e9)] == [
        "0 ns", "64 ns", "1.28 us", "10 ms", "2.35 s", "123 s",
    ]  # fmt: skip


def test_conditions_choose_rows(demo: Trace) -> None:
    assert [row.value for row in demo.where(reason="mmio")] == [6, 7, 42]
    assert len(demo.where(reason=["io_read", "io_write"])) == len(demo.where(reason="io"))
    assert {row.device for row in demo.where(port=range(0x3F8, 0x400))} == {"uart16550"}
    assert [row.value for row in demo.where(gpa=0xFEB0_0013)] == [42]
    assert len(demo.where(msr=0x4B56_0000)) == 1
    assert all(row.direction == "write" for row in demo.where(direction="write"))
    assert {row.address for row in demo.where(device="pic8259")} == {0x20, 0x21}
    assert len(demo.where(device="")) == 3
    assert [row.number for row in demo.where(number=range(5, 8))] == [5, 6, 7]
    assert [row.number for row in demo.where(number=[9, 3])] == [3, 9]
    assert demo.where(reason="io_write", port=0x3F8, value=0x72)[0].number == 1
    assert not demo.where(retired=range(0, 14))
    assert demo.where(retired=14)


def test_a_range_with_a_step_counts_from_its_start(demo: Trace) -> None:
    assert [row.number for row in demo.where(number=range(-1, 10, 4))] == [3, 7]
    assert [row.number for row in demo.where(number=range(2, 10, 4))] == [2, 6]


def test_a_touched_byte_in_the_middle_of_an_access_is_found(demo: Trace) -> None:
    assert len(demo.where(gpa=range(0xFEB0_0004, 0xFEB0_0005))) == 1
    assert len(demo.where(gpa=0xFEB0_0018)) == 0


def test_virtual_time_and_instructions_cut_a_trace(demo: Trace) -> None:
    halt = demo.where(reason="halt")[0]
    before, after = demo.where(ns=range(0, halt.ns)), demo.where(ns=range(halt.ns + 1, 1 << 63))
    assert len(before) + 1 + len(after) == len(demo)
    assert max(row.ns for row in before) < halt.ns and after[0].ns >= halt.ns + halt.value


def test_slices_are_traces(demo: Trace) -> None:
    assert [row.number for row in demo[10:13]] == [10, 11, 12]
    assert [row.number for row in demo[-2:]] == [len(demo) - 2, len(demo) - 1]
    assert [row.number for row in demo[5:100:40]] == [5, 45, 85]
    outs = demo.where(reason="io_write")
    assert [row.number for row in outs[1:3]] == [3, 5]
    assert outs[1:3].where(number=5)[0].number == 5
    assert demo[-1].reason == "system_down"
    with pytest.raises(IndexError, match=f"there are {len(demo)}"):
        _ = demo[len(demo)]
    with pytest.raises(ValueError, match="rows go forward in time"):
        _ = demo[::-1]


def test_slices_across_chunks_have_the_right_rows() -> None:
    trace = recorded(CHUNK_ROWS[Kind.EXITS] // 3)
    border = CHUNK_ROWS[Kind.EXITS]
    assert [row.number for row in trace[border - 2 : border + 2]] == list(range(border - 2, border + 2))
    assert [row.number for row in trace[100::900]] == list(range(100, len(trace), 900))
    place = border // 6
    picked = trace.where(reason="io_read")[place - 2 : place + 3]
    assert [row.number for row in picked] == [6 * n for n in range(place - 2, place + 3)]


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        ({"reason": "mmio_raed"}, "no reason 'mmio_raed'; did you mean \"mmio_read\""),
        ({"device": "uart"}, "no device 'uart' in this machine"),
        ({"gpu": 1}, "no condition 'gpu'; did you mean \"gpa\""),
        ({"direction": "up"}, "no direction 'up'"),
        ({"rip": "main"}, "rip='main'; give a number"),
        ({"rip": 1.5}, "rip=1.5; give a number"),
        ({"symbol": "main"}, "no symbol 'main' in this record"),
    ],
)
def test_a_wrong_condition_says_what_there_is(
    demo: Trace, conditions: dict[str, object], sentence: str
) -> None:
    with pytest.raises(AxError) as caught:
        demo.where(**conditions)
    assert sentence in str(caught.value)


def test_who_wrote_finds_the_last_store_of_a_byte_first() -> None:
    trace = recorded(50, stores=True)
    writes = trace.who_wrote(0x40003, limit=3)
    assert [write.value for write in writes] == [49, 48, 47]
    assert all(isinstance(write, StoreRow) and write.by == "cpu" for write in writes)
    earlier = trace.who_wrote(0x40003, before=writes[-1].retired, limit=1)
    assert [write.value for write in earlier] == [46]
    assert trace.who_wrote(0x40008) == []


def test_who_wrote_looks_into_chunks_that_the_index_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = AxVM.from_asm("""
        mov byte [0x50000], 1
        mov ecx, 80000
again:  mov [0x40000 + rcx * 8], rcx
        dec ecx
        jnz again
        hlt
    """, memory="4M")  # fmt: skip
    with vm.record(stores=True):
        vm.run(1_000_000)
    trace = vm.trace
    assert len(trace.record.chunks[Kind.STORES]) == 3
    read: list[tuple[Kind, int]] = []
    rows = type(trace.record.file).rows
    monkeypatch.setattr(
        type(trace.record.file),
        "rows",
        lambda self, chunk: (read.append((chunk.kind, chunk.first)), rows(self, chunk))[1],
    )
    writes = trace.who_wrote(0x40000 + 8 * 79_000)
    assert [write.value for write in writes] == [79_000]
    assert [first for kind, first in read if kind is Kind.STORES] == [0]


def test_who_wrote_needs_no_stores_for_devices() -> None:
    trace = recorded(2)
    assert [write.value for write in trace.who_wrote(port=0x300)] == [4, 1]
    assert [write.value for write in trace.who_wrote(msr=0x1234)] == [6, 3]
    assert [write.value for write in trace.who_wrote(0x80_000B)] == [5, 2]
    assert all(isinstance(write, ExitRow) for write in trace.who_wrote(port=0x300))


def test_who_wrote_ram_without_stores_says_how_to_record_them() -> None:
    with pytest.raises(RecordError, match="holds no stores; record with --record-stores"):
        recorded().who_wrote(0x40000)
    with pytest.raises(RecordError, match="give one of address, port= and msr="):
        recorded().who_wrote()


def test_symbols_come_with_the_record() -> None:
    from dataclasses import replace

    vm = AxVM.from_asm("start: mov dx, 0xf4\nnop\nout dx, al\nhlt", platform="pc")
    assert vm.plan is not None
    vm.plan = replace(vm.plan, symbols=SymbolTable([Symbol("start", 0x1000), Symbol("bad\x1bname", 0x9000)]))
    with vm.record():
        vm.run(10)
    row = vm.trace[0]
    assert row.symbol == "start+0x5"
    assert row.where == "0x1005 <start+0x5>"
    assert len(vm.trace.where(symbol="start")) == len(vm.trace)
    assert vm.trace.record.symbols.address_of("bad?name") == 0x9000


def test_columns_have_names_in_place_of_numbers(demo: Trace) -> None:
    columns = demo[:3].columns()
    assert list(columns["reason"]) == ["io_read", "io_write", "io_read"]
    assert list(columns["device"]) == ["uart16550"] * 3
    assert columns["retired"].tolist() == [14, 19, 26]
    assert list(demo.where(reason="halt").columns()["device"]) == ["", ""]
    assert len(demo[:0].columns()["ns"]) == 0
    assert set(demo.stores[:2].columns()) >= {"address", "value", "by"}


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_data_frame_has_the_rows_or_says_what_to_install(
    demo: Trace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, object]] = []
    stand_in = type(sys)(name)
    stand_in.DataFrame = lambda columns: made.append(columns) or "frame"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, stand_in)
    assert getattr(demo, f"to_{name}")() == "frame"
    assert len(made[0]["rip"]) == len(demo)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecordError, match=f"pip install {name}"):
        getattr(demo, f"to_{name}")()


def test_a_trace_is_a_context_and_closes_its_file(tmp_path: Path) -> None:
    recorded(3, tmp_path / "a.rec").close()
    with Trace.open(tmp_path / "a.rec") as trace:
        row = trace[0]
    assert row.reason == "io_read"
    (tmp_path / "a.rec").unlink()
