"""Sweeps for the tests: jobs files with tiny guests, and work for worker processes to import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pysim_vm.sweep import Sweep
from pysim_vm.sweep.job import Done, Job, run_job

# Prints a digit that RDRAND made of the seed and switches the machine off
DIE = """
        rdrand eax
        and al, 7
        add al, '0'
        mov dx, 0x3f8
        out dx, al
        mov dx, 0x604
        mov ax, 0x2000
        out dx, ax
"""
# Counts for a while before it does
LONGER = "mov ecx, 500\nagain: dec ecx\njnz again\n" + DIE
ENDLESS = "again: inc eax\njmp again\n"
CHATTY = "mov dx, 0x3f8\nmov al, 'x'\nagain: out dx, al\njmp again\n"

# conftest.py exchanges the engine in the process of the tests alone
on_one_engine = pytest.mark.skipif(
    os.environ.get("PYSIM_TEST_ENGINE") == "other", reason="other processes choose their engine themselves"
)

TWO_HUNDRED = """
seeds = "1-50"
[budget]
instructions = 50_000
seconds = 120
[guests.die]
asm = "die.asm"
memory = "1M"
[guests.longer]
asm = "longer.asm"
memory = "1M"
[configurations.block]
engine = "block"
[configurations.step]
engine = "step"
ns_per_instruction = 100
"""
SIX = TWO_HUNDRED.partition("[configurations")[0].replace('"1-50"', "[1, 2, 3]")


def sweep_of(folder: Path, text: str, name: str = "jobs.toml") -> Sweep:
    """The sweep of a jobs file, beside which all the guests above lie."""
    for guest, code in (("die", DIE), ("longer", LONGER), ("endless", ENDLESS), ("chatty", CHATTY)):
        (folder / f"{guest}.asm").write_text(code, encoding="utf-8")
    (folder / name).write_text(text, encoding="utf-8")
    return Sweep.load(folder / name)


def one(folder: Path, guest: str, budget: str = "instructions = 50_000", rest: str = "") -> Sweep:
    """A sweep of a single job."""
    return sweep_of(folder, f'[budget]\n{budget}\n[guests.it]\nasm = "{guest}.asm"\nmemory = "1M"\n{rest}')


# ---- work for workers --------------------------------------------------------------------------------------


def die_on_the_second(job: Job) -> Done:
    """The worker is killed whenever it gets job number 1."""
    if job.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job)


def die_once(job: Job) -> Done:
    """The worker of job number 1 is killed the first time; the jobs file's folder remembers that."""
    mark = Path(job.folder) / "died"
    if job.number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job)


def raise_on_the_second(job: Job) -> Done:
    """What dask's KilledWorker looks like: the future of job number 1 has an exception."""
    if job.number == 1:
        raise RuntimeError("the worker went away")
    return run_job(job)


def slow(job: Job) -> Done:
    """So that somebody can come in between."""
    time.sleep(0.02)
    return run_job(job)
