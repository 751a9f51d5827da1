"""`python -m bench`: what the machine costs, in units and on this host; tables for docs/performance.md."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

from bench import guest_boots, targets
from bench.bulk import BULK
from bench.exits import EXITS
from bench.kernels import KERNELS
from bench.peers import installed
from bench.single_steps import STEPS
from bench.table import HEADER, Row, Work, mean_of, measured, measured_beside
from bench.unit import cpu_name
from bench.workloads import WORKLOADS

WORK_ROUNDS, KERNEL_ROUNDS = 15, 5


def show(works: Sequence[Work], engines: Sequence[str], rounds: int, only: str) -> list[Row]:
    """Measure works one by one and print their rows."""
    rows = []
    for work in works:
        if only.lower() in work.name.lower():
            for engine in engines:
                rows.append(measured(work, engine, rounds))
                print(rows[-1].line(), flush=True)
    return rows


def show_kernels(engines: Sequence[str], rounds: int, only: str) -> None:
    """The kernels on our engines and on every peer that is installed, and the geometric means of all."""
    again = ["kept", "warm"] if "block" in engines else []
    rows = show(KERNELS, [*engines, *again], rounds, only)
    for peer in installed():
        for kernel in KERNELS:
            if only.lower() in kernel.name.lower():
                rows.append(measured_beside(peer, kernel, rounds))
                print(rows[-1].line(), flush=True)
    if not only:
        for engine in dict.fromkeys(row.engine for row in rows):
            mean = mean_of(rows, engine)
            print("" if mean is None else mean.line())


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="rounds of each (default 15, of the kernels 5)")
    parser.add_argument("--engine", choices=("step", "block"), action="append", help="default: both")
    parser.add_argument("--only", default="", help="what has this in its name")
    parser.add_argument("--kernels", action="store_true", help="only the compute kernels")
    parser.add_argument("--guests", action="store_true", help="only real guests, each booted once")
    parser.add_argument(
        "--targets",
        action="store_true",
        help="only what there are bounds for, as Markdown; "
        "with --guests those of the boots, which take ten minutes",
    )
    options = parser.parse_args(arguments)
    engines = options.engine or ["step", "block"]
    rounds = max(options.rounds or 0, 2) if options.rounds is not None else None
    print(f"{platform.python_implementation()} {platform.python_version()} on {cpu_name()}")
    print("1 unit = one round of `x = (x + y) & M64` in a for loop; medians, the middle half beside them\n")
    if options.targets:
        targets.show(rounds or KERNEL_ROUNDS, targets.BOOT_TARGETS if options.guests else targets.TARGETS)
        return 0
    if options.guests:
        guest_boots.show(engines, options.only)
        return 0
    print(HEADER)
    if not options.kernels:
        show((*WORKLOADS, *EXITS, *BULK, *STEPS), engines, rounds or WORK_ROUNDS, options.only)
    show_kernels(engines, rounds or KERNEL_ROUNDS, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
