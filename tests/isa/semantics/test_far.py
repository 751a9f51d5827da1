"""Far JMP, CALL and RET against a model written from SDM Vol. 2, and as scenarios."""

from __future__ import annotations

from itertools import product

import pytest

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.cpuid import feature_set
from isa.decode import disassemble
from isa.exits import NestedPageFault
from isa.semantics.far import call_far, jump_far, return_far
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import RAM, STACK, fault_of, make_cpu
from tests.isa.tables import (
    CODE,
    CODE_SELECTOR,
    CONFORMING_CODE,
    DATA,
    DATA_SELECTOR,
    GDT,
    HANDLER,
    SLOT,
    SLOT2,
    STACK_TOP,
    TSS,
    TSS_SELECTOR,
    descriptor,
    gate,
    gate64,
    get,
    outcome,
    put,
    set_entry,
    set_level,
    table_cpu,
    words,
)

CONFORMING = (0x1C, 0x1D, 0x1E, 0x1F)
OFFSET = 0x4321


def step(cpu: Cpu, text: str, raw: bytes) -> None:
    """Execute `raw` at RIP; `text` must be its disassembly."""
    assert disassemble(raw, cpu.code_bits, cpu.rip) == text
    cpu.memory.write(cpu.rip if cpu.mode64 else cpu.cs.base + cpu.rip, raw)
    reason = cpu.step()
    assert reason is None, reason


def reset(cpu: Cpu, level: int) -> None:
    set_level(cpu, level)
    cpu.rsp, cpu.rip = STACK, ORIGIN


# ---- matrices ----------------------------------------------------------------------------------------------


def expected_direct(kind: int, dpl: int, rpl: int, cpl: int, present: int) -> str:
    """SDM Vol. 2, JMP and CALL: CONFORMING-CODE-SEGMENT and NONCONFORMING-CODE-SEGMENT."""
    if kind < 0x18:
        return f"#GP({SLOT:#x})"
    if dpl > cpl if kind in CONFORMING else (rpl > cpl or dpl != cpl):
        return f"#GP({SLOT:#x})"
    return "" if present else f"#NP({SLOT:#x})"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("how", ["JMP", "CALL"])
def test_every_direct_transfer_agrees_with_the_manual(bits: int, how: str) -> None:
    cpu = table_cpu(bits)
    size = 4
    gates = (1, 4, 5, 9, 0xC) if bits == 32 else (0xC,)  # these have a matrix of their own
    for kind, dpl, rpl, cpl, present in product(range(32), range(4), range(4), range(4), (0, 1)):
        if kind in gates:
            continue
        reset(cpu, cpl)
        old_cs = cpu.cs.selector
        set_entry(cpu, SLOT, descriptor(kind, dpl, present=present, flags=0xC if bits == 32 else 0xA))
        arguments = (cpu, SLOT | rpl, OFFSET) + ((size,) if how == "CALL" else ())
        got = outcome(call_far if how == "CALL" else jump_far, *arguments)
        case = (hex(kind), dpl, rpl, cpl, present)
        assert got == expected_direct(kind, dpl, rpl, cpl, present), case
        if got:
            assert (cpu.cs.selector, cpu.rip, cpu.rsp, cpu.cpl) == (old_cs, ORIGIN, STACK, cpl), case
            continue
        assert (cpu.cs.selector, cpu.rip, cpu.cpl) == (SLOT | cpl, OFFSET, cpl), case
        if how == "CALL":
            assert cpu.rsp == STACK - 2 * size
            assert words(cpu, STACK - 2 * size, 2, size) == [ORIGIN, old_cs], case


def expected_gate(
    how: str,
    cpl: int,
    rpl: int,
    gate_dpl: int,
    gate_present: int,
    code: int,
    code_dpl: int,
    code_present: int,
) -> str:
    """SDM Vol. 3, "Accessing a Code Segment Through a Call Gate": its table of privilege rules."""
    if cpl > gate_dpl or rpl > gate_dpl:
        return f"#GP({SLOT:#x})"
    if not gate_present:
        return f"#NP({SLOT:#x})"
    if how == "CALL" or code in CONFORMING:
        allowed = code_dpl <= cpl
    else:
        allowed = code_dpl == cpl
    if not allowed:
        return f"#GP({SLOT2:#x})"
    return "" if code_present else f"#NP({SLOT2:#x})"


