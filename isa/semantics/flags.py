"""Single flags, and AH as the low byte of RFLAGS. PUSHF and POPF are in `stack`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import GeneralProtection
from isa.semantics.registry import insn
from isa.state import CR4_PVI, CR4_VME, STI_SHADOW

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn("CLC")
def clc(cpu: Cpu) -> None:
    """CF := 0"""
    cpu.cf = 0


@insn("STC")
def stc(cpu: Cpu) -> None:
    """CF := 1"""
    cpu.cf = 1


@insn("CMC")
def cmc(cpu: Cpu) -> None:
    """CF := NOT CF"""
    cpu.cf = not cpu.cf


@insn("CLD")
def cld(cpu: Cpu) -> None:
    """DF := 0"""
    cpu.df = 0


@insn("STD")
def std(cpu: Cpu) -> None:
    """DF := 1"""
    cpu.df = 1


@insn("LAHF")
def lahf(cpu: Cpu) -> None:
    """AH := SF:ZF:0:AF:0:PF:1:CF"""
    cpu.rax = cpu.rax & ~0xFF00 | (cpu.rflags() & 0xD7) << 8


@insn("SAHF")
def sahf(cpu: Cpu) -> None:
    """SF:ZF:0:AF:0:PF:1:CF := AH"""
    ah = cpu.rax >> 8
    cpu.sf = ah >> 7 & 1
    cpu.zf = ah >> 6 & 1
    cpu.af = ah >> 4 & 1
    cpu.pf = ah >> 2 & 1
    cpu.cf = ah & 1


def may_change_if(cpu: Cpu) -> bool:
    """CPL <= IOPL; virtual-8086 mode runs at CPL 3, real mode at CPL 0."""
    return cpu.cpl <= cpu.iopl


def virtual_if(cpu: Cpu) -> bool:
    """VIF stands for IF: VME in virtual-8086 mode, PVI at CPL 3 in protected mode."""
    return cpu.cpl == 3 and bool(cpu.cr4 & (CR4_VME if cpu.vm else CR4_PVI))


@insn("CLI", own_privilege=True)
def cli(cpu: Cpu) -> None:
    """IF := 0, or VIF := 0 where VIF stands for it"""
    if may_change_if(cpu):
        cpu.if_ = 0
    elif virtual_if(cpu):
        cpu.vif = 0
    else:
        raise GeneralProtection(0, f"CLI, CPL {cpu.cpl} > IOPL {cpu.iopl}")


@insn("STI", own_privilege=True)
def sti(cpu: Cpu) -> None:
    """IF := 1 with interrupts held back for one more instruction, or VIF := 1 where VIF stands for it"""
    if may_change_if(cpu):
        if not cpu.if_:
            cpu.if_ = 1
            cpu.shadow = STI_SHADOW
            cpu.request_attention()
    elif virtual_if(cpu):
        if cpu.vip:
            raise GeneralProtection(0, f"STI, CPL {cpu.cpl} > IOPL {cpu.iopl} with VIP=1")
        cpu.vif = 1
    else:
        raise GeneralProtection(0, f"STI, CPL {cpu.cpl} > IOPL {cpu.iopl}")
