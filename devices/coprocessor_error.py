"""The coprocessor error logic of a PC (port 0xF0): from the CPU's FERR# pin to IRQ 13. Not the FPU.

With CR0.NE = 0 an unmasked x87 exception asserts FERR#. The board latches that as interrupt 13; the handler
writes port 0xF0, which takes the request back and asserts IGNNE#, so that the handler may use the FPU while
the exception is still pending.

Source: Intel 82371SB (PIIX3) datasheet, "Coprocessor Error Register"; SDM Vol. 1, "MS-DOS Compatibility
Sub-mode".
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.base import IrqLine
from devices.bytewide import ByteDevice


class Offset:
    """Register offset from port 0xF0."""

    COPROCESSOR_ERROR = 0


@dataclass(slots=True)
class CoprocessorErrorState:
    """Both pins, as logic levels: True is asserted."""

    ferr: bool = False
    ignne: bool = False


class CoprocessorError(ByteDevice):
    """Port 0xF0, write-only. The CPU calls `set_ferr`; `line` is IRQ 13."""

    name = "coprocessor_error"
    state: CoprocessorErrorState

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self.state = CoprocessorErrorState()

    def set_ferr(self, level: bool) -> None:
        """The pin changed: going active requests the interrupt, going inactive releases IGNNE#."""
        state = self.state
        if level and not state.ferr:
            self._line.raise_()
        if not level:
            state.ignne = False
        state.ferr = level

    def write_byte(self, offset: int, value: int) -> None:
        """Any value: the request goes away, and IGNNE# is asserted if FERR# is."""
        match offset:
            case Offset.COPROCESSOR_ERROR:
                self._line.lower()
                self.state.ignne = self.state.ferr
            case _:
                pass

    def reset(self) -> None:
        """No request; the CPU's own reset releases FERR#."""
        self._line.lower()
        self.state = CoprocessorErrorState()
