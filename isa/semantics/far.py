"""Far JMP, CALL and RET: to another code segment, through a call gate, to another task.

Sources: SDM Vol. 2, JMP, CALL, RET; SDM Vol. 3, "Accessing a Code Segment Through a Call Gate". Interrupt
gates and IRET live in `isa.interrupts` and `isa.semantics.interrupt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.descriptors import (
    SELECTOR_INDEX,
    Descriptor,
    check_code_direct,
    check_code_return,
    check_entry,
    check_return_stack,
    check_stack,
    invalidate_for_level,
    is_null,
    nullify,
    read_descriptor,
    read_upper_half,
    set_accessed,
)
from isa.faults import GeneralProtection, InvalidTss, SegmentNotPresent
from isa.interrupts import RSP0
from isa.operands import FarPointer, Memory, Width
from isa.semantics.registry import insn
from isa.semantics.segment import far_pointer
from isa.state import (
    CR0_PE,
    EFER_LMA,
    M16,
    M32,
    M64,
    SYS_CALL_GATE,
    SYS_CALL_GATE16,
    SYS_TASK_GATE,
    SYS_TSS16_AVAILABLE,
    SYS_TSS_AVAILABLE,
    Segment,
)
from isa.tasks import TASK_CALL, TASK_JUMP, check_tss, switch_task

if TYPE_CHECKING:
    from isa.cpu import Cpu

LEGACY_TARGETS = (SYS_CALL_GATE16, SYS_CALL_GATE, SYS_TASK_GATE, SYS_TSS16_AVAILABLE, SYS_TSS_AVAILABLE)


@insn("JMP_PTR1616", "JMP_PTR1632", inline=False)
def jmp_pointer(cpu: Cpu, target: FarPointer) -> None:
    """CS:RIP := ptr16:16 or ptr16:32"""
    jump_far(cpu, target.selector, target.value)


@insn("JMP_M1616", "JMP_M1632", "JMP_M1664", inline=False)
def jmp_memory(cpu: Cpu, target: Memory) -> None:
    """CS:RIP := [m16:16, m16:32 or m16:64]"""
    selector, offset = far_pointer(cpu, target)
    jump_far(cpu, selector, offset)


@insn("CALL_PTR1616", "CALL_PTR1632", inline=False)
def call_pointer(cpu: Cpu, target: FarPointer) -> None:
    """Push(CS); Push(RIP); CS:RIP := ptr16:16 or ptr16:32"""
    call_far(cpu, target.selector, target.value, target.bytes)


@insn("CALL_M1616", "CALL_M1632", "CALL_M1664", inline=False)
def call_memory(cpu: Cpu, target: Memory) -> None:
    """Push(CS); Push(RIP); CS:RIP := [m16:16, m16:32 or m16:64]"""
    selector, offset = far_pointer(cpu, target)
    call_far(cpu, selector, offset, target.bytes - 2)


@insn("RETF", sized=True, inline=False)
def retf(cpu: Cpu, width: Width, *released: Width) -> None:
    """RIP := Pop(); CS := Pop(); RSP := RSP + imm16"""
    count: int = released[0].value if released else 0  # type: ignore[attr-defined]
    if cpu.protected:
        return_far(cpu, width.bytes, count)
    else:
        return_real(cpu, width.bytes, count)


# ---- real-address and virtual-8086 mode --------------------------------------------------------------------


def enter_real(cpu: Cpu, selector: int, offset: int) -> None:
    """CS:IP := selector:offset without descriptors. The caller has checked the limit."""
    if cpu.cr0 & CR0_PE:
        cpu.cs.load_v86(selector)
    else:
        cpu.cs.load_real(selector)
    cpu.rip = offset
    cpu.update_mode()


def check_real_target(cpu: Cpu, offset: int) -> None:
    """The offset lies inside the CS limit, which real mode keeps and virtual-8086 mode fixes. #GP(0)."""
    limit = M16 if cpu.vm else cpu.cs.limit
    if offset > limit:
        raise GeneralProtection(0, f"target {offset:#x} outside the code segment limit {limit:#x}")


