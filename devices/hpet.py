"""High precision event timer: main counter, three comparators, legacy replacement, FSB messages. No RTC.

Source: IA-PC HPET (High Precision Event Timers) Specification 1.0a. The main counter is virtual time;
comparators are deadlines on the board's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from devices.base import Clock, Device, DeviceError, IrqLine

COMPARATORS: Final = 3
WINDOW_SIZE: Final = 0x400  # bytes of one timer block


class Reg:
    """Offsets of the 64-bit registers."""

    CAPABILITIES: Final = 0x000  # GCAP_ID
    CONFIG: Final = 0x010  # GEN_CONF
    STATUS: Final = 0x020  # GINTR_STA
    COUNTER: Final = 0x0F0  # MAIN_CNT
    TIMERS: Final = 0x100  # three blocks of 0x20
    TIMER_STEP: Final = 0x20
    TIMER_CONFIG: Final = 0x00  # within a block: TIMn_CONF
    TIMER_COMPARATOR: Final = 0x08  # TIMn_COMP
    TIMER_FSB: Final = 0x10  # TIMn_FSB_ROUTE


VENDOR: Final = 0x8086
REVISION: Final = 0x01
CAP_COUNTER_64: Final = 1 << 13
CAP_LEGACY: Final = 1 << 15
PERIOD_MAX_FS: Final = 100_000_000  # specification: at most 100 ns a tick
PERIOD_DEFAULT_FS: Final = 10_000_000  # 100 MHz
FS_PER_NS: Final = 1_000_000

CONFIG_ENABLE: Final = 1 << 0
CONFIG_LEGACY: Final = 1 << 1

TIMER_LEVEL: Final = 1 << 1
TIMER_INT_ENABLE: Final = 1 << 2
TIMER_PERIODIC: Final = 1 << 3
TIMER_PERIODIC_CAP: Final = 1 << 4
TIMER_SIZE_64_CAP: Final = 1 << 5
TIMER_SET_VALUE: Final = 1 << 6
TIMER_32_BIT: Final = 1 << 8
TIMER_ROUTE_SHIFT: Final = 9
TIMER_ROUTE: Final = 0x1F << TIMER_ROUTE_SHIFT
TIMER_FSB_ENABLE: Final = 1 << 14
TIMER_FSB_CAP: Final = 1 << 15
TIMER_WRITABLE: Final = (
    TIMER_LEVEL | TIMER_INT_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT | TIMER_ROUTE
)

ROUTES_ICH: Final = (0x00F0_0000, 0x00F0_0000, 0x00F0_0800)  # Intel ICH: pins 20-23, timer 2 also 11
M32: Final = 0xFFFF_FFFF
M64: Final = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class ComparatorState:
    """One timer. `match` is the main counter at the next match, which comes at `deadline_ns`."""

    config: int = 0
    comparator: int = M64
    period: int = 0
    fsb_route: int = 0
    match: int = 0
    deadline_ns: int | None = None


def _comparators() -> list[ComparatorState]:
    return [ComparatorState() for _ in range(COMPARATORS)]


@dataclass(slots=True)
class HpetState:
    """Everything a snapshot needs. The counter was `counter` at `counter_ns`; it moves only while enabled."""

    config: int = 0
    status: int = 0
    counter: int = 0
    counter_ns: int = 0
    timers: list[ComparatorState] = field(default_factory=_comparators)


class Hpet(Device):
    """One timer block.

    `pin(gsi, level)` is the I/O APIC. `legacy_lines` are the wires of IRQ 0 and IRQ 8 that timers 0 and 1
    drive under legacy replacement; `on_legacy(active)` tells the board to disconnect the 8254 and the RTC
    from them. `send_fsb(address, data)` is the message path; without it timers do not offer FSB delivery.
    """

    name = "hpet"
    state: HpetState

    def __init__(
        self,
        clock: Clock,
        pin: Callable[[int, bool], None],
        *,
        legacy_lines: tuple[IrqLine, IrqLine] | None = None,
        on_legacy: Callable[[bool], None] | None = None,
        send_fsb: Callable[[int, int], None] | None = None,
        period_fs: int = PERIOD_DEFAULT_FS,
        routes: tuple[int, int, int] = ROUTES_ICH,
        min_period_ns: int = 10_000,
    ) -> None:
        """`period_fs` is one tick in femtoseconds; `routes` is the mask of permitted pins for each timer.

        Without `legacy_lines` legacy replacement is not offered. `min_period_ns` is the shortest interval
        between two interrupts of a periodic timer. DeviceError when the specification forbids the period.
        """
        if not 0 < period_fs <= PERIOD_MAX_FS:
            raise DeviceError(
                f"HPET: period {period_fs} fs is outside 1-{PERIOD_MAX_FS} fs; choose a shorter tick"
            )
        self._clock = clock
        self._legacy_lines = legacy_lines
        self._on_legacy = on_legacy
        self._send_fsb = send_fsb
        self._period_fs = period_fs
        self._routes = routes
        self._min_ticks = min_period_ns * FS_PER_NS // period_fs
        self._pins = {
            gsi: IrqLine(pin, gsi) for gsi in range(32) if (routes[0] | routes[1] | routes[2]) >> gsi & 1
        }
        self._tokens: list[int | None] = [None] * COMPARATORS
        self._capabilities = (
            REVISION
            | COMPARATORS - 1 << 8
            | CAP_COUNTER_64
            | (CAP_LEGACY if legacy_lines is not None else 0)
            | VENDOR << 16
            | period_fs << 32
        )
        self._timer_writable = TIMER_WRITABLE | (TIMER_FSB_ENABLE if send_fsb is not None else 0)
        self.state = self._power_on_state()

    def _power_on_state(self) -> HpetState:
        state = HpetState(counter_ns=self._clock.now_ns())
        for number, timer in enumerate(state.timers):
            timer.config = self._fixed_config(number)
        return state

    def _fixed_config(self, number: int) -> int:
        """The read-only bits of a timer's configuration."""
        fsb = TIMER_FSB_CAP if self._send_fsb is not None else 0
        return self._routes[number] << 32 | TIMER_PERIODIC_CAP | TIMER_SIZE_64_CAP | fsb

    def reset(self) -> None:
        """Counter halted at zero, comparators all ones, no interrupt."""
        self._leave_legacy()
        for number in range(COMPARATORS):
            self._disarm(number)
        self.state = self._power_on_state()
        self._drive()

    def rearm(self) -> None:
        """Schedule the comparators and drive the wires again from `state`."""
        for number, timer in enumerate(self.state.timers):
            deadline = timer.deadline_ns
            self._disarm(number)
            if deadline is not None:
                self._arm_at(number, deadline)
        if self._on_legacy is not None:
            self._on_legacy(self._legacy())
        self._drive()

    # ---- registers ---------------------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A 64-bit register or the part of it at `offset`; reserved offsets are 0."""
        register = offset & ~7
        if register != Reg.COUNTER:
            self._catch_up()
        return self._read_register(register) >> 8 * (offset & 7) & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """A whole 64-bit register or one of its halves."""
        # Quirk: writes that are not aligned 32-bit or 64-bit ones are ignored (specification: undefined).
        if width < 4 or offset % width:
            return
        shift = 8 * (offset & 4)
        mask = M64 if width == 8 else M32 << shift
        self._catch_up()
        self._write_register(offset & ~7, (value << shift) & mask, mask)

    def _read_register(self, offset: int) -> int:
        state = self.state
        match offset:
            case Reg.COUNTER:
                return self._counter()
            case Reg.CAPABILITIES:
                return self._capabilities
            case Reg.CONFIG:
                return state.config
            case Reg.STATUS:
                return state.status
            case _ if Reg.TIMERS <= offset < Reg.TIMERS + COMPARATORS * Reg.TIMER_STEP:
                number, register = divmod(offset - Reg.TIMERS, Reg.TIMER_STEP)
                timer = state.timers[number]
                match register:
                    case Reg.TIMER_CONFIG:
                        return timer.config
                    case Reg.TIMER_COMPARATOR:
                        return timer.comparator & self._size_mask(timer)
                    case Reg.TIMER_FSB:
                        return timer.fsb_route
                    case _:
                        return 0
            case _:
                return 0

    def _write_register(self, offset: int, value: int, mask: int) -> None:
        """Change the bits in `mask` to those of `value`."""
        state = self.state
        match offset:
            case Reg.CONFIG:
                self._write_config(state.config & ~mask | value)
            case Reg.STATUS:
                state.status &= ~value  # write 1 to clear
                self._drive()
            case Reg.COUNTER:
                # The specification wants the counter halted; running, it goes on from the new value.
                self._set_counter(self._counter() & ~mask | value)
                self._schedule_all()
            case _ if Reg.TIMERS <= offset < Reg.TIMERS + COMPARATORS * Reg.TIMER_STEP:
                number, register = divmod(offset - Reg.TIMERS, Reg.TIMER_STEP)
                timer = state.timers[number]
                match register:
                    case Reg.TIMER_CONFIG:
                        self._write_timer_config(number, timer.config & ~mask | value)
                    case Reg.TIMER_COMPARATOR:
                        self._write_comparator(number, value, mask)
                    case Reg.TIMER_FSB:
                        timer.fsb_route = timer.fsb_route & ~mask | value
                    case _:
                        pass  # reserved
            case _:
                pass  # capabilities are read-only, the rest is reserved

    def _write_config(self, value: int) -> None:
        state = self.state
        toggles_counter = (value ^ state.config) & CONFIG_ENABLE
        if toggles_counter:
            self._set_counter(self._counter())
        writable = CONFIG_ENABLE | (CONFIG_LEGACY if self._legacy_lines is not None else 0)
        if not value & CONFIG_LEGACY:
            self._leave_legacy()
        enter_legacy = value & writable & ~state.config & CONFIG_LEGACY
        state.config = value & writable
        if enter_legacy and self._on_legacy is not None:
            self._on_legacy(True)
        self._drive()
        if toggles_counter:
            self._schedule_all()

    def _write_timer_config(self, number: int, value: int) -> None:
        timer = self.state.timers[number]
        route = (value & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT
        if not self._routes[number] >> route & 1:
            # Specification: software reads the field back to see whether the pin was accepted.
            value = value & ~TIMER_ROUTE | timer.config & TIMER_ROUTE
        timer.config = value & self._timer_writable | self._fixed_config(number)
        if timer.config & TIMER_32_BIT:
            timer.comparator &= M32
            timer.period &= M32
        if not timer.config & TIMER_LEVEL:
            self.state.status &= ~(1 << number)  # the status bit exists for level-triggered timers only
        self._drive()
        self._schedule(number)

    def _write_comparator(self, number: int, value: int, mask: int) -> None:
        """A periodic timer takes the value as its period, and as its next match if SET_VALUE was given."""
        timer = self.state.timers[number]
        size = self._size_mask(timer)
        if timer.config & TIMER_PERIODIC:
            timer.period = (timer.period & ~mask | value) & size
        if not timer.config & TIMER_PERIODIC or timer.config & TIMER_SET_VALUE:
            timer.comparator = (timer.comparator & ~mask | value) & size
        timer.config &= ~TIMER_SET_VALUE
        self._schedule(number)

    # ---- counter and comparators -------------------------------------------------------------------------

    def _legacy(self) -> bool:
        return bool(self.state.config & CONFIG_LEGACY)

    def _leave_legacy(self) -> None:
        """Give IRQ 0 and IRQ 8 back to the board, both low."""
        if self._legacy() and self._legacy_lines is not None:
            self.state.config &= ~CONFIG_LEGACY
            for line in self._legacy_lines:
                line.lower()
            if self._on_legacy is not None:
                self._on_legacy(False)

    @staticmethod
    def _size_mask(timer: ComparatorState) -> int:
        return M32 if timer.config & TIMER_32_BIT else M64

    def _counter(self) -> int:
        state = self.state
        if not state.config & CONFIG_ENABLE:
            return state.counter
        elapsed = (self._clock.now_ns() - state.counter_ns) * FS_PER_NS // self._period_fs
        return state.counter + elapsed & M64

    def _set_counter(self, value: int) -> None:
        self.state.counter = value & M64
        self.state.counter_ns = self._clock.now_ns()

    def _disarm(self, number: int) -> None:
        token = self._tokens[number]
        if token is not None:
            self._clock.cancel(token)
            self._tokens[number] = None
        self.state.timers[number].deadline_ns = None

    def _arm_at(self, number: int, deadline_ns: int) -> None:
        """Remember the deadline; only a timer that may interrupt wakes anybody for it."""
        timer = self.state.timers[number]
        timer.deadline_ns = deadline_ns
        if timer.config & TIMER_INT_ENABLE:
            self._tokens[number] = self._clock.call_at(deadline_ns, lambda _now: self._match(number))

    def _catch_up(self) -> None:
        """Serve the matches of silent timers, whose status and comparator are about to be seen or changed."""
        now = self._clock.now_ns()
        for number, timer in enumerate(self.state.timers):
            if self._tokens[number] is None and timer.deadline_ns is not None and timer.deadline_ns <= now:
                self._match(number)

    def _schedule_all(self) -> None:
        for number in range(COMPARATORS):
            self._schedule(number)

    def _schedule(self, number: int, after_match: bool = False) -> None:
        """Arm for the next match. Equality now is a match, unless it was just served."""
        self._disarm(number)
        state = self.state
        timer = state.timers[number]
        if not state.config & CONFIG_ENABLE:
            return
        size = self._size_mask(timer)
        counter = self._counter()
        ticks = timer.comparator - counter & size
        if ticks == 0 and after_match:
            ticks = size + 1
        timer.match = counter + ticks & M64
        elapsed = (self._clock.now_ns() - state.counter_ns) * FS_PER_NS // self._period_fs
        deadline = state.counter_ns - (-(elapsed + ticks) * self._period_fs // FS_PER_NS)
        self._arm_at(number, max(deadline, self._clock.now_ns()))

    def _match(self, number: int) -> None:
        """The counter reached the comparator."""
        self._tokens[number] = None
        timer = self.state.timers[number]
        if timer.config & TIMER_PERIODIC and timer.period:
            size = self._size_mask(timer)
            behind = self._counter() - timer.match & M64
            # Quirk: a period under min_period_ns skips matches until the next interrupt is that far away.
            silent = not timer.config & TIMER_INT_ENABLE
            ahead = 1 if silent or timer.period >= self._min_ticks else self._min_ticks
            periods = -(-(behind + ahead) // timer.period)
            timer.comparator = timer.comparator + periods * timer.period & size
        self._schedule(number, after_match=True)
        self._interrupt(number)

    # ---- interrupts --------------------------------------------------------------------------------------

    def _line(self, number: int) -> IrqLine | None:
        """The wire a timer drives, if it drives one."""
        timer = self.state.timers[number]
        if self._legacy() and number < 2 and self._legacy_lines is not None:
            return self._legacy_lines[number]
        if timer.config & TIMER_FSB_ENABLE:
            return None
        return self._pins.get((timer.config & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT)

    def _interrupt(self, number: int) -> None:
        state = self.state
        timer = state.timers[number]
        if timer.config & TIMER_LEVEL:
            state.status |= 1 << number  # also when the interrupt is not enabled
            self._drive()
        if not timer.config & TIMER_INT_ENABLE:
            return
        line = self._line(number)
        if line is None:
            if self._send_fsb is not None and timer.config & TIMER_FSB_ENABLE:
                self._send_fsb(timer.fsb_route >> 32, timer.fsb_route & M32)
        elif not timer.config & TIMER_LEVEL:
            line.pulse()

    def _drive(self) -> None:
        """Level-triggered timers hold their wire while their status bit is set; timers may share a pin."""
        active: list[IrqLine] = []
        for number, timer in enumerate(self.state.timers):
            if self.state.status >> number & 1 and timer.config & TIMER_INT_ENABLE:
                line = self._line(number)
                if line is not None:
                    active.append(line)
        wires = list(self._pins.values())
        if self._legacy_lines is not None and self._legacy():
            wires.extend(self._legacy_lines)
        for wire in wires:
            wire.set_level(any(wire is line for line in active))
