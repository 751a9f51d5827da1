"""Random descriptor tables, stacks and TSSs under far transfers: the guest may shut down, Python may not.

Also held: an exit from the middle of a transfer or a delivery leaves no register and no busy bit changed.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from isa.cpu import Cpu
from isa.exits import NestedPageFault
from isa.state import GPR_NAMES, M32, M64
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import RAM, STACK, make_cpu
from tests.isa.tables import (
    GDT,
    HANDLER,
    LDT,
    SLOT,
    TSS,
    descriptor,
    gate,
    get,
    put,
    set_entry,
    set_gate,
    table_cpu,
)

CASES = int(os.environ.get("PYSIM_TABLE_CASES", "600"))
TRANSFERS = """
    cd41 cc f1 ce cf 66cf 48cf cb 66cb 48cb ca0400 8ed8 8ec0 8ed0 8ee0 1f 07 17 0fa1 0fb213 c513 0f00d0 0f00d8
    0f02c1 0f03c1 0f00e1 0f00e9 63c8 ff1b ff2b 48ff1b 48ff2b ea000000005800 9a000000005b00 ea000000007800
    9a000000007b00 0f0b 0f0113 0f011b 66ff1b 66ff2b 0f01f8
"""
GATES = (4, 5, 6, 7, 12, 14, 15)
KINDS = (*GATES, 1, 2, 3, 9, 0xB, 0x12, 0x13, 0x16, 0x1A, 0x1B, 0x1E)
SELECTORS = (0, 8, 0x10, 0x19, 0x3B, 0x43, 0x58, 0x5B, 0x68, 0x78)


def random_entry(r: Random) -> int:
    kind = r.choice((*KINDS, r.randrange(32)))
    present = int(r.random() < 0.9)
    if kind in GATES:
        selector = r.choice((*SELECTORS, r.getrandbits(16)))
        offset = r.choice((HANDLER, r.getrandbits(32)))
        return gate(kind, selector, offset, dpl=r.randrange(4), present=present, count=r.getrandbits(5))
    return descriptor(
        kind, r.randrange(4), base=r.choice((0, 0, 0x3800, LDT, RAM - 0x40, r.getrandbits(32))),
        limit=r.choice((M32, 0x67, 0x2B, 0xFFFF, 0x10, r.getrandbits(32))), present=present,
        flags=r.choice((0xC, 0xA, 4, 0, 0xE)),
    )  # fmt: skip


def random_cpu(r: Random) -> Cpu:
    bits = r.choice((16, 32, 32, 32, 64, 64))
    cpu = make_cpu(16) if bits == 16 else table_cpu(bits, r.randrange(4))
    if bits == 32 and r.random() < 0.3:
        for segment in cpu.segments:
            segment.load_v86(r.choice((0, 0x100)))
        cpu.cpl, cpu.vm, cpu.cr4 = 3, 1, r.getrandbits(1)
    for selector in range(SLOT, 0x90, 8):
        set_entry(cpu, selector, random_entry(r))
    for vector in (0, 1, 3, 4, 6, 8, 10, 11, 12, 13, 14, 0x41):
        if bits == 16:
            put(cpu, 4 * vector, r.getrandbits(32), 4)
        else:
            raw = gate(r.choice((5, 14, 15, 6)), r.choice(SELECTORS), dpl=r.randrange(4))
            set_gate(cpu, vector, raw if r.random() < 0.6 else random_entry(r))
    for start, end in ((TSS, TSS + 0x88), (0x3800, 0x3868), (0x7000, 0x7020), (STACK - 0x80, STACK + 0x80)):
        for address in range(start, end, 4):
            if r.random() < 0.6:
                value = r.choice((*SELECTORS, HANDLER, STACK, RAM, 2, 0x4002, 0x2_0002, r.getrandbits(32)))
                put(cpu, address, value, 4)
    cpu.tr.limit, cpu.tr.type = r.choice((0x87, 0x67, 0x2B, 0x10)), r.choice((0xB, 0xB, 3))
    cpu.rsp = r.choice((STACK, STACK, STACK + 1, 0, RAM, RAM + 4, r.getrandbits(64 if bits == 64 else 32)))
    cpu.rax, cpu.rbx, cpu.rcx = r.choice(SELECTORS), 0x7000, r.choice(SELECTORS)
    cpu.set_rflags_raw(r.getrandbits(22) & 0x39_7FD5 | 2 | cpu.vm << 17)
    if r.random() < 0.6:
        cpu.nt = cpu.tf = 0
    cpu.rip = ORIGIN
    cpu.update_mode()
    cpu.request_attention()
    cpu.memory.write(
        ORIGIN if bits == 64 else cpu.cs.base + ORIGIN, bytes.fromhex(r.choice(TRANSFERS.split()))
    )
    return cpu


def state(cpu: Cpu) -> list[object]:
    """What an exit must leave alone; RF is the engine's and accessed bits may be set early."""
    segments = [
        (s.selector, s.base, s.limit, s.attributes, s.null) for s in (*cpu.segments, cpu.ldtr, cpu.tr)
    ]
    names = (*GPR_NAMES, "rip", "cpl", "cr0", "cr3", "dr7", "stack_mask", "code_bits", "protected")
    access = [get(cpu, GDT + at + 5, 1) for at in range(0, 0x100, 8)]
    busy = [byte & ~1 if byte & 0x10 else byte for byte in access]
    return [segments, [getattr(cpu, name) for name in names], cpu.rflags() & ~(1 << 16), busy]


def check_sane(cpu: Cpu) -> None:
    """Every register holds a value that its width can hold, and CS agrees with CPL."""
    for segment in (*cpu.segments, cpu.ldtr, cpu.tr):
        assert 0 <= segment.selector <= 0xFFFF and 0 <= segment.base <= M64 and 0 <= segment.limit <= M32
    assert all(0 <= getattr(cpu, name) <= M64 for name in GPR_NAMES)
    assert 0 <= cpu.rip <= (M64 if cpu.mode64 else M32)
    assert cpu.rflags() >> 22 == 0
    if cpu.protected and cpu.cs.selector & 0xFFFC:
        assert cpu.cs.selector & 3 == cpu.cpl


@pytest.mark.parametrize("part", range(4))
def test_no_tables_of_the_guest_can_confuse_the_cpu(part: int) -> None:
    exits = 0
    for case in range(part, CASES, 4):
        cpu = random_cpu(Random(case))
        for _ in range(6):
            before = state(cpu)
            reason = cpu.run(cpu.retired + 1)
            check_sane(cpu)
            if isinstance(reason, NestedPageFault):
                exits += 1
                assert state(cpu) == before, case
    assert exits
