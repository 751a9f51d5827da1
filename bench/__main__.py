"""`python -m bench`: a table of every workload on the engines asked for, in units and on this host."""

from __future__ import annotations

import argparse
import platform
import sys
from functools import partial
from pathlib import Path

from bench.unit import measure
from bench.workloads import WORKLOADS

BLOCK_FACTOR = 10  # translated code is faster: run longer, so that translation and start do not count


def cpu_name() -> str:
    """The host CPU's name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each workload (default 15)")
    parser.add_argument("--engine", choices=("step", "block"), action="append", help="default: both")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    options = parser.parse_args(arguments)
    engines = options.engine or ["step", "block"]
    print(f"{platform.python_implementation()} {platform.python_version()} on {cpu_name()}")
    print("1 unit = one round of `x = (x + y) & M64` in a for loop; median of "
          f"{options.rounds} rounds, middle half in brackets\n")  # fmt: skip
    print(f"| {'Workload':<16} | {'Engine':<6} | {'Units':>7} | {'Middle half':>15} | {'Here':>10} | per |")
    print(f"|{'-' * 18}|{'-' * 8}|{'-' * 8}:|{'-' * 17}|{'-' * 11}:|---|")
    for workload in WORKLOADS:
        if options.only.lower() not in workload.name.lower():
            continue
        for engine in engines:
            long = workload.longer(BLOCK_FACTOR) if engine == "block" else workload
            found = measure(partial(long.fresh, engine), max(options.rounds, 2))
            spread = f"{found.low:.1f}-{found.high:.1f}"
            here = f"{found.ns:.0f} ns"
            print(f"| {workload.name:<16} | {engine:<6} | {found.units:7.1f} | {spread:>15} | {here:>10} "
                  f"| {workload.per} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
