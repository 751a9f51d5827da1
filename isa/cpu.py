"""The CPU: modes, the step engine and the boundary between two instructions. No instruction is defined here.

The step engine is the loop in `run`: look the decoded instruction up, put RIP behind it, call its function,
count it. Everything that can happen *between* two instructions (interrupts, NMI, single step, breakpoints,
HLT) happens in `_boundary`, and only while `attention` says that there may be something to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from isa.blocks import FIRST_DUE, HOT, LOOK, RECORDED, RECOUNT, SAMPLE_EVERY, BlockUnit
from isa.code_cache import CodeCache, CodeContext
from isa.decode import (
    MAX_LENGTH,
    Insn,
    InvalidInstruction,
    NeedMoreBytes,
    TooLong,
    bind_operands,
    code_names,
    decode,
    decoder_options,
    disassemble,
    form_features,
    mnemonic_names,
    modifies_memory,
    needs_ymm_state,
    opcode_info,
    operand_size,
)
from isa.exits import (
    Budget,
    ExitReason,
    ExternalInterrupt,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    NestedPageFault,
    SysRegRead,
    SysRegWrite,
    TripleFault,
    Unimplemented,
    VmExit,
)
from isa.faults import (
    AlignmentCheck,
    DebugException,
    Fault,
    GeneralProtection,
    InvalidOpcode,
    PageFault,
    Restart,
)
from isa.memory import EXECUTE, PhysicalMemory
from isa.mmu import ACCESS_FETCH, PF_FETCH, PF_WRITE
from isa.modes import mode_bits
from isa.operands import Location
from isa.semantics import definition_for, instruction_table
from isa.semantics.flags import virtual_if
from isa.semantics.registry import WIDE, Definition
from isa.semantics.vector import on_halves
from isa.state import (
    AC_BIT,
    CR0_EM,
    CR0_PE,
    CR0_TS,
    CR4_OSFXSR,
    CR4_OSXSAVE,
    EFER_LMA,
    M16,
    M32,
    M64,
    MOV_SS_SHADOW,
    NO_SHADOW,
    RFLAGS_FIXED,
    TYPE_EXPAND_DOWN,
    XCR0_AVX,
    XCR0_SSE,
)
from isa.tasks import DR6_TASK_SWITCH

DR6_SINGLE_STEP = 1 << 14
NEVER = 1 << 62

# Encodings that old CPUs execute as NOP: without the feature they still are (SDM Vol. 2, NOP; CET, MPX hints)
NOP_WITHOUT_FEATURE = frozenset(
    ("ENDBR32", "ENDBR64", "RDSSPD", "RDSSPQ", "PREFETCHW", "PREFETCHWT1", "PREFETCHIT0", "PREFETCHIT1",
     "CLDEMOTE", "BNDCL", "BNDCU", "BNDCN", "BNDMK", "BNDMOV", "BNDLDX", "BNDSTX")
)  # fmt: skip

# The way out of the guest: a hypervisor answers them whatever the CPUID bits for VMX and SVM say
HYPERCALLS = frozenset(("VMCALL", "VMMCALL"))


class Cpu(BlockUnit):
    """One x86-64 logical processor over a PhysicalMemory.

    `features`: the CPUID features it has, by iced's names. `cpuid` answers the CPUID instruction.
    `tsc()` and `random64()` are the machine's: virtual time and a seeded generator.
    """

    steps_plainly = True  # False for the class of a CPU whose instructions or memory somebody watches

    __slots__ = (
        "_between_iterations",
        "_options",
        "_pending_debug",
        "acknowledge",
        "attention",
        "cache",
        "code",
        "cpuid",
        "features",
        "ferr",
        "host_interrupt",
        "injected",
        "interrupt_line",
        "kicked",
        "last_ip",
        "msr_intercepted",
        "nmi_pending",
        "on_cr8",
        "on_ferr",
        "port_in",
        "port_out",
        "random64",
        "read_cr8",
        "sse_enabled",
        "stop_at",
        "sys_reg_read",
        "sys_reg_write",
        "table",
        "trap_cancelled",
        "tsc",
        "undelivered",
        "ymm_enabled",
    )  # fmt: skip

    def __init__(
        self,
        memory: PhysicalMemory,
        features: frozenset[str],
        cpuid: Callable[[Cpu, int, int], tuple[int, int, int, int]],
    ) -> None:
        self.cache = CodeCache()
        self.features = features
        self.cpuid = cpuid
        self.table: dict[str, Definition] = instruction_table()
        self._options = decoder_options(features)
        self.tsc: Callable[[], int] = lambda: self.retired
        self.random64: Callable[[], int] = lambda: 0x9E37_79B9_7F4A_7C15 * (self.retired + 1) & M64
        self.msr_intercepted: Callable[[int], bool] = lambda _: False
        # Where an access that leaves the CPU goes: out of the guest, unless the VM knows a shorter way
        self.port_in: Callable[[int, int], int] = self.leave_port_in
        self.port_out: Callable[[int, int, int], None] = self.leave_port_out
        self.sys_reg_read: Callable[[int], int] = self.leave_sys_reg_read
        self.sys_reg_write: Callable[[int, int], None] = self.leave_sys_reg_write
        self.on_cr8: Callable[[int], None] | None = None  # the local APIC's task priority
        self.read_cr8: Callable[[], int] | None = None
        self.ferr = False  # the FERR# pin: an x87 error with CR0.NE = 0
        self.on_ferr: Callable[[bool], None] | None = None  # who is told of its changes
        self.acknowledge: Callable[[], int] | None = None  # INTA: the interrupt controller's vector
        self.interrupt_line = False  # the INTR pin
        self.nmi_pending = False
        self.injected: deque[int] = deque()  # vectors queued by the hypervisor
        self.host_interrupt: int | None = None
        self.kicked = False
        self.use_blocks = False  # the block engine; see `blocks.py`
        self.hot = HOT
        self.pending_flags = None
        self.first_due, self.sample_every, self.recorded = FIRST_DUE, SAMPLE_EVERY, RECORDED
        self._tick, self._lean, self._recording, self.drafts = 1, 0, None, None
        self.at_fault = (0, None)
        self._pending_debug = 0  # DR6 bits of a debug trap held back
        self._between_iterations = False  # RF was set by an interrupted REP, not by the guest
        self.undelivered: Fault | int | None = None  # its delivery took an exit and goes on after it
        self.last_events = None
        self.trap_cancelled = False
        self.attention = LOOK
        self.stop_at = NEVER
        self.last_ip = 0
        super().__init__(memory)
        self.gigabyte_pages = "PDPE1GB" in features
        self.pse36 = "PSE36" in features
        memory.on_map_change = self.map_changed
        memory.on_write = self.cache_written
        self.flush_tlb()
        self.update_mode()

    # ---- modes ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """RESET: registers, modes and pending events; `retired`, which is time, goes on."""
        self.power_on()
        self.ferr = False
        self.forget_answers()
        self.injected.clear()
        self.undelivered = None
        self.nmi_pending = False
        self._pending_debug = 0
        self.pdptes = [0, 0, 0, 0]
        self.flush_tlb()
        self.update_mode()
        self.request_attention()

    def update_mode(self) -> None:
        """Derive mode64, code_bits, stack_mask, protected, sse_enabled, ymm_enabled, TLB and code context;
        call after a change of CR0, CR4, XCR0, EFER, RFLAGS.VM, RFLAGS.AC, CS, SS or CPL."""
        self.protected = bool(self.cr0 & CR0_PE) and not self.vm
        long_mode = bool(self.efer & EFER_LMA)
        self.mode64 = long_mode and bool(self.cs.l)
        if self.mode64:
            self.code_bits, self.stack_mask = 64, M64
        else:
            self.code_bits = 32 if self.cs.db else 16
            self.stack_mask = M32 if self.ss.db else M16
        self.select_tlb()
        base, limit = (0, M64) if self.mode64 else (self.cs.base, self.cs.limit)
        wide = XCR0_SSE | XCR0_AVX
        self.ymm_enabled = bool(self.cr4 & CR4_OSXSAVE) and self.xcr0 & wide == wide
        self.sse_enabled = not self.cr0 & (CR0_EM | CR0_TS) and bool(self.cr4 & CR4_OSFXSR)
        wide_stack = self.stack_mask != M16
        kind = mode_bits(self.vm, self.protected, long_mode, self.ymm_enabled, self.sse_enabled, wide_stack)
        key = (self.code_bits, self.cpl, base, limit, kind)
        self.code: CodeContext = self.cache.context(self, key, base, limit)

    def flush_tlb(self) -> None:
        """Forget translations; decoded instructions are found again through their physical page."""
        super().flush_tlb()
        self.cache.flush()

    def mode_name(self) -> str:
        """The operating mode in the SDM's words."""
        if self.mode64:
            return "64-bit"
        if not self.cr0 & CR0_PE:
            return "real"
        if self.vm:
            return "virtual-8086"
        if self.efer & EFER_LMA:
            return "compatibility"
        return f"{self.code_bits}-bit protected"

    def set_rflags(self, value: int) -> None:
        """Write RFLAGS as POPF, IRET and SYSRET do, after their masking: modes and the engine follow."""
        changed = self.rflags() ^ value
        self.set_rflags_raw(value | RFLAGS_FIXED)
        if changed & (1 << AC_BIT | 1 << 17):
            self.update_mode()
        self.request_attention()

    # ---- the engine ----------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Make `run` return Budget before the next instruction; may come from a signal handler or thread."""
        self.kicked = True
        self.request_attention()

    def request_attention(self) -> None:
        """Look at events before the next instruction; exits of this one go the full way from here on."""
        self.attention |= LOOK
        self.stop_at = 0
        self.exit_ip = -1

    def count_iterations(self, iterations: int) -> None:
        """Iterations of a REP instruction beyond its last one, each counted as a retired instruction."""
        self.retired += iterations
        self.attention |= RECOUNT

    def run(self, until: int) -> ExitReason:
        """Execute until `retired` reaches `until` (Budget) or an exit. Never raises for a guest's doing.

        A delivered interrupt or exception counts as one retired instruction, so that a guest that only
        faults uses up its budget, and so does each iteration of a REP instruction.
        """
        ip = self.rip
        insn: Insn | None = None
        while True:
            try:
                while self.attention:
                    if self.attention == RECOUNT:
                        self.attention = 0
                        break
                    insn = None
                    ip = self.rip
                    self.exit_ip = -1
                    if self.retired >= until and not self.answers:
                        return Budget(self.retired)
                    before = self.retired
                    reason = self._boundary()
                    if reason is not None:
                        return reason
                    if self.retired != before:  # an event was delivered: look again
                        continue
                    if self.attention:
                        # REP stops after an element if its exits made an event due
                        self.stop_at = 0 if self.would_wake() or self.kicked else until
                        ip = self.rip
                        if self.dr7 & 0xFF:
                            self._check_code_breakpoints()  # comes before what the fetch may raise
                        if self.vif and self.vip and virtual_if(self):
                            raise GeneralProtection(0, "VIF=1 and VIP=1 before an instruction")
                        insn = self.code[ip]
                        self._step_carefully(insn)
                if self.retired >= until:
                    return Budget(self.retired)
                self.stop_at = until
                if self.use_blocks:
                    self.exit_ip = -1
                    try:
                        self.run_blocks(until)
                    except BaseException:
                        ip, insn = self.at_fault
                        raise
                    continue
                count = range(self.retired, until)
                for self.retired in count:
                    ip = self.exit_ip = self.rip
                    insn = self.code[ip]
                    self.rip = insn.next
                    insn.function(*insn.arguments)
                    if self.attention:
                        break
                self.retired += 1
            except VmExit as event:
                self.rip = ip
                self.attention = LOOK  # the answers belong to this instruction alone
                if self.taken_at == self.retired:
                    self.answers[:0] = [self.taken] if isinstance(self.taken, int) else self.taken
                    self.taken_at = -1
                if insn is not None and event.reason.__class__ is MmioRead:
                    return _with_hint(event.reason, insn)
                return event.reason
            except Restart:
                self.rip = ip
                self._between_iterations = not self.rf
                self.rf = 1  # pushed by an event between two iterations
                self.forget_answers()
                self.request_attention()
            except Fault as fault:
                if not fault.is_trap:
                    self.rip = ip
                if isinstance(fault, PageFault | AlignmentCheck) and insn is not None and insn.ip == ip:
                    fault = self.checked_as_write(fault, insn)
                self.last_ip = ip
                self.forget_answers()
                reason = self._take(fault)
                if reason is not None:
                    return reason

    def step(self) -> ExitReason | None:
        """Run one instruction or deliver one event; the exit it took, or None."""
        reason = self.run(self.retired + 1)
        return None if isinstance(reason, Budget) else reason

    def complete(self, value: int = 0) -> None:
        """The VM's answer to the exit that `run` returned last; the instruction goes on with it."""
        self.answers.append(value)
        self.cursor = 0
        self.request_attention()

    def fail(self, fault: Fault) -> None:
        """Answer an exit with a fault, e.g. #GP(0) for an MSR that nobody has."""
        self.answers.append(fault)
        self.cursor = 0
        self.request_attention()

    def commit_element(self) -> None:
        """One element of a REP instruction is done: its answers are used up."""
        if self.answers:
            self.forget_answers()

    def forget_answers(self) -> None:
        """What the VM answered to the instruction so far is not for another one."""
        self.answers.clear()
        self.cursor = 0
        self.taken_at = -1

    def _take(self, fault: Fault) -> ExitReason | None:
        """Deliver a fault; TripleFault if the CPU shuts down, or the exit its delivery took."""
        self.request_attention()
        self.shadow = NO_SHADOW
        self._between_iterations = False
        try:
            chain = self.deliver_fault(fault)
        except VmExit as event:
            self.undelivered = fault
            return event.reason
        self.forget_answers()
        self.retired += 1
        if chain is not None:
            self.halted = True
            return TripleFault(chain)
        return None

    # ---- between two instructions ---------------------------------------------------------

    def _boundary(self) -> ExitReason | None:
        """SDM Vol. 3, "Priority Among Concurrent Events": debug traps, NMI, interrupts; then HLT.

        Clears `attention` when the next instruction needs no care.
        """
        self.cursor = 0
        if self.undelivered is not None:
            event, self.undelivered = self.undelivered, None
            return self._take(event) if isinstance(event, Fault) else self._interrupt(event)
        if self.answers:  # in the middle of an instruction: no event may come between
            return None
        if self.kicked:
            self.kicked = False
            return Budget(self.retired)
        if self._pending_debug and self.shadow != MOV_SS_SHADOW:
            bits, self._pending_debug = self._pending_debug, 0
            self.halted = False
            return self._take(DebugException(bits, (_debug_words, (bits, self.dr7, self._breakpoints()))))
        if self.host_interrupt is not None:
            vector, self.host_interrupt = self.host_interrupt, None
            return ExternalInterrupt(vector)
        if self.nmi_pending and not self.nmi_blocked and self.shadow != MOV_SS_SHADOW:
            self.nmi_pending = False
            self.nmi_blocked = True
            return self._interrupt(2)
        if (self.injected or self.interrupt_line) and self.shadow == NO_SHADOW and self._may_interrupt():
            accepted = self._next_vector()
            if accepted is not None:
                return self._interrupt(accepted)
        if self.halted:
            return Halt()
        if self.shadow == NO_SHADOW and not (
            self.tf or self.rf or self.dr7 & 0xFF or self._pending_debug or (self.vif and self.vip)
        ):
            self.attention = 0
            if self.kicked or self.host_interrupt is not None:  # came from outside since it was looked at
                self.attention = LOOK
        return None

    def _may_interrupt(self) -> bool:
        """Maskable interrupts are accepted; exceptions that the hypervisor injects (vector < 32) always."""
        return bool(self.if_) or bool(self.injected and self.injected[0] < 32)

    def _next_vector(self) -> int | None:
        if self.injected:
            return self.injected.popleft()
        return self.acknowledge() if self.acknowledge is not None else None

    def _interrupt(self, vector: int) -> ExitReason | None:
        self.halted = self._between_iterations = False
        self.last_ip = self.rip
        try:
            chain = self.deliver_external(vector)
        except VmExit as event:
            self.undelivered = vector
            return event.reason
        self.forget_answers()
        self.retired += 1
        if chain is not None:
            self.halted = True
            return TripleFault(chain)
        return None

    def would_wake(self) -> bool:
        """True if the next boundary leaves HLT."""
        return (
            (self.nmi_pending and not self.nmi_blocked)
            or bool((self.injected or self.interrupt_line) and self._may_interrupt())
            or self.host_interrupt is not None
        )

    def _step_carefully(self, insn: Insn) -> None:
        """One instruction with data breakpoints, single step, shadows, RF and answers looked after."""
        single_step, shadow, resume = self.tf, self.shadow, self.rf
        from_rep, self._between_iterations = self._between_iterations, False
        self.debug_hits = 0
        self.trap_cancelled = False
        self.shadow = NO_SHADOW
        self.rf = 0
        self.rip = insn.next
        restarted = None
        try:
            insn.function(*insn.arguments)
        except VmExit:
            # RF that only stands for "between two iterations" is not for the VM to see
            self.shadow, self.rf = shadow, 0 if from_rep else resume
            raise
        except Restart as event:
            restarted = event
        else:
            self.retired += 1
        self.forget_answers()
        self._pending_debug |= self.debug_hits
        if single_step and not self.trap_cancelled and self.shadow != MOV_SS_SHADOW:
            self._pending_debug |= DR6_SINGLE_STEP
        if restarted is not None:
            self.rf = 0 if from_rep else resume  # the guest's own, as if the iterations had not been split up
            raise restarted

    def checked_as_write(self, fault: PageFault | AlignmentCheck, insn: Insn) -> Fault:
        """What a fault in the read of a read-modify-write is: hardware checks that read as a write."""
        if not modifies_memory(insn.raw, self.code_bits):
            return fault
        operand = next((o for o in insn.operands if getattr(o, "in_memory", False)), None)
        segment = self.ds if operand is None else operand.segment
        if segment.write_last < 0 and not self.mode64 and not segment.type & TYPE_EXPAND_DOWN:
            return GeneralProtection(0, f"write through {segment.name}, which is not writable data")
        if isinstance(fault, PageFault) and not (fault.error_code or 0) & PF_FETCH:
            fault.error_code = (fault.error_code or 0) | PF_WRITE
            if operand is not None and not fault.address & 0xFFF:  # perhaps the second of two pages
                linear = self.linear_address(segment, operand.offset, 1, False)
                if 0 < fault.address - linear < operand.bytes:
                    try:
                        self.check_write(linear, 1)
                    except PageFault as first:  # the first one can be read, but not written
                        return first
        return fault

    def _check_code_breakpoints(self) -> None:
        """DebugException if a breakpoint register holds the next instruction's address; not with RF, not
        behind MOV SS or POP SS, not in the middle of an instruction."""
        if self.rf or self.answers or self.shadow == MOV_SS_SHADOW:
            return
        hits = 0
        linear = self.rip if self.mode64 else self.cs.base + self.rip & M32
        for n, address in enumerate(self._breakpoints()):
            if self.dr7 >> 2 * n & 3 and self.dr7 >> 16 + 4 * n & 3 == 0 and address == linear:
                hits |= 1 << n
        if hits:
            words = _debug_words, (hits, self.dr7, self._breakpoints())
            raise DebugException(hits, words, trap=False)

    def _breakpoints(self) -> tuple[int, int, int, int]:
        return self.dr0, self.dr1, self.dr2, self.dr3

    # ---- fetching ------------------------------------------------------------------------------------------

    def fetch(self, context: CodeContext, ip: int) -> Insn:
        """Decode the instruction at CS:`ip`, or find it decoded already in its physical page."""
        linear = context.base + ip & (M64 if self.mode64 else M32)
        if self.mode64:
            if linear + 0x8000_0000_0000 & M64 >= 1 << 48:
                raise GeneralProtection(0, f"RIP {ip:#x} is not canonical")
            room = MAX_LENGTH
        else:
            if ip > context.limit or (not self.cs.type & 8 and self.cs.type & TYPE_EXPAND_DOWN):
                raise GeneralProtection(0, f"instruction pointer {ip:#x} outside CS limit {context.limit:#x}")
            room = min(MAX_LENGTH, context.limit - ip + 1)
        frame = context.frames.get(linear >> 12)
        if frame is None:
            frame = self._code_at(self.translate(linear, ACCESS_FETCH, self.cpl == 3)) & -4096
            context.frames[linear >> 12] = frame
        host = frame | linear & 0xFFF
        page = self.cache.pages.get(host >> 12)
        if page is not None:
            known = page.insns.get((context.key, ip))
            if known is not None:
                return known
        raw = bytes(self.ram[host : host + min(room, 4096 - (host & 0xFFF))])
        second = None
        try:
            try:
                instruction = decode(raw, self.code_bits, ip, self._options)
            except NeedMoreBytes:
                if len(raw) == room:
                    raise GeneralProtection(
                        0, f"instruction at {ip:#x} runs over the CS limit {context.limit:#x}"
                    ) from None
                beyond = linear + len(raw) & (M64 if self.mode64 else M32)
                if self.mode64 and beyond + 0x8000_0000_0000 & M64 >= 1 << 48:
                    raise GeneralProtection(
                        0, f"instruction at {ip:#x} runs into non-canonical addresses"
                    ) from None
                second = self._code_at(self.translate(beyond, ACCESS_FETCH, self.cpl == 3))
                raw += bytes(self.ram[second : second + room - len(raw)])
                instruction = decode(raw, self.code_bits, ip, self._options)
        except NeedMoreBytes:
            raise GeneralProtection(
                0, f"instruction at {ip:#x} runs over the CS limit {context.limit:#x}"
            ) from None
        except TooLong:
            raise GeneralProtection(0, f"instruction at {ip:#x} is longer than 15 bytes") from None
        except InvalidInstruction:
            raise InvalidOpcode(f"no instruction: {raw.hex(' ')} at {ip:#x}") from None
        insn = self._bind(instruction, raw[: instruction.len], ip)
        self._remember(context, insn, host, second)
        return insn

    def _code_at(self, gpa: int) -> int:
        """Pool offset of code at `gpa`; code runs from RAM and ROM only."""
        host = self.memory.host_page(gpa, EXECUTE)
        if host is None:
            raise VmExit(NestedPageFault(gpa, EXECUTE))
        return host + (gpa & 0xFFF)

    def _remember(self, context: CodeContext, insn: Insn, host: int, second: int | None) -> None:
        """Put an instruction under its host page(s); writes to them are noticed from now on."""
        for page in (host >> 12,) if second is None else (host >> 12, second >> 12):
            if page not in self.memory.code_pages:
                self.memory.code_pages.add(page)
                self.forget_writes()
        self.cache.remember(context, insn, host, second)

    def code_written(self, host: int, size: int) -> None:
        """A store went to a code page; a page without code left is plain RAM again."""
        self.cache.written(host, size)
        for page in (host >> 12, host + size - 1 >> 12):
            if page not in self.cache.pages:
                self.memory.code_pages.discard(page)

    def map_changed(self) -> None:
        """RAM, device windows or the A20 gate changed: no translation holds any more."""
        self.flush_tlb()
        self.request_attention()

    def cache_written(self, host: int, size: int) -> None:
        """DMA or the VM wrote RAM at pool offset `host`."""
        self.request_attention()
        if not self.memory.code_pages.isdisjoint(range(host >> 12, (host + size - 1 >> 12) + 1)):
            self.cache.written(host, size)

    def definition_of(self, insn: Insn) -> Definition | None:
        """The definition behind a decoded instruction."""
        info = opcode_info(insn.code)
        return definition_for(code_names()[insn.code], mnemonic_names()[info.mnemonic])

    def _bind(self, instruction: Any, raw: bytes, ip: int) -> Insn:
        """Choose the function: iced's tables say where and at which CPL a form is legal."""
        code = instruction.code
        name, mnemonic = code_names()[code], mnemonic_names()[instruction.mnemonic]
        definition = definition_for(name, mnemonic)
        info = opcode_info(code)
        next_ip = ip + len(raw) & (M64 if self.mode64 else M32)
        operands: tuple[Any, ...] = ()
        missing = [feature for feature in form_features(code) if feature not in self.features]
        if missing and mnemonic in NOP_WITHOUT_FEATURE:
            function: Callable[..., None] = self.table["NOP"].function
        elif definition is None:
            text = disassemble(raw, self.code_bits, ip)
            function = _unimplemented(Unimplemented(raw, text, ip, self.mode_name()))
        elif missing and mnemonic not in HYPERCALLS:
            function = _invalid(f"{mnemonic} needs {', '.join(missing)}, which CPUID does not offer")
        elif not (self.protected or info.real_mode or (self.vm and info.virtual8086_mode)):
            # What real mode knows and virtual-8086 mode does not is privileged there: #GP below, not #UD
            function = _invalid(f"{mnemonic} is not recognized in {self.mode_name()} mode")
        elif not (definition.own_privilege or (info.cpl0, info.cpl1, info.cpl2, info.cpl3)[self.cpl]):
            function = _privileged(f"{mnemonic} at CPL {self.cpl}")
        elif needs_ymm_state(code) and not self.ymm_enabled:
            function = _invalid(f"{mnemonic} needs CR4.OSXSAVE = 1 and XCR0[2:1] = 11b")
        else:
            function = definition.function
            operands = bind_operands(self, instruction, definition.arity)
            if info.l == 1 and definition.part != WIDE:
                function = on_halves(function, definition.part)
            if definition.named:
                operands = (mnemonic, *operands)
            if definition.sized:
                operands = (operand_size(code), *operands)
            if definition.located:
                operands = (Location(ip, raw), *operands)
            if definition.rep and (instruction.has_rep_prefix or instruction.has_repne_prefix):
                operands = (definition, not instruction.has_repne_prefix, *operands)
                function = self.table["REP"].function
        return Insn(ip, raw, code, function, (self, *operands), next_ip)

    # ---- ports ---------------------------------------------------------------------------------------------

    def leave_port_in(self, port: int, size: int) -> int:
        """IN after the permission check: leaves as IoRead, comes back with the answer."""
        return self.outside(IoRead, port, size) & (1 << 8 * size) - 1

    def leave_port_out(self, port: int, size: int, value: int) -> None:
        """OUT after the permission check: leaves as IoWrite."""
        self.outside(IoWrite, port, size, value)

    # ---- model-specific registers that the CPU does not hold -----------------------------------------------

    def leave_sys_reg_read(self, index: int) -> int:
        """RDMSR: leaves as SysRegRead, comes back with the answer."""
        return self.outside(SysRegRead, index, 0) & M64

    def leave_sys_reg_write(self, index: int, value: int) -> None:
        """WRMSR: leaves as SysRegWrite."""
        self.outside(SysRegWrite, index, value)


