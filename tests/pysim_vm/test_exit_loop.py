"""run_vcpu: axvm's exits in order, device accesses exactly once, time, budgets, leaving and coming back."""

from __future__ import annotations

import pytest

from devices.base import Device, DeviceError
from isa.memory import MemoryMapError
from pysim_vm import (
    AxError,
    AxErrorKind,
    Budget,
    ExitReason,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    Nothing,
    SystemDown,
)
from pysim_vm.axtypes import StopReason
from pysim_vm.lifecycle import VCpuState, VmStatus
from pysim_vm.vcpu import VCpu
from pysim_vm.vm import AxVM

WINDOW = 0x1000_0000


class Tape(Device):
    """Reads count up from 1; every access is noted as (direction, offset, width, value)."""

    name = "tape"

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []
        self.reads = 0

    def read(self, offset: int, width: int) -> int:
        self.reads += 1
        self.seen.append(("read", offset, width, self.reads))
        return self.reads

    def write(self, offset: int, width: int, value: int) -> None:
        self.seen.append(("write", offset, width, value))


def with_tape(text: str, mode: str = "long") -> tuple[AxVM, Tape]:
    """A bare machine with a tape at port 0x300 and in two pages at WINDOW."""
    vm, tape = AxVM.from_asm(text, mode=mode), Tape()
    vm.get_devices().add_port_dev(tape, 0x300, 8)
    vm.get_devices().add_mmio_dev(tape, WINDOW, 0x2000)
    return vm, tape


# ---- each access once --------------------------------------------------------------------------------------


