"""Addresses as they are written, and the base, index, displacement and address size they become."""

import pytest

from isa.assembler import assemble
from tests.isa.assembler.mistakes import error_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mov eax, [rax+rcx*4+8]", "8b448808"),
        ("mov eax, [8+4*rcx+rax]", "8b448808"),
        ("mov eax, [rax+(2+2)*rcx+16/2]", "8b448808"),
        ("mov eax, [rax*5]", "8b0480"),
        ("mov eax, [rax+rsp]", "8b0404"),
        ("mov eax, [rbp]", "8b4500"),
        ("mov eax, [r13+rax]", "418b440500"),
        ("mov eax, [rax-128]", "8b4080"),
        ("mov eax, [rax+128]", "8b8080000000"),
        ("mov eax, [dword rax+8]", "8b8008000000"),
        ("mov eax, [fs:rax]", "648b00"),
        ("mov eax, fs:[rax]", "648b00"),
        ("mov eax, dword ptr fs:[rax]", "648b00"),
        ("mov eax, fs:0x28", "648b042528000000"),
        ("mov eax, [ds:rax]", "8b00"),
        ("mov eax, [ds:rbp]", "3e8b4500"),
        ("mov eax, [0x1000]", "8b042500100000"),
        ("mov eax, [rel 0x1000]", "8b05fa0f0000"),
        ("mov eax, [rip+0x10]", "8b0510000000"),
        ("mov al, byte [rsi]", "8a06"),
        ("vpgatherdd xmm0, [rax+xmm1*4], xmm2", "c4e269900488"),
        ("vpgatherdd xmm0, [xmm1*4+rax], xmm2", "c4e269900488"),
        ("call [rax]", "ff10"),
        ("push [rax]", "ff30"),
        ("jmp far [rax]", "ff28"),
        ("jmp qword far [rax]", "48ff28"),
        ("lgdt [rax]", "0f0110"),
    ],
)
def test_a_memory_operand_is_read_as_nasm_reads_it(text: str, code: str) -> None:
    assert assemble(text).hex() == code


def test_16_bit_addresses_take_base_and_index_in_either_order() -> None:
    assert assemble("mov ax, [bx+si+5]", bits=16) == assemble("mov ax, [si+bx+5]", bits=16)
    assert assemble("mov ax, [bp]", bits=16).hex() == "8b4600"


def test_rip_plus_label_means_the_label_and_rip_plus_number_means_the_distance() -> None:
    assert assemble("lea rax, [rip+there]\nnop\nthere:").hex() == "488d050100000090"
    assert assemble("lea rax, [rel there]\nnop\nthere:").hex() == "488d050100000090"
    assert assemble("lea rax, [rip+1]").hex() == "488d0501000000"
    assert assemble("lea rax, [rip+5]", origin=0x1000).hex() == "488d0505000000"


def test_default_rel_leaves_fs_and_abs_addresses_absolute() -> None:
    code = assemble("default rel\nmov eax, [0x10]\nmov eax, [abs 0x10]\nmov eax, [fs:0x10]")
    assert code.hex() == "8b050a000000" + "8b042510000000" + "648b042510000000"


def test_an_address_below_4_gib_but_above_2_gib_is_reached_with_the_address_size_prefix() -> None:
    assert assemble("mov ebx, [0xfee00020]").hex() == "678b1c252000e0fe"


def test_an_address_beyond_32_bits_takes_the_moffs_form() -> None:
    assert assemble("mov rax, [0x1122334455667788]").hex() == "48a18877665544332211"
    assert "put it into a register" in error_of("mov rbx, [0x1122334455667788]")
