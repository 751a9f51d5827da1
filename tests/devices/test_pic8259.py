"""Tests for devices/pic8259.py. Offsets: 0, 1 master; 2, 3 slave; 4, 5 ELCR."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.base import DeviceError
from devices.pic8259 import Pic8259


class Board:
    """A pair of 8259As and every change of the INT pin."""

    def __init__(self) -> None:
        self.changes: list[bool] = []
        self.pic = Pic8259(self.changes.append)

    def out(self, offset: int, *values: int) -> None:
        for value in values:
            self.pic.write(offset, 1, value)

    def inb(self, offset: int) -> int:
        return self.pic.read(offset, 1)

    def irr(self) -> int:
        self.out(0, 0x0A)
        self.out(2, 0x0A)
        return self.inb(0) | self.inb(2) << 8

    def isr(self) -> int:
        self.out(0, 0x0B)
        self.out(2, 0x0B)
        return self.inb(0) | self.inb(2) << 8


def initialised(icw4: int = 0x01) -> Board:
    """Vectors 0x20 and 0x28, as Linux and most others program the pair."""
    board = Board()
    board.out(0, 0x11)
    board.out(1, 0x20, 0x04, icw4)
    board.out(2, 0x11)
    board.out(3, 0x28, 0x02, icw4)
    return board


def test_an_input_raises_the_int_pin_and_acknowledge_gives_its_vector() -> None:
    board = initialised()
    board.pic.set_irq(4, True)
    assert board.changes == [True]
    assert board.irr() == 0x0010
    assert board.pic.acknowledge() == 0x24
    assert board.changes == [True, False]
    assert (board.irr(), board.isr()) == (0, 0x0010)


def test_before_initialisation_nothing_interrupts() -> None:
    board = Board()
    board.pic.set_irq(1, True)
    assert board.changes == []


def test_during_initialisation_nothing_interrupts() -> None:
    board = initialised()
    board.out(0, 0x11)
    board.pic.set_irq(1, True)
    board.out(1, 0x20, 0x04)
    assert board.changes == []
    board.out(1, 0x01)
    assert board.changes == [True]


def test_a_slave_input_comes_through_the_cascade() -> None:
    board = initialised()
    board.pic.set_irq(12, True)
    assert board.irr() == 0x1004
    assert board.pic.acknowledge() == 0x2C
    assert board.isr() == 0x1004


def test_a_masked_input_waits_until_it_is_unmasked() -> None:
    board = initialised()
    board.out(1, 0x02)
    board.pic.set_irq(1, True)
    assert board.changes == []
    assert (board.inb(1), board.irr()) == (0x02, 0x0002)
    board.out(1, 0x00)
    assert board.changes == [True]


def test_the_linux_probe_reads_back_the_mask_before_initialisation() -> None:
    board = Board()
    board.out(3, 0xFF)
    board.out(1, 0xFB)
    assert (board.inb(1), board.inb(3)) == (0xFB, 0xFF)


def test_a_lower_priority_waits_for_the_end_of_interrupt() -> None:
    board = initialised()
    board.pic.set_irq(3, True)
    assert board.pic.acknowledge() == 0x23
    board.pic.set_irq(4, True)
    assert board.pic.int_level is False
    board.out(0, 0x20)
    assert board.pic.int_level is True
    assert board.pic.acknowledge() == 0x24


def test_a_higher_priority_interrupts_the_one_in_service() -> None:
    board = initialised()
    board.pic.set_irq(3, True)
    board.pic.acknowledge()
    board.pic.set_irq(1, True)
    assert board.pic.acknowledge() == 0x21
    assert board.isr() == 0x000A
    board.out(0, 0x20)  # non-specific: the highest, IR1
    assert board.isr() == 0x0008


def test_specific_eoi_ends_the_level_it_names() -> None:
    board = initialised()
    board.pic.set_irq(3, True)
    board.pic.acknowledge()
    board.pic.set_irq(1, True)
    board.pic.acknowledge()
    board.out(0, 0x63)
    assert board.isr() == 0x0002


def test_an_edge_input_that_stays_high_requests_once() -> None:
    board = initialised()
    board.pic.set_irq(5, True)
    board.pic.acknowledge()
    board.out(0, 0x20)
    assert not board.pic.int_level
    board.pic.set_irq(5, False)
    board.pic.set_irq(5, True)
    assert board.pic.int_level


def test_a_level_input_requests_again_until_its_line_falls() -> None:
    board = initialised()
    board.out(4, 0x20)
    board.pic.set_irq(5, True)
    board.pic.acknowledge()
    board.out(0, 0x20)
    assert board.pic.acknowledge() == 0x25
    board.pic.set_irq(5, False)
    board.out(0, 0x20)
    assert not board.pic.int_level


def test_ltim_makes_every_input_level_triggered() -> None:
    board = Board()
    board.out(0, 0x19)
    board.out(1, 0x20, 0x04, 0x01)
    board.pic.set_irq(3, True)
    board.pic.acknowledge()
    board.out(0, 0x20)
    assert board.pic.acknowledge() == 0x23


def test_elcr_keeps_the_motherboard_inputs_edge_triggered() -> None:
    board = Board()
    board.out(4, 0xFF)
    board.out(5, 0xFF)
    assert (board.inb(4), board.inb(5)) == (0xF8, 0xDE)


def test_a_line_that_falls_before_inta_gives_the_spurious_vector() -> None:
    board = initialised()
    board.pic.set_irq(3, True)
    board.pic.set_irq(3, False)
    assert board.changes == [True, False]
    assert board.pic.acknowledge() == 0x27
    assert board.isr() == 0


def test_a_spurious_slave_interrupt_leaves_the_cascade_in_service() -> None:
    board = initialised()
    board.pic.set_irq(10, True)
    board.pic.state.slave.irr = (
        0  # the line falls between the master's and the slave's part of the INTA cycle
    )
    assert board.pic.acknowledge() == 0x2F
    assert board.isr() == 0x0004
    board.out(0, 0x20)
    assert board.isr() == 0


def test_icw1_clears_mask_service_and_edge_sense() -> None:
    board = initialised()
    board.pic.set_irq(6, True)
    board.pic.acknowledge()
    board.pic.set_irq(7, True)
    board.out(1, 0x55)
    board.out(0, 0x11)
    board.out(1, 0x40, 0x04, 0x01)
    assert (board.inb(1), board.irr(), board.isr()) == (0, 0, 0)
    board.pic.set_irq(7, False)
    board.pic.set_irq(7, True)
    assert board.pic.acknowledge() == 0x47


def test_a_sequence_without_icw4_ends_after_icw3() -> None:
    board = Board()
    board.out(0, 0x10)
    board.out(1, 0x20, 0x04, 0xF0)
    assert board.inb(1) == 0xF0


def test_a_single_chip_sequence_skips_icw3() -> None:
    board = Board()
    board.out(0, 0x13)
    board.out(1, 0x20, 0x01, 0x0F)
    assert board.inb(1) == 0x0F


def test_automatic_eoi_leaves_nothing_in_service() -> None:
    board = initialised(icw4=0x03)
    board.pic.set_irq(3, True)
    assert board.pic.acknowledge() == 0x23
    assert board.isr() == 0


def test_with_automatic_eoi_every_slave_request_is_a_new_edge_on_the_cascade() -> None:
    board = initialised(icw4=0x03)
    board.pic.set_irq(9, True)
    board.pic.set_irq(10, True)
    assert board.pic.acknowledge() == 0x29
    assert board.pic.int_level
    assert board.pic.acknowledge() == 0x2A
    assert not board.pic.int_level


def test_rotation_in_automatic_eoi_makes_the_served_input_lowest() -> None:
    board = initialised(icw4=0x03)
    board.out(0, 0x80)
    board.pic.set_irq(0, True)
    board.pic.acknowledge()
    board.pic.set_irq(0, False)
    board.pic.set_irq(0, True)
    board.pic.set_irq(6, True)
    assert board.pic.acknowledge() == 0x26
    board.out(0, 0x00)
    assert board.pic.acknowledge() == 0x20
    board.pic.set_irq(7, True)
    board.pic.set_irq(0, False)
    board.pic.set_irq(0, True)
    assert board.pic.acknowledge() == 0x27  # IR6 still is the lowest: the second rotation was off


def test_rotate_on_non_specific_eoi() -> None:
    board = initialised()
    board.pic.set_irq(0, True)
    board.pic.acknowledge()
    board.out(0, 0xA0)
    board.pic.set_irq(0, False)
    board.pic.set_irq(0, True)
    board.pic.set_irq(7, True)
    assert board.pic.acknowledge() == 0x27


def test_rotate_on_specific_eoi() -> None:
    board = initialised()
    board.pic.set_irq(1, True)
    board.pic.acknowledge()
    board.out(0, 0xE1)
    assert board.isr() == 0
    board.pic.set_irq(0, True)
    board.pic.set_irq(3, True)
    assert board.pic.acknowledge() == 0x23


def test_set_priority_names_the_lowest_input() -> None:
    board = initialised()
    board.out(0, 0xC4)
    board.pic.set_irq(4, True)
    board.pic.set_irq(5, True)
    board.pic.set_irq(0, True)
    assert board.pic.acknowledge() == 0x25


def test_special_mask_mode_lets_lower_inputs_through() -> None:
    board = initialised()
    board.pic.set_irq(3, True)
    board.pic.acknowledge()
    board.pic.set_irq(6, True)
    board.out(1, 0x08)
    assert not board.pic.int_level
    board.out(0, 0x68)
    assert board.pic.acknowledge() == 0x26
    board.out(0, 0x20)  # non-specific EOI does not see the masked IR3
    assert board.isr() == 0x0008
    board.out(0, 0x20)
    assert board.isr() == 0x0008
    board.out(0, 0x48)
    board.out(0, 0x20)
    assert board.isr() == 0


def test_fully_nested_mode_locks_the_slave_out_while_it_is_in_service() -> None:
    board = initialised()
    board.pic.set_irq(12, True)
    board.pic.acknowledge()
    board.pic.set_irq(9, True)
    assert not board.pic.int_level


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    board = initialised(icw4=0x11)
    board.pic.set_irq(12, True)
    assert board.pic.acknowledge() == 0x2C
    board.pic.set_irq(9, True)
    assert board.pic.acknowledge() == 0x29
    board.pic.set_irq(3, True)
    assert not board.pic.int_level  # IR3 of the master still is lower than IR2


def test_poll_is_an_inta_cycle_for_one_read() -> None:
    board = initialised()
    board.pic.set_irq(4, True)
    board.out(0, 0x0C)
    assert board.inb(0) == 0x84
    assert not board.pic.int_level
    assert board.isr() == 0x0010


def test_poll_without_a_request_reads_zero() -> None:
    board = initialised()
    board.out(0, 0x0C)
    assert board.inb(0) == 0


def test_the_slave_is_polled_by_itself() -> None:
    board = initialised()
    board.pic.set_irq(11, True)
    board.out(2, 0x0C)
    assert board.inb(2) == 0x83
    assert board.isr() == 0x0800
    assert not board.pic.int_level


def test_ocw3_chooses_between_irr_and_isr_until_told_otherwise() -> None:
    board = initialised()
    board.pic.set_irq(4, True)
    board.pic.acknowledge()
    board.pic.set_irq(6, True)
    assert board.inb(0) == 0x40
    board.out(0, 0x0B)
    assert (board.inb(0), board.inb(0)) == (0x10, 0x10)
    board.out(0, 0x0A)
    assert board.inb(0) == 0x40


def test_a_wide_access_to_the_master_does_not_reach_the_slave() -> None:
    board = initialised()
    board.pic.write(1, 2, 0x11AA)
    assert (board.inb(1), board.inb(3)) == (0xAA, 0x00)
    board.pic.write(0, 2, 0x550B)
    assert board.inb(1) == 0x55


@pytest.mark.parametrize("number", [-1, 2, 16])
def test_a_wire_that_does_not_exist_is_refused_in_one_sentence(number: int) -> None:
    with pytest.raises(DeviceError, match=rf"no input {number} .*wire the device to another IRQ"):
        initialised().pic.set_irq(number, True)


def test_reset_takes_the_int_pin_down() -> None:
    board = initialised()
    board.pic.set_irq(4, True)
    board.pic.reset()
    assert board.changes == [True, False]
    assert board.inb(1) == 0


def test_rearm_drives_the_pin_of_a_restored_state() -> None:
    board = initialised()
    board.pic.set_irq(4, True)
    saved = copy.deepcopy(board.pic.state)
    board.pic.acknowledge()
    board.changes.clear()
    board.pic.state = saved
    board.pic.rearm()
    assert board.changes[-1] is True
    assert board.pic.acknowledge() == 0x24


@settings(max_examples=200, deadline=None)
@given(
    lowest=st.integers(0, 7),
    lines=st.sets(st.integers(0, 7).filter(lambda n: n != 2)),
    served=st.sets(st.integers(0, 7).filter(lambda n: n != 2)),
    mask=st.integers(0, 255),
    special=st.booleans(),
)
def test_priority_agrees_with_a_list_sorted_by_rank(
    lowest: int, lines: set[int], served: set[int], mask: int, special: bool
) -> None:
    board = initialised()
    for number in served:  # into service one after another, each from the top of the priorities
        board.out(0, 0xC0 | (number - 1) % 8)
        board.pic.set_irq(number, True)
        board.pic.acknowledge()
        board.pic.set_irq(number, False)
    board.out(1, mask)
    for number in lines:
        board.pic.set_irq(number, True)
    board.out(0, 0x68 if special else 0x48)
    board.out(0, 0xC0 | lowest)

    ranking = [*range(lowest + 1, 8), *range(lowest + 1)]
    expected = None
    for number in ranking:
        if number in served and not (special and mask >> number & 1):
            break
        if number in lines and not mask >> number & 1:
            expected = number
            break
    assert board.isr() == sum(1 << number for number in served)
    assert board.pic.int_level is (expected is not None)
    assert board.pic.acknowledge() == 0x20 + (7 if expected is None else expected)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
            st.tuples(st.just("line"), st.sampled_from([0, 1, 3, 8, 12, 15]), st.integers(0, 1)),
            st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
            st.tuples(st.just("inta"), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_no_guest_access_crashes_and_the_pin_follows_the_requests(steps: list[tuple[str, int, int]]) -> None:
    board = Board()
    for kind, number, value in steps:
        match kind:
            case "write":
                board.out(number, value)
            case "line":
                board.pic.set_irq(number, bool(value))
            case "read":
                assert 0 <= board.inb(number) <= 0xFF
            case _:
                assert 0 <= board.pic.acknowledge() <= 0xFF
        assert board.pic.int_level is (board.changes[-1] if board.changes else False)


def test_making_an_input_level_triggered_requests_what_its_line_says_and_no_more() -> None:
    board = initialised()
    board.pic.set_irq(5, True)
    board.pic.acknowledge()
    board.out(0, 0x20)
    board.out(4, 0x20)
    assert board.irr() == 0x0020
    board.out(4, 0x00)
    board.pic.set_irq(5, False)
    board.out(4, 0x20)
    assert board.irr() == 0x0000


def test_the_second_ocw2_without_a_command_changes_nothing() -> None:
    board = initialised()
    board.pic.set_irq(4, True)
    board.pic.acknowledge()
    board.out(0, 0x40)
    assert board.isr() == 0x0010
