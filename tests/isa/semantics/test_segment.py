"""Segment register moves, descriptor inspection and table registers."""

from __future__ import annotations

from itertools import product

import pytest

from isa.decode import disassemble
from isa.exits import Halt, NestedPageFault
from isa.state import CR0_AM, CR4_FSGSBASE, CR4_UMIP, MOV_SS_SHADOW, NO_SHADOW
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import RAM, STACK, execute, fault_of, make_cpu, run_one
from tests.isa.tables import (
    DATA,
    DATA_SELECTOR,
    GDT,
    HANDLER,
    LDT,
    SLOT,
    TSS_SELECTOR,
    descriptor,
    gate,
    get,
    put,
    set_entry,
    set_gate,
    set_level,
    table_cpu,
)

# ---- MOV ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "text", "expected"),
    [
        (16, "8c d8", "mov ax, ds", 0xFFFF_FFFF_FFFF_1234),
        (32, "66 8c d8", "mov ax, ds", 0xFFFF_FFFF_FFFF_1234),
        (32, "8c d8", "mov eax, ds", 0x1234),
        (64, "8c d8", "mov eax, ds", 0x1234),
        (64, "48 8c d8", "mov rax, ds", 0x1234),
    ],
)
def test_mov_from_segment_writes_16_bits_or_zero_extends(
    bits: int, code: str, text: str, expected: int
) -> None:
    cpu = make_cpu(bits, rax=0xFFFF_FFFF_FFFF_FFFF)
    cpu.ds.selector = 0x1234
    run_one(cpu, text, bytes.fromhex(code))
    assert cpu.rax == expected


def test_mov_from_segment_to_memory_stores_two_bytes_at_any_operand_size() -> None:
    cpu = make_cpu(64, rbx=0x3000)
    cpu.es.selector = 0x1234
    put(cpu, 0x3000, 0xFFFF_FFFF_FFFF_FFFF)
    run_one(cpu, "o64 mov [rbx], es", bytes.fromhex("48 8c 03"))
    assert get(cpu, 0x3000) == 0xFFFF_FFFF_FFFF_1234


def test_mov_to_segment_ignores_the_high_part_of_a_wide_register() -> None:
    cpu = table_cpu(32, rax=0xABCD_0000 | SLOT)
    set_entry(cpu, SLOT, descriptor(DATA, base=0x7000))
    run_one(cpu, "mov es, eax", bytes.fromhex("8e c0"))
    assert (cpu.es.selector, cpu.es.base) == (SLOT, 0x7000)


def test_mov_to_segment_in_real_mode_shifts_by_four() -> None:
    assert execute("mov ds, ax", "8e d8", bits=16, rax=0x1234).ds.base == 0x12340


def test_mov_to_ss_and_pop_ss_hold_events_back_for_one_instruction() -> None:
    for code, text in (("8e d0", "mov ss, eax"), ("17", "pop ss")):
        cpu = table_cpu(32, rax=0x10, if_=1)
        put(cpu, STACK, 0x10, 4)
        set_gate(cpu, 0x20, gate(0xE, 0x08))
        cpu.memory.write(ORIGIN + 1, b"\x90" * 8)
        cpu.memory.write(HANDLER, b"\xf4")
        run_one(cpu, text, bytes.fromhex(code))
        assert cpu.shadow == MOV_SS_SHADOW
        cpu.injected.append(0x20)
        cpu.request_attention()
        assert cpu.step() is None
        assert (cpu.shadow, cpu.rip) == (NO_SHADOW, ORIGIN + len(bytes.fromhex(code)) + 1)
        cpu.run(cpu.retired + 1)
        assert cpu.rip == HANDLER


def test_mov_to_cs_is_undefined() -> None:
    cpu = table_cpu(32, code=bytes.fromhex("8e c8"))
    set_gate(cpu, 6, gate(0xE, 0x08))
    assert cpu.step() is None
    assert (cpu.rip, get(cpu, cpu.rsp, 4)) == (HANDLER, ORIGIN)


def test_mov_ss_switches_the_stack_width_at_once() -> None:
    cpu = table_cpu(32, rax=SLOT)
    set_entry(cpu, SLOT, descriptor(DATA, limit=0xFFFF, flags=0))
    run_one(cpu, "mov ss, eax", bytes.fromhex("8e d0"))
    assert cpu.stack_mask == 0xFFFF


