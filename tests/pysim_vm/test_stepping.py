"""`AxVM.steps`: the same machine as `AxVM.run`, seen after each instruction."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from isa.exits import Budget, Halt, SystemDown
from isa.state import GPR_NAMES
from pysim_vm import AxVM
from pysim_vm.demo import build_demo
from pysim_vm.errors import AxError
from pysim_vm.stepping import Moment

COUNT = "loop: inc rax\n jmp loop"

# Everything that is not plain, in one guest: exits, REP, faults, POPF, CPUID, a timer interrupt out of HLT
FLAT = """
        lidt [idtr]
        mov al, 0x11
        out 0x20, al
        mov al, 0x30
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0x40
        out 0x40, al
        mov al, 0
        out 0x40, al
        sti
again:  rdrand rax
        cpuid
        mov edi, 0x8000
        mov ecx, 9
        rep stosb
        mov word [0xb8000], 0x0741
        pushfq
        xor dword [rsp], 0x200401
        popfq
        cld
        xor ebx, ebx
        int3
        hlt
        inc r15d
        cmp r15d, 9
        jb again
        cli
        hlt
timer:  push rax
        mov al, 0x20
        out 0x20, al
        pop rax
        iretq
trap:   iretq
idtr:   dw 0xfff
        dq 0x20000
"""


def flat() -> AxVM:
    """A PC that is about to run FLAT, with its IDT."""
    vm = AxVM.from_asm(FLAT, platform="pc", seed=11)
    code = vm.read_from_guest(0x1000, 0x200)
    selector = vm.vcpu(0).regs.cs
    for vector, handler in (
        (0x30, code.index(bytes.fromhex("50b020e620"))),
        (3, code.index(b"\x58\x48\xcf") + 3),
    ):
        gate = (0x1000 + handler) | selector << 16 | 0x8E00 << 32
        vm.write_to_guest(0x20000 + vector * 16, gate.to_bytes(8, "little") + bytes(8))
    return vm


def moment_by_name(vm: AxVM) -> tuple[int, ...]:
    """What `vcpu.regs` says."""
    regs = vm.vcpu(0).regs
    return (vm.vcpu(0).retired, regs.rip, regs.rflags, *(regs[name] for name in GPR_NAMES))


def fields(moment: Moment) -> tuple[int, ...]:
    """The same of a moment."""
    return (moment.retired, moment.rip, moment.rflags, *(getattr(moment, name) for name in GPR_NAMES))


@pytest.mark.parametrize("build", [flat, build_demo])
def test_steps_show_what_a_run_of_one_instruction_leaves(build: Callable[[], AxVM]) -> None:
    stepped, run = build(), build()
    steps = stepped.steps(20_000)
    for moment in steps:
        reason = run.run(1)
        assert fields(moment) == moment_by_name(run)
        assert fields(moment) == moment_by_name(stepped)
    if not isinstance(reason, Budget):
        assert steps.reason == reason
    else:
        assert steps.reason == run.run(1)
    assert isinstance(steps.reason, Halt | SystemDown)
    assert stepped.now_ns() == run.now_ns()
    assert stepped.exit_counts == run.exit_counts
    assert stepped.console.data == run.console.data
    assert stepped.vcpu(0).retired > 300


def test_a_run_between_two_steps_and_the_time_it_skips_count() -> None:
    stepped, run = flat(), flat()
    for number, moment in enumerate(stepped.steps(2_000)):
        run.run(1)
        assert fields(moment) == moment_by_name(run)
        if number % 10 == 9:
            stepped.run(17)
            run.run(17)
    assert stepped.now_ns() == run.now_ns() > run.vcpu(0).retired * run.ns_per_instruction


def test_steps_end_with_their_count_and_go_on_from_there() -> None:
    vm = AxVM.from_asm(COUNT)
    steps = vm.steps(5)
    assert [moment.rax for moment in steps] == [1, 1, 2, 2, 3]
    assert steps.reason == Budget(5)
    assert [moment.rax for moment in steps] == [3, 4, 4, 5, 5]
    assert list(vm.steps(0)) == []


def test_steps_end_where_the_run_would() -> None:
    vm = AxVM.from_asm("inc rax\n cli\n hlt")
    steps = vm.steps()
    assert [moment.rip for moment in steps] == [0x1003, 0x1004, 0x1005]
    assert steps.reason == Halt()


def test_the_configured_budget_ends_the_steps() -> None:
    vm = AxVM.from_asm(COUNT, budget_instructions=7)
    steps = vm.steps()
    assert len(list(steps)) == 7
    assert steps.reason == Budget(7)


def test_a_register_written_between_two_steps_counts() -> None:
    vm = AxVM.from_asm(COUNT)
    seen = []
    for moment in vm.steps(6):
        seen.append((moment.rax, moment.rflags >> 21 & 1))
        vm.vcpu(0).regs.rax = 100 * moment.retired
        vm.vcpu(0).regs.id = 1
    assert seen == [(1, 0), (100, 1), (201, 1), (300, 1), (401, 1), (500, 1)]


def test_a_call_armed_between_two_steps_comes_in_time() -> None:
    vm = AxVM.from_asm(COUNT)
    heard: list[int] = []
    for moment in vm.steps(20):
        if moment.retired == 5:
            vm.clock.call_at(
                vm.now_ns() + 4 * vm.ns_per_instruction, lambda _: heard.append(vm.vcpu(0).retired)
            )
    assert heard == [9]


def test_an_interrupt_injected_between_two_steps_is_delivered() -> None:
    vm = flat()
    for moment in vm.steps(60):
        if moment.retired == 20:
            vm.vcpu(0).inject_interrupt(3)
            before = moment
        elif moment.retired == 21:
            assert vm.read_from_guest(moment.rsp, 8) == before.rip.to_bytes(8, "little")
            break
    else:
        pytest.fail("no step 21")


def test_a_paused_machine_makes_no_step() -> None:
    vm = AxVM.from_asm(COUNT)
    with pytest.raises(AxError, match="is Paused"):
        for _ in vm.steps(10):
            vm.pause()
    assert vm.vcpu(0).retired == 1


def test_a_single_step_of_a_vcpu_is_refused_while_it_runs() -> None:
    vm = AxVM.from_asm("inc rax\n out 0x80, al\n hlt")
    vm.step_vcpu(0)
    vm.on_exit = lambda vcpu, reason: vcpu.step() and None
    with pytest.raises(AxError, match="return from the device or callback first"):
        vm.run(5)


def test_the_last_single_step_of_the_configured_budget_says_so() -> None:
    vm = AxVM.from_asm(COUNT, budget_instructions=3)
    assert [vm.step_vcpu(0) for _ in range(3)] == [None, None, Budget(3)]


def test_plain_steps_do_not_enter_the_exit_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    run = AxVM.run
    monkeypatch.setattr(AxVM, "run", lambda vm, budget=None: entered.append(budget) or run(vm, budget))
    vm = AxVM.from_asm(COUNT)
    assert len(list(vm.steps(100))) == 100
    assert entered == [1, 1]  # the two instructions, to decode them
