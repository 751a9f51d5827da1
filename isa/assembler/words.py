"""The vocabulary that is not an instruction: sizes, directives, prefixes and segments.

Not the mnemonics, which come from iced's tables (`mnemonics.py`), nor the registers (`kinds.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from iced_x86 import Register

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import Register as RegisterId

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
