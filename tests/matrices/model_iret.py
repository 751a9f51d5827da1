"""IRET in every mode: SDM Vol. 2, IRET, "Operation"; SDM Vol. 3, "Software Interrupt Handling" for VME."""

from __future__ import annotations

from tests.matrices.model_far import (
    check_entry,
    enter_real,
    pop,
    real_target,
    return_code,
    return_stack,
    to_outer,
)
from tests.matrices.model_gates import previous_task, switch_task
from tests.matrices.model_segments import mark_accessed, set_sp
from tests.matrices.spec import (
    AC,
    AF,
    CF,
    DF,
    GP,
    ID,
    IF,
    IOPL,
    M16,
    NT,
    OF,
    PE,
    PF,
    RF,
    SEGMENTS,
    SF,
    TF,
    VIF,
    VIP,
    VM,
    VME,
    ZF,
    Fault,
    Machine,
    Seg,
)

ALWAYS = CF | PF | AF | ZF | SF | TF | DF | OF | NT
WIDE = RF | AC | ID


def iret(m: Machine, size: int) -> None:
    """IRET, IRETD or IRETQ. NMIs are unblocked even if it faults ("Handling Multiple NMIs")."""
    m.nmi_blocked = False
    if not m.cr0 & PE:
        offset, selector, flags = (pop(m, n, size) for n in range(3))
        real_target(m, offset)
        mask = ALWAYS | IOPL | IF | (WIDE if size == 4 else 0)
        m.rflags = m.rflags & ~mask | flags & mask
        set_sp(m, m.rsp + 3 * size, m.stack_mask)
        enter_real(m, selector & M16, offset)
    elif m.v86:
        from_v86(m, size)
    elif m.rflags & NT:
        if m.long:
            raise Fault(GP, 0)
        switch_task(m, previous_task(m), "return", image=m.rflags & ~NT)
    else:
        protected(m, size)


def from_v86(m: Machine, size: int) -> None:
    """ "RETURN-FROM-VIRTUAL-8086-MODE": IOPL 3, or with VME a 16-bit one that works on VIF."""
    virtual = m.rflags & IOPL != IOPL
    if virtual and not (m.cr4 & VME and size == 2):
        raise Fault(GP, 0)
    offset, selector, flags = (pop(m, n, size) for n in range(3))
    real_target(m, offset)
    mask = ALWAYS | (WIDE if size == 4 else 0)
    if virtual:
        if flags & TF or (flags & IF and m.rflags & VIP):
            raise Fault(GP, 0)
        mask |= VIF
        flags = flags & ~VIF | (VIF if flags & IF else 0)
    else:
        mask |= IF
    m.rflags = m.rflags & ~mask | flags & mask
    set_sp(m, m.rsp + 3 * size, m.stack_mask)
    enter_real(m, selector & M16, offset)


def protected(m: Machine, size: int) -> None:
    """ "PROTECTED-MODE-RETURN" and "IA-32e-MODE-RETURN"."""
    offset, selector, flags = (pop(m, n, size) for n in range(3))
    selector &= M16
    if flags & VM and m.cpl == 0 and size == 4 and not m.long:
        to_v86(m, offset, selector, flags)
        return
    stack_too = m.mode64
    if stack_too:
        sp, ss_selector = pop(m, 3, size), pop(m, 4, size) & M16
    code = return_code(m, selector)
    level = selector & 3
    mask = ALWAYS | (WIDE if size > 2 else 0)
    if m.cpl <= m.rflags >> 12 & 3:
        mask |= IF
    if m.cpl == 0:
        mask |= IOPL | (VIF | VIP if size > 2 else 0)
    if level != m.cpl or stack_too:
        if not stack_too:
            sp, ss_selector = pop(m, 3, size), pop(m, 4, size) & M16
        stack = return_stack(m, ss_selector, code)
        check_entry(m, code, offset)
        to_outer(m, code, offset, ss_selector, stack, sp, 0)
    else:
        check_entry(m, code, offset)
        set_sp(m, m.rsp + 3 * size, m.stack_mask)
        m.cs = mark_accessed(m, code).seg()
        m.rip = offset
    m.rflags = m.rflags & ~mask | flags & mask


def to_v86(m: Machine, offset: int, selector: int, flags: int) -> None:
    """ "RETURN-TO-VIRTUAL-8086-MODE": room for all of the frame first, then the instruction pointer."""
    sp, ss, es, ds, fs, gs = (pop(m, n, 4) for n in range(3, 9))
    if offset > M16:
        raise Fault(GP, 0)
    m.rflags = flags & 0x3F_7FD5 | 2
    m.cpl = 3
    m.rip, m.rsp = offset, sp
    for name, value in zip(SEGMENTS, (es, selector, ss, ds, fs, gs), strict=True):
        m.set(**{name: Seg(value & M16, (value & M16) << 4, M16, 0xF3)})
