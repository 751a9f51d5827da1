"""Instructions that blocks call: what a device sees meanwhile, what goes out, and when the block ends."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import cast

import numpy as np
import pytest

from isa.assembler import assemble
from isa.blocks import MAX_BAILS
from isa.cpu import Cpu
from isa.exits import Budget, ExitReason, IoRead, MmioRead, TripleFault
from isa.state import (
    CR0_MP,
    CR0_NE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    GPR_NAMES,
    XMM_NAMES,
    YMM_HIGH_NAMES,
    FpuState,
)
from tests.isa.machine import ALL_FEATURES, CODE, make_cpu

DATA, DEVICE, STACK = 0x2_0000, 0x3_0000, 0x4_0000
State = tuple[object, ...]


def machine(text: str, use_blocks: bool, **registers: int) -> Cpu:
    """A CPU with SSE on that translates at the second arrival and looks for regions at the second call."""
    cpu = make_cpu(64, assemble(text, origin=CODE), ALL_FEATURES, rsp=STACK, **registers)
    cpu.cr0 |= CR0_MP | CR0_NE
    cpu.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT
    cpu.update_mode()
    cpu.use_blocks = use_blocks
    cpu.hot = cpu.sample_every = cpu.first_due = 1
    cpu.recorded = 12
    return cpu


def state(cpu: Cpu) -> State:
    """All that a program can see, but RAM."""
    registers = (getattr(cpu, name) for name in (*GPR_NAMES, *XMM_NAMES))
    return (cpu.rip, cpu.rflags(), cpu.retired, cpu.mxcsr, *registers)


def called(cpu: Cpu) -> set[int]:
    """The addresses of the instructions that the blocks of the present mode call."""
    runs = {cast(FunctionType, block.run) for block in cpu.code.blocks.values()}
    return {insn.ip for run in runs for insn in run.__globals__["CALLED"].values()}


def with_ports(cpu: Cpu, seen: list[State], on_read: Callable[[Cpu], None] | None = None) -> Cpu:
    """Ports that note what they see: reads answer with a number that changes, `on_read` may do more."""

    def port_in(port: int, size: int) -> int:
        seen.append(("in", port, size, state(cpu)))
        if on_read is not None:
            on_read(cpu)
        return (len(seen) * 0x9E37_79B9 >> 3) & (1 << 8 * size) - 1

    def port_out(port: int, size: int, value: int) -> None:
        seen.append(("out", port, size, value, state(cpu)))

    cpu.port_in, cpu.port_out = port_in, port_out
    return cpu


def agree(text: str, stops: range, on_read: Callable[[Cpu], None] | None = None, **registers: int) -> Cpu:
    """Both engines to each of the stops, with the same accesses to ports; the translated machine."""
    sights: tuple[list[State], list[State]] = ([], [])
    stepped, translated = (
        with_ports(machine(text, blocks, **registers), seen, on_read)
        for blocks, seen in zip((False, True), sights, strict=True)
    )
    for until in stops:
        assert isinstance(stepped.run(until), Budget)
        assert isinstance(translated.run(until), Budget)
        assert state(translated) == state(stepped), f"at {until}"
        assert sights[0] == sights[1]
        assert np.array_equal(stepped.memory.pool, translated.memory.pool)
    assert called(translated)
    return translated


# The flags of DEC (without CF) and of ADD go through IN; a conditional jump on each side
POLL = """
again:
    add rbx, rsi
    dec rcx
    in al, 0x40
    jz skip
    adc rdi, 0
skip:
    test al, 1
    jz even
    out 0x41, al
    inc r8
even:
    lea rdx, [rdx+rbx*2]
    xor r9, rdx
    in eax, 0x42
    js again
    add r10, rax
    jmp again
