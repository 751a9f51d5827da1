"""Delivery of interrupts and exceptions through the IDT and the IVT: SDM Vol. 2, INT n, "Operation".

One delivery, or the fault it meets; what follows that fault is `model_exceptions`. Task gates switch tasks as
SDM Vol. 3, "Task Switching" and "Exception Conditions Checked During a Task Switch" say.
"""

from __future__ import annotations

from tests.matrices import model_paging as paging
from tests.matrices.model_segments import (
    CODE,
    CONFORMING,
    INT16,
    INT32,
    TASK_GATE,
    TRAP16,
    TRAP32,
    TSS16,
    TSS16_BUSY,
    TSS32,
    TSS32_BUSY,
    Desc,
    check_data,
    check_ss,
    error_of,
    fetch,
    is_null,
    load_ldtr,
    mark_accessed,
    push_all,
    room,
    set_sp,
    stack_from_tss,
    stack_from_tss64,
)
from tests.matrices.spec import (
    AC,
    GP,
    IF,
    IOPL,
    M16,
    M32,
    M64,
    NP,
    NT,
    PAE,
    PE,
    PG,
    RF,
    SEGMENTS,
    SS,
    TF,
    TS,
    TSF,
    VIF,
    VM,
    VME,
    Fault,
    Machine,
    Seg,
    canonical,
)

EXT, IDT = 1, 2
INT_N, INT3, INTO, INT1 = "int n", "int3", "into", "int1"


def software_interrupt(m: Machine, vector: int, how: str) -> None:
    """INT n, INT3, INTO and INT1; RIP is behind the instruction.

    SDM Vol. 3, "Software Interrupt Handling Methods While in Virtual-8086 Mode" for INT n there; SDM Vol. 2,
    INT n: INT1 is delivered like a hardware event, without a look at the gate's DPL and with EXT = 1.
    """
    if m.v86 and how == INT_N:
        iopl3 = m.rflags & IOPL == IOPL
        if m.cr4 & VME and not redirection_bit(m, vector):
            to_8086_handler(m, vector)
            return
        if not iopl3:
            raise Fault(GP, 0)
    try:
        deliver(m, vector, None, m.rflags, software=how != INT1)
    except Fault as fault:
        if how == INT1 and fault.error is not None and fault.vector in (TSF, NP, SS, GP):
            fault.error |= EXT
        raise


def redirection_bit(m: Machine, vector: int) -> int:
    """The bit of the 32-byte map below the I/O permission bit map. #GP(0) outside the TSS."""
    if m.tr.type not in (TSS32, TSS32_BUSY) or m.tr.limit < 0x67:
        raise Fault(GP, 0)
    at = paging.load(m, m.tr.base + 0x66, 2, implicit=True) - 32 + vector // 8
    if not 0 <= at <= m.tr.limit:
        raise Fault(GP, 0)
    return paging.load(m, m.tr.base + at, 1, implicit=True) >> vector % 8 & 1


def to_8086_handler(m: Machine, vector: int) -> None:
    """Methods 5 and 6: through the interrupt vector table at linear address 0."""
    image = m.rflags & M16
    virtual = m.rflags & IOPL != IOPL
    if virtual:
        image = image & ~IF | IOPL | (IF if m.rflags & VIF else 0)
    offset, selector = paging.load(m, 4 * vector, 2), paging.load(m, 4 * vector + 2, 2)
    push_all(m, room(m, m.ss, m.rsp, M16, 2, 3, 0), 2, (image, m.cs.selector, m.rip), 3)
    set_sp(m, m.rsp - 6, M16)
    m.cs = Seg(selector, selector << 4, M16, 0xF3)
    m.rip = offset
    m.rflags &= ~(TF | RF | (VIF if virtual else IF))


def deliver(m: Machine, vector: int, error: int | None, image: int, *, software: bool) -> None:
    """Through the table of the current mode. `image` is the RFLAGS to push; RIP the return address.

    Faults have EXT = 0: who delivered something external to the program adds it.
    """
    if not m.cr0 & PE:
        real(m, vector, image)
    elif m.long:
        ia32e(m, vector, error, image, software)
    else:
        protected(m, vector, error, image, software)


