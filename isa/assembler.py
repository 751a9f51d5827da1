"""The text assembler: Intel syntax, as NASM writes it, turned into machine code by iced's own tables.

Not a macro assembler and not a linker: no %macro, no sections, no object files; one flat image at one origin.
And no part of the CPU, which never imports it: it exists for tests, examples and `AxVM.from_asm`.

How a line becomes bytes. iced's `OpCodeInfo` lists, for every opcode of the SDM's Volume 2, the operand
kinds it takes. The operands of the line are described by the kinds they could serve as; the opcodes whose
kinds match are the candidates (found once per mnemonic and operand shape, then remembered). Each candidate is
built as an `Instruction`, iced's `Encoder` accepts or refuses it, and the shortest accepted encoding wins.

How labels get their values. The program is laid out again and again until no label moves. Two passes run with
guesses; from the third on an instruction may only grow, so that the layout settles.
"""

import abc
import difflib
import functools
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from iced_x86 import (
    Code,
    CodeSize,
    Encoder,
    EncodingKind,
    Formatter,
    FormatterSyntax,
    Instruction,
    MemorySize,
    MemorySizeExt,
    Mnemonic,
    OpCodeInfo,
    OpCodeOperandKind,
    OpKind,
    Register,
    RegisterExt,
)

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import Code as CodeId
    from iced_x86._iced_x86_py import CodeSize as CodeSizeId
    from iced_x86._iced_x86_py import OpKind as OpKindId
    from iced_x86._iced_x86_py import Register as RegisterId
else:
    CodeId = CodeSizeId = OpKindId = RegisterId = int

MAX_IMAGE_BYTES: Final = 1 << 26
"""Largest image: 64 MiB, so that a mistyped `times` or `resb` ends in a sentence and not in swap."""

MAX_NUMBER_BITS: Final = 128
"""Widest intermediate result of an expression; `1 << (1 << 40)` must not eat the host's memory."""

MAX_NESTING: Final = 64
"""Deepest nesting of parentheses and unary operators in one expression."""

FREE_PASSES: Final = 2
"""Layout passes in which sizes may still shrink: labels are guesses in them."""

LAST_CAREFUL_PASS: Final = 24
"""After this pass every instruction that still changes takes its longest form at once."""

MAX_PASSES: Final = 48
"""A layout that still moves after so many passes never settles (`a equ a+1`)."""

K = OpCodeOperandKind

M64: Final = (1 << 64) - 1


class AssemblerError(ValueError):
    """Text that cannot be assembled: one sentence with line, text, what is wrong and what to do.

    `line_number` counts from 1 (0: not the text but an argument is wrong), `line` is the text of that line,
    and `reason` the sentence without the place.
    """

    def __init__(self, line_number: int, line: str, reason: str) -> None:
        self.line_number = line_number
        self.line = line.strip()
        self.reason = reason
        place = f"line {line_number}: `{self.line[:120]}`: " if line_number else ""
        super().__init__(place + reason)


class ListingLine(NamedTuple):
    """One source line of the listing: where it went, what it became, and where it came from."""

    address: int
    code: bytes
    line_number: int
    text: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """A finished image.

    `code` is the image, its first byte at address `origin`. `labels` maps every label to its address, local
    ones as `outer.local`. `listing` holds one `ListingLine` per source line that defines a label or bytes.
    """

    code: bytes
    origin: int
    labels: dict[str, int] = field(default_factory=dict)
    listing: list[ListingLine] = field(default_factory=list)

    def format_listing(self) -> str:
        """The listing as text: address, up to eight bytes, source; one line per source line."""
        rows = []
        for row in self.listing:
            shown = row.code[:8].hex(" ") + (" .." if len(row.code) > 8 else "")
            rows.append(f"{row.address:#010x}  {shown:<26}  {row.text}")
        return "\n".join(rows)


class _Problem(Exception):
    """What is wrong with the current line; the line loop adds where."""


# ------------------------------------------------------------------------------------------------------------
# Words of the language
# ------------------------------------------------------------------------------------------------------------

SIZES: Final[Mapping[str, int]] = {
    "byte": 1,
    "word": 2,
    "dword": 4,
    "fword": 6,
    "qword": 8,
    "mmword": 8,
    "tbyte": 10,
    "tword": 10,
    "oword": 16,
    "dqword": 16,
    "xmmword": 16,
    "yword": 32,
    "ymmword": 32,
    "zword": 64,
    "zmmword": 64,
    "fpuenv14": 14,
    "fpuenv28": 28,
    "fpustate94": 94,
    "fpustate108": 108,
}
"""Size keyword to bytes."""

DATA_WIDTHS: Final[Mapping[str, int]] = {"db": 1, "dw": 2, "dd": 4, "dq": 8, "dt": 10}
RESERVE_WIDTHS: Final[Mapping[str, int]] = {"resb": 1, "resw": 2, "resd": 4, "resq": 8, "rest": 10}
MODE_WORDS: Final[Mapping[str, int]] = {"use16": 16, "use32": 32, "use64": 64}
DIRECTIVES: Final = frozenset({"bits", "org", "align", "alignb", "equ", "times", "default"})
LINKER_WORDS: Final = frozenset(
    {"section", "segment", "global", "extern", "common", "absolute", "struc", "endstruc"}
)
"""NASM directives that need a linker or a second section."""

OPERAND_SIZE_PREFIXES: Final[Mapping[str, int]] = {
    "o16": 16,
    "o32": 32,
    "o64": 64,
    "data16": 16,
    "data32": 32,
    "data64": 64,
}
ADDRESS_SIZE_PREFIXES: Final[Mapping[str, int]] = {
    "a16": 16,
    "a32": 32,
    "a64": 64,
    "addr16": 16,
    "addr32": 32,
    "addr64": 64,
}
SEGMENTS: Final[Mapping[str, RegisterId]] = {
    "es": Register.ES,
    "cs": Register.CS,
    "ss": Register.SS,
    "ds": Register.DS,
    "fs": Register.FS,
    "gs": Register.GS,
}
SEGMENT_PREFIXES: Final[Mapping[str, RegisterId]] = {
    **SEGMENTS,
    "notrack": Register.DS,  # CET: the 3E prefix on an indirect branch
    "ht": Register.DS,  # branch hints, SDM Volume 2, "Instruction Prefixes"
    "hnt": Register.CS,
}
REPEATS: Final = frozenset({"rep", "repe", "repz", "repne", "repnz", "bnd", "lock", "xacquire", "xrelease"})

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

DEFAULT_SIZED: Final = frozenset(
    {
        *("push", "pop", "call", "jmp", "nop", "lgdt", "lidt", "sgdt", "sidt"),
        *("fldenv", "fstenv", "fnstenv", "fsave", "fnsave", "frstor"),
    }
)
"""Mnemonics whose unsized memory operand takes the mode's default operand size; all others must say it."""

TABLE_REGISTERS: Final = ("lgdt", "lidt", "sgdt", "sidt")

READS_SELECTOR: Final = frozenset({"lldt", "ltr", "verr", "verw", "lmsw", "lkgs", "arpl"})
"""Instructions that read 16 bits whatever the operand size: 66 before their 16-bit register is waste."""

POPS_AFTER: Final[Mapping[str, str]] = {
    n: n + "p" for n in ("fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr")
}
"""x87 arithmetic without operands pops, SDM Volume 2, "FADD/FADDP/FIADD"."""


class _Alias(NamedTuple):
    """Another name: the mnemonics it stands for, and the operand or address size it fixes (bits, 0: none)."""

    mnemonics: tuple[str, ...]
    operand_size: int = 0
    address_size: int = 0


def _fixed_aliases() -> dict[str, _Alias]:
    """The names that are not iced's own: NASM's, MASM's and the SDM's synonyms."""
    aliases = {
        # Without a suffix the mode's default operand size counts, so all widths are candidates.
        "iret": _Alias(("iret", "iretd", "iretq")),
        "iretw": _Alias(("iret",)),
        "pushf": _Alias(("pushf", "pushfd", "pushfq")),
        "pushfw": _Alias(("pushf",)),
        "popf": _Alias(("popf", "popfd", "popfq")),
        "popfw": _Alias(("popf",)),
        "pusha": _Alias(("pusha", "pushad")),
        "pushaw": _Alias(("pusha",)),
        "popa": _Alias(("popa", "popad")),
        "popaw": _Alias(("popa",)),
        "sysret": _Alias(("sysret", "sysretq")),
        "sysretd": _Alias(("sysret",)),
        "sysexit": _Alias(("sysexit", "sysexitq")),
        "sysexitd": _Alias(("sysexit",)),
        "retn": _Alias(("ret",)),
        # SDM Volume 2, "SAL/SAR/SHL/SHR", gives both names one opcode; iced's SAL is its twin /6.
        "sal": _Alias(("shl",)),
        "fwait": _Alias(("wait",)),
        "xlat": _Alias(("xlatb",)),
        "icebp": _Alias(("int1",)),
        "ud2a": _Alias(("ud2",)),
        "ud2b": _Alias(("ud1",)),
        "lret": _Alias(("retf",)),
        "loopz": _Alias(("loope",)),
        "loopnz": _Alias(("loopne",)),
        "movabs": _Alias(("mov",)),
    }
    for letter, size in (("w", 16), ("d", 32), ("q", 64)):
        for name in ("push", "pop", "ret", "retf", "call", "jmp", "enter", "leave", *TABLE_REGISTERS):
            aliases[name + letter] = _Alias((name,), operand_size=size)
        aliases["retn" + letter] = _Alias(("ret",), operand_size=size)
        for name in ("loop", "loope", "loopne"):
            aliases[name + letter] = _Alias((name,), address_size=size)
    for name in ("movs", "cmps", "stos", "lods", "scas", "ins", "outs"):
        aliases[name] = _Alias(tuple(name + letter for letter in "bwdq"))
    return aliases


# ------------------------------------------------------------------------------------------------------------
# iced's tables, turned round: from names to opcodes
# ------------------------------------------------------------------------------------------------------------


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


class _PseudoOp(NamedTuple):
    """A mnemonic that carries its own imm8."""

    mnemonic: str
    immediate: int


