"""Hardware task switching through 16- and 32-bit TSSs. IA-32e mode has none; gates live in their callers.

Source: SDM Vol. 3, "Task Management", above all "Task Switching" and its table "Exception Conditions Checked
During a Task Switch". A fault up to the busy bits belongs to the old task; a fault in loading the new task's
descriptors belongs to the new one, whose CS:EIP is then the return address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.descriptors import (
    BUSY_BIT,
    SELECTOR_INDEX,
    Descriptor,
    check_data,
    check_stack,
    is_null,
    load_ldtr,
    nullify,
    read_descriptor,
    set_accessed,
)
from isa.exits import VmExit
from isa.faults import Fault, GeneralProtection, InvalidTss, SegmentNotPresent
from isa.state import (
    CR0_PG,
    CR0_TS,
    CR4_PAE,
    M16,
    M32,
    NT_BIT,
    RFLAGS_FIXED,
    SYS_TSS16_AVAILABLE,
    SYS_TSS16_BUSY,
    SYS_TSS_AVAILABLE,
    SYS_TSS_BUSY,
    VM_BIT,
)

if TYPE_CHECKING:
    from isa.interrupts import InterruptUnit

# How a switch begins: does the old task stay busy, does the new one get a link back?
TASK_JUMP, TASK_CALL, TASK_RETURN = 0, 1, 2

RFLAGS_VALID = 0x3F_7FD5
DR6_TASK_SWITCH = 1 << 15
DR7_LOCAL_ENABLES = 0x155  # L0-L3 and LE

GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")  # their order in a TSS

# 32-bit TSS: EIP, EFLAGS, eight registers and six selectors lie together in 64 bytes
MIN_LIMIT32, STATE32, SIZE32, CR3_AT, LDT32, TRAP_AT = 0x67, 0x20, 64, 0x1C, 0x60, 0x64
# 16-bit TSS: IP, FLAGS, eight registers and four selectors in 28 bytes
MIN_LIMIT16, STATE16, SIZE16, LDT16 = 0x2B, 0x0E, 28, 0x2A


def check_tss(cpu: InterruptUnit, selector: int) -> Descriptor:
    """The TSS that a task gate, CALL or JMP names: in the GDT, available, present. #GP or #NP(selector)."""
    error = selector & SELECTOR_INDEX
    if is_null(selector) or selector & 4:
        raise GeneralProtection(error, f"TSS selector {selector:#06x} is not in the GDT")
    tss = read_descriptor(cpu, selector)
    if tss.s or tss.type not in (SYS_TSS_AVAILABLE, SYS_TSS16_AVAILABLE):
        raise GeneralProtection(error, f"task switch to {tss.what}, not to an available TSS")
    if not tss.present:
        raise SegmentNotPresent(error, f"TSS {selector:#06x} not present")
    return tss


def return_to_previous_task(cpu: InterruptUnit) -> None:
    """IRET with NT = 1: switch to the task that the link field of the current TSS names. #TS or #NP."""
    selector = cpu.load_system(cpu.tr.base & M32, 2)
    error = selector & SELECTOR_INDEX
    if is_null(selector) or selector & 4:
        raise InvalidTss(error, f"previous task link {selector:#06x} is not in the GDT")
    tss = read_descriptor(cpu, selector, InvalidTss)
    if tss.s or tss.type not in (SYS_TSS_BUSY, SYS_TSS16_BUSY):
        raise InvalidTss(error, f"previous task link names {tss.what}, not a busy TSS")
    if not tss.present:
        raise SegmentNotPresent(error, f"TSS {selector:#06x} not present")
    switch_task(cpu, tss, TASK_RETURN, image=cpu.rflags() & ~(1 << NT_BIT))


