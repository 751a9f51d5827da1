"""The configuration file and AxVMConfig: real files, every key, every refusal."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType, GuestPhysAddrRange
from isa.cpuid import feature_set
from pysim_vm.axtypes import (
    AddressSpacePolicy,
    BootPolicy,
    VMBootProtocol,
    VMInterruptMode,
    VmMemMappingType,
    VMType,
)
from pysim_vm.config import (
    BUDGET_UNLIMITED,
    CPU_LEVELS,
    FILE_SIZE_MAX,
    AxVCpuConfig,
    AxVMConfig,
    AxVMCrateConfig,
    PassThroughAddressConfig,
    PassThroughDeviceConfig,
    PassThroughPortConfig,
    PhysCpuList,
    PysimConfig,
    VirtualDeviceConfig,
    VMBaseConfig,
    VMDevicesConfig,
    VMImageConfig,
    VMKernelConfig,
    VmMemConfig,
    check,
    generate,
    parse_number,
    parse_size,
)
from pysim_vm.errors import AxError, AxErrorKind, ConfigError, InvalidInput, ResourceConflict
from pysim_vm.layout import MIB

# The x86-64 files of axvisor, 2025-08.
ARCEOS_X86_64 = """
[base]
id = 1
name = "arceos"
vm_type = 1
cpu_num = 1
phys_cpu_sets = [1]
[kernel]
entry_point = 0x8000
image_location = "fs"
bios_path = "axvm-bios.bin"
bios_load_addr = 0x8000
kernel_path = "arceos-x86_64.bin"
kernel_load_addr = 0x20_0000
memory_regions = [[0x0000_0000, 0x100_0000, 0x7, 0]]
[devices]
emu_devices = []
passthrough_devices = [
  ["IO APIC",    0xfec0_0000, 0xfec0_0000, 0x1000, 0x1],
  ["Local APIC", 0xfee0_0000, 0xfee0_0000, 0x1000, 0x1],
  ["HPET",       0xfed0_0000, 0xfed0_0000, 0x1000, 0x1],
]
"""

# axvm 0.5: Linux, one vCPU, booted directly; the second region is boot scratch inside the first.
LINUX_SMP1 = """
[base]
id = 1
name = "linux"
vm_type = 2
cpu_num = 1
[kernel]
entry_point = 0x8000
kernel_path = "bzImage"
kernel_load_addr = 0x20_0000
enable_bios = false
cmdline = "console=ttyS0"
memory_regions = [
  [0x0, 0x0800_0000, 0x7, 1],
  [0x0, 0x0010_0000, 0x7, 0],
]
[devices]
interrupt_mode = "passthrough"
emu_devices = [
  ["x86-com1", 0x3f8, 8, 0, 0x2, []],
  ["x86-ioapic", 0xfec0_0000, 0x1000, 0, 0x23, []],
  ["x86-pit", 0x40, 0x22, 0, 0x24, []],
]
passthrough_devices = [["HPET", 0xfed0_0000, 0xfed0_0000, 0x1000, 0x1]]
passthrough_addresses = [
  [0x8000_0000, 0x20_0000],
  [0x8_0000_0000, 0x20_0000],
  [0xfe00_0000, 0xc0_0000],
  [0xfed8_0000, 0x1000],
  [0x70_0000_0000, 0x10_0000],
  [0x3800_0000_0000, 0x10_0000],
]
passthrough_ports = [[0x6000, 0x80]]
"""

AARCH64_LINUX = """
[base]
id = 1
name = "linux-qemu"
vm_type = 2
cpu_num = 4
phys_cpu_ids = [0, 1, 2, 3]
[kernel]
entry_point = 0x8020_0000
kernel_path = "linux.bin"
kernel_load_addr = 0x8020_0000
dtb_load_addr = 0x8000_0000
memory_regions = [[0x8000_0000, 0x1000_0000, 0x7, 1]]
[devices]
emu_devices = [
  ["gppt-gicd", 0x0800_0000, 0x1_0000, 0, 0x21, []],
  ["gppt-gicr", 0x080a_0000, 0x2_0000, 0, 0x20, [1, 0x2_0000, 0]],
  ["gppt-gits", 0x0808_0000, 0x2_0000, 0, 0x22, [0x0808_0000]],
]
passthrough_devices = [["/"]]
excluded_devices = [["/pcie@10000000"], ["/a", "/b"]]
"""

BASE = '[base]\nid = 1\nname = "vm"\nvm_type = 1\ncpu_num = 1\n'
KERNEL = (
    '[kernel]\nentry_point = 0x8000\nkernel_path = "k"\nkernel_load_addr = 0x20_0000\n'
    "memory_regions = [[0, 0x100_0000, 7, 0]]\n"
)
DEVICES = "[devices]\nemu_devices = []\npassthrough_devices = []\n"


def read(text: str, **options: Any) -> AxVMCrateConfig:
    return AxVMCrateConfig.from_toml(text, "vm.toml", **options)


def refusals(text: str, **options: Any) -> list[str]:
    """The lines of the ConfigError that `text` gets."""
    with pytest.raises(ConfigError) as caught:
        read(text, **options)
    return [str(problem) for problem in caught.value.problems]


def kernel_with(lines: str, regions: str = "[[0, 0x100_0000, 7, 0]]") -> str:
    """A complete file whose [kernel] has memory_regions on line 10 and `lines` from line 11 on."""
    kernel = KERNEL.replace("[[0, 0x100_0000, 7, 0]]", regions)
    return BASE + kernel.removesuffix("\n") + "\n" + lines + "\n" + DEVICES


def devices_with(lines: str) -> str:
    """A complete file whose [devices] is line 11 and has `lines` from line 12 on."""
    return BASE + KERNEL + "[devices]\n" + lines


def pysim_with(lines: str) -> PysimConfig:
    return read(BASE + KERNEL + DEVICES + "[pysim]\n" + lines).pysim


# --- real files ---------------------------------------------------------------------------------------------


def test_axvisors_arceos_file_is_read() -> None:
    crate = read(ARCEOS_X86_64)
    assert crate.warnings == ()
    assert (crate.base.id, crate.base.name, crate.base.vm_type) == (1, "arceos", VMType.VMTRTOS)
    assert (crate.base.phys_cpu_ids, crate.base.phys_cpu_sets) == (None, (1,))
    assert (crate.kernel.entry_point, crate.kernel.kernel_load_addr) == (0x8000, 0x20_0000)
    assert crate.kernel.image_location == "fs"
    assert crate.kernel.memory_regions == (VmMemConfig(0, 16 * MIB, 7, VmMemMappingType.MapAlloc),)
    assert crate.kernel.effective_boot_protocol() is VMBootProtocol.Multiboot
    assert crate.devices.passthrough_devices[2] == PassThroughDeviceConfig(
        "HPET", 0xFED0_0000, 0xFED0_0000, 0x1000, 1
    )
    assert crate.devices.interrupt_mode is VMInterruptMode.NoIrq


def test_axvisors_nimbos_file_with_interrupt_mode_and_memory_images_is_read() -> None:
    text = ARCEOS_X86_64.replace('image_location = "fs"', 'image_location = "memory"')
    crate = read(text + 'interrupt_mode = "passthrough"\n')
    assert crate.devices.interrupt_mode is VMInterruptMode.Passthrough
    assert crate.kernel.image_location == "memory"
    assert crate.warnings == ()


def test_the_overlapping_boot_scratch_of_linux_smp1_is_accepted() -> None:
    crate = read(LINUX_SMP1)
    assert crate.warnings == ()
    assert [region.map_type for region in crate.kernel.memory_regions] == [
        VmMemMappingType.MapIdentical,
        VmMemMappingType.MapAlloc,
    ]
    assert crate.kernel.effective_boot_protocol() is VMBootProtocol.Direct
    assert [row.emu_type for row in crate.devices.emu_devices] == [
        EmulatedDeviceType.Console,
        EmulatedDeviceType.X86IoApic,
        EmulatedDeviceType.X86Pit,
    ]
    assert crate.devices.passthrough_addresses[5] == PassThroughAddressConfig(0x3800_0000_0000, 0x10_0000)
    assert crate.devices.passthrough_ports == (PassThroughPortConfig(0x6000, 0x80),)
    assert AxVMConfig.from_crate(crate).memory_size() == 128 * MIB  # the scratch is no RAM of its own


def test_axvm_05_multiboot_with_the_built_in_bios_is_read() -> None:
    crate = read(kernel_with('enable_bios = true\nboot_protocol = "multiboot"'))
    assert crate.kernel.boot_protocol is VMBootProtocol.Multiboot
    assert crate.kernel.bios_path is None


def test_axvm_05_uefi_is_read() -> None:
    text = kernel_with(
        'boot_protocol = "uefi"\nuefi_firmware_path = "OVMF.fd"\nbios_load_addr = 0xffc0_0000',
        "[[0, 0x100_0000, 7, 0], [0xffc0_0000, 0x40_0000, 7, 0]]",
    )
    crate = read(text.replace("entry_point = 0x8000", "entry_point = 0xffff_fff0"))
    assert crate.kernel.effective_boot_protocol() is VMBootProtocol.Uefi
    assert crate.kernel.firmware_path() == "OVMF.fd"
    assert crate.kernel.entry_point == 0xFFFF_FFF0


def test_an_aarch64_linux_with_vgic_and_device_tree_paths_is_read() -> None:
    crate = read(AARCH64_LINUX, arch="aarch64")
    assert crate.warnings == ()
    assert crate.devices.passthrough_devices == (PassThroughDeviceConfig("/"),)
    assert crate.devices.passthrough_devices[0].is_device_tree_path()
    assert crate.devices.excluded_devices == (("/pcie@10000000",), ("/a", "/b"))
    assert crate.devices.emu_devices[1].cfg_list == (1, 0x2_0000, 0)
    assert crate.base.phys_cpu_ids == (0, 1, 2, 3)


def test_a_riscv64_plic_is_read() -> None:
    crate = read(
        devices_with(
            'emu_devices = [["plic", 0x0c00_0000, 0x60_0000, 0, 0x30, [2]]]\npassthrough_devices = []\n'
        ),
        arch="riscv64",
    )
    assert crate.devices.emu_devices == (
        EmulatedDeviceConfig("plic", 0x0C00_0000, 0x60_0000, 0, EmulatedDeviceType.PPPTGlobal, (2,)),
    )


def test_the_device_graph_after_axvm_05_is_read() -> None:
    text = (
        BASE.replace("vm_type = 1", 'guest_type = "linux"')
        + KERNEL
        + """[devices]
