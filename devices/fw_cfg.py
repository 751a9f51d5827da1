"""QEMU's fw_cfg: named blobs that the machine hands to its firmware. It loads nothing by itself.

Source: QEMU documentation, "QEMU Firmware Configuration (fw_cfg) Device". The selector is little-endian on
ports and big-endian in memory; the DMA address is big-endian on both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from devices.base import Device, DeviceError, GuestMemory, ones


class FwCfgPort:
    """Offsets in the port window 0x510-0x51B."""

    SELECTOR: Final = 0x0
    DATA: Final = 0x1
    DMA_HIGH: Final = 0x4
    DMA_LOW: Final = 0x8
    COUNT: Final = 0xC


class FwCfgMmioReg:
    """Offsets in the memory window."""

    DATA: Final = 0x00
    SELECTOR: Final = 0x08
    DMA_HIGH: Final = 0x10
    DMA_LOW: Final = 0x14
    SIZE: Final = 0x18


class FwCfgKey:
    """Selector values (QEMU, fw_cfg: Selector keys)."""

    SIGNATURE: Final = 0x00
    ID: Final = 0x01
    UUID: Final = 0x02
    RAM_SIZE: Final = 0x03
    NOGRAPHIC: Final = 0x04
    NB_CPUS: Final = 0x05
    MACHINE_ID: Final = 0x06
    KERNEL_ADDR: Final = 0x07
    KERNEL_SIZE: Final = 0x08
    KERNEL_CMDLINE: Final = 0x09
    INITRD_ADDR: Final = 0x0A
    INITRD_SIZE: Final = 0x0B
    BOOT_DEVICE: Final = 0x0C
    NUMA: Final = 0x0D
    BOOT_MENU: Final = 0x0E
    MAX_CPUS: Final = 0x0F
    KERNEL_ENTRY: Final = 0x10
    KERNEL_DATA: Final = 0x11
    INITRD_DATA: Final = 0x12
    CMDLINE_ADDR: Final = 0x13
    CMDLINE_SIZE: Final = 0x14
    CMDLINE_DATA: Final = 0x15
    SETUP_ADDR: Final = 0x16
    SETUP_SIZE: Final = 0x17
    SETUP_DATA: Final = 0x18
    FILE_DIR: Final = 0x19
    FILE_FIRST: Final = 0x20
    WRITE_CHANNEL: Final = 0x4000  # once "write this item"; part of no key
    ARCH_LOCAL: Final = 0x8000
    IRQ0_OVERRIDE: Final = 0x8002


SIGNATURE: Final = b"QEMU"
DMA_SIGNATURE: Final = b"QEMU CFG"  # what reading the DMA address register gives
ID_TRADITIONAL: Final = 1 << 0
ID_DMA: Final = 1 << 1

DMA_ERROR: Final = 0x01
DMA_READ: Final = 0x02
DMA_SKIP: Final = 0x04
DMA_SELECT: Final = 0x08
DMA_WRITE: Final = 0x10
DMA_DESCRIPTOR: Final = struct.Struct(">IIQ")  # FWCfgDmaAccess: control, length, address
DMA_CHUNK: Final = 0x1_0000  # the guest names lengths up to 4 GiB: never make one buffer of that

FILE_NAME_SIZE: Final = 56  # with the terminating zero
FILE_ENTRY: Final = struct.Struct(f">IHH{FILE_NAME_SIZE}s")
ITEM_SIZE_LIMIT: Final = 0xFFFF_FFFF

E820_RAM: Final = 1
E820_RESERVED: Final = 2
E820_ENTRY: Final = struct.Struct("<QQI")
LOW_RAM_LIMIT: Final = 0xC000_0000  # the 440FX machine keeps 0xC0000000-0xFFFFFFFF for devices
HIGH_RAM_BASE: Final = 0x1_0000_0000


@dataclass(slots=True)
class FwCfgState:
    """Selected key, position in its item, the high half of the DMA address, and items the guest wrote."""

    key: int = 0
    position: int = 0
    dma_high: int = 0
    written: dict[int, bytes] = field(default_factory=dict)


def e820_map(ram_size: int) -> list[tuple[int, int, int]]:
    """(base, size, type) rows for `ram_size` bytes of RAM, split around the device hole below 4 GiB."""
    rows = [(0, min(ram_size, LOW_RAM_LIMIT), E820_RAM)]
    if ram_size > LOW_RAM_LIMIT:
        rows.append((HIGH_RAM_BASE, ram_size - LOW_RAM_LIMIT, E820_RAM))
    return rows


class FwCfg(Device):
    """The interface at ports 0x510-0x51B; `mmio()` gives the same one for a memory bus.

    `memory` is where DMA goes; without it the DMA bit of the id item is clear and the register is absent.
    Items are added by the host before the guest runs. The guest may change an item added as `writable`, by
    DMA only and within its size.
    """

    name = "fw_cfg"

    def __init__(self, memory: GuestMemory | None = None) -> None:
        self._memory = memory
        self._items: dict[int, bytes] = {}
        self._writable: set[int] = set()
        self._files: dict[str, int] = {}
        self.state: FwCfgState = FwCfgState()
        self.add_item(FwCfgKey.SIGNATURE, SIGNATURE)
        features = ID_TRADITIONAL | (ID_DMA if memory is not None else 0)
        self.add_item(FwCfgKey.ID, features.to_bytes(4, "little"))
        self._list_files()

    # Host side

    def add_item(self, selector: int, data: bytes, writable: bool = False) -> None:
        """Set the item of a 16-bit selector key; a second call replaces it. DeviceError on a bad key."""
        if not 0 <= selector <= 0xFFFF or selector & FwCfgKey.WRITE_CHANNEL:
            raise DeviceError(
                f"fw_cfg item {selector:#x}: a key has 16 bits, without the write bit "
                f"{FwCfgKey.WRITE_CHANNEL:#x}; choose another"
            )
        if len(data) > ITEM_SIZE_LIMIT:
            raise DeviceError(f"fw_cfg item {selector:#x}: {len(data)} bytes do not fit 32 bits; shorten it")
        self._items[selector] = bytes(data)
        self.state.written.pop(selector, None)
        (self._writable.add if writable else self._writable.discard)(selector)

    def add_file(self, name: str, data: bytes, writable: bool = False) -> int:
        """Add or replace a named file; returns its selector key. DeviceError on a bad name."""
        encoded = name.encode("ascii", "replace")
        if not encoded or len(encoded) >= FILE_NAME_SIZE or "\0" in name or not name.isascii():
            raise DeviceError(
                f"fw_cfg file {name!r}: a name is 1 to {FILE_NAME_SIZE - 1} ASCII characters; rename it"
            )
        key = self._files.get(name)
        if key is None:
            key = FwCfgKey.FILE_FIRST + len(self._files)
            if key >= FwCfgKey.WRITE_CHANNEL:
                raise DeviceError(f"fw_cfg file {name!r}: all {len(self._files)} slots are taken; add fewer")
        self.add_item(key, data, writable)
        self._files[name] = key
        self._list_files()
        return key

    def item(self, selector: int) -> bytes:
        """What the guest reads at a key now; empty for an absent item."""
        return self.state.written.get(selector, self._items.get(selector, b""))

    def file(self, name: str) -> bytes:
        """What the guest reads as a named file now; DeviceError if there is none."""
        if name not in self._files:
            raise DeviceError(f"fw_cfg file {name!r} does not exist; add it with add_file")
        return self.item(self._files[name])

    def add_standard_items(
        self,
        ram_size: int,
        cpus: int = 1,
        max_cpus: int | None = None,
        *,
        boot_menu: bool = False,
        graphic: bool = True,
        e820: Iterable[tuple[int, int, int]] | None = None,
    ) -> None:
        """The items firmware expects of any PC: RAM size in bytes, CPU counts, boot menu, etc/e820.

        `e820` rows are (base, size, type); by default those of `e820_map`.
        """
        self.add_item(FwCfgKey.RAM_SIZE, ram_size.to_bytes(8, "little"))
        self.add_item(FwCfgKey.NB_CPUS, cpus.to_bytes(2, "little"))
        self.add_item(FwCfgKey.MAX_CPUS, (max_cpus or cpus).to_bytes(2, "little"))
        self.add_item(FwCfgKey.NOGRAPHIC, (not graphic).to_bytes(2, "little"))
        self.add_item(FwCfgKey.BOOT_MENU, boot_menu.to_bytes(2, "little"))
        self.add_item(FwCfgKey.NUMA, bytes(8 + 8 * (max_cpus or cpus)))
        self.add_item(FwCfgKey.IRQ0_OVERRIDE, (1).to_bytes(4, "little"))
        rows = e820_map(ram_size) if e820 is None else e820
        self.add_file("etc/e820", b"".join(E820_ENTRY.pack(*row) for row in rows))

    def add_kernel(
        self,
        kernel: bytes,
        kernel_addr: int,
        *,
        entry: int | None = None,
        setup: bytes = b"",
        setup_addr: int = 0,
        cmdline: str = "",
        cmdline_addr: int = 0,
        initrd: bytes = b"",
        initrd_addr: int = 0,
    ) -> None:
        """The items for a directly loaded kernel; addresses are guest-physical, all below 4 GiB.

        For a bzImage `setup` is its real-mode part and `kernel` the rest.
        """
        command = cmdline.encode() + b"\0"
        parts = (
            (FwCfgKey.KERNEL_ADDR, FwCfgKey.KERNEL_SIZE, FwCfgKey.KERNEL_DATA, kernel_addr, kernel),
            (FwCfgKey.INITRD_ADDR, FwCfgKey.INITRD_SIZE, FwCfgKey.INITRD_DATA, initrd_addr, initrd),
            (FwCfgKey.CMDLINE_ADDR, FwCfgKey.CMDLINE_SIZE, FwCfgKey.CMDLINE_DATA, cmdline_addr, command),
            (FwCfgKey.SETUP_ADDR, FwCfgKey.SETUP_SIZE, FwCfgKey.SETUP_DATA, setup_addr, setup),
        )
        for address_key, size_key, data_key, address, data in parts:
            if not 0 <= address < HIGH_RAM_BASE:
                raise DeviceError(f"fw_cfg item {address_key:#x}: address {address:#x} is not below 4 GiB")
            self.add_item(address_key, address.to_bytes(4, "little"))
            self.add_item(size_key, len(data).to_bytes(4, "little"))
            self.add_item(data_key, data)
        self.add_item(FwCfgKey.KERNEL_ENTRY, (kernel_addr if entry is None else entry).to_bytes(4, "little"))
        self.add_item(FwCfgKey.KERNEL_CMDLINE, command)

    def mmio(self) -> FwCfgMmio:
        """The same items and position behind a memory window."""
        return FwCfgMmio(self)

    # Guest side

    def read(self, offset: int, width: int) -> int:
        """The next byte of the item at DATA; the signature at the DMA register; else undriven."""
        match offset:
            case FwCfgPort.DATA if width == 1:
                return self.next_bytes(1)[0]
            case _ if offset >= FwCfgPort.DMA_HIGH and self.has_dma:
                return dma_signature(offset - FwCfgPort.DMA_HIGH, width)
            case _:
                return ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Select an item with a word, or start a DMA transfer with the low half of its address."""
        match offset:
            case FwCfgPort.SELECTOR if width == 2:
                self.select(value)
            case FwCfgPort.DMA_HIGH | FwCfgPort.DMA_LOW if width >= 4:
                self.write_dma_address(offset - FwCfgPort.DMA_HIGH, width, value)
            case _:
                pass  # writing DATA was withdrawn from the interface; items change by DMA only

    def reset(self) -> None:
        """Key 0, position 0, and the host's items again."""
        self.state = FwCfgState()

    @property
    def has_dma(self) -> bool:
        """Whether there is memory for DMA."""
        return self._memory is not None

    def select(self, key: int) -> None:
        """Select an item and go to its start."""
        self.state.key = key & 0xFFFF & ~FwCfgKey.WRITE_CHANNEL
        self.state.position = 0

    def next_bytes(self, count: int) -> bytes:
        """The next `count` bytes of the item, zeros past its end; the position moves."""
        state = self.state
        start = state.position
        data = self.item(state.key)[start : start + count]
        state.position = start + count
        return data if len(data) == count else data.ljust(count, b"\0")

    def write_dma_address(self, offset: int, width: int, value: int) -> None:
        """Store 4 or 8 bytes, as the bus delivers them, of the big-endian DMA address register."""
        if not self.has_dma:
            return
        number = int.from_bytes(value.to_bytes(width, "little"), "big")
        if width == 8:
            self._start_dma(number)
        elif offset == 0:
            self.state.dma_high = number
        else:
            self._start_dma(self.state.dma_high << 32 | number)

    def _start_dma(self, descriptor: int) -> None:
        """Carry out the FWCfgDmaAccess at a guest-physical address and report in its control word."""
        self.state.dma_high = 0
        memory = self._memory
        if memory is None:
            return
        try:
            control, length, address = DMA_DESCRIPTOR.unpack(memory.read(descriptor, DMA_DESCRIPTOR.size))
        except DeviceError:
            return  # no descriptor, so there is no place for the error bit either
        if control & DMA_SELECT:
            self.select(control >> 16)
        try:
            result = 0 if self._transfer(memory, control, length, address) else DMA_ERROR
            memory.write(descriptor, result.to_bytes(4, "big"))
        except DeviceError:
            self._report_error(memory, descriptor)

    def _transfer(self, memory: GuestMemory, control: int, length: int, address: int) -> bool:
        """Read, write or skip; False sets the error bit. DeviceError if the guest named no RAM."""
        if control & DMA_READ:
            while length:
                size = min(length, DMA_CHUNK)
                memory.write(address, self.next_bytes(size))
                address += size
                length -= size
        elif control & DMA_WRITE:
            return self._write_item(memory, length, address)
        elif control & DMA_SKIP:
            self.state.position += length
        return True

    def _write_item(self, memory: GuestMemory, length: int, address: int) -> bool:
        """Overwrite part of a writable item; an item never grows."""
        state = self.state
        old = self.item(state.key)
        end = state.position + length
        if state.key not in self._writable or end > len(old):
            return False
        state.written[state.key] = old[: state.position] + memory.read(address, length) + old[end:]
        state.position = end
        return True

    def _report_error(self, memory: GuestMemory, descriptor: int) -> None:
        try:
            memory.write(descriptor, DMA_ERROR.to_bytes(4, "big"))
        except DeviceError:
            return  # the guest put the descriptor where it cannot be written: it learns nothing

    def _list_files(self) -> None:
        """Rebuild the directory; names in ascending order, as QEMU lists them."""
        rows = [
            FILE_ENTRY.pack(len(self._items[key]), key, 0, name.encode("ascii"))
            for name, key in sorted(self._files.items())
        ]
        self.add_item(FwCfgKey.FILE_DIR, len(rows).to_bytes(4, "big") + b"".join(rows))


