"""`python -m tests.oracles.mutants`: breaks the CPU on purpose, in a copy, and shows what notices, how fast.

Five breaks of the kinds that hurt: a flag, a rounding mode, a page permission, an error code, the mask of a
shift count. Each is one line of `isa/`. Every test file named for a break runs alone and stops at its first
failure; before, without a break, it has to pass. The exit code is 1 if a file that should notice a break
does not, 2 if one fails without any.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("isa", "devices", "pysim_vm", "tests")
RECORDED = "tests/test_recorded_vectors.py"
GENERAL = "tests/isa/semantics/test_general_against_host.py"
LONGEST_RUN = 300  # seconds


@dataclass(frozen=True, slots=True)
class Mutant:
    """One break: the first `old` in `file` becomes `new`; `caught_by` are the test files that must notice."""

    what: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]


MUTANTS = (
    Mutant(
        "SUB: overflow as of an addition",
        "isa/semantics/arith.py",
        "cpu.of = ((a ^ b) & (a ^ result)) >> sign",
        "cpu.of = ((a ^ result) & (b ^ result)) >> sign",
        ("tests/isa/semantics/test_arith.py", RECORDED, GENERAL),
    ),
    Mutant(
        "floats: rounding up and to zero forgotten",
        "isa/floats.py",
        "mode = control >> ROUND_SHIFT & 3",
        "mode = control >> ROUND_SHIFT & 1",
        ("tests/isa/test_floats.py", RECORDED, "tests/isa/semantics/test_sse_against_host.py"),
    ),
    Mutant(
        "paging: user code may write to read-only pages",
        "isa/mmu.py",
        "elif access == ACCESS_WRITE and not rights & RW:",
        "elif access == ACCESS_WRITE and not rights & (RW | US):",
        ("tests/isa/test_mmu.py", RECORDED, GENERAL),
    ),
    Mutant(
        "descriptors: RPL left in the error code",
        "isa/descriptors.py",
        "raise fault(selector & SELECTOR_INDEX, why)",
        "raise fault(selector, why)",
        ("tests/isa/test_descriptors.py", RECORDED, GENERAL),
    ),
    Mutant(
        "SHL: count modulo 64 at every size",
        "isa/semantics/shift.py",
        "count = src.value & (63 if dst.bits == 64 else 31)",
        "count = src.value & 63",
        ("tests/isa/semantics/test_shift.py", RECORDED, GENERAL),
    ),
)


def mutated(source: str, mutant: Mutant) -> str:
    """`source` with the break. ValueError if the line is not there any more."""
    if mutant.old not in source:
        raise ValueError(f"{mutant.file}: no line {mutant.old!r} to break; adapt tests/oracles/mutants.py")
    return source.replace(mutant.old, mutant.new, 1)


def first_failure(output: str) -> str:
    """The name of the first failed test in pytest's output, "" if none."""
    match = re.search(r"^(?:FAILED|ERROR) [^:\n]+(?:::(.+?))?(?: - .*)?$", output, re.MULTILINE)
    return (match.group(1) or "the collection") if match else ""


def run_tests(file: str, folder: Path) -> tuple[str, float]:
    """(first failed test or "", seconds) of a test file in `folder`."""
    start = time.perf_counter()
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", file]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_RUN, check=False
    )
    return first_failure(done.stdout), time.perf_counter() - start


def run(mutant: Mutant, folder: Path) -> list[tuple[str, str, float]]:
    """(test file, first failed test or "", seconds) for each file, with the break applied in `folder`."""
    path = folder / mutant.file
    original = path.read_text()
    path.write_text(mutated(original, mutant))
    rows = [(file, *run_tests(file, folder)) for file in mutant.caught_by]
    path.write_text(original)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run the breaks whose description contains an argument, or all of them; print a table."""
    chosen = [m for m in MUTANTS if not arguments or any(word in m.what for word in arguments)]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for file in dict.fromkeys(file for mutant in chosen for file in mutant.caught_by):
            test, seconds = run_tests(file, folder)
            if test:
                print(f"{file} fails without any break, in {test}; mend that first", file=sys.stderr)
                return 2
            print(f"without a break {file} passes in {seconds:.1f} s", file=sys.stderr, flush=True)
        print("| break | tests run | caught by | seconds |\n|---|---|---|---|")
        for mutant in chosen:
            for file, test, seconds in run(mutant, folder):
                missed += not test
                print(f"| {mutant.what} | {file} | {test or '**nothing**'} | {seconds:.1f} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
