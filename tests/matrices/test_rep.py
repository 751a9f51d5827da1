"""String instructions, repeated or not, with a fault at every element: pages, limits, the end of an address
size.

Registers, flags, memory, ports and the number of retired instructions are compared, whether the elements go
one by one or many at once.
"""

from __future__ import annotations

import pytest

from tests.matrices.model_rep import string
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import DF, IOPL, M16, M32, WP, Machine
from tests.matrices.world import BITS, World, identity_paging, map_page

RAM = 0x1_8000
TABLES = 0x1_0000
SOURCE, TARGET = 0xD000, 0xF000  # the borders that elements run over: the page before and the page behind
OPCODES = {"movs": 0xA4, "cmps": 0xA6, "stos": 0xAA, "lods": 0xAC, "scas": 0xAE, "ins": 0x6C, "outs": 0x6E}
PREFIXES = {"": b"", "rep": b"\xf3", "repne": b"\xf2"}
P, RW, US = 1, 2, 4


def encoding(mode: str, op: str, size: int, address: int, rep: str) -> bytes | None:
    """The instruction, or None where it does not exist."""
    bits = BITS[mode]
    if (size == 8 and (bits != 64 or op in ("ins", "outs"))) or (address == 64) > (bits == 64):
        return None
    if (address == 16) > (bits != 64):
        return None
    raw = PREFIXES[rep] + (b"\x67" if address != bits else b"")
    if (size == 2 and bits != 16) or (size == 4 and bits == 16):
        raw += b"\x66"
    return raw + (b"\x48" if size == 8 else b"") + bytes((OPCODES[op] | (size > 1),))


