"""INT n, INT3, INTO, BOUND and IRET in every mode; the way into the kernel and back."""

from __future__ import annotations

from itertools import product

import pytest

from isa.cpu import Cpu
from isa.decode import disassemble
from isa.exits import NestedPageFault
from isa.state import CR0_AM, CR4_VME
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import RAM, STACK, execute, fault_of, make_cpu, run_one
from tests.isa.tables import (
    CODE,
    CODE_SELECTOR,
    DATA,
    DATA_SELECTOR,
    HANDLER,
    SLOT,
    STACK_TOP,
    descriptor,
    gate,
    gate64,
    get,
    put,
    set_entry,
    set_gate,
    set_level,
    table_cpu,
    words,
)

CF, TF, IF, NT, RF, VM, AC, VIF, VIP, ID = (1 << n for n in (0, 8, 9, 14, 16, 17, 18, 19, 20, 21))
IOPL = 3 << 12
EVERY_FLAG = 0x3F_7FD5


def push(cpu: Cpu, size: int, *values: int) -> None:
    """Lay `values` at SS:RSP upwards, as a handler finds them."""
    for n, value in enumerate(values):
        put(cpu, cpu.ss.base + cpu.rsp + n * size, value, size)


# ---- INT n, INT3, INTO, BOUND ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "vector"), [("cd 80", "int 0x80", 0x80), ("cc", "int3", 3), ("ce", "into", 4)]
)
def test_software_interrupts_return_behind_themselves(code: str, text: str, vector: int) -> None:
    cpu = table_cpu(32, 3, rsp=STACK, of=1)
    set_gate(cpu, vector, gate(15, CODE_SELECTOR[0], dpl=3))
    run_one(cpu, text, bytes.fromhex(code))
    assert (cpu.cpl, cpu.rip, get(cpu, cpu.rsp, 4)) == (0, HANDLER, ORIGIN + len(bytes.fromhex(code)))


@pytest.mark.parametrize(("code", "text"), [("cd 80", "int 0x80"), ("cc", "int3"), ("ce", "into")])
def test_a_gate_of_a_lower_dpl_is_closed_to_software(code: str, text: str) -> None:
    vector = {"cd 80": 0x80, "cc": 3, "ce": 4}[code]
    cpu = table_cpu(32, 3, rsp=STACK, of=1, code=bytes.fromhex(code))
    assert disassemble(bytes.fromhex(code), 32, 0) == text
    set_gate(cpu, vector, gate(15, CODE_SELECTOR[0], dpl=2))
    set_gate(cpu, 13, gate(14, CODE_SELECTOR[0]))
    assert cpu.step() is None
    assert words(cpu, cpu.rsp, 2) == [vector * 8 | 2, ORIGIN]


def test_into_without_overflow_does_nothing() -> None:
    cpu = execute("into", "ce", bits=32, of=0)
    assert cpu.rip == ORIGIN + 1


def test_int_n_is_not_single_stepped() -> None:
    cpu = table_cpu(32, rsp=STACK, tf=1, code=bytes.fromhex("cd 80"))
    set_gate(cpu, 0x80, gate(15, 8))
    set_gate(cpu, 1, gate(15, 8, HANDLER + 0x100))
    cpu.memory.write(HANDLER, b"\x90\x90")
    assert cpu.step() is None
    assert cpu.step() is None
    assert cpu.rip == HANDLER + 1
    assert get(cpu, STACK - 4, 4) & TF


@pytest.mark.parametrize(
    ("index", "lower", "upper", "inside"),
    [
        (5, 5, 9, True), (9, 5, 9, True), (4, 5, 9, False), (10, 5, 9, False), (-1, -2, 3, True),
        (-3, -2, 3, False), (0x7FFF_FFFF, -0x8000_0000, 0x7FFF_FFFF, True), (0, 1, -1, False),
    ],
)  # fmt: skip
def test_bound_compares_as_signed(index: int, lower: int, upper: int, inside: bool) -> None:
    cpu = table_cpu(32, rbx=0x7000, rax=index & 0xFFFF_FFFF)
    put(cpu, 0x7000, lower & 0xFFFF_FFFF, 4)
    put(cpu, 0x7004, upper & 0xFFFF_FFFF, 4)
    if inside:
        run_one(cpu, "bound eax, [ebx]", bytes.fromhex("62 03"))
        assert cpu.rip == ORIGIN + 2
    else:
        assert str(fault_of(cpu, "bound eax, [ebx]", bytes.fromhex("62 03"))).startswith("#BR: index")


