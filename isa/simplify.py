"""Rewrites of a block's statements and lines that change nothing but their cost. It knows no instruction.

- Conditions on the flags of a comparison become comparisons: `zf` of `a - b` says `a == b`.
- A value that can be computed from others when the flags are asked for need not be kept for them.
- A temporary that is read once is put where it is read; one that is never read is not computed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from isa.specialise import ARCHITECTURAL, FLAGS, Statement

_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_TEMPORARY_NAME = re.compile(r"\b\w+_\d+\b")
_TEMPORARY = re.compile(r"(\s+)(\w+_\d+) = (?!.*\b(?:load|tr|cpu)\b)(.*)")
_ASSIGNED = re.compile(r"(\w+)(?=(?:, \w+)* :?= )")
_ATOM = re.compile(r"\w+")
_FLAGS = frozenset(FLAGS)
_REACH = 16  # lines over which a temporary is carried to its only reader


# ---- comparisons -------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """The flags of an instruction are those of left - right in `bits` bits."""

    left: str
    right: str
    bits: int

    def signed(self, relation: str) -> str:
        """The comparison as signed numbers: with the sign bits turned over they order as unsigned ones."""
        sign = 1 << self.bits - 1
        right = f"{int(self.right, 0) ^ sign:#x}" if self.right[0].isdigit() else f"{self.right} ^ {sign:#x}"
        return f"({self.left} ^ {sign:#x} {relation} {right})"

    def unsigned(self, relation: str) -> str:
        """The comparison as unsigned numbers."""
        return f"({self.left} {relation} {self.right})"

    # What the condition codes test (SDM Vol. 1, "EFLAGS Condition Codes"), the longer ones first
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """(condition on flags, the same on the operands)."""
        return (
            ("not zf and bool(sf) == bool(of)", self.signed(">")),
            ("zf or bool(sf) != bool(of)", self.signed("<=")),
            ("bool(sf) == bool(of)", self.signed(">=")),
            ("bool(sf) != bool(of)", self.signed("<")),
            ("not (cf or zf)", self.unsigned(">")),
            ("cf or zf", self.unsigned("<=")),
            ("not cf", self.unsigned(">=")),
            ("not zf", self.unsigned("!=")),
        )


def difference(statements: Sequence[Statement]) -> Difference | None:
    """The subtraction whose flags these statements compute, if they compute all six of one."""
    flags = {s.flag: s.text.partition(" = ")[2] for s in statements if s.flag}
    if len(flags) < len(FLAGS):
        return None
    result = flags["zf"].removeprefix("not ")
    left, less, right = flags["cf"].partition(" < ")
    if not less or not _ATOM.fullmatch(left) or not _ATOM.fullmatch(right):
        return None
    start = f"{result} = {left} - {right} & "
    for statement in statements:
        if statement.text.startswith(start):
            bits = int(statement.text[len(start) :]).bit_length()
            sign = f"(({left} ^ {right}) & ({left} ^ {result})) >> {bits - 1}"
            if flags["sf"] == f"{result} >> {bits - 1}" and flags["of"] == sign:
                return Difference(left, right, bits)
    return None


def fuse(steps: Sequence[list[Statement]]) -> None:
    """In a run of instructions, put comparisons in the place of conditions on their flags."""
    current: Difference | None = None  # whose flags are the flags now
    for statements in steps:
        if current is not None:
            for n, statement in enumerate(statements):
                if not statement.uses.isdisjoint(_FLAGS):
                    statements[n] = _compared(statement, current)
                if not statement.stores.isdisjoint(_FLAGS):
                    break
        if any(not s.stores.isdisjoint(_FLAGS) for s in statements):
            current = difference(statements)


def _compared(statement: Statement, flags: Difference) -> Statement:
    """The statement with comparisons for the conditions; as it is if it wants a flag itself."""
    comparisons = flags.conditions()
    single = {"zf": flags.unsigned("=="), "cf": flags.unsigned("<")}

    def put(text: str) -> str:
        for condition, comparison in comparisons:
            text = text.replace(condition, comparison)
        return _WORD.sub(lambda match: single.get(match[0], match[0]), text)

    if statement.uses & statement.stores & _FLAGS:
        return statement
    text = put(statement.text)
    names = frozenset(_WORD.findall(text))
    if names & _FLAGS:
        return statement
    jump = (put(statement.jump[0]), statement.jump[1]) if statement.jump[1] else statement.jump
    operands = frozenset(name for name in (flags.left, flags.right) if not name[0].isdigit())
    return statement._replace(text=text, jump=jump, uses=(statement.uses - _FLAGS) | operands)


# ---- what a recipe can compute by itself -----------------------------------------------------------------


class Formula(NamedTuple):
    """How a temporary is computed from other temporaries."""

    text: str
    uses: frozenset[str]


class Formulas(dict[str, Formula]):
    """The temporaries of a function that can be computed again at any time: from temporaries, without looking
    at memory."""

    def __init__(self) -> None:
        super().__init__()
        self._needs: dict[str, tuple[str, ...]] = {}

    def learn(self, statements: Iterable[Statement]) -> None:
        """Add those that an instruction computes."""
        for s in statements:
            if s.flag or s.raises or s.jump[1] or len(s.defs) != 1 or not s.uses or s.uses & ARCHITECTURAL:
                continue
            if "__" in s.text:  # a recipe calls nothing
                continue
            self.update(dict.fromkeys(s.defs, Formula(s.text, s.uses)))

    def needs(self, name: str) -> tuple[str, ...]:
        """The temporaries that a temporary is computed from in the end: itself if it has no formula."""
        found = self._needs.get(name)
        if found is None:
            formula = self.get(name)
            found = (name,)
            if formula is not None:
                found = tuple(dict.fromkeys(n for use in sorted(formula.uses) for n in self.needs(use)))
            self._needs[name] = found
        return found

    def kept(self, names: Iterable[str]) -> list[str]:
        """What has to be kept so that `names` can be computed."""
        return list(dict.fromkeys(need for name in names for need in self.needs(name)))

    def lines(self, names: Iterable[str]) -> list[str]:
        """The lines that compute them from what is kept, in order."""
        lines: dict[str, None] = {}

        def visit(name: str) -> None:
            formula = self.get(name)
            if formula is not None and formula.text not in lines:
                for use in sorted(formula.uses):
                    visit(use)
                lines[formula.text] = None

        for name in names:
            visit(name)
        return list(lines)


# ---- lines -----------------------------------------------------------------------------------------------


class Lines:
    """The lines of a function's body. `plain` are the numbers of those that are a whole statement."""

    def __init__(self, lines: list[str], plain: set[int], others: Iterable[str]) -> None:
        self.lines = lines
        self.words: Counter[str] = Counter()  # how often each temporary's name occurs, in `others`, too
        self.made: dict[str, int] = {}  # temporary -> the plain line that assigns it
        for n, line in enumerate(lines):
            names = _TEMPORARY_NAME.findall(line)
            self.words.update(names)
            if n in plain and names and (match := _TEMPORARY.match(line)):
                self.made[match[2]] = n
        for line in others:
            self.words.update(_TEMPORARY_NAME.findall(line))
        self.gone: set[int] = set()

    def drop_dead(self) -> None:
        """Drop assignments to temporaries that nothing reads."""
        doubtful = list(self.made)
        while doubtful:
            name = doubtful.pop()
            if name not in self.made or self.words[name] > 1:
                continue
            n = self.made.pop(name)
            self.gone.add(n)
            names = _TEMPORARY_NAME.findall(self.lines[n])
            self.words.subtract(names)
            doubtful += names

    def forward(self) -> None:
        """Put temporaries that are read once where they are read."""
        for name, n in self.made.items():
            if self.words[name] == 2:
                self._forward(name, n)

    def _forward(self, name: str, n: int) -> None:
        match = _TEMPORARY.match(self.lines[n])
        assert match is not None
        indent, value = match[1], match[3]
        needed = set(_WORD.findall(value))
        for m in range(n + 1, min(n + _REACH, len(self.lines))):
            if m in self.gone:
                continue
            line = self.lines[m]
            if name in line and name in _TEMPORARY_NAME.findall(line):
                put = {name: value if _ATOM.fullmatch(value) else f"({value})"}
                self.lines[m] = _TEMPORARY_NAME.sub(lambda found: put.get(found[0], found[0]), line)  # noqa: B023
                self.gone.add(n)
                return
            if "cpu.exit_ip" in line:  # a call: it may change memory
                return
            if len(line) - len(line.lstrip()) != len(indent) or not needed.isdisjoint(
                _ASSIGNED.findall(line)
            ):
                return

    def kept(self, at: Mapping[int, int]) -> tuple[list[str], dict[int, int]]:
        """What is left, and `at` (number of a line -> something) for it."""
        numbers = [n for n in range(len(self.lines)) if n not in self.gone]
        return [self.lines[n] for n in numbers], {
            new: at[old] for new, old in enumerate(numbers) if old in at
        }
