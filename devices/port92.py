"""System control port A (0x92): fast A20 and fast reset. Not the A20 gate itself, which the machine owns.

Source: IBM PS/2 Hardware Interface Technical Reference, "System Control Port A".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offset from port 0x92."""

    CONTROL = 0


CONTROL_RESET = 0x01  # a 0 to 1 transition resets the processor
CONTROL_A20 = 0x02
CONTROL_WRITABLE = 0xDB  # bits 2 and 5 are reserved and read zero


@dataclass(slots=True)
class Port92State:
    """The byte as last written."""

    control: int = CONTROL_A20


class Port92(ByteDevice):
    """Port 0x92. `on_a20(level)` tells the gate's owner, `on_reset()` asks for a processor reset.

    `a20_level()` reads the gate, which the keyboard controller may have moved meanwhile; without it the port
    shows what was last written here.
    """

    name = "port92"
    state: Port92State

    def __init__(
        self,
        on_a20: Callable[[bool], None],
        on_reset: Callable[[], None],
        a20_level: Callable[[], bool] | None = None,
    ) -> None:
        self._on_a20 = on_a20
        self._on_reset = on_reset
        self._a20_level = a20_level
        self.state = Port92State()

    def read_byte(self, offset: int) -> int:
        """The byte as written, with the gate's present level in bit 1."""
        match offset:
            case Offset.CONTROL:
                control = self.state.control
                if self._a20_level is not None:
                    control = control & ~CONTROL_A20 | (CONTROL_A20 if self._a20_level() else 0)
                return control
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """Move the gate; reset on a rising bit 0."""
        match offset:
            case Offset.CONTROL:
                rising_reset = value & ~self.state.control & CONTROL_RESET
                self.state.control = value & CONTROL_WRITABLE
                self._on_a20(bool(value & CONTROL_A20))
                if rising_reset:
                    self._on_reset()
            case _:
                pass

    def reset(self) -> None:
        """The gate comes up open, as the keyboard controller's pin does; who owns it opens it."""
        self.state = Port92State()
