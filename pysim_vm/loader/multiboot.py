"""Multiboot loader: kernels with a multiboot 1 header, and axvm's own "multiboot" boot through real mode.

No multiboot 2, no graphics mode: a kernel that asks for video gets the 80x25 text screen. The figures are
those of the Multiboot Specification version 0.6.96.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pysim_vm.boot_plan import (
    BootPlan,
    Placement,
    RamMap,
    protected_start,
    real_start,
)
from pysim_vm.errors import LoadError
from pysim_vm.layout import (
    AXVM_BIOS,
    AXVM_KERNEL,
    AXVM_MULTIBOOT_MEMORY_MAP,
    FOUR_GIB,
    HIGH_MEMORY,
    KIB,
    LOW_RAM_TOP,
    MULTIBOOT_INFO,
    MULTIBOOT_MEMORY_MAP,
    MULTIBOOT_MODULE_LIST,
    MULTIBOOT_STRINGS,
    PAGE_SIZE,
    VGA_TEXT_BASE,
    VGA_TEXT_COLUMNS,
    VGA_TEXT_ROWS,
    ZERO_PAGE,
)
from pysim_vm.loader.elf import ELF_MAGIC, parse_elf
from pysim_vm.symbols import SymbolTable

HEADER_MAGIC: Final = 0x1BADB002
BOOT_MAGIC: Final = 0x2BADB002  # in EAX: "a multiboot loader started you"
HEADER_SEARCH_SIZE: Final = 8192
HEADER_ALIGN: Final = 4
BOOT_LOADER_NAME: Final = "pysim-vm"

# Header flags. Bits 0-15 are demands: a loader that does not know one must refuse the kernel.
FLAG_PAGE_ALIGN: Final = 1 << 0  # modules on page boundaries
FLAG_MEMORY_INFO: Final = 1 << 1
FLAG_VIDEO_MODE: Final = 1 << 2
FLAG_AOUT_KLUDGE: Final = 1 << 16  # the header itself says where the image goes
_DEMANDS: Final = 0xFFFF
_KNOWN_DEMANDS: Final = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO_MODE

# Flags of the information structure: which of its fields hold something.
INFO_MEMORY: Final = 1 << 0
INFO_COMMAND_LINE: Final = 1 << 2
INFO_MODULES: Final = 1 << 3
INFO_MEMORY_MAP: Final = 1 << 6
INFO_BOOT_LOADER_NAME: Final = 1 << 9
INFO_FRAMEBUFFER: Final = 1 << 12
INFO_SIZE: Final = 116
_MMAP_AVAILABLE: Final = 1
_MMAP_ENTRY: Final = struct.Struct("<IQQI")  # size of the rest, base, length, type
_MODULE_ENTRY: Final = struct.Struct("<IIII")  # start, end, string, reserved
_FRAMEBUFFER_EGA_TEXT: Final = 2
MODULE_COUNT_MAX: Final = (ZERO_PAGE - MULTIBOOT_MODULE_LIST) // _MODULE_ENTRY.size
STRINGS_SIZE_MAX: Final = 0x10000

AXVM_BLOB_SIZE_MAX: Final = 126  # axvm's built-in blob has this size
AXVM_BLOB_INFO_OFFSET: Final = 0x3C  # where axvm patches EBX: the information's address
_AXVM_BLOB_KERNEL_OFFSET: Final = 0x33  # where our blob keeps the kernel's address

# Our blob for axvm's boot, at 0x8000: bits, machine code, what it says. It leaves real mode and jumps to
# the kernel.
AXVM_BLOB_LISTING: Final = (
    (16, "fa", "cli"),
    (16, "31c0", "xor ax, ax"),
    (16, "8ed8", "mov ds, ax"),
    (16, "0f01166080", "lgdt [0x8060]"),
    (16, "0f20c0", "mov eax, cr0"),
    (16, "0c01", "or al, 0x1"),
    (16, "0f22c0", "mov cr0, eax"),
    (16, "66ea1a8000000800", "jmp dword 0x8:0x801a"),
    (32, "66b81000", "mov ax, 0x10"),
    (32, "8ed8", "mov ds, eax"),
    (32, "8ec0", "mov es, eax"),
    (32, "8ee0", "mov fs, eax"),
    (32, "8ee8", "mov gs, eax"),
    (32, "8ed0", "mov ss, eax"),
    (32, "bc00700000", "mov esp, 0x7000"),
    (32, "b802b0ad2b", "mov eax, 0x2badb002"),
    (32, "b900002000", "mov ecx, 0x200000"),
    (32, "31ed", "xor ebp, ebp"),
    (32, "31ff", "xor edi, edi"),
    (32, "bb00600000", "mov ebx, 0x6000"),
    (32, "ffe1", "jmp ecx"),
)
_AXVM_BLOB_GDT_OFFSET: Final = 0x48
_AXVM_BLOB_GDT: Final = (0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)  # null, code 0x08, data 0x10
_AXVM_BLOB_GDTR_OFFSET: Final = 0x60


@dataclass(frozen=True, slots=True)
class Module:
    """A file for the kernel: `string` is its command line, by convention starting with the file's name."""

    string: str
    data: bytes


