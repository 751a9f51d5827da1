"""16550A UART (a COM port): registers, FIFOs, interrupts, loopback. Not the terminal behind it.

Source: PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs, sections "Registers", "FIFO Interrupt
Mode Operation" and "FIFO Polled Mode Operation". OUT2 gates the interrupt pin, as PC boards wire it.

Host input waits in a backlog outside the chip and enters the receiver FIFO as the guest drains it, so a fast
host never causes an overrun. What the guest itself discards (a FIFO reset) is gone, as on the chip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from devices.base import Clock, IrqLine
from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offsets; DLAB (LCR bit 7) turns the first two into the divisor latch."""

    RBR_THR = 0  # receiver buffer when read, transmitter holding when written; DLL under DLAB
    IER = 1  # interrupt enable; DLM under DLAB
    IIR_FCR = 2  # interrupt identification when read, FIFO control when written
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


IER_ERBFI = 0x01  # received data available, character timeout
IER_ETBEI = 0x02  # transmitter holding register empty
IER_ELSI = 0x04  # receiver line status
IER_EDSSI = 0x08  # modem status
IER_WRITABLE = 0x0F  # the upper half is always zero: Linux tells a 16550A from a 16750 by it

IIR_NONE = 0x01
IIR_MODEM_STATUS = 0x00
IIR_THR_EMPTY = 0x02
IIR_RECEIVED_DATA = 0x04
IIR_LINE_STATUS = 0x06
IIR_CHARACTER_TIMEOUT = 0x0C
IIR_FIFOS_ENABLED = 0xC0  # both bits: a working FIFO, which the first 16550 did not have

FCR_ENABLE = 0x01
FCR_RESET_RECEIVER = 0x02
FCR_DMA_MODE = 0x08
FCR_TRIGGER_SHIFT = 6
FCR_KEPT = 0xC9  # enable, DMA mode, trigger; the reset bits clear themselves
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_WORD_LENGTH = 0x03
LCR_TWO_STOP_BITS = 0x04
LCR_PARITY = 0x08
LCR_BREAK = 0x40
LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10
MCR_WRITABLE = 0x1F

LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_PARITY = 0x04
LSR_FRAMING = 0x08
LSR_BREAK = 0x10
LSR_THR_EMPTY = 0x20
LSR_TRANSMITTER_EMPTY = 0x40
LSR_FIFO_ERROR = 0x80
LSR_CHARACTER_ERRORS = LSR_PARITY | LSR_FRAMING | LSR_BREAK

MSR_DELTA_CTS = 0x01
MSR_DELTA_DSR = 0x02
MSR_TRAILING_RI = 0x04
MSR_DELTA_DCD = 0x08
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_DELTAS = 0x0F

FIFO_BYTES = 16
INPUT_CLOCK_HZ = 1_843_200  # the PC's crystal; 16 clocks and the divisor make one bit
RESET_DIVISOR = 12  # 9600 baud; the chip leaves the latch undefined
TIMEOUT_CHARACTERS = 4  # "FIFO Interrupt Mode Operation"
BACKLOG_BYTES = 1 << 20  # host input that may wait; `receive` takes no more than this

_ONE_BYTE = tuple(bytes((value,)) for value in range(256))


@dataclass(slots=True)
class UartState:
    """Everything the chip remembers. Receiver entries are the character plus its LSR error bits << 8."""

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = RESET_DIVISOR
    modem_lines: int = MSR_CTS | MSR_DSR | MSR_DCD  # what the cable drives: a terminal that is ready
    msr: int = MSR_CTS | MSR_DSR | MSR_DCD
    line_errors: int = 0  # OE, PE, FE, BI as LSR shows them
    rx: deque[int] = field(default_factory=deque)
    rx_errors: int = 0  # entries in rx that still carry error bits
    backlog: deque[int] = field(default_factory=deque)
    thre_pending: bool = False
    timeout_ns: int | None = None  # virtual time of the character timeout, while one is running or due


