"""Other emulators, where they happen to be installed: the same kernels beside ours. None of them is needed.

`unicorn` runs the image as it is. A user-mode emulator (qemu-x86_64, blink) gets a Linux program made around
it, which calls the kernel and exits with 0 if its result is right. Both are checked against `bench.answers`,
and their operations are counted by our machine, as an emulator that translates does not count.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import process_time
from typing import Protocol

from bench.kernels import CODE, INPUT, MEMORY, Kernel, WrongResult, expected
from isa.assembler import assemble

HLT = b"\xf4"  # the last instruction of start.S
CALL_AT = 5  # where start.S calls `kernel`
USER_MODE = ("qemu-x86_64", "qemu-x86_64-static", "blink")
STUB = 0x8_0000  # of the Linux program
PAGE = 0x1000
EMPTY_RUNS = 9
PRISTINE = INPUT + 0x8_0000  # the input of a kernel that works in place
EXIT = "mov eax, 60\n syscall\n"  # exit(edi)
RESTORE = f"""
        mov rsi, {PRISTINE}
        mov rdi, {INPUT}
        mov ecx, {{words}}
        rep movsq
"""
LOOP = f"""
        mov r15d, {{repeats}}
again:  {{copy}}
        {{loads}}
        push rcx
        push rcx
        call {{entry}}
        pop rcx
        cmp rax, rcx
        jne wrong
        dec r15d
        jnz again
        xor edi, edi
        {EXIT}
wrong:  mov edi, 1
        {EXIT}
"""


class Peer(Protocol):
    """An emulator: `fresh` prepares a kernel for it and returns what runs it, `repeats` times; `clock` is CPU
    time."""

    @property
    def name(self) -> str: ...
    @property
    def repeats(self) -> int: ...
    def fresh(self, kernel: Kernel, /) -> Callable[[], None]: ...
    def clock(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Unicorn:
    """The Unicorn engine through its Python binding."""

    name: str = "unicorn"
    repeats: int = 1

    def fresh(self, kernel: Kernel) -> Callable[[], None]:
        """A new machine with the kernel in place."""
        engine, registers = import_module("unicorn"), import_module("unicorn.x86_const")
        code = kernel.code()
        machine = engine.Uc(engine.UC_ARCH_X86, engine.UC_MODE_64)
        machine.mem_map(0, MEMORY)
        machine.mem_write(CODE, code)
        machine.mem_write(INPUT, kernel.prepare(kernel.size))
        for name, value in kernel.registers().items():
            machine.reg_write(getattr(registers, f"UC_X86_REG_{name.upper()}"), value)

        def run() -> None:
            machine.emu_start(CODE, CODE + code.index(HLT))
            check(kernel, self.name, machine.reg_read(registers.UC_X86_REG_RAX) == expected(kernel))

        return run

    def clock(self) -> float:
        """It runs in this process."""
        return process_time()


class UserMode:
    """An emulator of Linux programs. Its start, measured with a program that does nothing, does not count;
    its programs run their kernel often enough for that to be exact."""

    repeats = 20

    def __init__(self, path: str) -> None:
        self.name = Path(path).name.removesuffix("-static")
        self._path = path
        self._scratch = tempfile.TemporaryDirectory()
        self._launched = 0
        empty = self._written("empty", linux_program(assemble(EXIT, bits=64, origin=STUB), {}))
        times = []
        for _ in range(EMPTY_RUNS):
            before = children_seconds()
            self._launch(empty)
            times.append(children_seconds() - before)
        self._start, self._launched = median(times), 0

    def fresh(self, kernel: Kernel) -> Callable[[], None]:
        """The kernel as a program in a file."""
        code = kernel.code()
        entry = CODE + CALL_AT + 5 + int.from_bytes(code[CALL_AT + 1 : CALL_AT + 5], "little", signed=True)
        loads = "".join(f"mov {name}, {value:#x}\n" for name, value in kernel.registers().items())
        data = kernel.prepare(kernel.size)
        copy = RESTORE.format(words=len(data) // 8) if kernel.in_place else ""
        stub = LOOP.format(repeats=self.repeats, copy=copy, loads=loads, entry=entry)
        parts = {CODE: code, INPUT: data, PRISTINE: data if kernel.in_place else b""}
        path = self._written(kernel.image, linux_program(assemble(stub, bits=64, origin=STUB), parts))
        return lambda: check(kernel, self.name, self._launch(path) == 0)

    def clock(self) -> float:
        """CPU time of what was launched, without the starts."""
        return children_seconds() - self._launched * self._start

    def _launch(self, path: Path) -> int:
        self._launched += 1
        return subprocess.run([self._path, path], check=False).returncode

    def _written(self, name: str, program: bytes) -> Path:
        path = Path(self._scratch.name) / name
        path.write_bytes(program)
        path.chmod(0o755)
        return path


def check(kernel: Kernel, peer: str, right: bool) -> None:
    """WrongResult if a peer computed something else."""
    if not right:
        raise WrongResult(f"{kernel.name} on {peer}: not what Python computes")


def children_seconds() -> float:
    """CPU time of the processes that were waited for (POSIX)."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def linux_program(stub: bytes, parts: dict[int, bytes]) -> bytes:
    """An ELF executable that starts with `stub`, with `parts` by address and zeros up to MEMORY.

    Its addresses are those of the kernels' machine, all of it writable and executable (System V ABI, "Program
    Header").
    """
    memory = bytearray(MEMORY - STUB)
    for address, data in {STUB: stub, **parts}.items():
        memory[address - STUB : address - STUB + len(data)] = data
    used = bytes(memory).rstrip(b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, STUB, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, PAGE, STUB, STUB, len(used), len(memory), PAGE)
    return (header + segment).ljust(PAGE, b"\0") + used


@cache
def operations(kernel: Kernel) -> int:
    """What our machine counts for a kernel."""
    return kernel.fresh("block")()


def counted(peer: Peer, kernel: Kernel) -> Callable[[], int]:
    """A run of `kernel` on `peer` that returns the operations done, as a workload does."""
    run = peer.fresh(kernel)

    def work() -> int:
        run()
        return peer.repeats * operations(kernel)

    return work


def installed() -> list[Peer]:
    """The peers that are there: `unicorn` if it can be imported, the others if they are in the PATH."""
    found: list[Peer] = [Unicorn()] if find_spec("unicorn") is not None else []
    paths = {name: shutil.which(name) for name in USER_MODE}
    found += [UserMode(path) for path in paths.values() if path is not None and os.name == "posix"]
    return found
