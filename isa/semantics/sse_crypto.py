"""AES, carry-less multiplication and SHA instructions.

Sources: SDM Vol. 2 for each instruction; FIPS 197 (AES) and FIPS 180-4 (SHA) for the rounds behind them. The
AES state is one 128-bit integer, byte 0 lowest; a column is a doubleword of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.operands import Operand
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import HALVES, insn
from isa.semantics.vector import BYTES, DWORDS, M128, U32, join, split
from isa.state import M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

# ---- AES -----------------------------------------------------------------------------------------------


def _multiply_field(a: int, b: int) -> int:
    """a * b in GF(2**8) with the polynomial x**8 + x**4 + x**3 + x + 1."""
    product = 0
    for n in range(8):
        if b >> n & 1:
            product ^= a << n
    for n in range(14, 7, -1):
        if product >> n & 1:
            product ^= 0x11B << n - 8
    return product


def _substitution() -> bytes:
    """The S-box: the inverse in GF(2**8), then an affine map."""
    box = bytearray(256)
    for a in range(256):
        inverse = next((b for b in range(256) if _multiply_field(a, b) == 1), 0)
        spread = inverse | inverse << 8
        box[a] = (spread ^ spread >> 7 ^ spread >> 6 ^ spread >> 5 ^ spread >> 4) & 0xFF ^ 0x63
    return bytes(box)


SBOX = _substitution()
INVERSE_SBOX = bytes(SBOX.index(n) for n in range(256))
SHIFT_ROWS = bytes((0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11))
INVERSE_SHIFT_ROWS = bytes((0, 13, 10, 7, 4, 1, 14, 11, 8, 5, 2, 15, 12, 9, 6, 3))


def substituted(state: int, box: bytes, order: bytes) -> int:
    """Bytes of the state in a new order, through an S-box."""
    raw = state.to_bytes(16, "little").translate(box)
    return int.from_bytes(order.translate(raw.ljust(256, b"\0")), "little")


def doubled(state: int) -> int:
    """Every byte times x in GF(2**8)."""
    return (state & BYTES.rest) << 1 ^ (state >> 7 & BYTES.one) * 0x1B


def rotated(state: int, count: int) -> int:
    """Every column rotated right by `count` bits."""
    keep = (M32 >> count) * DWORDS.one
    return state >> count & keep | state << 32 - count & (M128 ^ keep)


def mixed_columns(state: int) -> int:
    """MixColumns: 2 * a ^ 3 * b ^ c ^ d for the bytes a, b, c, d of a column and its rotations."""
    after = rotated(state, 8)
    return doubled(state ^ after) ^ after ^ rotated(state, 16) ^ rotated(state, 24)


def unmixed_columns(state: int) -> int:
    """InvMixColumns, which is MixColumns after 5 * a ^ 4 * c."""
    return mixed_columns(state ^ doubled(doubled(state ^ rotated(state, 16))))


@insn("AESENC", vex=HALVES)
def aesenc(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := MixColumns(SubBytes(ShiftRows(DEST))) XOR SRC"""
    check_sse(cpu)
    dst.value = mixed_columns(substituted(dst.value, SBOX, SHIFT_ROWS)) ^ src.value


