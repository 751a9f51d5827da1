"""Rows of a configuration become devices: by type, by name, beside the board, by the user's own factory."""

from __future__ import annotations

import pytest

from devices.base import Device
from devices.bus import BusKind, Window
from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from devices.registry import BoardServices, DeviceBundle, DevicePart, default_registry
from pysim_vm import AxError, AxErrorKind, AxVMConfig, Halt
from pysim_vm.config import PysimConfig, VirtualDeviceConfig, VmMemConfig
from pysim_vm.vm import AxVM

RAM = (VmMemConfig(0, 0x10_0000),)


def config(
    *rows: EmulatedDeviceConfig, virtual: tuple[VirtualDeviceConfig, ...] = (), **pysim: object
) -> AxVMConfig:
    """1 MiB of RAM and the given rows."""
    return AxVMConfig(
        3, "rows", memory_regions=RAM, emu_devices=rows, virtual_devices=virtual,
        pysim=PysimConfig.from_keywords(pysim),
    )  # fmt: skip


def test_a_typed_row_is_built_at_its_place() -> None:
    vm = AxVM(config(EmulatedDeviceConfig("tty", 0x2F8, 8, 3, EmulatedDeviceType.Console)))
    assert vm.get_devices().find_port_dev(0x2FF).name == "uart16550"
    assert vm.get_devices().irq_owners(3) == ["uart16550"]


def test_zeros_mean_the_usual_place() -> None:
    vm = AxVM(config(EmulatedDeviceConfig("tty", emu_type=EmulatedDeviceType.Console)))
    assert vm.get_devices().find_port_dev(0x3F8).name == "uart16550"


def test_a_row_without_type_goes_by_its_name() -> None:
    vm = AxVM(config(EmulatedDeviceConfig("rtc_cmos")))
    assert vm.get_devices().find_port_dev(0x70) is not None


@pytest.mark.parametrize(
    "row",
    [
        EmulatedDeviceConfig("x86-com1", 0x3F8, 8, 0, EmulatedDeviceType.Console),
        EmulatedDeviceConfig("x86-com1", 0, 0, 0, EmulatedDeviceType.Console),
        EmulatedDeviceConfig("x86-pit", 0x40, 0x22, 0, EmulatedDeviceType.X86Pit),
        EmulatedDeviceConfig("x86-ioapic", 0xFEC0_0000, 0x1000, 0, EmulatedDeviceType.X86IoApic),
    ],
)
def test_rows_of_axvms_own_files_are_satisfied_by_the_board(row: EmulatedDeviceConfig) -> None:
    with_row = AxVM(config(row, platform="pc", cpu_features=["+apic"]))
    without = AxVM(config(platform="pc", cpu_features=["+apic"]))
    assert with_row.device_count() == without.device_count()


def test_a_row_at_another_chips_place_is_refused_and_both_named() -> None:
    row = EmulatedDeviceConfig("tty", 0x70, 8, 3, EmulatedDeviceType.Console)
    with pytest.raises(
        AxError, match=r"VM\[3\]: port window 0x70-0x77 of uart16550 overlaps 0x70-"
    ) as refused:
        AxVM(config(row, platform="pc"))
    assert refused.value.kind is AxErrorKind.AlreadyExists


def test_a_row_on_the_boards_interrupt_line_is_refused() -> None:
    row = EmulatedDeviceConfig("tty", 0x2F8, 8, 4, EmulatedDeviceType.Console)
    with pytest.raises(AxError, match="interrupt line 4 of uart16550 is already driven by uart16550"):
        AxVM(config(row, platform="pc"))


@pytest.mark.parametrize(
    "row",
    [EmulatedDeviceConfig("x86-ioapic", emu_type=EmulatedDeviceType.X86IoApic), EmulatedDeviceConfig("hpet")],
)
def test_a_chip_without_its_apics_says_how_to_get_them(row: EmulatedDeviceConfig) -> None:
    with pytest.raises(
        AxError, match=r'needs the board\'s APICs: set platform = "pc" and cpu_features = \["\+apic"\]'
    ):
        AxVM(config(row))


