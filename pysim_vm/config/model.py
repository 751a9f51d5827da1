"""The tables and rows of a configuration file as frozen data. Reading and writing are elsewhere.

The names are axvmconfig's; `PysimConfig` is our own table. `pysim_vm.config` gathers all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from devices.contract import EmulatedDeviceConfig
from pysim_vm.axtypes import (
    AddressSpacePolicy,
    MappingFlags,
    VMBootProtocol,
    VMInterruptMode,
    VmMemMappingType,
    VMType,
)
from pysim_vm.errors import ConfigProblem
from pysim_vm.layout import DEBUG_EXIT_PORT, FOUR_GIB, MIB, PCI_HOLE_BASE

BUDGET_UNLIMITED: Final = (1 << 63) - 1  # centuries of guest time
DEFAULT_OUTPUT_LIMIT: Final = 16 * MIB
DEFAULT_CACHE_LIMIT: Final = 256 * MIB  # of translations: Debian's kernel up to its shell leaves 34 MiB


GUEST_TYPES: Final = {
    "host": VMType.VMTHostVM,
    "hostvm": VMType.VMTHostVM,
    "rtos": VMType.VMTRTOS,
    "linux": VMType.VMTLinux,
}


@dataclass(frozen=True, slots=True)
class VmMemConfig:
    """One row of memory_regions: `size` bytes of RAM at `gpa`; `flags` are MappingFlags bits."""

    gpa: int
    size: int
    flags: int = 0x7
    map_type: VmMemMappingType = VmMemMappingType.MapAlloc

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.gpa + self.size

    def is_device(self) -> bool:
        """Whether the DEVICE flag is set: axvm skips such a region."""
        return bool(self.flags & MappingFlags.DEVICE)


@dataclass(frozen=True, slots=True)
class PassThroughDeviceConfig:
    """One row of passthrough_devices: `length` bytes at guest `base_gpa` are the host's at `base_hpa`.

    A name that starts with "/" and no numbers is a device-tree path.
    """

    name: str
    base_gpa: int = 0
    base_hpa: int = 0
    length: int = 0
    irq_id: int = 0

    def is_device_tree_path(self) -> bool:
        """Whether the row names a device-tree node and no address."""
        return self.name.startswith("/") and not (self.base_gpa or self.base_hpa or self.length)


@dataclass(frozen=True, slots=True)
class PassThroughAddressConfig:
    """One row of passthrough_addresses: `length` bytes at `base_gpa`, the same in guest and host."""

    base_gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class PassThroughPortConfig:
    """One row of passthrough_ports: `length` ports from `base` that are not intercepted."""

    base: int
    length: int


@dataclass(frozen=True, slots=True)
class VirtualDeviceConfig:
    """One [[devices.virtual]] table: a device by the name of its model, with named resources.

    `mmio` and `ports` are (base, length) windows; `irq` is a line, 0 for none; `options` go to the device.
    """

    model: str
    name: str = ""
    mmio: tuple[tuple[int, int], ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    irq: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VMBaseConfig:
    """The table [base]."""

    id: int
    name: str
    vm_type: VMType = VMType.VMTRTOS
    cpu_num: int = 1
    phys_cpu_ids: tuple[int, ...] | None = None
    phys_cpu_sets: tuple[int, ...] | None = None
    guest_type: str | None = None


@dataclass(frozen=True, slots=True)
class VMKernelConfig:
    """The table [kernel]. `entry_point` and `kernel_load_addr` are None if the image's own are meant."""

    kernel_path: str
    entry_point: int | None = None
    kernel_load_addr: int | None = None
    bios_path: str | None = None
    bios_load_addr: int | None = None
    dtb_path: str | None = None
    dtb_load_addr: int | None = None
    ramdisk_path: str | None = None
    ramdisk_load_addr: int | None = None
    image_location: str | None = None
    cmdline: str | None = None
    disk_path: str | None = None
    memory_regions: tuple[VmMemConfig, ...] = ()
    enable_bios: bool | None = None
    boot_protocol: VMBootProtocol | None = None
    uefi_firmware_path: str | None = None

    def effective_boot_protocol(self) -> VMBootProtocol:
        """The protocol meant: the named one; else Multiboot if there is a BIOS; else Direct.

        Files older than `boot_protocol` ask for a BIOS by giving `bios_path`.
        """
        if self.boot_protocol is not None:
            return self.boot_protocol
        has_bios = self.bios_path is not None if self.enable_bios is None else self.enable_bios
        return VMBootProtocol.Multiboot if has_bios else VMBootProtocol.Direct

    def firmware_path(self) -> str | None:
        """The UEFI image: uefi_firmware_path, else bios_path."""
        return self.bios_path if self.uefi_firmware_path is None else self.uefi_firmware_path


