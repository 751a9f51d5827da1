"""Generated cases: one form with operands, registers, flags and memory that make it interesting.

Built from iced's own table of forms, so a form that the table gains is generated too. Everything is drawn
from one seeded generator: the same seed gives the same cases.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from iced_x86 import (
    Decoder,
    Encoder,
    Instruction,
    MandatoryPrefix,
    MemorySizeExt,
    OpCodeInfo,
    OpCodeOperandKind,
    OpKind,
    Register,
)

from isa.decode import code_names, mnemonic_names
from tests.oracles.native import (
    BASES,
    CODE,
    DATA,
    GDT,
    GDT_CPU_NODE,
    GPR,
    LDT,
    SELECTORS,
    TAKEN,
    WINDOW,
    WINDOW_SIZE,
    Case,
)

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
M64 = (1 << 64) - 1
INPUT_FLAGS = 0x8D5  # CF PF AF ZF SF OF
TF, DF, NT, AC = 0x100, 0x400, 0x4000, 0x4_0000
LOCK = 0xF0
SEGMENT_PREFIXES = bytes.fromhex("26 2e 36 3e 64 65")  # ES CS SS DS FS GS
SEGMENT_LOADS = ("MOV_SREG", "POPW_", "POPD_", "POPQ_")
FAR_POINTERS = ("LDS", "LES", "LFS", "LGS", "LSS")
DESCRIPTOR_LOOKS = ("LAR", "LSL", "VERR", "VERW", "ARPL")
FAR_BRANCHES = ("JMP_M16", "CALL_M16", "JMP_PTR", "CALL_PTR")
FAR_RETURNS = ("RETF", "IRET")

# AMD's CPUs: LOCK MOV CR0 is MOV CR8; with a certain microcode VERW takes LOCK
LOCK_IS_TAKEN = ("VERW", "MOV_R32_CR", "MOV_R64_CR", "MOV_CR")
# AMD's CPUs load four bytes, Intel's two
NARROWER_HERE = ("MOVSXD_R16_RM16",)
# Some operands of these make another form: PREFETCH, NOP
AMBIGUOUS = ("RESERVEDNOP", "XCHG_R")
CONTROL_REGISTERS, DEBUG_REGISTERS = (0, 2, 3, 4), (0, 1, 2, 3, 6, 7)

# Every selector of the tables with each RPL, and some past their ends
SELECTOR_CHOICES = tuple(
    selector
    for first, count in ((0, len(GDT)), (4, len(LDT)))
    for selector in (*(n << 3 | first | rpl for n in range(count + 2) for rpl in range(4)), 0xFFF8 | first)
    if selector & ~3 != GDT_CPU_NODE
)

_KIND = {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}
_REGISTER = {name: value for name, value in vars(Register).items() if isinstance(value, int)}
_LEGACY8 = ("AL", "CL", "DL", "BL", "AH", "CH", "DH", "BH")
_ADDRESSES16 = (("BX", "SI"), ("BX", "DI"), ("BP", "SI"), ("BP", "DI"), ("SI", ""), ("DI", ""), ("BP", ""),
                ("BX", ""), ("", ""))  # fmt: skip
_STRING_KINDS = {
    "SEG_RSI": {64: OpKind.MEMORY_SEG_RSI, 32: OpKind.MEMORY_SEG_ESI, 16: OpKind.MEMORY_SEG_SI},
    "ES_RDI": {64: OpKind.MEMORY_ESRDI, 32: OpKind.MEMORY_ESEDI, 16: OpKind.MEMORY_ESDI},
}
_IMMEDIATES = {
    "IMM8": (8, OpKind.IMMEDIATE8), "IMM16": (16, OpKind.IMMEDIATE16), "IMM32": (32, OpKind.IMMEDIATE32),
    "IMM64": (64, OpKind.IMMEDIATE64), "IMM32SEX64": (32, OpKind.IMMEDIATE32TO64),
    "IMM8SEX16": (8, OpKind.IMMEDIATE8TO16), "IMM8SEX32": (8, OpKind.IMMEDIATE8TO32),
    "IMM8SEX64": (8, OpKind.IMMEDIATE8TO64),
}  # fmt: skip
_FIXED = ("AL", "AX", "EAX", "RAX", "CL", "DX", "ES", "CS", "SS", "DS", "FS", "GS")
_BRANCHES = {"BR16": OpKind.NEAR_BRANCH16, "BR32": OpKind.NEAR_BRANCH32, "BR64": OpKind.NEAR_BRANCH64}


def register_name(number: int, bits: int, rex: bool = True) -> str:
    """iced's name of a general register; without `rex`, byte registers 4-7 are AH CH DH BH."""
    if bits == 8 and number < 8 and not rex:
        return _LEGACY8[number]
    if number >= 8:
        return f"R{number}" + {64: "", 32: "D", 16: "W", 8: "L"}[bits]
    short = GPR[number][1:].upper()
    if bits == 8:
        return _LEGACY8[number] if number < 4 else short + "L"
    return {64: "R", 32: "E", 16: ""}[bits] + short


