"""The rows of `emu_devices`: what the registry builds, beside or instead of a board. It defines no chip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from devices.base import IrqLine
from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from devices.manager import AxVmDevices
from devices.registry import BoardServices, DeviceRegistry, default_registry

if TYPE_CHECKING:
    from pysim_vm.board import BoardHooks


def build_emulated(
    devices: AxVmDevices,
    rows: Iterable[EmulatedDeviceConfig],
    hooks: BoardHooks,
    irq: Callable[[int], IrqLine],
    registry: DeviceRegistry | None = None,
) -> None:
    """Build each row and put it on the buses.

    A row that describes a chip which the board already has at that place is satisfied by it. DeviceError for
    a row that no factory knows or that overlaps another device.
    """
    registry = registry if registry is not None else default_registry()
    services = BoardServices(
        clock=hooks.clock,
        memory=hooks.memory,
        irq=irq,
        output=lambda name, data: hooks.console(data),
        interrupt=hooks.set_intr,
        on_reset=hooks.on_reset,
        on_poweroff=hooks.on_poweroff,
        on_exit=hooks.on_exit,
        on_a20=hooks.on_a20,
    )
    wanted = [row for row in rows if not _on_board(devices, row)]
    registry.populate(devices, wanted, services)


def _on_board(devices: AxVmDevices, row: EmulatedDeviceConfig) -> bool:
    match row.emu_type:
        case EmulatedDeviceType.Console | EmulatedDeviceType.X86Pit:
            return devices.find_port_dev(row.base_gpa) is not None
        case EmulatedDeviceType.X86IoApic | EmulatedDeviceType.FwCfg:
            return devices.find_mmio_dev(row.base_gpa) is not None
    return False
