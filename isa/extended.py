"""Exact 80-bit double-extended arithmetic on integers, as the x87 unit does it. No registers, no stack.

A number is its 80-bit pattern: sign in bit 79, biased exponent in bits 64-78, significand with its explicit
integer bit in bits 0-63. Every operation takes the x87 control word, from which it uses rounding control,
precision control and the masks of overflow and underflow (unmasked they wrap the exponent), and returns
`(result, flags)`: `flags` are bits of the x87 status word, IE DE ZE OE UE PE and C1 for "rounded up".
Whether a flagged result is stored at all is decided by who calls. Sources: SDM Vol. 1, "Programming with the
x87 FPU", "x87 FPU Floating-Point Exception Conditions" and "Rounding"; what they leave open follows
AMD Zen 4.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

Result = tuple[int, int]
Operation = Callable[[int, int, int], Result]

# Status word (SDM Vol. 1, "x87 FPU Status Register")
IE = 1 << 0  # invalid operation
DE = 1 << 1  # denormal operand
ZE = 1 << 2  # divide by zero
OE = 1 << 3  # overflow
UE = 1 << 4  # underflow
PE = 1 << 5  # inexact
SF = 1 << 6  # stack fault
C0 = 1 << 8
C1 = 1 << 9
C2 = 1 << 10
C3 = 1 << 14
EXCEPTIONS = IE | DE | ZE | OE | UE | PE

# Control word (SDM Vol. 1, "x87 FPU Control Word"); the exception masks lie where the flags do
PC_SHIFT = 8
RC_SHIFT = 10
NEAREST, DOWN, UP, CHOP = range(4)
PRECISION_BITS = (24, 64, 53, 64)  # 01 is reserved and means 64 bits
EXTENDED_PRECISION = 3 << PC_SHIFT

SIGN = 1 << 79
INTEGER_BIT = 1 << 63
QUIET_BIT = 1 << 62
SIGNIFICAND = (1 << 64) - 1
MAX_EXPONENT = 0x7FFF
BIAS = 16383
EXPONENT_WRAP = 24576  # added on unmasked underflow, subtracted on unmasked overflow
LEAST = -16445  # exponent of the lowest bit of a denormal

ZERO = 0
ONE = BIAS << 64 | INTEGER_BIT
INFINITY = MAX_EXPONENT << 64 | INTEGER_BIT
INDEFINITE = SIGN | INFINITY | QUIET_BIT  # the default NaN
BCD_INDEFINITE = 0xFFFF_C000_0000_0000_0000

# Results of `compare`, as condition codes
GREATER = 0
LESS = C0
EQUAL = C3
UNORDERED = C3 | C2 | C0


# ---- classes of numbers -------------------------------------------------------------------------------


def is_normal(a: int) -> bool:
    """A normalized finite number other than zero."""
    return bool(a & INTEGER_BIT) and 0 < a >> 64 & MAX_EXPONENT < MAX_EXPONENT


def is_zero(a: int) -> bool:
    """+0 or -0."""
    return not a & ~SIGN


def is_denormal(a: int) -> bool:
    """A denormal or pseudo-denormal: exponent field 0, significand not 0."""
    return not a >> 64 & MAX_EXPONENT and bool(a & SIGNIFICAND)


def is_infinite(a: int) -> bool:
    """Infinity of either sign."""
    return a & ~SIGN == INFINITY


def is_nan(a: int) -> bool:
    """A quiet or signalling NaN; pseudo-NaNs are unsupported instead."""
    return a & ~SIGN > INFINITY


def is_signalling(a: int) -> bool:
    """A signalling NaN."""
    return a & ~SIGN > INFINITY and not a & QUIET_BIT


def is_unsupported(a: int) -> bool:
    """Unnormals, pseudo-infinities and pseudo-NaNs: an invalid operand for every operation."""
    return bool(a >> 64 & MAX_EXPONENT) and not a & INTEGER_BIT


def parts(a: int) -> tuple[int, int, int]:
    """(sign, exponent, significand) of a finite number: +-significand * 2**exponent."""
    return a >> 79, (a >> 64 & MAX_EXPONENT or 1) - BIAS - 63, a & SIGNIFICAND


def denormal_flag(a: int) -> int:
    """DE if `a` is a denormal."""
    return DE if not a & INFINITY - INTEGER_BIT and a & SIGNIFICAND else 0


# ---- rounding -----------------------------------------------------------------------------------------


def round_shift(value: int, drop: int, away: bool, nearest: bool) -> tuple[int, bool, bool]:
    """`value` / 2**`drop` as an integer: (rounded, inexact, rounded up in magnitude).

    `away` asks for directed rounding away from zero, `nearest` for ties to even; neither truncates.
    """
    if drop <= 0:
        return value << -drop, False, False
    quotient = value >> drop
    rest = value & (1 << drop) - 1
    if not rest:
        return quotient, False, False
    if nearest:
        half = 1 << drop - 1
        up = rest > half or (rest == half and bool(quotient & 1))
    else:
        up = away
    return quotient + up, True, up


def directed(control: int, sign: int) -> tuple[bool, bool]:
    """(away, nearest) for `round_shift` from the control word's RC and the sign of the result."""
    mode = control >> RC_SHIFT & 3
    return (mode == UP and not sign) or (mode == DOWN and bool(sign)), mode == NEAREST


