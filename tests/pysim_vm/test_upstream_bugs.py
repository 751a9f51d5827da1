"""Places where axvm does not do what the hardware does, one test each: here the hardware's way is taken.

Passthrough (base_hpa), IVC hypercalls and several vCPUs are tested with those features.
"""

from __future__ import annotations

import ctypes

import pytest

from devices.base import Device
from devices.bus import BusError
from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from isa.cpuid import CpuId, feature_set
from isa.faults import GeneralProtection, InvalidOpcode
from isa.state import CR4_OSXSAVE, EFER_LMA, M64
from pysim_vm import (
    AxError,
    AxErrorKind,
    AxVMConfig,
    Budget,
    DefaultHal,
    Halt,
    Hypercall,
    NestedPageFault,
    SysRegRead,
    SystemDown,
)
from pysim_vm.axtypes import VmMemMappingType
from pysim_vm.config import PassThroughDeviceConfig, VmMemConfig
from pysim_vm.lifecycle import VCpuState, VmStatus
from pysim_vm.vm import AxVM
from tests.isa.machine import fault_of, make_cpu, run_one

PORT, WINDOW, MSR = 0x300, 0x1000_0000, 0x4B56_4D00
APIC = 0xFEE0_0000


class Constant(Device):
    """Reads one value at every offset and counts accesses."""

    name = "constant"

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.reads = 0
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        self.reads += 1
        return self.value

    def write(self, offset: int, width: int, value: int) -> None:
        self.written.append((offset, width, value))


# ---- the exit loop (axvm: vm.rs, run_vcpu) -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("in al, dx", 0x1122_3344_5566_77EF),
        ("in ax, dx", 0x1122_3344_5566_BEEF),
        ("in eax, dx", 0xDEAD_BEEF),
    ],
)
def test_narrow_in_keeps_the_upper_bits_of_rax(instruction: str, expected: int) -> None:
    vm = AxVM.from_asm(f"mov rax, 0x1122334455667788\nmov dx, {PORT}\n{instruction}\nhlt")
    vm.get_devices().add_port_dev(Constant(0xDEAD_BEEF), PORT, 4)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == expected


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("mov cl, [rbx]", 0xAAAA_AAAA_AAAA_AA88),
        ("mov ch, [rbx]", 0xAAAA_AAAA_AAAA_88AA),
        ("mov cx, [rbx]", 0xAAAA_AAAA_AAAA_9988),
        ("mov ecx, [rbx]", 0xBBAA_9988),
        ("movzx cx, byte [rbx]", 0xAAAA_AAAA_AAAA_0088),
        ("movsx cx, byte [rbx]", 0xAAAA_AAAA_AAAA_FF88),
        ("movsx ecx, byte [rbx]", 0xFFFF_FF88),
        ("movsx rcx, word [rbx]", 0xFFFF_FFFF_FFFF_9988),
        ("movsxd rcx, dword [rbx]", 0xFFFF_FFFF_BBAA_9988),
    ],
)
def test_mmio_read_honours_register_width_and_sign(instruction: str, expected: int) -> None:
    vm = AxVM.from_asm(f"mov rcx, 0xaaaaaaaaaaaaaaaa\nmov ebx, {WINDOW:#x}\n{instruction}\nhlt")
    vm.get_devices().add_mmio_dev(Constant(0xBBAA_9988), WINDOW, 8)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rcx == expected


def test_rdmsr_sets_edx_and_steps_rip() -> None:
    vm = AxVM.from_asm(f"mov rdx, -1\nmov rax, -1\nmov ecx, {MSR}\nrdmsr\nmov ebx, 5\nhlt")
    device = Constant(0x0123_4567_89AB_CDEF)
    vm.get_devices().add_sys_reg_dev(device, MSR)
    assert vm.run_vcpu(0) == Halt()
    regs = vm.vcpu(0).regs
    assert (regs.rdx, regs.rax, regs.rbx, device.reads) == (0x0123_4567, 0x89AB_CDEF, 5, 1)


def test_wrmsr_steps_rip_and_reaches_the_device_once() -> None:
    vm = AxVM.from_asm(f"mov edx, 1\nmov eax, 2\nmov ecx, {MSR}\nwrmsr\nhlt")
    device = Constant()
    vm.get_devices().add_sys_reg_dev(device, MSR)
    assert vm.run_vcpu(0) == Halt()
    assert device.written == [(0, 8, 0x1_0000_0002)]


