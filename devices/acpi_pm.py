"""ACPI power management block: PM1 event and control registers and the PM timer. No GPEs, no sleep but S5.

Sources: ACPI Specification, sections "PM1 Event Grouping", "PM1 Control Grouping" and "Power Management
Timer". The layout is the 82371AB's (PIIX4): based at 0x600, the control register is port 0x604, where a
16-bit write of 0x2000 powers a QEMU PC off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devices.base import Clock, Device, IrqLine, ones


class Offset:
    """Register offsets from the block's base port."""

    PM1_STATUS = 0x0  # 16 bits, a one clears
    PM1_ENABLE = 0x2  # 16 bits
    PM1_CONTROL = 0x4  # 16 bits
    PM_TIMER = 0x8  # 32 bits, read only


BLOCK_BYTES = 12

TIMER_HZ = 3_579_545
TIMER_BITS = 24  # the FADT must not set TMR_VAL_EXT
TIMER_HALF = 1 << (TIMER_BITS - 1)  # the timer status is set whenever the top bit changes
NS_PER_SECOND = 1_000_000_000

STATUS_TIMER = 0x0001
STATUS_BUS_MASTER = 0x0010
STATUS_GLOBAL = 0x0020
STATUS_POWER_BUTTON = 0x0100
STATUS_SLEEP_BUTTON = 0x0200
STATUS_RTC = 0x0400
STATUS_WAKE = 0x8000
ENABLES = STATUS_TIMER | STATUS_GLOBAL | STATUS_POWER_BUTTON | STATUS_SLEEP_BUTTON | STATUS_RTC

CONTROL_SCI_ENABLE = 0x0001
CONTROL_SLEEP_TYPE_SHIFT = 10
CONTROL_SLEEP_ENABLE = 0x2000  # always reads zero
CONTROL_KEPT = 0x1C03  # SCI_EN, BM_RLD, SLP_TYP

SOFT_OFF_TYPE = 0  # what the DSDT's \_S5 must name


@dataclass(slots=True)
class AcpiPmState:
    """The registers, and the half-turn of the timer (`ticks // TIMER_HALF`) whose status was seen last."""

    status: int = 0
    enable: int = 0
    control: int = 0
    seen_half: int = 0


