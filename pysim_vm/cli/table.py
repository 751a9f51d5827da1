"""A table for a terminal or a file: rich's with colour, aligned columns without. It counts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

INDENT = "  "


def table_text(
    head: Sequence[str], rows: Sequence[Sequence[str]], align: str, *, color: bool = False, width: int = 100
) -> str:
    """The table as lines that end in a newline; `align` has an `l` or `r` for each column.

    Columns are two apart, or one where that keeps the table within `width`. With `color` it is for a
    terminal: the first column and the first right-aligned one stand out, and text that does not fit is
    folded.
    """
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    gap = 2 if len(INDENT) + sum(widths) + 2 * (len(widths) - 1) <= width else 1
    if color:
        return _colored(head, rows, align, width, gap)
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(size) if side == "r" else cell.ljust(size)
            for side, cell, size in zip(align, row, widths, strict=True)
        ]
        lines.append((INDENT + (" " * gap).join(cells)).rstrip())
    return "\n".join(lines) + "\n"


def _colored(head: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int, gap: int) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for n, (title, side) in enumerate(zip(head, align, strict=True)):
        style = "cyan" if n == 0 else "bold" if n == align.find("r") else ""
        if side == "r":
            table.add_column(title, justify="right", style=style, no_wrap=True)
        else:
            table.add_column(title, style=style, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    buffer = StringIO()
    Console(file=buffer, force_terminal=True, width=max(width - len(INDENT), 20)).print(table)
    return "".join(f"{INDENT}{line}\n" for line in buffer.getvalue().splitlines())
