"""Every exit reason of axvm's AxVCpuExitReason and of this machine, each reached by a guest program."""

from __future__ import annotations

from dataclasses import fields

import pytest

from devices.base import Device
from isa.state import CR0_PE, CR0_PG
from pysim_vm import (
    Budget,
    CpuDown,
    CpuUp,
    ExitReason,
    ExternalInterrupt,
    FailEntry,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    Nothing,
    SendIPI,
    SysRegRead,
    SysRegWrite,
    SystemDown,
    TripleFault,
    Unimplemented,
)
from pysim_vm.vcpu import VCpu
from pysim_vm.vm import INVALID_GUEST_STATE, AxVM

UART = 0x3F8
WINDOW = 0x1000_0000  # a device page far from RAM
MSR = 0x4B56_4D00
ICR_LOW, ICR_HIGH = 0xFEE0_0300, 0xFEE0_0310  # SDM Vol. 3, "Interrupt Command Register (ICR)"


class Cell(Device):
    """One value that is read and written at any offset."""

    name = "cell"

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def read(self, offset: int, width: int) -> int:
        return self.value

    def write(self, offset: int, width: int, value: int) -> None:
        self.value = value


def exits_of(vm: AxVM) -> list[ExitReason]:
    """Run to the end and list every exit, answered ones included."""
    seen: list[ExitReason] = []

    def note(vcpu: VCpu, reason: ExitReason) -> None:
        seen.append(reason)

    vm.on_exit = note
    vm.run_vcpu(0, budget=10_000)
    return seen


@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_hypercall_carries_the_number_and_six_arguments(instruction: str) -> None:
    vm = AxVM.from_asm(
        "mov rax, 77\nmov rdi, 1\nmov rsi, 2\nmov rdx, 3\nmov rcx, 4\nmov r8, 5\nmov r9, 6\n"
        f"{instruction}\nhlt"
    )
    assert vm.run_vcpu(0) == Hypercall(77, (1, 2, 3, 4, 5, 6))


def test_hypercall_in_32_bit_mode_has_no_r8_and_r9() -> None:
    vm = AxVM.from_asm("mov eax, 7\nmov edi, 0x80000000\nvmcall\nhlt", mode="protected")
    assert vm.run_vcpu(0) == Hypercall(7, (0x8000_0000, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("mov rcx, [rbx]", MmioRead(WINDOW, 8, 1, 8, False)),
        ("mov ecx, [rbx]", MmioRead(WINDOW, 4, 1, 4, False)),
        ("mov cx, [rbx]", MmioRead(WINDOW, 2, 1, 2, False)),
        ("mov cl, [rbx]", MmioRead(WINDOW, 1, 1, 1, False)),
        ("movzx r10d, byte [rbx]", MmioRead(WINDOW, 1, 10, 4, False)),
        ("movsx r10, word [rbx]", MmioRead(WINDOW, 2, 10, 8, True)),
        ("movsxd rdi, dword [rbx]", MmioRead(WINDOW, 4, 7, 8, True)),
        ("add rcx, [rbx]", MmioRead(WINDOW, 8)),
        ("cmp byte [rbx], 1", MmioRead(WINDOW, 1)),
        ("push qword [rbx]", MmioRead(WINDOW, 8)),
    ],
)
def test_mmio_read_names_register_width_and_extension(load: str, expected: MmioRead) -> None:
    vm = AxVM.from_asm(f"mov ebx, {WINDOW:#x}\n{load}\nhlt")
    vm.get_devices().add_mmio_dev(Cell(), WINDOW, 16)
    assert exits_of(vm)[0] == expected


def test_mmio_write_carries_address_width_and_data() -> None:
    vm = AxVM.from_asm(f"mov ebx, {WINDOW:#x}\nmov eax, 0x12345678\nmov [rbx+4], ax\nhlt")
    cell = Cell()
    vm.get_devices().add_mmio_dev(cell, WINDOW, 16)
    assert exits_of(vm) == [MmioWrite(WINDOW + 4, 2, 0x5678), Halt()]
    assert cell.value == 0x5678


def test_sys_reg_read_is_rdmsr_of_a_registered_register() -> None:
    vm = AxVM.from_asm(f"mov ecx, {MSR:#x}\nrdmsr\nhlt")
    vm.get_devices().add_sys_reg_dev(Cell(1), MSR)
    assert exits_of(vm) == [SysRegRead(MSR, 0), Halt()]


