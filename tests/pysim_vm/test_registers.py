"""Registers by name: whole registers, their parts, flags, selectors, and how writes extend."""

from __future__ import annotations

import pytest

from pysim_vm.registers import Registers
from tests.isa.machine import make_cpu


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rax", 0x1122_3344_5566_7788), ("eax", 0x5566_7788), ("ax", 0x7788), ("al", 0x88), ("ah", 0x77),
        ("RAX", 0x1122_3344_5566_7788),
    ],
)  # fmt: skip
def test_parts_read_their_bits(name: str, value: int) -> None:
    assert Registers(make_cpu(rax=0x1122_3344_5566_7788))[name] == value


@pytest.mark.parametrize(
    ("name", "whole", "expected"),
    [
        ("rax", "rax", 0xFFFF_FFFF_FFFF_FFFF),
        ("eax", "rax", 0xFFFF_FFFF),
        ("ax", "rax", 0x1122_3344_5566_FFFF),
        ("al", "rax", 0x1122_3344_5566_77FF),
        ("ah", "rax", 0x1122_3344_5566_FF88),
        ("r9d", "r9", 0xFFFF_FFFF),
        ("r9w", "r9", 0x1122_3344_5566_FFFF),
        ("r9b", "r9", 0x1122_3344_5566_77FF),
        ("sil", "rsi", 0x1122_3344_5566_77FF),
    ],
)
def test_writing_a_part_extends_as_the_cpu_does(name: str, whole: str, expected: int) -> None:
    regs = Registers(make_cpu())
    regs[whole] = 0x1122_3344_5566_7788
    regs[name] = -1
    assert regs[whole] == expected


def test_attributes_are_the_same_registers() -> None:
    regs = Registers(make_cpu())
    regs.rbx = 5
    assert (regs.rbx, regs["rbx"], regs.bl) == (5, 5, 5)


def test_flags_read_and_write_one_bit() -> None:
    regs = Registers(make_cpu())
    regs.zf = 1
    regs.iopl = 3
    assert (regs.zf, regs.cf, regs.rflags) == (1, 0, 0x3042)
    regs.rflags = 0x1
    assert (regs.zf, regs.cf, regs.iopl) == (0, 1, 0)


def test_vector_registers_are_128_and_256_bits() -> None:
    regs = Registers(make_cpu())
    regs["ymm3"] = (1 << 256) - 1
    regs.xmm3 = 5
    assert regs.ymm3 == (1 << 256) - (1 << 128) + 5
    assert regs.xmm3 == 5


def test_selectors_and_bases_are_visible() -> None:
    regs = Registers(make_cpu())
    assert (regs.cs, regs.ds, regs.cs_base, regs.gdtr_base) == (8, 16, 0, 0)
    regs.ds = 0x1_0023
    assert regs.ds == 0x23


def test_writing_a_control_register_changes_the_mode_at_once() -> None:
    cpu = make_cpu(32)
    Registers(cpu).cr0 = 0
    assert cpu.mode_name() == "real"


@pytest.mark.parametrize("name", ["rzx", "ymm16", "ymm", "cr1", ""])
def test_an_unknown_name_is_a_key_error_that_names_some(name: str) -> None:
    with pytest.raises(KeyError, match="try rax, eax, al, xmm0, rflags"):
        Registers(make_cpu())[name]


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    regs = Registers(make_cpu())
    with pytest.raises(AttributeError, match="no register 'rzx'"):
        _ = regs.rzx
    with pytest.raises(AttributeError, match="no register 'rzx'"):
        regs.rzx = 1


def test_a_base_cannot_be_written_by_name() -> None:
    with pytest.raises(AttributeError, match="cannot be written this way"):
        Registers(make_cpu()).cs_base = 1


def test_moving_rip_drops_the_answers_to_the_instruction_there() -> None:
    cpu = make_cpu()
    cpu.complete(7)
    Registers(cpu).eip = 0x2000
    assert (cpu.answers, cpu.rip) == ([], 0x2000)


def test_the_dump_shows_general_registers_rip_and_rflags() -> None:
    regs = Registers(make_cpu(rax=0xABC))
    assert list(regs.as_dict())[:3] == ["rax", "rcx", "rdx"]
    assert list(regs.as_dict())[-2:] == ["rip", "rflags"]
    assert repr(regs).splitlines()[0].startswith("   rax 0000000000000abc  ")
