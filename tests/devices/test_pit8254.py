"""Tests for devices/pit8254.py. Offsets: 0, 1, 2 counters; 3 control; 0x21 port 0x61."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.base import IrqLine
from devices.clock import VirtualClock
from devices.pit8254 import Counter, Pit8254, ns_of_tick, ticks_at


class Board:
    """A PIT and the tick of every change of its interrupt line."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.edges: list[tuple[int, bool]] = []
        self.pit = Pit8254(IrqLine(self._on_irq), self.clock)

    def _on_irq(self, number: int, level: bool) -> None:
        self.edges.append((ticks_at(self.clock.now_ns()), level))

    def rises(self) -> list[int]:
        return [tick for tick, level in self.edges if level]

    def out(self, offset: int, *values: int) -> None:
        for value in values:
            self.pit.write(offset, 1, value)

    def inb(self, offset: int) -> int:
        return self.pit.read(offset, 1)

    def at(self, tick: int) -> None:
        self.clock.advance_to(ns_of_tick(tick))

    def count(self, number: int) -> int:
        """A latched two-byte count."""
        self.out(3, number << 6)
        return self.inb(number) | self.inb(number) << 8

    def status(self, number: int) -> int:
        self.out(3, 0xE0 | 2 << number)
        return self.inb(number)


@given(st.integers(0, 10**15))
def test_ticks_and_nanoseconds_agree(tick: int) -> None:
    assert ticks_at(ns_of_tick(tick)) == tick
    assert tick == 0 or ticks_at(ns_of_tick(tick) - 1) == tick - 1


def test_a_second_has_1193182_ticks() -> None:
    assert ticks_at(1_000_000_000) == 1_193_182


def test_mode_0_raises_out_when_the_count_has_run_out_and_goes_on_counting() -> None:
    board = Board()
    board.out(3, 0x30)
    board.out(0, 100, 0)
    board.at(100)
    assert (board.pit.out(0), board.count(0)) == (False, 1)
    board.at(101)
    assert (board.pit.out(0), board.count(0)) == (True, 0)
    board.at(102)
    assert (board.pit.out(0), board.count(0)) == (True, 0xFFFF)
    assert board.rises() == [101]


def test_mode_0_interrupts_once() -> None:
    board = Board()
    board.out(3, 0x30)
    board.out(0, 100, 0)
    board.at(1_000_000)
    assert board.edges == [(101, True)]


def test_the_control_word_of_mode_0_takes_out_down() -> None:
    board = Board()
    board.out(3, 0x34)
    assert board.pit.irq0.level is True
    board.out(3, 0x30)
    assert board.pit.irq0.level is False


def test_the_first_byte_of_a_mode_0_count_stops_the_counter() -> None:
    board = Board()
    board.out(3, 0x30)
    board.out(0, 100, 0)
    board.at(50)
    board.out(0, 10)
    board.at(1000)
    assert (board.pit.out(0), board.count(0)) == (False, 51)
    board.out(0, 0)
    board.at(1010)
    assert board.pit.out(0) is False
    board.at(1011)
    assert board.pit.out(0) is True


def test_mode_2_divides_the_clock() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 100, 0)
    board.at(1)
    assert board.count(0) == 100
    board.at(100)
    assert (board.count(0), board.pit.out(0)) == (1, False)
    board.at(101)
    assert (board.count(0), board.pit.out(0)) == (100, True)
    board.at(350)
    assert board.rises() == [0, 101, 201, 301]


def test_a_hundred_hertz_tick_gives_a_hundred_interrupts_a_second() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 11932 & 0xFF, 11932 >> 8)
    board.edges.clear()
    board.clock.advance_to(10_000_000_000)
    assert len(board.rises()) == 10 * 1_193_182 // 11932


def test_count_zero_is_65536() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 0, 0)
    board.at(1)
    assert board.count(0) == 0
    board.at(2)
    assert board.count(0) == 0xFFFF
    board.at(65536 * 2 + 1)
    assert board.rises() == [0, 65537, 131073]


def test_mode_3_is_a_square_wave_with_the_odd_clock_in_the_high_half() -> None:
    board = Board()
    board.out(3, 0x36)
    board.out(0, 101, 0)
    board.at(300)
    assert board.edges == [(0, True), (52, False), (102, True), (153, False), (203, True), (254, False)]


def test_mode_3_counts_by_two() -> None:
    board = Board()
    board.out(3, 0x36)
    board.out(0, 6, 0)
    values = []
    for tick in range(1, 8):
        board.at(tick)
        values.append(board.count(0))
    assert values == [6, 4, 2, 6, 4, 2, 6]


