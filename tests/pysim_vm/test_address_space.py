"""AddrSpace: areas, aliases, lazy pages, translation and its errors."""

from __future__ import annotations

import pytest

from isa.memory import PhysicalMemory
from pysim_vm import AxError, AxErrorKind
from pysim_vm.address_space import AddrSpace
from pysim_vm.axtypes import MappingFlags

RW = MappingFlags.READ | MappingFlags.WRITE
RWX = RW | MappingFlags.EXECUTE


def space() -> AddrSpace:
    """An empty space of 1 GiB."""
    return AddrSpace.new_empty(PhysicalMemory(), 0, 1 << 30)


def test_an_empty_space_knows_its_bounds() -> None:
    empty = AddrSpace.new_empty(PhysicalMemory(), 0x1000, 0x4000)
    assert (empty.base(), empty.size(), empty.end(), empty.page_table_root()) == (0x1000, 0x4000, 0x5000, 0)
    assert empty.contains_range(0x1000, 0x4000)
    assert not empty.contains_range(0xFFF, 1)
    assert not empty.contains_range(0x4000, 0x1001)


@pytest.mark.parametrize(
    ("gpa", "size", "text"),
    [
        (0x1001, 0x1000, "address not aligned: 0x1001"),
        (0x1000, 0x1001, "address not aligned: 0x1000"),
        (1 << 30, 0x1000, "address out of range: 0x40000000"),
        ((1 << 30) - 0x1000, 0x2000, "address out of range: 0x3ffff000"),
        (-0x1000, 0x1000, "address out of range: -0x1000"),
        (0x1000, 0, "address out of range: 0x1000"),
    ],
)
def test_a_wrong_range_is_invalid_input(gpa: int, size: int, text: str) -> None:
    with pytest.raises(AxError, match=text) as refused:
        space().map_alloc(gpa, size, RWX)
    assert refused.value.kind is AxErrorKind.InvalidInput


def test_an_overlap_is_already_exists_and_names_the_owner() -> None:
    areas = space()
    areas.map_alloc(0x1000, 0x2000, RWX, name="kernel")
    with pytest.raises(AxError, match="ram 0x2000-0x2fff overlaps kernel 0x1000-0x2fff; move one") as refused:
        areas.map_alloc(0x2000, 0x1000, RWX)
    assert refused.value.kind is AxErrorKind.AlreadyExists


def test_translate_gives_pool_offset_and_what_is_left() -> None:
    areas = space()
    first = areas.map_alloc(0x1000, 0x1000, RWX)
    second = areas.map_alloc(0x2000, 0x2000, RWX)
    assert areas.translate(0x1234) == first.host + 0x234
    assert areas.translate_and_get_limit(0x2800) == (second.host + 0x800, 0x1800)
    assert areas.translate(0x4000) is None
    assert areas.translate_and_get_limit(0xFFF) is None


def test_a_linear_area_shows_the_same_bytes_twice() -> None:
    areas = space()
    ram = areas.map_alloc(0x1000, 0x2000, RWX)
    areas.map_linear(0x10_0000, ram.host + 0x1000, 0x1000, RW)
    areas.memory.write(0x10_0004, b"twin")
    assert areas.memory.read(0x2004, 4) == b"twin"


def test_a_linear_area_outside_the_pool_is_refused() -> None:
    with pytest.raises(AxError, match="host memory 0x5000 is not there"):
        space().map_linear(0, 0x5000, 0x1000, RW)


def test_unmapping_an_alias_keeps_the_owners_bytes() -> None:
    areas = space()
    ram = areas.map_alloc(0x1000, 0x1000, RWX)
    areas.map_linear(0x8000, ram.host, 0x1000, RW)
    areas.memory.write(0x1000, b"keep")
    areas.unmap(0x8000, 0x1000)
    assert areas.memory.read(0x1000, 4) == b"keep"
    assert areas.translate(0x8000) is None


def test_memory_given_back_is_zero_when_it_is_given_out_again() -> None:
    areas = space()
    areas.map_alloc(0x1000, 0x1000, RWX)
    areas.memory.write(0x1000, b"secret")
    areas.unmap(0x1000, 0x1000)
    areas.map_alloc(0x7000, 0x1000, RWX)
    assert areas.memory.read(0x7000, 6) == bytes(6)


@pytest.mark.parametrize(
    ("gpa", "size", "held"),
    [
        (0x1000, 0x2000, "ram 0x1000+0x1000"),
        (0x5000, 0x1000, "nothing"),
        (0x1000, 0x3000, "ram 0x1000+0x1000"),
    ],
)
def test_unmap_takes_exactly_one_area(gpa: int, size: int, held: str) -> None:
    areas = space()
    areas.map_alloc(0x1000, 0x1000, RWX)
    with pytest.raises(AxError) as refused:
        areas.unmap(gpa, size)
    assert f"{held} is mapped there; give its bounds".replace("+", "+") in str(refused.value)


def test_clear_removes_every_area() -> None:
    areas = space()
    areas.map_alloc(0, 0x1000, RWX)
    areas.map_alloc(0x2000, 0x1000, RWX)
    areas.clear()
    assert areas.memory.regions == []
    areas.map_alloc(0, 0x3000, RWX)


def test_a_byte_buffer_is_one_view_for_each_area() -> None:
    areas = space()
    areas.map_alloc(0x1000, 0x1000, RWX)
    areas.map_alloc(0x2000, 0x1000, RWX)
    views = areas.translated_byte_buffer(0x1FFE, 4)
    assert views is not None
    for view, part in zip(views, (b"ab", b"cd"), strict=True):
        view[:] = part
    assert areas.memory.read(0x1FFE, 4) == b"abcd"
    assert areas.translated_byte_buffer(0x2FFE, 4) is None


def test_a_lazy_page_faults_once() -> None:
    areas = space()
    areas.map_alloc(0x1000, 0x2000, RW, populate=False)
    assert areas.handle_page_fault(0x1234, MappingFlags.WRITE)
    assert not areas.handle_page_fault(0x1234, MappingFlags.WRITE)
    assert areas.handle_page_fault(0x2000, MappingFlags.READ)


@pytest.mark.parametrize(
    ("gpa", "access"),
    [(0x5000, MappingFlags.READ), (0x1000, MappingFlags.EXECUTE), (0x8000, MappingFlags.READ)],
)
def test_other_faults_are_not_answered(gpa: int, access: MappingFlags) -> None:
    areas = space()
    areas.map_alloc(0x1000, 0x1000, RW, populate=False)  # no EXECUTE
    areas.map_alloc(0x8000, 0x1000, RW)  # populated
    assert not areas.handle_page_fault(gpa, access)


def test_a_size_that_the_host_does_not_have_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    areas = space()

    def no_room(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", no_room)
    with pytest.raises(AxError, match=r"the host has no 0x1000 bytes for guest RAM; ask for less") as refused:
        areas.map_alloc(0, 0x1000, RWX)
    assert refused.value.kind is AxErrorKind.NoMemory
    assert areas.memory.regions == []
