"""Decimal adjustment, checked by decimal arithmetic."""

from __future__ import annotations

from itertools import product

import pytest

from isa.faults import DivideError, InvalidOpcode
from tests.isa.machine import execute, fault_of, make_cpu

NUMBERS = [tens * 16 + ones for tens, ones in product((0, 4, 9), (0, 5, 9))]
PAIRS = list(product(NUMBERS, NUMBERS))


def decimal(packed: int) -> int:
    return (packed >> 4) * 10 + (packed & 15)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_daa_makes_a_binary_sum_of_packed_decimals_decimal(a: int, b: int) -> None:
    cpu = execute(f"add al, {b:#x}", f"04 {b:02x}", 32, rax=a)
    cpu = execute("daa", "27", 32, rax=cpu.rax, cf=int(bool(cpu.cf)), af=int(bool(cpu.af)))
    assert decimal(cpu.rax) + 100 * bool(cpu.cf) == decimal(a) + decimal(b)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_das_makes_a_binary_difference_of_packed_decimals_decimal(a: int, b: int) -> None:
    cpu = execute(f"sub al, {b:#x}", f"2c {b:02x}", 32, rax=a)
    cpu = execute("das", "2f", 32, rax=cpu.rax, cf=int(bool(cpu.cf)), af=int(bool(cpu.af)))
    assert decimal(cpu.rax) - 100 * bool(cpu.cf) == decimal(a) - decimal(b)


def test_das_that_borrows_in_the_low_digit_alone_sets_carry() -> None:
    cpu = execute("das", "2f", 32, rax=0x02, af=1)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.af)) == (0xFC, True, True)


def test_aaa_carries_into_ah() -> None:
    cpu = execute("aaa", "37", 32, rax=0x0100 | 0x0C)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.af)) == (0x0202, True, True)


def test_aaa_of_a_digit_clears_carry_and_the_upper_half_of_al() -> None:
    cpu = execute("aaa", "37", 32, rax=0x0135, cf=1)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.af)) == (0x0105, False, False)


def test_aas_borrows_from_ah() -> None:
    cpu = execute("aas", "3f", 32, rax=0x02FF, af=1)
    assert (cpu.rax, bool(cpu.cf)) == (0x0109, True)


def test_aam_splits_al_into_digits_of_any_base() -> None:
    assert execute("aam", "d4 0a", 32, rax=63).rax == 0x0603
    assert execute("aam 0x10", "d4 10", 32, rax=0x3C).rax == 0x030C


def test_aam_with_base_zero_is_a_divide_error() -> None:
    assert isinstance(fault_of(make_cpu(32, rax=5), "aam 0x0", bytes.fromhex("d4 00")), DivideError)


def test_aad_joins_two_digits_and_clears_ah() -> None:
    cpu = execute("aad", "d5 0a", 32, rax=0xFFFF_0603)
    assert cpu.rax == 0xFFFF_003F
    assert not cpu.zf and not cpu.sf


@pytest.mark.parametrize("code", ["27", "2f", "37", "3f", "d4 0a", "d5 0a"])
def test_64_bit_mode_has_no_decimal_instruction(code: str) -> None:
    cpu = make_cpu(64, bytes.fromhex(code))
    with pytest.raises(InvalidOpcode):
        cpu.code[cpu.rip].function(cpu)
