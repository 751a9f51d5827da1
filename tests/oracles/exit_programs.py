"""Random programs that mostly take exits, and a board of devices that do everything a device may do while it
answers. It compares nothing itself.

The programs run in the machine of `random_programs`: its page tables, its handlers, its kinds of pages. Its
device page is four windows here, and behind every port, window and register of them stands a `Whim`, which
mostly just answers, and now and then raises an interrupt, arms a timer, writes memory or registers, moves a
window, fails, or answers nonsense. The same seed does the same, access by access.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from devices.base import Device, DeviceError
from devices.bus import BusKind
from devices.local_apic import SysRegFault
from isa.assembler import assemble
from isa.exits import (
    Budget,
    ExitReason,
    ExternalInterrupt,
    Halt,
    Hypercall,
    NestedPageFault,
    TripleFault,
    Unimplemented,
)
from isa.memory import EXECUTE, READ
from isa.state import M64
from pysim_vm.config import AxVMConfig
from pysim_vm.errors import AxError
from pysim_vm.exit_log import ExitLog, ExitRow
from pysim_vm.vm import AxVM
from tests.oracles.random_programs import (
    ABSENT,
    ALIAS_GPA,
    CODE_AT,
    CODE_PAGES,
    DATA,
    DATA_AT,
    DATA_PAGES,
    FIRST_INTERRUPT,
    INTERRUPTS,
    LAZY,
    LAZY_GPA,
    MMIO,
    MMIO_GPA,
    RAM,
    READ_ONLY,
    ROM_GPA,
    UNKNOWN_MSR,
    Event,
    Machine,
    Program,
    random_program,
)

PORT, PORTS = 0x300, 16
MOVING = MMIO_GPA + 0x800  # a window that comes and goes; between it and the last one nobody answers
WINDOWS = ((MMIO_GPA, 0x400), (MMIO_GPA + 0x400, 0x100), (MMIO_GPA + 0xC00, 0x400))
ITEMS = 60
EXITS = 4_000  # of one program
CUT_SHORT = 40  # returns of run_vcpu between two events


# ---- the device ------------------------------------------------------------------------------------------


class Whim(Device):
    """Answers, and does as it likes meanwhile. `seen` is all that it saw of the machine."""

    name = "whim"

    def __init__(self, vm: AxVM, seed: int, calm: float) -> None:
        self._vm = vm
        self._rng = random.Random(f"whim {seed}")
        self._calm = calm
        self.seen: list[tuple[object, ...]] = []
        self.tokens: list[int] = []
        self.move: Callable[[int | None], bool] | None = None
        self.lines = [vm._wire(n) for n in (3, 40)]
        self._memory = vm.guest_memory()

    def _look(self, direction: str, offset: int, width: int, value: int) -> None:
        vm = self._vm
        vcpu = vm.vcpu(0)
        cpu = vcpu.cpu
        self.seen.append(
            (direction, offset, width, value, cpu.retired, cpu.rip, vm.now_ns(), vcpu.state(), cpu.rflags(),
             cpu.rax, cpu.rcx, cpu.rsi, cpu.rdi, cpu.rsp, dict(vm.exit_counts))
        )  # fmt: skip

    def read(self, offset: int, width: int) -> Any:
        value = self._rng.getrandbits(8 * width)
        self._look("read", offset, width, value)
        if self._rng.random() >= self._calm:
            odd = self._rng.randrange(12)
            if odd == 0:
                return value | 1 << 8 * width  # too wide: the bus cuts it
            if odd == 1:
                return np.uint64(value)
            if odd == 2:
                return True
            if odd == 3:
                return -1
            self._whim()
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        self._look("write", offset, width, value)
        if self._rng.random() >= self._calm:
            self._whim()

    def _timer(self, now_ns: int) -> None:
        self._look("timer", 0, 0, now_ns)
        if self._rng.random() < 0.6:
            self._vm.vcpu(0).inject_interrupt(FIRST_INTERRUPT + self._rng.randrange(INTERRUPTS))
        if self._rng.random() < 0.3:
            self._arm()

    def _arm(self) -> None:
        after = self._rng.choice((0, 1, 63, 64, 65, 200, 640, 5_000, 50_000))
        self.tokens.append(self._vm.clock.call_at(self._vm.now_ns() + after, self._timer))

    def _whim(self) -> None:
        rng, vm = self._rng, self._vm
        vcpu = vm.vcpu(0)
        match rng.randrange(20):
            case 0 | 1:
                vcpu.inject_interrupt(FIRST_INTERRUPT + rng.randrange(INTERRUPTS))
            case 2 | 3:
                self._arm()
            case 4:
                for token in self.tokens:
                    vm.clock.cancel(token)
                self.tokens.clear()
                if rng.random() < 0.5:
                    self._arm()
            case 5:
                vm.kick()
            case 6:
                self._memory.write(rng.choice(DATA_AT) + rng.randrange(0xFC0), rng.randbytes(32))
            case 7:
                at = rng.choice(CODE_AT) + rng.randrange(0xFF0)
                self._memory.write(at, b"\x90" * rng.randrange(1, 4))
            case 8:
                raise DeviceError("whim had enough")
            case 9:
                raise ValueError("whim slipped")
            case 10:
                raise KeyboardInterrupt
            case 11:
                raise SysRegFault("whim refuses")
            case 12:
                assert self.move is not None
                self.move(rng.choice((None, MOVING)))
            case 13:
                vcpu.regs[rng.choice(("rax", "rcx", "rbx", "rdx", "r15", "cf"))] = rng.randrange(2)
            case 14:
                vcpu.regs.rip = vcpu.regs.rip + rng.choice((0, 1, 2, 5)) & M64
            case 15:
                vcpu.set_gpr(rng.choice((0, 0, 1, 3)), rng.getrandbits(16))
            case 16:
                vcpu.inject_nmi()
            case 17:
                vm.host_interrupt(0x55)
            case 18:
                line = rng.choice(self.lines)
                line.set_level(not line.level)
            case 19:
                self.lines[0].pulse()


# ---- programs --------------------------------------------------------------------------------------------

_ON_DEVICE = (
    "mov eax, [rbx]", "mov [rbx], rax", "mov al, [rbx]", "mov [rbx], ax", "movzx ecx, byte ptr [rbx]",
    "movsx rdx, word ptr [rbx]", "add [rbx], eax", "adc rax, [rbx]", "xchg [rbx], eax", "inc byte ptr [rbx]",
    "neg word ptr [rbx]", "cmpxchg [rbx], ecx", "lock xadd [rbx], rax", "bts qword ptr [rbx], 3",
    "push qword ptr [rbx]; pop rcx", "push rax; pop qword ptr [rbx]", "movups xmm0, [rbx]",
    "movups [rbx], xmm1", "movaps [rbx], xmm2", "movq [rbx], xmm0", "cmpxchg16b [rbx]", "test [rbx], ecx",
    "imul ecx, [rbx], 3", "fld qword ptr [rbx]; fstp qword ptr [rbx]", "fnstenv [rbx]", "fxsave [rbx]",
    "shl dword ptr [rbx], cl", "sete [rbx]", "movbe eax, [rbx]", "div dword ptr [rbx]", "ldmxcsr [rbx]",
    "mov r14, rsp; mov rsp, rbx; push rax; push rcx; pop rdx; popfq; mov rsp, r14", "enter 32, 3; leave",
    "mov r14, rsp; lea rsp, [rbx+64]; enter 16, 4; mov rsp, r14", "mov ax, [rbx]; mov gs, ax",
)  # fmt: skip


@cache
def _assembled(text: str) -> bytes:
    return assemble(text.replace(";", "\n"), bits=64, origin=0)


class _Writer:
    """Draws the items of a program."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"exits {seed}")

    def device(self) -> int:
        """An address in or at the edge of the device page."""
        rng = self.rng
        inside = MMIO + rng.choice((0, 8, 0x3F0, 0x400, 0x4F0, 0x800, 0xC00, rng.randrange(0, 0x400, 8)))
        return rng.choice((inside, inside, inside, MMIO - 4, MMIO + 0x3FE, MMIO + 0x4FC, MMIO + 0x7FE))

    def plain(self) -> int:
        """An address in RAM, sometimes in front of a page that is absent, read-only or lazy."""
        rng = self.rng
        data = DATA + rng.randrange(0, (DATA_PAGES << 12) - 64)
        return rng.choice((data, data, data, READ_ONLY - 4, ABSENT - 4, LAZY + 0xFFE, READ_ONLY, ABSENT))

    def item(self) -> str:
        """One to six instructions."""
        rng = self.rng
        width = rng.choice("bwd")
        register = {"b": "al", "w": "ax", "d": "eax"}[width]
        port = PORT + rng.randrange(-2, PORTS + 2)
        rep = rng.choice(("", "rep ", "rep "))
        count = rng.choice((0, 1, 2, 3, 8, 30))
        direction = rng.choice(("cld; ", "cld; ", "std; "))
        pointers = [f"mov {name}, {rng.choice((self.device, self.plain))():#x}" for name in ("esi", "edi")]
        string = f"{direction}{pointers[0]}; {pointers[1]}; mov ecx, {count}; mov dx, {port:#x}; {rep}"
        match rng.randrange(12):
            case 0 | 1:
                return f"mov dx, {port:#x}; in {register}, dx"
            case 2 | 3:
                return f"mov dx, {port:#x}; out dx, {register}"
            case 4:
                return string + rng.choice(("ins", "outs")) + width
            case 5:
                return string + rng.choice(("movs", "stos", "lods")) + rng.choice("bwdq")
            case 6:
                return string.removesuffix(rep) + rng.choice(("repe ", "repne ")) + \
                    rng.choice(("cmps", "scas")) + width  # fmt: skip
            case 7 | 8:
                return f"mov ebx, {self.device():#x}; {rng.choice(_ON_DEVICE)}"
            case 9:
                number = rng.choice((UNKNOWN_MSR, UNKNOWN_MSR + 1, 0x9999))
                return f"mov ecx, {number:#x}; {rng.choice(('rdmsr', 'wrmsr'))}"
            case 10:
                return rng.choice(("sti", "cli", "sti; hlt", "vmcall", "cpuid", "rdtsc", "pushfq; pop rax"))
            case _:
                return f"mov ecx, {rng.choice((2, 9, 40))}; again: add rax, rcx; out 0x80, al; loop again"

    def program(self, seed: int) -> Program:
        """Items one after the other, and back to the first."""
        rng = self.rng
        code, starts = bytearray(), []
        for _ in range(ITEMS):
            starts.append(len(code))
            code += _assembled(self.item())
        starts.append(len(code))
        code += b"\xe9" + (-len(code) - 5 & 0xFFFF_FFFF).to_bytes(4, "little")
        level = rng.choice((0, 3))
        script = []
        for _ in range(40):
            action = rng.choice(("", "", "", "interrupt", "nmi", "trap", "flush", "kick", "store"))
            where = FIRST_INTERRUPT + rng.randrange(INTERRUPTS)
            if action == "store":
                where = rng.choice(DATA_AT)
            script.append(Event(rng.choice((1, 2, 7, 50, 300)), action, where, rng.randbytes(8)))
        return replace(
            random_program(seed),  # its registers and flags are of no account here
            level=level,
            base=0,
            smap=False,
            alignment_checks=rng.random() < 0.2,
            code=bytes(code).ljust(CODE_PAGES << 12, b"\xf4"),
            starts=tuple(starts),
            registers=tuple(DATA + 0x80 * n for n in range(16)),
            flags=0x2 | 3 << 12 | rng.choice((0, 0x200)) | (rng.random() < 0.1) << 18,  # IOPL 3, IF, AC
            data=rng.randbytes(DATA_PAGES << 12),
            script=tuple(script),
        )