def finish(sign: int, exponent: int, significand: int, control: int, flags: int = 0) -> Result:
    """Round the exact value significand * 2**exponent (significand > 0) into a register.

    Precision control chooses the width, the exponent range is always that of the extended format. A caller
    with more bits than it can carry sets the lowest bit for the rest that it dropped.
    """
    precision = PRECISION_BITS[control >> PC_SHIFT & 3]
    bits = significand.bit_length()
    biased = exponent + bits - 1 + BIAS
    drop = bits - precision
    inexact = up = False
    if drop > 0:  # `round_shift`, spelled out: every result comes through here
        rounded = significand >> drop
        rest = significand & (1 << drop) - 1
        if rest:
            inexact = True
            mode = control >> RC_SHIFT & 3
            if mode == NEAREST:
                half = 1 << drop - 1
                up = rest > half or (rest == half and bool(rounded & 1))
            else:
                up = mode == DOWN + (not sign)
            if up:
                rounded += 1
                if rounded >> precision:
                    rounded >>= 1
                    biased += 1
    else:
        rounded = significand << -drop
    if 0 < biased < MAX_EXPONENT:
        if inexact:
            flags |= PE | C1 if up else PE
        return sign << 79 | biased << 64 | rounded << 64 - precision, flags
    if biased > 0:
        return _overflow(sign, biased, rounded << 64 - precision, control, flags, inexact, up)
    if not control & UE:
        if inexact:
            flags |= PE | C1 if up else PE
        return _wrapped(sign, biased + EXPONENT_WRAP, rounded << 64 - precision, flags | UE)
    # A denormal keeps the lowest bit of the chosen precision where a normal number has it
    away, nearest = directed(control, sign)
    rounded, inexact, up = round_shift(significand, LEAST + 64 - precision - exponent, away, nearest)
    if inexact:
        flags |= UE | PE | C1 if up else UE | PE
    rounded <<= 64 - precision
    return sign << 79 | (rounded >> 63) << 64 | rounded, flags  # it may round up to the least normal number


def _overflow(
    sign: int, biased: int, rounded: int, control: int, flags: int, inexact: bool, up: bool
) -> Result:
    """A result too large: infinity or the largest number, or the wrapped exponent if OE is unmasked."""
    if not control & OE:
        if inexact:
            flags |= PE | C1 if up else PE
        return _wrapped(sign, biased - EXPONENT_WRAP, rounded, flags | OE)
    away, nearest = directed(control, sign)
    if away or nearest:
        return sign << 79 | INFINITY, flags | OE | PE | C1
    precision = PRECISION_BITS[control >> PC_SHIFT & 3]
    largest = SIGNIFICAND & -(1 << 64 - precision)
    return sign << 79 | MAX_EXPONENT - 1 << 64 | largest, flags | OE | PE


def _wrapped(sign: int, biased: int, significand: int, flags: int) -> Result:
    """A result of unmasked overflow or underflow. FSCALE can miss even that range: infinity or zero."""
    if biased >= MAX_EXPONENT:
        return sign << 79 | INFINITY, flags | PE | C1
    if biased <= 0:
        return sign << 79, flags & ~C1 | PE
    return sign << 79 | biased << 64 | significand, flags