@functools.cache
def _aliases() -> tuple[Mapping[str, _Alias], Mapping[str, _PseudoOp]]:
    """Every further name, and every pseudo-op with its imm8."""
    table, _ = _codes_by_mnemonic()
    aliases = _fixed_aliases()
    for condition in dict.fromkeys(CONDITION_SYNONYMS.values()):
        for before, after in (("j", ""), ("set", ""), ("cmov", ""), ("cmp", "xadd")):
            words = [condition, *(word for word, same in CONDITION_SYNONYMS.items() if same == condition)]
            names = {before + word + after for word in words}
            real = next((name for name in sorted(names) if name in table), None)
            if real is not None:
                aliases.update({name: _Alias((real,)) for name in names if name not in table})
    pseudo: dict[str, _PseudoOp] = {}
    for lead, predicates in (("", SSE_PREDICATES), ("v", AVX_PREDICATES)):
        for number, predicate in enumerate(predicates):
            for kind in ("ps", "pd", "ss", "sd"):
                pseudo[f"{lead}cmp{predicate}{kind}"] = _PseudoOp(f"{lead}cmp{kind}", number)
        for number, halves in ((0x00, "lqlq"), (0x01, "hqlq"), (0x10, "lqhq"), (0x11, "hqhq")):
            pseudo[f"{lead}pclmul{halves}dq"] = _PseudoOp(f"{lead}pclmulqdq", number)
    return {name: alias for name, alias in aliases.items() if alias.mnemonics[0] in table}, pseudo


class _RegisterEntry(NamedTuple):
    """A register: iced's number, its name, its width in bits and the operand kinds it can serve as."""

    id: RegisterId
    name: str
    bits: int
    kinds: frozenset[int]


GPR_KINDS: Final[Mapping[int, frozenset[int]]] = {
    8: frozenset({K.R8_OR_MEM, K.R8_REG, K.R8_OPCODE}),
    16: frozenset({K.R16_OR_MEM, K.R16_REG, K.R16_REG_MEM, K.R16_RM, K.R16_OPCODE}),
    32: frozenset(
        {K.R32_OR_MEM, K.R32_OR_MEM_MPX, K.R32_REG, K.R32_REG_MEM, K.R32_RM, K.R32_OPCODE, K.R32_VVVV}
    ),
    64: frozenset(
        {K.R64_OR_MEM, K.R64_OR_MEM_MPX, K.R64_REG, K.R64_REG_MEM, K.R64_RM, K.R64_OPCODE, K.R64_VVVV}
    ),
}
FIXED_REGISTER_KINDS: Final[Mapping[int, int]] = {
    Register.AL: K.AL,
    Register.CL: K.CL,
    Register.AX: K.AX,
    Register.DX: K.DX,
    Register.EAX: K.EAX,
    Register.RAX: K.RAX,
    Register.ST0: K.ST0,
    Register.ES: K.ES,
    Register.CS: K.CS,
    Register.SS: K.SS,
    Register.DS: K.DS,
    Register.FS: K.FS,
    Register.GS: K.GS,
}
REGISTER_OF_KIND: Final[Mapping[int, int]] = {
    kind: register for register, kind in FIXED_REGISTER_KINDS.items()
}


def _register_kinds(register: RegisterId) -> frozenset[int] | None:
    """The operand kinds a register can serve as; None for what is no operand of this machine."""
    kinds: frozenset[int]
    if RegisterExt.is_gpr(register):
        kinds = GPR_KINDS[RegisterExt.size(register) * 8]
    elif RegisterExt.is_segment_register(register):
        kinds = frozenset({K.SEG_REG})
    elif RegisterExt.is_xmm(register):
        kinds = frozenset({K.XMM_OR_MEM, K.XMM_REG, K.XMM_RM, K.XMM_VVVV, K.XMMP3_VVVV, K.XMM_IS4, K.XMM_IS5})
    elif RegisterExt.is_ymm(register):
        kinds = frozenset({K.YMM_OR_MEM, K.YMM_REG, K.YMM_RM, K.YMM_VVVV, K.YMM_IS4, K.YMM_IS5})
    elif RegisterExt.is_mm(register):
        kinds = frozenset({K.MM_OR_MEM, K.MM_REG, K.MM_RM})
    elif RegisterExt.is_st(register):
        kinds = frozenset({K.STI_OPCODE})
    elif RegisterExt.is_cr(register):
        kinds = frozenset({K.CR_REG})
    elif RegisterExt.is_dr(register):
        kinds = frozenset({K.DR_REG})
    elif RegisterExt.is_tr(register):
        kinds = frozenset({K.TR_REG})
    elif RegisterExt.is_k(register):
        kinds = frozenset({K.K_OR_MEM, K.K_REG, K.KP1_REG, K.K_RM, K.K_VVVV})
    elif RegisterExt.is_bnd(register):
        kinds = frozenset({K.BND_OR_MEM_MPX, K.BND_REG})
    elif RegisterExt.is_tmm(register):
        kinds = frozenset({K.TMM_REG, K.TMM_RM, K.TMM_VVVV})
    elif register in (Register.EIP, Register.RIP):
        kinds = frozenset()
    else:
        return None
    fixed = FIXED_REGISTER_KINDS.get(register)
    return kinds if fixed is None else kinds | {fixed}


@functools.cache
def _registers() -> tuple[Mapping[str, _RegisterEntry], Mapping[int, _RegisterEntry]]:
    """Registers by lower-case name and by iced's number."""
    by_name: dict[str, _RegisterEntry] = {}
    by_id: dict[int, _RegisterEntry] = {}
    formatter = Formatter(FormatterSyntax.NASM)
    for spelling, register in vars(Register).items():
        if not spelling.isupper() or register == Register.NONE or spelling == "DONTUSE0":
            continue
        kinds = _register_kinds(register)
        if kinds is None:
            continue
        name = formatter.format_register(register)
        entry = _RegisterEntry(register, name, RegisterExt.size(register) * 8, kinds)
        by_id[register] = entry
        by_name[name] = entry
        by_name[spelling.lower()] = entry
    by_name["st"] = by_name["st0"]
    return by_name, by_id


# ------------------------------------------------------------------------------------------------------------
# Expressions
# ------------------------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    """A word, number, string or sign; `text` of a string is without its quotes."""

    kind: str
    text: str


TOKEN_PATTERN: Final = re.compile(
    r"""(?P<space>[ \t\r\f\v]+)
      | (?P<comment>[;\#].*)
      | (?P<string>"[^"]*"|'[^']*')
      | (?P<escaped>`(?:[^`\\]|\\.)*`)
      | (?P<float>[0-9][0-9_]*\.[0-9_]*(?:[eE][+-]?[0-9]+)?)
      | (?P<number>[0-9][0-9A-Za-z_]*)
      | (?P<name>[A-Za-z_.?@][A-Za-z0-9_.?@$]*)
      | (?P<here>\$\$?)
      | (?P<sign><<|>>|[-+*/%&|^~()\[\],:])""",
    re.VERBOSE,
)

ESCAPES: Final[Mapping[str, str]] = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "f": "\f",
    "v": "\v",
}
ESCAPE_PATTERN: Final = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|.)")


def _unescape(match: re.Match[str]) -> str:
    """One escape of a back-quoted string."""
    body = match.group(1)
    if len(body) > 1:
        return chr(int(body[1:], 16))
    return ESCAPES.get(body, body)


def _tokens(line: str) -> list[_Token]:
    """Split one line; comments are gone. Raises `_Problem` at a character that starts nothing."""
    tokens: list[_Token] = []
    position = 0
    end = len(line)
    while position < end:
        match = TOKEN_PATTERN.match(line, position)
        if match is None:
            character = line[position]
            if character in "\"'`":
                raise _Problem(
                    f"the string that starts with {character} has no end; add the closing {character}"
                )
            raise _Problem(f"the character {character!r} has no meaning here; remove it")
        position = match.end()
        kind = match.lastgroup or ""
        if kind in ("space", "comment"):
            continue
        text = match.group()
        if kind == "string":
            tokens.append(_Token(kind, text[1:-1]))
        elif kind == "escaped":
            tokens.append(_Token("string", ESCAPE_PATTERN.sub(_unescape, text[1:-1])))
        else:
            tokens.append(_Token(kind, text))
    return tokens


HEX_SUFFIX: Final = re.compile(r"[0-9][0-9a-f]*h")


def _number(text: str) -> int:
    """The value of 0x1F, 1Fh, 0b101, 101b, 0o17 or 10, underscores allowed. Raises `_Problem`."""
    digits = text.replace("_", "").lower()
    if len(digits) > MAX_NUMBER_BITS + 2:
        raise _Problem(f"the number has {len(digits)} digits; values go up to {MAX_NUMBER_BITS} bits")
    try:
        if HEX_SUFFIX.fullmatch(digits):
            return int(digits[:-1], 16)
        if digits.endswith("b") and not digits.startswith("0x"):
            return int(digits[:-1], 2)
        if digits[:2] in ("0x", "0b", "0o"):
            return int(digits, 0)
        return int(digits, 10)
    except ValueError:
        raise _Problem(f"{text} is not a number; write 0x1F, 1Fh, 0b101, 0o17 or 10") from None


def _closest(word: str, known: Sequence[str]) -> str:
    """The known word most like a mistyped one, letters in the wrong order first; "" if none is near."""
    letters = sorted(word)
    for name in known:
        if len(name) == len(word) and sorted(name) == letters:
            return name
    return next(iter(difflib.get_close_matches(word[:64], known, n=1)), "")


class _Value(NamedTuple):
    """A value: its number, how many addresses it holds (a difference of labels holds none), its registers."""

    number: int
    weight: int = 0
    registers: tuple[tuple[_RegisterEntry, int], ...] = ()


ZERO: Final = _Value(0)


@dataclass(frozen=True, slots=True)
class _Node:
    """An expression: `op` is "value", "symbol", "here" ($), "start" ($$), or an operator over `args`."""

    op: str
    value: _Value = ZERO
    name: str = ""
    args: tuple["_Node", ...] = ()

    def is_constant(self) -> bool:
        """Whether it has the same value wherever it stands: no symbol, no $."""
        if self.op in ("symbol", "here", "start"):
            return False
        return all(arg.is_constant() for arg in self.args)


@dataclass(slots=True)
class _Scope:
    """What names mean during one layout pass."""

    symbols: dict[str, int]
    constants: set[str]  # names set by equ to a plain number: not addresses
    known: set[str]  # every name the program or the caller defines
    seen: set[str]  # names defined so far in this pass
    here: int = 0
    start: int = 0
    critical: str = ""  # the directive that forbids forward references, if inside one

    def lookup(self, name: str) -> _Value:
        """The value of a name; a label not laid out yet counts as being here."""
        if name not in self.known:
            close = _closest(name, sorted(self.known))
            hint = f"did you mean {close}?" if close else f"define it with `{name}:` or pass it in symbols"
            raise _Problem(f"{name} is neither a register nor a defined name; {hint}")
        if self.critical and name not in self.seen:
            raise _Problem(
                f"{self.critical} cannot use {name}, which is defined further down; define it above"
            )
        weight = 0 if name in self.constants else 1
        return _Value(self.symbols.get(name, self.here), weight)


