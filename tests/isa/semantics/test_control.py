"""Control and debug registers, LMSW, HLT, MWAIT, INVPCID and XCR0: what they refuse and what they change."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.cpuid import FEATURE_BITS
from isa.exits import Halt
from isa.faults import DebugException, Fault, GeneralProtection, InvalidOpcode
from isa.semantics.control import CR4_BITS
from isa.state import (
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PSE,
    CR4_SMEP,
    CR4_UMIP,
    EFER_LMA,
    EFER_LME,
    M64,
)
from tests.isa.machine import ALL_FEATURES, fault_of, make_cpu, run_one

FEATURES = ALL_FEATURES | frozenset(FEATURE_BITS)
MOV_CR0_EAX, MOV_CR3_EAX, MOV_CR4_EAX = (bytes.fromhex(f"0f22{modrm}") for modrm in ("c0", "d8", "e0"))


def machine(bits: int = 32, **registers: int) -> Cpu:
    """A CPU with every feature, iced's and ours."""
    return make_cpu(bits, None, FEATURES, **registers)


def refused(cpu: Cpu, text: str, raw: bytes) -> Fault:
    """The #GP(0) that the instruction raises."""
    fault = fault_of(cpu, text, raw)
    assert isinstance(fault, GeneralProtection) and fault.error_code == 0, fault
    return fault


# ---- CR0 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [CR0_PG, CR0_PG | CR0_TS, CR0_NW, CR0_PE | CR0_NW])
def test_cr0_refuses_paging_without_protection_and_nw_without_cd(value: int) -> None:
    cpu = machine(rax=value)
    refused(cpu, "mov cr0, eax", MOV_CR0_EAX)


def test_cr0_ignores_reserved_bits_of_its_lower_half_and_et_stays_set() -> None:
    cpu = run_one(machine(rax=0x6005_FFFF & ~CR0_ET | 0x10_0000), "mov cr0, eax", MOV_CR0_EAX)
    assert (
        cpu.cr0 == CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | 0x20 | 0x1_0000 | 0x4_0000 | CR0_CD | CR0_NW
    )


def test_cr0_refuses_bits_of_its_upper_half() -> None:
    refused(machine(64, rax=1 << 32 | CR0_PE), "mov cr0, rax", MOV_CR0_EAX)


def test_setting_pe_enters_protected_mode_with_the_segments_as_they_are() -> None:
    cpu = run_one(machine(16, rax=CR0_PE), "mov cr0, eax", MOV_CR0_EAX)
    assert cpu.mode_name() == "16-bit protected" and cpu.cpl == 0


def test_clearing_pe_enters_real_mode_in_ring_0() -> None:
    cpu = run_one(machine(32, rax=0), "mov cr0, eax", MOV_CR0_EAX)
    assert (cpu.mode_name(), cpu.cpl, cpu.code_bits) == ("real", 0, 32)


def test_paging_with_lme_needs_pae_and_activates_long_mode() -> None:
    cpu = machine(rax=CR0_PE | CR0_PG, efer=EFER_LME)
    refused(cpu, "mov cr0, eax", MOV_CR0_EAX)
    cpu.cr4 = CR4_PAE
    cpu.tr.load_raw(0x28, 0, 0x67, 0x83)
    refused(cpu, "mov cr0, eax", MOV_CR0_EAX)  # a 16-bit TSS
    cpu.tr.load_raw(0x28, 0, 0x67, 0x8B)
    cpu.cs.l = 1
    refused(cpu, "mov cr0, eax", MOV_CR0_EAX)
    cpu.cs.l = 0
    cpu.memory.write(0x1_0000, (0x1_1003).to_bytes(8, "little"))
    cpu.memory.write(0x1_1000, (0x83).to_bytes(8, "little"))  # the first GiB onto itself
    cpu.cr3 = 0x1_0000
    run_one(cpu, "mov cr0, eax", MOV_CR0_EAX)
    assert cpu.efer == EFER_LME | EFER_LMA and cpu.mode_name() == "compatibility"
    cpu.rax = CR0_PE
    run_one(cpu, "mov cr0, eax", MOV_CR0_EAX)
    assert cpu.efer == EFER_LME and cpu.mode_name() == "32-bit protected"


def test_paging_cannot_be_switched_off_in_64_bit_mode_or_with_pcids() -> None:
    cpu = machine(64, rax=CR0_PE)
    refused(cpu, "mov cr0, rax", MOV_CR0_EAX)
    cpu = machine(32, rax=CR0_PE)
    cpu.cr4 |= CR4_PCIDE
    refused(cpu, "mov cr0, eax", MOV_CR0_EAX)


