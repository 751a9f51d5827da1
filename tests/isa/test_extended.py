"""`isa.extended` against exact fractions: what IEEE 754 says, computed another way."""

from __future__ import annotations

from fractions import Fraction
from math import floor, isqrt

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isa import extended as x
from isa.extended import C1, DE, IE, INDEFINITE, INFINITY, OE, ONE, PE, SIGN, UE, ZE

MASKED = 0x37F  # FNINIT: everything masked, 64 bits, to nearest
TWO = 0x4000 << 64 | 1 << 63
SIGNALLING = 0x7FFF << 64 | 0xA000_0000_0000_0000
QUIET = 0x7FFF << 64 | 0xC000_0000_0000_1234
UNNORMAL = 0x3FFF << 64 | 0x4000_0000_0000_0000
DENORMAL = 1
LARGEST = 0x7FFE << 64 | (1 << 64) - 1


def pattern(sign: int, exponent: int, significand: int) -> int:
    return sign << 79 | exponent << 64 | significand


significands = st.integers(0, (1 << 63) - 1) | st.sampled_from((0, 1, (1 << 63) - 1, (1 << 63) - (1 << 40)))
normals = st.builds(
    lambda sign, exponent, low: pattern(sign, exponent, 1 << 63 | low),
    st.integers(0, 1), st.integers(16383 - 80, 16383 + 80), significands,
)  # fmt: skip
denormals = st.builds(
    lambda sign, low: pattern(sign, 0, low), st.integers(0, 1), st.integers(1, (1 << 64) - 1)
)
extremes = st.builds(
    lambda sign, exponent, low: pattern(sign, exponent, 1 << 63 | low),
    st.integers(0, 1), st.sampled_from((1, 2, 3, 66, 0x1FFF, 0x2000, 0x5FFF, 0x6000, 0x7FFD, 0x7FFE)),
    significands,
)  # fmt: skip
numbers = normals | denormals | extremes
controls = st.builds(
    lambda precision, rounding: 0x7F | precision << 8 | rounding << 10,
    st.sampled_from((0, 2, 3)), st.integers(0, 3),
)  # fmt: skip


def exact(a: int) -> Fraction:
    """The value of a finite pattern."""
    sign, exponent, significand = a >> 79, a >> 64 & 0x7FFF, a & (1 << 64) - 1
    return Fraction(-significand if sign else significand) * Fraction(2) ** (max(exponent, 1) - 16383 - 63)


def expected(value: Fraction, control: int) -> int:
    """The masked result for an exact value other than zero, found by comparing with its two neighbours."""
    precision = {0: 24, 2: 53, 3: 64}[control >> 8 & 3]
    mode = control >> 10 & 3
    size = abs(value)
    binade = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** binade > size:
        binade -= 1
    unit = Fraction(2) ** (max(binade, -16382) - precision + 1)
    low = floor(size / unit)
    rest = size / unit - low
    if mode == 0:
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
    else:
        up = rest > 0 and ((mode == 1 and value < 0) or (mode == 2 and value > 0))
    size = (low + up) * unit
    sign = int(value < 0)
    if size >= Fraction(2) ** 16384:
        if mode == 0 or (mode == 1 and sign) or (mode == 2 and not sign):
            return sign << 79 | INFINITY
        return pattern(sign, 0x7FFE, (1 << 64) - (1 << 64 - precision))
    if size < Fraction(2) ** -16382:
        return sign << 79 | int(size / Fraction(2) ** -16445)
    binade = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** binade > size:
        binade -= 1
    return pattern(sign, binade + 16383, int(size * Fraction(2) ** (63 - binade)))


@given(numbers, numbers, controls)
def test_sum_difference_product_and_quotient_are_the_exact_ones_rounded_once(
    a: int, b: int, control: int
) -> None:
    left, right = exact(a), exact(b)
    for operation, value in (
        (x.add, left + right), (x.sub, left - right), (x.reversed_sub, right - left), (x.mul, left * right),
        (x.div, left / right), (x.reversed_div, right / left),
    ):  # fmt: skip
        result, flags = operation(a, b, control)
        if value:
            assert result == expected(value, control), operation.__name__
            assert bool(flags & PE) == (x.is_infinite(result) or exact(result) != value)
            assert bool(flags & C1) == (x.is_infinite(result) or abs(exact(result)) > abs(value))
        else:
            assert result & ~SIGN == 0
        assert bool(flags & DE) == (x.is_denormal(a) or x.is_denormal(b))


