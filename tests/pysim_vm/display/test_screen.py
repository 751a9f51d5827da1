"""display/screen.py: the screen in the guest's colours, the console; both written by somebody untrusted."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysim_vm import AxError, AxVM
from pysim_vm.display.screen import CONSOLE_COLUMNS, ConsoleView, ScreenView
from tests.pysim_vm.html_text import seen


def screen_of(text: str, attribute: int = 0x07) -> AxVM:
    """A PC whose guest has written `text` to the top left corner."""
    vm = AxVM.from_asm("nop", platform="pc")
    assert vm.board is not None and vm.board.vga is not None
    memory = vm.board.vga.memory()
    for number, char in enumerate(text):
        memory.write(0x1_8000 + 2 * number, 2, ord(char) | attribute << 8)
    return vm


def test_the_screen_is_text_in_a_frame() -> None:
    lines = str(screen_of("Hello").show.screen()).splitlines()
    assert lines[0] == "VGA text screen, 80 x 25, cursor at row 0, column 0"
    assert lines[1] == "+" + "-" * 80 + "+"
    assert lines[2] == "|Hello" + " " * 75 + "|"
    assert len(lines) == 28
    assert screen_of("Hello").show.screen().text[0] == "Hello"


def test_the_screen_has_the_guests_colours_in_runs() -> None:
    html = screen_of("Hello", 0x4F).show.screen()._repr_html_()
    assert '<span class="f15 b4 cursor">H</span><span class="f15 b4">ello</span>' in html
    assert "--k15:#ffffff" in html
    assert "--k4:#aa0000" in html


def test_a_palette_that_the_guest_changed_is_used() -> None:
    vm = screen_of("x")
    assert vm.board is not None and vm.board.vga is not None
    state = vm.board.vga.state
    state.attribute[7] = 9
    state.dac[27:30] = bytes((63, 0, 32))
    assert vm.show.screen().palette[7] == "#ff0081"


def test_what_the_guest_wrote_on_the_screen_is_escaped() -> None:
    page = seen(screen_of("<script>alert(1)</script>&amp;").show.screen())
    assert "script" not in page.tags
    assert "<script>alert(1)</script>&amp;" in page.text


def test_control_codes_are_the_pictures_of_code_page_437() -> None:
    assert screen_of("\x01\x1b\x07").show.screen().text[0] == "☺←•"


def test_a_hidden_cursor_is_not_drawn() -> None:
    vm = screen_of("x")
    assert vm.board is not None and vm.board.vga is not None
    vm.board.vga.state.crtc[0x0A] = 0x20
    assert "cursor" not in str(vm.show.screen())
    assert 'class="cursor"' not in vm.show.screen()._repr_html_()


def test_a_graphics_mode_and_a_dark_screen_are_explained() -> None:
    vm = screen_of("x")
    assert vm.board is not None and vm.board.vga is not None
    state = vm.board.vga.state
    state.attribute_index = 0
    assert "switched the display off" in str(vm.show.screen())
    state.graphics[6] |= 1
    assert "graphics mode" in str(vm.show.screen())


def test_a_machine_without_a_screen_says_how_to_get_one() -> None:
    with pytest.raises(AxError, match='no VGA adapter; build it with platform = "pc"'):
        AxVM.from_asm("nop").show.screen()


@settings(max_examples=60, deadline=None)
@given(crtc=st.binary(min_size=25, max_size=25), cells=st.binary(max_size=400), other=st.binary(min_size=30))
def test_any_register_values_give_a_bounded_page(crtc: bytes, cells: bytes, other: bytes) -> None:
    vm = AxVM.from_asm("nop", platform="pc")
    assert vm.board is not None and vm.board.vga is not None
    state = vm.board.vga.state
    state.crtc[:] = crtc
    state.memory[: len(cells)] = cells
    state.attribute[:] = other[:21]
    state.graphics[:] = other[21:30]
    view = vm.show.screen()
    assert len(view._repr_html_()) < 600_000
    page = seen(view)
    assert set(page.tags) <= {"div", "style", "p", "pre", "span"}
    assert len(view.rows) <= 60
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in view.palette)


def test_the_worst_screen_is_still_a_small_page() -> None:
    vm = AxVM.from_asm("nop", platform="pc")
    assert vm.board is not None and vm.board.vga is not None
    state = vm.board.vga.state
    state.crtc[1], state.crtc[9] = 0xFF, 0
    state.memory[:] = b"".join(bytes((0x3C, n & 0xFF, 0, 0)) for n in range(0x1_0000))
    view = ScreenView.of(vm.board.vga)
    assert (len(view.rows), len(view.rows[0])) == (60, 132)
    assert len(view._repr_html_()) < 600_000


# ---- the console -------------------------------------------------------------------------------------------


def test_the_console_shows_the_last_lines() -> None:
    data = b"".join(b"line %d\r\n" % number for number in range(10))
    view = ConsoleView.of(data, count=3)
    assert view.lines == ("line 7", "line 8", "line 9")
    assert str(view) == "Console, 10 lines\n… 7 lines before these\nline 7\nline 8\nline 9"


def test_escape_sequences_and_markup_of_the_console_are_harmless() -> None:
    view = ConsoleView.of(b"\x1b[2J<img src=x onerror=alert(1)>\xff\t|")
    assert view.lines == ("\\x1b[2J<img src=x onerror=alert(1)>\ufffd       |",)
    assert "img" not in seen(view).tags
    assert "\x1b" not in str(view)


def test_an_endless_line_is_cut() -> None:
    view = ConsoleView.of(b"x" * 10_000_000, dropped=5)
    assert len(view.lines[0]) == CONSOLE_COLUMNS + 1
    assert "5 bytes came after the output limit" in str(view)


def test_a_silent_guest_has_an_empty_console() -> None:
    view = AxVM.from_asm("nop").show.console()
    assert view.lines == ()
    assert str(view) == "Console, 0 lines\n"
    assert "pre" not in seen(view).tags


def test_the_console_of_a_machine_is_its_serial_port() -> None:
    vm = AxVM.from_asm("mov dx, 0x3f8\nmov al, 'k'\nout dx, al\nhlt", platform="pc")
    vm.run(10)
    assert vm.show.console().lines == ("k",)
