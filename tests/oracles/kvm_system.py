"""Cases of system instructions and control transfers, from templates: what the forms of kvm_cases leave out.

Segment loads, far branches and returns, descriptor tables, control registers, software interrupts; in user
code what is privileged. Selectors are drawn from those that the tables have and from those that they lack.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from random import Random

from isa.assembler import assemble
from isa.state import GPR_NAMES
from tests.oracles.kvm_cases import CaseMaker, edge_value
from tests.oracles.kvm_twins import (
    CODE,
    CODE0,
    CODE3,
    DATA,
    DATA0,
    DATA3,
    FREE,
    LANDING,
    LDT_SELECTOR,
    MODES,
    TSS_SELECTOR,
    Case,
    Mode,
)

SELECTORS = (
    0,
    0,
    3,
    CODE0,
    DATA0,
    DATA0,
    CODE3,
    DATA3,
    DATA3,
    DATA0 | 3,
    TSS_SELECTOR,
    LDT_SELECTOR,
    0x30,
    0x48,
    0x14,
)

UNKNOWN_MSR = 0x7000_1234

# {m} is a memory operand, {far} a far pointer to LANDING; AX holds a selector or, in real mode, a segment
EVERYWHERE = (
    "cli", "sti", "hlt", "clts", "ud2", "wbinvd", "lahf", "sahf", "cld", "std", "cmc", "pause",
    "mov es, ax", "mov ds, ax", "mov ss, ax", "mov fs, ax", "mov gs, ax", "mov es, [{m}]", "mov fs, [{m}]",
    "mov ax, ds", "mov [{m}], es", "mov eax, ss", "push fs", "pop gs", "push gs", "pop fs",
    "mov eax, cr0", "mov ecx, cr2", "mov edx, cr3", "mov ebx, cr4", "smsw ax", "smsw [{m}]", "invlpg [{m}]",
    "lmsw cx", "sgdt [{m}]", "sidt [{m}]", "lgdt [{m}]", "lidt [{m}]", "sldt ax", "str ax", "sldt [{m}]",
    "lldt ax", "ltr ax", "verr ax", "verw ax", "int 0x30", "int3", "iret", "retf", "retf 6",
    "xchg [{m}], ax", "mov cr2, ecx", "lfs si, [{m}]", "lgs si, [{m}]", "lss si, [{m}]",
    "call far [{m}]", "jmp far [{m}]", "rdmsr", "wrmsr",
)  # fmt: skip
LEGACY = (
    "push es", "push cs", "push ss", "push ds", "pop es", "pop ss", "pop ds", "les si, [{m}]",
    "lds si, [{m}]", "into", "call {far}", "jmp {far}", "arpl [{m}], ax", "o32 iret", "o32 retf",
)  # fmt: skip
LONG = ("mov rax, cr0", "mov rcx, cr4", "swapgs", "iretq", "mov rax, cr8", "mov dr0, rcx", "mov rax, dr6")
# What a user process of the host's CPU is told is about the host
HOST_TELLS = ("sgdt", "sidt", "sldt", "str", "smsw", "verr", "verw", "lar", "lsl")

# Segment registers of 64-bit user code hold the selectors of the host, where it runs on the host's CPU
_SEGMENTS = re.compile(r"\b([defgs]s|iretq?|retf|far|l[fgs]s)\b")


VECTOR_MOVES = (
    "movdqu",
    "movups",
    "movupd",
    "movdqa",
    "movaps",
    "movapd",
    "movntdq",
    "movntps",
    "movntpd",
    "lddqu",
)
ALIGNED = ("movdqa", "movaps", "movapd", "movnt")


def vector_case(rng: Random, mode_name: str) -> Case | None:
    """A 16-byte load or store, which a device sees as several; None where the mode cannot have it here."""
    mode = MODES[mode_name]
    if mode.bits == 16:
        return None
    maker = CaseMaker(rng, mode, False)
    name = rng.choice(VECTOR_MOVES)
    memory, register = f"[{'rbx' if mode.bits == 64 else 'ebx'}]", f"xmm{rng.randrange(8)}"
    load = name == "lddqu" or (not name.startswith("movnt") and rng.random() < 0.5)
    code = _assembled(f"{name} {register}, {memory}" if load else f"{name} {memory}, {register}", mode.bits)
    if code is None:
        return None
    place = maker.place(16)
    if name.startswith(ALIGNED) and rng.random() < 0.95:
        place &= ~15
    maker.set_register(3, place - maker.base_of("ds"), mode.bits)
    maker.code += code
    return replace(maker.finished(), vectors=tuple(rng.getrandbits(128) for _ in range(8)))


def texts(mode: Mode) -> tuple[str, ...]:
    """The templates of a mode."""
    chosen = EVERYWHERE + (LONG if mode.bits == 64 else LEGACY)
    if mode.bits == 16:
        chosen = tuple(text for text in chosen if "o32" not in text or mode.name == "real")
    if mode.name == "user64":
        chosen = tuple(
            text for text in chosen if not text.startswith(HOST_TELLS) and not _SEGMENTS.search(text)
        )
    return chosen


@cache
def _assembled(text: str, bits: int) -> bytes | None:
    """The code, None where the mode has no such instruction."""
    try:
        return assemble(text, bits=bits, origin=CODE)
    except ValueError:
        return None


def system_case(rng: Random, mode_name: str) -> Case | None:
    """One instruction from the templates in a random state; None where the mode has no such instruction."""
    mode = MODES[mode_name]
    maker = CaseMaker(rng, mode, False)
    selector = rng.choice(SELECTORS) if mode.protected else rng.choice((0, 0x1E00, rng.randrange(0x2000)))
    code_selector = (CODE3 if mode.level else CODE0) if mode.protected else 0
    memory = {64: "rbx", 32: "ebx", 16: "bx"}[mode.bits]
    text = rng.choice(texts(mode)).format(m=memory, far=f"{code_selector}:{LANDING}")
    code = _assembled(text, mode.bits)
    if code is None:
        return None
    registers = [edge_value(rng, 64) for _ in GPR_NAMES]
    maker.registers[:] = registers
    maker.registers[0] = registers[0] & ~0xFFFF | selector
    maker.registers[1] = rng.choice((0x1234, UNKNOWN_MSR)) & ~1  # LMSW leaves PE
    place = maker.place(10)
    if text.startswith(("sgdt", "sidt")):  # to a device KVM does not come to an end with them
        place = DATA + rng.randrange(0x1000)
    maker.set_register(3, place - maker.base_of("ds"), mode.bits)
    stack = maker.stack()
    maker.registers[4] = stack & (1 << maker.stack_bits) - 1
    maker.registers[5] = maker.registers[4]
    width = 4 if text.startswith("o32") else mode.bits // 8
    if mode.bits == 64 and text in ("retf", "retf 6", "iret"):
        width = 4
    odd = selector if mode.protected else 0  # a real-mode segment would lead into the noise
    target = rng.choice((LANDING, LANDING, LANDING, FREE + rng.randrange(0x1000)))
    frame = [target, rng.choice((code_selector, code_selector, odd)), rng.getrandbits(16) & 0xCD5]
    frame += [stack & 0xFFFF_FFFF, DATA3 if mode.level else DATA0]
    linear = stack + maker.base_of("ss")
    for n, value in enumerate(frame):
        maker.put(linear + n * width, value & (1 << 8 * width) - 1, width)
    if "far" in text or text.startswith(("les", "lds", "lss", "lfs", "lgs")):
        size = 4 if mode.bits != 16 else 2
        maker.put(place, target & (1 << 8 * size) - 1, size)
        maker.put(place + size, frame[1] if "far" in text else selector, 2)
    maker.code += code
    return maker.finished()