@given(numbers, controls)
def test_square_root_is_the_exact_one_rounded_once(a: int, control: int) -> None:
    a &= ~SIGN
    value = exact(a)
    result, flags = x.sqrt(a, control)
    scaled = value * 4**16700  # an integer whose root has bits to spare
    root = isqrt(scaled.numerator)
    inexact = root * root != scaled
    # halfway cases do not exist: half a bit more tells the side of every inexact root
    assert result == expected(Fraction(2 * root + inexact, 2 * 2**16700), control)
    assert bool(flags & PE) == (exact(result) ** 2 != value)


@given(numbers, numbers)
def test_compare_orders_as_the_values_do(a: int, b: int) -> None:
    left, right = exact(a), exact(b)
    code = x.GREATER if left > right else x.LESS if left < right else x.EQUAL
    assert x.compare(a, b)[0] == code


def test_zeros_of_both_signs_are_equal() -> None:
    assert x.compare(0, SIGN) == (x.EQUAL, 0)


@pytest.mark.parametrize(
    ("operand", "quiet", "flags"),
    [(QUIET, False, IE), (QUIET, True, 0), (SIGNALLING, True, IE), (UNNORMAL, True, IE)],
)
def test_compare_with_a_nan_is_unordered_and_invalid_unless_quiet(
    operand: int, quiet: bool, flags: int
) -> None:
    assert x.compare(ONE, operand, quiet=quiet) == (x.UNORDERED, flags)


def test_the_difference_of_equal_numbers_is_plus_zero_except_when_rounding_down() -> None:
    assert x.sub(ONE, ONE, MASKED) == (0, 0)
    assert x.sub(ONE, ONE, MASKED | x.DOWN << x.RC_SHIFT) == (SIGN, 0)
    assert x.add(SIGN, SIGN, MASKED) == (SIGN, 0)


@pytest.mark.parametrize(
    ("operation", "a", "b"),
    [
        (x.add, INFINITY, SIGN | INFINITY), (x.sub, INFINITY, INFINITY), (x.mul, 0, INFINITY),
        (x.mul, SIGN | INFINITY, SIGN), (x.div, 0, 0), (x.div, INFINITY, INFINITY), (x.add, UNNORMAL, ONE),
        (x.mul, ONE, 0x7FFF << 64), (x.div, 0x7FFF << 64 | 1, QUIET),
    ],
)  # fmt: skip
def test_invalid_operands_give_the_default_nan(operation: x.Operation, a: int, b: int) -> None:
    assert operation(a, b, MASKED) == (INDEFINITE, IE)


def test_the_root_of_a_negative_number_is_invalid_but_that_of_minus_zero_is_itself() -> None:
    assert x.sqrt(SIGN | ONE, MASKED) == (INDEFINITE, IE)
    assert x.sqrt(SIGN, MASKED) == (SIGN, 0)


def test_of_two_nans_the_larger_significand_wins_and_a_quiet_one_before_a_signalling_one() -> None:
    larger = QUIET + 1
    assert x.add(QUIET, larger, MASKED) == (larger, 0)
    assert x.add(larger, QUIET, MASKED) == (larger, 0)
    assert x.mul(SIGNALLING, QUIET, MASKED) == (QUIET, IE)
    assert x.add(SIGNALLING, ONE, MASKED) == (SIGNALLING | x.QUIET_BIT, IE)
    assert x.add(SIGN | QUIET, QUIET, MASKED) == (QUIET, 0)


def test_subtraction_does_not_turn_the_sign_of_a_nan() -> None:
    assert x.sub(ONE, QUIET, MASKED) == (QUIET, 0)


def test_division_by_zero_gives_a_signed_infinity_and_hides_a_denormal_dividend() -> None:
    assert x.div(ONE, SIGN, MASKED) == (SIGN | INFINITY, ZE)
    assert x.div(DENORMAL, 0, MASKED) == (INFINITY, ZE)


def test_unmasked_overflow_wraps_the_exponent() -> None:
    result, flags = x.mul(LARGEST, TWO, MASKED & ~OE)
    assert (result, flags) == (LARGEST + (1 << 64) - (24576 << 64), OE)


