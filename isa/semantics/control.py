"""Control and debug registers, CLTS, LMSW/SMSW, HLT, TLB and cache control, XCR0.

Source: SDM Vol. 3, "Control Registers", "Debug Registers"; Vol. 2 for each instruction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import DebugException, GeneralProtection, InvalidOpcode
from isa.memory import PHYSICAL_BITS
from isa.msr import is_canonical
from isa.operands import Memory, NamedRegister, Operand
from isa.semantics.fpu_control import drive_ferr
from isa.semantics.registry import insn
from isa.state import (
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_PVI,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    CR4_VME,
    EFER_LMA,
    EFER_LME,
    M16,
    M32,
    M64,
    SYS_TSS16_BUSY,
)

if TYPE_CHECKING:
    from isa.cpu import Cpu

CR0_DEFINED = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
CR0_PAGING_BITS = CR0_PG | CR0_WP | CR0_PE
CR4_PAGING_BITS = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP
CR4_PDPTE_BITS = CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP  # a change loads the PDPTE registers
CR4_BITS = {
    "VME": CR4_VME | CR4_PVI, "TSC": CR4_TSD, "DE": CR4_DE, "PSE": CR4_PSE, "PAE": CR4_PAE, "PGE": CR4_PGE,
    "FXSR": CR4_OSFXSR, "SSE": CR4_OSXMMEXCPT, "UMIP": CR4_UMIP, "FSGSBASE": CR4_FSGSBASE,
    "PCID": CR4_PCIDE, "XSAVE": CR4_OSXSAVE, "SMEP": CR4_SMEP, "SMAP": CR4_SMAP,
}  # fmt: skip
CR3_NO_FLUSH = 1 << 63
DR7_GD = 1 << 13
DR6_BD = 1 << 13
DR6_FIXED_ONES = 0xFFFF_0FF0
DR6_WRITABLE = 0xE00F
DR7_FIXED_ONES = 0x400
DR7_WRITABLE = 0xFFFF_2BFF


@insn("MOV_R32_CR", "MOV_R64_CR", inline=False, own_privilege=True)
def mov_from_cr(cpu: Cpu, dst: Operand, src: NamedRegister) -> None:
    """DEST := CRn"""
    check_control_register(cpu, src.number)
    dst.value = read_cr(cpu, src.number) & dst.mask


@insn("MOV_CR_R32", "MOV_CR_R64", inline=False, own_privilege=True)
def mov_to_cr(cpu: Cpu, dst: NamedRegister, src: Operand) -> None:
    """CRn := SRC"""
    check_control_register(cpu, dst.number)
    write_cr(cpu, dst.number, src.value)


def check_control_register(cpu: Cpu, number: int) -> None:
    """#UD for CR1, CR5-CR7 and above CR8, at any CPL; then #GP(0) outside ring 0."""
    if number not in (0, 2, 3, 4, 8):
        raise InvalidOpcode(f"there is no CR{number}")
    if cpu.cpl:
        raise GeneralProtection(0, f"MOV CR{number} at CPL {cpu.cpl}")


def read_cr(cpu: Cpu, number: int) -> int:
    """A control register; #UD for CR1, CR5-CR7 and above CR8."""
    match number:
        case 0:
            return cpu.cr0
        case 2:
            return cpu.cr2
        case 3:
            return cpu.cr3
        case 4:
            return cpu.cr4
        case 8:
            return cpu.cr8 if cpu.read_cr8 is None else cpu.read_cr8()
    raise InvalidOpcode(f"there is no CR{number}")


def write_cr(cpu: Cpu, number: int, value: int) -> None:
    """Write a control register with every check of its MOV."""
    match number:
        case 0:
            write_cr0(cpu, value)
        case 2:
            cpu.cr2 = value
        case 3:
            write_cr3(cpu, value)
        case 4:
            write_cr4(cpu, value)
        case 8:
            if value & ~0xF:
                raise GeneralProtection(0, f"CR8: reserved bits in {value:#x}")
            cpu.cr8 = value
            if cpu.on_cr8 is not None:
                cpu.on_cr8(value)
            cpu.request_attention()
        case _:
            raise InvalidOpcode(f"there is no CR{number}")


