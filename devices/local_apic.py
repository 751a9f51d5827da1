"""The local APIC of one processor: xAPIC page, x2APIC MSRs and timer. Not the I/O APIC, not the processor.

Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)"; register numbers as
in x86_vlapic. The processor sees the output (INTR), `acknowledge`, CR8 and IA32_APIC_BASE; the board drives
LINT0 and LINT1; other local APICs are reached through the wires given to the constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from devices.base import Clock, Device, DeviceError, ones

NS_PER_S: Final = 1_000_000_000
M32: Final = 0xFFFF_FFFF
M64: Final = 0xFFFF_FFFF_FFFF_FFFF


class Reg:
    """Register numbers: the page offset is 16 times this, the x2APIC MSR is 0x800 plus this."""

    ID: Final = 0x02
    VERSION: Final = 0x03
    TPR: Final = 0x08
    APR: Final = 0x09
    PPR: Final = 0x0A
    EOI: Final = 0x0B
    RRD: Final = 0x0C
    LDR: Final = 0x0D
    DFR: Final = 0x0E
    SVR: Final = 0x0F
    ISR: Final = 0x10  # 8 registers of 32 vectors each, as are TMR and IRR
    TMR: Final = 0x18
    IRR: Final = 0x20
    ESR: Final = 0x28
    LVT_CMCI: Final = 0x2F
    ICR: Final = 0x30  # low half in xAPIC mode, all 64 bits in x2APIC mode
    ICR_HIGH: Final = 0x31
    LVT_TIMER: Final = 0x32
    LVT_THERMAL: Final = 0x33
    LVT_PMC: Final = 0x34
    LVT_LINT0: Final = 0x35
    LVT_LINT1: Final = 0x36
    LVT_ERROR: Final = 0x37
    INITIAL_COUNT: Final = 0x38
    CURRENT_COUNT: Final = 0x39
    DIVIDE: Final = 0x3E
    SELF_IPI: Final = 0x3F


PAGE_SIZE: Final = 0x1000  # bytes of the xAPIC window
MSR_COUNT: Final = 0x100  # MSRs 0x800-0x8FF belong to the x2APIC; those without a register fault

VERSION_INTEGRATED: Final = 0x14
MAX_LVT: Final = 6  # seven LVT entries, CMCI included
VERSION_DIRECTED_EOI: Final = 1 << 24

APIC_BASE_BSP: Final = 1 << 8
APIC_BASE_EXTD: Final = 1 << 10
APIC_BASE_EN: Final = 1 << 11
MODE_BITS: Final = APIC_BASE_EN | APIC_BASE_EXTD
MODE_XAPIC: Final = APIC_BASE_EN
MODE_X2APIC: Final = APIC_BASE_EN | APIC_BASE_EXTD

SVR_ENABLE: Final = 1 << 8
SVR_SUPPRESS_BROADCAST: Final = 1 << 12
SVR_RESET: Final = 0xFF

LVT_MASK: Final = 1 << 16
LVT_LEVEL: Final = 1 << 15
LVT_REMOTE_IRR: Final = 1 << 14
LVT_ACTIVE_LOW: Final = 1 << 13
LVT_STATUS: Final = 1 << 12
LVT_RESET: Final = LVT_MASK

TIMER_ONE_SHOT: Final = 0
TIMER_PERIODIC: Final = 1
TIMER_TSC_DEADLINE: Final = 2

ESR_SEND_ILLEGAL_VECTOR: Final = 1 << 5
ESR_RECEIVE_ILLEGAL_VECTOR: Final = 1 << 6
ESR_ILLEGAL_REGISTER: Final = 1 << 7

ICR_LEVEL: Final = 1 << 14
ICR_TRIGGER: Final = 1 << 15
ICR_WRITABLE: Final = 0x000C_CFFF  # low half, without the read-only delivery status
X2APIC_ICR_RESERVED: Final = 0xFFF3_2000  # bit 12, once the delivery status, is ignored

LOWEST_VECTOR: Final = 16  # vectors 0 to 15 belong to exceptions

BROADCAST_XAPIC: Final = 0xFF
BROADCAST_X2APIC: Final = M32

# x2APIC: which registers RDMSR and WRMSR reach (table "Local APIC Register Address Map Supported by x2APIC").
_VECTOR_REGISTERS: Final = frozenset(range(Reg.ISR, Reg.IRR + 8))
_LVT_REGISTERS: Final = frozenset({Reg.LVT_CMCI, *range(Reg.LVT_TIMER, Reg.LVT_ERROR + 1)})
_X2APIC_READ_WRITE: Final = _LVT_REGISTERS | {
    Reg.TPR,
    Reg.SVR,
    Reg.ESR,
    Reg.ICR,
    Reg.INITIAL_COUNT,
    Reg.DIVIDE,
}
_X2APIC_READABLE: Final = (
    _X2APIC_READ_WRITE | _VECTOR_REGISTERS | {Reg.ID, Reg.VERSION, Reg.PPR, Reg.LDR, Reg.CURRENT_COUNT}
)
_X2APIC_WRITABLE: Final = _X2APIC_READ_WRITE | {Reg.EOI, Reg.SELF_IPI}


class Lvt(IntEnum):
    """Local vector table entries, in the order they are kept in `LocalApicState.lvt`."""

    TIMER = 0
    THERMAL = 1
    PMC = 2
    LINT0 = 3
    LINT1 = 4
    ERROR = 5
    CMCI = 6


# Writable bits of each LVT entry; the read-only status bits are added where reserved bits fault.
_LVT_WRITABLE: Final = (0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF, 0x107FF)


class DeliveryMode(IntEnum):
    """Delivery mode field of the ICR, of an LVT entry and of an I/O APIC redirection entry."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    RESERVED = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(IntEnum):
    """Destination shorthand field of the ICR."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


class SysRegFault(DeviceError):
    """An MSR access that hardware answers with #GP(0); the processor injects it."""


