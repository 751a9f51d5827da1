"""Far JMP, CALL and RET: code segments, call gates, task gates and TSSs, every level, every failing check."""

from __future__ import annotations

import pytest

from tests.matrices import model_far as far
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import M16, M32, Machine, Seg
from tests.matrices.test_segment_loads import prefix
from tests.matrices.world import (
    BITS,
    CODE_SELECTOR,
    DATA,
    DATA_SELECTOR,
    GDT,
    LDT,
    SLOT,
    SLOT2,
    SLOT3,
    STACK,
    STACK_TOP,
    TSS,
    TSS2,
    TSS2_SELECTOR,
    World,
    descriptor,
    gate,
    seg_of,
)

ALL_KINDS = range(32)
PROTECTED = ("16", "32", "compat", "64")
OFFSET = 0x4321  # where transfers go
CODE_KINDS = (0x18, 0x1A, 0x1B, 0x1C, 0x1E, 0x1F)
CODE_FLAGS = (0, 4, 2, 6, 0xC, 0xA)  # 16-bit, 32-bit, 64-bit, both L and D, with granularity


def transfer(
    world: World, m: Machine, how: str, mode: str, selector: int, offset: int, bits: int
) -> Case | None:
    """JMP or CALL with an immediate or a memory pointer of `bits` to selector:offset."""
    call = how.startswith("call")
    offset &= (1 << bits) - 1
    if how.endswith("ptr"):
        if mode == "64" or bits == 64:
            return None
        raw = prefix(mode, bits) + (b"\x9a" if call else b"\xea")
        raw += offset.to_bytes(bits // 8, "little") + selector.to_bytes(2, "little")
    else:
        if bits == 64 and mode != "64":
            return None
        m.put(DATA, bits // 8 + 2, offset | selector << bits)
        rex = b"\x48" if bits == 64 else prefix(mode, bits)
        group = 3 if call else 5
        if BITS[mode] == 16:
            raw = rex + bytes((0xFF, 0x06 | group << 3)) + DATA.to_bytes(2, "little")
        else:
            raw = rex + bytes((0xFF, 0x04 | group << 3, 0x25)) + DATA.to_bytes(4, "little")
    if call:
        return Case(m, raw, lambda m: far.call(m, selector, offset, bits // 8))
    return Case(m, raw, lambda m: far.jmp(m, selector, offset))


HOW = ("jmp ptr", "jmp mem", "call ptr", "call mem")


def direct(world: World, c: Combination) -> Case | None:
    """Straight to whatever the selector names."""
    m = world.machine(c["mode"], c["cpl"])
    table, ti = (LDT, 4) if c["ldt"] else (GDT, 0)
    limit = {"below": OFFSET - 1, "exact": OFFSET, "far": M32}[c["limit"]]
    m.put(
        table + SLOT, 16, descriptor(c["kind"], c["dpl"], limit=limit, present=c["present"], flags=c["flags"])
    )
    squeeze(m, c["stack"])
    offset = {"plain": OFFSET, "not canonical": 0x8000_0000_0000, "high": 0x1_0000}[c["offset"]]
    return transfer(world, m, c["how"], c["mode"], SLOT | ti | c["rpl"], offset, c["bits"])


def squeeze(m: Machine, stack: str) -> None:
    """How much room the stack has."""
    if stack == "none" and not m.mode64:
        m.rsp = 1  # below 2 bytes there is a wrap: at the end of the segment, past a limit lowered for it
        m.ss = m.ss._replace(limit=0xFFF)
    elif stack == "one word":
        if m.mode64:
            m.rsp = 0xFFFF_8000_0000_0001
        else:
            m.rsp = 4
            m.ss = m.ss._replace(limit=0x7FFF)
    elif stack == "expand-down":
        m.ss = m.ss._replace(limit=STACK - 5, attributes=m.ss.attributes | 4)
    elif stack == "odd":
        m.rsp -= 3


def special(world: World, c: Combination) -> Case | None:
    """Selectors that name nothing, though there is code in the first entry of the GDT."""
    m = world.machine(c["mode"], c["cpl"])
    m.put(GDT, 8, descriptor(0x1A, c["cpl"]))
    if c["no ldt"]:
        m.ldtr = Seg(0, 0, 0, 0x82, null=True)
    return transfer(world, m, c["how"], c["mode"], c["selector"], OFFSET, c["bits"])


def call_gate(world: World, c: Combination) -> Case | None:
    """Through a call gate in SLOT to the code segment in SLOT2, with the stack of SLOT3 if the level
    changes."""
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    long = mode in ("64", "compat")
    offset = (
        OFFSET if c["entry"] == "plain" else 0x8000_0000_0000 if c["entry"] == "high" and long else OFFSET
    )
    selector = {"slot": SLOT2, "null": 0, "outside": 0x200}[c["target"]] | c["target rpl"]
    raw = gate(
        c["gate"], selector, offset & M32, dpl=c["gate dpl"], present=c["gate present"], count=c["count"]
    )
    upper = offset >> 32 | (0x0C << 40 if c["entry"] == "upper type" else 0)
    m.put(GDT + SLOT, 16, raw | (upper << 64 if long else 0))
    limit = OFFSET - 1 if c["entry"] == "limit" else M32
    flags = c["flags"] if c["flags"] != "native" else (0xA if long else 0xC)
    m.put(GDT + SLOT2, 8, descriptor(c["kind"], c["dpl"], limit=limit, present=c["present"], flags=flags))
    new_stack(m, c["dpl"], c["inner stack"], long)
    m.put(STACK, 8 * 16, int.from_bytes(bytes(range(0x40, 0x40 + 128)), "little"))
    bits = 64 if mode == "64" and c["bits"] == 64 else c["bits"]
    return transfer(world, m, c["how"], mode, SLOT | c["rpl"], 0xDEAD, bits)


INNER_STACKS = (
    "fine", "16-bit", "null", "outside", "ldt", "rpl", "dpl", "read-only", "code", "system", "absent",
    "no room", "tss limit", "tss 16", "tss 16 limit", "expand-down", "not accessed",
)  # fmt: skip


def new_stack(m: Machine, level: int, how: str, long: bool) -> None:
    """What the TSS says about the stack of an inner level: every way that the manual calls invalid."""
    if level == 3:
        return
    if long:
        at = TSS + 4 + 8 * level
        if how == "no room":
            m.put(at, 8, 0x8000_0000_0010)
        elif how == "tss limit":
            m.tr = m.tr._replace(limit=4 + 8 * level + 6)
        elif how == "expand-down":  # here: a stack pointer that is not aligned
            m.put(at, 8, STACK_TOP[level] - 3)
        return
    selector, sp = SLOT3 | level, STACK_TOP[level]
    kind, dpl, present, flags, limit = 0x13, level, 1, 0xC, M32
    match how:
        case "16-bit":
            flags, limit = 0, M16
        case "null":
            selector = level
        case "outside":
            selector = 0x200 | level
        case "ldt":
            selector = SLOT3 | 4 | level
        case "rpl":
            selector = SLOT3 | (level ^ 1)
        case "dpl":
            dpl = level ^ 2
        case "read-only":
            kind = 0x11
        case "code":
            kind = 0x1B
        case "system":
            kind = 0x02
        case "absent":
            present = 0
        case "no room":
            sp = 6
            flags, limit = 4, 0x7FFF
        case "expand-down":
            kind, flags, limit = 0x17, 4, sp - 0x20
        case "not accessed":
            kind = 0x12
    raw = descriptor(kind, dpl, present=present, flags=flags, limit=limit)
    m.put(GDT + SLOT3, 8, raw)
    m.put(LDT + SLOT3, 8, descriptor(0x12, level))
    if how.startswith("tss 16"):
        m.tr = m.tr._replace(attributes=0x83, limit=4 * level + (4 if how == "tss 16 limit" else 5))
        m.put(TSS + 4 * level + 2, 2, sp)
        m.put(TSS + 4 * level + 4, 2, selector)
        return
    if how == "tss limit":
        m.tr = m.tr._replace(limit=8 * level + 8)
    m.put(TSS + 8 * level + 4, 4, sp)
    m.put(TSS + 8 * level + 8, 2, selector)


# ---- tasks -------------------------------------------------------------------------------------------------

NEW_STACK = 0x7400
TASK_FAULTS = (
    "none", "busy", "absent", "short", "old short", "cs null", "cs data", "cs dpl", "cs conforming",
    "cs absent", "cs outside", "ss null", "ss code", "ss rpl", "ss dpl", "ss absent", "ds outside",
    "ds execute-only", "es dpl", "fs absent", "ldt not ldt", "ldt absent", "ldt in ldt", "eip", "v86",
    "16 bit old",
)  # fmt: skip


def write_task(m: Machine, what: str, wide: bool, level: int) -> None:
    """A TSS of a task at `level` in TSS2, with one thing wrong; breakpoints that the switch disables."""
    m.dr7 |= 0x3FF
    kind = 9 if wide else 1
    if what == "busy":
        kind |= 2
    limit = (0x67 if wide else 0x2B) - (what == "short")
    raw = descriptor(kind, 3, base=TSS2, limit=limit, present=what != "absent", flags=0)
    m.put(GDT + TSS2_SELECTOR, 8, raw)
    if what == "old short":
        m.tr = m.tr._replace(limit=0x66)
    elif what == "16 bit old":
        m.tr = m.tr._replace(attributes=0x83, limit=0x2B)
    m.put(GDT + SLOT, 8, descriptor(0x1E, 2))  # conforming
    m.put(GDT + SLOT + 8, 8, descriptor(0x12, level, present=0))
    m.put(GDT + SLOT2, 8, descriptor(0x1A, level, present=0))
    m.put(GDT + SLOT2 + 8, 8, descriptor(2, 0, base=LDT, limit=0xFF, present=0, flags=0))
    m.put(GDT + SLOT3, 8, descriptor(0x18, level))
    m.put(GDT + SLOT3 + 8, 8, descriptor(0x1A, level, limit=0x100, flags=4))
    code, data = CODE_SELECTOR[level], DATA_SELECTOR[level]
    selectors = {"es": data, "cs": code, "ss": data, "ds": data, "fs": data, "gs": 0, "ldt": 0}
    changes = {
        "cs null": ("cs", 0), "cs data": ("cs", data), "cs dpl": ("cs", code ^ 1),
        "cs conforming": ("cs", SLOT | level), "cs absent": ("cs", SLOT2 | level),
        "cs outside": ("cs", 0x200 | level), "ss null": ("ss", level), "ss code": ("ss", code),
        "ss rpl": ("ss", data ^ 1), "ss dpl": ("ss", DATA_SELECTOR[level ^ 1] & ~3 | level),
        "ss absent": ("ss", SLOT + 8 | level), "ds outside": ("ds", 0x200), "ds execute-only": ("ds", SLOT3),
        "es dpl": ("es", DATA_SELECTOR[0] | 3), "fs absent": ("fs", SLOT + 8 | level),
        "ldt not ldt": ("ldt", DATA_SELECTOR[0]), "ldt absent": ("ldt", SLOT2 + 8), "ldt in ldt": ("ldt",
            0x8C),
        "eip": ("cs", SLOT3 + 8 | level),
    }  # fmt: skip
    if what in changes:
        name, selector = changes[what]
        selectors[name] = selector
    flags = 0x246 | (1 << 17 if what == "v86" and wide else 0)
    gprs = [0x1000_0001 * (n + 1) & (M32 if wide else M16) for n in range(8)]
    gprs[4] = NEW_STACK
    size, at = (4, TSS2 + 0x20) if wide else (2, TSS2 + 0x0E)
    names = ("es", "cs", "ss", "ds", "fs", "gs") if wide else ("es", "cs", "ss", "ds")
    for n, value in enumerate([OFFSET, flags, *gprs, *(selectors[name] for name in names)]):
        m.put(at + n * size, size, value)
    m.put(TSS2 + (0x60 if wide else 0x2A), 2, selectors["ldt"])
    for n, top in enumerate(STACK_TOP):
        m.put(TSS2 + (4 + 8 * n if wide else 2 + 4 * n), size, top)
        m.put(TSS2 + (8 + 8 * n if wide else 4 + 4 * n), 2, DATA_SELECTOR[n])


def task(world: World, c: Combination) -> Case | None:
    """To a TSS, directly or through a task gate."""
    m = world.machine(c["mode"], c["cpl"])
    write_task(m, c["what"], c["wide"], c["level"])
    if c["gate"] == "tss":
        selector = TSS2_SELECTOR
        m.mem[GDT + TSS2_SELECTOR + 5] = m.mem[GDT + TSS2_SELECTOR + 5] & ~0x60 | c["dpl"] << 5
    else:
        named = {
            "gate": TSS2_SELECTOR, "gate to null": 0, "gate to ldt": TSS2_SELECTOR | 4, "gate outside": 0x200,
            "gate to data": DATA_SELECTOR[0], "absent gate": TSS2_SELECTOR,
        }  # fmt: skip
        selector = SLOT + 0x60  # behind the selectors that tasks use
        raw = gate(5, named[c["gate"]], 0, dpl=c["dpl"], present=c["gate"] != "absent gate")
        m.put(GDT + selector, 8, raw)
    return transfer(world, m, c["how"], c["mode"], selector | c["rpl"], 0x77, 32)


# ---- RET ---------------------------------------------------------------------------------------------------


def ret(world: World, c: Combination) -> Case | None:
    """A far return to the code of SLOT with the stack of SLOT2."""
    mode, bits = c["mode"], c["bits"]
    if bits == 64 and mode != "64":
        return None
    m = world.machine(mode, c["cpl"])
    size, released = bits // 8, c["released"]
    offset = {"plain": OFFSET, "limit": OFFSET, "high": 0x8000_0000_0000}[c["entry"]] & (1 << bits) - 1
    limit = OFFSET - 1 if c["entry"] == "limit" else M32
    code_selector = {"slot": SLOT, "null": 0, "outside": 0x200, "ldt": SLOT | 4}[c["code"]] | c["rpl"]
    flags = c["flags"]
    for table in (GDT, LDT):
        raw = descriptor(c["kind"], c["dpl"], limit=limit, present=c["present"], flags=flags)
        m.put(table + SLOT, 8, raw)
    stack_selector = return_stack(m, c["stack"], c["rpl"])
    new_sp = 0x7000 | (0xABCD << 16 if c["high sp"] else 0)
    frame = (offset, code_selector | 0x5A5A_0000 << (16 if bits == 64 else 0))
    for n, value in enumerate(frame):
        m.put(m.rsp + n * size, size, value & (1 << bits) - 1)
    for n, value in enumerate((new_sp, stack_selector)):
        m.put(m.rsp + (n + 2) * size + released, size, value & (1 << bits) - 1)
    data_segments(m, c["data"])
    if c["room"] != "fine" and mode != "64":
        count = {"one": 1, "two": 2, "three": 3}[c["room"]]
        m.ss = m.ss._replace(limit=m.rsp + count * size - 1 + (released if count > 2 else 0))
    rex = b"\x48" if bits == 64 else prefix(mode, bits)
    raw_bytes = rex + (b"\xca" + released.to_bytes(2, "little") if released else b"\xcb")
    return Case(m, raw_bytes, lambda m: far.ret(m, size, released))


RETURN_STACKS = ("fine", "16-bit", "null", "null rpl", "outside", "rpl", "dpl", "read-only", "code", "system",
                 "absent", "not accessed")  # fmt: skip


def return_stack(m: Machine, how: str, level: int) -> int:
    """The SS selector of a return to `level`; its descriptor is put into SLOT2."""
    kind, dpl, present, flags, limit, selector = 0x13, level, 1, 0xC, M32, SLOT2 | level
    match how:
        case "16-bit":
            flags, limit = 0, M16
        case "null":
            selector = level
        case "null rpl":
            selector = level ^ 1
        case "outside":
            selector = 0x200 | level
        case "rpl":
            selector = SLOT2 | (level ^ 2)
        case "dpl":
            dpl = level ^ 1
        case "read-only":
            kind = 0x11
        case "code":
            kind = 0x1A
        case "system":
            kind = 0x0B
        case "absent":
            present = 0
        case "not accessed":
            kind = 0x12
    m.put(GDT + SLOT2, 8, descriptor(kind, dpl, present=present, flags=flags, limit=limit))
    return selector


def data_segments(m: Machine, what: str) -> None:
    """What DS, ES, FS and GS hold when a return drops some of them."""
    if what == "own":
        return
    if what == "null":
        for n, name in enumerate(("ds", "es", "fs", "gs")):
            m.set(**{name: Seg(n, 0x7F00_0000 * (name == "fs"), 0, 0xC093, null=True)})
        return
    kinds = (0x13, 0x1B, 0x1F, 0x11)
    for n, name in enumerate(("ds", "es", "fs", "gs")):
        dpl = (int(what) + n) & 3
        m.set(**{name: seg_of(0x100 + 8 * n | dpl, descriptor(kinds[(n + int(what)) & 3], dpl))})


RETURNS = Matrix(
    "far RET",
    (
        Space("by code segment", mode=PROTECTED, bits=(16, 32, 64), kind=ALL_KINDS, dpl=range(4),
              rpl=range(4), cpl=range(4), present=(1, 0), flags=(4, 0xA, 0xC, 6), code=("slot",),
              entry=("plain",), stack=("fine",), released=(0,), data=("own",), room=("fine",),
              **{"high sp": (0,)}),
        Space("outward", mode=PROTECTED, bits=(16, 32, 64), kind=(0x1E, 0x1A), dpl=(0, 3), rpl=(3, 2),
              cpl=(0, 2), present=(1,), flags=(0xC, 2), code=("slot", "slot", "ldt"),
              entry=("plain", "limit", "high"), stack=RETURN_STACKS, released=(0, 0x10), data=("own",),
              room=("fine", "fine", "one", "two", "three"), **{"high sp": (0,)}),
        Space("what is left", mode=PROTECTED, bits=(16, 32, 64), kind=(0x1F,), dpl=(0,), rpl=(1, 2, 3),
              cpl=(0, 1, 2), present=(1,), flags=(0xC, 2), code=("slot", "slot", "slot", "null", "outside"),
              entry=("plain",), stack=RETURN_STACKS, released=(0, 0x10),
              data=("own", "null", "0", "1", "2", "3"), room=("fine",), **{"high sp": (0, 1)}),
    ),
    ret,
    1500,
)  # fmt: skip


def real_mode(world: World, c: Combination) -> Case | None:
    """JMP, CALL and RET in real-address and virtual-8086 mode: limits and wrap-around only."""
    mode, bits = c["mode"], c["bits"]
    m = world.machine(mode)
    if c["sp"] != "plain":
        m.rsp = {"0": 0, "1": 1, "2": 2, "3": 3, "top": 0xFFFE, "odd": 0xFFFF, "high": 0x7_1234_7800}[c["sp"]]
    if mode == "real" and c["limit"]:
        m.cs = m.cs._replace(limit=c["limit"])
    offset = c["offset"] & (1 << bits) - 1
    if c["how"] != "ret":
        return transfer(world, m, c["how"], mode, c["selector"], offset, bits)
    size = bits // 8
    for n, value in enumerate((offset, c["selector"])):
        at = m.rsp + n * size & M16
        for k in range(size):
            if at + k < 0x1_0000:
                m.put(at + k, 1, value >> 8 * k & 0xFF)
    return Case(m, prefix(mode, bits) + b"\xca\x04\x00", lambda m: far.ret(m, size, 4))


STACKS = ("plain", "none", "one word", "expand-down", "odd")
OFFSETS = ("plain", "not canonical", "high")
DIRECT = Matrix(
    "far JMP and CALL",
    (
        Space("by descriptor", mode=PROTECTED, how=HOW, bits=(16, 32, 64), kind=ALL_KINDS, dpl=range(4),
              rpl=range(4), cpl=range(4), present=(1, 0), flags=(0xC, 2), ldt=(0,), limit=("far",),
              stack=("plain",), offset=("plain",)),
        Space("to code", mode=PROTECTED, how=HOW, bits=(16, 32, 64), kind=(0x1A, 0x1E), dpl=(0, 3),
              rpl=(0,), cpl=(0, 3), present=(1, 0), flags=CODE_FLAGS, ldt=(0,),
              limit=("below", "exact", "far"), stack=STACKS, offset=OFFSETS),
        Space("to conforming code", mode=PROTECTED, how=HOW, bits=(16, 32, 64), kind=(0x1C,), dpl=(0,),
              rpl=(0, 3), cpl=range(4), present=(1,), flags=CODE_FLAGS, ldt=(1,),
              limit=("below", "exact", "far"), stack=STACKS, offset=OFFSETS),
    ),
    direct,
    1300,
)  # fmt: skip
NAMELESS = Matrix(
    "far selectors",
    (
        Space("by selector", mode=PROTECTED, how=HOW, bits=(16, 32, 64), cpl=range(4),
              selector=(0, 1, 3, 4, 7, 0x48, 0x58, 0x200, 0x203, 0x104, 0xFFF8, 0xFFFF),
              **{"no ldt": (0, 1)}),
    ),
    special,
    800,
)  # fmt: skip
MEMORY = ("call mem", "jmp mem")
GATES = Matrix(
    "call gates",
    (
        Space("gates", mode=PROTECTED, how=HOW, bits=(16, 32), gate=(4, 12), rpl=range(4), cpl=range(4),
              kind=(0x1A,), dpl=(0, 3), present=(1,), flags=("native",), count=(0,), entry=("plain",),
              target=("slot",),
              **{"gate dpl": range(4), "gate present": (1, 0), "target rpl": (0, 3),
                 "inner stack": ("fine",)}),
        Space("code segments", mode=PROTECTED, how=MEMORY, bits=(32,), gate=(12, 4), rpl=(0,), cpl=range(4),
              kind=ALL_KINDS, dpl=range(4), present=(1, 0), flags=("native", 4, 6), count=(0,),
              entry=("plain",), target=("slot",),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (0, 3), "inner stack": ("fine",)}),
        Space("entries", mode=PROTECTED, how=MEMORY, bits=(32,), gate=(4, 12), rpl=(3,), cpl=range(4),
              kind=(0x1A, 0x1E), dpl=range(4), present=(1,), flags=("native", 0), count=(0, 5),
              entry=("plain", "limit", "high", "upper type"),
              target=("slot", "slot", "slot", "null", "outside"),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (0,), "inner stack": ("fine",
                 "no room", "tss limit")}),
        Space("inward", mode=PROTECTED, how=("call ptr", "call mem"), bits=(16, 32, 64), gate=(12, 4),
              rpl=(3,), cpl=(3, 2, 1), kind=(0x1A,), dpl=(0, 1, 2), present=(1,), flags=("native",),
              count=(0, 1, 5, 31), entry=("plain", "plain", "limit", "high"), target=("slot",),
              **{"gate dpl": (3,), "gate present": (1,), "target rpl": (0,), "inner stack": INNER_STACKS}),
    ),
    call_gate,
    1200,
)  # fmt: skip
TASKS = Matrix(
    "task switches by JMP and CALL",
    (
        Space("by state", mode=("32", "16"), how=HOW, cpl=(0, 3), rpl=(0, 3), dpl=(3,), wide=(True, False),
              level=(0, 3), gate=("tss", "gate"), what=TASK_FAULTS),
        Space("by privilege", mode=("32", "compat", "64"), how=HOW, cpl=range(4), rpl=range(4),
              dpl=range(4), wide=(True,), level=(0,), what=("none",),
              gate=("tss", "gate", "gate to null", "gate to ldt", "gate outside", "gate to data",
                    "absent gate")),
    ),
    task,
    1000,
)  # fmt: skip
REAL = Matrix(
    "far transfers without descriptors",
    (
        Space("by stack", mode=("real", "v86"), how=(*HOW, "ret"), bits=(16, 32),
              selector=(0, 0x800, 0xF000), offset=(0, 0x1234, 0xFFFF, 0x1_0000, 0xFFFF_0000),
              limit=(0, 0x8FFF, M32), sp=("plain", "0", "1", "2", "3", "top", "odd", "high")),
    ),
    real_mode,
    1200,
)  # fmt: skip

MATRICES = (DIRECT, NAMELESS, GATES, TASKS, RETURNS, REAL)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [
        (DIRECT, ("done", "#GP", "#NP", "#SS")), (NAMELESS, ("#GP",)),
        (GATES, ("done", "#GP", "#NP", "#SS", "#TS")), (RETURNS, ("done", "#GP", "#NP", "#SS")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_far_transfers_follow_the_manual(matrix: Matrix, outcomes: tuple[str, ...], blocks: bool) -> None:
    if blocks:  # fewer outcomes: only 64-bit mode has blocks
        outcomes = tuple(name for name in outcomes if name not in ("#SS", "#TS"))
    verify(matrix, *outcomes, blocks=blocks)


def test_task_switches_by_jmp_and_call_follow_the_manual() -> None:
    verify(TASKS, "done", "#GP", "#NP", "#SS", "#TS")


def test_far_transfers_without_descriptors_follow_the_manual() -> None:
    verify(REAL, "done", "#GP")
