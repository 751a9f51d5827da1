"""The host under the hypervisor: AxVMHal, AxVCpuHal and a default for a plain process. No guest RAM.

Addresses here are numbers of a made-up host: guest RAM lives in numpy arrays, so a reservation is bookkeeping
that keeps two VMs from claiming one host range, and "physical" equals "virtual".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from pysim_vm.axtypes import ADDRESS_LIMIT, HostPhysAddr, HostVirtAddr
from pysim_vm.errors import AxError, AxErrorKind, InvalidInput, VmNotFound

FRAME_SIZE: Final = 0x1000  # a page-table frame
FRAME_BASE: Final = 0x1000  # host frame 0 stays free, so that address 0 never names a frame
FRAME_LIMIT: Final = 1 << 20  # 4 GiB of frames: a leak ends in NoMemory, not in a full host
VECTOR_LAST: Final = 0xFF  # SDM, Interrupt and Exception Handling: vectors are bytes


def has_hardware_support() -> bool:
    """Whether virtualization extensions are there: always True.

    axvm asks the host CPU for VMX or SVM. Here the guest's CPU is an interpreter, so every host has what it
    takes.
    """
    return True


class AxMmHal(ABC):
    """axvcpu's AxMmHal and page_table_multiarch's PagingHandler: frames for page tables."""

    @abstractmethod
    def alloc_frame(self) -> HostPhysAddr | None:
        """A free 4 KiB frame; None when there is none."""

    @abstractmethod
    def dealloc_frame(self, paddr: int) -> None:
        """Give a frame back; AxError(InvalidInput) if it was not taken."""

    @abstractmethod
    def phys_to_virt(self, paddr: int) -> HostVirtAddr:
        """Where the host sees a physical address."""

    @abstractmethod
    def virt_to_phys(self, vaddr: int) -> HostPhysAddr:
        """The physical address behind a host address."""


class AxVMHal(ABC):
    """What a VM asks of its host: the ten members of axvm's trait, by its names, and `running`."""

    PagingHandler: AxMmHal

    @abstractmethod
    def alloc_memory_region_at(self, base: int, size: int) -> bool:
        """Reserve `size` bytes of host RAM at exactly `base` (MapIdentical); False if any of it is taken."""

    @abstractmethod
    def dealloc_memory_region_at(self, base: int, size: int) -> None:
        """Release what `alloc_memory_region_at` reserved."""

    @abstractmethod
    def virt_to_phys(self, vaddr: int) -> HostPhysAddr:
        """The physical address behind a host address."""

    @abstractmethod
    def current_time_nanos(self) -> int:
        """Nanoseconds now."""

    @abstractmethod
    def current_vm_id(self) -> int:
        """The VM whose vCPU runs; AxError(BadState) if none does."""

    @abstractmethod
    def current_vcpu_id(self) -> int:
        """The vCPU that runs; AxError(BadState) if none does."""

    @abstractmethod
    def current_pcpu_id(self) -> int:
        """The host CPU this code runs on."""

    @abstractmethod
    def vcpu_resides_on(self, vm_id: int, vcpu_id: int) -> int:
        """The host CPU of a vCPU; AxError: NotFound for an unknown VM, InvalidInput for an unknown vCPU."""

    @abstractmethod
    def inject_irq_to_vcpu(self, vm_id: int, vcpu_id: int, irq: int) -> None:
        """Queue interrupt `irq` (a vector, 0-255) on a vCPU; errors as `vcpu_resides_on`."""

    def running(
        self, vm_id: int, vcpu_id: int, pcpu_id: int = 0, clock: Callable[[], int] | None = None
    ) -> AbstractContextManager[None]:
        """A context that a VM enters around a run of a vCPU. Not axvm's: a hypervisor there owns its CPU.

        A host that finds out by itself who runs leaves this default, which does nothing.
        """
        return nullcontext()


