"""The bus: windows never overlap, look-up is exact, errors name both sides."""

from __future__ import annotations

import pytest

from devices.base import Device
from devices.bus import ROUTE_CACHE_LIMIT, Bus, BusError, BusKind, WindowClosed


class Probe(Device):
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_window_answers_from_its_first_to_its_last_address() -> None:
    bus = Bus(BusKind.PORT)
    uart = Probe("uart")
    bus.add(uart, 0x3F8, 8)
    assert bus.find(0x3F7) is None
    assert bus.find(0x3F8) is not None
    assert bus.find(0x3FF) is not None
    assert bus.find(0x400) is None


def test_delta_turns_an_address_into_the_offset_the_window_starts_at() -> None:
    bus = Bus(BusKind.PORT)
    pit = Probe("pit")
    bus.add(pit, 0x40, 4)
    bus.add(pit, 0x61, 1, offset=0x21)
    low, high = bus.find(0x43), bus.find(0x61)
    assert low is not None and 0x43 + low.delta == 3
    assert high is not None and 0x61 + high.delta == 0x21


@pytest.mark.parametrize(("base", "length"), [(0x3F0, 9), (0x3FF, 1), (0x3F8, 8), (0x3FA, 2), (0x300, 0x200)])
def test_an_overlap_is_refused_and_names_both_owners_and_ranges(base: int, length: int) -> None:
    bus = Bus(BusKind.PORT)
    bus.add(Probe("uart"), 0x3F8, 8)
    with pytest.raises(BusError) as caught:
        bus.add(Probe("fdc"), base, length)
    text = str(caught.value)
    assert "fdc" in text and f"{base:#x}-{base + length - 1:#x}" in text
    assert "uart" in text and "0x3f8-0x3ff" in text
    assert len(bus) == 1


def test_neighbours_that_touch_do_not_overlap() -> None:
    bus = Bus(BusKind.MMIO)
    bus.add(Probe("b"), 0x2000, 0x1000)
    bus.add(Probe("a"), 0x1000, 0x1000)
    bus.add(Probe("c"), 0x3000, 0x1000)
    assert [entry.device.name for entry in bus] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("kind", "base", "length"),
    [
        (BusKind.PORT, 0x3F8, 0),
        (BusKind.PORT, 0x3F8, -1),
        (BusKind.PORT, -1, 2),
        (BusKind.PORT, 0xFFFF, 2),
        (BusKind.SYS_REG, 0xFFFF_FFFF, 2),
        (BusKind.MMIO, (1 << 52) - 1, 2),
    ],
)
def test_empty_windows_and_windows_past_the_bus_are_refused(kind: BusKind, base: int, length: int) -> None:
    bus = Bus(kind)
    with pytest.raises(BusError, match="probe"):
        bus.add(Probe("probe"), base, length)
    assert bus.generation == 0


def test_the_last_address_of_each_bus_can_be_used() -> None:
    for kind, last in ((BusKind.PORT, 0xFFFF), (BusKind.SYS_REG, 0xFFFF_FFFF), (BusKind.MMIO, (1 << 52) - 1)):
        bus = Bus(kind)
        bus.add(Probe("edge"), last, 1)
        assert bus.find(last) is not None


def test_negative_offset_and_unknown_access_are_refused() -> None:
    bus = Bus(BusKind.MMIO)
    with pytest.raises(BusError, match="offset -1"):
        bus.add(Probe("p"), 0, 1, offset=-1)
    with pytest.raises(BusError, match='"rw", "r" or "w"'):
        bus.add(Probe("p"), 0, 1, access="x")


def test_removal_forgets_remembered_routes() -> None:
    bus = Bus(BusKind.PORT)
    uart = Probe("uart")
    bus.add(uart, 0x3F8, 8)
    assert bus.find(0x3F8) is not None
    bus.remove(uart)
    assert bus.find(0x3F8) is None
    with pytest.raises(BusError, match="nothing to remove"):
        bus.remove(uart)


def test_remove_at_a_base_leaves_the_other_windows() -> None:
    bus = Bus(BusKind.PORT)
    pit = Probe("pit")
    bus.add(pit, 0x40, 4)
    bus.add(pit, 0x61, 1)
    bus.remove(pit, 0x40)
    assert [entry.base for entry in bus] == [0x61]


def test_every_change_counts_and_is_told() -> None:
    told: list[int] = []
    bus = Bus(BusKind.MMIO)
    bus.on_change = lambda: told.append(bus.generation)
    device = Probe("d")
    bus.add(device, 0x1000, 1)
    bus.remove(device)
    assert told == [1, 2]


def test_nearest_prefers_the_closer_and_then_the_lower_window() -> None:
    bus = Bus(BusKind.PORT)
    assert bus.nearest(0x100) is None
    bus.add(Probe("low"), 0x100, 0x10)
    bus.add(Probe("high"), 0x201, 0x10)
    # 0x188 is 0x79 away from either window
    for address, name in ((0x0, "low"), (0x188, "low"), (0x189, "high"), (0x300, "high")):
        entry = bus.nearest(address)
        assert entry is not None and entry.device.name == name


def test_a_one_way_window_refuses_the_other_direction() -> None:
    bus = Bus(BusKind.MMIO)
    entry = bus.add(Probe("rom"), 0, 16, access="r")
    assert entry.read(0, 1) == 0xFF
    with pytest.raises(WindowClosed, match="read-only"):
        entry.write(0, 1, 0)


def test_the_route_cache_stays_bounded() -> None:
    bus = Bus(BusKind.MMIO)
    bus.add(Probe("big"), 0, ROUTE_CACHE_LIMIT * 2)
    for address in range(ROUTE_CACHE_LIMIT + 5):
        bus.find(address)
    assert len(bus.routes) <= ROUTE_CACHE_LIMIT


def test_misses_are_not_remembered() -> None:
    bus = Bus(BusKind.PORT)
    for port in range(100):
        assert bus.find(port) is None
    assert len(bus.routes) == 0
