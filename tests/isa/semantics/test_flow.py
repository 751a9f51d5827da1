"""Near transfers and their limits. The sixteen conditions are in `test_convert`."""

from __future__ import annotations

import pytest

from isa.exits import MmioWrite
from isa.faults import GeneralProtection, StackFault
from tests.isa.machine import execute, fault_of, make_cpu, run_one

STACK = 0x8000
M64 = (1 << 64) - 1
EDGE = 0x7FFF_FFFF_FFFE  # two bytes below the end of the canonical half


def test_jmp_with_a_16_bit_operand_size_clears_the_upper_half_of_eip() -> None:
    cpu = make_cpu(32, rip=0x1_2000)
    run_one(cpu, "jmp word 0x2104", bytes.fromhex("66 e9 00 01"))
    assert cpu.rip == 0x2104


def test_jmp_through_a_register() -> None:
    assert execute("jmp rax", "ff e0", rax=0xFFFF_8000_0000_0000).rip == 0xFFFF_8000_0000_0000


def test_call_pushes_the_next_address_and_ret_returns_to_it() -> None:
    cpu = execute("call 0x0000000000001105", "e8 00 01 00 00", rsp=STACK)
    assert (cpu.rip, cpu.rsp) == (0x1105, STACK - 8)
    run_one(cpu, "ret", bytes.fromhex("c3"))
    assert (cpu.rip, cpu.rsp) == (0x1005, STACK)


def test_call_through_rsp_takes_its_value_before_the_push() -> None:
    cpu = execute("call rsp", "ff d4", rsp=STACK)
    assert (cpu.rip, cpu.rsp) == (STACK, STACK - 8)


def test_call_through_memory_on_the_stack_reads_before_the_push() -> None:
    cpu = make_cpu(rsp=STACK)
    cpu.memory.write(STACK, (0x2222).to_bytes(8, "little"))
    run_one(cpu, "call qword [rsp]", bytes.fromhex("ff 14 24"))
    assert (cpu.rip, cpu.load(STACK - 8, 8)) == (0x2222, 0x1003)


def test_ret_with_an_immediate_drops_the_arguments() -> None:
    cpu = make_cpu(32, rsp=STACK)
    cpu.memory.write(STACK, (0x1234).to_bytes(4, "little"))
    run_one(cpu, "ret 0x8", bytes.fromhex("c2 08 00"))
    assert (cpu.rip, cpu.rsp) == (0x1234, STACK + 12)


def test_ret_of_a_word_zero_extends_into_eip() -> None:
    cpu = make_cpu(32, rsp=STACK)
    cpu.memory.write(STACK, (0xFFFF_1234).to_bytes(4, "little"))
    run_one(cpu, "retw", bytes.fromhex("66 c3"))
    assert (cpu.rip, cpu.rsp) == (0x1234, STACK + 2)


def test_call_to_a_stack_in_a_device_page_leaves_before_anything_changes() -> None:
    cpu = make_cpu(rsp=0x20_0008, code=bytes.fromhex("e8 00 01 00 00"))
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    assert cpu.step() == MmioWrite(0x20_0000, 8, 0x1005)
    assert (cpu.rip, cpu.rsp) == (0x1000, 0x20_0008)
    cpu.complete()
    cpu.step()
    assert (cpu.rip, cpu.rsp) == (0x1105, 0x20_0000)


# ---- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("eb 40", "jmp short 0x00001042"),
        ("74 40", "je short 0x00001042"),
        ("e8 3b 00 00 00", "call 0x00001040"),
        ("e2 40", "loop 0x00001042"),
        ("ff e0", "jmp eax"),
        ("ff d0", "call eax"),
        ("c3", "ret"),
        ("c2 04 00", "ret 0x4"),
    ],
)
def test_near_branch_beyond_the_code_segment_limit_faults_at_the_branch(code: str, text: str) -> None:
    cpu = make_cpu(32, rax=0x1040, rcx=5, zf=1, rsp=STACK)
    cpu.cs.load_raw(0x08, 0, 0x103F, 0x409B)
    cpu.update_mode()
    cpu.memory.write(STACK, (0x1040).to_bytes(4, "little"))
    fault = fault_of(cpu, text, bytes.fromhex(code))
    assert isinstance(fault, GeneralProtection) and fault.error_code == 0
    assert "limit" in fault.why or "CS" in fault.why


