"""The model layer of a benchmark: what a run is worth in virtual cycles. It runs and measures nothing.

Virtual cycles are instructions and exits times the figures of a cost model, in integers, so that the same
guest has the same number on every machine. A cost model is a TOML file; the one that comes with the package,
cost_models/default.toml, has round figures of the order that hardware has, and says so. HLT costs its exit
and not the time that the CPU sleeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pysim_vm.config.problems import Problems, nearest
from pysim_vm.config.table import Table, parse_toml, read_file
from pysim_vm.exit_kinds import KINDS

CYCLES_MAX: Final = 1_000_000_000_000  # of one exit: seconds of any CPU


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cycles of an instruction and of an exit of each kind, on top of its instruction."""

    name: str
    source: str
    instruction: int
    exits: Mapping[str, int]

    def cycles(self, instructions: int, exits: Mapping[str, int]) -> int:
        """Virtual cycles of a run."""
        return instructions * self.instruction + sum(
            count * self.exits[kind] for kind, count in exits.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "source": self.source,
            "instruction": self.instruction,
            "exit": {kind: self.exits[kind] for kind in KINDS},
        }


def default_path() -> Path:
    """The cost model that is used unless another one is named."""
    return Path(__file__).with_name("cost_models") / "default.toml"


def default_costs() -> CostModel:
    """The default cost model."""
    text = read_file(default_path())
    return _read(text, str(default_path()), None)


def load_costs(path: str | Path) -> CostModel:
    """Read a cost model. A kind of exit that it leaves out keeps the default's figure. ConfigError."""
    return costs_from_toml(read_file(Path(path)), str(path))


def costs_from_toml(text: str, source: str = "<string>") -> CostModel:
    """`load_costs` on a text."""
    return _read(text, source, default_costs())


def _read(text: str, source: str, base: CostModel | None) -> CostModel:
    problems = Problems(source, None)
    data = parse_toml(text, problems)
    name = said = ""
    instruction, exits = 1, dict.fromkeys(KINDS, 0) if base is None else dict(base.exits)
    if data is not None:
        root = Table(problems, data, ())
        name = root.text("name", example='"my machine"') or ""
        said = root.text("source", example='"where the figures come from"') or ""
        given = root.integer("instruction", 0, CYCLES_MAX)
        instruction = given if given is not None else 1 if base is None else base.instruction
        rows = root.get("exit", dict, "a table [exit]", "{ io_read = 1000 }")
        root.finish()
        if rows is not None:
            table = Table(problems, rows, ("exit",))
            for kind in rows:
                if kind in KINDS:
                    cycles = table.integer(kind, 0, CYCLES_MAX)
                    exits[kind] = exits[kind] if cycles is None else cycles
                else:
                    message = f"no kind of exit; known are {', '.join(KINDS)}"
                    table.error(kind, message, nearest(kind, KINDS))
        problems.errors += problems.warnings
    problems.raise_errors()
    return CostModel(name, said, instruction, exits)