# ---- PUSH and POP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "text", "size"),
    [
        (16, "1e", "push ds", 2), (16, "66 1e", "o32 push ds", 4), (32, "0e", "push cs", 4),
        (32, "66 06", "o16 push es", 2), (32, "16", "push ss", 4), (64, "0f a0", "push fs", 8),
        (64, "66 0f a8", "o16 push gs", 2),
    ],
)  # fmt: skip
def test_push_segment_zero_extends_the_selector(bits: int, code: str, text: str, size: int) -> None:
    cpu = make_cpu(bits)
    register = getattr(cpu, text[-2:])
    register.selector = 0x58
    cpu.memory.write(STACK - 8, b"\xff" * 8)
    run_one(cpu, text, bytes.fromhex(code))
    assert cpu.rsp == STACK - size
    assert get(cpu, STACK - size, size) == 0x58


@pytest.mark.parametrize(
    ("bits", "code", "text", "size"),
    [
        (32, "1f", "pop ds", 4), (32, "66 07", "o16 pop es", 2), (64, "0f a1", "pop fs", 8),
        (64, "66 0f a9", "o16 pop gs", 2),
    ],
)  # fmt: skip
def test_pop_segment_loads_the_descriptor_and_moves_the_stack(
    bits: int, code: str, text: str, size: int
) -> None:
    cpu = table_cpu(bits)
    set_entry(cpu, SLOT, descriptor(DATA, base=0x7000))
    put(cpu, STACK, 0xABCD_0000 | SLOT)
    run_one(cpu, text, bytes.fromhex(code))
    register = getattr(cpu, text[-2:])
    assert (cpu.rsp, register.selector, register.base) == (STACK + size, SLOT, 0x7000)


def test_a_refused_pop_leaves_the_stack_pointer() -> None:
    cpu = table_cpu(32)
    put(cpu, STACK, SLOT, 4)
    assert str(fault_of(cpu, "pop ds", bytes.fromhex("1f"))) == (
        "#GP(0x58): DS load: reserved type 0 is not a data or readable code segment"
    )
    assert (cpu.rsp, cpu.ds.selector) == (STACK, 0x10)


def test_pop_ss_uses_the_old_stack_width_for_the_increment() -> None:
    cpu = table_cpu(32, rsp=0x1_FFFE)
    set_entry(cpu, SLOT, descriptor(DATA, limit=0xFFFF, flags=0))
    put(cpu, 0x1_FFFE, SLOT, 2)
    run_one(cpu, "o16 pop ss", bytes.fromhex("66 17"))
    assert cpu.rsp == 0x2_0000


def test_push_with_a_16_bit_stack_wraps_inside_sp() -> None:
    cpu = make_cpu(16, rsp=0xABCD_0000)
    run_one(cpu, "push ds", bytes.fromhex("1e"))
    assert cpu.rsp == 0xABCD_FFFE


# ---- LDS, LES, LFS, LGS, LSS -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "text", "segment", "size"),
    [
        (32, "c5 03", "lds eax, [ebx]", "ds", 4), (32, "66 c4 03", "les ax, [ebx]", "es", 2),
        (64, "0f b4 03", "lfs eax, [rbx]", "fs", 4), (64, "48 0f b5 03", "lgs rax, [rbx]", "gs", 8),
        (64, "48 0f b2 03", "lss rax, [rbx]", "ss", 8),
    ],
)  # fmt: skip
def test_far_pointer_loads_take_offset_and_selector(
    bits: int, code: str, text: str, segment: str, size: int
) -> None:
    cpu = table_cpu(bits, rbx=0x7000)
    set_entry(cpu, SLOT, descriptor(DATA, base=0x9000))
    offset = 0x1122_3344_5566_7788 & (1 << 8 * size) - 1
    put(cpu, 0x7000, offset | SLOT << 8 * size, size + 2)
    run_one(cpu, text, bytes.fromhex(code))
    assert (cpu.rax, getattr(cpu, segment).selector) == (offset, SLOT)
    assert cpu.shadow == NO_SHADOW


def test_a_refused_far_pointer_changes_neither_half() -> None:
    cpu = table_cpu(32, rbx=0x7000, rax=7)
    put(cpu, 0x7000, 5 | SLOT << 32, 6)
    assert str(fault_of(cpu, "lds eax, [ebx]", bytes.fromhex("c5 03"))).startswith("#GP(0x58)")
    assert (cpu.rax, cpu.ds.selector) == (7, 0x10)


