"""Tests for devices/i8042.py. Offsets: 0 data, 4 status and command."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.base import DeviceError, IrqLine
from devices.clock import VirtualClock
from devices.i8042 import BACKLOG_KEYS, I8042, US_PLAIN, US_SHIFTED, key_events, translate

MILLISECOND = 1_000_000
RAW = 0x03  # a command byte: both interrupts, no translation


class Board:
    """A controller, the changes of its lines, and what it asked the machine for."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.irqs: list[tuple[int, bool]] = []
        self.a20: list[bool] = []
        self.resets = 0
        self.controller = I8042(
            IrqLine(self._on_irq, 1), IrqLine(self._on_irq, 12), self.clock, self.a20.append, self._on_reset
        )

    def _on_irq(self, number: int, level: bool) -> None:
        self.irqs.append((number, level))

    def _on_reset(self) -> None:
        self.resets += 1

    def command(self, value: int, *data: int) -> None:
        self.controller.write(4, 1, value)
        self.data(*data)

    def data(self, *values: int) -> None:
        for value in values:
            self.controller.write(0, 1, value)

    def mouse(self, *values: int) -> None:
        for value in values:
            self.command(0xD4, value)

    def status(self) -> int:
        return self.controller.read(4, 1)

    def read(self) -> int:
        return self.controller.read(0, 1)

    def drain(self) -> list[int]:
        """Everything the guest can read without waiting."""
        received = []
        while self.status() & 0x01:
            received.append(self.read())
        return received

    def drain_for(self, milliseconds: int) -> list[int]:
        """What a guest that looks every millisecond reads."""
        received = self.drain()
        for _ in range(milliseconds):
            self.clock.advance_to(self.clock.now_ns() + MILLISECOND)
            received += self.drain()
        return received


def test_the_self_test_passes_and_sets_the_system_flag() -> None:
    board = Board()
    board.command(0x60, 0x00)
    assert board.status() == 0x10
    board.command(0xAA)
    assert board.status() == 0x1D
    assert board.read() == 0x55


def test_the_interface_tests_pass() -> None:
    board = Board()
    for test in (0xA9, 0xAB):
        board.command(test)
        assert board.drain() == [0x00]


def test_the_status_tells_commands_from_data() -> None:
    board = Board()
    board.command(0xA8)
    assert board.status() & 0x08
    board.data(0xEE)
    assert not board.status() & 0x08


def test_the_command_byte_is_what_firmware_leaves_and_can_be_rewritten() -> None:
    board = Board()
    board.command(0x20)
    assert board.read() == 0x65
    board.command(0x60, 0x47)
    board.command(0x20)
    assert board.read() == 0x47


def test_controller_ram_keeps_its_bytes() -> None:
    board = Board()
    board.command(0x7F, 0x99)
    board.command(0x3F)
    assert board.read() == 0x99


def test_disable_and_enable_commands_change_the_command_byte() -> None:
    board = Board()
    seen = []
    for command in (0xAD, 0xA7, 0xAE, 0xA8):
        board.command(command)
        board.command(0x20)
        seen.append(board.read() & 0x30)
    assert seen == [0x30, 0x30, 0x20, 0x00]


def test_a_byte_in_the_output_buffer_raises_irq_1_until_it_is_read() -> None:
    board = Board()
    board.controller.key(b"\x1c")
    assert board.irqs == [(1, True)]
    assert board.status() & 0x21 == 0x01
    assert board.read() == 0x1E
    assert board.irqs == [(1, True), (1, False)]
    assert board.read() == 0x1E  # an empty buffer still shows the last byte


def test_each_byte_is_a_new_edge() -> None:
    board = Board()
    board.data(0xF2)
    board.drain()
    assert board.irqs == [(1, True), (1, False)] * 3


def test_an_answer_that_replaces_an_unread_one_is_a_new_edge() -> None:
    board = Board()
    board.command(0xAB)
    board.command(0xAA)
    assert board.irqs == [(1, True), (1, False), (1, True)]
    assert board.drain() == [0x55]


