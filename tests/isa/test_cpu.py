"""The step engine: budgets, faults, exits and everything that happens between two instructions."""

from __future__ import annotations

import pytest

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.exits import (
    Budget,
    ExternalInterrupt,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    TripleFault,
    Unimplemented,
)
from isa.faults import GeneralProtection
from isa.memory import EXECUTE, READ, WRITE
from isa.state import CR0_AM, CR0_PE, CR0_PG, CR4_PAE, MOV_SS_SHADOW, NO_SHADOW, STI_SHADOW
from tests.isa.machine import ALL_FEATURES, CODE, make_cpu
from tests.isa.tables import CODE_SELECTOR, HANDLER, gate64, get, put, set_gate, set_level, table_cpu

INTERRUPT_GATE = 0xE
NMI, DB, UD, GP, PF = 2, 1, 6, 13, 14


def program(text: str, bits: int = 64, **registers: int) -> Cpu:
    """A machine about to run `text` at CODE."""
    return make_cpu(bits, assemble(text, bits=bits, origin=CODE), ALL_FEATURES, **registers)


def with_handlers(text: str, handler: str = "hlt", vectors: tuple[int, ...] = (), **registers: int) -> Cpu:
    """As `program` in 64-bit mode, with gates of the `vectors` leading to `handler`."""
    cpu = table_cpu(64, 0, assemble(text, origin=CODE))
    for name, value in registers.items():
        setattr(cpu, name, value)
    cpu.memory.write(HANDLER, assemble(handler, origin=HANDLER))
    for vector in vectors:
        set_gate(cpu, vector, gate64(INTERRUPT_GATE, CODE_SELECTOR[0], HANDLER))
    cpu.update_mode()
    cpu.request_attention()
    return cpu


def frame(cpu: Cpu) -> tuple[int, int]:
    """RIP and RFLAGS that the last delivery without an error code pushed (64-bit mode)."""
    return get(cpu, cpu.rsp), get(cpu, cpu.rsp + 16)


