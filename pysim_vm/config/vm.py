"""AxVMConfig: what a VM is made from, with axvm's methods. It reads no file and builds no VM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from devices.contract import EmulatedDeviceConfig, GuestPhysAddr, GuestPhysAddrRange
from pysim_vm.axtypes import (
    MAPPING_FLAGS_ALL,
    VM_ASPACE_SIZE,
    AddressSpacePolicy,
    BootPolicy,
    CpuMask,
    VMInterruptMode,
    VmMemMappingType,
    VMType,
)
from pysim_vm.config.conflicts import Claim
from pysim_vm.config.model import (
    AxVMCrateConfig,
    PassThroughAddressConfig,
    PassThroughDeviceConfig,
    PassThroughPortConfig,
    PysimConfig,
    VirtualDeviceConfig,
    VmMemConfig,
)
from pysim_vm.config.problems import show, span
from pysim_vm.config.table import U64_MAX
from pysim_vm.errors import ConfigProblem, InvalidInput, ResourceConflict
from pysim_vm.layout import MIB, PAGE_SIZE


@dataclass(slots=True)
class AxVCpuConfig:
    """Where vCPUs start: guest-physical addresses of the first instruction of vCPU 0 and of the others."""

    bsp_entry: int = 0
    ap_entry: int = 0


@dataclass(slots=True)
class VMImageConfig:
    """Where images go: guest-physical addresses; None for an image that is not there, or places itself."""

    kernel_load_gpa: int | None = None
    bios_load_gpa: int | None = None
    dtb_load_gpa: int | None = None
    ramdisk_load_gpa: int | None = None


@dataclass(slots=True)
class PhysCpuList:
    """The vCPUs and the host CPUs meant for them: ids they show, and affinity masks."""

    cpu_num: int = 1
    phys_cpu_ids: tuple[int, ...] | None = None
    phys_cpu_sets: tuple[int, ...] | None = None

    def get_vcpu_affinities_pcpu_ids(self) -> list[tuple[int, int | None, int]]:
        """For each vCPU: its id, its mask or None, and its physical id, which defaults to the vCPU's id."""
        ids = self.phys_cpu_ids or ()
        sets = self.phys_cpu_sets or ()
        return [
            (
                vcpu_id,
                sets[vcpu_id] if vcpu_id < len(sets) else None,
                ids[vcpu_id] if vcpu_id < len(ids) else vcpu_id,
            )
            for vcpu_id in range(self.cpu_num)
        ]


BIOS_ROOM: Final = 2 * MIB  # axvisor leaves this much below a relocated kernel when a BIOS exists


