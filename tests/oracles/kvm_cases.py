"""Generated cases for both CPUs: one form in a random state, or a short program. It runs nothing.

Built from iced's table of forms, so a form that our tables gain is generated too. Everything is drawn from
one seeded generator. Operands prefer the places where something happens: the borders of RAM and device, of
pages with other rights, of segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from random import Random
from typing import Any

from iced_x86 import (
    Code,
    Decoder,
    Encoder,
    EncodingKind,
    Instruction,
    OpCodeInfo,
    OpCodeOperandKind,
    OpKind,
    Register,
    RflagsBits,
)

from isa.decode import code_names, mnemonic_names
from isa.semantics.registry import build_table
from isa.state import GPR_NAMES
from tests.oracles.kvm_twins import (
    ABSENT,
    BEYOND,
    CODE,
    DATA,
    DEVICE,
    END,
    FREE,
    LANDING,
    MODES,
    READ_ONLY,
    SUPERVISOR,
    Case,
    Mode,
    plain_segment,
)

FAMILIES = ("arith", "bits", "convert", "decimal", "flags", "flow", "io", "logic", "move", "muldiv", "shift",
            "stack", "string")  # fmt: skip
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
M64 = (1 << 64) - 1
ARITHMETIC_FLAGS, IF, DF, IOPL3 = 0x8D5, 0x200, 0x400, 3 << 12
ICED_FLAGS = ((RflagsBits.CF, 0), (RflagsBits.PF, 2), (RflagsBits.AF, 4), (RflagsBits.ZF, 6),
              (RflagsBits.SF, 7), (RflagsBits.DF, 10), (RflagsBits.OF, 11))  # fmt: skip
DEFINE_FLAGS = b"\x80\xfa\x35"  # cmp dl, 0x35: behind an instruction that leaves flags undefined
PROGRAM_LENGTH = 7  # instructions at most

DEVIATING = frozenset(
    ("AAA", "AAD", "AAM", "AAS", "ADCX", "ADOX", "BOUND", "CLFLUSH", "CLFLUSHOPT", "CLWB", "CRC32", "DAA",
     "ENTER", "INSB", "INSW", "INSD", "LZCNT", "MOVBE", "POPA", "POPAD", "POPCNT",
     "POPF", "POPFD", "POPFQ", "PUSHA", "PUSHAD", "TZCNT")
)  # fmt: skip
DEVIATING_FORMS = ("RESERVEDNOP", "CLDEMOTE", "MOVSXD_R16", "CMPXCHG_RM32", "BSF_R32", "BSR_R32")

_KIND = {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}
_REGISTER: dict[str, Any] = {name: value for name, value in vars(Register).items() if isinstance(value, int)}
_LEGACY8 = ("AL", "CL", "DL", "BL", "AH", "CH", "DH", "BH")
_FIXED = ("AL", "AX", "EAX", "RAX", "CL", "DX", "ES", "CS", "SS", "DS", "FS", "GS")
_SIZES = ("R8", "R16", "R32", "R64")
_ADDRESSES16 = (("BX", "SI"), ("BX", "DI"), ("BP", "SI"), ("BP", "DI"), ("SI", ""), ("DI", ""), ("BP", ""),
                ("BX", ""), ("", ""))  # fmt: skip
_STRINGS = {
    "SEG_RSI": {64: OpKind.MEMORY_SEG_RSI, 32: OpKind.MEMORY_SEG_ESI, 16: OpKind.MEMORY_SEG_SI},
    "ES_RDI": {64: OpKind.MEMORY_ESRDI, 32: OpKind.MEMORY_ESEDI, 16: OpKind.MEMORY_ESDI},
}
_IMMEDIATES = {
    "IMM8": (8, OpKind.IMMEDIATE8), "IMM16": (16, OpKind.IMMEDIATE16), "IMM32": (32, OpKind.IMMEDIATE32),
    "IMM64": (64, OpKind.IMMEDIATE64), "IMM32SEX64": (32, OpKind.IMMEDIATE32TO64),
    "IMM8SEX16": (8, OpKind.IMMEDIATE8TO16), "IMM8SEX32": (8, OpKind.IMMEDIATE8TO32),
    "IMM8SEX64": (8, OpKind.IMMEDIATE8TO64),
}  # fmt: skip
_BRANCHES = {"BR16": OpKind.NEAR_BRANCH16, "BR32": OpKind.NEAR_BRANCH32, "BR64": OpKind.NEAR_BRANCH64}
# Near branches with a 16-bit operand size in 32- and 64-bit code: Intel's and AMD's CPUs disagree about them
_NEAR16 = ("RETNW", "JMP_RM16", "CALL_RM16")
_BORDERS = (
    DEVICE,
    DEVICE,
    DEVICE + 0x1000,
    BEYOND,
    BEYOND,
    END,
    DATA,
    DATA + 0x1000,
    READ_ONLY,
    SUPERVISOR,
    ABSENT,
)


def register_name(number: int, bits: int, rex: bool = True) -> str:
    """iced's name of a general register; without `rex`, byte registers 4-7 are AH CH DH BH."""
    if bits == 8 and number < 8 and not rex:
        return _LEGACY8[number]
    if number >= 8:
        return f"R{number}" + {64: "", 32: "D", 16: "W", 8: "L"}[bits]
    short = GPR_NAMES[number][1:].upper()
    if bits == 8:
        return _LEGACY8[number] if number < 4 else short + "L"
    return {64: "R", 32: "E", 16: ""}[bits] + short


