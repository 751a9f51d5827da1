"""The small types of axvm's interface: flags, modes, states, masks, host addresses. No behaviour of a VM.

Guest addresses, ports, device types and ranges are the devices' vocabulary and live in `devices.contract`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from typing import ClassVar, Final, Literal, Self

TEMP_MAX_VCPU_NUM: Final = 64  # axvm: a CpuMask has 64 bits
VM_ASPACE_BASE: Final = 0x0  # axvm: guest-physical address space
VM_ASPACE_SIZE: Final = 0x7FFF_FFFF_F000
ADDRESS_LIMIT: Final = 1 << 64  # host addresses are u64


class MappingFlags(IntFlag):
    """Permissions and memory type of a guest-physical mapping (axaddrspace)."""

    READ = 1
    WRITE = 2
    EXECUTE = 4
    USER = 8
    DEVICE = 0x10
    UNCACHED = 0x20


MAPPING_FLAGS_ALL: Final = 0x3F  # anything else in a configuration is reserved


class _ConfigWord(StrEnum):
    """A word of the configuration file: its value is the canonical spelling, `aliases` the others."""

    @classmethod
    def aliases(cls) -> dict[str, Self]:
        """Other spellings -> member."""
        return {}

    @classmethod
    def from_str(cls, text: str) -> Self | None:
        """The member spelled `text`, aliases included and in any case; None if there is none."""
        word = text.lower()
        return next((member for member in cls if member == word), cls.aliases().get(word))

    @classmethod
    def spellings(cls) -> list[str]:
        """Everything `from_str` knows: canonical spellings first."""
        return [member.value for member in cls] + list(cls.aliases())


class VMType(IntEnum):
    """base.vm_type."""

    VMTHostVM = 0
    VMTRTOS = 1
    VMTLinux = 2

    @classmethod
    def from_usize(cls, value: int) -> VMType | None:
        """The type numbered `value`; None if there is none."""
        return next((kind for kind in cls if kind == value), None)


class VmMemMappingType(IntEnum):
    """How a memory region gets its RAM: map_type in the configuration."""

    MapAlloc = 0  # fresh frames
    MapIdentical = 1  # guest-physical equals host-physical
    MapReserved = 2  # memory the host kept aside


class VMInterruptMode(_ConfigWord):
    """devices.interrupt_mode: who delivers interrupts to the guest."""

    NoIrq = "no_irq"
    Emulated = "emu"
    Passthrough = "passthrough"

    @classmethod
    def aliases(cls) -> dict[str, Self]:
        """Other spellings -> member."""
        return {
            "no": cls("no_irq"),
            "none": cls("no_irq"),
            "emulated": cls("emu"),
            "pt": cls("passthrough"),
        }


class AddressSpacePolicy(_ConfigWord):
    """devices.address_space_policy: map what is listed, or everything with holes for what is owned."""

    Virtualized = "virtualized"
    Passthrough = "passthrough"

    @classmethod
    def aliases(cls) -> dict[str, Self]:
        """Other spellings -> member."""
        return {"virtual": cls("virtualized"), "pt": cls("passthrough")}


class VMBootProtocol(_ConfigWord):
    """kernel.boot_protocol: who runs first."""

    Direct = "direct"  # the kernel
    Multiboot = "multiboot"  # axvm-bios, which jumps to the kernel
    Uefi = "uefi"  # firmware at the reset vector

    @classmethod
    def aliases(cls) -> dict[str, Self]:
        """Other spellings -> member."""
        return {
            "kernel": cls("direct"),
            "bios": cls("multiboot"),
            "axvm-bios": cls("multiboot"),
            "efi": cls("uefi"),
        }


class BootPolicy(StrEnum):
    """Whether the kernel's addresses stay as configured or follow the first RAM region."""

    KeepConfigured = "keep_configured"
    AdjustKernelForBootProtocol = "adjust_kernel_for_boot_protocol"


class VMStatus(StrEnum):
    """The six states of axvm 0.2; a view of the lifecycle for `vm list`."""

    Loading = "loading"
    Loaded = "loaded"
    Running = "running"
    Suspended = "suspended"
    Stopping = "stopping"
    Stopped = "stopped"

    def as_str(self) -> str:
        """The lower-case word."""
        return self.value

    def as_str_with_icon(self) -> str:
        """The word behind its icon."""
        return f"{_STATUS_ICONS[self]} {self.value}"


_STATUS_ICONS: Final = {
    VMStatus.Loading: "\U0001f504",
    VMStatus.Loaded: "\U0001f4e6",
    VMStatus.Running: "\U0001f680",
    VMStatus.Suspended: "\U0001f6d1",
    VMStatus.Stopping: "\u23f9\ufe0f",
    VMStatus.Stopped: "\U0001f4a4",
}


class VmStatus(StrEnum):
    """The lifecycle of axvm 0.5; `lifecycle.vm_transition` holds its steps."""

    Ready = "Ready"
    Running = "Running"
    Pausing = "Pausing"
    Paused = "Paused"
    Stopping = "Stopping"
    Stopped = "Stopped"
    Destroying = "Destroying"
    Destroyed = "Destroyed"
    Failed = "Failed"

    def as_vm_status(self) -> VMStatus:
        """The nearest of the older six states."""
        return _OLDER_STATUS[self]


