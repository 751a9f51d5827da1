"""POST code port (0x80): the latch a diagnostic card shows in two digits. No DMA page registers beside it.

Operating systems also write here to spend one bus cycle; the port keeps what is written and reads it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offset from port 0x80."""

    CODE = 0


HISTORY_CODES = 256  # changes of the code that are remembered


@dataclass(slots=True)
class PostCodeState:
    """The code now shown and the last changes, oldest first; a code written again is not a change."""

    code: int = 0
    history: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY_CODES))


class PostCode(ByteDevice):
    """Port 0x80. `output(code)` is told of each change of the code."""

    name = "post_code"
    state: PostCodeState

    def __init__(self, output: Callable[[int], None] | None = None) -> None:
        self._output = output
        self.state = PostCodeState()

    @property
    def history(self) -> tuple[int, ...]:
        """The last codes, oldest first."""
        return tuple(self.state.history)

    def read_byte(self, offset: int) -> int:
        """The code as last written."""
        match offset:
            case Offset.CODE:
                return self.state.code
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """Show `value`."""
        match offset:
            case Offset.CODE:
                state = self.state
                if value != state.code or not state.history:
                    state.code = value
                    state.history.append(value)
                    if self._output is not None:
                        self._output(value)
            case _:
                pass

    def reset(self) -> None:
        """A dark display and no history."""
        self.state = PostCodeState()
