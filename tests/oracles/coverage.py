"""Which form was checked against a real CPU how often, and why the others cannot be. It runs nothing.

`tests/vectors/coverage.json` is written by `python -m tests.oracles --update` and read by docs/generate.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from isa.decode import code_names
from tests.isa.forms import implemented_forms
from tests.oracles.reasons import reason

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
COVERAGE = VECTORS / "coverage.json"
VERSION = 2
NOT_YET = "its cases are not in a run yet"

ENOUGH = 200  # cases of a form


class Counts(Protocol):
    """What a run counted, by form."""

    agreed: Counter[str]
    faulted: Counter[str]
    missing: Counter[str]


def summary(cpu: str, command: str, counts: Counts, before: Mapping[str, Any]) -> dict[str, Any]:
    """What coverage.json holds after a run. `before` is what the file held, {} for nothing.

    "checked" has the number of cases of each form that came out alike, "faults" how many of them ended in a
    fault, "unchecked" the other implemented forms by the reason. Counts of earlier runs on the same CPU stay.
    """
    nothing: dict[str, Any] = {"checked": {}, "faults": {}, "unchecked": {}, "runs": []}
    earlier = before if before and before["cpu"] == cpu else nothing
    lacking = f"the recording host ({cpu}) lacks it"
    checked: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    unchecked: dict[str, list[str]] = {}
    for code in implemented_forms():
        name = code_names()[code]
        cases = counts.agreed[name] + earlier["checked"].get(name, 0)
        faulted = counts.faulted[name] + earlier["faults"].get(name, 0)
        is_missing = counts.missing[name] > 0 or name in earlier["unchecked"].get(lacking, ())
        if is_missing and cases == faulted:  # #UD with a LOCK prefix is no sign of the instruction
            unchecked.setdefault(lacking, []).append(name)
        elif cases:
            checked[name] = cases
            faults[name] = faulted
        else:
            unchecked.setdefault(reason(code) or NOT_YET, []).append(name)
    return {
        "version": VERSION,
        "cpu": cpu,
        "runs": [*earlier["runs"], command],
        "cases": sum(checked.values()),
        "checked": dict(sorted(checked.items())),
        "faults": {name: number for name, number in sorted(faults.items()) if number},
        "unchecked": {why: sorted(names) for why, names in sorted(unchecked.items())},
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write coverage.json, one form a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path = COVERAGE) -> dict[str, Any]:
    """The content of coverage.json. ValueError if it is of another version."""
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("version") != VERSION:
        raise ValueError(f"{path}: version {content.get('version')}, this reads {VERSION}; run --update")
    return content
