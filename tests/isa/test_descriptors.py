"""Segment loads against a model written from the tables of SDM Vol. 3, "Protection"."""

from __future__ import annotations

from itertools import product

import pytest

from isa.descriptors import (
    check_code_return,
    check_return_stack,
    invalidate_for_level,
    load_ldtr,
    load_segment,
    load_tr,
    read_descriptor,
)
from isa.exits import NestedPageFault, VmExit
from isa.faults import GeneralProtection, InvalidTss
from tests.isa.machine import RAM, make_cpu
from tests.isa.tables import (
    CODE,
    DATA,
    GDT,
    LDT,
    SLOT,
    TSS_SELECTOR,
    descriptor,
    get,
    outcome,
    put,
    set_entry,
    table_cpu,
)

# S and type as in "Code- and Data-Segment Types"
DATA_KINDS = range(0x10, 0x18)
WRITABLE = (0x12, 0x13, 0x16, 0x17)
READABLE_CODE = (0x1A, 0x1B, 0x1E, 0x1F)
CONFORMING = (0x1C, 0x1D, 0x1E, 0x1F)


def expected_load(register: str, kind: int, dpl: int, rpl: int, cpl: int, present: int) -> str:
    if register == "ss":
        if rpl != cpl or kind not in WRITABLE or dpl != cpl:
            return f"#GP({SLOT:#x})"
        return "" if present else f"#SS({SLOT:#x})"
    if kind not in DATA_KINDS and kind not in READABLE_CODE:
        return f"#GP({SLOT:#x})"
    if kind not in CONFORMING and max(rpl, cpl) > dpl:
        return f"#GP({SLOT:#x})"
    return "" if present else f"#NP({SLOT:#x})"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs", "ss"])
def test_every_segment_load_agrees_with_the_manual(bits: int, register: str) -> None:
    for cpl in range(4):
        cpu = table_cpu(bits, cpl)
        segment = getattr(cpu, register)
        for kind, dpl, rpl, present in product(range(32), range(4), range(4), (0, 1)):
            raw = descriptor(kind, dpl, base=0x1234_5678, limit=0x5FFF, present=present, flags=4)
            set_entry(cpu, SLOT, raw)
            segment.load_raw(0xAA8, 1, 2, 0x93)
            got = outcome(load_segment, cpu, segment, SLOT | rpl)
            case = (register, hex(kind), dpl, rpl, cpl, present)
            assert got == expected_load(register, kind, dpl, rpl, cpl, present), case
            if got:
                assert (segment.selector, segment.base, segment.limit) == (0xAA8, 1, 2), case
                assert get(cpu, GDT + SLOT) == raw, case
            else:
                assert (segment.selector, segment.base, segment.limit) == (SLOT | rpl, 0x1234_5678, 0x5FFF)
                assert (segment.type, segment.dpl, segment.db) == (kind & 15 | 1, dpl, 1), case
                assert get(cpu, GDT + SLOT) == raw | 1 << 40, case


@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs"])
@pytest.mark.parametrize("selector", [0, 1, 2, 3])
def test_a_null_selector_loads_and_then_faults_on_use(register: str, selector: int) -> None:
    cpu = table_cpu(32)
    segment = getattr(cpu, register)
    load_segment(cpu, segment, selector)
    assert (segment.selector, segment.null, segment.base) == (selector, True, 0)
    assert outcome(cpu.read_data, segment, 0x1000, 1) == "#GP(0x0)"


@pytest.mark.parametrize("cpl", [0, 1, 2, 3])
@pytest.mark.parametrize("rpl", [0, 1, 2, 3])
def test_null_ss_is_legal_only_in_64_bit_mode_below_level_3_with_its_own_rpl(cpl: int, rpl: int) -> None:
    cpu = table_cpu(32, cpl)
    assert outcome(load_segment, cpu, cpu.ss, rpl) == "#GP(0x0)"
    cpu = table_cpu(64, cpl)
    assert outcome(load_segment, cpu, cpu.ss, rpl) == ("" if rpl == cpl < 3 else "#GP(0x0)")


def test_a_selector_past_the_table_limit_faults_with_itself() -> None:
    cpu = table_cpu(32)
    cpu.gdtr.limit = SLOT + 6
    set_entry(cpu, SLOT, descriptor(DATA))
    assert outcome(load_segment, cpu, cpu.ds, SLOT) == f"#GP({SLOT:#x})"
    cpu.gdtr.limit = SLOT + 7
    assert outcome(load_segment, cpu, cpu.ds, SLOT) == ""


@pytest.mark.parametrize("rpl", [0, 1, 2, 3])
def test_the_error_code_of_a_selector_past_the_table_limit_has_no_rpl(rpl: int) -> None:
    """SDM Vol. 3, "Error Code": bits 1 and 0 are IDT and EXT."""
    cpu = table_cpu(32)
    cpu.gdtr.limit = SLOT + 6
    assert outcome(load_segment, cpu, cpu.ds, SLOT | rpl) == f"#GP({SLOT:#x})"


