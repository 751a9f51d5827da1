"""8259A interrupt controllers: master and slave of a PC, cascaded on IR2, with the ELCR. Not an APIC.

Sources: 8259A Programmable Interrupt Controller, sections "Initialization Command Words", "Operation Command
Words", "Fully Nested Mode" and what follows; 82371AB (PIIX4), section "Interrupt Controller", for the ELCR.

An edge-triggered input must stay high until the INTA cycle, as on the chip: a line that falls earlier takes
its request back, so `IrqLine.pulse()` into this controller is not an interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from devices.base import DeviceError
from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offsets: each chip has A0 = 0 and A0 = 1, then the two edge/level control registers."""

    MASTER_COMMAND = 0  # port 0x20: ICW1, OCW2, OCW3; reads IRR, ISR or the poll byte
    MASTER_DATA = 1  # port 0x21: ICW2-4, OCW1; reads IMR
    SLAVE_COMMAND = 2  # port 0xA0
    SLAVE_DATA = 3  # port 0xA1
    MASTER_ELCR = 4  # port 0x4D0
    SLAVE_ELCR = 5  # port 0x4D1


CASCADE_INPUT = 2  # where the PC wires the slave's INT pin
SPURIOUS_INPUT = 7  # the level an INTA cycle without a request reports
INPUTS = 16

ICW1_NEED_ICW4 = 0x01
ICW1_SINGLE = 0x02
ICW1_LEVEL = 0x08
ICW1_SELECT = 0x10
ICW2_BASE = 0xF8
ICW4_AUTO_EOI = 0x02
ICW4_SPECIAL_FULLY_NESTED = 0x10

OCW2_LEVEL = 0x07
OCW3_SELECT = 0x08
OCW3_READ_ISR = 0x01
OCW3_READ = 0x02
OCW3_POLL = 0x04
OCW3_SPECIAL_MASK = 0x20
OCW3_ENABLE_SPECIAL_MASK = 0x40

POLL_REQUEST = 0x80  # bit 7 of the poll byte: the low bits name a level

# IRQ 0, 1, 2, 8 and 13 belong to motherboard chips and are always edge-triggered (PIIX4, "ELCR1", "ELCR2").
MASTER_ELCR_WRITABLE = 0xF8
SLAVE_ELCR_WRITABLE = 0xDE


