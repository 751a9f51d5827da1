"""Operands as they are written, and the reader that makes them and their expressions from tokens.

Not their values: names are still names here, and no opcode has been looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iced_x86 import Register

from isa.assembler.expressions import PRECEDENCE, Node, Value, combined
from isa.assembler.kinds import RegisterEntry, registers
from isa.assembler.results import MAX_NESTING, Problem
from isa.assembler.tokens import Token, number_value, string_bytes
from isa.assembler.words import SEGMENTS, SIZES

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import Register as RegisterId


@dataclass(frozen=True, slots=True)
class RegisterOperand:
    entry: RegisterEntry


@dataclass(frozen=True, slots=True)
class MemoryOperand:
    """`size[segment: address]`; sizes in bytes, 0 when not written."""

    address: Node
    size: int = 0
    segment: RegisterId = Register.NONE
    relative: bool | None = None  # rel, abs, or as `default` says
    address_bytes: int = 0  # the keyword inside the brackets: [dword 0x1234]
    far: bool = False


@dataclass(frozen=True, slots=True)
class NumberOperand:
    """An immediate or a branch target; `distance` is "short", "near" or ""."""

    value: Node
    size: int = 0
    distance: str = ""


@dataclass(frozen=True, slots=True)
class FarOperand:
    """selector:offset"""

    selector: Node
    offset: Node
    size: int = 0


Operand = RegisterOperand | MemoryOperand | NumberOperand | FarOperand


class Reader:
    """Reads operands and expressions from the tokens of one line."""

    __slots__ = ("depth", "outer", "position", "tokens")

    def __init__(self, tokens: list[Token], outer: str) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.outer = outer  # the label that local names belong to

    # -- tokens

    def at_end(self) -> bool:
        return self.position >= len(self.tokens)

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else Token("end", "")

    def word(self, ahead: int = 0) -> str:
        """The token as a lower-case word; "" if it is none."""
        token = self.peek(ahead)
        return token.text.lower() if token.kind == "name" else ""

    def take(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def accept(self, sign: str) -> bool:
        token = self.peek()
        if token.kind == "sign" and token.text == sign:
            self.position += 1
            return True
        return False

    def accept_word(self, word: str) -> bool:
        if self.word() == word:
            self.position += 1
            return True
        return False

    def expect(self, sign: str, where: str) -> None:
        if not self.accept(sign):
            found = self.peek()
            shown = f"found {found.text!r}" if found.kind != "end" else "the line ends"
            raise Problem(f"expected '{sign}' {where} but {shown}; add the '{sign}'")

    def expect_end(self) -> None:
        if not self.at_end():
            raise Problem(
                f"did not expect {self.peek().text!r} here; remove it, or put a comma or operator before it"
            )

    def full_name(self, name: str) -> str:
        """A local name with its outer label before it."""
        if not name.startswith("."):
            return name
        if not self.outer:
            raise Problem(f"the local label {name} has no ordinary label above it; define one first")
        return self.outer + name

    # -- expressions

    def expression(self, floor: int = 0) -> Node:
        """An expression whose operators bind tighter than `floor`."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Problem(
                f"the expression nests deeper than {MAX_NESTING} levels; give parts of it a name with equ"
            )
        left = self.primary()
        while True:
            token = self.peek()
            rank = PRECEDENCE.get(token.text, 0) if token.kind == "sign" else 0
            if rank <= floor:
                break
            self.position += 1
            left = combined(token.text, left, self.expression(rank))
        self.depth -= 1
        return left

    def unary(self, op: str) -> Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Problem(
                f"the expression nests deeper than {MAX_NESTING} levels; give parts of it a name with equ"
            )
        node = self.primary()
        self.depth -= 1
        return combined(op, node) if op else node

    def primary(self) -> Node:
        token = self.take()
        match token.kind:
            case "number":
                return Node("value", Value(number_value(token.text)))
            case "string":
                raw = string_bytes(token.text)
                if not 1 <= len(raw) <= 8:
                    raise Problem(f"a string of {len(raw)} bytes is not a number; use 1 to 8 bytes, or db")
                return Node("value", Value(int.from_bytes(raw, "little")))
            case "here":
                return Node("start" if token.text == "$$" else "here")
            case "name":
                entry = registers()[0].get(token.text.lower())
                if entry is not None:
                    return Node("value", Value(0, 0, ((entry, 1),)))
                return Node("symbol", name=self.full_name(token.text))
            case "float":
                raise Problem(
                    f"the fraction {token.text} stands where a whole number must; use dd, dq or dt for it"
                )
            case "sign":
                match token.text:
                    case "(":
                        node = self.expression()
                        self.expect(")", "after the expression")
                        return node
                    case "-":
                        return self.unary("neg")
                    case "~":
                        return self.unary("not")
                    case "+":
                        return self.unary("")
                raise Problem(
                    f"expected a number, name or register but found {token.text!r}; complete the expression"
                )
        raise Problem("expected a number, name or register but the line ends; complete the expression")

    # -- operands

    def register(self) -> RegisterEntry | None:
        """A register, if one stands here and is not part of an expression."""
        entry = registers()[0].get(self.word())
        if entry is None:
            return None
        after = self.peek(1)
        if (
            entry.name == "st0"
            and after.text == "("
            and self.peek(2).kind == "number"
            and self.peek(3).text == ")"
        ):
            number = number_value(self.peek(2).text)
            if number > 7:
                raise Problem(f"st({number}) does not exist; the x87 stack goes from st(0) to st(7)")
            self.position += 4
            return registers()[0][f"st{number}"]
        if after.kind == "sign" and after.text != ",":
            return None
        self.position += 1
        return entry

    def segment(self) -> RegisterId:
        """`fs:`, if it stands here."""
        segment = SEGMENTS.get(self.word())
        following = self.peek(1)
        if segment is None or following.kind != "sign" or following.text != ":":
            return Register.NONE
        self.position += 2
        return segment

    def operand(self) -> Operand:
        """One operand, keywords included. Raises `Problem`."""
        size = 0
        distance = ""
        far = False
        while True:
            word = self.word()
            if word in SIZES:
                size = SIZES[word]
            elif word in ("short", "near"):
                distance = word
            elif word == "far":
                far = True
            elif word not in ("ptr", "strict", "offset"):
                break
            self.position += 1
        if (entry := self.register()) is not None:
            if size and entry.bits != size * 8:
                raise Problem(
                    f"{entry.name} has {entry.bits} bits, not {size * 8}; drop the size or the register"
                )
            return RegisterOperand(entry)
        segment = self.segment()
        if self.accept("["):
            return self.memory(size, segment, far)
        value = self.expression()
        if segment != Register.NONE:
            return MemoryOperand(value, size, segment, relative=False)
        if self.accept(":"):
            return FarOperand(value, self.expression(), size)
        if value.op == "value" and value.value.registers:
            raise Problem("registers are added or scaled outside brackets; write [ ] around an address")
        if far:
            raise Problem("far needs selector:offset or brackets; write `0x08:label` or `far [pointer]`")
        return NumberOperand(value, size, distance)

    def memory(self, size: int, segment: RegisterId, far: bool) -> MemoryOperand:
        """The inside of the brackets, up to and with the closing one."""
        relative: bool | None = None
        address_bytes = 0
        while True:
            word = self.word()
            if word in ("rel", "abs"):
                relative = word == "rel"
                self.position += 1
            elif word in ("byte", "word", "dword", "qword"):
                address_bytes = SIZES[word]
                self.position += 1
            elif (inner := self.segment()) != Register.NONE:
                segment = inner
            else:
                break
        address = self.expression()
        self.expect("]", "after the address")
        return MemoryOperand(address, size, segment, relative, address_bytes, far)
