"""Hooks: they hear of everything once, in order, and their presence changes no result on either engine.

PYSIM_HOOK_CASES sets the number of random programs, PYSIM_HOOK_SEED the first one's seed.
"""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import pytest

from isa.cpu import Cpu
from isa.exits import Budget, Halt, Hypercall, Nothing
from isa.semantics import instruction_table
from pysim_vm import AxError, AxVM
from pysim_vm.axtypes import StopReason
from pysim_vm.cpu_watch import watchers_of
from pysim_vm.demo import BUDGET, build_demo
from pysim_vm.hooks import SYSTEM_REGISTERS, Hook
from pysim_vm.trace.rows import InstructionRow
from tests.oracles.exit_programs import VmMachine, exit_program
from tests.oracles.random_programs import CODE, DATA_AT, random_program
from tests.pysim_vm.records import GPA, MSR, PORT, mixed

CASES = int(os.environ.get("PYSIM_HOOK_CASES", "4"))
SEED = int(os.environ.get("PYSIM_HOOK_SEED", "1"))
DATA_PAGE = range(DATA_AT[0], DATA_AT[0] + 0x1000)
GIB = 0x2_0000_0000  # nothing is mapped there

Log = list[str]
Adds = Callable[[AxVM, Log], object]


def note(log: Log, what: str) -> Callable[[Any], None]:
    """A hook's function that notes the row."""
    return lambda row: log.append(f"{what} {row.line()}")


KINDS: dict[str, Adds] = {
    "exit": lambda vm, log: vm.hooks.on_exit(note(log, "exit")),
    "instruction": lambda vm, log: vm.hooks.on_instruction(note(log, "instruction")),
    "addresses": lambda vm, log: vm.hooks.on_instruction(note(log, "at"), range(CODE, CODE + 0x800)),
    "read": lambda vm, log: vm.hooks.on_read(note(log, "read"), DATA_PAGE),
    "write": lambda vm, log: vm.hooks.on_write(note(log, "write"), DATA_PAGE),
    "every read and write": lambda vm, log: (
        vm.hooks.on_read(note(log, "read")), vm.hooks.on_write(note(log, "write"))
    ),
    "register": lambda vm, log: (vm.hooks.on_register("rax", note(log, "rax")),
                                 vm.hooks.on_register("rflags", note(log, "rflags"))),
    "system register": lambda vm, log: (vm.hooks.on_register("cr2", note(log, "cr2")),
                                        vm.hooks.on_register("cs", note(log, "cs"))),
    "exception": lambda vm, log: (vm.hooks.on_exception(note(log, "exception")),
                                  vm.hooks.on_interrupt(note(log, "interrupt"))),
}  # fmt: skip


def everything(vm: AxVM, log: Log) -> None:
    """Hooks of all kinds."""
    for add in KINDS.values():
        add(vm, log)


# ---- they change nothing -----------------------------------------------------------------------------------


def hooked(program: Any, engine: str, add: Adds, exit_path: str = "short") -> tuple[Any, Log]:
    """The trace of a program with hooks on, and what they heard."""
    machine = VmMachine(program, exit_path, engine, calm=0.7)
    log: Log = []
    add(machine.vm, log)
    return machine.run_all(), log


@cache
def unhooked(make: Callable[[int], Any], seed: int) -> Any:
    """The trace of a program without hooks."""
    return VmMachine(make(seed), "short", "step", calm=0.7).run_all()


@pytest.mark.parametrize("kind", [*KINDS, "all of them"])
@pytest.mark.parametrize("make", [exit_program, random_program], ids=["exits", "code"])
def test_hooks_change_no_result_and_hear_the_same_on_both_engines(
    make: Callable[[int], Any], kind: str
) -> None:
    add = KINDS.get(kind, everything)
    heard = 0
    for seed in range(SEED, SEED + CASES):
        program, expected = make(seed), unhooked(make, seed)
        logs = []
        for engine in ("step", "block"):
            trace, log = hooked(program, engine, add)
            assert expected.difference(trace) == "", f"seed {seed}, {engine} engine"
            logs.append(log)
        for n, (one, other) in enumerate(zip(*logs, strict=False)):
            assert one == other, f"seed {seed}, call {n}"
        assert len(logs[0]) == len(logs[1])
        heard += len(logs[0])
    assert heard > 0 or make is random_program


