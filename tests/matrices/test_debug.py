"""Breakpoint registers, single step, RF, shadows and the order of events at an instruction boundary.

Programs of a few instructions run for a few steps, each an instruction or a delivery; the handlers hold NOPs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.matrices import model_split as split
from tests.matrices.bench import FILLER, LEAD, Bench
from tests.matrices.model_debug import MOV_SS, STI, Session, Step, run
from tests.matrices.model_gates import INT1, INT3, INT_N, software_interrupt
from tests.matrices.model_iret import iret
from tests.matrices.model_rep import element, port_value
from tests.matrices.model_segments import load_sreg, reference
from tests.matrices.runner import SHOWN, Report, form_of
from tests.matrices.space import FULL, Combination, Space
from tests.matrices.spec import (
    DE,
    DE_VECTOR,
    ET,
    ID,
    IF,
    IOPL,
    M16,
    OSFXSR,
    RF,
    TF,
    UD,
    Fault,
    Machine,
    low,
)
from tests.matrices.test_gates import set_gate
from tests.matrices.world import (
    BITS,
    CODE,
    CODE_SELECTOR,
    DATA,
    DATA_SELECTOR,
    HANDLER,
    RAM,
    World,
    gate,
    identity_paging,
    map_page,
)

HANDLERS_END = HANDLER + 0x1000
TABLES = 0x1_0000
NOP = Step(b"\x90", lambda m: None)
WATCHED = DATA + 0x100
PORT = 0x3F8


# ---- instructions ------------------------------------------------------------------------------------------


def fault(vector: int) -> Callable[[Machine], None]:
    """An instruction that always faults."""

    def instruction(m: Machine) -> None:
        raise Fault(vector)

    return instruction


def set_if(value: int) -> Callable[[Machine], None]:
    """CLI and STI where they are allowed."""

    def instruction(m: Machine) -> None:
        m.rflags = m.rflags & ~IF | value

    return instruction


def port_in(size: int) -> Callable[[Machine], None]:
    """IN"""

    def instruction(m: Machine) -> None:
        m.ports = (("in", m.rdx & M16, size),)
        value = port_value(0) & (1 << 8 * size) - 1
        m.rax = m.rax & ~0xFF | value if size == 1 else low(m.rax, value, (1 << 8 * size) - 1)

    return instruction


def port_out(size: int) -> Callable[[Machine], None]:
    """OUT"""

    def instruction(m: Machine) -> None:
        m.ports = (("out", m.rdx & M16, size, m.rax & (1 << 8 * size) - 1),)

    return instruction


def jump(distance: int) -> Callable[[Machine], None]:
    """JMP rel8"""

    def instruction(m: Machine) -> None:
        m.rip += distance

    return instruction


def repeated(op: str, address: int) -> Callable[[Machine], None]:
    """One iteration of REP, as the CPU does it when it has to look around between two of them."""

    def instruction(m: Machine) -> None:
        mask = (1 << address) - 1
        if not m.rcx & mask:
            return
        element(m, op, 1, address, "ds")
        m.rcx = low(m.rcx, (m.rcx & mask) - 1, mask)
        if m.rcx & mask:
            m.rip -= 2

    return instruction


def mov_ss_memory(m: Machine) -> None:
    """MOV SS, [RBX]"""
    load_sreg(m, "ss", split.load(m, m.rbx, 2))


def pop_flags(size: int) -> Callable[[Machine], None]:
    """POPF at CPL 0, or above it with IOPL 3"""

    def instruction(m: Machine) -> None:
        image = split.pop_value(m, size)
        mask = 0xCD5 | TF | IF | 1 << 14 | 1 << 18 | ID | (IOPL if m.cpl == 0 else 0)
        m.rflags = m.rflags & ~mask | image & mask

    return instruction


def syscall(m: Machine) -> None:
    """SYSCALL with the STAR, LSTAR and FMASK of `machine`"""
    m.rcx, m.r11 = m.rip, m.rflags & ~RF
    m.rip = HANDLER + 0x20 * 16
    m.cs = m.cs._replace(selector=CODE_SELECTOR[0], attributes=0xA09B, base=0, limit=0xFFFF_FFFF)
    m.ss = m.ss._replace(selector=CODE_SELECTOR[0] + 8, attributes=0xC093, base=0, limit=0xFFFF_FFFF)
    m.cpl = 0
    m.rflags = m.rflags & ~(m.msrs[0xC000_0084] | RF) | 2


def instructions(mode: str) -> dict[str, Step]:
    """What a program may consist of."""
    wide = mode == "64"
    size, address = (8, 64) if wide else (4, 32)
    found = {
        "nop": NOP,
        "mov ss": Step(b"\x8e\xd0", lambda m: load_sreg(m, "ss", m.rax & M16), MOV_SS),
        "mov ss m": Step(b"\x8e\x13", mov_ss_memory, MOV_SS),
        "mov ds": Step(b"\x8e\xd8", lambda m: load_sreg(m, "ds", m.rax & M16)),
        "sti": Step(b"\xfb", set_if(IF), STI),
        "cli": Step(b"\xfa", set_if(0)),
        "ud2": Step(b"\x0f\x0b", fault(UD)),
        "div": Step(b"\xf7\xf5", fault(DE_VECTOR)),
        "int n": Step(b"\xcd\x41", lambda m: software_interrupt(m, 0x41, INT_N), no_trap=True),
        "int3": Step(b"\xcc", lambda m: software_interrupt(m, 3, INT3), no_trap=True),
        "int1": Step(b"\xf1", lambda m: software_interrupt(m, 1, INT1), no_trap=True),
        "load": Step(b"\x8b\x03", split.loads(4)),
        "store": Step(b"\x89\x03", split.stores(4, lambda m: m.rax)),
        "add": Step(b"\x01\x03", split.add(4)),
        "push": Step(b"\x50", split.push(size, lambda m: m.rax)),
        "push m": Step(b"\xff\x33", split.push_memory(size)),
        "jmp": Step(b"\xeb\x00", jump(0)),
        "popf": Step(b"\x9d", pop_flags(size)),
        "iret": Step(b"\x48\xcf" if wide else b"\xcf", lambda m: iret(m, size)),
        "rep movs": Step(b"\xf3\xa4", repeated("movs", address), repeats=True),
        "rep stos": Step(b"\xf3\xaa", repeated("stos", address), repeats=True),
        "in": Step(b"\xec", port_in(1)),
        "in32": Step(b"\xed", port_in(4)),
        "out": Step(b"\xee", port_out(1)),
        "out16": Step(b"\x66\xef", port_out(2)),
    }
    if wide:
        found["syscall"] = Step(b"\x0f\x05", syscall, masks_trap=True)
    else:
        found["pop ss"] = Step(b"\x17", pop_ss, MOV_SS)
        found["lss"] = Step(b"\x0f\xb2\x23", load_stack_pointer)
    return found


def pop_ss(m: Machine) -> None:
    """POP SS"""
    selector = split.load(m, m.rsp, 4, "ss") & M16
    after = m.rsp + 4 & m.stack_mask
    load_sreg(m, "ss", selector)
    m.rsp = after


def load_stack_pointer(m: Machine) -> None:
    """LSS ESP, [EBX]: no shadow, for the stack pointer comes along"""
    at = reference(m, "ds", m.rbx, 4, write=False)
    selector = reference(m, "ds", m.rbx + 4, 2, write=False)
    load_sreg(m, "ss", m.get(selector, 2))
    m.rsp = m.get(at, 4)


INSTRUCTIONS = {mode: instructions(mode) for mode in ("64", "32")}


# ---- the machine -------------------------------------------------------------------------------------------


def machine(world: World, mode: str, cpl: int) -> Machine:
    """Registers such that every instruction above has something to do."""
    m = world.machine(mode, cpl)
    m.mem[HANDLER:HANDLERS_END] = b"\x90" * 0x1000
    m.rax = DATA_SELECTOR[cpl]
    m.rbx, m.rcx, m.rdx, m.rsi, m.rdi = WATCHED, 3, PORT, 0, WATCHED + 0x40
    m.rbp = 0
    m.rflags |= IOPL
    m.cr0 |= ET
    m.cr4 |= OSFXSR
    m.put(WATCHED, 8, DATA_SELECTOR[cpl] | (0x7000 << 32 if mode == "64" else 0))
    if mode == "32":
        m.put(WATCHED + 4, 2, DATA_SELECTOR[cpl])
    m.put(m.rsp, 8, DATA_SELECTOR[cpl])
    for vector in (0x41, 3, 1):
        set_gate(m, vector, gate(14, CODE_SELECTOR[0], HANDLER + 16 * vector, dpl=3))
    m.msrs = {0xC000_0081: CODE_SELECTOR[0] << 32, 0xC000_0082: HANDLER + 0x20 * 16, 0xC000_0084: 0}
    return m


class Program(dict[int, Step]):
    """Where each instruction lies; the handlers are NOPs."""

    def __missing__(self, at: int) -> Step:
        if HANDLER <= at < HANDLERS_END:
            return NOP
        raise KeyError(at)


class Scene:
    """A start and a program; `text` is where each instruction lies."""

    def __init__(self, m: Machine, mode: str, names: list[str], late: int = 0) -> None:
        self.m = m
        self.late = late
        self.at: list[int] = []
        self.program = Program()
        at = CODE + LEAD
        m.mem[CODE:at] = FILLER
        for name in (*names, *("nop",) * 8):
            step = INSTRUCTIONS[mode][name]
            self.at.append(at)
            self.program[at] = step
            m.mem[at : at + len(step.raw)] = step.raw
            at += len(step.raw)
        m.rip = self.at[0]


def compare(
    bench: Bench, scene: Scene, steps: int, interrupts: list[int], nmi: bool
) -> tuple[list[str], str]:
    """Run a scene on both; (what happened, the difference). Events come after `scene.late` steps."""
    session = Session(scene.m.copy(), scene.program, [], False)
    bench.load(scene.m, slice(CODE, HANDLERS_END))
    happened = run(session, scene.late)
    reason = bench.run(session.m.retired) if happened else None
    if "shutdown" not in happened:
        session.interrupts, session.nmi = list(interrupts), nmi
        for vector in (*interrupts, *((2,) if nmi else ())):
            bench.pend(vector)
        happened += run(session, steps)
        reason = bench.resume(session.m.retired) if reason else bench.run(session.m.retired)
    stopped = happened[-1] == "shutdown"
    assert reason is not None
    session.m.ports = bench.ports  # what the last step's were is the model's business alone
    return happened, bench.difference(session.m, reason, stopped)


# ---- breakpoints on data and ports -------------------------------------------------------------------------

SIZES = {"load": 4, "store": 4, "add": 4, "push": 0, "rep movs": 1, "rep stos": 1, "mov ss m": 2}
OPS = (
    "load",
    "store",
    "add",
    "push",
    "push m",
    "rep movs",
    "rep stos",
    "mov ss m",
    "in",
    "in32",
    "out",
    "out16",
)
RANGES = Space(
    "ranges of breakpoints", n=(1,), rw=range(4), length=range(4), enable=(1,), edge=range(-9, 10), de=(1, 0),
    tf=(0, 1), cpl=(0,), dr6=(0xFFFF_0FF0,), missing=(0, 1), second=(0,), op=OPS, mode=("64", "32"),
)  # fmt: skip
ENABLES = Space(
    "enabled breakpoints", n=range(4), rw=range(4), length=(0, 3), enable=(1, 2, 3, 0), edge=(-1, 0, 1, 4),
    de=(1,), tf=(0, 1), cpl=(0, 3), dr6=(0xFFFF_0FF0, 0xFFFF_EFFF), missing=(0,), second=(0, 1),
    op=("load", "store", "add", "out", "rep movs", "push m"), mode=("64", "32"),
)  # fmt: skip


def data_scene(world: World, c: Combination) -> tuple[Scene, int, list[int], bool] | None:
    """One breakpoint near what an instruction touches, perhaps a second one right on it."""
    op = c["op"]
    m = machine(world, c["mode"], c["cpl"])
    if c["missing"]:
        if op != "push m":
            return None
        identity_paging(m, TABLES)
        m.rsp = 0xE800
        map_page(m, TABLES, 0xE000, clear=1)
        if c["cpl"] == 0 and c["mode"] == "32":
            return None
    place = (
        PORT
        if op.startswith(("in", "out"))
        else m.rsp - (8 if c["mode"] == "64" else 4)
        if op == "push"
        else WATCHED
    )
    if op == "rep movs":
        m.rsi = WATCHED
    elif op == "rep stos":
        m.rdi = WATCHED
    m.dr6 = c["dr6"]
    n = c["n"]
    m.set(**{f"dr{n}": place + c["edge"]})
    m.dr7 |= c["enable"] << 2 * n | c["rw"] << 16 + 4 * n | c["length"] << 18 + 4 * n
    if c["rw"] == 0:
        m.dr7 &= ~(3 << 18 + 4 * n)  # other lengths are undefined for instructions
    if c["second"]:
        other = n ^ 1
        m.set(**{f"dr{other}": place})
        m.dr7 |= 1 << 2 * other | 3 << 16 + 4 * other | 3 << 18 + 4 * other
    m.cr4 |= DE if c["de"] else 0
    if not c["de"] and c["rw"] == 2:
        return None  # undefined
    m.rflags |= TF if c["tf"] else 0
    return Scene(m, c["mode"], [op]), 3, [], False


# ---- order of events ---------------------------------------------------------------------------------------

FIRST = tuple(dict.fromkeys((*INSTRUCTIONS["64"], *INSTRUCTIONS["32"])))
SECOND = ("nop", "ud2", "load", "mov ss", "sti", "int n", "rep stos")


def moot(c: Combination) -> tuple[str, ...]:
    """When an event comes that does not, and whether IF would let it; images that nobody loads."""
    found = () if c["interrupt"] else ("if",)
    if not c["nmi"]:
        if c["first"] != "iret":  # which ends the blocking
            found = (*found, "blocked")
        if not c["interrupt"]:
            found = (*found, "late")
    return (*found, "image") if c["first"] == "syscall" else (*found, "fmask")


# The instructions come last: what lies in memory then changes seldom
EVENTS = Space(
    "order of events", moot, tf=(0, 1), data=(0, 1), code=(-1, 0, 1, 2), interrupt=(0, 1), nmi=(0, 1),
    cpl=(0, 3), rf=(0, 0, 1), steps=(4,), late=(0, 1), image=(2,), blocked=(0,), missing=(0,), fmask=(0,),
    **{"if": (0, 1)}, second=SECOND, first=FIRST, mode=("64", "32"),
)  # fmt: skip
STEPS = Space(
    "events step by step", moot, tf=(0, 1), data=(0, 1), code=(-1, 1), interrupt=(0, 1), nmi=(0, 1),
    cpl=(0, 3), rf=(0,), steps=(1, 2, 3, 5, 6), late=(0, 2), image=(2,), blocked=(0, 1), missing=(0, 1),
    fmask=(0,), **{"if": (1,)}, second=("nop", "int n"), first=FIRST, mode=("64", "32"),
)  # fmt: skip
IMAGES = Space(
    "events and flags that are loaded", moot, tf=(0, 1), data=(0, 1), code=(-1, 1, 2), interrupt=(0, 1),
    nmi=(0, 1), cpl=(0, 3), rf=(0, 1), steps=(3,), late=(0, 1), image=(0, TF, RF, TF | RF | IF, IF),
    blocked=(1,), missing=(0,), fmask=(0, TF | IF), **{"if": (0, 1)}, second=SECOND,
    first=("popf", "iret", "syscall"), mode=("64", "32"),
)  # fmt: skip


def event_scene(world: World, c: Combination) -> tuple[Scene, int, list[int], bool] | None:
    """Two instructions and everything that may be due around them."""
    mode = c["mode"]
    if c["first"] not in INSTRUCTIONS[mode] or (c["first"] == "int1" and mode == "v86"):
        return None
    m = machine(world, mode, c["cpl"])
    m.rflags |= (TF if c["tf"] else 0) | (IF if c["if"] else 0) | (RF if c["rf"] else 0)
    m.rsi = WATCHED + 0x80
    m.rsi, m.rdi = WATCHED + 0x80, WATCHED + 1
    m.msrs[0xC000_0084] = c["fmask"]
    scene = Scene(m, mode, [c["first"], c["second"]], c["late"])
    size = 8 if mode == "64" else 4
    if c["first"] == "lss":
        m.put(WATCHED, 4, 0x7000)
    elif c["first"] == "popf":
        m.put(m.rsp, size, c["image"] | 2 | IOPL)
    elif c["first"] == "iret":
        frame = (scene.at[1], m.cs.selector, c["image"] | 2 | IOPL, m.rsp, m.ss.selector)
        for n, value in enumerate(frame):
            m.put(m.rsp + n * size, size, value)
    if c["data"]:
        m.dr0 = WATCHED
        m.dr7 |= 1 | 0xF << 16
    if c["code"] >= 0:
        m.dr2 = scene.at[c["code"]]
        m.dr7 |= 1 << 4
    m.nmi_blocked = bool(c["blocked"])
    if c["missing"]:  # the instruction at the breakpoint cannot be fetched
        identity_paging(m, TABLES)
        if mode == "32" and c["cpl"] == 0 and c["first"] in ("mov ss", "pop ss"):
            return None
        m.flat = 0
        map_page(m, TABLES, CODE, clear=1)
    return scene, c["steps"], [0x50] if c["interrupt"] else [], bool(c["nmi"])


SceneOf = Callable[[World, Combination], "tuple[Scene, int, list[int], bool] | None"]


class Sequences(NamedTuple):
    """A space of scenes; the instruction whose form counts is the combination's `key`."""

    space: Space
    scene: SceneOf
    key: str
    quota: int