@dataclass(frozen=True, slots=True)
class VMDevicesConfig:
    """The table [devices]. `virtual` holds the [[devices.virtual]] tables."""

    emu_devices: tuple[EmulatedDeviceConfig, ...] = ()
    passthrough_devices: tuple[PassThroughDeviceConfig, ...] = ()
    interrupt_mode: VMInterruptMode = VMInterruptMode.NoIrq
    excluded_devices: tuple[tuple[str, ...], ...] = ()
    passthrough_addresses: tuple[PassThroughAddressConfig, ...] = ()
    passthrough_ports: tuple[PassThroughPortConfig, ...] = ()
    address_space_policy: AddressSpacePolicy = AddressSpacePolicy.Virtualized
    virtual: tuple[VirtualDeviceConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class PysimConfig:
    """The table [pysim]: what only this machine has. axvm's own tools ignore it.

    `memory`, `output_limit` and `translation_cache_limit` are bytes; `cpu_features` are changes to the CPU's
    default features, levels already spelled out; `rtc_start` is None for the clock chip's own start date;
    `translation_cache` is "on", "off", a directory, or None for what the one who runs the VM likes best.
    """

    memory: int | None = None
    platform: str = "none"
    missing_device: str = "raise"
    ns_per_instruction: int = 64
    tsc_hz: int = 1_000_000_000
    engine: str = "auto"
    exit_path: str = "short"
    translation_cache: str | None = None
    translation_cache_limit: int = DEFAULT_CACHE_LIMIT
    seed: int = 0
    cpu_features: tuple[str, ...] = ()
    budget_instructions: int = BUDGET_UNLIMITED
    output_limit: int = DEFAULT_OUTPUT_LIMIT
    rtc_start: datetime | None = None
    exit_on_triple_fault: bool = True
    vga: bool = True
    debug_exit_port: int = DEBUG_EXIT_PORT

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> PysimConfig:
        """The table from Python keywords, checked as in a file; ConfigError, also for an unknown key."""
        from pysim_vm.config.pysim import pysim_from_keywords

        return pysim_from_keywords(keywords)

    def ram_regions(self) -> tuple[VmMemConfig, ...]:
        """`memory` as regions: up to 3 GiB from address 0, the rest above the PCI hole from 4 GiB on."""
        if self.memory is None:
            return ()
        low = min(self.memory, PCI_HOLE_BASE)
        high = self.memory - low
        regions = [VmMemConfig(0, low)]
        return tuple([*regions, VmMemConfig(FOUR_GIB, high)] if high else regions)


# What a file without a [pysim] table gets. Such a file was written for axvisor, which lets a guest reach the
# devices of the PC it runs on and gives it a local APIC; here the PC board is that host.
HOST_PC: Final = PysimConfig(platform="pc", missing_device="gp", cpu_features=("+apic", "+mtrr", "+pat"))


@dataclass(frozen=True, slots=True)
class AxVMCrateConfig:
    """A configuration file: axvmconfig's AxVMCrateConfig. Make one with `from_toml` or `from_file`.

    `source` names the text in messages, `directory` is where relative paths start, `warnings` what was odd;
    these three do not count in comparisons.
    """

    base: VMBaseConfig
    kernel: VMKernelConfig
    devices: VMDevicesConfig = field(default_factory=VMDevicesConfig)
    pysim: PysimConfig = field(default_factory=PysimConfig)
    source: str = field(default="<string>", compare=False)
    directory: Path | None = field(default=None, compare=False)
    warnings: tuple[ConfigProblem, ...] = field(default=(), compare=False)

    @classmethod
    def from_toml(cls, text: str, source: str = "<string>", *, arch: str = "x86_64") -> AxVMCrateConfig:
        """Read a configuration. Raises ConfigError with every error in it (kind InvalidInput).

        `arch` is the guest's architecture: some boot protocols exist on some of them only.
        """
        from pysim_vm.config.read import crate_from_toml

        return crate_from_toml(text, source, arch)

    @classmethod
    def from_file(cls, path: str | Path, *, arch: str = "x86_64") -> AxVMCrateConfig:
        """`from_toml` on a file of at most 1 MiB; relative paths inside it start at its directory."""
        from pysim_vm.config.table import read_file

        path = Path(path)
        crate = cls.from_toml(read_file(path), str(path), arch=arch)
        return replace(crate, directory=path.parent)

    def resolve(self, path: str) -> Path:
        """A path of the configuration as the host sees it."""
        return Path(path) if self.directory is None else self.directory / path

    def ram_regions(self) -> tuple[VmMemConfig, ...]:
        """The regions of RAM: memory_regions, or those that pysim.memory stands for."""
        return self.kernel.memory_regions or self.pysim.ram_regions()

    def to_toml(self) -> str:
        """The configuration as a TOML text that `from_toml` reads back to an equal one."""
        from pysim_vm.config.write import write_crate

        return write_crate(self)