# ---- counting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 50])
def test_run_retires_exactly_its_budget(budget: int) -> None:
    cpu = program("loop: inc rax\n jmp loop")
    assert cpu.run(budget) == Budget(budget)
    assert (cpu.retired, cpu.rax) == (budget, (budget + 1) // 2)
    assert cpu.run(2 * budget) == Budget(2 * budget)
    assert cpu.rax == budget


def test_a_spent_budget_runs_nothing() -> None:
    cpu = program("inc rax")
    assert cpu.run(0) == Budget(0)
    assert (cpu.rip, cpu.rax) == (CODE, 0)


@pytest.mark.parametrize("budget", [1, 2, 5, 99, 100, 101])
def test_each_iteration_of_rep_counts_and_a_budget_may_end_between_two(budget: int) -> None:
    cpu = program("rep stosb\n nop\n nop", rcx=100, rdi=0x4000, rax=0xAA)
    assert cpu.run(budget) == Budget(budget)
    done = min(budget, 100)
    assert cpu.rcx == 100 - done
    assert cpu.memory.read(0x4000, 101) == b"\xaa" * done + bytes(101 - done)
    assert cpu.rip == CODE + (2 if budget >= 100 else 0) + max(0, budget - 100)


def test_a_fault_loop_uses_up_its_budget() -> None:
    cpu = with_handlers("ud2", "iretq", (UD,))
    assert cpu.run(1000) == Budget(1000)


def test_step_runs_one_instruction_and_returns_the_exit_it_took() -> None:
    cpu = program("inc rax\n in al, 0x60\n inc rax")
    assert cpu.step() is None
    assert cpu.rax == 1
    assert cpu.step() == IoRead(0x60, 1)
    cpu.complete(0x41)
    assert cpu.step() is None
    assert cpu.rax == 0x41


# ---- faults and exits ----------------------------------------------------------------------------------


def test_a_fault_pushes_the_address_of_its_instruction_and_changes_nothing_else() -> None:
    cpu = with_handlers("mov rbx, 7\n mov rax, [rbx + rcx]", "hlt", (GP,), rcx=1 << 62)
    assert isinstance(cpu.run(100), Halt)
    assert get(cpu, cpu.rsp + 8) == CODE + len(assemble("mov rbx, 7"))
    assert (cpu.rax, cpu.rbx, cpu.rcx) == (0, 7, 1 << 62)
    assert cpu.last_ip == CODE + len(assemble("mov rbx, 7"))


@pytest.mark.parametrize(
    ("text", "error_code"),
    [
        ("add [rbx], rax", 2), ("lock bts dword [rbx], 1", 2), ("cmpxchg [rbx], rcx", 2),
        ("not byte [rbx]", 2), ("mov [rbx], rax", 2), ("mov rax, [rbx]", 0), ("cmp [rbx], rax", 0),
        ("push qword [rbx]", 0),
    ],
)  # fmt: skip
def test_a_read_modify_write_of_an_absent_page_is_a_write_in_the_error_code(
    text: str, error_code: int
) -> None:
    cpu = with_handlers(f"xor eax, eax\n {text}", "hlt", (PF,), rbx=0x20_0000)
    tables = 0x60000
    for n in range(2):
        put(cpu, tables + 0x1000 * n, tables + 0x1000 * (n + 1) | 3)
    put(cpu, tables + 0x2000, 0x83)  # the first 2 MiB, in one page
    cpu.cr0 |= CR0_PG
    cpu.cr3, cpu.cr4 = tables, CR4_PAE
    cpu.flush_tlb()
    cpu.update_mode()
    assert cpu.run(100) == Halt()
    assert (get(cpu, cpu.rsp), cpu.cr2) == (error_code, 0x20_0000)
    assert get(cpu, cpu.rsp + 8) == CODE + len(assemble("xor eax, eax"))


def test_a_read_modify_write_through_code_is_refused_before_its_alignment_counts() -> None:
    cpu = table_cpu(32, 3, assemble("not dword cs:[ebx]", bits=32, origin=CODE), rbx=0x6001, ac=1)
    cpu.cr0 |= CR0_AM
    cpu.idtr.limit = 0
    cpu.update_mode()
    reason = cpu.run(100)
    assert isinstance(reason, TripleFault)
    assert reason.chain[0] == "#GP(0x0): write through cs, which is not writable data"


def test_a_triple_fault_names_the_chain_and_stays_down() -> None:
    cpu = program("ud2")
    cpu.idtr.limit = 0
    reason = cpu.run(100)
    assert isinstance(reason, TripleFault)
    assert [text.split(":")[0] for text in reason.chain] == [
        "#UD", "#GP(0x33)", "#GP(0x6b)", "#DF(0x0)", "#GP(0x43)"
    ]  # fmt: skip
    assert cpu.run(100) == Halt()


def test_an_exit_comes_before_the_effect_and_the_answer_finishes_the_instruction() -> None:
    cpu = program("add rax, [rbx]\n hlt", rax=1, rbx=0x20_0000)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    assert cpu.run(100) == MmioRead(0x20_0000, 8)
    assert (cpu.rip, cpu.rax, cpu.retired) == (CODE, 1, 0)
    cpu.complete(41)
    assert cpu.run(100) == Halt()
    assert (cpu.rax, cpu.retired) == (42, 2)


def test_read_modify_write_of_a_device_reads_and_writes_once() -> None:
    cpu = program("inc dword [rbx]", rbx=0x20_0000)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    assert cpu.run(100) == MmioRead(0x20_0000, 4)
    cpu.complete(6)
    assert cpu.run(100) == MmioWrite(0x20_0000, 4, 7)
    cpu.complete()
    assert cpu.step() is None
    assert cpu.rip == CODE + 2


def test_rep_outsb_from_a_device_asks_and_tells_once_per_element() -> None:
    cpu = program("rep outsb\n hlt", rcx=3, rsi=0x20_0000, rdx=0xE9)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    log = []
    while not isinstance(reason := cpu.run(100), Halt):
        log.append(reason)
        cpu.complete(0x30 + len(log) // 2)
    assert log == [
        MmioRead(0x20_0000, 1), IoWrite(0xE9, 1, 0x30), MmioRead(0x20_0001, 1), IoWrite(0xE9, 1, 0x31),
        MmioRead(0x20_0002, 1), IoWrite(0xE9, 1, 0x32),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reg", "width", "signed"),
    [
        ("mov eax, [rbx]", 0, 4, False), ("mov r9, [rbx]", 9, 8, False),
        ("movzx ecx, byte [rbx]", 1, 4, False), ("movsx rdx, word [rbx]", 2, 8, True),
        ("movsxd rsi, dword [rbx]", 6, 8, True),
        ("mov dil, [rbx]", 7, 1, False), ("add eax, [rbx]", None, 0, False),
        ("cmp [rbx], eax", None, 0, False),
    ],
)  # fmt: skip
def test_a_plain_load_tells_which_register_receives_the_value(
    text: str, reg: int | None, width: int, signed: bool
) -> None:
    cpu = program(text, rbx=0x20_0000)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    reason = cpu.run(1)
    assert isinstance(reason, MmioRead)
    assert (reason.reg, reason.reg_width, reason.signed_ext) == (reg, width, signed)


def test_an_answer_may_be_a_fault() -> None:
    cpu = with_handlers("rdmsr", "hlt", (GP,), rcx=0x1234)
    cpu.run(100)
    cpu.fail(GeneralProtection(0, "no such register"))
    assert cpu.run(100) == Halt()
    assert get(cpu, cpu.rsp + 8) == CODE


def test_no_event_comes_between_an_exit_and_the_end_of_its_instruction() -> None:
    cpu = with_handlers("in al, 0x60\n nop", "hlt", (0x30,), if_=1)
    assert cpu.run(100) == IoRead(0x60, 1)
    cpu.injected.append(0x30)
    cpu.complete(0x55)
    assert cpu.run(100) == Halt()
    assert cpu.rax == 0x55
    assert frame(cpu)[0] == CODE + 2


def test_delivery_that_needs_an_exit_goes_on_after_its_answer() -> None:
    cpu = with_handlers("ud2", "hlt", (UD,))
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    cpu.idtr.base = 0x20_0000
    gate = gate64(INTERRUPT_GATE, CODE_SELECTOR[0], HANDLER)
    assert cpu.run(100) == MmioRead(0x20_0060, 8)
    cpu.complete(gate & (1 << 64) - 1)
    assert cpu.run(100) == MmioRead(0x20_0068, 8)
    cpu.complete(gate >> 64)
    assert cpu.run(100) == Halt()
    assert frame(cpu)[0] == CODE


def test_a_nested_page_fault_is_asked_again_until_the_page_is_there() -> None:
    cpu = program("mov [rbx], rax\n hlt", rax=9, rbx=0x20_0000)
    for _ in range(3):
        assert cpu.run(100) == NestedPageFault(0x20_0000, WRITE)
    cpu.memory.add_ram(0x20_0000, 0x1000, name="late")
    assert cpu.run(100) == Halt()
    assert get(cpu, 0x20_0000) == 9


def test_code_in_a_hole_or_in_memory_without_execute_is_a_nested_page_fault() -> None:
    cpu = program("jmp rax", rax=0x20_0000)
    assert cpu.run(100) == NestedPageFault(0x20_0000, EXECUTE)
    assert cpu.rip == 0x20_0000
    cpu.memory.add_ram(0x20_0000, 0x1000, READ | WRITE, name="data")
    assert cpu.run(100) == NestedPageFault(0x20_0000, EXECUTE)


# ---- interrupts ----------------------------------------------------------------------------------------


def test_injected_interrupts_wait_for_if_and_keep_their_order() -> None:
    cpu = with_handlers("nop\n nop\n sti\n nop\n nop\n nop", "iretq", (0x30, 0x31))
    cpu.injected.extend((0x30, 0x31))
    cpu.request_attention()
    cpu.run(2)
    assert list(cpu.injected) == [0x30, 0x31]
    cpu.run(4)  # STI and the instruction in its shadow
    assert list(cpu.injected) == [0x30, 0x31]
    cpu.run(5)
    assert list(cpu.injected) == [0x31]
    assert frame(cpu)[0] == CODE + 4


def test_sti_holds_interrupts_back_for_one_instruction_only_if_they_were_off() -> None:
    for if_, expected in ((0, CODE + 2), (1, CODE)):
        cpu = with_handlers("sti\n nop\n nop", "hlt", (0x30,), if_=if_)
        cpu.injected.append(0x30)
        assert cpu.run(100) == Halt()
        assert frame(cpu)[0] == expected


def test_mov_ss_holds_back_interrupts_and_nmi_for_one_instruction() -> None:
    cpu = with_handlers("mov ss, eax\n nop\n nop", "hlt", (NMI, 0x30), if_=1, rax=0x10)
    cpu.run(1)
    assert cpu.shadow == MOV_SS_SHADOW
    cpu.nmi_pending = True
    cpu.injected.append(0x30)
    cpu.request_attention()
    assert cpu.run(100) == Halt()
    assert frame(cpu)[0] == CODE + 3
    assert list(cpu.injected) == [0x30]  # the NMI came first


def test_a_fault_in_the_shadow_ends_it() -> None:
    cpu = with_handlers("sti\n ud2", "hlt", (UD,))
    cpu.run(2)
    assert (cpu.shadow, cpu.rip) == (NO_SHADOW, HANDLER)


def test_an_exit_in_the_shadow_keeps_it() -> None:
    cpu = with_handlers("sti\n in al, 0x60\n nop", "hlt", (0x30,))
    cpu.injected.append(0x30)
    assert cpu.run(100) == IoRead(0x60, 1)
    assert cpu.shadow == STI_SHADOW
    cpu.complete(1)
    assert cpu.run(100) == Halt()
    assert frame(cpu)[0] == CODE + 3


def test_a_second_nmi_waits_for_iret() -> None:
    cpu = with_handlers("nop\n nop", "inc rbx\n cmp rbx, 3\n jne $ + 3\n hlt\n iretq", (NMI,))
    cpu.nmi_pending = True
    cpu.request_attention()
    cpu.run(2)
    assert cpu.nmi_blocked
    cpu.nmi_pending = True
    cpu.request_attention()
    cpu.run(4)
    assert (cpu.rbx, cpu.nmi_pending) == (1, True)  # still in the first handler
    cpu.run(6)
    assert (cpu.nmi_blocked, cpu.nmi_pending) == (True, False)
    assert cpu.rip == HANDLER


def test_exceptions_from_the_hypervisor_need_no_if() -> None:
    cpu = with_handlers("nop", "hlt", (UD,))
    cpu.injected.append(UD)
    assert cpu.run(100) == Halt()
    assert frame(cpu)[0] == CODE


def test_the_interrupt_line_asks_the_controller_for_a_vector_and_may_be_spurious() -> None:
    cpu = with_handlers("nop\n nop\n hlt", "hlt", (0x40,), if_=1)
    answers: list[int] = []

    def acknowledge() -> int:
        answers.append(1)
        cpu.interrupt_line = False
        return 0x40

    cpu.acknowledge = acknowledge
    cpu.run(1)
    cpu.interrupt_line = True
    cpu.request_attention()
    assert cpu.run(100) == Halt()
    assert (answers, frame(cpu)[0]) == ([1], CODE + 1)


def test_hlt_sleeps_until_something_may_wake_it() -> None:
    cpu = with_handlers("hlt\n inc rax\n hlt", "iretq", (0x30,))
    for _ in range(3):
        assert cpu.run(100) == Halt()
    assert (cpu.rip, cpu.retired) == (CODE + 1, 1)
    cpu.injected.append(0x30)
    assert not cpu.would_wake()  # IF is clear
    cpu.if_ = 1
    assert cpu.would_wake()
    cpu.request_attention()
    assert cpu.run(100) == Halt()
    assert cpu.rax == 1


def test_a_host_interrupt_leaves_the_guest_once() -> None:
    cpu = program("loop: jmp loop")
    cpu.run(5)
    cpu.host_interrupt = 0x21
    cpu.request_attention()
    assert cpu.run(10) == ExternalInterrupt(0x21)
    assert cpu.run(10) == Budget(10)


def test_a_kick_ends_the_run_early_with_the_budget_reason() -> None:
    cpu = program("loop: jmp loop")
    cpu.run(5)
    cpu.kick()
    assert cpu.run(1000) == Budget(5)
    assert cpu.run(10) == Budget(10)


def test_reset_forgets_events_modes_and_translations_but_not_time() -> None:
    cpu = with_handlers("nop\n nop", "hlt")
    cpu.run(1)
    cpu.injected.append(0x30)
    cpu.nmi_pending = True
    cpu.reset()
    assert (cpu.mode_name(), cpu.rip, cpu.cs.base, cpu.retired) == ("real", 0xFFF0, 0xFFFF_0000, 1)
    assert not cpu.injected and not cpu.nmi_pending and cpu.rflags() == 2
    assert cpu.run(100) == NestedPageFault(0xFFFF_FFF0, EXECUTE)


# ---- single step ---------------------------------------------------------------------------------------


def test_tf_traps_behind_each_instruction_with_dr6_bs() -> None:
    cpu = with_handlers("inc rax\n inc rbx", "hlt", (DB,), tf=1)
    assert cpu.run(100) == Halt()
    assert (cpu.rax, cpu.rbx) == (1, 0)
    assert frame(cpu)[0] == CODE + 3
    assert frame(cpu)[1] & 0x100  # the image still has TF
    assert cpu.dr6 & 0x4000 and not cpu.tf


def test_popf_with_tf_lets_one_more_instruction_run() -> None:
    cpu = with_handlers("push 0x102\n popfq\n inc rax\n inc rbx", "hlt", (DB,))
    assert cpu.run(100) == Halt()
    assert (cpu.rax, cpu.rbx) == (1, 0)


def test_tf_traps_between_two_iterations_of_rep() -> None:
    cpu = with_handlers("rep stosb\n nop", "inc rbx\n iretq", (DB,), tf=1, rcx=3, rdi=0x4000)
    cpu.run(2)  # one element, one delivery
    assert (cpu.rcx, cpu.rip) == (2, HANDLER)
    assert frame(cpu)[0] == CODE
    assert frame(cpu)[1] & 1 << 16  # RF: the repetition is in the middle
    cpu.run(4 * 3)
    assert (cpu.rcx, cpu.rbx) == (0, 3)
    assert cpu.rip == CODE + 2


def test_tf_does_not_trap_behind_mov_ss() -> None:
    cpu = with_handlers("mov ss, eax\n inc rbx\n inc rbx", "hlt", (DB,), tf=1, rax=0x10)
    assert cpu.run(100) == Halt()
    assert (cpu.rbx, frame(cpu)[0]) == (1, CODE + 5)


def test_software_interrupts_do_not_trap_on_entry() -> None:
    cpu = with_handlers("int 0x30", "nop\n hlt", (0x30,), tf=1)
    assert cpu.run(100) == Halt()
    assert cpu.rip == HANDLER + 2 and not cpu.dr6 & 0x4000


def test_a_faulting_instruction_is_not_followed_by_its_single_step_trap() -> None:
    cpu = with_handlers("ud2", "hlt", (UD,), tf=1)
    assert cpu.run(100) == Halt()
    assert cpu.rip == HANDLER + 1 and not cpu.dr6 & 0x4000


def test_iret_to_tf_runs_one_instruction_before_the_trap() -> None:
    cpu = with_handlers("inc rax\n inc rax", "or qword [rsp + 16], 0x100\n iretq", (0x30,), if_=1)
    cpu.injected.append(0x30)
    set_gate(cpu, DB, gate64(INTERRUPT_GATE, CODE_SELECTOR[0], HANDLER + 0x40))
    cpu.memory.write(HANDLER + 0x40, b"\xf4")
    assert cpu.run(100) == Halt()
    assert cpu.rax == 1


# ---- breakpoint registers ------------------------------------------------------------------------------


def test_a_code_breakpoint_faults_before_its_instruction_until_rf_is_set() -> None:
    cpu = with_handlers(
        "inc rax\n inc rbx", "or qword [rsp + 16], 0x10000\n iretq", (DB,), dr1=CODE + 3, dr7=0x404
    )
    cpu.run(2)
    assert (cpu.rax, cpu.rbx, cpu.rip) == (1, 0, HANDLER)
    assert frame(cpu)[0] == CODE + 3 and cpu.dr6 & 15 == 2
    cpu.run(5)  # the handler sets RF in the image: the instruction runs now
    assert (cpu.rbx, cpu.rf) == (1, 0)


def test_a_data_breakpoint_traps_behind_the_access() -> None:
    cpu = with_handlers(
        "mov [rbx], al\n inc rcx", "hlt", (DB,), rbx=0x4001, dr0=0x4000, dr7=0x402 | 0x5 << 16
    )
    assert cpu.run(100) == Halt()
    assert frame(cpu)[0] == CODE + 2 and cpu.dr6 & 15 == 1
    assert cpu.rcx == 0


def test_a_data_breakpoint_of_mov_ss_waits_for_the_next_instruction() -> None:
    cpu = with_handlers("mov ss, [rbx]\n inc rcx\n inc rcx", "hlt", (DB,), rbx=0x4800, dr0=0x4800,
                        dr7=0x402 | 0x7 << 16)  # fmt: skip
    put(cpu, 0x4800, 0x10, 2)
    assert cpu.run(100) == Halt()
    assert (cpu.rcx, cpu.dr6 & 15) == (1, 1)


def test_a_data_breakpoint_stops_rep_at_the_element_that_hit_it() -> None:
    cpu = with_handlers("rep stosb", "hlt", (DB,), rcx=100, rdi=0x4800, dr0=0x4810, dr7=0x402 | 0x1 << 16)
    assert cpu.run(1000) == Halt()
    assert cpu.rcx == 100 - 17
    assert frame(cpu)[0] == CODE


def test_a_data_breakpoint_is_seen_in_a_page_that_was_used_before_it_was_set() -> None:
    cpu = with_handlers(
        "mov [rbx], al\n mov dr0, rbx\n mov dr7, rcx\n mov [rbx], al\n hlt",
        "hlt",
        (DB,),
        rbx=0x4800,
        rcx=0x402 | 1 << 16,
    )
    assert cpu.run(100) == Halt()
    assert cpu.dr6 & 15 == 1 and cpu.rip == HANDLER + 1


def test_a_disabled_breakpoint_does_nothing() -> None:
    cpu = with_handlers("inc rax\n hlt", "hlt", (DB,), dr0=CODE, dr7=0x400)
    assert cpu.run(100) == Halt()
    assert cpu.rip == CODE + 4


def test_a_fault_image_has_rf_so_that_the_restart_does_not_break_again() -> None:
    cpu = with_handlers("ud2", "hlt", (UD,))
    assert cpu.run(100) == Halt()
    assert frame(cpu)[1] & 1 << 16


# ---- code that changes ---------------------------------------------------------------------------------


def test_code_that_overwrites_the_next_instruction_runs_the_new_one() -> None:
    text = "mov byte [rel target + 2], 0xC8\n target: inc eax\n hlt"  # inc eax -> dec eax
    cpu = program(text.replace("inc eax", "db 0x48, 0xFF, 0xC0"), rax=5)
    cpu.run(1)
    assert cpu.run(100) == Halt()
    assert cpu.rax == 4


def test_a_loop_that_patches_itself_sees_each_patch() -> None:
    cpu = program("next: mov al, 0\n inc byte [rel next + 1]\n add rbx, rax\n cmp al, 9\n jne next\n hlt")
    assert cpu.run(1000) == Halt()
    assert cpu.rbx == sum(range(10))


def test_a_page_that_was_only_written_before_is_watched_once_it_holds_code() -> None:
    cpu = program("mov word [rbx], 0xC3F8\n call rbx\n mov byte [rbx], 0xF9\n call rbx\n hlt", rbx=0x4000)
    assert cpu.run(4) == Budget(4)  # CLC; RET was written, called and is being replaced by STC
    assert cpu.run(100) == Halt()
    assert cpu.cf == 1


def test_rep_movs_over_code_replaces_it() -> None:
    cpu = program(
        "call 0x2000\n mov esi, 0x3000\n mov edi, 0x2000\n mov ecx, 16\n rep movsb\n call 0x2000\n hlt"
    )
    cpu.memory.write(0x2000, assemble("mov ebx, 1\n ret"))
    cpu.memory.write(0x3000, assemble("mov ebp, 2\n ret"))
    assert cpu.run(1000) == Halt()
    assert (cpu.rbx, cpu.rbp) == (1, 2)


def test_dma_into_code_is_seen_by_the_cpu() -> None:
    cpu = program("loop: inc rax\n jmp loop")
    cpu.run(10)
    cpu.memory.write(CODE, b"\xf4")
    assert cpu.run(100) == Halt()


def paged(text: str, **registers: int) -> Cpu:
    """`program` with 4-level paging: the first 2 MiB onto themselves, page 0x40_0000 + n onto n as well."""
    cpu = program(text, **registers)
    put(cpu, 0x10000, 0x11007)
    put(cpu, 0x11000, 0x12007)
    put(cpu, 0x12000, 0x13007)
    put(cpu, 0x12010, 0x13007)  # 4 MiB
    for n in range(256):
        put(cpu, 0x13000 + 8 * n, n << 12 | 7)
    cpu.cr0 |= CR0_PG | CR0_PE
    cpu.cr4 |= CR4_PAE
    cpu.cr3 = 0x10000
    cpu.flush_tlb()
    cpu.update_mode()
    return cpu


def test_code_written_through_an_alias_is_dropped_at_both_addresses() -> None:
    text = "call 0x2000\n call rbx\n mov byte [rbx + 1], 7\n call 0x2000\n mov ecx, eax\n call rbx\n hlt"
    cpu = paged(text, rbx=0x40_2000)
    cpu.memory.write(0x2000, assemble("mov al, 3\n ret"))
    cpu.run(6)
    assert cpu.rax == 3
    assert cpu.run(100) == Halt()
    assert (cpu.rcx & 0xFF, cpu.rax & 0xFF) == (7, 7)


def test_one_physical_page_at_two_addresses_has_its_own_rip_at_each() -> None:
    cpu = paged("call 0x2000\n mov rcx, rax\n call rbx\n hlt", rbx=0x40_2000)
    cpu.memory.write(0x2000, assemble("lea rax, [rip]\n ret"))
    assert cpu.run(100) == Halt()
    assert (cpu.rcx, cpu.rax) == (0x2007, 0x40_2007)


CROSSING = 0x2FFD  # 48 B8 imm64: three bytes in one page, seven in the next


def test_an_instruction_over_two_pages_runs_and_is_dropped_when_either_page_changes() -> None:
    for patched in (CROSSING + 2, CROSSING + 9):
        cpu = paged("call 0x2ffd\n mov byte [rbx], 0x77\n call 0x2ffd\n hlt", rbx=patched)
        cpu.memory.write(CROSSING, assemble("mov rax, 0x1111111111111111\n ret"))
        cpu.run(3)
        assert cpu.rax == 0x1111_1111_1111_1111
        assert cpu.run(100) == Halt()
        assert cpu.rax == 0x1111_1111_1111_1111 ^ 0x66 << 8 * (patched - CROSSING - 2)


def test_the_second_page_of_an_instruction_may_be_missing_or_mapped_elsewhere_later() -> None:
    cpu = paged("jmp 0x2ffd")
    cpu.memory.write(CROSSING, assemble("mov rax, 0x1111111111111111\n hlt"))
    cpu.memory.write(0x5000, b"\x22" * 7 + b"\xf4")
    put(cpu, 0x13000 + 8 * 3, 0)  # page 0x3000 is gone
    cpu.idtr.limit = 0
    reason = cpu.run(100)
    assert isinstance(reason, TripleFault)
    assert cpu.cr2 == 0x3000
    put(cpu, 0x13000 + 8 * 3, 0x5007)
    cpu.halted, cpu.rip = False, CROSSING
    cpu.flush_tlb()
    cpu.request_attention()
    assert cpu.run(200) == Halt()
    assert cpu.rax == 0x2222_2222_2222_2211
    put(cpu, 0x13000 + 8 * 3, 0x3007)
    cpu.halted, cpu.rip = False, CROSSING
    cpu.flush_tlb()
    cpu.request_attention()
    assert cpu.run(300) == Halt()
    assert cpu.rax == 0x1111_1111_1111_1111


def test_decoded_code_of_removed_memory_is_not_found_in_what_takes_its_place() -> None:
    cpu = make_cpu(64, rip=0x20_0000)
    region = cpu.memory.add_ram(0x20_0000, 0x1000, name="first")
    cpu.memory.write(0x20_0000, assemble("inc rax\n hlt"))
    assert cpu.run(100) == Halt()
    cpu.memory.remove_ram(region)
    cpu.memory.add_ram(0x20_0000, 0x1000, name="second")  # takes the same host memory
    cpu.halted, cpu.rip = False, 0x20_0000
    cpu.request_attention()
    cpu.run(cpu.retired + 1)
    assert cpu.code[0x20_0000].raw == b"\x00\x00"


def test_a_page_without_code_left_takes_the_fast_road_for_stores_again() -> None:
    cpu = program("nop\n mov [rbx], eax\n mov [rbx], eax\n mov [rbx], eax\n hlt", rbx=0x4000)
    cpu.memory.write(0x4000, b"\x90\xf4")
    insn = cpu.code[0x4000]
    assert insn.raw == b"\x90"
    assert cpu.memory.code_pages == {4}
    assert cpu.run(100) == Halt()
    assert cpu.memory.code_pages == {1}
    assert 4 in cpu.tlb_write


# ---- instructions that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("prefix", [0x66, 0x67, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x48, 0xF0])
def test_fourteen_prefixes_are_an_instruction_and_fifteen_a_general_protection_fault(
    bits: int, prefix: int
) -> None:
    if prefix == 0x48 and bits != 64:
        pytest.skip("REX exists in 64-bit mode only")
    cpu = make_cpu(bits, bytes([prefix]) * 14 + b"\x90")
    cpu.idtr.limit = 0
    reason = cpu.step()
    if prefix == 0xF0:  # LOCK NOP
        assert isinstance(reason, TripleFault) and reason.chain[0].startswith("#UD")
    else:
        assert reason is None
        assert cpu.rip == CODE + 15
    cpu = make_cpu(bits, bytes([prefix]) * 15 + b"\x90")
    cpu.idtr.limit = 0
    reason = cpu.step()
    assert isinstance(reason, TripleFault) and reason.chain[0].startswith("#GP"), reason


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("66" * 14 + "0f04", "#GP"),  # undefined, but too long before that is known
        ("66" * 13 + "0f04", "#UD"),
        ("66" * 14 + "06", "#UD"),  # PUSH ES does not exist: 15 bytes are enough to see it
        ("6648" * 8, "#GP"),
        ("2e" * 12 + "c5f858c0", "#GP"),
        ("2e" * 9 + "48b88877665544", "#GP"),
    ],
)  # fmt: skip
def test_length_and_undefined_opcode_are_told_apart_as_a_real_cpu_does(code: str, fault: str) -> None:
    cpu = make_cpu(64, bytes.fromhex(code))
    cpu.idtr.limit = 0
    reason = cpu.step()
    assert isinstance(reason, TripleFault) and reason.chain[0].startswith(fault)