def _bounded(number: int) -> int:
    if number.bit_length() > MAX_NUMBER_BITS:
        raise _Problem(f"a value grows beyond {MAX_NUMBER_BITS} bits; make the expression smaller")
    return number


def _add(a: _Value, b: _Value) -> _Value:
    return _Value(_bounded(a.number + b.number), a.weight + b.weight, a.registers + b.registers)


def _scaled(a: _Value, factor: int) -> _Value:
    return _Value(
        _bounded(a.number * factor),
        a.weight * factor,
        tuple((register, count * factor) for register, count in a.registers),
    )


def _multiply(a: _Value, b: _Value) -> _Value:
    if a.registers and b.registers:
        raise _Problem(
            "a register is multiplied by a register; an address has the form base + index*scale + number"
        )
    return _scaled(a, b.number) if a.registers else _scaled(b, a.number)


def _divide(a: int, b: int) -> int:
    """Rounds towards zero, as IDIV does."""
    if b == 0:
        raise _Problem("a division by zero; change the divisor")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _shift_count(count: int) -> int:
    if not 0 <= count < MAX_NUMBER_BITS:
        raise _Problem(f"a shift by {count}; counts go from 0 to {MAX_NUMBER_BITS - 1}")
    return count


NUMBER_OPERATORS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "/": _divide,
    "%": lambda a, b: a - b * _divide(a, b),
    "<<": lambda a, b: a << _shift_count(b),
    ">>": lambda a, b: a >> _shift_count(b),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}

PRECEDENCE: Final[Mapping[str, int]] = {
    "|": 1,
    "^": 2,
    "&": 3,
    "<<": 4,
    ">>": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "%": 6,
}
"""NASM's order of operators, which is C's."""


def _apply(op: str, args: Sequence[_Value]) -> _Value:
    """One operator on finished values. Raises `_Problem`."""
    match op:
        case "+":
            return _add(args[0], args[1])
        case "-":
            return _add(args[0], _scaled(args[1], -1))
        case "*":
            return _multiply(args[0], args[1])
        case "neg":
            return _scaled(args[0], -1)
    if any(arg.registers for arg in args):
        sign = "~" if op == "not" else op
        raise _Problem(
            f"a register stands beside {sign}; an address has the form base + index*scale + number"
        )
    if op == "not":
        return _Value(~args[0].number)
    return _Value(_bounded(NUMBER_OPERATORS[op](args[0].number, args[1].number)))


def _evaluate(node: _Node, scope: _Scope) -> _Value:
    """The value of an expression under `scope`. Raises `_Problem`."""
    match node.op:
        case "value":
            return node.value
        case "symbol":
            return scope.lookup(node.name)
        case "here":
            return _Value(scope.here, 1)
        case "start":
            return _Value(scope.start, 1)
    return _apply(node.op, [_evaluate(arg, scope) for arg in node.args])


def _evaluate_number(node: _Node, scope: _Scope, what: str) -> int:
    """The value of an expression that must be a plain number; `what` names it in the error."""
    value = _evaluate(node, scope)
    if value.registers:
        raise _Problem(
            f"{what} contains the register {value.registers[0][0].name}; use numbers and labels only"
        )
    return value.number


def _combined(op: str, *args: _Node) -> _Node:
    """A node, folded at once when its arguments are constants."""
    if all(arg.op == "value" for arg in args):
        return _Node("value", _apply(op, [arg.value for arg in args]))
    return _Node(op, args=args)


# ------------------------------------------------------------------------------------------------------------
# Operands
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RegisterOperand:
    entry: _RegisterEntry


@dataclass(frozen=True, slots=True)
class _MemoryOperand:
    """`size[segment: address]`; sizes in bytes, 0 when not written."""

    address: _Node
    size: int = 0
    segment: RegisterId = Register.NONE
    relative: bool | None = None  # rel, abs, or as `default` says
    address_bytes: int = 0  # the keyword inside the brackets: [dword 0x1234]
    far: bool = False


@dataclass(frozen=True, slots=True)
class _NumberOperand:
    """An immediate or a branch target; `distance` is "short", "near" or ""."""

    value: _Node
    size: int = 0
    distance: str = ""


@dataclass(frozen=True, slots=True)
class _FarOperand:
    """selector:offset"""

    selector: _Node
    offset: _Node
    size: int = 0


_Operand = _RegisterOperand | _MemoryOperand | _NumberOperand | _FarOperand


class _Reader:
    """Reads operands and expressions from the tokens of one line."""

    __slots__ = ("depth", "outer", "position", "tokens")

    def __init__(self, tokens: list[_Token], outer: str) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.outer = outer  # the label that local names belong to

    # -- tokens

    def at_end(self) -> bool:
        return self.position >= len(self.tokens)

    def peek(self, ahead: int = 0) -> _Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else _Token("end", "")

    def word(self, ahead: int = 0) -> str:
        """The token as a lower-case word; "" if it is none."""
        token = self.peek(ahead)
        return token.text.lower() if token.kind == "name" else ""

    def take(self) -> _Token:
        token = self.peek()
        self.position += 1
        return token

    def accept(self, sign: str) -> bool:
        token = self.peek()
        if token.kind == "sign" and token.text == sign:
            self.position += 1
            return True
        return False

    def accept_word(self, word: str) -> bool:
        if self.word() == word:
            self.position += 1
            return True
        return False

    def expect(self, sign: str, where: str) -> None:
        if not self.accept(sign):
            found = self.peek()
            shown = f"found {found.text!r}" if found.kind != "end" else "the line ends"
            raise _Problem(f"expected '{sign}' {where} but {shown}; add the '{sign}'")

    def expect_end(self) -> None:
        if not self.at_end():
            raise _Problem(
                f"did not expect {self.peek().text!r} here; remove it, or put a comma or operator before it"
            )

    def full_name(self, name: str) -> str:
        """A local name with its outer label before it."""
        if not name.startswith("."):
            return name
        if not self.outer:
            raise _Problem(f"the local label {name} has no ordinary label above it; define one first")
        return self.outer + name

    # -- expressions

    def expression(self, floor: int = 0) -> _Node:
        """An expression whose operators bind tighter than `floor`."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise _Problem(
                f"the expression nests deeper than {MAX_NESTING} levels; give parts of it a name with equ"
            )
        left = self.primary()
        while True:
            token = self.peek()
            rank = PRECEDENCE.get(token.text, 0) if token.kind == "sign" else 0
            if rank <= floor:
                break
            self.position += 1
            left = _combined(token.text, left, self.expression(rank))
        self.depth -= 1
        return left

    def unary(self, op: str) -> _Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise _Problem(
                f"the expression nests deeper than {MAX_NESTING} levels; give parts of it a name with equ"
            )
        node = self.primary()
        self.depth -= 1
        return _combined(op, node) if op else node

    def primary(self) -> _Node:
        token = self.take()
        match token.kind:
            case "number":
                return _Node("value", _Value(_number(token.text)))
            case "string":
                raw = _string_bytes(token.text)
                if not 1 <= len(raw) <= 8:
                    raise _Problem(f"a string of {len(raw)} bytes is not a number; use 1 to 8 bytes, or db")
                return _Node("value", _Value(int.from_bytes(raw, "little")))
            case "here":
                return _Node("start" if token.text == "$$" else "here")
            case "name":
                entry = _registers()[0].get(token.text.lower())
                if entry is not None:
                    return _Node("value", _Value(0, 0, ((entry, 1),)))
                return _Node("symbol", name=self.full_name(token.text))
            case "float":
                raise _Problem(
                    f"the fraction {token.text} stands where a whole number must; use dd, dq or dt for it"
                )
            case "sign":
                match token.text:
                    case "(":
                        node = self.expression()
                        self.expect(")", "after the expression")
                        return node
                    case "-":
                        return self.unary("neg")
                    case "~":
                        return self.unary("not")
                    case "+":
                        return self.unary("")
                raise _Problem(
                    f"expected a number, name or register but found {token.text!r}; complete the expression"
                )
        raise _Problem("expected a number, name or register but the line ends; complete the expression")

    # -- operands

    def register(self) -> _RegisterEntry | None:
        """A register, if one stands here and is not part of an expression."""
        entry = _registers()[0].get(self.word())
        if entry is None:
            return None
        after = self.peek(1)
        if (
            entry.name == "st0"
            and after.text == "("
            and self.peek(2).kind == "number"
            and self.peek(3).text == ")"
        ):
            number = _number(self.peek(2).text)
            if number > 7:
                raise _Problem(f"st({number}) does not exist; the x87 stack goes from st(0) to st(7)")
            self.position += 4
            return _registers()[0][f"st{number}"]
        if after.kind == "sign" and after.text != ",":
            return None
        self.position += 1
        return entry

    def segment(self) -> RegisterId:
        """`fs:`, if it stands here."""
        segment = SEGMENTS.get(self.word())
        following = self.peek(1)
        if segment is None or following.kind != "sign" or following.text != ":":
            return Register.NONE
        self.position += 2
        return segment

    def operand(self) -> _Operand:
        """One operand, keywords included. Raises `_Problem`."""
        size = 0
        distance = ""
        far = False
        while True:
            word = self.word()
            if word in SIZES:
                size = SIZES[word]
            elif word in ("short", "near"):
                distance = word
            elif word == "far":
                far = True
            elif word not in ("ptr", "strict", "offset"):
                break
            self.position += 1
        if (entry := self.register()) is not None:
            if size and entry.bits != size * 8:
                raise _Problem(
                    f"{entry.name} has {entry.bits} bits, not {size * 8}; drop the size or the register"
                )
            return _RegisterOperand(entry)
        segment = self.segment()
        if self.accept("["):
            return self.memory(size, segment, far)
        value = self.expression()
        if segment != Register.NONE:
            return _MemoryOperand(value, size, segment, relative=False)
        if self.accept(":"):
            return _FarOperand(value, self.expression(), size)
        if value.op == "value" and value.value.registers:
            raise _Problem("registers are added or scaled outside brackets; write [ ] around an address")
        if far:
            raise _Problem("far needs selector:offset or brackets; write `0x08:label` or `far [pointer]`")
        return _NumberOperand(value, size, distance)

    def memory(self, size: int, segment: RegisterId, far: bool) -> _MemoryOperand:
        """The inside of the brackets, up to and with the closing one."""
        relative: bool | None = None
        address_bytes = 0
        while True:
            word = self.word()
            if word in ("rel", "abs"):
                relative = word == "rel"
                self.position += 1
            elif word in ("byte", "word", "dword", "qword"):
                address_bytes = SIZES[word]
                self.position += 1
            elif (inner := self.segment()) != Register.NONE:
                segment = inner
            else:
                break
        address = self.expression()
        self.expect("]", "after the address")
        return _MemoryOperand(address, size, segment, relative, address_bytes, far)


def _string_bytes(text: str) -> bytes:
    """A string as the guest sees it: one byte a character up to U+00FF, else UTF-8."""
    try:
        return text.encode("latin-1") if text.isascii() or max(text) <= "\xff" else text.encode()
    except UnicodeEncodeError:
        raise _Problem("the string contains half a surrogate pair; write the bytes as numbers") from None


# ------------------------------------------------------------------------------------------------------------
# Candidates: which opcodes fit which operands
# ------------------------------------------------------------------------------------------------------------


class _Limit(NamedTuple):
    """An immediate kind: iced's OpKind, width in bits, and the width it is sign-extended to (0: not)."""

    op_kind: OpKindId
    bits: int
    extended: int


