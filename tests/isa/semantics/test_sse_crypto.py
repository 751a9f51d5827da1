"""AES against FIPS 197, SHA against hashlib, carry-less multiplication against its definition."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.cpu import Cpu
from isa.state import CR4_OSFXSR
from tests.isa.machine import execute, make_cpu, run_one

# FIPS 197, Appendix C.1: AES-128
KEY = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
PLAIN = bytes.fromhex("00112233445566778899aabbccddeeff")
CIPHER = bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")
M32 = 0xFFFF_FFFF


def run(text: str, code: str, a: int, b: int) -> int:
    """XMM0 after the instruction, with XMM0 = a and XMM1 = b before."""
    return execute(text, code, cr4=CR4_OSFXSR, xmm0=a, xmm1=b).xmm0


def round_keys() -> list[int]:
    """The key schedule as programs make it with AESKEYGENASSIST."""
    keys = [int.from_bytes(KEY, "little")]
    for n in range(10):
        rcon = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1B, 0x36)[n]
        text = f"aeskeygenassist xmm0, xmm1, {rcon:#x}"
        word = run(text, f"660f3adfc1{rcon:02x}", 0, keys[-1]) >> 96
        keys.append(_prefix_xor(keys[-1]) ^ word * (1 | 1 << 32 | 1 << 64 | 1 << 96))
    return keys


def _prefix_xor(key: int) -> int:
    words = [key >> 32 * n & M32 for n in range(4)]
    for n in range(1, 4):
        words[n] ^= words[n - 1]
    return sum(word << 32 * n for n, word in enumerate(words))


def test_the_key_schedule_ends_as_in_fips_197() -> None:
    assert round_keys()[10].to_bytes(16, "little").hex() == "13111d7fe3944a17f307a78b4d2b30c5"


def test_aes_encrypts_the_block_of_fips_197() -> None:
    keys = round_keys()
    state = int.from_bytes(PLAIN, "little") ^ keys[0]
    for key in keys[1:10]:
        state = run("aesenc xmm0, xmm1", "660f38dcc1", state, key)
    state = run("aesenclast xmm0, xmm1", "660f38ddc1", state, keys[10])
    assert state.to_bytes(16, "little") == CIPHER


def test_aes_decrypts_the_block_of_fips_197() -> None:
    keys = round_keys()
    state = int.from_bytes(CIPHER, "little") ^ keys[10]
    for key in reversed(keys[1:10]):
        state = run("aesdec xmm0, xmm1", "660f38dec1", state, run("aesimc xmm0, xmm1", "660f38dbc1", 0, key))
    state = run("aesdeclast xmm0, xmm1", "660f38dfc1", state, keys[0])
    assert state.to_bytes(16, "little") == PLAIN


@pytest.mark.parametrize(
    ("text", "select"),
    [("pclmullqlqdq", 0x00), ("pclmulhqlqdq", 0x01), ("pclmullqhqdq", 0x10), ("pclmulhqhqdq", 0x11)],
)
@settings(max_examples=30, deadline=None)
@given(a=st.integers(0, (1 << 128) - 1), b=st.integers(0, (1 << 128) - 1))
def test_pclmulqdq_adds_without_carries(text: str, select: int, a: int, b: int) -> None:
    x, y = a >> 64 * (select & 1) & (1 << 64) - 1, b >> 64 * (select >> 4) & (1 << 64) - 1
    expected = 0
    for n in range(64):
        expected ^= (y >> n & 1) * (x << n)
    assert run(f"{text} xmm0, xmm1", f"660f3a44c1{select:02x}", a, b) == expected


# ---- SHA: one block each, as programs use the instructions ---------------------------------------------

BLOCK = b"abc".ljust(56, b"\0").replace(b"abc\0", b"abc\x80", 1) + struct.pack(">Q", 24)


def set_registers(cpu: Cpu, **values: int) -> None:
    """Write vector registers by name."""
    for name, value in values.items():
        setattr(cpu, name, value)


def register(cpu: Cpu, name: str) -> int:
    """Read a vector register by name."""
    return int(getattr(cpu, name))


def step(cpu: Cpu, text: str, code: str, a: int, b: int) -> int:
    """XMM0 := the instruction's result on a and b."""
    set_registers(cpu, xmm0=a, xmm1=b)
    return run_one(cpu, text, bytes.fromhex(code)).xmm0


