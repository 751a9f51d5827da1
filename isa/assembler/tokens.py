"""A line cut into tokens, and what one token is worth: numbers, strings and fractions.

Not their order, which has meaning only to the readers of expressions, operands and lines.
"""

from __future__ import annotations

import difflib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from isa.assembler.results import MAX_NUMBER_BITS, Problem


class Token(NamedTuple):
    """A word, number, string or sign; `text` of a string is without its quotes."""

    kind: str
    text: str


TOKEN_PATTERN: Final = re.compile(
    r"""(?P<space>[ \t\r\f\v]+)
      | (?P<comment>[;\#].*)
      | (?P<string>"[^"]*"|'[^']*')
      | (?P<escaped>`(?:[^`\\]|\\.)*`)
      | (?P<float>[0-9][0-9_]*\.[0-9_]*(?:[eE][+-]?[0-9]+)?)
      | (?P<number>[0-9][0-9A-Za-z_]*)
      | (?P<name>[A-Za-z_.?@][A-Za-z0-9_.?@$]*)
      | (?P<here>\$\$?)
      | (?P<sign><<|>>|[-+*/%&|^~()\[\],:])""",
    re.VERBOSE,
)

ESCAPES: Final[Mapping[str, str]] = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "f": "\f",
    "v": "\v",
}

ESCAPE_PATTERN: Final = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|.)")

HEX_SUFFIX: Final = re.compile(r"[0-9][0-9a-f]*h")


def _unescape(match: re.Match[str]) -> str:
    """One escape of a back-quoted string."""
    body = match.group(1)
    if len(body) > 1:
        return chr(int(body[1:], 16))
    return ESCAPES.get(body, body)


def split_line(line: str) -> list[Token]:
    """Split one line; comments are gone. Raises `Problem` at a character that starts nothing."""
    tokens: list[Token] = []
    position = 0
    end = len(line)
    while position < end:
        match = TOKEN_PATTERN.match(line, position)
        if match is None:
            character = line[position]
            if character in "\"'`":
                raise Problem(
                    f"the string that starts with {character} has no end; add the closing {character}"
                )
            raise Problem(f"the character {character!r} has no meaning here; remove it")
        position = match.end()
        kind = match.lastgroup or ""
        if kind in ("space", "comment"):
            continue
        text = match.group()
        if kind == "string":
            tokens.append(Token(kind, text[1:-1]))
        elif kind == "escaped":
            tokens.append(Token("string", ESCAPE_PATTERN.sub(_unescape, text[1:-1])))
        else:
            tokens.append(Token(kind, text))
    return tokens


def number_value(text: str) -> int:
    """The value of 0x1F, 1Fh, 0b101, 101b, 0o17 or 10, underscores allowed. Raises `Problem`."""
    digits = text.replace("_", "").lower()
    if len(digits) > MAX_NUMBER_BITS + 2:
        raise Problem(f"the number has {len(digits)} digits; values go up to {MAX_NUMBER_BITS} bits")
    try:
        if HEX_SUFFIX.fullmatch(digits):
            return int(digits[:-1], 16)
        if digits.endswith("b") and not digits.startswith("0x"):
            return int(digits[:-1], 2)
        if digits[:2] in ("0x", "0b", "0o"):
            return int(digits, 0)
        return int(digits, 10)
    except ValueError:
        raise Problem(f"{text} is not a number; write 0x1F, 1Fh, 0b101, 0o17 or 10") from None


def string_bytes(text: str) -> bytes:
    """A string as the guest sees it: one byte a character up to U+00FF, else UTF-8."""
    try:
        return text.encode("latin-1") if text.isascii() or max(text) <= "\xff" else text.encode()
    except UnicodeEncodeError:
        raise Problem("the string contains half a surrogate pair; write the bytes as numbers") from None


def float_bytes(text: str, sign: float, width: int) -> bytes:
    """A fraction as single (4), double (8) or x87 extended (10 bytes) precision. Raises `Problem`."""
    number = sign * float(text.replace("_", ""))
    try:
        match width:
            case 4:
                return struct.pack("<f", number)
            case 8:
                return struct.pack("<d", number)
            case 10:
                return _extended_bytes(number)
    except OverflowError:
        pass
    if width in (4, 8, 10):
        raise Problem(f"the fraction {text} is too large for {width} bytes; use a wider directive")
    raise Problem(f"a fraction has 4, 8 or 10 bytes, not {width}; use dd, dq or dt")


def _extended_bytes(number: float) -> bytes:
    """Double extended precision, SDM Volume 1, "Floating-Point Data Types": 64-bit significand."""
    sign = 0x8000 if math.copysign(1.0, number) < 0 else 0
    if number == 0:
        return struct.pack("<QH", 0, sign)
    if math.isinf(number):
        raise OverflowError
    fraction, exponent = math.frexp(abs(number))
    return struct.pack("<QH", int(math.ldexp(fraction, 64)), sign | (exponent - 1 + 16383))


def closest(word: str, known: Sequence[str]) -> str:
    """The known word most like a mistyped one, letters in the wrong order first; "" if none is near."""
    letters = sorted(word)
    for name in known:
        if len(name) == len(word) and sorted(name) == letters:
            return name
    return next(iter(difflib.get_close_matches(word[:64], known, n=1)), "")
