"""Control and debug registers: every bit of each of them turned over in every mode, alone and in pairs.

Reserved bits, forbidden combinations, the page-directory-pointer registers, registers that do not exist.
"""

from __future__ import annotations

import pytest

from tests.matrices import model_control as control
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import DE, LME, M32, M64, PAE, PG, PGE, PSE, SMAP, SMEP, Machine
from tests.matrices.world import World, identity_paging

RAM = 0x1_8000
TABLES = 0x1_0000
STATES = (
    "real",
    "v86",
    "32",
    "32 paging",
    "32 PAE",
    "compat",
    "64",
    "64 PCID",
    "32 LME",
    "32 LME PAE",
    "32 LME 16",
)
CPU_MODE = {"real": "real", "v86": "v86", "compat": "compat", "64": "64", "64 PCID": "64"}
PCIDE = 1 << 17


def in_state(world: World, c: Combination) -> Machine:
    """A machine in one of STATES."""
    state = c["state"]
    mode = c["mode"]
    m = world.machine(mode, c["cpl"])
    if "paging" in state or state in ("v86", "64", "64 PCID", "compat"):
        identity_paging(m, TABLES)
    elif state == "32 PAE":
        identity_paging(m, TABLES, pae=True)
    elif "LME" in state:
        m.efer |= LME
        m.cr4 |= PAE if state != "32 LME" else 0
        if state == "32 LME 16":
            m.tr = m.tr._replace(attributes=0x83)
        m.put(TABLES, 8, TABLES + 0x1000 | 1)
        m.cr3 = TABLES
    if state == "64 PCID":
        m.cr4 |= PCIDE
    if state in ("32", "real"):
        m.cr3 = TABLES + 0x20
        m.put(TABLES + 0x20, 8, c.get("pdpte", 0))
    return m


def modes(state: str) -> str:
    """The world's mode of a state."""
    return CPU_MODE.get(state, "32")


def moot(c: Combination) -> tuple[str, ...]:
    """The value that nobody may write."""
    return ("first", "second") if c["cpl"] else ()


def mov_cr(world: World, c: Combination) -> Case | None:
    """MOV CRn, rAX with the register's value but for two bits; LMSW; WRMSR of EFER."""
    c = {**c, "mode": modes(c["state"])}
    what = c["what"]
    width = 64 if c["mode"] == "64" else 32
    if what != "efer" and (c["first"] >= width or c["second"] >= width or (what == "cr8" and width == 32)):
        return None
    m = in_state(world, c)
    old = {
        "cr0": m.cr0,
        "cr2": 0x1234_5678,
        "cr3": m.cr3,
        "cr4": m.cr4,
        "cr8": 0,
        "lmsw": m.cr0,
        "efer": m.efer,
    }[what]
    value = old ^ (1 << c["first"] | 1 << c["second"])
    if what == "cr3" and not m.long and value >= RAM:
        return None  # a directory outside of RAM
    m.rax = value
    if what == "lmsw":
        return Case(m, b"\x0f\x01\xf0", lambda m: control.lmsw(m, value))
    if what == "efer":
        m.rcx, m.rdx, m.rax = 0xC000_0080, value >> 32, value & M32
        return Case(m, b"\x0f\x30", lambda m: control.write_efer(m, value))
    number = int(what[2:])
    raw = (b"\x44" if number == 8 else b"") + bytes((0x0F, 0x22, 0xC0 | (number & 7) << 3))
    return Case(m, raw, lambda m: control.mov_to_cr(m, number, value))


def register_number(world: World, c: Combination) -> Case | None:
    """Every register number of MOV CR and MOV DR, both ways, at every level."""
    state = c["state"]
    c = {**c, "mode": modes(state)}
    if c["number"] > 7 and c["mode"] != "64":
        return None
    m = in_state(world, c)
    m.cr4 |= DE if c["de"] else 0
    m.dr7 |= 1 << 13 if c["gd"] else 0
    for n in range(4):
        m.set(**{f"dr{n}": 0x1_0000 * (n + 1)})
    number, mask = c["number"], M64 if c["mode"] == "64" else M32
    rex = b"\x44" if number > 7 else b""
    opcode = {"to cr": 0x22, "from cr": 0x20, "to dr": 0x23, "from dr": 0x21}[c["what"]]
    value = {"to cr": {0: m.cr0, 3: m.cr3, 4: m.cr4, 8: 5}.get(number, 0x7777), "to dr": c["value"]}.get(
        c["what"], 0
    )
    if c["what"].startswith("to"):
        m.rax = value & mask

    def instruction(m: Machine) -> None:
        match c["what"]:
            case "to cr":
                control.mov_to_cr(m, number, value)
            case "from cr":
                m.rax = control.mov_from_cr(m, number) & mask
            case "to dr":
                control.mov_to_dr(m, number, value & mask)
            case "from dr":
                m.rax = control.mov_from_dr(m, number) & mask

    return Case(m, rex + bytes((0x0F, opcode, 0xC0 | (number & 7) << 3)), instruction)


