"""Rows, means and bounds of the benchmark tables, and that the commands they name are right."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.bulk import BULK
from bench.exits import EXITS
from bench.kernels import KERNELS
from bench.single_steps import STEPS
from bench.table import Row, digits, mean_of
from bench.targets import BOOT_TARGETS, COMMAND, TARGETS, Target
from bench.unit import Measurement
from bench.workloads import WORKLOADS


def row(units: float, per: str = "instruction", engine: str = "block") -> Row:
    """A row measured on a host whose unit takes 50 ns."""
    return Row("it", engine, units, per, Measurement(units, units / 2, units * 2, 50e0, 12_345))


def test_digits_are_as_many_as_mean_something() -> None:
    assert [digits(units) for units in (9876.5, 123.45, 10, 9.994, 0.5, 0.0123, -0.001)] == [
        "9876", "123.5", "10.0", "9.99", "0.50", "0.012", "-0.001",
    ]  # fmt: skip


def test_a_row_shows_nanoseconds_or_for_bytes_a_rate() -> None:
    assert [cell.strip() for cell in row(2.0).line().split("|")][1:-1] == [
        "it", "block", "2.00", "1.00-4.00", "100.0 ns", "12,345", "instruction",
    ]  # fmt: skip
    assert "| 10.24 GB/s |" in row(2.0, "KiB").line().replace("  ", " ")


def test_the_mean_is_geometric_and_over_one_engine_and_instructions_only() -> None:
    mean = mean_of([row(1.0), row(4.0), row(1000.0, "KiB"), row(9.0, engine="step")], "block")
    assert mean is not None
    assert mean.units == pytest.approx(2.0)
    assert mean_of([row(1000.0, "KiB")], "block") is None


def test_a_target_says_whether_it_is_met() -> None:
    most = Target("it", 5, "units", lambda rounds: 5.01, "--only it")
    least = Target("it", 1, "GB/s", lambda rounds: 1.5, "--only it", least=True)
    assert most.line(3) == f"| it | at most 5 units | 5.01 | no | `{COMMAND} --only it` |"
    assert least.line(3) == f"| it | at least 1 GB/s | 1.50 | yes | `{COMMAND} --only it` |"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_the_command_of_a_target_shows_a_work_that_exists(target: Target) -> None:
    words = shlex.split(target.options)
    if "--kernels" not in words:
        only = words[words.index("--only") + 1]
        works = (*WORKLOADS, *EXITS, *BULK, *STEPS)
        assert [work.name for work in works if only in work.name]


def test_names_are_unique() -> None:
    names = [work.name for work in (*WORKLOADS, *EXITS, *BULK, *STEPS, *KERNELS)]
    assert len(names) == len(set(names))


def test_the_command_prints_a_row_for_each_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "AxVM.steps", "--rounds", "2"]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| AxVM")]
    assert [line[2].strip() for line in lines] == ["step", "block"]
    assert [line[6].strip() for line in lines] == ["10,000", "10,000"]


@pytest.mark.parametrize("work", BULK, ids=lambda work: work.name)
def test_a_bulk_work_moves_what_it_counts(work) -> None:
    assert work.fresh("step")() == work.blocks * 64


def test_the_page_has_a_row_for_each_target_with_its_bound_and_command() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    found = [(row[0], row[1], row[4]) for row in rows if len(row) == 5 and row[4].startswith(f"`{COMMAND}")]
    assert found == [
        (target.what, target.bounded, f"`{COMMAND} {target.options}`") for target in (*TARGETS, *BOOT_TARGETS)
    ]
