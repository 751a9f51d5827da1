"""What the matrices found in the CPU, one named test each; the manual's words are in the model they came
from."""

from __future__ import annotations

import pytest

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.cpuid import CpuId, feature_set
from isa.exits import Hypercall, IoWrite
from isa.faults import GeneralProtection
from isa.interrupts import INT_N
from isa.semantics.far import call_far, return_far
from isa.state import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_DE,
    CR4_OSFXSR,
    CR4_PAE,
    CR4_SMAP,
    CR4_VME,
)
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import STACK, make_cpu
from tests.isa.tables import (
    CODE,
    CODE_SELECTOR,
    DATA_SELECTOR,
    HANDLER,
    SLOT,
    descriptor,
    gate,
    gate64,
    get,
    outcome,
    put,
    set_entry,
    set_gate,
    table_cpu,
    words,
)

RF, VM = 1 << 16, 1 << 17


def run_at(cpu: Cpu, code: str) -> str:
    """Step over the instruction `code` at RIP; the vector of the handler that is entered, or ""."""
    for vector in range(32):
        raw = gate64(14, 8, HANDLER + 16 * vector) if cpu.efer else gate(14, 8, HANDLER + 16 * vector)
        set_gate(cpu, vector, raw)
    cpu.memory.write(cpu.rip, bytes.fromhex(code))
    reason = cpu.step()
    assert reason is None, reason
    return f"{(cpu.rip - HANDLER) // 16}" if cpu.rip >= HANDLER else ""


def paged(**registers: int) -> Cpu:
    """The first 2 MiB onto themselves in ring 0, with CR0.WP; page 4 of RAM is `page(cpu, 4, flags)`."""
    cpu = table_cpu(64, 0, None, **registers)
    put(cpu, 0x10000, 0x11007)
    put(cpu, 0x11000, 0x12007)
    put(cpu, 0x12000, 0x13007)
    for n in range(256):
        page(cpu, n, 7)
    cpu.cr0 |= CR0_PE | CR0_PG | CR0_WP
    cpu.cr4 |= CR4_PAE | CR4_OSFXSR
    cpu.cr3 = 0x10000
    cpu.flush_tlb()
    cpu.update_mode()
    return cpu


def page(cpu: Cpu, number: int, flags: int) -> None:
    """Set the flags of a page."""
    put(cpu, 0x13000 + 8 * number, number << 12 | flags)
    cpu.flush_tlb()


# ---- far transfers and returns -----------------------------------------------------------------------------


def test_a_far_call_without_room_for_the_return_address_is_a_stack_fault_before_its_target_is_looked_at() -> (
    None
):
    cpu = table_cpu(32, rsp=STACK)
    set_entry(cpu, SLOT, descriptor(CODE, 0, limit=0x100, flags=4))
    cpu.ss.load_raw(0x10, 0, STACK - 5, 0x4097)  # expand-down: four bytes of room
    assert outcome(call_far, cpu, SLOT, 0x4321, 4) == "#SS(0x0)"
    real = make_cpu(16, rsp=3)
    assert outcome(call_far, real, 0x1000, 0x1_0000, 4) == "#SS(0x0)"


@pytest.mark.parametrize(("ss", "expected"), [(1, ""), (0, "#GP(0x0)"), (2, "#GP(0x0)")])
def test_a_null_ss_of_a_return_needs_the_rpl_of_its_code_segment(ss: int, expected: str) -> None:
    cpu = table_cpu(64, rsp=STACK)
    for n, value in enumerate((HANDLER, CODE_SELECTOR[1], STACK, ss)):
        put(cpu, STACK + 8 * n, value)
    assert outcome(return_far, cpu, 8, 0) == expected


def test_a_return_outward_clears_the_rpl_of_null_selectors_and_keeps_their_bases() -> None:
    cpu = table_cpu(64, rsp=STACK)
    for n, value in enumerate((HANDLER, CODE_SELECTOR[3], STACK, DATA_SELECTOR[3])):
        put(cpu, STACK + 8 * n, value)
    for n, segment in enumerate((cpu.ds, cpu.es, cpu.fs, cpu.gs)):
        segment.load_null(n)
    cpu.fs.base = 0x7000
    return_far(cpu, 8, 0)
    assert [s.selector for s in (cpu.ds, cpu.es, cpu.fs, cpu.gs)] == [0, 0, 0, 0]
    assert cpu.fs.base == 0x7000


def test_iret_to_virtual_8086_mode_wants_its_whole_frame_before_it_looks_at_eip() -> None:
    cpu = table_cpu(32, rsp=STACK)
    for n, value in enumerate((0x1_0000, 0x1234, VM | 2)):
        put(cpu, STACK + 4 * n, value, 4)
    cpu.ss.load_raw(0x10, 0, STACK + 31, 0x4093)
    assert run_at(cpu, "cf") == "12"


