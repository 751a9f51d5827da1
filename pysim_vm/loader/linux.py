"""Linux loader: bzImage and vmlinux, by every entry the x86 boot protocol has, and PVH.

No EFI entry: a kernel that needs one is booted by a firmware. Field names and figures are those of the
kernel's Documentation/arch/x86/boot.rst and zero-page.rst, and of Xen's hvm_start_info.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Final, Literal

from pysim_vm.boot_plan import (
    BootPlan,
    CpuStart,
    Placement,
    RamMap,
    long_start,
    protected_start,
    real_start,
)
from pysim_vm.errors import LoadError
from pysim_vm.layout import (
    COMMAND_LINE,
    FOUR_GIB,
    HIGH_MEMORY,
    LINUX_SETUP,
    LINUX_SETUP_HEAP_END,
    MIB,
    PAGE_SIZE,
    PVH_MEMORY_MAP,
    PVH_MODULE_LIST,
    PVH_START_INFO,
    VGA_TEXT_COLUMNS,
    VGA_TEXT_ROWS,
    ZERO_PAGE,
)
from pysim_vm.loader import tiny_bios
from pysim_vm.loader.elf import ELF_MAGIC, ElfImage, parse_elf
from pysim_vm.symbols import SymbolTable

Entry = Literal["auto", "long", "pvh", "stub32", "stub64", "real"]

# Offsets in the first sector of a bzImage; the zero page has the same at the same place.
SETUP_SECTS: Final = 0x1F1
BOOT_FLAG: Final = 0x1FE
JUMP_OFFSET: Final = 0x201  # low byte of the jump: the setup header ends that many bytes behind 0x202
HEADER_MAGIC_OFFSET: Final = 0x202
VERSION: Final = 0x206
KERNEL_VERSION: Final = 0x20E
TYPE_OF_LOADER: Final = 0x210
LOADFLAGS: Final = 0x211
CODE32_START: Final = 0x214
RAMDISK_IMAGE: Final = 0x218
RAMDISK_SIZE: Final = 0x21C
HEAP_END_PTR: Final = 0x224
CMD_LINE_PTR: Final = 0x228
INITRD_ADDR_MAX: Final = 0x22C
KERNEL_ALIGNMENT: Final = 0x230
RELOCATABLE_KERNEL: Final = 0x234
XLOADFLAGS: Final = 0x236
CMDLINE_SIZE: Final = 0x238
PAYLOAD_OFFSET: Final = 0x248
PAYLOAD_LENGTH: Final = 0x24C
PREF_ADDRESS: Final = 0x258
INIT_SIZE: Final = 0x260
HEADER_END: Final = 0x268  # of boot protocol 2.12; read only as far as the header itself reaches
# Offsets in the zero page alone.
ACPI_RSDP_ADDR: Final = 0x070
E820_ENTRIES: Final = 0x1E8
E820_TABLE: Final = 0x2D0
E820_ENTRIES_MAX: Final = 128
E820_ENTRY: Final = struct.Struct("<QQI")
E820_RAM: Final = 1

HEADER_MAGIC: Final = b"HdrS"
BOOT_FLAG_MAGIC: Final = 0xAA55
SECTOR_SIZE: Final = 512
LOADER_UNDEFINED: Final = 0xFF  # type_of_loader: no number assigned
LOADED_HIGH: Final = 1 << 0
CAN_USE_HEAP: Final = 1 << 7
XLF_KERNEL_64: Final = 1 << 0
ENTRY_64_OFFSET: Final = 0x200  # 64-bit entry, from the start of the protected-mode code
SETUP_SIZE_MAX: Final = 0x8000  # boot.rst: the setup has at most 32 KiB, its heap and stack follow
VMLINUX_CMDLINE_SIZE: Final = 2047  # COMMAND_LINE_SIZE of x86 without its NUL
OLD_CMDLINE_SIZE: Final = 255  # boot protocol before 2.06
VMLINUX_INITRD_ADDR_MAX: Final = 0x7FFF_FFFF
OLD_INITRD_ADDR_MAX: Final = 0x37FF_FFFF  # boot protocol before 2.03

UNPACKED_SIZE_MAX: Final = 1 << 30  # no kernel is larger; init_size bounds it closer
_DECODER_MEMORY_MAX: Final = 256 << 20  # xz: the kernel's build uses dictionaries up to 128 MiB
_CHUNK: Final = 1 << 20
_LZ4_LEGACY_MAGIC: Final = 0x184C2102
_LZ4_BLOCK_MAX: Final = 8 << 20  # legacy frames cut the data into blocks of 8 MiB
_INSTALL_HINT: Final = "run `pip install pysim-vm[linux]`, or allow the kernel's own stub to unpack it"

START_INFO: Final = struct.Struct("<IIIIQQQQII")  # hvm_start_info, version 1
START_MAGIC: Final = 0x336EC578
MODLIST_ENTRY: Final = struct.Struct("<QQQQ")
MEMMAP_ENTRY: Final = struct.Struct("<QQII")

_BANNER: Final = b"Linux version "
_BANNER_SIZE_MAX: Final = 60
_KERNEL_SPACE_MIN: Final = 0x4000_0000  # lowest PAGE_OFFSET of i386; x86-64 links at 0xffffffff80000000


class UnsupportedPayloadError(LoadError):
    """The host cannot unpack this kernel's payload; the kernel's own stub could."""


@dataclass(frozen=True, slots=True)
class LinuxBoot:
    """How a kernel is to be started.

    `entry`: "long" enters the unpacked vmlinux in 64-bit mode, "pvh" by its Xen note; "stub32", "stub64"
    and "real" enter the bzImage itself and let it unpack in the guest. "auto" takes "long" where the kernel
    is a 64-bit one that can be unpacked here, the 32-bit entry otherwise; with `fall_back_to_stub` also
    where only a package is missing. `rsdp` is the address of the ACPI root pointer, 0 for none.
    `text_screen` announces the 80x25 VGA text screen in the zero page.
    """

    cmdline: str = ""
    initrd: bytes | None = None
    entry: Entry = "auto"
    fall_back_to_stub: bool = False
    rsdp: int = 0
    text_screen: bool = False


@dataclass(frozen=True, slots=True)
class BzImage:
    """The setup header of a bzImage, checked against the file. Sizes and addresses in bytes."""

    name: str
    data: bytes
    setup_size: int
    header_end: int
    version: int
    xloadflags: int
    cmdline_size: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: bool
    payload_offset: int
    payload_length: int
    pref_address: int
    init_size: int
    kernel_version: str

    @property
    def kernel(self) -> bytes:
        """The protected-mode part: the unpacking stub and the payload."""
        return self.data[self.setup_size :]

    @property
    def payload(self) -> bytes:
        """The compressed vmlinux; empty when the kernel has none or does not say where it is."""
        start = self.setup_size + self.payload_offset
        return self.data[start : start + self.payload_length]


def is_bzimage(data: bytes) -> bool:
    """Whether a file has Linux's boot flag and setup header magic."""
    return (
        data[BOOT_FLAG : BOOT_FLAG + 2] == b"\x55\xaa"
        and data[HEADER_MAGIC_OFFSET : HEADER_MAGIC_OFFSET + 4] == HEADER_MAGIC
    )


