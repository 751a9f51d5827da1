"""Segment registers and descriptor tables: MOV, PUSH, POP, LDS and friends, LAR to ARPL, LGDT to LTR.

Loading itself, with its checks, is `isa.descriptors`. Sources: SDM Vol. 2, the instructions' own pages;
SDM Vol. 3, "Privilege Checking" and "Limit Checking".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.descriptors import (
    Descriptor,
    descriptor_address,
    is_canonical,
    is_null,
    load_ldtr,
    load_segment,
    load_tr,
)
from isa.faults import GeneralProtection, InvalidOpcode
from isa.operands import Memory, Operand, SegmentOperand, Width
from isa.semantics.registry import insn
from isa.state import (
    CR4_FSGSBASE,
    CR4_UMIP,
    EFER_LMA,
    M16,
    MOV_SS_SHADOW,
    SYS_CALL_GATE,
    SYS_CALL_GATE16,
    SYS_LDT,
    SYS_TASK_GATE,
    SYS_TSS16_AVAILABLE,
    SYS_TSS16_BUSY,
    SYS_TSS_AVAILABLE,
    SYS_TSS_BUSY,
    Segment,
    TableRegister,
)

if TYPE_CHECKING:
    from isa.cpu import Cpu

IA32_KERNEL_GS_BASE = 0xC000_0102

# System types that LAR and LSL know (SDM Vol. 2, LAR and LSL, their tables of types)
LSL_LONG = (SYS_LDT, SYS_TSS_AVAILABLE, SYS_TSS_BUSY)
LSL_LEGACY = (*LSL_LONG, SYS_TSS16_AVAILABLE, SYS_TSS16_BUSY)
LAR_LONG = (*LSL_LONG, SYS_CALL_GATE)
LAR_LEGACY = (*LSL_LEGACY, SYS_CALL_GATE, SYS_CALL_GATE16, SYS_TASK_GATE)
ACCESS_RIGHTS = 0x00FF_FF00  # of the second doubleword; bits 19-16 are undefined: CPUs show the limit


@insn("MOV_RM16_SREG", "MOV_R32M16_SREG", "MOV_R64M16_SREG")
def mov_from_segment(cpu: Cpu, dst: Operand, src: SegmentOperand) -> None:
    """DEST := SREG; a wider register is zero-extended"""
    dst.value = src.value


@insn("MOV_SREG_RM16", "MOV_SREG_R32M16", "MOV_SREG_R64M16", inline=False)
def mov_to_segment(cpu: Cpu, dst: SegmentOperand, src: Operand) -> None:
    """SREG := SRC; MOV SS holds interrupts back until after the next instruction"""
    load_segment(cpu, dst.register, src.value & M16)
    if dst.register is cpu.ss:
        cpu.shadow = MOV_SS_SHADOW
        cpu.request_attention()


@insn(
    "PUSHW_ES", "PUSHD_ES", "PUSHW_CS", "PUSHD_CS", "PUSHW_SS", "PUSHD_SS", "PUSHW_DS", "PUSHD_DS",
    "PUSHW_FS", "PUSHD_FS", "PUSHQ_FS", "PUSHW_GS", "PUSHD_GS", "PUSHQ_GS", sized=True,
)  # fmt: skip
def push_segment(cpu: Cpu, width: Width, src: SegmentOperand) -> None:
    """RSP := RSP - size; [RSP] := ZeroExtend(SREG)"""
    top = (cpu.rsp - width.bytes) & cpu.stack_mask
    cpu.write_data(cpu.ss, top, width.bytes, src.value)
    cpu.rsp = top if cpu.stack_mask != M16 else cpu.rsp & ~M16 | top


@insn(
    "POPW_ES", "POPD_ES", "POPW_SS", "POPD_SS", "POPW_DS", "POPD_DS",
    "POPW_FS", "POPD_FS", "POPQ_FS", "POPW_GS", "POPD_GS", "POPQ_GS", sized=True, inline=False,
)  # fmt: skip
def pop_segment(cpu: Cpu, width: Width, dst: SegmentOperand) -> None:
    """SREG := [RSP]; RSP := RSP + size; POP SS holds interrupts back like MOV SS"""
    mask = cpu.stack_mask
    selector = cpu.read_data(cpu.ss, cpu.rsp & mask, width.bytes) & M16
    after = (cpu.rsp + width.bytes) & mask
    load_segment(cpu, dst.register, selector)
    cpu.rsp = after if mask != M16 else cpu.rsp & ~M16 | after
    if dst.register is cpu.ss:
        cpu.shadow = MOV_SS_SHADOW
        cpu.request_attention()


# ---- far pointers ------------------------------------------------------------------------------------------


@insn("LDS", inline=False)
def lds(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """DS:DEST := m16:16 or m16:32"""
    load_pointer(cpu, cpu.ds, dst, src)


@insn("LES", inline=False)
def les(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """ES:DEST := m16:16 or m16:32"""
    load_pointer(cpu, cpu.es, dst, src)


@insn("LFS", inline=False)
def lfs(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """FS:DEST := m16:16, m16:32 or m16:64"""
    load_pointer(cpu, cpu.fs, dst, src)


@insn("LGS", inline=False)
def lgs(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """GS:DEST := m16:16, m16:32 or m16:64"""
    load_pointer(cpu, cpu.gs, dst, src)


@insn("LSS", inline=False)
def lss(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """SS:DEST := m16:16, m16:32 or m16:64; no interrupt shadow, since the stack pointer comes along"""
    load_pointer(cpu, cpu.ss, dst, src)


def load_pointer(cpu: Cpu, segment: Segment, dst: Operand, src: Memory) -> None:
    """segment:dst := the far pointer in memory; the segment is checked before anything changes."""
    selector, offset = far_pointer(cpu, src)
    load_segment(cpu, segment, selector)
    dst.value = offset


def far_pointer(cpu: Cpu, src: Memory) -> tuple[int, int]:
    """(selector, offset) of m16:16, m16:32 or m16:64: two accesses, each with its own alignment check."""
    at, size = src.offset, src.bytes - 2
    offset = cpu.read_data(src.segment, at, size)
    return cpu.read_data(src.segment, at + size & src.address_mask, 2), offset


# ---- looking at descriptors --------------------------------------------------------------------------------


@insn("LAR", inline=False)
def lar(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF the descriptor is visible THEN DEST := access rights; ZF := 1 ELSE ZF := 0"""
    found = visible_descriptor(cpu, src.value & M16, LAR_LONG, LAR_LEGACY)
    if found is not None:
        dst.value = found.raw >> 32 & ACCESS_RIGHTS & dst.mask
    cpu.zf = found is not None


