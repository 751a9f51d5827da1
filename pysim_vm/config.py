"""A VM's configuration: axvm's TOML file with a [pysim] table, and AxVMConfig made of it. It builds no VM.

`AxVMCrateConfig` is the file as it stands, `AxVMConfig` what a VM is made from. Reading a file collects every
error and raises them together as one ConfigError; what is only odd is a warning in
`AxVMCrateConfig.warnings`. docs/configuration.md describes every key.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Final, TypeVar

from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType, GuestPhysAddr, GuestPhysAddrRange
from devices.manager import MISSING_POLICIES
from isa.cpuid import DEFAULT_FEATURES, OPTIONAL_FEATURES, UnknownFeature, feature_set
from pysim_vm.axtypes import (
    MAPPING_FLAGS_ALL,
    TEMP_MAX_VCPU_NUM,
    VM_ASPACE_SIZE,
    AddressSpacePolicy,
    BootPolicy,
    CpuMask,
    MappingFlags,
    VMBootProtocol,
    VMInterruptMode,
    VmMemMappingType,
    VMType,
)
from pysim_vm.errors import (
    PROBLEMS_SHOWN,
    ConfigError,
    ConfigProblem,
    InvalidInput,
    ResourceConflict,
)
from pysim_vm.layout import (
    AXVM_BIOS,
    AXVM_KERNEL,
    DEBUG_EXIT_PORT,
    DEBUG_EXIT_PORT_COUNT,
    FOUR_GIB,
    GIB,
    KIB,
    MIB,
    PAGE_SIZE,
    PCI_HOLE_BASE,
)
from pysim_vm.toml_lines import Path as KeyPath
from pysim_vm.toml_lines import TomlLines

FILE_SIZE_MAX: Final = 1 * MIB  # a configuration is a few KiB; more is a mistake or an attack
NESTING_MAX: Final = 32  # deeper than any configuration, far from exhausting tomllib's stack
ROWS_MAX: Final = 4096  # elements of one list
TEXT_MAX: Final = 4096  # characters of one string; Linux's command line is shorter
SHOWN_MAX: Final = 40  # characters of a value that a message repeats
RAM_MAX: Final = 64 * GIB  # sum of a VM's RAM; more is a slip in a number
PORT_SPACE: Final = 1 << 16  # SDM, I/O Address Space
U64_MAX: Final = (1 << 64) - 1
BUDGET_UNLIMITED: Final = (1 << 63) - 1  # centuries of guest time
DEFAULT_OUTPUT_LIMIT: Final = 16 * MIB
NS_PER_INSTRUCTION_MAX: Final = 1_000_000  # a CPU of 1 kHz; guests stop booting long before
TSC_HZ_MAX: Final = 1_000_000_000_000

ARCHITECTURES: Final = ("x86_64", "aarch64", "riscv64", "loongarch64")
IMAGE_LOCATIONS: Final = ("fs", "memory")
PLATFORMS: Final = ("none", "pc")
ENGINES: Final = ("step",)
ENGINES_RESERVED: Final = ("auto", "block")

GUEST_TYPES: Final = {
    "host": VMType.VMTHostVM,
    "hostvm": VMType.VMTHostVM,
    "rtos": VMType.VMTRTOS,
    "linux": VMType.VMTLinux,
}

# The least that boots Linux and glibc; the other levels are the default set and all that the silicon has.
_MINIMAL_FEATURES: Final = frozenset(
    ("FPU", "TSC", "MSR", "PAE", "CX8", "PGE", "CMOV", "FXSR", "SSE", "SSE2", "SYSCALL", "NX", "X64")
)
CPU_LEVELS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "minimal": tuple(f"-{name.lower()}" for name in DEFAULT_FEATURES if name not in _MINIMAL_FEATURES),
    "all": tuple(f"+{name.lower()}" for name in OPTIONAL_FEATURES),
}

_SIZE_UNITS: Final = {"": 1, "k": KIB, "m": MIB, "g": GIB}
_SIZE: Final = re.compile(r"\s*(0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)\s*(?:([kKmMgG])(?:i?[bB])?)?\s*")
_TOML_LINE: Final = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")

# Emulated devices that live at guest-physical addresses; the rest are on ports when their window lies there.
_MMIO_TYPES: Final = frozenset(
    (
        EmulatedDeviceType.InterruptController,
        EmulatedDeviceType.IVCChannel,
        EmulatedDeviceType.GPPTRedistributor,
        EmulatedDeviceType.GPPTDistributor,
        EmulatedDeviceType.GPPTITS,
        EmulatedDeviceType.X86IoApic,
        EmulatedDeviceType.LoongArchPchPic,
        EmulatedDeviceType.PPPTGlobal,
        EmulatedDeviceType.VirtioBlk,
        EmulatedDeviceType.VirtioNet,
        EmulatedDeviceType.VirtioConsole,
    )
)

T = TypeVar("T")


# --- the file's rows and tables -----------------------------------------------------------------------------


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

    `memory` and `output_limit` are bytes; `cpu_features` are changes to the CPU's default features, levels
    already spelled out; `rtc_start` is None for the clock chip's own start date.
    """

    memory: int | None = None
    platform: str = "none"
    missing_device: str = "raise"
    ns_per_instruction: int = 64
    tsc_hz: int = 1_000_000_000
    engine: str = "step"
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
        problems = _Problems("[pysim] keywords", None)
        table = _Table(problems, keywords, ())
        pysim = _read_pysim(table)
        known = [each.name for each in fields(cls)]
        for key in keywords:
            if key not in known:
                problems.error((key,), "no such key; leave it out", _nearest(key, known))
        problems.raise_errors()
        return pysim

    def ram_regions(self) -> tuple[VmMemConfig, ...]:
        """`memory` as regions: up to 3 GiB from address 0, the rest above the PCI hole from 4 GiB on."""
        if self.memory is None:
            return ()
        low = min(self.memory, PCI_HOLE_BASE)
        high = self.memory - low
        regions = [VmMemConfig(0, low)]
        return tuple([*regions, VmMemConfig(FOUR_GIB, high)] if high else regions)


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
        problems = _Problems(source, None)
        data = _parse_toml(text, problems)
        crate = None if data is None else _read_crate(data, problems, arch)
        problems.raise_errors()
        assert crate is not None  # no error was found, so everything was read
        return replace(
            crate, source=source, warnings=tuple(sorted(problems.warnings, key=lambda problem: problem.line))
        )

    @classmethod
    def from_file(cls, path: str | Path, *, arch: str = "x86_64") -> AxVMCrateConfig:
        """`from_toml` on a file of at most 1 MiB; relative paths inside it start at its directory."""
        path = Path(path)
        crate = cls.from_toml(_read_file(path), str(path), arch=arch)
        return replace(crate, directory=path.parent)

    def resolve(self, path: str) -> Path:
        """A path of the configuration as the host sees it."""
        return Path(path) if self.directory is None else self.directory / path

    def ram_regions(self) -> tuple[VmMemConfig, ...]:
        """The regions of RAM: memory_regions, or those that pysim.memory stands for."""
        return self.kernel.memory_regions or self.pysim.ram_regions()

    def to_toml(self) -> str:
        """The configuration as a TOML text that `from_toml` reads back to an equal one."""
        return _write_crate(self)


# --- problems -----------------------------------------------------------------------------------------------


class _Problems:
    """Collects errors and warnings about one text."""

    def __init__(self, source: str, lines: TomlLines | None) -> None:
        self.source = source
        self.lines = lines
        self.columns: dict[KeyPath, Sequence[str]] = {}  # rows in positional form, and their keys
        self.errors: list[ConfigProblem] = []
        self.warnings: list[ConfigProblem] = []

    def line_of(self, path: KeyPath) -> int:
        if self.lines is None:
            return 0
        place: KeyPath = ()
        for part in path:
            columns = self.columns.get(place)
            place += (columns.index(part) if columns is not None and part in columns else part,)
        return self.lines.line_of(place)

    def error(self, path: KeyPath, message: str, hint: str = "", variant: str = "") -> None:
        self.errors.append(self._problem(path, message, hint, variant))

    def warn(self, path: KeyPath, message: str, hint: str = "") -> None:
        if len(self.warnings) < PROBLEMS_SHOWN:
            self.warnings.append(self._problem(path, message, hint, ""))

    def raise_errors(self) -> None:
        if self.errors:
            raise ConfigError(sorted(self.errors, key=lambda problem: problem.line))

    def _problem(self, path: KeyPath, message: str, hint: str, variant: str) -> ConfigProblem:
        return ConfigProblem(self.source, self.line_of(path), _dotted(path), message, hint, variant)


