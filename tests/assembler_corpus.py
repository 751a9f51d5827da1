"""Cases for the assembler's round trip: every opcode of iced's legacy and VEX tables and its text.

Not a test: `tests/isa/assembler/test_round_trip.py` runs a seeded sample of it. As a command it counts what
comes back:

    python -m tests.assembler_corpus --per-code 4

A case is an instruction that iced encoded and decoded again, and the text one of iced's formatters gives it.
The assembler must turn the text back into an instruction that means the same: the same text in every syntax,
the same operand size, the same stack movement, and in no more bytes.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from iced_x86 import (
    Code,
    Decoder,
    Encoder,
    EncodingKind,
    Formatter,
    FormatterSyntax,
    Instruction,
    MemorySizeOptions,
    OpCodeInfo,
    OpCodeOperandKind,
    OpKind,
    Register,
    RegisterExt,
)

from isa.assembler import AssemblerError, assemble

if TYPE_CHECKING:
    from iced_x86._iced_x86_py import Code as CodeId
    from iced_x86._iced_x86_py import DecoderOptions as DecoderOptionsId
    from iced_x86._iced_x86_py import OpKind as OpKindId
    from iced_x86._iced_x86_py import Register as RegisterId
else:
    CodeId = DecoderOptionsId = OpKindId = RegisterId = int

K = OpCodeOperandKind
M64 = (1 << 64) - 1
ADDRESS = 0x7000
"""Where every case stands: branches of any width reach both ways, and 16-bit code can hold it."""

SYNTAXES = {
    "nasm": FormatterSyntax.NASM,
    "masm": FormatterSyntax.MASM,
    "intel": FormatterSyntax.INTEL,
}

NOT_CURRENT = (
    *("CCS_", "MONTMUL_", "VIA_", "XCRYPT", "XSHA", "XSTORE"),  # VIA's PadLock
    *("RESERVEDNOP_", "PREFETCHRESERVED"),  # opcodes whose only text is that of NOP and PREFETCH
)
"""Starts of the names of opcodes that decode by default and yet have no place in the SDM."""

UNCLEAR = {
    "nasm": (
        *("XBEGIN_REL16", "GETSECQ"),  # the operand size is not shown, or by a prefix that has no such form
        *("CALL_M1664", "JMP_M1664"),  # "call far [m]" is the 32-bit form here, as without prefix in hardware
    ),
    "masm": (
        *("XBEGIN_REL16", "CALL_M1616", "JMP_M1616"),  # "call dword ptr [m]" is near here
        *("IRETW", "PUSHFW", "POPFW", "PUSHAW", "POPAW"),  # MASM names the 16-bit forms without a suffix
    ),
    "intel": (
        *("IRETW", "PUSHFW", "POPFW", "PUSHAW", "POPAW"),
        *("CALL_PTR", "JMP_PTR", "CALL_M1616", "JMP_M1616"),  # "call far offset,selector"
        *("PREFETCH", "MASKMOV", "VEX_VMASKMOVDQU"),  # "prefetch_exclusive", "maskmovq mm0,mm1,fs"
    ),
}
"""Opcodes (starts of names) whose text in a syntax is ambiguous or that syntax's own invention."""


class Case(NamedTuple):
    """One instruction in one mode, and its text in one syntax."""

    code_name: str
    bits: int
    syntax: str
    text: str
    instruction: Instruction
    options: DecoderOptionsId


def is_current(name: str, code: CodeId) -> bool:
    """Whether iced decodes an opcode without a special option, and it is in the manuals."""
    return not OpCodeInfo(code).decoder_option and not name.startswith(NOT_CURRENT)


def code_names() -> dict[str, CodeId]:
    """Every opcode of the legacy and VEX tables by iced's name, in iced's order."""
    codes = [(code, name) for name, code in vars(Code).items() if name.isupper()]
    return {
        name: code
        for code, name in sorted(codes)
        if OpCodeInfo(code).is_instruction
        and OpCodeInfo(code).encoding in (EncodingKind.LEGACY, EncodingKind.VEX)
    }


