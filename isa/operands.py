"""Operands: what an instruction function reads and writes as `dst.value`, `src.value`. No instruction here.

Every operand has `bits`, `bytes` and `mask` (its width) and `value`. A memory operand also has `segment`,
`offset` (its effective address) and `address_mask`. Values are unsigned and fit the width; who assigns masks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

from isa.faults import GeneralProtection
from isa.state import GPR_NAMES, M64, Segment

if TYPE_CHECKING:
    from isa.cpu import Cpu

EffectiveAddress = Callable[["Cpu", int], int]


class Operand(Protocol):
    """What instruction functions see."""

    bits: int
    bytes: int
    mask: int
    value: int
    in_memory: bool


class Memory(Operand, Protocol):
    """A memory operand: BT, LEA, LGDT, FXSAVE and friends use its address."""

    segment: Segment
    address_mask: int

    @property
    def offset(self) -> int:
        """The effective address, masked to the address size."""


class Width:
    """A bare operand size, for instructions that have one but no operand (RET, PUSHF, ENTER ...)."""

    __slots__ = ("bits", "bytes", "mask")
    in_memory = False

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.bytes = bits // 8
        self.mask = (1 << bits) - 1


class Immediate(Width):
    """A constant. `value` is sign-extended to the operand size already, as unsigned."""

    __slots__ = ("value",)

    def __init__(self, value: int, bits: int) -> None:
        super().__init__(bits)
        self.value = value & self.mask


class UnreachableTarget(Width):
    """A near branch target outside the CS limit or not canonical: reading it, as a taken branch does, is #GP.

    The mode and the limit are part of the key under which an instruction is decoded, so this is known then.
    """

    __slots__ = ("target",)

    def __init__(self, target: int, bits: int) -> None:
        super().__init__(bits)
        self.target = target

    @property
    def value(self) -> int:
        raise GeneralProtection(0, f"branch target {self.target:#x} outside the CS limit or not canonical")


class Location:
    """Where an x87 instruction stands: its own address (FIP) and its 11-bit opcode (FOP)."""

    __slots__ = ("ip", "opcode")

    def __init__(self, ip: int, raw: bytes) -> None:
        self.ip = ip
        at = next(n for n, byte in enumerate(raw) if byte & 0xF8 == 0xD8)  # behind the prefixes
        self.opcode = (raw[at] & 7) << 8 | raw[at + 1]


class FarPointer(Width):
    """ptr16:16 or ptr16:32 inside the instruction: `selector` and `value` (the offset)."""

    __slots__ = ("selector", "value")

    def __init__(self, selector: int, offset: int, bits: int) -> None:
        super().__init__(bits)
        self.selector = selector
        self.value = offset


# ---- registers -------------------------------------------------------------------------------------------

_REGISTER_CLASS = '''
class {title}:
    """{doc}"""
    __slots__ = ("cpu",)
    bits = {bits}
    bytes = {bytes}
    mask = {mask:#x}
    register = {register!r}
    source = {source!r}
    vex = {vex}
    in_memory = False

    def __init__(self, cpu):
        self.cpu = cpu

    @property
    def value(self):
        return {read}

    @value.setter
    def value(self, value):
        {write}
'''


def _register_class(
    title: str, register: str, bits: int, read: str, write: str, source: str = "", vex: bool = False
) -> type[Any]:
    """A class whose `value` is one attribute access away: a general one would cost 60 ns a read more.

    `source` names the register that is read where it is not `register`; `vex`: a write zeroes what is above.
    """
    text = _REGISTER_CLASS.format(
        title=title, doc=f"{bits} bits of {register.upper()}.", bits=bits, bytes=bits // 8,
        mask=(1 << bits) - 1, register=register, source=source or register, vex=vex, read=read, write=write,
    )  # fmt: skip
    namespace: dict[str, Any] = {}
    exec(compile(text, f"<operand {title}>", "exec"), namespace)
    made: type[Any] = namespace[title]
    return made


def gpr_class(register: str, bits: int) -> type[Any]:
    """The operand class of a 64-, 32- or 16-bit register or the low byte of one."""
    cell = f"self.cpu.{register}"
    low = (1 << bits) - 1
    if bits == 64:
        read, write = cell, f"{cell} = value"
    elif bits == 32:
        read, write = f"{cell} & {low:#x}", f"{cell} = value"  # a 32-bit write zero-extends
    else:
        read, write = f"{cell} & {low:#x}", f"{cell} = {cell} & {M64 ^ low:#x} | value"
    return _register_class(f"{register.upper()}_{bits}", register, bits, read, write)


def high_byte_class(register: str) -> type[Any]:
    """AH, CH, DH or BH."""
    cell = f"self.cpu.{register}"
    return _register_class(
        f"{register.upper()}_high", register, 8, f"{cell} >> 8 & 0xff",
        f"{cell} = {cell} & {M64 ^ 0xFF00:#x} | value << 8",
    )  # fmt: skip


def vector_class(number: int, bits: int) -> type[Any]:
    """XMMn (128 bits, the upper half of YMMn stays) or YMMn (256 bits)."""
    low, high = f"self.cpu.xmm{number}", f"self.cpu.ymmh{number}"
    if bits == 128:
        return _register_class(f"XMM{number}", f"xmm{number}", 128, low, f"{low} = value")
    return _register_class(
        f"YMM{number}", f"ymm{number}", 256, f"{low} | {high} << 128",
        f"{low} = value & {(1 << 128) - 1:#x}; {high} = value >> 128",
    )  # fmt: skip


@cache
def vex_class(number: int, source: int, bits: int) -> type[Any]:
    """A vector register of a VEX form: reads register `source`, writes `number` and zeroes what is above.

    The two differ where the destination and the first source of a form are different operands.
    """
    title = f"{'XMM' if bits == 128 else 'YMM'}{number}_VEX_{source}"
    low, high = f"self.cpu.xmm{number}", f"self.cpu.ymmh{number}"
    if bits == 128:
        read, write = f"self.cpu.xmm{source}", f"{low} = value; {high} = 0"
        return _register_class(title, f"xmm{number}", bits, read, write, f"xmm{source}", True)
    return _register_class(
        title, f"ymm{number}", bits, f"self.cpu.xmm{source} | self.cpu.ymmh{source} << 128",
        f"{low} = value & {(1 << 128) - 1:#x}; {high} = value >> 128", f"ymm{source}", True,
    )  # fmt: skip


@cache
def register_classes() -> dict[str, type[Any]]:
    """iced register name -> operand class, for every general and vector register."""
    made: dict[str, type[Any]] = {}
    legacy = ("A", "C", "D", "B")
    for number, register in enumerate(GPR_NAMES):
        if number < 8:
            short = register[1:].upper()
            names = {64: register.upper(), 32: "E" + short, 16: short}
            names[8] = legacy[number] + "L" if number < 4 else short + "L"
        else:
            upper = register.upper()
            names = {64: upper, 32: upper + "D", 16: upper + "W", 8: upper + "L"}
        for bits, name in names.items():
            made[name] = gpr_class(register, bits)
    for letter, register in zip(legacy, GPR_NAMES[:4], strict=True):
        made[letter + "H"] = high_byte_class(register)
    for number in range(16):
        made[f"XMM{number}"] = vector_class(number, 128)
        made[f"YMM{number}"] = vector_class(number, 256)
    return made


class SegmentOperand(Width):
    """A segment register: `value` reads the selector; MOV and POP load it through `cpu`."""

    __slots__ = ("register",)

    def __init__(self, register: Segment) -> None:
        super().__init__(16)
        self.register = register

    @property
    def value(self) -> int:
        return self.register.selector


class NamedRegister(Width):
    """CRn, DRn, TRn, MMn, STn, BNDn, Kn: an instruction function uses its `number`."""

    __slots__ = ("cpu", "kind", "number")

    def __init__(self, cpu: Cpu, kind: str, number: int, bits: int) -> None:
        super().__init__(bits)
        self.cpu = cpu
        self.kind = kind
        self.number = number


class MmxOperand(NamedRegister):
    """MMn: the low 64 bits of physical x87 register n.

    A write sets the exponent to ones and, as every MMX instruction does, all tags to valid and TOP to 0.
    """

    __slots__ = ()

    @property
    def value(self) -> int:
        return self.cpu.fpu.regs[self.number] & M64

    @value.setter
    def value(self, value: int) -> None:
        fpu = self.cpu.fpu
        fpu.regs[self.number] = 0xFFFF << 64 | value
        fpu.tags = [0] * 8
        fpu.top = 0


# ---- memory ------------------------------------------------------------------------------------------------


@cache
def effective_address(base: str, index: str, scale: int, address_bits: int) -> EffectiveAddress:
    """`f(cpu, displacement) -> offset` for one shape of address; `base`, `index` name registers or are ""."""
    terms = []
    if base:
        terms.append(f"cpu.{base}")
    if index == "al":  # XLAT
        terms.append("(cpu.rax & 0xff)")
    elif index:
        terms.append(f"cpu.{index} * {scale}" if scale != 1 else f"cpu.{index}")
    terms.append("displacement")
    source = f"lambda cpu, displacement: {' + '.join(terms)} & {(1 << address_bits) - 1:#x}"
    function: EffectiveAddress = eval(source)  # built from register names of the decoder only
    function.shape = (base, index, scale, address_bits)  # type: ignore[attr-defined]  # for translate.py
    return function


class MemoryOperand:
    """Common part. `hint` describes a plain load for MmioRead: (register number, bytes, signed)."""

    __slots__ = (
        "address_mask", "bits", "bytes", "cpu", "displacement", "effective", "hint", "mask", "segment",
    )  # fmt: skip
    in_memory = True

    def __init__(
        self, cpu: Cpu, segment: Segment, effective: EffectiveAddress, displacement: int, address_bits: int,
        bits: int, hint: tuple[int, int, bool] | None,
    ) -> None:  # fmt: skip
        self.cpu = cpu
        self.segment = segment
        self.effective = effective
        self.displacement = displacement
        self.address_mask = (1 << address_bits) - 1
        self.bits = bits
        self.bytes = bits // 8
        self.mask = (1 << bits) - 1
        self.hint = hint

    @property
    def offset(self) -> int:
        """The effective address, masked to the address size."""
        return self.effective(self.cpu, self.displacement)


class FlatMemory(MemoryOperand):
    """64-bit mode, base 0: the offset is the linear address."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        return cpu.load(self.effective(cpu, self.displacement), self.bytes)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        cpu.store(self.effective(cpu, self.displacement), self.bytes, value)