@insn("LSL", inline=False)
def lsl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF the descriptor is visible THEN DEST := limit in bytes; ZF := 1 ELSE ZF := 0"""
    found = visible_descriptor(cpu, src.value & M16, LSL_LONG, LSL_LEGACY)
    if found is not None:
        dst.value = found.limit & dst.mask
    cpu.zf = found is not None


@insn("VERR", inline=False)
def verr(cpu: Cpu, src: Operand) -> None:
    """ZF := the segment can be read at this CPL and RPL"""
    found = visible_descriptor(cpu, src.value & M16, (), ())
    cpu.zf = found is not None and found.is_readable


@insn("VERW", inline=False)
def verw(cpu: Cpu, src: Operand) -> None:
    """ZF := the segment can be written at this CPL and RPL"""
    found = visible_descriptor(cpu, src.value & M16, (), ())
    cpu.zf = found is not None and found.is_writable


def visible_descriptor(
    cpu: Cpu, selector: int, long_types: tuple[int, ...], legacy_types: tuple[int, ...]
) -> Descriptor | None:
    """The descriptor that LAR, LSL, VERR or VERW may see, or None where they clear ZF.

    Besides code and data, the system types in `long_types` (IA-32e mode) or `legacy_types` count. Conforming
    code is visible from everywhere; anything else needs CPL <= DPL and RPL <= DPL.
    """
    if is_null(selector):
        return None
    linear = descriptor_address(cpu, selector)
    if linear < 0:
        return None
    found = Descriptor(selector, linear, cpu.load_system(linear, 8))
    if not found.s and found.type not in (long_types if cpu.efer & EFER_LMA else legacy_types):
        return None
    if not found.conforming and (cpu.cpl > found.dpl or selector & 3 > found.dpl):
        return None
    return found


@insn("ARPL")
def arpl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF DEST.RPL < SRC.RPL THEN DEST.RPL := SRC.RPL; ZF := 1 ELSE ZF := 0"""
    selector = dst.value
    rpl = src.value & 3
    raised = (selector & 3) < rpl
    if raised:
        dst.value = selector & ~3 | rpl
    cpu.zf = raised


# ---- table registers ---------------------------------------------------------------------------------------


def check_umip(cpu: Cpu, name: str) -> None:
    """User-mode instruction prevention. #GP(0)."""
    if cpu.cr4 & CR4_UMIP and cpu.cpl:
        raise GeneralProtection(0, f"{name} at CPL {cpu.cpl} with CR4.UMIP")


@insn("SLDT")
def sldt(cpu: Cpu, dst: Operand) -> None:
    """DEST := LDTR(selector)"""
    check_umip(cpu, "SLDT")
    dst.value = cpu.ldtr.selector


