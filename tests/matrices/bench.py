"""One real Cpu for all cases of a matrix: put a machine into it, run, compare everything with what a model
says.

Registers, hidden parts of segments, retired instructions and every byte of RAM are compared: page-table bits,
descriptors, stacks and what must not have been written.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

from isa.cpu import Cpu
from isa.cpuid import DEFAULT_FEATURES, FEATURE_BITS, OPTIONAL_FEATURES, CpuId
from isa.exits import (
    Budget,
    ExitReason,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    SysRegRead,
    SysRegWrite,
    TripleFault,
)
from isa.faults import Fault
from isa.memory import PhysicalMemory
from isa.state import NO_SHADOW, XMM_NAMES, YMM_HIGH_NAMES, Segment
from tests.isa.machine import ALL_FEATURES
from tests.matrices.model_machine import ANSWER, random_value
from tests.matrices.model_rep import port_value
from tests.matrices.model_system import TIME
from tests.matrices.spec import PLAIN, SEGMENTS, Machine, Seg

FEATURES = ALL_FEATURES | frozenset(FEATURE_BITS)
OFFERED = frozenset((*DEFAULT_FEATURES, *OPTIONAL_FEATURES))  # all that a configuration can have CPUID tell
LEAD = 3  # NOPs before the instruction, so that a block has something to begin with
FILLER = b"\x90" * LEAD
REGISTERS = tuple(name for name in PLAIN if name != "rflags")
ALL_SEGMENTS = (*SEGMENTS, "ldtr", "tr")
VECTORS = attrgetter(*XMM_NAMES, *YMM_HIGH_NAMES)  # XMM0 is in REGISTERS too: it is what most cases use
NO_VECTORS = (0,) * len((*XMM_NAMES, *YMM_HIGH_NAMES))
FPU = attrgetter("regs", "tags", "top", "control", "status", "ip", "dp", "cs", "ds", "opcode")
FPU_AT_RESET = ([0] * 8, [0] * 8, 0, 0x40, 0, 0, 0, 0, 0, 0)


class Bench:
    """A Cpu with `ram` bytes at address 0. `blocks`: on the block engine, which translates what it meets."""

    def __init__(self, ram: int, *, blocks: bool = False, features: frozenset[str] = FEATURES) -> None:
        memory = PhysicalMemory()
        memory.add_ram(0, ram)
        self.ram = ram
        self.cpu = Cpu(memory, features, CpuId(OFFERED))
        self.blocks = blocks
        self.cpu.use_blocks = blocks
        self.cpu.hot = 0
        self.cpu.tsc = lambda: TIME
        self.cpu.random64 = self._random
        self.ports: tuple[Any, ...] = ()
        self.code = b""  # what lay in the code area when it was decoded
        self.image = np.zeros(ram, np.uint8)

    def load(self, machine: Machine, code: slice) -> None:
        """Put a machine's state into the Cpu; `code` is the part of RAM that holds instructions."""
        cpu = self.cpu
        cpu.memory.pool[:] = np.frombuffer(machine.mem, np.uint8)
        text = bytes(machine.mem[code])
        if text != self.code:
            cpu.cache_written(code.start, len(text))
            self.code = text
        self._forget()
        for name in REGISTERS:
            setattr(cpu, name, getattr(machine, name))
        cpu.set_rflags_raw(machine.rflags)
        for name in ALL_SEGMENTS:
            selector, base, limit, attributes, null = getattr(machine, name)
            segment: Segment = getattr(cpu, name)
            segment.load_raw(selector, base, limit, attributes, null=null)
        cpu.gdtr.base, cpu.gdtr.limit = machine.gdtr
        cpu.idtr.base, cpu.idtr.limit = machine.idtr
        cpu.pdptes = list(machine.pdptes)
        cpu.pse36, cpu.gigabyte_pages = machine.pse36, machine.pages_1g
        cpu.nmi_blocked = machine.nmi_blocked
        cpu.msr.update(machine.msrs)
        if machine.x87_error:  # IE, unmasked: ES and B follow
            cpu.fpu.init()
            cpu.fpu.control, cpu.fpu.status = 0x37E, 0x8081
        cpu.retired = 0
        cpu.interrupt_line = cpu.kicked = False
        cpu.host_interrupt = cpu.pending_flags = None
        cpu.debug_hits = 0
        cpu._between_iterations = cpu.trap_cancelled = False
        cpu.flush_tlb()
        cpu.update_mode()
        cpu.code.bails.clear()  # however often a block gives up, the next case goes through it again
        cpu.code.apart.clear()
        cpu.request_attention()

    def _forget(self) -> None:
        """What RESET does to all that a machine does not say, and only that."""
        cpu = self.cpu
        if VECTORS(cpu) != NO_VECTORS or FPU(cpu.fpu) != FPU_AT_RESET:
            cpu.reset()
        cpu.forget_answers()
        cpu.injected.clear()
        cpu.undelivered = None
        cpu.nmi_pending = False
        cpu._pending_debug = 0
        cpu.shadow = NO_SHADOW
        cpu.msr.clear()
        if not self.blocks:  # which keep translations of all of them
            cpu.cache.contexts.clear()

    def pend(self, vector: int) -> None:
        """Make an external interrupt pending, or an NMI for vector 2."""
        if vector == 2:
            self.cpu.nmi_pending = True
        else:
            self.cpu.injected.append(vector)
        self.cpu.request_attention()

    def run(self, instructions: int = 1) -> ExitReason:
        """Retire that many instructions and deliveries; on the block engine the NOPs before come on top."""
        cpu = self.cpu
        self.ports = ()
        virtual = cpu.vif and cpu.vip  # #GP on any instruction, the first of LEAD too
        if not self.blocks or cpu.tf or cpu.rf or virtual or cpu.dr7 & 0xFF or cpu.would_wake():
            return self._run(instructions)
        ip = cpu.rip
        cpu.rip = ip - LEAD
        try:
            for n in range(LEAD, -1, -1):  # what is decoded already may be translated at its first arrival
                cpu.code[ip - n]
        except Fault:  # code that cannot be fetched is the case itself
            cpu.rip = ip
            return self._run(instructions)
        reason = self._run(LEAD + instructions)
        cpu.retired -= LEAD
        return reason

    def resume(self, instructions: int) -> ExitReason:
        """Go on after `run` until so many have retired in all."""
        return self._run(instructions)

    def _random(self) -> int:
        """The machine's next random number."""
        self.ports = (*self.ports, ("random",))
        return random_value(len(self.ports) - 1)

    def _run(self, until: int) -> ExitReason:
        """Run, answering IN and OUT, and registers and calls that are the hypervisor's."""
        reads = 0
        while True:
            reason = self.cpu.run(until)
            if isinstance(reason, IoRead):
                self.ports = (*self.ports, ("in", reason.port, reason.width))
                self.cpu.complete(port_value(reads))
                reads += 1
            elif isinstance(reason, IoWrite):
                self.ports = (*self.ports, ("out", reason.port, reason.width, reason.data))
                self.cpu.complete()
            elif isinstance(reason, SysRegRead):
                self.ports = (*self.ports, ("rdmsr", reason.addr))
                self.cpu.complete(ANSWER)
            elif isinstance(reason, SysRegWrite):
                self.ports = (*self.ports, ("wrmsr", reason.addr, reason.value))
                self.cpu.complete()
            elif isinstance(reason, Hypercall):
                self.ports = (*self.ports, ("hypercall", reason.nr, reason.args))
                self.cpu.complete(ANSWER)
            else:
                return reason

    def difference(self, expected: Machine, reason: ExitReason, stopped: bool = False) -> str:
        """What the Cpu holds and the model does not say, or "" if they agree."""
        cpu = self.cpu
        found = []
        if stopped:
            if not isinstance(reason, TripleFault):
                return f"exit {reason}, the model says shutdown"
        elif not isinstance(reason, Budget | Halt):
            return f"exit {reason}"
        for name in REGISTERS:
            if stopped and name == "halted":
                continue
            got, wanted = getattr(cpu, name), getattr(expected, name)
            if got != wanted:
                found.append(f"{name} {got:#x}, model {wanted:#x}")
        if cpu.rflags() != expected.rflags:
            found.append(f"rflags {cpu.rflags():#x}, model {expected.rflags:#x}")
        for name in ALL_SEGMENTS:
            segment: Segment = getattr(cpu, name)
            want: Seg = getattr(expected, name)
            if want.null or segment.null:
                # what lies behind a null selector cannot be seen, but for the base (FS, GS)
                if (segment.null, segment.selector, segment.base) != (want.null, want.selector, want.base):
                    found.append(f"{name} {describe(segment)}, model {want}")
            elif (segment.selector, segment.base, segment.limit, segment.attributes) != want[:4]:
                found.append(f"{name} {describe(segment)}, model {want}")
        if (cpu.gdtr.base, cpu.gdtr.limit) != expected.gdtr or (
            cpu.idtr.base,
            cpu.idtr.limit,
        ) != expected.idtr:
            found.append("GDTR or IDTR")
        if tuple(cpu.pdptes) != expected.pdptes:
            found.append(f"PDPTEs {cpu.pdptes}, model {expected.pdptes}")
        if self.ports != expected.ports:
            found.append(f"ports {self.ports}, model {expected.ports}")
        if cpu.nmi_blocked != expected.nmi_blocked:
            found.append(f"NMI blocking {cpu.nmi_blocked}")
        if cpu.retired != expected.retired:
            found.append(f"{cpu.retired} retired, model {expected.retired}")
        if cpu.msr != expected.msrs:
            found.append(f"MSRs {cpu.msr}, model {expected.msrs}")
        if self.memory() != expected.mem:
            found.append(self._memory_difference(expected.mem))
        return "; ".join(found)

    def memory(self) -> bytes:
        """All of RAM."""
        return self.cpu.memory.pool.tobytes()

    def _memory_difference(self, wanted: bytearray) -> str:
        got = self.memory()
        wrong = [n for n in range(self.ram) if got[n] != wanted[n]]
        spans = ", ".join(f"{n:#x}: {got[n]:02x}, model {wanted[n]:02x}" for n in wrong[:6])
        return f"{len(wrong)} bytes of RAM ({spans})"


def describe(segment: Any) -> str:
    """A Segment in the words of `Seg`."""
    return (
        f"Seg(selector={segment.selector:#x}, base={segment.base:#x}, limit={segment.limit:#x}, "
        f"attributes={segment.attributes:#x}, null={segment.null})"
    )
