"""The host: the trait's shape, and the default host's bookkeeping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysim_vm.axtypes import HostPhysAddr
from pysim_vm.errors import AxError, AxErrorKind, InvalidInput, VmNotFound
from pysim_vm.hal import (
    AxMmHal,
    AxVCpuHal,
    AxVMHal,
    DefaultHal,
    FrameAllocator,
    has_hardware_support,
)


class FakeVcpu:
    """A vCPU that notes its interrupts."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.interrupts: list[int] = []

    def favor_phys_cpu(self) -> int:
        return self.cpu

    def inject_interrupt(self, vector: int) -> None:
        self.interrupts.append(vector)


class FakeVm:
    """A VM with two vCPUs; an unknown one is None."""

    def __init__(self) -> None:
        self.vcpus = [FakeVcpu(5), FakeVcpu(6)]

    def vcpu(self, vcpu_id: int) -> FakeVcpu | None:
        return self.vcpus[vcpu_id] if vcpu_id < 2 else None


def test_virtualization_is_always_supported() -> None:
    assert has_hardware_support() is True


def test_the_trait_has_axvms_ten_members() -> None:
    methods = {
        "alloc_memory_region_at",
        "dealloc_memory_region_at",
        "virt_to_phys",
        "current_time_nanos",
        "current_vm_id",
        "current_vcpu_id",
        "current_pcpu_id",
        "vcpu_resides_on",
        "inject_irq_to_vcpu",
    }
    assert AxVMHal.__abstractmethods__ == methods
    assert "PagingHandler" in AxVMHal.__annotations__
    assert isinstance(DefaultHal().PagingHandler, AxMmHal)


def test_a_user_can_write_a_host_with_the_ten_members_only() -> None:
    class Host(AxVMHal):
        PagingHandler = FrameAllocator()

        def alloc_memory_region_at(self, base: int, size: int) -> bool:
            return True

        def dealloc_memory_region_at(self, base: int, size: int) -> None: ...

        def virt_to_phys(self, vaddr: int) -> HostPhysAddr:
            return HostPhysAddr(vaddr)

        def current_time_nanos(self) -> int:
            return 1

        def current_vm_id(self) -> int:
            return 2

        def current_vcpu_id(self) -> int:
            return 3

        def current_pcpu_id(self) -> int:
            return 4

        def vcpu_resides_on(self, vm_id: int, vcpu_id: int) -> int:
            return 5

        def inject_irq_to_vcpu(self, vm_id: int, vcpu_id: int, irq: int) -> None: ...

    host = Host()
    with host.running(9, 9):  # a host that knows who runs ignores it
        assert host.current_vm_id() == 2


def test_a_reserved_region_cannot_be_reserved_again() -> None:
    hal = DefaultHal()
    assert hal.alloc_memory_region_at(0x10_0000, 0x1000)
    assert not hal.alloc_memory_region_at(0x10_0000, 0x1000)
    assert not hal.alloc_memory_region_at(0xF_F000, 0x1001)
    assert not hal.alloc_memory_region_at(0x10_0FFF, 1)
    assert not hal.alloc_memory_region_at(0, 0x1000_0000)
    assert hal.reservations == ((0x10_0000, 0x1000),)


def test_neighbours_may_touch() -> None:
    hal = DefaultHal()
    assert hal.alloc_memory_region_at(0x2000, 0x1000)
    assert hal.alloc_memory_region_at(0x1000, 0x1000)
    assert hal.alloc_memory_region_at(0x3000, 0x1000)
    assert hal.reservations == ((0x1000, 0x1000), (0x2000, 0x1000), (0x3000, 0x1000))


def test_a_released_region_is_free_again() -> None:
    hal = DefaultHal()
    assert hal.alloc_memory_region_at(0x1000, 0x1000)
    hal.dealloc_memory_region_at(0x1000, 0x1000)
    assert hal.alloc_memory_region_at(0x1000, 0x2000)


@pytest.mark.parametrize(("base", "size"), [(0x1000, 0x800), (0x1800, 0x800), (0, 0x1000)])
def test_only_whole_reservations_are_released(base: int, size: int) -> None:
    hal = DefaultHal()
    hal.alloc_memory_region_at(0x1000, 0x1000)
    with pytest.raises(InvalidInput, match="is not reserved"):
        hal.dealloc_memory_region_at(base, size)


@pytest.mark.parametrize(("base", "size"), [(-1, 10), (0, 0), (0, -5), (0xFF00, 0x101)])
def test_a_region_outside_the_host_is_refused(base: int, size: int) -> None:
    assert not DefaultHal(host_memory=0x1_0000).alloc_memory_region_at(base, size)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=20))
def test_reservations_never_overlap(wishes: list[tuple[int, int]]) -> None:
    hal = DefaultHal()
    taken: set[int] = set()
    for base, size in wishes:
        cells = set(range(base, base + size))
        assert hal.alloc_memory_region_at(base, size) is not bool(cells & taken)
        if not cells & taken:
            taken |= cells


def test_frames_are_page_aligned_distinct_and_reused() -> None:
    frames = FrameAllocator()
    one, two = frames.alloc_frame(), frames.alloc_frame()
    assert one is not None
    assert two is not None
    assert one != two
    assert one % 0x1000 == two % 0x1000 == 0
    frames.dealloc_frame(one)
    assert frames.frames_in_use == 1
    assert frames.alloc_frame() == one


