"""Integer addition, subtraction and comparison. Multiplication is in `muldiv`, decimal in `decimal`.

ADD, SUB, CMP, INC and DEC spell their flags out: they are the most frequent arithmetic of any guest and a
call costs a Python instruction half of its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import GeneralProtection
from isa.operands import Memory, Operand
from isa.semantics.helpers import PARITY, compare, low_part, set_szp
from isa.semantics.registry import insn
from isa.state import M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu


@insn("ADD")
def add(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST + SRC"""
    a = dst.value
    b = src.value
    total = a + b
    result = total & dst.mask
    dst.value = result
    sign = dst.bits - 1
    cpu.cf = total > result
    cpu.of = ((a ^ result) & (b ^ result)) >> sign
    cpu.af = (a ^ b ^ result) & 16
    cpu.sf = result >> sign
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("ADC")
def adc(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST + SRC + CF"""
    a = dst.value
    b = src.value
    total = a + b + cpu.cf
    result = total & dst.mask
    dst.value = result
    cpu.cf = total > result
    cpu.of = ((a ^ result) & (b ^ result)) >> (dst.bits - 1)
    cpu.af = (a ^ b ^ result) & 16
    set_szp(cpu, result, dst)


@insn("SUB")
def sub(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST - SRC"""
    a = dst.value
    b = src.value
    result = a - b & dst.mask
    dst.value = result
    sign = dst.bits - 1
    cpu.cf = a < b
    cpu.of = ((a ^ b) & (a ^ result)) >> sign
    cpu.af = (a ^ b ^ result) & 16
    cpu.sf = result >> sign
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("SBB")
def sbb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST - (SRC + CF)"""
    a = dst.value
    b = src.value
    difference = a - b - cpu.cf
    result = difference & dst.mask
    dst.value = result
    cpu.cf = difference < 0
    cpu.of = ((a ^ b) & (a ^ result)) >> (dst.bits - 1)
    cpu.af = (a ^ b ^ result) & 16
    set_szp(cpu, result, dst)


@insn("CMP")
def cmp(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """flags of DEST - SRC"""
    a = dst.value
    b = src.value
    result = a - b & dst.mask
    sign = dst.bits - 1
    cpu.cf = a < b
    cpu.of = ((a ^ b) & (a ^ result)) >> sign
    cpu.af = (a ^ b ^ result) & 16
    cpu.sf = result >> sign
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("INC")
def inc(cpu: Cpu, dst: Operand) -> None:
    """DEST := DEST + 1; CF is not affected"""
    result = dst.value + 1 & dst.mask
    dst.value = result
    sign = dst.bits - 1
    cpu.of = result == 1 << sign
    cpu.af = not result & 15
    cpu.sf = result >> sign
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("DEC")
def dec(cpu: Cpu, dst: Operand) -> None:
    """DEST := DEST - 1; CF is not affected"""
    a = dst.value
    result = a - 1 & dst.mask
    dst.value = result
    cpu.of = result == dst.mask >> 1
    cpu.af = not a & 15
    cpu.sf = result >> (dst.bits - 1)
    cpu.zf = not result
    cpu.pf = PARITY[result & 0xFF]


@insn("NEG")
def neg(cpu: Cpu, dst: Operand) -> None:
    """DEST := 0 - DEST; CF := DEST != 0"""
    a = dst.value
    result = -a & dst.mask
    dst.value = result
    compare(cpu, 0, a, dst)


@insn("XADD")
def xadd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """TEMP := SRC + DEST; SRC := DEST; DEST := TEMP"""
    a = dst.value
    b = src.value
    total = a + b
    result = total & dst.mask
    dst.value = result
    # DEST is written last: where both are one register (seen by SRC having changed) the sum stays.
    src.value = a if src.value == b else result
    cpu.cf = total > result
    cpu.of = ((a ^ result) & (b ^ result)) >> (dst.bits - 1)
    cpu.af = (a ^ b ^ result) & 16
    set_szp(cpu, result, dst)


@insn("CMPXCHG")
def cmpxchg(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF accumulator = DEST THEN DEST := SRC ELSE DEST := DEST; accumulator := DEST"""
    a = cpu.rax & dst.mask
    b = dst.value
    if a == b:
        dst.value = src.value
    else:
        if dst.in_memory:
            dst.value = b  # the bus sees a write either way, so a read-only page faults either way
        cpu.rax = low_part(cpu.rax, b, dst.mask)
    compare(cpu, a, b, dst)


@insn("CMPXCHG8B")
def cmpxchg8b(cpu: Cpu, dst: Operand) -> None:
    """IF EDX:EAX = DEST THEN ZF := 1; DEST := ECX:EBX ELSE ZF := 0; EDX:EAX := DEST"""
    value = dst.value
    if value == (cpu.rdx & M32) << 32 | cpu.rax & M32:
        dst.value = (cpu.rcx & M32) << 32 | cpu.rbx & M32
        cpu.zf = 1
    else:
        dst.value = value
        cpu.rax = value & M32
        cpu.rdx = value >> 32
        cpu.zf = 0


@insn("CMPXCHG16B")
def cmpxchg16b(cpu: Cpu, dst: Memory) -> None:
    """IF RDX:RAX = DEST THEN ZF := 1; DEST := RCX:RBX ELSE ZF := 0; RDX:RAX := DEST"""
    if cpu.linear_address(dst.segment, dst.offset, 16, True) & 15:
        at = cpu.linear_address(dst.segment, dst.offset, 16, True)
        raise GeneralProtection(0, f"CMPXCHG16B operand at {at:#x} is not aligned to 16 bytes")
    value = dst.value
    if value == cpu.rdx << 64 | cpu.rax:
        dst.value = cpu.rcx << 64 | cpu.rbx
        cpu.zf = 1
    else:
        dst.value = value
        cpu.rax = value & M64
        cpu.rdx = value >> 64
        cpu.zf = 0


@insn("ADCX")
def adcx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF:DEST := DEST + SRC + CF; no other flag"""
    total = dst.value + src.value + cpu.cf
    dst.value = total & dst.mask
    cpu.cf = total >> dst.bits


@insn("ADOX")
def adox(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """OF:DEST := DEST + SRC + OF; no other flag"""
    total = dst.value + src.value + (1 if cpu.of else 0)
    dst.value = total & dst.mask
    cpu.of = total >> dst.bits