class AxVCpuHal(ABC):
    """What a vCPU asks of its host (axvcpu)."""

    MmHal: AxMmHal

    def irq_fetch(self) -> int:
        """The host interrupt that ended the run; 0 for none."""
        return 0

    def irq_hanlder(self) -> None:
        """Serve the host interrupt that ended the run. The name is axvcpu's, spelling included.

        Raises AxError(Unsupported) unless overridden.
        """
        raise AxError(
            AxErrorKind.Unsupported,
            f"{type(self).__name__} serves no host interrupts; override irq_hanlder",
        )

    def irq_handler(self) -> None:
        """`irq_hanlder`, spelled right."""
        self.irq_hanlder()


class ResidentVCpu(Protocol):
    """The part of a vCPU that the default host needs."""

    def favor_phys_cpu(self) -> int:
        """The host CPU it prefers."""

    def inject_interrupt(self, vector: int, /) -> None:
        """Queue an interrupt."""


class ResidentVm(Protocol):
    """The part of a VM that the default host needs."""

    def vcpu(self, vcpu_id: int, /) -> ResidentVCpu | None:
        """A vCPU by its id; None or AxError(InvalidInput) for an unknown one."""


class FrameAllocator(AxMmHal):
    """Frames of the made-up host, handed out in ascending order; a freed frame is the next to go out."""

    def __init__(self, base: int = FRAME_BASE, limit: int = FRAME_LIMIT) -> None:
        """`limit` frames from address `base`; AxError(InvalidInput) if they are not aligned or do not fit."""
        if base < 0 or base % FRAME_SIZE or limit < 0 or base + limit * FRAME_SIZE > ADDRESS_LIMIT:
            raise InvalidInput(
                f"{limit} frames from {base:#x} do not fit; start on a multiple of {FRAME_SIZE:#x}"
            )
        self._base = base
        self._next = base
        self._end = base + limit * FRAME_SIZE
        self._free: list[int] = []
        self._taken: set[int] = set()

    @property
    def frames_in_use(self) -> int:
        """Frames handed out and not given back."""
        return len(self._taken)

    def alloc_frame(self) -> HostPhysAddr | None:
        """A free 4 KiB frame; None when there is none."""
        if self._free:
            paddr = self._free.pop()
        elif self._next < self._end:
            paddr = self._next
            self._next += FRAME_SIZE
        else:
            return None
        self._taken.add(paddr)
        return HostPhysAddr(paddr)

    def dealloc_frame(self, paddr: int) -> None:
        """Give a frame back; AxError(InvalidInput) if it was not taken."""
        if paddr not in self._taken:
            raise InvalidInput(
                f"frame {paddr:#x} is not allocated; free a frame once, by the address alloc_frame gave"
            )
        self._taken.remove(paddr)
        self._free.append(int(paddr))

    def phys_to_virt(self, paddr: int) -> HostVirtAddr:
        """The same number."""
        return HostVirtAddr(paddr)

    def virt_to_phys(self, vaddr: int) -> HostPhysAddr:
        """The same number."""
        return HostPhysAddr(vaddr)


@dataclass(frozen=True, slots=True)
class _Running:
    """Who runs, and by which clock."""

    vm_id: int
    vcpu_id: int
    pcpu_id: int
    clock: Callable[[], int] | None


