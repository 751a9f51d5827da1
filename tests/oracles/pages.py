"""Page tables for the oracles' machines: a few pages at their own addresses, everything else absent."""

from __future__ import annotations

from collections.abc import Iterable

from isa.memory import PhysicalMemory

PML4, PDPT, PAGE_DIRECTORY, PAGE_TABLE = 0, 0x1000, 0x2000, 0x3000
TABLES_END = 0x4000
PRESENT, WRITABLE, USER = 1, 2, 4


def map_pages(
    memory: PhysicalMemory, area: int, user: Iterable[int], read_only: int, system: Iterable[int] = ()
) -> None:
    """Add RAM for 4-level tables at 0 that map pages of the 2 MiB at `area`.

    `user` and `system` are writable pages for user code and for the system only, `read_only` is one that user
    code may read.
    """
    memory.add_ram(0, TABLES_END)
    tables = (PML4, PDPT, PAGE_DIRECTORY, PAGE_TABLE)
    for table, below, shift in zip(tables, tables[1:], (39, 30, 21), strict=False):
        _entry(memory, table, area >> shift, below | PRESENT | WRITABLE | USER)
    for page in user:
        _entry(memory, PAGE_TABLE, page >> 12, page | PRESENT | WRITABLE | USER)
    _entry(memory, PAGE_TABLE, read_only >> 12, read_only | PRESENT | USER)
    for page in system:
        _entry(memory, PAGE_TABLE, page >> 12, page | PRESENT | WRITABLE)


def _entry(memory: PhysicalMemory, table: int, number: int, entry: int) -> None:
    memory.write(table + 8 * (number & 0x1FF), entry.to_bytes(8, "little"))
