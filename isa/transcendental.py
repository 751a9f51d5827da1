"""The transcendental functions of 80-bit numbers, in integers with guard bits. No registers, no stack.

A result is the true value with an error of about 2**-120 of it, rounded once: better than the one unit in the
last place that the manual promises. Every result but a trivial one is reported as inexact. Numbers, control
words, flags and results are those of `extended`; precision control has no effect here. Inside, a positive
real number is a pair (significand, exponent), or fixed-point with FRACTION bits. Sources: SDM Vol. 1,
"Transcendental Instructions", "Transcendental Instruction Accuracy" and "Approximation of Pi"; Vol. 2 for the
special operands of each.
"""

from __future__ import annotations

from math import isqrt

from isa.extended import (
    EXTENDED_PRECISION,
    IE,
    INDEFINITE,
    INFINITY,
    INTEGER_BIT,
    ONE,
    PE,
    SIGN,
    UE,
    ZE,
    Result,
    denormal_flag,
    finish,
    is_infinite,
    is_zero,
    nan_result,
    parts,
)

FRACTION = 192
UNIT = 1 << FRACTION
PI = 0x3_243F_6A88_85A3_08D3_1319_8A2E_0370_7344_A409_3822_299F_31D0  # pi * 2**192
LN_2 = 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF_40F3_4326_7298_B62D  # ln(2) * 2**192

# Argument reduction knows 66 bits of pi: pi/2 = REDUCTION * 2**-67 (SDM Vol. 1, "Approximation of Pi")
REDUCTION = 0xC90F_DAA2_2168_C234_C
REDUCTION_EXPONENT = -67
TOO_LARGE = 16383 + 63  # biased exponent from which on FSIN and its kin set C2: |x| >= 2**63

Pair = tuple[int, int]


def in_range(a: int) -> bool:
    """True unless `a` is finite and too large for FSIN, FCOS, FSINCOS and FPTAN."""
    return not (TOO_LARGE <= a >> 64 & 0x7FFF < 0x7FFF and a & INTEGER_BIT)


def rounded(sign: int, value: Pair, control: int, flags: int) -> Result:
    """A pair that lies below an irrational number, rounded to 64 bits."""
    significand, exponent = value
    return finish(sign, exponent - 1, significand << 1 | 1, control | EXTENDED_PRECISION, flags)


def fixed(value: Pair) -> int:
    """A pair as a fixed-point number, rounded down."""
    significand, exponent = value
    shift = exponent + FRACTION
    return significand << shift if shift >= 0 else significand >> -shift


# ---- sine, cosine, tangent ----------------------------------------------------------------------------


def reduce(a: int) -> tuple[int, int, Pair]:
    """(quadrant 0-3, sign of the rest, |rest|): |a| = quadrant * pi/2 + rest, |rest| <= pi/4."""
    _, exponent, significand = parts(a)
    if exponent < REDUCTION_EXPONENT:  # less than 1/8
        return 0, 0, (significand, exponent)
    quadrant, rest = divmod(significand << exponent - REDUCTION_EXPONENT, REDUCTION)
    if 2 * rest > REDUCTION:
        return quadrant + 1 & 3, 1, (REDUCTION - rest, REDUCTION_EXPONENT)
    return quadrant & 3, 0, (rest, REDUCTION_EXPONENT)


def square(value: Pair) -> int:
    """The square of a pair, in fixed-point."""
    return fixed((value[0] * value[0], 2 * value[1]))


def sine_series(z: int) -> int:
    """sin(r) / r for z = r**2 > 0."""
    return _alternating(z, 2)


def cosine_series(z: int) -> int:
    """cos(r) for z = r**2 > 0."""
    return _alternating(z, 1)


def _alternating(z: int, n: int) -> int:
    """1 - z / (n (n+1)) + z**2 / (n (n+1) (n+2) (n+3)) - ..., less than 1."""
    total = term = UNIT
    sign = -1
    while term:
        term = (term * z >> FRACTION) // (n * (n + 1))
        total += sign * term
        sign = -sign
        n += 2
    return min(total, UNIT - 1)


def sine_of(rest: Pair) -> Pair:
    """sin(rest)."""
    return rest[0] * sine_series(square(rest)), rest[1] - FRACTION


def cosine_of(rest: Pair) -> Pair:
    """cos(rest)."""
    return cosine_series(square(rest)), -FRACTION


def sine(a: int, control: int) -> Result:
    """sin(a) for |a| < 2**63."""
    special = _trigonometric_special(a)
    if special is not None:
        return special
    if is_zero(a):
        return a, 0
    quadrant, rest_sign, rest = reduce(a)
    if quadrant & 1:
        return rounded(a >> 79 ^ quadrant >> 1, cosine_of(rest), control, denormal_flag(a))
    return rounded(a >> 79 ^ quadrant >> 1 ^ rest_sign, sine_of(rest), control, denormal_flag(a))


