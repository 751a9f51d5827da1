"""Using segments: limits, types, expand-down, granularity, null selectors, canonical addresses, alignment.

Every byte position around both ends of a segment, for loads, stores and read-modify-writes of 1 to 16 bytes
through every segment register, with 16- and 32-bit addresses.
"""

from __future__ import annotations

import pytest

from tests.matrices import model_paging as paging
from tests.matrices.model_segments import WRITABLE, reference
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import AC, AM, M16, M32, M64, OSFXSR, Machine, Seg, canonical, low
from tests.matrices.world import BITS, DATA, World

NAMES = ("ds", "es", "fs", "gs", "ss", "cs")
OVERRIDE = {"es": 0x26, "cs": 0x2E, "ss": 0x36, "ds": 0x3E, "fs": 0x64, "gs": 0x65}
SIZES = (1, 2, 4, 8, 16)
PLACE = DATA + 0x800  # where the first byte of the access lies in RAM
PATTERN = bytes(range(0x21, 0x61))


def encoding(mode: str, op: str, size: int, address: int, segment: str) -> bytes | None:
    """MOV, MOVQ or MOVUPS of [rBX], or NOT of it, through a segment."""
    bits = BITS[mode]
    raw = bytes((OVERRIDE[segment],))
    if address != bits and not (bits == 64 and address == 64):
        raw += b"\x67"
    modrm = 0x07 if address == 16 else 0x03
    if op == "rmw":
        if size > 8 or (size == 8 and bits != 64):
            return None
        opcode = bytes((0xF6 if size == 1 else 0xF7, modrm | 0x10))
    elif size >= 8:
        head = {(8, "read"): b"\xf3\x0f\x7e", (8, "write"): b"\x66\x0f\xd6", (16, "read"): b"\x0f\x10",
                (16, "write"): b"\x0f\x11"}[size, op]  # fmt: skip
        return raw + head + bytes((modrm,))
    else:
        opcode = bytes(((0x8A if op == "read" else 0x88) | (size > 1), modrm))
    if (size == 2 and bits != 16) or (size == 4 and bits == 16):
        raw += b"\x66"
    return raw + (b"\x48" if size == 8 else b"") + opcode


def model(op: str, size: int, segment: str, address: int) -> object:
    """What the instruction does."""

    def instruction(m: Machine) -> None:
        offset = m.rbx & (1 << address) - 1
        linear = reference(m, segment, offset, size, write=op != "read")
        if op == "rmw":
            paging.store(m, linear, size, ~paging.modify(m, linear, size) & (1 << 8 * size) - 1)
        elif op == "write":
            source = m.rax if size < 8 else m.xmm0
            paging.store(m, linear, size, source & (1 << 8 * size) - 1)
        elif size >= 8:
            m.xmm0 = paging.load(m, linear, size)
        elif size == 1:
            m.rax = m.rax & ~0xFF | paging.load(m, linear, 1)
        else:
            m.rax = low(m.rax, paging.load(m, linear, size), (1 << 8 * size) - 1)

    return instruction


def prepared(world: World, c: Combination) -> Machine:
    """Data around PLACE, SSE switched on, alignment checks as asked."""
    m = world.machine(c["mode"], c["cpl"])
    m.mem[PLACE - 16 : PLACE - 16 + len(PATTERN)] = PATTERN
    m.xmm0 = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100
    m.cr4 |= OSFXSR
    m.rflags |= AC if c["ac"] else 0
    m.cr0 |= AM if c["am"] else 0
    return m


LIMITS = {"zero": 0, "three": 3, "page": 0xFFF, "mid": 0x8765, "64K": M16, "64K+": 0x1_0000,
          "large": 0x7FFF_FFFF,
          "all": M32}  # fmt: skip
EDGES = (-17, -16, -15, -9, -8, -7, -4, -3, -2, -1, 0, 1, 2)


def moot(c: Combination) -> tuple[str, ...]:
    """D/B of a data segment counts if that is expand-down; of a null one nothing else does."""
    if c["null"]:
        return ("kind", "db", "limit", "near")
    return () if c["kind"] & 0x1C == 0x14 or c["segment"] == "ss" else ("db",)


