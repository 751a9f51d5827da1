"""Bad code: bytes that are no instruction, instructions that are too long, over the border of a page or of
CS.

Every length, every position of the border, every way in which either page may refuse a fetch.
"""

from __future__ import annotations

import pytest

from tests.matrices import model_fetch
from tests.matrices.model_fetch import undefined_opcodes
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import GP, NXE, SMEP, Fault, Machine
from tests.matrices.world import World, identity_paging, map_page

RAM = 0x1_8000
TABLES = 0x1_0000
BORDER = 0xE000
FIRST, SECOND = BORDER - 0x1000, BORDER
P, US, XD = 1, 4, 1 << 63

# NOPs of every length (SDM Vol. 2, NOP, "Recommended Multi-Byte Sequence"), longer ones with more prefixes
LONG_NOP = b"\x66\x0f\x1f\x84\x00\x00\x00\x00\x00"
NOPS = {
    1: b"\x90", 2: b"\x66\x90", 3: b"\x0f\x1f\x00", 4: b"\x0f\x1f\x40\x00", 5: b"\x0f\x1f\x44\x00\x00",
    6: b"\x66\x0f\x1f\x44\x00\x00", 7: b"\x0f\x1f\x80\x00\x00\x00\x00", 8:
    b"\x0f\x1f\x84\x00\x00\x00\x00\x00", 9: LONG_NOP, **{n: b"\x66" * (n - 9) + LONG_NOP for n in range(10,
    24)},
}  # fmt: skip
PREFIXES = (0x66, 0x67, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x48)


def pages(world: World, c: Combination) -> Machine:
    """Paging, the code pages refusing as asked; everything else a supervisor's."""
    m = world.machine(c["mode"], c["cpl"])
    identity_paging(m, TABLES, pae=c.get("pae", 0) == 1)
    m.flat = 0xB000
    for page in range(0, RAM, 0x1000):
        if page not in (FIRST, SECOND):
            map_page(m, TABLES, page, clear=US)
    m.cr4 |= SMEP if c["smep"] else 0
    m.efer |= NXE if c["nxe"] else 0
    wide = bool(m.cr4 & 1 << 5)
    for page, what in ((FIRST, c["first"]), (SECOND, c["second"])):
        map_page(m, TABLES, page, clear=0x60)
        if what == "missing":
            map_page(m, TABLES, page, clear=P)
        elif what == "supervisor":
            map_page(m, TABLES, page, clear=US)
        elif what == "xd":
            if not wide:
                return m
            at = TABLES + (3 if m.long else 2) * 0x1000 + page // 0x1000 * 8
            m.put(at, 8, m.get(at, 8) | XD)
    return m


def at_border(world: World, c: Combination) -> Case | None:
    """`room` bytes of an instruction in front of the border."""
    raw = NOPS[c["length"]]
    if c["room"] > len(raw):
        return None
    m = pages(world, c)
    start = BORDER - c["room"]
    m.mem[start : start + len(raw)] = raw
    m.mem[start + len(raw) : start + len(raw) + 20] = b"\x90" * 20
    if c["limit"] is not None:
        if c["mode"] == "64":
            return None
        m.cs = m.cs._replace(limit=start + c["limit"] - 1)
    return elsewhere(m, start, len(raw), undefined=False)


def elsewhere(m: Machine, start: int, length: int, *, undefined: bool) -> Case:
    """A case whose code is not one of the world's snippets."""
    return Case(
        m, b"", lambda m: model_fetch.run(m, start, length, undefined=undefined), at=start, length=length
    )


def too_long(world: World, c: Combination) -> Case | None:
    """Prefixes until the instruction is longer than 15 bytes, near the border."""
    if c["prefix"] == 0x48 and c["mode"] != "64":
        return None
    raw = bytes((c["prefix"],)) * c["count"] + b"\x90"
    if c["room"] > len(raw):
        return None
    m = pages(world, c)
    start = BORDER - c["room"]
    m.mem[start : start + 64] = b"\x90" * 64
    m.mem[start : start + len(raw)] = raw
    return elsewhere(m, start, len(raw), undefined=False)


UNDEFINED = {mode: tuple(undefined_opcodes(mode == "64")) for mode in ("64", "32")}


def undefined(world: World, c: Combination) -> Case | None:
    """An opcode that is none, with prefixes; its memory operand is nowhere."""
    raw = c["prefix"] + c["opcode"]
    if c["opcode"] not in UNDEFINED[c["mode"]]:
        return None
    m = world.machine(c["mode"], c["cpl"])
    m.rbx = 0x0000_7FFF_0000_0000 if c["mode"] == "64" else 0x7FFF_0000
    start = 0xC000
    m.mem[start : start + 32] = raw + bytes(32 - len(raw))
    return elsewhere(m, start, len(raw), undefined=True)


