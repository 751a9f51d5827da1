"""Flat loader: raw images without a header, and the boot sector of a disk.

No BIOS: a boot sector gets the tiny BIOS's console and memory services, and reads no further sector.
"""

from __future__ import annotations

from typing import Final

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
from pysim_vm.layout import BOOT_SECTOR, FOUR_GIB
from pysim_vm.loader import tiny_bios

SECTOR_SIZE: Final = 512
BOOT_SIGNATURE: Final = b"\x55\xaa"
BOOT_SIGNATURE_OFFSET: Final = 510
FIRST_FLOPPY: Final = 0x00  # INT 13h drive numbers
FIRST_HARD_DISK: Final = 0x80


def load_flat(
    data: bytes,
    ram: RamMap,
    load_address: int,
    *,
    entry: int | None = None,
    mode: str = "real",
    name: str = "image",
) -> BootPlan:
    """A raw image at `load_address`, entered at `entry` (the load address when None).

    Mode "real" is axvm's initial state: CS base 0, RIP = entry, which may exceed 16 bits, and RSP 0;
    nothing else is written. "protected" and "long" are the flat states of a bare-metal ELF program, with a
    stack. Raises LoadError when the image is empty, lies outside RAM, or the entry lies outside the image.
    """
    if not data:
        raise LoadError(f"{name} is empty; name another file")
    rip = load_address if entry is None else entry
    if not load_address <= rip < load_address + len(data):
        raise LoadError(
            f"{name}: the entry point {rip:#x} lies outside the image at "
            f"{load_address:#x}-{load_address + len(data) - 1:#x}; correct one of them"
        )
    if rip >= FOUR_GIB:
        raise LoadError(f"{name}: the entry point {rip:#x} lies above 4 GiB; load it lower")
    placement = Placement(ram, name)
    placement.write("the image", load_address, data)
    return BootPlan(
        protocol="flat",
        description=f"{name}: raw image of {len(data)} bytes at {load_address:#x}, entered in {mode} mode.",
        start=_flat_start(placement, rip, mode),
        writes=placement.writes,
        clears=tuple(placement.clears),
    )


def _flat_start(placement: Placement, rip: int, mode: str) -> CpuStart:
    match mode:
        case "real":
            return real_start(cs=0, ip=rip)
        case "protected":
            return protected_start(placement, rip, stack=True)
        case "long":
            return long_start(placement, rip, sse=True)
        case _:
            raise LoadError(
                f"{placement.guest}: a raw image cannot start in mode {mode!r}; use real, protected or long"
            )


def code_plan(code: bytes, mode: str, base: int, ram_size: int) -> BootPlan:
    """Bare code at `base` for a machine with one block of `ram_size` bytes of RAM from 0 and no board.

    `mode` as of `load_flat`. Raises LoadError.
    """
    return load_flat(code, RamMap.of(((0, ram_size),)), base, mode=mode, name="code")


def load_boot_sector(
    data: bytes,
    ram: RamMap,
    *,
    drive: int = FIRST_HARD_DISK,
    services: bool = True,
    name: str = "boot sector",
) -> BootPlan:
    """The first sector of a disk image at 0000:7C00, with DL = drive and the stack below it.

    `services` installs the tiny BIOS (INT 10h teletype and INT 16h on COM1, INT 12h and 15h for memory);
    without it every vector is zero. Raises LoadError unless the sector ends with 55 AA and the drive fits a
    byte.
    """
    if len(data) < SECTOR_SIZE:
        raise LoadError(f"{name} has {len(data)} bytes, a boot sector has {SECTOR_SIZE}; pad it")
    if data[BOOT_SIGNATURE_OFFSET:SECTOR_SIZE] != BOOT_SIGNATURE:
        raise LoadError(f"{name}: the first sector does not end with 55 AA; this disk is not bootable")
    if not 0 <= drive <= 0xFF:
        raise LoadError(f"{name}: drive {drive:#x} does not fit DL; use 0x00 (floppy) or 0x80 (hard disk)")
    placement = Placement(ram, name)
    placement.write("the boot sector", BOOT_SECTOR, data[:SECTOR_SIZE])
    if services:
        tiny_bios.install(placement)
    return BootPlan(
        protocol="boot-sector",
        description=f"{name}: boot sector at {BOOT_SECTOR:#x} in real mode, drive {drive:#x}.",
        start=real_start(cs=0, ip=BOOT_SECTOR, rsp=BOOT_SECTOR, rdx=drive),
        writes=placement.writes,
    )
