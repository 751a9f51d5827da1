"""Blocks that run together become one function: which ones, what its flags are, what ends it."""

from __future__ import annotations

from types import FunctionType
from typing import cast

import numpy as np
import pytest

from isa.assembler import assemble
from isa.blocks import BAIL_DISTANCE, MAX_BAILS
from isa.cpu import Cpu
from isa.exits import Budget
from tests.isa.machine import ALL_FEATURES, CODE, make_cpu, visible_state

DATA = 0x2_0000
STACK = 0x4_0000

# Two loops, one in the other, a call in the inner one
NESTED = """
outer:
    mov rcx, 5
inner:
    add rax, rcx
    call twice
    dec rcx
    jnz inner
    inc rdx
    cmp rdx, 1000000
    jne outer
    hlt
twice:
    test rax, 1
    jz even
    lea rbx, [rbx+3]
    ret
even:
    xor rbx, rax
    ret
"""


def machine(text: str, use_blocks: bool = True, **registers: int) -> Cpu:
    """A CPU that translates at the second arrival and looks for regions at the second call."""
    cpu = make_cpu(64, assemble(text, bits=64, origin=CODE), ALL_FEATURES, rsp=STACK, **registers)
    cpu.use_blocks = use_blocks
    cpu.hot = cpu.sample_every = cpu.first_due = 1
    cpu.recorded = 12
    return cpu


def heads_of_regions(cpu: Cpu) -> set[tuple[int, ...]]:
    """The heads of each function that has several."""
    return {block.heads for block in cpu.code.blocks.values() if len(block.heads) > 1}


def agree(text: str, stops: range, **registers: int) -> Cpu:
    """Both engines to each of the stops; the translated machine."""
    stepped, translated = machine(text, False, **registers), machine(text, True, **registers)
    for until in stops:
        assert isinstance(stepped.run(until), Budget)
        assert isinstance(translated.run(until), Budget)
        assert visible_state(translated) == visible_state(stepped), f"at {until}"
        assert translated.retired == stepped.retired == until
        assert np.array_equal(stepped.memory.pool, translated.memory.pool)
    return translated


def test_loops_in_loops_with_calls_become_one_function() -> None:
    cpu = machine(NESTED)
    cpu.run(20_000)
    (heads,) = heads_of_regions(cpu)
    assert len(heads) >= 3
    calls = [block.samples for block in cpu.code.blocks.values()]
    cpu.run(200_000)
    after = [block.samples for block in cpu.code.blocks.values()]
    assert sum(after) - sum(calls) < 10, "the function was left again and again"


@pytest.mark.parametrize("step", (1, 7, 64, 997))
def test_a_region_stops_at_every_count_with_the_state_of_the_step_engine(step: int) -> None:
    cpu = agree(NESTED, range(2000, 2000 + 80 * step, step))
    assert heads_of_regions(cpu)


def test_a_flag_that_one_trace_sets_and_another_reads_crosses_between_them() -> None:
    text = """
    again:
        add rax, rsi
        jmp middle
    back:
        adc rbx, 0
        inc rcx
        jmp again
    middle:
        lea rdx, [rdx+1]
        jnc back
        sbb rdi, 0
        clc
        jmp back
    """
    cpu = agree(text, range(900, 1200, 13), rsi=0x7FFF_FFFF_1234_5678)
    assert heads_of_regions(cpu)


def test_flags_that_a_trace_leaves_alone_are_those_of_the_trace_before_it() -> None:
    text = """
    again:
        sub rax, 3
        jc less
        jmp over
    less:
        mov rbx, [rdi]
        jmp store
    over:
        mov rcx, [rdi+8]
    store:
        mov [rdi+16], rcx
        jmp again
    """
    agree(text, range(600, 700), rdi=DATA, rax=5)


def test_a_bail_in_a_region_finds_the_flags_of_the_trace_before_it() -> None:
    text = """
    again:
        sub rax, 3
        jc less
        mov rcx, 9
        jmp again
    less:
        mov rbx, [rdi]
        pushf
        pop rbp
        add rax, 100
        mov rdi, [rdi+8]
        jmp again
    """
    # the list of pointers ends where no memory is: the load gives up with the flags of SUB
    stepped, translated = machine(text, False, rdi=DATA), machine(text, True, rdi=DATA)
    for cpu in (stepped, translated):
        for n in range(200):
            cpu.memory.write(DATA + 16 * n + 8, (DATA + 16 * (n + 1)).to_bytes(8, "little"))
        cpu.memory.write(DATA + 16 * 200 + 8, (1 << 40).to_bytes(8, "little"))
    reason, other = stepped.run(100_000), translated.run(100_000)
    assert type(reason) is type(other)
    assert not isinstance(reason, Budget)
    assert visible_state(stepped) == visible_state(translated)
    assert heads_of_regions(translated)


