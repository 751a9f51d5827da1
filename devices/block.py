"""Block back-ends: 512-byte sectors from host memory or a host file. Not a device; disk controllers use them.

A back-end never changes its source unless it was told to: written sectors go to an overlay in memory, bounded
in bytes. The overlay is the `state`, so a snapshot of a disk is a copy of what the guest wrote.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from devices.base import DeviceError

SECTOR_SIZE: Final = 512
OVERLAY_LIMIT: Final = 256 << 20  # bytes of written sectors held in memory unless told otherwise


class BlockError(DeviceError):
    """A read or write that the back-end refuses; devices answer the guest with an I/O error."""


class BlockBackend(Protocol):
    """What a disk controller needs from its medium. Sectors are 512 bytes."""

    @property
    def sectors(self) -> int:
        """Number of sectors."""

    @property
    def read_only(self) -> bool:
        """Whether every write is refused."""

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector`; BlockError beyond the end or when the host cannot read."""

    def write(self, sector: int, data: bytes) -> None:
        """Store whole sectors from `sector`; BlockError beyond the end, read-only, or out of room."""

    def flush(self) -> None:
        """Make earlier writes durable; BlockError when the host cannot."""


@dataclass(slots=True)
class BlockState:
    """Sectors the guest wrote: number to 512 bytes."""

    overlay: dict[int, bytes] = field(default_factory=dict)


