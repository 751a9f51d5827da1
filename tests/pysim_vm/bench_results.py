"""Results for tests: made up, so that nothing is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pysim_vm.benchmark.model import default_costs
from pysim_vm.benchmark.result import ModelRow, Results, TimedRow

MODEL = ModelRow(
    "io_write", "an OUT", "a" * 64, 100, "exit", 201, {"io_write": 100}, "b" * 64, 12_864, 200_201
)
TIMED = TimedRow("io_write", "block", "short", "exit", 100, 13.0, 12.5, 13.5, (12.5, 13.0, 13.5), 0.001, 50.0)
MACHINE = {"cpu": "a CPU", "python": "CPython 3.11.7", "system": "Linux x86_64"}


def results(*timed: TimedRow, models: tuple[ModelRow, ...] = (MODEL,), **changes: Any) -> Results:
    """Results with these measurements; none means a model alone."""
    made = Results(default_costs(), models, timed, MACHINE if timed else None)
    return replace(made, **changes)


def timed(units: float, low: float, high: float, **changes: Any) -> TimedRow:
    """A measurement with this median and these quartiles."""
    return replace(TIMED, units=units, low=low, high=high, **changes)
