"""GDT, LDT and IDT as pictures: every entry decoded, whatever the guest wrote there.

Nothing is loaded, checked against a privilege or marked as accessed. An entry that the CPU could not use is
shown with what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from isa.cpu import Cpu
from isa.descriptors import Descriptor
from isa.msr import is_canonical
from isa.state import CR0_PE, EFER_LMA, M32, M64, SEGMENT_NAMES, TYPE_CODE, TYPE_CONFORMING, TYPE_EXPAND_DOWN
from pysim_vm.display.html import Cell, Note, Part, Picture, Row, Span, Table, cut
from pysim_vm.report import VECTOR_NAMES, descriptor_kind, gate_target, page_walk, peek_physical, plural
from pysim_vm.symbols import SymbolTable

ROWS_SHOWN: Final = 64
DESCRIPTORS_MAX: Final = 8192  # of 8 bytes, as many as a limit of 16 bits has room for
PAGE: Final = 0x1000
DESCRIPTOR_HEAD: Final = ("selector", "", "base", "limit", "DPL", "flags", "", "")
VECTOR_HEAD: Final = ("vector", "", "handler", "", "DPL", "IST", "")
CALL_GATES: Final = (4, 12)
TASK_GATE: Final = 5
INTERRUPT_GATES: Final = (6, 7, 14, 15)
# IA-32e mode: these take 16 bytes, the others are reserved (SDM Vol. 3, "System Descriptor Types")
LONG_TYPES: Final = (2, 9, 11, 12, 14, 15)


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One descriptor of the GDT or LDT.

    `selector` has RPL 0; `value` is an integer of 8 bytes, 16 for a system descriptor of IA-32e mode, None
    where memory cannot be read. `what` is the type in words, `limit` in bytes, `flags` the set bits by their
    names, `wrong` why the CPU could not use it ("" if it could), `used` the registers that hold the selector.
    """

    selector: int
    value: int | None
    what: str
    base: int = 0
    limit: int = 0
    dpl: int = 0
    present: bool = False
    flags: str = ""
    wrong: str = ""
    used: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """All zeros."""
        return self.value == 0


@dataclass(frozen=True, slots=True)
class GateEntry:
    """One vector of the interrupt table: the handler's selector (or real-mode segment) and offset.

    `ist` is the stack of IA-32e mode, `symbol` the handler's name, `wrong` why delivery would fail, or "".
    """

    vector: int
    value: int | None
    what: str
    selector: int = 0
    offset: int = 0
    dpl: int = 0
    present: bool = False
    ist: int = 0
    symbol: str = ""
    wrong: str = ""

    @property
    def empty(self) -> bool:
        """All zeros."""
        return self.value == 0

    @property
    def name(self) -> str:
        """`#PF` for 14, "" for a vector without a name."""
        return VECTOR_NAMES.get(self.vector, "")


Entry = TypeVar("Entry", TableEntry, GateEntry)


