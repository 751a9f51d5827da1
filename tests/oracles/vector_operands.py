"""Operands for a vector form: registers, immediates and every way to say an address. It fills no register.

An address is chosen first; the registers that make it up get their values from it. FS and GS have a base.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from iced_x86 import (
    Encoder,
    Instruction,
    MemorySizeExt,
    OpCodeOperandKind,
    OpKind,
    Register,
    RegisterExt,
)

from isa.decode import code_names, opcode_info
from isa.state import M64
from tests.oracles.native_vector import CODE, DATA, FS_BASE, GS_BASE

RSP, RSI, RDI = 4, 6, 7
INDEX_REGISTER = 5  # of gathers
MIDDLE = DATA + 0x1000  # the page boundary in the middle of every window
# Stores of which a part may land outside the window: never at the edge of the mapped pages
MASKED_STORES = ("VEX_VMASKMOVP", "VEX_VPMASKMOV")


@cache
def _kinds() -> dict[int, str]:
    return {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}


@cache
def shape(code: int) -> tuple[str, ...]:
    """The kinds of the operands."""
    info = opcode_info(code)
    return tuple(_kinds()[info.op_kind(n)] for n in range(info.op_count))


@dataclass(slots=True)
class Encoded:
    """An instruction with its operands chosen: its bytes, and the registers for its address."""

    code: bytes
    address: dict[int, int]  # general register -> value
    memory_at: int  # linear, 0 for none
    vectors: set[int]  # numbers of XMM and YMM registers
    general: set[int]


def _operand(
    rng: random.Random, kind: str, instruction: Instruction, n: int, memory: bool, made: Encoded
) -> None:
    """Fill operand n of `instruction`."""
    if kind.startswith("IMM8"):
        setattr(instruction, f"op{n}_kind", OpKind.IMMEDIATE8)
        instruction.immediate8 = rng.choice((rng.randrange(256), rng.randrange(20), 1 << rng.randrange(8)))
    elif kind == "SEG_RDI":
        narrow = rng.random() < 0.2
        setattr(instruction, f"op{n}_kind", OpKind.MEMORY_SEG_EDI if narrow else OpKind.MEMORY_SEG_RDI)
        base = _segment(rng, instruction)
        made.memory_at = MIDDLE + rng.randrange(-40, 40)
        made.address[RDI] = made.memory_at - base | (rng.getrandbits(32) << 32 if narrow else 0)
    elif "VSIB" in kind:
        _vector_index(rng, kind, instruction, n)
        made.memory_at = MIDDLE
        made.address[RSI] = made.memory_at + rng.choice((0, 0, 16, -16, 32))
        if rng.random() < 0.03:  # some elements, often not the first, at an address that is not mapped
            made.address[RSI] = rng.choice((DATA, DATA + 0x2000)) + rng.randrange(-4, 5)
        made.vectors.add(INDEX_REGISTER)
    elif kind.startswith("MEM") or (memory and "OR_MEM" in kind):
        made.memory_at = _target(rng, instruction.code)
        put_address(rng, instruction, n, made)
    else:
        setattr(instruction, f"op{n}_kind", OpKind.REGISTER)
        number = rng.choice((rng.randrange(16), rng.randrange(3)))
        if kind.startswith("YMM"):
            register = Register.YMM0 + number
            made.vectors.add(number)
        elif kind.startswith("XMM"):
            register = Register.XMM0 + number
            made.vectors.add(number)
        elif kind.startswith("MM"):
            register = Register.MM0 + number % 8
        else:
            number = rng.choice((0, 1, 2, 3, 5, 7, 8, 13, 15))
            register = (Register.RAX if kind.startswith("R64") else Register.EAX) + number
            made.general.add(number)
        setattr(instruction, f"op{n}_register", register)


def _segment(rng: random.Random, instruction: Instruction) -> int:
    """Now and then an override by FS or GS, or one that says nothing; the segment's base."""
    choice = rng.random()
    if choice < 0.1:
        instruction.segment_prefix = Register.FS
        return FS_BASE
    if choice < 0.2:
        instruction.segment_prefix = Register.GS
        return GS_BASE
    if choice < 0.24:
        instruction.segment_prefix = rng.choice((Register.ES, Register.CS, Register.SS, Register.DS))
    return 0


