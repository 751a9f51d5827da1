"""Keys that this machine cannot follow, or not yet: a warning for each, never silence. It changes nothing.

What depends on the guest's image is known only when the image is read; those remarks are in machine.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from devices.registry import default_registry
from isa.cpuid import UnknownFeature, feature_set
from pysim_vm import layout
from pysim_vm.axtypes import AddressSpacePolicy, MappingFlags, VMBootProtocol, VMInterruptMode
from pysim_vm.config.model import AxVMCrateConfig, PysimConfig, VMKernelConfig
from pysim_vm.config.problems import Problems, nearest, show, span

CPUS: Final = 1  # processors of this machine
LISTED: Final = 3  # ranges that one warning names

# The board's ports as (first, count). Chips that may be absent are added in `board_ports`.
_BOARD_PORTS: Final = (
    (layout.PIC_MASTER_PORT, layout.PIC_PORT_COUNT),
    (layout.PIC_SLAVE_PORT, layout.PIC_PORT_COUNT),
    (layout.PIC_MASTER_ELCR_PORT, 2),
    (layout.PIT_PORT, layout.PIT_PORT_COUNT),
    (layout.I8042_DATA_PORT, 1),
    (layout.SYSTEM_CONTROL_B_PORT, 1),
    (layout.I8042_COMMAND_PORT, 1),
    (layout.RTC_PORT, layout.RTC_PORT_COUNT),
    (layout.POST_PORT, 1),
    (layout.SYSTEM_CONTROL_A_PORT, 1),
    (layout.E9_PORT, 1),
    (layout.COPROCESSOR_ERROR_PORT, 1),
    (layout.COM1_PORT, layout.UART_PORT_COUNT),
    (layout.DEBUGCON_PORT, 1),
    (layout.FW_CFG_PORT, layout.FW_CFG_PORT_COUNT),
    (layout.FW_CFG_DMA_PORT, layout.FW_CFG_DMA_PORT_COUNT),
    (layout.ACPI_PM_BASE, layout.ACPI_PM_PORT_COUNT),
    (layout.PCI_CONFIG_ADDRESS_PORT, 8),
)


def board_windows(pysim: PysimConfig) -> list[tuple[int, int]]:
    """Where the board's chips are in guest-physical memory, as (base, length); empty without a board."""
    if pysim.platform != "pc":
        return []
    windows = [(layout.VGA_WINDOW_BASE, layout.VGA_WINDOW_SIZE)] if pysim.vga else []
    try:
        features = feature_set(pysim.cpu_features)
    except UnknownFeature:  # reported at its own key
        return windows
    if "APIC" in features:
        windows += [
            (layout.IO_APIC_BASE, layout.IO_APIC_SIZE),
            (layout.LOCAL_APIC_BASE, layout.LOCAL_APIC_SIZE),
        ]
    return windows


def board_ports(pysim: PysimConfig) -> list[tuple[int, int]]:
    """The board's I/O ports as (first, count); empty without a board."""
    if pysim.platform != "pc":
        return []
    ports = [*_BOARD_PORTS, (pysim.debug_exit_port, layout.DEBUG_EXIT_PORT_COUNT)]
    if pysim.vga:
        ports.append((layout.VGA_PORT, layout.VGA_PORT_COUNT))
    return ports


def report_effects(crate: AxVMCrateConfig, data: Mapping[str, Any], problems: Problems) -> None:
    """Warn of keys in `data` that change nothing, and refuse what the machine cannot be.

    `data` is the file that `crate` was read from: a key that has its default value may still be there.
    """
    _report_base(crate, problems)
    _report_kernel(crate, problems)
    _report_passthrough(crate, problems)
    _report_devices(crate, data, problems)
    if crate.pysim.platform == "none":
        for key in ("vga", "debug_exit_port", "rtc_start"):
            if _given(data, "pysim", key):
                message = 'no effect without the PC board; remove it or set platform = "pc"'
                problems.warn(("pysim", key), message)


def _report_base(crate: AxVMCrateConfig, problems: Problems) -> None:
    base = crate.base
    if base.cpu_num > CPUS:
        message = f"{base.cpu_num} vCPUs are too many: this machine has one CPU for now; write cpu_num = 1"
        problems.error(("base", "cpu_num"), message)
    elif base.phys_cpu_ids and base.phys_cpu_ids[0]:
        message = "only the host sees this id; the guest's APIC id stays 0"
        problems.warn(("base", "phys_cpu_ids"), message)