# ------------------------------------------------------------------------------------------------------------
# Instructions with random operands
# ------------------------------------------------------------------------------------------------------------

FIXED: dict[int, RegisterId] = {
    K.ES: Register.ES,
    K.CS: Register.CS,
    K.SS: Register.SS,
    K.DS: Register.DS,
    K.FS: Register.FS,
    K.GS: Register.GS,
    K.AL: Register.AL,
    K.CL: Register.CL,
    K.AX: Register.AX,
    K.DX: Register.DX,
    K.EAX: Register.EAX,
    K.RAX: Register.RAX,
    K.ST0: Register.ST0,
}
BANKS: dict[RegisterId, tuple[int, ...]] = {
    Register.AL: (K.R8_OR_MEM, K.R8_REG, K.R8_OPCODE),
    Register.AX: (K.R16_OR_MEM, K.R16_REG, K.R16_REG_MEM, K.R16_RM, K.R16_OPCODE),
    Register.EAX: (
        K.R32_OR_MEM,
        K.R32_OR_MEM_MPX,
        K.R32_REG,
        K.R32_REG_MEM,
        K.R32_RM,
        K.R32_OPCODE,
        K.R32_VVVV,
    ),
    Register.RAX: (
        K.R64_OR_MEM,
        K.R64_OR_MEM_MPX,
        K.R64_REG,
        K.R64_REG_MEM,
        K.R64_RM,
        K.R64_OPCODE,
        K.R64_VVVV,
    ),
    Register.ES: (K.SEG_REG,),
    Register.K0: (K.K_OR_MEM, K.K_REG, K.KP1_REG, K.K_RM, K.K_VVVV),
    Register.MM0: (K.MM_OR_MEM, K.MM_REG, K.MM_RM),
    Register.XMM0: (K.XMM_OR_MEM, K.XMM_REG, K.XMM_RM, K.XMM_VVVV, K.XMMP3_VVVV, K.XMM_IS4, K.XMM_IS5),
    Register.YMM0: (K.YMM_OR_MEM, K.YMM_REG, K.YMM_RM, K.YMM_VVVV, K.YMM_IS4, K.YMM_IS5),
    Register.CR0: (K.CR_REG,),
    Register.DR0: (K.DR_REG,),
    Register.TR0: (K.TR_REG,),
    Register.BND0: (K.BND_OR_MEM_MPX, K.BND_REG),
    Register.ST0: (K.STI_OPCODE,),
    Register.TMM0: (K.TMM_REG, K.TMM_RM, K.TMM_VVVV),
}
FIRST_REGISTER: dict[int, RegisterId] = {kind: first for first, kinds in BANKS.items() for kind in kinds}
BANK_SIZES = {Register.ES: 6, Register.BND0: 4}
SMALL_BANKS = (Register.K0, Register.MM0, Register.TR0, Register.ST0, Register.TMM0)
OR_MEMORY = {
    *(K.R8_OR_MEM, K.R16_OR_MEM, K.R32_OR_MEM, K.R64_OR_MEM, K.R32_OR_MEM_MPX, K.R64_OR_MEM_MPX),
    *(K.MM_OR_MEM, K.XMM_OR_MEM, K.YMM_OR_MEM, K.K_OR_MEM, K.BND_OR_MEM_MPX),
}
VSIB: dict[int, RegisterId] = {
    K.MEM_VSIB32X: Register.XMM0,
    K.MEM_VSIB64X: Register.XMM0,
    K.MEM_VSIB32Y: Register.YMM0,
    K.MEM_VSIB64Y: Register.YMM0,
}
PURE_MEMORY = {K.MEM, K.MEM_MPX, K.MEM_MIB, K.SIBMEM, K.MEM_OFFS, *VSIB}
STRING_OP_KINDS: dict[int, dict[int, OpKindId]] = {
    K.SEG_RSI: {16: OpKind.MEMORY_SEG_SI, 32: OpKind.MEMORY_SEG_ESI, 64: OpKind.MEMORY_SEG_RSI},
    K.SEG_RDI: {16: OpKind.MEMORY_SEG_DI, 32: OpKind.MEMORY_SEG_EDI, 64: OpKind.MEMORY_SEG_RDI},
    K.ES_RDI: {16: OpKind.MEMORY_ESDI, 32: OpKind.MEMORY_ESEDI, 64: OpKind.MEMORY_ESRDI},
}
IMMEDIATE_OP_KINDS: dict[int, OpKindId] = {
    K.IMM8: OpKind.IMMEDIATE8,
    K.IMM4_M2Z: OpKind.IMMEDIATE8,
    K.IMM8_CONST_1: OpKind.IMMEDIATE8,
    K.IMM8SEX16: OpKind.IMMEDIATE8TO16,
    K.IMM8SEX32: OpKind.IMMEDIATE8TO32,
    K.IMM8SEX64: OpKind.IMMEDIATE8TO64,
    K.IMM16: OpKind.IMMEDIATE16,
    K.IMM32: OpKind.IMMEDIATE32,
    K.IMM32SEX64: OpKind.IMMEDIATE32TO64,
    K.IMM64: OpKind.IMMEDIATE64,
}
BRANCH_WIDTHS: dict[int, int] = {
    **{K.BR16_1: 16, K.BR16_2: 16, K.BRDISP_2: 16},
    **{K.BR32_1: 32, K.BR32_4: 32, K.BRDISP_4: 32},
    **{K.BR64_1: 64, K.BR64_4: 64},
}
DISPLACEMENTS = (0, 1, -1, 8, 127, -128, 128, -129, 0x1234, -0x1235)


