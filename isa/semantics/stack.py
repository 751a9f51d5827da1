"""PUSH, POP and their kin, ENTER and LEAVE. Segment registers are in `segment`, CALL and RET in `flow`.

The 64-bit forms have functions of their own: there the stack is flat and its pointer 64 bits wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import GeneralProtection
from isa.operands import Memory, Operand, Width
from isa.semantics.helpers import drop, low_part, push_value, stack_value
from isa.semantics.registry import insn
from isa.state import AC_BIT, CR4_VME, ID_BIT, IF_BIT, IOPL_SHIFT, M16, M64, NT_BIT, TF_BIT, VIF_BIT

if TYPE_CHECKING:
    from isa.cpu import Cpu

ARITHMETIC_FLAGS = 0xCD5  # CF PF AF ZF SF DF OF
POPF_ALWAYS = ARITHMETIC_FLAGS | 1 << TF_BIT | 1 << NT_BIT | 1 << AC_BIT | 1 << ID_BIT
PUSHF_VISIBLE = 0xFC_FFFF  # RF and VM read as zero


@insn("PUSH_R64", "PUSH_RM64", "PUSHQ_IMM8", "PUSHQ_IMM32")
def push64(cpu: Cpu, src: Operand) -> None:
    """RSP := RSP - 8; [RSP] := SRC"""
    top = cpu.rsp - 8 & M64
    cpu.store_stack(top, 8, src.value)
    cpu.rsp = top


@insn(
    "PUSH_R16", "PUSH_R32", "PUSH_RM16", "PUSH_RM32", "PUSH_IMM16", "PUSHD_IMM32", "PUSHW_IMM8", "PUSHD_IMM8"
)  # fmt: skip
def push(cpu: Cpu, src: Operand) -> None:
    """RSP := RSP - size; [RSP] := SRC"""
    push_value(cpu, src.bytes, src.value)


@insn("POP_R64")
def pop64(cpu: Cpu, dst: Operand) -> None:
    """DEST := [RSP]; RSP := RSP + 8"""
    value = cpu.load_stack(cpu.rsp, 8)
    cpu.rsp = cpu.rsp + 8 & M64
    dst.value = value  # after the increment: POP RSP keeps what was popped


@insn("POP_R16", "POP_R32")
def pop(cpu: Cpu, dst: Operand) -> None:
    """DEST := [RSP]; RSP := RSP + size"""
    value = stack_value(cpu, dst.bytes)
    drop(cpu, dst.bytes)
    dst.value = value


@insn("POP_RM16", "POP_RM32", "POP_RM64", inline=False)
def pop_memory(cpu: Cpu, dst: Memory) -> None:
    """DEST := [RSP]; RSP := RSP + size; an address of DEST is computed with the incremented RSP"""
    value = stack_value(cpu, dst.bytes)
    before = cpu.rsp
    drop(cpu, dst.bytes)
    if dst.in_memory:
        behind, offset = cpu.rsp, dst.offset
        cpu.rsp = before
        cpu.write_data(dst.segment, offset, dst.bytes, value)
        cpu.rsp = behind
    else:
        dst.value = value


@insn("PUSHAW", "PUSHAD", inline=False, sized=True)
def pusha(cpu: Cpu, width: Width) -> None:
    """PUSH AX, CX, DX, BX, the original SP, BP, SI, DI (or the 32-bit registers)"""
    top = cpu.rsp
    for value in (cpu.rax, cpu.rcx, cpu.rdx, cpu.rbx, cpu.rsp, cpu.rbp, cpu.rsi, cpu.rdi):
        top = top - width.bytes & cpu.stack_mask
        cpu.write_data(cpu.ss, top, width.bytes, value & width.mask)
    cpu.rsp = cpu.rsp & ~cpu.stack_mask | top


@insn("POPAW", "POPAD", inline=False, sized=True)
def popa(cpu: Cpu, width: Width) -> None:
    """POP DI, SI, BP, (nothing), BX, DX, CX, AX (or the 32-bit registers)"""
    size, mask = width.bytes, width.mask
    places = (0, 1, 2, 4, 5, 6, 7)  # SP's is not even read, which a device would notice
    values = [cpu.read_data(cpu.ss, cpu.rsp + n * size & cpu.stack_mask, size) for n in places]
    for name, value in zip(("rdi", "rsi", "rbp", "rbx", "rdx", "rcx", "rax"), values, strict=True):
        setattr(cpu, name, low_part(getattr(cpu, name), value, mask))
    drop(cpu, 8 * size)


@insn("PUSHFW", "PUSHFD", "PUSHFQ", sized=True, own_privilege=True)
def pushf(cpu: Cpu, width: Width) -> None:
    """PUSH(RFLAGS AND 00FCFFFFH)"""
    image = cpu.rflags() & PUSHF_VISIBLE
    if cpu.vm and cpu.iopl < 3:
        if width.bits != 16 or not cpu.cr4 & CR4_VME:
            raise GeneralProtection(0, f"PUSHF in virtual-8086 mode with IOPL {cpu.iopl}")
        image = image & ~(1 << IF_BIT) | cpu.vif << IF_BIT | 3 << IOPL_SHIFT
    push_value(cpu, width.bytes, image & width.mask)


@insn("POPFW", "POPFD", "POPFQ", sized=True, own_privilege=True)
def popf(cpu: Cpu, width: Width) -> None:
    """RFLAGS := POP(), for the flags that this mode, CPL and IOPL may change"""
    image = stack_value(cpu, width.bytes)
    changeable = POPF_ALWAYS
    if cpu.vm and cpu.iopl < 3:
        if width.bits != 16 or not cpu.cr4 & CR4_VME:
            raise GeneralProtection(0, f"POPF in virtual-8086 mode with IOPL {cpu.iopl}")
        if image >> TF_BIT & 1 or (image >> IF_BIT & 1 and cpu.vip):
            raise GeneralProtection(
                0, f"POPF in virtual-8086 mode pops {image:#x}: TF, or IF with VIP={cpu.vip}"
            )
        # IF goes to VIF; the image's own bit 19 lies beyond its 16 bits.
        image = image | (image >> IF_BIT & 1) << VIF_BIT
        changeable = changeable & M16 | 1 << VIF_BIT
    else:
        if cpu.cpl == 0:
            changeable = changeable | 3 << IOPL_SHIFT
        if cpu.cpl <= cpu.iopl:
            changeable = changeable | 1 << IF_BIT
        changeable = changeable & width.mask
    drop(cpu, width.bytes)
    cpu.set_rflags(cpu.rflags() & ~changeable | image & changeable)


@insn("ENTERW_IMM16_IMM8", "ENTERD_IMM16_IMM8", "ENTERQ_IMM16_IMM8", inline=False, sized=True)
def enter(cpu: Cpu, width: Width, allocate: Operand, nesting: Operand) -> None:
    """PUSH(RBP); copy imm8 - 1 frame pointers and push the new one; RBP := frame; RSP := RSP - imm16"""
    size, mask, stack_mask = width.bytes, width.mask, cpu.stack_mask
    level = nesting.value & 31
    top = cpu.rsp - size & stack_mask
    cpu.write_data(cpu.ss, top, size, cpu.rbp & mask)
    frame = cpu.rsp & ~stack_mask | top  # all of ESP, on a 16-bit stack too
    if level:
        pointer = cpu.rbp
        for _ in range(level - 1):
            pointer = pointer - size & stack_mask
            top = top - size & stack_mask
            cpu.write_data(cpu.ss, top, size, cpu.read_data(cpu.ss, pointer, size))
        top = top - size & stack_mask
        cpu.write_data(cpu.ss, top, size, frame & mask)
    top = top - allocate.value & stack_mask
    # A write to the new top must be possible (SDM Vol. 2, ENTER, exceptions); nothing is written there.
    cpu.check_write(cpu.linear_address(cpu.ss, top, size, True), size, True)
    cpu.rbp = low_part(cpu.rbp, frame & mask, mask)  # BP alone with a 16-bit operand, in 64-bit mode too
    cpu.rsp = cpu.rsp & ~stack_mask | top


@insn("LEAVEW", "LEAVED", "LEAVEQ", sized=True)
def leave(cpu: Cpu, width: Width) -> None:
    """RSP := RBP; RBP := POP()"""
    frame = cpu.rbp & cpu.stack_mask
    value = cpu.read_data(cpu.ss, frame, width.bytes)
    cpu.rsp = cpu.rsp & ~cpu.stack_mask | frame + width.bytes & cpu.stack_mask
    cpu.rbp = low_part(cpu.rbp, value, width.mask)