IMMEDIATES: Final[Mapping[int, _Limit]] = {
    K.IMM8: _Limit(OpKind.IMMEDIATE8, 8, 0),
    K.IMM4_M2Z: _Limit(OpKind.IMMEDIATE8, 4, 0),
    K.IMM8_CONST_1: _Limit(OpKind.IMMEDIATE8, 1, 0),
    K.IMM16: _Limit(OpKind.IMMEDIATE16, 16, 0),
    K.IMM32: _Limit(OpKind.IMMEDIATE32, 32, 0),
    K.IMM64: _Limit(OpKind.IMMEDIATE64, 64, 0),
    K.IMM8SEX16: _Limit(OpKind.IMMEDIATE8TO16, 8, 16),
    K.IMM8SEX32: _Limit(OpKind.IMMEDIATE8TO32, 8, 32),
    K.IMM8SEX64: _Limit(OpKind.IMMEDIATE8TO64, 8, 64),
    K.IMM32SEX64: _Limit(OpKind.IMMEDIATE32TO64, 32, 64),
}
SHORT_BRANCHES: Final[Mapping[int, int]] = {K.BR16_1: 16, K.BR32_1: 32, K.BR64_1: 64}
NEAR_BRANCHES: Final[Mapping[int, int]] = {
    K.BR16_2: 16,
    K.BR32_4: 32,
    K.BR64_4: 64,
    K.XBEGIN_2: 0,  # 0: the width of the mode, SDM Volume 2, "XBEGIN"
    K.XBEGIN_4: 0,
    K.BRDISP_2: 16,
    K.BRDISP_4: 32,
}
BRANCHES: Final[Mapping[int, int]] = {**SHORT_BRANCHES, **NEAR_BRANCHES}
FAR_BRANCHES: Final = frozenset({K.FARBR2_2, K.FARBR4_2})
STRING_KINDS: Final = frozenset({K.SEG_RSI, K.ES_RDI, K.SEG_RDI, K.SEG_RBX_AL})
IMPLIED_BESIDE_STRINGS: Final = STRING_KINDS | {K.AL, K.AX, K.EAX, K.RAX, K.DX}
"""Operands that a string instruction has but its text may leave out."""

MODRM_MEMORY: Final = frozenset(
    {K.MEM, K.MEM_MPX, K.MEM_MIB, K.SIBMEM, K.R8_OR_MEM, K.R16_OR_MEM, K.R32_OR_MEM, K.R64_OR_MEM}
    | {K.R32_OR_MEM_MPX, K.R64_OR_MEM_MPX, K.BND_OR_MEM_MPX}
    | {K.MM_OR_MEM, K.XMM_OR_MEM, K.YMM_OR_MEM, K.K_OR_MEM}
)
VSIB_MEMORY: Final[Mapping[int, frozenset[int]]] = {
    128: frozenset({K.MEM_VSIB32X, K.MEM_VSIB64X}),
    256: frozenset({K.MEM_VSIB32Y, K.MEM_VSIB64Y}),
}
STRING_BASES: Final[Mapping[int, frozenset[int]]] = {
    **dict.fromkeys((Register.SI, Register.ESI, Register.RSI), frozenset({K.SEG_RSI})),
    **dict.fromkeys((Register.DI, Register.EDI, Register.RDI), frozenset({K.ES_RDI, K.SEG_RDI})),
    **dict.fromkeys((Register.BX, Register.EBX, Register.RBX), frozenset({K.SEG_RBX_AL})),
}
IMMEDIATE_KINDS_OF_SIZE: Final[Mapping[int, frozenset[int]]] = {
    0: frozenset(IMMEDIATES),
    1: frozenset({K.IMM8, K.IMM8_CONST_1, K.IMM4_M2Z, K.IMM8SEX16, K.IMM8SEX32, K.IMM8SEX64}),
    2: frozenset({K.IMM16}),
    4: frozenset({K.IMM32, K.IMM32SEX64}),
    8: frozenset({K.IMM64}),
}
FAR_POINTER_SIZES: Final[Mapping[int, int]] = {0: 0, 2: 4, 4: 6, 6: 6, 8: 10, 10: 10}
"""Size word before `far [..]` (of the offset, or MASM's of the whole) to the bytes of the pointer."""


class _Shape(NamedTuple):
    """What a candidate search needs to know of one operand; equal shapes have equal candidates."""

    kinds: frozenset[int]
    is_memory: bool = False
    size: int = 0  # bytes of a memory operand, 0: not written
    far: bool = False
    name: str = ""  # of a register that some instructions imply: monitor rax, ecx, edx


class _Plan(NamedTuple):
    """One candidate opcode; `sources[i]` is the written operand that becomes operand i, -1: implied."""

    code: CodeId
    kinds: tuple[int, ...]
    sources: tuple[int, ...]
    lockable: bool
    repeatable: bool
    repeatable_ne: bool


class _Query(NamedTuple):
    """Everything the candidates depend on: the key of the memory of `_plans`."""

    mnemonic: str
    shapes: tuple[_Shape, ...]
    bits: int
    operand_size: int
    address_size: int


TABLE_LIMITS: Final = frozenset({MemorySize.FWORD6, MemorySize.FWORD10})
FAR_POINTERS: Final = frozenset({MemorySize.SEG_PTR16, MemorySize.SEG_PTR32, MemorySize.SEG_PTR64})


CODE_SIZES: Final[Mapping[int, CodeSizeId]] = {16: CodeSize.CODE16, 32: CodeSize.CODE32, 64: CodeSize.CODE64}


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


def _memory_fits(info: OpCodeInfo, shape: _Shape, written: int) -> bool:
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


def _sources(info: OpCodeInfo, shapes: Sequence[_Shape]) -> tuple[int, ...] | None:
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


def _rank(info: OpCodeInfo, query: _Query) -> int:
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


def _size_agrees(info: OpCodeInfo, query: _Query) -> bool:
    """Whether an opcode has the operand and address size that a prefix demands."""
    if query.operand_size and info.operand_size != query.operand_size:
        return False
    return not (query.address_size and info.address_size and info.address_size != query.address_size)


@functools.lru_cache(maxsize=8192)
def _plans(query: _Query) -> tuple[_Plan, ...]:
    """The candidates of a mnemonic and its operand shapes, in iced's order. Raises `_Problem` without any."""
    codes = _candidate_codes(query.mnemonic)
    ranked: list[tuple[int, int, _Plan]] = []
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
        plan = _Plan(
            code,
            tuple(info.op_kinds()),
            sources,
            info.can_use_lock_prefix,
            info.can_use_rep_prefix,
            info.can_use_repne_prefix,
        )
        ranked.append((_rank(info, query), MemorySizeExt.size(info.memory_size), plan))
    if not ranked:
        raise _Problem(_why_none(query, codes))
    best = min(rank for rank, _, _ in ranked)
    chosen = [(size, plan) for rank, size, plan in ranked if rank == best]
    unsized = any(shape.is_memory and not shape.size for shape in query.shapes)
    widths = {size for size, plan in chosen if size}
    if unsized and len(widths) > 1 and query.mnemonic not in DEFAULT_SIZED and not query.operand_size:
        words = sorted(
            {word for word, size in SIZES.items() if size in widths}, key=lambda word: (SIZES[word], word)
        )
        raise _Problem(
            f"the size of the memory operand is open; write {' or '.join(words)} before the bracket"
        )
    # `add ax, 1` is three bytes with imm16 and with imm8; the short immediate wins, as in other assemblers.
    return tuple(sorted((plan for _, plan in chosen), key=lambda plan: plan.kinds[:1] == (K.AX,)))


def _candidate_codes(mnemonic: str) -> tuple[CodeId, ...]:
    """The opcodes a name stands for. Raises `_Problem` for an unknown name."""
    table, elsewhere = _codes_by_mnemonic()
    aliases, pseudo = _aliases()
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
        raise _Problem(
            f"{mnemonic} has only EVEX, XOP, 3DNow! or MVEX encodings; use its SSE, AVX or AVX2 relative"
        )
    known = sorted({*table, *aliases, *pseudo, *DATA_WIDTHS, *RESERVE_WIDTHS, *DIRECTIVES})
    close = _closest(mnemonic, known)
    hint = f"did you mean {close}?" if close else f"for a label write `{mnemonic}:`"
    raise _Problem(f"{mnemonic} is not an instruction or directive; {hint}")


def _likeness(info: OpCodeInfo, shapes: Sequence[_Shape]) -> int:
    """How many written operands an opcode would take; one more if their number is right."""
    kinds = info.op_kinds()
    fitting = sum(kind in shape.kinds for kind, shape in zip(kinds, shapes, strict=False))
    return fitting + (len(kinds) == len(shapes))


def _why_none(query: _Query, codes: Sequence[CodeId]) -> str:
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


# ------------------------------------------------------------------------------------------------------------
# From operands to bytes
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Address:
    """A memory operand with its numbers known; `bits` is the address size."""

    base: RegisterId
    index: RegisterId
    scale: int
    displacement: int
    bits: int
    segment: RegisterId
    from_next: bool  # the displacement counts from the next instruction (a bare [rip+8])
    wide: bool  # a size word in the brackets asks for the full displacement


class _Resolved(NamedTuple):
    """An operand with its numbers known, whichever it is."""

    shape: _Shape
    register: RegisterId = Register.NONE
    number: int = 0
    selector: int = 0
    address: _Address | None = None


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