@pytest.mark.parametrize(
    ("code", "text", "good", "bad"),
    [("c5 03", "lds eax, [ebx]", 0x7004, 0x7002), ("66 c4 03", "les ax, [ebx]", 0x7002, 0x7001)],
)
def test_a_far_pointer_has_to_be_aligned_as_its_offset_is(code: str, text: str, good: int, bad: int) -> None:
    cpu = table_cpu(32, 3, rbx=good, ac=1)
    cpu.cr0 |= CR0_AM
    cpu.update_mode()
    run_one(cpu, text, bytes.fromhex(code))
    cpu.rip, cpu.rbx = ORIGIN, bad
    set_level(cpu, 3)
    assert str(fault_of(cpu, text, bytes.fromhex(code))).startswith("#AC(0x0)")


# ---- LAR, LSL, VERR, VERW, ARPL ----------------------------------------------------------------------------

# SDM Vol. 2, LAR and LSL: the tables of valid types, legacy and IA-32e mode; all code and data is valid
LAR_VALID = {32: {1, 2, 3, 4, 5, 9, 0xB, 0xC}, 64: {2, 9, 0xB, 0xC}}
LSL_VALID = {32: {1, 2, 3, 9, 0xB}, 64: {2, 9, 0xB}}
FORMS = {
    "LAR": ("lar eax, ecx", "0f 02 c1"), "LSL": ("lsl eax, ecx", "0f 03 c1"),
    "VERR": ("verr cx", "0f 00 e1"), "VERW": ("verw cx", "0f 00 e9"),
}  # fmt: skip


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", FORMS)
def test_every_descriptor_inspection_agrees_with_the_manual(name: str, bits: int) -> None:
    text, code = FORMS[name]
    raw_code = bytes.fromhex(code)
    if name.startswith("VER"):
        assert disassemble(raw_code, bits, 0) in (text, text.replace("cx", "ecx"))
    else:
        assert disassemble(raw_code, bits, 0) == text
    cpu = table_cpu(bits, code=raw_code)
    for kind, dpl, rpl, cpl in product(range(32), range(4), range(4), range(4)):
        set_level(cpu, cpl)
        raw = descriptor(kind, dpl, base=0x1234_5678, limit=0x7_1FFF, flags=0xC, present=0)
        set_entry(cpu, SLOT, raw)
        cpu.rax, cpu.rcx, cpu.rip, cpu.zf = 0x9999, SLOT | rpl, ORIGIN, 0
        assert cpu.step() is None
        conforming = kind >= 0x1C
        seen = conforming or max(rpl, cpl) <= dpl
        if name == "VERR":
            expected = seen and (0x10 <= kind < 0x18 or kind in (0x1A, 0x1B, 0x1E, 0x1F))
        elif name == "VERW":
            expected = seen and kind in (0x12, 0x13, 0x16, 0x17)
        else:
            expected = seen and (kind >= 0x10 or kind in (LAR_VALID if name == "LAR" else LSL_VALID)[bits])
        case = (hex(kind), dpl, rpl, cpl)
        assert bool(cpu.zf) == expected, case
        result = {"LAR": raw >> 32 & 0xFF_FF00, "LSL": 0x7_1FFF}.get(name, 0x9999)
        assert cpu.rax == (result if expected else 0x9999), case


@pytest.mark.parametrize("selector", [0, 3, 0x1F8, 0x0C])
def test_inspecting_a_selector_that_names_nothing_clears_zf(selector: int) -> None:
    cpu = table_cpu(32, rcx=selector, rax=5)
    cpu.zf = 1
    run_one(cpu, "lsl eax, ecx", bytes.fromhex("0f 03 c1"))
    assert (cpu.zf, cpu.rax) == (0, 5)


def test_lar_with_16_bits_keeps_the_access_byte_only() -> None:
    cpu = table_cpu(32, rcx=0x10, rax=0xABCD_0000)
    run_one(cpu, "lar ax, cx", bytes.fromhex("66 0f 02 c1"))
    assert cpu.rax == 0xABCD_9200


@pytest.mark.parametrize(
    ("dst", "src", "expected", "zf"), [(0x58, 3, 0x5B, 1), (0x5A, 1, 0x5A, 0), (1, 1, 1, 0)]
)
def test_arpl_raises_the_rpl_and_tells(dst: int, src: int, expected: int, zf: int) -> None:
    cpu = table_cpu(32, rax=0xABCD_0000 | dst, rcx=src)
    run_one(cpu, "arpl ax, cx", bytes.fromhex("63 c8"))
    assert (cpu.rax, bool(cpu.zf)) == (0xABCD_0000 | expected, bool(zf))


