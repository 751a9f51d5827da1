"""MSRs of the CPU itself: reset values, reserved bits, read-only ones, features and who answers."""

from __future__ import annotations

import pytest

from isa import msr
from isa.cpu import Cpu
from isa.cpuid import OPTIONAL_FEATURES, feature_set
from isa.exits import SysRegRead, SysRegWrite, VmExit
from isa.faults import GeneralProtection
from isa.msr import read_msr, write_msr
from isa.state import CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE
from tests.isa.machine import make_cpu

EVERYTHING = feature_set(OPTIONAL_FEATURES)
NON_CANONICAL = 0x8000_0000_0000


def machine(features: frozenset[str] = EVERYTHING) -> Cpu:
    """A CPU in 32-bit mode with all features."""
    return make_cpu(32, None, features)


@pytest.mark.parametrize("index", msr.MSRS)
def test_every_msr_reads_within_64_bits_and_reads_back_what_it_accepts(index: int) -> None:
    cpu = machine()
    value = read_msr(cpu, index)
    assert 0 <= value < 1 << 64
    if msr.MSRS[index].write is None:
        with pytest.raises(GeneralProtection, match="read-only"):
            write_msr(cpu, index, value)
    else:
        write_msr(cpu, index, value)
        assert read_msr(cpu, index) == value


@pytest.mark.parametrize(
    ("index", "value", "good"),
    [
        (msr.IA32_PAT, 0x0007_0406_0007_0406, True),
        (msr.IA32_PAT, 0x02, False),
        (msr.IA32_PAT, 3 << 56, False),
        (0x200, 0x8000_0006, True),
        (0x200, 0x8000_0002, False),
        (0x200, 0x100, False),
        (0x200, 1 << 48, False),
        (0x201, 0xFFFF_8000_0800, True),
        (0x201, 0x7FF, False),
        (0x201, 1 << 48, False),
        (0x250, 0x0606_0606_0606_0606, True),
        (0x26F, 0x07, False),
        (0x2FF, 0xC06, True),
        (0x2FF, 0x1006, False),
        (0x2FF, 0x07, False),
        (msr.IA32_FMASK, 0xFFFF_FFFF, True),
        (msr.IA32_FMASK, 1 << 32, False),
        (msr.IA32_LSTAR, NON_CANONICAL, False),
        (msr.IA32_CSTAR, NON_CANONICAL, False),
        (msr.IA32_SYSENTER_EIP, NON_CANONICAL, False),
        (msr.IA32_SYSENTER_ESP, NON_CANONICAL, False),
        (msr.IA32_FS_BASE, NON_CANONICAL, False),
        (msr.IA32_GS_BASE, -NON_CANONICAL & (1 << 64) - 1, True),
        (msr.IA32_KERNEL_GS_BASE, NON_CANONICAL, False),
        (msr.IA32_SYSENTER_CS, 1 << 32, False),
        (msr.IA32_TSC_AUX, 1 << 32, False),
        (msr.IA32_STAR, (1 << 64) - 1, True),
        (msr.IA32_EFER, EFER_SCE | EFER_LME | EFER_NXE, True),
        (msr.IA32_EFER, 1 << 12, False),
    ],
)
def test_reserved_bits_types_and_canonical_form_are_checked(index: int, value: int, good: bool) -> None:
    cpu = machine()
    before = read_msr(cpu, index)
    if good:
        write_msr(cpu, index, value)
        assert read_msr(cpu, index) == value
    else:
        with pytest.raises(GeneralProtection) as caught:
            write_msr(cpu, index, value)
        assert caught.value.error_code == 0
        assert read_msr(cpu, index) == before


@pytest.mark.parametrize(
    ("index", "feature"),
    [
        (msr.IA32_PAT, "PAT"),
        (0x200, "MTRR"),
        (0x2FF, "MTRR"),
        (msr.IA32_MTRRCAP, "MTRR"),
        (msr.IA32_STAR, "SYSCALL"),
        (msr.IA32_FS_BASE, "X64"),
        (msr.IA32_TSC_AUX, "RDTSCP"),
        (msr.IA32_TSC, "TSC"),
    ],
)
def test_an_msr_without_its_feature_is_asked_of_the_vm(index: int, feature: str) -> None:
    cpu = machine(EVERYTHING - {feature})
    with pytest.raises(VmExit) as caught:
        read_msr(cpu, index)
    assert caught.value.reason == SysRegRead(index, 0)
    with pytest.raises(VmExit) as caught:
        write_msr(cpu, index, 5)
    assert caught.value.reason == SysRegWrite(index, 5)


