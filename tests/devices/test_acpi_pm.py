"""Tests for devices/acpi_pm.py. Offsets: 0 PM1 status, 2 enable, 4 control, 8 PM timer."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.acpi_pm import AcpiPm
from devices.base import IrqLine
from devices.clock import VirtualClock

SECOND = 1_000_000_000
CARRY_NS = -(-(1 << 23) * SECOND // 3_579_545)  # 2.34 s


class Board:
    """A PM block, the times of its SCIs, and how often it asked to be switched off."""

    def __init__(self, sci_enabled: bool = True, soft_off_type: int = 0) -> None:
        self.clock = VirtualClock()
        self.scis: list[int] = []
        self.poweroffs = 0
        self.pm = AcpiPm(
            IrqLine(self._on_sci, 9), self.clock, self._on_poweroff, soft_off_type, sci_enabled=sci_enabled
        )

    def _on_sci(self, number: int, level: bool) -> None:
        if level:
            self.scis.append(self.clock.now_ns())

    def _on_poweroff(self) -> None:
        self.poweroffs += 1


def test_the_timer_counts_3579545_ticks_a_second_in_24_bits() -> None:
    board = Board()
    assert board.pm.read(8, 4) == 0
    board.clock.advance_to(SECOND)
    assert board.pm.read(8, 4) == 3_579_545
    board.clock.advance_to(5 * SECOND)
    assert board.pm.read(8, 4) == 5 * 3_579_545 - (1 << 24)


def test_writes_to_the_timer_change_nothing() -> None:
    board = Board()
    board.pm.write(8, 4, 0x12345678)
    assert board.pm.read(8, 4) == 0


def test_the_word_0x2000_to_the_control_register_powers_off() -> None:
    board = Board()
    board.pm.write(4, 2, 0x2000)
    assert board.poweroffs == 1
    assert board.pm.read(4, 2) == 0x0000


def test_the_high_byte_alone_powers_off_too() -> None:
    board = Board()
    board.pm.write(5, 1, 0x20)
    assert board.poweroffs == 1


def test_a_dword_write_reaches_the_control_register() -> None:
    board = Board()
    board.pm.write(4, 4, 0x00002000)
    assert board.poweroffs == 1
    board.pm.write(2, 4, 0x20000100)
    assert board.poweroffs == 2
    assert board.pm.read(2, 2) == 0x0100


def test_an_unaligned_word_is_written_byte_by_byte() -> None:
    board = Board()
    board.pm.write(3, 2, 0x0305)
    assert (board.pm.read(2, 2), board.pm.read(4, 2)) == (0x0500, 0x0003)


def test_the_soft_off_type_is_the_boards() -> None:
    board = Board(soft_off_type=5)
    board.pm.write(4, 2, 0x2000)
    assert board.poweroffs == 0
    board.pm.write(4, 2, 0x3400)
    assert board.poweroffs == 1


def test_another_sleep_type_wakes_at_once() -> None:
    board = Board()
    board.pm.write(4, 2, 0x2400)
    assert board.poweroffs == 0
    assert board.pm.read(0, 2) == 0x8000
    assert board.pm.read(4, 2) == 0x0400


def test_without_sleep_enable_nothing_happens() -> None:
    board = Board()
    board.pm.write(4, 2, 0x1C03)
    assert board.poweroffs == 0
    assert board.pm.read(4, 2) == 0x1C03


def test_the_timer_status_is_set_by_each_carry_and_cleared_by_a_one() -> None:
    board = Board()
    board.clock.advance_to(CARRY_NS - 1)
    assert board.pm.read(0, 2) == 0
    board.clock.advance_to(CARRY_NS)
    assert board.pm.read(0, 2) == 0x0001
    board.pm.write(0, 2, 0x0100)
    assert board.pm.read(0, 2) == 0x0001
    board.pm.write(0, 2, 0x0001)
    assert board.pm.read(0, 2) == 0x0000


def test_the_timer_raises_an_sci_each_carry_while_enabled() -> None:
    board = Board()
    board.pm.write(2, 2, 0x0001)
    board.clock.advance_to(CARRY_NS)
    assert board.scis == [CARRY_NS]
    board.pm.write(0, 2, 0x0001)
    assert board.pm.sci.level is False
    board.clock.advance_to(2 * CARRY_NS)
    assert len(board.scis) == 2
    board.clock.advance_to(20 * CARRY_NS)
    assert len(board.scis) == 2  # unacknowledged


def test_the_power_button_raises_an_sci_only_if_enabled_in_acpi_mode() -> None:
    board = Board(sci_enabled=False)
    board.pm.press_power_button()
    assert board.pm.read(0, 2) == 0x0100
    board.pm.write(2, 2, 0x0100)
    assert board.scis == []
    board.pm.write(4, 2, 0x0001)
    assert board.scis == [0]
    board.pm.write(0, 2, 0x0100)
    assert board.pm.sci.level is False


def test_only_the_defined_enables_are_kept() -> None:
    board = Board()
    board.pm.write(2, 2, 0xFFFF)
    assert board.pm.read(2, 2) == 0x0721


@pytest.mark.parametrize(("sci_enabled", "control"), [(True, 1), (False, 0)])
def test_sci_en_at_power_on_is_the_boards(sci_enabled: bool, control: int) -> None:
    assert Board(sci_enabled=sci_enabled).pm.read(4, 2) == control


def test_parts_and_groups_of_registers_can_be_read() -> None:
    board = Board()
    board.pm.press_power_button()
    board.pm.write(2, 2, 0x0520)
    board.clock.advance_to(SECOND)
    assert board.pm.read(0, 4) == 0x05200100
    assert board.pm.read(3, 1) == 0x05
    assert board.pm.read(9, 2) == 3_579_545 >> 8
    assert board.pm.read(6, 2) == 0x0000
    assert board.pm.read(10, 4) == 0xFFFF0000 | 3_579_545 >> 16


def test_reset_disables_everything_but_the_timer_goes_on() -> None:
    board = Board()
    board.pm.write(2, 2, 0x0100)
    board.pm.press_power_button()
    board.clock.advance_to(3 * SECOND)
    board.pm.reset()
    assert board.pm.sci.level is False
    assert (board.pm.read(0, 4), board.pm.read(4, 2)) == (0, 1)
    assert board.pm.read(8, 4) == 3 * 3_579_545


def test_a_restored_state_raises_its_sci_when_the_original_did() -> None:
    board = Board()
    board.pm.write(2, 2, 0x0001)
    saved = copy.deepcopy(board.pm.state)
    board.pm.write(2, 2, 0x0000)
    board.pm.state = saved
    board.pm.rearm()
    board.clock.advance_to(CARRY_NS)
    assert board.scis == [CARRY_NS]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 14), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=40,
    )
)
def test_no_guest_access_crashes_or_reads_more_than_its_width(accesses: list[tuple[int, int, int]]) -> None:
    board = Board()
    for offset, width, value in accesses:
        board.pm.write(offset, width, value)
        assert 0 <= board.pm.read(offset, width) < 1 << 8 * width
        board.clock.advance_to(board.clock.now_ns() + value % (3 * SECOND))


def test_a_byte_write_keeps_the_other_byte_of_its_register() -> None:
    board = Board()
    board.pm.write(2, 2, 0x0520)
    board.pm.write(2, 1, 0x01)
    assert board.pm.read(2, 2) == 0x0501
    board.pm.write(3, 1, 0x02)
    assert board.pm.read(2, 2) == 0x0201


def test_a_byte_write_clears_status_bits_in_its_byte_only() -> None:
    board = Board()
    board.clock.advance_to(CARRY_NS)
    board.pm.press_power_button()
    board.pm.write(1, 1, 0xFF)
    assert board.pm.read(0, 2) == 0x0001


def test_an_enabled_timer_keeps_one_call_only() -> None:
    board = Board()
    board.pm.write(2, 2, 0x0001)
    board.pm.write(2, 2, 0x0000)
    assert board.clock.next_deadline_ns() is None
