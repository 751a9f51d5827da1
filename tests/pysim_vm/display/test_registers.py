"""display/registers.py: registers as a copy, with changes; steps with their instructions."""

from __future__ import annotations

import pytest

from pysim_vm import AxVM
from pysim_vm.display.registers import STEPS_SHOWN
from tests.pysim_vm.html_text import seen


def test_a_picture_of_registers_stays_what_it_was_when_the_guest_runs_on() -> None:
    vm = AxVM.from_asm("mov eax, 5\nmov eax, 6")
    before = vm.show.registers()
    vm.run(1)
    assert before["rax"] == 0
    assert vm.show.registers()["RAX"] == 5
    assert before.changes(vm.show.registers())[0].after == 5
    assert "after 0 instructions" in str(before)


def test_what_changed_is_marked_and_nothing_else() -> None:
    vm = AxVM.from_asm("mov ebx, 0x1234\nxor eax, eax")
    before = vm.show.registers()
    vm.run(2)
    page = seen(vm.show.registers(since=before))
    assert page.marked("changed") == ["0000000000001234", "ZF", "PF"]
    assert "2 instructions later" in page.text
    assert seen(vm.show.registers()).marked("changed") == []


def test_a_flag_that_was_cleared_is_struck_out() -> None:
    vm = AxVM.from_asm("stc\nclc")
    vm.run(1)
    before = vm.show.registers()
    vm.run(1)
    page = seen(vm.show.registers(since=before))
    assert page.marked("gone") == ["CF"]
    assert "CF off*" in str(vm.show.registers(since=before))


def test_flags_that_are_set_stand_out() -> None:
    vm = AxVM.from_asm("stc")
    vm.run(1)
    assert seen(vm.show.registers()).marked("strong") == ["CF"]


def test_control_registers_are_named_bit_by_bit() -> None:
    vm = AxVM.from_asm("mov rax, cr0\nbts rax, 16\nmov cr0, rax")
    before = vm.show.registers()
    vm.run(3)
    page = seen(vm.show.registers(since=before))
    assert "WP" in page.marked("changed")
    assert "0x80010033" in page.marked("changed")
    assert "PE MP ET NE WP* PG" in str(vm.show.registers(since=before))


@pytest.mark.parametrize(
    ("mode", "names", "title"),
    [("real", "EAX", "real mode"), ("protected", "EAX", "protected mode"), ("long", "RAX", "64-bit mode")],
)
def test_names_and_widths_follow_the_mode(mode: str, names: str, title: str) -> None:
    text = str(AxVM.from_asm("nop", mode=mode).show.registers())
    assert title in text.splitlines()[0]
    assert names in text
    assert ("R15" in text) is (mode == "long")


def test_vector_registers_are_shown_once_they_hold_something() -> None:
    vm = AxVM.from_asm("movq xmm3, rax\nmov eax, 7\nmovq xmm4, rax")
    assert "\n  XMM" not in str(vm.show.registers())
    vm.run(3)
    text = str(vm.show.registers())
    assert f"XMM4  {7:032x}" in text
    assert "XMM3" not in text


def test_a_changed_msr_is_told_in_words() -> None:
    vm = AxVM.from_asm("nop")
    before = vm.show.registers()
    vm.vcpu(0).cpu.msr[0x174] = 8
    assert "also changed: MSR 0X174 0 -> 8" in str(vm.show.registers(since=before))


def test_live_registers_have_the_same_page() -> None:
    vm = AxVM.from_asm("nop", regs={"rbx": 0xABCDEF})
    assert vm.vcpu(0).regs._repr_html_() == vm.show.registers()._repr_html_()


def test_a_null_segment_is_dim() -> None:
    vm = AxVM.from_asm("xor eax, eax\nmov ds, ax")
    vm.run(2)
    assert "null" in seen(vm.show.registers()).marked("dim")


# ---- steps -------------------------------------------------------------------------------------------------


def test_steps_show_each_instruction_with_what_it_changed() -> None:
    vm = AxVM.from_asm("mov eax, 1\nadd eax, 9\nmov [0x4000], eax\nhlt")
    shown = str(vm.show.steps([vm.show.registers(), *vm.steps(3)]))
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["0", "0x1000", "mov", "eax,", "0x1", "RAX", "0", "->", "1"],
        ["1", "0x1005", "add", "eax,", "0x9", "RAX", "0x1", "->", "0xa,", "PF", "0", "->", "1"],
        ["2", "0x1008", "mov", "[0x4000],", "eax"],
        ["3", "0x100f", "hlt"],
    ]


def test_the_instruction_that_comes_next_is_marked() -> None:
    vm = AxVM.from_asm("nop\nnop\nhlt")
    html = vm.show.steps([vm.show.registers(), *vm.steps(2)])._repr_html_()
    assert html.count('class="here"') == 1
    assert html.index("hlt") > html.index('class="here"')


def test_endless_steps_are_cut_and_counted() -> None:
    vm = AxVM.from_asm("again: jmp again")
    shown = str(vm.show.steps(vm.steps(STEPS_SHOWN + 50)))
    assert len(shown.splitlines()) == STEPS_SHOWN + 2
    assert shown.splitlines()[-1] == "… 49 more steps"


def test_a_moment_shows_its_registers_and_flags() -> None:
    vm = AxVM.from_asm("mov ebx, 0x77\nstc", regs={})
    moment = list(vm.steps(2))[-1]
    page = seen(moment)
    assert "after 2 instructions" in page.text
    assert page.marked("strong") == ["CF"]
    assert "77" in page.text


def test_no_steps_are_no_picture_and_no_error() -> None:
    vm = AxVM.from_asm("nop")
    assert str(vm.show.steps([])) == ""
    assert seen(vm.show.steps([])).text == ""