def write_cr0(cpu: Cpu, value: int) -> None:
    """CR0 := value; enters and leaves protected, paged and long mode."""
    if value >> 32:
        raise GeneralProtection(0, f"CR0: bits above 31 set in {value:#x}")
    value = value & CR0_DEFINED | CR0_ET
    old = cpu.cr0
    if value & CR0_PG and not value & CR0_PE:
        raise GeneralProtection(0, "CR0: PG=1 with PE=0")
    if value & CR0_NW and not value & CR0_CD:
        raise GeneralProtection(0, "CR0: NW=1 with CD=0")
    if not value & CR0_PG and cpu.cr4 & CR4_PCIDE:
        raise GeneralProtection(0, "CR0.PG cleared with CR4.PCIDE=1")
    if not value & CR0_PG and cpu.mode64:
        raise GeneralProtection(0, "CR0.PG cleared with CS.L=1")
    efer = cpu.efer
    if value & CR0_PG and not old & CR0_PG:
        if efer & EFER_LME:
            if not cpu.cr4 & CR4_PAE:
                raise GeneralProtection(0, "CR0.PG set with EFER.LME=1 and CR4.PAE=0")
            if cpu.cs.l:
                raise GeneralProtection(0, "CR0.PG set with EFER.LME=1 and CS.L=1")
            if cpu.tr.type <= SYS_TSS16_BUSY:
                raise GeneralProtection(0, f"CR0.PG set with EFER.LME=1, 16-bit TSS {cpu.tr.selector:#06x}")
            efer |= EFER_LMA
        elif cpu.cr4 & CR4_PAE:
            cpu.load_pdptes(cpu.cr3)
    elif old & CR0_PG and not value & CR0_PG:
        efer &= ~EFER_LMA
    elif value & CR0_PG and cpu.cr4 & CR4_PAE and not efer & EFER_LMA and (value ^ old) & (CR0_CD | CR0_NW):
        cpu.load_pdptes(cpu.cr3)
    cpu.efer = efer
    cpu.cr0 = value
    if (value ^ old) & CR0_NE:
        drive_ferr(cpu)
    if (value ^ old) & CR0_PAGING_BITS:
        cpu.flush_tlb()
    cpu.update_mode()


def write_cr3(cpu: Cpu, value: int) -> None:
    """CR3 := value; forgets translations (PCID lets the guest keep them, the SDM never forces us to)."""
    if cpu.cr4 & CR4_PCIDE:
        value &= ~CR3_NO_FLUSH
    if cpu.efer & EFER_LMA:
        if value >> PHYSICAL_BITS:
            raise GeneralProtection(0, f"CR3: reserved bits in {value:#x}")
    else:
        value &= M32
        if cpu.cr0 & CR0_PG and cpu.cr4 & CR4_PAE:
            cpu.load_pdptes(value)
    cpu.cr3 = value
    cpu.flush_tlb()


def write_cr4(cpu: Cpu, value: int) -> None:
    """CR4 := value; a bit exists only with its CPUID feature."""
    allowed = CR4_PCE
    for feature, bits in CR4_BITS.items():
        if feature in cpu.features:
            allowed |= bits
    if value & ~allowed:
        raise GeneralProtection(0, f"CR4: reserved bits {value & ~allowed:#x}")
    changed = value ^ cpu.cr4
    if changed & CR4_PAE and cpu.efer & EFER_LMA:
        raise GeneralProtection(0, "CR4.PAE cleared with EFER.LMA=1")
    if changed & value & CR4_PCIDE and (not cpu.efer & EFER_LMA or cpu.cr3 & 0xFFF):
        why = f"CR4.PCIDE set with EFER.LMA={int(bool(cpu.efer & EFER_LMA))}, CR3[11:0]={cpu.cr3 & 0xFFF:#x}"
        raise GeneralProtection(0, why)
    if value & CR4_PAE and cpu.cr0 & CR0_PG and not cpu.efer & EFER_LMA and changed & CR4_PDPTE_BITS:
        cpu.load_pdptes(cpu.cr3)
    cpu.cr4 = value
    if changed & CR4_PAGING_BITS:
        cpu.flush_tlb()
    cpu.update_mode()