def pdptes(world: World, c: Combination) -> Case | None:
    """A bit in one of the four entries, read by MOV CR3, by switching paging on, by changing CR4."""
    how = c["how"]
    c = {**c, "mode": "32", "state": "32" if how == "enable" else "32 PAE"}
    m = in_state(world, c)
    table = TABLES + 0x3000 if how != "enable" else TABLES + 0x20
    for n in range(4):
        m.put(table + 8 * n, 8, TABLES + 0x1000 | (1 if n == 0 else 0))
    entry = (TABLES + 0x1000 | c["p"]) ^ 1 << c["bit"]
    m.put(table + 8 * c["entry"], 8, entry)
    if how == "cr3":
        m.rax = table | c["low"]
        return Case(m, b"\x0f\x22\xd8", lambda m: control.mov_to_cr(m, 3, table | c["low"]))
    m.cr3 = table
    if how == "enable":
        m.cr4 |= PAE
        m.rax = value = m.cr0 | PG
        return Case(m, b"\x0f\x22\xc0", lambda m: control.mov_to_cr(m, 0, value))
    m.rax = value = m.cr4 ^ {"pge": PGE, "pse": PSE, "smep": SMEP, "smap": SMAP, "pae": PAE}[how]
    return Case(m, b"\x0f\x22\xe0", lambda m: control.mov_to_cr(m, 4, value))


CONTROL = Matrix(
    "bits of control registers",
    (
        Space("one bit", state=STATES, what=("cr0", "cr2", "cr3", "cr4", "cr8", "lmsw", "efer"),
              first=range(64), second=(0,), cpl=(0,)),
        Space("two bits", moot, state=STATES, what=("cr0", "cr4", "cr3", "efer"), first=range(64),
              second=range(32), cpl=(0, 0, 0, 3)),
        Space("two bits of CR0", state=STATES, what=("cr0",), first=(0, 1, 5, 16, 29, 30, 31),
              second=range(32), cpl=(0,)),
        Space("levels", state=STATES, what=("cr0", "cr3", "cr4", "lmsw", "efer"), first=(1, 3, 40),
              second=(2,), cpl=range(4)),
    ),
    mov_cr,
    1000,
    RAM,
)  # fmt: skip
NUMBERS = Matrix(
    "numbers of control and debug registers",
    (
        Space("numbers", state=("32", "32 paging", "compat", "64"),
              what=("to cr", "from cr", "to dr", "from dr"), number=range(16), cpl=range(4), de=(0, 1),
              gd=(0, 1), value=(0, M32, 0x5555_5555, 1 << 32, 1 << 63)),
        Space("bits of debug registers", state=("32", "64"), what=("to dr",), number=range(8), cpl=(0,),
              de=(0, 1), gd=(0,), value=(*(1 << n for n in range(64)), *(M64 ^ 1 << n for n in range(64)))),
    ),
    register_number,
    1500,
    RAM,
)  # fmt: skip
PDPTES = Matrix(
    "page-directory-pointer registers",
    (
        Space("bits", how=("cr3", "enable", "pge", "pse", "smep", "smap", "pae"), entry=range(4),
              bit=range(64), p=(1, 0), low=(0, 0x1F), cpl=(0,)),
    ),
    pdptes,
    1000,
    RAM,
)  # fmt: skip

MATRICES = (CONTROL, NUMBERS, PDPTES)


@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [(CONTROL, ("done", "#GP")), (NUMBERS, ("done", "#GP", "#UD", "#DB")), (PDPTES, ("done", "#GP"))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_control_and_debug_registers_follow_the_manual(matrix: Matrix, outcomes: tuple[str, ...]) -> None:
    verify(matrix, *outcomes)