def _dotted(path: KeyPath) -> str:
    """`kernel.memory_regions[0].size`; a long or strange key is shown shortened and quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = len(part) <= SHOWN_MAX and re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if plain else _show(part))
    return text


def _show(value: object) -> str:
    """A value for a message: short whatever its size."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            if value.bit_length() > 64:
                return f"a number of {value.bit_length()} bits"
            return hex(value) if abs(value) >= PAGE_SIZE else str(value)
        case str():
            short = value if len(value) <= SHOWN_MAX else value[: SHOWN_MAX - 3] + "..."
            return _toml_string(short)
        case list() | tuple():
            return f"an array of {len(value)}"
        case dict():
            return "a table"
        case _:
            return str(value)[:SHOWN_MAX]


def _kind_of(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`, empty if none is."""
    if len(word) > SHOWN_MAX:
        return ""
    found = difflib.get_close_matches(word.lower(), list(known), 1)
    return found[0] if found else ""


def _span(start: int, length: int) -> str:
    return f"{start:#x}-{start + length - 1:#x}"


# --- reading a file -----------------------------------------------------------------------------------------


def _read_file(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        problem = ConfigProblem(source, 0, "", f"cannot be read: {error.strerror}; check the path")
        raise ConfigError([problem]) from error
    except ValueError:  # a NUL in the path
        problem = ConfigProblem(_show(source), 0, "", "is no path; check it")
        raise ConfigError([problem]) from None
    if len(data) > FILE_SIZE_MAX:
        raise ConfigError([ConfigProblem(source, 0, "", _TOO_LONG, variant="TomlParse")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte {data[error.start]:#04x} is no UTF-8; save the file as UTF-8 text"
        raise ConfigError([ConfigProblem(source, line, "", message, variant="TomlParse")]) from None


_TOO_LONG: Final = f"more than {FILE_SIZE_MAX} bytes are no configuration; shorten the file"


def _parse_toml(text: str, problems: _Problems) -> dict[str, Any] | None:
    """The text as dictionaries; None, and one error, if it is no TOML or too big to look at."""
    if len(text) > FILE_SIZE_MAX:
        problems.error((), _TOO_LONG, variant="TomlParse")
        return None
    lines = TomlLines(text)
    if lines.deepest > NESTING_MAX:
        message = f"{lines.deepest} levels of nesting are no configuration; stay below {NESTING_MAX}"
        problems.errors.append(
            ConfigProblem(problems.source, lines.deepest_line, "", message, variant="TomlParse")
        )
        return None
    problems.lines = lines
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or int() refusing thousands of digits
        found = _TOML_LINE.search(str(error))
        reason = str(error) if found is None else str(error)[: found.start()]
        line, column = 0, ""
        if found is not None:
            line = int(found[1]) if found[1] else text.count("\n") + 1
            column = f" at column {found[2]}" if found[2] else " at the end of the file"
        message = f"no TOML: {reason[:200]}{column}; correct the line"
        problems.errors.append(ConfigProblem(problems.source, line, "", message, variant="TomlParse"))
        return None


class _Table:
    """One TOML table, or one row of a list in its positional form, being read key by key.

    `columns` gives a positional row its keys. A value of the wrong type is reported and read as absent.
    """

    def __init__(self, problems: _Problems, data: Mapping[str, Any], path: KeyPath) -> None:
        self.problems = problems
        self.data = data
        self.path = path
        self.known: list[str] = []
        self.missing: list[str] = []

    @classmethod
    def from_row(
        cls, problems: _Problems, row: object, path: KeyPath, columns: Sequence[str]
    ) -> _Table | None:
        """A row in either form; None, and an error, if it is neither."""
        if isinstance(row, dict):
            return cls(problems, row, path)
        if isinstance(row, list) and 0 < len(row) <= len(columns):
            problems.columns[path] = columns
            return cls(problems, dict(zip(columns, row, strict=False)), path)
        what = f"{_show(row)} is no row"
        problems.error(path, f"{what}; write [{', '.join(columns)}] or a table with these keys")
        return None

    def place(self, key: str) -> KeyPath:
        return (*self.path, key)

    def error(self, key: str, message: str, hint: str = "", variant: str = "") -> None:
        self.problems.error(self.place(key), message, hint, variant)

    def get(self, key: str, kind: type[T], want: str, example: str | None = None) -> T | None:
        """The value of `key`; None if it is absent or of another type. `example` makes the key required."""
        self.known.append(key)
        if key not in self.data:
            if example is not None:
                self.missing.append(key)
                self.error(key, f"missing; add {key} = {example}")
            return None
        value = self.data[key]
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        advice = "remove the quotes" if isinstance(value, str) and kind is int else f"write {want}"
        self.error(key, f"{_show(value)} is {_kind_of(value)}; {advice}")
        return None

    def integer(self, key: str, low: int = 0, high: int = U64_MAX, example: str | None = None) -> int | None:
        value = self.get(key, int, "an integer", example)
        if value is not None and not low <= value <= high:
            self.error(key, f"{_show(value)} is out of range; write {_show(low)} to {_show(high)}")
            return None
        return value

    def text(self, key: str, example: str | None = None) -> str | None:
        value = self.get(key, str, "a string", example)
        return None if value is None else self._checked_text(self.place(key), value)

    def _checked_text(self, path: KeyPath, value: str) -> str | None:
        if len(value) > TEXT_MAX:
            self.problems.error(path, f"{len(value)} characters are too many; at most {TEXT_MAX} are allowed")
        elif "\0" in value:
            self.problems.error(path, "a NUL character ends a string in the guest; remove it")
        else:
            return value
        return None

    def boolean(self, key: str) -> bool | None:
        return self.get(key, bool, "true or false")

    def word(self, key: str, known: Sequence[str]) -> str | None:
        """One of the `known` words."""
        value = self.get(key, str, f'"{known[0]}"')
        if value is None or value in known:
            return value
        self.error(key, f"{_show(value)} is none of {', '.join(known)}; use one", _nearest(value, known))
        return None

    def rows(self, key: str, example: str | None = None) -> list[tuple[KeyPath, Any]]:
        """The elements of a list with their places; empty if it is absent, wrong or too long."""
        value = self.get(key, list, "an array", example)
        if value is None:
            return []
        if len(value) > ROWS_MAX:
            self.error(key, f"{len(value)} elements are too many; at most {ROWS_MAX} are allowed")
            return []
        place = self.place(key)
        return [((*place, index), element) for index, element in enumerate(value)]

    def integers(self, key: str, high: int) -> tuple[int, ...] | None:
        """A list of integers from 0 to `high`; None if it is absent."""
        numbers = []
        for path, element in self.rows(key):
            if not isinstance(element, int) or isinstance(element, bool):
                self.problems.error(path, f"{_show(element)} is {_kind_of(element)}; write an integer")
            elif not 0 <= element <= high:
                self.problems.error(path, f"{_show(element)} is out of range; write 0 to {_show(high)}")
            else:
                numbers.append(element)
        return tuple(numbers) if key in self.data else None

    def texts(self, path: KeyPath, elements: object) -> tuple[str, ...] | None:
        """A list of strings found at `path`."""
        if not isinstance(elements, list) or not all(isinstance(element, str) for element in elements):
            self.problems.error(path, f"{_show(elements)} is no list of strings; write a list of strings")
            return None
        checked = [self._checked_text((*path, index), text) for index, text in enumerate(elements)]
        return tuple(text for text in checked if text is not None)

    def finish(self) -> None:
        """Warn of every key that nobody asked for; one that looks like a missing key is an error."""
        for key in self.data:
            if key not in self.known:
                hint = _nearest(key, self.known)
                if hint in self.missing:
                    self.error(key, "unknown key", hint)
                else:
                    self.problems.warn(self.place(key), "unknown key, ignored; correct or remove it", hint)


# --- the tables ---------------------------------------------------------------------------------------------


def _read_crate(data: dict[str, Any], problems: _Problems, arch: str) -> AxVMCrateConfig | None:
    """All tables. None if one of them could not be read; the errors are in `problems`."""
    if arch not in ARCHITECTURES:
        problems.error((), f"{_show(arch)} is none of {', '.join(ARCHITECTURES)}; use one")
        return None
    root = _Table(problems, data, ())
    relaxed = "pysim" in data  # then a loader may find entry and load address, and memory has a short form
    tables: dict[str, _Table] = {}
    for name in ("base", "kernel", "devices", "pysim"):
        optional = name == "pysim" or (relaxed and name == "devices")
        root.known.append(name)
        if name not in data and not optional:
            problems.error((name,), f"missing; add a table [{name}]")
        value = data.get(name, {})
        if not isinstance(value, dict):
            problems.error((name,), f"{_show(value)} is {_kind_of(value)}; write a table [{name}]")
            value = {}
        elif name in data or optional:
            tables[name] = _Table(problems, value, (name,))
    root.finish()
    claims: list[_Claim] = []
    pysim = _read_pysim(tables["pysim"]) if "pysim" in tables else PysimConfig()
    base = _read_base(tables["base"], relaxed) if "base" in tables else None
    kernel = _read_kernel(tables["kernel"], relaxed, pysim, claims, arch) if "kernel" in tables else None
    devices = _read_devices(tables["devices"], relaxed, claims) if "devices" in tables else None
    for table in tables.values():
        table.finish()
    _report_overlaps(claims, problems)
    if base is None or kernel is None or devices is None:
        return None
    return AxVMCrateConfig(base, kernel, devices, pysim)


def _read_base(table: _Table, relaxed: bool) -> VMBaseConfig | None:
    vm_id = table.integer("id", example="1")
    name = table.text("name", example='"vm"')
    if name == "":
        table.error("name", "the name is empty; give the VM a name")
    cpu_num = table.integer("cpu_num", 1, TEMP_MAX_VCPU_NUM, example=None if relaxed else "1")
    vm_type, guest_type = _read_vm_type(table, relaxed)
    ids = table.integers("phys_cpu_ids", U64_MAX)
    sets = table.integers("phys_cpu_sets", U64_MAX)
    count = cpu_num or 1
    for key, entries in (("phys_cpu_ids", ids), ("phys_cpu_sets", sets)):
        if cpu_num is not None and entries is not None and len(entries) > count:
            table.error(key, f"{len(entries)} entries for {count} vCPUs; give at most one for each vCPU")
    seen: dict[int, int] = {}
    for index, cpu in enumerate(ids or ()):
        if cpu in seen:
            message = f"the id {_show(cpu)} belongs to vCPU {seen[cpu]} already; give each vCPU its own"
            table.problems.error((*table.place("phys_cpu_ids"), index), message)
        seen.setdefault(cpu, index)
    for index, mask in enumerate(sets or ()):
        if mask == 0:
            message = f"the mask 0 lets vCPU {index} run nowhere; set a bit for each CPU it may use"
            table.problems.error((*table.place("phys_cpu_sets"), index), message)
    if vm_id is None or not name:
        return None
    return VMBaseConfig(vm_id, name, vm_type, count, ids, sets, guest_type)


def _read_vm_type(table: _Table, relaxed: bool) -> tuple[VMType, str | None]:
    """vm_type, or guest_type in its place; an unknown one is an RTOS and a warning, as in axvmconfig."""
    guest_type = table.text("guest_type")
    required = guest_type is None and "guest_type" not in table.data and not relaxed
    number = table.get("vm_type", int, "an integer", "1" if required else None)
    vm_type = VMType.VMTRTOS
    if number is not None:
        known = VMType.from_usize(number)
        if known is None:
            table.problems.warn(
                table.place("vm_type"), f"{_show(number)} is no VM type, taken as 1 (VMTRTOS)"
            )
        vm_type = VMType.VMTRTOS if known is None else known
    if guest_type is not None:
        named = GUEST_TYPES.get(guest_type.lower())
        if named is None:
            table.problems.warn(
                table.place("guest_type"),
                f"{_show(guest_type)} is no guest type, taken as an RTOS; known are {', '.join(GUEST_TYPES)}",
                _nearest(guest_type, GUEST_TYPES),
            )
        elif number is not None and named is not vm_type:
            message = f"{_show(guest_type)} overrides vm_type = {_show(number)}; remove vm_type"
            table.problems.warn(table.place("guest_type"), message)
        vm_type = VMType.VMTRTOS if named is None else named
    return vm_type, guest_type


def _read_kernel(
    table: _Table, relaxed: bool, pysim: PysimConfig, claims: list[_Claim], arch: str
) -> VMKernelConfig | None:
    def needed(example: str) -> str | None:
        return None if relaxed else example

    errors_before = len(table.problems.errors)
    entry_point = table.integer("entry_point", example=needed(hex(AXVM_BIOS)))
    kernel_path = table.text("kernel_path", example='"kernel.bin"')
    kernel_load_addr = table.integer("kernel_load_addr", example=needed(hex(AXVM_KERNEL)))
    regions = _read_memory_regions(table, relaxed, pysim, claims)
    kernel = VMKernelConfig(
        kernel_path=kernel_path or "",
        entry_point=entry_point,
        kernel_load_addr=kernel_load_addr,
        bios_path=table.text("bios_path"),
        bios_load_addr=table.integer("bios_load_addr"),
        dtb_path=table.text("dtb_path"),
        dtb_load_addr=table.integer("dtb_load_addr"),
        ramdisk_path=table.text("ramdisk_path"),
        ramdisk_load_addr=table.integer("ramdisk_load_addr"),
        image_location=table.word("image_location", IMAGE_LOCATIONS),
        cmdline=table.text("cmdline"),
        disk_path=table.text("disk_path"),
        memory_regions=tuple(regions),
        enable_bios=table.boolean("enable_bios"),
        boot_protocol=_read_config_word(table, "boot_protocol", VMBootProtocol),
        uefi_firmware_path=table.text("uefi_firmware_path"),
    )
    if len(table.problems.errors) == errors_before:
        _check_boot(table, kernel, arch)
        _warn_of_load_address(table, kernel)
    return None if kernel_path is None else kernel


def _read_config_word(table: _Table, key: str, words: type[_Word]) -> _Word | None:
    text = table.get(key, str, f'"{words.spellings()[0]}"')
    if text is None:
        return None
    word = words.from_str(text)
    if word is None:
        spellings = words.spellings()
        message = f"{_show(text)} is none of {', '.join(spellings)}; use one"
        table.error(key, message, _nearest(text, spellings))
    return word


_Word = TypeVar("_Word", VMInterruptMode, AddressSpacePolicy, VMBootProtocol)


def _check_boot(table: _Table, kernel: VMKernelConfig, arch: str) -> None:
    """axvm 0.5's rules for boot protocols, under AxVmConfigError's names."""
    protocol = kernel.effective_boot_protocol()
    if kernel.enable_bios is False and protocol is not VMBootProtocol.Direct:
        message = f'"{protocol}" boots through a BIOS; set enable_bios = true or boot_protocol = "direct"'
        table.error("boot_protocol", message, variant="BootProtocolConflict")
    elif kernel.enable_bios is True and protocol is VMBootProtocol.Direct:
        message = '"direct" boots without a BIOS; set enable_bios = false or boot_protocol = "multiboot"'
        table.error("boot_protocol", message, variant="BootProtocolConflict")
    elif protocol is VMBootProtocol.Multiboot:
        # Files older than boot_protocol give a BIOS on any architecture; only the word itself is x86's.
        if arch != "x86_64" and kernel.boot_protocol is not None:
            message = f'"multiboot" exists on x86_64 only, not on {arch}; use "direct"'
            table.error("boot_protocol", message, variant="UnsupportedBootProtocol")
        elif kernel.bios_path is not None and kernel.bios_load_addr is None:
            message = f"missing beside bios_path; add bios_load_addr = {AXVM_BIOS:#x}"
            table.error("bios_load_addr", message, variant="MissingFirmwareLoadAddress")
    elif protocol is VMBootProtocol.Uefi:
        if arch not in ("x86_64", "loongarch64"):
            message = f'"uefi" exists on x86_64 and loongarch64 only, not on {arch}; use "direct"'
            table.error("boot_protocol", message, variant="UnsupportedBootProtocol")
            return
        if kernel.firmware_path() is None:
            message = 'missing for boot_protocol = "uefi"; name the firmware image'
            table.error("uefi_firmware_path", message, variant="MissingFirmwarePath")
        if kernel.bios_load_addr is None:
            message = 'missing for boot_protocol = "uefi"; add the address of the firmware image'
            table.error("bios_load_addr", message, variant="MissingFirmwareLoadAddress")


def _warn_of_load_address(table: _Table, kernel: VMKernelConfig) -> None:
    address = kernel.kernel_load_addr
    regions = kernel.memory_regions
    if address is not None and regions and not any(r.gpa <= address < r.end for r in regions):
        message = f"{address:#x} lies in no memory region; the kernel cannot be loaded there"
        table.problems.warn(table.place("kernel_load_addr"), message)


def _read_memory_regions(
    table: _Table, relaxed: bool, pysim: PysimConfig, claims: list[_Claim]
) -> list[VmMemConfig]:
    short_form = pysim.memory is not None
    example = None if relaxed else f"[[0x0, {16 * MIB:#x}, 0x7, 0]]"
    regions: list[VmMemConfig] = []
    for path, element in table.rows("memory_regions", example):
        row = _Table.from_row(table.problems, element, path, ("gpa", "size", "flags", "map_type"))
        if row is not None:
            region = _read_memory_region(row)
            row.finish()
            if region is not None:
                regions.append(region)
                if not region.is_device():
                    claims.append(_Claim.of_ram(region, path))
    if short_form and regions:
        table.error("memory_regions", "pysim.memory gives the RAM already; remove one of the two")
    if not short_form and table.data.get("memory_regions") in ([], None):
        message = 'the VM has no RAM; list a region, or set memory = "128M" in [pysim]'
        if relaxed or "memory_regions" in table.data:
            table.problems.warn(table.place("memory_regions"), message)
    total = sum(region.size for region in regions if not region.is_device())
    if total > RAM_MAX:
        table.error(
            "memory_regions", f"{total // MIB} MiB of RAM are too much; give at most {RAM_MAX // GIB} GiB"
        )
    return regions


def _read_memory_region(row: _Table) -> VmMemConfig | None:
    gpa = row.integer("gpa", example="0x0")
    size = row.integer("size", example=hex(16 * MIB))
    flags = row.integer("flags", example="0x7")
    number = row.get("map_type", int, "an integer")
    if flags is not None and flags & ~MAPPING_FLAGS_ALL:
        reserved = flags & ~MAPPING_FLAGS_ALL
        message = f"illegal flags {flags:#x}: bits {reserved:#x} are reserved; 0x7 is read, write, execute"
        row.error("flags", message)
        flags = None
    if number is not None and number not in tuple(VmMemMappingType):
        row.error("map_type", f"{_show(number)} is no mapping; write 0 alloc, 1 identical or 2 reserved")
        return None
    if gpa is None or size is None or not _check_pages(row, gpa, size) or flags is None:
        return None
    region = VmMemConfig(gpa, size, flags, VmMemMappingType(number or 0))
    if region.is_device():
        message = "the DEVICE flag is not for RAM, region skipped; list it under passthrough_devices"
        row.problems.warn(row.place("flags"), message)
    return region


def _check_pages(row: _Table, gpa: int, size: int) -> bool:
    """Whether [gpa, gpa + size) is a range of whole pages inside the guest's address space."""
    if size == 0:
        row.error("size", f"a region of 0 bytes holds nothing; give a multiple of {PAGE_SIZE:#x}")
    elif gpa % PAGE_SIZE or size % PAGE_SIZE:
        key = "gpa" if gpa % PAGE_SIZE else "size"
        row.error(key, f"{_show(row.data[key])} is no multiple of {PAGE_SIZE:#x}; regions are whole pages")
    elif gpa + size > VM_ASPACE_SIZE:
        row.error(
            "size", f"{_span(gpa, size)} leaves the guest's address space; end below {VM_ASPACE_SIZE:#x}"
        )
    else:
        return True
    return False


# --- [devices] ----------------------------------------------------------------------------------------------


def _read_devices(table: _Table, relaxed: bool, claims: list[_Claim]) -> VMDevicesConfig:
    problems = table.problems
    has_virtual = "virtual" in table.data
    emulated = _read_rows(
        table,
        "emu_devices",
        ("name", "base_gpa", "length", "irq_id", "emu_type", "cfg_list"),
        lambda row: _read_emulated(row, claims),
        example=None if relaxed or has_virtual else "[]",
    )
    passthrough = _read_rows(
        table,
        "passthrough_devices",
        ("name", "base_gpa", "base_hpa", "length", "irq_id"),
        lambda row: _read_passthrough(row, claims),
        example=None if relaxed or has_virtual else "[]",
    )
    addresses = _read_rows(
        table, "passthrough_addresses", ("base_gpa", "length"), lambda row: _read_address(row, claims)
    )
    ports = _read_rows(table, "passthrough_ports", ("base", "length"), lambda row: _read_ports(row, claims))
    excluded = [table.texts(path, element) for path, element in table.rows("excluded_devices")]
    virtual = [
        device
        for path, element in table.rows("virtual")
        if (device := _read_virtual(problems, element, path, claims)) is not None
    ]
    mode = _read_config_word(table, "interrupt_mode", VMInterruptMode)
    policy = _read_config_word(table, "address_space_policy", AddressSpacePolicy)
    _report_lines(emulated, passthrough, virtual, table)
    _report_ivc(emulated, table)
    return VMDevicesConfig(
        emu_devices=tuple(row for _, row in emulated),
        passthrough_devices=tuple(row for _, row in passthrough),
        interrupt_mode=mode or VMInterruptMode.NoIrq,
        excluded_devices=tuple(row for row in excluded if row is not None),
        passthrough_addresses=tuple(row for _, row in addresses),
        passthrough_ports=tuple(row for _, row in ports),
        address_space_policy=policy or AddressSpacePolicy.Virtualized,
        virtual=tuple(virtual),
    )


def _read_rows(
    table: _Table,
    key: str,
    columns: Sequence[str],
    read: Callable[[_Table], T | None],
    example: str | None = None,
) -> list[tuple[KeyPath, T]]:
    """The good rows of a list, each with its place."""
    rows = []
    for path, element in table.rows(key, example):
        row = _Table.from_row(table.problems, element, path, columns)
        if row is not None:
            value = read(row)
            row.finish()
            if value is not None:
                rows.append((path, value))
    return rows


def _read_emulated(row: _Table, claims: list[_Claim]) -> EmulatedDeviceConfig | None:
    name = row.text("name", example='"device"')
    base_key = "base_ipa" if "base_ipa" in row.data and "base_gpa" not in row.data else "base_gpa"
    row.known += ["base_gpa", "base_ipa"]
    base = row.integer(base_key)
    length = row.integer("length")
    irq_id = row.integer("irq_id", high=0xFFFF_FFFF)
    emu_type = _read_emu_type(row)
    cfg_list = row.integers("cfg_list", U64_MAX)
    if name is None or emu_type is None:
        return None
    device = EmulatedDeviceConfig(name, base or 0, length or 0, irq_id or 0, emu_type, cfg_list or ())
    if (
        device.length
        and (claim := _Claim.of_emulated(device, row.path))
        and _check_claim(row, claim, "length")
    ):
        claims.append(claim)
    return device


def _read_emu_type(row: _Table) -> EmulatedDeviceType | None:
    """By number, as axvmconfig has it, or by name."""
    row.known.append("emu_type")
    value = row.data.get("emu_type", 0)
    if isinstance(value, str):
        by_name = {kind.name.lower(): kind for kind in EmulatedDeviceType}
        kind = by_name.get(value.lower())
        if kind is None:
            row.error(
                "emu_type", f"{_show(value)} is no device type; use its number", _nearest(value, by_name)
            )
        return kind
    number = row.get("emu_type", int, "a number such as 0x2")
    if "emu_type" in row.data and number is None:
        return None
    kind = EmulatedDeviceType.from_usize(number or 0)
    if kind is None:
        known = ", ".join(f"{each.value:#x} {each.name}" for each in EmulatedDeviceType)
        shown = f"{number:#x}" if number is not None and number.bit_length() <= 64 else _show(number)
        row.error("emu_type", f"{shown} is no device type; known are {known}")
    return kind


def _read_passthrough(row: _Table, claims: list[_Claim]) -> PassThroughDeviceConfig | None:
    name = row.text("name", example='"device"')
    base_gpa = row.integer("base_gpa") or 0
    base_hpa = row.integer("base_hpa")
    length = row.integer("length") or 0
    irq_id = row.integer("irq_id", high=0xFFFF_FFFF) or 0
    if not name:
        if name is not None:
            row.error("name", "the name is empty; name the device")
        return None
    # A table that gives no host address means the same one; positional rows always give both.
    device = PassThroughDeviceConfig(
        name, base_gpa, base_gpa if base_hpa is None else base_hpa, length, irq_id
    )
    if device.is_device_tree_path():
        return device
    claim = _Claim.of_passthrough(device, row.path)
    if _check_claim(row, claim, "length"):
        if device.base_hpa + length > U64_MAX + 1:
            row.error(
                "base_hpa", f"{_show(device.base_hpa)} + {_show(length)} leaves the host's address space"
            )
        claims.append(claim)
    return device


def _read_address(row: _Table, claims: list[_Claim]) -> PassThroughAddressConfig | None:
    base = row.integer("base_gpa", example="0x0")
    length = row.integer("length", example="0x1000")
    if base is None or length is None:
        return None
    claim = _Claim("mmio", base, length, "passthrough", f"addresses {_span(base, length)}", row.path)
    if _check_claim(row, claim, "length"):
        claims.append(claim)
    return PassThroughAddressConfig(base, length)


def _read_ports(row: _Table, claims: list[_Claim]) -> PassThroughPortConfig | None:
    base = row.integer("base", example="0x6000")
    length = row.integer("length", example="0x80")
    if base is None or length is None:
        return None
    claim = _Claim("port", base, length, "ports", f"ports {_span(base, length)}", row.path)
    if _check_claim(row, claim, "length"):
        claims.append(claim)
    return PassThroughPortConfig(base, length)


def _read_virtual(
    problems: _Problems, element: object, path: KeyPath, claims: list[_Claim]
) -> VirtualDeviceConfig | None:
    """One [[devices.virtual]] table; resources stand beside `model` or in a sub-table `resources`."""
    if not isinstance(element, dict):
        problems.error(path, f"{_show(element)} is no table; write [[devices.virtual]]")
        return None
    table = _Table(problems, element, path)
    model = table.text("model", example='"uart16550"')
    name = table.text("name")
    options = table.get("options", dict, "a table")
    resources = table
    if (inner := table.get("resources", dict, "a table")) is not None:
        resources = _Table(problems, inner, (*path, "resources"))
    mmio = _read_windows(resources, "mmio")
    ports = _read_windows(resources, "ports")
    irq = resources.integer("irq", high=0xFFFF_FFFF) or 0
    if resources is not table:
        resources.finish()
    table.finish()
    if not model:
        if model is not None:
            table.error("model", "the model is empty; name a device model")
        return None
    who = f"device {_show(name or model)}"
    for space, windows in (("mmio", mmio), ("port", ports)):
        for place, (base, length) in windows:
            claim = _Claim(space, base, length, "emulated", f"{who} {_span(base, length)}", place)
            if claim.fits(problems):
                claims.append(claim)
    return VirtualDeviceConfig(
        model,
        name or model,
        tuple(window for _, window in mmio),
        tuple(window for _, window in ports),
        irq,
        options or {},
    )


def _read_windows(table: _Table, key: str) -> list[tuple[KeyPath, tuple[int, int]]]:
    """`[base, length]`, `{base, length}`, or a list of these."""
    table.known.append(key)
    value = table.data.get(key)
    if value is None:
        return []
    place = table.place(key)
    single = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], int))
    elements = [(place, value)] if single else table.rows(key)
    windows = []
    for path, element in elements:
        row = _Table.from_row(table.problems, element, path, ("base", "length"))
        if row is not None:
            base, length = row.integer("base", example="0x3f8"), row.integer("length", example="8")
            row.finish()
            if base is not None and length is not None:
                windows.append((path, (base, length)))
    return windows


def _report_lines(
    emulated: list[tuple[KeyPath, EmulatedDeviceConfig]],
    passthrough: list[tuple[KeyPath, PassThroughDeviceConfig]],
    virtual: list[VirtualDeviceConfig],
    table: _Table,
) -> None:
    """One interrupt line, one emulated owner. Line 0 means none, or the chip's usual line.

    Passthrough rows share lines freely: axvisor's own files give three devices line 1. Next to an emulated
    device such a line deserves a warning.
    """
    problems = table.problems
    owners: dict[int, tuple[str, KeyPath]] = {}
    claims = [(row.irq_id, row.name, path) for path, row in emulated]
    claims += [(row.irq, row.name, (*table.path, "virtual", index)) for index, row in enumerate(virtual)]
    for line, name, path in claims:
        if line and line in owners:
            other, place = owners[line]
            message = (
                f"{_show(name)} wants interrupt line {line} of {_show(other)} "
                f"({_where(problems, place)}); give one of them another line"
            )
            problems.error(path, message)
        owners.setdefault(line, (name, path))
    for path, row in passthrough:
        if row.irq_id and row.irq_id in owners:
            other, _ = owners[row.irq_id]
            message = f"{_show(row.name)} shares interrupt line {row.irq_id} with emulated {_show(other)}"
            problems.warn(path, message)


def _report_ivc(emulated: list[tuple[KeyPath, EmulatedDeviceConfig]], table: _Table) -> None:
    """An IVC range is whole pages, and a VM has one."""
    first: EmulatedDeviceConfig | None = None
    for path, row in emulated:
        if row.emu_type is not EmulatedDeviceType.IVCChannel:
            continue
        if row.length == 0 or row.base_gpa % PAGE_SIZE or row.length % PAGE_SIZE:
            message = (
                f"IVC range {row.base_gpa:#x} + {row.length:#x} is not whole pages; use multiples of 0x1000"
            )
            table.problems.error(path, message)
        if first is not None:
            message = (
                f"{_show(row.name)} is ignored: {_show(first.name)} holds the VM's IVC range; remove one"
            )
            table.problems.warn(path, message)
        first = first or row


# --- conflicts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Claim:
    """A range that a row of the file takes: `length` addresses of `space` ("mmio" or "port") from `start`.

    `shift` is host address minus guest address of a passthrough range.
    """

    space: str
    start: int
    length: int
    kind: str
    who: str
    path: KeyPath
    shift: int = 0
    map_type: VmMemMappingType | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @classmethod
    def of_ram(cls, region: VmMemConfig, path: KeyPath) -> _Claim:
        who = f"RAM {_span(region.gpa, region.size)}"
        return cls("mmio", region.gpa, region.size, "ram", who, path, map_type=region.map_type)

    @classmethod
    def of_emulated(cls, device: EmulatedDeviceConfig, path: KeyPath) -> _Claim:
        end = device.base_gpa + device.length
        on_ports = device.emu_type not in _MMIO_TYPES and end <= PORT_SPACE
        space = "port" if on_ports or device.emu_type is EmulatedDeviceType.X86Pit else "mmio"
        who = f"emulated device {_show(device.name)} {_span(device.base_gpa, device.length)}"
        return cls(space, device.base_gpa, device.length, "emulated", who, path)

    @classmethod
    def of_passthrough(cls, device: PassThroughDeviceConfig, path: KeyPath) -> _Claim:
        who = f"passthrough device {_show(device.name)}"
        if device.length:
            who += f" {_span(device.base_gpa, device.length)}"
        shift = device.base_hpa - device.base_gpa
        return cls("mmio", device.base_gpa, device.length, "passthrough", who, path, shift)

    def limit(self) -> int:
        return PORT_SPACE if self.space == "port" else VM_ASPACE_SIZE

    def misfit(self) -> str:
        """What is wrong with the range by itself; empty if nothing is."""
        if self.length == 0:
            return "a length of 0 covers nothing; give the length of the range"
        if self.end > self.limit():
            space = "the 65536 ports" if self.space == "port" else "the guest's address space"
            return f"{_span(self.start, self.length)} leaves {space}; end below {self.limit():#x}"
        return ""

    def fits(self, problems: _Problems) -> bool:
        text = self.misfit()
        if text:
            problems.error(self.path, text)
        return not text

    def tolerates(self, other: _Claim) -> bool:
        """Whether two overlapping ranges do not contradict each other.

        Boot scratch: a MapAlloc region wholly inside a MapIdentical one is that RAM under a second name, as
        axvm's linux-smp1 has it. Passthrough ranges merge as long as they lead to the same host addresses.
        """
        if self.kind == other.kind == "passthrough":
            return self.shift == other.shift
        return _is_scratch(self, other) or _is_scratch(other, self)


def _is_scratch(inner: _Claim, outer: _Claim) -> bool:
    return (
        inner.map_type is VmMemMappingType.MapAlloc
        and outer.map_type is VmMemMappingType.MapIdentical
        and outer.start <= inner.start
        and inner.end <= outer.end
    )


def _check_claim(row: _Table, claim: _Claim, key: str) -> bool:
    """Whether the range is sound by itself; if not, the error is put at `key`."""
    text = claim.misfit()
    if text:
        row.error(key, text)
    return not text


def _overlaps(claims: Iterable[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs of ranges that contradict each other: few for each range, and none only if there is no conflict.

    Ranges are taken by start; each is held against the one that reaches furthest so far. RAM that is boot
    scratch of other RAM is also held against other scratch.
    """
    groups: dict[str, list[_Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.space, []).append(claim)
    for group in groups.values():
        furthest: _Claim | None = None
        scratch: _Claim | None = None
        for claim in sorted(group, key=lambda each: (each.start, -each.end)):
            if furthest is not None and claim.start < furthest.end:
                if not claim.tolerates(furthest):
                    yield furthest, claim
                elif claim.kind == "ram":
                    inner = claim if claim.map_type is VmMemMappingType.MapAlloc else furthest
                    if scratch is not None and inner.start < scratch.end:
                        yield scratch, inner
                    scratch = inner
            if furthest is None or claim.end > furthest.end:
                furthest = claim


def _where(problems: _Problems, path: KeyPath) -> str:
    line = problems.line_of(path)
    return f"{_dotted(path)}, line {line}" if line else _dotted(path)


def _report_overlaps(claims: list[_Claim], problems: _Problems) -> None:
    order = {claim.path: number for number, claim in enumerate(claims)}
    for one, other in _overlaps(claims):
        first, second = (one, other) if order[one.path] < order[other.path] else (other, one)
        message = (
            f"{second.who} overlaps {first.who} ({_where(problems, first.path)}); move or shrink one of them"
        )
        problems.error(second.path, message)


# --- [pysim] ------------------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes of a size such as "128M", "64 KiB", "0x1000" or "4096"; K, M and G count in 1024s.

    Raises ValueError with one sentence.
    """
    found = _SIZE.fullmatch(text) if len(text) <= SHOWN_MAX else None
    if found is None:
        raise ValueError(f'{_show(text)} is no size; write a number with K, M or G, such as "128M"')
    return (
        int(found[1].replace("_", ""), 0 if found[1][:2] in ("0x", "0X") else 10)
        * _SIZE_UNITS[(found[2] or "").lower()]
    )


def _read_size(table: _Table, key: str, low: int, high: int) -> int | None:
    """A number of bytes, or a string such as "128M"."""
    value = table.data.get(key)
    if isinstance(value, str):
        table.known.append(key)
        try:
            value = parse_size(value)
        except ValueError as error:
            table.error(key, str(error))
            return None
    else:
        value = table.get(key, int, 'a size such as "128M"')
    if value is not None and not low <= value <= high:
        table.error(key, f"{_show(value)} bytes are out of range; give {_show(low)} to {_show(high)}")
        return None
    return value


def _read_pysim(table: _Table) -> PysimConfig:
    memory = _read_size(table, "memory", PAGE_SIZE, RAM_MAX)
    if memory is not None and memory % PAGE_SIZE:
        table.error("memory", f"{_show(memory)} is no multiple of {PAGE_SIZE:#x}; RAM is whole pages")
        memory = None
    given = {
        "memory": memory,
        "platform": table.word("platform", PLATFORMS),
        "missing_device": table.word("missing_device", MISSING_POLICIES),
        "ns_per_instruction": table.integer("ns_per_instruction", 1, NS_PER_INSTRUCTION_MAX),
        "tsc_hz": table.integer("tsc_hz", 1, TSC_HZ_MAX),
        "engine": _read_engine(table),
        "seed": table.integer("seed"),
        "cpu_features": _read_cpu_features(table),
        "budget_instructions": table.integer("budget_instructions", 1, BUDGET_UNLIMITED),
        "output_limit": _read_size(table, "output_limit", 0, RAM_MAX),
        "rtc_start": _read_date(table, "rtc_start"),
        "exit_on_triple_fault": table.boolean("exit_on_triple_fault"),
        "vga": table.boolean("vga"),
        "debug_exit_port": table.integer("debug_exit_port", 0, PORT_SPACE - DEBUG_EXIT_PORT_COUNT),
    }
    return PysimConfig(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def _read_engine(table: _Table) -> str | None:
    if table.data.get("engine") in ENGINES_RESERVED:
        table.known.append("engine")
        table.error("engine", f'{_show(table.data["engine"])} is not available yet; use "{ENGINES[0]}"')
        return None
    return table.word("engine", ENGINES)


def _read_cpu_features(table: _Table) -> tuple[str, ...] | None:
    """A level, or a list of changes that may name a level; the CPU itself says which features it has."""
    key = "cpu_features"
    value = table.data.get(key)
    if isinstance(value, str):
        table.known.append(key)
        words: tuple[str, ...] = (value,)
    elif isinstance(value, tuple):  # keywords of Python code
        table.known.append(key)
        words = value
    else:
        rows = table.rows(key)
        if not rows:
            return None
        words = tuple(element for _, element in rows)
    changes: list[str] = []
    for index, word in enumerate(words):
        place = table.place(key) if isinstance(value, str) else (*table.place(key), index)
        if not isinstance(word, str) or len(word) > SHOWN_MAX:
            table.problems.error(place, f'{_show(word)} is no CPU feature; write "+name", "-name" or a level')
            continue
        if word[:1] not in ("+", "-") and word not in CPU_LEVELS:
            levels = ", ".join(CPU_LEVELS)
            message = f'{_show(word)} is no CPU level ({levels}); write "+name" or "-name" for a feature'
            table.problems.error(place, message, _nearest(word, CPU_LEVELS))
            continue
        changes += CPU_LEVELS.get(word, (word,))
    try:
        feature_set(changes)
    except UnknownFeature as error:
        table.error(key, str(error))
    return tuple(changes)


def _read_date(table: _Table, key: str) -> datetime | None:
    """A TOML date or date-time, or an ISO 8601 string; without an offset it is UTC."""
    table.known.append(key)
    value = table.data.get(key)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            message = f'{_show(value)} is no date; write it as "2026-01-01T00:00:00"'
            table.error(key, message)
            return None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if value is None:
        return None
    if not isinstance(value, datetime):
        table.error(key, f"{_show(value)} is {_kind_of(value)}; write a date such as 2026-01-01T00:00:00")
        return None
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        table.error(key, f"{_show(value)} leaves the years 1 to 9999; choose another date")
        return None


# --- writing ------------------------------------------------------------------------------------------------


def _toml_string(text: str) -> str:
    """A TOML basic string."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return (
        '"'
        + "".join(
            escapes.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char)
            for char in text
        )
        + '"'
    )


def _toml_value(value: object) -> str:
    """A value of the configuration as TOML; addresses and sizes of a page and more in hexadecimal."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value:#x}" if value >= PAGE_SIZE else str(int(value))
        case str():
            return _toml_string(value)
        case datetime() | date() | time():
            return value.isoformat()
        case float():
            return repr(value)
        case Mapping():
            return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
        case Sequence():
            return "[" + ", ".join(map(_toml_value, value)) + "]"
        case _:
            raise InvalidInput(
                f"{type(value).__name__} has no TOML form; use numbers, strings, lists and tables"
            )


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_table(name: str, pairs: Iterable[tuple[str, object]]) -> list[str]:
    """A table; absent values (None) are left out, lists of rows take one line a row."""
    lines = [name]
    for key, value in pairs:
        if value is None:
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], tuple):
            lines += [f"{key} = [", *(f"    {_toml_value(row)}," for row in value), "]"]
        else:
            lines.append(f"{key} = {_toml_value(value)}")
    return [*lines, ""]


def _plain(row: Any) -> tuple[object, ...]:
    """A row dataclass in its positional form."""
    return tuple(getattr(row, each.name) for each in fields(row))


def _write_crate(crate: AxVMCrateConfig) -> str:
    base, kernel, devices = crate.base, crate.kernel, crate.devices
    has_pysim = crate.pysim != PysimConfig() or kernel.entry_point is None or kernel.kernel_load_addr is None
    lines = _toml_table("[base]", ((each.name, getattr(base, each.name)) for each in fields(base)))
    kernel_pairs = [
        (each.name, getattr(kernel, each.name)) for each in fields(kernel) if each.name != "memory_regions"
    ]
    regions = tuple(_plain(region) for region in kernel.memory_regions)
    lines += _toml_table("[kernel]", [*kernel_pairs, ("memory_regions", regions)])
    lines += _toml_table(
        "[devices]",
        (
            ("emu_devices", tuple(_plain(row) for row in devices.emu_devices)),
            ("passthrough_devices", tuple(_plain(row) for row in devices.passthrough_devices)),
            ("interrupt_mode", devices.interrupt_mode),
            ("excluded_devices", devices.excluded_devices or None),
            ("passthrough_addresses", tuple(_plain(row) for row in devices.passthrough_addresses) or None),
            ("passthrough_ports", tuple(_plain(row) for row in devices.passthrough_ports) or None),
            ("address_space_policy", devices.address_space_policy),
        ),
    )
    for device in devices.virtual:
        pairs = [(each.name, getattr(device, each.name) or None) for each in fields(device)]
        lines += _toml_table("[[devices.virtual]]", pairs)
    if has_pysim:
        usual = PysimConfig()
        changed = [
            (each.name, getattr(crate.pysim, each.name))
            for each in fields(PysimConfig)
            if getattr(crate.pysim, each.name) != getattr(usual, each.name)
        ]
        lines += _toml_table("[pysim]", changed)
    return "\n".join(lines)


# --- AxVMConfig ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AxVCpuConfig:
    """Where vCPUs start: guest-physical addresses of the first instruction of vCPU 0 and of the others."""

    bsp_entry: int = 0
    ap_entry: int = 0


@dataclass(slots=True)
class VMImageConfig:
    """Where images go: guest-physical addresses; None for an image that is not there, or places itself."""

    kernel_load_gpa: int | None = None
    bios_load_gpa: int | None = None
    dtb_load_gpa: int | None = None
    ramdisk_load_gpa: int | None = None


@dataclass(slots=True)
class PhysCpuList:
    """The vCPUs and the host CPUs meant for them: ids they show, and affinity masks."""

    cpu_num: int = 1
    phys_cpu_ids: tuple[int, ...] | None = None
    phys_cpu_sets: tuple[int, ...] | None = None

    def get_vcpu_affinities_pcpu_ids(self) -> list[tuple[int, int | None, int]]:
        """For each vCPU: its id, its mask or None, and its physical id, which defaults to the vCPU's id."""
        ids = self.phys_cpu_ids or ()
        sets = self.phys_cpu_sets or ()
        return [
            (
                vcpu_id,
                sets[vcpu_id] if vcpu_id < len(sets) else None,
                ids[vcpu_id] if vcpu_id < len(ids) else vcpu_id,
            )
            for vcpu_id in range(self.cpu_num)
        ]


BIOS_ROOM: Final = 2 * MIB  # axvisor leaves this much below a relocated kernel when a BIOS exists


class AxVMConfig:
    """What a VM is made from: axvm's AxVMConfig, the union of its generations, and our `pysim` settings.

    The methods bear axvm's names. `crate` is the file it came from, or None. Rows are immutable; the lists
    change through the methods, which refuse a conflict and name both owners.
    """

    def __init__(
        self,
        vm_id: int = 1,
        name: str = "vm",
        *,
        vm_type: VMType = VMType.VMTRTOS,
        phys_cpu_ls: PhysCpuList | None = None,
        cpu_config: AxVCpuConfig | None = None,
        image_config: VMImageConfig | None = None,
        memory_regions: Iterable[VmMemConfig] = (),
        emu_devices: Iterable[EmulatedDeviceConfig] = (),
        virtual_devices: Iterable[VirtualDeviceConfig] = (),
        pass_through_devices: Iterable[PassThroughDeviceConfig] = (),
        pass_through_addresses: Iterable[PassThroughAddressConfig] = (),
        pass_through_ports: Iterable[PassThroughPortConfig] = (),
        excluded_devices: Iterable[tuple[str, ...]] = (),
        reserved_address_ranges: Iterable[GuestPhysAddrRange] = (),
        spi_list: Iterable[int] = (),
        interrupt_mode: VMInterruptMode = VMInterruptMode.NoIrq,
        address_space_policy: AddressSpacePolicy = AddressSpacePolicy.Virtualized,
        boot_policy: BootPolicy = BootPolicy.KeepConfigured,
        pysim: PysimConfig | None = None,
        crate: AxVMCrateConfig | None = None,
    ) -> None:
        self._id = vm_id
        self._name = name
        self._vm_type = vm_type
        self._phys_cpu_ls = phys_cpu_ls or PhysCpuList()
        self._cpu_config = cpu_config or AxVCpuConfig()
        self._image_config = image_config or VMImageConfig()
        self._memory_regions = list(memory_regions)
        self._emu_devices = list(emu_devices)
        self._virtual_devices = list(virtual_devices)
        self._pass_through_devices = list(pass_through_devices)
        self._pass_through_addresses = list(pass_through_addresses)
        self._pass_through_ports = list(pass_through_ports)
        self._excluded_devices = list(excluded_devices)
        self._reserved_address_ranges = list(reserved_address_ranges)
        self._spi_list = list(spi_list)
        self._interrupt_mode = interrupt_mode
        self._address_space_policy = address_space_policy
        self._boot_policy = boot_policy
        self.pysim = pysim or PysimConfig()
        self.crate = crate

    # --- making ---

    @classmethod
    def from_crate(cls, crate: AxVMCrateConfig, *, arch: str = "x86_64") -> AxVMConfig:
        """The conversion that axvm does. Without an entry point vCPUs start at 0 until a loader says more.

        On x86-64 the kernel stays where the file puts it; elsewhere it follows an identical first region.
        """
        base, kernel, devices = crate.base, crate.kernel, crate.devices
        entry = GuestPhysAddr(kernel.entry_point or 0)
        return cls(
            base.id,
            base.name,
            vm_type=base.vm_type,
            phys_cpu_ls=PhysCpuList(base.cpu_num, base.phys_cpu_ids, base.phys_cpu_sets),
            cpu_config=AxVCpuConfig(entry, entry),
            image_config=VMImageConfig(
                _address(kernel.kernel_load_addr),
                _address(kernel.bios_load_addr),
                _address(kernel.dtb_load_addr),
                _address(kernel.ramdisk_load_addr),
            ),
            memory_regions=crate.ram_regions(),
            emu_devices=devices.emu_devices,
            virtual_devices=devices.virtual,
            pass_through_devices=devices.passthrough_devices,
            pass_through_addresses=devices.passthrough_addresses,
            pass_through_ports=devices.passthrough_ports,
            excluded_devices=devices.excluded_devices,
            interrupt_mode=devices.interrupt_mode,
            address_space_policy=devices.address_space_policy,
            boot_policy=(
                BootPolicy.KeepConfigured if arch == "x86_64" else BootPolicy.AdjustKernelForBootProtocol
            ),
            pysim=crate.pysim,
            crate=crate,
        )

    @classmethod
    def of(cls, config: AxVMConfig | AxVMCrateConfig) -> AxVMConfig:
        """Either kind of configuration as an AxVMConfig."""
        return config if isinstance(config, AxVMConfig) else cls.from_crate(config)

    @classmethod
    def from_toml(cls, text: str, source: str = "<string>") -> AxVMConfig:
        """`AxVMCrateConfig.from_toml`, converted."""
        return cls.from_crate(AxVMCrateConfig.from_toml(text, source))

    @classmethod
    def from_file(cls, path: str | Path) -> AxVMConfig:
        """`AxVMCrateConfig.from_file`, converted."""
        return cls.from_crate(AxVMCrateConfig.from_file(path))

    @classmethod
    def for_code(cls, memory: int | str = "2M", **pysim: Any) -> AxVMConfig:
        """A VM with `memory` of RAM from address 0 and nothing else; `pysim` are keys of the [pysim] table.

        Raises ConfigError for a size or a key that a file could not have either.
        """
        settings = PysimConfig.from_keywords({"memory": memory, **pysim})
        return cls(1, "code", memory_regions=settings.ram_regions(), pysim=settings)

    # --- identity and CPUs ---

    def id(self) -> int:
        """The VM's id."""
        return self._id

    def name(self) -> str:
        """The VM's name."""
        return self._name

    def vm_type(self) -> VMType:
        """What kind of guest it is."""
        return self._vm_type

    def cpu_num(self) -> int:
        """Number of vCPUs."""
        return self._phys_cpu_ls.cpu_num

    def phys_cpu_ls(self) -> PhysCpuList:
        """vCPUs, their physical ids and affinities."""
        return self._phys_cpu_ls

    def phys_cpu_ls_mut(self) -> PhysCpuList:
        """The same list, to be changed in place."""
        return self._phys_cpu_ls

    def get_vcpu_affinities_pcpu_ids(self) -> list[tuple[int, int | None, int]]:
        """For each vCPU: its id, its mask or None, and its physical id, which defaults to the vCPU's id."""
        return self._phys_cpu_ls.get_vcpu_affinities_pcpu_ids()

    def phys_affinity(self, vcpu_id: int) -> tuple[int, int | None]:
        """Physical id and mask (or None) of one vCPU; AxError(InvalidInput) if there is no such vCPU."""
        if not 0 <= vcpu_id < self.cpu_num():
            raise InvalidInput(f"VM[{self._id}] has no vCPU[{vcpu_id}]; it has {self.cpu_num()}")
        _, mask, phys_id = self.get_vcpu_affinities_pcpu_ids()[vcpu_id]
        return phys_id, mask

    def set_guest_cpu_sets(self, sets: Iterable[int]) -> None:
        """Replace the affinity masks, one a vCPU; AxError(InvalidInput) if they are too many or empty."""
        masks = tuple(sets)
        if len(masks) > self.cpu_num():
            raise InvalidInput(
                f"VM[{self._id}]: {len(masks)} masks for {self.cpu_num()} vCPUs; give one each"
            )
        for vcpu_id, mask in enumerate(masks):
            if not 0 < mask <= U64_MAX:
                raise InvalidInput(
                    f"VM[{self._id}] vCPU[{vcpu_id}]: mask {mask:#x} names no CPU below 64; set a bit"
                )
        self._phys_cpu_ls.phys_cpu_sets = tuple(CpuMask(mask) for mask in masks)

    # --- images and entries ---

    def image_config(self) -> VMImageConfig:
        """Load addresses; may be changed in place."""
        return self._image_config

    def cpu_config(self) -> AxVCpuConfig:
        """Entry points; may be changed in place."""
        return self._cpu_config

    def bsp_entry(self) -> int:
        """Where vCPU 0 starts."""
        return self._cpu_config.bsp_entry

    def ap_entry(self) -> int:
        """Where the other vCPUs start."""
        return self._cpu_config.ap_entry

    def boot_policy(self) -> BootPolicy:
        """Whether `relocate_kernel_image` may move the kernel."""
        return self._boot_policy

    def set_boot_policy(self, policy: BootPolicy) -> None:
        """Replace the boot policy."""
        self._boot_policy = policy

    def relocate_kernel_image(self) -> bool:
        """Let kernel and entry follow the first region, if that is identical; whether anything changed.

        As axvisor does it: kernel and entries go to the region's base, 2 MiB above it when a BIOS exists.
        Under BootPolicy.KeepConfigured nothing moves.
        """
        if self._boot_policy is BootPolicy.KeepConfigured or not self._memory_regions:
            return False
        region = self._memory_regions[0]
        if region.map_type is not VmMemMappingType.MapIdentical:
            return False
        address = GuestPhysAddr(region.gpa + (0 if self._image_config.bios_load_gpa is None else BIOS_ROOM))
        before = (self._image_config.kernel_load_gpa, self.bsp_entry(), self.ap_entry())
        self._image_config.kernel_load_gpa = address
        self._cpu_config.bsp_entry = self._cpu_config.ap_entry = address
        return before != (address, address, address)

    # --- memory ---

    def memory_regions(self) -> tuple[VmMemConfig, ...]:
        """The configured regions in the order of the file, boot scratch and DEVICE regions included."""
        return tuple(self._memory_regions)

    def memory_size(self) -> int:
        """Bytes of RAM: the regions without DEVICE, what lies in two of them counted once."""
        total = reached = 0
        for region in sorted(self._memory_regions, key=lambda each: each.gpa):
            if not region.is_device():
                total += max(0, region.end - max(reached, region.gpa))
                reached = max(reached, region.end)
        return total

    def add_memory_region(self, region: VmMemConfig) -> None:
        """One more region of RAM; ResourceConflict if it overlaps something, InvalidInput if it cannot be."""
        who = f"VM[{self._id}] memory region {region.gpa:#x} + {region.size:#x}"
        if region.size <= 0 or region.gpa < 0 or region.gpa % PAGE_SIZE or region.size % PAGE_SIZE:
            raise InvalidInput(f"{who} is not whole pages; use multiples of {PAGE_SIZE:#x}")
        if region.end > VM_ASPACE_SIZE:
            raise InvalidInput(f"{who} leaves the guest's address space; end below {VM_ASPACE_SIZE:#x}")
        if region.flags & ~MAPPING_FLAGS_ALL:
            raise InvalidInput(f"{who}: illegal flags {region.flags:#x}; 0x7 is read, write, execute")
        self._refuse_conflict(_Claim.of_ram(region, ()))
        self._memory_regions.append(region)

    def contains_memory_range(self, wanted: GuestPhysAddrRange) -> bool:
        """Whether one region of RAM holds the whole range."""
        return any(
            region.gpa <= wanted.start and wanted.end <= region.end
            for region in self._memory_regions
            if not region.is_device()
        )

    def reserved_address_ranges(self) -> tuple[GuestPhysAddrRange, ...]:
        """Guest-physical ranges that nothing may be mapped at."""
        return tuple(self._reserved_address_ranges)

    def add_reserved_address_range(self, reserved: GuestPhysAddrRange) -> None:
        """Keep a range free of passthrough."""
        self._reserved_address_ranges.append(reserved)

    # --- devices ---

    def emu_devices(self) -> tuple[EmulatedDeviceConfig, ...]:
        """The rows of emu_devices."""
        return tuple(self._emu_devices)

    def virtual_devices(self) -> tuple[VirtualDeviceConfig, ...]:
        """The [[devices.virtual]] tables."""
        return tuple(self._virtual_devices)

    def pass_through_devices(self) -> tuple[PassThroughDeviceConfig, ...]:
        """The rows of passthrough_devices."""
        return tuple(self._pass_through_devices)

    def add_pass_through_device(self, device: PassThroughDeviceConfig) -> None:
        """One more device; ResourceConflict if it overlaps something, InvalidInput if it cannot be."""
        if not device.is_device_tree_path():
            claim = _Claim.of_passthrough(device, ())
            if device.base_gpa < 0 or device.length < 0 or claim.misfit():
                reason = claim.misfit() or "negative numbers are no addresses; correct them"
                raise InvalidInput(f"VM[{self._id}] passthrough device {_show(device.name)}: {reason}")
            self._refuse_conflict(claim)
        self._pass_through_devices.append(device)

    def remove_pass_through_device(self, device: PassThroughDeviceConfig) -> bool:
        """Drop every row equal to `device` and keep the rest; whether there was one.

        axvm 0.2 keeps what it should drop: its `retain` is inverted.
        """
        kept = [each for each in self._pass_through_devices if each != device]
        found = len(kept) < len(self._pass_through_devices)
        self._pass_through_devices = kept
        return found

    def clear_pass_through_devices(self) -> None:
        """Drop all rows of passthrough_devices."""
        self._pass_through_devices.clear()

    def pass_through_addresses(self) -> tuple[PassThroughAddressConfig, ...]:
        """The rows of passthrough_addresses."""
        return tuple(self._pass_through_addresses)

    def pass_through_ports(self) -> tuple[PassThroughPortConfig, ...]:
        """The rows of passthrough_ports."""
        return tuple(self._pass_through_ports)

    def excluded_devices(self) -> tuple[tuple[str, ...], ...]:
        """Device-tree paths that are not passed through."""
        return tuple(self._excluded_devices)

    def add_pass_through_spi(self, spi: int) -> None:
        """Give the guest a shared peripheral interrupt (ARM's GIC); once is enough."""
        if spi not in self._spi_list:
            self._spi_list.append(spi)

    def pass_through_spis(self) -> tuple[int, ...]:
        """The SPIs given to the guest."""
        return tuple(self._spi_list)

    def interrupt_mode(self) -> VMInterruptMode:
        """Who delivers interrupts."""
        return self._interrupt_mode

    def address_space_policy(self) -> AddressSpacePolicy:
        """Whether only listed ranges are mapped."""
        return self._address_space_policy

    def _refuse_conflict(self, claim: _Claim) -> None:
        """ResourceConflict if `claim` contradicts what the configuration holds."""
        held = [_Claim.of_ram(region, ()) for region in self._memory_regions if not region.is_device()]
        held += [_Claim.of_emulated(device, ()) for device in self._emu_devices if device.length]
        held += [_Claim.of_passthrough(device, ()) for device in self._pass_through_devices if device.length]
        for row in self._pass_through_addresses:
            who = f"passthrough addresses {_span(row.base_gpa, row.length)}"
            held.append(_Claim("mmio", row.base_gpa, row.length, "passthrough", who, ()))
        for device in self._virtual_devices:
            for base, length in device.mmio:
                who = f"device {_show(device.name)} {_span(base, length)}"
                held.append(_Claim("mmio", base, length, "emulated", who, ()))
        for reserved in self._reserved_address_ranges:
            who = f"reserved range {_span(reserved.base, reserved.length)}"
            held.append(_Claim("mmio", reserved.base, reserved.length, "reserved", who, ()))
        for other in held:
            apart = claim.end <= other.start or other.end <= claim.start
            if other.space == claim.space and not apart and not claim.tolerates(other):
                raise ResourceConflict(
                    f"VM[{self._id}]: {claim.who} overlaps {other.who}; move or shrink one of them"
                )

    def __repr__(self) -> str:
        return f"AxVMConfig(id={self._id}, name={self._name!r}, {self.cpu_num()} vCPU)"


def _address(value: int | None) -> GuestPhysAddr | None:
    return None if value is None else GuestPhysAddr(value)


# --- axvmconfig's command line ------------------------------------------------------------------------------


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


def parse_number(text: str) -> int:
    """An integer in decimal, or in 0x, 0o or 0b form, with underscores; ValueError with one sentence."""
    try:
        if len(text) > SHOWN_MAX:
            raise ValueError
        return int(text.strip(), 0)
    except ValueError:
        raise ValueError(f"{_show(text)} is no number; write 32768, 0x8000 or 0b1000") from None


def generate(
    *,
    arch: str = "x86_64",
    id: int | str = 0,
    name: str = "guest",
    vm_type: int | str = 0,
    cpu_num: int | str = 1,
    entry: int | str = AXVM_BIOS,
    kernel_path: str = "kernel.bin",
    load_addr: int | str = AXVM_KERNEL,
    image_location: str = "fs",
    cmdline: str | None = None,
) -> str:
    """The TOML text that `axvmconfig generate` stands for: one VM with 16 MiB of RAM or more, no devices.

    Numbers may be given as text in any base. RAM starts at 0 on x86-64 and at the 16 MiB boundary below the
    load address elsewhere; it reaches at least 16 MiB above the load address. Raises ConfigError (or
    ValueError for a number that is none) if the result would not be a valid configuration.
    """
    numbers = {
        key: parse_number(value) if isinstance(value, str) else value
        for key, value in (
            ("id", id),
            ("vm_type", vm_type),
            ("cpu_num", cpu_num),
            ("entry_point", entry),
            ("kernel_load_addr", load_addr),
        )
    }
    step = 16 * MIB
    load = max(0, numbers["kernel_load_addr"])
    start = 0 if arch == "x86_64" else load // step * step
    size = max(step, -(-(load + step - start) // step) * step)
    lines = _toml_table(
        "[base]",
        (
            ("id", numbers["id"]),
            ("name", name),
            ("vm_type", numbers["vm_type"]),
            ("cpu_num", numbers["cpu_num"]),
        ),
    )
    lines += _toml_table(
        "[kernel]",
        (
            ("entry_point", numbers["entry_point"]),
            ("kernel_path", kernel_path),
            ("kernel_load_addr", numbers["kernel_load_addr"]),
            ("image_location", image_location),
            ("cmdline", cmdline),
            ("memory_regions", ((start, size, 7, 0),)),
        ),
    )
    lines += _toml_table("[devices]", (("emu_devices", ()), ("passthrough_devices", ())))
    text = "\n".join(lines)
    AxVMCrateConfig.from_toml(text, "generated configuration", arch=arch)
    return text