@pytest.mark.parametrize("kind", [0x4, 0xC, 0x1C])  # 16-bit, 32-bit and (0x1C) 64-bit call gates
@pytest.mark.parametrize("how", ["JMP", "CALL"])
def test_every_call_gate_agrees_with_the_manual(kind: int, how: str) -> None:
    long = kind == 0x1C
    size = 8 if long else 4 if kind == 0xC else 2
    cpu = table_cpu(64 if long else 32)
    cases = product(range(4), range(4), range(4), (0, 1), (CODE, CONFORMING_CODE), range(4), (0, 1))
    for cpl, rpl, gate_dpl, gate_present, code, code_dpl, code_present in cases:
        reset(cpu, cpl)
        old_cs, old_ss = cpu.cs.selector, cpu.ss.selector
        make = gate64 if long else gate
        raw = make(kind & 15, SLOT2 | 3, OFFSET, dpl=gate_dpl, present=gate_present)
        set_entry(cpu, SLOT, raw, 16 if long else 8)
        set_entry(cpu, SLOT2, descriptor(code, code_dpl, present=code_present, flags=0xA if long else 0xC))
        arguments = (cpu, SLOT | rpl, 0x9999) + ((4,) if how == "CALL" else ())
        got = outcome(call_far if how == "CALL" else jump_far, *arguments)
        case = (cpl, rpl, gate_dpl, gate_present, code, code_dpl, code_present)
        want = expected_gate(how, cpl, rpl, gate_dpl, gate_present, code, code_dpl, code_present)
        assert got == want, case
        if got:
            assert (cpu.cs.selector, cpu.rip, cpu.rsp, cpu.cpl) == (old_cs, ORIGIN, STACK, cpl), case
            continue
        level = code_dpl if code == CODE else cpl
        assert (cpu.cs.selector, cpu.rip, cpu.cpl) == (SLOT2 | level, OFFSET, level), case
        if how == "JMP":
            assert cpu.rsp == STACK
        elif level == cpl:
            assert cpu.rsp == STACK - 2 * size
            assert words(cpu, cpu.rsp, 2, size) == [ORIGIN, old_cs], case
        else:
            assert cpu.rsp == STACK_TOP[level] - 4 * size
            assert words(cpu, cpu.rsp, 4, size) == [ORIGIN, old_cs, STACK, old_ss], case
            assert cpu.ss.selector == (level if long else DATA_SELECTOR[level]), case
            assert cpu.ss.null == long


def test_every_return_to_an_outer_level_checks_ss_as_the_manual_says() -> None:
    for cpl, level in ((0, 1), (0, 3), (1, 2), (1, 3), (2, 3)):
        cpu = table_cpu(32)
        for kind, dpl, rpl, present in product(range(0x10, 0x20), range(4), range(4), (0, 1)):
            reset(cpu, cpl)
            set_entry(cpu, SLOT, descriptor(kind, dpl, present=present))
            for n, value in enumerate((OFFSET, CODE_SELECTOR[level], 0x7770, SLOT | rpl)):
                put(cpu, STACK + 4 * n, value, 4)
            got = outcome(return_far, cpu, 4, 0)
            case = (cpl, level, hex(kind), dpl, rpl, present)
            if rpl != level or kind not in (0x12, 0x13, 0x16, 0x17) or dpl != level:
                assert got == f"#GP({SLOT:#x})", case
            elif not present:
                assert got == f"#SS({SLOT:#x})", case
            else:
                assert got == "", case
                assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.ss.selector) == (level, OFFSET, 0x7770, SLOT | rpl)
                assert [s.selector for s in (cpu.ds, cpu.es, cpu.fs, cpu.gs)] == [0] * 4
                continue
            assert (cpu.cpl, cpu.rip, cpu.rsp) == (cpl, ORIGIN, STACK), case


# ---- real-address and virtual-8086 mode --------------------------------------------------------------------


def test_real_mode_far_jump_loads_cs_times_16() -> None:
    cpu = make_cpu(16)
    step(cpu, "jmp 0xf000:0xe05b", bytes.fromhex("ea 5be0 00f0"))
    assert (cpu.cs.selector, cpu.cs.base, cpu.rip) == (0xF000, 0xF0000, 0xE05B)


