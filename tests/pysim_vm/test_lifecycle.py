"""Both lifecycles, every state against every action."""

from __future__ import annotations

import itertools

import pytest

from pysim_vm.errors import AxErrorKind, InvalidTransition
from pysim_vm.lifecycle import (
    VCpuAction,
    VCpuState,
    VmAction,
    VmStatus,
    accepts_interrupts,
    check_vcpu_transition,
    vcpu_transition,
    vm_transition,
)

# Written out again, by state names, so that a slip in the table of the module shows.
VCPU_STEPS = {
    ("Created", "setup"): "Free",
    ("Free", "bind"): "Ready",
    ("Ready", "run"): "Running",
    ("Running", "return"): "Ready",
    ("Ready", "unbind"): "Free",
    ("Free", "block"): "Blocked",
    ("Blocked", "wake"): "Free",
    ("Invalid", "invalidate"): "Invalid",
    ("Created", "invalidate"): "Invalid",
    ("Free", "invalidate"): "Invalid",
    ("Ready", "invalidate"): "Invalid",
    ("Running", "invalidate"): "Invalid",
    ("Blocked", "invalidate"): "Invalid",
}

VM_STEPS = {
    ("Ready", "start"): "Running",
    ("Stopped", "start"): "Running",
    ("Running", "pause"): "Pausing",
    ("Pausing", "parked"): "Paused",
    ("Paused", "resume"): "Running",
    ("Ready", "stop"): "Stopped",
    ("Running", "stop"): "Stopping",
    ("Pausing", "stop"): "Stopping",
    ("Paused", "stop"): "Stopping",
    ("Stopping", "finish_stop"): "Stopped",
    ("Ready", "reset"): "Ready",
    ("Stopped", "reset"): "Ready",
    ("Ready", "destroy"): "Destroying",
    ("Pausing", "destroy"): "Destroying",
    ("Paused", "destroy"): "Destroying",
    ("Stopping", "destroy"): "Destroying",
    ("Stopped", "destroy"): "Destroying",
    ("Failed", "destroy"): "Destroying",
    ("Destroying", "finish_destroy"): "Destroyed",
    ("Ready", "fail"): "Failed",
    ("Running", "fail"): "Failed",
    ("Pausing", "fail"): "Failed",
    ("Paused", "fail"): "Failed",
    ("Stopping", "fail"): "Failed",
    ("Stopped", "fail"): "Failed",
    ("Destroying", "fail"): "Failed",
}


def test_vcpu_states_have_axvcpus_numbers() -> None:
    assert {state.name: state.value for state in VCpuState} == {
        "Invalid": 0,
        "Created": 1,
        "Free": 2,
        "Ready": 3,
        "Running": 4,
        "Blocked": 5,
    }


@pytest.mark.parametrize(("state", "action"), list(itertools.product(VCpuState, VCpuAction)))
def test_a_vcpu_takes_exactly_the_steps_of_the_table(state: VCpuState, action: VCpuAction) -> None:
    expected = VCPU_STEPS.get((state.name, action.value))
    if expected is None:
        with pytest.raises(InvalidTransition) as caught:
            vcpu_transition(state, action, "VM[1] vCPU[2]")
        assert caught.value.kind is AxErrorKind.BadState
        assert (caught.value.from_, caught.value.action) == (state.name, action.value)
        assert str(caught.value).startswith(
            f'VM[1] vCPU[2]: "{action.value}" cannot lead from {state.name} to'
        )
    else:
        assert vcpu_transition(state, action) is VCpuState[expected]


@pytest.mark.parametrize(("status", "action"), list(itertools.product(VmStatus, VmAction)))
def test_a_vm_takes_exactly_the_steps_of_the_table(status: VmStatus, action: VmAction) -> None:
    expected = VM_STEPS.get((status.name, action.value))
    if expected is None:
        with pytest.raises(InvalidTransition) as caught:
            vm_transition(status, action, "VM[1]")
        assert caught.value.kind is AxErrorKind.BadState
        assert (caught.value.from_, caught.value.action) == (status.name, action.value)
        assert str(caught.value).startswith(f'VM[1]: "{action.value}" cannot lead from {status.name} to')
    else:
        assert vm_transition(status, action) is VmStatus[expected]


@pytest.mark.parametrize(
    ("state", "source", "target"), list(itertools.product(VCpuState, VCpuState, VCpuState))
)
def test_naming_both_ends_allows_what_the_table_allows(
    state: VCpuState, source: VCpuState, target: VCpuState
) -> None:
    ends = [VCPU_STEPS.get((source.name, action.value)) for action in VCpuAction]
    is_step = target.name in ends
    if state is source and (is_step or source is target):
        check_vcpu_transition(state, source, target)
    else:
        with pytest.raises(InvalidTransition) as caught:
            check_vcpu_transition(state, source, target, "VM[1] vCPU[0]")
        assert caught.value.kind is AxErrorKind.BadState
        assert caught.value.to == target.name


def test_a_wrong_step_says_where_the_action_starts() -> None:
    with pytest.raises(InvalidTransition) as caught:
        vm_transition(VmStatus.Ready, "resume", "VM[4]")
    assert str(caught.value) == 'VM[4]: "resume" cannot lead from Ready to Running; it starts from Paused'


def test_a_wrong_start_state_of_a_named_step_says_the_right_one() -> None:
    with pytest.raises(InvalidTransition) as caught:
        check_vcpu_transition(VCpuState.Ready, VCpuState.Free, VCpuState.Ready)
    assert str(caught.value) == 'vCPU: "bind" cannot lead from Ready to Ready; it starts from Free'


def test_actions_may_be_given_by_name() -> None:
    assert vm_transition(VmStatus.Ready, "start") is VmStatus.Running
    assert vcpu_transition(VCpuState.Free, "bind") is VCpuState.Ready


def test_an_unknown_action_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="fly"):
        vm_transition(VmStatus.Ready, "fly")


def test_a_running_vm_is_stopped_before_it_is_destroyed() -> None:
    with pytest.raises(InvalidTransition):
        vm_transition(VmStatus.Running, VmAction.DESTROY)
    status = vm_transition(VmStatus.Running, VmAction.STOP)
    assert vm_transition(status, VmAction.DESTROY) is VmStatus.Destroying


def test_interrupts_are_accepted_while_running_or_paused_only() -> None:
    assert [status for status in VmStatus if accepts_interrupts(status)] == [
        VmStatus.Running,
        VmStatus.Paused,
    ]
