"""Segment descriptors: reading them from the GDT or LDT, checking them, loading segment registers. No gates.

Sources: SDM Vol. 3, "Segment Descriptors", "Privilege Levels" and "Privilege Checking". A check reads; it
returns a `Descriptor`, and only then the caller stores accessed bits and commits registers. So a fault or an
exit from a descriptor table leaves every register as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from isa.faults import Fault, GeneralProtection, SegmentNotPresent, StackFault
from isa.state import (
    CR0_PE,
    EFER_LMA,
    M32,
    M64,
    SYS_LDT,
    SYS_TSS16_AVAILABLE,
    SYS_TSS_AVAILABLE,
    TYPE_ACCESSED,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_READABLE,
    TYPE_WRITABLE,
    Segment,
)

if TYPE_CHECKING:
    from isa.interrupts import InterruptUnit

RaiseFault = Callable[[int, str], Fault]

TYPE_BUSY = 2  # of a TSS descriptor
SELECTOR_INDEX = 0xFFFC  # index and TI: what error codes hold of a selector
ACCESSED_BIT = 1 << 40
BUSY_BIT = 1 << 41

SYSTEM_NAMES = (
    "reserved type 0", "available 16-bit TSS", "LDT", "busy 16-bit TSS", "16-bit call gate", "task gate",
    "16-bit interrupt gate", "16-bit trap gate", "reserved type 8", "available TSS", "reserved type 10",
    "busy TSS", "call gate", "reserved type 13", "interrupt gate", "trap gate",
)  # fmt: skip


class Descriptor:
    """Eight descriptor bytes, taken apart. `linear` is where they lie; `selector` is what named them.

    `limit` is in bytes, scaled by G, as in `Segment`. Gates use `type`, `dpl`, `present` and `raw` only.
    """

    __slots__ = ("db", "dpl", "l", "linear", "present", "raw", "s", "selector", "type")

    def __init__(self, selector: int, linear: int, raw: int) -> None:
        self.selector = selector
        self.linear = linear
        self.raw = raw
        self.type = raw >> 40 & 15
        self.s = raw >> 44 & 1
        self.dpl = raw >> 45 & 3
        self.present = raw >> 47 & 1
        self.l = raw >> 53 & 1
        self.db = raw >> 54 & 1

    @property
    def base(self) -> int:
        """Base bits 31-0."""
        return self.raw >> 16 & 0xFF_FFFF | self.raw >> 32 & 0xFF00_0000

    @property
    def limit(self) -> int:
        """The last offset in bytes."""
        limit = self.raw & 0xFFFF | self.raw >> 32 & 0xF_0000
        return limit << 12 | 0xFFF if self.raw >> 55 & 1 else limit

    @property
    def is_code(self) -> bool:
        """A code segment."""
        return bool(self.s and self.type & TYPE_CODE)

    @property
    def conforming(self) -> bool:
        """A conforming code segment."""
        return bool(self.s and self.type & TYPE_CODE and self.type & TYPE_CONFORMING)

    @property
    def is_readable(self) -> bool:
        """A data segment or a readable code segment."""
        return bool(self.s and (not self.type & TYPE_CODE or self.type & TYPE_READABLE))

    @property
    def is_writable(self) -> bool:
        """A writable data segment."""
        return bool(self.s and not self.type & TYPE_CODE and self.type & TYPE_WRITABLE)

    @property
    def what(self) -> str:
        """The descriptor's type in words."""
        if not self.s:
            return SYSTEM_NAMES[self.type]
        if self.type & TYPE_CODE:
            return ("conforming " if self.type & TYPE_CONFORMING else "") + (
                "readable code" if self.type & TYPE_READABLE else "execute-only code"
            )
        return "writable data" if self.type & TYPE_WRITABLE else "read-only data"


def is_null(selector: int) -> bool:
    """Null selectors are 0 to 3: index 0 in the GDT, any RPL."""
    return not selector & SELECTOR_INDEX


def is_canonical(linear: int) -> bool:
    """Bits 63-47 of a linear address are all equal."""
    return (linear + 0x8000_0000_0000 & M64) < 1 << 48