def real(m: Machine, vector: int, image: int) -> None:
    """ "REAL-ADDRESS-MODE": four bytes each, no error code."""
    base, limit = m.idtr
    if 4 * vector + 3 > limit:
        raise Fault(GP, 0)
    offset = paging.load(m, base + 4 * vector, 2, implicit=True)
    selector = paging.load(m, base + 4 * vector + 2, 2, implicit=True)
    at = room(m, m.ss, m.rsp, m.stack_mask, 2, 3, 0)
    push_all(m, at, 2, (image, m.cs.selector, m.rip), 0)
    set_sp(m, m.rsp - 6, m.stack_mask)
    m.cs = Seg(selector, selector << 4, m.cs.limit, m.cs.attributes & 0xF060 | 0x93)
    m.rip = offset
    m.rflags &= ~(IF | TF | AC | RF)


def read_gate(m: Machine, vector: int, kinds: tuple[int, ...], size: int, software: bool) -> tuple[int, int]:
    """The gate (all its bytes) and its linear address, checked up to its present bit."""
    base, limit = m.idtr
    error = vector << 3 | IDT
    if size * vector + size - 1 > limit:
        raise Fault(GP, error)
    raw = paging.load(m, base + size * vector, size, implicit=True)
    if raw >> 40 & 31 not in kinds:
        raise Fault(GP, error)
    if software and raw >> 45 & 3 < m.cpl:
        raise Fault(GP, error)
    if not raw >> 47 & 1:
        raise Fault(NP, error)
    return raw, base + size * vector


def target_code(m: Machine, selector: int) -> Desc:
    """ "TRAP-OR-INTERRUPT-GATE", the checks of the new code segment up to its present bit."""
    if is_null(selector):
        raise Fault(GP, 0)
    code = fetch(m, selector)
    if code.kind not in CODE or code.dpl > m.cpl:
        raise Fault(GP, error_of(selector))
    if m.long and (not code.l or code.db):
        raise Fault(GP, error_of(selector))
    if not code.present:
        raise Fault(NP, error_of(selector))
    return code


def protected(m: Machine, vector: int, error: int | None, image: int, software: bool) -> None:
    """ "PROTECTED-MODE", "INTER-PRIVILEGE-LEVEL-INTERRUPT", "INTRA-...",
    "INTERRUPT-FROM-VIRTUAL-8086-MODE"."""
    raw, _ = read_gate(m, vector, (TASK_GATE, INT16, TRAP16, INT32, TRAP32), 8, software)
    kind = raw >> 40 & 15
    if kind == TASK_GATE:
        tss = available_tss(m, raw >> 16 & M16)
        switch_task(m, tss, "call", image=image, error=error)
        return
    code = target_code(m, raw >> 16 & M16)
    inner = code.kind not in CONFORMING and code.dpl < m.cpl
    if m.v86 and (not inner or code.dpl):
        raise Fault(GP, error_of(code.selector))
    wide = kind in (INT32, TRAP32)
    size = 4 if wide else 2
    offset = raw & M16 | (raw >> 32 & 0xFFFF_0000 if wide else 0)
    tail = (image, m.cs.selector, m.rip, *(() if error is None else (error,)))
    level = code.dpl if inner else m.cpl
    if inner:
        selector, sp = stack_from_tss(m, level)
        if is_null(selector):
            raise Fault(TSF, 0)
        stack = check_ss(m, selector, level, TSF)
        ss = stack.seg()
        mask = M32 if ss.db else M16
        frame: tuple[int, ...] = (m.ss.selector, m.rsp, *tail)
        if m.v86:
            frame = (m.gs.selector, m.fs.selector, m.ds.selector, m.es.selector, *frame)
        at = room(m, ss, sp, mask, size, len(frame), error_of(selector))
        if offset > code.limit:
            raise Fault(GP, 0)
        ss = mark_accessed(m, stack).seg()
        code = mark_accessed(m, code)
        push_all(m, at, size, frame, level)
        if m.v86:
            for name in ("es", "ds", "fs", "gs"):
                m.set(**{name: Seg(0, 0, 0, 0, null=True)})
        m.ss = ss
    else:
        sp, mask = m.rsp, m.stack_mask
        frame = tail
        at = room(m, m.ss, sp, mask, size, len(frame), 0)
        if offset > code.limit:
            raise Fault(GP, 0)
        code = mark_accessed(m, code)
        push_all(m, at, size, frame, level)
    set_sp(m, sp - size * len(frame), mask)
    m.cs = code.seg(code.selector & 0xFFFC | level)
    m.rip, m.cpl = offset, level
    m.rflags &= ~(TF | NT | RF | VM | (IF if kind in (INT16, INT32) else 0))


