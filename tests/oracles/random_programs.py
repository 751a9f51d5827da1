"""Random 64-bit programs and the machine they run in, for comparing the two engines. It compares nothing itself.

A program is what a hostile guest could be: arithmetic of every form that blocks can hold, loops, calls, returns,
stores into its own code, accesses to every kind of page, exits; and a script of what happens to it from outside.
Its faults are answered by handlers inside the guest that go on behind the faulting instruction.
The same seed gives the same program.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from iced_x86 import Code, Encoder, Instruction, OpCodeInfo, OpCodeOperandKind, OpKind, Register

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.decode import code_names, mnemonic_names
from isa.exits import (
    Budget,
    ExitReason,
    Halt,
    Hypercall,
    IoRead,
    MmioRead,
    NestedPageFault,
    SysRegRead,
    SysRegWrite,
    TripleFault,
    Unimplemented,
)
from isa.faults import Fault, GeneralProtection
from isa.memory import EXECUTE, READ, PhysicalMemory
from isa.semantics import instruction_table
from isa.state import (
    CR0_AM,
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_FSGSBASE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CR4_SMAP,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    GPR_NAMES,
    M64,
    XMM_NAMES,
)
from tests.isa.machine import ALL_FEATURES
from tests.isa.tables import descriptor, gate64

# ---- the map: linear page -> guest-physical page, all in the 2 MiB behind BASE ----------------------------

HIGH = 0xFFFF_FFFF_8000_0000  # the same map once more in the upper half
CODE, CODE_PAGES = 0x40_0000, 3
CODE_ALIAS = 0x41_0000  # the same bytes, writable, not executable
DATA, DATA_PAGES = 0x42_0000, 4
READ_ONLY, ABSENT, SUPERVISOR, MMIO = 0x42_4000, 0x42_5000, 0x42_6000, 0x42_7000
ROM, LAZY, DATA_GPA_ALIAS, DATA_ALIAS = 0x42_8000, 0x42_9000, 0x42_A000, 0x42_B000
STACK, STACK_PAGES = 0x43_0000, 2
KERNEL, COUNTERS, IDT, GDT, TSS = 0x44_0000, 0x44_1000, 0x44_2000, 0x44_3000, 0x44_3400
KERNEL_STACKS, PAGE_TABLE = 0x44_4000, 0x44_8000
RECOVERY = 0x45_0000  # 16 bits for every byte of code: where to go on after a fault there

PML4, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
CODE_AT = (0x1_0000, 0x1_2000, 0x1_1000)
DATA_AT = (0x2_0000, 0x2_3000, 0x2_1000, 0x2_2000)
STACK_AT, KERNEL_AT, RECOVERY_AT = 0x3_0000, 0x3_8000, 0x4_0000
RAM = 0x5_0000
ROM_GPA, LAZY_GPA, ALIAS_GPA, MMIO_GPA = 0x8_0000, 0x9_0000, 0xA_0000, 0xB_0000

P, RW, US, NX = 1, 2, 4, 1 << 63
CODE0, DATA0, DATA3, CODE3, TSS_SELECTOR = 0x08, 0x10, 0x23, 0x2B, 0x38
TF, AC = 0x100, 0x4_0000
WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21)
FIRST_INTERRUPT, INTERRUPTS = 32, 4
LSTAR, STAR, FMASK, EFER_MSR = 0xC000_0082, 0xC000_0081, 0xC000_0084, 0xC000_0080
UNKNOWN_MSR = 0x1234

_HANDLERS = """
    with_code:
        add rsp, 8
    without_code:
        push rax
        mov rax, [rsp+8]
        sub rax, {code:#x}
        cmp rax, {size:#x}
        jae lost
        movzx eax, word ptr [{recovery:#x}+rax*2]
        jmp back
    lost:
        xor eax, eax
    back:
        add rax, {code:#x}
        mov [rsp+8], rax
        add qword ptr [{counters:#x}], 1
        pop rax
        iretq
    debug:
        dec dword ptr [{counters:#x}+8]
        jns more
        mov dword ptr [{counters:#x}+8], 7
        and dword ptr [rsp+16], 0xfffffeff
    more:
        iretq
    interrupt:
        push rcx
        mov ecx, 3
    again:
        add dword ptr [{counters:#x}+rcx*4+16], ecx
        loop again
        pop rcx
        iretq
    system_call:
        inc qword ptr [{counters:#x}+64]
        cmp byte ptr [{counters:#x}+64], 0x55
        sysretq
"""
_ENTRIES = ("with_code", "without_code", "debug", "interrupt", "system_call")


@cache
def handlers(base: int) -> tuple[bytes, dict[str, int]]:
    """Code of the kernel page and the offsets of its entries."""
    names = {
        "code": CODE if not base else CODE - 0x8000_0000, "size": CODE_PAGES << 12, "recovery": RECOVERY,
        "counters": COUNTERS,
    }  # fmt: skip
    text = _HANDLERS.format(**names)
    entries = {}
    for entry in _ENTRIES:
        before = text.split(f"{entry}:")[0].count(":")
        entries[entry] = before
    return _assemble_with_entries(text)


def _assemble_with_entries(text: str) -> tuple[bytes, dict[str, int]]:
    """Assemble, and find each entry by assembling a jump table in front of the code."""
    jumps = "".join(f"jmp near {entry}\n" for entry in _ENTRIES)
    code = assemble(jumps + text, 64, KERNEL)
    offsets = {}
    for n, entry in enumerate(_ENTRIES):
        offsets[entry] = 5 * n
    return code, offsets
