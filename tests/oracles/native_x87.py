"""The host's own x87 unit as an oracle: one instruction between FRSTOR and FNSAVE. Linux on x86-64 only.

A worker process maps the instruction, both images and a data window at fixed addresses, so that a mistake in
the machine code ends the worker and not the tests. The state that goes in must have no unmasked exception
pending: the instruction would raise SIGFPE before it does anything.
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
from typing import Any, BinaryIO

BASE = 0x2000_0000
STATE = BASE + 0x1000
WINDOW = BASE + 0x2000  # RDI points here
WINDOW_SIZE = 128
IMAGE_SIZE = 108  # the 32-bit protected-mode image of FNSAVE
SLOT = 8  # room for the instruction; the rest is NOPs

# Offsets in the state page
IN_IMAGE, OUT_IMAGE, IN_FLAGS, OUT_FLAGS, OUT_RAX = 0, 128, 256, 264, 272


@dataclass(frozen=True, slots=True)
class Image:
    """The FNSAVE image, apart from reserved bits. `registers` are ST(0) to ST(7)."""

    control: int
    status: int
    tags: int
    ip: int
    cs: int
    opcode: int
    dp: int
    ds: int
    registers: tuple[int, ...]

    def pack(self) -> bytes:
        """108 bytes in the 32-bit protected-mode format."""
        head = struct.pack("<7I", self.control, self.status, self.tags, self.ip, self.cs | self.opcode << 16,
                           self.dp, self.ds)  # fmt: skip
        return head + b"".join(register.to_bytes(10, "little") for register in self.registers)

    @classmethod
    def unpack(cls, raw: bytes) -> Image:
        """From 108 bytes."""
        control, status, tags, ip, selector, dp, ds = struct.unpack_from("<7I", raw)
        registers = tuple(int.from_bytes(raw[28 + 10 * n : 38 + 10 * n], "little") for n in range(8))
        cs, opcode = selector & 0xFFFF, selector >> 16 & 0x7FF
        words = (control & 0xFFFF, status & 0xFFFF, tags & 0xFFFF)
        return cls(*words, ip, cs, opcode, dp, ds & 0xFFFF, registers)


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction (memory operand at [rdi]) with everything that goes into it."""

    code: bytes
    image: Image
    flags: int
    window: bytes  # WINDOW_SIZE bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out."""

    image: Image
    flags: int
    window: bytes
    ax: int


class Trampoline:
    """The mapped pages and the machine code in them."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
        ]  # fmt: skip
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10_0000  # MAP_FIXED_NOREPLACE
        if libc.mmap(BASE, 0x3000, protection, flags, -1, 0) != BASE:
            raise OSError(ctypes.get_errno(), f"cannot map executable bytes at {BASE:#x}")
        code = bytearray()

        def relative(opcode: str, offset: int) -> None:
            after = BASE + len(code) + len(opcode) // 2 + 4
            code.extend(bytes.fromhex(opcode) + struct.pack("<i", STATE + offset - after))

        code += b"\xbf" + struct.pack("<I", WINDOW)  # mov edi, WINDOW
        code += bytes.fromhex("31c0")  # xor eax, eax
        relative("dd25", IN_IMAGE)  # frstor
        relative("ff35", IN_FLAGS)  # push [flags]; popfq
        code += b"\x9d"
        self.at = BASE + len(code)
        code += b"\x90" * SLOT
        code += b"\x9c"  # pushfq; pop [flags]
        relative("8f05", OUT_FLAGS)
        relative("488905", OUT_RAX)  # mov [rax'], rax
        relative("dd35", OUT_IMAGE)  # fnsave
        code += bytes.fromhex("fcc3")  # cld; ret
        ctypes.memmove(BASE, bytes(code), len(code))
        self.function = ctypes.CFUNCTYPE(None)(BASE)

    def run(self, code: bytes, image: bytes, flags: int, window: bytes) -> tuple[bytes, int, bytes, int]:
        """Execute one case; (image, flags, window, AX) afterwards."""
        ctypes.memmove(self.at, code.ljust(SLOT, b"\x90"), SLOT)
        ctypes.memmove(STATE + IN_IMAGE, image, IMAGE_SIZE)
        ctypes.memmove(STATE + IN_FLAGS, struct.pack("<Q", flags | 0x202), 8)
        ctypes.memmove(WINDOW, window, WINDOW_SIZE)
        self.function()
        flags, rax = struct.unpack("<QQ", ctypes.string_at(STATE + OUT_FLAGS, 16))
        out = ctypes.string_at(STATE + OUT_IMAGE, IMAGE_SIZE)
        return out, flags, ctypes.string_at(WINDOW, WINDOW_SIZE), rax & 0xFFFF


class NativeX87:
    """A worker process around a Trampoline. Use as a context manager; `at` is where the code stands."""

    def __enter__(self) -> NativeX87:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.at: int = self._ask(None)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Outcomes of `cases`, in order. RuntimeError if the worker died."""
        answer = self._ask([(case.code, case.image.pack(), case.flags, case.window) for case in cases])
        return [Outcome(Image.unpack(image), flags, window, ax) for image, flags, window, ax in answer]

    def _ask(self, request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            status = self.process.wait()
            raise RuntimeError(f"the native x87 worker died with status {status}") from None


def vendor() -> str:
    """The CPU's vendor as Linux tells it, "" if unknown."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return ""


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    trampoline = Trampoline()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        if request is None:
            pickle.dump(trampoline.at, answers)
        else:
            pickle.dump([trampoline.run(*case) for case in request], answers)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
