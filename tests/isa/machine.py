"""The smallest machine that runs instructions: one CPU, flat segments, 1 MiB of RAM, no paging."""

from __future__ import annotations

import numpy as np

from isa.cpu import Cpu
from isa.decode import Insn, disassemble, feature_names
from isa.faults import Fault, GeneralProtection
from isa.memory import PhysicalMemory
from isa.state import CR0_PE, EFER_LMA, EFER_LME, GPR_NAMES, XMM_NAMES, YMM_HIGH_NAMES
from isa.translate import BAILED, CodeSource, draft_of

CODE = 0x1000  # where `make_cpu` puts the code and RIP
STACK = 0x8000  # where it puts RSP
RAM = 1 << 20
# LAHF_SAHF_64 is the decoder's option, not a feature name of iced's
ALL_FEATURES = frozenset(feature_names().values()) | {"LAHF_SAHF_64"}

CODE_ATTRIBUTES = {64: 0xA09B, 32: 0xC09B, 16: 0x009B}
DATA_ATTRIBUTES = {64: 0xC093, 32: 0xC093, 16: 0x0093}


def make_cpu(
    bits: int = 64, code: bytes | None = None, features: frozenset[str] = ALL_FEATURES, **registers: int
) -> Cpu:
    """A CPU at CPL 0 in 64-bit, 32-bit protected or 16-bit real mode, RIP at `code`.

    `registers` are attributes of `Cpu`: rax, rsp, cf, if_ ... Flags start clear, other registers at zero.
    """
    memory = PhysicalMemory()
    memory.add_ram(0, RAM)
    cpu = Cpu(memory, features, lambda cpu, leaf, subleaf: (0, 0, 0, 0))
    if bits != 16:
        cpu.cr0 |= CR0_PE
    if bits == 64:
        cpu.efer |= EFER_LME | EFER_LMA
    limit = 0xFFFF if bits == 16 else 0xFFFF_FFFF
    cpu.cs.load_raw(0x08 if bits != 16 else 0, 0, limit, CODE_ATTRIBUTES[bits])
    for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
        segment.load_raw(0x10 if bits != 16 else 0, 0, limit, DATA_ATTRIBUTES[bits])
    cpu.rdx = 0
    cpu.rip = CODE
    cpu.rsp = STACK
    for name, value in registers.items():
        setattr(cpu, name, value)
    cpu.update_mode()
    if code is not None:
        memory.write(CODE, code)
    return cpu


def execute(text: str, code: str, bits: int = 64, **registers: int) -> Cpu:
    """Run the one instruction with the hex bytes `code` in a fresh machine; `text` must be its disassembly.

    Raises AssertionError if the bytes do not read `text`, the instruction leaves with an exit, or a block
    made of it does something else than the step engine.
    """
    raw = bytes.fromhex(code)
    cpu = make_cpu(bits, raw, ALL_FEATURES, **registers)
    run_one(cpu, text, raw)
    if bits == 64:
        other = make_cpu(bits, raw, ALL_FEATURES, **registers)
        before = visible_state(other)
        plain = run_as_block(other)
        assert visible_state(other) == (visible_state(cpu) if plain else before), "the block engine differs"
        if plain:
            assert vector_state(other) == vector_state(cpu), "the block engine makes other vectors"
            assert np.array_equal(other.memory.pool, cpu.memory.pool), (
                "the block engine stores something else"
            )
    return cpu


def run_as_block(cpu: Cpu) -> bool:
    """Run the instruction at RIP as a block of its own; False if the step engine has to execute it."""
    head = cpu.rip

    def fetch(ip: int) -> Insn:
        if ip != head:
            raise GeneralProtection(0, "the block ends here")
        return cpu.code[ip]

    source = CodeSource(fetch, cpu.definition_of, cpu.code.mode, cpu.code.base)
    draft = draft_of(source, (head,), shortest=1)
    if draft is None:
        return False
    plain = draft.realise(source).run(cpu, cpu.retired + draft.length, 0) != BAILED
    cpu.settle_flags()
    return plain


def run_one(cpu: Cpu, text: str, raw: bytes) -> Cpu:
    """Put `raw` at RIP of a prepared machine and step over it; `text` must be its disassembly."""
    read = disassemble(raw, cpu.code_bits, cpu.rip)
    assert read == text, f"the bytes read {read!r}"
    cpu.memory.write(cpu.cs.base + cpu.rip if not cpu.mode64 else cpu.rip, raw)
    reason = cpu.step()
    assert reason is None, reason
    return cpu


def fault_of(cpu: Cpu, text: str, raw: bytes) -> Fault:
    """The fault that the one instruction `raw` raises, not delivered; `text` must be its disassembly."""
    read = disassemble(raw, cpu.code_bits, cpu.rip)
    assert read == text, f"the bytes read {read!r}"
    cpu.memory.write(cpu.rip if cpu.mode64 else cpu.cs.base + cpu.rip, raw)
    before = visible_state(cpu)
    insn = cpu.code[cpu.rip]
    start, cpu.rip = cpu.rip, insn.next
    try:
        insn.function(cpu, *insn.operands)
    except Fault as fault:
        cpu.rip = start
        assert visible_state(cpu) == before, "a fault committed something"
        return fault
    raise AssertionError(f"{text} raised nothing")


def vector_state(cpu: Cpu) -> tuple[int, ...]:
    """The vector registers and MXCSR."""
    return (*(getattr(cpu, name) for name in (*XMM_NAMES, *YMM_HIGH_NAMES)), cpu.mxcsr)


def visible_state(cpu: Cpu) -> tuple[int, ...]:
    """RIP, RFLAGS and the general registers."""
    return (cpu.rip, cpu.rflags(), *(getattr(cpu, name) for name in GPR_NAMES))


def flags_of(cpu: Cpu) -> str:
    """The arithmetic flags that are set, as "CF PF AF ZF SF OF" names them."""
    names = ("CF", "PF", "AF", "ZF", "SF", "OF")
    return " ".join(name for name in names if getattr(cpu, name.lower()))
