"""AxVmDevices: one VM's three buses, its interrupt lines and its IVC range. It knows no CPU and no exits.

The methods are axdevice's. Registration is checked, can be undone and works at any time; an access that
finds no device follows the VM's `missing_device` policy.
"""

from __future__ import annotations

import operator
import warnings
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from devices.base import Device, DeviceError, ones
from devices.bus import Bus, BusEntry, BusError, BusKind, Window, WindowClosed
from devices.contract import (
    AbsoluteDevice,
    BaseDeviceOps,
    EmulatedDeviceConfig,
    EmulatedDeviceType,
    device_from_handler,
    device_from_ops,
    display_name,
)
from devices.local_apic import SysRegFault

MASKS: Final = {width: ones(width) for width in (1, 2, 4, 8)}
IVC_ALIGN: Final = 0x1000  # shared memory is handed out in 4 KiB pages
MISSING_POLICIES: Final = ("raise", "ones", "gp")

AccessHook = Callable[[str, BusKind, str, int, int, int], None]
"""on_access(device name, bus, "read" or "write", address, width in bytes, value)."""


class DeviceNotFound(DeviceError):
    """No device answers at the address of an access."""


class SysRegNotFound(DeviceNotFound):
    """No device owns the register; with `inject_gp` the VM owes the guest a #GP in place of an error."""

    def __init__(self, message: str, inject_gp: bool) -> None:
        super().__init__(message)
        self.inject_gp = inject_gp


class DeviceAccessError(DeviceError):
    """A device failed an access, answered nonsense, or an access left its window."""


class IrqConflict(DeviceError):
    """Two devices want one interrupt line."""


