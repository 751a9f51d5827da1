"""The step engine under pytest-benchmark, and the one bound that holds: `python -m pytest bench`.

Every round gets a fresh VM. Raw seconds are for comparing two versions on one quiet host; only the ratio to
the calibration unit is a test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.unit import measure
from bench.workloads import WORKLOADS, Workload

ALU_LIMIT = 15  # units per guest instruction


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_workload(benchmark: Any, workload: Workload) -> None:
    def fresh() -> tuple[tuple[Callable[[], int]], dict[str, Any]]:
        return (workload.fresh("step"),), {}

    operations = benchmark.pedantic(lambda run: run(), setup=fresh, rounds=5)
    benchmark.extra_info["per"] = workload.per
    benchmark.extra_info["operations"] = operations
    assert operations > 0


def test_an_instruction_of_the_alu_loop_costs_at_most_fifteen_units() -> None:
    alu = next(workload for workload in WORKLOADS if workload.name == "ALU loop")
    assert measure(lambda: alu.fresh("step"), rounds=7).units <= ALU_LIMIT
