"""AVX and AVX2: what VEX encodings do to the whole register, to memory and to the right to use them."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.decode import disassemble
from isa.exits import Unimplemented
from isa.faults import DeviceNotAvailable, Fault, GeneralProtection, InvalidOpcode
from isa.state import (
    CR0_EM,
    CR0_PE,
    CR0_TS,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
    YMM_HIGH_NAMES,
)
from tests.isa.machine import ALL_FEATURES, RAM, make_cpu, run_one

ENABLED = XCR0_X87 | XCR0_SSE | XCR0_AVX
ONES = (1 << 128) - 1
DATA = 0x4000


def avx_cpu(bits: int = 64, features: frozenset[str] = ALL_FEATURES, **registers: int) -> Cpu:
    """A CPU whose OS has enabled AVX."""
    registers = {"cr4": CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE, "xcr0": ENABLED, **registers}
    if "cr0" not in registers and bits != 16:
        registers["cr0"] = CR0_PE
    return make_cpu(bits, None, features, **registers)


def fault(cpu: Cpu, text: str, code: str) -> Fault:
    """The fault of one instruction at RIP."""
    raw = bytes.fromhex(code)
    assert disassemble(raw, cpu.code_bits, cpu.rip) == text
    cpu.memory.write(cpu.rip, raw)
    insn = cpu.code[cpu.rip]
    with pytest.raises(Fault) as raised:
        insn.function(cpu, *insn.operands)
    return raised.value


# ---- the upper half --------------------------------------------------------------------------------------


def test_a_128_bit_vex_form_zeroes_the_upper_half() -> None:
    cpu = avx_cpu(xmm1=1, xmm2=2, ymmh0=ONES, ymmh1=ONES, ymmh2=ONES)
    run_one(cpu, "vpaddd xmm0, xmm1, xmm2", bytes.fromhex("c5f1fec2"))
    assert (cpu.xmm0, cpu.ymmh0) == (3, 0)
    assert (cpu.xmm1, cpu.ymmh1, cpu.xmm2, cpu.ymmh2) == (1, ONES, 2, ONES)


def test_a_legacy_form_keeps_the_upper_half() -> None:
    cpu = avx_cpu(xmm0=1, xmm2=2, ymmh0=ONES)
    run_one(cpu, "paddd xmm0, xmm2", bytes.fromhex("660ffec2"))
    assert (cpu.xmm0, cpu.ymmh0) == (3, ONES)


def test_a_scalar_vex_form_takes_the_rest_from_its_first_source() -> None:
    cpu = avx_cpu(xmm0=ONES, ymmh0=ONES, xmm1=7 << 64 | 0x3FF0_0000_0000_0000, xmm2=0x3FF0_0000_0000_0000)
    run_one(cpu, "vaddsd xmm0, xmm1, xmm2", bytes.fromhex("c5f358c2"))
    assert (cpu.xmm0, cpu.ymmh0) == (7 << 64 | 0x4000_0000_0000_0000, 0)


def test_a_256_bit_form_works_on_both_halves() -> None:
    cpu = avx_cpu(xmm1=0xFF, ymmh1=0x10, xmm2=1, ymmh2=2)
    run_one(cpu, "vpaddb ymm0, ymm1, ymm2", bytes.fromhex("c5f5fcc2"))
    assert (cpu.xmm0, cpu.ymmh0) == (0, 0x12)


def test_a_shift_count_serves_both_halves() -> None:
    cpu = avx_cpu(xmm1=1, ymmh1=2, xmm2=4, ymmh2=ONES)
    run_one(cpu, "vpsllw ymm0, ymm1, xmm2", bytes.fromhex("c5f5f1c2"))
    assert (cpu.xmm0, cpu.ymmh0) == (16, 32)


def test_pmovzxbd_takes_eight_bytes_for_256_bits() -> None:
    cpu = avx_cpu(xmm1=0x0807_0605_0403_0201)
    run_one(cpu, "vpmovzxbd ymm0, xmm1", bytes.fromhex("c4e27d31c1"))
    assert cpu.xmm0 == 0x0000_0004_0000_0003_0000_0002_0000_0001
    assert cpu.ymmh0 == 0x0000_0008_0000_0007_0000_0006_0000_0005


def test_vpcmpestrm_zeroes_the_upper_half_of_ymm0() -> None:
    cpu = avx_cpu(ymmh0=ONES)
    run_one(cpu, "vpcmpistrm xmm1, xmm2, 0x0", bytes.fromhex("c4e37962ca00"))
    assert cpu.ymmh0 == 0


def test_vzeroupper_clears_all_sixteen_in_64_bit_mode_and_eight_outside() -> None:
    for bits, cleared in ((64, 16), (32, 8)):
        cpu = avx_cpu(bits, **dict.fromkeys(YMM_HIGH_NAMES, 5))
        run_one(cpu, "vzeroupper", bytes.fromhex("c5f877"))
        assert [getattr(cpu, name) for name in YMM_HIGH_NAMES] == [0] * cleared + [5] * (16 - cleared)


def test_vzeroall_clears_whole_registers() -> None:
    cpu = avx_cpu(xmm3=1, ymmh3=1)
    run_one(cpu, "vzeroall", bytes.fromhex("c5fc77"))
    assert (cpu.xmm3, cpu.ymmh3) == (0, 0)


# ---- the right to use them -------------------------------------------------------------------------------

ADD = ("vaddps xmm0, xmm0, xmm1", "c5f858c1")


@pytest.mark.parametrize("xcr0", [XCR0_X87, XCR0_X87 | XCR0_SSE])
def test_avx_without_its_state_in_xcr0_is_an_invalid_opcode(xcr0: int) -> None:
    assert isinstance(fault(avx_cpu(xcr0=xcr0), *ADD), InvalidOpcode)


def test_avx_without_osxsave_is_an_invalid_opcode_even_with_ts() -> None:
    assert isinstance(fault(avx_cpu(cr4=CR4_OSFXSR, cr0=CR0_PE | CR0_TS), *ADD), InvalidOpcode)


def test_avx_with_ts_is_device_not_available_before_memory_is_touched() -> None:
    cpu = avx_cpu(cr0=CR0_PE | CR0_TS, rsi=1 << 63)
    assert isinstance(fault(cpu, "vpaddb ymm0, ymm1, [rsi]", "c5f5fc06"), DeviceNotAvailable)


def test_avx_in_real_mode_is_an_invalid_opcode() -> None:
    assert isinstance(fault(avx_cpu(16), *ADD), InvalidOpcode)


def test_avx2_on_a_cpu_with_avx_only_is_an_invalid_opcode() -> None:
    cpu = avx_cpu(features=frozenset(ALL_FEATURES) - {"AVX2"})
    assert isinstance(fault(cpu, "vpaddb ymm0, ymm1, ymm2", "c5f5fcc2"), InvalidOpcode)


def test_bmi_needs_no_avx_state() -> None:
    cpu = make_cpu(64, rax=0b1100, rcx=0b1010)
    run_one(cpu, "andn rax, rax, rcx", bytes.fromhex("c4e2f8f2c1"))
    assert cpu.rax == 0b0010


def test_xsetbv_turns_avx_on_for_code_decoded_before() -> None:
    cpu = avx_cpu(xcr0=XCR0_X87, rax=ENABLED, rdx=0)
    assert isinstance(fault(cpu, *ADD), InvalidOpcode)
    start = cpu.rip
    cpu.rip = 0x2000
    run_one(cpu, "xsetbv", bytes.fromhex("0f01d1"))
    cpu.rip = start
    assert cpu.step() is None
    assert cpu.rip == start + 4


def test_evex_forms_are_not_served_by_definitions_of_vex_forms() -> None:
    cpu = avx_cpu()
    cpu.memory.write(cpu.rip, bytes.fromhex("62f17d48fec1"))  # vpaddd zmm0, zmm0, zmm1
    assert isinstance(cpu.step(), Unimplemented)


def test_a_vex_form_wants_osfxsr_too() -> None:
    assert isinstance(fault(avx_cpu(cr4=CR4_OSXSAVE), *ADD), InvalidOpcode)
    assert isinstance(fault(avx_cpu(cr0=CR0_PE | CR0_EM), *ADD), InvalidOpcode)


# ---- memory ----------------------------------------------------------------------------------------------


def test_vmovaps_wants_32_aligned_bytes_and_vmovups_does_not() -> None:
    cpu = avx_cpu(rsi=DATA + 16)
    assert isinstance(fault(cpu, "vmovaps ymm0, [rsi]", "c5fc2806"), GeneralProtection)
    cpu = avx_cpu(rsi=DATA + 1)
    cpu.memory.write(DATA + 1, bytes(range(32)))
    run_one(cpu, "vmovups ymm0, [rsi]", bytes.fromhex("c5fc1006"))
    assert cpu.xmm0 | cpu.ymmh0 << 128 == int.from_bytes(bytes(range(32)), "little")


def test_other_vex_operands_may_lie_anywhere() -> None:
    cpu = avx_cpu(rsi=DATA + 3, xmm1=1)
    cpu.memory.write(DATA + 3, b"\x05")
    run_one(cpu, "vpaddd xmm0, xmm1, [rsi]", bytes.fromhex("c5f1fe06"))
    assert cpu.xmm0 == 6


def test_a_masked_load_does_not_touch_what_is_masked_out() -> None:
    cpu = avx_cpu(rsi=RAM - 4, xmm1=0x8000_0000)  # only the first doubleword lies in RAM
    cpu.memory.write(RAM - 4, b"\x2a\0\0\0")
    run_one(cpu, "vmaskmovps ymm0, ymm1, [rsi]", bytes.fromhex("c4e2752c06"))
    assert (cpu.xmm0, cpu.ymmh0) == (0x2A, 0)


def test_a_masked_store_leaves_the_other_lanes() -> None:
    cpu = avx_cpu(rsi=DATA, xmm1=1 << 127, xmm2=7 << 64 | 9)
    cpu.memory.write(DATA, b"\xee" * 32)
    run_one(cpu, "vpmaskmovq [rsi], ymm1, ymm2", bytes.fromhex("c4e2f58e16"))
    assert cpu.memory.read(DATA, 32) == b"\xee" * 8 + (7).to_bytes(8, "little") + b"\xee" * 16


def test_a_gather_loads_where_the_mask_says_and_clears_the_mask() -> None:
    cpu = avx_cpu(rsi=DATA + 8, xmm0=ONES, xmm1=(1 << 31 | 1 << 127), xmm2=(3 << 96 | 0xFFFF_FFFE))
    cpu.memory.write(DATA, bytes(range(32)))
    run_one(cpu, "vpgatherdd xmm0, [rsi+xmm2*4], xmm1", bytes.fromhex("c4e271900496"))
    assert cpu.xmm0 == 0x1716_1514_FFFF_FFFF_FFFF_FFFF_0302_0100
    assert cpu.xmm1 == 0


def test_a_gather_that_faults_keeps_what_it_has_loaded_and_clears_that_much_of_the_mask() -> None:
    cpu = avx_cpu(rsi=DATA, xmm1=(1 << 63 | 1 << 127), xmm2=1 << 124)  # the second address is not canonical
    cpu.memory.write(DATA, b"\x2a")
    raised = fault(cpu, "vpgatherqq xmm0, [rsi+xmm2*4], xmm1", "c4e2f1910496")
    assert isinstance(raised, GeneralProtection)
    assert (cpu.xmm0, cpu.xmm1) == (0x2A, 1 << 127)


def test_a_gather_that_faults_has_not_zeroed_the_upper_halves_yet() -> None:
    cpu = avx_cpu(rsi=DATA, xmm0=ONES, ymmh0=ONES, xmm1=(1 << 63 | 1 << 127), ymmh1=ONES, xmm2=1 << 124)
    fault(cpu, "vpgatherqq xmm0, [rsi+xmm2*4], xmm1", "c4e2f1910496")
    assert (cpu.ymmh0, cpu.ymmh1) == (ONES, ONES)
    assert cpu.xmm0 >> 64 == ONES >> 64


def test_four_quadword_indices_load_four_doublewords_and_zero_the_rest() -> None:
    cpu = avx_cpu(rsi=DATA, xmm0=ONES, ymmh0=ONES, xmm1=ONES)
    cpu.memory.write(DATA, b"\x01")
    run_one(cpu, "vpgatherqd xmm0, [rsi+ymm2*2], xmm1", bytes.fromhex("c4e275910456"))
    assert (cpu.xmm0, cpu.ymmh0) == (1 | 1 << 32 | 1 << 64 | 1 << 96, 0)


def test_a_gather_with_two_equal_registers_is_an_invalid_opcode() -> None:
    cpu = avx_cpu(rsi=DATA)
    cpu.memory.write(cpu.rip, bytes.fromhex("c4e269900496"))  # mask and index are both xmm2
    with pytest.raises(InvalidOpcode):
        cpu.code[cpu.rip]


# ---- comparison predicates -------------------------------------------------------------------------------


def test_a_vex_comparison_knows_32_predicates_and_a_legacy_one_8() -> None:
    one = 0x3F80_0000
    cpu = avx_cpu(xmm1=one, xmm2=one)
    run_one(cpu, "vcmptrue_usps xmm0, xmm1, xmm2", bytes.fromhex("c5f0c2c21f"))
    assert cpu.xmm0 == ONES
    cpu = avx_cpu(xmm0=one, xmm2=one)
    run_one(cpu, "cmpps xmm0, xmm2, 0x1f", bytes.fromhex("0fc2c21f"))
    assert cpu.xmm0 == ONES  # 7: ordered


def test_the_upper_16_predicates_turn_the_invalid_flag_around() -> None:
    nan, one = 0x7FC0_0000, 0x3F80_0000
    cpu = avx_cpu(xmm1=nan, xmm2=one)
    run_one(cpu, "vcmpeqss xmm0, xmm1, xmm2", bytes.fromhex("c5f2c2c200"))
    assert cpu.mxcsr & 1 == 0
    cpu = avx_cpu(xmm1=nan, xmm2=one)
    run_one(cpu, "vcmpeq_osss xmm0, xmm1, xmm2", bytes.fromhex("c5f2c2c210"))
    assert cpu.mxcsr & 1 == 1


def test_one_exception_of_any_lane_stops_a_256_bit_operation_with_the_flags_of_all() -> None:
    one = 0x3FF0_0000_0000_0000
    cpu = avx_cpu(xmm1=one, ymmh1=one, xmm2=0x7FF0_0000_0000_0001, ymmh2=1, mxcsr=0x1F00)
    raised = fault(cpu, "vaddpd ymm0, ymm1, ymm2", "c5f558c2")
    assert raised.vector == 19
    assert cpu.mxcsr & 0x3F == 0b11
    assert cpu.xmm0 == 0
