"""MOV and its relatives, XCHG, LEA, XLAT, no-operations and UD."""

from __future__ import annotations

import pytest

from isa.exits import MmioRead
from isa.faults import GeneralProtection, InvalidOpcode, StackFault
from tests.isa.machine import execute, fault_of, make_cpu, run_one

DATA = 0x3000
M64 = (1 << 64) - 1


def test_mov_of_a_32_bit_immediate_clears_the_upper_half() -> None:
    assert execute("mov eax, 0x1", "b8 01 00 00 00", rax=M64).rax == 1


def test_mov_to_a_byte_or_word_register_keeps_the_rest() -> None:
    assert execute("mov al, 0x1", "b0 01", rax=M64).rax == M64 - 0xFE
    assert execute("mov ax, 0x1", "66 b8 01 00", rax=M64).rax == M64 - 0xFFFE


def test_mov_of_a_64_bit_immediate() -> None:
    cpu = execute("mov rax, 0x1122334455667788", "48 b8 88 77 66 55 44 33 22 11")
    assert cpu.rax == 0x1122_3344_5566_7788


def test_mov_of_a_sign_extended_immediate_to_memory() -> None:
    cpu = make_cpu(rbx=DATA)
    run_one(cpu, "mov qword [rbx], 0xffffffffffffffff", bytes.fromhex("48 c7 03 ff ff ff ff"))
    assert cpu.load(DATA, 8) == M64


def test_mov_with_an_absolute_64_bit_offset() -> None:
    cpu = make_cpu()
    cpu.memory.write(DATA, b"\x5a")
    run_one(cpu, "mov al, [qword 0x3000]", bytes.fromhex("a0 00 30 00 00 00 00 00 00"))
    assert cpu.rax == 0x5A


def test_mov_relative_to_rip_counts_from_the_next_instruction() -> None:
    cpu = make_cpu()
    cpu.memory.write(0x1107, b"\x99")
    run_one(cpu, "mov eax, [rel 0x1106]", bytes.fromhex("8b 05 00 01 00 00"))
    assert cpu.rax == 0x9900


def test_mov_from_a_device_page_leaves_before_and_finishes_after_the_answer() -> None:
    cpu = make_cpu(rbx=0x20_0000, code=bytes.fromhex("8b 03"))
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    assert cpu.step() == MmioRead(0x20_0000, 4, 0, 4)
    assert (cpu.rip, cpu.rax) == (0x1000, 0)
    cpu.complete(0x1234_5678)
    assert cpu.step() is None
    assert (cpu.rip, cpu.rax) == (0x1002, 0x1234_5678)


@pytest.mark.parametrize(
    ("code", "text", "value", "result"),
    [
        ("0f b6 c3", "movzx eax, bl", 0x80, 0x80),
        ("0f b7 c3", "movzx eax, bx", 0x8000, 0x8000),
        ("0f be c3", "movsx eax, bl", 0x80, 0xFFFF_FF80),
        ("66 0f be c3", "movsx ax, bl", 0x80, 0xFFFF_FFFF_FFFF_FF80),
        ("48 0f bf c3", "movsx rax, bx", 0x8000, 0xFFFF_FFFF_FFFF_8000),
        ("48 63 c3", "movsxd rax, ebx", 0x8000_0000, 0xFFFF_FFFF_8000_0000),
    ],
)
def test_extending_moves(code: str, text: str, value: int, result: int) -> None:
    assert execute(text, code, rax=M64, rbx=value).rax == result


def test_xchg_of_parts_of_one_register() -> None:
    assert execute("xchg ah, al", "86 e0", rax=0x1234).rax == 0x3412


def test_xchg_with_memory() -> None:
    cpu = make_cpu(rbx=DATA, rax=0x1111)
    cpu.memory.write(DATA, b"\x22\x22")
    run_one(cpu, "xchg ax, [rbx]", bytes.fromhex("66 87 03"))
    assert (cpu.load(DATA, 2), cpu.rax) == (0x1111, 0x2222)


def test_xchg_whose_store_faults_keeps_the_register() -> None:
    cpu = make_cpu(32, rbx=DATA, rax=5)
    cpu.ds.load_raw(0x10, 0, 0xFFFF_FFFF, 0xC091)
    fault = fault_of(cpu, "xchg eax, [ebx]", bytes.fromhex("87 03"))
    assert isinstance(fault, GeneralProtection)


def test_lea_computes_without_an_access_and_wraps_at_the_address_size() -> None:
    cpu = execute("lea rax, [rbx+rcx*8-0x1]", "48 8d 44 cb ff", rbx=M64, rcx=1)
    assert cpu.rax == 6
    cpu = execute("lea rax, [ebx+0x2]", "67 48 8d 43 02", rbx=0xFFFF_FFFF)
    assert cpu.rax == 1
    cpu = execute("lea ax, [rbx]", "66 8d 03", rax=M64, rbx=0x12345)
    assert cpu.rax == M64 - 0xFFFF + 0x2345


def test_lea_with_a_16_bit_address_zero_extends() -> None:
    cpu = execute("lea eax, [bx+si]", "67 8d 00", 32, rbx=0xFFFF, rsi=2)
    assert cpu.rax == 1


def test_xlat_replaces_al_by_the_table_entry() -> None:
    cpu = make_cpu(rbx=DATA, rax=0x1105)
    cpu.memory.write(DATA + 5, b"\x77")
    run_one(cpu, "xlatb", bytes.fromhex("d7"))
    assert cpu.rax == 0x1177


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("90", "nop"),
        ("66 0f 1f 44 00 00", "nop word [rax+rax]"),
        ("f3 90", "pause"),
        ("f3 0f 1e fa", "endbr64"),
        ("0f 18 08", "prefetcht0 [rax]"),
        ("0f 0d 08", "prefetchw [rax]"),
        ("0f ae e8", "lfence"),
        ("0f ae f0", "mfence"),
        ("0f ae f8", "sfence"),
    ],
)
def test_hints_and_fences_do_nothing_not_even_access_memory(code: str, text: str) -> None:
    cpu = execute(text, code, rax=1 << 62, cf=1)
    assert (cpu.rip, cpu.rax, bool(cpu.cf)) == (0x1000 + len(bytes.fromhex(code)), 1 << 62, True)


def test_clflush_checks_its_address_like_a_load() -> None:
    fault = fault_of(make_cpu(rax=1 << 62), "clflush [rax]", bytes.fromhex("0f ae 38"))
    assert isinstance(fault, GeneralProtection)
    fault = fault_of(make_cpu(rbp=1 << 62), "clflush [rbp]", bytes.fromhex("0f ae 7d 00"))
    assert isinstance(fault, StackFault)


def test_clflush_of_a_device_page_is_no_access() -> None:
    cpu = make_cpu(rax=0x20_0000)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    run_one(cpu, "clflush [rax]", bytes.fromhex("0f ae 38"))
    assert cpu.rip == 0x1003


@pytest.mark.parametrize(
    ("code", "text"), [("0f 0b", "ud2"), ("0f b9 c0", "ud1 eax, eax"), ("0f ff c0", "ud0 eax, eax")]
)
def test_ud_raises_invalid_opcode(code: str, text: str) -> None:
    assert isinstance(fault_of(make_cpu(), text, bytes.fromhex(code)), InvalidOpcode)
