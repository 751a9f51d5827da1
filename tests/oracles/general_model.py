"""The general-purpose oracle's other side: this CPU on the native worker's pages, and the comparison.

Nothing here needs a host of a certain kind: recorded cases are replayed on the same machine.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from iced_x86 import Decoder, Instruction, RflagsBits

from isa.cpu import NEVER, Cpu
from isa.decode import code_names, disassemble, feature_names, mnemonic_names
from isa.faults import AlignmentCheck, DivideError, Fault, InvalidOpcode, StackFault
from isa.memory import PhysicalMemory
from isa.semantics.registry import build_table
from isa.state import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME
from tests.oracles.forms import is_usable
from tests.oracles.native import (
    BASE,
    CODE,
    DATA,
    GPR,
    SEGMENT16_BASE,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGSEGV,
    TAKEN,
    WINDOW,
    WINDOW_SIZE,
    Case,
    Outcome,
)

PML4, PDPT, PAGE_DIRECTORY, PAGE_TABLE = 0, 0x1000, 0x2000, 0x3000

FAMILIES = ("arith", "bits", "convert", "decimal", "flags", "flow", "io", "logic", "move", "muldiv", "shift",
            "stack", "string")  # fmt: skip
BESIDE = ("BOUND_R16_M1616", "BOUND_R32_M3232")  # of other families
# LAHF_SAHF_64 is the decoder's option, not a feature name of iced's
ALL_FEATURES = frozenset(feature_names().values()) | {"LAHF_SAHF_64"}

# CF PF AF ZF SF DF OF NT AC ID: what user code can see change
VISIBLE_FLAGS = 0x24_4CD5
ICED_FLAGS = ((RflagsBits.CF, 0), (RflagsBits.PF, 2), (RflagsBits.AF, 4), (RflagsBits.ZF, 6),
              (RflagsBits.SF, 7), (RflagsBits.DF, 10), (RflagsBits.OF, 11))  # fmt: skip


def forms(bits: int) -> list[int]:
    """Every form that the general-purpose families define and that user code of `bits` can run."""
    table = build_table(import_module(f"isa.semantics.{name}") for name in FAMILIES)
    found = []
    for code, name in code_names().items():
        instruction: Any = Instruction()
        instruction.code = code
        known = name in table or name in BESIDE or mnemonic_names()[instruction.mnemonic] in table
        if known and is_usable(code, bits):
            found.append(code)
    return found


class Machine:
    """The same pages and segments as the native worker's, in a CPU at CPL 3."""

    def __init__(self, bits: int) -> None:
        self.memory = PhysicalMemory()
        self.memory.add_ram(0, 0x4000)  # page tables
        self.memory.add_ram(BASE, 0x3000)
        self.memory.add_ram(DATA, 0x2000)
        tables = (PML4, PDPT, PAGE_DIRECTORY, PAGE_TABLE)
        for table, below, shift in zip(tables, tables[1:], (39, 30, 21), strict=False):
            self._map(table, shift, below)
        for page in (*range(BASE, BASE + 0x3000, 0x1000), *range(DATA, DATA + 0x2000, 0x1000)):
            self._map(PAGE_TABLE, 12, page)
        cpu = self.cpu = Cpu(self.memory, ALL_FEATURES, lambda cpu, leaf, subleaf: (0, 0, 0, 0))
        cpu.cr0 |= CR0_PE | CR0_PG
        cpu.cr3, cpu.cr4 = PML4, CR4_PAE
        cpu.efer = EFER_LME | EFER_LMA
        self.base, limit = (SEGMENT16_BASE, 0xFFFF) if bits == 16 else (0, 0xFFFF_FFFF)
        cpu.cs.load_raw(0x33, self.base, limit, {64: 0xA0FB, 32: 0xC0FB, 16: 0x00FB}[bits])
        for segment in (cpu.ds, cpu.es, cpu.ss):
            segment.load_raw(0x2B, self.base, limit, 0x00F3 if bits == 16 else 0xC0F3)
        cpu.tr.load_raw(0x40, 0, 0x20, 0x8B)  # no I/O permission bitmap: no port for user code
        cpu.cpl = 3
        cpu.update_mode()

    def _map(self, table: int, shift: int, frame: int) -> None:
        """Point the entry of the test pages in `table` to `frame`: present, writable, user."""
        address = frame if shift == 12 else BASE
        self.memory.write(table + 8 * (address >> shift & 0x1FF), (frame | 7).to_bytes(8, "little"))

    def run(self, case: Case) -> Outcome:
        """Execute one case; the signal is the one that Linux makes of the fault."""
        cpu = self.cpu
        self.memory.write(CODE, case.code)
        self.memory.write(WINDOW, case.window)
        for name, value in zip(GPR, case.regs, strict=True):
            setattr(cpu, name, value)
        cpu.set_rflags(case.flags)
        cpu.stop_at = NEVER
        start = cpu.rip = CODE - self.base
        signal = 0
        try:
            insn = cpu.code[start]
            cpu.rip = insn.next
            insn.function(cpu, *insn.operands)
        except (StackFault, AlignmentCheck):
            signal = SIGBUS
        except DivideError:
            signal = SIGFPE
        except InvalidOpcode:
            signal = SIGILL
        except Fault:
            signal = SIGSEGV
        after = start + len(case.code)
        assert signal or cpu.rip in (after, after + TAKEN), f"RIP {cpu.rip:#x}"
        regs = tuple(getattr(cpu, name) for name in GPR)
        taken = not signal and cpu.rip == after + TAKEN
        return Outcome(signal, regs, cpu.rflags(), self.memory.read(WINDOW, WINDOW_SIZE), taken)


