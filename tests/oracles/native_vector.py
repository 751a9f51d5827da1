"""The host's own CPU as an oracle for MMX, SSE and AVX: an instruction with all YMM, MM, MXCSR and x87 state.

As `native`, but the state goes in with XRSTOR and comes out with XSAVE or, after a signal, in the signal
frame; on a host without AVX with FXRSTOR and FXSAVE. 64-bit code only; RSP is the trampoline's own. Linux on
x86-64 only.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

BASE = 0x2000_0000
STATE = BASE + 0x1000
CODE = BASE + 0x3000  # the instruction under test starts here
DATA = BASE + 0x5000  # two pages; the pages before and after are not mapped
WINDOW_SIZE = 256
WINDOW = DATA + 0x1000 - WINDOW_SIZE // 2  # across the page boundary

# Offsets in the state pages; an XSAVE area is aligned to 64 bytes
IN_FX, OUT_FX, HOST_FX = 0, 896, 1792
IN_REGS, IN_FLAGS, HOST_RSP, OUT_REGS, OUT_FLAGS = 2688, 2816, 2824, 2832, 2960
SIGNAL, CONTEXT = 2968, 2976
FXSAVE_SIZE, AVX_AREA, AREA_SIZE = 512, 576, 832
AVX_STATE = 4  # XCR0 and XSTATE_BV
SOFTWARE_BYTES, MAGIC = 464, 0x4650_5853  # in a signal frame: there is an XSAVE area (asm/sigcontext.h)

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
CONTEXT_ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)  # asm/sigcontext.h
RSP = 4


@dataclass(frozen=True, slots=True)
class FxState:
    """What XSAVE keeps, without the x87 pointers. `st` are ST(0) to ST(7), `tags` the abridged tag byte."""

    control: int
    status: int  # TOP in bits 11-13
    tags: int
    mxcsr: int
    st: tuple[int, ...]  # 8 numbers of 80 bits
    xmm: tuple[int, ...]  # 16 numbers of 128 bits
    ymmh: tuple[int, ...] = (0,) * 16  # the upper halves of YMM0 to YMM15

    def image(self) -> bytes:
        """The XSAVE64 area."""
        head = struct.pack("<HHBxHQQII", self.control, self.status, self.tags, 0, 0, 0, self.mxcsr, 0)
        registers = b"".join(n.to_bytes(16, "little") for n in (*self.st, *self.xmm))
        header = struct.pack("<Q56x", 7)
        high = b"".join(n.to_bytes(16, "little") for n in self.ymmh)
        return (head + registers).ljust(FXSAVE_SIZE, b"\0") + header + high

    @classmethod
    def from_image(cls, image: bytes) -> FxState:
        """From an XSAVE64 area, or from an FXSAVE64 area for a CPU without AVX."""
        control, status, tags, _, _, _, mxcsr, _ = struct.unpack_from("<HHBxHQQII", image)
        numbers = [int.from_bytes(image[at : at + 16], "little") for at in range(32, 416, 16)]
        high: tuple[int, ...] = (0,) * 16
        if len(image) == AREA_SIZE and image[FXSAVE_SIZE] & AVX_STATE:
            places = range(AVX_AREA, AREA_SIZE, 16)
            high = tuple(int.from_bytes(image[at : at + 16], "little") for at in places)
        st = tuple(n & (1 << 80) - 1 for n in numbers[:8])
        return cls(control, status, tags, mxcsr, st, tuple(numbers[8:]), high)


def host_has_avx() -> bool:
    """True if the host's kernel lets programs use AVX."""
    return " avx " in Path("/proc/cpuinfo").read_text()


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with everything that goes into it."""

    code: bytes
    regs: tuple[int, ...]  # 16, in the manual's order; RSP is ignored
    flags: int
    fx: FxState
    window: bytes  # WINDOW_SIZE bytes at WINDOW


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out. After a signal everything is as at the fault."""

    signal: int
    regs: tuple[int, ...]
    flags: int
    fx: FxState
    window: bytes


