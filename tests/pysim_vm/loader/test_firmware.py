"""loader/firmware.py: ROMs at the reset vector."""

import pytest

from pysim_vm.boot_plan import RamMap
from pysim_vm.errors import LoadError
from pysim_vm.loader.firmware import load_firmware, looks_like_firmware
from tests.guests import guest

RAM = RamMap.pc(16 << 20)


def rom(size: int) -> bytes:
    """A ROM whose every page is marked with its number, with a jump at the reset vector."""
    image = bytearray(b"".join(bytes([page & 0xFF]) * 4096 for page in range(size // 4096)))
    image[-16:-14] = b"\xeb\xfe"
    return bytes(image)


def test_a_large_rom_ends_at_4_gib_and_its_last_128_kib_lie_below_1_mib() -> None:
    image = rom(256 << 10)
    plan = load_firmware(image, RAM)
    assert plan.roms == ((0xFFFC0000, image),)
    assert plan.writes == ((0xE0000, image[-(128 << 10) :]),)
    assert plan.start.mode == "reset"


def test_a_small_rom_ends_at_1_mib_as_well() -> None:
    plan = load_firmware(rom(64 << 10), RAM)
    assert [gpa for gpa, _ in plan.roms] == [0xFFFF0000]
    assert [gpa for gpa, _ in plan.writes] == [0xF0000]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "has 0 bytes"),
        (bytes(4097), "has 4097 bytes"),
        (bytes((16 << 20) + 4096), "multiple of 4096 up to 0x1000000"),
        (bytes(65536), "no code in its last 16 bytes"),
        (b"\xff" * 65536, "no code in its last 16 bytes"),
    ],
)
def test_what_is_no_rom_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(LoadError, match=text):
        load_firmware(data, RAM)


def test_a_machine_without_ram_below_1_mib_cannot_shadow_a_rom() -> None:
    with pytest.raises(LoadError, match="the low copy of the ROM at 0xe0000-0xfffff lies outside RAM"):
        load_firmware(rom(128 << 10), RamMap.pc(0x80000))


@pytest.mark.guest
@pytest.mark.parametrize(
    "name", ["bios.bin", "bios-256k.bin", "bios-microvm.bin", "u-boot-x86.rom", "u-boot-x86_64.rom"]
)
def test_debians_firmwares_are_recognised(name: str) -> None:
    data = guest(name).read_bytes()
    assert looks_like_firmware(data)
    assert load_firmware(data, RAM, name=name).roms[0][0] == (1 << 32) - len(data)