def exit_program(seed: int) -> Program:
    """The program of a seed."""
    return _Writer(seed).program(seed)


# ---- the machine -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Trace:
    """All that can be told of a run from outside."""

    rows: list[ExitRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    returned: list[str] = field(default_factory=list)
    seen: list[tuple[object, ...]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    ram: bytes = b""
    now_ns: int = 0

    def difference(self, other: Trace) -> str:
        """The first thing that differs, or ""."""
        for name in ("rows", "seen", "returned"):
            for n, (one, two) in enumerate(zip(getattr(self, name), getattr(other, name), strict=False)):
                if one != two:
                    return f"{name}[{n}]: {one} and {two}"
            if len(getattr(self, name)) != len(getattr(other, name)):
                return f"{len(getattr(self, name))} and {len(getattr(other, name))} {name}"
        for name in ("counts", "state", "now_ns"):
            if getattr(self, name) != getattr(other, name):
                return f"{name}: {getattr(self, name)} and {getattr(other, name)}"
        return "" if self.ram == other.ram else "RAM differs"


class VmMachine(Machine):
    """A `Machine` whose CPU is a VM's and whose exits go to the VM's devices."""

    def __init__(
        self, program: Program, exit_path: str, engine: str, missing_device: str = "ones", calm: float = 0.7
    ) -> None:
        self.program = program
        self.exits = 0
        self.over = False
        config = AxVMConfig.for_code(
            RAM, exit_path=exit_path, engine=engine, missing_device=missing_device, seed=program.seed
        )
        vm = self.vm = AxVM(config)
        memory = self.memory = vm.memory
        memory.add_ram(ROM_GPA, 0x1000, READ | EXECUTE, name="rom")
        self.lazy = memory.add_ram(LAZY_GPA, 0x2000, name="lazy", lazy=True)
        memory.add_ram(ALIAS_GPA, 0x4000, name="alias", host=DATA_AT[0])
        self._fill_memory()
        self.cpu: Any = vm.vcpu(0).cpu
        self.cpu.hot = 1
        self._set_registers()
        devices = vm.get_devices()
        self.whim = Whim(vm, program.seed, calm)
        devices.add_port_dev(self.whim, PORT, PORTS)
        for base, length in WINDOWS:
            devices.add_mmio_dev(self.whim, base, length)
        devices.add_sys_reg_dev(self.whim, UNKNOWN_MSR, 2)
        self.whim.move = devices.movable_window(self.whim, BusKind.MMIO, 0x100, 0x5000)
        self.whim.move(MOVING)
        self.trace = Trace(seen=self.whim.seen)
        vm.exit_log = ExitLog()
        vm.exit_sink = self._take

    def _take(self, rows: ExitLog) -> None:
        self.trace.rows += rows
        rows.clear()

    def run_all(self) -> Trace:
        """The whole script. Every return of run_vcpu is noted and answered as `Machine` does."""
        vm, cpu, trace = self.vm, self.cpu, self.trace
        until = 0
        for event in self.program.script:
            until = max(until, cpu.retired) + event.after
            for _ in range(CUT_SHORT):
                if self.over or cpu.retired >= until or len(trace.rows) >= EXITS:
                    break
                try:
                    reason: ExitReason = vm.run_vcpu(0, until - cpu.retired)
                except (AxError, KeyboardInterrupt, SysRegFault) as error:
                    trace.returned.append(f"{type(error).__name__} {error} {cpu.retired} {cpu.rip:#x}")
                    continue
                trace.returned.append(f"{reason} {cpu.retired} {cpu.rip:#x}")
                self._answer(reason)
            if self.over or len(trace.rows) >= EXITS:
                break
            self.happen(event)
        trace.counts = dict(vm.exit_counts)
        trace.state = self.state()
        trace.ram = bytes(self.memory.view)
        trace.now_ns = vm.now_ns()
        return trace

    def _answer(self, reason: ExitReason) -> None:
        match reason:
            case Hypercall():
                self.exits += 1
                self.vm.vcpu(0).set_return_value(self.exits * 0x1234_5678_9ABC)
            case NestedPageFault(addr=addr) if LAZY_GPA <= addr < LAZY_GPA + 0x2000:
                assert self.lazy.populated is not None
                self.lazy.populated[addr - LAZY_GPA >> 12] = True
            case Halt():
                self.vm.vcpu(0).inject_interrupt(FIRST_INTERRUPT)
                self.over = not self.cpu.if_
            case TripleFault() | Unimplemented() | NestedPageFault():
                self.over = True
            case Budget() | ExternalInterrupt() | _:
                pass

    def state(self) -> dict[str, Any]:
        """As in `Machine`; this CPU keeps no stream of faults."""
        cpu = self.cpu
        made: dict[str, Any] = {name: getattr(cpu, name) for name in _STATE}
        made.update(rflags=cpu.rflags(), cs=cpu.cs.selector, gs=cpu.gs.selector, msr=dict(cpu.msr),
                    fpu=(list(cpu.fpu.regs), list(cpu.fpu.tags), cpu.fpu.status_word()),
                    vcpu=self.vm.vcpu(0).state(), injected=list(cpu.injected))  # fmt: skip
        return made


_STATE = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip", "xmm0", "xmm1", "xmm2", "mxcsr", "retired", "cpl", "cr0", "cr2", "cr3", "cr4", "dr6", "dr7",
    "efer", "shadow", "halted", "nmi_blocked",
)  # fmt: skip


def trace_of(program: Program, exit_path: str, engine: str, **machine: Any) -> Trace:
    """Run a program from its start."""
    return VmMachine(program, exit_path, engine, **machine).run_all()