def last_byte(world: World, c: Combination) -> Case | None:
    """64-bit code at the end of the canonical addresses."""
    m = world.machine("64", c["cpl"])
    identity_paging(m, TABLES)
    m.flat = 0xB000
    m.put(TABLES + 8 * 0xFF, 8, TABLES + 0x4000 | 0x67)
    m.put(TABLES + 0x4000 + 8 * 0x1FF, 8, TABLES + 0x5000 | 0x67)
    m.put(TABLES + 0x5000 + 8 * 0x1FF, 8, TABLES + 0x6000 | 0x67)
    m.put(TABLES + 0x6000 + 8 * 0x1FF, 8, FIRST | 0x67)
    raw = NOPS[c["length"]]
    start = (1 << 47) - c["room"]
    for n, byte in enumerate(raw):
        if 0x1000 - c["room"] + n < 0x1000:
            m.mem[FIRST + 0x1000 - c["room"] + n] = byte
    return elsewhere(m, start, len(raw), undefined=False)


def unreachable(world: World, c: Combination) -> Case | None:
    """RIP outside of the canonical addresses, EIP outside of CS: set by a jump, found by the next fetch."""
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    target = c["target"]
    m.rbx = target
    if mode != "64":
        m.cs = m.cs._replace(limit=0xFFFF)

    def jump(m: Machine) -> None:
        """SDM Vol. 2, JMP: the target is checked before anything changes."""
        inside = target >> 47 in (0, 0x1_FFFF) if mode == "64" else target <= m.cs.limit
        if not inside:
            raise Fault(GP, 0)
        m.rip = target

    return Case(m, b"\xff\xe3", jump)


STATES = ("fine", "missing", "supervisor", "xd")
BORDERS = Matrix(
    "instructions over a border",
    (
        Space("pages", mode=("64", "32"), length=range(1, 18), room=range(18),
              first=("fine", "fine", *STATES), second=STATES, cpl=(0, 3), smep=(0, 1), nxe=(1, 0),
              pae=(0, 1), limit=(None,)),
        Space("limits", mode=("32", "compat"), length=range(1, 18), room=range(18), first=("fine",),
              second=("fine", "missing"), cpl=(0, 3), smep=(0,), nxe=(0,), pae=(0,), limit=range(17)),
    ),
    at_border,
    2200,
    RAM,
)  # fmt: skip
TOO_LONG = Matrix(
    "instructions too long",
    (
        Space("prefixes", mode=("64", "32"), prefix=PREFIXES, count=range(10, 22), room=range(20),
              first=("fine",), second=("fine", "missing", "xd"), cpl=(3, 0), smep=(0, 1), nxe=(1, 0)),
    ),
    too_long,
    1200,
    RAM,
)  # fmt: skip
NONE = Matrix(
    "bytes that are no instruction",
    (
        Space("opcodes", mode=("64", "32"),
              opcode=tuple(dict.fromkeys((*UNDEFINED["64"], *UNDEFINED["32"]))),
              prefix=(b"", b"\x67", b"\x3e", b"\x65", b"\xf0"), cpl=(0, 3)),
    ),
    undefined,
    1800,
)  # fmt: skip
END = Matrix(
    "the last canonical byte",
    (Space("lengths", mode=("64",), length=range(1, 16), room=range(1, 16), cpl=(0, 3)),),
    last_byte,
    500,
    RAM,
)
TARGETS = Matrix(
    "targets of a jump",
    (
        Space("64-bit", mode=("64",), cpl=(0, 3),
              target=((1 << 47) - 1, 1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000,
                      (1 << 64) - 1, 0x9000)),
        Space("32-bit", mode=("32", "compat"), cpl=(0, 3), target=(0, 0xFFFF, 0x1_0000, 0xFFFF_FFFF)),
    ),
    unreachable,
)  # fmt: skip

MATRICES = (BORDERS, TOO_LONG, NONE, END, TARGETS)


@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [
        (BORDERS, ("done", "#PF", "#GP")), (TOO_LONG, ("done", "#PF", "#GP")), (NONE, ("#UD",)),
        (END, ("done", "#GP")), (TARGETS, ("done", "#GP")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_code_that_cannot_be_fetched_or_decoded_faults_as_the_manual_says(
    matrix: Matrix, outcomes: tuple[str, ...]
) -> None:
    verify(matrix, *outcomes)
