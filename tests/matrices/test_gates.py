"""Interrupt, trap and task gates: every gate, every handler segment, every stack that a TSS may name.

What is delivered comes from INT n, INT3, INTO, INT1, a fault with and without error code, an external
interrupt and an NMI.
"""

from __future__ import annotations

import pytest

from tests.matrices.model_gates import INT1, INT3, INT_N, INTO, software_interrupt
from tests.matrices.model_segments import load_sreg
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import (
    AC,
    GP,
    IF,
    IOPL,
    M16,
    M32,
    NT,
    OF,
    TF,
    UD,
    VIF,
    VME,
    Fault,
    Machine,
)
from tests.matrices.test_far import INNER_STACKS, TASK_FAULTS, new_stack, write_task
from tests.matrices.world import (
    DATA_SELECTOR,
    GDT,
    IDT,
    LDT,
    SLOT,
    STACK,
    TSS,
    TSS2_SELECTOR,
    World,
    descriptor,
    gate,
)

ENTRY = 0x4320  # where the gate under test leads
PROTECTED = ("16", "32", "compat", "64", "v86")
SOURCES = ("int n", "int3", "into", "int1", "#UD", "#GP", "external", "nmi")
VECTOR = {"int n": 0x41, "int3": 3, "into": 4, "int1": 1, "#UD": 6, "#GP": 13, "external": 0x41, "nmi": 2}
FLAGS = 0xCD5 | IF | TF | NT | AC  # all of the program's


def source(m: Machine, mode: str, what: str) -> Case | None:
    """The event that goes through the gate."""
    vector = VECTOR[what]
    match what:
        case "int n":
            return Case(m, b"\xcd\x41", lambda m: software_interrupt(m, vector, INT_N))
        case "int3":
            return Case(m, b"\xcc", lambda m: software_interrupt(m, vector, INT3))
        case "int1":
            return Case(m, b"\xf1", lambda m: software_interrupt(m, vector, INT1))
        case "into":
            if mode == "64":
                return None
            m.rflags |= OF
            return Case(m, b"\xce", lambda m: software_interrupt(m, vector, INTO))
        case "#UD":
            return Case(m, b"\x0f\x0b", undefined)
        case "#GP":
            if mode == "v86":  # HLT is sensitive there
                return Case(m, b"\xf4", protection)
            m.rax = m.rax & ~M16 | 0x200
            return Case(m, b"\x8e\xd8", lambda m: load_sreg(m, "ds", 0x200))
    m.rflags = m.rflags & ~TF | IF
    return Case(m, b"\x90", lambda m: None, interrupt=vector)


def undefined(m: Machine) -> None:
    """UD2"""
    raise Fault(UD)


def protection(m: Machine) -> None:
    """HLT outside of ring 0"""
    raise Fault(GP, 0)


def set_gate(m: Machine, vector: int, raw: int) -> None:
    """Write an IDT entry; `raw` is 16 bytes in IA-32e mode."""
    if m.long:
        m.put(IDT + 16 * vector, 16, raw)
    else:
        m.put(IDT + 8 * vector, 8, raw & (1 << 64) - 1)


def moot(c: Combination) -> tuple[str, ...]:
    """Virtual-8086 mode has one level, IST is IA-32e mode's; of a gate that is not reached nothing counts."""
    long, v86 = c["mode"] in ("compat", "64"), c["mode"] == "v86"
    found: tuple[str, ...] = ("cpl",) if v86 else ()
    if not long and c["stack"] == "fine":
        found = (*found, "ist")
    if c["limit"]:
        return (*found, "gate", "kind", "dpl", "entry", "target", "target rpl", "ist")
    if c["target"] in ("null", "outside"):
        found = (*found, "kind", "dpl", "entry")
    same_stack = not v86 and c["cpl"] <= c["dpl"] and not (long and c["ist"])
    return (*found, "stack") if same_stack else found


