"""CPUID's neighbours: time stamps, random numbers, fast system calls and hypercalls."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.cpuid import FEATURE_BITS
from isa.exits import Budget, Hypercall, SysRegRead, SysRegWrite
from isa.faults import Fault, GeneralProtection, InvalidOpcode
from isa.msr import (
    IA32_FMASK,
    IA32_LSTAR,
    IA32_STAR,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_EIP,
    IA32_SYSENTER_ESP,
    IA32_TSC_AUX,
)
from isa.state import CR4_PCE, CR4_TSD, EFER_SCE, M64
from tests.isa.machine import ALL_FEATURES, CODE, fault_of, make_cpu, run_one
from tests.isa.tables import set_level

FEATURES = ALL_FEATURES | frozenset(FEATURE_BITS)
NON_CANONICAL = 0x8000_0000_0000


def machine(bits: int = 64, **registers: int) -> Cpu:
    """A CPU with every feature, iced's and ours."""
    return make_cpu(bits, None, FEATURES, **registers)


def run(cpu: Cpu, raw: str, text: str) -> Cpu:
    """Step over one instruction."""
    return run_one(cpu, text, bytes.fromhex(raw))


def fault(cpu: Cpu, raw: str, text: str) -> Fault:
    """What one instruction raises."""
    return fault_of(cpu, text, bytes.fromhex(raw))


# ---- MSRs, time, random numbers ------------------------------------------------------------------------


def test_rdmsr_and_wrmsr_carry_64_bits_in_edx_and_eax() -> None:
    cpu = machine(rcx=IA32_STAR | 0xDEAD << 32, rax=0xFFFF_FFFF_1122_3344, rdx=0xFFFF_FFFF_5566_7788)
    run(cpu, "0f30", "wrmsr")
    assert cpu.msr[IA32_STAR] == 0x5566_7788_1122_3344
    cpu.rax = cpu.rdx = M64
    run(cpu, "0f32", "rdmsr")
    assert (cpu.rax, cpu.rdx) == (0x1122_3344, 0x5566_7788)


def test_an_unknown_msr_is_asked_of_the_vm() -> None:
    cpu = make_cpu(64, bytes.fromhex("0f320f30"), FEATURES, rcx=0x1234)
    assert cpu.run(9) == SysRegRead(0x1234, 0)
    cpu.complete(0xAABB_CCDD_0000_0001)
    assert cpu.run(9) == SysRegWrite(0x1234, 0xAABB_CCDD_0000_0001)
    assert (cpu.rax, cpu.rdx, cpu.rip) == (1, 0xAABB_CCDD, CODE + 2)


def test_rdtsc_and_rdtscp_read_the_machines_time() -> None:
    cpu = machine(rax=M64, rcx=M64)
    cpu.tsc = lambda: 0x0123_4567_89AB_CDEF
    run(cpu, "0f31", "rdtsc")
    assert (cpu.rax, cpu.rdx, cpu.rcx) == (0x89AB_CDEF, 0x0123_4567, M64)
    cpu.msr[IA32_TSC_AUX] = 7
    run(cpu, "0f01f9", "rdtscp")
    assert cpu.rcx == 7
    run(cpu, "f30fc7f8", "rdpid rax")
    assert cpu.rax == 7


def test_tsd_keeps_the_time_from_ring_3_but_not_from_ring_0() -> None:
    for raw, text in (("0f31", "rdtsc"), ("0f01f9", "rdtscp")):
        assert isinstance(fault(machine(cpl=3, cr4=CR4_TSD), raw, text), GeneralProtection)
        run(machine(cpl=0, cr4=CR4_TSD), raw, text)
        run(machine(cpl=3), raw, text)


def test_rdpmc_has_no_counters() -> None:
    for cpl, cr4 in ((3, 0), (3, CR4_PCE), (0, 0)):
        assert isinstance(fault(machine(cpl=cpl, cr4=cr4), "0f33", "rdpmc"), GeneralProtection)


@pytest.mark.parametrize(
    ("raw", "text", "value"),
    [("0fc7f0", "rdrand eax", 0x5566_7788), ("480fc7f0", "rdrand rax", 0x1122_3344_5566_7788),
     ("660fc7f0", "rdrand ax", M64 - 0xFFFF + 0x7788), ("480fc7f8", "rdseed rax", 0x1122_3344_5566_7788)],
)  # fmt: skip
def test_random_numbers_fill_their_operand_and_set_cf_alone(raw: str, text: str, value: int) -> None:
    cpu = machine(rax=M64)
    cpu.set_rflags(0x8D6)
    cpu.random64 = lambda: 0x1122_3344_5566_7788
    run(cpu, raw, text)
    assert (cpu.rax, cpu.rflags() & 0x8D5) == (value, 1)