def test_without_the_interrupt_bit_the_line_stays_low_until_it_is_set() -> None:
    board = Board()
    board.command(0x60, 0x40)
    board.controller.key(b"\x1c")
    assert board.irqs == []
    board.command(0x60, 0x41)
    assert board.irqs == [(1, True)]


def test_a_controller_answer_goes_before_an_unread_key_which_is_not_lost() -> None:
    board = Board()
    board.controller.key(b"\x1c")
    board.command(0x20)
    assert board.drain() == [0x65, 0x1E]


def test_linux_aux_loop_comes_back_with_the_aux_bit_and_irq_12() -> None:
    board = Board()
    board.command(0x60, 0x47)
    board.command(0xD3, 0xA5)
    assert board.status() & 0x21 == 0x21
    assert board.irqs == [(12, True)]
    assert board.read() == 0xA5


def test_a_byte_can_be_written_as_if_the_keyboard_had_sent_it() -> None:
    board = Board()
    board.command(0xD2, 0x1C)
    assert board.status() & 0x21 == 0x01
    assert board.drain() == [0x1C]
    assert board.irqs[0] == (1, True)


def test_the_output_port_drives_a20_and_shows_full_buffers() -> None:
    board = Board()
    board.command(0xD1, 0xDD)
    board.command(0xD0)
    assert board.read() == 0xCD
    board.command(0xD1, 0xDF)
    board.command(0xD0)
    assert board.read() == 0xCF
    assert board.a20 == [False, True]
    board.controller.key(b"\x1c")
    board.command(0xD0)
    assert board.read() == 0xDF


def test_a20_has_commands_of_its_own() -> None:
    board = Board()
    board.command(0xDD)
    board.command(0xDF)
    assert board.a20 == [False, True]


def test_the_output_port_shows_the_gate_that_port_92_moved() -> None:
    controller = I8042(
        IrqLine(), IrqLine(), VirtualClock(), lambda level: None, lambda: None, a20_level=lambda: False
    )
    controller.write(4, 1, 0xD0)
    assert controller.read(0, 1) & 0x02 == 0


def test_reset_can_be_pulsed_or_written() -> None:
    board = Board()
    board.command(0xFE)
    assert board.resets == 1
    board.command(0xFF)
    assert board.resets == 1
    board.command(0xD1, 0xDE)
    assert board.resets == 2


def test_test_inputs_and_input_port_answer() -> None:
    board = Board()
    board.command(0xC0)
    assert board.drain() == [0x80]
    board.command(0xE0)
    assert board.drain() == [0x00]


def test_an_unknown_controller_command_is_ignored() -> None:
    board = Board()
    board.command(0x00)
    assert board.status() & 0x01 == 0


def test_the_keyboard_resets_with_ack_and_self_test() -> None:
    board = Board()
    board.data(0xFF)
    assert board.drain() == [0xFA, 0xAA]


def test_the_keyboard_identifies_itself_raw_and_translated() -> None:
    board = Board()
    board.data(0xF2)
    assert board.drain() == [0xFA, 0xAB, 0x41]
    board.command(0x60, RAW)
    board.data(0xF2)
    assert board.drain() == [0xFA, 0xAB, 0x83]


def test_leds_and_typematic_take_an_argument() -> None:
    board = Board()
    board.data(0xED, 0x05, 0xF3, 0x20)
    assert board.drain() == [0xFA] * 4
    keyboard = board.controller.state.keyboard
    assert (keyboard.leds, keyboard.typematic) == (5, 0x20)


def test_a_command_in_place_of_an_argument_is_a_command() -> None:
    board = Board()
    board.data(0xED, 0xEE)
    assert board.drain() == [0xFA, 0xEE]


def test_echo_resend_and_unknown_commands() -> None:
    board = Board()
    board.data(0xEE)
    assert board.drain() == [0xEE]
    board.data(0xFE)
    assert board.drain() == [0xEE]
    board.data(0x17)
    assert board.drain() == [0xFE]