WATCHING = (Sequences(RANGES, data_scene, "op", 2500), Sequences(ENABLES, data_scene, "op", 1200))
ORDER = (Sequences(EVENTS, event_scene, "first", 2500), Sequences(STEPS, event_scene, "first", 1200),
         Sequences(IMAGES, event_scene, "first", 900))  # fmt: skip
SEQUENCES = (*WATCHING, *ORDER)


def run_sequences(what: Sequences, *, blocks: bool = False, full: bool = FULL) -> Report:
    """Every combination, or the default slice, on one engine."""
    world, bench = World(RAM + 0x8000), Bench(RAM + 0x8000, blocks=blocks)
    seen: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    wrong: list[str] = []
    for c in what.space.slice(what.quota // 2 if blocks else what.quota, full):
        made = what.scene(world, c)
        if made is None:
            continue
        happened, difference = compare(bench, *made)
        seen.update(happened)
        forms[form_of(INSTRUCTIONS[c["mode"]][c[what.key]].raw, BITS[c["mode"]])] += 1
        if difference and len(wrong) < 1000:
            wrong.append(f"{what.space.name} {c} {happened}: {difference}")
    return Report(seen, Counter(), forms, wrong, sum(forms.values()))


def verify(group: tuple[Sequences, ...], *expected: str, blocks: bool = False) -> None:
    """Run them; AssertionError with the differences, or if an `expected` event never came."""
    seen: set[str] = set()
    for what in group:
        report = run_sequences(what, blocks=blocks)
        shown = "\n".join(report.wrong[:SHOWN])
        assert not report.wrong, f"{what.space.name}: {len(report.wrong)} of {report.cases} differ\n{shown}"
        seen |= report.outcomes.keys()
    missing = set(expected) - seen
    assert not missing, f"{missing} never came, only {seen}"


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_breakpoint_registers_watch_exactly_their_bytes(blocks: bool) -> None:
    verify(WATCHING, "debug trap", "instruction", "fault", blocks=blocks)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_events_at_an_instruction_boundary_come_in_the_order_of_the_manual(blocks: bool) -> None:
    verify(ORDER, "debug trap", "code breakpoint", "nmi", "interrupt", "instruction", "fault", blocks=blocks)