def descriptor_address(cpu: InterruptUnit, selector: int, size: int = 8) -> int:
    """Linear address of the `size` descriptor bytes that `selector` names; -1 outside its table's limit."""
    table = cpu.ldtr if selector & 4 else cpu.gdtr
    if (selector & 4 and cpu.ldtr.null) or (selector & 0xFFF8) + size - 1 > table.limit:
        return -1
    return table.base + (selector & 0xFFF8) & (M64 if cpu.efer & EFER_LMA else M32)


def read_descriptor(cpu: InterruptUnit, selector: int, fault: RaiseFault = GeneralProtection) -> Descriptor:
    """The descriptor of a selector that is not null. Raises `fault(selector)` outside the table's limit."""
    linear = descriptor_address(cpu, selector)
    if linear < 0:
        if selector & 4 and cpu.ldtr.null:
            why = f"selector {selector:#06x} names the LDT, but LDTR is null"
        else:
            name, limit = ("LDT", cpu.ldtr.limit) if selector & 4 else ("GDT", cpu.gdtr.limit)
            why = f"selector {selector:#06x} outside the {name} limit {limit:#x}"
        raise fault(selector & SELECTOR_INDEX, why)
    return Descriptor(selector, linear, cpu.load_system(linear, 8))


def read_upper_half(cpu: InterruptUnit, descriptor: Descriptor, fault: RaiseFault = GeneralProtection) -> int:
    """IA-32e mode: bytes 8-15 of a 16-byte LDT, TSS or call-gate descriptor; the low half is bits 63-32.

    Raises `fault(selector)` if they lie outside the limit or if their type field is not 0.
    """
    selector = descriptor.selector
    if descriptor_address(cpu, selector, 16) < 0:
        raise fault(
            selector & SELECTOR_INDEX, f"16-byte descriptor {selector:#06x} runs over the table limit"
        )
    upper = cpu.load_system(descriptor.linear + 8 & M64, 8)
    if upper >> 40 & 0x1F:
        raise fault(selector & SELECTOR_INDEX, f"upper type field of descriptor {selector:#06x} is not 0")
    return upper


def set_accessed(cpu: InterruptUnit, descriptor: Descriptor) -> None:
    """Set the accessed bit in memory if it is clear, as every load of a segment register does."""
    if not descriptor.raw & ACCESSED_BIT:
        descriptor.raw |= ACCESSED_BIT
        descriptor.type |= TYPE_ACCESSED
        cpu.store_system(descriptor.linear + 5, 1, descriptor.raw >> 40 & 0xFF)


def nullify(segment: Segment, selector: int) -> None:
    """Load a null selector. The base becomes 0, as on Intel CPUs (AMD's keep it)."""
    segment.load_null(selector)
    segment.base = 0


# ---- checks ------------------------------------------------------------------------------------------------


def check_data(
    cpu: InterruptUnit, register: str, selector: int, level: int, fault: RaiseFault = GeneralProtection
) -> Descriptor:
    """Checks of loading DS, ES, FS or GS with a selector that is not null, at privilege `level`.

    SDM Vol. 3, "Privilege Level Checking When Accessing Data Segments". Raises `fault(selector)` or
    #NP(selector).
    """
    descriptor = read_descriptor(cpu, selector, fault)
    code = selector & SELECTOR_INDEX
    if not descriptor.is_readable:
        raise fault(code, f"{register} load: {descriptor.what} is not a data or readable code segment")
    if not descriptor.conforming:
        rpl = selector & 3
        if rpl > descriptor.dpl:
            raise fault(code, f"{register} load: DPL {descriptor.dpl} < RPL {rpl}")
        if level > descriptor.dpl:
            raise fault(code, f"{register} load: DPL {descriptor.dpl} < CPL {level}")
    if not descriptor.present:
        raise SegmentNotPresent(code, f"{register} load: segment {selector:#06x} not present")
    return descriptor


