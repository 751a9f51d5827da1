"""String instructions: elements, repetition, interruption, and the bulk roads against the single steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.cpu import Cpu
from isa.exits import Budget, MmioRead, MmioWrite
from isa.faults import GeneralProtection, PageFault
from isa.state import CR0_PG, NO_SHADOW
from tests.isa.machine import ALL_FEATURES, RAM, execute, flags_of, make_cpu, run_one, visible_state

SRC, DST = 0x3000, 0x5000
M64 = (1 << 64) - 1


# ---- one element ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("df", "step"), [(0, 8), (1, -8)])
def test_movs_moves_both_pointers_in_the_direction_of_df(df: int, step: int) -> None:
    cpu = make_cpu(rsi=SRC, rdi=DST, df=df)
    cpu.memory.write(SRC, b"ABCDEFGH")
    run_one(cpu, "movsq", bytes.fromhex("48 a5"))
    assert cpu.memory.read(DST, 8) == b"ABCDEFGH"
    assert (cpu.rsi, cpu.rdi) == (SRC + step, DST + step)


def test_16_bit_pointers_wrap_and_keep_the_upper_halves() -> None:
    cpu = make_cpu(16, rsi=0xAAAA_FFFF, rdi=0xBBBB_FFFF)
    cpu.memory.write(0xFFFF, b"\x42")
    run_one(cpu, "movsb", bytes.fromhex("a4"))
    assert (cpu.rsi, cpu.rdi) == (0xAAAA_0000, 0xBBBB_0000)


def test_32_bit_pointers_in_64_bit_mode_clear_the_upper_halves() -> None:
    cpu = make_cpu(rsi=0xAAAA_0000_0000 | SRC, rdi=0xBBBB_0000_0000 | DST)
    run_one(cpu, "a32 movsb", bytes.fromhex("67 a4"))
    assert (cpu.rsi, cpu.rdi) == (SRC + 1, DST + 1)


def test_segment_override_applies_to_the_source_only() -> None:
    cpu = make_cpu(rsi=0x10, rdi=DST)
    cpu.fs.base = SRC
    cpu.memory.write(SRC + 0x10, b"\x77")
    run_one(cpu, "fs movsb", bytes.fromhex("64 a4"))
    assert cpu.load(DST, 1) == 0x77


def test_cmps_subtracts_the_destination_from_the_source() -> None:
    cpu = make_cpu(rsi=SRC, rdi=DST)
    cpu.memory.write(SRC, b"\x01")
    cpu.memory.write(DST, b"\x02")
    run_one(cpu, "cmpsb", bytes.fromhex("a6"))
    assert flags_of(cpu) == "CF PF AF SF"


def test_lods_of_a_doubleword_zero_extends() -> None:
    cpu = make_cpu(rsi=SRC, rax=M64)
    cpu.memory.write(SRC, b"\xff\xff\xff\xff")
    run_one(cpu, "lodsd", bytes.fromhex("ad"))
    assert cpu.rax == 0xFFFF_FFFF


# ---- repetition ----------------------------------------------------------------------------------------


def test_rep_with_a_zero_counter_does_nothing() -> None:
    cpu = execute("rep stosb", "f3 aa", rdi=DST, rcx=0, rax=1)
    assert (cpu.load(DST, 1), cpu.rdi, cpu.retired) == (0, DST, 1)


def test_rep_counts_every_iteration_as_a_retired_instruction() -> None:
    cpu = make_cpu(rdi=DST, rcx=1000, rax=0x55, code=bytes.fromhex("f3 aa 90"))
    assert cpu.run(1000) == Budget(1000)
    assert (cpu.rip, cpu.rcx, cpu.rdi) == (0x1002, 0, DST + 1000)
    assert cpu.memory.read(DST, 1001) == b"\x55" * 1000 + b"\x00"


def test_rep_stops_exactly_at_the_budget_and_goes_on_from_there() -> None:
    cpu = make_cpu(rdi=DST, rcx=1000, rax=0x55, code=bytes.fromhex("f3 aa 90"))
    assert cpu.run(300) == Budget(300)
    assert (cpu.rip, cpu.rcx, cpu.rdi) == (0x1000, 700, DST + 300)
    assert cpu.memory.read(DST, 301) == b"\x55" * 300 + b"\x00"
    assert cpu.run(1001) == Budget(1001)
    assert (cpu.rip, cpu.rcx) == (0x1003, 0)


def test_repne_scas_stops_behind_the_element_found() -> None:
    cpu = make_cpu(rdi=DST, rcx=100, rax=0)
    cpu.memory.write(DST, b"hello")
    cpu.run(0)
    raw = bytes.fromhex("f2 ae")
    cpu.memory.write(0x1000, raw)
    cpu.run(6)
    assert (cpu.rip, cpu.rdi, cpu.rcx, bool(cpu.zf)) == (0x1002, DST + 6, 94, True)


def test_repe_cmps_stops_behind_the_first_difference() -> None:
    cpu = make_cpu(rsi=SRC, rdi=DST, rcx=4, code=bytes.fromhex("f3 a6 90"))
    cpu.memory.write(SRC, b"abXd")
    cpu.memory.write(DST, b"abcd")
    cpu.run(3)
    assert (cpu.rip, cpu.rsi, cpu.rdi, cpu.rcx, bool(cpu.zf)) == (0x1002, SRC + 3, DST + 3, 1, False)


def test_rep_with_a_32_bit_address_size_counts_ecx() -> None:
    cpu = make_cpu(rdi=DST, rcx=0x7_0000_0002, rax=1, code=bytes.fromhex("67 f3 aa"))
    cpu.run(2)
    assert (cpu.rip, cpu.rcx, cpu.rdi) == (0x1003, 0, DST + 2)


def test_overlapping_forward_movs_propagates_the_pattern() -> None:
    cpu = make_cpu(rsi=SRC, rdi=SRC + 2, rcx=20, code=bytes.fromhex("f3 a4"))
    cpu.memory.write(SRC, b"xy")
    cpu.load(SRC, 1)
    cpu.store(SRC + 2, 1, 0)  # the page is in the TLB: the bulk road is open
    cpu.run(20)
    assert cpu.memory.read(SRC, 22) == b"xy" * 11


def test_rep_movs_between_devices_touches_each_element_once() -> None:
    cpu = make_cpu(rsi=0x20_0000, rdi=0x20_1000, rcx=2, code=bytes.fromhex("f3 66 a5"))
    cpu.memory.set_mmio([(0x20_0000, 0x2000)])
    seen: list[tuple[int, int | None]] = []
    while cpu.rip == 0x1000 and len(seen) < 10:
        reason = cpu.run(cpu.retired + 1)
        if isinstance(reason, MmioRead):
            seen.append((reason.addr, None))
            cpu.complete(0x1000 + len(seen))
        elif isinstance(reason, MmioWrite):
            seen.append((reason.addr, reason.data))
            cpu.complete()
    assert seen == [(0x20_0000, None), (0x20_1000, 0x1001), (0x20_0002, None), (0x20_1002, 0x1003)]
    assert (cpu.rcx, cpu.retired) == (0, 2)


def test_fault_in_the_middle_of_a_repetition_leaves_the_elements_done() -> None:
    cpu = make_cpu(32, rdi=0x3FF0, rcx=64, rax=7, code=bytes.fromhex("f3 aa"))
    cpu.cr0 |= CR0_PG
    cpu.cr3 = 0x10000
    cpu.memory.write(0x10000, (0x11003).to_bytes(4, "little"))
    for page in (1, 3):
        cpu.memory.write(0x11000 + 4 * page, (page << 12 | 3).to_bytes(4, "little"))
    cpu.flush_tlb()
    cpu.stop_at = 1 << 62
    insn = cpu.code[0x1000]
    with pytest.raises(PageFault) as caught:
        insn.function(cpu, *insn.operands)
    assert caught.value.address == 0x4000
    assert (cpu.rdi, cpu.rcx, cpu.retired) == (0x4000, 48, 16)
    assert cpu.memory.read(0x3FF0, 16) == b"\x07" * 16


def test_repeated_store_beyond_the_segment_limit_stops_at_the_limit() -> None:
    cpu = make_cpu(32, rdi=0x3FF0, rcx=64, rax=7, code=bytes.fromhex("f3 aa"))
    cpu.es.load_raw(0x10, 0, 0x3FF7, 0x4093)
    cpu.stop_at = 1 << 62
    insn = cpu.code[0x1000]
    with pytest.raises(GeneralProtection):
        insn.function(cpu, *insn.operands)
    assert (cpu.rdi, cpu.rcx) == (0x3FF8, 56)


def test_single_step_traps_after_each_iteration() -> None:
    cpu = make_cpu(16, bytes.fromhex("f3 aa 90"), rdi=DST, rcx=3, rax=9, rsp=0x8000, tf=1)
    cpu.memory.write(4 * 1, (0x6000).to_bytes(4, "little"))
    cpu.step()
    assert (cpu.rcx, cpu.rip, cpu.shadow) == (2, 0x1000, NO_SHADOW)
    cpu.step()
    assert cpu.rip == 0x6000  # #DB: the pushed IP is that of the REP instruction
    assert cpu.load(0x8000 - 6, 2) == 0x1000


def test_interrupt_between_iterations_returns_to_the_instruction() -> None:
    cpu = make_cpu(16, bytes.fromhex("f3 aa 90"), rdi=DST, rcx=8, rax=9, rsp=0x8000, if_=1)
    cpu.memory.write(4 * 0x20, (0x6000).to_bytes(4, "little"))
    cpu.run(3)
    cpu.injected.append(0x20)
    cpu.request_attention()
    cpu.run(4)
    assert (cpu.rip, cpu.rcx, cpu.load(0x8000 - 6, 2)) == (0x6000, 5, 0x1000)


def test_repeated_store_over_its_own_code_is_seen_by_the_next_instruction() -> None:
    # REP STOSB writes NOPs over itself and the INC that follows
    cpu = make_cpu(code=bytes.fromhex("f3 aa ff c0 90"), rdi=0x1000, rcx=4, rax=0x90)
    cpu.run(4)
    assert cpu.rip == 0x1002
    cpu.run(6)
    assert (cpu.rip, cpu.rax) == (0x1004, 0x90)


# ---- bulk against one by one ---------------------------------------------------------------------------

OPCODES = {"movs": 0xA4, "cmps": 0xA6, "stos": 0xAA, "lods": 0xAC, "scas": 0xAE}
AREA, AREA_SIZE = 0x7F00, 0x0300  # spans two page boundaries' worth of offsets


def prepared(bits: int, raw: bytes, single: bool, fill: bytes, **registers: int) -> Cpu:
    cpu = make_cpu(bits, raw, ALL_FEATURES, **registers)
    cpu.memory.write(AREA, fill)
    for page in range(AREA & ~0xFFF, AREA + AREA_SIZE, 0x1000):
        cpu.load(page, 1)  # into the TLB: the first element too may go the bulk road
        cpu.store(page, 1, cpu.load(page, 1))
    if single:
        cpu.table = {
            name: replace(definition, bulk=None) if definition.bulk else definition
            for name, definition in cpu.table.items()
        }
    return cpu


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(OPCODES)),
    width=st.sampled_from([1, 2, 4, 8]),
    bits=st.sampled_from([16, 32, 64]),
    prefix=st.sampled_from([0xF2, 0xF3]),
    df=st.integers(0, 1),
    source=st.integers(0, 0x1FF),
    gap=st.one_of(st.integers(-24, 24), st.integers(-0x100, 0x100)),
    count=st.integers(0, 60),
    budget=st.integers(1, 80),
    alphabet=st.sampled_from([b"a", b"aab", bytes(range(256))]),
    accumulator=st.sampled_from([0x6161_6161_6161_6161, 0, 0x6261_6162_6161_6261]),
    seed=st.integers(0, 255),
)
def test_bulk_does_exactly_what_single_elements_do(
    name: str, width: int, bits: int, prefix: int, df: int, source: int, gap: int, count: int, budget: int,
    alphabet: bytes, accumulator: int, seed: int,
) -> None:  # fmt: skip
    if width == 8 and bits != 64:
        width = 4
    raw = bytes([prefix])
    if width == (2 if bits != 16 else 4):
        raw += b"\x66"
    if width == 8:
        raw += b"\x48"
    raw += bytes([OPCODES[name] | (width > 1), 0x90])
    fill = bytes(alphabet[(n * 7 + (n >> 3) * seed) % len(alphabet)] for n in range(AREA_SIZE))
    start = AREA + 0x80 + source % 0x180
    registers = {"rsi": start, "rdi": start + gap, "rcx": count, "rax": accumulator, "df": df}
    bulk = prepared(bits, raw, False, fill, **registers)
    single = prepared(bits, raw, True, fill, **registers)
    for _ in range(3):  # to the budget, and on from there
        assert bulk.run(bulk.retired + budget) == single.run(single.retired + budget)
        assert visible_state(bulk) == visible_state(single)
        assert bulk.memory.read(AREA - 0x400, 0xA00) == single.memory.read(AREA - 0x400, 0xA00)


def test_bulk_stops_at_the_end_of_a_16_bit_offset() -> None:
    cpu = make_cpu(16, bytes.fromhex("f3 aa"), rdi=0xFFF8, rcx=16, rax=0x33)
    cpu.store(0xFFF0, 1, 0)
    cpu.store(0x0800, 1, 0)
    cpu.run(16)
    assert (cpu.rdi, cpu.rcx) == (8, 0)
    assert cpu.memory.read(0xFFF8, 9) == b"\x33" * 8 + b"\x00"
    assert cpu.memory.read(0, 8) == b"\x33" * 8


def test_bulk_takes_pages_together_only_where_they_are_one_piece_of_host_memory() -> None:
    cpu = make_cpu(code=bytes.fromhex("f3 a4 90"), rcx=0x4000)
    memory = cpu.memory
    low, high = memory.add_ram(RAM, 0x4000).host, RAM + 0x4000
    for page in range(4):  # the same four pages again, in reverse order
        memory.add_ram(high + page * 0x1000, 0x1000, host=low + (3 - page) * 0x1000)
    memory.write(RAM, b"".join(bytes([page]) * 0x1000 for page in range(4)))
    assert cpu.code[cpu.rip].raw.hex() == "f3a4"  # now, because decoding empties the write TLB
    for page in range(4):
        cpu.load(high + page * 0x1000, 1)
        cpu.store(0x20000 + page * 0x1000, 1, 0)
    cpu.rsi, cpu.rdi = high, 0x20000
    cpu.run(0x4001)
    assert (cpu.rip, cpu.rcx) == (0x1003, 0)
    assert memory.read(0x20000, 0x4000) == b"".join(bytes([page]) * 0x1000 for page in (3, 2, 1, 0))


def test_bulk_stops_before_a_page_that_holds_code() -> None:
    # STOSB over three pages; the INC in the middle one was executed before and is executed again afterwards
    cpu = make_cpu(code=bytes.fromhex("f3 aa e9"), rdi=0x10000, rcx=0x3000, rax=0x90)
    cpu.memory.write(0x1003, (0x11000 - 0x1007).to_bytes(4, "little"))
    cpu.memory.write(0x11000, bytes.fromhex("ff c3 90"))
    cpu.rip = 0x11000
    cpu.run(1)
    cpu.rip = 0x1000
    cpu.run(1 + 0x3000 + 3)
    assert (cpu.rip, cpu.rcx, cpu.rbx) == (0x11002, 0, 1)


def test_bulk_does_elements_of_many_pages_in_one_step() -> None:
    cpu = make_cpu(code=bytes.fromhex("f3 48 a5"), rsi=0x10000, rdi=0x20000, rcx=0x600)
    _, definition, _, *operands = cpu.code[cpu.rip].arguments
    for page in range(0, 0x3000, 0x1000):
        cpu.load(0x10000 + page, 1)
        cpu.store(0x20000 + page, 1, 0)
    assert definition.bulk(cpu, 0x600, True, *operands) == 0x600
    assert (cpu.rsi, cpu.rdi) == (0x13000, 0x23000)
