"""What an assembly ends in: the image with its listing, or the error; and the limits that keep it small.

Not how the image comes about: that is `program.py` and everything it calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_IMAGE_BYTES: Final = 1 << 26
"""Largest image: 64 MiB, so that a mistyped `times` or `resb` ends in a sentence and not in swap."""

MAX_NUMBER_BITS: Final = 128
"""Widest intermediate result of an expression; `1 << (1 << 40)` must not eat the host's memory."""

MAX_NESTING: Final = 64
"""Deepest nesting of parentheses and unary operators in one expression."""

MAX_PASSES: Final = 48
"""A layout that still moves after so many passes never settles (`a equ a+1`)."""

M64: Final = (1 << 64) - 1


class AssemblerError(ValueError):
    """Text that cannot be assembled: one sentence with line, text, what is wrong and what to do.

    `line_number` counts from 1 (0: not the text but an argument is wrong), `line` is the text of that line,
    and `reason` the sentence without the place.
    """

    def __init__(self, line_number: int, line: str, reason: str) -> None:
        self.line_number = line_number
        self.line = line.strip()
        self.reason = reason
        place = f"line {line_number}: `{self.line[:120]}`: " if line_number else ""
        super().__init__(place + reason)


class Problem(Exception):
    """What is wrong with the current line; the line loop adds where."""


class ListingLine(NamedTuple):
    """One source line of the listing: where it went, what it became, and where it came from."""

    address: int
    code: bytes
    line_number: int
    text: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """A finished image.

    `code` is the image, its first byte at address `origin`. `labels` maps every label to its address, local
    ones as `outer.local`. `listing` holds one `ListingLine` per source line that defines a label or bytes.
    """

    code: bytes
    origin: int
    labels: dict[str, int] = field(default_factory=dict)
    listing: list[ListingLine] = field(default_factory=list)

    def format_listing(self) -> str:
        """The listing as text: address, up to eight bytes, source; one line per source line."""
        rows = []
        for row in self.listing:
            shown = row.code[:8].hex(" ") + (" .." if len(row.code) > 8 else "")
            rows.append(f"{row.address:#010x}  {shown:<26}  {row.text}")
        return "\n".join(rows)
