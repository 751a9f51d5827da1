"""axvm's device contract: absolute addresses in, values out. Not a bus; adapters make it a Device.

Types and names are those of axaddrspace and axdevice_base. `GuestPhysAddrRange` is half-open, `PortRange` and
`SysRegAddrRange` include both ends. Plain ints are accepted wherever an address is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar, runtime_checkable

from devices.base import AccessWidth, Device, DeviceError
from devices.bus import BusKind

GPA_LIMIT: Final = 1 << 64  # an address is a u64 in axaddrspace; a bus is stricter
PORT_LIMIT: Final = 1 << 16

WIDTHS: Final = {int(width): width for width in AccessWidth}  # width in bytes -> AccessWidth


class GuestPhysAddr(int):
    """A guest-physical address (u64). Prints as `GPA:0x1000`; arithmetic gives plain ints."""

    __slots__ = ()

    def __new__(cls, address: int) -> Self:
        """ValueError unless 0 <= address < 2**64."""
        if not 0 <= address < GPA_LIMIT:
            raise ValueError(f"guest-physical address {address:#x} does not fit 64 bits")
        return super().__new__(cls, address)

    def __repr__(self) -> str:
        return f"GPA:{int(self):#x}"

    __str__ = __repr__


class Port(int):
    """An I/O port (u16). Prints as `Port(0x3f8)`."""

    __slots__ = ()

    def __new__(cls, number: int) -> Self:
        """ValueError unless 0 <= number <= 0xffff."""
        if not 0 <= number < PORT_LIMIT:
            raise ValueError(f"port {number:#x} is outside 0x0-0xffff")
        return super().__new__(cls, number)

    def number(self) -> int:
        """The port as a plain int."""
        return int(self)

    def __repr__(self) -> str:
        return f"Port({int(self):#x})"

    __str__ = __repr__


class SysRegAddr(int):
    """A system register's address (usize): on x86 the MSR number. Prints as `SysRegAddr(0x1b)`."""

    __slots__ = ()

    def __new__(cls, address: int) -> Self:
        """ValueError unless 0 <= address < 2**64."""
        if not 0 <= address < GPA_LIMIT:
            raise ValueError(f"system register {address:#x} does not fit 64 bits")
        return super().__new__(cls, address)

    def addr(self) -> int:
        """The register number as a plain int."""
        return int(self)

    def __repr__(self) -> str:
        return f"SysRegAddr({int(self):#x})"

    __str__ = __repr__


class DeviceAddrRange(Protocol):
    """What the three ranges share: the bus they belong to, their size, and `contains`."""

    @property
    def bus(self) -> BusKind:
        """The bus these addresses live on."""

    @property
    def base(self) -> int:
        """First address."""

    @property
    def length(self) -> int:
        """Number of addresses; 0 for an empty range."""

    def contains(self, addr: int) -> bool:
        """Whether `addr` lies inside."""


@dataclass(frozen=True, slots=True, repr=False)
class GuestPhysAddrRange:
    """`[start, end)` of guest-physical addresses, as memory_addr's AddrRange."""

    start: int
    end: int
    bus: ClassVar[BusKind] = BusKind.MMIO

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"range end {self.end:#x} lies below its start {self.start:#x}")
        object.__setattr__(self, "start", GuestPhysAddr(self.start))
        object.__setattr__(self, "end", GuestPhysAddr(self.end))

    @classmethod
    def from_start_size(cls, start: int, size: int) -> Self:
        """`size` bytes from `start`; ValueError if they leave the 64-bit space."""
        return cls(start, start + size)

    @property
    def base(self) -> int:
        """First address."""
        return self.start

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start

    def contains(self, addr: int) -> bool:
        """Whether start <= addr < end."""
        return self.start <= addr < self.end

    def __repr__(self) -> str:
        return f"{self.start!r}..{self.end!r}"


@dataclass(frozen=True, slots=True, repr=False)
class PortRange:
    """`[start, end]` of ports, both ends included."""

    start: int
    end: int
    bus: ClassVar[BusKind] = BusKind.PORT

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", Port(self.start))
        object.__setattr__(self, "end", Port(self.end))

    @property
    def base(self) -> int:
        """First port."""
        return self.start

    @property
    def length(self) -> int:
        """Ports."""
        return max(self.end - self.start + 1, 0)

    def contains(self, addr: int) -> bool:
        """Whether start <= addr <= end."""
        return self.start <= addr <= self.end

    def __repr__(self) -> str:
        return f"{int(self.start):#x}..={int(self.end):#x}"


