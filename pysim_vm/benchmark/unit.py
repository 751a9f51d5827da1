"""The calibration unit: one round of `x = (x + y) & M64` in a Python loop. It knows no workload.

Seconds say more about a host and its neighbours than about a program. So a workload is timed in turns with
this loop, in CPU time, and what counts is the ratio: units per guest instruction, or per exit. A host that
is slower for a moment is so for both. The median over the rounds is reported, with the middle half as the
spread.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import process_time

M64 = 0xFFFF_FFFF_FFFF_FFFF
UNITS = 100_000  # of one calibration: about 5 ms


@dataclass(frozen=True, slots=True)
class Measurement:
    """Units per operation over several rounds: median and quartiles; `unit_ns` is the unit on this host,
    `operations` what one round did, `seconds` the median of what a round took, `ratios` the units per
    operation of each round."""

    units: float
    low: float
    high: float
    unit_ns: float
    operations: int
    seconds: float = 0.0
    ratios: tuple[float, ...] = ()

    @property
    def ns(self) -> float:
        """Nanoseconds per operation on this host."""
        return self.units * self.unit_ns


def unit_seconds(count: int = UNITS) -> float:
    """Seconds of CPU time that `count` units take."""
    x, y = 0, 0x9E37_79B9_7F4A_7C15
    start = process_time()
    for _ in range(count):
        x = (x + y) & M64
    return process_time() - start


def measure(
    setup: Callable[[], Callable[[], int]], rounds: int = 15, clock: Callable[[], float] = process_time
) -> Measurement:
    """Time a workload in turns with the unit. `setup` makes a fresh one, which does its work when it is
    called and returns the number of operations done; only the call is timed, by `clock`. Two rounds at
    least."""
    ratios, units, times = [], [], []
    operations = setup()()  # imports, caches and the branch predictor
    for _ in range(rounds):
        work = setup()
        before = unit_seconds() / UNITS
        start = clock()
        operations = work()
        seconds = clock() - start
        unit = (before + unit_seconds() / UNITS) / 2
        ratios.append(seconds / operations / unit)
        units.append(unit)
        times.append(seconds)
    low, _, high = quantiles(ratios, n=4)
    return Measurement(
        median(ratios), low, high, median(units) * 1e9, operations, median(times), tuple(ratios)
    )


def cpu_name() -> str:
    """The host CPU's name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