def cosine(a: int, control: int) -> Result:
    """cos(a) for |a| < 2**63."""
    special = _trigonometric_special(a)
    if special is not None:
        return special
    if is_zero(a):
        return ONE, 0
    quadrant, rest_sign, rest = reduce(a)
    if quadrant & 1:
        return rounded(rest_sign ^ 1 ^ quadrant >> 1, sine_of(rest), control, denormal_flag(a))
    return rounded(quadrant >> 1, cosine_of(rest), control, denormal_flag(a))


def tangent(a: int, control: int) -> Result:
    """tan(a) for |a| < 2**63."""
    special = _trigonometric_special(a)
    if special is not None:
        return special
    if is_zero(a):
        return a, 0
    quadrant, rest_sign, rest = reduce(a)
    numerator, denominator = sine_of(rest), cosine_of(rest)
    if quadrant & 1:
        numerator, denominator = denominator, numerator
    sign = a >> 79 ^ rest_sign ^ quadrant & 1
    return rounded(sign, quotient(numerator, denominator), control, denormal_flag(a))


def _trigonometric_special(a: int) -> Result | None:
    if is_infinite(a):
        return INDEFINITE, IE
    return nan_result(a, a)


def quotient(a: Pair, b: Pair) -> Pair:
    """a / b, rounded down to at least 128 bits."""
    shift = max(0, 130 + b[0].bit_length() - a[0].bit_length())
    return (a[0] << shift) // b[0], a[1] - b[1] - shift


# ---- arc tangent --------------------------------------------------------------------------------------


def arc_tangent_of(t: Pair) -> Pair:
    """atan(t) for 0 < t <= 1."""
    value = fixed(t)
    if value <= UNIT >> 3:
        z = square(t)
        return t[0] * arc_series(z, -1), t[1] - FRACTION
    for _ in range(2):  # atan(t) = 2 atan(t / (1 + sqrt(1 + t**2)))
        value = (value << FRACTION) // (UNIT + isqrt(UNIT * UNIT + value * value))
    return 4 * value * arc_series(value * value >> FRACTION, -1), -2 * FRACTION


def arc_series(z: int, sign: int) -> int:
    """atan(t) / t (sign -1) or atanh(t) / t (sign 1) for z = t**2."""
    total, power, factor, n = UNIT, z, sign, 3
    while power:
        total += factor * power // n
        power = power * z >> FRACTION
        factor *= sign
        n += 2
    return min(total, UNIT - 1) if sign < 0 else total


def arc_tangent(y: int, x: int, control: int) -> Result:
    """The angle of the point (x, y), from -pi to pi (FPATAN)."""
    special = nan_result(y, x)
    if special is not None:
        return special
    flags = denormal_flag(y) | denormal_flag(x)
    sign, left = y >> 79, x >> 79
    if is_infinite(y):
        eighths = (3 if left else 1) if is_infinite(x) else 2
        return rounded(sign, (PI * eighths, -FRACTION - 2), control, flags)
    if is_zero(y) or is_infinite(x):
        return rounded(sign, (PI, -FRACTION), control, flags) if left else (sign << 79, flags)
    if is_zero(x):
        return rounded(sign, (PI, -FRACTION - 1), control, flags)
    _, y_exponent, y_significand = parts(y)
    _, x_exponent, x_significand = parts(x)
    rise, run = (y_significand, y_exponent), (x_significand, x_exponent)
    steep = magnitude_above(rise, run)
    angle = arc_tangent_of(quotient(run, rise) if steep else quotient(rise, run))
    if steep:
        small = max(fixed(angle), 1)
        angle = ((PI >> 1) + small if left else (PI >> 1) - small), -FRACTION
    elif left:
        angle = PI - max(fixed(angle), 1), -FRACTION
    return rounded(sign, angle, control, flags)


def magnitude_above(a: Pair, b: Pair) -> bool:
    """a > b, without making either large."""
    a_top, b_top = a[0].bit_length() + a[1], b[0].bit_length() + b[1]
    if a_top != b_top:
        return a_top > b_top
    low = min(a[1], b[1])
    return a[0] << a[1] - low > b[0] << b[1] - low


# ---- powers and logarithms ----------------------------------------------------------------------------


def power_minus_one(a: int, control: int) -> Result:
    """2**a - 1 for |a| <= 1 (F2XM1). Beyond that the SDM leaves the result open: AMD Zen 4 gives `a` back."""
    special = nan_result(a, a)
    if special is not None:
        return special
    if is_infinite(a):
        return (SIGN | ONE if a & SIGN else a), 0
    if is_zero(a):
        return a, 0
    if a & ~SIGN > ONE:
        return a, PE
    if a & ~SIGN == ONE:
        return (SIGN | ONE - (1 << 64) if a & SIGN else a), PE
    sign, exponent, significand = parts(a)
    y = significand * LN_2, exponent - FRACTION
    magnitude = fixed(y)
    total = term = UNIT
    n = 2
    while term:  # (exp(y) - 1) / y = 1 + y/2! + y**2/3! + ...
        term = (term * magnitude >> FRACTION) // n
        total += -term if sign and not n & 1 else term
        n += 1
    if sign:
        total = min(total, UNIT - 1)
    return rounded(sign, (y[0] * total, y[1] - FRACTION), control, denormal_flag(a))


