"""The local APIC against the SDM: priorities, EOI, timer, IPIs, modes."""

from __future__ import annotations

import copy

import pytest

from devices.base import DeviceError
from devices.clock import VirtualClock
from devices.local_apic import (
    DeliveryMode,
    IpiMessage,
    LocalApic,
    LocalApicConfig,
    LocalApicMsrs,
    LocalApicWires,
    Lvt,
    Reg,
    Shorthand,
    SysRegFault,
    deliver,
    x2apic_logical_id,
)

ENABLE = 0x1FF  # SVR: enabled, spurious vector 0xff
MASKED = 1 << 16
PERIODIC = 1 << 17
TSC_DEADLINE = 2 << 17


class Board:
    """One local APIC with every wire recorded."""

    def __init__(self, extint_vector: int | None = None, **config: object) -> None:
        self.clock = VirtualClock()
        self.intr: list[bool] = []
        self.sent: list[IpiMessage] = []
        self.ended: list[int] = []
        self.events: list[str] = []
        acknowledge = None if extint_vector is None else lambda: extint_vector
        self.apic = LocalApic(
            self.clock,
            self.intr.append,
            LocalApicConfig(**config),  # type: ignore[arg-type]
            LocalApicWires(
                send_ipi=self.sent.append,
                on_eoi=self.ended.append,
                on_nmi=lambda: self.events.append("nmi"),
                on_smi=lambda: self.events.append("smi"),
                on_init=lambda: self.events.append("init"),
                on_startup=lambda vector: self.events.append(f"startup {vector:#x}"),
                acknowledge_extint=acknowledge,
            ),
        )
        self.msrs = LocalApicMsrs(self.apic)

    def read(self, register: int) -> int:
        return self.apic.read(register << 4, 4)

    def write(self, register: int, value: int) -> None:
        self.apic.write(register << 4, 4, value)

    def enter_x2apic(self) -> None:
        self.apic.write_apic_base(self.apic.read_apic_base() | 0xC00)


def enabled(**config: object) -> Board:
    board = Board(**config)  # type: ignore[arg-type]
    board.write(Reg.SVR, ENABLE)
    return board


def test_reset_values_are_those_of_the_sdm() -> None:
    board = Board(apic_id=3)
    assert board.read(Reg.ID) == 0x0300_0000
    assert board.read(Reg.VERSION) == 0x0006_0014
    assert board.read(Reg.SVR) == 0xFF
    assert board.read(Reg.DFR) == 0xFFFF_FFFF
    assert board.read(Reg.LDR) == 0
    for register in (Reg.LVT_TIMER, Reg.LVT_THERMAL, Reg.LVT_PMC, Reg.LVT_LINT0, Reg.LVT_CMCI):
        assert board.read(register) == 0x10000
    assert board.apic.read_apic_base() == 0xFEE0_0900


def test_the_highest_request_is_acknowledged_first() -> None:
    board = enabled()
    board.apic.accept(0x31)
    board.apic.accept(0x52)
    assert board.intr == [True]
    assert board.apic.acknowledge() == 0x52
    assert board.intr == [True, False]  # 0x31 waits behind class 5
    board.write(Reg.EOI, 0)
    assert board.intr == [True, False, True]
    assert board.apic.acknowledge() == 0x31


def test_a_higher_class_interrupts_a_handler_and_the_same_class_does_not() -> None:
    board = enabled()
    board.apic.accept(0x41)
    board.apic.acknowledge()
    board.apic.accept(0x4F)
    assert board.intr[-1] is False
    board.apic.accept(0x50)
    assert board.intr[-1] is True
    assert board.apic.acknowledge() == 0x50
    assert board.read(Reg.ISR + 2) == 1 << 16 | 1 << 1


def test_tpr_holds_back_its_own_class() -> None:
    board = enabled()
    board.write(Reg.TPR, 0x43)
    board.apic.accept(0x4A)
    assert board.intr == []
    assert board.read(Reg.PPR) == 0x43
    board.apic.write_cr8(3)
    assert board.intr == [True]
    assert board.read(Reg.TPR) == 0x30
    assert board.apic.read_cr8() == 3


def test_ppr_is_the_in_service_class_when_that_is_higher() -> None:
    board = enabled()
    board.write(Reg.TPR, 0x25)
    board.apic.accept(0x67)
    board.apic.acknowledge()
    assert board.read(Reg.PPR) == 0x60


