"""What every form touches, against iced's InstructionInfo: registers, flags and memory, written and read.

Every form that has a definition, in every mode that has the form, system and x87 instructions included.
Reading is tested by change: what the table does not call read is altered, and everything that was written
must come out the same. LOCK is tested on every encoding, with every prefix that may stand around it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from iced_x86 import (
    Decoder,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    OpCodeInfo,
    OpKind,
    Register,
    RegisterExt,
    RflagsBits,
)

from isa.decode import code_names, register_names
from isa.exits import Budget, ExitReason, Halt
from tests.isa.forms import encodings, exists_in, implemented_forms
from tests.matrices.bench import Bench
from tests.matrices.space import FULL
from tests.matrices.spec import GP, GPRS, M32, M64, NE, OSFXSR, OSXMMEXCPT, UD, Machine
from tests.matrices.world import CODE, CODE_END, DATA, HANDLER, World

MODE = {64: "64", 32: "32", 16: "16"}
AT = CODE + 0x40  # the instruction
AREA = range(DATA - 0x400, DATA + 0x2000)  # what may hold operands
STACK_AREA = range(0x7000, 0x7F00)
FLAG_BITS = ((RflagsBits.CF, 0), (RflagsBits.PF, 2), (RflagsBits.AF, 4), (RflagsBits.ZF, 6),
             (RflagsBits.SF, 7), (RflagsBits.OF, 11), (RflagsBits.DF, 10))  # fmt: skip
ARITHMETIC = 0x8D5
ROUNDS = 4  # tries to find a state in which a form does not fault

# These leave the instruction stream, stop the machine or leave the guest: all they do is what the other
# matrices compare, or the exit
TRANSFERS = (
    "INT", "IRET", "SYS", "CALL_PTR", "CALL_M16", "JMP_PTR", "JMP_M16", "RETF", "HLT", "MWAIT", "VMCALL",
    "VMMCALL", "UD", "RSM", "GETSEC", "BOUND", "IN_", "OUT_", "INS", "OUTS", "RDMSR", "WRMSR",
)  # fmt: skip
# Faults are all that these can do on this CPU, or with these operands: LTR and LLDT of what is no TSS or LDT,
# far pointers whose selectors name nothing
ALWAYS_FAULT = (
    "LTR", "LLDT", "LDS", "LES", "LFS", "LGS", "LSS", "RDPMC", "MOV_SREG", "POPW_", "POPD_", "POPQ_FS",
    "POPQ_GS", "XSETBV", "XRSTOR", "INVPCID", "MOV_CR", "MOV_DR", "LMSW",
)  # fmt: skip
STATE_AREAS = ("FXSAVE", "FXRSTOR", "XSAVE", "XRSTOR")  # the table lists no vector register for them
INFO = InstructionInfoFactory()


class Touched(NamedTuple):
    """What the table says: full registers, RFLAGS bits and RAM addresses."""

    read: frozenset[str]
    written: frozenset[str]
    read_at: frozenset[int]
    written_at: frozenset[int]
    modified: int
    undefined: int
    flags_read: int


@cache
def cases() -> tuple[tuple[int, bytes, int], ...]:
    """(form, bytes, bits) of everything that can be executed here: in the widest mode that has it, or in full
    runs in all of them."""
    found = []
    for code in implemented_forms():
        name = code_names()[code]
        if any(past in name for past in ("KNC", "XOP", "486")) or name.startswith(TRANSFERS):
            continue
        for bits in (64, 32, 16):
            if exists_in(code, bits):
                here = [(code, within_ram(raw, bits), bits) for raw in encodings(code, bits)]
                found += here
                if here and not FULL:
                    break
    return tuple(found)


def within_ram(raw: bytes, bits: int) -> bytes:
    """The encoding with an absolute address (MOV moffs) that lies in RAM."""
    decoder = Decoder(bits, raw, ip=AT)
    instruction = decoder.decode()
    if all(instruction.op_kind(n) != OpKind.MEMORY for n in range(instruction.op_count)):
        return raw
    if instruction.memory_base != Register.NONE or instruction.memory_index != Register.NONE:
        return raw
    offsets = decoder.get_constant_offsets(instruction)
    at, size = offsets.displacement_offset, offsets.displacement_size
    return raw[:at] + DATA.to_bytes(size, "little") + raw[at + size :] if size > 1 else raw


def full_name(register: Any) -> str:
    """Our name of the register that holds an iced register; "" for what is not compared."""
    if RegisterExt.is_gpr(register):
        return register_names()[RegisterExt.full_register(register)].lower()
    if RegisterExt.is_vector_register(register):
        return f"xmm{RegisterExt.number(register)}"
    name = register_names()[register].lower()
    if name.startswith(("st", "mm")):
        return "fpu"
    return name


def value_of(register: Any, m: Machine) -> int:
    """An address register as it is now, cut to its size."""
    if register == Register.NONE or RegisterExt.is_vector_register(register):
        return 0
    name = register_names()[register]
    if name in ("RIP", "EIP"):
        return 0
    value: int = getattr(m, full_name(register))
    if name == "AL":
        return value & 0xFF
    return value & (1 << 8 * RegisterExt.size(register)) - 1


def accesses(access: Any) -> tuple[bool, bool]:
    """Whether an OpAccess reads and writes."""
    reads = access in (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
    writes = access in (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
    return reads, writes


def touched(code: int, raw: bytes, bits: int, m: Machine) -> Touched:
    """iced's view of an instruction in a state."""
    instruction = Decoder(bits, raw, ip=AT).decode()
    info = INFO.info(instruction)
    read: set[str] = set()
    written: set[str] = set()
    for used in info.used_registers():
        name = full_name(used.register)
        reads, writes = accesses(used.access)
        if reads:
            read.add(name)
        if writes:
            written.add(name)
            if (
                RegisterExt.is_vector_register(used.register)
                or RegisterExt.size(used.register) < 4
                or bits != 64
            ):
                read.add(name)  # a part that is not written stays
    read_at: set[int] = set()
    written_at: set[int] = set()
    name = code_names()[code]
    for use in info.used_memory():
        mask = {1: 0xFFFF, 2: M32}.get(use.address_size, M64)
        offset = value_of(use.base, m) + value_of(use.index, m) * use.scale + use.displacement & mask
        size = MemorySizeExt.size(use.memory_size)
        span = range(offset, offset + size) if size else range(offset - 512, offset + 1024)
        wide = name.startswith(("BT_", "BTS_", "BTR_", "BTC_")) and "IMM8" not in name
        if wide or instruction.is_vsib or name.startswith("ENTER"):
            span = range(0, len(m.mem))
        reads, writes = accesses(use.access)
        if reads:
            read_at.update(span)
        if writes:
            written_at.update(span)
    masks = [sum(1 << bit for flag, bit in FLAG_BITS if getattr(instruction, kind) & flag)
             for kind in ("rflags_modified", "rflags_undefined", "rflags_read")]  # fmt: skip
    return Touched(frozenset(read), frozenset(written), frozenset(read_at), frozenset(written_at), *masks)


