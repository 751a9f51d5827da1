"""`python -m tests.matrices`: runs the system matrices and tells how many combinations of each there are.

    --full       every combination, not the slice that the tests run
    --blocks     on the block engine as well
    --jobs N     so many processes, a matrix each
    --update     write covered.json from a full run: iced's Code name -> combinations
    NAME ...     only matrices of these names, or whose name contains one that is none

The exit code is 1 if a combination differs from its model.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from tests.matrices import covered
from tests.matrices.everything import all_of, matrices


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrices", description="run the system matrices")
    parser.add_argument(
        "--full", action="store_true", help="every combination, not the slice that the tests run"
    )
    parser.add_argument("--blocks", action="store_true", help="on the block engine as well")
    parser.add_argument("--jobs", type=int, default=1, help="so many processes, a matrix each")
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
    engines = (False, True) if options.blocks else (False,)
    wanted = [
        name
        for name, _ in matrices()
        if not options.names or name in exact or any(part in name for part in partial_names)
    ]
    seconds = 0.0
    for done in all_of([(name, full, blocks) for name in wanted for blocks in engines], options.jobs):
        report = done.report
        engine = "block" if done.blocks else "step"
        found = f"{report.cases} cases, {len(report.wrong)} differ, {done.seconds:.1f} s"
        print(f"{done.name} ({engine}): {found}", flush=True)
        print("   ", ", ".join(f"{kind} {count}" for kind, count in report.outcomes.most_common()))
        for line in report.wrong[:5]:
            print("   ", line)
        cases += report.cases
        differences += len(report.wrong)
        seconds += done.seconds
        if not done.blocks:
            forms += report.forms
    total = f"{cases} cases of {len(forms)} forms, {differences} differ"
    print(f"{total}, {seconds:.0f} s of processor time")
    if options.update and not differences:
        covered.write(dict(forms))
        print(f"wrote {covered.COVERED}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
