"""The I/O APIC against the 82093AA datasheet."""

from __future__ import annotations

import copy

import pytest

from devices.base import DeviceError
from devices.clock import VirtualClock
from devices.io_apic import IoApic, IoApicMessage
from devices.local_apic import DeliveryMode, LocalApic, LocalApicWires, deliver


class Board:
    """An I/O APIC whose messages are recorded; `accepts` is what the local APICs answer."""

    def __init__(self, **options: object) -> None:
        self.messages: list[IoApicMessage] = []
        self.accepts = True
        self.chip = IoApic(self.deliver, **options)  # type: ignore[arg-type]

    def deliver(self, message: IoApicMessage) -> bool:
        self.messages.append(message)
        return self.accepts

    def read(self, index: int) -> int:
        self.chip.write(0x00, 4, index)
        return self.chip.read(0x10, 4)

    def write(self, index: int, value: int) -> None:
        self.chip.write(0x00, 4, index)
        self.chip.write(0x10, 4, value)


LEVEL = 0x8000
MASK = 0x10000
REMOTE_IRR = 0x4000
SEND_PENDING = 0x1000


def test_reset_values() -> None:
    board = Board()
    assert board.read(0) == 0
    assert board.read(1) == 0x0017_0011
    assert [board.read(0x10 + 2 * pin) for pin in range(24)] == [MASK] * 24
    assert board.read(0x40) == 0


def test_writing_the_id_loads_the_arbitration_id() -> None:
    board = Board(ident=1)
    assert board.read(2) == 0x0100_0000
    board.write(0, 0xFFFF_FFFF)
    assert board.read(0) == 0x0F00_0000
    assert board.read(2) == 0x0F00_0000


def test_version_and_arbitration_are_read_only() -> None:
    board = Board()
    board.write(1, 0)
    board.write(2, 0x0500_0000)
    assert board.read(1) == 0x0017_0011
    assert board.read(2) == 0


def test_an_edge_sends_the_programmed_message_once() -> None:
    board = Board()
    board.write(0x19, 0x0300_0000)
    board.write(0x18, 0x0000_0934)  # pin 4: lowest priority, logical
    board.chip.set_irq(4, True)
    board.chip.set_irq(4, True)
    board.chip.set_irq(4, False)
    assert board.messages == [IoApicMessage(3, True, DeliveryMode.LOWEST, 0x34, False)]


def test_an_edge_on_a_masked_pin_is_lost() -> None:
    board = Board()
    board.chip.set_irq(4, True)
    board.write(0x18, 0x34)
    assert board.messages == []


def test_a_level_is_sent_once_until_its_eoi_and_again_while_asserted() -> None:
    board = Board()
    board.write(0x20, LEVEL | 0x51)
    line = board.chip.irq_line(8)
    line.raise_()
    assert board.read(0x20) == LEVEL | REMOTE_IRR | 0x51
    board.chip.eoi(0x52)
    assert len(board.messages) == 1
    board.chip.eoi(0x51)
    assert len(board.messages) == 2
    line.lower()
    board.chip.eoi(0x51)
    assert len(board.messages) == 2
    assert board.read(0x20) == LEVEL | 0x51


def test_unmasking_an_asserted_level_pin_sends() -> None:
    board = Board()
    board.write(0x20, MASK | LEVEL | 0x51)
    board.chip.set_irq(8, True)
    assert board.messages == []
    board.write(0x20, LEVEL | 0x51)
    assert len(board.messages) == 1


def test_masking_keeps_remote_irr_and_switching_to_edge_clears_it() -> None:
    board = Board()
    board.write(0x20, LEVEL | 0x51)
    board.chip.set_irq(8, True)
    board.write(0x20, MASK | LEVEL | 0x51)
    assert board.read(0x20) == MASK | LEVEL | REMOTE_IRR | 0x51
    board.write(0x20, MASK | 0x51)
    assert board.read(0x20) == MASK | 0x51


def test_status_bits_cannot_be_written() -> None:
    board = Board()
    board.write(0x10, 0xFFFF_FFFF)
    assert board.read(0x10) == 0x0001_AFFF
    board.write(0x11, 0xFFFF_FFFF)
    assert board.read(0x11) == 0xFF00_0000


def test_a_level_that_nobody_takes_stays_pending_and_is_tried_again() -> None:
    board = Board()
    board.accepts = False
    board.write(0x20, LEVEL | 0x51)
    board.chip.set_irq(8, True)
    assert board.read(0x20) == LEVEL | SEND_PENDING | 0x51
    board.accepts = True
    board.write(0x21, 0x0100_0000)
    assert board.read(0x20) == LEVEL | REMOTE_IRR | 0x51


