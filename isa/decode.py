"""Decoding: bytes -> `Insn`, bound to one CPU. The only module of the CPU that knows iced-x86."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from iced_x86 import (
    Code,
    CpuidFeature,
    Decoder,
    DecoderError,
    DecoderOptions,
    EncodingKind,
    FlowControl,
    Formatter,
    FormatterSyntax,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpCodeInfo,
    OpKind,
    Register,
    RegisterExt,
)

from isa.operands import (
    AlignedFlatMemory,
    AlignedMemory,
    BasedMemory,
    FarPointer,
    FlatMemory,
    FlatMemory128,
    FlatStackMemory,
    Immediate,
    MmxOperand,
    NamedRegister,
    SegmentedMemory,
    SegmentOperand,
    UnreachableTarget,
    VectorIndexedMemory,
    Width,
    effective_address,
    register_classes,
    vex_class,
)
from isa.state import GPR_NAMES, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

MAX_LENGTH = 15


def _names(enum: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}


@cache
def code_names() -> dict[int, str]:
    """iced Code number -> name."""
    return _names(Code)


@cache
def mnemonic_names() -> dict[int, str]:
    """iced Mnemonic number -> name."""
    return _names(Mnemonic)


@cache
def register_names() -> dict[int, str]:
    """iced Register number -> name."""
    return _names(Register)


@cache
def feature_names() -> dict[int, str]:
    """iced CpuidFeature number -> name."""
    return _names(CpuidFeature)


@cache
def opcode_info(code: Any) -> OpCodeInfo:
    """iced's table row of one form."""
    return OpCodeInfo(code)


@cache
def form_features(code: Any) -> tuple[str, ...]:
    """CPUID features that a form needs, by iced's names."""
    instruction = Instruction()
    instruction.code = code
    return tuple(feature_names()[feature] for feature in instruction.cpuid_features())