# ---- running one form --------------------------------------------------------------------------------------


class Lab:
    """A bench with machines full of random values that forms can run on."""

    def __init__(self) -> None:
        self.world, self.bench = World(), Bench(0x1_0000)

    def machine(self, rng: random.Random, bits: int) -> Machine:
        """Registers that point into AREA, random vectors, flags and memory."""
        m = self.world.machine(MODE[bits])
        for name in GPRS[: 16 if bits == 64 else 8]:
            m.set(**{name: DATA + 64 * rng.randrange(2, 20)})
        m.rsp = 0x7A00
        m.rcx = rng.randrange(1, 5) << 8 | rng.randrange(1, 5)
        m.cr0 |= NE
        m.cr4 |= OSFXSR | OSXMMEXCPT | 1 << 16 | 1 << 18  # FSGSBASE, OSXSAVE
        m.rflags |= rng.getrandbits(12) & ARITHMETIC
        m.mem[AREA.start : AREA.stop] = rng.randbytes(len(AREA))
        m.mem[STACK_AREA.start : STACK_AREA.stop] = rng.randbytes(len(STACK_AREA))
        return m

    def run(self, m: Machine, raw: bytes, vectors: list[int], fpu: tuple[Any, ...]) -> dict[str, Any] | None:
        """Registers and RAM afterwards; None if the form faulted or left."""
        cpu = self.bench.cpu
        m.mem[CODE:CODE_END] = bytes(CODE_END - CODE)
        m.mem[AT : AT + len(raw)] = raw
        m.rip = AT - (m.cs.base if not m.mode64 else 0)
        self.bench.load(m, slice(CODE, CODE_END))
        cpu.xcr0 = 7
        cpu.update_mode()
        for n in range(16):
            setattr(cpu, f"xmm{n}", vectors[n])
            setattr(cpu, f"ymmh{n}", vectors[16 + n])
        cpu.fpu.regs, cpu.fpu.top, cpu.fpu.tags = list(fpu[0]), fpu[1], list(fpu[2])
        cpu.fpu.control = 0x37F
        reason: ExitReason = self.bench.run(1)
        if not isinstance(reason, Budget | Halt) or HANDLER <= cpu.rip < HANDLER + 0x1000 or cpu.retired != 1:
            return None
        found: dict[str, Any] = {name: getattr(cpu, name) for name in GPRS}
        for n in range(16):
            found[f"xmm{n}"] = getattr(cpu, f"xmm{n}") | getattr(cpu, f"ymmh{n}") << 128
        found["flags"] = cpu.rflags()
        found["fpu"] = (
            tuple(cpu.fpu.regs),
            cpu.fpu.top,
            tuple(cpu.fpu.tags),
            cpu.fpu.status,
            cpu.fpu.control,
        )
        found["mem"] = self.bench.memory()
        found["rip"] = cpu.rip
        return found


