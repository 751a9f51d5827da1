"""One case on two CPUs: ours and KVM's, the same memory, the same answers. It makes no cases and no verdicts.

The memory map is small and the same in every mode; with paging linear addresses are physical ones. Wherever a
case ends up both sides can follow: unused code is HLT, every vector has a handler that halts, what is no RAM
is a device. A case is over at HLT, at a write to one of the END ports, or when the exits are used up.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from isa.cpu import Cpu
from isa.exits import (
    Budget,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    SysRegRead,
    SysRegWrite,
    TripleFault,
    Unimplemented,
)
from isa.memory import PhysicalMemory
from isa.mmu import split
from isa.msr import IA32_KERNEL_GS_BASE
from isa.state import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    GPR_NAMES,
    SEGMENT_NAMES,
)
from pysim_vm.kvm import state as kvm_state
from pysim_vm.kvm.abi import CAP_EXIT_ON_EMULATION_FAILURE, CAP_X86_USER_SPACE_MSR, MSR_EXIT_REASONS
from pysim_vm.kvm.binding import (
    EmulationExit,
    HaltExit,
    InterruptedExit,
    Kvm,
    KvmExit,
    MemoryExit,
    MsrExit,
    OtherExit,
    PortExit,
    ShutdownExit,
    variant,
)
from tests.isa.machine import ALL_FEATURES
from tests.isa.tables import descriptor, gate, gate64

# The map, guest-physical. RAM up to DEVICE and from BEYOND to END.
PAGE_TABLES = (0x1000, 0x2000, 0x3000, 0x4000)
GDT, LDT, TSS, IDT, KERNEL_STACK = 0x5000, 0x5400, 0x5800, 0x6000, 0x8000
HANDLERS, HANDLER_SIZE = 0x8000, 8
CODE, CODE_SIZE = 0xA000, 0x2000
FREE = CODE + CODE_SIZE  # RAM for stacks, up to ABSENT
LANDING = CODE + 0x1000  # where branches go: the second END port
ABSENT, SUPERVISOR, READ_ONLY, DATA = 0x1B000, 0x1C000, 0x1D000, 0x1E000
DEVICE, DEVICE_SIZE = 0x20000, 0x2000
BEYOND, END = 0x22000, 0x24000
TSS_LIMIT = 0x68 + 0x80  # the I/O permission bitmap has 1024 ports
DENIED = 0x70
RAM_SIZE = DEVICE + END - BEYOND
MAPPED = 0x40000  # with paging: linear addresses below are there, but for ABSENT

END_PORT, LANDING_PORT = 0xE0, 0xE1
END_CODE, LANDING_CODE = b"\xe6\xe0", b"\xe6\xe1"  # OUT imm8, AL
HLT = 0xF4
EXITS = 200  # of one case at most: enough for the longest REP that the cases have
STEPS = 3000  # instructions and iterations
PATIENCE = 2.0  # seconds that KVM may take for one case

CODE0, DATA0, CODE3, DATA3, TSS_SELECTOR, LDT_SELECTOR = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x38
P, RW, US, A, D, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 63


@dataclass(frozen=True, slots=True)
class Mode:
    """A CPU mode that cases run in. `paging` is 0, 2 or 4 levels."""

    name: str
    bits: int
    level: int
    protected: bool
    paging: int


MODES = {
    mode.name: mode
    for mode in (
        Mode("real", 16, 0, False, 0),
        Mode("protected16", 16, 0, True, 0),
        Mode("protected32", 32, 0, True, 0),
        Mode("user32", 32, 3, True, 2),
        Mode("compat16", 16, 3, True, 4),
        Mode("compat32", 32, 3, True, 4),
        Mode("long", 64, 0, True, 4),
        Mode("user64", 64, 3, True, 4),
    )
}


@dataclass(frozen=True, slots=True)
class Case:
    """Code at CODE and everything that goes into it.

    `segments` are (base, limit, attributes) of ES, CS, SS, DS, FS, GS where they are not the mode's own; in
    real mode the selector is base / 16. `patches` are (address, bytes) in RAM or in the device's memory.
    """

    mode: str
    code: bytes
    registers: dict[str, int]
    flags: int
    segments: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    patches: tuple[tuple[int, bytes], ...] = ()
    vectors: tuple[int, ...] = ()  # XMM0 and up; given, they are compared too


Event = tuple[str, int, int, int]
"""(reason, address, width, value written or answered)."""


@dataclass(slots=True)
class Outcome:
    """What came of a case. `end` is how it ended; "lacks ..." is an instruction that this CPU has not."""

    end: str
    events: list[Event]
    state: dict[str, int]
    ram: Any = None
    device: bytes = b""
    port: int = 0  # the END port, which tells where


# ---- memory ----------------------------------------------------------------------------------------------


@cache
def noise() -> bytes:
    """What RAM from DATA on and the device hold before the patches."""
    return Random(1).randbytes(END - DATA)


@cache
def pristine(mode: Mode) -> bytes:
    """RAM of a mode, before code and patches: tables, handlers, HLT, noise."""
    ram = bytearray(RAM_SIZE)

    def put(at: int, data: bytes) -> None:
        ram[at : at + len(data)] = data

    def put64(at: int, value: int) -> None:
        put(at, struct.pack("<Q", value))

    long_mode = mode.paging == 4
    for vector in range(256):
        handler = HANDLERS + HANDLER_SIZE * vector
        put(handler, bytes([HLT]) * HANDLER_SIZE)
        if not mode.protected:
            put(4 * vector, struct.pack("<HH", handler, 0))
        elif long_mode:
            put(
                IDT + 16 * vector,
                gate64(0xE, CODE0, handler, dpl=3 * (vector in (3, 4))).to_bytes(16, "little"),
            )
        else:
            put64(IDT + 8 * vector, gate(0xE, CODE0, handler, dpl=3 * (vector in (3, 4))))
    put64(GDT + CODE0, descriptor(0x1B, 0, flags=0xA if long_mode else 0xC))
    put64(GDT + DATA0, descriptor(0x13, 0))
    put64(GDT + (CODE3 & -8), descriptor(0x1B, 3, flags={64: 0xA, 32: 0xC, 16: 0}[mode.bits]))
    put64(GDT + (DATA3 & -8), descriptor(0x13, 3))
    put64(GDT + TSS_SELECTOR, descriptor(0x0B, base=TSS, limit=TSS_LIMIT, flags=0))
    put64(GDT + LDT_SELECTOR, descriptor(0x02, base=LDT, limit=0xFF, flags=0))
    if long_mode:
        put64(TSS + 4, KERNEL_STACK)
    else:
        put(TSS + 4, struct.pack("<II", KERNEL_STACK, DATA0))
    put(TSS + 0x66, struct.pack("<H", 0x68))
    put(TSS + 0x68 + DENIED // 8, b"\xff")  # of the bitmap's ports these eight are denied, and all beyond it
    put(TSS + TSS_LIMIT, b"\xff")
    put(CODE, bytes([HLT]) * (ABSENT - CODE))
    put(DATA, noise()[: DEVICE - DATA])
    put(DEVICE, noise()[BEYOND - DATA :])  # RAM from BEYOND follows in the pool
    if mode.paging:
        _put_tables(mode, put64, put)
    put(LANDING, LANDING_CODE)
    return bytes(ram)


def _put_tables(mode: Mode, put64: Callable[[int, int], None], put: Callable[[int, bytes], None]) -> None:
    """Identity paging of [0, MAPPED). Accessed and dirty bits are set already, so that nobody has to."""
    common = P | RW | US | A | D
    if mode.paging == 4:
        for table, below in pairwise(PAGE_TABLES):
            put64(table, below | common & ~D)
    else:
        put(PAGE_TABLES[0], struct.pack("<I", PAGE_TABLES[3] | common & ~D))
    for page in range(0, MAPPED, 0x1000):
        entry = page | common
        if page in (ABSENT, 0):
            entry &= ~P
        elif page == SUPERVISOR or page < CODE:
            entry &= ~US
        elif page == READ_ONLY:
            entry &= ~RW
        if mode.paging == 4:
            nx = 0 if page in range(CODE, CODE + CODE_SIZE, 0x1000) or page < CODE else NX
            put64(PAGE_TABLES[3] + 8 * (page >> 12), entry | nx)
        else:
            put(PAGE_TABLES[3] + 4 * (page >> 12), struct.pack("<I", entry))


def pool_offset(address: int) -> int | None:
    """Where a RAM address lies in the pool of either side; None for the device and what is not there."""
    if address < DEVICE:
        return address
    return address - BEYOND + DEVICE if BEYOND <= address < END else None


def pool_address(offset: int) -> int:
    """The guest-physical address of a pool offset."""
    return offset if offset < DEVICE else offset - DEVICE + BEYOND


class DeviceMemory:
    """What both sides talk to: memory at [DEVICE, BEYOND), a pattern elsewhere, ports that count."""

    def __init__(self, case: Case) -> None:
        self.bytes = bytearray(noise()[DEVICE - DATA : BEYOND - DATA])
        for at, data in case.patches:
            if DEVICE <= at < BEYOND:
                self.bytes[at - DEVICE : at - DEVICE + len(data)] = data
        self.events: list[Event] = []
        self.reads = 0

    def load(self, address: int, width: int) -> int:
        """Answer a load."""
        at = address - DEVICE
        if at >= 0 and at + width <= DEVICE_SIZE:
            value = int.from_bytes(self.bytes[at : at + width], "little")
        else:
            value = address * 0x9E37_79B9_7F4A_7C15 & (1 << 8 * width) - 1
        self.events.append(("MmioRead", address, width, value))
        return value

    def store(self, address: int, width: int, value: int) -> None:
        """Take a store."""
        at = address - DEVICE
        if at >= 0 and at + width <= DEVICE_SIZE:
            self.bytes[at : at + width] = value.to_bytes(width, "little")
        self.events.append(("MmioWrite", address, width, value))

    def port_in(self, port: int, width: int) -> int:
        """Answer IN: another value every time."""
        self.reads += 1
        value = (self.reads * 0x9E37_79B9_7F4A_7C15 >> 13) + port & (1 << 8 * width) - 1
        self.events.append(("IoRead", port, width, value))
        return value

    def port_out(self, port: int, width: int, value: int) -> bool:
        """Take OUT; True if it ends the case, and then it is no exit of it: AL is in the registers."""
        if port in (END_PORT, LANDING_PORT) and width == 1:
            return True
        self.events.append(("IoWrite", port, width, value))
        return False


# ---- our side --------------------------------------------------------------------------------------------


class OurTwin:
    """Our CPU in one mode."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        memory = self.memory = PhysicalMemory()
        memory.add_ram(0, DEVICE)
        memory.add_ram(BEYOND, END - BEYOND)
        memory.unclaimed_is_mmio = True
        self.cpu = Cpu(memory, ALL_FEATURES, lambda cpu, leaf, subleaf: (0, 0, 0, 0))

    def prepare(self, case: Case) -> None:
        """Memory and registers of a case."""
        fill(self.memory.view, self.mode, case)
        assert self.memory.on_write is not None
        self.memory.on_write(0, RAM_SIZE)
        cpu, mode = self.cpu, self.mode
        cpu.reset()
        cpu.cr0 = (
            CR0_ET | CR0_NE | (CR0_PE if mode.protected else 0) | (CR0_PG | CR0_WP if mode.paging else 0)
        )
        cpu.cr3 = PAGE_TABLES[0] if mode.paging else 0
        cpu.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | (CR4_PAE if mode.paging == 4 else 0)
        cpu.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE if mode.paging == 4 else 0
        cpu.gdtr.base, cpu.gdtr.limit = GDT, 0x4F
        cpu.idtr.base, cpu.idtr.limit = (
            (IDT, 0xFFF if mode.paging == 4 else 0x7FF) if mode.protected else (0, 0x3FF)
        )
        cpu.tr.load_raw(TSS_SELECTOR, TSS, TSS_LIMIT, 0x8B)
        cpu.ldtr.load_raw(LDT_SELECTOR, LDT, 0xFF, 0x82)
        for name in SEGMENT_NAMES:
            base, limit, attributes = case.segments.get(name) or plain_segment(mode, name)
            code = name == "cs"
            selector = (CODE3 if code else DATA3) if mode.level else (CODE0 if code else DATA0)
            getattr(cpu, name).load_raw(
                selector if mode.protected else base >> 4 & 0xFFFF, base, limit, attributes
            )
        cpu.cpl = mode.level
        cpu.fpu.init()
        for name, value in case.registers.items():
            setattr(cpu, name, value)
        for n, value in enumerate(case.vectors):
            setattr(cpu, f"xmm{n}", value)
        cpu.rip = CODE - cpu.cs.base
        cpu.set_rflags_raw(case.flags | 2)
        cpu.flush_tlb()
        cpu.update_mode()
        cpu.request_attention()

    def run(self, case: Case) -> Outcome:
        """Run a case that is prepared."""
        cpu = self.cpu
        device = DeviceMemory(case)
        until = cpu.retired + STEPS
        port = 0
        while True:
            reason = cpu.run(until)
            end = ""
            match reason:
                case IoWrite():
                    if device.port_out(reason.port, reason.width, reason.data):
                        end, port = "end", reason.port
                case IoRead():
                    cpu.complete(device.port_in(reason.port, reason.width))
                    continue
                case MmioRead():
                    cpu.complete(device.load(reason.addr, reason.width))
                case MmioWrite():
                    device.store(reason.addr, reason.width, reason.data)
                case Halt():
                    end = "halt"
                case TripleFault():
                    end = "triple fault"
                case Budget():
                    end = "steps"
                case SysRegRead() | SysRegWrite():
                    end = "msr"
                case Unimplemented():
                    end = f"lacks {reason.text}"
                case _:
                    end = type(reason).__name__
            if not end and len(device.events) >= EXITS:
                end = "exits"
            if end:
                state = kvm_state.state_of_cpu(cpu)
                return Outcome(end, device.events, state, self.memory.pool.copy(), bytes(device.bytes), port)
            if not isinstance(reason, MmioRead):
                cpu.complete()


