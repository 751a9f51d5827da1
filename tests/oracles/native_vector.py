"""The host's own CPU as an oracle for MMX, SSE and AVX: an instruction with all YMM, MM, MXCSR and x87 state.

As `native`, but the state goes in with XRSTOR and comes out with XSAVE or, after a signal, in the signal
frame; on a host without AVX with FXRSTOR and FXSAVE. 64-bit code only; RSP is the trampoline's own; FS and GS
have a base. Linux on x86-64 only.
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
DATA = BASE + 0x5000  # two pages; the page before is read-only and zero, the page after is not mapped
DATA_SIZE = 0x2000
WINDOW_SIZE = 256
WINDOW = DATA + 0x1000 - WINDOW_SIZE // 2  # across the page boundary, as a window of any other size
FS_BASE, GS_BASE = 0x0A98_7653, 0x1FFF_0000

# Offsets in the state pages; an XSAVE area is aligned to 64 bytes
IN_FX, OUT_FX, HOST_FX = 0, 896, 1792
IN_REGS, IN_FLAGS, HOST_RSP, OUT_REGS, OUT_FLAGS = 2688, 2816, 2824, 2832, 2960
SIGNAL, CONTEXT = 2968, 2976
# General registers, flags, signal; vector, error code and address of a fault
OUT = struct.Struct("<16Q 2Q 3Q")
FXSAVE_SIZE, AVX_AREA, AREA_SIZE = 512, 576, 832
AVX_STATE = 4  # XCR0 and XSTATE_BV
SOFTWARE_BYTES, MAGIC = 464, 0x4650_5853  # in a signal frame: there is an XSAVE area (asm/sigcontext.h)

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
PAGE_FAULT = 14
# asm/sigcontext.h: sixteen registers in this order, RIP, flags, selectors, error code, vector, signal mask,
# CR2, pointer to the floating-point state
CONTEXT_ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)
CONTEXT_FRAME = struct.Struct("<16Q Q Q 8x 5Q")
ARCH_PRCTL, ARCH_SET_GS, ARCH_SET_FS, ARCH_GET_FS = 158, 0x1001, 0x1002, 0x1003
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
    window: bytes  # centred at the page boundary


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out. After a signal everything is as at the fault.

    `fault`: vector, error code, address of a page fault (of another one 0); zeros without a signal.
    """

    signal: int
    regs: tuple[int, ...]
    flags: int
    fx: FxState
    window: bytes
    fault: tuple[int, int, int] = (0, 0, 0)


