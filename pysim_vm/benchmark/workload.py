"""A benchmark workload: the TOML file that says which guest runs on which machine. It runs nothing.

The file has a few keys at its top, the guest either as rows `[[access]]` or as a table `[guest]`, and the
tables [devices] and [pysim] of a configuration file. Every key is known or refused: a misspelt one would
measure something else. docs/benchmarks.md is the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from devices.contract import EmulatedDeviceType
from devices.registry import DeviceFactory
from isa.assembler import AssemblerError, assemble
from pysim_vm.benchmark.devices import Wires, bench_registry
from pysim_vm.benchmark.guest import (
    ACCESS_KINDS,
    BODY_MAX,
    MEMORY_KINDS,
    MEMORY_LEAST,
    POINTERS,
    PORT_KINDS,
    REGISTER_KINDS,
    STRING_BYTES,
    STRING_KINDS,
    Access,
    MixGuest,
    addresses_of,
    guest_of,
)
from pysim_vm.config.conflicts import Claim, report_overlaps
from pysim_vm.config.devices import read_devices
from pysim_vm.config.model import PysimConfig, VMDevicesConfig
from pysim_vm.config.problems import Problems, kind_of, nearest, show
from pysim_vm.config.pysim import read_pysim
from pysim_vm.config.table import Table, parse_toml, read_file
from pysim_vm.errors import ConfigError, ConfigProblem
from pysim_vm.layout import MIB

SUFFIX: Final = ".toml"
PERS: Final = ("exit", "iteration")
ENDS: Final = ("halt", "power-off", "triple-fault", "instructions")
MODES: Final = ("long", "protected", "real")
BITS: Final = {"long": 64, "protected": 32, "real": 16}
COUNT_MAX: Final = 100_000_000
INSTRUCTIONS_MAX: Final = 1_000_000_000
DEFAULT_LIMIT: Final = 50_000_000  # instructions of a guest that is to end by itself
DEFAULT_MEMORY: Final = 4 * MIB
DISK_MAX: Final = 64 * MIB
IMAGE_MAX: Final = 16 * MIB
ASM_MAX: Final = 1 << 16  # characters
SECTOR: Final = 512
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload. `code` is what runs at `base` in `mode`; it ends as `end` says: "halt", "power-off",
    "triple-fault", or "instructions" after exactly that many. Otherwise `instructions` bounds it.

    `count` is how often the guest does what it does; `per` is what one operation is, an "exit" or an
    "iteration" (one of `count`). With `restarts` the machine is reset that often after such an end. `lazy`
    are (base, length) of RAM that gets a page at its first touch; `disk` the bytes of an IDE disk whose
    sectors hold their number. `digest` is the SHA-256 of the file and its image; `text` the guest as
    assembly text, if it is one.
    """

    name: str
    summary: str
    count: int
    per: str
    code: bytes
    mode: str
    base: int
    end: str
    instructions: int
    restarts: int = 0
    lazy: tuple[tuple[int, int], ...] = ()
    disk: int = 0
    devices: VMDevicesConfig = field(default_factory=VMDevicesConfig)
    pysim: PysimConfig = field(default_factory=PysimConfig)
    factories: Mapping[str, DeviceFactory] = field(default_factory=dict)
    digest: str = ""
    text: str = ""
    mix: MixGuest | None = None

    def with_count(self, count: int) -> Workload:
        """The same, doing what it does `count` times. ConfigError for an image, whose length nobody knows."""
        if self.mix is not None:
            return replace(self, count=count, instructions=_length(self.mix, count))
        if not self.text:
            problem = ConfigProblem(self.name, 0, "", "an image cannot run longer; use a text or [[access]]")
            raise ConfigError([problem])
        return replace(
            self, count=count, code=_assembled(self.text, self.mode, self.base, count),
            instructions=max(self.instructions * count // self.count, 1),
            restarts=count - 1 if self.restarts else 0,
        )  # fmt: skip


def library() -> dict[str, Path]:
    """The workloads that come with the package: name -> file, in alphabetical order."""
    folder = Path(__file__).with_name("workloads")
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def find_workload(name: str, factories: Mapping[str, DeviceFactory] | None = None) -> Workload:
    """A workload of the library by its name, or one of your own by the path of its file. ConfigError."""
    known = library()
    if name in known:
        return load_workload(known[name], factories)
    if name.endswith(SUFFIX) or "/" in name:
        return load_workload(name, factories)
    hint = nearest(name, known)
    message = "no workload of the library and no file *.toml; pysim-vm bench --list shows the names"
    raise ConfigError([ConfigProblem(show(name), 0, "", message, hint)])


def load_workload(path: str | Path, factories: Mapping[str, DeviceFactory] | None = None) -> Workload:
    """Read a workload file. `factories` builds device models of your own, by the name that the file has for
    them, as `DeviceRegistry.register` does. ConfigError with every mistake and its line."""
    path = Path(path)
    return workload_from_toml(
        read_file(path), path.stem, str(path), directory=path.parent, factories=factories
    )


def workload_from_toml(
    text: str,
    name: str,
    source: str = "<string>",
    *,
    directory: Path | None = None,
    factories: Mapping[str, DeviceFactory] | None = None,
) -> Workload:
    """A workload from its text; `directory` is where the path of an image starts. ConfigError."""
    problems = Problems(source, None)
    data = parse_toml(text, problems)
    found = None
    if data is not None:
        found = _Reader(problems, data, directory or Path(), factories or {}).read(name)
        problems.errors += [
            replace(warning, message=warning.message.replace(", ignored", ""))
            for warning in problems.warnings
        ]
    problems.raise_errors()
    assert found is not None  # no error was found, so everything was read
    workload, image = found
    digest = hashlib.sha256(text.encode() + image).hexdigest()
    return replace(workload, digest=digest)


def _length(mix: MixGuest, count: int) -> int:
    return mix.before + mix.round * count


def _assembled(text: str, mode: str, base: int, count: int) -> bytes:
    return assemble(text, bits=BITS[mode], origin=base, symbols={"count": count})


class _Reader:
    """Reads one file; mistakes go to `problems`."""

    def __init__(
        self, problems: Problems, data: dict[str, Any], directory: Path,
        factories: Mapping[str, DeviceFactory],
    ) -> None:  # fmt: skip
        self.problems, self.data, self.directory, self.factories = problems, data, directory, factories

    def read(self, name: str) -> tuple[Workload, bytes] | None:
        """The workload without its digest, and the bytes of its image."""
        root = Table(self.problems, self.data, ())
        summary = root.text("summary", example='"what it does"') or ""
        count = root.integer("count", 1, COUNT_MAX, example="1000") or 1
        per = root.word("per", PERS) or "exit"
        devices, pysim = self._machine(root)
        rows, guest = root.rows("access"), self._sub_table(root, "guest")
        root.finish()
        if (guest is None) == ("access" not in self.data):
            message = "[guest] and [[access]] both say what runs; remove one of them"
            missing = "nothing runs; add rows [[access]] or a table [guest]"
            self.problems.error(("guest",), message if guest is not None else missing)
            return None
        errors = len(self.problems.errors)
        plain = Workload(name, summary, count, per, b"", "long", 0x1000, "instructions", 0,
                         devices=devices, pysim=pysim, factories=self.factories)  # fmt: skip
        if guest is not None:
            made = self._guest(guest, plain)
            guest.finish()
        else:
            made = self._mix([self._access(path, element) for path, element in rows], plain)
        return made if made is not None and len(self.problems.errors) == errors else None

    def _sub_table(self, root: Table, key: str) -> Table | None:
        value = root.get(key, dict, f"a table [{key}]")
        return None if value is None else Table(self.problems, value, (key,))

    def _machine(self, root: Table) -> tuple[VMDevicesConfig, PysimConfig]:
        claims: list[Claim] = []
        devices, pysim = VMDevicesConfig(), PysimConfig(memory=DEFAULT_MEMORY)
        table = self._sub_table(root, "devices")
        if table is not None:
            devices = read_devices(table, True, claims)
            table.finish()
            for key in table.data:
                if key in table.known and key not in ("emu_devices", "virtual"):
                    table.error(key, "no effect in a workload; remove it")
            report_overlaps(claims, self.problems)
            self._check_models(devices)
        table = self._sub_table(root, "pysim")
        if table is not None:
            pysim = read_pysim(table)
            table.finish()
            for key in ("engine", "exit_path", "translation_cache", "translation_cache_limit"):
                if key in table.data:
                    table.error(key, "how a workload is run is said on the command line; remove it")
            if pysim.memory is None:
                pysim = replace(pysim, memory=DEFAULT_MEMORY)
        return devices, pysim

    def _check_models(self, devices: VMDevicesConfig) -> None:
        known = bench_registry(Wires(), self.factories).names()
        named = [(("devices", "emu_devices", n), row.name) for n, row in enumerate(devices.emu_devices)
                 if row.emu_type is EmulatedDeviceType.Dummy]  # fmt: skip
        named += [(("devices", "virtual", n), row.model) for n, row in enumerate(devices.virtual)]
        for path, model in named:
            if model not in known:
                message = f"no device model {show(model)}; known are {', '.join(known)}"
                self.problems.error(path, message, nearest(model, known))

    # ---- rows of accesses ----------------------------------------------------------------------------------

    def _access(self, path: tuple[str | int, ...], element: object) -> Access | None:
        if not isinstance(element, dict):
            self.problems.error(path, f"{show(element)} is {kind_of(element)}; write a table [[access]]")
            return None
        row = Table(self.problems, element, path)
        kind = row.word("kind", ACCESS_KINDS)
        if "kind" not in element:
            row.error("kind", f'missing; add kind = "{ACCESS_KINDS[0]}"')
        high = 0xFFFF if kind in PORT_KINDS else 0xFFFF_FFFF
        address = row.integer("address", 0, high, example=None if kind in (None, "hypercall") else "0x300")
        widths = row.integers("widths", 8)
        times = row.integer("times", 1, BODY_MAX)
        elements = row.integer("elements", 1, STRING_BYTES)
        row.finish()
        if kind is None:
            return None
        allowed = (1, 2, 4) if kind in PORT_KINDS else (1, 2, 4, 8) if kind in MEMORY_KINDS else ()
        if widths is not None and not allowed:
            row.error("widths", f"{kind} has no width; remove it")
        elif widths is not None and (not widths or any(width not in allowed for width in widths)):
            row.error("widths", f"{kind} is {_listed(allowed)} bytes wide; list one or more of these")
        if elements is not None and kind not in STRING_KINDS:
            row.error("elements", f"only {' and '.join(STRING_KINDS)} have elements; remove it")
        wide = widths or ((4,) if kind in MEMORY_KINDS else (1,))
        if kind in STRING_KINDS and (elements or 1) * max(wide) > STRING_BYTES:
            row.error("elements", f"more than {STRING_BYTES:#x} bytes; give fewer elements")
        if kind in REGISTER_KINDS or kind == "hypercall":
            wide = (8,)
        return Access(kind, address or 0, wide, times or 1, elements or 1)

    def _mix(self, rows: list[Access | None], plain: Workload) -> tuple[Workload, bytes] | None:
        mix = [row for row in rows if row is not None]
        memory = plain.pysim.memory or 0
        if not rows:
            self.problems.error(("access",), "an empty list; add a row [[access]]")
        if sum(access.length for access in mix) > BODY_MAX // 4:
            message = f"more than {BODY_MAX // 4} accesses in one round; raise count instead of times"
            self.problems.error(("access",), message)
        if len(addresses_of(mix)) > len(POINTERS):
            message = f"more than {len(POINTERS)} different memory addresses; use fewer"
            self.problems.error(("access",), message)
        if memory < MEMORY_LEAST:
            message = f"rows [[access]] need {MEMORY_LEAST:#x} bytes of RAM; give more"
            self.problems.error(("pysim", "memory"), message)
        if self.problems.errors:
            return None
        guest = guest_of(mix)
        length = _length(guest, plain.count)
        if length > INSTRUCTIONS_MAX:
            message = f"{length:,} instructions are too many; at most {INSTRUCTIONS_MAX:,} are allowed"
            self.problems.error(("count",), message)
            return None
        code = assemble(guest.text, bits=64, origin=plain.base)
        return replace(plain, code=code, text=guest.text, mix=guest, instructions=length), b""

    # ---- a guest of one's own ------------------------------------------------------------------------------

    def _guest(self, table: Table, plain: Workload) -> tuple[Workload, bytes] | None:
        mode = table.word("mode", MODES) or "long"
        base = table.integer("base", 0, 0xFFFF_FFFF)
        base = plain.base if base is None else base
        end = table.word("end", ENDS) or "halt"
        instructions = table.integer("instructions", 1, INSTRUCTIONS_MAX)
        if end == "instructions" and instructions is None and "instructions" not in table.data:
            table.error("instructions", 'missing for end = "instructions"; say after how many it ends')
        restart = table.boolean("restart")
        if restart and end not in ("power-off", "triple-fault"):
            table.error("restart", f'a guest with end = "{end}" is not reset; remove it')
        disk = table.integer("disk", SECTOR, DISK_MAX)
        if disk is not None and disk % SECTOR:
            table.error("disk", f"{disk} bytes are no whole sectors; give a multiple of {SECTOR}")
        if disk is not None and plain.pysim.platform != "pc":
            table.error("disk", 'the IDE channel is on the PC board; set platform = "pc" in [pysim]')
        lazy = self._lazy(table, plain.pysim)
        text = table.get("asm", str, "a string")
        image = table.text("image")
        if (text is None) == (image is None):
            both = text is not None
            table.error("asm", "asm and image are both there; remove one" if both
                        else 'missing; add asm = "..." or image = "FILE"')  # fmt: skip
            return None
        code = b""
        if text is not None:
            code = self._code(table, text, mode, base, plain.count)
        elif image is not None:
            code = self._image(table, image)
        made = replace(
            plain, code=code, mode=mode, base=base, end=end, instructions=instructions or DEFAULT_LIMIT,
            restarts=plain.count - 1 if restart else 0, lazy=lazy, disk=disk or 0, text=text or "",
        )  # fmt: skip
        return made, b"" if image is None else code

    def _lazy(self, table: Table, pysim: PysimConfig) -> tuple[tuple[int, int], ...]:
        ranges = []
        for path, element in table.rows("lazy"):
            row = Table.from_row(self.problems, element, path, ("base", "length"))
            if row is None:
                continue
            base = row.integer("base", 0, 0xFFFF_FFFF, example="0x80_0000")
            length = row.integer("length", PAGE, 0xFFFF_FFFF, example="0x1000")
            row.finish()
            if base is None or length is None:
                continue
            if base % PAGE or length % PAGE:
                self.problems.error(path, f"no whole pages; give multiples of {PAGE:#x}")
            elif base < (pysim.memory or 0):
                self.problems.error(path, f"{base:#x} lies in the RAM of [pysim]; put it above")
            else:
                ranges.append((base, length))
        return tuple(ranges)

    def _code(self, table: Table, text: str, mode: str, base: int, count: int) -> bytes:
        if len(text) > ASM_MAX:
            table.error("asm", f"{len(text)} characters are too many; at most {ASM_MAX} are allowed")
            return b""
        try:
            code = _assembled(text, mode, base, count)
        except AssemblerError as error:
            table.error("asm", f"{error} (lines count from the first of the text)")
            return b""
        if not code:
            table.error("asm", "the text has no instruction; write one")
        return code

    def _image(self, table: Table, image: str) -> bytes:
        path = self.directory / image
        try:
            with path.open("rb") as file:
                data = file.read(IMAGE_MAX + 1)
        except OSError as error:
            table.error("image", f"{path} cannot be read ({error.strerror}); check the path")
            return b""
        if len(data) > IMAGE_MAX:
            table.error("image", f"{path} has more than {IMAGE_MAX} bytes; name a smaller image")
        elif not data:
            table.error("image", f"{path} is empty; name another file")
        return data


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
