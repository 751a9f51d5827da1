"""The PC board: which chip sits at which address and which wire runs where. No chip is defined here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from devices.acpi_pm import AcpiPm
from devices.base import Clock, Device, GuestMemory, IrqLine
from devices.block import BlockBackend
from devices.bus import BusError, BusKind, Window
from devices.coprocessor_error import CoprocessorError
from devices.debug_console import DebugConsole
from devices.debug_exit import DebugExit
from devices.fw_cfg import FwCfg
from devices.i8042 import I8042
from devices.ide import AtaDisk, IdeChannel
from devices.io_apic import IoApic, IoApicMessage
from devices.local_apic import IpiMessage, LocalApic, LocalApicConfig, LocalApicMsrs, LocalApicWires
from devices.manager import AxVmDevices
from devices.pci import I440fx, PciHost, Piix3Ide, Piix3Isa, Piix4Pm
from devices.pic8259 import Pic8259
from devices.pit8254 import Pit8254
from devices.port92 import Port92
from devices.post_code import PostCode
from devices.rtc_cmos import DEFAULT_START, CmosSetup, RtcCmos
from devices.uart16550 import Uart16550
from devices.vga_text import VgaText
from pysim_vm import layout

IDE_PORT = 0x1F0  # primary ATA channel: command block
IDE_CONTROL_PORT = 0x3F6  # its control block
IDE_IRQ = 14


@dataclass(frozen=True, slots=True)
class BoardOptions:
    """What varies from board to board; sizes in bytes, frequencies in Hz."""

    ram_below_4g: int
    ram_above_4g: int = 0
    apic: bool = False
    x2apic: bool = False
    tsc_deadline: bool = False
    pci: bool = True
    vga: bool = True
    i8042: bool = True
    acpi: bool = True
    tsc_hz: int = 1_000_000_000
    rtc_start: datetime = DEFAULT_START
    boot_order: str = "ca"
    debug_exit_port: int = layout.DEBUG_EXIT_PORT
    disks: tuple[BlockBackend, ...] = ()


@dataclass(frozen=True, slots=True)
class BoardHooks:
    """What the board needs from the machine around it."""

    clock: Clock
    memory: GuestMemory
    console: Callable[[bytes], None]
    debug_console: Callable[[bytes], None]
    set_intr: Callable[[bool], None]
    set_nmi: Callable[[], None]
    on_a20: Callable[[bool], None]
    on_reset: Callable[[], None]
    on_poweroff: Callable[[], None]
    on_exit: Callable[[int], None]
    send_ipi: Callable[[IpiMessage], None]
    on_sleep: Callable[[int], None]
    on_line: Callable[[int, bool], None] | None = None  # hears every interrupt line's changes


@dataclass(slots=True)
class PcBoard:
    """The chips of one PC, by name; absent ones are None."""

    pic: Pic8259
    pit: Pit8254
    rtc: RtcCmos
    com1: Uart16550
    post: PostCode
    fw_cfg: FwCfg
    coprocessor_error: CoprocessorError
    i8042: I8042 | None = None
    vga: VgaText | None = None
    acpi: AcpiPm | None = None
    pci: PciHost | None = None
    ide: IdeChannel | None = None
    local_apic: LocalApic | None = None
    io_apic: IoApic | None = None
    lines: dict[int, IrqLine] = field(default_factory=dict)
    line: Callable[[int], IrqLine] = lambda number: IrqLine(None, number)

    def acknowledge(self) -> int:
        """The CPU's INTA cycle."""
        return self.pic.acknowledge() if self.local_apic is None else self.local_apic.acknowledge()

    def may_send_nmi(self) -> bool:
        """True if some chip's interrupt is wired, by the guest's settings, to NMI."""
        if self.local_apic is None or self.io_apic is None:
            return False
        return self.local_apic.lint0_sends_nmi() or self.io_apic.may_send_nmi()


class ApicBaseMsr(Device):
    """IA32_APIC_BASE: moves and switches the local APIC's page."""

    name = "local_apic_base"

    def __init__(self, apic: LocalApic, move: Callable[[int | None], bool]) -> None:
        self._apic = apic
        self._move = move
        self.follow()

    def follow(self) -> None:
        """Put the page where the register says."""
        apic = self._apic
        self._move(apic.base if apic.enabled and not apic.x2apic_mode else None)

    def read(self, offset: int, width: int) -> int:
        """RDMSR."""
        return self._apic.read_apic_base()

    def write(self, offset: int, width: int, value: int) -> None:
        """WRMSR."""
        self._apic.write_apic_base(value)
        self.follow()

    def reset(self) -> None:
        """The page goes back to its place."""
        self.follow()


class TscDeadlineMsr(Device):
    """IA32_TSC_DEADLINE of the local APIC timer."""

    name = "tsc_deadline"

    def __init__(self, apic: LocalApic) -> None:
        self._apic = apic

    def read(self, offset: int, width: int) -> int:
        """RDMSR."""
        return self._apic.tsc_deadline()

    def write(self, offset: int, width: int, value: int) -> None:
        """WRMSR."""
        self._apic.set_tsc_deadline(value)


