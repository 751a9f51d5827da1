"""The text assembler: Intel syntax, as NASM writes it, turned into machine code by iced's own tables.

Not a macro assembler and not a linker: no %macro, no sections, no object files; one flat image at one origin.
And no part of the CPU, which never imports it: it exists for tests, examples and `AxVM.from_asm`.

How a line becomes bytes. iced's `OpCodeInfo` lists, for every opcode of the SDM's Volume 2, the operand
kinds it takes. The operands of the line are described by the kinds they could serve as; the opcodes whose
kinds match are the candidates (found once per mnemonic and operand shape, then remembered). Each candidate is
built as an `Instruction`, iced's `Encoder` accepts or refuses it, and the shortest accepted encoding wins.

How labels get their values. The program is laid out again and again until no label moves. Two passes run with
guesses; from the third on an instruction may only grow, so that the layout settles.

The rooms; each imports only rooms before it in this list:

    results       what comes out, the error and the limits
    words         sizes, directives, prefixes
    tokens        a line cut into pieces
    kinds         registers, and iced's operand kinds
    mnemonics     from a name to its opcodes
    expressions   values of numbers, names and registers
    operands      the reader of operands
    forms         the opcodes that take them
    resolve       operands with their numbers known
    encode        bytes
    statements    labels, directives, data
    instructions  the statement that has a choice
    parser        from text to statements
    program       the layout, and the two calls
"""

from __future__ import annotations

from isa.assembler.program import assemble, assemble_program
from isa.assembler.results import MAX_IMAGE_BYTES, Assembled, AssemblerError, ListingLine

__all__ = [
    "MAX_IMAGE_BYTES",
    "Assembled",
    "AssemblerError",
    "ListingLine",
    "assemble",
    "assemble_program",
]