class FlatStackMemory(MemoryOperand):
    """64-bit mode through SS: as FlatMemory, but a non-canonical address is #SS."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        return cpu.load_stack(self.effective(cpu, self.displacement), self.bytes)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        cpu.store_stack(self.effective(cpu, self.displacement), self.bytes, value)


class BasedMemory(MemoryOperand):
    """64-bit mode through FS or GS."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        return cpu.load(self.effective(cpu, self.displacement) + self.segment.base & M64, self.bytes)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        cpu.store(self.effective(cpu, self.displacement) + self.segment.base & M64, self.bytes, value)


class SegmentedMemory(MemoryOperand):
    """16- and 32-bit code: limit and type are checked."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        offset = self.effective(cpu, self.displacement)
        segment = self.segment
        if offset + self.bytes - 1 <= segment.read_last:
            return cpu.load(offset + segment.base & 0xFFFF_FFFF, self.bytes)
        return cpu.read_data(segment, offset, self.bytes)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        offset = self.effective(cpu, self.displacement)
        segment = self.segment
        if offset + self.bytes - 1 <= segment.write_last:
            cpu.store(offset + segment.base & 0xFFFF_FFFF, self.bytes, value)
        else:
            cpu.write_data(segment, offset, self.bytes, value)


# ---- 128 bits of memory ----------------------------------------------------------------------------------

_QUADWORDS = Struct("<QQ")
_load_quadwords = _QUADWORDS.unpack_from
_store_quadwords = _QUADWORDS.pack_into
LAST_START_128 = 4096 - 16


def misaligned(linear: int, size: int = 16) -> GeneralProtection:
    """#GP(0) of an SSE or AVX operand that is not aligned to its size."""
    return GeneralProtection(0, f"{size}-byte vector operand at {linear:#x} is not aligned to {size} bytes")


