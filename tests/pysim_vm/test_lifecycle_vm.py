"""The life of a VM: boot, pause, resume, stop, reset, destroy, and what each refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from devices.base import Device
from pysim_vm import AxError, AxErrorKind, Budget, Halt, SystemDown, TripleFault
from pysim_vm.axtypes import StopReason
from pysim_vm.lifecycle import VmStatus
from pysim_vm.vm import AxVM


def test_a_vm_goes_from_ready_through_running_to_stopped() -> None:
    vm = AxVM.from_asm("hlt")
    seen = [vm.vm_status()]
    for step in (vm.boot, vm.pause, vm.resume, vm.shutdown, vm.reset, vm.start):
        step()
        seen.append(vm.status())
    assert seen == [
        VmStatus.Ready, VmStatus.Running, VmStatus.Paused, VmStatus.Running, VmStatus.Stopped, VmStatus.Ready,
        VmStatus.Running,
    ]  # fmt: skip


def test_the_questions_of_axvm_follow_the_status() -> None:
    vm = AxVM.from_asm("hlt")
    answers = [(vm.running(), vm.suspending(), vm.stopping(), vm.stopped(), vm.shutting_down())]
    for step in (vm.boot, vm.pause, vm.resume, vm.shutdown):
        step()
        answers.append((vm.running(), vm.suspending(), vm.stopping(), vm.stopped(), vm.shutting_down()))
    assert answers == [
        (False, False, False, False, False),
        (True, False, False, False, False),
        (False, True, False, False, False),
        (True, False, False, False, False),
        (False, False, False, True, True),
    ]


def test_booting_twice_is_bad_state() -> None:
    vm = AxVM.from_asm("hlt")
    vm.boot()
    with pytest.raises(AxError, match=r"VM\[1\] is already running") as refused:
        vm.boot()
    assert refused.value.kind is AxErrorKind.BadState
    assert vm.running()


@pytest.mark.parametrize("step", [lambda vm: vm.pause(), lambda vm: vm.resume()], ids=["pause", "resume"])
def test_a_wrong_step_is_bad_state_and_changes_nothing(step: Callable[[AxVM], None]) -> None:
    vm = AxVM.from_asm("hlt")
    with pytest.raises(AxError) as refused:
        step(vm)
    assert refused.value.kind is AxErrorKind.BadState
    assert vm.vm_status() is VmStatus.Ready


@pytest.mark.parametrize("name", ["Paused", "Stopped", "Destroyed", "Failed"])
def test_no_vcpu_runs_in_a_status_without_a_running_guest(name: str) -> None:
    vm = AxVM.from_asm("hlt")
    vm.set_vm_status(VmStatus[name])
    with pytest.raises(AxError, match=rf"VM\[1\] is {name}; start or reset it first") as refused:
        vm.run_vcpu(0)
    assert refused.value.kind is AxErrorKind.BadState


def test_stop_remembers_why() -> None:
    vm = AxVM.from_asm("hlt")
    vm.boot()
    vm.stop(StopReason.fault("the disk is gone"))
    assert str(vm.stop_reason) == "Fault: the disk is gone"


def test_reset_puts_cpu_and_devices_back_and_keeps_ram() -> None:
    vm = AxVM.from_asm(
        "mov dword [0x8000], 7\nmov eax, 5\nmov dx, 0x3fb\nmov al, 3\nout dx, al\nhlt", platform="pc"
    )
    vm.run_vcpu(0)
    assert vm.board is not None
    assert vm.board.com1.read(3, 1) == 3
    time = vm.now_ns()
    vm.reset()
    assert (vm.vcpu(0).regs.rax, vm.vcpu(0).regs.rip) == (0, 0x1000)
    assert vm.board.com1.read(3, 1) == 0
    assert vm.read_from_guest(0x8000, 1) == b"\x07"
    assert vm.now_ns() == time
    assert vm.run_vcpu(0) == Halt()


def test_reset_restores_code_that_the_guest_overwrote() -> None:
    vm = AxVM.from_asm("mov byte [rip], 0xf4\nnop\nmov eax, 1\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 0
    vm.reset()
    assert vm.read_from_guest(0x1007, 1) == b"\x90"


def test_reset_revives_a_machine_that_switched_itself_off() -> None:
    vm = AxVM.from_asm("mov dx, 0x604\nmov ax, 0x2000\nout dx, ax\nhlt", platform="pc")
    assert vm.run_vcpu(0) == SystemDown()
    assert vm.run_vcpu(0) == SystemDown()
    vm.reset()
    assert vm.run_vcpu(0) == SystemDown()
    assert vm.vcpu(0).retired == 6


def test_reset_revives_a_cpu_after_a_triple_fault() -> None:
    vm = AxVM.from_asm("lidt [idtr]\nud2\nidtr: dw 0\ndq 0")
    assert isinstance(vm.run_vcpu(0), TripleFault)
    vm.reset()
    assert isinstance(vm.run_vcpu(0), TripleFault)


def test_destroy_gives_memory_back_and_ends_the_vm() -> None:
    vm = AxVM.from_asm("hlt")
    vm.boot()
    vm.destroy()
    assert vm.vm_status() is VmStatus.Destroyed
    assert str(vm.stop_reason) == "Forced"
    assert vm.memory_regions() == ()
    with pytest.raises(AxError):
        vm.read_from_guest(0x1000, 1)
    with pytest.raises(AxError):
        vm.destroy()


@pytest.mark.parametrize(
    ("step", "name"), [(lambda vm: vm.reset(), "reset"), (lambda vm: vm.destroy(), "destroy")]
)
def test_a_vm_is_not_pulled_away_under_a_running_vcpu(step: Callable[[AxVM], None], name: str) -> None:
    vm = AxVM.from_asm("out 0x60, al\nhlt")

    class Saw(Device):
        name = "saw"

        def write(self, offset: int, width: int, value: int) -> None:
            step(vm)

    vm.get_devices().add_port_dev(Saw(), 0x60, 1)
    with pytest.raises(
        AxError, match=rf"{name} while vCPU\[0\] runs; stop it and wait until run_vcpu has returned"
    ):
        vm.run_vcpu(0)
    assert vm.vm_status() is VmStatus.Ready


def test_request_reset_from_a_device_starts_the_guest_over() -> None:
    vm = AxVM.from_asm("inc dword [0x8000]\ncmp dword [0x8000], 2\nje done\nout 0x60, al\ndone: hlt")

    class Button(Device):
        name = "button"

        def write(self, offset: int, width: int, value: int) -> None:
            vm.request_reset()

    vm.get_devices().add_port_dev(Button(), 0x60, 1)
    assert vm.run_vcpu(0) == Halt()
    assert (vm.read_from_guest(0x8000, 1), vm.vcpu(0).retired) == (b"\x02", 4 + 4)


def test_run_boots_and_goes_on_over_exits_that_only_a_second_cpu_would_answer() -> None:
    vm = AxVM.from_asm("spin: jmp spin")
    assert vm.run(budget=10) == Budget(10)
    assert vm.running()


def test_run_takes_a_triple_fault_with_an_empty_idt_for_power_off() -> None:
    vm = AxVM.from_asm("lidt [idtr]\nint3\nidtr: dw 0\ndq 0")
    assert vm.run() == SystemDown()
