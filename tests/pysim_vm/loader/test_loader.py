"""loader.py: what a file is, and reading it."""

import os
from pathlib import Path

import pytest

from pysim_vm.boot_plan import RamMap
from pysim_vm.errors import LoadError
from pysim_vm.loader import LoadOptions, load, read_image, sniff
from tests.elf_files import PT_NOTE, Part, build_elf
from tests.guests import guest
from tests.pysim_vm.loader.test_linux import PVH_NOTE, VMLINUX, bzimage
from tests.pysim_vm.loader.test_multiboot import header, kludge

MIB = 1 << 20
SECTOR = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"
ROM = bytes(65536 - 16) + b"\xea\x5b\xe0\x00\xf0".ljust(16, b"\0")
PROGRAM = build_elf(Part(b"\xf4", 0x100000), entry=0x100000)


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        (PROGRAM, "elf"),
        (VMLINUX, "linux"),
        (bzimage(), "linux"),
        (build_elf(Part(b"\xf4" * 64, 0x1000000), Part(PVH_NOTE, kind=PT_NOTE), entry=0x1000000), "pvh"),
        (build_elf(Part(header(0), 0x100000), entry=0x100000, bits=32), "multiboot"),
        (kludge(), "multiboot"),
        (SECTOR, "boot-sector"),
        (SECTOR + bytes(1474560 - 512), "boot-sector"),
        (ROM, "firmware"),
        (kludge() + ROM[len(kludge()) :], "firmware"),
    ],
)
def test_a_file_is_known_by_its_contents(data: bytes, protocol: str) -> None:
    assert sniff(data) == protocol


def test_a_load_address_makes_an_unmarked_file_flat() -> None:
    assert sniff(b"\xf4", load_address=0x1000) == "flat"
    assert sniff(SECTOR, load_address=0x1000) == "flat"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xf4", "no mark of a guest .* give a load address"),
        (b"\x1f\x8b\x08\0", "gzip-compressed; unpack it with gunzip first"),
        (b"MZ" + bytes(100), "a Windows or EFI program"),
        (b"QFI\xfb", "qcow2 disk image"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (b"MZ" + bytes(0x36) + b"ARM\x64", "Linux kernel for AArch64"),
        (build_elf(Part(b"\xf4", 0x100000), entry=0, machine=183), "for AArch64"),
    ],
)
def test_what_is_no_guest_says_what_it_is(data: bytes, text: str) -> None:
    with pytest.raises(LoadError, match=text):
        sniff(data, "file")


def test_load_reads_plans_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "hello.elf"
    path.write_bytes(PROGRAM)
    plan = load(path, 16 * MIB)
    assert plan.protocol == "elf"
    assert plan.description.startswith("hello.elf: ELF program")


def test_ram_may_be_a_map(tmp_path: Path) -> None:
    path = tmp_path / "code.bin"
    path.write_bytes(b"\xf4")
    ram = RamMap.of([(0x8000_0000, MIB)])
    assert load(path, ram, LoadOptions(load_address=0x8000_0000)).start.rip == 0x8000_0000


def test_the_options_reach_their_protocols(tmp_path: Path) -> None:
    for name, data in (("kernel", bzimage()), ("initrd", b"cpio"), ("multi", kludge()), ("sector", SECTOR)):
        (tmp_path / name).write_bytes(data)
    initrd = tmp_path / "initrd"
    linux = load(
        tmp_path / "kernel", 64 * MIB, LoadOptions(cmdline="quiet", initrd=initrd, linux_entry="pvh")
    )
    assert "PVH note with an initrd of 4 bytes" in linux.description
    assert (0x20000, b"quiet\0") in linux.writes
    multiboot = load(tmp_path / "multi", 16 * MIB, LoadOptions(cmdline="x", modules=((initrd, "mod"),)))
    assert dict(multiboot.writes)[0x20000] == b"multi x\0pysim-vm\0mod\0"
    assert load(tmp_path / "sector", 16 * MIB, LoadOptions(drive=0)).start.regs["rdx"] == 0
    axvm = load(tmp_path / "multi", 16 * MIB, LoadOptions(protocol="axvm-multiboot"))
    assert (0x200000, kludge()) in axvm.writes
    blob = load(
        tmp_path / "multi", 16 * MIB, LoadOptions(protocol="axvm-multiboot", bios=initrd, bios_address=0x9000)
    )
    assert (0x9000, b"cpio") in blob.writes
    flat = LoadOptions(protocol="flat", load_address=0x1000, entry_point=0x1010, mode="long")
    assert load(tmp_path / "multi", 16 * MIB, flat).start.rip == 0x1010


def test_symbols_may_come_from_another_file(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(VMLINUX)
    (tmp_path / "System.map").write_text("ffffffff81000000 T _text\n")
    plan = load(tmp_path / "kernel", 64 * MIB, LoadOptions(symbols=tmp_path / "System.map"))
    assert plan.symbols is not None and plan.symbols.address_of("_text") == 0xFFFFFFFF81000000


def test_a_flat_image_needs_an_address_and_a_protocol_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "code.bin"
    path.write_bytes(b"\xf4")
    with pytest.raises(LoadError, match="raw image says nothing about its place"):
        load(path, MIB, LoadOptions(protocol="flat"))
    with pytest.raises(LoadError, match="boot protocol 'uefi' is unknown; use one of flat, boot-sector"):
        load(path, MIB, LoadOptions(protocol="uefi"))  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"guest file .*/none cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "none")
    with pytest.raises(LoadError, match=r"initrd .* cannot be read \(Is a directory\)"):
        read_image(tmp_path, "initrd")
    with pytest.raises(LoadError, match="cannot be read"):
        read_image("a\0b")
    (tmp_path / "empty").touch()
    with pytest.raises(LoadError, match="is empty"):
        read_image(tmp_path / "empty")


def test_an_endless_file_is_not_read() -> None:
    with pytest.raises(LoadError, match="is no regular file"):
        read_image("/dev/zero")


def test_a_file_over_2_gib_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, (2 << 30) + 1)
    with pytest.raises(LoadError, match="has 2147483649 bytes, at most 2147483648"):
        read_image(path)


@pytest.mark.guest
@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("bios.bin", "firmware"),
        ("u-boot-x86.rom", "firmware"),
        ("u-boot-x86_64.rom", "firmware"),
        ("memtest86+x64.bin", "linux"),
        ("vmlinuz-cloud-amd64", "linux"),
    ],
)
def test_debians_guests_are_recognised(name: str, protocol: str) -> None:
    assert sniff(guest(name).read_bytes(), name) == protocol
