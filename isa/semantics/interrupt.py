"""Software interrupts and the way back: INT n, INT3, INT1, INTO, BOUND, IRET in every mode.

Delivery itself is `isa.interrupts`. Sources: SDM Vol. 2, INT n, IRET, BOUND; SDM Vol. 3, "8086 Emulation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.descriptors import check_code_return, check_entry, check_return_stack, set_accessed
from isa.faults import BoundRange, Fault, GeneralProtection
from isa.interrupts import INT1, INT3, INT_N, INTO
from isa.operands import Memory, Operand, Width
from isa.semantics.far import check_real_target, enter_outer, enter_real
from isa.semantics.registry import insn
from isa.state import (
    AC_BIT,
    CR0_PE,
    CR4_VME,
    EFER_LMA,
    ID_BIT,
    IF_BIT,
    IOPL_SHIFT,
    M16,
    NT_BIT,
    RF_BIT,
    TF_BIT,
    VIF_BIT,
    VIP_BIT,
    VM_BIT,
)
from isa.tasks import RFLAGS_VALID, return_to_previous_task

if TYPE_CHECKING:
    from isa.cpu import Cpu

IOPL = 3 << IOPL_SHIFT
FLAGS_ALWAYS = 0x0DD5 | 1 << NT_BIT  # CF PF AF ZF SF TF DF OF NT: popped at any CPL
FLAGS_WIDE = 1 << RF_BIT | 1 << AC_BIT | 1 << ID_BIT  # popped with a 32- or 64-bit operand only
FLAGS_VIRTUAL = 1 << VIF_BIT | 1 << VIP_BIT  # popped at CPL 0 with a 32- or 64-bit operand


@insn("INT", inline=False)
def int_n(cpu: Cpu, vector: Operand) -> None:
    """Interrupt(imm8)"""
    cpu.software_interrupt(vector.value, INT_N)


@insn("INT3", inline=False)
def int3(cpu: Cpu) -> None:
    """Interrupt(3), the breakpoint of debuggers"""
    cpu.software_interrupt(3, INT3)


@insn("INT1", inline=False)
def int1(cpu: Cpu) -> None:
    """Interrupt(1) without a look at the gate's DPL and without a trace in DR6"""
    cpu.software_interrupt(1, INT1)


@insn("INTO", inline=False)
def into(cpu: Cpu) -> None:
    """IF OF = 1 THEN Interrupt(4)"""
    if cpu.of:
        cpu.software_interrupt(4, INTO)


@insn("BOUND")
def bound(cpu: Cpu, index: Operand, bounds: Memory) -> None:
    """IF index < bounds[0] OR index > bounds[1] (signed) THEN #BR"""
    at, size = bounds.offset, index.bytes  # two accesses: each has its own alignment check
    lower = cpu.read_data(bounds.segment, at, size)
    upper = cpu.read_data(bounds.segment, at + size & bounds.address_mask, size)
    sign = 1 << (index.bits - 1)
    if not lower ^ sign <= index.value ^ sign <= upper ^ sign:
        raise BoundRange(f"index {index.value:#x} outside {lower:#x}..{upper:#x}")


@insn("IRET", "IRETD", "IRETQ", sized=True, inline=False)
def iret(cpu: Cpu, width: Width) -> None:
    """RIP := Pop(); CS := Pop(); RFLAGS := Pop(); to an outer level or in 64-bit mode RSP and SS as well"""
    try:
        if not cpu.cr0 & CR0_PE:
            _iret_real(cpu, width.bytes)
        elif cpu.vm:
            _iret_v86(cpu, width.bytes)
        elif cpu.nt:
            if cpu.efer & EFER_LMA:
                raise GeneralProtection(0, "IRET with NT=1 in IA-32e mode")
            return_to_previous_task(cpu)
        else:
            _iret_protected(cpu, width.bytes)
    except Fault:
        cpu.nmi_blocked = False  # "Handling Multiple NMIs": unblocked even if IRET faults
        raise
    cpu.nmi_blocked = False
    cpu.request_attention()


def _pop_three(cpu: Cpu, size: int) -> tuple[int, int, int]:
    """Instruction pointer, CS selector, flags image; nothing is committed. #SS(0)."""
    rsp, mask, ss = cpu.rsp, cpu.stack_mask, cpu.ss
    return (
        cpu.read_data(ss, rsp & mask, size),
        cpu.read_data(ss, rsp + size & mask, size) & M16,
        cpu.read_data(ss, rsp + 2 * size & mask, size),
    )


def _pop_stack(cpu: Cpu, size: int) -> tuple[int, int]:
    """The stack pointer and SS selector that lie behind those three. #SS(0)."""
    rsp, mask, ss = cpu.rsp + 3 * size, cpu.stack_mask, cpu.ss
    return cpu.read_data(ss, rsp & mask, size), cpu.read_data(ss, rsp + size & mask, size) & M16


