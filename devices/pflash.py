"""Firmware memory: a plain ROM, and a NOR flash with Intel's command set. Not the file they came from.

Sources: JEDEC JESD68 and JEP137 (Common Flash Interface), Intel StrataFlash 28F640J3A datasheet (command
definitions, status register). One x8 chip: a command is the low byte of a write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from devices.base import Device, DeviceError


class Command:
    """Intel command set (28F640J3A, command bus definitions)."""

    WRITE_SETUP_ALTERNATE: Final = 0x10
    ERASE_SETUP: Final = 0x20
    WRITE_SETUP: Final = 0x40
    CLEAR_STATUS: Final = 0x50
    LOCK_SETUP: Final = 0x60
    READ_STATUS: Final = 0x70
    READ_ID: Final = 0x90
    READ_QUERY: Final = 0x98
    SUSPEND: Final = 0xB0
    CONFIRM: Final = 0xD0
    WRITE_TO_BUFFER: Final = 0xE8
    READ_ARRAY: Final = 0xFF


class Status:
    """Status register bits."""

    READY: Final = 0x80
    ERASE_ERROR: Final = 0x20
    PROGRAM_ERROR: Final = 0x10
    LOCKED: Final = 0x02


MANUFACTURER_INTEL: Final = 0x89
DEVICE_28F640J3: Final = 0x17
ID_MANUFACTURER: Final = 0
ID_DEVICE: Final = 1
ID_LOCK: Final = 2  # lock status of the block

CFI_TABLE_START: Final = 0x10
CFI_BUFFER_BITS: Final = 5  # write buffer of 32 bytes
BUFFER_SIZE: Final = 1 << CFI_BUFFER_BITS
ERASED: Final = 0xFF
DEFAULT_SECTOR: Final = 0x1000
SECTOR_LIMIT: Final = 0x80_0000  # CFI counts a sector in 16 bits of 256 bytes
FLASH_LIMIT: Final = 1 << 28  # 256 MiB, far above any firmware; a snapshot copies what was written


class Rom(Device):
    """A ROM: `image` from offset 0, writes ignored, all ones past its end."""

    name = "rom"

    def __init__(self, image: bytes, name: str = "rom") -> None:
        self.name = name
        self._image = bytes(image)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._image)

    def image(self) -> bytes:
        """The contents."""
        return self._image

    def read(self, offset: int, width: int) -> int:
        """`width` bytes at `offset`, little-endian."""
        data = self._image[offset : offset + width]
        return int.from_bytes(data if len(data) == width else data.ljust(width, b"\xff"), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Ignored: a mask ROM has no write line."""


class Mode(Enum):
    """What a read shows, or which cycle of a command comes next."""

    ARRAY = "array"
    STATUS = "status"
    ID = "id"
    QUERY = "query"
    PROGRAM = "program"  # the next write is data
    ERASE = "erase"  # the next write must confirm
    LOCK = "lock"  # the next write says lock or unlock
    BUFFER_COUNT = "buffer count"  # the next write is the number of bytes less one
    BUFFER_DATA = "buffer data"
    BUFFER_CONFIRM = "buffer confirm"


@dataclass(slots=True)
class PFlashState:
    """Mode, status register, write buffer, and the sectors that differ from the host's image."""

    mode: Mode = Mode.ARRAY
    status: int = Status.READY
    buffer: dict[int, int] = field(default_factory=dict)  # offset -> byte, at most BUFFER_SIZE of them
    buffer_left: int = 0
    sectors: dict[int, bytes] = field(default_factory=dict)