def return_real(cpu: Cpu, size: int, count: int) -> None:
    """RETF in real-address and virtual-8086 mode."""
    mask = cpu.stack_mask
    offset = cpu.read_data(cpu.ss, cpu.rsp & mask, size)
    selector = cpu.read_data(cpu.ss, cpu.rsp + size & mask, size) & M16
    check_real_target(cpu, offset)
    cpu.set_stack_pointer(cpu.rsp + 2 * size + count)
    enter_real(cpu, selector, offset)


# ---- JMP and CALL ------------------------------------------------------------------------------------------


def jump_far(cpu: Cpu, selector: int, offset: int) -> None:
    """Far JMP in every mode."""
    if not cpu.protected:
        check_real_target(cpu, offset)
        enter_real(cpu, selector, offset)
        return
    target = _target_descriptor(cpu, selector)
    if target.is_code:
        check_code_direct(cpu, target)
        check_entry(cpu, target, offset)
        set_accessed(cpu, target)
        cpu.enter_code(target, cpu.cpl, offset)
        cpu.update_mode()
    elif target.type in (SYS_CALL_GATE, SYS_CALL_GATE16):
        code, entry, _ = _call_gate(cpu, target, jump=True)
        check_entry(cpu, code, entry)
        set_accessed(cpu, code)
        cpu.enter_code(code, cpu.cpl, entry)
        cpu.update_mode()
    else:
        _to_task(cpu, target, TASK_JUMP)


def call_far(cpu: Cpu, selector: int, offset: int, size: int) -> None:
    """Far CALL in every mode; `size` is the operand size in bytes."""
    if not cpu.protected:
        cpu.check_room(cpu.ss, cpu.rsp, cpu.stack_mask, size, 2, 0)
        check_real_target(cpu, offset)
        frame = (cpu.cs.selector, cpu.rip)
        top = cpu.push_frame(cpu.ss, cpu.rsp, cpu.stack_mask, size, frame, cpu.cpl)
        cpu.set_stack_pointer(top)
        enter_real(cpu, selector, offset)
        return
    target = _target_descriptor(cpu, selector)
    if target.is_code:
        check_code_direct(cpu, target)
        _call_same_level(cpu, target, offset, size)
    elif target.type in (SYS_CALL_GATE, SYS_CALL_GATE16):
        code, entry, size = _call_gate(cpu, target, jump=False)
        if not code.conforming and code.dpl < cpu.cpl:
            if cpu.efer & EFER_LMA:
                _call_inner_long(cpu, code, entry)
            else:
                _call_inner(cpu, code, entry, size, target.raw >> 32 & 31)
        else:
            _call_same_level(cpu, code, entry, size)
    else:
        _to_task(cpu, target, TASK_CALL)


def _target_descriptor(cpu: Cpu, selector: int) -> Descriptor:
    """What the selector of a far JMP or CALL names: code, or a gate or TSS that exists in this mode."""
    if is_null(selector):
        raise GeneralProtection(0, f"far transfer to the null selector {selector:#06x}")
    target = read_descriptor(cpu, selector)
    legal = (SYS_CALL_GATE,) if cpu.efer & EFER_LMA else LEGACY_TARGETS
    if not (target.is_code if target.s else target.type in legal):
        why = f"far transfer to selector {selector:#06x}, which is {target.what}"
        raise GeneralProtection(selector & SELECTOR_INDEX, why)
    return target