def through_gate(world: World, c: Combination) -> Case | None:
    """A gate with any type to a code segment of any type."""
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    if mode == "v86":
        m.rflags |= IOPL
    m.rflags |= FLAGS if c["flags"] else 0
    if c["source"] in ("#UD", "#GP"):
        m.rflags &= ~TF  # a trap flag would be looked at before the next instruction, not in this one
    case = source(m, mode, c["source"])
    if case is None:
        return None
    entry = {"plain": ENTRY, "limit": ENTRY, "high": 0x8000_0000_0000 if m.long else 0x1_4320}[c["entry"]]
    selector = {"slot": SLOT, "ldt": SLOT | 4, "null": 0, "outside": 0x200}[c["target"]] | c["target rpl"]
    raw = gate(c["gate"], selector, entry & M32, dpl=c["gate dpl"], present=c["gate present"], count=c["ist"])
    set_gate(m, VECTOR[c["source"]], raw | entry >> 32 << 64)
    flags = c["code flags"] if c["code flags"] != "native" else 0xA if m.long else 0xC
    limit = ENTRY - 1 if c["entry"] == "limit" else M32
    for table in (GDT, LDT):
        m.put(
            table + SLOT, 8, descriptor(c["kind"], c["dpl"], limit=limit, present=c["present"], flags=flags)
        )
    if m.cpl != c["dpl"] or c["stack"] in ("tss limit", "tss 16 limit"):
        new_stack(m, c["dpl"], c["stack"], m.long)
    if m.long and c["ist"]:
        at = TSS + 28 + 8 * c["ist"]
        if c["stack"] == "no room":
            m.put(at, 8, 0x8000_0000_0020)
        elif c["stack"] == "tss limit":
            m.tr = m.tr._replace(limit=28 + 8 * c["ist"] + 6)
        elif c["stack"] == "expand-down":
            m.put(at, 8, m.get(at, 8) + 7)
    if c["limit"]:
        size = 16 if m.long else 8
        m.idtr = IDT, size * VECTOR[c["source"]] + size - 1 - c["limit"]
    if c["odd"]:
        m.rsp -= 3
    return case


def through_task_gate(world: World, c: Combination) -> Case | None:
    """A task gate, with every way in which the new task can be wrong."""
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    if mode == "v86":
        m.rflags |= IOPL
    case = source(m, mode, c["source"])
    if case is None:
        return None
    write_task(m, c["what"], c["wide"], c["level"])
    named = {"tss": TSS2_SELECTOR, "null": 0, "ldt": TSS2_SELECTOR | 4, "outside": 0x200,
             "data": DATA_SELECTOR[0]}[c["names"]]  # fmt: skip
    vector = VECTOR[c["source"]]
    set_gate(m, vector, gate(5, named, 0, dpl=c["gate dpl"], present=c["gate present"]))
    return case


def real_mode(world: World, c: Combination) -> Case | None:
    """The interrupt vector table: its limit, the stack's wrap-around, the flags cleared."""
    m = world.machine("real")
    m.rflags |= FLAGS if c["flags"] else 0
    if c["source"] in ("#UD", "#GP"):
        m.rflags &= ~TF
    case = source(m, "real", c["source"])
    if case is None or c["source"] == "#GP":
        return None
    vector = VECTOR[c["source"]]
    m.put(IDT + 4 * vector, 4, c["entry"])
    if c["limit"]:
        m.idtr = IDT, 4 * vector + 3 - c["limit"]
    m.rsp = {"plain": STACK, "0": 0, "1": 1, "2": 2, "5": 5, "6": 6, "high": 0x1_2345_7800}[c["sp"]]
    return case