def edge_value(rng: Random, bits: int) -> int:
    """A `bits`-wide number, often one where carries, signs and overflows happen."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice((0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 0x7F, 0x80, 0xFF)) & (1 << bits) - 1
    if kind == 1:
        return (1 << bits - 1) - rng.randrange(2)
    if kind == 2:
        return (1 << bits) - 1 - rng.randrange(3)
    if kind == 3:
        return 1 << rng.randrange(bits)
    return rng.getrandbits(bits)


def _kinds(code: Any) -> list[str]:
    info: Any = OpCodeInfo(code)
    return [_KIND[info.op_kind(n)] for n in range(info.op_count)]


def _known(kind: str) -> bool:
    size, _, rest = kind.partition("_")
    return (
        kind in _FIXED or kind in _IMMEDIATES or kind in _STRINGS or size in _BRANCHES
        or kind in ("MEM", "MEM_OFFS", "SEG_RBX_AL", "IMM8_CONST_1", "SREG")
        or (size in _SIZES and rest in ("OR_MEM", "REG", "OPCODE", "RM", "VVVV"))
    )  # fmt: skip


@cache
def forms(mode_name: str) -> tuple[int, ...]:
    """Every form of the general-purpose families that exists in a mode and that can be generated."""
    mode = MODES[mode_name]
    table = build_table(import_module(f"isa.semantics.{name}") for name in FAMILIES)
    found = []
    code: Any
    for code, name in code_names().items():
        instruction: Any = Instruction()
        instruction.code = code
        info: Any = OpCodeInfo(code)
        exists = {64: info.mode64, 32: info.mode32, 16: info.mode16}[mode.bits]
        if not exists or (name not in table and mnemonic_names()[instruction.mnemonic] not in table):
            continue
        if any(word in name for word in ("KNC", "486", "XOP")) or not all(map(_known, _kinds(code))):
            continue
        near16 = name.startswith(_NEAR16) or any(kind.startswith("BR16") for kind in _kinds(code))
        if near16 and mode.bits != 16:
            continue
        found.append(code)
    return tuple(found)


@cache
def program_forms(mode_name: str) -> tuple[int, ...]:
    """The forms that programs are made of: none of which KVM is known to execute otherwise, or not at all.

    In a program one of them would be the end of the comparison. kvm_deviations says why; single instructions
    compare them as far as that goes.
    """
    chosen = []
    code: Any
    for code in forms(mode_name):
        instruction: Any = Instruction()
        instruction.code = code
        name = code_names()[code]
        known = mnemonic_names()[instruction.mnemonic] in DEVIATING or name.startswith(DEVIATING_FORMS)
        info: Any = OpCodeInfo(code)
        if not known and info.encoding != EncodingKind.VEX:
            chosen.append(code)
    return tuple(chosen)


class CaseMaker:
    """Draws one case. A program sets registers by MOV, a single instruction finds them set."""

    def __init__(self, rng: Random, mode: Mode, program: bool) -> None:
        self.rng = rng
        self.mode = mode
        self.program = program
        self.code = bytearray()
        self.registers = [edge_value(rng, 64) for _ in GPR_NAMES]
        self.pinned: set[int] = set()  # registers whose value an operand depends on
        self.patches: list[tuple[int, bytes]] = []
        self.flags = rng.getrandbits(12) & ARITHMETIC_FLAGS | rng.choice((0, 0, DF)) | rng.choice((0, IF))
        if mode.level and mode.bits < 64 and rng.random() < 0.5:
            self.flags |= IOPL3  # in 64-bit code the I/O permission bitmap decides
        if mode.name == "user64":
            self.flags |= IF  # kvm_pvm's user code cannot have another
        self.segments: dict[str, tuple[int, int, int]] = {}
        self._choose_segments()
        self._set_initially(RSP, self.stack())
        self._set_initially(RBP, self.stack())

    # ---- the whole -----------------------------------------------------------------------------------------

    def single(self, code: int) -> Case | None:
        """One instruction of a form; None where this draw has no encoding."""
        return self.finished() if self.add(code) else None

    def several(self, codes: Sequence[int]) -> Case | None:
        """A program of these forms; None if none of them could be encoded."""
        for code in codes:
            if self.add(code) and undefined_flags(bytes(self.code[self.last :]), self.mode.bits):
                self.code += DEFINE_FLAGS
        return self.finished() if self.code else None

    def finished(self) -> Case:
        """The case as drawn so far."""
        mask = M64 if self.mode.bits == 64 else 0xFFFF_FFFF
        values = dict(zip(GPR_NAMES, (value & mask for value in self.registers), strict=True))
        return Case(self.mode.name, bytes(self.code), values, self.flags, self.segments, tuple(self.patches))

    def add(self, code: int) -> bool:
        """Append one instruction; False, and nothing appended, where this draw has no encoding."""
        before = len(self.code)
        self.last = before
        if not self.program:
            self.pinned = {RSP, RBP}
        drawn = Draw(self, code)
        if drawn.raw is None:
            del self.code[before:]
            return False
        self.last = len(self.code)
        self.code += drawn.raw
        return True

    # ---- registers and segments ----------------------------------------------------------------------------

    def _set_initially(self, number: int, value: int) -> None:
        self.registers[number] = value & (1 << self.stack_bits) - 1

    def set_register(self, number: int, value: int, bits: int) -> None:
        """Give the low `bits` of a register a value before the instruction that is being drawn."""
        mask = (1 << bits) - 1
        self.pinned.add(number)
        if not self.program:
            self.registers[number] = self.registers[number] & ~mask & M64 | value & mask
            return
        instruction = Instruction.create_reg_u64 if bits == 64 else Instruction.create_reg_u32
        code = {64: Code.MOV_R64_IMM64, 32: Code.MOV_R32_IMM32, 16: Code.MOV_R16_IMM16}[bits]
        made = instruction(code, _REGISTER[register_name(number, bits)], value & mask)
        encoder = Encoder(self.mode.bits)
        encoder.encode(made, CODE + len(self.code))
        self.code += encoder.take_buffer()

    @property
    def stack_bits(self) -> int:
        """How wide a stack pointer is."""
        if self.mode.bits == 64:
            return 64
        attributes = self.segments["ss"][2] if "ss" in self.segments else plain_segment(self.mode, "ss")[2]
        return 32 if attributes >> 14 & 1 else 16

    def _choose_segments(self) -> None:
        """Bases that let 16-bit offsets reach the device; now and then a tight limit or another type."""
        rng, mode = self.rng, self.mode
        if mode.bits == 64:
            for name in ("fs", "gs"):
                base, limit, attributes = plain_segment(mode, name)
                self.segments[name] = (rng.choice((0, DATA, 16 * rng.randrange(0x2000))), limit, attributes)
            return
        for name in ("es", "ss", "ds", "fs", "gs"):
            base, limit, attributes = plain_segment(mode, name)
            if mode.bits == 16:
                base = 16 * rng.randrange(END - 0x10000 >> 4, DATA >> 4)
            elif rng.random() < 0.3:
                # Not above an operand: an offset that wraps around 4 GiB may or may not fault (SDM Vol. 3,
                # "Limit Checking")
                base = rng.choice((0x10000, rng.randrange(ABSENT - 0x1000)))
            if mode.protected and rng.random() < 0.25:
                limit = self._limit(base)
                attributes &= ~0x8000  # in bytes
                if name != "ss" and rng.random() < 0.4 and not self.program:
                    attributes = attributes & ~0xF | rng.choice((0x1, 0x5, 0x7, 0x9, 0xB))
                elif rng.random() < 0.3:
                    attributes |= 0x4  # expand down
                    limit = rng.randrange(0x100)
            self.segments[name] = (base, limit, attributes)
        if mode.protected and not mode.level and rng.random() < 0.7:
            # Where the frame of a fault can be compared with kvm_pvm's
            self.segments["ss"] = plain_segment(MODES["protected32"], "ss")

    def _limit(self, base: int) -> int:
        """A limit near a place that operands like."""
        place = self.rng.choice((DEVICE + 0x800, DEVICE, BEYOND, END, DATA + 0x1000))
        return max(place + self.rng.randrange(-8, 9) - base, 0) & (
            0xFFFF if self.mode.bits == 16 else 0xF_FFFF
        )

    def base_of(self, name: str) -> int:
        """The base that an operand in this segment gets."""
        if name in self.segments:
            return self.segments[name][0]
        return 0

    # ---- places --------------------------------------------------------------------------------------------

    def place(self, size: int) -> int:
        """A linear address for an operand of `size` bytes."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.25:
            return DATA + rng.randrange(DEVICE - DATA - size)
        if choice < 0.5:
            return DEVICE + rng.randrange(BEYOND - DEVICE - size)
        if choice < 0.92:
            return rng.choice(_BORDERS) - rng.randrange(size + 3) + rng.randrange(3)
        if choice < 0.96:
            return BEYOND + rng.randrange(0x3000)
        if self.mode.bits == 64 and choice < 0.98:
            return rng.choice((1 << 47, 0x8000_1234_5678_9ABC, 0xFFFF_7FFF_FFFF_FF00))
        return rng.choice((READ_ONLY, SUPERVISOR, ABSENT)) + rng.randrange(0x1000)

    def stack(self) -> int:
        """A stack pointer: mostly in RAM, sometimes where a push meets the device or another page."""
        rng = self.rng
        linear = DATA + 0x800 + 2 * rng.randrange(0x200)
        if rng.random() < 0.3:
            linear = rng.choice(_BORDERS) + rng.randrange(-6, 20)
        return linear - self.base_of("ss")

    def put(self, linear: int, value: int, size: int) -> None:
        """Let memory hold something that an instruction is to find."""
        if (linear >= FREE and linear + size <= ABSENT) or (linear >= DATA and linear + size <= END):
            data = value.to_bytes(size, "little")
            for border in (DEVICE, BEYOND):
                if linear < border < linear + size:
                    self.patches.append((linear, data[: border - linear]))
                    linear, data = border, data[border - linear :]
            self.patches.append((linear, data))