def _call_gate(cpu: Cpu, gate: Descriptor, *, jump: bool) -> tuple[Descriptor, int, int]:
    """Code segment, entry point and operand size in bytes of a call gate, checked; a `jump` may not change
    the level. #GP or #NP of the gate, then of the code segment."""
    error = gate.selector & SELECTOR_INDEX
    long_mode = cpu.efer & EFER_LMA
    upper = read_upper_half(cpu, gate) if long_mode else 0
    _check_gate_level(cpu, gate)
    if not gate.present:
        raise SegmentNotPresent(error, f"call gate {gate.selector:#06x} not present")
    wide = gate.type == SYS_CALL_GATE
    entry = gate.raw & M16 | (gate.raw >> 32 & 0xFFFF_0000 if wide else 0) | (upper & M32) << 32
    selector = gate.raw >> 16 & M16
    if is_null(selector):
        why = f"null code segment selector {selector:#06x} in the call gate {gate.selector:#06x}"
        raise GeneralProtection(0, why)
    code = read_descriptor(cpu, selector)
    error = selector & SELECTOR_INDEX
    if not code.is_code:
        raise GeneralProtection(error, f"call gate to {code.what}, which is not a code segment")
    if code.dpl > cpu.cpl:
        raise GeneralProtection(error, f"call gate to code, DPL {code.dpl} > CPL {cpu.cpl}")
    if jump and not code.conforming and code.dpl != cpu.cpl:
        raise GeneralProtection(
            error, f"JMP through a call gate: nonconforming code, DPL {code.dpl} is not CPL {cpu.cpl}"
        )
    if long_mode and (not code.l or code.db):
        why = f"call gate to a segment that is not 64-bit code: L={code.l}, D={code.db}"
        raise GeneralProtection(error, why)
    if not code.present:
        raise SegmentNotPresent(error, f"code segment {selector:#06x} behind the call gate not present")
    return code, entry, 8 if long_mode else 4 if wide else 2


def _check_gate_level(cpu: Cpu, gate: Descriptor) -> None:
    """A call gate, task gate or TSS descriptor may be used from this CPL and with this RPL. #GP(selector)."""
    error, rpl = gate.selector & SELECTOR_INDEX, gate.selector & 3
    if gate.dpl < cpu.cpl:
        raise GeneralProtection(error, f"{gate.what}, DPL {gate.dpl} < CPL {cpu.cpl}")
    if gate.dpl < rpl:
        raise GeneralProtection(error, f"{gate.what}, DPL {gate.dpl} < RPL {rpl}")


def _call_same_level(cpu: Cpu, code: Descriptor, entry: int, size: int) -> None:
    """Push CS and RIP on the current stack and enter `code` at the current CPL."""
    cpu.check_room(cpu.ss, cpu.rsp, cpu.stack_mask, size, 2, 0)
    check_entry(cpu, code, entry)
    frame = (cpu.cs.selector, cpu.rip)
    top = cpu.push_frame(cpu.ss, cpu.rsp, cpu.stack_mask, size, frame, cpu.cpl)
    set_accessed(cpu, code)
    cpu.set_stack_pointer(top)
    cpu.enter_code(code, cpu.cpl, entry)
    cpu.update_mode()


def _call_inner(cpu: Cpu, code: Descriptor, entry: int, size: int, count: int) -> None:
    """A 16- or 32-bit call gate to an inner level: new stack from the TSS, `count` parameters copied."""
    level = code.dpl
    ss_selector, esp = cpu.inner_stack(level)
    ss = check_stack(cpu, ss_selector, level, InvalidTss)
    stack = Segment("ss")
    stack.load_descriptor(ss_selector, ss.raw)
    mask = M32 if stack.db else M16
    error = ss_selector & SELECTOR_INDEX
    cpu.check_room(stack, esp, mask, size, 4 + count, error)
    check_entry(cpu, code, entry)
    parameters = [
        cpu.read_data(cpu.ss, cpu.rsp + n * size & cpu.stack_mask, size) for n in reversed(range(count))
    ]
    frame = (cpu.ss.selector, cpu.rsp & cpu.stack_mask, *parameters, cpu.cs.selector, cpu.rip)
    set_accessed(cpu, ss)
    set_accessed(cpu, code)
    top = cpu.push_frame(stack, esp, mask, size, frame, level, error)
    cpu.ss.load_descriptor(ss_selector, ss.raw)
    cpu.stack_mask = mask
    cpu.set_stack_pointer(top)
    cpu.enter_code(code, level, entry)
    cpu.update_mode()