class AxVMConfig:
    """What a VM is made from: axvm's AxVMConfig, the union of its generations, and our `pysim` settings.

    The methods bear axvm's names. `crate` is the file it came from, or None; `warnings` is what was odd in
    it, and what `vm_from_config` found odd about its images. Rows are immutable; the lists change through
    the methods, which refuse a conflict and name both owners.
    """

    def __init__(
        self,
        vm_id: int = 1,
        name: str = "vm",
        *,
        vm_type: VMType = VMType.VMTRTOS,
        phys_cpu_ls: PhysCpuList | None = None,
        cpu_config: AxVCpuConfig | None = None,
        image_config: VMImageConfig | None = None,
        memory_regions: Iterable[VmMemConfig] = (),
        emu_devices: Iterable[EmulatedDeviceConfig] = (),
        virtual_devices: Iterable[VirtualDeviceConfig] = (),
        pass_through_devices: Iterable[PassThroughDeviceConfig] = (),
        pass_through_addresses: Iterable[PassThroughAddressConfig] = (),
        pass_through_ports: Iterable[PassThroughPortConfig] = (),
        excluded_devices: Iterable[tuple[str, ...]] = (),
        reserved_address_ranges: Iterable[GuestPhysAddrRange] = (),
        spi_list: Iterable[int] = (),
        interrupt_mode: VMInterruptMode = VMInterruptMode.NoIrq,
        address_space_policy: AddressSpacePolicy = AddressSpacePolicy.Virtualized,
        boot_policy: BootPolicy = BootPolicy.KeepConfigured,
        pysim: PysimConfig | None = None,
        crate: AxVMCrateConfig | None = None,
    ) -> None:
        self._id = vm_id
        self._name = name
        self._vm_type = vm_type
        self._phys_cpu_ls = phys_cpu_ls or PhysCpuList()
        self._cpu_config = cpu_config or AxVCpuConfig()
        self._image_config = image_config or VMImageConfig()
        self._memory_regions = list(memory_regions)
        self._emu_devices = list(emu_devices)
        self._virtual_devices = list(virtual_devices)
        self._pass_through_devices = list(pass_through_devices)
        self._pass_through_addresses = list(pass_through_addresses)
        self._pass_through_ports = list(pass_through_ports)
        self._excluded_devices = list(excluded_devices)
        self._reserved_address_ranges = list(reserved_address_ranges)
        self._spi_list = list(spi_list)
        self._interrupt_mode = interrupt_mode
        self._address_space_policy = address_space_policy
        self._boot_policy = boot_policy
        self.pysim = pysim or PysimConfig()
        self.crate = crate
        self.warnings: list[ConfigProblem] = [] if crate is None else list(crate.warnings)

    # --- making ---

    @classmethod
    def from_crate(cls, crate: AxVMCrateConfig, *, arch: str = "x86_64") -> AxVMConfig:
        """The conversion that axvm does. Without an entry point vCPUs start at 0 until a loader says more.

        On x86-64 the kernel stays where the file puts it; elsewhere it follows an identical first region.
        """
        base, kernel, devices = crate.base, crate.kernel, crate.devices
        entry = GuestPhysAddr(kernel.entry_point or 0)
        return cls(
            base.id,
            base.name,
            vm_type=base.vm_type,
            phys_cpu_ls=PhysCpuList(base.cpu_num, base.phys_cpu_ids, base.phys_cpu_sets),
            cpu_config=AxVCpuConfig(entry, entry),
            image_config=VMImageConfig(
                _address(kernel.kernel_load_addr),
                _address(kernel.bios_load_addr),
                _address(kernel.dtb_load_addr),
                _address(kernel.ramdisk_load_addr),
            ),
            memory_regions=crate.ram_regions(),
            emu_devices=devices.emu_devices,
            virtual_devices=devices.virtual,
            pass_through_devices=devices.passthrough_devices,
            pass_through_addresses=devices.passthrough_addresses,
            pass_through_ports=devices.passthrough_ports,
            excluded_devices=devices.excluded_devices,
            interrupt_mode=devices.interrupt_mode,
            address_space_policy=devices.address_space_policy,
            boot_policy=(
                BootPolicy.KeepConfigured if arch == "x86_64" else BootPolicy.AdjustKernelForBootProtocol
            ),
            pysim=crate.pysim,
            crate=crate,
        )

    @classmethod
    def of(cls, config: AxVMConfig | AxVMCrateConfig) -> AxVMConfig:
        """Either kind of configuration as an AxVMConfig."""
        return config if isinstance(config, AxVMConfig) else cls.from_crate(config)

    @classmethod
    def from_toml(cls, text: str, source: str = "<string>") -> AxVMConfig:
        """`AxVMCrateConfig.from_toml`, converted."""
        return cls.from_crate(AxVMCrateConfig.from_toml(text, source))

    @classmethod
    def from_file(cls, path: str | Path) -> AxVMConfig:
        """`AxVMCrateConfig.from_file`, converted."""
        return cls.from_crate(AxVMCrateConfig.from_file(path))

    @classmethod
    def for_code(cls, memory: int | str = "2M", **pysim: Any) -> AxVMConfig:
        """A VM with `memory` of RAM from address 0 and nothing else; `pysim` are keys of the [pysim] table.

        Raises ConfigError for a size or a key that a file could not have either.
        """
        settings = PysimConfig.from_keywords({"memory": memory, **pysim})
        return cls(1, "code", memory_regions=settings.ram_regions(), pysim=settings)

    # --- identity and CPUs ---

    def id(self) -> int:
        """The VM's id."""
        return self._id

    def name(self) -> str:
        """The VM's name."""
        return self._name

    def vm_type(self) -> VMType:
        """What kind of guest it is."""
        return self._vm_type

    def cpu_num(self) -> int:
        """Number of vCPUs."""
        return self._phys_cpu_ls.cpu_num

    def phys_cpu_ls(self) -> PhysCpuList:
        """vCPUs, their physical ids and affinities."""
        return self._phys_cpu_ls

    def phys_cpu_ls_mut(self) -> PhysCpuList:
        """The same list, to be changed in place."""
        return self._phys_cpu_ls

    def get_vcpu_affinities_pcpu_ids(self) -> list[tuple[int, int | None, int]]:
        """For each vCPU: its id, its mask or None, and its physical id, which defaults to the vCPU's id."""
        return self._phys_cpu_ls.get_vcpu_affinities_pcpu_ids()

    def phys_affinity(self, vcpu_id: int) -> tuple[int, int | None]:
        """Physical id and mask (or None) of one vCPU; AxError(InvalidInput) if there is no such vCPU."""
        if not 0 <= vcpu_id < self.cpu_num():
            raise InvalidInput(f"VM[{self._id}] has no vCPU[{vcpu_id}]; it has {self.cpu_num()}")
        _, mask, phys_id = self.get_vcpu_affinities_pcpu_ids()[vcpu_id]
        return phys_id, mask

    def set_guest_cpu_sets(self, sets: Iterable[int]) -> None:
        """Replace the affinity masks, one a vCPU; AxError(InvalidInput) if they are too many or empty."""
        masks = tuple(sets)
        if len(masks) > self.cpu_num():
            raise InvalidInput(
                f"VM[{self._id}]: {len(masks)} masks for {self.cpu_num()} vCPUs; give one each"
            )
        for vcpu_id, mask in enumerate(masks):
            if not 0 < mask <= U64_MAX:
                raise InvalidInput(
                    f"VM[{self._id}] vCPU[{vcpu_id}]: mask {mask:#x} names no CPU below 64; set a bit"
                )
        self._phys_cpu_ls.phys_cpu_sets = tuple(CpuMask(mask) for mask in masks)

    # --- images and entries ---

    def image_config(self) -> VMImageConfig:
        """Load addresses; may be changed in place."""
        return self._image_config

    def cpu_config(self) -> AxVCpuConfig:
        """Entry points; may be changed in place."""
        return self._cpu_config

    def bsp_entry(self) -> int:
        """Where vCPU 0 starts."""
        return self._cpu_config.bsp_entry

    def ap_entry(self) -> int:
        """Where the other vCPUs start."""
        return self._cpu_config.ap_entry

    def boot_policy(self) -> BootPolicy:
        """Whether `relocate_kernel_image` may move the kernel."""
        return self._boot_policy

    def set_boot_policy(self, policy: BootPolicy) -> None:
        """Replace the boot policy."""
        self._boot_policy = policy

    def relocate_kernel_image(self) -> bool:
        """Let kernel and entry follow the first region, if that is identical; whether anything changed.

        As axvisor does it: kernel and entries go to the region's base, 2 MiB above it when a BIOS exists.
        Under BootPolicy.KeepConfigured nothing moves.
        """
        if self._boot_policy is BootPolicy.KeepConfigured or not self._memory_regions:
            return False
        region = self._memory_regions[0]
        if region.map_type is not VmMemMappingType.MapIdentical:
            return False
        address = GuestPhysAddr(region.gpa + (0 if self._image_config.bios_load_gpa is None else BIOS_ROOM))
        before = (self._image_config.kernel_load_gpa, self.bsp_entry(), self.ap_entry())
        self._image_config.kernel_load_gpa = address
        self._cpu_config.bsp_entry = self._cpu_config.ap_entry = address
        return before != (address, address, address)

    # --- memory ---

    def memory_regions(self) -> tuple[VmMemConfig, ...]:
        """The configured regions in the order of the file, boot scratch and DEVICE regions included."""
        return tuple(self._memory_regions)

    def memory_size(self) -> int:
        """Bytes of RAM: the regions without DEVICE, what lies in two of them counted once."""
        total = reached = 0
        for region in sorted(self._memory_regions, key=lambda each: each.gpa):
            if not region.is_device():
                total += max(0, region.end - max(reached, region.gpa))
                reached = max(reached, region.end)
        return total

    def add_memory_region(self, region: VmMemConfig) -> None:
        """One more region of RAM; ResourceConflict if it overlaps something, InvalidInput if it cannot be."""
        who = f"VM[{self._id}] memory region {region.gpa:#x} + {region.size:#x}"
        if region.size <= 0 or region.gpa < 0 or region.gpa % PAGE_SIZE or region.size % PAGE_SIZE:
            raise InvalidInput(f"{who} is not whole pages; use multiples of {PAGE_SIZE:#x}")
        if region.end > VM_ASPACE_SIZE:
            raise InvalidInput(f"{who} leaves the guest's address space; end below {VM_ASPACE_SIZE:#x}")
        if region.flags & ~MAPPING_FLAGS_ALL:
            raise InvalidInput(f"{who}: illegal flags {region.flags:#x}; 0x7 is read, write, execute")
        self._refuse_conflict(Claim.of_ram(region, ()))
        self._memory_regions.append(region)

    def contains_memory_range(self, wanted: GuestPhysAddrRange) -> bool:
        """Whether one region of RAM holds the whole range."""
        return any(
            region.gpa <= wanted.start and wanted.end <= region.end
            for region in self._memory_regions
            if not region.is_device()
        )

    def reserved_address_ranges(self) -> tuple[GuestPhysAddrRange, ...]:
        """Guest-physical ranges that nothing may be mapped at."""
        return tuple(self._reserved_address_ranges)

    def add_reserved_address_range(self, reserved: GuestPhysAddrRange) -> None:
        """Keep a range free of passthrough."""
        self._reserved_address_ranges.append(reserved)

    # --- devices ---

    def emu_devices(self) -> tuple[EmulatedDeviceConfig, ...]:
        """The rows of emu_devices."""
        return tuple(self._emu_devices)

    def virtual_devices(self) -> tuple[VirtualDeviceConfig, ...]:
        """The [[devices.virtual]] tables."""
        return tuple(self._virtual_devices)

    def pass_through_devices(self) -> tuple[PassThroughDeviceConfig, ...]:
        """The rows of passthrough_devices."""
        return tuple(self._pass_through_devices)

    def add_pass_through_device(self, device: PassThroughDeviceConfig) -> None:
        """One more device; ResourceConflict if it overlaps something, InvalidInput if it cannot be."""
        if not device.is_device_tree_path():
            claim = Claim.of_passthrough(device, ())
            if device.base_gpa < 0 or device.length < 0 or claim.misfit():
                reason = claim.misfit() or "negative numbers are no addresses; correct them"
                raise InvalidInput(f"VM[{self._id}] passthrough device {show(device.name)}: {reason}")
            self._refuse_conflict(claim)
        self._pass_through_devices.append(device)

    def remove_pass_through_device(self, device: PassThroughDeviceConfig) -> bool:
        """Drop every row equal to `device` and keep the rest; whether there was one.

        axvm 0.2 keeps what it should drop: its `retain` is inverted.
        """
        kept = [each for each in self._pass_through_devices if each != device]
        found = len(kept) < len(self._pass_through_devices)
        self._pass_through_devices = kept
        return found

    def clear_pass_through_devices(self) -> None:
        """Drop all rows of passthrough_devices."""
        self._pass_through_devices.clear()

    def pass_through_addresses(self) -> tuple[PassThroughAddressConfig, ...]:
        """The rows of passthrough_addresses."""
        return tuple(self._pass_through_addresses)

    def pass_through_ports(self) -> tuple[PassThroughPortConfig, ...]:
        """The rows of passthrough_ports."""
        return tuple(self._pass_through_ports)

    def excluded_devices(self) -> tuple[tuple[str, ...], ...]:
        """Device-tree paths that are not passed through."""
        return tuple(self._excluded_devices)

    def add_pass_through_spi(self, spi: int) -> None:
        """Give the guest a shared peripheral interrupt (ARM's GIC); once is enough."""
        if spi not in self._spi_list:
            self._spi_list.append(spi)

    def pass_through_spis(self) -> tuple[int, ...]:
        """The SPIs given to the guest."""
        return tuple(self._spi_list)

    def interrupt_mode(self) -> VMInterruptMode:
        """Who delivers interrupts."""
        return self._interrupt_mode

    def address_space_policy(self) -> AddressSpacePolicy:
        """Whether only listed ranges are mapped."""
        return self._address_space_policy

    def _refuse_conflict(self, claim: Claim) -> None:
        """ResourceConflict if `claim` contradicts what the configuration holds."""
        held = [Claim.of_ram(region, ()) for region in self._memory_regions if not region.is_device()]
        held += [Claim.of_emulated(device, ()) for device in self._emu_devices if device.length]
        held += [Claim.of_passthrough(device, ()) for device in self._pass_through_devices if device.length]
        for row in self._pass_through_addresses:
            who = f"passthrough addresses {span(row.base_gpa, row.length)}"
            held.append(Claim("mmio", row.base_gpa, row.length, "passthrough", who, ()))
        for device in self._virtual_devices:
            for base, length in device.mmio:
                who = f"device {show(device.name)} {span(base, length)}"
                held.append(Claim("mmio", base, length, "emulated", who, ()))
        for reserved in self._reserved_address_ranges:
            who = f"reserved range {span(reserved.base, reserved.length)}"
            held.append(Claim("mmio", reserved.base, reserved.length, "reserved", who, ()))
        for other in held:
            apart = claim.end <= other.start or other.end <= claim.start
            if other.space == claim.space and not apart and not claim.tolerates(other):
                raise ResourceConflict(
                    f"VM[{self._id}]: {claim.who} overlaps {other.who}; move or shrink one of them"
                )

    def __repr__(self) -> str:
        return f"AxVMConfig(id={self._id}, name={self._name!r}, {self.cpu_num()} vCPU)"


def _address(value: int | None) -> GuestPhysAddr | None:
    return None if value is None else GuestPhysAddr(value)
