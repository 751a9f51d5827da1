"""The harness itself: what it compares, that blocks run, that slices are seeded and meet every value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.matrices import model_paging as paging
from tests.matrices.bench import LEAD, Bench
from tests.matrices.model_segments import reference
from tests.matrices.space import Space
from tests.matrices.spec import CF, IF, Machine
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


def test_code_that_changed_is_decoded_again() -> None:
    world, bench = World(), Bench(RAM)
    for n in range(300):  # more snippets than there is room for
        raw = b"\xb8" + n.to_bytes(4, "little")  # MOV EAX, n
        result = world.check(bench, started(world), raw, lambda m, n=n: m.set(rax=n))  # type: ignore[misc]
        assert result.difference == ""
    assert bench.cpu.rip > CODE


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
