"""Linux KVM: the host's own CPU as a guest CPU, by ioctl on /dev/kvm. It knows no device.

One VM with one vCPU, as much of the API as a comparison needs. What leaves the guest is one of the exit
classes below; `state` puts registers into words, `machine` runs a whole machine on this.
Source: Linux, "The Definitive KVM (Kernel-based Virtual Machine) API Documentation"; names are its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from pysim_vm.errors import AxError, AxErrorKind
from pysim_vm.kvm import abi
from pysim_vm.kvm.abi import (
    KvmDebugRegs,
    KvmEnableCap,
    KvmEvents,
    KvmMemoryRegion,
    KvmMsrFilter,
    KvmMsrRange,
    KvmSregs,
)

with contextlib.suppress(ImportError):  # a host without it is refused by Kvm()
    import fcntl

DEVICE: Final = "/dev/kvm"
# ---- exits -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortExit:
    """IN, OUT, INS or OUTS: `count` elements of `width` bytes. `values` are those of a write, in order."""

    port: int
    width: int
    count: int
    write: bool
    values: tuple[int, ...]
    data_at: int  # in the shared page; where the answers of a read go


@dataclass(frozen=True, slots=True)
class MemoryExit:
    """An access to an address without a memory slot: 1 to 8 bytes, not always a power of two."""

    address: int
    width: int
    write: bool
    value: int


@dataclass(frozen=True, slots=True)
class MsrExit:
    """RDMSR or WRMSR of a register that the kernel lacks or that `KvmVm.ask_for_msrs` named."""

    index: int
    write: bool
    value: int


@dataclass(frozen=True, slots=True)
class HaltExit:
    """HLT."""


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """A triple fault."""


@dataclass(frozen=True, slots=True)
class WindowExit:
    """The guest can take the interrupt that `want_interrupt_window` waits for."""


@dataclass(frozen=True, slots=True)
class InterruptedExit:
    """A signal or `kick` ended the run; the guest has not asked for anything."""


@dataclass(frozen=True, slots=True)
class EmulationExit:
    """KVM had to execute an instruction in software and does not know it; `code` are its bytes, if told."""

    code: bytes


@dataclass(frozen=True, slots=True)
class OtherExit:
    """Whatever else: the number is kvm_run.exit_reason, `words` say more."""

    reason: int
    words: str


KvmExit = (
    PortExit | MemoryExit | MsrExit | HaltExit | ShutdownExit | WindowExit | InterruptedExit | EmulationExit
    | OtherExit
)  # fmt: skip
_PLAIN: Final[dict[int, KvmExit]] = {
    abi.EXIT_HLT: HaltExit(), abi.EXIT_SHUTDOWN: ShutdownExit(), abi.EXIT_IRQ_WINDOW_OPEN: WindowExit(),
    abi.EXIT_INTR: InterruptedExit(),
}  # fmt: skip


# ---- the objects -----------------------------------------------------------------------------------------


class KvmError(AxError):
    """KVM is not there, may not be used, or refused; the text is one sentence with the remedy."""

    def __init__(self, message: str, kind: AxErrorKind = AxErrorKind.Unsupported) -> None:
        super().__init__(kind, message)


def host_problem() -> str:
    """Why this host cannot have KVM at all, or ""."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "AMD64"):
        return f"KVM is part of Linux on x86-64, and this host is {platform.system()} on {machine}"
    return ""


def variant(modules: str = "/sys/module") -> str:
    """Which implementation is loaded: "kvm_intel", "kvm_amd", "kvm_pvm"..., or "kvm" where nobody says."""
    try:
        names = sorted(entry.name for entry in Path(modules).glob("kvm_*"))
    except OSError:
        names = []
    return names[0] if names else "kvm"


