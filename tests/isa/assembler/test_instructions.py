"""Other names, prefixes, and operands that custom leaves out or turns round."""

import pytest

from isa.assembler import assemble
from tests.isa.assembler.mistakes import error_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("jz $", "je $"),
        ("jnae $", "jb $"),
        ("jpo $", "jnp $"),
        ("setnz al", "setne al"),
        ("cmovnge eax, ebx", "cmovl eax, ebx"),
        ("cmpaxadd [rax], ecx, edx", "cmpnbexadd [rax], ecx, edx"),
        ("loopz $", "loope $"),
        ("fwait", "wait"),
        ("xlat", "xlatb"),
        ("icebp", "int1"),
        ("retn", "ret"),
        ("movsx rax, ecx", "movsxd rax, ecx"),
        ("cmpltsd xmm0, xmm1", "cmpsd xmm0, xmm1, 1"),
        ("vcmptrue_usps ymm0, ymm1, ymm2", "vcmpps ymm0, ymm1, ymm2, 31"),
        ("pclmulhqlqdq xmm0, xmm1", "pclmulqdq xmm0, xmm1, 1"),
        ("rep movsb", "rep movs byte [rdi], [rsi]"),
        ("fs lodsb", "lods byte [fs:rsi]"),
        ("a32 stosd", "stos dword ptr es:[edi], eax"),
        ("insb", "ins byte [rdi], dx"),
        ("repne scasb", "repnz scas byte [rdi]"),
        ("monitor", "monitor rax, rcx, rdx"),
        ("blendvps xmm1, xmm2", "blendvps xmm1, xmm2, xmm0"),
        ("fadd st1", "fadd st0, st(1)"),
        ("fadd to st3", "fadd st(3), st"),
        ("faddp", "faddp st1, st0"),
        ("fadd", "faddp"),
        ("fxch", "fxch st1"),
        ("fcom", "fcom st(1)"),
        ("XCHG [RAX], ECX", "xchg ecx, [rax]"),
        ("mov eax, r8d", "MOV EAX, R8D"),
        ("mov al, r8l", "mov al, r8b"),
        ("mov eax, strict dword 5", "mov eax, 5"),
        ("jmp qword ptr [rax]", "jmp [rax]"),
    ],
)
def test_two_spellings_of_one_instruction_give_the_same_bytes(one: str, other: str) -> None:
    assert assemble(one) == assemble(other)


def test_movsd_and_cmpsd_are_string_or_sse_by_their_operands() -> None:
    assert assemble("movsd").hex() == "a5"
    assert assemble("movsd xmm0, [rax]").hex() == "f20f1000"
    assert assemble("rep movsd").hex() == "f3a5"
    assert assemble("cmpsd xmm0, xmm1, 2").hex() == "f20fc2c102"


def test_aam_and_aad_divide_by_ten_unless_told() -> None:
    assert assemble("aam\naad\naam 16", bits=32).hex() == "d40ad50ad410"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("lock add dword [rax], 1", "f0830001"),
        ("lock xchg [rax], ecx", "f08708"),
        ("rep ret", "f3c3"),
        ("bnd ret", "f2c3"),
        ("notrack jmp rax", "3effe0"),
        ("endbr64", "f30f1efa"),
        ("xacquire lock inc dword [rax]", "f0f2ff00"),
    ],
)
def test_a_written_prefix_is_encoded(text: str, code: str) -> None:
    assert assemble(text).hex() == code


@pytest.mark.parametrize(
    ("text", "byte"),
    [
        ("lock mov [rax], ecx", "0xf0"),
        ("lock add eax, ecx", "0xf0"),
        ("rep add eax, 1", "0xf3"),
        ("repne movsb", "0xf2"),
    ],
)
def test_a_prefix_the_instruction_does_not_take_is_refused(text: str, byte: str) -> None:
    assert f"for a bare prefix write db {byte}" in error_of(text)


def test_in_and_out_take_dx_or_a_byte() -> None:
    assert (
        assemble("in al, dx\nin eax, 0x60\nout 0x80, al\nout dx, ax").hex() == "ec" + "e560" + "e680" + "66ef"
    )