def is_vmlinux(data: bytes, elf: ElfImage) -> bool:
    """Whether an ELF file is a Linux kernel: linked into kernel space and carrying its version banner."""
    in_kernel_space = any(
        segment.vaddr >= _KERNEL_SPACE_MIN and segment.vaddr != segment.paddr for segment in elf.segments
    )
    return in_kernel_space and _banner(data) != ""


def parse_bzimage(data: bytes, name: str) -> BzImage:
    """Reads the setup header. Raises LoadError for another kind of file, an old protocol and truncation."""
    if not is_bzimage(data):
        raise LoadError(f"{name} is no bzImage (no HdrS at 0x202); name a Linux kernel image")
    version = int.from_bytes(data[VERSION : VERSION + 2], "little")
    if version < 0x0202:
        raise LoadError(
            f"{name} has boot protocol {version >> 8}.{version & 0xFF:02}, below 2.02; use a newer kernel"
        )
    header_end = HEADER_MAGIC_OFFSET + data[JUMP_OFFSET]
    if len(data) < max(header_end, 2 * SECTOR_SIZE):
        raise LoadError(f"{name}: the setup header ends behind the file's {len(data)} bytes; it is truncated")
    # Fields behind the header's end belong to a later protocol: they read as zero, not as the setup's code.
    header = data[:header_end].ljust(max(header_end, HEADER_END), b"\0")

    def number(offset: int, size: int, since: int) -> int:
        return int.from_bytes(header[offset : offset + size], "little") if version >= since else 0

    if not header[LOADFLAGS] & LOADED_HIGH:
        raise LoadError(f"{name} is a zImage, loaded below 1 MiB; use a bzImage")
    setup_size = ((header[SETUP_SECTS] or 4) + 1) * SECTOR_SIZE  # boot.rst: 0 means 4
    if setup_size > SETUP_SIZE_MAX or setup_size >= len(data):
        raise LoadError(
            f"{name}: a setup of {setup_size:#x} bytes does not fit a file of {len(data):#x}; it is truncated"
        )
    image = BzImage(
        name=name,
        data=data,
        setup_size=setup_size,
        header_end=header_end,
        version=version,
        xloadflags=number(XLOADFLAGS, 2, 0x020C),
        cmdline_size=number(CMDLINE_SIZE, 4, 0x0206) or OLD_CMDLINE_SIZE,
        initrd_addr_max=number(INITRD_ADDR_MAX, 4, 0x0203) or OLD_INITRD_ADDR_MAX,
        kernel_alignment=number(KERNEL_ALIGNMENT, 4, 0x0205) or 1,
        relocatable=number(RELOCATABLE_KERNEL, 1, 0x0205) != 0,
        payload_offset=number(PAYLOAD_OFFSET, 4, 0x0208),
        payload_length=number(PAYLOAD_LENGTH, 4, 0x0208),
        pref_address=number(PREF_ADDRESS, 8, 0x020A),
        init_size=number(INIT_SIZE, 4, 0x020A),
        kernel_version=_setup_string(data, number(KERNEL_VERSION, 2, 0x0200), setup_size),
    )
    if image.setup_size + image.payload_offset + image.payload_length > len(data):
        raise LoadError(
            f"{name}: the payload at {image.payload_offset:#x} of {image.payload_length:#x} bytes ends "
            f"behind the file's {len(data):#x} bytes; it is truncated"
        )
    return image