@dataclass(frozen=True, slots=True)
class IpiMessage:
    """One interrupt message between local APICs.

    `destination` is an 8-bit (xAPIC) or 32-bit (x2APIC) physical or logical address, `level` is the assert
    bit and `trigger` is True for level-triggered. A message that reaches `send_ipi` is for the others only:
    what the sender takes itself is delivered already.
    """

    destination: int
    mode: DeliveryMode
    vector: int
    level: bool = True
    trigger: bool = False
    shorthand: Shorthand = Shorthand.NONE
    logical: bool = False


def _no_ipi(_message: IpiMessage) -> None:
    """A machine with one local APIC."""


def _no_vector(_vector: int) -> None:
    """A wire that ends nowhere."""


def _no_signal() -> None:
    """A wire that ends nowhere."""


@dataclass(frozen=True, slots=True)
class LocalApicWires:
    """What a local APIC drives. Every wire may stay unconnected.

    `send_ipi` carries a message to the other local APICs; `on_eoi` tells the I/O APICs that a level-triggered
    vector ended; `on_nmi`, `on_smi` and `on_startup(vector)` act on the processor; `on_init` resets the
    processor and calls `init_reset`. `acknowledge_extint` runs the 8259's INTA cycle and returns its vector;
    without it ExtINT is not part of the output and the caller asks `lint0_accepts_extint`.
    """

    send_ipi: Callable[[IpiMessage], None] = _no_ipi
    on_eoi: Callable[[int], None] = _no_vector
    on_nmi: Callable[[], None] = _no_signal
    on_smi: Callable[[], None] = _no_signal
    on_init: Callable[[], None] = _no_signal
    on_startup: Callable[[int], None] = _no_vector
    acknowledge_extint: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class LocalApicConfig:
    """What is fixed when the processor is built.

    `timer_hz` is the rate before the divider, `tsc_hz` the rate of the TSC. `physical_bits` is MAXPHYADDR.
    `directed_eoi` offers EOI-broadcast suppression (version register bit 24). `min_period_ns` is the shortest
    interval between two interrupts of the periodic timer.
    """

    apic_id: int = 0
    bootstrap: bool = True
    base: int = 0xFEE0_0000
    physical_bits: int = 36
    timer_hz: int = NS_PER_S
    tsc_hz: int = NS_PER_S
    x2apic: bool = True
    tsc_deadline: bool = True
    directed_eoi: bool = False
    min_period_ns: int = 10_000


def _reset_lvt() -> list[int]:
    return [LVT_RESET] * len(Lvt)


@dataclass(slots=True)
class LocalApicState:
    """Everything a snapshot needs. ISR, TMR and IRR are 256-bit integers, bit n for vector n."""

    apic_base: int
    xapic_id: int
    ldr: int = 0
    dfr: int = M32
    tpr: int = 0
    svr: int = SVR_RESET
    isr: int = 0
    tmr: int = 0
    irr: int = 0
    esr: int = 0
    esr_pending: int = 0
    icr: int = 0
    lvt: list[int] = field(default_factory=_reset_lvt)
    initial_count: int = 0
    divide: int = 0
    timer_base_ns: int = 0  # when the count was timer_base_count
    timer_base_count: int = 0
    timer_deadline_ns: int | None = None
    tsc_deadline: int = 0
    tsc_offset: int = 0
    lint0: bool = False
    lint1: bool = False
    extint_pending: bool = False  # an ExtINT message that the processor has not acknowledged
    intr: bool = False


def _highest(vectors: int) -> int:
    """The highest vector in a 256-bit register, -1 when there is none."""
    return vectors.bit_length() - 1


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _divisor(divide: int) -> int:
    """The timer's divisor, 1 to 128, from bits 3, 1 and 0 of the divide configuration register."""
    return 1 << (((divide & 3 | divide >> 1 & 4) + 1) & 7)


def x2apic_logical_id(apic_id: int) -> int:
    """The LDR that x2APIC mode derives from the 32-bit APIC ID (SDM: "Logical x2APIC ID")."""
    return (apic_id >> 4 & 0xFFFF) << 16 | 1 << (apic_id & 0xF)


def _lvt_slot(register: int) -> Lvt:
    return Lvt.CMCI if register == Reg.LVT_CMCI else Lvt(register - Reg.LVT_TIMER)


