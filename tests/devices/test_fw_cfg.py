"""fw_cfg: selecting and reading items, the file directory, and DMA that the guest cannot misuse."""

from __future__ import annotations

import copy
import struct

import pytest

from devices.base import DeviceError
from devices.fw_cfg import DMA_CHUNK, FwCfg, FwCfgKey, e820_map

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0x0, 0x1, 0x4, 0x8  # offsets from port 0x510
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16


class Ram:
    """RAM at address 0; anything past it is nowhere. Notes the biggest buffer it was handed."""

    def __init__(self, size: int = 0x4_0000) -> None:
        self.data = bytearray(size)
        self.biggest = 0

    def read(self, gpa: int, size: int) -> bytes:
        if gpa < 0 or gpa + size > len(self.data):
            raise DeviceError(f"no RAM at {gpa:#x}")
        return bytes(self.data[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        self.biggest = max(self.biggest, len(data))
        if gpa < 0 or gpa + len(data) > len(self.data):
            raise DeviceError(f"no RAM at {gpa:#x}")
        self.data[gpa : gpa + len(data)] = data


def read_item(chip: FwCfg, key: int, size: int) -> bytes:
    chip.write(SELECTOR, 2, key)
    return bytes(chip.read(DATA, 1) for _ in range(size))


def dma(chip: FwCfg, ram: Ram, control: int, length: int, address: int, at: int = 0x100) -> int:
    """Run one descriptor through the port register; returns its control word afterwards."""
    ram.data[at : at + 16] = struct.pack(">IIQ", control, length, address)
    chip.write(DMA_HIGH, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
    chip.write(DMA_LOW, 4, int.from_bytes((at & 0xFFFF_FFFF).to_bytes(4, "big"), "little"))
    return int.from_bytes(ram.data[at : at + 4], "big")


def test_the_signature_and_the_features_are_there() -> None:
    assert read_item(FwCfg(), FwCfgKey.SIGNATURE, 4) == b"QEMU"
    assert read_item(FwCfg(), FwCfgKey.ID, 4) == b"\x01\0\0\0"
    assert read_item(FwCfg(Ram()), FwCfgKey.ID, 4) == b"\x03\0\0\0"


def test_reading_past_an_item_gives_zeros_and_selecting_starts_again() -> None:
    chip = FwCfg()
    chip.add_item(0x8000, b"ab")
    assert read_item(chip, 0x8000, 4) == b"ab\0\0"
    assert read_item(chip, 0x8000, 1) == b"a"


def test_an_absent_item_reads_zeros() -> None:
    assert read_item(FwCfg(), 0x7777, 3) == b"\0\0\0"


def test_the_write_bit_is_no_part_of_the_key() -> None:
    assert read_item(FwCfg(), FwCfgKey.WRITE_CHANNEL | FwCfgKey.SIGNATURE, 4) == b"QEMU"


def test_bytes_do_not_select_and_data_cannot_be_written() -> None:
    chip = FwCfg()
    chip.write(SELECTOR, 2, FwCfgKey.SIGNATURE)
    chip.write(SELECTOR, 1, FwCfgKey.ID)
    chip.write(DATA, 1, 0x55)
    assert bytes(chip.read(DATA, 1) for _ in range(4)) == b"QEMU"


def test_the_directory_lists_files_by_name_with_size_and_key() -> None:
    chip = FwCfg()
    zebra = chip.add_file("opt/zebra", b"12345")
    apple = chip.add_file("etc/apple", b"1")
    assert (zebra, apple) == (0x20, 0x21)
    directory = read_item(chip, FwCfgKey.FILE_DIR, 4 + 2 * 64)
    assert directory[:4] == struct.pack(">I", 2)
    assert struct.unpack(">IHH56s", directory[4:68]) == (1, 0x21, 0, b"etc/apple".ljust(56, b"\0"))
    assert struct.unpack(">IHH56s", directory[68:]) == (5, 0x20, 0, b"opt/zebra".ljust(56, b"\0"))
    assert read_item(chip, zebra, 5) == b"12345"


def test_replacing_a_file_keeps_its_key() -> None:
    chip = FwCfg()
    key = chip.add_file("a", b"old")
    assert chip.add_file("a", b"newer") == key
    assert chip.file("a") == b"newer"
    assert read_item(chip, FwCfgKey.FILE_DIR, 8)[4:] == struct.pack(">I", 5)


@pytest.mark.parametrize("name", ["", "x" * 56, "etc/\0", "etc/ü"])
def test_a_bad_file_name_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="ASCII characters"):
        FwCfg().add_file(name, b"")


def test_a_bad_key_and_an_unknown_file_are_refused() -> None:
    with pytest.raises(DeviceError, match="a key has 16 bits"):
        FwCfg().add_item(0x1_0000, b"")
    with pytest.raises(DeviceError, match="does not exist"):
        FwCfg().file("etc/none")


def test_standard_items_tell_memory_and_processors() -> None:
    chip = FwCfg()
    chip.add_standard_items(ram_size=0x800_0000, cpus=2, max_cpus=4, boot_menu=True)
    assert read_item(chip, FwCfgKey.RAM_SIZE, 8) == struct.pack("<Q", 0x800_0000)
    assert read_item(chip, FwCfgKey.NB_CPUS, 2) == b"\x02\0"
    assert read_item(chip, FwCfgKey.MAX_CPUS, 2) == b"\x04\0"
    assert read_item(chip, FwCfgKey.BOOT_MENU, 2) == b"\x01\0"
    assert chip.file("etc/e820") == struct.pack("<QQI", 0, 0x800_0000, 1)


def test_memory_above_the_device_hole_goes_to_4_gib() -> None:
    assert e820_map(0x1_0000_0000) == [(0, 0xC000_0000, 1), (0x1_0000_0000, 0x4000_0000, 1)]


def test_a_kernel_comes_with_sizes_addresses_and_a_terminated_command_line() -> None:
    chip = FwCfg()
    chip.add_kernel(
        b"KERN", 0x10_0000, cmdline="quiet", cmdline_addr=0x2_0000, initrd=b"RD", initrd_addr=0x700_0000
    )
    assert read_item(chip, FwCfgKey.KERNEL_ADDR, 4) == struct.pack("<I", 0x10_0000)
    assert read_item(chip, FwCfgKey.KERNEL_SIZE, 4) == struct.pack("<I", 4)
    assert read_item(chip, FwCfgKey.KERNEL_DATA, 4) == b"KERN"
    assert read_item(chip, FwCfgKey.KERNEL_ENTRY, 4) == struct.pack("<I", 0x10_0000)
    assert read_item(chip, FwCfgKey.CMDLINE_SIZE, 4) == struct.pack("<I", 6)
    assert read_item(chip, FwCfgKey.CMDLINE_DATA, 6) == b"quiet\0"
    assert read_item(chip, FwCfgKey.INITRD_DATA, 2) == b"RD"
    with pytest.raises(DeviceError, match="not below 4 GiB"):
        chip.add_kernel(b"", 1 << 32)


def test_dma_reads_a_selected_item_into_memory() -> None:
    ram = Ram()
    chip = FwCfg(ram)
    chip.add_item(0x8000, bytes(range(10)))
    assert dma(chip, ram, 0x8000 << 16 | SELECT | READ, 12, 0x2000) == 0
    assert ram.data[0x2000:0x200C] == bytes(range(10)) + b"\0\0"
    assert dma(chip, ram, 0x8000 << 16 | SELECT | SKIP, 4, 0) == 0
    assert dma(chip, ram, READ, 2, 0x3000) == 0
    assert ram.data[0x3000:0x3002] == b"\x04\x05"


def test_eight_bytes_start_dma_at_once() -> None:
    ram = Ram()
    chip = FwCfg(ram)
    ram.data[0x100:0x110] = struct.pack(">IIQ", SELECT | READ, 4, 0x2000)
    chip.mmio().write(0x10, 8, int.from_bytes((0x100).to_bytes(8, "big"), "little"))
    assert ram.data[0x2000:0x2004] == b"QEMU"


def test_dma_into_nowhere_sets_the_error_bit() -> None:
    ram = Ram()
    assert dma(FwCfg(ram), ram, SELECT | READ, 16, 0xFFFF_FFFF_FFFF_FFF0) == ERROR


def test_a_descriptor_in_nowhere_is_ignored() -> None:
    ram = Ram()
    chip = FwCfg(ram)
    before = bytes(ram.data)
    chip.write(DMA_HIGH, 4, 0xFFFF_FFFF)
    chip.write(DMA_LOW, 4, 0xF0FF_FFFF)
    assert bytes(ram.data) == before


def test_a_descriptor_that_cannot_be_answered_is_ignored() -> None:
    class ReadOnly(Ram):
        def write(self, gpa: int, data: bytes) -> None:
            raise DeviceError("read-only")

    ram = ReadOnly()
    assert dma(FwCfg(ram), ram, SELECT | READ, 4, 0x2000) == SELECT | READ


def test_a_huge_length_is_carried_out_in_bounded_pieces() -> None:
    ram = Ram()
    assert dma(FwCfg(ram), ram, SELECT | READ, 0xFFFF_FFFF, 0x2000) == ERROR
    assert 0 < ram.biggest <= DMA_CHUNK


def test_dma_writes_only_writable_items_and_only_within_their_size() -> None:
    ram = Ram()
    chip = FwCfg(ram)
    key = chip.add_file("etc/vmgenid_addr", bytes(8), writable=True)
    fixed = chip.add_file("etc/fixed", bytes(8))
    ram.data[0x2000:0x2004] = b"WXYZ"
    assert dma(chip, ram, key << 16 | SELECT | SKIP, 2, 0) == 0
    assert dma(chip, ram, WRITE, 4, 0x2000) == 0
    assert chip.file("etc/vmgenid_addr") == b"\0\0WXYZ\0\0"
    assert dma(chip, ram, WRITE, 4, 0x2000) == ERROR
    assert dma(chip, ram, fixed << 16 | SELECT | WRITE, 4, 0x2000) == ERROR
    assert dma(chip, ram, key << 16 | SELECT | WRITE, 8, 1 << 40) == ERROR
    assert chip.file("etc/fixed") == bytes(8)


def test_reset_and_restore_bring_written_items_back() -> None:
    ram = Ram()
    chip = FwCfg(ram)
    key = chip.add_file("w", b"....", writable=True)
    ram.data[0x2000:0x2004] = b"WXYZ"
    dma(chip, ram, key << 16 | SELECT | WRITE, 4, 0x2000)
    saved = copy.deepcopy(chip.state)
    chip.reset()
    assert chip.file("w") == b"...."
    chip.state = saved
    assert chip.file("w") == b"WXYZ"


def test_the_dma_register_reads_its_signature() -> None:
    chip = FwCfg(Ram())
    assert chip.read(DMA_HIGH, 4).to_bytes(4, "little") == b"QEMU"
    assert chip.read(DMA_LOW, 4).to_bytes(4, "little") == b" CFG"
    assert chip.mmio().read(0x10, 8).to_bytes(8, "little") == b"QEMU CFG"
    assert FwCfg().read(DMA_HIGH, 4) == 0xFFFF_FFFF


def test_without_memory_a_dma_request_does_nothing() -> None:
    chip = FwCfg()
    chip.write(DMA_LOW, 4, 0)
    assert chip.state.dma_high == 0


def test_the_memory_window_selects_in_big_endian_and_reads_in_any_width() -> None:
    chip = FwCfg()
    chip.add_item(0x8001, b"abcdefghij")
    window = chip.mmio()
    window.write(8, 2, 0x0180)
    assert window.read(0, 8).to_bytes(8, "little") == b"abcdefgh"
    assert window.read(0, 1) == ord("i")
    assert window.read(4, 4).to_bytes(4, "little") == b"j\0\0\0"
    assert window.read(8, 2) == 0xFFFF


def test_every_other_access_is_harmless() -> None:
    chip = FwCfg(Ram())
    window = chip.mmio()
    for offset in range(0x18):
        for width in (1, 2, 4, 8):
            chip.read(offset, width)
            chip.write(offset, width, 0)
            window.read(offset, width)
            window.write(offset, width, 0)