def test_paging_with_pae_loads_the_pdptes_and_refuses_bad_ones() -> None:
    cpu = machine(rax=CR0_PE | CR0_PG, cr4=CR4_PAE, cr3=0x1_0000)
    cpu.memory.write(0x1_0000, (0x2_0002 | 1).to_bytes(8, "little"))
    refused(cpu, "mov cr0, eax", MOV_CR0_EAX)
    assert cpu.cr0 & CR0_PG == 0
    cpu.memory.write(0x1_0000, (0x2_0001).to_bytes(8, "little"))
    run_one(cpu, "mov cr0, eax", MOV_CR0_EAX)
    assert cpu.pdptes == [0x2_0001, 0, 0, 0]


def test_clts_and_lmsw_touch_the_low_bits_only_and_lmsw_cannot_clear_pe() -> None:
    cpu = machine(cr0=CR0_PE | CR0_ET | CR0_TS | CR0_WP | CR0_CD)
    run_one(cpu, "clts", bytes.fromhex("0f06"))
    assert cpu.cr0 == CR0_PE | CR0_ET | CR0_WP | CR0_CD
    cpu.rax = 0xFFFF_FFF0 | CR0_TS | CR0_MP
    run_one(cpu, "lmsw ax", bytes.fromhex("0f01f0"))
    assert cpu.cr0 == CR0_PE | CR0_ET | CR0_WP | CR0_CD | CR0_TS | CR0_MP


def test_lmsw_can_enter_protected_mode() -> None:
    cpu = run_one(machine(16, rax=CR0_PE), "lmsw ax", bytes.fromhex("0f01f0"))
    assert cpu.protected


@pytest.mark.parametrize(
    ("raw", "text", "kept"), [("0f01e0", "smsw eax", 0), ("660f01e0", "smsw ax", 0xABCD_0000)]
)
def test_smsw_stores_as_much_of_cr0_as_fits(raw: str, text: str, kept: int) -> None:
    cpu = machine(rax=0xABCD_1234, cr0=0x8005_0033)
    cpu.cr0 &= ~CR0_PG
    run_one(cpu, text, bytes.fromhex(raw))
    assert cpu.rax == (0x0005_0033 if not kept else 0xABCD_0033)


def test_umip_hides_the_machine_status_word_from_ring_3() -> None:
    cpu = machine(cpl=3, cr4=CR4_UMIP)
    refused(cpu, "smsw eax", bytes.fromhex("0f01e0"))
    run_one(machine(cpl=3), "smsw eax", bytes.fromhex("0f01e0"))


# ---- CR3, CR4, CR8 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", CR4_BITS)
def test_a_cr4_bit_is_reserved_without_its_feature(feature: str) -> None:
    bit = CR4_BITS[feature] & -CR4_BITS[feature]
    cpu = make_cpu(32, None, FEATURES - {feature}, rax=bit)
    refused(cpu, "mov cr4, eax", MOV_CR4_EAX)
    if feature != "PCID":  # needs long mode as well
        cpu = run_one(machine(rax=bit), "mov cr4, eax", MOV_CR4_EAX)
        assert cpu.cr4 == bit


@pytest.mark.parametrize("bit", [6, 13, 14, 15, 19, 22, 31])
def test_a_cr4_bit_that_this_cpu_lacks_is_reserved(bit: int) -> None:
    refused(machine(rax=1 << bit), "mov cr4, eax", MOV_CR4_EAX)


def test_pcide_needs_long_mode_and_a_cr3_without_low_bits() -> None:
    cpu = machine(64, rax=CR4_PAE | CR4_PCIDE, cr4=CR4_PAE, cr3=0x1)
    refused(cpu, "mov cr4, rax", MOV_CR4_EAX)
    cpu.cr3 = 0x1000
    run_one(cpu, "mov cr4, rax", MOV_CR4_EAX)
    refused(machine(32, rax=CR4_PCIDE), "mov cr4, eax", MOV_CR4_EAX)


def test_pae_cannot_be_cleared_in_long_mode() -> None:
    refused(machine(64, rax=0, cr4=CR4_PAE), "mov cr4, rax", MOV_CR4_EAX)


def test_cr4_that_turns_pae_or_smep_with_paging_on_reloads_the_pdptes() -> None:
    cpu = machine(cr3=0x1_0000, cr4=CR4_PSE)
    cpu.cr0 |= CR0_PG
    cpu.memory.write(0x1_0000, (0x83).to_bytes(8, "little"))  # as 32-bit tables: a 4 MiB page
    cpu.flush_tlb()
    cpu.rax = CR4_PAE | CR4_SMEP
    refused(cpu, "mov cr4, eax", MOV_CR4_EAX)  # 0x83 has reserved bits of a PDPTE
    assert cpu.cr4 == CR4_PSE


