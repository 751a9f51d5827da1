"""VGA text adapter: what the guest writes is what the screen shows; registers keep the chip's manners."""

from __future__ import annotations

import copy

from devices.clock import VirtualClock
from devices.vga_text import Cell, VgaMemory, VgaText

TEXT = 0x1_8000  # 0xB8000 in the memory window
CRTC, STATUS, ATTRIBUTE, SEQUENCER, GRAPHICS = 0x14, 0x1A, 0x00, 0x04, 0x0E  # offsets from port 0x3C0
DAC_READ, DAC_WRITE, DAC_DATA = 0x07, 0x08, 0x09


def adapter() -> tuple[VgaText, VgaMemory, VirtualClock]:
    clock = VirtualClock()
    card = VgaText(clock)
    return card, card.memory(), clock


def put(memory: VgaMemory, row: int, column: int, text: str, attribute: int = 0x07) -> None:
    for i, code in enumerate(text.encode("cp437")):
        memory.write(TEXT + 2 * (80 * row + column + i), 2, attribute << 8 | code)


def set_register(card: VgaText, port: int, index: int, value: int) -> None:
    card.write(port, 2, value << 8 | index)


def test_a_fresh_screen_is_80_by_25_and_blank() -> None:
    card, _, _ = adapter()
    assert card.size() == (80, 25)
    assert card.screen() == [" " * 80] * 25


def test_written_cells_show_on_the_screen() -> None:
    card, memory, _ = adapter()
    put(memory, 0, 0, "Hello")
    put(memory, 24, 75, "world")
    screen = card.screen()
    assert screen[0] == "Hello" + " " * 75
    assert screen[24].endswith(" world")


def test_all_widths_write_the_same_cells() -> None:
    card, memory, _ = adapter()
    memory.write(TEXT, 8, 0x07_44_07_43_07_42_07_41)
    memory.write(TEXT + 8, 4, 0x07_46_07_45)
    memory.write(TEXT + 12, 1, 0x47)
    assert card.screen()[0].startswith("ABCDEFG ")
    assert memory.read(TEXT + 4, 4) == 0x07_44_07_43
    assert memory.read(TEXT + 12, 1) == 0x47


def test_code_page_437_has_pictures_for_control_codes() -> None:
    card, memory, _ = adapter()
    for i, code in enumerate((0x00, 0x01, 0x1F, 0x7F, 0xB0, 0xDB, 0xE4, 0xFF)):
        memory.write(TEXT + 2 * i, 1, code)
    assert card.screen()[0][:8] == " ☺▼⌂░█Σ\xa0"


def test_cells_have_colours_and_blink_unless_the_background_is_bright() -> None:
    card, memory, _ = adapter()
    put(memory, 0, 0, "X", attribute=0x9E)
    assert card.screen_cells()[0][0] == Cell("X", 0x58, foreground=14, background=1, blink=True)
    card.read(STATUS, 1)
    card.write(ATTRIBUTE, 1, 0x30)
    card.write(ATTRIBUTE, 1, 0x04)  # mode control without blink
    assert card.screen_cells()[0][0] == Cell("X", 0x58, foreground=14, background=9, blink=False)
    assert len(card.screen_cells()) == 25 and len(card.screen_cells()[24]) == 80


def test_the_start_address_scrolls() -> None:
    card, memory, _ = adapter()
    put(memory, 1, 0, "second")
    set_register(card, CRTC, 0x0D, 80)
    assert card.screen()[0].startswith("second")
    set_register(card, CRTC, 0x0C, 0xFF)
    set_register(card, CRTC, 0x0D, 0xFF)
    assert len(card.screen()[0]) == 80


def test_the_cursor_has_a_place_a_shape_and_a_switch() -> None:
    card, _, _ = adapter()
    set_register(card, CRTC, 0x0E, (3 * 80 + 7) >> 8)
    set_register(card, CRTC, 0x0F, (3 * 80 + 7) & 0xFF)
    cursor = card.cursor()
    assert (cursor.row, cursor.column, cursor.visible) == (3, 7, True)
    assert (cursor.first_line, cursor.last_line) == (13, 14)
    set_register(card, CRTC, 0x0A, 0x20)
    assert card.cursor().visible is False
    set_register(card, CRTC, 0x0A, 0x0D)
    set_register(card, CRTC, 0x0E, 0xFF)
    assert card.cursor().visible is False


def test_the_guest_may_choose_50_rows_or_40_columns() -> None:
    card, _, _ = adapter()
    set_register(card, CRTC, 0x09, 0x47)
    assert card.size() == (80, 50)
    set_register(card, CRTC, 0x11, 0x0E)  # protection off
    set_register(card, CRTC, 0x01, 39)
    assert card.size() == (40, 50)
    assert all(len(row) == 40 for row in card.screen())


