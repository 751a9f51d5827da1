"""Shifts and rotates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.isa.machine import execute, flags_of, make_cpu, run_one

ALL = {"cf": 1, "pf": 1, "af": 1, "zf": 1, "sf": 1, "of": 1}


@pytest.mark.parametrize("count", [0, 32, 64, 96])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("d3 e0", "shl eax, cl"),
        ("d3 e8", "shr eax, cl"),
        ("d3 f8", "sar eax, cl"),
        ("d3 c0", "rol eax, cl"),
        ("d3 c8", "ror eax, cl"),
        ("d3 d0", "rcl eax, cl"),
        ("d3 d8", "rcr eax, cl"),
        ("0f a5 d8", "shld eax, ebx, cl"),
        ("0f ad d8", "shrd eax, ebx, cl"),
    ],
)
def test_shift_by_zero_keeps_all_flags(count: int, code: str, text: str) -> None:
    cpu = execute(text, code, rax=0x1234_5678, rcx=count, **ALL)
    assert (cpu.rax, flags_of(cpu)) == (0x1234_5678, "CF PF AF ZF SF OF")


def test_shift_by_zero_of_a_32_bit_register_still_clears_its_upper_half() -> None:
    cpu = execute("shl eax, cl", "d3 e0", rax=0xFFFF_FFFF_0000_0001, rcx=0)
    assert cpu.rax == 1


@pytest.mark.parametrize(
    ("code", "text", "value", "count", "result", "carry", "overflow"),
    [
        ("d2 e0", "shl al, cl", 0x81, 1, 0x02, 1, 1),
        ("d2 e0", "shl al, cl", 0x01, 8, 0x00, 1, 1),
        ("d2 e0", "shl al, cl", 0xFF, 9, 0x00, 0, 0),
        ("d2 e8", "shr al, cl", 0x81, 1, 0x40, 1, 1),
        ("d2 e8", "shr al, cl", 0x80, 8, 0x00, 1, 0),
        ("d2 f8", "sar al, cl", 0x81, 1, 0xC0, 1, 0),
        ("d2 f8", "sar al, cl", 0x80, 31, 0xFF, 1, 0),
        ("48 d3 e0", "shl rax, cl", 0x3, 63, 1 << 63, 1, 0),
        ("48 d3 e8", "shr rax, cl", 1 << 63, 63, 1, 0, 0),
    ],
)
def test_shifts_carry_the_last_bit_out(
    code: str, text: str, value: int, count: int, result: int, carry: int, overflow: int
) -> None:
    cpu = execute(text, code, rax=value, rcx=count)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.of)) == (result, bool(carry), bool(overflow))


def test_rotate_by_the_width_changes_the_carry_alone() -> None:
    cpu = execute("rol al, 0x8", "c0 c0 08", rax=0x81, zf=1)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.zf)) == (0x81, True, True)


@pytest.mark.parametrize(("bits", "code", "text"), [
    (8, "d2 d0", "rcl al, cl"), (16, "66 d3 d0", "rcl ax, cl"),
])  # fmt: skip
def test_rotate_through_carry_counts_modulo_the_width_plus_one(bits: int, code: str, text: str) -> None:
    cpu = execute(text, code, rax=0x5A, rcx=bits + 1, cf=1)
    assert (cpu.rax, bool(cpu.cf)) == (0x5A, True)
    cpu = execute(text, code, rax=0, rcx=bits + 2, cf=1)
    assert (cpu.rax, bool(cpu.cf)) == (1, False)


def test_rotate_right_through_carry_moves_the_carry_to_the_top() -> None:
    cpu = execute("rcr rax, 0x1", "48 d1 d8", rax=2, cf=1)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.of)) == (1 << 63 | 1, False, True)


def test_double_shift_left_takes_bits_from_the_source() -> None:
    cpu = execute("shld rax, rbx, 0x8", "48 0f a4 d8 08", rax=0x1122_3344_5566_7788, rbx=0x99 << 56)
    assert cpu.rax == 0x2233_4455_6677_8899
    assert bool(cpu.cf)


def test_double_shift_right_takes_bits_from_the_source() -> None:
    cpu = execute("shrd eax, ebx, 0x10", "0f ac d8 10", rax=0x1122_8344, rbx=0x5566_7788)
    assert cpu.rax == 0x7788_1122
    assert bool(cpu.cf)


def test_double_shift_of_memory_leaves_the_source_alone() -> None:
    cpu = make_cpu(rdi=0x3000, rbx=0xF000)
    cpu.memory.write(0x3000, b"\x34\x12")
    run_one(cpu, "shld [rdi], bx, 0x4", bytes.fromhex("66 0f a4 1f 04"))
    assert (cpu.load(0x3000, 2), cpu.rbx) == (0x234F, 0xF000)


@pytest.mark.parametrize(
    ("code", "text", "result"),
    [
        ("c4 e3 7b f0 c3 04", "rorx eax, ebx, 0x4", 0x1800_0001),
        ("c4 e2 72 f7 c3", "sarx eax, ebx, ecx", 0xF800_0001),
        ("c4 e2 71 f7 c3", "shlx eax, ebx, ecx", 0x0000_0110),
        ("c4 e2 73 f7 c3", "shrx eax, ebx, ecx", 0x0800_0001),
    ],
)
def test_bmi2_shifts_change_no_flag(code: str, text: str, result: int) -> None:
    cpu = execute(text, code, rbx=0x8000_0011, rcx=0x24, **ALL)
    assert (cpu.rax, flags_of(cpu)) == (result, "CF PF AF ZF SF OF")


@given(value=st.integers(0, 0xFFFF), count=st.integers(0, 255), carry=st.booleans())
def test_rotate_right_through_carry_undoes_rotate_left(value: int, count: int, carry: bool) -> None:
    cpu = execute("rcl ax, cl", "66 d3 d0", rax=value, rcx=count, cf=int(carry))
    run_one(cpu, "rcr ax, cl", bytes.fromhex("66 d3 d8"))
    assert (cpu.rax, bool(cpu.cf)) == (value, carry)
