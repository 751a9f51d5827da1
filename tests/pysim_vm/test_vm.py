"""AxVM: what its constructor builds, guest memory, interrupts, the host behind it, two VMs side by side."""

from __future__ import annotations

import ctypes

import pytest

from devices.base import Device
from isa.memory import PhysicalMemory
from pysim_vm import AxError, AxErrorKind, AxVMConfig, AxVMHal, Budget, DefaultHal, Halt
from pysim_vm.axtypes import (
    CpuMask,
    HostPhysAddr,
    MappingFlags,
    MemoryLayout,
    VMInterruptMode,
    VmMemMappingType,
)
from pysim_vm.config import PysimConfig, VmMemConfig
from pysim_vm.hal import AxMmHal, FrameAllocator
from pysim_vm.vm import AxVM, OutputBuffer


def with_regions(*regions: VmMemConfig, hal: AxVMHal | None = None, **pysim: object) -> AxVM:
    """A VM without a guest program."""
    settings = PysimConfig.from_keywords(pysim)
    return AxVM(AxVMConfig(5, "regions", memory_regions=regions, pysim=settings), hal)


# ---- what there is -----------------------------------------------------------------------------------------


def test_the_vm_shows_its_identity_and_parts() -> None:
    vm = AxVM.new(AxVMConfig(9, "nine", memory_regions=(VmMemConfig(0, 0x1000),)))
    assert (vm.id(), vm.name(), vm.vcpu_num(), len(vm.vcpu_list()), vm.device_count()) == (9, "nine", 1, 1, 0)
    assert (vm.ept_root(), vm.nested_page_table_root()) == (0, 0)
    assert vm.config().name() == "nine"
    assert vm.with_config(lambda config: config.id()) == 9
    assert vm.get_vcpu_affinities_pcpu_ids() == [(0, None, 0)]
    assert vm.interrupt_mode() is VMInterruptMode.NoIrq


def test_from_asm_starts_in_each_mode() -> None:
    for mode, name in (("real", "real"), ("protected", "32-bit protected"), ("long", "64-bit")):
        vm = AxVM.from_asm("mov ax, 0x1234\nhlt", mode=mode)
        assert vm.vcpu(0).cpu.mode_name() == name
        assert vm.run_vcpu(0) == Halt()
        assert vm.vcpu(0).regs.ax == 0x1234


def test_from_code_presets_registers() -> None:
    vm = AxVM.from_code(b"\xf4", regs={"rax": 5, "xmm1": 6, "cf": 1})
    assert (vm.vcpu(0).regs.rax, vm.vcpu(0).regs.xmm1, vm.vcpu(0).regs.cf) == (5, 6, 1)


def test_a_bare_machine_has_no_devices_and_a_pc_has_a_board() -> None:
    assert AxVM.from_asm("hlt").board is None
    pc = AxVM.from_asm("hlt", platform="pc")
    assert pc.board is not None
    assert pc.get_devices().find_port_dev(0x3F8) is pc.board.com1


def test_what_the_guest_prints_is_kept_up_to_the_limit() -> None:
    vm = AxVM.from_asm(
        "mov dx, 0x3f8\nmov al, 65\nmov ecx, 10\nagain: out dx, al\nloop again\nhlt",
        platform="pc", output_limit=4,
    )  # fmt: skip
    heard: list[bytes] = []
    vm.console.listener = heard.append
    assert vm.run_vcpu(0) == Halt()
    assert (vm.console.text(), vm.console.dropped, b"".join(heard)) == ("AAAA", 6, b"AAAA")


def test_an_output_buffer_cuts_the_part_that_does_not_fit() -> None:
    buffer = OutputBuffer(3)
    buffer(b"ab")
    buffer(b"cd")
    buffer(b"ef")
    assert (bytes(buffer.data), buffer.dropped) == (b"abc", 3)
    assert OutputBuffer(9).text() == ""


def test_the_guest_can_end_the_run_with_a_code() -> None:
    vm = AxVM.from_asm("mov eax, 3\nout 0xf4, eax\nhlt", platform="pc")
    vm.run_vcpu(0)
    assert vm.exit_code == 7  # isa-debug-exit: 2 * value + 1


def test_random_numbers_come_from_the_seed() -> None:
    def numbers(seed: int) -> tuple[int, int]:
        vm = AxVM.from_asm("rdrand rax\nrdrand rbx\nhlt", seed=seed)
        vm.run_vcpu(0)
        return vm.vcpu(0).regs.rax, vm.vcpu(0).regs.rbx

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)
    assert numbers(1)[0] != numbers(1)[1]


