"""Sweeps: the same bytes whatever ran the jobs, in whatever order, and whoever was killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from pysim_vm.sweep import JobResult, Results, Sweep, SweepError, SweepInterrupted
from pysim_vm.sweep.job import Done, Job, run_job
from tests.pysim_vm.sweeps import (
    SIX,
    TWO_HUNDRED,
    die_on_the_second,
    die_once,
    on_one_engine,
    raise_on_the_second,
    sweep_of,
)

CHECKOUT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
WAIT = 100  # seconds after which a test gives up


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results of the 200 jobs, run one after the other in this process."""
    return sweep_of(tmp_path_factory.mktemp("unbroken"), TWO_HUNDRED).run(InOrder()).to_bytes()


class InOrder(Executor):
    """An executor that does everything at once in the caller's thread."""

    def submit(self, function, /, *arguments, **options):  # type: ignore[no-untyped-def]
        future: Future[Done] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


class Backwards(Executor):
    """An executor that starts with the last job that it was given."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Done], Job]] = []

    def submit(self, function, /, job):  # type: ignore[no-untyped-def]
        future: Future[Done] = Future()
        self.waiting.append((future, job))
        if len(self.waiting) == 6:
            for waiting, each in reversed(self.waiting):
                waiting.set_result(function(each))
            self.waiting.clear()
        return future


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """`pysim-vm sweep jobs.toml` in a process group of its own."""
    command = [sys.executable, "-m", "pysim_vm", "sweep", "jobs.toml", *options]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def wait_for_lines(journal: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until a journal has so many results."""
    end = time.monotonic() + WAIT
    while not journal.exists() or journal.read_bytes().count(b"\n") <= count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def alive_in_group(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---- killed and resumed ------------------------------------------------------------------------------------


@on_one_engine
def test_a_sweep_of_200_jobs_killed_in_the_middle_gives_the_result_of_an_unbroken_one(
    tmp_path: Path, unbroken: bytes
) -> None:
    sweep = sweep_of(tmp_path, TWO_HUNDRED)
    journal = tmp_path / "jobs.results.jsonl.journal"
    process = start(tmp_path, "--jobs", "2")
    wait_for_lines(journal, 60, process)
    process.kill()
    process.communicate()
    done = journal.read_bytes().count(b"\n") - 1
    assert 60 <= done < 200
    again: list[int] = []
    results = sweep.run(InOrder(), journal=journal, on_result=lambda result, _: again.append(result.number))
    assert len(again) == 200 - done
    assert results.to_bytes() == unbroken


@on_one_engine
def test_workers_end_when_their_sweep_is_killed(tmp_path: Path) -> None:
    sweep_of(tmp_path, TWO_HUNDRED)
    process = start(tmp_path, "--jobs", "2")
    wait_for_lines(tmp_path / "jobs.results.jsonl.journal", 2, process)
    process.kill()
    process.communicate()  # returns when nobody has the pipes any more
    end = time.monotonic() + WAIT
    while alive_in_group(process.pid):
        assert time.monotonic() < end
        time.sleep(0.01)


@on_one_engine
def test_the_command_goes_on_where_it_was_killed(tmp_path: Path, unbroken: bytes) -> None:
    sweep_of(tmp_path, TWO_HUNDRED)
    process = start(tmp_path)
    wait_for_lines(tmp_path / "jobs.results.jsonl.journal", 100, process)
    process.kill()
    process.communicate()
    second = start(tmp_path, "--json")
    out, err = second.communicate(timeout=WAIT)
    assert second.returncode == 0, err
    document = json.loads(out)
    assert document["jobs"] == 200
    assert 0 < document["new"] <= 100
    assert (tmp_path / "jobs.results.jsonl").read_bytes() == unbroken
    assert not (tmp_path / "jobs.results.jsonl.journal").exists()


@on_one_engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whom", ["the sweep alone", "the whole terminal"])
def test_a_signal_ends_a_sweep_with_a_sentence_and_nothing_is_lost(
    tmp_path: Path, number: int, whom: str
) -> None:
    sweep = sweep_of(
        tmp_path, SIX + '[guests.endless]\nasm = "endless.asm"\nbudget = {instructions = 1_000_000_000}\n'
    )
    journal = tmp_path / "jobs.results.jsonl.journal"
    process = start(tmp_path, "--jobs", "2")
    wait_for_lines(journal, 6, process)
    os.killpg(process.pid, number) if whom == "the whole terminal" else process.send_signal(number)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert err.decode() == "pysim-vm: interrupted after 6 of 9 jobs; the same command goes on\n"
    assert out == b""
    assert not (tmp_path / "jobs.results.jsonl").exists()
    kept = [json.loads(line)["result"]["number"] for line in journal.read_bytes().splitlines()[1:]]
    assert sorted(kept) == [0, 1, 2, 3, 4, 5]
    assert sweep.plan.name_of(6) == "endless/default/1"


def test_an_interruption_in_python_says_how_far_it_came(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)

    def stop(result: JobResult, seconds: float) -> None:
        if result.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted) as caught:
        sweep.run(InOrder(), journal=tmp_path / "journal", on_result=stop)
    assert (caught.value.done, caught.value.jobs, caught.value.path) == (6, 6, tmp_path / "journal")
    assert len(sweep.run(InOrder(), journal=tmp_path / "journal")) == 6