def fill(m: Machine, mismatch: int, size: int) -> None:
    """Source and target areas: equal elements, but for one."""
    area = bytes(0x30 + (n // size & 1) for n in range(0x200))
    for border in (SOURCE, TARGET):
        m.mem[border - 0x100 : border + 0x100] = area
    m.mem[TARGET - 0x100 : TARGET + 0x100] = (
        bytes(0x41 + (n & 7) for n in range(0x200)) if mismatch < 0 else area
    )
    m.rax = int.from_bytes(area[:8], "little") ^ (0 if mismatch >= 0 else 0x4040)


SOURCES, COMPARES = ("movs", "cmps", "lods", "outs"), ("cmps", "scas")


def moot(c: Combination) -> tuple[str, ...]:
    """What is no element's business: of no element, nothing; who compares nothing looks at no contents."""
    found = () if c["op"] in SOURCES else ("only",)
    if c["op"] not in COMPARES:
        found = (*found, "mismatch", "flags")
    if not c["rep"]:
        return (*found, "count")
    return (*found, "fault", "straddle", "pages") if c["count"] == 0 else found


def moot_at_limit(c: Combination) -> tuple[str, ...]:
    """A single element does not look at the count."""
    if not c["rep"]:
        return ("count",)
    return ("fault", "straddle", "which", "edge", "type") if c["count"] == 0 else ()


def at_page(world: World, c: Combination) -> Case | None:
    """Element `fault` is the first with a byte behind the border of a page that may be missing or refused."""
    mode, op, size, address, rep = c["mode"], c["op"], c["size"], c["address"], c["rep"]
    raw = encoding(mode, op, size, address, rep)
    if raw is None or c["straddle"] >= size:
        return None
    m = world.machine(mode, c["cpl"])
    identity_paging(m, TABLES)
    m.flat = 0xB000
    m.cr0 |= WP
    m.rflags |= (DF if c["df"] else 0) | IOPL | c["flags"]
    fill(m, c["mismatch"], size)
    if c["mismatch"] >= 0:
        at = c["mismatch"] * size
        for border in (SOURCE,):
            first = start_of(border, c)
            index = first - at if c["df"] else first + at
            m.mem[index] ^= 0x80
    # DF = 1 runs over the border downwards: the page that may be wrong is the one before it
    wrong = -1 if c["df"] else 0
    for border, what in ((SOURCE, c["pages"][0]), (TARGET, c["pages"][1])):
        clear = {"fine": 0, "missing": P, "read-only": RW, "supervisor": US}[what]
        map_page(m, TABLES, border + 0x1000 * wrong, clear=clear)
    m.rsi, m.rdi = start_of(SOURCE, c), start_of(TARGET, c)
    if c["only"] == "target":
        m.rsi = SOURCE + (0x80 if not c["df"] else -0x80) if c["pages"][0] == "fine" else m.rsi
    if address < 64 and mode == "64":
        m.rsi |= 0xAAAA << 48
        m.rdi |= 0xBBBB << 48
    m.rcx = c["count"] | (0xCCCC << 48 if address == 32 and mode == "64" else 0)
    start = m

    def instruction(m: Machine) -> None:
        string(m, op, size, address, rep, start=start.rip)

    return Case(m, raw, instruction, 0)


def start_of(border: int, c: Combination) -> int:
    """Address of the first element, so that element `fault` is the first to reach over the border."""
    size: int = c["size"]
    straddle: int = c["straddle"]
    before: int = c["fault"] * size
    if c["df"]:  # elements go down; the one that faults begins `straddle` bytes in front of a whole one
        return border - size + straddle + before
    return border - straddle - before


def at_limit(world: World, c: Combination) -> Case | None:
    """Segments end at an element; offsets wrap at the end of the address size."""
    mode, op, size, address, rep = c["mode"], c["op"], c["size"], c["address"], c["rep"]
    raw = encoding(mode, op, size, address, rep)
    if raw is None or c["straddle"] >= size:
        return None
    m = world.machine(mode, c["cpl"])
    m.rflags |= (DF if c["df"] else 0) | IOPL
    fill(m, 0, 1)
    m.rsi, m.rdi = 0x100, 0x100
    for name, register, place in (("ds", "rsi", SOURCE - 0x80), ("es", "rdi", TARGET - 0x80)):
        seg = getattr(m, name)
        which = c["which"]
        limit, offset = M32, 0x100
        if which in (name, "both"):
            edge = 0x300 if c["edge"] == "limit" else M16 if address == 16 else M32
            if c["df"]:
                # downwards: what wraps is offset 0; expand-down segments begin behind their limit
                offset = c["fault"] * size + c["straddle"]
                if c["edge"] == "limit":
                    offset += 0x301
                    limit = 0x300
                    seg = seg._replace(attributes=seg.attributes | 4)
            else:
                offset = edge + 1 - c["fault"] * size - c["straddle"] & (1 << address) - 1
                limit = edge if c["edge"] == "limit" or address == 16 else M32
        if c["type"] == "read-only" and name == "es":
            seg = seg._replace(attributes=seg.attributes & ~2)
        base = place - offset & M32
        if address == 16 and c["edge"] == "top":  # both ends of 64 KiB have to lie in RAM
            base = 0x1_0000 if name == "ds" else 0x1_1000
        m.set(**{name: seg._replace(base=base, limit=limit), register: offset})
    m.rsi |= c["high"] if address == 16 else 0
    m.rdi |= c["high"] if address == 16 else 0
    m.rcx = c["count"] | (c["high"] if address == 16 else 0)
    start = m

    def instruction(m: Machine) -> None:
        string(m, op, size, address, rep, start=start.rip)

    return Case(m, raw, instruction, 0)


def privileged(world: World, c: Combination) -> Case | None:
    """INS and OUTS: IOPL, and a count of nought."""
    raw = encoding(c["mode"], c["op"], c["size"], BITS[c["mode"]], c["rep"])
    if raw is None:
        return None
    m = world.machine(c["mode"], c["cpl"])
    m.rflags |= c["iopl"] << 12 | (DF if c["df"] else 0)
    m.rsi, m.rdi, m.rcx = SOURCE, TARGET, c["count"]
    start, address = m, BITS[c["mode"]]

    def instruction(m: Machine) -> None:
        string(m, c["op"], c["size"], address, c["rep"], start=start.rip)

    return Case(m, raw, instruction, 0)


OPS = tuple(OPCODES)
# What is wrong with the source's page and with the target's
PAGES = (("fine", "fine"), ("missing", "fine"), ("supervisor", "fine"), ("fine", "missing"), ("fine",
         "read-only"),
         ("fine", "supervisor"), ("missing", "missing"))  # fmt: skip
AT_PAGE = Matrix(
    "strings over pages",
    (
        Space("repeated", moot, mode=("64", "32"), op=OPS, size=(1, 2, 4, 8), address=(64, 32),
              rep=("rep", "repne"), df=(0, 1), fault=(0, 1, 3, 4, 8), straddle=(0, 0, 1, 3),
              count=(0, 5, 14), pages=PAGES, only=("both", "target"), cpl=(3,), mismatch=(-1, 2, 40),
              flags=(0,)),
        Space("once", moot, mode=("64", "32"), op=OPS, size=(1, 2, 4, 8), address=(64, 32), rep=("",),
              df=(0, 1),
              fault=(0, 1), straddle=range(8), count=(0, 3), pages=PAGES, only=("both",), cpl=(0, 3),
              mismatch=(0, 40), flags=(0, 0x8D5)),
        Space("long", moot, mode=("64",), op=("movs", "cmps", "stos", "scas", "lods"), size=(1, 2, 4, 8),
              address=(64, 32), rep=("rep",), df=(0, 1), fault=range(10), straddle=(0, 1),
              count=(9, 14, 30), pages=PAGES[1:], only=("target", "both"), cpl=(3,), mismatch=(40,),
              flags=(0, 0x8D5)),
    ),
    at_page,
    1400,
    RAM,
)  # fmt: skip
AT_LIMIT = Matrix(
    "strings over limits",
    (
        Space("limits", moot_at_limit, mode=("32", "16", "compat"), op=OPS, size=(1, 2, 4), address=(16, 32),
              rep=("rep", "repne", ""), df=(0, 1), fault=(0, 1, 3, 4, 8), straddle=(0, 0, 1, 3),
              count=(0, 1, 4, 20), which=("ds", "es", "both"), edge=("limit", "top"),
              type=("fine", "fine", "read-only"), cpl=(3,), high=(0x7777_0000,)),
    ),
    at_limit,
    2200,
    0x2_2000,
)  # fmt: skip
PRIVILEGED = Matrix(
    "INS and OUTS",
    (
        Space("levels", mode=("32", "64", "compat"), op=("ins", "outs"), size=(1, 2, 4),
              rep=("rep", "repne", ""), cpl=range(4), iopl=range(4), df=(0, 1), count=(0, 1, 5)),
    ),
    privileged,
    800,
)  # fmt: skip

MATRICES = (AT_PAGE, AT_LIMIT, PRIVILEGED)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_strings_stop_at_the_element_whose_page_refuses(blocks: bool) -> None:
    verify(AT_PAGE, "done", "#PF", blocks=blocks)


def test_strings_stop_at_the_element_beyond_the_limit() -> None:
    verify(AT_LIMIT, "done", "#GP")


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_string_input_and_output_look_at_iopl_even_for_no_element(blocks: bool) -> None:
    verify(PRIVILEGED, "done", "#GP", blocks=blocks)
