"""Multiplication and division."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isa.faults import DivideError
from tests.isa.machine import execute, fault_of, make_cpu

M64 = (1 << 64) - 1


def test_mul_of_bytes_fills_ax_only() -> None:
    cpu = execute("mul bl", "f6 e3", rax=0x1111_11FF, rbx=0xFF, rdx=0x77)
    assert (cpu.rax, cpu.rdx, bool(cpu.cf), bool(cpu.of)) == (0x1111_FE01, 0x77, True, True)


def test_mul_of_words_fills_dx_ax_and_keeps_their_upper_parts() -> None:
    cpu = execute("mul bx", "66 f7 e3", rax=0xAAAA_FFFF, rdx=0xBBBB_0000, rbx=0x10)
    assert (cpu.rax, cpu.rdx) == (0xAAAA_FFF0, 0xBBBB_000F)


def test_mul_that_fits_the_lower_half_clears_carry() -> None:
    cpu = execute("mul rbx", "48 f7 e3", rax=3, rbx=5, rdx=9, cf=1, of=1)
    assert (cpu.rax, cpu.rdx, bool(cpu.cf), bool(cpu.of)) == (15, 0, False, False)


def test_imul_wide_is_signed() -> None:
    cpu = execute("imul ebx", "f7 eb", rax=0xFFFF_FFFF, rbx=2)
    assert (cpu.rax, cpu.rdx, bool(cpu.cf)) == (0xFFFF_FFFE, 0xFFFF_FFFF, False)


def test_imul_truncates_and_tells_by_carry_and_overflow() -> None:
    cpu = execute("imul eax, ebx", "0f af c3", rax=0x4000_0000, rbx=4)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.of)) == (0, True, True)


def test_imul_by_a_sign_extended_immediate() -> None:
    cpu = execute("imul rax, rbx, 0xffffffffffffffff", "48 6b c3 ff", rbx=7)
    assert (cpu.rax, bool(cpu.cf)) == (M64 - 6, False)


def test_mulx_keeps_flags_and_the_upper_half_wins_in_a_shared_register() -> None:
    cpu = execute("mulx rax, rax, rbx", "c4 e2 fb f6 c3", rdx=1 << 63, rbx=4, cf=1, zf=1)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.zf)) == (2, True, True)


def test_div_leaves_quotient_and_remainder() -> None:
    cpu = execute("div rbx", "48 f7 f3", rdx=1, rax=5, rbx=1 << 32)
    assert (cpu.rax, cpu.rdx) == (1 << 32, 5)


def test_div_of_bytes_puts_the_remainder_into_ah() -> None:
    cpu = execute("div bl", "f6 f3", rax=0x1_0107, rbx=0x10)
    assert cpu.rax == 0x1_0710


@pytest.mark.parametrize(
    ("dividend", "divisor", "quotient", "remainder"), [(-7, 2, -3, -1), (7, -2, -3, 1), (-7, -2, 3, -1)]
)
def test_idiv_truncates_towards_zero(dividend: int, divisor: int, quotient: int, remainder: int) -> None:
    cpu = execute(
        "idiv ebx", "f7 fb", rax=dividend & 0xFFFF_FFFF, rdx=dividend >> 32 & 0xFFFF_FFFF,
        rbx=divisor & 0xFFFF_FFFF,
    )  # fmt: skip
    assert (cpu.rax, cpu.rdx) == (quotient & 0xFFFF_FFFF, remainder & 0xFFFF_FFFF)


@pytest.mark.parametrize(
    ("code", "text", "registers"),
    [
        ("f7 f3", "div ebx", {"rax": 1, "rbx": 0}),
        ("f7 f3", "div ebx", {"rdx": 5, "rbx": 5}),
        ("f7 fb", "idiv ebx", {"rax": 1, "rbx": 0}),
        ("48 f7 fb", "idiv rbx", {"rax": 1 << 63, "rdx": M64, "rbx": M64}),
        ("f6 fb", "idiv bl", {"rax": 0x0080, "rbx": 1}),
    ],
)
def test_division_by_zero_or_with_a_quotient_too_large_is_a_divide_error(
    code: str, text: str, registers: dict[str, int]
) -> None:
    cpu = make_cpu()
    for name, value in registers.items():
        setattr(cpu, name, value)
    assert isinstance(fault_of(cpu, text, bytes.fromhex(code)), DivideError)


def test_idiv_of_the_smallest_quotient_is_no_error() -> None:
    cpu = execute("idiv bl", "f6 fb", rax=0xFF80, rbx=1)
    assert cpu.rax == 0x0080


@given(a=st.integers(0, M64), b=st.integers(1, M64))
def test_div_undoes_mul(a: int, b: int) -> None:
    cpu = execute("mul rbx", "48 f7 e3", rax=a, rbx=b)
    assert cpu.rdx << 64 | cpu.rax == a * b
    cpu = execute("div rbx", "48 f7 f3", rax=cpu.rax, rdx=cpu.rdx, rbx=b)
    assert (cpu.rax, cpu.rdx) == (a, 0)