class FwCfgMmio(Device):
    """The memory face of a FwCfg: data +0x00, selector +0x08 (big-endian), DMA address +0x10."""

    name = "fw_cfg_mmio"

    def __init__(self, core: FwCfg) -> None:
        self._core = core

    def read(self, offset: int, width: int) -> int:
        """The next bytes of the item at DATA, in memory order; the signature at the DMA register."""
        match offset:
            case _ if offset + width <= FwCfgMmioReg.SELECTOR:
                return int.from_bytes(self._core.next_bytes(width), "little")
            case _ if offset >= FwCfgMmioReg.DMA_HIGH and self._core.has_dma:
                return dma_signature(offset - FwCfgMmioReg.DMA_HIGH, width)
            case _:
                return ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Select an item with a big-endian word, or start a DMA transfer."""
        match offset:
            case FwCfgMmioReg.SELECTOR if width == 2:
                self._core.select(int.from_bytes(value.to_bytes(2, "little"), "big"))
            case FwCfgMmioReg.DMA_HIGH | FwCfgMmioReg.DMA_LOW if width >= 4:
                if offset + width <= FwCfgMmioReg.SIZE:
                    self._core.write_dma_address(offset - FwCfgMmioReg.DMA_HIGH, width, value)
            case _:
                pass

    def reset(self) -> None:
        """Reset the items' position; the ports and this window share it."""
        self._core.reset()


def dma_signature(offset: int, width: int) -> int:
    """`width` bytes of "QEMU CFG" from `offset`, as a little-endian bus carries them; zeros past it."""
    data = DMA_SIGNATURE[offset : offset + width] if offset >= 0 else b""
    return int.from_bytes(data.ljust(width, b"\0"), "little")
