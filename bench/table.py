"""A measured row and its line in a table. What a row measures is in `workloads`, `kernels`, `bulk` ..."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean
from typing import Any, Protocol

from bench.kernels import Kernel
from bench.peers import Peer, counted
from bench.unit import Measurement, measure

BLOCK_FACTOR = 10  # translated code is faster: run longer, so that translation and start do not count
KIB = 1024
LEAST = 0.001  # units: below, a peer's start is known worse than its run


class Work(Protocol):
    """What can be measured: `fresh` makes a VM that runs when it is called and returns operations done;
    `longer` is the same work at more operations; `per` says what an operation is."""

    @property
    def name(self) -> str: ...
    @property
    def per(self) -> str: ...
    def longer(self, factor: int, /) -> Any: ...
    def fresh(self, engine: str, /) -> Callable[[], int]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One work on one engine. `found` is None in a mean, which has units only."""

    name: str
    engine: str
    units: float
    per: str
    found: Measurement | None = None

    def line(self) -> str:
        """The row in the table."""
        spread = here = count = ""
        if self.found is not None:
            spread = f"{digits(self.found.low)}-{digits(self.found.high)}"
            here = f"{digits(self.found.ns)} ns" if self.per != "KiB" else f"{KIB / self.found.ns:.2f} GB/s"
            count = f"{self.found.operations:,}"
        return (
            f"| {self.name:<16} | {self.engine:<11} | {digits(self.units):>7} | {spread:>15} | {here:>10} "
            f"| {count:>9} | {self.per} |"
        )


def digits(number: float) -> str:
    """A measured number with as many digits as mean something."""
    size = abs(number)
    return f"{number:.{0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"


HEADER = "\n".join(
    (
        f"| {'Workload':<16} | {'Engine':<11} | {'Units':>7} | {'Middle half':>15} | {'Here':>10} "
        f"| {'Count':>9} | per |",
        f"|{'-' * 18}|{'-' * 13}|{'-' * 8}:|{'-' * 17}|{'-' * 11}:|{'-' * 10}:|---|",
    )
)


def measured(work: Work, engine: str, rounds: int) -> Row:
    """Measure `work` on `engine`, longer unless that is the step engine."""
    long = work if engine == "step" else work.longer(BLOCK_FACTOR)
    found = measure(partial(long.fresh, engine), rounds)
    return Row(work.name, engine, found.units, work.per, found)


def measured_beside(peer: Peer, kernel: Kernel, rounds: int) -> Row:
    """Measure a kernel, at its full size, on another emulator."""
    long = kernel.longer()
    found = measure(partial(counted, peer, long), rounds, peer.clock)
    return Row(kernel.name, peer.name, found.units, kernel.per, found)


def mean_of(rows: Iterable[Row], engine: str) -> Row | None:
    """The geometric mean of all rows of an engine that count instructions, or None if there is none."""
    units = [max(row.units, LEAST) for row in rows if row.engine == engine and row.per == "instruction"]
    return Row("geometric mean", engine, geometric_mean(units), "instruction") if units else None
