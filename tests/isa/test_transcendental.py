"""`isa.transcendental` against series in `decimal`, which share nothing with it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa import transcendental as t
from isa.extended import C1, IE, INDEFINITE, INFINITY, ONE, PE, SIGN, UE, ZE
from isa.semantics import x87_move

MASKED = 0x37F
DIGITS = 90
DOWN, UP, CHOP = (MASKED | mode << 10 for mode in (1, 2, 3))
TWO_TO_63 = 0x403E8000000000000000
QUIET = 0x7FFF << 64 | 0xC000_0000_0000_1234

moderate = st.builds(
    lambda sign, exponent, low: sign << 79 | exponent << 64 | 1 << 63 | low,
    st.integers(0, 1), st.integers(16383 - 70, 16383 + 62), st.integers(0, (1 << 63) - 1),
)  # fmt: skip
fractions = st.builds(
    lambda sign, exponent, low: sign << 79 | exponent << 64 | 1 << 63 | low,
    st.integers(0, 1), st.integers(16383 - 70, 16383 - 1), st.integers(0, (1 << 63) - 1),
)  # fmt: skip


def exact(a: int) -> Fraction:
    """The value of a finite pattern."""
    sign, exponent, significand = a >> 79, a >> 64 & 0x7FFF, a & (1 << 64) - 1
    return Fraction(-significand if sign else significand) * Fraction(2) ** (max(exponent, 1) - 16383 - 63)


def decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def power_series(first: Decimal, ratio: Callable[[int], Decimal]) -> Decimal:
    """first + first * ratio(1) + first * ratio(1) * ratio(2) + ..."""
    total, term, n = first, first, 1
    while abs(term) > Decimal(10) ** -(DIGITS + 20) * abs(total):
        term *= ratio(n)
        total += term
        n += 1
    return total


def reference_sine(r: Decimal) -> Decimal:
    return power_series(r, lambda n: -r * r / (2 * n * (2 * n + 1)))


def reference_arc_tangent(value: Decimal) -> Decimal:
    """Halve the angle until the series is quick."""
    halvings = 0
    while value > Decimal("0.01"):
        value = value / (1 + (1 + value * value).sqrt())
        halvings += 1
    total, power, n = Decimal(0), value, 1
    while power > Decimal(10) ** -(DIGITS + 10) * value:
        total += power / n if n % 4 == 1 else -power / n
        power *= value * value
        n += 2
    return total * Decimal(2**halvings)


def reference_pi() -> Decimal:
    """Machin's formula."""
    return 16 * reference_arc_tangent(Decimal(1) / 5) - 4 * reference_arc_tangent(Decimal(1) / 239)


def assert_rounded(result: int, flags: int, value: Decimal) -> None:
    """`result` is `value` to nearest (to 2**-30 of a unit), inexact, with C1 telling the direction."""
    assert flags & PE
    unit = Fraction(2) ** (max(result >> 64 & 0x7FFF, 1) - 16383 - 63)
    error = Fraction(value) - exact(result)
    assert abs(error) <= unit * (Fraction(1, 2) + Fraction(1, 2**30))
    assert bool(flags & C1) == (abs(exact(result)) > abs(Fraction(value)))


@pytest.fixture(autouse=True)
def many_digits() -> object:
    with localcontext() as context:
        context.prec = DIGITS + 20
        yield


def test_the_constants_of_the_functions_and_of_the_loads_are_the_true_ones() -> None:
    with localcontext() as context:
        context.prec = 120
        pi, two, ten = reference_pi(), Decimal(2), Decimal(10)
        assert int(pi * 2**192) == t.PI
        assert int(two.ln() * 2**192) == t.LN_2
        assert (int(pi * 2**62) << 4) + (int(pi * 2**66) & 12) == t.REDUCTION
        for (exponent, significand), value in (
            (x87_move.PI, pi), (x87_move.LN_2, two.ln()), (x87_move.LOG2_E, 1 / two.ln()),
            (x87_move.LOG2_10, ten.ln() / two.ln()), (x87_move.LOG10_2, two.ln() / ten.ln()),
        ):  # fmt: skip
            assert int(value * Decimal(2) ** (16383 + 127 - exponent)) == significand