def check_stack(
    cpu: InterruptUnit, selector: int, level: int, fault: RaiseFault = GeneralProtection
) -> Descriptor:
    """Checks of loading SS for privilege `level`: writable data with RPL = DPL = level.

    Raises `fault(0)` for a null selector, `fault(selector)`, or #SS(selector) if it is not present.
    """
    if is_null(selector):
        raise fault(0, f"SS load: null selector {selector:#06x}")
    descriptor = read_descriptor(cpu, selector, fault)
    code = selector & SELECTOR_INDEX
    if selector & 3 != level:
        raise fault(code, f"SS load: RPL {selector & 3} is not {level}")
    if not descriptor.is_writable:
        raise fault(code, f"SS load: {descriptor.what} is not a writable data segment")
    if descriptor.dpl != level:
        raise fault(code, f"SS load: DPL {descriptor.dpl} is not {level}")
    if not descriptor.present:
        raise StackFault(code, f"SS load: segment {selector:#06x} not present")
    return descriptor


def check_code_size(cpu: InterruptUnit, descriptor: Descriptor) -> None:
    """IA-32e mode: L and D may not both be set in a code segment. #GP(selector)."""
    if descriptor.l and descriptor.db and cpu.efer & EFER_LMA:
        raise GeneralProtection(
            descriptor.selector & SELECTOR_INDEX, f"code segment {descriptor.selector:#06x} with L=1 and D=1"
        )


def check_code_direct(cpu: InterruptUnit, descriptor: Descriptor) -> None:
    """Checks of a far JMP or CALL straight to a code segment (SDM Vol. 3, "Direct Calls or Jumps to Code
    Segments"). #GP(selector) or #NP(selector)."""
    selector = descriptor.selector
    code = selector & SELECTOR_INDEX
    check_code_size(cpu, descriptor)
    if descriptor.conforming:
        if descriptor.dpl > cpu.cpl:
            raise GeneralProtection(code, f"conforming code segment, DPL {descriptor.dpl} > CPL {cpu.cpl}")
    else:
        if selector & 3 > cpu.cpl:
            raise GeneralProtection(code, f"code segment, RPL {selector & 3} > CPL {cpu.cpl}")
        if descriptor.dpl != cpu.cpl:
            raise GeneralProtection(code, f"code segment, DPL {descriptor.dpl} is not CPL {cpu.cpl}")
    if not descriptor.present:
        raise SegmentNotPresent(code, f"code segment {selector:#06x} not present")


def check_code_return(cpu: InterruptUnit, selector: int) -> Descriptor:
    """Checks of the CS that RETF or IRET pops. #GP(0) if null, #GP(selector) or #NP(selector)."""
    if is_null(selector):
        raise GeneralProtection(0, f"return to the null code segment selector {selector:#06x}")
    descriptor = read_descriptor(cpu, selector)
    code, rpl = selector & SELECTOR_INDEX, selector & 3
    if not descriptor.is_code:
        raise GeneralProtection(code, f"return to {descriptor.what}, which is not a code segment")
    check_code_size(cpu, descriptor)
    if rpl < cpu.cpl:
        raise GeneralProtection(code, f"return to an inner level, RPL {rpl} < CPL {cpu.cpl}")
    if descriptor.conforming:
        if descriptor.dpl > rpl:
            raise GeneralProtection(code, f"return to conforming code, DPL {descriptor.dpl} > RPL {rpl}")
    elif descriptor.dpl != rpl:
        raise GeneralProtection(code, f"return to code, DPL {descriptor.dpl} is not RPL {rpl}")
    if not descriptor.present:
        raise SegmentNotPresent(code, f"return to code segment {selector:#06x}, which is not present")
    return descriptor


def check_return_stack(cpu: InterruptUnit, selector: int, code: Descriptor) -> Descriptor | None:
    """Checks of the SS that RETF or IRET pops for a return to `code`; None for a null SS where it is allowed:
    64-bit code at a level below 3, which is its RPL. #GP(0), #GP(selector) or #SS(selector)."""
    level = code.selector & 3
    if is_null(selector) and code.l and selector == level != 3 and cpu.efer & EFER_LMA:
        return None
    return check_stack(cpu, selector, level)


def check_entry(cpu: InterruptUnit, code: Descriptor, offset: int) -> None:
    """The new instruction pointer is inside the code segment, or canonical in 64-bit code. #GP(0)."""
    if code.l and cpu.efer & EFER_LMA:
        if not is_canonical(offset):
            raise GeneralProtection(0, f"target {offset:#x} is not canonical")
    elif offset > code.limit:
        raise GeneralProtection(0, f"target {offset:#x} outside the code segment limit {code.limit:#x}")


# ---- loading registers -------------------------------------------------------------------------------------