def test_bound_checks_the_alignment_of_each_limit_and_not_of_the_pair() -> None:
    cpu = table_cpu(32, 3, rbx=0x7004, ac=1)
    cpu.cr0 |= CR0_AM
    cpu.update_mode()
    run_one(cpu, "bound eax, [ebx]", bytes.fromhex("62 03"))
    cpu.rip, cpu.rbx = ORIGIN, 0x7002
    assert str(fault_of(cpu, "bound eax, [ebx]", bytes.fromhex("62 03"))).startswith("#AC(0x0): 4-byte")


# ---- IRET in real-address mode -----------------------------------------------------------------------------


def test_real_mode_iret_pops_three_words_and_keeps_the_high_flags() -> None:
    cpu = make_cpu(16, ac=1, id_=1)
    push(cpu, 2, 0x123, 0x2000, 0xFFFF)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.cs.base, cpu.rip, cpu.rsp) == (0x20000, 0x123, STACK + 6)
    assert cpu.rflags() == 0x7FD7 | AC | ID


def test_real_mode_iretd_leaves_vm_vif_and_vip() -> None:
    cpu = make_cpu(16)
    push(cpu, 4, 0x123, 0x2000, 0xFFFF_FFFF)
    run_one(cpu, "iretd", bytes.fromhex("66 cf"))
    assert cpu.rflags() == (0x3F_7FD7 & ~(VM | VIF | VIP))


def test_real_mode_iretd_beyond_the_code_limit_faults() -> None:
    cpu = make_cpu(16)
    push(cpu, 4, 0x1_0000, 0x2000, 2)
    assert str(fault_of(cpu, "iretd", bytes.fromhex("66 cf"))).startswith("#GP(0x0): target 0x10000")
    assert (cpu.rip, cpu.rsp) == (ORIGIN, STACK)


def test_real_mode_interrupt_and_iret_give_everything_back() -> None:
    cpu = make_cpu(16, cf=1, if_=1)
    put(cpu, 0x21 * 4, 0x2000_0000 | HANDLER, 4)
    run_one(cpu, "int 0x21", bytes.fromhex("cd 21"))
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.rip, cpu.cs.selector, cpu.rsp, cpu.rflags()) == (ORIGIN + 2, 0, STACK, 0x203)


# ---- IRET in protected mode --------------------------------------------------------------------------------


def writable_flags(cpl: int, iopl: int, size: int) -> int:
    """SDM Vol. 2, IRET, RETURN-TO-SAME/OUTER-PRIVILEGE-LEVEL: which flags the popped image reaches."""
    mask = 0x4DD5
    if size > 2:
        mask |= RF | AC | ID
    if cpl <= iopl:
        mask |= IF
    if cpl == 0:
        mask |= IOPL
        if size > 2:
            mask |= VIF | VIP
    return mask


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("image", [0, EVERY_FLAG & ~VM])
def test_iret_changes_only_the_flags_that_this_cpl_may_change(size: int, image: int) -> None:
    code, text = ("cf", "iret") if size == 4 else ("66 cf", "iretw")
    for cpl, iopl in product(range(4), range(4)):
        cpu = table_cpu(32, cpl, rsp=STACK)
        cpu.set_rflags_raw((image ^ EVERY_FLAG) & ~(VM | NT | TF | IOPL) | iopl << 12)
        cpu.ac = 0
        old = cpu.rflags() & ~RF  # every instruction starts with RF cleared
        push(cpu, size, 0x1234, CODE_SELECTOR[cpl], image & (1 << 8 * size) - 1)
        run_one(cpu, text, bytes.fromhex(code))
        mask = writable_flags(cpl, iopl, size)
        assert cpu.rflags() == old & ~mask | image & mask | 2, (cpl, iopl)
        assert (cpu.rip, cpu.rsp) == (0x1234, STACK + 3 * size)


