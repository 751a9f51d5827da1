"""What translated code calls for doubles: exactness, tameness, and packing without a bit lost."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

import pytest

from isa import doubles
from isa.cpu import Cpu
from isa.floats import BINARY64, PRECISION, is_exact_product, is_exact_sum
from isa.mmu import NotPlain
from tests.isa.machine import make_cpu

LEAST, MOST = doubles.LEAST, doubles.MOST
MASKED = 0x1F80


def bits(number: float) -> int:
    """The 64 bits of a double."""
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def some_doubles(seed: int, count: int) -> list[float]:
    """Numbers of few and of many bits, near and far apart, zeros among them."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        kind = rng.randrange(4)
        if kind == 0:
            made.append(float(rng.randrange(-64, 64)))
        elif kind == 1:
            made.append(rng.randrange(-(1 << 27), 1 << 27) * 2.0 ** rng.randrange(-40, 40))
        elif kind == 2:
            made.append(rng.uniform(-2.0, 2.0))
        else:
            made.append(rng.uniform(-1.0, 1.0) * 2.0 ** rng.randrange(-300, 300))
    return made


PAIRS = list(zip(some_doubles(1, 3000), some_doubles(2, 3000), strict=True))


@pytest.mark.parametrize(
    "value", (0, 1, 0x7FF0_0000_0000_0001 << 64 | 0xFFF8 << 48, (1 << 128) - 1, 1 << 127)
)
def test_splitting_and_joining_keeps_every_bit(value: int) -> None:
    assert doubles.join(*doubles.split(value)) == value
    assert bits(doubles.double(value & (1 << 64) - 1)) == value & (1 << 64) - 1


def test_tame_are_zeros_and_normal_numbers() -> None:
    for number in (0.0, -0.0, 1.0, -MOST, MOST, 2 * LEAST, -2 * LEAST):
        assert doubles.is_tame(number)
    for number in (math.nan, math.inf, -math.inf, LEAST / 2, -5e-324):
        assert not doubles.is_tame(number)


def test_taming_takes_the_pair_where_there_is_one() -> None:
    assert doubles.tame(None, 1.0, 2.0) == (1.0, 2.0)
    assert doubles.tame(bits(3.0), None, None) == (3.0, 0.0)
    for strange in (math.nan, math.inf, 5e-324):
        with pytest.raises(NotPlain):
            doubles.tame(None, 1.0, strange)
        with pytest.raises(NotPlain):
            doubles.tame(bits(strange), None, None)


def test_a_sum_is_exact_when_fractions_say_so() -> None:
    seen = set()
    for a, b in PAIRS:
        exact = Fraction(a) + Fraction(b) == Fraction(a + b)
        assert is_exact_sum(a, b, a + b) == exact
        seen.add(exact)
    assert seen == {True, False}


def test_a_product_called_exact_is_and_those_of_short_numbers_are_called_so() -> None:
    seen = set()
    for a, b in PAIRS:
        exact = Fraction(a) * Fraction(b) == Fraction(a * b)
        assert is_exact_product(a, b, a * b) == exact
        seen.add(exact)
    assert seen == {True, False}
    assert not is_exact_product(2.0**-600, 2.0**-600, 0.0)  # it became zero
    assert not is_exact_product(2.0**1000, 3.0, 3 * 2.0**1000)  # too large to tell


EXACT: list[tuple[Callable[[float, float, Cpu], float], str]] = [
    (doubles.add, "add"), (doubles.sub, "sub"), (doubles.mul, "mul"), (doubles.div, "div"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "name"), EXACT)
def test_with_the_precision_flag_clear_only_exact_results_are_given(
    operation: Callable[[float, float, Cpu], float], name: str
) -> None:
    cpu = make_cpu(mxcsr=MASKED)
    given = 0
    for a, b in PAIRS:
        if name == "div" and not b:
            continue
        expected, flags = getattr(BINARY64, name)(bits(a), bits(b), MASKED)
        try:
            result = operation(a, b, cpu)
        except NotPlain:
            assert flags & PRECISION or name in ("mul", "div")
            continue
        assert (bits(result), flags) == (expected, 0)
        given += 1
    assert given > 100


def test_a_root_is_given_if_it_is_exact() -> None:
    cpu = make_cpu(mxcsr=MASKED)
    assert doubles.root(6.25, cpu) == 2.5
    assert bits(doubles.root(-0.0, cpu)) == 1 << 63
    with pytest.raises(NotPlain):
        doubles.root(2.0, cpu)


@pytest.mark.parametrize("control", (0x1F80 | 0x40, 0x9F80, 0x3F80, 0x0F80))
def test_other_settings_than_the_usual_are_left_to_the_exact_way(control: int) -> None:
    cpu = make_cpu(mxcsr=control)
    for operation, _ in EXACT:
        with pytest.raises(NotPlain):
            operation(1.0, 1.0, cpu)
    with pytest.raises(NotPlain):
        doubles.root(4.0, cpu)