def test_real_mode_far_call_and_return_with_parameters() -> None:
    cpu = make_cpu(16)
    step(cpu, "call 0x2000:0x0100", bytes.fromhex("9a 0001 0020"))
    assert cpu.rsp == STACK - 4
    assert words(cpu, STACK - 4, 2, 2) == [ORIGIN + 5, 0]
    step(cpu, "retf 0x6", bytes.fromhex("ca 0600"))
    assert (cpu.cs.selector, cpu.rip, cpu.rsp) == (0, ORIGIN + 5, STACK + 6)


def test_real_mode_jump_beyond_64_kib_is_refused() -> None:
    cpu = make_cpu(16)
    text = "jmp dword 0x0020:0x00010000"
    assert str(fault_of(cpu, text, bytes.fromhex("66 ea 00000100 2000"))).startswith(
        "#GP(0x0): target 0x10000"
    )


def test_real_mode_jump_through_memory() -> None:
    cpu = make_cpu(16, rbx=0x3000)
    put(cpu, 0x3000, 0x2000_0040, 4)
    step(cpu, "jmp far [bx]", bytes.fromhex("ff 2f"))
    assert (cpu.cs.selector, cpu.rip) == (0x2000, 0x40)


def test_virtual_8086_far_call_uses_no_descriptors() -> None:
    cpu = table_cpu(32, 3, rsp=STACK)
    cpu.vm = 1
    for segment in cpu.segments:
        segment.load_v86(0)
    cpu.update_mode()
    step(cpu, "call 0x2000:0x0100", bytes.fromhex("9a 0001 0020"))
    assert (cpu.cs.base, cpu.rip, cpu.cpl, cpu.rsp) == (0x20000, 0x100, 3, STACK - 4)


# ---- protected mode ----------------------------------------------------------------------------------------


def test_a_call_gate_to_ring_0_copies_the_parameters_and_the_return_releases_them() -> None:
    cpu = table_cpu(32, 3)
    cpu.rsp = STACK
    for n, value in enumerate((0x11, 0x22, 0x33)):
        put(cpu, STACK + 4 * n, value, 4)
    set_entry(cpu, SLOT, gate(0xC, CODE_SELECTOR[0], HANDLER, dpl=3, count=3))
    step(cpu, "call 0x005b:0x00000000", bytes.fromhex("9a 00000000 5b00"))
    assert (cpu.cpl, cpu.rip, cpu.rsp) == (0, HANDLER, STACK_TOP[0] - 28)
    frame = [ORIGIN + 7, CODE_SELECTOR[3], 0x11, 0x22, 0x33, STACK, DATA_SELECTOR[3]]
    assert words(cpu, cpu.rsp, 7) == frame
    step(cpu, "retf 0xc", bytes.fromhex("ca 0c00"))
    assert (cpu.cpl, cpu.rip, cpu.rsp) == (3, ORIGIN + 7, STACK + 12)
    assert cpu.ss.selector == DATA_SELECTOR[3]


def test_a_16_bit_call_gate_copies_words_and_cuts_the_offset() -> None:
    cpu = table_cpu(32, 3)
    cpu.rsp = STACK
    put(cpu, STACK, 0x2222_1111, 4)
    set_entry(cpu, SLOT, gate(4, CODE_SELECTOR[0], 0xFFFF_1800, dpl=3, count=2))
    step(cpu, "call 0x005b:0x00000000", bytes.fromhex("9a 00000000 5b00"))
    assert (cpu.rip, cpu.rsp) == (0x1800, STACK_TOP[0] - 12)
    assert words(cpu, cpu.rsp, 6, 2) == [ORIGIN + 7, 0x3B, 0x1111, 0x2222, STACK, 0x43]


def test_a_16_bit_tss_gives_16_bit_inner_stacks() -> None:
    cpu = table_cpu(32, 3)
    cpu.rsp = STACK
    cpu.tr.load_raw(TSS_SELECTOR, TSS, 0x2B, 0x83)
    put(cpu, TSS + 2, 0x5500, 2)
    put(cpu, TSS + 4, DATA_SELECTOR[0], 2)
    set_entry(cpu, SLOT, gate(0xC, CODE_SELECTOR[0], HANDLER, dpl=3))
    step(cpu, "call 0x005b:0x00000000", bytes.fromhex("9a 00000000 5b00"))
    assert (cpu.cpl, cpu.rsp) == (0, 0x5500 - 16)