@pytest.mark.parametrize("kind", [*KINDS, "all of them"])
def test_a_record_made_with_hooks_on_has_the_digest_of_one_without(kind: str) -> None:
    digests = set()
    for add in (None, KINDS.get(kind, everything)):
        for engine in ("step", "block"):
            vm = build_demo(engine=engine)
            vm.vcpu(0).cpu.hot = 1
            if add is not None:
                add(vm, [])
            with vm.record(stores=True):
                vm.run(BUDGET)
            digests.add((vm.trace.digest(), vm.vcpu(0).retired, str(vm.vcpu(0).regs)))
    assert len(digests) == 1


def test_hooks_that_are_removed_leave_the_cpu_and_the_exits_as_they_were() -> None:
    vm = mixed(20)
    cpu, drafts, port_in = vm.vcpu(0).cpu, vm.vcpu(0).cpu.drafts, vm.vcpu(0).cpu.port_in
    log: Log = []
    everything(vm, log)
    assert type(cpu) is not Cpu
    vm.hooks.clear()
    assert type(cpu) is Cpu and watchers_of(cpu) == ()
    assert (cpu.drafts, cpu.port_in) == (drafts, port_in)
    assert vm.run() == Halt() and log == []


def test_a_machine_without_hooks_has_the_plain_cpu() -> None:
    vm = mixed(20)
    assert type(vm.vcpu(0).cpu) is Cpu
    vm.hooks.on_exit(lambda row: None)
    assert type(vm.vcpu(0).cpu) is Cpu  # exits need no glass


def test_no_instruction_of_a_block_writes_a_system_register() -> None:
    """What `on_register` relies on when it lets blocks run: these registers change in functions that are no
    part of a block."""
    attributes = {name.removesuffix("_base") for name in SYSTEM_REGISTERS}
    for name, definition in instruction_table().items():
        if not definition.inline:
            continue
        for function in with_helpers(definition.function):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    assert node.attr not in attributes, f"{name}: {function.__name__} writes {node.attr}"
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                    called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                    assert not called.startswith(("load_segment", "load_descriptor", "load_real", "write_cr"))


def with_helpers(function: Callable[..., Any]) -> list[Any]:
    """A definition and the functions of its module that it calls, and those that these call."""
    found: list[Any] = []
    waiting: list[Any] = [inspect.unwrap(function)]
    while waiting:
        at = waiting.pop()
        if at in found or not isinstance(at, FunctionType):
            continue
        found.append(at)
        waiting += [at.__globals__[name] for name in at.__code__.co_names
                    if isinstance(at.__globals__.get(name), FunctionType)]  # fmt: skip
    return found


# ---- what they hear ----------------------------------------------------------------------------------------


def lines(text: str, add: Adds, **options: Any) -> Log:
    """What the hooks of `add` hear of a guest that halts."""
    vm = AxVM.from_asm(text, missing_device="ones", **options)
    log: Log = []
    add(vm, log)
    vm.run(1000)
    return log


def test_an_exit_is_heard_with_its_answer_and_its_device() -> None:
    vm = mixed(1)
    log: Log = []
    vm.hooks.on_exit(lambda row: log.append(row.words()))
    assert vm.run() == Halt()
    assert log == [
        "IN 0x300 -> 0x1: I/O exit, answered by counter",
        "OUT 0x300 <- 0x1: I/O exit, answered by counter",
        "load 0x800000 (4 bytes) -> 0x2: MMIO exit, answered by counter",
        "store 0x800008 (8 bytes) <- 0x2: MMIO exit, answered by counter",
        "RDMSR 0x1234 -> 0x3: MSR exit, answered by counter",
        "WRMSR 0x1234 <- 0x3: MSR exit, answered by counter",
        "HLT: halt exit",
    ]


