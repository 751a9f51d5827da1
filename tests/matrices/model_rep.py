"""String instructions and their repetition: SDM Vol. 2, REP, MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS.

Each element is committed before the next; a fault leaves the registers at the element that faulted. Flags are
those of the last element compared: the manual has them as before the instruction, CPUs (measured on an AMD
Zen 4) do not.
"""

from __future__ import annotations

from tests.matrices import model_paging as paging
from tests.matrices.model_segments import reference
from tests.matrices.spec import (
    AF,
    ARITHMETIC,
    CF,
    DF,
    GP,
    M16,
    M32,
    OF,
    PF,
    SF,
    ZF,
    Fault,
    Machine,
    low,
)


def port_value(number: int) -> int:
    """What the `number`-th IN of a case reads."""
    return 0xC3A5_9600 + 0x0101_0101 * number & M32


def flags_of(a: int, b: int, size: int) -> int:
    """The arithmetic flags of a - b."""
    top = 1 << 8 * size - 1
    result = a - b & 2 * top - 1
    found = (CF if a < b else 0) | (ZF if not result else 0) | (SF if result & top else 0)
    found |= (PF if (result & 0xFF).bit_count() % 2 == 0 else 0) | (AF if (a ^ b ^ result) & 16 else 0)
    return found | (OF if (a ^ b) & (a ^ result) & top else 0)


def element(m: Machine, op: str, size: int, address: int, segment: str) -> None:
    """One element; rSI and rDI move by `size` in the direction of DF within `address` bits."""
    mask, low_bits = (1 << address) - 1, (1 << 8 * size) - 1
    source, target = m.rsi & mask, m.rdi & mask
    value = 0
    if op in ("ins", "outs") and m.protected and m.cpl > m.rflags >> 12 & 3:
        raise Fault(GP, 0)  # no I/O permission bit map here
    if op in ("movs", "lods", "cmps", "outs"):
        value = paging.load(m, reference(m, segment, source, size, write=False), size)
    if op in ("cmps", "scas"):
        other = paging.load(m, reference(m, "es", target, size, write=False), size)
        first = value if op == "cmps" else m.rax & low_bits
        m.rflags = m.rflags & ~ARITHMETIC | flags_of(first, other, size)
    elif op in ("movs", "stos", "ins"):
        at = reference(m, "es", target, size, write=True)
        if op == "ins":  # the port must not lose a value to a fault of the store
            paging.access(m, at, size, paging.WRITE)
            value = port_value(len(m.ports)) & low_bits
            m.ports = (*m.ports, ("in", m.rdx & M16, size))
        paging.store(m, at, size, m.rax & low_bits if op == "stos" else value)
    elif op == "lods":
        m.rax = m.rax & ~0xFF | value if size == 1 else low(m.rax, value, low_bits)
    else:
        m.ports = (*m.ports, ("out", m.rdx & M16, size, value))
    step = -size if m.rflags & DF else size
    if op in ("movs", "lods", "cmps", "outs"):
        m.rsi = low(m.rsi, source + step & mask, mask)
    if op in ("movs", "stos", "cmps", "scas", "ins"):
        m.rdi = low(m.rdi, target + step & mask, mask)


def string(
    m: Machine, op: str, size: int, address: int, rep: str, segment: str = "ds", start: int = 0
) -> None:
    """The whole instruction at `start`; `rep` is "", "rep" (REPE) or "repne".

    Each element counts as retired, the last one in `execute`. A fault has RIP at the instruction again.
    """
    if not rep:
        element(m, op, size, address, segment)
        return
    mask = (1 << address) - 1
    if not m.rcx & mask and op in ("ins", "outs") and m.protected and m.cpl > m.rflags >> 12 & 3:
        raise Fault(GP, 0)  # the permission is looked at even for no element
    behind = m.rip
    while m.rcx & mask:
        try:
            element(m, op, size, address, segment)
        except Fault as fault:
            fault.trap = True  # what was done stays done
            m.rip = start
            raise
        m.rcx = low(m.rcx, (m.rcx & mask) - 1, mask)
        ends = op in ("cmps", "scas") and bool(m.rflags & ZF) != (rep == "rep")
        if not m.rcx & mask or ends:
            break
        m.retired += 1
    m.rip = behind
