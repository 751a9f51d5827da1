"""The calibration loop: a workload is timed in turns with it, and what counts is the ratio."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pysim_vm.benchmark import unit as bench_unit
from pysim_vm.benchmark.unit import UNITS, cpu_name, measure


def test_units_are_the_median_ratio_with_its_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_unit, "unit_seconds", lambda: UNITS * 2e-9)  # a unit of 2 ns
    durations = iter([0.0, 1e-6, 2e-6, 9e-6, 4e-6])  # the first is not timed; ten operations each
    now = [0.0]

    def setup() -> Callable[[], int]:
        def work() -> int:
            now[0] += next(durations)
            return 10

        return work

    found = measure(setup, rounds=4, clock=lambda: now[0])
    assert found.ratios == pytest.approx((50.0, 100.0, 450.0, 200.0))
    assert found.units == pytest.approx(150.0)
    assert (found.low, found.high) == pytest.approx((62.5, 387.5))
    assert found.seconds == pytest.approx(3e-6)
    assert found.unit_ns == pytest.approx(2.0)
    assert found.ns == pytest.approx(300.0)
    assert found.operations == 10


def test_the_unit_takes_time_and_the_host_has_a_name() -> None:
    assert bench_unit.unit_seconds(1000) >= 0
    assert cpu_name()


def test_the_benchmarks_of_the_checkout_use_the_same_unit() -> None:
    from bench import unit

    assert unit.measure is measure