def test_acknowledge_with_nothing_left_gives_the_spurious_vector() -> None:
    board = Board()
    board.write(Reg.SVR, 0x1EF)
    board.apic.accept(0x40)
    board.write(Reg.TPR, 0xF0)
    assert board.apic.acknowledge() == 0xEF
    assert board.read(Reg.ISR + 2) == 0
    assert board.read(Reg.IRR + 2) == 1


def test_eoi_of_a_level_interrupt_is_broadcast_and_of_an_edge_is_not() -> None:
    board = enabled()
    board.apic.accept(0x40, level_triggered=True)
    assert board.read(Reg.TMR + 2) == 1
    board.apic.acknowledge()
    board.write(Reg.EOI, 0)
    assert board.ended == [0x40]
    board.apic.accept(0x40, level_triggered=False)
    assert board.read(Reg.TMR + 2) == 0
    board.apic.acknowledge()
    board.write(Reg.EOI, 0)
    assert board.ended == [0x40]


def test_eoi_without_an_interrupt_in_service_does_nothing() -> None:
    board = enabled()
    board.write(Reg.EOI, 0)
    assert board.ended == []


def test_suppressed_broadcast_keeps_the_eoi_inside() -> None:
    board = Board(directed_eoi=True)
    assert board.read(Reg.VERSION) >> 24 & 1
    board.write(Reg.SVR, 0x11FF)
    board.apic.accept(0x40, level_triggered=True)
    board.apic.acknowledge()
    board.write(Reg.EOI, 0)
    assert board.ended == []


def test_suppression_bit_is_not_writable_when_not_offered() -> None:
    board = Board()
    board.write(Reg.SVR, 0x11FF)
    assert board.read(Reg.SVR) == 0x1FF


def test_a_software_disabled_apic_drops_fixed_interrupts_and_masks_its_table() -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, 0x40)
    board.write(Reg.SVR, 0xFF)
    assert board.read(Reg.LVT_TIMER) == 0x10040
    board.write(Reg.LVT_TIMER, 0x41)
    assert board.read(Reg.LVT_TIMER) == 0x10041
    assert board.apic.accept(0x40) is False
    assert board.intr == []


def test_an_illegal_vector_sets_the_error_register_and_the_error_interrupt() -> None:
    board = enabled()
    board.write(Reg.LVT_ERROR, 0xE0)
    assert board.apic.accept(0x0F) is False
    assert board.read(Reg.ESR) == 0  # latched by a write only
    board.write(Reg.ESR, 0)
    assert board.read(Reg.ESR) == 0x40
    assert board.apic.acknowledge() == 0xE0
    board.write(Reg.ESR, 0)
    assert board.read(Reg.ESR) == 0


def test_an_error_entry_with_an_illegal_vector_does_not_recurse() -> None:
    board = enabled()
    board.write(Reg.LVT_ERROR, 0x05)
    board.read(0x3B)  # reserved
    board.write(Reg.ESR, 0)
    assert board.read(Reg.ESR) == 0xC0


def test_narrow_reads_give_bytes_and_narrow_writes_are_ignored() -> None:
    board = enabled()
    board.write(Reg.TPR, 0x20)
    assert board.apic.read(0x30, 1) == 0x14
    assert board.apic.read(0x32, 1) == 0x06
    assert board.apic.read(0x30, 8) == 0x60014
    assert board.apic.read(0x34, 4) == 0
    board.apic.write(0x80, 1, 0x40)
    board.apic.write(0x84, 4, 0x40)
    assert board.read(Reg.TPR) == 0x20


# ---- timer -------------------------------------------------


def test_one_shot_fires_once_when_the_divided_count_ends() -> None:
    board = enabled(timer_hz=100_000_000)
    board.write(Reg.LVT_TIMER, 0x40)
    board.write(Reg.DIVIDE, 0x3)  # by 16: 160 ns a tick
    board.write(Reg.INITIAL_COUNT, 100)
    board.clock.advance_to(8_000)
    assert board.read(Reg.CURRENT_COUNT) == 50
    board.clock.advance_to(15_999)
    assert board.intr == []
    board.clock.advance_to(16_000)
    assert board.apic.acknowledge() == 0x40
    assert board.read(Reg.CURRENT_COUNT) == 0
    assert board.clock.next_deadline_ns() is None


