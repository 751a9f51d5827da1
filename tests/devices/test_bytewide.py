"""Tests for devices/bytewide.py."""

from __future__ import annotations

from devices.bytewide import ByteDevice


class Recorder(ByteDevice):
    """Reads 0x10 + offset, remembers writes; a second window starts at offset 2."""

    window_starts = (2,)

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []

    def read_byte(self, offset: int) -> int:
        return 0x10 + offset

    def write_byte(self, offset: int, value: int) -> None:
        self.written.append((offset, value))


def test_a_wide_read_is_bytes_at_consecutive_offsets_lowest_first() -> None:
    assert Recorder().read(2, 4) == 0x15141312


def test_a_wide_write_is_bytes_at_consecutive_offsets_lowest_first() -> None:
    device = Recorder()
    device.write(4, 2, 0xBEEF)
    assert device.written == [(4, 0xEF), (5, 0xBE)]


def test_a_wide_read_over_the_end_of_a_window_meets_an_undriven_bus() -> None:
    assert Recorder().read(1, 4) == 0xFFFFFF11


def test_a_wide_write_over_the_end_of_a_window_does_not_reach_the_next_one() -> None:
    device = Recorder()
    device.write(1, 4, 0x44332211)
    assert device.written == [(1, 0x11)]


def test_a_byte_write_drops_bits_above_the_eighth() -> None:
    device = Recorder()
    device.write(0, 1, 0x1FF)
    assert device.written == [(0, 0xFF)]


def test_the_default_registers_are_an_undriven_bus() -> None:
    device = ByteDevice()
    device.write(0, 2, 0x1234)
    assert device.read(0, 2) == 0xFFFF