def test_a_jump_through_a_table_stays_inside_the_region() -> None:
    text = """
    again:
        mov rax, [rsi+rcx*8]
        jmp rax
    one:
        inc rbx
        xor rcx, 1
        jmp again
    two:
        inc rdx
        xor rcx, 1
        jmp again
    """
    code = assemble(text, bits=64, origin=CODE)
    one = CODE + code.index(bytes.fromhex("48ffc3"))
    two = CODE + code.index(bytes.fromhex("48ffc2"))
    pair = machine(text, False, rsi=DATA), machine(text, True, rsi=DATA)
    for cpu in pair:
        cpu.memory.write(DATA, one.to_bytes(8, "little") + two.to_bytes(8, "little"))
        cpu.run(30_000)
    assert visible_state(pair[0]) == visible_state(pair[1])
    assert any({one, two} <= set(heads) for heads in heads_of_regions(pair[1]))


def test_a_store_into_one_trace_of_a_region_forgets_all_its_heads() -> None:
    cpu = machine(NESTED)
    cpu.run(20_000)
    (heads,) = heads_of_regions(cpu)
    code = assemble(NESTED, bits=64, origin=CODE)
    patched = CODE + code.index(bytes.fromhex("4831c3"))  # xor rbx, rax
    cpu.memory.write(patched, bytes.fromhex("4801c3"))  # add rbx, rax
    assert not set(heads) & set(cpu.code.blocks)
    other = machine(NESTED, False)
    other.run(20_000)
    other.memory.write(patched, bytes.fromhex("4801c3"))
    cpu.run(60_000)
    other.run(60_000)
    assert visible_state(cpu) == visible_state(other)


def test_after_a_tlb_flush_one_arrival_brings_the_whole_region_back() -> None:
    cpu = machine(NESTED)
    cpu.run(20_000)
    (heads,) = heads_of_regions(cpu)
    cpu.flush_tlb()
    assert not cpu.code.blocks
    cpu.run(20_200)
    assert set(heads) <= set(cpu.code.blocks)


# ---- what always gives up ----------------------------------------------------------------------------------

DEVICE_LOOP = "again: add rbx, 1; mov rax, [rdi]; add rcx, rax; jmp again".replace(";", "\n")


def read_device(use_blocks: bool, rounds: int, between: int = 0) -> Cpu:
    """Read a device page `rounds` times, each read answered with 7; `between` rounds of RAM after each."""
    cpu = machine(DEVICE_LOOP, use_blocks, rdi=DATA)
    cpu.memory.set_mmio([(DATA, 0x1000)])
    for _ in range(rounds):
        while isinstance(cpu.run(cpu.retired + 10_000), Budget):
            raise AssertionError("the loop reads the device in each round")
        cpu.complete(7)
        if between:
            cpu.run(cpu.retired + 2)
            cpu.rdi = DATA + 0x1000
            cpu.run(cpu.retired + 4 * between - 2)
            cpu.rdi = DATA
    return cpu


def called_from_blocks(cpu: Cpu) -> set[int]:
    """The addresses of the instructions whose functions the blocks of the present mode call."""
    runs = (block.run for block in cpu.code.blocks.values())
    return {insn.ip for run in runs for insn in cast(FunctionType, run).__globals__["CALLED"].values()}


def test_an_instruction_that_always_gives_up_is_called_from_its_block() -> None:
    cpu = read_device(True, 3 * MAX_BAILS)
    load = CODE + 4
    assert load in cpu.code.apart
    assert called_from_blocks(cpu) == {load}
    assert visible_state(cpu) == visible_state(read_device(False, 3 * MAX_BAILS))


def test_an_instruction_that_seldom_gives_up_stays_in_its_block() -> None:
    cpu = read_device(True, 2 * MAX_BAILS, between=BAIL_DISTANCE)
    assert not cpu.code.apart
    assert any(CODE + 4 in block.ips for block in cpu.code.blocks.values())
    assert not called_from_blocks(cpu)


def test_new_code_in_the_place_of_what_gave_up_may_be_translated() -> None:
    cpu = read_device(True, 3 * MAX_BAILS)
    cpu.memory.write(CODE + 4, bytes.fromhex("4889f8"))  # mov rax, rdi
    assert not cpu.code.apart
    cpu.run(cpu.retired + 1000)
    assert any(CODE + 4 in block.ips for block in cpu.code.blocks.values())