def test_the_scan_code_set_can_be_asked_and_set() -> None:
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 0x00)
    assert board.drain() == [0xFA, 0xFA, 0x02]
    board.data(0xF0, 0x03, 0xF0, 0x00)
    assert board.drain() == [0xFA, 0xFA, 0xFA, 0xFA, 0x03]
    board.data(0xF0, 0x09, 0x01)
    assert board.drain() == [0xFA, 0xFE, 0xFA]
    assert board.controller.state.keyboard.scan_code_set == 1


def test_defaults_bring_set_2_back_and_disable_stops_scanning() -> None:
    board = Board()
    board.data(0xF0, 0x01, 0xF5)
    board.drain()
    keyboard = board.controller.state.keyboard
    assert (keyboard.scan_code_set, keyboard.scanning) == (2, False)
    board.data(0xF6)
    assert keyboard.scanning is False
    board.data(0xF4)
    assert keyboard.scanning is True


def test_keys_arrive_translated_to_set_1() -> None:
    board = Board()
    board.controller.key(b"\x1c")
    board.controller.key(b"\xf0\x1c")
    board.controller.key(b"\xe0\x75")
    board.controller.key(b"\xe0\xf0\x75")
    assert board.drain_for(10) == [0x1E, 0x9E, 0xE0, 0x48, 0xE0, 0xC8]


def test_keys_arrive_raw_without_translation() -> None:
    board = Board()
    board.command(0x60, RAW)
    board.controller.key(b"\xe0\xf0\x75")
    assert board.drain() == [0xE0, 0xF0, 0x75]


def test_set_1_comes_from_the_keyboard_itself_without_translation() -> None:
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 0x01)
    board.drain()
    board.controller.key(b"\xe0\xf0\x75")
    board.controller.key(b"\xe1\x14\x77\xe1\xf0\x14\xf0\x77")
    assert board.drain_for(20) == [0xE0, 0xC8, 0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]


def test_set_3_has_one_code_for_each_key_and_few_releases() -> None:
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 0x03)
    board.drain()
    for event in (
        b"\x1c",
        b"\xf0\x1c",
        b"\x14",
        b"\xf0\x14",
        b"\xe0\x14",
        b"\xe0\xf0\x75",
        b"\xe0\x12\xe0\x7c",
    ):
        board.controller.key(event)
    board.controller.key(b"\xe1\x14\x77\xe1\xf0\x14\xf0\x77")
    assert board.drain_for(40) == [0x1C, 0x11, 0xF0, 0x11, 0x58, 0x57, 0x62]


def test_key_types_of_set_3_can_be_chosen_for_all_and_for_single_keys() -> None:
    board = Board()
    board.command(0x60, RAW)
    board.data(0xF0, 0x03, 0xFC, 0x1C, 0x32, 0xFD, 0x32, 0xF4)
    board.drain()
    for event in (b"\xf0\x1c", b"\xf0\x32", b"\xf0\x21"):
        board.controller.key(event)
    assert board.drain_for(10) == [0xF0, 0x1C]
    board.data(0xF8)
    board.controller.key(b"\xf0\x21")
    assert board.drain_for(10) == [0xFA, 0xF0, 0x21]
    board.data(0xF7)
    board.controller.key(b"\xf0\x12")
    assert board.drain_for(10) == [0xFA]


def test_the_translation_of_the_lower_half_is_a_permutation_but_for_the_unused_zero() -> None:
    assert sorted(translate(code) for code in range(1, 0x80)) == list(range(1, 0x80))


def test_the_translation_agrees_with_known_keys() -> None:
    known = {
        0x76: 0x01, 0x16: 0x02, 0x66: 0x0E, 0x0D: 0x0F, 0x15: 0x10, 0x5A: 0x1C, 0x14: 0x1D, 0x1C: 0x1E,
        0x12: 0x2A, 0x5D: 0x2B, 0x1A: 0x2C, 0x59: 0x36, 0x7C: 0x37, 0x11: 0x38, 0x29: 0x39, 0x58: 0x3A,
        0x05: 0x3B, 0x83: 0x41, 0x09: 0x44, 0x77: 0x45, 0x7E: 0x46, 0x6C: 0x47, 0x71: 0x53, 0x61: 0x56,
        0x78: 0x57, 0x07: 0x58, 0xAA: 0xAA, 0xFA: 0xFA, 0x84: 0x54,
    }  # fmt: skip
    assert {code: translate(code) for code in known} == known


