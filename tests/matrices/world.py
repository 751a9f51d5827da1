"""The guest that matrices run in: descriptor tables, handlers, stacks and code at fixed places. No case of
its own.

Every vector has a gate to its own handler, so that RIP tells which exception was delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from isa.exits import Budget
from tests.matrices.bench import FILLER, LEAD, Bench
from tests.matrices.model_exceptions import execute, interrupt
from tests.matrices.spec import ET, LMA, LME, M16, M32, NE, PAE, PE, PG, SCE, VM, Machine, Seg

RAM = 0x1_0000
GDT, LDT, IDT, TSS, TSS2 = 0x1000, 0x1800, 0x2000, 0x3000, 0x3400
GDT_LIMIT, LDT_LIMIT, TSS_LIMIT = 0x1FF, 0xFF, 0x87
STACK_TOP = (0x5000, 0x5800, 0x6000)  # (E)SP0-2 or RSP0-2 of the TSS
IST_TOP = (0x6400, 0x6600, 0x6800, 0x6900, 0x6A00, 0x6B00, 0x6C00)
STACK = 0x7800  # where (E)SP of the code under test begins
CODE, CODE_END = 0x8000, 0xA000  # snippets of 32 bytes
HANDLER = 0xA000  # 16 bytes for each vector
DATA = 0xC000  # what the code under test may use
SLOTS = 32

CODE_SELECTOR = (0x08, 0x19, 0x2A, 0x3B)  # of each level, RPL included; 64-bit code in IA-32e mode
DATA_SELECTOR = (0x10, 0x21, 0x32, 0x43)
TSS_SELECTOR, LDT_SELECTOR, TSS2_SELECTOR = 0x48, 0x58, 0x68  # 16 bytes each
SLOT, SLOT2, SLOT3 = 0x80, 0x90, 0xA0  # for descriptors under test
CODE32_SELECTOR = (0xB0, 0xB9, 0xC2, 0xCB)  # 32-bit code in either mode
CODE16_SELECTOR = (0xD0, 0xD9, 0xE2, 0xEB)
DATA16_SELECTOR = (0xF0, 0xF9, 0x102, 0x10B)

MODES = ("real", "v86", "16", "32", "compat", "64")
BITS = {"real": 16, "v86": 16, "16": 16, "32": 32, "compat": 32, "64": 64}


def descriptor(
    kind: int, dpl: int = 0, *, base: int = 0, limit: int = M32, present: int = 1, flags: int = 0xC
) -> int:
    """Eight bytes: `kind` is S and type, `flags` G D/B L AVL, `limit` in bytes."""
    if flags & 8:
        limit >>= 12
    access = kind | dpl << 5 | present << 7
    return (
        limit & M16 | (base & 0xFF_FFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52
        | (base >> 24 & 0xFF) << 56
    )  # fmt: skip


def gate(kind: int, selector: int, offset: int, *, dpl: int = 0, present: int = 1, count: int = 0) -> int:
    """Eight bytes; `count` is the number of parameters or the IST field."""
    return (
        offset & M16 | selector << 16 | count << 32 | (kind | dpl << 5 | present << 7) << 40
        | (offset >> 16 & M16) << 48
    )  # fmt: skip


def seg_of(selector: int, raw: int) -> Seg:
    """What loading a descriptor gives."""
    field = raw & M16 | raw >> 32 & 0xF_0000
    limit = field << 12 | 0xFFF if raw >> 55 & 1 else field
    return Seg(selector, raw >> 16 & 0xFF_FFFF | (raw >> 56) << 24, limit, raw >> 40 & 0xF0FF)


class Result(NamedTuple):
    """`kind` is "" or what the model met first, `handler` the vector whose handler it ended at (-1: none);
    `difference` is what the Cpu did otherwise."""

    kind: str
    handler: int
    difference: str


class World:
    """Machines of each mode and level with everything in place; code is put where asked, once."""

    def __init__(self, ram: int = RAM) -> None:
        self.ram = ram
        self.templates: dict[tuple[str, int], Machine] = {}
        self.snippets: dict[bytes, int] = {}
        self.text = bytearray(CODE_END - CODE)

    # ---- code ------------------------------------------------------------------------------------------

    def place(self, raw: bytes) -> int:
        """Linear address of the instruction: behind its NOPs, with HLT after it."""
        at = self.snippets.get(raw)
        if at is None:
            n = len(self.snippets)
            if CODE + (n + 1) * SLOTS > CODE_END:  # begin again: the bench sees that the text has changed
                self.snippets.clear()
                n = 0
            at = CODE + n * SLOTS + LEAD
            self.snippets[raw] = at
            body = FILLER + raw + b"\xf4"
            self.text[n * SLOTS : n * SLOTS + len(body)] = body
        return at

    def check(
        self, bench: Bench, start: Machine, raw: bytes, instruction: Callable[[Machine], None],
        count: int = 1, vector: int | None = None, at: int | None = None, length: int = 0,
    ) -> Result:  # fmt: skip
        """Run `raw` on the bench and `instruction` in the model, from the same start.

        `at` is where `length` bytes of code lie that the start has in its RAM already. `count` 0 retires as
        many as the model did. `vector` is an external interrupt (2: an NMI) that is pending and comes first.
        """
        code = slice(CODE, CODE_END)
        if at is None:
            linear = self.place(raw)
            start.rip = linear - (0 if start.mode64 else start.cs.base)
            start.mem[code] = self.text
        else:
            start.rip, code = at, slice(0, self.ram)
        expected = start.copy()
        if vector is None:
            kind = execute(expected, instruction, length or len(raw))
        else:
            kind = interrupt(expected, vector)
        bench.load(start, code)
        if vector is not None:
            bench.pend(vector)
        reason = bench.run(count or expected.retired)
        if kind == "endless":  # what a CPU does then cannot be seen; this one has to come back
            return Result(kind, -1, "" if isinstance(reason, Budget) else f"exit {reason}")
        handler = -1
        if kind != "shutdown" and HANDLER <= expected.rip < HANDLER + 0x1000:
            handler = expected.rip - HANDLER >> 4
        return Result(kind, handler, bench.difference(expected, reason, kind == "shutdown"))

    # ---- machines --------------------------------------------------------------------------------------

    def machine(self, mode: str, level: int = 0) -> Machine:
        """A fresh machine; its RAM may be changed."""
        key = mode, level
        if key not in self.templates:
            self.templates[key] = self._build(mode, level)
        return self.templates[key].copy()

    def _build(self, mode: str, level: int) -> Machine:
        m = Machine(self.ram)
        for n, name in enumerate(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")):
            m.set(**{name: 0x1111_1111 * (n + 1)})
        for n in range(8, 16):
            m.set(**{f"r{n}": 0x0101_0101_0101_0101 * n})
        if mode != "64":
            for n in range(8, 16):
                m.set(**{f"r{n}": 0})
        m.rsp = STACK
        m.rflags = 2
        m.cr0 = ET | NE
        if mode == "real":
            m.cs = Seg(CODE >> 4, CODE, M16, 0x93)
            for name in ("ds", "es", "ss", "fs", "gs"):
                m.set(**{name: Seg(0, 0, M16, 0x93)})
            m.idtr = IDT, 0x3FF
            for vector in range(256):
                m.put(IDT + 4 * vector, 4, HANDLER - 0x1000 + 16 * vector | 0x100 << 16)
            return m
        m.cr0 |= PE
        long = mode in ("64", "compat")
        if long:
            m.efer = LME | LMA | SCE
        for n in range(4):
            m.put(GDT + (CODE_SELECTOR[n] & ~7), 8, descriptor(0x1B, n, flags=0xA if long else 0xC))
            m.put(GDT + (DATA_SELECTOR[n] & ~7), 8, descriptor(0x13, n))
            m.put(GDT + (CODE32_SELECTOR[n] & ~7), 8, descriptor(0x1B, n, flags=0xC))
            m.put(GDT + (CODE16_SELECTOR[n] & ~7), 8, descriptor(0x1B, n, limit=M16, flags=0))
            m.put(GDT + (DATA16_SELECTOR[n] & ~7), 8, descriptor(0x13, n, limit=M16, flags=0))
        m.put(GDT + TSS_SELECTOR, 8, descriptor(0x0B, base=TSS, limit=TSS_LIMIT, flags=0))
        m.put(GDT + LDT_SELECTOR, 8, descriptor(2, base=LDT, limit=LDT_LIMIT, flags=0))
        m.put(GDT + TSS2_SELECTOR, 8, descriptor(9, base=TSS2, limit=TSS_LIMIT, flags=0))
        m.gdtr = GDT, GDT_LIMIT
        m.ldtr = Seg(LDT_SELECTOR, LDT, LDT_LIMIT, 0x82)
        m.tr = Seg(TSS_SELECTOR, TSS, TSS_LIMIT, 0x8B)
        m.idtr = IDT, 256 * (16 if long else 8) - 1
        for vector in range(256):
            if long:
                ist = 1 if vector in (8, 10, 11, 12, 13, 14) else 0
                m.put(IDT + 16 * vector, 16, gate(14, CODE_SELECTOR[0], HANDLER + 16 * vector, count=ist))
            else:
                m.put(IDT + 8 * vector, 8, gate(14, CODE_SELECTOR[0], HANDLER + 16 * vector))
        for n, top in enumerate(STACK_TOP):
            if long:
                m.put(TSS + 4 + 8 * n, 8, top)
            else:
                m.put(TSS + 4 + 8 * n, 4, top)
                m.put(TSS + 8 + 8 * n, 2, DATA_SELECTOR[n])
        if long:
            for n, top in enumerate(IST_TOP):
                m.put(TSS + 0x24 + 8 * n, 8, top)
        m.put(TSS + 0x66, 2, TSS_LIMIT + 1)  # no I/O permission bit map
        self._enter(m, mode, level)
        return m

    def _enter(self, m: Machine, mode: str, level: int) -> None:
        """CS, SS and data segments of the level."""
        if mode == "v86":
            m.rflags |= VM
            m.cpl = 3
            m.cs = Seg(CODE >> 4, CODE, M16, 0xF3)
            for name in ("ds", "es", "ss", "fs", "gs"):
                m.set(**{name: Seg(0, 0, M16, 0xF3)})
            return
        m.cpl = level
        selector = {"16": CODE16_SELECTOR, "compat": CODE32_SELECTOR}.get(mode, CODE_SELECTOR)[level]
        data = (DATA16_SELECTOR if mode == "16" else DATA_SELECTOR)[level]
        m.cs = seg_of(selector, m.get(GDT + (selector & ~7), 8))
        for name in ("ds", "es", "ss", "fs", "gs"):
            m.set(**{name: seg_of(data, m.get(GDT + (data & ~7), 8))})


# ---- paging ------------------------------------------------------------------------------------------------

PAGE = 4096
FLAGS = 0x67  # P, R/W, U/S, A, D


def identity_paging(m: Machine, tables: int, *, pae: bool = False) -> None:
    """Switch paging on: RAM onto itself, everything allowed, accessed and dirty already.

    Uses the pages from `tables` on: two with 32-bit paging, three with PAE paging, four with 4-level paging.
    """
    pages = len(m.mem) // PAGE
    m.cr3 = tables
    m.cr0 |= PG
    if not m.long and not pae:
        m.put(tables, 4, tables + PAGE | FLAGS)
        for n in range(pages):
            m.put(tables + PAGE + 4 * n, 4, n * PAGE | FLAGS)
        return
    m.cr4 |= PAE
    levels = 3 if m.long else 2
    for level in range(levels):
        m.put(tables + level * PAGE, 8, tables + (level + 1) * PAGE | (FLAGS if m.long or level else 1))
    for n in range(pages):
        m.put(tables + levels * PAGE + 8 * n, 8, n * PAGE | FLAGS)
    if not m.long:
        m.pdptes = (tables + PAGE | 1, 0, 0, 0)


def map_page(m: Machine, tables: int, linear: int, *, clear: int = 0) -> None:
    """Take the bits `clear` away from the page that `identity_paging` mapped at `linear`."""
    wide = bool(m.cr4 & PAE)
    at = tables + (3 if m.long else 2 if wide else 1) * PAGE + linear // PAGE * (8 if wide else 4)
    m.mem[at] &= ~clear
