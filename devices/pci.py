"""PCI: configuration mechanism #1, functions with BARs, and the 440FX/PIIX bridges. No bus but bus 0, no MSI.

Sources: PCI Local Bus Specification 3.0 (configuration space, base address registers), Intel 82441FX PMC and
82371FB/SB PCI ISA Xcelerator (PIIX, PIIX3) and 82371AB (PIIX4) datasheets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from devices.base import Device, DeviceError, IrqLine, ones


class HostPort:
    """Offsets in the port window 0xCF8-0xCFF."""

    CONFIG_ADDRESS: Final = 0  # 0xCF8: enable, bus, device, function, register; answers dwords only
    RESET_CONTROL: Final = 1  # 0xCF9: the PIIX reset register hides below CONFIG_ADDRESS as a byte
    CONFIG_DATA: Final = 4  # 0xCFC-0xCFF: the selected configuration dword
    COUNT: Final = 8


CONFIG_ENABLE: Final = 1 << 31
CONFIG_ADDRESS_WRITABLE: Final = 0x80FF_FFFC
RESET_SYSTEM: Final = 0x02  # RCR bit 1: hard rather than soft reset
RESET_CPU: Final = 0x04  # RCR bit 2: its rising edge resets

# Configuration space header (type 0)
CONFIG_SPACE_SIZE: Final = 256
VENDOR_ID: Final = 0x00
DEVICE_ID: Final = 0x02
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION_ID: Final = 0x08
CLASS_CODE: Final = 0x09
CACHE_LINE_SIZE: Final = 0x0C
LATENCY_TIMER: Final = 0x0D
HEADER_TYPE: Final = 0x0E
BAR0: Final = 0x10
SUBSYSTEM_VENDOR_ID: Final = 0x2C
SUBSYSTEM_ID: Final = 0x2E
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D
BAR_COUNT: Final = 6

COMMAND_IO: Final = 0x0001
COMMAND_MEMORY: Final = 0x0002
COMMAND_MASTER: Final = 0x0004
COMMAND_WRITABLE: Final = 0x0547  # I/O, memory, master, parity, SERR#, INTx disable
COMMAND_INTX_DISABLE: Final = 0x0400
STATUS_INTERRUPT: Final = 0x0008  # INTx asserted, before the disable bit
STATUS_CLEARABLE: Final = 0xF900  # error bits: written 1 clears
MULTI_FUNCTION: Final = 0x80

BAR_IO: Final = 0x1
BAR_MEMORY_64: Final = 0x4
BAR_PREFETCHABLE: Final = 0x8
BAR_MIN_IO: Final = 4
BAR_MIN_MEMORY: Final = 16
PORT_SPACE: Final = 1 << 16
MEMORY_SPACE_32: Final = 1 << 32
MEMORY_SPACE_64: Final = 1 << 52

VENDOR_INTEL: Final = 0x8086
DEVICE_82441FX: Final = 0x1237
DEVICE_PIIX3_ISA: Final = 0x7000
DEVICE_PIIX3_IDE: Final = 0x7010
DEVICE_PIIX4_PM: Final = 0x7113
CLASS_HOST_BRIDGE: Final = 0x06_00_00
CLASS_ISA_BRIDGE: Final = 0x06_01_00
CLASS_IDE_LEGACY: Final = 0x01_01_00  # both channels at the ISA addresses, no bus master
CLASS_OTHER_BRIDGE: Final = 0x06_80_00

# 82441FX PMC
I440FX_PMCCFG: Final = 0x50
I440FX_PAM0: Final = 0x59
I440FX_PAM_COUNT: Final = 7
I440FX_DRB0: Final = 0x60
I440FX_DRB_COUNT: Final = 8
I440FX_SMRAM: Final = 0x72
I440FX_SMRAM_RESET: Final = 0x02  # compatible SMM space at 0xA0000, closed

# PIIX3 function 0
PIIX_PIRQRC: Final = 0x60  # four route registers, PIRQA# to PIRQD#
PIIX_PIRQ_COUNT: Final = 4
PIRQ_DISABLED: Final = 0x80
PIRQ_IRQ_MASK: Final = 0x0F
PIRQ_FORBIDDEN: Final = frozenset({0, 1, 2, 8, 13})  # reserved values of PIRQRC: never routed
PIIX_XBCS: Final = 0x4E
PIIX_APICBASE: Final = 0x80

# PIIX3 function 1
PIIX_IDETIM: Final = 0x40

# PIIX4 function 3
PIIX4_PMBASE: Final = 0x40
PIIX4_PMBASE_MASK: Final = 0xFFC0
PIIX4_DEVACTB: Final = 0x58
PIIX4_APMC_EN: Final = 1 << 25
PIIX4_PMREGMISC: Final = 0x80
PIIX4_PMIOSE: Final = 0x01
PIIX4_SMBBA: Final = 0x90
PIIX4_SMBHSTCFG: Final = 0xD2

BarMove = Callable[[int | None], object]
"""Told where a BAR now answers: its base address, or None while it does not decode."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One base address register. `size` is in bytes and a power of two; `on_move` hears of its place."""

    index: int
    size: int
    io: bool = False
    wide: bool = False
    prefetchable: bool = False
    on_move: BarMove | None = None

    @property
    def register(self) -> int:
        """Where the register lies in configuration space."""
        return BAR0 + 4 * self.index

    @property
    def flags(self) -> int:
        """The read-only low bits."""
        if self.io:
            return BAR_IO
        return (BAR_MEMORY_64 if self.wide else 0) | (BAR_PREFETCHABLE if self.prefetchable else 0)


