"""The step engine under pytest-benchmark: `python -m pytest bench`.

Every round gets a fresh VM. Raw seconds are for comparing two versions on one quiet host; `python -m bench`
shows the ratios to the calibration unit. No time is asserted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.exits import EXITS, ExitWork
from bench.workloads import WORKLOADS, Workload


@pytest.mark.parametrize("workload", (*WORKLOADS, *EXITS), ids=lambda workload: workload.name)
def test_workload(benchmark: Any, workload: Workload | ExitWork) -> None:
    def fresh() -> tuple[tuple[Callable[[], int]], dict[str, Any]]:
        return (workload.fresh("step"),), {}

    operations = benchmark.pedantic(lambda run: run(), setup=fresh, rounds=5)
    benchmark.extra_info["per"] = workload.per
    benchmark.extra_info["operations"] = operations
    assert operations > 0
