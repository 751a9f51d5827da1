"""Moves, exchanges, addresses, and instructions that do nothing or only #UD.

MOV with segment, control and debug registers is in `segment` and `control`; MOVBE and BSWAP are in `bits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import InvalidOpcode
from isa.operands import Memory, Operand
from isa.semantics.helpers import signed
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn(
    "MOV_RM8_R8", "MOV_RM16_R16", "MOV_RM32_R32", "MOV_RM64_R64",
    "MOV_R8_RM8", "MOV_R16_RM16", "MOV_R32_RM32", "MOV_R64_RM64",
    "MOV_R8_IMM8", "MOV_R16_IMM16", "MOV_R32_IMM32", "MOV_R64_IMM64",
    "MOV_RM8_IMM8", "MOV_RM16_IMM16", "MOV_RM32_IMM32", "MOV_RM64_IMM32",
    "MOV_AL_MOFFS8", "MOV_AX_MOFFS16", "MOV_EAX_MOFFS32", "MOV_RAX_MOFFS64",
    "MOV_MOFFS8_AL", "MOV_MOFFS16_AX", "MOV_MOFFS32_EAX", "MOV_MOFFS64_RAX",
)  # fmt: skip
def mov(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC"""
    dst.value = src.value


@insn("MOVZX")
def movzx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := ZeroExtend(SRC)"""
    dst.value = src.value


@insn("MOVSX", "MOVSXD")
def movsx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SignExtend(SRC)"""
    dst.value = signed(src.value, src.bits) & dst.mask


@insn("XCHG")
def xchg(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """TEMP := DEST; DEST := SRC; SRC := TEMP"""
    temp = dst.value
    dst.value = src.value  # DEST is the memory operand, if there is one: it may fault
    src.value = temp


@insn("LEA")
def lea(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """DEST := EffectiveAddress(SRC), truncated or zero-extended"""
    dst.value = src.offset & dst.mask


@insn("XLATB")
def xlatb(cpu: Cpu, src: Operand) -> None:
    """AL := [rBX + AL]"""
    cpu.rax = cpu.rax & ~0xFF | src.value


# ---- nothing -------------------------------------------------------------------------------------------


@insn(
    "NOP", "RESERVEDNOP", "PAUSE", "ENDBR32", "ENDBR64", "CLDEMOTE",
    "PREFETCH", "PREFETCHW", "PREFETCHWT1", "PREFETCHNTA", "PREFETCHT0", "PREFETCHT1", "PREFETCHT2",
    "PREFETCHIT0", "PREFETCHIT1",
)  # fmt: skip
def nop(cpu: Cpu, *ignored: Operand) -> None:
    """Nothing: a memory operand is not accessed and cannot fault"""


@insn("LFENCE", "MFENCE", "SFENCE", "SERIALIZE")
def fence(cpu: Cpu) -> None:
    """Nothing: accesses already happen in program order"""


@insn("CLFLUSH", "CLFLUSHOPT", "CLWB")
def clflush(cpu: Cpu, src: Memory) -> None:
    """Write back a cache line: there is no cache, but the address is checked as by a byte load"""
    cpu.check_read(cpu.linear_address(src.segment, src.offset, 1, False), 1, src.segment is cpu.ss)


@insn("UD0", "UD1", "UD2")
def ud(cpu: Cpu, *ignored: Operand) -> None:
    """#UD"""
    raise InvalidOpcode("UD0, UD1 or UD2: undefined on purpose")