@dataclass(slots=True)
class PciFunctionState:
    """Configuration space as the guest reads it, and the level of the INTx pin."""

    config: bytearray
    intx: bool = False


class PciFunction:
    """One function with a type 0 header. Configuration accesses only; its BARs are windows of a Device.

    `class_code` is the 24-bit class, subclass and programming interface. `interrupt_pin` is 0 for none or
    1-4 for INTA# to INTD#. A subclass makes registers of its own writable with `define`.
    """

    name = "pci_function"

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        interrupt_pin: int = 0,
        name: str = "",
    ) -> None:
        if name:
            self.name = name
        if not 0 <= interrupt_pin <= 4:
            raise DeviceError(
                f"{self.name}: interrupt pin {interrupt_pin} is not 0 (none) or 1-4 (INTA-INTD)"
            )
        self.interrupt_pin = interrupt_pin
        self.on_intx: Callable[[bool], None] | None = None  # set when the function is put on the bus
        self._power_on = bytearray(CONFIG_SPACE_SIZE)
        self._writable = bytearray(CONFIG_SPACE_SIZE)
        self._clearable = bytearray(CONFIG_SPACE_SIZE)
        self._bars: dict[int, Bar] = {}
        self._placed: dict[int, int | None] = {}  # where each on_move was last told its BAR is
        self.define(VENDOR_ID, 2, vendor)
        self.define(DEVICE_ID, 2, device)
        self.define(COMMAND, 2, 0, COMMAND_WRITABLE)
        self.define(STATUS, 2, 0, clearable=STATUS_CLEARABLE)
        self.define(REVISION_ID, 1, revision)
        self.define(CLASS_CODE, 3, class_code)
        self.define(CACHE_LINE_SIZE, 1, 0, 0xFF)
        self.define(LATENCY_TIMER, 1, 0, 0xFF)
        self.define(SUBSYSTEM_VENDOR_ID, 2, subsystem[0])
        self.define(SUBSYSTEM_ID, 2, subsystem[1])
        self.define(INTERRUPT_LINE, 1, 0, 0xFF)
        self.define(INTERRUPT_PIN, 1, interrupt_pin)
        self.state = PciFunctionState(bytearray(self._power_on))

    def define(self, register: int, size: int, value: int, writable: int = 0, clearable: int = 0) -> None:
        """Give a register its power-on value, its writable bits and those that a written 1 clears.

        `size` is in bytes; a register must lie inside the 256 bytes. Used while building a function.
        """
        if not 0 <= register <= CONFIG_SPACE_SIZE - size:
            raise DeviceError(
                f"{self.name}: register {register:#x} size {size} is outside configuration space"
            )
        place = slice(register, register + size)
        self._power_on[place] = value.to_bytes(size, "little")
        self._writable[place] = writable.to_bytes(size, "little")
        self._clearable[place] = clearable.to_bytes(size, "little")
        self.state = PciFunctionState(bytearray(self._power_on))

    def add_bar(
        self,
        index: int,
        size: int,
        *,
        io: bool = False,
        wide: bool = False,
        prefetchable: bool = False,
        on_move: BarMove | None = None,
    ) -> None:
        """Give the function BAR `index` of `size` bytes; a `wide` (64-bit) one takes the next index too.

        DeviceError if the index is taken or out of range, or the size is no power of two or too small.
        """
        indices = (index, index + 1) if wide else (index,)
        least = BAR_MIN_IO if io else BAR_MIN_MEMORY
        if io and wide:
            raise DeviceError(f"{self.name} BAR {index}: an I/O BAR has 32 bits; drop wide or io")
        if any(not 0 <= i < BAR_COUNT for i in indices):
            raise DeviceError(f"{self.name} BAR {index}: a type 0 header has BARs 0-5; choose a lower index")
        for other in self._bars.values():
            taken = (other.index, other.index + 1) if other.wide else (other.index,)
            if any(i in taken for i in indices):
                raise DeviceError(f"{self.name} BAR {index} is part of BAR {other.index}; choose another")
        space = PORT_SPACE if io else MEMORY_SPACE_64 if wide else MEMORY_SPACE_32
        if size < least or size & (size - 1) or size > space // 2:
            raise DeviceError(
                f"{self.name} BAR {index}: size {size:#x} must be a power of two from {least} bytes up"
            )
        bar = Bar(index, size, io, wide, prefetchable, on_move)
        bits = 64 if wide else 32
        self.define(bar.register, bits // 8, bar.flags, -size & ((1 << bits) - 1))
        self._bars[index] = bar
        self._placed[index] = None

    def bar_address(self, index: int) -> int | None:
        """Where BAR `index` answers, or None while its decoder is off or the address is no usable one."""
        bar = self._bars[index]
        command = self._word(COMMAND)
        if not command & (COMMAND_IO if bar.io else COMMAND_MEMORY):
            return None
        length = 8 if bar.wide else 4
        raw = int.from_bytes(self.state.config[bar.register : bar.register + length], "little")
        base = raw & -bar.size
        space = PORT_SPACE if bar.io else MEMORY_SPACE_64 if bar.wide else MEMORY_SPACE_32
        # Address 0 and the top of the space (all ones, seen while the guest sizes the BAR) do not decode.
        if base == 0 or base + bar.size >= space:
            return None
        return base

    def config_read(self, register: int, width: int) -> int:
        """`width` bytes (1, 2, 4) of configuration space at `register`; past its end it reads ones."""
        data = self.state.config[register : register + width]
        return int.from_bytes(data.ljust(width, b"\xff"), "little")

    def config_write(self, register: int, width: int, value: int) -> None:
        """Store `width` bytes (1, 2, 4) at `register`; read-only bits keep their value."""
        config = self.state.config
        for i in range(register, min(register + width, CONFIG_SPACE_SIZE)):
            byte = value & 0xFF
            value >>= 8
            writable = self._writable[i]
            config[i] = (config[i] & ~writable | byte & writable) & ~(byte & self._clearable[i]) & 0xFF
        if register < BAR0 + 4 * BAR_COUNT and register + width > COMMAND:
            self._place_bars()
            self._drive_intx()

    def set_intx(self, level: bool) -> None:
        """Assert or deassert the function's INTx pin; level-triggered, active high here."""
        self.state.intx = level
        self._set_word(STATUS, self._word(STATUS) & ~STATUS_INTERRUPT | (STATUS_INTERRUPT if level else 0))
        self._drive_intx()

    def reset(self) -> None:
        """Configuration space as after RST#: BARs unplaced, INTx deasserted."""
        self.state = PciFunctionState(bytearray(self._power_on))
        self._place_bars()
        self._drive_intx()

    def rearm(self) -> None:
        """Tell BARs and the INTx wire again what `state` says."""
        for index in self._placed:
            self._placed[index] = None
        self._place_bars(always=True)
        self._drive_intx()

    def set_multi_function(self) -> None:
        """Set header type bit 7: the device has functions besides this one."""
        self._power_on[HEADER_TYPE] |= MULTI_FUNCTION
        self.state.config[HEADER_TYPE] |= MULTI_FUNCTION

    def _place_bars(self, always: bool = False) -> None:
        moves: list[tuple[Bar, int | None]] = []
        for index, bar in self._bars.items():
            base = self.bar_address(index)
            if always or base != self._placed[index]:
                self._placed[index] = base
                if bar.on_move is not None:
                    moves.append((bar, base))
        # All that moved first leave their old place, so that two BARs can trade places.
        for bar, base in moves:
            if bar.on_move is not None and base is not None:
                bar.on_move(None)
        for bar, base in moves:
            if bar.on_move is not None:
                bar.on_move(base)

    def _drive_intx(self) -> None:
        if self.on_intx is not None:
            self.on_intx(self.state.intx and not self._word(COMMAND) & COMMAND_INTX_DISABLE)

    def _word(self, register: int) -> int:
        config = self.state.config
        return config[register] | config[register + 1] << 8

    def _set_word(self, register: int, value: int) -> None:
        self.state.config[register : register + 2] = value.to_bytes(2, "little")


class I440fx(PciFunction):
    """82441FX PMC host bridge, 8086:1237. It stores PAM, DRB and SMRAM and switches no memory."""

    name = "i440fx"

    def __init__(self) -> None:
        super().__init__(VENDOR_INTEL, DEVICE_82441FX, CLASS_HOST_BRIDGE, revision=2)
        self.define(I440FX_PMCCFG, 2, 0, 0xFFFF)
        # Quirk: PAM gates nothing; 0xC0000-0xFFFFF is RAM, always readable and writable.
        self.define(I440FX_PAM0, I440FX_PAM_COUNT, 0, (1 << 8 * I440FX_PAM_COUNT) - 1)
        self.define(I440FX_DRB0, I440FX_DRB_COUNT, 0, (1 << 8 * I440FX_DRB_COUNT) - 1)
        # Quirk: SMRAM is stored but opens nothing; there is no system management mode.
        self.define(I440FX_SMRAM, 1, I440FX_SMRAM_RESET, 0x7F)

    def pam(self, index: int) -> int:
        """PAM register 0-6: which of the areas 0xC0000-0xFFFFF the guest asked to read (1) and write (2)."""
        return self.state.config[I440FX_PAM0 + index]


class Piix3Isa(PciFunction):
    """PIIX3 PCI-to-ISA bridge, 8086:7000: routes PIRQA#-PIRQD# to ISA interrupts.

    `irq(number)` gives the wire of an ISA interrupt, asked for once when first routed to. A PIRQ that
    several functions share is high while any of them asserts it.
    """

    name = "piix3_isa"

    def __init__(self, irq: Callable[[int], IrqLine] | None = None) -> None:
        super().__init__(VENDOR_INTEL, DEVICE_PIIX3_ISA, CLASS_ISA_BRIDGE)
        self._irq = irq
        self._lines: dict[int, IrqLine] = {}
        self._asserted: list[set[int]] = [set() for _ in range(PIIX_PIRQ_COUNT)]  # who holds each PIRQ high
        self.define(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER, 0x0108)
        self.define(STATUS, 2, 0x0200, clearable=STATUS_CLEARABLE)
        self.define(0x4C, 1, 0x4D, 0x7F)  # IORT: ISA I/O recovery timer
        self.define(PIIX_XBCS, 2, 0x0003, 0xFFFF)
        for pirq in range(PIIX_PIRQ_COUNT):
            self.define(PIIX_PIRQRC + pirq, 1, PIRQ_DISABLED, PIRQ_DISABLED | PIRQ_IRQ_MASK)
        self.define(0x69, 1, 0x02, 0xFE)  # TOM: top of ISA memory
        self.define(0x6A, 2, 0, 0xFFFF)  # MSTAT
        self.define(0x70, 2, 0x8080, 0xEFEF)  # MBIRQ0, MBIRQ1
        self.define(PIIX_APICBASE, 1, 0, 0x7F)
        self.define(0x82, 1, 0, 0x0F)  # DLC: deterministic latency
        self.define(0xA0, 8, 0x08, (1 << 64) - 1)  # SMI controls: stored, there is no SMM

    def set_pirq(self, pirq: int, source: int, level: bool) -> None:
        """Function `source` (its device and function number) drives PIRQ 0-3 high or low."""
        holders = self._asserted[pirq]
        (holders.add if level else holders.discard)(source)
        self._drive()

    def irq_of(self, pirq: int) -> int | None:
        """The ISA interrupt that PIRQ 0-3 is routed to, or None."""
        route = self.state.config[PIIX_PIRQRC + pirq]
        number = route & PIRQ_IRQ_MASK
        return None if route & PIRQ_DISABLED or number in PIRQ_FORBIDDEN else number

    def config_write(self, register: int, width: int, value: int) -> None:
        """As PciFunction, and a changed route moves a PIRQ that is high to its new wire."""
        super().config_write(register, width, value)
        if register < PIIX_PIRQRC + PIIX_PIRQ_COUNT and register + width > PIIX_PIRQRC:
            self._drive()

    def reset(self) -> None:
        """Routes off, as after RSTDRV."""
        super().reset()
        self._drive()

    def rearm(self) -> None:
        """Drive the wires again; the functions have told their own levels before or do so after."""
        super().rearm()
        self._drive()

    def _drive(self) -> None:
        high = [self.irq_of(pirq) for pirq in range(PIIX_PIRQ_COUNT) if self._asserted[pirq]]
        for number in high:
            if number is not None and number not in self._lines and self._irq is not None:
                self._lines[number] = self._irq(number)
        for number, line in self._lines.items():
            line.set_level(number in high)


class Piix3Ide(PciFunction):
    """PIIX3 IDE function, 8086:7010: the face by which firmware finds the two legacy channels."""

    name = "piix3_ide"

    def __init__(self) -> None:
        # Quirk: no bus master (BAR 4, programming interface 0x80); drives are read by programmed I/O.
        super().__init__(VENDOR_INTEL, DEVICE_PIIX3_IDE, CLASS_IDE_LEGACY)
        self.define(PIIX_IDETIM, 2, 0x8000, 0xFFFF)  # primary channel decoded from the start
        self.define(PIIX_IDETIM + 2, 2, 0x8000, 0xFFFF)


class Piix4Pm(PciFunction):
    """PIIX4 power management function, 8086:7113: where the ACPI registers lie.

    `on_pm_base(base)` hears the first port of the 64-port block when PMBASE and PMREGMISC enable it, and
    None when they stop. SMBus settings are stored; there is no SMBus.
    """

    name = "piix4_pm"

    def __init__(self, on_pm_base: BarMove | None = None) -> None:
        super().__init__(VENDOR_INTEL, DEVICE_PIIX4_PM, CLASS_OTHER_BRIDGE, revision=3, interrupt_pin=1)
        self._on_pm_base = on_pm_base
        self._told: int | None = None
        self.define(STATUS, 2, 0x0280, clearable=STATUS_CLEARABLE)
        self.define(INTERRUPT_LINE, 1, 9, 0xFF)
        self.define(PIIX4_PMBASE, 4, 0x0001, PIIX4_PMBASE_MASK)
        # Quirk: DEVACTB says that firmware has already armed the SMI command port, so that SeaBIOS does not
        # wait for a system management mode this machine lacks.
        self.define(PIIX4_DEVACTB, 4, PIIX4_APMC_EN, 0xFFFF_FFFF)
        self.define(0x5C, 4, 0, 0xFFFF_FFFF)  # DEVRESA: devices decoded here, informative
        self.define(PIIX4_PMREGMISC, 1, 0, PIIX4_PMIOSE)
        self.define(PIIX4_SMBBA, 4, 0x0001, 0xFFF0)
        self.define(PIIX4_SMBHSTCFG, 1, 0, 0x0F)

    def pm_base(self) -> int | None:
        """First port of the ACPI register block, or None while it is off."""
        config = self.state.config
        base = self._word(PIIX4_PMBASE) & PIIX4_PMBASE_MASK
        return base if config[PIIX4_PMREGMISC] & PIIX4_PMIOSE and base else None

    def config_write(self, register: int, width: int, value: int) -> None:
        """As PciFunction, and the register block moves with PMBASE and PMREGMISC."""
        super().config_write(register, width, value)
        self._tell()

    def reset(self) -> None:
        """The register block is off, as after RSTDRV."""
        super().reset()
        self._tell()

    def rearm(self) -> None:
        """Tell again where the register block is."""
        super().rearm()
        self._tell(always=True)

    def _tell(self, always: bool = False) -> None:
        base = self.pm_base()
        if (always or base != self._told) and self._on_pm_base is not None:
            self._told = base
            self._on_pm_base(base)


@dataclass(slots=True)
class PciHostState:
    """CONFIG_ADDRESS, the reset register, and every function's state by (bus, device, function)."""

    config_address: int = 0
    reset_control: int = 0
    functions: dict[tuple[int, int, int], PciFunctionState] = field(default_factory=dict)


class PciHost(Device):
    """Configuration mechanism #1 at ports 0xCF8-0xCFF, with the PIIX reset register at 0xCF9.

    Byte and word accesses to CONFIG_ADDRESS are not for this register (PCI 3.0, configuration mechanism #1):
    they float, but for 0xCF9. Absent functions read all ones. `on_reset` is called when a write to 0xCF9
    raises its CPU-reset bit.
    """

    name = "pci_host"

    def __init__(self, on_reset: Callable[[], None] | None = None) -> None:
        self._on_reset = on_reset
        self._functions: dict[tuple[int, int, int], PciFunction] = {}
        self._router: Piix3Isa | None = None
        self._own = PciHostState()

    @property
    def state(self) -> PciHostState:
        """The host's registers and the states of all functions."""
        self._own.functions = {place: f.state for place, f in self._functions.items()}
        return self._own

    @state.setter
    def state(self, value: PciHostState) -> None:
        self._own = value
        for place, function in self._functions.items():
            if place in value.functions:
                function.state = value.functions[place]

    def add(self, function: PciFunction, device: int, number: int = 0) -> None:
        """Put a function at bus 0, `device` 0-31, function `number` 0-7.

        Function 0 of a device with several gets the multi-function bit. A Piix3Isa becomes the interrupt
        router. DeviceError if the place is out of range or taken.
        """
        place = (0, device, number)
        if not (0 <= device < 32 and 0 <= number < 8):
            raise DeviceError(f"{function.name}: PCI device {device:#x}.{number} is outside 0-31 and 0-7")
        taken = self._functions.get(place)
        if taken is not None:
            raise DeviceError(
                f"{function.name}: PCI device {device:#x}.{number} is already {taken.name}; choose another"
            )
        self._functions[place] = function
        function.on_intx = lambda level: self._set_intx(device, number, function.interrupt_pin, level)
        if isinstance(function, Piix3Isa):
            self._router = function
        first = self._functions.get((0, device, 0))
        if first is not None and any(d == device and n for _, d, n in self._functions):
            first.set_multi_function()

    def function(self, device: int, number: int = 0, bus: int = 0) -> PciFunction | None:
        """The function at an address, or None."""
        return self._functions.get((bus, device, number))

    def read(self, offset: int, width: int) -> int:
        """CONFIG_ADDRESS as a dword, CONFIG_DATA in any width, the reset register as a byte."""
        match offset:
            case _ if offset >= HostPort.CONFIG_DATA and offset + width <= HostPort.COUNT:
                function, register = self._selected()
                if function is None:
                    return ones(width)
                return function.config_read(register + offset - HostPort.CONFIG_DATA, width)
            case HostPort.CONFIG_ADDRESS if width == 4:
                return self._own.config_address
            case HostPort.RESET_CONTROL if width == 1:
                return self._own.reset_control
            case _ if width > 1 and HostPort.CONFIG_DATA < offset + width <= HostPort.COUNT:
                # from one register into the next
                return sum(self.read(offset + i, 1) << 8 * i for i in range(width))
            case _:
                return ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """CONFIG_ADDRESS as a dword, CONFIG_DATA in any width, the reset register as a byte."""
        match offset:
            case _ if offset >= HostPort.CONFIG_DATA and offset + width <= HostPort.COUNT:
                function, register = self._selected()
                if function is not None:
                    function.config_write(register + offset - HostPort.CONFIG_DATA, width, value)
            case HostPort.CONFIG_ADDRESS if width == 4:
                self._own.config_address = value & CONFIG_ADDRESS_WRITABLE
            case HostPort.RESET_CONTROL if width == 1:
                self._write_reset_control(value)
            case _ if width > 1 and HostPort.CONFIG_DATA < offset + width <= HostPort.COUNT:
                for i in range(width):
                    self.write(offset + i, 1, value >> 8 * i & 0xFF)
            case _:
                pass

    def reset(self) -> None:
        """Host registers and every function, by ascending address."""
        self._own = PciHostState()
        for _, function in sorted(self._functions.items(), key=lambda item: item[0]):
            function.reset()

    def rearm(self) -> None:
        """Every function tells its BARs and its INTx level again."""
        for _, function in sorted(self._functions.items(), key=lambda item: item[0]):
            function.rearm()

    def _selected(self) -> tuple[PciFunction | None, int]:
        """The function that CONFIG_ADDRESS names, and its register (a multiple of 4)."""
        address = self._own.config_address
        if not address & CONFIG_ENABLE:
            return None, 0
        place = (address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7)
        return self._functions.get(place), address & 0xFC

    def _write_reset_control(self, value: int) -> None:
        rising = value & RESET_CPU and not self._own.reset_control & RESET_CPU
        self._own.reset_control = value & (RESET_SYSTEM | RESET_CPU)
        if rising and self._on_reset is not None:
            self._on_reset()  # Quirk: soft and hard reset are one: the whole machine

    def _set_intx(self, device: int, number: int, pin: int, level: bool) -> None:
        """INTx pins are swizzled over the four PIRQs by slot, so that slots share them evenly."""
        if pin and self._router is not None:
            self._router.set_pirq((device - 1 + pin - 1) % PIIX_PIRQ_COUNT, device << 3 | number, level)


def i440fx_board(
    irq: Callable[[int], IrqLine] | None = None,
    on_reset: Callable[[], None] | None = None,
    *,
    ide: bool = False,
    power_management: bool = False,
    on_pm_base: BarMove | None = None,
) -> PciHost:
    """A host with the 440FX at 0.0 and the PIIX3 at 1.0; on wish its IDE at 1.1 and the PIIX4's PM at 1.3."""
    host = PciHost(on_reset)
    host.add(I440fx(), 0)
    host.add(Piix3Isa(irq), 1)
    if ide:
        host.add(Piix3Ide(), 1, 1)
    if power_management:
        host.add(Piix4Pm(on_pm_base), 1, 3)
    return host
