"""boot_plan.py: RAM maps, placement, descriptors, page tables and start states."""

import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysim_vm.boot_plan import (
    Placement,
    RamMap,
    Segment,
    build_boot_gdt,
    build_identity_page_tables,
    descriptor,
    long_start,
    protected_start,
    real_start,
    registers,
    reset_start,
)
from pysim_vm.errors import AxError, AxErrorKind, LoadError

MIB = 1 << 20
GIB = 1 << 30


def test_a_load_error_is_an_invalid_input_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(LoadError("kernel is too large; use a smaller one")))
    assert isinstance(error, AxError)
    assert (error.kind, str(error)) == (AxErrorKind.InvalidInput, "kernel is too large; use a smaller one")


# --- RAM ----------------------------------------------------------------------------------------------------


def test_the_pc_map_leaves_out_video_memory() -> None:
    ram = RamMap.pc(16 * MIB)
    assert ram.regions == ((0, 0xA0000), (0xC0000, 16 * MIB - 0xC0000))
    assert ram.extended_end == 16 * MIB


def test_the_pc_map_continues_above_4_gib_behind_the_pci_hole() -> None:
    ram = RamMap.pc(5 * GIB)
    assert ram.regions[-1] == (4 * GIB, 2 * GIB)
    assert ram.extended_end == 3 * GIB
    assert not ram.contains(3 * GIB, 1)


def test_usable_ram_is_what_the_proven_zero_page_says() -> None:
    assert RamMap.pc(128 * MIB).usable() == ((0, 0x9FC00), (MIB, 127 * MIB))


def test_regions_are_sorted_and_neighbours_joined() -> None:
    assert RamMap.of([(0x2000, 0x1000), (0, 0x1000), (0x1000, 0x1000)]).regions == ((0, 0x3000),)


@pytest.mark.parametrize(
    ("regions", "text"),
    [
        ([], "no RAM region"),
        ([(0, 0)], "empty or negative"),
        ([(-4096, 4096)], "empty or negative"),
        ([(0, 0x2000), (0x1000, 0x1000)], "region 0x1000 starts inside the region that ends at 0x2000"),
    ],
)
def test_impossible_regions_are_refused(regions: list[tuple[int, int]], text: str) -> None:
    with pytest.raises(LoadError, match=text):
        RamMap.of(regions)


@pytest.mark.parametrize("size", [0, -4096, 4097])
def test_a_ram_size_of_no_whole_pages_is_refused(size: int) -> None:
    with pytest.raises(LoadError, match="multiple of 4096"):
        RamMap.pc(size)


# --- placement ----------------------------------------------------------------------------------------------


def test_an_overlap_names_both_owners() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    placement.write("the kernel", 0x100000, bytes(0x2000))
    with pytest.raises(
        LoadError, match=r"guest: the initrd at 0x101000-0x101fff overlaps the kernel at 0x100000"
    ):
        placement.write("the initrd", 0x101000, bytes(0x1000))


def test_neighbours_do_not_overlap() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    placement.write("a", 0x2000, bytes(0x1000))
    placement.write("b", 0x3000, bytes(0x1000))
    placement.write("c", 0x1000, bytes(0x1000))
    assert [gpa for gpa, _ in placement.writes] == [0x1000, 0x2000, 0x3000]


def test_what_lies_outside_ram_says_how_much_ram_would_do() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    with pytest.raises(
        LoadError, match=r"the kernel at 0x1f0000-0x20ffff lies outside RAM .* at least 3 MiB"
    ):
        placement.write("the kernel", 0x1F0000, bytes(0x20000))


def test_the_video_hole_is_no_ram() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    with pytest.raises(LoadError, match="choose another address"):
        placement.write("the image", 0xA0000, b"x")


def test_the_rest_behind_the_data_is_to_be_cleared() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    placement.write("a segment", 0x1000, b"data", 0x100)
    assert placement.writes == ((0x1000, b"data"),)
    assert placement.clears == [(0x1004, 0xFC)]


