"""Page permissions: every combination of U/S, R/W and XD over the levels with WP, SMEP, SMAP, AC, NXE, CPL.

Every paging mode and page size, every kind of access; reserved bits and missing entries at every level. Error
code, CR2, the accessed and dirty flags of every level and everything else are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from tests.matrices import model_paging as paging
from tests.matrices.model_gates import INT_N, software_interrupt
from tests.matrices.model_paging import FETCH, LEVELS, PS, RW, US, XD, A, D, P
from tests.matrices.model_segments import inspect, linear_address, load_sreg
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space, nothing_moot
from tests.matrices.spec import AC, CF, M32, M64, NXE, PF, PSE, SMAP, SMEP, WP, ZF, Fault, Machine
from tests.matrices.spec import AF as AF_FLAG
from tests.matrices.spec import OF as OF_FLAG
from tests.matrices.spec import SF as SF_FLAG
from tests.matrices.test_gates import set_gate
from tests.matrices.world import (
    CODE_SELECTOR,
    DATA_SELECTOR,
    GDT,
    HANDLER,
    IDT,
    SLOT,
    TSS,
    World,
    descriptor,
    gate,
    identity_paging,
    map_page,
)

RAM = 0x1_A000
TABLES = 0x1_0000  # four pages: the guest's own map
TEST_TABLES = 0x1_4000  # three: the path under test hangs under an entry of its own in the top table
FRAME, BEFORE = 0x1_7000, 0x1_8000  # where it leads, and the page before that
OFFSET = 0x120
# Linear addresses of the page under test: an index of its own at every level
LINEAR = {"32-bit": 1 << 22 | 4 << 12, "PAE": 1 << 30 | 3 << 21 | 4 << 12,
          "4-level": 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12}  # fmt: skip
CPU_MODE = {"32-bit": "32", "PAE": "32", "4-level": "64"}
# Paging mode and page size -> the level of the entry that maps the page
SIZES = {("32-bit", "4K"): 12, ("32-bit", "4M"): 22, ("PAE", "4K"): 12, ("PAE", "2M"): 21,
         ("4-level", "4K"): 12, ("4-level", "2M"): 21, ("4-level", "1G"): 30}  # fmt: skip
KINDS = ("read", "write", "rmw", "fetch", "implicit read", "implicit write", "stack", "idt")


class Path:
    """The entries that lead to the page under test."""

    def __init__(self, mode: str, size: str) -> None:
        self.mode = mode
        self.size = size
        leaf = SIZES[mode, size]
        self.levels = tuple(level for level in LEVELS[mode] if level >= leaf)
        self.width = 4 if mode == "32-bit" else 8
        self.large = leaf != 12
        index_mask = 0x3FF if mode == "32-bit" else 0x1FF
        base = LINEAR[mode]
        # A large page maps physical memory from 0 on, so its linear address says where in RAM it lies
        self.page = base & ~((1 << leaf) - 1) | (FRAME if self.large else 0)
        self.linear = self.page | OFFSET
        tables = [TABLES, TEST_TABLES, TEST_TABLES + 0x1000, TEST_TABLES + 0x2000]
        if mode == "PAE":
            tables = tables[1:]
        self.places = [
            tables[n] + (base >> level & index_mask) * self.width for n, level in enumerate(self.levels)
        ]
        self.entries = [tables[n + 1] for n in range(len(self.levels) - 1)] + [0 if self.large else FRAME]
        self.entries[-1] |= PS if self.large else 0

    def write(self, m: Machine, flags: list[int]) -> None:
        """Put the entries into RAM, one set of flags for each level."""
        for at, entry, more in zip(self.places, self.entries, flags, strict=True):
            m.put(at, self.width, entry | more)
        if self.mode == "PAE":
            m.pdptes = (m.pdptes[0], TEST_TABLES | 1, 0, 0)
            m.put(TABLES + 8, 8, TEST_TABLES | 1)
        if not self.large:  # the page before, for tables that begin there
            m.put(self.places[-1] - self.width, self.width, BEFORE | P | RW | A | D)


PATHS = {key: Path(*key) for key in SIZES}


def with_paging(world: World, c: Combination, path: Path) -> Machine:
    """The guest on supervisor pages, its code on a user page in ring 3; WP and what protects pages as
    asked."""
    m = world.machine(CPU_MODE[path.mode], c["cpl"])
    identity_paging(m, TABLES, pae=path.mode == "PAE")
    m.flat = 0x1_0000
    for page in range(0, 0x1_0000, 0x1000):
        if not (m.cpl == 3 and page in (0x7000, 0x8000, 0x9000)):
            map_page(m, TABLES, page, clear=US)
    m.cr0 |= WP if c["wp"] else 0
    m.cr4 |= (SMEP if c["smep"] else 0) | (SMAP if c["smap"] else 0) | (PSE if c.get("pse", 1) else 0)
    m.efer |= NXE if c["nxe"] else 0
    m.rflags |= AC if c["ac"] else 0
    return m


def access(m: Machine, path: Path, kind: str) -> Case | None:
    """The instruction that touches the page under test, and its model."""
    linear, wide = path.linear, path.mode == "4-level"
    m.put(FRAME + OFFSET, 8, 0x1122_3344_5566_7788)
    m.rbx = linear
    match kind:
        case "read":
            return Case(m, b"\x8b\x03", lambda m: read(m, linear))
        case "write":
            return Case(m, b"\x89\x03", lambda m: paging.store(m, data(m, linear, 4, True), 4, m.rax & M32))
        case "rmw":
            return Case(m, b"\x01\x03", lambda m: add(m, linear))
        case "fetch":
            m.put(FRAME + OFFSET, 8, 0x9090_9090_9090_9090)
            return Case(m, b"\xff\xe3", lambda m: jump(m, linear), 2)
        case "implicit read":  # LAR EAX, CX of a descriptor in an LDT that lies there
            m.rcx = SLOT | 4
            m.ldtr = m.ldtr._replace(base=path.page)
            m.put(FRAME + SLOT, 8, descriptor(0x12, 3))
            return Case(m, b"\x0f\x02\xc1", lambda m: lar(m, SLOT | 4))
        case "implicit write":  # MOV DS, CX with a descriptor that has never been accessed
            m.rcx = SLOT | 4
            m.ldtr = m.ldtr._replace(base=path.page)
            m.put(FRAME + SLOT, 8, descriptor(0x12, 3))
            return Case(m, b"\x8e\xd9", lambda m: load_sreg(m, "ds", SLOT | 4))
        case "stack":  # INT n to a stack that lies there
            return stack(m, path, wide)
        case "idt":
            if path.large:
                return None
            size = 16 if wide else 8
            m.idtr = path.page - 32 * size, 0xFFF
            for vector in range(256):
                at = (BEFORE + 0x1000 - 32 * size if vector < 32 else FRAME - 32 * size) + size * vector
                if vector < 32 or vector == 0x41:
                    m.put(at, size, m.get(IDT + size * vector, size) | 3 << 45)
            return Case(m, b"\xcd\x41", lambda m: software_interrupt(m, 0x41, INT_N))
    raise ValueError(kind)


def read(m: Machine, linear: int) -> None:
    """MOV EAX, [RBX]"""
    m.rax = paging.load(m, data(m, linear, 4, False), 4)


def data(m: Machine, linear: int, size: int, write: bool) -> int:
    """Segmentation comes before paging."""
    return linear_address(m, "ds", linear, size, write=write)


def add(m: Machine, linear: int) -> None:
    """ADD [RBX], EAX: checked as a write before it is read."""
    at = data(m, linear, 4, True)
    a, b = paging.modify(m, at, 4), m.rax & M32
    total = a + b
    result = total & M32
    flags = (CF if total > M32 else 0) | (ZF if not result else 0) | (SF_FLAG if result >> 31 else 0)
    flags |= (PF if (result & 0xFF).bit_count() % 2 == 0 else 0) | (AF_FLAG if (a ^ b ^ result) & 16 else 0)
    flags |= OF_FLAG if (a ^ result) & (b ^ result) & 1 << 31 else 0
    m.rflags = m.rflags & ~(CF | ZF | SF_FLAG | PF | AF_FLAG | OF_FLAG) | flags
    paging.store(m, at, 4, result)


def jump(m: Machine, linear: int) -> None:
    """JMP RBX, then a NOP there: a fault of the fetch has the target as its return address."""
    m.rip = linear & (M64 if m.mode64 else M32)
    m.retired += 1
    try:
        paging.access(m, linear, 1, FETCH)
    except Fault as fault:
        fault.trap = True
        raise
    m.rip += 1


def lar(m: Machine, selector: int) -> None:
    """LAR EAX, CX"""
    found, value = inspect(m, "lar", selector)
    m.rflags = m.rflags & ~ZF | (ZF if found else 0)
    if found:
        m.rax = value


def stack(m: Machine, path: Path, wide: bool) -> Case | None:
    """A gate to another stack: IST2 in 64-bit mode, level 1's or 2's in 32-bit mode, from outside of it."""
    top = path.page + 0x800
    if wide:
        set_gate(m, 0x41, gate(14, CODE_SELECTOR[0], HANDLER + 0x410, dpl=3, count=2))
        m.put(TSS + 0x24 + 8, 8, top)
    else:
        if m.cpl < 2:
            return None
        level = m.cpl - 1
        m.put(GDT + SLOT, 8, descriptor(0x1B, level))
        set_gate(m, 0x41, gate(14, SLOT, HANDLER + 0x410, dpl=3))
        m.put(TSS + 4 + 8 * level, 4, top)
        m.put(TSS + 8 + 8 * level, 2, DATA_SELECTOR[level])
    return Case(m, b"\xcd\x41", lambda m: software_interrupt(m, 0x41, INT_N))


# ---- permissions -------------------------------------------------------------------------------------------


def patterns(levels: int) -> tuple[tuple[int, ...], ...]:
    """Where an attribute is: at no level, at every one, at all but one, at one."""
    ones = tuple(tuple(int(n == k) for n in range(levels)) for k in range(levels))
    but_one = tuple(tuple(1 - bit for bit in one) for one in ones)
    return tuple(dict.fromkeys(((0,) * levels, (1,) * levels, *but_one, *ones)))


def all_patterns(levels: int) -> tuple[tuple[int, ...], ...]:
    """Every distribution of an attribute over the levels."""
    return tuple(product((1, 0), repeat=levels))


def moot(c: Combination) -> tuple[str, ...]:
    """What an access has nothing to do with. The space "levels" has all of them with every access."""
    kind, user = c["kind"], c["cpl"] == 3
    if kind in ("read", "write", "rmw"):
        found: tuple[str, ...] = ("wp", "smep", "smap", "ac") if user else ("smep",)
        if kind == "read":
            found = (*found, "wp")
    elif kind == "fetch":
        return ("wp", "smap", "ac")
    else:  # supervisor accesses at every level
        found = ("smep",) if kind in ("implicit write", "stack") else ("smep", "wp")
    return (*found, "xd") if c["nxe"] else found


def permission(world: World, c: Combination) -> Case | None:
    """Rights at each level."""
    path = PATHS[c["paging"], c["size"]]
    m = with_paging(world, c, path)
    leaf = len(path.levels) - 1
    flags = []
    for n in range(len(path.levels)):
        bits = P | (US if c["us"][n] else 0) | (RW if c["rw"][n] else 0)
        if path.width == 8 and c["xd"][n]:
            bits |= XD
        bits |= (A if c["flags"] else 0) | (D if c["flags"] == 2 and n == leaf else 0)
        flags.append(bits)
    path.write(m, flags)
    return access(m, path, c["kind"])


def permission_space(mode: str, size: str, which: str) -> Space:
    """The combinations of one page size."""
    levels = len(PATHS[mode, size].levels)
    wide = mode != "32-bit"
    switches: dict[str, Sequence[Any]] = dict.fromkeys(("wp", "smep", "smap", "ac"), (0, 1))
    nxe: Sequence[int] = (1, 0) if wide else (0,)
    kinds: Sequence[str] = KINDS
    cpl: Sequence[int] = (0, 3)
    flags: Sequence[int] = (0,)
    found = patterns(levels)
    if which == "all":
        found, flags, kinds = all_patterns(levels), (0, 1, 2), ("read", "write", "fetch")
        switches, nxe = {"wp": (1,), "smep": (1,), "smap": (0,), "ac": (0,)}, (int(wide),)
    elif which == "levels":  # what CPL 1 and 2 change: nothing
        found, flags, cpl = ((1,) * levels, (0,) * levels), (0, 2), range(4)
    return Space(
        f"{mode} {size} {which}", moot if which == "typical" else nothing_moot,
        paging=(mode,), size=(size,), mode=(CPU_MODE[mode],), us=found, rw=found,
        xd=found if wide else ((0,) * levels,), nxe=nxe, cpl=cpl, kind=kinds, flags=flags, **switches,
    )  # fmt: skip


# ---- entries that are wrong --------------------------------------------------------------------------------


def wrong_entry(world: World, c: Combination) -> Case | None:
    """One bit of one entry turned over; address bits, which would lead out of RAM, excepted."""
    path = PATHS[c["paging"], c["size"]]
    if c["level"] >= len(path.levels):
        return None
    level, bit = path.levels[c["level"]], c["bit"]
    leaf = c["level"] == len(path.levels) - 1
    lowest = level if leaf and path.large else 12
    highest = 31 if path.width == 4 else 47
    if bit >= 8 * path.width or lowest <= bit <= highest:
        return None
    if path.width == 4 and leaf and path.large and 13 <= bit <= 20 and c["features"]:
        return None  # PSE-36: address bits above RAM
    if (
        not leaf
        and bit == 7
        and (level != 39 and not (level == 30 and not c["features"]))
        and path.width == 8
    ):
        return None  # a table becomes a large page at its own address: not RAM's beginning
    m = with_paging(world, c, path)
    m.pse36 = m.pages_1g = bool(c["features"])
    rights = {"all": P | RW | US, "supervisor": P | RW, "read-only": P | US}[c["rights"]]
    flags = [rights for _ in path.levels]
    path.write(m, flags)
    at = path.places[c["level"]]
    m.put(at, path.width, m.get(at, path.width) ^ 1 << bit)
    if path.width == 4 and bit == 7 and not leaf:
        m.put(at, 4, rights | (PS if c["pse"] else 0) | TEST_TABLES)  # a 4 MiB page elsewhere, or a table
        if c["pse"]:
            return None
    return access(m, path, c["kind"])


def wrong_space(mode: str, size: str) -> Space:
    """Every bit of every entry of one page size."""
    wide = mode != "32-bit"
    return Space(
        f"{mode} {size} entries", paging=(mode,), size=(size,), mode=(CPU_MODE[mode],), level=range(4),
        bit=range(64 if wide else 32), wp=(1,), smep=(0, 1), smap=(0,), ac=(0,), nxe=(1, 0) if wide else (0,),
        cpl=(0, 3), kind=("read", "write", "rmw", "fetch", "implicit read", "implicit write"),
        rights=("all", "supervisor", "read-only"), features=(1, 0), pse=(1,
            0) if size == "4K" and not wide else (1,),
    )  # fmt: skip


PERMISSIONS = Matrix(
    "page permissions",
    tuple(
        permission_space(mode, size, which) for mode, size in SIZES for which in ("typical", "levels", "all")
    ),
    permission,
    300,
    RAM,
)
ENTRIES = Matrix("paging entries", tuple(wrong_space(*key) for key in SIZES), wrong_entry, 1200, RAM)

MATRICES = (PERMISSIONS, ENTRIES)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize("matrix", MATRICES, ids=lambda matrix: matrix.name)
def test_paging_follows_the_manual(matrix: Matrix, blocks: bool) -> None:
    verify(matrix, "done", "#PF", blocks=blocks)