def undefined_flags(case: Case) -> int:
    """RFLAGS bits that iced's tables call undefined after this instruction, and two cases they do not have.

    RCL and RCR by a multiple of size + 1: OF. 16-bit SHLD and SHRD by more than 16: everything.
    """
    instruction = Decoder(case.bits, case.code).decode()
    mnemonic = mnemonic_names()[instruction.mnemonic]
    if mnemonic in ("RCL", "RCR"):
        return 1 << 11
    if is_long_double_shift(case):
        return 0x8D5
    bits = instruction.rflags_undefined
    return sum(1 << bit for flag, bit in ICED_FLAGS if bits & flag)


def is_long_double_shift(case: Case) -> bool:
    """A 16-bit SHLD or SHRD by more than 16: its result is undefined, and makers differ."""
    instruction = Decoder(case.bits, case.code).decode()
    name = code_names()[instruction.code]
    if not name.startswith(("SHLD_RM16", "SHRD_RM16")):
        return False
    return (case.regs[1] if name.endswith("CL") else instruction.immediate8) & 31 > 16


def difference(case: Case, native: Outcome, ours: Outcome, ignored: int) -> str:
    """What differs, or ""."""
    found = []
    if native.signal != ours.signal:
        found.append(f"signal {native.signal}, ours {ours.signal}")
    # Outside 64-bit code the upper halves mean nothing; Linux's return to a 16-bit stack changes that of RSP.
    mask = 0xFFFF_FFFF_FFFF_FFFF if case.bits == 64 else 0xFFFF_FFFF
    for name, host, guest in zip(GPR, native.regs, ours.regs, strict=True):
        if (host ^ guest) & mask:
            found.append(f"{name} {host:#x}, ours {guest:#x}")
    changed = (native.flags ^ ours.flags) & VISIBLE_FLAGS & ~ignored
    if changed:
        found.append(f"flags {native.flags:#x}, ours {ours.flags:#x}, differ in {changed:#x}")
    if native.window != ours.window:
        first = next(n for n in range(WINDOW_SIZE) if native.window[n] != ours.window[n])
        found.append(f"memory from {WINDOW + first:#x}")
    if native.taken != ours.taken:
        found.append(f"branch taken {native.taken}, ours {ours.taken}")
    return "; ".join(found)


def describe(case: Case) -> str:
    registers = " ".join(f"{name}={value:#x}" for name, value in zip(GPR, case.regs, strict=True))
    text = disassemble(case.code, case.bits, CODE)
    return f"{text} [{case.code.hex(' ')}] {case.bits}-bit flags={case.flags:#x} {registers}"