def test_no_register_values_make_the_screen_fail_or_grow() -> None:
    for value in (0x00, 0x55, 0xFF):
        card, memory, _ = adapter()
        set_register(card, CRTC, 0x11, 0x00)
        for index in range(0x20):
            set_register(card, CRTC, index, value)
        columns, rows = card.size()
        assert 1 <= columns <= 132 and 1 <= rows <= 60
        assert [len(row) for row in card.screen()] == [columns] * rows
        card.screen_cells()
        card.cursor()
        for port in (SEQUENCER, GRAPHICS):
            for index in range(0x10):
                set_register(card, port, index, value)
        for offset in (0, 0xFFFF, 0x1_0000, TEXT, 0x1_FFFF):
            memory.write(offset, 8, 0x0123_4567_89AB_CDEF)
            memory.read(offset, 8)


def test_timing_registers_are_protected_but_for_line_compare() -> None:
    card, _, _ = adapter()
    set_register(card, CRTC, 0x01, 0)
    set_register(card, CRTC, 0x07, 0x00)
    card.write(CRTC, 1, 0x01)
    assert card.read(CRTC + 1, 1) == 0x4F
    card.write(CRTC, 1, 0x07)
    assert card.read(CRTC + 1, 1) == 0x0F


def test_the_attribute_port_takes_index_and_data_by_turns() -> None:
    card, _, _ = adapter()
    card.read(STATUS, 1)
    card.write(ATTRIBUTE, 1, 0x05)  # palette index, display off
    card.write(ATTRIBUTE, 1, 0x2A)
    assert card.read(ATTRIBUTE + 1, 1) == 0x2A
    card.write(ATTRIBUTE, 1, 0x06)
    card.read(STATUS, 1)  # back to the index
    card.write(ATTRIBUTE, 1, 0x05)
    assert card.read(ATTRIBUTE, 1) == 0x05


def test_the_palette_is_closed_while_the_display_uses_it() -> None:
    card, _, _ = adapter()
    card.read(STATUS, 1)
    card.write(ATTRIBUTE, 1, 0x25)
    card.write(ATTRIBUTE, 1, 0x2A)
    assert card.read(ATTRIBUTE + 1, 1) == 0x05


def test_the_dac_steps_through_red_green_blue() -> None:
    card, _, _ = adapter()
    card.write(DAC_WRITE, 1, 255)
    for value in (1, 2, 0xFF, 4):
        card.write(DAC_DATA, 1, value)
    card.write(DAC_READ, 1, 255)
    assert card.read(DAC_READ, 1) == 0x03
    assert [card.read(DAC_DATA, 1) for _ in range(4)] == [1, 2, 0x3F, 4]
    card.write(DAC_READ, 1, 0x14)  # brown: EGA colour 20
    assert [card.read(DAC_DATA, 1) for _ in range(3)] == [42, 21, 0]


def test_misc_output_reads_back_at_another_port() -> None:
    card, _, _ = adapter()
    card.write(0x02, 1, 0x63)
    assert card.read(0x0C, 1) == 0x63
    assert card.read(0x02, 1) == 0x10


def test_ports_without_a_register_float() -> None:
    card, _, _ = adapter()
    assert card.read(0x1F, 1) == 0xFF
    assert card.read(0x10, 1) == 0xFF


def test_retrace_follows_virtual_time() -> None:
    card, _, clock = adapter()
    assert card.read(STATUS, 1) == 0x00
    clock.advance_to(26_000)  # end of the first line
    assert card.read(STATUS, 1) == 0x01
    clock.advance_to(31_777 * 413)
    assert card.read(STATUS, 1) == 0x09
    clock.advance_to(31_777 * 415)
    assert card.read(STATUS, 1) == 0x01
    clock.advance_to(31_777 * 449)
    assert card.read(STATUS, 1) == 0x00


def test_only_the_mapped_part_of_the_window_answers() -> None:
    card, memory, _ = adapter()
    memory.write(0, 1, 0x41)
    memory.write(0x1_0000, 1, 0x41)
    assert memory.read(0, 2) == 0xFFFF and memory.read(0x1_0000, 1) == 0xFF
    assert card.screen()[0] == " " * 80
    memory.write(TEXT - 1, 2, 0x41FF)  # half outside: only the inner byte lands
    assert card.screen()[0][0] == "A"


def test_the_map_mask_keeps_planes_from_being_written() -> None:
    card, memory, _ = adapter()
    set_register(card, SEQUENCER, 2, 0x01)
    memory.write(TEXT, 2, 0x1E41)
    cell = card.screen_cells()[0][0]
    assert (cell.char, cell.foreground) == ("A", 7)


