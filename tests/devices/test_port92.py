"""Tests for devices/port92.py. Offset 0 is the port."""

from __future__ import annotations

from devices.port92 import Port92


class Board:
    """Port 0x92 and what it asked the machine for."""

    def __init__(self) -> None:
        self.a20: list[bool] = []
        self.resets = 0
        self.port = Port92(self.a20.append, self._on_reset)

    def _on_reset(self) -> None:
        self.resets += 1


def test_bit_1_moves_the_a20_gate() -> None:
    board = Board()
    board.port.write(0, 1, 0x00)
    board.port.write(0, 1, 0x02)
    assert board.a20 == [False, True]
    assert board.port.read(0, 1) == 0x02


def test_a_rising_bit_0_resets_once() -> None:
    board = Board()
    board.port.write(0, 1, 0x03)
    board.port.write(0, 1, 0x03)
    assert board.resets == 1
    board.port.write(0, 1, 0x02)
    board.port.write(0, 1, 0x03)
    assert board.resets == 2


def test_reserved_bits_read_zero() -> None:
    board = Board()
    board.port.write(0, 1, 0xFE)
    assert board.port.read(0, 1) == 0xDA


def test_the_gate_reads_as_its_owner_has_it() -> None:
    port = Port92(lambda level: None, lambda: None, a20_level=lambda: False)
    port.write(0, 1, 0x02)
    assert port.read(0, 1) == 0x00


def test_reset_reads_an_open_gate() -> None:
    board = Board()
    board.port.write(0, 1, 0x41)
    board.port.reset()
    assert board.port.read(0, 1) == 0x02


def test_bytes_beside_the_port_are_undriven() -> None:
    board = Board()
    board.port.write(0, 2, 0xFF02)
    assert board.port.read(0, 2) == 0xFF02
    assert board.resets == 0
