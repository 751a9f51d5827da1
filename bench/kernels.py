"""Compute kernels: our own programs in C as guests. They measure the CPU alone, no device and no exit.

Each is a flat image (bench/guests/, beside its source) that starts in 64-bit mode with RDI = size, RSI =
input and RDX = work area. It leaves by HLT with its result in RAX if that is the one it was told in RCX, and
by UD2, here a triple fault, if not. What it was told comes from `bench.answers`.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench import answers
from isa.exits import Halt
from pysim_vm import AxVM

IMAGES = Path(__file__).resolve().parent / "guests"
CODE, STACK_TOP, INPUT, WORK, MEMORY = 0x10_0000, 0x1F_0000, 0x20_0000, 0x30_0000, 0x40_0000
BUDGET = 1 << 30


class WrongResult(Exception):
    """A kernel computed something else than Python did."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel at a `size`: a short one for the step engine and for tests. `longer` has the `full` one, for
    the block engine, whose translating is part of a run. `prepare` makes the input of a size, `answer` the
    result. A `bulk` kernel repeats one instruction: it counts KiB. One `in_place` changes its input."""

    name: str
    image: str
    size: int
    full: int
    answer: Callable[[int, bytes], int]
    prepare: Callable[[int], bytes] = answers.no_input
    bulk: bool = False
    in_place: bool = False

    @property
    def per(self) -> str:
        """What one operation is."""
        return "KiB" if self.bulk else "instruction"

    def longer(self, _: int = 0) -> Kernel:
        """The kernel at its full size."""
        return replace(self, size=self.full)

    def code(self) -> bytes:
        """The image. FileNotFoundError if it is not there."""
        return (IMAGES / f"{self.image}.bin").read_bytes()

    def registers(self) -> dict[str, int]:
        """What it starts with."""
        return {"rdi": self.size, "rsi": INPUT, "rdx": WORK, "rcx": expected(self), "rsp": STACK_TOP}

    def machine(self, engine: str, **pysim: Any) -> AxVM:
        """A new VM with image, input and arguments in place; `pysim` are more keys of the configuration."""
        vm = AxVM.from_code(
            self.code(), base=CODE, memory=MEMORY, engine=engine, budget_instructions=BUDGET, **pysim
        )
        self.rewind(vm)
        return vm

    def rewind(self, vm: AxVM) -> None:
        """Back to the start; what the machine learnt about the code it keeps."""
        vcpu = vm.vcpu(0)
        vcpu.cpu.halted = False
        for name, value in {**self.registers(), "rip": CODE}.items():
            vcpu.regs[name] = value
        data = self.prepare(self.size)
        if data:
            vm.write_to_guest(INPUT, data)

    def run(self, vm: AxVM) -> int:
        """Run it to its end; the number of operations. WrongResult if its result is not Python's."""
        vcpu = vm.vcpu(0)
        before = vcpu.retired
        reason = vm.run_vcpu(0)
        if not isinstance(reason, Halt) or vcpu.regs.rax != expected(self):
            raise WrongResult(
                f"{self.name} ended at {vcpu.regs.rip:#x} with {reason} and {vcpu.regs.rax:#x} instead of "
                f"{expected(self):#x}"
            )
        return self.size * answers.PIECE // 1024 if self.bulk else vcpu.retired - before

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that runs when it is called, and returns the operations done.

        Two more engines: "kept" is the block engine with the translations that another VM left on disk,
        "warm" the block engine in a VM that has run the kernel once.
        """
        if engine == "kept":
            vm = self.machine("block", translation_cache=translations(self))
        elif engine == "warm":
            vm = self.machine("block")
            self.run(vm)
            self.rewind(vm)
        else:
            vm = self.machine(engine)
        return lambda: self.run(vm)


@cache
def translations(kernel: Kernel) -> str:
    """A directory with the translations of one run; it goes when Python ends."""
    directory = tempfile.mkdtemp(prefix="pysim_vm-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    vm = kernel.machine("block", translation_cache=directory)
    kernel.run(vm)
    vm.keep_translations()
    return directory


@cache
def expected(kernel: Kernel) -> int:
    """What RAX has to be."""
    return kernel.answer(kernel.size, kernel.prepare(kernel.size))


KERNELS = (
    Kernel("ALU", "alu", 6_000, 150_000, answers.alu),
    Kernel("array sum", "array_sum", 6, 128, answers.array_sum, answers.array),
    Kernel("memcpy, a loop", "memcpy_loop", 16_384, 262_144, answers.memcpy_loop, answers.noise),
    Kernel("memcpy, REP", "memcpy_rep", 64, 2_048, answers.memcpy_rep, answers.piece, bulk=True),
    Kernel("CRC-32", "crc32", 8_192, 262_144, answers.crc32, answers.noise),
    Kernel("SHA-256", "sha256", 2_048, 65_536, answers.sha256, answers.noise),
    Kernel("quicksort", "quicksort", 800, 10_000, answers.quicksort, answers.words, in_place=True),
    Kernel("Fibonacci", "fib", 16, 23, answers.fib),
    Kernel("sieve", "sieve", 8_000, 120_000, answers.sieve),
    Kernel("matrix multiply", "matmul", 16, 48, answers.matmul, answers.matrices),
    Kernel("bytecode", "bytecode", 30, 350, answers.bytecode, answers.program),
)
