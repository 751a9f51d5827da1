"""SSE floating point: what stays of the destination, MXCSR and #XM, comparisons, conversions, estimates."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.faults import InvalidOpcode, SimdException
from isa.state import CR4_OSFXSR, CR4_OSXMMEXCPT
from tests.isa.machine import execute, fault_of, flags_of, make_cpu

SSE = CR4_OSFXSR | CR4_OSXMMEXCPT
MASKED = 0x1F80
UPPER = 0xDEAD_BEEF_0123_4567 << 64
NAN32, NAN64 = 0x7FC0_0000, 0x7FF8 << 48


def doubles(*numbers: float) -> int:
    """A register of doubles, lowest first."""
    return int.from_bytes(struct.pack(f"<{len(numbers)}d", *numbers), "little")


def singles(*numbers: float) -> int:
    """A register of singles, lowest first."""
    return int.from_bytes(struct.pack(f"<{len(numbers)}f", *numbers), "little")


def run(text: str, code: str, a: int, b: int = 0, **registers: int) -> int:
    """XMM0 after the instruction, with XMM0 = a and XMM1 = b before."""
    return execute(text, code, cr4=SSE, xmm0=a, xmm1=b, **registers).xmm0


# ---- lanes ---------------------------------------------------------------------------------------------


def test_scalar_arithmetic_keeps_the_upper_lanes() -> None:
    assert run(
        "addsd xmm0, xmm1", "f20f58c1", UPPER | doubles(1.5), UPPER | doubles(2.25)
    ) == UPPER | doubles(3.75)
    rest = UPPER | 0x1111_1111 << 32
    assert run("mulss xmm0, xmm1", "f30f59c1", rest | singles(3), singles(0.5, 9)) == rest | singles(1.5)
    assert run("sqrtss xmm0, xmm1", "f30f51c1", rest, singles(2.25)) == rest | singles(1.5)


@pytest.mark.parametrize(("mxcsr", "how"), [(MASKED, "exact"), (MASKED | 0x20, "quick")])
def test_packed_arithmetic_works_on_every_lane(mxcsr: int, how: str) -> None:
    a, b = singles(1, -2, 3.5, 8), singles(4, 0.25, -0.5, 3)
    assert run("addps xmm0, xmm1", "0f58c1", a, b, mxcsr=mxcsr) == singles(5, -1.75, 3, 11)
    assert run("subps xmm0, xmm1", "0f5cc1", a, b, mxcsr=mxcsr) == singles(-3, -2.25, 4, 5)
    assert run("mulps xmm0, xmm1", "0f59c1", a, b, mxcsr=mxcsr) == singles(4, -0.5, -1.75, 24)
    assert run("divps xmm0, xmm1", "0f5ec1", a, b, mxcsr=mxcsr) == singles(0.25, -8, -7, 8 / 3)
    assert run("divpd xmm0, xmm1", "660f5ec1", doubles(1, 9), doubles(4, -3), mxcsr=mxcsr) == doubles(
        0.25, -3
    )


def test_horizontal_and_alternating_arithmetic() -> None:
    a, b = singles(1, 2, 3, 4), singles(10, 20, 30, 40)
    assert run("haddps xmm0, xmm1", "f20f7cc1", a, b) == singles(3, 7, 30, 70)
    assert run("hsubps xmm0, xmm1", "f20f7dc1", a, b) == singles(-1, -1, -10, -10)
    assert run("addsubps xmm0, xmm1", "f20fd0c1", a, b) == singles(-9, 22, -27, 44)
    assert run("addsubpd xmm0, xmm1", "660fd0c1", doubles(1, 2), doubles(10, 20)) == doubles(-9, 22)


def test_dot_products_take_and_give_lanes_by_immediate() -> None:
    a, b = singles(1, 2, 3, 4), singles(10, 20, 30, 40)
    assert run("dpps xmm0, xmm1, 0xf1", "660f3a40c1f1", a, b) == singles(300, 0, 0, 0)
    assert run("dpps xmm0, xmm1, 0x5a", "660f3a40c15a", a, b) == singles(0, 100, 0, 100)
    assert run("dppd xmm0, xmm1, 0x31", "660f3a41c131", doubles(1, 2), doubles(3, 4)) == doubles(11, 0)


# ---- MXCSR ---------------------------------------------------------------------------------------------


def test_flags_are_sticky_and_collect_over_the_lanes() -> None:
    cpu = execute(
        "divpd xmm0, xmm1", "660f5ec1", cr4=SSE, mxcsr=MASKED | 8, xmm0=doubles(1, 1), xmm1=doubles(0, 3)
    )
    assert cpu.mxcsr == MASKED | 8 | 4 | 0x20
    assert cpu.xmm0 == doubles(float("inf"), 1 / 3)


def test_an_unmasked_exception_leaves_the_destination_and_sets_the_flag() -> None:
    cpu = make_cpu(cr4=SSE, mxcsr=MASKED & ~(4 << 7), xmm0=doubles(1, 1), xmm1=doubles(0, 3))
    fault = fault_of(cpu, "divpd xmm0, xmm1", bytes.fromhex("660f5ec1"))
    assert isinstance(fault, SimdException)
    assert "divide by zero" in fault.why
    assert cpu.xmm0 == doubles(1, 1)
    # Nothing is computed, so lane 1 does not report that it would have been inexact
    assert cpu.mxcsr == MASKED & ~(4 << 7) | 4


def test_an_unmasked_precision_exception_reports_every_lane() -> None:
    cpu = make_cpu(cr4=SSE, mxcsr=MASKED & ~(0x20 << 7), xmm0=doubles(1, 1), xmm1=doubles(0, 3))
    assert isinstance(fault_of(cpu, "divpd xmm0, xmm1", bytes.fromhex("660f5ec1")), SimdException)
    assert cpu.mxcsr & 0x3F == 0x24


def test_without_osxmmexcpt_an_unmasked_exception_is_ud() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR, mxcsr=0, xmm0=doubles(1), xmm1=doubles(0))
    assert isinstance(fault_of(cpu, "divsd xmm0, xmm1", bytes.fromhex("f20f5ec1")), InvalidOpcode)


def test_an_exception_flag_of_the_past_does_not_fault() -> None:
    assert run("addsd xmm0, xmm1", "f20f58c1", doubles(1), doubles(1), mxcsr=0x3F) == doubles(2)


@pytest.mark.parametrize(("rc", "expected"), [(0, 2), (1, 2), (2, 3), (3, 2)])
def test_conversion_to_integers_follows_the_rounding_control(rc: int, expected: int) -> None:
    cpu = execute("cvtsd2si eax, xmm1", "f20f2dc1", cr4=SSE, mxcsr=MASKED | rc << 13, xmm1=doubles(2.5))
    assert cpu.rax == expected
    truncated = execute(
        "cvttsd2si rax, xmm1", "f2480f2cc1", cr4=SSE, mxcsr=MASKED | rc << 13, xmm1=doubles(-2.5)
    )
    assert truncated.rax == -2 & (1 << 64) - 1


def test_round_to_integral_takes_its_own_mode_and_can_hide_inexactness() -> None:
    up = MASKED | 2 << 13
    cpu = execute(
        "roundsd xmm0, xmm1, 0x3", "660f3a0bc103", cr4=SSE, mxcsr=up, xmm0=UPPER, xmm1=doubles(1.75)
    )
    assert (cpu.xmm0, cpu.mxcsr) == (UPPER | doubles(1), up | 0x20)
    cpu = execute("roundsd xmm0, xmm1, 0xb", "660f3a0bc10b", cr4=SSE, mxcsr=up, xmm1=doubles(1.75))
    assert (cpu.xmm0, cpu.mxcsr) == (doubles(1), up)
    cpu = execute("roundsd xmm0, xmm1, 0x4", "660f3a0bc104", cr4=SSE, mxcsr=up, xmm1=doubles(1.25))
    assert cpu.xmm0 == doubles(2)


# ---- comparison ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "flags"), [(1.0, ""), (2.0, "ZF"), (3.0, "CF"), (float("nan"), "CF PF ZF")])
def test_comisd_answers_in_zf_pf_cf_and_clears_the_others(b: float, flags: str) -> None:
    registers = {"cr4": SSE, "xmm0": doubles(2), "xmm1": doubles(b), "of": 1, "sf": 1, "af": 1}
    assert flags_of(execute("ucomisd xmm0, xmm1", "660f2ec1", **registers)) == flags
    assert flags_of(execute("comisd xmm0, xmm1", "660f2fc1", **registers)) == flags


def test_only_comisd_finds_a_quiet_nan_invalid() -> None:
    registers = {"cr4": SSE, "xmm0": doubles(2), "xmm1": NAN64, "mxcsr": MASKED}
    assert execute("ucomisd xmm0, xmm1", "660f2ec1", **registers).mxcsr == MASKED
    assert execute("comisd xmm0, xmm1", "660f2fc1", **registers).mxcsr == MASKED | 1


@pytest.mark.parametrize(
    ("text", "predicate", "less", "equal", "greater", "unordered"),
    [("cmpeqps", 0, 0, 1, 0, 0), ("cmpltps", 1, 1, 0, 0, 0), ("cmpleps", 2, 1, 1, 0, 0),
     ("cmpunordps", 3, 0, 0, 0, 1), ("cmpneqps", 4, 1, 0, 1, 1), ("cmpnltps", 5, 0, 1, 1, 1),
     ("cmpnleps", 6, 0, 0, 1, 1), ("cmpordps", 7, 1, 1, 1, 0)],
)  # fmt: skip
def test_predicates_answer_lane_masks(
    text: str, predicate: int, less: int, equal: int, greater: int, unordered: int
) -> None:
    a, b = singles(1, 2, 3, 4), singles(2, 2, 2) | NAN32 << 96
    expected = sum(holds * 0xFFFF_FFFF << 32 * n for n, holds in enumerate((less, equal, greater, unordered)))
    assert run(f"{text} xmm0, xmm1", f"0fc2c1{predicate:02x}", a, b) == expected


def test_minimum_of_a_nan_and_a_number_is_the_second_operand() -> None:
    assert run("minsd xmm0, xmm1", "f20f5dc1", UPPER | NAN64, doubles(1)) == UPPER | doubles(1)
    assert run("minsd xmm0, xmm1", "f20f5dc1", doubles(1), NAN64) == NAN64
    assert run("maxps xmm0, xmm1", "0f5fc1", singles(1, -0.0, 5, -1), singles(2, 0.0, 4, -3)) == singles(
        2, 0.0, 5, -1
    )


# ---- conversion ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(number=st.integers(-(1 << 63), (1 << 63) - 1))
def test_cvtsi2sd_rounds_to_the_nearest_double(number: int) -> None:
    result = run("cvtsi2sd xmm0, rax", "f2480f2ac0", UPPER, rax=number & (1 << 64) - 1)
    assert result == UPPER | doubles(float(number))


def test_a_32_bit_conversion_takes_eax_alone() -> None:
    assert run("cvtsi2ss xmm0, eax", "f30f2ac0", UPPER, rax=0x5_FFFF_FFFE) == UPPER | singles(-2)


def test_what_does_not_fit_converts_to_the_integer_indefinite() -> None:
    cpu = execute("cvttsd2si rax, xmm1", "f2480f2cc1", cr4=SSE, mxcsr=MASKED, xmm1=doubles(1e30))
    assert (cpu.rax, cpu.mxcsr) == (1 << 63, MASKED | 1)
    cpu = execute("cvtsd2si eax, xmm1", "f20f2dc1", cr4=SSE, mxcsr=MASKED, rax=-1 & 2**64 - 1, xmm1=NAN64)
    assert (cpu.rax, cpu.mxcsr) == (1 << 31, MASKED | 1)


def test_packed_conversions_fill_or_clear_the_upper_half() -> None:
    integers = int.from_bytes(struct.pack("<4i", 1, -2, 3, -4), "little")
    assert run("cvtdq2ps xmm0, xmm1", "0f5bc1", 0, integers) == singles(1, -2, 3, -4)
    assert run("cvtdq2pd xmm0, xmm1", "f30fe6c1", 0, integers) == doubles(1, -2)
    assert run("cvtps2dq xmm0, xmm1", "660f5bc1", 0, singles(1, -2, 3, -4)) == integers
    assert run("cvttps2dq xmm0, xmm1", "f30f5bc1", 0, singles(1.9, -2.9, 3.5, -4.5)) == integers
    assert run("cvtpd2dq xmm0, xmm1", "f20fe6c1", UPPER, doubles(1, -2)) == integers & (1 << 64) - 1
    assert run("cvtps2pd xmm0, xmm1", "0f5ac1", 0, singles(1.5, -2.5, 9, 9)) == doubles(1.5, -2.5)
    assert run("cvtpd2ps xmm0, xmm1", "660f5ac1", UPPER, doubles(1.5, -2.5)) == singles(1.5, -2.5)


def test_conversion_between_formats_quiets_a_nan_and_keeps_its_payload() -> None:
    cpu = execute("cvtss2sd xmm0, xmm1", "f30f5ac1", cr4=SSE, mxcsr=MASKED, xmm0=UPPER, xmm1=0xFF80_0001)
    assert (cpu.xmm0, cpu.mxcsr) == (UPPER | 0xFFF8_0000_2000_0000, MASKED | 1)
    cpu = execute("cvtsd2ss xmm0, xmm1", "f20f5ac1", cr4=SSE, mxcsr=MASKED, xmm1=0x7FF8_0000_2000_0000)
    assert (cpu.xmm0, cpu.mxcsr) == (0x7FC0_0001, MASKED)


# ---- estimates -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(x=st.floats(2.0**-100, 2.0**100, width=32))
def test_estimates_are_within_the_manuals_error(x: float) -> None:
    (reciprocal,) = struct.unpack(
        "<f", run("rcpss xmm0, xmm1", "f30f53c1", 0, singles(x)).to_bytes(4, "little")
    )
    assert abs(reciprocal * x - 1) <= 1.5 * 2**-12
    (root,) = struct.unpack("<f", run("rsqrtss xmm0, xmm1", "f30f52c1", 0, singles(x)).to_bytes(4, "little"))
    assert abs(root * root * x - 1) <= 2 * 1.5 * 2**-12


def test_estimates_take_denormals_for_zero_and_raise_no_flag() -> None:
    source = 0x0000_0001 | 0x8000_0000 << 32 | 0x7F80_0000 << 64 | 0x7F80_0001 << 96
    cpu = execute("rcpps xmm0, xmm1", "0f53c1", cr4=SSE, mxcsr=0, xmm1=source)
    assert cpu.xmm0 == 0x7F80_0000 | 0xFF80_0000 << 32 | 0 << 64 | 0x7FC0_0001 << 96
    assert cpu.mxcsr == 0
    cpu = execute(
        "rsqrtps xmm0, xmm1",
        "0f52c1",
        cr4=SSE,
        mxcsr=0,
        xmm1=0xBF80_0000 << 64 | 0x8000_0001 << 32 | source & 1,
    )
    assert cpu.xmm0 & (1 << 96) - 1 == 0x7F80_0000 | 0xFF80_0000 << 32 | 0xFFC0_0000 << 64
    assert cpu.mxcsr == 0