@pytest.mark.parametrize(("inner", "outer"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_iret_to_an_outer_level_restores_its_stack_and_drops_inner_segments(inner: int, outer: int) -> None:
    cpu = table_cpu(32, inner, rsp=STACK)
    push(cpu, 4, 0x1234, CODE_SELECTOR[outer], 2, 0x7770, DATA_SELECTOR[outer])
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.cpl, cpu.rip, cpu.rsp) == (outer, 0x1234, 0x7770)
    assert (cpu.cs.selector, cpu.ss.selector) == (CODE_SELECTOR[outer], DATA_SELECTOR[outer])
    assert [s.selector for s in (cpu.ds, cpu.es, cpu.fs, cpu.gs)] == [0] * 4


def test_iret_to_an_inner_level_is_refused() -> None:
    cpu = table_cpu(32, 3, rsp=STACK)
    push(cpu, 4, 0x1234, CODE_SELECTOR[0], 2)
    assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith(
        "#GP(0x8): return to an inner level, RPL 0 < CPL 3"
    )
    assert (cpu.cpl, cpu.rsp) == (3, STACK)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ((0x1234, 0, 2), "#GP(0x0)"),
        ((0x1234, 0x10, 2), "#GP(0x10)"),
        ((0x1234, 0x1F0, 2), "#GP(0x1f0)"),
        ((0x1234, SLOT, 2), "#NP(0x58)"),
        ((0x1234, 0x3B, 2, 0x7770, 0), "#GP(0x0)"),
        ((0x1234, 0x3B, 2, 0x7770, 0x10), "#GP(0x10)"),
        ((0x1234, 0x3B, 2, 0x7770, 0x3B), "#GP(0x38)"),
        ((0x1234, 0x3B, 2, 0x7770, 0x6B), "#SS(0x68)"),
    ],
)
def test_a_bad_return_frame_faults_and_changes_nothing(frame: tuple[int, ...], expected: str) -> None:
    cpu = table_cpu(32, rsp=STACK)
    set_entry(cpu, SLOT, descriptor(CODE, 0, present=0))
    set_entry(cpu, 0x68, descriptor(DATA, 3, present=0))
    push(cpu, 4, *frame)
    assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith(expected)
    assert (cpu.cpl, cpu.rsp, cpu.rip, cpu.ss.selector) == (0, STACK, ORIGIN, 0x10)


def test_a_return_frame_outside_the_stack_limit_is_a_stack_fault() -> None:
    cpu = table_cpu(32, rsp=STACK)
    push(cpu, 4, 0x1234, 8, 2)
    cpu.ss.limit = STACK + 10
    cpu.ss.update_bounds()
    assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith("#SS(0x0)")


def test_a_return_past_the_code_limit_is_refused() -> None:
    cpu = table_cpu(32, rsp=STACK)
    set_entry(cpu, SLOT, descriptor(CODE, 0, limit=0x1233, flags=4))
    push(cpu, 4, 0x1234, SLOT, 2)
    assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith("#GP(0x0)")


# ---- IRET in IA-32e mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "size"), [("66 cf", "iretw", 2), ("cf", "iret", 4), ("48 cf", "iretq", 8)]
)
def test_64_bit_iret_always_pops_the_stack_pointer(code: str, text: str, size: int) -> None:
    cpu = table_cpu(64, rsp=STACK)
    push(cpu, size, 0x1234, 8, 2, 0x7770, 0x10)
    run_one(cpu, text, bytes.fromhex(code))
    assert (cpu.rip, cpu.rsp, cpu.cpl, cpu.ss.selector) == (0x1234, 0x7770, 0, 0x10)


def test_iretq_to_ring_0_takes_a_null_ss_and_to_ring_3_does_not() -> None:
    cpu = table_cpu(64, rsp=STACK)
    push(cpu, 8, 0x1234, 8, 2, 0x7770, 0)
    run_one(cpu, "iretq", bytes.fromhex("48 cf"))
    assert (cpu.rsp, cpu.ss.null) == (0x7770, True)
    cpu = table_cpu(64, rsp=STACK)
    push(cpu, 8, 0x1234, 0x3B, 2, 0x7770, 3)
    fault = fault_of(cpu, "iretq", bytes.fromhex("48 cf"))
    assert str(fault) == "#GP(0x0): SS load: null selector 0x0003"


def test_iretq_with_nested_task_is_refused() -> None:
    cpu = table_cpu(64, rsp=STACK, nt=1)
    push(cpu, 8, 0x1234, 8, 2, 0x7770, 0)
    assert str(fault_of(cpu, "iretq", bytes.fromhex("48 cf"))).startswith("#GP(0x0): IRET with NT=1")


def test_iretq_to_a_noncanonical_address_faults_in_the_kernel() -> None:
    cpu = table_cpu(64, rsp=STACK)
    push(cpu, 8, 0x8000_0000_0000, 0x3B, 2, 0x7770, 0x43)
    assert str(fault_of(cpu, "iretq", bytes.fromhex("48 cf"))).startswith(
        "#GP(0x0): target 0x800000000000 is not canonical"
    )
    assert (cpu.cpl, cpu.rip) == (0, ORIGIN)