class DefaultHal(AxVMHal, AxVCpuHal):
    """A host for a plain process: AxVMHal and AxVCpuHal in one.

    `find_vm(vm_id)` gives a VM or None, and makes `vcpu_resides_on` and `inject_irq_to_vcpu` work; without it
    no VM is found. `clock()` gives nanoseconds for callers outside any vCPU; without it their time stands at
    0, because the machine keeps virtual time and no wall clock. `host_memory` is the size in bytes of the
    host's address range for reservations.

    One DefaultHal serves any number of VMs that take turns in one thread; it is not for several threads at
    once.
    """

    def __init__(
        self,
        find_vm: Callable[[int], ResidentVm | None] | None = None,
        clock: Callable[[], int] | None = None,
        *,
        host_memory: int = ADDRESS_LIMIT,
    ) -> None:
        self.PagingHandler = FrameAllocator()
        self.MmHal = self.PagingHandler
        self._find_vm = find_vm
        self._clock = clock
        self._host_memory = host_memory
        self._reserved: list[tuple[int, int]] = []  # (base, end), ascending and disjoint
        self._running: list[_Running] = []

    # --- memory ---

    def alloc_memory_region_at(self, base: int, size: int) -> bool:
        """Reserve [base, base + size); False if it is empty, leaves the host or meets another one."""
        if base < 0 or size <= 0 or base + size > self._host_memory:
            return False
        index = bisect_right(self._reserved, (base, base))
        if index and self._reserved[index - 1][1] > base:
            return False
        if index < len(self._reserved) and self._reserved[index][0] < base + size:
            return False
        insort(self._reserved, (base, base + size))
        return True

    def dealloc_memory_region_at(self, base: int, size: int) -> None:
        """Release a reservation as a whole; AxError(InvalidInput) if there is none of exactly this range."""
        try:
            self._reserved.remove((base, base + size))
        except ValueError:
            raise InvalidInput(
                f"host memory {base:#x} of {size:#x} bytes is not reserved; release a reservation as a whole"
            ) from None

    @property
    def reservations(self) -> tuple[tuple[int, int], ...]:
        """Reserved host ranges as (base, size in bytes), ascending."""
        return tuple((base, end - base) for base, end in self._reserved)

    def virt_to_phys(self, vaddr: int) -> HostPhysAddr:
        """The same number."""
        return HostPhysAddr(vaddr)

    # --- identity and time ---

    @contextmanager
    def running(
        self, vm_id: int, vcpu_id: int, pcpu_id: int = 0, clock: Callable[[], int] | None = None
    ) -> Iterator[None]:
        """Inside, this vCPU is the current one and `clock` its virtual time. A VM enters it around a run."""
        self._running.append(_Running(vm_id, vcpu_id, pcpu_id, clock))
        try:
            yield
        finally:
            self._running.pop()

    def current_time_nanos(self) -> int:
        """Virtual nanoseconds: of the running vCPU, else of the constructor's clock, else 0."""
        if self._running and self._running[-1].clock is not None:
            return self._running[-1].clock()
        return self._clock() if self._clock is not None else 0

    def current_vm_id(self) -> int:
        """The VM whose vCPU runs; AxError(BadState) if none does."""
        return self._current("VM").vm_id

    def current_vcpu_id(self) -> int:
        """The vCPU that runs; AxError(BadState) if none does."""
        return self._current("vCPU").vcpu_id

    def current_pcpu_id(self) -> int:
        """The host CPU of the running vCPU, 0 outside any."""
        return self._running[-1].pcpu_id if self._running else 0

    def _current(self, what: str) -> _Running:
        if not self._running:
            raise AxError(
                AxErrorKind.BadState,
                f"no vCPU runs here, so there is no current {what}; ask from inside a run",
            )
        return self._running[-1]

    # --- vCPUs ---

    def vcpu_resides_on(self, vm_id: int, vcpu_id: int) -> int:
        """The host CPU of a vCPU; AxError: NotFound for an unknown VM, InvalidInput for an unknown vCPU."""
        return self._vcpu(vm_id, vcpu_id).favor_phys_cpu()

    def inject_irq_to_vcpu(self, vm_id: int, vcpu_id: int, irq: int) -> None:
        """Queue interrupt `irq` (a vector, 0-255) on a vCPU; errors as `vcpu_resides_on`."""
        # x86_vcpu cuts a vector to eight bits; here a wrong number is an error.
        if not 0 <= irq <= VECTOR_LAST:
            raise InvalidInput(
                f"interrupt {irq} for VM[{vm_id}] vCPU[{vcpu_id}] is no vector; give 0 to {VECTOR_LAST}"
            )
        self._vcpu(vm_id, vcpu_id).inject_interrupt(irq)

    def _vcpu(self, vm_id: int, vcpu_id: int) -> ResidentVCpu:
        vm = None if self._find_vm is None else self._find_vm(vm_id)
        if vm is None:
            raise VmNotFound(vm_id)
        vcpu = vm.vcpu(vcpu_id)
        if vcpu is None:
            raise InvalidInput(f"VM[{vm_id}] has no vCPU[{vcpu_id}]; its vcpu_list shows those it has")
        return vcpu
