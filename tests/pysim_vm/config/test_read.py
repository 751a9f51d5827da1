"""config/read.py: real files, their forms, [base], [kernel], and what a mistake in them is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from pysim_vm.axtypes import (
    VMBootProtocol,
    VMInterruptMode,
    VmMemMappingType,
    VMType,
)
from pysim_vm.config import (
    AxVMConfig,
    AxVMCrateConfig,
    PassThroughAddressConfig,
    PassThroughDeviceConfig,
    PassThroughPortConfig,
    VirtualDeviceConfig,
    VmMemConfig,
)
from pysim_vm.errors import AxError, AxErrorKind, ConfigError
from pysim_vm.layout import MIB
from tests.pysim_vm.config_files import (
    AARCH64_LINUX,
    ARCEOS_X86_64,
    BASE,
    DEVICES,
    KERNEL,
    LINUX_SMP1,
    devices_with,
    kernel_with,
    read,
    refusals,
)


def test_axvisors_arceos_file_is_read() -> None:
    crate = read(ARCEOS_X86_64)
    assert [str(warning) for warning in crate.warnings] == [
        "vm.toml:21: devices.passthrough_devices[2]: passthrough has no effect yet: the guest does not find "
        '"HPET" at 0xfed00000-0xfed00fff'  # the board has both APICs
    ]
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
    assert [warning.key for warning in crate.warnings] == [
        "kernel.image_location", "devices.passthrough_devices[2]", "devices.interrupt_mode",
    ]  # fmt: skip


def test_the_overlapping_boot_scratch_of_linux_smp1_is_accepted() -> None:
    crate = read(LINUX_SMP1)
    assert [warning.key for warning in crate.warnings] == [
        "devices.interrupt_mode", "devices.passthrough_devices[0]", "devices.passthrough_addresses",
        "devices.passthrough_ports",
    ]  # fmt: skip
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
    assert [warning.key for warning in crate.warnings] == ["devices.virtual[1].model"]
    assert (crate.base.vm_type, crate.base.guest_type) == (VMType.VMTLinux, "linux")
    assert crate.devices.virtual == (
        VirtualDeviceConfig("uart16550", "uart16550", (), ((0x2F8, 8),), 3, {}),
        VirtualDeviceConfig(
            "virtio-blk", "disk0", ((0xD000_0000, 0x200),), (), 5, {"readonly": True, "image": "disk.img"}
        ),
    )
    assert crate.devices.emu_devices == ()


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
    assert all("unknown key" not in warning.message for warning in crate.warnings)
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
    assert refusals(text, arch="riscv64") == [
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