def test_iretq_to_compatibility_mode_cuts_the_stack_pointer() -> None:
    cpu = table_cpu(64, rsp=STACK)
    set_entry(cpu, SLOT, descriptor(CODE, 3, flags=0xC))
    push(cpu, 8, 0x1234, SLOT | 3, 2, 0xFFFF_FFFF_0000_7770, 0x43)
    run_one(cpu, "iretq", bytes.fromhex("48 cf"))
    assert (cpu.mode_name(), cpu.cpl, cpu.rsp) == ("compatibility", 3, 0x7770)


def test_ring_3_to_ring_0_and_back_in_64_bit_mode() -> None:
    cpu = table_cpu(64, 3, rsp=STACK, cf=1, if_=1, code=bytes.fromhex("cd 80"))
    set_gate(cpu, 0x80, gate64(14, 8, dpl=3))
    cpu.memory.write(HANDLER, bytes.fromhex("48 cf"))
    assert cpu.step() is None
    assert (cpu.cpl, cpu.rsp, cpu.if_, cpu.cf) == (0, STACK_TOP[0] - 40, 0, 1)
    assert cpu.step() is None
    assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.if_, cpu.cf) == (3, ORIGIN + 2, STACK, 1, 1)
    assert (cpu.cs.selector, cpu.ss.selector) == (0x3B, 0x43)


# ---- virtual-8086 mode -------------------------------------------------------------------------------------


def v86_cpu(iopl: int) -> Cpu:
    cpu = table_cpu(32)
    for segment in cpu.segments:
        segment.load_v86(0x100)
    cpu.cpl, cpu.vm, cpu.iopl, cpu.rsp, cpu.rip = 3, 1, iopl, 0x300, 0
    cpu.update_mode()
    return cpu


def test_a_monitor_enters_virtual_8086_mode_and_gets_its_sensitive_instructions() -> None:
    cpu = table_cpu(32, rsp=STACK)
    es, cs, ss, ds, fs, gs = range(0x200, 0x206)
    push(cpu, 4, 0x10, cs, VM | IF, 0xFFF0, ss, es, ds, fs, gs)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.mode_name(), cpu.cpl, cpu.rip, cpu.rsp) == ("virtual-8086", 3, 0x10, 0xFFF0)
    assert [s.selector for s in cpu.segments] == list(range(0x200, 0x206))
    assert [s.base for s in cpu.segments] == [n << 4 for n in range(0x200, 0x206)]
    set_gate(cpu, 13, gate(14, 8))
    cpu.memory.write((cs << 4) + 0x10, bytes.fromhex("cd 21"))
    assert cpu.step() is None
    frame = words(cpu, cpu.rsp, 10)
    assert frame == [0, 0x10, cs, VM | IF | RF | 2, 0xFFF0, ss, es, ds, fs, gs]
    assert (cpu.cpl, cpu.vm) == (0, 0)
    cpu.rsp += 4  # the monitor drops the error code ...
    put(cpu, cpu.rsp, 0x12, 4)  # ... skips INT 21h and goes back
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.mode_name(), cpu.rip) == ("virtual-8086", 0x12)


@pytest.mark.parametrize("iopl", range(4))
def test_iret_in_virtual_8086_mode_needs_iopl_3(iopl: int) -> None:
    cpu = v86_cpu(iopl)
    push(cpu, 2, 0x123, 0x200, IF | IOPL ^ iopl << 12)
    if iopl < 3:
        assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith(
            "#GP(0x0): IRET in virtual-8086 mode"
        )
        return
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.cs.base, cpu.rip, cpu.if_, cpu.iopl, cpu.rsp) == (0x2000, 0x123, 1, 3, 0x306)


def test_iretd_in_virtual_8086_mode_pops_the_wide_flags_but_not_iopl_or_vif() -> None:
    cpu = v86_cpu(3)
    push(cpu, 4, 0x123, 0x200, EVERY_FLAG & ~IOPL)
    run_one(cpu, "iretd", bytes.fromhex("66 cf"))
    assert cpu.rflags() == (EVERY_FLAG & ~(VIF | VIP)) | 2


def test_entering_virtual_8086_mode_past_64_kib_is_refused() -> None:
    cpu = table_cpu(32, rsp=STACK)
    push(cpu, 4, 0x1_0000, 0x200, VM | 2, 0xFFF0, 0, 0, 0, 0, 0)
    assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith("#GP(0x0): return to virtual-8086")


def test_vme_iret_works_on_vif() -> None:
    cpu = v86_cpu(0)
    cpu.cr4 |= CR4_VME
    push(cpu, 2, 0x123, 0x200, IF | IOPL)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.vif, cpu.if_, cpu.iopl, cpu.rip) == (1, 0, 0, 0x123)


