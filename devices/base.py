"""What every device is: offsets in, values out, an interrupt line, a clock. Not a bus and not a machine.

A device sees offsets, never addresses. What it needs (interrupt line, clock, output, guest memory for DMA)
comes through its constructor. Its mutable state is one dataclass in `state`, so that a snapshot is a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol


class AccessWidth(IntEnum):
    """Width of one device access in bytes (axaddrspace: AccessWidth)."""

    BYTE = 1
    WORD = 2
    DWORD = 4
    QWORD = 8

    @classmethod
    def from_size(cls, size: int) -> AccessWidth:
        """The width of `size` bytes; ValueError unless 1, 2, 4 or 8."""
        return cls(size)

    def size(self) -> int:
        """Bytes."""
        return int(self)

    def bits_range(self) -> range:
        """Bit positions the access covers: range(0, 8) for BYTE and so on."""
        return range(8 * self)


def ones(width: int) -> int:
    """What an undriven bus of `width` bytes reads: all ones."""
    return (1 << 8 * width) - 1


class Device:
    """A device on one or more buses. `width` is 1, 2, 4 or 8 bytes; `offset` counts from the window's start.

    Subclasses set `name`, keep every mutable value in the dataclass `state`, and override `read`, `write`
    and `reset`. A device that uses timers keeps its deadlines in `state` and overrides `rearm`.
    """

    name: str = "device"
    state: Any = None

    def read(self, offset: int, width: int) -> int:
        """The value at `offset`; the default is an undriven bus."""
        return ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Store `value` at `offset`; the default ignores it."""

    def reset(self) -> None:
        """Back to the state after power-on; outputs (IRQ lines, timers) follow."""

    def rearm(self) -> None:
        """Schedule timers and drive lines again from `state`, after a snapshot put it back."""


class IrqLine:
    """One wire into an interrupt controller. It remembers its level and reports changes only.

    `sink(number, level)` is the controller's input; a line without a sink goes nowhere.
    """

    __slots__ = ("_sink", "level", "number")

    def __init__(self, sink: Callable[[int, bool], None] | None = None, number: int = 0) -> None:
        self._sink = sink
        self.number = number
        self.level = False

    def set_level(self, level: bool) -> None:
        """Drive the wire; the sink hears of it only if the level changed."""
        level = bool(level)
        if level != self.level:
            self.level = level
            if self._sink is not None:
                self._sink(self.number, level)

    def raise_(self) -> None:
        """Drive the wire high."""
        self.set_level(True)

    def lower(self) -> None:
        """Drive the wire low."""
        self.set_level(False)

    def pulse(self) -> None:
        """One edge: high, then low."""
        self.set_level(True)
        self.set_level(False)


class Clock(Protocol):
    """Virtual time. It is a function of retired instructions, never of the wall clock."""

    def now_ns(self) -> int:
        """Nanoseconds of virtual time since power-on."""

    def call_at(self, deadline_ns: int, callback: Callable[[int], None]) -> int:
        """Call `callback(now_ns)` once when virtual time reaches `deadline_ns`; returns a token."""

    def cancel(self, token: int) -> None:
        """Forget a call; a token that fired or was cancelled already is ignored."""


class GuestMemory(Protocol):
    """Guest-physical memory as a DMA master sees it."""

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes of RAM at `gpa`; DeviceError where no RAM is."""

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` in RAM at `gpa`; DeviceError where no RAM is."""


class DeviceError(Exception):
    """A device or a bus could not do what it was asked: one sentence with who, what, where, what to do."""
