"""The registry: every chip can be built by name, rows of a configuration become devices at their places."""

from __future__ import annotations

import pytest

from devices.base import Device, DeviceError, IrqLine
from devices.bus import BusError, BusKind, Window
from devices.clock import VirtualClock
from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from devices.manager import AxVmDeviceConfig, AxVmDevices, IrqConflict
from devices.registry import BoardServices, DeviceBundle, DevicePart, DeviceRegistry, default_registry

PC_PORTS = {
    "acpi_pm": (0x600, 0x60B),
    "debug_console": (0x402, 0x402),
    "debug_exit": (0xF4, 0xF7),
    "fw_cfg": (0x510, 0x51B),
    "i8042": (0x60, 0x64),
    "ide": (0x1F0, 0x3F6),
    "pci_host": (0xCF8, 0xCFF),
    "pic8259": (0x20, 0x4D1),
    "pit8254": (0x40, 0x61),
    "port92": (0x92, 0x92),
    "post_code": (0x80, 0x80),
    "rtc_cmos": (0x70, 0x71),
    "uart16550": (0x3F8, 0x3FF),
    "vga_text": (0x3C0, 0x3DF),
}


def services(**changes: object) -> BoardServices:
    return BoardServices(VirtualClock(), deliver=lambda message: True, pin=lambda gsi, level: None, **changes)  # type: ignore[arg-type]


def test_every_chip_of_a_pc_fits_on_one_board() -> None:
    registry, devices, board = default_registry(), AxVmDevices(), services()
    for name in registry.names():
        if name not in ("rom", "pflash"):
            registry.build(name, board).install(devices)
    for name, (first, last) in PC_PORTS.items():
        low, high = devices.find_port_dev(first), devices.find_port_dev(last)
        assert low is not None and low is high, name
        assert low.name == name
    assert devices.find_mmio_dev(0xFEC0_0000) is not None
    assert devices.find_mmio_dev(0xFED0_0000) is not None
    assert devices.find_mmio_dev(0xA_0000) is devices.find_mmio_dev(0xB_FFFF)
    devices.reset()


def test_each_window_starts_at_the_offset_its_chip_expects() -> None:
    devices = AxVmDevices()
    registry, board = default_registry(), services()
    for name in ("pic8259", "pit8254", "i8042", "ide"):
        registry.build(name, board).install(devices)
    offsets = {entry.base: entry.offset for entry in devices.port}
    assert offsets == {
        0x20: 0,
        0xA0: 2,
        0x4D0: 4,
        0x40: 0,
        0x61: 0x21,
        0x60: 0,
        0x64: 4,
        0x1F0: 0,
        0x3F6: 0x206,
    }


def test_a_console_row_prints_under_its_own_name() -> None:
    printed: list[tuple[str, bytes]] = []
    row = EmulatedDeviceConfig("com2", 0x2F8, 8, 3, EmulatedDeviceType.Console)
    devices = AxVmDevices()
    board = services(output=lambda name, data: printed.append((name, data)))
    bundles = default_registry().populate(devices, [row], board)
    devices.handle_port_write(0x2F8, 1, ord("A"))
    assert printed == [("com2", b"A")]
    assert devices.irq_owners(3) == ["uart16550"]
    assert bundles["com2"].device is devices.find_port_dev(0x2FF)


@pytest.mark.parametrize(
    ("emu_type", "bus", "address"),
    [
        (EmulatedDeviceType.Console, BusKind.PORT, 0x3F8),
        (EmulatedDeviceType.FwCfg, BusKind.PORT, 0x510),
        (EmulatedDeviceType.X86IoApic, BusKind.MMIO, 0xFEC0_0000),
        (EmulatedDeviceType.X86Pit, BusKind.PORT, 0x40),
    ],
)
def test_types_build_their_chip_at_its_usual_place(
    emu_type: EmulatedDeviceType, bus: BusKind, address: int
) -> None:
    devices = AxVmDevices()
    default_registry().build(emu_type, services()).install(devices)
    assert devices.bus(bus).find(address) is not None