def test_free_room_is_found_from_either_end() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    placement.reserve("low", 0x100000, 0x1800)
    placement.reserve("high", 0x1FF000, 0x1000)
    assert placement.lowest_free(0x1000, align=0x1000, low=MIB, high=2 * MIB) == 0x102000
    assert placement.highest_free(0x1000, align=0x1000, low=MIB, high=2 * MIB) == 0x1FE000
    assert placement.lowest_free(2 * MIB, align=0x1000, low=MIB, high=2 * MIB) is None
    assert placement.highest_free(2 * MIB, align=0x1000, low=MIB, high=2 * MIB) is None


@given(
    taken=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=6),
    size=st.integers(1, 20),
    align=st.sampled_from([1, 2, 4, 8]),
    low=st.integers(0, 40),
    high=st.integers(0, 64),
)
def test_free_room_is_exactly_what_a_search_byte_by_byte_finds(
    taken: list[tuple[int, int]], size: int, align: int, low: int, high: int
) -> None:
    placement = Placement(RamMap.of([(4, 30), (40, 24)]), "guest")
    used = set()
    for base, length in taken:
        try:
            placement.reserve("something", base, length)
        except LoadError:
            continue
        used |= set(range(base, base + length))
    fits = [
        at
        for at in range(0, 64, align)
        if at >= low
        and at + size <= high
        and placement.ram.contains(at, size)
        and used.isdisjoint(range(at, at + size))
    ]
    assert placement.lowest_free(size, align=align, low=low, high=high) == (fits[0] if fits else None)
    assert placement.highest_free(size, align=align, low=low, high=high) == (fits[-1] if fits else None)


# --- descriptors and page tables ----------------------------------------------------------------------------


def test_flat_descriptors_are_the_well_known_ones() -> None:
    assert descriptor(Segment(0, 0, 0xFFFFFFFF, 0xC09B)) == 0x00CF_9B00_0000_FFFF
    assert descriptor(Segment(0, 0, 0xFFFFFFFF, 0xA09B)) == 0x00AF_9B00_0000_FFFF


def test_a_byte_granular_descriptor_keeps_base_and_limit() -> None:
    assert descriptor(Segment(0, 0x12345678, 0xABCDE, 0x0093)) == 0x120A_9334_5678_BCDE


def test_the_boot_gdt_has_code_at_0x10_data_at_0x18_and_the_task_at_0x20() -> None:
    code, data = Segment(0x10, 0, 0xFFFFFFFF, 0xA09B), Segment(0x18, 0, 0xFFFFFFFF, 0xC093)
    task = Segment(0x20, 0, 0x67, 0x008B)
    gdt = struct.unpack("<6Q", build_boot_gdt(code, data, task))
    assert gdt == (0, 0, descriptor(code), descriptor(data), descriptor(task), 0)


def test_identity_page_tables_lie_where_firecracker_puts_them() -> None:
    tables = build_identity_page_tables()
    assert [gpa for gpa, _ in tables] == [0x9000, 0xA000, 0xB000, 0xC000, 0xD000, 0xE000]
    assert struct.unpack_from("<2Q", tables[0][1]) == (0xA003, 0)
    assert struct.unpack_from("<5Q", tables[1][1]) == (0xB003, 0xC003, 0xD003, 0xE003, 0)


@given(st.integers(0, 4 * GIB - 1))
def test_a_walk_of_the_identity_tables_ends_where_it_began(address: int) -> None:
    tables = dict(build_identity_page_tables())
    entry = struct.unpack_from("<Q", tables[0x9000], 8 * (address >> 39))[0]
    entry = struct.unpack_from("<Q", tables[entry & ~0xFFF], 8 * (address >> 30 & 511))[0]
    entry = struct.unpack_from("<Q", tables[entry & ~0xFFF], 8 * (address >> 21 & 511))[0]
    assert entry & 0xFFF == 0x83
    assert (entry & ~0x1FFFFF) | (address & 0x1FFFFF) == address