@insn("AESENCLAST", vex=HALVES)
def aesenclast(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SubBytes(ShiftRows(DEST)) XOR SRC"""
    check_sse(cpu)
    dst.value = substituted(dst.value, SBOX, SHIFT_ROWS) ^ src.value


@insn("AESDEC", vex=HALVES)
def aesdec(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := InvMixColumns(InvSubBytes(InvShiftRows(DEST))) XOR SRC"""
    check_sse(cpu)
    dst.value = unmixed_columns(substituted(dst.value, INVERSE_SBOX, INVERSE_SHIFT_ROWS)) ^ src.value


@insn("AESDECLAST", vex=HALVES)
def aesdeclast(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := InvSubBytes(InvShiftRows(DEST)) XOR SRC"""
    check_sse(cpu)
    dst.value = substituted(dst.value, INVERSE_SBOX, INVERSE_SHIFT_ROWS) ^ src.value


@insn("AESIMC", vex=HALVES)
def aesimc(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := InvMixColumns(SRC)"""
    check_sse(cpu)
    dst.value = unmixed_columns(src.value)


@insn("AESKEYGENASSIST", vex=HALVES)
def aeskeygenassist(cpu: Cpu, dst: Operand, src: Operand, rcon: Operand) -> None:
    """SubWord(X1), RotWord(SubWord(X1)) XOR RCON, the same of X3; X1 and X3 are doublewords of SRC"""
    check_sse(cpu)
    dst.value = key_words(src.value, rcon.value)


def key_words(key: int, rcon: int) -> int:
    """The four doublewords of AESKEYGENASSIST."""
    words = split(int.from_bytes(key.to_bytes(16, "little").translate(SBOX), "little"), U32)
    return join((words[1], _left(words[1], 24) ^ rcon, words[3], _left(words[3], 24) ^ rcon), U32)


# ---- carry-less multiplication -----------------------------------------------------------------------------


def carryless(a: int, b: int) -> int:
    """The product of two 64-bit polynomials over GF(2)."""
    product = 0
    while b:
        low = b & -b
        product ^= a * low
        b ^= low
    return product


@insn("PCLMULQDQ", vex=HALVES)
def pclmulqdq(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """DEST := carry-less product of quadword imm8[0] of DEST and quadword imm8[4] of SRC"""
    check_sse(cpu)
    pick = select.value
    a = dst.value >> ((pick & 1) << 6) & M64
    dst.value = carryless(a, src.value >> ((pick & 16) << 2) & M64)


# ---- SHA -------------------------------------------------------------------------------------------------

Words = tuple[int, ...]
SHA1_K = (0x5A82_7999, 0x6ED9_EBA1, 0x8F1B_BCDC, 0xCA62_C1D6)


def _left(word: int, count: int) -> int:
    """A doubleword rotated left."""
    return (word << count | word >> 32 - count) & M32


def _choose(b: int, c: int, d: int) -> int:
    return b & c ^ ~b & d


def _parity(b: int, c: int, d: int) -> int:
    return b ^ c ^ d


def _majority(b: int, c: int, d: int) -> int:
    return b & c ^ b & d ^ c & d


SHA1_FUNCTIONS = (_choose, _parity, _majority, _parity)


def sha1_rounds(state: int, message: int, select: int) -> int:
    """Four SHA-1 rounds. `state` is A (highest), B, C, D; E is in the first word of the message already."""
    d, c, b, a = split(state, U32)
    e = 0
    mix, constant = SHA1_FUNCTIONS[select & 3], SHA1_K[select & 3]
    for word in reversed(split(message, U32)):
        a, b, c, d, e = mix(b, c, d) + _left(a, 5) + word + e + constant & M32, a, _left(b, 30), c, d
    return join((d, c, b, a), U32)


def sha1_schedule(partial: int, message: int) -> int:
    """The last step of four SHA-1 message words; the fourth needs the first."""
    x = split(partial, U32)
    y = split(message, U32)
    w16 = _left(x[3] ^ y[2], 1)
    return join((_left(x[0] ^ w16, 1), _left(x[1] ^ y[0], 1), _left(x[2] ^ y[1], 1), w16), U32)


def _small_sigma0(word: int) -> int:
    return _left(word, 25) ^ _left(word, 14) ^ word >> 3


def _small_sigma1(word: int) -> int:
    return _left(word, 15) ^ _left(word, 13) ^ word >> 10


def _big_sigma0(word: int) -> int:
    return _left(word, 30) ^ _left(word, 19) ^ _left(word, 10)


def _big_sigma1(word: int) -> int:
    return _left(word, 26) ^ _left(word, 21) ^ _left(word, 7)


def sha256_rounds(cdgh: int, abef: int, words: int) -> int:
    """Two SHA-256 rounds: the new A, B, E, F. `words` holds two doublewords of message plus constant."""
    h, g, d, c = split(cdgh, U32)
    f, e, b, a = split(abef, U32)
    for word in (words & M32, words >> 32 & M32):
        first = _choose(e, f, g) + _big_sigma1(e) + word + h
        total = first + _majority(a, b, c) + _big_sigma0(a)
        a, b, c, d, e, f, g, h = total & M32, a, b, c, first + d & M32, e, f, g
    return join((f, e, b, a), U32)


def sha256_schedule1(words: int, following: int) -> int:
    """W[i] + sigma0(W[i+1]) for four message words."""
    w = (*split(words, U32), following & M32)
    return join([w[n] + _small_sigma0(w[n + 1]) & M32 for n in range(4)], U32)


def sha256_schedule2(partial: int, previous: int) -> int:
    """W[i] + sigma1(W[i-2]) for four message words; the last two need the first two."""
    x = split(partial, U32)
    w14, w15 = previous >> 64 & M32, previous >> 96
    w16, w17 = x[0] + _small_sigma1(w14) & M32, x[1] + _small_sigma1(w15) & M32
    return join((w16, w17, x[2] + _small_sigma1(w16) & M32, x[3] + _small_sigma1(w17) & M32), U32)


@insn("SHA1RNDS4")
def sha1rnds4(cpu: Cpu, dst: Operand, src: Operand, select: Operand) -> None:
    """DEST := A, B, C, D after four rounds with the message words SRC and function imm8[1:0]"""
    check_sse(cpu)
    dst.value = sha1_rounds(dst.value, src.value, select.value)


@insn("SHA1NEXTE")
def sha1nexte(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := SRC with (DEST[127:96] ROL 30) added to its highest doubleword"""
    check_sse(cpu)
    b = src.value
    dst.value = b & M128 >> 32 | ((b >> 96) + _left(dst.value >> 96, 30) & M32) << 96


@insn("SHA1MSG1")
def sha1msg1(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := DEST XOR (DEST:SRC >> 64)"""
    check_sse(cpu)
    a = dst.value
    dst.value = a ^ (a << 64 & M128 | src.value >> 64)


@insn("SHA1MSG2")
def sha1msg2(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := the last step of the next four message words"""
    check_sse(cpu)
    dst.value = sha1_schedule(dst.value, src.value)


@insn("SHA256RNDS2")
def sha256rnds2(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := A, B, E, F after two rounds from C, D, G, H (DEST), A, B, E, F (SRC) and XMM0[63:0]"""
    check_sse(cpu)
    dst.value = sha256_rounds(dst.value, src.value, cpu.xmm0)


@insn("SHA256MSG1")
def sha256msg1(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + sigma0(DEST[i+1]); SRC[31:0] follows DEST"""
    check_sse(cpu)
    dst.value = sha256_schedule1(dst.value, src.value)


@insn("SHA256MSG2")
def sha256msg2(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST[i] := DEST[i] + sigma1(W[i-2]); the first two W are SRC[95:64] and SRC[127:96]"""
    check_sse(cpu)
    dst.value = sha256_schedule2(dst.value, src.value)
