"""Sign extension, SETcc, CMOVcc."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from isa.faults import GeneralProtection
from tests.isa.machine import execute, fault_of, make_cpu

M64 = (1 << 64) - 1

# Appendix "EFLAGS Condition Codes" of SDM Vol. 1: the test of each tttn, from (CF, PF, ZF, SF, OF)
CONDITIONS: dict[str, Callable[[int, int, int, int, int], object]] = {
    "o": lambda c, p, z, s, o: o,
    "no": lambda c, p, z, s, o: not o,
    "b": lambda c, p, z, s, o: c,
    "ae": lambda c, p, z, s, o: not c,
    "e": lambda c, p, z, s, o: z,
    "ne": lambda c, p, z, s, o: not z,
    "be": lambda c, p, z, s, o: c or z,
    "a": lambda c, p, z, s, o: not (c or z),
    "s": lambda c, p, z, s, o: s,
    "ns": lambda c, p, z, s, o: not s,
    "p": lambda c, p, z, s, o: p,
    "np": lambda c, p, z, s, o: not p,
    "l": lambda c, p, z, s, o: s != o,
    "ge": lambda c, p, z, s, o: s == o,
    "le": lambda c, p, z, s, o: z or s != o,
    "g": lambda c, p, z, s, o: not z and s == o,
}


@pytest.mark.parametrize(("number", "name"), list(enumerate(CONDITIONS)))
def test_every_condition_over_every_combination_of_flags(number: int, name: str) -> None:
    for c, p, z, s, o in product((0, 1), repeat=5):
        holds = bool(CONDITIONS[name](c, p, z, s, o))
        flags = {"cf": c, "pf": p, "zf": z, "sf": s, "of": o}
        cpu = execute(f"set{name} al", f"0f {0x90 + number:02x} c0", rax=0xEE00 | (not holds), **flags)
        assert cpu.rax == 0xEE00 | holds
        cpu = execute(f"cmov{name} eax, ebx", f"0f {0x40 + number:02x} c3", rax=M64, rbx=5, **flags)
        assert cpu.rax == (5 if holds else 0xFFFF_FFFF)
        cpu = execute(f"j{name} short 0x{0x1012:016x}", f"{0x70 + number:02x} 10", **flags)
        assert cpu.rip == (0x1012 if holds else 0x1002)


def test_conditions_take_any_true_value_of_a_flag() -> None:
    cpu = execute("setge al", "0f 9d c0", sf=0x8000, of=1)
    assert cpu.rax == 1


def test_cmov_reads_its_source_even_where_the_condition_fails() -> None:
    cpu = make_cpu(32, rbx=0x100, zf=0)
    cpu.ds.load_raw(0x10, 0, 0xFF, 0x4093)
    fault = fault_of(cpu, "cmove eax, [ebx]", bytes.fromhex("0f 44 03"))
    assert isinstance(fault, GeneralProtection)


@pytest.mark.parametrize(
    ("code", "text", "before", "rax", "rdx"),
    [
        ("66 98", "cbw", 0x1111_7780, 0x1111_FF80, 0),
        ("98", "cwde", M64 - 0x7FFF, 0xFFFF_8000, 0),
        ("48 98", "cdqe", 0x8000_0000, 0xFFFF_FFFF_8000_0000, 0),
        ("66 99", "cwd", 0x8000, 0x8000, 0xFFFF),
        ("99", "cdq", 0x8000_0000, 0x8000_0000, 0xFFFF_FFFF),
        ("48 99", "cqo", 1 << 63, 1 << 63, M64),
        ("48 99", "cqo", 1, 1, 0),
    ],
)
def test_sign_extension_of_the_accumulator(code: str, text: str, before: int, rax: int, rdx: int) -> None:
    cpu = execute(text, code, rax=before)
    assert (cpu.rax, cpu.rdx) == (rax, rdx)


def test_salc_spreads_the_carry_over_al() -> None:
    assert execute("salc", "d6", 32, rax=0x1200, cf=1).rax == 0x12FF
    assert execute("salc", "d6", 32, rax=0x12FF, cf=0).rax == 0x1200
