"""Single bits, bit scans, bit fields, byte order and CRC32C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Memory, Operand
from isa.semantics.helpers import PARITY, set_szp, signed
from isa.semantics.registry import insn

if TYPE_CHECKING:
    from isa.cpu import Cpu

CRC32C_POLYNOMIAL = 0x82F6_3B78  # 11EDC6F41H, bit-reflected (SDM Vol. 2, CRC32)


# ---- bit tests: only CF is defined, and only CF changes (ZF must not) ----------------------------------


def bit_word(dst: Memory, src: Operand) -> int:
    """Offset of the word that holds bit `src` (signed) of the bit string at `dst`."""
    return dst.offset + (signed(src.value, src.bits) >> 3 & -dst.bytes) & dst.address_mask


@insn("BT_RM16_R16", "BT_RM32_R32", "BT_RM64_R64")
def bt(cpu: Cpu, dst: Memory, src: Operand) -> None:
    """CF := Bit(BitBase, BitOffset)"""
    if dst.in_memory:
        word = cpu.read_data(dst.segment, bit_word(dst, src), dst.bytes)
    else:
        word = dst.value
    cpu.cf = word >> (src.value & (dst.bits - 1)) & 1


@insn("BTS_RM16_R16", "BTS_RM32_R32", "BTS_RM64_R64")
def bts(cpu: Cpu, dst: Memory, src: Operand) -> None:
    """CF := Bit(BitBase, BitOffset); Bit(BitBase, BitOffset) := 1"""
    bit = src.value & (dst.bits - 1)
    if dst.in_memory:
        at = bit_word(dst, src)
        word = cpu.read_data(dst.segment, at, dst.bytes)
        cpu.write_data(dst.segment, at, dst.bytes, word | 1 << bit)
    else:
        word = dst.value
        dst.value = word | 1 << bit
    cpu.cf = word >> bit & 1


@insn("BTR_RM16_R16", "BTR_RM32_R32", "BTR_RM64_R64")
def btr(cpu: Cpu, dst: Memory, src: Operand) -> None:
    """CF := Bit(BitBase, BitOffset); Bit(BitBase, BitOffset) := 0"""
    bit = src.value & (dst.bits - 1)
    if dst.in_memory:
        at = bit_word(dst, src)
        word = cpu.read_data(dst.segment, at, dst.bytes)
        cpu.write_data(dst.segment, at, dst.bytes, word & ~(1 << bit))
    else:
        word = dst.value
        dst.value = word & ~(1 << bit)
    cpu.cf = word >> bit & 1


@insn("BTC_RM16_R16", "BTC_RM32_R32", "BTC_RM64_R64")
def btc(cpu: Cpu, dst: Memory, src: Operand) -> None:
    """CF := Bit(BitBase, BitOffset); Bit(BitBase, BitOffset) := NOT Bit(BitBase, BitOffset)"""
    bit = src.value & (dst.bits - 1)
    if dst.in_memory:
        at = bit_word(dst, src)
        word = cpu.read_data(dst.segment, at, dst.bytes)
        cpu.write_data(dst.segment, at, dst.bytes, word ^ 1 << bit)
    else:
        word = dst.value
        dst.value = word ^ 1 << bit
    cpu.cf = word >> bit & 1


@insn("BT_RM16_IMM8", "BT_RM32_IMM8", "BT_RM64_IMM8")
def bt_immediate(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF := Bit(DEST, imm8 MOD size)"""
    cpu.cf = dst.value >> (src.value & (dst.bits - 1)) & 1