def test_a_cpu_feature_that_is_off_is_an_invalid_opcode() -> None:
    text = "lidt [idtr]\npopcnt eax, ebx\nhlt\nidtr: dw 0xfff\ndq 0x20000"
    with_it = AxVM.from_asm(text, cpu_features=["+popcnt"])
    assert with_it.run_vcpu(0) == Halt()
    without = AxVM.from_asm(text)
    assert "#UD: POPCNT needs POPCNT" in str(without.run_vcpu(0))


# ---- memory ------------------------------------------------------------------------------------------------


def test_alloc_regions_are_zeroed_ram() -> None:
    vm = with_regions(VmMemConfig(0, 0x2000), VmMemConfig(0x10_0000, 0x1000))
    assert [(region.gpa, region.size) for region in vm.memory_regions()] == [(0, 0x2000), (0x10_0000, 0x1000)]
    assert vm.read_from_guest(0x10_0000, 0x1000) == bytes(0x1000)
    assert all(region.needs_dealloc for region in vm.memory_regions())


def test_identical_regions_are_reserved_in_the_host_and_given_back() -> None:
    hal = DefaultHal()
    vm = with_regions(VmMemConfig(0x20_0000, 0x1000, 7, VmMemMappingType.MapIdentical), hal=hal)
    assert hal.reservations == ((0x20_0000, 0x1000),)
    (region,) = vm.memory_regions()
    assert region.is_identical()
    vm.destroy()
    assert not hal.reservations
    assert vm.memory.regions == []


def test_two_vms_on_one_host_cannot_have_the_same_identical_memory() -> None:
    hal = DefaultHal()
    region = VmMemConfig(0x20_0000, 0x1000, 7, VmMemMappingType.MapIdentical)
    first = with_regions(region, hal=hal)
    with pytest.raises(AxError, match="the host cannot give that address"):
        with_regions(region, hal=hal)
    first.destroy()
    with_regions(region, hal=hal)


def test_a_constructor_that_fails_gives_the_host_everything_back() -> None:
    hal = DefaultHal()
    with pytest.raises(AxError, match="unknown"):
        AxVM(
            AxVMConfig(
                1, "broken",
                memory_regions=(VmMemConfig(0x20_0000, 0x1000, 7, VmMemMappingType.MapIdentical),),
                pysim=PysimConfig(missing_device="perhaps"),
            ),
            hal,
        )  # fmt: skip
    assert not hal.reservations


def test_reserved_regions_are_ram_that_the_vm_does_not_own() -> None:
    hal = DefaultHal()
    vm = with_regions(VmMemConfig(0x4000_0000, 0x1000, 3, VmMemMappingType.MapReserved), hal=hal)
    (region,) = vm.memory_regions()
    assert (region.gpa, region.hva, region.needs_dealloc) == (0x4000_0000, 0x4000_0000, False)
    assert not hal.reservations  # set aside before the VM came
    vm.write_to_guest(0x4000_0000, b"there")
    assert vm.read_from_guest(0x4000_0000, 5) == b"there"
    vm.destroy()


def test_map_reserved_memory_region_wants_an_address() -> None:
    vm = with_regions(VmMemConfig(0, 0x1000))
    region = vm.map_reserved_memory_region(MemoryLayout(0x2000), 0x8000)
    assert (region.is_identical(), region.size, region.needs_dealloc) == (True, 0x2000, False)
    with pytest.raises(AxError, match="needs a GPA") as refused:
        vm.map_reserved_memory_region(0x1000, None)
    assert refused.value.kind is AxErrorKind.InvalidInput
    with pytest.raises(AxError, match="overlaps") as taken:
        vm.map_reserved_memory_region(0x1000, 0x9000)
    assert taken.value.kind is AxErrorKind.AlreadyExists


def test_alloc_memory_region_without_an_address_is_identical() -> None:
    hal = DefaultHal()
    vm = with_regions(VmMemConfig(0, 0x1000), hal=hal)
    region = vm.alloc_memory_region(MemoryLayout(0x3000, align=0x40_0000))
    assert (region.gpa, region.is_identical()) == (0x40_0000, True)
    assert hal.reservations == ((0x40_0000, 0x3000),)
    vm.unmap_region(region.gpa, region.size)
    assert not hal.reservations
    assert [known.gpa for known in vm.memory_regions()] == [0]


def test_alloc_memory_region_that_the_host_refuses_maps_nothing() -> None:
    vm = with_regions(VmMemConfig(0, 0x1000), hal=DefaultHal(host_memory=0x1000))
    with pytest.raises(AxError, match="the host cannot give that address"):
        vm.alloc_memory_region(0x1000)
    assert len(vm.memory.regions) == 1