def test_sys_reg_write_joins_edx_and_eax() -> None:
    vm = AxVM.from_asm(f"mov ecx, {MSR:#x}\nmov edx, 0x11223344\nmov eax, 0x55667788\nwrmsr\nhlt")
    vm.get_devices().add_sys_reg_dev(Cell(), MSR)
    assert exits_of(vm) == [SysRegWrite(MSR, 0x1122_3344_5566_7788), Halt()]


def test_io_read_names_port_and_width() -> None:
    vm = AxVM.from_asm("mov dx, 0x3f8\nin ax, dx\nin al, 0x60\nhlt")
    vm.get_devices().add_port_dev(Cell(), UART, 2)
    vm.get_devices().add_port_dev(Cell(), 0x60, 1)
    assert exits_of(vm) == [IoRead(UART, 2), IoRead(0x60, 1), Halt()]


def test_io_write_carries_the_low_bytes_only() -> None:
    vm = AxVM.from_asm("mov dx, 0x3f8\nmov eax, 0xaabbccdd\nout dx, al\nout dx, eax\nhlt")
    vm.get_devices().add_port_dev(Cell(), UART, 4)
    assert exits_of(vm) == [IoWrite(UART, 1, 0xDD), IoWrite(UART, 4, 0xAABB_CCDD), Halt()]


def test_external_interrupt_is_the_hosts() -> None:
    vm = AxVM.from_asm("spin: jmp spin")
    vm.host_interrupt(0xEF)
    assert vm.run_vcpu(0, budget=100) == ExternalInterrupt(0xEF)
    assert vm.run_vcpu(0, budget=100) == Budget(100)


@pytest.mark.parametrize(
    ("access", "flags"), [("mov al, [rbx]", 1), ("mov [rbx], al", 2), ("jmp rbx", 4), ("add [rbx], al", 1)]
)
def test_nested_page_fault_names_the_address_and_the_kind_of_access(access: str, flags: int) -> None:
    vm = AxVM.from_asm(f"mov ebx, 0x40000000\n{access}\nhlt")
    assert vm.run_vcpu(0) == NestedPageFault(0x4000_0000, flags)


def test_nested_page_fault_of_a_store_to_read_only_memory() -> None:
    vm = AxVM.from_asm("mov ebx, 0x800000\nmov al, [rbx]\nmov [rbx], al\nhlt")
    vm.alloc_memory_region(0x1000, 0x80_0000, flags=1)
    assert vm.run_vcpu(0) == NestedPageFault(0x80_0000, 2)


def test_nested_page_fault_of_a_page_table_in_a_hole() -> None:
    vm = AxVM.from_asm("mov eax, 0x40000000\nmov cr3, rax\nhlt")
    assert vm.run_vcpu(0) == NestedPageFault(0x4000_0000, 1)


def test_halt_is_hlt_with_nothing_that_could_wake_the_cpu() -> None:
    vm = AxVM.from_asm("sti\nhlt")
    assert vm.run_vcpu(0) == Halt()


def test_cpu_up_is_a_start_up_ipi() -> None:
    # INIT to APIC id 1, then SIPI with vector 0x09: the other CPU would start at 0x9000.
    vm = AxVM.from_asm(
        f"""
        mov ebx, {ICR_HIGH:#x}
        mov ecx, {ICR_LOW:#x}
        mov dword [rbx], 0x01000000
        mov dword [rcx], 0x00004500
        mov dword [rcx], 0x00004609
        hlt
        """,
        platform="pc",
        cpu_features=["+apic"],
    )
    assert vm.run_vcpu(0) == SendIPI(target_cpu=1, vector=0)
    assert vm.run_vcpu(0) == CpuUp(target_cpu=1, entry_point=0x9000)
    assert vm.run_vcpu(0) == Halt()


def test_cpu_down_is_an_acpi_sleep_state() -> None:
    # SLP_EN with SLP_TYP 1: a sleep state other than soft-off.
    vm = AxVM.from_asm("mov dx, 0x604\nmov ax, 0x2400\nout dx, ax\nhlt", platform="pc")
    assert vm.run_vcpu(0) == CpuDown(1)
    assert vm.run_vcpu(0) == Halt()


def test_system_down_is_a_write_to_port_0x604() -> None:
    vm = AxVM.from_asm("mov dx, 0x604\nmov ax, 0x2000\nout dx, ax\nhlt", platform="pc")
    assert vm.run_vcpu(0) == SystemDown()
    assert vm.vcpu(0).retired == 3