def times_log2(y: int, x: int, control: int) -> Result:
    """y * log2(x) (FYL2X)."""
    special = nan_result(y, x)
    if special is not None:
        return special
    if is_zero(x):
        if is_zero(y):
            return INDEFINITE, IE
        return ~y & SIGN | INFINITY, 0 if is_infinite(y) else ZE
    if x & SIGN:
        return INDEFINITE, IE
    flags = denormal_flag(y) | denormal_flag(x)
    if is_infinite(x):
        return (INDEFINITE, IE) if is_zero(y) else (y & SIGN | INFINITY, flags)
    below_one = int(x < ONE)
    if is_infinite(y):
        return (INDEFINITE, IE) if x == ONE else (y ^ below_one << 79, flags)
    if is_zero(y) or x == ONE:
        return (y & SIGN) ^ below_one << 79, flags
    _, exponent, significand = parts(x)
    return times(y, binary_logarithm((significand, exponent)), control, flags)


def times_log2_plus_one(y: int, x: int, control: int) -> Result:
    """y * log2(x + 1) (FYL2XP1).

    The SDM leaves the result open unless |x| < 1 - sqrt(1/2): AMD Zen 4 gives `x` back for x <= -1.
    """
    special = nan_result(y, x)
    if special is not None:
        return special
    flags = denormal_flag(y) | denormal_flag(x)
    sign = (x ^ y) & SIGN
    if is_infinite(x):
        return (INDEFINITE, IE) if x & SIGN or is_zero(y) else (sign | INFINITY, flags)
    if is_infinite(y):
        return (INDEFINITE, IE) if is_zero(x) else (sign | INFINITY, flags)
    if is_zero(x) or is_zero(y):
        return sign, flags
    if x >= SIGN | ONE:
        return x, flags | PE
    x_sign, exponent, significand = parts(x)
    if exponent + significand.bit_length() < -2:  # |x| < 1/4: log2(1 + x) = 2 atanh(x / (2 + x)) / ln 2
        two = 2 << -exponent
        logarithm = x_sign, log2_of(significand, two - significand if x_sign else two + significand)
        return times(y, logarithm, control, flags)
    if exponent > 130:  # the one is too small to matter, but for its being there
        significand, exponent = significand << 130 | 1, exponent - 130
    elif exponent >= 0:
        significand, exponent = (significand << exponent) + 1, 0
    else:
        one = 1 << -exponent
        significand = one - significand if x_sign else one + significand
    return times(y, binary_logarithm((significand, exponent)), control, flags)


def binary_logarithm(value: Pair) -> tuple[int, Pair]:
    """log2(value) as (sign, pair); an integer where `value` is a power of two."""
    significand, exponent = value
    bits = significand.bit_length()
    power = exponent + bits - 1
    one = 1 << bits - 1  # value = 2**power * significand / one
    if significand == one:
        return int(power < 0), (abs(power), 0)
    if significand * significand > 1 << 2 * bits - 1:  # above sqrt(2): closer to the next power
        power, one = power + 1, one << 1
    sign, logarithm = int(significand < one), log2_of(abs(significand - one), significand + one)
    if not power:
        return sign, logarithm
    total = (power << FRACTION) + (-fixed(logarithm) if sign else fixed(logarithm))
    return int(total < 0), (abs(total), -FRACTION)


def log2_of(numerator: int, denominator: int) -> Pair:
    """log2((1 + s) / (1 - s)) = 2 atanh(s) / ln 2 for s = numerator / denominator > 0."""
    s = quotient((numerator, 0), (denominator, 0))
    series = arc_series(square(s), 1)
    return quotient((s[0] * series, s[1] - FRACTION + 1), (LN_2, -FRACTION))


def times(y: int, factor: tuple[int, Pair], control: int, flags: int) -> Result:
    """y * factor for finite y other than zero; inexact even where an integer factor makes it exact."""
    y_sign, exponent, significand = parts(y)
    sign, (other, other_exponent) = factor
    product = significand * other, exponent + other_exponent
    if other_exponent:
        return rounded(y_sign ^ sign, product, control, flags)
    result, flags = finish(y_sign ^ sign, product[1], product[0], control | EXTENDED_PRECISION, flags)
    return result, flags | PE if result & INFINITY - INTEGER_BIT else flags | PE | UE