@pytest.mark.parametrize("size", [0, -4096])
def test_a_region_without_size_is_invalid_input(size: int) -> None:
    with pytest.raises(AxError, match="give a positive size") as refused:
        AxVM.from_asm("hlt").alloc_memory_region(size, 0x80_0000)
    assert refused.value.kind is AxErrorKind.InvalidInput


def test_a_region_inside_another_is_boot_scratch_and_shares_it() -> None:
    # axvisor's linux-smp1: [0, 0x0800_0000, 7, 1] and [0, 0x0010_0000, 7, 0].
    vm = with_regions(
        VmMemConfig(0, 0x10_0000, 7, VmMemMappingType.MapIdentical),
        VmMemConfig(0, 0x1_0000),
        hal=DefaultHal(),
    )
    assert [(region.gpa, region.size) for region in vm.memory_regions()] == [(0, 0x10_0000)]


def test_a_device_region_is_not_plain_memory() -> None:
    vm = with_regions(VmMemConfig(0, 0x1000), VmMemConfig(0x8000, 0x1000, MappingFlags.DEVICE | 3))
    assert [region.gpa for region in vm.memory_regions()] == [0]


def test_lazy_memory_is_given_page_by_page_without_the_guest_noticing() -> None:
    vm = AxVM.from_asm("mov rdi, 0x800ff8\nmov ecx, 4\nmov rax, -1\nrep stosq\nmov rbx, [0x801008]\nhlt")
    region = vm.alloc_memory_region(0x4000, 0x80_0000, populate=False)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rbx == 0xFFFF_FFFF_FFFF_FFFF
    assert vm.exit_counts == {"NestedPageFault": 2, "Halt": 1}
    assert vm.read_from_guest(region.gpa, 0x4000).count(0xFF) == 32


def test_lazy_code_stack_and_page_tables_work() -> None:
    vm = AxVM.from_asm("mov rsp, 0x802000\nmov rbx, 0x900000\ncall rbx\nhlt")
    vm.alloc_memory_region(0x2000, 0x80_0000, populate=False)
    vm.alloc_memory_region(0x1000, 0x90_0000, populate=False)
    vm.write_to_guest(0x90_0000, b"\xb8\x07\0\0\0\xc3")
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 7


def test_map_region_shows_one_memory_at_two_addresses() -> None:
    vm = AxVM.from_asm("mov dword [0x800000], 77\nmov eax, [0x900000]\nhlt")
    region = vm.alloc_memory_region(0x1000, 0x80_0000)
    vm.map_region(0x90_0000, region.hva, 0x1000, MappingFlags.READ)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 77


def test_code_written_through_an_alias_is_decoded_anew() -> None:
    vm = AxVM.from_asm("call 0x800000\nmov byte [0x900001], 9\ncall 0x800000\nhlt")
    region = vm.alloc_memory_region(0x1000, 0x80_0000)
    vm.map_region(0x90_0000, region.hva, 0x1000, 7)
    vm.write_to_guest(0x80_0000, b"\xb8\x07\0\0\0\xc3")
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 9


class Header(ctypes.LittleEndianStructure):
    """Two numbers, as a guest would lay them out."""

    _fields_ = (("magic", ctypes.c_uint32), ("length", ctypes.c_uint64))


def test_objects_are_read_and_written_by_their_ctypes_layout() -> None:
    vm = AxVM.from_asm("hlt")
    vm.write_to_guest_of(0x8000, Header(0x1234, 99))
    again = vm.read_from_guest_of(0x8000, Header)
    assert (again.magic, again.length) == (0x1234, 99)
    assert vm.read_from_guest(0x8000, 16) == bytes.fromhex("34120000 00000000 6300000000000000")


def test_access_outside_ram_is_invalid_input_and_stores_nothing() -> None:
    vm = AxVM.from_asm("hlt", memory="1M")
    for work in (
        lambda: vm.read_from_guest(0xF_FFFF, 2),
        lambda: vm.write_to_guest(0xF_FFFF, b"ab"),
        lambda: vm.read_from_guest(-1, 1),
        lambda: vm.read_from_guest_of(0xF_FFFC, ctypes.c_uint64),
        lambda: vm.write_to_guest_of(0x10_0000, ctypes.c_uint8(1)),
    ):
        with pytest.raises(AxError) as refused:
            work()
        assert refused.value.kind is AxErrorKind.InvalidInput
    assert vm.read_from_guest(0xF_FFFF, 1) == b"\0"


