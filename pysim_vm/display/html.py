"""Pictures for a terminal and a notebook: tables and notes that become text or HTML. It knows no machine.

A `Picture` is made of parts and shown twice from the same parts: `str()` is aligned text, `_repr_html_` a
piece of HTML that needs nothing but a browser. What a guest wrote ends up here too, so every text is
escaped, what cannot be printed is spelled out, and long cells are cut. The colours are translucent and the
text keeps the page's own colour, so a light and a dark page both work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, NamedTuple, TypeAlias

from pysim_vm.cli.table import table_text
from pysim_vm.report import plural

BAR_EM: Final = 7  # width of a full bar, in the font's size
CELL_MAX: Final = 400  # characters of one span: a symbol's name may have a thousand
TEXT_WIDTH: Final = 1 << 16  # text is never squeezed: a terminal has a scroll bar, a file no width

# The class twice: notebooks have rules for tables that would win over a single one
ROOT: Final = "div.pysim-vm.pysim-vm"
_SHEET: Final = """
&{font:13px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:inherit;
 margin:.3em 0 1em;overflow-x:auto}
& p{margin:0 0 .45em;font-size:13px;line-height:1.5}
& p.title{font-weight:600}
& p.note{opacity:.75}
& table{border:0;border-collapse:collapse;margin:.1em 0 .8em;width:auto;table-layout:auto;
 color:inherit;font:12.5px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
& table tbody tr:nth-child(n),& table thead tr{background:none;border:0}
& table tr th,& table tr td{border:0;padding:0 1.5em 0 0;text-align:left;
 vertical-align:top;white-space:pre;font-weight:400;font-size:inherit;line-height:1.6;color:inherit;
 max-width:none}
& table thead tr th{font-family:system-ui,-apple-system,"Segoe UI",sans-serif;font-size:12px;
 opacity:.65;border-bottom:1px solid rgba(128,128,128,.4);padding-bottom:.1em}
& table tbody tr:first-child td{padding-top:.2em}
& table tr .r{text-align:right}
& table tr td.w{white-space:pre-wrap;max-width:62em}
& table tr td.name{opacity:.65;padding-right:.8em}
& table tbody tr.here:nth-child(n){background:rgba(60,130,250,.15)}
& .dim{opacity:.4}
& .strong{font-weight:600}
& .changed{background:rgba(255,170,0,.32);border-radius:2px;
 box-shadow:0 0 0 2px rgba(255,170,0,.32)}
& .gone{background:rgba(255,170,0,.32);border-radius:2px;text-decoration:line-through}
& .bad{background:rgba(235,60,60,.22);border-radius:2px;
 box-shadow:0 0 0 2px rgba(235,60,60,.22)}
& .bar{display:inline-block;height:.72em;background:rgba(60,130,250,.55);border-radius:1px}
@media (prefers-color-scheme:dark){& .changed,& .gone{background:rgba(255,170,0,.38)}
 & .bad{background:rgba(255,80,80,.34)}& .dim{opacity:.45}}
"""
STYLE: Final = _SHEET.replace("&", ROOT)

_MARKS: Final = {"changed": "*", "gone": " off*"}  # what a tone is in text


class Span(NamedTuple):
    """A text in one tone: "", "dim", "strong", "changed", "gone", "bad" or "bar" (a bar `share` long)."""

    text: str
    tone: str = ""
    share: float = 0.0


Cell: TypeAlias = "str | Span | tuple[Span, ...]"


class Row(NamedTuple):
    """Cells of a table; the tone "here" marks the row."""

    cells: tuple[Cell, ...]
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head ("" for no head). `align` has a letter for each column: left, right, `n`ame, `w`ords
    that may wrap."""

    head: tuple[str, ...]
    align: str
    rows: tuple[Row, ...]

    def text(self) -> str:
        """The table as lines."""
        if not self.rows:
            return ""
        sides = "".join("r" if side == "r" else "l" for side in self.align)
        head = self.head or ("",) * len(self.align)
        shown = [[cell_text(cell) for cell in row.cells] for row in self.rows]
        lines = table_text(head, shown, sides, width=TEXT_WIDTH)
        return lines if self.head else lines.partition("\n")[2]

    def html(self) -> str:
        """The table as HTML."""
        if not self.rows:
            return ""
        kinds = [f' class="{_KINDS[side]}"' if side in _KINDS else "" for side in self.align]
        parts = ["<table>"]
        if self.head:
            parts.append("<thead><tr>")
            parts += [f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, self.head, strict=True)]
            parts.append("</tr></thead>")
        parts.append("<tbody>")
        for row in self.rows:
            parts.append(f'<tr class="{row.tone}">' if row.tone else "<tr>")
            parts += [
                f"<td{kind}>{cell_html(cell)}</td>" for kind, cell in zip(kinds, row.cells, strict=True)
            ]
            parts.append("</tr>")
        parts.append("</tbody></table>")
        return "".join(parts)


