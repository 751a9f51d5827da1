"""Far JMP, CALL and RET: SDM Vol. 2, "Operation" of each; SDM Vol. 3, "Call Gates".

IRET shares the way to an outer level and has its own room, `model_iret`.
"""

from __future__ import annotations

from tests.matrices import model_paging as paging
from tests.matrices.model_gates import available_tss, switch_task
from tests.matrices.model_segments import (
    CALL16,
    CALL32,
    CODE,
    CONFORMING,
    TASK_GATE,
    TSS16,
    TSS32,
    Desc,
    check_ss,
    error_of,
    fetch,
    fetch_upper,
    is_null,
    linear_address,
    mark_accessed,
    push_all,
    room,
    set_sp,
    stack_from_tss,
    stack_from_tss64,
)
from tests.matrices.spec import (
    GP,
    M16,
    M32,
    M64,
    NP,
    SEGMENTS,
    TSF,
    Fault,
    Machine,
    Seg,
    canonical,
)


def check_entry(m: Machine, code: Desc, offset: int) -> None:
    """ "tempEIP outside new code segment limit", "tempEIP is non-canonical"."""
    if m.long and code.l:
        if not canonical(offset):
            raise Fault(GP, 0)
    elif offset > code.limit:
        raise Fault(GP, 0)


def enter(m: Machine, code: Desc, level: int, offset: int) -> None:
    """CS and RIP of the new code."""
    m.cs = mark_accessed(m, code).seg(code.selector & 0xFFFC | level)
    m.cpl = level
    m.rip = offset


def real_target(m: Machine, offset: int) -> None:
    """ "the instruction pointer is not within code segment limit" in real-address and virtual-8086 mode."""
    if offset > (M16 if m.v86 else m.cs.limit):
        raise Fault(GP, 0)


def enter_real(m: Machine, selector: int, offset: int) -> None:
    """CS without a descriptor."""
    if m.v86:
        m.cs = Seg(selector, selector << 4, M16, 0xF3)
    else:
        m.cs = Seg(selector, selector << 4, m.cs.limit, m.cs.attributes & 0xF060 | 0x93)
    m.rip = offset


def target(m: Machine, selector: int) -> Desc:
    """ "Read type and access rights of selected segment descriptor"."""
    if is_null(selector):
        raise Fault(GP, 0)
    desc = fetch(m, selector)
    legal = (CALL32,) if m.long else (CALL16, CALL32, TASK_GATE, TSS16, TSS32)
    if desc.kind not in CODE and desc.kind not in legal:
        raise Fault(GP, error_of(selector))
    return desc


def check_direct(m: Machine, code: Desc) -> None:
    """ "CONFORMING-CODE-SEGMENT" and "NONCONFORMING-CODE-SEGMENT" up to the present bit."""
    error = error_of(code.selector)
    if m.long and code.l and code.db:
        raise Fault(GP, error)
    if code.kind in CONFORMING:
        if code.dpl > m.cpl:
            raise Fault(GP, error)
    elif code.selector & 3 > m.cpl or code.dpl != m.cpl:
        raise Fault(GP, error)
    if not code.present:
        raise Fault(NP, error)


def through_gate(m: Machine, gate: Desc, *, jump: bool) -> tuple[Desc, int, int]:
    """ "CALL-GATE": the code segment, the entry point and the size of a push."""
    error = error_of(gate.selector)
    upper = fetch_upper(m, gate) if m.long else 0
    if gate.dpl < m.cpl or gate.dpl < gate.selector & 3:
        raise Fault(GP, error)
    if not gate.present:
        raise Fault(NP, error)
    selector = gate.raw >> 16 & M16
    if is_null(selector):
        raise Fault(GP, 0)
    code = fetch(m, selector)
    error = error_of(selector)
    if code.kind not in CODE or code.dpl > m.cpl:
        raise Fault(GP, error)
    if jump and code.kind not in CONFORMING and code.dpl != m.cpl:
        raise Fault(GP, error)
    if m.long and (not code.l or code.db):
        raise Fault(GP, error)
    if not code.present:
        raise Fault(NP, error)
    offset = gate.raw & M16
    if gate.kind == CALL32:
        offset |= gate.raw >> 32 & 0xFFFF_0000 | (upper & M32) << 32
    return code, offset, 8 if m.long else 4 if gate.kind == CALL32 else 2


