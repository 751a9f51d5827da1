"""Kinds of exits: every reason has a number that stays what it is, and its fields."""

from __future__ import annotations

import re

import pytest

from isa import exits
from isa.exits import (
    CpuDown,
    CpuUp,
    ExitReason,
    ExternalInterrupt,
    FailEntry,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    SendIPI,
    SysRegRead,
    SysRegWrite,
)
from pysim_vm.exit_kinds import ANSWERED, KINDS, NAMES, REASONS, fields_of, kind_of


def test_every_exit_reason_has_a_kind() -> None:
    reasons = {
        value for value in vars(exits).values()
        if isinstance(value, type) and issubclass(value, ExitReason) and value is not ExitReason
    }  # fmt: skip
    assert set(REASONS) == reasons
    assert len(REASONS) == len(KINDS) == len(reasons)


def test_the_names_are_those_of_the_classes_in_snake_case() -> None:
    for kind, name in zip(KINDS, NAMES, strict=True):
        assert re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() == kind


def test_the_numbers_of_files_that_exist_stay_what_they_are() -> None:
    assert KINDS[:9] == (
        "mmio_read", "mmio_write", "io_read", "io_write", "sys_reg_read", "sys_reg_write",
        "nested_page_fault", "hypercall", "halt",
    )  # fmt: skip
    assert KINDS[ANSWERED - 1] == "sys_reg_write"


@pytest.mark.parametrize(
    ("reason", "kind", "fields"),
    [
        (MmioRead(0xFEE0_0020, 4), "mmio_read", (0xFEE0_0020, 4, 0)),
        (MmioWrite(0xFEE0_00B0, 4, 7), "mmio_write", (0xFEE0_00B0, 4, 7)),
        (IoRead(0x3F8, 1), "io_read", (0x3F8, 1, 0)),
        (IoWrite(0x3F8, 1, 0x48), "io_write", (0x3F8, 1, 0x48)),
        (SysRegRead(0x1B), "sys_reg_read", (0x1B, 8, 0)),
        (SysRegWrite(0x1B, 9), "sys_reg_write", (0x1B, 8, 9)),
        (NestedPageFault(0x5000, 2), "nested_page_fault", (0x5000, 0, 2)),
        (Hypercall(3, (0, 0, 0, 0, 0, 0)), "hypercall", (3, 0, 0)),
        (Halt(), "halt", (0, 0, 0)),
        (ExternalInterrupt(0x55), "external_interrupt", (0, 0, 0x55)),
        (CpuUp(1, 0x9000), "cpu_up", (1, 0, 0x9000)),
        (CpuDown(3), "cpu_down", (0, 0, 3)),
        (SendIPI(2, vector=0x31), "send_ipi", (2, 0, 0x31)),
        (FailEntry(33, "CR0"), "fail_entry", (0, 0, 33)),
    ],
)
def test_fields_say_where_how_wide_and_what(
    reason: ExitReason, kind: str, fields: tuple[int, int, int]
) -> None:
    assert (KINDS[kind_of(reason)], fields_of(reason)) == (kind, fields)