class PFlash(Device):
    """A CFI NOR flash over `image`, erased sector by sector; the image itself is never changed.

    What the guest programs lives in a copy until `save(path)`, and reset keeps it: flash is non-volatile.
    `writable=False` is a chip with its write line off: programming and erasing set the error bits. Commands
    finish at once. `on_array(readable)` is told when plain reads start or stop to show the contents, so that
    a machine may map them as memory; `on_program(offset, data)` is told what changed.
    """

    name = "pflash"

    def __init__(
        self,
        image: bytes,
        *,
        writable: bool = True,
        sector_size: int = DEFAULT_SECTOR,
        name: str = "pflash",
        on_array: Callable[[bool], None] | None = None,
        on_program: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self.name = name
        if not 256 <= sector_size <= SECTOR_LIMIT or sector_size & (sector_size - 1):
            raise DeviceError(
                f"{name}: sector size {sector_size:#x} is no power of 2 in 0x100-{SECTOR_LIMIT:#x}"
            )
        if not image or len(image) % sector_size or len(image) > FLASH_LIMIT:
            raise DeviceError(
                f"{name}: an image of {len(image):#x} bytes is not made of whole sectors of {sector_size:#x} "
                f"bytes (at most {FLASH_LIMIT:#x}); pad it with 0xff"
            )
        if len(image) // sector_size > 0x1_0000:
            raise DeviceError(f"{name}: CFI counts at most 65536 sectors; use a bigger sector size")
        self._image = bytes(image)
        self._sector_size = sector_size
        self._writable = writable
        self._on_array = on_array
        self._on_program = on_program
        self._query = cfi_table(len(image), sector_size)
        self.state: PFlashState = PFlashState()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._image)

    @property
    def array_readable(self) -> bool:
        """Whether a read shows the contents now, not a status or an identifier."""
        return self.state.mode is Mode.ARRAY

    def image(self) -> bytes:
        """The contents with everything that was programmed."""
        data = bytearray(self._image)
        for sector, content in self.state.sectors.items():
            data[sector * self._sector_size : (sector + 1) * self._sector_size] = content
        return bytes(data)

    def save(self, path: str | Path) -> None:
        """Write the contents to a host file; OSError as usual."""
        Path(path).write_bytes(self.image())

    def read(self, offset: int, width: int) -> int:
        """`width` bytes of the contents, or a register repeated in each byte, as the mode says."""
        match self.state.mode:
            case Mode.ARRAY:
                return int.from_bytes(self._contents(offset, width), "little")
            case Mode.ID:
                return self._bytewise(self._identifier, offset, width)
            case Mode.QUERY:
                return self._bytewise(self._query_byte, offset, width)
            case _:
                return int.from_bytes(bytes([self.state.status]) * width, "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """One bus cycle of a command; bytes above the lowest only matter as data."""
        state = self.state
        before = state.mode
        match before:
            case Mode.PROGRAM:
                self._program(offset, value.to_bytes(width, "little"))
                state.mode = Mode.STATUS
            case Mode.ERASE:
                self._erase(offset, value & 0xFF)
            case Mode.LOCK:
                # Quirk: block lock bits are accepted and not kept; every block stays unlocked.
                state.mode = Mode.STATUS
            case Mode.BUFFER_COUNT:
                self._begin_buffer(value & 0xFF)
            case Mode.BUFFER_DATA:
                self._fill_buffer(offset, value.to_bytes(width, "little"))
            case Mode.BUFFER_CONFIRM:
                self._flush_buffer(value & 0xFF)
            case _:
                self._command(value & 0xFF)
        if self._on_array is not None and (before is Mode.ARRAY) is not (state.mode is Mode.ARRAY):
            self._on_array(state.mode is Mode.ARRAY)

    def reset(self) -> None:
        """RP# low: read-array mode and a clear status; the contents stay."""
        was_array = self.array_readable
        self.state = PFlashState(sectors=self.state.sectors)
        if self._on_array is not None and not was_array:
            self._on_array(True)

    def rearm(self) -> None:
        """Tell the machine again what reads show, and every sector that was programmed."""
        if self._on_program is not None:
            self._on_program(0, self.image())
        if self._on_array is not None:
            self._on_array(self.array_readable)

    def _command(self, command: int) -> None:
        state = self.state
        match command:
            case Command.READ_ARRAY:
                state.mode = Mode.ARRAY
            case Command.READ_STATUS:
                state.mode = Mode.STATUS
            case Command.CLEAR_STATUS:
                state.status = Status.READY
                state.mode = Mode.ARRAY if state.mode is Mode.STATUS else state.mode
            case Command.READ_ID:
                state.mode = Mode.ID
            case Command.READ_QUERY:
                state.mode = Mode.QUERY
            case Command.WRITE_SETUP | Command.WRITE_SETUP_ALTERNATE:
                state.mode = Mode.PROGRAM
            case Command.ERASE_SETUP:
                state.mode = Mode.ERASE
            case Command.LOCK_SETUP:
                state.mode = Mode.LOCK
            case Command.WRITE_TO_BUFFER:
                state.mode = Mode.BUFFER_COUNT
            case Command.SUSPEND | Command.CONFIRM:
                pass  # suspend and resume: nothing is ever under way
            case _:
                state.mode = Mode.ARRAY

    def _begin_buffer(self, last: int) -> None:
        """Second cycle of a buffered write: number of bytes less one."""
        state = self.state
        state.buffer = {}
        if last >= BUFFER_SIZE:
            self._sequence_error()
            return
        state.buffer_left = last + 1
        state.mode = Mode.BUFFER_DATA

    def _fill_buffer(self, offset: int, data: bytes) -> None:
        state = self.state
        for i, byte in enumerate(data[: state.buffer_left]):
            state.buffer[offset + i] = byte
        state.buffer_left -= min(len(data), state.buffer_left)
        if not state.buffer_left:
            state.mode = Mode.BUFFER_CONFIRM

    def _flush_buffer(self, command: int) -> None:
        """Last cycle of a buffered write; all data must lie in one sector."""
        state = self.state
        buffer, state.buffer = state.buffer, {}
        sectors = {offset // self._sector_size for offset in buffer}
        if command != Command.CONFIRM or len(sectors) != 1:
            self._sequence_error()
            return
        for offset, byte in buffer.items():
            self._program(offset, bytes([byte]))
        state.mode = Mode.STATUS

    def _program(self, offset: int, data: bytes) -> None:
        """Clear bits: programming turns ones into zeros and never back (only erasing does)."""
        state = self.state
        if not self._writable:
            state.status |= Status.PROGRAM_ERROR | Status.LOCKED
            return
        old = self._contents(offset, len(data))
        new = bytes(a & b for a, b in zip(old, data, strict=True))[: max(self.size - offset, 0)]
        for i, byte in enumerate(new):
            sector, place = divmod(offset + i, self._sector_size)
            content = self._sector(sector)
            if content[place] != byte:
                state.sectors[sector] = content[:place] + bytes([byte]) + content[place + 1 :]
        if self._on_program is not None and new:
            self._on_program(offset, new)

    def _erase(self, offset: int, command: int) -> None:
        """Second cycle of an erase: the confirmed sector becomes all ones."""
        state = self.state
        state.mode = Mode.STATUS
        if command != Command.CONFIRM:
            self._sequence_error()
        elif not self._writable:
            state.status |= Status.ERASE_ERROR | Status.LOCKED
        elif offset < self.size:
            sector = offset // self._sector_size
            state.sectors[sector] = bytes([ERASED]) * self._sector_size
            if self._on_program is not None:
                self._on_program(sector * self._sector_size, state.sectors[sector])

    def _sequence_error(self) -> None:
        """A command sequence that makes no sense sets both error bits."""
        self.state.status |= Status.PROGRAM_ERROR | Status.ERASE_ERROR
        self.state.mode = Mode.STATUS

    def _sector(self, sector: int) -> bytes:
        written = self.state.sectors.get(sector)
        if written is not None:
            return written
        return self._image[sector * self._sector_size : (sector + 1) * self._sector_size]

    def _contents(self, offset: int, width: int) -> bytes:
        """`width` bytes of the contents, ones past their end."""
        sector, place = divmod(offset, self._sector_size)
        data = self._sector(sector)[place : place + width]
        if len(data) < width:  # the access runs into the next sector
            data += self._sector(sector + 1)[: width - len(data)]
        return data if len(data) == width else data.ljust(width, b"\xff")

    def _identifier(self, offset: int) -> int:
        match offset % self._sector_size:
            case 0:
                return MANUFACTURER_INTEL
            case 1:
                return DEVICE_28F640J3
            case 2:
                return 0 if self._writable else 1
            case _:
                return 0

    def _query_byte(self, offset: int) -> int:
        place = offset - CFI_TABLE_START
        return self._query[place] if 0 <= place < len(self._query) else 0

    def _bytewise(self, source: Callable[[int], int], offset: int, width: int) -> int:
        return int.from_bytes(bytes(source(offset + i) for i in range(width)), "little")


def cfi_table(size: int, sector_size: int) -> bytes:
    """The CFI query table from address 0x10 on, for `size` bytes of flash in equal sectors."""
    sectors = size // sector_size
    identification = b"QRY" + bytes([0x01, 0x00, 0x31, 0x00, 0, 0, 0, 0])  # Intel extended set, table at 0x31
    # supply 4.5-5.5 V, no programming supply; typical times 2^n us and ms, maxima 2^n times those
    system = bytes([0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0])
    geometry = (
        bytes([(size - 1).bit_length(), 0x00, 0x00, CFI_BUFFER_BITS, 0, 1])  # 2^n bytes, x8, one region
        + (sectors - 1).to_bytes(2, "little")
        + (sector_size // 256 & 0xFFFF).to_bytes(2, "little")
    )
    extended = b"PRI10" + bytes(8)  # version 1.0, no optional feature
    return identification + system + geometry + extended
