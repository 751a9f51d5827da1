"""A machine of ours with KVM's CPU in place of our own: same RAM, same devices, same exits. No comparison.

The AxVM lends its memory map, its devices and its clock; its own CPU never runs. What leaves KVM's guest
becomes one of the exit reasons of `isa.exits` and goes to the same `handle_*` methods, element by element.

KVM does not count instructions, so there is no virtual time inside the guest: the clock moves on by one
instruction an exit, and jumps to the next deadline at HLT. A guest that polls a timer sees another time.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from time import perf_counter_ns
from types import FrameType
from typing import Final

import numpy as np
import numpy.typing as npt

from devices.base import DeviceError
from devices.local_apic import SysRegFault
from devices.manager import SysRegNotFound
from isa.exits import (
    Budget,
    CpuUp,
    ExitReason,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    SendIPI,
    SysRegRead,
    SysRegWrite,
    SystemDown,
    TripleFault,
)
from isa.memory import EXECUTE, PAGE, READ, WRITE
from isa.mmu import split
from pysim_vm.kvm import state as kvm_state
from pysim_vm.kvm.abi import CAP_EXIT_ON_EMULATION_FAILURE, CAP_READONLY_MEM
from pysim_vm.kvm.binding import (
    EmulationExit,
    HaltExit,
    InterruptedExit,
    Kvm,
    KvmError,
    KvmExit,
    MemoryExit,
    MsrExit,
    OtherExit,
    PortExit,
    ShutdownExit,
    WindowExit,
)
from pysim_vm.lifecycle import VmStatus
from pysim_vm.vm import IDLE_EVENTS, AxVM

A20: Final = 1 << 20
MSR_BYTES: Final = 8  # what an MSR is for `handle_sys_reg_*`
COPY_CHUNK: Final = 1 << 20  # bytes of RAM looked at at once: what is zero is not touched in the copy
NAG_SECONDS: Final = 0.05  # between two signals once the time is over: one may come just before KVM_RUN

OnExit = Callable[[ExitReason, int | None], bool]
"""on_exit(reason, answer): hears of every exit once it is answered; False ends the run."""


@dataclass(frozen=True, slots=True)
class KvmEnd:
    """Why a run ended.

    `kind` is "SystemDown", "GuestExit", "Halt", "TripleFault", "NestedPageFault" or "Device" as on our CPU;
    "Stopped" by `on_exit`, "Timeout", "Reset" (the guest resets the machine, which ends a comparison), or
    "Unable": this KVM cannot run the guest on. `words` is a sentence.
    """

    kind: str
    words: str


class KvmMachine:
    """Runs `vm` on KVM from the state that its own CPU is in. Use as a context manager, or `close` it.

    While it is open the RAM of `vm` is a mapping that both share; afterwards `vm` has it to itself again,
    with what the guest left in it. KvmError if KVM is not there or refuses.
    """

    def __init__(self, vm: AxVM, kvm: Kvm | None = None) -> None:
        self.vm = vm
        self._cpu = vm.vcpu(0).cpu
        self._memory = vm.memory
        self._devices = vm.get_devices()
        self._pool: npt.NDArray[np.uint8] | None = None
        self._ram: mmap.mmap | None = None
        self._slots = 0
        self._map_changed = False
        self._expired = False
        self.run_ns = 0  # host time inside KVM_RUN
        owned = Kvm() if kvm is None else None
        opened = kvm if kvm is not None else owned
        assert opened is not None
        try:
            self._vm_fd = opened.create_vm()
            self._read_only_slots = bool(opened.capability(CAP_READONLY_MEM))
            try:
                self._vm_fd.enable(CAP_EXIT_ON_EMULATION_FAILURE, 1)
                self._vm_fd.ask_for_msrs((entry.base, entry.length) for entry in self._devices.sys_reg)
                self.vcpu = self._vm_fd.create_vcpu()
            except BaseException:
                self._vm_fd.close()
                raise
        finally:
            if owned is not None:
                owned.close()
        self._told_map_change = self._memory.on_map_change
        self._memory.on_map_change = self._note_map_change
        try:
            self._map()
            self.vcpu.set_cpuid(kvm_state.cpuid_leaves(self._cpu))
            kvm_state.load(self.vcpu, self._cpu)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> KvmMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End KVM's VM and give its RAM back to the AxVM. May be called twice."""
        self.vcpu.close()
        self._vm_fd.close()
        if self._ram is None:
            return
        self._memory.on_map_change = self._told_map_change
        if self._memory.pool is self._pool:
            pool = self._memory.pool
            self._adopt(_sparse_copy(pool, np.zeros(len(pool), np.uint8)))
            if self._memory.on_write is not None:
                self._memory.on_write(0, len(pool))  # whatever our CPU has decoded may be gone
        self._unmap()

    # ---- memory --------------------------------------------------------------------------------------------

    def _note_map_change(self) -> None:
        self._map_changed = True
        if self._told_map_change is not None:
            self._told_map_change()

    def _adopt(self, pool: npt.NDArray[np.uint8]) -> None:
        """Let `pool` be the RAM of the AxVM; its own CPU gives up its views of the old one."""
        self._memory.pool = pool
        self._memory.view = memoryview(pool)  # type: ignore[arg-type]  # numpy 2.4's stubs hide the buffer
        self._cpu.flush_tlb()

    def _unmap(self) -> None:
        """Give the shared mapping back to the host; KVM must not know of it any more."""
        ram, self._ram, self._pool = self._ram, None, None
        if ram is not None:
            with suppress(BufferError):  # somebody keeps a view of guest RAM: it goes with the view
                ram.close()

    def _map(self) -> None:
        """Make KVM's memory slots from the AxVM's memory map. KvmError for a map that KVM cannot have."""
        self._map_changed = False
        memory = self._memory
        if not memory.address_mask & A20:
            raise KvmError("the guest closed the A20 gate, which KVM's machines do not have")
        for slot in range(self._slots):
            self._vm_fd.set_memory(slot, 0, 0, 0)
        self._slots = 0
        if memory.pool is not self._pool:
            self._unmap()
            self._ram = mmap.mmap(-1, max(len(memory.pool), PAGE))  # page aligned, which numpy's is not
            self._pool = _sparse_copy(memory.pool, np.frombuffer(self._ram, np.uint8)[: len(memory.pool)])
            self._adopt(self._pool)
        assert self._ram is not None
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._ram))
        for region in memory.regions:
            if not region.flags & READ or not region.flags & EXECUTE:
                continue  # KVM has no such rights: accesses leave and are looked at here
            read_only = not region.flags & WRITE
            if read_only and not self._read_only_slots:
                raise KvmError(
                    f"{region.name} is ROM, and this KVM lacks KVM_CAP_READONLY_MEM; use a newer kernel"
                )
            # A ROM under a window (flash) still reads as memory, RAM under a window does not
            holes = [] if read_only else memory.mmio
            for base, size in _without(region.base, region.end, holes):
                host = address + region.host + base - region.base
                self._vm_fd.set_memory(self._slots, base, host, size, read_only=read_only)
                self._slots += 1

    # ---- the exit loop -------------------------------------------------------------------------------------

    def run(self, on_exit: OnExit, seconds: float) -> KvmEnd:
        """Run until the guest ends, `on_exit` says no, or `seconds` of host time are over.

        The time is kept by a signal, so a guest that never exits ends too; outside of the main thread, where
        Python has no signals, only exits are a chance to stop.
        """
        if self.vm.vm_status() is VmStatus.Ready:
            self.vm.boot()
        self._expired = False
        with alarm(seconds, self._time_is_over):
            try:
                return self._loop(on_exit)
            except _Ended as ended:
                return ended.end
            except KvmError as error:
                return KvmEnd("Unable", str(error))
            except DeviceError as error:
                return KvmEnd("Device", str(error))

    def _time_is_over(self) -> None:
        self._expired = True
        self.vcpu.kick()

    def _loop(self, on_exit: OnExit) -> KvmEnd:
        vcpu, cpu, clock = self.vcpu, self._cpu, self.vm.clock
        self._on_exit = on_exit
        while True:
            if self._expired:
                return KvmEnd("Timeout", "the time is over, and the guest runs on without an exit")
            if self._map_changed:
                self._map()
            if cpu.interrupt_line or vcpu.wants_interrupt_window:
                self._interrupt()
            before = perf_counter_ns()
            leaving = vcpu.run()
            self.run_ns += perf_counter_ns() - before
            self._serve(leaving)
            clock.fire_due()
            if cpu.kicked:
                self._housekeeping()

    def _serve(self, leaving: KvmExit) -> None:
        """Answer one exit. `_Ended` if it is the last."""
        match leaving:
            case PortExit():
                self._port(leaving)
            case MemoryExit(write=True):
                self._store(leaving)
            case MemoryExit():
                self._load(leaving)
            case MsrExit():
                self._msr(leaving)
            case HaltExit():
                # KVM always leaves at HLT; for us it is an exit only if nothing is there that ends it at once
                if not (self._cpu.interrupt_line and self.vcpu.interrupts_enabled):
                    self._tell(Halt(), None)
                    self._idle()
            case ShutdownExit():
                self._tell(TripleFault(()), None)
                if not self.vm.config().pysim.exit_on_triple_fault:
                    raise _Ended("Reset", "a triple fault reset the machine")
                raise _Ended("TripleFault", "the guest's CPU shut down after a triple fault")
            case EmulationExit():
                code = leaving.code.hex(" ")
                raise _Ended(
                    "Unable",
                    f"this KVM executes such code in software and lacks the instruction at RIP "
                    f"{self.vcpu.regs()['rip']:#x}{f' ({code} ...)' if code else ''}",
                )
            case OtherExit():
                raise _Ended("Unable", leaving.words)
            case InterruptedExit() | WindowExit():
                pass

    def _tell(self, reason: ExitReason, answer: int | None) -> None:
        self._cpu.retired += 1  # all the time there is
        if not self._on_exit(reason, answer):
            raise _Ended("Stopped", "stopped after the exit")

    def _port(self, leaving: PortExit) -> None:
        port, width, cpu = leaving.port, leaving.width, self._cpu
        values = [0] * leaving.count
        for n in range(leaving.count):
            reason = IoWrite(port, width, leaving.values[n]) if leaving.write else IoRead(port, width)
            values[n] = self._ask(reason) or 0
            if cpu.kicked:
                break  # the machine is off or resets: the rest of a REP INS or OUTS does not happen
        if not leaving.write:
            self.vcpu.answer_port(leaving, values)

    def _ask(self, reason: ExitReason) -> int | None:
        """Let a device answer an access and tell of it; what fails is told of too."""
        try:
            answer = self._answer(reason)
        except DeviceError:
            self._tell(reason, None)
            raise
        self._tell(reason, answer)
        return answer

    def _answer(self, reason: ExitReason) -> int | None:
        devices = self._devices
        match reason:
            case IoWrite():
                devices.handle_port_write(reason.port, reason.width, reason.data)
            case IoRead():
                return devices.handle_port_read(reason.port, reason.width)
            case MmioWrite():
                devices.handle_mmio_write(reason.addr, reason.width, reason.data)
            case MmioRead():
                return devices.handle_mmio_read(reason.addr, reason.width)
            case SysRegWrite():
                devices.handle_sys_reg_write(reason.addr, MSR_BYTES, reason.value)
            case SysRegRead():
                return devices.handle_sys_reg_read(reason.addr, MSR_BYTES)
        return None

    def _pieces(self, address: int, width: int, access: int) -> Iterator[tuple[int, int, bool]]:
        """(address, width, is RAM) of what an access falls apart into, as in our memory unit."""
        memory = self._memory
        if memory.in_window(address, width):
            for at, part in split(address, width):
                yield at, part, False
        elif memory.straddles(address, width):
            for n in range(width):
                yield from self._pieces(address + n, 1, access)
        elif not memory.is_mmio(address, width) and memory.is_plain(address, access):
            yield address, width, True  # RAM beside a window in one page
        elif memory.is_mmio(address, width) or memory.unclaimed_is_mmio:
            for at, part in split(address, width):
                yield at, part, False
        else:
            reason = NestedPageFault(address, access)
            self._tell(reason, None)
            raise _Ended("NestedPageFault", f"the guest used {address:#x}, where nothing is")

    def _load(self, leaving: MemoryExit) -> None:
        value = 0
        for at, width, plain in self._pieces(leaving.address, leaving.width, READ):
            if plain:
                part = int.from_bytes(self._memory.read(at, width), "little")
            else:
                part = self._ask(MmioRead(at, width)) or 0
            value |= part << 8 * (at - leaving.address)
        self.vcpu.answer_memory(value)

    def _store(self, leaving: MemoryExit) -> None:
        pieces = list(self._pieces(leaving.address, leaving.width, WRITE))
        for at, width, plain in sorted(pieces, key=lambda piece: piece[2]):  # devices first, as in our CPU
            data = leaving.value >> 8 * (at - leaving.address) & (1 << 8 * width) - 1
            if plain:
                self._memory.write(at, data.to_bytes(width, "little"))
            else:
                self._ask(MmioWrite(at, width, data))

    def _msr(self, leaving: MsrExit) -> None:
        reason = SysRegWrite(leaving.index, leaving.value) if leaving.write else SysRegRead(leaving.index)
        try:
            self.vcpu.answer_msr(self._ask(reason) or 0)
        except DeviceError as error:
            unknown = isinstance(error, SysRegNotFound | SysRegFault)
            if not unknown and not isinstance(error.__cause__, SysRegFault):
                raise
            self.vcpu.answer_msr(None)

    # ---- between two instructions --------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Hand the board's interrupt to KVM, or ask to be told when the guest can take it."""
        vcpu, cpu = self.vcpu, self._cpu
        vcpu.wants_interrupt_window = cpu.interrupt_line and not vcpu.takes_interrupt
        if cpu.interrupt_line and vcpu.takes_interrupt and cpu.acknowledge is not None:
            vector = cpu.acknowledge()
            if vector is not None:
                vcpu.interrupt(vector)

    def _idle(self) -> None:
        """HLT: let virtual time jump to the interrupt that wakes the CPU. `_Ended` if none will."""
        vm, cpu, clock = self.vm, self._cpu, self.vm.clock
        for _ in range(IDLE_EVENTS):
            if not self.vcpu.interrupts_enabled:
                break
            if cpu.interrupt_line or cpu.kicked:
                return
            deadline = clock.next_deadline_ns()
            if deadline is None:
                break
            cpu.retired += max(0, -(-(deadline - vm.now_ns()) // vm.ns_per_instruction))
            clock.fire_due()
        raise _Ended("Halt", "the CPU sleeps in HLT and nothing can wake it")

    def _housekeeping(self) -> None:
        """A device kicked the CPU: power off, a reset, or something that waits for the caller."""
        self._cpu.kicked = False
        for told in count():
            # What the VM does between two instructions, and none of these
            reason = self.vm.run_vcpu(0, budget=0)
            match reason:
                case SystemDown():
                    self.vcpu.finish()
                    code = self.vm.exit_code
                    if code is not None:
                        raise _Ended("GuestExit", f"the guest ended the run with code {code & 0xFF}")
                    raise _Ended("SystemDown", "the guest switched the machine off")
                case SendIPI() | CpuUp():
                    continue  # for CPUs that are not there: lost, as in AxVM.run
                case Budget():
                    if told == 0:
                        raise _Ended("Reset", "the guest reset the machine")
                    return
                case _:
                    raise _Ended("Unable", f"{type(reason).__name__} needs a manager")


@contextmanager
def alarm(seconds: float, over: Callable[[], None]) -> Iterator[None]:
    """Call `over` after `seconds` of host time, by SIGALRM, and on and on until the block is left.

    Outside of the main thread, where Python takes no signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def rings(_: int, __: FrameType | None) -> None:
        over()

    before = signal.signal(signal.SIGALRM, rings)
    signal.setitimer(signal.ITIMER_REAL, seconds, NAG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Ended(Exception):
    """The run is over."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.end = KvmEnd(kind, words)


def _sparse_copy(source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Copy into an array of zeros; pages of the target where the source has only zeros stay untouched."""
    for at in range(0, len(source), COPY_CHUNK):
        chunk = source[at : at + COPY_CHUNK]
        if chunk.any():
            target[at : at + COPY_CHUNK] = chunk
    return target


def _without(start: int, end: int, windows: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(base, size) of the pages of [start, end) that no window touches."""
    for first, last in windows:
        low, high = first & -PAGE, -(-last // PAGE) * PAGE
        if high <= start or low >= end:
            continue
        if low > start:
            yield start, low - start
        start = high
    if start < end:
        yield start, end - start
