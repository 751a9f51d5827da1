"""Two files of results side by side, with a verdict for each row. It runs nothing and shows nothing.

The model is equal or it is not. A measurement is faster or slower only if the middle halves of the two do not
touch and the medians differ by MARGIN at least; everything else is the same as far as anybody can tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from pysim_vm.benchmark.result import ModelRow, Results, TimedRow

MARGIN: Final = 0.03  # of the first median: less is what a rebuilt Python or another heap layout does
SAME, CHANGED, FASTER, SLOWER = "same", "changed", "faster", "slower"
ONLY_FIRST, ONLY_SECOND = "only in the first", "only in the second"


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """Of one workload: `verdict`, and in words what changed."""

    workload: str
    verdict: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimedVerdict:
    """Of one measurement: medians in units per operation, `ratio` second to first (None if one is absent)."""

    workload: str
    engine: str
    exit_path: str
    verdict: str
    first: float | None = None
    second: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All verdicts, in the order of the first file. `same_costs` is False if the cost models differ: then
    cycles are not compared."""

    models: tuple[ModelVerdict, ...]
    timed: tuple[TimedVerdict, ...]
    same_costs: bool

    @property
    def changed(self) -> bool:
        """Whether a model changed, or a workload is in one file only."""
        return any(row.verdict != SAME for row in self.models)

    @property
    def slower(self) -> bool:
        """Whether a measurement is slower."""
        return any(row.verdict == SLOWER for row in self.timed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "same_cost_model": self.same_costs,
            "model": [asdict(row) | {"changes": list(row.changes)} for row in self.models],
            "measured": [asdict(row) for row in self.timed],
        }


def compare(one: Results, other: Results) -> Comparison:
    """Compare two files row by row."""
    same_costs = (one.costs.instruction, one.costs.exits) == (other.costs.instruction, other.costs.exits)
    ours, theirs = _by_name(one.models), _by_name(other.models)
    models = []
    for name in (*ours, *(name for name in theirs if name not in ours)):
        if name not in theirs:
            models.append(ModelVerdict(name, ONLY_FIRST))
        elif name not in ours:
            models.append(ModelVerdict(name, ONLY_SECOND))
        else:
            changes = _changes(ours[name], theirs[name], same_costs)
            models.append(ModelVerdict(name, CHANGED if changes else SAME, changes))
    both = one.machine is not None and other.machine is not None  # a model alone says nothing of speed
    before, after = (_by_way(one.timed), _by_way(other.timed)) if both else ({}, {})
    timed = []
    for way in (*before, *(way for way in after if way not in before)):
        old, new = before.get(way), after.get(way)
        if old is None or new is None:
            verdict = ONLY_SECOND if old is None else ONLY_FIRST
            first, second = (None if row is None else row.units for row in (old, new))
            timed.append(TimedVerdict(*way, verdict, first, second))
        else:
            ratio = new.units / old.units if old.units else None
            timed.append(TimedVerdict(*way, speed(old, new), old.units, new.units, ratio))
    return Comparison(tuple(models), tuple(timed), same_costs)


def speed(old: TimedRow, new: TimedRow) -> str:
    """Faster or slower beyond the spread and the margin, or the same."""
    if new.high < old.low and new.units <= old.units * (1 - MARGIN):
        return FASTER
    if new.low > old.high and new.units >= old.units * (1 + MARGIN):
        return SLOWER
    return SAME


def _by_name(rows: tuple[ModelRow, ...]) -> dict[str, ModelRow]:
    return {row.workload: row for row in rows}


def _by_way(rows: tuple[TimedRow, ...]) -> dict[tuple[str, str, str], TimedRow]:
    return {(row.workload, row.engine, row.exit_path): row for row in rows}


def _changes(old: ModelRow, new: ModelRow, same_costs: bool) -> tuple[str, ...]:
    """What is different, in words; the cause first."""
    found = []
    if old.workload_sha256 != new.workload_sha256:
        found.append("another workload file")
    pairs = [("instructions", old.instructions, new.instructions)]
    kinds = list(dict.fromkeys((*old.exits, *new.exits)))
    pairs += [(kind, old.exits.get(kind, 0), new.exits.get(kind, 0)) for kind in kinds]
    pairs.append(("virtual ns", old.virtual_ns, new.virtual_ns))
    if same_costs:
        pairs.append(("virtual cycles", old.virtual_cycles, new.virtual_cycles))
    found += [f"{what} {before:,} -> {after:,}" for what, before, after in pairs if before != after]
    if old.exits_sha256 != new.exits_sha256 and not any(old.exits.get(k) != new.exits.get(k) for k in kinds):
        found.append("as many exits, but other ones")
    return tuple(found)
