"""IEEE 754 arithmetic on bit patterns, exact: the numbers behind SSE's floating-point instructions.

No registers and no exceptions here: every operation takes MXCSR and returns (result, flags), where `flags`
are the MXCSR exception bits that the operation raises and the result is the one for masked exceptions.
Sources: SDM Vol. 1, "SSE and SSE2 Exceptions", "Operating on NaNs", "Rounding"; IEEE 754-2008.

Two ways lead to a result. The exact one works on integers and knows every rule. The quick one uses the host's
floating point where it cannot differ: all exceptions masked, rounding to nearest, no DAZ or FTZ, no zero,
denormal, infinity or NaN in sight, and the precision flag set already, so that nobody can tell whether the
result was exact, or the result known to be exact. Programs set the flag with their first inexact result.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt, sqrt
from struct import Struct

# MXCSR exception flags
INVALID, DENORMAL, ZERO_DIVIDE, OVERFLOW, UNDERFLOW, PRECISION = 1, 2, 4, 8, 16, 32
PRE_COMPUTATION = INVALID | DENORMAL | ZERO_DIVIDE
# MXCSR control bits
DAZ = 1 << 6
MASK_SHIFT = 7  # the mask of flag n is bit n + 7
OVERFLOW_MASK = OVERFLOW << MASK_SHIFT
UNDERFLOW_MASK = UNDERFLOW << MASK_SHIFT
ROUND_SHIFT = 13
FTZ = 1 << 15
NEAREST, DOWN, UP, TRUNCATE = range(4)  # MXCSR.RC
TOWARD_ZERO = TRUNCATE << ROUND_SHIFT  # or'ed into a control word: RC := truncate

# All exceptions masked, RC nearest, no DAZ, no FTZ; the quick way: PE set as well
EASY_BITS = 0x3F << MASK_SHIFT | DAZ | FTZ | 3 << ROUND_SHIFT
EASY = 0x3F << MASK_SHIFT
QUICK = EASY | PRECISION
_QUICK_BITS = EASY_BITS | PRECISION
_QUICK = QUICK

# What `compare` answers
LESS, EQUAL, GREATER, UNORDERED = -1, 0, 1, 2

M128 = (1 << 128) - 1

Result = tuple[int, int]


class Binary:
    """A binary interchange format: `bits` wide, `fraction_bits` of them stored fraction.

    All operands and results are bit patterns that fit `bits`.
    """

    __slots__ = (
        "_as_bits",
        "_as_bytes",
        "_as_float",
        "_exact_integers",
        "_from_float",
        "_lane_exponents",
        "_lane_signs",
        "_lane_units",
        "_lanes_as_floats",
        "_lanes_from_floats",
        "bits",
        "exponent",
        "fraction",
        "fraction_bits",
        "implicit",
        "indefinite",
        "infinity",
        "largest",
        "least",
        "least_exponent",
        "magnitude",
        "most",
        "offset",
        "precision",
        "quiet",
        "sign",
    )  # fmt: skip

    def __init__(self, bits: int, fraction_bits: int, float_code: str, bits_code: str) -> None:
        self.bits = bits
        self.fraction_bits = fraction_bits
        self.precision = fraction_bits + 1
        exponent_bits = bits - 1 - fraction_bits
        bias = (1 << exponent_bits - 1) - 1
        self.sign = 1 << bits - 1
        self.magnitude = self.sign - 1
        self.fraction = (1 << fraction_bits) - 1
        self.implicit = 1 << fraction_bits
        self.exponent = self.magnitude ^ self.fraction  # the exponent field; also infinity's pattern
        self.infinity = self.exponent
        self.quiet = 1 << fraction_bits - 1
        self.indefinite = self.sign | self.infinity | self.quiet
        self.largest = self.infinity - 1
        self.offset = bias + fraction_bits  # field e, significand m: m * 2**(e - offset)
        self.least_exponent = 1 - self.offset  # of the last bit of the least normal number
        self.least = 2.0 ** (1 - bias)
        self.most = (2.0 - 2.0**-fraction_bits) * 2.0**bias
        self._exact_integers = 1 << self.precision  # all of smaller magnitude are numbers
        lanes = 128 // bits
        one = ((1 << 128) - 1) // ((1 << bits) - 1)
        self._lane_signs = one * self.sign
        self._lane_exponents = one * self.exponent
        self._lane_units = one * self.implicit
        self._lanes_as_floats = Struct(f"<{lanes}{float_code[1]}").unpack
        self._lanes_from_floats = Struct(f"<{lanes}{float_code[1]}").pack
        self._as_bytes = Struct(bits_code).pack
        self._as_float = Struct(float_code).unpack
        self._from_float = Struct(float_code).pack
        self._as_bits = Struct(bits_code).unpack

    # ---- parts -------------------------------------------------------------------------------------------

    def is_nan(self, a: int) -> bool:
        """Quiet or signalling."""
        return a & self.magnitude > self.infinity

    def is_signalling(self, a: int) -> bool:
        """A NaN whose quiet bit is clear."""
        return a & self.magnitude > self.infinity and not a & self.quiet

    def is_denormal(self, a: int) -> bool:
        """Not zero, exponent field zero."""
        return not a & self.exponent and a & self.fraction != 0

    def flushed(self, a: int, control: int) -> int:
        """`a`, or a zero of its sign if it is denormal and DAZ is set."""
        return a & self.sign if control & DAZ and not a & self.exponent else a

    def parts(self, a: int) -> tuple[int, int]:
        """(significand, exponent) of a finite number: |a| = significand * 2**exponent."""
        field = (a & self.exponent) >> self.fraction_bits
        if field:
            return a & self.fraction | self.implicit, field - self.offset
        return a & self.fraction, self.least_exponent

    def value(self, a: int) -> float:
        """`a` as a Python float, which holds both formats exactly."""
        result: float = self._as_float(self._as_bytes(a))[0]
        return result

    def _nan(self, a: int, b: int) -> Result:
        """The result of an operation on NaNs: the first of them, quieted."""
        flags = INVALID if self.is_signalling(a) or self.is_signalling(b) else 0
        return (a if self.is_nan(a) else b) | self.quiet, flags

    def _denormals(self, a: int, b: int) -> int:
        return DENORMAL if self.is_denormal(a) or self.is_denormal(b) else 0

    # ---- rounding ----------------------------------------------------------------------------------------

    def rounded(self, negative: int, significand: int, exponent: int, control: int) -> Result:
        """The number +-significand * 2**exponent in this format.

        `negative` is 0 or 1. Where the exact value has no finite binary form, its bits below the second after
        the last place may be gathered into a last one bit.
        """
        sign = self.sign if negative else 0
        if not significand:
            return sign, 0
        mode = control >> ROUND_SHIFT & 3
        drop = significand.bit_length() - self.precision
        whole, inexact = shifted(significand, drop, negative, mode)
        last = exponent + drop  # exponent of the last place, unless it rounded up
        if whole >> self.precision:
            whole >>= 1
            last += 1
        if last < self.least_exponent:  # tiny: x86 decides it after rounding
            return self._tiny(negative, significand, exponent, control, inexact)
        # Adding lets a carry out of the fraction step the exponent
        result = (last - self.least_exponent << self.fraction_bits) + whole
        if result >= self.infinity:
            if not control & OVERFLOW_MASK:  # unmasked: the result is not delivered
                return sign, OVERFLOW | (PRECISION if inexact else 0)
            away = mode == NEAREST or (mode == UP and not negative) or (mode == DOWN and negative)
            return sign | (self.infinity if away else self.largest), OVERFLOW | PRECISION
        return sign | result, PRECISION if inexact else 0

    def _tiny(self, negative: int, significand: int, exponent: int, control: int, inexact: bool) -> Result:
        """A result below the least normal number."""
        sign = self.sign if negative else 0
        if not control & UNDERFLOW_MASK:  # unmasked: tiny is enough; the result is not delivered
            return sign, UNDERFLOW | (PRECISION if inexact else 0)
        if control & FTZ:
            return sign, UNDERFLOW | PRECISION
        mode = control >> ROUND_SHIFT & 3
        whole, inexact = shifted(significand, self.least_exponent - exponent, negative, mode)
        return sign | whole, UNDERFLOW | PRECISION if inexact else 0

    # ---- addition, multiplication, division, square root ---------------------------------------------------

    def add(self, a: int, b: int, control: int) -> Result:
        """a + b"""
        if control & EASY_BITS == EASY and a & self.exponent and b & self.exponent:
            x, y = self._as_float(self._as_bytes(a))[0], self._as_float(self._as_bytes(b))[0]
            total = x + y
            if self.least < abs(total) <= self.most:
                result = self._as_bits(self._from_float(total))[0]
                if control & PRECISION or (is_exact_sum(x, y, total) and self.value(result) == total):
                    return result, 0
        return self._sum(a, b, 0, control)

    def sub(self, a: int, b: int, control: int) -> Result:
        """a - b"""
        if control & EASY_BITS == EASY and a & self.exponent and b & self.exponent:
            x, y = self._as_float(self._as_bytes(a))[0], self._as_float(self._as_bytes(b))[0]
            difference = x - y
            if self.least < abs(difference) <= self.most:
                result = self._as_bits(self._from_float(difference))[0]
                exact = is_exact_sum(x, -y, difference)
                if control & PRECISION or (exact and self.value(result) == difference):
                    return result, 0
        return self._sum(a, b, self.sign, control)

    def _sum(self, a: int, b: int, flip: int, control: int) -> Result:
        """a + b, with b's sign turned by `flip`."""
        if self.is_nan(a) or self.is_nan(b):
            return self._nan(a, b)
        a, b = self.flushed(a, control), self.flushed(b, control) ^ flip
        flags = self._denormals(a, b)
        if a & self.exponent == self.infinity:
            if b == a ^ self.sign:
                return self.indefinite, INVALID
            return a, flags
        if b & self.exponent == self.infinity:
            return b, flags
        x, ex = self.parts(a)
        y, ey = self.parts(b)
        low = min(ex, ey)
        total = (-x if a & self.sign else x) << ex - low
        total += (-y if b & self.sign else y) << ey - low
        if not total:
            if a == b:  # both zeros of one sign
                return a, flags
            down = control >> ROUND_SHIFT & 3 == DOWN
            return self.sign if down else 0, flags
        result, raised = self.rounded(int(total < 0), abs(total), low, control)
        return result, flags | raised

    def mul(self, a: int, b: int, control: int) -> Result:
        """a * b"""
        if control & EASY_BITS == EASY and a & self.exponent and b & self.exponent:
            x, y = self._as_float(self._as_bytes(a))[0], self._as_float(self._as_bytes(b))[0]
            product = x * y
            if self.least < abs(product) <= self.most:
                result = self._as_bits(self._from_float(product))[0]
                if control & PRECISION or (is_exact_product(x, y, product) and self.value(result) == product):
                    return result, 0
        if self.is_nan(a) or self.is_nan(b):
            return self._nan(a, b)
        a, b = self.flushed(a, control), self.flushed(b, control)
        negative = (a ^ b) >> self.bits - 1
        infinite = a & self.exponent == self.infinity or b & self.exponent == self.infinity
        if infinite:
            if not a & self.magnitude or not b & self.magnitude:
                return self.indefinite, INVALID
            return negative << self.bits - 1 | self.infinity, self._denormals(a, b)
        x, ex = self.parts(a)
        y, ey = self.parts(b)
        result, raised = self.rounded(negative, x * y, ex + ey, control)
        return result, raised | self._denormals(a, b)

    def div(self, a: int, b: int, control: int) -> Result:
        """a / b"""
        if control & EASY_BITS == EASY and a & self.exponent and b & self.exponent:
            x, y = self._as_float(self._as_bytes(a))[0], self._as_float(self._as_bytes(b))[0]
            quotient = x / y
            if self.least < abs(quotient) <= self.most:
                result = self._as_bits(self._from_float(quotient))[0]
                exact = quotient * y == x and is_exact_product(quotient, y, x)
                if control & PRECISION or (exact and self.value(result) == quotient):
                    return result, 0
        if self.is_nan(a) or self.is_nan(b):
            return self._nan(a, b)
        a, b = self.flushed(a, control), self.flushed(b, control)
        negative = (a ^ b) >> self.bits - 1
        sign = negative << self.bits - 1
        if a & self.exponent == self.infinity:
            if b & self.exponent == self.infinity:
                return self.indefinite, INVALID
            return sign | self.infinity, self._denormals(a, b)
        if b & self.exponent == self.infinity:
            return sign, self._denormals(a, b)
        if not b & self.magnitude:
            if not a & self.magnitude:
                return self.indefinite, INVALID
            return sign | self.infinity, ZERO_DIVIDE
        x, ex = self.parts(a)
        y, ey = self.parts(b)
        # Enough quotient bits to round, and the remainder as one more
        more = self.precision + 2 + y.bit_length() - x.bit_length() if x else 0
        more = max(more, 0)
        quotient, remainder = divmod(x << more, y)
        result, raised = self.rounded(negative, quotient << 1 | (remainder != 0), ex - ey - more - 1, control)
        return result, raised | self._denormals(a, b)

    def quick_lanes(
        self, operation: Callable[[float, float], float], a: int, b: int, control: int
    ) -> int | None:
        """The quick way for a whole XMM register; None where a lane needs the exact one."""
        if control & _QUICK_BITS != _QUICK:
            return None
        exponents = self._lane_exponents
        x = a & exponents
        y = b & exponents
        # Sums that carry into the sign: exponent field not zero; all ones
        if (x + exponents & y + exponents ^ M128) & self._lane_signs:
            return None
        if (x + self._lane_units | y + self._lane_units) & self._lane_signs:
            return None
        first = self._lanes_as_floats(a.to_bytes(16, "little"))
        results = tuple(map(operation, first, self._lanes_as_floats(b.to_bytes(16, "little"))))
        sizes = tuple(map(abs, results))
        if min(sizes) <= self.least or max(sizes) > self.most:
            return None
        return int.from_bytes(self._lanes_from_floats(*results), "little")

    def sqrt(self, a: int, control: int) -> Result:
        """The square root of a"""
        if control & EASY_BITS == EASY and a & self.exponent and not a & self.sign:
            number = self._as_float(self._as_bytes(a))[0]
            if number <= self.most:
                root = sqrt(number)
                result = self._as_bits(self._from_float(root))[0]
                exact = root * root == number and is_exact_product(root, root, number)
                if control & PRECISION or (exact and self.value(result) == root):
                    return result, 0
        if self.is_nan(a):
            return self._nan(a, a)
        a = self.flushed(a, control)
        if not a & self.magnitude:
            return a, 0
        if a & self.sign:
            return self.indefinite, INVALID
        if a == self.infinity:
            return a, 0
        x, ex = self.parts(a)
        more = 2 * self.precision + 4
        more += ex - more & 1  # the exponent has to be even
        x <<= more
        root = isqrt(x)
        result, raised = self.rounded(0, root << 1 | (root * root != x), (ex - more) // 2 - 1, control)
        return result, raised | self._denormals(a, a)

    def fma(self, a: int, b: int, c: int, control: int) -> Result:
        """a * b + c, rounded once"""
        if self.is_nan(a) or self.is_nan(b) or self.is_nan(c):
            return self._fused_nan(a, b, c, control)
        a, b, c = self.flushed(a, control), self.flushed(b, control), self.flushed(c, control)
        negative = (a ^ b) >> self.bits - 1
        infinity = self.infinity
        if a & self.exponent == infinity or b & self.exponent == infinity:
            product = negative << self.bits - 1 | infinity
            if not a & self.magnitude or not b & self.magnitude or c == product ^ self.sign:
                return self.indefinite, INVALID
            return product, self._denormals(a, b) | self._denormals(c, c)
        flags = self._denormals(a, b) | self._denormals(c, c)
        if c & self.exponent == infinity:
            return c, flags
        x, ex = self.parts(a)
        y, ey = self.parts(b)
        z, ez = self.parts(c)
        product, ep = x * y, ex + ey
        if not product and not z:
            if negative == c >> self.bits - 1:
                return c, flags
            return self.sign if control >> ROUND_SHIFT & 3 == DOWN else 0, flags
        if product and z:
            # Bits far below the other term only have to say that they are there
            gap = 3 * self.precision + 4
            if ep + product.bit_length() < ez - gap:
                product, ep = 1, ez - gap
            elif ez + z.bit_length() < ep - gap:
                z, ez = 1, ep - gap
        low = min(ep, ez) if product and z else ep if product else ez
        total = (-product if negative else product) << max(ep - low, 0)
        total += (-z if c & self.sign else z) << max(ez - low, 0)
        if not total:
            return self.sign if control >> ROUND_SHIFT & 3 == DOWN else 0, flags
        result, raised = self.rounded(int(total < 0), abs(total), low, control)
        return result, flags | raised

    def _fused_nan(self, a: int, b: int, c: int, control: int) -> Result:
        """The first NaN of a * b + c, quieted; infinity times zero beside a quiet NaN is no exception."""
        nan = a if self.is_nan(a) else b if self.is_nan(b) else c
        signalling = self.is_signalling(a) or self.is_signalling(b) or self.is_signalling(c)
        return nan | self.quiet, INVALID if signalling else 0

    # ---- comparison ----------------------------------------------------------------------------------------

    def compare(self, a: int, b: int, control: int, quiet: bool) -> tuple[int, int]:
        """(LESS, EQUAL, GREATER or UNORDERED, flags); a quiet NaN is invalid unless `quiet`."""
        x = a & self.magnitude
        y = b & self.magnitude
        if self.fraction < x < self.infinity and self.fraction < y < self.infinity:  # normal numbers
            x = -x if a & self.sign else x
            y = -y if b & self.sign else y
            return (x > y) - (x < y), 0
        if self.is_nan(a) or self.is_nan(b):
            if quiet and not (self.is_signalling(a) or self.is_signalling(b)):
                return UNORDERED, 0
            return UNORDERED, INVALID
        a, b = self.flushed(a, control), self.flushed(b, control)
        flags = self._denormals(a, b)
        x = self.sign - a if a & self.sign else a  # sign and magnitude to a number that orders
        y = self.sign - b if b & self.sign else b
        return (x > y) - (x < y), flags

    def min(self, a: int, b: int, control: int) -> Result:
        """a < b ? a : b; so b if one is a NaN or both are zeros"""
        relation, flags = self.compare(a, b, control, False)
        return self.flushed(a if relation == LESS else b, control), flags

    def max(self, a: int, b: int, control: int) -> Result:
        """a > b ? a : b; so b if one is a NaN or both are zeros"""
        relation, flags = self.compare(a, b, control, False)
        return self.flushed(a if relation == GREATER else b, control), flags

    # ---- conversion ----------------------------------------------------------------------------------------

    def to_int(self, a: int, width: int, control: int) -> Result:
        """a as a `width`-bit two's complement number; 1 << width - 1 and INVALID where it does not fit."""
        if a & self.exponent == self.infinity:
            return 1 << width - 1, INVALID
        if a & self.exponent:
            number = self._as_float(self._as_bytes(a))[0]
            if abs(number) < 1 << width - 1:
                whole = int(number)
                if whole == number or (control & _QUICK_BITS) ^ TOWARD_ZERO == _QUICK:
                    return whole & (1 << width) - 1, 0
        a = self.flushed(a, control)
        significand, exponent = self.parts(a)
        if exponent > width:  # far out of range; also bounds the shift
            return 1 << width - 1, INVALID
        negative = a >> self.bits - 1
        whole, inexact = shifted(significand, -exponent, negative, control >> ROUND_SHIFT & 3)
        if whole > (1 << width - 1) - 1 + negative:
            return 1 << width - 1, INVALID
        return (-whole if negative else whole) & (1 << width) - 1, PRECISION if inexact else 0

    def from_int(self, number: int, control: int) -> Result:
        """A signed integer in this format."""
        if -self._exact_integers < number < self._exact_integers:
            return self._as_bits(self._from_float(number))[0], 0
        return self.rounded(int(number < 0), abs(number), 0, control)

    def from_format(self, other: Binary, a: int, control: int) -> Result:
        """`a` of the format `other` in this format."""
        if a & other.exponent and (control & _QUICK_BITS == _QUICK or self.bits > other.bits):
            number = other._as_float(other._as_bytes(a))[0]
            if self.least < abs(number) <= self.most:
                return self._as_bits(self._from_float(number))[0], 0
        sign = self.sign if a & other.sign else 0
        if other.is_nan(a):
            shift = self.fraction_bits - other.fraction_bits
            fraction = a & other.fraction
            fraction = fraction << shift if shift >= 0 else fraction >> -shift
            return sign | self.infinity | self.quiet | fraction, 0 if a & other.quiet else INVALID
        a = other.flushed(a, control)
        if a & other.exponent == other.infinity:
            return sign | self.infinity, 0
        significand, exponent = other.parts(a)
        result, raised = self.rounded(1 if sign else 0, significand, exponent, control)
        return result, raised | (DENORMAL if other.is_denormal(a) else 0)

    def integral(self, a: int, control: int) -> Result:
        """a rounded to an integer in its own format; a zero keeps the sign of a."""
        if self.is_nan(a):
            return self._nan(a, a)
        a = self.flushed(a, control)
        significand, exponent = self.parts(a)
        if a & self.exponent == self.infinity or exponent >= 0:
            return a, 0
        whole, inexact = shifted(significand, -exponent, a >> self.bits - 1, control >> ROUND_SHIFT & 3)
        result, _ = self.rounded(a >> self.bits - 1, whole, 0, control)
        return result, PRECISION if inexact else 0


def shifted(significand: int, drop: int, negative: int, mode: int) -> tuple[int, bool]:
    """(significand / 2**drop rounded to an integer, inexact). `drop` may be negative."""
    if drop <= 0:
        return significand << -drop, False
    whole = significand >> drop
    rest = significand ^ whole << drop
    if not rest:
        return whole, False
    if mode == NEAREST:
        half = 1 << drop - 1
        if rest > half or (rest == half and whole & 1):
            whole += 1
    elif mode == DOWN:
        whole += negative
    elif mode == UP:
        whole += 1 - negative
    return whole, True


# ---- is a double exact? --------------------------------------------------------------------------------

_SPLIT = 134217729.0  # 2**27 + 1: Veltkamp's constant for 53 bits
_SPLIT_LEAST, _SPLIT_MOST = 2.0**-900, 2.0**990  # between these no step of the product over- or underflows


def is_exact_sum(a: float, b: float, total: float) -> bool:
    """Whether `total`, the rounded sum of two finite doubles, is their sum. Knuth's two-sum."""
    there = total - a
    return (a - (total - there)) + (b - there) == 0.0


def is_exact_product(a: float, b: float, product: float) -> bool:
    """Whether `product`, the rounded product of two finite doubles, is their product; False also where that
    is not known. Dekker's product."""
    if not product:
        return not a or not b
    if not (_SPLIT_LEAST < abs(product) < _SPLIT_MOST and abs(a) < _SPLIT_MOST and abs(b) < _SPLIT_MOST):
        return False
    at = _SPLIT * a
    high_a = at - (at - a)
    at = _SPLIT * b
    high_b = at - (at - b)
    low_a, low_b = a - high_a, b - high_b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    return error == 0.0


BINARY16 = Binary(16, 10, "<e", "<H")
BINARY32 = Binary(32, 23, "<f", "<I")
BINARY64 = Binary(64, 52, "<d", "<Q")
