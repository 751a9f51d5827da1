"""The HPET against the IA-PC HPET specification."""

from __future__ import annotations

import copy

import pytest

from devices.base import DeviceError, IrqLine
from devices.clock import VirtualClock
from devices.hpet import Hpet

CONFIG, STATUS, COUNTER = 0x010, 0x020, 0x0F0
ENABLE, LEGACY = 1, 2
LEVEL, INT_ENABLE, PERIODIC, SET_VALUE, BITS_32 = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 8
FSB = 1 << 14
ROUTE_20, ROUTE_11 = 20 << 9, 11 << 9


def timer(number: int) -> int:
    return 0x100 + 0x20 * number


class Board:
    """An HPET of 10 ns a tick with every wire recorded as (name, level)."""

    def __init__(self, **options: object) -> None:
        self.clock = VirtualClock()
        self.wires: list[tuple[str, bool]] = []
        self.legacy: list[bool] = []
        self.messages: list[tuple[int, int]] = []
        lines = (
            IrqLine(lambda _number, level: self.wires.append(("irq0", level))),
            IrqLine(lambda _number, level: self.wires.append(("irq8", level))),
        )
        self.hpet = Hpet(
            self.clock,
            lambda gsi, level: self.wires.append((f"pin{gsi}", level)),
            legacy_lines=lines,
            on_legacy=self.legacy.append,
            send_fsb=lambda address, data: self.messages.append((address, data)),
            **options,  # type: ignore[arg-type]
        )

    def read(self, offset: int, width: int = 8) -> int:
        return self.hpet.read(offset, width)

    def write(self, offset: int, value: int, width: int = 8) -> None:
        self.hpet.write(offset, width, value)

    def rises(self) -> list[str]:
        return [name for name, level in self.wires if level]


def test_capabilities_name_three_64_bit_timers_and_the_period() -> None:
    board = Board()
    assert board.read(0) == 10_000_000 << 32 | 0x8086_A201
    assert board.read(4, 4) == 10_000_000
    bare = Hpet(VirtualClock(), lambda _gsi, _level: None)
    assert bare.read(0, 4) == 0x8086_2201  # no legacy wires: no legacy replacement
    assert bare.read(timer(2), 8) == 0x00F0_0800_0000_0030


def test_the_counter_moves_only_while_enabled() -> None:
    board = Board()
    board.clock.advance_to(1000)
    assert board.read(COUNTER) == 0
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(3000)
    assert board.read(COUNTER) == 200
    board.write(CONFIG, 0)
    board.clock.advance_to(9000)
    assert board.read(COUNTER) == 200
    board.write(COUNTER, 0x1_0000_0000)
    assert board.read(COUNTER + 4, 4) == 1


def test_one_shot_pulses_its_pin_once() -> None:
    board = Board()
    board.write(timer(0), INT_ENABLE | ROUTE_20)
    board.write(timer(0) + 8, 100)
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(999)
    assert board.wires == []
    board.clock.advance_to(1000)
    assert board.wires == [("pin20", True), ("pin20", False)]
    board.clock.advance_to(100_000)
    assert board.rises() == ["pin20"]


def test_a_32_bit_timer_matches_again_after_the_wrap() -> None:
    board = Board()
    board.write(timer(0), INT_ENABLE | BITS_32 | ROUTE_20)
    board.write(timer(0) + 8, 0xFFFF_FFFF_0000_0064)
    assert board.read(timer(0) + 8) == 0x64
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(1000)
    assert board.clock.next_deadline_ns() == 1000 + 10 * (1 << 32)


def test_periodic_set_value_gives_the_first_match_and_the_next_write_the_period() -> None:
    board = Board()
    board.write(timer(0), INT_ENABLE | PERIODIC | SET_VALUE | ROUTE_20)
    board.write(timer(0) + 8, 5000)
    assert not board.read(timer(0)) & SET_VALUE
    board.write(timer(0) + 8, 2000)
    assert board.read(timer(0) + 8) == 5000
    board.write(CONFIG, ENABLE)
    times = []
    for _ in range(3):
        deadline = board.clock.next_deadline_ns()
        assert deadline is not None
        times.append(deadline)
        board.clock.advance_to(deadline)
    assert times == [50_000, 70_000, 90_000]
    assert board.read(timer(0) + 8) == 11_000


def test_a_silly_period_is_bounded() -> None:
    board = Board(min_period_ns=10_000)
    board.write(timer(0), INT_ENABLE | PERIODIC | SET_VALUE | ROUTE_20)
    board.write(timer(0) + 8, 1)
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(1_000_000)
    assert 90 <= len(board.rises()) <= 101
    zero = Board()
    zero.write(timer(0), INT_ENABLE | PERIODIC | SET_VALUE | BITS_32 | ROUTE_20)
    zero.write(timer(0) + 8, 0)
    zero.write(CONFIG, ENABLE)
    zero.clock.advance_to(1_000_000)
    assert len(zero.rises()) == 1


def test_a_level_timer_holds_its_pin_until_its_status_is_cleared() -> None:
    board = Board()
    board.write(timer(2), LEVEL | INT_ENABLE | ROUTE_11)
    board.write(timer(2) + 8, 10)
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(100)
    assert board.wires == [("pin11", True)]
    assert board.read(STATUS) == 4
    board.write(STATUS, 3)
    assert board.read(STATUS) == 4
    board.write(STATUS, 4)
    assert board.read(STATUS) == 0
    assert board.wires == [("pin11", True), ("pin11", False)]


