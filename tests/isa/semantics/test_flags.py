"""Single flags, CLI and STI under every privilege rule, LAHF and SAHF."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.faults import GeneralProtection
from isa.state import CR0_PE, CR4_PVI, CR4_VME, NO_SHADOW, STI_SHADOW
from tests.isa.machine import ALL_FEATURES, execute, fault_of, flags_of, make_cpu, run_one


def test_single_flag_instructions() -> None:
    assert not execute("clc", "f8", cf=1).cf
    assert execute("stc", "f9").cf
    assert execute("cmc", "f5", cf=0).cf
    assert not execute("cmc", "f5", cf=1).cf
    assert execute("std", "fd").df
    assert not execute("cld", "fc", df=1).df


def test_lahf_and_sahf_carry_five_flags() -> None:
    cpu = execute("lahf", "9f", rax=0x1122, cf=1, zf=1, sf=1, of=1)
    assert cpu.rax == 0xC322
    cpu = execute("sahf", "9e", rax=0x1400, cf=1, of=1)
    assert flags_of(cpu) == "PF AF OF"


def machine(mode: str, cpl: int, iopl: int, cr4: int, **flags: int) -> Cpu:
    cpu = make_cpu(32 if mode == "protected" else 16, None, ALL_FEATURES, **flags)
    if mode == "v86":
        cpu.cr0 |= CR0_PE
        cpu.vm = 1
        for segment in cpu.segments:
            segment.load_v86(0)
    cpu.cpl, cpu.iopl, cpu.cr4 = cpl, iopl, cr4
    cpu.update_mode()
    return cpu


# SDM Vol. 2, CLI and STI, decision tables: what happens to IF and VIF
@pytest.mark.parametrize(
    ("mode", "cpl", "iopl", "cr4", "what"),
    [
        ("real", 0, 0, 0, "IF"),
        ("protected", 0, 0, 0, "IF"),
        ("protected", 3, 3, 0, "IF"),
        ("protected", 2, 1, CR4_PVI, "#GP"),
        ("protected", 3, 2, CR4_PVI, "VIF"),
        ("protected", 3, 2, CR4_VME, "#GP"),
        ("protected", 3, 0, 0, "#GP"),
        ("v86", 3, 3, 0, "IF"),
        ("v86", 3, 2, CR4_VME, "VIF"),
        ("v86", 3, 2, CR4_PVI, "#GP"),
        ("v86", 3, 0, 0, "#GP"),
    ],
)
def test_cli_and_sti_follow_the_decision_table(mode: str, cpl: int, iopl: int, cr4: int, what: str) -> None:
    cpu = machine(mode, cpl, iopl, cr4, if_=1, vif=1)
    if what == "#GP":
        assert isinstance(fault_of(cpu, "cli", b"\xfa"), GeneralProtection)
        assert isinstance(fault_of(cpu, "sti", b"\xfb"), GeneralProtection)
        return
    run_one(cpu, "cli", b"\xfa")
    assert (cpu.if_, cpu.vif) == ((0, 1) if what == "IF" else (1, 0))
    run_one(cpu, "sti", b"\xfb")
    assert (cpu.if_, cpu.vif) == (1, 1)


@pytest.mark.parametrize(("mode", "cr4"), [("protected", CR4_PVI), ("v86", CR4_VME)])
def test_virtual_sti_with_an_interrupt_pending_faults(mode: str, cr4: int) -> None:
    cpu = machine(mode, 3, 0, cr4, vip=1)
    fault = fault_of(cpu, "sti", b"\xfb")
    assert isinstance(fault, GeneralProtection) and "VIP" in fault.why


def test_sti_holds_interrupts_back_for_one_instruction() -> None:
    cpu = make_cpu(16, bytes.fromhex("fb 90 90"), rsp=0x8000)
    cpu.memory.write(4 * 0x20, (0x5000).to_bytes(4, "little"))
    cpu.injected.append(0x20)
    cpu.step()
    assert (cpu.rip, cpu.shadow) == (0x1001, STI_SHADOW)
    cpu.step()
    assert (cpu.rip, cpu.shadow) == (0x1002, NO_SHADOW)
    cpu.step()
    assert cpu.rip == 0x5000
    assert cpu.load(0x8000 - 6, 2) == 0x1002


def test_sti_with_interrupts_enabled_already_has_no_shadow() -> None:
    cpu = execute("sti", "fb", if_=1)
    assert cpu.shadow == NO_SHADOW