@settings(deadline=None)
@given(moderate)
def test_sine_cosine_and_tangent_are_those_of_the_argument_reduced_with_66_bits_of_pi(a: int) -> None:
    getcontext().prec = DIGITS + 20
    half_pi = Fraction(t.REDUCTION) * Fraction(2) ** -67
    value = abs(exact(a))
    quadrant = round(value / half_pi)
    rest = decimal(value - quadrant * half_pi)
    sine = reference_sine(rest)
    cosine = power_series(Decimal(1), lambda n: -rest * rest / ((2 * n - 1) * 2 * n))
    for _ in range(quadrant % 4):
        sine, cosine = cosine, -sine
    if a & SIGN:
        sine = -sine
    assert_rounded(*t.sine(a, MASKED), sine)
    assert_rounded(*t.cosine(a, MASKED), cosine)
    assert_rounded(*t.tangent(a, MASKED), sine / cosine)


@settings(deadline=None)
@given(moderate, moderate)
def test_arc_tangent_is_the_angle_of_the_point_in_its_quadrant(y: int, x: int) -> None:
    getcontext().prec = DIGITS + 20
    angle = reference_arc_tangent(decimal(abs(exact(y)) / abs(exact(x))))
    if x & SIGN:
        angle = reference_pi() - angle
    assert_rounded(*t.arc_tangent(y, x, MASKED), -angle if y & SIGN else angle)


@settings(deadline=None)
@given(fractions)
def test_power_minus_one_keeps_its_precision_near_zero(a: int) -> None:
    getcontext().prec = DIGITS + 20
    y = decimal(exact(a)) * Decimal(2).ln()
    assert_rounded(*t.power_minus_one(a, MASKED), power_series(y, lambda n: y / (n + 1)))


@settings(deadline=None)
@given(moderate, moderate)
def test_logarithm_times_y_is_right_on_both_sides_of_one(y: int, x: int) -> None:
    getcontext().prec = DIGITS + 20
    x &= ~SIGN
    if x & (1 << 63) - 1:
        assert_rounded(
            *t.times_log2(y, x, MASKED), decimal(exact(y)) * decimal(exact(x)).ln() / Decimal(2).ln()
        )


@settings(deadline=None)
@given(moderate, fractions)
def test_logarithm_of_one_plus_x_keeps_its_precision_near_zero(y: int, x: int) -> None:
    getcontext().prec = DIGITS + 40
    logarithm = decimal(1 + exact(x)).ln() / Decimal(2).ln()
    result, flags = t.times_log2_plus_one(y, x, MASKED)
    if exact(x).numerator.bit_length() > 1:
        assert_rounded(result, flags, decimal(exact(y)) * logarithm)


@pytest.mark.parametrize(("power", "expected"), [(0, 0), (1, 3), (-2, -6), (100, 300), (-16382, -49146)])
def test_the_logarithm_of_a_power_of_two_is_exact_in_every_rounding_mode(power: int, expected: int) -> None:
    three = 0x4000C000000000000000
    for control in (MASKED, DOWN, UP, CHOP):
        result, flags = t.times_log2(three, 16383 + power << 64 | 1 << 63, control)
        assert exact(result) == expected
        assert flags == (PE if power else 0)


def test_logarithms_of_zero_and_negative_numbers() -> None:
    assert t.times_log2(ONE, 0, MASKED) == (SIGN | INFINITY, ZE)
    assert t.times_log2(SIGN | ONE, SIGN, MASKED) == (INFINITY, ZE)
    assert t.times_log2(0, 0, MASKED) == (INDEFINITE, IE)
    assert t.times_log2(INFINITY, 0, MASKED) == (SIGN | INFINITY, 0)
    assert t.times_log2(ONE, SIGN | ONE, MASKED) == (INDEFINITE, IE)
    assert t.times_log2(INFINITY, ONE, MASKED) == (INDEFINITE, IE)
    assert t.times_log2_plus_one(INFINITY, 0, MASKED) == (INDEFINITE, IE)