def build_pc(devices: AxVmDevices, options: BoardOptions, hooks: BoardHooks) -> PcBoard:
    """Put a PC's chips on the buses of `devices` and connect them."""
    lines: dict[int, IrqLine] = {}
    sinks: list[Callable[[int, bool], None]] = []

    def drive(number: int, level: bool) -> None:
        """An ISA wire ends at every interrupt controller."""
        if hooks.on_line is not None:
            hooks.on_line(number, level)
        for sink in sinks:
            sink(number, level)

    def line(number: int) -> IrqLine:
        """The wire of ISA interrupt `number`."""
        if number not in lines:
            lines[number] = IrqLine(drive, number)
        return lines[number]

    local_apic: LocalApic | None = None
    if options.apic:
        pic = Pic8259(lambda level: local_apic.set_lint0(level) if local_apic is not None else None)
    else:
        pic = Pic8259(hooks.set_intr)
    sinks.append(pic.set_irq)

    def port(base: int, length: int, offset: int = 0) -> Window:
        return Window(BusKind.PORT, base, length, offset)

    devices.add_device(
        pic,
        (
            port(layout.PIC_MASTER_PORT, 2),
            port(layout.PIC_SLAVE_PORT, 2, 2),
            port(layout.PIC_MASTER_ELCR_PORT, 2, 4),
        ),
    )
    pit = Pit8254(line(layout.PIT_IRQ), hooks.clock)
    devices.add_device(pit, (port(layout.PIT_PORT, 4), port(layout.SYSTEM_CONTROL_B_PORT, 1, 0x21)))
    rtc = RtcCmos(
        line(layout.RTC_IRQ),
        hooks.clock,
        options.rtc_start,
        CmosSetup(options.ram_below_4g, options.ram_above_4g, options.boot_order),
    )
    devices.add_port_dev(rtc, layout.RTC_PORT, layout.RTC_PORT_COUNT)
    com1 = Uart16550(line(layout.COM1_IRQ), hooks.console, hooks.clock)
    devices.add_port_dev(com1, layout.COM1_PORT, layout.UART_PORT_COUNT)
    post = PostCode()
    devices.add_port_dev(post, layout.POST_PORT, 1)
    devices.add_port_dev(DebugConsole(hooks.debug_console), layout.DEBUGCON_PORT, 1)
    devices.add_port_dev(DebugConsole(hooks.console), layout.E9_PORT, 1)
    devices.add_port_dev(DebugExit(hooks.on_exit), options.debug_exit_port, layout.DEBUG_EXIT_PORT_COUNT)
    fw_cfg = FwCfg(hooks.memory)
    fw_cfg.add_standard_items(options.ram_below_4g + options.ram_above_4g, graphic=options.vga)
    devices.add_device(
        fw_cfg,
        (
            port(layout.FW_CFG_PORT, layout.FW_CFG_PORT_COUNT),
            port(layout.FW_CFG_DMA_PORT, layout.FW_CFG_DMA_PORT_COUNT, 4),
        ),
    )
    fpu_error = CoprocessorError(line(layout.COPROCESSOR_ERROR_IRQ))
    devices.add_port_dev(fpu_error, layout.COPROCESSOR_ERROR_PORT, 1)
    board = PcBoard(pic, pit, rtc, com1, post, fw_cfg, fpu_error, lines=lines, line=line)
    _add_keyboard(devices, options, hooks, board, line)
    for number, owner in ((layout.PIT_IRQ, pit), (layout.RTC_IRQ, rtc), (layout.COM1_IRQ, com1),
                          (layout.COPROCESSOR_ERROR_IRQ, fpu_error)):  # fmt: skip
        devices.claim_irq(number, owner)
    if options.vga:
        board.vga = VgaText(hooks.clock)
        devices.add_port_dev(board.vga, layout.VGA_PORT, layout.VGA_PORT_COUNT)
        devices.add_mmio_dev(board.vga.memory(), layout.VGA_WINDOW_BASE, layout.VGA_WINDOW_SIZE)
    if options.acpi:
        board.acpi = AcpiPm(
            line(layout.ACPI_SCI_IRQ), hooks.clock, hooks.on_poweroff, on_sleep=hooks.on_sleep
        )
        devices.add_port_dev(board.acpi, layout.ACPI_PM_BASE, layout.ACPI_PM_PORT_COUNT)
        devices.claim_irq(layout.ACPI_SCI_IRQ, board.acpi, shared=True)
    if options.pci:
        board.pci = _build_pci(devices, hooks, board, options)
    if options.disks:
        drives = [AtaDisk(disk) for disk in options.disks]
        board.ide = IdeChannel(drives[0], drives[1] if len(drives) > 1 else None, line(IDE_IRQ))
        devices.add_device(board.ide, (port(IDE_PORT, 8), port(IDE_CONTROL_PORT, 1, 0x206)))
        devices.claim_irq(IDE_IRQ, board.ide)
    if options.apic:
        local_apic = _build_apics(devices, options, hooks, board)
        assert board.io_apic is not None
        io_apic = board.io_apic
        sinks.append(lambda n, level: io_apic.set_irq(layout.PIT_IO_APIC_PIN if n == 0 else n, level))
    return board