def test_keys_keep_the_pace_of_the_serial_line() -> None:
    board = Board()
    for event in (b"\x1c", b"\xf0\x1c", b"\x32"):
        board.controller.key(event)
    assert board.drain() == [0x1E]
    board.clock.advance_to(MILLISECOND - 1)
    assert board.drain() == []
    board.clock.advance_to(MILLISECOND)
    assert board.drain() == [0x9E]
    board.clock.advance_to(3 * MILLISECOND - 1)
    assert board.drain() == []
    board.clock.advance_to(3 * MILLISECOND)
    assert board.drain() == [0x30]


def test_typed_text_does_not_keep_linux_from_flushing_the_buffer() -> None:
    board = Board()
    board.controller.type_text("a long line of text typed ahead of the driver")
    board.clock.advance_to(10 * MILLISECOND)
    assert len(board.drain()) == 1


def test_keys_wait_while_the_interface_is_disabled_or_scanning_is_off() -> None:
    board = Board()
    board.command(0xAD)
    board.controller.key(b"\x1c")
    assert board.drain_for(5) == []
    board.command(0xAE)
    assert board.drain() == [0x1E]
    board.data(0xF5)
    assert board.drain() == [0xFA]
    board.controller.key(b"\x32")
    assert board.drain_for(5) == []
    board.data(0xF4)
    assert board.drain_for(1) == [0xFA, 0x30]


def test_a_command_to_the_keyboard_enables_its_interface() -> None:
    board = Board()
    board.command(0xAD)
    board.data(0xEE)
    assert board.drain() == [0xEE]


def test_typed_text_becomes_make_and_break_codes_with_shift() -> None:
    board = Board()
    assert board.controller.type_text("aB\n") == 3
    assert board.drain_for(40) == [0x1E, 0x9E, 0x2A, 0x30, 0xB0, 0xAA, 0x1C, 0x9C]


def test_control_characters_are_typed_with_ctrl() -> None:
    assert key_events("\x03") == [b"\x14", b"\x21", b"\xf0\x21", b"\xf0\x14"]
    assert key_events("\x1d") == [b"\x14", b"\x5b", b"\xf0\x5b", b"\xf0\x14"]


def test_carriage_return_and_delete_are_enter_and_backspace() -> None:
    assert key_events("\r") == key_events("\n") == [b"\x5a", b"\xf0\x5a"]
    assert key_events("\x7f") == key_events("\b") == [b"\x66", b"\xf0\x66"]


def test_a_character_without_a_key_is_skipped() -> None:
    board = Board()
    assert key_events("é") == [] == key_events("")
    assert board.controller.type_text("éa") == 2
    assert board.drain_for(10) == [0x1E, 0x9E]


def test_every_printable_ascii_character_has_its_own_key_events() -> None:
    characters = [chr(code) for code in range(0x20, 0x7F)]
    assert set(characters) <= set(US_PLAIN + US_SHIFTED)
    assert len({tuple(key_events(character)) for character in characters}) == len(characters)


def test_the_key_backlog_is_bounded_and_says_what_it_took() -> None:
    board = Board()
    taken = board.controller.type_text("a" * BACKLOG_KEYS)
    assert taken == BACKLOG_KEYS // 2
    while board.controller.key(b"\x1c"):
        pass
    assert len(board.controller.state.keyboard.backlog) == BACKLOG_KEYS


@pytest.mark.parametrize("scancode", [b"", bytes(9)])
def test_a_key_event_of_no_known_length_is_refused_in_one_sentence(scancode: bytes) -> None:
    with pytest.raises(DeviceError, match=rf"key event of {len(scancode)} bytes; give one event of 1 to 8"):
        Board().controller.key(scancode)


def test_the_mouse_resets_with_ack_self_test_and_id() -> None:
    board = Board()
    board.mouse(0xFF)
    assert board.status() & 0x21 == 0x21
    assert board.drain() == [0xFA, 0xAA, 0x00]


