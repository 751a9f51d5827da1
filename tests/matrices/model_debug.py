"""Debug exceptions and what happens at the boundary between two instructions.

SDM Vol. 3, "Debug Registers" (DR6, DR7, the table of breakpoint ranges), "Instruction-Breakpoint Exception
Condition", "Data Memory and I/O Breakpoint Exception Conditions", "Single-Step Exception Condition",
"Priority Among Concurrent Events", "Masking Exceptions and Interrupts When Switching Stacks". B0-B3 are
reported for enabled breakpoints only, which the manual leaves open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.matrices import model_paging as paging
from tests.matrices.model_exceptions import interrupt, take
from tests.matrices.model_paging import FETCH
from tests.matrices.spec import DB, DE, IF, M32, RF, TF, Fault, Machine, Shutdown

BS = 1 << 14
EXECUTE, WRITES, IO, READS_AND_WRITES = 0, 1, 2, 3  # R/Wn
LENGTHS = (1, 2, 8, 4)  # LENn
NO_SHADOW, STI, MOV_SS = "", "sti", "mov ss"


class Step(NamedTuple):
    """An instruction of the program: bytes, model, the shadow it casts, whether its TF trap is dropped."""

    raw: bytes
    instruction: Callable[[Machine], None]
    shadow: str = NO_SHADOW
    no_trap: bool = False
    repeats: bool = False
    masks_trap: bool = False  # SYSCALL: a mask that clears TF takes the trap away


def enabled(m: Machine, n: int) -> bool:
    """L or G."""
    return bool(m.dr7 >> 2 * n & 3)


def kind_of(m: Machine, n: int) -> int:
    """R/Wn."""
    return m.dr7 >> 16 + 4 * n & 3


def covers(m: Machine, n: int, at: int, size: int) -> bool:
    """The range of breakpoint n, aligned to its length, has a byte in common with an access."""
    length = LENGTHS[m.dr7 >> 18 + 4 * n & 3]
    first = getattr(m, f"dr{n}") & ~(length - 1)
    return bool(first < at + size and at < first + length)


def data_hits(m: Machine) -> int:
    """B0-B3 for the data references and port accesses that were logged."""
    found = 0
    for n in range(4):
        if not enabled(m, n):
            continue
        for at, size, write in m.log or ():
            wanted = (WRITES, READS_AND_WRITES) if write else (READS_AND_WRITES,)
            if kind_of(m, n) in wanted and covers(m, n, at, size):
                found |= 1 << n
        for port in m.ports:
            if kind_of(m, n) == IO and m.cr4 & DE and covers(m, n, port[1], port[2]):
                found |= 1 << n
    return found


def code_hits(m: Machine) -> int:
    """B0-B3 of the instruction about to run."""
    linear = m.rip if m.mode64 else m.cs.base + m.rip & M32
    return sum(1 << n for n in range(4)
               if enabled(m, n) and kind_of(m, n) == EXECUTE and getattr(m, f"dr{n}") == linear)  # fmt: skip


class Session:
    """A machine running a program, with events waiting."""

    def __init__(self, m: Machine, program: dict[int, Step], interrupts: list[int], nmi: bool) -> None:
        self.m = m
        self.program = program
        self.interrupts = interrupts
        self.nmi = nmi
        self.pending = 0  # debug traps held for the boundary
        self.shadow = NO_SHADOW
        self.repeating = False  # RF stands for "between two iterations"

    def step(self) -> str:
        """One event or one instruction; what it was."""
        m = self.m
        if self.pending and self.shadow != MOV_SS:
            fault = Fault(DB, dr6=self.pending, trap=True)
            self.pending, self.shadow, self.repeating = 0, NO_SHADOW, False
            take(m, fault)
            return "debug trap"
        if self.nmi and not m.nmi_blocked and self.shadow != MOV_SS:
            self.nmi = self.repeating = False
            interrupt(m, 2)
            return "nmi"
        if self.interrupts and m.rflags & IF and self.shadow == NO_SHADOW:
            self.repeating = False
            interrupt(m, self.interrupts.pop(0))
            return "interrupt"
        return self.instruction()

    def instruction(self) -> str:
        """Code breakpoint, fetch, execution; "Priority Among Concurrent Events", 7 to 10."""
        m = self.m
        linear = m.rip if m.mode64 else m.cs.base + m.rip & M32
        if not m.rflags & RF and self.shadow != MOV_SS and code_hits(m):
            self.shadow = NO_SHADOW
            take(m, Fault(DB, dr6=code_hits(m)))
            return "code breakpoint"
        try:
            paging.access(m, linear, 1, FETCH)
            step = self.program[linear]
        except Fault as fault:
            self.shadow = NO_SHADOW
            take(m, fault)
            return "fault"
        start = dict(m.__dict__)
        traps = bool(m.rflags & TF)
        self.shadow = NO_SHADOW
        self.repeating = False
        m.log, m.ports = [], ()
        m.rip += len(step.raw)
        m.rflags &= ~RF
        try:
            step.instruction(m)
        except Fault as fault:
            if not fault.trap:
                mem = m.mem
                m.__dict__.update(start)
                m.mem = mem
            m.log = None
            take(m, fault)
            return "fault"
        self.pending |= data_hits(m)
        m.log, m.ports = None, ()
        m.retired += 1
        self.shadow = step.shadow
        if step.shadow == STI and start["rflags"] & IF:
            self.shadow = NO_SHADOW
        masked = step.no_trap or (step.masks_trap and not m.rflags & TF)
        if traps and not masked and step.shadow != MOV_SS:
            self.pending |= BS
        if step.repeats and m.rip == start["rip"]:  # an iteration that is not the last one
            m.rflags |= RF
            self.repeating = True
        return "instruction"


def run(session: Session, steps: int) -> list[str]:
    """Several steps; ["shutdown"] at the end if it comes to that."""
    found = []
    for _ in range(steps):
        try:
            found.append(session.step())
        except Shutdown:
            return [*found, "shutdown"]
    return found
