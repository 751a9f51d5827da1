"""A sweep: guests, configurations and seeds over any executor, to one table of results. It runs no guest.

This is the door for Python::

    from pysim_vm.sweep import Sweep

    if __name__ == "__main__":  # worker processes import the main program again
        results = Sweep.load("jobs.toml").run(workers=4)
        print(results.outcomes())

Every result goes to the journal as it comes, so a killed sweep goes on where it was. A worker that dies takes
no result along: the pool is made anew, the jobs that may have killed it are run one at a time, and only one
that kills its worker again has that as its result. The rooms behind the door: `file` (the jobs file),
`job` (one job), `journal` and `results` (what is on disk).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from time import monotonic
from typing import Any, Final

from pysim_vm.cli.status import ExitStatus
from pysim_vm.errors import AxErrorKind
from pysim_vm.sweep.file import SweepError, SweepPlan, load_plan
from pysim_vm.sweep.job import Done, Job, JobResult, failed, run_job
from pysim_vm.sweep.journal import Journal
from pysim_vm.sweep.results import Results

__all__ = ["Job", "JobResult", "Results", "Sweep", "SweepError", "SweepInterrupted"]

PER_WORKER: Final = 2  # jobs with a pool of ours for each worker: one runs, one is ready
IN_FLIGHT: Final = 256  # jobs with an executor of which nothing is known
DRAIN_SECONDS: Final = 10.0  # for workers to end their jobs after an interruption
DRAIN_STEP: Final = 0.1

Work = Callable[[Job], Done]


class SweepInterrupted(KeyboardInterrupt):
    """Somebody stopped the sweep: `done` of `jobs` have a result, which the journal `path` keeps, if any."""

    def __init__(self, done: int, jobs: int, path: Path | None) -> None:
        super().__init__(f"{done} of {jobs} jobs are done")
        self.done = done
        self.jobs = jobs
        self.path = path


@dataclass(frozen=True, slots=True)
class Sweep:
    """The jobs of a jobs file. `len`, iteration and `sweep.plan[number]` give the jobs."""

    plan: SweepPlan

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a jobs file (docs/sweeps.md). ConfigError with every mistake in it, each with its line."""
        return cls(load_plan(path))

    @property
    def digest(self) -> str:
        """SHA-256 of what the results depend on: the jobs and the contents of the guests' files."""
        return self.plan.digest

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.plan)

    def numbers(self, shard: tuple[int, int] | None = None) -> range:
        """The numbers of the jobs, or of shard (i, n) with 1 <= i <= n: every n-th, from the i-th on."""
        if shard is None:
            return range(len(self))
        part, parts = shard
        if not 1 <= part <= parts:
            raise SweepError(
                f"shard {part}/{parts}: write 1/{parts} to {parts}/{parts}", AxErrorKind.InvalidInput
            )
        return range(part - 1, len(self), parts)

    def run(
        self,
        executor: Executor | None = None,
        *,
        workers: int | None = None,
        shard: tuple[int, int] | None = None,
        journal: str | os.PathLike[str] | None = None,
        on_result: Callable[[JobResult, float], None] | None = None,
        known: Iterable[JobResult] = (),
        keep_unfinished: bool = False,
        work: Work = run_job,
    ) -> Results:
        """Run the jobs that have no result yet and return the results of all of them, sorted.

        `executor` is any concurrent.futures.Executor; without one `workers` processes (one for each CPU) are
        started. `journal` is a file that keeps every result as it comes: with it, a run that was killed goes
        on. `on_result` hears of each new result and the seconds it took, in this thread. `known` are results
        from elsewhere. A result that is not final is run again, unless `keep_unfinished`. `work` does a job.

        SweepError for a journal of another sweep, or an executor that broke; SweepInterrupted, which is a
        KeyboardInterrupt, when that comes: what is done is in the journal.
        """
        numbers = self.numbers(shard)
        with contextlib.ExitStack() as files:
            log = None if journal is None else files.enter_context(Journal(journal, self.plan))
            results = {result.number: result for result in known}
            seconds = {} if log is None else dict(log.seconds)
            results |= {} if log is None else log.results
            results = {
                number: result for number, result in results.items()
                if number in numbers and (result.final or keep_unfinished)
            }  # fmt: skip

            def take(result: JobResult, took: float) -> None:
                if log is not None:
                    log.append(result, took)
                results[result.number] = result
                seconds[result.number] = took
                if on_result is not None:
                    on_result(result, took)

            pending = [number for number in numbers if number not in results]
            pool = (
                _Pool(min(workers or os.cpu_count() or 1, max(len(pending), 1))) if executor is None else None
            )
            run = _Run(executor, pool, take, work)
            try:
                if pending:
                    run.jobs(self.plan[number] for number in pending)
            except KeyboardInterrupt:
                run.drain()
                raise SweepInterrupted(
                    len(results), len(numbers), None if log is None else log.path
                ) from None
            finally:
                run.close()
        return Results.of(self.digest, len(self), results.values(), seconds)


