"""display/memory.py: hex dumps and listings, also of memory that is not there."""

from __future__ import annotations

import pytest

from pysim_vm import AxError, AxVM
from pysim_vm.boot_plan import BootPlan
from pysim_vm.display.memory import DUMP_MAX, LINES_SHOWN
from pysim_vm.symbols import Symbol, SymbolTable
from tests.pysim_vm.html_text import seen


def test_a_dump_has_sixteen_bytes_a_row_with_their_characters() -> None:
    vm = AxVM.from_asm("nop")
    vm.write_to_guest(0x5000, b"Hello, <b>world</b>")
    view = vm.show.memory(0x5000, 19)
    assert str(view).splitlines() == [
        "19 bytes of linear memory, 0x5000 to 0x5012",
        "  00005000  48 65 6c 6c 6f 2c 20 3c  62 3e 77 6f 72 6c 64 3c  Hello, <b>world<",
        "  00005010  2f 62 3e                                          /b>",
    ]
    assert bytes(byte for byte in view.data if byte is not None) == b"Hello, <b>world</b>"
    assert "b" not in seen(view).tags


def test_a_dump_may_begin_in_the_middle_of_a_row() -> None:
    vm = AxVM.from_asm("nop")
    vm.write_to_guest(0x5000, bytes(range(0x41, 0x51)))
    row = str(vm.show.memory(0x5006, 4)).splitlines()[1]
    assert row.split() == ["00005000", "47", "48", "49", "4a", "GHIJ"]


def test_rows_that_are_alike_are_one() -> None:
    vm = AxVM.from_asm("nop")
    lines = str(vm.show.memory(0x5000, 0x200)).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["*", "30", "rows", "the", "same"]


def test_memory_that_is_not_mapped_is_dots_and_a_reason() -> None:
    vm = AxVM.from_asm("nop")
    view = vm.show.memory(8 << 30, 16)
    assert view.data == (None,) * 16
    assert view.notes == ("0x200000000 is not mapped: the PDPTE is not present",)


def test_a_dump_goes_on_where_memory_begins_again() -> None:
    vm = AxVM.from_asm("nop", memory="1M")
    vm.write_to_guest(0xFFFF8, b"12345678")
    view = vm.show.memory(0xFFFF8, 16)
    assert bytes(byte for byte in view.data[:8] if byte is not None) == b"12345678"
    assert view.data[8:] == (None,) * 8
    assert view.notes == ("guest-physical 0x100000 is not shown: no RAM is there",)


def test_a_device_is_named_and_not_read() -> None:
    vm = AxVM.from_asm("nop", platform="pc")
    assert vm.board is not None and vm.board.vga is not None
    vm.board.vga.state.latches[0] = 0x55  # a read of the display memory may load the latches
    view = vm.show.memory(0xB8000, 32)
    assert view.notes[0].startswith("guest-physical 0xb8000 is not shown: belongs to vga_memory")
    assert vm.board.vga.state.latches[0] == 0x55
    assert not vm.exit_counts


def test_linear_and_physical_addresses_differ_where_paging_says_so() -> None:
    vm = AxVM.from_asm("nop", mode="protected", memory="16M")
    vm.write_to_guest(0x10000, (0x11003).to_bytes(4, "little"))
    vm.write_to_guest(0x11004, (0x23003).to_bytes(4, "little"))
    vm.write_to_guest(0x23000, b"there")
    cpu = vm.vcpu(0).cpu
    cpu.cr3, cpu.cr0 = 0x10000, 0x8000_0011
    view = vm.show.memory(0x1000, 5)
    assert bytes(byte for byte in view.data if byte is not None) == b"there"
    assert view.notes == ("0x1000 is physical 0x23000",)
    assert vm.show.memory(0x1000, 5, physical=True).data == (0x90, 0, 0, 0, 0)


