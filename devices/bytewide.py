"""The 8-bit I/O channel: a chip with byte registers met by wider accesses. Not a device by itself.

On an ISA bus the bus controller turns a 16- or 32-bit port access to an 8-bit card into byte cycles at
consecutive addresses, lowest first. A chip derived from `ByteDevice` sees only those byte cycles.
"""

from __future__ import annotations

from devices.base import Device

UNDRIVEN = 0xFF  # what a byte cycle reads where no register answers


class ByteDevice(Device):
    """A device whose registers are one byte wide; subclasses give `read_byte` and `write_byte`.

    `window_starts` names the offsets at which another window of the same chip begins: a wide access that
    runs off the end of one window meets an undriven bus there, not the next window's first register.
    """

    window_starts: tuple[int, ...] = ()

    def read(self, offset: int, width: int) -> int:
        """Byte cycles at `offset`, `offset + 1`, ...; the first one is the least significant byte."""
        if width == 1:
            return self.read_byte(offset)
        value = 0
        reached_end = False
        for i in range(width):
            reached_end = reached_end or (i > 0 and offset + i in self.window_starts)
            value |= (UNDRIVEN if reached_end else self.read_byte(offset + i)) << 8 * i
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """Byte cycles at `offset`, `offset + 1`, ...; the least significant byte goes first."""
        if width == 1:
            self.write_byte(offset, value & 0xFF)
            return
        for i in range(width):
            if i > 0 and offset + i in self.window_starts:
                return
            self.write_byte(offset + i, value >> 8 * i & 0xFF)

    def read_byte(self, offset: int) -> int:
        """The register at `offset`, 0..255; the default is an undriven bus."""
        return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """Store `value` (0..255) in the register at `offset`; the default ignores it."""
