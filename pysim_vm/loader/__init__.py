"""The loader: looks at a guest file, decides what it is, and makes the boot plan.

The formats themselves are in the other modules; here is only which of them a file belongs to, and the
reading of files from the host.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pysim_vm.boot_plan import (
    IMAGE_SIZE_MAX,
    BootPlan,
    Mode,
    RamMap,
)
from pysim_vm.errors import LoadError
from pysim_vm.layout import AXVM_BIOS, AXVM_KERNEL
from pysim_vm.loader.elf import ELF_MAGIC, load_elf, parse_elf
from pysim_vm.loader.firmware import load_firmware, looks_like_firmware
from pysim_vm.loader.flat import (
    BOOT_SIGNATURE,
    BOOT_SIGNATURE_OFFSET,
    FIRST_HARD_DISK,
    SECTOR_SIZE,
    load_boot_sector,
    load_flat,
)
from pysim_vm.loader.linux import Entry, LinuxBoot, is_bzimage, is_vmlinux, load_linux, load_pvh
from pysim_vm.loader.multiboot import (
    FLAG_AOUT_KLUDGE,
    Module,
    find_header,
    load_axvm_multiboot,
    load_multiboot,
)
from pysim_vm.symbols import SymbolTable

Protocol = Literal["flat", "boot-sector", "elf", "multiboot", "axvm-multiboot", "linux", "pvh", "firmware"]
PathLike = str | os.PathLike[str]

_ARM64_IMAGE_MAGIC_OFFSET = 0x38
# Files that are no guest, but are often taken for one: magic and what to do.
_NOT_BOOTABLE: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed; unpack it with gunzip first"),
    (b"\xfd7zXZ\0", "xz-compressed; unpack it with unxz first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it with unzstd first"),
    (b"BZh", "bzip2-compressed; unpack it with bunzip2 first"),
    (b"!<arch>\n", "an archive or Debian package; take the kernel out of it first"),
    (b"QFI\xfb", "a qcow2 disk image; convert it with qemu-img convert -O raw first"),
    (b"MZ", "a Windows or EFI program; boot it through a UEFI firmware"),
)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user may say about a guest file; each field counts only for the protocols that know it.

    `protocol` None lets the file's contents decide. `cmdline`, `initrd` and the fields down to
    `text_screen` are Linux's (`cmdline` also multiboot's); `modules` are (path, string) of multiboot;
    `load_address`, `entry_point` and `mode` are of a flat image; `bios` and `bios_address` are of
    axvm-multiboot, whose kernel goes to `load_address`; `drive` and `services` are a boot sector's.
    `symbols` names an ELF file or System.map whose symbols replace the guest file's own. Addresses are
    guest-physical.
    """

    protocol: Protocol | None = None
    cmdline: str = ""
    initrd: PathLike | None = None
    linux_entry: Entry = "auto"
    fall_back_to_stub: bool = False
    rsdp: int = 0
    text_screen: bool = False
    modules: tuple[tuple[PathLike, str], ...] = ()
    load_address: int | None = None
    entry_point: int | None = None
    mode: Mode = "real"
    bios: PathLike | None = None
    bios_address: int = AXVM_BIOS
    drive: int = FIRST_HARD_DISK
    services: bool = True
    symbols: PathLike | None = None


def read_image(path: PathLike, what: str = "guest file") -> bytes:
    """A host file's contents. Raises LoadError when it is missing, empty, no regular file or over 2 GiB."""
    shown = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise LoadError(f"{what} {shown} is no regular file; name a file")
            if status.st_size > IMAGE_SIZE_MAX:
                raise LoadError(
                    f"{what} {shown} has {status.st_size} bytes, at most {IMAGE_SIZE_MAX} are read"
                )
            # What it is said to have and a byte more, as `read` takes memory for all that it is asked for;
            # then a byte more than allowed, in case the file grows while it is read.
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:
                data += file.read(IMAGE_SIZE_MAX + 1 - len(data))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LoadError(f"{what} {shown} cannot be read ({reason}); check the path") from error
    if not data:
        raise LoadError(f"{what} {shown} is empty; name another file")
    if len(data) > IMAGE_SIZE_MAX:
        raise LoadError(f"{what} {shown} grew over {IMAGE_SIZE_MAX} bytes while it was read; try again")
    return data


