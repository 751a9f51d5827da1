"""Data, directives and the expressions in them."""

import struct

import pytest

from isa.assembler import assemble, assemble_program
from tests.isa.assembler.mistakes import error_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("db 'a', \"bc\", 10, 0", b"abc\n\0"),
        ("db `a\\n\\x41\\0`", b"a\nA\0"),
        ("db 'semi;colon#hash' ; comment", b"semi;colon#hash"),
        ("db -1, 255, 0b101, 0o17, 1_0, 0ffh, 0FFh", b"\xff\xff\x05\x0f\x0a\xff\xff"),
        ("dw 0x1234, 'abc'", b"\x34\x12abc\0"),
        ("dd 'abcd', 1.5", b"abcd" + struct.pack("<f", 1.5)),
        ("dq -2.25, 1", struct.pack("<dQ", -2.25, 1)),
        ("dt 1.0, -2.0", struct.pack("<QHQH", 1 << 63, 0x3FFF, 1 << 63, 0xC000)),
        (
            "db 2+3*4, (2+3)*4, 7/2, -7/2, -7%3, 1<<4|3, 6^3&1, ~0&0xf, 0x80>>3",
            b"\x0e\x14\x03\xfd\xff\x13\x07\x0f\x10",
        ),
        ("resb 2\nresw 1\nresd 1\nresq 1", bytes(16)),
        ("times 3 db 1, 2", b"\x01\x02" * 3),
        ("times 2 nop", b"\x90\x90"),
        ("times 0 nop", b""),
        ("nop\nalign 4", b"\x90" * 4),
        ("nop\nalign 4, db 0xcc", b"\x90\xcc\xcc\xcc"),
        ("nop\nalignb 4", b"\x90\0\0\0"),
        ("five equ 5\ndb five, five*2", b"\x05\x0a"),
        ("msg db 'hi'\nlen equ $-msg\ndb len", b"hi\x02"),
        ("db later-$$\nlater:", b"\x01"),
        ("", b""),
        ("   ; only a comment\n# another\n", b""),
    ],
)
def test_data_directives_and_expressions(text: str, code: bytes) -> None:
    assert assemble(text) == code


def test_dollar_is_the_address_of_the_line_and_double_dollar_the_origin() -> None:
    assert assemble("nop\ndw $, $$, $-$$", origin=0x7C00) == b"\x90" + struct.pack("<3H", 0x7C01, 0x7C00, 1)


def test_a_boot_sector_is_padded_to_its_signature() -> None:
    image = assemble("bits 16\norg 0x7c00\nstart: jmp start\ntimes 510-($-$$) db 0\ndw 0xaa55")
    assert len(image) == 512
    assert image[:2] == b"\xeb\xfe"
    assert image[510:] == b"\x55\xaa"


def test_org_sets_the_origin_first_and_pads_later() -> None:
    program = assemble_program("org 0x100\nnop\norg 0x104\nend: hlt", origin=0x7C00)
    assert program.origin == 0x100
    assert program.code == b"\x90\0\0\0\xf4"
    assert program.labels == {"end": 0x104}
    assert "org only moves forward" in error_of("org 0x100\nnop\norg 0x100")


def test_bits_switches_the_mode_within_one_text() -> None:
    text = "bits 16\npush ax\n[bits 32]\npush ax\nuse64\npush ax\nmov rax, rbx"
    assert assemble(text).hex() == "50" + "6650" + "6650" + "4889d8"


def test_symbols_are_names_the_caller_defines() -> None:
    assert assemble("mov eax, [uart]", bits=32, symbols={"uart": 0x3F8}).hex() == "a1f8030000"
