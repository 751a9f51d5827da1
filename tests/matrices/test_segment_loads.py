"""Every way to load a data or stack segment register, with every descriptor, DPL, RPL and CPL."""

from __future__ import annotations

import pytest

from tests.matrices import model_paging as paging
from tests.matrices.model_segments import (
    inspect,
    linear_address,
    load_ldtr,
    load_sreg,
    load_tr,
    set_sp,
)
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import GP, M16, PE, UD, ZF, Fault, Machine, Seg, low
from tests.matrices.world import BITS, DATA, GDT, LDT, LDT_LIMIT, SLOT, World, descriptor

ALL_KINDS = range(32)  # S and the type
PROTECTED = ("16", "32", "compat", "64")
REGISTERS = {"es": 0, "ss": 2, "ds": 3, "fs": 4, "gs": 5}
BASE = 0x12_3450


def prefix(mode: str, bits: int) -> bytes:
    """The operand-size prefix that makes an instruction `bits` wide."""
    return b"\x66" if BITS[mode] != bits and not (BITS[mode] == 64 and bits == 32) else b""


# ---- the instructions --------------------------------------------------------------------------------------


def mov_register(register: str) -> bytes:
    """MOV Sreg, AX"""
    return bytes((0x8E, 0xC0 | REGISTERS[register] << 3))


def mov_memory(register: str, mode: str) -> bytes:
    """MOV Sreg, [DATA]"""
    if BITS[mode] == 16:
        return bytes((0x8E, 0x06 | REGISTERS[register] << 3)) + DATA.to_bytes(2, "little")
    modrm = bytes((0x8E, 0x04 | REGISTERS[register] << 3, 0x25))
    return modrm + DATA.to_bytes(4, "little")


POP = {"es": b"\x07", "ss": b"\x17", "ds": b"\x1f", "fs": b"\x0f\xa1", "gs": b"\x0f\xa9"}
LOAD_POINTER = {"es": b"\xc4", "ss": b"\x0f\xb2", "ds": b"\xc5", "fs": b"\x0f\xb4", "gs": b"\x0f\xb5"}


def load_pointer(register: str, mode: str, bits: int) -> bytes:
    """LxS rAX, [DATA]"""
    rex = b"\x48" if bits == 64 else b""
    head = (b"" if bits == 64 else prefix(mode, bits)) + rex + LOAD_POINTER[register]
    if BITS[mode] == 16:
        return head + b"\x06" + DATA.to_bytes(2, "little")
    return head + b"\x04\x25" + DATA.to_bytes(4, "little")