def test_an_instruction_that_runs_over_the_cs_limit_is_gp_and_one_that_ends_there_is_not() -> None:
    for room, fine in ((5, True), (4, False), (1, False)):
        cpu = program("mov eax, 0x12345678", 32)
        cpu.cs.load_raw(0x08, 0, CODE + room - 1, 0x409B)
        cpu.update_mode()
        cpu.idtr.limit = 0
        reason = cpu.step()
        if fine:
            assert reason is None and cpu.rax == 0x1234_5678
        else:
            assert isinstance(reason, TripleFault) and reason.chain[0].startswith("#GP(0x0)")


def test_ip_does_not_wrap_at_64_kib() -> None:
    cpu = make_cpu(16, rip=0xFFFF)
    cpu.memory.write(0xFFFF, b"\x90")
    cpu.idtr.limit = 0
    assert cpu.step() is None
    assert cpu.rip == 0x1_0000
    reason = cpu.step()
    assert isinstance(reason, TripleFault) and reason.chain[0].startswith("#GP")


def test_a_non_canonical_rip_is_a_general_protection_fault_at_that_rip() -> None:
    cpu = with_handlers("jmp rax", "hlt", (GP,), rax=CODE + 2)
    cpu.run(1)
    cpu.rip = 0x8000_0000_0000
    assert cpu.run(100) == Halt()
    assert get(cpu, cpu.rsp + 8) == 0x8000_0000_0000


