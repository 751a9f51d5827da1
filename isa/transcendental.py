"""The transcendental functions of 80-bit numbers, in integers with guard bits. No registers, no stack.

A result is the true value rounded once (up to an error of about 2**-100 before rounding), which is better than the one unit in the last place
that the manual promises. Numbers, control words, flags and results are those of `extended`; precision
control has no effect here. Source: SDM Vol. 1, "Transcendental Instructions", "Transcendental Instruction
Accuracy" and "Approximation of Pi"; Vol. 2 for the special operands of each. A positive real number inside
is a pair (significand, exponent), or fixed-point with FRACTION bits.
"""

from __future__ import annotations

from math import isqrt

from isa.extended import (
    DE,
    EXTENDED_PRECISION,
    IE,
    INDEFINITE,
    INFINITY,
    ONE,
    PE,
    SIGN,
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
    return not TOO_LARGE <= a >> 64 & 0x7FFF < 0x7FFF


def rounded(sign: int, value: Pair, control: int, flags: int) -> Result:
    """A pair that lies below an irrational number, rounded to 64 bits."""
    significand, exponent = value
    return finish(sign, exponent - 1, significand << 1 | 1, control | EXTENDED_PRECISION, flags)


def fixed(value: Pair) -> int:
    """A pair as a fixed-point number, rounded down."""
    significand, exponent = value
    shift = exponent + FRACTION
    return significand << shift if shift >= 0 else significand >> -shift


# ---- sine, cosine, tangent -----------------------------------------------------------------------------------


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
    total = term = UNIT
    n = 2
    while term:
        term = -(term * z >> FRACTION) // (n * (n + 1))
        total += term
        n += 2
        if term == -1:
            break
    return min(total, UNIT - 1)


def cosine_series(z: int) -> int:
    """cos(r) for z = r**2 > 0."""
    total = term = UNIT
    n = 1
    while term:
        term = -(term * z >> FRACTION) // (n * (n + 1))
        total += term
        n += 2
        if term == -1:
            break
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
    return rounded(a >> 79 ^ rest_sign ^ quadrant & 1, quotient(numerator, denominator), control, denormal_flag(a))


def _trigonometric_special(a: int) -> Result | None:
    if is_infinite(a):
        return INDEFINITE, IE
    return nan_result(a, a)


def quotient(a: Pair, b: Pair) -> Pair:
    """a / b, rounded down to at least 128 bits."""
    shift = max(0, 130 + b[0].bit_length() - a[0].bit_length())
    return (a[0] << shift) // b[0], a[1] - b[1] - shift


# ---- arc tangent ---------------------------------------------------------------------------------------------


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
    total = 0
    power = UNIT
    n = 1
    while power:
        total += power // n
        power = sign * (abs(power) * z >> FRACTION) * (1 if power > 0 else -1)
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


# ---- powers and logarithms -----------------------------------------------------------------------------------


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
    sign, exponent, significand = parts(a)
    y = significand * LN_2, exponent - FRACTION
    value = -fixed(y) if sign else fixed(y)
    total = term = UNIT
    n = 2
    while term:  # (exp(y) - 1) / y
        term = (term * value >> FRACTION) // n
        total += term
        n += 1
        if term == -1:
            break
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
        result = ~(x ^ y) & SIGN | INFINITY if False else (~y & SIGN) | INFINITY
        return result, 0 if is_infinite(y) else ZE
    if x & SIGN:
        return INDEFINITE, IE
    flags = denormal_flag(y) | denormal_flag(x)
    if is_infinite(x):
        return (INDEFINITE, IE) if is_zero(y) else (y & SIGN | INFINITY, flags)
    negative = x < ONE
    if is_infinite(y):
        return (INDEFINITE, IE) if x == ONE else (y ^ negative << 79, flags)
    _, exponent, significand = parts(x)
    if is_zero(y):
        return y ^ negative << 79, flags
    bits = significand.bit_length()
    power = exponent + bits - 1
    significand <<= 64 - bits  # 1 <= significand * 2**-63 < 2
    if significand == 1 << 63:
        return scaled(y, power < 0, (abs(power), 0), control, flags, exact=True)
    below = 0
    if significand * significand > 1 << 127:  # above sqrt(2): as 2 * f with f < 1
        power += 1
        below = 1
    one = 1 << 63 + below
    sign, log = log2_of(significand - one, significand + one)
    if power:
        value = (power << FRACTION) + (-fixed(log) if sign else fixed(log))
        sign, log = int(value < 0), (abs(value), -FRACTION)
    return scaled(y, sign, log, control, flags)


def log2_of(numerator: int, denominator: int) -> tuple[int, Pair]:
    """log2((1 + s) / (1 - s)) = 2 atanh(s) / ln 2 for s = numerator / denominator, as (sign, pair)."""
    s = quotient((abs(numerator), 0), (denominator, 0))
    series = arc_series(square(s), 1)
    return int(numerator < 0), quotient((s[0] * series, s[1] - FRACTION + 1), (LN_2, -FRACTION))


def scaled(y: int, sign: int, factor: Pair, control: int, flags: int, *, exact: bool = False) -> Result:
    """y * factor, y finite; `exact` if the factor is no approximation."""
    y_sign, exponent, significand = parts(y)
    value = significand * factor[0], exponent + factor[1]
    if not value[0]:
        return (y_sign ^ sign) << 79, flags
    if exact:
        return finish(y_sign ^ sign, value[1], value[0], control | EXTENDED_PRECISION, flags)
    return rounded(y_sign ^ sign, value, control, flags)


def times_log2_plus_one(y: int, x: int, control: int) -> Result:
    """y * log2(x + 1) (FYL2XP1), meant for |x| < 1 - sqrt(1/2)."""
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
    return INDEFINITE, DE