@pytest.mark.parametrize(
    ("bits", "cr4", "value", "result"),
    [
        (32, 0, 0x1234_5018, 0x1234_5018),
        (64, 0, 0xFFFF_FFFF_F000, 0xFFFF_FFFF_F000),
        (64, 0, 1 << 48, None),
        (64, 0, 1 << 63 | 0x1000, None),
        (64, CR4_PCIDE, 1 << 63 | 0x1123, 0x1123),
    ],
)
def test_cr3_keeps_an_address_and_refuses_reserved_bits(
    bits: int, cr4: int, value: int, result: int | None
) -> None:
    cpu = machine(bits, rax=value, cr4=cr4)
    text = "mov cr3, rax" if bits == 64 else "mov cr3, eax"
    if result is None:
        refused(cpu, text, MOV_CR3_EAX)
    else:
        assert run_one(cpu, text, MOV_CR3_EAX).cr3 == result


def test_cr8_takes_four_bits_and_tells_the_local_apic() -> None:
    told: list[int] = []
    cpu = machine(64, rax=9)
    cpu.on_cr8 = told.append
    run_one(cpu, "mov cr8, rax", bytes.fromhex("440f22c0"))
    assert (cpu.cr8, told) == (9, [9])
    cpu.read_cr8 = lambda: 5
    run_one(cpu, "mov rax, cr8", bytes.fromhex("440f20c0"))
    assert cpu.rax == 5
    cpu.rax = 16
    refused(cpu, "mov cr8, rax", bytes.fromhex("440f22c0"))


def test_reads_give_what_was_written_and_unknown_registers_are_invalid() -> None:
    cpu = machine(64, cr2=0x1122_3344_5566)
    run_one(cpu, "mov rax, cr2", bytes.fromhex("0f20d0"))
    assert cpu.rax == 0x1122_3344_5566
    for raw in ("0f20c8", "0f20e8", "0f20f0", "0f20f8", "440f20c8"):  # CR1, CR5, CR6, CR7, CR9
        cpu = make_cpu(64, bytes.fromhex(raw))
        cpu.idtr.limit = 0
        assert "#UD" in str(cpu.step())


# ---- debug registers -----------------------------------------------------------------------------------


def test_debug_registers_keep_their_fixed_bits() -> None:
    cpu = machine(32, rax=0)
    run_one(cpu, "mov dr6, eax", bytes.fromhex("0f23f0"))
    run_one(cpu, "mov dr7, eax", bytes.fromhex("0f23f8"))
    assert (cpu.dr6, cpu.dr7) == (0xFFFF_0FF0, 0x400)
    cpu.rax = 0xFFFF_DF00  # no breakpoint enabled
    run_one(cpu, "mov dr6, eax", bytes.fromhex("0f23f0"))
    run_one(cpu, "mov dr7, eax", bytes.fromhex("0f23f8"))
    assert (cpu.dr6, cpu.dr7) == (0xFFFF_CFF0, 0xFFFF_0F00)


@pytest.mark.parametrize(("raw", "text"), [("0f23f0", "mov dr6, rax"), ("0f23f8", "mov dr7, rax")])
def test_dr6_and_dr7_refuse_upper_halves(raw: str, text: str) -> None:
    refused(machine(64, rax=1 << 32), text, bytes.fromhex(raw))


def test_dr4_and_dr5_are_dr6_and_dr7_without_cr4_de() -> None:
    cpu = machine(32, rax=0)
    run_one(cpu, "mov dr4, eax", bytes.fromhex("0f23e0"))
    assert cpu.dr6 == 0xFFFF_0FF0
    cpu.cr4 |= CR4_DE
    assert isinstance(fault_of(cpu, "mov eax, dr5", bytes.fromhex("0f21e8")), InvalidOpcode)


def test_general_detect_traps_every_access_before_it_happens() -> None:
    cpu = machine(32, dr7=0x400 | 1 << 13, dr3=7)
    fault = fault_of(cpu, "mov eax, dr3", bytes.fromhex("0f21d8"))
    assert isinstance(fault, DebugException) and fault.dr6 == 1 << 13 and not fault.is_trap


def test_a_breakpoint_address_is_64_bits_wide() -> None:
    cpu = run_one(machine(64, rax=M64), "mov dr2, rax", bytes.fromhex("0f23d0"))
    run_one(cpu, "mov rcx, dr2", bytes.fromhex("0f21d1"))
    assert cpu.rcx == M64


