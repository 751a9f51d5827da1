"""SSE moves: what stays of the destination, alignment, and the control registers that forbid SSE."""

from __future__ import annotations

import pytest

from isa.faults import DeviceNotAvailable, GeneralProtection, InvalidOpcode, StackFault
from isa.state import CR0_EM, CR0_PE, CR0_TS, CR4_OSFXSR
from tests.isa.machine import execute, fault_of, make_cpu, run_one

DATA = 0x4000
A = 0xA0A1A2A3_A4A5A6A7_A8A9AAAB_ACADAEAF
B = 0xB0B1B2B3_B4B5B6B7_B8B9BABB_BCBDBEBF


def stored(text: str, code: str, before: int = B) -> int:
    """16 bytes at [RSI] after an instruction with XMM0 = A."""
    cpu = make_cpu(cr4=CR4_OSFXSR, xmm0=A, rsi=DATA, rax=0x1111_2222_3333_4444)
    cpu.memory.write(DATA, before.to_bytes(16, "little"))
    run_one(cpu, text, bytes.fromhex(code))
    return int.from_bytes(cpu.memory.read(DATA, 16), "little")


def loaded(text: str, code: str) -> int:
    """XMM0, A before, after an instruction with B at [RSI] and in XMM1."""
    cpu = make_cpu(cr4=CR4_OSFXSR, xmm0=A, xmm1=B, rsi=DATA)
    cpu.memory.write(DATA, B.to_bytes(16, "little"))
    return run_one(cpu, text, bytes.fromhex(code)).xmm0


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [("movaps xmm0, [rsi]", "0f2806", B), ("movups xmm0, [rsi]", "0f1006", B),
     ("movss xmm0, [rsi]", "f30f1006", 0xBCBDBEBF),
     ("movss xmm0, xmm1", "f30f10c1", A & ~0xFFFF_FFFF | 0xBCBDBEBF),
     ("movsd xmm0, [rsi]", "f20f1006", B & (1 << 64) - 1),
     ("movsd xmm0, xmm1", "f20f10c1", A >> 64 << 64 | B & (1 << 64) - 1),
     ("movq xmm0, xmm1", "f30f7ec1", B & (1 << 64) - 1), ("movq xmm0, [rsi]", "f30f7e06", B & (1 << 64) - 1),
     ("movhps xmm0, [rsi]", "0f1606", B << 64 & (1 << 128) - 1 | A & (1 << 64) - 1),
     ("movlps xmm0, [rsi]", "0f1206", A >> 64 << 64 | B & (1 << 64) - 1),
     ("movlhps xmm0, xmm1", "0f16c1", B << 64 & (1 << 128) - 1 | A & (1 << 64) - 1),
     ("movhlps xmm0, xmm1", "0f12c1", A >> 64 << 64 | B >> 64),
     ("movddup xmm0, [rsi]", "f20f1206", (B & (1 << 64) - 1) * (1 << 64 | 1)),
     ("movsldup xmm0, xmm1", "f30f12c1", 0xB4B5B6B7_B4B5B6B7_BCBDBEBF_BCBDBEBF),
     ("movshdup xmm0, xmm1", "f30f16c1", 0xB0B1B2B3_B0B1B2B3_B8B9BABB_B8B9BABB)],
)  # fmt: skip
def test_loads_and_register_moves(text: str, code: str, expected: int) -> None:
    assert loaded(text, code) == expected


def test_insertps_moves_one_lane_and_clears_others() -> None:
    # Source lane 2 to lane 1, then lane 3 := 0
    assert loaded("insertps xmm0, xmm1, 0x98", "660f3a21c198") == 0xA4A5A6A7_B4B5B6B7_ACADAEAF
    # A memory source has one lane only
    assert loaded("insertps xmm0, [rsi], 0xc0", "660f3a2106c0") == A & ~0xFFFF_FFFF | 0xBCBDBEBF


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [("movaps [rsi], xmm0", "0f2906", A), ("movntps [rsi], xmm0", "0f2b06", A),
     ("movss [rsi], xmm0", "f30f1106", B & ~0xFFFF_FFFF | 0xACADAEAF),
     ("movsd [rsi], xmm0", "f20f1106", B >> 64 << 64 | A & (1 << 64) - 1),
     ("movq [rsi], xmm0", "660fd606", B >> 64 << 64 | A & (1 << 64) - 1),
     ("movhps [rsi], xmm0", "0f1706", B >> 64 << 64 | A >> 64),
     ("movnti [rsi], eax", "0fc306", B & ~0xFFFF_FFFF | 0x3333_4444),
     ("pextrw [rsi], xmm0, 0x7", "660f3a150607", B & ~0xFFFF | 0xA0A1)],
)  # fmt: skip
def test_stores_touch_only_their_bytes(text: str, code: str, expected: int) -> None:
    assert stored(text, code) == expected


