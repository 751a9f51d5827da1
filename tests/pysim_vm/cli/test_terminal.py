"""cli/terminal.py: raw mode that always ends, keys, Ctrl-A commands, and output that fails politely."""

import os
import pty
import subprocess
import sys
import termios
import time
from io import BytesIO
from pathlib import Path

import pytest

from isa.assembler import assemble
from pysim_vm.cli.terminal import (
    ConsoleInput,
    ConsoleOutput,
    Escape,
    EscapeFilter,
    is_terminal,
    raw_terminal,
)

CHECKOUT = Path(__file__).resolve().parents[3]

ECHO = """
        mov dx, 0x3f8
        mov al, '?'
        out dx, al
again:  mov dx, 0x3fd
        in al, dx
        test al, 1
        jz again
        mov dx, 0x3f8
        in al, dx
        out dx, al
        jmp again
"""


# ---- Ctrl-A ------------------------------------------------------------------------------------------------


def test_keys_pass_and_commands_are_taken_out_in_order() -> None:
    parts = list(EscapeFilter().feed(b"ab\x01hcd\x01x"))
    assert parts == [b"ab", Escape.HELP, b"cd", Escape.LEAVE]


def test_ctrl_a_twice_is_one_ctrl_a_for_the_guest() -> None:
    assert list(EscapeFilter().feed(b"a\x01\x01b")) == [b"a\x01b"]


def test_ctrl_a_waits_for_its_letter_across_reads() -> None:
    escapes = EscapeFilter()
    assert list(escapes.feed(b"a\x01")) == [b"a"]
    assert list(escapes.feed(b"X")) == [Escape.LEAVE]


def test_an_unknown_letter_after_ctrl_a_is_dropped_and_a_question_mark_is_help() -> None:
    assert list(EscapeFilter().feed(b"\x01zk\x01?")) == [b"k", Escape.HELP]


# ---- input and output --------------------------------------------------------------------------------------


def test_input_gives_what_is_there_and_does_not_wait() -> None:
    read_end, write_end = os.pipe()
    source = ConsoleInput(read_end)
    assert source.read() == b""
    os.write(write_end, b"keys")
    assert source.read() == b"keys"
    os.close(write_end)
    assert source.read() == b""
    assert source.ended
    os.close(read_end)


def test_a_wait_is_bounded_whatever_is_asked() -> None:
    read_end, write_end = os.pipe()
    started = time.monotonic()
    assert ConsoleInput(read_end).read(3600.0) == b""
    assert time.monotonic() - started < 30
    os.close(read_end)
    os.close(write_end)


def test_a_closed_descriptor_is_the_end_of_input() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    source = ConsoleInput(read_end)
    assert source.read() == b""
    assert source.ended


def test_output_that_fails_keeps_the_reason_and_drops_the_rest() -> None:
    class Full(BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    output = ConsoleOutput(Full(), "log.txt")
    output.write(b"a")
    output.write(b"b")
    output.flush()
    assert output.failure == (
        "the guest's output cannot be written to log.txt (No space left on device); check where it goes"
    )


def test_a_pipe_is_no_terminal() -> None:
    read_end, write_end = os.pipe()
    assert not is_terminal(read_end)
    os.close(read_end)
    os.close(write_end)
    assert not is_terminal(read_end)


# ---- raw mode ----------------------------------------------------------------------------------------------


def test_raw_mode_passes_ctrl_c_and_keeps_output_processing() -> None:
    master, slave = pty.openpty()
    with raw_terminal(slave):
        mode = termios.tcgetattr(slave)
        assert not mode[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        assert mode[1] & termios.OPOST
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_old_mode_comes_back_whatever_happens(error: type[BaseException]) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with pytest.raises(error), raw_terminal(slave):
        raise error
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def read_until(descriptor: int, text: bytes, seconds: float = 30.0) -> bytes:
    """What a pseudo-terminal shows up to `text`."""
    end = time.monotonic() + seconds
    shown = b""
    source = ConsoleInput(descriptor)
    while text not in shown and time.monotonic() < end:
        shown += source.read(0.2)
    assert text in shown, shown
    return shown


def test_a_terminal_session_echoes_helps_and_leaves(tmp_path: Path) -> None:
    guest = tmp_path / "echo.bin"
    guest.write_bytes(assemble(ECHO, bits=16, origin=0x7C00))
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with subprocess.Popen(
        [sys.executable, "-m", "pysim_vm", "run", str(guest), "--load-address", "0x7c00"],
        stdin=slave, stdout=slave, stderr=slave, cwd=CHECKOUT,
    ) as process:  # fmt: skip
        read_until(master, b"?")
        os.write(master, b"k\x03")
        read_until(master, b"k\x03")  # Ctrl-C is the guest's
        os.write(master, b"\x01h")
        read_until(master, b"Ctrl-A x    leave")
        os.write(master, b"\x01c")
        read_until(master, b"of guest time")
        os.write(master, b"\x01x")
        read_until(master, b"left with Ctrl-A x")
        assert process.wait(30) == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_terminal_is_restored_when_a_signal_ends_the_run(tmp_path: Path) -> None:
    guest = tmp_path / "echo.bin"
    guest.write_bytes(assemble(ECHO, bits=16, origin=0x7C00))
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with subprocess.Popen(
        [sys.executable, "-m", "pysim_vm", "run", str(guest), "--load-address", "0x7c00"],
        stdin=slave, stdout=slave, stderr=slave, cwd=CHECKOUT,
    ) as process:  # fmt: skip
        read_until(master, b"?")
        assert termios.tcgetattr(slave) != before
        process.terminate()
        read_until(master, b"interrupted by SIGTERM")
        assert process.wait(30) == 130
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