def _report_kernel(crate: AxVMCrateConfig, problems: Problems) -> None:
    kernel = crate.kernel
    if kernel.image_location == "memory":
        message = 'no images are built in here; they are read from their paths, as with "fs"'
        problems.warn(("kernel", "image_location"), message)
    for key in ("dtb_path", "dtb_load_addr"):
        if getattr(kernel, key) is not None:
            problems.warn(("kernel", key), "no effect: an x86 guest has no device tree; remove it")
    for index, region in enumerate(kernel.memory_regions):
        if region.flags & MappingFlags.UNCACHED:
            message = "UNCACHED changes nothing: the machine has no caches; leave the bit 0x20 out"
            problems.warn(("kernel", "memory_regions", index, "flags"), message)
    if kernel.ramdisk_load_addr is not None and kernel.ramdisk_path is None:
        message = "no effect without ramdisk_path; add it or remove this key"
        problems.warn(("kernel", "ramdisk_load_addr"), message)
    if kernel.disk_path is not None and crate.pysim.platform == "none":
        message = 'no effect without a disk controller; set platform = "pc" in [pysim]'
        problems.warn(("kernel", "disk_path"), message)
    for key in _idle_boot_keys(kernel):
        protocol = kernel.effective_boot_protocol()
        message = f'no effect with boot_protocol = "{protocol}"; remove it or choose another protocol'
        problems.warn(("kernel", key), message)


def _idle_boot_keys(kernel: VMKernelConfig) -> list[str]:
    """The keys given that the boot protocol has no use for."""
    idle: tuple[str, ...] = ()
    match kernel.effective_boot_protocol():
        case VMBootProtocol.Direct:
            idle = ("bios_path", "bios_load_addr", "uefi_firmware_path")
        case VMBootProtocol.Multiboot:
            idle = ("cmdline", "uefi_firmware_path")
        case VMBootProtocol.Uefi:  # the firmware finds its guest on the disk
            idle = ("kernel_path", "kernel_load_addr", "cmdline", "ramdisk_path")
            if kernel.uefi_firmware_path is not None:
                idle += ("bios_path",)
            if kernel.entry_point != layout.RESET_VECTOR:
                idle += ("entry_point",)
    return [key for key in idle if getattr(kernel, key) not in (None, "")]


def _report_passthrough(crate: AxVMCrateConfig, problems: Problems) -> None:
    """A row is satisfied if it begins on a chip that the board emulates; the others lead nowhere."""
    devices = crate.devices
    windows, ports = board_windows(crate.pysim), board_ports(crate.pysim)
    for index, row in enumerate(devices.passthrough_devices):
        if row.is_device_tree_path():
            what = f"the device-tree path {show(row.name)}"
        elif _inside(row.base_gpa, windows):
            continue
        else:
            what = f"{show(row.name)} at {span(row.base_gpa, row.length)}"
        problems.warn(
            ("devices", "passthrough_devices", index),
            f"passthrough has no effect yet: the guest does not find {what}",
        )
    for key, rows, held in (
        ("passthrough_addresses", [(r.base_gpa, r.length) for r in devices.passthrough_addresses], windows),
        ("passthrough_ports", [(r.base, r.length) for r in devices.passthrough_ports], ports),
    ):
        missing = [(base, length) for base, length in rows if not _inside(base, held)]
        if missing:
            shown = ", ".join(span(base, length) for base, length in missing[:LISTED])
            more = len(missing) - LISTED
            shown += f" and {more} more" if more > 0 else ""
            message = f"passthrough has no effect yet: the guest finds nothing at {shown}"
            problems.warn(("devices", key), message)


def _inside(address: int, windows: list[tuple[int, int]]) -> bool:
    return any(base <= address < base + length for base, length in windows)


def _report_devices(crate: AxVMCrateConfig, data: Mapping[str, Any], problems: Problems) -> None:
    devices = crate.devices
    if devices.excluded_devices:
        message = "no effect: nothing is passed through that could be excluded; remove it"
        problems.warn(("devices", "excluded_devices"), message)
    mode = devices.interrupt_mode
    if mode is VMInterruptMode.Passthrough:
        message = 'no host interrupts are passed through yet; the board\'s chips deliver them, as with "emu"'
        problems.warn(("devices", "interrupt_mode"), message)
    elif (
        mode is VMInterruptMode.NoIrq
        and _given(data, "devices", "interrupt_mode")
        and crate.pysim.platform == "pc"
    ):
        message = 'the PC board\'s interrupts reach the guest all the same; write "emu"'
        problems.warn(("devices", "interrupt_mode"), message)
    if devices.address_space_policy is AddressSpacePolicy.Passthrough:
        message = 'there is no host memory to pass through yet; taken as "virtualized"'
        problems.warn(("devices", "address_space_policy"), message)
    models = default_registry().names() if devices.virtual else []
    for index, table in enumerate(devices.virtual):
        if table.model not in models:
            message = (
                f"{show(table.model)} is no device of this machine; only a registry of your own builds it"
            )
            hint = nearest(table.model.replace("-", "_"), models)
            problems.warn(("devices", "virtual", index, "model"), message, hint)


def _given(data: Mapping[str, Any], table: str, key: str) -> bool:
    """Whether the file itself has the key."""
    keys = data.get(table)
    return isinstance(keys, dict) and key in keys