# ---- waiting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "text"), [("f4", "hlt"), ("0f01c9", "mwait")])
def test_hlt_and_mwait_stop_the_cpu(raw: str, text: str) -> None:
    cpu = run_one(machine(32), text, bytes.fromhex(raw))
    assert cpu.halted and cpu.run(100) == Halt()


def test_monitor_checks_its_address_extension_and_ring() -> None:
    monitor = bytes.fromhex("0f01c8")
    cpu = machine(32, rax=0x4000)
    run_one(cpu, "monitor", monitor)
    cpu.rcx = 1
    refused(cpu, "monitor", monitor)
    cpu = machine(32, rax=0x1_0000_4000)
    cpu.ds.load_raw(0x10, 0, 0xFFF, 0x93)
    refused(cpu, "monitor", monitor)
    cpu = machine(32, rax=0x1_0010)
    cpu.ds.load_raw(0x10, 0, 0xFFF, 0x93)
    run_one(cpu, "a16 monitor", b"\x67" + monitor)  # AX alone is the address
    for raw, text in ((monitor, "monitor"), (bytes.fromhex("0f01c9"), "mwait")):
        assert isinstance(fault_of(machine(32, cpl=3), text, raw), InvalidOpcode)


def test_mwait_refuses_extensions_that_cpuid_does_not_tell_of() -> None:
    for rcx in (1, 2):
        refused(machine(32, rcx=rcx), "mwait", bytes.fromhex("0f01c9"))
    assert run_one(machine(32, rcx=0), "mwait", bytes.fromhex("0f01c9")).halted


# ---- translations and caches ---------------------------------------------------------------------------

INVPCID = bytes.fromhex("660f388203")


@pytest.mark.parametrize(
    ("kind", "low", "high", "pcide", "good"),
    [
        (0, 0, 0x1000, False, True),
        (0, 0, 1 << 63, False, False),
        (0, 5, 0, False, False),
        (0, 5, 0, True, True),
        (1, 1 << 12, 0, True, False),
        (2, 0xFFF, M64, False, True),
        (3, 0xFFF, M64, False, True),
        (2, 1 << 12, 0, True, False),
        (3, 1 << 63, 0, True, False),
        (4, 0, 0, False, False),
        (M64, 0, 0, False, False),
    ],
)
def test_invpcid_checks_its_type_and_descriptor(
    kind: int, low: int, high: int, pcide: bool, good: bool
) -> None:
    cpu = machine(64, rax=kind, rbx=0x4000)
    cpu.cr4 |= CR4_PCIDE if pcide else 0
    cpu.memory.write(0x4000, low.to_bytes(8, "little") + high.to_bytes(8, "little"))
    if good:
        run_one(cpu, "invpcid rax, [rbx]", INVPCID)
    else:
        refused(cpu, "invpcid rax, [rbx]", INVPCID)


@pytest.mark.parametrize(("raw", "text"), [("0f08", "invd"), ("0f09", "wbinvd"), ("f30f09", "wbnoinvd")])
def test_emptying_caches_changes_nothing(raw: str, text: str) -> None:
    cpu = machine(64, rax=7)
    cpu.store(0x4000, 8, 42)
    run_one(cpu, text, bytes.fromhex(raw))
    assert (cpu.load(0x4000, 8), cpu.rax) == (42, 7)


# ---- XCR0 ----------------------------------------------------------------------------------------------

XGETBV, XSETBV = bytes.fromhex("0f01d0"), bytes.fromhex("0f01d1")


def test_xcr0_is_undefined_without_osxsave_and_in_parts_refused() -> None:
    assert isinstance(fault_of(machine(64), "xgetbv", XGETBV), InvalidOpcode)
    cpu = machine(64, rax=3, cr4=CR4_OSXSAVE)
    run_one(cpu, "xsetbv", XSETBV)
    cpu.rax = cpu.rdx = M64
    run_one(cpu, "xgetbv", XGETBV)
    assert (cpu.rax, cpu.rdx, cpu.xcr0) == (3, 0, 3)
    for value, index in ((2, 0), (5, 0), (1 << 3 | 1, 0), (3, 1)):
        cpu = machine(64, rax=value, rcx=index, cr4=CR4_OSXSAVE)
        refused(cpu, "xsetbv", XSETBV)
    refused(machine(64, rcx=1, cr4=CR4_OSXSAVE), "xgetbv", XGETBV)


def test_avx_state_exists_with_avx_only() -> None:
    assert run_one(machine(64, rax=7, cr4=CR4_OSXSAVE), "xsetbv", XSETBV).xcr0 == 7
    without = make_cpu(64, None, FEATURES - {"AVX"}, rax=7, cr4=CR4_OSXSAVE | CR4_PCE)
    refused(without, "xsetbv", XSETBV)