def by_limit(world: World, c: Combination) -> Case | None:
    """An offset near the limit, near zero or near the top of the address size."""
    mode, segment, size, address = c["mode"], c["segment"], c["size"], c["address"]
    m = prepared(world, c)
    limit = LIMITS[c["limit"]]
    top = (1 << address) - 1
    edge = {"limit": limit, "zero": 0, "top": top, "64K": M16}[c["near"]] + c["edge"]
    offset = edge & top
    seg: Seg = getattr(m, segment)
    kind = c["kind"]
    if segment == "cs":
        # code has to go on running: only its type changes, and the limit where that leaves the code inside
        if not kind & 8 or limit < 0xB000:
            return None
        m.cs = seg._replace(attributes=seg.attributes & ~0x1F | kind, limit=limit)
        if seg.base or m.cs.attributes & 0x18 != 0x18:
            return None
        offset &= M32
        if not 0 <= offset < 0xFF00 and offset + size - 1 <= limit:
            return None
    else:
        if segment == "ss" and (m.cpl != 3 or kind not in WRITABLE):
            return None  # handlers need a stack; other types cannot be loaded into SS
        base = PLACE + c.get("skew", 0) - offset & M32
        attributes = seg.attributes & ~0x401F | kind | c["db"] << 14
        m.set(**{segment: Seg(seg.selector, base, limit, attributes, null=bool(c["null"]))})
        if segment == "ss" and c["null"]:
            return None
    m.rbx = offset | (0x7777_0000 if address == 16 else 0)
    raw = encoding(mode, c["op"], size, address, segment)
    if raw is None:
        return None
    return Case(m, raw, model(c["op"], size, segment, address))  # type: ignore[arg-type]


def flat(world: World, c: Combination) -> Case | None:
    """64-bit mode: canonical addresses, FS and GS bases, segments whose limits do not count."""
    segment, size = c["segment"], c["size"]
    m = prepared(world, c)
    target = {"data": PLACE, "top": 1 << 47, "low": (1 << 47) - 1, "negative": 0xFFFF_7FFF_FFFF_FFFF,
              "end": M64,
              "bottom": 0xFFFF_8000_0000_0000}[c["where"]] + c["edge"] & M64  # fmt: skip
    base = c["base"] if segment in ("fs", "gs") else 0
    seg: Seg = getattr(m, segment)
    if segment in ("fs", "gs"):
        m.set(**{segment: seg._replace(base=base, limit=c["limit"])})
    elif segment != "cs":
        m.set(**{segment: Seg(0, 0x1234, c["limit"], 0xC093, null=segment != "ss")})
    address = c["address"]
    offset = target - base & (1 << address) - 1
    linear = base + offset & M64
    reaches = canonical(linear) and canonical(linear + size - 1 & M64) and linear + size - 1 <= M64
    if reaches and not linear < 0xFF00:
        return None  # RAM ends long before
    m.rbx = offset
    raw = encoding("64", c["op"], size, address, segment)
    if raw is None or segment not in ("fs", "gs", "ds"):
        return None  # other prefixes are ignored: this would be DS
    return Case(m, raw, model(c["op"], size, segment, address))  # type: ignore[arg-type]


def stack_based(world: World, c: Combination) -> Case | None:
    """64-bit mode: an address made of RSP or RBP is SS's, whose faults are #SS(0)."""
    m = prepared(world, c)
    target = {"top": 1 << 47, "low": (1 << 47) - 1, "data": PLACE}[c["where"]] + c["edge"]
    size = c["size"]
    if canonical(target) and canonical(target + size - 1) and target > 0xFF00:
        return None
    m.set(**{c["register"]: target})
    modrm = b"\x45\x00" if c["register"] == "rbp" else b"\x04\x24"
    opcode = bytes(((0x8A if c["op"] == "read" else 0x88) | (size > 1),))
    raw = (b"\x66" if size == 2 else b"\x48" if size == 8 else b"") + opcode + modrm

    def instruction(m: Machine) -> None:
        linear = reference(m, "ss", target, size, write=c["op"] == "write")
        if c["op"] == "write":
            paging.store(m, linear, size, m.rax & (1 << 8 * size) - 1)
        elif size == 1:
            m.rax = m.rax & ~0xFF | paging.load(m, linear, 1)
        else:
            m.rax = low(m.rax, paging.load(m, linear, size), (1 << 8 * size) - 1)

    return Case(m, raw, instruction)