@pytest.mark.parametrize(("image", "vip"), [(TF, 0), (IF, 1)])
def test_vme_iret_refuses_tf_and_an_enabled_pending_interrupt(image: int, vip: int) -> None:
    cpu = v86_cpu(0)
    cpu.cr4 |= CR4_VME
    cpu.vip = vip
    push(cpu, 2, 0x123, 0x200, image)
    assert str(fault_of(cpu, "iret", bytes.fromhex("cf"))).startswith("#GP(0x0)")


def test_vm_in_the_image_is_ignored_outside_ring_0() -> None:
    cpu = table_cpu(32, 3, rsp=STACK)
    push(cpu, 4, 0x1234, 0x3B, VM | 2)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.vm, cpu.rip, cpu.cs.selector) == (0, 0x1234, 0x3B)


# ---- NMI, TF, exits ----------------------------------------------------------------------------------------


def test_iret_unblocks_nmi_even_if_it_faults() -> None:
    cpu = table_cpu(32, rsp=STACK, nmi_blocked=True)
    push(cpu, 4, 0x1234, 8, 2)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert not cpu.nmi_blocked
    cpu = table_cpu(32, rsp=STACK, nmi_blocked=True)
    push(cpu, 4, 0x1234, 0, 2)
    str(fault_of(cpu, "iret", bytes.fromhex("cf")))
    assert not cpu.nmi_blocked


def test_a_second_nmi_waits_for_the_iret_of_the_first() -> None:
    cpu = table_cpu(32, rsp=STACK, code=b"\x90" * 4)
    set_gate(cpu, 2, gate(14, 8))
    cpu.memory.write(HANDLER, bytes.fromhex("90 cf"))
    cpu.nmi_pending = True
    cpu.request_attention()
    cpu.step()
    cpu.nmi_pending = True
    cpu.request_attention()
    cpu.step()
    assert (cpu.rip, cpu.nmi_pending) == (HANDLER + 1, True)
    cpu.step()
    assert cpu.rip == ORIGIN
    cpu.step()
    assert (cpu.rip, cpu.nmi_pending) == (HANDLER, False)


def test_tf_loaded_by_iret_traps_after_the_next_instruction() -> None:
    cpu = table_cpu(32, rsp=STACK)
    push(cpu, 4, 0x1234, 8, 2 | TF)
    set_gate(cpu, 1, gate(14, 8))
    cpu.memory.write(0x1234, b"\x90\x90")
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert cpu.step() is None
    assert cpu.rip == 0x1235
    assert cpu.step() is None
    assert (cpu.rip, get(cpu, cpu.rsp, 4)) == (HANDLER, 0x1235)


def test_rf_loaded_by_iret_skips_one_breakpoint() -> None:
    cpu = table_cpu(32, rsp=STACK)
    push(cpu, 4, 0x1234, 8, 2 | RF)
    set_gate(cpu, 1, gate(14, 8))
    cpu.memory.write(0x1234, b"\x90\xeb\xfd")  # nop; jmp back to it
    cpu.dr0, cpu.dr7 = 0x1234, 0x401
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert cpu.step() is None
    assert (cpu.rip, cpu.rf) == (0x1235, 0)
    assert cpu.step() is None
    assert cpu.step() is None
    assert (cpu.rip, get(cpu, cpu.rsp, 4), cpu.dr6 & 15) == (HANDLER, 0x1234, 1)


def test_an_iret_from_an_unmapped_stack_exits_and_keeps_nmi_blocked() -> None:
    cpu = table_cpu(32, rsp=RAM, nmi_blocked=True)
    cpu.memory.write(ORIGIN, b"\xcf")
    assert cpu.step() == NestedPageFault(RAM, 1)
    assert (cpu.nmi_blocked, cpu.rip, cpu.rsp) == (True, ORIGIN, RAM)
    cpu.memory.add_ram(RAM, 0x1000)
    push(cpu, 4, 0x1234, 8, 2)
    assert cpu.step() is None
    assert (cpu.nmi_blocked, cpu.rip) == (False, 0x1234)


def test_all_levels_go_in_and_come_out_again() -> None:
    for level in (1, 2, 3):
        cpu = table_cpu(32)
        set_level(cpu, level)
        cpu.rsp, cpu.rip, cpu.if_ = STACK, ORIGIN, 1
        set_gate(cpu, 0x30, gate(14, 8, dpl=3))
        run_one(cpu, "int 0x30", bytes.fromhex("cd 30"))
        run_one(cpu, "iret", bytes.fromhex("cf"))
        assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.if_) == (level, ORIGIN + 2, STACK, 1)
        assert cpu.ss.selector == DATA_SELECTOR[level]