@insn("MOV_R32_DR", "MOV_R64_DR", inline=False, own_privilege=True)
def mov_from_dr(cpu: Cpu, dst: Operand, src: NamedRegister) -> None:
    """DEST := DRn"""
    dst.value = getattr(cpu, debug_register(cpu, src.number)) & dst.mask


@insn("MOV_DR_R32", "MOV_DR_R64", inline=False, own_privilege=True)
def mov_to_dr(cpu: Cpu, dst: NamedRegister, src: Operand) -> None:
    """DRn := SRC"""
    name = debug_register(cpu, dst.number)
    value = src.value
    if name == "dr6":
        if value >> 32:
            raise GeneralProtection(0, f"DR6: bits above 31 set in {value:#x}")
        cpu.dr6 = value & DR6_WRITABLE | DR6_FIXED_ONES
    elif name == "dr7":
        if value >> 32:
            raise GeneralProtection(0, f"DR7: bits above 31 set in {value:#x}")
        cpu.dr7 = value & DR7_WRITABLE | DR7_FIXED_ONES
        cpu.flush_tlb()  # watched pages may not be in the TLB
        cpu.request_attention()
    else:
        setattr(cpu, name, value)


def debug_register(cpu: Cpu, number: int) -> str:
    """The register that MOV DR means. #UD for DR4/DR5 with CR4.DE and above DR7, at any CPL; then #GP(0)
    outside ring 0; #DB with DR7.GD."""
    if number > 7:
        raise InvalidOpcode(f"there is no DR{number}")
    if number in (4, 5):
        if cpu.cr4 & CR4_DE:
            raise InvalidOpcode(f"DR{number} with CR4.DE=1")
        number += 2
    if cpu.cpl:
        raise GeneralProtection(0, f"MOV DR{number} at CPL {cpu.cpl}")
    if cpu.dr7 & DR7_GD:
        raise DebugException(DR6_BD, f"MOV DR{number} with DR7.GD=1", trap=False)
    return f"dr{number}"


@insn("CLTS", inline=False)
def clts(cpu: Cpu) -> None:
    """CR0.TS := 0"""
    cpu.cr0 = cpu.cr0 & ~CR0_TS
    cpu.update_mode()


@insn("LMSW", inline=False)
def lmsw(cpu: Cpu, src: Operand) -> None:
    """CR0[3:0] := SRC[3:0]; PE can be set, not cleared"""
    value = src.value & 0xF | cpu.cr0 & CR0_PE
    write_cr0(cpu, cpu.cr0 & ~0xF | value)


@insn("SMSW", inline=False)
def smsw(cpu: Cpu, dst: Operand) -> None:
    """DEST := CR0[15:0] (a wider register gets the wider CR0)"""
    check_umip(cpu, "SMSW")
    dst.value = cpu.cr0 & dst.mask


def check_umip(cpu: Cpu, name: str) -> None:
    """CR4.UMIP: #GP(0) outside ring 0."""
    if cpu.cr4 & CR4_UMIP and cpu.cpl:
        raise GeneralProtection(0, f"UMIP: {name} at CPL {cpu.cpl}")


@insn("HLT", inline=False)
def hlt(cpu: Cpu) -> None:
    """Stop until an interrupt, an NMI or RESET"""
    cpu.halted = True
    cpu.request_attention()


@insn("MONITORW", inline=False, own_privilege=True)
def monitorw(cpu: Cpu) -> None:
    """Arm address monitoring at DS:AX; ECX holds extensions, none is defined"""
    arm_monitor(cpu, cpu.rax & M16)


@insn("MONITORD", inline=False, own_privilege=True)
def monitord(cpu: Cpu) -> None:
    """Arm address monitoring at DS:EAX; ECX holds extensions, none is defined"""
    arm_monitor(cpu, cpu.rax & M32)


@insn("MONITORQ", inline=False, own_privilege=True)
def monitorq(cpu: Cpu) -> None:
    """Arm address monitoring at DS:RAX; ECX holds extensions, none is defined"""
    arm_monitor(cpu, cpu.rax)