class Trampoline:
    """The mapped pages and the machine code in them."""

    def __init__(self) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10_0000  # MAP_FIXED_NOREPLACE
        for address, size in ((BASE, 0x4000), (DATA, 0x2000)):
            if libc.mmap(address, size, protection, flags, -1, 0) != address:
                raise OSError(ctypes.get_errno(), f"cannot map {size:#x} executable bytes at {address:#x}")
        self.window: Any = (ctypes.c_char * WINDOW_SIZE).from_address(WINDOW)
        self.state: Any = (ctypes.c_char * 4096).from_address(STATE)
        self.wide = host_has_avx()
        self.code: Any = (ctypes.c_char * 64).from_address(CODE)
        self._build()
        self._catch_signals(libc)
        self.enter: Any = ctypes.CFUNCTYPE(None)(BASE)

    def _build(self) -> None:
        """Write the trampoline: entry, exit and the signal handler."""
        code = bytearray()

        def relative(opcode: bytes, offset: int) -> None:
            after = BASE + len(code) + len(opcode) + 4
            code.extend(opcode + struct.pack("<i", STATE + offset - after))

        def load(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x8B, 5 | (register & 7) << 3)), offset)

        def save(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x89, 5 | (register & 7) << 3)), offset)

        def save_state(offset: int) -> None:
            if self.wide:
                code.extend(bytes.fromhex("b807000000 31d2"))  # mov eax, 7; xor edx, edx; xsave64
                relative(bytes.fromhex("480fae25"), offset)
            else:
                relative(bytes.fromhex("480fae05"), offset)  # fxsave64

        def load_state(offset: int) -> None:
            if self.wide:
                code.extend(bytes.fromhex("b807000000 31d2"))  # mov eax, 7; xor edx, edx; xrstor64
                relative(bytes.fromhex("480fae2d"), offset)
            else:
                relative(bytes.fromhex("480fae0d"), offset)  # fxrstor64

        code += bytes.fromhex("53 55 4154 4155 4156 4157")  # push rbx rbp r12-r15
        save(RSP, HOST_RSP)
        save_state(HOST_FX)
        load_state(IN_FX)
        relative(bytes.fromhex("ff35"), IN_FLAGS)  # push [flags]; popfq
        code += b"\x9d"
        for register in range(16):
            if register != RSP:
                load(register, IN_REGS + 8 * register)
        code += b"\xe9" + struct.pack("<i", CODE - (BASE + len(code) + 5))
        self.exit = BASE + len(code)
        code += b"\x9c"  # pushfq; pop [flags]
        relative(b"\x8f\x05", OUT_FLAGS)
        for register in range(16):
            save(register, OUT_REGS + 8 * register)
        save_state(OUT_FX)
        tail = len(code)
        load_state(HOST_FX)
        load(RSP, HOST_RSP)
        code += bytes.fromhex("6802020000 9d")  # flags as the ABI has them
        code += bytes.fromhex("415f 415e 415d 415c 5d 5b c3")
        self.handler = BASE + len(code)
        save(7, SIGNAL)
        save(2, CONTEXT)
        code += b"\xe9" + struct.pack("<i", tail - (len(code) + 5))
        ctypes.memmove(BASE, bytes(code), len(code))

    def _catch_signals(self, libc: Any) -> None:
        """Route the fault signals to the handler, on an alternate stack, not blocked while it runs."""
        self.stack = mmap.mmap(-1, 0x10000)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.stack))
        libc.sigaltstack(struct.pack("<QiiQ", address, 0, 0, 0x10000), None)
        siginfo, onstack, nodefer = 4, 0x0800_0000, 0x4000_0000
        action = struct.pack("<Q128sixxxxQ", self.handler, b"", siginfo | onstack | nodefer, 0)
        for signal in (SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV):
            libc.sigaction(signal, action, None)

    def run(self, case: Case) -> Outcome:
        """Execute one case."""
        size = len(case.code)
        code = case.code + b"\xe9" + struct.pack("<i", self.exit - (CODE + size + 5))
        self.code[: len(code)] = code
        self.state[IN_FX : IN_FX + AREA_SIZE] = case.fx.image()
        self.state[IN_REGS : IN_FLAGS + 8] = struct.pack("<16QQ", *case.regs, case.flags)
        self.state[SIGNAL : SIGNAL + 16] = bytes(16)
        self.window.raw = case.window
        self.enter()
        signal, context = struct.unpack_from("<QQ", self.state, SIGNAL)
        if signal:
            frame = struct.unpack("<18Q", ctypes.string_at(context + 40, 144))
            regs = [0] * 16
            for n, register in enumerate(CONTEXT_ORDER):
                regs[register] = frame[n]
            (fp,) = struct.unpack("<Q", ctypes.string_at(context + 40 + 23 * 8, 8))
            size = AREA_SIZE if self._frame_is_wide(fp) else FXSAVE_SIZE
            fx = FxState.from_image(ctypes.string_at(fp, size))
            return Outcome(signal, tuple(regs), frame[17], fx, self.window.raw)
        out = struct.unpack_from("<17Q", self.state, OUT_REGS)
        size = AREA_SIZE if self.wide else FXSAVE_SIZE
        fx = FxState.from_image(self.state[OUT_FX : OUT_FX + size])
        return Outcome(0, out[:16], out[16], fx, self.window.raw)

    @staticmethod
    def _frame_is_wide(fp: int) -> bool:
        (magic,) = struct.unpack("<I", ctypes.string_at(fp + SOFTWARE_BYTES, 4))
        return bool(magic == MAGIC)


class NativeVectorCpu:
    """A worker process around a Trampoline. Use as a context manager."""

    def __enter__(self) -> NativeVectorCpu:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Outcomes of `cases`, in order. RuntimeError if the worker died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        plain = [(case.code, case.regs, case.flags, case.fx.image(), case.window) for case in cases]
        pickle.dump(plain, self.process.stdin)
        self.process.stdin.flush()
        try:
            answer = pickle.load(self.process.stdout)
        except EOFError:
            status = self.process.wait()
            raise RuntimeError(
                f"the native worker died with status {status} in a batch of {len(cases)}"
            ) from None
        return [
            Outcome(signal, regs, flags, FxState.from_image(image), window)
            for signal, regs, flags, image, window in answer
        ]


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    trampoline = Trampoline()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        outcomes = [
            trampoline.run(Case(code, regs, flags, FxState.from_image(image), window))
            for code, regs, flags, image, window in request
        ]
        pickle.dump([(o.signal, o.regs, o.flags, o.fx.image(), o.window) for o in outcomes], answers)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