def sniff(data: bytes, name: str = "guest file", *, load_address: int | None = None) -> Protocol:
    """What a guest file is, by its contents.

    A file without any mark is "flat" when a load address is given. Raises LoadError for files that are
    known to be something else, and for unmarked files without a load address.
    """
    if data.startswith(ELF_MAGIC):
        elf = parse_elf(data, name)
        if is_vmlinux(data, elf):
            return "linux"
        if find_header(data) is not None:
            return "multiboot"
        return "elf" if elf.pvh_entry is None else "pvh"
    if is_bzimage(data):
        return "linux"
    # Before multiboot: U-Boot's ROM carries a multiboot header for its own start-up code.
    if looks_like_firmware(data):
        return "firmware"
    header = find_header(data)
    if header is not None and header.flags & FLAG_AOUT_KLUDGE:
        return "multiboot"
    if load_address is not None:
        return "flat"
    if data[BOOT_SIGNATURE_OFFSET:SECTOR_SIZE] == BOOT_SIGNATURE:
        return "boot-sector"
    if data[_ARM64_IMAGE_MAGIC_OFFSET : _ARM64_IMAGE_MAGIC_OFFSET + 4] == b"ARM\x64":
        raise LoadError(f"{name} is a Linux kernel for AArch64, not for x86; build it for x86-64")
    for magic, advice in _NOT_BOOTABLE:
        if data.startswith(magic):
            raise LoadError(f"{name} is {advice}")
    raise LoadError(
        f"{name} carries no mark of a guest (ELF, multiboot, bzImage, firmware ROM or boot sector); "
        "give a load address (--load-address) to run it as a raw image"
    )


def load(path: PathLike, ram: int | RamMap, options: LoadOptions | None = None) -> BootPlan:
    """Reads a guest file and plans its boot.

    `ram` is the size of a PC board's RAM in bytes, or a map of it. Raises LoadError with one sentence that
    says what is wrong with which file and what to do.
    """
    chosen = options or LoadOptions()
    ram_map = RamMap.pc(ram) if isinstance(ram, int) else ram
    data = read_image(path)
    name = Path(path).name
    if chosen.protocol is not None and chosen.protocol not in get_args(Protocol):
        known = ", ".join(get_args(Protocol))
        raise LoadError(f"{name}: boot protocol {chosen.protocol!r} is unknown; use one of {known}")
    protocol = chosen.protocol or sniff(data, name, load_address=chosen.load_address)
    plan = _plan(protocol, data, ram_map, chosen, name)
    if chosen.symbols is not None:
        symbol_data = read_image(chosen.symbols, "symbol file")
        plan = plan.with_symbols(SymbolTable.from_bytes(symbol_data, Path(chosen.symbols).name))
    return plan


def _plan(protocol: Protocol, data: bytes, ram: RamMap, options: LoadOptions, name: str) -> BootPlan:
    match protocol:
        case "elf":
            return load_elf(data, ram, name=name)
        case "linux":
            return load_linux(data, ram, _linux_boot(options), name=name)
        case "pvh":
            return load_pvh(data, ram, _linux_boot(options), name=name)
        case "multiboot":
            modules = [Module(string, read_image(path, "module")) for path, string in options.modules]
            return load_multiboot(data, ram, cmdline=options.cmdline, modules=modules, name=name)
        case "axvm-multiboot":
            return load_axvm_multiboot(
                data,
                ram,
                kernel_address=AXVM_KERNEL if options.load_address is None else options.load_address,
                bios=None if options.bios is None else read_image(options.bios, "BIOS image"),
                bios_address=options.bios_address,
                name=name,
            )
        case "firmware":
            return load_firmware(data, ram, name=name)
        case "boot-sector":
            return load_boot_sector(data, ram, drive=options.drive, services=options.services, name=name)
        case "flat":
            if options.load_address is None:
                raise LoadError(f"{name}: a raw image says nothing about its place; give a load address")
            return load_flat(
                data, ram, options.load_address, entry=options.entry_point, mode=options.mode, name=name
            )


def _linux_boot(options: LoadOptions) -> LinuxBoot:
    initrd = None if options.initrd is None else read_image(options.initrd, "initrd")
    return LinuxBoot(
        cmdline=options.cmdline,
        initrd=initrd,
        entry=options.linux_entry,
        fall_back_to_stub=options.fall_back_to_stub,
        rsdp=options.rsdp,
        text_screen=options.text_screen,
    )
