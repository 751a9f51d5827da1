"""PCI configuration mechanism #1, BAR sizing, and the 440FX and PIIX functions."""

from __future__ import annotations

import copy

import pytest

from devices.base import DeviceError, IrqLine
from devices.bus import BusKind
from devices.manager import AxVmDevices
from devices.pci import I440fx, PciFunction, PciHost, Piix3Ide, Piix3Isa, Piix4Pm, i440fx_board

ADDRESS = 0  # offsets of 0xCF8 and 0xCFC in the host's port window
DATA = 4


def select(host: PciHost, device: int, number: int, register: int, bus: int = 0) -> None:
    host.write(ADDRESS, 4, 1 << 31 | bus << 16 | device << 11 | number << 8 | register)


def read_config(host: PciHost, device: int, number: int, register: int, width: int) -> int:
    select(host, device, number, register & 0xFC)
    return host.read(DATA + (register & 3), width)


def write_config(host: PciHost, device: int, number: int, register: int, width: int, value: int) -> None:
    select(host, device, number, register & 0xFC)
    host.write(DATA + (register & 3), width, value)


def board() -> tuple[PciHost, PciFunction, list[int | None]]:
    """A host with one function at 2.0 whose BAR 0 is 4 KiB of memory; the list hears of its moves."""
    host = PciHost()
    card = PciFunction(0x1234, 0x5678, 0x03_00_00, interrupt_pin=1, name="card")
    moves: list[int | None] = []
    card.add_bar(0, 0x1000, on_move=moves.append)
    host.add(card, 2)
    return host, card, moves


def test_the_host_bridge_is_found_by_its_ids() -> None:
    host = PciHost()
    host.add(I440fx(), 0)
    assert read_config(host, 0, 0, 0, 4) == 0x1237_8086
    assert read_config(host, 0, 0, 2, 2) == 0x1237
    assert read_config(host, 0, 0, 1, 1) == 0x80
    assert read_config(host, 0, 0, 8, 4) == 0x0600_0002


@pytest.mark.parametrize(("device", "number", "bus"), [(3, 0, 0), (2, 1, 0), (2, 0, 1)])
def test_an_absent_function_reads_ones_and_ignores_writes(device: int, number: int, bus: int) -> None:
    host, _, _ = board()
    select(host, device, number, 0, bus)
    host.write(DATA, 4, 0)
    assert host.read(DATA, 4) == 0xFFFF_FFFF
    assert host.read(DATA + 2, 2) == 0xFFFF
    assert host.read(DATA + 3, 1) == 0xFF


def test_without_the_enable_bit_the_data_port_floats() -> None:
    host, _, _ = board()
    host.write(ADDRESS, 4, 2 << 11)
    assert host.read(DATA, 4) == 0xFFFF_FFFF


def test_the_address_register_answers_dwords_only() -> None:
    host, _, _ = board()
    host.write(ADDRESS, 4, 0xFFFF_FFFF)
    assert host.read(ADDRESS, 4) == 0x80FF_FFFC
    host.write(3, 1, 0x01)  # the probe for mechanism #2 and Linux's check write a byte to 0xCFB
    host.write(0, 2, 0)
    assert host.read(ADDRESS, 4) == 0x80FF_FFFC
    assert host.read(0, 1) == 0xFF and host.read(2, 1) == 0xFF and host.read(0, 2) == 0xFFFF


def test_an_access_from_the_address_into_the_data_register_is_split() -> None:
    host, _, _ = board()
    select(host, 2, 0, 0)
    assert host.read(3, 2) == 0x34FF


def test_the_reset_register_resets_on_the_rising_edge_of_its_cpu_bit() -> None:
    resets: list[int] = []
    host = PciHost(on_reset=lambda: resets.append(1))
    host.write(1, 1, 0x02)
    assert resets == [] and host.read(1, 1) == 0x02
    host.write(1, 1, 0x06)
    host.write(1, 1, 0x06)
    assert resets == [1]
    host.write(1, 1, 0x00)
    host.write(1, 1, 0x06)
    assert resets == [1, 1]


def test_ids_are_read_only() -> None:
    host, _, _ = board()
    write_config(host, 2, 0, 0, 4, 0)
    assert read_config(host, 2, 0, 0, 4) == 0x5678_1234


def test_interrupt_line_is_writable_and_the_pin_is_not() -> None:
    host, _, _ = board()
    write_config(host, 2, 0, 0x3C, 2, 0xFF0B)
    assert read_config(host, 2, 0, 0x3C, 2) == 0x010B


def test_status_error_bits_clear_by_writing_ones() -> None:
    _, card, _ = board()
    card.state.config[7] = 0xF9
    card.config_write(6, 2, 0x8000)
    assert card.config_read(6, 2) == 0x7900