# ---- SYSCALL and SYSRET --------------------------------------------------------------------------------


def syscall_machine(level: int, **registers: int) -> Cpu:
    """64-bit mode at `level` with STAR, LSTAR and FMASK as a kernel sets them."""
    cpu = machine(64, **registers)
    cpu.efer |= EFER_SCE
    cpu.msr.update({IA32_STAR: 0x0023_0010 << 32, IA32_LSTAR: 0xFFFF_8000_0000_1000, IA32_FMASK: 0x4_0300})
    set_level(cpu, level)
    return cpu


def test_syscall_goes_to_lstar_in_ring_0_with_masked_flags() -> None:
    cpu = syscall_machine(3, rcx=1, r11=2)
    cpu.set_rflags(0x4_0A97)
    run(cpu, "0f05", "syscall")
    assert (cpu.rip, cpu.rcx, cpu.r11) == (0xFFFF_8000_0000_1000, CODE + 2, 0x4_0A97)
    assert (cpu.cpl, cpu.mode64, cpu.rflags()) == (0, True, 0x897)
    assert (cpu.cs.selector, cpu.ss.selector) == (0x10, 0x18)
    assert (cpu.cs.attributes, cpu.ss.attributes) == (0xA09B, 0xC093)


def test_sysretq_returns_to_64_bit_ring_3() -> None:
    cpu = syscall_machine(0, rcx=0x5000, r11=0x40_0ED7 | 1 << 16 | 1 << 17)
    run(cpu, "480f07", "o64 sysret")
    assert (cpu.rip, cpu.cpl, cpu.mode64) == (0x5000, 3, True)
    assert (cpu.cs.selector, cpu.ss.selector) == (0x33, 0x2B)
    assert (cpu.cs.attributes, cpu.ss.attributes) == (0xA0FB, 0xC0F3)
    assert cpu.rflags() == 0xED7  # RF, VM and reserved bits are not taken


def test_sysretd_returns_to_compatibility_mode() -> None:
    cpu = syscall_machine(0, rcx=0xFFFF_0000_0000_5000, r11=0x202)
    run(cpu, "0f07", "sysret")
    assert (cpu.rip, cpu.cpl, cpu.mode_name()) == (0x5000, 3, "compatibility")
    assert (cpu.cs.selector, cpu.ss.selector, cpu.cs.attributes) == (0x23, 0x2B, 0xC0FB)


def test_sysret_refuses_a_non_canonical_target_before_it_leaves_ring_0() -> None:
    cpu = syscall_machine(0, rcx=NON_CANONICAL)
    assert isinstance(fault(cpu, "480f07", "o64 sysret"), GeneralProtection)
    assert cpu.cpl == 0
    assert isinstance(fault(syscall_machine(3), "480f07", "o64 sysret"), GeneralProtection)


@pytest.mark.parametrize(("raw", "text"), [("0f05", "syscall"), ("0f07", "sysret")])
def test_syscall_and_sysret_need_sce_and_64_bit_mode(raw: str, text: str) -> None:
    cpu = syscall_machine(0)
    cpu.efer &= ~EFER_SCE
    assert isinstance(fault(cpu, raw, text), InvalidOpcode)
    cpu = machine(32)
    cpu.efer |= EFER_SCE
    assert isinstance(fault(cpu, raw, text), InvalidOpcode)


def test_syscall_with_tf_traps_behind_it_unless_fmask_clears_tf() -> None:
    for mask, trapped in ((0x100, 0), (0, 1)):
        cpu = syscall_machine(3)
        cpu.msr[IA32_FMASK] = mask
        cpu.msr[IA32_LSTAR] = 0x2000
        cpu.memory.write(0x2000, b"\x90\xeb\xfe")
        cpu.memory.write(CODE, bytes.fromhex("0f05"))
        cpu.tf = 1
        cpu.idtr.limit = 0
        cpu.request_attention()
        reason = cpu.run(50)
        assert (str(reason).count("#DB") > 0) == bool(trapped)
        assert trapped or isinstance(reason, Budget)


# ---- SYSENTER and SYSEXIT ------------------------------------------------------------------------------


def sysenter_machine(bits: int, level: int, **registers: int) -> Cpu:
    """A machine whose SYSENTER MSRs are set."""
    cpu = machine(bits, **registers)
    entry = 0xFFFF_8000_0000_2000 if bits == 64 else 0x2000
    cpu.msr.update({IA32_SYSENTER_CS: 0x0B, IA32_SYSENTER_EIP: entry, IA32_SYSENTER_ESP: 0x9000})
    set_level(cpu, level)
    return cpu


