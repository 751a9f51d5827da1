"""x87 arithmetic and comparison: forms, stack faults, unmasked responses. Numbers are in test_extended."""

from __future__ import annotations

import pytest

from isa.extended import C0, C1, C2, C3, DE, IE, INDEFINITE, INFINITY, OE, ONE, PE, SF, SIGN, ZE, from_integer
from tests.isa.machine import flags_of, run_one
from tests.isa.semantics.test_x87_move import DATA, ERROR, HALF, TWO, machine, stack, values

THREE = 0x4000C000000000000000
FOUR = 0x40018000000000000000
FIVE = 0x4001A000000000000000
SIX = 0x4001C000000000000000
QUIET = INFINITY | 1 << 62
DENORMAL = 1


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("fadd st1", "d8c1", (FIVE, TWO)), ("fadd to st1", "dcc1", (THREE, FIVE)),
        ("faddp", "dec1", (FIVE,)), ("fmul st1", "d8c9", (SIX, TWO)),
        ("fmulp", "dec9", (SIX,)), ("fsub st1", "d8e1", (ONE, TWO)),
        ("fsubr st1", "d8e9", (SIGN | ONE, TWO)), ("fsub to st1", "dce9", (THREE, SIGN | ONE)),
        ("fsubr to st1", "dce1", (THREE, ONE)), ("fsubp", "dee9", (SIGN | ONE,)),
        ("fsubrp", "dee1", (ONE,)), ("fdiv st1", "d8f1", (0x3FFFC000000000000000, TWO)),
        ("fdivrp", "def1", (0x3FFFC000000000000000,)),
        ("fdivp", "def9", (0x3FFEAAAAAAAAAAAAAAAB,)),
        ("fdivr st1", "d8f9", (0x3FFEAAAAAAAAAAAAAAAB, TWO)),
    ],
)  # fmt: skip
def test_register_forms_put_the_result_where_the_manual_says(
    text: str, code: str, expected: tuple[int]
) -> None:
    cpu = machine(THREE, TWO)
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == values(*expected)


@pytest.mark.parametrize(
    ("text", "code", "raw", "expected"),
    [
        ("fadd dword [rdi]", "d807", "00000040", FIVE), ("fmul qword [rdi]", "dc0f", "0000000000000040", SIX),
        ("fsub dword [rdi]", "d827", "00000040", ONE), ("fsubr dword [rdi]", "d82f", "00000040", SIGN | ONE),
        ("fdiv dword [rdi]", "d837", "00000040", 0x3FFFC000000000000000),
        ("fdivr qword [rdi]", "dc3f", "0000000000000840", ONE), ("fiadd word [rdi]", "de07", "0200", FIVE),
        ("fimul dword [rdi]", "da0f", "feffffff", SIGN | SIX), ("fisub word [rdi]", "de27", "0200", ONE),
        ("fisubr word [rdi]", "de2f", "0200", SIGN | ONE), ("fidiv dword [rdi]", "da37", "03000000", ONE),
        ("fidivr word [rdi]", "de3f", "0600", TWO),
    ],
)  # fmt: skip
def test_memory_forms_compute_with_the_converted_operand(
    text: str, code: str, raw: str, expected: int
) -> None:
    cpu = machine(THREE)
    cpu.memory.write(DATA, bytes.fromhex(raw))
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == values(expected)


def test_a_denormal_float_in_memory_is_reported_though_the_register_could_hold_it_normalized() -> None:
    cpu = machine(ONE)
    cpu.memory.write(DATA, b"\x01\0\0\0")
    run_one(cpu, "fadd dword [rdi]", b"\xd8\x07")
    assert cpu.fpu.status == DE | PE


def test_a_denormal_float_in_memory_is_not_reported_beside_a_nan_or_a_division_by_zero() -> None:
    cpu = machine(QUIET)
    cpu.memory.write(DATA, b"\x01\0\0\0")
    run_one(cpu, "fadd dword [rdi]", b"\xd8\x07")
    assert (stack(cpu), cpu.fpu.status) == (values(QUIET), 0)
    cpu = machine(0)
    cpu.memory.write(DATA, b"\x01\0\0\0")
    run_one(cpu, "fdivr dword [rdi]", b"\xd8\x3f")
    assert (stack(cpu), cpu.fpu.status) == (values(INFINITY), ZE)


