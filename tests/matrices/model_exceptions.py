"""What follows an exception: CR2, DR6, RF, the pair of a fault and a fault in its delivery, shutdown.

SDM Vol. 3, "Double Fault Exception (#DF)", tables "Interrupt and Exception Classes" and "Conditions for
Generating a Double Fault"; "Error Code" for EXT; "Instruction-Breakpoint Exception Condition" for RF.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.matrices import model_gates
from tests.matrices.spec import (
    ACF,
    DB,
    DE_VECTOR,
    DFAULT,
    GP,
    MC,
    NMI,
    NP,
    PFAULT,
    PVI,
    RF,
    SS,
    TSF,
    VIF,
    VIP,
    VME,
    Endless,
    Fault,
    Machine,
    Shutdown,
)

BENIGN, CONTRIBUTORY, PAGE = "benign", "contributory", "page fault"
CLASS = {DE_VECTOR: CONTRIBUTORY, TSF: CONTRIBUTORY, NP: CONTRIBUTORY, SS: CONTRIBUTORY, GP: CONTRIBUTORY,
         PFAULT: PAGE}  # fmt: skip
DOUBLE = {(CONTRIBUTORY, CONTRIBUTORY), (PAGE, CONTRIBUTORY), (PAGE, PAGE)}
WITH_EXT = frozenset((TSF, NP, SS, GP, ACF))
DR6_BD = 1 << 13


def class_of(vector: int) -> str:
    """Benign, contributory or page fault."""
    return CLASS.get(vector, BENIGN)


def external(fault: Fault) -> Fault:
    """EXT: raised while an event was delivered that no INT n, INT3 or INTO asked for."""
    if fault.vector in WITH_EXT and fault.error is not None:
        fault.error |= 1
    return fault


def record(m: Machine, fault: Fault) -> None:
    """CR2 and DR6 are written before the delivery, whatever comes of that."""
    if fault.vector == PFAULT:
        m.cr2 = fault.cr2
    elif fault.vector == DB:
        m.dr6 = m.dr6 & ~15 | fault.dr6
        m.dr7 &= ~(1 << 13)


def pushed_flags(m: Machine, fault: Fault) -> int:
    """RF is 1 in the image of a fault-class exception: the instruction starts again and must not break again.
    Not so for traps, for the aborts #DF and #MC, and for the instruction breakpoint itself."""
    resumes = fault.vector not in (MC, DFAULT)
    if fault.vector == DB:
        resumes = bool(fault.dr6 & DR6_BD)
    return m.rflags | (RF if resumes else 0)


def take(m: Machine, fault: Fault) -> None:
    """Deliver an exception whose return address is RIP, and what comes of it. Raises Shutdown or Endless.

    Counts as one retired instruction, however many deliveries it took.
    """
    m.retired += 1
    for _ in range(20):
        record(m, fault)
        try:
            model_gates.deliver(m, fault.vector, fault.error, pushed_flags(m, fault), software=False)
            return
        except Fault as event:
            second = external(event)
        pair = class_of(fault.vector), class_of(second.vector)
        if fault.vector == DFAULT and class_of(second.vector) != BENIGN:
            raise Shutdown
        if pair in DOUBLE:
            record(m, second)
            second = Fault(DFAULT, 0, trap=second.trap)
        fault = second
    raise Endless


def interrupt(m: Machine, vector: int) -> str:
    """Deliver an external interrupt or an NMI between two instructions; what `execute` returns."""
    m.nmi_blocked = m.nmi_blocked or vector == NMI
    before = m.retired
    try:
        model_gates.deliver(m, vector, None, m.rflags, software=False)
    except Fault as fault:
        try:
            take(m, external(fault))
        except (Shutdown, Endless) as event:
            m.retired = before + 1
            return event.name
        return fault.name
    m.retired += 1
    return ""


def virtual_interrupts(m: Machine) -> bool:
    """VIF stands for IF: SDM Vol. 3, "Class 2-Maskable Hardware Interrupt Handling in Virtual-8086 Mode" and
    "Protected-Mode Virtual Interrupts". There VIF and VIP both set are #GP as an instruction begins."""
    return m.cpl == 3 and bool(m.cr4 & (VME if m.v86 else PVI))


def execute(m: Machine, instruction: Callable[[Machine], None], length: int) -> str:
    """Run one instruction of the model; a fault takes its handler. "", its name, "shutdown" or "endless".

    While `instruction` runs, RIP is behind it, as the manual's pseudo code has it; a fault puts it back.
    """
    before = dict(m.__dict__)
    m.rip += length
    m.rflags &= ~RF
    try:
        if m.rflags & VIF and m.rflags & VIP and virtual_interrupts(m):
            raise Fault(GP, 0)
        instruction(m)
    except Fault as fault:
        name = fault.name
        if not fault.trap:  # as it was, but for flags in page tables and in MXCSR and the end of NMI blocking
            nmi_blocked, mxcsr = m.nmi_blocked, m.mxcsr
            m.__dict__.update(before)
            m.nmi_blocked, m.mxcsr = nmi_blocked, mxcsr
        try:
            take(m, fault)
        except (Shutdown, Endless) as event:
            return event.name
        return name
    m.retired += 1
    return ""
