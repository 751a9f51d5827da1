"""Which instruction forms the system matrices check, and in how many cases. It runs no matrix.

`covered.json` holds iced's Code name -> combinations of the slice that the tests run, or of the full run:
`python -m tests.matrices --update` writes the latter, `test_covered.py` holds it to what they generate.
"""

from __future__ import annotations

import json
from pathlib import Path

COVERED = Path(__file__).with_name("covered.json")
VERSION = 1


def matrix_checked(path: Path = COVERED) -> dict[str, int]:
    """Code name -> cases. ValueError if the file is of another version."""
    content = json.loads(path.read_text())
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: version {content.get('version')}, this reads {VERSION}; "
            "run python -m tests.matrices --update"
        )
    return {str(name): int(cases) for name, cases in content["forms"].items()}


def write(forms: dict[str, int], path: Path = COVERED) -> None:
    """Write covered.json, one form a line."""
    path.write_text(json.dumps({"version": VERSION, "forms": dict(sorted(forms.items()))}, indent=1) + "\n")