# ---- executors ---------------------------------------------------------------------------------------------


def test_threads_and_processes_and_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)
    expected = sweep.run(InOrder())
    assert [result.outcome for result in expected] == ["power-off"] * 6
    assert len({result.console_sha256 for result in expected}) > 1  # the seeds do something
    with ThreadPoolExecutor(3) as threads:
        assert sweep.run(threads).to_bytes() == expected.to_bytes()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert sweep.run(processes).to_bytes() == expected.to_bytes()
    assert sweep.run(Backwards()).to_bytes() == expected.to_bytes()
    assert sweep.run(workers=2).to_bytes() == expected.to_bytes()


def test_two_hundred_jobs_in_threads_are_those_in_order(tmp_path: Path, unbroken: bytes) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert sweep_of(tmp_path, TWO_HUNDRED).run(threads).to_bytes() == unbroken


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_shards_put_together_are_the_whole(tmp_path: Path, shards: int) -> None:
    sweep = sweep_of(tmp_path, SIX)
    paths = []
    for shard in range(1, shards + 1):
        path = tmp_path / f"{shard}.jsonl"
        results = sweep.run(InOrder(), shard=(shard, shards))
        assert [result.number for result in results] == list(range(shard - 1, 6, shards))
        results.write(path)
        paths.append(path)
    paths = [path for path in paths if path.read_bytes()]  # 7 shards of 6 jobs: one has none
    assert Results.merge(reversed(paths)).to_bytes() == sweep.run(InOrder()).to_bytes()


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_is_none_is_refused(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(SweepError, match="shard"):
        sweep_of(tmp_path, SIX).run(InOrder(), shard=shard)


def test_known_results_are_not_run_again_and_others_are(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)
    whole = sweep.run(InOrder())
    again: list[str] = []
    results = sweep.run(
        InOrder(), known=list(whole)[:4], on_result=lambda result, _: again.append(result.job)
    )  # fmt: skip
    assert again == ["longer/default/2", "longer/default/3"]
    assert results.to_bytes() == whole.to_bytes()


# ---- workers that die --------------------------------------------------------------------------------------


@on_one_engine
def test_a_worker_that_dies_once_changes_nothing(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)
    results = sweep.run(workers=2, work=die_once, journal=tmp_path / "journal")
    assert (tmp_path / "died").exists()
    assert results.to_bytes() == sweep.run(InOrder()).to_bytes()


@on_one_engine
def test_a_job_that_kills_its_worker_every_time_is_reported_and_the_others_have_their_results(
    tmp_path: Path,
) -> None:
    sweep = sweep_of(tmp_path, SIX)
    results = sweep.run(workers=2, work=die_on_the_second, journal=tmp_path / "journal")
    assert results.outcomes() == {"power-off": 5, "worker-died": 1}
    assert not results.complete
    lost = results["die/default/2"]
    assert not lost.final
    assert lost.sentence == (
        "the worker was lost twice (its process died); see if the host killed it for want of memory"
    )
    # Not final: with a healthy host it is run again, and then all is as if nothing had been
    again = sweep.run(workers=1, journal=tmp_path / "journal")
    assert again.to_bytes() == sweep.run(InOrder()).to_bytes()


def test_a_job_whose_future_fails_is_tried_again_alone_and_reported(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        results = sweep_of(tmp_path, SIX).run(threads, work=raise_on_the_second)
    assert results.outcomes() == {"power-off": 5, "worker-died": 1}
    assert "RuntimeError: the worker went away" in results["die/default/2"].sentence


def test_an_executor_that_answers_the_same_question_with_the_same_future_is_asked_another(
    tmp_path: Path,
) -> None:
    answers: dict[str, Future[Done]] = {}

    class Remembers(InOrder):
        """Dask's executor, unless told otherwise."""

        def submit(self, function, /, job):  # type: ignore[no-untyped-def]
            if repr(job) not in answers:
                work = raise_on_the_second if job.attempt == 1 else run_job
                answers[repr(job)] = super().submit(work, job)
            return answers[repr(job)]

    sweep = sweep_of(tmp_path, SIX)
    assert sweep.run(Remembers()).to_bytes() == sweep.run(InOrder()).to_bytes()


def test_a_foreign_executor_that_breaks_leaves_what_is_done_in_the_journal(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)

    class Breaks(InOrder):
        def submit(self, function, /, job):  # type: ignore[no-untyped-def]
            if job.number == 4:
                raise BrokenExecutor("no more")
            return super().submit(function, job)

    with pytest.raises(SweepError, match="run the sweep again with a new one"):
        sweep.run(Breaks(), journal=tmp_path / "journal")
    again: list[int] = []
    sweep.run(
        InOrder(), journal=tmp_path / "journal", on_result=lambda result, _: again.append(result.number)
    )
    assert len(again) <= 6
    assert sweep.run(InOrder(), journal=tmp_path / "journal").complete


def test_results_that_are_not_final_are_kept_when_asked(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)
    sweep.run(workers=1, work=die_on_the_second, journal=tmp_path / "journal")
    ran: list[int] = []

    def note(result: JobResult, seconds: float) -> None:
        ran.append(result.number)

    kept = sweep.run(InOrder(), journal=tmp_path / "journal", keep_unfinished=True, on_result=note)
    assert ran == []
    assert kept.outcomes()["worker-died"] == 1


# ---- the rest ----------------------------------------------------------------------------------------------


def test_the_seconds_of_a_job_are_known_and_are_no_part_of_the_file(tmp_path: Path) -> None:
    results = sweep_of(tmp_path, SIX).run(InOrder())
    assert set(results.seconds) == set(range(6))
    assert all(seconds > 0 for seconds in results.seconds.values())
    assert b"seconds" not in results.to_bytes()


def test_jobs_can_be_pickled_and_run_by_hand(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)
    jobs = list(sweep)
    assert [job.name for job in jobs][:2] == ["die/default/1", "die/default/2"]
    assert run_job(jobs[0]).result == sweep.run(InOrder())[jobs[0].name]


def test_two_sweeps_of_two_folders_with_the_same_contents_are_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    one, other = sweep_of(first, SIX), sweep_of(second, SIX + "# a remark\n")
    assert one.digest == other.digest
    assert one.run(InOrder()).to_bytes() == other.run(InOrder()).to_bytes()


@on_one_engine
def test_the_hash_seed_does_not_matter(tmp_path: Path) -> None:
    sweep_of(tmp_path, SIX)
    found = set()
    for hash_seed in ("0", "1"):
        command = [sys.executable, "-m", "pysim_vm", "sweep", "jobs.toml", "--fresh", "--json", "--jobs", "1"]
        done = subprocess.run(
            command, cwd=tmp_path, env={**ENVIRONMENT, "PYTHONHASHSEED": hash_seed}, capture_output=True,
            check=True,
        )  # fmt: skip
        found.add(json.loads(done.stdout)["sha256"])
    assert found == {sweep_of(tmp_path, SIX).run(InOrder()).digest()}


def test_a_sweep_is_a_sequence_of_jobs(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, TWO_HUNDRED)
    assert len(sweep) == 200
    assert sweep.plan[0].name == "die/block/1"
    assert sweep.plan[149].name == "longer/block/50"
    assert sweep.plan.name_of(199) == "longer/step/50"
    with pytest.raises(IndexError):
        sweep.plan[200]
    assert isinstance(Sweep.load(tmp_path / "jobs.toml"), Sweep)