@pytest.mark.parametrize("mode", [DeliveryMode.SMI, DeliveryMode.NMI, DeliveryMode.INIT, DeliveryMode.EXTINT])
def test_special_modes_are_edges_whatever_the_trigger_bit_says(mode: DeliveryMode) -> None:
    board = Board()
    board.write(0x10, LEVEL | mode << 8)
    board.chip.set_irq(0, True)
    assert board.messages == [IoApicMessage(0, False, mode, 0, False)]
    assert board.read(0x10) == LEVEL | mode << 8


@pytest.mark.parametrize("mode", [3, 6])
def test_reserved_modes_send_nothing(mode: int) -> None:
    board = Board()
    board.write(0x10, mode << 8 | 0x40)
    board.chip.set_irq(0, True)
    assert board.messages == []


def test_the_eoi_register_exists_from_version_0x20() -> None:
    for version, ended in ((0x11, False), (0x20, True)):
        board = Board(version=version)
        board.write(0x20, LEVEL | 0x51)
        board.chip.set_irq(8, True)
        board.chip.set_irq(8, False)
        board.chip.write(0x40, 4, 0x51)
        assert (board.read(0x20) & REMOTE_IRR == 0) is ended
        assert board.read(1) & 0xFF == version


def test_polarity_matters_only_when_the_wiring_is_known() -> None:
    plain = Board()
    plain.write(0x20, LEVEL | 0x2051)
    assert plain.messages == []
    wired = Board(active_low=[8])
    wired.write(0x20, LEVEL | 0x2051)
    assert wired.messages == []
    wired.write(0x22, LEVEL | 0x2052)  # pin 9 is active-high: the guest is wrong about it
    assert [message.vector for message in wired.messages] == [0x52]
    wired.chip.set_irq(8, True)
    assert [message.vector for message in wired.messages] == [0x52, 0x51]


def test_a_pin_that_is_not_there_is_a_device_error() -> None:
    board = Board()
    for pin in (-1, 24):
        with pytest.raises(DeviceError, match="does not exist"):
            board.chip.set_irq(pin, True)
        with pytest.raises(DeviceError):
            board.chip.irq_line(pin)


def test_reset_masks_everything_and_keeps_the_pins() -> None:
    board = Board(ident=2)
    board.write(0x10, 0x40)
    board.chip.set_irq(0, True)
    board.chip.reset()
    assert board.read(0x10) == MASK
    assert board.read(0) == 0x0200_0000
    board.write(0x10, LEVEL | 0x40)
    assert len(board.messages) == 2


def test_a_snapshot_brings_back_remote_irr() -> None:
    board = Board()
    board.write(0x20, LEVEL | 0x51)
    board.chip.set_irq(8, True)
    saved = copy.deepcopy(board.chip.state)
    board.chip.reset()
    board.chip.state = saved
    board.chip.rearm()
    board.chip.eoi(0x51)
    assert len(board.messages) == 2


def test_narrow_and_unknown_accesses_are_harmless() -> None:
    board = Board()
    board.chip.write(0x00, 1, 1)
    assert board.chip.read(0x10, 1) == 0x11
    assert board.chip.read(0x10, 8) == 0x0017_0011
    for select in range(0x100):
        board.chip.write(0x00, 4, select)
        for offset in (0x00, 0x04, 0x10, 0x14, 0x40, 0xFFC):
            board.chip.read(offset, 4)
            board.chip.write(offset, 4, 0xFFFF_FFFF if offset else select)


def test_a_level_interrupt_goes_round_through_a_local_apic() -> None:
    intr: list[bool] = []
    apics: list[LocalApic] = []
    chip = IoApic(lambda message: deliver(apics, message.for_local_apics()))
    apic = LocalApic(VirtualClock(), intr.append, wires=LocalApicWires(on_eoi=chip.eoi))
    apics.append(apic)
    apic.write(0xF0, 4, 0x1FF)
    chip.write(0x00, 4, 0x20)
    chip.write(0x10, 4, LEVEL | 0x51)
    line = chip.irq_line(8)
    line.raise_()
    assert apic.acknowledge() == 0x51
    apic.write(0xB0, 4, 0)
    assert apic.acknowledge() == 0x51  # still asserted
    line.lower()
    apic.write(0xB0, 4, 0)
    assert intr == [True, False, True, False]
    assert chip.read(0x10, 4) == LEVEL | 0x51
