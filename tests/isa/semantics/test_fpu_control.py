"""Control of x87 and SSE: #NM and #MF in the right order, images byte for byte, MXCSR's reserved bits."""

from __future__ import annotations

import struct

import pytest

from isa.cpu import Cpu
from isa.faults import DeviceNotAvailable, Fault, FpuError, GeneralProtection, InvalidOpcode, StackFault
from isa.semantics.control import write_cr0
from isa.semantics.fpu_control import drive_ferr
from isa.state import CR0_CD, CR0_EM, CR0_MP, CR0_NE, CR0_NW, CR0_TS, CR4_OSFXSR, XMM_NAMES
from tests.isa.machine import fault_of, make_cpu, run_one

AT = 0x6000
BASICS = {  # every instruction of the room on [rbx]
    "dbe3": "fninit", "dbe2": "fnclex", "d93b": "fnstcw [rbx]", "d92b": "fldcw [rbx]", "dd3b": "fnstsw [rbx]",
    "dfe0": "fnstsw ax", "d933": "fnstenv [rbx]", "d923": "fldenv [rbx]", "dd33": "fnsave [rbx]",
    "dd23": "frstor [rbx]", "0fae03": "fxsave [rbx]", "0fae0b": "fxrstor [rbx]",
}  # fmt: skip
NO_WAIT = ("fnstcw", "fnstsw", "fninit", "fnclex", "fnstenv", "fnsave", "fxsave", "fxrstor")


def machine(bits: int = 64, **registers: int) -> Cpu:
    """A CPU with FNINIT done and SSE on."""
    cpu = make_cpu(bits, rbx=AT, **registers)
    cpu.cr4 |= CR4_OSFXSR
    cpu.cr0 |= CR0_NE
    cpu.fpu.init()
    return cpu


def run(cpu: Cpu, raw: str, text: str) -> Cpu:
    """Step over one instruction."""
    return run_one(cpu, text, bytes.fromhex(raw))


def fault(cpu: Cpu, raw: str, text: str) -> Fault:
    """What one instruction raises."""
    return fault_of(cpu, text, bytes.fromhex(raw))


def word(cpu: Cpu, at: int = AT) -> int:
    """Two bytes of RAM."""
    return int.from_bytes(cpu.memory.read(at, 2), "little")


# ---- #NM and #MF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [CR0_EM, CR0_TS])
@pytest.mark.parametrize("raw", BASICS)
def test_em_and_ts_make_every_x87_instruction_unavailable(raw: str, bit: int) -> None:
    cpu = machine()
    cpu.cr0 |= bit
    assert isinstance(fault(cpu, raw, BASICS[raw]), DeviceNotAvailable)


@pytest.mark.parametrize("raw", BASICS)
def test_a_pending_exception_stops_waiting_instructions_only(raw: str) -> None:
    cpu = machine()
    cpu.fpu.status, cpu.fpu.control = 0x04, 0x37B  # ZE, unmasked
    name = BASICS[raw].split()[0]
    if name in NO_WAIT:
        run(cpu, raw, BASICS[raw])
    else:
        assert isinstance(fault(cpu, raw, BASICS[raw]), FpuError)


def test_wait_is_unavailable_with_both_mp_and_ts_and_reports_what_is_pending() -> None:
    for bits, kind in ((CR0_MP | CR0_TS, DeviceNotAvailable), (CR0_TS, None), (CR0_MP, None), (CR0_EM, None)):
        cpu = machine()
        cpu.cr0 |= bits
        if kind is None:
            run(cpu, "9b", "wait")
        else:
            assert isinstance(fault(cpu, "9b", "wait"), kind)
    cpu = machine()
    cpu.fpu.status, cpu.fpu.control = 0x01, 0x37E
    assert isinstance(fault(cpu, "9b", "wait"), FpuError)


def test_without_cr0_ne_an_unmasked_exception_asserts_ferr_until_it_is_cleared() -> None:
    pins: list[bool] = []
    cpu = machine()
    cpu.cr0 &= ~CR0_NE
    cpu.on_ferr = pins.append
    cpu.fpu.status = 0x01  # masked so far
    cpu.store(cpu.rbx, 2, 0x37E)
    run(cpu, "d92b", "fldcw [rbx]")
    assert pins == [True]
    run(cpu, "9b", "wait")  # goes on
    assert pins == [True]
    run(cpu, "dbe2", "fnclex")
    assert pins == [True, False]