def _pop_five(cpu: Cpu, size: int) -> tuple[int, int, int, int, int]:
    """All five in one load, where no alignment check can come: 64-bit mode below level 3. #SS(0)."""
    frame = cpu.load_stack(cpu.rsp, 5 * size)
    bits = 8 * size
    low = (1 << bits) - 1
    return (
        frame & low,
        frame >> bits & M16,
        frame >> 2 * bits & low,
        frame >> 3 * bits & low,
        frame >> 4 * bits & M16,
    )


def _merged_flags(cpu: Cpu, popped: int, mask: int) -> int:
    return cpu.rflags() & ~mask | popped & mask


def _iret_real(cpu: Cpu, size: int) -> None:
    offset, selector, popped = _pop_three(cpu, size)
    check_real_target(cpu, offset)
    mask = FLAGS_ALWAYS | IOPL | 1 << IF_BIT
    if size == 4:
        mask |= FLAGS_WIDE
    cpu.set_rflags_raw(_merged_flags(cpu, popped, mask))
    cpu.set_stack_pointer(cpu.rsp + 3 * size)
    enter_real(cpu, selector, offset)


def _iret_v86(cpu: Cpu, size: int) -> None:
    """Sensitive to IOPL; with VME a 16-bit IRET at IOPL < 3 works on VIF instead of IF."""
    virtual = cpu.iopl < 3
    if virtual and not (cpu.cr4 & CR4_VME and size == 2):
        raise GeneralProtection(0, f"IRET in virtual-8086 mode, IOPL {cpu.iopl} < 3")
    offset, selector, popped = _pop_three(cpu, size)
    check_real_target(cpu, offset)
    mask = FLAGS_ALWAYS if virtual else FLAGS_ALWAYS | 1 << IF_BIT
    if size == 4:
        mask |= FLAGS_WIDE
    if virtual:
        if popped >> TF_BIT & 1 or (popped >> IF_BIT & 1 and cpu.vip):
            why = f"IRET in virtual-8086 mode pops {popped:#x}: TF, or IF with VIP={cpu.vip}"
            raise GeneralProtection(0, why)
        popped = popped & ~(1 << VIF_BIT) | (popped >> IF_BIT & 1) << VIF_BIT
        mask |= 1 << VIF_BIT
    cpu.set_rflags_raw(_merged_flags(cpu, popped, mask))
    cpu.set_stack_pointer(cpu.rsp + 3 * size)
    enter_real(cpu, selector, offset)


def _iret_protected(cpu: Cpu, size: int) -> None:
    whole = cpu.mode64 and cpu.cpl < 3
    if whole:
        offset, selector, popped, new_rsp, ss_selector = _pop_five(cpu, size)
    else:
        offset, selector, popped = _pop_three(cpu, size)
        if popped >> VM_BIT & 1 and not cpu.cpl and size == 4 and not cpu.efer & EFER_LMA:
            _to_v86(cpu, offset, selector, popped)
            return
    code = check_code_return(cpu, selector)
    level = selector & 3
    mask = FLAGS_ALWAYS
    if size > 2:
        mask |= FLAGS_WIDE
    if cpu.cpl <= cpu.iopl:
        mask |= 1 << IF_BIT
    if cpu.cpl == 0:
        mask |= IOPL | FLAGS_VIRTUAL if size > 2 else IOPL
    if level != cpu.cpl or cpu.mode64:
        if not whole:
            new_rsp, ss_selector = _pop_stack(cpu, size)
        stack = check_return_stack(cpu, ss_selector, code)
        check_entry(cpu, code, offset)
        set_accessed(cpu, code)
        enter_outer(cpu, code, offset, ss_selector, stack, new_rsp, 0)
    else:
        check_entry(cpu, code, offset)
        set_accessed(cpu, code)
        cpu.set_stack_pointer(cpu.rsp + 3 * size)
        cpu.enter_code(code, level, offset)
    cpu.set_rflags_raw(_merged_flags(cpu, popped, mask))
    cpu.update_mode()


def _to_v86(cpu: Cpu, offset: int, selector: int, popped: int) -> None:
    """CPL 0 with VM = 1 in the image: nine doublewords lead into virtual-8086 mode."""
    rsp, mask = cpu.rsp, cpu.stack_mask
    esp, ss, es, ds, fs, gs = (cpu.read_data(cpu.ss, rsp + 4 * n & mask, 4) for n in range(3, 9))
    if offset > M16:
        raise GeneralProtection(0, f"return to virtual-8086 mode, EIP {offset:#x} over 0xffff")
    cpu.set_rflags_raw(popped & RFLAGS_VALID)
    cpu.cpl = 3
    cpu.rip = offset
    cpu.rsp = esp
    for segment, value in zip(cpu.segments, (es, selector, ss, ds, fs, gs), strict=True):
        segment.load_v86(value & M16)
    cpu.update_mode()
