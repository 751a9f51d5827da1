"""display/exits.py: exit reasons, rows, traces and statistics as pictures."""

from __future__ import annotations

import pytest

from isa.exits import (
    Budget,
    CpuUp,
    ExitReason,
    FailEntry,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    NestedPageFault,
    SysRegWrite,
    TripleFault,
    Unimplemented,
)
from pysim_vm import AxVM
from pysim_vm.boot_plan import BootPlan
from pysim_vm.display.exits import ROWS_SHOWN, reason_picture, rows_picture
from pysim_vm.report import exit_words
from pysim_vm.symbols import Symbol, SymbolTable
from pysim_vm.trace.stat import stat
from tests.pysim_vm.html_text import seen
from tests.pysim_vm.records import PORT, mixed, recorded

# ---- reasons -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        IoWrite(0x3F8, 1, 0x48), IoRead(0x3FD, 1), MmioRead(0xFEE00020, 4, 0, 8), SysRegWrite(0x1B, 5),
        Halt(),
        Hypercall(2, (1, 2, 3, 4, 5, 6)), NestedPageFault(0x1000, 4), Budget(10), CpuUp(1, 0x8000),
        FailEntry(33, "CR0.PG = 1 with CR0.PE = 0"),
    ],
)  # fmt: skip
def test_every_reason_shows_its_name_and_what_the_guest_did(reason: ExitReason) -> None:
    page = seen(reason)
    assert page.text.startswith(type(reason).__name__)
    assert exit_words(reason) in page.text


def test_the_fields_of_a_reason_are_shown_as_people_read_them() -> None:
    assert str(reason_picture(IoWrite(0x3F8, 1, 0x48))).splitlines() == [
        "IoWrite",
        "OUT 0x3f8 <- 'H' (0x48): I/O exit",
        "  port   0x3f8",
        "  width  1",
        "  data   'H' (0x48)",
    ]
    assert "reg " not in str(reason_picture(MmioRead(0x1000, 4)))  # None: no register


def test_a_triple_fault_shows_its_chain_from_cause_to_end() -> None:
    vm = AxVM.from_asm("mov rax, [0x200000000]")
    reason = vm.run(10)
    assert isinstance(reason, TripleFault)
    lines = str(reason_picture(reason)).splitlines()
    assert lines[:2] == ["TripleFault", "triple fault: the CPU shut down"]
    assert lines[2].startswith("  1.  #PF(0x0)")
    assert len(lines) == 2 + len(reason.chain)


def test_an_unimplemented_instruction_names_its_bytes() -> None:
    reason = Unimplemented(bytes.fromhex("0f a6 c0"), "<b>xstore", 0x1000, "64-bit")
    page = seen(reason)
    assert "0f a6 c0" in page.text
    assert "b" not in page.tags


def test_showing_a_reason_keeps_it_what_it_was() -> None:
    assert IoWrite(1, 2, 3) == IoWrite(1, 2, 3)
    assert repr(IoWrite(1, 2, 3)) == "IoWrite(port=1, width=2, data=3)"
    assert not hasattr(IoWrite(1, 2, 3), "__dict__")


# ---- traces ------------------------------------------------------------------------------------------------


def test_a_short_trace_is_shown_whole() -> None:
    trace = recorded(2)
    lines = str(trace).splitlines()
    assert lines[0] == "13 exits"
    assert len(lines) == 15
    assert "IN 0x300 -> 0x1: I/O exit, answered by counter" in lines[2]
    assert all(row.words() in line for row, line in zip(trace, lines[2:], strict=True))
    assert repr(trace) == f"<Trace: 13 exits of {trace.record.name}>"
    assert repr(trace.where(port=PORT)).startswith("<Trace: chosen exits of ")