def _base_and_index(terms: Sequence[tuple[_RegisterEntry, int]]) -> tuple[RegisterId, RegisterId, int]:
    """Base, index and scale of the registers of an address. Raises `_Problem`."""
    none: RegisterId = Register.NONE
    parts = [(entry, factor) for entry, factor in terms if factor]
    if len(parts) > 2:
        merged: dict[_RegisterEntry, int] = {}
        for entry, factor in parts:
            merged[entry] = merged.get(entry, 0) + factor
        parts = list(merged.items())
    if not parts:
        return none, none, 1
    if len(parts) == 1:
        entry, factor = parts[0]
        if factor not in INDEX_FACTORS:
            raise _Problem(f"{entry.name}*{factor} cannot be encoded; {ADDRESS_FORM}")
        if entry.bits >= 128:
            return none, entry.id, factor
        use_base, scale = INDEX_FACTORS[factor]
        return (entry.id if use_base else none), (entry.id if scale else none), scale or 1
    if len(parts) > 2:
        raise _Problem(f"the address has {len(parts)} registers; {ADDRESS_FORM}")
    (first, first_factor), (second, second_factor) = parts
    stack_pointer = second.id in (Register.ESP, Register.RSP) and second_factor == 1
    if (
        first_factor != 1
        or first.bits >= 128
        or (stack_pointer and first.id not in (Register.ESP, Register.RSP))
    ):
        first, first_factor, second, second_factor = second, second_factor, first, first_factor
    if first_factor != 1 or second_factor not in (1, 2, 4, 8):
        raise _Problem(
            f"{first.name}*{first_factor} + {second.name}*{second_factor} cannot be encoded; {ADDRESS_FORM}"
        )
    if first.bits == 16 and first.id in (Register.SI, Register.DI):
        first, second = second, first  # 16-bit forms name BX or BP first
    return first.id, second.id, second_factor


@dataclass(frozen=True, slots=True)
class _Place:
    """The settings a line was written under."""

    bits: int
    default_relative: bool
    address_size: int  # from a32 and its kin, 0: none


def _resolve_address(operand: _MemoryOperand, place: _Place, scope: _Scope) -> _Address:
    """Turn a written address into base, index, displacement and address size. Raises `_Problem`."""
    value = _evaluate(operand.address, scope)
    base, index, scale = _base_and_index(value.registers)
    widths = {entry.bits for entry, factor in value.registers if entry.bits < 128 and factor}
    if len(widths) > 1:
        raise _Problem(
            "the address mixes registers of different widths; take base and index of the same width"
        )
    number = value.number
    relative = False
    from_next = False
    if base in (Register.RIP, Register.EIP):
        if index != Register.NONE:
            raise _Problem("RIP-relative addresses have no index; drop the index register")
        relative = True
        from_next = value.weight == 0
    elif operand.relative or (operand.relative is None and place.default_relative):
        plain = base == Register.NONE and index == Register.NONE
        relative = plain and (bool(operand.relative) or operand.segment not in (Register.FS, Register.GS))
        if operand.relative and not plain:
            raise _Problem("rel and a register exclude each other in one address; drop one of them")
    if relative and place.bits != 64:
        if operand.relative or base != Register.NONE:
            raise _Problem("RIP-relative addresses exist in 64-bit mode only; drop rel")
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
        raise _Problem("64-bit mode has no 16-bit addresses; use 32- or 64-bit registers")
    if place.bits != 64 and size == 64:
        raise _Problem(f"{place.bits}-bit mode has no 64-bit addresses; use 16- or 32-bit registers")
    if place.address_size and place.address_size != size:
        raise _Problem(
            f"the a{place.address_size} prefix contradicts the {size}-bit registers of the address; drop it"
        )
    wide = operand.address_bytes > 1
    return _Address(base, index, scale, number, size, operand.segment, from_next, wide)


def _memory_kinds(address: _Address) -> frozenset[int]:
    """The operand kinds an address can serve as."""
    entry = _registers()[1].get(address.index)
    if entry is not None and entry.bits >= 128:
        return VSIB_MEMORY.get(entry.bits, frozenset())
    if address.base == Register.NONE and address.index == Register.NONE:
        return MODRM_MEMORY | {K.MEM_OFFS}
    if address.index == Register.NONE and address.displacement == 0:
        return MODRM_MEMORY | STRING_BASES.get(address.base, frozenset())
    return MODRM_MEMORY


@functools.cache
def _number_kinds(size: int, distance: str) -> frozenset[int]:
    """The operand kinds a number can serve as, given its keywords."""
    branches = {"short": SHORT_BRANCHES, "near": NEAR_BRANCHES}.get(distance, BRANCHES)
    if size:
        branches = {kind: bits for kind, bits in branches.items() if bits == size * 8}
    if distance:
        return frozenset(branches)
    return frozenset(branches) | IMMEDIATE_KINDS_OF_SIZE.get(size, frozenset())


def _resolve(operand: _Operand, place: _Place, scope: _Scope) -> _Resolved:
    """Evaluate one operand. Raises `_Problem`."""
    match operand:
        case _RegisterOperand(entry):
            if place.bits != 64 and (K.R64_REG in entry.kinds or entry.id == Register.RIP):
                raise _Problem(
                    f"{entry.name} exists in 64-bit mode only; use a smaller register or `bits 64`"
                )
            return _Resolved(_Shape(entry.kinds, name=entry.name), register=entry.id)
        case _MemoryOperand():
            address = _resolve_address(operand, place, scope)
            shape = _Shape(_memory_kinds(address), True, operand.size, operand.far)
            return _Resolved(shape, address=address)
        case _NumberOperand():
            number = _evaluate_number(operand.value, scope, "an operand outside brackets")
            return _Resolved(_Shape(_number_kinds(operand.size, operand.distance)), number=number)
        case _FarOperand():
            selector = _evaluate_number(operand.selector, scope, "the selector")
            offset = _evaluate_number(operand.offset, scope, "the offset")
            if not 0 <= selector <= 0xFFFF:
                raise _Problem(f"the selector {selector:#x} has more than 16 bits; use one up to 0xffff")
            kinds = {0: FAR_BRANCHES, 2: frozenset({K.FARBR2_2}), 4: frozenset({K.FARBR4_2})}
            shape = _Shape(kinds.get(operand.size, frozenset()))
            return _Resolved(shape, number=offset, selector=selector)


def _fit(number: int, limit: _Limit) -> int:
    """The immediate as iced stores it. Raises `_Problem` if it needs more bits than the field has."""
    if limit.extended:
        half = 1 << (limit.bits - 1)
        whole = 1 << limit.extended
        if whole - half <= number < whole:
            return number - whole  # 0xffffffff is -1 to a 32-bit operation
        if -half <= number < half:
            return number
    elif limit.bits == 1:
        if number == 1:
            return 1
    elif -(1 << (limit.bits - 1)) <= number < 1 << limit.bits:
        return number & ((1 << limit.bits) - 1)
    raise _Problem(f"the immediate does not fit {limit.bits} bits; use a smaller value or a wider operation")


def _set_immediate(instruction: Instruction, operand: int, kind: int, number: int, second: bool) -> None:
    """Store an immediate in the field its kind uses. Raises `_Problem`."""
    limit = IMMEDIATES[kind]
    value = _fit(number, limit)
    if second:
        instruction.set_op_kind(operand, OpKind.IMMEDIATE8_2ND)
        instruction.immediate8_2nd = value
        return
    instruction.set_op_kind(operand, limit.op_kind)
    match kind:
        case K.IMM8 | K.IMM4_M2Z | K.IMM8_CONST_1:
            instruction.immediate8 = value
        case K.IMM16:
            instruction.immediate16 = value
        case K.IMM32:
            instruction.immediate32 = value
        case K.IMM64:
            instruction.immediate64 = value
        case K.IMM8SEX16:
            instruction.immediate8to16 = value
        case K.IMM8SEX32:
            instruction.immediate8to32 = value
        case K.IMM8SEX64:
            instruction.immediate8to64 = value
        case _:
            instruction.immediate32to64 = value


def _set_branch(instruction: Instruction, operand: int, bits: int, mode: int, target: int, here: int) -> None:
    """Store a branch target. Raises `_Problem` for one that IP cannot hold."""
    width = bits or max(mode, 32)
    if not (0 <= target < 1 << width or abs(target - here) < 1 << width):
        # A label beyond what IP holds means its offset in the block (64 KiB for IP) it shares with this code.
        raise _Problem(f"the target {target:#x} is out of reach of a {width}-bit IP; use a far jump")
    if width == 16:
        instruction.set_op_kind(operand, OpKind.NEAR_BRANCH16)
        instruction.near_branch16 = target & 0xFFFF
    elif width == 32:
        instruction.set_op_kind(operand, OpKind.NEAR_BRANCH32)
        instruction.near_branch32 = target & 0xFFFF_FFFF
    else:
        instruction.set_op_kind(operand, OpKind.NEAR_BRANCH64)
        instruction.near_branch64 = target & M64


def _set_far(instruction: Instruction, operand: int, kind: int, item: _Resolved) -> None:
    """Store selector:offset. Raises `_Problem` for an offset that is too wide."""
    bits = 16 if kind == K.FARBR2_2 else 32
    if not 0 <= item.number < 1 << bits:
        raise _Problem(f"the far offset {item.number:#x} does not fit {bits} bits; write dword before it")
    if bits == 16:
        instruction.set_op_kind(operand, OpKind.FAR_BRANCH16)
        instruction.far_branch16 = item.number
    else:
        instruction.set_op_kind(operand, OpKind.FAR_BRANCH32)
        instruction.far_branch32 = item.number
    instruction.far_branch_selector = item.selector


STACK_BASES: Final = frozenset({Register.BP, Register.EBP, Register.RBP, Register.ESP, Register.RSP})


def _default_segment(address: _Address) -> RegisterId:
    """The segment an address uses without a prefix, SDM Volume 1, "Specifying a Segment Selector"."""
    return Register.SS if address.base in STACK_BASES else Register.DS


def _set_address(instruction: Instruction, operand: int, kind: int, address: _Address, wide: bool) -> None:
    """Store a ModRM or moffs memory operand. Raises `_Problem` for a displacement that is too wide."""
    bits = address.bits
    number = address.displacement
    instruction.set_op_kind(operand, OpKind.MEMORY)
    instruction.memory_base = address.base
    instruction.memory_index = address.index
    instruction.memory_index_scale = address.scale
    if address.segment not in (Register.NONE, _default_segment(address)):
        instruction.segment_prefix = address.segment
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise _Problem(f"the address {number:#x} does not fit {bits} bits; use a lower one")
    signed = number - (1 << bits) if number >= 1 << (bits - 1) else number
    rip_relative = address.base in (Register.RIP, Register.EIP)
    if bits == 64 and kind != K.MEM_OFFS and not rip_relative and not -(1 << 31) <= signed < 1 << 31:
        raise _Problem(f"the displacement {number:#x} does not fit 32 bits; put it into a register first")
    instruction.memory_displacement = number & ((1 << bits) - 1)
    fixed = rip_relative or kind == K.MEM_OFFS or (address.base == Register.NONE)
    if not fixed and not wide and not address.wide and -128 <= signed <= 127:
        instruction.memory_displ_size = 1 if signed else 0
    else:
        instruction.memory_displ_size = bits // 8