def test_frames_run_out_without_an_exception() -> None:
    frames = FrameAllocator(base=0, limit=2)
    assert frames.alloc_frame() == 0
    assert frames.alloc_frame() == 0x1000
    assert frames.alloc_frame() is None


def test_a_frame_is_freed_once() -> None:
    frames = FrameAllocator()
    frame = frames.alloc_frame()
    assert frame is not None
    frames.dealloc_frame(frame)
    with pytest.raises(InvalidInput, match="not allocated"):
        frames.dealloc_frame(frame)


@pytest.mark.parametrize(("base", "limit"), [(1, 1), (-0x1000, 1), (0, -1), ((1 << 64) - 0x1000, 2)])
def test_frames_lie_in_the_address_space(base: int, limit: int) -> None:
    with pytest.raises(InvalidInput, match="do not fit"):
        FrameAllocator(base, limit)


def test_physical_and_virtual_addresses_are_one() -> None:
    hal = DefaultHal()
    assert hal.virt_to_phys(0x1234) == 0x1234
    assert str(hal.virt_to_phys(0x1234)) == "PA:0x1234"
    assert str(hal.PagingHandler.phys_to_virt(0x1234)) == "VA:0x1234"
    assert hal.PagingHandler.virt_to_phys(0x1234) == 0x1234


def test_outside_a_run_nobody_is_current() -> None:
    hal = DefaultHal()
    with pytest.raises(AxError, match="no vCPU runs here") as caught:
        hal.current_vm_id()
    assert caught.value.kind is AxErrorKind.BadState
    with pytest.raises(AxError, match="no vCPU runs here"):
        hal.current_vcpu_id()
    assert hal.current_pcpu_id() == 0


def test_a_run_sets_the_current_ids_and_puts_the_outer_ones_back() -> None:
    hal = DefaultHal()
    with hal.running(1, 2, 3):
        with hal.running(4, 5):
            assert (hal.current_vm_id(), hal.current_vcpu_id(), hal.current_pcpu_id()) == (4, 5, 0)
        assert (hal.current_vm_id(), hal.current_vcpu_id(), hal.current_pcpu_id()) == (1, 2, 3)


def test_an_error_inside_a_run_leaves_it() -> None:
    hal = DefaultHal()
    with pytest.raises(KeyError), hal.running(1, 0):
        raise KeyError
    with pytest.raises(AxError):
        hal.current_vm_id()


def test_time_is_virtual_and_stands_still_without_a_clock() -> None:
    assert DefaultHal().current_time_nanos() == 0
    hal = DefaultHal(clock=lambda: 640)
    assert hal.current_time_nanos() == 640
    with hal.running(1, 0, clock=lambda: 7):
        assert hal.current_time_nanos() == 7
    with hal.running(1, 0):
        assert hal.current_time_nanos() == 640


def test_a_vcpu_is_found_through_the_vm() -> None:
    vm = FakeVm()
    hal = DefaultHal(lambda vm_id: vm if vm_id == 7 else None)
    assert hal.vcpu_resides_on(7, 1) == 6


def test_an_interrupt_reaches_the_vcpu() -> None:
    vm = FakeVm()
    hal = DefaultHal(lambda vm_id: vm)
    hal.inject_irq_to_vcpu(7, 1, 0x21)
    assert (vm.vcpus[0].interrupts, vm.vcpus[1].interrupts) == ([], [0x21])


@pytest.mark.parametrize("irq", [-1, 256])
def test_an_interrupt_is_a_vector(irq: int) -> None:
    vm = FakeVm()
    with pytest.raises(InvalidInput, match="is no vector"):
        DefaultHal(lambda vm_id: vm).inject_irq_to_vcpu(7, 0, irq)
    assert vm.vcpus[0].interrupts == []


def test_an_unknown_vm_is_not_found() -> None:
    with pytest.raises(VmNotFound) as caught:
        DefaultHal(lambda vm_id: None).vcpu_resides_on(3, 0)
    assert caught.value.kind is AxErrorKind.NotFound
    with pytest.raises(VmNotFound):
        DefaultHal().inject_irq_to_vcpu(3, 0, 1)


def test_an_unknown_vcpu_is_invalid_input() -> None:
    vm = FakeVm()
    with pytest.raises(InvalidInput, match=r"VM\[7\] has no vCPU\[2\]"):
        DefaultHal(lambda vm_id: vm).vcpu_resides_on(7, 2)


def test_a_vcpu_hal_fetches_no_interrupt_and_serves_none() -> None:
    hal: AxVCpuHal = DefaultHal()
    assert hal.irq_fetch() == 0
    for serve in (hal.irq_hanlder, hal.irq_handler):
        with pytest.raises(AxError, match="override irq_hanlder") as caught:
            serve()
        assert caught.value.kind is AxErrorKind.Unsupported


def test_the_well_spelled_handler_calls_the_one_that_is_overridden() -> None:
    served = []

    class Host(DefaultHal):
        def irq_hanlder(self) -> None:
            served.append(1)

    Host().irq_handler()
    assert served == [1]
