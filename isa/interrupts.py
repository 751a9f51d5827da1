"""The interrupt unit: delivery of exceptions, interrupts and INT n through the IVT, the IDT and its gates.

It does not decide when an interrupt comes (see `Cpu._boundary`) and does not switch tasks (see `isa.tasks`).
Sources: SDM Vol. 3, "Interrupt and Exception Handling"; SDM Vol. 2, INT n. Every delivery first reads and
checks, then writes the stack frame, and commits registers last: a fault or an exit in the middle leaves the
CPU as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isa.descriptors import (
    SELECTOR_INDEX,
    Descriptor,
    check_entry,
    check_stack,
    is_canonical,
    is_null,
    nullify,
    read_descriptor,
    set_accessed,
)
from isa.faults import (
    AlignmentCheck,
    DebugException,
    DoubleFault,
    Fault,
    GeneralProtection,
    InvalidTss,
    MachineCheck,
    PageFault,
    SegmentNotPresent,
    StackFault,
)
from isa.mmu import MemoryUnit
from isa.state import (
    CR0_PE,
    CR4_VME,
    EFER_LMA,
    IF_BIT,
    IOPL_SHIFT,
    M16,
    M32,
    M64,
    RF_BIT,
    SYS_INTERRUPT_GATE,
    SYS_INTERRUPT_GATE16,
    SYS_TASK_GATE,
    SYS_TRAP_GATE,
    SYS_TRAP_GATE16,
    SYS_TSS16_AVAILABLE,
    SYS_TSS16_BUSY,
    TYPE_EXPAND_DOWN,
    Segment,
)
from isa.tasks import TASK_CALL, check_tss, switch_task

# What raised a software interrupt: only INT n heeds IOPL and VME, only INT1 is exempt from the DPL check.
INT_N, INT3, INTO, INT1 = 0, 1, 2, 3

ERROR_EXT = 1  # error code: an event external to the program was being delivered
ERROR_IDT = 2  # error code: the index names a gate of the IDT
DR6_BREAKPOINTS = 15
DR6_GENERAL_DETECT = 1 << 13
DR7_GENERAL_DETECT = 1 << 13
RF = 1 << RF_BIT
MAX_SERIAL_FAULTS = 8
REDIRECTION_MAP_BYTES = 32  # lies right below the I/O permission bit map of the TSS
IO_MAP_BASE = 0x66  # offset of that map's base in a 32-bit TSS
RSP0, IST1 = 4, 36  # offsets in a 64-bit TSS

_EXT_FAULTS = (InvalidTss, SegmentNotPresent, StackFault, GeneralProtection, AlignmentCheck)


class InterruptUnit(MemoryUnit):
    """Event delivery and the stack frames that far transfers share with it."""

    __slots__ = ("last_events",)
    # The last exception and what came of its delivery: retired count, RIP, CPL, and the chain of faults. It
    # begins with the vector of an interrupt if that one's delivery raised them. None: there was none.
    last_events: tuple[int, int, int, list[Fault | int]] | None

    if TYPE_CHECKING:  # the CPU around this unit
        _pending_debug: int
        trap_cancelled: bool

        def update_mode(self) -> None: ...
        def request_attention(self) -> None: ...

    # ---- the three ways in ---------------------------------------------------------------------------------

    def deliver_fault(self, fault: Fault) -> tuple[str, ...] | None:
        """Deliver an exception whose return address is RIP.

        None when a handler runs. At shutdown the chain of faults that led to it, first to last. Raises
        VmExit with nothing committed if a table or a stack lies outside RAM.
        """
        return self._deliver_chain(fault, [fault])

    def deliver_external(self, vector: int) -> tuple[str, ...] | None:
        """Deliver a hardware interrupt or NMI between two instructions; results as `deliver_fault`."""
        try:
            self._event(vector, None, self.rflags(), software=False)
        except Fault as fault:
            return self._deliver_chain(_external(fault), [vector, fault])
        return None

    def software_interrupt(self, vector: int, kind: int) -> None:
        """INT n, INT3, INTO or INT1 (`kind`); RIP is the return address already. Raises Fault or VmExit."""
        self.trap_cancelled = True
        if self.vm and kind == INT_N:
            if self.cr4 & CR4_VME and not self._redirected(vector):
                self._deliver_in_v86(vector)
                return
            if self.iopl < 3:
                raise GeneralProtection(0, f"INT {vector:#04x} in virtual-8086 mode, IOPL {self.iopl} < 3")
        if kind == INT1:
            try:
                self._event(vector, None, self.rflags(), software=False)
            except Fault as fault:
                raise _external(fault) from None
        else:
            self._event(vector, None, self.rflags(), software=True)

    # ---- faults while delivering ---------------------------------------------------------------------------

    def _deliver_chain(self, fault: Fault, chain: list[Fault | int]) -> tuple[str, ...] | None:
        """SDM Vol. 3, "Double Fault Exception (#DF)": what follows a fault in the delivery of a fault.

        `chain` ends with `fault`; before it is the vector of the interrupt whose delivery raised it, if one.
        """
        self.last_events = self.retired, self.rip, self.cpl, chain
        for _ in range(MAX_SERIAL_FAULTS):
            fault.__traceback__ = fault.__context__ = None  # it is kept, the instruction's frames need not be
            self._record(fault)
            image = self.rflags() | (RF if _sets_resume(fault) else 0)
            try:
                self._event(fault.vector, fault.error_code, image, software=False)
                return None
            except Fault as event:
                second = _external(event)
            chain.append(second)
            if isinstance(fault, DoubleFault) and not second.benign:
                second.__traceback__ = second.__context__ = None
                return chain_words(chain)
            if escalates(fault, second):
                self._record(second)
                second.__traceback__ = second.__context__ = None
                second = DoubleFault(0, f"{second.name} while delivering {fault.name}")
                chain.append(second)
            fault = second
        # Quirk: a benign fault may meet itself again for ever (#AC on the stack of the #AC handler hangs a
        # real CPU in microcode). Here the instruction starts anew, so that the guest's budget runs out.
        return None

    def _record(self, fault: Fault) -> None:
        """What an exception leaves in CR2, DR6 and DR7, even if its delivery fails."""
        if isinstance(fault, PageFault):
            self.cr2 = fault.address
        elif isinstance(fault, DebugException):
            self.dr6 = self.dr6 & ~DR6_BREAKPOINTS | fault.dr6
            self.dr7 &= ~DR7_GENERAL_DETECT

    def _event(self, vector: int, error_code: int | None, image: int, *, software: bool) -> None:
        """One delivery; `image` is the RFLAGS to push. Faults carry EXT = 0: callers add it."""
        if not self.cr0 & CR0_PE:
            self._deliver_real(vector, image)
        elif self.efer & EFER_LMA:
            self._deliver_long(vector, error_code, image, software)
        else:
            self._deliver_protected(vector, error_code, image, software)

    # ---- real-address mode and redirected INT n ------------------------------------------------------------

    def _deliver_real(self, vector: int, image: int) -> None:
        """Through the interrupt vector table at IDTR: four bytes each, no error codes."""
        if 4 * vector + 3 > self.idtr.limit:
            raise GeneralProtection(0, f"vector {vector:#04x} outside the IDT limit {self.idtr.limit:#x}")
        entry = self.load_system(self.idtr.base + 4 * vector & M32, 4)
        frame = (image & M16, self.cs.selector, self.rip & M16)
        top = self.push_frame(self.ss, self.rsp, self.stack_mask, 2, frame, 0)
        self.set_stack_pointer(top)
        self.cs.load_real(entry >> 16)
        self.rip = entry & M16
        self.if_ = self.tf = self.ac = self.rf = 0
        self.update_mode()

    def _redirected(self, vector: int) -> bool:
        """Bit `vector` of the software interrupt redirection bit map: 1 means the protected-mode handler."""
        tr = self.tr
        if tr.type in (SYS_TSS16_AVAILABLE, SYS_TSS16_BUSY) or tr.limit < IO_MAP_BASE + 1:
            raise GeneralProtection(0, f"no redirection bit map in the TSS, limit {tr.limit:#x}")
        at = self.load_system(tr.base + IO_MAP_BASE & M32, 2) - REDIRECTION_MAP_BYTES + vector // 8
        if at < 0 or at > tr.limit:
            raise GeneralProtection(0, f"redirection bit map outside the TSS limit {tr.limit:#x}")
        return bool(self.load_system(tr.base + at & M32, 1) >> vector % 8 & 1)

    def _deliver_in_v86(self, vector: int) -> None:
        """VME: INT n handled by the 8086 program itself, through the table at linear address 0."""
        entry = self.load(4 * vector, 4)
        image = self.rflags() & M16
        if self.iopl < 3:  # the program sees VIF as its IF, and IOPL 3
            image = image & ~(1 << IF_BIT) | self.vif << IF_BIT | 3 << IOPL_SHIFT
        frame = (image, self.cs.selector, self.rip & M16)
        self.set_stack_pointer(self.push_frame(self.ss, self.rsp, self.stack_mask, 2, frame, 3))
        self.cs.load_v86(entry >> 16)
        self.rip = entry & M16
        if self.iopl == 3:
            self.if_ = 0
        else:
            self.vif = 0
        self.tf = self.rf = 0
        self.update_mode()

    # ---- protected mode: 8-byte gates ----------------------------------------------------------------------

    def _deliver_protected(self, vector: int, error_code: int | None, image: int, software: bool) -> None:
        at = 8 * vector
        gate_error = at | ERROR_IDT
        if at + 7 > self.idtr.limit:
            raise GeneralProtection(
                gate_error, f"vector {vector:#04x} outside the IDT limit {self.idtr.limit:#x}"
            )
        linear = self.idtr.base + at & M32
        gate = Descriptor(0, linear, self.load_system(linear, 8))
        if gate.s or gate.type not in (
            SYS_TASK_GATE, SYS_INTERRUPT_GATE16, SYS_TRAP_GATE16, SYS_INTERRUPT_GATE, SYS_TRAP_GATE
        ):  # fmt: skip
            raise GeneralProtection(gate_error, f"IDT entry {vector:#04x} is {gate.what}, not a gate")
        self._check_gate(gate, vector, gate_error, software)
        selector = gate.raw >> 16 & 0xFFFF
        if gate.type == SYS_TASK_GATE:
            tss = check_tss(self, selector)
            switch_task(self, tss, TASK_CALL, image=image, error_code=error_code)
            return
        wide = gate.type & 8
        size = 4 if wide else 2
        offset = gate.raw & 0xFFFF | (gate.raw >> 32 & 0xFFFF_0000 if wide else 0)
        code = self._handler_segment(selector)
        level = self.cpl if code.conforming else code.dpl
        tail = (image, self.cs.selector, self.rip)
        if error_code is not None:
            tail = (*tail, error_code)  # type: ignore[assignment]
        if level < self.cpl:
            ss_selector, esp = self.inner_stack(level)
            ss = check_stack(self, ss_selector, level, InvalidTss)
            stack = Segment("ss")
            stack.load_descriptor(ss_selector, ss.raw)
            frame: tuple[int, ...] = (self.ss.selector, self.rsp, *tail)
            if self.vm:
                frame = (self.gs.selector, self.fs.selector, self.ds.selector, self.es.selector, *frame)
            mask = M32 if stack.db else M16
            self.check_room(stack, esp, mask, size, len(frame), ss_selector & SELECTOR_INDEX)
            check_entry(self, code, offset)
            set_accessed(self, ss)
            set_accessed(self, code)
            top = self.push_frame(stack, esp, mask, size, frame, level, ss_selector & SELECTOR_INDEX)
            if self.vm:
                for segment in (self.gs, self.fs, self.ds, self.es):
                    nullify(segment, 0)
            self.ss.load_descriptor(ss_selector, ss.raw)
            self.stack_mask = mask
        else:
            self.check_room(self.ss, self.rsp, self.stack_mask, size, len(tail), 0)
            check_entry(self, code, offset)
            set_accessed(self, code)
            top = self.push_frame(self.ss, self.rsp, self.stack_mask, size, tail, level)
        self.set_stack_pointer(top)
        self.enter_code(code, level, offset)
        if gate.type in (SYS_INTERRUPT_GATE, SYS_INTERRUPT_GATE16):
            self.if_ = 0
        self.tf = self.nt = self.rf = self.vm = 0
        self.update_mode()

    def _check_gate(self, gate: Descriptor, vector: int, gate_error: int, software: bool) -> None:
        if software and gate.dpl < self.cpl:
            raise GeneralProtection(gate_error, f"INT {vector:#04x}: gate DPL {gate.dpl} < CPL {self.cpl}")
        if not gate.present:
            raise SegmentNotPresent(gate_error, f"gate of vector {vector:#04x} not present")

    def _handler_segment(self, selector: int) -> Descriptor:
        """The code segment behind an interrupt or trap gate, checked."""
        if is_null(selector):
            raise GeneralProtection(0, f"null code segment selector {selector:#06x} in the gate")
        code = read_descriptor(self, selector)
        error = selector & SELECTOR_INDEX
        if not code.is_code:
            raise GeneralProtection(error, f"gate to {code.what}, which is not a code segment")
        if code.dpl > self.cpl:
            raise GeneralProtection(error, f"handler code segment, DPL {code.dpl} > CPL {self.cpl}")
        if self.efer & EFER_LMA and (not code.l or code.db):
            raise GeneralProtection(error, f"handler is not a 64-bit code segment: L={code.l}, D={code.db}")
        if not code.present:
            raise SegmentNotPresent(error, f"handler code segment {selector:#06x} not present")
        if self.vm and (code.conforming or code.dpl):
            raise GeneralProtection(error, f"handler for virtual-8086 mode is {code.what}, DPL {code.dpl}, "
                                           "not nonconforming DPL 0")  # fmt: skip
        return code

    # ---- IA-32e mode: 16-byte gates ------------------------------------------------------------------------

    def _deliver_long(self, vector: int, error_code: int | None, image: int, software: bool) -> None:
        at = 16 * vector
        gate_error = 8 * vector | ERROR_IDT
        if at + 15 > self.idtr.limit:
            raise GeneralProtection(
                gate_error, f"vector {vector:#04x} outside the IDT limit {self.idtr.limit:#x}"
            )
        linear = self.idtr.base + at & M64
        raw = self.load_system(linear, 16)
        gate = Descriptor(0, linear, raw & M64)
        if gate.s or gate.type not in (SYS_INTERRUPT_GATE, SYS_TRAP_GATE):
            raise GeneralProtection(gate_error, f"IDT entry {vector:#04x} is {gate.what}, not a 64-bit gate")
        self._check_gate(gate, vector, gate_error, software)
        offset = raw & 0xFFFF | raw >> 32 & 0xFFFF_FFFF_FFFF_0000
        code = self._handler_segment(raw >> 16 & 0xFFFF)
        level = self.cpl if code.conforming else code.dpl
        ist = raw >> 32 & 7
        if ist:
            rsp = self.tss_stack(IST1 + 8 * (ist - 1))
        elif level < self.cpl:
            rsp = self.tss_stack(RSP0 + 8 * level)
        else:
            rsp = self.rsp & (M64 if self.mode64 else self.stack_mask)
        rsp &= -16
        size = 40
        frame = self.rip | self.cs.selector << 64 | image << 128 | self.rsp << 192 | self.ss.selector << 256
        if error_code is not None:
            size = 48
            frame = frame << 64 | error_code
        top = rsp - size & M64
        if not is_canonical(top) or not is_canonical(rsp - 1 & M64):
            raise StackFault(0, f"stack address {top:#x} is not canonical")
        check_entry(self, code, offset)
        set_accessed(self, code)
        if level == self.cpl:
            self.store_stack(top, size, frame)
        else:
            self.store_system(top, size, frame)
            nullify(self.ss, level)
            self.ss.dpl = level
        self.rsp = top
        self.enter_code(code, level, offset)
        if gate.type == SYS_INTERRUPT_GATE:
            self.if_ = 0
        self.tf = self.nt = self.rf = 0
        self.update_mode()

    # ---- shared with far transfers -------------------------------------------------------------------------

    def enter_code(self, code: Descriptor, level: int, offset: int) -> None:
        """CS:RIP := code:offset at privilege `level`. The caller ends with `update_mode`."""
        self.cs.load_descriptor(code.selector & SELECTOR_INDEX | level, code.raw)
        self.cpl = level
        self.rip = offset

    def inner_stack(self, level: int) -> tuple[int, int]:
        """SS selector and (E)SP for an inner privilege level, from the 16- or 32-bit TSS. #TS(TR)."""
        tr = self.tr
        wide = tr.type not in (SYS_TSS16_AVAILABLE, SYS_TSS16_BUSY)
        at, size = (8 * level + 4, 4) if wide else (4 * level + 2, 2)
        if at + size + 1 > tr.limit:
            raise InvalidTss(
                tr.selector & SELECTOR_INDEX, f"stack for level {level} outside the TSS limit {tr.limit:#x}"
            )
        pointer = self.load_system(tr.base + at & M32, size)
        return self.load_system(tr.base + at + size & M32, 2), pointer

    def tss_stack(self, at: int) -> int:
        """RSPn or ISTn at offset `at` of the 64-bit TSS. #TS(TR) outside its limit."""
        tr = self.tr
        if at + 7 > tr.limit:
            raise InvalidTss(
                tr.selector & SELECTOR_INDEX, f"stack pointer at TSS+{at:#x} outside the limit {tr.limit:#x}"
            )
        return self.load_system(tr.base + at & M64, 8)

    def set_stack_pointer(self, value: int) -> None:
        """RSP, ESP or SP := value, as wide as the stack is; bits above SP stay."""
        mask = self.stack_mask
        self.rsp = self.rsp & ~M16 | value & M16 if mask == M16 else value & mask

    def push_frame(
        self, ss: Segment, rsp: int, mask: int, size: int, values: Sequence[int], level: int, error: int = 0
    ) -> int:
        """Store `values` in `size` bytes each below ss:rsp, the first one highest; the new stack pointer.

        `mask` is the width of the stack pointer, `level` the privilege that the stack belongs to. No register
        changes. Raises #SS(error) before the first store if there is no room.
        """
        addresses = self.check_room(ss, rsp, mask, size, len(values), error)
        store = self.store_stack if level == self.cpl else self.store_system
        low = (1 << 8 * size) - 1
        for linear, value in zip(addresses, values, strict=True):
            store(linear, size, value & low)
        return rsp - size * len(values) & mask

    def check_room(self, ss: Segment, rsp: int, mask: int, size: int, count: int, error: int) -> list[int]:
        """Linear addresses of `count` pushes. #SS(error) if one of them does not fit the stack segment."""
        addresses = []
        for _ in range(count):
            rsp = rsp - size & mask
            last = rsp + size - 1
            if mask == M64:
                if not is_canonical(rsp) or not is_canonical(last & M64):
                    raise StackFault(error, f"stack address {rsp:#x} is not canonical")
                addresses.append(rsp)
                continue
            if last > ss.write_last:
                down = not ss.null and ss.type & 8 == 0 and ss.type & TYPE_EXPAND_DOWN
                if not (down and ss.limit < rsp and last <= (M32 if ss.db else M16)):
                    raise StackFault(error, f"no room on the stack at {rsp:#x}, limit {ss.limit:#x}")
            addresses.append(ss.base + rsp & M32)
        return addresses