def _setup_string(data: bytes, pointer: int, setup_size: int) -> str:
    start = pointer + SECTOR_SIZE
    if pointer == 0 or start >= setup_size:
        return ""
    text = data[start : start + 256].split(b"\0")[0].split(b" ")[0]
    return text[:_BANNER_SIZE_MAX].decode("ascii", "replace")


def _banner(data: bytes) -> str:
    """The release in the kernel's banner "Linux version 6.1.0 (...)", or an empty string."""
    at = data.find(_BANNER)
    while at >= 0:
        release = data[at + len(_BANNER) : at + len(_BANNER) + _BANNER_SIZE_MAX].split(b" ")[0]
        if release[:1].isdigit() and release.isascii():
            return release.decode("ascii", "replace")
        at = data.find(_BANNER, at + 1)
    return ""


def unpack_payload(image: BzImage) -> bytes:
    """The vmlinux inside a bzImage: LZ4, gzip, xz, lzma, bzip2 or zstd.

    The result is bounded by the kernel's init_size and by 1 GiB, whatever the payload claims. Raises
    UnsupportedPayloadError when the host lacks the unpacker, LoadError when the payload is damaged.
    """
    payload = image.payload
    name = image.name
    if len(payload) < 8:
        raise UnsupportedPayloadError(f"{name} holds no payload to unpack; enter it by its stub")
    blocks = _unpacker(payload, name)
    limit = min(image.init_size or UNPACKED_SIZE_MAX, UNPACKED_SIZE_MAX)
    # The build appends the unpacked size to every format but gzip, which ends with it anyway.
    expected = int.from_bytes(payload[-4:], "little")
    if expected > limit:
        raise LoadError(
            f"{name}: the payload claims to unpack to {expected:#x} bytes, more than the {limit:#x} "
            "the kernel reserves; the file is damaged"
        )
    unpacked = bytearray()
    try:
        for block in blocks:
            unpacked += block
            if len(unpacked) > expected:
                break
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:
        raise LoadError(f"{name}: the payload does not unpack ({error}); the file is damaged") from error
    if len(unpacked) != expected:
        raise LoadError(
            f"{name}: the payload unpacks to {'more' if len(unpacked) > expected else 'less'} than the "
            f"{expected:#x} bytes it claims; the file is damaged"
        )
    return bytes(unpacked)


