"""Expressions: trees of numbers, names and registers, and their values in one layout pass.

Not their reading from tokens (`operands.py`). A value may hold registers, since `[rbx+4*rcx+table]` is an
expression, too; what an address makes of them is decided in `resolve.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from isa.assembler.kinds import RegisterEntry
from isa.assembler.results import MAX_NUMBER_BITS, Problem
from isa.assembler.tokens import closest

PRECEDENCE: Final[Mapping[str, int]] = {
    "|": 1,
    "^": 2,
    "&": 3,
    "<<": 4,
    ">>": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "%": 6,
}
"""NASM's order of operators, which is C's."""


class Value(NamedTuple):
    """A value: its number, how many addresses it holds (a difference of labels holds none), its registers."""

    number: int
    weight: int = 0
    registers: tuple[tuple[RegisterEntry, int], ...] = ()


ZERO: Final = Value(0)


@dataclass(frozen=True, slots=True)
class Node:
    """An expression: `op` is "value", "symbol", "here" ($), "start" ($$), or an operator over `args`."""

    op: str
    value: Value = ZERO
    name: str = ""
    args: tuple[Node, ...] = ()

    def is_constant(self) -> bool:
        """Whether it has the same value wherever it stands: no symbol, no $."""
        if self.op in ("symbol", "here", "start"):
            return False
        return all(arg.is_constant() for arg in self.args)


@dataclass(slots=True)
class Scope:
    """What names mean during one layout pass."""

    symbols: dict[str, int]
    constants: set[str]  # names set by equ to a plain number: not addresses
    known: set[str]  # every name the program or the caller defines
    seen: set[str]  # names defined so far in this pass
    here: int = 0
    start: int = 0
    critical: str = ""  # the directive that forbids forward references, if inside one

    def lookup(self, name: str) -> Value:
        """The value of a name; a label not laid out yet counts as being here."""
        if name not in self.known:
            close = closest(name, sorted(self.known))
            hint = f"did you mean {close}?" if close else f"define it with `{name}:` or pass it in symbols"
            raise Problem(f"{name} is neither a register nor a defined name; {hint}")
        if self.critical and name not in self.seen:
            raise Problem(
                f"{self.critical} cannot use {name}, which is defined further down; define it above"
            )
        weight = 0 if name in self.constants else 1
        return Value(self.symbols.get(name, self.here), weight)


def _bounded(number: int) -> int:
    if number.bit_length() > MAX_NUMBER_BITS:
        raise Problem(f"a value grows beyond {MAX_NUMBER_BITS} bits; make the expression smaller")
    return number


def _add(a: Value, b: Value) -> Value:
    return Value(_bounded(a.number + b.number), a.weight + b.weight, a.registers + b.registers)


def _scaled(a: Value, factor: int) -> Value:
    return Value(
        _bounded(a.number * factor),
        a.weight * factor,
        tuple((register, count * factor) for register, count in a.registers),
    )


def _multiply(a: Value, b: Value) -> Value:
    if a.registers and b.registers:
        raise Problem(
            "a register is multiplied by a register; an address has the form base + index*scale + number"
        )
    return _scaled(a, b.number) if a.registers else _scaled(b, a.number)


def _divide(a: int, b: int) -> int:
    """Rounds towards zero, as IDIV does."""
    if b == 0:
        raise Problem("a division by zero; change the divisor")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _shift_count(count: int) -> int:
    if not 0 <= count < MAX_NUMBER_BITS:
        raise Problem(f"a shift by {count}; counts go from 0 to {MAX_NUMBER_BITS - 1}")
    return count


NUMBER_OPERATORS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "/": _divide,
    "%": lambda a, b: a - b * _divide(a, b),
    "<<": lambda a, b: a << _shift_count(b),
    ">>": lambda a, b: a >> _shift_count(b),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}


def _apply(op: str, args: Sequence[Value]) -> Value:
    """One operator on finished values. Raises `Problem`."""
    match op:
        case "+":
            return _add(args[0], args[1])
        case "-":
            return _add(args[0], _scaled(args[1], -1))
        case "*":
            return _multiply(args[0], args[1])
        case "neg":
            return _scaled(args[0], -1)
    if any(arg.registers for arg in args):
        sign = "~" if op == "not" else op
        raise Problem(f"a register stands beside {sign}; an address has the form base + index*scale + number")
    if op == "not":
        return Value(~args[0].number)
    return Value(_bounded(NUMBER_OPERATORS[op](args[0].number, args[1].number)))


def evaluate(node: Node, scope: Scope) -> Value:
    """The value of an expression under `scope`. Raises `Problem`."""
    match node.op:
        case "value":
            return node.value
        case "symbol":
            return scope.lookup(node.name)
        case "here":
            return Value(scope.here, 1)
        case "start":
            return Value(scope.start, 1)
    return _apply(node.op, [evaluate(arg, scope) for arg in node.args])


def evaluate_number(node: Node, scope: Scope, what: str) -> int:
    """The value of an expression that must be a plain number; `what` names it in the error."""
    value = evaluate(node, scope)
    if value.registers:
        raise Problem(
            f"{what} contains the register {value.registers[0][0].name}; use numbers and labels only"
        )
    return value.number


def combined(op: str, *args: Node) -> Node:
    """A node, folded at once when its arguments are constants."""
    if all(arg.op == "value" for arg in args):
        return Node("value", _apply(op, [arg.value for arg in args]))
    return Node(op, args=args)
