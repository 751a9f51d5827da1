"""16- and 32-bit code on both engines: random loops with segments that have a base and a limit.

PYSIM_ENGINE_CASES sets the number of programs of each mode, PYSIM_ENGINE_SEED the first one's seed.
"""

from __future__ import annotations

import os
from random import Random

import numpy as np
import pytest

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.exits import Budget
from isa.state import CR0_PE
from tests.isa.machine import CODE, make_cpu, visible_state

CASES = int(os.environ.get("PYSIM_ENGINE_CASES", "25"))
SEED = int(os.environ.get("PYSIM_ENGINE_SEED", "1"))
CS_BASE, DS_BASE, SS_BASE, ES_BASE = 0x1_0000, 0x2_0010, 0x3_0003, 0x4_0008
MODES = ("real", "protected 16", "protected 32", "big stack", "small stack")

REGISTERS = {16: ("ax", "cx", "dx", "bx", "bp", "si", "di"), 32: ("eax", "edx", "ebx", "ebp", "esi", "edi")}
OPERATIONS = ("add", "sub", "xor", "and", "or", "adc", "sbb", "cmp", "test", "mov")


def operand(random: Random, bits: int) -> str:
    """A memory operand that is mostly inside its segment."""
    if bits == 16:
        base = random.choice(("bx", "si", "di", "bx+si", "bp+di"))
    else:
        base = random.choice(("ebx", "esi", "edi", "ebx+esi*2", "ebp"))
    segment = random.choice(("", "", "", "es:", "ss:"))
    return f"[{segment}{base}+{random.choice((0, 1, 4, 16, 60))}]"


def instruction(random: Random, bits: int) -> str:
    """One instruction that does not jump."""
    width = random.choice((16, 32, bits, bits))
    registers = [r for r in REGISTERS[width] if r not in ("ecx", "cx")]
    one, other = random.choice(registers), random.choice(registers)
    size = {16: "word", 32: "dword"}[width]
    match random.randrange(14):
        case 0 | 1 | 2:
            return f"{random.choice(OPERATIONS)} {one}, {other}"
        case 3:
            return f"{random.choice(OPERATIONS)} {one}, {random.choice((1, 7, -3, 0x7F))}"
        case 4 | 5:
            return f"mov {one}, {size} ptr {operand(random, bits)}"
        case 6 | 7:
            return f"mov {size} ptr {operand(random, bits)}, {one}"
        case 8:
            return f"add {size} ptr {operand(random, bits)}, {one}"
        case 9:
            return f"push {one}\npop {other}"
        case 10:
            return f"movzx {one}, byte ptr {operand(random, bits)}"
        case 11:
            return random.choice((f"inc {one}", f"dec {one}", f"neg {one}", f"shl {one}, 3", f"sar {one}, 1"))
        case 12:
            return random.choice(
                (f"mov al, byte ptr {operand(random, bits)}", "mov ah, dl", "xchg bl, dh", "cbw")
            )
        case _:
            return f"lea {one}, {operand(random, bits).replace('es:', '').replace('ss:', '')}"


def program(random: Random, bits: int) -> str:
    """A loop of straight pieces with branches and a call; its pointers are pulled back in every round."""
    pointer = {16: ("bx", "si", "di", "bp"), 32: ("ebx", "esi", "edi", "ebp")}[bits]
    lines = ["again:"]
    for n in range(random.randrange(2, 5)):
        lines += [f"and {register}, 0x{random.choice((0xFF, 0x1FF, 0xFFF)):x}" for register in pointer]
        lines += [instruction(random, bits) for _ in range(random.randrange(2, 7))]
        jump = random.choice(("jz", "jnz", "jc", "jbe", "jg", "jl", "js", "jo"))
        lines += [f"{jump} skip{n}", instruction(random, bits), f"skip{n}:"]
        if random.random() < 0.5:
            lines.append("call helper")
    lines += [f"dec {'cx' if bits == 16 else 'ecx'}", "jmp again", "helper:"]
    lines += [instruction(random, bits), "ret"]
    return "\n".join(lines)


def machine(mode: str, code: bytes, random: Random, use_blocks: bool) -> Cpu:
    """A CPU with segments that begin at odd places and end early."""
    bits = 32 if mode in ("protected 32", "small stack") else 16
    cpu = make_cpu(bits)
    if mode != "real":
        cpu.cr0 |= CR0_PE
    big = 0x4000 if bits == 32 else 0
    stack_big = {"big stack": 0x4000, "small stack": 0}.get(mode, big)
    limit = 0xFFFF if mode == "real" else 0x10FF
    cpu.cs.load_raw(8, CS_BASE, 0xFFFF, 0x9B | big)
    cpu.ds.load_raw(16, DS_BASE, limit, 0x93)
    cpu.es.load_raw(24, ES_BASE, limit, 0x93)
    cpu.ss.load_raw(32, SS_BASE, 0xFFFF, 0x93 | stack_big)
    cpu.memory.write(CS_BASE + CODE, code)
    cpu.memory.write(0x2_0000, random.randbytes(0x3_0000))
    for name in ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi"):
        setattr(cpu, name, random.getrandbits(32))
    cpu.rsp = 0x8000 | (random.getrandbits(16) << 16 if mode in ("real", "protected 16") else 0)
    cpu.rip = CODE
    cpu.use_blocks = use_blocks
    cpu.hot = cpu.sample_every = cpu.first_due = 1
    cpu.recorded = 6
    cpu.update_mode()
    return cpu


@pytest.mark.parametrize("mode", MODES)
def test_random_loops_run_alike_on_both_engines(mode: str) -> None:
    translated_instructions = 0
    for seed in range(SEED, SEED + CASES):
        bits = 32 if mode in ("protected 32", "small stack") else 16
        code = assemble(program(Random(seed), bits), bits=bits, origin=CODE)
        stepped, translated = (machine(mode, code, Random(seed), use) for use in (False, True))
        random = Random(seed)
        until = 0
        for _ in range(25):
            until += random.randrange(1, 120)
            reason, other = stepped.run(until), translated.run(until)
            assert reason == other, f"{mode}, seed {seed}, until {until}"
            assert visible_state(translated) == visible_state(stepped), f"{mode}, seed {seed}, until {until}"
            if not isinstance(reason, Budget):
                break  # a fault without an IDT: the triple fault came at the same place
        assert np.array_equal(stepped.memory.pool, translated.memory.pool), f"{mode}, seed {seed}"
        translated_instructions += translated.cache.translated
    assert translated_instructions > CASES, "hardly anything was translated"
