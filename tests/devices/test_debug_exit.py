"""Tests for devices/debug_exit.py."""

from __future__ import annotations

import pytest

from devices.debug_exit import DebugExit


@pytest.mark.parametrize(
    ("width", "value", "status"),
    [(1, 0x00, 1), (1, 0x10, 0x21), (2, 0x1234, 0x2469), (4, 0xFFFFFFFF, 0x1FFFFFFFF)],
)
def test_a_write_ends_the_run_with_twice_its_value_plus_one(width: int, value: int, status: int) -> None:
    statuses: list[int] = []
    DebugExit(statuses.append).write(0, width, value)
    assert statuses == [status]


def test_only_the_bytes_of_the_access_count() -> None:
    statuses: list[int] = []
    DebugExit(statuses.append).write(0, 1, 0x101)
    assert statuses == [3]


def test_reads_give_zero_and_do_not_end_the_run() -> None:
    statuses: list[int] = []
    assert DebugExit(statuses.append).read(0, 4) == 0
    assert statuses == []
