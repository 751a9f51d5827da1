"""AND OR XOR NOT TEST ANDN."""

from __future__ import annotations

import pytest

from tests.isa.machine import execute, flags_of

ALL = {"cf": 1, "pf": 1, "af": 1, "zf": 1, "sf": 1, "of": 1}


@pytest.mark.parametrize(
    ("code", "text", "result", "flags"),
    [
        ("21 d8", "and eax, ebx", 0x8000_000C, "PF SF"),
        ("09 d8", "or eax, ebx", 0xFFFF_FFFF, "PF SF"),
        ("31 d8", "xor eax, ebx", 0x7FFF_FFF3, "PF"),
        ("85 d8", "test eax, ebx", 0x8000_FFFF, "PF SF"),
    ],
)
def test_logic_clears_carry_overflow_and_adjust(code: str, text: str, result: int, flags: str) -> None:
    cpu = execute(text, code, rax=0x8000_FFFF, rbx=0xFFFF_000C, **ALL)
    assert (cpu.rax, flags_of(cpu)) == (result, flags)


def test_xor_of_a_register_with_itself_is_zero() -> None:
    cpu = execute("xor eax, eax", "31 c0", rax=0xFFFF_FFFF_FFFF_FFFF, cf=1)
    assert (cpu.rax, flags_of(cpu)) == (0, "PF ZF")


def test_and_with_a_sign_extended_byte_keeps_the_upper_bits() -> None:
    cpu = execute("and rax, 0xfffffffffffffff0", "48 83 e0 f0", rax=0x1234_5678_9ABC_DEFF)
    assert cpu.rax == 0x1234_5678_9ABC_DEF0


def test_not_changes_no_flag() -> None:
    cpu = execute("not ax", "66 f7 d0", rax=0xFFFF_0F0F, **ALL)
    assert (cpu.rax, flags_of(cpu)) == (0xFFFF_F0F0, "CF PF AF ZF SF OF")


def test_andn_inverts_the_first_source() -> None:
    cpu = execute("andn eax, ebx, ecx", "c4 e2 60 f2 c1", rbx=0x0000_FFFF, rcx=0xF00F_F00F)
    assert cpu.rax == 0xF00F_0000
    assert bool(cpu.sf) and not cpu.zf and not cpu.cf