def load_hint(insn: Insn) -> tuple[int, int, bool] | None:
    """Where a plain load puts its value: register number, width in bytes, signed. None for another one."""
    for operand in insn.operands:
        hint: tuple[int, int, bool] | None = getattr(operand, "hint", None)
        if hint is not None and insn.operands[0] is not operand:
            return hint
    return None


def _with_hint(reason: MmioRead, insn: Insn) -> MmioRead:
    hint = load_hint(insn)
    return reason if hint is None else MmioRead(reason.addr, reason.width, *hint)


def _debug_words(hits: int, dr7: int, addresses: tuple[int, ...]) -> str:
    """What the bits of DR6 mean."""
    found = ["single step (TF=1)"] if hits & DR6_SINGLE_STEP else []
    if hits & DR6_TASK_SWITCH:
        found.append("task switch (T=1 in the TSS)")
    for n, address in enumerate(addresses):
        if hits >> n & 1:
            kind = ("instruction", "write", "I/O", "data access")[dr7 >> 16 + 4 * n & 3]
            found.append(f"breakpoint DR{n}, {kind} at {address:#x}")
    return ", ".join(found)


def _unimplemented(reason: Unimplemented) -> Callable[..., None]:
    def leave(cpu: Cpu) -> None:
        raise VmExit(reason)

    return leave


def _invalid(why: str) -> Callable[..., None]:
    def fault(cpu: Cpu) -> None:
        raise InvalidOpcode(why)

    return fault


def _privileged(why: str) -> Callable[..., None]:
    def fault(cpu: Cpu) -> None:
        raise GeneralProtection(0, why)

    return fault
