"""Small ELF files for the loader tests, built field by field so that every field can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass

PT_LOAD = 1
PT_INTERP = 3
PT_NOTE = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A program header and its contents; `memory_size` and `file_size` default to the contents' length."""

    data: bytes
    paddr: int = 0
    vaddr: int | None = None
    kind: int = PT_LOAD
    memory_size: int | None = None
    file_size: int | None = None


def build_elf(
    *parts: Part,
    entry: int,
    bits: int = 64,
    machine: int | None = None,
    kind: int = 2,
    symbols: tuple[tuple[str, int, int, int], ...] = (),
) -> bytes:
    """An ELF file of little-endian x86. `symbols` are (name, value, size, info), all in section 1."""
    wide = bits == 64
    header_size, phdr_size, shdr_size = (64, 56, 64) if wide else (52, 32, 40)
    at = header_size + phdr_size * len(parts)
    phdrs, contents = b"", b""
    for part in parts:
        file_size = len(part.data) if part.file_size is None else part.file_size
        memory_size = len(part.data) if part.memory_size is None else part.memory_size
        vaddr = part.paddr if part.vaddr is None else part.vaddr
        offset = at + len(contents)
        if wide:
            phdrs += struct.pack(
                "<IIQQQQQQ", part.kind, 7, offset, vaddr, part.paddr, file_size, memory_size, 1
            )
        else:
            phdrs += struct.pack("<8I", part.kind, offset, vaddr, part.paddr, file_size, memory_size, 7, 1)
        contents += part.data
    names, table = b"\0", bytes(24 if wide else 16)
    for name, value, size, info in symbols:
        if wide:
            table += struct.pack("<IBBHQQ", len(names), info, 0, 1, value, size)
        else:
            table += struct.pack("<IIIBBH", len(names), value, size, info, 0, 1)
        names += name.encode() + b"\0"
    strings_at = at + len(contents)
    table_at = strings_at + len(names)
    sections_at = table_at + len(table)
    word = "Q" if wide else "I"
    section = struct.Struct(f"<II{word}{word}{word}{word}II{word}{word}")
    sections = b""
    if symbols:
        sections = b"".join(
            (
                section.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
                section.pack(0, 1, 6, 0, at, len(contents), 0, 0, 1, 0),
                section.pack(0, 3, 0, 0, strings_at, len(names), 0, 0, 1, 0),
                section.pack(0, 2, 0, 0, table_at, len(table), 2, 0, 1, len(table) // (1 + len(symbols))),
            )
        )
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    fields = (kind, machine or (62 if wide else 3), 1, entry, header_size, sections_at if symbols else 0)
    tail = (0, header_size, phdr_size, len(parts), shdr_size, 4 if symbols else 0, 2 if symbols else 0)
    header = ident + struct.pack(f"<HHI{word}{word}{word}I6H", *fields, *tail)
    return header + phdrs + contents + names + table + sections