def test_an_instruction_without_definition_leaves_with_bytes_text_address_and_mode() -> None:
    cpu = make_cpu(64, bytes.fromhex("0f01d4f4"))
    reason = cpu.run(100)
    assert reason == Unimplemented(bytes.fromhex("0f01d4"), "vmfunc", CODE, "64-bit")
    assert str(reason) == "unimplemented instruction at 0x1000 in 64-bit mode: 0f 01 d4  vmfunc"
    assert (cpu.rip, cpu.retired) == (CODE, 0)


@pytest.mark.parametrize(
    ("feature", "code"),
    [
        ("CMOV", "0f44c1"), ("CX8", "0fc70b"), ("MSR", "0f32"), ("TSC", "0f31"), ("SSE", "0f58c1"),
        ("SSE2", "660f58c1"), ("POPCNT", "f30fb8c1"), ("RDRAND", "0fc7f0"), ("MMX", "0f77"),
        ("BMI2", "c4e27bf5c1"), ("MOVBE", "0f38f003"), ("CMPXCHG16B", "480fc70b"),
    ],
)  # fmt: skip
def test_an_instruction_whose_feature_is_taken_away_is_an_invalid_opcode(feature: str, code: str) -> None:
    cpu = make_cpu(64, bytes.fromhex(code), ALL_FEATURES - {feature})
    cpu.idtr.limit = 0
    reason = cpu.step()
    assert isinstance(reason, TripleFault)
    assert reason.chain[0].startswith("#UD") and feature in reason.chain[0]