class FlatMemory128(MemoryOperand):
    """64-bit mode, base 0, 16 bytes anywhere: as FlatMemory or FlatStackMemory, with a short way to RAM."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        linear = self.effective(cpu, self.displacement)
        delta = cpu.tlb_read.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START_128:
            low, high = _load_quadwords(cpu.ram, linear + delta)
            return low | high << 64  # type: ignore[no-any-return]  # struct gives Any
        return cpu.load_stack(linear, 16) if self.segment is cpu.ss else cpu.load(linear, 16)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        linear = self.effective(cpu, self.displacement)
        delta = cpu.tlb_write.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START_128:
            _store_quadwords(cpu.ram, linear + delta, value & M64, value >> 64)
        elif self.segment is cpu.ss:
            cpu.store_stack(linear, 16, value)
        else:
            cpu.store(linear, 16, value)


class AlignedFlatMemory(MemoryOperand):
    """64-bit mode, base 0: #GP(0) unless the address is a multiple of 16, so never across two pages."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        linear = self.effective(cpu, self.displacement)
        if linear & 15:
            raise misaligned(linear)
        delta = cpu.tlb_read.get(linear >> 12)
        if delta is not None:
            low, high = _load_quadwords(cpu.ram, linear + delta)
            return low | high << 64  # type: ignore[no-any-return]  # struct gives Any
        return cpu.load_stack(linear, 16) if self.segment is cpu.ss else cpu.load(linear, 16)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        linear = self.effective(cpu, self.displacement)
        if linear & 15:
            raise misaligned(linear)
        delta = cpu.tlb_write.get(linear >> 12)
        if delta is not None:
            _store_quadwords(cpu.ram, linear + delta, value & M64, value >> 64)
        elif self.segment is cpu.ss:
            cpu.store_stack(linear, 16, value)
        else:
            cpu.store(linear, 16, value)