# ---- NaNs ---------------------------------------------------------------------------------------------


def nan_result(a: int, b: int) -> Result | None:
    """What an operation with a NaN or an unsupported operand gives, None if there is none.

    Unsupported: the default NaN. Two NaNs: the one with the larger significand, the positive one of equals,
    but a quiet NaN before a signalling one. SDM Vol. 1, "Operating on SNaNs and QNaNs".
    """
    if is_unsupported(a) or is_unsupported(b):
        return INDEFINITE, IE
    a_is_nan, b_is_nan = is_nan(a), is_nan(b)
    if not (a_is_nan or b_is_nan):
        return None
    flags = IE if is_signalling(a) or is_signalling(b) else 0
    if a_is_nan and b_is_nan:
        chosen = _larger_nan(a, b)
    else:
        chosen = a if a_is_nan else b
    return chosen | QUIET_BIT, flags


def _larger_nan(a: int, b: int) -> int:
    if is_signalling(a) != is_signalling(b):
        return b if is_signalling(a) else a
    if a & SIGNIFICAND != b & SIGNIFICAND:
        return a if a & SIGNIFICAND > b & SIGNIFICAND else b
    return min(a, b)  # the positive one


# ---- arithmetic ---------------------------------------------------------------------------------------


def add(a: int, b: int, control: int) -> Result:
    """a + b."""
    return _sum(a, b, 0, control)


def sub(a: int, b: int, control: int) -> Result:
    """a - b."""
    return _sum(a, b, 1, control)


def reversed_sub(a: int, b: int, control: int) -> Result:
    """b - a."""
    return _sum(b, a, 1, control)


def _sum(a: int, b: int, negate: int, control: int) -> Result:
    flags = 0
    if not (a & b & INTEGER_BIT and 0 < a >> 64 & MAX_EXPONENT < MAX_EXPONENT > b >> 64 & MAX_EXPONENT > 0):
        special = nan_result(a, b)
        if special is not None:
            return special
        if is_infinite(a):
            if is_infinite(b) and (a ^ b) >> 79 != negate:
                return INDEFINITE, IE
            return a, denormal_flag(b)
        if is_infinite(b):
            return b ^ negate << 79, denormal_flag(a)
        flags = denormal_flag(a) | denormal_flag(b)
    a_sign, b_sign = a >> 79, b >> 79 ^ negate
    a_significand, b_significand = a & SIGNIFICAND, b & SIGNIFICAND
    a_exponent, b_exponent = a >> 64 & MAX_EXPONENT or 1, b >> 64 & MAX_EXPONENT or 1
    distance = a_exponent - b_exponent
    if distance > 130:  # too small to matter, but for its being there
        distance, b_significand = 130, bool(b_significand)
    elif distance < -130:
        distance, a_significand = -130, bool(a_significand)
    if distance >= 0:
        exponent = a_exponent - distance
        a_significand <<= distance
    else:
        exponent = b_exponent + distance
        b_significand <<= -distance
    total = (-a_significand if a_sign else a_significand) + (-b_significand if b_sign else b_significand)
    if not total:
        sign = a_sign if a_sign == b_sign else control >> RC_SHIFT & 3 == DOWN
        return sign << 79, flags
    return finish(int(total < 0), exponent - BIAS - 63, abs(total), control, flags)


def mul(a: int, b: int, control: int) -> Result:
    """a * b."""
    sign = (a ^ b) >> 79
    flags = 0
    if not (a & b & INTEGER_BIT and 0 < a >> 64 & MAX_EXPONENT < MAX_EXPONENT > b >> 64 & MAX_EXPONENT > 0):
        special = nan_result(a, b)
        if special is not None:
            return special
        if is_infinite(a) or is_infinite(b):
            if is_zero(a) or is_zero(b):
                return INDEFINITE, IE
            return sign << 79 | INFINITY, denormal_flag(a) | denormal_flag(b)
        flags = denormal_flag(a) | denormal_flag(b)
        if is_zero(a) or is_zero(b):
            return sign << 79, flags
    _, a_exponent, a_significand = parts(a)
    _, b_exponent, b_significand = parts(b)
    return finish(sign, a_exponent + b_exponent, a_significand * b_significand, control, flags)


