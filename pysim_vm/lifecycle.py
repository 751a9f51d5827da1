"""The two lifecycles, of a vCPU and of a VM: one enum, one table, one function each. No work is done here.

A step that the table lacks raises InvalidTransition (kind BadState) and the caller's state stays what it was,
as in axvm 0.5. axvm before that set a vCPU to Invalid when asked for a wrong step.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

from pysim_vm.axtypes import VmStatus
from pysim_vm.errors import InvalidTransition

__all__ = [
    "VCPU_TRANSITIONS",
    "VM_TRANSITIONS",
    "VCpuAction",
    "VCpuState",
    "VmAction",
    "VmStatus",
    "accepts_interrupts",
    "check_vcpu_transition",
    "is_vcpu_step",
    "vcpu_transition",
    "vm_transition",
]

# --- vCPU ---------------------------------------------------------------------------------------------------


class VCpuState(IntEnum):
    """axvcpu: VCpuState, with its numbers."""

    Invalid = 0
    Created = 1
    Free = 2
    Ready = 3
    Running = 4
    Blocked = 5


class VCpuAction(StrEnum):
    """What happens to a vCPU; the value is the verb of the messages."""

    SETUP = "setup"
    BIND = "bind"
    RUN = "run"
    RETURN = "return"  # run() comes back with an exit
    UNBIND = "unbind"
    BLOCK = "block"  # the task waits after Halt or CpuDown
    WAKE = "wake"
    INVALIDATE = "invalidate"  # the work of a transition failed half-way


# axvcpu declares Blocked and never uses it; here a vCPU task that waits is Blocked between two runs.
VCPU_TRANSITIONS: Final = {
    (VCpuState.Created, VCpuAction.SETUP): VCpuState.Free,
    (VCpuState.Free, VCpuAction.BIND): VCpuState.Ready,
    (VCpuState.Ready, VCpuAction.RUN): VCpuState.Running,
    (VCpuState.Running, VCpuAction.RETURN): VCpuState.Ready,
    (VCpuState.Ready, VCpuAction.UNBIND): VCpuState.Free,
    (VCpuState.Free, VCpuAction.BLOCK): VCpuState.Blocked,
    (VCpuState.Blocked, VCpuAction.WAKE): VCpuState.Free,
    **{(state, VCpuAction.INVALIDATE): VCpuState.Invalid for state in VCpuState},
}
_VCPU_STEPS: Final = {(source, target): action for (source, action), target in VCPU_TRANSITIONS.items()}


def vcpu_transition(state: VCpuState, action: VCpuAction | str, who: str = "vCPU") -> VCpuState:
    """The state after `action`.

    Raises InvalidTransition for a wrong step; `who` opens its message. ValueError for an action there is none
    of.
    """
    action = VCpuAction(action)
    target = VCPU_TRANSITIONS.get((state, action))
    if target is not None:
        return target
    allowed = [source.name for source, step in VCPU_TRANSITIONS if step is action]
    wanted = next(end for (_, step), end in VCPU_TRANSITIONS.items() if step is action)
    raise InvalidTransition(state.name, wanted.name, action.value, who=who, allowed=allowed)


def is_vcpu_step(source: VCpuState, target: VCpuState) -> bool:
    """Whether a vCPU in `source` may go to `target`, or both are the same: work done in one state."""
    return (source, target) in _VCPU_STEPS or source is target


def check_vcpu_transition(state: VCpuState, source: VCpuState, target: VCpuState, who: str = "vCPU") -> None:
    """Nothing, if a vCPU in `state` may go from `source` to `target`; InvalidTransition if not.

    This is axvcpu's way to ask: the caller names both ends. `source` equal to `target` is work done in one
    state.
    """
    action = _VCPU_STEPS.get((source, target))
    if state is source and (action is not None or source is target):
        return
    if action is None and source is not target:
        raise InvalidTransition(source.name, target.name, "no action", who=who)
    name = "work in one state" if action is None else action.value
    raise InvalidTransition(state.name, target.name, name, who=who, allowed=[source.name])


# --- VM -----------------------------------------------------------------------------------------------------


class VmAction(StrEnum):
    """What happens to a VM; the value is the verb of the messages."""

    START = "start"
    PAUSE = "pause"
    PARKED = "parked"  # the last vCPU is out of the guest
    RESUME = "resume"
    STOP = "stop"
    FINISH_STOP = "finish_stop"  # the last vCPU has left
    RESET = "reset"
    DESTROY = "destroy"
    FINISH_DESTROY = "finish_destroy"  # memory and devices are gone
    FAIL = "fail"  # the work of a transition failed half-way


VM_TRANSITIONS: Final = {
    (VmStatus.Ready, VmAction.START): VmStatus.Running,
    (VmStatus.Stopped, VmAction.START): VmStatus.Running,  # after the old vCPU tasks were joined and rebuilt
    (VmStatus.Running, VmAction.PAUSE): VmStatus.Pausing,
    (VmStatus.Pausing, VmAction.PARKED): VmStatus.Paused,
    (VmStatus.Paused, VmAction.RESUME): VmStatus.Running,
    (VmStatus.Running, VmAction.STOP): VmStatus.Stopping,
    (VmStatus.Pausing, VmAction.STOP): VmStatus.Stopping,
    (VmStatus.Paused, VmAction.STOP): VmStatus.Stopping,
    (VmStatus.Ready, VmAction.STOP): VmStatus.Stopped,  # nothing runs yet, so nothing has to leave
    (VmStatus.Stopping, VmAction.FINISH_STOP): VmStatus.Stopped,
    (VmStatus.Ready, VmAction.RESET): VmStatus.Ready,
    (VmStatus.Stopped, VmAction.RESET): VmStatus.Ready,
    (VmStatus.Ready, VmAction.DESTROY): VmStatus.Destroying,
    (VmStatus.Pausing, VmAction.DESTROY): VmStatus.Destroying,
    (VmStatus.Paused, VmAction.DESTROY): VmStatus.Destroying,
    (VmStatus.Stopping, VmAction.DESTROY): VmStatus.Destroying,
    (VmStatus.Stopped, VmAction.DESTROY): VmStatus.Destroying,
    (VmStatus.Failed, VmAction.DESTROY): VmStatus.Destroying,
    (VmStatus.Destroying, VmAction.FINISH_DESTROY): VmStatus.Destroyed,
    (VmStatus.Ready, VmAction.FAIL): VmStatus.Failed,
    (VmStatus.Running, VmAction.FAIL): VmStatus.Failed,
    (VmStatus.Pausing, VmAction.FAIL): VmStatus.Failed,
    (VmStatus.Paused, VmAction.FAIL): VmStatus.Failed,
    (VmStatus.Stopping, VmAction.FAIL): VmStatus.Failed,
    (VmStatus.Stopped, VmAction.FAIL): VmStatus.Failed,
    (VmStatus.Destroying, VmAction.FAIL): VmStatus.Failed,  # so that destroy can be tried again
}


def vm_transition(status: VmStatus, action: VmAction | str, who: str = "VM") -> VmStatus:
    """The status after `action`.

    Raises InvalidTransition for a wrong step; `who` opens its message. ValueError for an action there is none
    of. A running VM is not destroyed at once: its owner stops it, waits for the last vCPU, and destroys it
    then.
    """
    action = VmAction(action)
    target = VM_TRANSITIONS.get((status, action))
    if target is not None:
        return target
    allowed = [source.value for source, step in VM_TRANSITIONS if step is action]
    wanted = next(end for (_, step), end in VM_TRANSITIONS.items() if step is action)
    raise InvalidTransition(status.value, wanted.value, action.value, who=who, allowed=allowed)


def accepts_interrupts(status: VmStatus) -> bool:
    """Whether an interrupt may be injected: Running and Paused only."""
    return status is VmStatus.Running or status is VmStatus.Paused
