"""Choosing the form: which opcodes of a mnemonic take operands of these shapes.

Not their encoding: the candidates still have to be built and accepted by iced's encoder (`encode.py`), which
alone knows their length. No value is known here, only kinds, so that equal shapes share one search.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from iced_x86 import CodeSize, Formatter, FormatterSyntax, Instruction, MemorySize, MemorySizeExt, OpCodeInfo

from isa.assembler.kinds import STRING_KINDS, K
from isa.assembler.mnemonics import candidate_codes
from isa.assembler.results import Problem
from isa.assembler.words import SIZES

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import Code as CodeId
    from iced_x86._iced_x86_py import CodeSize as CodeSizeId

DEFAULT_SIZED: Final = frozenset(
    {
        *("push", "pop", "call", "jmp", "nop", "lgdt", "lidt", "sgdt", "sidt"),
        *("fldenv", "fstenv", "fnstenv", "fsave", "fnsave", "frstor"),
    }
)
"""Mnemonics whose unsized memory operand takes the mode's default operand size; all others must say it."""

IMPLIED_BESIDE_STRINGS: Final = STRING_KINDS | {K.AL, K.AX, K.EAX, K.RAX, K.DX}
"""Operands that a string instruction has but its text may leave out."""

FAR_POINTER_SIZES: Final[Mapping[int, int]] = {0: 0, 2: 4, 4: 6, 6: 6, 8: 10, 10: 10}
"""Size word before `far [..]` (of the offset, or MASM's of the whole) to the bytes of the pointer."""

TABLE_LIMITS: Final = frozenset({MemorySize.FWORD6, MemorySize.FWORD10})

FAR_POINTERS: Final = frozenset({MemorySize.SEG_PTR16, MemorySize.SEG_PTR32, MemorySize.SEG_PTR64})

CODE_SIZES: Final[Mapping[int, CodeSizeId]] = {16: CodeSize.CODE16, 32: CodeSize.CODE32, 64: CodeSize.CODE64}


class Shape(NamedTuple):
    """What a candidate search needs to know of one operand; equal shapes have equal candidates."""

    kinds: frozenset[int]
    is_memory: bool = False
    size: int = 0  # bytes of a memory operand, 0: not written
    far: bool = False
    name: str = ""  # of a register that some instructions imply: monitor rax, ecx, edx


class Plan(NamedTuple):
    """One candidate opcode; `sources[i]` is the written operand that becomes operand i, -1: implied."""

    code: CodeId
    kinds: tuple[int, ...]
    sources: tuple[int, ...]
    lockable: bool
    repeatable: bool
    repeatable_ne: bool


class Query(NamedTuple):
    """Everything the candidates depend on: the key of the memory of `candidates`."""

    mnemonic: str
    shapes: tuple[Shape, ...]
    bits: int
    operand_size: int
    address_size: int


@functools.cache
def _implied_operands(code: CodeId, bits: int) -> frozenset[tuple[str, ...]]:
    """Register lists that may be written after an opcode that has no operands, as `monitor rax, ecx, edx`."""
    texts = set()
    for syntax in (FormatterSyntax.MASM, FormatterSyntax.INTEL, FormatterSyntax.NASM):
        instruction = Instruction.create(code)
        instruction.code_size = CODE_SIZES[bits]
        text = Formatter(syntax).format_all_operands(instruction)
        texts.add(tuple(part.strip() for part in text.split(",")) if text else ())
    return frozenset(texts)


def _memory_fits(info: OpCodeInfo, shape: Shape, written: int) -> bool:
    """Whether the memory operand of an opcode has the size and farness that is written."""
    is_far = info.memory_size in FAR_POINTERS
    wanted = shape.size
    if shape.far:
        if not is_far:
            return False
        wanted = FAR_POINTER_SIZES.get(wanted, -1)
    elif is_far and written == 1 and info.op_count == 1 and wanted not in (6, 10):
        return False  # CALL and JMP through memory are near unless `far` or a far size is written
    if info.memory_size in TABLE_LIMITS and wanted in (6, 10):
        return True  # MASM writes fword for the 10 bytes of 64-bit LGDT, too
    has = MemorySizeExt.size(info.memory_size)
    return wanted == 0 or has in (0, wanted)


def _sources(info: OpCodeInfo, shapes: Sequence[Shape]) -> tuple[int, ...] | None:
    """Which written operand serves as which operand of the opcode; None if they do not fit."""
    kinds = info.op_kinds()
    stringlike = not STRING_KINDS.isdisjoint(kinds)
    if len(kinds) != len(shapes) and not stringlike:
        return None
    sources = []
    written = 0
    for kind in kinds:
        if written < len(shapes) and kind in shapes[written].kinds:
            shape = shapes[written]
            if shape.is_memory and not _memory_fits(info, shape, len(shapes)):
                return None
            sources.append(written)
            written += 1
        elif stringlike and kind in IMPLIED_BESIDE_STRINGS:
            sources.append(-1)
        else:
            return None
    return tuple(sources) if written == len(shapes) else None