# Legacy SSE instructions whose 128-bit memory operand may lie anywhere (SDM Vol. 2 for each)
_UNALIGNED_SSE = frozenset(
    ("MOVUPS", "MOVUPD", "MOVDQU", "LDDQU", "MASKMOVDQU",
     "PCMPESTRI", "PCMPESTRI64", "PCMPESTRM", "PCMPESTRM64", "PCMPISTRI", "PCMPISTRM")
)  # fmt: skip
_SSE_FEATURES = frozenset(
    ("SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "SHA", "GFNI")
)


# VEX instructions whose memory operand must be aligned to its size
_ALIGNED_VEX = frozenset(
    ("VMOVAPS", "VMOVAPD", "VMOVDQA", "VMOVNTPS", "VMOVNTPD", "VMOVNTDQ", "VMOVNTDQA")
)  # fmt: skip
_NEEDS_YMM_STATE = frozenset(("AVX", "AVX2", "F16C", "FMA", "VAES", "VPCLMULQDQ"))


@cache
def needs_ymm_state(code: int) -> bool:
    """True for a VEX form with vector registers: #UD unless XCR0 enables them (BMI forms work without)."""
    return (
        opcode_info(code).encoding == EncodingKind.VEX
        and not _NEEDS_YMM_STATE.isdisjoint(form_features(code))
    )  # fmt: skip


def modifies_memory(raw: bytes, bits: int) -> bool:
    """True if an instruction reads its destination in memory before it writes it, as ADD m, r does.

    Not ARPL: it reads like any other, and perhaps writes later.
    """
    instruction = Decoder(bits, raw).decode()
    if not instruction.op_count or instruction.op0_kind != OpKind.MEMORY:
        return False
    if instruction.mnemonic == Mnemonic.ARPL:
        return False
    access = InstructionInfoFactory().info(instruction).op0_access
    return access in (OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


@cache
def requires_alignment(code: int) -> bool:
    """True if a memory operand of 16 or 32 bytes must be aligned to its size: in most legacy SSE forms."""
    info = opcode_info(code)
    if info.encoding == EncodingKind.VEX:
        return mnemonic_names()[info.mnemonic] in _ALIGNED_VEX
    return (
        info.encoding == EncodingKind.LEGACY
        and not _SSE_FEATURES.isdisjoint(form_features(code))
        and mnemonic_names()[info.mnemonic] not in _UNALIGNED_SSE
    )


class Insn:
    """One decoded instruction: `function(cpu, *operands)` executes it; `next` is the address after it.

    `arguments` are (cpu, *operands): a tuple that is there already makes the step engine a seventh faster.
    """

    __slots__ = ("arguments", "code", "function", "ip", "next", "operands", "page", "raw")

    def __init__(
        self, ip: int, raw: bytes, code: int, function: Callable[..., None], arguments: tuple[Any, ...],
        next_ip: int,
    ) -> None:  # fmt: skip
        self.ip = ip
        self.raw = raw
        self.code = code
        self.function = function
        self.arguments = arguments
        self.operands = arguments[1:]
        self.next = next_ip
        self.page = -1  # number of the host page it starts in


WRITES = frozenset((OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE))


@dataclass(frozen=True, slots=True)
class Effects:
    """What an instruction writes and does, as far as the rest of its block has to know."""

    registers: frozenset[str]  # general registers that it writes, by their 64-bit names
    vectors: frozenset[int]  # numbers of the vector registers that it writes
    flags: bool  # it reads or changes flags in RFLAGS
    straight: bool  # the next instruction is the one behind it


@lru_cache(maxsize=1 << 12)
def effects_of(raw: bytes, bits: int) -> Effects:
    """The effects of the instruction with these bytes in `bits`-bit code, from iced's tables."""
    instruction = Decoder(bits, raw).decode()
    info = InstructionInfoFactory().info(instruction)
    written = [used.register for used in info.used_registers() if used.access in WRITES]
    return Effects(
        registers=frozenset(
            register_names()[RegisterExt.full_register(register)].lower()
            for register in written if RegisterExt.is_gpr(register)
        ),
        vectors=frozenset(
            RegisterExt.number(register) for register in written if RegisterExt.is_vector_register(register)
        ),
        flags=bool(instruction.rflags_read | instruction.rflags_modified),
        straight=instruction.flow_control == FlowControl.NEXT and not instruction.has_rep_prefix
        and not instruction.has_repne_prefix,
    )  # fmt: skip


class NeedMoreBytes(Exception):
    """The bytes end inside the instruction."""


class TooLong(Exception):
    """More than 15 bytes: #GP(0)."""


class InvalidInstruction(Exception):
    """No instruction starts with these bytes (in this mode): #UD."""


def decoder_options(features: frozenset[str]) -> int:
    """Without BMI1 or LZCNT, F3 0F BC / F3 0F BD are BSF and BSR with an ignored prefix, and so on."""
    options = int(DecoderOptions.NONE)
    if "BMI1" not in features:
        options |= DecoderOptions.NO_MPFX_0FBC
    if "LZCNT" not in features:
        options |= DecoderOptions.NO_MPFX_0FBD
    if "LAHF_SAHF_64" not in features:
        options |= DecoderOptions.NO_LAHF_SAHF_64
    if "WBNOINVD" not in features:
        options |= DecoderOptions.NO_WBNOINVD
    return options


def decode(raw: bytes, bits: int, ip: int, options: Any = 0) -> Instruction:
    """One iced instruction. Raises NeedMoreBytes, TooLong or InvalidInstruction."""
    decoder = Decoder(bits, raw, options, ip)
    instruction = decoder.decode()
    if instruction.is_invalid:
        if decoder.last_error == DecoderError.NO_MORE_BYTES:
            raise NeedMoreBytes
        if _is_too_long(raw, bits, options):
            raise TooLong
        raise InvalidInstruction
    return instruction


_PREFIXES = frozenset((0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65))
_PREFIXES64 = _PREFIXES | frozenset(range(0x40, 0x50))  # REX: only the last one counts


def _is_too_long(raw: bytes, bits: int, options: Any) -> bool:
    """Would these bytes be an instruction, or still be prefixes, but for the limit of 15 bytes?"""
    if len(raw) < MAX_LENGTH:
        return False
    prefixes = _PREFIXES64 if bits == 64 else _PREFIXES
    for dropped in range(1, MAX_LENGTH + 1):
        if raw[dropped - 1] not in prefixes:
            return False
        instruction = Decoder(bits, raw[dropped:] + bytes(MAX_LENGTH), options).decode()
        if not instruction.is_invalid:
            return bool(dropped + instruction.len > MAX_LENGTH)
    return True


@cache
def _formatter() -> Formatter:
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.hex_prefix = "0x"
    formatter.hex_suffix = ""
    formatter.small_hex_numbers_in_decimal = False
    formatter.uppercase_hex = False
    formatter.rip_relative_addresses = False
    formatter.space_after_operand_separator = True
    return formatter


def disassemble(raw: bytes, bits: int, ip: int) -> str:
    """The instruction's text in NASM syntax, or "(bad)"."""
    return str(_formatter().format(Decoder(bits, raw, ip=ip).decode()))


# ---- operands --------------------------------------------------------------------------

_IMMEDIATE_BITS = {
    OpKind.IMMEDIATE8: 8, OpKind.IMMEDIATE8_2ND: 8, OpKind.IMMEDIATE16: 16, OpKind.IMMEDIATE32: 32,
    OpKind.IMMEDIATE64: 64, OpKind.IMMEDIATE8TO16: 16, OpKind.IMMEDIATE8TO32: 32,
    OpKind.IMMEDIATE8TO64: 64, OpKind.IMMEDIATE32TO64: 64,
}  # fmt: skip
_BRANCH_BITS = {OpKind.NEAR_BRANCH16: 16, OpKind.NEAR_BRANCH32: 32, OpKind.NEAR_BRANCH64: 64}
_STRING_POINTERS = {
    OpKind.MEMORY_SEG_SI: ("rsi", 16, True), OpKind.MEMORY_SEG_ESI: ("rsi", 32, True),
    OpKind.MEMORY_SEG_RSI: ("rsi", 64, True), OpKind.MEMORY_SEG_DI: ("rdi", 16, True),
    OpKind.MEMORY_SEG_EDI: ("rdi", 32, True), OpKind.MEMORY_SEG_RDI: ("rdi", 64, True),
    OpKind.MEMORY_ESDI: ("rdi", 16, False), OpKind.MEMORY_ESEDI: ("rdi", 32, False),
    OpKind.MEMORY_ESRDI: ("rdi", 64, False),
}  # fmt: skip
_SPECIAL_REGISTERS = {"CR": 64, "DR": 64, "TR": 32, "MM": 64, "ST": 80, "BND": 128, "K": 64}


@cache
def _register_kind(register: int) -> tuple[str, int]:
    """("gpr" | "seg" | "CR" ..., number) of an iced register."""
    name = register_names()[register]
    if name in register_classes():
        return "class", 0
    if name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        return "seg", ("ES", "CS", "SS", "DS", "FS", "GS").index(name)
    kind = name.rstrip("0123456789")
    return kind, int(name[len(kind) :] or 0)


@cache
def _full_register(register: Any) -> str:
    """Name of the 64-bit register behind an address register, "" for none or RIP."""
    name = register_names()[register]
    if name in ("NONE", "RIP", "EIP"):
        return ""
    if name == "AL":
        return "al"
    full = register_names()[RegisterExt.full_register(register)].lower()
    return full if full in GPR_NAMES else name


@cache
def _memory_bits(memory_size: Any) -> int:
    return int(MemorySizeExt.size(memory_size)) * 8


_PLAIN_LOADS = {"MOV": False, "MOVZX": False, "MOVSX": True, "MOVSXD": True}


def load_hint(instruction: Instruction) -> tuple[int, int, bool] | None:
    """(GPR number, its bytes, signed) when the instruction is a plain load, for MmioRead."""
    signed = _PLAIN_LOADS.get(mnemonic_names()[instruction.mnemonic])
    if signed is None or instruction.op_kind(0) != OpKind.REGISTER:
        return None
    register = instruction.op_register(0)
    if not RegisterExt.is_gpr(register):
        return None
    number = GPR_NAMES.index(register_names()[RegisterExt.full_register(register)].lower())
    return number, RegisterExt.size(register), signed


def _address_bits(instruction: Instruction, code_bits: int) -> int:
    """Address size: from the registers used, else from the displacement, which iced widens to it."""
    for register in (instruction.memory_base, instruction.memory_index):
        if register not in (Register.NONE, Register.AL) and not RegisterExt.is_vector_register(register):
            return int(RegisterExt.size(register)) * 8
    return int(instruction.memory_displ_size) * 8 or code_bits


def bind_operands(cpu: Cpu, instruction: Instruction, arity: int) -> tuple[Any, ...]:
    """The operand objects of one instruction, bound to the CPU. Where a VEX form has one operand more than
    its definition, whose number is `arity`, the first stands for destination and first source."""
    operands = []
    vex = instruction.encoding == EncodingKind.VEX
    for n in range(instruction.op_count):
        kind = instruction.op_kind(n)
        if kind == OpKind.REGISTER:
            register = instruction.op_register(n)
            if vex and RegisterExt.is_vector_register(register):
                operands.append(_vex_operand(cpu, register, register))
            else:
                operands.append(_register_operand(cpu, register))
        elif kind in _IMMEDIATE_BITS:
            operands.append(Immediate(instruction.immediate(n), _IMMEDIATE_BITS[kind]))
        elif kind in _BRANCH_BITS:
            operands.append(_branch_operand(cpu, instruction.near_branch_target, _BRANCH_BITS[kind]))
        elif kind == OpKind.FAR_BRANCH16:
            operands.append(FarPointer(instruction.far_branch_selector, instruction.far_branch16, 16))
        elif kind == OpKind.FAR_BRANCH32:
            operands.append(FarPointer(instruction.far_branch_selector, instruction.far_branch32, 32))
        else:
            operands.append(_memory_operand(cpu, instruction, kind))
    if vex and len(operands) == arity + 1:
        operands[:2] = (_vex_operand(cpu, instruction.op_register(0), instruction.op_register(1)),)
    return tuple(operands)


def _vex_operand(cpu: Cpu, register: Any, source: Any) -> Any:
    """Vector register `register` of a VEX form, which reads as `source`."""
    number, bits = RegisterExt.number(register), int(RegisterExt.size(register)) * 8
    return vex_class(number, RegisterExt.number(source), bits)(cpu)


def _branch_operand(cpu: Cpu, target: int, bits: int) -> Immediate | UnreachableTarget:
    if cpu.mode64:
        reachable = target + 0x8000_0000_0000 & M64 < 1 << 48
    else:
        reachable = target <= cpu.cs.limit
    return Immediate(target, bits) if reachable else UnreachableTarget(target, bits)


def _register_operand(cpu: Cpu, register: int) -> Any:
    kind, number = _register_kind(register)
    if kind == "class":
        return register_classes()[register_names()[register]](cpu)
    if kind == "seg":
        return SegmentOperand(cpu.segments[number])
    if kind == "MM":
        return MmxOperand(cpu, kind, number, 64)
    return NamedRegister(cpu, kind, number, _SPECIAL_REGISTERS.get(kind, 64))


def _memory_operand(cpu: Cpu, instruction: Instruction, kind: Any) -> Any:
    if kind in _STRING_POINTERS:
        base, address_bits, overridable = _STRING_POINTERS[kind]
        effective = effective_address(base, "", 1, address_bits)
        displacement = 0
        segment = _segment(cpu, instruction.memory_segment) if overridable else cpu.es
    else:
        base = _full_register(instruction.memory_base)
        index = "" if instruction.is_vsib else _full_register(instruction.memory_index)
        address_bits = _address_bits(instruction, cpu.code_bits)
        effective = effective_address(base, index, instruction.memory_index_scale, address_bits)
        displacement = instruction.memory_displacement
        segment = _segment(cpu, instruction.memory_segment, base)
    bits = _memory_bits(instruction.memory_size)
    made: Any
    flat = cpu.mode64 and segment is not cpu.fs and segment is not cpu.gs
    if instruction.is_vsib:
        gather = VectorIndexedMemory(cpu, segment, effective, displacement, address_bits, bits, None)
        indices = _vex_operand(cpu, instruction.memory_index, instruction.memory_index)
        gather.index_by(indices, 64 if instruction.is_vsib64 else 32, instruction.memory_index_scale)
        return gather
    if bits in (128, 256) and requires_alignment(instruction.code):
        made = AlignedFlatMemory if flat and bits == 128 else AlignedMemory
    elif bits == 128 and flat:
        made = FlatMemory128
    elif not cpu.mode64:
        made = SegmentedMemory
    elif segment is cpu.fs or segment is cpu.gs:
        made = BasedMemory
    elif segment is cpu.ss:
        made = FlatStackMemory
    else:
        made = FlatMemory
    return made(cpu, segment, effective, displacement, address_bits, bits, load_hint(instruction))


def _segment(cpu: Cpu, register: int, base: str = "") -> Any:
    """The segment of an address. 64-bit mode ignores overrides other than FS and GS: there `base` decides
    whether a non-canonical address is #SS (seen on hardware, with and without prefixes)."""
    number = ("ES", "CS", "SS", "DS", "FS", "GS").index(register_names()[register])
    if cpu.mode64 and number < 4:
        return cpu.ss if base in ("rsp", "rbp") else cpu.ds
    return cpu.segments[number]


def operand_size(code: int) -> Width:
    """The operand size of a form without a sized operand (RET, PUSHF ...)."""
    return Width(opcode_info(code).operand_size or 16)
