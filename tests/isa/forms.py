"""Machine code for any form of iced's table, built from its opcode columns. It chooses no operands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

from iced_x86 import (
    Decoder,
    EncodingKind,
    Instruction,
    MandatoryPrefix,
    OpCodeInfo,
    OpCodeTableKind,
)

from isa.decode import code_names, mnemonic_names
from isa.semantics import definition_for
from isa.semantics.registry import Definition

_ESCAPES = {
    OpCodeTableKind.NORMAL: b"", OpCodeTableKind.T0F: b"\x0f", OpCodeTableKind.T0F38: b"\x0f\x38",
    OpCodeTableKind.T0F3A: b"\x0f\x3a",
}  # fmt: skip
_VEX_MAPS = {OpCodeTableKind.T0F: 1, OpCodeTableKind.T0F38: 2, OpCodeTableKind.T0F3A: 3}
_MANDATORY = {
    MandatoryPrefix.NONE: b"", MandatoryPrefix.PNP: b"", MandatoryPrefix.P66: b"\x66",
    MandatoryPrefix.PF3: b"\xf3", MandatoryPrefix.PF2: b"\xf2",
}  # fmt: skip
MEMORY, REGISTER = 0x00, 0xC1  # ModRM with the first base register, or with register 1 as r/m
VECTOR_INDEX = 0x0C  # ModRM with register 1 and a SIB byte, which is the next byte
TAIL = b"\x03" * 10  # displacement and immediates: a shift count that is neither 0 nor 1


@cache
def definition_of(code: Any) -> Definition | None:
    """What the CPU does for a form, or None if it lacks it."""
    return definition_for(code_names()[code], mnemonic_names()[OpCodeInfo(code).mnemonic])


@cache
def implemented_forms() -> tuple[int, ...]:
    """Every form with a definition, pseudo instructions (DB ...) and processors of the past left out."""
    found = []
    for code in code_names():
        info: Any = OpCodeInfo(code)
        if info.is_instruction and definition_of(code) is not None:
            found.append(code)
    return tuple(found)


def exists_in(code: Any, bits: int) -> bool:
    """Whether the form can be decoded in code of `bits`."""
    info: Any = OpCodeInfo(code)
    return bool({16: info.mode16, 32: info.mode32, 64: info.mode64}[bits])


def encodings(code: Any, bits: int, options: Any = 0) -> Iterator[bytes]:
    """Encodings of a form that iced decodes as it, one with a memory and one with a register operand if
    it takes both. None at all for forms that need an option of the decoder or another encoding."""
    info: Any = OpCodeInfo(code)
    seen = set()
    for modrm, (size66, size67, rex) in product((MEMORY, REGISTER), product((b"", b"\x66"), (b"", b"\x67"),
                                                (b"", b"\x48"))):  # fmt: skip
        raw = _candidate(info, modrm, size66 + size67, rex)
        if raw is None or (rex and bits != 64) or modrm in seen:
            continue
        decoder = Decoder(bits, raw, options, ip=0x1000)
        instruction = decoder.decode()
        if instruction.code == code:
            seen.add(modrm)
            yield raw[: instruction.len]


def _candidate(info: Any, modrm: int, prefixes: bytes, rex: bytes) -> bytes | None:
    """Prefixes, opcode, ModRM and enough bytes for whatever follows."""
    wait = b"\x9b" if info.fwait else b""
    if info.group_index >= 0:
        modrm |= info.group_index << 3
    if info.rm_group_index >= 0:
        modrm = modrm & 0x38 | 0xC0 | info.rm_group_index
    opcode = info.op_code.to_bytes(info.op_code_len, "big")
    body = opcode + bytes((modrm,)) + TAIL
    if info.requires_unique_reg_nums:  # a gather
        body = opcode + bytes((VECTOR_INDEX, 0x13)) + TAIL
    if info.op_code_len == 2:
        body = opcode + TAIL
    if info.op_code_string.startswith(("90+", "REX.W 90+", "66 90+", "o16 90+", "o32 90+", "o64 90+")):
        body = b"\x91" + TAIL  # XCHG: register 0 of these is NOP
    if info.encoding == EncodingKind.LEGACY:
        if info.table not in _ESCAPES:
            return None
        return wait + prefixes + _MANDATORY[info.mandatory_prefix] + rex + _ESCAPES[info.table] + body
    if info.encoding == EncodingKind.VEX and info.table in _VEX_MAPS and not rex and not prefixes:
        pp = {MandatoryPrefix.P66: 1, MandatoryPrefix.PF3: 2, MandatoryPrefix.PF2: 3}
        last = info.w << 7 | 0x78 | info.l << 2 | pp.get(info.mandatory_prefix, 0)
        return bytes((0xC4, 0xE0 | _VEX_MAPS[info.table], last)) + body
    return None


def example(code: Any) -> Instruction | None:
    """A decoded instruction of the form in the widest mode that has it, or None."""
    for bits in (64, 32, 16):
        if exists_in(code, bits):
            for raw in encodings(code, bits):
                return Decoder(bits, raw, ip=0x1000).decode()
    return None