def test_a_large_dump_is_bounded_and_says_so() -> None:
    vm = AxVM.from_asm("nop", memory="2M")
    vm.write_to_guest(0x10000, bytes(n * n & 0xFF for n in range(0x20000)))
    view = vm.show.memory(0x10000, 1 << 40)
    assert len(view.data) == DUMP_MAX
    assert str(view).splitlines()[-1] == f"… {DUMP_MAX - 16 * LINES_SHOWN:,} more bytes"
    assert len(view._repr_html_()) < 100_000


def test_addresses_wrap_as_the_mode_has_them() -> None:
    vm = AxVM.from_asm("nop", mode="protected", memory="1M")
    view = vm.show.memory((1 << 32) - 8, 16)
    assert view.data[8:] == tuple(vm.read_from_guest(0, 8))
    assert vm.show.memory(-8, 4).address == (1 << 32) - 8


def test_a_negative_size_is_refused_in_one_sentence() -> None:
    with pytest.raises(AxError, match="memory: -1 is negative"):
        AxVM.from_asm("nop").show.memory(0, -1)


def test_nothing_at_all_is_an_empty_dump() -> None:
    assert str(AxVM.from_asm("nop").show.memory(0x1000, 0)).startswith("0 bytes of linear memory")


# ---- listings ----------------------------------------------------------------------------------------------


def test_a_listing_marks_rip_and_shows_what_was_executed_before() -> None:
    vm = AxVM.from_asm("mov eax, 1\nmov ebx, 2\nmov ecx, 3\nhlt")
    vm.run(2)
    listing = vm.show.disassembly(count=2)
    assert [line.text for line in listing] == ["mov eax, 0x1", "mov ebx, 0x2", "mov ecx, 0x3", "hlt"]
    assert [line.here for line in listing] == [False, False, True, False]
    assert '<tr class="here">' in listing._repr_html_()


def test_a_listing_of_another_place_has_no_mark() -> None:
    vm = AxVM.from_asm("nop")
    vm.write_to_guest(0x5000, bytes.fromhex("48 01 d8 c3"))
    listing = vm.show.disassembly(0x5000, 2)
    assert [(line.ip, line.raw.hex(), line.text) for line in listing] == [
        (0x5000, "4801d8", "add rax, rbx"), (0x5003, "c3", "ret"),
    ]  # fmt: skip
    assert ">" not in str(listing)


def test_a_listing_ends_where_memory_is_empty() -> None:
    vm = AxVM.from_asm("hlt")
    listing = vm.show.disassembly(count=50)
    assert [line.text for line in listing] == ["hlt"]
    assert str(listing).splitlines()[-1] == "from 0x1001 on memory is empty"


def test_a_listing_ends_where_code_cannot_be_read() -> None:
    vm = AxVM.from_asm("nop")
    listing = vm.show.disassembly(8 << 30, 5)
    assert len(listing) == 1
    assert listing[0].text == "(the bytes here cannot be read)"


def test_bytes_that_are_no_instruction_are_shown_as_such() -> None:
    vm = AxVM.from_asm("nop")
    vm.write_to_guest(0x5000, bytes.fromhex("06") * 64)
    assert {line.text for line in vm.show.disassembly(0x5000, 3)} == {"(bad)"}


def test_a_symbols_name_stands_over_its_first_instruction_and_is_escaped() -> None:
    vm = AxVM.from_asm("nop\nhlt")
    plan = vm.plan
    assert isinstance(plan, BootPlan)
    object.__setattr__(plan, "symbols", SymbolTable([Symbol("<i>start\x1b", 0x1000)]))
    page = seen(vm.show.disassembly(count=2))
    assert "i" not in page.tags
    assert "<i>start\\x1b:" in page.marked("strong")


def test_code_of_real_mode_has_segmented_addresses() -> None:
    vm = AxVM.from_asm("nop", mode="real", base=0)
    vm.vcpu(0).cpu.cs.load_real(0x100)
    vm.write_to_guest(0x1000, b"\xfa\xf4")
    assert [line.place for line in vm.show.disassembly(0, 2)] == ["0100:0000", "0100:0001"]
