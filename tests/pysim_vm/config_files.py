"""Configuration files that several tests start from: axvisor's own, and the smallest of ours."""

from __future__ import annotations

from typing import Any

import pytest

from pysim_vm.config import (
    AxVMCrateConfig,
    PysimConfig,
)
from pysim_vm.errors import ConfigError

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
