"""axvm's absolute-address contract: types print as upstream, ranges have upstream's ends."""

from __future__ import annotations

import pytest

from devices.base import AccessWidth, Device, DeviceError
from devices.bus import BusKind
from devices.contract import (
    AbsoluteDevice,
    BaseMmioDeviceOps,
    BasePortDeviceOps,
    EmulatedDeviceConfig,
    EmulatedDeviceType,
    GuestPhysAddr,
    GuestPhysAddrRange,
    Port,
    PortRange,
    SysRegAddr,
    SysRegAddrRange,
    device_from_handler,
    device_from_ops,
    map_device_of_type,
)


class Scratch(BaseMmioDeviceOps):
    name = "scratch"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def emu_type(self) -> EmulatedDeviceType:
        return EmulatedDeviceType.Dummy

    def address_range(self) -> GuestPhysAddrRange:
        return GuestPhysAddrRange(0x1000, 0x2000)

    def handle_read(self, addr: GuestPhysAddr, width: AccessWidth) -> int:
        self.calls.append(("read", addr, width))
        return 0x55

    def handle_write(self, addr: GuestPhysAddr, width: AccessWidth, val: int) -> None:
        self.calls.append(("write", addr, width, val))


def test_addresses_print_as_in_axaddrspace() -> None:
    assert repr(GuestPhysAddr(0x1000)) == "GPA:0x1000"
    assert str(Port(0x3F8)) == f"{Port(0x3F8)}" == "Port(0x3f8)"
    assert repr(SysRegAddr(0x1B)) == "SysRegAddr(0x1b)"


def test_addresses_are_plain_ints_in_arithmetic_and_formats() -> None:
    assert Port(0x3F8) + 1 == 0x3F9
    assert f"{GuestPhysAddr(16):#x}" == "0x10"
    assert Port(0x3F8).number() == 0x3F8
    assert SysRegAddr(0x1B).addr() == 0x1B


@pytest.mark.parametrize("number", [-1, 0x1_0000])
def test_a_port_outside_16_bits_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="0x0-0xffff"):
        Port(number)


def test_a_memory_range_excludes_its_end() -> None:
    window = GuestPhysAddrRange.from_start_size(0x1000, 0x1000)
    assert window.contains(0x1000) and window.contains(0x1FFF)
    assert not window.contains(0x2000) and not window.contains(0xFFF)
    assert window.length == 0x1000
    assert repr(window) == "GPA:0x1000..GPA:0x2000"


def test_port_and_register_ranges_include_their_end() -> None:
    ports = PortRange(0x3F8, 0x3FF)
    assert ports.contains(0x3FF) and not ports.contains(0x400)
    assert ports.length == 8
    assert str(ports) == "0x3f8..=0x3ff"
    registers = SysRegAddrRange(0x800, 0x8FF)
    assert registers.contains(0x8FF) and not registers.contains(0x900)
    assert registers.length == 0x100
    assert str(registers) == "0x800..=0x8ff"


def test_device_types_have_axvmconfigs_numbers() -> None:
    assert EmulatedDeviceType.from_usize(0x2) is EmulatedDeviceType.Console
    assert EmulatedDeviceType.from_usize(0xE1) is EmulatedDeviceType.VirtioBlk
    assert EmulatedDeviceType.from_usize(0x24) is EmulatedDeviceType.X86Pit
    assert EmulatedDeviceType.from_usize(0x99) is None
    assert str(EmulatedDeviceType.Dummy) == "meta device"


def test_removable_device_types_are_axvms() -> None:
    removable = {kind.name for kind in EmulatedDeviceType if kind.removable()}
    assert removable == {
        "InterruptController",
        "GPPTRedistributor",
        "X86IoApic",
        "X86Pit",
        "VirtioBlk",
        "VirtioNet",
        "VirtioConsole",
    }


