"""x87 transcendental instructions: stack, range and exceptions. The numbers are in test_transcendental."""

from __future__ import annotations

import pytest

from isa.extended import C1, C2, DE, IE, INDEFINITE, INFINITY, ONE, PE, SF, SIGN, ZE
from tests.isa.machine import run_one
from tests.isa.semantics.test_x87_move import ERROR, HALF, TWO, machine, stack, values

PI = 0x4000C90FDAA22168C235
FOUR = 0x40018000000000000000
TOO_LARGE = 0x403E8000000000000000
ROUNDED = PE | C1  # either is of no interest where only the value is checked


@pytest.mark.parametrize(
    ("text", "code", "before", "after"),
    [
        ("fsin", "d9fe", (0,), (0,)), ("fcos", "d9ff", (SIGN,), (ONE,)), ("fsincos", "d9fb", (0,), (ONE, 0)),
        ("fptan", "d9f2", (SIGN,), (ONE, SIGN)), ("f2xm1", "d9f0", (ONE,), (ONE,)),
        ("fyl2x", "d9f1", (FOUR, TWO), (FOUR,)), ("fyl2xp1", "d9f9", (0, TWO), (0,)),
        ("fpatan", "d9f3", (SIGN | ONE, 0), (PI,)), ("fsin", "d9fe", (PI,), (0xBFBF8000000000000000,)),
    ],
)  # fmt: skip
def test_each_function_leaves_its_results_in_place(
    text: str, code: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    cpu = machine(*before)
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == values(*after)
    assert cpu.fpu.status & ~ROUNDED == 0


@pytest.mark.parametrize(
    ("text", "code"), [("fsin", "d9fe"), ("fcos", "d9ff"), ("fsincos", "d9fb"), ("fptan", "d9f2")]
)
def test_an_operand_of_two_to_the_63_sets_c2_and_stays(text: str, code: str) -> None:
    cpu = machine(TOO_LARGE)
    cpu.fpu.status = C1
    run_one(cpu, text, bytes.fromhex(code))
    assert (stack(cpu), cpu.fpu.status) == (values(TOO_LARGE), C2)
    cpu = machine(HALF)
    cpu.fpu.status = C2
    run_one(cpu, text, bytes.fromhex(code))
    assert not cpu.fpu.status & C2


@pytest.mark.parametrize(("text", "code"), [("fsincos", "d9fb"), ("fptan", "d9f2")])
def test_a_push_onto_a_full_stack_is_found_before_the_range(text: str, code: str) -> None:
    cpu = machine(*[TOO_LARGE] * 8)
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == [INDEFINITE, INDEFINITE, *[TOO_LARGE] * 6]
    assert cpu.fpu.status == IE | SF | C1


@pytest.mark.parametrize(
    ("text", "code", "control", "before", "flags"),
    [
        ("fsin", "d9fe", 0x37E, (INFINITY,), IE), ("fptan", "d9f2", 0x37E, (), IE | SF),
        ("fyl2x", "d9f1", 0x37B, (0, ONE), ZE), ("fpatan", "d9f3", 0x37D, (1, ONE), DE),
    ],
)  # fmt: skip
def test_an_unmasked_exception_leaves_the_stack_alone(
    text: str, code: str, control: int, before: tuple[int, ...], flags: int
) -> None:
    cpu = machine(*before, control=control)
    run_one(cpu, text, bytes.fromhex(code))
    assert (stack(cpu), cpu.fpu.status) == (values(*before), ERROR | flags)


def test_fptan_of_a_nan_pushes_the_nan_instead_of_one() -> None:
    quiet = INFINITY | 1 << 62 | 7
    cpu = machine(quiet)
    run_one(cpu, "fptan", b"\xd9\xf2")
    assert stack(cpu) == values(quiet, quiet)


def test_a_function_of_two_with_one_empty_register_pops_the_default_nan_into_place() -> None:
    cpu = machine(ONE)
    run_one(cpu, "fpatan", b"\xd9\xf3")
    assert (stack(cpu), cpu.fpu.status) == (values(INDEFINITE), IE | SF)