def with_selector(world: World, c: Combination, selector: int) -> Case | None:
    """The case in which instruction `how` of `c` loads `selector`; the memory holds a width's garbage."""
    mode, how, register = c["mode"], c["how"], c["register"]
    m = world.machine(mode, c["cpl"])
    if how == "mov r":
        m.rax = m.rax & ~M16 | selector
        return Case(m, mov_register(register), lambda m: load_sreg(m, register, selector))
    if how == "mov m":
        m.put(DATA, 2, selector)

        def mov(m: Machine) -> None:
            at = linear_address(m, "ds", DATA, 2, write=False)
            load_sreg(m, register, paging.load(m, at, 2))

        return Case(m, mov_memory(register, mode), mov)
    bits = {"pop 16": 16, "pop": 64 if mode == "64" else 32, "ptr 16": 16, "ptr 32": 32, "ptr 64": 64}[how]
    if how.startswith("pop"):
        if mode == "64" and register in ("es", "ss", "ds"):
            return None
        m.put(m.rsp, 8, selector | 0xAAAA_BBBB_CCCC_0000)

        def pop(m: Machine) -> None:
            linear_address(m, "ss", m.rsp & m.stack_mask, bits // 8, write=False)
            after, mask = m.rsp + bits // 8, m.stack_mask
            load_sreg(m, register, selector)
            set_sp(m, after, mask)

        return Case(m, (b"" if mode == "64" and bits == 64 else prefix(mode, bits)) + POP[register], pop)
    if (bits == 64) != (mode == "64" and how == "ptr 64") or (mode == "64" and register in ("es", "ds")):
        return None
    m.put(DATA, bits // 8, 0x7654_3210_FEDC_BA98 & (1 << bits) - 1)
    m.put(DATA + bits // 8, 2, selector)

    def pointer(m: Machine) -> None:
        at = linear_address(m, "ds", DATA, bits // 8 + 2, write=False)
        value = paging.load(m, at, bits // 8)
        load_sreg(m, register, selector)
        m.rax = low(m.rax, value, (1 << bits) - 1)

    return Case(m, load_pointer(register, mode, bits), pointer)


HOW = ("mov r", "mov m", "pop", "pop 16", "ptr 16", "ptr 32", "ptr 64")


def moot(c: Combination) -> tuple[str, ...]:
    """Far pointers and operands in memory go to a data segment register as any value does."""
    plain = c["how"] in ("mov r", "pop") or c["register"] in ("es", "ss", "fs")
    return () if plain else ("kind", "dpl", "rpl")


def by_descriptor(world: World, c: Combination) -> Case | None:
    """A descriptor of every kind in the GDT or the LDT."""
    table, ti = (LDT, 4) if c["ldt"] else (GDT, 0)
    found = with_selector(world, c, SLOT | ti | c["rpl"])
    if found is not None:
        raw = descriptor(
            c["kind"], c["dpl"], base=BASE, limit=0x5_4FFF, present=c["present"], flags=c["flags"]
        )
        found.start.put(table + SLOT, 8, raw)
    return found


def by_selector(world: World, c: Combination) -> Case | None:
    """Null selectors, the last descriptor of a table and the first behind it, an LDTR that is null."""
    found = with_selector(world, c, c["selector"])
    if found is None:
        return None
    m = found.start
    for at in (GDT, *range(GDT + 0x1F0, GDT + 0x200, 8), LDT, *range(LDT + 0xF0, LDT + 0x108, 8)):
        m.put(at, 8, descriptor(0x12, 3 if c["selector"] & 3 == 3 else c["cpl"], base=BASE, flags=4))
    if c["limit"] == "exact" and c["selector"] < 0x400:  # behind that, RAM ends
        m.gdtr = GDT, (c["selector"] & 0xFFF8) + 7
    elif c["limit"] == "short":
        m.gdtr = GDT, (c["selector"] & 0xFFF8 or 8) + 6
        m.ldtr = Seg(m.ldtr.selector, LDT, (c["selector"] & 0xFFF8) + 6, 0x82)
    elif c["limit"] == "no ldt":
        m.ldtr = Seg(0, 0, LDT_LIMIT, 0x82, null=True)
    return found


def in_real_mode(world: World, c: Combination) -> Case | None:
    """No descriptors: base = selector * 16; what the segment was before stays in real mode."""
    found = with_selector(world, {**c, "cpl": 0}, c["selector"])
    if found is None:
        return None
    seg: Seg = getattr(found.start, c["register"])
    if c["unreal"] and c["register"] not in ("ss", "ds"):
        found.start.set(**{c["register"]: seg._replace(limit=0xF_FFFF, attributes=0xC0F3)})
    return found


SELECTORS = (0, 1, 2, 3, 4, 5, 6, 7, 0x1F8, 0x1F9, 0x1FA, 0x1FB, 0xF8 | 4, 0xF8 | 7, 0x100 | 4, 0x100 | 7,
             0x200,
             0xFFF8, 0xFFFF)  # fmt: skip

LOADS = Matrix(
    "segment loads",
    (
        Space("by descriptor", moot, mode=PROTECTED, how=HOW, register=tuple(REGISTERS), kind=ALL_KINDS,
              dpl=range(4), rpl=range(4), cpl=range(4), present=(1, 0), ldt=(0,), flags=(4,)),
        # the combinations of which one load in sixteen succeeds, so that a slice has enough of these
        Space("that may succeed", mode=PROTECTED, how=HOW, register=tuple(REGISTERS),
              kind=(0x10, 0x12, 0x13, 0x16, 0x1A, 0x1E), dpl=(3,), rpl=(0, 3), cpl=range(4), present=(1,),
              ldt=(0, 1), flags=(0, 4, 8, 0xC)),
        Space("SS that may succeed", mode=PROTECTED, how=HOW, register=("ss",),
              kind=(0x12, 0x13, 0x16, 0x17), dpl=range(4), rpl=range(4), cpl=range(4), present=(1, 0),
              ldt=(0, 1), flags=(0, 4)),
    ),
    by_descriptor,
    1000,
)  # fmt: skip
SELECTOR_EDGES = Matrix(
    "selectors",
    (
        Space("by selector", mode=PROTECTED, how=HOW, register=tuple(REGISTERS), selector=SELECTORS,
              cpl=range(4), limit=("whole", "exact", "short", "no ldt")),
    ),
    by_selector,
    1500,
)  # fmt: skip
REAL = Matrix(
    "real mode",
    (
        Space("by selector", mode=("real", "v86"), how=HOW, register=tuple(REGISTERS),
              selector=(0, 1, 4, 0x80, 0x1234, 0xF000, 0xFFFF), unreal=(0, 1)),
    ),
    in_real_mode,
    400,
)  # fmt: skip


# ---- LDTR and TR, and instructions that look ---------------------------------------------------------------

SYSTEM = {"lldt": b"\x0f\x00\xd0", "ltr": b"\x0f\x00\xd8"}
LOOK = {"lar": b"\x0f\x02\xd8", "lsl": b"\x0f\x03\xd8", "verr": b"\x0f\x00\xe0", "verw": b"\x0f\x00\xe8"}


# One bit each of the type field in the upper half of a 16-byte descriptor
UPPER_TYPES = {f"type bit {n}": 1 << 40 + n for n in range(5)}


def system_register(world: World, c: Combination) -> Case | None:
    """LLDT and LTR with AX; the operand size is ignored."""
    if c["bits"] == 64 and c["mode"] != "64":
        return None
    m = world.machine(c["mode"], c["cpl"])
    selector = {"slot": SLOT, "ldt": SLOT | 4, "null": 0, "outside": 0x200}[c["where"]] | c["rpl"]
    m.rax = m.rax & ~M16 | selector
    raw = descriptor(c["kind"], c["dpl"], base=0x7654_3210, limit=0x67, present=c["present"], flags=0)
    upper = {"zero": 0, "canonical": 0xFFFF_8000, "not canonical": 0x8000, **UPPER_TYPES}[c["upper"]]
    for table in (GDT, LDT):
        m.put(table + SLOT, 8, raw)
        m.put(table + SLOT + 8, 8, upper)
    if c["where"] == "slot" and c["short"]:
        m.gdtr = GDT, SLOT + 15 - c["short"]
    load = load_ldtr if c["how"] == "lldt" else load_tr

    def instruction(m: Machine) -> None:
        if m.cpl:
            raise Fault(GP, 0)
        load(m, selector)

    size = b"\x48" if c["bits"] == 64 else prefix(c["mode"], c["bits"])
    return Case(m, size + SYSTEM[c["how"]], instruction)


def look(world: World, c: Combination) -> Case | None:
    """LAR, LSL, VERR and VERW."""
    m = world.machine(c["mode"], c["cpl"])
    selector = {"slot": SLOT, "ldt": SLOT | 4, "null": 0, "outside": 0x200}[c["where"]] | c["rpl"]
    m.rax = m.rax & ~M16 | selector
    for table in (GDT, LDT):
        raw = descriptor(c["kind"], c["dpl"], limit=0xA_BFFF, present=c["present"], flags=c["flags"])
        m.put(table + SLOT, 8, raw)
    how, bits = c["how"], c["bits"]
    if bits == 64 and (c["mode"] != "64" or how in ("verr", "verw")):
        return None
    size = b"\x48" if bits == 64 else prefix(c["mode"], bits) if how in ("lar", "lsl") else b""

    def instruction(m: Machine) -> None:
        if not m.cr0 & PE or m.v86:
            raise Fault(UD)
        found, value = inspect(m, how, selector)
        m.rflags = m.rflags & ~ZF | (ZF if found else 0)
        if found and how in ("lar", "lsl"):
            m.rbx = low(m.rbx, value, (1 << bits) - 1)

    return Case(m, size + LOOK[how], instruction)


WHERE = ("slot", "ldt", "null", "outside")
SYSTEM_REGISTERS = Matrix(
    "LLDT and LTR",
    (
        Space("by descriptor", mode=("32", "64", "16", "compat"), how=("lldt", "ltr"),
              kind=(*ALL_KINDS, *(2, 9) * 12),
              dpl=(0, 3), rpl=(0, 3), cpl=(0,), present=(1, 0), where=("slot",), short=(0,), bits=(32,),
              upper=("zero", "canonical", "not canonical", *UPPER_TYPES)),
        Space("by place", mode=("32", "64", "16", "compat"), how=("lldt", "ltr"), kind=(2, 9), dpl=(0,),
              rpl=range(4), cpl=range(4), present=(1,), where=WHERE, short=(0, 1, 8, 9, 16),
              upper=("zero",), bits=(16, 32, 64)),
    ),
    system_register,
    700,
)  # fmt: skip
LOOKING = Matrix(
    "LAR, LSL, VERR, VERW",
    (
        Space("by descriptor", mode=("32", "64", "16", "compat"), how=tuple(LOOK), bits=(16, 32, 64),
              kind=ALL_KINDS, dpl=range(4), rpl=range(4), cpl=range(4), present=(1, 0), where=("slot",),
              flags=(0xC,)),
        Space("by place", mode=("32", "64", "real", "v86"), how=tuple(LOOK), bits=(16, 32), kind=(0x12, 9),
              dpl=(3, 0), rpl=range(4), cpl=(0, 3), present=(1,), where=WHERE, flags=(0, 0xC)),
    ),
    look,
    1000,
)  # fmt: skip

MATRICES = (LOADS, SELECTOR_EDGES, REAL, SYSTEM_REGISTERS, LOOKING)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [
        (LOADS, ("done", "#GP", "#NP", "#SS")), (SELECTOR_EDGES, ("done", "#GP")),
        (SYSTEM_REGISTERS, ("done", "#GP", "#NP")), (LOOKING, ("done",)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_loading_and_inspecting_segments_follows_the_manual(
    matrix: Matrix, outcomes: tuple[str, ...], blocks: bool
) -> None:
    if blocks:  # a smaller slice, and some checks are not for 64-bit mode
        outcomes = ("done", "#GP") if "#GP" in outcomes else ("done",)
    verify(matrix, *outcomes, blocks=blocks)


def test_real_and_virtual_8086_mode_load_segments_without_descriptors() -> None:
    verify(REAL, "done")
