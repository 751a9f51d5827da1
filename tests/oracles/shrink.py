"""Makes a case on which this CPU and the host differ as small as it gets. It knows no instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.oracles.families import Family, Result, Sample, State, differences
from tests.oracles.recorded import background, tidied

MOST_TRIALS = 600
BRANCHES = ("J", "CALL", "RET", "LOOP")  # another value here may lead anywhere


def topics(found: list[str]) -> set[str]:
    """What differs, without values."""
    return {text.split()[0] for text in found}


def shrink(family: Family, sample: Sample, ignored: int) -> tuple[Sample, Result, list[str]]:
    """The smallest sample found that still shows one of the same differences, the host's result, the words.

    ValueError if the sample shows no difference.
    """
    (theirs,) = family.host([sample])
    found = differences(family, sample, theirs, ignored)
    if not found:
        raise ValueError("the case shows no difference")
    wanted = topics(found)
    best = (sample, theirs, found)

    def still_differs(candidate: Sample) -> bool:
        nonlocal best
        (answer,) = family.host([candidate])
        words = differences(family, candidate, answer, ignored)
        if not topics(words) & wanted:
            return False
        best = (candidate, answer, words)
        return True

    minimize(family, sample, still_differs)
    return best


def minimize(family: Family, sample: Sample, holds: Callable[[Sample], bool]) -> Sample:
    """The simplest sample found for which `holds` stays true, in at most MOST_TRIALS calls."""
    trials = 0
    candidate = tidied(family, sample)
    if candidate != sample and holds(candidate):
        sample = candidate
    progress = True
    while progress:
        progress = False
        for candidate in _simpler(family, sample):
            trials += 1
            if trials > MOST_TRIALS:
                return sample
            if holds(candidate):
                sample, progress = candidate, True
                break
    return sample


def _simpler(family: Family, sample: Sample) -> Iterator[Sample]:
    """Samples that are a step simpler, boldest first."""
    base = background(family.name, sample.bits)
    registers, memory = sample.state.registers, sample.state.memory
    size = len(memory)
    while size >= 1:
        for at in range(0, len(memory), size):
            if memory[at : at + size] != base.memory[at : at + size]:
                changed = memory[:at] + base.memory[at : at + size] + memory[at + size :]
                yield replace(sample, state=State(registers, changed))
        size //= 4
    is_branch = sample.form.startswith(BRANCHES)
    for name, value in registers.items():
        simple = base.registers[name]
        if value == simple:
            continue
        yield _with(sample, name, simple)
        if is_branch or name == "rsp":
            continue
        if name == "flags":
            for bit in range(12):
                if (value ^ simple) >> bit & 1:
                    yield _with(sample, name, value ^ 1 << bit)
        elif name.startswith("r"):
            for smaller in (0, 1, value & 0xFF, value & 0xFFFF, value & 0xFFFF_FFFF):
                if smaller < value:
                    yield _with(sample, name, smaller)


def _with(sample: Sample, name: str, value: int) -> Sample:
    return replace(sample, state=State({**sample.state.registers, name: value}, sample.state.memory))