def test_mode_4_strobes_one_clock_and_interrupts_when_it_ends() -> None:
    board = Board()
    board.out(3, 0x38)
    board.out(0, 100, 0)
    board.edges.clear()
    board.at(100)
    assert board.pit.out(0) is True
    board.at(101)
    assert board.pit.out(0) is False
    board.at(102)
    assert board.pit.out(0) is True
    board.at(10_000)
    assert board.rises() == [102]


def test_mode_1_is_a_retriggerable_one_shot_on_the_gate() -> None:
    board = Board()
    board.out(3, 0xB2)
    board.out(2, 100, 0)
    board.at(500)
    assert board.pit.out(2) is True
    board.out(0x21, 1)
    board.at(501)
    assert board.pit.out(2) is False
    board.at(550)
    board.out(0x21, 0)
    board.out(0x21, 1)
    assert board.pit.out(2) is False
    board.at(650)
    assert board.pit.out(2) is False
    board.at(651)
    assert board.pit.out(2) is True


def test_mode_5_strobes_after_a_gate_trigger() -> None:
    board = Board()
    board.out(3, 0xBA)
    board.out(2, 100, 0)
    board.out(0x21, 1)
    lows = []
    for tick in range(90, 110):
        board.at(tick)
        if not board.inb(0x21) & 0x20:
            lows.append(tick)
    assert lows == [101]


def test_the_gate_stops_mode_0_and_lets_it_go_on() -> None:
    board = Board()
    board.out(0x21, 1)
    board.out(3, 0xB0)
    board.out(2, 100, 0)
    board.at(41)
    board.out(0x21, 0)
    board.at(5000)
    assert board.count(2) == 60
    board.out(0x21, 1)
    board.at(5059)
    assert board.pit.out(2) is False
    board.at(5060)
    assert board.pit.out(2) is True


def test_the_gate_forces_mode_2_high_and_restarts_it() -> None:
    board = Board()
    board.out(0x21, 1)
    board.out(3, 0xB4)
    board.out(2, 100, 0)
    board.at(100)
    assert board.pit.out(2) is False
    board.out(0x21, 0)
    assert board.pit.out(2) is True
    board.at(1000)
    board.out(0x21, 1)
    board.at(1001)
    assert board.count(2) == 100


def test_linux_fast_calibration_sees_the_high_byte_fall_once_in_256_ticks() -> None:
    board = Board()
    board.out(0x21, 0x01)
    board.out(3, 0xB0)
    board.out(2, 0xFF, 0xFF)
    highs = []
    for tick in range(1, 1025, 256):
        board.at(tick + 10)
        board.inb(2)
        highs.append(board.inb(2))
    assert highs == [0xFF, 0xFE, 0xFD, 0xFC]


def test_a_new_count_of_mode_2_waits_for_the_end_of_the_period() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 100, 0)
    board.at(150)
    board.out(0, 50, 0)
    assert board.status(0) & 0x40
    board.at(200)
    assert board.count(0) == 1
    board.at(201)
    assert board.count(0) == 50
    assert not board.status(0) & 0x40
    board.at(310)
    assert board.rises() == [0, 101, 201, 251, 301]


def test_a_new_count_of_mode_3_waits_for_the_end_of_the_half_cycle() -> None:
    board = Board()
    board.out(3, 0x36)
    board.out(0, 200, 0)
    board.at(50)
    board.out(0, 100, 0)
    board.at(260)
    assert board.edges == [(0, True), (101, False), (151, True), (201, False), (251, True)]


def test_a_latched_count_stays_until_it_has_been_read() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 0, 0x10)
    board.at(0x101)
    board.out(3, 0x00)
    board.at(0x201)
    board.out(3, 0x00)
    assert board.inb(0) | board.inb(0) << 8 == 0x0F00
    assert board.inb(0) | board.inb(0) << 8 == 0x0E00


def test_low_and_high_byte_access_modes_use_one_byte() -> None:
    board = Board()
    board.out(3, 0x54)
    board.out(1, 0x20)
    board.at(1)
    assert (board.inb(1), board.inb(1)) == (0x20, 0x20)
    board.out(3, 0x64)
    board.out(1, 0x03)
    board.at(2)
    assert (board.inb(1), board.inb(1)) == (0x03, 0x03)
    assert board.pit.state.counters[1].count == 0x300