def div(a: int, b: int, control: int) -> Result:
    """a / b."""
    sign = (a ^ b) >> 79
    flags = 0
    if not (a & b & INTEGER_BIT and 0 < a >> 64 & MAX_EXPONENT < MAX_EXPONENT > b >> 64 & MAX_EXPONENT > 0):
        special = nan_result(a, b)
        if special is not None:
            return special
        if is_infinite(a):
            return (INDEFINITE, IE) if is_infinite(b) else (sign << 79 | INFINITY, denormal_flag(b))
        if is_infinite(b):
            return sign << 79, denormal_flag(a)
        if is_zero(b):
            return (INDEFINITE, IE) if is_zero(a) else (sign << 79 | INFINITY, ZE)
        flags = denormal_flag(a) | denormal_flag(b)
        if is_zero(a):
            return sign << 79, flags
    _, a_exponent, a_significand = parts(a)
    _, b_exponent, b_significand = parts(b)
    shift = 67 + b_significand.bit_length() - a_significand.bit_length()
    quotient, rest = divmod(a_significand << shift, b_significand)
    return finish(sign, a_exponent - b_exponent - shift - 1, quotient << 1 | bool(rest), control, flags)


def reversed_div(a: int, b: int, control: int) -> Result:
    """b / a."""
    return div(b, a, control)


def sqrt(a: int, control: int) -> Result:
    """The square root of `a`."""
    special = nan_result(a, a)
    if special is not None:
        return special
    if is_zero(a):
        return a, 0
    if a & SIGN:
        return INDEFINITE, IE
    if is_infinite(a):
        return a, 0
    _, exponent, significand = parts(a)
    shift = 136 - significand.bit_length()
    shift += exponent - shift & 1
    root = isqrt(significand << shift)
    inexact = root * root != significand << shift
    return finish(0, (exponent - shift >> 1) - 1, root << 1 | inexact, control, denormal_flag(a))


def compare(a: int, b: int, *, quiet: bool = False) -> Result:
    """(condition codes, flags) of a against b; `quiet` as in FUCOM: a quiet NaN is not invalid."""
    if is_unsupported(a) or is_unsupported(b):
        return UNORDERED, IE
    if is_nan(a) or is_nan(b):
        invalid = not quiet or is_signalling(a) or is_signalling(b)
        return UNORDERED, IE if invalid else 0
    flags = denormal_flag(a) | denormal_flag(b)
    left, right = magnitude_order(a), magnitude_order(b)
    return (GREATER if left > right else LESS if left < right else EQUAL), flags


def magnitude_order(a: int) -> int:
    """An integer that orders finite numbers and infinities as their values do; both zeros are 0."""
    magnitude = a & ~SIGN
    if magnitude >> 64 == 0 and magnitude & INTEGER_BIT:  # a pseudo-denormal is the least normal exponent
        magnitude += 1 << 64
    return -magnitude if a & SIGN else magnitude


def round_to_integer(a: int, control: int) -> Result:
    """`a` as an integral number in the rounding mode (FRNDINT). Precision control does not matter."""
    special = nan_result(a, a)
    if special is not None:
        return special
    sign, exponent, significand = parts(a)
    if exponent >= 0 or not significand:  # infinity as well
        return a, 0
    flags = denormal_flag(a)
    away, nearest = directed(control, sign)
    rounded, inexact, up = round_shift(significand, min(-exponent, 66), away, nearest)
    if inexact:
        flags |= PE | C1 if up else PE
    if not rounded:
        return sign << 79, flags
    return from_integer(-rounded if sign else rounded), flags


