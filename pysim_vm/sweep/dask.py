"""Sweeps over dask.distributed: an executor of many machines, or of a cluster on this one. An extra.

Nothing else of pysim_vm knows dask; `pip install 'pysim-vm[dask]'` brings it. The workers of a cluster need
pysim_vm as well, in the same version, and the guests' files at the same paths.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any, Final

from pysim_vm.errors import AxErrorKind
from pysim_vm.sweep.file import SweepError

LOCAL: Final = "local"
LOOPBACK: Final = "127.0.0.1"
CONNECT_SECONDS: Final = 15


@contextlib.contextmanager
def dask_executor(address: str = LOCAL, workers: int | None = None) -> Iterator[Executor]:
    """An executor on the scheduler at `address`, such as "tcp://10.0.0.1:8786", for a `with` statement.

    "local" starts a scheduler and `workers` worker processes (one for each CPU) here, which listen on the
    loopback interface only and end with the block. SweepError without dask, or if nobody answers.
    """
    distributed = _distributed()
    with contextlib.ExitStack() as opened:
        cluster: Any = address
        if address == LOCAL:
            count = workers or os.cpu_count() or 1
            cluster = opened.enter_context(
                distributed.LocalCluster(
                    n_workers=count, threads_per_worker=1, processes=True, host=LOOPBACK,
                    dashboard_address=f"{LOOPBACK}:0", silence_logs=logging.CRITICAL,
                    scheduler_kwargs={"allowed_failures": 0},  # a sweep itself tries a job again, alone
                )
            )  # fmt: skip
        try:
            client = opened.enter_context(
                distributed.Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
            )
        except (OSError, ValueError, TypeError) as error:
            words = str(error).split("\n", 1)[0] or type(error).__name__
            raise SweepError(
                f"no dask scheduler at {address} ({words}); start one with `dask scheduler`, or write local",
                AxErrorKind.Io,
            ) from None
        executor: Executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError:
        raise SweepError(
            "dask.distributed is not installed; pip install 'pysim-vm[dask]'", AxErrorKind.Unsupported
        ) from None