@pytest.mark.parametrize(("raw", "text"), [("dbe3", "fninit"), ("dd33", "fnsave [rbx]")])
def test_an_initialised_fpu_releases_ferr(raw: str, text: str) -> None:
    pins: list[bool] = []
    cpu = machine()
    cpu.cr0 &= ~CR0_NE
    cpu.on_ferr = pins.append
    cpu.fpu.status, cpu.fpu.control = 0x81, 0x37E
    drive_ferr(cpu)
    run(cpu, raw, text)
    assert pins == [True, False]


def test_cr0_ne_takes_the_pending_exception_from_the_pin_and_gives_it_back() -> None:
    pins: list[bool] = []
    cpu = machine(32)
    cpu.cr0 &= ~(CR0_NW | CR0_CD)
    cpu.on_ferr = pins.append
    cpu.fpu.status, cpu.fpu.control = 0x81, 0x37E
    write_cr0(cpu, cpu.cr0 & ~CR0_NE)
    write_cr0(cpu, cpu.cr0)
    write_cr0(cpu, cpu.cr0 | CR0_NE)
    assert pins == [True, False]


# ---- control and status --------------------------------------------------------------------------------


def test_fninit_sets_the_words_and_empties_the_registers_but_keeps_their_contents() -> None:
    cpu = machine()
    cpu.fpu.regs[3], cpu.fpu.tags[3], cpu.fpu.top, cpu.fpu.status, cpu.fpu.control = 7, 0, 5, 0x7F, 0
    run(cpu, "dbe3", "fninit")
    fpu = cpu.fpu
    assert (fpu.control, fpu.status_word(), fpu.tags, fpu.regs[3]) == (0x37F, 0, [1] * 8, 7)


@pytest.mark.parametrize(
    ("value", "kept"), [(0, 0x40), (0xFFFF, 0x1F7F), (0x80, 0x40), (0x2000, 0x40), (0x27F, 0x27F)]
)
def test_fldcw_keeps_the_bits_that_the_host_keeps(value: int, kept: int) -> None:
    cpu = machine()
    cpu.memory.write(AT, value.to_bytes(2, "little"))
    run(cpu, "d92b", "fldcw [rbx]")
    run(cpu, "d93b", "fnstcw [rbx]")
    assert word(cpu) == kept


def test_unmasking_a_recorded_exception_raises_the_summary_and_masking_it_takes_it_back() -> None:
    cpu = machine()
    cpu.fpu.status = 0x04
    cpu.memory.write(AT, (0x37B).to_bytes(2, "little"))
    run(cpu, "d92b", "fldcw [rbx]")
    run(cpu, "dfe0", "fnstsw ax")
    assert cpu.rax & 0xFFFF == 0x8084
    run(cpu, "dbe2", "fnclex")
    run(cpu, "dd3b", "fnstsw [rbx]")
    assert word(cpu) == 0


def test_fnclex_keeps_top_and_condition_codes() -> None:
    cpu = machine()
    cpu.fpu.status, cpu.fpu.top = 0xC7FF, 6
    run(cpu, "dbe2", "fnclex")
    assert cpu.fpu.status_word() == 0x4700 | 6 << 11


def test_emms_empties_all_registers_and_is_invalid_with_em() -> None:
    cpu = machine()
    cpu.fpu.tags = [0] * 8
    run(cpu, "0f77", "emms")
    assert cpu.fpu.tags == [1] * 8
    cpu.cr0 |= CR0_EM
    assert isinstance(fault(cpu, "0f77", "emms"), InvalidOpcode)


# ---- environment images --------------------------------------------------------------------------------


def filled(bits: int = 64) -> Cpu:
    """An x87 with something in every field."""
    cpu = machine(bits)
    fpu = cpu.fpu
    fpu.control, fpu.status, fpu.top = 0x27F, 0x4100, 3
    fpu.regs = [
        0x3FFF << 64 | 1 << 63,
        0,
        0x7FFF << 64 | 3 << 62,
        1,
        5,
        0x4000 << 64 | 7 << 61,
        6,
        1 << 79 | 9,
    ]
    fpu.tags = [0, 0, 0, 0, 1, 0, 1, 0]
    fpu.ip, fpu.dp, fpu.cs, fpu.ds, fpu.opcode = 0x1_2345, 0x6_789A, 0x10, 0x18, 0x5A5
    return cpu


