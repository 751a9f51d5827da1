"""The rows of `emu_devices` and `[[devices.virtual]]`: what the registry builds beside a board, or alone.

It defines no chip and places none: rows, factories and buses come from outside.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from devices.base import DeviceError, IrqLine
from devices.bus import BusKind
from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType, display_name
from devices.manager import AxVmDevices
from devices.registry import BoardServices, DeviceRegistry, default_registry
from pysim_vm.layout import COM1_PORT, IO_APIC_BASE, PIT_PORT

if TYPE_CHECKING:
    from pysim_vm.board import BoardHooks
    from pysim_vm.config import VirtualDeviceConfig

# Chips that a board has anyway: type -> (bus, the chip's name, its usual address)
_BOARD_CHIPS: Final = {
    EmulatedDeviceType.Console: (BusKind.PORT, "uart16550", COM1_PORT),
    EmulatedDeviceType.X86Pit: (BusKind.PORT, "pit8254", PIT_PORT),
    EmulatedDeviceType.X86IoApic: (BusKind.MMIO, "io-apic", IO_APIC_BASE),
}

_TYPE_OF_MODEL: Final = {
    "uart16550": EmulatedDeviceType.Console,
    "pit8254": EmulatedDeviceType.X86Pit,
    "io_apic": EmulatedDeviceType.X86IoApic,
}


def build_emulated(
    devices: AxVmDevices,
    rows: Iterable[EmulatedDeviceConfig],
    hooks: BoardHooks,
    irq: Callable[[int], IrqLine],
    pin: Callable[[int, bool], None] | None = None,
    registry: DeviceRegistry | None = None,
) -> None:
    """Build each row and put it on the buses. `pin` drives an input of the I/O APIC, if there is one.

    A row that describes a chip which the board already has at that place is satisfied by it. DeviceError for
    a row that no factory knows, that this machine lacks the wires for, or that overlaps another device.
    """
    registry = registry if registry is not None else default_registry()
    services = BoardServices(
        clock=hooks.clock,
        memory=hooks.memory,
        irq=irq,
        output=lambda name, data: hooks.console(data),
        interrupt=hooks.set_intr,
        pin=pin,
        on_reset=hooks.on_reset,
        on_poweroff=hooks.on_poweroff,
        on_exit=hooks.on_exit,
        on_a20=hooks.on_a20,
    )
    wanted = [row for row in rows if not _on_board(devices, row)]
    for row in wanted:
        if row.emu_type is EmulatedDeviceType.X86IoApic or (row.name == "hpet" and pin is None):
            raise DeviceError(
                f'emu_devices {row.name!r} needs the board\'s APICs: set platform = "pc" and '
                'cpu_features = ["+apic"]'
            )
    registry.populate(devices, wanted, services)


def rows_of_virtual(
    tables: Iterable[VirtualDeviceConfig], registry: DeviceRegistry | None = None
) -> list[EmulatedDeviceConfig]:
    """[[devices.virtual]] tables as rows: the model names the factory, the first window the place.

    A model with a device type gets it, so that a board's own chip satisfies it as it does a typed row.
    DeviceError for a model that the registry does not know, and for a table with several windows or with
    options: no factory takes them.
    """
    known = (registry if registry is not None else default_registry()).names()
    rows = []
    for table in tables:
        if table.model not in known:
            close = difflib.get_close_matches(table.model.replace("-", "_"), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise DeviceError(f"devices.virtual: model {table.model!r} is unknown; {hint}")
        windows = (*table.mmio, *table.ports)
        if len(windows) > 1 or table.options:
            raise DeviceError(
                f"devices.virtual {table.name or table.model!r}: model {table.model!r} takes one window and "
                "no options; leave the rest out"
            )
        base, length = windows[0] if windows else (0, 0)
        kind = _TYPE_OF_MODEL.get(table.model, EmulatedDeviceType.Dummy)
        rows.append(EmulatedDeviceConfig(table.model, base, length, table.irq, kind))
    return rows


def _on_board(devices: AxVmDevices, row: EmulatedDeviceConfig) -> bool:
    if row.emu_type not in _BOARD_CHIPS:
        return False
    bus, chip, usual = _BOARD_CHIPS[row.emu_type]
    entry = devices.bus(bus).find(row.base_gpa or usual)
    return entry is not None and entry.base == (row.base_gpa or usual) and display_name(entry.device) == chip