def ia32e(m: Machine, vector: int, error: int | None, image: int, software: bool) -> None:
    """ "IA-32e-MODE": 16-byte gates, always SS:RSP, the stack aligned to 16 bytes, IST."""
    raw, _ = read_gate(m, vector, (INT32, TRAP32), 16, software)
    kind = raw >> 40 & 15
    code = target_code(m, raw >> 16 & M16)
    inner = code.kind not in CONFORMING and code.dpl < m.cpl
    level = code.dpl if inner else m.cpl
    ist = raw >> 32 & 7
    if ist:
        rsp = stack_from_tss64(m, 8 * ist + 28)
    elif inner:
        rsp = stack_from_tss64(m, 8 * level + 4)
    else:
        rsp = m.rsp & m.stack_mask
    offset = raw & M16 | raw >> 32 & 0xFFFF_FFFF_FFFF_0000
    frame = (m.ss.selector, m.rsp, image, m.cs.selector, m.rip, *(() if error is None else (error,)))
    rsp &= ~15
    top = rsp - 8 * len(frame) & M64
    if not canonical(top) or not canonical(rsp - 1 & M64):
        raise Fault(SS, 0)
    if not canonical(offset):
        raise Fault(GP, 0)
    code = mark_accessed(m, code)
    value = 0
    for word in frame:
        value = value << 64 | word
    paging.store(m, top, 8 * len(frame), value, implicit=inner, user=level == 3)
    if inner:
        m.ss = Seg(level, 0, m.ss.limit, m.ss.attributes & ~0x60 | level << 5, null=True)
    m.rsp = top
    m.cs = code.seg(code.selector & 0xFFFC | level)
    m.rip, m.cpl = offset, level
    m.rflags &= ~(TF | NT | RF | (IF if kind == INT32 else 0))


# ---- task switches -----------------------------------------------------------------------------------------

TASK_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")  # figure "32-Bit Task-State Segment"


def available_tss(m: Machine, selector: int) -> Desc:
    """The TSS that a task gate names."""
    if is_null(selector) or selector & 4:
        raise Fault(GP, error_of(selector))
    tss = fetch(m, selector)
    if tss.kind not in (TSS16, TSS32):
        raise Fault(GP, error_of(selector))
    if not tss.present:
        raise Fault(NP, error_of(selector))
    return tss


def previous_task(m: Machine) -> Desc:
    """SDM Vol. 2, IRET, "TASK-RETURN": the TSS that the link field of the current one names."""
    selector = paging.load(m, m.tr.base, 2, implicit=True)
    if is_null(selector) or selector & 4:
        raise Fault(TSF, error_of(selector))
    tss = fetch(m, selector, TSF)
    if tss.kind not in (TSS16_BUSY, TSS32_BUSY):
        raise Fault(TSF, error_of(selector))
    if not tss.present:
        raise Fault(NP, error_of(selector))
    return tss


