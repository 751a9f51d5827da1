"""From a candidate and its operands to bytes: iced's `Instruction` filled in, and iced's `Encoder`.

Not an encoder of its own: REX, VEX, ModRM and the order of prefixes are iced's, which also has the last word
on what can be encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from iced_x86 import Encoder, Instruction, OpCodeInfo, OpKind, Register

from isa.assembler.forms import Plan
from isa.assembler.kinds import (
    BRANCHES,
    FAR_BRANCHES,
    IMMEDIATES,
    REGISTER_OF_KIND,
    STRING_KINDS,
    K,
    Limit,
    registers,
)
from isa.assembler.resolve import Address, Place, Resolved
from isa.assembler.results import M64, Problem
from isa.assembler.words import SEGMENT_PREFIXES

if TYPE_CHECKING:  # iced's constants are plain integers at run time and enums to the type checker
    from iced_x86._iced_x86_py import OpKind as OpKindId
    from iced_x86._iced_x86_py import Register as RegisterId

STACK_BASES: Final = frozenset({Register.BP, Register.EBP, Register.RBP, Register.ESP, Register.RSP})

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


class Encoding(NamedTuple):
    """Bytes of an instruction; `fixed` when they are the same at every address."""

    code: bytes
    fixed: bool


class Encoders:
    """iced's encoders, one a mode, kept for the length of one assembly."""

    __slots__ = ("by_bits",)

    def __init__(self) -> None:
        self.by_bits = {bits: Encoder(bits) for bits in (16, 32, 64)}

    def encode(self, instruction: Instruction, bits: int, address: int) -> bytes:
        """Bytes of one instruction at `address`. Raises `Problem` with iced's reason."""
        encoder = self.by_bits[bits]
        try:
            encoder.encode(instruction, address & M64)
        except ValueError as refusal:
            encoder.take_buffer()
            reason = str(refusal)
            if "branch" in reason.lower() or "too far" in reason:
                raise Problem("the target is too far away; drop `short`, or go there by a register") from None
            raise Problem(
                f"these operands cannot be encoded together ({reason}); take other registers"
            ) from None
        return encoder.take_buffer()


def fit_immediate(number: int, limit: Limit) -> int:
    """The immediate as iced stores it. Raises `Problem` if it needs more bits than the field has."""
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
    raise Problem(f"the immediate does not fit {limit.bits} bits; use a smaller value or a wider operation")


def _set_immediate(instruction: Instruction, operand: int, kind: int, number: int, second: bool) -> None:
    """Store an immediate in the field its kind uses. Raises `Problem`."""
    limit = IMMEDIATES[kind]
    value = fit_immediate(number, limit)
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
    """Store a branch target. Raises `Problem` for one that IP cannot hold."""
    width = bits or max(mode, 32)
    if not (0 <= target < 1 << width or abs(target - here) < 1 << width):
        # A label beyond what IP holds means its offset in the block (64 KiB for IP) it shares with this code.
        raise Problem(f"the target {target:#x} is out of reach of a {width}-bit IP; use a far jump")
    if width == 16:
        instruction.set_op_kind(operand, OpKind.NEAR_BRANCH16)
        instruction.near_branch16 = target & 0xFFFF
    elif width == 32:
        instruction.set_op_kind(operand, OpKind.NEAR_BRANCH32)
        instruction.near_branch32 = target & 0xFFFF_FFFF
    else:
        instruction.set_op_kind(operand, OpKind.NEAR_BRANCH64)
        instruction.near_branch64 = target & M64


def _set_far(instruction: Instruction, operand: int, kind: int, item: Resolved) -> None:
    """Store selector:offset. Raises `Problem` for an offset that is too wide."""
    bits = 16 if kind == K.FARBR2_2 else 32
    if not 0 <= item.number < 1 << bits:
        raise Problem(f"the far offset {item.number:#x} does not fit {bits} bits; write dword before it")
    if bits == 16:
        instruction.set_op_kind(operand, OpKind.FAR_BRANCH16)
        instruction.far_branch16 = item.number
    else:
        instruction.set_op_kind(operand, OpKind.FAR_BRANCH32)
        instruction.far_branch32 = item.number
    instruction.far_branch_selector = item.selector