def test_unmasked_underflow_wraps_the_exponent_even_of_an_exact_result() -> None:
    least = 1 << 64 | 1 << 63
    assert x.div(least, TWO, MASKED & ~UE) == (24576 << 64 | 1 << 63, UE)
    assert x.div(least, TWO, MASKED) == (1 << 62, 0)


def test_precision_control_narrows_the_significand_but_not_the_exponent_range() -> None:
    third, flags = x.div(ONE, 0x4000C000000000000000, 0x07F)
    assert (third, flags) == (0x3FFDAAAAAB0000000000, PE | C1)
    assert x.mul(0x7000 << 64 | 1 << 63, ONE, 0x07F) == (0x7000 << 64 | 1 << 63, 0)


@given(numbers | st.just(0), st.integers(0, 3), st.sampled_from((16, 32, 64)))
def test_integer_conversion_rounds_and_refuses_what_does_not_fit(a: int, mode: int, bits: int) -> None:
    value = exact(a)
    nearest = round(value)  # ties to even, as Fraction does it
    down = floor(value)
    whole = (nearest, down, -floor(-value), down if value >= 0 else -floor(-value))[mode]
    result, flags = x.to_integer(a, bits, MASKED & ~0xC00 | mode << 10)
    if -(1 << bits - 1) <= whole < 1 << bits - 1:
        assert result == whole & (1 << bits) - 1
        assert bool(flags & PE) == (whole != value)
        assert bool(flags & C1) == (abs(whole) > abs(value))
    else:
        assert (result, flags) == (1 << bits - 1, IE)


@given(normals | denormals, st.integers(0, 3))
def test_rounding_to_an_integer_keeps_the_sign_of_zero_and_reports_inexact(a: int, mode: int) -> None:
    value = exact(a)
    result, flags = x.round_to_integer(a, MASKED & ~0xC00 | mode << 10)
    down = floor(value)
    whole = (round(value), down, -floor(-value), down if value >= 0 else -floor(-value))[mode]
    assert exact(result) == whole
    assert result >> 79 == a >> 79
    assert bool(flags & PE) == (whole != value)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_every_64_bit_integer_survives_a_round_trip(value: int) -> None:
    a = x.from_integer(value)
    assert exact(a) == value
    assert x.to_integer(a, 64, MASKED) == (value & (1 << 64) - 1, 0)


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
def test_every_float_survives_a_round_trip_and_signalling_nans_are_quieted(single: int, double: int) -> None:
    for bits, value in ((32, single), (64, double)):
        a, flags = x.from_float(value, bits)
        back, _ = x.to_float(a, bits, MASKED)
        quieted = value | (1 << (22 if bits == 32 else 51)) if flags & IE else value
        assert back == quieted


@given(normals)
def test_storing_a_double_to_nearest_rounds_as_a_fraction_becomes_a_float(a: int) -> None:
    value = exact(a)
    result, flags = x.to_float(a, 64, MASKED)
    assert Fraction(float(value)) == exact(x.from_float(result, 64)[0])
    assert bool(flags & PE) == (float(value) != value)


def test_a_single_store_overflows_to_infinity_or_the_largest_by_rounding_mode() -> None:
    large = 0x7000 << 64 | 1 << 63
    assert x.to_float(large, 32, MASKED) == (0x7F80_0000, OE | PE | C1)
    assert x.to_float(large, 32, MASKED | x.CHOP << 10) == (0x7F7F_FFFF, OE | PE)
    assert x.to_float(SIGN | large, 32, MASKED | x.UP << 10) == (0xFF7F_FFFF, OE | PE)


def test_a_single_store_of_a_tiny_number_is_denormal_and_underflows_if_inexact() -> None:
    half_of_least = 16383 - 150 << 64 | 1 << 63
    assert x.to_float(half_of_least, 32, MASKED) == (0, UE | PE)
    assert x.to_float(half_of_least + 1, 32, MASKED) == (1, UE | PE | C1)
    assert x.to_float(16383 - 149 << 64 | 1 << 63, 32, MASKED) == (1, 0)
    assert x.to_float(16383 - 149 << 64 | 1 << 63, 32, MASKED & ~UE)[1] == UE


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_every_packed_decimal_survives_a_round_trip(value: int) -> None:
    packed, flags = x.to_bcd(x.from_integer(value), MASKED)
    assert (int(f"{packed & (1 << 72) - 1:x}"), packed >> 79, flags) == (abs(value), value < 0, 0)
    assert exact(x.from_bcd(packed)) == value