class Uart16550(ByteDevice):
    """One 16550A. `output` gets each transmitted byte; `receive` takes bytes from the host.

    `irq` is the INTR pin behind the OUT2 gate, `clock` times the character timeout.
    """

    name = "uart16550"
    state: UartState

    def __init__(self, irq: IrqLine, output: Callable[[bytes], None], clock: Clock) -> None:
        self.irq = irq
        self._output = output
        self._clock = clock
        self._timer: int | None = None  # runs only for the interrupt; may ring early, never late
        self._timer_ns = 0
        self.state = UartState()

    # ------------------------------------------------------------------ host side

    def receive(self, data: bytes) -> int:
        """Bytes from the host, in order; returns how many were taken (fewer only if the backlog is full)."""
        state = self.state
        taken = min(len(data), BACKLOG_BYTES - len(state.backlog))
        state.backlog.extend(data[:taken])
        self._refill()
        self._update()
        return taken

    def receive_break(self) -> bool:
        """A break condition from the host: one zero character with BI; False if the backlog is full."""
        state = self.state
        if len(state.backlog) >= BACKLOG_BYTES:
            return False
        state.backlog.append(LSR_BREAK << 8)
        self._refill()
        self._update()
        return True

    def set_modem_lines(self, lines: int) -> None:
        """What the cable drives: any of MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD."""
        self.state.modem_lines = lines & ~MSR_DELTAS & 0xFF
        self._sense_modem()
        self._update()

    # ------------------------------------------------------------------ guest side

    def read_byte(self, offset: int) -> int:
        """A register read; RBR, IIR, LSR and MSR have the side effects of the datasheet."""
        state = self.state
        match offset:
            case Offset.LSR:  # first: a polling console reads nothing else
                return self._read_lsr()
            case Offset.RBR_THR:
                return state.divisor & 0xFF if state.lcr & LCR_DLAB else self._read_rbr()
            case Offset.IER:
                return state.divisor >> 8 if state.lcr & LCR_DLAB else state.ier
            case Offset.IIR_FCR:
                identity = self._identity()
                if identity == IIR_THR_EMPTY:
                    state.thre_pending = False
                    self._update()
                return identity | (IIR_FIFOS_ENABLED if state.fcr & FCR_ENABLE else 0)
            case Offset.LCR:
                return state.lcr
            case Offset.MCR:
                return state.mcr
            case Offset.MSR:
                msr = state.msr
                if msr & MSR_DELTAS:
                    state.msr = msr & ~MSR_DELTAS
                    self._update()
                return msr
            case Offset.SCR:
                return state.scr
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """A register write."""
        state = self.state
        match offset:
            case Offset.RBR_THR:
                if state.lcr & LCR_DLAB:
                    state.divisor = state.divisor & 0xFF00 | value
                else:
                    self._transmit(value)
            case Offset.IER:
                if state.lcr & LCR_DLAB:
                    state.divisor = state.divisor & 0x00FF | value << 8
                else:
                    self._write_ier(value & IER_WRITABLE)
            case Offset.IIR_FCR:
                self._write_fcr(value)
            case Offset.LCR:
                started_break = value & ~state.lcr & LCR_BREAK
                state.lcr = value
                if started_break and state.mcr & MCR_LOOP:
                    self._loop_back(LSR_BREAK << 8)
                    self._update()
            case Offset.MCR:
                state.mcr = value & MCR_WRITABLE
                self._sense_modem()
                self._refill()
                self._update()
            case Offset.SCR:
                state.scr = value
            case _:  # LSR and MSR: the datasheet keeps their writes for factory testing
                pass

    def reset(self) -> None:
        """The MR pin. The cable's levels and the host bytes still on their way survive, being outside."""
        old = self.state
        self.state = UartState(modem_lines=old.modem_lines, msr=old.modem_lines, backlog=old.backlog)
        self._cancel_timer()
        self._refill()
        self._update()

    def rearm(self) -> None:
        """Schedule the character timeout and drive the interrupt line again."""
        self._cancel_timer()
        self._update()

    # ------------------------------------------------------------------ transmitter

    def _transmit(self, value: int) -> None:
        # Quirk: transmission takes no virtual time, so THRE and TEMT are always set.
        # Quirk: all eight bits go out whatever word length LCR asks for, since many guests never set it.
        state = self.state
        if state.ier & IER_ETBEI and state.thre_pending:
            state.thre_pending = (
                False  # the pin drops while THR is full: an edge-triggered PIC needs to see it
            )
            self._update()
        if state.mcr & MCR_LOOP:
            self._loop_back(value)
        elif not state.lcr & LCR_BREAK:  # a break holds the line low: what is sent meanwhile is lost
            self._output(_ONE_BYTE[value])
        if state.ier:
            state.thre_pending = True
            self._update()

    def _write_ier(self, value: int) -> None:
        state = self.state
        if value & ~state.ier & IER_ETBEI:
            state.thre_pending = True  # THR is empty: enabling the interrupt raises it at once
        state.ier = value
        self._update()

    # ------------------------------------------------------------------ receiver

    def _read_rbr(self) -> int:
        state = self.state
        if not state.rx:
            return 0
        value = state.rx.popleft() & 0xFF
        self._start_timeout()
        if state.rx:
            self._reveal_errors()
        else:
            self._update()  # the pin drops before the next host byte raises it: one edge for each refill
            self._refill()
        self._update()
        return value

    def _read_lsr(self) -> int:
        state = self.state
        value = LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY
        if state.rx:
            value |= LSR_DATA_READY
        if state.line_errors or state.rx_errors:
            value |= state.line_errors
            if state.fcr & FCR_ENABLE and (state.rx_errors or state.line_errors & LSR_CHARACTER_ERRORS):
                value |= LSR_FIFO_ERROR
            state.line_errors = 0
            self._update()
        return value

    def _write_fcr(self, value: int) -> None:
        state = self.state
        switched = (value ^ state.fcr) & FCR_ENABLE
        state.fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        if switched or (value & FCR_ENABLE and value & FCR_RESET_RECEIVER):
            state.rx.clear()
            state.rx_errors = 0
            state.timeout_ns = None
            self._refill()
        self._update()

    def _capacity(self) -> int:
        return FIFO_BYTES if self.state.fcr & FCR_ENABLE else 1

    def _refill(self) -> None:
        """Move host bytes into the receiver; loopback disconnects SIN, so they wait."""
        state = self.state
        if not state.backlog or state.mcr & MCR_LOOP:
            return
        room = self._capacity() - len(state.rx)
        if room <= 0:
            return
        while room and state.backlog:
            self._push(state.backlog.popleft())
            room -= 1
        self._reveal_errors()
        if not self._timed_out():
            self._start_timeout()

    def _loop_back(self, entry: int) -> None:
        """A character from the transmitter: here, and only here, a slow guest can overrun the receiver."""
        state = self.state
        if len(state.rx) >= self._capacity():
            state.line_errors |= LSR_OVERRUN
            if state.fcr & FCR_ENABLE:
                return  # the character in the shift register is lost, the FIFO keeps its contents
            state.rx.clear()
            state.rx_errors = 0
        self._push(entry)
        self._reveal_errors()
        if not self._timed_out():
            self._start_timeout()

    def _push(self, entry: int) -> None:
        self.state.rx.append(entry)
        if entry > 0xFF:
            self.state.rx_errors += 1

    def _reveal_errors(self) -> None:
        """LSR shows a character's errors when it comes to the top of the FIFO."""
        state = self.state
        if state.rx_errors and state.rx[0] > 0xFF:
            state.line_errors |= state.rx[0] >> 8
            state.rx[0] &= 0xFF
            state.rx_errors -= 1

    # ------------------------------------------------------------------ modem status

    def _sense_modem(self) -> None:
        state = self.state
        if state.mcr & MCR_LOOP:
            mcr = state.mcr
            lines = (
                (MSR_CTS if mcr & MCR_RTS else 0)
                | (MSR_DSR if mcr & MCR_DTR else 0)
                | (MSR_RI if mcr & MCR_OUT1 else 0)
                | (MSR_DCD if mcr & MCR_OUT2 else 0)
            )
        else:
            lines = state.modem_lines
        changed = (lines ^ state.msr) & ~MSR_DELTAS
        deltas = (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4
        if changed & MSR_RI and not lines & MSR_RI:
            deltas |= MSR_TRAILING_RI
        state.msr = lines | state.msr & MSR_DELTAS | deltas

    # ------------------------------------------------------------------ interrupts

    def _identity(self) -> int:
        """IIR bits 3:0: the pending source of highest priority ("Interrupt Control Functions")."""
        state = self.state
        ier = state.ier
        if ier & IER_ELSI and state.line_errors:
            return IIR_LINE_STATUS
        if ier & IER_ERBFI and state.rx:
            if not state.fcr & FCR_ENABLE or len(state.rx) >= self._trigger():
                return IIR_RECEIVED_DATA
            if self._timed_out():
                return IIR_CHARACTER_TIMEOUT
        if ier & IER_ETBEI and state.thre_pending:
            return IIR_THR_EMPTY
        if ier & IER_EDSSI and state.msr & MSR_DELTAS:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _trigger(self) -> int:
        return TRIGGER_LEVELS[self.state.fcr >> FCR_TRIGGER_SHIFT]

    def _update(self) -> None:
        state = self.state
        # Loopback forces the OUT2 pin inactive, so the gate is shut there too.
        gate_open = state.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        self.irq.set_level(gate_open and self._identity() != IIR_NONE)
        if state.timeout_ns is None or self._timer is not None or not state.ier & IER_ERBFI:
            return
        if not self._timed_out():
            self._timer_ns = state.timeout_ns
            self._timer = self._clock.call_at(self._timer_ns, self._on_timeout)

    # ------------------------------------------------------------------ character timeout

    def _start_timeout(self) -> None:
        """Every received or read character starts the four character times anew."""
        state = self.state
        if state.fcr & FCR_ENABLE and state.rx:
            state.timeout_ns = self._clock.now_ns() + TIMEOUT_CHARACTERS * self.character_ns()
            if self._timer is not None and state.timeout_ns < self._timer_ns:
                self._cancel_timer()  # a faster line rate brought the deadline forward
        else:
            state.timeout_ns = None

    def character_ns(self) -> int:
        """Nanoseconds one character takes on the line with the present LCR and divisor."""
        state = self.state
        bits = 7 + (state.lcr & LCR_WORD_LENGTH)  # start, 5 to 8 data, stop
        bits += (state.lcr & LCR_PARITY) >> 3
        bits += (state.lcr & LCR_TWO_STOP_BITS) >> 2
        divisor = state.divisor or 1  # Quirk: a divisor of 0 stops the real baud generator
        return bits * 16 * divisor * 1_000_000_000 // INPUT_CLOCK_HZ

    def _timed_out(self) -> bool:
        timeout_ns = self.state.timeout_ns
        return timeout_ns is not None and self._clock.now_ns() >= timeout_ns

    def _on_timeout(self, now_ns: int) -> None:
        self._timer = None  # the deadline may have moved since: _update schedules it again
        self._update()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._clock.cancel(self._timer)
            self._timer = None