def test_ti_selects_the_ldt_and_a_null_ldtr_has_no_entries() -> None:
    cpu = table_cpu(32)
    assert outcome(load_segment, cpu, cpu.ds, 0x0C) == "#GP(0xc)"
    put(cpu, LDT + 8, descriptor(DATA, base=0x7000))
    set_entry(cpu, SLOT, descriptor(2, base=LDT, limit=0x0F, flags=0))
    load_ldtr(cpu, SLOT)
    load_segment(cpu, cpu.ds, 0x0C)
    assert cpu.ds.base == 0x7000
    assert outcome(load_segment, cpu, cpu.ds, 0x14) == "#GP(0x14)"


def test_selector_4_is_the_first_ldt_entry_and_not_null() -> None:
    cpu = table_cpu(32)
    put(cpu, LDT, descriptor(DATA, base=0x7700))
    cpu.ldtr.load_raw(SLOT, LDT, 0x0F, 0x82)
    load_segment(cpu, cpu.es, 4)
    assert (cpu.es.base, cpu.es.null) == (0x7700, False)


def test_granularity_scales_the_limit() -> None:
    cpu = table_cpu(32)
    set_entry(cpu, SLOT, descriptor(DATA, limit=0x5FFF, flags=0xC))
    load_segment(cpu, cpu.ds, SLOT)
    assert cpu.ds.limit == 0x5FFF
    assert read_descriptor(cpu, SLOT).limit == 0x5FFF


def test_real_mode_loads_the_base_and_keeps_the_limit() -> None:
    cpu = make_cpu(16)
    cpu.ds.limit = 0xFFFF_FFFF
    load_segment(cpu, cpu.ds, 0x1234)
    assert (cpu.ds.selector, cpu.ds.base, cpu.ds.limit) == (0x1234, 0x12340, 0xFFFF_FFFF)


def test_virtual_8086_mode_loads_a_64_kib_segment_of_level_3() -> None:
    cpu = table_cpu(32, 3)
    cpu.vm = 1
    cpu.update_mode()
    load_segment(cpu, cpu.ds, 0x1234)
    assert (cpu.ds.base, cpu.ds.limit, cpu.ds.dpl) == (0x12340, 0xFFFF, 3)


@pytest.mark.parametrize("bits", [32, 64])
def test_lldt_takes_only_a_present_ldt_of_the_gdt(bits: int) -> None:
    for kind, present in product(range(32), (0, 1)):
        cpu = table_cpu(bits)
        set_entry(cpu, SLOT, descriptor(kind, base=LDT, limit=0x0F, present=present, flags=0), 16)
        expected = f"#GP({SLOT:#x})" if kind != 2 else "" if present else f"#NP({SLOT:#x})"
        assert outcome(load_ldtr, cpu, SLOT) == expected, (kind, present)
        assert cpu.ldtr.null == bool(expected)
    assert outcome(load_ldtr, table_cpu(bits), SLOT | 4) == f"#GP({SLOT | 4:#x})"


@pytest.mark.parametrize("bits", [32, 64])
def test_ltr_takes_only_an_available_tss_and_makes_it_busy(bits: int) -> None:
    available = (9,) if bits == 64 else (1, 9)
    for kind, present in product(range(32), (0, 1)):
        cpu = table_cpu(bits)
        raw = descriptor(kind, base=0x7000, limit=0x67, present=present, flags=0)
        set_entry(cpu, SLOT, raw, 16)
        expected = f"#GP({SLOT:#x})" if kind not in available else "" if present else f"#NP({SLOT:#x})"
        assert outcome(load_tr, cpu, SLOT) == expected, (kind, present)
        assert get(cpu, GDT + SLOT) == (raw if expected else raw | 2 << 40)
        assert cpu.tr.selector == (TSS_SELECTOR if expected else SLOT)
        if not expected:
            assert cpu.tr.type == kind | 2
    assert outcome(load_tr, table_cpu(bits), 3) == "#GP(0x0)"
    assert outcome(load_tr, table_cpu(bits), SLOT | 4) == f"#GP({SLOT | 4:#x})"


def test_long_mode_system_descriptors_have_sixteen_bytes() -> None:
    cpu = table_cpu(64)
    set_entry(cpu, SLOT, descriptor(2, base=0x9ABC_DEF0, limit=0xF, flags=0) | 0xFFFF_8123 << 64, 16)
    load_ldtr(cpu, SLOT)
    assert cpu.ldtr.base == 0xFFFF_8123_9ABC_DEF0
    set_entry(cpu, SLOT, descriptor(2, limit=0xF, flags=0) | 0x8123 << 64, 16)
    assert outcome(load_ldtr, cpu, SLOT) == f"#GP({SLOT:#x})"  # base is not canonical
    set_entry(cpu, SLOT, descriptor(9, limit=0x67, flags=0) | 0x8123 << 64, 16)
    assert outcome(load_tr, cpu, SLOT) == f"#GP({SLOT:#x})"
    set_entry(cpu, SLOT, descriptor(2, limit=0xF, flags=0) | 1 << 104, 16)
    assert outcome(load_ldtr, cpu, SLOT) == f"#GP({SLOT:#x})"  # upper type field is not 0
    cpu.gdtr.limit = SLOT + 14
    set_entry(cpu, SLOT, descriptor(2, limit=0xF, flags=0), 16)
    assert outcome(load_ldtr, cpu, SLOT) == f"#GP({SLOT:#x})"  # upper half outside the limit