# ---- delivery ----------------------------------------------------------------------------------------------


def test_a_handler_for_virtual_8086_mode_that_is_absent_is_np_whatever_its_dpl() -> None:
    cpu = table_cpu(32)
    set_entry(cpu, SLOT, descriptor(CODE, 1, present=0))
    set_gate(cpu, 0x41, gate(14, SLOT, dpl=3))
    for segment in cpu.segments:
        segment.load_v86(0x100)
    cpu.cpl, cpu.vm, cpu.iopl = 3, 1, 3
    cpu.update_mode()
    assert outcome(cpu.software_interrupt, 0x41, INT_N) == f"#NP({SLOT:#x})"


def test_a_double_fault_pushes_the_rf_that_is_there_for_it_is_an_abort() -> None:
    cpu = table_cpu(32, rsp=STACK)
    set_gate(cpu, 8, gate(14, 8))
    assert cpu.deliver_fault(GeneralProtection(0)) is None  # no gate for #GP either
    assert (words(cpu, cpu.rsp, 1), get(cpu, cpu.rsp + 12, 4) & RF) == ([0], 0)


def test_vif_and_vip_together_are_a_general_protection_fault_at_the_next_instruction() -> None:
    cpu = table_cpu(32, rsp=STACK)
    cpu.cr4 |= CR4_VME
    set_gate(cpu, 13, gate(14, 8))
    cpu.memory.write(0x1230, b"\x90")
    for n, value in enumerate((0, 0x123, VM | 3 << 19 | 2, 0x300, 0x100, 0, 0, 0, 0)):
        put(cpu, STACK + 4 * n, value, 4)
    cpu.memory.write(ORIGIN, b"\xcf")
    cpu.step()
    assert cpu.mode_name() == "virtual-8086"
    cpu.step()
    assert (cpu.rip, cpu.vm, words(cpu, cpu.rsp, 2)) == (HANDLER, 0, [0, 0])


# ---- control and debug registers ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["0f20c8", "0f22e8", "440f22f8", "440f21c0", "0f23e0"])
def test_a_register_that_does_not_exist_is_undefined_at_every_level(code: str) -> None:
    for level in (0, 3):
        cpu = table_cpu(64, level, rsp=STACK)
        cpu.cr4 |= CR4_DE  # DR4 and DR5 do not exist with it
        assert run_at(cpu, code) == "6", level
    assert run_at(table_cpu(64, 3, rsp=STACK), "0f20c0") == "13"


def test_a_change_of_smap_does_not_load_the_pdpte_registers() -> None:
    cpu = table_cpu(32, rsp=STACK)
    for n in range(256):
        put(cpu, 0x12000 + 8 * n, n << 12 | 7)
    put(cpu, 0x11000, 0x12007)
    put(cpu, 0x10000, 0x11001)
    cpu.features |= {"PAE", "SMAP"}
    cpu.cr3 = 0x10000
    cpu.cr4 |= CR4_PAE
    cpu.load_pdptes(0x10000)
    cpu.cr0 |= CR0_PG
    cpu.flush_tlb()
    put(cpu, 0x10008, 0x6)  # not present, but another value
    put(cpu, 0x10010, 0x7)  # present with reserved bits: #GP if it were read
    cpu.rax = cpu.cr4 | CR4_SMAP
    assert run_at(cpu, "0f22e0") == ""
    assert cpu.pdptes == [0x11001, 0, 0, 0]


# ---- accesses ----------------------------------------------------------------------------------------------


def test_a_store_that_fails_on_its_second_page_leaves_the_first_one_clean() -> None:
    cpu = paged(rbx=0x4FFE)
    page(cpu, 4, 7)
    page(cpu, 5, 0)
    assert run_at(cpu, "8903") == "14"
    assert (cpu.cr2, get(cpu, 0x13020) & 0x60) == (0x5000, 0x20)
    page(cpu, 5, 7)
    cpu.rip, cpu.rbx = ORIGIN, 0x4FFE
    cpu.step()
    assert (get(cpu, 0x13020) & 0x60, get(cpu, 0x13028) & 0x60) == (0x60, 0x60)


def test_a_read_modify_write_reports_its_first_page_that_cannot_be_written() -> None:
    cpu = paged(rbx=0x4FFE, rsp=STACK)
    page(cpu, 4, 5)  # read-only
    page(cpu, 5, 0)  # missing
    assert run_at(cpu, "0103") == "14"
    assert (cpu.cr2, get(cpu, cpu.rsp)) == (0x4FFE, 3)


def test_fxsave_needs_all_of_its_area() -> None:
    cpu = paged(rbx=0x5000 - 0x1A0)
    page(cpu, 5, 0)
    before = cpu.memory.read(0x4E00, 0x200)
    assert run_at(cpu, "0fae03") == "14"
    assert (cpu.cr2, cpu.memory.read(0x4E00, 0x200)) == (0x5000, before)


