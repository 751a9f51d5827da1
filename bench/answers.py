"""What the compute kernels are given, and what they have to answer: computed by Python, not by the machine.

One function for the input of a kernel, one for its result, with the same name as its source in bench/guests/.
Nothing here runs a guest.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import reduce

M64 = 0xFFFF_FFFF_FFFF_FFFF
NUMBERS = 4096  # of array_sum.c
PIECE = 65536  # of memcpy_rep.c


def noise(size: int) -> bytes:
    """`size` bytes without a pattern, always the same."""
    return hashlib.shake_128(b"pysim_vm").digest(size)


def rotated(value: int, count: int) -> int:
    """A 64-bit number rotated left."""
    return (value << count | value >> 64 - count) & M64


# ---- inputs: of the size -> bytes --------------------------------------------------------------------------


def no_input(size: int) -> bytes:
    """For a kernel that makes its own numbers."""
    return b""


def array(size: int) -> bytes:
    """The 64-bit numbers of array_sum.c."""
    return noise(8 * NUMBERS)


def piece(size: int) -> bytes:
    """The bytes that memcpy_rep.c copies again and again."""
    return noise(PIECE)


def words(count: int) -> bytes:
    """`count` 32-bit numbers for quicksort.c."""
    return noise(4 * count)


def matrices(size: int) -> bytes:
    """Two matrices for matmul.c: doubles between -1 and 1 with nothing round about them."""
    values = struct.unpack(f"<{2 * size * size}q", noise(16 * size * size))
    return struct.pack(f"<{2 * size * size}d", *(value / 2.0**63 for value in values))


OPERATIONS = ("halt", "push", "load", "store", "add", "sub", "mul", "and", "shr", "less", "jump", "jz")
LIMIT, STEPS, NUMBER, X = range(4)  # variables; bytecode.c puts the size into the first
COLLATZ = f"""
        push 0          store {STEPS}   push 1  store {NUMBER}
outer:  load {NUMBER}   load {LIMIT}    less    jz done
        load {NUMBER}   store {X}
inner:  push 1          load {X}        less    jz next
        load {STEPS}    push 1          add     store {STEPS}
        load {X}        push 1          and     jz even
        load {X}        push 3          mul     push 1          add     store {X}   jump inner
even:   load {X}        push 1          shr     store {X}       jump inner
next:   load {NUMBER}   push -1         sub     store {NUMBER}  jump outer
done:   load {STEPS}    halt
"""


def program(size: int) -> bytes:
    """COLLATZ for bytecode.c: each word a byte, an operation or its operand."""
    places: dict[str, int] = {name: number for number, name in enumerate(OPERATIONS)}
    code: list[str] = []
    for word in COLLATZ.split():
        if word.endswith(":"):
            places[word[:-1]] = len(code)
        else:
            code.append(word)
    return bytes((places[word] if word in places else int(word)) & 0xFF for word in code)


# ---- results: of the size and the input -> RAX -------------------------------------------------------------


def alu(rounds: int, data: bytes) -> int:
    """The generator of alu.c in Python's integers."""
    a, b, c = 0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 1
    for _ in range(rounds):
        a ^= a << 13 & M64
        a ^= a >> 7
        a ^= a << 17 & M64
        b = rotated(b, 31) + a & M64
        c = c * 0x94D0_49BB_1331_11EB + (b & 0xFFFF) & M64
    return a ^ b ^ c


def array_sum(passes: int, data: bytes) -> int:
    """The total of the numbers, rotated after each pass."""
    once, total = sum(struct.unpack(f"<{NUMBERS}Q", data)), 0
    for _ in range(passes):
        total = rotated(total + once & M64, 1)
    return total


def memcpy_loop(size: int, data: bytes) -> int:
    """What the copy ends with."""
    return int.from_bytes(data[size - 8 : size], "little")


def memcpy_rep(pieces: int, data: bytes) -> int:
    """What the copy ends with."""
    return memcpy_loop(PIECE, data)


def crc32(size: int, data: bytes) -> int:
    """zlib's."""
    return zlib.crc32(data[:size])


def sha256(size: int, data: bytes) -> int:
    """The first eight bytes of hashlib's digest."""
    return int.from_bytes(hashlib.sha256(data[:size]).digest()[:8], "big")


def quicksort(count: int, data: bytes) -> int:
    """The sum of value times place as `sorted` has it."""
    ordered = sorted(struct.unpack(f"<{count}I", data))
    total: int = sum(value * place for place, value in enumerate(ordered, 1))
    return total & M64


def fib(n: int, data: bytes) -> int:
    """The n-th Fibonacci number, by addition."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def sieve(limit: int, data: bytes) -> int:
    """The number of primes below `limit`, a slice at a time."""
    prime = bytearray([1]) * limit
    prime[:2] = bytes(2)
    for n in range(2, int(limit**0.5) + 1):
        if prime[n]:
            prime[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return sum(prime)


def matmul(size: int, data: bytes) -> int:
    """Python's floats are doubles and round alike; they are added up in the same order."""
    numbers = struct.unpack(f"<{2 * size * size}d", data)
    rows = [numbers[n * size : (n + 1) * size] for n in range(size)]
    columns = [numbers[size * size + n :: size] for n in range(size)]
    check = 0
    for row in rows:
        for column in columns:
            total = reduce(lambda sum_, pair: sum_ + pair[0] * pair[1], zip(row, column, strict=True), 0.0)
            check = rotated(check, 1) ^ int.from_bytes(struct.pack("<d", total), "little")
    return check


def bytecode(limit: int, data: bytes) -> int:
    """Steps to 1 under x -> x / 2 or 3 x + 1, of all numbers from 1 below `limit` together."""
    steps = 0
    for number in range(1, limit):
        x = number
        while x > 1:
            x = 3 * x + 1 if x & 1 else x >> 1
            steps += 1
    return steps
