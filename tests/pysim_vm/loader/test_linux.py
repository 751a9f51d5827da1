"""loader/linux.py: bzImage, vmlinux, PVH, payloads and the zero page."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import lz4.block  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pysim_vm.boot_plan import BootPlan, RamMap
from pysim_vm.errors import LoadError
from pysim_vm.layout import LINUX_SETUP
from pysim_vm.loader import linux as loader_linux
from pysim_vm.loader.elf import parse_elf
from pysim_vm.loader.linux import (
    LinuxBoot,
    UnsupportedPayloadError,
    is_vmlinux,
    load_linux,
    load_pvh,
    parse_bzimage,
    unpack_payload,
)
from tests.elf_files import PT_NOTE, Part, build_elf
from tests.guests import guest

MIB = 1 << 20
RAM = RamMap.pc(64 * MIB)
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
PVH_NOTE = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", 0x1000010)
TEXT = b"Linux version 6.1.0-test (gcc)\0".ljust(0x1000, b"\xf4")
VMLINUX = build_elf(
    Part(TEXT, 0x1000000, vaddr=KERNEL_MAP + 0x1000000, memory_size=0x3000),
    Part(PVH_NOTE, kind=PT_NOTE),
    entry=0x1000000,
)


def size_of(data: bytes) -> bytes:
    return struct.pack("<I", len(data))


def lz4_legacy(data: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += size_of(block) + block
    return out + size_of(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4_legacy,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data) + size_of(data),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + size_of(data),
    "bzip2": lambda data: bz2.compress(data) + size_of(data),
    "zstd": lambda data: zstandard.compress(data) + size_of(data),
}


def bzimage(
    payload: bytes = PACKERS["gzip"](VMLINUX),
    *,
    version: int = 0x020F,
    setup_sects: int = 2,
    loadflags: int = 1,
    xloadflags: int = 1,
    cmdline_size: int = 255,
    initrd_addr_max: int = 0x7FFFFFFF,
    init_size: int = 0x100000,
    payload_length: int | None = None,
) -> bytes:
    """A bzImage whose stub is 0x300 bytes of HLT in front of the payload."""
    setup = bytearray((setup_sects + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x202] = b"\x55\xaa\xeb\x66"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<H", setup, 0x20E, 0x100)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<IBBHI", setup, 0x230, 0x200000, 1, 21, xloadflags, cmdline_size)
    length = len(payload) if payload_length is None else payload_length
    struct.pack_into("<II", setup, 0x248, 0x300, length)
    struct.pack_into("<QI", setup, 0x258, 0x1000000, init_size)
    setup[0x300:0x310] = b"6.1.0-test (x) \0"
    return bytes(setup) + b"\xf4" * 0x300 + payload


def read(plan: BootPlan, gpa: int, size: int) -> bytes:
    """`size` bytes of guest memory as the plan leaves it."""
    for base, data in plan.writes:
        if base <= gpa < base + len(data):
            return data[gpa - base : gpa - base + size]
    raise AssertionError(f"nothing is written at {gpa:#x}")


# --- payloads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PACKERS)
def test_every_compression_unpacks_to_the_same_kernel(method: str) -> None:
    data = bytes(range(256)) * 40000  # two LZ4 blocks, ten pieces
    image = parse_bzimage(bzimage(PACKERS[method](data), init_size=len(data)), "vmlinuz")
    assert unpack_payload(image) == data


@pytest.mark.parametrize("method", PACKERS)
def test_a_payload_that_unpacks_to_more_than_it_claims_is_stopped(method: str) -> None:
    packed = PACKERS[method](bytes(4 * MIB))[:-4] + struct.pack("<I", 4096)
    with pytest.raises(LoadError, match=r"unpacks to more than the 0x1000 bytes|does not unpack"):
        unpack_payload(parse_bzimage(bzimage(packed), "vmlinuz"))


@pytest.mark.parametrize("method", PACKERS)
def test_a_truncated_payload_is_damaged(method: str) -> None:
    packed = PACKERS[method](VMLINUX)
    cut = packed[: len(packed) // 2] + size_of(VMLINUX)
    with pytest.raises(LoadError, match="the file is damaged"):
        unpack_payload(parse_bzimage(bzimage(cut), "vmlinuz"))


def test_a_payload_may_not_claim_more_than_init_size() -> None:
    with pytest.raises(LoadError, match=r"claims to unpack to 0x.* more than the 0x1000 the kernel reserves"):
        unpack_payload(parse_bzimage(bzimage(init_size=0x1000), "vmlinuz"))


@given(st.sampled_from(sorted(PACKERS)), st.binary(min_size=1, max_size=8), st.floats(0, 1))
def test_no_damage_to_a_payload_escapes_as_another_exception(method: str, noise: bytes, where: float) -> None:
    packed = bytearray(PACKERS[method](VMLINUX))
    at = 8 + int(where * (len(packed) - 8 - len(noise)))
    packed[at : at + len(noise)] = noise
    try:
        load_linux(bzimage(bytes(packed)), RAM)
    except LoadError as error:
        assert "\n" not in str(error)


def without_lz4(module: str) -> ModuleType:
    raise ImportError(module)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_linux, "import_module", without_lz4)
    with pytest.raises(
        UnsupportedPayloadError, match=r"LZ4, .* lz4 is missing; run `pip install pysim-vm\[linux\]`"
    ):
        load_linux(bzimage(PACKERS["lz4"](VMLINUX)), RAM)


@pytest.mark.parametrize(("xloadflags", "rip", "mode"), [(1, 0x100200, "long"), (0, 0x100000, "protected")])
def test_a_missing_package_falls_back_to_the_stub_when_asked(
    monkeypatch: pytest.MonkeyPatch, xloadflags: int, rip: int, mode: str
) -> None:
    monkeypatch.setattr(loader_linux, "import_module", without_lz4)
    image = bzimage(PACKERS["lz4"](VMLINUX), xloadflags=xloadflags)
    start = load_linux(image, RAM, LinuxBoot(fall_back_to_stub=True)).start
    assert (start.rip, start.mode) == (rip, mode)


def test_a_damaged_payload_does_not_fall_back() -> None:
    packed = PACKERS["gzip"](VMLINUX)[:100] + size_of(VMLINUX)
    with pytest.raises(LoadError, match="damaged"):
        load_linux(bzimage(packed), RAM, LinuxBoot(fall_back_to_stub=True))


def test_lzo_is_left_to_the_stub() -> None:
    with pytest.raises(
        UnsupportedPayloadError, match="starts with 89 4c 5a 4f, a compression this host does not know"
    ):
        load_linux(bzimage(b"\x89LZO\0\r\n\x1a\n"), RAM)


# --- entries ------------------------------------------------------------------------------------------------


def test_auto_enters_the_unpacked_vmlinux_in_64_bit_mode() -> None:
    plan = load_linux(bzimage(), RAM, LinuxBoot(cmdline="console=ttyS0"), name="vmlinuz")
    assert (plan.start.mode, plan.start.rip) == ("long", 0x1000000)
    assert (plan.start.regs["rsi"], plan.start.regs["rsp"], plan.start.regs["rflags"]) == (0x7000, 0x8FF0, 2)
    assert read(plan, 0x1000000, 0x1000) == TEXT
    assert (0x1001000, 0x2000) in plan.clears
    assert read(plan, 0x20000, 14) == b"console=ttyS0\0"
    assert "6.1.0-test" in plan.description


def test_the_zero_page_of_a_direct_boot_holds_what_is_needed_and_nothing_else() -> None:
    plan = load_linux(VMLINUX, RAM, LinuxBoot(initrd=b"cpio" * 2000))
    expected = bytearray(4096)
    expected[0x1E8] = 2
    expected[0x1FE:0x200] = b"\x55\xaa"
    expected[0x202:0x206] = b"HdrS"
    expected[0x210] = 0xFF
    struct.pack_into("<II", expected, 0x218, 64 * MIB - 8192, 8000)
    struct.pack_into("<I", expected, 0x228, 0x20000)
    struct.pack_into("<I", expected, 0x238, 2047)
    struct.pack_into("<QQI", expected, 0x2D0, 0, 0x9FC00, 1)
    struct.pack_into("<QQI", expected, 0x2E4, MIB, 63 * MIB, 1)
    assert read(plan, 0x7000, 4096) == expected
    assert read(plan, 64 * MIB - 8192, 8000) == b"cpio" * 2000


def test_the_text_screen_and_the_rsdp_are_announced_when_asked() -> None:
    page = read(load_linux(VMLINUX, RAM, LinuxBoot(text_screen=True, rsdp=0xE0000)), 0x7000, 4096)
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    assert (page[0x06], page[0x07], page[0x0E], page[0x0F], page[0x10]) == (3, 80, 25, 1, 16)


def test_ram_above_4_gib_is_a_third_e820_entry() -> None:
    page = read(load_linux(VMLINUX, RamMap.pc(4 << 30)), 0x7000, 4096)
    assert page[0x1E8] == 3
    assert struct.unpack_from("<QQI", page, 0x2D0 + 40) == (4 << 30, 1 << 30, 1)


def test_pvh_enters_by_the_note_with_the_start_info_in_ebx() -> None:
    plan = load_linux(bzimage(), RAM, LinuxBoot(entry="pvh", cmdline="quiet", initrd=b"cpio", rsdp=0xE0000))
    assert (plan.start.mode, plan.start.rip, plan.start.regs["rbx"]) == ("protected", 0x1000010, 0x6000)
    assert (plan.start.cr0, plan.start.cr4) == (0x11, 0)
    info = struct.unpack("<IIIIQQQQII", read(plan, 0x6000, 56))
    assert info == (0x336EC578, 1, 0, 1, 0x6040, 0x20000, 0xE0000, 0x7000, 2, 0)
    assert struct.unpack("<QQQQ", read(plan, 0x6040, 32)) == (64 * MIB - 4096, 4, 0, 0)
    assert struct.unpack("<QQIIQQII", read(plan, 0x7000, 48)) == (0, 0x9FC00, 1, 0, MIB, 63 * MIB, 1, 0)


def test_a_pvh_kernel_need_not_be_linux() -> None:
    elf = build_elf(Part(b"\xf4" * 64, 0x1000000), Part(PVH_NOTE, kind=PT_NOTE), entry=0x1000000)
    plan = load_pvh(elf, RAM)
    assert (plan.protocol, plan.start.rip) == ("pvh", 0x1000010)
    assert struct.unpack("<IIIIQ", read(plan, 0x6000, 24))[3:] == (0, 0)


def test_the_32_bit_entry_gets_the_setup_header_of_the_file() -> None:
    data = bzimage()
    plan = load_linux(data, RAM, LinuxBoot(entry="stub32", initrd=b"cpio"))
    assert (plan.start.mode, plan.start.rip, plan.start.regs["rsi"]) == ("protected", 0x100000, 0x7000)
    assert (plan.start.regs["rbp"], plan.start.regs["rdi"], plan.start.regs["rbx"]) == (0, 0, 0)
    assert plan.start.segments["cs"][:1] == (0x10,) and plan.start.segments["ds"][:1] == (0x18,)
    page = read(plan, 0x7000, 4096)
    assert page[0x22C:0x268] == data[0x22C:0x268]
    assert page[0x268:0x2D0] == bytes(0x68)  # the header ends at 0x202 + 0x66: no setup code is copied
    assert (page[0x210], page[0x211]) == (0xFF, 1)
    assert struct.unpack_from("<III", page, 0x214) == (0x100000, 64 * MIB - 4096, 4)
    assert read(plan, 0x100000, 4) == b"\xf4" * 4


def test_the_64_bit_entry_is_0x200_behind_the_32_bit_one() -> None:
    start = load_linux(bzimage(), RAM, LinuxBoot(entry="stub64")).start
    assert (start.mode, start.rip, start.regs["rsi"]) == ("long", 0x100200, 0x7000)


def test_the_real_mode_entry_is_the_setups_second_sector() -> None:
    data = bzimage()
    plan = load_linux(data, RAM, LinuxBoot(entry="real", cmdline="quiet", initrd=b"cpio"))
    assert plan.start.segments["cs"] == (0x1020, 0x10200, 0xFFFF, 0x9B)
    assert plan.start.segments["ss"].selector == 0x1000
    assert (plan.start.rip, plan.start.regs["rsp"]) == (0, 0xE000)
    setup = read(plan, LINUX_SETUP, 0x600)
    assert (setup[0x210], setup[0x211]) == (0xFF, 0x81)
    assert struct.unpack_from("<H", setup, 0x224) == (0xDE00,)
    assert struct.unpack_from("<I", setup, 0x228) == (0x20000,)
    assert struct.unpack_from("<II", setup, 0x218) == (64 * MIB - 4096, 4)
    assert setup[0x300:0x600] == data[0x300:0x600]
    assert read(plan, 0xF0000, 1) == b"\xcf"  # the tiny BIOS


def test_a_kernel_without_a_payload_is_entered_at_32_bits() -> None:
    assert load_linux(bzimage(b"\xf4" * 512, payload_length=0), RAM).start.rip == 0x100000


def test_a_32_bit_vmlinux_is_entered_in_protected_mode() -> None:
    elf = build_elf(Part(TEXT, 0x1000000, vaddr=0xC1000000), entry=0x1000000, bits=32)
    start = load_linux(elf, RAM).start
    assert (start.mode, start.rip, start.regs["rsi"]) == ("protected", 0x1000000, 0x7000)
    with pytest.raises(LoadError, match="32-bit kernel, which has no 64-bit entry"):
        load_linux(elf, RAM, LinuxBoot(entry="long"))


def test_linux_is_told_from_other_programs_by_banner_and_address() -> None:
    program = build_elf(Part(TEXT, 0x1000000), entry=0x1000000)
    other = build_elf(Part(b"Linux version %s".ljust(64), 0x1000000, vaddr=KERNEL_MAP), entry=0x1000000)
    assert is_vmlinux(VMLINUX, parse_elf(VMLINUX, "a"))
    assert not is_vmlinux(program, parse_elf(program, "b"))
    assert not is_vmlinux(other, parse_elf(other, "c"))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"hello", "no bzImage .no HdrS at 0x202."),
        (bzimage()[:0x210], "it is truncated"),
        (bzimage()[:0x600], "it is truncated"),
        (bzimage()[:-1], "the payload at 0x300 .* it is truncated"),
        (bzimage(version=0x0201), "boot protocol 2.01, below 2.02"),
        (bzimage(loadflags=0), "is a zImage"),
        (bzimage(setup_sects=64), "setup of 0x8200 bytes does not fit"),
        (bzimage(PACKERS["gzip"](b"no ELF inside")), "is no ELF file"),
    ],
)
def test_a_file_that_is_no_usable_kernel_is_refused_in_one_sentence(data: bytes, text: str) -> None:
    with pytest.raises(LoadError, match=text) as caught:
        load_linux(data, RAM, name="vmlinuz")
    assert str(caught.value).startswith("vmlinuz") and "\n" not in str(caught.value)


def test_the_command_line_is_limited_by_the_kernel() -> None:
    assert load_linux(bzimage(), RAM, LinuxBoot(cmdline="x" * 255)).start.rip == 0x1000000
    with pytest.raises(LoadError, match="command line has 256 bytes, this kernel takes 255"):
        load_linux(bzimage(), RAM, LinuxBoot(cmdline="x" * 256))
    with pytest.raises(LoadError, match="contains a NUL"):
        load_linux(bzimage(), RAM, LinuxBoot(cmdline="a\0b"))


def test_an_old_kernel_takes_255_bytes_whatever_its_later_fields_say() -> None:
    assert parse_bzimage(bzimage(version=0x0205, cmdline_size=4000), "old").cmdline_size == 255


def test_too_little_ram_for_the_kernel_says_how_much_it_needs() -> None:
    with pytest.raises(
        LoadError, match=r"segment 0 at 0x1000000-0x1002fff lies outside RAM .* at least 17 MiB"
    ):
        load_linux(bzimage(), RamMap.pc(16 * MIB))
    with pytest.raises(LoadError, match=r"unpacking area at .* at least 17 MiB"):
        load_linux(bzimage(), RamMap.pc(16 * MIB), LinuxBoot(entry="stub32"))


def test_an_initrd_that_does_not_fit_says_how_much_ram_would_do() -> None:
    with pytest.raises(LoadError, match=r"initrd of 0x3000000 bytes does not fit .* at least 65 MiB of RAM"):
        load_linux(bzimage(), RAM, LinuxBoot(initrd=bytes(48 * MIB)))


def test_the_initrd_stays_below_the_address_the_kernel_reads() -> None:
    plan = load_linux(bzimage(initrd_addr_max=0x1FFFFFF), RAM, LinuxBoot(initrd=b"cpio"))
    assert read(plan, 0x1FFF000, 4) == b"cpio"
    with pytest.raises(LoadError, match="use a smaller one"):
        load_linux(bzimage(initrd_addr_max=0x1FFFFFF), RAM, LinuxBoot(initrd=bytes(20 * MIB)))


@pytest.mark.parametrize(
    ("data", "entry", "text"),
    [
        (bzimage(xloadflags=0), "stub64", "XLF_KERNEL_64 is clear"),
        (VMLINUX, "stub32", "vmlinux, which has no stub32 entry"),
        (VMLINUX, "real", "vmlinux, which has no real entry"),
        (bzimage(), "efi", "Linux entry 'efi' is unknown"),
        (build_elf(Part(TEXT, 0x1000000), entry=0x1000000), "pvh", "no PVH note"),
    ],
)
def test_an_entry_the_kernel_does_not_have_is_refused(data: bytes, entry: str, text: str) -> None:
    with pytest.raises(LoadError, match=text):
        load_linux(data, RAM, LinuxBoot(entry=entry))  # type: ignore[arg-type]


@given(st.data())
def test_no_damage_to_a_setup_header_escapes_as_another_exception(data: st.DataObject) -> None:
    image = bytearray(bzimage())
    for _ in range(data.draw(st.integers(1, 6))):
        image[data.draw(st.integers(0x1F0, 0x26F))] = data.draw(st.integers(0, 255))
    entry = data.draw(st.sampled_from(["auto", "long", "pvh", "stub32", "stub64", "real"]))
    try:
        load_linux(bytes(image), RAM, LinuxBoot(entry=entry, initrd=b"cpio"))  # type: ignore[arg-type]
    except LoadError as error:
        assert "\n" not in str(error)


# --- real kernels -------------------------------------------------------------------------------------------


@pytest.mark.guest
def test_debians_cloud_kernel_unpacks_and_fits_64_mib_with_an_initrd() -> None:
    data = Path(guest("vmlinuz-cloud-amd64")).read_bytes()
    plan = load_linux(data, RAM, LinuxBoot(cmdline="console=ttyS0", initrd=bytes(MIB)))
    assert (plan.start.mode, plan.start.rip) == ("long", 0x1000000)
    assert "6.1.0" in plan.description
    assert sum(len(part) for gpa, part in plan.writes if gpa >= 0x1000000) > 40 * MIB


@pytest.mark.guest
@pytest.mark.parametrize(("entry", "rip"), [("pvh", 0x1000850), ("stub32", 0x100000), ("stub64", 0x100200)])
def test_debians_cloud_kernel_has_every_entry(entry: str, rip: int) -> None:
    data = Path(guest("vmlinuz-cloud-amd64")).read_bytes()
    ram = RamMap.pc(128 * MIB)
    start = load_linux(data, ram, LinuxBoot(entry=entry)).start  # type: ignore[arg-type]
    # The PVH entry moves with the kernel's version; its page does not.
    assert start.rip & ~0xFFF == rip & ~0xFFF


@pytest.mark.guest
@pytest.mark.parametrize("name", ["memtest86+x64.bin", "memtest86+ia32.bin"])
def test_memtest_is_a_kernel_without_payload(name: str) -> None:
    plan = load_linux(guest(name).read_bytes(), RAM)
    assert (plan.protocol, plan.start.mode, plan.start.rip) == ("linux", "protected", 0x100000)
