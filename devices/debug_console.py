"""Debug console (port 0xE9 of Bochs, 0x402 of SeaBIOS and OVMF): a byte out, no handshake. Not a UART."""

from __future__ import annotations

from collections.abc import Callable

from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offset from the console's port."""

    DATA = 0


PRESENT = 0xE9  # what the port reads: firmware writes only where it finds this value

_ONE_BYTE = tuple(bytes((value,)) for value in range(256))


class DebugConsole(ByteDevice):
    """A write-only console at any port. `output` gets each byte; the device keeps no state."""

    name = "debug_console"

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def read_byte(self, offset: int) -> int:
        """The presence value."""
        match offset:
            case Offset.DATA:
                return PRESENT
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """One byte to the host."""
        match offset:
            case Offset.DATA:
                self._output(_ONE_BYTE[value])
            case _:
                pass
