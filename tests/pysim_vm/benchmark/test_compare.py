"""Verdicts on two results: a model is equal or not, a measurement needs distance and margin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pysim_vm.benchmark.compare import compare, speed
from pysim_vm.benchmark.model import costs_from_toml
from tests.pysim_vm.bench_results import MODEL, TIMED, results, timed


def test_equal_results_are_the_same() -> None:
    found = compare(results(TIMED), results(TIMED))
    assert [row.verdict for row in found.models] == ["same"]
    assert [(row.verdict, row.ratio) for row in found.timed] == [("same", 1.0)]
    assert not found.changed
    assert not found.slower


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instructions": 203}, ("instructions 201 -> 203",)),
        ({"exits": {"io_write": 99, "halt": 1}}, ("io_write 100 -> 99", "halt 0 -> 1")),
        ({"exits_sha256": "c" * 64}, ("as many exits, but other ones",)),
        ({"virtual_ns": 12_865}, ("virtual ns 12,864 -> 12,865",)),
        ({"virtual_cycles": 1}, ("virtual cycles 200,201 -> 1",)),
        ({"workload_sha256": "c" * 64}, ("another workload file",)),
    ],
)
def test_a_model_that_is_not_equal_is_changed_and_says_how(
    changes: dict[str, object], words: tuple[str, ...]
) -> None:
    found = compare(results(), results(models=(replace(MODEL, **changes),)))  # type: ignore[arg-type]
    assert found.changed
    assert [(row.verdict, row.changes) for row in found.models] == [("changed", words)]


def test_a_workload_in_one_file_only_is_a_change() -> None:
    other = replace(MODEL, workload="io_read")
    found = compare(results(models=(MODEL,)), results(models=(other,)))
    assert [(row.workload, row.verdict) for row in found.models] == [
        ("io_write", "only in the first"), ("io_read", "only in the second"),
    ]  # fmt: skip
    assert found.changed


def test_cycles_under_another_cost_model_are_not_compared() -> None:
    costs = costs_from_toml('name = "lab"\nsource = "x"\n[exit]\nio_write = 1\n')
    dear = replace(MODEL, virtual_cycles=301)
    found = compare(results(), results(models=(dear,), costs=costs))
    assert (found.same_costs, found.changed) == (False, False)


def test_the_name_of_a_cost_model_makes_no_difference() -> None:
    costs = costs_from_toml('name = "lab"\nsource = "x"\nexit = {}\n')
    assert compare(results(), results(costs=costs)).same_costs


@pytest.mark.parametrize(
    ("units", "low", "high", "verdict"),
    [
        (10.0, 9.8, 10.2, "same"),
        (9.0, 8.8, 9.4, "faster"),
        (9.0, 8.8, 9.5, "same"),  # the middle halves touch
        (9.75, 9.4, 9.49, "same"),  # apart, but by less than 3 %
        (11.0, 10.6, 11.2, "slower"),
        (11.0, 10.5, 11.2, "same"),
        (10.29, 10.51, 10.6, "same"),
    ],
)
def test_a_measurement_needs_distance_and_margin(units: float, low: float, high: float, verdict: str) -> None:
    assert speed(timed(10.0, 9.5, 10.5), timed(units, low, high)) == verdict


def test_slower_is_told_apart_from_changed() -> None:
    found = compare(results(timed(10.0, 9.5, 10.5)), results(timed(12.0, 11.5, 12.5)))
    assert (found.changed, found.slower) == (False, True)
    assert found.timed[0].ratio == pytest.approx(1.2)


def test_engines_and_exit_paths_are_rows_of_their_own() -> None:
    other = timed(12.0, 11.5, 12.5, engine="step")
    full = timed(12.0, 11.5, 12.5, exit_path="full")
    found = compare(results(TIMED, other), results(TIMED, full))
    assert [(row.engine, row.exit_path, row.verdict) for row in found.timed] == [
        ("block", "short", "same"), ("step", "short", "only in the first"),
        ("block", "full", "only in the second"),
    ]  # fmt: skip
    assert not found.changed


def test_a_model_alone_says_nothing_of_speed() -> None:
    assert compare(results(), results(TIMED)).timed == ()
