"""From text to statements: every line read once, with the mode and the outer label it stands under.

Not a value and not an address: what a name is worth is known once the program is laid out (`program.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from isa.assembler.expressions import Node, Value
from isa.assembler.instructions import Insn
from isa.assembler.kinds import registers
from isa.assembler.mnemonics import PseudoOp, alias_tables, candidate_codes
from isa.assembler.operands import (
    FarOperand,
    MemoryOperand,
    NumberOperand,
    Operand,
    Reader,
    RegisterOperand,
)
from isa.assembler.resolve import Place
from isa.assembler.results import AssemblerError, Problem
from isa.assembler.statements import Align, Data, Equ, Label, Org, Reserve, Statement, Times
from isa.assembler.tokens import float_bytes, split_line, string_bytes
from isa.assembler.words import (
    ADDRESS_SIZE_PREFIXES,
    DATA_WIDTHS,
    DIRECTIVES,
    LINKER_WORDS,
    MODE_WORDS,
    OPERAND_SIZE_PREFIXES,
    REPEATS,
    RESERVE_WIDTHS,
    SEGMENT_PREFIXES,
    SIZES,
)


class Line(NamedTuple):
    """A source line with its statements."""

    number: int
    text: str
    statements: list[Statement]


class Parser:
    """Reads the lines of a text; `defined_at` gives the line number of every name they define."""

    __slots__ = ("bits", "default_relative", "defined_at", "lines", "outer")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.default_relative = False
        self.outer = ""
        self.defined_at: dict[str, int] = {}
        self.lines: list[Line] = []

    def parse(self, text: str) -> None:
        """Read every line. Raises `AssemblerError`."""
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                statements = self.parse_line(number, line)
            except Problem as problem:
                raise AssemblerError(number, line, str(problem)) from None
            if statements:
                self.lines.append(Line(number, line.rstrip(), statements))

    def parse_line(self, number: int, line: str) -> list[Statement]:
        """The statements of one line: labels, then at most one directive or instruction."""
        tokens = split_line(line)
        if len(tokens) > 2 and tokens[0].text == "[" and tokens[1].text.lower() in DIRECTIVES | LINKER_WORDS:
            if tokens[-1].text != "]":
                raise Problem("the directive in brackets has no closing ']'; add it")
            tokens = tokens[1:-1]
        reader = Reader(tokens, self.outer)
        statements: list[Statement] = []
        while reader.peek().kind == "name" and reader.peek(1).text == ":" and reader.peek(1).kind == "sign":
            statements.append(self.label(reader, number))
            reader.position += 1
        if reader.peek().kind == "name" and self.names_data(reader):
            if reader.word(1) == "equ":
                name = self.define_name(reader, number)
                reader.position += 1
                statements.append(Equ(number, name, reader.expression()))
                reader.expect_end()
                return statements
            statements.append(self.label(reader, number))
        if not reader.at_end():
            statement = self.statement(reader, number)
            reader.expect_end()
            if statement is not None:
                statements.append(statement)
        return statements

    def names_data(self, reader: Reader) -> bool:
        """Whether the word here is a name before a data directive or equ, as in `msg db "hello"`."""
        following = reader.word(1)
        if (
            following not in DATA_WIDTHS
            and following not in RESERVE_WIDTHS
            and following not in ("equ", "times")
        ):
            return False
        return reader.word() not in DIRECTIVES and reader.word() not in REPEATS

    def define_name(self, reader: Reader, number: int) -> str:
        """Take a name that this line defines. Raises `Problem` if it is taken."""
        word = reader.take().text
        if word.lower() in registers()[0] or word.lower() in SIZES:
            raise Problem(f"{word} is a register or keyword and cannot be a label; choose another name")
        name = reader.full_name(word)
        if name in self.defined_at:
            raise Problem(f"{name} is already defined in line {self.defined_at[name]}; choose another name")
        self.defined_at[name] = number
        return name

    def label(self, reader: Reader, number: int) -> Label:
        name = self.define_name(reader, number)
        if "." not in name:
            self.outer = name
            reader.outer = name
        return Label(number, name)

    def statement(self, reader: Reader, number: int) -> Statement | None:
        """One directive or instruction; None for a setting."""
        word = reader.word()
        if not word:
            raise Problem(
                f"a line starts with a label, directive or instruction, not with {reader.peek().text!r}"
            )
        if word in DATA_WIDTHS:
            reader.take()
            return self.data(reader, number, DATA_WIDTHS[word])
        if word in RESERVE_WIDTHS:
            reader.take()
            return Reserve(number, reader.expression(), RESERVE_WIDTHS[word])
        if word in MODE_WORDS:
            reader.take()
            self.bits = MODE_WORDS[word]
            return None
        if word in LINKER_WORDS:
            raise Problem(f"{word} needs a linker, and this assembler makes one flat image; remove the line")
        if word in DIRECTIVES:
            reader.take()
            return self.directive(word, reader, number)
        return self.instruction(reader, number)

    def directive(self, word: str, reader: Reader, number: int) -> Statement | None:
        """bits, default, org, align, times."""
        match word:
            case "bits":
                node = reader.expression()
                if node.op != "value" or node.value.number not in (16, 32, 64):
                    raise Problem("bits takes 16, 32 or 64; write one of them")
                self.bits = node.value.number
                return None
            case "default":
                choice = reader.take().text.lower()
                if choice not in ("rel", "abs"):
                    raise Problem("default takes rel or abs; write one of them")
                self.default_relative = choice == "rel"
                return None
            case "org":
                return Org(number, reader.expression())
            case "times":
                count = reader.expression()
                if reader.at_end():
                    raise Problem("times repeats an instruction or data directive, and none follows; add it")
                body = self.statement(reader, number)
                if body is None or isinstance(body, Org | Times | Align):
                    raise Problem("times repeats instructions and data only; put this on its own line")
                return Times(number, count, body)
            case "equ":
                raise Problem("equ needs a name before it; write `name equ value`")
        boundary = reader.expression()
        fill = Node("value", Value(0 if word == "alignb" else 0x90))
        if reader.accept(","):
            if reader.accept_word("nop"):
                return Align(number, boundary, fill)
            reader.accept_word("db")
            fill = reader.expression()
        return Align(number, boundary, fill)

    def data(self, reader: Reader, number: int, width: int) -> Data:
        """The list after db, dw, dd, dq or dt."""
        parts: list[bytes | Node] = []
        while True:
            token = reader.peek()
            after = reader.peek(1)
            alone = after.kind == "end" or after.text == ","
            negative = token.text == "-" and token.kind == "sign" and after.kind == "float"
            if token.kind == "string" and alone:
                raw = string_bytes(reader.take().text)
                parts.append(raw + bytes(-len(raw) % width))
            elif token.kind == "float" or negative:
                sign = -1.0 if negative else 1.0
                reader.position += negative
                parts.append(float_bytes(reader.take().text, sign, width))
            else:
                parts.append(reader.expression())
            if not reader.accept(","):
                return Data(number, width, parts)

    def instruction(self, reader: Reader, number: int) -> Insn:
        """Prefixes, mnemonic and operands."""
        prefixes: list[str] = []
        operand_size = 0
        address_size = 0
        while True:
            word = reader.word()
            if word in OPERAND_SIZE_PREFIXES:
                operand_size = OPERAND_SIZE_PREFIXES[word]
            elif word in ADDRESS_SIZE_PREFIXES:
                address_size = ADDRESS_SIZE_PREFIXES[word]
            elif word in REPEATS or word in SEGMENT_PREFIXES:
                prefixes.append(word)
            else:
                break
            reader.position += 1
        if not word:
            raise Problem("an instruction must follow the prefix on the same line; for a bare prefix use db")
        reader.take()
        if word == "ret" and reader.accept_word("far"):  # as Intel's own tools write RETF
            word = "retf"
        operands: list[Operand] = []
        reverse = word.startswith("f") and reader.accept_word("to")  # NASM: fadd to st1
        if not reader.at_end():
            operands.append(reader.operand())
            while reader.accept(","):
                operands.append(reader.operand())
        if reverse:
            operands.append(RegisterOperand(registers()[0]["st0"]))
        place = Place(self.bits, self.default_relative, address_size)
        if word == "push":
            operand_size = operand_size or _push_size(operands, self.bits)
        constant = all(_is_constant(operand) for operand in operands)
        # An unknown name is an error at once.
        candidate_codes(alias_tables()[1].get(word, PseudoOp(word, 0)).mnemonic)
        return Insn(number, word, tuple(operands), tuple(prefixes), operand_size, place, constant)


def _push_size(operands: list[Operand], bits: int) -> int:
    """Read a size word on PUSH's immediate as the size of the push (bits, 0: none): `push word 5`."""
    if len(operands) != 1 or not isinstance(operands[0], NumberOperand):
        return 0
    number = operands[0]
    if number.size not in (2, 4, 8):
        return 0
    operands[0] = NumberOperand(number.value)
    # 64-bit mode has no 32-bit push: dword names the immediate, which is sign-extended.
    return 64 if bits == 64 and number.size == 4 else number.size * 8


def _is_constant(operand: Operand) -> bool:
    match operand:
        case RegisterOperand():
            return True
        case MemoryOperand():
            return operand.address.is_constant()
        case NumberOperand():
            return operand.value.is_constant()
        case FarOperand():
            return operand.selector.is_constant() and operand.offset.is_constant()