[[devices.virtual]]
model = "uart16550"
ports = [0x2f8, 8]
irq = 3
[[devices.virtual]]
model = "virtio-blk"
name = "disk0"
resources = { mmio = [{ base = 0xd000_0000, length = 0x200 }], irq = 5 }
options = { readonly = true, image = "disk.img" }
"""
    )
    crate = read(text)
    assert crate.warnings == ()
    assert (crate.base.vm_type, crate.base.guest_type) == (VMType.VMTLinux, "linux")
    assert crate.devices.virtual == (
        VirtualDeviceConfig("uart16550", "uart16550", (), ((0x2F8, 8),), 3, {}),
        VirtualDeviceConfig(
            "virtio-blk", "disk0", ((0xD000_0000, 0x200),), (), 5, {"readonly": True, "image": "disk.img"}
        ),
    )
    assert crate.devices.emu_devices == ()


@pytest.mark.parametrize("text", [ARCEOS_X86_64, LINUX_SMP1, AARCH64_LINUX])
def test_a_real_file_survives_being_written(text: str) -> None:
    crate = read(text)
    assert read(crate.to_toml()) == crate


# --- forms --------------------------------------------------------------------------------------------------


def test_rows_may_be_tables() -> None:
    text = BASE + KERNEL.replace(
        "[[0, 0x100_0000, 7, 0]]", "[{ gpa = 0, size = 0x100_0000, flags = 7, map_type = 1 }]"
    )
    crate = read(
        text
        + """[devices]
emu_devices = [{ name = "com1", base_gpa = 0x3f8, length = 8, irq_id = 4, emu_type = 2, cfg_list = [1] }]
passthrough_devices = [{ name = "hpet", base_gpa = 0xfed0_0000, base_hpa = 0x1_0000_0000, length = 0x400 }]
passthrough_addresses = [{ base_gpa = 0xe000_0000, length = 0x1000 }]
passthrough_ports = [{ base = 0x6000, length = 4 }]
"""
    )
    assert crate.warnings == ()
    assert crate.kernel.memory_regions[0].map_type is VmMemMappingType.MapIdentical
    assert crate.devices.emu_devices == (
        EmulatedDeviceConfig("com1", 0x3F8, 8, 4, EmulatedDeviceType.Console, (1,)),
    )
    assert crate.devices.passthrough_devices == (
        PassThroughDeviceConfig("hpet", 0xFED0_0000, 0x1_0000_0000, 0x400, 0),
    )
    assert crate.devices.passthrough_addresses == (PassThroughAddressConfig(0xE000_0000, 0x1000),)
    assert crate.devices.passthrough_ports == (PassThroughPortConfig(0x6000, 4),)


def test_an_emulated_devices_base_may_be_called_base_ipa() -> None:
    crate = read(devices_with('emu_devices = [{ name = "a", base_ipa = 0x3f8 }]\npassthrough_devices = []\n'))
    assert crate.devices.emu_devices[0].base_gpa == 0x3F8
    assert crate.warnings == ()


def test_a_device_type_may_be_a_name() -> None:
    crate = read(
        devices_with('emu_devices = [{ name = "a", emu_type = "x86pit" }]\npassthrough_devices = []\n')
    )
    assert crate.devices.emu_devices[0].emu_type is EmulatedDeviceType.X86Pit


def test_a_passthrough_table_without_a_host_address_means_the_same_address() -> None:
    crate = read(
        devices_with(
            "emu_devices = []\n"
            'passthrough_devices = [{ name = "hpet", base_gpa = 0xfed0_0000, length = 0x400 }]\n'
        )
    )
    assert crate.devices.passthrough_devices[0].base_hpa == 0xFED0_0000


def test_a_missing_map_type_is_map_alloc() -> None:
    crate = read(kernel_with("", "[[0, 0x100_0000, 7]]"))
    assert crate.kernel.memory_regions[0].map_type is VmMemMappingType.MapAlloc


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ARCEOS_X86_64.replace("\n", "\r\n").encode())
    assert AxVMCrateConfig.from_file(path) == read(ARCEOS_X86_64)


def test_paths_start_at_the_files_directory(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(ARCEOS_X86_64)
    crate = AxVMCrateConfig.from_file(path)
    assert crate.resolve("kernel.bin") == tmp_path / "kernel.bin"
    assert crate.resolve("/boot/kernel") == Path("/boot/kernel")
    assert read(ARCEOS_X86_64).resolve("kernel.bin") == Path("kernel.bin")


def test_every_key_survives_being_written() -> None:
    text = (
        BASE
        + """guest_type = "rtos"