class IvcError(DeviceError):
    """An IVC request failed; `kind` is the AxError kind: "InvalidInput" or "NoMemory"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class AxVmDeviceConfig:
    """What AxVmDevices is made from: the rows of `emu_devices`."""

    emu_configs: tuple[EmulatedDeviceConfig, ...] = ()


@dataclass(slots=True)
class _Registration:
    """One object the user registered, and the Devices that stand for it on the buses."""

    owner: object
    number: int  # how many were registered before
    devices: list[Device] = field(default_factory=list)


@dataclass(slots=True)
class _IrqClaim:
    owner: object
    shared: bool


@dataclass(slots=True)
class _IvcRange:
    """First-fit allocator over [base, base + length); `taken` holds (address, size) in address order."""

    base: int
    length: int
    taken: list[tuple[int, int]] = field(default_factory=list)

    def alloc(self, size: int) -> int | None:
        free = self.base
        for address, used in self.taken:
            if address - free >= size:
                break
            free = address + used
        if self.base + self.length - free < size:
            return None
        insort(self.taken, (free, size))
        return free


class AxVmDevices:
    """All devices of one VM.

    `missing_device` says what an access without a device does: "raise" raises DeviceNotFound; "ones" reads
    all ones and ignores writes, as an undriven bus; "gp" does the same on ports and memory, but an unknown
    register raises SysRegNotFound with `inject_gp` set, which is how a PC behaves.

    `mmio`, `port` and `sys_reg` are the buses; their `on_change` and `generation` tell when windows come
    and go. `on_access`, if set, hears of every access (AccessHook). Whatever a device raises becomes a
    DeviceAccessError, but for SysRegFault, by which a register device asks for #GP; exceptions outside
    `Exception` (KeyboardInterrupt) pass through.
    """

    def __init__(
        self,
        config: AxVmDeviceConfig | None = None,
        *,
        missing_device: str = "raise",
        on_access: AccessHook | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.mmio = Bus(BusKind.MMIO, on_change)
        self.port = Bus(BusKind.PORT, on_change)
        self.sys_reg = Bus(BusKind.SYS_REG, on_change)
        self.on_policy: Callable[[], None] | None = None  # told when `missing_device` or `on_access` changes
        self._on_access = on_access
        self.missing_device = missing_device
        self.emu_configs = () if config is None else config.emu_configs
        self._registered: list[_Registration] = []
        self._names: list[str] = []
        self._irq_claims: dict[int, list[_IrqClaim]] = {}
        self._ivc: _IvcRange | None = None
        for row in self.emu_configs:
            if row.emu_type is EmulatedDeviceType.IVCChannel:
                self.add_ivc_range(row)

    @property
    def on_access(self) -> AccessHook | None:
        """Hears of every access, if it is set."""
        return self._on_access

    @on_access.setter
    def on_access(self, hook: AccessHook | None) -> None:
        self._on_access = hook
        if self.on_policy is not None:
            self.on_policy()

    @property
    def missing_device(self) -> str:
        """The policy for accesses without a device: "raise", "ones" or "gp"."""
        return self._missing_device

    @missing_device.setter
    def missing_device(self, policy: str) -> None:
        if policy not in MISSING_POLICIES:
            raise DeviceError(f'missing_device = {policy!r} is unknown; use "raise", "ones" or "gp"')
        self._missing_device = policy
        if self.on_policy is not None:
            self.on_policy()

    def bus(self, kind: BusKind) -> Bus:
        """The bus of a kind."""
        match kind:
            case BusKind.MMIO:
                return self.mmio
            case BusKind.PORT:
                return self.port
            case BusKind.SYS_REG:
                return self.sys_reg

    # Registration

    def add_mmio_dev(
        self, dev: object, base: int | None = None, length: int | None = None, offset: int = 0
    ) -> None:
        """Put a device at guest-physical [base, base + length).

        `dev` is a Device (with base and length), a BaseMmioDeviceOps (alone: it brings its range), or an
        object with handle_mmio_read and handle_mmio_write (with base and length). The same object may go on
        several buses. BusError on a conflict, DeviceError on misuse.
        """
        self._add(dev, BusKind.MMIO, base, length, offset)

    def add_port_dev(
        self, dev: object, base: int | None = None, length: int | None = None, offset: int = 0
    ) -> None:
        """Put a device at ports [base, base + length); `dev` as in `add_mmio_dev`."""
        self._add(dev, BusKind.PORT, base, length, offset)

    def add_sys_reg_dev(
        self, dev: object, base: int | None = None, count: int | None = None, offset: int = 0
    ) -> None:
        """Put a device at `count` registers from `base` (one if not said); `dev` as in `add_mmio_dev`.

        The offset a Device sees counts registers, not bytes.
        """
        if count is None and not isinstance(dev, BaseDeviceOps):
            count = 1
        self._add(dev, BusKind.SYS_REG, base, count, offset)

    def add_device(self, dev: object, windows: Iterable[Window]) -> None:
        """Put a device in several windows, all or none: on the first conflict the earlier ones are undone."""
        if isinstance(dev, BaseDeviceOps):
            raise DeviceError(
                f"{display_name(dev)} brings its own address range; use add_mmio_dev, add_port_dev or "
                f"add_sys_reg_dev without a base"
            )
        done: list[tuple[Device, Window]] = []
        try:
            for window in windows:
                device = self._as_device(dev, window.bus, window.base, window.offset)
                self.bus(window.bus).add(device, window.base, window.length, window.offset, window.access)
                done.append((device, window))
        except BusError:
            for device, window in reversed(done):
                self.bus(window.bus).remove(device, window.base)
            raise
        if isinstance(dev, Device):
            self._register(dev, dev)  # also without a window: it is reset and saved with the others
        for device, _ in done:
            self._register(dev, device)

    def remove_dev(self, dev: object) -> None:
        """Take a device off every bus and free its interrupt lines; DeviceError if it is on none."""
        registration = self._registration(dev)
        if registration is None:
            raise DeviceError(f"{display_name(dev)} is not registered with this VM; nothing to remove")
        self._registered = [r for r in self._registered if r is not registration]
        for bus in (self.mmio, self.port, self.sys_reg):
            for device in registration.devices:
                if any(entry.device is device for entry in bus):
                    bus.remove(device)
        for line in list(self._irq_claims):
            self._drop_claims(line, dev)

    def movable_window(
        self, dev: Device, kind: BusKind, length: int, offset: int = 0
    ) -> Callable[[int | None], bool]:
        """A function that moves one window of `dev`, for a PCI base address register.

        Called with a base it puts the window there, with None it takes it off. It returns whether the
        window now answers: the guest chooses the base, so a collision is no error but leaves it off.
        """
        bus = self.bus(kind)
        self._register(dev, dev)

        def move(base: int | None) -> bool:
            for entry in bus:
                if entry.device is dev and entry.offset == offset:
                    bus.remove(dev, entry.base)
            if base is None:
                return False
            try:
                bus.add(dev, base, length, offset)
            except BusError:
                return False  # Quirk: of two overlapping BARs hardware would let both drive the bus
            return True

        return move

    def reset(self) -> None:
        """Reset every device once, in the order of registration."""
        for registration in tuple(self._registered):
            registration.devices[0].reset()

    def iter_devices(self) -> Iterator[Device]:
        """One Device for every registered object, in the order of registration (reset, snapshot)."""
        for registration in tuple(self._registered):
            yield registration.devices[0]

    # Look-up

    @property
    def device_names(self) -> tuple[str, ...]:
        """The names of all devices that were ever registered, in that order: `device_number` is an index."""
        return tuple(self._names)

    def device_number(self, device: Device | None) -> int:
        """The number of a device, which it keeps for ever; -1 for one that is not registered, and for None.

        Devices are numbered in the order of registration, from 0.
        """
        if device is not None:
            for registration in self._registered:
                for known in registration.devices:
                    if known is device:
                        return registration.number
        return -1

    def answering(self, kind: BusKind, address: int, writes: bool) -> Device | None:
        """The device that an access of one byte, or of one register, would reach; None if nobody answers."""
        entry = self.bus(kind).find(address)
        if entry is None or ("w" if writes else "r") not in entry.access:
            return None
        return entry.device

    def whole_window(self, kind: BusKind, address: int, width: int, writes: bool) -> BusEntry | None:
        """The window that alone answers an access of `width` bytes; None if there is none."""
        bus = self.bus(kind)
        entry = bus.find(address)
        span = bus.spans.get(width, 0)
        if entry is None or not span or address + span > entry.end:
            return None
        return entry if ("w" if writes else "r") in entry.access else None

    def access_failed(
        self, kind: BusKind, direction: str, address: int, width: int, entry: BusEntry, error: BaseException
    ) -> BaseException:
        """What an access raises whose device raised `error`: SysRegFault, by which a device asks for #GP, and
        what is no Exception pass through."""
        if isinstance(error, SysRegFault) or not isinstance(error, Exception):
            return error
        failure = _device_failed(self.bus(kind), direction, address, width, entry, error)
        failure.__cause__ = error
        return failure

    def checked_value(self, kind: BusKind, address: int, width: int, entry: BusEntry, value: Any) -> int:
        """A read's value cut to `width` bytes; DeviceAccessError if it is no int of 0 or more."""
        return _as_unsigned(self.bus(kind), address, width, entry, value)

    def find_mmio_dev(self, addr: int) -> Any:
        """The object registered at a guest-physical address, or None."""
        return _owner_of(self.mmio.find(addr))

    def find_sys_reg_dev(self, addr: int) -> Any:
        """The object registered at a register, or None."""
        return _owner_of(self.sys_reg.find(addr))

    def find_port_dev(self, port: int) -> Any:
        """The object registered at a port, or None."""
        return _owner_of(self.port.find(port))

    def iter_mmio_dev(self) -> Iterator[Any]:
        """The objects on the memory bus in address order, each once."""
        return _owners(self.mmio)

    def iter_sys_reg_dev(self) -> Iterator[Any]:
        """The objects on the register bus in address order, each once."""
        return _owners(self.sys_reg)

    def iter_port_dev(self) -> Iterator[Any]:
        """The objects on the port bus in address order, each once."""
        return _owners(self.port)

    # Rust tells shared from exclusive iteration; in Python both are the same.
    iter_mut_mmio_dev = iter_mmio_dev
    iter_mut_sys_reg_dev = iter_sys_reg_dev
    iter_mut_port_dev = iter_port_dev

    # Accesses

    def handle_mmio_read(self, addr: int, width: int) -> int:
        """The value of `width` bytes (1, 2, 4, 8) at a guest-physical address."""
        return self._read(self.mmio, addr, width)

    def handle_mmio_write(self, addr: int, width: int, val: int) -> None:
        """Store `width` bytes (1, 2, 4, 8) at a guest-physical address."""
        self._write(self.mmio, addr, width, val)

    def handle_sys_reg_read(self, addr: int, width: int) -> int:
        """The value of a register; `width` is 8 bytes for an MSR."""
        return self._read(self.sys_reg, addr, width)

    def handle_sys_reg_write(self, addr: int, width: int, val: int) -> None:
        """Store a register; `width` is 8 bytes for an MSR."""
        self._write(self.sys_reg, addr, width, val)

    def handle_port_read(self, port: int, width: int) -> int:
        """The value of `width` bytes (1, 2, 4) at a port."""
        return self._read(self.port, port, width)

    def handle_port_write(self, port: int, width: int, val: int) -> None:
        """Store `width` bytes (1, 2, 4) at a port."""
        self._write(self.port, port, width, val)

    def _read(self, bus: Bus, address: int, width: int) -> int:
        try:
            end = address + bus.spans[width]
        except KeyError:
            _refuse_width(bus, "read", address, width)
        entry = bus.routes[address]
        if entry is None or end > entry.end:
            return self._read_astray(bus, address, width)
        try:
            value = entry.read(address + entry.delta, width)
        except Exception as error:
            if isinstance(error, WindowClosed) and "r" not in entry.access:
                return self._read_missing(bus, address, width)
            if isinstance(error, SysRegFault):
                raise  # the device answers as hardware does: #GP(0) in the guest
            raise self.access_failed(bus.kind, "read", address, width, entry, error) from error
        if value.__class__ is not int or not 0 <= value <= MASKS[width]:
            value = _as_unsigned(bus, address, width, entry, value)
        if self._on_access is not None:
            self._on_access(entry.device.name, bus.kind, "read", address, width, value)
        return value

    def _write(self, bus: Bus, address: int, width: int, value: int) -> None:
        try:
            end = address + bus.spans[width]
        except KeyError:
            _refuse_width(bus, "write", address, width)
        entry = bus.routes[address]
        if entry is None or end > entry.end:
            self._write_astray(bus, address, width, value)
            return
        value &= MASKS[width]
        if self._on_access is not None:
            self._on_access(entry.device.name, bus.kind, "write", address, width, value)
        try:
            entry.write(address + entry.delta, width, value)
        except Exception as error:
            if isinstance(error, WindowClosed) and "w" not in entry.access:
                self._missing(bus, "write", address, width)
                return
            if isinstance(error, SysRegFault):
                raise  # the device answers as hardware does: #GP(0) in the guest
            raise self.access_failed(bus.kind, "write", address, width, entry, error) from error

    def _read_astray(self, bus: Bus, address: int, width: int) -> int:
        """A read that no single window holds: nobody there, or bytes of several owners."""
        if not self._splits(bus, "read", address, width):
            return self._read_missing(bus, address, width)
        return sum(self._read(bus, address + i, 1) << 8 * i for i in range(width))

    def _write_astray(self, bus: Bus, address: int, width: int, value: int) -> None:
        """A write that no single window holds: nobody there, or bytes of several owners."""
        if not self._splits(bus, "write", address, width):
            self._write_missing(bus, address, width, value)
            return
        for i in range(width):
            self._write(bus, address + i, 1, value >> 8 * i & 0xFF)

    def _splits(self, bus: Bus, direction: str, address: int, width: int) -> bool:
        """Whether the access falls apart into bytes, as on an ISA bus; False if nobody owns its start.

        With the policy "raise" every byte of a port access must have an owner, and a memory access must stay
        in one window. With the others it splits, and bytes without an owner float.
        """
        owners = [bus.routes[address + i] for i in range(bus.spans[width])]
        if self._missing_device != "raise":
            return len(owners) > 1 and any(owner is not None for owner in owners)
        first = owners[0]
        if first is None:
            return False
        if bus.kind is BusKind.PORT and all(owner is not None for owner in owners):
            return True
        beyond = next((owner for owner in owners if owner is not first), None)
        into = "addresses without a device" if beyond is None else repr(beyond)
        raise DeviceAccessError(
            f"{bus.kind} {direction} {address:#x} width {width}: starts in {first!r} and runs past its end "
            f"into {into}; access each by itself, enlarge the window"
            f' or set missing_device = "ones"'
        )

    def _read_missing(self, bus: Bus, address: int, width: int) -> int:
        self._missing(bus, "read", address, width)
        if self._on_access is not None:
            self._on_access("none", bus.kind, "read", address, width, MASKS[width])
        return MASKS[width]

    def _write_missing(self, bus: Bus, address: int, width: int, value: int) -> None:
        self._missing(bus, "write", address, width)
        if self._on_access is not None:
            self._on_access("none", bus.kind, "write", address, width, value & MASKS[width])

    def _missing(self, bus: Bus, direction: str, address: int, width: int) -> None:
        """Raise if the policy says so."""
        sys_reg = bus.kind is BusKind.SYS_REG
        policy = self._missing_device
        if policy == "ones" or (policy == "gp" and not sys_reg):
            return
        nearest = bus.nearest(address)
        if nearest is None:
            found = "no device (the bus is empty)"
        elif nearest.base <= address < nearest.end:
            found = f"{nearest!r} is {'write' if direction == 'read' else 'read'}-only"
        else:
            found = f"no device (nearest: {nearest!r})"
        message = f"{bus.kind} {direction} {address:#x} width {width}: {found}; add one or set "
        if sys_reg:
            raise SysRegNotFound(f'{message}missing_device = "ones" or "gp"', inject_gp=policy == "gp")
        raise DeviceNotFound(f'{message}missing_device = "ones"')

    # Interrupt lines

    def claim_irq(self, line: int, owner: object, shared: bool = False) -> None:
        """Note that `owner` (a device or a name) drives interrupt line `line`.

        IrqConflict, naming both, if another owner has it, unless both say `shared` (level-triggered PCI).
        """
        if line < 0:
            raise IrqConflict(f"{_label(owner)} claims interrupt line {line}; lines count from 0")
        claims = self._irq_claims.setdefault(line, [])
        for claim in claims:
            if _same(claim.owner, owner):
                return
            if not (shared and claim.shared):
                raise IrqConflict(
                    f"interrupt line {line} of {_label(owner)} is already driven by {_label(claim.owner)}; "
                    f"give one of them another line, or claim it shared for both"
                )
        claims.append(_IrqClaim(owner, shared))

    def release_irq(self, line: int, owner: object) -> None:
        """Forget a claim; IrqConflict if `owner` has none on that line."""
        if not self._drop_claims(line, owner):
            raise IrqConflict(f"{_label(owner)} does not drive interrupt line {line}; nothing to release")

    def irq_owners(self, line: int) -> list[str]:
        """The names of those who claimed `line`, first come first."""
        return [_label(claim.owner) for claim in self._irq_claims.get(line, [])]

    def _drop_claims(self, line: int, owner: object) -> bool:
        claims = self._irq_claims.get(line, [])
        kept = [claim for claim in claims if not _same(claim.owner, owner)]
        if kept:
            self._irq_claims[line] = kept
        else:
            self._irq_claims.pop(line, None)
        return len(kept) < len(claims)

    # Inter-VM communication

    def add_ivc_range(self, row: EmulatedDeviceConfig) -> None:
        """Make [base_gpa, base_gpa + length) the place of IVC channels.

        The first range counts; a second one is ignored with a warning. IvcError InvalidInput unless base and
        length are multiples of 4 KiB and the length is not zero.
        """
        if self._ivc is not None:
            warnings.warn(
                f"emu_devices {row.name!r}: the IVC range is already {self._ivc.base:#x}-"
                f"{self._ivc.base + self._ivc.length - 1:#x}; this one is ignored",
                stacklevel=2,
            )
            return
        if row.length <= 0 or row.base_gpa < 0 or (row.base_gpa | row.length) % IVC_ALIGN:
            raise IvcError(
                "InvalidInput",
                f"emu_devices {row.name!r}: IVC range {row.base_gpa:#x} length {row.length:#x} must be whole "
                f"4 KiB pages",
            )
        self._ivc = _IvcRange(row.base_gpa, row.length)

    def alloc_ivc_channel(self, size: int) -> int:
        """A free guest-physical range of `size` bytes; returns its first address.

        IvcError InvalidInput if the size is zero or not a multiple of 4 KiB or the VM has no IVC range;
        NoMemory if nothing that big is free.
        """
        if size <= 0 or size % IVC_ALIGN:
            raise IvcError(
                "InvalidInput",
                f"IVC channel of {size:#x} bytes: the size must be a positive multiple of 4 KiB",
            )
        address = self._ivc_range().alloc(size)
        if address is None:
            raise IvcError(
                "NoMemory",
                f"IVC channel of {size:#x} bytes: no free range that big; enlarge the IVCChannel row",
            )
        return address

    def release_ivc_channel(self, addr: int, size: int) -> None:
        """Give back a range from `alloc_ivc_channel`; IvcError InvalidInput if it is not one."""
        ivc = self._ivc_range()
        if (addr, size) not in ivc.taken:
            raise IvcError(
                "InvalidInput", f"IVC channel {addr:#x} of {size:#x} bytes was never handed out; check both"
            )
        ivc.taken.remove((addr, size))

    def _ivc_range(self) -> _IvcRange:
        if self._ivc is None:
            raise IvcError("InvalidInput", "IVC channel not exists")
        return self._ivc

    # Bookkeeping

    def _add(self, dev: object, kind: BusKind, base: int | None, length: int | None, offset: int) -> None:
        name = display_name(dev)
        if isinstance(dev, BaseDeviceOps):
            if base is not None or length is not None or offset:
                raise DeviceError(
                    f"{name} brings its own address range; add it to the {kind} bus without base and length"
                )
            device, wanted = device_from_ops(dev)
            if wanted.bus is not kind:
                raise DeviceError(
                    f"{name} asks for {wanted!r} on the {wanted.bus} bus; it cannot go on the {kind} bus"
                )
            base, length = wanted.base, wanted.length
        elif base is None or length is None:
            raise DeviceError(
                f"{name} does not say where it sits; give base and length to add it to the {kind} bus"
            )
        else:
            device = self._as_device(dev, kind, base, offset)
        self.bus(kind).add(device, base, length, offset)
        self._register(dev, device)

    def _as_device(self, dev: object, kind: BusKind, base: int, offset: int) -> Device:
        if isinstance(dev, Device):
            return dev
        # the handler is told absolute addresses, so the offset its window starts at is taken off again
        return device_from_handler(dev, kind, base - offset)

    def _register(self, owner: object, device: Device) -> None:
        registration = self._registration(owner)
        if registration is None:
            registration = _Registration(owner, len(self._names))
            self._registered.append(registration)
            self._names.append(device.name)
        if all(known is not device for known in registration.devices):
            registration.devices.append(device)

    def _registration(self, owner: object) -> _Registration | None:
        return next((r for r in self._registered if r.owner is owner), None)