class Draw:
    """One instruction of a form, with its operands. `raw` is None where it cannot be encoded."""

    def __init__(self, maker: CaseMaker, code: Any) -> None:
        self.maker = maker
        self.rng = maker.rng
        self.bits = maker.mode.bits
        self.info: Any = OpCodeInfo(code)
        self.name = code_names()[code]
        self.instruction: Any = Instruction()
        self.instruction.code = code
        self.mnemonic = mnemonic_names()[self.instruction.mnemonic]
        self.operands = _kinds(code)
        self.memory_at: int | None = None
        self.registers_used: list[tuple[int, int]] = []
        self.raw = self._draw()

    def _draw(self) -> bytes | None:
        rng = self.rng
        rex = rng.random() < 0.7 if self.bits == 64 else False
        self._choose_stack()
        for n, kind in enumerate(self.operands):
            if kind not in _STRINGS:
                self._operand(n, kind, rex)
        if any(kind in _STRINGS for kind in self.operands):
            self._string()
        self._prepare()
        if self.memory_at is not None and rng.random() < 0.05:
            self.instruction.has_lock_prefix = bool(self.info.can_use_lock_prefix)
        encoder = Encoder(self.bits)
        try:
            encoder.encode(self.instruction, CODE + len(self.maker.code))
        except ValueError:
            return None
        return bytes(encoder.take_buffer())

    def _operand(self, n: int, kind: str, rex: bool) -> None:
        rng, instruction = self.rng, self.instruction
        size, _, rest = kind.partition("_")
        if kind in _FIXED:
            self._set_register(n, kind)
        elif kind == "SREG":
            self._set_register(n, rng.choice(("ES", "SS", "DS", "FS", "GS")))
        elif kind == "SEG_RBX_AL":
            self._xlat(n)
        elif kind == "MEM" or (rest == "OR_MEM" and rng.random() < 0.7):
            self._memory(n, (int(size[1:]) if rest else self.info.operand_size or 64) // 8)
        elif kind == "MEM_OFFS":
            self._absolute(n)
        elif size in _SIZES:
            bits = int(size[1:])
            number = rng.randrange(16 if self.bits == 64 and (rex or bits > 8) else 8)
            self._set_register(n, register_name(number, bits, rex))
            self.registers_used.append((number if rex or bits > 8 or number < 4 else number - 4, bits))
        elif kind in _IMMEDIATES:
            self._immediate(n, kind)
        elif kind == "IMM8_CONST_1":
            instruction.set_op_kind(n, OpKind.IMMEDIATE8)
            instruction.set_immediate_i64(n, 1)
        else:
            instruction.set_op_kind(n, _BRANCHES[size])
            if size == "BR16":
                instruction.near_branch16 = LANDING
            elif size == "BR32":
                instruction.near_branch32 = LANDING
            else:
                instruction.near_branch64 = LANDING

    def _immediate(self, n: int, kind: str) -> None:
        instruction = self.instruction
        bits, op_kind = _IMMEDIATES[kind]
        if n and instruction.op_kind(0) == OpKind.IMMEDIATE16:  # ENTER
            op_kind = OpKind.IMMEDIATE8_2ND
        instruction.set_op_kind(n, op_kind)
        value = edge_value(self.rng, bits)
        if bits == 64:
            instruction.set_immediate_u64(n, value)
            return
        if kind != f"IMM{bits}":
            value -= value >> bits - 1 << bits
        instruction.set_immediate_i64(n, value)

    def _set_register(self, n: int, name: str) -> None:
        self.instruction.set_op_kind(n, OpKind.REGISTER)
        self.instruction.set_op_register(n, _REGISTER[name])

    # ---- memory --------------------------------------------------------------------------------------------

    def _choose_stack(self) -> None:
        """In a program every instruction that uses the stack may find it somewhere else."""
        if self.maker.program and self.rng.random() < 0.1:
            self.maker.set_register(RSP, self.maker.stack(), self.maker.stack_bits)

    def _address_size(self) -> int:
        if self.bits == 64:
            return 64 if self.rng.random() < 0.9 else 32
        if self.bits == 32:
            return 32
        return 16 if self.rng.random() < 0.75 else 32

    def _segment(self, default: str) -> str:
        """The segment of an operand, with a prefix now and then."""
        if self.rng.random() < 0.25:
            names: tuple[str, ...] = ("fs", "gs") if self.bits == 64 else ("es", "ss", "ds", "fs", "gs", "cs")
            if self.maker.program and self.maker.mode.protected and self.bits < 64:
                names = names[:-1]  # a store there faults, and KVM finds that late (kvm_deviations)
            name = self.rng.choice(names)
            self.instruction.segment_prefix = _REGISTER[name.upper()]
            return name
        return default

    def _memory(self, n: int, size: int) -> None:
        rng, instruction, maker = self.rng, self.instruction, self.maker
        instruction.set_op_kind(n, OpKind.MEMORY)
        bits = self._address_size()
        mask = (1 << bits) - 1
        free = [number for number in range(16 if self.bits == 64 else 8) if number not in (RSP, RBP)]
        base_number: int | None
        index_number: int | None = None
        scale = 1
        displacement = rng.choice((0, rng.randrange(-128, 128), rng.randrange(-(1 << 31), 1 << 31)))
        if bits == 16:
            base, index = rng.choice(_ADDRESSES16)
            base_number = GPR_NAMES.index("r" + base.lower()) if base else None
            index_number = GPR_NAMES.index("r" + index.lower()) if index else None
            instruction.memory_base = _REGISTER[base] if base else Register.NONE
            instruction.memory_index = _REGISTER[index] if index else Register.NONE
            instruction.memory_displ_size = 2
        else:
            base_number = rng.choice(free)
            if rng.random() < 0.3:
                index_number = rng.choice([number for number in free if number != base_number])
                scale = rng.choice((1, 2, 4, 8))
                instruction.memory_index = _REGISTER[register_name(index_number, bits)]
                instruction.memory_index_scale = scale
            instruction.memory_base = _REGISTER[register_name(base_number, bits)]
            instruction.memory_displ_size = bits // 8
        segment = self._segment("ss" if base_number == RBP else "ds")
        self.memory_at = maker.place(size)
        offset = self.memory_at - maker.base_of(segment) & M64
        if base_number is None:
            displacement = offset
        instruction.memory_displacement = displacement & mask
        if base_number is None:
            return
        index_value = 0
        if index_number is not None:
            index_value = edge_value(rng, bits)
            maker.set_register(index_number, index_value, bits)
        maker.set_register(base_number, offset - index_value * scale - displacement & mask, bits)

    def _absolute(self, n: int) -> None:
        """A moffs operand."""
        instruction = self.instruction
        instruction.set_op_kind(n, OpKind.MEMORY)
        bits = self._address_size()
        segment = self._segment("ds")
        self.memory_at = self.maker.place(8)
        instruction.memory_displ_size = bits // 8
        instruction.memory_displacement = self.memory_at - self.maker.base_of(segment) & (1 << bits) - 1

    def _xlat(self, n: int) -> None:
        instruction = self.instruction
        bits = self._address_size()
        instruction.set_op_kind(n, OpKind.MEMORY)
        instruction.memory_base = _REGISTER[register_name(RBX, bits)]
        instruction.memory_index = Register.AL
        segment = self._segment("ds")
        at = self.maker.place(1) - self.maker.base_of(segment)
        self.maker.set_register(RBX, at - (self.maker.registers[RAX] & 0xFF), bits)

    def _string(self) -> None:
        """Pointers, a direction, a prefix with a count."""
        rng, instruction, maker = self.rng, self.instruction, self.maker
        bits = self._address_size()
        for n, kind in enumerate(self.operands):
            if kind in _STRINGS:
                instruction.set_op_kind(n, _STRINGS[kind][bits])
        segment = "ds"
        if "SEG_RSI" in self.operands:
            segment = self._segment("ds")
        source = maker.place(8)
        target = source + rng.randrange(-9, 10) if rng.random() < 0.2 else maker.place(8)
        maker.set_register(RSI, source - maker.base_of(segment), bits)
        maker.set_register(RDI, target - maker.base_of("es"), bits)
        if self.mnemonic.startswith(("CMPS", "SCAS")) and rng.random() < 0.5:  # something to find equal
            value = rng.getrandbits(8) * 0x0101_0101_0101_0101
            for at in (source, target):
                for n in range(-16, 17, 8):
                    maker.put(at + n, value, 8)
            maker.set_register(RAX, value, 32 if self.bits < 64 else 64)
        if rng.random() < 0.7:
            if rng.random() < 0.5:
                instruction.has_rep_prefix = True
            else:
                instruction.has_repne_prefix = True
            maker.set_register(RCX, rng.choice((0, 1, 2, 5, rng.randrange(18), rng.randrange(60))), bits)

    # ---- what makes single instructions worthwhile ---------------------------------------------------------

    def _prepare(self) -> None:
        rng, maker = self.rng, self.maker
        stack = maker.registers[RSP] + maker.base_of("ss")
        native = 32 if self.bits == 32 else self.bits
        if self.mnemonic in ("DIV", "IDIV") and RDX not in maker.pinned:
            maker.set_register(RDX, rng.randrange(3), native)
        elif self.mnemonic.startswith("CMPXCHG") and self.memory_at is not None and rng.random() < 0.5:
            self._compare_equal()
        elif self.mnemonic.startswith("ENTER"):
            self.instruction.set_immediate_i64(0, rng.randrange(64))
            self.instruction.set_immediate_i64(1, rng.choice((0, 1, 2, 3, 9)) | rng.choice((0, 32, 0xE0)))
        elif self.mnemonic.startswith("POPF"):
            maker.put(stack, rng.getrandbits(64) & ~0x100, 8)  # TF would trap, and go on trapping
        elif self.mnemonic.startswith("LOOP") or "CXZ" in self.name:
            maker.set_register(RCX, rng.randrange(3), native)
        elif self.mnemonic.startswith("RET"):
            maker.put(stack, LANDING, 8)
        elif self.mnemonic in ("JMP", "CALL"):
            if self.memory_at is not None:
                maker.put(self.memory_at, LANDING, 8)
            elif self.registers_used:
                maker.set_register(self.registers_used[0][0], LANDING, native)
        elif self.mnemonic in ("SHLD", "SHRD"):  # 16-bit ones by more than 16 are undefined
            if self.operands[-1] == "CL" and RCX not in maker.pinned:
                maker.set_register(RCX, rng.randrange(16), native)
            elif self.operands[-1] != "CL":
                self.instruction.set_immediate_i64(2, rng.randrange(16))

    def _compare_equal(self) -> None:
        """Make the comparison of CMPXCHG hold."""
        maker = self.maker
        assert self.memory_at is not None
        rax, rdx = maker.registers[RAX], maker.registers[RDX]
        if "16B" in self.name:
            maker.put(self.memory_at, rdx << 64 | rax, 16)
        elif "8B" in self.name:
            maker.put(self.memory_at, (rdx & 0xFFFF_FFFF) << 32 | rax & 0xFFFF_FFFF, 8)
        else:
            maker.put(self.memory_at, rax, 8)


def undefined_flags(code: bytes, bits: int) -> int:
    """RFLAGS bits that iced's tables call undefined after the first instruction of `code`, and OF of RCL and
    RCR, of which only a rotation by 1 defines it."""
    instruction = Decoder(bits, code).decode()
    mnemonic = mnemonic_names()[instruction.mnemonic]
    undefined = instruction.rflags_undefined
    extra = 1 << 11 if mnemonic in ("RCL", "RCR") else 0
    return extra | sum(1 << bit for flag, bit in ICED_FLAGS if undefined & flag)


def is_undefined(case: Case) -> bool:
    """16-bit SHLD and SHRD by more than 16: the result itself is undefined."""
    instruction: Any = Decoder(MODES[case.mode].bits, case.code).decode()
    name = code_names()[instruction.code]
    if not name.startswith(("SHLD_RM16", "SHRD_RM16")):
        return False
    return (case.registers["rcx"] if name.endswith("CL") else instruction.immediate8) & 31 > 16


def single_case(rng: Random, mode: str, code: int) -> Case | None:
    """One instruction of a form in a random state."""
    case = CaseMaker(rng, MODES[mode], False).single(code)
    return None if case is None or is_undefined(case) else case


def program_case(rng: Random, mode: str) -> Case | None:
    """A short program of random forms."""
    count = rng.randrange(2, PROGRAM_LENGTH + 1)
    return CaseMaker(rng, MODES[mode], True).several(rng.choices(program_forms(mode), k=count))