# ---- GDT and LDT -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class DescriptorTable(Picture):
    """A GDT or LDT: `entries` in order, `table[0x10]` by selector."""

    name: str
    base: int
    limit: int
    entries: tuple[TableEntry, ...]
    missing: str = ""

    @classmethod
    def gdt(cls, cpu: Cpu) -> DescriptorTable:
        """The table of GDTR."""
        return cls("GDT", cpu.gdtr.base, cpu.gdtr.limit, _entries(cpu, cpu.gdtr.base, cpu.gdtr.limit, 0))

    @classmethod
    def ldt(cls, cpu: Cpu) -> DescriptorTable:
        """The table of LDTR; no entries if that is null."""
        if cpu.ldtr.null:
            return cls("LDT", 0, 0, (), "There is no LDT: LDTR is null.")
        if not cpu.ldtr.selector & 0xFFFC:
            return cls("LDT", 0, 0, (), "There is no LDT: LDTR holds what reset put there.")
        base, limit = cpu.ldtr.base, cpu.ldtr.limit
        return cls("LDT", base, limit, _entries(cpu, base, limit, 4))

    def __getitem__(self, selector: int) -> TableEntry:
        for entry in self.entries:
            if entry.selector & ~4 == selector & 0xFFF8:
                return entry
        raise KeyError(f"{self.name}: no descriptor for selector {selector:#x}")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[TableEntry]:
        return iter(self.entries)

    def parts(self) -> Iterator[Part]:
        """A sentence and the entries; empty ones that follow each other are one row."""
        if self.missing:
            yield Note(self.missing, "title")
            return
        room = plural((self.limit + 1) // 8, "descriptor")
        yield Note(f"{self.name} at {self.base:#x}, limit {self.limit:#x}: room for {room}", "title")
        rows, shown = _runs(
            self.entries, self._row, lambda entry: f"{entry.selector:#06x}", len(DESCRIPTOR_HEAD)
        )
        yield Table(DESCRIPTOR_HEAD, "llrrrllw", rows)
        yield from cut(len(self.entries), shown, "descriptor")

    @staticmethod
    def _row(entry: TableEntry) -> Row:
        if entry.value is None:
            return Row((f"{entry.selector:#06x}", Span(entry.what, "bad"), *[""] * 6))
        used: Cell = Span(" ".join(entry.used).upper(), "strong") if entry.used else ""
        tone = "" if entry.present or entry.empty else "dim"
        numbers = (f"{entry.base:#x}", f"{entry.limit:#x}", str(entry.dpl))
        return Row((
            f"{entry.selector:#06x}", Span(entry.what, tone), *(Span(text, tone) for text in numbers),
            Span(entry.flags, tone), used, Span(entry.wrong, "bad") if entry.wrong else "",
        ))  # fmt: skip


def _entries(cpu: Cpu, base: int, limit: int, indicator: int) -> tuple[TableEntry, ...]:
    long_mode = bool(cpu.efer & EFER_LMA)
    count = min((limit + 1) // 8, DESCRIPTORS_MAX)
    data = _read(cpu, base, count * 8)
    holders: dict[int, list[str]] = {}
    for name in (*SEGMENT_NAMES, "ldtr", "tr"):
        register = getattr(cpu, name)
        if not register.null and register.selector & 0xFFFC and cpu.cr0 & CR0_PE:
            holders.setdefault(register.selector & 0xFFFC, []).append(name)
    found: list[TableEntry] = []
    index = 0
    while index < count:
        selector = index * 8 | indicator
        used = tuple(holders.get(selector, ()))
        raw = data[index]
        index += 1
        if raw is None:
            found.append(TableEntry(selector, None, "cannot be read: not mapped, or no RAM", used=used))
            continue
        if long_mode and not raw >> 44 & 1 and raw >> 40 & 15 in LONG_TYPES:
            upper = data[index] if index < count else None
            index += 1
            found.append(_wide_entry(selector, raw, upper, used))
            continue
        found.append(_entry(selector, raw, long_mode, used))
    return tuple(found)


def _entry(selector: int, raw: int, long_mode: bool, used: tuple[str, ...]) -> TableEntry:
    """A descriptor of 8 bytes."""
    descriptor = Descriptor(selector, 0, raw)
    if raw == 0:
        what = "null" if selector == 0 else "empty"
        return TableEntry(selector, 0, what, used=used)
    wrong = ""
    if descriptor.s:
        if descriptor.is_code and descriptor.l and descriptor.db:
            wrong = "L and D are both 1: reserved"
        flags = _segment_flags(descriptor)
    else:
        flags = _names((("P", descriptor.present), ("G", raw >> 55 & 1)))
        if long_mode:
            wrong = f"type {descriptor.type:#x} is reserved in IA-32e mode"
        elif "reserved" in descriptor.what:
            wrong = "reserved type"
        elif descriptor.type in INTERRUPT_GATES:
            wrong = "an interrupt or trap gate belongs into the IDT"
    if not descriptor.present:
        wrong = wrong or "not present: loading it is #NP"
    what, base, limit = descriptor_kind(descriptor), descriptor.base, descriptor.limit
    if not descriptor.s and descriptor.type in (*CALL_GATES, TASK_GATE):
        target, offset = gate_target(raw, 8)
        what += f" to {target:#06x}" + ("" if descriptor.type == TASK_GATE else f":{offset:#x}")
        base = limit = 0
    return TableEntry(selector, raw, what, base, limit, descriptor.dpl, bool(descriptor.present), flags,
                      wrong, used)  # fmt: skip


def _wide_entry(selector: int, raw: int, upper: int | None, used: tuple[str, ...]) -> TableEntry:
    """A system descriptor of 16 bytes."""
    descriptor = Descriptor(selector, 0, raw)
    what, present = descriptor_kind(descriptor), bool(descriptor.present)
    flags = _names((("P", descriptor.present), ("G", raw >> 55 & 1)))
    if upper is None:
        wrong = "its upper 8 bytes lie outside the table or cannot be read"
        return TableEntry(selector, raw, what, descriptor.base, descriptor.limit, descriptor.dpl, present,
                          flags, wrong, used)  # fmt: skip
    value = raw | upper << 64
    base, limit = descriptor.base | (upper & M32) << 32, descriptor.limit
    wrong = "" if present else "not present: loading it is #NP"
    if upper >> 40 & 0x1F:
        wrong = "the type field of its upper half is not 0"
    elif descriptor.type in INTERRUPT_GATES:
        wrong = "an interrupt or trap gate belongs into the IDT"
    if descriptor.type in CALL_GATES:
        target, offset = gate_target(value, 16)
        what += f" to {target:#06x}:{offset:#x}"
        base = limit = 0
        if not is_canonical(offset):
            wrong = wrong or "the offset is not canonical"
    elif not is_canonical(base):
        wrong = wrong or "the base is not canonical"
    return TableEntry(selector, value, what, base, limit, descriptor.dpl, present, flags, wrong, used)


def _segment_flags(descriptor: Descriptor) -> str:
    code = descriptor.type & TYPE_CODE
    return _names((
        ("P", descriptor.present), ("A", descriptor.type & 1), ("G", descriptor.raw >> 55 & 1),
        ("D" if code else "B", descriptor.db), ("L", descriptor.l if code else 0),
        ("C", code and descriptor.type & TYPE_CONFORMING),
        ("E", not code and descriptor.type & TYPE_EXPAND_DOWN), ("AVL", descriptor.raw >> 52 & 1),
    ))  # fmt: skip


def _names(bits: Sequence[tuple[str, int | bool]]) -> str:
    return " ".join(name for name, value in bits if value)


# ---- IDT ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class InterruptTable(Picture):
    """The interrupt table: gates, or far addresses in real mode; `table[14]` is that of a vector."""

    base: int
    limit: int
    size: int
    real: bool
    entries: tuple[GateEntry, ...]

    @classmethod
    def of(cls, cpu: Cpu, symbols: SymbolTable | None = None) -> InterruptTable:
        """The table of IDTR, in the form that the CPU's mode gives it."""
        real = not cpu.cr0 & CR0_PE
        size = 4 if real else 16 if cpu.efer & EFER_LMA else 8
        count = min((cpu.idtr.limit + 1) // size, 256)
        words = _read(cpu, cpu.idtr.base, count * size, min(size, 8))
        entries = []
        for vector in range(count):
            if size == 16:
                low, high = words[2 * vector], words[2 * vector + 1]
                value = None if low is None or high is None else low | high << 64
            else:
                value = words[vector]
            entries.append(_vector(cpu, vector, value, size, symbols))
        return cls(cpu.idtr.base, cpu.idtr.limit, size, real, tuple(entries))

    def __getitem__(self, vector: int) -> GateEntry:
        return self.entries[vector]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[GateEntry]:
        return iter(self.entries)

    def parts(self) -> Iterator[Part]:
        """A sentence and the vectors; empty ones that follow each other are one row."""
        room = plural((self.limit + 1) // self.size, "vector")
        name = "Interrupt vector table" if self.real else "IDT"
        title = f"{name} at {self.base:#x}, limit {self.limit:#x}: room for {room} of {self.size} bytes"
        yield Note(title, "title")
        rows, shown = _runs(self.entries, self._row, lambda entry: str(entry.vector), len(VECTOR_HEAD))
        yield Table(VECTOR_HEAD, "llllrrw", rows)
        yield from cut(len(self.entries), shown, "vector")

    def _row(self, entry: GateEntry) -> Row:
        vector = f"{entry.vector} {entry.name}".rstrip()
        if entry.value is None:
            return Row((vector, Span(entry.what, "bad"), *[""] * 5))
        if entry.empty:
            return Row((vector, Span(entry.what, "dim"), *[""] * 5))
        form = f"{entry.selector:04x}:{entry.offset:04x}"
        if not self.real:
            form = f"{entry.selector:#06x}:{entry.offset:#x}"
        tone = "" if entry.present else "dim"
        return Row((
            vector, Span(entry.what, tone), Span(form, tone), entry.symbol,
            "" if self.real else str(entry.dpl), str(entry.ist) if entry.ist else "",
            Span(entry.wrong, "bad") if entry.wrong else "",
        ))  # fmt: skip


def _vector(
    cpu: Cpu, vector: int, value: int | None, size: int, symbols: SymbolTable | None
) -> GateEntry:  # fmt: skip
    if value is None:
        return GateEntry(vector, None, "cannot be read: not mapped, or no RAM")
    if value == 0:
        return GateEntry(vector, 0, "empty")
    if size == 4:
        segment, offset = value >> 16, value & 0xFFFF
        name = _symbol(symbols, (segment << 4) + offset)
        return GateEntry(vector, value, "far address", segment, offset, present=True, symbol=name)
    gate = Descriptor(0, 0, value & M64)
    selector, offset = gate_target(value, size)
    allowed = (14, 15) if size == 16 else (*INTERRUPT_GATES, TASK_GATE)
    wrong = ""
    if gate.s or gate.type not in allowed:
        wrong = "not an interrupt, trap or task gate: #GP"
    elif not gate.present:
        wrong = "not present: #NP"
    elif not selector & 0xFFFC:
        wrong = "the handler's selector is null: #GP"
    elif size == 16 and not is_canonical(offset):
        wrong = "the handler's offset is not canonical: #GP"
    ist = value >> 32 & 7 if size == 16 else 0
    return GateEntry(vector, value, gate.what, selector, offset, gate.dpl, bool(gate.present), ist,
                     _symbol(symbols, offset), wrong)  # fmt: skip


def _symbol(symbols: SymbolTable | None, address: int) -> str:
    location = None if symbols is None else symbols.lookup(address)
    return "" if location is None else str(location)


# ---- both --------------------------------------------------------------------------------------------------


def _read(cpu: Cpu, base: int, size: int, word: int = 8) -> list[int | None]:
    """A table in words of `word` bytes, None for each that cannot be read."""
    mask = M64 if cpu.efer & EFER_LMA else M32
    found: list[int | None] = []
    page: tuple[int, bytes | None] = (-1, None)
    for at in range(base, base + size, word):
        linear = at & mask
        if page[0] != linear >> 12:
            physical = page_walk(cpu, linear & -PAGE).physical
            page = linear >> 12, None if physical is None else peek_physical(cpu.memory, physical, PAGE)
        start = linear & PAGE - 1
        raw = None if page[1] is None else page[1][start : start + word]
        if raw is not None and len(raw) < word:  # over the page's end
            raw = _over_the_end(cpu, raw, (linear | PAGE - 1) + 1 & mask, word)
        found.append(None if raw is None else int.from_bytes(raw, "little"))
    return found


def _over_the_end(cpu: Cpu, raw: bytes, following: int, size: int) -> bytes | None:
    physical = page_walk(cpu, following).physical
    rest = None if physical is None else peek_physical(cpu.memory, physical, size - len(raw))
    return None if rest is None else raw + rest


def _runs(
    entries: Sequence[Entry], row: Callable[[Entry], Row], label: Callable[[Entry], str], columns: int
) -> tuple[tuple[Row, ...], int]:
    """Rows for the entries, three or more empty ones together as one; and how many entries they stand for."""
    rows: list[Row] = []
    at = 0
    while at < len(entries) and len(rows) < ROWS_SHOWN:
        end = at
        while end < len(entries) and entries[end].empty:
            end += 1
        if end - at >= 3:
            span = f"{label(entries[at])}-{label(entries[end - 1])}"
            rows.append(Row((Span(span, "dim"), Span("empty", "dim"), *[""] * (columns - 2))))
            at = end
        else:
            rows.append(row(entries[at]))
            at += 1
    return tuple(rows), at
