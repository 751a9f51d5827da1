"""MC146818 real-time clock with the PC's CMOS RAM behind ports 0x70 and 0x71. Not the host's clock.

Sources: MC146818 Real-Time Clock Plus RAM, sections "Address Map", "Registers" and "Update Cycle"; the
meaning of the RAM bytes is the IBM PC AT's, with the additions that SeaBIOS reads.

The time is a start date plus virtual time. Flags and registers are worked out when somebody looks; the clock
is asked to call only for an interrupt that is enabled and not yet flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from devices.base import Clock, DeviceError, IrqLine
from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offsets from port 0x70."""

    INDEX = 0  # bits 6:0 name a register, bit 7 masks NMI; write only
    DATA = 1


class Register:
    """CMOS register numbers ("Address Map")."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    DAY_OF_WEEK = 0x06  # 1 is Sunday
    DAY_OF_MONTH = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    CENTURY = 0x32  # beside the chip's own: where the PC's firmware and ACPI look for it


CMOS_BYTES = 128
FIRST_RAM_BYTE = 0x0E
INDEX_MASK = 0x7F
INDEX_NMI_MASK = 0x80

A_UPDATE_IN_PROGRESS = 0x80
A_DIVIDER_RESET = 0x60  # both bits set hold the divider chain in reset
A_RATE = 0x0F
A_POWER_ON = 0x26  # 32.768 kHz crystal, 1024 Hz: what the PC AT's firmware leaves

B_SET = 0x80
B_PERIODIC_ENABLE = 0x40
B_ALARM_ENABLE = 0x20
B_UPDATE_ENABLE = 0x10
B_SQUARE_WAVE = 0x08
B_BINARY = 0x04  # registers change their notation with it; the chip would need them written anew
B_24_HOURS = 0x02
# Quirk: B bit 0, daylight saving, is kept but moves no clock.
B_INTERRUPTS = 0x70

C_INTERRUPT = 0x80
C_PERIODIC = 0x40  # the flags stand where register B has their enables
C_ALARM = 0x20
C_UPDATE = 0x10

D_VALID_RAM_AND_TIME = 0x80

ALARM_ANY = 0xC0  # an alarm byte with both top bits set matches every value
HOUR_PM = 0x80

NS_PER_SECOND = 1_000_000_000
CRYSTAL_HZ = 32_768
UPDATE_WARNING_NS = 244_000  # UIP is set this long before the update
FIRST_UPDATE_NS = 500_000_000  # from the end of a divider reset to the first update
SECONDS_PER_DAY = 86_400
DAYS_PER_400_YEARS = 146_097

DEFAULT_START = datetime(2026, 1, 1, tzinfo=UTC)

KIB = 1 << 10
MIB = 1 << 20

CMOS_EQUIPMENT = 0x14
CMOS_BASE_MEMORY = 0x15  # KiB below 1 MiB, low byte first
CMOS_EXTENDED_MEMORY = (0x17, 0x30)  # KiB above 1 MiB, twice
CMOS_CHECKSUM_FIRST = 0x10
CMOS_CHECKSUM_LAST = 0x2D
CMOS_CHECKSUM = 0x2E  # high byte first
CMOS_MEMORY_ABOVE_16M = 0x34  # 64 KiB blocks
CMOS_BOOT_THIRD = 0x38  # high nibble: third boot device; bit 0: do not check a floppy's signature
CMOS_BOOT_FIRST = 0x3D  # low nibble: first boot device, high nibble: second
CMOS_MEMORY_ABOVE_4G = 0x5B  # 64 KiB blocks, three bytes
CMOS_CPUS = 0x5F  # how many processors beside the first

EQUIPMENT_FPU = 0x02
EQUIPMENT_PS2_MOUSE = 0x04
BOOT_NIBBLES = {"a": 1, "c": 2, "d": 3, "n": 4}  # floppy, hard disk, CD-ROM, network
BASE_MEMORY_KIB = 640


@dataclass(frozen=True, slots=True)
class CmosSetup:
    """What firmware reads from the CMOS RAM. Sizes in bytes; `boot_order` has up to three of a, c, d, n.

    `ram_below_4g` counts from address 0 and includes the hole below 1 MiB.
    """

    ram_below_4g: int = 0
    ram_above_4g: int = 0
    boot_order: str = ""
    check_floppy_signature: bool = True
    cpus: int = 1
    equipment: int = EQUIPMENT_FPU | EQUIPMENT_PS2_MOUSE

    def cmos(self) -> dict[int, int]:
        """The bytes by register number; DeviceError for a boot order that cannot be written down."""
        extended_kib = min(max(self.ram_below_4g // KIB - 1024, 0), 0xFFFF)
        above_16m = min(max(self.ram_below_4g - 16 * MIB, 0) >> 16, 0xFFFF)
        above_4g = min(self.ram_above_4g >> 16, 0xFFFFFF)
        cmos = {
            CMOS_EQUIPMENT: self.equipment & 0xFF,
            CMOS_CPUS: min(max(self.cpus - 1, 0), 0xFF),
        }
        _put(cmos, CMOS_BASE_MEMORY, min(self.ram_below_4g // KIB, BASE_MEMORY_KIB), 2)
        for register in CMOS_EXTENDED_MEMORY:
            _put(cmos, register, extended_kib, 2)
        _put(cmos, CMOS_MEMORY_ABOVE_16M, above_16m, 2)
        _put(cmos, CMOS_MEMORY_ABOVE_4G, above_4g, 3)
        if len(self.boot_order) > 3 or any(letter not in BOOT_NIBBLES for letter in self.boot_order):
            raise DeviceError(
                f"rtc_cmos: boot order {self.boot_order!r} is not up to three of "
                "a (floppy), c (disk), d (CD-ROM), n (network); write for example 'cd'"
            )
        first, second, third = ([BOOT_NIBBLES[letter] for letter in self.boot_order] + [0, 0, 0])[:3]
        cmos[CMOS_BOOT_FIRST] = second << 4 | first
        cmos[CMOS_BOOT_THIRD] = third << 4 | (0 if self.check_floppy_signature else 1)
        return cmos


def _put(cmos: dict[int, int], register: int, value: int, size: int) -> None:
    for i in range(size):
        cmos[register + i] = value >> 8 * i & 0xFF


@dataclass(slots=True)
class TimeFields:
    """The time registers as binary numbers; hours run 0..23, `year` is the full year.

    The chip keeps what the guest writes, possible date or not, until a carry has to make a date of it.
    """

    second: int
    minute: int
    hour: int
    weekday: int
    day: int
    month: int
    year: int

    def advance(self, seconds: int) -> None:
        """Count `seconds` (1 or more) onwards, as far as the carries go."""
        total = self.hour * 3600 + self.minute * 60 + self.second + seconds
        days, time_of_day = divmod(total, SECONDS_PER_DAY)
        self.hour, rest = divmod(time_of_day, 3600)
        self.minute, self.second = divmod(rest, 60)
        if days:
            self._advance_days(days)

    def _advance_days(self, days: int) -> None:
        # Quirk: a date that does not exist becomes the nearest one when a day ends.
        cycles, days_left = divmod(days, DAYS_PER_400_YEARS)
        year = 2000 + self.year % 400  # the calendar repeats: any year fits into the range of `date`
        month = min(max(self.month, 1), 12)
        first = date(year, month, 1)
        last_day = (date(year + month // 12, month % 12 + 1, 1) - first).days
        today = first.replace(day=min(max(self.day, 1), last_day)) + timedelta(days=days_left)
        self.weekday = (self.weekday - 1 + days) % 7 + 1
        self.day = today.day
        self.month = today.month
        self.year = (self.year + today.year - year + 400 * cycles) % 10_000


@dataclass(slots=True)
class RtcState:
    """Registers, RAM and the reference points in virtual nanoseconds.

    `time` was right in second number `time_second`; seconds are counted from `phase_ns`, where an update
    would have ended. `looked_ns` is up to when register C knows the past.
    """

    time: TimeFields
    time_second: int
    phase_ns: int
    ram: bytearray
    index: int = Register.D
    nmi_masked: bool = False
    a: int = A_POWER_ON
    b: int = B_24_HOURS
    c: int = 0
    looked_ns: int = 0
    alarm: list[int] = field(default_factory=lambda: [0, 0, 0])  # seconds, minutes, hours, as written


class RtcCmos(ByteDevice):
    """The PC's clock chip. `irq` is IRQ8, `start` the date at virtual time 0 (taken as UTC if it is naive).

    `setup` fills what firmware reads; `cmos` then overrides single RAM bytes (0x0E..0x7F except 0x32), and
    the checksum over 0x10..0x2D follows unless `cmos` gives it. DeviceError for a byte outside that range.
    """

    name = "rtc_cmos"
    state: RtcState

    def __init__(
        self,
        irq: IrqLine,
        clock: Clock,
        start: datetime = DEFAULT_START,
        setup: CmosSetup | None = None,
        cmos: Mapping[int, int] | None = None,
    ) -> None:
        self.irq = irq
        self._clock = clock
        self._timer: int | None = None
        if start.tzinfo is not None:
            start = start.astimezone(UTC)
        phase_ns = -start.microsecond * 1000 % NS_PER_SECOND
        self.state = RtcState(
            time=TimeFields(
                start.second,
                start.minute,
                start.hour,
                start.isoweekday() % 7 + 1,
                start.day,
                start.month,
                start.year,
            ),
            time_second=-phase_ns // NS_PER_SECOND,
            phase_ns=phase_ns,
            ram=_initial_ram(setup or CmosSetup(), cmos or {}),
        )

    @property
    def nmi_masked(self) -> bool:
        """Whether port 0x70 bit 7 holds back non-maskable interrupts."""
        return self.state.nmi_masked

    def read_byte(self, offset: int) -> int:
        """The register that the index port names; the index itself cannot be read back."""
        match offset:
            case Offset.DATA:
                return self._read_register(self.state.index)
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """The index with the NMI mask, or the register it names."""
        match offset:
            case Offset.INDEX:
                self.state.index = value & INDEX_MASK
                self.state.nmi_masked = bool(value & INDEX_NMI_MASK)
            case Offset.DATA:
                self._write_register(self.state.index, value)
            case _:
                pass

    def reset(self) -> None:
        """The RESET pin: interrupts off, flags cleared. Time and RAM live on the battery and stay."""
        self._look()
        state = self.state
        self.state = RtcState(
            time=state.time,
            time_second=state.time_second,
            phase_ns=state.phase_ns,
            ram=state.ram,
            a=state.a,
            b=state.b & ~(B_INTERRUPTS | B_SQUARE_WAVE),
            looked_ns=state.looked_ns,
            alarm=state.alarm,
        )
        self._update()

    def rearm(self) -> None:
        """Schedule the next enabled interrupt and drive IRQ8 again."""
        self._update()

    # ------------------------------------------------------------------ registers

    def _read_register(self, register: int) -> int:
        state = self.state
        match register:
            case Register.SECONDS_ALARM:
                return state.alarm[0]
            case Register.MINUTES_ALARM:
                return state.alarm[1]
            case Register.HOURS_ALARM:
                return state.alarm[2]
            case Register.A:
                return state.a | (A_UPDATE_IN_PROGRESS if self._updating(self._clock.now_ns()) else 0)
            case Register.B:
                return state.b
            case Register.C:
                self._look()
                flags = state.c | (C_INTERRUPT if state.c & state.b & B_INTERRUPTS else 0)
                state.c = 0
                self._update()
                return flags
            case Register.D:
                return D_VALID_RAM_AND_TIME
            case _:
                if register < Register.A or register == Register.CENTURY:
                    return self._read_time(register)
                return state.ram[register]

    def _write_register(self, register: int, value: int) -> None:
        state = self.state
        match register:
            case Register.SECONDS_ALARM | Register.MINUTES_ALARM | Register.HOURS_ALARM:
                self._look()
                state.alarm[register >> 1] = value
                self._update()
            case Register.A:
                self._write_a(value)
            case Register.B:
                self._look()
                if state.b & ~value & B_SET:
                    state.time_second = self._second_number(self._clock.now_ns())
                if value & B_SET:
                    value &= ~B_UPDATE_ENABLE  # "SET ... clears the UIE bit"
                state.b = value
                self._update()
            case Register.C | Register.D:
                pass  # read only
            case _:
                if register < Register.A or register == Register.CENTURY:
                    self._look()
                    self._write_time(register, value)
                    self._update()
                else:
                    state.ram[register] = value

    def _write_a(self, value: int) -> None:
        state = self.state
        self._look()
        held_before = self._divider_held()
        state.a = value & ~A_UPDATE_IN_PROGRESS
        if held_before and not self._divider_held():
            now_ns = self._clock.now_ns()
            state.phase_ns = now_ns + FIRST_UPDATE_NS
            state.time_second = self._second_number(now_ns)
        self._update()

    # ------------------------------------------------------------------ time

    def _divider_held(self) -> bool:
        # Quirk: every other divider setting runs the 32.768 kHz chain; a PC has no other crystal.
        return self.state.a & A_DIVIDER_RESET == A_DIVIDER_RESET

    def _counting(self) -> bool:
        return not self.state.b & B_SET and not self._divider_held()

    def _second_number(self, now_ns: int) -> int:
        return (now_ns - self.state.phase_ns) // NS_PER_SECOND

    def _updating(self, now_ns: int) -> bool:
        into_second = (now_ns - self.state.phase_ns) % NS_PER_SECOND
        return self._counting() and into_second >= NS_PER_SECOND - UPDATE_WARNING_NS

    def _read_time(self, register: int) -> int:
        self._look()
        time = self.state.time
        match register:
            case Register.SECONDS:
                return self._encode(time.second)
            case Register.MINUTES:
                return self._encode(time.minute)
            case Register.HOURS:
                if self.state.b & B_24_HOURS:
                    return self._encode(time.hour)
                return self._encode((time.hour + 11) % 12 + 1) | (HOUR_PM if time.hour >= 12 else 0)
            case Register.DAY_OF_WEEK:
                return self._encode(time.weekday)
            case Register.DAY_OF_MONTH:
                return self._encode(time.day)
            case Register.MONTH:
                return self._encode(time.month)
            case Register.YEAR:
                return self._encode(time.year % 100)
            case _:
                return self._encode(time.year // 100)

    def _write_time(self, register: int, value: int) -> None:
        time = self.state.time
        match register:
            case Register.SECONDS:
                time.second = self._decode(value)
            case Register.MINUTES:
                time.minute = self._decode(value)
            case Register.HOURS:
                time.hour = self._decode_hour(value)
            case Register.DAY_OF_WEEK:
                time.weekday = self._decode(value)
            case Register.DAY_OF_MONTH:
                time.day = self._decode(value)
            case Register.MONTH:
                time.month = self._decode(value)
            case Register.YEAR:
                time.year = time.year // 100 * 100 + self._decode(value) % 100
            case _:
                time.year = self._decode(value) % 100 * 100 + time.year % 100

    def _encode(self, number: int) -> int:
        if not self.state.b & B_BINARY:
            number = number // 10 << 4 | number % 10
        return number & 0xFF

    def _decode(self, value: int) -> int:
        return value if self.state.b & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _decode_hour(self, value: int) -> int:
        if self.state.b & B_24_HOURS:
            return self._decode(value)
        return self._decode(value & ~HOUR_PM) % 12 + (12 if value & HOUR_PM else 0)

    # ------------------------------------------------------------------ alarm

    def _seconds_to_alarm(self) -> int | None:
        """Seconds from the present second to the next one that matches the alarm bytes, or None."""
        time = self.state.time
        present = (time.hour * 3600 + time.minute * 60 + time.second) % SECONDS_PER_DAY
        seconds_byte, minutes_byte, hours_byte = self.state.alarm
        seconds = self._alarm_values(seconds_byte, 60)
        minutes = self._alarm_values(minutes_byte, 60)
        if hours_byte & ALARM_ANY == ALARM_ANY:
            hours = range(24)
        else:
            hours = _one_of(self._decode_hour(hours_byte), 24)
        if not len(seconds) or not len(minutes):
            return None
        for day_start in (0, SECONDS_PER_DAY):
            for hour in hours:
                hour_start = day_start + hour * 3600
                if hour_start + minutes[-1] * 60 + seconds[-1] <= present:
                    continue
                for minute in minutes:
                    minute_start = hour_start + minute * 60
                    if minute_start + seconds[-1] > present:
                        return next(minute_start + s for s in seconds if minute_start + s > present) - present
        return None

    def _alarm_values(self, byte: int, limit: int) -> range:
        if byte & ALARM_ANY == ALARM_ANY:
            return range(limit)
        return _one_of(self._decode(byte), limit)

    # ------------------------------------------------------------------ interrupts

    def _period(self, now_ns: int) -> int:
        """The number of the periodic interrupt's present period; 0 for ever at rate 0."""
        length = self._period_crystals()
        return (now_ns - self.state.phase_ns) * CRYSTAL_HZ // NS_PER_SECOND // length if length else 0

    def _period_crystals(self) -> int:
        """The periodic interrupt's period in crystal clocks, 0 for none (register A, "Rate Selection")."""
        rate = self.state.a & A_RATE
        if rate == 0 or self._divider_held():
            return 0
        return 1 << (rate + 6 if rate < 3 else rate - 1)  # rates 1 and 2 repeat 8 and 9

    def _look(self) -> None:
        """Set the flags of everything that happened since the last look, and bring the time up to date."""
        state = self.state
        now_ns = self._clock.now_ns()
        if self._period(now_ns) != self._period(state.looked_ns):
            state.c |= C_PERIODIC
        if self._counting():
            second = self._second_number(now_ns)
            passed = second - state.time_second
            if passed:
                state.c |= C_UPDATE
                to_alarm = None if state.c & C_ALARM else self._seconds_to_alarm()
                if to_alarm is not None and to_alarm <= passed:
                    state.c |= C_ALARM
                state.time.advance(passed)
                state.time_second = second
        state.looked_ns = now_ns

    def _update(self) -> None:
        """Drive IRQ8 and ask for a call at the next moment that could raise it."""
        if self._timer is not None:
            self._clock.cancel(self._timer)
            self._timer = None
        state = self.state
        raised = bool(state.c & state.b & B_INTERRUPTS)
        self.irq.set_level(raised)
        if raised or not state.b & B_INTERRUPTS:
            return  # only reading register C lowers the line, and that comes here again
        deadlines: list[int] = []
        now_ns = self._clock.now_ns()
        length = self._period_crystals()
        if state.b & B_PERIODIC_ENABLE and length:
            crystals = (self._period(now_ns) + 1) * length
            deadlines.append(state.phase_ns - (-crystals * NS_PER_SECOND // CRYSTAL_HZ))
        if self._counting():
            second_ns = state.phase_ns + state.time_second * NS_PER_SECOND
            if state.b & B_UPDATE_ENABLE:
                deadlines.append(state.phase_ns + (self._second_number(now_ns) + 1) * NS_PER_SECOND)
            if state.b & B_ALARM_ENABLE:
                to_alarm = self._seconds_to_alarm()
                if to_alarm is not None:
                    deadlines.append(second_ns + to_alarm * NS_PER_SECOND)
        if deadlines:
            self._timer = self._clock.call_at(min(deadlines), self._on_deadline)

    def _on_deadline(self, now_ns: int) -> None:
        self._timer = None
        self._look()
        self._update()


def _one_of(value: int, limit: int) -> range:
    return range(value, value + 1) if value < limit else range(0)


def _initial_ram(setup: CmosSetup, cmos: Mapping[int, int]) -> bytearray:
    ram = bytearray(CMOS_BYTES)
    for register, value in setup.cmos().items():
        ram[register] = value
    for register, value in cmos.items():
        if (
            not FIRST_RAM_BYTE <= register < CMOS_BYTES
            or register == Register.CENTURY
            or not 0 <= value <= 0xFF
        ):
            raise DeviceError(
                f"rtc_cmos: initial byte {value:#x} at {register:#x} is not RAM; "
                "give bytes 0..0xff for 0x0e..0x7f except the century at 0x32"
            )
        ram[register] = value
    if CMOS_CHECKSUM not in cmos and CMOS_CHECKSUM + 1 not in cmos:
        checksum = sum(ram[CMOS_CHECKSUM_FIRST : CMOS_CHECKSUM_LAST + 1])
        ram[CMOS_CHECKSUM], ram[CMOS_CHECKSUM + 1] = checksum >> 8 & 0xFF, checksum & 0xFF
    return ram