def random_register(kind: int, bits: int, rng: random.Random) -> RegisterId:
    """A register that serves as `kind`; of the x87 stack not ST(0), where two opcodes are equal."""
    first = FIRST_REGISTER[kind]
    if first == Register.ST0:
        return register_number(first + rng.randrange(1, 8))
    count = BANK_SIZES.get(first, 8 if first in SMALL_BANKS or bits != 64 else 16)
    if first == Register.AL and bits == 64:
        count = 20  # AL..BH, SPL..DIL, R8B..R15B
    return register_number(first + rng.randrange(count))


REGISTERS: dict[int, RegisterId] = {value: value for name, value in vars(Register).items() if name.isupper()}


def register_number(number: int) -> RegisterId:
    """iced's register of this number, typed."""
    return REGISTERS[number]


def set_memory(instruction: Instruction, kind: int, bits: int, address_bits: int, rng: random.Random) -> None:
    """A random address that `kind` allows."""
    if address_bits == 16:
        base, index = rng.choice(
            [
                *((Register.BX, Register.SI), (Register.BX, Register.DI), (Register.BP, Register.SI)),
                *((Register.BP, Register.DI), (Register.SI, Register.NONE), (Register.BX, Register.NONE)),
                *((Register.BP, Register.NONE), (Register.NONE, Register.NONE)),
            ]
        )
        instruction.memory_base = base
        instruction.memory_index = index
    else:
        first = Register.RAX if address_bits == 64 else Register.EAX
        count = 16 if bits == 64 else 8
        if kind in (K.SIBMEM, K.MEM_MIB) or rng.random() < 0.85:
            instruction.memory_base = register_number(first + rng.randrange(count))
        if kind in VSIB:
            instruction.memory_index = register_number(VSIB[kind] + rng.randrange(count))
        elif kind == K.SIBMEM or rng.random() < 0.5:
            index = register_number(first + rng.choice([n for n in range(count) if n != 4]))
            instruction.memory_index = index
        if instruction.memory_index != Register.NONE and kind != K.MEM_MIB:
            # [rax*1] is a longer way to write [rax], so an index alone has another scale.
            alone = instruction.memory_base == Register.NONE and kind not in VSIB
            instruction.memory_index_scale = rng.choice((2, 4, 8) if alone else (1, 2, 4, 8))
        plain = instruction.memory_base == Register.NONE and instruction.memory_index == Register.NONE
        if plain and bits == 64 and kind not in (K.MEM_MPX, K.MEM_MIB) and rng.random() < 0.5:
            instruction.memory_base = Register.RIP if address_bits == 64 else Register.EIP
    displacement = rng.choice(DISPLACEMENTS)
    plain = instruction.memory_base in (Register.NONE, Register.RIP, Register.EIP)
    if plain and instruction.memory_index == Register.NONE:
        displacement = rng.choice((0x1234, 0x7FFC))
        if instruction.memory_base == Register.NONE:
            address_bits = bits  # no syntax shows another address size of a bare number
    instruction.memory_displacement = displacement & ((1 << address_bits) - 1)
    wide = plain or not -128 <= displacement <= 127
    instruction.memory_displ_size = address_bits // 8 if wide else int(displacement != 0)
    if rng.random() < 0.2 and kind not in (K.MEM_MPX, K.MEM_MIB):
        instruction.segment_prefix = rng.choice((Register.FS, Register.GS))


