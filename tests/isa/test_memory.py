"""Guest-physical memory: the map, its errors, windows, lazy pages, the A20 gate and DMA."""

from __future__ import annotations

import pytest

from isa.memory import EXECUTE, PAGE, READ, RWX, WRITE, MemoryMapError, PhysicalMemory


def memory_with(*regions: tuple[int, int]) -> PhysicalMemory:
    """RAM at the given (base, size) pairs."""
    memory = PhysicalMemory()
    for base, size in regions:
        memory.add_ram(base, size)
    return memory


def test_ram_reads_back_what_was_written_and_starts_as_zeros() -> None:
    memory = memory_with((0x1000, 0x2000))
    assert memory.read(0x1000, 0x2000) == bytes(0x2000)
    memory.write(0x1FFE, b"\x11\x22\x33\x44")
    assert memory.read(0x1FFC, 8) == bytes.fromhex("0000112233440000")


@pytest.mark.parametrize(
    ("base", "size", "words"),
    [
        (0x800, 0x1000, "not aligned to 4 KiB"),
        (0x1000, 0x800, "not aligned"),
        (0x1000, 0, "out of range"),
        (-0x1000, 0x1000, "out of range"),
        (1 << 48, 0x1000, "48 bits"),
        ((1 << 48) - 0x1000, 0x2000, "48 bits"),
    ],
)
def test_a_region_that_cannot_be_is_refused_in_one_sentence(base: int, size: int, words: str) -> None:
    memory = memory_with((0x10_0000, 0x1000))
    with pytest.raises(MemoryMapError, match=words):
        memory.add_ram(base, size)
    assert len(memory.regions) == 1


def test_an_overlap_names_both_owners_and_adjoining_is_none() -> None:
    memory = PhysicalMemory()
    memory.add_ram(0x1000, 0x3000, name="low")
    memory.add_ram(0x4000, 0x1000, name="next")
    with pytest.raises(MemoryMapError) as caught:
        memory.add_ram(0x3000, 0x1000, name="shadow")
    assert str(caught.value) == "shadow 0x3000-0x3fff overlaps low 0x1000-0x3fff; move one of them"


def test_a_host_without_enough_memory_is_a_map_error() -> None:
    with pytest.raises(MemoryMapError, match="ask for less"):
        PhysicalMemory().add_ram(0, 1 << 47)


def test_reads_and_writes_cross_adjoining_regions_but_not_the_end_of_ram() -> None:
    memory = memory_with((0x2000, 0x1000), (0x1000, 0x1000))
    memory.write(0x1FFE, b"abcd")
    assert memory.read(0x1FFE, 4) == b"abcd"
    with pytest.raises(MemoryMapError, match=r"0x2ffe\+0x4"):
        memory.write(0x2FFE, b"abcd")
    assert memory.read(0x2FFE, 2) == bytes(2)
    for gpa in (0x2FFE, 0x3000, 0, -4):
        with pytest.raises(MemoryMapError):
            memory.read(gpa, 4)


def test_contents_survive_the_growth_of_the_pool() -> None:
    memory = memory_with((0, 0x1000))
    memory.write(0x10, b"keep")
    memory.add_ram(0x1_0000, 0x10_0000)
    assert memory.read(0x10, 4) == b"keep"
    assert len(memory.view) == 0x10_1000


def test_removed_memory_is_gone_and_its_place_comes_back_zeroed() -> None:
    memory = PhysicalMemory()
    region = memory.add_ram(0x1000, 0x2000)
    memory.write(0x1000, b"secret")
    memory.remove_ram(region)
    with pytest.raises(MemoryMapError):
        memory.read(0x1000, 1)
    again = memory.add_ram(0x8000, 0x1000)
    assert again.host == region.host
    assert memory.read(0x8000, 6) == bytes(6)
    rest = memory.add_ram(0xA000, 0x1000)
    assert rest.host == region.host + 0x1000


def test_an_alias_shares_its_bytes_and_must_lie_in_the_pool() -> None:
    memory = PhysicalMemory()
    region = memory.add_ram(0x1000, 0x1000)
    memory.add_ram(0x9000, 0x1000, host=region.host, name="alias")
    memory.write(0x9004, b"x")
    assert memory.read(0x1004, 1) == b"x"
    with pytest.raises(MemoryMapError, match="host memory"):
        memory.add_ram(0xB000, 0x1000, host=0x1_0000)


def test_host_pages_are_given_for_allowed_accesses_only() -> None:
    memory = PhysicalMemory()
    memory.add_ram(0, PAGE)
    rom = memory.add_ram(0x1000, PAGE, READ | EXECUTE)
    assert memory.host_page(0x123, WRITE) == 0
    assert memory.host_page(0x1FFF, READ) == memory.host_page(0x1000, EXECUTE) == rom.host
    assert memory.host_page(0x1000, WRITE) is None
    assert memory.host_page(0x2000, READ) is None


def test_a_window_hides_ram_and_leaves_rom_readable() -> None:
    memory = PhysicalMemory()
    memory.add_ram(0, 2 * PAGE)
    rom = memory.add_ram(0x4000, PAGE, READ | EXECUTE)
    memory.set_mmio([(0x4000, 0x1000), (0x1800, 0x10)])
    assert memory.host_page(0, READ) == 0
    assert memory.host_page(0x1000, READ) is None  # a page with a window in it takes the slow road
    assert memory.host_page(0x4000, READ) == rom.host
    assert [memory.is_mmio(at, 1) for at in (0x17FF, 0x1800, 0x180F, 0x1810)] == [False, True, True, False]
    assert memory.is_mmio(0x17FE, 4) and memory.is_mmio(0x180F, 8) and not memory.is_mmio(0x1810, 8)


def test_an_access_partly_in_a_window_and_partly_in_ram_straddles() -> None:
    memory = memory_with((0, PAGE))
    memory.set_mmio([(0x800, 0x10), (0x2000, 0x10)])
    assert memory.straddles(0x7FE, 4) and memory.straddles(0x80E, 4)
    assert not memory.straddles(0x800, 8) and not memory.straddles(0x7F0, 8)
    assert not memory.straddles(0x1FFE, 4)  # no RAM on either side of that window


def test_lazy_pages_are_there_once_they_are_touched_by_dma() -> None:
    memory = PhysicalMemory()
    region = memory.add_ram(0, 4 * PAGE, lazy=True)
    assert memory.host_page(0x1000, READ) is None and not memory.is_plain(0x1000, READ)
    memory.write(0x1FFF, b"ab")
    assert region.populated is not None
    assert region.populated.tolist() == [False, True, True, False]
    assert memory.host_page(0x1000, READ) == PAGE and memory.is_plain(0x2FFF, RWX)


def test_the_a20_gate_masks_bit_20_and_tells_of_changes_only() -> None:
    memory = PhysicalMemory()
    changes: list[int] = []
    memory.on_map_change = lambda: changes.append(memory.address_mask)
    memory.set_a20(True)
    memory.set_a20(False)
    memory.set_a20(False)
    assert changes == [(1 << 48) - 1 - (1 << 20)]
    memory.set_a20(True)
    assert changes[1:] == [(1 << 48) - 1]


def test_writes_and_removals_are_reported_by_host_offset() -> None:
    memory = PhysicalMemory()
    seen: list[tuple[int, int]] = []
    memory.on_write = lambda host, size: seen.append((host, size))
    first = memory.add_ram(0x5000, PAGE)
    memory.add_ram(0x6000, PAGE)
    memory.write(0x5FFE, b"abcd")
    memory.remove_ram(first)
    assert seen == [(0xFFE, 2), (0x1000, 2), (0, PAGE)]
