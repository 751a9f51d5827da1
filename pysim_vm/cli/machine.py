"""From the words of a command line to a machine: which file, which settings. It runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from devices.base import DeviceError
from devices.block import SECTOR_SIZE, BlockBackend, FileBlock
from pysim_vm.axtypes import VmMemMappingType
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.config import AxVMCrateConfig, PysimConfig, parse_number, parse_size
from pysim_vm.errors import AxError, ConfigError, LoadError
from pysim_vm.layout import MIB
from pysim_vm.loader import LoadOptions, read_image, sniff
from pysim_vm.machine import vm_from_config, vm_from_image
from pysim_vm.symbols import SymbolTable
from pysim_vm.vm import AxVM

DEFAULT_MEMORY: Final = "128M"
CONFIG_SUFFIX: Final = ".toml"
# What carries no sign of being written for real hardware: there a missing device is more likely a slip of its
# author than a probe, and the error that names the address is worth more than the open bus of a PC.
OWN_CODE: Final = ("flat", "elf", "axvm-multiboot")


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """The options that `run` and `step` share, as typed; None or empty where not given."""

    memory: str | None = None
    append: str | None = None
    initrd: str | None = None
    disks: tuple[str, ...] = ()
    roms: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    entry: str | None = None
    load_address: str | None = None
    mode: str = "real"
    protocol: str | None = None
    symbols: str | None = None
    seed: str | None = None
    ns_per_instruction: str | None = None
    cpu: tuple[str, ...] = ()
    missing_device: str | None = None
    max_output: str | None = None
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How instructions are executed, which neither the guest nor a record can tell; None where not given.

    `default_cache` is the translation cache where neither the command line nor a configuration names one.
    """

    engine: str | None = None
    translation_cache: str | None = None
    default_cache: str | None = None
    exit_path: str | None = None

    def settings(self) -> dict[str, str]:
        """The keys of the [pysim] table that the command line gives."""
        given = {
            "engine": self.engine,
            "translation_cache": self.translation_cache,
            "exit_path": self.exit_path,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM that waits at its first instruction; `warnings` are sentences about the configuration."""

    vm: AxVM
    description: str
    warnings: tuple[str, ...] = ()

    @property
    def symbols(self) -> SymbolTable | None:
        """The guest's symbols, if its file has any."""
        return None if self.vm.plan is None else self.vm.plan.symbols


def build_machine(path: str, options: MachineOptions, how: EngineOptions | None = None) -> Machine:
    """The machine for a configuration, kernel, ROM, disk or raw image.

    Raises CommandError: LOAD for a guest file, CONFIG for a configuration or a setting, USAGE for options
    that do not go together.
    """
    try:
        if path.endswith(CONFIG_SUFFIX):
            return _from_config(path, options, how or EngineOptions())
        return _from_image(path, options, how or EngineOptions())
    except LoadError as error:
        raise CommandError(ExitStatus.LOAD, str(error)) from error
    except ConfigError as error:
        raise CommandError(ExitStatus.CONFIG, _in_options(error)) from error
    except (AxError, DeviceError) as error:
        raise CommandError(ExitStatus.CONFIG, f"{path}: {error}") from error


def _from_config(path: str, options: MachineOptions, how: EngineOptions) -> Machine:
    for given, name in (
        (options.load_address, "--load-address"),
        (options.entry, "--entry"),
        (options.protocol, "--protocol"),
        (options.symbols, "--symbols"),
        (options.disks, "--disk"),
        (options.roms, "--rom"),
        (options.modules, "--module"),
        (options.mode != "real", "--mode"),
    ):
        if given:
            raise CommandError(
                ExitStatus.USAGE,
                f"{name} is for guest files; in {path} the configuration says it, change it there",
            )
    crate = AxVMCrateConfig.from_file(path)
    if options.memory is not None and crate.kernel.memory_regions:
        raise CommandError(
            ExitStatus.USAGE, f"--memory: {path} lists its memory_regions; change the size there"
        )
    settings = _settings(options) | how.settings()
    if crate.pysim.translation_cache is None and how.default_cache is not None:
        settings.setdefault("translation_cache", how.default_cache)
    checked = PysimConfig.from_keywords(settings)
    crate = replace(crate, pysim=replace(crate.pysim, **{key: getattr(checked, key) for key in settings}))
    kernel = crate.kernel
    if options.append is not None:
        kernel = replace(kernel, cmdline=options.append)
    if options.initrd is not None:
        kernel = replace(kernel, ramdisk_path=str(Path(options.initrd).absolute()))
    vm = vm_from_config(replace(crate, kernel=kernel))
    identical = any(region.map_type is VmMemMappingType.MapIdentical for region in crate.ram_regions())
    notes = [str(problem) for problem in vm.config().warnings]
    if identical and crate.pysim.platform == "none" and not crate.devices.emu_devices:
        notes.append(f'{path}: no board and no devices, so no console; [pysim] platform = "pc" gives both')
    description = "" if vm.plan is None else vm.plan.description
    return Machine(vm, f"VM[{vm.id()}] {vm.name()}: {description}", tuple(notes))


def _from_image(path: str, options: MachineOptions, how: EngineOptions) -> Machine:
    load_address = _number("--load-address", options.load_address)
    data = read_image(path)
    protocol = options.protocol or sniff(data, Path(path).name, load_address=load_address)
    disks: list[BlockBackend] = [_disk(text) for text in options.disks]
    if protocol == "boot-sector" and len(data) > SECTOR_SIZE and not disks:
        disks.append(FileBlock(path))  # the rest of the disk is there too, behind the IDE channel
    load_options = LoadOptions(
        protocol=protocol,  # type: ignore[arg-type]  # click offers no other
        cmdline=options.append or "",
        initrd=options.initrd,
        modules=tuple(_module(text) for text in options.modules),
        load_address=load_address,
        entry_point=_number("--entry", options.entry),
        mode=options.mode,  # type: ignore[arg-type]  # click offers no other
        symbols=options.symbols,
    )
    settings = _settings(options) | how.settings()
    if how.default_cache is not None:
        settings.setdefault("translation_cache", how.default_cache)
    settings.setdefault("missing_device", "raise" if protocol in OWN_CODE else "gp")
    memory = settings.pop("memory", DEFAULT_MEMORY)
    roms = dict(_rom(text) for text in options.roms)
    vm = vm_from_image(path, load_options, memory=memory, disks=disks, roms=roms, **settings)
    return Machine(vm, "" if vm.plan is None else vm.plan.description)


def pysim_keywords(options: MachineOptions, how: EngineOptions) -> dict[str, Any]:
    """The options as AxVM.from_code takes them: those of them that are keys of the [pysim] table."""
    default = {} if how.default_cache is None else {"translation_cache": how.default_cache}
    return _settings(options) | default | how.settings()


def _settings(options: MachineOptions) -> dict[str, Any]:
    """The keys of the [pysim] table that the command line gives."""
    settings: dict[str, Any] = {}
    if options.memory is not None:
        settings["memory"] = options.memory
    if options.seed is not None:
        settings["seed"] = _number("--seed", options.seed)
    if options.ns_per_instruction is not None:
        settings["ns_per_instruction"] = _number("--ns-per-instruction", options.ns_per_instruction)
    if options.cpu:
        words = [word for text in options.cpu for word in text.split(",") if word]
        settings["cpu_features"] = words
    if options.missing_device is not None:
        settings["missing_device"] = options.missing_device
    if options.max_output is not None:
        settings["output_limit"] = size("--max-output", options.max_output)
    if options.platform is not None:
        settings["platform"] = options.platform
    return settings


OPTION_OF: Final[Mapping[str, str]] = {
    "memory": "--memory",
    "seed": "--seed",
    "ns_per_instruction": "--ns-per-instruction",
    "cpu_features": "--cpu",
    "missing_device": "--missing-device",
    "output_limit": "--max-output",
    "platform": "--platform",
    "engine": "--engine",
    "exit_path": "--exit-path",
    "translation_cache": "--translation-cache",
}


def _in_options(error: ConfigError) -> str:
    """The sentence of an error, with the option's name where the setting came from the command line."""
    first = error.problems[0] if error.problems else None
    if first is None or len(error.problems) > 1 or first.line or not first.source.startswith("[pysim]"):
        return str(error)
    option = OPTION_OF.get(first.key.split("[")[0], first.key)
    hint = f'; did you mean "{first.hint}"?' if first.hint else ""
    return f"{option}: {first.message}{hint}"


def _number(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_number(text)
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"{option}: {error}") from None


def size(option: str, text: str) -> int:
    """A size such as 64K, 128M or 4096 in bytes; CommandError USAGE if it is none."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"{option}: {error}") from None


def count(option: str, text: str) -> int:
    """A count such as 20000000, 20_000_000 or 20M (decimal); CommandError USAGE if it is none or negative."""
    units: Mapping[str, int] = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
    unit = units.get(text[-1:].lower(), 1)
    try:
        number = parse_number(text if unit == 1 else text[:-1]) * unit
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"{option}: {error}") from None
    if number <= 0:
        raise CommandError(ExitStatus.USAGE, f"{option}: {text} is no count of instructions; give 1 or more")
    return number


def _disk(text: str) -> BlockBackend:
    """`FILE` is copy-on-write, `FILE,write` changes the file, `FILE,read-only` refuses writes."""
    path, comma, how = text.rpartition(",")
    if not comma or how not in ("write", "read-only"):
        path, how = text, ""
    try:
        return FileBlock(path, how == "write", read_only=how == "read-only")
    except DeviceError as error:
        raise CommandError(ExitStatus.LOAD, f"--disk: {error}") from None


def _rom(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise CommandError(
            ExitStatus.USAGE, f"--rom: {text!r} is not NAME=FILE; write vgaroms/vgabios.bin=vgabios.bin"
        )
    return name, path


def _module(text: str) -> tuple[str, str]:
    path, _, words = text.partition(" ")
    return path, f"{Path(path).name} {words}".strip()


def parse_budget(text: str | None) -> int | None:
    """The value of --budget."""
    return None if text is None else count("--budget", text)


def output_limit_words(vm: AxVM) -> str:
    """A sentence about output that was dropped, or ""."""
    dropped = vm.console.dropped
    if not dropped:
        return ""
    limit = vm.console.limit
    shown = f"{limit // MIB} MiB" if limit % MIB == 0 and limit else f"{limit} bytes"
    return f"{dropped:,} bytes of guest output beyond {shown} were dropped; --max-output raises the limit"