def random_immediate(kind: int, rng: random.Random) -> int:
    """An immediate of the kind, as the 64-bit pattern that iced sign-extends."""
    match kind:
        case K.IMM8_CONST_1:
            return 1
        case K.IMM4_M2Z:
            return rng.randrange(16)
        case K.IMM8:
            return rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        case K.IMM16:
            return rng.choice((0x80, 0x1234, 0x8000, 0xFF7F))
        case K.IMM8SEX16 | K.IMM8SEX32 | K.IMM8SEX64:
            return rng.choice((0, 1, 0x7F, -0x80, -1))
        case K.IMM32:
            return rng.choice((0x80, 0x12345678, 0x80000000, 0xFFFFFF7F))
        case K.IMM32SEX64:
            return rng.choice((0x80, 0x12345678, -0x80000000, -0x81))
    return rng.choice((0x1_0000_0000, 0x1122334455667788, 1 << 63))


def set_immediate(instruction: Instruction, operand: int, kind: int, rng: random.Random) -> None:
    """Store a random immediate; a second one goes to the second field."""
    value = random_immediate(kind, rng)
    if operand and instruction.op_kind(operand - 1) in (OpKind.IMMEDIATE8, OpKind.IMMEDIATE16):
        instruction.set_op_kind(operand, OpKind.IMMEDIATE8_2ND)
        instruction.immediate8_2nd = value
        return
    instruction.set_op_kind(operand, IMMEDIATE_OP_KINDS[kind])
    if value < 0:
        instruction.set_immediate_i64(operand, value)
    else:
        instruction.set_immediate_u64(operand, value)