def _unpacker(payload: bytes, name: str) -> Iterator[bytes]:
    """The unpacked payload in pieces of bounded size."""
    body = payload[:-4]
    if payload.startswith(b"\x1f\x8b"):
        return _inflate(payload)
    if payload.startswith(b"\xfd7zXZ\0"):
        return _feed(lzma.LZMADecompressor(lzma.FORMAT_XZ, _DECODER_MEMORY_MAX), body)
    if payload.startswith(b"\x5d\x00\x00"):
        return _feed(lzma.LZMADecompressor(lzma.FORMAT_ALONE, _DECODER_MEMORY_MAX), body)
    if payload.startswith(b"BZh"):
        return _feed(bz2.BZ2Decompressor(), body)
    if payload.startswith(_LZ4_LEGACY_MAGIC.to_bytes(4, "little")):
        return _unpack_lz4(body, _optional("lz4.block", "LZ4", name))
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _unpack_zstd(body, _optional("zstandard", "zstd", name))
    raise UnsupportedPayloadError(
        f"{name}: the payload starts with {payload[:4].hex(' ')}, a compression this host does not know; "
        "enter the kernel by its stub"
    )


def _optional(module: str, method: str, name: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        package = module.split(".", maxsplit=1)[0]
        raise UnsupportedPayloadError(
            f"{name} is packed with {method}, and the Python package {package} is missing; {_INSTALL_HINT}"
        ) from None


def _inflate(payload: bytes) -> Iterator[bytes]:
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    pending = payload
    while not decoder.eof:
        piece = decoder.decompress(pending, _CHUNK)
        pending = decoder.unconsumed_tail
        if not piece and not pending:
            return  # truncated: the caller misses the rest
        yield piece


def _feed(decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor, body: bytes) -> Iterator[bytes]:
    pending = body
    while not decoder.eof:
        piece = decoder.decompress(pending, _CHUNK)
        pending = b""
        if not piece and decoder.needs_input:
            return
        yield piece


def _unpack_lz4(body: bytes, lz4_block: ModuleType) -> Iterator[bytes]:
    view = memoryview(body)
    at = 4
    while at + 4 <= len(body):
        size = int.from_bytes(body[at : at + 4], "little")
        at += 4
        if size == _LZ4_LEGACY_MAGIC:  # another frame follows
            continue
        if size == 0 or at + size > len(body):
            raise ValueError(f"LZ4 block of {size:#x} bytes at {at:#x}")
        try:
            yield lz4_block.decompress(view[at : at + size], uncompressed_size=_LZ4_BLOCK_MAX)
        except lz4_block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        at += size


def _unpack_zstd(body: bytes, zstandard: ModuleType) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=_DECODER_MEMORY_MAX)
    try:
        with decoder.stream_reader(body) as reader:
            while piece := reader.read(_CHUNK):
                yield piece
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def load_linux(data: bytes, ram: RamMap, boot: LinuxBoot | None = None, *, name: str = "kernel") -> BootPlan:
    """A Linux kernel, bzImage or vmlinux, with its command line and initrd. Raises LoadError."""
    options = boot or LinuxBoot()
    if data.startswith(ELF_MAGIC):
        if options.entry not in ("auto", "long", "pvh"):
            raise LoadError(f"{name} is a vmlinux, which has no {options.entry} entry; use long or pvh")
        return _load_vmlinux(data, ram, options, None, name)
    image = parse_bzimage(data, name)
    match options.entry:
        case "stub32" | "stub64" | "real":
            return _load_stub(image, ram, options, options.entry)
        case "long" | "pvh":
            return _load_vmlinux(unpack_payload(image), ram, options, image, name)
        case "auto" if not image.payload:
            return _load_stub(image, ram, options, "stub32")
        case "auto":
            try:
                vmlinux = unpack_payload(image)
            except UnsupportedPayloadError:
                if not options.fall_back_to_stub:
                    raise
                stub: Entry = "stub64" if image.xloadflags & XLF_KERNEL_64 else "stub32"
                return _load_stub(image, ram, options, stub)
            return _load_vmlinux(vmlinux, ram, options, image, name)
        case _:
            raise LoadError(
                f"{name}: Linux entry {options.entry!r} is unknown; "
                "use auto, long, pvh, stub32, stub64 or real"
            )


