"""Debug exit port (QEMU's isa-debug-exit, at 0xF4 or 0x501): a guest ends its run. Not a power switch."""

from __future__ import annotations

from collections.abc import Callable

from devices.base import Device, ones


class DebugExit(Device):
    """`on_exit(status)` gets `value * 2 + 1`, so that no value a guest writes looks like the host's success.

    A write of any width anywhere in the window counts as one; reads give zero.
    """

    name = "debug_exit"

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, width: int) -> int:
        """Zero, as QEMU's device answers; an empty bus would read all ones."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """End the run with status `value * 2 + 1`."""
        self._on_exit((value & ones(width)) << 1 | 1)
