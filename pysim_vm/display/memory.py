"""Memory as a picture: a hex dump and a listing of instructions. Reading it leaves no trace in the guest.

No device is read, no accessed bit is set, no lazy page is populated: bytes that are not plain RAM are shown
as dots, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from isa.cpu import Cpu
from isa.decode import disassemble
from isa.state import M32, M64
from pysim_vm.display.html import Cell, Note, Part, Picture, Row, Span, Table
from pysim_vm.report import (
    code_linear,
    instruction_at,
    met_before,
    page_walk,
    peek_physical,
    place,
    plural,
)
from pysim_vm.symbols import SymbolTable

LINE: Final = 16  # bytes of a row
DUMP_MAX: Final = 0x1_0000  # bytes of one dump
LINES_SHOWN: Final = 64
INSTRUCTIONS_MAX: Final = 1000
BEFORE: Final = 4  # instructions shown before RIP, where the CPU knows them
PAGE: Final = 0x1000

DeviceName = Callable[[int], str]


# ---- hex dump ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class MemoryView(Picture):
    """`size` bytes from `address`: `data` has one entry a byte, None where no RAM is.

    `notes` say what is odd: pages that are not mapped, or that lie elsewhere in physical memory.
    """

    address: int
    physical: bool
    data: tuple[int | None, ...]
    notes: tuple[str, ...]

    @classmethod
    def linear(cls, cpu: Cpu, address: int, size: int, device: DeviceName) -> MemoryView:
        """Bytes at a linear address, as the CPU translates it now."""
        mask = M64 if cpu.mode64 else M32
        address &= mask
        data: list[int | None] = []
        notes = []
        for start, length in _pages(address, size):
            walk = page_walk(cpu, start & mask)
            if walk.physical is None:
                data += [None] * length
                notes.append(walk.why)
                continue
            found, note = _physical(cpu, walk.physical, length, device)
            data += found
            if note:
                notes.append(note)
            elif walk.physical != start & mask:
                notes.append(f"{start & mask:#x} is physical {walk.physical:#x}")
        return cls(address, False, tuple(data), tuple(notes))

    @classmethod
    def at_physical(cls, cpu: Cpu, address: int, size: int, device: DeviceName) -> MemoryView:
        """Bytes at a guest-physical address."""
        data: list[int | None] = []
        notes = []
        for start, length in _pages(address, size):
            found, note = _physical(cpu, start, length, device)
            data += found
            if note:
                notes.append(note)
        return cls(address, True, tuple(data), tuple(notes))

    def parts(self) -> Iterator[Part]:
        """A sentence, the rows, and what is odd."""
        last = self.address + max(len(self.data) - 1, 0)
        kind = "guest-physical" if self.physical else "linear"
        size = plural(len(self.data), "byte")
        yield Note(f"{size} of {kind} memory, {self.address:#x} to {last:#x}", "title")
        rows: list[Row] = []
        same: list[Row] = []  # rows like the one before them
        previous: tuple[int | None, ...] | None = None
        first = self.address & -LINE
        count = -(-(self.address + len(self.data) - first) // LINE)
        shown = min(count, LINES_SHOWN)
        for number in range(shown):
            at = first + number * LINE
            row = tuple(self._byte(at + n) for n in range(LINE))
            if row == previous and number not in (count - 1, shown - 1):
                same.append(self._row(at, row))
                continue
            rows += _shortened(same)
            same = []
            previous = row
            rows.append(self._row(at, row))
        yield Table((), "nlll", tuple(rows))
        if count > shown:
            yield Note(f"… {plural((count - shown) * LINE, 'more byte')}")
        for note in self.notes[:8]:
            yield Note(note)
        if len(self.notes) > 8:
            yield Note(f"… {plural(len(self.notes) - 8, 'more page')} of that kind")

    def _byte(self, at: int) -> int | None:
        """The byte, None where no RAM is, -1 outside of the dump."""
        place_of = at - self.address
        return self.data[place_of] if 0 <= place_of < len(self.data) else -1

    def _row(self, at: int, row: tuple[int | None, ...]) -> Row:
        halves: list[Cell] = []
        for part in (row[:8], row[8:]):
            halves.append(tuple(_byte_spans(part)))
        text = []
        for byte in row:
            if byte == -1:
                text.append(Span(" "))
            elif byte is not None and 0x20 <= byte < 0x7F:
                text.append(Span(chr(byte)))
            else:
                text.append(Span("·", "dim"))
        return Row((f"{at:08x}", halves[0], halves[1], tuple(_merged(text))))


def _byte_spans(row: tuple[int | None, ...]) -> list[Span]:
    parts = []
    for number, byte in enumerate(row):
        gap = " " if number < len(row) - 1 else ""
        if byte is None:
            parts.append(Span("··" + gap, "dim"))
        elif byte < 0:
            parts.append(Span("  " + gap))
        else:
            parts.append(Span(f"{byte:02x}{gap}", "" if byte else "dim"))
    return list(_merged(parts))


def _merged(parts: list[Span]) -> Iterator[Span]:
    """Neighbours of one tone as one span."""
    run: Span | None = None
    for part in parts:
        if run is not None and run.tone == part.tone:
            run = Span(run.text + part.text, run.tone)
            continue
        if run is not None:
            yield run
        run = part
    if run is not None:
        yield run


def _shortened(same: list[Row]) -> list[Row]:
    """Rows that are all alike, as one if that is shorter."""
    if len(same) < 2:
        return same
    return [Row((Span("*", "dim"), Span(f"{plural(len(same), 'row')} the same", "dim"), "", ""))]


def _pages(address: int, size: int) -> Iterator[tuple[int, int]]:
    """A range cut at page boundaries."""
    end = address + size
    while address < end:
        length = min(end - address, PAGE - (address & PAGE - 1))
        yield address, length
        address += length


def _physical(cpu: Cpu, gpa: int, size: int, device: DeviceName) -> tuple[list[int | None], str]:
    """Bytes of RAM, and a sentence if there are none."""
    gpa &= cpu.memory.address_mask
    name = device(gpa)
    data = None if name else peek_physical(cpu.memory, gpa, size)
    if data is not None:
        return list(data), ""
    why = f"belongs to {name}, and reading a device may change it" if name else "no RAM is there"
    return [None] * size, f"guest-physical {gpa:#x} is not shown: {why}"


# ---- instructions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction: its address (IP, as in CS:IP), the place in words, bytes and text; `here` at RIP.

    `label` is the name of a symbol that stands for this very address.
    """

    ip: int
    place: str
    raw: bytes
    text: str
    here: bool
    label: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Listing(Picture):
    """Instructions in the order of memory; `listing[0].text` and iteration give them one by one.

    `zeros` is where memory begins to be empty: it would decode as ADD [rAX], AL for ever. -1 if it does not.
    """

    lines: tuple[Line, ...]
    bits: int
    zeros: int = -1

    @classmethod
    def of(
        cls, cpu: Cpu, ip: int | None = None, count: int = 10, symbols: SymbolTable | None = None
    ) -> Listing:
        """`count` instructions from CS:`ip`; without it around RIP, led by those executed before it."""
        found = []
        if ip is None:
            for insn in met_before(cpu, BEFORE):
                text = disassemble(insn.raw, cpu.code_bits, insn.ip)
                found.append(_line(cpu, insn.ip, insn.raw, text, symbols))
        at = cpu.rip if ip is None else ip
        for _ in range(min(count, INSTRUCTIONS_MAX)):
            raw, text = instruction_at(cpu, at)
            if found and not any(raw) and raw:
                return cls(tuple(found), cpu.code_bits, at)
            found.append(_line(cpu, at, raw, text, symbols))
            if not raw:
                break
            at = at + len(raw) & (M64 if cpu.mode64 else M32)
        return cls(tuple(found), cpu.code_bits)

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    def __getitem__(self, at: int) -> Line:
        return self.lines[at]

    def parts(self) -> Iterator[Part]:
        """The table, RIP's row marked, a row with the name where a symbol begins."""
        rows = []
        for line in self.lines:
            if line.label:
                rows.append(Row(("", Span(f"{line.label}:", "strong"), "", "")))
            cells = (
                Span(">", "strong") if line.here else "", line.place,
                Span(line.raw.hex(" "), "dim"), line.text,
            )  # fmt: skip
            rows.append(Row(cells, "here" if line.here else ""))
        yield Table(("", "at", f"bytes ({self.bits}-bit code)", "instruction"), "nlll", tuple(rows))
        if self.zeros >= 0:
            yield Note(f"from {self.zeros:#x} on memory is empty")


def _line(cpu: Cpu, ip: int, raw: bytes, text: str, symbols: SymbolTable | None) -> Line:
    location = None if symbols is None else symbols.lookup(code_linear(cpu, ip))
    label = location.symbol.name if location is not None and not location.offset else ""
    return Line(ip, place(cpu, ip), raw, text, ip == cpu.rip, label)