def test_read_back_latches_status_and_count_of_several_counters() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 0x34, 0x12)
    board.out(3, 0x76)
    board.out(1, 0x78, 0x56)
    board.at(1)
    board.out(3, 0xC6)
    board.at(100)
    assert [board.inb(0) for _ in range(3)] == [0xB4, 0x34, 0x12]
    assert [board.inb(1) for _ in range(3)] == [0xB6, 0x78, 0x56]


def test_the_status_shows_out_null_count_access_mode_and_bcd() -> None:
    board = Board()
    board.out(3, 0x11)
    assert board.status(0) == 0x51
    board.out(0, 5)
    board.at(1)
    assert board.status(0) == 0x11
    board.at(6)
    assert board.status(0) == 0x91


def test_modes_6_and_7_are_modes_2_and_3() -> None:
    board = Board()
    board.out(3, 0x3C)
    assert board.status(0) & 0x0E == 0x04
    board.out(3, 0x3E)
    assert board.status(0) & 0x0E == 0x06


def test_bcd_counts_decimal() -> None:
    board = Board()
    board.out(3, 0x35)
    board.out(0, 0x00, 0x10)
    board.at(2)
    assert board.count(0) == 0x0999
    board.at(1001)
    assert board.count(0) == 0x1000


def test_bcd_zero_is_ten_thousand() -> None:
    board = Board()
    board.out(3, 0x31)
    board.out(0, 0x00, 0x00)
    board.at(2)
    assert board.count(0) == 0x9999
    board.at(10_001)
    assert board.rises() == [10_001]


def test_port_61_keeps_its_low_bits_and_shows_out2() -> None:
    board = Board()
    board.out(0x21, 0xFF)
    assert board.inb(0x21) & 0xEF == 0x0F
    board.out(3, 0xB4)
    assert board.inb(0x21) & 0x20


def test_the_refresh_bit_toggles_every_fifteen_microseconds() -> None:
    board = Board()
    toggles = 0
    last = board.inb(0x21) & 0x10
    for now_ns in range(0, 1_000_000, 1000):
        board.clock.advance_to(now_ns)
        bit = board.inb(0x21) & 0x10
        toggles += bit != last
        last = bit
    assert toggles == 66


def test_the_control_register_and_unknown_offsets_read_undriven() -> None:
    board = Board()
    assert (board.inb(3), board.inb(4), board.inb(0x20)) == (0xFF, 0xFF, 0xFF)
    assert board.pit.read(2, 4) == 0xFFFFFF00  # counter 2 reads 65536's low byte


@pytest.mark.parametrize("control", [0x34, 0x36])
@pytest.mark.parametrize("count", [1, 2, 3, 31])
def test_a_tiny_period_cannot_flood_the_machine_with_interrupts(control: int, count: int) -> None:
    board = Board()
    board.out(3, control)
    board.out(0, count, 0)
    board.at(32 * 100)
    assert 50 <= len(board.rises()) <= 101


def test_periods_that_pass_inside_one_jump_of_time_interrupt_once() -> None:
    now = [0]
    clock = VirtualClock(lambda: now[0])
    rises: list[int] = []
    pit = Pit8254(IrqLine(lambda number, level: rises.append(now[0]) if level else None), clock)
    pit.write(3, 1, 0x34)
    pit.write(0, 1, 100)
    pit.write(0, 1, 0)
    rises.clear()
    now[0] = 10**12
    clock.fire_due()
    assert len(rises) == 1
    deadline = clock.next_deadline_ns()
    assert deadline is not None and deadline > now[0]


def test_reset_stops_the_interrupts() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 100, 0)
    board.pit.reset()
    board.edges.clear()
    board.at(10_000)
    assert board.edges == []
    assert board.pit.irq0.level is False


def test_a_restored_state_interrupts_when_the_original_did() -> None:
    original, restored = Board(), Board()
    for board in (original, restored):
        board.out(3, 0x34)
        board.out(0, 3, 0)
        board.at(1234)
    restored.pit.state = copy.deepcopy(original.pit.state)
    restored.pit.rearm()
    for board in (original, restored):
        board.edges.clear()
        board.at(5678)
    assert restored.edges == original.edges