def test_every_register_of_a_sys_reg_range_is_found() -> None:
    # rcore-os/tgoskits #1335: a range was found at its first address only.
    vm = AxVM.from_asm(f"mov ecx, {MSR + 3}\nrdmsr\nhlt")
    vm.get_devices().add_sys_reg_dev(Constant(9), MSR, 4)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 9


def test_missing_device_is_an_error_and_the_vcpu_stays_usable() -> None:
    vm = AxVM.from_asm(f"mov dx, {PORT}\nin al, dx\nhlt")
    for _ in range(2):  # axvm panics the first time and finds the vCPU bound the second time
        with pytest.raises(AxError) as failure:
            vm.run_vcpu(0)
        assert str(failure.value) == (
            "VM[1] vCPU[0] at RIP 0x1004: port read 0x300 width 1: no device (the bus is empty); "
            'add one or set missing_device = "ones"'
        )
        assert vm.vcpu(0).state() is VCpuState.Free
    vm.get_devices().add_port_dev(Constant(0x21), PORT, 1)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.al == 0x21


def test_a_wrong_source_state_keeps_the_vcpus_state() -> None:
    vcpu = AxVM.from_asm("hlt").vcpu(0)
    with pytest.raises(AxError) as refused:
        vcpu.unbind()  # Ready -> Free, while the vCPU is Free
    assert refused.value.kind is AxErrorKind.BadState
    assert vcpu.state() is VCpuState.Free


def test_unmapped_gpa_is_a_nested_page_fault_not_a_halt() -> None:
    vm = AxVM.from_asm("mov ebx, 0x40000000\nmov eax, [rbx]\nhlt")
    assert vm.run_vcpu(0) == NestedPageFault(0x4000_0000, 1)
    vm.alloc_memory_region(0x1000, 0x4000_0000)  # the caller gives what was missing, and the guest goes on
    assert vm.run_vcpu(0) == Halt()


def test_a_nested_page_fault_that_nobody_cures_does_not_loop() -> None:
    vm = AxVM.from_asm("mov ebx, 0x40000000\nmov eax, [rbx]\nhlt")
    assert [vm.run_vcpu(0) for _ in range(3)] == [NestedPageFault(0x4000_0000, 1)] * 3
    assert vm.vcpu(0).retired == 1


@pytest.mark.parametrize("store", ["mov [rbx], al", "mov [rbx], ax", "mov byte [rbx], 7", "mov [rbx], rax"])
def test_any_store_reaches_a_device_window(store: str) -> None:
    # #2082: only dword moves to the APICs were decoded; a byte store to a virtio-pci BAR looped for ever.
    vm = AxVM.from_asm(f"mov ebx, {WINDOW:#x}\nmov eax, 7\n{store}\nhlt")
    device = Constant()
    vm.get_devices().add_mmio_dev(device, WINDOW, 0x1000)
    assert vm.run_vcpu(0, budget=100) == Halt()
    assert [(offset, value) for offset, _, value in device.written] == [(0, 7)]


def test_unknown_hypercall_returns_minus_one() -> None:
    vm = AxVM.from_asm("mov eax, 0x7777\nvmcall\nmov rbx, rax\nhlt")
    assert isinstance(vm.run_vcpu(0), Hypercall)
    assert vm.run_vcpu(0) == Halt()  # the caller did not answer
    assert vm.vcpu(0).regs.rbx == M64


# ---- the CPU (axvm: x86_vcpu) ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "memory"),
    [("rep insb", b"\x07\x07\x07"), ("insd", b"\x07\0\0\0"), ("rep outsb", b"abc"), ("outsw", b"ab")],
)
def test_string_io_is_not_a_halt(instruction: str, memory: bytes) -> None:
    vm = AxVM.from_asm(
        f"mov dx, {PORT}\nmov edi, 0x8000\nmov esi, 0x8000\nmov ecx, 3\n{instruction}\nmov ebx, 1\nhlt"
    )
    device = Constant(7)
    vm.get_devices().add_port_dev(device, PORT, 4)
    if "out" in instruction:
        vm.write_to_guest(0x8000, memory)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rbx == 1
    assert vm.read_from_guest(0x8000, len(memory)) == memory
    expected = {"rep outsb": [(0, 1, 97), (0, 1, 98), (0, 1, 99)], "outsw": [(0, 2, 0x6261)]}
    assert device.written == expected.get(instruction, [])


