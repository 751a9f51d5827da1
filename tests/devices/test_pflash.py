"""Firmware memory: a ROM that never changes, a flash that follows Intel's command set."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from devices.base import DeviceError
from devices.pflash import PFlash, Rom

SECTOR = 0x1000
READY, ERASE_ERROR, PROGRAM_ERROR, LOCKED = 0x80, 0x20, 0x10, 0x02


def flash(writable: bool = True) -> PFlash:
    return PFlash(bytes(range(256)) * (4 * SECTOR // 256), writable=writable)


def test_a_rom_reads_its_image_and_ignores_writes() -> None:
    rom = Rom(bytes([1, 2, 3, 4, 5]))
    rom.write(0, 4, 0)
    assert rom.read(0, 4) == 0x0403_0201
    assert rom.read(3, 4) == 0xFFFF_0504
    assert rom.size == 5 and rom.image() == bytes([1, 2, 3, 4, 5])


def test_a_flash_wakes_as_memory() -> None:
    chip = flash()
    assert chip.read(4, 4) == 0x0706_0504
    assert chip.read(SECTOR - 2, 4) == 0x0100_FFFE
    assert chip.read(4 * SECTOR - 1, 2) == 0xFFFF
    assert chip.array_readable


@pytest.mark.parametrize("setup", [0x10, 0x40])
def test_programming_clears_bits_and_never_sets_them(setup: int) -> None:
    chip = flash()
    chip.write(0x0F, 1, setup)
    chip.write(0x0F, 1, 0xF3)
    assert chip.read(0, 1) == READY
    chip.write(0, 1, 0xFF)
    assert chip.read(0x0F, 1) == 0x0F & 0xF3
    assert chip.read(0x10, 1) == 0x10


def test_a_wide_program_cycle_stores_all_its_bytes() -> None:
    chip = flash()
    chip.write(SECTOR - 2, 1, 0x40)
    chip.write(SECTOR - 2, 4, 0)
    chip.write(0, 1, 0xFF)
    assert chip.read(SECTOR - 2, 4) == 0


def test_erasing_sets_one_sector_to_ones() -> None:
    chip = flash()
    chip.write(SECTOR + 5, 1, 0x20)
    chip.write(SECTOR + 5, 1, 0xD0)
    assert chip.read(0, 1) == READY
    chip.write(0, 1, 0xFF)
    image = chip.image()
    assert image[SECTOR : 2 * SECTOR] == b"\xff" * SECTOR
    assert image[:SECTOR] == bytes(range(256)) * 16


def test_an_erase_that_is_not_confirmed_is_a_sequence_error() -> None:
    chip = flash()
    chip.write(0, 1, 0x20)
    chip.write(0, 1, 0x00)
    assert chip.read(0, 1) == READY | ERASE_ERROR | PROGRAM_ERROR
    chip.write(0, 1, 0x50)
    chip.write(0, 1, 0x70)
    assert chip.read(0, 1) == READY
    assert chip.image() == flash().image()


def test_a_protected_flash_reports_errors_and_stays_as_it_was() -> None:
    chip = flash(writable=False)
    chip.write(0x0F, 1, 0x40)
    chip.write(0x0F, 1, 0)
    assert chip.read(0, 1) == READY | PROGRAM_ERROR | LOCKED
    chip.write(0, 1, 0x20)
    chip.write(0, 1, 0xD0)
    assert chip.read(0, 1) == READY | PROGRAM_ERROR | ERASE_ERROR | LOCKED
    assert chip.image() == flash().image()


def buffered_write(chip: PFlash, base: int, data: bytes, confirm: int = 0xD0) -> None:
    chip.write(base, 1, 0xE8)
    assert chip.read(base, 1) == READY
    chip.write(base, 1, len(data) - 1)
    for i, byte in enumerate(data):
        chip.write(base + i, 1, byte)
    chip.write(base, 1, confirm)


def test_a_buffered_write_programs_up_to_32_bytes() -> None:
    chip = flash()
    buffered_write(chip, 0xE0, bytes(32))
    assert chip.read(0, 1) == READY
    chip.write(0, 1, 0xFF)
    assert chip.image()[0xE0:0x100] == bytes(32)
    assert chip.image()[0x100] == 0


def test_a_buffered_write_without_its_confirmation_changes_nothing() -> None:
    chip = flash()
    buffered_write(chip, 0xE0, bytes(4), confirm=0x00)
    assert chip.read(0, 1) & (PROGRAM_ERROR | ERASE_ERROR)
    assert chip.image() == flash().image()


def test_a_buffered_write_over_two_sectors_is_refused() -> None:
    chip = flash()
    buffered_write(chip, SECTOR - 2, bytes(4))
    assert chip.read(0, 1) & PROGRAM_ERROR
    assert chip.image() == flash().image()


def test_a_buffer_bigger_than_the_chips_is_refused() -> None:
    chip = flash()
    chip.write(0, 1, 0xE8)
    chip.write(0, 1, 32)
    assert chip.read(0, 1) & PROGRAM_ERROR
    assert chip.state.buffer == {}


def test_identifiers_and_the_query_table_name_an_intel_chip() -> None:
    chip = flash()
    chip.write(0, 1, 0x90)
    assert chip.read(0, 2) == 0x1789
    chip.write(0, 1, 0x98)
    assert bytes(chip.read(0x10 + i, 1) for i in range(5)) == b"QRY\x01\x00"
    assert chip.read(0x27, 1) == 14  # 2**14 bytes
    assert chip.read(0x2A, 2) == 5  # 2**5 bytes of write buffer
    assert chip.read(0x2C, 1) == 1
    assert chip.read(0x2D, 2) == 3  # four sectors
    assert chip.read(0x2F, 2) == 0x10  # of 16 times 256 bytes
    table = chip.read(0x15, 2)
    assert bytes(chip.read(table + i, 1) for i in range(3)) == b"PRI"
    assert chip.read(0xFFF, 1) == 0


def test_an_unknown_command_goes_back_to_the_array() -> None:
    chip = flash()
    chip.write(0, 1, 0x70)
    chip.write(0, 1, 0x33)
    assert chip.read(3, 1) == 3


def test_the_machine_hears_when_reads_stop_showing_memory_and_what_was_programmed() -> None:
    heard: list[object] = []
    chip = PFlash(
        bytes(SECTOR), on_array=heard.append, on_program=lambda offset, data: heard.append((offset, data))
    )
    chip.write(0, 1, 0x40)
    chip.write(7, 1, 0xFF)
    chip.write(0, 1, 0xFF)
    assert heard == [False, (7, b"\0"), True]


def test_reset_shows_the_array_and_keeps_what_was_programmed() -> None:
    chip = flash()
    chip.write(5, 1, 0x40)
    chip.write(5, 1, 0)
    chip.reset()
    assert chip.read(5, 1) == 0
    assert chip.state.status == READY


def test_the_host_image_changes_only_when_saved(tmp_path: Path) -> None:
    chip = flash()
    chip.write(5, 1, 0x40)
    chip.write(5, 1, 0)
    target = tmp_path / "vars.fd"
    chip.save(target)
    assert target.read_bytes()[5] == 0
    assert target.read_bytes()[6:] == flash().image()[6:]


def test_a_snapshot_brings_old_contents_back() -> None:
    chip = flash()
    saved = copy.deepcopy(chip.state)
    chip.write(5, 1, 0x40)
    chip.write(5, 1, 0)
    chip.state = saved
    assert chip.image() == flash().image() and chip.array_readable


def test_impossible_images_are_refused() -> None:
    with pytest.raises(DeviceError, match="whole sectors"):
        PFlash(bytes(100))
    with pytest.raises(DeviceError, match="whole sectors"):
        PFlash(b"")
    with pytest.raises(DeviceError, match="sector size 0x300"):
        PFlash(bytes(0x300), sector_size=0x300)


def test_commands_past_the_end_are_harmless() -> None:
    chip = flash()
    for command in range(256):
        chip.write(4 * SECTOR + 7, 8, command)
        chip.read(4 * SECTOR + 7, 8)
    assert len(chip.image()) == 4 * SECTOR