@insn("BTS_RM16_IMM8", "BTS_RM32_IMM8", "BTS_RM64_IMM8")
def bts_immediate(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF := Bit(DEST, imm8 MOD size); Bit(DEST, imm8 MOD size) := 1"""
    bit = src.value & (dst.bits - 1)
    word = dst.value
    dst.value = word | 1 << bit
    cpu.cf = word >> bit & 1


@insn("BTR_RM16_IMM8", "BTR_RM32_IMM8", "BTR_RM64_IMM8")
def btr_immediate(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF := Bit(DEST, imm8 MOD size); Bit(DEST, imm8 MOD size) := 0"""
    bit = src.value & (dst.bits - 1)
    word = dst.value
    dst.value = word & ~(1 << bit)
    cpu.cf = word >> bit & 1


@insn("BTC_RM16_IMM8", "BTC_RM32_IMM8", "BTC_RM64_IMM8")
def btc_immediate(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """CF := Bit(DEST, imm8 MOD size); Bit(DEST, imm8 MOD size) := NOT Bit(DEST, imm8 MOD size)"""
    bit = src.value & (dst.bits - 1)
    word = dst.value
    dst.value = word ^ 1 << bit
    cpu.cf = word >> bit & 1


# ---- scans and counts ----------------------------------------------------------------------------------


# A zero source leaves DEST of BSF and BSR undefined in Intel's words; both makers' CPUs leave it unchanged,
# the upper half of a 32-bit register included. The undefined flags below are those of AMD's Zen.


def scanned(cpu: Cpu, a: int, index: int) -> None:
    """ZF of BSF and BSR; the other flags are undefined."""
    cpu.zf = not a
    cpu.pf = PARITY[index]
    cpu.cf = 0
    cpu.of = 0
    cpu.sf = 0
    cpu.af = 0


def counted(cpu: Cpu, a: int, result: int) -> None:
    """CF and ZF of TZCNT and LZCNT; OF, SF, AF and PF are undefined."""
    cpu.cf = not a
    cpu.zf = not result
    cpu.sf = 0
    cpu.af = 0
    cpu.pf = 0


@insn("BSF")
def bsf(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF SRC = 0 THEN ZF := 1 ELSE ZF := 0; DEST := index of the lowest one"""
    a = src.value
    index = (a & -a).bit_length() - 1 if a else 0
    if a:
        dst.value = index
    scanned(cpu, a, index)


@insn("BSR")
def bsr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """IF SRC = 0 THEN ZF := 1 ELSE ZF := 0; DEST := index of the highest one"""
    a = src.value
    index = a.bit_length() - 1 if a else 0
    if a:
        dst.value = index
    scanned(cpu, a, index)


@insn("TZCNT")
def tzcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := number of zeros below the lowest one; CF := SRC = 0; ZF := DEST = 0"""
    a = src.value
    result = (a & -a).bit_length() - 1 if a else src.bits
    dst.value = result
    counted(cpu, a, result)


@insn("LZCNT")
def lzcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := number of zeros above the highest one; CF := SRC = 0; ZF := DEST = 0"""
    a = src.value
    result = src.bits - a.bit_length()
    dst.value = result
    counted(cpu, a, result)


@insn("POPCNT")
def popcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := number of ones; ZF := SRC = 0; the other flags are cleared"""
    a = src.value
    dst.value = a.bit_count()
    cpu.zf = not a
    cpu.cf = 0
    cpu.of = 0
    cpu.sf = 0
    cpu.af = 0
    cpu.pf = 0


# ---- bit fields (BMI1, BMI2) ---------------------------------------------------------------------------


def set_field_flags(cpu: Cpu, result: int, width: Operand) -> None:
    """OF := 0, SF and ZF from the result; AF and PF are undefined."""
    cpu.of = 0
    cpu.af = 0
    set_szp(cpu, result, width)


@insn("BLSI")
def blsi(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := (-SRC) AND SRC; CF := SRC != 0"""
    a = src.value
    result = a & -a
    dst.value = result
    cpu.cf = a != 0
    set_field_flags(cpu, result, dst)


@insn("BLSR")
def blsr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := (SRC - 1) AND SRC; CF := SRC = 0"""
    a = src.value
    result = a - 1 & a
    dst.value = result
    cpu.cf = not a
    set_field_flags(cpu, result, dst)


@insn("BLSMSK")
def blsmsk(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := (SRC - 1) XOR SRC; CF := SRC = 0"""
    a = src.value
    result = (a - 1 ^ a) & dst.mask
    dst.value = result
    cpu.cf = not a
    set_field_flags(cpu, result, dst)  # the result has at least one bit: ZF is 0


@insn("BEXTR")
def bextr(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    """DEST := SRC[START + LEN - 1 : START], START = SRC2[7:0], LEN = SRC2[15:8]"""
    field = control.value
    result = src.value >> (field & 0xFF) & (1 << (field >> 8 & 0xFF)) - 1
    dst.value = result
    cpu.cf = 0
    set_field_flags(cpu, result, dst)
    # SF and AF are undefined
    cpu.sf = 0
    cpu.af = 1


@insn("BZHI")
def bzhi(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    """DEST := SRC with the bits from SRC2[7:0] up cleared; CF := SRC2[7:0] >= size"""
    n = index.value & 0xFF
    result = src.value & (1 << n) - 1
    dst.value = result
    cpu.cf = n >= dst.bits
    set_field_flags(cpu, result, dst)


@insn("PDEP", inline=False, called=True)
def pdep(cpu: Cpu, dst: Operand, src: Operand, selector: Operand) -> None:
    """DEST := low bits of SRC scattered to the ones of MASK; no flag"""
    a = src.value
    left = selector.value
    result = 0
    while left:
        lowest = left & -left
        if a & 1:
            result |= lowest
        a >>= 1
        left ^= lowest
    dst.value = result


@insn("PEXT", inline=False, called=True)
def pext(cpu: Cpu, dst: Operand, src: Operand, selector: Operand) -> None:
    """DEST := bits of SRC at the ones of MASK, gathered at the low end; no flag"""
    a = src.value
    left = selector.value
    result = 0
    bit = 1
    while left:
        lowest = left & -left
        if a & lowest:
            result |= bit
        bit <<= 1
        left ^= lowest
    dst.value = result


# ---- byte order, checksum ------------------------------------------------------------------------------


def reverse_bytes(value: int, size: int) -> int:
    """`value` of `size` bytes with its bytes in the opposite order."""
    return int.from_bytes(value.to_bytes(size, "little"), "big")


@insn("BSWAP_R32", "BSWAP_R64")
def bswap(cpu: Cpu, dst: Operand) -> None:
    """DEST := DEST with its bytes reversed"""
    dst.value = reverse_bytes(dst.value, dst.bytes)


@insn("BSWAP_R16")
def bswap16(cpu: Cpu, dst: Operand) -> None:
    """DEST := 0: undefined in the manual, and what Intel's and AMD's CPUs do"""
    dst.value = 0


@insn("MOVBE")
def movbe(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC with its bytes reversed"""
    dst.value = reverse_bytes(src.value, src.bytes)


@insn("CRC32", inline=False, called=True)
def crc32(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[31:0] := CRC32C of SRC, continued from DEST[31:0]; DEST[63:32] := 0"""
    crc = dst.value & 0xFFFF_FFFF ^ src.value
    for _ in range(src.bits):
        crc = crc >> 1 ^ CRC32C_POLYNOMIAL if crc & 1 else crc >> 1
    dst.value = crc