_OLDER_STATUS: Final = {
    VmStatus.Ready: VMStatus.Loaded,
    VmStatus.Running: VMStatus.Running,
    VmStatus.Pausing: VMStatus.Suspended,
    VmStatus.Paused: VMStatus.Suspended,
    VmStatus.Stopping: VMStatus.Stopping,
    VmStatus.Stopped: VMStatus.Stopped,
    VmStatus.Destroying: VMStatus.Stopping,
    VmStatus.Destroyed: VMStatus.Stopped,
    VmStatus.Failed: VMStatus.Stopped,
}


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a VM stops. `variant` is "Clean", "SystemDown", "Forced" or "Fault"; only a Fault has a `text`."""

    variant: Literal["Clean", "SystemDown", "Forced", "Fault"]
    text: str = ""

    @classmethod
    def clean(cls) -> StopReason:
        """The user asked."""
        return cls("Clean")

    @classmethod
    def system_down(cls) -> StopReason:
        """The guest switched itself off."""
        return cls("SystemDown")

    @classmethod
    def forced(cls) -> StopReason:
        """The user insisted."""
        return cls("Forced")

    @classmethod
    def fault(cls, text: str) -> StopReason:
        """A vCPU or a device failed; `text` is its sentence."""
        return cls("Fault", text)

    def is_fault(self) -> bool:
        """Whether something failed."""
        return self.variant == "Fault"

    def __str__(self) -> str:
        return f"{self.variant}: {self.text}" if self.text else self.variant


class _HostAddress(int):
    """A u64 address of the host that prints with its kind; arithmetic gives plain ints."""

    __slots__ = ()
    prefix: ClassVar[str] = ""

    def __new__(cls, address: int) -> Self:
        """ValueError unless 0 <= address < 2**64."""
        if not 0 <= address < ADDRESS_LIMIT:
            raise ValueError(f"{cls.__name__} {address:#x} does not fit 64 bits")
        return super().__new__(cls, address)

    def __repr__(self) -> str:
        return f"{self.prefix}:{int(self):#x}"

    __str__ = __repr__


class HostPhysAddr(_HostAddress):
    """A host-physical address; prints as `PA:0x1000`."""

    __slots__ = ()
    prefix = "PA"


class HostVirtAddr(_HostAddress):
    """A host-virtual address; prints as `VA:0x1000`."""

    __slots__ = ()
    prefix = "VA"


class GuestVirtAddr(_HostAddress):
    """A linear address inside the guest; prints as `GVA:0x1000`."""

    __slots__ = ()
    prefix = "GVA"


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Size and alignment of an allocation in bytes, as Rust's `Layout`."""

    size: int
    align: int = 0x1000

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"a memory layout of {self.size} bytes is no layout; size must be positive")
        if self.align <= 0 or self.align & (self.align - 1):
            raise ValueError(f"alignment {self.align} is no power of two")


@dataclass(frozen=True, slots=True)
class VMMemoryRegion:
    """RAM of a VM: `size` bytes at `gpa`, host address `hva`, and whether the VM must give it back."""

    gpa: int
    hva: int
    size: int
    needs_dealloc: bool = True

    @property
    def layout(self) -> MemoryLayout:
        """Size and alignment, as axvm keeps them; ValueError for an empty region."""
        return MemoryLayout(self.size)

    def is_identical(self) -> bool:
        """Whether guest and host use one address."""
        return self.gpa == self.hva


class CpuMask(int):
    """A set of CPU numbers below 64 as a bit mask. Plain ints are accepted wherever a mask is.

    Iterating gives the numbers in ascending order; `len` counts them; `|`, `&` and `==` are those of int.
    """

    __slots__ = ()

    def __new__(cls, bits: int = 0) -> Self:
        """ValueError unless 0 <= bits < 2**64."""
        if not 0 <= bits < 1 << TEMP_MAX_VCPU_NUM:
            raise ValueError(f"CPU mask {bits:#x} does not fit {TEMP_MAX_VCPU_NUM} bits")
        return super().__new__(cls, bits)

    @classmethod
    def from_ids(cls, ids: Iterable[int]) -> Self:
        """The mask with the given CPUs; ValueError for a number outside 0-63."""
        bits = 0
        for cpu in ids:
            if not 0 <= cpu < TEMP_MAX_VCPU_NUM:
                raise ValueError(f"CPU {cpu} is outside 0-{TEMP_MAX_VCPU_NUM - 1}")
            bits |= 1 << cpu
        return cls(bits)

    @classmethod
    def one_shot(cls, cpu: int) -> Self:
        """The mask with one CPU."""
        return cls.from_ids((cpu,))

    @classmethod
    def full(cls, count: int = TEMP_MAX_VCPU_NUM) -> Self:
        """The mask with CPUs 0 to count - 1."""
        return cls.from_ids(range(count))

    def get(self, cpu: int) -> bool:
        """Whether `cpu` is in the mask."""
        return 0 <= cpu < TEMP_MAX_VCPU_NUM and bool(self >> cpu & 1)

    def first_index(self) -> int | None:
        """The lowest CPU, None in an empty mask."""
        return (self & -self).bit_length() - 1 if self else None

    def __contains__(self, cpu: object) -> bool:
        return isinstance(cpu, int) and self.get(cpu)

    def __iter__(self) -> Iterator[int]:
        return (cpu for cpu in range(self.bit_length()) if self >> cpu & 1)

    def __len__(self) -> int:
        return self.bit_count()

    def __repr__(self) -> str:
        return f"CpuMask({', '.join(map(str, self))})"

    __str__ = __repr__