def test_an_empty_operand_gives_the_default_nan_and_the_pop_still_happens() -> None:
    cpu = machine(ONE)
    run_one(cpu, "faddp", b"\xde\xc1")
    assert (stack(cpu), cpu.fpu.status) == (values(INDEFINITE), IE | SF)


@pytest.mark.parametrize(("divisor", "control", "flag"), [(0, 0x37B, ZE), (DENORMAL, 0x37D, DE)])
def test_an_unmasked_exception_before_the_result_keeps_operands_and_stack(
    divisor: int, control: int, flag: int
) -> None:
    cpu = machine(divisor, THREE, control=control)
    run_one(cpu, "fdivp", b"\xde\xf9")
    assert (stack(cpu), cpu.fpu.status) == (values(divisor, THREE), ERROR | flag)


def test_unmasked_overflow_stores_the_wrapped_result_and_pops() -> None:
    large = 0x7FFE << 64 | 1 << 63
    cpu = machine(large, large, control=0x377)
    run_one(cpu, "fmulp", b"\xde\xc9")
    assert stack(cpu) == values((0x7FFE + 0x7FFE - 16383 - 24576) << 64 | 1 << 63)
    assert cpu.fpu.status == ERROR | OE


def test_c1_tells_that_the_last_result_was_rounded_up_and_goes_away_with_the_next() -> None:
    cpu = machine(THREE, TWO)
    run_one(cpu, "fdivr st1", b"\xd8\xf9")
    assert cpu.fpu.status == PE | C1
    run_one(cpu, "fadd st1", b"\xd8\xc1")
    cpu.fpu.status &= ~PE
    run_one(cpu, "fchs", b"\xd9\xe0")
    assert cpu.fpu.status == 0


def test_sign_changes_touch_nothing_but_the_sign_even_of_a_signalling_nan() -> None:
    signalling = SIGN | INFINITY | 1
    cpu = machine(signalling)
    run_one(cpu, "fabs", b"\xd9\xe1")
    assert (stack(cpu), cpu.fpu.status) == (values(signalling ^ SIGN), 0)
    run_one(cpu, "fchs", b"\xd9\xe0")
    assert stack(cpu) == values(signalling)


def test_fsqrt_frndint_and_fscale_replace_the_top() -> None:
    cpu = machine(FOUR)
    run_one(cpu, "fsqrt", b"\xd9\xfa")
    assert stack(cpu) == values(TWO)
    cpu = machine(0x4000A000000000000000, control=0xB7F)  # 2.5, round up
    run_one(cpu, "frndint", b"\xd9\xfc")
    assert (stack(cpu), cpu.fpu.status) == (values(THREE), PE | C1)
    cpu = machine(THREE, SIGN | ONE)
    run_one(cpu, "fscale", b"\xd9\xfd")
    assert stack(cpu) == values(0x3FFFC000000000000000, SIGN | ONE)


def test_fxtract_leaves_the_significand_above_the_exponent() -> None:
    cpu = machine(SIGN | SIX)
    run_one(cpu, "fxtract", b"\xd9\xf4")
    assert stack(cpu) == values(SIGN | 0x3FFFC000000000000000, TWO)


def test_fxtract_with_a_full_stack_overflows() -> None:
    cpu = machine(*[SIX] * 8)
    run_one(cpu, "fxtract", b"\xd9\xf4")
    assert stack(cpu) == [INDEFINITE, INDEFINITE, *[SIX] * 6]
    assert cpu.fpu.status == IE | SF | C1


@pytest.mark.parametrize(
    ("text", "code", "dividend", "rest", "codes"),
    [
        ("fprem", "d9f8", 23, 3, C0),                     # 23 = 4 * 5 + 3: quotient bits 100
        ("fprem1", "d9f5", 23, -2, C0 | C1),              # 23 = 5 * 5 - 2: quotient bits 101
        ("fprem", "d9f8", -17, -2, C3 | C1),              # -17 = -3 * 5 - 2: 011
        ("fprem1", "d9f5", 4, -1, C1),
    ],
)  # fmt: skip
def test_partial_remainders_report_three_quotient_bits(
    text: str, code: str, dividend: int, rest: int, codes: int
) -> None:
    cpu = machine(from_integer(dividend), FIVE)
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == values(from_integer(rest), FIVE)
    assert cpu.fpu.status == codes