def test_a_config_row_has_both_names_for_its_base() -> None:
    row = EmulatedDeviceConfig("com1", 0x3F8, 8, 4, EmulatedDeviceType.Console)
    assert row.base_ipa == row.base_gpa == 0x3F8


def test_an_ops_device_is_told_absolute_addresses_and_widths() -> None:
    ops = Scratch()
    device, wanted = device_from_ops(ops)
    assert (wanted.bus, wanted.base, wanted.length) == (BusKind.MMIO, 0x1000, 0x1000)
    assert device.name == "scratch"
    assert device.read(0x10, 4) == 0x55
    device.write(0x18, 1, 7)
    assert ops.calls == [("read", 0x1010, AccessWidth.DWORD), ("write", 0x1018, AccessWidth.BYTE, 7)]
    assert isinstance(ops.calls[0][1], GuestPhysAddr)


def test_a_wrong_address_range_is_refused_by_name() -> None:
    class Odd(BasePortDeviceOps):
        def emu_type(self) -> EmulatedDeviceType:
            return EmulatedDeviceType.Dummy

        def address_range(self) -> PortRange:
            return (1, 2)  # type: ignore[return-value]

        def handle_read(self, addr: Port, width: AccessWidth) -> int:
            return 0

        def handle_write(self, addr: Port, width: AccessWidth, val: int) -> None:
            return

    with pytest.raises(DeviceError, match=r"Odd\.address_range\(\) returned \(1, 2\)"):
        device_from_ops(Odd())


class SeedHandler:
    """The shape of axvm's page on custom devices."""

    def __init__(self) -> None:
        self.device_state = {"last": 0}

    def handle_mmio_read(self, addr: int, width: int) -> int:
        return addr & 0xFF

    def handle_mmio_write(self, addr: int, width: int, data: int) -> None:
        self.device_state["last"] = data

    def handle_port_read(self, port: int, width: int) -> int:
        return port

    def handle_port_write(self, port: int, width: int, data: int) -> None:
        self.device_state["last"] = -data


def test_a_custom_handler_serves_memory_and_ports() -> None:
    handler = SeedHandler()
    memory = device_from_handler(handler, BusKind.MMIO, 0xFE00_0000)
    ports = device_from_handler(handler, BusKind.PORT, 0x500)
    assert memory.read(0x42, 4) == 0x42
    assert ports.read(2, 1) == 0x502
    memory.write(0, 4, 9)
    assert handler.device_state["last"] == 9
    ports.write(0, 4, 9)
    assert handler.device_state["last"] == -9
    assert memory.name == "SeedHandler"


def test_the_adapters_state_is_the_handlers_device_state() -> None:
    handler = SeedHandler()
    device = device_from_handler(handler, BusKind.MMIO, 0)
    assert device.state is handler.device_state
    device.state = {"last": 3}
    assert handler.device_state == {"last": 3}


def test_an_object_without_the_methods_is_refused_in_one_sentence() -> None:
    with pytest.raises(DeviceError, match=r"dict cannot go on the port bus.*handle_port_read"):
        device_from_handler({}, BusKind.PORT, 0)


def test_map_device_of_type_looks_through_adapters() -> None:
    ops = Scratch()
    device, _ = device_from_ops(ops)
    assert map_device_of_type(device, Scratch, lambda found: found is ops) is True
    assert map_device_of_type(device, SeedHandler, lambda found: True) is None
    assert map_device_of_type(device, AbsoluteDevice, lambda found: found is device) is True
    plain = Device()
    assert map_device_of_type(plain, Device, lambda found: found is plain) is True


def test_reset_reaches_a_target_that_has_one() -> None:
    class WithReset(SeedHandler):
        resets = 0

        def reset(self) -> None:
            self.resets += 1

    handler = WithReset()
    device_from_handler(handler, BusKind.PORT, 0).reset()
    assert handler.resets == 1
    device_from_handler(SeedHandler(), BusKind.PORT, 0).reset()