@pytest.mark.parametrize(
    ("divide", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_the_divide_register_divides(divide: int, divisor: int) -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, 0x40)
    board.write(Reg.DIVIDE, divide)
    board.write(Reg.INITIAL_COUNT, 1000)
    assert board.clock.next_deadline_ns() == 1000 * divisor


def test_the_count_goes_on_at_a_new_rate_after_a_divide_write() -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, 0x40)
    board.write(Reg.DIVIDE, 11)
    board.write(Reg.INITIAL_COUNT, 1000)
    board.clock.advance_to(400)
    board.write(Reg.DIVIDE, 0)
    assert board.read(Reg.CURRENT_COUNT) == 600
    assert board.clock.next_deadline_ns() == 400 + 1200


def test_periodic_fires_on_an_exact_grid() -> None:
    board = enabled(timer_hz=3)
    board.write(Reg.DIVIDE, 11)
    board.write(Reg.LVT_TIMER, PERIODIC | 0x40)
    board.write(Reg.INITIAL_COUNT, 1)
    fired = []
    for _ in range(4):
        deadline = board.clock.next_deadline_ns()
        assert deadline is not None
        fired.append(deadline)
        board.clock.advance_to(deadline)
        assert board.apic.acknowledge() == 0x40
        board.write(Reg.EOI, 0)
    assert fired == [333_333_334, 666_666_667, 1_000_000_000, 1_333_333_334]


def test_a_masked_timer_counts_on_and_arms_nothing() -> None:
    board = enabled()
    board.write(Reg.DIVIDE, 11)
    board.write(Reg.LVT_TIMER, MASKED | 0x40)
    board.write(Reg.INITIAL_COUNT, 1000)
    assert board.clock.next_deadline_ns() is None
    board.clock.advance_to(700)
    assert board.read(Reg.CURRENT_COUNT) == 300
    board.write(Reg.LVT_TIMER, 0x40)
    assert board.clock.next_deadline_ns() == 1000
    board.write(Reg.LVT_TIMER, MASKED | 0x40)
    board.clock.advance_to(2000)
    board.write(Reg.LVT_TIMER, 0x40)
    assert board.intr == []  # the expiry passed under the mask


def test_a_silly_period_is_bounded_and_its_count_stays_exact() -> None:
    board = enabled(min_period_ns=10_000)
    board.write(Reg.DIVIDE, 11)
    board.write(Reg.LVT_TIMER, PERIODIC | 0x40)
    board.write(Reg.INITIAL_COUNT, 7)
    board.clock.advance_to(7)
    assert board.intr == [True]
    deadline = board.clock.next_deadline_ns()
    assert deadline is not None
    assert deadline >= 10_007
    assert deadline % 7 == 0
    board.clock.advance_to(100)
    assert board.read(Reg.CURRENT_COUNT) == 7 - 100 % 7


def test_zero_initial_count_stops_the_timer() -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, 0x40)
    board.write(Reg.INITIAL_COUNT, 1000)
    board.write(Reg.INITIAL_COUNT, 0)
    assert board.clock.next_deadline_ns() is None


def test_tsc_deadline_fires_at_its_tsc_value_and_clears_itself() -> None:
    board = enabled(tsc_hz=2_000_000_000)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x41)
    board.apic.set_tsc_deadline(2001)
    assert board.clock.next_deadline_ns() == 1001
    assert board.apic.tsc_deadline() == 2001
    board.clock.advance_to(1001)
    assert board.apic.acknowledge() == 0x41
    assert board.apic.tsc_deadline() == 0


def test_a_tsc_deadline_in_the_past_fires_at_once() -> None:
    board = enabled()
    board.clock.advance_to(500)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x41)
    board.apic.set_tsc_deadline(100)
    assert board.intr == [True]


def test_a_tsc_offset_moves_an_armed_deadline() -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x41)
    board.apic.set_tsc_deadline(5000)
    board.apic.set_tsc_offset(2000)
    assert board.clock.next_deadline_ns() == 3000


def test_the_two_timer_kinds_ignore_each_others_registers() -> None:
    board = enabled()
    board.apic.set_tsc_deadline(100)
    assert board.apic.tsc_deadline() == 0
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x41)
    board.write(Reg.INITIAL_COUNT, 100)
    assert board.read(Reg.INITIAL_COUNT) == 0
    assert board.clock.next_deadline_ns() is None


