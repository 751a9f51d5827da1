"""The registers, and the operand kinds of iced's tables that a register, number or address can serve as.

Not a choice among them: an operand is described by all its kinds, and `forms.py` looks which an opcode wants.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from iced_x86 import Formatter, FormatterSyntax, OpCodeOperandKind, OpKind, Register, RegisterExt

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import OpKind as OpKindId
    from iced_x86._iced_x86_py import Register as RegisterId

K = OpCodeOperandKind


class RegisterEntry(NamedTuple):
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
def registers() -> tuple[Mapping[str, RegisterEntry], Mapping[int, RegisterEntry]]:
    """Registers by lower-case name and by iced's number."""
    by_name: dict[str, RegisterEntry] = {}
    by_id: dict[int, RegisterEntry] = {}
    formatter = Formatter(FormatterSyntax.NASM)
    for spelling, register in vars(Register).items():
        if not spelling.isupper() or register == Register.NONE or spelling == "DONTUSE0":
            continue
        kinds = _register_kinds(register)
        if kinds is None:
            continue
        name = formatter.format_register(register)
        entry = RegisterEntry(register, name, RegisterExt.size(register) * 8, kinds)
        by_id[register] = entry
        by_name[name] = entry
        by_name[spelling.lower()] = entry
    by_name["st"] = by_name["st0"]
    return by_name, by_id


class Limit(NamedTuple):
    """An immediate kind: iced's OpKind, width in bits, and the width it is sign-extended to (0: not)."""

    op_kind: OpKindId
    bits: int
    extended: int


IMMEDIATES: Final[Mapping[int, Limit]] = {
    K.IMM8: Limit(OpKind.IMMEDIATE8, 8, 0),
    K.IMM4_M2Z: Limit(OpKind.IMMEDIATE8, 4, 0),
    K.IMM8_CONST_1: Limit(OpKind.IMMEDIATE8, 1, 0),
    K.IMM16: Limit(OpKind.IMMEDIATE16, 16, 0),
    K.IMM32: Limit(OpKind.IMMEDIATE32, 32, 0),
    K.IMM64: Limit(OpKind.IMMEDIATE64, 64, 0),
    K.IMM8SEX16: Limit(OpKind.IMMEDIATE8TO16, 8, 16),
    K.IMM8SEX32: Limit(OpKind.IMMEDIATE8TO32, 8, 32),
    K.IMM8SEX64: Limit(OpKind.IMMEDIATE8TO64, 8, 64),
    K.IMM32SEX64: Limit(OpKind.IMMEDIATE32TO64, 32, 64),
}

IMMEDIATE_KINDS_OF_SIZE: Final[Mapping[int, frozenset[int]]] = {
    0: frozenset(IMMEDIATES),
    1: frozenset({K.IMM8, K.IMM8_CONST_1, K.IMM4_M2Z, K.IMM8SEX16, K.IMM8SEX32, K.IMM8SEX64}),
    2: frozenset({K.IMM16}),
    4: frozenset({K.IMM32, K.IMM32SEX64}),
    8: frozenset({K.IMM64}),
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