class AlignedMemory(MemoryOperand):
    """16 or 32 aligned bytes through any segment: limit and type are checked first, then the alignment."""

    __slots__ = ()

    @property
    def value(self) -> int:
        cpu = self.cpu
        linear = cpu.linear_address(self.segment, self.offset, self.bytes, False)
        if linear & self.bytes - 1:
            raise misaligned(linear, self.bytes)
        return cpu.load_stack(linear, self.bytes) if self.segment is cpu.ss else cpu.load(linear, self.bytes)

    @value.setter
    def value(self, value: int) -> None:
        cpu = self.cpu
        linear = cpu.linear_address(self.segment, self.offset, self.bytes, True)
        if linear & self.bytes - 1:
            raise misaligned(linear, self.bytes)
        if self.segment is cpu.ss:
            cpu.store_stack(linear, self.bytes, value)
        else:
            cpu.store(linear, self.bytes, value)


class VectorIndexedMemory(MemoryOperand):
    """VSIB: base + displacement in `offset`, and an index for each element, whose width `bits` is."""

    __slots__ = ("index", "index_bits", "scale")

    def index_by(self, index: Operand, index_bits: int, scale: int) -> None:
        """Set the register that holds the indices, their width and the scale."""
        self.index = index
        self.index_bits = index_bits
        self.scale = scale

    def offsets(self) -> list[int]:
        """The effective address of every element, as many as the index register has indices."""
        base, indices, top = self.offset, self.index.value, 1 << self.index_bits - 1
        mask = self.address_mask
        return [
            base + (((indices >> at & 2 * top - 1) ^ top) - top) * self.scale & mask
            for at in range(0, self.index.bits, self.index_bits)
        ]