phys_cpu_ids = [0x100]
phys_cpu_sets = [0x8000_0000_0000_0000]
[kernel]
entry_point = 0x8000
kernel_path = 'k "quoted" \\ \u00e9'
kernel_load_addr = 0x20_0000
bios_path = "b"
bios_load_addr = 0x8000
dtb_path = "d"
dtb_load_addr = 0x9000
ramdisk_path = "r"
ramdisk_load_addr = 0xa000
image_location = "memory"
cmdline = "a=b\\tc\\u0001"
disk_path = "disk"
memory_regions = [[0, 0x100_0000, 7, 2], [0x100_0000, 0x1000, 0x1f, 0]]
enable_bios = true
boot_protocol = "bios"
uefi_firmware_path = "u"
[devices]
emu_devices = [["a", 0x3f8, 8, 4, 2, [1, 2]]]
passthrough_devices = [["/x"], ["y", 0xfed0_0000, 0x1000, 0x1000, 9]]
interrupt_mode = "emulated"
excluded_devices = [["/a"]]
passthrough_addresses = [[0xe000_0000, 0x1000]]
passthrough_ports = [[0x6000, 4]]
address_space_policy = "pt"
[[devices.virtual]]
model = "m"
name = "n"
mmio = [[0xd000_0000, 0x1000], [0xd100_0000, 0x1000]]
ports = [[0x100, 2]]
irq = 7
options = { a = [1, { b = "c" }], "d e" = 1.5, f = false, g = 2026-01-01 }
[pysim]
platform = "pc"
missing_device = "ones"
ns_per_instruction = 128
tsc_hz = 2_000_000_000
engine = "step"
seed = 7
cpu_features = ["-rdrand", "+apic"]
budget_instructions = 1000
output_limit = "1M"
rtc_start = 2001-02-03T04:05:06Z
exit_on_triple_fault = false
vga = false
debug_exit_port = 0x501
"""
    )
    crate = read(text)
    tables: list[Any] = [crate.base, crate.kernel, crate.devices]
    unset = [
        name for table in tables for name in table.__dataclass_fields__ if getattr(table, name) in (None, ())
    ]
    assert unset == []  # the text above sets every key
    usual = PysimConfig()
    same = [name for name in usual.__slots__ if getattr(usual, name) == getattr(crate.pysim, name)]
    assert same == ["memory", "engine"]  # memory excludes memory_regions; there is one engine
    written = crate.to_toml()
    tomllib.loads(written)
    assert read(written) == crate
    assert read(written).to_toml() == written


# --- missing, wrong and unknown keys ------------------------------------------------------------------------


def test_an_empty_file_misses_three_tables() -> None:
    assert refusals("") == [
        "vm.toml: base: missing; add a table [base]",
        "vm.toml: kernel: missing; add a table [kernel]",
        "vm.toml: devices: missing; add a table [devices]",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("id = 1\n", "vm.toml:1: base.id: missing; add id = 1"),
        ('name = "vm"\n', 'vm.toml:1: base.name: missing; add name = "vm"'),
        ("vm_type = 1\n", "vm.toml:1: base.vm_type: missing; add vm_type = 1"),
        ("cpu_num = 1\n", "vm.toml:1: base.cpu_num: missing; add cpu_num = 1"),
        ("entry_point = 0x8000\n", "vm.toml:6: kernel.entry_point: missing; add entry_point = 0x8000"),
        ('kernel_path = "k"\n', 'vm.toml:6: kernel.kernel_path: missing; add kernel_path = "kernel.bin"'),
        (
            "kernel_load_addr = 0x20_0000\n",
            "vm.toml:6: kernel.kernel_load_addr: missing; add kernel_load_addr = 0x200000",
        ),
        (
            "memory_regions = [[0, 0x100_0000, 7, 0]]\n",
            "vm.toml:6: kernel.memory_regions: missing; add memory_regions = [[0x0, 0x1000000, 0x7, 0]]",
        ),
        ("emu_devices = []\n", "vm.toml:11: devices.emu_devices: missing; add emu_devices = []"),
        (
            "passthrough_devices = []\n",
            "vm.toml:11: devices.passthrough_devices: missing; add passthrough_devices = []",
        ),
    ],
)
def test_a_missing_key_is_named_at_its_table(line: str, message: str) -> None:
    text = BASE + KERNEL + DEVICES
    assert line in text
    assert refusals(text.replace(line, "\n"))[0] == message


def test_a_misspelt_required_key_is_an_error_with_the_right_word() -> None:
    found = refusals((BASE + KERNEL + DEVICES).replace("name =", "nmae ="))
    assert 'vm.toml:3: base.nmae: unknown key; did you mean "name"?' in found


def test_an_unknown_key_is_a_warning_with_a_suggestion() -> None:
    crate = read(BASE + KERNEL + 'cmdlien = "x"\n' + DEVICES + "colour = 1\n[pysmi]\n")
    assert [str(warning) for warning in crate.warnings] == [
        'vm.toml:11: kernel.cmdlien: unknown key, ignored; correct or remove it; did you mean "cmdline"?',
        "vm.toml:15: devices.colour: unknown key, ignored; correct or remove it",
        'vm.toml:16: pysmi: unknown key, ignored; correct or remove it; did you mean "pysim"?',
    ]


def test_unknown_keys_in_rows_are_warnings_too() -> None:
    crate = read(kernel_with("", "[{ gpa = 0, size = 0x100_0000, flags = 7, colour = 1 }]"))
    assert [warning.key for warning in crate.warnings] == ["kernel.memory_regions[0].colour"]


def test_all_errors_are_reported_at_once_in_the_order_of_the_lines() -> None:
    text = (
        '[base]\nid = "one"\nname = 2\nvm_type = 1\ncpu_num = 0\n'
        "[kernel]\nentry_point = -1\nkernel_path = true\nkernel_load_addr = 1.5\nmemory_regions = 5\n"
        "[devices]\nemu_devices = {}\npassthrough_devices = [7, []]\n"
    )
    assert refusals(text) == [
        'vm.toml:2: base.id: "one" is a string; remove the quotes',
        "vm.toml:3: base.name: 2 is an integer; write a string",
        "vm.toml:5: base.cpu_num: 0 is out of range; write 1 to 64",
        "vm.toml:7: kernel.entry_point: -1 is out of range; write 0 to 0xffffffffffffffff",
        "vm.toml:8: kernel.kernel_path: true is a boolean; write a string",
        "vm.toml:9: kernel.kernel_load_addr: 1.5 is a float; write an integer",
        "vm.toml:10: kernel.memory_regions: 5 is an integer; write an array",
        "vm.toml:12: devices.emu_devices: a table is a table; write an array",
        "vm.toml:13: devices.passthrough_devices[0]: 7 is no row; "
        "write [name, base_gpa, base_hpa, length, irq_id] or a table with these keys",
        "vm.toml:13: devices.passthrough_devices[1]: an array of 0 is no row; "
        "write [name, base_gpa, base_hpa, length, irq_id] or a table with these keys",
    ]


def test_the_error_is_one_ax_error_of_kind_invalid_input() -> None:
    with pytest.raises(AxError) as caught:
        read("")
    assert caught.value.kind is AxErrorKind.InvalidInput


def test_a_boolean_is_no_integer() -> None:
    assert refusals((BASE + KERNEL + DEVICES).replace("id = 1", "id = true")) == [
        "vm.toml:2: base.id: true is a boolean; write an integer"
    ]


def test_a_table_that_is_a_value_is_refused() -> None:
    assert refusals("base = 1\n" + KERNEL + DEVICES) == [
        "vm.toml:1: base: 1 is an integer; write a table [base]"
    ]


def test_a_wrong_element_is_named_by_its_column_and_its_own_line() -> None:
    text = kernel_with("", "[\n  [0, 0x1000, 7, 0],\n  [0x1000,\n    'x', 7, 0],\n]")
    assert refusals(text) == ['vm.toml:13: kernel.memory_regions[1].size: "x" is a string; remove the quotes']


def test_a_syntax_error_has_its_line_and_axvms_name() -> None:
    with pytest.raises(ConfigError) as caught:
        read("[base]\nid = = 1\n")
    problem = caught.value.problems[0]
    assert (problem.line, problem.variant) == (2, "TomlParse")
    assert str(problem) == "vm.toml:2: no TOML: Invalid value at column 6; correct the line"


def test_a_syntax_error_at_the_end_of_the_file_has_a_line() -> None:
    assert refusals("[base]\nid = [1,\n")[0].startswith("vm.toml:3: no TOML:")


def test_unknown_architectures_are_refused() -> None:
    assert refusals(ARCEOS_X86_64, arch="vax") == [
        'vm.toml: "vax" is none of x86_64, aarch64, riscv64, loongarch64; use one'
    ]


# --- [base] -------------------------------------------------------------------------------------------------


def test_an_unknown_vm_type_is_an_rtos_and_a_warning() -> None:
    crate = read((BASE + KERNEL + DEVICES).replace("vm_type = 1", "vm_type = 9"))
    assert crate.base.vm_type is VMType.VMTRTOS
    assert [str(warning) for warning in crate.warnings] == [
        "vm.toml:4: base.vm_type: 9 is no VM type, taken as 1 (VMTRTOS)"
    ]


def test_an_unknown_guest_type_is_an_rtos_and_a_warning() -> None:
    crate = read((BASE + KERNEL + DEVICES).replace("vm_type = 1", 'guest_type = "linus"'))
    assert crate.base.vm_type is VMType.VMTRTOS
    assert crate.warnings[0].hint == "linux"


def test_guest_type_replaces_vm_type_and_a_contradiction_is_a_warning() -> None:
    crate = read(BASE + 'guest_type = "linux"\n' + KERNEL + DEVICES)
    assert crate.base.vm_type is VMType.VMTLinux
    assert "overrides vm_type = 1" in crate.warnings[0].message


def test_two_vcpus_cannot_show_one_physical_id() -> None:
    text = (BASE + "phys_cpu_ids = [4, 4]\n" + KERNEL + DEVICES).replace("cpu_num = 1", "cpu_num = 2")
    assert refusals(text) == [
        "vm.toml:6: base.phys_cpu_ids[1]: the id 4 belongs to vCPU 0 already; give each vCPU its own"
    ]


def test_more_affinities_than_vcpus_are_refused() -> None:
    text = BASE + "phys_cpu_ids = [0, 1]\nphys_cpu_sets = [1, 2]\n" + KERNEL + DEVICES
    assert refusals(text) == [
        "vm.toml:6: base.phys_cpu_ids: 2 entries for 1 vCPUs; give at most one for each vCPU",
        "vm.toml:7: base.phys_cpu_sets: 2 entries for 1 vCPUs; give at most one for each vCPU",
    ]


def test_an_empty_affinity_mask_is_refused() -> None:
    assert refusals(BASE + "phys_cpu_sets = [0]\n" + KERNEL + DEVICES) == [
        "vm.toml:6: base.phys_cpu_sets[0]: the mask 0 lets vCPU 0 run nowhere; "
        "set a bit for each CPU it may use"
    ]


def test_an_empty_name_is_refused() -> None:
    assert refusals((BASE + KERNEL + DEVICES).replace('"vm"', '""')) == [
        "vm.toml:3: base.name: the name is empty; give the VM a name"
    ]


# --- memory -------------------------------------------------------------------------------------------------


def test_overlapping_regions_are_refused_and_both_named() -> None:
    assert refusals(kernel_with("", "[[0, 0x2000, 7, 0],\n  [0x1000, 0x1000, 7, 0]]")) == [
        "vm.toml:11: kernel.memory_regions[1]: RAM 0x1000-0x1fff overlaps RAM 0x0-0x1fff "
        "(kernel.memory_regions[0], line 10); move or shrink one of them"
    ]


@pytest.mark.parametrize(
    "regions",
    [
        "[[0, 0x2000, 7, 1], [0x1000, 0x2000, 7, 0]]",  # sticks out
        "[[0, 0x2000, 7, 0], [0, 0x1000, 7, 0]]",  # the outer one is not identical
        "[[0, 0x2000, 7, 1], [0, 0x1000, 7, 1]]",  # the inner one is identical too
        "[[0, 0x2000, 7, 0], [0, 0x1000, 7, 1]]",  # the wrong way round
        "[[0, 0x2000, 7, 1], [0, 0x1000, 7, 2]]",  # reserved memory is no scratch
        "[[0, 0x4000, 7, 1], [0, 0x2000, 7, 0], [0x1000, 0x1000, 7, 0]]",  # scratch over scratch
    ],
)
def test_only_map_alloc_wholly_inside_map_identical_may_overlap(regions: str) -> None:
    found = refusals(kernel_with("", regions))
    assert len(found) == 1
    assert "overlaps" in found[0]


def test_two_scratch_regions_may_lie_side_by_side() -> None:
    crate = read(kernel_with("", "[[0, 0x4000, 7, 1], [0, 0x1000, 7, 0], [0x1000, 0x1000, 7, 0]]"))
    assert len(crate.kernel.memory_regions) == 3


def test_touching_regions_are_no_overlap() -> None:
    read(kernel_with("", "[[0x1000, 0x20_0000, 7, 0], [0, 0x1000, 7, 0]]"))


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        ("[0, 0, 7, 0]", ".size: a region of 0 bytes holds nothing; give a multiple of 0x1000"),
        ("[0x800, 0x1000, 7, 0]", ".gpa: 2048 is no multiple of 0x1000; regions are whole pages"),
        ("[0, 0x1800, 7, 0]", ".size: 0x1800 is no multiple of 0x1000; regions are whole pages"),
        (
            "[0x7fff_ffff_e000, 0x2000, 7, 0]",
            ".size: 0x7fffffffe000-0x7fffffffffff leaves the guest's address space; end below 0x7ffffffff000",
        ),
        (
            "[0xffff_ffff_ffff_f000, 0x1000, 7, 0]",
            ".size: 0xfffffffffffff000-0xffffffffffffffff leaves the guest's address space; "
            "end below 0x7ffffffff000",
        ),
        (
            "[0, 0x1000, 0x47, 0]",
            ".flags: illegal flags 0x47: bits 0x40 are reserved; 0x7 is read, write, execute",
        ),
        ("[0, 0x1000, 7, 3]", ".map_type: 3 is no mapping; write 0 alloc, 1 identical or 2 reserved"),
        ("[0, 0x1000]", ".flags: missing; add flags = 0x7"),
    ],
)
def test_an_impossible_region_is_refused(region: str, complaint: str) -> None:
    assert refusals(kernel_with("", f"[{region}]")) == [f"vm.toml:10: kernel.memory_regions[0]{complaint}"]


def test_a_device_region_is_a_warning_and_no_ram() -> None:
    crate = read(kernel_with("", "[[0, 0x100_0000, 7, 0], [0, 0x1000, 0x13, 0]]"))
    assert [str(warning) for warning in crate.warnings] == [
        "vm.toml:10: kernel.memory_regions[1].flags: the DEVICE flag is not for RAM, region skipped; "
        "list it under passthrough_devices"
    ]
    assert AxVMConfig.from_crate(crate).memory_size() == 16 * MIB


def test_more_ram_than_the_machine_gives_is_refused() -> None:
    assert refusals(kernel_with("", "[[0, 0x100_0000_0000, 7, 0]]")) == [
        "vm.toml:10: kernel.memory_regions: 1048576 MiB of RAM are too much; give at most 64 GiB"
    ]


def test_a_vm_without_ram_is_a_warning() -> None:
    crate = read(kernel_with("", "[]"))
    assert "the VM has no RAM" in crate.warnings[0].message


def test_a_kernel_outside_ram_is_a_warning() -> None:
    crate = read(kernel_with("", "[[0, 0x1000, 7, 0]]"))
    assert [str(warning) for warning in crate.warnings] == [
        "vm.toml:9: kernel.kernel_load_addr: 0x200000 lies in no memory region; "
        "the kernel cannot be loaded there"
    ]


# --- boot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "arch", "variant", "key"),
    [
        (
            'enable_bios = false\nboot_protocol = "multiboot"',
            "x86_64",
            "BootProtocolConflict",
            "boot_protocol",
        ),
        ('enable_bios = false\nboot_protocol = "uefi"', "x86_64", "BootProtocolConflict", "boot_protocol"),
        ('enable_bios = true\nboot_protocol = "direct"', "x86_64", "BootProtocolConflict", "boot_protocol"),
        ('boot_protocol = "multiboot"', "aarch64", "UnsupportedBootProtocol", "boot_protocol"),
        ('boot_protocol = "uefi"', "riscv64", "UnsupportedBootProtocol", "boot_protocol"),
        (
            'boot_protocol = "uefi"\nbios_load_addr = 0xffc0_0000',
            "x86_64",
            "MissingFirmwarePath",
            "uefi_firmware_path",
        ),
        (
            'boot_protocol = "uefi"\nbios_path = "f"',
            "x86_64",
            "MissingFirmwareLoadAddress",
            "bios_load_addr",
        ),
        ('bios_path = "b"', "x86_64", "MissingFirmwareLoadAddress", "bios_load_addr"),
    ],
)
def test_boot_protocol_mistakes_have_axvms_names(lines: str, arch: str, variant: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(kernel_with(lines), arch=arch)
    assert [(problem.variant, problem.key) for problem in caught.value.problems] == [
        (variant, f"kernel.{key}")
    ]


def test_uefi_without_anything_reports_path_and_address_together() -> None:
    found = refusals(kernel_with('boot_protocol = "uefi"'))
    assert len(found) == 2


def test_loongarch64_has_uefi() -> None:
    text = kernel_with('boot_protocol = "efi"\nbios_path = "f"\nbios_load_addr = 0x1000')
    assert read(text, arch="loongarch64").kernel.firmware_path() == "f"


def test_an_unknown_boot_protocol_gets_a_suggestion() -> None:
    assert refusals(kernel_with('boot_protocol = "mulitboot"')) == [
        'vm.toml:11: kernel.boot_protocol: "mulitboot" is none of direct, multiboot, uefi, kernel, bios, '
        'axvm-bios, efi; use one; did you mean "multiboot"?'
    ]


def test_an_unknown_image_location_is_refused_and_not_a_panic() -> None:
    assert refusals(kernel_with('image_location = "net"')) == [
        'vm.toml:11: kernel.image_location: "net" is none of fs, memory; use one'
    ]


def test_a_nul_in_a_string_is_refused() -> None:
    assert "NUL" in refusals(kernel_with('cmdline = "a\\u0000b"'))[0]


# --- devices ------------------------------------------------------------------------------------------------


def test_emulated_devices_on_the_same_ports_are_refused() -> None:
    text = devices_with(
        'emu_devices = [["com1", 0x3f8, 8, 4, 2, []],\n["pit", 0x3ff, 1, 0, 0x24, []]]\n'
        "passthrough_devices = []\n"
    )
    assert refusals(text) == [
        'vm.toml:13: devices.emu_devices[1]: emulated device "pit" 0x3ff-0x3ff overlaps '
        'emulated device "com1" 0x3f8-0x3ff (devices.emu_devices[0], line 12); move or shrink one of them'
    ]


def test_ports_and_memory_are_different_spaces() -> None:
    crate = read(
        devices_with('emu_devices = [["com1", 0x3f8, 8, 4, 2, []]]\npassthrough_devices = []\n')
    )  # RAM starts at 0
    assert len(crate.devices.emu_devices) == 1


@pytest.mark.parametrize(
    ("lines", "owners"),
    [
        (
            'emu_devices = [["ioapic", 0x1000, 0x1000, 0, 0x23, []]]\npassthrough_devices = []',
            ("ioapic", "RAM"),
        ),
        ('emu_devices = []\npassthrough_devices = [["x", 0x1000, 0x1000, 0x1000, 0]]', ('"x"', "RAM")),
        (
            'emu_devices = [["i", 0xfec0_0000, 0x1000, 0, 0x23, []]]\n'
            'passthrough_devices = [["x", 0xfec0_0800, 0xfec0_0800, 4, 0]]',
            ('"x"', '"i"'),
        ),
        (
            "emu_devices = []\npassthrough_devices = []\npassthrough_addresses = [[0x1000, 0x1000]]",
            ("addresses 0x1000-0x1fff", "RAM"),
        ),
        (
            'emu_devices = [["c", 0x3f8, 8, 0, 2, []]]\npassthrough_devices = []\n'
            "passthrough_ports = [[0x3f0, 9]]",
            ("ports 0x3f0-0x3f8", '"c"'),
        ),
        (
            "emu_devices = []\npassthrough_devices = []\npassthrough_ports = [[0x10, 9], [0x18, 1]]",
            ("ports 0x10-0x18", "ports 0x18-0x18"),
        ),
        (
            'emu_devices = [["c", 0x3f8, 8, 0, 2, []]]\npassthrough_devices = []\n'
            '[[devices.virtual]]\nmodel = "uart16550"\nports = [0x3f8, 8]',
            ('"uart16550"', '"c"'),
        ),
    ],
)
def test_a_conflict_names_both_owners(lines: str, owners: tuple[str, str]) -> None:
    found = refusals(devices_with(lines + "\n"))
    assert len(found) == 1
    assert "overlaps" in found[0]
    assert all(owner in found[0] for owner in owners)


def test_passthrough_ranges_merge_if_they_lead_to_the_same_place() -> None:
    read(
        devices_with(
            "emu_devices = []\n"
            'passthrough_devices = [["a", 0xd000_0000, 0xd000_0000, 0x2000, 0]]\n'
            "passthrough_addresses = [[0xd000_1000, 0x2000]]\n"
        )
    )


def test_passthrough_ranges_that_lead_elsewhere_are_refused() -> None:
    found = refusals(
        devices_with(
            "emu_devices = []\n"
            'passthrough_devices = [["a", 0xd000_0000, 0xe000_0000, 0x2000, 0]]\n'
            "passthrough_addresses = [[0xd000_1000, 0x2000]]\n"
        )
    )
    assert len(found) == 1
    assert "overlaps" in found[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "passthrough_ports = [[0x6000, 0]]",
            "vm.toml:14: devices.passthrough_ports[0].length: a length of 0 covers nothing; "
            "give the length of the range",
        ),
        (
            "passthrough_ports = [[0xfff0, 0x11]]",
            "vm.toml:14: devices.passthrough_ports[0].length: 0xfff0-0x10000 leaves the 65536 ports; "
            "end below 0x10000",
        ),
        (
            "passthrough_addresses = [[0xffff_ffff_ffff_f000, 0x2000]]",
            "vm.toml:14: devices.passthrough_addresses[0].length: 0xfffffffffffff000-0x10000000000000fff "
            "leaves the guest's address space; end below 0x7ffffffff000",
        ),
    ],
)
def test_an_empty_or_overflowing_range_is_refused(lines: str, message: str) -> None:
    assert refusals(BASE + KERNEL + DEVICES + lines + "\n") == [message]


def test_a_passthrough_device_without_length_is_refused() -> None:
    found = refusals(devices_with('emu_devices = []\npassthrough_devices = [["HPET", 0xfed0_0000]]\n'))
    assert found == [
        "vm.toml:13: devices.passthrough_devices[0].length: a length of 0 covers nothing; "
        "give the length of the range"
    ]


def test_two_emulated_devices_cannot_have_one_interrupt_line() -> None:
    text = devices_with(
        'emu_devices = [["a", 0x3f8, 8, 4, 2, []], ["b", 0x2f8, 8, 4, 2, []]]\npassthrough_devices = []\n'
    )
    assert refusals(text) == [
        'vm.toml:12: devices.emu_devices[1]: "b" wants interrupt line 4 of "a" '
        "(devices.emu_devices[0], line 12); give one of them another line"
    ]


def test_a_virtual_device_cannot_take_an_emulated_devices_line() -> None:
    text = devices_with(
        'emu_devices = [["a", 0x3f8, 8, 4, 2, []]]\npassthrough_devices = []\n'
        '[[devices.virtual]]\nmodel = "b"\nirq = 4\n'
    )
    assert '"b" wants interrupt line 4 of "a"' in refusals(text)[0]


def test_passthrough_rows_share_a_line_as_axvisors_own_files_do() -> None:
    assert read(ARCEOS_X86_64).warnings == ()  # three rows with line 1


def test_a_passthrough_line_next_to_an_emulated_one_is_a_warning() -> None:
    crate = read(
        devices_with(
            'emu_devices = [["a", 0x3f8, 8, 4, 2, []]]\n'
            'passthrough_devices = [["x", 0xd000_0000, 0xd000_0000, 0x1000, 4]]\n'
        )
    )
    assert [warning.message for warning in crate.warnings] == [
        '"x" shares interrupt line 4 with emulated "a"'
    ]


def test_line_0_is_no_line() -> None:
    assert len(read(LINUX_SMP1).devices.emu_devices) == 3  # all with line 0


def test_an_unknown_device_type_is_refused_with_the_known_ones() -> None:
    found = refusals(devices_with('emu_devices = [["a", 0, 0, 0, 0x99, []]]\npassthrough_devices = []\n'))
    assert found[0].startswith("vm.toml:12: devices.emu_devices[0].emu_type: 0x99 is no device type; known")
    assert "0x2 Console" in found[0]


def test_an_unaligned_ivc_range_is_refused_and_a_second_one_a_warning() -> None:
    assert (
        "is not whole pages"
        in refusals(
            devices_with('emu_devices = [["i", 0xd000_0000, 0x800, 0, 0xa, []]]\npassthrough_devices = []\n')
        )[0]
    )
    crate = read(
        devices_with(
            'emu_devices = [["i", 0xd000_0000, 0x1000, 0, 0xa, []], '
            '["j", 0xd100_0000, 0x1000, 0, 0xa, []]]\npassthrough_devices = []\n'
        )
    )
    assert crate.warnings[0].message.startswith('"j" is ignored: "i" holds')


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("virtualized", AddressSpacePolicy.Virtualized),
        ("virtual", AddressSpacePolicy.Virtualized),
        ("passthrough", AddressSpacePolicy.Passthrough),
        ("pt", AddressSpacePolicy.Passthrough),
    ],
)
def test_address_space_policies_have_aliases(text: str, policy: AddressSpacePolicy) -> None:
    crate = read(BASE + KERNEL + DEVICES + f'address_space_policy = "{text}"\n')
    assert crate.devices.address_space_policy is policy


def test_an_unknown_interrupt_mode_is_refused() -> None:
    found = refusals(BASE + KERNEL + DEVICES + 'interrupt_mode = "emulate"\n')
    assert 'did you mean "emulated"?' in found[0]


def test_excluded_devices_are_lists_of_strings() -> None:
    assert refusals(BASE + KERNEL + DEVICES + 'excluded_devices = ["/a", [1]]\n') == [
        'vm.toml:14: devices.excluded_devices[0]: "/a" is no list of strings; write a list of strings',
        "vm.toml:14: devices.excluded_devices[1]: an array of 1 is no list of strings; "
        "write a list of strings",
    ]


def test_a_virtual_device_needs_a_model() -> None:
    assert refusals(devices_with("[[devices.virtual]]\nirq = 1\n")) == [
        'vm.toml:12: devices.virtual[0].model: missing; add model = "uart16550"'
    ]


# --- [pysim] ------------------------------------------------------------------------------------------------


def test_pysim_defaults_are_the_documented_ones() -> None:
    pysim = pysim_with("")
    assert pysim == PysimConfig()
    assert (pysim.memory, pysim.platform, pysim.missing_device, pysim.engine) == (
        None,
        "none",
        "raise",
        "step",
    )
    assert (pysim.ns_per_instruction, pysim.tsc_hz, pysim.seed) == (64, 1_000_000_000, 0)
    assert (pysim.budget_instructions, pysim.output_limit) == (BUDGET_UNLIMITED, 16 * MIB)
    assert (pysim.rtc_start, pysim.cpu_features) == (None, ())
    assert (pysim.exit_on_triple_fault, pysim.vga, pysim.debug_exit_port) == (True, True, 0xF4)


def test_with_a_pysim_table_the_loader_and_the_short_form_fill_gaps() -> None:
    crate = read('[base]\nid = 1\nname = "vm"\n[kernel]\nkernel_path = "vmlinuz"\n[pysim]\nmemory = "128M"\n')
    assert crate.warnings == ()
    assert (crate.base.vm_type, crate.base.cpu_num) == (VMType.VMTRTOS, 1)
    assert (crate.kernel.entry_point, crate.kernel.kernel_load_addr) == (None, None)
    config = AxVMConfig.from_crate(crate)
    assert config.memory_regions() == (VmMemConfig(0, 128 * MIB),)
    assert config.image_config().kernel_load_gpa is None
    assert read(crate.to_toml()) == crate


def test_memory_above_3_gib_continues_at_4_gib() -> None:
    regions = replace(PysimConfig(), memory=5 << 30).ram_regions()
    assert regions == (VmMemConfig(0, 3 << 30), VmMemConfig(4 << 30, 2 << 30))


def test_memory_and_memory_regions_exclude_each_other() -> None:
    text = BASE + KERNEL + DEVICES + '[pysim]\nmemory = "1M"\n'
    assert refusals(text) == [
        "vm.toml:10: kernel.memory_regions: pysim.memory gives the RAM already; remove one of the two"
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0x1000", 4096),
        ("64K", 65536),
        ("64 KiB", 65536),
        ("128M", 128 * MIB),
        ("128mb", 128 * MIB),
        ("1_000k", 1000 * 1024),
        ("2G", 2 << 30),
    ],
)
def test_sizes_count_in_1024s(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12Q", "1.5G", "-1M", "9" * 5000, "0x", "_1", "1__0x"])
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; write a number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('memory = "12Q"', 'pysim.memory: "12Q" is no size; write a number with K, M or G, such as "128M"'),
        ("memory = 4097", "pysim.memory: 0x1001 is no multiple of 0x1000; RAM is whole pages"),
        ("memory = 0", "pysim.memory: 0 bytes are out of range; give 0x1000 to 0x1000000000"),
        ("memory = 1.5", 'pysim.memory: 1.5 is a float; write a size such as "128M"'),
        ('platform = "pcc"', 'pysim.platform: "pcc" is none of none, pc; use one; did you mean "pc"?'),
        ('missing_device = "one"', 'did you mean "ones"?'),
        ("ns_per_instruction = 0", "pysim.ns_per_instruction: 0 is out of range; write 1 to 0xf4240"),
        ("tsc_hz = 0", "pysim.tsc_hz: 0 is out of range"),
        ('engine = "block"', 'pysim.engine: "block" is not available yet; use "step"'),
        ('engine = "auto"', 'pysim.engine: "auto" is not available yet; use "step"'),
        ('engine = "jit"', 'pysim.engine: "jit" is none of step; use one'),
        ("seed = -1", "pysim.seed: -1 is out of range"),
        ('cpu_features = ["+rdrnad"]', "unknown CPU feature '+rdrnad'; did you mean \"rdrand\"?"),
        ('cpu_features = ["+avx"]', "CPU feature '+avx' is not implemented by this CPU"),
        ('cpu_features = ["-apic", "+x2apic"]', 'needs "apic"'),
        ('cpu_features = "minimul"', 'did you mean "minimal"?'),
        ("cpu_features = [3]", '3 is no CPU feature; write "+name", "-name" or a level'),
        ('rtc_start = "soon"', '"soon" is no date; write it as "2026-01-01T00:00:00"'),
        ("rtc_start = 12:00:00", "12:00:00 is a date or time; write a date"),
        ("rtc_start = 5", "5 is an integer; write a date"),
        ('rtc_start = "0001-01-01T00:00:00+10:00"', "leaves the years 1 to 9999"),
        ("debug_exit_port = 0xfffd", "pysim.debug_exit_port: 0xfffd is out of range; write 0 to 0xfffc"),
        ("vga = 1", "pysim.vga: 1 is an integer; write true or false"),
        ("output_limit = -1", "pysim.output_limit: -1 bytes are out of range"),
        ("budget_instructions = 0", "pysim.budget_instructions: 0 is out of range"),
    ],
)
def test_an_impossible_pysim_setting_is_refused(lines: str, message: str) -> None:
    found = refusals(BASE + KERNEL.replace("[[0, 0x100_0000, 7, 0]]", "[]") + DEVICES + "[pysim]\n" + lines)
    assert len(found) == 1
    assert found[0].startswith("vm.toml:15: ")
    assert message in found[0]


def test_a_cpu_level_is_spelled_out_as_changes() -> None:
    assert pysim_with('cpu_features = "default"').cpu_features == ()
    minimal = pysim_with('cpu_features = ["minimal", "+rdrand"]').cpu_features
    assert minimal == (*CPU_LEVELS["minimal"], "+rdrand")
    assert "ERMS" not in feature_set(minimal)
    assert {"SSE2", "X64", "RDRAND"} <= feature_set(minimal)


@pytest.mark.parametrize("level", list(CPU_LEVELS))
def test_every_cpu_level_is_one_the_cpu_has(level: str) -> None:
    assert "FPU" in feature_set(CPU_LEVELS[level])


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+01:00", datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)),
        ('"2026-01-02T03:04:05"', datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ('"2026-01-02"', datetime(2026, 1, 2, tzinfo=UTC)),
    ],
)
def test_the_clocks_start_is_a_date_in_utc(value: str, moment: datetime) -> None:
    assert pysim_with(f"rtc_start = {value}").rtc_start == moment


# --- hostile files ------------------------------------------------------------------------------------------


def test_a_file_over_one_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_bytes(b"#" * (FILE_SIZE_MAX + 1))
    with pytest.raises(ConfigError, match="1048576 bytes are no configuration"):
        AxVMCrateConfig.from_file(path)
    with pytest.raises(ConfigError, match="1048576 bytes are no configuration"):
        read("#" * (FILE_SIZE_MAX + 1))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 33 + "]" * 33,
        "a = " + "{ b = " * 5000,
        ".".join("a" * 100_000) + " = 1",
        "[" + ".".join("a" * 100_000) + "]",
    ],
)
def test_deep_nesting_is_refused_before_the_parser_sees_it(text: str) -> None:
    assert "levels of nesting are no configuration; stay below 32" in refusals("x = 1\n" + text)[0]


def test_a_number_of_a_million_digits_is_refused() -> None:
    assert "no TOML" in refusals("a = " + "9" * 100_000)[0]
    found = refusals((BASE + KERNEL + DEVICES).replace("id = 1", "id = 0x" + "f" * 100_000))
    assert found == [
        "vm.toml:2: base.id: a number of 400000 bits is out of range; write 0 to 0xffffffffffffffff"
    ]


def test_long_values_are_shortened_in_messages() -> None:
    found = refusals((BASE + KERNEL + DEVICES).replace("id = 1", f'id = "{"x" * 10_000}"'))
    assert len(found[0]) < 150


def test_a_list_of_too_many_rows_is_refused() -> None:
    rows = "[" + '["/a"],' * 5000 + "]"
    found = refusals(devices_with(f"emu_devices = []\npassthrough_devices = {rows}\n"))
    assert found == [
        "vm.toml:13: devices.passthrough_devices: 5000 elements are too many; at most 4096 are allowed"
    ]


def test_a_thousand_overlapping_regions_give_a_bounded_message() -> None:
    rows = ",".join(["[0, 0x1000, 7, 0]"] * 1000)
    with pytest.raises(ConfigError) as caught:
        read(kernel_with("", f"[{rows}]"))
    assert len(caught.value.problems) == 999
    assert len(str(caught.value).splitlines()) == 102


def test_a_hundred_thousand_unknown_keys_give_bounded_warnings() -> None:
    crate = read(BASE + KERNEL + DEVICES + "".join(f"x{n} = 1\n" for n in range(5_000)))
    assert len(crate.warnings) == 100


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as caught:
        AxVMCrateConfig.from_file(path)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory; check the path"


def test_a_directory_and_a_nul_path_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        AxVMCrateConfig.from_file(tmp_path)
    with pytest.raises(ConfigError, match="is no path"):
        AxVMCrateConfig.from_file("a\0b")


def test_a_file_that_is_no_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_bytes(b"[base]\nname = '\xff'\n")
    with pytest.raises(ConfigError) as caught:
        AxVMCrateConfig.from_file(path)
    assert str(caught.value) == f"{path}:2: byte 0xff is no UTF-8; save the file as UTF-8 text"


TOML_SCALAR = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["true", "1.5", "nan", '"x"', '""', "2026-01-01", "12:00:00", "[]", "{}"]),
)
TOML_VALUE = st.recursive(
    TOML_SCALAR, lambda inner: st.lists(inner, max_size=5).map(lambda v: f"[{', '.join(v)}]"), max_leaves=8
)
KEYS = st.sampled_from(
    sorted(
        {
            *VMBaseConfig.__slots__,
            *VMKernelConfig.__slots__,
            *VMDevicesConfig.__slots__,
            *PysimConfig.__slots__,
        }
    )
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["base", "kernel", "devices", "pysim", "other"]),
        st.dictionaries(KEYS, TOML_VALUE, max_size=6),
    )
)
def test_any_values_give_a_configuration_or_a_config_error(tables: dict[str, dict[str, str]]) -> None:
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
        for name, keys in tables.items()
    )
    try:
        crate = read(text)
    except ConfigError as error:
        assert all(str(problem).startswith("vm.toml:") for problem in error.problems)
        assert all("\n" not in str(problem) for problem in error.problems)
    else:
        assert read(crate.to_toml()) == crate


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_a_configuration_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        read(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from([0, 1, 2])), max_size=6))
def test_overlaps_are_found_exactly_when_a_pair_overlaps(rows: list[tuple[int, int, int]]) -> None:
    def contradict(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        (a, size_a, map_a), (b, size_b, map_b) = one, other
        if a + size_a <= b or b + size_b <= a:
            return False
        a_in_b = b <= a and a + size_a <= b + size_b
        b_in_a = a <= b and b + size_b <= a + size_a
        return not ((map_a == 0 and map_b == 1 and a_in_b) or (map_b == 0 and map_a == 1 and b_in_a))

    expected = any(contradict(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))
    regions = ", ".join(f"[{a * 0x1000}, {size * 0x1000}, 7, {kind}]" for a, size, kind in rows)
    try:
        read(kernel_with("", f"[{regions}]"))
        found = False
    except ConfigError as error:
        found = True
        assert all("overlaps" in problem.message for problem in error.problems)
    assert found == expected


# --- AxVMConfig ---------------------------------------------------------------------------------------------


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
    assert AxVMConfig.from_toml(AARCH64_LINUX).excluded_devices()[1] == ("/a", "/b")


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
        AxVMConfig.for_code(4097, sead=3, engine="block")
    assert sorted(str(problem) for problem in caught.value.problems) == [
        '[pysim] keywords: engine: "block" is not available yet; use "step"',
        "[pysim] keywords: memory: 0x1001 is no multiple of 0x1000; RAM is whole pages",
        '[pysim] keywords: sead: no such key; leave it out; did you mean "seed"?',
    ]


def test_two_configurations_share_nothing() -> None:
    one, two = AxVMConfig.for_code(), AxVMConfig.for_code()
    one.add_pass_through_spi(40)
    one.phys_cpu_ls_mut().cpu_num = 4
    one.image_config().kernel_load_gpa = 5
    assert (two.pass_through_spis(), two.cpu_num(), two.image_config().kernel_load_gpa) == ((), 1, None)


# --- check and generate -------------------------------------------------------------------------------------


def test_check_says_nothing_about_a_clean_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(ARCEOS_X86_64)
    assert check(path) == []


def test_check_lists_errors_and_warnings(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(ARCEOS_X86_64 + "colour = 1\n")
    bad.write_text("[base]\n")
    messages = check(good, bad)
    assert messages[0] == f"warning: {good}:23: devices.colour: unknown key, ignored; correct or remove it"
    assert messages[1] == f"error: {bad}: kernel: missing; add a table [kernel]"
    assert len(messages) == 7


def test_check_finds_two_files_with_one_id(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(ARCEOS_X86_64)
    two.write_text(LINUX_SMP1)
    assert check(one, two) == [f"error: {two}: base.id: 1 is the id in {one}; give each VM its own"]
    assert check(one, one) == []


def test_check_of_a_missing_file_is_a_message() -> None:
    assert check("/nowhere/vm.toml") == [
        "error: /nowhere/vm.toml: cannot be read: No such file or directory; check the path"
    ]


def test_generate_makes_a_file_that_can_be_read() -> None:
    text = generate(
        id="0x2",
        name="guest",
        vm_type="2",
        cpu_num="0b10",
        entry="0x8000",
        kernel_path="Image",
        load_addr="0x20_0000",
        image_location="memory",
        cmdline='root="/dev/vda"',
    )
    crate = read(text)
    assert crate.warnings == ()
    assert (crate.base.id, crate.base.name, crate.base.vm_type, crate.base.cpu_num) == (
        2,
        "guest",
        VMType.VMTLinux,
        2,
    )
    assert (crate.kernel.entry_point, crate.kernel.kernel_load_addr) == (0x8000, 0x20_0000)
    assert (crate.kernel.cmdline, crate.kernel.image_location) == ('root="/dev/vda"', "memory")
    assert crate.kernel.memory_regions == (VmMemConfig(0, 32 * MIB),)


def test_generate_gives_other_architectures_ram_where_the_kernel_is() -> None:
    crate = read(generate(arch="aarch64", load_addr=0x8020_0000, entry=0x8020_0000), arch="aarch64")
    assert crate.kernel.memory_regions == (VmMemConfig(0x8000_0000, 32 * MIB),)


def test_generate_refuses_what_a_file_could_not_say() -> None:
    with pytest.raises(ConfigError, match="cpu_num"):
        generate(cpu_num=65)
    with pytest.raises(ConfigError, match="image_location"):
        generate(image_location="net")
    with pytest.raises(ConfigError, match='"vax" is none of'):
        generate(arch="vax")
    with pytest.raises(ValueError, match='"many" is no number'):
        generate(cpu_num="many")


@pytest.mark.parametrize(("text", "number"), [("10", 10), ("0x10", 16), ("0b10", 2), (" 1_0 ", 10)])
def test_numbers_are_read_in_any_base(text: str, number: int) -> None:
    assert parse_number(text) == number


# --- the page about it --------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_every_toml_example_of_the_page_is_read_without_a_warning() -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert read(example).warnings == ()


@pytest.mark.parametrize("table", [VMBaseConfig, VMKernelConfig, VMDevicesConfig, PysimConfig])
def test_the_page_lists_every_key(table: type[Any]) -> None:
    missing = [key for key in table.__slots__ if f"`{key}`" not in PAGE]
    assert missing == []


def test_the_page_tells_the_sentences_that_are_really_said() -> None:
    said = [
        *refusals((BASE + KERNEL + DEVICES).replace("entry_point = 0x8000", "")),
        *refusals(
            (BASE + KERNEL + DEVICES)
            .replace("id = 1", 'id = "one"')
            .replace("name =", "nmae =")
            .replace("cpu_num = 1", "cpu_num = 100")
        ),
        *refusals(kernel_with('boot_protocol = "mulitboot"')),
        *refusals(kernel_with("", "[[0, 0x2000, 7, 0],\n  [0x1000, 0x1000, 7, 0]]")),
        *refusals(
            devices_with(
                'emu_devices = [["a", 0x3f8, 8, 4, 2, []], ["b", 0x2f8, 8, 4, 2, []]]\n'
                "passthrough_devices = []\n"
            )
        ),
        *refusals(kernel_with("", "[[0, 0x1000, 0x47, 0]]")),
        *refusals(BASE + KERNEL + DEVICES + "passthrough_ports = [[0x6000, 0]]\n"),
        *refusals(BASE + KERNEL + DEVICES + '[pysim]\nengine = "block"\n'),
        *refusals("[base]\nid = = 1\n"),
    ]
    rows = re.findall(r"^\| [^|]+ \| `(vm\.toml:\d+: .*)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 11
    assert [row for row in rows if row not in said] == []
