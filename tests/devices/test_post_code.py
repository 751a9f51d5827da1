"""Tests for devices/post_code.py. Offset 0 is port 0x80."""

from __future__ import annotations

import copy

from devices.post_code import HISTORY_CODES, PostCode


def test_the_port_reads_what_was_written() -> None:
    post = PostCode()
    assert post.read(0, 1) == 0x00
    post.write(0, 1, 0xAB)
    assert post.read(0, 1) == 0xAB


def test_each_change_of_the_code_is_told_and_remembered() -> None:
    told: list[int] = []
    post = PostCode(told.append)
    for code in (0x00, 0x01, 0x01, 0x02, 0x01):
        post.write(0, 1, code)
    assert told == [0x00, 0x01, 0x02, 0x01]
    assert post.history == (0x00, 0x01, 0x02, 0x01)


def test_the_history_is_bounded() -> None:
    post = PostCode()
    for code in range(1000):
        post.write(0, 1, code & 0xFF)
    assert len(post.history) == HISTORY_CODES
    assert post.history[-1] == 999 & 0xFF


def test_bytes_beside_the_port_are_undriven() -> None:
    post = PostCode()
    post.write(0, 4, 0x44332211)
    assert post.read(0, 2) == 0xFF11
    assert post.history == (0x11,)


def test_reset_forgets_and_a_copy_of_the_state_does_not() -> None:
    post = PostCode()
    post.write(0, 1, 0x55)
    saved = copy.deepcopy(post.state)
    post.reset()
    assert (post.read(0, 1), post.history) == (0, ())
    post.state = saved
    assert (post.read(0, 1), post.history) == (0x55, (0x55,))