@pytest.mark.parametrize(
    ("conditions", "reasons"),
    [
        ({"reason": "io_write"}, ["io_write"]),
        ({"reason": ("msr", "halt")}, ["sys_reg_read", "sys_reg_write", "halt"]),
        ({"port": PORT}, ["io_read", "io_write"]),
        ({"port": range(PORT + 1, PORT + 8)}, []),
        ({"gpa": range(GPA + 15, GPA + 16)}, ["mmio_write"]),
        ({"msr": MSR}, ["sys_reg_read", "sys_reg_write"]),
        ({"gpa": PORT}, []),
        ({"device": "counter", "reason": "mmio"}, ["mmio_read", "mmio_write"]),
        ({"device": "uart16550"}, []),
    ],
)
def test_conditions_choose_exits(conditions: dict[str, Any], reasons: list[str]) -> None:
    vm = mixed(1)
    heard: Log = []
    vm.hooks.on_exit(lambda row: heard.append(row.reason), **conditions)
    vm.run()
    assert heard == reasons


def test_an_instruction_is_heard_before_it_and_each_iteration_of_rep_is_one() -> None:
    seen: list[tuple[int, int, str]] = []
    vm = AxVM.from_asm("mov ecx, 3\nmov edi, 0x40000\nrep stosb\nhlt")
    vm.hooks.on_instruction(lambda row: seen.append((row.retired, vm.vcpu(0).regs.ecx, row.text)))
    vm.run()
    assert seen == [
        (0, 0, "mov ecx, 0x3"), (1, 3, "mov edi, 0x40000"), (2, 3, "rep stosb"), (3, 2, "rep stosb"),
        (4, 1, "rep stosb"), (5, 0, "hlt"),
    ]  # fmt: skip


@pytest.mark.default_engine
def test_addresses_are_linear_and_leave_the_rest_to_blocks() -> None:
    vm = AxVM.from_asm("lp: inc eax\nadd ebx, eax\ncmp eax, 3000\nfoot: jb lp\nnop\nhlt")
    foot = 0x1000 + vm.read_from_guest(0x1000, 32).index(b"\x72")
    heard: Log = []
    vm.hooks.on_instruction(lambda row: heard.append(row.where), addresses=foot)
    assert vm.run() == Halt()
    assert heard == [f"{foot:#x}"] * 3000
    assert vm.vcpu(0).cpu.cache.translated > 0
    vm = AxVM.from_asm("mov ax, 5\nhlt", mode="real", base=0x8000)
    vm.vcpu(0).cpu.cs.load_real(0x700)
    vm.vcpu(0).regs.rip = 0x1000
    vm.hooks.on_instruction(lambda row: heard.append(row.words()), addresses=0x8000)
    vm.run()
    assert heard[-1] == "mov ax, 0x5"


def test_memory_hooks_hear_the_bytes_of_their_range_only() -> None:
    log: Log = []
    vm = AxVM.from_asm(
        "mov eax, 0x12345678\nmov [0x40006], eax\nmov [0x40010], al\nmov ebx, [0x40000]\nmov bl, [0x40008]\n"
        "push rax\nhlt",
        regs={"rsp": 0x40018},
    )  # fmt: skip
    vm.hooks.on_write(note(log, "write"), range(0x40008, 0x40010))
    vm.hooks.on_read(note(log, "read"), 0x40008)
    vm.run()
    assert log == [
        "write @1 0x1005: store [0x40006] <- 0x12345678 (4 bytes)",
        "read @4 0x101a: load [0x40008] -> '4' (0x34)",
    ]


def test_writes_from_outside_and_of_the_page_walk_are_heard_as_such() -> None:
    vm = AxVM.from_asm("mov eax, [0x600000]\nhlt", memory="8M")
    heard: list[tuple[str, int]] = []
    vm.hooks.on_write(lambda row: heard.append((row.by, row.address)))
    vm.write_to_guest(0x40000, b"host")
    vm.run()
    assert heard[0] == ("dma", 0x40000)
    assert {by for by, _ in heard[1:]} == {"walk"}


def test_a_register_is_heard_with_both_values_whatever_changes_it() -> None:
    heard: Log = []
    vm = AxVM.from_asm("mov al, 5\nmov rbx, cr3\nmov cr3, rbx\nadd al, 1\nmov rax, [0x200000000]\nhlt")
    vm.hooks.on_register("al", lambda row: heard.append(row.line()))
    vm.hooks.on_register("cr2", lambda row: heard.append(row.words()))
    vm.run()
    vm.vcpu(0).regs.al = 77  # this is nobody's news
    assert heard == ["@0 0x1000: AL 0 -> 5", "@3 0x1008: AL 5 -> 6", "CR2 0x0 -> 0x200000000"]