def vme(world: World, c: Combination) -> Case | None:
    """INT n in virtual-8086 mode: IOPL, VME, the redirection bit map and where it lies."""
    m = world.machine("v86")
    m.rflags |= c["iopl"] << 12 | (VIF if c["vif"] else 0) | (IF if c["if"] else 0)
    m.cr4 |= VME if c["vme"] else 0
    vector = 0x41
    m.put(0x41 * 4, 4, 0x0123_4567)
    base = {"inside": 0xA0, "low": 0x68, "none": 0xFFFF, "under": 10}[c["map"]]
    m.put(TSS + 0x66, 2, base)
    limit = {"wide": 0x200, "exact": base - 32 + vector // 8, "short": base - 33 + vector // 8, "tiny": 0x66}[
        c["limit"]
    ]
    m.tr = m.tr._replace(limit=min(max(limit, 0), 0x200), attributes=0x83 if c["tss16"] else 0x8B)
    if base < 0x200 and base >= 32:
        m.put(TSS + base - 32 + vector // 8, 1, c["bits"])
    if c["source"] == "int3":
        m.put(IDT + 8 * 3, 8, gate(14, 8, ENTRY, dpl=3))
        return Case(m, b"\xcc", lambda m: software_interrupt(m, 3, INT3))
    m.put(IDT + 8 * vector, 8, gate(c["gate"], 8, ENTRY, dpl=3))
    m.rsp = c["sp"]
    return Case(m, b"\xcd\x41", lambda m: software_interrupt(m, vector, INT_N))


FEW = ("int n", "#UD", "#GP", "external")
GATES = Matrix(
    "interrupt and trap gates",
    (
        Space("gates", mode=PROTECTED, source=SOURCES, gate=range(32), cpl=range(4), kind=(0x1A,), dpl=(0,),
              present=(1,), entry=("plain",), target=("slot",), stack=("fine",), ist=(0,), limit=(0,),
              odd=(0,), flags=(0,),
              **{"gate dpl": range(4), "gate present": (1, 0), "target rpl": (0,),
                 "code flags": ("native",)}),
        Space("handlers", moot, mode=PROTECTED, source=FEW, gate=(14, 7), cpl=range(4), kind=range(32),
              dpl=range(4), present=(1, 0), entry=("plain",), target=("slot",), stack=("fine",), ist=(0,),
              limit=(0,), odd=(0,), flags=(0,),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (3,),
                 "code flags": ("native", 4, 0xA, 6)}),
        Space("frames", moot, mode=PROTECTED, source=FEW, gate=(6, 7, 14, 15), cpl=range(4), kind=(0x1A,
              0x1F), dpl=(0, 3), present=(1,), entry=("plain", "limit", "high"),
              target=("slot", "slot", "slot", "ldt", "null", "outside"), stack=("fine",), ist=(0, 3),
              limit=(0, 0, 0, 1), odd=(0, 1), flags=(0, 1),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (0, 3), "code flags": ("native",)}),
        Space("stacks", moot, mode=PROTECTED, source=FEW, gate=(6, 7, 14, 15), cpl=range(4), kind=(0x1A,),
              dpl=(0, 0, 1, 2), present=(1,), entry=("plain", "limit"), target=("slot",),
              stack=INNER_STACKS, ist=(0, 0, 1, 7), limit=(0,), odd=(0, 1), flags=(0,),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (0,), "code flags": ("native",)}),
        Space("inward", moot, mode=PROTECTED, source=SOURCES, gate=(14, 15, 6, 7), cpl=(3, 2, 1),
              kind=(0x1A,),
              dpl=(0,), present=(1,), entry=("plain", "plain", "limit", "high"), target=("slot",),
              stack=INNER_STACKS, ist=(0, 0, 1), limit=(0,), odd=(0,), flags=(0, 1),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (0,), "code flags": ("native",)}),
    ),
    through_gate,
    1200,
)  # fmt: skip
TASK_GATES = Matrix(
    "task gates",
    (
        Space("by state", mode=("32", "16", "v86"), source=SOURCES, cpl=(0, 3), wide=(True, False),
              level=(0, 3), what=TASK_FAULTS, names=("tss",), **{"gate dpl": (3,), "gate present": (1,)}),
        Space("by gate", mode=("32", "16", "v86", "64", "compat"), source=SOURCES, cpl=range(4),
              wide=(True,), level=(0,), what=("none",), names=("tss", "null", "ldt", "outside", "data"),
              **{"gate dpl": range(4), "gate present": (1, 0)}),
    ),
    through_task_gate,
    1200,
)  # fmt: skip
REAL = Matrix(
    "the interrupt vector table",
    (
        Space("by stack", mode=("real",), source=SOURCES, entry=(0, 0x2000_0123, 0xFFFF_FFFF),
              limit=(0, 1, 3, 4), sp=("plain", "0", "1", "2", "5", "6", "high"), flags=(0, 1)),
    ),
    real_mode,
    700,
)  # fmt: skip
VIRTUAL = Matrix(
    "INT n in virtual-8086 mode",
    (
        Space("by map", mode=("v86",), source=("int n", "int n", "int3"), iopl=range(4), vme=(0, 1, 1),
              bits=(0, 2, 0xFD, 0xFF), map=("inside", "low", "none", "under"),
              limit=("wide", "exact", "short", "tiny"), tss16=(0, 0, 1), vif=(0, 1), gate=(14, 15),
              sp=(0x7800, 2, 1), **{"if": (0, 1)}),
    ),
    vme,
    1500,
)  # fmt: skip

MATRICES = (GATES, TASK_GATES, REAL, VIRTUAL)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_delivery_through_gates_follows_the_manual(blocks: bool) -> None:
    outcomes = ("done", "#GP", "#NP", "#SS", "#TS", "#UD")
    verify(GATES, *outcomes, blocks=blocks)


def test_task_gates_follow_the_manual() -> None:
    verify(TASK_GATES, "done", "#GP", "#NP", "#SS", "#TS", "#UD")


def test_the_interrupt_vector_table_follows_the_manual() -> None:
    verify(REAL, "done", "#GP", "#UD")


def test_software_interrupts_in_virtual_8086_mode_follow_the_manual() -> None:
    verify(VIRTUAL, "done", "#GP")
