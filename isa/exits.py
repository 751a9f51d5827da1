"""VM exits: why the CPU left the guest. The reasons are axvm's AxVCpuExitReason plus the CPU's own.

An exit is raised *before* the effect: RIP still points at the instruction and no register has changed. The
VM answers with `Cpu.complete(value)` and runs the CPU again: the instruction executes once more, finds the
answer, and finishes. So REP, read-modify-write, split and device-to-device accesses touch a device exactly
once per element without a special case. An access that has nothing but an answer may be answered where it
stands (`Cpu.port_in`, `mmio_load` ...), without leaving.
"""

from __future__ import annotations

from dataclasses import dataclass


class ExitReason:
    """Base of every reason; `match` on the subclasses."""

    __slots__ = ()


class VmExit(Exception):
    """Carries an exit reason out of an instruction."""

    def __init__(self, reason: ExitReason) -> None:
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Hypercall(ExitReason):
    """VMCALL or VMMCALL: number in RAX, arguments in RDI RSI RDX RCX R8 R9. The answer goes to RAX."""

    nr: int
    args: tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class MmioRead(ExitReason):
    """A load of `width` bytes from a device page.

    For a plain load (MOV, MOVZX, MOVSX, MOVSXD) `reg` is the number of the GPR that receives the value,
    `reg_width` its width in bytes and `signed_ext` tells MOVSX; for any other instruction `reg` is None.
    """

    addr: int
    width: int
    reg: int | None = None
    reg_width: int = 0
    signed_ext: bool = False


@dataclass(frozen=True, slots=True)
class MmioWrite(ExitReason):
    """A store of the low `width` bytes of `data` to a device page."""

    addr: int
    width: int
    data: int


@dataclass(frozen=True, slots=True)
class SysRegRead(ExitReason):
    """RDMSR of a register that the CPU does not hold; the answer goes to EDX:EAX."""

    addr: int
    reg: int = 0


@dataclass(frozen=True, slots=True)
class SysRegWrite(ExitReason):
    """WRMSR of a register that the CPU does not hold."""

    addr: int
    value: int


@dataclass(frozen=True, slots=True)
class IoRead(ExitReason):
    """IN or INS: `width` bytes from `port`."""

    port: int
    width: int


@dataclass(frozen=True, slots=True)
class IoWrite(ExitReason):
    """OUT or OUTS: `width` bytes to `port`."""

    port: int
    width: int
    data: int


@dataclass(frozen=True, slots=True)
class ExternalInterrupt(ExitReason):
    """The host asked for attention (`Cpu.host_interrupt`) while the guest ran."""

    vector: int


@dataclass(frozen=True, slots=True)
class NestedPageFault(ExitReason):
    """The guest-physical page holds neither RAM with this permission nor a device.

    `access_flags` uses axaddrspace's MappingFlags bits: READ 1, WRITE 2, EXECUTE 4, USER 8.
    """

    addr: int
    access_flags: int


@dataclass(frozen=True, slots=True)
class Halt(ExitReason):
    """The CPU sleeps in HLT or MWAIT and nothing is pending that could wake it."""


@dataclass(frozen=True, slots=True)
class CpuUp(ExitReason):
    """A start-up IPI: run `target_cpu` (APIC id) at `entry_point`."""

    target_cpu: int
    entry_point: int
    arg: int = 0


@dataclass(frozen=True, slots=True)
class CpuDown(ExitReason):
    """The guest took this CPU offline (INIT without SIPI, or a board register)."""

    _state: int = 0


@dataclass(frozen=True, slots=True)
class SystemDown(ExitReason):
    """The guest switched the machine off."""


@dataclass(frozen=True, slots=True)
class Nothing(ExitReason):
    """The vCPU handled the exit itself; the caller may do housekeeping."""


@dataclass(frozen=True, slots=True)
class FailEntry(ExitReason):
    """The guest state is one that no CPU can enter with; `why` names the check that failed."""

    hardware_entry_failure_reason: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class SendIPI(ExitReason):
    """The local APIC sent an interrupt to another CPU."""

    target_cpu: int
    target_cpu_aux: int = 0
    send_to_all: bool = False
    send_to_self: bool = False
    vector: int = 0


@dataclass(frozen=True, slots=True)
class TripleFault(ExitReason):
    """A fault while delivering a double fault: the CPU shut down. `chain` lists the faults, first to last."""

    chain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unimplemented(ExitReason):
    """An instruction or feature that this CPU lacks: never a silent #UD, never a wrong result."""

    code: bytes
    text: str
    rip: int
    mode: str

    def __str__(self) -> str:
        what = f"{self.code.hex(' ')}  {self.text}"
        return f"unimplemented instruction at {self.rip:#x} in {self.mode} mode: {what}"


@dataclass(frozen=True, slots=True)
class Budget(ExitReason):
    """The instruction budget given to the run is used up; `retired` is the count reached."""

    retired: int
