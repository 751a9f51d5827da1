"""VCpu: axvm's AxVCpu around one CPU of the silicon. It owns the state machine, not the exit loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from isa.cpu import Cpu, load_hint
from isa.exits import ExitReason, IoRead, MmioRead, SysRegRead
from isa.state import CR0_ET, CR0_PE, M64, RFLAGS_FIXED, Segment
from pysim_vm.boot_plan import CpuStart
from pysim_vm.errors import AxError, AxErrorKind
from pysim_vm.exit_kinds import IO_READ, MMIO_READ, SYS_REG_READ
from pysim_vm.lifecycle import VCpuState, check_vcpu_transition, is_vcpu_step
from pysim_vm.registers import Registers

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

T = TypeVar("T")

_READS = (IoRead, MmioRead, SysRegRead)
# GPR numbers of set_gpr: rax rcx rdx rbx (rsp unused) rbp rsi rdi r8 ... r15 (x86_vcpu)
_GPR_ORDER = ("rax", "rcx", "rdx", "rbx", "", "rbp", "rsi", "rdi",
              "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip


@dataclass(frozen=True, slots=True)
class VcpuSnapshot:
    """What a manager shows of a vCPU."""

    id: int
    state: VCpuState
    phys_cpu_set: int | None


class VCpu:
    """One virtual CPU. `regs` are its registers, `retired` its virtual time in instructions.

    `answering` is the kind of exit that a device answers the short way right now, in the middle of the
    instruction (exit_kinds), or -1. For the device that is as on the full way: the vCPU is Ready, and what is
    done to it here takes the exit there.
    """

    def __init__(
        self, vm: AxVM, vcpu_id: int, cpu: Cpu, favor_phys_cpu: int = 0, phys_cpu_set: int | None = None
    ) -> None:
        self._vm = vm
        self._id = vcpu_id
        self.cpu = cpu
        self._favor_phys_cpu = favor_phys_cpu
        self._phys_cpu_set = phys_cpu_set
        self._state = VCpuState.Created
        self.answering = -1
        self._read_exit: IoRead | MmioRead | SysRegRead | None = None  # the exit that set_gpr may answer
        self._hypercall: tuple[int, int] | None = None  # RIP and time of one that waits for its result
        self.regs = Registers(cpu)

    # ---- identity --------------------------------------------------------------------------------------

    def id(self) -> int:
        """The vCPU's number in its VM."""
        return self._id

    def vm_id(self) -> int:
        """The VM's id."""
        return self._vm.id()

    def is_bsp(self) -> bool:
        """True for the boot processor, vCPU 0."""
        return self._id == 0

    def favor_phys_cpu(self) -> int:
        """The physical id that the vCPU shows."""
        return self._favor_phys_cpu

    def phys_cpu_set(self) -> int | None:
        """The affinity bit mask, if one is configured."""
        return self._phys_cpu_set

    def get_arch_vcpu(self) -> Cpu:
        """The silicon."""
        return self.cpu

    @property
    def retired(self) -> int:
        """Instructions retired so far: virtual time."""
        return self.cpu.retired

    def _who(self) -> str:
        """The vCPU's name in messages."""
        return f"VM[{self._vm.id()}] vCPU[{self._id}]"

    # ---- the state machine -----------------------------------------------------------------------------

    def state(self) -> VCpuState:
        """Where the vCPU is in its life."""
        return self._state if self.answering < 0 else VCpuState.Ready

    def set_state(self, state: VCpuState) -> None:
        """Set the state without a check (axvcpu marks it unsafe)."""
        self._state = state
        if self.answering >= 0:
            self.cpu.request_attention()

    def transition_state(self, source: VCpuState, target: VCpuState) -> None:
        """source -> target; BadState, and nothing changed, if the vCPU is not in `source`."""
        self._check_transition(source, target)
        self.set_state(target)

    def _check_transition(self, source: VCpuState, target: VCpuState) -> None:
        state = self.state()
        if state is not source or not is_vcpu_step(source, target):
            check_vcpu_transition(state, source, target, self._who())

    def with_state_transition(self, source: VCpuState, target: VCpuState, work: Callable[[], T]) -> T:
        """Do `work` and go source -> target; a failing `work` makes the vCPU Invalid."""
        self._check_transition(source, target)
        try:
            result = work()
        except BaseException:
            self.set_state(VCpuState.Invalid)
            raise
        self.set_state(target)
        return result

    def manipulate_arch_vcpu(self, source: VCpuState, target: VCpuState, work: Callable[[Cpu], T]) -> T:
        """`with_state_transition` handing the silicon to `work`, with this vCPU as the current one."""
        return self.with_state_transition(
            source, target, lambda: self.with_current_cpu_set(lambda: work(self.cpu))
        )

    def with_current_cpu_set(self, work: Callable[[], T]) -> T:
        """Do `work` while this vCPU is the VM's current one. BadState if another one is."""
        return self._vm.with_current_vcpu(self, work)

    def setup(self, entry: int | CpuStart, ept_root: int = 0, setup_cfg: object = None) -> None:
        """Created -> Free. `entry` is axvm's real-mode entry point or a loader's whole CPU state."""

        def work() -> None:
            if isinstance(entry, CpuStart):
                self.load_start(entry)
            else:
                self._set_axvm_entry(entry)

        self.with_state_transition(VCpuState.Created, VCpuState.Free, work)

    def bind(self) -> None:
        """Free -> Ready: this thread is about to run the vCPU."""
        self.transition_state(VCpuState.Free, VCpuState.Ready)

    def unbind(self) -> None:
        """Ready -> Free."""
        self.transition_state(VCpuState.Ready, VCpuState.Free)

    def run(self, until: int) -> ExitReason:
        """Ready -> Running -> Ready: execute until `until` instructions are retired or an exit is due."""
        if self._state is not VCpuState.Ready:
            self._check_transition(VCpuState.Ready, VCpuState.Running)
        self._state = VCpuState.Running
        try:
            reason = self.cpu.run(until)
            self._read_exit = reason if isinstance(reason, _READS) else None
            return reason
        except BaseException:
            self._state = VCpuState.Invalid
            self.answering = -1
            raise
        finally:
            if self._state is VCpuState.Running:
                self._state = VCpuState.Ready

    # ---- what an exit handler does -----------------------------------------------------------------------

    def complete(self, value: int = 0) -> None:
        """Answer the exit that `run` returned; the instruction finishes with `value` when run again."""
        self._read_exit = None
        self.cpu.complete(value)

    def set_gpr(self, reg: int, value: int) -> None:
        """Write GPR number `reg` (axvm's order; 4, RSP, is not writable). InvalidInput for another number.

        After a read exit, set_gpr of the register that the exit names (0 for a port) answers it, as in axvm:
        the instruction puts `value` there in its own width.
        """
        if reg == self._answer_register():
            self.complete(value)
            return
        name = _GPR_ORDER[reg] if 0 <= reg < len(_GPR_ORDER) else ""
        if not name:
            raise AxError(AxErrorKind.InvalidInput, f"set_gpr: no register number {reg} (0-15 without 4)")
        setattr(self.cpu, name, value & M64)
        self.cpu.request_attention()

    def _answer_register(self) -> int | None:
        """The number of the register by which set_gpr answers a read exit; None where there is none."""
        if self.answering >= 0:
            if self.answering == MMIO_READ:
                hint = load_hint(self.cpu.code[self.cpu.rip])
                return None if hint is None else hint[0]
            return 0 if self.answering in (IO_READ, SYS_REG_READ) else None
        exit_ = self._read_exit
        return None if exit_ is None else 0 if isinstance(exit_, IoRead) else exit_.reg

    def expect_return_value(self) -> None:
        """A Hypercall goes to the caller: the next run wants its result."""
        self._hypercall = self.cpu.rip, self.cpu.retired

    def _hypercall_waits(self) -> bool:
        return self._hypercall == (self.cpu.rip, self.cpu.retired)

    def refuse_unanswered_hypercall(self) -> None:
        """A hypercall that nobody answered returns -1: the guest never goes on with its old RAX."""
        if self._hypercall_waits() and not self.cpu.answers:
            self.cpu.complete(M64)
        self._hypercall = None

    def set_return_value(self, value: int) -> None:
        """The result of a hypercall: goes to RAX when the vCPU runs again, at once if none waits."""
        if self._hypercall_waits():
            self.cpu.answers.clear()  # the last word counts
            self.cpu.complete(value & M64)
        else:
            self.cpu.rax = value & M64
            self.cpu.request_attention()

    def set_entry(self, entry: int) -> None:
        """Where the vCPU starts, before `setup` or again after CpuUp: axvm's real-mode entry."""
        self._set_axvm_entry(entry)

    def inject_interrupt(self, vector: int) -> None:
        """Queue an interrupt, delivered in order when IF and shadows allow; InvalidInput outside 1-255."""
        if not 0 < vector < 256:
            raise AxError(AxErrorKind.InvalidInput, f"inject_interrupt: vector {vector} is not in 1-255")
        self.cpu.injected.append(vector)
        self.cpu.request_attention()

    def inject_nmi(self) -> None:
        """Make an NMI pending."""
        self.cpu.nmi_pending = True
        self.cpu.request_attention()

    def step(self) -> ExitReason | None:
        """Run one instruction, devices included; the last exit it took, or None."""
        return self._vm.step_vcpu(self._id)

    # ---- start states ------------------------------------------------------------------------------------

    def _set_axvm_entry(self, entry: int) -> None:
        """x86_vcpu's initial guest state: real mode, CS base 0, RIP = entry; the reset vector is special."""
        cpu = self.cpu
        self._hypercall = self._read_exit = None
        cpu.reset()
        cpu.cr0 = CR0_ET
        cpu.rdx = 0
        if entry == 0xFFFF_FFF0:
            cpu.rip = 0xFFF0
        else:
            cpu.cs.load_raw(0, 0, 0xFFFF_FFFF if entry > 0xFFFF else 0xFFFF, 0x9B)
            cpu.rip = entry
        cpu.update_mode()

    def load_start(self, start: CpuStart) -> None:
        """Put the CPU into the state that a loader asks for."""
        cpu = self.cpu
        self._hypercall = self._read_exit = None
        cpu.reset()
        if start.mode == "reset":
            return
        for name, value in start.regs.items():
            if name == "rflags":
                cpu.set_rflags_raw(value | RFLAGS_FIXED)
            else:
                setattr(cpu, name, value)
        cpu.rip = start.rip
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = start.cr0, start.cr3, start.cr4, start.efer
        for name, (selector, base, limit, attributes) in start.segments.items():
            register: Segment = getattr(cpu, name)
            register.load_raw(selector, base, limit, attributes, null=not attributes & 0x80)
        if start.mode == "real" and start.rip > cpu.cs.limit:  # axvm's entry points may exceed 16 bits
            cpu.cs.load_raw(cpu.cs.selector, cpu.cs.base, 0xFFFF_FFFF, start.segments["cs"][3])
        cpu.gdtr.base, cpu.gdtr.limit = start.gdt_base, start.gdt_limit
        cpu.idtr.base, cpu.idtr.limit = start.idt_base, start.idt_limit
        cpu.cpl = cpu.ss.dpl if cpu.cr0 & CR0_PE else 0
        cpu.flush_tlb()
        cpu.update_mode()
        cpu.request_attention()
