"""The jobs file of a sweep: guests, configurations, seeds and budgets, read from TOML. It runs nothing.

A mistake is one sentence with its line, and all of them are found in one reading, as for a machine's
configuration. `SweepPlan` numbers the jobs: the last seed of the first configuration of the first guest comes
before the first seed of its second configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pysim_vm import __version__
from pysim_vm.cli.machine import DEFAULT_MEMORY, EngineOptions, MachineOptions
from pysim_vm.cli.run import RunOptions
from pysim_vm.config import AxVMCrateConfig, parse_number, parse_size
from pysim_vm.config.problems import Problems, dotted, kind_of, nearest, show
from pysim_vm.config.pysim import RAM_MAX, read_pysim
from pysim_vm.config.table import U64_MAX, Table, parse_toml, read_file
from pysim_vm.errors import AxError, AxErrorKind, ConfigError
from pysim_vm.layout import KIB, MIB
from pysim_vm.sweep.job import ASM_ORIGIN, GuestFile, Job, Limits, file_digest, job_name

JOBS_MAX: Final = 1_000_000
FORMAT: Final = 1  # of the results; another number is another sweep
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
KINDS: Final = ("image", "config", "asm", "demo")
SECONDS_MAX: Final = 1_000_000.0  # eleven days
PROTOCOLS: Final = ("flat", "boot-sector", "elf", "multiboot", "axvm-multiboot", "linux", "pvh", "firmware")
MODES: Final = ("real", "protected", "long")
KEYS: Final = ("serial", "ps2")

# Keys of a configuration. The first two groups are what `run` has under the same name, of the [pysim] table
# and otherwise; a guest may have all of them as well.
PYSIM_KEYS: Final = (
    "memory", "platform", "missing_device", "ns_per_instruction", "cpu_features",
)  # fmt: skip
ENGINE_KEYS: Final = ("engine", "exit_path", "translation_cache")
BOOT_KEYS: Final = ("append", "initrd")
# Keys of a guest alone: what its image is, and what is typed into it
IMAGE_KEYS: Final = (
    "load_address", "entry", "mode", "protocol", "symbols", "disks", "roms", "modules",
)  # fmt: skip
ASM_KEYS: Final = ("load_address", "entry", "mode")
SCRIPT_KEYS: Final = ("type", "after", "input", "keys", "stop_on")


class SweepError(AxError):
    """A sweep cannot go on, or its files cannot be used: one sentence with what to do."""

    def __init__(self, message: str, kind: AxErrorKind = AxErrorKind.InvalidData) -> None:
        super().__init__(kind, message)


@dataclass(frozen=True, slots=True)
class Guest:
    """One table of [guests]: `options` are MachineOptions and EngineOptions by name, `script` is of
    RunOptions, `paths` the host files among them as the file names them."""

    name: str
    kind: str
    path: str
    options: Mapping[str, Any]
    script: Mapping[str, Any]
    limits: Limits


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A jobs file, read and checked: a sequence of jobs. `digest` names it and the contents of its guests."""

    source: str
    folder: Path
    guests: tuple[Guest, ...]
    configurations: tuple[tuple[str, Mapping[str, Any]], ...]
    seeds: Sequence[int | None]
    record: bool
    files: Mapping[str, GuestFile]
    digest: str

    def __len__(self) -> int:
        return len(self.guests) * len(self.configurations) * len(self.seeds)

    def __iter__(self) -> Iterator[Job]:
        return (self[number] for number in range(len(self)))

    def place(self, number: int) -> tuple[str, str, int | None]:
        """Guest, configuration and seed of a job; IndexError for a number that none has."""
        guest, configuration, seed = self._indices(number)
        return self.guests[guest].name, self.configurations[configuration][0], self.seeds[seed]

    def name_of(self, number: int) -> str:
        """The name of a job."""
        return job_name(*self.place(number))

    def _indices(self, number: int) -> tuple[int, int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"job {number}: there are {len(self)}")
        rest, seed = divmod(number, len(self.seeds))
        guest, configuration = divmod(rest, len(self.configurations))
        return guest, configuration, seed

    def __getitem__(self, number: int) -> Job:
        at_guest, at_configuration, at_seed = self._indices(number)
        guest, seed = self.guests[at_guest], self.seeds[at_seed]
        configuration, overrides = self.configurations[at_configuration]
        options = {**guest.options, **overrides}
        names = [guest.path, *_paths(options, guest.script)] if guest.path else []
        machine = {key: value for key, value in options.items() if key not in ENGINE_KEYS}
        engine = {key: value for key, value in options.items() if key in ENGINE_KEYS}
        files = [self.files[name] for name in dict.fromkeys(names)]
        if guest.kind == "config":
            files += [file for name, file in self.files.items() if name.startswith(f"{guest.path}: ")]
        script = dict(guest.script)
        if seed is not None:
            machine["seed"] = str(seed)
            for holder, key in ((machine, "append"), (script, "type_text")):
                if key in holder:
                    holder[key] = holder[key].replace("{seed}", str(seed))
        self._resolve(machine, script)
        if guest.limits.output is not None:
            machine["max_output"] = str(guest.limits.output + 1)  # the byte that is one too many
        return Job(
            number=number, guest=guest.name, configuration=configuration, seed=seed, kind=guest.kind,
            path=self._path(guest.path) if guest.path else "",
            machine=MachineOptions(**machine),
            engine=EngineOptions(default_cache="on", **engine),
            script=RunOptions(
                budget=guest.limits.instructions, as_json=True, read_stdin=False, quiet=True, **script
            ),
            limits=guest.limits, record=self.record, files=tuple(files), folder=str(self.folder),
        )  # fmt: skip

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _resolve(self, machine: dict[str, Any], script: dict[str, Any]) -> None:
        """Paths as the host sees them."""
        for holder, key in ((machine, "initrd"), (machine, "symbols"), (script, "input_file")):
            if key in holder:
                holder[key] = self._path(holder[key])
        machine["disks"] = tuple(self._path(disk) for disk in machine.get("disks", ()))
        for key, mark in (("roms", "="), ("modules", " ")):
            machine[key] = tuple(self._resolved(text, mark) for text in machine.get(key, ()))

    def _resolved(self, text: str, mark: str) -> str:
        first, found, rest = text.partition(mark)
        return f"{first}{mark}{self._path(rest)}" if mark == "=" else f"{self._path(first)}{found}{rest}"