@pytest.mark.parametrize(("count", "at"), [(0, 0x9000), (513, 0x9000), (4, 0x9001), (4, -4096)])
def test_impossible_page_tables_are_refused(count: int, at: int) -> None:
    with pytest.raises(LoadError, match="impossible"):
        build_identity_page_tables(count, at)


# --- start states -------------------------------------------------------------------------------------------


def test_reset_starts_16_bytes_below_4_gib() -> None:
    start = reset_start()
    assert start.segments["cs"].base + start.rip == 0xFFFFFFF0
    assert start.segments["cs"] == (0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    assert (start.mode, start.cr0) == ("reset", 0x60000010)


def test_real_mode_segments_are_sixteen_times_their_selectors() -> None:
    start = real_start(cs=0x1020, ip=0, data_selector=0x1000, rsp=0xE000)
    assert start.segments["cs"] == (0x1020, 0x10200, 0xFFFF, 0x9B)
    assert all(start.segments[name] == (0x1000, 0x10000, 0xFFFF, 0x93) for name in ("ds", "es", "ss"))
    assert (start.regs["rsp"], start.regs["rflags"], start.cr0) == (0xE000, 2, 0x10)


def test_protected_mode_is_flat_with_paging_and_interrupts_off() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    start = protected_start(placement, 0x100000, rax=0x2BADB002)
    assert start.segments["cs"] == (0x10, 0, 0xFFFFFFFF, 0xC09B)
    assert start.segments["ss"] == (0x18, 0, 0xFFFFFFFF, 0xC093)
    assert start.segments["tr"] == (0x20, 0, 0x67, 0x8B)
    assert (start.cr0, start.cr4, start.efer) == (0x11, 0, 0)
    assert start.regs["rax"] == 0x2BADB002 and start.regs["rflags"] == 2
    assert (start.gdt_base, start.gdt_limit) == (0x500, 0x2F)
    assert placement.writes[0][0] == 0x500


def test_long_mode_has_paging_pae_and_both_efer_bits() -> None:
    start = long_start(Placement(RamMap.pc(2 * MIB), "guest"), 0x100000, rsi=0x7000)
    assert (start.cr0, start.cr3, start.cr4, start.efer) == (0x80000011, 0x9000, 0x20, 0x500)
    assert start.segments["cs"] == (0x10, 0, 0xFFFFFFFF, 0xA09B)
    assert (start.regs["rsp"], start.regs["rsi"]) == (0x8FF0, 0x7000)
    assert start.idt_base >= start.gdt_base + start.gdt_limit + 1


def test_sse_is_switched_on_when_asked_for() -> None:
    start = long_start(Placement(RamMap.pc(2 * MIB), "guest"), 0x100000, sse=True)
    assert (start.cr0 & 0x22, start.cr4) == (0x22, 0x620)


def test_the_boot_structures_make_way_for_the_guest() -> None:
    placement = Placement(RamMap.pc(2 * MIB), "guest")
    placement.write("the image", 0, bytes(0x10000))
    start = long_start(placement, 0x1000)
    assert start.cr3 >= 0x10000 and start.cr3 % 4096 == 0
    assert start.gdt_base >= 0x10000 and start.regs["rsp"] > 0x10000
    assert {gpa for gpa, _ in placement.writes} >= {start.cr3, start.gdt_base}


def test_a_machine_too_small_for_the_page_tables_is_told_so() -> None:
    placement = Placement(RamMap.pc(0x4000), "guest")
    with pytest.raises(LoadError, match="no 0x6000 free bytes below 4 GiB for the boot page tables"):
        long_start(placement, 0x1000)


def test_an_unknown_boot_register_is_refused() -> None:
    with pytest.raises(LoadError, match="register eax does not exist"):
        registers(eax=1)
