"""Hardware task switches: what is saved and loaded, links and busy bits, every check in its order."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.exits import NestedPageFault, TripleFault, VmExit
from isa.faults import Fault, GeneralProtection
from isa.interrupts import INT_N
from isa.semantics.far import call_far, jump_far
from isa.state import CR0_TS
from isa.tasks import return_to_previous_task
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import RAM, STACK, run_one
from tests.isa.tables import (
    CODE,
    CODE_SELECTOR,
    CONFORMING_CODE,
    DATA,
    DATA_SELECTOR,
    GDT,
    HANDLER,
    LDT,
    SLOT,
    SLOT2,
    TASK_SELECTOR,
    TSS,
    TSS_SELECTOR,
    descriptor,
    gate,
    get,
    outcome,
    put,
    set_entry,
    set_gate,
    set_level,
    table_cpu,
    words,
)

NEW_TSS, NEW_STACK, NEW_EIP = 0x3800, 0x9000, 0x1C00
NT, VM, RF, TF = 1 << 14, 1 << 17, 1 << 16, 1 << 8
AVAILABLE, BUSY = 9, 0xB

REGISTERS = {"rax": 0xA0, "rcx": 0xC1, "rdx": 0xD2, "rbx": 0xB3, "rbp": 0x55, "rsi": 0x66, "rdi": 0x77}


def task_cpu(level: int = 0, new_level: int = 0, **changes: int) -> Cpu:
    """A CPU at `level` with a second, 32-bit task at `new_level` ready; `changes` go into its TSS."""
    cpu = table_cpu(32, level, rsp=STACK, **REGISTERS)
    set_entry(cpu, TASK_SELECTOR, descriptor(AVAILABLE, 3, base=NEW_TSS, limit=0x67, flags=0))
    write_tss(cpu, NEW_TSS, new_level, **changes)
    return cpu


def write_tss(cpu: Cpu, base: int, level: int = 0, **changes: int) -> None:
    """A 32-bit TSS whose registers are 0x1110 + number; `changes` by the names of the TSS figure."""
    data = DATA_SELECTOR[level]
    fields = {
        "link": 0, "esp0": 0x6000, "ss0": 0x10, "cr3": 0, "eip": NEW_EIP, "eflags": 2,
        "eax": 0x1110, "ecx": 0x1111, "edx": 0x1112, "ebx": 0x1113, "esp": NEW_STACK, "ebp": 0x1115,
        "esi": 0x1116, "edi": 0x1117, "es": data, "cs": CODE_SELECTOR[level], "ss": data, "ds": data,
        "fs": data, "gs": data, "ldt": 0, "trap": 0,
    }  # fmt: skip
    fields.update(changes)
    offsets = [0, 4, 8, *range(0x1C, 0x68, 4)]
    for (_, value), offset in zip(fields.items(), offsets, strict=True):
        put(cpu, base + offset, value, 4)


def tss_type(cpu: Cpu, selector: int) -> int:
    return get(cpu, GDT + selector + 5, 1) & 15


def all_state(cpu: Cpu) -> list[object]:
    segments = [
        (s.selector, s.base, s.limit, s.attributes, s.null) for s in (*cpu.segments, cpu.ldtr, cpu.tr)
    ]
    names = (*REGISTERS, "rsp", "rip", "cpl", "cr0", "cr3", "dr7", "stack_mask", "code_bits")
    return [segments, [getattr(cpu, name) for name in names], cpu.rflags()]


# ---- saving and loading ------------------------------------------------------------------------------------


def test_a_jump_saves_the_old_task_and_loads_the_new_one() -> None:
    cpu = task_cpu()
    cpu.dr7 |= 0x155
    cpu.cf = 1
    raw = bytes.fromhex("ea 00000000 7800")
    run_one(cpu, "jmp 0x0078:0x00000000", raw)
    assert words(cpu, TSS + 0x20, 10) == [ORIGIN + 7, 3, 0xA0, 0xC1, 0xD2, 0xB3, STACK, 0x55, 0x66, 0x77]
    assert words(cpu, TSS + 0x48, 6) == [0x10, 8, 0x10, 0x10, 0x10, 0x10]
    got = [cpu.rax, cpu.rcx, cpu.rdx, cpu.rbx, cpu.rsp, cpu.rbp, cpu.rsi, cpu.rdi]
    assert got == [0x1110, 0x1111, 0x1112, 0x1113, NEW_STACK, 0x1115, 0x1116, 0x1117]
    assert (cpu.rip, cpu.rflags(), cpu.tr.selector, cpu.tr.base) == (NEW_EIP, 2, TASK_SELECTOR, NEW_TSS)
    assert (tss_type(cpu, TSS_SELECTOR), tss_type(cpu, TASK_SELECTOR)) == (AVAILABLE, BUSY)
    assert cpu.cr0 & CR0_TS and not cpu.dr7 & 0x155
    assert get(cpu, NEW_TSS, 2) == 0  # a jump leaves no link


def test_a_call_links_back_and_iret_returns() -> None:
    cpu = task_cpu()
    run_one(cpu, "call 0x0078:0x00000000", bytes.fromhex("9a 00000000 7800"))
    assert (cpu.nt, get(cpu, NEW_TSS, 2)) == (1, TSS_SELECTOR)
    assert (tss_type(cpu, TSS_SELECTOR), tss_type(cpu, TASK_SELECTOR)) == (BUSY, BUSY)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.rip, cpu.rsp, cpu.rax, cpu.nt) == (ORIGIN + 7, STACK, 0xA0, 0)
    assert (cpu.tr.selector, cpu.tr.base) == (TSS_SELECTOR, TSS)
    assert (tss_type(cpu, TSS_SELECTOR), tss_type(cpu, TASK_SELECTOR)) == (BUSY, AVAILABLE)
    assert get(cpu, NEW_TSS + 0x24, 4) == 2  # NT is cleared in the saved image
    assert get(cpu, NEW_TSS + 0x20, 4) == NEW_EIP + 1  # it would go on behind its IRET


def test_nested_tasks_come_back_in_order() -> None:
    cpu = task_cpu()
    third = 0x88
    set_entry(cpu, third, descriptor(AVAILABLE, 0, base=0x3A00, limit=0x67, flags=0))
    write_tss(cpu, 0x3A00, eip=0x1D00, eax=0x3333)
    run_one(cpu, "call 0x0078:0x00000000", bytes.fromhex("9a 00000000 7800"))
    run_one(cpu, "call 0x0088:0x00000000", bytes.fromhex("9a 00000000 8800"))
    assert (cpu.rax, get(cpu, 0x3A00, 2)) == (0x3333, TASK_SELECTOR)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.rax, cpu.nt, cpu.rip) == (0x1110, 1, NEW_EIP + 7)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.rax, cpu.nt, cpu.rip) == (0xA0, 0, ORIGIN + 7)


def test_a_task_gate_takes_interrupts_and_pushes_the_error_code() -> None:
    cpu = task_cpu(3, 0)
    set_gate(cpu, 13, gate(5, TASK_SELECTOR))
    assert cpu.deliver_fault(GeneralProtection(0x1234)) is None
    assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.nt) == (0, NEW_EIP, NEW_STACK - 4, 1)
    assert get(cpu, cpu.rsp, 4) == 0x1234
    assert get(cpu, TSS + 0x20, 4) == ORIGIN
    assert get(cpu, TSS + 0x24, 4) & RF  # the image of a fault
    assert get(cpu, TSS + 0x4C, 2) == CODE_SELECTOR[3]


def test_a_double_fault_task_works_without_any_stack() -> None:
    cpu = task_cpu()
    cpu.rsp = 0
    cpu.ss.limit = 0xFFF
    cpu.ss.update_bounds()
    set_gate(cpu, 8, gate(5, TASK_SELECTOR))
    set_gate(cpu, 14, gate(14, 8))
    set_gate(cpu, 13, gate(14, 8))
    set_gate(cpu, 12, gate(14, 8))
    assert cpu.deliver_fault(GeneralProtection(0)) is None
    assert (cpu.rip, get(cpu, cpu.rsp, 4)) == (NEW_EIP, 0)


def test_a_task_can_start_in_virtual_8086_mode() -> None:
    cpu = task_cpu(eflags=VM | 2, es=0x201, cs=0x202, ss=0x203, ds=0x204, fs=0x205, gs=0x206, eip=0x10)
    jump_far(cpu, TASK_SELECTOR, 0)
    assert (cpu.mode_name(), cpu.cpl, cpu.rip) == ("virtual-8086", 3, 0x10)
    assert [s.base for s in cpu.segments] == [n << 4 for n in range(0x201, 0x207)]


def test_a_virtual_8086_task_is_saved_and_resumed_by_a_task_gate() -> None:
    cpu = task_cpu()
    for segment in cpu.segments:
        segment.load_v86(0x150)
    cpu.cpl, cpu.vm, cpu.rip = 3, 1, 0x20
    cpu.update_mode()
    set_gate(cpu, 0x20, gate(5, TASK_SELECTOR))
    assert cpu.deliver_external(0x20) is None
    assert (cpu.vm, cpu.cpl, cpu.rip) == (0, 0, NEW_EIP)
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.mode_name(), cpu.cs.base, cpu.rip) == ("virtual-8086", 0x1500, 0x20)


def test_16_bit_tasks_switch_words_and_null_fs_and_gs() -> None:
    cpu = task_cpu()
    set_entry(cpu, TASK_SELECTOR, descriptor(1, 0, base=NEW_TSS, limit=0x2B, flags=0))
    fields = (NEW_EIP, 2, 0x110, 0x111, 0x112, 0x113, NEW_STACK, 0x115, 0x116, 0x117, 0x10, 8, 0x10, 0x10, 0)
    for n, value in enumerate(fields):
        put(cpu, NEW_TSS + 0x0E + 2 * n, value, 2)
    call_far(cpu, TASK_SELECTOR, 0, 4)
    assert (cpu.rip, cpu.rax, cpu.rdi, cpu.rsp, cpu.nt) == (NEW_EIP, 0x110, 0x117, NEW_STACK, 1)
    assert (cpu.fs.null, cpu.gs.null, cpu.ds.selector) == (True, True, 0x10)
    assert (cpu.tr.type, tss_type(cpu, TASK_SELECTOR)) == (3, 3)
    cpu.rax = 0x1_2345
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert get(cpu, NEW_TSS + 0x12, 2) == 0x2345
    assert (cpu.rax, cpu.tr.type) == (0xA0, BUSY)


def test_the_t_bit_traps_before_the_first_instruction() -> None:
    cpu = task_cpu(trap=1)
    set_gate(cpu, 1, gate(14, 8))
    run_one(cpu, "jmp 0x0078:0x00000000", bytes.fromhex("ea 00000000 7800"))
    assert cpu.rip == NEW_EIP
    assert cpu.step() is None
    assert (cpu.rip, get(cpu, cpu.rsp, 4), cpu.dr6 >> 15 & 1) == (HANDLER, NEW_EIP, 1)


def test_a_task_brings_its_own_ldt() -> None:
    cpu = task_cpu(ldt=SLOT, ds=0x0C)
    set_entry(cpu, SLOT, descriptor(2, base=LDT, limit=0x0F, flags=0))
    put(cpu, LDT + 8, descriptor(DATA, base=0x7000))
    jump_far(cpu, TASK_SELECTOR, 0)
    assert (cpu.ldtr.base, cpu.ds.base) == (LDT, 0x7000)


def test_a_task_brings_its_own_page_tables() -> None:
    cpu = task_cpu(cr3=0x20000)
    for directory, table, page in ((0x20000, 0x21000, 0xB000), (0x22000, 0x23000, 0xA000)):
        put(cpu, directory, table | 7, 4)
        for n in range(256):
            put(cpu, table + 4 * n, n << 12 | 7, 4)
        put(cpu, table + 4 * 0xA, page | 7, 4)  # linear 0xA000 differs
    put(cpu, 0xB000, 0x1234, 2)
    cpu.cr3 = 0x22000
    cpu.cr0 |= 1 << 31
    cpu.flush_tlb()
    assert cpu.read_data(cpu.ds, 0xA000, 2) == 0
    jump_far(cpu, TASK_SELECTOR, 0)
    assert cpu.cr3 == 0x20000
    assert cpu.read_data(cpu.ds, 0xA000, 2) == 0x1234


# ---- checks in the old task --------------------------------------------------------------------------------


@pytest.mark.parametrize("through_gate", [False, True])
@pytest.mark.parametrize("cpl", range(4))
def test_cpl_and_rpl_must_reach_the_dpl_of_the_tss_or_of_its_gate(through_gate: bool, cpl: int) -> None:
    for dpl in range(4):
        for rpl in range(4):
            cpu = task_cpu(cpl, cpl)
            tss_dpl = 0 if through_gate else dpl
            set_entry(cpu, TASK_SELECTOR, descriptor(AVAILABLE, tss_dpl, base=NEW_TSS, limit=0x67, flags=0))
            set_entry(cpu, SLOT, gate(5, TASK_SELECTOR, 0, dpl=dpl))
            selector = SLOT if through_gate else TASK_SELECTOR
            expected = "" if max(cpl, rpl) <= dpl else f"#GP({selector:#x})"
            assert outcome(jump_far, cpu, selector | rpl, 0) == expected, (dpl, rpl)


OLD_TASK_ERRORS = [
    ("busy", descriptor(BUSY, 0, base=NEW_TSS, limit=0x67, flags=0), f"#GP({TASK_SELECTOR:#x})"),
    (
        "absent",
        descriptor(AVAILABLE, 0, base=NEW_TSS, limit=0x67, flags=0, present=0),
        f"#NP({TASK_SELECTOR:#x})",
    ),
    ("short", descriptor(AVAILABLE, 0, base=NEW_TSS, limit=0x66, flags=0), f"#TS({TASK_SELECTOR:#x})"),
    ("short 16-bit", descriptor(1, 0, base=NEW_TSS, limit=0x2A, flags=0), f"#TS({TASK_SELECTOR:#x})"),
]


@pytest.mark.parametrize(("name", "raw", "expected"), OLD_TASK_ERRORS, ids=[e[0] for e in OLD_TASK_ERRORS])
def test_a_bad_tss_faults_in_the_old_task(name: str, raw: int, expected: str) -> None:
    for how in ("jump", "call", "gate", "interrupt"):
        cpu = task_cpu()
        set_entry(cpu, TASK_SELECTOR, raw)
        set_entry(cpu, SLOT, gate(5, TASK_SELECTOR, 0))
        set_gate(cpu, 0x41, gate(5, TASK_SELECTOR, 0))
        before = all_state(cpu)
        if how == "interrupt":
            got = outcome(cpu.software_interrupt, 0x41, INT_N)
        elif how == "call":
            got = outcome(call_far, cpu, TASK_SELECTOR, 0, 4)
        else:
            got = outcome(jump_far, cpu, SLOT if how == "gate" else TASK_SELECTOR, 0)
        assert got == expected, (name, how)
        assert all_state(cpu) == before
        assert get(cpu, GDT + TASK_SELECTOR) == raw


def test_a_current_tss_too_small_to_save_into_is_invalid() -> None:
    cpu = task_cpu()
    cpu.tr.limit = 0x66
    assert outcome(jump_far, cpu, TASK_SELECTOR, 0) == f"#TS({TSS_SELECTOR:#x})"


def test_a_task_gate_must_name_a_tss_of_the_gdt() -> None:
    for selector, expected in ((TASK_SELECTOR | 4, "#GP(0x7c)"), (0x10, "#GP(0x10)"), (0x1F0, "#GP(0x1f0)")):
        cpu = task_cpu()
        set_entry(cpu, SLOT, gate(5, selector, 0))
        assert outcome(jump_far, cpu, SLOT, 0) == expected


@pytest.mark.parametrize(
    ("link", "expected"),
    [(0, "#TS(0x0)"), (TASK_SELECTOR, "#TS(0x78)"), (TASK_SELECTOR | 4, "#TS(0x7c)"), (0x10, "#TS(0x10)"),
     (0x1F0, "#TS(0x1f0)"), (SLOT, "#NP(0x58)")],
)  # fmt: skip
def test_returning_needs_a_link_to_a_busy_tss(link: int, expected: str) -> None:
    cpu = task_cpu()  # the task's TSS is available, not busy
    set_entry(cpu, SLOT, descriptor(BUSY, base=NEW_TSS, limit=0x67, flags=0, present=0))
    put(cpu, TSS, link, 2)
    cpu.nt = 1
    before = all_state(cpu)
    assert outcome(return_to_previous_task, cpu) == expected
    assert all_state(cpu) == before


# ---- checks in the new task --------------------------------------------------------------------------------

# SDM Vol. 3, "Exception Conditions Checked During a Task Switch", from the LDT on
NEW_TASK_ERRORS = [
    ("LDT is no LDT", {"ldt": 0x10}, "#TS(0x10)"),
    ("LDT absent", {"ldt": SLOT2}, "#TS(0x68)"),
    ("LDT in an LDT", {"ldt": 0x5C}, "#TS(0x5c)"),
    ("CS null", {"cs": 0}, "#TS(0x0)"),
    ("CS outside the GDT", {"cs": 0x1F0}, "#TS(0x1f0)"),
    ("CS is data", {"cs": 0x10}, "#TS(0x10)"),
    ("nonconforming CS, DPL is not RPL", {"cs": 0x0B}, "#TS(0x8)"),
    ("conforming CS, DPL over RPL", {"cs": 0x88}, "#TS(0x88)"),
    ("CS absent", {"cs": 0x90}, "#NP(0x90)"),
    ("SS null", {"ss": 0}, "#TS(0x0)"),
    ("SS is code", {"ss": 8}, "#TS(0x8)"),
    ("SS RPL", {"ss": 0x11}, "#TS(0x10)"),
    ("SS DPL", {"ss": 0x40}, "#TS(0x40)"),
    ("SS absent", {"ss": 0x98}, "#SS(0x98)"),
    ("DS outside the GDT", {"ds": 0x1F0}, "#TS(0x1f0)"),
    ("ES is execute-only", {"es": 0xA0}, "#TS(0xa0)"),
    ("FS DPL below RPL", {"fs": 0x13}, "#TS(0x10)"),
    ("GS absent", {"gs": 0x98}, "#NP(0x98)"),
    ("EIP outside CS", {"cs": 0xA8}, "#GP(0x0)"),
]


@pytest.mark.parametrize(
    ("name", "changes", "expected"), NEW_TASK_ERRORS, ids=[error[0] for error in NEW_TASK_ERRORS]
)
def test_a_bad_segment_faults_in_the_new_task(name: str, changes: dict[str, int], expected: str) -> None:
    cpu = task_cpu(**changes)
    set_entry(cpu, SLOT2, descriptor(2, base=LDT, limit=0xF, flags=0, present=0))
    set_entry(cpu, 0x88, descriptor(CONFORMING_CODE, 1))
    set_entry(cpu, 0x90, descriptor(CODE, 0, present=0))
    set_entry(cpu, 0x98, descriptor(DATA, 0, present=0))
    set_entry(cpu, 0xA0, descriptor(0x18, 0))
    set_entry(cpu, 0xA8, descriptor(CODE, 0, limit=NEW_EIP - 1, flags=4))
    assert outcome(jump_far, cpu, TASK_SELECTOR, 0) == expected
    assert (cpu.tr.selector, cpu.rip, cpu.rax) == (TASK_SELECTOR, NEW_EIP, 0x1110)
    assert (tss_type(cpu, TSS_SELECTOR), tss_type(cpu, TASK_SELECTOR)) == (AVAILABLE, BUSY)


def test_the_handler_of_a_new_tasks_fault_finds_the_new_tasks_eip() -> None:
    cpu = task_cpu(ds=0x1F0)
    set_gate(cpu, 10, gate(14, 8))
    cpu.memory.write(ORIGIN, bytes.fromhex("ea 00000000 7800"))
    assert cpu.step() is None
    assert words(cpu, cpu.rsp, 3) == [0x1F0, NEW_EIP, 8]
    assert cpu.rsp == NEW_STACK - 16


def test_a_failing_task_gate_reports_ext() -> None:
    cpu = task_cpu(ds=0x1F0)
    set_gate(cpu, 0x41, gate(5, TASK_SELECTOR))
    set_gate(cpu, 10, gate(14, 8))
    assert cpu.deliver_external(0x41) is None
    assert words(cpu, cpu.rsp, 2) == [0x1F1, NEW_EIP]


# ---- exits in the middle -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing", ["new TSS", "old TSS", "LDT descriptor's table", "stack for the error code"]
)
def test_an_exit_in_a_task_switch_leaves_everything_and_the_switch_can_go_on(missing: str) -> None:
    cpu = task_cpu(esp=RAM + 0x800 if missing.startswith("stack") else NEW_STACK)
    if missing == "new TSS":
        set_entry(cpu, TASK_SELECTOR, descriptor(AVAILABLE, 0, base=RAM, limit=0x67, flags=0))
    elif missing == "old TSS":
        cpu.tr.base = RAM
    elif missing.startswith("LDT"):
        put(cpu, NEW_TSS + 0x60, SLOT, 4)
        put(cpu, NEW_TSS + 0x54, 0x0C, 4)
        set_entry(cpu, SLOT, descriptor(2, base=RAM, limit=0xF, flags=0))
    set_gate(cpu, 13, gate(5, TASK_SELECTOR))
    before = all_state(cpu)
    with pytest.raises(VmExit) as caught:
        cpu.deliver_fault(GeneralProtection(0))
    assert isinstance(caught.value.reason, NestedPageFault)
    assert all_state(cpu) == before
    assert (tss_type(cpu, TSS_SELECTOR), tss_type(cpu, TASK_SELECTOR)) == (BUSY, AVAILABLE)
    cpu.memory.add_ram(RAM, 0x1000)
    write_tss(cpu, RAM) if missing == "new TSS" else put(cpu, RAM + 8, descriptor(DATA))
    assert cpu.deliver_fault(GeneralProtection(0)) is None
    assert (cpu.rip, tss_type(cpu, TASK_SELECTOR)) == (NEW_EIP, BUSY)


def test_a_fault_while_saving_the_old_task_changes_no_busy_bit() -> None:
    cpu = task_cpu()
    put(cpu, 0x20000, 0x21000 | 7, 4)
    for n in range(256):
        put(cpu, 0x21000 + 4 * n, n << 12 | 7, 4)
    cpu.tr.base = 0x40_0000  # not mapped
    cpu.cr3 = 0x20000
    cpu.cr0 |= 1 << 31
    cpu.flush_tlb()
    before = all_state(cpu)
    with pytest.raises(Fault) as caught:
        jump_far(cpu, TASK_SELECTOR, 0)
    assert caught.value.name == "#PF"
    assert all_state(cpu) == before
    assert (tss_type(cpu, TSS_SELECTOR), tss_type(cpu, TASK_SELECTOR)) == (BUSY, AVAILABLE)


def test_a_user_task_calls_a_kernel_task_and_gets_its_level_back() -> None:
    cpu = task_cpu(3, 0)
    set_level(cpu, 3)
    run_one(cpu, "call 0x007b:0x00000000", bytes.fromhex("9a 00000000 7b00"))
    assert cpu.cpl == 0
    run_one(cpu, "iret", bytes.fromhex("cf"))
    assert (cpu.cpl, cpu.cs.selector, cpu.ss.selector) == (3, CODE_SELECTOR[3], DATA_SELECTOR[3])


def test_task_switches_do_not_exist_in_ia_32e_mode() -> None:
    cpu = table_cpu(64)
    set_gate(cpu, 0x41, gate(5, TSS_SELECTOR))
    assert outcome(cpu.software_interrupt, 0x41, INT_N) == f"#GP({0x41 * 8 | 2:#x})"


def test_a_shutdown_after_a_failed_switch_names_the_new_tasks_fault() -> None:
    cpu = task_cpu(ss=0)
    cpu.memory.write(ORIGIN, bytes.fromhex("ea 00000000 7800"))
    reason = cpu.step()
    assert isinstance(reason, TripleFault)
    assert reason.chain[0] == "#TS(0x0): SS load: null selector 0x0000"


def test_a_read_only_descriptor_table_keeps_both_busy_bits() -> None:
    """The old task's bit is cleared in one page, the new task's bit lies in a page that cannot be written."""
    cpu = task_cpu()
    put(cpu, 0x20000, 0x21000 | 7, 4)
    for n in range(256):
        put(cpu, 0x21000 + 4 * n, n << 12 | (5 if n == 0xE else 7), 4)
    far = 0x8000  # GDT entry 0xE000 - 0x6000, 32 KiB up
    cpu.gdtr.base, cpu.gdtr.limit = 0x6000, 0xFFFF
    for at in range(0, 0x100, 8):
        put(cpu, 0x6000 + at, get(cpu, GDT + at))
    put(cpu, 0x6000 + far, descriptor(AVAILABLE, 0, base=NEW_TSS, limit=0x67, flags=0))
    cpu.cr3 = 0x20000
    cpu.cr0 |= 1 << 31 | 1 << 16
    cpu.flush_tlb()
    before = all_state(cpu)
    with pytest.raises(Fault) as caught:
        jump_far(cpu, far, 0)
    assert caught.value.name == "#PF"
    assert all_state(cpu) == before
    assert get(cpu, 0x6000 + TSS_SELECTOR + 5, 1) & 15 == BUSY


def test_a_pae_task_loads_its_page_directory_pointers() -> None:
    cpu = task_cpu(cr3=0x20000)
    put(cpu, 0x20000, 0x21000 | 1)
    put(cpu, 0x21000, 0x83)
    cpu.cr4 |= 1 << 5
    cpu.cr3 = 0x20000
    cpu.load_pdptes(0x20000)
    cpu.cr0 |= 1 << 31
    cpu.flush_tlb()
    put(cpu, 0x22000, 0x21000 | 1)
    put(cpu, NEW_TSS + 0x1C, 0x22000, 4)
    jump_far(cpu, TASK_SELECTOR, 0)
    assert (cpu.cr3, cpu.pdptes) == (0x22000, [0x21001, 0, 0, 0])


def test_a_virtual_8086_task_past_64_kib_faults_there() -> None:
    cpu = task_cpu(eflags=VM | 2, cs=0x200, eip=0x1_0000)
    assert outcome(jump_far, cpu, TASK_SELECTOR, 0) == "#GP(0x0)"
    assert (cpu.vm, cpu.rip) == (1, 0x1_0000)
