"""What recording costs is measured with a record that holds every exit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import recorded
from bench.exits import ExitWork
from pysim_vm.trace import Trace

WORK = ExitWork("OUT", "io_write", count=100)


def test_the_recorded_run_leaves_a_closed_record_of_every_exit(tmp_path: Path) -> None:
    path = tmp_path / "exits.rec"
    assert recorded.seconds(WORK, "step", path) > 0
    trace = Trace.open(path)
    assert len(trace.where(reason="io_write")) == WORK.count
    assert trace.notes == []


def test_a_price_is_that_of_both_runs_and_their_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "seconds", lambda work, engine, record: 2.0 if record is None else 3.0)
    found = recorded.price(WORK, "step", tmp_path / "exits.rec", rounds=4)
    assert (found.ratio, found.low, found.high) == (1.5, 1.5, 1.5)
    assert found.plain == pytest.approx(2e7) and found.recorded == pytest.approx(3e7)
    assert "1.50" in found.line()


def test_a_row_over_the_limit_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorded, "seconds", lambda work, engine, record: 2.0 if record is None else 3.0)
    assert recorded.main(["--only", "VMCALL", "--engine", "step", "--rounds", "2"]) == 1
    assert "over 1.25: VMCALL (step)" in capsys.readouterr().out
    monkeypatch.setattr(recorded, "seconds", lambda work, engine, record: 2.0)
    assert recorded.main(["--only", "VMCALL", "--engine", "step", "--rounds", "2"]) == 0