def chain_words(chain: Sequence[Fault | int]) -> tuple[str, ...]:
    """What led to something, first to last: faults in their words, an interrupt as its vector."""
    return tuple(f"interrupt {link:#04x}" if isinstance(link, int) else str(link) for link in chain)


def escalates(first: Fault, second: Fault) -> bool:
    """True if `second`, met while delivering `first`, makes a double fault."""
    if first.benign or second.benign:
        return False
    return isinstance(first, PageFault) or not isinstance(second, PageFault)


def _external(fault: Fault) -> Fault:
    """Set EXT: the fault came from delivering an event that no INT n, INT3 or INTO asked for."""
    if isinstance(fault, _EXT_FAULTS) and fault.error_code is not None:
        fault.error_code |= ERROR_EXT
    return fault


def _sets_resume(fault: Fault) -> bool:
    """SDM Vol. 3, "Instruction-Breakpoint Exception Condition": RF is 1 in the pushed image of a fault, so
    that the restarted instruction does not hit its breakpoint again; not for that breakpoint itself, not for
    the aborts #DF and #MC."""
    if isinstance(fault, DebugException):
        return not fault.is_trap and bool(fault.dr6 & DR6_GENERAL_DETECT)
    return not isinstance(fault, MachineCheck | DoubleFault)