OPS = ("read", "write", "rmw")
SEGMENTED = ("16", "32", "compat")
AROUND = Matrix(
    "segment limits",
    (
        Space("at the limit", moot, mode=SEGMENTED, cpl=(3,), segment=NAMES[:4], kind=range(0x10, 0x20, 2),
              db=(0, 1), limit=tuple(LIMITS), near=("limit",), edge=EDGES, size=SIZES, op=OPS,
              address=(16, 32), null=(0,), ac=(0,), am=(0,)),
        Space("elsewhere", moot, mode=SEGMENTED, cpl=(3, 0), segment=("ds", "gs"), kind=(0x13, 0x17), db=(0,
              1), limit=tuple(LIMITS), near=("zero", "top", "64K"), edge=(-17, -8, -4, -1, 0, 1), size=SIZES,
              op=OPS, address=(16, 32), null=(0, 0, 0, 1), ac=(0,), am=(0,)),
        Space("stack segment", mode=SEGMENTED, cpl=(3,), segment=("ss",), kind=(0x12, 0x17), db=(0, 1),
              limit=tuple(LIMITS), near=("limit", "zero", "top", "64K"), edge=EDGES, size=SIZES, op=OPS,
              address=(16, 32), null=(0,), ac=(0,), am=(0,)),
        Space("alignment", mode=SEGMENTED, cpl=(3, 3, 0, 1, 2), segment=("ds", "ss", "es"), kind=(0x13,),
              db=(1,), limit=("all", "mid"), near=("zero", "limit"), edge=(-16, 0), skew=range(-8, 9),
              size=SIZES, op=OPS, address=(32,), null=(0,), ac=(0, 1, 1), am=(0, 1, 1)),
        Space("code", mode=("32", "compat"), cpl=(0, 3), segment=("cs",), kind=range(0x18, 0x20), db=(1,),
              limit=("64K", "large", "all"), near=("limit", "zero"), edge=EDGES, size=SIZES, op=OPS,
              address=(32,), null=(0,), ac=(0,), am=(0,)),
    ),
    by_limit,
    1400,
)  # fmt: skip
FLAT = Matrix(
    "canonical addresses",
    (
        Space("addresses", mode=("64",), cpl=(0, 3), segment=("ds", "fs", "gs"),
              where=("data", "top", "low", "negative", "end", "bottom"), edge=range(-17, 5),
              base=(0, 0x1000, 0xFFFF_FFFF_FFFF_F000, 0x7FFF_FFFF_FFF0, 0xFFFF_8000_0000_0000), limit=(0,),
              size=SIZES, op=OPS, address=(64, 64, 32), ac=(0, 1), am=(1,)),
    ),
    flat,
    2500,
)  # fmt: skip
STACK_BASED = Matrix(
    "stack addresses",
    (
        Space("addresses", mode=("64",), cpl=(0, 3), where=("data", "top", "low"), edge=range(-12, 12),
              register=("rsp", "rbp"), size=(1, 2, 4, 8), op=("read", "write"), ac=(0, 1), am=(0, 1)),
    ),
    stack_based,
    1000,
)  # fmt: skip

MATRICES = (AROUND, FLAT, STACK_BASED)


def test_limits_and_types_of_segments_follow_the_manual() -> None:
    verify(AROUND, "done", "#GP", "#SS", "#AC")


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_addresses_in_64_bit_mode_follow_the_manual(blocks: bool) -> None:
    verify(FLAT, "done", "#GP", "#AC", blocks=blocks)
    verify(STACK_BASED, "done", "#SS", "#AC", blocks=blocks)