def test_a_fw_cfg_row_above_the_ports_goes_to_memory() -> None:
    row = EmulatedDeviceConfig("fw", 0x1E02_0000, 0x18, 0, EmulatedDeviceType.FwCfg)
    devices = AxVmDevices()
    default_registry().populate(devices, [row], services())
    devices.handle_mmio_write(0x1E02_0008, 2, 0)
    assert devices.handle_mmio_read(0x1E02_0000, 4).to_bytes(4, "little") == b"QEMU"
    assert len(devices.port) == 0


def test_a_row_without_a_type_goes_by_its_name() -> None:
    devices = AxVmDevices()
    default_registry().populate(devices, [EmulatedDeviceConfig("rtc_cmos")], services())
    assert devices.find_port_dev(0x70).name == "rtc_cmos"


def test_a_dummy_with_another_name_is_ignored_with_a_warning() -> None:
    devices = AxVmDevices()
    with pytest.warns(UserWarning, match="'thing'.*Dummy"):
        bundles = default_registry().populate(devices, [EmulatedDeviceConfig("thing", 0x100, 8)], services())
    assert bundles == {} and len(devices.port) == 0


def test_an_ivc_row_becomes_the_ivc_range_once() -> None:
    row = EmulatedDeviceConfig("ivc", 0x7000_0000, 0x1000, 0, EmulatedDeviceType.IVCChannel)
    devices = AxVmDevices(AxVmDeviceConfig((row,)))
    default_registry().populate(devices, [row], services())
    assert devices.alloc_ivc_channel(0x1000) == 0x7000_0000
    late = AxVmDevices()
    default_registry().populate(late, [row], services())
    assert late.alloc_ivc_channel(0x1000) == 0x7000_0000


def test_a_type_without_a_factory_is_refused_by_name_and_number() -> None:
    row = EmulatedDeviceConfig("net", 0, 0, 0, EmulatedDeviceType.VirtioNet)
    with pytest.raises(DeviceError, match=r"VirtioNet \(0xe2\) has no factory"):
        default_registry().populate(AxVmDevices(), [row], services())


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(DeviceError, match="'uart16650' is unknown; did you mean 'uart16550'"):
        default_registry().build("uart16650", services())


def test_a_length_beyond_the_chip_is_refused() -> None:
    row = EmulatedDeviceConfig("com1", 0x3F8, 16, 4, EmulatedDeviceType.Console)
    with pytest.raises(DeviceError, match="'com1': length 0x10 does not fit the chip's 0x8"):
        default_registry().build_row(row, services())


def test_the_same_row_name_twice_is_refused() -> None:
    row = EmulatedDeviceConfig("rtc_cmos")
    with pytest.raises(DeviceError, match="comes twice"):
        default_registry().populate(AxVmDevices(), [row, row], services())


def test_a_bundle_goes_on_whole_or_not_at_all() -> None:
    devices = AxVmDevices()
    devices.add_mmio_dev(Device(), 0xB_0000, 0x1000)
    vga = default_registry().build("vga_text", services())
    with pytest.raises(BusError):
        vga.install(devices)
    assert devices.find_port_dev(0x3C0) is None
    assert [type(device) for device in devices.iter_devices()] == [Device]


def test_a_taken_interrupt_line_undoes_the_installation() -> None:
    devices = AxVmDevices()
    devices.claim_irq(4, "modem")
    with pytest.raises(IrqConflict, match="uart16550 is already driven by modem"):
        default_registry().build("uart16550", services()).install(devices)
    assert devices.find_port_dev(0x3F8) is None
    assert devices.irq_owners(4) == ["modem"]


def test_uninstalling_frees_places_and_lines() -> None:
    devices = AxVmDevices()
    bundle = default_registry().build("vga_text", services())
    bundle.install(devices)
    bundle.uninstall(devices)
    assert len(devices.port) == len(devices.mmio) == 0
    bundle.install(devices)


