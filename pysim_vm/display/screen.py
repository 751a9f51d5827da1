"""The VGA text screen and the guest's console as pictures. It draws characters, never pixels.

Both hold what an untrusted guest wrote: every character is escaped, control characters are spelled out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Final

from devices.vga_text import ATTR_VIDEO_ON, GC_MISC, Cell, Cursor, VgaText
from pysim_vm.display.html import ROOT, Note, Part, Picture, page_part, visible
from pysim_vm.report import plural

GRAPHICS_MODE: Final = 1  # graphics register 6: no alphanumeric mode
COLOURS: Final = 16
CONSOLE_LINES: Final = 200
CONSOLE_COLUMNS: Final = 300
MONOSPACE: Final = '"DejaVu Sans Mono",ui-monospace,Menlo,Consolas,monospace'

_SCREEN: Final = """
& pre.screen{display:inline-block;margin:.1em 0 .6em;padding:10px 12px;border:0;border-radius:4px;
 background:var(--k0);color:var(--k7);font:13px/1.22 MONOSPACE;white-space:pre;overflow:visible}
& pre.screen span{display:inline;padding:0}
& pre.screen .cursor{box-shadow:inset 0 -2px 0 0 var(--k15)}
"""
_CONSOLE: Final = """
& pre.console{margin:.1em 0 .6em;padding:8px 12px;border:1px solid rgba(128,128,128,.35);border-radius:4px;
 background:rgba(128,128,128,.07);color:inherit;font:12.5px/1.45 MONOSPACE;white-space:pre;overflow-x:auto}
"""
_COLOURS: Final = "".join(
    f"& pre.screen .f{n}{{color:var(--k{n})}}& pre.screen .b{n}{{background:var(--k{n})}}"
    for n in range(COLOURS)
)
SCREEN_STYLE: Final = (_SCREEN + _COLOURS).replace("&", ROOT).replace("MONOSPACE", MONOSPACE)
CONSOLE_STYLE: Final = _CONSOLE.replace("&", ROOT).replace("MONOSPACE", MONOSPACE)


@dataclass(frozen=True, slots=True, repr=False)
class ScreenView(Picture):
    """The text screen as it is now: `rows` of cells, `palette` of `#rrggbb`, the cursor.

    `text` gives the rows without colours; `note` says why it may look odd (a graphics mode, a dark screen).
    """

    rows: tuple[tuple[Cell, ...], ...]
    palette: tuple[str, ...]
    cursor: Cursor
    note: str = ""

    @classmethod
    def of(cls, vga: VgaText) -> ScreenView:
        """What a viewer sees on an adapter."""
        state = vga.state
        note = ""
        if state.graphics[GC_MISC] & GRAPHICS_MODE:
            note = "The adapter is in a graphics mode: this is what its memory would be as characters."
        elif not state.attribute_index & ATTR_VIDEO_ON:
            note = "The guest has switched the display off."
        return cls(tuple(map(tuple, vga.screen_cells())), _palette(vga), vga.cursor(), note)

    @property
    def text(self) -> tuple[str, ...]:
        """The rows as text, without what is blank on the right."""
        return tuple("".join(cell.char for cell in row).rstrip() for row in self.rows)

    def parts(self) -> Iterator[Part]:
        """The sentences around the screen."""
        columns = len(self.rows[0]) if self.rows else 0
        where = (
            f", cursor at row {self.cursor.row}, column {self.cursor.column}" if self.cursor.visible else ""
        )
        yield Note(f"VGA text screen, {columns} x {len(self.rows)}{where}", "title")
        if self.note:
            yield Note(self.note)

    def __str__(self) -> str:
        rows = self.text
        width = max((len(row) for row in self.rows), default=0)
        edge = "+" + "-" * width + "+\n"
        body = "".join(f"|{row:<{width}}|\n" for row in rows)
        return "".join(part.text() for part in self.parts()) + edge + body + edge.rstrip("\n")

    def _repr_html_(self) -> str:
        words = "".join(part.html() for part in self.parts())
        lines = [self._line(number, row) for number, row in enumerate(self.rows)]
        colours = ";".join(f"--k{number}:{colour}" for number, colour in enumerate(self.palette))
        screen = f'<pre class="screen" style="{colours}">' + "\n".join(lines) + "</pre>"
        return page_part(words + screen, SCREEN_STYLE)

    def _line(self, number: int, row: tuple[Cell, ...]) -> str:
        """One row: cells of the same colours are one span, the cursor is one of its own."""
        at = self.cursor.column if self.cursor.visible and self.cursor.row == number else -1
        parts = []
        looks = groupby(enumerate(row), lambda each: (each[1].foreground, each[1].background, each[0] == at))
        for (foreground, background, is_cursor), run in looks:
            text = escape("".join(cell.char for _, cell in run))
            names = [f"f{foreground}"] if foreground != 7 else []
            names += [f"b{background}"] if background else []
            names += ["cursor"] if is_cursor else []
            parts.append(f'<span class="{" ".join(names)}">{text}</span>' if names else text)
        return "".join(parts)


def _palette(vga: VgaText) -> tuple[str, ...]:
    """The 16 colours of the text attributes: through the palette registers and the DAC, 6 bits a channel."""
    state = vga.state
    colours = []
    for number in range(COLOURS):
        index = 3 * (state.attribute[number] & 0x3F & state.dac_mask)
        channels = [(level & 0x3F) * 255 // 63 for level in state.dac[index : index + 3]]
        colours.append("#" + "".join(f"{level:02x}" for level in channels))
    return tuple(colours)


@dataclass(frozen=True, slots=True, repr=False)
class ConsoleView(Picture):
    """The last lines that the guest printed on its serial console; `left` lines came before them."""

    lines: tuple[str, ...]
    left: int
    dropped: int = 0

    @classmethod
    def of(cls, data: bytes | bytearray, dropped: int = 0, count: int = CONSOLE_LINES) -> ConsoleView:
        """The last `count` lines of what was printed; `dropped` bytes were not kept at all."""
        rows = bytes(data).split(b"\n")
        if rows and not rows[-1].strip():
            rows.pop()
        shown = rows[-count:] if count > 0 else []
        texts = []
        for row in shown:
            text = row[: 4 * CONSOLE_COLUMNS].decode("utf-8", "replace").removesuffix("\r").expandtabs()
            texts.append(visible(text[:CONSOLE_COLUMNS] + ("…" if len(text) > CONSOLE_COLUMNS else "")))
        return cls(tuple(texts), len(rows) - len(shown), dropped)

    def parts(self) -> Iterator[Part]:
        """The sentences around the lines."""
        yield Note(f"Console, {plural(len(self.lines) + self.left, 'line')}", "title")
        if self.left:
            yield Note(f"… {plural(self.left, 'line')} before these")
        if self.dropped:
            yield Note(f"{plural(self.dropped, 'byte')} came after the output limit and were not kept")

    def __str__(self) -> str:
        return "".join(part.text() for part in self.parts()) + "\n".join(self.lines)

    def _repr_html_(self) -> str:
        words = "".join(part.html() for part in self.parts())
        body = f'<pre class="console">{escape(chr(10).join(self.lines))}</pre>' if self.lines else ""
        return page_part(words + body, CONSOLE_STYLE)