_KINDS: Final = {"r": "r", "w": "w", "n": "name"}


@dataclass(frozen=True, slots=True)
class Note:
    """A line of words; `kind` is "title" or "note"."""

    words: str
    kind: str = "note"

    def text(self) -> str:
        """The line."""
        return visible(self.words) + "\n"

    def html(self) -> str:
        """A paragraph."""
        return f'<p class="{self.kind}">{escape(visible(self.words))}</p>'


Part: TypeAlias = Table | Note


class Picture:
    """Something with parts. `str` and `repr` are text, a notebook shows `_repr_html_`."""

    __slots__ = ()

    def parts(self) -> Iterable[Part]:
        """What is shown, from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        texts: list[str] = []
        table = False
        for part in self.parts():
            if table and isinstance(part, Table):
                texts.append("\n")  # two tables in a row are told apart
            table = isinstance(part, Table)
            texts.append(part.text())
        return "".join(texts).rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return page_part("".join(part.html() for part in self.parts()))


@dataclass(frozen=True, slots=True, repr=False)
class Drawn(Picture):
    """A picture that is nothing but its parts."""

    drawn: tuple[Part, ...]

    def parts(self) -> Iterable[Part]:
        """The parts."""
        return self.drawn


def page_part(html: str, style: str = "") -> str:
    """HTML with the style it needs, for a cell of any page."""
    return f'<div class="pysim-vm"><style>{STYLE}{style}</style>{html}</div>'


# ---- texts -------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """A text without control characters and such: they are spelled as in Python, and what is long is cut.

    A guest must not send escape sequences to a terminal, nor turn a line around with a bidirectional mark.
    """
    if len(text) > CELL_MAX:
        text = text[: CELL_MAX - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def spans(cell: Cell) -> tuple[Span, ...]:
    """A cell as spans."""
    if isinstance(cell, str):
        return (Span(cell),)
    return (cell,) if isinstance(cell, Span) else cell


def cell_text(cell: Cell) -> str:
    """A cell as text: what changed has a star."""
    return "".join(visible(span.text) + _MARKS.get(span.tone, "") for span in spans(cell))


def cell_html(cell: Cell) -> str:
    """A cell as HTML."""
    parts = []
    for span in spans(cell):
        if span.tone == "bar":
            width = BAR_EM * min(max(span.share, 0.0), 1.0)
            parts.append(f'<span class="bar" style="width:{width:.3f}em"></span>')
        elif span.tone:
            parts.append(f'<span class="{span.tone}">{escape(visible(span.text))}</span>')
        else:
            parts.append(escape(visible(span.text)))
    return "".join(parts)


def number(value: int, digits: int, tone: str = "") -> tuple[Span, ...]:
    """A hexadecimal number of fixed width, its leading zeros dim."""
    text = f"{value:0{digits}x}"
    if tone:
        return (Span(text, tone),)
    lead = min(len(text) - len(text.lstrip("0")), digits - 1)
    return (Span(text[:lead], "dim"), Span(text[lead:])) if lead else (Span(text),)


def joined(parts: Iterable[Span], by: str = " ") -> tuple[Span, ...]:
    """Spans in one cell, with something between them."""
    found: list[Span] = []
    for part in parts:
        if found:
            found.append(Span(by))
        found.append(part)
    return tuple(found)


def cut(count: int, shown: int, noun: str) -> Iterator[Note]:
    """`… 12 more entries`, if some are left."""
    if count > shown:
        yield Note(f"… {plural(count - shown, 'more ' + noun)}")


def ends(count: int, shown: int) -> Sequence[range]:
    """Which of `count` rows to show when `shown` fit: all, or the first and the last ones."""
    if count <= shown:
        return (range(count),)
    head = (shown + 1) // 2
    return range(head), range(count - (shown - head), count)