class _Run:
    """The jobs of one run on their way through an executor."""

    def __init__(
        self,
        executor: Executor | None,
        pool: _Pool | None,
        take: Callable[[JobResult, float], None],
        work: Work,
    ) -> None:
        self._executor = executor
        self._pool = pool
        self._take = take
        self._work = work
        self._flying: dict[Future[Done], Job] = {}
        self._suspects: list[Job] = []
        self._interrupted = False

    def jobs(self, jobs: Iterator[Job]) -> None:
        """Run them all, then once more and one at a time those whose worker was lost: alone, a job shows if
        it did that. SweepError if an executor that is not ours breaks."""
        most = IN_FLIGHT if self._pool is None else self._pool.workers * PER_WORKER
        try:
            while True:
                try:
                    self._round(jobs, most)
                    break
                except BrokenExecutor:
                    if self._pool is None:
                        raise
                    self._suspects += self._flying.values()
                    self._flying = {}
                    self._pool.renew()
            for job in sorted(self._suspects, key=lambda each: each.number):
                self._alone(job)
        except BrokenExecutor as error:
            raise SweepError(
                f"the executor broke ({type(error).__name__}); run the sweep again with a new one, what is "
                "in the journal is not run again"
            ) from error

    def _round(self, jobs: Iterator[Job], most: int) -> None:
        """Keep up to `most` jobs with the executor until there are none left."""
        while True:
            while len(self._flying) < most and (job := next(jobs, None)) is not None:
                self._submit(job)
            if not self._flying:
                return
            done, _ = wait(self._flying, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda each: self._flying[each].number):
                if self._settle(future):
                    self._suspects.append(self._flying[future])
                del self._flying[future]

    def _submit(self, job: Job) -> Future[Done]:
        if self._executor is not None:
            future = self._executor.submit(self._work, job)
        else:
            assert self._pool is not None
            try:
                future = self._pool.submit(self._work, job)
            except BrokenExecutor:
                # It was never run, but a place among the suspects brings it back.
                self._flying[Future()] = job
                raise
        self._flying[future] = job
        return future

    def _settle(self, future: Future[Done]) -> str:
        """Take the result of a job that came back; without one, why there is none."""
        try:
            done = future.result()
        except BrokenExecutor:
            raise
        except CancelledError:
            raise BrokenExecutor("the executor gave jobs back") from None
        except Exception as error:  # such as dask's KilledWorker
            return f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        if done.result is None:
            return "a signal ended it"
        self._take(done.result, done.seconds)
        return ""

    def _alone(self, job: Job) -> None:
        """Run one job with nothing beside it."""
        try:
            future = self._submit(replace(job, attempt=2))
            wait((future,))
            why = self._settle(future)
        except BrokenExecutor:
            if self._pool is None:
                raise
            self._pool.renew()
            why = "its process died"
        self._flying = {}
        if why:
            words = f"the worker was lost twice ({why}); see if the host killed it for want of memory"
            self._take(failed(job, "worker-died", ExitStatus.INTERNAL, words), 0.0)

    def drain(self) -> None:
        """After an interruption: take what ends soon, end the rest. A second interruption changes nothing."""
        self._interrupted = True
        for future in self._flying:
            future.cancel()
        end = monotonic() + (DRAIN_SECONDS if self._pool is not None else 0.0)
        while True:
            try:
                self._drain_until(end)
            except KeyboardInterrupt:
                continue
            return

    def _drain_until(self, end: float) -> None:
        while True:
            if self._pool is not None:
                self._pool.interrupt()
            done, waiting = wait(self._flying, timeout=DRAIN_STEP)
            for future in done:
                self._flying.pop(future, None)
                if not future.cancelled() and future.exception() is None:
                    finished = future.result()
                    if finished.result is not None:
                        self._take(finished.result, finished.seconds)
            if not waiting or monotonic() >= end:
                return

    def close(self) -> None:
        """End a pool of ours; nothing of it is left behind."""
        if self._pool is not None:
            self._pool.close(kill=self._interrupted or bool(self._flying))


# ---- a pool of processes -----------------------------------------------------------------------------------


class _Context(SpawnContext):
    """The `spawn` way to start processes, which keeps a list of them. Fresh processes: a fork would inherit
    the files, threads and locks of a program that we do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]
        """A process, noted."""
        process = SpawnProcess(*arguments, **options)
        self.started.append(process)
        return process


class _Pool:
    """Worker processes of this sweep, made anew when one of them dies."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context = _Context()
        self._executor = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.workers, mp_context=self._context, initializer=_begin_worker)

    def submit(self, work: Work, job: Job) -> Future[Done]:
        """Hand a job over. BrokenExecutor if a worker has died."""
        with _without_interrupts():
            return self._executor.submit(work, job)

    def renew(self) -> None:
        """New processes in place of the old ones."""
        self.close(kill=True)
        self._executor = self._new()

    def interrupt(self) -> None:
        """Ask the workers to end their jobs; one that has none does not mind."""
        for process in self._alive():
            if process.pid is not None and os.name == "posix":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)

    def close(self, *, kill: bool) -> None:
        """End the workers, at once with `kill`."""
        if kill:
            for process in self._alive():
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._context.started.clear()

    def _alive(self) -> list[SpawnProcess]:
        return [process for process in self._context.started if process.is_alive()]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold SIGINT back: a process that is born now must not see it before it has said what it wants to do."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """First words of a worker: Ctrl-C is the parent's business between jobs, and without it there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever; when its parent is killed, it has to notice that itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
