"""VCpu: the state machine of axvcpu, answers to exits, start states."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from isa.exits import IoRead, MmioRead, SysRegRead
from pysim_vm import AxError, AxErrorKind, Halt, Hypercall
from pysim_vm.boot_plan import real_start
from pysim_vm.lifecycle import VCpuState
from pysim_vm.vcpu import VCpu, VcpuSnapshot
from pysim_vm.vm import AxVM


def test_a_new_vm_has_one_free_boot_processor() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    assert (vcpu.id(), vcpu.vm_id(), vcpu.is_bsp(), vcpu.state()) == (0, 1, True, VCpuState.Free)
    assert (vcpu.favor_phys_cpu(), vcpu.phys_cpu_set()) == (0, None)


def test_bind_run_unbind_go_through_ready() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    vcpu.bind()
    assert vcpu.state() is VCpuState.Ready
    assert vcpu.run(until=10) == Halt()
    assert vcpu.state() is VCpuState.Ready
    vcpu.unbind()
    assert vcpu.state() is VCpuState.Free


@pytest.mark.parametrize(
    "step", [lambda vcpu: vcpu.run(1), lambda vcpu: vcpu.unbind(), lambda vcpu: vcpu.setup(0)]
)
def test_a_step_from_the_wrong_state_is_bad_state_and_changes_nothing(step: Callable[[VCpu], object]) -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    with pytest.raises(AxError) as refused:
        step(vcpu)
    assert refused.value.kind is AxErrorKind.BadState
    assert (vcpu.state(), vcpu.retired) == (VCpuState.Free, 0)


def test_binding_twice_is_bad_state() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    vcpu.bind()
    with pytest.raises(AxError):
        vcpu.bind()
    assert vcpu.state() is VCpuState.Ready


def test_transition_state_refuses_a_step_that_does_not_exist() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    with pytest.raises(AxError):
        vcpu.transition_state(VCpuState.Free, VCpuState.Running)
    vcpu.transition_state(VCpuState.Free, VCpuState.Blocked)
    vcpu.transition_state(VCpuState.Blocked, VCpuState.Free)


def test_work_that_fails_in_a_transition_leaves_an_invalid_vcpu() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)

    def work() -> None:
        raise RuntimeError("half done")

    with pytest.raises(RuntimeError, match="half done"):
        vcpu.with_state_transition(VCpuState.Free, VCpuState.Ready, work)
    assert vcpu.state() is VCpuState.Invalid


def test_manipulate_arch_vcpu_hands_out_the_silicon_as_the_current_vcpu() -> None:
    vm = AxVM.from_asm("hlt")
    vcpu = vm.vcpu(0)
    seen = vcpu.manipulate_arch_vcpu(
        VCpuState.Free, VCpuState.Ready, lambda cpu: (cpu is vcpu.get_arch_vcpu(), vm.current_vcpu() is vcpu)
    )
    assert seen == (True, True)
    assert (vm.current_vcpu(), vcpu.state()) == (None, VCpuState.Ready)


def test_two_current_vcpus_are_refused() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    with pytest.raises(AxError, match="a vCPU is running already"):
        vcpu.with_current_cpu_set(lambda: vcpu.with_current_cpu_set(lambda: None))


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "rax"),
        (1, "rcx"),
        (2, "rdx"),
        (3, "rbx"),
        (5, "rbp"),
        (6, "rsi"),
        (7, "rdi"),
        (8, "r8"),
        (15, "r15"),
    ],
)
def test_set_gpr_numbers_are_x86_vcpus(number: int, name: str) -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    vcpu.set_gpr(number, 0x1_2345_6789_ABCD_EF00_0001)
    assert vcpu.regs[name] == 0x6789_ABCD_EF00_0001


@pytest.mark.parametrize("number", [-1, 4, 16])
def test_set_gpr_refuses_rsp_and_numbers_without_a_register(number: int) -> None:
    with pytest.raises(AxError, match=f"no register number {number}"):
        AxVM.from_asm("hlt").vcpu(0).set_gpr(number, 0)


def test_set_gpr_of_an_exits_register_answers_it_in_the_instructions_width() -> None:
    vm = AxVM.from_asm("mov rax, -1\nin al, 0x60\nmov ecx, 0x12345\nrdmsr\nmov rbx, [0x20000000]\nhlt")
    vm.memory.unclaimed_is_mmio = True
    vcpu = vm.vcpu(0)
    vcpu.bind()
    assert vcpu.run(100) == IoRead(0x60, 1)
    vcpu.set_gpr(0, 0x1234)
    assert vcpu.run(100) == SysRegRead(0x12345, 0)
    assert vcpu.regs.rax == 0xFFFF_FFFF_FFFF_FF34
    vcpu.set_gpr(0, 0x7_0000_0008)
    assert vcpu.run(100) == MmioRead(0x2000_0000, 8, 3, 8, False)
    assert (vcpu.regs.rdx, vcpu.regs.rax) == (7, 8)
    vcpu.set_gpr(1, 99)  # another register: an ordinary write, the exit still waits
    vcpu.set_gpr(3, 42)
    assert vcpu.run(100) == Halt()
    assert (vcpu.regs.rbx, vcpu.regs.rcx) == (42, 99)


def test_set_return_value_answers_a_hypercall_and_its_last_word_counts() -> None:
    vm = AxVM.from_asm("mov eax, 1\nvmcall\nmov rbx, rax\nhlt")
    assert isinstance(vm.run_vcpu(0), Hypercall)
    vm.vcpu(0).set_return_value(5)
    vm.vcpu(0).set_return_value(-1)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rbx == 0xFFFF_FFFF_FFFF_FFFF


def test_set_return_value_without_a_hypercall_writes_rax_and_answers_nothing() -> None:
    vm = AxVM.from_asm("hlt\nin al, 0x60\nhlt")
    vm.run_vcpu(0)
    vm.vcpu(0).set_return_value(7)
    vm.vcpu(0).cpu.halted = False
    assert vm.vcpu(0).regs.rax == 7
    with pytest.raises(AxError, match="port read 0x60 width 1: no device"):
        vm.run_vcpu(0)


def test_a_hypercall_skipped_by_moving_rip_gets_no_late_answer() -> None:
    vm = AxVM.from_asm("mov eax, 1\nvmcall\nhlt", missing_device="ones")
    assert isinstance(vm.run_vcpu(0), Hypercall)
    vm.vcpu(0).regs.rip += 3
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 1


def test_a_reset_forgets_the_hypercall_that_waited() -> None:
    vm = AxVM.from_asm("vmcall\nhlt")
    assert isinstance(vm.run_vcpu(0), Hypercall)
    vm.reset()
    vm.vcpu(0).regs.rax = 3
    assert vm.run_vcpu(0) == Hypercall(3, (0, 0, 0, 0, 0, 0))


def test_axvms_entry_is_real_mode_with_cs_base_0() -> None:
    vcpu = AxVM.from_code(b"\xf4", mode="real", base=0x8000).vcpu(0)
    vcpu.set_entry(0x8000)
    cpu = vcpu.cpu
    assert (vcpu.regs.rip, cpu.cs.base, cpu.cs.selector, cpu.cs.limit) == (0x8000, 0, 0, 0xFFFF)
    assert (vcpu.regs.rflags, vcpu.regs.cr0 & 1, vcpu.regs.rsp) == (2, 0, 0)
    assert [vcpu.regs[name] for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r15")] == [0] * 7


def test_axvms_entry_may_exceed_16_bits() -> None:
    vm = AxVM.from_asm("hlt", memory="4M")
    vm.write_to_guest(0x20_0000, b"\xb8\x34\x12\xf4")
    vm.vcpu(0).set_entry(0x20_0000)
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.ax, vm.vcpu(0).regs.rip) == (0x1234, 0x20_0004)


def test_a_loaders_real_mode_entry_may_exceed_16_bits() -> None:
    vm = AxVM.from_code(b"\xb8\x34\x12\xf4", mode="real", base=0x2_0000)
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.ax, vm.vcpu(0).regs.rip) == (0x1234, 0x2_0004)


def test_the_reset_vector_is_an_entry_of_its_own() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    vcpu.set_entry(0xFFFF_FFF0)
    assert (vcpu.cpu.cs.selector, vcpu.cpu.cs.base, vcpu.regs.rip) == (0xF000, 0xFFFF_0000, 0xFFF0)


def test_load_start_takes_a_loaders_whole_state() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    vcpu.load_start(real_start(cs=0x1000, ip=0x20, rsp=0x7000, rdx=0x80))
    assert (vcpu.cpu.mode_name(), vcpu.cpu.cs.selector, vcpu.cpu.cs.base) == ("real", 0x1000, 0x10000)
    assert (vcpu.regs.rip, vcpu.regs.rsp, vcpu.regs.rdx) == (0x20, 0x7000, 0x80)


def test_an_injected_interrupt_waits_for_the_interrupt_flag() -> None:
    vm = AxVM.from_asm("lidt [idtr]\nnop\nsti\nnop\nnop\nhlt\nidtr: dw 0xfff\ndq 0x20000")
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x20000 + 0x40 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")
    vm.vcpu(0).inject_interrupt(0x40)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001
    saved_rip = int.from_bytes(vm.read_from_guest(vm.vcpu(0).regs.rsp, 8), "little")
    assert vm.read_from_guest(saved_rip - 2, 2) == b"\xfb\x90"  # after STI and the instruction in its shadow


def test_injected_interrupts_are_delivered_in_order() -> None:
    vm = AxVM.from_asm("lidt [idtr]\nsti\nnop\nhlt\nhlt\nidtr: dw 0xfff\ndq 0x20000")
    selector = vm.vcpu(0).regs.cs
    for vector, handler in ((0x40, 0x7000), (0x41, 0x7010)):
        gate = handler.to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
        vm.write_to_guest(0x20000 + vector * 16, gate)
        vm.write_to_guest(handler, bytes.fromhex("48c1e308 80cb") + bytes([vector]) + b"\x48\xcf")
    vm.vcpu(0).inject_interrupt(0x40)
    vm.vcpu(0).inject_interrupt(0x41)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rbx == 0x4041  # SHL RBX, 8; OR BL, vector; IRETQ


def test_an_nmi_needs_no_interrupt_flag() -> None:
    vm = AxVM.from_asm("lidt [idtr]\nspin: jmp spin\nidtr: dw 0xfff\ndq 0x20000")
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x20000 + 2 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")
    vm.run_vcpu(0, budget=5)
    vm.vcpu(0).inject_nmi()
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001


def test_step_runs_one_instruction_with_its_exits() -> None:
    vm = AxVM.from_asm("mov eax, 7\nin al, 0x60\nhlt", missing_device="ones")
    vcpu = vm.vcpu(0)
    assert vcpu.step() is None
    assert vcpu.step() == IoRead(0x60, 1)
    assert (vcpu.retired, vcpu.regs.al) == (2, 0xFF)
    assert vcpu.step() is None  # HLT itself
    assert vcpu.step() == Halt()


def test_snapshots_show_every_vcpu() -> None:
    vm = AxVM.from_asm("hlt")
    assert vm.vcpu_snapshots() == (VcpuSnapshot(0, VCpuState.Free, None),)
