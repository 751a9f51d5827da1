"""From a file to a machine: an image or a configuration becomes an AxVM ready to run. It parses nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from devices.base import DeviceError
from devices.block import BlockBackend, FileBlock
from pysim_vm.axtypes import VMBootProtocol
from pysim_vm.boot_plan import (
    FLAT_LIMIT,
    BootPlan,
    RamMap,
    real_start,
)
from pysim_vm.config import AxVMConfig, AxVMCrateConfig
from pysim_vm.errors import ConfigProblem, LoadError
from pysim_vm.layout import AXVM_BIOS, AXVM_KERNEL, RESET_VECTOR, ROM_TOP
from pysim_vm.loader import LoadOptions, load, read_image, sniff
from pysim_vm.vm import AxVM

# What firmware takes for granted on a PC and the small default CPU does not have
FIRMWARE_FEATURES: Final = ("+apic", "+mtrr", "+pat")
# Protocols whose kernels get a RAM disk, and those that get a command line
_WITH_RAMDISK: Final = ("linux", "pvh", "multiboot")
_WITH_COMMAND_LINE: Final = ("linux", "pvh", "multiboot")
# What axvm's "multiboot" cannot start: it jumps to the first byte of the kernel file
_NOT_RAW: Final = ("elf", "linux", "pvh")
_REAL_MODE_LIMIT: Final = 0xFFFF

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
    configuration's [pysim] table. LoadError or ConfigError, one sentence each, on bad input::

        vm = vm_from_image("vmlinuz", LoadOptions(cmdline="console=ttyS0"), memory="256M")
        vm.run(50_000_000)
        print(vm.console.text())
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
    """The VM that an axvm TOML configuration describes, with its kernel, RAM disk, firmware and disk loaded.

    `vm.config().warnings` has what was odd: keys without an effect, in the file and for these images.
    ConfigError for a wrong file, LoadError for a wrong image::

        vm = vm_from_config("examples/linux.toml")
        for warning in vm.config().warnings:
            print(warning)
        vm.run(50_000_000)
    """
    crate = config if isinstance(config, AxVMCrateConfig) else AxVMCrateConfig.from_file(Path(config))
    settings = AxVMConfig.from_crate(crate)
    regions = [(region.gpa, region.size) for region in crate.ram_regions() if not region.is_device()]
    plan, notes = boot_of_config(crate, RamMap.of(_joined(regions)))
    settings.warnings += notes
    on_board = crate.pysim.platform == "pc"
    if plan.protocol == "firmware" and on_board and not crate.pysim.cpu_features:
        settings.pysim = replace(crate.pysim, cpu_features=FIRMWARE_FEATURES)
    cache = settings.pysim.translation_cache
    if cache is not None and "/" in cache and not cache.startswith("~"):
        settings.pysim = replace(settings.pysim, translation_cache=str(crate.resolve(cache)))
    disk = crate.kernel.disk_path if on_board else None
    disks = (_disk(crate.resolve(disk)),) if disk else ()
    return AxVM(settings, plan=plan, disks=disks)


def plan_of_config(crate: AxVMCrateConfig, ram: RamMap) -> BootPlan:
    """How the configuration's guest boots. LoadError for a wrong image."""
    return boot_of_config(crate, ram)[0]


def boot_of_config(crate: AxVMCrateConfig, ram: RamMap) -> tuple[BootPlan, list[ConfigProblem]]:
    """How the configuration's guest boots, and a warning for each key that this image has no use for.

    LoadError for a wrong image.
    """
    notes = _Notes(crate)
    match crate.kernel.effective_boot_protocol():
        case VMBootProtocol.Direct:
            plan = _direct(crate, ram, notes)
        case VMBootProtocol.Multiboot:
            plan = _multiboot(crate, ram)
        case VMBootProtocol.Uefi:
            plan = _uefi(crate, ram, notes)
    return plan, notes.found


class _Notes:
    """Collects warnings about one configuration."""

    def __init__(self, crate: AxVMCrateConfig) -> None:
        self._source = crate.source
        self.found: list[ConfigProblem] = []

    def add(self, key: str, message: str) -> None:
        """A warning about a key of [kernel]."""
        self.found.append(ConfigProblem(self._source, 0, f"kernel.{key}", message))


def _direct(crate: AxVMCrateConfig, ram: RamMap, notes: _Notes) -> BootPlan:
    """The kernel itself, in whatever format it is; without a format, a raw image in real mode."""
    kernel = crate.kernel
    path = crate.resolve(kernel.kernel_path)
    name = path.name
    protocol = sniff(read_image(path), name, load_address=kernel.kernel_load_addr)
    ramdisk = None if kernel.ramdisk_path is None else crate.resolve(kernel.ramdisk_path)
    modules = ((ramdisk, ramdisk.name),) if ramdisk is not None and protocol == "multiboot" else ()
    options = LoadOptions(
        protocol=protocol,
        cmdline=kernel.cmdline or "",
        initrd=ramdisk,
        modules=modules,
        load_address=kernel.kernel_load_addr,
        entry_point=kernel.entry_point,
    )
    plan = load(path, ram, options)
    if kernel.cmdline and protocol not in _WITH_COMMAND_LINE:
        notes.add("cmdline", f"no effect: {name} is of the kind {protocol}, which takes no command line")
    if protocol == "flat":
        plan = _entered_at(plan, plan.start.rip)
    else:
        _note_addresses(crate, plan, name, notes)
    if ramdisk is None:
        return plan
    if protocol not in _WITH_RAMDISK:
        return _with_ramdisk(crate, plan, ram)
    if kernel.ramdisk_load_addr is not None:
        notes.add("ramdisk_load_addr", f"no effect: the loader for {protocol} chooses the address itself")
    return plan


