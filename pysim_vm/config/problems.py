"""What is wrong with a configuration: collecting it, and the words for it. Nothing is decided here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Final

from pysim_vm.config.toml_lines import Path as KeyPath
from pysim_vm.config.toml_lines import TomlLines
from pysim_vm.errors import PROBLEMS_SHOWN, ConfigError, ConfigProblem
from pysim_vm.layout import PAGE_SIZE

SHOWN_MAX: Final = 40  # characters of a value that a message repeats


class Problems:
    """Collects errors and warnings about one text."""

    def __init__(self, source: str, lines: TomlLines | None) -> None:
        self.source = source
        self.lines = lines
        self.columns: dict[KeyPath, Sequence[str]] = {}  # rows in positional form, and their keys
        self.errors: list[ConfigProblem] = []
        self.warnings: list[ConfigProblem] = []

    def line_of(self, path: KeyPath) -> int:
        if self.lines is None:
            return 0
        place: KeyPath = ()
        for part in path:
            columns = self.columns.get(place)
            place += (columns.index(part) if columns is not None and part in columns else part,)
        return self.lines.line_of(place)

    def error(self, path: KeyPath, message: str, hint: str = "", variant: str = "") -> None:
        self.errors.append(self._problem(path, message, hint, variant))

    def warn(self, path: KeyPath, message: str, hint: str = "") -> None:
        if len(self.warnings) < PROBLEMS_SHOWN:
            self.warnings.append(self._problem(path, message, hint, ""))

    def raise_errors(self) -> None:
        if self.errors:
            raise ConfigError(sorted(self.errors, key=lambda problem: problem.line))

    def _problem(self, path: KeyPath, message: str, hint: str, variant: str) -> ConfigProblem:
        return ConfigProblem(self.source, self.line_of(path), dotted(path), message, hint, variant)


def dotted(path: KeyPath) -> str:
    """`kernel.memory_regions[0].size`; a long or strange key is shown shortened and quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = len(part) <= SHOWN_MAX and re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if plain else show(part))
    return text


def show(value: object) -> str:
    """A value for a message: short whatever its size."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            if value.bit_length() > 64:
                return f"a number of {value.bit_length()} bits"
            return hex(value) if abs(value) >= PAGE_SIZE else str(value)
        case str():
            short = value if len(value) <= SHOWN_MAX else value[: SHOWN_MAX - 3] + "..."
            return toml_string(short)
        case list() | tuple():
            return f"an array of {len(value)}"
        case dict():
            return "a table"
        case _:
            return str(value)[:SHOWN_MAX]


def kind_of(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`, empty if none is."""
    if len(word) > SHOWN_MAX:
        return ""
    found = difflib.get_close_matches(word.lower(), list(known), 1)
    return found[0] if found else ""


def span(start: int, length: int) -> str:
    return f"{start:#x}-{start + length - 1:#x}"


def toml_string(text: str) -> str:
    """A TOML basic string."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return (
        '"'
        + "".join(
            escapes.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char)
            for char in text
        )
        + '"'
    )


def where(problems: Problems, path: KeyPath) -> str:
    line = problems.line_of(path)
    return f"{dotted(path)}, line {line}" if line else dotted(path)
