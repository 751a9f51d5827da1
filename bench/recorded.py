"""What recording costs: the exit kernels with a recorder that writes a file, beside the same without one.

Run as ``python -m bench.recorded``. Both runs of a round follow each other in CPU time, so its ratio
is one of the same moment; the median over the rounds counts, the middle half is the spread. The record is
closed within the measured time: rows, checksums and the file are part of the price. LIMIT is what the project
promises (docs/records.md).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import process_time

from bench.exits import EXITS, ExitWork
from pysim_vm.benchmark.run import build, run
from pysim_vm.benchmark.workload import find_workload

LIMIT = 1.25
SECONDS = 0.1  # of CPU time for one run, so that making and closing a file does not count


@dataclass(frozen=True, slots=True)
class Price:
    """Nanoseconds an exit on this host without and with a recorder, the ratio, and its middle half."""

    name: str
    engine: str
    plain: float
    recorded: float
    ratio: float
    low: float
    high: float

    def line(self) -> str:
        """The row in the table."""
        spread = f"{self.low:.2f}-{self.high:.2f}"
        return (
            f"| {self.name:<16} | {self.engine:<6} | {self.plain:>8,.0f} ns | {self.recorded:>8,.0f} ns "
            f"| {self.ratio:>5.2f} | {spread:>9} |"
        )


def seconds(work: ExitWork, engine: str, record: Path | None) -> float:
    """CPU time of one run on a fresh machine."""
    workload = find_workload(work.workload).with_count(work.count)
    vm = build(workload, engine, work.exit_path)
    recorder = None if record is None else vm.record(record)
    start = process_time()
    run(vm, workload)
    if recorder is not None:
        recorder.close()
    return process_time() - start


def price(work: ExitWork, engine: str, record: Path, rounds: int) -> Price:
    """Run in turns without and with a recorder. Two rounds at least."""
    longer = work.longer(max(1, round(SECONDS / max(seconds(work, engine, None), 1e-3))))
    exits = longer.count * longer.elements
    plain, recorded, ratios = [], [], []
    seconds(longer, engine, record)  # imports, caches and the branch predictor
    for n in range(rounds):
        first, second = (None, record) if n % 2 else (record, None)
        times = {first: seconds(longer, engine, first), second: seconds(longer, engine, second)}
        plain.append(times[None])
        recorded.append(times[record])
        ratios.append(times[record] / times[None])
    low, _, high = quantiles(ratios, n=4)
    return Price(
        work.name, engine, median(plain) / exits * 1e9, median(recorded) / exits * 1e9,
        median(ratios), low, high,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if an exit of the short way, or one for the caller, costs more than LIMIT."""
    parser = argparse.ArgumentParser(prog="python -m bench.recorded", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds a row (15)")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose names hold TEXT")
    parser.add_argument("--engine", choices=("step", "block"), help="one engine, not both")
    options = parser.parse_args(arguments)
    print("| exit             | engine |        plain |     recorded | ratio |    spread |")
    print("|------------------|--------|--------------|--------------|-------|-----------|", flush=True)
    over = []
    with TemporaryDirectory() as scratch:
        for work in EXITS:
            if work.recorded or options.only.lower() not in work.name.lower():
                continue
            for engine in (options.engine,) if options.engine else ("step", "block"):
                found = price(work, engine, Path(scratch) / "exits.rec", max(options.rounds, 2))
                print(found.line(), flush=True)
                if found.ratio > LIMIT and work.exit_path == "short":
                    over.append(f"{found.name} ({engine})")
    if over:
        print(f"over {LIMIT}: {', '.join(over)}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
