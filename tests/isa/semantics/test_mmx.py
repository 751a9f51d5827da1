"""MMX: registers inside the x87 registers, what the instructions do to the x87 state, MM-only forms."""

from __future__ import annotations

import struct

import pytest

from isa.cpu import Cpu
from isa.faults import DeviceNotAvailable, FpuError, InvalidOpcode, SimdException
from isa.state import CR0_EM, CR0_NE, CR0_PE, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT
from tests.isa.machine import ALL_FEATURES, fault_of, make_cpu, run_one

DATA = 0x4000
SSE = CR4_OSFXSR | CR4_OSXMMEXCPT
ONES = 0xFFFF << 64


def machine(mm0: int = 0, mm1: int = 0, **registers: int) -> Cpu:
    """A CPU with all x87 registers empty, TOP 5, and MM0 and MM1 set."""
    cpu = make_cpu(64, None, ALL_FEATURES, cr4=SSE, rsi=DATA, **registers)
    cpu.fpu.control = 0x37F
    cpu.fpu.tags = [1] * 8
    cpu.fpu.top = 5
    cpu.fpu.regs[0], cpu.fpu.regs[1] = 0x1234 << 64 | mm0, 0x5678 << 64 | mm1
    return cpu


def mm0_after(text: str, code: str, mm0: int, mm1: int = 0, **registers: int) -> int:
    """MM0 after one instruction."""
    return run_one(machine(mm0, mm1, **registers), text, bytes.fromhex(code)).fpu.regs[0] & (1 << 64) - 1


# ---- the x87 state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [("paddb mm0, mm1", "0ffcc1"), ("movd mm0, eax", "0f6ec0"), ("movd eax, mm0", "0f7ec0"),
     ("movq [rsi], mm0", "0f7f06"), ("pmovmskb eax, mm1", "0fd7c1"), ("pextrw eax, mm1, 0x3", "0fc5c103"),
     ("movq2dq xmm0, mm1", "f30fd6c1"), ("movdq2q mm0, xmm1", "f20fd6c1"), ("maskmovq mm0, mm1", "0ff7c1"),
     ("cvtpi2ps xmm0, mm1", "0f2ac1"), ("cvtps2pi mm0, xmm1", "0f2dc1"), ("movntq [rsi], mm0", "0fe706")],
)  # fmt: skip
def test_every_mmx_instruction_makes_all_registers_valid_and_top_0(text: str, code: str) -> None:
    cpu = run_one(machine(rdi=DATA), text, bytes.fromhex(code))
    assert cpu.fpu.tags == [0] * 8
    assert cpu.fpu.top == 0


@pytest.mark.parametrize(
    ("text", "code"), [("cvtpi2pd xmm0, [rsi]", "660f2a06"), ("cvtpi2ps xmm0, [rsi]", "0f2a06")]
)
def test_a_conversion_from_memory_leaves_the_x87_state_alone(text: str, code: str) -> None:
    cpu = run_one(machine(), text, bytes.fromhex(code))
    assert cpu.fpu.tags == [1] * 8
    assert cpu.fpu.top == 5


def test_a_write_sets_the_exponent_to_ones_and_a_read_changes_nothing() -> None:
    cpu = run_one(machine(1, 2), "paddb mm0, mm1", bytes.fromhex("0ffcc1"))
    assert cpu.fpu.regs[0] == ONES | 3
    assert cpu.fpu.regs[1] == 0x5678 << 64 | 2


def test_emms_empties_every_register() -> None:
    cpu = machine()
    cpu.fpu.tags = [0] * 8
    run_one(cpu, "emms", bytes.fromhex("0f77"))
    assert cpu.fpu.tags == [1] * 8
    assert cpu.fpu.top == 0


@pytest.mark.parametrize(("text", "code"), [("paddb mm0, mm1", "0ffcc1"), ("movd mm0, eax", "0f6ec0")])
def test_mmx_is_forbidden_by_em_and_ts_and_reports_pending_x87_exceptions(text: str, code: str) -> None:
    raw = bytes.fromhex(code)
    assert isinstance(fault_of(machine(cr0=CR0_PE | CR0_EM), text, raw), InvalidOpcode)
    assert isinstance(fault_of(machine(cr0=CR0_PE | CR0_TS), text, raw), DeviceNotAvailable)
    cpu = machine(cr0=CR0_PE | CR0_NE)
    cpu.fpu.control, cpu.fpu.status = 0x37E, 1
    assert isinstance(fault_of(cpu, text, raw), FpuError)


def test_mmx_needs_no_osfxsr() -> None:
    cpu = machine(1, 2)
    cpu.cr4 = 0
    assert run_one(cpu, "paddb mm0, mm1", bytes.fromhex("0ffcc1")).fpu.regs[0] == ONES | 3


def test_a_simd_exception_of_a_conversion_leaves_mm_and_tags() -> None:
    cpu = machine(7, mxcsr=0, xmm1=0x7FC0_0000)
    assert isinstance(fault_of(cpu, "cvtps2pi mm0, xmm1", bytes.fromhex("0f2dc1")), SimdException)
    assert cpu.fpu.regs[0] == 0x1234 << 64 | 7
    assert cpu.fpu.tags == [1] * 8


