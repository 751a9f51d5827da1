"""Operands with their numbers known: base, index and displacement of an address, the kinds of a number.

Not bytes: whether a number fits the field of an opcode is found when it is stored there (`encode.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from iced_x86 import Register

from isa.assembler.expressions import Scope, evaluate, evaluate_number
from isa.assembler.forms import Shape
from isa.assembler.kinds import (
    BRANCHES,
    FAR_BRANCHES,
    IMMEDIATE_KINDS_OF_SIZE,
    MODRM_MEMORY,
    NEAR_BRANCHES,
    SHORT_BRANCHES,
    STRING_BASES,
    VSIB_MEMORY,
    K,
    RegisterEntry,
    registers,
)
from isa.assembler.operands import FarOperand, MemoryOperand, NumberOperand, Operand, RegisterOperand
from isa.assembler.results import Problem

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import Register as RegisterId

INDEX_FACTORS: Final[Mapping[int, tuple[bool, int]]] = {
    1: (True, 0),
    2: (False, 2),
    3: (True, 2),
    4: (False, 4),
    5: (True, 4),
    8: (False, 8),
    9: (True, 8),
}
"""Factor of a lone register to (also used as base?, scale)."""

ADDRESS_FORM: Final = "an address has the form base + index*scale + number with a scale of 1, 2, 4 or 8"


@dataclass(frozen=True, slots=True)
class Place:
    """The settings a line was written under."""

    bits: int
    default_relative: bool
    address_size: int  # from a32 and its kin, 0: none


@dataclass(frozen=True, slots=True)
class Address:
    """A memory operand with its numbers known; `bits` is the address size."""

    base: RegisterId
    index: RegisterId
    scale: int
    displacement: int
    bits: int
    segment: RegisterId
    from_next: bool  # the displacement counts from the next instruction (a bare [rip+8])
    wide: bool  # a size word in the brackets asks for the full displacement


class Resolved(NamedTuple):
    """An operand with its numbers known, whichever it is."""

    shape: Shape
    register: RegisterId = Register.NONE
    number: int = 0
    selector: int = 0
    address: Address | None = None


def _base_and_index(terms: Sequence[tuple[RegisterEntry, int]]) -> tuple[RegisterId, RegisterId, int]:
    """Base, index and scale of the registers of an address. Raises `Problem`."""
    none: RegisterId = Register.NONE
    parts = [(entry, factor) for entry, factor in terms if factor]
    if len(parts) > 2:
        merged: dict[RegisterEntry, int] = {}
        for entry, factor in parts:
            merged[entry] = merged.get(entry, 0) + factor
        parts = list(merged.items())
    if not parts:
        return none, none, 1
    if len(parts) == 1:
        entry, factor = parts[0]
        if factor not in INDEX_FACTORS:
            raise Problem(f"{entry.name}*{factor} cannot be encoded; {ADDRESS_FORM}")
        if entry.bits >= 128:
            return none, entry.id, factor
        use_base, scale = INDEX_FACTORS[factor]
        return (entry.id if use_base else none), (entry.id if scale else none), scale or 1
    if len(parts) > 2:
        raise Problem(f"the address has {len(parts)} registers; {ADDRESS_FORM}")
    (first, first_factor), (second, second_factor) = parts
    stack_pointer = second.id in (Register.ESP, Register.RSP) and second_factor == 1
    if (
        first_factor != 1
        or first.bits >= 128
        or (stack_pointer and first.id not in (Register.ESP, Register.RSP))
    ):
        first, first_factor, second, second_factor = second, second_factor, first, first_factor
    if first_factor != 1 or second_factor not in (1, 2, 4, 8):
        raise Problem(
            f"{first.name}*{first_factor} + {second.name}*{second_factor} cannot be encoded; {ADDRESS_FORM}"
        )
    if first.bits == 16 and first.id in (Register.SI, Register.DI):
        first, second = second, first  # 16-bit forms name BX or BP first
    return first.id, second.id, second_factor


def _resolve_address(operand: MemoryOperand, place: Place, scope: Scope) -> Address:
    """Turn a written address into base, index, displacement and address size. Raises `Problem`."""
    value = evaluate(operand.address, scope)
    base, index, scale = _base_and_index(value.registers)
    widths = {entry.bits for entry, factor in value.registers if entry.bits < 128 and factor}
    if len(widths) > 1:
        raise Problem(
            "the address mixes registers of different widths; take base and index of the same width"
        )
    number = value.number
    relative = False
    from_next = False
    if base in (Register.RIP, Register.EIP):
        if index != Register.NONE:
            raise Problem("RIP-relative addresses have no index; drop the index register")
        relative = True
        from_next = value.weight == 0
    elif operand.relative or (operand.relative is None and place.default_relative):
        plain = base == Register.NONE and index == Register.NONE
        relative = plain and (bool(operand.relative) or operand.segment not in (Register.FS, Register.GS))
        if operand.relative and not plain:
            raise Problem("rel and a register exclude each other in one address; drop one of them")
    if relative and place.bits != 64:
        if operand.relative or base != Register.NONE:
            raise Problem("RIP-relative addresses exist in 64-bit mode only; drop rel")
        relative = False
    size = next(iter(widths), 0) or place.address_size
    if base == Register.NONE and index == Register.NONE and not place.address_size:
        size = operand.address_bytes * 8 if operand.address_bytes > 1 else 0
    if size == 0:
        size = place.bits
        if size == 16 and index != Register.NONE:
            size = 32  # a vector index alone: VSIB has no 16-bit form
        if size == 16 and not -0x8000 <= number <= 0xFFFF:
            size = 32
        if size == 64 and not relative and 0x8000_0000 <= number <= 0xFFFF_FFFF and index == Register.NONE:
            # disp32 is sign-extended; with 67 the 2 GiB below 4 GiB (the APICs) are in reach.
            size = 32
    if relative and base == Register.NONE:
        base = Register.EIP if size == 32 else Register.RIP
    if place.bits == 64 and size == 16:
        raise Problem("64-bit mode has no 16-bit addresses; use 32- or 64-bit registers")
    if place.bits != 64 and size == 64:
        raise Problem(f"{place.bits}-bit mode has no 64-bit addresses; use 16- or 32-bit registers")
    if place.address_size and place.address_size != size:
        raise Problem(
            f"the a{place.address_size} prefix contradicts the {size}-bit registers of the address; drop it"
        )
    wide = operand.address_bytes > 1
    return Address(base, index, scale, number, size, operand.segment, from_next, wide)


def _memory_kinds(address: Address) -> frozenset[int]:
    """The operand kinds an address can serve as."""
    entry = registers()[1].get(address.index)
    if entry is not None and entry.bits >= 128:
        return VSIB_MEMORY.get(entry.bits, frozenset())
    if address.base == Register.NONE and address.index == Register.NONE:
        return MODRM_MEMORY | {K.MEM_OFFS}
    if address.index == Register.NONE and address.displacement == 0:
        return MODRM_MEMORY | STRING_BASES.get(address.base, frozenset())
    return MODRM_MEMORY


@functools.cache
def number_kinds(size: int, distance: str) -> frozenset[int]:
    """The operand kinds a number can serve as, given its keywords."""
    branches = {"short": SHORT_BRANCHES, "near": NEAR_BRANCHES}.get(distance, BRANCHES)
    if size:
        branches = {kind: bits for kind, bits in branches.items() if bits == size * 8}
    if distance:
        return frozenset(branches)
    return frozenset(branches) | IMMEDIATE_KINDS_OF_SIZE.get(size, frozenset())


def resolve(operand: Operand, place: Place, scope: Scope) -> Resolved:
    """Evaluate one operand. Raises `Problem`."""
    match operand:
        case RegisterOperand(entry):
            if place.bits != 64 and (K.R64_REG in entry.kinds or entry.id == Register.RIP):
                raise Problem(f"{entry.name} exists in 64-bit mode only; use a smaller register or `bits 64`")
            return Resolved(Shape(entry.kinds, name=entry.name), register=entry.id)
        case MemoryOperand():
            address = _resolve_address(operand, place, scope)
            shape = Shape(_memory_kinds(address), True, operand.size, operand.far)
            return Resolved(shape, address=address)
        case NumberOperand():
            number = evaluate_number(operand.value, scope, "an operand outside brackets")
            return Resolved(Shape(number_kinds(operand.size, operand.distance)), number=number)
        case FarOperand():
            selector = evaluate_number(operand.selector, scope, "the selector")
            offset = evaluate_number(operand.offset, scope, "the offset")
            if not 0 <= selector <= 0xFFFF:
                raise Problem(f"the selector {selector:#x} has more than 16 bits; use one up to 0xffff")
            kinds = {0: FAR_BRANCHES, 2: frozenset({K.FARBR2_2}), 4: frozenset({K.FARBR4_2})}
            shape = Shape(kinds.get(operand.size, frozenset()))
            return Resolved(shape, number=offset, selector=selector)
