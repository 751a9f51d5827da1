"""Guest-physical memory: RAM in one numpy buffer, device windows, holes. Paging lives in mmu.py.

Every RAM region is a slice of one host buffer (`pool`), so that a translation is one integer: host offset
minus guest address. numpy allocates the pool lazily: a page costs host memory when it is first touched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAGE = 4096
PAGE_SHIFT = 12

READ, WRITE, EXECUTE, USER, DEVICE, UNCACHED = 1, 2, 4, 8, 16, 32  # axaddrspace: MappingFlags
RWX = READ | WRITE | EXECUTE

PHYSICAL_BITS = 48
PHYSICAL_LIMIT = 1 << PHYSICAL_BITS


class MemoryMapError(ValueError):
    """A region that cannot be mapped; one sentence naming the region and, for an overlap, its owner."""


@dataclass(slots=True)
class RamRegion:
    """`size` bytes of RAM (or ROM: no WRITE flag) at guest-physical `base`, kept at `host` in the pool.

    `populated` is one boolean a page for a lazily mapped region (a first touch is a NestedPageFault), or
    None where every page is there.
    """

    base: int
    size: int
    flags: int
    host: int
    name: str
    populated: npt.NDArray[np.bool_] | None = None
    owned: bool = True  # False: an alias of host memory that another region owns

    @property
    def end(self) -> int:
        """First guest-physical address after the region."""
        return self.base + self.size


class PhysicalMemory:
    """The guest-physical address map as the CPU and DMA masters see it."""

    def __init__(self) -> None:
        self.pool: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.view = memoryview(self.pool)  # type: ignore[arg-type]  # numpy 2.4's stubs hide the buffer
        self.regions: list[RamRegion] = []
        self._bases: list[int] = []
        self._free: list[tuple[int, int]] = []  # (host, size) slices of removed regions
        self.mmio: list[tuple[int, int]] = []  # half-open device windows, sorted and disjoint
        self._mmio_starts: list[int] = []
        self.unclaimed_is_mmio = False  # a PC's open bus: what is not RAM is a device access
        self.address_mask = PHYSICAL_LIMIT - 1  # the A20 gate clears bit 20
        self.on_map_change: Callable[[], None] | None = None
        self.on_write: Callable[[int, int], None] | None = None  # (host, size): DMA wrote, code may change
        self.code_pages: set[int] = set()  # host page numbers holding decoded instructions

    # ---- the map ----------------------------------------------------------------------------------------

    def add_ram(
        self, base: int, size: int, flags: int = RWX, *, name: str = "ram", lazy: bool = False,
        host: int | None = None,
    ) -> RamRegion:  # fmt: skip
        """Map `size` bytes of zeroed RAM at `base`; both multiples of 4 KiB. MemoryMapError on misuse.

        `host` maps a slice of the pool that another region uses already: an alias.
        """
        if size <= 0 or base < 0 or base + size > PHYSICAL_LIMIT:
            raise MemoryMapError(f"{name} {base:#x}+{size:#x}: address out of range (48 bits)")
        if (base | size) & (PAGE - 1):
            raise MemoryMapError(f"{name} {base:#x}+{size:#x}: address not aligned to 4 KiB")
        for other in self.regions:
            if base < other.end and other.base < base + size:
                raise MemoryMapError(
                    f"{name} {base:#x}-{base + size - 1:#x} overlaps {other.name} "
                    f"{other.base:#x}-{other.end - 1:#x}; move one of them"
                )
        populated = np.zeros(size >> PAGE_SHIFT, np.bool_) if lazy else None
        owned = host is None
        if host is None:
            host = self._allocate(size)
        elif host < 0 or host & (PAGE - 1) or host + size > len(self.pool):
            raise MemoryMapError(f"{name} {base:#x}+{size:#x}: host memory {host:#x} is not there")
        region = RamRegion(base, size, flags, host, name, populated, owned)
        self.regions.append(region)
        self._reindex()
        return region

    def remove_ram(self, region: RamRegion) -> None:
        """Unmap a region; its contents are lost."""
        self.regions.remove(region)
        if region.owned:
            self.pool[region.host : region.host + region.size] = 0
            if self.on_write is not None:
                self.on_write(region.host, region.size)
            self._free.append((region.host, region.size))
        self._reindex()

    def set_mmio(self, windows: Iterable[tuple[int, int]]) -> None:
        """Replace the device windows: (base, length) pairs, disjoint."""
        self.mmio = sorted((base, base + length) for base, length in windows)
        self._mmio_starts = [start for start, _ in self.mmio]
        self._changed()

    def set_a20(self, enabled: bool) -> None:
        """Open or close the A20 gate; closed, address bit 20 reads as zero."""
        mask = PHYSICAL_LIMIT - 1 if enabled else PHYSICAL_LIMIT - 1 & ~(1 << 20)
        if mask != self.address_mask:
            self.address_mask = mask
            self._changed()

    def _allocate(self, size: int) -> int:
        for n, (host, free) in enumerate(self._free):
            if free >= size:
                if free == size:
                    del self._free[n]
                else:
                    self._free[n] = (host + size, free - size)
                return host
        host = len(self.pool)
        try:
            grown = np.zeros(host + size, np.uint8)
        except MemoryError as error:
            raise MemoryMapError(f"the host has no {size:#x} bytes for guest RAM; ask for less") from error
        if host:
            grown[:host] = self.pool
        self.pool = grown
        self.view = memoryview(grown)  # type: ignore[arg-type]
        return host

    def _reindex(self) -> None:
        self.regions.sort(key=lambda region: region.base)
        self._bases = [region.base for region in self.regions]
        self._changed()

    def _changed(self) -> None:
        if self.on_map_change is not None:
            self.on_map_change()

    # ---- look-ups ---------------------------------------------------------------------------------------

    def region_at(self, gpa: int) -> RamRegion | None:
        """The RAM region holding `gpa`, or None."""
        n = bisect_right(self._bases, gpa) - 1
        if n >= 0 and gpa < self.regions[n].end:
            return self.regions[n]
        return None

    def is_mmio(self, gpa: int, size: int) -> bool:
        """True if [gpa, gpa + size) touches a device window."""
        n = bisect_right(self._mmio_starts, gpa + size - 1) - 1
        return n >= 0 and self.mmio[n][1] > gpa

    def in_window(self, gpa: int, size: int) -> bool:
        """True if all of [gpa, gpa + size) lies in one device window."""
        n = bisect_right(self._mmio_starts, gpa) - 1
        return n >= 0 and gpa + size <= self.mmio[n][1]

    def is_plain(self, gpa: int, access: int) -> bool:
        """True if the byte at `gpa` is RAM that is there and allows `access`; windows are not looked at."""
        region = self.region_at(gpa)
        if region is None or not region.flags & access:
            return False
        return region.populated is None or bool(region.populated[gpa - region.base >> PAGE_SHIFT])

    def straddles(self, gpa: int, size: int) -> bool:
        """True if [gpa, gpa + size) lies partly in a device window and partly in RAM."""
        n = bisect_right(self._mmio_starts, gpa + size - 1) - 1
        if n < 0:
            return False
        start, end = self.mmio[n]
        before = gpa < start and self.region_at(gpa) is not None
        return before or (gpa < end < gpa + size and self.region_at(gpa + size - 1) is not None)

    def host_page(self, gpa: int, access: int) -> int | None:
        """Host offset of the 4 KiB page at `gpa` if plain `access` (READ, WRITE, EXECUTE) may use it."""
        region = self.region_at(gpa)
        if region is None or not region.flags & access:
            return None
        page = gpa - region.base >> PAGE_SHIFT
        if region.populated is not None and not region.populated[page]:
            return None
        # A ROM page under a device window (flash) still reads as memory; RAM under a window does not.
        if self.mmio and (access == WRITE or region.flags & WRITE) and self.is_mmio(gpa & -PAGE, PAGE):
            return None
        return region.host + (page << PAGE_SHIFT)

    # ---- what DMA masters, loaders and debuggers use ------------------------------------------------------

    def chunks(self, gpa: int, size: int) -> list[tuple[int, int]] | None:
        """Host (offset, length) pieces that make up [gpa, gpa + size), or None where RAM ends."""
        pieces = []
        while size > 0:
            region = self.region_at(gpa)
            if region is None:
                return None
            length = min(size, region.end - gpa)
            if region.populated is not None:
                first = gpa - region.base >> PAGE_SHIFT
                region.populated[first : (gpa + length - 1 - region.base >> PAGE_SHIFT) + 1] = True
            pieces.append((region.host + gpa - region.base, length))
            gpa += length
            size -= length
        return pieces

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes of RAM at `gpa`; MemoryMapError where RAM ends."""
        pieces = self.chunks(gpa, size) if gpa >= 0 else None
        if pieces is None:
            raise MemoryMapError(f"guest memory read {gpa:#x}+{size:#x}: no RAM there")
        return b"".join(bytes(self.view[host : host + length]) for host, length in pieces)

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Store `data` at `gpa`, ROM included; MemoryMapError (and nothing stored) where RAM ends."""
        size = len(data)
        pieces = self.chunks(gpa, size) if gpa >= 0 else None
        if pieces is None:
            raise MemoryMapError(f"guest memory write {gpa:#x}+{size:#x}: no RAM there")
        done = 0
        for host, length in pieces:
            self.view[host : host + length] = data[done : done + length]
            done += length
            if self.on_write is not None:
                self.on_write(host, length)