def test_exceptions_are_heard_with_what_came_of_their_delivery() -> None:
    log = lines("mov rax, [0x200000000]\nhlt", lambda vm, log: vm.hooks.on_exception(note(log, "!")))
    assert log == [
        "! @0 0x1000: #PF(0x0) at 0x200000000: supervisor read, PDPTE at 0xa040 has P=0",
        "! @0 0x1000: while that was delivered: #GP(0x73): vector 0x0e outside the IDT limit 0x7",
        "! @0 0x1000: while that was delivered: #DF(0x0): #GP while delivering #PF",
    ]
    chosen = lines("mov rax, [0x200000000]\nhlt", lambda vm, log: vm.hooks.on_exception(note(log, "!"), 14))
    assert chosen == log[:1]


def test_a_read_before_an_exit_of_the_same_instruction_is_heard_once() -> None:
    text = "mov edx, 0x80\nmov esi, 0x40000\nmov ecx, 2\nrep outsb\nhlt"
    for exit_path in ("short", "full"):
        log = lines(text, lambda vm, log: vm.hooks.on_read(note(log, "read"), 0x40000), exit_path=exit_path)
        assert log == ["read @3 0x100f: load [0x40000] -> 0x0"]


# ---- handles -----------------------------------------------------------------------------------------------


def test_a_hook_is_a_handle_a_context_and_a_decorator() -> None:
    vm = AxVM.from_asm("lp: out 0x80, al\njmp lp", missing_device="ones")
    heard: Log = []

    @vm.hooks.on_exit(reason="io_write")  # type: ignore[untyped-decorator]
    def hook(row: Any) -> None:
        heard.append("decorated")

    with vm.hooks.on_exit(lambda row: heard.append("within")) as other:
        vm.run(2)
    vm.run(2)
    assert isinstance(hook, Hook) and hook.active and not other.active
    assert heard == ["decorated", "within", "decorated"]
    hook("called by hand")
    hook.remove()
    hook.remove()
    vm.run(2)
    assert heard[-1] == "decorated" and len(heard) == 4 and list(vm.hooks) == []


@pytest.mark.parametrize("engine", ["step", "block"])
def test_hooks_may_be_added_and_removed_inside_of_a_hook(engine: str) -> None:
    vm = AxVM.from_asm("lp: mov [0x40000], eax\ninc eax\ncmp eax, 2000\njb lp\nhlt", engine=engine)
    heard: list[int] = []

    def at_start(row: Any) -> None:
        first.remove()

        def stored(row: Any) -> None:
            heard.append(row.value)
            if row.value == 1500:
                second.remove()

        second = vm.hooks.on_write(stored, range(0x40000, 0x40004))

    first = vm.hooks.on_instruction(at_start, addresses=0x1000)
    assert vm.run() == Halt()
    assert heard == list(range(1501))


# ---- stopping ----------------------------------------------------------------------------------------------


class Found(Exception):
    """A hook has seen what it waited for."""


def raising(row: Any) -> None:
    """A hook's function."""
    raise Found(row.line())


def test_an_exception_of_a_hook_stops_the_machine_and_nothing_is_lost_or_done_twice() -> None:
    for engine in ("step", "block"):
        for add in KINDS.values():
            plain, vm = mixed(5, engine=engine), mixed(5, engine=engine)
            plain.run()
            add(vm, [])
            for hook in vm.hooks:
                hook.function = raising
            raised = 0
            for _ in range(1000):
                try:
                    reason = vm.run()
                except Found:
                    raised += 1
                    continue
                break
            assert reason == Halt() or raised == 0
            assert (vm.vcpu(0).retired, str(vm.vcpu(0).regs)) == (
                plain.vcpu(0).retired, str(plain.vcpu(0).regs),
            )  # fmt: skip
            assert vm.exit_counts["IoRead"] == 5 and vm.read_from_guest(0x40000, 8) == plain.read_from_guest(
                0x40000, 8
            )