def switch_task(
    cpu: InterruptUnit, tss: Descriptor, kind: int, *, image: int, error_code: int | None = None
) -> None:
    """Save the current task, whose RFLAGS are saved as `image`, and run the one of `tss`.

    `error_code` is pushed on the new task's stack. Raises a Fault of the old task with nothing committed; a
    Fault of the new task with `is_trap` set and the switch done; VmExit with everything as it was.
    """
    cpu.exit_ip = -1  # registers change on the way, and an exit undoes that: no short way to a device
    wide = bool(tss.type & 8)
    old = cpu.tr
    old_wide = bool(old.type & 8)
    minimum = MIN_LIMIT32 if wide else MIN_LIMIT16
    if tss.limit < minimum:
        raise InvalidTss(tss.selector & SELECTOR_INDEX, f"TSS limit {tss.limit:#x} < {minimum:#x}")
    if old.limit < (MIN_LIMIT32 if old_wide else MIN_LIMIT16):
        needed = MIN_LIMIT32 if old_wide else MIN_LIMIT16
        raise InvalidTss(old.selector & SELECTOR_INDEX, f"current TSS limit {old.limit:#x} < {needed:#x}")
    base = tss.base
    if wide:
        cr3 = cpu.load_system(base + CR3_AT & M32, 4)
        state = cpu.load_system(base + STATE32 & M32, SIZE32)
        ldt = cpu.load_system(base + LDT32 & M32, 2)
        trap = cpu.load_system(base + TRAP_AT & M32, 1) & 1
    else:
        cr3 = cpu.cr3
        state = cpu.load_system(base + STATE16 & M32, SIZE16)
        ldt = cpu.load_system(base + LDT16 & M32, 2)
        trap = 0
    at, size = (STATE32, SIZE32) if old_wide else (STATE16, SIZE16)
    cpu.store_system(old.base + at & M32, size, _state_image(cpu, old_wide, image))
    if kind == TASK_CALL:
        cpu.store_system(base & M32, 2, old.selector)

    undo: list[tuple[int, int]] = []
    saved = _Registers(cpu)
    try:
        if kind != TASK_CALL:
            busy_at = cpu.gdtr.base + (old.selector & 0xFFF8) + 5 & M32
            if old.selector & SELECTOR_INDEX:
                access = cpu.load_system(busy_at, 1)
                cpu.store_system(busy_at, 1, access & ~(BUSY_BIT >> 40))
                undo.append((busy_at, access))
        if kind != TASK_RETURN:
            access = tss.raw >> 40 & 0xFF
            cpu.store_system(tss.linear + 5, 1, access | BUSY_BIT >> 40)
            undo.append((tss.linear + 5, access))
    except (Fault, VmExit):
        _undo(cpu, undo)
        raise
    try:
        _load_state(cpu, tss, kind, wide, cr3, state)
        _load_segments(cpu, ldt)
        if error_code is not None:
            width = 4 if wide else 2
            top = cpu.push_frame(cpu.ss, cpu.rsp, cpu.stack_mask, width, (error_code,), cpu.cpl)
            cpu.set_stack_pointer(top)
        if cpu.rip > cpu.cs.limit:
            raise GeneralProtection(0, f"new task's EIP {cpu.rip:#x} outside CS limit {cpu.cs.limit:#x}")
    except VmExit:
        saved.restore(cpu)
        _undo(cpu, undo)
        raise
    except Fault as fault:
        fault.is_trap = True  # RIP is the new task's: the engine must not put the old one back
        cpu.update_mode()
        raise
    if trap:
        cpu._pending_debug |= DR6_TASK_SWITCH
    cpu.request_attention()


def _state_image(cpu: InterruptUnit, wide: bool, image: int) -> int:
    """The save area of a TSS as one number."""
    bits, mask = (32, M32) if wide else (16, M16)
    fields = [cpu.rip, image, *(getattr(cpu, name) for name in GPRS)]
    fields += [getattr(cpu, name).selector for name in (SEGMENTS if wide else SEGMENTS[:4])]
    value = 0
    for n, field in enumerate(fields):
        value |= (field & mask) << bits * n
    return value


