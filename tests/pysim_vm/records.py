"""Records for tests: guests that take every kind of exit, recorded in memory or into a file."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from pysim_vm import AxVM, Device
from pysim_vm.record_format import CHUNK_HEAD, RecordFile
from pysim_vm.trace import Trace

PORT, GPA, MSR = 0x300, 0x80_0000, 0x1234

# Six exits an iteration: port, memory and register, both ways
MIXED = """
        mov ebx, 0x800000
again:  mov dx, 0x300
        in al, dx
        out dx, al
        mov eax, [rbx]
        mov [rbx + 8], rax
        mov ecx, 0x1234
        rdmsr
        wrmsr
        mov [0x40000], rsi
        inc rsi
        cmp rsi, rdi
        jb again
        hlt
"""


class Counter(Device):
    """Answers how often it was read."""

    name = "counter"

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, width: int) -> int:
        self.reads += 1
        return self.reads & (1 << 8 * width) - 1


def mixed(rounds: int = 3, **pysim: Any) -> AxVM:
    """A machine that runs MIXED `rounds` times and halts for good."""
    vm = AxVM.from_asm(MIXED, memory="4M", regs={"rdi": rounds}, **pysim)
    device = Counter()
    devices = vm.get_devices()
    devices.add_port_dev(device, PORT, 8)
    devices.add_mmio_dev(device, GPA, 0x1000)
    devices.add_sys_reg_dev(device, MSR, 1)
    return vm


def recorded(rounds: int = 3, path: Path | None = None, **options: Any) -> Trace:
    """The closed record of MIXED."""
    vm = mixed(rounds)
    with vm.record(path, **options):
        vm.run(1_000_000)
    return vm.trace


def chunk_offsets(data: bytes) -> list[int]:
    """Where the chunk heads of a record are."""
    return [chunk.offset - CHUNK_HEAD.size for chunk in RecordFile(data).chunks]


def with_crc(head: bytes) -> bytes:
    """A head whose last four bytes are the CRC-32 of the others."""
    return head[:-4] + zlib.crc32(head[:-4]).to_bytes(4, "little")
