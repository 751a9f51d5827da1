"""Finds the line of every key and array element of a TOML text. It checks nothing: tomllib is the parser.

tomllib gives values without places. This scanner gives places without values, for the messages of
`config.py`; on a text that is no TOML it finds what it can. It takes time and memory in proportion to the
text, and tells how deep the text nests, so that its user can refuse one that would exhaust the parser's
stack.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Final

PLACES_MAX: Final = 1 << 16  # a hostile array has a million elements; later ones get their array's line
DEPTH_MAX: Final = 64  # deeper values are skipped over, not looked into

# A possessive *+ around a group is matched wrongly by Python before 3.11.5, Debian 12's among them; around
# one character class it is sound, and enough: the alternatives begin differently, so nothing is tried twice.
_BLANK: Final = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE: Final = re.compile(r"[^ \t\r\n.=\[\]{}\"'#,]+")
_SCALAR: Final = re.compile(r"[^,\]}#\r\n]*")
_LINE_REST: Final = re.compile(r"[^\n]*")
# An unclosed one-line string ends with its line, an unclosed multi-line string with the text.
_STRING: Final = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*(?:"{3,5}|\\?\Z)'
    r"|'''(?:[^']++|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]++|\\[^\n])*"?'
    r"|'[^'\n]*'?",
    re.DOTALL,
)
_OPEN_OR_CLOSE: Final = re.compile(r"[\[\]{}\"'#]")

Path = tuple[str | int, ...]
"""Keys and array indices from the root: ("kernel", "memory_regions", 0, "size")."""


class TomlLines:
    """Line numbers, from 1, of the keys and array elements of one text.

    `deepest` is the greatest number of dotted parts and open brackets at one place, `deepest_line` its line.
    """

    __slots__ = ("deepest", "deepest_line", "lines")

    def __init__(self, text: str) -> None:
        scanner = _Scanner(text)
        scanner.document()
        self.lines: dict[Path, int] = scanner.lines
        self.deepest = scanner.deepest
        self.deepest_line = scanner.line_at(scanner.deepest_at)

    def line_of(self, path: Path) -> int:
        """The line of `path`, else that of the nearest enclosing key or table, else 0."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return 0


class _Scanner:
    """One pass over the text. `at` is the position, `table` the path of the table that keys belong to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.table: Path = ()
        self.lines: dict[Path, int] = {}
        self.array_sizes: dict[Path, int] = {}  # arrays of tables: elements so far
        self.deepest = 0
        self.deepest_at = 0
        self._starts = [match.end() for match in re.finditer("\n", text)]

    def line_at(self, position: int) -> int:
        return bisect_right(self._starts, position) + 1

    # --- places ---

    def note(self, path: Path, position: int) -> None:
        if len(self.lines) < PLACES_MAX and path not in self.lines:
            self.lines[path] = self.line_at(position)

    def note_depth(self, depth: int, position: int) -> None:
        if depth > self.deepest:
            self.deepest, self.deepest_at = depth, position

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def after_blank(self) -> str:
        """Past spaces, newlines and comments; the character there, empty at the end."""
        self.skip(_BLANK)
        return self.peek()

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    # --- grammar ---

    def document(self) -> None:
        while char := self.after_blank():
            if char == "[":
                self.header()
            else:
                self.key_value(self.table, 0)
            self.skip(_LINE_REST)

    def header(self) -> None:
        """`[a.b]` or `[[a.b]]`."""
        start = self.at
        self.at += 1
        is_array = self.peek() == "["
        if is_array:
            self.at += 1
        parts = self.key()
        path: Path = ()
        for number, part in enumerate(parts[:DEPTH_MAX], 1):
            path += (part,)
            self.note(path, start)
            if is_array and number == len(parts):
                self.array_sizes[path] = self.array_sizes.get(path, 0) + 1
            if path in self.array_sizes:
                path += (self.array_sizes[path] - 1,)
                self.note(path, start)
        self.table = path

    def key(self) -> list[str]:
        """A dotted key; empty if there is none."""
        start = self.at
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            if self.peek() in ('"', "'"):
                parts.append(_unquote(self.skip(_STRING)))
            elif bare := self.skip(_BARE):
                parts.append(bare)
            else:
                break
            self.skip(_SPACE)
            if self.peek() != ".":
                break
            self.at += 1
        self.note_depth(len(parts), start)
        return parts

    def key_value(self, table: Path, depth: int) -> None:
        """`a.b = value`, in a table or an inline table."""
        start = self.at
        path = table
        for part in self.key()[:DEPTH_MAX]:
            path += (part,)
            self.note(path, start)
        self.skip(_SPACE)
        if self.peek() == "=":
            self.at += 1
            self.skip(_SPACE)
            self.value(path, depth)

    def value(self, path: Path, depth: int) -> None:
        match self.peek():
            case "[" | "{" as bracket:
                self.note_depth(len(path) + 1, self.at)
                if depth >= DEPTH_MAX:
                    self.skip_brackets(len(path))
                elif bracket == "[":
                    self.array(path, depth + 1)
                else:
                    self.inline_table(path, depth + 1)
            case '"' | "'":
                self.skip(_STRING)
            case _:
                self.skip(_SCALAR)

    def array(self, path: Path, depth: int) -> None:
        self.at += 1
        index = 0
        while self.after_blank() not in ("", "]"):
            start = self.at
            self.note((*path, index), start)
            self.value((*path, index), depth)
            following = self.after_blank()
            if following == ",":
                self.at += 1
                index += 1
            elif self.at == start or following not in ("", "]"):
                return  # no TOML; the caller goes on with the next line
        self.at += 1

    def inline_table(self, path: Path, depth: int) -> None:
        self.at += 1
        while self.after_blank() not in ("", "}"):
            start = self.at
            self.key_value(path, depth)
            following = self.after_blank()
            if following == ",":
                self.at += 1
            elif self.at == start or following not in ("", "}"):
                return
        self.at += 1

    def skip_brackets(self, depth: int) -> None:
        """Past the bracket that closes the one at hand, by counting."""
        opened = 0
        while match := _OPEN_OR_CLOSE.search(self.text, self.at):
            self.at = match.start()
            match match.group():
                case "[" | "{":
                    opened += 1
                    self.note_depth(depth + opened, self.at)
                case "]" | "}":
                    opened -= 1
                case "#":
                    self.skip(_LINE_REST)
                    continue
                case _:
                    self.skip(_STRING)
                    continue
            self.at += 1
            if opened == 0:
                return
        self.at = len(self.text)


def _unquote(quoted: str) -> str:
    """The key that a quoted key spells."""
    if "\\" in quoted and quoted[0] == '"':
        try:
            return str(tomllib.loads(f"key = {quoted}")["key"])
        except tomllib.TOMLDecodeError:
            pass
    return quoted[1:].removesuffix(quoted[0])
