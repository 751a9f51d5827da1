"""What translated code costs in memory of the host, after a real guest has booted. It times nothing.

The same boot runs in two new processes, one on each engine, and the resident set is read at the end. The
difference is what the block engine keeps: functions, their tables, and what lies unused between them.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.guest_boots import BOOTS, Meter
from isa.code_cache import CodeCache

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a boot left: resident KiB of its process, guest instructions in live translations."""

    kib: int
    translated: int


def translated(cache: CodeCache) -> int:
    """Guest instructions in the functions that can still be called; one in two functions counts twice."""
    blocks = [block for page in cache.pages.values() for block in page.blocks.values()]
    return sum(len(ips) for ips in {id(block.run): block.ips for block in blocks}.values())


def resident_kib() -> int:
    """The resident set of this process. OSError where there is no /proc."""
    gc.collect()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def kept_by(name: str, engine: str) -> Kept:
    """Boot the guest of that name in a process of its own."""
    command = [sys.executable, "-m", "bench.memory", name, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kib, instructions = map(int, done.stdout.split())
    return Kept(kib, instructions)


def bytes_per_instruction(name: str) -> float:
    """Host memory for each translated guest instruction after this boot."""
    step, block = kept_by(name, "step"), kept_by(name, "block")
    return (block.kib - step.kib) * 1024 / block.translated


def main(name: str, engine: str) -> None:
    """Boot it here and print both numbers."""
    (boot,) = (boot for boot in BOOTS if boot.name == name)
    vm = boot.boot(Meter(engine=engine))
    cache = vm.vcpu(0).cpu.cache
    print(resident_kib(), translated(cache))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
