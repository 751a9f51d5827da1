"""A guest one instruction at a time, with its registers after each. It runs nothing that `AxVM.run` does not.

`AxVM.steps` is for programs that look at every instruction: a debugger, a tracer, a lesson. Most steps take
the short way of `isa.stepping`; every other one is `AxVM.run(1)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from isa.exits import Budget, ExitReason
from isa.state import AF_BIT, CF_BIT, DF_BIT, IF_BIT, OF_BIT, PF_BIT, SF_BIT, VIF_BIT, ZF_BIT
from isa.stepping import plain_functions, step_plainly
from pysim_vm.lifecycle import VmStatus

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM


class Moment(NamedTuple):
    """The machine between two instructions: `retired` of them are done, RIP is at the next one.

    All of it is copied. Flags are as the CPU holds them, any true value for 1; `system` are those without a
    field, in their places. `rflags` is RFLAGS as the guest sees it. What is not here (vectors, x87, segments,
    control registers) is in `vm.vcpu(0).regs`, which is the machine itself: of this moment until the next
    step.
    """

    retired: int
    rip: int
    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    cf: int
    pf: int
    af: int
    zf: int
    sf: int
    if_: int
    df: int
    of: int
    vif: int
    system: int

    @property
    def rflags(self) -> int:
        """RFLAGS as a number."""
        return (
            self.system
            | bool(self.cf) | bool(self.pf) << PF_BIT | bool(self.af) << AF_BIT | bool(self.zf) << ZF_BIT
            | bool(self.sf) << SF_BIT | bool(self.if_) << IF_BIT | bool(self.df) << DF_BIT
            | bool(self.of) << OF_BIT | bool(self.vif) << VIF_BIT
        )  # fmt: skip

    def _repr_html_(self) -> str:
        from pysim_vm.display.registers import moment_picture

        return moment_picture(self)._repr_html_()


# The flags with a field: what plain instructions may change without asking for the CPU's attention
FIELDS_OF_RFLAGS = (
    1 << CF_BIT | 1 << PF_BIT | 1 << AF_BIT | 1 << ZF_BIT | 1 << SF_BIT | 1 << IF_BIT | 1 << DF_BIT
    | 1 << OF_BIT | 1 << VIF_BIT
)  # fmt: skip


class Steps:
    """Iterate over it to step vCPU 0, `count` times at most: `AxVM.steps` makes it.

    A step is what `AxVM.run(1)` does: one instruction with its exits, one interrupt or exception, one
    iteration of a REP instruction. Each yields the Moment after it. The iteration ends after `count` steps or
    where a run ends; `reason` is then what `AxVM.run` returned. It raises what `AxVM.run` raises. Another
    iteration goes on from there, with another `count`.
    """

    def __init__(self, vm: AxVM, count: int | None = None) -> None:
        self._vm = vm
        self._count = count
        self.reason: ExitReason | None = None

    def __iter__(self) -> Iterator[Moment]:
        vm, cpu, clock = self._vm, self._vm.vcpu(0).cpu, self._vm.clock
        plain, new = plain_functions(), tuple.__new__
        quiet, armed = 0, -1  # nothing is due before `quiet` instructions, as long as no call was armed
        seen = -1  # retired after the last step: another count says that the machine ran meanwhile
        system = 0
        reason: ExitReason | None = None
        self.reason = None
        for _ in repeat(None) if self._count is None else repeat(None, self._count):
            if (
                cpu.retired != seen
                or seen >= quiet
                or clock.armed != armed
                or vm.vm_status() is not VmStatus.Running
                or not step_plainly(cpu, plain)
            ):
                before = cpu.retired
                outcome = vm.run(1)
                armed, quiet = clock.armed, quiet_until(vm)
                system = cpu.rflags() & ~FIELDS_OF_RFLAGS
                if outcome.__class__ is not Budget or cpu.retired == before:
                    reason = outcome
                    if cpu.retired == before:
                        break
            elif cpu.attention:  # whatever writes RFLAGS as a whole asks for it
                system = cpu.rflags() & ~FIELDS_OF_RFLAGS
            seen = cpu.retired
            # Spelled out: a call that reads all attributes costs half as much again
            yield new(Moment, (
                seen, cpu.rip, cpu.rax, cpu.rcx, cpu.rdx, cpu.rbx, cpu.rsp, cpu.rbp, cpu.rsi, cpu.rdi,
                cpu.r8, cpu.r9, cpu.r10, cpu.r11, cpu.r12, cpu.r13, cpu.r14, cpu.r15,
                cpu.cf, cpu.pf, cpu.af, cpu.zf, cpu.sf, cpu.if_, cpu.df, cpu.of, cpu.vif, system,
            ))  # fmt: skip
            if reason is not None:
                break
        self.reason = Budget(cpu.retired) if reason is None else reason


def quiet_until(vm: AxVM) -> int:
    """The count of retired instructions up to which no timer fires and the configured budget does not end."""
    limit = vm.config().pysim.budget_instructions - 1
    deadline = vm.clock.next_deadline_ns()
    if deadline is None:
        return limit
    return min(limit, vm.vcpu(0).retired + (deadline - vm.now_ns() - 1) // vm.ns_per_instruction)
