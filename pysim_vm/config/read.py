"""From a TOML text to AxVMCrateConfig: [base], [kernel], and the tables together. It writes nothing.

[devices] and [pysim] have rooms of their own: config/devices.py and config/pysim.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pysim_vm.axtypes import (
    MAPPING_FLAGS_ALL,
    TEMP_MAX_VCPU_NUM,
    VM_ASPACE_SIZE,
    VMBootProtocol,
    VmMemMappingType,
    VMType,
)
from pysim_vm.config.conflicts import Claim, report_overlaps
from pysim_vm.config.devices import read_devices
from pysim_vm.config.effects import report_effects
from pysim_vm.config.model import (
    GUEST_TYPES,
    HOST_PC,
    AxVMCrateConfig,
    PysimConfig,
    VMBaseConfig,
    VMKernelConfig,
    VmMemConfig,
)
from pysim_vm.config.problems import Problems, kind_of, nearest, show, span
from pysim_vm.config.pysim import RAM_MAX, read_pysim
from pysim_vm.config.table import U64_MAX, Table, parse_toml, read_config_word
from pysim_vm.layout import AXVM_BIOS, AXVM_KERNEL, GIB, MIB, PAGE_SIZE

ARCHITECTURES: Final = ("x86_64", "aarch64", "riscv64", "loongarch64")
IMAGE_LOCATIONS: Final = ("fs", "memory")


def crate_from_toml(text: str, source: str, arch: str) -> AxVMCrateConfig:
    """What `AxVMCrateConfig.from_toml` does; it has the errors."""
    problems = Problems(source, None)
    data = parse_toml(text, problems)
    crate = None if data is None else read_crate(data, problems, arch)
    problems.raise_errors()
    assert crate is not None  # no error was found, so everything was read
    warnings = tuple(sorted(problems.warnings, key=lambda problem: problem.line))
    return replace(crate, source=source, warnings=warnings)


def read_crate(data: dict[str, Any], problems: Problems, arch: str) -> AxVMCrateConfig | None:
    """All tables. None if one of them could not be read; the errors are in `problems`."""
    if arch not in ARCHITECTURES:
        problems.error((), f"{show(arch)} is none of {', '.join(ARCHITECTURES)}; use one")
        return None
    root = Table(problems, data, ())
    relaxed = "pysim" in data  # then a loader may find entry and load address, and memory has a short form
    tables: dict[str, Table] = {}
    for name in ("base", "kernel", "devices", "pysim"):
        optional = name == "pysim" or (relaxed and name == "devices")
        root.known.append(name)
        if name not in data and not optional:
            problems.error((name,), f"missing; add a table [{name}]")
        value = data.get(name, {})
        if not isinstance(value, dict):
            problems.error((name,), f"{show(value)} is {kind_of(value)}; write a table [{name}]")
            value = {}
        elif name in data or optional:
            tables[name] = Table(problems, value, (name,))
    root.finish()
    claims: list[Claim] = []
    pysim = read_pysim(tables["pysim"]) if relaxed and "pysim" in tables else HOST_PC
    base = _read_base(tables["base"], relaxed) if "base" in tables else None
    kernel = _read_kernel(tables["kernel"], relaxed, pysim, claims, arch) if "kernel" in tables else None
    devices = read_devices(tables["devices"], relaxed, claims) if "devices" in tables else None
    for table in tables.values():
        table.finish()
    report_overlaps(claims, problems)
    if base is None or kernel is None or devices is None:
        return None
    crate = AxVMCrateConfig(base, kernel, devices, pysim)
    if arch == "x86_64":
        report_effects(crate, data, problems)
    return crate


def _read_base(table: Table, relaxed: bool) -> VMBaseConfig | None:
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
            message = f"the id {show(cpu)} belongs to vCPU {seen[cpu]} already; give each vCPU its own"
            table.problems.error((*table.place("phys_cpu_ids"), index), message)
        seen.setdefault(cpu, index)
    for index, mask in enumerate(sets or ()):
        if mask == 0:
            message = f"the mask 0 lets vCPU {index} run nowhere; set a bit for each CPU it may use"
            table.problems.error((*table.place("phys_cpu_sets"), index), message)
    if vm_id is None or not name:
        return None
    return VMBaseConfig(vm_id, name, vm_type, count, ids, sets, guest_type)


def _read_vm_type(table: Table, relaxed: bool) -> tuple[VMType, str | None]:
    """vm_type, or guest_type in its place; an unknown one is an RTOS and a warning, as in axvmconfig."""
    guest_type = table.text("guest_type")
    required = guest_type is None and "guest_type" not in table.data and not relaxed
    number = table.get("vm_type", int, "an integer", "1" if required else None)
    vm_type = VMType.VMTRTOS
    if number is not None:
        known = VMType.from_usize(number)
        if known is None:
            table.problems.warn(table.place("vm_type"), f"{show(number)} is no VM type, taken as 1 (VMTRTOS)")
        vm_type = VMType.VMTRTOS if known is None else known
    if guest_type is not None:
        named = GUEST_TYPES.get(guest_type.lower())
        if named is None:
            table.problems.warn(
                table.place("guest_type"),
                f"{show(guest_type)} is no guest type, taken as an RTOS; known are {', '.join(GUEST_TYPES)}",
                nearest(guest_type, GUEST_TYPES),
            )
        elif number is not None and named is not vm_type:
            message = f"{show(guest_type)} overrides vm_type = {show(number)}; remove vm_type"
            table.problems.warn(table.place("guest_type"), message)
        vm_type = VMType.VMTRTOS if named is None else named
    return vm_type, guest_type


def _read_kernel(
    table: Table, relaxed: bool, pysim: PysimConfig, claims: list[Claim], arch: str
) -> VMKernelConfig | None:
    def needed(example: str) -> str | None:
        return None if relaxed else example

    errors_before = len(table.problems.errors)
    entry_point = table.integer("entry_point", example=needed(hex(AXVM_BIOS)))
    # A firmware finds its guest on the disk; axvm wants the key all the same.
    word = table.data.get("boot_protocol")
    firmware = isinstance(word, str) and VMBootProtocol.from_str(word) is VMBootProtocol.Uefi
    kernel_path = table.text("kernel_path", example=needed('"kernel.bin"') if firmware else '"kernel.bin"')
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
        boot_protocol=read_config_word(table, "boot_protocol", VMBootProtocol),
        uefi_firmware_path=table.text("uefi_firmware_path"),
    )
    if len(table.problems.errors) == errors_before:
        _check_boot(table, kernel, arch)
        _warn_of_load_address(table, kernel)
    return None if kernel_path is None and not firmware else kernel


def _check_boot(table: Table, kernel: VMKernelConfig, arch: str) -> None:
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


def _warn_of_load_address(table: Table, kernel: VMKernelConfig) -> None:
    address = kernel.kernel_load_addr
    regions = kernel.memory_regions
    if address is not None and regions and not any(r.gpa <= address < r.end for r in regions):
        message = f"{address:#x} lies in no memory region; the kernel cannot be loaded there"
        table.problems.warn(table.place("kernel_load_addr"), message)


def _read_memory_regions(
    table: Table, relaxed: bool, pysim: PysimConfig, claims: list[Claim]
) -> list[VmMemConfig]:
    short_form = pysim.memory is not None
    example = None if relaxed else f"[[0x0, {16 * MIB:#x}, 0x7, 0]]"
    regions: list[VmMemConfig] = []
    for path, element in table.rows("memory_regions", example):
        row = Table.from_row(table.problems, element, path, ("gpa", "size", "flags", "map_type"))
        if row is not None:
            region = _read_memory_region(row)
            row.finish()
            if region is not None:
                regions.append(region)
                if not region.is_device():
                    claims.append(Claim.of_ram(region, path))
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


def _read_memory_region(row: Table) -> VmMemConfig | None:
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
        row.error("map_type", f"{show(number)} is no mapping; write 0 alloc, 1 identical or 2 reserved")
        return None
    if gpa is None or size is None or not _check_pages(row, gpa, size) or flags is None:
        return None
    region = VmMemConfig(gpa, size, flags, VmMemMappingType(number or 0))
    if region.is_device():
        message = "the DEVICE flag is not for RAM, region skipped; list it under passthrough_devices"
        row.problems.warn(row.place("flags"), message)
    return region


def _check_pages(row: Table, gpa: int, size: int) -> bool:
    """Whether [gpa, gpa + size) is a range of whole pages inside the guest's address space."""
    if size == 0:
        row.error("size", f"a region of 0 bytes holds nothing; give a multiple of {PAGE_SIZE:#x}")
    elif gpa % PAGE_SIZE or size % PAGE_SIZE:
        key = "gpa" if gpa % PAGE_SIZE else "size"
        row.error(key, f"{show(row.data[key])} is no multiple of {PAGE_SIZE:#x}; regions are whole pages")
    elif gpa + size > VM_ASPACE_SIZE:
        row.error(
            "size", f"{span(gpa, size)} leaves the guest's address space; end below {VM_ASPACE_SIZE:#x}"
        )
    else:
        return True
    return False