def _load_vmlinux(data: bytes, ram: RamMap, options: LinuxBoot, image: BzImage | None, name: str) -> BootPlan:
    """A kernel already unpacked; `image` is the bzImage it came from, for its limits."""
    elf = parse_elf(data, name)
    release = (image.kernel_version if image else "") or _banner(data) or "of unknown version"
    cmdline_size = image.cmdline_size if image else VMLINUX_CMDLINE_SIZE
    initrd_max = image.initrd_addr_max if image else VMLINUX_INITRD_ADDR_MAX
    placement = Placement(ram, name)
    elf.place(placement)
    command_line = _place_command_line(placement, options.cmdline, cmdline_size)
    initrd = _place_initrd(placement, options.initrd, elf.end, initrd_max)
    if options.entry == "pvh":
        start, how = _pvh_start(placement, elf, options, command_line, initrd), "by its PVH note"
    else:
        entry = elf.physical_entry
        if not any(segment.paddr <= entry < segment.end for segment in elf.segments) or entry >= FOUR_GIB:
            raise LoadError(
                f"{name}: the entry point {entry:#x} lies in no segment below 4 GiB; check the file"
            )
        if options.entry == "long" and not elf.is_64_bit:
            raise LoadError(f"{name} is a 32-bit kernel, which has no 64-bit entry; use entry auto")
        zero_page = build_zero_page(ram, options, command_line, initrd, cmdline_size)
        placement.write("the zero page", ZERO_PAGE, zero_page)
        if elf.is_64_bit:
            start, how = long_start(placement, entry, rsi=ZERO_PAGE), "in 64-bit mode"
        else:
            start, how = protected_start(placement, entry, rsi=ZERO_PAGE), "in 32-bit mode"
    return BootPlan(
        protocol="linux",
        description=f"{name}: Linux {release}, vmlinux entered at {start.rip:#x} {how}{_with(initrd)}.",
        start=start,
        writes=placement.writes,
        clears=tuple(placement.clears),
        symbols=SymbolTable.from_elf(data, name),
    )