def pack(words: list[int]) -> int:
    """Four doublewords, lowest first."""
    return sum(word << 32 * n for n, word in enumerate(words))


def test_sha1_of_abc() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR)
    a, b, c, d, e = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0
    w = list(struct.unpack(">16I", BLOCK))
    messages = [pack(w[n : n + 4][::-1]) for n in range(0, 16, 4)]  # the first word highest
    for n in range(16):
        partial = step(cpu, "sha1msg1 xmm0, xmm1", "0f38c9c1", messages[n], messages[n + 1]) ^ messages[n + 2]
        messages.append(step(cpu, "sha1msg2 xmm0, xmm1", "0f38cac1", partial, messages[n + 3]))
    state, previous = pack([d, c, b, a]), 0
    for n in range(20):
        if n == 0:
            message = (messages[0] + (e << 96)) & (1 << 128) - 1
        else:
            message = step(cpu, "sha1nexte xmm0, xmm1", "0f38c8c1", previous, messages[n])
        previous = state
        select = n // 5
        text = f"sha1rnds4 xmm0, xmm1, {select:#x}"
        state = step(cpu, text, f"0f3accc1{select:02x}", state, message)
    last = step(cpu, "sha1nexte xmm0, xmm1", "0f38c8c1", previous, 0) >> 96
    final = [state >> 32 * n & M32 for n in (3, 2, 1, 0)] + [last]
    digest = b"".join(struct.pack(">I", x + y & M32) for x, y in zip(final, (a, b, c, d, e), strict=True))
    assert digest == hashlib.sha1(b"abc").digest()


def test_sha256_of_abc() -> None:
    cpu = make_cpu(cr4=CR4_OSFXSR)
    initial = [_fraction(prime, 2) for prime in _primes(8)]
    constants = [_fraction(prime, 3) for prime in _primes(64)]
    w = list(struct.unpack(">16I", BLOCK))
    messages = [pack(w[n : n + 4]) for n in range(0, 16, 4)]
    for n in range(12):
        partial = step(cpu, "sha256msg1 xmm0, xmm1", "0f38ccc1", messages[n], messages[n + 1])
        shifted = (messages[n + 3] << 128 | messages[n + 2]) >> 32 & (1 << 128) - 1  # PALIGNR
        total = [(partial >> 32 * k) + (shifted >> 32 * k) & M32 for k in range(4)]
        messages.append(step(cpu, "sha256msg2 xmm0, xmm1", "0f38cdc1", pack(total), messages[n + 3]))
    a, b, c, d, e, f, g, h = initial
    abef, cdgh = pack([f, e, b, a]), pack([h, g, d, c])
    for n in range(32):
        words = messages[n // 2] >> 64 * (n % 2)
        added = [(words >> 32 * k) + constants[2 * n + k] & M32 for k in range(2)]
        set_registers(cpu, xmm0=pack(added), xmm1=abef, xmm2=cdgh)
        run_one(cpu, "sha256rnds2 xmm2, xmm1, xmm0", bytes.fromhex("0f38cbd1"))
        abef, cdgh = register(cpu, "xmm2"), abef
    final = [abef >> 96, abef >> 64 & M32, cdgh >> 96, cdgh >> 64 & M32,
             abef >> 32 & M32, abef & M32, cdgh >> 32 & M32, cdgh & M32]  # fmt: skip
    digest = b"".join(struct.pack(">I", x + y & M32) for x, y in zip(final, initial, strict=True))
    assert digest == hashlib.sha256(b"abc").digest()


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _fraction(prime: int, root: int) -> int:
    """The first 32 bits of the fractional part of a square or cube root (FIPS 180-4)."""
    target = prime << 32 * root
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**root <= target else (low, middle)
    return low & M32
