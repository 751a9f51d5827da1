"""System instructions that no other room has: flags and IF, fast system calls, ports, what UMIP hides, bases.

SDM Vol. 2, the instructions' own pages; SDM Vol. 1, "I/O Permission Bit Map"; Vol. 3, "Class 2-Maskable
Hardware Interrupt Handling in Virtual-8086 Mode", "Protected-Mode Virtual Interrupts".
"""

from __future__ import annotations

from collections.abc import Callable

from tests.matrices import model_paging as paging
from tests.matrices.model_exceptions import virtual_interrupts
from tests.matrices.model_rep import port_value
from tests.matrices.model_segments import TSS32, TSS32_BUSY, linear_address, reference
from tests.matrices.spec import (
    AC,
    AF,
    CF,
    DF,
    GP,
    ID,
    IF,
    IOPL,
    LMA,
    M16,
    M32,
    M64,
    NT,
    OF,
    PE,
    PF,
    RF,
    SCE,
    SF,
    TF,
    TS,
    UD,
    VIF,
    VIP,
    VM,
    VME,
    ZF,
    Fault,
    Machine,
    Seg,
    canonical,
    low,
)

Model = Callable[[Machine], None]

TSD, PCE, UMIP, FSGSBASE, OSXSAVE = 1 << 2, 1 << 8, 1 << 11, 1 << 16, 1 << 18
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
STAR, LSTAR, FMASK, TSC_AUX = 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0103
GS_BASE_OF_THE_KERNEL = 0xC000_0102
TIME = 0x1234_5678_9ABC  # what the bench's time-stamp counter stands at
CODE64, CODE32, DATA = 0xA09B, 0xC09B, 0xC093
DPL3 = 3 << 5


def ring0(m: Machine) -> None:
    """#GP(0) outside of ring 0."""
    if m.cpl:
        raise Fault(GP, 0)


def iopl(m: Machine) -> int:
    """The I/O privilege level."""
    return m.rflags >> 12 & 3


# ---- IF, PUSHF, POPF ---------------------------------------------------------------------------------------


def change_if(value: bool) -> Model:
    """CLI and STI"""

    def instruction(m: Machine) -> None:
        if m.cpl <= iopl(m):
            m.rflags = m.rflags & ~IF | (IF if value else 0)
        elif virtual_interrupts(m):
            if value and m.rflags & VIP:
                raise Fault(GP, 0)
            m.rflags = m.rflags & ~VIF | (VIF if value else 0)
        else:
            raise Fault(GP, 0)

    return instruction


def pushf(size: int) -> Model:
    """PUSHF, PUSHFD, PUSHFQ"""

    def instruction(m: Machine) -> None:
        image = m.rflags & ~(RF | VM)
        if m.v86 and iopl(m) < 3:
            if size != 2 or not m.cr4 & VME:
                raise Fault(GP, 0)
            image = image & ~IF | IOPL | (IF if m.rflags & VIF else 0)
        top = m.rsp - size & m.stack_mask
        paging.store(m, reference(m, "ss", top, size, write=True), size, image & (1 << 8 * size) - 1)
        m.rsp = m.rsp & ~m.stack_mask | top

    return instruction


def popf(size: int) -> Model:
    """POPF, POPFD, POPFQ: VIF, VIP, VM stay, RF is cleared"""

    def instruction(m: Machine) -> None:
        if m.v86 and iopl(m) < 3 and (size != 2 or not m.cr4 & VME):
            raise Fault(GP, 0)
        offset = m.rsp & m.stack_mask
        image = paging.load(m, reference(m, "ss", offset, size, write=False), size)
        mask = CF | PF | AF | ZF | SF | TF | DF | OF | NT
        if size > 2:
            mask |= AC | ID
        if m.v86 and iopl(m) < 3:
            if image & TF or (image & IF and m.rflags & VIP):
                raise Fault(GP, 0)
            mask |= VIF
            image = image & ~VIF | (VIF if image & IF else 0)
        else:
            if m.cpl <= iopl(m):
                mask |= IF
            if m.cpl == 0:
                mask |= IOPL
        m.rflags = m.rflags & ~mask | image & mask
        m.rsp = m.rsp & ~m.stack_mask | m.rsp + size & m.stack_mask

    return instruction


