"""Operands: every register class reads and writes its own bits only; every address shape gives its offset."""

from __future__ import annotations

import random

import pytest

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.faults import GeneralProtection, StackFault
from isa.operands import Immediate, UnreachableTarget, Width, effective_address, register_classes
from isa.state import GPR_NAMES, M64, XMM_NAMES, YMM_HIGH_NAMES
from tests.isa.machine import CODE, make_cpu

PATTERN = 0x1122_3344_5566_7788


def filled() -> Cpu:
    """A CPU whose registers all differ."""
    cpu = make_cpu(64)
    rng = random.Random("registers")
    for name in (*GPR_NAMES,):
        setattr(cpu, name, rng.getrandbits(64))
    for name in (*XMM_NAMES, *YMM_HIGH_NAMES):
        setattr(cpu, name, rng.getrandbits(128))
    return cpu


def registers(cpu: Cpu) -> dict[str, int]:
    """All registers that operands can name."""
    return {name: getattr(cpu, name) for name in (*GPR_NAMES, *XMM_NAMES, *YMM_HIGH_NAMES)}


GENERAL = {  # register class name -> (64-bit register, lowest bit, bits)
    **{f"R{n}{suffix}": (f"r{n}", 0, bits) for n in range(8, 16)
       for suffix, bits in (("", 64), ("D", 32), ("W", 16), ("L", 8))},
    **{f"R{n}": (f"r{n.lower()}", 0, 64) for n in ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")},
    **{f"E{n}": (f"r{n.lower()}", 0, 32) for n in ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")},
    **{n: (f"r{n.lower()}", 0, 16) for n in ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")},
    **{f"{n}L": (f"r{n.lower()}x", 0, 8) for n in "ACDB"},
    **{f"{n}H": (f"r{n.lower()}x", 8, 8) for n in "ACDB"},
    **{f"{n}L": (f"r{n.lower()}", 0, 8) for n in ("SP", "BP", "SI", "DI")},
}  # fmt: skip


def test_there_is_a_class_for_every_general_and_vector_register_and_no_other() -> None:
    vectors = {f"{kind}{n}" for kind in ("XMM", "YMM") for n in range(16)}
    assert register_classes().keys() == GENERAL.keys() | vectors


@pytest.mark.parametrize("name", GENERAL)
def test_a_general_register_reads_its_bits_and_writes_as_the_manual_says(name: str) -> None:
    register, low, bits = GENERAL[name]
    cpu = filled()
    operand = register_classes()[name](cpu)
    before = registers(cpu)
    mask = (1 << bits) - 1
    assert (operand.bits, operand.bytes, operand.mask, operand.in_memory) == (bits, bits // 8, mask, False)
    assert operand.value == before[register] >> low & mask
    operand.value = PATTERN & mask
    # A 32-bit write clears the upper half, an 8- or 16-bit one keeps the rest
    kept = 0 if bits >= 32 else before[register] & ~(mask << low)
    assert registers(cpu) == before | {register: kept | (PATTERN & mask) << low}
    assert operand.value == PATTERN & mask


@pytest.mark.parametrize("number", range(16))
def test_a_vector_register_of_128_bits_keeps_the_upper_half_and_one_of_256_writes_both(number: int) -> None:
    cpu = filled()
    xmm, ymm = register_classes()[f"XMM{number}"](cpu), register_classes()[f"YMM{number}"](cpu)
    before = registers(cpu)
    wide = PATTERN << 192 | PATTERN << 64 | 5
    xmm.value = 7
    assert registers(cpu) == before | {f"xmm{number}": 7}
    ymm.value = wide
    assert ymm.value == wide
    assert xmm.value == wide & (1 << 128) - 1
    assert getattr(cpu, f"ymmh{number}") == wide >> 128
    assert (ymm.bits, ymm.bytes, xmm.bytes) == (256, 32, 16)


def test_widths_and_immediates_carry_their_mask() -> None:
    assert (Width(16).bytes, Width(16).mask) == (2, 0xFFFF)
    assert Immediate(-1, 32).value == 0xFFFF_FFFF


def test_an_unreachable_target_faults_when_it_is_read_and_not_before() -> None:
    target = UnreachableTarget(0x1_0000, 16)
    with pytest.raises(GeneralProtection) as caught:
        _ = target.value
    assert caught.value.error_code == 0 and "0x10000" in caught.value.why


# ---- addresses -------------------------------------------------------------------------------------------


def offset_of(text: str, bits: int = 64, **values: int) -> int:
    """The effective address of the memory operand of an LEA or MOV."""
    cpu = make_cpu(bits, assemble(text, bits=bits, origin=CODE))
    for name, value in values.items():
        setattr(cpu, name, value)
    memory = next(operand for operand in cpu.code[CODE].operands if operand.in_memory)
    offset: int = memory.offset
    return offset


@pytest.mark.parametrize(
    ("text", "bits", "values", "offset"),
    [
        ("mov al, [rax]", 64, {"rax": PATTERN}, PATTERN),
        ("mov al, [rax + rcx * 8 - 1]", 64, {"rax": 16, "rcx": 2}, 31),
        ("mov al, [rax + rcx * 8]", 64, {"rax": M64, "rcx": 1}, 7),
        ("mov al, [eax]", 64, {"rax": PATTERN}, PATTERN & 0xFFFF_FFFF),
        ("mov al, [eax + ecx * 4 + 5]", 64, {"rax": 0xFFFF_FFFF, "rcx": 1 << 40 | 1}, 8),
        ("mov al, [rip + 0x10]", 64, {}, CODE + 6 + 0x10),
        ("mov al, [r12 + r13 * 2]", 64, {"r12": 3, "r13": 4}, 11),
        ("mov al, [rsp + 8]", 64, {"rsp": 0x100}, 0x108),
        ("mov al, [rcx * 4]", 64, {"rcx": 0x10}, 0x40),
        ("mov al, [bx + si]", 16, {"rbx": 0xFFFF, "rsi": 2}, 1),
        ("mov al, [bp + di + 0x7f]", 16, {"rbp": 0x1_0001, "rdi": 0x2_0001}, 0x81),
        ("mov al, [si]", 32, {"rsi": 0x5_1234}, 0x1234),
        ("mov al, [eax]", 16, {"rax": 0x1234_5678}, 0x1234_5678),
        ("mov al, [0x1234]", 16, {}, 0x1234),
        ("mov al, [ebx + 0x1234]", 32, {"rbx": 0xFFFF_FFFF}, 0x1233),
        ("xlatb", 64, {"rbx": 0x1000, "rax": 0xFF80}, 0x1080),
        ("xlatb", 16, {"rbx": 0xFFFF, "rax": 2}, 1),
        ("a32 xlatb", 64, {"rbx": 0xFFFF_FFFF, "rax": 1}, 0),
    ],
)  # fmt: skip
def test_effective_addresses_wrap_at_their_address_size(
    text: str, bits: int, values: dict[str, int], offset: int
) -> None:
    assert offset_of(text, bits, **values) == offset


@pytest.mark.parametrize(
    ("raw", "bits", "offset", "mask"),
    [
        ("a03412", 16, 0x1234, 0xFFFF), ("67a078563412", 16, 0x1234_5678, 0xFFFF_FFFF),
        ("a078563412", 32, 0x1234_5678, 0xFFFF_FFFF), ("67a03412", 32, 0x1234, 0xFFFF),
        ("a08877665544332211", 64, PATTERN, M64), ("67a078563412", 64, 0x1234_5678, 0xFFFF_FFFF),
    ],
)  # fmt: skip
def test_moffs_has_the_width_of_the_address_size(raw: str, bits: int, offset: int, mask: int) -> None:
    memory = make_cpu(bits, bytes.fromhex(raw)).code[CODE].operands[1]
    assert (memory.offset, memory.address_mask) == (offset, mask)


@pytest.mark.parametrize(
    ("raw", "bits", "register", "mask"),
    [
        ("a4", 64, "rdi", M64),
        ("67a4", 64, "rdi", 0xFFFF_FFFF),
        ("a4", 16, "rdi", 0xFFFF),
        ("67a4", 32, "rdi", 0xFFFF),
    ],
)
def test_string_pointers_follow_the_address_size(raw: str, bits: int, register: str, mask: int) -> None:
    cpu = make_cpu(bits, bytes.fromhex(raw))
    setattr(cpu, register, PATTERN)
    destination = cpu.code[CODE].operands[0]
    assert (destination.offset, destination.address_mask) == (PATTERN & mask, mask)


def test_only_the_source_of_a_string_move_can_be_overridden() -> None:
    cpu = make_cpu(32, bytes.fromhex("64a4"))
    destination, source = cpu.code[CODE].operands
    assert destination.segment is cpu.es and source.segment is cpu.fs


def test_default_segments_are_ss_for_stack_registers_and_ds_otherwise() -> None:
    expected = {"mov al, [ebp]": "ss", "mov al, [esp]": "ss", "mov al, [eax]": "ds", "mov al, [es:ebp]": "es",
                "mov al, [cs:eax]": "cs"}  # fmt: skip
    for text, name in expected.items():
        cpu = make_cpu(32, assemble(text, bits=32))
        assert cpu.code[CODE].operands[1].segment is getattr(cpu, name), text


def test_one_address_shape_is_one_function() -> None:
    assert effective_address("rax", "rcx", 8, 64) is effective_address("rax", "rcx", 8, 64)
    assert effective_address("rax", "", 1, 64) is not effective_address("rax", "", 1, 32)


# ---- values in memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("segment", ["ds", "ss", "fs", "gs", "es"])
def test_a_memory_operand_goes_through_its_segment(bits: int, segment: str) -> None:
    address = "bx" if bits == 16 else "rbx" if bits == 64 else "ebx"
    cpu = make_cpu(bits, assemble(f"mov eax, [{segment}:{address}]", bits=bits), rbx=0x20)
    getattr(cpu, segment).base = 0x6000
    operand = cpu.code[CODE].operands[1]
    based = bits != 64 or segment in ("fs", "gs")
    operand.value = 0xCAFE_BABE
    assert cpu.memory.read(0x6020 if based else 0x20, 4) == bytes.fromhex("bebafeca")
    assert operand.value == 0xCAFE_BABE


def test_a_segmented_operand_outside_its_limit_faults_by_its_segment() -> None:
    for segment, kind in (("ds", GeneralProtection), ("ss", StackFault)):
        cpu = make_cpu(32, assemble(f"mov eax, [{segment}:ebx]", bits=32), rbx=0xFFE)
        getattr(cpu, segment).load_raw(0x10, 0, 0xFFF, 0x93)
        operand = cpu.code[CODE].operands[1]
        with pytest.raises(kind):
            _ = operand.value
        with pytest.raises(kind):
            operand.value = 0


@pytest.mark.parametrize(("text", "kind"), [("[rbx]", "#GP"), ("[rsp + rbx]", "#SS"), ("[fs:rbx]", "#GP")])
def test_a_non_canonical_operand_faults_by_its_segment(text: str, kind: str) -> None:
    cpu = make_cpu(64, assemble(f"mov eax, {text}"), rbx=1 << 62)
    with pytest.raises((GeneralProtection, StackFault)) as caught:
        _ = cpu.code[CODE].operands[1].value
    assert caught.value.name == kind


@pytest.mark.parametrize("text", ["[rbx]", "[rsp]", "[gs:rbx]"])
def test_an_aligned_operand_faults_off_its_alignment_for_reads_and_writes(text: str) -> None:
    cpu = make_cpu(64, assemble(f"movaps xmm0, {text}"), rbx=0x6000, rsp=0x6000)
    operand = cpu.code[CODE].operands[1]
    operand.value = PATTERN
    assert operand.value == PATTERN
    cpu.rbx += 8
    cpu.rsp += 8
    with pytest.raises(GeneralProtection):
        _ = operand.value
    with pytest.raises(GeneralProtection):
        operand.value = 0
