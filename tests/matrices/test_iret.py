"""IRET, IRETD and IRETQ: to the same level, outward, to virtual-8086 mode, from it, in real mode, to a task.

Every selector, every flag bit at every CPL and IOPL, every frame that does not fit.
"""

from __future__ import annotations

import pytest

from tests.matrices.model_iret import iret
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import M16, M32, NT, VIF, VIP, VM, VME
from tests.matrices.test_far import (
    OFFSET,
    RETURN_STACKS,
    TASK_FAULTS,
    data_segments,
    return_stack,
    write_task,
)
from tests.matrices.test_segment_loads import prefix
from tests.matrices.world import (
    CODE32_SELECTOR,
    CODE_SELECTOR,
    GDT,
    LDT,
    SLOT,
    STACK,
    TSS,
    TSS2_SELECTOR,
    World,
    descriptor,
)

PROTECTED = ("16", "32", "compat", "64")
# Every bit of the image alone, none, all, and the reserved ones
IMAGES = (2, 0xFFFF_FFFF, 0xFFC0_802A, *(1 << n | 2 for n in range(22)))
SIZES = (16, 32, 64)


def encoding(mode: str, bits: int) -> bytes | None:
    """IRET, IRETD or IRETQ in this mode."""
    if bits == 64:
        return b"\x48\xcf" if mode == "64" else None
    return prefix(mode, bits) + b"\xcf"


def moot(c: Combination) -> tuple[str, ...]:
    """The flags of a return that is refused for its RPL."""
    return ("iopl", "flags", "image", "stack") if c["rpl"] < c["cpl"] else ()


def moot_vme(c: Combination) -> tuple[str, ...]:
    """CR4.VME counts in virtual-8086 mode."""
    return ("vme",) if c["mode"] == "real" else ()


def protected(world: World, c: Combination) -> Case | None:
    """A return to the code of SLOT with the stack of SLOT2."""
    mode, bits = c["mode"], c["bits"]
    raw = encoding(mode, bits)
    if raw is None:
        return None
    m = world.machine(mode, c["cpl"])
    size = bits // 8
    flags = c["code flags"]
    limit = OFFSET - 1 if c["entry"] == "limit" else M32
    for table in (GDT, LDT):
        m.put(
            table + SLOT, 8, descriptor(c["kind"], c["dpl"], limit=limit, present=c["present"], flags=flags)
        )
    offset = OFFSET if c["entry"] != "high" else 0x8000_0000_0000 if bits == 64 else 0x1_4321
    selector = {"slot": SLOT, "ldt": SLOT | 4, "null": 0, "outside": 0x200}[c["code"]] | c["rpl"]
    stack = return_stack(m, c["stack"], c["rpl"])
    m.rflags |= c["iopl"] << 12 | c["flags"]
    image = c["image"]
    frame = (offset, selector | 0xABCD_0000, image, 0xFEDC_7000, stack)
    for n, value in enumerate(frame):
        m.put(m.rsp + n * size, size, value & (1 << bits) - 1)
    data_segments(m, c["data"])
    if c["room"] and mode != "64":
        m.ss = m.ss._replace(limit=STACK + c["room"] * size - 1)
    m.nmi_blocked = bool(c["nmi"])
    return Case(m, raw, lambda m: iret(m, size))


def to_v86(world: World, c: Combination) -> Case | None:
    """VM = 1 in the image: nine doublewords, from CPL 0 with a 32-bit IRET only."""
    m = world.machine(c["mode"], c["cpl"])
    raw = encoding(c["mode"], c["bits"])
    if raw is None:
        return None
    size = c["bits"] // 8
    m.rflags |= c["iopl"] << 12
    frame = (c["eip"], 0x1234 | 0xFFFF_0000, c["image"], 0x9ABC_5678, 0x2345, 0x3456, 0x4567, 0x5678, 0x6789)
    for n, value in enumerate(frame):
        m.put(m.rsp + n * size, size, value & (1 << c["bits"]) - 1)
    if c["cs"]:
        m.put(m.rsp + size, size, CODE_SELECTOR[c["cpl"]])
    if c["room"]:
        m.ss = m.ss._replace(limit=STACK + c["room"] * size - 1)
    return Case(m, raw, lambda m: iret(m, size))


def without_descriptors(world: World, c: Combination) -> Case | None:
    """Real-address mode, and virtual-8086 mode with and without VME."""
    mode = c["mode"]
    m = world.machine(mode)
    raw = encoding(mode, c["bits"])
    if raw is None:
        return None
    size = c["bits"] // 8
    m.rflags |= c["iopl"] << 12 | c["flags"]
    m.cr4 |= VME if c["vme"] else 0
    m.rsp = {"plain": STACK, "top": 0xFFFA, "wrap": 0xFFFC, "odd": 0xFFFB, "high": 0x5_1234_7800}[c["sp"]]
    for n, value in enumerate((c["ip"], 0x1234, c["image"])):
        at = m.rsp + n * size & M16
        for k in range(size):
            if at + k < 0x1_0000:
                m.put(at + k, 1, value >> 8 * k & 0xFF)
    m.nmi_blocked = bool(c["nmi"])
    return Case(m, raw, lambda m: iret(m, size))


