"""A whole program: its text parsed once, then laid out again and again until no name moves.

Not a linker: the result is one flat image at one origin. Here are the two calls of the assembler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isa.assembler.expressions import Scope
from isa.assembler.kinds import registers
from isa.assembler.parser import Line, Parser
from isa.assembler.results import M64, MAX_PASSES, Assembled, AssemblerError, ListingLine, Problem
from isa.assembler.statements import Equ, Layout, check_size


def _line_at(lines: Sequence[Line], number: int) -> Line:
    return next(line for line in lines if line.number == number)


def _one_pass(
    lines: Sequence[Line], layout: Layout, scope: Scope, symbols: Mapping[str, int]
) -> list[ListingLine]:
    """Emit every statement at its address. Raises `AssemblerError`."""
    layout.size = 0
    scope.seen = set(symbols)
    scope.here = scope.start = layout.origin
    rows: list[ListingLine] = []
    for line in lines:
        address = scope.here
        pieces: list[bytes] = []
        for statement in line.statements:
            try:
                piece = statement.emit(scope, layout)
                layout.size = check_size(layout.size + len(piece), "the size of the image")
            except Problem as problem:
                raise AssemblerError(line.number, line.text, str(problem)) from None
            scope.here += len(piece)
            pieces.append(piece)
        if layout.size == 0:
            address = scope.here  # org moved the origin
        rows.append(ListingLine(address, b"".join(pieces), line.number, line.text))
    return rows


def _lay_out(
    lines: Sequence[Line], defined_at: Mapping[str, int], origin: int, symbols: Mapping[str, int]
) -> Assembled:
    """Repeat the layout until no name moves. Raises `AssemblerError`."""
    for name in symbols:
        if name.lower() in registers()[0]:
            raise AssemblerError(0, "", f"the name {name} in symbols is a register; choose another name")
        if name in defined_at:
            line = _line_at(lines, defined_at[name])
            reason = f"{name} is also passed in symbols; choose another name"
            raise AssemblerError(line.number, line.text, reason)
    layout = Layout(origin)
    scope = Scope(dict(symbols), set(), {*defined_at, *symbols}, set())
    before: dict[str, int] = {}
    while True:
        layout.number += 1
        layout.origin = origin
        rows = _one_pass(lines, layout, scope, symbols)
        if scope.symbols == before:
            break
        if layout.number >= MAX_PASSES:
            name = next(name for name in scope.symbols if scope.symbols[name] != before.get(name))
            line = _line_at(lines, defined_at[name])
            reason = f"the value of {name} never settles; it depends on itself, so define it by earlier names"
            raise AssemblerError(line.number, line.text, reason)
        before = dict(scope.symbols)
    constants = {
        statement.name for line in lines for statement in line.statements if isinstance(statement, Equ)
    }
    labels = {name: scope.symbols[name] for name in defined_at if name not in constants}
    return Assembled(b"".join(row.code for row in rows), layout.origin, labels, rows)


def assemble_program(
    text: str, *, bits: int = 64, origin: int = 0, symbols: Mapping[str, int] | None = None
) -> Assembled:
    """Assemble a text into a flat image with labels and a listing.

    `bits` is the mode the text starts in (16, 32 or 64), `origin` the address of its first byte unless `org`
    says otherwise, `symbols` names and values the text may use. The same text gives the same bytes, always.
    Raises `AssemblerError`.
    """
    if bits not in (16, 32, 64):
        raise AssemblerError(0, "", f"assemble was called with bits={bits!r}; use 16, 32 or 64")
    if not 0 <= origin <= M64:
        raise AssemblerError(0, "", f"assemble was called with origin={origin:#x}; use a 64-bit address")
    parser = Parser(bits)
    parser.parse(text)
    return _lay_out(parser.lines, parser.defined_at, origin, symbols or {})


def assemble(
    text: str, *, bits: int = 64, origin: int = 0, symbols: Mapping[str, int] | None = None
) -> bytes:
    """The bytes of a text; arguments and errors as in `assemble_program`."""
    return assemble_program(text, bits=bits, origin=origin, symbols=symbols).code