@pytest.mark.parametrize(
    ("ss0", "expected"),
    [
        (0, "#TS(0x0)"),
        (DATA_SELECTOR[3], "#TS(0x40)"),  # RPL is not the new CPL
        (0x41 ^ 1, "#TS(0x40)"),  # DPL is not the new CPL
        (CODE_SELECTOR[0], "#TS(0x8)"),  # not writable data
        (0x1F0, "#TS(0x1f0)"),  # outside the GDT
        (SLOT2, "#SS(0x68)"),  # not present
    ],
)
def test_a_bad_inner_stack_selector_faults_before_anything_changes(ss0: int, expected: str) -> None:
    cpu = table_cpu(32, 3)
    reset(cpu, 3)
    put(cpu, TSS + 8, ss0, 2)
    set_entry(cpu, SLOT2, descriptor(DATA, 0, present=0))
    set_entry(cpu, SLOT, gate(0xC, CODE_SELECTOR[0], HANDLER, dpl=3))
    assert outcome(call_far, cpu, SLOT | 3, 0, 4) == expected
    assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.ss.selector) == (3, ORIGIN, STACK, DATA_SELECTOR[3])


def test_an_inner_stack_without_room_is_a_stack_fault_with_its_selector() -> None:
    cpu = table_cpu(32, 3)
    reset(cpu, 3)
    set_entry(cpu, SLOT2, descriptor(DATA, 0, limit=0x5FF7, flags=4))
    put(cpu, TSS + 8, SLOT2, 2)
    set_entry(cpu, SLOT, gate(0xC, CODE_SELECTOR[0], HANDLER, dpl=3))
    assert outcome(call_far, cpu, SLOT | 3, 0, 4) == f"#SS({SLOT2:#x})"
    put(cpu, TSS + 4, 0x5FF8, 4)
    assert outcome(call_far, cpu, SLOT | 3, 0, 4) == ""


def test_a_tss_too_short_for_the_inner_stack_is_invalid() -> None:
    cpu = table_cpu(32, 3)
    reset(cpu, 3)
    set_entry(cpu, SLOT, gate(0xC, CODE_SELECTOR[0], HANDLER, dpl=3))
    cpu.tr.limit = 8
    assert outcome(call_far, cpu, SLOT | 3, 0, 4) == f"#TS({TSS_SELECTOR:#x})"
    cpu.tr.limit = 9
    assert outcome(call_far, cpu, SLOT | 3, 0, 4) == ""


def test_a_target_outside_the_code_limit_faults_with_zero() -> None:
    cpu = table_cpu(32)
    reset(cpu, 0)
    set_entry(cpu, SLOT, descriptor(CODE, 0, limit=0x4320, flags=4))
    assert outcome(jump_far, cpu, SLOT, OFFSET) == "#GP(0x0)"
    assert outcome(jump_far, cpu, SLOT, OFFSET - 1) == ""


def test_a_conforming_segment_runs_at_the_callers_level() -> None:
    cpu = table_cpu(32, 3)
    set_entry(cpu, SLOT, descriptor(CONFORMING_CODE, 0))
    step(cpu, "jmp 0x0058:0x00004321", bytes.fromhex("ea 21430000 5800"))
    assert (cpu.cpl, cpu.cs.selector) == (3, SLOT | 3)


def test_an_outward_return_to_a_16_bit_stack_keeps_the_high_half_of_esp() -> None:
    cpu = table_cpu(32)
    cpu.rsp = 0x1_8000 - 0x1_0000 + 0x1_0000  # a stack pointer with bits above 15
    set_entry(cpu, SLOT, descriptor(DATA, 3, flags=0, limit=0xFFFF))
    for n, value in enumerate((OFFSET, CODE_SELECTOR[3], 0xABCD_7770, SLOT | 3)):
        put(cpu, 0x1_8000 + 4 * n, value, 4)
    step(cpu, "retf", bytes.fromhex("cb"))
    assert (cpu.cpl, cpu.rsp) == (3, 0x1_7770)