def _note_addresses(crate: AxVMCrateConfig, plan: BootPlan, name: str, notes: _Notes) -> None:
    """axvm demands both addresses in every file; an image that places itself does not follow them."""
    kernel = crate.kernel
    entry = RESET_VECTOR if plan.start.mode == "reset" else plan.start.rip
    if kernel.entry_point is not None and kernel.entry_point != entry:
        notes.add(
            "entry_point", f"no effect: {name} is of the kind {plan.protocol} and is entered at {entry:#x}"
        )
    address = kernel.kernel_load_addr
    if address is not None and all(gpa != address for gpa, _ in (*plan.writes, *plan.roms)):
        notes.add(
            "kernel_load_addr", f"no effect: {name} is of the kind {plan.protocol}, which places itself"
        )


def _multiboot(crate: AxVMCrateConfig, ram: RamMap) -> BootPlan:
    """axvm's boot through real mode: a blob at bios_load_addr, which enters the raw kernel."""
    kernel = crate.kernel
    path = crate.resolve(kernel.kernel_path)
    address = AXVM_KERNEL if kernel.kernel_load_addr is None else kernel.kernel_load_addr
    kind = sniff(read_image(path), path.name, load_address=address)
    if kind in _NOT_RAW:
        raise LoadError(
            f'{path.name} is of the kind {kind}, and boot_protocol = "multiboot" starts raw images only; use '
            '"direct", without bios_path and enable_bios'
        )
    bios_address = AXVM_BIOS if kernel.bios_load_addr is None else kernel.bios_load_addr
    options = LoadOptions(
        protocol="axvm-multiboot",
        load_address=address,
        bios=None if kernel.bios_path is None else crate.resolve(kernel.bios_path),
        bios_address=bios_address,
    )
    plan = load(path, ram, options)
    entry = bios_address if kernel.entry_point is None else kernel.entry_point
    plan = _entered_at(plan, entry)
    return plan if kernel.ramdisk_path is None else _with_ramdisk(crate, plan, ram)


def _uefi(crate: AxVMCrateConfig, ram: RamMap, notes: _Notes) -> BootPlan:
    """A firmware ROM. It ends at 4 GiB whatever bios_load_addr says: there is its reset vector."""
    kernel = crate.kernel
    firmware = kernel.firmware_path()
    if firmware is None:
        raise LoadError(f'{crate.source}: boot_protocol = "uefi" needs uefi_firmware_path; name the image')
    path = crate.resolve(firmware)
    plan = load(path, ram, LoadOptions(protocol="firmware"))
    base = plan.roms[0][0]
    if kernel.bios_load_addr is not None and kernel.bios_load_addr != base:
        notes.add(
            "bios_load_addr",
            f"{path.name} has {ROM_TOP - base:#x} bytes and ends at 4 GiB, so it is at {base:#x}; write that",
        )
    return plan


def _entered_at(plan: BootPlan, entry: int) -> BootPlan:
    """The plan of a real-mode guest, entered at `entry` as x86_vcpu does: CS base 0, RIP = entry."""
    start = real_start(cs=0, ip=entry)
    if entry > _REAL_MODE_LIMIT:
        code = start.segments["cs"]._replace(limit=FLAT_LIMIT)
        start = replace(start, segments={**start.segments, "cs": code})
    return replace(plan, start=start)


def _with_ramdisk(crate: AxVMCrateConfig, plan: BootPlan, ram: RamMap) -> BootPlan:
    """The RAM disk at ramdisk_load_addr, for kernels that know where to look."""
    kernel = crate.kernel
    assert kernel.ramdisk_path is not None
    path = crate.resolve(kernel.ramdisk_path)
    data = read_image(path, "RAM disk")
    base = kernel.ramdisk_load_addr
    if base is None:
        raise LoadError(f"RAM disk {path.name}: a raw kernel finds it by its address; add ramdisk_load_addr")
    where = f"RAM disk {path.name} at {base:#x}-{base + len(data) - 1:#x}"
    if not ram.contains(base, len(data)):
        raise LoadError(f"{where} lies outside RAM ({ram}); choose another ramdisk_load_addr")
    taken = [(gpa, gpa + len(part)) for gpa, part in plan.writes]
    taken += [(gpa, gpa + size) for gpa, size in plan.clears]
    for start, end in taken:
        if base < end and start < base + len(data):
            raise LoadError(
                f"{where} overlaps what the loader puts at {start:#x}-{end - 1:#x}; choose another "
                "ramdisk_load_addr"
            )
    return replace(plan, writes=tuple(sorted((*plan.writes, (base, data)), key=lambda write: write[0])))


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
