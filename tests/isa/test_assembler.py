"""The text assembler: encodings, names, sizes, layout, errors, and the round trip through iced."""

import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.assembler import MAX_IMAGE_BYTES, Assembled, AssemblerError, ListingLine, assemble, assemble_program
from tests.assembler_corpus import cases, code_names, is_current, verdict

CODES = code_names()


def error_of(text: str, bits: int = 64) -> str:
    with pytest.raises(AssemblerError) as caught:
        assemble(text, bits=bits)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------
# Round trip: iced's tables and formatters are the oracle
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_the_text_of_every_current_opcode_comes_back_as_the_same_instruction(bits: int) -> None:
    failures = []
    back = set()
    for case in cases(seed=20, per_code=1, modes=(bits,)):
        if not is_current(case.code_name, CODES[case.code_name]):
            continue
        outcome = verdict(case)
        if outcome.reason:
            failures.append(f"{case.code_name} {case.syntax}: {case.text}: {outcome.reason}")
        elif outcome.same:
            back.add(case.code_name)
    assert failures == []
    assert len(back) == {16: 2217, 32: 2217, 64: 2452}[bits]


# ------------------------------------------------------------------------------------------------------------
# Choice of encoding
# ------------------------------------------------------------------------------------------------------------


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


def test_an_address_below_4_gib_but_above_2_gib_is_reached_with_the_address_size_prefix() -> None:
    assert assemble("mov ebx, [0xfee00020]").hex() == "678b1c252000e0fe"


def test_an_address_beyond_32_bits_takes_the_moffs_form() -> None:
    assert assemble("mov rax, [0x1122334455667788]").hex() == "48a18877665544332211"
    assert "put it into a register" in error_of("mov rbx, [0x1122334455667788]")


# ------------------------------------------------------------------------------------------------------------
# Memory operands
# ------------------------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------------------------
# Names, prefixes, implied operands
# ------------------------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------------------------
# Data and expressions
# ------------------------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------------------------
# Labels and layout
# ------------------------------------------------------------------------------------------------------------


def test_a_jump_is_short_as_far_as_it_reaches_and_near_beyond() -> None:
    assert assemble("jmp end\ntimes 127 nop\nend:")[:2].hex() == "eb7f"
    assert assemble("jmp end\ntimes 128 nop\nend:")[:5].hex() == "e980000000"
    assert assemble("start: times 126 nop\njmp start")[126:].hex() == "eb80"
    assert assemble("start: times 127 nop\njmp start")[127:].hex() == "e97cffffff"
    assert assemble("jz end\ntimes 128 nop\nend:")[:6].hex() == "0f8480000000"


def test_short_and_near_are_obeyed() -> None:
    assert assemble("jmp near $").hex() == "e9fbffffff"
    assert assemble("jmp short $").hex() == "ebfe"
    assert "too far away" in error_of("jmp short end\ntimes 128 nop\nend:")


def test_growing_one_jump_makes_the_next_one_grow() -> None:
    # Were both short, the first would span 127 bytes; the second must be near and pushes it out of reach.
    text = "jmp outer\njmp inner\ntimes 125 nop\nouter: times 3 nop\ninner:"
    code = assemble(text)
    assert code[:5].hex() == "e982000000"
    assert code[5:10].hex() == "e980000000"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["jmp", "jnz", "call", "lea"]), st.integers(0, 11), st.integers(0, 90)),
        max_size=12,
    )
)
def test_every_branch_of_a_random_program_hits_its_label(blocks: list[tuple[str, int, int]]) -> None:
    lines = []
    for number, (mnemonic, target, padding) in enumerate(blocks):
        operand = f"rax, [rel l{target}]" if mnemonic == "lea" else f"l{target}"
        lines.append(f"l{number}: {mnemonic} {operand}\ntimes {padding} nop\nalign 8")
    lines.extend(f"l{number}:" for number in range(len(blocks), 12))
    program = assemble_program("\n".join(lines), origin=0x1000)
    rows = [row for row in program.listing if ": " in row.text]
    assert len(rows) == len(blocks)
    for row, (_, target, _) in zip(rows, blocks, strict=True):
        width = 1 if row.code[0] in (0xEB, 0x75) else 4
        distance = int.from_bytes(row.code[-width:], "little", signed=True)
        assert row.address + len(row.code) + distance == program.labels[f"l{target}"]


def test_a_local_label_belongs_to_the_label_above_it() -> None:
    program = assemble_program("a:\n.loop: jmp .loop\nb:\n.loop: jmp .loop\njmp a.loop")
    assert program.code.hex() == "ebfe" + "ebfe" + "ebfa"
    assert program.labels == {"a": 0, "a.loop": 0, "b": 2, "b.loop": 2}


def test_times_repeats_a_jump_each_at_its_own_address() -> None:
    assert assemble("times 2 jmp start\nstart:").hex() == "eb02eb00"


def test_an_immediate_or_displacement_that_holds_a_label_settles_to_the_shortest_form() -> None:
    assert assemble("add eax, end-$$\nend:").hex() == "83c003"
    assert assemble("mov eax, [rbx+end-$$]\nend:").hex() == "8b4303"


def test_a_name_that_depends_on_itself_is_an_error() -> None:
    assert "never settles" in error_of("a equ b+1\nb equ a+1\ndb 0")


def test_16_bit_code_above_64_kib_jumps_within_its_64_kib() -> None:
    assert assemble("top: jmp top", bits=16, origin=0xF0000).hex() == "ebfe"
    assert "out of reach of a 16-bit IP" in error_of("jmp 0x20000", bits=16)


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


def test_the_bytes_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from isa.assembler import assemble\n"
        "print(assemble('a: xchg eax, ebx\\nadd eax, a\\nvaddps xmm0, xmm1, xmm2\\njz a\\nmov ds, ax').hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {"93" + "83c000" + "c5f058c2" + "74f6" + "8ed8\n"}


# ------------------------------------------------------------------------------------------------------------
# Errors
# ------------------------------------------------------------------------------------------------------------


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
