"""IEEE arithmetic: against the host's floats, the two ways against each other, the rules by example."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.floats import (
    BINARY32,
    BINARY64,
    DAZ,
    DENORMAL,
    DOWN,
    EQUAL,
    FTZ,
    GREATER,
    INVALID,
    LESS,
    NEAREST,
    OVERFLOW,
    PRECISION,
    ROUND_SHIFT,
    TRUNCATE,
    UNDERFLOW,
    UNORDERED,
    UP,
    ZERO_DIVIDE,
    Binary,
)

MASKED = 0x1F80
QUICK = MASKED | PRECISION  # the state in which the quick way is allowed
DOUBLES = st.integers(0, (1 << 64) - 1)
SINGLES = st.integers(0, (1 << 32) - 1)
ONE, TWO, THREE = 0x3FF0 << 48, 0x4000 << 48, 0x4008 << 48
INFINITY, QUIET_NAN, SIGNALLING_NAN = 0x7FF0 << 48, 0x7FF8 << 48, 0x7FF0 << 48 | 5
INDEFINITE = 0xFFF8 << 48
LEAST_NORMAL, LEAST_DENORMAL, LARGEST = 1 << 52, 1, (0x7FF0 << 48) - 1
MINUS = 1 << 63


def bits(number: float) -> int:
    """A Python float as a bit pattern."""
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def number(pattern: int) -> float:
    """A bit pattern as a Python float."""
    return float(struct.unpack("<d", struct.pack("<Q", pattern))[0])


def rc(mode: int) -> int:
    """MXCSR with everything masked and a rounding mode."""
    return MASKED | mode << ROUND_SHIFT


# ---- to nearest: the host's doubles are the oracle -----------------------------------------------------


@pytest.mark.parametrize("control", [MASKED, QUICK])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@settings(deadline=None)
@given(a=DOUBLES, b=DOUBLES)
def test_doubles_round_to_nearest_as_the_host_does(name: str, control: int, a: int, b: int) -> None:
    expected = getattr(operator, name)(number(a), number(b))
    result, _ = getattr(BINARY64, name)(a, b, control)
    assert result == bits(expected) or (math.isnan(expected) and BINARY64.is_nan(result))


@pytest.mark.parametrize("control", [MASKED, QUICK])
@settings(deadline=None)
@given(a=DOUBLES, b=DOUBLES)
def test_quotients_round_to_nearest_as_the_host_does(control: int, a: int, b: int) -> None:
    if number(b) != 0:
        expected = number(a) / number(b)
        result, _ = BINARY64.div(a, b, control)
        assert result == bits(expected) or (math.isnan(expected) and BINARY64.is_nan(result))


@pytest.mark.parametrize("form", [BINARY32, BINARY64])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "min", "max"])
@settings(deadline=None)
@given(data=st.data())
def test_the_quick_way_agrees_with_the_exact_one(form: Binary, name: str, data: st.DataObject) -> None:
    patterns = st.integers(0, (1 << form.bits) - 1)
    a, b = data.draw(patterns), data.draw(patterns)
    operation = getattr(form, name)
    result, flags = operation(a, b, QUICK)
    exact, exact_flags = operation(a, b, MASKED)
    assert result == exact
    assert (flags | PRECISION) == (exact_flags | PRECISION)


@pytest.mark.parametrize("form", [BINARY32, BINARY64])
@settings(deadline=None)
@given(data=st.data())
def test_quick_square_roots_agree_with_exact_ones(form: Binary, data: st.DataObject) -> None:
    a = data.draw(st.integers(0, (1 << form.bits) - 1))
    assert form.sqrt(a, QUICK)[0] == form.sqrt(a, MASKED)[0]


@pytest.mark.parametrize("form", [BINARY32, BINARY64])
@pytest.mark.parametrize("quick", [operator.add, operator.sub, operator.mul, operator.truediv])
@settings(deadline=None)
@given(data=st.data())
def test_quick_lanes_agree_with_exact_ones(
    form: Binary, quick: Callable[[float, float], float], data: st.DataObject
) -> None:
    exact = {"add": form.add, "sub": form.sub, "mul": form.mul, "truediv": form.div}[quick.__name__]
    near_one = st.integers(form.exponent // 4, form.exponent // 4 * 3)
    patterns = st.one_of(near_one, near_one, near_one, st.integers(0, (1 << form.bits) - 1))
    lanes = [(data.draw(patterns), data.draw(patterns)) for _ in range(128 // form.bits)]
    a = sum(x << n * form.bits for n, (x, _) in enumerate(lanes))
    b = sum(y << n * form.bits for n, (_, y) in enumerate(lanes))
    result = form.quick_lanes(quick, a, b, QUICK)
    if result is not None:
        assert result == sum(exact(x, y, MASKED)[0] << n * form.bits for n, (x, y) in enumerate(lanes))
        assert not any(exact(x, y, MASKED)[1] & ~PRECISION for x, y in lanes)


def test_quick_lanes_serve_ordinary_numbers() -> None:
    ones = ONE << 64 | ONE
    assert BINARY64.quick_lanes(operator.add, ones, ones, QUICK) == TWO << 64 | TWO


@pytest.mark.parametrize(
    "control", [MASKED, QUICK | DAZ, QUICK | FTZ, QUICK ^ 1 << 12, QUICK | UP << ROUND_SHIFT]
)
def test_quick_lanes_refuse_a_control_word_that_makes_a_difference(control: int) -> None:
    ones = ONE << 64 | ONE
    assert BINARY64.quick_lanes(operator.add, ones, ones, control) is None


# ---- rounding modes ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(a=DOUBLES, b=DOUBLES)
def test_directed_rounding_encloses_the_exact_sum(a: int, b: int) -> None:
    if not (math.isfinite(number(a)) and math.isfinite(number(b))):
        return
    exact = Fraction(number(a)) + Fraction(number(b))
    down, flags = BINARY64.add(a, b, rc(DOWN))
    up, _ = BINARY64.add(a, b, rc(UP))
    if math.isfinite(number(down)):
        assert Fraction(number(down)) <= exact
        assert flags & PRECISION == (PRECISION if Fraction(number(down)) != exact else 0)
    if math.isfinite(number(up)):
        assert Fraction(number(up)) >= exact
    toward_zero, _ = BINARY64.add(a, b, rc(TRUNCATE))
    assert toward_zero == (up if exact < 0 else down) or exact == 0


@pytest.mark.parametrize(
    ("mode", "third"),
    [(NEAREST, 0x3FD5_5555_5555_5555), (DOWN, 0x3FD5_5555_5555_5555), (UP, 0x3FD5_5555_5555_5556),
     (TRUNCATE, 0x3FD5_5555_5555_5555)],
)  # fmt: skip
def test_one_third_in_every_rounding_mode(mode: int, third: int) -> None:
    assert BINARY64.div(ONE, THREE, rc(mode)) == (third, PRECISION)


@pytest.mark.parametrize(("mode", "zero"), [(NEAREST, 0), (DOWN, MINUS), (UP, 0), (TRUNCATE, 0)])
def test_a_difference_of_equals_is_minus_zero_only_when_rounding_down(mode: int, zero: int) -> None:
    assert BINARY64.sub(ONE, ONE, rc(mode)) == (zero, 0)


@pytest.mark.parametrize(
    ("mode", "result"), [(NEAREST, INFINITY), (UP, INFINITY), (DOWN, LARGEST), (TRUNCATE, LARGEST)]
)
def test_overflow_rounds_to_infinity_or_the_largest_number(mode: int, result: int) -> None:
    assert BINARY64.mul(LARGEST, TWO, rc(mode)) == (result, OVERFLOW | PRECISION)


def test_unmasked_overflow_of_an_exact_product_is_not_inexact() -> None:
    unmasked = MASKED ^ OVERFLOW << 7
    assert BINARY64.mul(0x7FE0 << 48, TWO, unmasked)[1] == OVERFLOW


# ---- tiny results --------------------------------------------------------------------------------------


def test_an_exact_denormal_result_raises_no_underflow() -> None:
    half = 0x3FE0 << 48
    assert BINARY64.mul(LEAST_NORMAL, half, MASKED) == (LEAST_NORMAL >> 1, 0)


def test_an_exact_denormal_result_underflows_when_unmasked() -> None:
    half = 0x3FE0 << 48
    assert BINARY64.mul(LEAST_NORMAL, half, MASKED ^ UNDERFLOW << 7)[1] == UNDERFLOW


def test_an_inexact_denormal_result_underflows() -> None:
    third = 0x3FD5_5555_5555_5555
    assert BINARY64.mul(LEAST_NORMAL, third, MASKED)[1] == UNDERFLOW | PRECISION


def test_tininess_is_decided_after_rounding() -> None:
    # The product lies below the least normal number but rounds up to it at unbounded exponent
    almost_one = 0x3FEF_FFFF_FFFF_FFFF
    just_above = LEAST_NORMAL + 1
    result, flags = BINARY64.mul(just_above, almost_one, rc(UP))
    assert (result, flags) == (just_above, PRECISION)
    result, flags = BINARY64.mul(LEAST_NORMAL, almost_one, MASKED)
    assert (result, flags) == (LEAST_NORMAL, UNDERFLOW | PRECISION)


def test_ftz_turns_a_tiny_result_into_zero_of_its_sign() -> None:
    half = MINUS | 0x3FE0 << 48
    assert BINARY64.mul(LEAST_NORMAL, half, MASKED | FTZ) == (MINUS, UNDERFLOW | PRECISION)


# ---- denormal operands ---------------------------------------------------------------------------------


def test_a_denormal_operand_is_flagged() -> None:
    assert BINARY64.add(LEAST_DENORMAL, ONE, MASKED)[1] == DENORMAL | PRECISION


def test_daz_takes_a_denormal_operand_for_zero_without_a_flag() -> None:
    assert BINARY64.add(LEAST_DENORMAL, ONE, MASKED | DAZ) == (ONE, 0)


def test_daz_makes_division_by_a_denormal_a_division_by_zero() -> None:
    assert BINARY64.div(ONE, MINUS | LEAST_DENORMAL, MASKED | DAZ) == (MINUS | INFINITY, ZERO_DIVIDE)


# ---- NaNs and invalid operations -----------------------------------------------------------------------


def test_the_first_of_two_nans_wins_quieted() -> None:
    other = QUIET_NAN | 77
    assert BINARY64.add(SIGNALLING_NAN, other, MASKED) == (SIGNALLING_NAN | 1 << 51, INVALID)
    assert BINARY64.add(other, QUIET_NAN, MASKED) == (other, 0)
    assert BINARY64.mul(ONE, other, MASKED) == (other, 0)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [("sub", INFINITY, INFINITY), ("add", INFINITY, MINUS | INFINITY), ("mul", 0, INFINITY), ("div", 0, 0),
     ("div", INFINITY, INFINITY)],
)  # fmt: skip
def test_invalid_operations_answer_the_indefinite_nan(name: str, a: int, b: int) -> None:
    assert getattr(BINARY64, name)(a, b, MASKED) == (INDEFINITE, INVALID)


def test_square_root_of_a_negative_number_is_invalid_and_of_minus_zero_is_not() -> None:
    assert BINARY64.sqrt(MINUS | ONE, MASKED) == (INDEFINITE, INVALID)
    assert BINARY64.sqrt(MINUS, MASKED) == (MINUS, 0)


def test_division_by_zero_has_its_own_flag() -> None:
    assert BINARY64.div(MINUS | ONE, 0, MASKED) == (MINUS | INFINITY, ZERO_DIVIDE)


# ---- comparison ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(a=DOUBLES, b=DOUBLES)
def test_comparison_orders_like_numbers(a: int, b: int) -> None:
    x, y = number(a), number(b)
    expected = UNORDERED if math.isnan(x) or math.isnan(y) else LESS if x < y else GREATER if x > y else EQUAL
    assert BINARY64.compare(a, b, MASKED, True)[0] == expected


def test_both_zeros_are_equal() -> None:
    assert BINARY64.compare(0, MINUS, MASKED, False) == (EQUAL, 0)


def test_a_quiet_nan_is_invalid_only_for_the_signalling_comparison() -> None:
    assert BINARY64.compare(QUIET_NAN, ONE, MASKED, True) == (UNORDERED, 0)
    assert BINARY64.compare(QUIET_NAN, ONE, MASKED, False) == (UNORDERED, INVALID)
    assert BINARY64.compare(SIGNALLING_NAN, ONE, MASKED, True) == (UNORDERED, INVALID)


def test_minimum_and_maximum_answer_the_second_operand_for_nans_and_zeros() -> None:
    assert BINARY64.min(QUIET_NAN, ONE, MASKED) == (ONE, INVALID)
    assert BINARY64.max(ONE, SIGNALLING_NAN, MASKED) == (SIGNALLING_NAN, INVALID)
    assert BINARY64.min(0, MINUS, MASKED) == (MINUS, 0)
    assert BINARY64.max(MINUS, 0, MASKED) == (0, 0)


# ---- conversion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [MASKED, QUICK])
@settings(deadline=None)
@given(n=st.integers(-(1 << 63), (1 << 63) - 1))
def test_integers_become_the_nearest_double(control: int, n: int) -> None:
    result, flags = BINARY64.from_int(n, control)
    assert result == bits(float(n))
    assert flags == (PRECISION if int(float(n)) != n else 0)


@pytest.mark.parametrize("mode", [NEAREST, DOWN, UP, TRUNCATE])
@settings(deadline=None)
@given(x=st.floats(-3e9, 3e9))
def test_doubles_become_integers_by_the_rounding_mode(mode: int, x: float) -> None:
    functions: dict[int, Callable[[float], int]] = {
        NEAREST: round, DOWN: math.floor, UP: math.ceil, TRUNCATE: math.trunc
    }  # fmt: skip
    rounded = functions[mode](x)
    result, flags = BINARY64.to_int(bits(x), 32, rc(mode))
    if -(1 << 31) <= rounded < 1 << 31:
        assert result == rounded & 0xFFFF_FFFF
        assert flags == (PRECISION if rounded != x else 0)
    else:
        assert (result, flags) == (1 << 31, INVALID)


@pytest.mark.parametrize("a", [INFINITY, MINUS | INFINITY, QUIET_NAN, bits(2.0**63), bits(1e300)])
def test_what_does_not_fit_becomes_the_integer_indefinite(a: int) -> None:
    assert BINARY64.to_int(a, 64, MASKED) == (1 << 63, INVALID)


def test_the_least_integer_fits() -> None:
    assert BINARY64.to_int(bits(-(2.0**63)), 64, MASKED) == (1 << 63, 0)


@settings(deadline=None)
@given(a=SINGLES)
def test_singles_widen_exactly_and_come_back(a: int) -> None:
    wide, flags = BINARY64.from_format(BINARY32, a, MASKED)
    back, _ = BINARY32.from_format(BINARY64, wide, MASKED)
    assert back == (a | BINARY32.quiet if BINARY32.is_nan(a) else a)
    assert bool(flags & INVALID) == BINARY32.is_signalling(a)
    assert bool(flags & DENORMAL) == BINARY32.is_denormal(a)


@pytest.mark.parametrize("control", [MASKED, QUICK])
@settings(deadline=None)
@given(x=st.floats(-3e38, 3e38))
def test_doubles_narrow_to_the_nearest_single(control: int, x: float) -> None:
    result, _ = BINARY32.from_format(BINARY64, bits(x), control)
    assert result == struct.unpack("<I", struct.pack("<f", x))[0]


@settings(deadline=None)
@given(x=st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_to_an_integral_number_keeps_the_sign_of_zero(x: float) -> None:
    for mode, function in ((DOWN, math.floor), (UP, math.ceil), (TRUNCATE, math.trunc), (NEAREST, round)):
        result, flags = BINARY64.integral(bits(x), rc(mode))
        assert number(result) == function(x)
        assert result >> 63 == bits(x) >> 63
        assert flags == (PRECISION if function(x) != x else 0)