def set_operand(instruction: Instruction, operand: int, kind: int, bits: int, rng: random.Random) -> None:
    """Give one operand a random value of its kind."""
    address_bits = bits if rng.random() < 0.75 else {16: 32, 32: 16, 64: 32}[bits]
    if kind in OR_MEMORY and rng.random() < 0.5:
        kind = K.MEM_MPX if kind in (K.R32_OR_MEM_MPX, K.R64_OR_MEM_MPX, K.BND_OR_MEM_MPX) else K.MEM
    if kind in (K.MEM_MPX, K.MEM_MIB):
        address_bits = max(bits, 32)
    if kind in (K.SIBMEM, *VSIB):
        address_bits = max(address_bits, 32)
    if kind == K.MEM_OFFS:
        instruction.set_op_kind(operand, OpKind.MEMORY)
        instruction.memory_displacement = 0x1234 if bits == 16 else 0x1122_3344_5566_7788 & ((1 << bits) - 1)
        instruction.memory_displ_size = bits // 8
    elif kind in PURE_MEMORY:
        instruction.set_op_kind(operand, OpKind.MEMORY)
        set_memory(instruction, kind, bits, address_bits, rng)
    elif kind in STRING_OP_KINDS:
        earlier = instruction.op_kind(0)
        widths = STRING_OP_KINDS[K.ES_RDI]
        if operand and earlier in widths.values():  # MOVS: both addresses have one width
            address_bits = next(width for width, op_kind in widths.items() if op_kind == earlier)
        instruction.set_op_kind(operand, STRING_OP_KINDS[kind][address_bits])
        if kind != K.ES_RDI and rng.random() < 0.3:
            instruction.segment_prefix = Register.FS
    elif kind == K.SEG_RBX_AL:
        instruction.set_op_kind(operand, OpKind.MEMORY)
        bases = {16: Register.BX, 32: Register.EBX, 64: Register.RBX}
        instruction.memory_base = bases[address_bits]
        instruction.memory_index = Register.AL
    elif kind in IMMEDIATE_OP_KINDS:
        set_immediate(instruction, operand, kind, rng)
    elif kind in BRANCH_WIDTHS or kind in (K.XBEGIN_2, K.XBEGIN_4):
        width = BRANCH_WIDTHS.get(kind, max(bits, 32))
        short = kind in (K.BR16_1, K.BR32_1, K.BR64_1)
        target = ADDRESS + (rng.randrange(-100, 100) if short else rng.choice((-0x1000, 0x1000)))
        op_kinds = {16: OpKind.NEAR_BRANCH16, 32: OpKind.NEAR_BRANCH32, 64: OpKind.NEAR_BRANCH64}
        instruction.set_op_kind(operand, op_kinds[width])
        instruction.near_branch64 = target
    elif kind in (K.FARBR2_2, K.FARBR4_2):
        wide = kind == K.FARBR4_2
        instruction.set_op_kind(operand, OpKind.FAR_BRANCH32 if wide else OpKind.FAR_BRANCH16)
        if wide:
            instruction.far_branch32 = 0x12345678
        else:
            instruction.far_branch16 = 0x1234
        instruction.far_branch_selector = 0x5678
    else:
        instruction.set_op_kind(operand, OpKind.REGISTER)
        register = FIXED[kind] if kind in FIXED else random_register(kind, bits, rng)
        instruction.set_op_register(operand, register)


def random_instruction(info: OpCodeInfo, bits: int, rng: random.Random) -> Instruction | None:
    """An instruction of an opcode, encoded and decoded again; None if no try gave one."""
    for _ in range(40):
        instruction = Instruction()
        instruction.code = info.code
        for operand, kind in enumerate(info.op_kinds()):
            set_operand(instruction, operand, kind, bits, rng)
        if info.can_use_lock_prefix and instruction.op0_kind == OpKind.MEMORY:
            instruction.has_lock_prefix = rng.random() < 0.3
        if info.can_use_rep_prefix and rng.random() < 0.3:
            instruction.has_rep_prefix = True
        encoder = Encoder(bits)
        try:
            encoder.encode(instruction, ADDRESS)
        except ValueError:
            continue  # these operands exclude each other: AH with REX, equal gather registers ..
        decoded = decode(encoder.take_buffer(), bits, info.decoder_option)
        if decoded is not None and decoded.code == info.code:
            return decoded
    return None


def decode(code: bytes, bits: int, options: DecoderOptionsId) -> Instruction | None:
    """The one instruction of `code`; None if it is another number of instructions or an invalid one."""
    decoder = Decoder(bits, code, options, ip=ADDRESS)
    instruction = decoder.decode()
    if code[0] == 0x9B and len(code) > 1:  # FINIT and its kin are WAIT, then FNINIT: iced decodes two
        instruction = decoder.decode()
        instruction.code = WAITING.get(instruction.code, instruction.code)
    return None if instruction.code == Code.INVALID or decoder.position != len(code) else instruction


