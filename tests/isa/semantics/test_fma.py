"""FMA and F16C: one rounding, three orders of operands, half precision. Exact fractions are the oracle."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isa.faults import GeneralProtection
from isa.floats import (
    BINARY16,
    BINARY32,
    BINARY64,
    DENORMAL,
    DOWN,
    FTZ,
    INVALID,
    NEAREST,
    PRECISION,
    ROUND_SHIFT,
    TRUNCATE,
    UNDERFLOW,
    UP,
    Binary,
)
from isa.semantics.fma import FUSED
from tests.isa.machine import run_one
from tests.isa.semantics.test_avx import avx_cpu, fault

MASKED = 0x1F80
ONE, TWO, THREE = 0x3FF0_0000_0000_0000, 0x4000_0000_0000_0000, 0x4008_0000_0000_0000
QNAN, SNAN, INFINITY = 0x7FF8_0000_0000_0001, 0x7FF0_0000_0000_0001, 0x7FF0_0000_0000_0000


def exact(form: Binary, a: int) -> Fraction:
    """The value of a finite number."""
    significand, exponent = form.parts(a)
    return (-1 if a & form.sign else 1) * significand * Fraction(2) ** exponent


def neighbours_of(form: Binary, value: Fraction) -> tuple[int, int]:
    """The two finite numbers around a positive value, by bisection over the patterns; equal if it is one."""
    low, high = 0, form.infinity - 1
    while high - low > 1:
        middle = (low + high) // 2
        if exact(form, middle) <= value:
            low = middle
        else:
            high = middle
    return (low, low) if exact(form, low) == value else (low, high)


finite32 = st.integers(0, BINARY32.infinity - 1) | st.integers(0x3F00_0000, 0x4100_0000)
signs = st.booleans()


@given(
    finite32,
    finite32,
    finite32,
    st.tuples(signs, signs, signs),
    st.sampled_from([NEAREST, DOWN, UP, TRUNCATE]),
)
def test_a_fused_single_is_the_exact_value_rounded_once(
    a: int, b: int, c: int, negative: tuple[bool, bool, bool], mode: int
) -> None:
    a, b, c = (x | BINARY32.sign * minus for x, minus in zip((a, b, c), negative, strict=True))
    value = exact(BINARY32, a) * exact(BINARY32, b) + exact(BINARY32, c)
    result, flags = BINARY32.fma(a, b, c, MASKED | mode << ROUND_SHIFT)
    if abs(value) > exact(BINARY32, BINARY32.largest) or not value:
        return  # overflow and the sign of zero: the host knows
    low, high = neighbours_of(BINARY32, abs(value))
    assert bool(flags & PRECISION) == (low != high)
    below, above = exact(BINARY32, low), exact(BINARY32, high)
    minus = value < 0
    if mode == NEAREST:
        near_low, near_high = abs(value) - below, above - abs(value)
        expected = low if near_low < near_high or (near_low == near_high and not low & 1) else high
    else:
        away = mode == (DOWN if minus else UP)
        expected = high if away else low
    assert result == (BINARY32.sign if minus else 0) | expected


def test_a_tiny_addend_far_below_the_product_still_decides_a_directed_rounding() -> None:
    least = 1
    up = MASKED | UP << ROUND_SHIFT
    assert BINARY64.fma(ONE, ONE, least, up) == (ONE + 1, PRECISION | DENORMAL)
    down = MASKED | DOWN << ROUND_SHIFT
    assert BINARY64.fma(ONE, ONE, BINARY64.sign | least, down)[0] == ONE - 1


@pytest.mark.parametrize(
    ("operands", "result", "flags"),
    [
        ((INFINITY, 0, ONE), BINARY64.indefinite, INVALID),
        ((INFINITY, ONE, BINARY64.sign | INFINITY), BINARY64.indefinite, INVALID),
        ((INFINITY, 0, QNAN), QNAN, 0),
        ((ONE, SNAN, QNAN), SNAN | BINARY64.quiet, INVALID),
        ((QNAN, SNAN, ONE), QNAN, INVALID),
        ((1, ONE, INFINITY), INFINITY, DENORMAL),
        ((0, ONE, BINARY64.sign), 0, 0),
    ],
)
def test_special_operands(operands: tuple[int, int, int], result: int, flags: int) -> None:
    assert BINARY64.fma(*operands, MASKED) == (result, flags)


def test_there_are_sixty_mnemonics() -> None:
    assert len(FUSED) == 60


@pytest.mark.parametrize(
    ("text", "code", "result"),
    [  # xmm0 = 1, xmm1 = 2, xmm2 = 3
        ("vfmadd132sd xmm0, xmm1, xmm2", "c4e2f199c2", 5.0),
        ("vfmadd213sd xmm0, xmm1, xmm2", "c4e2f1a9c2", 5.0),
        ("vfmadd231sd xmm0, xmm1, xmm2", "c4e2f1b9c2", 7.0),
        ("vfmsub231sd xmm0, xmm1, xmm2", "c4e2f1bbc2", 5.0),
        ("vfnmadd231sd xmm0, xmm1, xmm2", "c4e2f1bdc2", -5.0),
        ("vfnmsub231sd xmm0, xmm1, xmm2", "c4e2f1bfc2", -7.0),
    ],
)
def test_the_orders_and_signs_of_a_scalar(text: str, code: str, result: float) -> None:
    cpu = avx_cpu(xmm0=5 << 64 | ONE, ymmh0=9, xmm1=TWO, xmm2=THREE)
    run_one(cpu, text, bytes.fromhex(code))
    assert BINARY64.value(cpu.xmm0 & (1 << 64) - 1) == result
    assert (cpu.xmm0 >> 64, cpu.ymmh0) == (5, 0)


def test_fmaddsub_subtracts_in_even_lanes_and_adds_in_odd_ones() -> None:
    twice = 1 | 1 << 64
    cpu = avx_cpu(xmm0=ONE * twice, xmm1=TWO * twice, xmm2=THREE * twice)
    run_one(cpu, "vfmaddsub213pd xmm0, xmm1, xmm2", bytes.fromhex("c4e2f1a6c2"))
    assert BINARY64.value(cpu.xmm0 & (1 << 64) - 1) == -1.0
    assert BINARY64.value(cpu.xmm0 >> 64) == 5.0


# ---- half precision --------------------------------------------------------------------------------------


@given(st.integers(0, 0x7BFF))
def test_a_half_survives_the_way_to_single_and_back(half: int) -> None:
    single, flags = BINARY32.from_format(BINARY16, half, MASKED)
    assert flags & ~DENORMAL == 0
    assert BINARY16.from_format(BINARY32, single, MASKED) == (half, 0)


def test_a_denormal_half_is_neither_flushed_nor_reported() -> None:
    cpu = avx_cpu(xmm1=1, mxcsr=0x1FC0)  # DAZ
    run_one(cpu, "vcvtph2ps xmm0, xmm1", bytes.fromhex("c4e27913c1"))
    assert BINARY32.value(cpu.xmm0) == 2.0**-24
    assert cpu.mxcsr == 0x1FC0


def test_vcvtps2ph_does_not_flush_its_result_to_zero() -> None:
    cpu = avx_cpu(xmm1=0x3380_0001, mxcsr=MASKED | FTZ)  # just above 2**-24, the least half
    run_one(cpu, "vcvtps2ph xmm0, xmm1, 0x0", bytes.fromhex("c4e3791dc800"))
    assert cpu.xmm0 == 1
    assert cpu.mxcsr & 0x3F == UNDERFLOW | PRECISION


def test_vcvtps2ph_whose_store_faults_sets_no_flag() -> None:
    cpu = avx_cpu(xmm1=0x3380_0001, rax=1 << 62)
    assert isinstance(fault(cpu, "vcvtps2ph [rax], xmm1, 0x0", "c4e3791d0800"), GeneralProtection)
    assert cpu.mxcsr == MASKED


def test_vcvtps2ph_reports_its_address_before_its_arithmetic() -> None:
    cpu = avx_cpu(xmm1=0x3380_0001, rax=1 << 62, mxcsr=0)  # every exception unmasked
    assert isinstance(fault(cpu, "vcvtps2ph [rax], xmm1, 0x0", "c4e3791d0800"), GeneralProtection)


def test_vcvtps2ph_takes_its_rounding_from_the_immediate_unless_told() -> None:
    for imm8, mxcsr, expected in (
        (2, MASKED, 0x3C01),
        (3, MASKED, 0x3C00),
        (4, MASKED | UP << ROUND_SHIFT, 0x3C01),
    ):
        cpu = avx_cpu(xmm1=0x3F80_0001, mxcsr=mxcsr)
        run_one(cpu, f"vcvtps2ph xmm0, xmm1, {imm8:#x}", bytes.fromhex(f"c4e3791dc8{imm8:02x}"))
        assert cpu.xmm0 == expected