def random_fpu(rng: random.Random) -> tuple[list[int], int, list[int]]:
    """Eight normal numbers near 1 with the top in the middle; the last two places empty."""
    regs = [(0x3FFF + rng.randrange(-2, 3)) << 64 | 1 << 63 | rng.getrandbits(40) for _ in range(8)]
    return regs, 3, [0, 1, 1, 0, 0, 0, 0, 0]


def random_vectors(rng: random.Random) -> list[int]:
    """XMM and the upper halves: packed floats near 1."""
    return [int.from_bytes(b"".join((0x3F80_0000 + rng.getrandbits(18)).to_bytes(4,
                           "little") for _ in range(4)),
                           "little") for _ in range(32)]  # fmt: skip


def before(m: Machine, vectors: list[int], fpu: tuple[Any, ...]) -> dict[str, Any]:
    """The same view of the start."""
    found: dict[str, Any] = {name: getattr(m, name) for name in GPRS}
    for n in range(16):
        found[f"xmm{n}"] = vectors[n] | vectors[16 + n] << 128
    found["flags"], found["mem"] = m.rflags, bytes(m.mem)
    found["fpu"] = (tuple(fpu[0]), fpu[1], tuple(fpu[2]), 0, 0x37F)
    return found


def altered(
    rng: random.Random, m: Machine, vectors: list[int], fpu: tuple[Any, ...], use: Touched
) -> tuple[Machine, list[int], tuple[Any, ...]]:
    """Other values wherever the table does not call the old ones read."""
    other = m.copy()
    for name in GPRS[: 16 if m.mode64 else 8]:
        if name not in use.read and name != "rsp":
            other.set(**{name: rng.getrandbits(64 if m.mode64 else 32)})
    other.rflags ^= ARITHMETIC & ~use.flags_read & rng.getrandbits(12)
    for area in (AREA, STACK_AREA):
        other.mem[area.start : area.stop] = rng.randbytes(len(area))
    for at in use.read_at:
        if 0 <= at < len(m.mem):
            other.mem[at] = m.mem[at]
    fresh = random_vectors(rng)
    changed = [
        old if f"xmm{n % 16}" in use.read else new
        for n, (old, new) in enumerate(zip(vectors, fresh, strict=True))
    ]
    return other, changed, fpu


def samples(
    seed: int,
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any] | None, Touched, Machine]]:
    """(what, start, end, end with everything unread altered, the table, the machine) of every form."""
    lab = Lab()
    for code, raw, bits in cases():
        name = f"{code_names()[code]} [{raw.hex()}] in {bits}-bit code"
        rng = random.Random(f"{name} {seed}")
        for _ in range(ROUNDS):
            m, vectors, fpu = lab.machine(rng, bits), random_vectors(rng), random_fpu(rng)
            prepare(code_names()[code], m)
            m.mem[CODE:CODE_END] = bytes(CODE_END - CODE)
            m.mem[AT : AT + len(raw)] = raw
            end = lab.run(m, raw, vectors, fpu)
            if end is None:
                continue
            use = touched(code, raw, bits, m)
            start = before(m, vectors, fpu)
            changed, other_vectors, other_fpu = altered(rng, m, vectors, fpu, use)
            yield name, start, end, lab.run(changed, raw, other_vectors, other_fpu), use, m
            break
        else:
            yield name, {}, {}, None, touched(code, raw, bits, m), m


def differing(one: bytes, other: bytes) -> list[int]:
    """Where two images of RAM differ."""
    if one == other:
        return []
    found: list[int] = np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)).tolist()
    return found