def test_get_image_load_region_gives_views_of_guest_ram() -> None:
    vm = AxVM.from_asm("hlt")
    (view,) = vm.get_image_load_region(0x8000, 4)
    view[:] = b"boot"
    assert vm.read_from_guest(0x8000, 4) == b"boot"


# ---- DMA ---------------------------------------------------------------------------------------------------


class Patcher(Device):
    """Writes the byte it is sent over the immediate of the guest's next instruction."""

    name = "patcher"

    def __init__(self, vm: AxVM, target: int) -> None:
        self._memory = vm.guest_memory()
        self._target = target

    def write(self, offset: int, width: int, value: int) -> None:
        self._memory.write(self._target, bytes([value & 0xFF]))


def test_a_dma_write_into_code_is_noticed_by_the_running_cpu() -> None:
    vm = AxVM.from_asm("mov ecx, 3\nagain: mov al, cl\nout 0x60, al\nmov bl, 0\nadd dl, bl\nloop again\nhlt")
    code = vm.read_from_guest(0x1000, 32)
    vm.get_devices().add_port_dev(Patcher(vm, 0x1000 + code.index(b"\xb3\x00") + 1), 0x60, 1)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.dl == 3 + 2 + 1


def test_dma_outside_ram_is_one_sentence_and_stores_nothing() -> None:
    vm = AxVM.from_asm("out 0x60, al\nhlt", memory="1M")
    vm.get_devices().add_port_dev(Patcher(vm, 0x50_0000), 0x60, 1)
    with pytest.raises(
        AxError, match=r"device patcher 0x60-0x60 failed with guest memory write 0x500000\+0x1: no RAM"
    ):
        vm.run_vcpu(0)


# ---- interrupts --------------------------------------------------------------------------------------------


class HostOfOurs(AxVMHal):
    """A host that a user wrote: everything is counted, nothing is DefaultHal's."""

    def __init__(self) -> None:
        self.PagingHandler: AxMmHal = FrameAllocator()
        self.vm: AxVM | None = None
        self.calls: list[tuple[object, ...]] = []

    def alloc_memory_region_at(self, base: int, size: int) -> bool:
        self.calls.append(("alloc", base, size))
        return True

    def dealloc_memory_region_at(self, base: int, size: int) -> None:
        self.calls.append(("dealloc", base, size))

    def virt_to_phys(self, vaddr: int) -> HostPhysAddr:
        return HostPhysAddr(vaddr)

    def current_time_nanos(self) -> int:
        return 0

    def current_vm_id(self) -> int:
        return 5

    def current_vcpu_id(self) -> int:
        return 0

    def current_pcpu_id(self) -> int:
        return 0

    def vcpu_resides_on(self, vm_id: int, vcpu_id: int) -> int:
        return 0

    def inject_irq_to_vcpu(self, vm_id: int, vcpu_id: int, irq: int) -> None:
        self.calls.append(("irq", vm_id, vcpu_id, irq))
        assert self.vm is not None
        self.vm.vcpu(vcpu_id).inject_interrupt(irq)


def test_a_hal_of_the_users_own_is_asked_for_memory_and_interrupts() -> None:
    hal = HostOfOurs()
    vm = with_regions(VmMemConfig(0, 0x1000, 7, VmMemMappingType.MapIdentical), hal=hal)
    hal.vm = vm
    vm.inject_interrupt_to_vcpu(CpuMask.one_shot(0), 0x33)
    assert vm.hal() is hal
    assert list(vm.vcpu(0).cpu.injected) == [0x33]
    vm.destroy()
    assert hal.calls == [("alloc", 0, 0x1000), ("irq", 5, 0, 0x33), ("dealloc", 0, 0x1000)]


def test_the_default_hal_knows_who_runs_and_when() -> None:
    vm = AxVM.from_asm("nop\nnop\nout 0x60, al\nhlt")
    hal = vm.hal()
    seen: list[tuple[int, int, int, int]] = []

    class Ask(Device):
        name = "ask"

        def write(self, offset: int, width: int, value: int) -> None:
            seen.append(
                (hal.current_vm_id(), hal.current_vcpu_id(), hal.current_pcpu_id(), hal.current_time_nanos())
            )

    vm.get_devices().add_port_dev(Ask(), 0x60, 1)
    vm.run_vcpu(0)
    assert seen == [(1, 0, 0, 128)]
    with pytest.raises(AxError):
        hal.current_vm_id()


def test_an_interrupt_for_an_unknown_vcpu_is_invalid_input() -> None:
    vm = AxVM.from_asm("hlt")
    with pytest.raises(AxError, match="Invalid vcpu_id 1") as refused:
        vm.inject_interrupt_to_vcpu(0b10, 0x40)
    assert refused.value.kind is AxErrorKind.InvalidInput


