"""Every current opcode as text and back: iced's tables and formatters are the oracle."""

import pytest

from tests.assembler_corpus import cases, code_names, is_current, verdict

CODES = code_names()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_the_text_of_every_current_opcode_comes_back_as_the_same_instruction(bits: int) -> None:
    failures = []
    back = set()
    for case in cases(seed=20, per_code=1, modes=(bits,)):
        if not is_current(case.code_name, CODES[case.code_name]):
            continue
        outcome = verdict(case)
        if outcome.reason:
            failures.append(f"{case.code_name} {case.syntax}: {case.text}: {outcome.reason}")
        elif outcome.same:
            back.add(case.code_name)
    assert failures == []
    assert len(back) == {16: 2217, 32: 2217, 64: 2452}[bits]
