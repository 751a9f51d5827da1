"""The short way to execute one instruction: what it takes, and that it leaves everything else as it was."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from isa.cpu import Cpu
from isa.semantics.registry import Semantics
from isa.stepping import plain_functions, step_plainly
from tests.isa.machine import ALL_FEATURES, make_cpu, visible_state

HOLE = 0x4000_0000  # an address without RAM


def decoded(code: str, **registers: int) -> Cpu:
    """A CPU that is about to execute `code`, its first instruction decoded and nothing due."""
    cpu = make_cpu(64, bytes.fromhex(code), ALL_FEATURES, **registers)
    assert cpu.code[cpu.rip].raw
    cpu.attention = 0
    return cpu


def test_a_plain_instruction_is_executed_and_counted() -> None:
    cpu = decoded("48 01 d8", rax=2, rbx=40)  # add rax, rbx
    assert step_plainly(cpu, plain_functions())
    assert (cpu.rax, cpu.rip, cpu.retired) == (42, 0x1003, 1)


@pytest.mark.parametrize(
    "code",
    [
        "48 8b 03",  # mov rax, [rbx]: an exit
        "48 01 03",  # add [rbx], rax: an exit at its load
        "48 f7 f1",  # div rcx: #DE
        "0f 0b",  # ud2
        "f3 a4",  # rep movsb
        "0f a2",  # cpuid
        "f4",  # hlt
    ],
)
def test_what_is_not_plain_or_raises_leaves_the_cpu_as_it_was(code: str) -> None:
    cpu = decoded(code, rax=7, rbx=HOLE, rcx=0)
    before = visible_state(cpu)
    assert not step_plainly(cpu, plain_functions())
    assert visible_state(cpu) == before
    assert (cpu.retired, cpu.answers, cpu.attention) == (0, [], 0)


def test_an_instruction_that_is_not_decoded_yet_is_left_to_the_engine() -> None:
    cpu = make_cpu(64, bytes.fromhex("90"))
    cpu.attention = 0
    assert not step_plainly(cpu, plain_functions())
    assert not cpu.code


def test_a_cpu_that_has_something_to_look_at_is_left_to_the_engine() -> None:
    cpu = decoded("90")
    cpu.request_attention()
    assert not step_plainly(cpu, plain_functions())
    assert cpu.rip == 0x1000


def test_a_watched_cpu_is_left_to_the_engine() -> None:
    class Watched(Cpu):
        __slots__ = ()
        steps_plainly = False

    cpu = decoded("90")
    cpu.__class__ = Watched
    assert not step_plainly(cpu, plain_functions())
    assert cpu.rip == 0x1000


def test_a_device_is_not_asked_from_a_step_the_short_way() -> None:
    cpu = decoded("e4 60", rax=0x55)  # in al, 0x60
    asked: list[int] = []

    def port_in(port: int, size: int) -> int:
        if cpu.exit_ip >= 0:
            asked.append(port)
            return 0
        return cpu.leave_port_in(port, size)

    cpu.port_in = port_in
    cpu.exit_ip = cpu.rip
    assert not step_plainly(cpu, plain_functions())
    assert (asked, cpu.rax) == ([], 0x55)


# Flags that `pysim_vm.stepping` reads only where attention was asked for; `Cpu.set_rflags` does
UNCHANGED = {"tf", "iopl", "nt", "rf", "vm", "ac", "vip", "id_"}


@pytest.mark.parametrize("function", sorted(plain_functions(), key=lambda each: each.__name__))
def test_a_plain_instruction_changes_no_other_flag_without_asking_for_attention(function: Semantics) -> None:
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    assert not {node.attr for node in attributes if isinstance(node.ctx, ast.Store)} & UNCHANGED
    assert "set_rflags_raw" not in {node.attr for node in attributes}
