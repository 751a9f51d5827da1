"""Near transfers: JMP, Jcc, CALL, RET, LOOP, JCXZ. Far ones are in `far`.

A direct branch reads its target before it commits anything: a target outside the CS limit or not canonical is
an `UnreachableTarget`, whose reading is #GP(0). So direct branches need no check of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import GeneralProtection
from isa.operands import Operand, Width
from isa.semantics.helpers import drop, low_part, push_value, stack_value
from isa.semantics.registry import insn
from isa.state import M16, M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu


def check_target(cpu: Cpu, target: int) -> None:
    """#GP(0) for a near target that is not canonical (64-bit mode) or outside the CS limit."""
    if cpu.mode64:
        if target + 0x8000_0000_0000 & M64 >= 1 << 48:
            raise GeneralProtection(0, f"near branch target {target:#x} is not canonical")
    elif target > cpu.cs.limit:
        raise GeneralProtection(0, f"near branch target {target:#x} outside CS limit {cpu.cs.limit:#x}")


@insn("JMP_REL8_16", "JMP_REL8_32", "JMP_REL8_64", "JMP_REL16", "JMP_REL32_32", "JMP_REL32_64")
def jmp(cpu: Cpu, target: Operand) -> None:
    """RIP := target"""
    cpu.rip = target.value


@insn("JMP_RM16", "JMP_RM32", "JMP_RM64")
def jmp_indirect(cpu: Cpu, src: Operand) -> None:
    """RIP := SRC"""
    target = src.value
    check_target(cpu, target)
    cpu.rip = target


@insn("CALL_REL32_64")
def call64(cpu: Cpu, target: Operand) -> None:
    """PUSH(RIP); RIP := target"""
    to = target.value
    top = cpu.rsp - 8 & M64
    cpu.store_stack(top, 8, cpu.rip)
    cpu.rsp = top
    cpu.rip = to


@insn("CALL_REL16", "CALL_REL32_32")
def call(cpu: Cpu, target: Operand) -> None:
    """PUSH(EIP or IP); EIP := target"""
    to = target.value
    push_value(cpu, target.bytes, cpu.rip & target.mask)
    cpu.rip = to


@insn("CALL_RM16", "CALL_RM32", "CALL_RM64")
def call_indirect(cpu: Cpu, src: Operand) -> None:
    """PUSH(RIP); RIP := SRC"""
    target = src.value
    check_target(cpu, target)
    push_value(cpu, src.bytes, cpu.rip & src.mask)
    cpu.rip = target


@insn("RETNQ")
def ret64(cpu: Cpu) -> None:
    """RIP := POP()"""
    target = cpu.load_stack(cpu.rsp, 8)
    if target + 0x8000_0000_0000 & M64 >= 1 << 48:
        raise GeneralProtection(0, f"return address {target:#x} is not canonical")
    cpu.rsp = cpu.rsp + 8 & M64
    cpu.rip = target


@insn("RETNW", "RETND", sized=True)
def ret(cpu: Cpu, width: Width) -> None:
    """EIP := POP()"""
    target = stack_value(cpu, width.bytes)
    check_target(cpu, target)
    drop(cpu, width.bytes)
    cpu.rip = target


@insn("RETNW_IMM16", "RETND_IMM16", "RETNQ_IMM16", sized=True)
def ret_immediate(cpu: Cpu, width: Width, extra: Operand) -> None:
    """RIP := POP(); RSP := RSP + imm16"""
    target = stack_value(cpu, width.bytes)
    check_target(cpu, target)
    drop(cpu, width.bytes + extra.value)
    cpu.rip = target


# ---- the counter decides -------------------------------------------------------------------------------


@insn("JCXZ_REL8_16", "JCXZ_REL8_32")
def jcxz(cpu: Cpu, target: Operand) -> None:
    """IF CX = 0 THEN RIP := target"""
    if not cpu.rcx & M16:
        cpu.rip = target.value


@insn("JECXZ_REL8_16", "JECXZ_REL8_32", "JECXZ_REL8_64")
def jecxz(cpu: Cpu, target: Operand) -> None:
    """IF ECX = 0 THEN RIP := target"""
    if not cpu.rcx & M32:
        cpu.rip = target.value


@insn("JRCXZ_REL8_16", "JRCXZ_REL8_64")
def jrcxz(cpu: Cpu, target: Operand) -> None:
    """IF RCX = 0 THEN RIP := target"""
    if not cpu.rcx:
        cpu.rip = target.value


def count_down(cpu: Cpu, target: Operand, mask: int, condition: object) -> None:
    """Counter := counter - 1; IF counter != 0 and condition THEN RIP := target. No flag changes."""
    count = cpu.rcx - 1 & mask
    if count and condition:
        cpu.rip = target.value
    cpu.rcx = low_part(cpu.rcx, count, mask)


@insn("LOOP_REL8_16_CX", "LOOP_REL8_32_CX")
def loop_cx(cpu: Cpu, target: Operand) -> None:
    """CX := CX - 1; IF CX != 0 THEN RIP := target"""
    count_down(cpu, target, M16, True)


@insn("LOOP_REL8_16_ECX", "LOOP_REL8_32_ECX", "LOOP_REL8_64_ECX")
def loop_ecx(cpu: Cpu, target: Operand) -> None:
    """ECX := ECX - 1; IF ECX != 0 THEN RIP := target"""
    count_down(cpu, target, M32, True)


@insn("LOOP_REL8_16_RCX", "LOOP_REL8_64_RCX")
def loop_rcx(cpu: Cpu, target: Operand) -> None:
    """RCX := RCX - 1; IF RCX != 0 THEN RIP := target"""
    count_down(cpu, target, M64, True)