def test_a_bar_is_sized_by_writing_ones() -> None:
    host, _, moves = board()
    write_config(host, 2, 0, 0x10, 4, 0xFFFF_FFFF)
    assert read_config(host, 2, 0, 0x10, 4) == 0xFFFF_F000
    assert read_config(host, 2, 0, 0x14, 4) == 0
    assert moves == []


def test_a_bar_answers_only_while_memory_decoding_is_on() -> None:
    host, card, moves = board()
    write_config(host, 2, 0, 0x10, 4, 0xFEB0_0123)
    assert card.bar_address(0) is None and moves == []
    write_config(host, 2, 0, 0x04, 2, 0x0002)
    assert card.bar_address(0) == 0xFEB0_0000
    write_config(host, 2, 0, 0x10, 4, 0xFEC1_0000)
    write_config(host, 2, 0, 0x04, 2, 0x0000)
    assert [move for move in moves if move is not None] == [0xFEB0_0000, 0xFEC1_0000]
    assert moves[-1] is None


def test_sizing_with_decoding_on_takes_the_window_off_meanwhile() -> None:
    host, _, moves = board()
    write_config(host, 2, 0, 0x10, 4, 0xFEB0_0000)
    write_config(host, 2, 0, 0x04, 2, 0x0002)
    write_config(host, 2, 0, 0x10, 4, 0xFFFF_FFFF)
    assert moves[-1] is None
    write_config(host, 2, 0, 0x10, 4, 0xFEB0_0000)
    assert moves[-1] == 0xFEB0_0000


def test_an_io_bar_has_its_flag_and_16_bits_of_space() -> None:
    card = PciFunction(1, 2, 0)
    card.add_bar(4, 16, io=True)
    card.config_write(0x20, 4, 0xFFFF_FFFF)
    assert card.config_read(0x20, 4) == 0xFFFF_FFF1
    card.config_write(4, 2, 1)
    assert card.bar_address(4) is None
    card.config_write(0x20, 4, 0xC001)
    assert card.bar_address(4) == 0xC000


def test_a_wide_bar_takes_two_registers() -> None:
    card = PciFunction(1, 2, 0)
    card.add_bar(2, 1 << 32, wide=True, prefetchable=True)
    card.config_write(0x18, 4, 0xFFFF_FFFF)
    card.config_write(0x1C, 4, 0xFFFF_FFFF)
    assert card.config_read(0x18, 4) == 0x0000_000C
    assert card.config_read(0x1C, 4) == 0xFFFF_FFFF
    card.config_write(0x1C, 4, 0x8)
    card.config_write(4, 2, 2)
    assert card.bar_address(2) == 0x8_0000_0000
    with pytest.raises(DeviceError, match="part of BAR 2"):
        card.add_bar(3, 16)


@pytest.mark.parametrize(
    ("index", "size", "io", "wide"), [(0, 24, False, False), (0, 8, False, False), (6, 16, False, False)]
)
def test_impossible_bars_are_refused(index: int, size: int, io: bool, wide: bool) -> None:
    with pytest.raises(DeviceError, match=f"BAR {index}"):
        PciFunction(1, 2, 0).add_bar(index, size, io=io, wide=wide)


def test_a_bar_moves_its_window_on_the_memory_bus() -> None:
    host, card, _ = board()
    devices = AxVmDevices()
    ram = PciHost()
    card.add_bar(1, 0x1000, on_move=devices.movable_window(ram, BusKind.MMIO, 0x1000))
    write_config(host, 2, 0, 0x14, 4, 0xE000_0000)
    write_config(host, 2, 0, 0x04, 2, 2)
    assert devices.find_mmio_dev(0xE000_0FFF) is ram
    write_config(host, 2, 0, 0x14, 4, 0xE100_0000)
    assert devices.find_mmio_dev(0xE000_0000) is None and devices.find_mmio_dev(0xE100_0000) is ram


def test_reset_takes_the_bars_off_and_clears_the_address() -> None:
    host, _, moves = board()
    write_config(host, 2, 0, 0x10, 4, 0xFEB0_0000)
    write_config(host, 2, 0, 0x04, 2, 2)
    host.reset()
    assert moves[-1] is None
    assert host.read(ADDRESS, 4) == 0
    assert read_config(host, 2, 0, 0x10, 4) == 0


def test_a_restored_state_places_the_bars_again() -> None:
    host, _, moves = board()
    write_config(host, 2, 0, 0x10, 4, 0xFEB0_0000)
    write_config(host, 2, 0, 0x04, 2, 2)
    saved = copy.deepcopy(host.state)
    host.reset()
    host.state = saved
    host.rearm()
    assert moves[-1] == 0xFEB0_0000
    assert read_config(host, 2, 0, 0x10, 4) == 0xFEB0_0000


def test_a_place_is_taken_once_and_within_range() -> None:
    host, _, _ = board()
    with pytest.raises(DeviceError, match="already card"):
        host.add(I440fx(), 2)
    with pytest.raises(DeviceError, match="outside 0-31"):
        host.add(I440fx(), 32)


