"""Runs a matrix: builds each combination, checks it on a bench, counts what came out and which forms it was.

A matrix module has `spaces()` and `case(world, combination)`; the second gives what to run, or None where the
combination does not exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from iced_x86 import Code, Decoder, DecoderOptions, OpKind

from isa.decode import code_names
from tests.matrices.bench import FEATURES, Bench
from tests.matrices.space import FULL, Combination, Space
from tests.matrices.spec import VECTOR_NAMES, Machine
from tests.matrices.world import RAM, World

SHOWN = 12  # differences in a failure's text


class Case(NamedTuple):
    """A start, the instruction's bytes, what the model makes of it, how many instructions to retire (0: as
    many as the model does).

    With `interrupt`, a vector that is pending and comes before the instruction, the model is not asked. `at`
    is the RIP of an instruction of `length` bytes that the case has put into RAM itself, in place of `raw`.
    """

    start: Machine
    raw: bytes
    instruction: Callable[[Machine], None]
    steps: int = 1
    interrupt: int | None = None
    at: int | None = None
    length: int = 0


class Matrix(NamedTuple):
    """Spaces, and what a combination of theirs is. `quota` combinations of each space run by default.

    `features` are what the CPU has, by iced's names.
    """

    name: str
    spaces: tuple[Space, ...]
    case: Callable[[World, Combination], Case | None]
    quota: int = 2000
    ram: int = RAM
    features: frozenset[str] = FEATURES


class Report(NamedTuple):
    """What came of a run: outcomes, handlers reached after a fault, cases by form, differences, combinations
    that existed and were run."""

    outcomes: Counter[str]
    handlers: Counter[str]
    forms: Counter[str]
    wrong: list[str]
    cases: int


@cache
def form_of(raw: bytes, bits: int) -> str:
    """iced's Code name.

    Two encodings have their names from AMD's CPUs: UD0 without a ModR/M byte, and in 64-bit code a near
    branch with an operand-size prefix, which Intel's CPUs and this one ignore.
    """
    instruction = Decoder(bits, raw).decode()
    other = Decoder(bits, raw, DecoderOptions.AMD).decode()
    kinds = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH64)
    as_amd = instruction.code == Code.INVALID or (bits == 64 and instruction.op0_kind in kinds)
    return code_names()[(other if as_amd else instruction).code]


def code_bits(m: Machine) -> int:
    """Whether a machine's code segment has 16-bit, 32-bit or 64-bit code."""
    return 64 if m.mode64 else 32 if m.cs.db else 16


def combinations(matrix: Matrix, full: bool, blocks: bool = False) -> Iterator[tuple[Space, Combination]]:
    """Those that a run goes through; half a slice on the block engine."""
    for space in matrix.spaces:
        for combination in space.slice(matrix.quota // 2 if blocks else matrix.quota, full):
            yield space, combination


def run(matrix: Matrix, *, blocks: bool = False, full: bool = FULL) -> Report:
    """Every combination, or the default slice, on one engine."""
    world = World(matrix.ram)
    bench = Bench(matrix.ram, blocks=blocks, features=matrix.features)
    outcomes: Counter[str] = Counter()
    handlers: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    wrong: list[str] = []
    for space, combination in combinations(matrix, full, blocks):
        case = matrix.case(world, combination)
        if case is None:
            continue
        if case.at is None:
            forms[form_of(case.raw, code_bits(case.start))] += 1
        result = world.check(bench, *case)
        outcomes[result.kind.split("(")[0] or "done"] += 1
        if result.handler in VECTOR_NAMES and result.kind:
            handlers[f"{VECTOR_NAMES[result.handler]} handler"] += 1
        if result.difference and len(wrong) < 1000:
            wrong.append(f"{space.name} {combination} [{case.raw.hex()}] {result.kind}: {result.difference}")
    return Report(outcomes, handlers, forms, wrong, sum(outcomes.values()))


def verify(matrix: Matrix, *expected: str, blocks: bool = False) -> None:
    """Run it; AssertionError with the differences, or if an `expected` outcome never came."""
    report = run(matrix, blocks=blocks)
    shown = "\n".join(report.wrong[:SHOWN])
    assert not report.wrong, f"{matrix.name}: {len(report.wrong)} of {report.cases} differ\n{shown}"
    seen = report.outcomes + report.handlers
    missing = set(expected) - seen.keys()
    assert not missing, f"{matrix.name}: {missing} never came, only {dict(seen)}"
