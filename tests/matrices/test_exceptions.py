"""The double fault table from real causes: every exception, then a fault in its delivery, in that of the
second and in that of the double fault.

SDM Vol. 3, "Double Fault Exception (#DF)". First causes are instructions that fault, events that do not;
later ones are what a kernel can get wrong: gates, handler segments, TSS, stacks, pages.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.matrices import model_paging as paging
from tests.matrices.model_gates import INT3, INT_N, software_interrupt
from tests.matrices.model_iret import iret
from tests.matrices.model_segments import linear_address, load_sreg
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import (
    AC,
    ACF,
    AM,
    BR,
    DB,
    DE_VECTOR,
    GP,
    IF,
    M16,
    MF,
    NM,
    NP,
    NT,
    OSFXSR,
    OSXMMEXCPT,
    PFAULT,
    SS,
    TS,
    TSF,
    UD,
    XM,
    Fault,
    Machine,
)
from tests.matrices.test_gates import set_gate
from tests.matrices.world import (
    DATA,
    DATA_SELECTOR,
    GDT,
    HANDLER,
    SLOT,
    STACK_TOP,
    TSS,
    World,
    descriptor,
    gate,
    identity_paging,
    map_page,
)

RAM = 0x1_8000
TABLES = 0x1_0000
MISSING, MISSING_LDT, GOOD = 0xD000, 0xE000, 0xF800  # a page without P, the LDT's own page, a stack

ABSENT_DATA = SLOT + 0x70  # a descriptor without P


# ---- first causes ------------------------------------------------------------------------------------------

Cause = tuple[int, bytes, Callable[[Machine], None]]


def raises(vector: int, error: int | None = None) -> Callable[[Machine], None]:
    """A model that always faults."""

    def instruction(m: Machine) -> None:
        raise Fault(vector, error)

    return instruction


def load_eax(address: int) -> Callable[[Machine], None]:
    """MOV EAX, [address]"""

    def instruction(m: Machine) -> None:
        at = linear_address(m, "ds", address, 4, write=False)
        if m.cpl == 3 and m.rflags & AC and m.cr0 & AM and address % 4:
            raise Fault(ACF, 0)
        m.rax = paging.load(m, at, 4)

    return instruction


def debug_registers(m: Machine) -> None:
    """MOV EAX, DR0 with DR7.GD"""
    if m.cpl:
        raise Fault(GP, 0)
    raise Fault(DB, dr6=1 << 13)


def invalid_root(m: Machine) -> None:
    """SQRTSS XMM0, XMM0 of -1 with #I unmasked"""
    m.mxcsr |= 1
    raise Fault(XM)


def mov_absolute(mode: str, address: int) -> bytes:
    """MOV EAX, [address]"""
    return (b"\x8b\x04\x25" if mode == "64" else b"\x8b\x05") + address.to_bytes(4, "little")