STRING_OP_KINDS: Final[Mapping[tuple[int, int], OpKindId]] = {
    (K.SEG_RSI, 16): OpKind.MEMORY_SEG_SI,
    (K.SEG_RSI, 32): OpKind.MEMORY_SEG_ESI,
    (K.SEG_RSI, 64): OpKind.MEMORY_SEG_RSI,
    (K.SEG_RDI, 16): OpKind.MEMORY_SEG_DI,
    (K.SEG_RDI, 32): OpKind.MEMORY_SEG_EDI,
    (K.SEG_RDI, 64): OpKind.MEMORY_SEG_RDI,
    (K.ES_RDI, 16): OpKind.MEMORY_ESDI,
    (K.ES_RDI, 32): OpKind.MEMORY_ESEDI,
    (K.ES_RDI, 64): OpKind.MEMORY_ESRDI,
}
XLAT_BASES: Final[Mapping[int, RegisterId]] = {16: Register.BX, 32: Register.EBX, 64: Register.RBX}


def _set_string(
    instruction: Instruction, operand: int, kind: int, address: _Address | None, bits: int
) -> None:
    """Store a string instruction's implied address. Raises `_Problem` for a segment it cannot have."""
    if address is not None:
        bits = address.bits
        if address.segment not in (Register.NONE, Register.ES) and kind == K.ES_RDI:
            raise _Problem("the destination of a string instruction is always in ES; drop the segment")
        if address.segment not in (Register.NONE, Register.DS) and kind != K.ES_RDI:
            instruction.segment_prefix = address.segment
    if kind == K.SEG_RBX_AL:
        instruction.set_op_kind(operand, OpKind.MEMORY)
        instruction.memory_base = XLAT_BASES[bits]
        instruction.memory_index = Register.AL
    else:
        instruction.set_op_kind(operand, STRING_OP_KINDS[kind, bits])


def _build(plan: _Plan, items: Sequence[_Resolved], place: _Place, here: int, wide: bool) -> Instruction:
    """The `Instruction` of one candidate. Raises `_Problem` when an operand's value does not fit it."""
    instruction = Instruction()
    instruction.code = plan.code
    immediates = 0
    implied_bits = place.address_size or place.bits
    for given in items:
        if given.address is not None:
            implied_bits = given.address.bits
    for operand, (kind, source) in enumerate(zip(plan.kinds, plan.sources, strict=False)):
        item = items[source] if source >= 0 else None
        if kind in STRING_KINDS:
            _set_string(instruction, operand, kind, item.address if item else None, implied_bits)
        elif item is None:
            instruction.set_op_kind(operand, OpKind.REGISTER)
            instruction.set_op_register(operand, _registers()[1][REGISTER_OF_KIND[kind]].id)
        elif item.address is not None:
            _set_address(instruction, operand, kind, item.address, wide)
        elif kind in IMMEDIATES:
            _set_immediate(instruction, operand, kind, item.number, second=immediates > 0)
            immediates += 1
        elif kind in BRANCHES:
            _set_branch(instruction, operand, BRANCHES[kind], place.bits, item.number, here)
        elif kind in FAR_BRANCHES:
            _set_far(instruction, operand, kind, item)
        else:
            instruction.set_op_kind(operand, OpKind.REGISTER)
            instruction.set_op_register(operand, item.register)
    return instruction


class _Encoding(NamedTuple):
    """Bytes of an instruction; `fixed` when they are the same at every address."""

    code: bytes
    fixed: bool


class _Encoders:
    """iced's encoders, one a mode, kept for the length of one assembly."""

    __slots__ = ("by_bits",)

    def __init__(self) -> None:
        self.by_bits = {bits: Encoder(bits) for bits in (16, 32, 64)}

    def encode(self, instruction: Instruction, bits: int, address: int) -> bytes:
        """Bytes of one instruction at `address`. Raises `_Problem` with iced's reason."""
        encoder = self.by_bits[bits]
        try:
            encoder.encode(instruction, address & M64)
        except ValueError as refusal:
            encoder.take_buffer()
            reason = str(refusal)
            if "branch" in reason.lower() or "too far" in reason:
                raise _Problem(
                    "the target is too far away; drop `short`, or go there by a register"
                ) from None
            raise _Problem(
                f"these operands cannot be encoded together ({reason}); take other registers"
            ) from None
        return encoder.take_buffer()


def _prefixed(instruction: Instruction, plan: _Plan, prefixes: Sequence[str], mnemonic: str) -> None:
    """Set the written prefixes. Raises `_Problem` for one the instruction does not take."""
    for prefix in prefixes:
        match prefix:
            case "lock":
                lockable = plan.lockable and instruction.op0_kind != OpKind.REGISTER
                if not lockable:
                    raise _Problem(f"{mnemonic} takes no lock prefix here; for a bare prefix write db 0xf0")
                instruction.has_lock_prefix = True
            case "rep" | "repe" | "repz":
                # `rep ret` is AMD's advice for branch prediction, and all assemblers know it.
                if not (plan.repeatable or mnemonic.startswith("ret")):
                    raise _Problem(f"{mnemonic} takes no {prefix} prefix; for a bare prefix write db 0xf3")
                instruction.has_rep_prefix = True
            case "repne" | "repnz":
                if not plan.repeatable_ne:
                    raise _Problem(f"{mnemonic} takes no {prefix} prefix; for a bare prefix write db 0xf2")
                instruction.has_repne_prefix = True
            case "bnd":
                if not OpCodeInfo(plan.code).can_use_bnd_prefix:
                    raise _Problem(f"{mnemonic} takes no bnd prefix; for a bare prefix write db 0xf2")
                instruction.has_repne_prefix = True
            case "xacquire":
                instruction.has_xacquire_prefix = True
            case "xrelease":
                instruction.has_xrelease_prefix = True
            case _:
                instruction.segment_prefix = SEGMENT_PREFIXES[prefix]


# ------------------------------------------------------------------------------------------------------------
# Statements
# ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Statement(abc.ABC):
    """One thing on a line."""

    line_number: int

    @abc.abstractmethod
    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        """Its bytes at `scope.here` in this pass. Raises `_Problem`."""

    def is_fixed(self) -> bool:
        """Whether the bytes are the same wherever the statement stands; known once it was emitted."""
        return False


@dataclass(slots=True)
class _Label(_Statement):
    name: str

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        layout.define(scope, self.name, scope.here)
        return b""


@dataclass(slots=True)
class _Equ(_Statement):
    name: str
    value: _Node

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        value = _evaluate(self.value, scope)
        if value.registers:
            raise _Problem(
                "equ gives a name to a number, not to a register; write the register where it is used"
            )
        if value.weight == 0:
            scope.constants.add(self.name)
        else:
            scope.constants.discard(self.name)
        layout.define(scope, self.name, value.number)
        return b""


def _critical(node: _Node, scope: _Scope, what: str) -> int:
    """A number that may not depend on what follows."""
    scope.critical = what
    try:
        return _evaluate_number(node, scope, what)
    finally:
        scope.critical = ""


def _check_size(count: int, what: str) -> int:
    if count < 0:
        raise _Problem(f"{what} is {count}; it cannot be negative")
    if count > MAX_IMAGE_BYTES:
        raise _Problem(f"{what} is {count}; an image has at most {MAX_IMAGE_BYTES} bytes")
    return count


@dataclass(slots=True)
class _Org(_Statement):
    address: _Node

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        address = _critical(self.address, scope, "org")
        if not 0 <= address <= M64:
            raise _Problem(f"the origin {address:#x} is no 64-bit address; use one from 0 up")
        if layout.size == 0:
            layout.move_origin(scope, address)
            return b""
        if address < scope.here:
            raise _Problem(
                f"org {address:#x} lies before the current address {scope.here:#x}; org only moves forward"
            )
        return bytes(_check_size(address - scope.here, "the gap before org"))


@dataclass(slots=True)
class _Align(_Statement):
    boundary: _Node
    fill: _Node

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        boundary = _critical(self.boundary, scope, "align")
        if boundary <= 0 or boundary & (boundary - 1):
            raise _Problem(f"the alignment {boundary} is no power of two; use 2, 4, 8, 16 ..")
        fill = _fit(_evaluate_number(self.fill, scope, "the fill byte"), IMMEDIATES[K.IMM8])
        return bytes([fill]) * _check_size(-scope.here % boundary, "the gap before align")


@dataclass(slots=True)
class _Reserve(_Statement):
    count: _Node
    width: int

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        count = _check_size(_critical(self.count, scope, "a reserve directive"), "the count")
        return bytes(_check_size(count * self.width, "the reserved size"))


@dataclass(slots=True)
class _Data(_Statement):
    """db, dw, dd, dq, dt: `parts` are finished bytes or expressions of `width` bytes."""

    width: int
    parts: list[bytes | _Node]

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        pieces = []
        bits = self.width * 8
        for part in self.parts:
            if isinstance(part, bytes):
                pieces.append(part)
                continue
            number = _evaluate_number(part, scope, "data")
            if not -(1 << (bits - 1)) <= number < 1 << bits:
                raise _Problem(
                    f"the value {number:#x} does not fit {self.width} byte(s); use a wider directive"
                )
            pieces.append((number & ((1 << bits) - 1)).to_bytes(self.width, "little"))
        return b"".join(pieces)

    def is_fixed(self) -> bool:
        return all(isinstance(part, bytes) or part.is_constant() for part in self.parts)


@dataclass(slots=True)
class _Times(_Statement):
    count: _Node
    body: _Statement

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        count = _critical(self.count, scope, "times")
        _check_size(count, "the count of times")
        start = scope.here
        pieces: list[bytes] = []
        size = 0
        for done in range(count):
            scope.here = start + size
            piece = self.body.emit(scope, layout)
            if self.body.is_fixed():
                _check_size((count - done) * len(piece) + size, "the repeated size")
                pieces.append(piece * (count - done))
                break
            pieces.append(piece)
            size += len(piece)
            _check_size(size, "the repeated size")
        scope.here = start
        return b"".join(pieces)

    def is_fixed(self) -> bool:
        return self.count.is_constant() and self.body.is_fixed()


