"""Sign extension of the accumulator, and what depends on a condition: SETcc, CMOVcc, SALC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.helpers import signed
from isa.semantics.registry import insn
from isa.state import M16, M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn("CBW")
def cbw(cpu: Cpu) -> None:
    """AX := SignExtend(AL)"""
    cpu.rax = cpu.rax & ~M16 | signed(cpu.rax & 0xFF, 8) & M16


@insn("CWDE")
def cwde(cpu: Cpu) -> None:
    """EAX := SignExtend(AX)"""
    cpu.rax = signed(cpu.rax & M16, 16) & M32


@insn("CDQE")
def cdqe(cpu: Cpu) -> None:
    """RAX := SignExtend(EAX)"""
    cpu.rax = signed(cpu.rax & M32, 32) & M64


@insn("CWD")
def cwd(cpu: Cpu) -> None:
    """DX:AX := SignExtend(AX)"""
    cpu.rdx = cpu.rdx & ~M16 | (M16 if cpu.rax & 0x8000 else 0)


@insn("CDQ")
def cdq(cpu: Cpu) -> None:
    """EDX:EAX := SignExtend(EAX)"""
    cpu.rdx = M32 if cpu.rax & 0x8000_0000 else 0


@insn("CQO")
def cqo(cpu: Cpu) -> None:
    """RDX:RAX := SignExtend(RAX)"""
    cpu.rdx = M64 if cpu.rax >> 63 else 0


@insn("SALC")
def salc(cpu: Cpu) -> None:
    """IF CF THEN AL := FFH ELSE AL := 0"""
    cpu.rax = cpu.rax & ~0xFF | (0xFF if cpu.cf else 0)


# ---- SETcc ---------------------------------------------------------------------------------------------


@insn("SETO")
def seto(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF OF = 1 ELSE 0"""
    dst.value = 1 if cpu.of else 0


@insn("SETNO")
def setno(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF OF = 0 ELSE 0"""
    dst.value = 1 if not cpu.of else 0


@insn("SETB")
def setb(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF CF = 1 ELSE 0"""
    dst.value = 1 if cpu.cf else 0


@insn("SETAE")
def setae(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF CF = 0 ELSE 0"""
    dst.value = 1 if not cpu.cf else 0


@insn("SETE")
def sete(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF ZF = 1 ELSE 0"""
    dst.value = 1 if cpu.zf else 0


@insn("SETNE")
def setne(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF ZF = 0 ELSE 0"""
    dst.value = 1 if not cpu.zf else 0


@insn("SETBE")
def setbe(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF CF = 1 or ZF = 1 ELSE 0"""
    dst.value = 1 if cpu.cf or cpu.zf else 0


@insn("SETA")
def seta(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF CF = 0 and ZF = 0 ELSE 0"""
    dst.value = 1 if not (cpu.cf or cpu.zf) else 0


@insn("SETS")
def sets(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF SF = 1 ELSE 0"""
    dst.value = 1 if cpu.sf else 0


@insn("SETNS")
def setns(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF SF = 0 ELSE 0"""
    dst.value = 1 if not cpu.sf else 0


@insn("SETP")
def setp(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF PF = 1 ELSE 0"""
    dst.value = 1 if cpu.pf else 0


@insn("SETNP")
def setnp(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF PF = 0 ELSE 0"""
    dst.value = 1 if not cpu.pf else 0


@insn("SETL")
def setl(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF SF != OF ELSE 0"""
    dst.value = 1 if bool(cpu.sf) != bool(cpu.of) else 0


@insn("SETGE")
def setge(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF SF = OF ELSE 0"""
    dst.value = 1 if bool(cpu.sf) == bool(cpu.of) else 0


@insn("SETLE")
def setle(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF ZF = 1 or SF != OF ELSE 0"""
    dst.value = 1 if cpu.zf or bool(cpu.sf) != bool(cpu.of) else 0


@insn("SETG")
def setg(cpu: Cpu, dst: Operand) -> None:
    """DEST := 1 IF ZF = 0 and SF = OF ELSE 0"""
    dst.value = 1 if not cpu.zf and bool(cpu.sf) == bool(cpu.of) else 0


# ---- CMOVcc: the source is read, and may fault, whatever the condition; a 32-bit DEST is always zero-ext


@insn("CMOVO")
def cmovo(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF OF = 1 THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.of else dst.value


@insn("CMOVNO")
def cmovno(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF OF = 0 THEN DEST := SRC"""
    value = src.value
    dst.value = value if not cpu.of else dst.value


@insn("CMOVB")
def cmovb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF CF = 1 THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.cf else dst.value


@insn("CMOVAE")
def cmovae(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF CF = 0 THEN DEST := SRC"""
    value = src.value
    dst.value = value if not cpu.cf else dst.value


@insn("CMOVE")
def cmove(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF ZF = 1 THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.zf else dst.value


@insn("CMOVNE")
def cmovne(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF ZF = 0 THEN DEST := SRC"""
    value = src.value
    dst.value = value if not cpu.zf else dst.value


@insn("CMOVBE")
def cmovbe(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF CF = 1 or ZF = 1 THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.cf or cpu.zf else dst.value


@insn("CMOVA")
def cmova(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF CF = 0 and ZF = 0 THEN DEST := SRC"""
    value = src.value
    dst.value = value if not (cpu.cf or cpu.zf) else dst.value


@insn("CMOVS")
def cmovs(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF SF = 1 THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.sf else dst.value


@insn("CMOVNS")
def cmovns(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF SF = 0 THEN DEST := SRC"""
    value = src.value
    dst.value = value if not cpu.sf else dst.value


@insn("CMOVP")
def cmovp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF PF = 1 THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.pf else dst.value


@insn("CMOVNP")
def cmovnp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF PF = 0 THEN DEST := SRC"""
    value = src.value
    dst.value = value if not cpu.pf else dst.value


@insn("CMOVL")
def cmovl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF SF != OF THEN DEST := SRC"""
    value = src.value
    dst.value = value if bool(cpu.sf) != bool(cpu.of) else dst.value


@insn("CMOVGE")
def cmovge(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF SF = OF THEN DEST := SRC"""
    value = src.value
    dst.value = value if bool(cpu.sf) == bool(cpu.of) else dst.value


@insn("CMOVLE")
def cmovle(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF ZF = 1 or SF != OF THEN DEST := SRC"""
    value = src.value
    dst.value = value if cpu.zf or bool(cpu.sf) != bool(cpu.of) else dst.value


@insn("CMOVG")
def cmovg(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF ZF = 0 and SF = OF THEN DEST := SRC"""
    value = src.value
    dst.value = value if not cpu.zf and bool(cpu.sf) == bool(cpu.of) else dst.value
