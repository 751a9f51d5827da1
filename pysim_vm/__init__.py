"""pysim_vm: the hypervisor of a pure-Python x86-64 machine, axvm's API re-created. No CPU, no chips.

`isa` is the silicon, `devices` the board. The names below are the ones most programs need; each is loaded
when it is first used, so that `import pysim_vm` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devices.base import AccessWidth, Device, DeviceError, IrqLine
    from devices.contract import BaseDeviceOps, BaseMmioDeviceOps, BasePortDeviceOps, BaseSysRegDeviceOps
    from devices.manager import AxVmDevices
    from isa.exits import (
        Budget,
        CpuDown,
        CpuUp,
        ExitReason,
        ExternalInterrupt,
        FailEntry,
        Halt,
        Hypercall,
        IoRead,
        IoWrite,
        MmioRead,
        MmioWrite,
        NestedPageFault,
        Nothing,
        SendIPI,
        SysRegRead,
        SysRegWrite,
        SystemDown,
        TripleFault,
        Unimplemented,
    )
    from pysim_vm.config import AxVMConfig, AxVMCrateConfig
    from pysim_vm.errors import AxError, AxErrorKind
    from pysim_vm.hal import AxVMHal, DefaultHal
    from pysim_vm.loader import LoadOptions
    from pysim_vm.machine import vm_from_config, vm_from_image
    from pysim_vm.vcpu import VCpu
    from pysim_vm.vm import AxVM

__version__ = "0.1.0"

__all__ = [
    "AccessWidth",
    "AxError",
    "AxErrorKind",
    "AxVM",
    "AxVMConfig",
    "AxVMCrateConfig",
    "AxVMHal",
    "AxVmDevices",
    "BaseDeviceOps",
    "BaseMmioDeviceOps",
    "BasePortDeviceOps",
    "BaseSysRegDeviceOps",
    "Budget",
    "CpuDown",
    "CpuUp",
    "DefaultHal",
    "Device",
    "DeviceError",
    "ExitReason",
    "ExternalInterrupt",
    "FailEntry",
    "Halt",
    "Hypercall",
    "IoRead",
    "IoWrite",
    "IrqLine",
    "LoadOptions",
    "MmioRead",
    "MmioWrite",
    "NestedPageFault",
    "Nothing",
    "SendIPI",
    "SysRegRead",
    "SysRegWrite",
    "SystemDown",
    "TripleFault",
    "Unimplemented",
    "VCpu",
    "vm_from_config",
    "vm_from_image",
]


def _home(name: str) -> str:
    """The module a public name lives in; "" for a name that is not public."""
    match name:
        case "AxVM":
            return "pysim_vm.vm"
        case "VCpu":
            return "pysim_vm.vcpu"
        case "AxVMConfig" | "AxVMCrateConfig":
            return "pysim_vm.config"
        case "AxError" | "AxErrorKind":
            return "pysim_vm.errors"
        case "AxVMHal" | "DefaultHal":
            return "pysim_vm.hal"
        case "LoadOptions":
            return "pysim_vm.loader"
        case "vm_from_config" | "vm_from_image":
            return "pysim_vm.machine"
        case "AxVmDevices":
            return "devices.manager"
        case "AccessWidth" | "Device" | "DeviceError" | "IrqLine":
            return "devices.base"
        case "BaseDeviceOps" | "BaseMmioDeviceOps" | "BasePortDeviceOps" | "BaseSysRegDeviceOps":
            return "devices.contract"
        case _:
            return "isa.exits" if name in __all__ else ""


def __getattr__(name: str) -> Any:
    home = _home(name)
    if not home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