def test_hlt_exits() -> None:
    vm = AxVM.from_asm("hlt\nmov eax, 1")
    assert vm.run_vcpu(0, budget=1000) == Halt()
    assert (vm.vcpu(0).retired, vm.vcpu(0).regs.rax) == (1, 0)


def test_lma_is_not_set_for_32_bit_paging() -> None:
    # A page directory that maps the first 4 MiB to itself; then CR0.PG with EFER.LME = 0.
    vm = AxVM.from_asm(
        """
        mov dword [0x20000], 0x83
        mov eax, 0x20000
        mov cr3, eax
        mov eax, cr4
        or eax, 0x10
        mov cr4, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        hlt
        """,
        mode="protected",
    )
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.cr0 >> 31 == 1
    assert vm.vcpu(0).regs.rax & EFER_LMA == 0
    assert vm.vcpu(0).regs.efer & EFER_LMA == 0


@pytest.mark.parametrize("xcr0", [0b001, 0b011, 0b111])
def test_xsetbv_accepts_the_states_that_the_cpu_has(xcr0: int) -> None:
    cpu = make_cpu(64, rax=xcr0, cr4=CR4_OSXSAVE)
    run_one(cpu, "xsetbv", bytes.fromhex("0f01d1"))
    assert cpu.xcr0 == xcr0


@pytest.mark.parametrize(("xcr0", "number"), [(0b000, 0), (0b010, 0), (0b101, 0), (1 << 9 | 1, 0), (1, 1)])
def test_xsetbv_refuses_what_the_manual_refuses_with_gp(xcr0: int, number: int) -> None:
    cpu = make_cpu(64, rax=xcr0, rcx=number, cr4=CR4_OSXSAVE)
    assert isinstance(fault_of(cpu, "xsetbv", bytes.fromhex("0f01d1")), GeneralProtection)


def test_xsetbv_without_osxsave_is_an_invalid_opcode() -> None:
    assert isinstance(fault_of(make_cpu(64, rax=1), "xsetbv", bytes.fromhex("0f01d1")), InvalidOpcode)


def test_cpuid_leaf_1_keeps_the_signature_and_tells_of_the_hypervisor() -> None:
    cpu = make_cpu(64)
    eax, _, ecx, edx = CpuId(feature_set())(cpu, 1, 0)
    assert eax == 0x6F1  # bit 7 stays; axvm cleared it where it meant EDX.MCE
    assert ecx >> 31 == 1
    assert ecx >> 5 & 1 == 0  # VMX
    assert edx >> 7 & 1 == 0  # MCE


def test_cpuid_leaf_0x40000000_is_axvms_signature() -> None:
    eax, ebx, ecx, edx = CpuId(feature_set())(make_cpu(64), 0x4000_0000, 0)
    assert eax == 0x4000_0001
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, ecx, edx)) == b"RVMRVMRVMRVM"


@pytest.mark.parametrize("register", ["cr0", "cr2", "cr3", "cr4", "cr8"])
def test_every_move_to_and_from_a_control_register_works(register: str) -> None:
    # x86_vcpu panics on a CR access that is not a MOV to CR0 or CR4.
    vm = AxVM.from_asm(f"mov rax, {register}\nmov {register}, rax\nhlt")
    assert vm.run_vcpu(0) == Halt()


def test_power_off_compares_ax_and_not_the_whole_of_rax() -> None:
    vm = AxVM.from_asm("mov rax, 0xffffffff00002000\nmov dx, 0x604\nout dx, ax\nhlt", platform="pc")
    assert vm.run_vcpu(0) == SystemDown()


@pytest.mark.parametrize("vector", [0, -1, 256, 0x140])
def test_injecting_a_wrong_vector_is_an_error_and_neither_a_panic_nor_cut_to_a_byte(vector: int) -> None:
    vm = AxVM.from_asm("hlt")
    with pytest.raises(AxError, match=f"inject_interrupt: vector {vector} is not in 1-255") as refused:
        vm.vcpu(0).inject_interrupt(vector)
    assert refused.value.kind is AxErrorKind.InvalidInput


def test_a_timer_fires_in_a_guest_that_never_exits() -> None:
    # #1586: axvisor looks at its timers on VM exits only.
    vm = AxVM.from_asm("spin: jmp spin")
    fired: list[int] = []
    vm.clock.call_at(6400, fired.append)
    assert vm.run_vcpu(0, budget=1000) == Budget(1000)
    assert fired == [6400]


# ---- the local APIC (axvm: x86_vlapic) ---------------------------------------------------------------------