@pytest.mark.parametrize(
    ("code", "text"), [("63 c8", "arpl ax, cx"), ("0f 00 e1", "verr cx"), ("0f 00 c8", "str ax")]
)
def test_protected_mode_inspection_is_not_recognized_in_real_mode(code: str, text: str) -> None:
    assert str(fault_of(make_cpu(16), text, bytes.fromhex(code))).startswith("#UD")


# ---- table registers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "text", "size"),
    [
        (16, "0f 01 16 0070", "lgdt [0x7000]", 3), (32, "66 0f 01 15 00700000", "o16 lgdt [0x7000]", 3),
        (16, "66 0f 01 16 0070", "o32 lgdt [0x7000]", 4), (32, "0f 01 15 00700000", "lgdt [0x7000]", 4),
        (64, "0f 01 14 25 00700000", "lgdt [0x7000]", 8), (32, "0f 01 1d 00700000", "lidt [0x7000]", 4),
    ],
)  # fmt: skip
def test_lgdt_and_lidt_take_24_32_or_64_base_bits(bits: int, code: str, text: str, size: int) -> None:
    cpu = make_cpu(bits)
    put(cpu, 0x7000, 0xFFFF_8100_89AB_CDEF << 16 | 0x1237, 10)
    run_one(cpu, text, bytes.fromhex(code))
    table = cpu.idtr if "lidt" in text else cpu.gdtr
    assert (table.limit, table.base) == (0x1237, 0xFFFF_8100_89AB_CDEF & (1 << 8 * size) - 1)


def test_a_noncanonical_table_base_is_refused() -> None:
    cpu = make_cpu(64)
    put(cpu, 0x7000, 0x8000_0000_0000 << 16, 10)
    text = "lgdt [0x7000]"
    assert str(fault_of(cpu, text, bytes.fromhex("0f 01 14 25 00700000"))).startswith(
        "#GP(0x0): descriptor table base"
    )


@pytest.mark.parametrize(("bits", "size"), [(16, 6), (32, 6), (64, 10)])
def test_sgdt_stores_limit_and_the_whole_base(bits: int, size: int) -> None:
    cpu = make_cpu(bits, rbx=0x7000)
    cpu.gdtr.base, cpu.gdtr.limit = (0xFFFF_8100_89AB_CDEF if bits == 64 else 0x89AB_CDEF), 0x1237
    text = {16: "sgdt [bx]", 32: "sgdt [ebx]", 64: "sgdt [rbx]"}[bits]
    run_one(cpu, text, bytes.fromhex("0f 01 07" if bits == 16 else "0f 01 03"))
    assert get(cpu, 0x7000, size) == cpu.gdtr.base << 16 | 0x1237
    assert get(cpu, 0x7000 + size, 2) == 0


@pytest.mark.parametrize(
    ("code", "text", "selector"),
    [("0f 00 c0", "sldt eax", SLOT), ("0f 00 c8", "str eax", TSS_SELECTOR)],
)
def test_sldt_and_str_zero_extend_the_selector(code: str, text: str, selector: int) -> None:
    cpu = table_cpu(32, rax=0xFFFF_FFFF)
    cpu.ldtr.selector = SLOT
    run_one(cpu, text, bytes.fromhex(code))
    assert cpu.rax == selector


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("0f 00 c0", "sldt eax"), ("0f 00 c8", "str eax"),
        ("0f 01 03", "sgdt [ebx]"), ("0f 01 0b", "sidt [ebx]"),
    ],
)  # fmt: skip
def test_umip_hides_the_table_registers_from_user_code(code: str, text: str) -> None:
    cpu = table_cpu(32, 3, rbx=0x7000)
    run_one(cpu, text, bytes.fromhex(code))
    cpu = table_cpu(32, 3, rbx=0x7000)
    cpu.cr4 |= CR4_UMIP
    assert str(fault_of(cpu, text, bytes.fromhex(code))).startswith("#GP(0x0)")
    cpu = table_cpu(32, 0, rbx=0x7000)
    cpu.cr4 |= CR4_UMIP
    run_one(cpu, text, bytes.fromhex(code))


