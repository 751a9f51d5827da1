"""Tests for devices/debug_console.py. Offset 0 is the console's port."""

from __future__ import annotations

from devices.debug_console import DebugConsole


def test_every_byte_reaches_the_output() -> None:
    sent = bytearray()
    console = DebugConsole(sent.extend)
    for byte in b"SeaBIOS\x00\xff":
        console.write(0, 1, byte)
    assert sent == b"SeaBIOS\x00\xff"


def test_the_port_reads_its_presence_value() -> None:
    assert DebugConsole(lambda data: None).read(0, 1) == 0xE9


def test_bytes_beside_the_port_are_undriven_and_go_nowhere() -> None:
    sent = bytearray()
    console = DebugConsole(sent.extend)
    console.write(0, 2, 0x4241)
    assert sent == b"A"
    assert console.read(0, 2) == 0xFFE9