def test_nothing_answers_a_kick() -> None:
    vm = AxVM.from_asm("spin: jmp spin")
    vm.kick()
    assert vm.run_vcpu(0, budget=50) == Nothing()
    assert vm.vcpu(0).retired == 0
    assert vm.run_vcpu(0, budget=50) == Budget(50)


@pytest.mark.parametrize(
    ("register", "value", "why"),
    [
        ("cr0", CR0_PG, "CR0.PG = 1 with CR0.PE = 0"),
        ("cr0", CR0_PG | CR0_PE | 1 << 29, "CR0.NW = 1 with CR0.CD = 0"),
        ("cr4", 0, "long mode with CR4.PAE = 0"),
        ("rip", 1 << 47, "RIP 0x800000000000 is not canonical"),
    ],
)
def test_fail_entry_names_the_check_of_the_guest_state(register: str, value: int, why: str) -> None:
    vm = AxVM.from_asm("hlt")
    vm.vcpu(0).regs[register] = value
    assert vm.run_vcpu(0) == FailEntry(INVALID_GUEST_STATE, why)


def test_send_ipi_names_target_and_vector() -> None:
    vm = AxVM.from_asm(
        f"""
        mov ebx, {ICR_HIGH:#x}
        mov ecx, {ICR_LOW:#x}
        mov dword [rbx], 0x03000000
        mov dword [rcx], 0x00000041
        mov dword [rcx], 0x000c0042
        hlt
        """,
        platform="pc",
        cpu_features=["+apic"],
    )
    assert vm.run_vcpu(0) == SendIPI(target_cpu=3, vector=0x41)
    everyone_else = vm.run_vcpu(0)
    assert isinstance(everyone_else, SendIPI)
    assert everyone_else.send_to_all
    assert everyone_else.vector == 0x42


def test_triple_fault_lists_the_chain_of_faults() -> None:
    vm = AxVM.from_asm("lidt [table]\nud2\ntable: dw 0\ndq 0")
    assert vm.run_vcpu(0) == TripleFault(
        (
            "#UD: UD0, UD1 or UD2: undefined on purpose",
            "#GP(0x33): vector 0x06 outside the IDT limit 0x0",
            "#GP(0x6b): vector 0x0d outside the IDT limit 0x0",
            "#DF(0x0): #GP while delivering #GP",
            "#GP(0x43): vector 0x08 outside the IDT limit 0x0",
        )
    )


def test_unimplemented_names_bytes_text_and_place() -> None:
    vm = AxVM.from_code(bytes.fromhex("62f17c4858c1"))  # VADDPS zmm0, zmm0, zmm1
    reason = vm.run_vcpu(0)
    assert isinstance(reason, Unimplemented)
    assert reason.rip == 0x1000
    assert reason.mode == "64-bit"
    assert reason.code == bytes.fromhex("62f17c4858c1")
    assert "vaddps" in reason.text
    assert str(reason) == (
        f"unimplemented instruction at 0x1000 in 64-bit mode: 62 f1 7c 48 58 c1  {reason.text}"
    )


def test_budget_tells_the_count_reached() -> None:
    vm = AxVM.from_asm("spin: jmp spin")
    assert vm.run_vcpu(0, budget=123) == Budget(123)
    assert vm.run_vcpu(0, budget=7) == Budget(130)


def test_the_field_names_are_axvms() -> None:
    assert {kind.__name__: [field.name for field in fields(kind)] for kind in (
        Hypercall, MmioRead, MmioWrite, SysRegRead, SysRegWrite, IoRead, IoWrite, ExternalInterrupt,
        NestedPageFault, Halt, CpuUp, CpuDown, SystemDown, Nothing, SendIPI,
    )} == {
        "Hypercall": ["nr", "args"],
        "MmioRead": ["addr", "width", "reg", "reg_width", "signed_ext"],
        "MmioWrite": ["addr", "width", "data"],
        "SysRegRead": ["addr", "reg"],
        "SysRegWrite": ["addr", "value"],
        "IoRead": ["port", "width"],
        "IoWrite": ["port", "width", "data"],
        "ExternalInterrupt": ["vector"],
        "NestedPageFault": ["addr", "access_flags"],
        "Halt": [],
        "CpuUp": ["target_cpu", "entry_point", "arg"],
        "CpuDown": ["_state"],
        "SystemDown": [],
        "Nothing": [],
        "SendIPI": ["target_cpu", "target_cpu_aux", "send_to_all", "send_to_self", "vector"],
    }  # fmt: skip
    assert fields(FailEntry)[0].name == "hardware_entry_failure_reason"
