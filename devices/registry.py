"""From a configuration row to chips on the buses: names, types, usual places. It holds no devices itself.

A factory turns an EmulatedDeviceConfig and the board's services into a DeviceBundle, whose parts then go on
the buses all together or not at all. Local APICs are not built here: each belongs to its processor.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from devices.base import Clock, Device, DeviceError, GuestMemory, IrqLine
from devices.bus import PORT_LAST, BusKind, Window
from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from devices.manager import AxVmDevices

if TYPE_CHECKING:
    from datetime import datetime

    from devices.ide import AtaDisk, AtapiCdrom
    from devices.io_apic import IoApicMessage
    from devices.rtc_cmos import CmosSetup

# Where a PC has these chips
COM1_PORT: Final = 0x3F8
PIC_MASTER_PORT: Final = 0x20
PIC_SLAVE_PORT: Final = 0xA0
PIC_ELCR_PORT: Final = 0x4D0
PIT_PORT: Final = 0x40
SYSTEM_CONTROL_PORT: Final = 0x61
KEYBOARD_PORT: Final = 0x60
KEYBOARD_STATUS_PORT: Final = 0x64
RTC_PORT: Final = 0x70
POST_PORT: Final = 0x80
PORT92: Final = 0x92
DEBUG_EXIT_PORT: Final = 0xF4
IDE_PORT: Final = 0x1F0
IDE_CONTROL_OFFSET: Final = 0x206  # from the command block to the control block, on either channel
VGA_PORT: Final = 0x3C0
DEBUG_CONSOLE_PORT: Final = 0x402  # where SeaBIOS and OVMF write
FW_CFG_PORT: Final = 0x510
ACPI_PM_PORT: Final = 0x600  # PM1 control is then 0x604, the power-off port of axvm's guests
PCI_PORT: Final = 0xCF8
VGA_MEMORY: Final = 0xA_0000
IO_APIC_BASE: Final = 0xFEC0_0000
HPET_BASE: Final = 0xFED0_0000

PIT_IRQ: Final = 0
KEYBOARD_IRQ: Final = 1
COM1_IRQ: Final = 4
RTC_IRQ: Final = 8
SCI_IRQ: Final = 9
MOUSE_IRQ: Final = 12
IDE_IRQ: Final = 14

IDE_FUNCTION: Final = 1  # in a pci_host row's cfg_list: PIIX functions to have besides the ISA bridge
PM_FUNCTION: Final = 3


def _ignore() -> None:
    """Nobody listens."""


def _ignore_int(value: int) -> None:
    """Nobody listens."""


def _ignore_level(level: bool) -> None:
    """Nobody listens."""


def _ignore_base(base: int | None) -> None:
    """Nobody listens."""


def _ignore_output(name: str, data: bytes) -> None:
    """Nobody listens."""


def _loose_wire(number: int) -> IrqLine:
    return IrqLine(None, number)


@dataclass(frozen=True, slots=True)
class BoardServices:
    """What chips need from the machine around them. Only the clock has no default.

    `irq(number)` gives the wire of an ISA interrupt; `output(name, data)` takes what a console prints, with
    the name of its row; `interrupt(level)` is the INTR wire of the 8259s and `deliver(message)` the message
    path of the I/O APIC; `pin(gsi, level)` an I/O APIC input. `images` has the contents of rom and pflash
    rows and `disks` the (master, slave) of ide rows, by the name of the row.
    """

    clock: Clock
    memory: GuestMemory | None = None
    irq: Callable[[int], IrqLine] = _loose_wire
    output: Callable[[str, bytes], None] = _ignore_output
    interrupt: Callable[[bool], None] = _ignore_level
    deliver: Callable[[IoApicMessage], bool] | None = None
    pin: Callable[[int, bool], None] | None = None
    on_reset: Callable[[], None] = _ignore
    on_poweroff: Callable[[], None] = _ignore
    on_exit: Callable[[int], None] = _ignore_int
    on_post_code: Callable[[int], None] = _ignore_int
    on_a20: Callable[[bool], None] = _ignore_level
    a20_level: Callable[[], bool] | None = None
    on_pm_base: Callable[[int | None], object] = _ignore_base
    images: Mapping[str, bytes] = field(default_factory=dict)
    disks: Mapping[str, tuple[AtaDisk | AtapiCdrom | None, AtaDisk | AtapiCdrom | None]] = field(
        default_factory=dict
    )
    cmos: CmosSetup | None = None
    start: datetime | None = None


@dataclass(frozen=True, slots=True)
class DevicePart:
    """One Device of a bundle and its windows; without a window it is only reset with the others."""

    device: Device
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceBundle:
    """What one configuration row becomes: its devices, with windows, and the interrupt lines they drive."""

    parts: tuple[DevicePart, ...]
    irqs: tuple[int, ...] = ()

    @property
    def device(self) -> Device:
        """The main device."""
        return self.parts[0].device

    def install(self, devices: AxVmDevices) -> None:
        """Put every part on its buses and claim the lines, all or nothing; BusError or IrqConflict."""
        done: list[Device] = []
        try:
            for part in self.parts:
                devices.add_device(part.device, part.windows)
                done.append(part.device)
            for line in self.irqs:
                devices.claim_irq(line, self.device)
        except DeviceError:
            for device in reversed(done):
                devices.remove_dev(device)
            raise

    def uninstall(self, devices: AxVmDevices) -> None:
        """Take every part off again; its interrupt lines are free then."""
        for part in self.parts:
            devices.remove_dev(part.device)


DeviceFactory = Callable[[EmulatedDeviceConfig, BoardServices], DeviceBundle]


class DeviceRegistry:
    """Names and EmulatedDeviceTypes -> factories."""

    def __init__(self) -> None:
        self._by_name: dict[str, DeviceFactory] = {}
        self._by_type: dict[EmulatedDeviceType, str] = {}

    def register(self, name: str, factory: DeviceFactory, emu_type: EmulatedDeviceType | None = None) -> None:
        """Make a factory known by a name, and by a type if given. DeviceError if either is taken."""
        if name in self._by_name:
            raise DeviceError(f"device name {name!r} is registered already; choose another or unregister it")
        if emu_type is not None and emu_type in self._by_type:
            raise DeviceError(
                f"device type {emu_type} ({int(emu_type):#x}) already builds {self._by_type[emu_type]!r}; "
                f"unregister that first"
            )
        self._by_name[name] = factory
        if emu_type is not None:
            self._by_type[emu_type] = name

    def unregister(self, name: str) -> None:
        """Forget a name and its type; DeviceError if it is unknown."""
        self._factory(name)
        del self._by_name[name]
        self._by_type = {kind: known for kind, known in self._by_type.items() if known != name}

    def names(self) -> list[str]:
        """All names in alphabetical order."""
        return sorted(self._by_name)

    def build(
        self,
        key: str | EmulatedDeviceType,
        services: BoardServices,
        config: EmulatedDeviceConfig | None = None,
    ) -> DeviceBundle:
        """The devices for a name or a type, not yet on any bus.

        Zeros in `config`, or no config, mean the chip's usual place. DeviceError for an unknown key or a
        row that does not fit the chip.
        """
        if isinstance(key, EmulatedDeviceType):
            if key not in self._by_type:
                raise DeviceError(
                    f"device type {key.name} ({int(key):#x}) has no factory; register one or leave it out"
                )
            key = self._by_type[key]
        factory = self._factory(key)
        return factory(EmulatedDeviceConfig(name=key) if config is None else config, services)

    def build_row(self, row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle | None:
        """The devices of a configuration row; None, with a warning, for a Dummy without a known name.

        A typed row goes by its type. A row of type Dummy goes by its name, so that chips without a type of
        their own can be configured too.
        """
        if row.emu_type is not EmulatedDeviceType.Dummy:
            return self.build(row.emu_type, services, row)
        if row.name in self._by_name:
            return self.build(row.name, services, row)
        warnings.warn(
            f"emu_devices {row.name!r}: a device of type Dummy (0x0) does nothing and is ignored",
            stacklevel=2,
        )
        return None

    def populate(
        self, devices: AxVmDevices, rows: Iterable[EmulatedDeviceConfig], services: BoardServices
    ) -> dict[str, DeviceBundle]:
        """Build every row and put it on the buses; returns the bundles by the name of their row.

        IVCChannel rows become the VM's IVC range, unless `devices` was made from them already. DeviceError
        for a name that comes twice, and whatever building and installing raise.
        """
        bundles: dict[str, DeviceBundle] = {}
        for row in rows:
            if row.emu_type is EmulatedDeviceType.IVCChannel:
                if row not in devices.emu_configs:
                    devices.add_ivc_range(row)
                continue
            if row.name in bundles:
                raise DeviceError(f"emu_devices {row.name!r} comes twice; give each device its own name")
            bundle = self.build_row(row, services)
            if bundle is not None:
                bundle.install(devices)
                bundles[row.name] = bundle
        return bundles

    def _factory(self, name: str) -> DeviceFactory:
        factory = self._by_name.get(name)
        if factory is None:
            close = difflib.get_close_matches(name, self._by_name, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(self.names())}"
            raise DeviceError(f"device name {name!r} is unknown; {hint}")
        return factory


def default_registry() -> DeviceRegistry:
    """A new registry with every chip of this package."""
    registry = DeviceRegistry()
    registry.register("acpi_pm", _acpi_pm)
    registry.register("debug_console", _debug_console)
    registry.register("debug_exit", _debug_exit)
    registry.register("fw_cfg", _fw_cfg, EmulatedDeviceType.FwCfg)
    registry.register("hpet", _hpet)
    registry.register("i8042", _i8042)
    registry.register("ide", _ide)
    registry.register("io_apic", _io_apic, EmulatedDeviceType.X86IoApic)
    registry.register("pci_host", _pci_host)
    registry.register("pflash", _pflash)
    registry.register("pic8259", _pic8259)
    registry.register("pit8254", _pit8254, EmulatedDeviceType.X86Pit)
    registry.register("port92", _port92)
    registry.register("post_code", _post_code)
    registry.register("rom", _rom)
    registry.register("rtc_cmos", _rtc_cmos)
    registry.register("uart16550", _uart16550, EmulatedDeviceType.Console)
    registry.register("vga_text", _vga_text)
    return registry


def _placed(row: EmulatedDeviceConfig, usual: Window) -> Window:
    """A chip's first window: at the row's base and length where they are not zero."""
    if row.length > usual.length or row.length < 0:
        raise DeviceError(
            f"emu_devices {row.name!r}: length {row.length:#x} does not fit the chip's {usual.length:#x} "
            f"addresses; use that or 0"
        )
    return replace(usual, base=row.base_gpa or usual.base, length=row.length or usual.length)


def _ports(base: int, length: int, offset: int = 0) -> Window:
    return Window(BusKind.PORT, base, length, offset)


def _memory(base: int, length: int) -> Window:
    return Window(BusKind.MMIO, base, length)


def _one(device: Device, *windows: Window, irqs: tuple[int, ...] = ()) -> DeviceBundle:
    return DeviceBundle((DevicePart(device, windows),), irqs)


# One factory for each chip. A chip's module is imported when the first one is built, so that a machine
# without it does not pay for it.


def _acpi_pm(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.acpi_pm import BLOCK_BYTES, AcpiPm

    sci = row.irq_id or SCI_IRQ
    device = AcpiPm(services.irq(sci), services.clock, services.on_poweroff)
    return _one(device, _placed(row, _ports(ACPI_PM_PORT, BLOCK_BYTES)), irqs=(sci,))


def _debug_console(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.debug_console import DebugConsole

    device = DebugConsole(partial(services.output, row.name))
    return _one(device, _placed(row, _ports(DEBUG_CONSOLE_PORT, 1)))


def _debug_exit(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.debug_exit import DebugExit

    return _one(DebugExit(services.on_exit), _placed(row, _ports(DEBUG_EXIT_PORT, 4)))


def _fw_cfg(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.fw_cfg import FwCfg, FwCfgMmioReg, FwCfgPort

    device = FwCfg(services.memory)
    if row.base_gpa <= PORT_LAST:
        return _one(device, _placed(row, _ports(FW_CFG_PORT, FwCfgPort.COUNT)))
    window = _placed(row, _memory(row.base_gpa, FwCfgMmioReg.SIZE))
    return DeviceBundle((DevicePart(device), DevicePart(device.mmio(), (window,))))


def _hpet(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.hpet import WINDOW_SIZE, Hpet

    if services.pin is None:
        raise DeviceError(f"emu_devices {row.name!r}: an HPET needs an I/O APIC; set services.pin")
    return _one(Hpet(services.clock, services.pin), _placed(row, _memory(HPET_BASE, WINDOW_SIZE)))


def _i8042(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.i8042 import I8042

    keyboard = row.irq_id or KEYBOARD_IRQ
    device = I8042(
        services.irq(keyboard),
        services.irq(MOUSE_IRQ),
        services.clock,
        services.on_a20,
        services.on_reset,
        services.a20_level,
    )
    data = _placed(row, _ports(KEYBOARD_PORT, 1))
    status = _ports(data.base + KEYBOARD_STATUS_PORT - KEYBOARD_PORT, 1, 4)
    return _one(device, data, status, irqs=(keyboard, MOUSE_IRQ))


def _ide(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.ide import IdeChannel

    line = row.irq_id or IDE_IRQ
    master, slave = services.disks.get(row.name, (None, None))
    command = _placed(row, _ports(IDE_PORT, 8))
    control = _ports(command.base + IDE_CONTROL_OFFSET, 1, IDE_CONTROL_OFFSET)
    return _one(IdeChannel(master, slave, services.irq(line)), command, control, irqs=(line,))


def _io_apic(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.io_apic import WINDOW_SIZE, IoApic

    if services.deliver is None:
        raise DeviceError(
            f"emu_devices {row.name!r}: an I/O APIC needs local APICs to talk to; set services.deliver"
        )
    return _one(IoApic(services.deliver), _placed(row, _memory(IO_APIC_BASE, WINDOW_SIZE)))


def _pci_host(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.pci import HostPort, i440fx_board

    unknown = [number for number in row.cfg_list if number not in (IDE_FUNCTION, PM_FUNCTION)]
    if unknown:
        raise DeviceError(
            f"emu_devices {row.name!r}: the PIIX has no function {unknown[0]}; list {IDE_FUNCTION} (IDE) or "
            f"{PM_FUNCTION} (power management)"
        )
    device = i440fx_board(
        services.irq,
        services.on_reset,
        ide=IDE_FUNCTION in row.cfg_list,
        power_management=PM_FUNCTION in row.cfg_list,
        on_pm_base=services.on_pm_base,
    )
    return _one(device, _placed(row, _ports(PCI_PORT, HostPort.COUNT)))


def _image(row: EmulatedDeviceConfig, services: BoardServices) -> bytes:
    image = services.images.get(row.name)
    if not image:
        raise DeviceError(
            f"emu_devices {row.name!r}: there is no image of that name; put its bytes in services.images"
        )
    if not row.base_gpa:
        raise DeviceError(f"emu_devices {row.name!r}: firmware memory has no usual place; give base_gpa")
    return image


def _pflash(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.pflash import PFlash

    device = PFlash(_image(row, services), name=row.name)
    return _one(device, _placed(row, _memory(row.base_gpa, device.size)))


def _pic8259(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.pic8259 import Offset, Pic8259

    return _one(
        Pic8259(services.interrupt),
        _placed(row, _ports(PIC_MASTER_PORT, 2)),
        _ports(PIC_SLAVE_PORT, 2, Offset.SLAVE_COMMAND),
        _ports(PIC_ELCR_PORT, 2, Offset.MASTER_ELCR),
    )


def _pit8254(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.pit8254 import Offset, Pit8254

    line = row.irq_id or PIT_IRQ
    return _one(
        Pit8254(services.irq(line), services.clock),
        _placed(row, _ports(PIT_PORT, 4)),
        _ports(SYSTEM_CONTROL_PORT, 1, Offset.SYSTEM_CONTROL),
        irqs=(line,),
    )


def _port92(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.port92 import Port92

    device = Port92(services.on_a20, services.on_reset, services.a20_level)
    return _one(device, _placed(row, _ports(PORT92, 1)))


def _post_code(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.post_code import PostCode

    return _one(PostCode(services.on_post_code), _placed(row, _ports(POST_PORT, 1)))


def _rom(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.pflash import Rom

    device = Rom(_image(row, services), row.name)
    return _one(device, _placed(row, _memory(row.base_gpa, device.size)))


def _rtc_cmos(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.rtc_cmos import DEFAULT_START, RtcCmos

    line = row.irq_id or RTC_IRQ
    device = RtcCmos(services.irq(line), services.clock, services.start or DEFAULT_START, services.cmos)
    return _one(device, _placed(row, _ports(RTC_PORT, 2)), irqs=(line,))


def _uart16550(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.uart16550 import Uart16550

    line = row.irq_id or COM1_IRQ
    device = Uart16550(services.irq(line), partial(services.output, row.name), services.clock)
    return _one(device, _placed(row, _ports(COM1_PORT, 8)), irqs=(line,))


def _vga_text(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    from devices.vga_text import WINDOW_SIZE, VgaPort, VgaText

    device = VgaText(services.clock)
    ports = DevicePart(device, (_placed(row, _ports(VGA_PORT, VgaPort.COUNT)),))
    return DeviceBundle((ports, DevicePart(device.memory(), (_memory(VGA_MEMORY, WINDOW_SIZE),))))
