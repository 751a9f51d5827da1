"""AxVM: one virtual machine - its memory, devices, vCPU and the exit loop of axvm. It loads no file format.

`run_vcpu` is the heart: bind, run until an exit, let AxVmDevices answer it, go on; whatever it cannot answer
itself is returned to the caller.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from devices.base import DeviceError, IrqLine
from devices.block import BlockBackend
from devices.bus import BusError, BusKind
from devices.clock import VirtualClock
from devices.contract import EmulatedDeviceConfig
from devices.local_apic import DeliveryMode, IpiMessage, Shorthand, SysRegFault
from devices.manager import AxVmDeviceConfig, AxVmDevices, IrqConflict, IvcError, SysRegNotFound
from devices.registry import DeviceRegistry
from isa.cpu import Cpu
from isa.cpuid import CpuId, feature_set
from isa.exits import (
    Budget,
    CpuDown,
    CpuUp,
    ExitReason,
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
)
from isa.faults import GeneralProtection
from isa.memory import MemoryMapError, PhysicalMemory
from isa.msr import is_canonical
from isa.state import CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, M64
from isa.stepping import plain_functions, step_plainly
from pysim_vm.address_space import AddrSpace
from pysim_vm.axtypes import (
    MappingFlags,
    MemoryLayout,
    StopReason,
    VMInterruptMode,
    VmMemMappingType,
    VMMemoryRegion,
)
from pysim_vm.board import BoardHooks, BoardOptions, PcBoard, build_pc, ram_split
from pysim_vm.boot_plan import BootPlan, CpuStart
from pysim_vm.config import AxVMConfig
from pysim_vm.display.reason import show_reasons_in_notebooks
from pysim_vm.emulated import build_emulated, rows_of_virtual
from pysim_vm.errors import AxError, AxErrorKind, DeviceFault, InvalidConfig, ResourceConflict
from pysim_vm.exit_kinds import (
    ANSWERED,
    IO_READ,
    MMIO_READ,
    NAMES,
    SYS_REG_READ,
    fields_of,
    kind_of,
)
from pysim_vm.exit_log import ExitLog
from pysim_vm.hal import AxVMHal, DefaultHal
from pysim_vm.layout import PCI_HOLE_BASE
from pysim_vm.lifecycle import VCpuState, VmStatus, accepts_interrupts, vm_transition
from pysim_vm.short_exits import EXIT_CHUNK, LOG_SLICE, Outcome, ShortExits
from pysim_vm.stepping import Steps
from pysim_vm.translation_cache import WRITE_FROM, cache_for
from pysim_vm.vcpu import VCpu, VcpuSnapshot

if TYPE_CHECKING:
    from pysim_vm.display.show import Show
    from pysim_vm.hooks import Hooks
    from pysim_vm.loader import LoadOptions
    from pysim_vm.recorder import Recorder
    from pysim_vm.trace import Trace
    from pysim_vm.trace.rows import EventRow

T = TypeVar("T")

GUEST_SPACE_BASE = 0x0
GUEST_SPACE_SIZE = 0x7FFF_FFFF_F000
IDLE_EVENTS = 100_000  # timer events in a row that do not wake a halted vCPU before run_vcpu gives up
ISA_LINES = 16  # of the two 8259s
IDENTICAL_ALIGN = 0x20_0000  # where axvisor lets host-chosen regions begin: 2 MiB pages map them

READ_KINDS = (MMIO_READ, IO_READ, SYS_REG_READ)
BUS_OF = (BusKind.MMIO, BusKind.MMIO, BusKind.PORT, BusKind.PORT, BusKind.SYS_REG, BusKind.SYS_REG)


show_reasons_in_notebooks()


class GuestRam:
    """Guest memory as DMA masters see it (devices.base.GuestMemory)."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes; DeviceError where no RAM is."""
        try:
            return self._memory.read(gpa, size)
        except MemoryMapError as error:
            raise DeviceError(str(error)) from None

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data`; DeviceError where no RAM is."""
        try:
            self._memory.write(gpa, data)
        except MemoryMapError as error:
            raise DeviceError(str(error)) from None


class OutputBuffer:
    """What the guest printed: bounded, as a guest is untrusted. Bytes over the limit are only counted."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.dropped = 0
        self.listener: Callable[[bytes], None] | None = None

    def __call__(self, data: bytes) -> None:
        room = self.limit - len(self.data)
        if room < len(data):
            self.dropped += len(data) - max(room, 0)
            data = data[: max(room, 0)]
        if data:
            self.data += data
            if self.listener is not None:
                self.listener(data)

    def text(self) -> str:
        """The output as text, undecodable bytes replaced."""
        return self.data.decode("utf-8", "replace")


class AxVM:
    """A virtual machine. `AxVM(config)` does everything that axvm's `new` does; the guest waits at its entry.

    Keyword arguments: `hal` replaces the default AxVMHal; `plan` is a loader's BootPlan; `disks` are block
    back-ends for the IDE channel (at most two); `registry` builds the rows of emu_devices in place of the
    default one, so that a configuration can name devices of your own.
    """

    def __init__(
        self,
        config: AxVMConfig,
        hal: AxVMHal | None = None,
        *,
        plan: BootPlan | None = None,
        disks: Iterable[BlockBackend] = (),
        registry: DeviceRegistry | None = None,
    ) -> None:
        self._config = config
        self._status = VmStatus.Ready
        self.stop_reason: StopReason | None = None
        self.exit_code: int | None = None  # what the guest wrote to isa-debug-exit
        self._exit_counts: Counter[str] = Counter()
        self._on_exit: Callable[[VCpu, ExitReason], None] | None = None
        self._exit_log: ExitLog | None = None
        self.exit_sink: Callable[[ExitLog], None] | None = None  # takes the rows of `exit_log`
        self.on_idle: Callable[[int], None] | None = None
        self._down: ExitReason | None = None  # the machine is off: every run returns it
        self._waiting: deque[ExitReason] = deque()  # for the caller, once the instruction is over
        self._reset_requested = False
        self._current_vcpu: VCpu | None = None
        self._until = -1  # where the running CPU stops; -1 outside of it
        self._value = 0  # what a device answered to the last read on the full way
        self._listeners: Hooks | None = None  # made when somebody asks for `hooks`
        self._held: ExitReason | None = None  # the end of a run that a hook's exception replaced
        self.recorder: Recorder | None = None
        self._skipped_ns = 0
        options = config.pysim
        self.ns_per_instruction = options.ns_per_instruction
        self._budget = options.budget_instructions
        self.console = OutputBuffer(options.output_limit)
        self.debug_console = OutputBuffer(options.output_limit)
        self.plan = plan
        self._disks = tuple(disks)
        self._registry = registry

        self.memory = PhysicalMemory()
        self.address_space = AddrSpace.new_empty(self.memory, GUEST_SPACE_BASE, GUEST_SPACE_SIZE)
        self._regions: list[VMMemoryRegion] = []
        self._reserved: list[tuple[int, int]] = []  # host ranges to give back: (base, size)
        self._hal = hal if hal is not None else DefaultHal(self._find_vm, self.now_ns)
        try:
            self._build()
        except (BusError, IrqConflict) as error:
            self._release_memory()
            raise ResourceConflict(f"VM[{self.id()}]: {error}") from error
        except DeviceError as error:
            self._release_memory()
            raise InvalidConfig(f"VM[{self.id()}]: {error}") from error
        except BaseException:
            self._release_memory()
            raise

    def _build(self) -> None:
        """Memory, CPU, board and devices, in axvm's order."""
        config, options, plan = self._config, self._config.pysim, self.plan
        if config.cpu_num() != 1:
            raise InvalidConfig(
                f"VM[{self.id()}] has {config.cpu_num()} vCPUs: this machine has one CPU for now; "
                "write cpu_num = 1"
            )
        self._map_configured_memory()
        features = feature_set(options.cpu_features)
        self._features = features
        cpu = Cpu(self.memory, features, CpuId(features, tsc_hz=options.tsc_hz))
        cpu.use_blocks = options.engine != "step"
        wanted = options.translation_cache if cpu.use_blocks else None
        self.translation_cache = cache_for(wanted, options.translation_cache_limit, features)
        cpu.drafts = self.translation_cache
        self._tsc_hz = options.tsc_hz
        cpu.tsc = self._tsc
        self._seed = options.seed & M64
        cpu.random64 = self._random64
        self._random_state = self._seed
        self._vcpus = [VCpu(self, 0, cpu, *config.phys_affinity(0))]
        self.clock = VirtualClock(self.now_ns)
        self._devices = AxVmDevices(
            AxVmDeviceConfig(tuple(config.emu_devices())), missing_device=options.missing_device
        )
        self._short = ShortExits(self._vcpus[0], self._devices)
        self._devices.mmio.on_change = self._mmio_changed
        self._devices.port.on_change = self._devices.sys_reg.on_change = self._short.forget
        self._devices.on_policy = self._choose_exit_path
        self.clock.on_change = self._deadline_added
        self._choose_exit_path()
        cpu.msr_intercepted = lambda index: self._devices.sys_reg.find(index) is not None
        self._hooks = self._board_hooks()
        self.board: PcBoard | None = self._build_board(self._hooks) if options.platform == "pc" else None
        self.memory.unclaimed_is_mmio = options.platform == "pc" or options.missing_device == "ones"
        self._mmio_changed()
        self._build_rows(config.emu_devices())
        for row in rows_of_virtual(config.virtual_devices(), self._registry):
            self._build_rows((row,))
        entry: int | CpuStart = config.bsp_entry()
        if plan is not None:
            self._load(plan)
            entry = plan.start
        self._vcpus[0].setup(entry, self.ept_root())

    @classmethod
    def new(cls, config: AxVMConfig, hal: AxVMHal | None = None, **options: Any) -> AxVM:
        """axvm's constructor name."""
        return cls(config, hal, **options)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> AxVM:
        """The VM that a configuration file describes, its images loaded (docs/configuration.md).

        ConfigError for a wrong file, LoadError for a wrong image, one sentence each::

            vm = AxVM.from_file("examples/flat.toml")
            vm.run(100_000)
            print(vm.console.text())
        """
        from pysim_vm.machine import vm_from_config

        return vm_from_config(path)

    @classmethod
    def from_image(
        cls, path: str | os.PathLike[str], options: LoadOptions | None = None, **machine: Any
    ) -> AxVM:
        """A PC that is about to start the guest in `path`; `machine` is what `vm_from_image` takes besides.

        LoadError or ConfigError, one sentence each, on bad input::

            vm = AxVM.from_image("bios.bin", memory="64M", disks=["disk.img"])
            vm.run(10_000_000)
        """
        from pysim_vm.machine import vm_from_image

        return vm_from_image(path, options, **machine)

    @classmethod
    def from_code(
        cls,
        code: bytes,
        mode: str = "long",
        base: int = 0x1000,
        memory: int | str = "2M",
        regs: Mapping[str, int] | None = None,
        **pysim: Any,
    ) -> AxVM:
        """A bare machine (no board) with `code` at `base` and RIP there.

        `mode`: "real", "protected" (flat 32-bit) or "long" (64-bit, first 4 GiB identity paged). `pysim`
        takes the keys of the configuration's [pysim] table, e.g. platform="pc" or missing_device="ones".
        """
        from pysim_vm.loader.flat import code_plan

        config = AxVMConfig.for_code(memory, **pysim)
        plan = code_plan(code, mode, base, config.memory_size())
        vm = cls(config, plan=plan)
        for name, value in (regs or {}).items():
            vm.vcpu(0).regs[name] = value
        return vm

    @classmethod
    def from_asm(cls, text: str, mode: str = "long", base: int = 0x1000, **options: Any) -> AxVM:
        """`from_code` on assembly text (docs/assembler.md)."""
        from isa.assembler import assemble

        bits = {"real": 16, "protected": 32, "long": 64}.get(mode, 64)
        return cls.from_code(assemble(text, bits=bits, origin=base), mode, base, **options)

    # ---- building ------------------------------------------------------------------------------------

    def _map_configured_memory(self) -> None:
        """Map the configured regions; a part that an earlier region covers already is left to it."""
        for region in self._config.memory_regions():
            flags = MappingFlags(region.flags)
            if flags & MappingFlags.DEVICE:
                continue  # axvm: device memory is listed under passthrough_devices
            if region.map_type is VmMemMappingType.MapIdentical:
                self._reserve(region.gpa, region.size)
            for gpa, size in self._uncovered(region.gpa, region.size):
                self._map_region_of(gpa, size, flags or MappingFlags(7), region.map_type)

    def _reserve(self, base: int, size: int) -> None:
        """Take a host range from the HAL. NoMemory, and nothing mapped, if the host cannot give it."""
        if not self._hal.alloc_memory_region_at(base, size):
            raise AxError(
                AxErrorKind.NoMemory,
                f"memory region {base:#x}+{size:#x}: the host cannot give that address; choose another or "
                "map_type 0",
            )
        self._reserved.append((base, size))

    def _release_memory(self) -> None:
        """Unmap everything and give the host its ranges back."""
        self.address_space.clear()
        self._regions.clear()
        while self._reserved:
            self._hal.dealloc_memory_region_at(*self._reserved.pop())

    def _map_region_of(
        self, gpa: int, size: int, flags: int, kind: VmMemMappingType, populate: bool = True
    ) -> VMMemoryRegion:
        """Map one region of RAM. Identical and reserved ones have the same address in the host.

        The bytes of all of them lie in the VM's pool: the host behind the HAL is bookkeeping.
        """
        area = self.address_space.map_alloc(gpa, size, flags, populate)
        region = VMMemoryRegion(
            gpa=gpa,
            hva=area.host if kind is VmMemMappingType.MapAlloc else gpa,
            size=size,
            needs_dealloc=kind is not VmMemMappingType.MapReserved,
        )
        self._regions.append(region)
        return region

    def _uncovered(self, gpa: int, size: int) -> list[tuple[int, int]]:
        """The parts of [gpa, gpa + size) that no region covers."""
        parts, at, end = [], gpa, gpa + size
        for region in self.memory.regions:
            if region.end <= at or region.base >= end:
                continue
            if region.base > at:
                parts.append((at, region.base - at))
            at = max(at, region.end)
        if at < end:
            parts.append((at, end - at))
        return parts

    def _board_hooks(self) -> BoardHooks:
        """What chips need from this machine."""
        return BoardHooks(
            clock=self.clock,
            memory=GuestRam(self.memory),
            console=self.console,
            debug_console=self.debug_console,
            set_intr=self._set_intr,
            set_nmi=self._vcpus[0].inject_nmi,
            on_a20=self.memory.set_a20,
            on_reset=self.request_reset,
            on_poweroff=self.power_off,
            on_exit=self._guest_exit,
            send_ipi=self._send_ipi,
            on_sleep=self._sleep,
            on_line=self._short.on_line,
        )

    def _build_board(self, hooks: BoardHooks) -> PcBoard:
        options = self._config.pysim
        # Memory in the PCI hole (axvm's UEFI files map the firmware's) is no RAM that a BIOS may hand out.
        total = sum(region.size for region in self.memory.regions if region.base < PCI_HOLE_BASE)
        above = sum(region.size for region in self.memory.regions if region.base >= 1 << 32)
        below, _ = ram_split(total)
        board = build_pc(
            self._devices,
            BoardOptions(
                ram_below_4g=below,
                ram_above_4g=above,
                apic="APIC" in self._features,
                x2apic="X2APIC" in self._features,
                tsc_deadline="TSC_DEADLINE" in self._features,
                vga=options.vga,
                tsc_hz=options.tsc_hz,
                rtc_start=_start_date(options.rtc_start),
                debug_exit_port=options.debug_exit_port,
                disks=self._disks,
            ),
            hooks,
        )
        cpu = self._vcpus[0].cpu
        cpu.acknowledge = board.acknowledge
        cpu.on_ferr = board.coprocessor_error.set_ferr
        if board.local_apic is not None:
            cpu.on_cr8 = board.local_apic.write_cr8
            cpu.read_cr8 = board.local_apic.read_cr8
        return board

    def _load(self, plan: BootPlan) -> None:
        """Put a loader's bytes in place."""
        for gpa, data in plan.roms:
            size = len(data) + 0xFFF & -0x1000
            for at, length in self._uncovered(gpa, size):
                self.address_space.map_alloc(at, length, MappingFlags.READ | MappingFlags.EXECUTE, name="rom")
            self.memory.write(gpa, data)
        for gpa, data in plan.writes:
            self.write_to_guest(gpa, data)

    # ---- identity and parts --------------------------------------------------------------------------

    def id(self) -> int:
        """The VM's id."""
        return self._config.id()

    def name(self) -> str:
        """The VM's name."""
        return self._config.name()

    def config(self) -> AxVMConfig:
        """The configuration."""
        return self._config

    def with_config(self, work: Callable[[AxVMConfig], T]) -> T:
        """`work` on the mutable configuration."""
        return work(self._config)

    def vcpu(self, vcpu_id: int) -> VCpu:
        """A vCPU. InvalidInput "Invalid vcpu_id" if there is none (axvm's `vcpu` gives None)."""
        if not 0 <= vcpu_id < len(self._vcpus):
            raise AxError(
                AxErrorKind.InvalidInput, f"Invalid vcpu_id {vcpu_id}: VM[{self.id()}] has {len(self._vcpus)}"
            )
        return self._vcpus[vcpu_id]

    def vcpu_num(self) -> int:
        """Number of vCPUs."""
        return len(self._vcpus)

    def vcpu_list(self) -> tuple[VCpu, ...]:
        """All vCPUs."""
        return tuple(self._vcpus)

    def vcpu_snapshots(self) -> tuple[VcpuSnapshot, ...]:
        """Id, state and affinity of every vCPU, as they are now."""
        return tuple(VcpuSnapshot(vcpu.id(), vcpu.state(), vcpu.phys_cpu_set()) for vcpu in self._vcpus)

    def get_vcpu_affinities_pcpu_ids(self) -> list[tuple[int, int | None, int]]:
        """For each configured vCPU: its id, its affinity mask or None, and its physical id."""
        return self._config.get_vcpu_affinities_pcpu_ids()

    def interrupt_mode(self) -> VMInterruptMode:
        """Who delivers interrupts, as configured."""
        return self._config.interrupt_mode()

    def ept_root(self) -> int:
        """Root of the nested page table; always 0 (AddrSpace is a list of areas)."""
        return self.address_space.page_table_root()

    nested_page_table_root = ept_root  # axvm 0.5's name

    def get_devices(self) -> AxVmDevices:
        """The VM's devices; devices can be added at any time."""
        return self._devices

    def device_count(self) -> int:
        """Number of registered devices."""
        return sum(1 for _ in self._devices.iter_devices())

    def add_emulated_device(self, row: EmulatedDeviceConfig) -> None:
        """Build one more row of `emu_devices` and put it on the buses; errors as from the constructor."""
        try:
            self._build_rows((row,))
        except (BusError, IrqConflict) as error:
            raise ResourceConflict(f"VM[{self.id()}]: {error}") from error
        except DeviceError as error:
            raise InvalidConfig(f"VM[{self.id()}]: {error}") from error

    def _build_rows(self, rows: Iterable[EmulatedDeviceConfig]) -> None:
        io_apic = None if self.board is None else self.board.io_apic
        pin = None if io_apic is None else self._noted(io_apic.set_irq)
        build_emulated(self._devices, rows, self._hooks, self._wire, pin, self._registry)

    def irq_line(self, number: int, owner: object) -> IrqLine:
        """Board interrupt line `number` for `owner`, a device or a name. NotFound without a board.

        ResourceConflict, naming both, if another device drives it.
        """
        if self.board is None or not 0 <= number < ISA_LINES:
            raise AxError(
                AxErrorKind.NotFound,
                f'interrupt line {number}: VM[{self.id()}] has no such wire; platform = "pc" has 0-15',
            )
        try:
            self._devices.claim_irq(number, owner)
        except IrqConflict as error:
            raise ResourceConflict(f"VM[{self.id()}]: {error}") from error
        return self.board.line(number)

    def guest_memory(self) -> GuestRam:
        """Guest memory for a device that does DMA: `read(gpa, size)` and `write(gpa, data)`.

        DeviceError where no RAM is, and then nothing is stored. Code that a write changes is decoded anew.
        """
        return GuestRam(self.memory)

    def _wire(self, number: int) -> IrqLine:
        """The board's interrupt line `number`; without a board one that ends nowhere."""
        return IrqLine(self._short.on_line, number) if self.board is None else self.board.line(number)

    def _noted(self, sink: Callable[[int, bool], None]) -> Callable[[int, bool], None]:
        """`sink`, its lines being part of the exit log."""

        def drive(number: int, level: bool) -> None:
            self._short.on_line(number, level)
            sink(number, level)

        return drive

    def hal(self) -> AxVMHal:
        """The host services."""
        return self._hal

    def _find_vm(self, vm_id: int) -> AxVM | None:
        return self if vm_id == self.id() else None

    # ---- time ----------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Virtual time: retired instructions times the setting, plus what HLT skipped."""
        return self._vcpus[0].cpu.retired * self.ns_per_instruction + self._skipped_ns

    def _tsc(self) -> int:
        return self.now_ns() * self._tsc_hz // 1_000_000_000 & M64

    def _random64(self) -> int:
        """splitmix64 from the configured seed: one step a draw, the same on every machine."""
        self._random_state = self._random_state + 0x9E37_79B9_7F4A_7C15 & M64
        z = self._random_state
        z = (z ^ z >> 30) * 0xBF58_476D_1CE4_E5B9 & M64
        z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB & M64
        return z ^ z >> 31

    # ---- lifecycle -----------------------------------------------------------------------------------

    def vm_status(self) -> VmStatus:
        """Where the VM is in its life."""
        return self._status

    status = vm_status  # axvm 0.5's name

    def set_vm_status(self, status: VmStatus) -> None:
        """Set the status without a check, as axvm 0.2's: for a manager that keeps its own rules."""
        self._status = status
        if self._current_vcpu is not None:
            self._current_vcpu.cpu.request_attention()

    def running(self) -> bool:
        """True after `boot` until it stops."""
        return self._status is VmStatus.Running

    def stopping(self) -> bool:
        """True while it stops."""
        return self._status is VmStatus.Stopping

    def stopped(self) -> bool:
        """True once it stopped."""
        return self._status is VmStatus.Stopped

    def suspending(self) -> bool:
        """True while paused or about to be."""
        return self._status in (VmStatus.Pausing, VmStatus.Paused)

    def shutting_down(self) -> bool:
        """True after `shutdown`."""
        return self._status in (VmStatus.Stopping, VmStatus.Stopped)

    def _next_status(self, action: str) -> VmStatus:
        """The status after `action`; InvalidTransition, naming this VM, for a wrong step."""
        return vm_transition(self._status, action, f"VM[{self.id()}]")

    def boot(self) -> None:
        """Ready or Stopped -> Running. BadState "VM[n] is already running"."""
        if self._status is VmStatus.Running:
            raise AxError(AxErrorKind.BadState, f"VM[{self.id()}] is already running")
        self._status = self._next_status("start")
        self._down = None

    start = boot

    def pause(self) -> None:
        """Running -> Paused; Pausing for as long as run_vcpu needs to leave the guest (as Nothing)."""
        self._status = self._next_status("pause")
        self._park()

    def _park(self) -> None:
        """Finish what a status is on the way to once no vCPU runs; tell a running one to leave."""
        if self._current_vcpu is not None:
            self._current_vcpu.cpu.kick()
        elif self._status is VmStatus.Pausing:
            self._status = self._next_status("parked")
        elif self._status is VmStatus.Stopping:
            self._status = self._next_status("finish_stop")
            self.keep_translations()

    def resume(self) -> None:
        """Paused -> Running."""
        self._status = self._next_status("resume")

    def stop(self, reason: StopReason) -> None:
        """-> Stopped, remembering why; Stopping for as long as run_vcpu needs to leave the guest."""
        self._status = self._next_status("stop")
        self.stop_reason = reason
        self._park()

    def shutdown(self) -> None:
        """Stop cleanly. BadState if the VM is stopping or stopped already."""
        if self.shutting_down():
            raise AxError(AxErrorKind.BadState, f"VM[{self.id()}] is already stopping or stopped")
        self.stop(StopReason.clean())

    def reset(self) -> None:
        """Ready or Stopped -> Ready: CPU, devices and boot state as at creation; RAM stays.

        A board reset by the guest goes the same way while the VM runs. BadState while a vCPU runs: there
        `request_reset` is the way.
        """
        self._refuse_while_running("reset")
        self._status = self._next_status("reset")
        self._do_reset()

    def destroy(self) -> None:
        """Give memory and timers back; the VM cannot be used again. BadState while a vCPU runs."""
        self._refuse_while_running("destroy")
        if self._status is VmStatus.Running:
            self.stop(StopReason.forced())
        self._status = self._next_status("destroy")
        self.clock.clear()
        self._release_memory()
        self._status = self._next_status("finish_destroy")

    def keep_translations(self, at_least: int = 1) -> None:
        """Write what the block engine translated to the cache, if it has one and `at_least` so many wait."""
        if self.translation_cache is not None:
            self.translation_cache.flush(at_least)

    def _refuse_while_running(self, what: str) -> None:
        if self._current_vcpu is not None:
            raise AxError(
                AxErrorKind.BadState,
                f"VM[{self.id()}]: {what} while vCPU[{self._current_vcpu.id()}] runs; stop it and wait until "
                "run_vcpu has returned",
            )

    def request_reset(self) -> None:
        """The board's reset wire: the machine resets once the running instruction is over."""
        self._reset_requested = True
        self._vcpus[0].cpu.kick()

    def power_off(self) -> None:
        """The board's power switch: run_vcpu returns SystemDown once the running instruction is over."""
        self._down = SystemDown()
        self._vcpus[0].cpu.kick()

    def _guest_exit(self, code: int) -> None:
        self.exit_code = code
        self.power_off()

    def _do_reset(self) -> None:
        self._reset_requested = False
        self._down = self._held = None
        self._waiting.clear()
        self.clock.clear()
        self._devices.reset()
        self.memory.set_a20(True)
        vcpu = self._vcpus[0]
        if self.plan is not None:
            for gpa, size in self.plan.clears:
                self.write_to_guest(gpa, bytes(size))
            self._load(self.plan)
            vcpu.load_start(self.plan.start)
        else:
            vcpu.set_entry(self._config.bsp_entry())
        if vcpu.state() is VCpuState.Invalid:
            vcpu.set_state(VCpuState.Free)  # nothing is left of what went wrong

    # ---- the exit loop -------------------------------------------------------------------------------

    def run_vcpu(self, vcpu_id: int = 0, budget: int | None = None) -> ExitReason:
        """Run a vCPU until an exit that the VM does not answer itself, and return it.

        axvm's order: MmioRead, MmioWrite, IoRead, IoWrite, SysRegRead, SysRegWrite, NestedPageFault of a
        lazily mapped page; then HLT with a timer armed, which skips virtual time forward. Everything else is
        returned: Hypercall, Halt, SystemDown, TripleFault (or the machine resets, if exit_on_triple_fault is
        off), Unimplemented, and Budget once `budget` instructions or the configured budget are used up. A
        device error raises AxError and leaves the vCPU usable: RIP is at the instruction, which asks again
        at the next run.
        """
        vcpu = self.vcpu(vcpu_id)
        if self._current_vcpu is not None:
            raise AxError(
                AxErrorKind.BadState,
                f"VM[{self.id()}]: run_vcpu while vCPU[{self._current_vcpu.id()}] runs; return from the "
                "device or callback first",
            )
        if not self._may_run():
            raise AxError(
                AxErrorKind.BadState, f"VM[{self.id()}] is {self._status.name}; start or reset it first"
            )
        if self._held is not None:
            held, self._held = self._held, None
            return held
        if self._down is not None:
            return self._down
        failure = entry_failure(vcpu.cpu)
        if failure is not None:
            return failure
        vcpu.refuse_unanswered_hypercall()
        retired = vcpu.cpu.retired
        limit = self._budget if budget is None else min(self._budget, retired + budget)
        if self._listeners is not None:
            self._listeners.settle()
        try:
            reason = self._bound(vcpu, lambda: self._exit_loop(vcpu, limit))
        finally:
            self._drain_log(1)
            self.keep_translations(WRITE_FROM)
        if self._listeners is not None and self._listeners.failure is not None:
            if not isinstance(reason, Budget | Nothing):
                self._held = reason  # for the next run: nothing is lost
            self._listeners.raise_failure()
        return reason

    def step_vcpu(self, vcpu_id: int) -> ExitReason | None:
        """Run one instruction with its exits; the last exit it took, or None. `steps` is for many."""
        last: list[ExitReason] = []
        vcpu = self.vcpu(vcpu_id)
        cpu = vcpu.cpu
        if (
            self._current_vcpu is None
            and vcpu.state() is VCpuState.Free
            and self._may_run()
            and cpu.retired + 1 < self._next_stop(cpu, self._budget)
            and step_plainly(cpu, plain_functions())
        ):
            return None
        outer = self.on_exit

        def note(source: VCpu, reason: ExitReason) -> None:
            last.append(reason)
            if outer is not None:
                outer(source, reason)

        self.on_exit = note
        try:
            reason = self.run_vcpu(vcpu_id, budget=1)
        finally:
            self.on_exit = outer
        if not isinstance(reason, Budget):
            return reason
        if vcpu.cpu.retired >= self._budget:
            return reason
        return last[-1] if last else None

    def _bound(self, vcpu: VCpu, work: Callable[[], T]) -> T:
        """Bind, work, and unbind whatever happens."""
        vcpu.bind()
        try:
            return self.with_current_vcpu(vcpu, work)
        finally:
            if vcpu.state() is not VCpuState.Invalid:
                vcpu.unbind()

    def with_current_vcpu(self, vcpu: VCpu, work: Callable[[], T]) -> T:
        """`work` with `vcpu` as the VM's current one. BadState if one is current already."""
        if self._current_vcpu is not None:
            raise AxError(AxErrorKind.BadState, f"VM[{self.id()}]: a vCPU is running already")
        self._current_vcpu = vcpu
        try:
            with self._hal.running(self.id(), vcpu.id(), vcpu.favor_phys_cpu(), self.now_ns):
                return work()
        finally:
            self._current_vcpu = None
            self._park()

    def current_vcpu(self) -> VCpu | None:
        """The vCPU that is running now."""
        return self._current_vcpu

    def _exit_loop(self, vcpu: VCpu, limit: int) -> ExitReason:
        cpu = vcpu.cpu
        while True:
            if self._listeners is not None and self._listeners.due:
                self._listeners.settle()
            if not cpu.answers:  # between two instructions
                if self._listeners is not None and self._listeners.failure is not None:
                    return Nothing()
                if self._reset_requested:
                    self._do_reset()
                if self._down is not None:
                    return self._noted_news(vcpu, self._down)
                if self._waiting:
                    return self._noted_news(vcpu, self._waiting.popleft())
                if not self._may_run():
                    return Nothing()
            until = self._next_stop(cpu, limit)
            if self._exit_log is not None:
                self._drain_log(EXIT_CHUNK)
                until = min(until, cpu.retired + LOG_SLICE)
            self._until = until
            try:
                reason = vcpu.run(until)
            finally:
                self._until = -1
            if reason.__class__ is Budget:
                self._fire_timers()
                if cpu.retired >= limit and not self._has_news():
                    return reason
            elif self._short.outcome is not None:
                self._settle(vcpu, reason, self._short.outcome)
            else:
                self._exit_counts[reason.__class__.__name__] += 1
                if self._exit_log is not None or self._hears_exits():
                    answered = self._answer_logged(vcpu, reason, self._exit_log)
                else:
                    if self._on_exit is not None:
                        self._on_exit(vcpu, reason)
                    answered = self._answer(vcpu, reason)
                if not answered:
                    return reason

    def _settle(self, vcpu: VCpu, reason: ExitReason, outcome: Outcome) -> None:
        """An exit was taken the short way and more came of it than an answer: on as on the full way."""
        self._short.outcome = None
        cpu = vcpu.cpu
        rip, cpu.rip = cpu.rip, outcome.rip
        try:
            if outcome.error is None:
                vcpu.complete(outcome.value)
            elif isinstance(outcome.error, DeviceError):
                self._device_error(vcpu, reason, outcome.error)
            else:
                raise outcome.error
        finally:
            if self._exit_log is not None:
                kind = kind_of(reason)
                address, width, data = fields_of(reason)
                value = outcome.value if kind in READ_KINDS else data
                self._exit_log.append(
                    (cpu.retired, vcpu.id(), rip, kind, address, width, value, outcome.device, outcome.raised)
                )

    def _hears_exits(self) -> bool:
        return self._listeners is not None and self._listeners.hears_exits

    def _answer_logged(self, vcpu: VCpu, reason: ExitReason, log: ExitLog | None) -> bool:
        """`_answer` with an entry in the log afterwards, whatever comes of it; hooks hear of it, too."""
        cpu = vcpu.cpu
        retired, rip, kind = cpu.retired, cpu.rip, kind_of(reason)
        address, width, value = fields_of(reason)
        skipped = self._skipped_ns  # the value of a HLT is the virtual time it skips, which no other row has
        device = -1
        if kind < ANSWERED:
            answering = self._devices.answering(BUS_OF[kind], address, kind not in READ_KINDS)
            device = self._devices.device_number(answering)
        self._short.take_raised()
        self._value = 0
        try:
            if self._on_exit is not None:
                self._on_exit(vcpu, reason)
            answered = self._answer(vcpu, reason)
            if kind in READ_KINDS:
                value = self._value
        finally:
            if reason.__class__ is Halt:
                value = self._skipped_ns - skipped
            raised = self._short.take_raised()
            row = (retired, vcpu.id(), rip, kind, address, width, value, device, raised)
            if log is not None:
                log.append(row)
            if self._listeners is not None:
                self._listeners.saw_exit(row)
        return answered

    def _noted_news(self, vcpu: VCpu, reason: ExitReason) -> ExitReason:
        """News from the board for the caller, which the log wants to know of; not the caller's own kick."""
        if not isinstance(reason, Nothing):
            cpu = vcpu.cpu
            row = (cpu.retired, vcpu.id(), cpu.rip, kind_of(reason), *fields_of(reason), -1, 0)
            if self._exit_log is not None:
                self._exit_log.append(row)
            if self._listeners is not None:
                self._listeners.saw_exit(row)
        return reason

    def _drain_log(self, rows: int) -> None:
        """Hand the log to its sink if it holds `rows` entries."""
        log = self._exit_log
        if log is not None and len(log) >= rows and self.exit_sink is not None:
            self.exit_sink(log)

    @property
    def exit_counts(self) -> Counter[str]:
        """How often each exit reason came, by the name of its class."""
        for kind, count in enumerate(self._short.take_counts()):
            if count:
                self._exit_counts[NAMES[kind]] += count
        return self._exit_counts

    @property
    def on_exit(self) -> Callable[[VCpu, ExitReason], None] | None:
        """Hears of every exit before it is answered. While it is set, exits take the full way: whoever is
        handed a vCPU between two instructions may change it."""
        return self._on_exit

    @on_exit.setter
    def on_exit(self, hook: Callable[[VCpu, ExitReason], None] | None) -> None:
        self._on_exit = hook
        self._choose_exit_path()

    @property
    def exit_log(self) -> ExitLog | None:
        """The exits since `exit_sink` last took them, or None: nothing is noted (the default).

        Set an ExitLog. Iteration gives every exit that run_vcpu saw as a tuple of integers (retired, vcpu_id,
        rip, kind, address, width, value, device, raised): `kind` as in exit_kinds, `value` what was written
        or the answer to a read, `device` an index into `get_devices().device_names` or -1, `raised` the mask
        of the interrupt lines that went up meanwhile. `exit_sink` is called with the log when it has
        EXIT_CHUNK of them, or as many more as LOG_SLICE instructions take, and when run_vcpu returns; it
        takes them and clears it, or waits for more.
        """
        return self._exit_log

    @exit_log.setter
    def exit_log(self, log: ExitLog | None) -> None:
        self._exit_log = log
        self._short.set_log(log)

    def record(self, path: str | os.PathLike[str] | None = None, **options: Any) -> Recorder:
        """Record every exit from now on, into a file or, without a path, in memory. Ends one that goes on.

        `stores=True` adds every write to RAM, `instructions=True` every instruction with what it changed;
        both are slow. `limit` bounds the record in bytes, `compress=True` deflates it. RecordError if the
        file cannot be made::

            with vm.record("run.rec"):
                vm.run(100_000)
            print(vm.trace[0].line())
        """
        from pysim_vm.recorder import Recorder

        if self.recorder is not None:
            self.recorder.close()
        self.recorder = Recorder(self, path, **options)
        return self.recorder

    @property
    def trace(self) -> Trace:
        """What was recorded so far, opened for questions (docs/records.md). BadState without a recording."""
        from pysim_vm.trace import Trace

        if self.recorder is None:
            raise AxError(
                AxErrorKind.BadState, f"VM[{self.id()}] records nothing; call record() before it runs"
            )
        return Trace.open(self.recorder.source())

    @property
    def hooks(self) -> Hooks:
        """Functions of yours that hear of exits, instructions, memory, registers and exceptions
        (docs/hooks.md)::

            vm.hooks.on_write(lambda store: print(store.line()), range(0xB8000, 0xB8FA0))
        """
        from pysim_vm.hooks import Hooks

        if self._listeners is None:
            self._listeners = Hooks(self)
        return self._listeners

    @property
    def last_exception(self) -> EventRow | None:
        """The exception that the guest got last, with the check that failed; None before the first."""
        from pysim_vm.why import last_exception

        return last_exception(self)

    def why(self) -> str:
        """Why the guest got its last exception, or why it shut down: one sentence (docs/hooks.md)::

        vm.run()
        print(vm.why())
        """
        from pysim_vm.why import why

        return why(self)

    def _choose_exit_path(self) -> None:
        """Short where nobody listens to single accesses and the configuration does not want the full way."""
        self._short.forget()
        self._short.connect(
            self._config.pysim.exit_path == "short"
            and self._on_exit is None
            and not self._hears_exits()
            and self._devices.on_access is None
        )

    def _deadline_added(self) -> None:
        """The clock has a new next deadline: a CPU that would run past it has to look at it."""
        deadline = self.clock.next_deadline_ns()
        if self._until < 0 or deadline is None:
            return
        if -(-(deadline - self._skipped_ns) // self.ns_per_instruction) < self._until:
            self._vcpus[0].cpu.request_attention()

    def _may_run(self) -> bool:
        return self._status in (VmStatus.Ready, VmStatus.Running)

    def _has_news(self) -> bool:
        """Something for the moment between two instructions."""
        return bool(self._down is not None or self._reset_requested or self._waiting or not self._may_run())

    def _fire_timers(self) -> None:
        """Let the clock's due callbacks run; DeviceFault if one fails. The others stay armed."""
        try:
            self.clock.fire_due()
        except Exception as error:
            said = str(error) if isinstance(error, DeviceError) else f"{type(error).__name__}: {error}"
            raise DeviceFault(
                f"VM[{self.id()}] at {self.now_ns()} ns: a timer callback failed with {said}; the traceback "
                "of the cause says where"
            ) from error

    def _next_stop(self, cpu: Cpu, limit: int) -> int:
        """The retired count of the next deadline or of the budget, whichever comes first."""
        if cpu.answers and self._has_news():
            return cpu.retired + 1  # finish the instruction that asked for it
        deadline = self.clock.next_deadline_ns()
        if deadline is None:
            return limit
        ahead = deadline - self._skipped_ns
        return min(limit, max(-(-ahead // self.ns_per_instruction), cpu.retired))

    def _answer(self, vcpu: VCpu, reason: ExitReason) -> bool:
        """Answer an exit as axvm's run_vcpu does; False if it goes to the caller."""
        devices = self._devices
        try:
            match reason:
                case MmioRead():
                    self._value = devices.handle_mmio_read(reason.addr, reason.width)
                    vcpu.complete(self._value)
                case MmioWrite():
                    devices.handle_mmio_write(reason.addr, reason.width, reason.data)
                    vcpu.complete()
                case IoRead():
                    self._value = devices.handle_port_read(reason.port, reason.width)
                    vcpu.complete(self._value)
                case IoWrite():
                    devices.handle_port_write(reason.port, reason.width, reason.data)
                    vcpu.complete()
                case SysRegRead():
                    self._value = devices.handle_sys_reg_read(reason.addr, 8)
                    vcpu.complete(self._value)
                case SysRegWrite():
                    devices.handle_sys_reg_write(reason.addr, 8, reason.value)
                    vcpu.complete()
                case NestedPageFault():
                    return self.address_space.handle_page_fault(reason.addr, reason.access_flags)
                case Halt():
                    return self._idle(vcpu.cpu)
                case TripleFault() if not self._config.pysim.exit_on_triple_fault:
                    self.request_reset()  # a PC's chipset turns the CPU's shutdown cycle into a reset
                case Hypercall():
                    vcpu.expect_return_value()
                    return False
                case _:
                    return False
        except DeviceError as error:
            self._device_error(vcpu, reason, error)
        return True

    def _device_error(self, vcpu: VCpu, reason: ExitReason, error: DeviceError) -> None:
        """An MSR that nobody has is the guest's mistake, #GP(0); any other error is the user's."""
        if isinstance(reason, SysRegRead | SysRegWrite) and (
            isinstance(error, SysRegNotFound | SysRegFault) or isinstance(error.__cause__, SysRegFault)
        ):
            vcpu.cpu.fail(GeneralProtection(0, f"MSR {reason.addr:#x}: {error}"))
            return
        raise DeviceFault(f"VM[{self.id()}] vCPU[{vcpu.id()}] at RIP {vcpu.cpu.rip:#x}: {error}") from error

    def _idle(self, cpu: Cpu) -> bool:
        """HLT: skip virtual time to the event that wakes the CPU. False if none will."""
        for _ in range(IDLE_EVENTS):
            if cpu.would_wake():
                return True
            if not cpu.if_ and not cpu.injected and not self._nmi_may_come(cpu):
                return False
            deadline = self.clock.next_deadline_ns()
            if self.on_idle is not None:
                self.on_idle(-1 if deadline is None else max(0, deadline - self.now_ns()))
                if cpu.would_wake():
                    return True
                deadline = self.clock.next_deadline_ns()
            if deadline is None:
                return False
            self._skipped_ns += max(0, deadline - self.now_ns())
            self._fire_timers()
            if self._has_news():
                return True
        return False

    def _nmi_may_come(self, cpu: Cpu) -> bool:
        """The guest wired an interrupt to NMI, and the CPU takes NMIs."""
        return not cpu.nmi_blocked and self.board is not None and self.board.may_send_nmi()

    def run(self, budget: int | None = None) -> ExitReason:
        """Boot if need be and run vCPU 0 as axvisor's loop does, until an exit that ends the run.

        IPIs for CPUs that are not there (SendIPI, CpuUp) are lost, as on a board with empty sockets. A triple
        fault with an IDT limit of 0 is how Linux (`reboot=t`) and others switch off: it counts as SystemDown.
        """
        if self._status is VmStatus.Ready:
            self.boot()
        cpu = self._vcpus[0].cpu
        end = None if budget is None else cpu.retired + budget
        while True:
            reason = self.run_vcpu(0, None if end is None else end - cpu.retired)
            match reason:
                case SendIPI() | CpuUp():
                    continue
                case TripleFault() if cpu.idtr.limit == 0:
                    self._down = SystemDown()
                    return self._down
                case _:
                    return reason

    def steps(self, count: int | None = None) -> Steps:
        """Iterate over it to step vCPU 0, with all general registers after each step; `count` steps at most::

        for moment in vm.steps(1000):
            if moment.rax == 42:
                break
        """
        return Steps(self, count)

    @property
    def show(self) -> Show:
        """Pictures of the machine for a terminal or a notebook: registers, code, memory, page walks,
        descriptor tables, the screen (docs/notebooks.md)::

            vm.show.page_walk(0x401000)
        """
        from pysim_vm.display.show import Show

        return Show(self)

    def explain(self, rip: int | None = None) -> str:
        """The Python that the code at `rip` became, with the guest's instructions as comments, or why it did
        not; without `rip` that of the function likely to be the hottest. See docs/block-engine.md."""
        from pysim_vm.explain import explain

        return explain(self._vcpus[0].cpu, rip, None if self.plan is None else self.plan.symbols)

    # ---- interrupts ----------------------------------------------------------------------------------

    def _set_intr(self, level: bool) -> None:
        cpu = self._vcpus[0].cpu
        cpu.interrupt_line = level
        if level:
            cpu.request_attention()

    def _send_ipi(self, message: IpiMessage) -> None:
        """An interrupt for other CPUs: the caller decides what becomes of it (CpuUp, SendIPI)."""
        if message.mode is DeliveryMode.STARTUP:
            self._waiting.append(CpuUp(message.destination, message.vector << 12))
        else:
            everyone = message.shorthand in (Shorthand.ALL, Shorthand.OTHERS)
            self._waiting.append(SendIPI(message.destination, 0, everyone, False, message.vector))
        self._vcpus[0].cpu.kick()

    def _sleep(self, state: int) -> None:
        """The guest asked ACPI for a sleep state other than soft-off."""
        self._waiting.append(CpuDown(state))
        self._vcpus[0].cpu.kick()

    def host_interrupt(self, vector: int) -> None:
        """The host wants attention: a running vCPU leaves the guest with ExternalInterrupt."""
        cpu = self._vcpus[0].cpu
        cpu.host_interrupt = vector
        cpu.request_attention()

    def kick(self) -> None:
        """Make run_vcpu return Nothing at the next instruction boundary, for housekeeping by the caller.

        It may be called from a signal handler or another thread.
        """
        self._waiting.append(Nothing())
        self._vcpus[0].cpu.kick()

    def inject_interrupt_to_vcpu(self, targets: int, irq: int) -> None:
        """Queue vector `irq` for every vCPU whose bit is set in `targets`, through the HAL.

        InvalidInput if a bit names no vCPU, BadState if the VM is stopped. Unlike axvm's, it may be called
        for a VM that is not current, and before the first run.
        """
        if not (self._status is VmStatus.Ready or accepts_interrupts(self._status)):
            raise AxError(
                AxErrorKind.BadState,
                f"VM[{self.id()}] is {self._status.name} and takes no interrupts; start it first",
            )
        for vcpu_id in range(targets.bit_length()):
            if targets >> vcpu_id & 1:
                self.vcpu(vcpu_id)
                self._hal.inject_irq_to_vcpu(self.id(), vcpu_id, irq)

    def pulse_interrupt(self, irq_id: int) -> None:
        """One edge on an ISA interrupt line of the board: it falls, if it was high, and rises.

        It stays high until the next one, as an idle ISA line does: an 8259 forgets an edge whose line falls
        before the CPU acknowledges. Unsupported on a line that the guest made level-triggered.
        """
        if self.board is None or not 0 <= irq_id < ISA_LINES:
            raise AxError(
                AxErrorKind.NotFound,
                f'interrupt line {irq_id}: VM[{self.id()}] has no such wire; platform = "pc" has 0-15',
            )
        chip = self.board.pic.state.master if irq_id < 8 else self.board.pic.state.slave
        if chip.elcr >> (irq_id & 7) & 1:
            raise AxError(
                AxErrorKind.Unsupported,
                f"interrupt line {irq_id} is level-triggered and has no edges; raise and lower its IrqLine",
            )
        line = self.board.line(irq_id)
        line.lower()
        line.raise_()

    # ---- guest memory --------------------------------------------------------------------------------

    def memory_regions(self) -> tuple[VMMemoryRegion, ...]:
        """The regions of RAM."""
        return tuple(self._regions)

    def map_region(self, gpa: int, hpa: int, size: int, flags: int) -> None:
        """Map pool memory at `hpa` also at `gpa`."""
        self.address_space.map_linear(gpa, hpa, size, flags)

    def unmap_region(self, gpa: int, size: int) -> None:
        """Unmap one area; if it was a region of RAM, its contents are lost and its host range is free."""
        self.address_space.unmap(gpa, size)
        self._regions = [region for region in self._regions if region.gpa != gpa]
        if (gpa, size) in self._reserved:
            self._reserved.remove((gpa, size))
            self._hal.dealloc_memory_region_at(gpa, size)

    def alloc_memory_region(
        self, layout: MemoryLayout | int, gpa: int | None = None, flags: int = 7, *, populate: bool = True
    ) -> VMMemoryRegion:
        """Map fresh zeroed RAM at `gpa`; without one the host chooses an address, the same for both sides.

        `layout` is a size in bytes or a size and an alignment. Without `populate` every page is given at its
        first touch, through a NestedPageFault that run_vcpu answers.
        """
        wanted = _layout(layout)
        if gpa is not None:
            return self._map_region_of(gpa, wanted.size, flags, VmMemMappingType.MapAlloc, populate)
        align = max(wanted.align, IDENTICAL_ALIGN)
        top = max((region.end for region in self.memory.regions), default=align)
        base = -(-top // align) * align
        region = self._map_region_of(base, wanted.size, flags, VmMemMappingType.MapIdentical, populate)
        try:
            self._reserve(base, wanted.size)
        except AxError:
            self.unmap_region(base, wanted.size)
            raise
        return region

    def map_reserved_memory_region(
        self, layout: MemoryLayout | int, gpa: int | None, flags: int = 7
    ) -> VMMemoryRegion:
        """Map host memory that was set aside before the VM came, at the same address; the VM never frees it.

        InvalidInput without a `gpa`: only the caller knows where that memory lies.
        """
        if gpa is None:
            raise AxError(
                AxErrorKind.InvalidInput, "a reserved memory region needs a GPA: say where the host keeps it"
            )
        return self._map_region_of(gpa, _layout(layout).size, flags, VmMemMappingType.MapReserved)

    def get_image_load_region(self, gpa: int, size: int) -> list[memoryview]:
        """Host views to write an image into. BadState if the guest has no memory there."""
        views = self.address_space.translated_byte_buffer(gpa, size)
        if views is None:
            raise AxError(
                AxErrorKind.BadState, f"image region {gpa:#x}+{size:#x}: the guest has no RAM there"
            )
        return views

    def read_from_guest(self, gpa: int, size: int) -> bytes:
        """`size` bytes of guest memory. InvalidInput where no RAM is."""
        try:
            return self.memory.read(gpa, size)
        except MemoryMapError as error:
            raise AxError(AxErrorKind.InvalidInput, str(error)) from None

    def write_to_guest(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes in guest memory. InvalidInput, and nothing stored, where no RAM is."""
        try:
            self.memory.write(gpa, bytes(data))
        except MemoryMapError as error:
            raise AxError(AxErrorKind.InvalidInput, str(error)) from None

    def read_from_guest_of(self, gpa: int, kind: type[T]) -> T:
        """An object of a ctypes type. InvalidInput "Unaligned guest physical address" or where RAM ends."""
        self._check_alignment(gpa, kind)
        ctype: Any = kind
        made: T = ctype.from_buffer_copy(self.read_from_guest(gpa, ctypes.sizeof(ctype)))
        return made

    def write_to_guest_of(self, gpa: int, value: Any) -> None:
        """Store a ctypes object; errors as `read_from_guest_of`."""
        self._check_alignment(gpa, type(value))
        self.write_to_guest(gpa, bytes(value))

    @staticmethod
    def _check_alignment(gpa: int, kind: type[Any]) -> None:
        if gpa % ctypes.alignment(kind):
            raise AxError(
                AxErrorKind.InvalidInput,
                f"Unaligned guest physical address {gpa:#x} for {kind.__name__}",
            )

    def alloc_ivc_channel(self, expected_size: int) -> tuple[int, int]:
        """A free IVC range: (gpa, size rounded up to 4 KiB)."""
        size = expected_size + 0xFFF & -0x1000
        try:
            return self._devices.alloc_ivc_channel(size), size
        except IvcError as error:
            raise AxError(AxErrorKind[error.kind], str(error)) from None

    def release_ivc_channel(self, gpa: int, size: int) -> None:
        """Give an IVC range back."""
        try:
            self._devices.release_ivc_channel(gpa, size)
        except IvcError as error:
            raise AxError(AxErrorKind[error.kind], str(error)) from None

    # ---- devices -------------------------------------------------------------------------------------

    def _mmio_changed(self) -> None:
        self._short.forget()
        self.memory.set_mmio((entry.base, entry.length) for entry in self._devices.mmio)


def _layout(layout: MemoryLayout | int) -> MemoryLayout:
    if isinstance(layout, MemoryLayout):
        return layout
    if layout <= 0:
        raise AxError(AxErrorKind.InvalidInput, f"a memory region of {layout} bytes: give a positive size")
    return MemoryLayout(layout)


def _start_date(value: str | datetime | None) -> datetime:
    from devices.rtc_cmos import DEFAULT_START

    if value is None:
        return DEFAULT_START
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


# SDM Vol. 3, "VM-Entry Failures During or After Loading Guest State": basic exit reason 33
INVALID_GUEST_STATE = 33


def entry_failure(cpu: Cpu) -> FailEntry | None:
    """The check of the guest state that VM entry would fail, or None (SDM Vol. 3, "Checks on the Guest State
    Area"). Only a host can make such a state: the CPU's own instructions refuse it."""
    long_mode = bool(cpu.efer & EFER_LMA)
    why = ""
    if cpu.cr0 & CR0_PG and not cpu.cr0 & CR0_PE:
        why = "CR0.PG = 1 with CR0.PE = 0"
    elif cpu.cr0 & CR0_NW and not cpu.cr0 & CR0_CD:
        why = "CR0.NW = 1 with CR0.CD = 0"
    elif long_mode and not (cpu.cr0 & CR0_PE and cpu.efer & EFER_LME):
        why = "EFER.LMA = 1 without CR0.PE and EFER.LME"
    elif long_mode and cpu.cr0 & CR0_PG and not cpu.cr4 & CR4_PAE:
        why = "long mode with CR4.PAE = 0"
    elif long_mode and cpu.vm:
        why = "RFLAGS.VM = 1 in long mode"
    elif long_mode and cpu.cs.l and cpu.cs.db:
        why = "CS.L and CS.D are both 1"
    elif cpu.mode64 and not is_canonical(cpu.rip):
        why = f"RIP {cpu.rip:#x} is not canonical"
    return FailEntry(INVALID_GUEST_STATE, why) if why else None