def apic_vm(text: str) -> AxVM:
    """A PC with a local APIC running `text`, RBX at the APIC's page."""
    return AxVM.from_asm(f"mov ebx, {APIC:#x}\n{text}", platform="pc", cpu_features=["+apic", "+x2apic"])


def test_lvt_mask_is_not_set_when_svr_enables_the_apic() -> None:
    vm = apic_vm(
        "mov dword [rbx+0xf0], 0x1ff\nmov dword [rbx+0x320], 0x40\nmov dword [rbx+0xf0], 0x1ff\n"
        "mov eax, [rbx+0x320]\nmov dword [rbx+0xf0], 0xff\nmov ecx, [rbx+0x320]\nhlt"
    )
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 0x40  # enabled: as written
    assert vm.vcpu(0).regs.rcx == 0x1_0040  # disabled: masked (SDM Vol. 3, "Local APIC State After It Has
    # Been Software Disabled")


def test_the_x2apic_range_ends_at_0x8ff() -> None:
    vm = apic_vm("mov ecx, 0x1b\nrdmsr\nor eax, 0xc00\nwrmsr\nmov ecx, 0x900\nrdmsr\nhlt")
    vm.get_devices().add_sys_reg_dev(Constant(3), 0x900)  # free for others
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 3


def test_a_bad_apic_offset_does_not_end_the_hypervisor() -> None:
    vm = apic_vm("mov eax, [rbx+0x40]\nmov [rbx+0x40], eax\nmov ecx, 1\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rcx == 1


def test_the_task_priority_can_be_written() -> None:
    vm = apic_vm("mov dword [rbx+0x80], 0x50\nmov eax, [rbx+0x80]\nmov rcx, cr8\nhlt")
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.rax, vm.vcpu(0).regs.rcx) == (0x50, 5)


def test_the_periodic_apic_timer_goes_on_and_eoi_with_isr_set_works() -> None:
    vm = apic_vm(
        """
        lidt [idtr]
        mov dword [rbx+0xf0], 0x1ff
        mov dword [rbx+0x3e0], 0xb
        mov dword [rbx+0x320], 0x20040
        mov dword [rbx+0x380], 10000
        sti
    wait:
        hlt
        cmp ecx, 3
        jb wait
        cli
        hlt
    idtr: dw 0xfff
          dq 0x20000
        """
    )
    # the handler: INC ECX; MOV DWORD [RBX+0xB0], 0; IRETQ
    vm.write_to_guest(0x7000, bytes.fromhex("ffc1 c783b000000000000000 48cf"))
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x20000 + 0x40 * 16, gate)
    assert vm.run_vcpu(0, budget=10_000) == Halt()
    assert vm.vcpu(0).regs.rcx == 3


# ---- devices and memory (axdevice, axaddrspace) ------------------------------------------------------------


def test_overlapping_devices_are_refused_and_both_named() -> None:
    devices = AxVM.from_asm("hlt").get_devices()
    devices.add_port_dev(Constant(), PORT, 8)
    with pytest.raises(BusError, match=r"0x307-0x30e of constant overlaps 0x300-0x307 of constant"):
        devices.add_port_dev(Constant(), PORT + 7, 8)


def test_an_access_that_runs_past_the_end_of_a_device_is_refused() -> None:
    vm = AxVM.from_asm(f"mov dx, {PORT + 3}\nin eax, dx\nhlt")
    vm.get_devices().add_port_dev(Constant(), PORT, 4)
    with pytest.raises(AxError, match="starts in constant 0x300-0x303 and runs past its end"):
        vm.run_vcpu(0)


def test_a_device_can_be_added_after_creation_and_while_the_guest_runs() -> None:
    vm = AxVM.from_asm(f"mov ebx, {WINDOW:#x}\nout 0x60, al\nmov ecx, [rbx]\nhlt")
    late = Constant(0x55)

    class Plug(Device):
        name = "plug"

        def write(self, offset: int, width: int, value: int) -> None:
            vm.get_devices().add_mmio_dev(late, WINDOW, 0x1000)

    vm.get_devices().add_port_dev(Plug(), 0x60, 1)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rcx == 0x55


def test_devices_of_emu_devices_are_built_on_x86() -> None:
    # axvm 0.1 and 0.2 build only the IVC channel there.
    row = EmulatedDeviceConfig("com1", 0x3F8, 8, 0, EmulatedDeviceType.Console)
    vm = AxVM(AxVMConfig(7, "guest", memory_regions=(VmMemConfig(0, 0x10_0000),), emu_devices=(row,)))
    assert vm.get_devices().find_port_dev(0x3F8).name == "uart16550"


