"""Tests for devices/coprocessor_error.py. Offset 0 is port 0xF0."""

from __future__ import annotations

import copy

from devices.base import IrqLine
from devices.coprocessor_error import CoprocessorError


def logic() -> tuple[CoprocessorError, list[bool]]:
    levels: list[bool] = []
    return CoprocessorError(IrqLine(lambda number, level: levels.append(level), 13)), levels


def test_an_error_requests_the_interrupt_once_and_the_port_takes_it_back() -> None:
    device, levels = logic()
    device.set_ferr(True)
    device.set_ferr(True)
    assert levels == [True]
    device.write(0, 1, 0)
    assert levels == [True, False]
    device.set_ferr(True)
    assert levels == [True, False]  # still the same error
    device.set_ferr(False)
    device.set_ferr(True)
    assert levels == [True, False, True]


def test_the_request_stays_when_the_error_is_cleared_without_the_port() -> None:
    device, levels = logic()
    device.set_ferr(True)
    device.set_ferr(False)
    assert levels == [True]


def test_ignne_is_asserted_by_the_port_while_there_is_an_error_and_released_with_it() -> None:
    device, _ = logic()
    device.write(0, 1, 0xFF)
    assert not device.state.ignne
    device.set_ferr(True)
    assert not device.state.ignne
    device.write(0, 1, 0)
    assert device.state.ignne
    device.set_ferr(False)
    assert not device.state.ignne


def test_the_port_cannot_be_read_and_its_neighbours_do_nothing() -> None:
    device, levels = logic()
    device.set_ferr(True)
    device.write(1, 1, 0)
    assert levels == [True]
    assert device.read(0, 2) == 0xFFFF


def test_reset_withdraws_the_request_and_a_copy_of_the_state_does_not() -> None:
    device, levels = logic()
    device.set_ferr(True)
    device.write(0, 1, 0)
    saved = copy.deepcopy(device.state)
    device.set_ferr(False)
    device.set_ferr(True)
    device.reset()
    assert levels == [True, False, True, False]
    assert (device.state.ferr, device.state.ignne) == (False, False)
    device.state = saved
    assert (device.state.ferr, device.state.ignne) == (True, True)