def _load_state(cpu: InterruptUnit, tss: Descriptor, kind: int, wide: bool, cr3: int, state: int) -> None:
    """TR, CR3, RFLAGS, EIP, the general registers and the bare selectors of the new task."""
    bits, mask = (32, M32) if wide else (16, M16)
    fields = [state >> bits * n & mask for n in range(16 if wide else 14)]
    cpu.tr.load_descriptor(tss.selector, tss.raw | BUSY_BIT)
    cpu.cr0 |= CR0_TS
    cpu.dr7 &= ~DR7_LOCAL_ENABLES
    cpu.rip = fields[0]
    flags = fields[1] & RFLAGS_VALID | RFLAGS_FIXED
    cpu.set_rflags_raw(flags | 1 << NT_BIT if kind == TASK_CALL else flags)
    for name, value in zip(GPRS, fields[2:10], strict=True):
        setattr(cpu, name, value)
    selectors = [field & M16 for field in fields[10:]] + [0] * (0 if wide else 2)
    for name, selector in zip(SEGMENTS, selectors, strict=True):
        nullify(getattr(cpu, name), selector)  # not usable until its descriptor is loaded
    cpu.cpl = 3 if flags >> VM_BIT & 1 else cpu.cs.selector & 3
    cpu.trap_cancelled = True
    if wide and cpu.cr0 & CR0_PG:
        if cpu.cr4 & CR4_PAE:
            cpu.load_pdptes(cr3)
        cpu.cr3 = cr3
        cpu.flush_tlb()


def _load_segments(cpu: InterruptUnit, ldt: int) -> None:
    """LDTR and the segment registers from their selectors; every error is #TS but a missing present bit."""
    nullify(cpu.ldtr, ldt)
    load_ldtr(cpu, ldt, InvalidTss)
    if cpu.vm:
        for segment in cpu.segments:
            segment.load_v86(segment.selector)
        cpu.update_mode()
        return
    level = cpu.cpl
    code = _check_new_code(cpu, cpu.cs.selector)
    set_accessed(cpu, code)
    cpu.cs.load_descriptor(code.selector, code.raw)
    stack = check_stack(cpu, cpu.ss.selector, level, InvalidTss)
    set_accessed(cpu, stack)
    cpu.ss.load_descriptor(stack.selector, stack.raw)
    for segment in (cpu.ds, cpu.es, cpu.fs, cpu.gs):
        if not is_null(segment.selector):
            data = check_data(cpu, segment.name.upper(), segment.selector, level, InvalidTss)
            set_accessed(cpu, data)
            segment.load_descriptor(data.selector, data.raw)
    cpu.update_mode()


def _check_new_code(cpu: InterruptUnit, selector: int) -> Descriptor:
    error, rpl = selector & SELECTOR_INDEX, selector & 3
    if is_null(selector):
        raise InvalidTss(0, f"new task's CS {selector:#06x} is null")
    code = read_descriptor(cpu, selector, InvalidTss)
    if not code.is_code:
        raise InvalidTss(error, f"new task's CS is {code.what}")
    if code.dpl > rpl if code.conforming else code.dpl != rpl:
        raise InvalidTss(error, f"new task's CS: {code.what}, DPL {code.dpl}, RPL {rpl}")
    if not code.present:
        raise SegmentNotPresent(error, f"new task's code segment {selector:#06x} not present")
    return code


class _Registers:
    """All that a task switch changes, to put it back when an exit comes in the middle."""

    __slots__ = ("plain", "segments")

    PLAIN = (*GPRS, "rip", "cr0", "cr3", "dr7", "cpl", "pdptes", "trap_cancelled")

    def __init__(self, cpu: InterruptUnit) -> None:
        self.plain = ([getattr(cpu, name) for name in self.PLAIN], cpu.rflags())
        self.segments = [
            (s, s.selector, s.base, s.limit, s.attributes, s.null) for s in (*cpu.segments, cpu.ldtr, cpu.tr)
        ]

    def restore(self, cpu: InterruptUnit) -> None:
        values, flags = self.plain
        for name, value in zip(self.PLAIN, values, strict=True):
            setattr(cpu, name, value)
        cpu.set_rflags_raw(flags)
        for segment, selector, base, limit, attributes, null in self.segments:
            segment.load_raw(selector, base, limit, attributes, null=null)
        cpu.flush_tlb()
        cpu.update_mode()


def _undo(cpu: InterruptUnit, stores: list[tuple[int, int]]) -> None:
    """Put access bytes back. One outside RAM need not be: the answers replay what it said before."""
    for linear, access in reversed(stores):
        try:
            cpu.store_system(linear, 1, access)
        except VmExit:
            continue