def prepare(name: str, m: Machine) -> None:
    """What some forms need in order not to fault."""
    if name.startswith(("DIV", "IDIV")):
        m.rdx = m.rax = 0
    elif name.startswith(("RET", "JMP_RM", "CALL_RM", "RETN")):
        target = (AT + 0x40).to_bytes(8, "little") if m.mode64 else (AT + 0x40).to_bytes(4, "little")
        for at in (m.rsp, m.rbx + m.rsi & 0xFFFF, m.rax & 0xFFFF, m.rbx & 0xFFFF):
            m.mem[at : at + len(target)] = target
        m.rcx = AT + 0x40
    elif name.startswith(("MONITOR", "XGETBV")):
        m.rcx = 0
    elif name.startswith(
        ("FXRSTOR", "LDMXCSR", "VEX_VLDMXCSR", "FLDCW", "FLDENV", "FRSTOR")
    ) or name.startswith(("LGDT", "LIDT")):
        m.mem[AREA.start : AREA.stop] = bytes(len(AREA))


@cache
def everything() -> tuple[Any, ...]:
    """One run of all forms, for all tests below."""
    return tuple(samples(5))


def test_every_form_runs_or_is_known_to_leave_the_stream_or_to_fault() -> None:
    faulted = {name.split()[0] for name, _, end, *_ in everything() if not end}
    ran = {name.split()[0] for name, _, end, *_ in everything() if end}
    never = sorted(name for name in faulted - ran if not name.startswith(ALWAYS_FAULT))
    assert never == []
    assert len(ran) > 2000, len(ran)