def scale(a: int, b: int, control: int) -> Result:
    """a * 2**trunc(b) (FSCALE). Rounded to 64 bits only where the result is denormal."""
    special = nan_result(a, b)
    if special is not None:
        return special
    sign = a >> 79
    if is_infinite(b):
        if b & SIGN:
            return (INDEFINITE, IE) if is_infinite(a) else (sign << 79, denormal_flag(a))
        return (INDEFINITE, IE) if is_zero(a) else (sign << 79 | INFINITY, denormal_flag(a))
    if is_infinite(a):
        return a, denormal_flag(b)
    flags = denormal_flag(a) | denormal_flag(b)
    if is_zero(a):
        return a, flags
    b_sign, b_exponent, b_significand = parts(b)
    if b_exponent > -48:
        power = 0x1_0000  # beyond any exponent, even a wrapped one
    else:
        power = b_significand >> -b_exponent
    _, exponent, significand = parts(a)
    return finish(
        sign, exponent + (-power if b_sign else power), significand, control | EXTENDED_PRECISION, flags
    )


def extract(a: int) -> tuple[int, int, int]:
    """(significand, exponent, flags) of FXTRACT: a = significand * 2**exponent, 1 <= |significand| < 2."""
    special = nan_result(a, a)
    if special is not None:
        return special[0], special[0], special[1]
    if is_infinite(a):
        return a, INFINITY, 0
    if is_zero(a):
        return a, SIGN | INFINITY, ZE
    sign, exponent, significand = parts(a)
    bits = significand.bit_length()
    return (
        sign << 79 | BIAS << 64 | significand << 64 - bits,
        from_integer(exponent + bits - 1),
        denormal_flag(a),
    )


def remainder(a: int, b: int, control: int, *, nearest: bool) -> tuple[int, int, int]:
    """(result, flags, low three bits of the quotient) of one FPREM (or, with `nearest`, FPREM1) step.

    The quotient is -1 where the step only reduced the exponent and has to be repeated (C2). The result is
    exact; rounding control chooses nothing.
    """
    special = nan_result(a, b)
    if special is not None:
        return special[0], special[1], 0
    if is_infinite(a) or is_zero(b):
        return INDEFINITE, IE, 0
    flags = denormal_flag(a) | denormal_flag(b)
    if is_zero(a):
        return a, flags, 0
    sign, a_exponent, a_significand = parts(a)
    control |= EXTENDED_PRECISION
    if is_infinite(b):
        result, flags = finish(sign, a_exponent, a_significand, control, flags)
        return result, flags, 0
    _, b_exponent, b_significand = parts(b)
    distance = a_exponent + a_significand.bit_length() - b_exponent - b_significand.bit_length()
    if distance >= 64:
        step = distance - (32 + distance % 32)
        shift = a_exponent - b_exponent - step
        rest = (a_significand << max(shift, 0)) % (b_significand << max(-shift, 0))
        low = min(a_exponent, b_exponent + step)
        if not rest:
            return sign << 79, flags, -1
        result, flags = finish(sign, low, rest, control, flags)
        return result, flags, -1
    low = min(a_exponent, b_exponent)
    if distance < -1:  # less than half of b: nothing to take away
        quotient, rest, low = 0, a_significand, a_exponent
    else:
        divisor = b_significand << b_exponent - low
        quotient, rest = divmod(a_significand << a_exponent - low, divisor)
        if nearest and (2 * rest > divisor or (2 * rest == divisor and quotient & 1)):
            quotient += 1
            rest = divisor - rest
            sign ^= 1
    if not rest:
        return a & SIGN, flags, quotient & 7
    result, flags = finish(sign, low, rest, control, flags)
    return result, flags, quotient & 7


# ---- conversions into a register ----------------------------------------------------------------------


def from_integer(value: int) -> int:
    """A signed integer of up to 64 bits of magnitude, exactly."""
    if not value:
        return ZERO
    magnitude = abs(value)
    bits = magnitude.bit_length()
    return (value < 0) << 79 | BIAS + bits - 1 << 64 | magnitude << 64 - bits


def from_float(pattern: int, bits: int) -> Result:
    """A 32- or 64-bit float pattern, exactly; DE for a denormal, IE for a signalling NaN, which stays one."""
    fraction_bits, bias = (23, 127) if bits == 32 else (52, 1023)
    sign = pattern >> bits - 1
    exponent = pattern >> fraction_bits & 2 * bias + 1
    fraction = pattern & (1 << fraction_bits) - 1
    if exponent == 2 * bias + 1:
        flags = IE if fraction and not fraction >> fraction_bits - 1 else 0
        return sign << 79 | INFINITY | fraction << 63 - fraction_bits, flags
    if exponent:
        value = exponent - bias + BIAS << 64 | INTEGER_BIT | fraction << 63 - fraction_bits
        return sign << 79 | value, 0
    if not fraction:
        return sign << 79, 0
    width = fraction.bit_length()
    return sign << 79 | BIAS - bias - fraction_bits + width << 64 | fraction << 64 - width, DE