@pytest.mark.parametrize(("bits", "attributes"), [(32, 0xC09B), (64, 0xA09B)])
def test_sysenter_goes_to_ring_0_with_interrupts_off(bits: int, attributes: int) -> None:
    cpu = sysenter_machine(bits, 3)
    cpu.set_rflags(0x1_0297)
    cpu.rf = 0
    run(cpu, "0f34", "sysenter")
    assert cpu.rip == (0xFFFF_8000_0000_2000 if bits == 64 else 0x2000)
    assert (cpu.rsp, cpu.cpl, cpu.rflags()) == (0x9000, 0, 0x97)
    assert (cpu.cs.selector, cpu.ss.selector, cpu.cs.attributes) == (0x08, 0x10, attributes)


def test_sysexit_returns_to_ring_3_of_its_operand_size() -> None:
    cpu = sysenter_machine(32, 0, rcx=0x7000, rdx=0x3000)
    run(cpu, "0f35", "sysexit")
    assert (cpu.rip, cpu.rsp, cpu.cpl) == (0x3000, 0x7000, 3)
    assert (cpu.cs.selector, cpu.ss.selector) == (0x1B, 0x23)
    cpu = sysenter_machine(64, 0, rcx=0x7000, rdx=0x3000)
    run(cpu, "480f35", "o64 sysexit")
    assert (cpu.cs.selector, cpu.ss.selector, cpu.mode64) == (0x2B, 0x33, True)
    cpu = sysenter_machine(64, 0, rcx=1 << 32 | 0x7000, rdx=0x3000)
    run(cpu, "0f35", "sysexit")
    assert (cpu.mode_name(), cpu.rsp) == ("compatibility", 0x7000)


def test_sysenter_and_sysexit_refuse_a_null_selector_real_mode_and_wrong_rings() -> None:
    for raw, text in (("0f34", "sysenter"), ("0f35", "sysexit")):
        cpu = sysenter_machine(32, 0)
        cpu.msr[IA32_SYSENTER_CS] = 3
        assert isinstance(fault(cpu, raw, text), GeneralProtection)
        assert isinstance(fault(machine(16), raw, text), GeneralProtection)
    assert isinstance(fault(sysenter_machine(32, 3), "0f35", "sysexit"), GeneralProtection)
    for name in ("rcx", "rdx"):
        cpu = sysenter_machine(64, 0, **{name: NON_CANONICAL})
        assert isinstance(fault(cpu, "480f35", "o64 sysexit"), GeneralProtection)


# ---- hypercalls and the rest ---------------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["0f01c1", "0f01d9"])
@pytest.mark.parametrize(("bits", "mask"), [(64, M64), (32, 0xFFFF_FFFF)])
def test_a_hypercall_hands_over_seven_registers_and_takes_one(raw: str, bits: int, mask: int) -> None:
    values = {name: 0x1111_1111_1111_1111 * n for n, name in
              enumerate(("rax", "rdi", "rsi", "rdx", "rcx", "r8", "r9"), 1)}  # fmt: skip
    cpu = make_cpu(bits, bytes.fromhex(raw), FEATURES, **values)
    wide = [values["r8"], values["r9"]] if bits == 64 else [0, 0]
    args = tuple(values[name] & mask for name in ("rdi", "rsi", "rdx", "rcx"))
    assert cpu.run(1) == Hypercall(values["rax"] & mask, (*args, *wide))
    assert cpu.rip == CODE
    cpu.complete(M64 - 1)
    assert isinstance(cpu.run(1), Budget)
    assert (cpu.rax, cpu.rip) == (M64 - 1 & mask, CODE + 3)


def test_clac_and_stac_change_ac_alone_and_only_in_ring_0() -> None:
    cpu = machine(64)
    cpu.set_rflags(0xCD7)
    run(cpu, "0f01cb", "stac")
    assert cpu.rflags() == 0x4_0CD7
    run(cpu, "0f01ca", "clac")
    assert cpu.rflags() == 0xCD7
    for raw, text in (("0f01cb", "stac"), ("0f01ca", "clac")):
        assert isinstance(fault(machine(64, cpl=3), raw, text), InvalidOpcode)


@pytest.mark.parametrize(("raw", "text"), [("0faa", "rsm"), ("0f37", "getsec")])
def test_rsm_and_getsec_are_invalid_outside_their_modes(raw: str, text: str) -> None:
    assert isinstance(fault(machine(64), raw, text), InvalidOpcode)