def test_an_hpet_is_wired_to_the_boards_io_apic() -> None:
    vm = AxVM(config(EmulatedDeviceConfig("hpet"), platform="pc", cpu_features=["+apic"]))
    assert vm.get_devices().find_mmio_dev(0xFED0_0000).name == "hpet"


def test_an_unknown_type_is_a_configuration_error() -> None:
    row = EmulatedDeviceConfig("net", 0xA00_0000, 0x200, 5, EmulatedDeviceType.VirtioNet)
    with pytest.raises(AxError, match=r"device type VirtioNet \(0xe2\) has no factory"):
        AxVM(config(row))


def test_a_dummy_without_a_known_name_is_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="does nothing and is ignored"):
        vm = AxVM(config(EmulatedDeviceConfig("ghost")))
    assert vm.device_count() == 0


def test_an_ivc_row_gives_the_vm_its_channel_range() -> None:
    vm = AxVM(config(EmulatedDeviceConfig("ivc", 0x4000_0000, 0x3000, 0, EmulatedDeviceType.IVCChannel)))
    assert vm.alloc_ivc_channel(100) == (0x4000_0000, 0x1000)
    assert vm.alloc_ivc_channel(0x1001) == (0x4000_1000, 0x2000)
    with pytest.raises(AxError) as full:
        vm.alloc_ivc_channel(1)
    assert full.value.kind is AxErrorKind.NoMemory
    vm.release_ivc_channel(0x4000_0000, 0x1000)
    assert vm.alloc_ivc_channel(1) == (0x4000_0000, 0x1000)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0x0 bytes: the size must be"), (16, "IVC channel not exists")]
)
def test_an_ivc_channel_of_no_size_or_without_a_range_is_invalid(size: int, text: str) -> None:
    with pytest.raises(AxError, match=text) as refused:
        AxVM(config()).alloc_ivc_channel(size)
    assert refused.value.kind is AxErrorKind.InvalidInput


def test_virtual_tables_are_built_by_model() -> None:
    vm = AxVM(
        config(
            virtual=(
                VirtualDeviceConfig("uart16550", "com2", ports=((0x2F8, 8),), irq=3),
                VirtualDeviceConfig("uart16550", "com3", ports=((0x3E8, 8),), irq=5),
            )
        )
    )
    assert [entry.base for entry in vm.get_devices().port] == [0x2F8, 0x3E8]


def test_a_virtual_table_that_no_factory_can_take_is_an_error() -> None:
    table = VirtualDeviceConfig("uart16550", "com2", ports=((0x2F8, 8), (0x3E8, 8)))
    with pytest.raises(
        AxError, match="model 'uart16550' takes one window and no options; leave the rest out"
    ):
        AxVM(config(virtual=(table,)))


class Stamp(Device):
    """Reads the virtual time in nanoseconds."""

    name = "stamp"

    def __init__(self, services: BoardServices) -> None:
        self._clock = services.clock

    def read(self, offset: int, width: int) -> int:
        return self._clock.now_ns()


def test_a_registry_of_your_own_builds_rows_by_name() -> None:
    def factory(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
        window = Window(BusKind.PORT, row.base_gpa, row.length)
        return DeviceBundle((DevicePart(Stamp(services), (window,)),))

    registry = default_registry()
    registry.register("stamp", factory)
    vm = AxVM(config(EmulatedDeviceConfig("stamp", 0x500, 8)), registry=registry)
    vm.write_to_guest(0x8000, bytes.fromhex("ba0005 66ed f4"))  # mov dx, 0x500; in eax, dx; hlt
    vm.vcpu(0).set_entry(0x8000)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.eax == 64  # one instruction before


def test_a_device_row_can_be_added_to_a_vm_that_exists() -> None:
    vm = AxVM(config())
    vm.add_emulated_device(EmulatedDeviceConfig("tty", 0x3F8, 8, 4, EmulatedDeviceType.Console))
    with pytest.raises(AxError, match="uart16550 overlaps 0x3f8-0x3ff of uart16550"):
        vm.add_emulated_device(EmulatedDeviceConfig("tty", 0x3FA, 8, 3, EmulatedDeviceType.Console))