@dataclass(slots=True)
class _Insn(_Statement):
    """An instruction with its prefixes and the settings of its line."""

    mnemonic: str
    operands: tuple[_Operand, ...]
    prefixes: tuple[str, ...]
    operand_size: int
    place: _Place
    constant: bool  # no symbol and no $ in it
    floor: int = 0
    frozen: bytes | None = None

    def emit(self, scope: _Scope, layout: "_Layout") -> bytes:
        if self.frozen is not None:
            return self.frozen
        here = scope.here
        items = [_resolve(operand, self.place, scope) for operand in self.operands]
        found = list(self.encodings(items, here, layout.encoders))
        best = min(found, key=lambda encoding: len(encoding.code))
        if layout.is_greedy(self, found):
            best = max(found, key=lambda encoding: len(encoding.code))
        elif len(best.code) < self.floor:
            found.extend(self.encodings(items, here, layout.encoders, wide=True))
            longer = [encoding for encoding in found if len(encoding.code) >= self.floor]
            best = min(longer or found, key=lambda encoding: len(encoding.code))
        if self.constant and best.fixed:
            self.frozen = best.code
        elif layout.may_only_grow():
            self.floor = max(self.floor, len(best.code))
        return best.code

    def is_fixed(self) -> bool:
        return self.frozen is not None

    def encodings(
        self, items: list[_Resolved], here: int, encoders: _Encoders, wide: bool = False
    ) -> Iterator[_Encoding]:
        """Every accepted encoding of the first reading of the operands that has any. Raises `_Problem`."""
        first: _Problem | None = None
        found = False
        for mnemonic, variant in _readings(self.mnemonic, items, self.place.bits, self.operand_size):
            try:
                plans = _plans(self.query(mnemonic, variant))
            except _Problem as problem:
                first = first or problem
                continue
            for plan in plans:
                try:
                    yield self.encoding(plan, variant, here, encoders, wide)
                except _Problem as problem:
                    first = first or problem
                else:
                    found = True
            if found:
                return
        raise first or _Problem(f"{self.mnemonic} does not take these operands; look at its forms in the SDM")

    def needed_size(self, items: Sequence[_Resolved]) -> int:
        """The operand size that the values of a 16-bit PUSH or far jump ask for; 0: the mode's own."""
        if self.place.bits != 16 or len(items) != 1 or -0x8000 <= items[0].number <= 0xFFFF:
            return 0
        return 32 if self.mnemonic == "push" or isinstance(self.operands[0], _FarOperand) else 0

    def query(self, mnemonic: str, items: Sequence[_Resolved]) -> _Query:
        """The candidate search for one reading of the line."""
        shapes = tuple(item.shape for item in items)
        operand_size = self.operand_size or self.needed_size(items)
        address_size = self.place.address_size
        alias = _aliases()[0].get(mnemonic)
        if alias is not None:
            operand_size = operand_size or alias.operand_size
            address_size = address_size or alias.address_size
        return _Query(mnemonic, shapes, self.place.bits, operand_size, address_size)

    def encoding(
        self, plan: _Plan, items: Sequence[_Resolved], here: int, encoders: _Encoders, wide: bool
    ) -> _Encoding:
        """One candidate as bytes. Raises `_Problem`."""
        instruction = _build(plan, items, self.place, here, wide)
        _prefixed(instruction, plan, self.prefixes, self.mnemonic)
        code = encoders.encode(instruction, self.place.bits, here)
        relative = next(
            (item.address for item in items if item.address and item.address.base in RIP_BASES), None
        )
        if relative is not None and relative.from_next:
            # The displacement is given, so the target depends on the length, which is known only now.
            width = (1 << relative.bits) - 1
            instruction.memory_displacement = (here + len(code) + relative.displacement) & width
            code = encoders.encode(instruction, self.place.bits, here)
        fixed = not (relative is not None and not relative.from_next) and BRANCHES.keys().isdisjoint(
            plan.kinds
        )
        return _Encoding(code, fixed)


RIP_BASES: Final = frozenset({Register.RIP, Register.EIP})
LOOPS: Final = frozenset({"loop", "loope", "loopz", "loopne", "loopnz"})
COUNTERS: Final[Mapping[str, str]] = {"cx": "w", "ecx": "d", "rcx": "q"}
IMPLICIT_XMM0: Final = frozenset({"blendvps", "blendvpd", "pblendvb", "sha256rnds2"})


def _constant_item(number: int) -> _Resolved:
    return _Resolved(_Shape(_number_kinds(0, "")), number=number)


def _register_item(name: str) -> _Resolved:
    entry = _registers()[0][name]
    return _Resolved(_Shape(entry.kinds, name=entry.name), register=entry.id)


def _reads_selector(mnemonic: str, items: Sequence[_Resolved]) -> bool:
    """Whether the last operand is a 16-bit register whose upper part the instruction ignores."""
    if not items or K.R16_REG not in items[-1].shape.kinds:
        return False
    if mnemonic == "mov":
        return len(items) == 2 and K.SEG_REG in items[0].shape.kinds
    return mnemonic in READS_SELECTOR


def _widened(item: _Resolved, width: int) -> _Resolved:
    """A 16-bit register as the 32- or 64-bit one it is part of; everything else as it is."""
    if K.R16_REG not in item.shape.kinds:
        return item
    register = item.register
    wide = RegisterExt.full_register(register) if width == 64 else RegisterExt.full_register32(register)
    return _register_item(_registers()[1][wide].name)


def _readings(
    mnemonic: str, items: list[_Resolved], bits: int, operand_size: int
) -> Iterator[tuple[str, Sequence[_Resolved]]]:
    """The ways to read a line: as written, then with what custom lets one leave out, add or turn round."""
    pseudo = _aliases()[1].get(mnemonic)
    if pseudo is not None:
        yield pseudo.mnemonic, [*items, _constant_item(pseudo.immediate)]
        return
    names = [item.shape.name for item in items]
    width = operand_size or (16 if bits == 16 else 32)
    if width != 16 and _reads_selector(mnemonic, items):
        yield mnemonic, [_widened(item, width) for item in items]
    if mnemonic == "xchg" and bits == 64 and names == ["eax", "eax"]:
        # 90 is NOP and leaves the upper half of RAX alone; XCHG EAX, EAX clears it.
        yield mnemonic, [items[0], _Resolved(_Shape(frozenset({K.R32_REG})), register=items[1].register)]
        return
    if not items and mnemonic in POPS_AFTER:
        yield POPS_AFTER[mnemonic], [_register_item("st1"), _register_item("st0")]
        return
    if mnemonic == "xchg" and names and names[0] in ("ax", "eax", "rax"):
        yield mnemonic, items[::-1]  # the one-byte forms name the accumulator last
    yield mnemonic, items
    if mnemonic in ("xchg", "test") and len(items) == 2:
        yield mnemonic, items[::-1]
    elif mnemonic == "imul" and len(items) == 2:
        yield mnemonic, [items[0], *items]
    elif mnemonic in ("aam", "aad") and not items:
        yield mnemonic, [_constant_item(10)]
    elif mnemonic in LOOPS and len(items) == 2 and names[1] in COUNTERS:
        base = {"loopz": "loope", "loopnz": "loopne"}.get(mnemonic, mnemonic)
        yield base + COUNTERS[names[1]], items[:1]
    elif mnemonic in IMPLICIT_XMM0 and len(items) == 3 and names[2] == "xmm0":
        yield mnemonic, items[:2]
    elif mnemonic.startswith("f"):
        top = _register_item("st0")
        if not items:
            below = _register_item("st1")
            yield from ((mnemonic, other) for other in ([below, top], [top, below], [below]))
        elif len(items) == 1:
            yield mnemonic, [top, *items]
            yield mnemonic, [*items, top]
        elif len(items) == 2 and names[0] == "st0":
            yield mnemonic, items[1:]
        elif len(items) == 2 and names[1] == "st0":
            yield mnemonic, items[:1]


# ------------------------------------------------------------------------------------------------------------
# Programs
# ------------------------------------------------------------------------------------------------------------


class _Layout:
    """The state of laying a program out: pass number, size so far, where labels were defined."""

    __slots__ = ("encoders", "number", "origin", "size")

    def __init__(self, origin: int) -> None:
        self.encoders = _Encoders()
        self.number = 0
        self.origin = origin
        self.size = 0

    def may_only_grow(self) -> bool:
        return self.number > FREE_PASSES

    def is_greedy(self, statement: _Insn, found: list[_Encoding]) -> bool:
        """Whether this instruction still changes so late that it must take its longest form."""
        shortest = min(len(encoding.code) for encoding in found)
        return self.number > LAST_CAREFUL_PASS and not statement.constant and shortest != statement.floor

    def define(self, scope: _Scope, name: str, value: int) -> None:
        scope.symbols[name] = value
        scope.seen.add(name)

    def move_origin(self, scope: _Scope, address: int) -> None:
        self.origin = address
        scope.start = address
        scope.here = address


class _Line(NamedTuple):
    """A source line with its statements."""

    number: int
    text: str
    statements: list[_Statement]


