"""Accesses around one register share a look-up, and do what each of them would have done alone."""

from __future__ import annotations

import pytest

from tests.isa.test_translate import Block, agree, block_of, lines_of

PUSHES = "push rax; push rbx; push rcx; pop rdx; pop rsi; pop rdi"
PAGE = 0x2_0000


def shared(block: Block) -> int:
    """How many accesses use a common look-up."""
    return sum(" is None" in line and ("load(" in line or line.startswith("if ")) for line in lines_of(block))


def test_pushes_and_pops_share_one_look_up() -> None:
    _, block = block_of(PUSHES)
    assert shared(block) == 6
    assert sum("tw.get(" in line for line in lines_of(block)) == 1


def test_two_accesses_are_not_worth_it() -> None:
    _, block = block_of("push rax; pop rbx; mov rcx, [rsi]")
    assert shared(block) == 0


def test_different_registers_do_not_share() -> None:
    _, block = block_of("mov rax, [rsi]; mov rbx, [rdi]; mov rcx, [rbp+8]")
    assert shared(block) == 0


def test_a_register_that_gets_a_new_value_starts_anew() -> None:
    _, block = block_of("mov rax, [rsi]; mov rbx, [rsi+8]; mov rsi, rcx; mov rdx, [rsi+16]")
    assert shared(block) == 0


def test_a_copy_and_a_sum_are_still_the_same_place() -> None:
    _, block = block_of("mov rbp, rsp; mov rax, [rbp+8]; add rbp, 16; mov rbx, [rbp+8]; mov rcx, [rsp]")
    assert shared(block) == 3


LOOP = "again: push rax; push rbx; push rcx; inc rax; pop rcx; pop rbx; pop rax; add rax, 5; jmp again"
FIELDS = """
again: mov eax, [rsi]; add rax, [rsi+8]; mov [rsi+16], rax; mov bx, [rsi+24]; inc rbx; mov [rsi+26], bx
mov [rsi-4], ebx; add rsi, rdx; and rsi, rdi; jmp again
"""


@pytest.mark.parametrize("top", (0x18, 0x10, 0x8, 0, 0x1C, 3, 0xFF8, 0xFFC))
def test_a_stack_anywhere_in_a_page_and_over_its_border_works(top: int) -> None:
    agree(LOOP, list(range(60, 100)), rsp=PAGE + top)


@pytest.mark.parametrize("stride", (8, 24, 0x7F8, 5, 0xFF4))
def test_fields_of_a_record_that_wanders_through_pages(stride: int) -> None:
    agree(FIELDS.strip().replace("\n", "; "), list(range(200, 260, 7)), rsi=PAGE, rdx=stride, rdi=0x2_FFFF)


def test_a_window_on_a_device_page_exits_at_each_access() -> None:
    agree("again: mov rax, [rsi]; mov rbx, [rsi+8]; mov [rsi+16], rax; jmp again", [50, 90], rsi=0x3_0000)


def test_a_stack_that_wraps_around_the_address_space_is_left_to_the_step_engine() -> None:
    cpu, block = block_of(PUSHES, rsp=8)
    assert block.run(cpu, 100)
    assert cpu.retired == 1