def test_a_packed_decimal_holds_eighteen_digits_and_no_more() -> None:
    assert x.to_bcd(x.from_integer(10**18), MASKED) == (x.BCD_INDEFINITE, IE)
    assert x.to_bcd(INFINITY, MASKED) == (x.BCD_INDEFINITE, IE)
    assert x.from_bcd(1 << 79) == SIGN


@given(normals | denormals, st.integers(-40000, 40000), controls)
def test_scaling_multiplies_by_a_power_of_two_and_ignores_precision_control(
    a: int, power: int, control: int
) -> None:
    assume(abs(power) < 32768)
    result, _ = x.scale(a, x.from_integer(power), control)
    assert result == expected(exact(a) * Fraction(2) ** power, control | 0x300)


def test_scaling_truncates_the_power_and_knows_the_infinities() -> None:
    minus_one_and_a_half = 0xBFFFC000000000000000
    assert x.scale(ONE, minus_one_and_a_half, MASKED) == (0x3FFE8000000000000000, 0)
    assert x.scale(0, INFINITY, MASKED) == (INDEFINITE, IE)
    assert x.scale(INFINITY, SIGN | INFINITY, MASKED) == (INDEFINITE, IE)
    assert x.scale(SIGN | ONE, INFINITY, MASKED) == (SIGN | INFINITY, 0)
    assert x.scale(ONE, 0x7FFE << 64 | 1 << 63, MASKED) == (INFINITY, OE | PE | C1)


@given(numbers)
def test_significand_and_exponent_multiply_to_the_number(a: int) -> None:
    significand, exponent, flags = x.extract(a)
    assert 1 <= abs(exact(significand)) < 2
    assert exact(significand) * Fraction(2) ** int(exact(exponent)) == exact(a)
    assert flags == (DE if x.is_denormal(a) else 0)


def test_the_exponent_of_zero_is_minus_infinity_and_a_division_by_zero() -> None:
    assert x.extract(SIGN) == (SIGN, SIGN | INFINITY, ZE)


@settings(max_examples=200)
@given(numbers, numbers, st.booleans())
def test_repeated_partial_remainders_end_at_the_exact_one(a: int, b: int, nearest: bool) -> None:
    start, divisor = exact(a), exact(b)
    quotient = -1
    steps = 0
    while quotient < 0:
        a, _, quotient = x.remainder(a, b, MASKED, nearest=nearest)
        steps += 1
        assert steps < 1100
    whole = start / divisor
    if nearest:
        count = round(whole)
    else:
        count = floor(abs(whole)) * (1 if whole >= 0 else -1)
    assert exact(a) == start - divisor * count
    assert quotient == abs(count) & 7


def test_a_remainder_by_zero_or_of_infinity_is_invalid_and_by_infinity_changes_nothing() -> None:
    assert x.remainder(ONE, 0, MASKED, nearest=False) == (INDEFINITE, IE, 0)
    assert x.remainder(INFINITY, ONE, MASKED, nearest=True) == (INDEFINITE, IE, 0)
    assert x.remainder(ONE, INFINITY, MASKED, nearest=False) == (ONE, 0, 0)


@given(st.integers(0, (1 << 80) - 1), st.integers(0, (1 << 80) - 1), st.integers(0, 0xFFFF))
def test_no_pattern_and_no_control_word_leaves_the_range_of_80_bits(a: int, b: int, control: int) -> None:
    for operation in (x.add, x.sub, x.mul, x.div, x.scale):
        assert 0 <= operation(a, b, control)[0] < 1 << 80
    for function in (x.sqrt, x.round_to_integer):
        assert 0 <= function(a, control)[0] < 1 << 80
    assert 0 <= x.remainder(a, b, control, nearest=True)[0] < 1 << 80
    for bits in (32, 64):
        assert 0 <= x.to_float(a, bits, control)[0] < 1 << bits
        assert 0 <= x.to_integer(a, bits, control)[0] < 1 << bits
    assert 0 <= x.to_bcd(a, control)[0] < 1 << 80