def plain_segment(mode: Mode, name: str) -> tuple[int, int, int]:
    """(base, limit, attributes) that a segment has unless the case says otherwise."""
    kind = 0x9B if name == "cs" else 0x93
    if not mode.protected:
        return 0, 0xFFFF, kind
    if name == "cs":
        flags = {64: 0xA000, 32: 0xC000, 16: 0}[mode.bits]
        return 0, 0xFFFF_FFFF if mode.bits > 16 else 0xFFFF, kind | flags | mode.level << 5
    flags = 0xC000 if mode.bits > 16 else 0
    return 0, 0xFFFF_FFFF if mode.bits > 16 else 0xFFFF, kind | flags | mode.level << 5


def fill(ram: memoryview, mode: Mode, case: Case) -> None:
    """Write the memory of a case into a pool."""
    ram[:] = pristine(mode)
    ram[CODE : CODE + len(case.code)] = case.code
    ram[CODE + len(case.code) : CODE + len(case.code) + 2] = END_CODE
    for at, data in case.patches:
        offset = pool_offset(at)
        if offset is not None:
            ram[offset : offset + len(data)] = data


# ---- KVM's side ------------------------------------------------------------------------------------------


class KvmTwin:
    """KVM's CPU in one mode. `close` it."""

    def __init__(self, kvm: Kvm, mode: Mode) -> None:
        self.mode = mode
        self.vm = kvm.create_vm()
        self.ram = mmap.mmap(-1, RAM_SIZE)
        self.view = memoryview(self.ram)
        self.array = np.frombuffer(self.ram, np.uint8)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.vm.enable(CAP_EXIT_ON_EMULATION_FAILURE, 1)
        self.vm.enable(CAP_X86_USER_SPACE_MSR, MSR_EXIT_REASONS)
        self.vm.set_memory(0, 0, address, DEVICE)
        self.vm.set_memory(1, BEYOND, address + DEVICE, END - BEYOND)
        self.vcpu = self.vm.create_vcpu()
        self.vcpu.set_cpuid(host_cpuid())
        self.worn_out = False  # something is left of a case: another vCPU is needed for the next

    def close(self) -> None:
        """Give everything back."""
        self.vcpu.close()
        self.vm.close()
        del self.array
        self.view.release()
        self.ram.close()

    def prepare(self, case: Case, cpu: Cpu) -> None:
        """Memory of a case, registers of our CPU, which is prepared for it."""
        fill(self.view, self.mode, case)
        self.vcpu.clear_events()
        kvm_state.load_system(self.vcpu, cpu)
        kvm_state.load_registers(self.vcpu, cpu)
        if case.vectors:
            kvm_state.load_float(self.vcpu, cpu)
        if self.mode.name == "long":
            self.vcpu.set_msr(IA32_KERNEL_GS_BASE, 0)

    def run(self, case: Case) -> Outcome:
        """Run a case that is prepared."""
        device = DeviceMemory(case)
        vcpu = self.vcpu
        port = 0
        while True:
            leaving = vcpu.run()
            end = ""
            match leaving:
                case PortExit():
                    end = self._port(leaving, device)
                    port = leaving.port if end == "end" else 0
                case MemoryExit(write=True):
                    for at, width in split(leaving.address, leaving.width):
                        value = leaving.value >> 8 * (at - leaving.address) & (1 << 8 * width) - 1
                        device.store(at, width, value)
                case MemoryExit():
                    parts = split(leaving.address, leaving.width)
                    vcpu.answer_memory(
                        sum(device.load(at, width) << 8 * (at - leaving.address) for at, width in parts)
                    )
                case HaltExit():
                    end = "halt"
                case ShutdownExit():
                    end = "triple fault"
                case EmulationExit():
                    end = f"lacks {leaving.code.hex(' ')}"
                case InterruptedExit():
                    end = "steps"
                    self.worn_out = True  # the kick may still ring
                case MsrExit():
                    end = "msr"
                case OtherExit():
                    end = f"lacks {leaving.words}"
                case _:
                    end = type(leaving).__name__
            if not end and len(device.events) >= EXITS:
                end = "exits"
            if end:
                state = self._state()
                if case.vectors:
                    kvm_state.put_float(state, self.vcpu.xsave())
                self._drain(leaving)
                return Outcome(end, device.events, state, self.array.copy(), bytes(device.bytes), port)

    def _drain(self, leaving: KvmExit) -> None:
        """Let KVM finish the access that a case ended with: the next case would get it otherwise."""
        for _ in range(EXITS):
            if not isinstance(leaving, PortExit | MemoryExit | MsrExit):
                return
            leaving = self.vcpu.finish()
        self.worn_out = True

    def _port(self, leaving: PortExit, device: DeviceMemory) -> str:
        if not leaving.write:
            self.vcpu.answer_port(
                leaving, [device.port_in(leaving.port, leaving.width) for _ in range(leaving.count)]
            )
            return ""
        for value in leaving.values:
            if device.port_out(leaving.port, leaving.width, value):
                return "end"
        return ""

    def _state(self) -> dict[str, int]:
        state = self.vcpu.regs()
        kvm_state.put_system(state, self.vcpu.sregs())
        return state


