"""Both engines execute random programs alike: registers, flags, counts, exits, faults and RAM at every stop.

PYSIM_ENGINE_CASES sets the number of programs, PYSIM_ENGINE_SEED the first one's seed.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from isa.decode import disassemble
from isa.exits import Budget
from isa.state import M64
from tests.oracles.random_programs import CODE, Machine, Program, random_program

CASES = int(os.environ.get("PYSIM_ENGINE_CASES", "150"))
SEED = int(os.environ.get("PYSIM_ENGINE_SEED", "1"))
EXITS = 200  # of one program


def difference(stepped: Machine, translated: Machine) -> str:
    """What differs between two machines, or ""."""
    one, other = stepped.state(), translated.state()
    parts = [f"{key}: {_hex(one[key])} stepped, {_hex(other[key])} translated"
             for key in one if one[key] != other[key]]  # fmt: skip
    if not np.array_equal(stepped.memory.pool, translated.memory.pool):
        at = np.flatnonzero(stepped.memory.pool != translated.memory.pool)
        parts.append(f"{len(at)} bytes of RAM from {int(at[0]):#x}")
    return "; ".join(parts)


def _hex(value: object) -> str:
    return hex(value) if isinstance(value, int) else str(value)


def around(program: Program, rip: int) -> str:
    """The code before an address."""
    lines = []
    offset = rip - program.base - CODE & M64
    starts = [start for start in program.starts if start < offset][-12:]
    for start in starts:
        ip = program.base + CODE + start & M64
        lines.append(f"{ip:#x}: {disassemble(program.code[start : start + 15], 64, ip)}")
    return "\n".join(lines)


def compare(program: Program, hot: int = 1) -> int:
    """Run a program on both engines; the number of stops. AssertionError where they differ."""
    stepped, translated = Machine(program, False), Machine(program, True, hot)
    stops = 0
    until = 0
    for event in program.script:
        until = max(until, stepped.cpu.retired) + event.after
        while not stepped.over and stepped.exits < EXITS:
            before = stepped.cpu.rip
            reason, other = stepped.run(until), translated.run(until)
            stops += 1
            found = difference(stepped, translated)
            if reason != other:
                found = f"{reason} stepped, {other} translated; {found}"
            if found:
                raise AssertionError(
                    f"seed {program.seed}, stop {stops} (until {until}), from {before:#x}: {found}\n"
                    f"{around(program, stepped.cpu.rip)}"
                )
            if isinstance(reason, Budget):
                break
        if stepped.over or stepped.exits >= EXITS:
            break
        stepped.happen(event)
        translated.happen(event)
    return stops


@pytest.mark.parametrize("start", range(SEED, SEED + CASES, 25))
def test_random_programs_run_alike_on_both_engines(start: int) -> None:
    for seed in range(start, min(start + 25, SEED + CASES)):
        compare(random_program(seed))


@pytest.mark.parametrize("lean", (1, 3, 9))
def test_stepping_in_bursts_where_nothing_is_translated_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, lean: int
) -> None:
    monkeypatch.setattr("isa.blocks.LEAN", lean)
    monkeypatch.setattr("isa.blocks.LEAN_STEPS", 5 * lean)
    for seed in range(SEED, SEED + CASES // 5):
        compare(random_program(seed))


# 22355: DPPD whose mask selects nothing did not look at its operand in a block. 30221: CVTTSD2SI from memory
# into a general register ran in a block with CR0.TS = 1.
@pytest.mark.parametrize("seed", (22355, 30221))
def test_programs_that_once_ended_differently_agree(seed: int) -> None:
    compare(random_program(seed))