def test_nothing_is_written_that_the_table_does_not_call_written() -> None:
    wrong = []
    for name, start, end, _, use, _ in everything():
        if not end:
            continue
        if name.startswith(STATE_AREAS):
            continue
        for register in (*GPRS, *(f"xmm{n}" for n in range(16))):
            if start[register] != end[register] and register not in use.written:
                wrong.append(f"{register}: {name}")
        extra = (start["flags"] ^ end["flags"]) & ARITHMETIC & ~use.modified
        if extra:
            wrong.append(f"flags {extra:#x}: {name}")
        if start["mem"] != end["mem"]:
            outside = [hex(n) for n in differing(start["mem"], end["mem"]) if n not in use.written_at]
            if outside:
                wrong.append(f"memory at {outside[:4]}: {name}")
        x87 = name.startswith(("F", "EMMS", "XRSTOR", "WAIT")) or "fpu" in use.written
        if start["fpu"] != end["fpu"] and not x87 and "MM" not in name.split()[0]:
            wrong.append(f"x87 state: {name}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:30])


def test_nothing_depends_on_what_the_table_does_not_call_read() -> None:
    wrong = []
    for name, start, end, again, use, _ in everything():
        if not end or name.startswith(STATE_AREAS):
            continue
        if again is None:
            wrong.append(f"a fault: {name}")
            continue
        for register in (*GPRS, *(f"xmm{n}" for n in range(16)), "rip"):
            if register != "rip" and end[register] == start[register]:
                continue
            if end[register] != again[register]:
                wrong.append(f"{register}: {name}")
        changed = (start["flags"] ^ end["flags"]) & ARITHMETIC & ~use.undefined
        if changed & (end["flags"] ^ again["flags"]):
            wrong.append(f"flags: {name}")
        places = differing(start["mem"], end["mem"])
        if any(again["mem"][n] != end["mem"][n] for n in places):
            wrong.append(f"memory: {name}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:30])


# ---- LOCK --------------------------------------------------------------------------------------------------

# Bytes around LOCK; the first alone, and in full runs the others
AROUND_LOCK = (b"\xf0", b"\xf0\xf0", b"\x3e\xf0", b"\xf0\x3e", b"\xf2\xf0", b"\xf0\xf3")


def lockable(code: Any, raw: bytes, bits: int) -> bool:
    """iced's LOCK column, which stands for the form with a memory destination."""
    instruction = Decoder(bits, raw, ip=AT).decode()
    return (
        bool(OpCodeInfo(code).can_use_lock_prefix)
        and instruction.op_count > 0
        and instruction.op0_kind == OpKind.MEMORY
    )


@pytest.mark.parametrize("bits", [64, 32, 16])
def test_lock_is_undefined_before_every_encoding_that_may_not_have_it(bits: int) -> None:
    """Whatever else is in front of the opcode and at any level; a form that may have it does what it does."""
    lab = Lab()
    wrong: list[str] = []
    allowed = refused = turn = 0
    rng = random.Random(bits)
    template, vectors, fpu = lab.machine(rng, bits), random_vectors(rng), random_fpu(rng)
    for code in implemented_forms():
        name = code_names()[code]
        if not exists_in(code, bits) or any(past in name for past in ("KNC", "XOP", "486")):
            continue
        for raw in encodings(code, bits):
            if raw[:1] == b"\x9b":
                continue  # FWAIT and another instruction
            turn += 1
            for prefix in (
                AROUND_LOCK if FULL else (AROUND_LOCK[0], AROUND_LOCK[1 + turn % 5])[: 1 + (turn % 4 == 0)]
            ):
                locked = prefix + raw
                if len(locked) > 15 or (raw[0] in (0xC4, 0xC5, 0xF2, 0xF3, 0x66) and prefix != b"\xf0"):
                    continue  # a second mandatory prefix is another form
                lab.run(template.copy(), locked, vectors, fpu)
                undefined = lab.bench.cpu.rip == HANDLER + 16 * UD
                if lockable(code, raw, bits):
                    allowed += 1
                    if undefined:
                        wrong.append(f"refused: {name} {locked.hex()}")
                else:
                    refused += 1
                    if not undefined:
                        wrong.append(f"taken: {name} {locked.hex()}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:20])
    assert allowed > 50 and refused > 1000, (allowed, refused)


# ---- privilege ---------------------------------------------------------------------------------------------

# Ring 3 is told that these do not exist (SDM Vol. 2, each instruction)
UNDEFINED_OUTSIDE = ("CLAC", "STAC", "MONITOR", "MWAIT", "RSM")
# What these do depends on CPL itself, or on descriptors of a level
LEVELLED = (*TRANSFERS, *ALWAYS_FAULT, "LAR", "LSL", "VERR", "VERW", "POPF", "CLI", "STI", "MONITOR")


def vector_after(lab: Lab, m: Machine, raw: bytes, vectors: list[int], fpu: tuple[Any, ...]) -> int:
    """Run it; the vector whose handler it ended at, -1 for none."""
    lab.run(m, raw, vectors, fpu)
    rip = lab.bench.cpu.rip
    return rip - HANDLER >> 4 if HANDLER <= rip < HANDLER + 0x1000 else -1


@pytest.mark.parametrize("bits", [64, 32])
def test_every_form_is_refused_at_the_levels_at_which_the_table_refuses_it(bits: int) -> None:
    """iced's CPL columns for rings 0 to 3; what is allowed there does the same as in ring 0."""
    lab = Lab()
    rng = random.Random(bits)
    vectors, fpu = random_vectors(rng), random_fpu(rng)
    templates = []
    for level in range(4):
        m = lab.machine(random.Random(7), bits)
        entered = lab.world.machine(MODE[bits], level)
        m.set(cpl=level, **{name: getattr(entered, name) for name in ("cs", "ss", "ds", "es", "fs", "gs")})
        templates.append(m)
    wrong = []
    refused = turn = 0
    for code in implemented_forms():
        name = code_names()[code]
        if not exists_in(code, bits) or any(past in name for past in ("KNC", "XOP", "486")):
            continue
        form: Any = code
        info = OpCodeInfo(form)
        allowed = (info.cpl0, info.cpl1, info.cpl2, info.cpl3)
        if (all(allowed) and name.startswith(LEVELLED)) or name == "VMCALL":
            continue  # VMCALL is refused in VMX root operation alone: a guest leaves by it at every level
        for raw in encodings(code, bits):
            turn += 1
            base = (
                vector_after(lab, templates[0].copy(), within_ram(raw, bits), vectors, fpu)
                if all(allowed)
                else -1
            )
            for level in range(1, 4):
                if all(allowed) and not FULL and level != 1 + turn % 3:
                    continue
                m = templates[level].copy()
                found = vector_after(lab, m, within_ram(raw, bits), vectors, fpu)
                if not allowed[level]:
                    refused += 1
                    elsewhere = name.startswith("SYSRET") and bits != 64  # undefined outside of 64-bit mode
                    expected = UD if elsewhere or name.startswith(UNDEFINED_OUTSIDE) else GP
                    if found != expected:
                        wrong.append(f"vector {found} at CPL {level}, not {expected}: {name} [{raw.hex()}]")
                elif found != base:
                    wrong.append(f"vector {found} at CPL {level}, {base} at CPL 0: {name} [{raw.hex()}]")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:30])
    assert refused > 60, refused
