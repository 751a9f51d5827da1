"""The host's terminal as the guest's serial console, in both directions. It knows no chip and no CPU.

`raw_terminal` puts a terminal into raw mode and always back. `ConsoleInput` reads keys or a pipe without
waiting longer than it is told; `EscapeFilter` takes the Ctrl-A commands out of what is typed.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import BinaryIO, Final

CTRL_A: Final = 0x01
READ_SIZE: Final = 4096
LONGEST_WAIT: Final = 0.25  # seconds; a sleeping guest is looked after this often

HELP: Final = """\
Ctrl-A h    this help
Ctrl-A x    leave: the machine stops at once
Ctrl-A c    where the guest is, in one line
Ctrl-A s    the VGA text screen
Ctrl-A b    send a break condition
Ctrl-A Ctrl-A   send a Ctrl-A
"""


class Escape(Enum):
    """What the user asked for with Ctrl-A."""

    HELP = "h"
    LEAVE = "x"
    STATUS = "c"
    SCREEN = "s"
    BREAK = "b"


class EscapeFilter:
    """Separates Ctrl-A commands from keys for the guest. A Ctrl-A that ends a read waits for its letter."""

    def __init__(self) -> None:
        self._armed = False

    def feed(self, data: bytes) -> Iterator[bytes | Escape]:
        """Keys and commands in the order typed. An unknown letter after Ctrl-A is dropped, as QEMU does."""
        keys = bytearray()
        for key in data:
            if self._armed:
                self._armed = False
                if key == CTRL_A:
                    keys.append(key)
                    continue
                letter = chr(key).lower()
                command = next((each for each in Escape if each.value == letter), None)
                if letter == "?":
                    command = Escape.HELP
                if command is not None:
                    if keys:
                        yield bytes(keys)
                        keys.clear()
                    yield command
            elif key == CTRL_A:
                self._armed = True
            else:
                keys.append(key)
        if keys:
            yield bytes(keys)


class ConsoleInput:
    """A file descriptor of the host that keys come from. `ended` is True after its end of file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.ended = False

    def read(self, wait_seconds: float = 0.0) -> bytes:
        """What has arrived, at most READ_SIZE bytes; b"" if nothing came within the wait, or at the end."""
        if self.ended:
            return b""
        try:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, min(wait_seconds, LONGEST_WAIT)))
            if not ready:
                return b""
            data = os.read(self._descriptor, READ_SIZE)
        except BlockingIOError:
            return b""
        except (OSError, ValueError):  # closed, or a terminal that went away: no more keys will come
            data = b""
        if not data:
            self.ended = True
        return data


class ConsoleOutput:
    """Where the guest's output goes. A reader that went away ends the output, never the device that writes.

    `failure` is the sentence of the first error, or "".
    """

    def __init__(self, stream: BinaryIO, name: str, *, flush_always: bool = False) -> None:
        self._stream = stream
        self._name = name
        self._flush_always = flush_always
        self.failure = ""

    def write(self, data: bytes) -> None:
        """Pass `data` on; after a failure it is dropped."""
        if self.failure:
            return
        try:
            self._stream.write(data)
            if self._flush_always:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def flush(self) -> None:
        """Pass on what is buffered."""
        if self.failure:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.failure = f"the guest's output cannot be written to {self._name} ({reason}); check where it goes"


def is_terminal(descriptor: int) -> bool:
    """True for a terminal that can be put into raw mode."""
    try:
        import termios

        termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, termios.error):
        return False
    return True


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Raw mode while the block runs: no echo, no line editing, Ctrl-C goes to the guest.

    Output processing stays on, so that our own lines end at the left margin. The old mode comes back on every
    way out, exceptions and exits included.
    """
    import termios

    before = termios.tcgetattr(descriptor)
    raw = termios.tcgetattr(descriptor)
    raw[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN] = 1
    raw[6][termios.VTIME] = 0
    try:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, raw)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