def test_task_switch_loads_report_invalid_tss_even_for_a_missing_ldt() -> None:
    cpu = table_cpu(32)
    set_entry(cpu, SLOT, descriptor(2, base=LDT, limit=0xF, present=0, flags=0))
    assert outcome(load_ldtr, cpu, SLOT, InvalidTss) == f"#TS({SLOT:#x})"


def expected_return(kind: int, dpl: int, rpl: int, cpl: int, present: int) -> str:
    """SDM Vol. 2, RET, "RETURN-TO-SAME" and "RETURN-TO-OUTER", the checks of the code segment."""
    if kind < 0x18 or rpl < cpl or (dpl > rpl if kind in CONFORMING else dpl != rpl):
        return f"#GP({SLOT:#x})"
    return "" if present else f"#NP({SLOT:#x})"


def test_every_return_code_segment_agrees_with_the_manual() -> None:
    for cpl in range(4):
        cpu = table_cpu(32, cpl)
        for kind, dpl, rpl, present in product(range(32), range(4), range(4), (0, 1)):
            set_entry(cpu, SLOT, descriptor(kind, dpl, present=present))
            got = outcome(check_code_return, cpu, SLOT | rpl)
            assert got == expected_return(kind, dpl, rpl, cpl, present), (hex(kind), dpl, rpl, cpl, present)


@pytest.mark.parametrize("flags", [0xA, 0xC, 0xE])
def test_returning_with_a_null_ss_needs_64_bit_code_below_level_3(flags: int) -> None:
    for level in range(4):
        cpu = table_cpu(64, 0)
        set_entry(cpu, SLOT, descriptor(CODE, level, flags=flags))
        if flags == 0xE:
            assert outcome(check_code_return, cpu, SLOT | level) == f"#GP({SLOT:#x})"
            continue
        code = check_code_return(cpu, SLOT | level)
        expected = "" if flags == 0xA and level < 3 else "#GP(0x0)"
        assert outcome(check_return_stack, cpu, level, code) == expected


def test_returning_outward_nulls_segments_that_the_outer_level_may_not_use() -> None:
    cpu = table_cpu(32)
    cpu.ds.load_raw(0x10, 0, 0xFFFF, 0x93)  # data, DPL 0
    cpu.es.load_raw(0x43, 0, 0xFFFF, 0xF3)  # data, DPL 3
    cpu.fs.load_raw(0x58, 0, 0xFFFF, 0x9F)  # conforming code, DPL 0
    cpu.gs.load_raw(0x60, 0, 0xFFFF, 0x9B)  # nonconforming code, DPL 0
    invalidate_for_level(cpu, 3)
    assert [s.selector for s in (cpu.ds, cpu.es, cpu.fs, cpu.gs)] == [0, 0x43, 0x58, 0]
    assert [s.null for s in (cpu.ds, cpu.es, cpu.fs, cpu.gs)] == [True, False, False, True]


def test_a_null_fs_keeps_the_base_that_software_gave_it_across_a_return() -> None:
    cpu = table_cpu(64)
    load_segment(cpu, cpu.fs, 0)
    cpu.fs.base = 0x7FFF_1234_5678
    invalidate_for_level(cpu, 3)
    assert cpu.fs.base == 0x7FFF_1234_5678


def test_a_descriptor_table_outside_ram_exits_and_changes_nothing() -> None:
    cpu = table_cpu(32)
    cpu.gdtr.base = RAM
    with pytest.raises(VmExit) as caught:
        load_segment(cpu, cpu.ds, 0x10)
    assert caught.value.reason == NestedPageFault(RAM + 0x10, 1)
    assert cpu.ds.selector == 0x10 and not cpu.ds.null


@pytest.mark.parametrize(
    ("selector", "kind", "dpl", "why"),
    [
        (SLOT | 3, DATA, 0, "DS load: DPL 0 < RPL 3"),
        (SLOT, CODE & ~2, 0, "DS load: execute-only code is not a data or readable code segment"),
        (SLOT, 2, 0, "DS load: LDT is not a data or readable code segment"),
        (0x1F8, DATA, 0, "selector 0x01f8 outside the GDT limit 0xff"),
        (0x0C, DATA, 0, "selector 0x000c names the LDT, but LDTR is null"),
    ],
)
def test_a_fault_names_the_check_that_failed(selector: int, kind: int, dpl: int, why: str) -> None:
    cpu = table_cpu(32)
    set_entry(cpu, SLOT, descriptor(kind, dpl))
    with pytest.raises(GeneralProtection) as caught:
        load_segment(cpu, cpu.ds, selector)
    assert caught.value.why == why