@dataclass(frozen=True, slots=True)
class MultibootHeader:
    """The header found at `offset` of the file; the addresses count only with FLAG_AOUT_KLUDGE."""

    offset: int
    flags: int
    header_address: int = 0
    load_address: int = 0
    load_end_address: int = 0
    bss_end_address: int = 0
    entry_address: int = 0


def find_header(data: bytes) -> MultibootHeader | None:
    """The first multiboot header in the first 8192 bytes, or None. A wrong checksum is no header."""
    window = data[:HEADER_SEARCH_SIZE]
    magic = struct.pack("<I", HEADER_MAGIC)
    at = window.find(magic)
    while at >= 0:
        if at % HEADER_ALIGN == 0 and at + 12 <= len(window):
            _, flags, checksum = struct.unpack_from("<III", window, at)
            if (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
                if not flags & FLAG_AOUT_KLUDGE:
                    return MultibootHeader(at, flags)
                if at + 32 <= len(window):
                    return MultibootHeader(at, flags, *struct.unpack_from("<5I", window, at + 12))
        at = window.find(magic, at + 1)
    return None


def load_multiboot(
    data: bytes,
    ram: RamMap,
    *,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    name: str = "kernel",
) -> BootPlan:
    """A multiboot kernel in flat protected mode, EAX = 0x2BADB002, EBX = the information structure.

    The command line given to the kernel is `name` and then `cmdline`, as every multiboot loader does;
    modules lie behind the kernel on page boundaries. Raises LoadError.
    """
    header = find_header(data)
    if header is None:
        raise LoadError(
            f"{name} has no multiboot header in its first {HEADER_SEARCH_SIZE} bytes; "
            "name a multiboot 1 kernel"
        )
    unknown = header.flags & _DEMANDS & ~_KNOWN_DEMANDS
    if unknown:
        raise LoadError(
            f"{name}: the multiboot header demands unknown features (flags {unknown:#x}); "
            "boot it through GRUB"
        )
    placement = Placement(ram, name)
    symbols = None
    if header.flags & FLAG_AOUT_KLUDGE:
        entry, end = _place_kludge(placement, data, header)
    else:
        if not data.startswith(ELF_MAGIC):
            raise LoadError(
                f"{name}: the multiboot header gives no addresses, and the file is no ELF; link it as ELF"
            )
        image = parse_elf(data, name)
        image.place(placement)
        entry, end = image.physical_entry, image.end
        if not any(segment.paddr <= entry < segment.end for segment in image.segments):
            raise LoadError(f"{name}: the entry point {entry:#x} lies in no segment; link it with -e SYMBOL")
        symbols = SymbolTable.from_elf(data, name)
    if end > FOUR_GIB:
        raise LoadError(f"{name}: the kernel ends at {end:#x}, above 4 GiB; link it lower")
    _write_info(placement, _clean(f"{name} {cmdline}".rstrip(), name), modules, max(end, HIGH_MEMORY))
    return BootPlan(
        protocol="multiboot",
        description=f"{name}: multiboot kernel with {len(modules)} module(s), entered at {entry:#x}.",
        start=protected_start(placement, entry, rax=BOOT_MAGIC, rbx=MULTIBOOT_INFO),
        writes=placement.writes,
        clears=tuple(placement.clears),
        symbols=symbols,
    )


def _place_kludge(placement: Placement, data: bytes, header: MultibootHeader) -> tuple[int, int]:
    """Places an image by the addresses of its header; returns the entry point and the end of its bss."""
    name = placement.guest
    start = header.offset - (header.header_address - header.load_address)
    if header.load_address > header.header_address or start < 0:
        raise LoadError(
            f"{name}: the multiboot header at file offset {header.offset:#x} says it lies at "
            f"{header.header_address:#x} and the image at {header.load_address:#x}, which is impossible; "
            "correct the header"
        )
    size = len(data) - start
    if header.load_end_address:
        size = header.load_end_address - header.load_address
        if size <= 0 or start + size > len(data):
            raise LoadError(
                f"{name}: the multiboot header loads {header.load_address:#x}-{header.load_end_address:#x}, "
                f"the file has {len(data) - start:#x} bytes for it; the file is truncated"
            )
    load_end = header.load_address + size
    end = header.bss_end_address or load_end
    if end < load_end:
        raise LoadError(
            f"{name}: the multiboot header ends bss at {end:#x}, before the image's end "
            f"{load_end:#x}; correct the header"
        )
    if not header.load_address <= header.entry_address < end:
        raise LoadError(
            f"{name}: the multiboot entry {header.entry_address:#x} lies outside the image at "
            f"{header.load_address:#x}-{end - 1:#x}; correct the header"
        )
    image = data[start : start + size]
    placement.write("the kernel", header.load_address, image, end - header.load_address)
    return header.entry_address, end


def _write_info(placement: Placement, cmdline: bytes, modules: Sequence[Module], kernel_end: int) -> None:
    name = placement.guest
    if len(modules) > MODULE_COUNT_MAX:
        raise LoadError(f"{name}: {len(modules)} modules are too many (at most {MODULE_COUNT_MAX})")
    strings = bytearray(cmdline)
    loader_name_at = MULTIBOOT_STRINGS + len(strings)
    strings += BOOT_LOADER_NAME.encode() + b"\0"
    entries = []
    for module in modules:
        string = _clean(module.string, name)
        size = max(len(module.data), 1)
        start = placement.lowest_free(size, align=PAGE_SIZE, low=kernel_end, high=FOUR_GIB)
        if start is None:
            raise LoadError(
                f"{name}: no room in RAM for module {module.string.split(' ')[0]!r} of "
                f"{len(module.data):#x} bytes behind the kernel's end {kernel_end:#x}; "
                "give the machine more RAM"
            )
        placement.write(f"module {module.string.split(' ')[0]!r}", start, module.data, size)
        entries.append(
            _MODULE_ENTRY.pack(start, start + len(module.data), MULTIBOOT_STRINGS + len(strings), 0)
        )
        strings += string
    if len(strings) > STRINGS_SIZE_MAX:
        raise LoadError(
            f"{name}: command line and module strings have {len(strings)} bytes, "
            f"at most {STRINGS_SIZE_MAX} fit; shorten them"
        )
    memory_map = _memory_map(placement.ram)
    info = bytearray(INFO_SIZE)
    flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP | INFO_BOOT_LOADER_NAME | INFO_FRAMEBUFFER
    flags |= INFO_MODULES if modules else 0
    upper = (placement.ram.extended_end - HIGH_MEMORY) // KIB
    struct.pack_into("<III", info, 0, flags, _lower_kib(placement.ram), upper)
    struct.pack_into("<I", info, 16, MULTIBOOT_STRINGS)
    struct.pack_into("<II", info, 20, len(entries), MULTIBOOT_MODULE_LIST if entries else 0)
    struct.pack_into("<II", info, 44, len(memory_map), MULTIBOOT_MEMORY_MAP)
    struct.pack_into("<I", info, 64, loader_name_at)
    pitch = 2 * VGA_TEXT_COLUMNS
    struct.pack_into("<QIII", info, 88, VGA_TEXT_BASE, pitch, VGA_TEXT_COLUMNS, VGA_TEXT_ROWS)
    struct.pack_into("<BB", info, 108, 16, _FRAMEBUFFER_EGA_TEXT)
    placement.write("the multiboot information", MULTIBOOT_INFO, bytes(info))
    placement.write("the multiboot memory map", MULTIBOOT_MEMORY_MAP, memory_map)
    placement.write("the multiboot module list", MULTIBOOT_MODULE_LIST, b"".join(entries))
    placement.write("the multiboot strings", MULTIBOOT_STRINGS, bytes(strings))


def _lower_kib(ram: RamMap) -> int:
    """mem_lower: KiB of RAM from address 0, at most 639."""
    base, size = ram.usable()[0] if ram.usable() else (0, 0)
    return min(size, LOW_RAM_TOP) // KIB if base == 0 else 0


def _memory_map(ram: RamMap) -> bytes:
    """Memory map entries of all usable RAM; their size field does not count itself."""
    size = _MMAP_ENTRY.size - 4
    entries = [_MMAP_ENTRY.pack(size, base, length, _MMAP_AVAILABLE) for base, length in ram.usable()]
    room = (MULTIBOOT_MODULE_LIST - MULTIBOOT_MEMORY_MAP) // _MMAP_ENTRY.size
    if len(entries) > room:
        raise LoadError(
            f"the machine has {len(entries)} RAM ranges, a multiboot map here holds {room}; join them"
        )
    return b"".join(entries)


def _clean(text: str, name: str) -> bytes:
    """A NUL-terminated string. Raises LoadError for a NUL inside."""
    if "\0" in text:
        raise LoadError(f"{name}: the command line {text[:40]!r} contains a NUL; remove it")
    return text.encode("utf-8", "surrogateescape") + b"\0"


def axvm_boot_blob(info: int = MULTIBOOT_INFO, kernel: int = AXVM_KERNEL) -> bytes:
    """Our blob for axvm's "multiboot" boot: GDT code 0x08 and data 0x10, ESP 0x7000, EAX 0x2BADB002, EBX
    `info`."""
    blob = bytearray(bytes.fromhex("".join(machine_code for _, machine_code, _ in AXVM_BLOB_LISTING)))
    blob = blob.ljust(_AXVM_BLOB_GDTR_OFFSET + 6, b"\0")
    struct.pack_into("<3Q", blob, _AXVM_BLOB_GDT_OFFSET, *_AXVM_BLOB_GDT)
    limit = 8 * len(_AXVM_BLOB_GDT) - 1
    struct.pack_into("<HI", blob, _AXVM_BLOB_GDTR_OFFSET, limit, AXVM_BIOS + _AXVM_BLOB_GDT_OFFSET)
    struct.pack_into("<I", blob, AXVM_BLOB_INFO_OFFSET, info)
    struct.pack_into("<I", blob, _AXVM_BLOB_KERNEL_OFFSET, kernel)
    return bytes(blob)


def load_axvm_multiboot(
    data: bytes,
    ram: RamMap,
    *,
    kernel_address: int = AXVM_KERNEL,
    bios: bytes | None = None,
    bios_address: int = AXVM_BIOS,
    name: str = "kernel",
) -> BootPlan:
    """axvm's boot protocol "multiboot": a blob in real mode at 0x8000 enters the raw kernel in protected
    mode.

    Without `bios` our own blob runs, and EBX points to the memory information axvm gives: mem_lower,
    mem_upper and the memory map, nothing else. A blob of the user's is loaded as it is and started at
    `bios_address`; where it jumps and what it passes is its own affair. Raises LoadError.
    """
    if not data:
        raise LoadError(f"{name} is empty; name another file")
    placement = Placement(ram, name)
    placement.write("the kernel", kernel_address, data)
    if bios is None:
        if kernel_address + len(data) > FOUR_GIB:
            raise LoadError(f"{name}: the kernel at {kernel_address:#x} ends above 4 GiB; load it lower")
        if bios_address != AXVM_BIOS:
            raise LoadError(f"{name}: the built-in boot blob runs at {AXVM_BIOS:#x} only; give a bios_path")
        blob = axvm_boot_blob(kernel=kernel_address)
        memory_map = _memory_map(ram)
        upper = (ram.extended_end - HIGH_MEMORY) // KIB
        info = bytearray(AXVM_MULTIBOOT_MEMORY_MAP - MULTIBOOT_INFO)
        struct.pack_into("<III", info, 0, INFO_MEMORY | INFO_MEMORY_MAP, _lower_kib(ram), upper)
        struct.pack_into("<II", info, 44, len(memory_map), AXVM_MULTIBOOT_MEMORY_MAP)
        placement.write("the multiboot information", MULTIBOOT_INFO, bytes(info))
        placement.write("the multiboot memory map", AXVM_MULTIBOOT_MEMORY_MAP, memory_map)
    else:
        blob = bios
        if not blob:
            raise LoadError(f"{name}: the BIOS image is empty; name another file or none")
    placement.write("the boot blob", bios_address, blob)
    return BootPlan(
        protocol="axvm-multiboot",
        description=(
            f"{name}: raw kernel at {kernel_address:#x}, behind the real-mode boot blob at {bios_address:#x}."
        ),
        start=real_start(cs=0, ip=bios_address),
        writes=placement.writes,
        clears=tuple(placement.clears),
    )
