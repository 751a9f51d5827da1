"""Writing TOML: a configuration back into its file, and `generate`, which makes a new one. It reads none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime, time
from typing import Any

from pysim_vm.axtypes import VMInterruptMode
from pysim_vm.config.model import HOST_PC, AxVMCrateConfig, PysimConfig
from pysim_vm.config.problems import SHOWN_MAX, show, toml_string
from pysim_vm.errors import InvalidInput
from pysim_vm.layout import AXVM_BIOS, AXVM_KERNEL, MIB, PAGE_SIZE


def _toml_value(value: object) -> str:
    """A value of the configuration as TOML; addresses and sizes of a page and more in hexadecimal."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value:#x}" if value >= PAGE_SIZE else str(int(value))
        case str():
            return toml_string(value)
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
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_string(key)


def toml_table(name: str, pairs: Iterable[tuple[str, object]]) -> list[str]:
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


def write_crate(crate: AxVMCrateConfig) -> str:
    """The text of a file; InvalidInput for device options that TOML has no form for."""
    base, kernel, devices = crate.base, crate.kernel, crate.devices
    usual_mode = devices.interrupt_mode is VMInterruptMode.NoIrq
    has_pysim = crate.pysim != HOST_PC or kernel.entry_point is None or kernel.kernel_load_addr is None
    lines = toml_table("[base]", ((each.name, getattr(base, each.name)) for each in fields(base)))
    kernel_pairs = [
        (each.name, getattr(kernel, each.name)) for each in fields(kernel) if each.name != "memory_regions"
    ]
    regions = tuple(_plain(region) for region in kernel.memory_regions)
    lines += toml_table("[kernel]", [*kernel_pairs, ("memory_regions", regions)])
    lines += toml_table(
        "[devices]",
        (
            ("emu_devices", tuple(_plain(row) for row in devices.emu_devices)),
            ("passthrough_devices", tuple(_plain(row) for row in devices.passthrough_devices)),
            ("interrupt_mode", None if usual_mode else devices.interrupt_mode),
            ("excluded_devices", devices.excluded_devices or None),
            ("passthrough_addresses", tuple(_plain(row) for row in devices.passthrough_addresses) or None),
            ("passthrough_ports", tuple(_plain(row) for row in devices.passthrough_ports) or None),
            ("address_space_policy", devices.address_space_policy),
        ),
    )
    for device in devices.virtual:
        pairs = [(each.name, getattr(device, each.name) or None) for each in fields(device)]
        lines += toml_table("[[devices.virtual]]", pairs)
    if has_pysim:
        usual = PysimConfig()
        changed = [
            (each.name, getattr(crate.pysim, each.name))
            for each in fields(PysimConfig)
            if getattr(crate.pysim, each.name) != getattr(usual, each.name)
        ]
        lines += toml_table("[pysim]", changed)
    return "\n".join(lines)


def parse_number(text: str) -> int:
    """An integer in decimal, or in 0x, 0o or 0b form, with underscores; ValueError with one sentence."""
    try:
        if len(text) > SHOWN_MAX:
            raise ValueError
        return int(text.strip(), 0)
    except ValueError:
        raise ValueError(f"{show(text)} is no number; write 32768, 0x8000 or 0b1000") from None


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
    lines = toml_table(
        "[base]",
        (
            ("id", numbers["id"]),
            ("name", name),
            ("vm_type", numbers["vm_type"]),
            ("cpu_num", numbers["cpu_num"]),
        ),
    )
    lines += toml_table(
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
    lines += toml_table("[devices]", (("emu_devices", ()), ("passthrough_devices", ())))
    text = "\n".join(lines)
    AxVMCrateConfig.from_toml(text, "generated configuration", arch=arch)
    return text