def test_efer_is_there_with_any_of_its_features_and_has_their_bits_only() -> None:
    cpu = machine(EVERYTHING - {"X64", "SYSCALL"})
    write_msr(cpu, msr.IA32_EFER, EFER_NXE)
    assert cpu.efer == EFER_NXE
    for bit in (EFER_LME, EFER_SCE):
        with pytest.raises(GeneralProtection):
            write_msr(cpu, msr.IA32_EFER, bit)
    with pytest.raises(VmExit):
        read_msr(machine(EVERYTHING - {"X64", "SYSCALL", "NX"}), msr.IA32_EFER)


def test_efer_lma_cannot_be_written_and_lme_not_changed_while_paging() -> None:
    cpu = machine()
    write_msr(cpu, msr.IA32_EFER, EFER_LMA | EFER_LME)
    assert cpu.efer == EFER_LME
    cpu.cr0 |= CR0_PG
    cpu.efer |= EFER_LMA
    with pytest.raises(GeneralProtection, match="LME changed"):
        write_msr(cpu, msr.IA32_EFER, 0)
    write_msr(cpu, msr.IA32_EFER, EFER_LME | EFER_NXE)
    assert cpu.efer == EFER_LMA | EFER_LME | EFER_NXE


def test_a_device_over_an_index_wins_over_the_table() -> None:
    cpu = machine()
    cpu.msr_intercepted = lambda index: index == msr.IA32_PAT
    with pytest.raises(VmExit) as caught:
        read_msr(cpu, msr.IA32_PAT)
    assert caught.value.reason == SysRegRead(msr.IA32_PAT, 0)
    cpu.complete((1 << 70) - 1)
    assert read_msr(cpu, msr.IA32_PAT) == (1 << 64) - 1  # an answer is cut to 64 bits


def test_writing_the_tsc_moves_it_and_tsc_adjust_by_the_same_amount() -> None:
    cpu = machine()
    cpu.tsc = lambda: 1000
    write_msr(cpu, msr.IA32_TSC, 5000)
    assert (read_msr(cpu, msr.IA32_TSC), read_msr(cpu, msr.IA32_TSC_ADJUST)) == (5000, 4000)
    cpu.tsc = lambda: 1500
    assert read_msr(cpu, msr.IA32_TSC) == 5500
    write_msr(cpu, msr.IA32_TSC, 0)
    assert read_msr(cpu, msr.IA32_TSC) == 0
    write_msr(cpu, msr.IA32_TSC_ADJUST, 7)
    assert read_msr(cpu, msr.IA32_TSC) == 1507


def test_the_locked_feature_control_cannot_be_written() -> None:
    cpu = machine()
    assert read_msr(cpu, msr.IA32_FEATURE_CONTROL) == 1  # the lock, and no VMX
    with pytest.raises(GeneralProtection):
        write_msr(cpu, msr.IA32_FEATURE_CONTROL, 5)


def test_segment_base_msrs_are_the_hidden_bases() -> None:
    cpu = machine()
    write_msr(cpu, msr.IA32_GS_BASE, 0x1234_5678_9ABC)
    assert cpu.gs.base == 0x1234_5678_9ABC
    cpu.fs.base = 77
    assert read_msr(cpu, msr.IA32_FS_BASE) == 77


@pytest.mark.parametrize(
    ("address", "canonical"),
    [(0, True), (0x7FFF_FFFF_FFFF, True), (NON_CANONICAL, False), (0xFFFF_7FFF_FFFF_FFFF, False),
     (0xFFFF_8000_0000_0000, True), ((1 << 64) - 1, True)],
)  # fmt: skip
def test_canonical_addresses_repeat_bit_47(address: int, canonical: bool) -> None:
    assert msr.is_canonical(address) is canonical