@dataclass(slots=True)
class Chip:
    """One 8259A: registers and input levels. Bit n of every mask is IRn."""

    lines: int = 0  # input levels
    irr: int = 0
    isr: int = 0
    imr: int = 0
    elcr: int = 0
    base: int = 0  # ICW2: vector bits 7:3
    next_icw: int = 0  # 2, 3 or 4 while an initialisation sequence runs
    initialised: bool = False
    single: bool = False
    need_icw4: bool = False
    level_triggered: bool = False  # ICW1 LTIM: all inputs, whatever the ELCR says
    auto_eoi: bool = False
    rotate_in_auto_eoi: bool = False
    special_fully_nested: bool = False
    special_mask: bool = False
    read_isr: bool = False
    poll: bool = False
    lowest: int = 7  # the input of lowest priority; the next one up is the highest

    def level_mask(self) -> int:
        """The inputs that are level-triggered."""
        return 0xFF if self.level_triggered else self.elcr

    def set_line(self, number: int, level: bool) -> None:
        """Drive input `number`; a rising edge or a high level requests, a fall takes the request back."""
        bit = 1 << number
        if level:
            if not self.lines & bit:
                self.lines |= bit
                self.irr |= bit
        else:
            self.lines &= ~bit
            self.irr &= ~bit

    def set_elcr(self, value: int) -> None:
        """Choose level (1) or edge (0) for each input; a level input requests as long as it is high."""
        self.elcr = value
        levels = self.level_mask()
        self.irr = self.irr & ~levels | self.lines & levels

    def priority(self, number: int) -> int:
        """0 (highest) to 7 of input `number` under the present rotation."""
        return (number - self.lowest - 1) & 7

    def highest(self, mask: int) -> int | None:
        """The input of highest priority in `mask`, or None."""
        if not mask:
            return None
        number = (self.lowest + 1) & 7
        while not mask >> number & 1:
            number = (number + 1) & 7
        return number

    def request(self, nested_input: int | None) -> int | None:
        """The input the INT pin stands for, or None. `nested_input`: IR2 of a master with a slave, else None.

        In special fully nested mode a slave may interrupt again while its own input is in service.
        """
        if not self.initialised or self.next_icw:
            return None
        number = self.highest(self.irr & ~self.imr)
        if number is None:
            return None
        blocking = self.isr
        if self.special_mask:
            blocking &= ~self.imr  # a masked level in service holds nothing back
        in_service = self.highest(blocking)
        if in_service is None or self.priority(number) < self.priority(in_service):
            return number
        if self.special_fully_nested and number == in_service == nested_input:
            return number
        return None

    def take(self, number: int) -> None:
        """The INTA cycle: `number` goes from request to service."""
        bit = 1 << number
        self.irr &= ~bit | self.level_mask()  # a level request lasts as long as its line
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_in_auto_eoi:
            self.lowest = number

    def initialise(self, icw1: int) -> None:
        """ICW1: the sequence starts, and the chip forgets what the datasheet lists."""
        self.single = bool(icw1 & ICW1_SINGLE)
        self.need_icw4 = bool(icw1 & ICW1_NEED_ICW4)
        self.level_triggered = bool(icw1 & ICW1_LEVEL)
        self.irr = self.lines & self.level_mask()  # edge sense cleared: a line must fall and rise again
        self.isr = 0
        self.imr = 0
        self.lowest = 7
        self.special_mask = False
        self.read_isr = False
        self.poll = False
        # Quirk: INTA is answered as in 8086 mode even if ICW4 (or its absence) asks for MCS-80 mode.
        self.auto_eoi = False
        self.rotate_in_auto_eoi = False
        self.special_fully_nested = False
        self.initialised = False
        self.next_icw = 2

    def write_data(self, value: int) -> None:
        """A0 = 1: the next ICW of a running sequence, else OCW1."""
        match self.next_icw:
            case 2:
                self.base = value & ICW2_BASE
                self._expect(4 if self.single else 3)
            case 3:
                # Quirk: ICW3 is taken but not consulted: the slave sits on IR2 and answers to nothing else.
                self._expect(4)
            case 4:
                self.auto_eoi = bool(value & ICW4_AUTO_EOI)
                self.special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
                self._expect(0)
            case _:
                self.imr = value

    def _expect(self, icw: int) -> None:
        self.next_icw = 0 if icw == 4 and not self.need_icw4 else icw
        if not self.next_icw:
            self.initialised = True

    def write_command(self, value: int) -> None:
        """A0 = 0: ICW1, OCW3 or OCW2, told apart by bits 4 and 3."""
        if value & ICW1_SELECT:
            self.initialise(value)
        elif value & OCW3_SELECT:
            if value & OCW3_ENABLE_SPECIAL_MASK:
                self.special_mask = bool(value & OCW3_SPECIAL_MASK)
            if value & OCW3_POLL:
                self.poll = True
            elif value & OCW3_READ:
                self.read_isr = bool(value & OCW3_READ_ISR)
        else:
            self._end_of_interrupt(value >> 5, value & OCW2_LEVEL)

    def _end_of_interrupt(self, command: int, level: int) -> None:
        match command:  # OCW2 bits R, SL, EOI
            case 0b000:
                self.rotate_in_auto_eoi = False
            case 0b100:
                self.rotate_in_auto_eoi = True
            case 0b001 | 0b101:
                # Special mask mode hides a masked level from the non-specific EOI.
                in_service = self.highest(self.isr & ~self.imr if self.special_mask else self.isr)
                if in_service is not None:
                    self.isr &= ~(1 << in_service)
                    if command == 0b101:
                        self.lowest = in_service
            case 0b011:
                self.isr &= ~(1 << level)
            case 0b111:
                self.isr &= ~(1 << level)
                self.lowest = level
            case 0b110:
                self.lowest = level
            case _:  # 0b010: no operation
                pass

    def read_command(self) -> int:
        """A0 = 0 without a poll: IRR or ISR, as the last OCW3 chose."""
        return self.isr if self.read_isr else self.irr


@dataclass(slots=True)
class PicState:
    """Both chips."""

    master: Chip = field(default_factory=Chip)
    slave: Chip = field(default_factory=Chip)