def test_timers_share_a_level_pin() -> None:
    board = Board()
    for number in (0, 1):
        board.write(timer(number), LEVEL | INT_ENABLE | ROUTE_20)
        board.write(timer(number) + 8, 10)
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(100)
    board.write(STATUS, 1)
    assert board.wires == [("pin20", True)]
    board.write(STATUS, 2)
    assert board.wires == [("pin20", True), ("pin20", False)]


def test_a_silent_level_timer_sets_its_status_without_waking_anybody() -> None:
    board = Board()
    board.write(timer(0), LEVEL | ROUTE_20)
    board.write(timer(0) + 8, 10)
    board.write(CONFIG, ENABLE)
    assert board.clock.next_deadline_ns() is None
    board.clock.advance_to(100)
    assert board.read(STATUS) == 1
    assert board.wires == []


def test_a_silent_periodic_timer_moves_its_comparator_on() -> None:
    board = Board()
    board.write(timer(0), PERIODIC | SET_VALUE)
    board.write(timer(0) + 8, 100)
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(5_550)
    assert board.read(timer(0) + 8) == 600
    board.write(timer(0), PERIODIC | INT_ENABLE | ROUTE_20)
    assert board.clock.next_deadline_ns() == 6_000


def test_legacy_replacement_moves_timers_0_and_1_to_irq_0_and_8() -> None:
    board = Board()
    for number in range(3):
        board.write(timer(number), INT_ENABLE | ROUTE_20)
        board.write(timer(number) + 8, 100 + number)
    board.write(CONFIG, ENABLE | LEGACY)
    assert board.legacy == [True]
    board.clock.advance_to(2000)
    assert board.rises() == ["irq0", "irq8", "pin20"]
    board.write(CONFIG, ENABLE)
    assert board.legacy == [True, False]


def test_leaving_legacy_replacement_lets_go_of_its_wires() -> None:
    board = Board()
    board.write(timer(0), LEVEL | INT_ENABLE | ROUTE_20)
    board.write(timer(0) + 8, 10)
    board.write(CONFIG, ENABLE | LEGACY)
    board.clock.advance_to(100)
    board.write(CONFIG, ENABLE)
    assert board.wires == [("irq0", True), ("irq0", False), ("pin20", True)]


def test_fsb_delivery_writes_its_message() -> None:
    board = Board()
    board.write(timer(1), INT_ENABLE | FSB)
    board.write(timer(1) + 0x10, 0xFEE0_0000_0000_4033)
    board.write(timer(1) + 8, 10)
    board.write(CONFIG, ENABLE)
    board.clock.advance_to(100)
    assert board.messages == [(0xFEE0_0000, 0x4033)]
    assert board.wires == []


def test_a_route_that_is_not_offered_reads_back_unchanged() -> None:
    board = Board()
    board.write(timer(0), ROUTE_20)
    board.write(timer(0), ROUTE_11)
    assert board.read(timer(0)) & 0x3E00 == ROUTE_20


def test_comparator_halves_can_be_written_apart() -> None:
    board = Board()
    board.write(timer(0) + 8, 0x1234_5678, 4)
    board.write(timer(0) + 12, 0x9ABC, 4)
    assert board.read(timer(0) + 8) == 0x9ABC_1234_5678


def test_reset_halts_everything_and_lowers_the_wires() -> None:
    board = Board()
    board.write(timer(0), LEVEL | INT_ENABLE | ROUTE_20)
    board.write(timer(0) + 8, 10)
    board.write(CONFIG, ENABLE | LEGACY)
    board.clock.advance_to(100)
    board.hpet.reset()
    assert board.wires == [("irq0", True), ("irq0", False)]
    assert board.legacy == [True, False]
    assert board.clock.next_deadline_ns() is None
    assert (board.read(CONFIG), board.read(STATUS), board.read(COUNTER)) == (0, 0, 0)
    assert board.read(timer(0) + 8) == 0xFFFF_FFFF_FFFF_FFFF


def test_a_snapshot_rearms_its_deadlines() -> None:
    board = Board()
    board.write(timer(0), INT_ENABLE | ROUTE_20)
    board.write(timer(0) + 8, 100)
    board.write(CONFIG, ENABLE)
    saved = copy.deepcopy(board.hpet.state)
    board.hpet.reset()
    board.hpet.state = saved
    board.hpet.rearm()
    assert board.clock.next_deadline_ns() == 1000
    board.clock.advance_to(1000)
    assert board.rises() == ["pin20"]


def test_a_period_beyond_the_specification_is_a_device_error() -> None:
    for period in (0, 100_000_001):
        with pytest.raises(DeviceError, match="choose a shorter tick"):
            Board(period_fs=period)


def test_every_access_is_safe() -> None:
    board = Board()
    board.write(CONFIG, ENABLE)
    for offset in range(0x400):
        for width in (1, 2, 4, 8):
            board.write(offset, (1 << 8 * width) - 1, width)
            assert 0 <= board.read(offset, width) < 1 << 8 * width
    board.clock.advance_to(1_000_000)
