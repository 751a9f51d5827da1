"""Generated cases: one form with operands, registers, flags and memory that make it interesting.

Built from iced's own table of forms, so a form that the table gains is generated too. Everything is drawn
from one seeded generator: the same seed gives the same cases.
"""

from __future__ import annotations

import random
from typing import Any

from iced_x86 import Encoder, Instruction, OpCodeInfo, OpCodeOperandKind, OpKind, Register

from isa.decode import code_names, mnemonic_names
from tests.oracles.native import CODE, DATA, GPR, SEGMENT16_BASE, TAKEN, WINDOW, WINDOW_SIZE, Case

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
M64 = (1 << 64) - 1
INPUT_FLAGS = 0x8D5  # CF PF AF ZF SF OF
DF = 0x400

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


class FormCase:
    """Builds one case of a form for code of `bits`. `case` is None where the draw has no encoding."""

    def __init__(self, rng: random.Random, code: Any, bits: int) -> None:
        self.rng = rng
        self.bits = bits
        self.info = OpCodeInfo(code)
        self.name = code_names()[code]
        self.instruction: Any = Instruction()
        self.instruction.code = code
        self.mnemonic = mnemonic_names()[self.instruction.mnemonic]
        self.regs = [edge_value(rng, 64) for _ in GPR]
        self.flags = rng.getrandbits(12) & INPUT_FLAGS | 0x202
        self.window = bytearray(rng.randbytes(WINDOW_SIZE))
        self.base = SEGMENT16_BASE if bits == 16 else 0  # of every segment
        self.registers_used: list[tuple[int, int]] = []  # (number, bits) of explicit operands
        self.memory_at: int | None = None  # linear address of an operand in the window
        self.address_registers: set[int] = set()  # what that address depends on
        self.leaves_window = False
        self.case = self._build()

    # ---- the instruction ----------------------------------------------------------------------------------

    def _build(self) -> Case | None:
        rng = self.rng
        self.regs[RSP] = self._address(64) - self.base
        self.regs[RBP] = self._address(64) - self.base if rng.random() < 0.5 else self.regs[RBP]
        rex = rng.random() < 0.7 if self.bits == 64 else False
        string = False
        for n in range(self.info.op_count):
            kind = _KIND[self.info.op_kind(n)]
            if kind in _STRING_KINDS:
                string = True
            elif not self._operand(n, kind, rex):
                return None
        if string:
            self._string()
        self._prepare()
        raw = self._encode()
        if raw is None or self.leaves_window:
            return None
        self._aim(len(raw))
        if any(kind.startswith("BR") for kind in self._kinds()):
            raw = self._encode()
            if raw is None:
                return None
        return Case(raw, tuple(value & self._register_mask() for value in self.regs), self.flags,
                    bytes(self.window), self.bits)  # fmt: skip

    def _register_mask(self) -> int:
        return M64 if self.bits == 64 else 0xFFFF_FFFF

    def _kinds(self) -> list[str]:
        return [_KIND[self.info.op_kind(n)] for n in range(self.info.op_count)]

    def _encode(self) -> bytes | None:
        encoder = Encoder(self.bits)
        try:
            encoder.encode(self.instruction, CODE - self.base)
        except ValueError:
            return None
        return bytes(encoder.take_buffer())

    def _operand(self, n: int, kind: str, rex: bool) -> bool:
        rng, instruction = self.rng, self.instruction
        size, _, rest = kind.partition("_")
        if kind in ("AL", "AX", "EAX", "RAX", "CL", "DX"):
            self._set_register(n, kind)
        elif kind == "SEG_RBX_AL":
            self._xlat(n)
        elif kind == "MEM" or (rest == "OR_MEM" and rng.random() < 0.5):
            self._memory(n, int(size[1:]) if rest else self.info.operand_size or 64)
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

    def _target(self, size: int) -> int:
        """Linear address for a memory operand; now and then one that faults."""
        self.memory_at = None
        choice = self.rng.random()
        if choice < 0.01:
            return DATA - 4 + self.rng.randrange(4) - size  # the guard page below
        if choice < 0.02 and self.bits == 64:
            return self.rng.choice((1 << 47, 0x8000_1234_5678_9ABC, 0xFFFF_7FFF_FFFF_FFF0))
        self.memory_at = self._address(64)
        if "16B" in self.name and self.rng.random() < 0.9:
            self.memory_at &= ~15
        return self.memory_at

    def _address_size(self) -> int:
        if self.bits == 64:
            return 64 if self.rng.random() < 0.85 else 32
        if self.bits == 32:
            return 32  # a 16-bit address does not reach the window
        return 16 if self.rng.random() < 0.8 else 32

    def _memory(self, n: int, size: int) -> None:
        rng, instruction = self.rng, self.instruction
        instruction.set_op_kind(n, OpKind.MEMORY)
        linear = self._target(size // 8)
        offset = linear - self.base & M64
        bits = self._address_size()
        mask = (1 << bits) - 1
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

    def _absolute(self, n: int) -> None:
        """A moffs operand."""
        instruction = self.instruction
        instruction.set_op_kind(n, OpKind.MEMORY)
        bits = self._address_size()
        instruction.memory_displ_size = bits // 8
        instruction.memory_displacement = self._target(8) - self.base & (1 << bits) - 1

    def _xlat(self, n: int) -> None:
        instruction = self.instruction
        bits = self._address_size()
        instruction.set_op_kind(n, OpKind.MEMORY)
        instruction.memory_base = _REGISTER[register_name(RBX, bits)]
        instruction.memory_index = Register.AL
        self.memory_at = self._address(64)
        self.regs[RBX] = self.memory_at - self.base - (self.regs[RAX] & 0xFF) & M64

    def _string(self) -> None:
        """Pointers into the window, a direction, sometimes a prefix with a count that stays inside."""
        rng, instruction = self.rng, self.instruction
        bits = self._address_size()
        mask = (1 << bits) - 1
        for n, kind in enumerate(self._kinds()):
            if kind in _STRING_KINDS:
                instruction.set_op_kind(n, _STRING_KINDS[kind][bits])
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
        for register, linear in ((RSI, source), (RDI, target)):
            self.regs[register] = self.regs[register] & ~mask & M64 | linear - self.base
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
        elif self.mnemonic in ("BT", "BTS", "BTR", "BTC") and self.memory_at is not None:
            self._bit_offset()
        elif self.mnemonic.startswith("CMPXCHG"):
            self._compare_equal()
        elif self.mnemonic.startswith("ENTER"):
            regs[RBP] = WINDOW + WINDOW_SIZE // 2 + rng.randrange(-64, 64) - self.base
            regs[RSP] = WINDOW + WINDOW_SIZE - rng.randrange(96) - self.base
            self.instruction.set_immediate_i64(0, rng.randrange(64))
            self.instruction.set_immediate_i64(1, rng.choice((0, 1, 2, 3, 9)) | rng.choice((0, 32, 0xE0)))
        elif self.mnemonic in ("POPF", "POPFD", "POPFQ"):
            image = rng.getrandbits(64) & ~0x100  # TF would trap in the trampoline
            self._put(regs[RSP] + self.base, image & M64, 8)
        elif self.mnemonic.startswith("LOOP") or "CXZ" in self.name:
            regs[RCX] = regs[RCX] & rng.choice((M64, ~0xFFFF, ~0xFFFF_FFFF, 0)) & M64 | rng.randrange(3)
        elif self.mnemonic.startswith("LEAVE"):
            regs[RBP] = self._address(64) - self.base

    def _bit_offset(self) -> None:
        """A bit offset that leaves the operand, in both directions, but not the window."""
        if len(self.registers_used) != 1 or self.memory_at is None:
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
        if any(kind.startswith("BR") for kind in self._kinds()):
            self._branch(target)
        elif self.mnemonic in ("JMP", "CALL"):
            if self.memory_at is not None:
                self._put(self.memory_at, target - self.base, 8)
            elif self.registers_used:
                self.regs[self.registers_used[0][0]] = target - self.base
        elif self.mnemonic == "RET":
            self._put(self.regs[RSP] + self.base, target - self.base, 8)


def make_case(rng: random.Random, code: int, bits: int) -> Case | None:
    """One case of a form, or None where this draw cannot be encoded."""
    return FormCase(rng, code, bits).case


def is_usable(code: Any, bits: int) -> bool:
    """False for forms that a user process cannot try here.

    Near branches with a 16-bit operand size leave the test area in 32-bit code, and in 64-bit code Intel's
    and AMD's CPUs disagree about them. KNC, XOP and 486 (A step) forms are of CPUs of the past.
    """
    info: Any = OpCodeInfo(code)
    name = code_names()[code]
    exists = {64: info.mode64, 32: info.mode32, 16: info.mode16}[bits]
    if not exists or "KNC" in name or "486" in name or "XOP" in name:
        return False
    kinds = [_KIND[info.op_kind(n)] for n in range(info.op_count)]
    near16 = any(kind.startswith("BR16") for kind in kinds) or name.startswith("RETNW")
    return bits == 16 or not (near16 or name in ("JMP_RM16", "CALL_RM16"))