def prepare(m: Machine, mode: str, what: str) -> Cause | None:
    """Vector, bytes and model of a first cause; what it needs is set up in `m`."""
    match what:
        case "#DE":
            m.rcx = 0
            return DE_VECTOR, b"\xf7\xf1", raises(DE_VECTOR)
        case "#DB":
            m.dr7 |= 1 << 13
            if m.cpl:
                return GP, b"\x0f\x21\xc0", debug_registers
            return DB, b"\x0f\x21\xc0", debug_registers
        case "#BR":
            m.put(DATA, 8, 0x10_0000_0000)
            m.rcx = 0x1234
            return None if mode == "64" else (BR, b"\x62\x0d" + DATA.to_bytes(4, "little"), raises(BR))
        case "#UD":
            return UD, b"\x0f\x0b", raises(UD)
        case "#NM":
            m.cr0 |= TS
            return NM, b"\xd9\xd0", raises(NM)
        case "#TS":
            if mode == "64":
                return None
            m.rflags |= NT
            return TSF, b"\xcf", lambda m: iret(m, 4)
        case "#NP":
            m.rax = m.rax & ~M16 | ABSENT_DATA | 3
            return NP, b"\x8e\xd8", lambda m: load_sreg(m, "ds", ABSENT_DATA | 3)
        case "#SS":
            selector = ABSENT_DATA + 8 | m.cpl
            m.put(GDT + ABSENT_DATA + 8, 8, descriptor(0x13, m.cpl, present=0))
            m.rax = m.rax & ~M16 | selector
            return SS, b"\x8e\xd0", lambda m: load_sreg(m, "ss", selector)
        case "#GP":
            m.rax = m.rax & ~M16 | 0x200
            return GP, b"\x8e\xd8", lambda m: load_sreg(m, "ds", 0x200)
        case "#PF":
            return PFAULT, mov_absolute(mode, MISSING + 8), load_eax(MISSING + 8)
        case "#MF":
            m.x87_error = True
            return MF, b"\x9b", raises(MF)
        case "#AC":
            m.rflags |= AC
            m.cr0 |= AM
            if m.cpl != 3:
                return None
            return ACF, mov_absolute(mode, DATA + 1), load_eax(DATA + 1)
        case "#XM":
            m.xmm0, m.mxcsr = 0xBF80_0000, 0x1F00
            m.cr4 |= OSFXSR | OSXMMEXCPT
            return XM, b"\xf3\x0f\x51\xc0", invalid_root
        case "INT n":
            return 0x41, b"\xcd\x41", lambda m: software_interrupt(m, 0x41, INT_N)
        case "INT3":
            return 3, b"\xcc", lambda m: software_interrupt(m, 3, INT3)
    raise ValueError(what)


FIRST = ("#DE", "#DB", "#BR", "#UD", "#NM", "#TS", "#NP", "#SS", "#GP", "#PF", "#MF", "#AC", "#XM", "INT n",
         "INT3", "external", "nmi")  # fmt: skip

# ---- what is wrong with a delivery -------------------------------------------------------------------------

WRONG = ("fine", "gate absent", "gate type", "code absent", "code null", "code data", "code outside",
         "code page", "entry", "stack absent", "stack rpl", "stack null", "stack page", "stack read-only",
         "no room", "misaligned")  # fmt: skip
ROLES = (0, 1, 2)  # the first exception, what comes in its delivery, the double fault
STACK_LEVEL = (1, 2, 0)  # whose TSS stack the handler of each role uses, outside of IA-32e mode
IST = (7, 6, 5)


def spoil(m: Machine, role: int, vectors: tuple[int, ...], wrong: str) -> None:
    """Make the delivery of `vectors` go wrong."""
    level = STACK_LEVEL[role]
    selector = SLOT + 0x10 * role
    kind, present, limit = 0x1B, 1, 0xFFFF_FFFF
    inner = wrong.startswith("stack") or wrong == "no room"
    dpl = level if inner and not m.long else 0
    named, ist = selector, IST[role] if m.long else 0
    match wrong:
        case "code absent":
            present = 0
        case "code null":
            named = 0
        case "code data":
            kind = 0x13
        case "code outside":
            named = 0x200
        case "code page":
            named = selector | 4
        case "entry":
            limit = 0xFFF
        case "misaligned":
            kind = 0x1F  # conforming: the handler runs at the old level and on the old stack
            ist = 0
    flags = 0xA if m.long else 0xC
    m.put(GDT + selector, 8, descriptor(kind, dpl, present=present, limit=limit, flags=flags))
    gate_kind = 0x0C if wrong == "gate type" else 14
    for vector in vectors:
        entry = 0x8000_0000_0000 if wrong == "entry" and m.long else HANDLER + 16 * vector
        raw = gate(gate_kind, named, entry & 0xFFFF_FFFF, dpl=3, present=wrong != "gate absent", count=ist)
        set_gate(m, vector, raw | entry >> 32 << 64)
    if m.long:
        tops = {
            "stack page": MISSING + 0x800, "stack read-only": 0xB800, "no room": 0x8000_0000_0020,
            "stack null": 0, "stack absent": 0x8000_0000_0000, "stack rpl": 0xFFFF_8000_0000_0010,
        }  # fmt: skip
        m.put(TSS + 28 + 8 * IST[role], 8, tops.get(wrong, GOOD - 0x100 * role))
        return
    if inner:
        ss, sp = DATA_SELECTOR[level], STACK_TOP[level]
        if wrong == "stack absent":
            ss = SLOT + 0x40 + 8 * role | level
            m.put(GDT + (ss & ~7), 8, descriptor(0x13, level, present=0))
        elif wrong == "stack rpl":
            ss ^= 1
        elif wrong == "stack null":
            ss = 0
        elif wrong == "stack page":
            sp = MISSING + 0x800
        elif wrong == "stack read-only":
            sp = 0xB800
        elif wrong == "no room":
            ss = SLOT + 0x40 + 8 * role | level
            m.put(GDT + (ss & ~7), 8, descriptor(0x13, level, limit=0x7FF, flags=4))
        m.put(TSS + 4 + 8 * level, 4, sp)
        m.put(TSS + 8 + 8 * level, 2, ss)


