"""The harness itself: what it compares, that blocks run, that slices are seeded and meet every value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.matrices import model_paging as paging
from tests.matrices.bench import LEAD, Bench
from tests.matrices.model_segments import reference
from tests.matrices.space import Space
from tests.matrices.spec import CF, IF, OSFXSR, Machine
from tests.matrices.world import CODE, DATA, HANDLER, RAM, World

STORE = b"\x89\x03"  # MOV [RBX], EAX


def store(m: Machine) -> None:
    """The model of STORE"""
    paging.store(m, reference(m, "ds", m.rbx, 4, write=True), 4, m.rax & 0xFFFF_FFFF)


def started(world: World) -> Machine:
    """About to store at DATA."""
    return world.machine("64").set(rbx=DATA)


def broken_byte(m: Machine) -> None:
    m.mem[0xF000] ^= 1


WRONG: dict[str, Callable[[Machine], object]] = {
    "a register": lambda m: m.set(r9=m.rsp),
    "a flag": lambda m: m.set(rflags=m.rflags ^ CF),
    "a selector": lambda m: m.set(gs=m.gs._replace(selector=3)),
    "a hidden limit": lambda m: m.set(es=m.es._replace(limit=7)),
    "a hidden attribute": lambda m: m.set(ds=m.ds._replace(attributes=m.ds.attributes ^ 1)),
    "a null segment": lambda m: m.set(fs=m.fs._replace(null=True)),
    "CPL": lambda m: m.set(cpl=1),
    "CR2": lambda m: m.set(cr2=1),
    "DR6": lambda m: m.set(dr6=m.dr6 ^ 1),
    "the limit of the IDT": lambda m: m.set(idtr=(m.idtr[0], 1)),
    "the retired count": lambda m: m.set(retired=m.retired + 1),
    "NMI blocking": lambda m: m.set(nmi_blocked=True),
    "a port": lambda m: m.set(ports=(("in", 1, 1),)),
    "a model-specific register": lambda m: m.set(msrs={0xC000_0103: 1}),
    "XCR0": lambda m: m.set(xcr0=3),
    "HLT": lambda m: m.set(halted=True),
    "one byte of RAM": broken_byte,
}


@pytest.mark.parametrize("what", WRONG)
def test_a_model_that_says_something_else_is_noticed(what: str) -> None:
    world, bench = World(), Bench(RAM)
    assert world.check(bench, started(world), STORE, store).difference == ""

    def wrong(m: Machine) -> None:
        store(m)
        WRONG[what](m)

    assert world.check(bench, started(world), STORE, wrong).difference


def test_the_block_bench_runs_the_instruction_in_a_block() -> None:
    world, bench = World(), Bench(RAM, blocks=True)
    for _ in range(3):
        assert world.check(bench, started(world), STORE, store).difference == ""
    head = world.place(STORE) - LEAD
    assert bench.cpu.code.blocks[head].length == LEAD + 1


def test_a_fault_in_a_block_is_taken_as_on_the_step_engine() -> None:
    world, bench = World(), Bench(RAM, blocks=True)
    start = started(world).set(rbx=1 << 47)
    result = world.check(bench, start, STORE, store)
    assert (result.kind, result.handler, result.difference) == ("#GP(0)", 13, "")
    assert bench.cpu.rip == HANDLER + 16 * 13


def test_a_pending_interrupt_comes_before_the_instruction() -> None:
    world, bench = World(), Bench(RAM)
    start = started(world)
    start.rflags |= IF
    result = world.check(bench, start, STORE, store, vector=0x41)
    assert (result.kind, result.difference, bench.cpu.rip) == ("", "", HANDLER + 16 * 0x41)


LEFT: dict[str, bytes] = {
    "a vector register": b"\x66\x0f\x76\xdb",  # PCMPEQD XMM3, XMM3
    "the x87 stack": b"\xd9\xe8",  # FLD1
    "an MSR": b"\x0f\x30",  # WRMSR
    "HLT": b"\xf4",
    "the shadow of STI": b"\xfb",
}


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize("what", LEFT)
def test_what_a_case_leaves_behind_does_not_reach_the_next_one(what: str, blocks: bool) -> None:
    world, bench = World(), Bench(RAM, blocks=blocks)
    fresh = Bench(RAM, blocks=blocks)
    for each in (bench, fresh):
        world.check(each, started(world), STORE, store)
    start = started(world).set(rcx=0xC000_0103, rdx=0)
    start.cr4 |= OSFXSR
    world.check(bench, start, LEFT[what], lambda m: None)
    assert left(bench) != left(fresh)
    for each in (bench, fresh):
        assert world.check(each, started(world), STORE, store).difference == ""
    assert left(bench) == left(fresh)


def left(bench: Bench) -> tuple[object, ...]:
    """What a Machine does not hold, and what tells that an instruction has run."""
    cpu = bench.cpu
    vectors = tuple(getattr(cpu, f"xmm{n}") for n in range(16))
    fpu = (cpu.fpu.regs, cpu.fpu.tags, cpu.fpu.top, cpu.fpu.control, cpu.fpu.status)
    return vectors, fpu, dict(cpu.msr), cpu.halted, cpu.shadow, list(cpu.injected), cpu.nmi_pending


def test_code_that_changed_is_decoded_again() -> None:
    world, bench = World(), Bench(RAM)
    for n in range(300):  # more snippets than there is room for
        raw = b"\xb8" + n.to_bytes(4, "little")  # MOV EAX, n
        result = world.check(bench, started(world), raw, lambda m, n=n: m.set(rax=n))  # type: ignore[misc]
        assert result.difference == ""
    assert bench.cpu.rip > CODE


def test_of_an_axis_on_which_nothing_hangs_only_the_first_value_comes() -> None:
    space = Space("moot", lambda c: ("b",) if c["a"] else (), a=(0, 1), b=range(5))
    assert [(c["a"], c["b"]) for c in space.everything()] == [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
    assert len(list(space.slice(100, full=False))) == 6
    for c in Space("moot", space.moot, a=(0, 1), b=range(50)).slice(30, full=False):
        assert not c["a"] or c["b"] == 0


def test_a_space_is_numbered_and_its_slice_meets_every_value() -> None:
    space = Space("numbers", a=range(5), b=("x", "y", "x"), c=(1, 2))
    assert len(space) == 20
    everything = [tuple(space[n].values()) for n in range(20)]
    assert len(set(everything)) == 20
    assert [tuple(c.values()) for c in space.slice(20)] == everything
    some = list(Space("numbers", a=range(5), b=range(7), c=(1, 1, 2)).slice(30, full=False))
    assert some == list(Space("numbers", a=range(5), b=range(7), c=(1, 1, 2)).slice(30, full=False))
    assert {c["a"] for c in some} == set(range(5)) and {c["b"] for c in some} == set(range(7))
    assert sum(c["c"] == 1 for c in some) == 20
