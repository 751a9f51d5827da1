"""Kernels, bulk instructions and single steps under pytest-benchmark: `python -m pytest bench`.

Every round gets a fresh VM, so that translating is part of it; results are checked, times are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.bulk import BULK, Bulk
from bench.kernels import KERNELS, Kernel
from bench.single_steps import STEPS, SingleSteps


def rounds_of(benchmark: Any, work: Kernel | Bulk | SingleSteps, engine: str) -> int:
    """Time a work on a fresh VM each round; the operations of one."""

    def fresh() -> tuple[tuple[Callable[[], int]], dict[str, Any]]:
        return (work.fresh(engine),), {}

    operations: int = benchmark.pedantic(lambda run: run(), setup=fresh, rounds=5)
    benchmark.extra_info["per"] = work.per
    benchmark.extra_info["operations"] = operations
    return operations


@pytest.mark.parametrize("engine", ["step", "block"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.image)
def test_kernel(benchmark: Any, kernel: Kernel, engine: str) -> None:
    assert rounds_of(benchmark, kernel if engine == "step" else kernel.longer(), engine) > 0


@pytest.mark.parametrize("work", (*BULK, *STEPS), ids=lambda work: work.name)
def test_work(benchmark: Any, work: Bulk | SingleSteps) -> None:
    assert rounds_of(benchmark, work, "step") > 0