def _load_stub(image: BzImage, ram: RamMap, options: LinuxBoot, entry: Entry) -> BootPlan:
    """A bzImage entered as it is; it unpacks itself."""
    name = image.name
    if entry == "stub64" and not image.xloadflags & XLF_KERNEL_64:
        raise LoadError(f"{name} has no 64-bit entry (XLF_KERNEL_64 is clear); use entry stub32")
    placement = Placement(ram, name)
    kernel_end = HIGH_MEMORY + len(image.kernel)
    placement.write("the kernel", HIGH_MEMORY, image.kernel)
    work_start = image.pref_address or HIGH_MEMORY
    if image.relocatable:
        aligned = -(-HIGH_MEMORY // image.kernel_alignment) * image.kernel_alignment
        work_start = max(aligned, work_start)
    work_end = max(work_start + image.init_size, kernel_end)
    room = max(work_start, kernel_end)
    placement.reserve("the kernel's unpacking area", room, work_end - room)
    command_line = _place_command_line(placement, options.cmdline, image.cmdline_size)
    initrd = _place_initrd(placement, options.initrd, work_end, image.initrd_addr_max)
    start = _stub_start(placement, image, options, entry, command_line, initrd)
    how = {"stub32": "in 32-bit mode", "stub64": "in 64-bit mode", "real": "in real mode"}[entry]
    return BootPlan(
        protocol="linux",
        description=(
            f"{name}: Linux boot protocol {image.version >> 8}.{image.version & 0xFF:02} "
            f"image {image.kernel_version}, entered {how}{_with(initrd)}."
        ),
        start=start,
        writes=placement.writes,
        clears=tuple(placement.clears),
    )


def _stub_start(
    placement: Placement,
    image: BzImage,
    options: LinuxBoot,
    entry: Entry,
    command_line: int,
    initrd: tuple[int, int],
) -> CpuStart:
    if entry == "real":
        setup = bytearray(image.data[: image.setup_size])
        _fill_header(setup, command_line, initrd)
        setup[LOADFLAGS] |= CAN_USE_HEAP
        struct.pack_into("<H", setup, HEAP_END_PTR, LINUX_SETUP_HEAP_END - 0x200)
        placement.write("the kernel's setup", LINUX_SETUP, bytes(setup), LINUX_SETUP_HEAP_END)
        tiny_bios.install(placement)
        segment = LINUX_SETUP >> 4
        return real_start(
            cs=segment + (SECTOR_SIZE >> 4), ip=0, data_selector=segment, rsp=LINUX_SETUP_HEAP_END
        )
    zero_page = bytearray(build_zero_page(placement.ram, options, command_line, initrd, image.cmdline_size))
    zero_page[SETUP_SECTS : image.header_end] = image.data[SETUP_SECTS : image.header_end]
    _fill_header(zero_page, command_line, initrd)
    placement.write("the zero page", ZERO_PAGE, bytes(zero_page))
    if entry == "stub64":
        return long_start(placement, HIGH_MEMORY + ENTRY_64_OFFSET, rsi=ZERO_PAGE)
    return protected_start(placement, HIGH_MEMORY, rsi=ZERO_PAGE)


def _with(initrd: tuple[int, int]) -> str:
    return f" with an initrd of {initrd[1]} bytes at {initrd[0]:#x}" if initrd[1] else ""


def _place_command_line(placement: Placement, text: str, size_max: int) -> int:
    name = placement.guest
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise LoadError(f"{name}: the command line contains a NUL; remove it")
    if len(encoded) > size_max:
        raise LoadError(
            f"{name}: the command line has {len(encoded)} bytes, this kernel takes {size_max}; shorten it"
        )
    placement.write("the command line", COMMAND_LINE, encoded + b"\0")
    return COMMAND_LINE


def _place_initrd(
    placement: Placement, initrd: bytes | None, kernel_end: int, addr_max: int
) -> tuple[int, int]:
    """Puts the initrd as high as the kernel may look for it; returns its address and size, (0, 0) for
    none."""
    if not initrd:
        return 0, 0
    low = max(kernel_end, HIGH_MEMORY)
    high = min(addr_max + 1, placement.ram.extended_end)
    at = placement.highest_free(len(initrd), align=PAGE_SIZE, low=low, high=high)
    if at is None:
        if high < placement.ram.extended_end:
            remedy = "use a smaller one"
        else:
            remedy = f"give the machine at least {-(-(low + len(initrd) + PAGE_SIZE) // MIB)} MiB of RAM"
        raise LoadError(
            f"{placement.guest}: the initrd of {len(initrd):#x} bytes does not fit between the kernel's end "
            f"{low:#x} and {high:#x}; {remedy}"
        )
    placement.write("the initrd", at, initrd)
    return at, len(initrd)


def _fill_header(page: bytearray, command_line: int, initrd: tuple[int, int]) -> None:
    """The fields of the setup header that the boot loader owns."""
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    struct.pack_into("<I", page, CODE32_START, HIGH_MEMORY)
    struct.pack_into("<II", page, RAMDISK_IMAGE, *initrd)
    struct.pack_into("<I", page, CMD_LINE_PTR, command_line)


def build_zero_page(
    ram: RamMap, options: LinuxBoot, command_line: int, initrd: tuple[int, int], cmdline_size: int
) -> bytes:
    """struct boot_params, 4096 bytes, as small as a kernel accepts it: magic, loader, initrd, command line,
    e820.

    `initrd` is (address, size). Raises LoadError when RAM has more ranges than the e820 table.
    """
    page = bytearray(PAGE_SIZE)
    ranges = ram.usable()
    if len(ranges) > E820_ENTRIES_MAX:
        raise LoadError(
            f"the machine has {len(ranges)} RAM ranges, Linux takes {E820_ENTRIES_MAX}; join some"
        )
    page[E820_ENTRIES] = len(ranges)
    for index, (base, size) in enumerate(ranges):
        E820_ENTRY.pack_into(page, E820_TABLE + E820_ENTRY.size * index, base, size, E820_RAM)
    struct.pack_into("<H", page, BOOT_FLAG, BOOT_FLAG_MAGIC)
    page[HEADER_MAGIC_OFFSET : HEADER_MAGIC_OFFSET + 4] = HEADER_MAGIC
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    struct.pack_into("<II", page, RAMDISK_IMAGE, *initrd)
    struct.pack_into("<I", page, CMD_LINE_PTR, command_line)
    struct.pack_into("<I", page, CMDLINE_SIZE, min(cmdline_size, 0xFFFF_FFFF))
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, options.rsdp)
    if options.text_screen:
        # screen_info: mode 3, columns at 0x07, rows at 0x0e, a VGA at 0x0f, 16 scan lines a character.
        page[0x06:0x08] = bytes((3, VGA_TEXT_COLUMNS))
        page[0x0E:0x10] = bytes((VGA_TEXT_ROWS, 1))
        struct.pack_into("<H", page, 0x10, 16)
    return bytes(page)


