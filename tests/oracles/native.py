"""The host's own CPU as an oracle: runs one user-mode instruction on the real silicon. Linux on x86-64 only.

A worker process maps a trampoline, a code page and a data window at fixed addresses, loads every general
register and the flags, jumps to the instruction and reports what came out. Signals are caught by machine
code on a stack of its own, so an instruction may fault, and may have anything in RSP. 32-bit code runs in the
kernel's compatibility segment, 16-bit code in a segment made with modify_ldt.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import platform
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

BASE = 0x1000_0000
STATE = BASE + 0x1000
CODE = BASE + 0x2000  # the instruction under test starts here
DATA = BASE + 0x4000  # two pages; the pages before and after are not mapped
WINDOW_SIZE = 512
WINDOW = DATA + 0x1000 - WINDOW_SIZE // 2  # across the page boundary
TAKEN = 16  # a taken branch lands this far behind the instruction

GPR = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
       "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip

# Offsets in the state page
IN_REGS, IN_FLAGS, HOST_RSP, OUT_REGS, OUT_FLAGS = 0, 128, 136, 144, 272
SIGNAL, CONTEXT, WAS_TAKEN, FAR = 280, 288, 296, 304

USER_CS64, USER_CS32, USER_DS = 0x33, 0x23, 0x2B
LDT_CODE16, LDT_DATA16 = 0x07, 0x0F  # entries 0 and 1 of the LDT, RPL 3
SEGMENT16_BASE = BASE  # 16-bit code and data see the whole area

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
# Order of the general registers in a signal frame (asm/sigcontext.h)
CONTEXT_ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with everything that goes into it."""

    code: bytes
    regs: tuple[int, ...]  # 16, in the manual's order
    flags: int
    window: bytes  # WINDOW_SIZE bytes
    bits: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out. After a signal `regs` and `flags` are those at the fault."""

    signal: int
    regs: tuple[int, ...]
    flags: int
    window: bytes
    taken: bool


class Trampoline:
    """The mapped pages and the machine code in them."""

    def __init__(self) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        fixed_noreplace = 0x10_0000
        for address, size in ((BASE, 0x3000), (DATA, 0x2000)):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace
            if libc.mmap(address, size, protection, flags, -1, 0) != address:
                raise OSError(ctypes.get_errno(), f"cannot map {size:#x} executable bytes at {address:#x}")
        self.entries = dict.fromkeys((64, 32, 16), 0)
        self.window: Any = (ctypes.c_char * WINDOW_SIZE).from_address(WINDOW)
        self.state: Any = (ctypes.c_char * 512).from_address(STATE)
        self.code: Any = (ctypes.c_char * 64).from_address(CODE)
        self._build()
        self._catch_signals(libc)
        self.has_ldt = self._make_ldt(libc)
        self.functions: dict[int, Any] = {
            bits: ctypes.CFUNCTYPE(None)(address) for bits, address in self.entries.items()
        }

    def _build(self) -> None:
        """Write the trampoline: entries, exits and the signal handler."""
        code = bytearray()

        def relative(opcode: bytes, offset: int, tail: bytes = b"") -> None:
            after = BASE + len(code) + len(opcode) + 4 + len(tail)
            code.extend(opcode + struct.pack("<i", STATE + offset - after) + tail)

        def load(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x8B, 5 | (register & 7) << 3)), offset)

        def save(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x89, 5 | (register & 7) << 3)), offset)

        for bits in (64, 32, 16):
            self.entries[bits] = BASE + len(code)
            code += bytes.fromhex("53 55 4154 4155 4156 4157")  # push rbx rbp r12-r15
            save(4, HOST_RSP)
            selector = {64: 0, 32: USER_DS, 16: LDT_DATA16}[bits]
            relative(b"\xff\x35", IN_FLAGS)  # push [flags]; popfq
            code += b"\x9d"
            if selector:
                code += b"\xb8" + struct.pack("<I", selector)  # mov eax, selector
                code += bytes.fromhex("8ed8 8ec0")  # mov ds, eax; mov es, eax
            for register in range(16):
                if register not in (0, 4):
                    load(register, IN_REGS + 8 * register)
            if selector:
                code += bytes.fromhex("8ed0")  # mov ss, eax
            load(4, IN_REGS + 8 * 4)
            load(0, IN_REGS)
            relative(b"\xff\x2d", FAR)  # jmp far [target]
        self.taken_exit = BASE + len(code)
        relative(bytes.fromhex("48c705"), WAS_TAKEN, struct.pack("<I", 1))
        self.plain_exit = BASE + len(code)
        save(4, OUT_REGS + 8 * 4)
        load(4, HOST_RSP)
        code += b"\x9c"  # pushfq; pop [flags]
        relative(b"\x8f\x05", OUT_FLAGS)
        for register in range(16):
            if register != 4:
                save(register, OUT_REGS + 8 * register)
        tail = len(code)
        code += b"\xb8" + struct.pack("<I", USER_DS) + bytes.fromhex("8ed0")  # mov eax, ds; mov ss, eax
        code += bytes.fromhex("31c0 8ed8 8ec0")  # ds and es are null in 64-bit code
        code += bytes.fromhex("6802020000 9d")  # flags as the ABI has them
        code += bytes.fromhex("415f 415e 415d 415c 5d 5b c3")
        self.handler = BASE + len(code)
        save(7, SIGNAL)
        save(2, CONTEXT)
        load(4, HOST_RSP)
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

    def _make_ldt(self, libc: Any) -> bool:
        """A 16-bit code and a 16-bit data segment; False where the kernel has no modify_ldt."""
        modify_ldt = 154
        for entry, contents in ((0, 2), (1, 0)):
            # struct user_desc: seg_32bit 0, contents, read_exec_only 0, limit_in_pages 0
            descriptor = struct.pack("<IIII", entry, SEGMENT16_BASE, 0xFFFF, contents << 1)
            if libc.syscall(modify_ldt, 0x11, descriptor, len(descriptor)) != 0:
                return False
        return True

    def run(self, case: Case) -> Outcome:
        """Execute one case."""
        start, selector = CODE, {64: USER_CS64, 32: USER_CS32, 16: LDT_CODE16}[case.bits]
        if case.bits == 16:
            start -= SEGMENT16_BASE
        size = len(case.code)
        code = case.code + self._leave(case.bits, CODE + size, self.plain_exit)
        code = code.ljust(size + TAKEN, b"\xcc")
        code += self._leave(case.bits, CODE + len(code), self.taken_exit)
        self.code[: len(code)] = code
        self.state[: OUT_FLAGS + 48] = struct.pack(
            "<16QQ", *case.regs, case.flags
        ) + bytes(OUT_FLAGS + 48 - 136)  # fmt: skip
        self.state[FAR : FAR + 6] = struct.pack("<IH", start, selector)
        self.window.raw = case.window
        self.functions[case.bits]()
        signal, context, taken = struct.unpack_from("<QQQ", self.state, SIGNAL)
        if signal:
            frame = struct.unpack("<18Q", ctypes.string_at(context + 40, 144))
            regs = [0] * 16
            for n, register in enumerate(CONTEXT_ORDER):
                regs[register] = frame[n]
            return Outcome(signal, tuple(regs), frame[17], self.window.raw, False)
        out = struct.unpack_from("<17Q", self.state, OUT_REGS)
        return Outcome(0, out[:16], out[16], self.window.raw, bool(taken))

    @staticmethod
    def _leave(bits: int, at: int, target: int) -> bytes:
        """A jump from `at` in test code to `target` in the trampoline."""
        if bits == 64:
            return b"\xe9" + struct.pack("<i", target - (at + 5))
        far = b"\xea" + struct.pack("<IH", target, USER_CS64)
        return far if bits == 32 else b"\x66" + far


class NativeCpu:
    """A worker process around a Trampoline. Use as a context manager."""

    def __enter__(self) -> NativeCpu:
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
        plain = [(case.code, case.regs, case.flags, case.window, case.bits) for case in cases]
        pickle.dump(plain, self.process.stdin)
        self.process.stdin.flush()
        try:
            answer = pickle.load(self.process.stdout)
        except EOFError:
            status = self.process.wait()
            raise RuntimeError(f"the native worker died with status {status}") from None
        return [Outcome(*fields) for fields in answer]

    def modes(self) -> tuple[int, ...]:
        """Code sizes that this host can run."""
        pickle.dump("modes", self._input())
        self._input().flush()
        assert self.process.stdout is not None
        modes: tuple[int, ...] = pickle.load(self.process.stdout)
        return modes

    def _input(self) -> Any:
        return self.process.stdin


def available() -> bool:
    """True on Linux on an x86-64 CPU."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    trampoline = Trampoline()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        if request == "modes":
            pickle.dump((64, 32, 16) if trampoline.has_ldt else (64, 32), answers)
        else:
            outcomes = [trampoline.run(Case(*fields)) for fields in request]
            pickle.dump(
                [(o.signal, o.regs, o.flags, o.window, o.taken) for o in outcomes], answers
            )  # fmt: skip
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
