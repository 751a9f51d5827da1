"""One bus: disjoint address ranges, each owned by a device window. It routes; it performs no access itself.

Ports and guest-physical addresses are counted in bytes, so an access of width 4 covers four addresses. Model
specific registers are counted one by one: an access covers one address whatever its width.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from devices.base import Device, DeviceError

PORT_LAST: Final = 0xFFFF  # SDM, I/O Address Space: 64 Ki ports
SYS_REG_LAST: Final = 0xFFFF_FFFF  # SDM, RDMSR: ECX names the register
GPA_LAST: Final = (1 << 52) - 1  # SDM, Physical Address Space: MAXPHYADDR is at most 52

ROUTE_CACHE_LIMIT: Final = 1 << 16  # a guest that sweeps its address space must not grow the cache for ever

DIRECTIONS: Final = {"rw": (True, True), "r": (True, False), "w": (False, True)}


class BusKind(StrEnum):
    """The three buses of AxVmDevices, by the names axdevice prints."""

    MMIO = "mmio"
    PORT = "port"
    SYS_REG = "sys_reg"


LAST_ADDRESS: Final = {
    BusKind.MMIO: GPA_LAST,
    BusKind.PORT: PORT_LAST,
    BusKind.SYS_REG: SYS_REG_LAST,
}


@dataclass(frozen=True, slots=True)
class Window:
    """A wish: `length` addresses of `bus` from `base`, which the device sees from `offset` on."""

    bus: BusKind
    base: int
    length: int
    offset: int = 0
    access: str = "rw"


class BusError(DeviceError):
    """A window cannot be put on, found on or taken off a bus."""


class WindowClosed(DeviceError):
    """The window is there, but not for this direction (`access="r"` or `"w"`)."""


class BusEntry:
    """One window: `length` addresses from `base`, the first of which the device sees as `offset`.

    `read` and `write` are the device's own methods, bound once; `delta` turns an address into an offset.
    For a direction the window is closed to, the method raises WindowClosed.
    """

    __slots__ = ("access", "base", "delta", "device", "end", "length", "offset", "read", "write")

    def __init__(self, device: Device, base: int, length: int, offset: int = 0, access: str = "rw") -> None:
        self.device = device
        self.base = base
        self.length = length
        self.offset = offset
        self.access = access
        self.end = base + length  # first address past the window
        self.delta = offset - base
        readable, writable = DIRECTIONS[access]
        self.read: Callable[[int, int], int] = device.read if readable else self._closed_read
        self.write: Callable[[int, int, int], None] = device.write if writable else self._closed_write

    @property
    def last(self) -> int:
        """The last address of the window."""
        return self.end - 1

    def __repr__(self) -> str:
        return f"{self.device.name} {self.base:#x}-{self.last:#x}"

    def _closed_read(self, offset: int, width: int) -> int:
        raise WindowClosed(f"{self!r} is write-only")

    def _closed_write(self, offset: int, width: int, value: int) -> None:
        raise WindowClosed(f"{self!r} is read-only")


class _Routes(dict[int, BusEntry]):
    """Address -> entry, filled on demand: a hit costs one subscript, a miss one bisection."""

    __slots__ = ("_search",)

    def __init__(self, search: Callable[[int], BusEntry | None]) -> None:
        super().__init__()
        self._search = search

    def __missing__(self, address: int) -> BusEntry | None:
        entry = self._search(address)
        if entry is not None:
            if len(self) >= ROUTE_CACHE_LIMIT:
                self.clear()
            self[address] = entry
        return entry


class Bus:
    """Disjoint ranges -> device windows. Iterating gives the entries in address order.

    `routes[address]` is the entry at an address or None; it is the hot path behind `find`. `generation`
    counts changes and `on_change` hears of each one, so that a CPU can rebuild its memory map.
    """

    def __init__(self, kind: BusKind, on_change: Callable[[], None] | None = None) -> None:
        self.kind = kind
        self.last_address = LAST_ADDRESS[kind]
        # width in bytes -> how many addresses such an access covers here
        self.spans = {width: 1 if kind is BusKind.SYS_REG else width for width in (1, 2, 4, 8)}
        self.on_change = on_change
        self.generation = 0
        self._bases: list[int] = []
        self._entries: list[BusEntry] = []
        self.routes = _Routes(self._search)

    def __iter__(self) -> Iterator[BusEntry]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, device: Device, base: int, length: int, offset: int = 0, access: str = "rw") -> BusEntry:
        """Put a window of `length` addresses at `base`; the device sees its first byte as `offset`.

        BusError on a zero or negative length, an address past the bus's last one, an unknown `access`, or
        an overlap with another window: that error names both owners and both ranges.
        """
        self._check(device, base, length, offset, access)
        entry = BusEntry(device, base, length, offset, access)
        index = bisect_right(self._bases, base)
        for other in self._entries[max(index - 1, 0) : index + 1]:
            if other.base < entry.end and base < other.end:
                raise BusError(
                    f"{self.kind} window {base:#x}-{entry.last:#x} of {device.name} overlaps "
                    f"{other.base:#x}-{other.last:#x} of {other.device.name}; move one of them or remove "
                    f"{other.device.name} first"
                )
        self._bases.insert(index, base)
        self._entries.insert(index, entry)
        self._changed()
        return entry

    def remove(self, device: Device, base: int | None = None) -> list[BusEntry]:
        """Take off the window of `device` at `base`, or all its windows; returns those taken.

        BusError if there is none.
        """
        gone = [e for e in self._entries if e.device is device and (base is None or e.base == base)]
        if not gone:
            where = "" if base is None else f" at {base:#x}"
            raise BusError(f"{self.kind} bus: {device.name} has no window{where}; nothing to remove")
        self._entries = [e for e in self._entries if all(e is not g for g in gone)]
        self._bases = [e.base for e in self._entries]
        self._changed()
        return gone

    def find(self, address: int) -> BusEntry | None:
        """The window that holds `address`, or None."""
        return self.routes[address]

    def nearest(self, address: int) -> BusEntry | None:
        """The window closest to `address` (the lower one at equal distance), or None on an empty bus."""
        index = bisect_right(self._bases, address)
        around = self._entries[max(index - 1, 0) : index + 1]
        if not around:
            return None
        return min(around, key=lambda e: max(e.base - address, address - e.last))

    def _search(self, address: int) -> BusEntry | None:
        index = bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        entry = self._entries[index]
        return entry if address < entry.end else None

    def _check(self, device: Device, base: int, length: int, offset: int, access: str) -> None:
        who = f"{self.kind} window of {device.name} at {base:#x}"
        if length <= 0:
            raise BusError(f"{who}: length {length} is not positive; give the number of addresses")
        if base < 0 or base + length - 1 > self.last_address:
            raise BusError(
                f"{who}: {length:#x} addresses run outside 0x0-{self.last_address:#x}; lower base or length"
            )
        if offset < 0:
            raise BusError(f"{who}: offset {offset} is negative; offsets count from 0")
        if access not in DIRECTIONS:
            raise BusError(f'{who}: access {access!r} is unknown; use "rw", "r" or "w"')

    def _changed(self) -> None:
        self.routes.clear()
        self.generation += 1
        if self.on_change is not None:
            self.on_change()
