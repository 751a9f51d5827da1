"""PUSH, POP, PUSHA, PUSHF, ENTER, LEAVE."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.exits import MmioRead, MmioWrite
from isa.faults import GeneralProtection, PageFault, StackFault
from isa.state import CR0_PE, CR0_PG, CR4_VME
from tests.isa.machine import ALL_FEATURES, RAM, execute, fault_of, make_cpu, run_one

DATA = 0x3000
STACK = 0x8000
M64 = (1 << 64) - 1
CF, TF, IF, IOPL3, NT, RF, VM, AC, VIF, VIP, ID = (
    1, 1 << 8, 1 << 9, 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21,
)  # fmt: skip


def push_image(cpu: Cpu, value: int) -> None:
    """Put a value where POP will find it."""
    cpu.memory.write(STACK, value.to_bytes(8, "little"))


def v86_cpu(**registers: int) -> Cpu:
    """A machine in virtual-8086 mode, all segments at 0."""
    cpu = make_cpu(16, None, ALL_FEATURES, **registers)
    cpu.cr0 |= CR0_PE
    cpu.vm = 1
    cpu.cpl = 3
    for segment in cpu.segments:
        segment.load_v86(0)
    cpu.update_mode()
    return cpu


# ---- PUSH and POP --------------------------------------------------------------------------------------


def test_push_rsp_stores_the_value_before_the_decrement() -> None:
    cpu = execute("push rsp", "54", rsp=STACK)
    assert cpu.rsp == STACK - 8
    assert cpu.load(STACK - 8, 8) == STACK


def test_pop_rsp_keeps_what_was_popped() -> None:
    cpu = make_cpu(rsp=STACK)
    push_image(cpu, 0x1234)
    run_one(cpu, "pop rsp", bytes.fromhex("5c"))
    assert cpu.rsp == 0x1234


@pytest.mark.parametrize(
    ("bits", "code", "text", "size", "value"),
    [
        (64, "6a ff", "push 0xffffffffffffffff", 8, M64),
        (64, "66 6a ff", "o16 push 0xffff", 2, 0xFFFF),
        (64, "68 78 56 34 92", "push 0xffffffff92345678", 8, 0xFFFF_FFFF_9234_5678),
        (32, "6a ff", "push 0xffffffff", 4, 0xFFFF_FFFF),
        (16, "6a ff", "push 0xffff", 2, 0xFFFF),
    ],
)
def test_pushed_immediates_are_sign_extended(bits: int, code: str, text: str, size: int, value: int) -> None:
    cpu = execute(text, code, bits, rsp=STACK)
    assert cpu.rsp == STACK - size
    assert cpu.load(STACK - size, size) == value


def test_16_bit_stack_wraps_and_leaves_the_upper_half_of_esp() -> None:
    cpu = execute("push ax", "50", 16, rsp=0x1234_0000, rax=0xBEEF)
    assert cpu.rsp == 0x1234_FFFE
    assert cpu.load(0xFFFE, 2) == 0xBEEF


def test_pop_to_memory_computes_the_address_with_the_incremented_stack_pointer() -> None:
    cpu = make_cpu(rsp=STACK)
    push_image(cpu, 0x1122)
    run_one(cpu, "pop qword [rsp+0x8]", bytes.fromhex("8f 44 24 08"))
    assert cpu.rsp == STACK + 8
    assert cpu.load(STACK + 16, 8) == 0x1122


def test_pop_to_memory_that_faults_leaves_the_stack_pointer() -> None:
    cpu = make_cpu(32, rsp=STACK, rbx=DATA)
    cpu.ds.load_raw(0x10, 0, 0xFFFF_FFFF, 0xC091)
    fault = fault_of(cpu, "pop dword [ebx]", bytes.fromhex("8f 03"))
    assert isinstance(fault, GeneralProtection)
    assert cpu.rsp == STACK


def test_pop_to_a_device_leaves_once_and_pops_once() -> None:
    cpu = make_cpu(rsp=STACK, rbx=0x20_0000, code=bytes.fromhex("8f 03"))
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    push_image(cpu, 0x55)
    assert cpu.step() == MmioWrite(0x20_0000, 8, 0x55)
    assert cpu.rsp == STACK
    cpu.complete()
    assert cpu.step() is None
    assert cpu.rsp == STACK + 8


def test_push_below_the_stack_limit_is_a_stack_fault() -> None:
    cpu = make_cpu(32, rsp=0x1004)
    cpu.ss.load_raw(0x10, 0, 0x0FFF, 0x4097)  # expand down: valid from 0x1000
    run_one(cpu, "push eax", bytes.fromhex("50"))
    fault = fault_of(cpu, "push eax", bytes.fromhex("50"))
    assert isinstance(fault, StackFault) and fault.error_code == 0


def test_push_to_a_page_that_is_not_present_changes_nothing() -> None:
    cpu = make_cpu(32, rsp=0x40_0000)
    cpu.cr0 |= CR0_PG
    cpu.cr3 = 0x2000
    cpu.memory.write(0x2000, (0x3003).to_bytes(4, "little"))
    cpu.memory.write(0x3000 + 4 * 1, (0x1003).to_bytes(4, "little"))  # only the code page
    cpu.flush_tlb()
    fault = fault_of(cpu, "push eax", bytes.fromhex("50"))
    assert isinstance(fault, PageFault)
    assert (fault.address, fault.error_code) == (0x3F_FFFC, 2)


# ---- PUSHA, POPA ---------------------------------------------------------------------------------------


def test_pusha_and_popa_are_inverse_and_pusha_stores_the_original_esp() -> None:
    values = {"rax": 1, "rcx": 2, "rdx": 3, "rbx": 4, "rbp": 6, "rsi": 7, "rdi": 8}
    cpu = execute("pusha", "60", 32, rsp=STACK, **values)
    assert cpu.rsp == STACK - 32
    assert [cpu.load(STACK - 4 * n, 4) for n in range(1, 9)] == [1, 2, 3, 4, STACK, 6, 7, 8]
    for name in values:
        setattr(cpu, name, 0)
    run_one(cpu, "popa", bytes.fromhex("61"))
    assert {name: getattr(cpu, name) for name in values} == values
    assert cpu.rsp == STACK


def test_popa_of_words_keeps_the_upper_halves_and_skips_sp() -> None:
    cpu = make_cpu(32, rsp=STACK, rax=0xAAAA_0000, rdi=0xBBBB_0000)
    cpu.memory.write(STACK, bytes(range(1, 17)))
    run_one(cpu, "popaw", bytes.fromhex("66 61"))
    assert (cpu.rax, cpu.rdi, cpu.rsp) == (0xAAAA_100F, 0xBBBB_0201, STACK + 16)


def test_popa_does_not_read_the_word_of_sp() -> None:
    cpu = make_cpu(16, bytes.fromhex("61"), rsp=0x10)
    cpu.ss.base = RAM
    cpu.memory.set_mmio([(RAM, 0x1000)])
    addresses = []
    while isinstance(reason := cpu.run(1), MmioRead):
        addresses.append(reason.addr - RAM)
        cpu.complete(0)
    assert addresses == [0x10, 0x12, 0x14, 0x18, 0x1A, 0x1C, 0x1E]
    assert cpu.rsp == 0x20


# ---- PUSHF, POPF ---------------------------------------------------------------------------------------


def test_pushf_hides_rf_and_vm() -> None:
    cpu = execute("pushf", "9c", rsp=STACK, cf=1, if_=1, iopl=3, ac=1, id_=1)
    assert cpu.load(STACK - 8, 8) == CF | 2 | IF | IOPL3 | AC | ID


@pytest.mark.parametrize(
    ("cpl", "iopl", "changed"),
    [
        (0, 0, CF | IF | IOPL3 | NT | AC | ID),
        (1, 1, CF | IF | NT | AC | ID),
        (3, 3, CF | IF | NT | AC | ID),
        (3, 2, CF | NT | AC | ID),
        (1, 0, CF | NT | AC | ID),
    ],
)
def test_popf_changes_only_what_the_privilege_allows(cpl: int, iopl: int, changed: int) -> None:
    cpu = make_cpu(32, rsp=STACK, cpl=cpl, iopl=iopl)
    cpu.update_mode()
    before = cpu.rflags()
    push_image(cpu, CF | IF | (3 << 12) | NT | RF | VM | AC | VIF | VIP | ID)
    run_one(cpu, "popf", bytes.fromhex("9d"))
    if changed & IOPL3:
        before &= ~IOPL3
    assert cpu.rflags() == before | changed


def test_popf_of_a_word_leaves_the_upper_flags() -> None:
    cpu = make_cpu(32, rsp=STACK, ac=1)
    push_image(cpu, ID | CF)
    run_one(cpu, "popfw", bytes.fromhex("66 9d"))
    assert cpu.rflags() == CF | AC | 2
    assert cpu.rsp == STACK + 2


def test_popf_leaves_vif_and_vip() -> None:
    cpu = make_cpu(rsp=STACK, vif=1, vip=1)
    push_image(cpu, 0)
    run_one(cpu, "popf", bytes.fromhex("9d"))
    assert cpu.rflags() == VIF | VIP | 2


@pytest.mark.parametrize(("code", "text"), [("9c", "pushf"), ("9d", "popf"), ("66 9d", "popfd")])
def test_virtual_8086_mode_below_iopl_3_may_not_touch_the_flags(code: str, text: str) -> None:
    fault = fault_of(v86_cpu(rsp=STACK), text, bytes.fromhex(code))
    assert isinstance(fault, GeneralProtection) and fault.error_code == 0


def test_virtual_8086_mode_at_iopl_3_pops_if_but_not_iopl() -> None:
    cpu = v86_cpu(rsp=STACK, iopl=3)
    push_image(cpu, IF | CF)
    run_one(cpu, "popf", bytes.fromhex("9d"))
    assert cpu.rflags() == VM | IOPL3 | IF | CF | 2


def test_vme_pushes_vif_as_if_and_iopl_3() -> None:
    cpu = v86_cpu(rsp=STACK, vif=1, cr4=CR4_VME)
    run_one(cpu, "pushf", bytes.fromhex("9c"))
    assert cpu.load(STACK - 2, 2) == IF | IOPL3 | 2


def test_vme_pops_if_into_vif() -> None:
    cpu = v86_cpu(rsp=STACK, cr4=CR4_VME, if_=1)
    push_image(cpu, IF)
    run_one(cpu, "popf", bytes.fromhex("9d"))
    assert cpu.rflags() == VM | VIF | IF | 2
    push_image(cpu, 0)
    cpu.rsp = STACK
    run_one(cpu, "popf", bytes.fromhex("9d"))
    assert cpu.rflags() == VM | IF | 2


@pytest.mark.parametrize(("image", "vip"), [(TF, 0), (IF, 1)])
def test_vme_faults_on_tf_and_on_if_with_an_interrupt_pending(image: int, vip: int) -> None:
    cpu = v86_cpu(rsp=STACK, cr4=CR4_VME, vip=vip)
    push_image(cpu, image)
    assert isinstance(fault_of(cpu, "popf", bytes.fromhex("9d")), GeneralProtection)


def test_popf_that_sets_tf_traps_after_the_next_instruction() -> None:
    cpu = make_cpu(rsp=STACK, code=bytes.fromhex("9d 90 90"))
    push_image(cpu, TF)
    cpu.run(1)
    assert cpu.rip == 0x1001
    cpu.run(2)
    assert (cpu.rip, bool(cpu._pending_debug)) == (0x1002, True)


# ---- ENTER, LEAVE --------------------------------------------------------------------------------------


def test_enter_without_nesting_saves_rbp_and_allocates() -> None:
    cpu = execute("enter 0x10, 0x0", "c8 10 00 00", rsp=STACK, rbp=0x1234)
    assert (cpu.rbp, cpu.rsp) == (STACK - 8, STACK - 24)
    assert cpu.load(STACK - 8, 8) == 0x1234


def test_enter_with_nesting_copies_the_display() -> None:
    cpu = make_cpu(rsp=STACK, rbp=0x7000)
    cpu.memory.write(0x7000 - 16, (0xBBBB).to_bytes(8, "little") + (0xAAAA).to_bytes(8, "little"))
    run_one(cpu, "enter 0x10, 0x3", bytes.fromhex("c8 10 00 03"))
    assert [cpu.load(STACK - 8 * n, 8) for n in range(1, 5)] == [0x7000, 0xAAAA, 0xBBBB, STACK - 8]
    assert (cpu.rbp, cpu.rsp) == (STACK - 8, STACK - 32 - 16)


def test_enter_of_words_changes_bp_alone() -> None:
    cpu = execute("o16 enter 0x10, 0x0", "66 c8 10 00 00", rsp=STACK, rbp=0x1234_5678_2222_4444)
    assert (cpu.rbp, cpu.rsp) == (0x1234_5678_2222_0000 | STACK - 2, STACK - 0x12)
    cpu = execute("o16 enter 0x10, 0x0", "66 c8 10 00 00", 32, rsp=0x1_0000 | STACK, rbp=0x2222_4444)
    assert (cpu.rbp, cpu.rsp) == (0x2222_0000 | STACK - 2, (0x1_0000 | STACK) - 0x12)


def test_enter_of_doublewords_on_a_16_bit_stack_takes_the_frame_from_all_of_esp() -> None:
    cpu = execute("o32 enter 0x10, 0x1", "66 c8 10 00 01", 16, rsp=0xABCD_0000 | STACK, rbp=0x2222_4444)
    frame = 0xABCD_0000 | STACK - 4
    assert (cpu.rbp, cpu.rsp) == (frame, 0xABCD_0000 | STACK - 0x18)
    assert cpu.load(STACK - 8, 4) == frame


def test_enter_takes_the_nesting_level_modulo_32() -> None:
    cpu = execute("enter 0x0, 0x20", "c8 00 00 20", rsp=STACK)
    assert cpu.rsp == STACK - 8


def test_enter_faults_where_the_new_stack_top_could_not_be_written() -> None:
    cpu = make_cpu(32, rsp=0x1100)
    cpu.ss.load_raw(0x10, 0, 0x0FFF, 0x4097)
    fault = fault_of(cpu, "enter 0x200, 0x0", bytes.fromhex("c8 00 02 00"))
    assert isinstance(fault, StackFault)


def test_leave_undoes_enter() -> None:
    cpu = execute("enter 0x40, 0x0", "c8 40 00 00", rsp=STACK, rbp=0x1234)
    run_one(cpu, "leave", bytes.fromhex("c9"))
    assert (cpu.rsp, cpu.rbp) == (STACK, 0x1234)


def test_leave_with_a_16_bit_stack_uses_bp_and_keeps_the_upper_halves() -> None:
    cpu = make_cpu(16, rbp=0x1234_8000, rsp=0x5678_0000)
    cpu.memory.write(0x8000, b"\xcd\xab")
    run_one(cpu, "leave", bytes.fromhex("c9"))
    assert (cpu.rsp, cpu.rbp) == (0x5678_8002, 0x1234_ABCD)