class LocalApic(Device):
    """The local APIC. As a device it is the xAPIC page; `LocalApicMsrs` is its x2APIC face.

    `output(level)` is the INTR wire to the processor, told of changes only.
    """

    name = "local-apic"
    state: LocalApicState

    def __init__(
        self,
        clock: Clock,
        output: Callable[[bool], None],
        config: LocalApicConfig | None = None,
        wires: LocalApicWires | None = None,
    ) -> None:
        """DeviceError when the configuration names an impossible ID or frequency."""
        self.config = config = config if config is not None else LocalApicConfig()
        if not 0 <= config.apic_id < M32 or (not config.x2apic and config.apic_id >= BROADCAST_XAPIC):
            raise DeviceError(
                f"local APIC: ID {config.apic_id:#x} is out of range; take 0x0-0xfe, or more with x2APIC"
            )
        if config.timer_hz <= 0 or config.tsc_hz <= 0:
            raise DeviceError(
                f"local APIC {config.apic_id}: timer {config.timer_hz} Hz and TSC {config.tsc_hz} Hz; "
                "give both a positive frequency"
            )
        self._clock = clock
        self._output = output
        self._wires = wires if wires is not None else LocalApicWires()
        self._timer_token: int | None = None
        self._lvt_writable = _LVT_WRITABLE
        if not config.tsc_deadline:
            self._lvt_writable = (0x300FF, *_LVT_WRITABLE[1:])
        self._svr_writable = 0x1FF | (SVR_SUPPRESS_BROADCAST if config.directed_eoi else 0)
        self.state = self._power_on_state()

    # ---- reset and snapshot ------------------------------------------------------------------------------

    def _power_on_state(self) -> LocalApicState:
        config = self.config
        bootstrap = APIC_BASE_BSP if config.bootstrap else 0
        return LocalApicState(
            apic_base=config.base | APIC_BASE_EN | bootstrap, xapic_id=config.apic_id & 0xFF
        )

    def reset(self) -> None:
        """SDM "Local APIC State After Power-Up or Reset"; the levels of the LINT pins are the board's."""
        self._replace_state(self._power_on_state())

    def init_reset(self) -> None:
        """SDM "Local APIC State After an INIT Reset": as power-up, but mode, base and APIC ID stay."""
        old = self.state
        new = LocalApicState(apic_base=old.apic_base, xapic_id=old.xapic_id)
        if old.apic_base & MODE_BITS == MODE_X2APIC:
            new.ldr = x2apic_logical_id(self.config.apic_id)
        self._replace_state(new)

    def _replace_state(self, new: LocalApicState) -> None:
        old = self.state
        self._disarm()
        new.lint0, new.lint1, new.intr = old.lint0, old.lint1, old.intr
        new.tsc_offset = old.tsc_offset
        self.state = new
        self._update()

    def rearm(self) -> None:
        """Schedule the timer and drive INTR again from `state`."""
        deadline = self.state.timer_deadline_ns
        self._cancel_timer()
        if deadline is not None:
            self._timer_token = self._clock.call_at(deadline, self._on_timer)
        self._output(self.state.intr)

    def enter_virtual_wire_mode(self) -> None:
        """What firmware leaves behind on a PC: enabled, LINT0 is ExtINT, LINT1 is NMI.

        MultiProcessor Specification, "Virtual Wire Mode". For machines that start a guest without firmware.
        """
        state = self.state
        state.svr |= SVR_ENABLE
        state.lvt[Lvt.LINT0] = DeliveryMode.EXTINT << 8
        state.lvt[Lvt.LINT1] = DeliveryMode.NMI << 8
        self._update()

    # ---- IA32_APIC_BASE ----------------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """Guest-physical address of the xAPIC page."""
        return self.state.apic_base & ~0xFFF

    @property
    def enabled(self) -> bool:
        """Whether IA32_APIC_BASE enables the APIC (either mode)."""
        return bool(self.state.apic_base & APIC_BASE_EN)

    @property
    def x2apic_mode(self) -> bool:
        """Whether the registers are MSRs."""
        return self.state.apic_base & MODE_BITS == MODE_X2APIC

    @property
    def apic_id(self) -> int:
        """The ID this APIC answers to: 32 bits in x2APIC mode, 8 bits otherwise."""
        return self.config.apic_id if self.x2apic_mode else self.state.xapic_id

    def read_apic_base(self) -> int:
        """RDMSR of IA32_APIC_BASE (0x1B)."""
        return self.state.apic_base

    def write_apic_base(self, value: int) -> None:
        """WRMSR of IA32_APIC_BASE; SysRegFault for reserved bits and for transitions the SDM forbids.

        SDM "x2APIC State Transitions". The window itself is moved by who mapped it.
        """
        state = self.state
        writable = ((1 << self.config.physical_bits) - 1) & ~0xFFF | APIC_BASE_BSP | APIC_BASE_EN
        if self.config.x2apic:
            writable |= APIC_BASE_EXTD
        old_mode, new_mode = state.apic_base & MODE_BITS, value & MODE_BITS
        if value & ~writable:
            raise SysRegFault(
                f"IA32_APIC_BASE: value {value:#x} sets reserved bits; clear {value & ~writable:#x}"
            )
        if new_mode == APIC_BASE_EXTD or (old_mode, new_mode) in {
            (0, MODE_X2APIC),
            (MODE_X2APIC, MODE_XAPIC),
        }:
            raise SysRegFault(
                f"IA32_APIC_BASE: mode bits {old_mode:#x} cannot become {new_mode:#x}; "
                "go disabled, xAPIC, x2APIC in this order and back through disabled"
            )
        state.apic_base = value
        if new_mode == old_mode:
            return
        if new_mode == 0:
            self._replace_state(LocalApicState(apic_base=value, xapic_id=self.config.apic_id & 0xFF))
        elif new_mode == MODE_X2APIC:
            # SDM: LDR, a changed APIC ID and the high half of ICR are not preserved; all else is.
            state.xapic_id = self.config.apic_id & 0xFF
            state.ldr = x2apic_logical_id(self.config.apic_id)
            state.icr &= M32
            self._update()
        else:
            self._update()

    # ---- the xAPIC page ----------------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A register of the xAPIC page; all ones while the page is not there (disabled or x2APIC mode)."""
        if self.state.apic_base & MODE_BITS != MODE_XAPIC:
            return ones(width)
        byte = offset & 0xF
        if byte >= 4:  # SDM: touching bytes 4 to 15 is undefined; here they are zero
            return 0
        return self.read_register(offset >> 4) >> 8 * byte & ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """A register of the xAPIC page; lost while the page is not there."""
        # Quirk: xAPIC writes that are not 32 bits wide and 16-byte aligned are ignored (SDM: undefined).
        if width == 4 and not offset & 0xF and self.state.apic_base & MODE_BITS == MODE_XAPIC:
            self.write_register(offset >> 4, value & M32)

    def read_register(self, register: int) -> int:
        """Register number to its 32-bit value (ICR: 64 bits in x2APIC mode), the same for both faces."""
        state = self.state
        match register:
            case Reg.CURRENT_COUNT:
                return self._current_count()
            case Reg.ICR:
                return state.icr if self.x2apic_mode else state.icr & M32
            case Reg.ICR_HIGH:
                return state.icr >> 32
            case Reg.TPR:
                return state.tpr
            case Reg.PPR:
                return self._ppr()
            case Reg.APR:
                return self.arbitration_priority()
            case Reg.ID:
                return self.config.apic_id if self.x2apic_mode else state.xapic_id << 24
            case Reg.VERSION:
                directed = VERSION_DIRECTED_EOI if self.config.directed_eoi else 0
                return VERSION_INTEGRATED | MAX_LVT << 16 | directed
            case Reg.LDR:
                return state.ldr
            case Reg.DFR:
                return state.dfr
            case Reg.SVR:
                return state.svr
            case Reg.ESR:
                return state.esr
            case Reg.INITIAL_COUNT:
                return state.initial_count
            case Reg.DIVIDE:
                return state.divide
            case Reg.EOI | Reg.RRD:
                return 0  # EOI is write-only; remote read died with the Pentium
            case _ if register in _LVT_REGISTERS:
                return state.lvt[_lvt_slot(register)]
            case _ if Reg.ISR <= register < Reg.TMR:
                return state.isr >> 32 * (register - Reg.ISR) & M32
            case _ if Reg.TMR <= register < Reg.IRR:
                return state.tmr >> 32 * (register - Reg.TMR) & M32
            case _ if Reg.IRR <= register < Reg.ESR:
                return state.irr >> 32 * (register - Reg.IRR) & M32
            case _:
                self._error(ESR_ILLEGAL_REGISTER)
                return 0

    def write_register(self, register: int, value: int) -> None:
        """Store a 32-bit value (ICR in x2APIC mode: 64 bits); reserved bits are ignored, as in xAPIC mode."""
        state = self.state
        match register:
            case Reg.EOI:
                self._end_of_interrupt()
            case Reg.TPR:
                state.tpr = value & 0xFF
                self._update()
            case Reg.ICR:
                self._write_icr(value)
            case Reg.ICR_HIGH:
                state.icr = state.icr & M32 | (value & 0xFF00_0000) << 32
            case Reg.INITIAL_COUNT:
                self._write_initial_count(value)
            case Reg.DIVIDE:
                self._write_divide(value)
            case Reg.SVR:
                state.svr = value & self._svr_writable
                if not value & SVR_ENABLE:
                    state.lvt = [entry | LVT_MASK for entry in state.lvt]
                    self._schedule()
                self._update()
            case Reg.ESR:
                state.esr, state.esr_pending = state.esr_pending, 0
            case Reg.ID:
                state.xapic_id = value >> 24
            case Reg.LDR:
                state.ldr = value & 0xFF00_0000
            case Reg.DFR:
                state.dfr = value | 0x0FFF_FFFF
            case Reg.SELF_IPI if self.x2apic_mode:
                self._send(
                    IpiMessage(0, DeliveryMode.FIXED, value & 0xFF, shorthand=Shorthand.SELF), self.apic_id
                )
            case Reg.VERSION | Reg.APR | Reg.PPR | Reg.RRD | Reg.CURRENT_COUNT:
                pass  # read-only
            case _ if register in _LVT_REGISTERS:
                self._write_lvt(_lvt_slot(register), value)
            case _ if register in _VECTOR_REGISTERS:
                pass  # read-only
            case _:
                self._error(ESR_ILLEGAL_REGISTER)

    # ---- the processor's side ----------------------------------------------------------------------------

    def read_cr8(self) -> int:
        """CR8: the task priority class, 0 to 15."""
        return self.state.tpr >> 4

    def write_cr8(self, value: int) -> None:
        """MOV to CR8: TPR becomes the class in bits 7:4 and zero in bits 3:0."""
        self.state.tpr = (value & 0xF) << 4
        self._update()

    def acknowledge(self) -> int:
        """The processor takes the interrupt: its vector, or the spurious vector when nothing is left.

        An ExtINT goes first: it stands outside the priorities, and its vector comes from the 8259.
        """
        state = self.state
        acknowledge_extint = self._wires.acknowledge_extint
        if acknowledge_extint is not None and self._extint():
            state.extint_pending = False
            vector = acknowledge_extint() & 0xFF
            self._update()
            return vector
        vector = _highest(state.irr)
        if vector >> 4 <= self._ppr() >> 4:  # also when IRR is empty
            return state.svr & 0xFF
        state.irr ^= 1 << vector
        state.isr |= 1 << vector
        self._update()
        return vector

    def accept(self, vector: int, level_triggered: bool = False) -> bool:
        """Take a fixed interrupt into IRR and TMR; False if the APIC is disabled or the vector is illegal."""
        state = self.state
        if not state.svr & SVR_ENABLE or not state.apic_base & APIC_BASE_EN:
            return False
        if vector < LOWEST_VECTOR:
            self._error(ESR_RECEIVE_ILLEGAL_VECTOR)
            return False
        bit = 1 << (vector & 0xFF)
        state.irr |= bit
        if level_triggered:
            state.tmr |= bit
        else:
            state.tmr &= ~bit
        self._update()
        return True

    def receive(self, message: IpiMessage) -> bool:
        """Take a message that `matches` this APIC; False if nobody was there to take it.

        A software-disabled APIC still takes INIT, NMI, SMI and SIPI.
        """
        if not self.state.apic_base & APIC_BASE_EN:
            return False
        match message.mode:
            case DeliveryMode.FIXED | DeliveryMode.LOWEST:
                return self.accept(message.vector, message.trigger)
            case DeliveryMode.EXTINT:
                self.state.extint_pending = True
                self._update()
            case DeliveryMode.NMI:
                self._wires.on_nmi()
            case DeliveryMode.SMI:
                self._wires.on_smi()
            case DeliveryMode.INIT:
                self._wires.on_init()
            case DeliveryMode.STARTUP:
                self._wires.on_startup(message.vector)
            case _:
                return False
        return True

    def matches(self, destination: int, logical: bool) -> bool:
        """Whether a message to `destination` is for this APIC (SDM "Determining IPI Destination")."""
        state = self.state
        if destination == BROADCAST_X2APIC:
            return True
        if not logical:
            # Quirk: 0xff is a broadcast in x2APIC mode too, since I/O APIC messages carry 8 bits.
            return destination in (BROADCAST_XAPIC, self.apic_id)
        if self.x2apic_mode:
            return destination >> 16 == state.ldr >> 16 and bool(destination & state.ldr & 0xFFFF)
        if destination == BROADCAST_XAPIC:
            return True
        own = state.ldr >> 24
        match state.dfr >> 28:
            case 0xF:
                return bool(destination & own)
            case 0x0:
                same_cluster = destination >> 4 == 0xF or destination >> 4 == own >> 4
                return same_cluster and bool(destination & own & 0xF)
            case _:
                return False  # other models are reserved

    def arbitration_priority(self) -> int:
        """APR (SDM "Arbitration Priority Register"): lowest-priority delivery picks the smallest."""
        state = self.state
        tpr, irrv, isrv = state.tpr, max(_highest(state.irr), 0), max(_highest(state.isr), 0)
        if tpr >> 4 >= irrv >> 4 and tpr >> 4 > isrv >> 4:
            return tpr
        return max(tpr & 0xF0, irrv & 0xF0, isrv & 0xF0)

    # ---- the board's side --------------------------------------------------------------------------------

    def set_lint0(self, level: bool) -> None:
        """Drive the LINT0 pin: the 8259's INT on a PC. It is plain INTR while the APIC is disabled."""
        if bool(level) != self.state.lint0:
            self.state.lint0 = bool(level)
            self._lint_changed(Lvt.LINT0)

    def set_lint1(self, level: bool) -> None:
        """Drive the LINT1 pin: NMI on a PC. It is plain NMI while the APIC is disabled."""
        if bool(level) != self.state.lint1:
            self.state.lint1 = bool(level)
            if level and not self.enabled:
                self._wires.on_nmi()
            self._lint_changed(Lvt.LINT1)

    def lint0_accepts_extint(self) -> bool:
        """Whether an 8259 on LINT0 reaches the processor: virtual wire mode, or the APIC is disabled."""
        return not self.enabled or self._is_open_extint(self.state.lvt[Lvt.LINT0])

    def lint0_sends_nmi(self) -> bool:
        """Whether what the 8259 requests arrives as NMI: the watchdog of older kernels."""
        entry = self.state.lvt[Lvt.LINT0]
        return self.enabled and not entry & LVT_MASK and entry >> 8 & 7 == DeliveryMode.NMI

    def signal(self, source: Lvt) -> bool:
        """An internal source (thermal sensor, counter overflow, CMCI) fires; False if its entry is masked."""
        state = self.state
        entry = state.lvt[source]
        if entry & LVT_MASK or not self.enabled:
            return False
        if source == Lvt.PMC:
            state.lvt[source] = entry | LVT_MASK  # SDM: delivery of a counter interrupt masks its entry
        self._deliver_lvt(source, entry)
        return True

    # ---- timer -------------------------------------------------------------------------------------------

    def set_tsc_deadline(self, value: int) -> None:
        """WRMSR of IA32_TSC_DEADLINE: arm for an absolute TSC value, 0 disarms; ignored in other modes."""
        if self._timer_mode() == TIMER_TSC_DEADLINE:
            self.state.tsc_deadline = value & M64
            self._schedule()

    def tsc_deadline(self) -> int:
        """RDMSR of IA32_TSC_DEADLINE: 0 when not armed."""
        state = self.state
        if state.tsc_deadline and self._tsc() >= state.tsc_deadline:
            state.tsc_deadline = 0  # passed while the entry was masked
        return state.tsc_deadline

    def set_tsc_offset(self, offset: int) -> None:
        """TSC minus virtual time in TSC ticks, after the guest wrote the TSC; an armed deadline follows."""
        self.state.tsc_offset = offset
        if self._timer_mode() == TIMER_TSC_DEADLINE:
            self._schedule()

    def _tsc(self) -> int:
        raw = self._clock.now_ns() * self.config.tsc_hz // NS_PER_S
        return raw + self.state.tsc_offset & M64

    def _timer_mode(self) -> int:
        return self.state.lvt[Lvt.TIMER] >> 17 & 3

    def _elapsed_ticks(self) -> int:
        """Timer ticks since the count was timer_base_count."""
        state = self.state
        elapsed = self._clock.now_ns() - state.timer_base_ns
        return elapsed * self.config.timer_hz // (NS_PER_S * _divisor(state.divide))

    def _tick_time_ns(self, ticks: int) -> int:
        """Virtual time of the given tick after the base."""
        state = self.state
        return state.timer_base_ns + _ceil_div(
            ticks * NS_PER_S * _divisor(state.divide), self.config.timer_hz
        )

    def _current_count(self) -> int:
        state = self.state
        if not state.initial_count:
            return 0
        left = state.timer_base_count - self._elapsed_ticks()
        if left > 0:
            return left
        if self._timer_mode() == TIMER_PERIODIC:
            return state.initial_count - -left % state.initial_count
        return 0

    def _write_initial_count(self, value: int) -> None:
        state = self.state
        if self._timer_mode() == TIMER_TSC_DEADLINE:
            return  # SDM: ignored in TSC-deadline mode
        state.initial_count = state.timer_base_count = value
        state.timer_base_ns = self._clock.now_ns()
        self._schedule()

    def _write_divide(self, value: int) -> None:
        state = self.state
        # The count goes on from where it is at the new rate.
        state.timer_base_count = self._current_count()
        state.timer_base_ns = self._clock.now_ns()
        state.divide = value & 0xB
        self._schedule()

    def _cancel_timer(self) -> None:
        if self._timer_token is not None:
            self._clock.cancel(self._timer_token)
            self._timer_token = None

    def _disarm(self) -> None:
        self._cancel_timer()
        self.state.timer_deadline_ns = None

    def _arm_at(self, deadline_ns: int) -> None:
        self.state.timer_deadline_ns = deadline_ns
        self._timer_token = self._clock.call_at(deadline_ns, self._on_timer)

    def _schedule(self) -> None:
        """Arm for the next expiry that can interrupt; a masked timer counts on without a deadline."""
        state = self.state
        self._disarm()
        if state.lvt[Lvt.TIMER] & LVT_MASK:
            return
        now = self._clock.now_ns()
        mode = self._timer_mode()
        if mode == TIMER_TSC_DEADLINE:
            if state.tsc_deadline:
                left = state.tsc_deadline - self._tsc()
                if left <= 0:
                    self._on_timer(now)
                else:
                    raw = now * self.config.tsc_hz // NS_PER_S
                    self._arm_at(_ceil_div((raw + left) * NS_PER_S, self.config.tsc_hz))
        elif state.initial_count and mode <= TIMER_PERIODIC:
            count = state.timer_base_count
            elapsed = self._elapsed_ticks()
            if count > elapsed:
                self._arm_at(self._tick_time_ns(count))
            elif mode == TIMER_PERIODIC:
                self._arm_periodic(elapsed)

    def _arm_periodic(self, elapsed: int) -> None:
        """Arm for the first expiry after `elapsed` ticks, which is past the first expiry of all."""
        state = self.state
        period = state.initial_count
        bound = self.config.min_period_ns * self.config.timer_hz // (NS_PER_S * _divisor(state.divide))
        # Quirk: a period under min_period_ns interrupts only every so many periods; the count stays exact.
        earliest = elapsed + (1 if period >= bound else bound)
        periods = _ceil_div(earliest - state.timer_base_count, period)
        self._arm_at(self._tick_time_ns(state.timer_base_count + periods * period))

    def _on_timer(self, _now_ns: int) -> None:
        state = self.state
        self._timer_token = None
        state.timer_deadline_ns = None
        mode = self._timer_mode()
        if mode == TIMER_TSC_DEADLINE:
            state.tsc_deadline = 0  # reaching the deadline disarms it
        elif mode == TIMER_PERIODIC:
            self._arm_periodic(self._elapsed_ticks())
        entry = state.lvt[Lvt.TIMER]
        if not entry & LVT_MASK:
            # Timer and error entries have no delivery mode: always fixed, edge.
            self.accept(entry & 0xFF, False)

    # ---- local vector table ------------------------------------------------------------------------------

    def _write_lvt(self, slot: Lvt, value: int) -> None:
        state = self.state
        old = state.lvt[slot]
        new = value & self._lvt_writable[slot]
        if not state.svr & SVR_ENABLE:
            new |= LVT_MASK  # SDM: masks cannot be cleared while software-disabled
        if slot in (Lvt.LINT0, Lvt.LINT1):
            if new & LVT_LEVEL:
                new |= old & LVT_REMOTE_IRR
            state.lvt[slot] = new
            self._deliver_level_lint(slot)
            self._update()
            return
        state.lvt[slot] = new
        if slot == Lvt.TIMER:
            if (old ^ new) >> 17:
                # SDM "APIC Timer": a write that changes the timer mode disarms the timer.
                state.initial_count = state.timer_base_count = state.tsc_deadline = 0
            self._schedule()

    @staticmethod
    def _is_open_extint(entry: int) -> bool:
        return not entry & LVT_MASK and entry >> 8 & 7 == DeliveryMode.EXTINT

    def _pin_asserted(self, slot: Lvt) -> bool:
        level = self.state.lint0 if slot == Lvt.LINT0 else self.state.lint1
        return level != bool(self.state.lvt[slot] & LVT_ACTIVE_LOW)

    def _extint(self) -> bool:
        """Whether an external controller wants the processor, now."""
        state = self.state
        if not state.apic_base & APIC_BASE_EN:
            return state.lint0
        if state.extint_pending:
            return True
        lvt = state.lvt
        return (self._is_open_extint(lvt[Lvt.LINT0]) and self._pin_asserted(Lvt.LINT0)) or (
            self._is_open_extint(lvt[Lvt.LINT1]) and self._pin_asserted(Lvt.LINT1)
        )

    def _lint_changed(self, slot: Lvt) -> None:
        """React to the new level of a pin."""
        entry = self.state.lvt[slot]
        if self.enabled and not entry & LVT_MASK and self._pin_asserted(slot):
            mode = entry >> 8 & 7
            if mode == DeliveryMode.FIXED and entry & LVT_LEVEL:
                self._deliver_level_lint(slot)
            elif mode != DeliveryMode.EXTINT:
                self._deliver_lvt(slot, entry)
        self._update()

    def _deliver_level_lint(self, slot: Lvt) -> None:
        """A level-triggered fixed pin that is asserted delivers once until its EOI."""
        entry = self.state.lvt[slot]
        fixed_level = not entry & (LVT_MASK | LVT_REMOTE_IRR | 0x700) and entry & LVT_LEVEL
        if fixed_level and self._pin_asserted(slot) and self.accept(entry & 0xFF, True):
            self.state.lvt[slot] = entry | LVT_REMOTE_IRR

    def _deliver_lvt(self, slot: Lvt, entry: int) -> None:
        mode = DeliveryMode.FIXED if slot == Lvt.ERROR else DeliveryMode(entry >> 8 & 7)
        # Lowest priority and start-up are not LVT modes (table "Delivery Mode" of the LVT): nothing happens.
        if mode not in (DeliveryMode.LOWEST, DeliveryMode.STARTUP):
            self.receive(IpiMessage(self.apic_id, mode, entry & 0xFF))

    def _error(self, bit: int) -> None:
        """Record an error for the next ESR write and raise the error interrupt."""
        state = self.state
        state.esr_pending |= bit
        entry = state.lvt[Lvt.ERROR]
        if entry & LVT_MASK:
            return
        if entry & 0xFF < LOWEST_VECTOR:
            state.esr_pending |= ESR_RECEIVE_ILLEGAL_VECTOR  # its own vector is illegal: no interrupt
        else:
            self._deliver_lvt(Lvt.ERROR, entry)

    # ---- priorities --------------------------------------------------------------------------------------

    def _ppr(self) -> int:
        """Processor priority (SDM "Task and Processor Priorities")."""
        state = self.state
        isr_class = max(_highest(state.isr), 0) & 0xF0
        return state.tpr if state.tpr & 0xF0 >= isr_class else isr_class

    def _update(self) -> None:
        """Drive INTR: a request above the processor priority, or an external controller."""
        state = self.state
        level = state.irr != 0 and _highest(state.irr) >> 4 > self._ppr() >> 4
        if not level and self._wires.acknowledge_extint is not None:
            level = self._extint()
        if level != state.intr:
            state.intr = level
            self._output(level)

    def _end_of_interrupt(self) -> None:
        state = self.state
        vector = _highest(state.isr)
        if vector < 0:
            return
        bit = 1 << vector
        state.isr ^= bit
        self._update()
        if not state.tmr & bit:
            return
        for slot in (Lvt.LINT0, Lvt.LINT1):
            entry = state.lvt[slot]
            if entry & LVT_REMOTE_IRR and entry & 0xFF == vector:
                state.lvt[slot] = entry & ~LVT_REMOTE_IRR
                self._deliver_level_lint(slot)
        if not state.svr & SVR_SUPPRESS_BROADCAST:
            self._wires.on_eoi(vector)

    # ---- inter-processor interrupts ----------------------------------------------------------------------

    def _write_icr(self, value: int) -> None:
        state = self.state
        low = value & ICR_WRITABLE
        if self.x2apic_mode:
            state.icr = value & M32 << 32 | low
            destination = value >> 32
        else:
            state.icr = state.icr & ~M32 | low
            destination = state.icr >> 56
        message = IpiMessage(
            destination=destination,
            mode=DeliveryMode(low >> 8 & 7),
            vector=low & 0xFF,
            level=bool(low & ICR_LEVEL),
            # SDM: the trigger mode of an IPI matters for INIT level de-assert only; all others are edge.
            trigger=False,
            shorthand=Shorthand(low >> 18 & 3),
            logical=bool(low & 1 << 11),
        )
        if message.mode in (DeliveryMode.RESERVED, DeliveryMode.EXTINT):
            return
        if message.mode == DeliveryMode.INIT and low & ICR_TRIGGER and not message.level:
            return  # INIT level de-assert only synchronised arbitration IDs, which are gone
        self._send(message, self.apic_id)

    def _send(self, message: IpiMessage, own_id: int) -> None:
        # Quirk: shorthand and mode pairs that the SDM calls invalid (say NMI to self) are carried out.
        if message.mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST) and message.vector < LOWEST_VECTOR:
            self._error(ESR_SEND_ILLEGAL_VECTOR)
        match message.shorthand:
            case Shorthand.SELF:
                to_self, to_others = True, False
            case Shorthand.ALL:
                to_self, to_others = True, True
            case Shorthand.OTHERS:
                to_self, to_others = False, True
            case _:
                to_self = self.matches(message.destination, message.logical)
                to_others = message.logical or message.destination != own_id
        if message.mode == DeliveryMode.LOWEST and to_self:
            to_others = False  # Quirk: a sender that is a target itself wins lowest-priority arbitration.
        if to_others:
            self._wires.send_ipi(message)
        if to_self:
            self.receive(message)