# ---- fast system calls -------------------------------------------------------------------------------------


def syscall(m: Machine) -> None:
    """SYSCALL as Intel's CPUs have it: in 64-bit mode"""
    if not m.mode64 or not m.efer & SCE:
        raise Fault(UD)
    selector = m.msrs[STAR] >> 32 & 0xFFFC
    m.rcx, m.r11 = m.rip, m.rflags & ~RF
    m.rip = m.msrs[LSTAR]
    m.cs = Seg(selector, 0, M32, CODE64)
    m.ss = Seg(selector + 8 & M16, 0, M32, DATA)
    m.cpl = 0
    m.rflags = m.rflags & ~(m.msrs[FMASK] | RF) | 2


def sysret(wide: bool) -> Model:
    """SYSRET to compatibility mode or, `wide`, to 64-bit mode"""

    def instruction(m: Machine) -> None:
        if not m.mode64 or not m.efer & SCE:
            raise Fault(UD)
        ring0(m)
        if wide and not canonical(m.rcx):
            raise Fault(GP, 0)
        selector = m.msrs[STAR] >> 48
        m.rip = m.rcx if wide else m.rcx & M32
        m.cs = Seg((selector + (16 if wide else 0) & M16) | 3, 0, M32, (CODE64 if wide else CODE32) | DPL3)
        m.ss = Seg((selector + 8 & M16) | 3, 0, M32, DATA | DPL3)
        m.cpl = 3
        m.rflags = m.r11 & 0x3C_7FD7 | 2

    return instruction


def sysenter(m: Machine) -> None:
    """SYSENTER"""
    selector = m.msrs[SYSENTER_CS] & 0xFFFC
    if not m.cr0 & PE or not selector:
        raise Fault(GP, 0)
    wide = bool(m.efer & LMA)
    m.rflags &= ~(VM | IF | RF)
    m.cs = Seg(selector, 0, M32, CODE64 if wide else CODE32)
    m.ss = Seg(selector + 8 & M16, 0, M32, DATA)
    m.rip = m.msrs[SYSENTER_EIP] & (M64 if wide else M32)
    m.rsp = m.msrs[SYSENTER_ESP] & (M64 if wide else M32)
    m.cpl = 0


def sysexit(wide: bool) -> Model:
    """SYSEXIT to 32-bit or, `wide`, to 64-bit code"""

    def instruction(m: Machine) -> None:
        selector = m.msrs[SYSENTER_CS] & 0xFFFC
        if not m.cr0 & PE or m.cpl or not selector:
            raise Fault(GP, 0)
        if wide and not (canonical(m.rcx) and canonical(m.rdx)):
            raise Fault(GP, 0)
        mask = M64 if wide else M32
        first = selector + (32 if wide else 16)
        m.cs = Seg(first & M16 | 3, 0, M32, (CODE64 if wide else CODE32) | DPL3)
        m.ss = Seg(first + 8 & M16 | 3, 0, M32, DATA | DPL3)
        m.rip, m.rsp = m.rdx & mask, m.rcx & mask
        m.cpl = 3

    return instruction


# ---- what UMIP hides ---------------------------------------------------------------------------------------


def stored(what: str, size: int, register: bool) -> Model:
    """SGDT, SIDT, SLDT, STR and SMSW to [rBX] or to rAX"""

    def instruction(m: Machine) -> None:
        if what in ("sldt", "str") and not m.protected:
            raise Fault(UD)
        if m.cr4 & UMIP and m.cpl:
            raise Fault(GP, 0)
        if what in ("sgdt", "sidt"):
            base, limit = m.gdtr if what == "sgdt" else m.idtr
            value, width = base << 16 | limit, 10 if m.mode64 else 6
        else:
            value, width = {"sldt": m.ldtr.selector, "str": m.tr.selector, "smsw": m.cr0}[what], 2
        if register:
            m.rax = low(m.rax, value & (1 << 8 * size) - 1, (1 << 8 * size) - 1)
            return
        mask = M64 if m.mode64 else M32 if m.cs.db else M16
        at = reference(m, "ds", m.rbx & mask, width, write=True)
        paging.store(m, at, width, value & (1 << 8 * width) - 1)

    return instruction


