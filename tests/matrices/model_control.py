"""MOV to and from control and debug registers, LMSW, CLTS, WRMSR of IA32_EFER: what they check and change.

SDM Vol. 2, "MOV-Move to/from Control Registers", "... Debug Registers", LMSW; Vol. 3, "Control Registers",
"PDPTE Registers", "Debug Registers"; Vol. 4, IA32_EFER. TLBs have no place here.
"""

from __future__ import annotations

from tests.matrices.model_paging import MAXPHYADDR, bits, load_pdptes
from tests.matrices.spec import (
    DB,
    DE,
    ET,
    GP,
    LMA,
    LME,
    M32,
    NXE,
    PAE,
    PE,
    PG,
    PGE,
    PSE,
    SCE,
    SMEP,
    UD,
    Fault,
    Machine,
)

CD, NW, PCIDE = 1 << 30, 1 << 29, 1 << 17
CR0_DEFINED = bits((5, 0), 16, 18, (31, 29))  # figure "Control Registers"; other bits of 31-0 are ignored
# CR4 bits of what CPUID offers here: VME to PGE but MCE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, PCIDE,
# OSXSAVE, SMEP, SMAP
CR4_OFFERED = bits((5, 0), 7, 8, 9, 10, 11, 16, 17, 18, 20, 21)
EFER_OFFERED = SCE | LME | LMA | NXE
DR6_FIXED, DR6_WRITABLE = 0xFFFF_0FF0, 0xE00F  # figure "Debug Registers DR6 and DR7"
DR7_FIXED, DR7_WRITABLE = 0x400, 0xFFFF_2BFF


def mov_to_cr(m: Machine, number: int, value: int) -> None:
    """MOV CRn, r."""
    if number not in (0, 2, 3, 4, 8):
        raise Fault(UD)
    if m.cpl:
        raise Fault(GP, 0)
    match number:
        case 0:
            write_cr0(m, value)
        case 2:
            m.cr2 = value
        case 3:
            write_cr3(m, value)
        case 4:
            write_cr4(m, value)
        case 8:
            if value >> 4:
                raise Fault(GP, 0)
            m.cr8 = value


def mov_from_cr(m: Machine, number: int) -> int:
    """MOV r, CRn."""
    if number not in (0, 2, 3, 4, 8):
        raise Fault(UD)
    if m.cpl:
        raise Fault(GP, 0)
    value: int = getattr(m, f"cr{number}")
    return value


def write_cr0(m: Machine, value: int) -> None:
    """The combinations that are #GP(0), and IA-32e mode on and off."""
    if value >> 32:
        raise Fault(GP, 0)
    value = value & CR0_DEFINED | ET
    on, was_on = bool(value & PG), bool(m.cr0 & PG)
    if (on and not value & PE) or (value & NW and not value & CD):
        raise Fault(GP, 0)
    if was_on and not on and (m.mode64 or m.cr4 & PCIDE):
        raise Fault(GP, 0)
    if not on and m.cr4 & PCIDE:
        raise Fault(GP, 0)
    efer = m.efer
    if on and not was_on and efer & LME:
        sixteen_bit_tss = m.tr.type in (1, 3)
        if not m.cr4 & PAE or m.cs.l or sixteen_bit_tss:
            raise Fault(GP, 0)
        efer |= LMA
    if not on:
        efer &= ~LMA
    if on and m.cr4 & PAE and not efer & LMA and (value ^ m.cr0) & (CD | NW | PG):
        m.pdptes = load_pdptes(m, m.cr3)
    m.cr0, m.efer = value, efer


def write_cr3(m: Machine, value: int) -> None:
    """Reserved bits in IA-32e mode; the PDPTE registers with PAE paging. Bit 63 with PCIDs is not stored."""
    if m.cr4 & PCIDE:
        value &= ~(1 << 63)
    if m.long:
        if value >> MAXPHYADDR:
            raise Fault(GP, 0)
    else:
        value &= M32
        if m.cr0 & PG and m.cr4 & PAE:
            m.pdptes = load_pdptes(m, value)
    m.cr3 = value


def write_cr4(m: Machine, value: int, offered: int = CR4_OFFERED) -> None:
    """Reserved bits, PAE in IA-32e mode, PCIDE; the PDPTE registers."""
    if value & ~offered:
        raise Fault(GP, 0)
    changed = value ^ m.cr4
    if m.long and changed & PAE:
        raise Fault(GP, 0)
    if changed & value & PCIDE and (not m.long or m.cr3 & 0xFFF):
        raise Fault(GP, 0)
    if m.cr0 & PG and value & PAE and not m.long and changed & (PAE | PGE | PSE | SMEP):
        m.pdptes = load_pdptes(m, m.cr3)
    m.cr4 = value


def lmsw(m: Machine, value: int) -> None:
    """CR0[3:0]; PE can be set, not cleared."""
    if m.cpl:
        raise Fault(GP, 0)
    m.cr0 = m.cr0 & ~0xE | value & 0xF


def write_efer(m: Machine, value: int, offered: int = EFER_OFFERED) -> None:
    """WRMSR of IA32_EFER: reserved bits; LME while paging is on; LMA is read-only."""
    if m.cpl:
        raise Fault(GP, 0)
    if value & ~offered or (m.cr0 & PG and (value ^ m.efer) & LME):
        raise Fault(GP, 0)
    m.efer = value & ~LMA | m.efer & LMA


def debug_register(m: Machine, number: int) -> int:
    """The number behind DR4 and DR5; what comes before the access."""
    if number > 7 or (number in (4, 5) and m.cr4 & DE):
        raise Fault(UD)
    if m.cpl:
        raise Fault(GP, 0)
    if m.dr7 >> 13 & 1:
        raise Fault(DB, dr6=1 << 13)
    return number + 2 if number in (4, 5) else number


def mov_to_dr(m: Machine, number: int, value: int) -> None:
    """MOV DRn, r."""
    number = debug_register(m, number)
    if number >= 6 and value >> 32:
        raise Fault(GP, 0)
    if number == 6:
        value = value & DR6_WRITABLE | DR6_FIXED
    elif number == 7:
        value = value & DR7_WRITABLE | DR7_FIXED
    m.set(**{f"dr{number}": value})


def mov_from_dr(m: Machine, number: int) -> int:
    """MOV r, DRn."""
    value: int = getattr(m, f"dr{debug_register(m, number)}")
    return value
