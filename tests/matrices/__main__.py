"""`python -m tests.matrices`: runs the system matrices and tells how many combinations of each there are.

    --full       every combination, not the slice that the tests run
    --blocks     on the block engine as well
    --update     write covered.json from a full run: iced's Code name -> combinations
    NAME ...     only matrices of these names, or whose name contains one that is none

The exit code is 1 if a combination differs from its model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tests.matrices import (
    covered,
    test_control,
    test_debug,
    test_exceptions,
    test_far,
    test_fetch,
    test_gates,
    test_iret,
    test_limits,
    test_paging,
    test_rep,
    test_segment_loads,
    test_split,
    test_system,
)
from tests.matrices.runner import Report, run

MODULES = (
    test_segment_loads, test_limits, test_paging, test_control, test_far, test_gates, test_iret,
    test_exceptions, test_rep, test_split, test_fetch, test_system,
)  # fmt: skip


def matrices() -> Iterator[tuple[str, Callable[..., Report]]]:
    """(name, how to run it) of all of them."""
    for module in MODULES:
        for matrix in module.MATRICES:
            yield matrix.name, partial(run, matrix)
    for sequences in test_debug.SEQUENCES:
        yield sequences.space.name, partial(test_debug.run_sequences, sequences)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrices", description="run the system matrices")
    parser.add_argument(
        "--full", action="store_true", help="every combination, not the slice that the tests run"
    )
    parser.add_argument("--blocks", action="store_true", help="on the block engine as well")
    parser.add_argument("--update", action="store_true", help="write covered.json; implies --full")
    parser.add_argument("names", nargs="*", help="only matrices whose name contains one of these")
    options = parser.parse_args(arguments)
    if options.update and options.names:
        parser.error("--update needs all matrices: leave the names out")
    full = options.full or options.update
    known = {name for name, _ in matrices()}
    exact = known & set(options.names)
    partial_names = set(options.names) - exact
    for part in sorted(partial_names):
        if not any(part in name for name in known):
            parser.error(f"no matrix is called {part!r}; there are: {', '.join(sorted(known))}")
    forms: Counter[str] = Counter()
    cases = differences = 0
    for name, runner in matrices():
        if options.names and name not in exact and not any(part in name for part in partial_names):
            continue
        for blocks in (False, True) if options.blocks else (False,):
            start = time.perf_counter()
            report = runner(full=full, blocks=blocks)
            seconds = time.perf_counter() - start
            engine = "block" if blocks else "step"
            print(
                f"{name} ({engine}): {report.cases} cases, {len(report.wrong)} differ, {seconds:.0f} s",
                flush=True,
            )
            print("   ", ", ".join(f"{kind} {count}" for kind, count in report.outcomes.most_common()))
            for line in report.wrong[:5]:
                print("   ", line)
            cases += report.cases
            differences += len(report.wrong)
            if not blocks:
                forms += report.forms
    print(f"{cases} cases of {len(forms)} forms, {differences} differ")
    if options.update and not differences:
        covered.write(dict(forms))
        print(f"wrote {covered.COVERED}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