def load_table(what: str, bits: int) -> Model:
    """LGDT and LIDT [rBX]: 24 bits of the base with a 16-bit operand"""

    def instruction(m: Machine) -> None:
        ring0(m)
        width = 10 if m.mode64 else 6
        mask = M64 if m.mode64 else M32 if m.cs.db else M16
        value = paging.load(m, linear_address(m, "ds", m.rbx & mask, width, write=False), width)
        base = value >> 16
        if bits == 16 and not m.mode64:
            base &= 0xFF_FFFF
        if not canonical(base):
            raise Fault(GP, 0)
        m.set(**{what: (base, value & M16)})

    return instruction


# ---- the rest ----------------------------------------------------------------------------------------------


def clts(m: Machine) -> None:
    """CLTS"""
    ring0(m)
    m.cr0 &= ~TS


def privileged_nothing(m: Machine) -> None:
    """INVD, WBINVD, INVLPG: nothing to see"""
    ring0(m)


def rdtsc(aux: bool) -> Model:
    """RDTSC and, with `aux`, RDTSCP"""

    def instruction(m: Machine) -> None:
        if m.cr4 & TSD and m.cpl:
            raise Fault(GP, 0)
        m.rax, m.rdx = TIME & M32, TIME >> 32
        if aux:
            m.rcx = m.msrs[TSC_AUX]

    return instruction


def rdpid(m: Machine) -> None:
    """RDPID rAX"""
    m.rax = m.msrs[TSC_AUX]


def rdpmc(m: Machine) -> None:
    """RDPMC of a counter that does not exist"""
    raise Fault(GP, 0)


def xgetbv(m: Machine) -> None:
    """XGETBV"""
    if not m.cr4 & OSXSAVE:
        raise Fault(UD)
    if m.rcx & M32:
        raise Fault(GP, 0)
    m.rax, m.rdx = m.xcr0 & M32, m.xcr0 >> 32


def set_ac(value: bool) -> Model:
    """CLAC and STAC"""

    def instruction(m: Machine) -> None:
        if m.cpl:
            raise Fault(UD)
        m.rflags = m.rflags & ~AC | (AC if value else 0)

    return instruction


def base_register(name: str, size: int, write: bool) -> Model:
    """RDFSBASE to WRGSBASE with rAX"""

    def instruction(m: Machine) -> None:
        if not m.mode64 or not m.cr4 & FSGSBASE:
            raise Fault(UD)
        seg: Seg = getattr(m, name)
        mask = (1 << 8 * size) - 1
        if not write:
            m.rax = seg.base & mask
        elif not canonical(m.rax & mask):
            raise Fault(GP, 0)
        else:
            m.set(**{name: seg._replace(base=m.rax & mask)})

    return instruction


def swapgs(m: Machine) -> None:
    """SWAPGS"""
    if not m.mode64:
        raise Fault(UD)
    ring0(m)
    old = m.gs.base
    m.gs = m.gs._replace(base=m.msrs[GS_BASE_OF_THE_KERNEL])
    m.msrs = {**m.msrs, GS_BASE_OF_THE_KERNEL: old}


# ---- ports -------------------------------------------------------------------------------------------------


def check_ports(m: Machine, port: int, size: int) -> None:
    """ "I/O Permission Bit Map": two bytes are read, and both have to lie within the limit of the TSS."""
    if m.v86 or (m.protected and m.cpl > iopl(m)):
        if m.tr.type not in (TSS32, TSS32_BUSY) or m.tr.limit < 0x67:
            raise Fault(GP, 0)
        at = paging.load(m, m.tr.base + 0x66, 2, implicit=True) + port // 8
        if at + 1 > m.tr.limit:
            raise Fault(GP, 0)
        bits = paging.load(m, m.tr.base + at, 2, implicit=True) >> port % 8
        if bits & (1 << size) - 1:
            raise Fault(GP, 0)


def port_access(write: bool, port: int, size: int) -> Model:
    """IN and OUT"""

    def instruction(m: Machine) -> None:
        check_ports(m, port, size)
        if write:
            m.ports = (("out", port, size, m.rax & (1 << 8 * size) - 1),)
            return
        m.ports = (("in", port, size),)
        value = port_value(0) & (1 << 8 * size) - 1
        m.rax = m.rax & ~0xFF | value if size == 1 else low(m.rax, value, (1 << 8 * size) - 1)

    return instruction