def test_the_mouse_uses_irq_12() -> None:
    board = Board()
    board.command(0x60, 0x47)
    board.mouse(0xF2)
    assert board.drain() == [0xFA, 0x00]
    assert board.irqs == [(12, True), (12, False)] * 2


def test_the_mouse_reports_movement_once_it_is_enabled() -> None:
    board = Board()
    board.controller.move(1, 1, 0)
    board.mouse(0xF4)
    assert board.drain() == [0xFA]
    board.controller.move(5, -3, 1)
    assert board.drain() == [0x29, 0x05, 0xFD]
    board.controller.move(-5, 3, 4)
    assert board.drain() == [0x1C, 0xFB, 0x03]


def test_movement_waits_behind_an_unread_packet_and_merges() -> None:
    board = Board()
    board.mouse(0xF4)
    board.drain()
    for _ in range(4):
        board.controller.move(10, 0, 0)
    assert board.drain() == [0x08, 10, 0, 0x08, 30, 0]


def test_button_changes_are_packets_of_their_own() -> None:
    board = Board()
    board.mouse(0xF4)
    board.drain()
    for buttons in (1, 0, 1):
        board.controller.move(0, 0, buttons)
    assert board.drain() == [0x09, 0, 0, 0x08, 0, 0, 0x09, 0, 0]


def test_a_long_movement_takes_several_packets() -> None:
    board = Board()
    board.mouse(0xF4)
    board.drain()
    board.controller.move(600, -300, 0)
    assert board.drain() == [0x28, 255, 1, 0x28, 255, 0xD3, 0x08, 90, 0]


def test_mouse_movement_that_nobody_reads_stays_bounded() -> None:
    board = Board()
    board.mouse(0xF4)
    for step in range(10_000):
        board.controller.move(1, 0, step & 1)
    assert len(board.controller.state.mouse.moves) <= 257


def test_mouse_status_shows_mode_buttons_resolution_and_rate() -> None:
    board = Board()
    board.mouse(0xE8, 0x03, 0xF3, 40, 0xE7, 0xF4)
    board.controller.move(0, 0, 6)
    board.drain()
    board.mouse(0xE9)
    assert board.drain() == [0xFA, 0x33, 0x03, 40]


def test_remote_mode_sends_only_on_request() -> None:
    board = Board()
    board.mouse(0xF0)
    board.drain()
    board.controller.move(7, 8, 2)
    assert board.drain() == []
    board.mouse(0xEB)
    assert board.drain() == [0xFA, 0x0A, 7, 8]


def test_scaling_two_to_one_follows_the_table() -> None:
    board = Board()
    board.mouse(0xE7, 0xF4)
    board.drain()
    seen = []
    for counts in (1, 2, 3, 4, 5, 6, -6):
        board.controller.move(counts, 0, 0)
        seen.append(board.drain()[1])
    assert seen == [1, 1, 3, 6, 9, 12, 0xF4]


def test_wrap_mode_echoes_until_it_ends() -> None:
    board = Board()
    board.mouse(0xEE)
    board.drain()
    board.mouse(0x12)
    assert board.drain() == [0x12]
    board.mouse(0xF4)
    assert board.drain() == [0xF4]
    board.mouse(0xEC)
    assert board.drain() == [0xFA]
    board.mouse(0xF2)
    assert board.drain() == [0xFA, 0x00]


def test_the_mouse_resends_its_last_packet_and_refuses_unknown_commands() -> None:
    board = Board()
    board.mouse(0xF2)
    board.drain()
    board.mouse(0xFE)
    assert board.drain() == [0xFA, 0x00]
    board.mouse(0x55)
    assert board.drain() == [0xFE]


def test_a_guest_that_never_reads_cannot_fill_memory() -> None:
    board = Board()
    for _ in range(1000):
        board.data(0xF2)
        board.mouse(0xE9)
    assert len(board.controller.state.keyboard.queue) <= 64
    assert len(board.controller.state.mouse.queue) <= 64


def test_a_word_access_to_the_data_port_does_not_reach_the_command_port() -> None:
    board = Board()
    assert board.controller.read(1, 2) == 0xFFFF
    board.controller.write(0, 2, 0xFEEE)
    assert board.resets == 0
    assert board.drain() == [0xEE]


