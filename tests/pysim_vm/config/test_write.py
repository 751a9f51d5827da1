"""config/write.py: what is written reads back, and `generate`."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from pysim_vm.axtypes import (
    VMType,
)
from pysim_vm.config import (
    PysimConfig,
    VmMemConfig,
    generate,
    parse_number,
)
from pysim_vm.errors import ConfigError
from pysim_vm.layout import MIB
from tests.pysim_vm.config_files import (
    AARCH64_LINUX,
    ARCEOS_X86_64,
    BASE,
    DEVICES,
    KERNEL,
    LINUX_SMP1,
    read,
)


@pytest.mark.parametrize(
    ("text", "arch"), [(ARCEOS_X86_64, "x86_64"), (LINUX_SMP1, "x86_64"), (AARCH64_LINUX, "aarch64")]
)
def test_a_real_file_survives_being_written(text: str, arch: str) -> None:
    crate = read(text, arch=arch)
    assert read(crate.to_toml(), arch=arch) == crate


def test_an_empty_pysim_table_is_not_the_same_as_none_and_survives_too() -> None:
    crate = read(BASE + KERNEL + DEVICES + "[pysim]\n")
    assert "[pysim]" in crate.to_toml()
    assert read(crate.to_toml()) == crate
    assert "[pysim]" not in read(BASE + KERNEL + DEVICES).to_toml()


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
engine = "block"
exit_path = "full"
translation_cache = "./kept"
translation_cache_limit = "64M"
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
    assert same == ["memory"]  # it excludes memory_regions
    written = crate.to_toml()
    tomllib.loads(written)
    assert read(written) == crate
    assert read(written).to_toml() == written


def test_generate_makes_a_file_that_can_be_read() -> None:
    text = generate(
        id="0x2",
        name="guest",
        vm_type="2",
        cpu_num="0b1",
        entry="0x8000",
        kernel_path="Image",
        load_addr="0x20_0000",
        image_location="fs",
        cmdline='root="/dev/vda"',
    )
    crate = read(text)
    assert crate.warnings == ()
    assert (crate.base.id, crate.base.name, crate.base.vm_type, crate.base.cpu_num) == (
        2,
        "guest",
        VMType.VMTLinux,
        1,
    )
    assert (crate.kernel.entry_point, crate.kernel.kernel_load_addr) == (0x8000, 0x20_0000)
    assert (crate.kernel.cmdline, crate.kernel.image_location) == ('root="/dev/vda"', "fs")
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
