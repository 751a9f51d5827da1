"""The host's own CPU as an oracle: runs one user-mode instruction on the real silicon. Linux on x86-64 only.

A worker process maps a trampoline, a code page and a data window at fixed addresses, loads the segment
registers, every general register and the flags, jumps to the instruction and reports what came out. Signals
are caught by machine code on a stack of its own, so an instruction may fault, and may have anything in RSP:
vector, error code and fault address come from the signal frame. 32-bit code runs in the kernel's
compatibility segment, 16-bit code in a segment made with modify_ldt.
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
DATA = BASE + 0x4000  # two pages; the page before is read-only and zero, the page after is not mapped
DATA_SIZE = 0x2000
WINDOW_SIZE = 512
WINDOW = DATA + 0x1000 - WINDOW_SIZE // 2  # across the page boundary
TAKEN = 16  # a taken branch lands this far behind the instruction

GPR = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
       "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")

# Offsets in the state page
IN_REGS, IN_FLAGS, HOST_RSP, FAR = 0, 128, 136, 144
OUT_REGS, OUT_FLAGS, SIGNAL, CONTEXT, WAS_TAKEN = 192, 320, 328, 336, 344
OUT_SEGMENTS, OUT_FS_BASE, OUT_GS_BASE, OUT_FAULT, OUT_END = 352, 368, 376, 384, 408
# General registers, flags, signal, context, taken, six selectors, two bases, vector, error code, address
OUT = struct.Struct("<16Q 4Q 6H4x 2Q 3Q")

USER_CS64, USER_CS32, USER_DS = 0x33, 0x23, 0x2B
SEGMENT16_BASE = BASE  # 16-bit code and data see the whole area


@dataclass(frozen=True, slots=True)
class LdtEntry:
    """What modify_ldt is asked for; the fields of Linux's struct user_desc. `contents`: 0 data, 1 expand-down
    data, 2 code, 3 conforming code. Such descriptors have DPL 3 and are marked accessed."""

    base: int
    limit: int
    wide: bool = False  # D/B
    contents: int = 0
    locked: bool = False  # data that is not writable, code that is not readable
    pages: bool = False  # G
    absent: bool = False
    avl: bool = False

    def flags(self) -> int:
        """The bit fields of struct user_desc."""
        bits = (self.wide, 0, 0, self.locked, self.pages, self.absent, self.avl)
        return sum(bool(bit) << n for n, bit in enumerate(bits)) | self.contents << 1

    def descriptor(self) -> int:
        """The eight bytes that Linux makes of it."""
        kind = self.contents << 2 | (not self.locked) << 1 | 1
        access = kind | 1 << 4 | 3 << 5 | (not self.absent) << 7
        high = access | self.avl << 12 | self.wide << 14 | self.pages << 15
        low = self.limit & 0xFFFF | (self.base & 0xFF_FFFF) << 16
        return low | high << 40 | (self.limit >> 16) << 48 | (self.base >> 24) << 56


CODE16, DATA16, ES32, FS32, GS32, ES16, FS16, GS16 = (n << 3 | 7 for n in range(8))
LDT = (
    LdtEntry(SEGMENT16_BASE, 0xFFFF, contents=2),
    LdtEntry(SEGMENT16_BASE, 0xFFFF),
    LdtEntry(BASE, 0xF_FFFF, wide=True, pages=True),
    LdtEntry(BASE + 0x3000, 0xF_FFFF, wide=True, pages=True),
    LdtEntry(BASE - 0x2345, WINDOW + 400 - BASE + 0x2345, wide=True),  # ends in the window
    LdtEntry(BASE + 0x100, 0xFFFF),
    LdtEntry(BASE + 0x1000, 0xFFFF),
    LdtEntry(BASE + 0x2F05, WINDOW + 440 - BASE - 0x2F05),
    # Only to be looked at and to be refused
    LdtEntry(0x1234_5678, 0x123, locked=True),
    LdtEntry(0x0010_0000, 0xFFF, wide=True, contents=1),
    LdtEntry(0, 0xF_1234, wide=True, contents=2, locked=True, pages=True),
    LdtEntry(0x400, 0xF_FFFF, wide=True, contents=3, pages=True, absent=True),
    LdtEntry(0x400, 0x321, absent=True),
    LdtEntry(0x400, 0x4321, contents=2, absent=True),
    LdtEntry(0, 0xF_FFFF, wide=True, pages=True, avl=True),
)
# Linux's GDT as far as user code may know it (arch/x86/include/asm/segment.h); 0 where nothing is visible
GDT = (0, 0x00CF_9B00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF,
       0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0, 0x0000_8B00_0000_206F, 0, 0x0000_8200_0000_0077,
       0, 0, 0, 0, 0)  # fmt: skip
GDT_CPU_NODE = 0x78  # its limit is the number of the CPU

# FS and GS have no selector in 64-bit code; any base below the window will do
FS_BASE64, GS_BASE64 = 0x0A98_7653, 0x0FFF_0000
SELECTORS = {
    64: dict(zip(SEGMENTS, (0, USER_CS64, USER_DS, 0, 0, 0), strict=True)),
    32: dict(zip(SEGMENTS, (ES32, USER_CS32, USER_DS, USER_DS, FS32, GS32), strict=True)),
    16: dict(zip(SEGMENTS, (ES16, CODE16, DATA16, DATA16, FS16, GS16), strict=True)),
}
BASES = {
    bits: {name: LDT[selector >> 3].base if selector & 4 else 0 for name, selector in selectors.items()}
    for bits, selectors in SELECTORS.items()
}
BASES[64] |= {"fs": FS_BASE64, "gs": GS_BASE64}

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
PAGE_FAULT = 14
# Order of the general registers in a signal frame (asm/sigcontext.h); behind them RIP, the flags, four
# selectors (CS, GS, FS, SS), error code, vector, signal mask, CR2
CONTEXT_ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)
CONTEXT_FRAME = struct.Struct("<16Q Q Q 4H 4Q")
ARCH_PRCTL, ARCH_SET_GS, ARCH_SET_FS, ARCH_GET_FS, ARCH_GET_GS = 158, 0x1001, 0x1002, 0x1003, 0x1004


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with everything that goes into it. The segment registers are the same for all."""

    code: bytes
    regs: tuple[int, ...]  # 16, in the manual's order
    flags: int
    window: bytes  # WINDOW_SIZE bytes
    bits: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out. After a signal everything is as at the fault.

    `segments`: six selectors in the manual's order, base of FS, base of GS (64-bit code, else 0).
    `fault`: vector, error code, address of a page fault (of another one 0); zeros without a signal.
    """

    signal: int
    regs: tuple[int, ...]
    flags: int
    window: bytes
    taken: bool
    segments: tuple[int, ...]
    fault: tuple[int, int, int]


class Trampoline:
    """The mapped pages and the machine code in them."""

    def __init__(self) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        fixed_noreplace = 0x10_0000
        for address, size in ((BASE, 0x3000), (DATA, DATA_SIZE)):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace
            if libc.mmap(address, size, protection, flags, -1, 0) != address:
                raise OSError(ctypes.get_errno(), f"cannot map {size:#x} executable bytes at {address:#x}")
        populate = 0x8000  # or it would be absent until something reads it
        if libc.mmap(DATA - 0x1000, 0x1000, mmap.PROT_READ, flags | populate, -1, 0) != DATA - 0x1000:
            raise OSError(ctypes.get_errno(), f"cannot map a page at {DATA - 0x1000:#x}")
        self.entries = dict.fromkeys((64, 32, 16), 0)
        self.window: Any = (ctypes.c_char * WINDOW_SIZE).from_address(WINDOW)
        self.state: Any = (ctypes.c_char * OUT_END).from_address(STATE)
        self.code: Any = (ctypes.c_char * 64).from_address(CODE)
        own_fs = ctypes.c_uint64()
        libc.syscall(ARCH_PRCTL, ARCH_GET_FS, ctypes.byref(own_fs))
        self._build(own_fs.value)
        self._catch_signals(libc)
        self.has_ldt = self._make_ldt(libc)
        self.functions: dict[int, Any] = {
            bits: ctypes.CFUNCTYPE(None)(address) for bits, address in self.entries.items()
        }

    def _build(self, own_fs: int) -> None:
        """Write the trampoline: entries, exits and the signal handler. `own_fs` is this process's FS base."""
        code = bytearray()

        def relative(opcode: bytes, offset: int, tail: bytes = b"") -> None:
            after = BASE + len(code) + len(opcode) + 4 + len(tail)
            code.extend(opcode + struct.pack("<i", STATE + offset - after) + tail)

        def load(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x8B, 5 | (register & 7) << 3)), offset)

        def save(register: int, offset: int) -> None:
            relative(bytes((0x48 | register >> 3 << 2, 0x89, 5 | (register & 7) << 3)), offset)

        def load_segment(name: str, selector: int) -> None:  # mov eax, selector; mov sreg, eax
            code.extend(b"\xb8" + struct.pack("<I", selector))
            code.extend(bytes((0x8E, 0xC0 | SEGMENTS.index(name) << 3)))

        def arch_prctl(command: int, argument: int) -> None:  # mov eax; mov edi; mov rsi; syscall
            code.extend(b"\xb8" + struct.pack("<I", ARCH_PRCTL) + b"\xbf" + struct.pack("<I", command))
            code.extend(b"\x48\xbe" + struct.pack("<Q", argument) + b"\x0f\x05")

        for bits in (64, 32, 16):
            self.entries[bits] = BASE + len(code)
            code += bytes.fromhex("53 55 4154 4155 4156 4157")  # push rbx rbp r12-r15
            save(4, HOST_RSP)
            selectors = SELECTORS[bits]
            if bits == 64:
                arch_prctl(ARCH_SET_FS, FS_BASE64)
                arch_prctl(ARCH_SET_GS, GS_BASE64)
            else:
                for name in ("es", "ds", "fs", "gs"):
                    load_segment(name, selectors[name])
            relative(b"\xff\x35", IN_FLAGS)  # push [flags]; popfq
            code += b"\x9d"
            for register in range(16):
                if register not in (0, 4):
                    load(register, IN_REGS + 8 * register)
            if bits != 64:
                load_segment("ss", selectors["ss"])
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
        for n in range(6):
            relative(bytes((0x8C, 5 | n << 3)), OUT_SEGMENTS + 2 * n)  # mov [selector], sreg
        code += bytes.fromhex("6802020000 9d")  # flags as the ABI has them
        arch_prctl(ARCH_GET_FS, STATE + OUT_FS_BASE)
        arch_prctl(ARCH_GET_GS, STATE + OUT_GS_BASE)
        load_segment("ss", USER_DS)
        code += bytes.fromhex("31c0 8ed8 8ec0")  # ds and es are null in 64-bit code
        arch_prctl(ARCH_SET_FS, own_fs)
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
        """Fill the LDT; False where the kernel has no modify_ldt."""
        modify_ldt = 154
        for number, entry in enumerate(LDT):
            user_desc = struct.pack("<IIII", number, entry.base, entry.limit, entry.flags())
            if libc.syscall(modify_ldt, 0x11, user_desc, len(user_desc)) != 0:
                return False
        return True

    def run(self, case: bytes, flags_and_regs: bytes, window: bytes, bits: int) -> tuple[bytes, bytes]:
        """Execute one case; the output part of the state page (`OUT`) and the window."""
        start, selector = CODE - BASES[bits]["cs"], SELECTORS[bits]["cs"]
        size = len(case)
        code = case + self._leave(bits, CODE + size, self.plain_exit)
        code = code.ljust(size + TAKEN, b"\xcc")
        code += self._leave(bits, CODE + len(code), self.taken_exit)
        self.code[: len(code)] = code
        state = flags_and_regs + bytes(8) + struct.pack("<IH", start, selector)
        self.state[:OUT_END] = state.ljust(OUT_END, b"\0")
        ctypes.memset(DATA, 0, DATA_SIZE)  # whatever the case before stored beside the window
        self.window.raw = window
        self.functions[bits]()
        out = self.state[OUT_REGS:OUT_END]
        signal, context = struct.unpack_from("<QQ", out, SIGNAL - OUT_REGS)
        if signal:
            out = self._fault(out, signal, context)
        return out, self.window.raw

    @staticmethod
    def _fault(out: bytes, signal: int, context: int) -> bytes:
        """The output with what the signal frame says."""
        fields = OUT.unpack(out)
        frame = CONTEXT_FRAME.unpack(ctypes.string_at(context + 40, CONTEXT_FRAME.size))
        regs = [0] * 16
        for n, register in enumerate(CONTEXT_ORDER):
            regs[register] = frame[n]
        flags, cs, ss, error, vector = frame[17], frame[18], frame[21], frame[22], frame[23]
        es, _, _, ds, fs, gs = fields[20:26]
        address = frame[25] if vector == PAGE_FAULT else 0
        return OUT.pack(
            *regs, flags, signal, 0, 0, es, cs, ss, ds, fs, gs, *fields[26:28], vector, error, address
        )

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
        pack = struct.Struct("<17Q").pack
        plain = [(case.code, pack(*case.regs, case.flags), case.window, case.bits) for case in cases]
        pickle.dump(plain, self.process.stdin)
        self.process.stdin.flush()
        try:
            answer = pickle.load(self.process.stdout)
        except EOFError:
            status = self.process.wait()
            raise RuntimeError(f"the native worker died with status {status}") from None
        return [_outcome(case.bits, *fields) for case, fields in zip(cases, answer, strict=True)]

    def modes(self) -> tuple[int, ...]:
        """Code sizes that this host can run."""
        pickle.dump("modes", self._input())
        self._input().flush()
        assert self.process.stdout is not None
        modes: tuple[int, ...] = pickle.load(self.process.stdout)
        return modes

    def _input(self) -> Any:
        return self.process.stdin


def _outcome(bits: int, out: bytes, window: bytes) -> Outcome:
    fields = OUT.unpack(out)
    flags, signal, _, taken = fields[16:20]
    selectors = list(fields[20:26])
    if not signal:
        selectors[1] = SELECTORS[bits]["cs"]  # the exit is 64-bit code; what comes back has not left its own
    bases = fields[26:28] if bits == 64 else (0, 0)
    fault = (fields[28], fields[29], fields[30])
    return Outcome(signal, fields[:16], flags, window, bool(taken), (*selectors, *bases), fault)


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
            pickle.dump((64, 32, 16) if trampoline.has_ldt else (64,), answers)
        else:
            pickle.dump([trampoline.run(*case) for case in request], answers)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
