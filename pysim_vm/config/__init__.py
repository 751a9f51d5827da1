"""A VM's configuration: axvm's TOML file with a [pysim] table, and AxVMConfig made of it. It builds no VM.

This is the door: every public name is importable from here. `AxVMCrateConfig` is the file as it stands,
`AxVMConfig` what a VM is made from. Reading a file collects every error and raises them together as one
ConfigError; what is only odd is a warning in `AxVMCrateConfig.warnings`. docs/configuration.md describes
every key.

The rooms behind it, in reading order: model (the data), problems (errors and warnings), table (one TOML
table), conflicts (who wants what twice), pysim, devices and read (the tables), effects (keys without an
effect), write, vm (AxVMConfig).
"""

from __future__ import annotations

from pathlib import Path

from pysim_vm.config.conflicts import (
    PORT_SPACE,
)
from pysim_vm.config.model import (
    BUDGET_UNLIMITED,
    DEFAULT_OUTPUT_LIMIT,
    GUEST_TYPES,
    HOST_PC,
    AxVMCrateConfig,
    PassThroughAddressConfig,
    PassThroughDeviceConfig,
    PassThroughPortConfig,
    PysimConfig,
    VirtualDeviceConfig,
    VMBaseConfig,
    VMDevicesConfig,
    VMKernelConfig,
    VmMemConfig,
)
from pysim_vm.config.problems import (
    SHOWN_MAX,
)
from pysim_vm.config.pysim import (
    CPU_LEVELS,
    ENGINES,
    NS_PER_INSTRUCTION_MAX,
    PLATFORMS,
    RAM_MAX,
    TSC_HZ_MAX,
)
from pysim_vm.config.read import (
    ARCHITECTURES,
    IMAGE_LOCATIONS,
)
from pysim_vm.config.table import (
    FILE_SIZE_MAX,
    NESTING_MAX,
    ROWS_MAX,
    TEXT_MAX,
    U64_MAX,
    parse_size,
)
from pysim_vm.config.vm import (
    BIOS_ROOM,
    AxVCpuConfig,
    AxVMConfig,
    PhysCpuList,
    VMImageConfig,
)
from pysim_vm.config.write import (
    generate,
    parse_number,
)
from pysim_vm.errors import PROBLEMS_SHOWN, ConfigError

__all__ = [
    "ARCHITECTURES",
    "BIOS_ROOM",
    "BUDGET_UNLIMITED",
    "CPU_LEVELS",
    "DEFAULT_OUTPUT_LIMIT",
    "ENGINES",
    "FILE_SIZE_MAX",
    "GUEST_TYPES",
    "HOST_PC",
    "IMAGE_LOCATIONS",
    "NESTING_MAX",
    "NS_PER_INSTRUCTION_MAX",
    "PLATFORMS",
    "PORT_SPACE",
    "RAM_MAX",
    "ROWS_MAX",
    "SHOWN_MAX",
    "TEXT_MAX",
    "TSC_HZ_MAX",
    "U64_MAX",
    "AxVCpuConfig",
    "AxVMConfig",
    "AxVMCrateConfig",
    "PassThroughAddressConfig",
    "PassThroughDeviceConfig",
    "PassThroughPortConfig",
    "PhysCpuList",
    "PysimConfig",
    "VMBaseConfig",
    "VMDevicesConfig",
    "VMImageConfig",
    "VMKernelConfig",
    "VirtualDeviceConfig",
    "VmMemConfig",
    "check",
    "generate",
    "parse_number",
    "parse_size",
]


def check(*paths: str | Path, arch: str = "x86_64") -> list[str]:
    """What is wrong with configuration files: a line for each error and warning, none if they are clean.

    Lines start with "error: " or "warning: ". VMs of several files must have different ids.
    """
    messages: list[str] = []
    owners: dict[int, str] = {}
    for path in paths:
        try:
            crate = AxVMCrateConfig.from_file(path, arch=arch)
        except ConfigError as error:
            messages += [f"error: {problem}" for problem in error.problems[:PROBLEMS_SHOWN]]
            hidden = len(error.problems) - PROBLEMS_SHOWN
            if hidden > 0:
                messages.append(f"error: {path}: {hidden} more errors; correct those above first")
            continue
        messages += [f"warning: {problem}" for problem in crate.warnings]
        other = owners.setdefault(crate.base.id, str(path))
        if other != str(path):
            messages.append(
                f"error: {path}: base.id: {crate.base.id} is the id in {other}; give each VM its own"
            )
    return messages