def to_task(m: Machine, desc: Desc, how: str) -> None:
    """ "TASK-GATE" and "TASK-STATE-SEGMENT"."""
    error = error_of(desc.selector)
    if desc.dpl < m.cpl or desc.dpl < desc.selector & 3:
        raise Fault(GP, error)
    if desc.kind == TASK_GATE:
        if not desc.present:
            raise Fault(NP, error)
        tss = available_tss(m, desc.raw >> 16 & M16)
    else:
        tss = available_tss(m, desc.selector)
    switch_task(m, tss, how, image=m.rflags)


def jmp(m: Machine, selector: int, offset: int) -> None:
    """Far JMP."""
    if not m.protected:
        real_target(m, offset)
        enter_real(m, selector, offset)
        return
    desc = target(m, selector)
    if desc.kind in CODE:
        check_direct(m, desc)
        check_entry(m, desc, offset)
        enter(m, desc, m.cpl, offset)
    elif desc.kind in (CALL16, CALL32):
        code, entry, _ = through_gate(m, desc, jump=True)
        check_entry(m, code, entry)
        enter(m, code, m.cpl, entry)
    else:
        to_task(m, desc, "jump")


def call(m: Machine, selector: int, offset: int, size: int) -> None:
    """Far CALL with `size` bytes of operand size."""
    if not m.protected:
        at = room(m, m.ss, m.rsp, m.stack_mask, size, 2, 0)
        real_target(m, offset)
        push_all(m, at, size, (m.cs.selector, m.rip), m.cpl)
        set_sp(m, m.rsp - 2 * size, m.stack_mask)
        enter_real(m, selector, offset)
        return
    desc = target(m, selector)
    if desc.kind in CODE:
        check_direct(m, desc)
        same_privilege(m, desc, offset, size)
    elif desc.kind in (CALL16, CALL32):
        code, entry, size = through_gate(m, desc, jump=False)
        if code.kind in CONFORMING or code.dpl == m.cpl:
            same_privilege(m, code, entry, size)
        elif m.long:
            more_privilege_64(m, code, entry)
        else:
            more_privilege(m, code, entry, size, desc.raw >> 32 & 31)
    else:
        to_task(m, desc, "call")


def same_privilege(m: Machine, code: Desc, entry: int, size: int) -> None:
    """ "IF stack not large enough for return address THEN #SS(0)", then the entry point."""
    at = room(m, m.ss, m.rsp, m.stack_mask, size, 2, 0)
    check_entry(m, code, entry)
    mask = m.stack_mask
    push_all(m, at, size, (m.cs.selector, m.rip), m.cpl)
    sp = m.rsp - 2 * size
    set_sp(m, sp, mask)
    enter(m, code, m.cpl, entry)


def more_privilege(m: Machine, code: Desc, entry: int, size: int, count: int) -> None:
    """ "MORE-PRIVILEGE" outside of IA-32e mode: a stack from the TSS, `count` parameters copied."""
    level = code.dpl
    selector, sp = stack_from_tss(m, level)
    if is_null(selector):
        raise Fault(TSF, 0)
    stack = check_ss(m, selector, level, TSF)
    ss = stack.seg()
    mask = M32 if ss.db else M16
    at = room(m, ss, sp, mask, size, 4 + count, error_of(selector))
    check_entry(m, code, entry)
    parameters = []
    for n in range(count):
        offset = m.rsp + n * size & m.stack_mask
        parameters.append(paging.load(m, linear_address(m, "ss", offset, size, write=False), size))
    old = (m.ss.selector, m.rsp & m.stack_mask)
    ss = mark_accessed(m, stack).seg()
    code = mark_accessed(m, code)
    push_all(m, at, size, (*old, *reversed(parameters), m.cs.selector, m.rip), level)
    m.ss = ss
    set_sp(m, sp - size * (4 + count), mask)
    enter(m, code, level, entry)


