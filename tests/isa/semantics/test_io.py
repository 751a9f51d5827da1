"""IN, OUT, INS, OUTS and the I/O permission bitmap."""

from __future__ import annotations

import pytest

from isa.cpu import Cpu
from isa.exits import IoRead, IoWrite
from isa.faults import GeneralProtection
from isa.state import CR0_PE
from tests.isa.machine import ALL_FEATURES, fault_of, make_cpu

TSS = 0x6000
MAP_BASE = 0x68


def user_cpu(bits: int = 32, limit: int = MAP_BASE + 0x2000, iopl: int = 0, **registers: int) -> Cpu:
    """CPL 3, with a TSS whose I/O permission bitmap denies everything."""
    cpu = make_cpu(bits, None, ALL_FEATURES, **registers)
    cpu.cpl, cpu.iopl = 3, iopl
    cpu.update_mode()
    cpu.tr.load_raw(0x28, TSS, limit, 0x8B)
    cpu.memory.write(TSS + 0x66, MAP_BASE.to_bytes(2, "little"))
    cpu.memory.write(TSS + MAP_BASE, b"\xff" * 0x2001)
    return cpu


def allow(cpu: Cpu, port: int) -> None:
    at = TSS + MAP_BASE + (port >> 3)
    byte = cpu.memory.read(at, 1)[0] & ~(1 << (port & 7))
    cpu.memory.write(at, bytes([byte]))


def exit_of(cpu: Cpu, code: str) -> object:
    cpu.memory.write(0x1000, bytes.fromhex(code))
    return cpu.step()


@pytest.mark.parametrize(
    ("code", "width", "answer", "rax"),
    [
        ("e4 60", 1, 0x1FF, 0xAAAA_AAAA_AAAA_AAFF),
        ("66 e5 60", 2, 0x1_1234, 0xAAAA_AAAA_AAAA_1234),
        ("e5 60", 4, 0x1_8765_4321, 0x8765_4321),
        ("48 e5 60", 4, 0x8765_4321, 0x8765_4321),
    ],
)
def test_in_leaves_with_io_read_and_finishes_with_the_answer(
    code: str, width: int, answer: int, rax: int
) -> None:
    cpu = make_cpu(rax=0xAAAA_AAAA_AAAA_AAAA)
    assert exit_of(cpu, code) == IoRead(0x60, width)
    assert (cpu.rip, cpu.rax) == (0x1000, 0xAAAA_AAAA_AAAA_AAAA)
    cpu.complete(answer)
    assert cpu.step() is None
    assert (cpu.rip, cpu.rax) == (0x1000 + len(bytes.fromhex(code)), rax)


def test_out_to_dx_writes_the_accumulator() -> None:
    cpu = make_cpu(rdx=0xFFFF_03F8, rax=0x1234)
    assert exit_of(cpu, "ee") == IoWrite(0x3F8, 1, 0x34)
    cpu.complete()
    assert cpu.step() is None
    assert cpu.rip == 0x1001


# ---- permission ----------------------------------------------------------------------------------------


def test_user_code_at_iopl_3_needs_no_bitmap() -> None:
    assert exit_of(user_cpu(iopl=3, limit=0x67), "e4 60") == IoRead(0x60, 1)


def test_user_code_may_use_a_port_that_the_bitmap_allows() -> None:
    cpu = user_cpu()
    allow(cpu, 0x60)
    assert exit_of(cpu, "e4 60") == IoRead(0x60, 1)


def test_user_code_may_not_use_a_port_that_the_bitmap_denies() -> None:
    fault = fault_of(user_cpu(), "in al, 0x60", bytes.fromhex("e4 60"))
    assert isinstance(fault, GeneralProtection) and fault.error_code == 0
    assert "0x60" in fault.why


def test_every_port_of_a_wide_access_must_be_allowed_across_the_byte() -> None:
    cpu = user_cpu(rdx=0x67)
    allow(cpu, 0x67)
    assert isinstance(fault_of(cpu, "in ax, dx", bytes.fromhex("66 ed")), GeneralProtection)
    allow(cpu, 0x68)
    assert exit_of(cpu, "66 ed") == IoRead(0x67, 2)