@cache
def host_cpuid() -> list[tuple[int, int | None, tuple[int, int, int, int]]]:
    """A CPU that has everything, as ALL_FEATURES says; the guest's code is what counts."""
    everything = Cpu(PhysicalMemory(), ALL_FEATURES, lambda cpu, leaf, subleaf: (0, 0, 0, 0))
    from isa.cpuid import OPTIONAL_FEATURES, CpuId, feature_set

    everything.cpuid = CpuId(feature_set(f"+{name}" for name in OPTIONAL_FEATURES))
    return kvm_state.cpuid_leaves(everything)


@contextmanager
def patience(twin: KvmTwin) -> Iterator[None]:
    """Make KVM come back from a case that does not end."""

    def over(*_: object) -> None:
        twin.vcpu.kick()

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Twins:
    """Both sides in every mode, made as they are needed. Use as a context manager."""

    def __init__(self) -> None:
        self.kvm = Kvm()
        self.variant = variant()
        self._pairs: dict[str, tuple[OurTwin, KvmTwin]] = {}

    def __enter__(self) -> Twins:
        return self

    def __exit__(self, *_: object) -> None:
        for pair in self._pairs.values():
            pair[1].close()
        self.kvm.close()

    def _pair(self, name: str) -> tuple[OurTwin, KvmTwin]:
        if name not in self._pairs:
            mode = MODES[name]
            self._pairs[name] = OurTwin(mode), KvmTwin(self.kvm, mode)
        return self._pairs[name]

    def problem(self, name: str) -> str:
        """Why this KVM has not got a mode, or ""."""
        ours, theirs = self._pair(name)
        case = Case(name, b"\x90", dict.fromkeys(GPR_NAMES, 0), 0)
        ours.prepare(case)
        theirs.prepare(case, ours.cpu)
        sregs = theirs.vcpu.sregs()
        for register in ("cr0", "cr4", "efer"):
            wanted, got = getattr(ours.cpu, register), getattr(sregs, register)
            if wanted != got:
                return f"{self.variant} makes {register} {got:#x} of {wanted:#x}, so it has no {name} mode"
        return ""

    def run(self, case: Case) -> tuple[Outcome, Outcome]:
        """Our outcome and KVM's."""
        ours, theirs = self._pair(case.mode)
        ours.prepare(case)
        theirs.prepare(case, ours.cpu)
        with patience(theirs):
            outcome = theirs.run(case)
        if theirs.worn_out:
            theirs.close()
            self._pairs[case.mode] = ours, KvmTwin(self.kvm, MODES[case.mode])
        return ours.run(case), outcome
