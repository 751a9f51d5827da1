"""A page walk as a picture: the address taken apart, each entry read, and who may access the page.

The entries are `report.page_walk`'s, the verdicts the CPU's own, asked while it looks ahead: no accessed or
dirty bit is set, no TLB entry made or dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from isa.cpu import Cpu
from isa.mmu import ACCESS_FETCH, ACCESS_READ, ACCESS_WRITE
from isa.state import CR0_PG, CR0_WP, CR4_PAE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE, M32, M64
from pysim_vm.display.html import Cell, Note, Part, Picture, Row, Span, Table
from pysim_vm.report import PageWalk, access_verdict, page_walk

Fields: TypeAlias = tuple[tuple[str, int, int], ...]

ACCESSES: Final = (("read", ACCESS_READ), ("write", ACCESS_WRITE), ("fetch", ACCESS_FETCH))
# Entry -> (part of the linear address, its shift and width) for the three kinds of paging
FOUR_LEVEL: Final[Fields] = (
    ("PML4", 39, 9),
    ("directory ptr", 30, 9),
    ("directory", 21, 9),
    ("table", 12, 9),
)
PAE: Final[Fields] = (("directory ptr", 30, 2), ("directory", 21, 9), ("table", 12, 9))
TWO_LEVEL: Final[Fields] = (("directory", 22, 10), ("table", 12, 10))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one kind of access is allowed: `code` is None or the error code of the #PF, `why` its check."""

    who: str
    access: str
    code: int | None
    why: str


@dataclass(frozen=True, slots=True, repr=False)
class WalkView(Picture):
    """The translation of one linear address. `walk` has the entries, `verdicts` who may do what.

    `physical` is the guest-physical address or None, `why` the end of the walk in a sentence; `paging` is the
    kind of paging and the bits that matter for it.
    """

    walk: PageWalk
    verdicts: tuple[Verdict, ...]
    paging: str
    fields: Fields
    cr3: int

    @classmethod
    def of(cls, cpu: Cpu, linear: int) -> WalkView:
        """Walk the tables for `linear` as they are now."""
        linear &= M64 if cpu.mode64 else M32
        walk = page_walk(cpu, linear)
        verdicts = []
        if cpu.cr0 & CR0_PG and (walk.steps or walk.physical is not None):
            for user in (False, True):
                for name, access in ACCESSES:
                    fault = access_verdict(cpu, linear, access, user)
                    code, why = (None, "") if fault is None else (fault.error_code, fault.why)
                    verdicts.append(Verdict("user" if user else "supervisor", name, code, why))
        paging, fields = _paging(cpu)
        return cls(walk, tuple(verdicts), paging, fields, cpu.cr3)

    @property
    def linear(self) -> int:
        """The address that was asked for."""
        return self.walk.linear

    @property
    def physical(self) -> int | None:
        """Where it lies in guest-physical memory, or None."""
        return self.walk.physical

    @property
    def why(self) -> str:
        """The end of the walk in a sentence."""
        return self.walk.why

    def parts(self) -> Iterator[Part]:
        """A sentence, the address in its fields, the entries, the result, and who may do what."""
        yield Note(f"Page walk of {self.linear:#x}", "title")
        yield Note(self.paging)
        steps = self.walk.steps
        if steps:
            yield self._address()
            yield Table(("entry", "at", "value", ""), "nllw", tuple(self._entries()))
        yield Note(self.why + self._page_size(), "note" if self.physical is not None else "title")
        if self.verdicts and self.physical is not None:
            yield self._rights()
            for verdict in self.verdicts:
                if verdict.code is not None:
                    yield Note(f"#PF({verdict.code:#x}): {verdict.why}")

    def _used(self) -> Fields:
        """The fields that the walk used: a large page's offset takes the rest."""
        return self.fields[: len(self.walk.steps)] if self.physical is not None else self.fields

    def _address(self) -> Table:
        used = self._used()
        names = [name for name, _, _ in used]
        values = [f"{self.linear >> shift & (1 << bits) - 1:#x}" for _, shift, bits in used]
        low = used[-1][1]
        offset = f"{self.linear & (1 << low) - 1:#x}"
        ranges = [f"bits {shift + bits - 1}-{shift}" for _, shift, bits in used]
        head = ("linear address", *names, "offset")
        rows = (
            Row((Span("", "dim"), *(Span(text, "dim") for text in (*ranges, f"bits {low - 1}-0")))),
            Row((f"{self.linear:#x}", *values, offset)),
        )
        return Table(head, "l" * len(head), rows)

    def _entries(self) -> Iterator[Row]:
        yield Row(("CR3", "", f"{self.cr3:#x}", Span("the root of the tables", "dim")))
        for number, step in enumerate(self.walk.steps):
            last = number == len(self.walk.steps) - 1
            failed = last and self.physical is None
            value: Cell
            if step.value is None:
                value = Span("no RAM there", "bad")
            else:
                value = Span(f"{step.value:#x}", "bad" if failed else "")
            yield Row((step.level, f"{step.address:#x}", value, step.words))

    def _page_size(self) -> str:
        if self.physical is None or not self.walk.steps:
            return ""
        shift = self._used()[-1][1]
        return f", in a page of {_SIZES[shift]}"

    def _rights(self) -> Table:
        rows = []
        for who in ("supervisor", "user"):
            cells: list[Cell] = [who]
            for verdict in self.verdicts:
                if verdict.who == who:
                    refused = verdict.code is not None
                    cells.append(Span(f"#PF({verdict.code:#x})", "bad") if refused else "allowed")
            rows.append(Row(tuple(cells)))
        return Table(("", *(name for name, _ in ACCESSES)), "nlll", tuple(rows))


_SIZES: Final = {12: "4 KiB", 21: "2 MiB", 22: "4 MiB", 30: "1 GiB"}


def _paging(cpu: Cpu) -> tuple[str, Fields]:
    """The kind of paging with the bits that decide about accesses, and the fields of a linear address."""
    if not cpu.cr0 & CR0_PG:
        return f"{cpu.mode_name()} mode, CR0.PG = 0", ()
    if cpu.efer & EFER_LMA:
        kind, fields = "4-level paging", FOUR_LEVEL
    elif cpu.cr4 & CR4_PAE:
        kind, fields = "PAE paging", PAE
    else:
        kind, fields = "32-bit paging", TWO_LEVEL
    bits = (
        ("CR0.WP", cpu.cr0 & CR0_WP), ("CR4.SMEP", cpu.cr4 & CR4_SMEP), ("CR4.SMAP", cpu.cr4 & CR4_SMAP),
        ("EFER.NXE", cpu.efer & EFER_NXE),
    )  # fmt: skip
    return f"{kind}, " + ", ".join(f"{name} = {int(bool(value))}" for name, value in bits), fields