def planar() -> tuple[VgaText, VgaMemory]:
    card, memory, _ = adapter()
    set_register(card, SEQUENCER, 4, 0x06)
    set_register(card, GRAPHICS, 5, 0x00)
    set_register(card, GRAPHICS, 6, 0x05)
    return card, memory


def test_firmware_can_load_a_font_into_plane_2() -> None:
    card, memory = planar()
    set_register(card, SEQUENCER, 2, 0x04)
    set_register(card, GRAPHICS, 4, 2)
    memory.write(0x20, 2, 0x8142)
    assert memory.read(0x20, 2) == 0x8142
    assert card.screen()[0] == " " * 80


def test_write_mode_1_copies_all_planes_through_the_latches() -> None:
    card, memory = planar()
    for plane in range(4):
        set_register(card, SEQUENCER, 2, 1 << plane)
        memory.write(0x10, 1, 0x11 * (plane + 1))
    set_register(card, SEQUENCER, 2, 0x0F)
    memory.read(0x10, 1)
    set_register(card, GRAPHICS, 5, 0x01)
    memory.write(0x40, 1, 0)
    set_register(card, GRAPHICS, 5, 0x00)
    for plane in range(4):
        set_register(card, GRAPHICS, 4, plane)
        assert memory.read(0x40, 1) == 0x11 * (plane + 1)


def test_set_reset_bit_mask_rotation_and_logic_apply_in_mode_0() -> None:
    card, memory = planar()
    set_register(card, SEQUENCER, 2, 0x01)
    memory.write(0, 1, 0b1010_1010)
    memory.read(0, 1)
    set_register(card, GRAPHICS, 8, 0x0F)
    memory.write(0, 1, 0xFF)
    assert memory.read(0, 1) == 0b1010_1111
    set_register(card, GRAPHICS, 8, 0xFF)
    set_register(card, GRAPHICS, 3, 0x18 | 1)  # rotate by one, exclusive or
    memory.read(0, 1)
    memory.write(0, 1, 0b0000_0001)
    assert memory.read(0, 1) == 0b0010_1111
    set_register(card, GRAPHICS, 3, 0)
    set_register(card, GRAPHICS, 0, 1)
    set_register(card, GRAPHICS, 1, 1)
    memory.write(0, 1, 0)
    assert memory.read(0, 1) == 0xFF


def test_write_modes_2_and_3_take_their_colour_from_data_and_set_reset() -> None:
    card, memory = planar()
    set_register(card, SEQUENCER, 2, 0x0F)
    set_register(card, GRAPHICS, 5, 0x02)
    memory.write(0, 1, 0b0101)
    set_register(card, GRAPHICS, 5, 0x00)
    got = []
    for plane in range(4):
        set_register(card, GRAPHICS, 4, plane)
        got.append(memory.read(0, 1))
    assert got == [0xFF, 0x00, 0xFF, 0x00]
    set_register(card, GRAPHICS, 0, 0b0010)
    set_register(card, GRAPHICS, 5, 0x03)
    memory.write(0, 1, 0xF0)  # the data is the mask
    set_register(card, GRAPHICS, 5, 0x00)
    set_register(card, GRAPHICS, 4, 1)
    assert memory.read(0, 1) == 0xF0
    set_register(card, GRAPHICS, 4, 0)
    assert memory.read(0, 1) == 0x0F


def test_read_mode_1_compares_colours() -> None:
    card, memory = planar()
    set_register(card, SEQUENCER, 2, 0x01)
    memory.write(0, 1, 0xF0)
    set_register(card, SEQUENCER, 2, 0x0E)
    memory.write(0, 1, 0x00)
    set_register(card, GRAPHICS, 5, 0x08)
    set_register(card, GRAPHICS, 2, 0x01)
    set_register(card, GRAPHICS, 7, 0x0F)
    assert memory.read(0, 1) == 0xF0
    set_register(card, GRAPHICS, 7, 0x00)
    assert memory.read(0, 1) == 0xFF


def test_chain_4_is_a_plain_array_of_bytes() -> None:
    card, memory = planar()
    set_register(card, SEQUENCER, 4, 0x0E)
    set_register(card, SEQUENCER, 2, 0x0F)
    memory.write(0x123, 4, 0x0403_0201)
    assert memory.read(0x123, 4) == 0x0403_0201
    assert memory.read(0x124, 1) == 0x02


def test_reset_blanks_the_screen_for_both_windows() -> None:
    card, memory, _ = adapter()
    put(memory, 0, 0, "gone")
    saved = copy.deepcopy(card.state)
    card.reset()
    memory.reset()
    assert card.screen()[0] == " " * 80
    card.state = saved
    assert card.screen()[0].startswith("gone")
