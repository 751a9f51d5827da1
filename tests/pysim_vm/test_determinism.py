"""Same guest, same inputs: the same exits, byte for byte, in any hash seed, however the run is cut."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from pysim_vm import ExitReason
from pysim_vm.vcpu import VCpu
from pysim_vm.vm import AxVM

ROOT = Path(__file__).resolve().parents[2]

# A guest that uses everything that could differ: random numbers, time stamps, timers, HLT, console input and
# output, string I/O, MMIO, MSRs.
GUEST = """
        lidt [idtr]
        mov al, 0x11
        out 0x20, al
        mov al, 0x30
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0x00
        out 0x40, al
        mov al, 0x10
        out 0x40, al
        sti
    again:
        rdrand rax
        mov ecx, 100
    mix:
        add rbx, rax
        rol rbx, 7
        loop mix
        mov edi, 0x8000
        mov [rdi], rax
        rdtsc
        mov [rdi+8], eax
        mov esi, 0x8000
        mov ecx, 12
        mov dx, 0x3f8
        rep outsb
        mov word [0xb8000], 0x0741
        mov al, 0
        out 0x70, al
        in al, 0x71
        mov dx, 0x608
        in eax, dx
        mov ecx, 0xc0000080
        rdmsr
        hlt
        inc r15d
        cmp r15d, 40
        jb again
        cli
        hlt
    handler:
        mov al, 0x20
        out 0x20, al
        iretq
    idtr: dw 0xfff
          dq 0x20000
"""


def exit_stream(pieces: int | None = None, engine: str = "step") -> tuple[str, int, int]:
    """SHA-256 of every exit, register and byte of console output; the exits' count; virtual nanoseconds."""
    vm = AxVM.from_asm(GUEST, platform="pc", seed=11, engine=engine)
    code = vm.read_from_guest(0x1000, 0x200)
    handler = 0x1000 + code.index(bytes.fromhex("b020e62048cf"))
    selector = vm.vcpu(0).regs.cs.to_bytes(2, "little")
    vm.write_to_guest(0x20000 + 0x30 * 16, handler.to_bytes(2, "little") + selector + b"\x00\x8e" + bytes(10))
    digest = hashlib.sha256()
    count = 0

    def note(vcpu: VCpu, reason: ExitReason) -> None:
        nonlocal count
        count += 1
        digest.update(f"{vcpu.retired} {reason} {vcpu.regs.as_dict()}\n".encode())

    vm.on_exit = note
    while vm.vcpu(0).regs.if_ or not vm.vcpu(0).cpu.halted:
        vm.run_vcpu(0, budget=pieces)
    digest.update(bytes(vm.console.data) + vm.read_from_guest(0, 0x10_0000))
    return digest.hexdigest(), count, vm.now_ns()


def test_two_runs_have_the_same_exit_stream() -> None:
    first = exit_stream()
    assert first == exit_stream()
    assert first[1] > 40 * 10


def test_a_run_in_pieces_has_the_same_exit_stream() -> None:
    assert exit_stream(pieces=17) == exit_stream()


def test_the_block_engine_has_the_same_exit_stream() -> None:
    assert exit_stream(engine="block") == exit_stream()


def test_the_exit_stream_does_not_depend_on_the_hash_seed() -> None:
    program = "from tests.pysim_vm.test_determinism import exit_stream; print(exit_stream())"
    streams = set()
    for seed in ("0", "1", "4711"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        streams.add(done.stdout)
    assert streams == {f"{exit_stream()}\n"}


def test_the_host_clock_has_no_part_in_it() -> None:
    # The machine's own modules never ask the host for the time: a run with a clock that fails is the same.
    program = (
        "import time, random\n"
        "def refuse(*_): raise AssertionError('host clock or randomness')\n"
        "from tests.pysim_vm.test_determinism import exit_stream\n"
        "time.time = time.monotonic = time.perf_counter = time.time_ns = random.random = refuse\n"
        "print(exit_stream())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.stdout == f"{exit_stream()}\n"