def test_a_mode_change_disarms_the_timer() -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, 0x40)
    board.write(Reg.INITIAL_COUNT, 1000)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x40)
    assert board.clock.next_deadline_ns() is None
    assert board.read(Reg.CURRENT_COUNT) == 0


def test_a_snapshot_of_the_state_rearms_the_timer_and_the_output() -> None:
    board = enabled()
    board.write(Reg.LVT_TIMER, PERIODIC | 0x40)
    board.write(Reg.INITIAL_COUNT, 100_000)
    saved = copy.deepcopy(board.apic.state)
    board.apic.reset()
    assert board.clock.next_deadline_ns() is None
    board.apic.state = saved
    board.apic.rearm()
    assert board.clock.next_deadline_ns() == 200_000
    assert board.intr == [False]


# ---- local interrupt pins -------------------------------------------------


def test_lint0_in_extint_mode_takes_its_vector_from_the_8259() -> None:
    board = Board(extint_vector=0x08)
    assert not board.apic.lint0_accepts_extint()
    board.apic.set_lint0(True)
    assert board.intr == []
    board.apic.enter_virtual_wire_mode()
    assert board.apic.lint0_accepts_extint()
    assert board.intr == [True]
    assert board.apic.acknowledge() == 0x08
    board.apic.set_lint0(False)
    assert board.intr == [True, False]


def test_lint0_is_intr_and_lint1_is_nmi_while_the_apic_is_disabled() -> None:
    board = Board(extint_vector=0x20)
    board.apic.write_apic_base(0xFEE0_0100)
    assert board.apic.lint0_accepts_extint()
    board.apic.set_lint0(True)
    board.apic.set_lint1(True)
    assert board.intr == [True]
    assert board.events == ["nmi"]
    assert board.apic.acknowledge() == 0x20


def test_lint1_as_nmi_reports_the_rising_edge_only() -> None:
    board = Board()
    board.apic.enter_virtual_wire_mode()
    board.apic.set_lint1(True)
    board.apic.set_lint1(True)
    board.apic.set_lint1(False)
    assert board.events == ["nmi"]


def test_a_level_triggered_fixed_pin_comes_again_after_eoi_while_asserted() -> None:
    board = enabled()
    board.write(Reg.LVT_LINT0, 0x8050)
    board.apic.set_lint0(True)
    assert board.read(Reg.LVT_LINT0) == 0xC050
    assert board.apic.acknowledge() == 0x50
    board.write(Reg.EOI, 0)
    assert board.apic.acknowledge() == 0x50
    board.apic.set_lint0(False)
    board.write(Reg.EOI, 0)
    assert board.read(Reg.LVT_LINT0) == 0x8050
    assert board.intr[-1] is False


def test_an_active_low_pin_fires_when_it_falls() -> None:
    board = enabled()
    board.apic.set_lint0(True)
    board.write(Reg.LVT_LINT0, 0x2051)
    board.apic.set_lint0(False)
    assert board.apic.acknowledge() == 0x51


def test_a_counter_interrupt_masks_its_own_entry() -> None:
    board = enabled()
    board.write(Reg.LVT_PMC, 0x400)
    assert board.apic.signal(Lvt.PMC) is True
    assert board.apic.signal(Lvt.PMC) is False
    assert board.events == ["nmi"]
    assert board.read(Reg.LVT_PMC) == 0x10400


# ---- inter-processor interrupts -------------------------------------------------


def test_a_self_ipi_is_delivered_inside() -> None:
    board = enabled()
    board.write(Reg.ICR, 0x0004_0055)
    assert board.apic.acknowledge() == 0x55
    assert board.sent == []


def test_a_physical_ipi_to_another_apic_leaves() -> None:
    board = enabled()
    board.write(Reg.ICR_HIGH, 0x0200_0000)
    board.write(Reg.ICR, 0x4055)
    assert board.sent == [IpiMessage(2, DeliveryMode.FIXED, 0x55)]
    assert board.intr == []


