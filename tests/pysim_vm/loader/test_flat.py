"""loader/flat.py: raw images and boot sectors."""

import pytest

from pysim_vm.boot_plan import RamMap
from pysim_vm.errors import LoadError
from pysim_vm.loader.flat import code_plan, load_boot_sector, load_flat

RAM = RamMap.pc(16 << 20)
SECTOR = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"


def test_a_raw_image_starts_in_axvms_state() -> None:
    plan = load_flat(b"\xf4", RAM, 0x200000)
    assert plan.writes == ((0x200000, b"\xf4"),)
    assert (plan.start.mode, plan.start.rip, plan.start.regs["rsp"]) == ("real", 0x200000, 0)
    assert plan.start.segments["cs"] == (0, 0, 0xFFFF, 0x9B)
    assert plan.start.segments["ds"] == (0, 0, 0xFFFF, 0x93)


def test_the_entry_may_lie_anywhere_inside_the_image() -> None:
    assert load_flat(bytes(16), RAM, 0x1000, entry=0x100F).start.rip == 0x100F
    with pytest.raises(LoadError, match="entry point 0x1010 lies outside the image at 0x1000-0x100f"):
        load_flat(bytes(16), RAM, 0x1000, entry=0x1010)


@pytest.mark.parametrize(("mode", "stack"), [("protected", 0x8FF0), ("long", 0x8FF0)])
def test_the_flat_modes_have_a_stack(mode: str, stack: int) -> None:
    start = load_flat(b"\xf4", RAM, 0x100000, mode=mode).start
    assert (start.mode, start.rip, start.regs["rsp"]) == (mode, 0x100000, stack)


@pytest.mark.parametrize("mode", ["reset", "virtual"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(LoadError, match="use real, protected or long"):
        load_flat(b"\xf4", RAM, 0x100000, mode=mode)


def test_an_empty_image_and_one_outside_ram_are_refused() -> None:
    with pytest.raises(LoadError, match="image is empty"):
        load_flat(b"", RAM, 0x1000)
    with pytest.raises(LoadError, match="outside RAM"):
        load_flat(bytes(0x1000), RAM, (16 << 20) - 1)
    with pytest.raises(LoadError, match="outside RAM"):
        load_flat(b"\xf4", RAM, -1)


def test_bare_code_finds_ram_without_a_video_hole() -> None:
    plan = code_plan(bytes(0x200), "long", 0xA0000, 2 << 20)
    assert (0xA0000, bytes(0x200)) in plan.writes


def test_a_boot_sector_starts_at_7c00_with_its_drive_in_dl() -> None:
    plan = load_boot_sector(SECTOR + bytes(512), RAM, drive=0x81)
    assert dict(plan.writes)[0x7C00] == SECTOR
    assert (plan.start.rip, plan.start.segments["cs"].selector) == (0x7C00, 0)
    assert (plan.start.regs["rdx"], plan.start.regs["rsp"]) == (0x81, 0x7C00)


def test_the_tiny_bios_can_be_left_out() -> None:
    assert [gpa for gpa, _ in load_boot_sector(SECTOR, RAM).writes] == [0, 0x400, 0x7C00, 0xF0000]
    assert [gpa for gpa, _ in load_boot_sector(SECTOR, RAM, services=False).writes] == [0x7C00]


@pytest.mark.parametrize(
    ("data", "drive", "text"),
    [
        (SECTOR[:511], 0, "has 511 bytes"),
        (bytes(512), 0, "does not end with 55 AA"),
        (SECTOR, 0x100, "drive 0x100 does not fit DL"),
    ],
)
def test_what_is_no_boot_sector_is_refused(data: bytes, drive: int, text: str) -> None:
    with pytest.raises(LoadError, match=text):
        load_boot_sector(data, RAM, drive=drive)