def moot(c: Combination) -> tuple[str, ...]:
    """A delivery that does not come."""
    return ("second", "double") if c["delivery"] == "fine" else ("double",) if c["second"] == "fine" else ()


def pair(world: World, c: Combination) -> Case | None:
    """A first cause, and what is wrong with each delivery."""
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    identity_paging(m, TABLES)
    m.cr0 |= 1 << 16  # WP
    map_page(m, TABLES, MISSING, clear=1)
    map_page(m, TABLES, MISSING_LDT, clear=1)
    map_page(m, TABLES, 0xB000, clear=2)
    m.put(GDT + ABSENT_DATA, 8, descriptor(0x13, 3, present=0))
    m.ldtr = m.ldtr._replace(base=MISSING_LDT)
    if c["first"] in ("external", "nmi"):
        m.rflags |= IF
        vector = 0x41 if c["first"] == "external" else 2
        case = Case(m, b"\x90", lambda m: None, interrupt=vector)
    else:
        cause = prepare(m, mode, c["first"])
        if cause is None:
            return None
        vector, raw, instruction = cause
        case = Case(m, raw, instruction)
    spoil(m, 1, tuple(v for v in (TSF, NP, SS, GP, PFAULT, ACF) if v != vector), c["second"])
    spoil(m, 2, (8,), c["double"])
    spoil(m, 0, (vector,), c["delivery"])
    if "misaligned" in (c["delivery"], c["second"], c["double"]):
        m.rflags |= AC
        m.cr0 |= AM
        m.rsp -= 2
    return case


PAIRS = Matrix(
    "exception pairs",
    (
        Space("first and second", mode=("32", "64"), cpl=(3, 0), first=FIRST, delivery=WRONG,
              second=("fine",), double=("fine",)),
        Space("three in a row", moot, mode=("32", "64"), cpl=(3, 3, 0), first=FIRST, delivery=WRONG,
              second=WRONG, double=("fine", "fine", *WRONG)),
        Space("double faults", mode=("32", "64"), cpl=(3,), first=("#DE", "#NP", "#SS", "#GP", "#PF"),
              delivery=WRONG[1:], second=("fine",), double=WRONG),
    ),
    pair,
    1800,
    RAM,
)  # fmt: skip

MATRICES = (PAIRS,)
HANDLERS = ("#DE", "#DB", "#UD", "#NM", "#DF", "#TS", "#NP", "#SS", "#GP", "#PF", "#MF", "#AC", "#XM")


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_pairs_of_exceptions_are_serial_double_or_the_end_as_the_table_says(blocks: bool) -> None:
    handlers = [f"{name} handler" for name in HANDLERS]
    if blocks:
        handlers.remove("#TS handler")
    verify(PAIRS, "shutdown", *handlers, blocks=blocks)