def test_branch_that_is_not_taken_does_not_look_at_its_target() -> None:
    cpu = make_cpu(32, zf=0)
    cpu.cs.load_raw(0x08, 0, 0x103F, 0x409B)
    cpu.update_mode()
    run_one(cpu, "je short 0x00001042", bytes.fromhex("74 40"))
    assert cpu.rip == 0x1002


@pytest.mark.parametrize(("code", "text"), [("ff e0", "jmp rax"), ("ff d0", "call rax"), ("c3", "ret")])
def test_near_branch_to_a_non_canonical_address_faults_at_the_branch(code: str, text: str) -> None:
    cpu = make_cpu(rax=1 << 47, rsp=STACK)
    cpu.memory.write(STACK, (1 << 47).to_bytes(8, "little"))
    assert isinstance(fault_of(cpu, text, bytes.fromhex(code)), GeneralProtection)


def test_ret_from_a_non_canonical_stack_is_a_stack_fault() -> None:
    assert isinstance(fault_of(make_cpu(rsp=1 << 62), "ret", bytes.fromhex("c3")), StackFault)


# ---- counters ------------------------------------------------------------------------------------------


def test_loop_counts_the_register_of_the_address_size() -> None:
    cpu = execute("loop 0x0000000000001000", "e2 fe", rcx=0x1_0000_0000, cf=1)
    assert (cpu.rip, cpu.rcx) == (0x1000, 0xFFFF_FFFF)
    cpu = execute("loop 0x0000000000001001, ecx", "67 e2 fe", rcx=0x5_0000_0001)
    assert (cpu.rip, cpu.rcx) == (0x1003, 0)
    cpu = execute("loop 0x00001001, cx", "67 e2 fe", 32, rcx=0x5_0000)
    assert (cpu.rip, cpu.rcx) == (0x1001, 0x5_FFFF)


@pytest.mark.parametrize(
    ("code", "text", "zero", "count", "taken"),
    [
        ("e1 fe", "loope 0x0000000000001000", 1, 2, True),
        ("e1 fe", "loope 0x0000000000001000", 0, 2, False),
        ("e1 fe", "loope 0x0000000000001000", 1, 1, False),
        ("e0 fe", "loopne 0x0000000000001000", 0, 2, True),
        ("e0 fe", "loopne 0x0000000000001000", 1, 2, False),
    ],
)
def test_loope_and_loopne_also_look_at_zf(code: str, text: str, zero: int, count: int, taken: bool) -> None:
    cpu = execute(text, code, rcx=count, zf=zero)
    assert (cpu.rip, cpu.rcx) == (0x1000 if taken else 0x1002, count - 1)


@pytest.mark.parametrize(
    ("bits", "code", "text", "rcx", "taken"),
    [
        (64, "e3 10", "jrcxz 0x0000000000001012", 0, True),
        (64, "e3 10", "jrcxz 0x0000000000001012", 1 << 63, False),
        (64, "67 e3 10", "jecxz 0x0000000000001013", 1 << 63, True),
        (32, "67 e3 10", "jcxz 0x00001013", 0x1_0000, True),
        (32, "67 e3 10", "jcxz 0x00001013", 1, False),
    ],
)
def test_jump_if_the_counter_is_zero(bits: int, code: str, text: str, rcx: int, taken: bool) -> None:
    cpu = execute(text, code, bits, rcx=rcx)
    size = len(bytes.fromhex(code))
    assert cpu.rip == 0x1000 + size + (0x10 if taken else 0)


def test_direct_jump_out_of_the_canonical_half_faults() -> None:
    cpu = make_cpu()
    cpu.memory.add_ram(EDGE & (1 << 48) - 0x1000, 0x1000)
    cpu.rip = EDGE - 2
    fault = fault_of(cpu, "jmp short 0x0000800000000010", bytes.fromhex("eb 12"))
    assert isinstance(fault, GeneralProtection)
