"""The decoder's edge: lengths, options, hints, texts and the operand objects it chooses."""

from __future__ import annotations

import pytest

from isa.cpuid import feature_set
from isa.decode import (
    InvalidInstruction,
    NeedMoreBytes,
    TooLong,
    decode,
    decoder_options,
    disassemble,
    form_features,
    mnemonic_names,
    operand_size,
    requires_alignment,
)
from isa.operands import (
    AlignedFlatMemory,
    AlignedMemory,
    BasedMemory,
    FarPointer,
    FlatMemory,
    FlatMemory128,
    FlatStackMemory,
    Immediate,
    MmxOperand,
    NamedRegister,
    SegmentedMemory,
    SegmentOperand,
    UnreachableTarget,
)
from tests.isa.forms import implemented_forms
from tests.isa.machine import CODE, make_cpu


def code_of(raw: str, bits: int = 64) -> int:
    """iced's number of the form that the bytes decode to."""
    return int(decode(bytes.fromhex(raw), bits, CODE).code)


@pytest.mark.parametrize("raw", ["", "48", "48b8", "48b81122334455667", "0f", "660f38", "c4e2", "8b05112233"])
def test_bytes_that_end_inside_an_instruction_ask_for_more(raw: str) -> None:
    with pytest.raises(NeedMoreBytes):
        decode(bytes.fromhex(raw[: len(raw) // 2 * 2]), 64, CODE)


@pytest.mark.parametrize(
    ("raw", "bits"), [("06", 64), ("0f04", 32), ("f090", 64), ("f001c0", 64), ("62", 64)]
)
def test_bytes_that_no_instruction_starts_with_are_invalid(raw: str, bits: int) -> None:
    with pytest.raises(InvalidInstruction):
        decode(bytes.fromhex(raw).ljust(15, b"\0"), bits, CODE)


@pytest.mark.parametrize("raw", ["66" * 15, "48" * 15, "f0" * 15, "6648" * 7 + "66", "2e" * 14 + "0f"])
def test_fifteen_bytes_that_want_more_are_too_long(raw: str) -> None:
    with pytest.raises(TooLong):
        decode(bytes.fromhex(raw), 64, CODE)


def test_every_length_of_prefix_flood_agrees_with_the_fifteen_byte_rule() -> None:
    body = bytes.fromhex("81807856341212345678")  # add dword [rax + 0x12345678], 0x78563412: ten bytes
    for prefixes in range(16):
        raw = (b"\x2e" * prefixes + body)[:15]
        if prefixes + len(body) <= 15:
            assert decode(raw, 64, CODE).len == prefixes + len(body)
        else:
            with pytest.raises(TooLong):
                decode(raw, 64, CODE)


def test_options_follow_the_features() -> None:
    full = frozenset(("BMI1", "LZCNT", "LAHF_SAHF_64", "WBNOINVD"))
    names = mnemonic_names()

    def mnemonic(raw: str, features: frozenset[str]) -> str:
        return names[decode(bytes.fromhex(raw), 64, CODE, decoder_options(features)).mnemonic]

    for raw, feature, with_it, without in (
        ("f30fbcc1", "BMI1", "TZCNT", "BSF"), ("f30fbdc1", "LZCNT", "LZCNT", "BSR"),
        ("f30f09", "WBNOINVD", "WBNOINVD", "WBINVD"),
    ):  # fmt: skip
        assert mnemonic(raw, full) == with_it
        assert mnemonic(raw, full - {feature}) == without
    assert mnemonic("9f", full) == "LAHF"
    with pytest.raises(InvalidInstruction):
        decode(b"\x9f".ljust(15, b"\0"), 64, CODE, decoder_options(full - {"LAHF_SAHF_64"}))


@pytest.mark.parametrize(
    ("raw", "bits", "text"),
    [
        ("488b05f0000000", 64, "mov rax, [rel 0x10f7]"), ("ebfe", 64, "jmp short 0x0000000000001000"),
        ("a134120000", 32, "mov eax, [0x1234]"), ("ea78563412", 16, "jmp 0x1234:0x5678"),
        ("06", 64, "(bad)"),
    ],
)  # fmt: skip
def test_texts_are_nasm_with_absolute_targets(raw: str, bits: int, text: str) -> None:
    assert disassemble(bytes.fromhex(raw), bits, CODE) == text


def test_operand_size_of_forms_that_have_no_operand() -> None:
    sizes = [
        ("c3", 64),
        ("66c3", 32),
        ("c3", 32),
        ("c3", 16),
        ("9c", 64),
        ("669c", 64),
        ("cf", 32),
        ("48cf", 64),
    ]
    expected = [64, 16, 32, 16, 64, 16, 32, 64]
    assert [operand_size(code_of(raw, bits)).bits for raw, bits in sizes] == expected


def test_features_of_a_form_are_icecs_names_and_the_default_cpu_knows_them() -> None:
    assert form_features(code_of("0f58c1")) == ("SSE",)
    assert form_features(code_of("0fa2")) == ("CPUID",)
    assert set(form_features(code_of("480fc70b"))) == {"CMPXCHG16B"}
    assert feature_set() >= set(form_features(code_of("f00fb101")))


def test_only_legacy_sse_wants_aligned_memory_and_not_the_unaligned_moves() -> None:
    aligned = ["0f58 03", "660f6f 03", "0f28 03", "660f7f 03", "0f54 03", "660fefc1"]
    free = ["0f10 03", "f30f6f 03", "660f1003", "f20ff003", "8b 03", "0fae 03", "c5f85803", "480fc70b"]
    assert all(requires_alignment(code_of(raw.replace(" ", ""))) for raw in aligned)
    assert not any(requires_alignment(code_of(raw.replace(" ", ""))) for raw in free)


@pytest.mark.parametrize(
    ("raw", "bits", "kinds"),
    [
        ("8b03", 64, ("EAX_32", FlatMemory)), ("648b03", 64, ("EAX_32", BasedMemory)),
        ("8b0424", 64, ("EAX_32", FlatStackMemory)), ("8b4500", 64, ("EAX_32", FlatStackMemory)),
        ("3e8b4500", 64, ("EAX_32", FlatStackMemory)), ("368b03", 64, ("EAX_32", FlatMemory)),  # ignored
        ("8b03", 32, ("EAX_32", SegmentedMemory)), ("0f2803", 64, ("XMM0", AlignedFlatMemory)),
        ("0f280424", 64, ("XMM0", AlignedFlatMemory)), ("640f2803", 64, ("XMM0", AlignedMemory)),
        ("0f2803", 32, ("XMM0", AlignedMemory)), ("0f1003", 64, ("XMM0", FlatMemory128)),
        ("8ed8", 64, (SegmentOperand, "EAX_32")), ("0f20c0", 64, ("RAX_64", NamedRegister)),
        ("0f6fc1", 64, (MmxOperand, MmxOperand)), ("83c0ff", 64, ("EAX_32", Immediate)),
        ("ea7856341200ab", 32, (FarPointer,)), ("ebfe", 64, (Immediate,)),
        ("e900000080", 32, (UnreachableTarget,)),
    ],
)  # fmt: skip
def test_each_operand_gets_the_class_that_knows_its_rules(
    raw: str, bits: int, kinds: tuple[object, ...]
) -> None:
    cpu = make_cpu(bits, bytes.fromhex(raw))
    if kinds == (UnreachableTarget,):
        cpu.cs.load_raw(0x08, 0, 0xFFFF, 0x409B)
        cpu.update_mode()
    operands = cpu.code[CODE].operands
    assert len(operands) == len(kinds)
    for operand, kind in zip(operands, kinds, strict=True):
        name = type(operand).__name__
        if isinstance(kind, str):
            assert name == kind or name == f"R{kind[1:]}", name
        else:
            assert type(operand) is kind, name


@pytest.mark.parametrize(
    ("raw", "bits", "value", "width"),
    [
        ("83c0ff", 64, 0xFFFF_FFFF, 32),
        ("4883c0ff", 64, (1 << 64) - 1, 64),
        ("6683c0ff", 64, 0xFFFF, 16),
        ("04ff", 64, 0xFF, 8),
        ("4805000000ff", 64, 0xFFFF_FFFF_FF00_0000, 64),
        ("6aff", 64, (1 << 64) - 1, 64),
        ("6aff", 16, 0xFFFF, 16),
        ("48b8ffffffffffffff7f", 64, (1 << 63) - 1, 64),
    ],
)
def test_immediates_are_sign_extended_to_their_operand_size(
    raw: str, bits: int, value: int, width: int
) -> None:
    immediate = make_cpu(bits, bytes.fromhex(raw)).code[CODE].operands[-1]
    assert (immediate.value, immediate.bits) == (value, width)


@pytest.mark.parametrize(
    ("raw", "bits", "target"),
    [("ebfe", 64, CODE), ("eb10", 16, CODE + 0x12), ("e9fbffffff", 32, CODE), ("66ebfe", 32, CODE + 1)],
)
def test_near_branch_operands_hold_the_absolute_target(raw: str, bits: int, target: int) -> None:
    assert make_cpu(bits, bytes.fromhex(raw)).code[CODE].operands[0].value == target


def test_a_16_bit_branch_wraps_its_target_and_a_wide_one_faults_on_reading_it() -> None:
    cpu = make_cpu(16, rip=0xFFF0)
    cpu.memory.write(0xFFF0, bytes.fromhex("eb20"))
    assert cpu.code[0xFFF0].operands[0].value == 0x12


def test_every_implemented_form_is_one_that_iced_calls_an_instruction() -> None:
    assert len(implemented_forms()) > 1000
