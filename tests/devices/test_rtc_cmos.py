"""Tests for devices/rtc_cmos.py. Offsets: 0 index, 1 data."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.base import DeviceError, IrqLine
from devices.clock import VirtualClock
from devices.rtc_cmos import CmosSetup, RtcCmos

SECOND = 1_000_000_000


class Board:
    """An RTC and the virtual time of every rise of IRQ8."""

    def __init__(
        self,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        setup: CmosSetup | None = None,
        cmos: dict[int, int] | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.rises: list[int] = []
        self.rtc = RtcCmos(IrqLine(self._on_irq, 8), self.clock, start, setup, cmos)

    def _on_irq(self, number: int, level: bool) -> None:
        if level:
            self.rises.append(self.clock.now_ns())

    def get(self, register: int) -> int:
        self.rtc.write(0, 1, register)
        return self.rtc.read(1, 1)

    def set(self, register: int, value: int) -> None:
        self.rtc.write(0, 1, register)
        self.rtc.write(1, 1, value)

    def date_bytes(self) -> list[int]:
        """Century, year, month, day, weekday, hour, minute, second."""
        return [self.get(register) for register in (0x32, 9, 8, 7, 6, 4, 2, 0)]


def test_the_default_date_is_the_first_of_january_2026_a_thursday_in_bcd() -> None:
    assert Board().date_bytes() == [0x20, 0x26, 0x01, 0x01, 5, 0x00, 0x00, 0x00]


def test_virtual_time_moves_the_date() -> None:
    board = Board(datetime(2027, 12, 31, 23, 59, 58, tzinfo=UTC))
    board.clock.advance_to(SECOND)
    assert board.date_bytes() == [0x20, 0x27, 0x12, 0x31, 6, 0x23, 0x59, 0x59]
    board.clock.advance_to(2 * SECOND)
    assert board.date_bytes() == [0x20, 0x28, 0x01, 0x01, 7, 0x00, 0x00, 0x00]


def test_the_29th_of_february_exists_in_leap_years_only() -> None:
    board = Board(datetime(2028, 2, 28, 23, 59, 59, tzinfo=UTC))
    board.clock.advance_to(SECOND)
    assert (board.get(8), board.get(7)) == (0x02, 0x29)
    board = Board(datetime(2100, 2, 28, 23, 59, 59, tzinfo=UTC))
    board.clock.advance_to(SECOND)
    assert (board.get(8), board.get(7)) == (0x03, 0x01)


def test_a_start_with_an_offset_is_taken_to_utc() -> None:
    board = Board(datetime(2026, 6, 1, 1, 0, tzinfo=timezone(timedelta(hours=2))))
    assert board.date_bytes() == [0x20, 0x26, 0x05, 0x31, 1, 0x23, 0x00, 0x00]


def test_microseconds_of_the_start_bring_the_first_update_forward() -> None:
    board = Board(datetime(2026, 1, 1, 0, 0, 0, 750_000, tzinfo=UTC))
    board.clock.advance_to(249_999_999)
    assert board.get(0) == 0
    board.clock.advance_to(250_000_000)
    assert board.get(0) == 1


def test_binary_and_twelve_hour_notation() -> None:
    for hour, twelve in ((0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)):
        board = Board(datetime(2026, 10, 20, hour, 45, 30, tzinfo=UTC))
        board.set(0x0B, 0x00)
        assert board.get(4) == twelve
        board.set(0x0B, 0x06)
        assert [board.get(register) for register in (9, 8, 7, 4, 2, 0)] == [26, 10, 20, hour, 45, 30]


def test_twelve_hour_notation_can_be_written() -> None:
    board = Board()
    board.set(0x0B, 0x00)
    for written, hour in ((0x12, 0), (0x92, 12), (0x85, 17), (0x05, 5)):
        board.set(4, written)
        board.set(0x0B, 0x02)
        assert board.get(4) == (hour // 10 << 4 | hour % 10)
        board.set(0x0B, 0x00)


def test_update_in_progress_is_set_in_the_last_244_microseconds_of_a_second() -> None:
    board = Board()
    for now_ns, expected in (
        (0, 0x26),
        (SECOND - 244_001, 0x26),
        (SECOND - 244_000, 0xA6),
        (SECOND - 1, 0xA6),
        (SECOND, 0x26),
    ):
        board.clock.advance_to(now_ns)
        assert board.get(0x0A) == expected


def test_set_freezes_the_time_and_takes_update_in_progress_away() -> None:
    board = Board()
    board.set(0x0B, 0x82)
    board.clock.advance_to(10 * SECOND - 1)
    assert (board.get(0), board.get(0x0A)) == (0x00, 0x26)
    board.set(0, 0x30)
    board.set(0x0B, 0x02)
    assert board.get(0) == 0x30
    board.clock.advance_to(10 * SECOND)
    assert board.get(0) == 0x31


def test_a_guest_can_set_the_date_byte_by_byte_without_set() -> None:
    board = Board(datetime(2026, 2, 1, tzinfo=UTC))
    board.set(7, 0x31)  # no 31st of February: the chip keeps it
    board.set(8, 0x03)
    board.set(9, 0x99)
    board.set(0x32, 0x19)
    board.set(6, 0x04)
    board.set(4, 0x23)
    board.set(2, 0x59)
    board.set(0, 0x59)
    board.clock.advance_to(SECOND)
    assert board.date_bytes() == [0x19, 0x99, 0x04, 0x01, 5, 0x00, 0x00, 0x00]


def test_an_impossible_date_becomes_the_nearest_one_when_the_day_ends() -> None:
    board = Board()
    board.set(0x0B, 0x06)
    for register, value in ((7, 99), (8, 0), (4, 23), (2, 59), (0, 59)):
        board.set(register, value)
    assert (board.get(7), board.get(8)) == (99, 0)
    board.clock.advance_to(SECOND)
    assert (board.get(8), board.get(7)) == (2, 1)


def test_leaving_the_divider_reset_makes_the_first_update_half_a_second_later() -> None:
    board = Board()
    board.clock.advance_to(100)
    board.set(0x0A, 0x76)
    board.clock.advance_to(5 * SECOND)
    assert board.get(0) == 0x00
    board.set(0x0A, 0x26)
    board.clock.advance_to(5 * SECOND + SECOND // 2 - 1)
    assert board.get(0) == 0x00
    board.clock.advance_to(5 * SECOND + SECOND // 2)
    assert board.get(0) == 0x01


def test_the_update_interrupt_comes_each_second_once_register_c_is_read() -> None:
    board = Board()
    board.set(0x0B, 0x12)
    board.clock.advance_to(3 * SECOND)
    assert board.rises == [SECOND]
    assert board.get(0x0C) == 0xD0  # with the periodic flag, which is not enabled
    assert board.rtc.irq.level is False
    board.clock.advance_to(4 * SECOND)
    assert board.rises == [SECOND, 4 * SECOND]


def test_setting_set_disables_the_update_interrupt() -> None:
    board = Board()
    board.set(0x0B, 0x92)
    assert board.get(0x0B) == 0x82


def test_the_alarm_interrupts_at_its_second() -> None:
    board = Board(datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC))
    for register, value in ((1, 0x05), (3, 0x01), (5, 0x12)):
        board.set(register, value)
    board.set(0x0B, 0x22)
    board.clock.advance_to(100 * SECOND)
    assert board.rises == [65 * SECOND]
    assert board.get(0x0C) & 0xA0 == 0xA0


def test_an_alarm_earlier_in_the_day_comes_tomorrow() -> None:
    board = Board(datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC))
    for register, value in ((1, 0x00), (3, 0x00), (5, 0x12)):
        board.set(register, value)
    board.set(0x0B, 0x22)
    board.clock.advance_to(86_400 * SECOND)
    assert board.rises == [86_400 * SECOND]


def test_alarm_bytes_with_both_top_bits_match_everything() -> None:
    board = Board(datetime(2026, 1, 1, 12, 0, 40, tzinfo=UTC))
    for register, value in ((1, 0x30), (3, 0xFF), (5, 0xC0)):
        board.set(register, value)
    board.set(0x0B, 0x22)
    board.clock.advance_to(50 * SECOND)
    board.get(0x0C)
    board.clock.advance_to(200 * SECOND)
    assert board.rises == [50 * SECOND, 110 * SECOND]


def test_an_alarm_that_matches_no_time_never_comes() -> None:
    board = Board()
    board.set(1, 0x75)
    board.set(0x0B, 0x22)
    board.clock.advance_to(3 * 86_400 * SECOND)
    assert board.rises == []


def test_the_alarm_flag_is_set_for_a_polling_guest_that_reads_the_time_meanwhile() -> None:
    board = Board()
    board.set(1, 0x03)
    for second in range(1, 6):
        board.clock.advance_to(second * SECOND)
        board.get(0)
    assert board.get(0x0C) & 0xA0 == 0x20


def test_periodic_rates_follow_the_rate_selection_table() -> None:
    for rate, hertz in ((1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)):
        board = Board()
        board.set(0x0A, 0x20 | rate)
        board.set(0x0B, 0x42)
        for _ in range(5):
            deadline = board.clock.next_deadline_ns()
            assert deadline is not None
            board.clock.advance_to(deadline)
            assert board.get(0x0C) & 0xC0 == 0xC0
        assert board.rises == [-(-n * SECOND // hertz) for n in range(1, 6)]


def test_rate_zero_has_no_periodic_interrupt() -> None:
    board = Board()
    board.set(0x0A, 0x20)
    board.set(0x0B, 0x42)
    board.clock.advance_to(SECOND)
    assert board.rises == []


def test_an_unread_periodic_interrupt_asks_for_no_further_calls() -> None:
    board = Board()
    board.set(0x0A, 0x23)
    board.set(0x0B, 0x42)
    board.clock.advance_to(SECOND)
    assert len(board.rises) == 1
    assert board.clock.next_deadline_ns() is None


def test_reading_register_c_clears_it_and_writing_it_changes_nothing() -> None:
    board = Board()
    board.clock.advance_to(SECOND)
    board.set(0x0C, 0xFF)
    assert board.get(0x0C) == 0x50
    assert board.get(0x0C) == 0x00


def test_enabling_an_interrupt_whose_flag_is_set_raises_it() -> None:
    board = Board()
    board.clock.advance_to(SECOND)
    board.set(0x0B, 0x12)
    assert board.rtc.irq.level is True


def test_register_d_says_that_ram_and_time_are_valid() -> None:
    board = Board()
    board.set(0x0D, 0x00)
    assert board.get(0x0D) == 0x80


def test_the_index_port_masks_nmi_and_cannot_be_read() -> None:
    board = Board()
    board.rtc.write(0, 1, 0x8D)
    assert board.rtc.nmi_masked is True
    assert (board.rtc.read(0, 1), board.rtc.read(1, 1)) == (0xFF, 0x80)
    board.rtc.write(0, 1, 0x0D)
    assert board.rtc.nmi_masked is False


def test_a_word_write_sets_index_and_data() -> None:
    board = Board()
    board.rtc.write(0, 2, 0x5A40)
    assert board.get(0x40) == 0x5A


def test_the_memory_bytes_are_those_firmware_reads() -> None:
    board = Board(setup=CmosSetup(ram_below_4g=32 << 20, ram_above_4g=3 << 30))
    assert [board.get(register) for register in (0x15, 0x16)] == [0x80, 0x02]
    assert [board.get(register) for register in (0x17, 0x18, 0x30, 0x31)] == [0x00, 0x7C, 0x00, 0x7C]
    assert [board.get(register) for register in (0x34, 0x35)] == [0x00, 0x01]
    assert [board.get(register) for register in (0x5B, 0x5C, 0x5D)] == [0x00, 0xC0, 0x00]


def test_memory_sizes_beyond_their_bytes_are_clamped() -> None:
    board = Board(setup=CmosSetup(ram_below_4g=3 << 30, ram_above_4g=1 << 60))
    assert [board.get(register) for register in (0x17, 0x18, 0x34, 0x35)] == [0xFF, 0xFF, 0x00, 0xBF]
    assert [board.get(register) for register in (0x5B, 0x5C, 0x5D)] == [0xFF, 0xFF, 0xFF]


def test_the_boot_order_and_processor_bytes_follow_qemu() -> None:
    board = Board(setup=CmosSetup(boot_order="dcn", check_floppy_signature=False, cpus=4))
    assert (board.get(0x3D), board.get(0x38), board.get(0x5F)) == (0x23, 0x41, 3)


def test_a_boot_order_with_an_unknown_letter_is_refused_in_one_sentence() -> None:
    with pytest.raises(DeviceError, match=r"boot order 'cx' .* write for example 'cd'"):
        Board(setup=CmosSetup(boot_order="cx"))


def test_initial_bytes_override_and_the_checksum_follows() -> None:
    board = Board(cmos={0x10: 0x40, 0x2D: 0xFF, 0x7F: 0x77})
    total = sum(board.get(register) for register in range(0x10, 0x2E))
    assert (board.get(0x10), board.get(0x7F)) == (0x40, 0x77)
    assert board.get(0x2E) << 8 | board.get(0x2F) == total > 0xFF


def test_a_checksum_given_by_hand_stays() -> None:
    board = Board(cmos={0x2E: 0x12, 0x2F: 0x34})
    assert (board.get(0x2E), board.get(0x2F)) == (0x12, 0x34)


@pytest.mark.parametrize("register", [0x00, 0x0D, 0x32, 0x80])
def test_an_initial_byte_outside_the_ram_is_refused_in_one_sentence(register: int) -> None:
    with pytest.raises(DeviceError, match=rf"at {register:#x} is not RAM; give"):
        Board(cmos={register: 0})


def test_reset_turns_interrupts_off_and_keeps_time_and_ram() -> None:
    board = Board()
    board.set(0x0F, 0x0A)
    board.set(0, 0x30)
    board.set(0x0B, 0x52)
    board.clock.advance_to(SECOND)
    board.rtc.reset()
    assert board.rtc.irq.level is False
    assert (board.get(0x0B), board.get(0x0C), board.get(0x0F), board.get(0)) == (0x02, 0x00, 0x0A, 0x31)


def test_a_restored_state_interrupts_when_the_original_did() -> None:
    board = Board()
    board.set(0x0B, 0x12)
    board.clock.advance_to(SECOND // 2)
    saved = copy.deepcopy(board.rtc.state)
    board.set(0x0B, 0x02)
    board.rtc.state = saved
    board.rtc.rearm()
    board.clock.advance_to(2 * SECOND)
    assert board.rises == [SECOND]


@settings(max_examples=100, deadline=None)
@given(
    start=st.datetimes(datetime(1980, 1, 1), datetime(2199, 12, 31)),
    elapsed=st.integers(0, 10 * 366 * 86_400 * SECOND),
)
def test_the_date_agrees_with_datetime(start: datetime, elapsed: int) -> None:
    board = Board(start)
    board.clock.advance_to(elapsed)
    now = start + timedelta(microseconds=elapsed // 1000)
    board.set(0x0B, 0x06)
    assert board.date_bytes() == [
        now.year // 100,
        now.year % 100,
        now.month,
        now.day,
        now.isoweekday() % 7 + 1,
        now.hour,
        now.minute,
        now.second,
    ]


@settings(max_examples=100, deadline=None)
@given(
    start=st.integers(0, 86_399),
    alarm=st.tuples(
        st.integers(0, 59) | st.just(0xFF),
        st.integers(0, 59) | st.just(0xFF),
        st.integers(0, 23) | st.just(0xFF),
    ),
)
def test_the_alarm_agrees_with_a_search_through_the_day(start: int, alarm: tuple[int, int, int]) -> None:
    board = Board(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=start))
    board.set(0x0B, 0x26)
    for register, value in zip((1, 3, 5), alarm, strict=True):
        board.set(register, value)
    expected = next(
        seconds
        for seconds in range(1, 86_401)
        if all(
            wanted in (0xFF, present)
            for wanted, present in zip(
                alarm,
                ((start + seconds) % 60, (start + seconds) // 60 % 60, (start + seconds) // 3600 % 24),
                strict=True,
            )
        )
    )
    assert board.clock.next_deadline_ns() == expected * SECOND


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 10**15)), max_size=40))
def test_no_guest_access_crashes_and_every_register_is_a_byte(accesses: list[tuple[int, int, int]]) -> None:
    board = Board()
    for register, value, wait_ns in accesses:
        board.set(register, value)
        board.clock.advance_to(board.clock.now_ns() + wait_ns)
        assert all(0 <= board.get(number) <= 0xFF for number in (*range(15), 0x32))


def test_the_cmos_ports_end_after_two_bytes() -> None:
    board = Board()
    board.rtc.write(0, 4, 0xFFFF0040)
    assert board.rtc.read(0, 4) == 0xFFFF00FF


def test_changing_the_rate_moves_a_running_periodic_interrupt() -> None:
    board = Board()
    board.set(0x0A, 0x2F)
    board.set(0x0B, 0x42)
    board.set(0x0A, 0x26)
    board.clock.advance_to(SECOND)
    assert board.rises == [-(-SECOND // 1024)]