def load_plan(path: str | Path) -> SweepPlan:
    """Read a jobs file of at most 1 MiB. ConfigError with every mistake in it."""
    path = Path(path)
    problems = Problems(str(path), None)
    data = parse_toml(read_file(path), problems)
    if data is None:
        problems.raise_errors()
        raise AssertionError  # without data there was an error
    reader = _Reader(problems, data, Path(path).parent.absolute())
    plan = reader.plan(str(path))
    problems.raise_errors()
    return plan


def _paths(options: Mapping[str, Any], script: Mapping[str, Any]) -> Iterator[str]:
    """The files among the options, by the names that the jobs file gives them."""
    for holder, key in ((options, "initrd"), (options, "symbols"), (script, "input_file")):
        if key in holder:
            yield holder[key]
    for disk in options.get("disks", ()):
        yield disk.removesuffix(",read-only")
    for rom in options.get("roms", ()):
        yield rom.partition("=")[2]
    for module in options.get("modules", ()):
        yield module.partition(" ")[0]


class _Reader:
    """One reading of one jobs file."""

    def __init__(self, problems: Problems, data: Mapping[str, Any], folder: Path) -> None:
        self.problems = problems
        self.root = Table(problems, data, ())
        self.folder = folder
        self.files: dict[str, GuestFile] = {}

    def plan(self, source: str) -> SweepPlan:
        """What the file says; mistakes are in `problems`."""
        root = self.root
        seeds = self._seeds()
        record = root.boolean("record") or False
        limits = self._limits(self._table(root, "budget", required=True), Limits(0))
        guests = self._guests(limits)
        configurations = self._configurations()
        self._finish(root)
        count = len(guests) * len(configurations) * len(seeds)
        if count > JOBS_MAX:
            root.error("guests", f"{count:,} jobs are too many for one sweep; stay below {JOBS_MAX:,}")
        self._check(guests, configurations)
        digest = self._digest(guests, configurations, seeds, record)
        return SweepPlan(source, self.folder, guests, configurations, seeds, record, self.files, digest)

    # ---- the parts of the file -----------------------------------------------------------------------------

    def _seeds(self) -> Sequence[int | None]:
        """A list of numbers, or "FIRST-LAST"; without the key one job for every guest and configuration."""
        root = self.root
        value = root.data.get("seeds")
        if value is None:
            root.known.append("seeds")
            return (None,)
        if not isinstance(value, str):
            found = root.integers("seeds", U64_MAX)
            if found == () and value == []:
                root.error("seeds", "no seeds, so no jobs; give one or leave the key out")
            if found is not None and len(set(found)) < len(found):
                root.error("seeds", "a seed is there twice; give each once")
            return found or (None,)
        root.known.append("seeds")
        first, dash, last = value.partition("-")
        try:
            low, high = parse_number(first), parse_number(last)
        except ValueError:
            dash = ""
            low = high = 0
        if not dash:
            root.error("seeds", f'{show(value)} is no range; write "FIRST-LAST", such as "1-50"')
        elif not low <= high <= U64_MAX:
            root.error("seeds", f"{show(value)} ends before it begins or after 2^64; write it the other way")
        elif high - low >= JOBS_MAX:
            root.error("seeds", f"{high - low + 1:,} seeds are too many; stay below {JOBS_MAX:,}")
        else:
            return range(low, high + 1)
        return (None,)

    def _limits(self, table: Table | None, base: Limits) -> Limits:
        """[budget], or the table `budget` of a guest, whose keys overrule it."""
        if table is None:
            return base
        example = "20_000_000" if not base.instructions else None
        given: dict[str, Any] = {
            "instructions": table.integer("instructions", 1, (1 << 62) - 1, example),
            "seconds": self._seconds_of(table),
            "memory": table.size("memory", MIB, RAM_MAX, "64K"),
            "output": table.size("output", 0, RAM_MAX, "64K"),
            "record": table.size("record", 64 * KIB, RAM_MAX, "64K"),
        }
        self._finish(table)
        return replace(base, **{key: value for key, value in given.items() if value is not None})

    def _seconds_of(self, table: Table) -> float | None:
        value = table.data.get("seconds")
        table.known.append("seconds")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            table.error("seconds", f"{show(value)} is {kind_of(value)}; write a number of seconds")
        elif not 0 < value <= SECONDS_MAX:
            table.error("seconds", f"{value:g} is out of range; write a number above 0 up to {SECONDS_MAX:g}")
        else:
            return float(value)
        return None

    def _guests(self, limits: Limits) -> tuple[Guest, ...]:
        found = []
        for name, table in self._named("guests", required=True):
            kinds = [kind for kind in KINDS if kind in table.data]
            if len(kinds) != 1:
                said = f"both {' and '.join(kinds[:2])}" if kinds else "no guest"
                self.problems.error(
                    table.path, f"{said}; write one of image = FILE, config = FILE, asm = FILE, demo = true"
                )
                continue
            found.append(self._guest(name, kinds[0], table, limits))
        return tuple(found)

    def _guest(self, name: str, kind: str, table: Table, limits: Limits) -> Guest:
        path = ""
        if kind == "demo":
            if table.boolean("demo") is False:
                table.error("demo", "false is no guest; write demo = true or name a file")
        else:
            path = table.text(kind) or ""
            self._file(table, kind, path)
        options = self._machine(table, boot=kind in ("image", "config"))
        if kind in ("image", "asm"):
            options |= self._image(table, IMAGE_KEYS if kind == "image" else ASM_KEYS)
        if kind == "asm":
            options.setdefault("load_address", hex(ASM_ORIGIN))
        script = self._script(table)
        own = self._limits(self._table(table, "budget"), limits)
        self._finish(table)
        return Guest(name, kind, path, options, script, own)

    def _configurations(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        found = []
        for name, table in self._named("configurations"):
            found.append((name, self._machine(table, boot=True)))
            self._finish(table)
        return tuple(found) or (("default", {}),)

    def _machine(self, table: Table, *, boot: bool) -> dict[str, Any]:
        """The keys that guests and configurations share, as MachineOptions and EngineOptions have them."""
        wanted = {key: table.data[key] for key in (*PYSIM_KEYS, *ENGINE_KEYS) if key in table.data}
        table.known += [*PYSIM_KEYS, *ENGINE_KEYS]
        checked = read_pysim(Table(self.problems, wanted, table.path))
        options: dict[str, Any] = {}
        for key in wanted:
            value = getattr(checked, key)
            if key == "cpu_features":
                options["cpu"] = value
            elif value is not None:
                options[key] = value if key in ENGINE_KEYS else str(value)
        if boot:
            append = table.text("append")
            initrd = table.text("initrd")
            if append is not None:
                options["append"] = append
            if initrd is not None:
                options["initrd"] = initrd
                self._file(table, "initrd", initrd)
        return options

    def _image(self, table: Table, keys: tuple[str, ...]) -> dict[str, Any]:
        """What only an image has."""
        options: dict[str, Any] = {
            "load_address": self._address(table, "load_address"),
            "entry": self._address(table, "entry"),
            "mode": table.word("mode", MODES),
        }
        if "protocol" in keys:
            options["protocol"] = table.word("protocol", PROTOCOLS)
            options["symbols"] = table.text("symbols")
            options["disks"] = self._texts(table, "disks")
            options["roms"] = self._texts(table, "roms")
            options["modules"] = self._texts(table, "modules")
            self._check_files(table, options)
        return {key: value for key, value in options.items() if value is not None}

    def _check_files(self, table: Table, options: Mapping[str, Any]) -> None:
        for disk in options["disks"] or ():
            if disk.endswith(",write"):
                table.error("disks", f'{show(disk)}: jobs run side by side; leave out ",write"')
            else:
                self._file(table, "disks", disk.removesuffix(",read-only"))
        for rom in options["roms"] or ():
            if "=" not in rom:
                table.error("roms", f'{show(rom)} is not NAME=FILE; write "vgaroms/vgabios.bin=FILE"')
            else:
                self._file(table, "roms", rom.partition("=")[2])
        for module in options["modules"] or ():
            self._file(table, "modules", module.partition(" ")[0])
        if options["symbols"] is not None:
            self._file(table, "symbols", options["symbols"])

    def _script(self, table: Table) -> dict[str, Any]:
        """What is typed into the guest, and the text that ends it."""
        given: dict[str, Any] = {
            "type_text": table.text("type"),
            "type_after": table.text("after"),
            "input_file": table.text("input"),
            "keys": table.word("keys", KEYS),
            "stop_on": table.text("stop_on"),
        }
        if given["input_file"] is not None:
            self._file(table, "input", given["input_file"])
        return {key: value for key, value in given.items() if value is not None}

    # ---- small parts ---------------------------------------------------------------------------------------

    def _table(self, parent: Table, key: str, *, required: bool = False) -> Table | None:
        parent.known.append(key)
        value = parent.data.get(key)
        if value is None:
            if required:
                parent.error(key, f"missing; add a table [{key}]")
            return None
        if not isinstance(value, dict):
            name = dotted(parent.place(key))
            parent.error(key, f"{show(value)} is {kind_of(value)}; write a table [{name}]")
            return None
        return Table(self.problems, value, parent.place(key))

    def _named(self, key: str, *, required: bool = False) -> Iterator[tuple[str, Table]]:
        """The sub-tables of [guests] or [configurations] by name."""
        parent = self._table(self.root, key, required=required)
        if parent is None:
            return
        if not parent.data and required:
            self.root.error(key, f"no {key}, so no jobs; add a table [{key}.NAME]")
        for name in parent.data:
            if not NAME.fullmatch(name):
                parent.error(name, "is no name for a job; use up to 64 letters, digits and _ . + -")
                continue
            table = self._table(parent, name)
            if table is not None:
                yield name, table

    def _finish(self, table: Table) -> None:
        """A key that nobody asked for is an error: a slip of the pen must not run two hundred jobs."""
        for key in table.data:
            if key not in table.known:
                hint = nearest(key, table.known)
                table.error(key, "no such key here; correct or remove it", "" if hint == key else hint)

    def _address(self, table: Table, key: str) -> str | None:
        value = table.integer(key)
        return None if value is None else hex(value)

    def _texts(self, table: Table, key: str) -> tuple[str, ...] | None:
        table.known.append(key)
        if key not in table.data:
            return None
        return table.texts(table.place(key), table.data[key])

    def _file(self, table: Table, key: str, name: str) -> None:
        """Note a host file of the sweep, and complain if it cannot be read."""
        if not name or name in self.files:
            return
        digest = file_digest(str(self.folder / name))
        if not digest:
            table.error(key, f"{show(name)} cannot be read; check the path, which starts at the jobs file")
            return
        self.files[name] = GuestFile(name, str(self.folder / name), digest)
        if key == "config":
            self._files_of_config(table, name)

    def _files_of_config(self, table: Table, name: str) -> None:
        """The images that a machine's configuration names count as well."""
        try:
            crate = AxVMCrateConfig.from_file(self.folder / name)
        except ConfigError as error:
            table.error("config", f"{error.problems[0]}; pysim-vm check {name} shows everything")
            return
        kernel = crate.kernel
        for path in (
            kernel.kernel_path, kernel.bios_path, kernel.ramdisk_path, kernel.disk_path, kernel.dtb_path,
            kernel.uefi_firmware_path,
        ):  # fmt: skip
            if path is not None:
                host = str(crate.resolve(path))
                digest = file_digest(host)  # "" for one that is not there, as long as that stays so
                self.files[f"{name}: {path}"] = GuestFile(f"{name}: {path}", host, digest)

    # ---- the whole -----------------------------------------------------------------------------------------

    def _check(
        self, guests: Sequence[Guest], configurations: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> None:
        """What can only be said of a guest together with a configuration."""
        for guest in guests:
            for name, overrides in configurations:
                options = {**guest.options, **overrides}
                boot = [key for key in BOOT_KEYS if key in overrides]
                if boot and guest.kind in ("demo", "asm"):
                    message = f"guest {guest.name} takes no {boot[0]}; leave it out or sweep apart"
                    self.problems.error(("configurations", name, boot[0]), message)
                ram = self._ram(guest, options)
                if guest.limits.memory is not None and ram > guest.limits.memory:
                    message = (
                        f"with configuration {name} its RAM of {show(ram)} bytes is more than the memory "
                        f"budget of {show(guest.limits.memory)}; give less memory or a larger budget"
                    )
                    self.problems.error(("guests", guest.name), message)
                    break

    def _ram(self, guest: Guest, options: Mapping[str, Any]) -> int:
        """Bytes of RAM that a guest is going to have."""
        if "memory" in options:
            return int(options["memory"])
        match guest.kind:
            case "demo":
                return 2 * MIB
            case "config" if guest.path in self.files:
                try:
                    regions = AxVMCrateConfig.from_file(self.folder / guest.path).ram_regions()
                except ConfigError:
                    return 0
                return sum(region.size for region in regions)
            case _:
                return parse_size(DEFAULT_MEMORY)

    def _digest(
        self,
        guests: Sequence[Guest],
        configurations: Sequence[tuple[str, Mapping[str, Any]]],
        seeds: Sequence[int | None],
        record: bool,
    ) -> str:
        """SHA-256 of everything that a final result depends on: not of comments, places and wall time."""
        named: dict[str, Any] | list[Any] = (
            {"first": seeds.start, "stop": seeds.stop} if isinstance(seeds, range) else list(seeds)
        )
        document = {
            "format": FORMAT,
            "version": __version__,
            "guests": [
                [
                    guest.name, guest.kind, guest.path, dict(guest.options), dict(guest.script),
                    guest.limits.instructions, guest.limits.memory, guest.limits.output, guest.limits.record,
                ]
                for guest in guests
            ],
            "configurations": [[name, dict(overrides)] for name, overrides in configurations],
            "seeds": named,
            "record": record,
            "files": {name: file.sha256 for name, file in self.files.items()},
        }  # fmt: skip
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