class _Program:
    """Parses a text once, then lays it out until it settles."""

    __slots__ = ("bits", "default_relative", "defined_at", "lines", "outer")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.default_relative = False
        self.outer = ""
        self.defined_at: dict[str, int] = {}
        self.lines: list[_Line] = []

    # -- parsing

    def parse(self, text: str) -> None:
        """Read every line. Raises `AssemblerError`."""
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                statements = self.parse_line(number, line)
            except _Problem as problem:
                raise AssemblerError(number, line, str(problem)) from None
            if statements:
                self.lines.append(_Line(number, line.rstrip(), statements))

    def parse_line(self, number: int, line: str) -> list[_Statement]:
        """The statements of one line: labels, then at most one directive or instruction."""
        tokens = _tokens(line)
        if len(tokens) > 2 and tokens[0].text == "[" and tokens[1].text.lower() in DIRECTIVES | LINKER_WORDS:
            if tokens[-1].text != "]":
                raise _Problem("the directive in brackets has no closing ']'; add it")
            tokens = tokens[1:-1]
        reader = _Reader(tokens, self.outer)
        statements: list[_Statement] = []
        while reader.peek().kind == "name" and reader.peek(1).text == ":" and reader.peek(1).kind == "sign":
            statements.append(self.label(reader, number))
            reader.position += 1
        if reader.peek().kind == "name" and self.names_data(reader):
            if reader.word(1) == "equ":
                name = self.define_name(reader, number)
                reader.position += 1
                statements.append(_Equ(number, name, reader.expression()))
                reader.expect_end()
                return statements
            statements.append(self.label(reader, number))
        if not reader.at_end():
            statement = self.statement(reader, number)
            reader.expect_end()
            if statement is not None:
                statements.append(statement)
        return statements

    def names_data(self, reader: _Reader) -> bool:
        """Whether the word here is a name before a data directive or equ, as in `msg db "hello"`."""
        following = reader.word(1)
        if (
            following not in DATA_WIDTHS
            and following not in RESERVE_WIDTHS
            and following not in ("equ", "times")
        ):
            return False
        return reader.word() not in DIRECTIVES and reader.word() not in REPEATS

    def define_name(self, reader: _Reader, number: int) -> str:
        """Take a name that this line defines. Raises `_Problem` if it is taken."""
        word = reader.take().text
        if word.lower() in _registers()[0] or word.lower() in SIZES:
            raise _Problem(f"{word} is a register or keyword and cannot be a label; choose another name")
        name = reader.full_name(word)
        if name in self.defined_at:
            raise _Problem(f"{name} is already defined in line {self.defined_at[name]}; choose another name")
        self.defined_at[name] = number
        return name

    def label(self, reader: _Reader, number: int) -> _Label:
        name = self.define_name(reader, number)
        if "." not in name:
            self.outer = name
            reader.outer = name
        return _Label(number, name)

    def statement(self, reader: _Reader, number: int) -> _Statement | None:
        """One directive or instruction; None for a setting."""
        word = reader.word()
        if not word:
            raise _Problem(
                f"a line starts with a label, directive or instruction, not with {reader.peek().text!r}"
            )
        if word in DATA_WIDTHS:
            reader.take()
            return self.data(reader, number, DATA_WIDTHS[word])
        if word in RESERVE_WIDTHS:
            reader.take()
            return _Reserve(number, reader.expression(), RESERVE_WIDTHS[word])
        if word in MODE_WORDS:
            reader.take()
            self.bits = MODE_WORDS[word]
            return None
        if word in LINKER_WORDS:
            raise _Problem(f"{word} needs a linker, and this assembler makes one flat image; remove the line")
        if word in DIRECTIVES:
            reader.take()
            return self.directive(word, reader, number)
        return self.instruction(reader, number)

    def directive(self, word: str, reader: _Reader, number: int) -> _Statement | None:
        """bits, default, org, align, times."""
        match word:
            case "bits":
                node = reader.expression()
                if node.op != "value" or node.value.number not in (16, 32, 64):
                    raise _Problem("bits takes 16, 32 or 64; write one of them")
                self.bits = node.value.number
                return None
            case "default":
                choice = reader.take().text.lower()
                if choice not in ("rel", "abs"):
                    raise _Problem("default takes rel or abs; write one of them")
                self.default_relative = choice == "rel"
                return None
            case "org":
                return _Org(number, reader.expression())
            case "times":
                count = reader.expression()
                if reader.at_end():
                    raise _Problem("times repeats an instruction or data directive, and none follows; add it")
                body = self.statement(reader, number)
                if body is None or isinstance(body, _Org | _Times | _Align):
                    raise _Problem("times repeats instructions and data only; put this on its own line")
                return _Times(number, count, body)
            case "equ":
                raise _Problem("equ needs a name before it; write `name equ value`")
        boundary = reader.expression()
        fill = _Node("value", _Value(0 if word == "alignb" else 0x90))
        if reader.accept(","):
            if reader.accept_word("nop"):
                return _Align(number, boundary, fill)
            reader.accept_word("db")
            fill = reader.expression()
        return _Align(number, boundary, fill)

    def data(self, reader: _Reader, number: int, width: int) -> _Data:
        """The list after db, dw, dd, dq or dt."""
        parts: list[bytes | _Node] = []
        while True:
            token = reader.peek()
            after = reader.peek(1)
            alone = after.kind == "end" or after.text == ","
            negative = token.text == "-" and token.kind == "sign" and after.kind == "float"
            if token.kind == "string" and alone:
                raw = _string_bytes(reader.take().text)
                parts.append(raw + bytes(-len(raw) % width))
            elif token.kind == "float" or negative:
                sign = -1.0 if negative else 1.0
                reader.position += negative
                parts.append(_float_bytes(reader.take().text, sign, width))
            else:
                parts.append(reader.expression())
            if not reader.accept(","):
                return _Data(number, width, parts)

    def instruction(self, reader: _Reader, number: int) -> _Insn:
        """Prefixes, mnemonic and operands."""
        prefixes: list[str] = []
        operand_size = 0
        address_size = 0
        while True:
            word = reader.word()
            if word in OPERAND_SIZE_PREFIXES:
                operand_size = OPERAND_SIZE_PREFIXES[word]
            elif word in ADDRESS_SIZE_PREFIXES:
                address_size = ADDRESS_SIZE_PREFIXES[word]
            elif word in REPEATS or word in SEGMENT_PREFIXES:
                prefixes.append(word)
            else:
                break
            reader.position += 1
        if not word:
            raise _Problem("an instruction must follow the prefix on the same line; for a bare prefix use db")
        reader.take()
        if word == "ret" and reader.accept_word("far"):  # as Intel's own tools write RETF
            word = "retf"
        operands: list[_Operand] = []
        reverse = word.startswith("f") and reader.accept_word("to")  # NASM: fadd to st1
        if not reader.at_end():
            operands.append(reader.operand())
            while reader.accept(","):
                operands.append(reader.operand())
        if reverse:
            operands.append(_RegisterOperand(_registers()[0]["st0"]))
        place = _Place(self.bits, self.default_relative, address_size)
        if word == "push":
            operand_size = operand_size or _push_size(operands, self.bits)
        constant = all(_is_constant(operand) for operand in operands)
        _candidate_codes(
            _aliases()[1].get(word, _PseudoOp(word, 0)).mnemonic
        )  # an unknown name is an error at once
        return _Insn(number, word, tuple(operands), tuple(prefixes), operand_size, place, constant)

    # -- layout

    def lay_out(self, origin: int, symbols: Mapping[str, int]) -> Assembled:
        """Repeat the layout until no name moves. Raises `AssemblerError`."""
        for name in symbols:
            if name.lower() in _registers()[0]:
                raise AssemblerError(0, "", f"the name {name} in symbols is a register; choose another name")
            if name in self.defined_at:
                line = self.line_at(self.defined_at[name])
                reason = f"{name} is also passed in symbols; choose another name"
                raise AssemblerError(line.number, line.text, reason)
        layout = _Layout(origin)
        known = {*self.defined_at, *symbols}
        scope = _Scope(dict(symbols), set(), known, set())
        before: dict[str, int] = {}
        while True:
            layout.number += 1
            layout.origin = origin
            rows = self.one_pass(layout, scope, symbols)
            if scope.symbols == before:
                break
            if layout.number >= MAX_PASSES:
                name = next(name for name in scope.symbols if scope.symbols[name] != before.get(name))
                line = self.line_at(self.defined_at[name])
                reason = (
                    f"the value of {name} never settles; it depends on itself, so define it by earlier names"
                )
                raise AssemblerError(line.number, line.text, reason)
            before = dict(scope.symbols)
        constants = {
            name for line in self.lines for s in line.statements if isinstance(s, _Equ) for name in [s.name]
        }
        labels = {name: scope.symbols[name] for name in self.defined_at if name not in constants}
        return Assembled(b"".join(row.code for row in rows), layout.origin, labels, rows)

    def one_pass(self, layout: _Layout, scope: _Scope, symbols: Mapping[str, int]) -> list[ListingLine]:
        """Emit every statement at its address. Raises `AssemblerError`."""
        layout.size = 0
        scope.seen = set(symbols)
        scope.here = scope.start = layout.origin
        rows: list[ListingLine] = []
        for line in self.lines:
            address = scope.here
            pieces: list[bytes] = []
            for statement in line.statements:
                try:
                    piece = statement.emit(scope, layout)
                    layout.size = _check_size(layout.size + len(piece), "the size of the image")
                except _Problem as problem:
                    raise AssemblerError(line.number, line.text, str(problem)) from None
                scope.here += len(piece)
                pieces.append(piece)
            if layout.size == 0:
                address = scope.here  # org moved the origin
            rows.append(ListingLine(address, b"".join(pieces), line.number, line.text))
        return rows

    def line_at(self, number: int) -> _Line:
        return next(line for line in self.lines if line.number == number)


def _push_size(operands: list[_Operand], bits: int) -> int:
    """Read a size word on PUSH's immediate as the size of the push (bits, 0: none): `push word 5`."""
    if len(operands) != 1 or not isinstance(operands[0], _NumberOperand):
        return 0
    number = operands[0]
    if number.size not in (2, 4, 8):
        return 0
    operands[0] = _NumberOperand(number.value)
    # 64-bit mode has no 32-bit push: dword names the immediate, which is sign-extended.
    return 64 if bits == 64 and number.size == 4 else number.size * 8


def _is_constant(operand: _Operand) -> bool:
    match operand:
        case _RegisterOperand():
            return True
        case _MemoryOperand():
            return operand.address.is_constant()
        case _NumberOperand():
            return operand.value.is_constant()
        case _FarOperand():
            return operand.selector.is_constant() and operand.offset.is_constant()


def _float_bytes(text: str, sign: float, width: int) -> bytes:
    """A fraction as single (4), double (8) or x87 extended (10 bytes) precision. Raises `_Problem`."""
    number = sign * float(text.replace("_", ""))
    try:
        match width:
            case 4:
                return struct.pack("<f", number)
            case 8:
                return struct.pack("<d", number)
            case 10:
                return _extended_bytes(number)
    except OverflowError:
        pass
    if width in (4, 8, 10):
        raise _Problem(f"the fraction {text} is too large for {width} bytes; use a wider directive")
    raise _Problem(f"a fraction has 4, 8 or 10 bytes, not {width}; use dd, dq or dt")


def _extended_bytes(number: float) -> bytes:
    """Double extended precision, SDM Volume 1, "Floating-Point Data Types": 64-bit significand."""
    sign = 0x8000 if math.copysign(1.0, number) < 0 else 0
    if number == 0:
        return struct.pack("<QH", 0, sign)
    if math.isinf(number):
        raise OverflowError
    fraction, exponent = math.frexp(abs(number))
    return struct.pack("<QH", int(math.ldexp(fraction, 64)), sign | (exponent - 1 + 16383))


def assemble_program(
    text: str, *, bits: int = 64, origin: int = 0, symbols: Mapping[str, int] | None = None
) -> Assembled:
    """Assemble a text into a flat image with labels and a listing.

    `bits` is the mode the text starts in (16, 32 or 64), `origin` the address of its first byte unless `org`
    says otherwise, `symbols` names and values the text may use. The same text gives the same bytes, always.
    Raises `AssemblerError`.
    """
    if bits not in (16, 32, 64):
        raise AssemblerError(0, "", f"assemble was called with bits={bits!r}; use 16, 32 or 64")
    if not 0 <= origin <= M64:
        raise AssemblerError(0, "", f"assemble was called with origin={origin:#x}; use a 64-bit address")
    program = _Program(bits)
    program.parse(text)
    return program.lay_out(origin, symbols or {})


def assemble(
    text: str, *, bits: int = 64, origin: int = 0, symbols: Mapping[str, int] | None = None
) -> bytes:
    """The bytes of a text; arguments and errors as in `assemble_program`."""
    return assemble_program(text, bits=bits, origin=origin, symbols=symbols).code