def test_an_instruction_that_runs_out_of_the_canonical_addresses_is_a_protection_fault() -> None:
    cpu = paged(rsp=STACK)
    put(cpu, 0x10000 + 8 * 0xFF, 0x14007)
    put(cpu, 0x14000 + 8 * 0x1FF, 0x15007)
    put(cpu, 0x15000 + 8 * 0x1FF, 0x16007)
    put(cpu, 0x16000 + 8 * 0x1FF, 0x17007)
    cpu.memory.write(0x17FFF, b"\xb8")  # MOV EAX, imm32
    cpu.flush_tlb()
    for vector in (13, 14):
        set_gate(cpu, vector, gate64(14, 8, HANDLER + 16 * vector))
    cpu.rip = (1 << 47) - 1
    cpu.step()
    assert (cpu.rip - HANDLER) // 16 == 13


# ---- system instructions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(4))
def test_invpcid_refuses_reserved_bits_of_the_descriptor_with_every_type(kind: int) -> None:
    cpu = paged(rax=kind, rbx=0x5000, rsp=STACK)
    put(cpu, 0x5000, 1 << 12)
    assert run_at(cpu, "660f388203") == "13"


def test_xsetbv_without_cr4_osxsave_is_an_invalid_opcode_at_every_level() -> None:
    for level in (0, 3):
        cpu = table_cpu(32, level, None, rax=1)
        assert run_at(cpu, "0f01d1") == "6"


@pytest.mark.parametrize("code", ["0f01c8", "0f01c9"], ids=["monitor", "mwait"])
def test_monitor_and_mwait_look_at_all_of_rcx_in_64_bit_mode(code: str) -> None:
    assert run_at(paged(rax=0x5000, rcx=1 << 32, rsp=STACK), code) == "13"


def test_mwait_refuses_to_wake_for_masked_interrupts_which_cpuid_does_not_offer() -> None:
    assert run_at(paged(rcx=1, rsp=STACK), "0f01c9") == "13"


def test_cpuid_tells_the_line_that_monitor_watches() -> None:
    cpu = table_cpu(32, 0, None)
    assert CpuId(feature_set(["+monitor"]))(cpu, 5, 0) == (64, 64, 0, 0)
    assert CpuId(feature_set())(cpu, 5, 0) == (0, 0, 0, 0)


@pytest.mark.parametrize("code", ["0f01c1", "0f01d9"], ids=["vmcall", "vmmcall"])
def test_a_hypercall_leaves_the_guest_at_every_level(code: str) -> None:
    for level in (0, 3):
        cpu = table_cpu(32, level, bytes.fromhex(code), rax=7)
        assert isinstance(cpu.step(), Hypercall)


# ---- breakpoints -------------------------------------------------------------------------------------------


def test_a_code_breakpoint_comes_before_the_page_fault_of_its_fetch() -> None:
    cpu = paged(rsp=STACK)
    for vector in (1, 14):
        set_gate(cpu, vector, gate64(14, 8, HANDLER + 16 * vector))
    page(cpu, 6, 0)
    cpu.rip = cpu.dr0 = 0x6000
    cpu.dr7 |= 1
    cpu.request_attention()
    cpu.step()
    assert (cpu.rip - HANDLER) // 16 == 1


def test_a_code_breakpoint_behind_mov_ss_does_not_break() -> None:
    cpu = table_cpu(64, 0, assemble("mov ss, eax\n inc rbx\n inc rcx"), rax=DATA_SELECTOR[0])
    cpu.dr1, cpu.dr7 = ORIGIN + 2, 0x404
    cpu.request_attention()
    cpu.run(3)
    assert (cpu.rbx, cpu.rcx) == (1, 1)


@pytest.mark.parametrize(
    ("port", "hit"), [(0x3F8, True), (0x3F9, True), (0x3F6, False), (0x3FA, False), (0x3F7, True)]
)
def test_a_breakpoint_watches_ports_with_cr4_de(port: int, hit: bool) -> None:
    cpu = table_cpu(64, 0, bytes.fromhex("66ef 90"), rdx=port, rax=7)  # OUT DX, AX
    cpu.cr4 |= CR4_DE
    cpu.dr2, cpu.dr7 = 0x3F8, 0x410 | 2 << 24 | 1 << 26  # two ports
    set_gate(cpu, 1, gate64(14, 8))
    cpu.request_attention()
    assert cpu.run(2) == IoWrite(port, 2, 7)
    cpu.complete()
    cpu.run(2)
    assert (cpu.rip == HANDLER, cpu.dr6 & 15) == ((True, 4) if hit else (False, 0))
