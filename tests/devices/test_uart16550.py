"""Tests for devices/uart16550.py.

Offsets: 0 RBR/THR/DLL, 1 IER/DLM, 2 IIR/FCR, 3 LCR, 4 MCR, 5 LSR, 6 MSR, 7 SCR.
"""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.base import IrqLine
from devices.clock import VirtualClock
from devices.uart16550 import BACKLOG_BYTES, MSR_CTS, MSR_DCD, MSR_DSR, MSR_RI, Uart16550

CHARACTER_NS_115200_8N1 = 86_805  # 160 clocks of 1.8432 MHz, rounded down


class Board:
    """A UART, what it sent, and every change of its interrupt line."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.irq_changes: list[bool] = []
        self.clock = VirtualClock()
        self.uart = Uart16550(
            IrqLine(lambda number, level: self.irq_changes.append(level), 4), self.sent.extend, self.clock
        )

    def out(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def inb(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    @property
    def irq(self) -> bool:
        return self.uart.irq.level


def at_115200_8n1(board: Board) -> None:
    board.out(3, 0x83)
    board.out(0, 1)
    board.out(1, 0)
    board.out(3, 0x03)


def test_after_reset_the_registers_read_as_the_datasheet_lists() -> None:
    board = Board()
    assert [board.inb(offset) for offset in (1, 2, 3, 4, 5, 7)] == [0x00, 0x01, 0x00, 0x00, 0x60, 0x00]


def test_a_byte_written_to_thr_reaches_the_output_at_once() -> None:
    board = Board()
    for byte in b"ok\xff":
        board.out(0, byte)
    assert board.sent == b"ok\xff"
    assert board.inb(5) == 0x60


def test_dlab_turns_the_first_two_registers_into_the_divisor() -> None:
    board = Board()
    board.out(1, 0x05)
    board.out(3, 0x80)
    board.out(0, 0x34)
    board.out(1, 0x12)
    assert (board.inb(0), board.inb(1)) == (0x34, 0x12)
    assert not board.sent
    board.out(3, 0x00)
    assert board.inb(1) == 0x05


def test_the_scratch_register_keeps_its_byte() -> None:
    board = Board()
    board.out(7, 0xAA)
    assert board.inb(7) == 0xAA


def test_linux_autoconfig_finds_a_16550a() -> None:
    board = Board()
    board.out(1, 0x00)
    assert board.inb(1) & 0x0F == 0x00
    board.out(1, 0x0F)
    assert board.inb(1) == 0x0F  # no sleep bits: not a 16750
    board.out(1, 0x00)
    board.out(4, 0x1A)
    assert board.inb(6) & 0xF0 == 0x90
    board.out(4, 0x00)
    board.out(2, 0x01)
    assert board.inb(2) >> 6 == 3


def test_linux_counts_sixteen_fifo_bytes_in_loopback() -> None:
    board = Board()
    board.out(2, 0x07)
    board.out(4, 0x10)
    for value in range(256):
        board.out(0, value)
    received = []
    while board.inb(5) & 0x01:
        received.append(board.inb(0))
    assert received == list(range(16))


def test_writes_to_lsr_and_msr_change_nothing() -> None:
    board = Board()
    board.out(5, 0xFF)
    board.out(6, 0xFF)
    assert (board.inb(5), board.inb(6)) == (0x60, 0xB0)


def test_without_fifo_received_data_raises_the_interrupt_until_it_is_read() -> None:
    board = Board()
    board.out(4, 0x08)
    board.out(1, 0x01)
    board.uart.receive(b"A")
    assert board.irq
    assert board.inb(2) == 0x04
    assert board.inb(5) & 0x01
    assert board.inb(0) == ord("A")
    assert not board.irq
    assert board.inb(2) == 0x01


def test_each_byte_without_fifo_is_a_new_edge_for_the_interrupt_controller() -> None:
    board = Board()
    board.out(4, 0x08)
    board.out(1, 0x01)
    board.uart.receive(b"AB")
    board.inb(0)
    board.inb(0)
    assert board.irq_changes == [True, False, True, False]


def test_out2_gates_the_interrupt_line() -> None:
    board = Board()
    board.out(1, 0x01)
    board.uart.receive(b"A")
    assert not board.irq
    assert board.inb(2) == 0x04
    board.out(4, 0x08)
    assert board.irq
    board.out(4, 0x18)  # loopback drives the OUT2 pin inactive
    assert not board.irq


def test_the_fifo_interrupts_at_each_trigger_level() -> None:
    for fcr, level in ((0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)):
        board = Board()
        board.out(4, 0x08)
        board.out(1, 0x01)
        board.out(2, fcr)
        board.uart.receive(bytes(level - 1))
        assert not board.irq
        board.uart.receive(b"x")
        assert board.irq
        assert board.inb(2) == 0xC4
        board.inb(0)
        assert not board.irq


def test_bytes_below_the_trigger_level_interrupt_after_four_character_times() -> None:
    board = Board()
    at_115200_8n1(board)
    board.out(4, 0x08)
    board.out(2, 0xC1)
    board.out(1, 0x01)
    board.uart.receive(b"ab")
    board.clock.advance_to(4 * CHARACTER_NS_115200_8N1 - 1)
    assert not board.irq
    board.clock.advance_to(4 * CHARACTER_NS_115200_8N1)
    assert board.irq
    assert board.inb(2) == 0xCC
    assert board.inb(0) == ord("a")
    assert not board.irq
    board.clock.advance_to(8 * CHARACTER_NS_115200_8N1)
    assert board.irq


def test_each_received_byte_starts_the_character_timeout_anew() -> None:
    board = Board()
    at_115200_8n1(board)
    board.out(4, 0x08)
    board.out(2, 0xC1)
    board.out(1, 0x01)
    board.uart.receive(b"a")
    board.clock.advance_to(3 * CHARACTER_NS_115200_8N1)
    board.uart.receive(b"b")
    board.clock.advance_to(6 * CHARACTER_NS_115200_8N1)
    assert not board.irq
    board.clock.advance_to(7 * CHARACTER_NS_115200_8N1)
    assert board.irq


def test_a_faster_line_rate_brings_the_character_timeout_forward() -> None:
    board = Board()
    board.out(3, 0x83)
    board.out(0, 0xFF)
    board.out(1, 0xFF)
    board.out(3, 0x03)
    board.out(4, 0x08)
    board.out(2, 0xC1)
    board.out(1, 0x01)
    board.uart.receive(b"a")
    at_115200_8n1(board)
    board.uart.receive(b"b")
    board.clock.advance_to(4 * CHARACTER_NS_115200_8N1)
    assert board.irq


def test_character_time_counts_start_data_parity_and_stop_bits() -> None:
    board = Board()
    board.out(3, 0x80)
    board.out(0, 1)
    board.out(1, 0)
    for lcr, bits in ((0x00, 7), (0x03, 10), (0x07, 11), (0x0B, 11), (0x1F, 12)):
        board.out(3, lcr)
        assert board.uart.character_ns() == bits * 16 * 1_000_000_000 // 1_843_200


def test_the_zero_divisor_does_not_crash() -> None:
    board = Board()
    board.out(3, 0x80)
    board.out(0, 0)
    board.out(1, 0)
    assert board.uart.character_ns() > 0


def test_host_input_longer_than_the_fifo_waits_and_is_not_lost() -> None:
    board = Board()
    board.out(2, 0x01)
    text = bytes(range(256)) * 5
    assert board.uart.receive(text) == len(text)
    received = bytearray()
    while board.inb(5) & 0x01:
        received.append(board.inb(0))
    assert received == text
    assert board.inb(5) & 0x02 == 0


def test_the_backlog_is_bounded_and_says_how_much_it_took() -> None:
    board = Board()
    assert board.uart.receive(bytes(BACKLOG_BYTES + 100)) == BACKLOG_BYTES
    assert board.uart.receive(b"abc") == 1  # the receiver itself took one byte out of the backlog
    assert board.uart.receive_break() is False


def test_enabling_the_thre_interrupt_raises_it_at_once_and_reading_iir_clears_it() -> None:
    board = Board()
    board.out(4, 0x08)
    board.out(1, 0x02)
    assert board.irq
    assert board.inb(2) == 0x02
    assert not board.irq
    assert board.inb(2) == 0x01


def test_writing_the_same_enable_again_does_not_raise_thre() -> None:
    board = Board()
    board.out(1, 0x02)
    board.inb(2)
    board.out(1, 0x02)
    assert board.inb(2) == 0x01


def test_every_transmitted_byte_raises_a_new_thre_edge() -> None:
    board = Board()
    board.out(4, 0x08)
    board.out(1, 0x02)
    board.out(0, ord("a"))
    board.out(0, ord("b"))
    assert board.irq_changes == [True, False, True, False, True]


def test_reading_iir_for_another_source_leaves_thre_pending() -> None:
    board = Board()
    board.out(1, 0x03)
    board.uart.receive(b"x")
    assert board.inb(2) == 0x04
    board.inb(0)
    assert board.inb(2) == 0x02


def test_interrupt_sources_are_identified_by_priority() -> None:
    board = Board()
    board.out(1, 0x0F)
    board.uart.set_modem_lines(MSR_DSR | MSR_DCD)
    board.uart.receive_break()
    seen = [board.inb(2)]
    board.inb(5)
    seen.append(board.inb(2))
    board.inb(0)
    seen += [board.inb(2), board.inb(2)]
    board.inb(6)
    seen.append(board.inb(2))
    assert seen == [0x06, 0x04, 0x02, 0x00, 0x01]


def test_a_break_from_the_host_is_a_zero_byte_with_bi() -> None:
    board = Board()
    board.out(2, 0x01)
    board.uart.receive(b"a")
    board.uart.receive_break()
    board.uart.receive(b"h")
    assert board.inb(5) == 0xE1  # an error waits in the FIFO, not yet at its top
    assert board.inb(0) == ord("a")
    assert board.inb(5) == 0xF1
    assert board.inb(5) == 0x61
    assert board.inb(0) == 0
    assert board.inb(0) == ord("h")


def test_loopback_sends_nothing_out_and_receives_nothing_from_the_host() -> None:
    board = Board()
    board.out(4, 0x10)
    board.uart.receive(b"h")
    board.out(0, ord("l"))
    assert board.inb(0) == ord("l")
    assert board.inb(5) & 0x01 == 0
    assert not board.sent
    board.out(4, 0x00)
    assert board.inb(0) == ord("h")


def test_overrun_in_loopback_keeps_the_fifo_but_replaces_a_single_buffer() -> None:
    board = Board()
    board.out(4, 0x10)
    board.out(0, 1)
    board.out(0, 2)
    assert board.inb(5) == 0x63
    assert board.inb(5) == 0x61
    assert board.inb(0) == 2


def test_a_break_sent_in_loopback_comes_back() -> None:
    board = Board()
    board.out(4, 0x10)
    board.out(3, 0x40)
    assert board.inb(5) & 0x11 == 0x11
    assert board.inb(0) == 0


def test_modem_control_outputs_come_back_as_modem_status_in_loopback() -> None:
    board = Board()
    board.uart.set_modem_lines(0)
    board.inb(6)
    board.out(4, 0x10)
    expected = {0x01: MSR_DSR, 0x02: MSR_CTS, 0x04: MSR_RI, 0x08: MSR_DCD}
    for output, line in expected.items():
        board.out(4, 0x10 | output)
        assert board.inb(6) & 0xF0 == line


def test_modem_lines_leave_deltas_until_msr_is_read() -> None:
    board = Board()
    board.out(4, 0x08)
    board.out(1, 0x08)
    board.uart.set_modem_lines(MSR_CTS)
    assert board.irq
    assert board.inb(6) == MSR_CTS | 0x0A
    assert not board.irq
    assert board.inb(6) == MSR_CTS


def test_only_the_trailing_edge_of_ri_is_noted() -> None:
    board = Board()
    board.uart.set_modem_lines(MSR_RI)
    board.inb(6)
    board.uart.set_modem_lines(0)
    assert board.inb(6) & 0x0F == 0x04
    board.uart.set_modem_lines(MSR_RI)
    assert board.inb(6) & 0x0F == 0x00


def test_fcr_settings_need_the_enable_bit() -> None:
    board = Board()
    board.out(2, 0xC0)
    assert board.inb(2) == 0x01
    board.out(2, 0xC1)
    board.out(2, 0x00)
    assert board.inb(2) == 0x01


def test_a_receiver_fifo_reset_drops_what_the_chip_holds_only() -> None:
    board = Board()
    board.out(2, 0x01)
    board.uart.receive(bytes(range(20)))
    board.out(2, 0x03)
    assert [board.inb(0) for _ in range(4)] == [16, 17, 18, 19]
    assert board.inb(5) & 0x01 == 0


def test_an_empty_receiver_buffer_reads_zero() -> None:
    assert Board().inb(0) == 0


def test_a_wide_access_is_split_into_registers() -> None:
    board = Board()
    board.uart.write(6, 2, 0x5A00)
    assert board.uart.read(6, 2) == 0x5AB0
    assert board.uart.read(7, 2) == 0xFF5A


def test_reset_forgets_the_registers_but_not_the_host_input() -> None:
    board = Board()
    board.out(4, 0x08)
    board.out(1, 0x01)
    board.out(7, 0x77)
    board.uart.receive(b"ab")
    board.uart.reset()
    assert not board.irq
    assert (board.inb(1), board.inb(7)) == (0, 0)
    assert board.inb(0) == ord("b")


def test_a_restored_state_interrupts_at_the_same_time_as_the_original() -> None:
    board = Board()
    at_115200_8n1(board)
    board.out(4, 0x08)
    board.out(2, 0xC1)
    board.out(1, 0x01)
    board.uart.receive(b"a")
    saved = copy.deepcopy(board.uart.state)
    board.inb(0)
    board.uart.state = saved
    board.uart.rearm()
    board.clock.advance_to(4 * CHARACTER_NS_115200_8N1 - 1)
    assert not board.irq
    board.clock.advance_to(4 * CHARACTER_NS_115200_8N1)
    assert board.irq


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255)), max_size=60))
def test_no_guest_access_crashes_and_every_register_is_a_byte(accesses: list[tuple[int, int]]) -> None:
    board = Board()
    board.uart.receive(b"input from the host")
    for offset, value in accesses:
        board.out(offset, value)
        assert 0 <= board.inb(value % 10) <= 0xFF
        board.clock.advance_to(board.clock.now_ns() + value * 1000)
    assert len(board.uart.state.rx) <= 16


def test_changing_the_trigger_level_keeps_the_fifo() -> None:
    board = Board()
    board.out(2, 0x01)
    board.uart.receive(b"abc")
    board.out(2, 0xC1)
    assert bytes(board.inb(0) for _ in range(3)) == b"abc"


def test_switching_the_fifos_off_empties_them() -> None:
    board = Board()
    board.out(2, 0x01)
    board.uart.receive(b"abc")
    board.out(2, 0x00)
    assert board.inb(5) & 0x01 == 0


def test_a_break_is_not_received_outside_loopback_and_nothing_is_sent_during_it() -> None:
    board = Board()
    board.out(3, 0x43)
    board.out(0, ord("x"))
    assert board.inb(5) == 0x60
    board.out(3, 0x03)
    board.out(0, ord("y"))
    assert board.sent == b"y"


def test_a_modem_line_that_does_not_move_leaves_no_delta() -> None:
    board = Board()
    board.uart.set_modem_lines(MSR_CTS | MSR_DSR | MSR_DCD | 0x0F)
    assert board.inb(6) == 0xB0