class Pic8259(ByteDevice):
    """The PC's pair of 8259As. `output(level)` is the master's INT pin, called when the level changes.

    `set_irq` is the sink of the board's IrqLines; `acknowledge` is the CPU's INTA cycle.
    """

    name = "pic8259"
    window_starts = (Offset.SLAVE_COMMAND, Offset.MASTER_ELCR)
    state: PicState

    def __init__(self, output: Callable[[bool], None]) -> None:
        self._output = output
        self._int_level = False
        self.state = PicState()

    @property
    def int_level(self) -> bool:
        """The level of the master's INT pin."""
        return self._int_level

    def set_irq(self, number: int, level: bool) -> None:
        """Drive input `number` (0..15 without 2); DeviceError for a wire the PC does not have."""
        if not 0 <= number < INPUTS or number == CASCADE_INPUT:
            raise DeviceError(
                f"pic8259: no input {number} (2 is the cascade, 15 the last); wire the device to another IRQ"
            )
        if number < 8:
            self.state.master.set_line(number, level)
        else:
            self.state.slave.set_line(number - 8, level)
        self._update()

    def acknowledge(self) -> int:
        """The INTA cycle: the vector (0..255) of the highest request, now in service.

        Without a request it is the spurious vector, IR7 of the master (or of the slave, whose master input
        then is in service all the same), and no bit of that chip's ISR is set.
        """
        master, slave = self.state.master, self.state.slave
        number = master.request(self._nested_input())
        if number is None:
            return master.base | SPURIOUS_INPUT
        master.take(number)
        if number != CASCADE_INPUT or master.single:
            self._update()
            return master.base | number
        slave_number = slave.request(None)
        if slave_number is not None:
            slave.take(slave_number)
        self._end_slave_cycle()
        return slave.base | (SPURIOUS_INPUT if slave_number is None else slave_number)

    def read_byte(self, offset: int) -> int:
        """IRR, ISR, IMR or ELCR; the first read after a poll command is an INTA cycle of that chip."""
        master, slave = self.state.master, self.state.slave
        match offset:
            case Offset.MASTER_COMMAND:
                return self._poll(master) if master.poll else master.read_command()
            case Offset.MASTER_DATA:
                return self._poll(master) if master.poll else master.imr
            case Offset.SLAVE_COMMAND:
                return self._poll(slave) if slave.poll else slave.read_command()
            case Offset.SLAVE_DATA:
                return self._poll(slave) if slave.poll else slave.imr
            case Offset.MASTER_ELCR:
                return master.elcr
            case Offset.SLAVE_ELCR:
                return slave.elcr
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """ICW1-4, OCW1-3 or ELCR."""
        master, slave = self.state.master, self.state.slave
        match offset:
            case Offset.MASTER_COMMAND:
                master.write_command(value)
            case Offset.MASTER_DATA:
                master.write_data(value)
            case Offset.SLAVE_COMMAND:
                slave.write_command(value)
            case Offset.SLAVE_DATA:
                slave.write_data(value)
            case Offset.MASTER_ELCR:
                master.set_elcr(value & MASTER_ELCR_WRITABLE)
            case Offset.SLAVE_ELCR:
                slave.set_elcr(value & SLAVE_ELCR_WRITABLE)
            case _:
                return
        self._update()

    def reset(self) -> None:
        """Power-on: no interrupt until ICW1 and its successors come. The input wires keep their levels."""
        old = self.state
        self.state = PicState(
            Chip(lines=old.master.lines & ~(1 << CASCADE_INPUT)), Chip(lines=old.slave.lines)
        )
        self._update()

    def rearm(self) -> None:
        """Drive the INT pin again, whether or not it changed."""
        self._update()
        self._output(self._int_level)

    def _nested_input(self) -> int | None:
        return None if self.state.master.single else CASCADE_INPUT

    def _poll(self, chip: Chip) -> int:
        chip.poll = False
        number = chip.request(self._nested_input() if chip is self.state.master else None)
        if number is None:
            return 0
        chip.take(number)
        if chip is self.state.slave:
            self._end_slave_cycle()
        else:
            self._update()
        return POLL_REQUEST | number

    def _end_slave_cycle(self) -> None:
        """INTA takes the slave's INT pin down; a further request raises it again, a new edge on IR2."""
        self.state.master.set_line(CASCADE_INPUT, False)
        self._update()

    def _update(self) -> None:
        """From the slave's requests to IR2 to the master's INT pin."""
        master, slave = self.state.master, self.state.slave
        master.set_line(CASCADE_INPUT, slave.request(None) is not None)
        level = master.request(self._nested_input()) is not None
        if level != self._int_level:
            self._int_level = level
            self._output(level)