def _pvh_start(
    placement: Placement, elf: ElfImage, options: LinuxBoot, command_line: int, initrd: tuple[int, int]
) -> CpuStart:
    """Xen's PVH entry: flat 32-bit mode, EBX = hvm_start_info."""
    if elf.pvh_entry is None:
        raise LoadError(f"{elf.name} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY); use entry long")
    if not any(segment.paddr <= elf.pvh_entry < segment.end for segment in elf.segments):
        raise LoadError(f"{elf.name}: the PVH entry {elf.pvh_entry:#x} lies in no segment; check the file")
    module_count = 1 if initrd[1] else 0
    ranges = placement.ram.usable()
    if len(ranges) > E820_ENTRIES_MAX:
        raise LoadError(f"the machine has {len(ranges)} RAM ranges, PVH takes {E820_ENTRIES_MAX}; join some")
    memory_map = b"".join(MEMMAP_ENTRY.pack(base, size, E820_RAM, 0) for base, size in ranges)
    info = START_INFO.pack(
        START_MAGIC,
        1,  # version
        0,  # flags: no SIF_*
        module_count,
        PVH_MODULE_LIST if module_count else 0,
        command_line,
        options.rsdp,
        PVH_MEMORY_MAP,
        len(ranges),
        0,
    )
    placement.write("the PVH start info", PVH_START_INFO, info)
    if module_count:
        placement.write("the PVH module list", PVH_MODULE_LIST, MODLIST_ENTRY.pack(*initrd, 0, 0))
    placement.write("the PVH memory map", PVH_MEMORY_MAP, memory_map)
    return protected_start(placement, elf.pvh_entry, rbx=PVH_START_INFO)


def load_pvh(data: bytes, ram: RamMap, boot: LinuxBoot | None = None, *, name: str = "kernel") -> BootPlan:
    """Any ELF file with a PVH note, Linux or not; the command line is limited as Linux's. Raises
    LoadError."""
    options = boot or LinuxBoot()
    elf = parse_elf(data, name)
    placement = Placement(ram, name)
    elf.place(placement)
    command_line = _place_command_line(placement, options.cmdline, VMLINUX_CMDLINE_SIZE)
    initrd = _place_initrd(placement, options.initrd, elf.end, VMLINUX_INITRD_ADDR_MAX)
    start = _pvh_start(placement, elf, options, command_line, initrd)
    return BootPlan(
        protocol="pvh",
        description=f"{name}: ELF kernel entered at {start.rip:#x} by its PVH note{_with(initrd)}.",
        start=start,
        writes=placement.writes,
        clears=tuple(placement.clears),
        symbols=SymbolTable.from_elf(data, name),
    )