@dataclass(frozen=True, slots=True, repr=False)
class SysRegAddrRange:
    """`[start, end]` of system registers, both ends included."""

    start: int
    end: int
    bus: ClassVar[BusKind] = BusKind.SYS_REG

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", SysRegAddr(self.start))
        object.__setattr__(self, "end", SysRegAddr(self.end))

    @property
    def base(self) -> int:
        """First register."""
        return self.start

    @property
    def length(self) -> int:
        """Registers."""
        return max(self.end - self.start + 1, 0)

    def contains(self, addr: int) -> bool:
        """Whether start <= addr <= end."""
        return self.start <= addr <= self.end

    def __repr__(self) -> str:
        return f"{int(self.start):#x}..={int(self.end):#x}"


class EmulatedDeviceType(IntEnum):
    """axvmconfig's numbers for emulated devices; 0x20-0x7f are concrete chips, 0xe0-0xef virtio."""

    Dummy = 0x0
    InterruptController = 0x1
    Console = 0x2
    FwCfg = 0x3
    IVCChannel = 0xA
    GPPTRedistributor = 0x20
    GPPTDistributor = 0x21
    GPPTITS = 0x22
    X86IoApic = 0x23
    X86Pit = 0x24
    LoongArchPchPic = 0x25
    PPPTGlobal = 0x30
    VirtioBlk = 0xE1
    VirtioNet = 0xE2
    VirtioConsole = 0xE3

    @classmethod
    def from_usize(cls, value: int) -> EmulatedDeviceType | None:
        """The type numbered `value`; None if there is none."""
        return next((kind for kind in cls if kind == value), None)

    def removable(self) -> bool:
        """Whether a VM may run without the device."""
        return self in {
            EmulatedDeviceType.InterruptController,
            EmulatedDeviceType.GPPTRedistributor,
            EmulatedDeviceType.X86IoApic,
            EmulatedDeviceType.X86Pit,
            EmulatedDeviceType.VirtioBlk,
            EmulatedDeviceType.VirtioNet,
            EmulatedDeviceType.VirtioConsole,
        }

    def __str__(self) -> str:
        return "meta device" if self is EmulatedDeviceType.Dummy else self.name


@dataclass(frozen=True, slots=True)
class EmulatedDeviceConfig:
    """One row of `emu_devices`: [name, base_gpa, length, irq_id, emu_type, cfg_list].

    For a chip on the port bus `base_gpa` and `length` are in ports. Zero means the chip's usual place.
    """

    name: str
    base_gpa: int = 0
    length: int = 0
    irq_id: int = 0
    emu_type: EmulatedDeviceType = EmulatedDeviceType.Dummy
    cfg_list: tuple[int, ...] = field(default=())

    @property
    def base_ipa(self) -> int:
        """The same address under axdevice_base's name."""
        return self.base_gpa


R_co = TypeVar("R_co", bound=DeviceAddrRange, covariant=True)


class BaseDeviceOps(ABC, Generic[R_co]):
    """A device by axdevice_base's contract: the address passed in is absolute, the width an AccessWidth.

    A device on two buses is two of these, one for each bus. `name`, if set, is used in messages; `reset`,
    if defined, is called when the machine is reset.
    """

    name: str = ""

    @abstractmethod
    def emu_type(self) -> EmulatedDeviceType:
        """Which kind of device this is."""

    @abstractmethod
    def address_range(self) -> R_co:
        """The addresses the device answers; asked once, at registration."""

    @abstractmethod
    def handle_read(self, addr: Any, width: AccessWidth) -> int:
        """The value at absolute address `addr` (GuestPhysAddr, Port or SysRegAddr)."""

    @abstractmethod
    def handle_write(self, addr: Any, width: AccessWidth, val: int) -> None:
        """Store `val` at absolute address `addr`."""


class BaseMmioDeviceOps(BaseDeviceOps[GuestPhysAddrRange]):
    """A device at guest-physical addresses."""


class BasePortDeviceOps(BaseDeviceOps[PortRange]):
    """A device at I/O ports."""


class BaseSysRegDeviceOps(BaseDeviceOps[SysRegAddrRange]):
    """A device at model specific registers."""


@runtime_checkable
class CustomMmioHandler(Protocol):
    """The memory half of the CustomDeviceHandler of axvm's page on custom devices."""

    def handle_mmio_read(self, addr: int, width: AccessWidth, /) -> int:
        """The value at guest-physical address `addr`."""

    def handle_mmio_write(self, addr: int, width: AccessWidth, data: int, /) -> None:
        """Store `data` at guest-physical address `addr`."""