def test_an_identical_region_is_not_mapped_when_the_host_refuses_it() -> None:
    hal = DefaultHal(host_memory=0x10_0000)
    region = VmMemConfig(0x20_0000, 0x1000, 7, VmMemMappingType.MapIdentical)
    config = AxVMConfig(
        1, "guest", memory_regions=(VmMemConfig(0, 0x1000, 7, VmMemMappingType.MapIdentical), region)
    )
    with pytest.raises(AxError, match="the host cannot give that address") as refused:
        AxVM(config, hal)
    assert refused.value.kind is AxErrorKind.NoMemory
    assert hal.reservations == ()  # the first region went back


def test_the_limit_of_a_translation_ends_with_its_area() -> None:
    vm = AxVM.from_asm("hlt", memory="1M")
    found = vm.address_space.translate_and_get_limit(0xF_F000)
    assert found is not None
    assert found[1] == 0x1000  # axaddrspace gives the size of the whole area


def test_a_buffer_may_cross_two_areas() -> None:
    vm = AxVM.from_asm("hlt", memory="1M")
    vm.alloc_memory_region(0x1000, 0x10_0000)
    vm.write_to_guest(0xF_FFFE, b"abcd")
    views = vm.address_space.translated_byte_buffer(0xF_FFFE, 4)
    assert views is not None
    assert [bytes(view) for view in views] == [b"ab", b"cd"]


def test_reading_an_object_at_an_odd_address_is_invalid_input() -> None:
    vm = AxVM.from_asm("hlt")
    with pytest.raises(AxError, match="Unaligned guest physical address 0x2001 for c_uint") as refused:
        vm.read_from_guest_of(0x2001, ctypes.c_uint32)
    assert refused.value.kind is AxErrorKind.InvalidInput


def test_get_image_load_region_where_no_ram_is_does_not_panic() -> None:
    with pytest.raises(AxError, match="the guest has no RAM there") as refused:
        AxVM.from_asm("hlt").get_image_load_region(0x4000_0000, 16)
    assert refused.value.kind is AxErrorKind.BadState


# ---- life and configuration --------------------------------------------------------------------------------


def test_remove_pass_through_device_drops_it_and_keeps_the_rest() -> None:
    hpet = PassThroughDeviceConfig("HPET", 0xFED0_0000, 0xFED0_0000, 0x1000, 1)
    ioapic = PassThroughDeviceConfig("IO APIC", 0xFEC0_0000, 0xFEC0_0000, 0x1000, 1)
    config = AxVMConfig(1, "guest", pass_through_devices=(hpet, ioapic))
    assert config.remove_pass_through_device(hpet)
    assert config.pass_through_devices() == (ioapic,)


def test_a_second_shutdown_is_bad_state_and_no_panic() -> None:
    vm = AxVM.from_asm("hlt")
    vm.boot()
    vm.shutdown()
    with pytest.raises(AxError, match=r"VM\[1\] is already stopping or stopped") as refused:
        vm.shutdown()
    assert refused.value.kind is AxErrorKind.BadState


def test_stop_before_the_first_entry_is_safe() -> None:
    vm = AxVM.from_asm("hlt")
    vm.shutdown()
    assert vm.vm_status() is VmStatus.Stopped
    assert vm.vcpu(0).state() is VCpuState.Free


def test_a_stopped_vm_starts_again() -> None:
    # #1909: restart after stop hangs.
    vm = AxVM.from_asm("inc dword [0x8000]\nhlt")
    for count in (1, 2, 3):
        vm.boot()
        assert vm.run_vcpu(0) == Halt()
        vm.shutdown()
        vm.reset()
        assert vm.read_from_guest(0x8000, 1)[0] == count


def test_reset_cancels_the_timers_of_the_life_before() -> None:
    # #2133: dropped timers were not cancelled.
    vm = AxVM.from_asm("spin: jmp spin")
    fired: list[int] = []
    vm.clock.call_at(64, fired.append)
    vm.reset()
    vm.run_vcpu(0, budget=10)
    assert fired == []


def test_an_unknown_msr_is_the_guests_mistake() -> None:
    vm = AxVM.from_asm(f"lidt [idtr]\nmov ecx, {MSR}\nrdmsr\nidtr: dw 0xfff\ndq 0x20000")
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x20000 + 13 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001  # in the #GP handler
    assert vm.exit_counts[SysRegRead.__name__] == 1
