"""config/vm.py: AxVMConfig and its methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.contract import GuestPhysAddrRange
from pysim_vm.axtypes import (
    AddressSpacePolicy,
    BootPolicy,
    VMInterruptMode,
    VmMemMappingType,
    VMType,
)
from pysim_vm.config import (
    AxVCpuConfig,
    AxVMConfig,
    PassThroughAddressConfig,
    PassThroughDeviceConfig,
    PassThroughPortConfig,
    PhysCpuList,
    VMImageConfig,
    VmMemConfig,
)
from pysim_vm.errors import ConfigError, InvalidInput, ResourceConflict
from pysim_vm.layout import MIB
from tests.pysim_vm.config_files import (
    AARCH64_LINUX,
    ARCEOS_X86_64,
    LINUX_SMP1,
    read,
)


def test_a_crate_config_becomes_a_vm_config() -> None:
    config = AxVMConfig.from_toml(ARCEOS_X86_64)
    assert (config.id(), config.name(), config.vm_type(), config.cpu_num()) == (
        1,
        "arceos",
        VMType.VMTRTOS,
        1,
    )
    assert (config.bsp_entry(), config.ap_entry()) == (0x8000, 0x8000)
    assert config.image_config() == VMImageConfig(0x20_0000, 0x8000, None, None)
    assert str(config.bsp_entry()) == "GPA:0x8000"
    assert config.memory_regions() == (VmMemConfig(0, 16 * MIB),)
    assert len(config.pass_through_devices()) == 3
    assert config.interrupt_mode() is VMInterruptMode.NoIrq
    assert config.boot_policy() is BootPolicy.KeepConfigured
    assert config.crate is not None
    assert config.crate.kernel.kernel_path == "arceos-x86_64.bin"


def test_the_lists_of_the_file_arrive() -> None:
    config = AxVMConfig.from_toml(LINUX_SMP1)
    assert [row.name for row in config.emu_devices()] == ["x86-com1", "x86-ioapic", "x86-pit"]
    assert config.pass_through_addresses()[3] == PassThroughAddressConfig(0xFED8_0000, 0x1000)
    assert config.pass_through_ports() == (PassThroughPortConfig(0x6000, 0x80),)
    assert config.address_space_policy() is AddressSpacePolicy.Virtualized
    assert AxVMConfig.from_crate(read(AARCH64_LINUX, arch="aarch64")).excluded_devices()[1] == ("/a", "/b")


def test_either_configuration_is_taken_where_a_vm_wants_one(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(ARCEOS_X86_64)
    config = AxVMConfig.from_file(path)
    assert AxVMConfig.of(config) is config
    assert AxVMConfig.of(read(ARCEOS_X86_64)).name() == "arceos"


def test_affinities_default_to_no_mask_and_the_vcpus_own_id() -> None:
    cpus = PhysCpuList(3, phys_cpu_ids=(0x100, 0x200), phys_cpu_sets=(1,))
    assert cpus.get_vcpu_affinities_pcpu_ids() == [(0, 1, 0x100), (1, None, 0x200), (2, None, 2)]
    config = AxVMConfig(phys_cpu_ls=cpus)
    assert config.phys_affinity(1) == (0x200, None)
    with pytest.raises(InvalidInput, match=r"VM\[1\] has no vCPU\[3\]"):
        config.phys_affinity(3)


def test_guest_cpu_sets_can_be_replaced() -> None:
    config = AxVMConfig(phys_cpu_ls=PhysCpuList(2))
    config.set_guest_cpu_sets([1, 6])
    assert config.get_vcpu_affinities_pcpu_ids() == [(0, 1, 0), (1, 6, 1)]
    config.phys_cpu_ls_mut().phys_cpu_ids = (7, 8)
    assert config.phys_affinity(1) == (8, 6)


@pytest.mark.parametrize("sets", [[1, 1, 1], [0], [1 << 64], [-1]])
def test_impossible_guest_cpu_sets_are_refused(sets: list[int]) -> None:
    with pytest.raises(InvalidInput):
        AxVMConfig(phys_cpu_ls=PhysCpuList(2)).set_guest_cpu_sets(sets)


def test_remove_pass_through_device_drops_the_device_and_keeps_the_others() -> None:
    one = PassThroughDeviceConfig("one", 0xD000_0000, 0xD000_0000, 0x1000)
    two = PassThroughDeviceConfig("two", 0xD100_0000, 0xD100_0000, 0x1000)
    config = AxVMConfig(pass_through_devices=[one, two])
    assert config.remove_pass_through_device(one)
    assert config.pass_through_devices() == (two,)
    assert not config.remove_pass_through_device(one)
    config.clear_pass_through_devices()
    assert config.pass_through_devices() == ()


def test_added_devices_may_not_overlap_anything() -> None:
    config = AxVMConfig.from_toml(LINUX_SMP1)
    config.add_reserved_address_range(GuestPhysAddrRange(0xD000_0000, 0xD000_1000))
    for gpa, owner in (
        (0x1000, "RAM"),
        (0xFEC0_0000, '"x86-ioapic"'),
        (0xD000_0800, "reserved range 0xd0000000-0xd0000fff"),
    ):
        with pytest.raises(ResourceConflict) as caught:
            config.add_pass_through_device(PassThroughDeviceConfig("new", gpa, gpa, 0x1000))
        assert '"new"' in str(caught.value)
        assert owner in str(caught.value)
    config.add_pass_through_device(PassThroughDeviceConfig("new", 0xD100_0000, 0xD100_0000, 0x1000))
    config.add_pass_through_device(PassThroughDeviceConfig("/soc"))
    assert [row.name for row in config.pass_through_devices()] == ["HPET", "new", "/soc"]


@pytest.mark.parametrize(("gpa", "length"), [(0x1000, 0), (-1, 1), (0x1000, -1), (1 << 63, 1)])
def test_an_impossible_added_device_is_refused(gpa: int, length: int) -> None:
    with pytest.raises(InvalidInput, match='"new"'):
        AxVMConfig().add_pass_through_device(PassThroughDeviceConfig("new", gpa, 0, length))


def test_added_memory_is_checked() -> None:
    config = AxVMConfig(memory_regions=[VmMemConfig(0, 0x2000)])
    config.add_memory_region(VmMemConfig(0x2000, 0x1000))
    assert config.memory_size() == 0x3000
    with pytest.raises(ResourceConflict, match=r"RAM 0x1000-0x1fff overlaps RAM 0x0-0x1fff"):
        config.add_memory_region(VmMemConfig(0x1000, 0x1000))
    for region in (
        VmMemConfig(0x3000, 0),
        VmMemConfig(0x3001, 0x1000),
        VmMemConfig(-0x1000, 0x1000),
        VmMemConfig(1 << 60, 0x1000),
        VmMemConfig(0x3000, 0x1000, 0x40),
    ):
        with pytest.raises(InvalidInput, match="memory region"):
            config.add_memory_region(region)
    assert len(config.memory_regions()) == 2


def test_a_range_is_contained_if_one_region_of_ram_holds_it() -> None:
    config = AxVMConfig(memory_regions=[VmMemConfig(0, 0x2000), VmMemConfig(0x4000, 0x1000, 0x13)])
    assert config.contains_memory_range(GuestPhysAddrRange(0x1000, 0x2000))
    assert not config.contains_memory_range(GuestPhysAddrRange(0x1000, 0x2001))
    assert not config.contains_memory_range(GuestPhysAddrRange(0x4000, 0x4001))  # a DEVICE region


def test_spis_are_listed_once() -> None:
    config = AxVMConfig()
    config.add_pass_through_spi(33)
    config.add_pass_through_spi(33)
    assert config.pass_through_spis() == (33,)


def test_a_kernel_follows_an_identical_first_region() -> None:
    config = AxVMConfig(
        memory_regions=[VmMemConfig(0x8000_0000, 0x1000_0000, 7, VmMemMappingType.MapIdentical)],
        image_config=VMImageConfig(kernel_load_gpa=0x1000),
        cpu_config=AxVCpuConfig(0x1000, 0x1000),
        boot_policy=BootPolicy.AdjustKernelForBootProtocol,
    )
    assert config.relocate_kernel_image()
    assert config.image_config().kernel_load_gpa == 0x8000_0000
    assert (config.bsp_entry(), config.ap_entry()) == (0x8000_0000, 0x8000_0000)
    assert not config.relocate_kernel_image()  # it is there already


def test_a_relocated_kernel_leaves_room_for_a_bios() -> None:
    config = AxVMConfig(
        memory_regions=[VmMemConfig(0x8000_0000, 0x1000_0000, 7, VmMemMappingType.MapIdentical)],
        image_config=VMImageConfig(kernel_load_gpa=0x1000, bios_load_gpa=0x8000),
        boot_policy=BootPolicy.AdjustKernelForBootProtocol,
    )
    config.relocate_kernel_image()
    assert config.bsp_entry() == 0x8020_0000


def test_a_kernel_stays_put_unless_policy_and_region_agree() -> None:
    config = AxVMConfig.from_toml(LINUX_SMP1)  # identical first region, but an x86 file
    assert not config.relocate_kernel_image()
    assert config.image_config().kernel_load_gpa == 0x20_0000
    config = AxVMConfig.from_toml(ARCEOS_X86_64)
    config.set_boot_policy(BootPolicy.AdjustKernelForBootProtocol)
    assert not config.relocate_kernel_image()  # the region is MapAlloc
    arm = AxVMConfig.from_crate(read(AARCH64_LINUX, arch="aarch64"), arch="aarch64")
    assert arm.relocate_kernel_image()
    assert arm.bsp_entry() == 0x8000_0000


def test_a_machine_for_code_has_memory_and_settings_only() -> None:
    config = AxVMConfig.for_code("2M", platform="pc", cpu_features=("+apic",), seed=3)
    assert config.memory_regions() == (VmMemConfig(0, 2 * MIB),)
    assert config.memory_size() == 2 * MIB
    assert (config.pysim.platform, config.pysim.cpu_features, config.pysim.seed) == ("pc", ("+apic",), 3)
    assert config.emu_devices() == ()


def test_settings_for_code_are_checked_like_a_file() -> None:
    with pytest.raises(ConfigError) as caught:
        AxVMConfig.for_code(4097, sead=3, engine="jit")
    assert sorted(str(problem) for problem in caught.value.problems) == [
        '[pysim] keywords: engine: "jit" is none of step, block, auto; use one',
        "[pysim] keywords: memory: 0x1001 is no multiple of 0x1000; RAM is whole pages",
        '[pysim] keywords: sead: no such key; leave it out; did you mean "seed"?',
    ]


def test_two_configurations_share_nothing() -> None:
    one, two = AxVMConfig.for_code(), AxVMConfig.for_code()
    one.add_pass_through_spi(40)
    one.phys_cpu_ls_mut().cpu_num = 4
    one.image_config().kernel_load_gpa = 5
    assert (two.pass_through_spis(), two.cpu_num(), two.image_config().kernel_load_gpa) == ((), 1, None)