def test_a_remainder_of_distant_exponents_sets_c2_until_it_is_complete() -> None:
    large, power = 0x4100C000000000000000, 0x4100 - 16383 - 1  # 3 * 2**power
    cpu = machine(large, FIVE)
    run_one(cpu, "fprem", b"\xd9\xf8")
    assert cpu.fpu.status & C2
    steps = 1
    while cpu.fpu.status & C2:
        run_one(cpu, "fprem", b"\xd9\xf8")
        steps += 1
    assert steps == 4  # each takes 32 to 63 bits off the distance of the exponents
    assert stack(cpu) == values(from_integer(3 * pow(2, power, 5) % 5), FIVE)


@pytest.mark.parametrize(
    ("first", "second", "codes", "flags"),
    [
        (THREE, TWO, 0, ""),
        (TWO, THREE, C0, "CF"),
        (TWO, TWO, C3, "ZF"),
        (QUIET, TWO, C3 | C2 | C0, "CF PF ZF"),
    ],
)
def test_comparisons_set_codes_or_flags(first: int, second: int, codes: int, flags: str) -> None:
    for text, code, pops in (
        ("fcom", "d8d1", 0), ("fcomp", "d8d9", 1), ("fcompp", "ded9", 2),
        ("fucom", "dde1", 0), ("fucomp", "dde9", 1), ("fucompp", "dae9", 2),
    ):  # fmt: skip
        cpu = machine(first, second)
        run_one(cpu, text, bytes.fromhex(code))
        assert cpu.fpu.status & (C3 | C2 | C0) == codes
        assert stack(cpu) == values(*(first, second)[pops:])
    for text, code, pops in (
        ("fcomi st1", "dbf1", 0), ("fcomip st1", "dff1", 1),
        ("fucomi st1", "dbe9", 0), ("fucomip st1", "dfe9", 1),
    ):  # fmt: skip
        cpu = machine(first, second)
        cpu.of = cpu.sf = cpu.af = 1
        run_one(cpu, text, bytes.fromhex(code))
        assert flags_of(cpu) == flags
        assert stack(cpu) == values(*(first, second)[pops:])


def test_only_the_unordered_comparisons_accept_a_quiet_nan() -> None:
    for text, code, flags in (("fcomi st1", "dbf1", IE), ("fucomi st1", "dbe9", 0)):
        cpu = machine(QUIET, ONE)
        run_one(cpu, text, bytes.fromhex(code))
        assert cpu.fpu.status == flags


def test_an_unmasked_invalid_comparison_does_not_pop() -> None:
    cpu = machine(QUIET, ONE, control=0x37E)
    run_one(cpu, "fcomip st1", b"\xdf\xf1")
    assert stack(cpu) == values(QUIET, ONE)
    assert cpu.fpu.status == ERROR | IE


@pytest.mark.parametrize(
    ("text", "code", "raw", "codes"),
    [
        ("fcom dword [rdi]", "d817", "00004040", C3), ("fcomp qword [rdi]", "dc1f", "0000000000001040", C0),
        ("ficom word [rdi]", "de17", "0200", 0), ("ficomp dword [rdi]", "da1f", "04000000", C0),
        ("fcom dword [rdi]", "d817", "0000c07f", C3 | C2 | C0),
    ],
)  # fmt: skip
def test_comparisons_with_memory(text: str, code: str, raw: str, codes: int) -> None:
    cpu = machine(THREE)
    cpu.memory.write(DATA, bytes.fromhex(raw))
    run_one(cpu, text, bytes.fromhex(code))
    assert cpu.fpu.status & (C3 | C2 | C0) == codes
    assert stack(cpu) == values(*([] if "mp " in text else [THREE]))


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        (0x3FFF << 64, 0), (QUIET, C0), (HALF, C2), (INFINITY, C2 | C0), (0, C3), (DENORMAL, C3 | C2),
        (None, C3 | C0), (SIGN, C3 | C1), (SIGN | HALF, C2 | C1),
    ],
)  # fmt: skip
def test_fxam_names_the_class_and_the_sign(value: int | None, codes: int) -> None:
    cpu = machine(*(() if value is None else (value,)))
    run_one(cpu, "fxam", b"\xd9\xe5")
    assert cpu.fpu.status == codes


def test_ftst_compares_with_zero_of_either_sign() -> None:
    for value, codes in ((SIGN, C3), (ONE, 0), (SIGN | ONE, C0)):
        cpu = machine(value)
        run_one(cpu, "ftst", b"\xd9\xe4")
        assert cpu.fpu.status == codes