TAGS = 0b10_11_00_11_10_10_01_00  # R7 special, 6 empty, 5 valid, 4 empty, 3 and 2 special, 1 zero, 0 valid


def test_the_32_bit_protected_mode_environment() -> None:
    cpu = run(filled(32), "d933", "fnstenv [ebx]")
    words = struct.unpack("<7I", cpu.memory.read(AT, 28))
    ones = 0xFFFF_0000
    assert words == (
        ones | 0x27F,
        ones | 0x4100 | 3 << 11,
        ones | TAGS,
        0x1_2345,
        0x5A5 << 16 | 0x10,
        0x6_789A,
        ones | 0x18,
    )
    assert cpu.fpu.control == 0x27F | 0x3F  # FNSTENV masks every exception


def test_the_16_bit_environments_of_protected_and_real_mode() -> None:
    cpu = run(filled(32), "66d933", "o16 fnstenv [ebx]")
    assert struct.unpack("<7H", cpu.memory.read(AT, 14)) == (0x27F, 0x5900, TAGS, 0x2345, 0x10, 0x789A, 0x18)
    cpu = filled(16)
    run_one(cpu, "fnstenv [bx]", bytes.fromhex("d937"))
    ip, dp = (0x10 << 4) + 0x1_2345, (0x18 << 4) + 0x6_789A
    expected = (0x27F, 0x5900, TAGS, ip & 0xFFFF, ip >> 16 << 12 | 0x5A5, dp & 0xFFFF, dp >> 16 << 12)
    assert struct.unpack("<7H", cpu.memory.read(AT, 14)) == expected


@pytest.mark.parametrize("prefix", ["", "66"])
def test_fnsave_and_frstor_bring_everything_back(prefix: str) -> None:
    cpu = filled(32)
    text = "o16 " if prefix else ""
    before = (list(cpu.fpu.regs), list(cpu.fpu.tags), cpu.fpu.top, cpu.fpu.control, cpu.fpu.status)
    run(cpu, prefix + "dd33", f"{text}fnsave [ebx]")
    assert (cpu.fpu.control, cpu.fpu.tags) == (0x37F, [1] * 8)
    cpu.fpu.regs = [0] * 8
    run(cpu, prefix + "dd23", f"{text}frstor [ebx]")
    assert (cpu.fpu.regs, cpu.fpu.tags, cpu.fpu.top, cpu.fpu.control, cpu.fpu.status) == before


def test_fldenv_takes_only_empty_from_the_tags_and_updates_the_summary() -> None:
    cpu = machine(32)
    image = struct.pack("<7I", 0x37E, 0x0001 | 2 << 11, 0b11_00_01_10_00_00_00_11, 1, 2 | 3 << 16, 4, 5)
    cpu.memory.write(AT, image)
    run(cpu, "d923", "fldenv [ebx]")
    assert cpu.fpu.tags == [1, 0, 0, 0, 0, 0, 0, 1]
    assert cpu.fpu.status_word() == 0x8081 | 2 << 11
    assert (cpu.fpu.ip, cpu.fpu.cs, cpu.fpu.opcode, cpu.fpu.dp, cpu.fpu.ds) == (1, 2, 3, 4, 5)


# ---- FXSAVE --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "raw", "text", "count"),
    [
        (64, "0fae03", "fxsave [rbx]", 16),
        (64, "480fae03", "fxsave64 [rbx]", 16),
        (32, "0fae03", "fxsave [ebx]", 8),
    ],
)
def test_the_fxsave_area_byte_for_byte(bits: int, raw: str, text: str, count: int) -> None:
    cpu = filled(bits)
    cpu.mxcsr = 0x1FA0
    for n, name in enumerate(XMM_NAMES):
        setattr(cpu, name, 0x0101_0101_0101_0101 * (n + 1))
    cpu.memory.write(AT, b"\xee" * 512)
    run(cpu, raw, text)
    area = cpu.memory.read(AT, 512)
    assert struct.unpack_from("<HHBBH", area) == (0x27F, 0x5900, 0b1010_1111, 0, 0x5A5)
    if "64" in text:
        assert struct.unpack_from("<QQ", area, 8) == (0x1_2345, 0x6_789A)
    else:
        assert struct.unpack_from("<IIII", area, 8) == (0x1_2345, 0x10, 0x6_789A, 0x18)
    assert struct.unpack_from("<II", area, 24) == (0x1FA0, 0xFFFF)
    for n in range(8):
        assert int.from_bytes(area[32 + 16 * n : 48 + 16 * n], "little") == cpu.fpu.regs[3 + n & 7]
    for n in range(count):
        assert int.from_bytes(area[160 + 16 * n : 176 + 16 * n], "little") == getattr(cpu, XMM_NAMES[n])
    rest = 160 + 16 * count
    assert area[416:] == b"\xee" * 96 and (count == 16 or area[rest:416] == b"\xee" * (416 - rest))