def test_movd_and_movq_from_general_registers_clear_the_rest() -> None:
    registers = {"cr4": CR4_OSFXSR, "xmm0": A, "rax": 0x1111_2222_3333_4444}
    assert execute("movd xmm0, eax", "660f6ec0", **registers).xmm0 == 0x3333_4444
    assert execute("movq xmm0, rax", "66480f6ec0", **registers).xmm0 == 0x1111_2222_3333_4444
    assert execute("movd eax, xmm0", "660f7ec0", **registers).rax == 0xACADAEAF


def test_sign_masks_collect_the_top_bits_of_lanes() -> None:
    value = 0x80 << 120 | 0x80 << 56 | 0xFF | 0x80 << 24
    assert (
        execute("pmovmskb eax, xmm1", "660fd7c1", cr4=CR4_OSFXSR, rax=-1 & 2**64 - 1, xmm1=value).rax
        == 0x8089
    )
    assert execute("movmskps eax, xmm1", "0f50c1", cr4=CR4_OSFXSR, xmm1=value).rax == 0b1011
    assert execute("movmskpd eax, xmm1", "660f50c1", cr4=CR4_OSFXSR, xmm1=value).rax == 0b11


def test_pinsrw_and_pextrw_take_the_index_modulo_8() -> None:
    assert execute("pinsrw xmm0, eax, 0xf", "660fc4c00f", cr4=CR4_OSFXSR, xmm0=A, rax=0x9_1234).xmm0 == (
        A & (1 << 112) - 1 | 0x1234 << 112
    )
    assert execute("pextrw eax, xmm1, 0xa", "660fc5c10a", cr4=CR4_OSFXSR, xmm1=B).rax == 0xBABB


def test_maskmovdqu_stores_the_selected_bytes_anywhere() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR, xmm0=A, xmm1=0x80 << 120 | 0x8080 << 8, rdi=DATA + 3)
    run_one(cpu, "maskmovdqu xmm0, xmm1", bytes.fromhex("660ff7c1"))
    expected = bytearray(32)
    expected[3 + 15], expected[3 + 1], expected[3 + 2] = 0xA0, 0xAE, 0xAD
    assert bytes(cpu.memory.read(DATA, 32)) == bytes(expected)


# ---- alignment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [("movaps xmm0, [rsi]", "0f2806"), ("movaps [rsi], xmm0", "0f2906"), ("paddb xmm0, [rsi]", "660ffc06"),
     ("movaps xmm0, [fs:rsi]", "640f2806"), ("pshufb xmm0, [rsi]", "660f380006"),
     ("movntdqa xmm0, [rsi]", "660f382a06"), ("aesenc xmm0, [rsi]", "660f38dc06")],
)  # fmt: skip
def test_a_128_bit_operand_has_to_be_aligned(text: str, code: str) -> None:
    fault = fault_of(make_cpu(cr4=CR4_OSFXSR, rsi=DATA + 8), text, bytes.fromhex(code))
    assert isinstance(fault, GeneralProtection)
    assert fault.error_code == 0
    assert "0x4008 is not aligned to 16 bytes" in fault.why


@pytest.mark.parametrize(
    ("text", "code"),
    [("movups xmm0, [rsi]", "0f1006"), ("movdqu xmm0, [rsi]", "f30f6f06"), ("lddqu xmm0, [rsi]", "f20ff006"),
     ("addsd xmm0, [rsi]", "f20f5806"), ("movhps xmm0, [rsi]", "0f1606"),
     ("pcmpistri xmm0, [rsi], 0x0", "660f3a630600"), ("pmovzxbw xmm0, [rsi]", "660f383006")],
)  # fmt: skip
def test_some_operands_may_lie_anywhere(text: str, code: str) -> None:
    execute(text, code, cr4=CR4_OSFXSR, rsi=DATA + 3)


