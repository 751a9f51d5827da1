"""Reading the table [devices]: emulated, passed-through and virtual devices. No device is built here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from pysim_vm.axtypes import AddressSpacePolicy, VMInterruptMode
from pysim_vm.config.conflicts import Claim, check_claim, report_ivc, report_lines
from pysim_vm.config.model import (
    PassThroughAddressConfig,
    PassThroughDeviceConfig,
    PassThroughPortConfig,
    VirtualDeviceConfig,
    VMDevicesConfig,
)
from pysim_vm.config.problems import Problems, nearest, show, span
from pysim_vm.config.table import U64_MAX, Table, read_config_word
from pysim_vm.config.toml_lines import Path as KeyPath

T = TypeVar("T")


def read_devices(table: Table, relaxed: bool, claims: list[Claim]) -> VMDevicesConfig:
    """The table; ranges that its rows take are added to `claims`. `relaxed` makes the lists optional."""
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
    mode = read_config_word(table, "interrupt_mode", VMInterruptMode)
    policy = read_config_word(table, "address_space_policy", AddressSpacePolicy)
    report_lines(emulated, passthrough, virtual, table)
    report_ivc(emulated, table)
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
    table: Table,
    key: str,
    columns: Sequence[str],
    read: Callable[[Table], T | None],
    example: str | None = None,
) -> list[tuple[KeyPath, T]]:
    """The good rows of a list, each with its place."""
    rows = []
    for path, element in table.rows(key, example):
        row = Table.from_row(table.problems, element, path, columns)
        if row is not None:
            value = read(row)
            row.finish()
            if value is not None:
                rows.append((path, value))
    return rows


def _read_emulated(row: Table, claims: list[Claim]) -> EmulatedDeviceConfig | None:
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
    if device.length and (claim := Claim.of_emulated(device, row.path)) and check_claim(row, claim, "length"):
        claims.append(claim)
    return device


def _read_emu_type(row: Table) -> EmulatedDeviceType | None:
    """By number, as axvmconfig has it, or by name."""
    row.known.append("emu_type")
    value = row.data.get("emu_type", 0)
    if isinstance(value, str):
        by_name = {kind.name.lower(): kind for kind in EmulatedDeviceType}
        kind = by_name.get(value.lower())
        if kind is None:
            row.error("emu_type", f"{show(value)} is no device type; use its number", nearest(value, by_name))
        return kind
    number = row.get("emu_type", int, "a number such as 0x2")
    if "emu_type" in row.data and number is None:
        return None
    kind = EmulatedDeviceType.from_usize(number or 0)
    if kind is None:
        known = ", ".join(f"{each.value:#x} {each.name}" for each in EmulatedDeviceType)
        shown = f"{number:#x}" if number is not None and number.bit_length() <= 64 else show(number)
        row.error("emu_type", f"{shown} is no device type; known are {known}")
    return kind


def _read_passthrough(row: Table, claims: list[Claim]) -> PassThroughDeviceConfig | None:
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
    claim = Claim.of_passthrough(device, row.path)
    if check_claim(row, claim, "length"):
        if device.base_hpa + length > U64_MAX + 1:
            row.error("base_hpa", f"{show(device.base_hpa)} + {show(length)} leaves the host's address space")
        claims.append(claim)
    return device


def _read_address(row: Table, claims: list[Claim]) -> PassThroughAddressConfig | None:
    base = row.integer("base_gpa", example="0x0")
    length = row.integer("length", example="0x1000")
    if base is None or length is None:
        return None
    claim = Claim("mmio", base, length, "passthrough", f"addresses {span(base, length)}", row.path)
    if check_claim(row, claim, "length"):
        claims.append(claim)
    return PassThroughAddressConfig(base, length)


def _read_ports(row: Table, claims: list[Claim]) -> PassThroughPortConfig | None:
    base = row.integer("base", example="0x6000")
    length = row.integer("length", example="0x80")
    if base is None or length is None:
        return None
    claim = Claim("port", base, length, "ports", f"ports {span(base, length)}", row.path)
    if check_claim(row, claim, "length"):
        claims.append(claim)
    return PassThroughPortConfig(base, length)


def _read_virtual(
    problems: Problems, element: object, path: KeyPath, claims: list[Claim]
) -> VirtualDeviceConfig | None:
    """One [[devices.virtual]] table; resources stand beside `model` or in a sub-table `resources`."""
    if not isinstance(element, dict):
        problems.error(path, f"{show(element)} is no table; write [[devices.virtual]]")
        return None
    table = Table(problems, element, path)
    model = table.text("model", example='"uart16550"')
    name = table.text("name")
    options = table.get("options", dict, "a table")
    resources = table
    if (inner := table.get("resources", dict, "a table")) is not None:
        resources = Table(problems, inner, (*path, "resources"))
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
    who = f"device {show(name or model)}"
    for space, windows in (("mmio", mmio), ("port", ports)):
        for place, (base, length) in windows:
            claim = Claim(space, base, length, "emulated", f"{who} {span(base, length)}", place)
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


def _read_windows(table: Table, key: str) -> list[tuple[KeyPath, tuple[int, int]]]:
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
        row = Table.from_row(table.problems, element, path, ("base", "length"))
        if row is not None:
            base, length = row.integer("base", example="0x3f8"), row.integer("length", example="8")
            row.finish()
            if base is not None and length is not None:
                windows.append((path, (base, length)))
    return windows
