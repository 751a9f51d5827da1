"""x87 loads, stores, exchanges and tags: the stack rules, exceptions masked and not, and the pointers."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.exits import MmioRead, MmioWrite
from isa.extended import C1, DE, IE, INDEFINITE, INFINITY, OE, ONE, PE, SF, SIGN, UE
from isa.faults import GeneralProtection
from isa.state import CR0_NE
from tests.isa.machine import CODE, fault_of, make_cpu, run_one

DATA = 0x4000
TWO = 0x40008000000000000000
HALF = 0x3FFE8000000000000000
ERROR = 0x8080  # ES and B
QUIET_BIT = 1 << 62


def machine(*stack: int, control: int = 0x37F, bits: int = 64) -> Cpu:
    """A machine after FNINIT with ST(0), ST(1) ... on the stack and RDI at DATA."""
    cpu = make_cpu(bits, rdi=DATA)
    cpu.cr0 |= CR0_NE
    cpu.fpu.init()
    cpu.fpu.control = control
    cpu.fpu.top = -len(stack) & 7
    for n, value in enumerate(stack):
        cpu.fpu.regs[cpu.fpu.top + n & 7] = value
        cpu.fpu.tags[cpu.fpu.top + n & 7] = 0
    return cpu


def stack(cpu: Cpu) -> list[int | None]:
    """ST(0) to ST(7), None where empty."""
    fpu = cpu.fpu
    return [None if fpu.tags[fpu.top + n & 7] else fpu.regs[fpu.top + n & 7] for n in range(8)]


def values(*expected: int) -> list[int | None]:
    return [*expected, *[None] * (8 - len(expected))]


def test_fild_of_the_least_quadword_is_exact_and_fistp_gives_it_back() -> None:
    cpu = machine()
    cpu.memory.write(DATA, (1 << 63).to_bytes(8, "little"))
    run_one(cpu, "fild qword [rdi]", b"\xdf\x2f")
    assert stack(cpu) == values(SIGN | 0x403E8000000000000000)
    cpu.rdi = DATA + 8
    run_one(cpu, "fistp qword [rdi]", b"\xdf\x3f")
    assert cpu.memory.read(DATA + 8, 8) == (1 << 63).to_bytes(8, "little")
    assert stack(cpu) == values()
    assert cpu.fpu.status == 0


@pytest.mark.parametrize(
    ("text", "code", "raw", "value", "flags"),
    [
        ("fld dword [rdi]", "d907", "0000803f", ONE, 0),
        ("fld qword [rdi]", "dd07", "000000000000f0bf", SIGN | ONE, 0),
        ("fld tword [rdi]", "db2f", "0000000000000080ff3f", ONE, 0),
        ("fld dword [rdi]", "d907", "01000000", (16383 - 149) << 64 | 1 << 63, DE),
        ("fld dword [rdi]", "d907", "010080ff", SIGN | INFINITY | QUIET_BIT | 1 << 40, IE),
        ("fld tword [rdi]", "db2f", "0100000000000080ffff", SIGN | INFINITY | 1, 0),
        ("fild word [rdi]", "df07", "feff", SIGN | TWO, 0),
        ("fild dword [rdi]", "db07", "02000000", TWO, 0),
        ("fbld tword [rdi]", "df27", "02000000000000000080", SIGN | TWO, 0),
    ],
)
def test_loads_convert_exactly(text: str, code: str, raw: str, value: int, flags: int) -> None:
    cpu = machine(HALF)
    cpu.memory.write(DATA, bytes.fromhex(raw))
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == values(value, HALF)
    assert cpu.fpu.status == flags


def test_an_unmasked_signalling_nan_is_not_loaded() -> None:
    cpu = machine(HALF, control=0x37E)
    cpu.memory.write(DATA, bytes.fromhex("010080ff"))
    run_one(cpu, "fld dword [rdi]", b"\xd9\x07")
    assert stack(cpu) == values(HALF)
    assert cpu.fpu.status == ERROR | IE


def test_a_load_onto_a_full_stack_overwrites_with_the_default_nan_if_masked() -> None:
    cpu = machine(*[ONE] * 8)
    run_one(cpu, "fld1", b"\xd9\xe8")
    assert stack(cpu) == [INDEFINITE] + [ONE] * 7
    assert cpu.fpu.status == IE | SF | C1


def test_a_load_onto_a_full_stack_changes_nothing_if_unmasked() -> None:
    cpu = machine(*[ONE] * 8, control=0x37E)
    top = cpu.fpu.top
    run_one(cpu, "fldz", b"\xd9\xee")
    assert (stack(cpu), cpu.fpu.top) == ([ONE] * 8, top)
    assert cpu.fpu.status == ERROR | IE | SF | C1


def test_a_load_of_an_empty_register_pushes_the_default_nan_with_c1_clear() -> None:
    cpu = machine(ONE)
    run_one(cpu, "fld st3", b"\xd9\xc3")
    assert stack(cpu) == values(INDEFINITE, ONE)
    assert cpu.fpu.status == IE | SF


@pytest.mark.parametrize(
    ("text", "code", "nearest", "down", "up"),
    [
        ("fldpi", "d9eb", 0x4000C90FDAA22168C235, 0x4000C90FDAA22168C234, 0x4000C90FDAA22168C235),
        ("fldl2t", "d9e9", 0x4000D49A784BCD1B8AFE, 0x4000D49A784BCD1B8AFE, 0x4000D49A784BCD1B8AFF),
        ("fldl2e", "d9ea", 0x3FFFB8AA3B295C17F0BC, 0x3FFFB8AA3B295C17F0BB, 0x3FFFB8AA3B295C17F0BC),
        ("fldlg2", "d9ec", 0x3FFD9A209A84FBCFF799, 0x3FFD9A209A84FBCFF798, 0x3FFD9A209A84FBCFF799),
        ("fldln2", "d9ed", 0x3FFEB17217F7D1CF79AC, 0x3FFEB17217F7D1CF79AB, 0x3FFEB17217F7D1CF79AC),
    ],
)
def test_constants_follow_rounding_control_and_ignore_precision_control(
    text: str, code: str, nearest: int, down: int, up: int
) -> None:
    for mode, expected in ((0, nearest), (1, down), (2, up), (3, down)):
        cpu = machine(control=0x07F | mode << 10)
        run_one(cpu, text, bytes.fromhex(code))
        assert stack(cpu) == values(expected)
        assert cpu.fpu.status == 0


def test_storing_two_and_a_half_rounds_to_even_and_fisttp_truncates_in_every_mode() -> None:
    two_and_a_half = 0x4000A000000000000000
    cpu = machine(two_and_a_half)
    run_one(cpu, "fist dword [rdi]", b"\xdb\x17")
    assert cpu.memory.read(DATA, 4) == b"\x02\0\0\0"
    assert cpu.fpu.status == PE
    cpu = machine(SIGN | two_and_a_half, control=0x77F)  # round down
    run_one(cpu, "fisttp word [rdi]", b"\xdf\x0f")
    assert cpu.memory.read(DATA, 2) == b"\xfe\xff"
    assert stack(cpu) == values()


def test_an_integer_store_that_does_not_fit_gives_the_integer_indefinite() -> None:
    cpu = machine(0x400E8000000000000000)  # 32768
    run_one(cpu, "fistp word [rdi]", b"\xdf\x1f")
    assert cpu.memory.read(DATA, 2) == b"\x00\x80"
    assert (stack(cpu), cpu.fpu.status) == (values(), IE)


def test_an_unmasked_invalid_store_neither_stores_nor_pops() -> None:
    cpu = machine(INFINITY, control=0x37E)
    cpu.memory.write(DATA, b"\x55" * 8)
    run_one(cpu, "fistp qword [rdi]", b"\xdf\x3f")
    assert cpu.memory.read(DATA, 8) == b"\x55" * 8
    assert (stack(cpu), cpu.fpu.status) == (values(INFINITY), ERROR | IE)


@pytest.mark.parametrize(("value", "flag"), [(0x7000C000000000000001, OE), (0x1000C000000000000001, UE)])
def test_unmasked_overflow_and_underflow_hold_a_float_store_back(value: int, flag: int) -> None:
    cpu = machine(value, control=0x37F & ~flag)
    cpu.memory.write(DATA, b"\x55" * 4)
    run_one(cpu, "fstp dword [rdi]", b"\xd9\x1f")
    assert cpu.memory.read(DATA, 4) == b"\x55" * 4
    assert (stack(cpu), cpu.fpu.status) == (values(value), ERROR | flag)


def test_an_empty_register_is_stored_as_the_default_nan_of_the_format() -> None:
    for text, code, expected in (
        ("fst dword [rdi]", "d917", "0000c0ff"),
        ("fst qword [rdi]", "dd17", "000000000000f8ff"),
        ("fstp tword [rdi]", "db3f", "00000000000000c0ffff"),
        ("fbstp tword [rdi]", "df37", "00000000000000c0ffff"),
        ("fist word [rdi]", "df17", "0080"),
    ):
        cpu = machine()
        run_one(cpu, text, bytes.fromhex(code))
        assert cpu.memory.read(DATA, len(expected) // 2).hex() == expected
        assert cpu.fpu.status == IE | SF


def test_fstp_of_80_bits_stores_any_pattern_unchanged() -> None:
    signalling = INFINITY | 0x1234
    cpu = machine(signalling)
    run_one(cpu, "fstp tword [rdi]", b"\xdb\x3f")
    assert cpu.memory.read(DATA, 10) == signalling.to_bytes(10, "little")
    assert cpu.fpu.status == 0


def test_fst_to_a_register_copies_even_into_an_empty_one_and_fstp_st0_pops() -> None:
    cpu = machine(ONE, TWO)
    run_one(cpu, "fst st3", b"\xdd\xd3")
    assert stack(cpu) == [ONE, TWO, None, ONE, None, None, None, None]
    cpu = machine(ONE, TWO)
    run_one(cpu, "fstp st0", b"\xdd\xd8")
    assert stack(cpu) == values(TWO)


def test_fxch_swaps_and_fills_an_empty_register_with_the_default_nan() -> None:
    cpu = machine(ONE, TWO, HALF)
    run_one(cpu, "fxch st2", b"\xd9\xca")
    assert stack(cpu) == values(HALF, TWO, ONE)
    cpu = machine(ONE)
    run_one(cpu, "fxch", b"\xd9\xc9")
    assert stack(cpu) == values(INDEFINITE, ONE)
    assert cpu.fpu.status == IE | SF


@pytest.mark.parametrize(
    ("text", "code", "flags", "taken"),
    [
        ("fcmovb st1", "dac1", {"cf": 1}, True), ("fcmovb st1", "dac1", {}, False),
        ("fcmove st1", "dac9", {"zf": 1}, True), ("fcmovbe st1", "dad1", {"cf": 1}, True),
        ("fcmovbe st1", "dad1", {"zf": 1}, True), ("fcmovu st1", "dad9", {"pf": 1}, True),
        ("fcmovnb st1", "dbc1", {}, True), ("fcmovnb st1", "dbc1", {"cf": 1}, False),
        ("fcmovne st1", "dbc9", {"zf": 1}, False), ("fcmovnbe st1", "dbd1", {"zf": 1}, False),
        ("fcmovnbe st1", "dbd1", {}, True), ("fcmovnu st1", "dbd9", {"pf": 1}, False),
    ],
)  # fmt: skip
def test_fcmov_moves_on_its_condition(text: str, code: str, flags: dict[str, int], taken: bool) -> None:
    cpu = machine(ONE, TWO)
    for name, value in flags.items():
        setattr(cpu, name, value)
    run_one(cpu, text, bytes.fromhex(code))
    assert stack(cpu) == values(TWO if taken else ONE, TWO)


def test_fcmov_with_an_empty_source_is_invalid_even_when_not_taken() -> None:
    cpu = machine(ONE)
    run_one(cpu, "fcmovb st1", b"\xda\xc1")
    assert stack(cpu) == values(INDEFINITE)
    assert cpu.fpu.status == IE | SF


def test_ffree_empties_and_the_stack_pointer_turns_without_touching_tags() -> None:
    cpu = machine(ONE, TWO)
    run_one(cpu, "ffree st1", b"\xdd\xc1")
    assert stack(cpu) == values(ONE)
    run_one(cpu, "fincstp", b"\xd9\xf7")
    assert (stack(cpu)[7], cpu.fpu.top) == (ONE, 7)
    run_one(cpu, "fdecstp", b"\xd9\xf6")
    assert (stack(cpu)[0], cpu.fpu.top) == (ONE, 6)
    run_one(cpu, "ffreep st0", b"\xdf\xc0")
    assert (stack(cpu), cpu.fpu.top) == (values(), 7)


def test_the_instruction_and_data_pointers_are_those_of_the_last_one_that_is_not_control() -> None:
    cpu = machine(ONE)
    run_one(cpu, "fld qword [rdi+0x10]", b"\xdd\x47\x10")
    fpu = cpu.fpu
    assert (fpu.ip, fpu.cs, fpu.opcode) == (CODE, cpu.cs.selector, 0x547)
    assert (fpu.dp, fpu.ds) == (DATA + 0x10, cpu.ds.selector)
    run_one(cpu, "fnstcw [rdi]", b"\xd9\x3f")
    run_one(cpu, "fxch", b"\xd9\xc9")
    assert (fpu.ip, fpu.opcode, fpu.dp) == (CODE + 5, 0x1C9, DATA + 0x10)


def test_the_opcode_is_found_behind_prefixes() -> None:
    cpu = machine(ONE, bits=32)
    run_one(cpu, "fld dword [fs:edi]", b"\x64\x66\xd9\x07")
    assert (cpu.fpu.ip, cpu.fpu.opcode, cpu.fpu.ds) == (CODE, 0x107, cpu.fs.selector)


def test_a_store_that_faults_commits_nothing() -> None:
    two_and_a_half = 0x4000A000000000000000
    cpu = machine(two_and_a_half)
    cpu.ds.load_raw(0x10, 0, 0xFFFF, 0x91)  # read-only
    cpu.cs.load_raw(0x08, 0, 0xFFFF_FFFF, 0xC09B)
    cpu.efer = 0
    cpu.update_mode()
    assert isinstance(fault_of(cpu, "fistp qword [edi]", b"\xdf\x3f"), GeneralProtection)
    assert (stack(cpu), cpu.fpu.status, cpu.fpu.ip) == (values(two_and_a_half), 0, 0)


def test_a_load_and_a_store_of_ten_bytes_at_a_device_touch_it_once_each() -> None:
    cpu = machine(ONE)
    cpu.memory.unclaimed_is_mmio = True
    cpu.rdi = 0xFEC0_0000
    cpu.memory.write(CODE, b"\xdb\x2f\xdb\x3f")  # fld tword [rdi]; fstp tword [rdi]
    reads = []
    reason = cpu.step()
    while isinstance(reason, MmioRead):
        reads.append((reason.addr, reason.width))
        cpu.complete({8: 1 << 63, 2: 0x4000}[reason.width])
        reason = cpu.step()
    assert reads == [(0xFEC0_0000, 8), (0xFEC0_0008, 2)]
    assert stack(cpu) == values(TWO, ONE)
    writes = []
    reason = cpu.step()
    while isinstance(reason, MmioWrite):
        writes.append((reason.addr, reason.width, reason.data))
        cpu.complete()
        reason = cpu.step()
    assert writes == [(0xFEC0_0000, 8, 1 << 63), (0xFEC0_0008, 2, 0x4000)]
    assert stack(cpu) == values(ONE)