@runtime_checkable
class CustomPortHandler(Protocol):
    """The port half of the CustomDeviceHandler of axvm's page on custom devices."""

    def handle_port_read(self, port: int, width: AccessWidth, /) -> int:
        """The value at `port`."""

    def handle_port_write(self, port: int, width: AccessWidth, data: int, /) -> None:
        """Store `data` at `port`."""


ADDRESS_CLASS: Final = {
    BusKind.MMIO: GuestPhysAddr,
    BusKind.PORT: Port,
    BusKind.SYS_REG: SysRegAddr,
}


def display_name(device: object) -> str:
    """What messages call a device: its `name`, or its class when it has none."""
    name = getattr(device, "name", "")
    return name if isinstance(name, str) and name else type(device).__name__


class AbsoluteDevice(Device):
    """A Device made of two functions that want absolute addresses: address = base + offset.

    `target` is the object the functions belong to; its `reset` is called if it has one.
    """

    def __init__(
        self,
        target: object,
        bus: BusKind,
        base: int,
        on_read: Callable[[Any, AccessWidth], int],
        on_write: Callable[[Any, AccessWidth, int], None],
    ) -> None:
        self.name = display_name(target)
        self.target = target
        self.base = base
        self._address: type[int] = ADDRESS_CLASS[bus]
        self._on_read = on_read
        self._on_write = on_write

    @property
    def state(self) -> Any:
        """The target's `state` or `device_state`, else None: a snapshot copies what the target shows."""
        return getattr(self.target, self._state_name(), None)

    @state.setter
    def state(self, value: Any) -> None:
        if value is not None:
            setattr(self.target, self._state_name(), value)

    def _state_name(self) -> str:
        return "state" if hasattr(self.target, "state") else "device_state"

    def read(self, offset: int, width: int) -> int:
        """Ask the target for the value at base + offset."""
        return self._on_read(self._address(self.base + offset), WIDTHS[width])

    def write(self, offset: int, width: int, value: int) -> None:
        """Give the target the value for base + offset."""
        self._on_write(self._address(self.base + offset), WIDTHS[width], value)

    def reset(self) -> None:
        """Reset the target, if it knows how."""
        reset = getattr(self.target, "reset", None)
        if callable(reset):
            reset()

    def rearm(self) -> None:
        """Re-arm the target, if it knows how."""
        rearm = getattr(self.target, "rearm", None)
        if callable(rearm):
            rearm()


def device_from_ops(ops: BaseDeviceOps[Any]) -> tuple[Device, DeviceAddrRange]:
    """A Device over `ops`, and the range it asks for. DeviceError if `address_range()` is no range."""
    wanted = ops.address_range()
    if not isinstance(wanted, GuestPhysAddrRange | PortRange | SysRegAddrRange):
        raise DeviceError(
            f"{display_name(ops)}.address_range() returned {wanted!r}; return a GuestPhysAddrRange, "
            f"PortRange or SysRegAddrRange"
        )
    return AbsoluteDevice(ops, wanted.bus, wanted.base, ops.handle_read, ops.handle_write), wanted


def device_from_handler(handler: object, bus: BusKind, base: int) -> Device:
    """A Device over a CustomDeviceHandler for one bus. DeviceError if it lacks that bus's two methods."""
    if bus is BusKind.MMIO and isinstance(handler, CustomMmioHandler):
        return AbsoluteDevice(handler, bus, base, handler.handle_mmio_read, handler.handle_mmio_write)
    if bus is BusKind.PORT and isinstance(handler, CustomPortHandler):
        return AbsoluteDevice(handler, bus, base, handler.handle_port_read, handler.handle_port_write)
    wanted = f"handle_{bus}_read and handle_{bus}_write" if bus is not BusKind.SYS_REG else "read and write"
    raise DeviceError(
        f"{display_name(handler)} cannot go on the {bus} bus: it is no Device and no BaseDeviceOps and lacks "
        f"{wanted}; derive it from Device or give it these methods"
    )


D = TypeVar("D")
T = TypeVar("T")


def map_device_of_type(device: object, device_type: type[D], closure: Callable[[D], T]) -> T | None:
    """`closure(device)` if the device, or what an adapter wraps, is a `device_type`; otherwise None."""
    if isinstance(device, AbsoluteDevice) and not issubclass(device_type, AbsoluteDevice):
        device = device.target
    return closure(device) if isinstance(device, device_type) else None
