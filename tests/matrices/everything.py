"""All matrices by name, and how to run several at a time. What a matrix is, `runner` says."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tests.matrices import (
    test_control,
    test_debug,
    test_exceptions,
    test_far,
    test_fetch,
    test_gates,
    test_iret,
    test_limits,
    test_machine,
    test_msr,
    test_paging,
    test_rep,
    test_segment_loads,
    test_split,
    test_system,
)
from tests.matrices.runner import Report, run

MODULES = (
    test_segment_loads, test_limits, test_paging, test_control, test_far, test_gates, test_iret,
    test_exceptions, test_rep, test_split, test_fetch, test_system, test_machine, test_msr,
)  # fmt: skip


def matrices() -> Iterator[tuple[str, Callable[..., Report]]]:
    """(name, how to run it) of all of them."""
    for module in MODULES:
        for matrix in module.MATRICES:
            yield matrix.name, partial(run, matrix)
    for sequences in test_debug.SEQUENCES:
        yield sequences.space.name, partial(test_debug.run_sequences, sequences)


class Done(NamedTuple):
    """A matrix that has run on one engine; `seconds` of processor time."""

    name: str
    blocks: bool
    report: Report
    seconds: float


def one(job: tuple[str, bool, bool]) -> Done:
    """Run the matrix `name`: all of it or a slice, on the block engine or the step engine."""
    name, full, blocks = job
    start = time.process_time()
    report = dict(matrices())[name](full=full, blocks=blocks)
    return Done(name, blocks, report, time.process_time() - start)


def all_of(jobs: Sequence[tuple[str, bool, bool]], processes: int) -> Iterator[Done]:
    """What each comes to, as they finish."""
    if processes == 1:
        yield from map(one, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(one, jobs)
