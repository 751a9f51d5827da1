"""XSAVE, XSAVEC, XSAVEOPT and XRSTOR: what goes where, what is refused, and the host's own answer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from isa.cpu import Cpu
from isa.cpuid import AREA_WITH_AVX, AREA_WITHOUT_AVX, CpuId, UnknownFeature, feature_set
from isa.decode import code_names, decode, form_features, opcode_info
from isa.faults import DeviceNotAvailable, GeneralProtection, InvalidOpcode
from isa.state import CR0_PE, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, XCR0_AVX, XCR0_SSE, XCR0_X87
from tests.isa.forms import definition_of
from tests.isa.machine import ALL_FEATURES, fault_of, make_cpu, run_one
from tests.oracles.native import available
from tests.oracles.native_vector import (
    CODE,
    DATA,
    WINDOW,
    WINDOW_SIZE,
    Case,
    FxState,
    NativeVectorCpu,
    Outcome,
    host_has_avx,
)
from tests.oracles.vector_cases import make_case
from tests.oracles.vector_model import Model, differences

ALL = XCR0_X87 | XCR0_SSE | XCR0_AVX
AREA = 0x4000
XSAVE, XSAVEC, XSAVEOPT, XRSTOR = "480fae27", "480fc727", "480fae37", "480fae2f"  # with REX.W, [rdi]


def xsave_cpu(features: frozenset[str] = ALL_FEATURES, **registers: int) -> Cpu:
    """A CPU with all three components enabled, RDI at the area, every component requested."""
    given = {"cr4": CR4_OSFXSR | CR4_OSXSAVE, "xcr0": ALL, "rdi": AREA, "rax": 0xFFFF_FFFF, **registers}
    cpu = make_cpu(64, None, features, **given)
    cpu.fpu.init()
    return cpu


def area(cpu: Cpu) -> bytes:
    """The whole XSAVE area."""
    return bytes(cpu.memory.read(AREA, AREA_WITH_AVX))


def xstate_bv(cpu: Cpu) -> int:
    """The first field of the header."""
    return int.from_bytes(area(cpu)[512:520], "little")


def test_xsave_puts_each_component_in_its_place() -> None:
    cpu = xsave_cpu(xmm1=0x11, ymmh2=0x22, mxcsr=0x1FA0)
    run_one(cpu, "xsave64 [rdi]", bytes.fromhex(XSAVE))
    found = area(cpu)
    assert int.from_bytes(found[0:2], "little") == 0x37F
    assert int.from_bytes(found[24:28], "little") == 0x1FA0
    assert found[160 + 16] == 0x11
    assert found[576 + 32] == 0x22
    assert xstate_bv(cpu) == XCR0_SSE | XCR0_AVX  # x87 is as FNINIT left it


def test_xsave_writes_only_what_is_requested_and_keeps_the_other_bits_of_xstate_bv() -> None:
    cpu = xsave_cpu(rax=XCR0_AVX, xmm1=0x11, ymmh2=0x22)
    cpu.memory.write(AREA, b"\xee" * 512 + b"\x01")
    run_one(cpu, "xsave64 [rdi]", bytes.fromhex(XSAVE))
    found = area(cpu)
    assert found[:24] == b"\xee" * 24 and found[32:512] == b"\xee" * 480
    assert int.from_bytes(found[24:28], "little") == cpu.mxcsr  # goes with AVX as well as with SSE
    assert xstate_bv(cpu) == XCR0_X87 | XCR0_AVX


def test_xsaveopt_does_not_write_what_is_in_its_initial_configuration() -> None:
    cpu = xsave_cpu(xmm1=0x11)
    cpu.memory.write(AREA + 576, b"\xee" * 256)
    run_one(cpu, "xsaveopt64 [rdi]", bytes.fromhex(XSAVEOPT))
    assert area(cpu)[576:] == b"\xee" * 256
    assert xstate_bv(cpu) == XCR0_SSE


def test_xsavec_names_the_format_and_the_components_in_xcomp_bv() -> None:
    cpu = xsave_cpu(rax=XCR0_SSE | XCR0_AVX, ymmh0=5)
    run_one(cpu, "xsavec64 [rdi]", bytes.fromhex(XSAVEC))
    assert xstate_bv(cpu) == XCR0_AVX
    assert int.from_bytes(area(cpu)[520:528], "little") == 1 << 63 | XCR0_SSE | XCR0_AVX
    assert area(cpu)[24:28] == bytes(4)  # MXCSR is SSE's here, and SSE is not in use


def test_mxcsr_alone_marks_sse_as_in_use() -> None:
    cpu = xsave_cpu(mxcsr=0x1F81)
    run_one(cpu, "xsavec64 [rdi]", bytes.fromhex(XSAVEC))
    assert xstate_bv(cpu) == XCR0_SSE


def test_xrstor_loads_what_xstate_bv_names_and_initializes_the_rest() -> None:
    cpu = xsave_cpu(xmm1=1, xmm2=2, ymmh1=3)
    run_one(cpu, "xsave64 [rdi]", bytes.fromhex(XSAVE))
    cpu.memory.write(AREA + 512, bytes([XCR0_AVX]))
    cpu.xmm1 = cpu.ymmh1 = 99
    cpu.rip = 0x1000
    cpu.fpu.control = 0x27F
    run_one(cpu, "xrstor64 [rdi]", bytes.fromhex(XRSTOR))
    assert (cpu.xmm1, cpu.xmm2, cpu.ymmh1, cpu.fpu.control) == (0, 0, 3, 0x37F)


def test_xrstor_leaves_what_is_not_requested() -> None:
    cpu = xsave_cpu(rax=XCR0_SSE, ymmh1=7, xmm1=5)
    cpu.memory.write(AREA + 24, (0x1F80).to_bytes(4, "little"))
    run_one(cpu, "xrstor64 [rdi]", bytes.fromhex(XRSTOR))
    assert (cpu.xmm1, cpu.ymmh1) == (0, 7)


def test_what_xsavec_wrote_xrstor_reads() -> None:
    cpu = xsave_cpu(xmm3=3, ymmh3=4, mxcsr=0x1F9F)
    run_one(cpu, "xsavec64 [rdi]", bytes.fromhex(XSAVEC))
    cpu.xmm3 = cpu.ymmh3 = 0
    cpu.mxcsr = 0x1F80
    cpu.rip = 0x1000
    run_one(cpu, "xrstor64 [rdi]", bytes.fromhex(XRSTOR))
    assert (cpu.xmm3, cpu.ymmh3, cpu.mxcsr) == (3, 4, 0x1F9F)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (512, b"\x08"),  # XSTATE_BV has a component that XCR0 has not
        (520, b"\x01"),  # XCOMP_BV without the compacted bit
        (528, b"\x01"),  # reserved bytes of the header
        (24, b"\x00\x00\x01\x00"),  # reserved bits of MXCSR
        (512, b"\x04" + bytes(7) + b"\x02" + bytes(6) + b"\x80"),  # compacted, but XSTATE_BV has more
        (520, b"\x08" + bytes(6) + b"\x80"),  # compacted, with a component that XCR0 has not
    ],
)
def test_xrstor_refuses_a_bad_area_and_changes_nothing(offset: int, data: bytes) -> None:
    cpu = xsave_cpu(xmm1=5, ymmh1=6)
    cpu.memory.write(AREA + offset, data)
    assert isinstance(fault_of(cpu, "xrstor64 [rdi]", bytes.fromhex(XRSTOR)), GeneralProtection)
    assert (cpu.xmm1, cpu.ymmh1) == (5, 6)


def test_a_compacted_area_needs_xsavec() -> None:
    cpu = xsave_cpu(features=frozenset(ALL_FEATURES) - {"XSAVEC"})
    cpu.memory.write(AREA + 527, b"\x80")
    assert isinstance(fault_of(cpu, "xrstor64 [rdi]", bytes.fromhex(XRSTOR)), GeneralProtection)


@pytest.mark.parametrize(
    ("text", "code"),
    [("xsave64", XSAVE), ("xsavec64", XSAVEC), ("xsaveopt64", XSAVEOPT), ("xrstor64", XRSTOR)],
)
def test_the_checks_of_all_four(text: str, code: str) -> None:
    raw = bytes.fromhex(code)
    assert isinstance(fault_of(xsave_cpu(rdi=AREA + 32), f"{text} [rdi]", raw), GeneralProtection)
    assert isinstance(fault_of(xsave_cpu(cr4=CR4_OSFXSR), f"{text} [rdi]", raw), InvalidOpcode)
    assert isinstance(fault_of(xsave_cpu(cr0=CR0_PE | CR0_TS), f"{text} [rdi]", raw), DeviceNotAvailable)


def test_outside_64_bit_mode_eight_registers_are_saved() -> None:
    cpu = make_cpu(32, cr4=CR4_OSFXSR | CR4_OSXSAVE, xcr0=ALL, rdi=AREA, rax=7, ymmh7=1, ymmh8=2)
    run_one(cpu, "xsave [edi]", bytes.fromhex("0fae27"))
    assert area(cpu)[576 + 112] == 1
    assert area(cpu)[576 + 128 :] == bytes(128)


# ---- CPUID -----------------------------------------------------------------------------------------------


def test_leaf_d_tells_components_and_sizes() -> None:
    features = feature_set(["v3", "xsavec"])
    cpu = make_cpu(64, None, features, xcr0=XCR0_X87 | XCR0_SSE)
    answer = CpuId(features)
    assert answer(cpu, 0xD, 0) == (7, AREA_WITHOUT_AVX, AREA_WITH_AVX, 0)
    assert answer(cpu, 0xD, 1) == (2, AREA_WITHOUT_AVX, 0, 0)
    assert answer(cpu, 0xD, 2) == (256, 576, 0, 0)
    assert answer(cpu, 0xD, 3) == (0, 0, 0, 0)
    cpu.xcr0 = ALL
    assert answer(cpu, 0xD, 0)[1] == AREA_WITH_AVX


def test_without_xsave_leaf_d_is_empty() -> None:
    cpu = make_cpu(64)
    assert CpuId(feature_set())(cpu, 0xD, 0) == (0, 0, 0, 0)


def test_levels_add_to_each_other_and_mix_with_single_features() -> None:
    v1, v2, v3 = (feature_set([level]) for level in ("v1", "v2", "v3"))
    assert v1 == feature_set() and v1 < v2 < v3
    assert "AVX2" not in feature_set(["v3", "-avx2"])
    with pytest.raises(UnknownFeature, match='"avx2" needs "avx"'):
        feature_set(["v3", "-avx"])


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_every_form_of_a_level_is_implemented(level: str) -> None:
    added = set(feature_set([level])) - set(feature_set())
    missing = [
        name
        for code, name in code_names().items()
        if opcode_info(code).is_instruction
        and added & set(form_features(code))
        and set(form_features(code)) <= feature_set([level])
        and definition_of(code) is None
    ]
    assert missing == []


# ---- the host --------------------------------------------------------------------------------------------

FROM_THE_START = bytes.fromhex("498db000000000")  # lea rsi, [r8+0]: a saved area is looked at from byte 0 on
COPY = "b900010000 f3a4"  # mov ecx, 256; rep movsb
CLEAR = "4989f8 31c0 b940030000 f3aa"  # r8 := rdi, the area; fill it with zeros


def save_case(base: Case, instruction: str, mask: int, part: int) -> Case:
    """Save into a cleared area and copy 256 bytes of it from `part` on to the window."""
    code = (
        CLEAR
        + f"b8{mask:02x}000000 31d2 {instruction} 498db0{part.to_bytes(4, 'little').hex()} 4c89cf"
        + COPY
    )
    return with_area(base, code)


def restore_case(base: Case, mask: int, part: int, window: bytes) -> Case:
    """Copy the window to byte `part` of a cleared area and restore from it."""
    place = part.to_bytes(4, "little").hex()
    code = CLEAR + f"498db8{place} 4c89ce" + COPY + f"b8{mask:02x}000000 31d2 490fae28"
    return with_area(replace(base, window=window), code)


def with_area(base: Case, code: str) -> Case:
    """The case with other code and the addresses that it wants."""
    regs = list(base.regs)
    regs[7], regs[9] = DATA, WINDOW  # RDI, R9
    return replace(base, code=bytes.fromhex(code), regs=tuple(regs))


def run_sequence(model: Model, case: Case) -> Outcome:
    """Several instructions on this CPU: what goes in and comes out as `Model.run` has it, for one each."""
    state, offset = case, 0
    outcome = None
    while offset < len(case.code):
        raw = case.code[offset:]
        length = instruction_length(raw, offset)
        outcome = model.run(replace(state, code=raw[:length]), fresh=offset == 0)
        state = replace(state, regs=outcome.regs, flags=outcome.flags, fx=outcome.fx, window=outcome.window)
        if outcome.signal:
            break
        offset += length
    assert outcome is not None
    return outcome


def instruction_length(raw: bytes, offset: int) -> int:
    """Bytes of the first instruction of `raw`."""
    return int(decode(raw.ljust(15, b"\x90"), 64, CODE + offset).len)


@pytest.mark.skipif(not available() or not host_has_avx(), reason="needs Linux on a CPU with AVX")
def test_the_host_saves_and_restores_the_same() -> None:
    rng = random.Random(5)
    code = next(number for number, name in code_names().items() if name == "VEX_VPADDB_YMM_YMM_YMMM256")
    bases = [make_case(rng, code) for _ in range(4)]
    cases = []
    for base in bases:
        for mask in range(8):
            for instruction in ("490fae20", "490fc720", "490fae30"):  # xsave64, xsavec64, xsaveopt64 [r8]
                for part in (0, 160, 416, 512, 576):
                    cases.append(save_case(base, instruction, mask, part))
            for state in range(9):
                header = bytes([state]) + bytes(63) + base.window[64:]
                cases.append(restore_case(base, mask, 512, header))
            image = base.fx.image()[:WINDOW_SIZE]
            cases.append(restore_case(base, mask, 0, image))
            compact = (
                bytes([mask]) + bytes(7) + bytes([7]) + bytes(6) + b"\x80" + bytes(48) + base.window[64:]
            )
            cases.append(restore_case(base, 7, 512, compact))
    wrong = []
    model = Model()
    with NativeVectorCpu() as host:
        for case, theirs in zip(cases, host.run(cases), strict=True):
            outcomes = [run_sequence(model, case), theirs]
            if FROM_THE_START in case.code:  # MXCSR_MASK is what the CPU has
                outcomes = [replace(o, window=o.window[:28] + o.window[32:]) for o in outcomes]
            found = differences("XSAVE", case, *outcomes)
            if found:
                wrong.append(f"{case.code.hex()}: {found[:3]}")
    assert wrong == []


def test_the_state_that_the_oracle_carries_comes_back_from_its_image() -> None:
    fx = FxState(0x37F, 0, 0xFF, 0x1F80, tuple(range(8)), tuple(range(16)), tuple(range(16, 32)))
    assert FxState.from_image(fx.image()) == fx