def load_segment(cpu: InterruptUnit, segment: Segment, selector: int) -> None:
    """Load DS, ES, FS, GS or SS as MOV, POP and LDS do, in any mode. Raises #GP, #NP or #SS."""
    if not cpu.protected:
        if cpu.cr0 & CR0_PE:
            segment.load_v86(selector)
        else:
            segment.load_real(selector)
    elif segment is cpu.ss:
        if is_null(selector) and cpu.mode64 and cpu.cpl < 3 and selector & 3 == cpu.cpl:
            nullify(segment, selector)
            segment.dpl = cpu.cpl
        else:
            descriptor = check_stack(cpu, selector, cpu.cpl)
            set_accessed(cpu, descriptor)
            segment.load_descriptor(selector, descriptor.raw)
    elif is_null(selector):
        nullify(segment, selector)
    else:
        descriptor = check_data(cpu, segment.name.upper(), selector, cpu.cpl)
        set_accessed(cpu, descriptor)
        segment.load_descriptor(selector, descriptor.raw)
    if segment is cpu.ss:
        cpu.update_mode()


def load_ldtr(cpu: InterruptUnit, selector: int, fault: RaiseFault = GeneralProtection) -> None:
    """LLDT, and the LDT part of a task switch (`fault` is then #TS, also for a missing present bit)."""
    if is_null(selector):
        nullify(cpu.ldtr, selector)
        return
    code = selector & SELECTOR_INDEX
    if selector & 4:
        raise fault(code, f"LDT selector {selector:#06x} is not in the GDT")
    descriptor = read_descriptor(cpu, selector, fault)
    if descriptor.s or descriptor.type != SYS_LDT:
        raise fault(code, f"LDTR load: {descriptor.what} is not an LDT")
    upper = read_upper_half(cpu, descriptor, fault) if cpu.efer & EFER_LMA else 0
    if not descriptor.present:
        why = f"LDT {selector:#06x} not present"
        raise SegmentNotPresent(code, why) if fault is GeneralProtection else fault(code, why)
    base = descriptor.base | (upper & M32) << 32
    if not is_canonical(base):
        raise fault(code, f"LDT base {base:#x} is not canonical")
    cpu.ldtr.load_descriptor(selector, descriptor.raw)
    cpu.ldtr.base = base


def load_tr(cpu: InterruptUnit, selector: int) -> None:
    """LTR: the TSS must be available and becomes busy in memory. #GP(0), #GP(selector), #NP(selector)."""
    if is_null(selector):
        raise GeneralProtection(0, f"LTR with the null selector {selector:#06x}")
    code = selector & SELECTOR_INDEX
    if selector & 4:
        raise GeneralProtection(code, f"TSS selector {selector:#06x} is not in the GDT")
    long_mode = cpu.efer & EFER_LMA
    descriptor = read_descriptor(cpu, selector)
    available = (SYS_TSS_AVAILABLE,) if long_mode else (SYS_TSS_AVAILABLE, SYS_TSS16_AVAILABLE)
    if descriptor.s or descriptor.type not in available:
        raise GeneralProtection(code, f"TR load: {descriptor.what} is not an available TSS")
    upper = read_upper_half(cpu, descriptor) if long_mode else 0
    if not descriptor.present:
        raise SegmentNotPresent(code, f"TSS {selector:#06x} not present")
    base = descriptor.base | (upper & M32) << 32
    if not is_canonical(base):
        raise GeneralProtection(code, f"TSS base {base:#x} is not canonical")
    cpu.store_system(descriptor.linear + 5, 1, (descriptor.raw | BUSY_BIT) >> 40 & 0xFF)
    cpu.tr.load_descriptor(selector, descriptor.raw | BUSY_BIT)
    cpu.tr.base = base


def invalidate_for_level(cpu: InterruptUnit, level: int) -> None:
    """A return to an outer level nulls data segment registers that it could not have loaded itself, and
    clears the RPL of those that are null already; their bases stay."""
    for segment in (cpu.es, cpu.fs, cpu.gs, cpu.ds):
        conforming = segment.type & TYPE_CODE and segment.type & TYPE_CONFORMING
        if segment.null:
            segment.selector = 0
        elif not conforming and segment.dpl < level:
            nullify(segment, 0)