def test_one_plus_x_that_is_a_power_of_two_has_an_exact_logarithm() -> None:
    three, minus_half = 0x4000C000000000000000, 0xBFFE8000000000000000
    for control in (MASKED, DOWN, UP, CHOP):
        assert t.times_log2_plus_one(ONE, three, control) == (0x40008000000000000000, PE)
        assert t.times_log2_plus_one(ONE, minus_half, control) == (SIGN | ONE, PE)


@pytest.mark.parametrize(
    ("y", "x", "eighths"),
    [(0, SIGN, 8), (SIGN, SIGN | ONE, -8), (ONE, 0, 4), (SIGN | ONE, SIGN, -4), (INFINITY, INFINITY, 2),
     (INFINITY, SIGN | INFINITY, 6), (SIGN | INFINITY, ONE, -4), (ONE, SIGN | INFINITY, 8)],
)  # fmt: skip
def test_arc_tangent_at_the_axes_and_at_infinity(y: int, x: int, eighths: int) -> None:
    assert_rounded(*t.arc_tangent(y, x, MASKED), reference_pi() * eighths / 8)


def test_arc_tangent_of_zero_to_the_right_keeps_the_sign_and_is_exact() -> None:
    assert t.arc_tangent(SIGN, ONE, MASKED) == (SIGN, 0)
    assert t.arc_tangent(0, 0, MASKED) == (0, 0)
    assert t.arc_tangent(SIGN | ONE, INFINITY, MASKED) == (SIGN, 0)


def test_a_tiny_angle_to_the_left_is_less_than_pi() -> None:
    below, _ = t.arc_tangent(1, SIGN | ONE, CHOP)
    assert below == 0x4000C90FDAA22168C234
    assert t.arc_tangent(ONE, 1, CHOP)[0] == 0x3FFFC90FDAA22168C234


@pytest.mark.parametrize("function", [t.sine, t.tangent, t.power_minus_one])
def test_the_least_denormal_stays_a_denormal_and_underflows(
    function: Callable[[int, int], tuple[int, int]],
) -> None:
    result, flags = function(1, MASKED)
    assert result == 1
    assert flags & (UE | PE) == UE | PE


def test_two_to_the_one_minus_one_is_exact() -> None:
    for control in (MASKED, DOWN, UP, CHOP):
        assert t.power_minus_one(ONE, control)[0] == ONE
        assert t.power_minus_one(SIGN | ONE, control)[0] == 0xBFFE8000000000000000
    assert t.power_minus_one(SIGN | INFINITY, MASKED) == (SIGN | ONE, 0)


def test_infinity_has_no_sine_and_a_nan_passes_through() -> None:
    for function in (t.sine, t.cosine, t.tangent):
        assert function(INFINITY, MASKED) == (INDEFINITE, IE)
        assert function(QUIET, MASKED) == (QUIET, 0)


def test_arguments_from_two_to_the_63_on_are_out_of_range_but_not_infinities_and_invalid_patterns() -> None:
    assert t.in_range(TWO_TO_63 - 1)
    assert not t.in_range(TWO_TO_63)
    assert not t.in_range(SIGN | TWO_TO_63)
    assert t.in_range(INFINITY)
    assert t.in_range(TWO_TO_63 ^ 1 << 63)


@given(st.integers(0, (1 << 80) - 1), st.integers(0, (1 << 80) - 1), st.integers(0, 0xFFFF))
def test_no_pattern_and_no_control_word_leaves_the_range_of_80_bits(a: int, b: int, control: int) -> None:
    for function in (t.sine, t.cosine, t.tangent):
        if t.in_range(a):
            assert 0 <= function(a, control)[0] < 1 << 80
    assert 0 <= t.power_minus_one(a, control)[0] < 1 << 80
    for operation in (t.arc_tangent, t.times_log2, t.times_log2_plus_one):
        assert 0 <= operation(a, b, control)[0] < 1 << 80