def test_a_device_with_several_functions_says_so_in_its_header_type() -> None:
    host = PciHost()
    host.add(Piix3Isa(), 1)
    assert read_config(host, 1, 0, 0x0E, 1) == 0x00
    host.add(Piix4Pm(), 1, 3)
    assert read_config(host, 1, 0, 0x0E, 1) == 0x80
    host.reset()
    assert read_config(host, 1, 0, 0x0E, 1) == 0x80


def test_pam_and_smram_are_stored() -> None:
    bridge = I440fx()
    bridge.config_write(0x59, 1, 0x30)
    bridge.config_write(0x5A, 4, 0x3333_3333)
    assert bridge.pam(0) == 0x30 and bridge.pam(4) == 0x33
    assert bridge.config_read(0x72, 1) == 0x02


def routed(level_of: dict[int, IrqLine]) -> tuple[PciHost, PciFunction, Piix3Isa]:
    def irq(number: int) -> IrqLine:
        return level_of.setdefault(number, IrqLine(None, number))

    host = PciHost()
    bridge = Piix3Isa(irq)
    card = PciFunction(1, 2, 0, interrupt_pin=1, name="card")
    host.add(bridge, 1)
    host.add(card, 3)  # slot 3, INTA#: PIRQC#
    return host, card, bridge


def test_intx_reaches_the_isa_interrupt_its_pirq_is_routed_to() -> None:
    lines: dict[int, IrqLine] = {}
    _, card, bridge = routed(lines)
    card.set_intx(True)
    assert lines == {}  # routes are off after reset
    bridge.config_write(0x62, 1, 11)
    assert lines[11].level is True
    bridge.config_write(0x62, 1, 10)
    assert lines[11].level is False and lines[10].level is True
    card.set_intx(False)
    assert lines[10].level is False


def test_a_shared_pirq_stays_high_until_the_last_source_lets_go() -> None:
    lines: dict[int, IrqLine] = {}
    host, card, bridge = routed(lines)
    other = PciFunction(1, 3, 0, interrupt_pin=1)
    host.add(other, 7)  # four slots on: the same PIRQ
    bridge.config_write(0x60, 4, 0x0B0B_0B0B)
    card.set_intx(True)
    other.set_intx(True)
    card.set_intx(False)
    assert lines[11].level is True
    other.set_intx(False)
    assert lines[11].level is False


@pytest.mark.parametrize("route", [0x00, 0x02, 0x08, 0x0D, 0x8B])
def test_reserved_and_disabled_routes_lead_nowhere(route: int) -> None:
    lines: dict[int, IrqLine] = {}
    _, card, bridge = routed(lines)
    bridge.config_write(0x62, 1, route)
    card.set_intx(True)
    assert lines == {}


def test_intx_disable_silences_the_pin_but_not_the_status() -> None:
    lines: dict[int, IrqLine] = {}
    _, card, bridge = routed(lines)
    bridge.config_write(0x62, 1, 11)
    card.set_intx(True)
    card.config_write(4, 2, 0x0400)
    assert lines[11].level is False
    assert card.config_read(6, 2) & 0x0008
    card.config_write(4, 2, 0)
    assert lines[11].level is True


def test_a_restored_state_drives_its_interrupt_again() -> None:
    lines: dict[int, IrqLine] = {}
    host, card, bridge = routed(lines)
    bridge.config_write(0x62, 1, 11)
    card.set_intx(True)
    saved = copy.deepcopy(host.state)
    host.reset()
    assert lines[11].level is False
    host.state = saved
    host.rearm()
    assert lines[11].level is True


def test_the_acpi_block_moves_with_pmbase_and_its_enable_bit() -> None:
    told: list[int | None] = []
    pm = Piix4Pm(told.append)
    pm.config_write(0x40, 4, 0x0000_0601)
    assert told == [] and pm.config_read(0x40, 4) == 0x601
    pm.config_write(0x80, 1, 1)
    pm.config_write(0x40, 4, 0x0000_B001)
    pm.config_write(0x80, 1, 0)
    assert told == [0x600, 0xB000, None]


def test_firmware_sees_the_smi_port_as_set_up_already() -> None:
    assert Piix4Pm().config_read(0x58, 4) & 1 << 25


def test_the_ide_function_is_a_legacy_mode_controller() -> None:
    ide = Piix3Ide()
    assert ide.config_read(0, 4) == 0x7010_8086
    assert ide.config_read(8, 4) == 0x0101_0000


def test_the_board_has_its_chips_at_their_places() -> None:
    host = i440fx_board(ide=True, power_management=True)
    found = {(d, n): read_config(host, d, n, 0, 4) for d in range(3) for n in range(4)}
    present = {place: ids for place, ids in found.items() if ids != 0xFFFF_FFFF}
    assert present == {(0, 0): 0x1237_8086, (1, 0): 0x7000_8086, (1, 1): 0x7010_8086, (1, 3): 0x7113_8086}