@pytest.mark.parametrize(
    ("code", "text"),
    [("0f 00 d0", "lldt ax"), ("0f 00 d8", "ltr ax"), ("0f 01 13", "lgdt [ebx]"), ("0f 01 1b", "lidt [ebx]")],
)
def test_loading_table_registers_needs_ring_0(code: str, text: str) -> None:
    cpu = table_cpu(32, 3)
    shown = disassemble(bytes.fromhex(code), 32, 0)
    assert shown in (text, text.replace(" ax", " eax"))
    assert str(fault_of(cpu, shown, bytes.fromhex(code))).startswith("#GP(0x0)")


def test_lldt_and_ltr_load_and_a_null_ldt_is_legal() -> None:
    cpu = table_cpu(32, rax=SLOT)
    set_entry(cpu, SLOT, descriptor(2, base=LDT, limit=0x1F, flags=0))
    run_one(cpu, disassemble(bytes.fromhex("0f 00 d0"), 32, 0), bytes.fromhex("0f 00 d0"))
    assert (cpu.ldtr.base, cpu.ldtr.limit) == (LDT, 0x1F)
    cpu.rax = 0
    run_one(cpu, disassemble(bytes.fromhex("0f 00 d0"), 32, 0), bytes.fromhex("0f 00 d0"))
    assert cpu.ldtr.null
    set_entry(cpu, SLOT, descriptor(9, base=0x7000, limit=0x67, flags=0))
    cpu.rax = SLOT
    run_one(cpu, disassemble(bytes.fromhex("0f 00 d8"), 32, 0), bytes.fromhex("0f 00 d8"))
    assert (cpu.tr.base, cpu.tr.type) == (0x7000, 0xB)
    assert get(cpu, GDT + SLOT) == descriptor(0xB, base=0x7000, limit=0x67, flags=0)


# ---- FS and GS bases ---------------------------------------------------------------------------------------


def test_fs_and_gs_base_instructions_need_cr4_fsgsbase() -> None:
    assert str(fault_of(make_cpu(64), "rdfsbase rax", bytes.fromhex("f3 48 0f ae c0"))).startswith("#UD")


@pytest.mark.parametrize(
    ("code", "text", "segment"),
    [("f3 48 0f ae d0", "wrfsbase rax", "fs"), ("f3 48 0f ae d8", "wrgsbase rax", "gs")],
)
def test_writing_a_base_checks_that_it_is_canonical(code: str, text: str, segment: str) -> None:
    cpu = execute(text, code, rax=0xFFFF_8000_0000_1234, cr4=CR4_FSGSBASE)
    assert getattr(cpu, segment).base == 0xFFFF_8000_0000_1234
    cpu = make_cpu(64, rax=0x8000_0000_0000, cr4=CR4_FSGSBASE)
    assert str(fault_of(cpu, text, bytes.fromhex(code))).startswith("#GP(0x0): segment base")


def test_32_bit_base_forms_cut_and_zero_extend() -> None:
    cpu = execute("wrgsbase eax", "f3 0f ae d8", rax=0xFFFF_FFFF_8000_0001, cr4=CR4_FSGSBASE)
    assert cpu.gs.base == 0x8000_0001
    cpu = make_cpu(64, cr4=CR4_FSGSBASE)
    cpu.fs.base = 0xFFFF_8000_1234_5678
    run_one(cpu, "rdfsbase eax", bytes.fromhex("f3 0f ae c0"))
    assert cpu.rax == 0x1234_5678


def test_swapgs_exchanges_the_bases_at_ring_0_only() -> None:
    cpu = make_cpu(64)
    cpu.gs.base = 0x1111
    cpu.msr[0xC000_0102] = 0xFFFF_8000_0000_2222
    run_one(cpu, "swapgs", bytes.fromhex("0f 01 f8"))
    assert (cpu.gs.base, cpu.msr[0xC000_0102]) == (0xFFFF_8000_0000_2222, 0x1111)
    assert str(fault_of(table_cpu(64, 3), "swapgs", bytes.fromhex("0f 01 f8"))).startswith("#GP(0x0)")


def test_a_far_pointer_outside_ram_exits_and_goes_on_after_the_page_is_there() -> None:
    cpu = table_cpu(32, rbx=RAM)
    cpu.memory.write(ORIGIN, bytes.fromhex("c5 03 f4"))
    assert cpu.step() == NestedPageFault(RAM, 1)
    assert (cpu.rip, cpu.ds.selector) == (ORIGIN, 0x10)
    cpu.memory.add_ram(RAM, 0x1000)
    put(cpu, RAM, 0x77 | DATA_SELECTOR[0] << 32, 6)
    assert isinstance(cpu.run(cpu.retired + 5), Halt)
    assert cpu.rax == 0x77
