"""RDMSR and WRMSR: which registers there are, what they hold after RESET, which bits and values they refuse.

SDM Vol. 2, RDMSR, WRMSR; Vol. 4, "Architectural MSRs"; Vol. 3, "Memory Type Range Registers (MTRRs)",
"IA32_PAT MSR". A register that CPUID does not offer, and any that is the board's (IA32_APIC_BASE, those of
x2APIC mode), is the hypervisor's to answer. IA32_EFER is `model_control`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.matrices.model_control import write_efer
from tests.matrices.model_machine import ANSWER
from tests.matrices.model_paging import MAXPHYADDR, bits
from tests.matrices.model_system import TIME
from tests.matrices.spec import GP, M32, M64, Fault, Machine, canonical

Check = Callable[[int], bool]

TSC, TSC_ADJUST, SIGNATURE, PLATFORM, MTRRCAP = 0x10, 0x3B, 0x8B, 0xCE, 0xFE
PAT, DEF_TYPE, EFER, FS_BASE, GS_BASE = 0x277, 0x2FF, 0xC000_0080, 0xC000_0100, 0xC000_0101
# "Memory Types That Can Be Encoded in MTRRs": UC, WC, WT, WP, WB; "... With PAT": UC- as well
MTRR_TYPES, PAT_TYPES = frozenset((0, 1, 4, 5, 6)), frozenset((0, 1, 4, 5, 6, 7))
FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
VARIABLE = 8  # pairs, IA32_MTRRCAP[7:0]


class Register(NamedTuple):
    """The value after RESET, and which values are refused."""

    reset: int
    good: Check


def anything(value: int) -> bool:
    """Every bit may be 1."""
    return True


def without(*reserved: int | tuple[int, int]) -> Check:
    """Some bits are reserved."""
    mask = bits(*reserved)
    return lambda value: not value & mask


def each_byte(types: frozenset[int]) -> Check:
    """Eight fields, each a memory type."""
    return lambda value: types.issuperset(value.to_bytes(8, "little"))


def typed(*reserved: int | tuple[int, int]) -> Check:
    """Bits 7-0 are a memory type, others are reserved."""
    mask = bits(*reserved)
    return lambda value: value & 0xFF in MTRR_TYPES and not value & mask


REGISTERS: dict[int, Register] = {
    TSC_ADJUST: Register(0, anything),
    0x174: Register(0, without((63, 32))),
    0x175: Register(0, canonical),
    0x176: Register(0, canonical),
    0x1A0: Register(1 | 1 << 11 | 1 << 12, anything),  # no two models define the same bits
    PAT: Register(0x0007_0406_0007_0406, each_byte(PAT_TYPES)),
    DEF_TYPE: Register(0, typed((63, 12), (9, 8))),
    **{0x200 + 2 * n: Register(0, typed((63, MAXPHYADDR), (11, 8))) for n in range(VARIABLE)},
    **{0x201 + 2 * n: Register(0, without((63, MAXPHYADDR), (10, 0))) for n in range(VARIABLE)},
    **{index: Register(0, each_byte(MTRR_TYPES)) for index in FIXED},
    0xC000_0081: Register(0, anything),
    0xC000_0082: Register(0, canonical),
    0xC000_0083: Register(0, canonical),
    0xC000_0084: Register(0, without((63, 32))),
    0xC000_0102: Register(0, canonical),
    0xC000_0103: Register(0, without((63, 32))),
}
READ_ONLY = {MTRRCAP: VARIABLE | 1 << 8 | 1 << 10, PLATFORM: 0}  # FIX, WC; nothing to overclock
BASES = {FS_BASE: "fs", GS_BASE: "gs"}


def time(m: Machine) -> int:
    """The time-stamp counter."""
    return TIME + m.msrs.get(TSC_ADJUST, 0) & M64


def rdmsr(m: Machine) -> None:
    """RDMSR: EDX:EAX"""
    if m.cpl:
        raise Fault(GP, 0)
    index = m.rcx & M32
    if index == EFER:
        value = m.efer
    elif index == TSC:
        value = time(m)
    elif index in BASES:
        value = getattr(m, BASES[index]).base
    elif index in READ_ONLY:
        value = READ_ONLY[index]
    elif index == SIGNATURE:
        value = 0
    elif index in REGISTERS:
        value = m.msrs.get(index, REGISTERS[index].reset)
    else:
        m.ports, value = (("rdmsr", index),), ANSWER
    m.rax, m.rdx = value & M32, value >> 32


def wrmsr(m: Machine) -> None:
    """WRMSR of EDX:EAX"""
    if m.cpl:
        raise Fault(GP, 0)
    index, value = m.rcx & M32, (m.rdx & M32) << 32 | m.rax & M32
    if index == EFER:
        write_efer(m, value)
    elif index == TSC:  # "adds the same amount to IA32_TSC_ADJUST"
        m.msrs = {**m.msrs, TSC_ADJUST: m.msrs.get(TSC_ADJUST, 0) + value - time(m) & M64}
    elif index in BASES:
        if not canonical(value):
            raise Fault(GP, 0)
        name = BASES[index]
        m.set(**{name: getattr(m, name)._replace(base=value)})
    elif index in READ_ONLY:
        raise Fault(GP, 0)
    elif index == SIGNATURE:
        pass  # "write 0 and execute CPUID" to learn the update's signature; there is no update
    elif index in REGISTERS:
        if not REGISTERS[index].good(value):
            raise Fault(GP, 0)
        m.msrs = {**m.msrs, index: value}
    else:
        m.ports = (("wrmsr", index, value),)