WAITING: dict[int, CodeId] = {
    Code.FNSTENV_M14BYTE: Code.FSTENV_M14BYTE,
    Code.FNSTENV_M28BYTE: Code.FSTENV_M28BYTE,
    Code.FNSTCW_M2BYTE: Code.FSTCW_M2BYTE,
    Code.FNENI: Code.FENI,
    Code.FNDISI: Code.FDISI,
    Code.FNCLEX: Code.FCLEX,
    Code.FNINIT: Code.FINIT,
    Code.FNSETPM: Code.FSETPM,
    Code.FNSAVE_M94BYTE: Code.FSAVE_M94BYTE,
    Code.FNSAVE_M108BYTE: Code.FSAVE_M108BYTE,
    Code.FNSTSW_M2BYTE: Code.FSTSW_M2BYTE,
    Code.FNSTSW_AX: Code.FSTSW_AX,
}


# ------------------------------------------------------------------------------------------------------------
# Texts and verdicts
# ------------------------------------------------------------------------------------------------------------


def text_of(instruction: Instruction, syntax: str, all_sizes: bool = True) -> str:
    """The text of an instruction; `all_sizes` shows the size of every memory operand."""
    formatter = Formatter(SYNTAXES[syntax])
    formatter.rip_relative_addresses = True
    formatter.branch_leading_zeros = False
    if all_sizes:
        formatter.memory_size_options = MemorySizeOptions.ALWAYS
    return formatter.format(instruction)


def cases(seed: int, per_code: int = 1, modes: tuple[int, ...] = (16, 32, 64)) -> Iterator[Case]:
    """`per_code` random instructions of every opcode in every mode that has it, in all three syntaxes."""
    for name, code in code_names().items():
        info = OpCodeInfo(code)
        for bits in modes:
            if not info.is_available_in_mode(bits):
                continue
            rng = random.Random(f"{seed} {name} {bits}")
            for _ in range(per_code):
                instruction = random_instruction(info, bits, rng)
                if instruction is None:
                    continue
                for syntax in SYNTAXES:
                    if name.startswith(UNCLEAR[syntax]):
                        continue
                    text = text_of(instruction, syntax)
                    if any(word in text for word in FORMATTER_WORDS):
                        text = text_of(instruction, syntax, all_sizes=False)
                    yield Case(name, bits, syntax, text, instruction, info.decoder_option)


FORMATTER_WORDS = ("mem384",)
"""Sizes that iced's formatters name when asked for all sizes, and that no assembler knows."""

SELECTOR_SOURCES = {
    **{Code.LLDT_R32M16: Code.LLDT_RM16, Code.LLDT_R64M16: Code.LLDT_RM16},
    **{Code.LTR_R32M16: Code.LTR_RM16, Code.LTR_R64M16: Code.LTR_RM16},
    **{Code.VERR_R32M16: Code.VERR_RM16, Code.VERR_R64M16: Code.VERR_RM16},
    **{Code.VERW_R32M16: Code.VERW_RM16, Code.VERW_R64M16: Code.VERW_RM16},
    **{Code.LMSW_R32M16: Code.LMSW_RM16, Code.LMSW_R64M16: Code.LMSW_RM16},
    **{Code.LKGS_R32M16: Code.LKGS_RM16, Code.LKGS_R64M16: Code.LKGS_RM16},
    **{Code.MOV_SREG_R32M16: Code.MOV_SREG_RM16, Code.MOV_SREG_R64M16: Code.MOV_SREG_RM16},
}
"""Twins that read 16 bits of the register whatever its width, SDM Volume 2, "MOV" and "LLDT"."""


CODE_NAMES: dict[int, str] = {code: name for name, code in vars(Code).items() if name.isupper()}