class Trampoline:
    """The mapped pages and the machine code in them."""

    def __init__(self) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10_0000  # MAP_FIXED_NOREPLACE
        for address, size in ((BASE, 0x4000), (DATA, DATA_SIZE)):
            if libc.mmap(address, size, protection, flags, -1, 0) != address:
                raise OSError(ctypes.get_errno(), f"cannot map {size:#x} executable bytes at {address:#x}")
        populate = 0x8000  # or it would be absent until something reads it
        if libc.mmap(DATA - 0x1000, 0x1000, mmap.PROT_READ, flags | populate, -1, 0) != DATA - 0x1000:
            raise OSError(ctypes.get_errno(), f"cannot map a page at {DATA - 0x1000:#x}")
        self.data: Any = (ctypes.c_char * DATA_SIZE).from_address(DATA)
        self.state: Any = (ctypes.c_char * 4096).from_address(STATE)
        self.wide = host_has_avx()
        self.code: Any = (ctypes.c_char * 64).from_address(CODE)
        own_fs = ctypes.c_uint64()
        libc.syscall(ARCH_PRCTL, ARCH_GET_FS, ctypes.byref(own_fs))
        self._build(own_fs.value)
        self._catch_signals(libc)
        self.enter: Any = ctypes.CFUNCTYPE(None)(BASE)

    def _build(self, own_fs: int) -> None:
        """Write the trampoline: entry, exit and the signal handler. `own_fs` is this process's FS base."""
        code = bytearray()

        def relative(opcode: bytes, offset: int) -> None:
            after = BASE + len(code) + len(opcode) + 4
            code.extend(opcode + struct.pack("<i", STATE + offset - after))

        def load(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x8B, 5 | (register & 7) << 3)), offset)

        def save(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x89, 5 | (register & 7) << 3)), offset)

        def arch_prctl(command: int, argument: int) -> None:  # mov eax; mov edi; mov rsi; syscall
            code.extend(b"\xb8" + struct.pack("<I", ARCH_PRCTL) + b"\xbf" + struct.pack("<I", command))
            code.extend(b"\x48\xbe" + struct.pack("<Q", argument) + b"\x0f\x05")

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
        arch_prctl(ARCH_SET_FS, FS_BASE)
        arch_prctl(ARCH_SET_GS, GS_BASE)
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
        arch_prctl(ARCH_SET_FS, own_fs)
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

    def run(
        self, case: bytes, image: bytes, regs_and_flags: bytes, window: bytes
    ) -> tuple[bytes, bytes, bytes]:
        """Execute one case; registers and fault (`OUT`), the state image, the window."""
        size = len(case)
        code = case + b"\xe9" + struct.pack("<i", self.exit - (CODE + size + 5))
        self.code[: len(code)] = code
        self.state[IN_FX : IN_FX + AREA_SIZE] = image
        self.state[IN_REGS : IN_FLAGS + 8] = regs_and_flags
        self.state[SIGNAL : SIGNAL + 16] = bytes(16)
        ctypes.memset(DATA, 0, DATA_SIZE)  # whatever the case before stored beside the window
        at = 0x1000 - len(window) // 2
        self.data[at : at + len(window)] = window
        self.enter()
        signal, context = struct.unpack_from("<QQ", self.state, SIGNAL)
        if signal:
            out, image = self._fault(signal, context)
        else:
            out = self.state[OUT_REGS : OUT_FLAGS + 8] + bytes(32)
            image = self.state[OUT_FX : OUT_FX + (AREA_SIZE if self.wide else FXSAVE_SIZE)]
        return out, image, self.data[at : at + len(window)]

    def _fault(self, signal: int, context: int) -> tuple[bytes, bytes]:
        """What the signal frame says."""
        frame = CONTEXT_FRAME.unpack(ctypes.string_at(context + 40, CONTEXT_FRAME.size))
        regs = [0] * 16
        for n, register in enumerate(CONTEXT_ORDER):
            regs[register] = frame[n]
        error, vector, _, address, state = frame[18:]
        out = OUT.pack(*regs, frame[17], signal, vector, error, address if vector == PAGE_FAULT else 0)
        size = AREA_SIZE if self._frame_is_wide(state) else FXSAVE_SIZE
        return out, ctypes.string_at(state, size)

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
        pack = struct.Struct("<17Q").pack
        plain = [(case.code, case.fx.image(), pack(*case.regs, case.flags), case.window) for case in cases]
        pickle.dump(plain, self.process.stdin)
        self.process.stdin.flush()
        try:
            answer = pickle.load(self.process.stdout)
        except EOFError:
            status = self.process.wait()
            raise RuntimeError(
                f"the native worker died with status {status} in a batch of {len(cases)}"
            ) from None
        return [_outcome(case, *fields) for case, fields in zip(cases, answer, strict=True)]


def _outcome(case: Case, out: bytes, image: bytes, window: bytes) -> Outcome:
    fields = OUT.unpack(out)
    regs = (*fields[:RSP], case.regs[RSP], *fields[RSP + 1 : 16])  # the stack was the trampoline's
    fault = (fields[18], fields[19], fields[20])
    return Outcome(fields[17], regs, fields[16], FxState.from_image(image), window, fault)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    trampoline = Trampoline()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump([trampoline.run(*case) for case in request], answers)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