@insn("LOOPE_REL8_16_CX", "LOOPE_REL8_32_CX")
def loope_cx(cpu: Cpu, target: Operand) -> None:
    """CX := CX - 1; IF CX != 0 and ZF = 1 THEN RIP := target"""
    count_down(cpu, target, M16, cpu.zf)


@insn("LOOPE_REL8_16_ECX", "LOOPE_REL8_32_ECX", "LOOPE_REL8_64_ECX")
def loope_ecx(cpu: Cpu, target: Operand) -> None:
    """ECX := ECX - 1; IF ECX != 0 and ZF = 1 THEN RIP := target"""
    count_down(cpu, target, M32, cpu.zf)


@insn("LOOPE_REL8_16_RCX", "LOOPE_REL8_64_RCX")
def loope_rcx(cpu: Cpu, target: Operand) -> None:
    """RCX := RCX - 1; IF RCX != 0 and ZF = 1 THEN RIP := target"""
    count_down(cpu, target, M64, cpu.zf)


@insn("LOOPNE_REL8_16_CX", "LOOPNE_REL8_32_CX")
def loopne_cx(cpu: Cpu, target: Operand) -> None:
    """CX := CX - 1; IF CX != 0 and ZF = 0 THEN RIP := target"""
    count_down(cpu, target, M16, not cpu.zf)


@insn("LOOPNE_REL8_16_ECX", "LOOPNE_REL8_32_ECX", "LOOPNE_REL8_64_ECX")
def loopne_ecx(cpu: Cpu, target: Operand) -> None:
    """ECX := ECX - 1; IF ECX != 0 and ZF = 0 THEN RIP := target"""
    count_down(cpu, target, M32, not cpu.zf)


@insn("LOOPNE_REL8_16_RCX", "LOOPNE_REL8_64_RCX")
def loopne_rcx(cpu: Cpu, target: Operand) -> None:
    """RCX := RCX - 1; IF RCX != 0 and ZF = 0 THEN RIP := target"""
    count_down(cpu, target, M64, not cpu.zf)


# ---- Jcc -----------------------------------------------------------------------------------------------


@insn("JO")
def jo(cpu: Cpu, target: Operand) -> None:
    """IF OF = 1 THEN RIP := target"""
    if cpu.of:
        cpu.rip = target.value


@insn("JNO")
def jno(cpu: Cpu, target: Operand) -> None:
    """IF OF = 0 THEN RIP := target"""
    if not cpu.of:
        cpu.rip = target.value


@insn("JB")
def jb(cpu: Cpu, target: Operand) -> None:
    """IF CF = 1 THEN RIP := target"""
    if cpu.cf:
        cpu.rip = target.value


@insn("JAE")
def jae(cpu: Cpu, target: Operand) -> None:
    """IF CF = 0 THEN RIP := target"""
    if not cpu.cf:
        cpu.rip = target.value


@insn("JE")
def je(cpu: Cpu, target: Operand) -> None:
    """IF ZF = 1 THEN RIP := target"""
    if cpu.zf:
        cpu.rip = target.value


@insn("JNE")
def jne(cpu: Cpu, target: Operand) -> None:
    """IF ZF = 0 THEN RIP := target"""
    if not cpu.zf:
        cpu.rip = target.value


@insn("JBE")
def jbe(cpu: Cpu, target: Operand) -> None:
    """IF CF = 1 or ZF = 1 THEN RIP := target"""
    if cpu.cf or cpu.zf:
        cpu.rip = target.value


@insn("JA")
def ja(cpu: Cpu, target: Operand) -> None:
    """IF CF = 0 and ZF = 0 THEN RIP := target"""
    if not (cpu.cf or cpu.zf):
        cpu.rip = target.value


@insn("JS")
def js(cpu: Cpu, target: Operand) -> None:
    """IF SF = 1 THEN RIP := target"""
    if cpu.sf:
        cpu.rip = target.value


@insn("JNS")
def jns(cpu: Cpu, target: Operand) -> None:
    """IF SF = 0 THEN RIP := target"""
    if not cpu.sf:
        cpu.rip = target.value


@insn("JP")
def jp(cpu: Cpu, target: Operand) -> None:
    """IF PF = 1 THEN RIP := target"""
    if cpu.pf:
        cpu.rip = target.value


@insn("JNP")
def jnp(cpu: Cpu, target: Operand) -> None:
    """IF PF = 0 THEN RIP := target"""
    if not cpu.pf:
        cpu.rip = target.value


@insn("JL")
def jl(cpu: Cpu, target: Operand) -> None:
    """IF SF != OF THEN RIP := target"""
    if bool(cpu.sf) != bool(cpu.of):
        cpu.rip = target.value


@insn("JGE")
def jge(cpu: Cpu, target: Operand) -> None:
    """IF SF = OF THEN RIP := target"""
    if bool(cpu.sf) == bool(cpu.of):
        cpu.rip = target.value


@insn("JLE")
def jle(cpu: Cpu, target: Operand) -> None:
    """IF ZF = 1 or SF != OF THEN RIP := target"""
    if cpu.zf or bool(cpu.sf) != bool(cpu.of):
        cpu.rip = target.value


@insn("JG")
def jg(cpu: Cpu, target: Operand) -> None:
    """IF ZF = 0 and SF = OF THEN RIP := target"""
    if not cpu.zf and bool(cpu.sf) == bool(cpu.of):
        cpu.rip = target.value
