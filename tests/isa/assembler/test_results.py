"""What comes out: the listing, and for every mistake one sentence; no text takes the machine down."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.assembler import MAX_IMAGE_BYTES, Assembled, AssemblerError, ListingLine, assemble, assemble_program
from tests.isa.assembler.mistakes import error_of


def test_the_listing_holds_address_bytes_line_number_and_text() -> None:
    program = assemble_program("start:\n  nop ; rest\n\n  ret", origin=0x10)
    assert program == Assembled(
        code=b"\x90\xc3",
        origin=0x10,
        labels={"start": 0x10},
        listing=[
            ListingLine(0x10, b"", 1, "start:"),
            ListingLine(0x10, b"\x90", 2, "  nop ; rest"),
            ListingLine(0x11, b"\xc3", 4, "  ret"),
        ],
    )
    assert program.format_listing().splitlines()[1] == "0x00000010  90                            nop ; rest"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "nop\nmvo eax, 1",
            "line 2: `mvo eax, 1`: mvo is not an instruction or directive; did you mean mov?",
        ),
        (
            "jmp strat\nstart:",
            "line 1: `jmp strat`: strat is neither a register nor a defined name; did you mean start?",
        ),
        (
            "mov eax, [rax",
            "line 1: `mov eax, [rax`: expected ']' after the address but the line ends; add the ']'",
        ),
        ("mov eax, rbx", "mov does not take these operands in 64-bit mode; its forms are MOV r/m32, r32; "),
        ("mov ah, r8b", "these operands cannot be encoded together"),
        ("a: nop\na: nop", "line 2: `a: nop`: a is already defined in line 1; choose another name"),
        (".x: nop", "the local label .x has no ordinary label above it; define one first"),
        ("eax: nop", "eax is a register or keyword and cannot be a label; choose another name"),
        ("mov eax, [rax*7]", "rax*7 cannot be encoded; an address has the form base + index*scale + number"),
        ("mov eax, [rax+rbx+rcx]", "the address has 3 registers"),
        ("mov eax, [rax+ebx]", "the address mixes registers of different widths"),
        ("mov eax, [rax*rbx]", "a register is multiplied by a register"),
        ("mov eax, [bx]", "64-bit mode has no 16-bit addresses"),
        ("mov eax, rax+1", "registers are added or scaled outside brackets; write [ ] around an address"),
        ("mov al, 256", "the immediate does not fit 8 bits"),
        ("mov rax, 1 << 64", "the immediate does not fit 64 bits"),
        ("mov eax ebx", "did not expect 'ebx' here; remove it, or put a comma or operator before it"),
        ("mov cr0, eax", "; MOV cr, r64; "),
        ("loop 0x1000", "the target is too far away"),
        ("lea rax, [rel 1 << 40]", "the target is too far away"),
        ("mov eax, 5 5", "did not expect '5' here"),
        ("mov eax, (1", "expected ')' after the expression but the line ends"),
        ("db 'abc", "the string that starts with ' has no end; add the closing '"),
        ("db 256", "the value 0x100 does not fit 1 byte(s); use a wider directive"),
        ("db 1.5", "a fraction has 4, 8 or 10 bytes, not 1; use dd, dq or dt"),
        ("dd 1.0e99", "the fraction 1.0e99 is too large for 4 bytes"),
        ("db 1/0", "a division by zero; change the divisor"),
        ("db 12z", "12z is not a number; write 0x1F, 1Fh, 0b101, 0o17 or 10"),
        ("mov eax, !", "the character '!' has no meaning here; remove it"),
        ("lock", "an instruction must follow the prefix on the same line; for a bare prefix use db"),
        ("bits 48", "bits takes 16, 32 or 64; write one of them"),
        ("align 3", "the alignment 3 is no power of two"),
        ("section .text", "section needs a linker, and this assembler makes one flat image; remove the line"),
        ("times end nop\nend:", "times cannot use end, which is defined further down; define it above"),
        ("times -1 nop", "the count of times is -1; it cannot be negative"),
        ("daa", "daa does not exist in 64-bit mode; it does in 16 and 32-bit code"),
        ("vpternlogd xmm0, xmm1, xmm2, 0", "vpternlogd has only EVEX, XOP, 3DNow! or MVEX encodings"),
        ("jmp far 0x1234", "far needs selector:offset or brackets"),
        ("fld st(8)", "st(8) does not exist; the x87 stack goes from st(0) to st(7)"),
        ("mov eax, dword ebx, ecx", "mov does not take these operands"),
        ("mov eax, word ebx", "ebx has 32 bits, not 16"),
        ("stos byte [fs:rdi]", "the destination of a string instruction is always in ES"),
    ],
)
def test_a_mistake_becomes_one_sentence_with_line_text_and_advice(text: str, sentence: str) -> None:
    message = error_of(text)
    assert sentence in message
    assert message.startswith("line ")
    assert "\n" not in message


def test_a_64_bit_register_in_32_bit_code_names_the_way_out() -> None:
    assert "rax exists in 64-bit mode only; use a smaller register or `bits 64`" in error_of("mov rax, 1", 32)


def test_wrong_arguments_are_assembler_errors_without_a_line() -> None:
    with pytest.raises(AssemblerError, match="bits=48; use 16, 32 or 64"):
        assemble("nop", bits=48)
    with pytest.raises(AssemblerError, match="origin=-0x1; use a 64-bit address"):
        assemble("nop", origin=-1)
    with pytest.raises(AssemblerError, match="the name eax in symbols is a register"):
        assemble("nop", symbols={"eax": 1})
    with pytest.raises(AssemblerError, match="a is also passed in symbols"):
        assemble("a: nop", symbols={"a": 1})


@pytest.mark.parametrize(
    "text",
    [
        f"times {MAX_IMAGE_BYTES + 1} nop",
        f"resq {MAX_IMAGE_BYTES}",
        f"times {MAX_IMAGE_BYTES // 2 + 1} dw 0",
        "align 1 << 60\nnop\nalign 1 << 60",
        "nop\norg 1 << 60",
        "db 1 << 1 << 127 << 127",
        "db 1 << 0xffffffffffffffff",
        "db " + "9" * 5000,
        "db " + "(" * 5000,
        "db " + "-" * 5000 + "1",
        "db " + "1+(" * 70 + "1" + ")" * 70,
    ],
)
def test_a_text_that_asks_for_too_much_is_refused_at_once(text: str) -> None:
    assert error_of(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    *("mov", "add", "rax", "eax", "al", "[", "]", ",", "+", "-"),
                    *("*", "/", "(", ")", ":", "$", "5", "0x10", "'ab'", "byte"),
                    *("far", "rel", "fs", "cs", "times", "db", "equ", "lbl", ".l", "align"),
                    *("rep", "lock", "jmp", "push", "st", "xmm0", "movsb", "rip", "a32", "o16"),
                    *("to", "in", "1.5", ";"),
                    "\n",
                ]
            ),
            st.text(max_size=3),
        ),
        max_size=12,
    ),
    st.sampled_from([16, 32, 64]),
)
def test_any_text_assembles_or_raises_an_assembler_error(words: list[str], bits: int) -> None:
    try:
        code = assemble(" ".join(words), bits=bits)
    except AssemblerError as error:
        assert error.reason
    else:
        assert isinstance(code, bytes)