class AcpiPm(Device):
    """The PM block. `sci` is the level-triggered SCI (IRQ9), `on_poweroff()` is called on entering S5.

    `sci_enabled` is the value of SCI_EN at power-on: true on a machine whose FADT names no SMI command port,
    since such a machine never was in legacy mode. `on_sleep(type)` hears of the other sleep states.
    """

    name = "acpi_pm"
    state: AcpiPmState

    def __init__(
        self,
        sci: IrqLine,
        clock: Clock,
        on_poweroff: Callable[[], None],
        soft_off_type: int = SOFT_OFF_TYPE,
        sci_enabled: bool = True,
        on_sleep: Callable[[int], None] | None = None,
    ) -> None:
        self.sci = sci
        self._clock = clock
        self._on_poweroff = on_poweroff
        self._soft_off_type = soft_off_type
        self._sci_enabled = sci_enabled
        self._on_sleep = on_sleep
        self._timer: int | None = None
        self.state = self._power_on_state()

    def press_power_button(self) -> None:
        """The host asks the guest to shut down; without ACPI in the guest nothing comes of it."""
        self.state.status |= STATUS_POWER_BUTTON
        self._update()

    def read(self, offset: int, width: int) -> int:
        """The registers at `offset`; the two reserved bytes read zero."""
        match offset:
            case Offset.PM_TIMER if width == 4:
                return self._ticks() & ones(3)
            case Offset.PM1_STATUS if width == 2:
                return self._status()
            case Offset.PM1_ENABLE if width == 2:
                return self.state.enable
            case Offset.PM1_CONTROL if width == 2:
                return self.state.control
            case _:  # parts of a register, or several
                block = (
                    self._status()
                    | self.state.enable << 8 * Offset.PM1_ENABLE
                    | self.state.control << 8 * Offset.PM1_CONTROL
                    | (self._ticks() & ones(3)) << 8 * Offset.PM_TIMER
                    | ones(8) << 8 * BLOCK_BYTES
                )
                return block >> 8 * offset & ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Store `value`; a write that sets SLP_EN enters the sleep state that SLP_TYP then names."""
        value &= ones(width)
        match offset:
            case Offset.PM1_STATUS if width == 2:
                self._clear_status(value)
            case Offset.PM1_ENABLE if width == 2:
                self._write_enable(value)
            case Offset.PM1_CONTROL if width == 2:
                self._write_control(value)
            case _ if width == 1:
                register, shift = offset & ~1, 8 * (offset & 1)
                match register:
                    case Offset.PM1_STATUS:
                        self._clear_status(value << shift)
                    case Offset.PM1_ENABLE:
                        self._write_enable(self.state.enable & ~(0xFF << shift) | value << shift)
                    case Offset.PM1_CONTROL:
                        self._write_control(self.state.control & ~(0xFF << shift) | value << shift)
                    case _:
                        pass  # the PM timer and the reserved bytes
            case _:  # several registers, or parts of two
                part = 2 if offset % 2 == 0 and width > 2 else 1
                for start in range(0, width, part):
                    self.write(offset + start, part, value >> 8 * start)

    def reset(self) -> None:
        """Power-on: nothing enabled; the timer is free-running and goes on."""
        self.state = self._power_on_state()
        self._update()

    def rearm(self) -> None:
        """Schedule the timer's next carry and drive the SCI again."""
        self._update()

    # ------------------------------------------------------------------ registers

    def _power_on_state(self) -> AcpiPmState:
        return AcpiPmState(
            control=CONTROL_SCI_ENABLE if self._sci_enabled else 0,
            seen_half=self._ticks() // TIMER_HALF,
        )

    def _ticks(self) -> int:
        return self._clock.now_ns() * TIMER_HZ // NS_PER_SECOND

    def _status(self) -> int:
        half = self._ticks() // TIMER_HALF
        if half != self.state.seen_half:
            self.state.seen_half = half
            self.state.status |= STATUS_TIMER
        return self.state.status

    def _clear_status(self, ones_to_clear: int) -> None:
        self.state.status = self._status() & ~ones_to_clear
        self._update()

    def _write_enable(self, value: int) -> None:
        self.state.enable = value & ENABLES
        self._update()

    def _write_control(self, value: int) -> None:
        self.state.control = value & CONTROL_KEPT
        self._update()
        if value & CONTROL_SLEEP_ENABLE:
            if value >> CONTROL_SLEEP_TYPE_SHIFT & 7 == self._soft_off_type:
                self._on_poweroff()
            else:
                # Quirk: every other sleep state is left again at once.
                self.state.status |= STATUS_WAKE
                if self._on_sleep is not None:
                    self._on_sleep(value >> CONTROL_SLEEP_TYPE_SHIFT & 7)

    # ------------------------------------------------------------------ SCI

    def _update(self) -> None:
        """Drive the SCI; ask for a call at the timer's next carry while that could raise it."""
        if self._timer is not None:
            self._clock.cancel(self._timer)
            self._timer = None
        state = self.state
        pending = bool(self._status() & state.enable & ENABLES)
        self.sci.set_level(pending and bool(state.control & CONTROL_SCI_ENABLE))
        if state.enable & STATUS_TIMER and not state.status & STATUS_TIMER:
            carry = (state.seen_half + 1) * TIMER_HALF
            self._timer = self._clock.call_at(-(-carry * NS_PER_SECOND // TIMER_HZ), self._on_carry)

    def _on_carry(self, now_ns: int) -> None:
        self._timer = None
        self._update()