def edge_value(rng: random.Random, bits: int) -> int:
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
    if kind == 4:
        return (1 << rng.randrange(1, bits + 1)) - 1
    return rng.getrandbits(bits)


@cache
def _info(code: Any) -> Any:
    return OpCodeInfo(code)


@cache
def _operand_kinds(code: Any) -> tuple[str, ...]:
    info = _info(code)
    return tuple(_KIND[info.op_kind(n)] for n in range(info.op_count))


class FormCase:
    """Builds one case of a form for code of `bits`. `case` is None where the draw has no encoding."""

    def __init__(self, rng: random.Random, code: Any, bits: int) -> None:
        self.rng = rng
        self.bits = bits
        self.info = _info(code)
        self.kinds = _operand_kinds(code)
        self.name = code_names()[code]
        self.instruction: Any = Instruction()
        self.instruction.code = code
        self.mnemonic = mnemonic_names()[self.instruction.mnemonic]
        self.regs = [edge_value(rng, 64) for _ in GPR]
        self.flags = rng.getrandbits(12) & INPUT_FLAGS | 0x202
        self.window = bytearray(rng.randbytes(WINDOW_SIZE))
        if rng.random() < 0.03 and self.name not in NARROWER_HERE:
            self.flags |= AC  # alignment is checked
        self.base = BASES[bits]["cs"]  # of CS, DS and SS
        self.segment_base = self.base  # of the memory operand
        self.registers_used: list[tuple[int, int]] = []  # (number, bits) of explicit operands
        self.memory_at: int | None = None  # linear address of an operand in the window
        self.address_registers: set[int] = set()  # what that address depends on
        self.leaves_window = False
        self.override = ""
        self.beside_code = False
        self.is_string = False
        self.case = self._build()

    # ---- the instruction ----------------------------------------------------------------------------------

    def _build(self) -> Case | None:
        rng = self.rng
        self.regs[RSP] = self._address(64) - self.base
        self.regs[RBP] = self._address(64) - self.base if rng.random() < 0.5 else self.regs[RBP]
        rex = rng.random() < 0.7 if self.bits == 64 else False
        self._segment()
        for n, kind in enumerate(self.kinds):
            if kind in _STRING_KINDS:
                self.is_string = True
            elif not self._operand(n, kind, rex):
                return None
        if self.is_string:
            self._string()
        self._prepare()
        lock = self.info.can_use_lock_prefix and self._has_memory() and rng.random() < 0.4
        self.instruction.has_lock_prefix = lock
        raw = self._encode()
        if raw is None or self.leaves_window:
            return None
        prefix = self._other_prefix(raw)
        self._aim(len(prefix + raw))
        if self.beside_code or any(kind.startswith(("BR", "FARBR", "IMM16")) for kind in self.kinds):
            raw = self._encode(len(prefix))
            if raw is None:
                return None
        if self.name.startswith(AMBIGUOUS):
            decoded = Decoder(self.bits, raw).decode()
            if not decoded.is_invalid and decoded.code != self.instruction.code:
                return None
        return Case(prefix + raw, tuple(value & self._register_mask() for value in self.regs), self.flags,
                    bytes(self.window), self.bits)  # fmt: skip

    def _has_memory(self) -> bool:
        instruction = self.instruction
        return any(instruction.op_kind(n) == OpKind.MEMORY for n in range(len(self.kinds)))

    def _other_prefix(self, raw: bytes) -> bytes:
        """Now and then a prefix that changes nothing but must not disturb, or a LOCK that is not allowed."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.01 and not self.name.startswith(LOCK_IS_TAKEN):
            prefix = bytes((LOCK,))
        elif choice < 0.04:
            prefix = bytes((rng.choice(SEGMENT_PREFIXES),))
        elif choice < 0.05 and self.info.mandatory_prefix == MandatoryPrefix.NONE and self._ignores_rep():
            prefix = rng.choice((b"\xf2", b"\xf3"))
        else:
            return b""
        decoded = Decoder(self.bits, prefix + raw, ip=CODE - self.base).decode()
        if decoded.is_invalid:
            return prefix if prefix[0] == LOCK and raw[0] != LOCK else b""
        if prefix[0] in (0xF2, 0xF3):
            return prefix if decoded.code == self.instruction.code and len(prefix + raw) <= 15 else b""
        relevant = self.instruction.segment_prefix != Register.NONE or (
            self._has_memory()
            or any(kind in ("MEM", "MEM_OFFS", "SEG_RSI", "SEG_RBX_AL") for kind in self.kinds)
        )
        if self.bits == 64 and prefix[0] in SEGMENT_PREFIXES[:4]:
            relevant = self.instruction.segment_prefix != Register.NONE
        if prefix[0] == LOCK or relevant or decoded.code != self.instruction.code or len(prefix + raw) > 15:
            return b""
        return prefix

    def _ignores_rep(self) -> bool:
        """Not what it repeats; REPNE turns LOOPE of AMD's CPUs into LOOPNE (the manual: reserved)."""
        return not self.is_string and not self.mnemonic.startswith("LOOP")

    def _segment(self) -> None:
        """A segment override for the memory operand, where the form has one. ES CS SS DS say nothing in
        64-bit code."""
        rng = self.rng
        if rng.random() >= 0.3:
            return
        name = rng.choice(("fs", "gs") if rng.random() < 0.75 else ("es", "cs", "ss", "ds"))
        for kind in self.kinds:
            if kind == "MEM" or "OR_MEM" in kind or kind in ("MEM_OFFS", "SEG_RSI", "SEG_RBX_AL"):
                self.override = name
                self.segment_base = BASES[self.bits][name] if self.bits != 64 or name in ("fs", "gs") else 0

    def _use_segment(self) -> None:
        """The override belongs to the operand that is being made."""
        if self.override:
            self.instruction.segment_prefix = _REGISTER[self.override.upper()]

    def _register_mask(self) -> int:
        return M64 if self.bits == 64 else 0xFFFF_FFFF

    def _encode(self, before: int = 0) -> bytes | None:
        """The bytes of the instruction, which stands `before` bytes behind CODE."""
        encoder = Encoder(self.bits)
        try:
            encoder.encode(self.instruction, CODE - self.base + before)
        except ValueError:
            return None
        return bytes(encoder.take_buffer())

    def _operand(self, n: int, kind: str, rex: bool) -> bool:
        rng, instruction = self.rng, self.instruction
        size, _, rest = kind.partition("_")
        if kind in _FIXED:
            self._set_register(n, kind)
        elif kind == "SEG_RBX_AL":
            self._xlat(n)
        elif kind == "MEM" or (rest == "OR_MEM" and rng.random() < 0.5):
            self._memory(n)
        elif kind == "MEM_OFFS":
            self._absolute(n)
        elif size in ("R8", "R16", "R32", "R64") and rest in ("OR_MEM", "REG", "OPCODE", "RM", "VVVV"):
            bits = int(size[1:])
            number = rng.randrange(16 if self.bits == 64 and (rex or bits > 8) else 8)
            self._set_register(n, register_name(number, bits, rex))
            self.registers_used.append((number if rex or bits > 8 or number < 4 else number - 4, bits))
        elif kind in _IMMEDIATES:
            bits, op_kind = _IMMEDIATES[kind]
            if n and instruction.op_kind(0) == OpKind.IMMEDIATE16:  # ENTER
                op_kind = OpKind.IMMEDIATE8_2ND
            instruction.set_op_kind(n, op_kind)
            value = edge_value(rng, bits)
            if bits == 64:
                instruction.set_immediate_u64(n, value)
            else:
                if kind != f"IMM{bits}":
                    value -= value >> bits - 1 << bits
                instruction.set_immediate_i64(n, value)
        elif kind == "IMM8_CONST_1":
            instruction.set_op_kind(n, OpKind.IMMEDIATE8)
            instruction.set_immediate_i64(n, 1)
        elif kind == "SEG_REG":
            self._set_register(n, rng.choice(("ES", "CS", "SS", "DS", "FS", "GS")))
        elif kind == "CR_REG":
            self._set_register(n, f"CR{rng.choice(CONTROL_REGISTERS)}")
        elif kind == "DR_REG":
            self._set_register(n, f"DR{rng.choice(DEBUG_REGISTERS)}")
        elif kind.startswith("FARBR"):
            self._far_branch(n, kind)
        elif size in _BRANCHES:
            instruction.set_op_kind(n, _BRANCHES[size])
            self._branch(CODE + 8)
        else:
            return False
        return True

    def _set_register(self, n: int, name: str) -> None:
        self.instruction.set_op_kind(n, OpKind.REGISTER)
        self.instruction.set_op_register(n, _REGISTER[name])

    # ---- memory -------------------------------------------------------------------------------------------

    def _address(self, room: int) -> int:
        """A linear address in the window, `room` bytes from its ends, often at the page boundary."""
        middle = WINDOW + WINDOW_SIZE // 2
        if self.rng.random() < 0.3:
            return middle - self.rng.randrange(1, 17)
        return WINDOW + self.rng.randrange(room, WINDOW_SIZE - room)

    def _target(self) -> int:
        """Linear address for a memory operand; now and then one that faults, or faults if it is written."""
        self.memory_at = None
        choice = self.rng.random()
        size = MemorySizeExt.size(self.info.memory_size)
        if choice < 0.015 and size and self.name not in NARROWER_HERE:
            if self.mnemonic in ("JMP", "CALL") or self.rng.random() < 0.5:
                return DATA + 0x2000 - self.rng.randrange(size)  # the page behind is absent
            return DATA - self.rng.randrange(1, 2 * size + 1)  # the page before is read-only
        if 0.015 < choice < 0.02 and self.bits == 64:
            return self.rng.choice((1 << 47, 0x8000_1234_5678_9ABC, 0xFFFF_7FFF_FFFF_FFF0))
        self.memory_at = self._address(64)
        if "16B" in self.name and self.rng.random() < 0.9:
            self.memory_at &= ~15
        return self.memory_at

    def _address_size(self) -> int:
        if self.bits == 64:
            return 64 if self.rng.random() < 0.85 else 32
        if self.bits == 32:  # a 16-bit address reaches the window through the segments that begin near it
            near = self.segment_base != self.base
            return 16 if near and self.rng.random() < 0.4 else 32
        return 16 if self.rng.random() < 0.8 else 32

    def _memory(self, n: int) -> None:
        rng, instruction = self.rng, self.instruction
        instruction.set_op_kind(n, OpKind.MEMORY)
        linear = self._target()
        self._use_segment()
        offset = linear - self.segment_base & M64
        bits = self._address_size()
        mask = (1 << bits) - 1
        if self.bits == 64 and rng.random() < 0.08:
            self._beside_code(linear)
            return
        if bits == 16:
            base, index = rng.choice(_ADDRESSES16)
            scale = 1
            displacement = rng.choice((0, rng.randrange(-128, 128), rng.randrange(0x10000)))
            if not base:
                displacement = offset
            instruction.memory_displ_size = 2
            instruction.memory_base = _REGISTER[base] if base else Register.NONE
            instruction.memory_index = _REGISTER[index] if index else Register.NONE
            base_number = GPR.index("r" + base.lower()) if base else None
            index_number = GPR.index("r" + index.lower()) if index else None
        else:
            count = 16 if self.bits == 64 else 8
            base_number = rng.randrange(count)
            index_number = rng.randrange(count) if rng.random() < 0.4 else None
            if index_number in (RSP, base_number):
                index_number = None
            scale = rng.choice((1, 2, 4, 8)) if index_number is not None else 1
            displacement = rng.choice((0, rng.randrange(-128, 128), rng.randrange(-(1 << 31), 1 << 31)))
            if base_number == RSP and self.mnemonic in ("PUSH", "POP", "CALL"):
                index_number, scale, displacement = None, 1, rng.randrange(-32, 32)  # the stack is used too
                instruction.segment_prefix = Register.NONE
                offset = linear - self.base & M64
            instruction.memory_displ_size = bits // 8
            instruction.memory_base = _REGISTER[register_name(base_number, bits)]
            if index_number is not None:
                instruction.memory_index = _REGISTER[register_name(index_number, bits)]
                instruction.memory_index_scale = scale
        instruction.memory_displacement = displacement & mask
        self.address_registers = {number for number in (base_number, index_number) if number is not None}
        if base_number is not None:
            index_value = self.regs[index_number] * scale if index_number is not None else 0
            value = offset - index_value - displacement & mask
            self.regs[base_number] = self.regs[base_number] & ~mask & M64 | value

    def _beside_code(self, linear: int) -> None:
        """An operand relative to RIP. The segment's base would be added to a target near RIP: none here."""
        instruction = self.instruction
        instruction.segment_prefix = Register.NONE
        self.segment_base = self.base
        if self.memory_at is None:
            linear = self.memory_at = self._address(64)
        narrow = self.rng.random() < 0.2
        instruction.memory_base = Register.EIP if narrow else Register.RIP
        instruction.memory_displ_size = 4 if narrow else 8
        instruction.memory_displacement = linear
        self.beside_code = True

    def _absolute(self, n: int) -> None:
        """A moffs operand."""
        self._use_segment()
        instruction = self.instruction
        instruction.set_op_kind(n, OpKind.MEMORY)
        bits = self._address_size()
        instruction.memory_displ_size = bits // 8
        instruction.memory_displacement = self._target() - self.segment_base & (1 << bits) - 1

    def _xlat(self, n: int) -> None:
        instruction = self.instruction
        bits = self._address_size()
        instruction.set_op_kind(n, OpKind.MEMORY)
        instruction.memory_base = _REGISTER[register_name(RBX, bits)]
        instruction.memory_index = Register.AL
        self._use_segment()
        self.memory_at = self._address(64)
        self.regs[RBX] = self.memory_at - self.segment_base - (self.regs[RAX] & 0xFF) & M64

    def _string(self) -> None:
        """Pointers into the window, a direction, sometimes a prefix with a count that stays inside."""
        rng, instruction = self.rng, self.instruction
        bits = self._address_size()
        if self.bits == 32 and "SEG_RSI" not in self.kinds and rng.random() < 0.3:
            bits = 16  # ES begins near the window
        mask = (1 << bits) - 1
        for n, kind in enumerate(self.kinds):
            if kind in _STRING_KINDS:
                instruction.set_op_kind(n, _STRING_KINDS[kind][bits])
        if "SEG_RSI" in self.kinds:
            self._use_segment()
        if rng.random() < 0.3:
            self.flags |= DF
        middle = WINDOW + WINDOW_SIZE // 2
        near = rng.random() < 0.3  # overlapping source and destination
        source = middle + rng.randrange(-100, 100)
        target = source + rng.randrange(-9, 10) if near else middle + rng.randrange(-100, 100)
        if rng.random() < 0.3:  # something for CMPS and SCAS to find equal
            start = rng.choice((bytes((rng.getrandbits(8),)), self.window[:8]))
            self.window[:] = (start * WINDOW_SIZE)[:WINDOW_SIZE]
            if rng.random() < 0.7:
                self.window[rng.randrange(156, 356)] ^= 1 << rng.randrange(8)
            self.regs[RAX] = int.from_bytes(self.window[200:208], "little")
        for register, offset in ((RSI, source - self.segment_base), (RDI, target - BASES[self.bits]["es"])):
            self.regs[register] = self.regs[register] & ~mask & M64 | offset & mask
        if rng.random() < 0.7:
            if rng.random() < 0.5:
                instruction.has_rep_prefix = True
            else:
                instruction.has_repne_prefix = True
            count = rng.choice((0, 1, 2, 5, rng.randrange(18)))
            self.regs[RCX] = self.regs[RCX] & ~mask & M64 | count

    # ---- what makes single instructions worthwhile ------------------------------------------------------

    def _prepare(self) -> None:
        rng, regs = self.rng, self.regs
        if self.mnemonic in ("DIV", "IDIV") and not self.address_registers & {RAX, RDX}:
            regs[RDX] = M64 if self.mnemonic == "IDIV" and regs[RAX] >> 63 else rng.randrange(3)
            if rng.random() < 0.5:
                regs[RAX] >>= rng.randrange(64)
        elif self.mnemonic in ("BT", "BTS", "BTR", "BTC") and self._has_memory():
            self._bit_offset()
        elif self.mnemonic.startswith("CMPXCHG"):
            self._compare_equal()
        elif self.mnemonic.startswith("ENTER"):
            regs[RBP] = WINDOW + WINDOW_SIZE // 2 + rng.randrange(-64, 64) - self.base
            regs[RSP] = WINDOW + WINDOW_SIZE - rng.randrange(96) - self.base
            self.instruction.set_immediate_i64(0, rng.randrange(64))
            self.instruction.set_immediate_i64(1, rng.choice((0, 1, 2, 3, 9)) | rng.choice((0, 32, 0xE0)))
        elif self.mnemonic in ("POPF", "POPFD", "POPFQ"):
            image = rng.getrandbits(64) & ~TF  # it would trap in the trampoline
            self._put(regs[RSP] + self.base, image & M64, 8)
        elif self.mnemonic.startswith("LOOP") or "CXZ" in self.name:
            regs[RCX] = regs[RCX] & rng.choice((M64, ~0xFFFF, ~0xFFFF_FFFF, 0)) & M64 | rng.randrange(3)
        elif self.mnemonic.startswith("LEAVE"):
            regs[RBP] = self._address(64) - self.base
        elif self.name.startswith((*SEGMENT_LOADS, *FAR_POINTERS, *DESCRIPTOR_LOOKS)):
            self._selector()
        elif self.name.startswith(("WRFSBASE", "WRGSBASE")):
            self._base()

    def _selector(self) -> None:
        """A selector where the form takes one: in a register, in memory, on the stack, behind an offset."""
        rng = self.rng
        selector = rng.choice(SELECTOR_CHOICES)
        if rng.random() < 0.4:  # one that most segment registers take
            selector = rng.choice((0, 3, *SELECTORS[32].values(), *SELECTORS[16].values()))
        if self.name.startswith("POP"):
            self._put(self.regs[RSP] + self.base, selector, 2)
        elif self.memory_at is not None:
            behind = 0
            if self.name.startswith(FAR_POINTERS):
                behind = MemorySizeExt.size(self.info.memory_size) - 2
            self._put(self.memory_at + behind, selector, 2)
        elif self.registers_used and not self._has_memory():
            number = self.registers_used[-1][0]
            if self.mnemonic == "ARPL":
                number = self.registers_used[rng.randrange(len(self.registers_used))][0]
            self.regs[number] = self.regs[number] & ~0xFFFF | selector

    def _base(self) -> None:
        """Mostly a canonical address."""
        number = self.registers_used[0][0]
        value = self.regs[number] & (1 << 48) - 1
        if self.rng.random() < 0.8:
            self.regs[number] = value - (value >> 47 << 48) & M64

    def _far_selector(self) -> int:
        """Mostly that of the running code; never that of another segment which code may run in."""
        own = SELECTORS[self.bits]["cs"]
        if self.rng.random() < 0.75:
            return own
        selector = self.rng.choice(SELECTOR_CHOICES)
        table, number = (LDT if selector & 4 else GDT), selector >> 3
        if number >= len(table):
            return selector
        entry = table[number]
        descriptor = entry if isinstance(entry, int) else entry.descriptor()
        enterable = descriptor >> 43 & 3 == 3 and descriptor >> 47 & 1 and descriptor >> 45 & 3 == 3
        return own if enterable else selector

    def _far_branch(self, n: int, kind: str) -> None:
        """A pointer in the instruction. Seven or five bytes, perhaps a prefix: `_aim` corrects it."""
        instruction = self.instruction
        wide = kind.startswith("FARBR4")
        instruction.set_op_kind(n, OpKind.FAR_BRANCH32 if wide else OpKind.FAR_BRANCH16)
        instruction.far_branch_selector = self._far_selector()
        self._far_offset(CODE + 8 - self.base)

    def _far_offset(self, offset: int) -> None:
        if self.instruction.op_kind(0) == OpKind.FAR_BRANCH32:
            self.instruction.far_branch32 = offset
        else:
            self.instruction.far_branch16 = offset & 0xFFFF

    def _bit_offset(self) -> None:
        """A bit offset that leaves the operand, in both directions, but not the window."""
        if len(self.registers_used) != 1:
            return
        if self.memory_at is None:
            self.leaves_window = True
            return
        number, bits = self.registers_used[0]
        if number in self.address_registers:  # the bit could be anywhere, in the trampoline even
            self.leaves_window = True
            return
        low = (WINDOW + 16 - self.memory_at) * 8
        high = (WINDOW + WINDOW_SIZE - 16 - self.memory_at) * 8
        mask = (1 << bits) - 1
        self.regs[number] = self.regs[number] & ~mask | self.rng.randrange(low, high) & mask

    def _compare_equal(self) -> None:
        """Make the comparison of CMPXCHG hold half of the time."""
        if self.rng.random() < 0.5:
            return
        if self.memory_at is None:
            if not self.address_registers and self.registers_used:
                self.regs[RAX] = self.regs[self.registers_used[0][0]]
        elif "16B" in self.name:
            self._put(self.memory_at, self.regs[RDX] << 64 | self.regs[RAX], 16)
        elif "8B" in self.name:
            self._put(self.memory_at, (self.regs[RDX] & 0xFFFF_FFFF) << 32 | self.regs[RAX] & 0xFFFF_FFFF, 8)
        else:
            self._put(self.memory_at, self.regs[RAX], 8)

    def _put(self, linear: int, value: int, size: int) -> None:
        at = linear - WINDOW
        if 0 <= at <= WINDOW_SIZE - size:
            self.window[at : at + size] = value.to_bytes(size, "little")

    # ---- branches -----------------------------------------------------------------------------------------

    def _branch(self, linear: int) -> None:
        instruction, target = self.instruction, linear - self.base
        kind = instruction.op_kind(0)
        if kind == OpKind.NEAR_BRANCH16:
            instruction.near_branch16 = target & 0xFFFF
        elif kind == OpKind.NEAR_BRANCH32:
            instruction.near_branch32 = target
        else:
            instruction.near_branch64 = target

    def _aim(self, size: int) -> None:
        """Let every branch land `TAKEN` bytes behind the instruction of `size` bytes."""
        target = CODE + size + TAKEN
        if any(kind.startswith("BR") for kind in self.kinds):
            self._branch(target)
        elif self.kinds and self.kinds[0].startswith("FARBR"):
            self._far_offset(target - self.base)
        elif self.name.startswith(FAR_BRANCHES):
            if self.memory_at is not None:
                offset = MemorySizeExt.size(self.info.memory_size) - 2
                self._put(self.memory_at, target - self.base, offset)
                self._put(self.memory_at + offset, self._far_selector(), 2)
        elif self.name.startswith(FAR_RETURNS):
            self._far_return(target - self.base)
        elif self.mnemonic in ("JMP", "CALL"):
            if self.memory_at is not None:
                self._put(self.memory_at, target - self.base, 8)
            elif self.registers_used:
                self.regs[self.registers_used[0][0]] = target - self.base
        elif self.mnemonic == "RET":
            self._put(self.regs[RSP] + self.base, target - self.base, 8)

    def _far_return(self, target: int) -> None:
        """What RETF and IRET find on the stack."""
        rng = self.rng
        if self.kinds:  # AMD looks behind the released bytes before it refuses a selector: no fault there
            released = rng.randrange(64)
            self.instruction.set_immediate_i64(0, released & ~7 if self.flags & AC else released)
        width = {"W": 2, "D": 4, "Q": 8}[self.name.partition("_")[0][-1]]
        words = [target, self._far_selector() | rng.getrandbits(64) & ~0xFFFF]
        if self.name.startswith("IRET"):
            words.append(rng.getrandbits(32) & ~TF)
            if rng.random() < 0.03:
                self.flags |= NT
            if self.bits == 64:  # RSP and SS are always popped
                words.append(rng.getrandbits(64) if rng.random() < 0.3 else self._address(64))
                words.append(SELECTORS[64]["ss"] if rng.random() < 0.9 else rng.choice(SELECTOR_CHOICES))
        for n, word in enumerate(words):
            self._put(self.regs[RSP] + self.base + n * width, word & (1 << 8 * width) - 1, width)


def make_case(rng: random.Random, code: int, bits: int) -> Case | None:
    """One case of a form, or None where this draw cannot be encoded."""
    return FormCase(rng, code, bits).case


def is_usable(code: Any, bits: int) -> bool:
    """False for forms that user code of `bits` does not have or that would leave the test area.

    Branches with a 16-bit operand size stay in the first 64 KiB of the code segment: 16-bit code only.
    Outside 64-bit code SYSRET at CPL 3 is #UD on Intel's CPUs and #GP on AMD's.
    """
    info = _info(code)
    if not {64: info.mode64, 32: info.mode32, 16: info.mode16}[bits]:
        return False
    name = code_names()[code]
    narrow = any(kind.startswith(("BR16", "FARBR2")) for kind in _operand_kinds(code)) or name.startswith(
        ("RETNW", "RETFW", "IRETW", "JMP_RM16", "CALL_RM16", "JMP_M1616", "CALL_M1616")
    )
    return (bits == 16 or not narrow) and (bits == 64 or not name.startswith("SYSRET"))