def _rank(info: OpCodeInfo, query: Query) -> int:
    """How far an opcode is from the mode's defaults; candidates with a higher rank than the best are dropped.

    Length alone would turn `push 0x1234` of 32-bit code into its shorter 16-bit form.
    """
    rank = 0
    default = 16 if query.bits == 16 else 32
    if info.operand_size and not query.operand_size:
        unprefixed = (32, 64) if query.bits == 64 else (default,)
        rank += info.operand_size not in unprefixed
    if info.address_size and not query.address_size:
        rank += info.address_size != query.bits
    if info.decoder_option:
        rank += 4  # withdrawn or vendor-specific opcodes never win over current ones
    return rank


def _size_agrees(info: OpCodeInfo, query: Query) -> bool:
    """Whether an opcode has the operand and address size that a prefix demands."""
    if query.operand_size and info.operand_size != query.operand_size:
        return False
    return not (query.address_size and info.address_size and info.address_size != query.address_size)


@functools.lru_cache(maxsize=8192)
def candidates(query: Query) -> tuple[Plan, ...]:
    """The candidates of a mnemonic and its operand shapes, in iced's order. Raises `Problem` without any."""
    codes = candidate_codes(query.mnemonic)
    ranked: list[tuple[int, int, Plan]] = []
    names = tuple(shape.name for shape in query.shapes)
    for code in codes:
        info = OpCodeInfo(code)
        if not info.is_available_in_mode(query.bits) or not _size_agrees(info, query):
            continue
        sources = _sources(info, query.shapes)
        if sources is None:
            if info.op_count or not all(names) or names not in _implied_operands(code, query.bits):
                continue
            sources = ()
        plan = Plan(
            code,
            tuple(info.op_kinds()),
            sources,
            info.can_use_lock_prefix,
            info.can_use_rep_prefix,
            info.can_use_repne_prefix,
        )
        ranked.append((_rank(info, query), MemorySizeExt.size(info.memory_size), plan))
    if not ranked:
        raise Problem(_why_none(query, codes))
    best = min(rank for rank, _, _ in ranked)
    chosen = [(size, plan) for rank, size, plan in ranked if rank == best]
    unsized = any(shape.is_memory and not shape.size for shape in query.shapes)
    widths = {size for size, plan in chosen if size}
    if unsized and len(widths) > 1 and query.mnemonic not in DEFAULT_SIZED and not query.operand_size:
        words = sorted(
            {word for word, size in SIZES.items() if size in widths}, key=lambda word: (SIZES[word], word)
        )
        raise Problem(
            f"the size of the memory operand is open; write {' or '.join(words)} before the bracket"
        )
    # `add ax, 1` is three bytes with imm16 and with imm8; the short immediate wins, as in other assemblers.
    return tuple(sorted((plan for _, plan in chosen), key=lambda plan: plan.kinds[:1] == (K.AX,)))


def _likeness(info: OpCodeInfo, shapes: Sequence[Shape]) -> int:
    """How many written operands an opcode would take; one more if their number is right."""
    kinds = info.op_kinds()
    fitting = sum(kind in shape.kinds for kind, shape in zip(kinds, shapes, strict=False))
    return fitting + (len(kinds) == len(shapes))


def _why_none(query: Query, codes: Sequence[CodeId]) -> str:
    """Why no opcode of a known mnemonic fits, and what would."""
    name = query.mnemonic
    infos = [OpCodeInfo(code) for code in codes]
    here = [info for info in infos if info.is_available_in_mode(query.bits)]
    if not here:
        modes = [str(bits) for bits in (16, 32, 64) if any(info.is_available_in_mode(bits) for info in infos)]
        return f"{name} does not exist in {query.bits}-bit mode; it does in {' and '.join(modes)}-bit code"
    if query.operand_size and not any(info.operand_size == query.operand_size for info in here):
        return f"{name} has no {query.operand_size}-bit form in {query.bits}-bit mode; drop the size prefix"
    here.sort(key=lambda info: -_likeness(info, query.shapes))
    forms = list(dict.fromkeys(info.instruction_string for info in here))
    shown = "; ".join(forms[:6]) + ("; and more" if len(forms) > 6 else "")
    return f"{name} does not take these operands in {query.bits}-bit mode; its forms are {shown}"
