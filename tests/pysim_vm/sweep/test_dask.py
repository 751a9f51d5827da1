"""Sweeps over dask.distributed, on a real cluster of two workers on this host.

`.ci/run` installs dask with the developer's tools, before the tests; elsewhere they are skipped without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import pytest

from pysim_vm.cli import run_command
from pysim_vm.sweep import Sweep, SweepError
from pysim_vm.sweep.dask import dask_executor
from pysim_vm.sweep.job import run_job
from tests.pysim_vm.sweeps import SIX, TWO_HUNDRED, die_on_the_second, on_one_engine, sweep_of

pytestmark = on_one_engine

CHECKOUT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
WAIT = 120  # seconds after which a test gives up

HAVE_DASK = importlib.util.find_spec("distributed") is not None
needs_dask = pytest.mark.skipif(
    not HAVE_DASK and os.environ.get("CI") != "true", reason="dask is missing: pip install 'pysim-vm[dask]'"
)


def in_order(sweep: Sweep) -> bytes:
    """The results as one thread makes them."""
    return sweep.run(known=[done.result for done in map(run_job, sweep) if done.result]).to_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    with dask_executor("local", 2) as executor:
        yield executor


@needs_dask
def test_dask_gives_the_same_bytes(tmp_path: Path, cluster: Executor) -> None:
    sweep = sweep_of(tmp_path, SIX)
    assert sweep.run(cluster).to_bytes() == in_order(sweep)


@needs_dask
def test_a_sweep_of_200_jobs_killed_on_dask_resumes_to_the_result_of_an_unbroken_one(
    tmp_path: Path, cluster: Executor
) -> None:
    sweep = sweep_of(tmp_path, TWO_HUNDRED)
    journal = tmp_path / "jobs.results.jsonl.journal"
    command = [sys.executable, "-m", "pysim_vm", "sweep", "jobs.toml", "--dask", "local", "--jobs", "2"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + WAIT
        while not journal.exists() or journal.read_bytes().count(b"\n") <= 60:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        process.kill()
    done = journal.read_bytes().count(b"\n") - 1
    assert 60 <= done < 200
    again: list[int] = []
    results = sweep.run(cluster, journal=journal, on_result=lambda result, _: again.append(result.number))
    assert len(again) == 200 - done
    assert results.to_bytes() == in_order(sweep)


@needs_dask
def test_wall_time_ends_a_guest_in_a_worker_of_dask(tmp_path: Path, cluster: Executor) -> None:
    text = (
        "[budget]\ninstructions = 1_000_000_000_000\nseconds = 0.2\n"
        '[guests.endless]\nasm = "endless.asm"\nmemory = "1M"\n'
    )
    assert sweep_of(tmp_path, text).run(cluster).outcomes() == {"wall-time": 1}


@needs_dask
def test_a_job_that_kills_its_dask_worker_is_reported_and_the_others_have_their_results(
    tmp_path: Path,
) -> None:
    with dask_executor("local", 2) as executor:
        results = sweep_of(tmp_path, SIX).run(executor, work=die_on_the_second)
    assert results.outcomes() == {"power-off": 5, "worker-died": 1}
    assert "KilledWorker" in results["die/default/2"].sentence


@needs_dask
def test_a_scheduler_that_nobody_started_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pysim_vm.sweep.dask.CONNECT_SECONDS", 1)
    sweep_of(tmp_path, SIX)
    monkeypatch.chdir(tmp_path)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        assert run_command(["sweep", "jobs.toml", "--dask", address]) == 74
        error = capsys.readouterr().err
        assert error.startswith(f"pysim-vm: no dask scheduler at {address} (")
        assert error.endswith("); start one with `dask scheduler`, or write local\n")
        assert error.count("\n") == 1


def test_without_dask_the_line_to_type_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(SweepError, match=r"not installed; pip install 'pysim-vm\[dask\]'"),
        dask_executor(),
    ):
        pass


@needs_dask
def test_the_command_of_the_page_runs_on_dask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "sweep examples/sweep.toml --dask local"
    assert f"$ pysim-vm {command}\n" in (CHECKOUT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = [*command.replace("examples", f"{CHECKOUT}/examples").split(), "--jobs", "2", "--json"]
    process = subprocess.run(
        [sys.executable, "-m", "pysim_vm", *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
        check=True, timeout=WAIT,
    )  # fmt: skip
    assert json.loads(process.stdout)["outcomes"] == {"guest-exit": 8, "power-off": 16}
    assert process.stderr == b""
