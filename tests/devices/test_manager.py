"""AxVmDevices: registration is checked, accesses reach the right device once, misses follow the policy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from devices.base import AccessWidth, Device, DeviceError
from devices.bus import BusError, BusKind, Window
from devices.contract import (
    BaseMmioDeviceOps,
    BaseSysRegDeviceOps,
    EmulatedDeviceConfig,
    EmulatedDeviceType,
    GuestPhysAddr,
    GuestPhysAddrRange,
    SysRegAddr,
    SysRegAddrRange,
)
from devices.local_apic import SysRegFault
from devices.manager import (
    AxVmDeviceConfig,
    AxVmDevices,
    DeviceAccessError,
    DeviceNotFound,
    IrqConflict,
    IvcError,
    SysRegNotFound,
)


class Recorder(Device):
    """Remembers every access; `answer` is what it reads."""

    def __init__(self, name: str = "recorder", answer: Any = 0) -> None:
        self.name = name
        self.answer = answer
        self.log: list[tuple[Any, ...]] = []

    def read(self, offset: int, width: int) -> int:
        self.log.append(("read", offset, width))
        return self.answer  # type: ignore[no-any-return]

    def write(self, offset: int, width: int, value: int) -> None:
        self.log.append(("write", offset, width, value))

    def reset(self) -> None:
        self.log.append(("reset",))


class Broken(Device):
    name = "broken"

    def read(self, offset: int, width: int) -> int:
        raise KeyError("lost")

    def write(self, offset: int, width: int, value: int) -> None:
        raise DeviceError("broken: the disk is full; make room")


class Timer(BaseMmioDeviceOps):
    name = "timer"

    def emu_type(self) -> EmulatedDeviceType:
        return EmulatedDeviceType.Dummy

    def address_range(self) -> GuestPhysAddrRange:
        return GuestPhysAddrRange(0xFED0_0000, 0xFED0_0400)

    def handle_read(self, addr: GuestPhysAddr, width: AccessWidth) -> int:
        return int(addr) - 0xFED0_0000

    def handle_write(self, addr: GuestPhysAddr, width: AccessWidth, val: int) -> None:
        return


class Registers(BaseSysRegDeviceOps):
    name = "registers"

    def emu_type(self) -> EmulatedDeviceType:
        return EmulatedDeviceType.Dummy

    def address_range(self) -> SysRegAddrRange:
        return SysRegAddrRange(0x800, 0x8FF)

    def handle_read(self, addr: SysRegAddr, width: AccessWidth) -> int:
        return int(addr)

    def handle_write(self, addr: SysRegAddr, width: AccessWidth, val: int) -> None:
        return


def test_a_device_sees_offsets_on_every_bus() -> None:
    devices = AxVmDevices()
    chip = Recorder(answer=0x5A)
    devices.add_mmio_dev(chip, 0xFE00_0000, 0x1000)
    devices.add_port_dev(chip, 0x500, 8, offset=0x100)
    devices.add_sys_reg_dev(chip, 0x4B56_4D00, 2, offset=0x200)
    assert devices.handle_mmio_read(0xFE00_0010, 4) == 0x5A
    devices.handle_port_write(0x501, 1, 7)
    assert devices.handle_sys_reg_read(0x4B56_4D01, 8) == 0x5A
    assert chip.log == [("read", 0x10, 4), ("write", 0x101, 1, 7), ("read", 0x201, 8)]


def test_an_ops_device_brings_its_own_range() -> None:
    devices = AxVmDevices()
    timer = Timer()
    devices.add_mmio_dev(timer)
    assert devices.handle_mmio_read(0xFED0_00F0, 8) == 0xF0
    assert devices.find_mmio_dev(0xFED0_03FF) is timer
    assert devices.find_mmio_dev(0xFED0_0400) is None


def test_a_register_device_is_found_in_its_whole_inclusive_range() -> None:
    devices = AxVmDevices()
    devices.add_sys_reg_dev(Registers())
    assert devices.handle_sys_reg_read(0x800, 8) == 0x800
    assert devices.handle_sys_reg_read(0x8FF, 8) == 0x8FF
    assert devices.find_sys_reg_dev(0x900) is None


def test_a_custom_handler_may_sit_on_memory_and_ports() -> None:
    class Handler:
        def handle_mmio_read(self, addr: int, width: int) -> int:
            return addr

        def handle_mmio_write(self, addr: int, width: int, data: int) -> None:
            return

        def handle_port_read(self, port: int, width: int) -> int:
            return port

        def handle_port_write(self, port: int, width: int, data: int) -> None:
            return

    devices = AxVmDevices()
    handler = Handler()
    devices.add_mmio_dev(handler, 0x9000, 0x100, offset=0x40)
    devices.add_port_dev(handler, 0x700, 4)
    assert devices.handle_mmio_read(0x9004, 8) == 0x9004
    assert devices.handle_port_read(0x702, 2) == 0x702
    assert devices.find_port_dev(0x700) is handler
    devices.remove_dev(handler)
    assert devices.find_mmio_dev(0x9000) is None and devices.find_port_dev(0x700) is None


def test_misuse_of_registration_is_one_sentence() -> None:
    devices = AxVmDevices()
    with pytest.raises(DeviceError, match="recorder does not say where it sits; give base and length"):
        devices.add_mmio_dev(Recorder())
    with pytest.raises(DeviceError, match="timer brings its own address range"):
        devices.add_mmio_dev(Timer(), 0x1000, 0x10)
    with pytest.raises(DeviceError, match=r"asks for .* on the mmio bus; it cannot go on the port bus"):
        devices.add_port_dev(Timer())
    with pytest.raises(DeviceError, match="int cannot go on the port bus"):
        devices.add_port_dev(5, 0x10, 1)
    with pytest.raises(DeviceError, match="not registered with this VM"):
        devices.remove_dev(Recorder())
    assert list(devices.iter_devices()) == []


def test_a_missing_port_says_bus_address_width_direction_neighbour_and_remedy() -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder("uart16550"), 0x3F8, 8)
    with pytest.raises(DeviceNotFound) as caught:
        devices.handle_port_write(0x2F8, 1, 0)
    assert str(caught.value) == (
        "port write 0x2f8 width 1: no device (nearest: uart16550 0x3f8-0x3ff); "
        'add one or set missing_device = "ones"'
    )


def test_an_empty_bus_says_so() -> None:
    with pytest.raises(DeviceNotFound, match=r"mmio read 0x1000 width 4: no device \(the bus is empty\)"):
        AxVmDevices().handle_mmio_read(0x1000, 4)


@pytest.mark.parametrize("policy", ["ones", "gp"])
def test_an_undriven_bus_reads_ones_and_ignores_writes(policy: str) -> None:
    devices = AxVmDevices(missing_device=policy)
    assert devices.handle_port_read(0x2F8, 1) == 0xFF
    assert devices.handle_port_read(0xFFFF, 4) == 0xFFFF_FFFF
    assert devices.handle_mmio_read(0xFEB0_0000, 8) == 0xFFFF_FFFF_FFFF_FFFF
    devices.handle_port_write(0x2F8, 1, 0)
    devices.handle_mmio_write(0xFEB0_0000, 8, 0)


@pytest.mark.parametrize(("policy", "inject"), [("raise", False), ("gp", True)])
def test_a_missing_register_tells_whether_the_guest_gets_a_gp(policy: str, inject: bool) -> None:
    devices = AxVmDevices(missing_device=policy)
    with pytest.raises(SysRegNotFound, match="sys_reg read 0x1b width 8") as caught:
        devices.handle_sys_reg_read(0x1B, 8)
    assert caught.value.inject_gp is inject
    with pytest.raises(SysRegNotFound):
        devices.handle_sys_reg_write(0x1B, 8, 0)


def test_a_missing_register_under_ones_reads_ones() -> None:
    assert AxVmDevices(missing_device="ones").handle_sys_reg_read(0x1B, 8) == 0xFFFF_FFFF_FFFF_FFFF


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(DeviceError, match="missing_device = 'zeros' is unknown"):
        AxVmDevices(missing_device="zeros")


def test_a_port_access_over_two_devices_is_split_into_bytes() -> None:
    devices = AxVmDevices()
    low, high = Recorder("low", 0x11), Recorder("high", 0x22)
    devices.add_port_dev(low, 0x100, 3)
    devices.add_port_dev(high, 0x103, 8)
    assert devices.handle_port_read(0x102, 4) == 0x2222_2211
    devices.handle_port_write(0x102, 2, 0xBBAA)
    assert low.log == [("read", 2, 1), ("write", 2, 1, 0xAA)]
    assert high.log == [("read", 0, 1), ("read", 1, 1), ("read", 2, 1), ("write", 0, 1, 0xBB)]


def test_a_port_access_inside_one_window_is_not_split() -> None:
    devices = AxVmDevices()
    chip = Recorder()
    devices.add_port_dev(chip, 0x100, 4)
    devices.handle_port_read(0x100, 4)
    assert chip.log == [("read", 0, 4)]


def test_a_memory_access_that_runs_past_its_window_names_both_devices_and_touches_neither() -> None:
    devices = AxVmDevices()
    low, high = Recorder("low"), Recorder("high")
    devices.add_mmio_dev(low, 0x1000, 0x1000)
    devices.add_mmio_dev(high, 0x2000, 0x1000)
    with pytest.raises(DeviceAccessError, match=r"in low 0x1000-0x1fff .* into high 0x2000-0x2fff"):
        devices.handle_mmio_read(0x1FFE, 4)
    with pytest.raises(DeviceAccessError, match=r"in high 0x2000-0x2fff .* addresses without a device"):
        devices.handle_mmio_write(0x2FFF, 2, 0)
    assert low.log == high.log == []


def test_a_port_access_that_runs_into_nothing_is_an_error_or_floats() -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder("chip", 0x12), 0x100, 1)
    with pytest.raises(DeviceAccessError, match="addresses without a device"):
        devices.handle_port_read(0x100, 2)
    devices.missing_device = "ones"
    assert devices.handle_port_read(0x100, 2) == 0xFF12
    assert devices.handle_port_read(0xFF, 2) == 0x12FF


def test_results_are_cut_to_the_width() -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder(answer=0x1234), 0x10, 4)
    assert devices.handle_port_read(0x10, 1) == 0x34
    assert devices.handle_port_read(0x10, 2) == 0x1234


def test_written_values_are_cut_to_the_width() -> None:
    devices = AxVmDevices()
    chip = Recorder()
    devices.add_port_dev(chip, 0x10, 4)
    devices.handle_port_write(0x10, 1, 0x1FF)
    assert chip.log == [("write", 0, 1, 0xFF)]


@pytest.mark.parametrize(("answer", "value"), [(True, 1), (np.uint16(0x1234), 0x34), (AccessWidth.QWORD, 8)])
def test_other_kinds_of_integers_are_integers(answer: Any, value: int) -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder(answer=answer), 0x10, 1)
    got = devices.handle_port_read(0x10, 1)
    assert got == value and type(got) is int


@pytest.mark.parametrize("answer", [None, -1, 1.0, "1", b"\x01"])
def test_nonsense_from_a_device_is_an_error_that_names_it(answer: Any) -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder("liar", answer), 0x10, 1)
    with pytest.raises(DeviceAccessError, match="port read 0x10 width 1: device liar 0x10-0x10 returned"):
        devices.handle_port_read(0x10, 1)


def test_what_a_device_raises_is_chained_to_an_error_that_names_it() -> None:
    devices = AxVmDevices()
    devices.add_mmio_dev(Broken(), 0x1000, 0x10)
    with pytest.raises(
        DeviceAccessError, match=r"mmio read 0x1000 width 4: device broken .*KeyError"
    ) as caught:
        devices.handle_mmio_read(0x1000, 4)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(DeviceAccessError, match=r"mmio write 0x1004 width 2: .*the disk is full"):
        devices.handle_mmio_write(0x1004, 2, 0)


def test_a_register_devices_wish_for_gp_passes_unchanged() -> None:
    class Picky(Device):
        def read(self, offset: int, width: int) -> int:
            raise SysRegFault("RDMSR 0x10: write-only")

        def write(self, offset: int, width: int, value: int) -> None:
            raise SysRegFault("WRMSR 0x10: read-only")

    devices = AxVmDevices()
    devices.add_sys_reg_dev(Picky(), 0x10)
    with pytest.raises(SysRegFault):
        devices.handle_sys_reg_read(0x10, 8)
    with pytest.raises(SysRegFault):
        devices.handle_sys_reg_write(0x10, 8, 0)


@pytest.mark.parametrize("width", [0, 3, 16, -1])
def test_a_width_that_is_none_is_refused(width: int) -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder(), 0x10, 0x20)
    with pytest.raises(DeviceAccessError, match="a width is 1, 2, 4 or 8 bytes"):
        devices.handle_port_read(0x10, width)
    with pytest.raises(DeviceAccessError, match="a width is 1, 2, 4 or 8 bytes"):
        devices.handle_port_write(0x10, width, 0)


def test_a_read_only_window_meets_the_policy_on_writes() -> None:
    devices = AxVmDevices()
    rom = Recorder("rom", 0xAA)
    devices.add_device(rom, [Window(BusKind.MMIO, 0xF_0000, 0x1_0000, access="r")])
    assert devices.handle_mmio_read(0xF_FFF0, 1) == 0xAA
    with pytest.raises(DeviceNotFound, match="rom 0xf0000-0xfffff is read-only"):
        devices.handle_mmio_write(0xF_FFF0, 1, 0)
    devices.missing_device = "ones"
    devices.handle_mmio_write(0xF_FFF0, 1, 0)
    assert rom.log == [("read", 0xFFF0, 1)]


def test_a_second_device_at_the_same_place_is_refused_and_leaves_no_trace() -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder("first"), 0x60, 1)
    second = Recorder("second")
    with pytest.raises(BusError, match=r"second overlaps .* of first"):
        devices.add_port_dev(second, 0x60, 1)
    assert [device.name for device in devices.iter_devices()] == ["first"]


def test_several_windows_are_added_together_or_not_at_all() -> None:
    devices = AxVmDevices()
    devices.add_port_dev(Recorder("kbd"), 0x61, 1)
    pit = Recorder("pit")
    with pytest.raises(BusError, match="kbd"):
        devices.add_device(pit, [Window(BusKind.PORT, 0x40, 4), Window(BusKind.PORT, 0x61, 1, 0x21)])
    assert devices.find_port_dev(0x40) is None
    devices.add_device(pit, [Window(BusKind.PORT, 0x40, 4), Window(BusKind.MMIO, 0x1000, 4)])
    assert devices.find_port_dev(0x43) is pit and devices.find_mmio_dev(0x1000) is pit


def test_reset_reaches_each_device_once_in_order_of_registration() -> None:
    order: list[str] = []

    class Resettable(Recorder):
        def reset(self) -> None:
            order.append(self.name)

    devices = AxVmDevices()
    second = Resettable("b")
    devices.add_port_dev(second, 0x80, 1)
    devices.add_port_dev(Resettable("a"), 0x10, 1)
    devices.add_mmio_dev(second, 0x1000, 1)
    devices.reset()
    assert order == ["b", "a"]


def test_iteration_is_in_address_order_and_gives_each_object_once() -> None:
    devices = AxVmDevices()
    pit, pic = Recorder("pit"), Recorder("pic")
    devices.add_port_dev(pit, 0x61, 1, offset=0x21)
    devices.add_port_dev(pit, 0x40, 4)
    devices.add_port_dev(pic, 0x20, 2)
    assert [device.name for device in devices.iter_port_dev()] == ["pic", "pit"]
    assert list(devices.iter_mut_port_dev()) == list(devices.iter_port_dev())
    assert list(devices.iter_mmio_dev()) == list(devices.iter_sys_reg_dev()) == []


def test_the_memory_bus_tells_of_windows_added_later() -> None:
    devices = AxVmDevices()
    seen: list[int] = []
    devices.mmio.on_change = lambda: seen.append(len(devices.mmio))
    chip = Recorder()
    devices.add_mmio_dev(chip, 0x1000, 0x1000)
    devices.remove_dev(chip)
    assert seen == [1, 0]


def test_the_hook_hears_every_access_with_its_value() -> None:
    heard: list[tuple[Any, ...]] = []
    devices = AxVmDevices(missing_device="ones", on_access=lambda *access: heard.append(access))
    devices.add_port_dev(Recorder("chip", 0x55), 0x10, 1)
    devices.handle_port_read(0x10, 1)
    devices.handle_port_write(0x10, 1, 3)
    devices.handle_mmio_read(0x99, 2)
    devices.handle_mmio_write(0x99, 2, 0x1_0001)
    assert heard == [
        ("chip", "port", "read", 0x10, 1, 0x55),
        ("chip", "port", "write", 0x10, 1, 3),
        ("none", "mmio", "read", 0x99, 2, 0xFFFF),
        ("none", "mmio", "write", 0x99, 2, 1),
    ]


def test_a_movable_window_follows_its_base_and_survives_collisions() -> None:
    devices = AxVmDevices()
    card, other = Recorder("card"), Recorder("other")
    devices.add_mmio_dev(other, 0x2000, 0x1000)
    move = devices.movable_window(card, BusKind.MMIO, 0x1000)
    assert move(0x1000) is True
    assert devices.find_mmio_dev(0x1800) is card
    assert move(0x2000) is False
    assert devices.find_mmio_dev(0x1800) is None and devices.find_mmio_dev(0x2000) is other
    assert move(0x5000) is True
    assert move(None) is False
    assert devices.find_mmio_dev(0x5000) is None
    assert [device.name for device in devices.iter_devices()] == ["other", "card"]


def test_an_interrupt_line_has_one_owner_unless_all_share() -> None:
    devices = AxVmDevices()
    uart = Recorder("uart")
    devices.claim_irq(4, uart)
    devices.claim_irq(4, uart)
    with pytest.raises(IrqConflict, match="interrupt line 4 of modem is already driven by uart"):
        devices.claim_irq(4, "modem", shared=True)
    devices.claim_irq(11, "nic", shared=True)
    devices.claim_irq(11, "disk", shared=True)
    assert devices.irq_owners(11) == ["nic", "disk"]
    with pytest.raises(IrqConflict, match="nic"):
        devices.claim_irq(11, "edge card")
    devices.release_irq(11, "nic")
    assert devices.irq_owners(11) == ["disk"]
    with pytest.raises(IrqConflict, match="does not drive"):
        devices.release_irq(11, "nic")


def test_removing_a_device_frees_its_interrupt_lines() -> None:
    devices = AxVmDevices()
    uart = Recorder("uart")
    devices.add_port_dev(uart, 0x3F8, 8)
    devices.claim_irq(4, uart)
    devices.remove_dev(uart)
    devices.claim_irq(4, "modem")
    assert devices.irq_owners(4) == ["modem"]


def _with_ivc(length: int) -> AxVmDevices:
    row = EmulatedDeviceConfig("ivc", 0x7000_0000, length, 0, EmulatedDeviceType.IVCChannel)
    return AxVmDevices(AxVmDeviceConfig((row,)))


def test_ivc_channels_are_handed_out_first_fit_and_taken_back() -> None:
    devices = _with_ivc(0x4000)
    assert devices.alloc_ivc_channel(0x1000) == 0x7000_0000
    assert devices.alloc_ivc_channel(0x2000) == 0x7000_1000
    devices.release_ivc_channel(0x7000_0000, 0x1000)
    assert devices.alloc_ivc_channel(0x1000) == 0x7000_0000
    assert devices.alloc_ivc_channel(0x1000) == 0x7000_3000
    with pytest.raises(IvcError) as caught:
        devices.alloc_ivc_channel(0x1000)
    assert caught.value.kind == "NoMemory"


@pytest.mark.parametrize("size", [0, -0x1000, 1, 0x1001])
def test_an_ivc_size_that_is_no_number_of_pages_is_invalid(size: int) -> None:
    with pytest.raises(IvcError) as caught:
        _with_ivc(0x4000).alloc_ivc_channel(size)
    assert caught.value.kind == "InvalidInput"


def test_ivc_without_a_range_says_what_axvm_says() -> None:
    with pytest.raises(IvcError, match=r"^IVC channel not exists$") as caught:
        AxVmDevices().alloc_ivc_channel(0x1000)
    assert caught.value.kind == "InvalidInput"


def test_releasing_what_was_not_handed_out_is_invalid() -> None:
    devices = _with_ivc(0x4000)
    devices.alloc_ivc_channel(0x2000)
    with pytest.raises(IvcError) as caught:
        devices.release_ivc_channel(0x7000_0000, 0x1000)
    assert caught.value.kind == "InvalidInput"


def test_a_second_ivc_range_is_ignored_with_a_warning() -> None:
    devices = _with_ivc(0x1000)
    row = EmulatedDeviceConfig("more", 0x8000_0000, 0x1000, 0, EmulatedDeviceType.IVCChannel)
    with pytest.warns(UserWarning, match=r"'more'.*ignored"):
        devices.add_ivc_range(row)
    assert devices.alloc_ivc_channel(0x1000) == 0x7000_0000


def test_an_ivc_range_off_page_bounds_is_invalid() -> None:
    row = EmulatedDeviceConfig("odd", 0x7000_0800, 0x1000, 0, EmulatedDeviceType.IVCChannel)
    with warnings.catch_warnings(), pytest.raises(IvcError, match="whole 4 KiB pages"):
        AxVmDevices().add_ivc_range(row)


def test_two_machines_share_nothing() -> None:
    one, two = AxVmDevices(), AxVmDevices()
    one.add_port_dev(Recorder(), 0x10, 1)
    one.claim_irq(4, "uart")
    assert two.find_port_dev(0x10) is None
    assert two.irq_owners(4) == []


# ---- numbers, and who answers ------------------------------------------------------------------------------


def test_a_device_keeps_its_number_when_another_one_leaves() -> None:
    devices = AxVmDevices()
    first, second, third = Device(), Device(), Device()
    first.name, second.name, third.name = "first", "second", "third"
    devices.add_port_dev(first, 0x10, 1)
    devices.add_mmio_dev(second, 0x1000, 0x1000)
    devices.add_port_dev(second, 0x20, 1)
    devices.remove_dev(first)
    devices.add_port_dev(third, 0x10, 1)
    assert devices.device_names == ("first", "second", "third")
    assert [devices.device_number(device) for device in (first, second, third, None)] == [-1, 1, 2, -1]


def test_who_answers_depends_on_the_direction_and_a_whole_window_holds_all_of_an_access() -> None:
    devices = AxVmDevices()
    device = Device()
    devices.add_device(device, (Window(BusKind.PORT, 0x10, 4), Window(BusKind.PORT, 0x20, 2, access="r")))
    assert devices.answering(BusKind.PORT, 0x13, writes=True) is device
    assert devices.answering(BusKind.PORT, 0x20, writes=True) is None
    assert devices.answering(BusKind.PORT, 0x30, writes=False) is None
    window = devices.whole_window(BusKind.PORT, 0x10, 4, writes=True)
    assert window is not None and window.device is device
    assert devices.whole_window(BusKind.PORT, 0x12, 4, writes=True) is None
    assert devices.whole_window(BusKind.PORT, 0x20, 2, writes=True) is None
    assert devices.whole_window(BusKind.PORT, 0x10, 3, writes=True) is None


def test_a_change_of_policy_or_listener_is_told() -> None:
    devices, told = AxVmDevices(), []
    devices.on_policy = lambda: told.append((devices.missing_device, devices.on_access is not None))
    devices.missing_device = "ones"
    devices.on_access = lambda *access: None
    assert told == [("ones", False), ("ones", True)]