def test_reset_drops_answers_opens_the_gate_and_keeps_waiting_keys() -> None:
    board = Board()
    board.command(0xDD)
    board.command(0xAA)
    board.controller.key(b"\x1c")
    board.controller.reset()
    assert board.a20 == [False, True]
    assert board.irqs == [(1, True), (1, False), (1, True)]
    assert board.drain() == [0x1E]


def test_a_restored_state_types_on_where_the_original_was() -> None:
    board = Board()
    board.controller.type_text("ab")
    saved = copy.deepcopy(board.controller.state)
    board.drain_for(20)
    board.controller.state = saved
    board.controller.rearm()
    assert board.drain_for(20) == [0x1E, 0x9E, 0x30, 0xB0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data", "command", "mouse", "key", "move", "read", "wait"]), st.integers(0, 255)
        ),
        max_size=60,
    )
)
def test_no_access_crashes_and_the_lines_follow_the_status(steps: list[tuple[str, int]]) -> None:
    board = Board()
    for kind, value in steps:
        match kind:
            case "data":
                board.data(value)
            case "command":
                board.command(value)
            case "mouse":
                board.mouse(value)
            case "key":
                board.controller.key(bytes((0xE0, value)))
            case "move":
                board.controller.move(value - 128, value, value)
            case "read":
                assert 0 <= board.read() <= 0xFF
            case _:
                board.clock.advance_to(board.clock.now_ns() + value * 10_000)
        status = board.status()
        assert not (board.controller.keyboard_irq.level and board.controller.aux_irq.level)
        if not status & 0x01:
            assert not board.controller.keyboard_irq.level and not board.controller.aux_irq.level


def test_reset_schedules_waiting_keys_again_on_a_cleared_clock() -> None:
    board = Board()
    board.controller.type_text("a")
    board.drain()
    board.clock.clear()
    board.controller.reset()
    assert board.drain_for(5) == [0x9E]


def test_reset_and_defaults_bring_the_key_types_of_set_3_back() -> None:
    board = Board()
    board.command(0x60, RAW)
    for command in (0xFF, 0xF6):
        board.data(0xF8, command, 0xF0, 0x03)
        board.drain()
        board.controller.key(b"\xf0\x1c")
        board.controller.key(b"\xf0\x12")
        assert board.drain_for(5) == [0xF0, 0x12]


def test_enabling_the_keyboard_drops_what_it_was_about_to_send() -> None:
    board = Board()
    board.data(0xF2, 0xF4)
    assert board.drain() == [0xFA, 0xFA]


def test_a_command_to_the_mouse_drops_what_it_was_about_to_send() -> None:
    board = Board()
    board.mouse(0xE9, 0xF2)
    assert board.drain() == [0xFA, 0xFA, 0x00]


def test_resend_does_not_drop_what_the_mouse_was_about_to_send() -> None:
    board = Board()
    board.mouse(0xF2, 0xFE)
    assert board.drain() == [0xFA, 0x00, 0xFA, 0x00]


def test_mouse_defaults_undo_its_settings() -> None:
    board = Board()
    board.mouse(0xE8, 0x01, 0xF3, 10, 0xE7, 0xF4, 0xF6)
    board.drain()
    board.mouse(0xE9)
    assert board.drain() == [0xFA, 0x00, 0x02, 100]


def test_a_status_byte_names_each_button() -> None:
    for buttons, expected in ((1, 0x04), (2, 0x01), (4, 0x02)):
        board = Board()
        board.controller.move(0, 0, buttons)
        board.mouse(0xE9)
        assert board.drain()[1] == expected


def test_a_remote_report_without_movement_is_still() -> None:
    board = Board()
    board.mouse(0xF0, 0xEB)
    assert board.drain()[-3:] == [0x08, 0, 0]


def test_the_output_port_shows_a_full_mouse_buffer() -> None:
    board = Board()
    board.command(0xD3, 0x00)
    board.command(0xD0)
    assert board.read() & 0x30 == 0x20