def switch_task(m: Machine, tss: Desc, how: str, *, image: int, error: int | None = None) -> None:
    """`how` is "jump", "call" or "return". A fault in the new task's context has `trap` set: RIP is its
    own."""
    wide, old_wide = tss.kind in (TSS32, TSS32_BUSY), m.tr.type in (TSS32, TSS32_BUSY)
    if tss.limit < (0x67 if wide else 0x2B):
        raise Fault(TSF, error_of(tss.selector))
    if m.tr.limit < (0x67 if old_wide else 0x2B):
        raise Fault(TSF, error_of(m.tr.selector))
    size = 4 if old_wide else 2
    at = m.tr.base + (0x20 if old_wide else 0x0E)
    saved = [m.rip, image, *(getattr(m, name) for name in TASK_GPRS)]
    saved += [getattr(m, name).selector for name in (SEGMENTS if old_wide else SEGMENTS[:4])]
    for n, value in enumerate(saved):
        paging.store(m, at + n * size, size, value & (1 << 8 * size) - 1, implicit=True)
    size = 4 if wide else 2
    at = tss.base + (0x20 if wide else 0x0E)
    fields = [paging.load(m, at + n * size, size, implicit=True) for n in range(16 if wide else 14)]
    ldt = paging.load(m, tss.base + (0x60 if wide else 0x2A), 2, implicit=True)
    cr3 = paging.load(m, tss.base + 0x1C, 4, implicit=True) if wide else m.cr3
    if how == "call":
        paging.store(m, tss.base, 2, m.tr.selector, implicit=True)
    else:
        busy(m, m.tr.selector, False)
    if how != "return":
        busy(m, tss.selector, True)
    # The state of the new task; faults from here on are its own
    m.tr = tss._replace(raw=tss.raw | 1 << 41).seg()
    m.cr0 |= TS
    m.dr7 &= ~0x155  # L0-L3, LE
    m.rip = fields[0]
    m.rflags = fields[1] & 0x3F_7FD5 | 2 | (NT if how == "call" else 0)
    for name, value in zip(TASK_GPRS, fields[2:10], strict=True):
        m.set(**{name: value})
    selectors = [value & M16 for value in fields[10:]] + [0] * (0 if wide else 2)
    for name, selector in zip(SEGMENTS, selectors, strict=True):
        m.set(**{name: Seg(selector, 0, 0, 0, null=True)})
    m.cpl = 3 if m.v86 else m.cs.selector & 3
    try:
        if wide and m.cr0 & PG:
            m.pdptes = paging.load_pdptes(m, cr3) if m.cr4 & PAE else m.pdptes
            m.cr3 = cr3
        m.ldtr = Seg(ldt, 0, 0, 0, null=True)
        load_ldtr(m, ldt, TSF)
        load_task_segments(m)
        if error is not None:
            width = 4 if wide else 2
            push_all(m, room(m, m.ss, m.rsp, m.stack_mask, width, 1, 0), width, (error,), m.cpl)
            set_sp(m, m.rsp - width, m.stack_mask)
        if m.rip > m.cs.limit:
            raise Fault(GP, 0)
    except Fault as fault:
        fault.trap = True
        raise


def busy(m: Machine, selector: int, value: bool) -> None:
    """The busy flag of a TSS descriptor in the GDT."""
    at = m.gdtr[0] + (selector & 0xFFF8) + 5
    access = paging.load(m, at, 1, implicit=True)
    paging.store(m, at, 1, access | 2 if value else access & ~2, implicit=True)


def load_task_segments(m: Machine) -> None:
    """CS, SS and the data segments of the new task, in the order of the table of exception conditions."""
    if m.v86:
        for name in SEGMENTS:
            selector = getattr(m, name).selector
            m.set(**{name: Seg(selector, selector << 4, 0xFFFF, 0xF3)})
        return
    selector = m.cs.selector
    if is_null(selector):
        raise Fault(TSF, 0)
    code = fetch(m, selector, TSF)
    rpl = selector & 3
    if code.kind not in CODE or (code.dpl > rpl if code.kind in CONFORMING else code.dpl != rpl):
        raise Fault(TSF, error_of(selector))
    if not code.present:
        raise Fault(NP, error_of(selector))
    m.cs = mark_accessed(m, code).seg()
    if is_null(m.ss.selector):
        raise Fault(TSF, 0)
    m.ss = mark_accessed(m, check_ss(m, m.ss.selector, m.cpl, TSF)).seg()
    for name in ("ds", "es", "fs", "gs"):
        selector = getattr(m, name).selector
        if not is_null(selector):
            m.set(**{name: mark_accessed(m, check_data(m, selector, m.cpl, TSF)).seg()})
