"""Which form of an instruction wins: the shortest of what is written, in the size that is meant."""

import pytest

from isa.assembler import assemble
from tests.isa.assembler.mistakes import error_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("add eax, 5", "83c005"),
        ("add eax, 0x12345678", "0578563412"),
        ("add ebx, 0x12345678", "81c378563412"),
        ("add rax, -1", "4883c0ff"),
        ("add eax, 0xffffffff", "83c0ff"),
        ("add rax, dword 5", "480505000000"),
        ("mov rax, 5", "48c7c005000000"),
        ("mov rax, 0xffffffff", "48b8ffffffff00000000"),
        ("mov rax, -0x80000000", "48c7c000000080"),
        ("mov rax, qword 5", "48b80500000000000000"),
        ("movabs rax, 5", "48b80500000000000000"),
        ("add bx, 1", "6683c301"),
        ("add ax, 1", "6683c001"),
        ("mov eax, ebx", "89d8"),
        ("mov eax, 5", "b805000000"),
        ("push 5", "6a05"),
        ("push 0x1234", "6834120000"),
        ("push word 5", "666a05"),
        ("shl eax, 1", "d1e0"),
        ("sal eax, 3", "c1e003"),
        ("imul eax, 5", "6bc005"),
        ("imul eax, ebx, 500", "69c3f4010000"),
        ("xchg rax, rbx", "4893"),
        ("xchg rbx, rax", "4893"),
        ("vmovaps xmm0, xmm8", "c57829c0"),
        ("test eax, [rbx]", "8503"),
    ],
)
def test_the_shortest_form_of_what_is_written_wins(text: str, code: str) -> None:
    assert assemble(text).hex() == code


def test_a_shorter_form_with_another_operand_size_never_wins() -> None:
    assert assemble("push 0x1234", bits=32).hex() == "6834120000"
    assert assemble("jmp 0x10:0x1234", bits=32).hex() == "ea341200001000"
    assert assemble("jmp near 0x100", bits=32).hex() == "e9fb000000"
    assert assemble("xbegin 0x100").hex() == "c7f8fa000000"


def test_xchg_eax_eax_is_not_nop_in_64_bit_mode() -> None:
    assert assemble("xchg eax, eax").hex() == "87c0"
    assert assemble("xchg eax, eax", bits=32).hex() == "90"


def test_a_selector_register_needs_no_operand_size_prefix() -> None:
    assert assemble("mov ds, ax", bits=32).hex() == "8ed8"
    assert assemble("mov ds, ax", bits=16).hex() == "8ed8"
    assert assemble("ltr ax").hex() == "0f00d8"
    assert assemble("o16 ltr ax").hex() == "660f00d8"


@pytest.mark.parametrize(
    ("bits", "text", "code"),
    [
        (16, "mov eax, ebx", "6689d8"),
        (32, "mov ax, bx", "6689d8"),
        (32, "mov eax, [bx+si]", "678b00"),
        (64, "mov eax, [ebx]", "678b03"),
        (16, "mov ax, [0x12345]", "67a145230100"),
        (16, "jmp dword 0x08:0x12345678", "66ea785634120800"),
        (16, "jmp 0x08:0x12345678", "66ea785634120800"),
        (16, "push 0x12345678", "666878563412"),
        (16, "o32 ret", "66c3"),
        (16, "a32 movsb", "67a4"),
        (64, "o64 sysret", "480f07"),
        (64, "sysretq", "480f07"),
        (64, "sysret", "0f07"),
        (64, "iretq", "48cf"),
        (64, "iret", "cf"),
        (16, "iret", "cf"),
        (16, "iretd", "66cf"),
        (64, "pushf", "9c"),
        (64, "pushfq", "9c"),
        (64, "retf", "cb"),
        (64, "retfq", "48cb"),
        (32, "pusha", "60"),
        (64, "loop $, ecx", "67e2fd"),
        (64, "jecxz $", "67e3fd"),
    ],
)
def test_operand_and_address_size_prefixes_come_from_mode_registers_and_suffixes(
    bits: int, text: str, code: str
) -> None:
    assert assemble(text, bits=bits).hex() == code


@pytest.mark.parametrize(
    "text",
    [
        "mov [rax], 5",
        "inc [rax]",
        "movzx eax, [rax]",
        "fld [rax]",
        "cvtsi2sd xmm0, [rax]",
        "movs [rdi], [rsi]",
    ],
)
def test_an_open_operand_size_is_an_error_that_names_the_sizes(text: str) -> None:
    assert "the size of the memory operand is open; write " in error_of(text)
