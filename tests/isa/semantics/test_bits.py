"""Bit tests, scans, fields, byte order, CRC32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isa.faults import GeneralProtection
from tests.isa.machine import execute, fault_of, flags_of, make_cpu, run_one

DATA = 0x3000
M32 = 0xFFFF_FFFF
M64 = (1 << 64) - 1


def test_bt_of_a_register_takes_the_offset_modulo_its_width() -> None:
    cpu = execute("bt eax, ecx", "0f a3 c8", rax=0x10, rcx=36, zf=1)
    assert flags_of(cpu) == "CF ZF"


@pytest.mark.parametrize(
    ("code", "text", "after"),
    [
        ("0f a3 0b", "bt [rbx], ecx", 0x40),
        ("0f ab 0b", "bts [rbx], ecx", 0x40),
        ("0f b3 0b", "btr [rbx], ecx", 0x00),
        ("0f bb 0b", "btc [rbx], ecx", 0x00),
    ],
)
@pytest.mark.parametrize(("offset", "where"), [(38, 4), (-26 & M32, -4), (-(1 << 14) + 6 & M32, -2048)])
def test_bit_offset_in_a_register_reaches_beyond_the_memory_operand(
    code: str, text: str, after: int, offset: int, where: int
) -> None:
    cpu = make_cpu(rbx=DATA, rcx=offset)
    cpu.memory.write(DATA + where, b"\x40")
    run_one(cpu, text, bytes.fromhex(code))
    assert bool(cpu.cf)
    assert cpu.load(DATA + where, 1) == after
    assert cpu.load(DATA, 1) == 0


def test_bit_offset_wraps_at_the_address_size() -> None:
    cpu = make_cpu(16, rbx=2, rcx=-32 & 0xFFFF)
    cpu.memory.write(0xFFFE, b"\x01")
    run_one(cpu, "bts [bp+di], cx", bytes.fromhex("0f ab 0b"))
    assert cpu.load(0xFFFC, 4) == 0x0001_0001


def test_immediate_bit_offset_stays_inside_the_operand() -> None:
    cpu = make_cpu(rbx=DATA)
    run_one(cpu, "bts dword [rbx], 0x25", bytes.fromhex("0f ba 2b 25"))
    assert (cpu.load(DATA, 8), bool(cpu.cf)) == (0x20, False)


def test_bts_through_a_read_only_segment_faults_and_keeps_the_carry() -> None:
    cpu = make_cpu(32, rbx=DATA, rcx=1)
    cpu.ds.load_raw(0x10, 0, M32, 0xC091)
    fault = fault_of(cpu, "bts [ebx], ecx", bytes.fromhex("0f ab 0b"))
    assert isinstance(fault, GeneralProtection)


def test_scans_find_the_lowest_and_the_highest_one() -> None:
    assert execute("bsf rax, rbx", "48 0f bc c3", rbx=0x0010_0100).rax == 8
    assert execute("bsr rax, rbx", "48 0f bd c3", rbx=0x0010_0100).rax == 20


@pytest.mark.parametrize(("code", "text"), [("0f bc c3", "bsf eax, ebx"), ("0f bd c3", "bsr eax, ebx")])
def test_scan_of_zero_sets_zf_and_leaves_all_64_bits_of_the_destination(code: str, text: str) -> None:
    cpu = execute(text, code, rax=0xFFFF_FFFF_1234_5678, rbx=0)
    assert cpu.rax == 0xFFFF_FFFF_1234_5678
    assert bool(cpu.zf)


@pytest.mark.parametrize(
    ("code", "text", "value", "result", "carry", "zero"),
    [
        ("f3 0f bc c3", "tzcnt eax, ebx", 0, 32, True, False),
        ("f3 0f bc c3", "tzcnt eax, ebx", 1, 0, False, True),
        ("f3 0f bd c3", "lzcnt eax, ebx", 0, 32, True, False),
        ("f3 0f bd c3", "lzcnt eax, ebx", 1 << 31, 0, False, True),
    ],
)
def test_counts_of_zeros_tell_an_empty_source_by_carry(
    code: str, text: str, value: int, result: int, carry: bool, zero: bool
) -> None:
    cpu = execute(text, code, rbx=value)
    assert (cpu.rax, bool(cpu.cf), bool(cpu.zf)) == (result, carry, zero)


def test_f3_bsf_is_bsf_on_a_cpu_without_bmi1() -> None:
    cpu = make_cpu(features=frozenset({"INTEL386", "X64"}), rax=5, rbx=0)
    run_one(cpu, "tzcnt eax, ebx", bytes.fromhex("f3 0f bc c3"))
    assert (cpu.rax, bool(cpu.zf)) == (5, True)


def test_popcnt_clears_every_flag_but_zf() -> None:
    cpu = execute("popcnt eax, ebx", "f3 0f b8 c3", rbx=0xF0F0, cf=1, of=1, sf=1, af=1, pf=1)
    assert (cpu.rax, flags_of(cpu)) == (8, "")


@pytest.mark.parametrize(
    ("code", "text", "value", "result", "carry"),
    [
        ("c4 e2 78 f3 db", "blsi eax, ebx", 0x68, 0x08, True),
        ("c4 e2 78 f3 cb", "blsr eax, ebx", 0x68, 0x60, False),
        ("c4 e2 78 f3 d3", "blsmsk eax, ebx", 0x68, 0x0F, False),
        ("c4 e2 78 f3 d3", "blsmsk eax, ebx", 0, M32, True),
    ],
)
def test_lowest_one_operations(code: str, text: str, value: int, result: int, carry: bool) -> None:
    cpu = execute(text, code, rbx=value)
    assert (cpu.rax, bool(cpu.cf)) == (result, carry)


def test_bextr_extracts_a_field() -> None:
    cpu = execute("bextr eax, ebx, ecx", "c4 e2 70 f7 c3", rbx=0x1234_5678, rcx=0x0C08)
    assert cpu.rax == 0x456


def test_bzhi_with_an_index_beyond_the_operand_copies_it_and_sets_carry() -> None:
    cpu = execute("bzhi eax, ebx, ecx", "c4 e2 70 f5 c3", rbx=0x1234_5678, rcx=0xFF20)
    assert (cpu.rax, bool(cpu.cf)) == (0x1234_5678, True)


@given(value=st.integers(0, M64), mask=st.integers(0, M64))
def test_pext_undoes_pdep(value: int, mask: int) -> None:
    cpu = execute("pdep rax, rbx, rcx", "c4 e2 e3 f5 c1", rbx=value, rcx=mask)
    assert cpu.rax & ~mask == 0
    cpu.rdx = cpu.rax
    run_one(cpu, "pext rax, rdx, rcx", bytes.fromhex("c4 e2 ea f5 c1"))
    assert cpu.rax == value & (1 << mask.bit_count()) - 1


def test_bswap_reverses_four_or_eight_bytes() -> None:
    assert execute("bswap eax", "0f c8", rax=0xFFFF_FFFF_1122_3344).rax == 0x4433_2211
    assert execute("bswap rax", "48 0f c8", rax=0x1122_3344_5566_7788).rax == 0x8877_6655_4433_2211


def test_bswap_of_a_word_register_clears_it() -> None:
    assert execute("bswap ax", "66 0f c8", rax=0x1122_3344).rax == 0x1122_0000


def test_movbe_stores_big_endian() -> None:
    cpu = make_cpu(rbx=DATA, rax=0x1122_3344)
    run_one(cpu, "movbe [rbx], eax", bytes.fromhex("0f 38 f1 03"))
    assert cpu.memory.read(DATA, 4) == b"\x11\x22\x33\x44"


def test_crc32_of_the_standard_check_string() -> None:
    # "123456789" has the CRC-32C 0xE3069283 (RFC 3720, appendix B.4 uses the same polynomial and reflection)
    cpu = make_cpu(rax=M32, rbx=DATA)
    cpu.memory.write(DATA, b"123456789")
    run_one(cpu, "crc32 rax, qword [rbx]", bytes.fromhex("f2 48 0f 38 f1 03"))
    run_one(cpu, "crc32 eax, byte [rbx+0x8]", bytes.fromhex("f2 0f 38 f0 43 08"))
    assert cpu.rax ^ M32 == 0xE306_9283