def test_a_call_whose_stack_is_unmapped_exits_and_can_go_on() -> None:
    cpu = table_cpu(32)
    cpu.rsp = RAM + 0x1000
    cpu.memory.write(ORIGIN, bytes.fromhex("9a 21430000 0800"))
    assert cpu.step() == NestedPageFault(RAM + 0xFFC, 2)
    assert (cpu.cs.selector, cpu.rip, cpu.rsp) == (8, ORIGIN, RAM + 0x1000)
    cpu.memory.add_ram(RAM, 0x1000)
    assert cpu.step() is None
    assert (cpu.rip, cpu.rsp) == (OFFSET, RAM + 0xFF8)
    assert words(cpu, cpu.rsp, 2) == [ORIGIN + 7, 8]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(gate(0xC, 3), "#GP(0x0)"), (gate(0xC, 0x10), "#GP(0x10)"), (gate(0xC, 0x1F0), "#GP(0x1f0)"),
     (gate(5, TSS_SELECTOR, present=0), "#NP(0x58)")],
)  # fmt: skip
def test_gates_that_lead_nowhere(raw: int, expected: str) -> None:
    cpu = table_cpu(32)
    set_entry(cpu, SLOT, raw)
    assert outcome(jump_far, cpu, SLOT, 0) == expected
    assert outcome(call_far, cpu, SLOT, 0, 4) == expected


def test_a_null_target_is_refused() -> None:
    assert outcome(jump_far, table_cpu(32), 3, 0) == "#GP(0x0)"
    assert outcome(call_far, table_cpu(64), 0, 0, 8) == "#GP(0x0)"


def test_a_64_bit_call_gate_to_a_noncanonical_stack_is_a_stack_fault() -> None:
    cpu = table_cpu(64, 3)
    put(cpu, TSS + 4, 0x8000_0000_0010)
    set_entry(cpu, SLOT, gate64(0xC, CODE_SELECTOR[0], HANDLER, dpl=3), 16)
    assert outcome(call_far, cpu, SLOT | 3, 0, 4) == "#SS(0x0)"


# ---- IA-32e mode -------------------------------------------------------------------------------------------


def test_64_bit_call_gate_loads_rsp0_and_a_null_ss() -> None:
    cpu = table_cpu(64, 3)
    cpu.rsp, cpu.rbx = STACK, 0x7000
    put(cpu, TSS + 4, 0x5FFB)  # call gates do not align the stack
    put(cpu, 0x7000, SLOT << 32 | 3 << 32, 6)
    set_entry(cpu, SLOT, gate64(0xC, CODE_SELECTOR[0], HANDLER, dpl=3), 16)
    step(cpu, "call dword far [rbx]", bytes.fromhex("ff 1b"))
    assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.ss.selector, cpu.ss.null) == (0, HANDLER, 0x5FFB - 32, 0, True)
    assert words(cpu, cpu.rsp, 4, 8) == [ORIGIN + 2, 0x3B, STACK, 0x43]
    step(cpu, "retfq", bytes.fromhex("48 cb"))
    assert (cpu.cpl, cpu.rip, cpu.rsp, cpu.ss.selector) == (3, ORIGIN + 2, STACK, 0x43)


def test_far_return_enters_compatibility_mode_and_a_far_jump_leaves_it() -> None:
    cpu = table_cpu(64)
    cpu.rsp = STACK
    set_entry(cpu, SLOT, descriptor(CODE, 0, flags=0xC))
    put(cpu, STACK, 0x1900)
    put(cpu, STACK + 8, SLOT)
    step(cpu, "retfq", bytes.fromhex("48 cb"))
    assert (cpu.mode_name(), cpu.code_bits, cpu.rip) == ("compatibility", 32, 0x1900)
    step(cpu, "jmp 0x0008:0x00001a00", bytes.fromhex("ea 001a0000 0800"))
    assert (cpu.mode_name(), cpu.rip) == ("64-bit", 0x1A00)


def test_a_noncanonical_64_bit_target_is_refused() -> None:
    cpu = table_cpu(64)
    reset(cpu, 0)
    assert outcome(jump_far, cpu, 8, 0x0000_8000_0000_0000) == "#GP(0x0)"
    assert outcome(jump_far, cpu, 8, 0xFFFF_8000_0000_0000) == ""


