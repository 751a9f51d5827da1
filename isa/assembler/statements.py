"""Statements: labels, directives and data, each of which gives its bytes in every layout pass.

Not the instruction, the one statement with a choice to make (`instructions.py`), nor the loop over the passes
(`program.py`); of a pass a statement sees its `Scope` and its `Layout`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Final

from isa.assembler.encode import Encoders, fit_immediate
from isa.assembler.expressions import Node, Scope, evaluate, evaluate_number
from isa.assembler.kinds import IMMEDIATES, K
from isa.assembler.results import M64, MAX_IMAGE_BYTES, Problem

FREE_PASSES: Final = 2
"""Layout passes in which sizes may still shrink: labels are guesses in them."""

LAST_CAREFUL_PASS: Final = 24
"""After this pass every instruction that still changes takes its longest form at once."""


class Layout:
    """The state of laying a program out: number of the pass, origin, size so far; and the encoders."""

    __slots__ = ("encoders", "number", "origin", "size")

    def __init__(self, origin: int) -> None:
        self.encoders = Encoders()
        self.number = 0
        self.origin = origin
        self.size = 0

    def may_only_grow(self) -> bool:
        return self.number > FREE_PASSES

    def is_late(self) -> bool:
        """Whether an instruction that still changes must take its longest form."""
        return self.number > LAST_CAREFUL_PASS

    def define(self, scope: Scope, name: str, value: int) -> None:
        scope.symbols[name] = value
        scope.seen.add(name)

    def move_origin(self, scope: Scope, address: int) -> None:
        self.origin = address
        scope.start = address
        scope.here = address


@dataclass(slots=True)
class Statement(abc.ABC):
    """One thing on a line."""

    line_number: int

    @abc.abstractmethod
    def emit(self, scope: Scope, layout: Layout) -> bytes:
        """Its bytes at `scope.here` in this pass. Raises `Problem`."""

    def is_fixed(self) -> bool:
        """Whether the bytes are the same wherever the statement stands; known once it was emitted."""
        return False


@dataclass(slots=True)
class Label(Statement):
    name: str

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        layout.define(scope, self.name, scope.here)
        return b""


@dataclass(slots=True)
class Equ(Statement):
    name: str
    value: Node

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        value = evaluate(self.value, scope)
        if value.registers:
            raise Problem(
                "equ gives a name to a number, not to a register; write the register where it is used"
            )
        if value.weight == 0:
            scope.constants.add(self.name)
        else:
            scope.constants.discard(self.name)
        layout.define(scope, self.name, value.number)
        return b""


def _critical(node: Node, scope: Scope, what: str) -> int:
    """A number that may not depend on what follows."""
    scope.critical = what
    try:
        return evaluate_number(node, scope, what)
    finally:
        scope.critical = ""


def check_size(count: int, what: str) -> int:
    if count < 0:
        raise Problem(f"{what} is {count}; it cannot be negative")
    if count > MAX_IMAGE_BYTES:
        raise Problem(f"{what} is {count}; an image has at most {MAX_IMAGE_BYTES} bytes")
    return count


@dataclass(slots=True)
class Org(Statement):
    address: Node

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        address = _critical(self.address, scope, "org")
        if not 0 <= address <= M64:
            raise Problem(f"the origin {address:#x} is no 64-bit address; use one from 0 up")
        if layout.size == 0:
            layout.move_origin(scope, address)
            return b""
        if address < scope.here:
            raise Problem(
                f"org {address:#x} lies before the current address {scope.here:#x}; org only moves forward"
            )
        return bytes(check_size(address - scope.here, "the gap before org"))


@dataclass(slots=True)
class Align(Statement):
    boundary: Node
    fill: Node

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        boundary = _critical(self.boundary, scope, "align")
        if boundary <= 0 or boundary & (boundary - 1):
            raise Problem(f"the alignment {boundary} is no power of two; use 2, 4, 8, 16 ..")
        fill = fit_immediate(evaluate_number(self.fill, scope, "the fill byte"), IMMEDIATES[K.IMM8])
        return bytes([fill]) * check_size(-scope.here % boundary, "the gap before align")


@dataclass(slots=True)
class Reserve(Statement):
    count: Node
    width: int

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        count = check_size(_critical(self.count, scope, "a reserve directive"), "the count")
        return bytes(check_size(count * self.width, "the reserved size"))


@dataclass(slots=True)
class Data(Statement):
    """db, dw, dd, dq, dt: `parts` are finished bytes or expressions of `width` bytes."""

    width: int
    parts: list[bytes | Node]

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        pieces = []
        bits = self.width * 8
        for part in self.parts:
            if isinstance(part, bytes):
                pieces.append(part)
                continue
            number = evaluate_number(part, scope, "data")
            if not -(1 << (bits - 1)) <= number < 1 << bits:
                raise Problem(
                    f"the value {number:#x} does not fit {self.width} byte(s); use a wider directive"
                )
            pieces.append((number & ((1 << bits) - 1)).to_bytes(self.width, "little"))
        return b"".join(pieces)

    def is_fixed(self) -> bool:
        return all(isinstance(part, bytes) or part.is_constant() for part in self.parts)


@dataclass(slots=True)
class Times(Statement):
    count: Node
    body: Statement

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        count = _critical(self.count, scope, "times")
        check_size(count, "the count of times")
        start = scope.here
        pieces: list[bytes] = []
        size = 0
        for done in range(count):
            scope.here = start + size
            piece = self.body.emit(scope, layout)
            if self.body.is_fixed():
                check_size((count - done) * len(piece) + size, "the repeated size")
                pieces.append(piece * (count - done))
                break
            pieces.append(piece)
            size += len(piece)
            check_size(size, "the repeated size")
        scope.here = start
        return b"".join(pieces)

    def is_fixed(self) -> bool:
        return self.count.is_constant() and self.body.is_fixed()