def _owner_of(entry: BusEntry | None) -> Any:
    if entry is None:
        return None
    return entry.device.target if isinstance(entry.device, AbsoluteDevice) else entry.device


def _owners(bus: Bus) -> Iterator[Any]:
    seen: list[object] = []
    for entry in bus:
        owner = _owner_of(entry)
        if all(owner is not other for other in seen):
            seen.append(owner)
            yield owner


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, str) and one == other)


def _label(owner: object) -> str:
    return owner if isinstance(owner, str) else display_name(owner)


def _refuse_width(bus: Bus, direction: str, address: int, width: int) -> NoReturn:
    raise DeviceAccessError(
        f"{bus.kind} {direction} {address:#x} width {width}: a width is 1, 2, 4 or 8 bytes; split the access"
    )


def _device_failed(
    bus: Bus, direction: str, address: int, width: int, entry: BusEntry, error: Exception
) -> DeviceAccessError:
    said = str(error) if isinstance(error, DeviceError) else f"{type(error).__name__}: {error}"
    return DeviceAccessError(
        f"{bus.kind} {direction} {address:#x} width {width}: device {entry!r} failed with {said}; "
        f"the traceback of the cause says where"
    )


def _as_unsigned(bus: Bus, address: int, width: int, entry: BusEntry, value: Any) -> int:
    """A read's value cut to its width; bool and numpy integers are integers too."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise DeviceAccessError(
            f"{bus.kind} read {address:#x} width {width}: device {entry!r} returned {value!r}; "
            f"read() must return an int of 0 or more"
        )
    return number & MASKS[width]