class _Closing:
    """What holds file descriptors: a context manager whose `close` may be called twice."""

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Kvm(_Closing):
    """The opened device. KvmError if there is none, it may not be opened, or it lacks what is needed here."""

    def __init__(self, path: str = DEVICE) -> None:
        problem = host_problem()
        if problem:
            raise KvmError(f"{problem}; compare on a Linux PC")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmError(_cannot_open(path, error), AxErrorKind.NoSuchDevice) from error
        try:
            self._check(path)
        except BaseException:
            self.close()
            raise

    def _check(self, path: str) -> None:
        try:
            version = fcntl.ioctl(self._fd, abi.GET_API_VERSION, 0)
        except OSError as error:
            raise KvmError(f"{path} is no KVM device ({error.strerror}); it should be {DEVICE}") from error
        if version != abi.API_VERSION:
            raise KvmError(
                f"{path} speaks version {version} of KVM's API, not {abi.API_VERSION}; use another kernel"
            )
        for number, name in abi.NEEDED.items():
            if not self.capability(number):
                raise KvmError(f"this kernel's KVM lacks {name}; a newer kernel is needed")

    def capability(self, number: int) -> int:
        """0 if the kernel lacks it, else how much of it there is."""
        return int(fcntl.ioctl(self._fd, abi.CHECK_EXTENSION, number))

    def create_vm(self) -> KvmVm:
        """A VM without memory. KvmError if the kernel refuses."""
        try:
            fd = fcntl.ioctl(self._fd, abi.CREATE_VM, 0)
        except OSError as error:
            raise KvmError(
                f"KVM cannot create a VM ({error.strerror}); another hypervisor may hold the CPU's "
                "virtualisation, end it first"
            ) from error
        return KvmVm(self, fd, int(fcntl.ioctl(self._fd, abi.GET_VCPU_MMAP_SIZE, 0)))

    def close(self) -> None:
        """Close the device; VMs made from it live on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _cannot_open(path: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return (
                f"{path} is not there: CPU or kernel offer no KVM; load kvm_intel or kvm_amd, or switch "
                "virtualisation on in the firmware"
            )
        case errno.EACCES | errno.EPERM:
            return f"{path} may not be opened ({error.strerror}); become a member of the group that owns it"
        case _:
            return f"{path} cannot be opened ({error.strerror}); see the kernel's log for kvm"


S = TypeVar("S", bound=ctypes.Structure)


class KvmVm(_Closing):
    """One virtual machine: memory slots and what is set for all of it."""

    def __init__(self, kvm: Kvm, fd: int, run_size: int) -> None:
        self._kvm = kvm
        self._fd = fd
        self._run_size = run_size

    def set_memory(self, slot: int, gpa: int, address: int, size: int, *, read_only: bool = False) -> None:
        """Put `size` bytes at host address `address` at guest-physical `gpa`; both page aligned.

        Size 0 takes the slot away. The memory has to stay where it is until the VM is closed. A store to a
        `read_only` slot is a MemoryExit. KvmError if the kernel refuses.
        """
        region = KvmMemoryRegion(slot, abi.MEM_READONLY if read_only else 0, gpa, size, address)
        try:
            fcntl.ioctl(self._fd, abi.SET_USER_MEMORY_REGION, region)
        except OSError as error:
            raise KvmError(
                f"KVM refuses the memory slot {gpa:#x}+{size:#x} ({error.strerror}); slots are whole pages "
                "that do not overlap"
            ) from error

    def enable(self, capability: int, argument: int) -> bool:
        """Switch a capability on; False if the kernel has none of it."""
        if not self._kvm.capability(capability):
            return False
        request = KvmEnableCap(capability, 0, (ctypes.c_uint64 * 4)(argument))
        try:
            fcntl.ioctl(self._fd, abi.ENABLE_CAP, request)
        except OSError:
            return False
        return True

    def ask_for_msrs(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Make RDMSR and WRMSR of these (first, count) ranges, and of MSRs the kernel lacks, a MsrExit.

        False, and a #GP in the guest, where the kernel cannot do that, or for more than 16 ranges.
        """
        chosen = tuple(ranges)
        if not self.enable(abi.CAP_X86_USER_SPACE_MSR, abi.MSR_EXIT_REASONS):
            return False
        if not chosen:
            return True
        if not self._kvm.capability(abi.CAP_X86_MSR_FILTER) or len(chosen) > abi.MSR_FILTER_RANGES:
            return False
        wanted = KvmMsrFilter()
        bitmaps = []
        for n, (first, count) in enumerate(chosen):
            bitmap = ctypes.create_string_buffer((count + 7) // 8)  # a clear bit: not the kernel's
            bitmaps.append(bitmap)
            rights = abi.MSR_FILTER_READ | abi.MSR_FILTER_WRITE
            wanted.ranges[n] = KvmMsrRange(rights, count, first, ctypes.addressof(bitmap))
        try:
            fcntl.ioctl(self._fd, abi.X86_SET_MSR_FILTER, wanted)
        except OSError:
            return False
        return True

    def create_vcpu(self) -> KvmVcpu:
        """The VM's CPU, after RESET. KvmError if the kernel refuses."""
        try:
            fd = fcntl.ioctl(self._fd, abi.CREATE_VCPU, 0)
        except OSError as error:
            raise KvmError(f"KVM cannot create a vCPU ({error.strerror}); one a VM is possible") from error
        return KvmVcpu(fd, self._run_size)

    def close(self) -> None:
        """Close the VM. Its memory may go once its vCPU is closed too."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class KvmVcpu(_Closing):
    """One virtual CPU. `run` enters the guest; the getters and setters copy whole register files."""

    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        try:
            self._run = mmap.mmap(fd, run_size)
        except BaseException:
            os.close(fd)
            raise

    # ---- running -------------------------------------------------------------------------------------------

    def run(self) -> KvmExit:
        """Enter the guest, finishing first what the last exit left open; returns what it left with next.

        An access of 1 to 8 bytes that is a read is answered by `answer_port`, `answer_memory` or
        `answer_msr` before the next run. Always called by the same thread.
        """
        page = self._run
        try:
            fcntl.ioctl(self._fd, abi.RUN, 0)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return InterruptedExit()
            return OtherExit(-1, f"KVM_RUN failed: {error.strerror}")
        reason = int.from_bytes(page[abi.EXIT_REASON : abi.EXIT_REASON + 4], "little")
        if reason == abi.EXIT_IO:
            write, width, port, count, at = abi.IO_EXIT.unpack_from(page, abi.EXIT_DATA)
            values: tuple[int, ...] = ()
            if write:
                values = struct.unpack_from(f"<{count}{abi.WIDTH_FORMAT[width]}", page, at)
            return PortExit(port, width, count, bool(write), values, at)
        if reason == abi.EXIT_MMIO:
            address, value, width, write = abi.MMIO_EXIT.unpack_from(page, abi.EXIT_DATA)
            return MemoryExit(address, width, bool(write), value & (1 << 8 * width) - 1 if write else 0)
        if reason in (abi.EXIT_X86_RDMSR, abi.EXIT_X86_WRMSR):
            _, _, index, value = abi.MSR_EXIT.unpack_from(page, abi.EXIT_DATA)
            write = reason == abi.EXIT_X86_WRMSR
            return MsrExit(index, write, value if write else 0)
        if reason == abi.EXIT_INTERNAL_ERROR:
            return self._internal_error()
        if reason == abi.EXIT_FAIL_ENTRY:
            (why,) = struct.unpack_from("<Q", page, abi.EXIT_DATA)
            return OtherExit(reason, f"the CPU refuses the guest's state, reason {why:#x}")
        return _PLAIN.get(reason) or OtherExit(reason, f"exit reason {reason}, which nobody here knows")

    def _internal_error(self) -> KvmExit:
        suberror, count, *words = abi.ERROR_EXIT.unpack_from(self._run, abi.EXIT_DATA)
        if suberror != abi.INTERNAL_ERROR_EMULATION:
            return OtherExit(abi.EXIT_INTERNAL_ERROR, f"internal error {suberror} of KVM")
        code = b""
        if count >= 4 and words[0] & 1:  # the flag that says: instruction bytes follow
            raw = struct.pack("<2Q", *words[1:3])
            code = raw[1 : 1 + min(raw[0], 15)]
        return EmulationExit(code)

    def answer_port(self, leaving: PortExit, values: Sequence[int]) -> None:
        """The values of IN or INS, one an element, cut to the width."""
        mask = (1 << 8 * leaving.width) - 1
        struct.pack_into(
            f"<{leaving.count}{abi.WIDTH_FORMAT[leaving.width]}", self._run, leaving.data_at,
            *(value & mask for value in values),
        )  # fmt: skip

    def answer_memory(self, value: int) -> None:
        """The value of a load."""
        struct.pack_into("<Q", self._run, abi.MMIO_DATA, value & 0xFFFF_FFFF_FFFF_FFFF)

    def answer_msr(self, value: int | None) -> None:
        """The value of RDMSR, anything for WRMSR; None: the guest gets #GP(0)."""
        self._run[abi.EXIT_DATA] = value is None
        if value is not None:
            struct.pack_into("<Q", self._run, abi.MSR_DATA, value & 0xFFFF_FFFF_FFFF_FFFF)

    def finish(self) -> KvmExit:
        """Let the instruction of the last exit end and come back before the next one: InterruptedExit, or
        another exit of the same instruction."""
        self.kick()
        try:
            return self.run()
        finally:
            self._run[abi.IMMEDIATE_EXIT] = 0

    def kick(self) -> None:
        """Make the next run, or the one that a signal interrupts now, return InterruptedExit."""
        self._run[abi.IMMEDIATE_EXIT] = 1

    # ---- interrupts ----------------------------------------------------------------------------------------

    @property
    def takes_interrupt(self) -> bool:
        """Whether `interrupt` is possible now: RFLAGS.IF is set and nothing stands before it."""
        return bool(self._run[abi.READY_FOR_INTERRUPT])

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF at the last exit."""
        return bool(self._run[abi.IF_FLAG])

    @property
    def wants_interrupt_window(self) -> bool:
        """Set: leave with WindowExit as soon as an interrupt could be taken."""
        return bool(self._run[abi.REQUEST_INTERRUPT_WINDOW])

    @wants_interrupt_window.setter
    def wants_interrupt_window(self, wanted: bool) -> None:
        self._run[abi.REQUEST_INTERRUPT_WINDOW] = wanted

    def interrupt(self, vector: int) -> None:
        """Deliver an external interrupt at the next run."""
        fcntl.ioctl(self._fd, abi.INTERRUPT, struct.pack("<I", vector))

    # ---- registers -----------------------------------------------------------------------------------------

    def regs(self) -> dict[str, int]:
        """The general registers, RIP and RFLAGS by name."""
        raw = fcntl.ioctl(self._fd, abi.GET_REGS, bytes(abi.REGISTERS.size))
        return dict(zip(abi.REGISTER_ORDER, abi.REGISTERS.unpack(raw), strict=True))

    def set_regs(self, registers: dict[str, int]) -> None:
        """All of them."""
        raw = abi.REGISTERS.pack(*(registers[name] for name in abi.REGISTER_ORDER))
        fcntl.ioctl(self._fd, abi.SET_REGS, raw)

    def _get(self, code: int, made: S) -> S:
        fcntl.ioctl(self._fd, code, made)
        return made

    def sregs(self) -> KvmSregs:
        """Segments, tables and control registers."""
        return self._get(abi.GET_SREGS, KvmSregs())

    def set_sregs(self, sregs: KvmSregs) -> None:
        """KvmError for a combination that no CPU has."""
        try:
            fcntl.ioctl(self._fd, abi.SET_SREGS, sregs)
        except OSError as error:
            raise KvmError(
                f"KVM refuses the CPU state, CR0 {sregs.cr0:#x} CR4 {sregs.cr4:#x} EFER {sregs.efer:#x} "
                f"({error.strerror}); start the guest in a state that this host's CPU has"
            ) from error

    def xsave(self) -> bytearray:
        """x87, SSE and AVX registers: the XSAVE area in its standard format, XSAVE_SIZE bytes."""
        area = bytearray(abi.XSAVE_SIZE)
        fcntl.ioctl(self._fd, abi.GET_XSAVE, area)
        return area

    def set_xsave(self, area: bytearray) -> None:
        """Set them; XSTATE_BV says which, the others get their initial values. KvmError for a wrong MXCSR."""
        try:
            fcntl.ioctl(self._fd, abi.SET_XSAVE, area)
        except OSError as error:
            raise KvmError(
                f"KVM refuses the floating-point state ({error.strerror}); take features away with --cpu"
            ) from error

    def debug_regs(self) -> KvmDebugRegs:
        """Debug registers."""
        return self._get(abi.GET_DEBUGREGS, KvmDebugRegs())

    def set_debug_regs(self, registers: KvmDebugRegs) -> None:
        """Set them."""
        fcntl.ioctl(self._fd, abi.SET_DEBUGREGS, registers)

    def set_xcr0(self, value: int) -> bool:
        """Set XCR0; False if the host's CPU has no such state."""
        try:
            fcntl.ioctl(self._fd, abi.SET_XCRS, abi.XCRS.pack(1, 0, 0, 0, value))
        except OSError:
            return False
        return True

    def clear_events(self, shadow: bool = False) -> None:
        """Drop whatever waits to be delivered. `shadow`: as after STI or MOV SS."""
        events = KvmEvents(flags=abi.VCPUEVENT_VALID_SHADOW)
        events.shadow = shadow
        fcntl.ioctl(self._fd, abi.SET_VCPU_EVENTS, events)

    def msr(self, index: int) -> int | None:
        """A model-specific register; None if KVM has none of that number."""
        buffer = bytearray(abi.MSRS_HEAD.pack(1, 0) + abi.MSR_ENTRY.pack(index, 0, 0))
        try:
            found = fcntl.ioctl(self._fd, abi.GET_MSRS, buffer)
        except OSError:
            return None
        return int(abi.MSR_ENTRY.unpack_from(buffer, abi.MSRS_HEAD.size)[2]) if found == 1 else None

    def set_msr(self, index: int, value: int) -> bool:
        """Set a model-specific register; False if KVM has none of that number or refuses the value."""
        buffer = bytearray(abi.MSRS_HEAD.pack(1, 0) + abi.MSR_ENTRY.pack(index, 0, value))
        try:
            done: int = fcntl.ioctl(self._fd, abi.SET_MSRS, buffer)
            return done == 1
        except OSError:
            return False

    def set_cpuid(self, leaves: Sequence[tuple[int, int | None, tuple[int, int, int, int]]]) -> None:
        """What CPUID answers: (leaf, subleaf, (eax, ebx, ecx, edx)); None: whatever ECX is.

        Where the host's CPU runs the guest's user code by itself it may answer there instead.
        """
        raw = bytearray(abi.CPUID_HEAD.pack(len(leaves), 0))
        for leaf, subleaf, answer in leaves:
            flags = 0 if subleaf is None else abi.CPUID_FLAG_SIGNIFCANT_INDEX
            raw += abi.CPUID_ENTRY.pack(leaf, subleaf or 0, flags, *answer, 0, 0, 0)
        try:
            fcntl.ioctl(self._fd, abi.SET_CPUID2, raw)
        except OSError as error:
            raise KvmError(
                f"KVM refuses the CPU's features ({error.strerror}); take features away with --cpu"
            ) from error

    def close(self) -> None:
        """Unmap the shared page and close the vCPU."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._run.close()
            os.close(fd)
