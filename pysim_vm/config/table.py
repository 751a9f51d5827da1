"""Reading TOML: the file, its text as dictionaries, and one table key by key. It knows no key of ours.

A value of the wrong type or size is reported to `Problems` and read as absent, so that one reading finds
every mistake.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pysim_vm.axtypes import AddressSpacePolicy, VMBootProtocol, VMInterruptMode
from pysim_vm.config.problems import SHOWN_MAX, Problems, kind_of, nearest, show
from pysim_vm.config.toml_lines import Path as KeyPath
from pysim_vm.config.toml_lines import TomlLines
from pysim_vm.errors import ConfigError, ConfigProblem
from pysim_vm.layout import GIB, KIB, MIB

FILE_SIZE_MAX: Final = 1 * MIB  # a configuration is a few KiB; more is a mistake or an attack
NESTING_MAX: Final = 32  # deeper than any configuration, far from exhausting tomllib's stack
ROWS_MAX: Final = 4096  # elements of one list
TEXT_MAX: Final = 4096  # characters of one string; Linux's command line is shorter


U64_MAX: Final = (1 << 64) - 1


_TOML_LINE: Final = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")


_SIZE_UNITS: Final = {"": 1, "k": KIB, "m": MIB, "g": GIB}
_SIZE: Final = re.compile(r"\s*(0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)\s*(?:([kKmMgG])(?:i?[bB])?)?\s*")


T = TypeVar("T")
_Word = TypeVar("_Word", VMInterruptMode, AddressSpacePolicy, VMBootProtocol)


def parse_size(text: str) -> int:
    """Bytes of a size such as "128M", "64 KiB", "0x1000" or "4096"; K, M and G count in 1024s.

    Raises ValueError with one sentence.
    """
    found = _SIZE.fullmatch(text) if len(text) <= SHOWN_MAX else None
    if found is None:
        raise ValueError(f'{show(text)} is no size; write a number with K, M or G, such as "128M"')
    return (
        int(found[1].replace("_", ""), 0 if found[1][:2] in ("0x", "0X") else 10)
        * _SIZE_UNITS[(found[2] or "").lower()]
    )


def read_file(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        problem = ConfigProblem(source, 0, "", f"cannot be read: {error.strerror}; check the path")
        raise ConfigError([problem]) from error
    except ValueError:  # a NUL in the path
        problem = ConfigProblem(show(source), 0, "", "is no path; check it")
        raise ConfigError([problem]) from None
    if len(data) > FILE_SIZE_MAX:
        raise ConfigError([ConfigProblem(source, 0, "", _TOO_LONG, variant="TomlParse")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte {data[error.start]:#04x} is no UTF-8; save the file as UTF-8 text"
        raise ConfigError([ConfigProblem(source, line, "", message, variant="TomlParse")]) from None


_TOO_LONG: Final = f"more than {FILE_SIZE_MAX} bytes are no configuration; shorten the file"


def parse_toml(text: str, problems: Problems) -> dict[str, Any] | None:
    """The text as dictionaries; None, and one error, if it is no TOML or too big to look at."""
    if len(text) > FILE_SIZE_MAX:
        problems.error((), _TOO_LONG, variant="TomlParse")
        return None
    lines = TomlLines(text)
    if lines.deepest > NESTING_MAX:
        message = f"{lines.deepest} levels of nesting are no configuration; stay below {NESTING_MAX}"
        problems.errors.append(
            ConfigProblem(problems.source, lines.deepest_line, "", message, variant="TomlParse")
        )
        return None
    problems.lines = lines
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or int() refusing thousands of digits
        found = _TOML_LINE.search(str(error))
        reason = str(error) if found is None else str(error)[: found.start()]
        line, column = 0, ""
        if found is not None:
            line = int(found[1]) if found[1] else text.count("\n") + 1
            column = f" at column {found[2]}" if found[2] else " at the end of the file"
        message = f"no TOML: {reason[:200]}{column}; correct the line"
        problems.errors.append(ConfigProblem(problems.source, line, "", message, variant="TomlParse"))
        return None


class Table:
    """One TOML table, or one row of a list in its positional form, being read key by key.

    `columns` gives a positional row its keys. A value of the wrong type is reported and read as absent.
    """

    def __init__(self, problems: Problems, data: Mapping[str, Any], path: KeyPath) -> None:
        self.problems = problems
        self.data = data
        self.path = path
        self.known: list[str] = []
        self.missing: list[str] = []

    @classmethod
    def from_row(cls, problems: Problems, row: object, path: KeyPath, columns: Sequence[str]) -> Table | None:
        """A row in either form; None, and an error, if it is neither."""
        if isinstance(row, dict):
            return cls(problems, row, path)
        if isinstance(row, list) and 0 < len(row) <= len(columns):
            problems.columns[path] = columns
            return cls(problems, dict(zip(columns, row, strict=False)), path)
        what = f"{show(row)} is no row"
        problems.error(path, f"{what}; write [{', '.join(columns)}] or a table with these keys")
        return None

    def place(self, key: str) -> KeyPath:
        return (*self.path, key)

    def error(self, key: str, message: str, hint: str = "", variant: str = "") -> None:
        self.problems.error(self.place(key), message, hint, variant)

    def get(self, key: str, kind: type[T], want: str, example: str | None = None) -> T | None:
        """The value of `key`; None if it is absent or of another type. `example` makes the key required."""
        self.known.append(key)
        if key not in self.data:
            if example is not None:
                self.missing.append(key)
                self.error(key, f"missing; add {key} = {example}")
            return None
        value = self.data[key]
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        advice = "remove the quotes" if isinstance(value, str) and kind is int else f"write {want}"
        self.error(key, f"{show(value)} is {kind_of(value)}; {advice}")
        return None

    def integer(self, key: str, low: int = 0, high: int = U64_MAX, example: str | None = None) -> int | None:
        value = self.get(key, int, "an integer", example)
        if value is not None and not low <= value <= high:
            self.error(key, f"{show(value)} is out of range; write {show(low)} to {show(high)}")
            return None
        return value

    def size(self, key: str, low: int, high: int, example: str = "128M") -> int | None:
        """A number of bytes, or a string such as "128M"."""
        value = self.data.get(key)
        if isinstance(value, str):
            self.known.append(key)
            try:
                value = parse_size(value)
            except ValueError as error:
                self.error(key, str(error))
                return None
        else:
            value = self.get(key, int, f'a size such as "{example}"')
        if value is not None and not low <= value <= high:
            self.error(key, f"{show(value)} bytes are out of range; give {show(low)} to {show(high)}")
            return None
        return value

    def text(self, key: str, example: str | None = None) -> str | None:
        value = self.get(key, str, "a string", example)
        return None if value is None else self._checked_text(self.place(key), value)

    def _checked_text(self, path: KeyPath, value: str) -> str | None:
        if len(value) > TEXT_MAX:
            self.problems.error(path, f"{len(value)} characters are too many; at most {TEXT_MAX} are allowed")
        elif "\0" in value:
            self.problems.error(path, "a NUL character ends a string in the guest; remove it")
        else:
            return value
        return None

    def boolean(self, key: str) -> bool | None:
        return self.get(key, bool, "true or false")

    def word(self, key: str, known: Sequence[str]) -> str | None:
        """One of the `known` words."""
        value = self.get(key, str, f'"{known[0]}"')
        if value is None or value in known:
            return value
        self.error(key, f"{show(value)} is none of {', '.join(known)}; use one", nearest(value, known))
        return None

    def rows(self, key: str, example: str | None = None) -> list[tuple[KeyPath, Any]]:
        """The elements of a list with their places; empty if it is absent, wrong or too long."""
        value = self.get(key, list, "an array", example)
        if value is None:
            return []
        if len(value) > ROWS_MAX:
            self.error(key, f"{len(value)} elements are too many; at most {ROWS_MAX} are allowed")
            return []
        place = self.place(key)
        return [((*place, index), element) for index, element in enumerate(value)]

    def integers(self, key: str, high: int) -> tuple[int, ...] | None:
        """A list of integers from 0 to `high`; None if it is absent."""
        numbers = []
        for path, element in self.rows(key):
            if not isinstance(element, int) or isinstance(element, bool):
                self.problems.error(path, f"{show(element)} is {kind_of(element)}; write an integer")
            elif not 0 <= element <= high:
                self.problems.error(path, f"{show(element)} is out of range; write 0 to {show(high)}")
            else:
                numbers.append(element)
        return tuple(numbers) if key in self.data else None

    def texts(self, path: KeyPath, elements: object) -> tuple[str, ...] | None:
        """A list of strings found at `path`."""
        if not isinstance(elements, list) or not all(isinstance(element, str) for element in elements):
            self.problems.error(path, f"{show(elements)} is no list of strings; write a list of strings")
            return None
        checked = [self._checked_text((*path, index), text) for index, text in enumerate(elements)]
        return tuple(text for text in checked if text is not None)

    def finish(self) -> None:
        """Warn of every key that nobody asked for; one that looks like a missing key is an error."""
        for key in self.data:
            if key not in self.known:
                hint = nearest(key, self.known)
                if hint in self.missing:
                    self.error(key, "unknown key", hint)
                else:
                    self.problems.warn(self.place(key), "unknown key, ignored; correct or remove it", hint)


def read_config_word(table: Table, key: str, words: type[_Word]) -> _Word | None:
    """The member of an axvm word that `key` spells, in any of its spellings."""
    text = table.get(key, str, f'"{words.spellings()[0]}"')
    if text is None:
        return None
    word = words.from_str(text)
    if word is None:
        spellings = words.spellings()
        message = f"{show(text)} is none of {', '.join(spellings)}; use one"
        table.error(key, message, nearest(text, spellings))
    return word