def from_bcd(packed: int) -> int:
    """An 18-digit packed decimal (80 bits, sign in bit 79). Digits above 9 count with their value."""
    value = 0
    for position in range(68, -4, -4):
        value = value * 10 + (packed >> position & 15)
    return packed & SIGN | from_integer(value)


# ---- conversions out of a register --------------------------------------------------------------------


def to_integer(a: int, bits: int, control: int) -> Result:
    """`a` rounded to a signed integer of `bits` bits, as an unsigned pattern.

    A value that does not fit, an infinity or a NaN gives the integer indefinite, 10...0, with IE.
    """
    indefinite = 1 << bits - 1
    if is_unsupported(a) or a & ~SIGN >= INFINITY:
        return indefinite, IE
    sign, exponent, significand = parts(a)
    if exponent > 0:
        return indefinite, IE
    away, nearest = directed(control, sign)
    rounded, inexact, up = round_shift(significand, min(-exponent, 66), away, nearest)
    if rounded > indefinite - (not sign):
        return indefinite, IE
    flags = 0
    if inexact:
        flags = PE | C1 if up else PE
    return (-rounded if sign else rounded) & 2 * indefinite - 1, flags


def to_bcd(a: int, control: int) -> Result:
    """`a` rounded to an 18-digit packed decimal (FBSTP)."""
    if is_unsupported(a) or a & ~SIGN >= INFINITY:
        return BCD_INDEFINITE, IE
    sign, exponent, significand = parts(a)
    if exponent > 0:
        return BCD_INDEFINITE, IE
    away, nearest = directed(control, sign)
    rounded, inexact, up = round_shift(significand, min(-exponent, 66), away, nearest)
    if rounded >= 10**18:
        return BCD_INDEFINITE, IE
    flags = 0
    if inexact:
        flags = PE | C1 if up else PE
    return sign << 79 | int(str(rounded), 16), flags


def to_float(a: int, bits: int, control: int) -> Result:
    """`a` as a 32- or 64-bit float pattern (FST).

    With OE or UE unmasked nothing will be stored, so the pattern is of no use then; the flags are right.
    """
    fraction_bits, bias = (23, 127) if bits == 32 else (52, 1023)
    top = 2 * bias + 1
    sign = a >> 79 << bits - 1
    if not is_normal(a):
        if is_unsupported(a):
            return 1 << bits - 1 | top << fraction_bits | 1 << fraction_bits - 1, IE
        if is_nan(a):
            fraction = (a | QUIET_BIT) >> 63 - fraction_bits & (1 << fraction_bits) - 1
            return sign | top << fraction_bits | fraction, IE if is_signalling(a) else 0
        if is_infinite(a):
            return sign | top << fraction_bits, 0
        if is_zero(a):
            return sign, 0
    _, exponent, significand = parts(a)
    width = significand.bit_length()
    away, nearest = directed(control, sign)
    biased = exponent + width - 1 + bias
    rounded, inexact, up = round_shift(significand, width - 1 - fraction_bits, away, nearest)
    if rounded >> fraction_bits + 1:
        rounded >>= 1
        biased += 1
    flags = 0
    if biased >= top:
        if away or nearest:
            return sign | top << fraction_bits, OE | PE | C1
        return sign | (top << fraction_bits) - 1, OE | PE
    if biased <= 0:
        least = 1 - bias - fraction_bits
        rounded, inexact, up = round_shift(significand, min(least - exponent, 80), away, nearest)
        if inexact or not control & UE:
            flags = UE
        biased = 0
    else:
        rounded &= (1 << fraction_bits) - 1
    if inexact:
        flags |= PE | C1 if up else PE
    return sign | (biased << fraction_bits) + rounded, flags
