"""Integer addition, subtraction and comparison."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isa.faults import GeneralProtection
from tests.isa.machine import execute, fault_of, flags_of, make_cpu, run_one

DATA = 0x3000
M64 = (1 << 64) - 1


def test_add_with_carry_out_of_the_top_sets_carry_and_zero() -> None:
    cpu = execute("add eax, ebx", "01 d8", rax=0xFFFF_FFFF, rbx=1)
    assert cpu.rax == 0
    assert flags_of(cpu) == "CF PF AF ZF"


def test_add_of_two_positives_that_gives_a_negative_overflows() -> None:
    cpu = execute("add al, bl", "00 d8", rax=0x7F, rbx=1)
    assert cpu.rax == 0x80
    assert flags_of(cpu) == "AF SF OF"


def test_add_to_a_32_bit_register_clears_its_upper_half() -> None:
    cpu = execute("add eax, 0x1", "83 c0 01", rax=0xFFFF_FFFF_0000_0001)
    assert cpu.rax == 2


def test_add_to_a_high_byte_leaves_the_rest_of_the_register() -> None:
    cpu = execute("add ah, 0x2", "80 c4 02", rax=0x1122_3344_5566_FF88)
    assert cpu.rax == 0x1122_3344_5566_0188
    assert flags_of(cpu) == "CF AF"


def test_adc_counts_the_carry_in() -> None:
    cpu = execute("adc rax, rbx", "48 11 d8", rax=M64, rbx=0, cf=1)
    assert cpu.rax == 0
    assert flags_of(cpu) == "CF PF AF ZF"


def test_sub_below_zero_borrows() -> None:
    cpu = execute("sub rax, rbx", "48 29 d8", rax=0, rbx=1)
    assert cpu.rax == M64
    assert flags_of(cpu) == "CF PF AF SF"


def test_sbb_of_equal_values_with_borrow_gives_minus_one() -> None:
    cpu = execute("sbb eax, eax", "19 c0", rax=5, cf=1)
    assert cpu.rax == 0xFFFF_FFFF
    assert flags_of(cpu) == "CF PF AF SF"


def test_cmp_changes_flags_only() -> None:
    cpu = execute("cmp rax, rbx", "48 39 d8", rax=1 << 63, rbx=1)
    assert (cpu.rax, cpu.rbx) == (1 << 63, 1)
    assert flags_of(cpu) == "PF AF OF"


@pytest.mark.parametrize(
    ("code", "text", "before", "after", "flags"),
    [
        ("fe c0", "inc al", 0x7F, 0x80, "CF AF SF OF"),
        ("fe c0", "inc al", 0xFF, 0x00, "CF PF AF ZF"),
        ("fe c8", "dec al", 0x80, 0x7F, "CF AF OF"),
        ("fe c8", "dec al", 0x00, 0xFF, "CF PF AF SF"),
    ],
)
def test_inc_and_dec_keep_the_carry_flag(code: str, text: str, before: int, after: int, flags: str) -> None:
    cpu = execute(text, code, rax=before, cf=1)
    assert cpu.rax == after
    assert flags_of(cpu) == flags


def test_neg_of_the_smallest_number_overflows_and_stays() -> None:
    cpu = execute("neg rax", "48 f7 d8", rax=1 << 63)
    assert cpu.rax == 1 << 63
    assert flags_of(cpu) == "CF PF SF OF"


def test_neg_of_zero_clears_carry() -> None:
    cpu = execute("neg eax", "f7 d8", rax=0, cf=1)
    assert flags_of(cpu) == "PF ZF"


def test_xadd_returns_the_old_destination_in_the_source() -> None:
    cpu = make_cpu(rbx=DATA, rax=5)
    cpu.memory.write(DATA, (7).to_bytes(8, "little"))
    run_one(cpu, "lock xadd [rbx], rax", bytes.fromhex("f0 48 0f c1 03"))
    assert cpu.rax == 7
    assert cpu.load(DATA, 8) == 12


def test_xadd_of_a_register_with_itself_keeps_the_sum() -> None:
    cpu = execute("xadd ecx, ecx", "0f c1 c9", rcx=0x21)
    assert cpu.rcx == 0x42


def test_cmpxchg_stores_the_source_where_the_accumulator_matches() -> None:
    cpu = make_cpu(rbx=DATA, rax=7, rcx=9)
    cpu.memory.write(DATA, (7).to_bytes(4, "little"))
    run_one(cpu, "lock cmpxchg [rbx], ecx", bytes.fromhex("f0 0f b1 0b"))
    assert (cpu.load(DATA, 4), cpu.rax, cpu.zf) == (9, 7, True)


def test_cmpxchg_loads_the_accumulator_where_it_does_not_match() -> None:
    cpu = execute("cmpxchg edx, ecx", "0f b1 ca", rax=1, rcx=9, rdx=0xFFFF_FFFF_0000_0002)
    assert (cpu.rax, cpu.rcx) == (2, 9)
    assert cpu.rdx == 0xFFFF_FFFF_0000_0002  # not written, so not zero-extended
    assert flags_of(cpu) == "CF PF AF SF"


def test_cmpxchg_that_fails_still_writes_and_so_faults_through_a_read_only_segment() -> None:
    cpu = make_cpu(32, rbx=DATA, rax=1)
    cpu.ds.load_raw(0x10, 0, 0xFFFF_FFFF, 0xC091)
    fault = fault_of(cpu, "cmpxchg [ebx], ecx", bytes.fromhex("0f b1 0b"))
    assert isinstance(fault, GeneralProtection)


def test_cmpxchg8b_exchanges_eight_bytes_and_only_zf() -> None:
    cpu = make_cpu(32, rdi=DATA, rax=0x1111_1111, rdx=0x2222_2222, rbx=3, rcx=4, cf=1)
    cpu.memory.write(DATA, bytes.fromhex("11111111 22222222"))
    run_one(cpu, "cmpxchg8b [edi]", bytes.fromhex("0f c7 0f"))
    assert cpu.load(DATA, 8) == 4 << 32 | 3
    assert flags_of(cpu) == "CF ZF"


def test_cmpxchg16b_loads_rdx_rax_where_they_differ() -> None:
    cpu = make_cpu(rdi=DATA, rax=1, rdx=2, zf=1)
    cpu.memory.write(DATA, bytes(range(16)))
    run_one(cpu, "cmpxchg16b [rdi]", bytes.fromhex("48 0f c7 0f"))
    assert (cpu.rax, cpu.rdx) == (0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908)
    assert not cpu.zf


def test_cmpxchg16b_of_a_misaligned_operand_is_a_general_protection_fault() -> None:
    cpu = make_cpu(rdi=DATA + 8)
    fault = fault_of(cpu, "cmpxchg16b [rdi]", bytes.fromhex("48 0f c7 0f"))
    assert isinstance(fault, GeneralProtection) and fault.error_code == 0


def test_adcx_and_adox_touch_one_flag_each() -> None:
    cpu = execute("adcx eax, ebx", "66 0f 38 f6 c3", rax=0xFFFF_FFFF, rbx=0, cf=1, zf=0, of=1)
    assert (cpu.rax, flags_of(cpu)) == (0, "CF OF")
    cpu = execute("adox eax, ebx", "f3 0f 38 f6 c3", rax=0xFFFF_FFFF, rbx=0, cf=0, zf=0, of=1)
    assert (cpu.rax, flags_of(cpu)) == (0, "OF")


@given(a=st.integers(0, M64), b=st.integers(0, M64), carry=st.booleans())
def test_sbb_undoes_adc(a: int, b: int, carry: bool) -> None:
    cpu = execute("adc rax, rbx", "48 11 d8", rax=a, rbx=b, cf=int(carry))
    assert cpu.rax | bool(cpu.cf) << 64 == a + b + carry
    cpu.cf = carry
    run_one(cpu, "sbb rax, rbx", bytes.fromhex("48 19 d8"))
    assert cpu.rax == a
