"""82C54 interval timer of a PC, with the system control port 0x61. Not a speaker.

Sources: 82C54 CHMOS Programmable Interval Timer, sections "Programming the 82C54", "Read Operations" and
"Mode Definitions"; 82371AB (PIIX4), section "NMI Status and Control Register" for port 0x61.

Nothing here ticks. A counter remembers the tick of its last load and its count; the counting element, OUT and
the next edge follow from the virtual time by integer arithmetic. Only edges of OUT0 need the clock to call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from devices.base import Clock, IrqLine
from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offsets from port 0x40."""

    COUNTER_0 = 0x00
    COUNTER_1 = 0x01
    COUNTER_2 = 0x02
    CONTROL = 0x03
    SYSTEM_CONTROL = 0x21  # port 0x61


class Access:
    """Control word bits 5:4: which bytes of a count the guest reads and writes."""

    LATCH = 0  # not an access mode but the counter latch command
    LOW = 1
    HIGH = 2
    BOTH = 3


INPUT_HZ = 1_193_182  # 14.31818 MHz / 12
NS_PER_SECOND = 1_000_000_000

CONTROL_BCD = 0x01
CONTROL_SELECT_SHIFT = 6
READ_BACK = 3  # counter select 11
READ_BACK_NO_COUNT = 0x20
READ_BACK_NO_STATUS = 0x10
READ_BACK_COUNTER_0 = 0x02  # bits 1, 2, 3 name the counters

STATUS_OUT = 0x80
STATUS_NULL_COUNT = 0x40

PORT61_GATE2 = 0x01
PORT61_SPEAKER = 0x02
PORT61_WRITABLE = 0x0F
PORT61_REFRESH = 0x10
PORT61_OUT2 = 0x20
REFRESH_TICKS = 18  # the AT's memory refresh: one request each 15.09 us, each toggles bit 4

BINARY_MODULUS = 0x10000
BCD_MODULUS = 10_000
MIN_COUNT = 2  # of the periodic modes, where the datasheet calls a count of 1 illegal
MIN_IRQ_TICKS = 32  # 26.8 us between interrupts of a periodic OUT0


def ticks_at(now_ns: int) -> int:
    """Input clocks since power-on at a virtual time in nanoseconds."""
    return now_ns * INPUT_HZ // NS_PER_SECOND