def test_bmi_encodings_without_bmi_are_the_old_instructions() -> None:
    # F3 0F BC is TZCNT with BMI1 and BSF without; they differ for a source of 0
    code = bytes.fromhex("f30fbcc1")
    with_bmi = make_cpu(64, code, ALL_FEATURES, rcx=0, rax=99)
    without = make_cpu(64, code, ALL_FEATURES - {"BMI1"}, rcx=0, rax=99)
    with_bmi.step()
    without.step()
    assert (with_bmi.rax, without.rax) == (32, 99)


@pytest.mark.parametrize("code", ["f30f1efa", "f30f1efb", "f3480f1ec8", "0f0d08", "0f1f440000", "f390"])
def test_hints_of_newer_cpus_do_nothing_on_a_cpu_without_them(code: str) -> None:
    cpu = make_cpu(
        64, bytes.fromhex(code), frozenset(("INTEL8086", "INTEL386", "X64", "MULTIBYTENOP", "PAUSE"))
    )
    assert cpu.step() is None
    assert (cpu.rip, cpu.rax) == (CODE + len(code) // 2, 0)


def test_a_hypercall_leaves_whatever_cpuid_says_about_vmx() -> None:
    cpu = make_cpu(64, bytes.fromhex("0f01c1"), ALL_FEATURES - {"VMX", "SVM"}, rax=7)
    assert type(cpu.run(1)).__name__ == "Hypercall"


# ---- modes and caches ----------------------------------------------------------------------------------


def test_mode_names_follow_the_manual() -> None:
    assert [make_cpu(bits).mode_name() for bits in (16, 32, 64)] == ["real", "32-bit protected", "64-bit"]
    cpu = make_cpu(64)
    cpu.cs.load_raw(8, 0, 0xFFFF_FFFF, 0xC09B)
    cpu.update_mode()
    assert (cpu.mode_name(), cpu.code_bits) == ("compatibility", 32)
    cpu = make_cpu(32)
    cpu.set_rflags(1 << 17)
    assert cpu.mode_name() == "virtual-8086"


def test_the_same_bytes_are_decoded_anew_for_another_privilege() -> None:
    cpu = table_cpu(64, 0, bytes.fromhex("f4"))
    assert cpu.run(100) == Halt()
    set_level(cpu, 3)
    cpu.halted, cpu.rip = False, CODE
    cpu.idtr.limit = 0
    cpu.request_attention()
    reason = cpu.run(200)
    assert isinstance(reason, TripleFault) and reason.chain[0] == "#GP(0x0): HLT at CPL 3"


def test_real_mode_code_at_many_cs_bases_keeps_a_bounded_number_of_contexts() -> None:
    cpu = make_cpu(16, b"\x90")
    for n in range(1000):
        cpu.cs.load_real(n)
        cpu.update_mode()
        cpu.rip = CODE - 16 * n & 0xFFFF
    assert len(cpu.cache.contexts) <= 256
    assert cpu.cache.contexts[cpu.code.key] is cpu.code