def test_rep_insb_reads_the_port_once_for_each_element() -> None:
    vm, tape = with_tape("mov dx, 0x300\nmov edi, 0x8000\nmov ecx, 5\nrep insb\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [("read", 0, 1, n) for n in (1, 2, 3, 4, 5)]
    assert vm.read_from_guest(0x8000, 6) == bytes([1, 2, 3, 4, 5, 0])
    assert (vm.vcpu(0).regs.rcx, vm.vcpu(0).regs.rdi) == (0, 0x8005)


def test_rep_outsw_writes_the_port_once_for_each_element_backwards_too() -> None:
    vm, tape = with_tape("std\nmov dx, 0x300\nmov esi, 0x8004\nmov ecx, 3\nrep outsw\nhlt")
    vm.write_to_guest(0x8000, bytes([1, 0, 2, 0, 3, 0]))
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [("write", 0, 2, n) for n in (3, 2, 1)]
    assert vm.vcpu(0).regs.rsi == 0x7FFE


def test_rep_movsd_to_a_device_writes_once_for_each_element() -> None:
    vm, tape = with_tape(f"mov esi, 0x8000\nmov edi, {WINDOW:#x}\nmov ecx, 4\nrep movsd\nhlt")
    vm.write_to_guest(0x8000, bytes(range(16)))
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [
        ("write", 0, 4, 0x0302_0100), ("write", 4, 4, 0x0706_0504),
        ("write", 8, 4, 0x0B0A_0908), ("write", 12, 4, 0x0F0E_0D0C),
    ]  # fmt: skip


def test_rep_movsb_between_two_device_pages_reads_and_writes_in_turn() -> None:
    vm, tape = with_tape(f"mov esi, {WINDOW:#x}\nmov edi, {WINDOW + 0x1000:#x}\nmov ecx, 2\nrep movsb\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [
        ("read", 0, 1, 1), ("write", 0x1000, 1, 1), ("read", 1, 1, 2), ("write", 0x1001, 1, 2),
    ]  # fmt: skip


def test_repe_cmpsb_against_a_device_stops_at_the_difference() -> None:
    vm, tape = with_tape(f"mov esi, 0x8000\nmov edi, {WINDOW:#x}\nmov ecx, 9\nrepe cmpsb\nhlt")
    vm.write_to_guest(0x8000, bytes([1, 2, 9, 4]))
    assert vm.run_vcpu(0) == Halt()
    assert tape.reads == 3
    assert (vm.vcpu(0).regs.rcx, vm.vcpu(0).regs.zf) == (6, 0)


@pytest.mark.parametrize(
    ("instruction", "written"),
    [
        ("add [rbx], eax", 1 + 0x100),
        ("xor dword [rbx], 3", 1 ^ 3),
        ("inc dword [rbx]", 2),
        ("not dword [rbx]", 0xFFFF_FFFE),
        ("shl dword [rbx], 4", 16),
        ("lock or [rbx], eax", 0x101),
        ("bts dword [rbx], 8", 0x101),
        ("xchg [rbx], eax", 0x100),
        ("xadd [rbx], eax", 0x101),
    ],
)
def test_read_modify_write_of_a_device_reads_once_and_writes_once(instruction: str, written: int) -> None:
    vm, tape = with_tape(f"mov ebx, {WINDOW:#x}\nmov eax, 0x100\n{instruction}\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [("read", 0, 4, 1), ("write", 0, 4, written)]


def test_xchg_with_a_device_puts_the_old_value_into_the_register() -> None:
    vm, _ = with_tape(f"mov ebx, {WINDOW:#x}\nmov eax, 0x100\nxchg [rbx], eax\nhlt")
    vm.run_vcpu(0)
    assert vm.vcpu(0).regs.rax == 1


def test_failed_cmpxchg_of_a_device_writes_the_old_value_back() -> None:
    vm, tape = with_tape(f"mov ebx, {WINDOW:#x}\nmov eax, 7\nmov ecx, 9\ncmpxchg [rbx], ecx\nhlt")
    vm.run_vcpu(0)
    assert tape.seen == [("read", 0, 4, 1), ("write", 0, 4, 1)]
    assert (vm.vcpu(0).regs.eax, vm.vcpu(0).regs.zf) == (1, 0)


def test_a_stack_in_a_device_page_sees_each_push_call_and_pop_once() -> None:
    vm, tape = with_tape(
        f"""
        mov rsp, {WINDOW + 0x100:#x}
        push rsp
        call next
    next:
        pop rax
        hlt
        """
    )
    assert vm.run_vcpu(0) == Halt()
    top = WINDOW + 0x100
    pushed, called, popped = tape.seen
    assert pushed == ("write", 0xF8, 8, top)
    assert called[:3] == ("write", 0xF0, 8)
    assert popped == ("read", 0xF0, 8, 1)
    assert (vm.vcpu(0).regs.rsp, vm.vcpu(0).regs.rax) == (top - 8, 1)


def test_an_interrupt_frame_in_a_device_page_is_written_once() -> None:
    vm, tape = with_tape(f"lidt [idtr]\nmov rsp, {WINDOW + 0x100:#x}\nint 0x20\nidtr: dw 0xfff\ndq 0x8000")
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x8000 + 0x20 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")
    assert vm.run_vcpu(0) == Halt()
    assert sorted((offset, width) for _, offset, width, _ in tape.seen) == [
        (0xD8, 8), (0xE0, 8), (0xE8, 8), (0xF0, 8), (0xF8, 8),
    ]  # fmt: skip
    assert ("write", 0xF0, 8, WINDOW + 0x100) in tape.seen  # the old RSP


def test_an_access_across_two_device_pages_is_two_bus_accesses() -> None:
    vm, tape = with_tape(
        f"mov rbx, {WINDOW + 0xFFE:#x}\nmov eax, 0x44332211\nmov [rbx], eax\nmov ecx, [rbx]\nhlt"
    )
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [
        ("write", 0xFFE, 2, 0x2211), ("write", 0x1000, 2, 0x4433),
        ("read", 0xFFE, 2, 1), ("read", 0x1000, 2, 2),
    ]  # fmt: skip
    assert vm.vcpu(0).regs.rcx == 0x0002_0001


def test_an_access_from_ram_into_a_device_page_splits() -> None:
    vm, tape = AxVM.from_asm("mov rbx, 0x7ffffe\nadd dword [rbx], 0x00010001\nhlt"), Tape()
    vm.alloc_memory_region(0x1000, 0x7F_F000)
    vm.get_devices().add_mmio_dev(tape, 0x80_0000, 0x1000)
    vm.write_to_guest(0x7F_FFFE, b"\x05\x00")
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [("read", 0, 2, 1), ("write", 0, 2, 2)]
    assert vm.read_from_guest(0x7F_FFFE, 2) == b"\x06\x00"  # added once, although executed three times


def test_an_access_from_a_device_page_into_ram_splits() -> None:
    vm, tape = AxVM.from_asm("mov rbx, 0x7ffffe\nadd dword [rbx], 0x00010001\nhlt"), Tape()
    vm.alloc_memory_region(0x1000, 0x80_0000)
    vm.get_devices().add_mmio_dev(tape, 0x7F_F000, 0x1000)
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [("read", 0xFFE, 2, 1), ("write", 0xFFE, 2, 2)]
    assert vm.read_from_guest(0x80_0000, 2) == b"\x01\x00"


def test_ram_around_a_small_window_stays_ram() -> None:
    vm, tape = AxVM.from_asm("mov rbx, 0x80000e\nadd dword [rbx], 0x01010101\nmov eax, [rbx]\nhlt"), Tape()
    vm.alloc_memory_region(0x1000, 0x80_0000)
    vm.write_to_guest(0x80_000E, b"\x10\x20")
    vm.get_devices().add_mmio_dev(tape, 0x80_0010, 0x10)
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen[:4] == [("read", 0, 1, 1), ("read", 1, 1, 2), ("write", 0, 1, 2), ("write", 1, 1, 3)]
    assert vm.read_from_guest(0x80_000E, 2) == b"\x11\x21"


def test_a_lazy_page_shared_with_a_window_is_given_once_and_then_is_ram() -> None:
    vm, tape = AxVM.from_asm("mov rbx, 0x800000\nmov dword [rbx], 5\nmov eax, [rbx]\nhlt"), Tape()
    vm.alloc_memory_region(0x1000, 0x80_0000, populate=False)
    vm.get_devices().add_mmio_dev(tape, 0x80_0800, 0x10)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 5
    assert vm.exit_counts["NestedPageFault"] == 1


def test_a_16_byte_store_goes_out_as_two_8_byte_accesses() -> None:
    vm, tape = with_tape(
        f"mov rax, cr4\nor rax, 0x600\nmov cr4, rax\nmov ebx, {WINDOW:#x}\nmov eax, 7\nmovd xmm0, eax\n"
        "movups [rbx], xmm0\nhlt"
    )
    assert vm.run_vcpu(0) == Halt()
    assert tape.seen == [("write", 0, 8, 7), ("write", 8, 8, 0)]


# ---- errors leave the vCPU usable --------------------------------------------------------------------------


class Moody(Device):
    """Fails until it is told not to."""

    name = "moody"
    broken = True

    def read(self, offset: int, width: int) -> int:
        if self.broken:
            raise ValueError("no ink")
        return 0x42


def test_a_device_that_raises_is_one_sentence_and_the_access_is_asked_again() -> None:
    vm, moody = AxVM.from_asm("mov dx, 0x300\nin al, dx\nhlt"), Moody()
    vm.get_devices().add_port_dev(moody, 0x300, 8)
    with pytest.raises(AxError) as failure:
        vm.run_vcpu(0)
    assert str(failure.value) == (
        "VM[1] vCPU[0] at RIP 0x1004: port read 0x300 width 1: device moody 0x300-0x307 failed with "
        "ValueError: no ink; the traceback of the cause says where"
    )
    assert vm.vcpu(0).state() is VCpuState.Free
    moody.broken = False
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.al == 0x42


def test_an_access_without_a_device_names_the_nearest_one() -> None:
    vm = AxVM.from_asm("mov dx, 0x2f8\nmov al, 65\nout dx, al\nhlt")
    vm.get_devices().add_port_dev(Tape(), 0x3F8, 8)
    with pytest.raises(AxError) as failure:
        vm.run_vcpu(0)
    assert str(failure.value) == (
        "VM[1] vCPU[0] at RIP 0x1006: port write 0x2f8 width 1: no device (nearest: tape 0x3f8-0x3ff); "
        'add one or set missing_device = "ones"'
    )


def test_a_failing_second_half_does_not_repeat_the_first() -> None:
    vm, tape = AxVM.from_asm(f"mov esi, {WINDOW:#x}\nmov edi, {WINDOW + 0x2000:#x}\nmovsb\nhlt"), Tape()
    vm.get_devices().add_mmio_dev(tape, WINDOW, 0x1000)

    class Full(Device):
        name = "full"
        room = False

        def write(self, offset: int, width: int, value: int) -> None:
            if not self.room:
                raise DeviceError("full: no room; empty it")

    full = Full()
    vm.get_devices().add_mmio_dev(full, WINDOW + 0x2000, 0x1000)
    with pytest.raises(AxError, match="full: no room; empty it"):
        vm.run_vcpu(0)
    full.room = True
    assert vm.run_vcpu(0) == Halt()
    assert tape.reads == 1


def test_moving_rip_gives_up_the_instruction_and_its_answers() -> None:
    vm, tape = AxVM.from_asm(f"mov esi, {WINDOW:#x}\nmov edi, 0x40000000\nmovsb\nmov al, [rsi]\nhlt"), Tape()
    vm.get_devices().add_mmio_dev(tape, WINDOW, 0x1000)
    assert vm.run_vcpu(0) == NestedPageFault(0x4000_0000, 2)
    vm.vcpu(0).regs.rip += 1  # over MOVSB, whose read is answered already
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.al == 2


def test_a_device_that_returns_nonsense_is_one_sentence() -> None:
    class Poet(Device):
        name = "poet"

        def read(self, offset: int, width: int) -> int:
            return "roses"  # type: ignore[return-value]

    vm = AxVM.from_asm("in al, 0x60\nhlt")
    vm.get_devices().add_port_dev(Poet(), 0x60, 1)
    with pytest.raises(AxError, match=r"device poet 0x60-0x60 returned 'roses'; read\(\) must return an int"):
        vm.run_vcpu(0)


def test_a_callback_that_fails_is_one_sentence_and_the_run_goes_on_after_it() -> None:
    vm = AxVM.from_asm("spin: jmp spin")

    def bang(now_ns: int) -> None:
        raise RuntimeError("bang")

    vm.clock.call_at(6400, bang)
    with pytest.raises(AxError, match=r"VM\[1\] at 6400 ns: a timer callback failed with RuntimeError: bang"):
        vm.run_vcpu(0, budget=1000)
    assert vm.vcpu(0).retired == 100
    assert vm.run_vcpu(0, budget=10) == Budget(110)


def test_the_unbound_vcpu_is_free_after_every_kind_of_exit() -> None:
    vm = AxVM.from_asm("vmcall\nhlt")
    vm.run_vcpu(0)
    assert vm.vcpu(0).state() is VCpuState.Free
    vm.run_vcpu(0)
    assert vm.vcpu(0).state() is VCpuState.Free


def test_an_interrupted_interpreter_leaves_an_invalid_vcpu_that_a_reset_repairs() -> None:
    vm = AxVM.from_asm("rdrand rax\nhlt")

    def ctrl_c() -> int:
        raise KeyboardInterrupt

    vm.vcpu(0).cpu.random64 = ctrl_c  # in the middle of an instruction
    with pytest.raises(KeyboardInterrupt):
        vm.run_vcpu(0)
    assert vm.vcpu(0).state() is VCpuState.Invalid
    with pytest.raises(AxError) as refused:
        vm.run_vcpu(0)
    assert refused.value.kind is AxErrorKind.BadState
    vm.vcpu(0).cpu.random64 = lambda: 5
    vm.reset()
    assert vm.run_vcpu(0) == Halt()


def test_run_vcpu_of_an_unknown_vcpu_is_invalid_input() -> None:
    vm = AxVM.from_asm("hlt")
    for number in (-1, 1):
        with pytest.raises(AxError, match=rf"Invalid vcpu_id {number}: VM\[1\] has 1") as refused:
            vm.run_vcpu(number)
        assert refused.value.kind is AxErrorKind.InvalidInput


def test_run_vcpu_from_inside_a_device_is_refused() -> None:
    vm = AxVM.from_asm("out 0x60, al\nhlt")

    class Nested(Device):
        name = "nested"

        def write(self, offset: int, width: int, value: int) -> None:
            vm.run_vcpu(0)

    vm.get_devices().add_port_dev(Nested(), 0x60, 1)
    with pytest.raises(
        AxError, match=r"run_vcpu while vCPU\[0\] runs; return from the device or callback first"
    ):
        vm.run_vcpu(0)


# ---- order and answers -------------------------------------------------------------------------------------


def test_every_exit_is_seen_before_it_is_answered() -> None:
    vm, tape = with_tape("mov dx, 0x300\nin al, dx\nout dx, al\nhlt")
    seen: list[tuple[ExitReason, int, int]] = []

    def note(vcpu: VCpu, reason: ExitReason) -> None:
        seen.append((reason, vcpu.regs.rip, len(tape.seen)))

    vm.on_exit = note
    vm.run_vcpu(0)
    assert seen == [(IoRead(0x300, 1), 0x1004, 0), (IoWrite(0x300, 1, 1), 0x1005, 1), (Halt(), 0x1007, 2)]
    assert vm.exit_counts == {"IoRead": 1, "IoWrite": 1, "Halt": 1}


def test_a_loop_of_the_callers_own_can_answer_as_axvm_does() -> None:
    # The loop that axvm's users know: bind, run, match, set_gpr for reads, complete for writes.
    vm = AxVM.from_asm(f"mov ebx, {WINDOW:#x}\nmovsx rcx, byte [rbx]\nin al, 0x60\nmov [rbx], ecx\nhlt")
    vm.memory.unclaimed_is_mmio = True
    vcpu = vm.vcpu(0)
    written = []
    vcpu.bind()
    while True:
        match vcpu.run(until=100):
            case MmioRead(reg=int(reg)):
                vcpu.set_gpr(reg, 0x80)
            case IoRead():
                vcpu.set_gpr(0, 0x77)
            case MmioWrite(addr=addr, width=width, data=data):
                written.append((addr, width, data))
                vcpu.complete()
            case Halt():
                break
    vcpu.unbind()
    assert vcpu.regs.rcx == 0xFFFF_FFFF_FFFF_FF80
    assert vcpu.regs.al == 0x77
    assert written == [(WINDOW, 4, 0xFFFF_FF80)]


def test_missing_device_ones_reads_all_ones_and_ignores_writes() -> None:
    vm = AxVM.from_asm("mov dx, 0x300\nout dx, al\nin eax, dx\nmov ebx, 0x40000000\nmov ecx, [rbx]\nhlt",
                       missing_device="ones")  # fmt: skip
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.rax, vm.vcpu(0).regs.rcx) == (0xFFFF_FFFF, 0xFFFF_FFFF)


# ---- time and budget ---------------------------------------------------------------------------------------


def test_the_budget_is_exact_whatever_the_instructions_do() -> None:
    vm, _ = with_tape(
        "again: mov dx, 0x300\nin al, dx\nmov ecx, 7\nmov edi, 0x8000\nrep stosb\npush rax\npop rcx\n"
        "jmp again"
    )
    for expected in range(1, 60):
        assert vm.run_vcpu(0, budget=1) == Budget(expected)


def test_a_budget_in_pieces_is_the_budget_in_one() -> None:
    text = "again: mov dx, 0x300\nin al, dx\nmov ecx, 50\nmov edi, 0x8000\nrep stosb\ninc rbx\njmp again"
    whole, _ = with_tape(text)
    pieces, _ = with_tape(text)
    whole.run_vcpu(0, budget=1000)
    for size in (1, 2, 3, 5, 89, 400, 500):
        pieces.run_vcpu(0, budget=size)
    assert pieces.vcpu(0).regs.as_dict() == whole.vcpu(0).regs.as_dict()
    assert pieces.read_from_guest(0x8000, 64) == whole.read_from_guest(0x8000, 64)


def test_a_budget_of_zero_executes_nothing() -> None:
    vm = AxVM.from_asm("mov eax, 1\nhlt")
    assert vm.run_vcpu(0, budget=0) == Budget(0)
    assert vm.vcpu(0).regs.rax == 0


def test_the_configured_budget_counts_over_all_runs() -> None:
    vm = AxVM.from_asm("spin: jmp spin", budget_instructions=100)
    assert vm.run_vcpu(0, budget=60) == Budget(60)
    assert vm.run_vcpu(0, budget=60) == Budget(100)
    assert vm.run_vcpu(0) == Budget(100)


@pytest.mark.parametrize(
    ("ns", "deadline", "retired"), [(64, 640, 10), (64, 641, 11), (1, 37, 37), (1000, 1, 1)]
)
def test_a_deadline_lands_on_the_first_instruction_after_it(ns: int, deadline: int, retired: int) -> None:
    vm = AxVM.from_asm("again: inc rax\njmp again", ns_per_instruction=ns)
    fired: list[tuple[int, int]] = []
    vm.clock.call_at(deadline, lambda now: fired.append((now, vm.vcpu(0).retired)))
    vm.run_vcpu(0, budget=100)
    assert fired == [(retired * ns, retired)]


def test_a_deadline_in_the_middle_of_rep_lands_between_two_elements() -> None:
    vm = AxVM.from_asm("mov edi, 0x8000\nmov ecx, 1000\nrep stosb\nhlt", ns_per_instruction=1)
    seen: list[int] = []
    vm.clock.call_at(502, lambda now: seen.append(vm.vcpu(0).regs.rcx))
    assert vm.run_vcpu(0) == Halt()
    assert seen == [500]
    assert vm.vcpu(0).retired == 2 + 1000 + 1


def test_a_timer_interrupt_arrives_between_the_same_two_instructions_in_every_run() -> None:
    text = """
        lidt [idtr]
        sti
    again:
        inc rax
        jmp again
    handler:
        hlt
    idtr: dw 0xfff
          dq 0x8000
    """
    counts = set()
    for chunk in (1, 7, 1000):
        vm = AxVM.from_asm(text, ns_per_instruction=10)
        handler = 0x1000 + vm.read_from_guest(0x1000, 64).index(b"\xf4")
        selector = vm.vcpu(0).regs.cs
        gate = handler.to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
        vm.write_to_guest(0x8000 + 0x40 * 16, gate)
        vm.clock.call_at(1230, lambda now, vm=vm: vm.vcpu(0).inject_interrupt(0x40))  # type: ignore[misc]
        reason: ExitReason = Budget(0)
        while reason != Halt():
            reason = vm.run_vcpu(0, budget=chunk)
        counts.add((vm.vcpu(0).regs.rax, vm.vcpu(0).retired, vm.now_ns()))
    assert counts == {(61, 125, 1250)}


def test_hlt_skips_virtual_time_to_the_event_that_wakes_the_cpu() -> None:
    vm = AxVM.from_asm("lidt [idtr]\nsti\nhlt\nidtr: dw 0xfff\ndq 0x8000", ns_per_instruction=10)
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x8000 + 0x40 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")  # the handler: HLT with interrupts off
    vm.clock.call_at(2_000_000, lambda now: None)  # an event that wakes nobody
    vm.clock.call_at(5_000_000, lambda now: vm.vcpu(0).inject_interrupt(0x40))
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001
    # LIDT, STI, HLT before the sleep; the delivery and the handler's HLT after it
    assert (vm.vcpu(0).retired, vm.now_ns()) == (5, 5_000_000 + 20)


def test_an_interrupt_that_a_device_raises_comes_between_two_elements_of_rep() -> None:
    vm = AxVM.from_asm(
        "lidt [idtr]\nsti\nmov esi, 0x8000\nmov ecx, 5\nmov dx, 0x300\nrep outsb\nidtr: dw 0xfff\ndq 0x20000"
    )
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x20000 + 0x40 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")
    written: list[int] = []

    class Bell(Device):
        name = "bell"

        def write(self, offset: int, width: int, value: int) -> None:
            written.append(value)
            if len(written) == 2:
                vm.vcpu(0).inject_interrupt(0x40)

    vm.get_devices().add_port_dev(Bell(), 0x300, 1)
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.rip, vm.vcpu(0).regs.rcx, len(written)) == (0x7001, 3, 2)
    frame = vm.vcpu(0).regs.rsp
    saved_rip, saved_rflags = (int.from_bytes(vm.read_from_guest(frame + n, 8), "little") for n in (0, 16))
    assert vm.read_from_guest(saved_rip, 2) == b"\xf3\x6e"  # REP OUTSB goes on after IRET
    assert saved_rflags >> 16 & 1 == 1  # RF (SDM Vol. 3, "Masking Instruction Breakpoints")