def _call_inner_long(cpu: Cpu, code: Descriptor, entry: int) -> None:
    """A 64-bit call gate to an inner level: RSP from the TSS, SS null, no parameters, no alignment."""
    level = code.dpl
    rsp = cpu.tss_stack(RSP0 + 8 * level)
    frame = (cpu.ss.selector, cpu.rsp, cpu.cs.selector, cpu.rip)
    cpu.check_room(cpu.ss, rsp, M64, 8, 4, 0)
    check_entry(cpu, code, entry)
    set_accessed(cpu, code)
    cpu.rsp = cpu.push_frame(cpu.ss, rsp, M64, 8, frame, level)
    nullify(cpu.ss, level)
    cpu.ss.dpl = level
    cpu.enter_code(code, level, entry)
    cpu.update_mode()


def _to_task(cpu: Cpu, target: Descriptor, kind: int) -> None:
    """JMP or CALL to a task gate or straight to a TSS."""
    _check_gate_level(cpu, target)
    if target.type == SYS_TASK_GATE:
        if not target.present:
            raise SegmentNotPresent(
                target.selector & SELECTOR_INDEX, f"task gate {target.selector:#06x} not present"
            )
        target = check_tss(cpu, target.raw >> 16 & M16)
    else:
        target = check_tss(cpu, target.selector)
    switch_task(cpu, target, kind, image=cpu.rflags())


# ---- RET ---------------------------------------------------------------------------------------------------


def return_far(cpu: Cpu, size: int, count: int) -> None:
    """RETF in protected and IA-32e mode; `count` bytes of parameters are released on both stacks."""
    mask = cpu.stack_mask
    rsp = cpu.rsp
    offset = cpu.read_data(cpu.ss, rsp & mask, size)
    selector = cpu.read_data(cpu.ss, rsp + size & mask, size) & M16
    code = check_code_return(cpu, selector)
    level = selector & 3
    if level == cpu.cpl:
        check_entry(cpu, code, offset)
        set_accessed(cpu, code)
        cpu.set_stack_pointer(rsp + 2 * size + count)
        cpu.enter_code(code, level, offset)
        cpu.update_mode()
        return
    new_rsp = cpu.read_data(cpu.ss, rsp + 2 * size + count & mask, size)
    ss_selector = cpu.read_data(cpu.ss, rsp + 3 * size + count & mask, size) & M16
    stack = check_return_stack(cpu, ss_selector, code)
    check_entry(cpu, code, offset)
    set_accessed(cpu, code)
    enter_outer(cpu, code, offset, ss_selector, stack, new_rsp, count)
    cpu.update_mode()


def enter_outer(
    cpu: Cpu, code: Descriptor, offset: int, ss_selector: int, stack: Descriptor | None, new_rsp: int,
    count: int,
) -> None:  # fmt: skip
    """Commit CS:RIP and SS:RSP of a return that pops both; data segments are invalidated on an outer level.

    `stack` None is a null SS (64-bit mode). With a 16-bit stack only SP changes: the high part of ESP stays.
    The caller ends with `update_mode`.
    """
    level = code.selector & 3
    if stack is not None:
        set_accessed(cpu, stack)
        cpu.ss.load_descriptor(ss_selector, stack.raw)
    else:
        nullify(cpu.ss, ss_selector)
        cpu.ss.dpl = level
    outer = level > cpu.cpl
    cpu.enter_code(code, level, offset)
    if code.l and cpu.efer & EFER_LMA:
        cpu.rsp = new_rsp + count & M64
    elif cpu.ss.db:
        cpu.rsp = new_rsp + count & M32
    else:
        cpu.rsp = cpu.rsp & ~M16 | new_rsp + count & M16
    if outer:
        invalidate_for_level(cpu, level)
