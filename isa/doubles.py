"""Doubles in translated code: what it calls for vector registers that are pairs of floats. No instruction.

A Python float carries the 64 bits of a double, NaNs included. A *tame* double is zero or a normal number: of
those the host's arithmetic raises no exception but precision, overflow and underflow, and translated code
looks at the result for the last two. Precision is known already where MXCSR.PE is set (`sticky`); where it
is clear these functions compute only what is exact.
"""

from __future__ import annotations

from math import sqrt
from struct import Struct
from typing import TYPE_CHECKING

from isa.floats import EASY, EASY_BITS, is_exact_product, is_exact_sum
from isa.mmu import NotPlain
from isa.state import M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

LEAST = 2.2250738585072014e-308  # the least normal number; a result equal to it may have been tiny
MOST = 1.7976931348623157e308
EXACT_INTEGERS = 1 << 53  # all of no greater magnitude are doubles

_PAIR, _HALVES, _QUARTERS = Struct("<2d"), Struct("<2Q"), Struct("<4Q")
_pair_of, _bytes_of_pair = _PAIR.unpack, _PAIR.pack
_double_of = Struct("<d").unpack
_bytes_of_quadword = Struct("<Q").pack


def split(value: int) -> tuple[float, float]:
    """The two doubles of an XMM register, low one first."""
    pair: tuple[float, float] = _pair_of(value.to_bytes(16, "little"))
    return pair


def join(low: float, high: float) -> int:
    """The XMM register made of two doubles."""
    return int.from_bytes(_bytes_of_pair(low, high), "little")


def double(quadword: int) -> float:
    """64 bits as a double."""
    number: float = _double_of(_bytes_of_quadword(quadword))[0]
    return number


def halves(value: int) -> tuple[int, int]:
    """The two quadwords of 128 bits, low one first."""
    return value & M64, value >> 64


def quarters(value: int) -> tuple[int, ...]:
    """The four quadwords of 256 bits, lowest first."""
    parts: tuple[int, ...] = _QUARTERS.unpack(value.to_bytes(32, "little"))
    return parts


# (RAM, offset) -> parts; (RAM, offset, *parts)
load_pair, store_pair = _PAIR.unpack_from, _PAIR.pack_into
load_halves, store_halves = _HALVES.unpack_from, _HALVES.pack_into
load_quarters, store_quarters = _QUARTERS.unpack_from, _QUARTERS.pack_into


def is_tame(number: float) -> bool:
    """Zero or normal: neither denormal, infinite nor a NaN."""
    return LEAST < number <= MOST or -MOST <= number < -LEAST or not number


def tame(value: int | None, low: float | None, high: float | None) -> tuple[float, float]:
    """Both doubles of a register that is a number or, where `low` is not None, a pair; NotPlain if one is
    not tame."""
    if low is None or high is None:
        assert value is not None
        low, high = split(value)
    if not (is_tame(low) and is_tame(high)):
        raise NotPlain
    return low, high


def _only_exact(cpu: Cpu) -> None:
    if cpu.mxcsr & EASY_BITS != EASY:
        raise NotPlain


def add(a: float, b: float, cpu: Cpu) -> float:
    """a + b, tame, if it is exact."""
    _only_exact(cpu)
    total = a + b
    if not is_exact_sum(a, b, total):
        raise NotPlain
    return total


def sub(a: float, b: float, cpu: Cpu) -> float:
    """a - b, tame, if it is exact."""
    return add(a, -b, cpu)


def mul(a: float, b: float, cpu: Cpu) -> float:
    """a * b, tame, if it is known to be exact."""
    _only_exact(cpu)
    product = a * b
    if not is_exact_product(a, b, product):
        raise NotPlain
    return product


def div(a: float, b: float, cpu: Cpu) -> float:
    """a / b, tame, b not zero, if it is known to be exact."""
    _only_exact(cpu)
    quotient = a / b
    if quotient * b != a or not is_exact_product(quotient, b, a):
        raise NotPlain
    return quotient


def root(a: float, cpu: Cpu) -> float:
    """The square root of a tame number that is not negative, if it is known to be exact."""
    _only_exact(cpu)
    result = sqrt(a)
    if result * result != a or not is_exact_product(result, result, a):
        raise NotPlain
    return result
