"""What each form touches, held against iced's InstructionInfo: registers, flags and memory, read and written.

Reading is tested by change: where everything that the table does not call read is altered, everything that
the instruction changes must come out the same. The flags that a function assigns are compared with the table
in `semantics/test_language.py`, privilege, modes and LOCK in `semantics/test_privilege.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from iced_x86 import Decoder, RflagsBits

from isa.state import OF_BIT
from tests.oracles.__main__ import generated
from tests.oracles.families import FAMILIES, Family, Result, Sample, State, describe
from tests.oracles.native import GPR
from tests.oracles.recorded import Touched, touched

ROUNDS = {"general": 4, "vector": 5, "avx": 3}  # samples of every form
FLAG_BITS = ((RflagsBits.CF, 0), (RflagsBits.PF, 2), (RflagsBits.AF, 4), (RflagsBits.ZF, 6),
             (RflagsBits.SF, 7), (RflagsBits.OF, 11))  # fmt: skip
ARITHMETIC = 0x8D5
TRANSPARENT = ("st", "tags", "status")  # TOP moves with every MMX instruction


def samples(name: str) -> Iterator[tuple[Family, Sample, Result, Touched]]:
    """Executed samples that did not fault."""
    family: Family = FAMILIES[name]()
    for sample in generated(family, 17, 0, ROUNDS[name] * len(family.every_form())):
        result = family.run(sample)
        if not result.signal:
            yield family, sample, result, touched(family, sample)


def bits_of(sample: Sample, kind: str) -> int:
    """RFLAGS bits that the table calls `kind`: "read", "modified" or "undefined"."""
    instruction = Decoder(sample.bits, sample.code).decode()
    mask = getattr(instruction, f"rflags_{kind}")
    return sum(1 << bit for flag, bit in FLAG_BITS if mask & flag)


@pytest.mark.parametrize("name", ROUNDS)
def test_no_instruction_changes_a_register_that_the_table_does_not_call_written(name: str) -> None:
    wrong = []
    for family, sample, result, use in samples(name):
        before, after = sample.state.registers, result.state.registers
        for register in before:
            if register.startswith(TRANSPARENT) or register in ("flags", "control", "mxcsr"):
                continue
            if before[register] != after[register] and register not in use.written:
                wrong.append(f"{register}: {describe(family, sample)}")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("name", ROUNDS)
def test_no_instruction_changes_a_flag_that_the_table_does_not_call_modified(name: str) -> None:
    wrong = []
    for family, sample, result, _ in samples(name):
        changed = (sample.state.registers["flags"] ^ result.state.registers["flags"]) & ARITHMETIC
        extra = changed & ~bits_of(sample, "modified")
        if sample.form.startswith(("RCL_", "RCR_")):  # by size + 1: undefined in the manual
            extra &= ~(1 << OF_BIT)
        if extra:
            wrong.append(f"{extra:#x}: {describe(family, sample)}")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("name", ROUNDS)
def test_no_instruction_changes_memory_that_the_table_does_not_call_written(name: str) -> None:
    wrong = []
    for family, sample, result, use in samples(name):
        pairs = enumerate(zip(sample.state.memory, result.state.memory, strict=True))
        extra = [n for n, (before, after) in pairs if before != after and n not in use.written_at]
        if extra:
            wrong.append(f"window offsets {extra[:8]}: {describe(family, sample)}")
    assert not wrong, "\n".join(wrong[:20])


def altered(sample: Sample, use: Touched, rng: random.Random) -> Sample:
    """The sample with other registers, flags and bytes wherever the table does not call them read."""
    registers = dict(sample.state.registers)
    keep = use.read | {"rsp"}
    for register in registers:
        if register in keep:
            continue
        if register in GPR:
            registers[register] = rng.getrandbits(64 if sample.bits == 64 else 32)
        elif register.startswith(("xmm", "ymmh")):
            registers[register] = rng.getrandbits(128)
    registers["flags"] ^= ARITHMETIC & ~bits_of(sample, "read") & rng.getrandbits(12)
    memory = bytes(
        byte if n in use.read_at else rng.getrandbits(8) for n, byte in enumerate(sample.state.memory)
    )
    return replace(sample, state=State(registers, memory))


@pytest.mark.parametrize("name", ROUNDS)
def test_no_instruction_depends_on_what_the_table_does_not_call_read(name: str) -> None:
    wrong = []
    rng = random.Random(23)
    for family, sample, result, use in samples(name):
        other = altered(sample, use, rng)
        again = family.run(other)
        found = "a fault" if again.signal else ""
        if again.taken != result.taken:
            found = "the branch"
        for register, value in result.state.registers.items():
            if register in ("flags", "mxcsr") or register.startswith(TRANSPARENT):
                continue
            if value not in (sample.state.registers[register], again.state.registers[register]):
                found = found or register
        changed = (sample.state.registers["flags"] ^ result.state.registers["flags"]) & ARITHMETIC
        changed &= ~bits_of(sample, "undefined")
        if changed & (result.state.registers["flags"] ^ again.state.registers["flags"]):
            found = found or "flags"
        stored = [n for n, byte in enumerate(result.state.memory) if byte != sample.state.memory[n]]
        if any(again.state.memory[n] != result.state.memory[n] for n in stored):
            found = found or "memory"
        if found:
            wrong.append(f"{found}: {describe(family, sample)}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:40])
