"""Rewrites keep results: conditions against the flags they stand for, lines against their order."""

from __future__ import annotations

from itertools import product

import pytest

from isa.simplify import Difference, Formulas, Lines, fuse
from isa.specialise import Statement
from tests.isa.test_translate import block_of, lines_of

EDGES = (0, 1, 2, 0x7F, 0x80, 0x81, 0xFE, 0xFF)
CONDITIONS = [condition for condition, _ in Difference("a", "b", 8).conditions()]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("right", ("b", "constant"))
def test_a_comparison_says_what_its_condition_on_the_flags_says(condition: str, right: str) -> None:
    for a, b in product(range(256), EDGES):
        shown = "b" if right == "b" else f"{b:#x}"
        result = a - b & 0xFF
        flags = {
            "cf": a < b, "zf": not result, "sf": result >> 7, "of": ((a ^ b) & (a ^ result)) >> 7,
            "bool": bool,
        }  # fmt: skip
        comparison = dict(Difference("a", shown, 8).conditions())[condition]
        assert eval(comparison, {"a": a, "b": b}) == eval(condition, flags), (a, b)


def plain(text: str, uses: str = "", flag: str = "") -> Statement:
    """An assignment."""
    target = frozenset((text.partition(" = ")[0],))
    return Statement(text, target, frozenset(uses.split()), False, target, flag)


def subtraction(wrong: str = "") -> list[Statement]:
    """What CMP becomes; `wrong` replaces the formula of OF."""
    return [
        plain("r = a - b & 255", "a b"),
        plain("cf = a < b", "a b", "cf"),
        plain("of = " + (wrong or "((a ^ b) & (a ^ r)) >> 7"), "a b r", "of"),
        plain("af = (a ^ b ^ r) & 16", "a b r", "af"),
        plain("sf = r >> 7", "r", "sf"),
        plain("zf = not r", "r", "zf"),
        plain("pf = PARITY[r & 255]", "r", "pf"),
    ]


def test_a_branch_on_a_comparison_reads_the_operands_and_no_flag() -> None:
    jump = Statement("if not zf: rip = 7", frozenset(), frozenset(("zf",)), False, jump=("not zf", "7"))
    steps = [subtraction(), [jump]]
    fuse(steps)
    assert steps[1][0].jump == ("(a != b)", "7")
    assert steps[1][0].uses == {"a", "b"}


def test_flags_that_only_look_like_a_subtraction_are_left_alone() -> None:
    jump = Statement("if not zf: rip = 7", frozenset(), frozenset(("zf",)), False, jump=("not zf", "7"))
    steps = [subtraction(wrong="0"), [jump]]
    fuse(steps)
    assert steps[1][0] is jump


def test_a_carry_that_another_instruction_kept_is_not_taken_from_the_operands() -> None:
    steps = [subtraction(), [plain("zf = not x", "x", "zf")], [plain("y = cf", "cf")]]
    fuse(steps)
    assert steps[2][0].text == "y = cf"


def test_the_flag_itself_can_still_be_read() -> None:
    _, block = block_of("cmp rax, rbx; setl cl; cmp rdx, rsi; adc rdi, 0")
    lines = lines_of(block)
    assert any("0x8000000000000000 <" in line for line in lines)
    assert not any(line.startswith(("sf =", "of =", "cf =")) for line in lines)


def test_a_formula_is_computed_from_what_has_to_be_kept() -> None:
    known = Formulas()
    known.learn([plain("t_1 = a_1 + b_1", "a_1 b_1"), plain("r_1 = t_1 & 255", "t_1")])
    assert known.kept(["r_1", "t_1"]) == ["a_1", "b_1"]
    assert known.lines(["r_1", "t_1"]) == ["t_1 = a_1 + b_1", "r_1 = t_1 & 255"]


def test_a_formula_of_a_register_is_none() -> None:
    known = Formulas()
    known.learn([plain("a_1 = rax", "rax")])
    assert known.kept(["a_1"]) == ["a_1"]


def rewritten(text: str, others: str = "") -> list[str]:
    """The lines after both passes."""
    lines = text.split("\n")
    body = Lines(lines, set(range(len(lines))), [others])
    body.drop_dead()
    body.forward()
    return body.kept({})[0]


def test_what_nothing_reads_is_dropped_with_what_only_it_reads() -> None:
    assert rewritten("  a_1 = rax\n  b_1 = a_1 + 1\n  rbx = 0") == ["  rbx = 0"]


def test_what_is_read_elsewhere_stays() -> None:
    assert rewritten("  a_1 = rax\n  rbx = 0", "recipe(a_1)") == ["  a_1 = rax", "  rbx = 0"]


def test_what_is_read_once_moves_to_its_reader() -> None:
    assert rewritten("  a_1 = rax\n  r_1 = a_1 << 2\n  rbx = r_1") == ["  rbx = (rax << 2)"]


@pytest.mark.parametrize("between", ("rax = 1", "x = (rax := 5)"))
def test_a_value_does_not_move_over_a_change_of_what_it_reads(between: str) -> None:
    text = f"  a_1 = rax\n  {between}\n  rbx = a_1"
    assert rewritten(text) == text.split("\n")


def test_a_load_does_not_move() -> None:
    text = "  a_1 = mb[rax + tr[rax >> 12]]\n  rcx = 1\n  rbx = a_1"
    assert rewritten(text) == text.split("\n")