def test_a_stopped_vm_takes_no_interrupts() -> None:
    vm = AxVM.from_asm("hlt")
    vm.boot()
    vm.inject_interrupt_to_vcpu(1, 0x40)
    vm.shutdown()
    with pytest.raises(AxError, match=r"VM\[1\] is Stopped and takes no interrupts") as refused:
        vm.inject_interrupt_to_vcpu(1, 0x40)
    assert refused.value.kind is AxErrorKind.BadState


def test_an_interrupt_line_has_one_owner() -> None:
    vm = AxVM.from_asm("hlt", platform="pc")
    line = vm.irq_line(5, "our card")
    assert line is vm.irq_line(5, "our card")
    with pytest.raises(AxError, match="interrupt line 5 of another is already driven by our card"):
        vm.irq_line(5, "another")
    with pytest.raises(AxError, match="interrupt line 4 of our card is already driven by uart16550"):
        vm.irq_line(4, "our card")


@pytest.mark.parametrize(("platform", "number"), [("none", 5), ("pc", 16), ("pc", -1)])
def test_a_wire_that_is_not_there_is_not_found(platform: str, number: int) -> None:
    vm = AxVM.from_asm("hlt", platform=platform)
    for work in (lambda: vm.irq_line(number, "card"), lambda: vm.pulse_interrupt(number)):
        with pytest.raises(AxError, match=f"interrupt line {number}: VM\\[1\\] has no such wire") as refused:
            work()
        assert refused.value.kind is AxErrorKind.NotFound


def test_pulse_interrupt_reaches_the_guest_through_the_8259() -> None:
    vm = AxVM.from_asm(
        """
        lidt [idtr]
        mov al, 0x11
        out 0x20, al
        mov al, 0x30
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xdf
        out 0x21, al
        sti
        hlt
    idtr: dw 0xfff
          dq 0x20000
        """,
        platform="pc",
    )
    selector = vm.vcpu(0).regs.cs
    gate = (0x7000).to_bytes(2, "little") + selector.to_bytes(2, "little") + b"\x00\x8e" + bytes(10)
    vm.write_to_guest(0x20000 + 0x35 * 16, gate)
    vm.write_to_guest(0x7000, b"\xf4")
    assert vm.run_vcpu(0) == Halt()
    vm.pulse_interrupt(5)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001


def test_a_level_triggered_line_takes_no_pulse() -> None:
    vm = AxVM.from_asm("mov dx, 0x4d0\nmov al, 0x20\nout dx, al\nhlt", platform="pc")
    vm.run_vcpu(0)
    vm.pulse_interrupt(3)
    with pytest.raises(AxError, match="interrupt line 5 is level-triggered"):
        vm.pulse_interrupt(5)


# ---- two in one process ------------------------------------------------------------------------------------


def test_two_vms_share_nothing() -> None:
    text = "again: inc rax\nmov [0x8000], rax\nrdrand rbx\nmov dx, 0x3f8\nout dx, al\njmp again"
    alone = AxVM.from_asm(text, platform="pc", seed=7)
    alone.run_vcpu(0, budget=1000)
    one, two = AxVM.from_asm(text, platform="pc", seed=7), AxVM.from_asm(text, platform="pc", seed=7)
    for n in range(100):
        assert one.run_vcpu(0, budget=10) == Budget(10 * n + 10)
        two.run_vcpu(0, budget=1 + n % 17)
    assert one.vcpu(0).regs.as_dict() == alone.vcpu(0).regs.as_dict()
    assert one.console.data == alone.console.data
    assert one.now_ns() == alone.now_ns()
    assert two.vcpu(0).retired == sum(1 + n % 17 for n in range(100))
    two.write_to_guest(0x1000, b"\xf4" * 64)
    assert one.run_vcpu(0, budget=10) == Budget(1010)


def test_a_device_may_serve_two_vms() -> None:
    class Shared(Device):
        name = "shared"
        sum = 0

        def write(self, offset: int, width: int, value: int) -> None:
            self.sum += value

    shared = Shared()
    for value in (3, 4):
        vm = AxVM.from_asm(f"mov al, {value}\nout 0x60, al\nhlt")
        vm.get_devices().add_port_dev(shared, 0x60, 1)
        vm.run_vcpu(0)
    assert shared.sum == 7


def test_no_memory_is_shared_between_two_pools() -> None:
    first, second = PhysicalMemory(), PhysicalMemory()
    first.add_ram(0, 0x1000)
    second.add_ram(0, 0x1000)
    first.write(0, b"mine")
    assert second.read(0, 4) == bytes(4)
