"""The names of instructions: iced's tables turned round, from a name to the opcodes it stands for.

Not which of these opcodes fits the operands of a line: that is `forms.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from iced_x86 import Code, EncodingKind, Mnemonic, OpCodeInfo

from isa.assembler.kinds import K
from isa.assembler.results import Problem
from isa.assembler.tokens import closest
from isa.assembler.words import DATA_WIDTHS, DIRECTIVES, RESERVE_WIDTHS

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import Code as CodeId

CONDITION_SYNONYMS: Final[Mapping[str, str]] = {
    "c": "b",
    "nae": "b",
    "nb": "ae",
    "nc": "ae",
    "z": "e",
    "nz": "ne",
    "na": "be",
    "nbe": "a",
    "pe": "p",
    "po": "np",
    "nge": "l",
    "nl": "ge",
    "ng": "le",
    "nle": "g",
}
"""Condition codes by their other names, SDM Volume 1, "EFLAGS Condition Codes"."""

SSE_PREDICATES: Final = ("eq", "lt", "le", "unord", "neq", "nlt", "nle", "ord")

AVX_PREDICATES: Final = (
    *SSE_PREDICATES,
    *("eq_uq", "nge", "ngt", "false", "neq_oq", "ge", "gt", "true"),
    *("eq_os", "lt_oq", "le_oq", "unord_s", "neq_us", "nlt_uq", "nle_uq", "ord_s"),
    *("eq_us", "nge_uq", "ngt_uq", "false_os", "neq_os", "ge_oq", "gt_oq", "true_us"),
)
"""Predicates in the order of imm8, SDM Volume 2, "CMPPD": the pseudo-op `cmpltsd a, b` is `cmpsd a, b, 1`."""

TABLE_REGISTERS: Final = ("lgdt", "lidt", "sgdt", "sidt")


class Alias(NamedTuple):
    """Another name: the mnemonics it stands for, and the operand or address size it fixes (bits, 0: none)."""

    mnemonics: tuple[str, ...]
    operand_size: int = 0
    address_size: int = 0


class PseudoOp(NamedTuple):
    """A mnemonic that carries its own imm8."""

    mnemonic: str
    immediate: int


def _fixed_aliases() -> dict[str, Alias]:
    """The names that are not iced's own: NASM's, MASM's and the SDM's synonyms."""
    aliases = {
        # Without a suffix the mode's default operand size counts, so all widths are candidates.
        "iret": Alias(("iret", "iretd", "iretq")),
        "iretw": Alias(("iret",)),
        "pushf": Alias(("pushf", "pushfd", "pushfq")),
        "pushfw": Alias(("pushf",)),
        "popf": Alias(("popf", "popfd", "popfq")),
        "popfw": Alias(("popf",)),
        "pusha": Alias(("pusha", "pushad")),
        "pushaw": Alias(("pusha",)),
        "popa": Alias(("popa", "popad")),
        "popaw": Alias(("popa",)),
        "sysret": Alias(("sysret", "sysretq")),
        "sysretd": Alias(("sysret",)),
        "sysexit": Alias(("sysexit", "sysexitq")),
        "sysexitd": Alias(("sysexit",)),
        "retn": Alias(("ret",)),
        # SDM Volume 2, "SAL/SAR/SHL/SHR", gives both names one opcode; iced's SAL is its twin /6.
        "sal": Alias(("shl",)),
        "fwait": Alias(("wait",)),
        "xlat": Alias(("xlatb",)),
        "icebp": Alias(("int1",)),
        "ud2a": Alias(("ud2",)),
        "ud2b": Alias(("ud1",)),
        "lret": Alias(("retf",)),
        "loopz": Alias(("loope",)),
        "loopnz": Alias(("loopne",)),
        "movabs": Alias(("mov",)),
    }
    for letter, size in (("w", 16), ("d", 32), ("q", 64)):
        for name in ("push", "pop", "ret", "retf", "call", "jmp", "enter", "leave", *TABLE_REGISTERS):
            aliases[name + letter] = Alias((name,), operand_size=size)
        aliases["retn" + letter] = Alias(("ret",), operand_size=size)
        for name in ("loop", "loope", "loopne"):
            aliases[name + letter] = Alias((name,), address_size=size)
    for name in ("movs", "cmps", "stos", "lods", "scas", "ins", "outs"):
        aliases[name] = Alias(tuple(name + letter for letter in "bwdq"))
    return aliases


@functools.cache
def _codes_by_mnemonic() -> tuple[Mapping[str, tuple[CodeId, ...]], frozenset[str]]:
    """Opcodes of the legacy and VEX tables by lower-case mnemonic, and the mnemonics without any."""
    names = {value: name.lower() for name, value in vars(Mnemonic).items() if name.isupper()}
    found: dict[str, list[CodeId]] = {}
    elsewhere: set[str] = set()
    codes = vars(Code)
    for code in sorted(codes[name] for name in codes if name.isupper()):
        info = OpCodeInfo(code)
        if not info.is_instruction:
            continue
        if info.encoding in (EncodingKind.LEGACY, EncodingKind.VEX):
            found.setdefault(names[info.mnemonic], []).append(info.code)
        else:
            elsewhere.add(names[info.mnemonic])
    return {name: tuple(members) for name, members in found.items()}, frozenset(elsewhere - found.keys())


@functools.cache
def alias_tables() -> tuple[Mapping[str, Alias], Mapping[str, PseudoOp]]:
    """Every further name, and every pseudo-op with its imm8."""
    table, _ = _codes_by_mnemonic()
    aliases = _fixed_aliases()
    for condition in dict.fromkeys(CONDITION_SYNONYMS.values()):
        for before, after in (("j", ""), ("set", ""), ("cmov", ""), ("cmp", "xadd")):
            words = [condition, *(word for word, same in CONDITION_SYNONYMS.items() if same == condition)]
            names = {before + word + after for word in words}
            real = next((name for name in sorted(names) if name in table), None)
            if real is not None:
                aliases.update({name: Alias((real,)) for name in names if name not in table})
    pseudo: dict[str, PseudoOp] = {}
    for lead, predicates in (("", SSE_PREDICATES), ("v", AVX_PREDICATES)):
        for number, predicate in enumerate(predicates):
            for kind in ("ps", "pd", "ss", "sd"):
                pseudo[f"{lead}cmp{predicate}{kind}"] = PseudoOp(f"{lead}cmp{kind}", number)
        for number, halves in ((0x00, "lqlq"), (0x01, "hqlq"), (0x10, "lqhq"), (0x11, "hqhq")):
            pseudo[f"{lead}pclmul{halves}dq"] = PseudoOp(f"{lead}pclmulqdq", number)
    return {name: alias for name, alias in aliases.items() if alias.mnemonics[0] in table}, pseudo


def candidate_codes(mnemonic: str) -> tuple[CodeId, ...]:
    """The opcodes a name stands for. Raises `Problem` for an unknown name."""
    table, elsewhere = _codes_by_mnemonic()
    aliases, pseudo = alias_tables()
    alias = aliases.get(mnemonic)
    if alias is not None:
        codes = tuple(code for name in alias.mnemonics for code in table.get(name, ()))
        if mnemonic == "movabs":
            return tuple(code for code in codes if {K.MEM_OFFS, K.IMM64} & set(OpCodeInfo(code).op_kinds()))
        return codes
    found = table.get(mnemonic)
    if found is not None:
        # GAS and NASM both let MOVSX stand for MOVSXD where only that exists.
        return (*found, Code.MOVSXD_R64_RM32) if mnemonic == "movsx" else found
    if mnemonic in elsewhere:
        raise Problem(
            f"{mnemonic} has only EVEX, XOP, 3DNow! or MVEX encodings; use its SSE, AVX or AVX2 relative"
        )
    known = sorted({*table, *aliases, *pseudo, *DATA_WIDTHS, *RESERVE_WIDTHS, *DIRECTIVES})
    close = closest(mnemonic, known)
    hint = f"did you mean {close}?" if close else f"for a label write `{mnemonic}:`"
    raise Problem(f"{mnemonic} is not an instruction or directive; {hint}")