def test_an_unaligned_operand_may_cross_pages_that_the_tlb_knows() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR, xmm0=A, rsi=0x5000)
    for address in (0x4FE0, 0x5000, 0x4FF9):
        cpu.rip, cpu.rsi = 0x1000, address
        run_one(cpu, "movups [rsi], xmm0", bytes.fromhex("0f1106"))
    assert int.from_bytes(cpu.memory.read(0x4FF9, 16), "little") == A
    cpu.rip, cpu.xmm0 = 0x1000, 0
    assert run_one(cpu, "movdqu xmm0, [rsi]", bytes.fromhex("f30f6f06")).xmm0 == A


def test_a_store_into_code_is_seen_by_the_next_instruction() -> None:
    # movaps [rsi], xmm0 over the two instructions that follow it
    cpu = make_cpu(64, bytes.fromhex("0f2906").ljust(16, b"\x90") + b"\x90" * 16, cr4=CR4_OSFXSR, rsi=0x1010)
    cpu.xmm0 = int.from_bytes(bytes.fromhex("b807000000").ljust(16, b"\x90"), "little")  # mov eax, 7
    cpu.rip = 0x1010
    cpu.step()
    cpu.rip = 0x1000
    for _ in range(15):
        cpu.step()
    assert (cpu.rax, cpu.rip) == (7, 0x1015)


def test_a_misaligned_stack_operand_is_gp_and_a_non_canonical_one_ss() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR, rsp=0x8008)
    raw = bytes.fromhex("0f280424")
    assert isinstance(fault_of(cpu, "movaps xmm0, [rsp]", raw), GeneralProtection)
    cpu.rsp = 0x8000_0000_0000
    assert isinstance(fault_of(cpu, "movaps xmm0, [rsp]", raw), StackFault)


def test_alignment_is_that_of_the_linear_address() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR, rsi=DATA + 8)
    cpu.fs.base = 8
    cpu.memory.write(DATA + 16, B.to_bytes(16, "little"))
    assert run_one(cpu, "movaps xmm0, [fs:rsi]", bytes.fromhex("640f2806")).xmm0 == B


def test_alignment_is_checked_in_32_bit_code_after_the_segment_limit() -> None:
    cpu = make_cpu(32, cr4=CR4_OSFXSR, rsi=0x108)
    assert "not aligned" in fault_of(cpu, "movaps xmm0, [esi]", bytes.fromhex("0f2806")).why
    cpu.ds.limit = 0x100
    cpu.ds.update_bounds()
    assert "outside ds limit" in fault_of(cpu, "movaps xmm0, [esi]", bytes.fromhex("0f2806")).why


# ---- control checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [("movaps xmm0, xmm1", "0f28c1"), ("paddb xmm0, xmm1", "660ffcc1"), ("addsd xmm0, xmm1", "f20f58c1"),
     ("pcmpistri xmm0, xmm1, 0x0", "660f3a63c100"), ("aesenc xmm0, xmm1", "660f38dcc1")],
)  # fmt: skip
def test_sse_needs_osfxsr_no_em_and_no_ts(text: str, code: str) -> None:
    raw = bytes.fromhex(code)
    assert isinstance(fault_of(make_cpu(cr4=0), text, raw), InvalidOpcode)
    assert isinstance(fault_of(make_cpu(cr4=CR4_OSFXSR, cr0=CR0_PE | CR0_EM), text, raw), InvalidOpcode)
    assert isinstance(fault_of(make_cpu(cr4=CR4_OSFXSR, cr0=CR0_PE | CR0_TS), text, raw), DeviceNotAvailable)


def test_task_switched_comes_before_a_misaligned_operand() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR, cr0=CR0_PE | CR0_TS, rsi=1)
    assert isinstance(fault_of(cpu, "movaps xmm0, [rsi]", bytes.fromhex("0f2806")), DeviceNotAvailable)