def ns_of_tick(tick: int) -> int:
    """The first nanosecond of input clock `tick`: `ticks_at(ns_of_tick(t)) == t`."""
    return -(-tick * NS_PER_SECOND // INPUT_HZ)


@dataclass(slots=True)
class Counter:
    """One of the three counters. Times are input clocks since power-on.

    `start` is the clock at which the counting element took `count`; while the gate holds a counter of mode 0
    or 4, `elapsed_at_stop` keeps how far it had come.
    """

    mode: int = 0
    bcd: bool = False
    access: int = Access.BOTH
    gate: bool = True
    count_register: int = BINARY_MODULUS  # CR, as a number of clocks
    has_count: bool = False  # CR was written since the control word
    null_count: bool = True  # CR has not reached the counting element yet
    loaded: bool = False  # the counting element has started since the control word
    load_pending: bool = False  # ... but its first clock, `start`, has not been seen to come yet
    retriggered: bool = False  # mode 1: that load came while OUT was low
    start: int = 0
    count: int = BINARY_MODULUS
    elapsed_at_stop: int | None = None
    strobe: int | None = None  # modes 4 and 5: the one clock in which OUT is low
    reload_at: int | None = None  # modes 2 and 3: when a new count takes over
    write_low: int | None = None  # the first byte of a two-byte write
    read_high: bool = False  # a two-byte read goes on with the high byte
    latched_count: int | None = None
    latched_status: int | None = None

    # ------------------------------------------------------------------ time

    def settle(self, tick: int) -> None:
        """Let everything happen that was due by `tick`: a first load, a count taking over."""
        if self.reload_at is not None and tick >= self.reload_at:
            low_half = self.mode == 3 and not self._square_high(self.reload_at)
            self.count = self._effective_count()
            # A square wave may change its count in mid-cycle: the second half begins where it would begin.
            self.start = self.reload_at - ((self.count + 1) // 2 if low_half else 0)
            self.reload_at = None
            self.null_count = False
        elif self.load_pending and tick >= self.start:
            self.load_pending = False
            self.null_count = False

    def elapsed(self, tick: int) -> int:
        """Clocks since the counting element was loaded; 0 until then."""
        if self.elapsed_at_stop is not None:
            return self.elapsed_at_stop
        return max(0, tick - self.start)

    def _square_high(self, tick: int) -> bool:
        return self.elapsed(tick) % self.count < (self.count + 1) // 2

    def _effective_count(self) -> int:
        # Quirk: in modes 2 and 3 the illegal count 1 counts as 2.
        return max(self.count_register, MIN_COUNT) if self.mode in (2, 3) else self.count_register

    def out(self, tick: int) -> bool:
        """The level of OUT ("Mode Definitions")."""
        if not self.loaded:
            return self.mode != 0
        elapsed = self.elapsed(tick)
        match self.mode:
            case 0:
                return elapsed >= self.count
            case 1:
                return elapsed >= self.count or (tick < self.start and not self.retriggered)
            case 2:
                return not self.gate or elapsed % self.count != self.count - 1
            case 3:
                return not self.gate or elapsed % self.count < (self.count + 1) // 2
            case _:
                return tick != self.strobe  # the gate cannot lengthen it

    def value(self, tick: int) -> int:
        """The counting element as the guest reads it: 16 bits, BCD or binary."""
        modulus = BCD_MODULUS if self.bcd else BINARY_MODULUS
        elapsed = self.elapsed(tick)
        match self.mode:
            case 2:
                number = self.count - elapsed % self.count
            case 3:
                # Counts by two; an odd count starts one lower and spends one clock more in the high half.
                phase = elapsed % self.count
                half = (self.count + 1) // 2
                step = phase - half if phase >= half else phase
                number = (self.count & ~1) - 2 * step
            case _:
                number = self.count - elapsed
        number %= modulus
        return _to_bcd(number) if self.bcd else number

    def status(self, tick: int) -> int:
        """The status byte of the read-back command."""
        return (
            (STATUS_OUT if self.out(tick) else 0)
            | (STATUS_NULL_COUNT if self.null_count else 0)
            | self.access << 4
            | self.mode << 1
            | self.bcd
        )

    def next_edge(self, tick: int) -> int | None:
        """The first clock after `tick` at which an interrupt on OUT is due or withdrawn, or None.

        The low clock of modes 2 and 4 counts as one event with the rise that ends it.
        """
        if not self.loaded or not self.gate or self.elapsed_at_stop is not None:
            return None
        elapsed = tick - self.start  # negative before the load
        match self.mode:
            case 0 | 1:
                edge = self.count
            case 2 | 3:
                edge = (max(elapsed, 0) // self.count + 1) * self.count
                fall = edge - self.count // 2
                if self.mode == 3 and self.count // 2 >= MIN_IRQ_TICKS and elapsed < fall:
                    edge = fall
                if self.reload_at is not None and elapsed < self.reload_at - self.start < edge:
                    edge = self.reload_at - self.start
            case _:
                edge = self.count + 1
        return self.start + edge if elapsed < edge else None

    # ------------------------------------------------------------------ gate

    def set_gate(self, gate: bool, tick: int) -> None:
        """Drive GATE: a level for modes 0 and 4, a trigger for 1 and 5, both for 2 and 3."""
        if gate == self.gate:
            return
        self.settle(tick)
        self.gate = gate
        match self.mode:
            case 0 | 4:
                if gate and not (self.mode == 0 and self.write_low is not None):
                    self._resume(tick)
                elif not gate:
                    self._stop(self.elapsed(tick))
            case 1 | 5:
                if gate and self.has_count:
                    self.retriggered = self.loaded and not self.out(tick)
                    self._load(tick + 1)
            case _:
                if gate and self.has_count:
                    self._load(tick + 1)
                elif not gate:
                    self._stop(self.elapsed(tick))
                    self.reload_at = None  # the rising gate loads the new count anyway

    def _stop(self, elapsed: int) -> None:
        if self.loaded and self.elapsed_at_stop is None:
            self.elapsed_at_stop = elapsed
            if elapsed < self.count:
                self.strobe = None

    def _resume(self, tick: int) -> None:
        if self.elapsed_at_stop is not None:
            self.start = tick - self.elapsed_at_stop
            if self.elapsed_at_stop < self.count:
                self.strobe = self.start + self.count
            self.elapsed_at_stop = None

    def _load(self, start: int) -> None:
        """CR goes to the counting element at clock `start`."""
        self.count = self._effective_count()
        self.start = start
        self.strobe = start + self.count
        self.loaded = True
        self.load_pending = True
        self.null_count = True  # until that clock comes
        self.elapsed_at_stop = None
        self.reload_at = None

    # ------------------------------------------------------------------ programming

    def write_control(self, value: int) -> None:
        """A control word: new mode, everything else forgotten, the read and write sequences restarted."""
        mode = value >> 1 & 7
        self.mode = mode & 3 if mode > 5 else mode  # bit 2 is a don't-care for modes 2 and 3
        self.bcd = bool(value & CONTROL_BCD)
        self.access = value >> 4 & 3
        self.has_count = False
        self.null_count = True
        self.loaded = False
        self.load_pending = False
        self.elapsed_at_stop = None
        self.strobe = None
        self.reload_at = None
        self.write_low = None
        self.read_high = False
        self.latched_count = None
        self.latched_status = None

    def write_byte(self, value: int, tick: int) -> None:
        """One byte of a count, as the access mode orders them."""
        self.settle(tick)
        match self.access:
            case Access.LOW:
                self._write_count(value, tick)
            case Access.HIGH:
                self._write_count(value << 8, tick)
            case _:
                if self.write_low is None:
                    self.write_low = value
                    if self.mode == 0 and self.loaded:
                        # "Writing the first byte disables counting. OUT is set low immediately."
                        # Quirk: after expiry the counting element then reads 1, not where its wrap had come.
                        self._stop(min(self.elapsed(tick), self.count - 1))
                else:
                    low, self.write_low = self.write_low, None
                    self._write_count(value << 8 | low, tick)

    def _write_count(self, raw: int, tick: int) -> None:
        number = _from_bcd(raw) if self.bcd else raw
        self.count_register = number or (BCD_MODULUS if self.bcd else BINARY_MODULUS)
        self.has_count = True
        self.null_count = True
        match self.mode:
            case 0 | 4:
                self._load(tick + 1)
                if not self.gate:
                    self._stop(0)
            case 2 | 3:
                if not self.loaded or tick < self.start:
                    self._load(tick + 1)
                    if not self.gate:
                        self._stop(0)
                elif self.gate:
                    edge = self.elapsed(tick) // self.count * self.count
                    half = (self.count + 1) // 2
                    if self.mode == 3 and self._square_high(tick):
                        edge += half
                    else:
                        edge += self.count
                    self.reload_at = self.start + edge
            case _:  # modes 1 and 5 take it at the next trigger
                pass

    # ------------------------------------------------------------------ reading

    def latch_count(self, tick: int) -> None:
        """Counter latch: keeps the first value until it has been read."""
        if self.latched_count is None:
            self.settle(tick)
            self.latched_count = self.value(tick)

    def latch_status(self, tick: int) -> None:
        """Read-back of the status: keeps the first one until it has been read."""
        if self.latched_status is None:
            self.settle(tick)
            self.latched_status = self.status(tick)

    def read_byte(self, tick: int) -> int:
        """A latched status, then a latched or live count, byte by byte as the access mode orders."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        self.settle(tick)
        value = self.value(tick) if self.latched_count is None else self.latched_count
        match self.access:
            case Access.LOW:
                self.latched_count = None
                return value & 0xFF
            case Access.HIGH:
                self.latched_count = None
                return value >> 8
            case _:
                if self.read_high:
                    self.read_high = False
                    self.latched_count = None
                    return value >> 8
                self.read_high = True
                return value & 0xFF


def _from_bcd(raw: int) -> int:
    # Quirk: digits above 9, undefined on the chip, count as their value.
    return (raw >> 12) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15)


def _to_bcd(number: int) -> int:
    return number // 1000 << 12 | number // 100 % 10 << 8 | number // 10 % 10 << 4 | number % 10


@dataclass(slots=True)
class PitState:
    """Three counters and port 0x61. GATE0 and GATE1 are tied high, GATE2 is port 0x61 bit 0."""

    counters: list[Counter] = field(default_factory=lambda: [Counter(), Counter(), Counter(gate=False)])
    system_control: int = 0
    irq0_ns: int | None = None  # virtual time of the next event on OUT0


class Pit8254(ByteDevice):
    """The PC's timer chip. `irq0` is the wire on OUT0, `clock` the virtual time that all counters follow."""

    name = "pit8254"
    state: PitState

    def __init__(self, irq0: IrqLine, clock: Clock) -> None:
        self.irq0 = irq0
        self._clock = clock
        self._timer: int | None = None
        self.state = PitState()

    def read_byte(self, offset: int) -> int:
        """A counter's byte or port 0x61; the control register cannot be read."""
        tick = ticks_at(self._clock.now_ns())
        match offset:
            case Offset.COUNTER_0 | Offset.COUNTER_1 | Offset.COUNTER_2:
                return self.state.counters[offset].read_byte(tick)
            case Offset.SYSTEM_CONTROL:
                counter = self.state.counters[2]
                counter.settle(tick)
                return (
                    self.state.system_control
                    | (PORT61_REFRESH if tick // REFRESH_TICKS & 1 else 0)
                    | (PORT61_OUT2 if counter.out(tick) else 0)
                )
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """A counter's byte, a control word or port 0x61."""
        tick = ticks_at(self._clock.now_ns())
        state = self.state
        match offset:
            case Offset.COUNTER_0 | Offset.COUNTER_1 | Offset.COUNTER_2:
                state.counters[offset].write_byte(value, tick)
                if offset == Offset.COUNTER_0:
                    self._follow_out0(tick)
            case Offset.CONTROL:
                self._write_control(value, tick)
            case Offset.SYSTEM_CONTROL:
                state.system_control = value & PORT61_WRITABLE
                state.counters[2].set_gate(bool(value & PORT61_GATE2), tick)
            case _:
                pass

    def out(self, number: int) -> bool:
        """The present level of OUT0, OUT1 or OUT2."""
        tick = ticks_at(self._clock.now_ns())
        counter = self.state.counters[number]
        counter.settle(tick)
        return counter.out(tick)

    def reset(self) -> None:
        """Power-on: no counter is programmed, OUT0 is low, the gate of counter 2 is shut."""
        self.state = PitState()
        self._cancel_timer()
        self.irq0.lower()

    def rearm(self) -> None:
        """Schedule the next event of OUT0 and drive its wire again."""
        self._cancel_timer()
        tick = ticks_at(self._clock.now_ns())
        self.state.counters[0].settle(tick)
        self.irq0.set_level(self._out0_level(tick))
        if self.state.irq0_ns is not None:
            self._timer = self._clock.call_at(self.state.irq0_ns, self._on_out0)

    def _write_control(self, value: int, tick: int) -> None:
        counters = self.state.counters
        select = value >> CONTROL_SELECT_SHIFT
        if select == READ_BACK:
            for number, counter in enumerate(counters):
                if value & READ_BACK_COUNTER_0 << number:
                    if not value & READ_BACK_NO_COUNT:
                        counter.latch_count(tick)
                    if not value & READ_BACK_NO_STATUS:
                        counter.latch_status(tick)
        elif value >> 4 & 3 == Access.LATCH:
            counters[select].latch_count(tick)
        else:
            counters[select].write_control(value)
            if select == 0:
                self._follow_out0(tick)

    # ------------------------------------------------------------------ OUT0 and its wire

    def _out0_level(self, tick: int) -> bool:
        counter = self.state.counters[0]
        if counter.mode in (2, 4) or (counter.mode == 3 and counter.count // 2 < MIN_IRQ_TICKS):
            # Quirk: the wire does not show the single low clock of modes 2 and 4, only the edge that ends it.
            return True
        return counter.out(tick)

    def _follow_out0(self, tick: int) -> None:
        """The guest reprogrammed counter 0: drive the wire and schedule its next event."""
        self.irq0.set_level(self._out0_level(tick))
        self._schedule(tick)

    def _schedule(self, tick: int, earliest: int = 0) -> None:
        self._cancel_timer()
        counter = self.state.counters[0]
        edge = counter.next_edge(tick)
        if edge is not None and edge < earliest:
            edge = counter.next_edge(earliest - 1)
        self.state.irq0_ns = None if edge is None else ns_of_tick(edge)
        if self.state.irq0_ns is not None:
            self._timer = self._clock.call_at(self.state.irq0_ns, self._on_out0)

    def _on_out0(self, now_ns: int) -> None:
        self._timer = None
        tick = ticks_at(now_ns)
        counter = self.state.counters[0]
        counter.settle(tick)
        self.irq0.lower()
        if self._out0_level(tick):
            self.irq0.raise_()
        # Quirk: a periodic OUT0 interrupts at most once in MIN_IRQ_TICKS, and periods that went by inside one
        # long instruction interrupt once, so that no count can keep the machine busy with nothing else.
        self._schedule(tick, earliest=tick + MIN_IRQ_TICKS if counter.mode in (2, 3) else 0)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._clock.cancel(self._timer)
            self._timer = None