def test_a_kick_in_hlt_returns_to_the_caller() -> None:
    vm = AxVM.from_asm("sti\nhlt", ns_per_instruction=10)
    vm.clock.call_at(5_000_000, lambda now: vm.kick())
    assert vm.run_vcpu(0) == Nothing()
    assert (vm.vcpu(0).retired, vm.now_ns()) == (2, 5_000_000)


def test_hlt_with_interrupts_off_does_not_skip_time() -> None:
    vm = AxVM.from_asm("cli\nhlt")
    vm.clock.call_at(5_000_000, lambda now: None)
    assert vm.run_vcpu(0) == Halt()
    assert vm.now_ns() == 2 * 64


def test_a_halted_cpu_sleeps_on_when_run_again() -> None:
    vm = AxVM.from_asm("hlt\nmov eax, 1\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 0


def test_the_time_stamp_counter_is_virtual_time() -> None:
    vm = AxVM.from_asm("rdtsc\nmov ebx, eax\nrdtsc\nhlt", ns_per_instruction=100, tsc_hz=2_000_000_000)
    vm.run_vcpu(0)
    assert (vm.vcpu(0).regs.rbx, vm.vcpu(0).regs.rax) == (0, 400)


# ---- leaving from inside and outside -----------------------------------------------------------------------


def test_stop_from_a_device_leaves_the_guest_after_the_instruction() -> None:
    vm = AxVM.from_asm("out 0x60, al\nmov eax, 1\nhlt")

    class Switch(Device):
        name = "switch"

        def write(self, offset: int, width: int, value: int) -> None:
            vm.stop(StopReason.clean())
            assert vm.vm_status() is VmStatus.Stopping

    vm.get_devices().add_port_dev(Switch(), 0x60, 1)
    vm.boot()
    assert vm.run_vcpu(0) == Nothing()
    assert vm.vm_status() is VmStatus.Stopped
    assert (vm.vcpu(0).retired, vm.vcpu(0).regs.rax) == (1, 0)


def test_pause_from_a_callback_parks_the_vm_and_resume_goes_on() -> None:
    vm = AxVM.from_asm("spin: jmp spin")
    vm.boot()
    vm.clock.call_at(64 * 50, lambda now: vm.pause())
    assert vm.run_vcpu(0, budget=1000) == Nothing()
    assert (vm.vm_status(), vm.vcpu(0).retired) == (VmStatus.Paused, 50)
    with pytest.raises(AxError, match=r"VM\[1\] is Paused; start or reset it first"):
        vm.run_vcpu(0)
    vm.resume()
    assert vm.run_vcpu(0, budget=10) == Budget(60)


def test_a_kick_from_another_thread_ends_a_run() -> None:
    from threading import Timer

    vm = AxVM.from_asm("spin: jmp spin")
    timer = Timer(0.05, vm.kick)
    timer.start()
    assert vm.run_vcpu(0) == Nothing()
    timer.join()


def test_power_off_waits_for_the_end_of_the_instruction() -> None:
    vm = AxVM.from_asm(f"mov esi, 0x8000\nmov edi, {WINDOW + 0xFFE:#x}\nmovsd\nhlt")
    offsets: list[int] = []

    class Switch(Device):
        name = "switch"

        def write(self, offset: int, width: int, value: int) -> None:
            offsets.append(offset)
            vm.power_off()

    vm.get_devices().add_mmio_dev(Switch(), WINDOW, 0x2000)
    assert vm.run_vcpu(0) == SystemDown()
    assert offsets == [0xFFE, 0x1000]  # both halves of the split store
    assert vm.vcpu(0).retired == 3
    assert vm.run_vcpu(0) == SystemDown()


def test_a_guest_reset_starts_over_and_keeps_ram_and_time() -> None:
    vm = AxVM.from_asm(
        "inc dword [0x8000]\ncmp dword [0x8000], 3\nje done\nmov al, 0xfe\nout 0x64, al\nspin: jmp spin\n"
        "done: hlt",
        platform="pc",
    )
    assert vm.run_vcpu(0, budget=1000) == Halt()
    assert vm.read_from_guest(0x8000, 4) == b"\x03\0\0\0"
    assert vm.vcpu(0).retired == 5 + 5 + 4


def test_the_vm_reads_nothing_where_memory_ends() -> None:
    vm = AxVM.from_asm("hlt", memory="1M")
    with pytest.raises(AxError, match="guest memory read 0xfffff\\+0x2: no RAM there"):
        vm.read_from_guest(0xF_FFFF, 2)
    with pytest.raises(MemoryMapError):
        vm.memory.read(0xF_FFFF, 2)