def _target(rng: random.Random, code: int) -> int:
    """A linear address for the memory operand of a form; seldom in a page that is read-only or absent."""
    name = code_names()[code]
    if rng.random() < 0.01 and not name.startswith((*MASKED_STORES, "SHA")):
        size = MemorySizeExt.size(opcode_info(code).memory_size) or 16
        if rng.random() < 0.5:
            return DATA - rng.randrange(1, 2 * size + 1)
        return DATA + 0x2000 - rng.randrange(size)
    # Zen 4 does not check the alignment for SHA (so no fault may follow); the manual asks for it
    aligned = rng.random() < 0.97 or name.startswith("SHA")
    return MIDDLE + (rng.randrange(-5, 7) * 16 if aligned else rng.randrange(-80, 96))


def put_address(rng: random.Random, instruction: Instruction, n: int, made: Encoded) -> None:
    """Make operand n memory at `made.memory_at`, in any way to say that address."""
    target = made.memory_at
    setattr(instruction, f"op{n}_kind", OpKind.MEMORY)
    if rng.random() < 0.07:
        narrow = rng.random() < 0.2
        instruction.memory_base = Register.EIP if narrow else Register.RIP
        instruction.memory_displ_size = 4 if narrow else 8
        instruction.memory_displacement = target
        return
    narrow = rng.random() < 0.12
    bits = 32 if narrow else 64
    first = Register.EAX if narrow else Register.RAX
    offset = target - _segment(rng, instruction)
    base = rng.choice((RSI, RSI, *(number for number in range(16) if number != RSP)))
    index, scale = -1, 1
    if rng.random() < 0.25:
        index = rng.choice([number for number in range(16) if number not in (RSP, base)])
        scale = rng.choice((1, 2, 4, 8))
        instruction.memory_index = first + index  # type: ignore[assignment]
        instruction.memory_index_scale = scale
    displacement = rng.choice((0, rng.randrange(-128, 128), rng.randrange(-(1 << 31), 1 << 31)))
    instruction.memory_base = first + base  # type: ignore[assignment]
    instruction.memory_displacement = displacement & (1 << bits) - 1
    instruction.memory_displ_size = bits // 8
    if index >= 0:
        made.address[index] = rng.getrandbits(64) if rng.random() < 0.5 else rng.randrange(-20, 20) & M64
    value = offset - displacement - (made.address[index] * scale if index >= 0 else 0)
    made.address[base] = value & (1 << bits) - 1 | (rng.getrandbits(32) << 32 if narrow else 0)


def _vector_index(rng: random.Random, kind: str, instruction: Instruction, n: int) -> None:
    """Make operand n memory at RSI with a vector index."""
    setattr(instruction, f"op{n}_kind", OpKind.MEMORY)
    instruction.memory_base = Register.RSI
    first = Register.YMM0 if kind.endswith("Y") else Register.XMM0
    instruction.memory_index = first + INDEX_REGISTER  # type: ignore[assignment]
    instruction.memory_index_scale = rng.choice((1, 2, 4, 8))
    instruction.memory_displacement = rng.randrange(-16, 16) & M64
    instruction.memory_displ_size = 1


def encoded(rng: random.Random, code: int) -> Encoded:
    """The form `code` with operands of the generator's choice."""
    made = Encoded(b"", {}, 0, {0}, {0, 2})  # XMM0, EAX and EDX are the implicit operands of some
    memory = rng.random() < 0.4
    instruction = Instruction()
    instruction.code = code  # type: ignore[assignment]
    for n, kind in enumerate(shape(code)):
        _operand(rng, kind, instruction, n, memory, made)
    if opcode_info(code).requires_unique_reg_nums:  # destination, index and mask have to be three registers
        base = Register.YMM0 if RegisterExt.is_ymm(instruction.op_register(0)) else Register.XMM0
        destination, mask = rng.sample([r for r in range(16) if r != INDEX_REGISTER], 2)
        instruction.op0_register = base + destination  # type: ignore[assignment]
        instruction.op2_register = base + mask  # type: ignore[assignment]
        made.vectors |= {destination, mask}
    made.code = bytes_of(instruction)
    return made


def bytes_of(instruction: Instruction) -> bytes:
    encoder = Encoder(64)
    encoder.encode(instruction, CODE)
    return bytes(encoder.take_buffer())