@pytest.mark.parametrize("kind", [1, 4, 5, 9])
def test_legacy_gates_and_tasks_are_no_targets_in_ia_32e_mode(kind: int) -> None:
    cpu = table_cpu(64)
    set_entry(cpu, SLOT, descriptor(kind, 0))
    assert outcome(jump_far, cpu, SLOT, 0) == f"#GP({SLOT:#x})"


def test_a_code_segment_with_l_and_d_is_refused_in_ia_32e_mode() -> None:
    cpu = table_cpu(64)
    set_entry(cpu, SLOT, descriptor(CODE, 0, flags=0xE))
    assert outcome(jump_far, cpu, SLOT, 0) == f"#GP({SLOT:#x})"


def test_a_64_bit_call_gate_needs_64_bit_code_and_a_clear_upper_type() -> None:
    cpu = table_cpu(64)
    set_entry(cpu, SLOT2, descriptor(CODE, 0, flags=0xC))
    set_entry(cpu, SLOT, gate64(0xC, SLOT2), 16)
    assert outcome(jump_far, cpu, SLOT, 0) == f"#GP({SLOT2:#x})"
    set_entry(cpu, SLOT, gate64(0xC, 8) | 0xC << 104, 16)
    assert outcome(jump_far, cpu, SLOT, 0) == f"#GP({SLOT:#x})"


# ---- a whole way -------------------------------------------------------------------------------------------


def test_round_trip_from_real_mode_to_protected_mode_to_64_bit_mode_and_back() -> None:
    """The classic start-up, and the way down again: every mode leaves its mark in memory."""
    cpu = make_cpu(16, features=feature_set())
    pml4, pdpt, pd = 0x10000, 0x11000, 0x12000
    put(cpu, pml4, pdpt | 3)
    put(cpu, pdpt, pd | 3)
    put(cpu, pd, 0x83)  # 2 MiB, identity
    entries = (0, descriptor(CODE), descriptor(DATA), descriptor(CODE, flags=0xA),
               descriptor(CODE, limit=0xFFFF, flags=0), descriptor(DATA, limit=0xFFFF, flags=0))  # fmt: skip
    for n, raw in enumerate(entries):
        put(cpu, GDT + 8 * n, raw)
    put(cpu, 0x1F00, 8 * len(entries) - 1 | GDT << 16, 6)
    real = """
        cli
        lgdt [0x1f00]
        mov eax, cr0
        or eax, 1
        mov cr0, eax
        jmp dword 0x08:0x1100
    """
    protected = """
        mov ax, 0x10
        mov ds, ax
        mov ss, ax
        mov esp, 0x9000
        mov dword [0x7000], 0x32323232
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, 0x10000
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        jmp 0x18:0x1200
    """
    long = """
        mov rax, 0x6464646464646464
        mov [0x7008], rax
        push 0x08
        push 0x1300
        o64 retf
    """
    down = """
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        and eax, 0xfffffeff
        wrmsr
        jmp 0x20:0x1400
    """
    sixteen = """
        mov ax, 0x28
        mov ds, ax
        mov ss, ax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp 0x0000:0x1500
    """
    again = """
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov word [0x7010], 0x1616
        hlt
    """
    for at, bits, text in (
        (0x1000, 16, real), (0x1100, 32, protected), (0x1200, 64, long), (0x1300, 32, down),
        (0x1400, 16, sixteen), (0x1500, 16, again),
    ):  # fmt: skip
        cpu.memory.write(at, assemble(text, bits=bits, origin=at))
    seen = []
    for _ in range(100):
        reason = cpu.step()
        assert reason is None, reason
        if not seen or seen[-1] != cpu.mode_name():
            seen.append(cpu.mode_name())
        if cpu.halted:
            break
    assert seen == [
        "real", "16-bit protected", "32-bit protected", "compatibility", "64-bit", "compatibility",
        "32-bit protected", "16-bit protected", "real",
    ]  # fmt: skip
    assert (get(cpu, 0x7000, 4), get(cpu, 0x7008), get(cpu, 0x7010, 2)) == (
        0x3232_3232, 0x6464_6464_6464_6464, 0x1616,
    )  # fmt: skip
    assert cpu.rsp == 0x9000 and cpu.halted
