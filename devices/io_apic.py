"""82093AA I/O APIC: 24 interrupt pins become messages to the local APICs. No APIC bus, no arbitration.

Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller datasheet; version 0x20 adds the EOI
register of later chips. Messages leave through `deliver`; ends of level-triggered interrupts come back
through `eoi`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from devices.base import Device, DeviceError, IrqLine
from devices.local_apic import DeliveryMode, IpiMessage

PINS: Final = 24
WINDOW_SIZE: Final = 0x1000  # bytes, as firmware and axvm's configurations map it


class Reg:
    """Offsets in the memory window."""

    SELECT: Final = 0x00  # IOREGSEL
    WINDOW: Final = 0x10  # IOWIN
    EOI: Final = 0x40  # only with version 0x20


class Index:
    """Registers behind the window, selected by IOREGSEL."""

    ID: Final = 0x00
    VERSION: Final = 0x01
    ARBITRATION: Final = 0x02
    REDIRECTION: Final = 0x10  # two per pin, low half first


VERSION_82093AA: Final = 0x11
VERSION_EOI: Final = 0x20  # the first version with the EOI register

ENTRY_VECTOR: Final = 0xFF
ENTRY_LOGICAL: Final = 1 << 11
ENTRY_SEND_PENDING: Final = 1 << 12  # delivery status, read-only
ENTRY_ACTIVE_LOW: Final = 1 << 13
ENTRY_REMOTE_IRR: Final = 1 << 14  # read-only
ENTRY_LEVEL: Final = 1 << 15
ENTRY_MASK: Final = 1 << 16
ENTRY_READ_ONLY: Final = ENTRY_SEND_PENDING | ENTRY_REMOTE_IRR
ENTRY_LOW_WRITABLE: Final = 0x0001_AFFF
ENTRY_HIGH_WRITABLE: Final = 0xFF00_0000
M32: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class IoApicMessage:
    """One interrupt message of a redirection entry; `destination` is 8 bits, physical unless `logical`."""

    destination: int
    logical: bool
    mode: DeliveryMode
    vector: int
    level_triggered: bool

    def for_local_apics(self) -> IpiMessage:
        """The same message as `devices.local_apic.deliver` carries it."""
        return IpiMessage(
            self.destination, self.mode, self.vector, trigger=self.level_triggered, logical=self.logical
        )


def _masked_entries() -> list[int]:
    return [ENTRY_MASK] * PINS


def _low_pins() -> list[bool]:
    return [False] * PINS


@dataclass(slots=True)
class IoApicState:
    """Everything a snapshot needs; entries have 64 bits, pins are what the devices assert."""

    select: int = 0
    ident: int = 0
    arbitration: int = 0
    entries: list[int] = field(default_factory=_masked_entries)
    pins: list[bool] = field(default_factory=_low_pins)


class IoApic(Device):
    """The I/O APIC on its memory window.

    `deliver(message)` returns whether a local APIC took the message. A level-triggered message that nobody
    took stays pending (delivery status 1) and is tried again when the entry or the pin changes; an edge is
    lost.
    """

    name = "io-apic"
    state: IoApicState

    def __init__(
        self,
        deliver: Callable[[IoApicMessage], bool],
        *,
        ident: int = 0,
        version: int = VERSION_82093AA,
        active_low: Collection[int] | None = None,
    ) -> None:
        """`ident` is the ID after reset (0 on the chip; firmware usually changes it).

        `active_low` names the pins that the board wires active-low: a guest's wrong polarity bit then shows
        as on hardware. With None a device's "asserted" is active whatever the polarity bit says. DeviceError
        for an ID above 15, another version or a pin that is not there.
        """
        if not 0 <= ident <= 0xF:
            raise DeviceError(f"I/O APIC: ID {ident:#x} does not fit 4 bits; take 0x0-0xf")
        if version not in (VERSION_82093AA, VERSION_EOI):
            raise DeviceError(f"I/O APIC {ident}: version {version:#x} is unknown; take 0x11 or 0x20")
        if active_low is not None and not all(0 <= pin < PINS for pin in active_low):
            raise DeviceError(
                f"I/O APIC {ident}: active_low {sorted(active_low)} leaves pins 0-{PINS - 1}; name only pins"
            )
        self._deliver = deliver
        self._ident = ident
        self._version = version
        self._active_low = None if active_low is None else frozenset(active_low)
        self.state = IoApicState(ident=ident, arbitration=ident)

    def reset(self) -> None:
        """All entries masked; the pins stay as the devices drive them."""
        self.state = IoApicState(ident=self._ident, arbitration=self._ident, pins=self.state.pins)

    # ---- the memory window -------------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """IOREGSEL or the selected register; narrow reads give its low bytes, the rest of the window is 0."""
        match offset:
            case Reg.WINDOW:
                value = self._read_selected()
            case Reg.SELECT:
                value = self.state.select
            case _:
                value = 0
        return value & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """IOREGSEL, the selected register, or (version 0x20) the EOI register."""
        # Quirk: a narrow write acts as a 32-bit one with zeros above (datasheet: 32-bit accesses only).
        match offset:
            case Reg.WINDOW:
                self._write_selected(value & M32)
            case Reg.SELECT:
                self.state.select = value & 0xFF
            case Reg.EOI:
                if self._version >= VERSION_EOI:
                    self.eoi(value & 0xFF)
            case _:
                pass

    def _read_selected(self) -> int:
        state = self.state
        match state.select:
            case Index.ID:
                return state.ident << 24
            case Index.VERSION:
                return self._version | PINS - 1 << 16
            case Index.ARBITRATION:
                return state.arbitration << 24
            case index if Index.REDIRECTION <= index < Index.REDIRECTION + 2 * PINS:
                pin, high = divmod(index - Index.REDIRECTION, 2)
                return state.entries[pin] >> 32 * high & M32
            case _:
                return 0  # reserved

    def _write_selected(self, value: int) -> None:
        state = self.state
        match state.select:
            case Index.ID:
                # Datasheet: writing the ID loads the arbitration ID as well.
                state.ident = state.arbitration = value >> 24 & 0xF
            case index if Index.REDIRECTION <= index < Index.REDIRECTION + 2 * PINS:
                self._write_entry(*divmod(index - Index.REDIRECTION, 2), value)
            case _:
                pass  # version and arbitration are read-only, the rest reserved

    def _write_entry(self, pin: int, high: int, value: int) -> None:
        state = self.state
        old = state.entries[pin]
        if high:
            entry = old & M32 | (value & ENTRY_HIGH_WRITABLE) << 32
        else:
            entry = old & ~M32 | value & ENTRY_LOW_WRITABLE | old & ENTRY_READ_ONLY
        if not self._is_level(entry):
            entry &= ~ENTRY_READ_ONLY  # remote IRR has no meaning for an edge; guests clear it this way
        state.entries[pin] = entry
        self._service_level(pin)

    # ---- pins and messages -------------------------------------------------------------------------------

    def set_irq(self, gsi: int, level: bool) -> None:
        """Drive pin `gsi` (0 to 23): True is what the device means by asserted. Usable as an IrqLine's sink.

        DeviceError for a pin that is not there.
        """
        state = self.state
        if not 0 <= gsi < PINS:
            raise DeviceError(f"I/O APIC {state.ident}: pin {gsi} does not exist; use 0-{PINS - 1}")
        level = bool(level)
        if level == state.pins[gsi]:
            return
        state.pins[gsi] = level
        entry = state.entries[gsi]
        if self._is_level(entry):
            self._service_level(gsi)
        elif not entry & ENTRY_MASK and self._active(gsi):
            # Datasheet: edges on a masked pin are ignored, neither delivered nor held pending.
            self._send(entry)

    def irq_line(self, gsi: int) -> IrqLine:
        """A new wire into pin `gsi`; DeviceError for a pin that is not there."""
        if not 0 <= gsi < PINS:
            raise DeviceError(f"I/O APIC {self.state.ident}: pin {gsi} does not exist; use 0-{PINS - 1}")
        return IrqLine(self.set_irq, gsi)

    def eoi(self, vector: int) -> None:
        """A local APIC ended `vector`: level-triggered entries with it interrupt again if still active."""
        entries = self.state.entries
        for pin in range(PINS):
            entry = entries[pin]
            if entry & ENTRY_REMOTE_IRR and entry & ENTRY_VECTOR == vector:
                entries[pin] = entry & ~ENTRY_REMOTE_IRR
                self._service_level(pin)

    def may_send_nmi(self) -> bool:
        """True if an unmasked entry makes NMIs of its pin."""
        return any(
            not entry & ENTRY_MASK and entry >> 8 & 7 == DeliveryMode.NMI for entry in self.state.entries
        )

    def _active(self, pin: int) -> bool:
        """Whether the pin's level is the one the entry calls active."""
        asserted = self.state.pins[pin]
        if self._active_low is None:
            # Quirk: without wiring information the polarity bit is stored and read back, but changes nothing.
            return asserted
        electrical = asserted != (pin in self._active_low)
        return electrical != bool(self.state.entries[pin] & ENTRY_ACTIVE_LOW)

    @staticmethod
    def _is_level(entry: int) -> bool:
        """Level-triggered; SMI, NMI, INIT and ExtINT are edges whatever the trigger bit says."""
        return bool(entry & ENTRY_LEVEL) and entry >> 8 & 7 <= DeliveryMode.LOWEST

    def _service_level(self, pin: int) -> None:
        """Send a level-triggered entry that is active and not waiting for its EOI."""
        entries = self.state.entries
        entry = entries[pin] & ~ENTRY_SEND_PENDING
        entries[pin] = entry
        if entry & (ENTRY_MASK | ENTRY_REMOTE_IRR) or not self._is_level(entry) or not self._active(pin):
            return
        # Remote IRR first: taking the message may end it before `deliver` returns.
        entries[pin] = entry | ENTRY_REMOTE_IRR
        if not self._send(entry):
            entries[pin] = entry | ENTRY_SEND_PENDING

    def _send(self, entry: int) -> bool:
        mode = DeliveryMode(entry >> 8 & 7)
        if mode in (DeliveryMode.RESERVED, DeliveryMode.STARTUP):
            return False  # datasheet: both encodings are reserved in a redirection entry
        return self._deliver(
            IoApicMessage(
                destination=entry >> 56,
                logical=bool(entry & ENTRY_LOGICAL),
                mode=mode,
                vector=entry & ENTRY_VECTOR,
                level_triggered=self._is_level(entry),
            )
        )