def test_all_including_self_reaches_both_sides_and_all_excluding_only_the_others() -> None:
    board = enabled()
    board.write(Reg.ICR, 0x0008_4055)
    assert board.apic.acknowledge() == 0x55
    board.write(Reg.ICR, 0x000C_4056)
    assert [(message.vector, message.shorthand) for message in board.sent] == [
        (0x55, Shorthand.ALL),
        (0x56, Shorthand.OTHERS),
    ]
    assert board.read(Reg.IRR + 2) == 0


def test_init_and_startup_ipis_carry_their_mode_and_vector() -> None:
    board = enabled()
    board.write(Reg.ICR_HIGH, 0x0100_0000)
    board.write(Reg.ICR, 0x4500)
    board.write(Reg.ICR, 0x8500)  # level de-assert: no effect
    board.write(Reg.ICR, 0x4608)
    assert [(message.mode, message.vector) for message in board.sent] == [
        (DeliveryMode.INIT, 0),
        (DeliveryMode.STARTUP, 8),
    ]


def test_sending_an_illegal_vector_is_recorded_on_both_ends() -> None:
    board = enabled()
    board.write(Reg.ICR, 0x0004_0003)
    board.write(Reg.ESR, 0)
    assert board.read(Reg.ESR) == 0x60


def test_a_software_disabled_apic_still_takes_init_nmi_smi_and_startup() -> None:
    board = Board()
    for mode in (DeliveryMode.INIT, DeliveryMode.NMI, DeliveryMode.SMI, DeliveryMode.STARTUP):
        assert board.apic.receive(IpiMessage(0, mode, 0x9A)) is True
    assert board.apic.receive(IpiMessage(0, DeliveryMode.FIXED, 0x40)) is False
    assert board.events == ["init", "nmi", "smi", "startup 0x9a"]


def test_flat_and_cluster_logical_destinations() -> None:
    board = enabled()
    board.write(Reg.LDR, 0x0400_0000)
    assert board.apic.matches(0x06, logical=True)
    assert not board.apic.matches(0x03, logical=True)
    board.write(Reg.DFR, 0)
    board.write(Reg.LDR, 0x3200_0000)
    assert board.apic.matches(0x33, logical=True)
    assert board.apic.matches(0xF2, logical=True)
    assert not board.apic.matches(0x31, logical=True)
    assert not board.apic.matches(0x22, logical=True)
    assert board.apic.matches(0xFF, logical=True)


def test_two_apics_talk_over_the_bus_and_lowest_priority_picks_the_idle_one() -> None:
    clock = VirtualClock()
    apics: list[LocalApic] = []
    for number in range(2):
        wires = LocalApicWires(send_ipi=lambda message, number=number: bus(message, number))  # type: ignore[misc]
        apics.append(LocalApic(clock, lambda _level: None, LocalApicConfig(apic_id=number), wires))
        apics[number].write(0xF0, 4, ENABLE)
        apics[number].write(0xD0, 4, 1 << 24 + number)

    def bus(message: IpiMessage, sender: int) -> None:
        deliver(apics, message, apics[sender])

    apics[0].write(0x310, 4, 0x0100_0000)
    apics[0].write(0x300, 4, 0x4044)
    assert apics[1].acknowledge() == 0x44
    assert apics[0].state.irr == 0
    assert deliver(apics, IpiMessage(0x3, DeliveryMode.LOWEST, 0x31, logical=True)) is True
    assert apics[0].acknowledge() == 0x31  # the other one is in class 4
    assert deliver(apics, IpiMessage(0x9, DeliveryMode.FIXED, 0x31)) is False


# ---- modes -------------------------------------------------


def test_x2apic_mode_closes_the_page_and_opens_the_msrs() -> None:
    board = enabled(apic_id=0x25)
    with pytest.raises(SysRegFault):
        board.msrs.read(Reg.ID, 8)
    board.enter_x2apic()
    assert board.apic.read(0x20, 4) == 0xFFFF_FFFF
    assert board.msrs.read(Reg.ID, 8) == 0x25
    assert board.msrs.read(Reg.LDR, 8) == 0x0002_0020 == x2apic_logical_id(0x25)
    assert board.msrs.read(Reg.SVR, 8) == ENABLE  # preserved


@pytest.mark.parametrize("value", [0xFEE0_0500, 0xFEE0_0901, 0xFEE0_0900 | 1 << 40])
def test_bad_apic_base_values_fault(value: int) -> None:
    board = Board()
    with pytest.raises(SysRegFault):
        board.apic.write_apic_base(value)
    assert board.apic.read_apic_base() == 0xFEE0_0900