class LocalApicMsrs(Device):
    """The x2APIC face of a local APIC: MSRs 0x800 to 0x8FF, offset = MSR - 0x800, always 64 bits wide.

    It has no state of its own. Every refused access is a SysRegFault, which the processor turns into #GP(0).
    """

    name = "local-apic-msrs"

    def __init__(self, apic: LocalApic) -> None:
        self.apic = apic

    def read(self, offset: int, width: int) -> int:
        """RDMSR; SysRegFault outside x2APIC mode, for reserved MSRs and for write-only ones."""
        if not self.apic.x2apic_mode:
            raise SysRegFault(f"RDMSR {0x800 + offset:#x}: not in x2APIC mode; set IA32_APIC_BASE.EXTD first")
        if offset not in _X2APIC_READABLE:
            raise SysRegFault(f"RDMSR {0x800 + offset:#x}: no readable x2APIC register; do not read it")
        return self.apic.read_register(offset)

    def write(self, offset: int, width: int, value: int) -> None:
        """WRMSR; SysRegFault outside x2APIC mode, for reserved or read-only MSRs and for reserved bits."""
        apic = self.apic
        if not apic.x2apic_mode:
            raise SysRegFault(f"WRMSR {0x800 + offset:#x}: not in x2APIC mode; set IA32_APIC_BASE.EXTD first")
        if offset not in _X2APIC_WRITABLE:
            raise SysRegFault(f"WRMSR {0x800 + offset:#x}: no writable x2APIC register; do not write it")
        reserved = value & ~self._allowed(offset)
        if reserved:
            raise SysRegFault(
                f"WRMSR {0x800 + offset:#x}: value {value:#x} sets reserved bits {reserved:#x}; clear them"
            )
        apic.write_register(offset, value)

    def _allowed(self, offset: int) -> int:
        """The bits that may be set in the register at `offset`."""
        match offset:
            case Reg.ICR:
                return M64 & ~X2APIC_ICR_RESERVED
            case Reg.EOI | Reg.ESR:
                return 0
            case Reg.TPR | Reg.SELF_IPI:
                return 0xFF
            case Reg.SVR:
                return self.apic._svr_writable
            case Reg.DIVIDE:
                return 0xB
            case Reg.INITIAL_COUNT:
                return M32
            case _:
                slot = _lvt_slot(offset)
                read_only = LVT_STATUS | (LVT_REMOTE_IRR if slot in (Lvt.LINT0, Lvt.LINT1) else 0)
                return self.apic._lvt_writable[slot] | read_only


def deliver(apics: Iterable[LocalApic], message: IpiMessage, sender: LocalApic | None = None) -> bool:
    """Carry a message to every APIC it is for, except `sender`; True if one took it.

    This is the system bus: `send_ipi` of each local APIC and the I/O APIC's messages end here. Lowest
    priority goes to the target with the smallest arbitration priority, the first of equals.
    """
    targets = [
        apic
        for apic in apics
        if apic is not sender
        and (message.shorthand is not Shorthand.NONE or apic.matches(message.destination, message.logical))
    ]
    if message.mode == DeliveryMode.LOWEST and targets:
        able = [apic for apic in targets if apic.enabled and apic.state.svr & SVR_ENABLE]
        targets = [min(able, key=LocalApic.arbitration_priority)] if able else []
    taken = False
    for apic in targets:
        taken |= apic.receive(message)
    return taken
