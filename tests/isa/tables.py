"""Descriptor tables for tests: a GDT with every privilege level, an IDT and a TSS in `make_cpu`'s RAM.

Selectors name code and data of each level; two slots are free for the descriptor under test.
"""

from __future__ import annotations

from isa.cpu import Cpu
from isa.faults import Fault
from isa.state import EFER_LMA
from tests.isa.machine import make_cpu

GDT, TSS, IDT, LDT = 0x2000, 0x3000, 0x4000, 0x5800
GDT_LIMIT = 0xFF
CODE_SELECTOR = (0x08, 0x19, 0x2A, 0x3B)  # by privilege level, RPL included
DATA_SELECTOR = (0x10, 0x21, 0x32, 0x43)
TSS_SELECTOR = 0x48  # 16 bytes in IA-32e mode
SLOT, SLOT2 = 0x58, 0x68  # for the descriptor under test, 16 bytes each
TASK_SELECTOR = 0x78  # TSS of a second task, 16 bytes
STACK_TOP = (0x6000, 0x6800, 0x7000)  # (E)SP0-2 or RSP0-2 in the TSS
IST_TOP = 0x5400
HANDLER = 0x1800

CODE, DATA, CONFORMING_CODE = 0x1A, 0x12, 0x1E


def descriptor(
    kind: int, dpl: int = 0, *, base: int = 0, limit: int = 0xFFFF_FFFF, present: int = 1, flags: int = 0xC
) -> int:
    """Eight bytes; `kind` is S and the type (5 bits), `limit` in bytes, `flags` G D/B L AVL."""
    if flags & 8:
        limit >>= 12
    access = kind | dpl << 5 | present << 7
    return (
        limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52
        | (base >> 24) << 56
    )  # fmt: skip


def gate(
    kind: int, selector: int, offset: int = HANDLER, *, dpl: int = 0, present: int = 1, count: int = 0
) -> int:
    """An 8-byte gate; `count` is the parameter count or the IST field."""
    return (
        offset & 0xFFFF | selector << 16 | count << 32 | (kind | dpl << 5 | present << 7) << 40
        | (offset >> 16 & 0xFFFF) << 48
    )  # fmt: skip


def gate64(
    kind: int, selector: int, offset: int = HANDLER, *, dpl: int = 0, present: int = 1, ist: int = 0
) -> int:
    """A 16-byte gate."""
    return (
        gate(kind, selector, offset & 0xFFFF_FFFF, dpl=dpl, present=present, count=ist) | offset >> 32 << 64
    )


def put(cpu: Cpu, address: int, value: int, size: int = 8) -> None:
    """Store into RAM behind the CPU's back."""
    cpu.memory.write(address, value.to_bytes(size, "little"))


def get(cpu: Cpu, address: int, size: int = 8) -> int:
    """Read RAM behind the CPU's back."""
    return int.from_bytes(cpu.memory.read(address, size), "little")


def words(cpu: Cpu, address: int, count: int, size: int = 4) -> list[int]:
    """`count` values of `size` bytes from `address` upwards."""
    return [get(cpu, address + n * size, size) for n in range(count)]


def set_entry(cpu: Cpu, selector: int, raw: int, size: int = 8) -> None:
    """Write a GDT entry."""
    put(cpu, GDT + (selector & 0xFFF8), raw, size)


def set_gate(cpu: Cpu, vector: int, raw: int) -> None:
    """Write an IDT entry of the current mode's size."""
    size = 16 if cpu.efer & EFER_LMA else 8
    put(cpu, IDT + vector * size, raw, size)


def set_level(cpu: Cpu, level: int) -> None:
    """Load CS, SS and the data segments of privilege `level` as a return to it would."""
    flags = 0xA000 if cpu.efer & EFER_LMA else 0xC000
    cpu.cs.load_raw(CODE_SELECTOR[level], 0, 0xFFFF_FFFF, flags | 0x9B | level << 5)
    for segment in (cpu.ss, cpu.ds, cpu.es, cpu.fs, cpu.gs):
        segment.load_raw(DATA_SELECTOR[level], 0, 0xFFFF_FFFF, 0xC093 | level << 5)
    cpu.cpl = level
    cpu.update_mode()


def table_cpu(bits: int = 32, level: int = 0, code: bytes | None = None, **registers: int) -> Cpu:
    """`make_cpu` in 32-bit protected or 64-bit mode at `level`, with GDT, IDT and TSS in place."""
    cpu = make_cpu(bits, code, **registers)
    cpu.gdtr.base, cpu.gdtr.limit = GDT, GDT_LIMIT
    cpu.idtr.base, cpu.idtr.limit = IDT, 256 * (16 if bits == 64 else 8) - 1
    cpu.ldtr.load_null(0)
    for n in range(4):
        set_entry(cpu, CODE_SELECTOR[n], descriptor(CODE, n, flags=0xA if bits == 64 else 0xC))
        set_entry(cpu, DATA_SELECTOR[n], descriptor(DATA, n))
    set_entry(cpu, TSS_SELECTOR, descriptor(0x0B, base=TSS, limit=0x87, flags=0))
    cpu.tr.load_raw(TSS_SELECTOR, TSS, 0x87, 0x8B)
    for n, top in enumerate(STACK_TOP):
        if bits == 64:
            put(cpu, TSS + 4 + 8 * n, top)
        else:
            put(cpu, TSS + 4 + 8 * n, top, 4)
            put(cpu, TSS + 8 + 8 * n, DATA_SELECTOR[n], 2)
    if bits == 64:
        for n in range(7):
            put(cpu, TSS + 0x24 + 8 * n, IST_TOP + 0x40 * n)
    set_level(cpu, level)
    return cpu


def outcome(action: object, *arguments: object) -> str:
    """Call `action(*arguments)`; "#GP(0x58)" if it raises a fault, "" if not."""
    try:
        action(*arguments)  # type: ignore[operator]
    except Fault as fault:
        return f"{fault.name}({fault.error_code:#x})"
    return ""
