"""covered.json names exactly the forms that the matrices generate, with no fewer cases than the tests run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from isa.decode import code_names
from tests.isa.forms import implemented_forms
from tests.matrices import covered
from tests.matrices.everything import MODULES
from tests.matrices.runner import code_bits, form_of
from tests.matrices.test_debug import INSTRUCTIONS, SEQUENCES
from tests.matrices.world import BITS, World
from tests.oracles import coverage
from tests.oracles.reasons import PAST, only_fault, reason

SLICE = 400  # combinations of a space: enough to meet every instruction of it


def generated() -> Counter[str]:
    """Forms of a small slice of every space, without running it."""
    found: Counter[str] = Counter()
    for module in MODULES:
        for matrix in module.MATRICES:
            world = World(matrix.ram)
            for space in matrix.spaces:
                for combination in space.slice(SLICE, full=False):
                    case = matrix.case(world, combination)
                    if case is not None and case.at is None:
                        found[form_of(case.raw, code_bits(case.start))] += 1
    for what in SEQUENCES:
        for combination in what.space.slice(SLICE, full=False):
            step = INSTRUCTIONS[combination["mode"]].get(combination[what.key])
            if step is not None:
                found[form_of(step.raw, BITS[combination["mode"]])] += 1
    return found


def test_covered_json_names_the_forms_that_the_matrices_generate() -> None:
    kept = covered.matrix_checked()
    slices = generated()
    stale = "run python -m tests.matrices --update"
    assert slices.keys() <= kept.keys(), stale
    assert not kept.keys() - set(code_names().values()), stale
    short = {name: (kept[name], count) for name, count in slices.items() if kept[name] < count}
    assert not short, stale
    assert len(kept) > 150


def test_every_implemented_form_is_compared_on_silicon_or_in_a_matrix() -> None:
    silicon, matrices = coverage.read()["checked"], covered.matrix_checked()
    neither = []
    for code in implemented_forms():
        name = code_names()[code]
        if reason(code) == PAST or name in matrices:
            continue
        if name not in silicon or only_fault(code):
            neither.append(name)
    assert not neither, neither


def test_covered_json_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "covered.json"
    path.write_text('{"version": 99, "forms": {}}')
    with pytest.raises(ValueError, match="version 99"):
        covered.matrix_checked(path)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "covered.json"
    covered.write({"NOPD": 3, "ADD_RM8_R8": 7}, path)
    assert covered.matrix_checked(path) == {"ADD_RM8_R8": 7, "NOPD": 3}
    assert path.read_text().index("ADD") < path.read_text().index("NOPD")
