"""From a file to a machine: an image or a configuration becomes an AxVM ready to run. It parses nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from devices.base import DeviceError
from devices.block import BlockBackend, FileBlock
from pysim_vm.boot_plan import BootPlan, LoadError, RamMap
from pysim_vm.config import AxVMConfig, AxVMCrateConfig
from pysim_vm.loader import LoadOptions, load, read_image
from pysim_vm.vm import AxVM

# What firmware takes for granted on a PC and the small default CPU does not have
FIRMWARE_FEATURES = ("+apic", "+mtrr", "+pat")
PathLike = str | os.PathLike[str]


def vm_from_image(
    path: PathLike,
    options: LoadOptions | None = None,
    *,
    memory: int | str = "128M",
    disks: Iterable[PathLike | BlockBackend] = (),
    roms: Mapping[str, PathLike] | None = None,
    **pysim: Any,
) -> AxVM:
    """A PC that is about to start the guest in `path` (kernel, ROM, boot sector, ELF program, flat image).

    `memory` is bytes or "128M"; `disks` are at most two files (the host file is never changed) or block
    back-ends; `roms` are fw_cfg files by name, such as "vgaroms/vgabios.bin"; `pysim` takes the keys of the
    configuration's [pysim] table. LoadError or ConfigError, one sentence each, on bad input.
    """
    backends = tuple(_disk(disk) for disk in disks)
    if len(backends) > 2:
        raise LoadError(f"{len(backends)} disks given, the IDE channel takes two; leave some out")
    settings: dict[str, Any] = {"platform": "pc", "missing_device": "gp", **pysim}
    config = AxVMConfig.for_code(memory, **settings)
    plan = load(path, RamMap.pc(config.memory_size()), options)
    if plan.protocol == "firmware" and "cpu_features" not in pysim:
        config = AxVMConfig.for_code(memory, **settings, cpu_features=list(FIRMWARE_FEATURES))
    vm = AxVM(config, plan=plan, disks=backends)
    for name, rom in (roms or {}).items():
        if vm.board is None:
            raise LoadError(f'ROM {name}: fw_cfg is part of the PC board; use platform = "pc"')
        vm.board.fw_cfg.add_file(name, read_image(rom, "option ROM"))
    return vm


def vm_from_config(config: PathLike | AxVMCrateConfig) -> AxVM:
    """The VM that an axvm TOML configuration describes, with its kernel, initrd and disk loaded.

    ConfigError for a wrong file, LoadError for a wrong image.
    """
    crate = config if isinstance(config, AxVMCrateConfig) else AxVMCrateConfig.from_file(Path(config))
    settings = AxVMConfig.from_crate(crate)
    regions = [(region.gpa, region.size) for region in crate.ram_regions() if not region.is_device()]
    plan = plan_of_config(crate, RamMap.of(_joined(regions)))
    disk = crate.kernel.disk_path
    disks = (_disk(crate.resolve(disk)),) if disk else ()
    return AxVM(settings, plan=plan, disks=disks)


def plan_of_config(crate: AxVMCrateConfig, ram: RamMap) -> BootPlan:
    """How the configuration's kernel boots."""
    kernel = crate.kernel
    ramdisk = None if kernel.ramdisk_path is None else crate.resolve(kernel.ramdisk_path)
    options = LoadOptions(
        cmdline=kernel.cmdline or "",
        initrd=ramdisk,
        load_address=kernel.kernel_load_addr,
        entry_point=kernel.entry_point,
    )
    return load(crate.resolve(kernel.kernel_path), ram, options)


def _joined(regions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping regions as one: axvm's boot scratch lies inside another region."""
    joined: list[tuple[int, int]] = []
    for base, size in sorted(regions):
        if joined and base <= joined[-1][0] + joined[-1][1]:
            start, length = joined[-1]
            joined[-1] = (start, max(length, base + size - start))
        else:
            joined.append((base, size))
    return joined


def _disk(disk: PathLike | BlockBackend) -> BlockBackend:
    if isinstance(disk, str | os.PathLike):
        try:
            return FileBlock(Path(disk))
        except DeviceError as error:
            raise LoadError(str(error)) from None
    return disk