# ---- results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "a", "b", "expected"),
    [("pcmpeqb", "74", 0x0102030405060708, 0x0100030005000700, 0xFF00FF00FF00FF00),
     ("psubb", "f8", 0, 0x0101010101010101, 0xFFFFFFFFFFFFFFFF),
     ("paddusb", "dc", 0xF0F0, 0x2020, 0xFFFF), ("psubsw", "e9", 0x8000_0001, 0x0001_0001, 0x8000_0000),
     ("pavgb", "e0", 0x0304, 0x0000, 0x0202), ("pmullw", "d5", 0x0003_FFFF, 0x0002_0005, 0x0006_FFFB),
     ("packuswb", "67", 0x0080_0100_FFFF_007F, 0x0001_0002_0003_0004, 0x01020304_80FF007F),
     ("packssdw", "6b", 0x00010000_FFFFFFFE, 0x80000000_00000007, 0x8000_0007_7FFF_FFFE),
     ("punpcklbw", "60", 0x0706050403020100, 0x1716151413121110, 0x1303120211011000),
     ("punpckhdq", "6a", 0x0706050403020100, 0x1716151413121110, 0x1716151407060504),
     ("pmuludq", "f4", 0xFFFFFFFF_00000002, 0xFFFFFFFF_80000000, 0x1_0000_0000),
     ("psadbw", "f6", 0x0102, 0x0500, 0x06),
     ("pshufb", "3800", 0x0706050403020100, 0x8008070F00010203, 0x0000070700010203),
     ("psignw", "3809", 0x0001_0002_0003_0004, 0xFFFF_0000_0001_8000, 0xFFFF_0000_0003_FFFC),
     ("phaddd", "3802", 0x00000002_00000001, 0x00000004_00000003, 0x00000007_00000003)],
)  # fmt: skip
def test_shared_operations_work_on_64_bits(text: str, code: str, a: int, b: int, expected: int) -> None:
    assert mm0_after(f"{text} mm0, mm1", f"0f{code}c1", a, b) == expected


def test_shifts_and_palignr_stay_within_64_bits() -> None:
    assert mm0_after("psllq mm0, 0x8", "0f73f008", 0xFF << 56 | 1) == 0x100
    assert mm0_after("psraw mm0, 0x4", "0f71e004", 0x8000_0010) == 0xF800_0001
    assert (
        mm0_after("palignr mm0, mm1, 0x3", "0f3a0fc103", 0x0706050403020100, 0x1716151413121110)
        == 0x0201001716151413
    )


def test_moves_between_registers_and_memory() -> None:
    assert mm0_after("movd mm0, eax", "0f6ec0", 5, rax=0xFFFF_FFFF_8000_0001) == 0x8000_0001
    assert mm0_after("movq mm0, rax", "480f6ec0", 5, rax=0xFFFF_FFFF_8000_0001) == 0xFFFF_FFFF_8000_0001
    assert mm0_after("movdq2q mm0, xmm1", "f20fd6c1", 5, xmm1=3 << 64 | 9) == 9
    cpu = run_one(machine(0, 77, xmm0=1 << 100), "movq2dq xmm0, mm1", bytes.fromhex("f30fd6c1"))
    assert cpu.xmm0 == 77
    cpu = run_one(machine(0x1122_3344_5566_7788), "movq [rsi], mm0", bytes.fromhex("0f7f06"))
    assert bytes(cpu.memory.read(DATA, 8)) == bytes.fromhex("8877665544332211")


def test_pshufw_pinsrw_and_pextrw_take_word_indices() -> None:
    assert mm0_after("pshufw mm0, mm1, 0x1b", "0f70c11b", 0, 0x0003_0002_0001_0000) == 0x0000_0001_0002_0003
    assert mm0_after("pinsrw mm0, eax, 0x6", "0fc4c006", 0, rax=0x5_1234) == 0x1234 << 32
    cpu = run_one(machine(0, 0xABCD << 48), "pextrw eax, mm1, 0x7", bytes.fromhex("0fc5c107"))
    assert cpu.rax == 0xABCD


def test_maskmovq_stores_the_selected_bytes() -> None:
    cpu = machine(0x8877665544332211, 0x80_00_00_80_80_00_00_00, rdi=DATA + 5)
    run_one(cpu, "maskmovq mm0, mm1", bytes.fromhex("0ff7c1"))
    assert bytes(cpu.memory.read(DATA + 5, 9)) == bytes.fromhex("000000445500008800")


def test_conversions_between_mm_integers_and_xmm_floats() -> None:
    integers = int.from_bytes(struct.pack("<2i", -3, 4), "little")
    upper = 0xABCD << 64
    cpu = run_one(machine(0, integers, xmm0=upper), "cvtpi2ps xmm0, mm1", bytes.fromhex("0f2ac1"))
    assert cpu.xmm0 == upper | int.from_bytes(struct.pack("<2f", -3, 4), "little")
    cpu = run_one(machine(0, integers), "cvtpi2pd xmm0, mm1", bytes.fromhex("660f2ac1"))
    assert cpu.xmm0 == int.from_bytes(struct.pack("<2d", -3, 4), "little")
    floats = int.from_bytes(struct.pack("<2d", -3.5, 4.25), "little")
    assert mm0_after("cvtpd2pi mm0, xmm1", "660f2dc1", 0, xmm1=floats) == 4 << 32 | 0xFFFF_FFFC
    assert mm0_after("cvttpd2pi mm0, xmm1", "660f2cc1", 0, xmm1=floats) == 4 << 32 | 0xFFFF_FFFD