"""


@pytest.mark.parametrize("step", (1, 7, 61))
def test_ports_see_the_registers_flags_and_counts_of_the_step_engine(step: int) -> None:
    cpu = agree(POLL, range(600, 600 + 60 * step, step), rsi=0x7FFF_FFFF_1234_5678, rcx=5)
    assert len(called(cpu)) == 3


def test_a_loop_around_an_access_to_a_port_is_one_call_of_one_function() -> None:
    cpu = with_ports(
        machine("again: in al, 0x40\nadd rbx, rax\ndec rcx\njnz again\nhlt", True, rcx=1 << 40), []
    )
    cpu.run(1_000)
    (block,) = cpu.code.blocks.values()
    before = block.samples
    cpu.run(50_000)
    assert block.samples - before <= 2
    assert called(cpu) == {CODE}


def test_doubles_that_a_block_holds_in_halves_are_whole_while_it_calls() -> None:
    text = """
    again:
        addsd xmm0, xmm1
        mulsd xmm2, xmm0
        unpcklpd xmm3, xmm0
        in al, 0x40
        addsd xmm1, xmm3
        out 0x41, al
        jmp again
    """
    agree(text, range(300, 420, 7), xmm0=0x3FF0 << 48, xmm1=0x4008 << 48 | 5 << 64, xmm2=0x3FF8 << 48)


def test_an_exit_out_of_a_block_leaves_what_the_step_engine_leaves() -> None:
    found: list[list[tuple[ExitReason, State]]] = []
    for use_blocks in (False, True):
        exits: list[tuple[ExitReason, State]] = []
        cpu = machine(POLL.replace("out 0x41, al", "nop"), use_blocks, rsi=77, rcx=9)
        while cpu.retired < 700:
            reason = cpu.run(700)
            exits.append((reason, state(cpu)))
            if isinstance(reason, IoRead):
                cpu.complete(len(exits) * 37 & 0xFF)
        found.append(exits)
    assert called(cpu)
    assert found[0] == found[1]


def test_an_interrupt_that_an_access_makes_due_comes_before_the_next_instruction() -> None:
    text = f"""
        lidt [{DATA:#x}]
        sti
    again:
        add rbx, 3
        in al, 0x40
        inc rcx
        jmp again
    handler:
        mov r8, rcx
        add r9, [rsp]
        iretq
    """
    handler = CODE + len(assemble(text.partition("    handler:")[0], origin=CODE))

    def on_read(cpu: Cpu) -> None:
        if not cpu.rcx % 11:
            cpu.injected.append(0x30)
            cpu.request_attention()

    sights: tuple[list[State], list[State]] = ([], [])
    cpus = [with_ports(machine(text, blocks), seen, on_read)
            for blocks, seen in zip((False, True), sights, strict=True)]  # fmt: skip
    gdt, idt = DATA + 0x100, DATA + 0x1000
    for cpu in cpus:
        cpu.memory.write(DATA, (0xFFF).to_bytes(2, "little") + idt.to_bytes(8, "little"))
        cpu.memory.write(gdt + 8, (0x00AF_9B00_0000_FFFF).to_bytes(8, "little"))
        cpu.gdtr.base, cpu.gdtr.limit = gdt, 0xF
        gate = handler.to_bytes(2, "little") + b"\x08\x00\x00\x8e" + bytes(10)
        cpu.memory.write(idt + 0x300, gate)
        cpu.run(900)
    assert state(cpus[0]) == state(cpus[1])
    assert cpus[0].r9 and sights[0] == sights[1]


def device_reader(text: str, use_blocks: bool, **registers: int) -> Cpu:
    """A CPU whose page at DEVICE is a device that answers 5 the short way; run until its load is called."""
    cpu = machine(text, use_blocks, rdi=DEVICE, **registers)
    cpu.memory.set_mmio([(DEVICE, 0x1000)])
    cpu.mmio_load = lambda gpa, size: 5
    cpu.mmio_store = lambda gpa, size, value: True
    assert isinstance(cpu.run(8 * MAX_BAILS), Budget)
    if use_blocks:
        assert called(cpu)
    return cpu


def both(text: str, change: Callable[[Cpu], None], until: int, **registers: int) -> list[ExitReason]:
    """The exits of both engines after `change`, their states compared."""
    cpus = [device_reader(text, blocks, **registers) for blocks in (False, True)]
    reasons = []
    for cpu in cpus:
        change(cpu)
        reasons.append(cpu.run(cpu.retired + until))
    assert state(cpus[0]) == state(cpus[1])
    assert np.array_equal(cpus[0].memory.pool, cpus[1].memory.pool)
    return reasons


READ = "again: add rbx, 1\nmov rax, [rdi]\nadc rcx, rax\njmp again"


def test_a_called_load_reads_ram_as_well() -> None:
    def change(cpu: Cpu) -> None:
        cpu.rdi = DATA
        cpu.memory.write(DATA, (12345).to_bytes(8, "little"))

    assert all(isinstance(reason, Budget) for reason in both(READ, change, 100))


def test_a_fault_of_a_called_load_has_the_address_of_the_load() -> None:
    def change(cpu: Cpu) -> None:
        cpu.rdi = 1 << 62  # not canonical, and there is no IDT

    stepped, translated = both(READ, change, 100)
    assert isinstance(stepped, TripleFault)
    assert str(stepped) == str(translated)


def test_an_exit_of_a_called_load_names_it() -> None:
    def change(cpu: Cpu) -> None:
        cpu.mmio_load = cpu.no_mmio_load

    stepped, translated = both(READ, change, 100)
    assert isinstance(stepped, MmioRead) and stepped == translated


def test_a_called_store_into_the_code_behind_it_ends_the_block() -> None:
    text = "again: mov [rdi], rdx\nadd rcx, 1\nmov rax, [rdi]\njmp again"

    def change(cpu: Cpu) -> None:
        cpu.rdi = CODE + 3  # the ADD, and more
        cpu.rdx = int.from_bytes(assemble("add rcx, 7\nhlt"), "little")

    stepped, translated = both(text, change, 6, rdx=1)
    assert stepped == translated


def test_flags_that_a_called_instruction_reads_and_writes_are_settled() -> None:
    agree_text = "again: add rbx, rsi\nadc rax, [rdi]\nsbb rcx, [rdi]\ninc rdx\njmp again"
    cpus = [device_reader(agree_text, blocks, rsi=(1 << 63) + 12345) for blocks in (False, True)]
    for until in range(2_000, 2_040):
        for cpu in cpus:
            cpu.run(until)
        assert state(cpus[0]) == state(cpus[1])


# Definitions with loops and early returns: no statements, but calls
LONG = {
    "x87": """
        again:
            fild qword ptr [rdi]
            fmulp st(1), st(0)
            fld1
            faddp st(1), st(0)
            fcomi st(0), st(1)
            adc rbx, 0
            fcmovb st(0), st(1)
            fst qword ptr [rdi+8]
            fnstsw ax
            add rdx, rax
            inc qword ptr [rdi]
            dec rcx
            jmp again
    """,
    "rounding": """
        again:
            fld qword ptr [rdi+8]
            fldcw [rdi+16]
            frndint
            fistp qword ptr [rdi+24]
            fldcw [rdi+18]
            add rbx, [rdi+24]
            add qword ptr [rdi+8], rbx
            fwait
            jmp again
    """,
    "stack overflow": "again: fld1\nadd rbx, 3\nfxam\nfnstsw ax\nadd rdx, rax\njmp again",
    "identification": """
        again:
            mov rax, rsi
            cpuid
            add r8, rax
            adc r9, rbx
            rol r10, 1
            xor r10, rdx
            rdtsc
            add r11, rax
            mov ecx, 0x10
            rdmsr
            sub r12, rax
            rdrand r13
            adc r14, 1
            inc rsi
            and esi, 0xF
            jmp again
    """,
    "bits": """
        again:
            pdep rax, rbx, rsi
            pext rdx, rbx, rax
            add rbx, rdx
            crc32 rcx, rbx
            adc r8, rcx
            jmp again
    """,
    "a register that was 32 bits wide": """
        again:
            mov eax, ebx
            pdep rax, rbx, rsi
            mov ecx, eax
            add rdx, rcx
            lea rbx, [rbx+rdx*2+1]
            jmp again
    """,
    "doubles": """
        again:
            addsd xmm0, xmm2
            vfmadd231sd xmm2, xmm0, xmm1
            mulsd xmm1, xmm2
            addsd xmm1, xmm0
            vfnmadd213sd xmm0, xmm1, xmm2
            jmp again
    """,
    "lanes": """
        again:
            vfmadd231ps ymm2, ymm0, ymm1
            vpermq ymm3, ymm2, 0x1B
            vpermd ymm4, ymm3, ymm2
            vpaddd ymm0, ymm4, ymm2
            vfmsub213sd xmm1, xmm3, [rdi]
            vmovq rax, xmm1
            add rbx, rax
            jmp again
    """,
}


def long_machine(text: str, use_blocks: bool) -> Cpu:
    """With x87, AVX, numbers in memory, and a control word at 16 that rounds up, at 18 one that does not."""
    cpu = machine(text, use_blocks, rdi=DATA, rbx=0x1234_5678_9ABC_DEF1, rsi=0xF0F0_3C3C_5AA5_9669, rcx=9)
    cpu.cr4 |= 1 << 18
    cpu.xcr0 = 7
    cpu.update_mode()
    cpu.fpu.init()
    words = (3).to_bytes(8, "little") + (0x4009_21FB_5444_2D18).to_bytes(8, "little") + b"\x7f\x0b\x7f\x03"
    cpu.memory.write(DATA, words)
    cpu.xmm0, cpu.xmm1 = 0x3FC0_0000_3F80_0000_4040_0000_BF80_0000, 0x3FF8 << 48
    return cpu


def whole(cpu: Cpu) -> tuple[object, ...]:
    """`state` with x87 and the upper halves of the vector registers."""
    fpu = cpu.fpu
    upper = tuple(getattr(cpu, name) for name in YMM_HIGH_NAMES)
    return (*state(cpu), *upper, *(repr(getattr(fpu, name)) for name in FpuState.__slots__))


@pytest.mark.parametrize("name", LONG)
def test_definitions_that_are_no_statements_are_called_and_do_the_same(name: str) -> None:
    stepped, translated = (long_machine(LONG[name], blocks) for blocks in (False, True))
    for until in range(300, 420, 7):
        stepped.run(until)
        translated.run(until)
        assert whole(translated) == whole(stepped), f"at {until}"
        assert np.array_equal(stepped.memory.pool, translated.memory.pool)
    assert called(translated)


def test_device_not_available_and_x87_errors_out_of_a_block_are_those_of_the_step_engine() -> None:
    ends = []
    for change in ("task switched", "unmasked"):
        for blocks in (False, True):
            cpu = long_machine(LONG["x87"], blocks)
            cpu.run(400)
            assert not blocks or called(cpu)
            if change == "task switched":
                cpu.cr0 |= 1 << 3
                cpu.update_mode()
            else:
                cpu.fpu.control &= ~0x3F  # the next inexact result is an error, which waits for one more
            end = cpu.run(800)
            assert isinstance(end, TripleFault)  # there is no IDT
            ends.append((str(end), whole(cpu)))
    assert ends[0] == ends[1] and ends[2] == ends[3]
    assert "#NM" in ends[0][0] and "#MF" in ends[2][0]