def test_a_long_trace_shows_its_ends_and_counts_the_rest() -> None:
    trace = recorded(100)
    lines = str(trace).splitlines()
    assert lines[0] == "601 exits"
    assert len(lines) == ROWS_SHOWN + 3
    assert lines[2].split()[0] == "1"
    assert lines[2 + ROWS_SHOWN // 2].strip() == f"… {601 - ROWS_SHOWN} more …"
    assert lines[-1].split()[0] == "601"
    assert len(trace._repr_html_()) < 15_000


def test_a_selection_is_shown_like_a_trace() -> None:
    chosen = recorded(3).where(port=PORT, direction="read")
    lines = str(chosen).splitlines()
    assert lines[0] == "3 exits"
    assert [line.split()[0] for line in lines[2:]] == ["1", "7", "13"]
    assert str(recorded(1).where(port=0x999)) == "0 exits"
    assert seen(recorded(1).where(port=0x999)).text == "0 exits"


def test_one_exit_shows_every_fact() -> None:
    page = seen(recorded(1)[1])
    assert page.text.startswith("Exit #2: OUT 0x300 <- 0x1: I/O exit, answered by counter")
    for fact in ("io_write", "0x300", "1 byte", "counter"):
        assert fact in page.text
    halt = seen(recorded(1)[6])
    assert "answered by" not in halt.text


def test_recorded_instructions_show_what_they_changed_and_stored() -> None:
    vm = AxVM.from_asm("mov eax, 7\npush rax\nmov rax, [0x200000000]")
    with vm.record(instructions=True):
        vm.run(10)
    shown = str(vm.trace.instructions)
    assert "RAX 0 -> 7" in shown
    assert "<- 0x7 (8 bytes)" in shown
    assert "3 instructions" in shown.splitlines()[0]
    stores = str(rows_picture(vm.trace.stores))
    assert "writes to RAM" in stores.splitlines()[0]
    assert repr(vm.trace.instructions).startswith("<Rows: 3 instructions of ")


def test_exceptions_show_the_check_that_failed() -> None:
    vm = AxVM.from_asm("mov rax, [0x200000000]")
    with vm.record():
        vm.run(10)
    lines = str(vm.trace.events).splitlines()
    assert lines[0] == f"{len(vm.trace.events)} events"
    assert all(row.words() in line for row, line in zip(vm.trace.events, lines[2:], strict=True))
    first = seen(vm.trace.events[0])
    assert first.text.startswith("#PF(0x0) at 0x200000000: supervisor read, PDPTE at")
    assert "error code0x0" in first.text
    assert "#GP(0x43): vector 0x08 outside the IDT limit" in seen(vm.last_exception).text


def test_a_store_and_an_instruction_have_pages_of_their_own() -> None:
    vm = AxVM.from_asm("mov eax, 7\npush rax\nhlt")
    with vm.record(instructions=True):
        vm.run(10)
    store = next(row for row in vm.trace.stores if row.by == "cpu")
    assert seen(store).text.startswith("store [")
    assert "bytesb8 07 00 00 00" in seen(vm.trace.instructions[0]).text


def test_a_guests_symbols_are_escaped() -> None:
    vm = mixed(1)
    assert isinstance(vm.plan, BootPlan)
    object.__setattr__(vm.plan, "symbols", SymbolTable([Symbol("<h1>evil\x1b]0;", 0x1000)]))
    with vm.record():
        vm.run(100)
    page = seen(vm.trace)
    assert "h1" not in page.tags
    assert "<h1>evil" in page.text
    assert "\x1b" not in str(vm.trace)
    assert "h1" not in seen(stat(vm.trace, by="symbol")).tags


# ---- statistics --------------------------------------------------------------------------------------------


def test_statistics_are_a_table_with_bars() -> None:
    found = stat(recorded(50))
    lines = str(found).splitlines()
    assert lines[0].startswith("301 exits in ")
    assert lines[2].split() == ["exit", "answered", "by", "count", "share", "per", "1k", "min", "mean", "max"]
    assert lines[3].split()[:4] == ["io_read", "counter", "50", "16.6%"]
    html = found._repr_html_()
    assert html.count('class="bar"') == 7
    assert "width:1.163em" in html  # 50 of 301 of 7 em


def test_statistics_of_nothing_are_a_sentence() -> None:
    assert str(stat(recorded(1).where(port=0x999))).startswith("0 exits in ")


def test_many_groups_are_cut() -> None:
    vm = AxVM.from_asm(
        "again: mov dx, cx\nin al, dx\ninc ecx\ncmp ecx, 100\njb again\nhlt", missing_device="ones"
    )
    with vm.record():
        vm.run(10_000)
    assert str(stat(vm.trace, by="port")).splitlines()[-1] == "… 70 more lines"