def _default_segment(address: Address) -> RegisterId:
    """The segment an address uses without a prefix, SDM Volume 1, "Specifying a Segment Selector"."""
    return Register.SS if address.base in STACK_BASES else Register.DS


def _set_address(instruction: Instruction, operand: int, kind: int, address: Address, wide: bool) -> None:
    """Store a ModRM or moffs memory operand. Raises `Problem` for a displacement that is too wide."""
    bits = address.bits
    number = address.displacement
    instruction.set_op_kind(operand, OpKind.MEMORY)
    instruction.memory_base = address.base
    instruction.memory_index = address.index
    instruction.memory_index_scale = address.scale
    if address.segment not in (Register.NONE, _default_segment(address)):
        instruction.segment_prefix = address.segment
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise Problem(f"the address {number:#x} does not fit {bits} bits; use a lower one")
    signed = number - (1 << bits) if number >= 1 << (bits - 1) else number
    rip_relative = address.base in (Register.RIP, Register.EIP)
    if bits == 64 and kind != K.MEM_OFFS and not rip_relative and not -(1 << 31) <= signed < 1 << 31:
        raise Problem(f"the displacement {number:#x} does not fit 32 bits; put it into a register first")
    instruction.memory_displacement = number & ((1 << bits) - 1)
    fixed = rip_relative or kind == K.MEM_OFFS or (address.base == Register.NONE)
    if not fixed and not wide and not address.wide and -128 <= signed <= 127:
        instruction.memory_displ_size = 1 if signed else 0
    else:
        instruction.memory_displ_size = bits // 8


def _set_string(
    instruction: Instruction, operand: int, kind: int, address: Address | None, bits: int
) -> None:
    """Store a string instruction's implied address. Raises `Problem` for a segment it cannot have."""
    if address is not None:
        bits = address.bits
        if address.segment not in (Register.NONE, Register.ES) and kind == K.ES_RDI:
            raise Problem("the destination of a string instruction is always in ES; drop the segment")
        if address.segment not in (Register.NONE, Register.DS) and kind != K.ES_RDI:
            instruction.segment_prefix = address.segment
    if kind == K.SEG_RBX_AL:
        instruction.set_op_kind(operand, OpKind.MEMORY)
        instruction.memory_base = XLAT_BASES[bits]
        instruction.memory_index = Register.AL
    else:
        instruction.set_op_kind(operand, STRING_OP_KINDS[kind, bits])


def build(plan: Plan, items: Sequence[Resolved], place: Place, here: int, wide: bool) -> Instruction:
    """The `Instruction` of one candidate. Raises `Problem` when an operand's value does not fit it."""
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
            instruction.set_op_register(operand, registers()[1][REGISTER_OF_KIND[kind]].id)
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


def set_prefixes(instruction: Instruction, plan: Plan, prefixes: Sequence[str], mnemonic: str) -> None:
    """Set the written prefixes. Raises `Problem` for one the instruction does not take."""
    for prefix in prefixes:
        match prefix:
            case "lock":
                lockable = plan.lockable and instruction.op0_kind != OpKind.REGISTER
                if not lockable:
                    raise Problem(f"{mnemonic} takes no lock prefix here; for a bare prefix write db 0xf0")
                instruction.has_lock_prefix = True
            case "rep" | "repe" | "repz":
                # `rep ret` is AMD's advice for branch prediction, and all assemblers know it.
                if not (plan.repeatable or mnemonic.startswith("ret")):
                    raise Problem(f"{mnemonic} takes no {prefix} prefix; for a bare prefix write db 0xf3")
                instruction.has_rep_prefix = True
            case "repne" | "repnz":
                if not plan.repeatable_ne:
                    raise Problem(f"{mnemonic} takes no {prefix} prefix; for a bare prefix write db 0xf2")
                instruction.has_repne_prefix = True
            case "bnd":
                if not OpCodeInfo(plan.code).can_use_bnd_prefix:
                    raise Problem(f"{mnemonic} takes no bnd prefix; for a bare prefix write db 0xf2")
                instruction.has_repne_prefix = True
            case "xacquire":
                instruction.has_xacquire_prefix = True
            case "xrelease":
                instruction.has_xrelease_prefix = True
            case _:
                instruction.segment_prefix = SEGMENT_PREFIXES[prefix]
