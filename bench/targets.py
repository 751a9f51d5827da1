"""The bounds that the project holds itself to, with what was measured: a table for docs/performance.md.

They are looked at and not asserted: a timed test fails for a neighbour's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from bench import guest_boots, memory
from bench.bulk import BULK
from bench.exits import EXITS
from bench.kernels import KERNELS
from bench.single_steps import STEPS
from bench.table import KIB, Row, Work, digits, mean_of, measured
from bench.workloads import WORKLOADS

COMMAND = "python3 bootstrap.py dev -m bench"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound in `unit`: at most so much, or with `least` at least. `value(rounds)` measures; `options` are
    those of `python -m bench` that show more of it."""

    what: str
    bound: float
    unit: str
    value: Callable[[int], float]
    options: str
    least: bool = False

    @property
    def bounded(self) -> str:
        """The bound in words."""
        return f"{'at least' if self.least else 'at most'} {self.bound:g} {self.unit}"

    def line(self, rounds: int) -> str:
        """Measure it; its row in the table."""
        value = self.value(rounds)
        met = value >= self.bound if self.least else value <= self.bound
        return (
            f"| {self.what} | {self.bounded} | {digits(value)} | {'yes' if met else 'no'} "
            f"| `{COMMAND} {self.options}` |"
        )


HEADER = "| What | Bound | Measured | Met | Command |\n|---|---|--:|---|---|"


def named(works: Sequence[Work], name: str) -> Work:
    """The one work of that name."""
    (work,) = (work for work in works if work.name == name)
    return work


def units(works: Sequence[Work], name: str, engine: str) -> Callable[[int], float]:
    """Measures units per operation of one work."""
    return lambda rounds: measured(named(works, name), engine, rounds).units


def rate(name: str) -> Callable[[int], float]:
    """Measures GB/s of a bulk instruction in the block engine."""

    def value(rounds: int) -> float:
        found = measured(named(BULK, name), "block", rounds).found
        assert found is not None
        return KIB / found.ns

    return value


@cache
def kernel_rows(rounds: int) -> tuple[Row, ...]:
    """The kernels in the block engine, translating included."""
    return tuple(measured(kernel, "block", rounds) for kernel in KERNELS)


def kernel_mean(rounds: int) -> float:
    """Their geometric mean."""
    mean = mean_of(kernel_rows(rounds), "block")
    assert mean is not None
    return mean.units


def kernel_worst(rounds: int) -> float:
    """The slowest of them."""
    return max(row.units for row in kernel_rows(rounds) if row.per == "instruction")


EXIT_BOUNDS = {"OUT": 14, "IN": 16, "MMIO read": 18, "MMIO write": 18}
KERNEL_OPTIONS = "--kernels --engine block"
TARGETS = (
    Target("ALU loop, step engine", 15, "units per instruction", units(WORKLOADS, "ALU loop", "step"),
           '--only "ALU loop" --engine step'),
    Target("compute kernels, geometric mean", 1.5, "units per instruction", kernel_mean, KERNEL_OPTIONS),
    Target("compute kernels, the slowest", 5, "units per instruction", kernel_worst, KERNEL_OPTIONS),
    Target("REP MOVS", 1, "GB/s", rate("REP MOVSQ"), '--only "REP MOVS"', least=True),
    Target("REP STOS", 1, "GB/s", rate("REP STOSQ"), '--only "REP STOS"', least=True),
    Target("single step, registers handed to Python, exits recorded", 30, "units per step",
           units(STEPS, "AxVM.steps", "block"), '--only "AxVM.steps"'),
    *(Target(f"exit round trip, {name}", bound, "units per exit", units(EXITS, name, "block"),
             f'--only "{name}"') for name, bound in EXIT_BOUNDS.items()),
)  # fmt: skip


@cache
def boot_seconds(name: str) -> dict[str, float]:
    """CPU seconds of a boot in the block engine: cold ("block"), and with the translations kept from that."""
    (boot,) = (boot for boot in guest_boots.BOOTS if boot.name == name)
    return {booted.engine: booted.seconds for booted in guest_boots.boots_of(boot, "block")}


def seconds(name: str, row: str) -> Callable[[int], float]:
    """Measures one of them."""
    return lambda rounds: boot_seconds(name)[row]


SHELL, DEFAULT = "Debian, shell", "Debian, default"
BOOT_TARGETS = (
    Target("Debian to the busybox prompt, cold", 100, "s", seconds(SHELL, "block"),
           f'--guests --only "{SHELL}"'),
    Target("the same with kept translations", 60, "s", seconds(SHELL, "kept"), f'--guests --only "{SHELL}"'),
    Target("with the default command line, cold", 480, "s", seconds(DEFAULT, "block"),
           f'--guests --only "{DEFAULT}"'),
    Target("memory for each translated instruction after the boot", 2048, "bytes",
           lambda rounds: memory.bytes_per_instruction(SHELL), "--targets --guests"),
)  # fmt: skip


def show(rounds: int, targets: Sequence[Target] = TARGETS) -> None:
    """Measure them and print the table."""
    print(HEADER)
    for target in targets:
        print(target.line(rounds), flush=True)