@insn("STR")
def str_(cpu: Cpu, dst: Operand) -> None:
    """DEST := TR(selector)"""
    check_umip(cpu, "STR")
    dst.value = cpu.tr.selector


@insn("LLDT", inline=False)
def lldt(cpu: Cpu, src: Operand) -> None:
    """LDTR := SRC"""
    load_ldtr(cpu, src.value & M16)


@insn("LTR", inline=False)
def ltr(cpu: Cpu, src: Operand) -> None:
    """TR := SRC; the TSS becomes busy"""
    load_tr(cpu, src.value & M16)


@insn("SGDT")
def sgdt(cpu: Cpu, dst: Memory) -> None:
    """DEST := GDTR(limit), GDTR(base)"""
    check_umip(cpu, "SGDT")
    dst.value = (cpu.gdtr.limit | cpu.gdtr.base << 16) & dst.mask


@insn("SIDT")
def sidt(cpu: Cpu, dst: Memory) -> None:
    """DEST := IDTR(limit), IDTR(base)"""
    check_umip(cpu, "SIDT")
    dst.value = (cpu.idtr.limit | cpu.idtr.base << 16) & dst.mask


@insn("LGDT_M1632_16")
def lgdt16(cpu: Cpu, src: Memory) -> None:
    """GDTR(limit) := SRC[15:0]; GDTR(base) := SRC[39:16]"""
    load_table(cpu, cpu.gdtr, src.value & 0xFF_FFFF_FFFF)


@insn("LGDT_M1632", "LGDT_M1664")
def lgdt(cpu: Cpu, src: Memory) -> None:
    """GDTR(limit) := SRC[15:0]; GDTR(base) := the rest of SRC"""
    load_table(cpu, cpu.gdtr, src.value)


@insn("LIDT_M1632_16")
def lidt16(cpu: Cpu, src: Memory) -> None:
    """IDTR(limit) := SRC[15:0]; IDTR(base) := SRC[39:16]"""
    load_table(cpu, cpu.idtr, src.value & 0xFF_FFFF_FFFF)


@insn("LIDT_M1632", "LIDT_M1664")
def lidt(cpu: Cpu, src: Memory) -> None:
    """IDTR(limit) := SRC[15:0]; IDTR(base) := the rest of SRC"""
    load_table(cpu, cpu.idtr, src.value)


def load_table(cpu: Cpu, table: TableRegister, pseudo: int) -> None:
    """GDTR or IDTR from a pseudo-descriptor. #GP(0) if the base is not canonical."""
    base = pseudo >> 16
    if not is_canonical(base):
        raise GeneralProtection(0, f"descriptor table base {base:#x} is not canonical")
    table.limit = pseudo & M16
    table.base = base


# ---- FS and GS bases ---------------------------------------------------------------------------------------


def check_fsgsbase(cpu: Cpu, name: str) -> None:
    """CR4.FSGSBASE enables these instructions. #UD."""
    if not cpu.cr4 & CR4_FSGSBASE:
        raise InvalidOpcode(f"{name} with CR4.FSGSBASE = 0")


def check_base(base: int) -> None:
    """#GP(0) if a segment base is not canonical."""
    if not is_canonical(base):
        raise GeneralProtection(0, f"segment base {base:#x} is not canonical")


@insn("RDFSBASE")
def rdfsbase(cpu: Cpu, dst: Operand) -> None:
    """DEST := FS.base"""
    check_fsgsbase(cpu, "RDFSBASE")
    dst.value = cpu.fs.base & dst.mask


@insn("RDGSBASE")
def rdgsbase(cpu: Cpu, dst: Operand) -> None:
    """DEST := GS.base"""
    check_fsgsbase(cpu, "RDGSBASE")
    dst.value = cpu.gs.base & dst.mask


@insn("WRFSBASE")
def wrfsbase(cpu: Cpu, src: Operand) -> None:
    """FS.base := ZeroExtend(SRC)"""
    check_fsgsbase(cpu, "WRFSBASE")
    check_base(src.value)
    cpu.fs.base = src.value


@insn("WRGSBASE")
def wrgsbase(cpu: Cpu, src: Operand) -> None:
    """GS.base := ZeroExtend(SRC)"""
    check_fsgsbase(cpu, "WRGSBASE")
    check_base(src.value)
    cpu.gs.base = src.value


@insn("SWAPGS", inline=False)
def swapgs(cpu: Cpu) -> None:
    """GS.base :=: IA32_KERNEL_GS_BASE"""
    base = cpu.gs.base
    cpu.gs.base = cpu.msr.get(IA32_KERNEL_GS_BASE, 0)
    cpu.msr[IA32_KERNEL_GS_BASE] = base
