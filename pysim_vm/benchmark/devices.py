"""Devices for benchmarks: they answer 0 and forget, or tick. A workload names them like any other model.

What a chip does costs time of its own; a latch does nothing, so that what is left is the exit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from devices.base import Clock, Device, DeviceError
from devices.bus import BusKind, Window
from devices.contract import EmulatedDeviceConfig
from devices.registry import (
    BoardServices,
    DeviceBundle,
    DeviceFactory,
    DevicePart,
    DeviceRegistry,
    default_registry,
)
from pysim_vm.demo import CALCULATOR_WINDOWS, Calculator

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

VECTORS: Final = 256
PERIOD_LEAST: Final = 100  # ns: a shorter one would fire more often than instructions pass


class Latch(Device):
    """The simplest device: it answers 0 and forgets."""

    name = "latch"

    def read(self, offset: int, width: int) -> int:
        """Always 0."""
        return 0


class Ticker(Device):
    """No registers: it calls `tick` every `period_ns` of virtual time, from the first period on."""

    name = "ticker"

    def __init__(self, clock: Clock, period_ns: int, tick: Callable[[], None]) -> None:
        self._clock, self._period_ns, self._tick = clock, period_ns, tick
        self.reset()

    def reset(self) -> None:
        """The first tick comes a period from now."""
        self._clock.call_at(self._clock.now_ns() + self._period_ns, self._due)

    def _due(self, now_ns: int) -> None:
        self._tick()
        self._clock.call_at(now_ns + self._period_ns, self._due)


class Wires:
    """What a ticker drives: the vCPU of a machine that is still being built when the ticker is."""

    def __init__(self) -> None:
        self.vm: AxVM | None = None

    def inject(self, vector: int) -> None:
        """An interrupt for the guest, as from a board without an interrupt controller."""
        if self.vm is not None:
            self.vm.vcpu(0).inject_interrupt(vector)

    def host_interrupt(self, vector: int) -> None:
        """An interrupt for the host, for which the guest is left."""
        if self.vm is not None:
            self.vm.host_interrupt(vector)


def bench_registry(wires: Wires, factories: Mapping[str, DeviceFactory] | None = None) -> DeviceRegistry:
    """The chips of `devices/registry.py`, the devices of this file, and `factories` of the caller's own.
    DeviceError for a name that is taken."""
    registry = default_registry()
    registry.register("port_latch", _latch(BusKind.PORT))
    registry.register("mmio_latch", _latch(BusKind.MMIO))
    registry.register("msr_latch", _latch(BusKind.SYS_REG))
    registry.register("ticker", _ticker(wires.inject))
    registry.register("host_ticker", _ticker(wires.host_interrupt))
    registry.register("calculator", _calculator)
    for name, factory in (factories or {}).items():
        registry.register(name, factory)
    return registry


def _latch(bus: BusKind) -> DeviceFactory:
    def build(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
        return DeviceBundle((DevicePart(Latch(), (Window(bus, row.base_gpa, max(row.length, 1)),)),))

    return build


def _ticker(drive: Callable[[int], None]) -> DeviceFactory:
    def build(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
        if len(row.cfg_list) != 2 or row.cfg_list[0] >= VECTORS or row.cfg_list[1] < PERIOD_LEAST:
            raise DeviceError(
                f"{row.name}: cfg_list {list(row.cfg_list)} is no [vector, period]; write a vector below "
                f"{VECTORS} and a period of at least {PERIOD_LEAST} ns, such as [0x40, 6400]"
            )
        vector, period = row.cfg_list
        return DeviceBundle((DevicePart(Ticker(services.clock, period, lambda: drive(vector))),))

    return build


def _calculator(row: EmulatedDeviceConfig, services: BoardServices) -> DeviceBundle:
    return DeviceBundle((DevicePart(Calculator(), CALCULATOR_WINDOWS),))