def test_bitmap_byte_beyond_the_limit_denies() -> None:
    cpu = user_cpu(limit=MAP_BASE + 0x60 // 8)  # its second byte lies outside
    allow(cpu, 0x60)
    assert isinstance(fault_of(cpu, "in al, 0x60", bytes.fromhex("e4 60")), GeneralProtection)
    cpu.tr.limit += 1
    assert exit_of(cpu, "e4 60") == IoRead(0x60, 1)


def test_16_bit_tss_has_no_bitmap() -> None:
    cpu = user_cpu()
    allow(cpu, 0x60)
    cpu.tr.type = 3
    fault = fault_of(cpu, "in al, 0x60", bytes.fromhex("e4 60"))
    assert isinstance(fault, GeneralProtection) and "TSS" in fault.why


def test_virtual_8086_mode_asks_the_bitmap_whatever_iopl_says() -> None:
    cpu = user_cpu(16, iopl=3)
    cpu.cr0 |= CR0_PE
    cpu.vm = 1
    for segment in cpu.segments:
        segment.load_v86(0)
    cpu.update_mode()
    assert isinstance(fault_of(cpu, "out 0x60, al", bytes.fromhex("e6 60")), GeneralProtection)
    allow(cpu, 0x60)
    assert exit_of(cpu, "e6 60") == IoWrite(0x60, 1, 0)


@pytest.mark.parametrize(("code", "text"), [("f3 6c", "rep insb"), ("f3 6e", "rep outsb")])
def test_repeated_io_checks_the_port_even_for_no_element(code: str, text: str) -> None:
    cpu = user_cpu(rcx=0, rdx=0x60, rdi=0x3000, rsi=0x3000)
    assert isinstance(fault_of(cpu, text, bytes.fromhex(code)), GeneralProtection)


# ---- strings -------------------------------------------------------------------------------------------


def test_rep_ins_reads_the_port_once_per_element() -> None:
    cpu = make_cpu(rdx=0x1F0, rdi=0x3000, rcx=3)
    cpu.memory.write(0x1000, bytes.fromhex("f3 66 6d"))
    for n in range(3):
        reason = cpu.step()
        while reason is None:  # the boundary between two elements
            reason = cpu.step()
        assert reason == IoRead(0x1F0, 2)
        assert (cpu.rcx, cpu.rdi) == (3 - n, 0x3000 + 2 * n)
        cpu.complete(0x1111 * (n + 1))
    cpu.step()
    assert cpu.memory.read(0x3000, 6) == bytes.fromhex("1111 2222 3333")
    assert (cpu.rip, cpu.rcx, cpu.rdi) == (0x1003, 0, 0x3006)


def test_ins_to_memory_that_cannot_be_written_does_not_read_the_port() -> None:
    cpu = make_cpu(32, rdx=0x1F0, rdi=0x3000)
    cpu.es.load_raw(0x10, 0, 0xFFFF_FFFF, 0xC091)
    assert isinstance(fault_of(cpu, "insb", b"\x6c"), GeneralProtection)


def test_outs_from_memory_that_cannot_be_read_does_not_write_the_port() -> None:
    cpu = make_cpu(32, rdx=0x1F0, rsi=0x3000)
    cpu.ds.load_raw(0x10, 0, 0x2FFF, 0x4093)
    assert isinstance(fault_of(cpu, "outsb", b"\x6e"), GeneralProtection)


def test_outs_follows_the_direction_flag() -> None:
    cpu = make_cpu(rdx=0x3F8, rsi=0x3003, df=1)
    cpu.memory.write(0x3003, b"Z")
    assert exit_of(cpu, "6e") == IoWrite(0x3F8, 1, 0x5A)
    cpu.complete()
    cpu.step()
    assert cpu.rsi == 0x3002