def test_an_instruction_hook_stops_before_and_the_others_behind_the_instruction() -> None:
    vm = AxVM.from_asm("mov eax, 1\nmov [0x40000], eax\nmov eax, 2\nhlt")
    store = 0x1005
    vm.hooks.on_instruction(raising, addresses=store)
    with pytest.raises(Found):
        vm.run()
    assert (vm.vcpu(0).regs.rip, vm.read_from_guest(0x40000, 1)) == (store, b"\0")
    vm.hooks.on_write(raising, 0x40000)
    with pytest.raises(Found):
        vm.run()
    assert vm.read_from_guest(0x40000, 1) == b"\1" and vm.vcpu(0).regs.eax == 1
    assert vm.run() == Halt()


def test_the_end_of_a_run_that_an_exception_replaced_comes_with_the_next_run() -> None:
    vm = AxVM.from_asm("mov eax, 7\nvmcall\nhlt")
    vm.hooks.on_exit(raising, reason="hypercall")
    with pytest.raises(Found):
        vm.run()
    reason = vm.run()
    assert isinstance(reason, Hypercall) and reason.nr == 7
    vm.vcpu(0).set_return_value(1)
    assert vm.run() == Halt()


@pytest.mark.parametrize("act", ["stop", "pause", "kick"])
def test_a_hook_may_stop_pause_or_kick_the_machine(act: str) -> None:
    vm = AxVM.from_asm("lp: inc eax\njmp lp")
    arguments = (StopReason.clean(),) if act == "stop" else ()

    def hook(row: InstructionRow) -> None:
        if row.retired == 100:
            getattr(vm, act)(*arguments)

    vm.hooks.on_instruction(hook, addresses=0x1000)
    assert vm.run(100_000) == Nothing()
    assert vm.vcpu(0).retired == 100


def test_two_hooks_that_raise_at_once_are_one_exception_with_a_note() -> None:
    vm = AxVM.from_asm("mov [0x40000], eax\nhlt")
    vm.hooks.on_write(raising, 0x40000)
    vm.hooks.on_write(raising, 0x40001)
    with pytest.raises(Found) as caught:
        vm.run()
    assert "another hook raised Found meanwhile" in caught.value.__notes__[0]
    assert vm.run() == Halt()


def test_a_run_inside_of_a_hook_is_refused_in_a_sentence() -> None:
    vm = AxVM.from_asm("nop\nhlt")
    vm.hooks.on_instruction(lambda row: vm.run(1), addresses=0x1000)
    with pytest.raises(AxError, match="run_vcpu while vCPU"):
        vm.run()


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda hooks: hooks.on_exit(print, reason="io_red"), "no reason 'io_red'; there are"),
        (lambda hooks: hooks.on_register("rxx", print), "no register 'rxx'"),
        (lambda hooks: hooks.on_instruction(addresses=4.5)(print), "give a number, a range or several"),
        (lambda hooks: hooks.on_read(7), "cannot be called"),
    ],
)
def test_a_mistake_is_one_sentence(wrong: Callable[[Any], object], says: str) -> None:
    vm = mixed(1)
    with pytest.raises(AxError, match=says):
        wrong(vm.hooks)
    assert list(vm.hooks) == []


def test_a_budget_counts_the_same_with_hooks() -> None:
    vm = AxVM.from_asm("lp: inc eax\njmp lp")
    vm.hooks.on_instruction(lambda row: None)
    assert vm.run(101) == Budget(101)


def test_a_recording_and_hooks_share_the_glass_and_come_off_in_any_order() -> None:
    vm = mixed(4)
    heard: Log = []
    hook = vm.hooks.on_write(note(heard, "write"), 0x40000)
    recorder = vm.record(stores=True)
    vm.run(20)
    hook.remove()
    first = len(heard)
    hook = vm.hooks.on_write(note(heard, "write"), 0x40000)
    vm.run(20)
    recorder.close()
    assert vm.run() == Halt()
    assert len(vm.trace.stores) >= len(heard) - 2 > first > 0
    assert len([line for line in heard if "[0x40000]" in line]) == 4
    hook.remove()
    assert type(vm.vcpu(0).cpu) is Cpu