def canonical(instruction: Instruction) -> Instruction:
    """The same instruction under the first of the opcodes that mean the same."""
    same = instruction.copy()
    name = CODE_NAMES[same.code]
    if name.startswith("SAL_"):
        same.code = vars(Code)["SHL_" + name[4:]]
    if same.code in SELECTOR_SOURCES:
        same.code = SELECTOR_SOURCES[same.code]
        last = same.op_count - 1
        if same.op_kind(last) == OpKind.REGISTER:
            number = RegisterExt.number(same.op_register(last))
            same.set_op_register(last, register_number(Register.AX + number))
    return same


def comparable(instruction: Instruction, syntax: str) -> str:
    """Text to compare: the operands of XCHG in alphabetical order, since their order says nothing."""
    text = text_of(instruction, syntax)
    head, space, operands = text.rpartition("xchg ")
    return head + space + ",".join(sorted(operands.split(","))) if space else text


class Verdict(NamedTuple):
    """`reason` is "" if the case's own text came back; `same` says that every syntax agrees as well."""

    reason: str
    same: bool


def verdict(case: Case) -> Verdict:
    """Assemble the text of a case, decode the bytes and compare."""
    try:
        code = assemble(case.text, bits=case.bits, origin=ADDRESS)
    except AssemblerError as error:
        return Verdict(str(error), False)
    again = decode(code, case.bits, case.options)
    if again is None:
        return Verdict(f"{code.hex()} decodes to something else", False)
    want = canonical(case.instruction)
    have = canonical(again)
    if comparable(want, case.syntax) != comparable(have, case.syntax):
        return Verdict(f"{code.hex()} is {comparable(have, case.syntax)}", False)
    same = all(comparable(want, syntax) == comparable(have, syntax) for syntax in SYNTAXES)
    same = same and want.stack_pointer_increment == have.stack_pointer_increment
    same_size = want.op_code().operand_size == have.op_code().operand_size
    if same and same_size and again.len > case.instruction.len:
        return Verdict(f"{code.hex()} has {again.len} bytes, {case.instruction.len} do", False)
    return Verdict("", same)


def main() -> None:
    """Count cases and failures; exit status 1 if a text or a current opcode does not come back."""
    parser = argparse.ArgumentParser(
        description="Round trip of every legacy and VEX opcode through the assembler."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-code", type=int, default=2)
    parser.add_argument("--show", type=int, default=20, help="failures to print")
    parser.add_argument("--all", action="store_true", help="withdrawn and VIA opcodes, too")
    options = parser.parse_args()
    wanted = {name for name, code in code_names().items() if options.all or is_current(name, code)}
    total: Counter[str] = Counter()
    good: Counter[str] = Counter()
    exact: Counter[str] = Counter()
    made: set[str] = set()
    back: set[str] = set()
    shown = 0
    for case in cases(options.seed, options.per_code):
        if case.code_name not in wanted:
            continue
        total[case.syntax] += 1
        made.add(case.code_name)
        outcome = verdict(case)
        exact[case.syntax] += outcome.same
        if not outcome.reason:
            good[case.syntax] += 1
            if outcome.same:
                back.add(case.code_name)
        elif shown < options.show:
            shown += 1
            print(f"{case.code_name} {case.bits} {case.syntax}: {case.text}: {outcome.reason}")
    print(
        f"opcodes: {len(code_names())} in the tables, {len(wanted)} wanted, "
        f"{len(made)} made, {len(back)} came back"
    )
    for syntax in SYNTAXES:
        share = 100 * good[syntax] / total[syntax]
        print(
            f"{syntax}: {total[syntax]} texts, {good[syntax]} came back ({share:.2f} %), "
            f"{exact[syntax]} in the same form"
        )
    for title, names in (("never came back", made - back), ("not made", wanted - made)):
        if names:
            print(f"{title}: {' '.join(sorted(names))}")
    if good != total or back != made:
        sys.exit(1)


if __name__ == "__main__":
    main()