def test_fxrstor_brings_back_what_fxsave_stored() -> None:
    cpu = filled()
    cpu.xmm15 = 99
    before = (
        list(cpu.fpu.regs),
        list(cpu.fpu.tags),
        cpu.fpu.top,
        cpu.fpu.control,
        cpu.fpu.ip,
        cpu.fpu.opcode,
    )
    run(cpu, "480fae03", "fxsave64 [rbx]")
    cpu.fpu.power_on()
    cpu.xmm15 = 0
    run(cpu, "480fae0b", "fxrstor64 [rbx]")
    fpu = cpu.fpu
    assert (fpu.regs, [int(t) for t in fpu.tags], fpu.top, fpu.control, fpu.ip, fpu.opcode) == before
    assert cpu.xmm15 == 99


def test_fxsave_and_fxrstor_want_16_byte_alignment_and_a_canonical_address() -> None:
    for raw, text in (("0fae03", "fxsave [rbx]"), ("0fae0b", "fxrstor [rbx]")):
        cpu = machine()
        cpu.rbx += 8
        assert isinstance(fault(cpu, raw, text), GeneralProtection)
        cpu.rbx = 1 << 62
        assert isinstance(fault(cpu, raw, text), GeneralProtection)
    cpu = machine(rsp=1 << 62)
    assert isinstance(fault(cpu, "0fae0424", "fxsave [rsp]"), StackFault)


def test_fxrstor_refuses_reserved_mxcsr_bits_and_loads_nothing() -> None:
    cpu = filled()
    cpu.memory.write(AT + 24, (1 << 16).to_bytes(4, "little"))
    before = list(cpu.fpu.regs)
    assert isinstance(fault(cpu, "0fae0b", "fxrstor [rbx]"), GeneralProtection)
    assert cpu.fpu.regs == before and cpu.mxcsr == 0x1F80


# ---- MXCSR ---------------------------------------------------------------------------------------------


def test_mxcsr_is_loaded_and_stored_and_its_upper_half_is_reserved() -> None:
    cpu = machine()
    cpu.memory.write(AT, (0xFFFF).to_bytes(4, "little"))
    run(cpu, "0fae13", "ldmxcsr [rbx]")
    assert cpu.mxcsr == 0xFFFF
    cpu.mxcsr = 0x1234
    run(cpu, "0fae1b", "stmxcsr [rbx]")
    assert cpu.memory.read(AT, 4) == bytes.fromhex("34120000")
    cpu.memory.write(AT, (0x1_0000).to_bytes(4, "little"))
    assert isinstance(fault(cpu, "0fae13", "ldmxcsr [rbx]"), GeneralProtection)
    assert cpu.mxcsr == 0x1234


def test_sse_is_invalid_with_em_or_without_osfxsr_and_unavailable_with_ts() -> None:
    for set_cr0, clear_cr4, kind in (
        (CR0_EM, 0, InvalidOpcode), (0, CR4_OSFXSR, InvalidOpcode), (CR0_TS, 0, DeviceNotAvailable),
        (CR0_TS | CR0_EM, 0, InvalidOpcode),
    ):  # fmt: skip
        cpu = machine()
        cpu.cr0 |= set_cr0
        cpu.cr4 &= ~clear_cr4
        for raw, text in (("0fae13", "ldmxcsr [rbx]"), ("0fae1b", "stmxcsr [rbx]")):
            assert isinstance(fault(cpu, raw, text), kind)