def nested(world: World, c: Combination) -> Case | None:
    """NT = 1: back to the task that the link names; #GP(0) in IA-32e mode."""
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    raw = encoding(mode, c["bits"])
    if raw is None:
        return None
    m.rflags |= NT
    write_task(m, c["what"], c["wide"], c["level"])
    if c["what"] != "busy":  # here the previous task has to be busy
        m.mem[GDT + TSS2_SELECTOR + 5] |= 2
    else:
        m.mem[GDT + TSS2_SELECTOR + 5] &= ~2
    link = {
        "tss": TSS2_SELECTOR,
        "null": 3,
        "ldt": TSS2_SELECTOR | 4,
        "outside": 0x200,
        "code": CODE32_SELECTOR[0],
    }
    m.put(TSS, 2, link[c["link"]])
    return Case(m, raw, lambda m: iret(m, c["bits"] // 8))


FLAGS = (0, 0xCD5, 0x25_0000, VIF | VIP, 0x200)
RETURNS = Matrix(
    "IRET",
    (
        Space("by code segment", mode=PROTECTED, bits=SIZES, kind=range(32), dpl=range(4), rpl=range(4),
              cpl=range(4), present=(1, 0), code=("slot",), entry=("plain",), stack=("fine",),
              data=("own",), room=(0,), iopl=(0,), flags=(0,), image=(2,), nmi=(0,),
              **{"code flags": (4, 0xA, 0xC, 6)}),
        Space("by frame", mode=PROTECTED, bits=SIZES, kind=(0x1E,), dpl=(0,), rpl=range(4),
              cpl=(0, 0, 1, 2, 3), present=(1,), code=("slot", "slot", "slot", "ldt", "null", "outside"),
              entry=("plain", "plain", "limit", "high"), stack=RETURN_STACKS, data=("own",),
              room=(0, 0, 0, 1, 2, 3, 4, 5), iopl=(0,), flags=(0,), image=(2,), nmi=(1,),
              **{"code flags": (0xC, 2)}),
        Space("by flags", moot, mode=PROTECTED, bits=SIZES, kind=(0x1F,), dpl=(0,), rpl=(0, 3), cpl=range(4),
              present=(1,), code=("slot",), entry=("plain",), stack=("fine", "null"), data=("own",),
              room=(0,), iopl=range(4), flags=FLAGS, image=IMAGES, nmi=(0, 1), **{"code flags": (0xC, 2)}),
        Space("outward", mode=PROTECTED, bits=SIZES, kind=(0x1E,), dpl=(0,), rpl=(1, 2, 3, 3),
              cpl=(0, 0, 1, 2), present=(1,), code=("slot",), entry=("plain",),
              stack=("fine", "16-bit", "null", "not accessed"), data=("own", "null", "0", "1", "2", "3"),
              room=(0,), iopl=(0, 3), flags=(0, 0x25_0000),
              image=(2, 0xFFFD_FFFF, 0x3000, 0x25_0000, 0x200), nmi=(0,), **{"code flags": (0xC, 2)}),
    ),
    protected,
    1300,
)  # fmt: skip
TO_V86 = Matrix(
    "IRET to virtual-8086 mode",
    (
        Space("by image", mode=("32", "16", "compat", "64"), bits=(32, 32, 32, 16, 64), cpl=(0, 0, 0, 1, 3),
              eip=(0x1234, 0xFFFF, 0x1_0000, 0xFFFF_1234), image=tuple(image | VM for image in IMAGES),
              cs=(0, 0, 1), iopl=(0, 3), room=(0, 0, 0, 3, 4, 5, 6, 7, 8, 9)),
    ),
    to_v86,
    1200,
)  # fmt: skip
PLAIN = Matrix(
    "IRET without descriptors",
    (
        Space("by flags", moot_vme, mode=("real", "v86"), bits=(16, 32), iopl=range(4), vme=(0, 1),
              image=IMAGES, ip=(0x1234, 0xFFFF, 0x1_0000, 0x8765_4321), flags=(*FLAGS, VIP, VIF), nmi=(0, 1),
              sp=("plain", "plain", "plain", "top", "wrap", "odd", "high")),
    ),
    without_descriptors,
    1500,
)  # fmt: skip
NESTED = Matrix(
    "IRET to the previous task",
    (
        Space("by state", mode=("32", "16"), bits=(16, 32), cpl=(0, 3), wide=(True, False), level=(0, 3),
              what=TASK_FAULTS, link=("tss",)),
        Space("by link", mode=("32", "16", "compat", "64"), bits=(16, 32, 64), cpl=range(4), wide=(True,),
              level=(0,), what=("none",), link=("tss", "null", "ldt", "outside", "code")),
    ),
    nested,
    600,
)  # fmt: skip

MATRICES = (RETURNS, TO_V86, PLAIN, NESTED)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_iret_follows_the_manual(blocks: bool) -> None:
    verify(RETURNS, "done", "#GP", "#NP", *(() if blocks else ("#SS",)), blocks=blocks)


def test_iret_to_virtual_8086_mode_follows_the_manual() -> None:
    verify(TO_V86, "done", "#GP", "#SS")


def test_iret_in_real_and_virtual_8086_mode_follows_the_manual() -> None:
    verify(PLAIN, "done", "#GP", "#SS")


def test_iret_from_a_nested_task_follows_the_manual() -> None:
    verify(NESTED, "done", "#GP", "#NP", "#TS")