def test_forbidden_mode_transitions_fault() -> None:
    board = Board()
    board.enter_x2apic()
    with pytest.raises(SysRegFault, match="disabled"):
        board.apic.write_apic_base(0xFEE0_0900)
    board.apic.write_apic_base(0xFEE0_0100)
    with pytest.raises(SysRegFault):
        board.apic.write_apic_base(0xFEE0_0D00)
    board.apic.write_apic_base(0xFEE0_0900)
    assert board.read(Reg.SVR) == 0xFF


def test_disabling_the_apic_forgets_its_registers() -> None:
    board = enabled()
    board.write(Reg.TPR, 0x50)
    board.apic.accept(0x30)
    board.apic.write_apic_base(0xFEE0_0100)
    board.apic.write_apic_base(0xFEE0_0900)
    assert (board.read(Reg.TPR), board.read(Reg.SVR), board.apic.state.irr) == (0, 0xFF, 0)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (Reg.EOI, 1),
        (Reg.ESR, 1),
        (Reg.TPR, 0x100),
        (Reg.SVR, 0x1000),
        (Reg.ICR, 1 << 13),
        (Reg.ICR, 1 << 20),
        (Reg.SELF_IPI, 0x100),
        (Reg.DIVIDE, 4),
        (Reg.LVT_TIMER, 1 << 19),
        (Reg.LVT_ERROR, 0x100),
        (Reg.INITIAL_COUNT, 1 << 32),
        (Reg.ID, 0),
        (Reg.PPR, 0),
        (Reg.DFR, 0),
        (Reg.ICR_HIGH, 0),
        (0x40, 0),
        (0xFF, 0),
    ],
)
def test_x2apic_writes_that_fault(offset: int, value: int) -> None:
    board = Board()
    board.enter_x2apic()
    with pytest.raises(SysRegFault):
        board.msrs.write(offset, 8, value)


@pytest.mark.parametrize("offset", [Reg.EOI, Reg.SELF_IPI, Reg.APR, Reg.DFR, Reg.ICR_HIGH, 0, 0x40, 0xFF])
def test_x2apic_reads_that_fault(offset: int) -> None:
    board = Board()
    board.enter_x2apic()
    with pytest.raises(SysRegFault):
        board.msrs.read(offset, 8)


def test_x2apic_icr_is_one_64_bit_write() -> None:
    board = enabled()
    board.enter_x2apic()
    board.msrs.write(Reg.ICR, 8, 0x0001_0002_0000_4833)
    assert board.sent == [IpiMessage(0x10002, DeliveryMode.FIXED, 0x33, logical=True)]
    assert board.msrs.read(Reg.ICR, 8) == 0x0001_0002_0000_4833


def test_x2apic_self_ipi_register() -> None:
    board = enabled()
    board.enter_x2apic()
    board.msrs.write(Reg.SELF_IPI, 8, 0x77)
    assert board.apic.acknowledge() == 0x77
    board.msrs.write(Reg.EOI, 8, 0)
    assert board.msrs.read(Reg.ISR + 3, 8) == 0


def test_init_keeps_mode_and_id_and_resets_the_rest() -> None:
    board = enabled(apic_id=7)
    board.enter_x2apic()
    board.msrs.write(Reg.TPR, 8, 0x30)
    board.apic.init_reset()
    assert board.apic.x2apic_mode
    assert board.msrs.read(Reg.ID, 8) == 7
    assert board.msrs.read(Reg.LDR, 8) == 0x80
    assert board.msrs.read(Reg.TPR, 8) == 0


def test_reset_lowers_the_output() -> None:
    board = enabled()
    board.apic.accept(0x40)
    board.apic.reset()
    assert board.intr == [True, False]


def test_an_impossible_configuration_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="positive frequency"):
        Board(timer_hz=0)
    with pytest.raises(DeviceError, match="out of range"):
        Board(apic_id=0xFF, x2apic=False)


def test_every_access_of_the_page_is_safe() -> None:
    board = enabled()
    for offset in range(0, 0x1000, 4):
        for width in (1, 2, 4, 8):
            assert 0 <= board.apic.read(offset, width) < 1 << 8 * width
        board.apic.write(offset, 4, 0xFFFF_FFFF)
