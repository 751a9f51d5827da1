"""loader/multiboot.py: multiboot 1 kernels and axvm's multiboot boot."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iced_x86 import Decoder, Formatter, FormatterSyntax

from pysim_vm.boot_plan import BootPlan, RamMap
from pysim_vm.errors import LoadError
from pysim_vm.loader.multiboot import (
    AXVM_BLOB_LISTING,
    Module,
    axvm_boot_blob,
    find_header,
    load_axvm_multiboot,
    load_multiboot,
)
from tests.elf_files import Part, build_elf

MIB = 1 << 20
RAM = RamMap.pc(16 * MIB)
MAGIC = 0x1BADB002


def header(flags: int, *addresses: int) -> bytes:
    return struct.pack(f"<III{len(addresses)}I", MAGIC, flags, -(MAGIC + flags) & 0xFFFFFFFF, *addresses)


def read(plan: BootPlan, gpa: int, size: int) -> bytes:
    """`size` bytes of guest memory as the plan leaves it."""
    for base, data in plan.writes:
        if base <= gpa < base + len(data):
            return data[gpa - base : gpa - base + size]
    raise AssertionError(f"nothing is written at {gpa:#x}")


def text(plan: BootPlan, gpa: int) -> bytes:
    return read(plan, gpa, 4096).split(b"\0")[0]


def kludge(load: int = 0x100000, load_end: int = 0, bss_end: int = 0, entry: int = 0x100020) -> bytes:
    """A flat kernel whose header is its first 32 bytes."""
    return header(1 << 16, 0x100000, load, load_end, bss_end, entry) + b"\xf4" * 32


def test_the_header_is_found_on_a_dword_boundary_with_a_right_checksum_only() -> None:
    wrong_sum = struct.pack("<III", MAGIC, 0, 1)
    data = b"\0" * 2 + header(0) + b"\0" * 2 + wrong_sum + header(3)
    found = find_header(data)
    assert found is not None and (found.offset, found.flags) == (28, 3)


def test_a_header_behind_the_first_8_kib_or_cut_by_them_is_none() -> None:
    assert find_header(bytes(8192 - 12) + header(0)) is not None
    assert find_header(bytes(8192 - 8) + header(0)) is None
    assert find_header(bytes(8192 - 12) + kludge()) is None


def test_an_elf_kernel_starts_with_the_multiboot_magic_and_information() -> None:
    data = build_elf(Part(header(3) + b"\xf4" * 4, 0x100000), entry=0x10000C, bits=32)
    plan = load_multiboot(data, RAM, name="kernel", cmdline="a b")
    assert (plan.start.mode, plan.start.rip) == ("protected", 0x10000C)
    assert (plan.start.regs["rax"], plan.start.regs["rbx"]) == (0x2BADB002, 0x6000)
    flags, lower, upper = struct.unpack("<III", read(plan, 0x6000, 12))
    assert (flags, lower, upper) == (1 << 0 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12, 639, 15 * 1024)
    assert text(plan, struct.unpack("<I", read(plan, 0x6010, 4))[0]) == b"kernel a b"
    assert text(plan, struct.unpack("<I", read(plan, 0x6040, 4))[0]) == b"pysim-vm"


def test_the_memory_map_has_one_entry_for_each_usable_range() -> None:
    plan = load_multiboot(kludge(), RAM)
    length, address = struct.unpack("<II", read(plan, 0x602C, 8))
    assert struct.unpack("<IQQIIQQI", read(plan, address, length)) == (
        *(20, 0, 0x9FC00, 1),
        *(20, MIB, 15 * MIB, 1),
    )


def test_the_framebuffer_is_the_text_screen() -> None:
    plan = load_multiboot(kludge(), RAM)
    assert struct.unpack("<QIIIBB", read(plan, 0x6058, 22)) == (0xB8000, 160, 80, 25, 16, 2)


def test_modules_lie_on_pages_behind_the_kernel_with_their_strings() -> None:
    data = kludge(bss_end=0x101800)
    plan = load_multiboot(data, RAM, modules=[Module("one x", b"1" * 5000), Module("two", b"2")])
    count, at = struct.unpack("<II", read(plan, 0x6014, 8))
    assert count == 2
    entries = [struct.unpack("<IIII", read(plan, at + 16 * index, 16)) for index in range(2)]
    assert [(start, end) for start, end, _, _ in entries] == [(0x102000, 0x103388), (0x104000, 0x104001)]
    assert [text(plan, string) for _, _, string, _ in entries] == [b"one x", b"two"]
    assert read(plan, 0x102000, 5000) == b"1" * 5000
    assert struct.unpack("<I", read(plan, 0x6000, 4))[0] & 1 << 3


def test_an_aout_kludge_places_the_image_by_its_own_addresses() -> None:
    prefix = bytes(0x40)
    data = prefix + header(1 << 16, 0x100040, 0x100020, 0x100070, 0x100100, 0x100064) + b"\xf4" * 64
    plan = load_multiboot(data, RAM)
    assert read(plan, 0x100020, 0x50) == data[0x20:0x70]
    assert (0x100070, 0x90) in plan.clears
    assert plan.start.rip == 0x100064


def test_a_kludge_without_ends_loads_the_whole_file() -> None:
    plan = load_multiboot(kludge(), RAM)
    assert read(plan, 0x100000, 1000) == kludge()
    assert plan.clears == ((0x530, 8),)  # the empty boot IDT alone


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"plain", "no multiboot header in its first 8192 bytes"),
        (header(1 << 3), "demands unknown features .flags 0x8."),
        (header(0), "no addresses, and the file is no ELF"),
        (kludge(load=0x100004), "at 0x100000 and the image at 0x100004"),
        (kludge(load=0xF0000), "which is impossible"),
        (kludge(load_end=0x200000), "the file has 0x40 bytes for it; the file is truncated"),
        (kludge(load_end=0x0FFFFF), "truncated"),
        (kludge(bss_end=0x100010), "ends bss at 0x100010, before the image's end 0x100040"),
        (kludge(entry=0x100040), "multiboot entry 0x100040 lies outside the image"),
        (kludge(bss_end=0xFFFFFFFF), "outside RAM"),
        (build_elf(Part(header(0), 0x100000), entry=0x500000, bits=32), "lies in no segment"),
        (
            build_elf(Part(header(0), 0x6000), entry=0x6000, bits=32),
            "multiboot information .* overlaps segment 0",
        ),
    ],
)
def test_a_kernel_that_cannot_boot_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(LoadError, match=reason) as caught:
        load_multiboot(data, RAM, name="xen.gz")
    assert str(caught.value).startswith("xen.gz") and "\n" not in str(caught.value)


def test_modules_and_strings_have_limits() -> None:
    with pytest.raises(LoadError, match=r"193 modules are too many .at most 192."):
        load_multiboot(kludge(), RAM, modules=[Module("m", b"x")] * 193)
    with pytest.raises(LoadError, match="no room in RAM for module 'big'"):
        load_multiboot(kludge(), RAM, modules=[Module("big file", bytes(16 * MIB))])
    with pytest.raises(LoadError, match="contains a NUL"):
        load_multiboot(kludge(), RAM, cmdline="a\0b")
    with pytest.raises(LoadError, match="at most 65536 fit"):
        load_multiboot(kludge(), RAM, cmdline="a" * 65536)


@given(st.binary(max_size=64), st.integers(0, 60))
def test_no_damage_to_a_header_escapes_as_another_exception(noise: bytes, at: int) -> None:
    data = bytearray(kludge() + bytes(64))
    data[at : at + len(noise)] = noise
    words = struct.unpack_from("<II", data)
    struct.pack_into("<III", data, 0, MAGIC, words[1], -(MAGIC + words[1]) & 0xFFFFFFFF)
    try:
        load_multiboot(bytes(data), RAM)
    except LoadError as error:
        assert "\n" not in str(error)


# --- axvm's boot --------------------------------------------------------------------------------------------


def test_every_line_of_the_blobs_listing_says_what_its_bytes_are() -> None:
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    formatter.uppercase_hex = formatter.branch_leading_zeros = formatter.small_hex_numbers_in_decimal = False
    formatter.space_after_operand_separator = True
    blob, at = axvm_boot_blob(), 0
    for bits, machine_code, line in AXVM_BLOB_LISTING:
        size = len(machine_code) // 2
        instruction = Decoder(bits, blob[at : at + size], ip=0x8000 + at).decode()
        assert (instruction.len, formatter.format(instruction)) == (size, line)
        at += size


def test_the_blob_keeps_axvms_size_and_patch_place() -> None:
    blob = axvm_boot_blob(info=0x11223344, kernel=0x55667788)
    assert len(blob) <= 126
    assert blob[0x3B:0x40] == b"\xbb\x44\x33\x22\x11"
    assert b"\xb9\x88\x77\x66\x55" in blob
    assert struct.unpack_from("<HI", blob, 0x60) == (23, 0x8048)


def test_axvms_boot_starts_the_blob_in_real_mode_with_mem_lower_639() -> None:
    plan = load_axvm_multiboot(b"\xf4", RAM)
    assert (plan.start.mode, plan.start.rip, plan.start.segments["cs"].base) == ("real", 0x8000, 0)
    assert struct.unpack("<III", read(plan, 0x6000, 12)) == (1 << 0 | 1 << 6, 639, 15 * 1024)
    assert struct.unpack("<II", read(plan, 0x602C, 8)) == (48, 0x6040)
    assert read(plan, 0x200000, 1) == b"\xf4"


def test_a_blob_of_the_users_is_not_patched() -> None:
    plan = load_axvm_multiboot(b"\xf4", RAM, bios=b"\x90" * 100, bios_address=0xF000, kernel_address=0x300000)
    assert plan.writes == ((0xF000, b"\x90" * 100), (0x300000, b"\xf4"))
    assert plan.start.rip == 0xF000


def test_axvms_boot_refuses_what_cannot_work() -> None:
    with pytest.raises(LoadError, match="kernel is empty"):
        load_axvm_multiboot(b"", RAM)
    with pytest.raises(LoadError, match="runs at 0x8000 only; give a bios_path"):
        load_axvm_multiboot(b"\xf4", RAM, bios_address=0x9000)
    with pytest.raises(LoadError, match="BIOS image is empty"):
        load_axvm_multiboot(b"\xf4", RAM, bios=b"")
    with pytest.raises(LoadError, match="boot blob at 0x8000-0x8065 overlaps the kernel"):
        load_axvm_multiboot(b"\xf4", RAM, kernel_address=0x8010)