class SteppedCounter:
    """The datasheet's counter one clock at a time: an independent model of what `Counter` calculates."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.gate = True
        self.out = mode != 0
        self.register = 0
        self.element = 0
        self.load = False  # CR goes to CE at the next clock
        self.running = False

    def write(self, count: int) -> None:
        self.register = count
        if self.mode == 0:
            self.out = False
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.running and self.gate):
            self.load = True

    def set_gate(self, gate: bool) -> None:
        rising = gate and not self.gate
        self.gate = gate
        if rising and self.register and self.mode in (1, 2, 3, 5):
            self.load = True
        if not gate and self.mode in (2, 3):
            self.out = True

    def clock(self) -> None:
        strobe_ends = self.mode in (4, 5) and not self.out
        if strobe_ends:
            self.out = True
        if self.load:
            self.load = False
            self.running = True
            self.element = self.register & ~1 if self.mode == 3 else self.register
            self.extra = self.mode == 3 and self.register & 1 == 1
            if self.mode == 1:
                self.out = False
            if self.mode in (2, 3):
                self.out = True
            self.expired = False
            return
        if not self.running or (not self.gate and self.mode in (0, 2, 3, 4)):
            return
        match self.mode:
            case 0 | 1:
                self.element -= 1
                if self.element == 0 and not self.expired:
                    self.out = self.expired = True
                self.element %= 65536
            case 4 | 5:
                self.element -= 1
                if self.element == 0 and not self.expired:
                    self.expired = True
                    self.out = False
                self.element %= 65536
            case 2:
                self.element -= 1
                if self.element == 0:
                    self.element = self.register
                self.out = self.element != 1
            case _:
                last = 0 if self.out and self.extra else 2
                if self.element <= last:
                    self.out = not self.out
                    self.element = self.register & ~1
                    self.extra = self.register & 1 == 1
                else:
                    self.element -= 2


@settings(max_examples=300, deadline=None)
@given(
    mode=st.integers(0, 5),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(2, 12)),
            st.tuples(st.just("gate"), st.integers(0, 1)),
            st.tuples(st.just("wait"), st.integers(1, 15)),
        ),
        min_size=1,
        max_size=14,
    ),
)
def test_out_and_count_agree_with_a_counter_that_ticks(mode: int, steps: list[tuple[str, int]]) -> None:
    model = SteppedCounter(mode)
    counter = Counter()
    counter.write_control(0x10 | mode << 1)
    tick = 0
    for kind, value in steps:
        match kind:
            case "write":
                model.write(value)
                counter.write_byte(value, tick)
            case "gate":
                model.set_gate(bool(value))
                counter.set_gate(bool(value), tick)
            case _:
                pass
        for _ in range(value if kind == "wait" else 1):
            tick += 1
            model.clock()
            counter.settle(tick)
            assert counter.out(tick) == model.out
            if model.running and model.gate:
                assert counter.value(tick) == model.element


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 4, 0x21]), st.integers(0, 255)), max_size=60))
def test_no_guest_access_crashes_and_every_register_is_a_byte(accesses: list[tuple[int, int]]) -> None:
    board = Board()
    for offset, value in accesses:
        board.out(offset, value)
        assert 0 <= board.inb(offset) <= 0xFF
        board.clock.advance_to(board.clock.now_ns() + value * 500)


def test_a_long_square_wave_after_a_short_one_starts_in_mid_cycle() -> None:
    board = Board()
    board.out(3, 0x36)
    board.out(0, 20, 0)
    board.at(3)
    board.out(0, 2000 & 0xFF, 2000 >> 8)
    board.at(3000)
    assert board.edges == [(0, True), (11, False), (1011, True), (2011, False)]


def test_a_control_word_forgets_half_a_count_and_an_old_one() -> None:
    board = Board()
    board.out(3, 0xB2)
    board.out(2, 100, 0)
    board.out(2, 0x77)
    board.out(3, 0xB2)
    board.out(0x21, 1)
    board.at(50)
    assert board.pit.out(2) is True  # the trigger found no count
    board.out(2, 10, 0)
    board.out(0x21, 0)
    board.out(0x21, 1)
    board.at(60)
    assert board.pit.out(2) is False
    board.at(61)
    assert board.pit.out(2) is True


def test_the_first_byte_of_a_mode_4_count_stops_nothing() -> None:
    board = Board()
    board.out(0x21, 1)
    board.out(3, 0xB8)
    board.out(2, 100, 0)
    board.out(2, 50)
    board.at(40)
    board.out(0x21, 0)
    board.out(0x21, 1)
    board.at(101)
    assert board.pit.out(2) is False


def test_a_status_latched_after_a_reload_shows_that_the_count_has_been_taken() -> None:
    board = Board()
    board.out(3, 0x34)
    board.out(0, 100, 0)
    board.at(50)
    board.out(0, 200, 0)
    board.at(100)
    assert board.status(0) & 0x40
    board.at(101)
    assert not board.status(0) & 0x40