def more_privilege_64(m: Machine, code: Desc, entry: int) -> None:
    """ "MORE-PRIVILEGE" in IA-32e mode: no parameters, SS becomes null with the new level as RPL."""
    level = code.dpl
    rsp = stack_from_tss64(m, 8 * level + 4)
    at = room(m, m.ss, rsp, M64, 8, 4, 0)
    check_entry(m, code, entry)
    code = mark_accessed(m, code)
    push_all(m, at, 8, (m.ss.selector, m.rsp, m.cs.selector, m.rip), level)
    m.rsp = rsp - 32 & M64
    m.ss = Seg(level, 0, m.ss.limit, m.ss.attributes & ~0x60 | level << 5, null=True)
    enter(m, code, level, entry)


# ---- returns -----------------------------------------------------------------------------------------------


def pop(m: Machine, index: int, size: int, extra: int = 0) -> int:
    """The `index`-th stack word of `size` bytes, `extra` bytes further up. #SS(0)."""
    offset = m.rsp + index * size + extra & m.stack_mask
    return paging.load(m, linear_address(m, "ss", offset, size, write=False), size)


def return_code(m: Machine, selector: int) -> Desc:
    """The checks of a popped CS selector, up to the present bit."""
    if is_null(selector):
        raise Fault(GP, 0)
    code = fetch(m, selector)
    rpl, error = selector & 3, error_of(selector)
    if code.kind not in CODE or (m.long and code.l and code.db) or rpl < m.cpl:
        raise Fault(GP, error)
    if code.dpl > rpl if code.kind in CONFORMING else code.dpl != rpl:
        raise Fault(GP, error)
    if not code.present:
        raise Fault(NP, error)
    return code


def return_stack(m: Machine, selector: int, code: Desc) -> Desc | None:
    """The checks of a popped SS selector. None: a null SS, which 64-bit code below level 3 may have if the
    RPLs agree (SDM Vol. 2, IRET, "IA-32e-MODE-RETURN")."""
    level = code.selector & 3
    if is_null(selector):
        if m.long and code.l and level != 3 and selector == level:
            return None
        raise Fault(GP, 0)
    return check_ss(m, selector, level)


def to_outer(
    m: Machine, code: Desc, offset: int, ss_selector: int, stack: Desc | None, sp: int, released: int
) -> None:
    """ "RETURN-TO-OUTER-PRIVILEGE-LEVEL", after the checks; also a 64-bit IRET to the same level."""
    level = code.selector & 3
    outer = level > m.cpl
    code = mark_accessed(m, code)
    if stack is None:
        m.ss = Seg(ss_selector, 0, m.ss.limit, m.ss.attributes & ~0x60 | level << 5, null=True)
    else:
        m.ss = mark_accessed(m, stack).seg()
    m.cs = code.seg()
    m.cpl, m.rip = level, offset
    set_sp(m, sp + released, m.stack_mask)
    if outer:
        drop_segments(m, level)


def drop_segments(m: Machine, level: int) -> None:
    """ "FOR each SegReg in (ES, FS, GS, and DS)": what the new level may not use, and a null selector with
    whatever RPL, becomes selector 0."""
    for name in SEGMENTS:
        seg: Seg = getattr(m, name)
        if name in ("cs", "ss"):
            continue
        if seg.null:
            m.set(**{name: seg._replace(selector=0)})
        elif seg.dpl < level and not seg.conforming:
            m.set(**{name: seg._replace(selector=0, base=0, null=True)})


def ret(m: Machine, size: int, released: int) -> None:
    """Far RET that releases `released` bytes."""
    offset = pop(m, 0, size)
    selector = pop(m, 1, size) & M16
    if not m.protected:
        real_target(m, offset)
        set_sp(m, m.rsp + 2 * size + released, m.stack_mask)
        enter_real(m, selector, offset)
        return
    code = return_code(m, selector)
    if selector & 3 == m.cpl:
        check_entry(m, code, offset)
        set_sp(m, m.rsp + 2 * size + released, m.stack_mask)
        m.cs = mark_accessed(m, code).seg()
        m.rip = offset
        return
    sp = pop(m, 2, size, released)
    ss_selector = pop(m, 3, size, released) & M16
    stack = return_stack(m, ss_selector, code)
    check_entry(m, code, offset)
    to_outer(m, code, offset, ss_selector, stack, sp, released)
