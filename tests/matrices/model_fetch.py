"""Fetching instructions: limits, canonical addresses, pages, the length of 15 bytes, opcodes that are none.

SDM Vol. 3, "Priority Among Concurrent Events" (faults from fetching, then from decoding), "Limit Checking";
Vol. 2, "Instruction Format" for the length, "Opcode Map" for what is blank there. Bytes are fetched in their
order; the first that cannot be is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.matrices import model_paging as paging
from tests.matrices.model_paging import FETCH
from tests.matrices.spec import GP, M32, M64, UD, Fault, Machine, canonical

LONGEST = 15


def fetch(m: Machine, rip: int, length: int) -> None:
    """Everything that fetching an instruction of `length` bytes at RIP may raise."""
    pages = set()
    for n in range(min(length, LONGEST + 1)):
        if n == LONGEST:
            raise Fault(GP, 0)
        offset = rip + n
        if m.mode64:
            linear = offset & M64
            if not canonical(linear):
                raise Fault(GP, 0)
        else:
            if offset > m.cs.limit:
                raise Fault(GP, 0)
            linear = m.cs.base + offset & M32
        if linear >> 12 not in pages:
            pages.add(linear >> 12)
            paging.access(m, linear, 1, FETCH)


def run(m: Machine, rip: int, length: int, *, undefined: bool = False) -> None:
    """A NOP of `length` bytes, or bytes that are no instruction."""
    fetch(m, rip, length)
    if undefined:
        raise Fault(UD)


# ---- what the opcode maps leave blank ----------------------------------------------------------------------

# Table "One-byte Opcode Map", superscript i64, and prefixes of later encodings left out
ONE_BYTE_64 = (0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x82, 0x9A,
               0xCE, 0xD4, 0xD5,
               0xEA)  # fmt: skip
# Table "Two-byte Opcode Map": blank, or invalid by definition (UD0, UD1, UD2)
TWO_BYTE = (0x04, 0x0A, 0x0B, 0x0C, 0x25, 0x27, 0x36, 0x39, 0x3B, 0x3C, 0x3D, 0x3E, 0x3F, 0xB9, 0xFF)
# Table "Opcode Extensions for One- and Two-byte Opcodes by Group Number": (opcode, reg fields that are
# blank), with a register and with a memory operand
GROUPS_REGISTER: tuple[tuple[bytes, Sequence[int]], ...] = (
    (b"\xfe", (2, 3, 4, 5, 6, 7)), (b"\xff", (3, 5, 7)), (b"\xc6", (1, 2, 3, 4, 5, 6)), (b"\x0f\x00", (7,)),
    (b"\x0f\xba", (0, 1, 2, 3)), (b"\x0f\x71", (0, 1, 3, 5, 7)), (b"\x0f\x72", (3, 5, 7)),
    (b"\x0f\x73", (0, 1, 4, 5)), (b"\x8d", range(8)), (b"\x0f\xc3", range(8)), (b"\x8e", (1, 6, 7)),
        (b"\x8c", (6, 7)),
    (b"\x0f\xb2", range(8)), (b"\x0f\xb4", range(8)), (b"\x0f\xb5", range(8)), (b"\x0f\xc7", (0, 1, 2, 3, 4,
        5)),
)  # fmt: skip
GROUPS_MEMORY: tuple[tuple[bytes, Sequence[int]], ...] = (
    (b"\xfe", (2, 3, 4, 5, 6, 7)), (b"\xff", (7,)), (b"\xc6", (1, 2, 3, 4, 5, 6, 7)), (b"\xc7", (1, 2, 3, 4,
        5, 6, 7)),
    (b"\x0f\x00", (7,)), (b"\x0f\xba", (0, 1, 2, 3)), (b"\x0f\x71", range(8)),
    (b"\x0f\x72", range(8)), (b"\x0f\x73", range(8)), (b"\x8e", (1, 6, 7)), (b"\x8c", (6, 7)),
    (b"\x0f\x20", ()), (b"\x0f\xd7", range(8)), (b"\x0f\x50", range(8)), (b"\x0f\xf7", range(8)),
)  # fmt: skip


def undefined_opcodes(wide: bool) -> list[bytes]:
    """Byte strings that are #UD, each with all the bytes that are needed to see it."""
    found = [bytes((opcode,)) for opcode in ONE_BYTE_64] if wide else []
    found += [b"\x0f" + bytes((opcode,)) for opcode in TWO_BYTE]
    for opcode, fields in GROUPS_REGISTER:
        found += [opcode + bytes((0xC0 | field << 3 | 1,)) for field in fields]
    for opcode, fields in GROUPS_MEMORY:
        found += [opcode + bytes((field << 3 | 3,)) for field in fields]
    return found