def test_firmware_rows_take_their_image_by_name() -> None:
    devices = AxVmDevices()
    board = services(images={"bios": bytes(range(256)), "vars": b"\xff" * 0x1000})
    registry = default_registry()
    registry.build("rom", board, EmulatedDeviceConfig("bios", 0xFFFF_FF00)).install(devices)
    registry.build("pflash", board, EmulatedDeviceConfig("vars", 0xFFC0_0000)).install(devices)
    assert devices.handle_mmio_read(0xFFFF_FF10, 1) == 0x10
    assert devices.handle_mmio_read(0xFFC0_0000, 8) == 0xFFFF_FFFF_FFFF_FFFF
    with pytest.raises(DeviceError, match="'none': there is no image"):
        registry.build("rom", board, EmulatedDeviceConfig("none", 0xF_0000))
    with pytest.raises(DeviceError, match=r"'bios': .* give base_gpa"):
        registry.build("rom", board, EmulatedDeviceConfig("bios"))


def test_a_pci_row_lists_the_functions_it_wants() -> None:
    devices = AxVmDevices(missing_device="ones")
    row = EmulatedDeviceConfig("pci_host", cfg_list=(1,))
    default_registry().populate(devices, [row], services())
    found = {}
    for number in (0, 1, 3):
        devices.handle_port_write(0xCF8, 4, 0x8000_0800 | number << 8)
        found[number] = devices.handle_port_read(0xCFC, 4)
    assert found == {0: 0x7000_8086, 1: 0x7010_8086, 3: 0xFFFF_FFFF}
    with pytest.raises(DeviceError, match="no function 2"):
        default_registry().build("pci_host", services(), EmulatedDeviceConfig("pci_host", cfg_list=(2,)))


def test_chips_that_need_apics_say_so() -> None:
    bare = BoardServices(VirtualClock())
    with pytest.raises(DeviceError, match=r"set services\.deliver"):
        default_registry().build("io_apic", bare)
    with pytest.raises(DeviceError, match=r"set services\.pin"):
        default_registry().build("hpet", bare)


def test_users_can_add_and_replace_devices() -> None:
    class Lamp(Device):
        name = "lamp"

    def lamp(row: EmulatedDeviceConfig, board: BoardServices) -> DeviceBundle:
        return DeviceBundle((DevicePart(Lamp(), (Window(BusKind.PORT, row.base_gpa, 1),)),))

    registry = default_registry()
    registry.register("lamp", lamp, EmulatedDeviceType.VirtioNet)
    devices = AxVmDevices()
    row = EmulatedDeviceConfig("hall", 0x700, 1, 0, EmulatedDeviceType.VirtioNet)
    registry.populate(devices, [row], services())
    assert devices.find_port_dev(0x700).name == "lamp"
    with pytest.raises(DeviceError, match="'lamp' is registered already"):
        registry.register("lamp", lamp)
    with pytest.raises(DeviceError, match=r"VirtioNet \(0xe2\) already builds 'lamp'"):
        registry.register("other", lamp, EmulatedDeviceType.VirtioNet)
    registry.unregister("lamp")
    registry.register("lamp", lamp, EmulatedDeviceType.VirtioNet)


def test_default_registries_are_independent() -> None:
    one, two = default_registry(), default_registry()
    one.unregister("ide")
    assert "ide" not in one.names() and "ide" in two.names()
    assert DeviceRegistry().names() == []


def test_wires_are_asked_for_by_number() -> None:
    asked: list[int] = []

    def irq(number: int) -> IrqLine:
        asked.append(number)
        return IrqLine(None, number)

    registry = default_registry()
    for name in ("pit8254", "uart16550", "rtc_cmos", "i8042", "acpi_pm", "ide"):
        registry.build(name, services(irq=irq))
    assert asked == [0, 4, 8, 1, 12, 9, 14]