def arm_monitor(cpu: Cpu, offset: int) -> None:
    """The checks of MONITOR; the address is touched as by a byte load. #UD outside ring 0, #GP(0)."""
    if cpu.cpl:
        raise InvalidOpcode(f"MONITOR at CPL {cpu.cpl}")
    extensions = cpu.rcx & (M64 if cpu.mode64 else M32)
    if extensions:
        raise GeneralProtection(0, f"MONITOR: ECX is {extensions:#x}, no extension exists")
    cpu.read_data(cpu.ds, offset, 1)  # Quirk: a segment override is ignored


@insn("MWAIT", inline=False, own_privilege=True)
def mwait(cpu: Cpu) -> None:
    """Wait for a store to the monitored line or an interrupt"""
    if cpu.cpl:
        raise InvalidOpcode(f"MWAIT at CPL {cpu.cpl}")
    extensions = cpu.rcx & (M64 if cpu.mode64 else M32)
    if extensions:  # waking for masked interrupts too: CPUID.05H:ECX[bit 1] says that it does not exist
        raise GeneralProtection(0, f"MWAIT: ECX is {extensions:#x}, no extension exists")
    # Quirk: here only interrupts end the wait
    cpu.halted = True
    cpu.request_attention()


@insn("INVLPG", inline=False)
def invlpg(cpu: Cpu, src: Memory) -> None:
    """Forget the translation of a page; here, of every page, as the SDM allows"""
    cpu.flush_tlb()


@insn("INVPCID", inline=False)
def invpcid(cpu: Cpu, kind: Operand, descriptor: Memory) -> None:
    """Forget translations by PCID: type 0 address, 1 context, 2 all, 3 all but global"""
    low = cpu.read_data(descriptor.segment, descriptor.offset, 8)
    high = cpu.read_data(descriptor.segment, descriptor.offset + 8 & descriptor.address_mask, 8)
    if kind.value > 3:
        raise GeneralProtection(0, f"INVPCID: type {kind.value:#x} is reserved")
    if low >> 12:
        raise GeneralProtection(0, f"INVPCID: reserved bits in the descriptor {low:#x}")
    if kind.value < 2 and low & 0xFFF and not cpu.cr4 & CR4_PCIDE:
        raise GeneralProtection(0, f"INVPCID: PCID {low & 0xFFF:#x} with CR4.PCIDE=0")
    if kind.value == 0 and not is_canonical(high):
        raise GeneralProtection(0, f"INVPCID: address {high:#x} is not canonical")
    cpu.flush_tlb()


@insn("INVD", "WBINVD", "WBNOINVD")
def write_back_invalidate(cpu: Cpu) -> None:
    """Empty the caches; there are none here"""


@insn("XGETBV", inline=False, called=True)
def xgetbv(cpu: Cpu) -> None:
    """EDX:EAX := XCR[ECX]"""
    check_osxsave(cpu, "XGETBV")
    if cpu.rcx & M32:
        raise GeneralProtection(0, f"XGETBV: there is no XCR{cpu.rcx & M32}")
    cpu.rax = cpu.xcr0 & M32
    cpu.rdx = cpu.xcr0 >> 32


@insn("XSETBV", inline=False, own_privilege=True)
def xsetbv(cpu: Cpu) -> None:
    """XCR[ECX] := EDX:EAX; x87 is required, AVX needs SSE"""
    if not cpu.vm:  # which has but #GP, it does not look at CR4
        check_osxsave(cpu, "XSETBV")
    if cpu.cpl:
        raise GeneralProtection(0, f"XSETBV at CPL {cpu.cpl}")
    value = (cpu.rdx & M32) << 32 | cpu.rax & M32
    allowed = 0b111 if "AVX" in cpu.features else 0b011
    if cpu.rcx & M32:
        raise GeneralProtection(0, f"XSETBV: there is no XCR{cpu.rcx & M32}")
    if not value & 1 or value & ~allowed or value & 0b110 == 0b100:
        raise GeneralProtection(0, f"XSETBV: XCR0 cannot be {value:#x}")
    cpu.xcr0 = value
    cpu.update_mode()


def check_osxsave(cpu: Cpu, name: str) -> None:
    """#UD without CR4.OSXSAVE."""
    if not cpu.cr4 & CR4_OSXSAVE:
        raise InvalidOpcode(f"{name} without CR4.OSXSAVE")