def _add_keyboard(
    devices: AxVmDevices,
    options: BoardOptions,
    hooks: BoardHooks,
    board: PcBoard,
    line: Callable[[int], IrqLine],
) -> None:
    """The keyboard controller and port 0x92, which share the A20 gate."""
    gate = [True]  # open after power-on, as on boards without a BIOS that closes it

    def on_a20(enabled: bool) -> None:
        gate[0] = enabled
        hooks.on_a20(enabled)

    if options.i8042:
        board.i8042 = I8042(
            line(layout.KEYBOARD_IRQ),
            line(layout.MOUSE_IRQ),
            hooks.clock,
            on_a20,
            hooks.on_reset,
            lambda: gate[0],
        )
        windows = (
            Window(BusKind.PORT, layout.I8042_DATA_PORT, 1, 0),
            Window(BusKind.PORT, layout.I8042_COMMAND_PORT, 1, 4),
        )
        devices.add_device(board.i8042, windows)
        devices.claim_irq(layout.KEYBOARD_IRQ, board.i8042)
        devices.claim_irq(layout.MOUSE_IRQ, board.i8042)
    devices.add_port_dev(Port92(on_a20, hooks.on_reset, lambda: gate[0]), layout.SYSTEM_CONTROL_A_PORT, 1)


def _build_pci(devices: AxVmDevices, hooks: BoardHooks, board: PcBoard, options: BoardOptions) -> PciHost:
    pci = PciHost(hooks.on_reset)
    pci.add(I440fx(), 0)
    pci.add(Piix3Isa(board.line), 1)
    if options.disks:
        pci.add(Piix3Ide(), 1, 1)
    if board.acpi is not None:
        pci.add(Piix4Pm(_follow_pm_base(devices, board.acpi)), 1, 3)
    devices.add_port_dev(pci, layout.PCI_CONFIG_ADDRESS_PORT, 8)
    return pci


def _follow_pm_base(devices: AxVmDevices, acpi: AcpiPm) -> Callable[[int | None], object]:
    """A second window on the power-management ports, where firmware puts them; 0x600 always answers."""

    def follow(base: int | None) -> None:
        for entry in devices.port:
            if entry.device is acpi and entry.base != layout.ACPI_PM_BASE:
                devices.port.remove(acpi, entry.base)
        if base is not None and base != layout.ACPI_PM_BASE:
            with suppress(BusError):  # the guest chose a base where another chip sits
                devices.port.add(acpi, base, layout.ACPI_PM_PORT_COUNT)

    return follow


def _build_apics(devices: AxVmDevices, options: BoardOptions, hooks: BoardHooks, board: PcBoard) -> LocalApic:
    """One CPU's local APIC, its MSRs, and the I/O APIC."""
    io_apic: IoApic
    wires = LocalApicWires(
        send_ipi=hooks.send_ipi,
        on_eoi=lambda vector: io_apic.eoi(vector),  # noqa: PLW0108  (made below)
        on_nmi=hooks.set_nmi,
        acknowledge_extint=board.pic.acknowledge,
    )
    config = LocalApicConfig(
        physical_bits=48, tsc_hz=options.tsc_hz, x2apic=options.x2apic, tsc_deadline=options.tsc_deadline
    )
    apic = LocalApic(hooks.clock, hooks.set_intr, config, wires)

    def deliver(message: IoApicMessage) -> bool:
        if not apic.matches(message.destination, message.logical):
            return False
        return apic.receive(message.for_local_apics())

    io_apic = IoApic(deliver)
    board.local_apic, board.io_apic = apic, io_apic
    apic.enter_virtual_wire_mode()  # as firmware leaves it: guests booted without one see the 8259
    move = devices.movable_window(apic, BusKind.MMIO, layout.LOCAL_APIC_SIZE)
    devices.add_sys_reg_dev(ApicBaseMsr(apic, move), 0x1B, 1)
    if options.x2apic:
        devices.add_sys_reg_dev(LocalApicMsrs(apic), 0x800, 0x100)
    if options.tsc_deadline:
        devices.add_sys_reg_dev(TscDeadlineMsr(apic), 0x6E0, 1)
    devices.add_mmio_dev(io_apic, layout.IO_APIC_BASE, layout.IO_APIC_SIZE)
    return apic


def ram_split(size: int) -> tuple[int, int]:
    """RAM below and above 4 GiB of a PC with `size` bytes: the PCI hole starts at 3 GiB."""
    below = min(size, layout.PCI_HOLE_BASE)
    return below, size - below