class _OverlayBlock:
    """Copy-on-write over something with `_read_source`. The last sector is padded with zeros."""

    def __init__(self, name: str, size: int, read_only: bool, overlay_limit: int) -> None:
        if overlay_limit < 0:
            raise DeviceError(
                f"block {name}: overlay_limit {overlay_limit} is negative; give bytes, 0 for no writes"
            )
        self._name = name
        self._read_only = read_only
        self._overlay_sectors = overlay_limit // SECTOR_SIZE
        self._overlay_limit = overlay_limit
        self._sectors = -(-size // SECTOR_SIZE)
        self.state = BlockState()

    @property
    def sectors(self) -> int:
        """Number of 512-byte sectors."""
        return self._sectors

    @property
    def read_only(self) -> bool:
        """Whether every write is refused."""
        return self._read_only

    def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector`, the guest's own writes on top; BlockError beyond the end."""
        self._check(sector, count, "read")
        source = self._read_source(sector, count)
        overlay = self.state.overlay
        if not overlay:
            return source
        data: bytearray | None = None
        for index in range(count):
            written = overlay.get(sector + index)
            if written is not None:
                if data is None:
                    data = bytearray(source)
                data[index * SECTOR_SIZE : (index + 1) * SECTOR_SIZE] = written
        return source if data is None else bytes(data)

    def write(self, sector: int, data: bytes) -> None:
        """Store whole sectors; BlockError beyond the end, read-only, or when the overlay is full.

        A refused write changes nothing.
        """
        count, rest = divmod(len(data), SECTOR_SIZE)
        if rest:
            raise BlockError(
                f"block {self._name}: write of {len(data)} bytes; write multiples of {SECTOR_SIZE}"
            )
        self._check(sector, count, "write")
        if self._read_only:
            raise BlockError(
                f"block {self._name}: write of sector {sector:#x} to a read-only medium; "
                "attach it without read_only"
            )
        self._store(sector, count, data)

    def flush(self) -> None:
        """The overlay lives and dies with the machine: nothing to do."""

    def reset(self) -> None:
        """Forget every write that only the overlay holds."""
        self.state = BlockState()

    def _check(self, sector: int, count: int, what: str) -> None:
        if sector < 0 or count < 0 or sector + count > self._sectors:
            raise BlockError(
                f"block {self._name}: {what} of {count} sectors at {sector:#x} leaves its {self._sectors:#x} "
                "sectors; stay below the end"
            )

    def _read_source(self, sector: int, count: int) -> bytes:
        raise NotImplementedError

    def _store(self, sector: int, count: int, data: bytes) -> None:
        overlay = self.state.overlay
        new = sum(number not in overlay for number in range(sector, sector + count))
        if len(overlay) + new > self._overlay_sectors:
            raise BlockError(
                f"block {self._name}: write at sector {sector:#x} would exceed the overlay of "
                f"{self._overlay_limit} bytes; raise overlay_limit or attach the file writable"
            )
        for index in range(count):
            overlay[sector + index] = bytes(data[index * SECTOR_SIZE : (index + 1) * SECTOR_SIZE])


class MemoryBlock(_OverlayBlock):
    """A medium that is a bytes object. The object itself never changes."""

    def __init__(
        self,
        data: bytes,
        *,
        read_only: bool = False,
        overlay_limit: int = OVERLAY_LIMIT,
        name: str = "memory",
    ) -> None:
        """`overlay_limit` bounds the bytes of sectors the guest may change."""
        super().__init__(name, len(data), read_only, overlay_limit)
        self._data = bytes(data)

    def _read_source(self, sector: int, count: int) -> bytes:
        data = self._data[sector * SECTOR_SIZE : (sector + count) * SECTOR_SIZE]
        return data.ljust(count * SECTOR_SIZE, b"\0")


class FileBlock(_OverlayBlock):
    """A medium that is a host file or block device; copy-on-write unless `writable`.

    Its size is fixed when it is opened. With `writable` the guest changes the file itself, which no snapshot
    can take back.
    """

    _descriptor: int = -1

    def __init__(
        self,
        path: str | os.PathLike[str],
        writable: bool = False,
        *,
        read_only: bool = False,
        overlay_limit: int = OVERLAY_LIMIT,
    ) -> None:
        """DeviceError when the path is missing, a directory, not a file, or not permitted."""
        self._path = Path(path)
        self._writable = writable and not read_only
        try:
            mode = os.stat(self._path).st_mode
            if stat.S_ISDIR(mode):
                raise DeviceError(f"block file {self._path}: this is a directory; name a disk image")
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise DeviceError(
                    f"block file {self._path}: neither a file nor a block device; name a disk image"
                )
            self._descriptor = os.open(self._path, os.O_RDWR if self._writable else os.O_RDONLY)
            self._size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except FileNotFoundError:
            raise DeviceError(
                f"block file {self._path}: no such file; check the path or create the image"
            ) from None
        except PermissionError:
            access = "written" if self._writable else "read"
            raise DeviceError(
                f"block file {self._path}: may not be {access}; change its permissions"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise DeviceError(
                f"block file {self._path}: cannot be opened ({error}); check the path"
            ) from None
        super().__init__(str(self._path), self._size, read_only, overlay_limit)

    def close(self) -> None:
        """Close the host file; later accesses are BlockErrors."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def flush(self) -> None:
        """With `writable`, wait until the host has the data; BlockError when it cannot."""
        if self._writable:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise BlockError(
                    f"block {self._name}: flush failed ({error}); check the host's disk"
                ) from None

    def _read_source(self, sector: int, count: int) -> bytes:
        want = count * SECTOR_SIZE
        chunks: list[bytes] = []
        offset = sector * SECTOR_SIZE
        try:
            while want and (chunk := os.pread(self._descriptor, want, offset)):
                chunks.append(chunk)
                offset += len(chunk)
                want -= len(chunk)
        except OSError as error:
            raise BlockError(
                f"block {self._name}: read of sector {sector:#x} failed ({error}); check the host's disk"
            ) from None
        return b"".join(chunks) + bytes(want)  # past the end of the file: zeros

    def _store(self, sector: int, count: int, data: bytes) -> None:
        if not self._writable:
            super()._store(sector, count, data)
            return
        # The padding of the last sector is not part of the file and never becomes one.
        view = memoryview(data)[: max(self._size - sector * SECTOR_SIZE, 0)]
        offset = sector * SECTOR_SIZE
        try:
            while view:
                done = os.pwrite(self._descriptor, view, offset)
                offset += done
                view = view[done:]
        except OSError as error:
            raise BlockError(
                f"block {self._name}: write of sector {sector:#x} failed ({error}); check the host's disk"
            ) from None
