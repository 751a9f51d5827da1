"""The general-purpose oracle's other side: this CPU on the native worker's pages, and the comparison.

Nothing here needs a host of a certain kind: recorded cases are replayed on the same machine.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter

from iced_x86 import Decoder, RflagsBits

from isa.cpu import NEVER, Cpu
from isa.decode import code_names, disassemble, feature_names, form_features, mnemonic_names
from isa.faults import AlignmentCheck, Fault, PageFault
from isa.memory import PhysicalMemory
from isa.state import (
    CR0_AM,
    CR0_PE,
    CR0_PG,
    CR4_FSGSBASE,
    CR4_OSXSAVE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_SCE,
    NO_SHADOW,
)
from tests.isa.forms import implemented_forms
from tests.oracles import vector_forms
from tests.oracles.forms import is_usable
from tests.oracles.native import (
    BASE,
    BASES,
    CODE,
    DATA,
    DATA_SIZE,
    GDT,
    GPR,
    LDT,
    SEGMENTS,
    SELECTORS,
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
from tests.oracles.pages import PML4, map_pages
from tests.oracles.reasons import reason

TABLES = BASE + 0x8000  # GDT and LDT: for the supervisor only
LDT_OFFSET = 0x100
BESIDE = bytes((DATA_SIZE - WINDOW_SIZE) // 2)

# LAHF_SAHF_64 is the decoder's option, not a feature name of iced's
ALL_FEATURES = frozenset(feature_names().values()) | {"LAHF_SAHF_64"}

# CF PF AF ZF SF DF OF NT AC ID: what user code can see change
VISIBLE_FLAGS = 0x24_4CD5
ICED_FLAGS = ((RflagsBits.CF, 0), (RflagsBits.PF, 2), (RflagsBits.AF, 4), (RflagsBits.ZF, 6),
              (RflagsBits.SF, 7), (RflagsBits.DF, 10), (RflagsBits.OF, 11))  # fmt: skip
# Exception vector -> the signal that Linux makes of it; SIGSEGV of every other
SIGNALS = {0: SIGFPE, 6: SIGILL, 11: SIGBUS, 12: SIGBUS, 17: SIGBUS}


@cache
def forms(bits: int) -> tuple[int, ...]:
    """Every implemented form without x87 or vector state that user code of `bits` can run."""
    elsewhere = {*vector_forms.forms(), *vector_forms.vex_forms(), *vector_forms.image_forms()}
    found = []
    for code in implemented_forms():
        x87 = any(feature.startswith("FPU") for feature in form_features(code))
        if not (x87 or code in elsewhere or reason(code)) and is_usable(code, bits):
            found.append(code)
    return tuple(found)


@cache
def initial_segments(bits: int) -> tuple[int, ...]:
    """`Outcome.segments` before a case."""
    bases = (BASES[64]["fs"], BASES[64]["gs"]) if bits == 64 else (0, 0)
    return (*SELECTORS[bits].values(), *bases)


class Machine:
    """The same pages and segments as the native worker's, in a CPU at CPL 3."""

    def __init__(self, bits: int) -> None:
        self.memory = PhysicalMemory()
        for start, size in ((BASE, 0x3000), (DATA - 0x1000, 0x3000), (TABLES, 0x1000)):
            self.memory.add_ram(start, size)
        user = (*range(BASE, BASE + 0x3000, 0x1000), *range(DATA, DATA + 0x2000, 0x1000))
        map_pages(self.memory, BASE, user, DATA - 0x1000, (TABLES,))
        cpu = self.cpu = Cpu(self.memory, ALL_FEATURES, lambda cpu, leaf, subleaf: (0, 0, 0, 0))
        cpu.cr0 |= CR0_PE | CR0_PG | CR0_AM
        cpu.cr3, cpu.cr4 = PML4, CR4_PAE | CR4_FSGSBASE | CR4_OSXSAVE
        cpu.efer = EFER_LME | EFER_LMA | EFER_SCE
        self.bits = bits
        self.base = BASES[bits]["cs"]
        for offset, table in ((0, GDT), (LDT_OFFSET, tuple(entry.descriptor() for entry in LDT))):
            raw = b"".join(descriptor.to_bytes(8, "little") for descriptor in table)
            self.memory.write(TABLES + offset, raw)
        cpu.gdtr.base, cpu.gdtr.limit = TABLES, 8 * len(GDT) - 1
        cpu.ldtr.load_raw(0x50, TABLES + LDT_OFFSET, 8 * len(LDT) - 1, 0x82)
        cpu.tr.load_raw(0x40, 0, 0x20, 0x8B)  # no I/O permission bitmap: no port for user code
        cpu.cpl = 3
        self.segments = initial_segments(bits)
        self.reset_segments()

    def reset_segments(self) -> None:
        """The segment registers as the native worker has them."""
        for name, selector in SELECTORS[self.bits].items():
            table, at = (LDT, LDT_OFFSET) if selector & 4 else (GDT, 0)
            assert selector >> 3 < len(table)
            raw = int.from_bytes(self.memory.read(TABLES + at + (selector & ~7), 8), "little")
            segment = getattr(self.cpu, name)
            segment.load_descriptor(selector, raw)
            if not selector:
                segment.load_raw(0, 0, 0, 0, null=True)
        if self.bits == 64:
            self.cpu.fs.base, self.cpu.gs.base = BASES[64]["fs"], BASES[64]["gs"]
        self.cpu.update_mode()

    def run(self, case: Case) -> Outcome:
        """Execute one case; the signal is the one that Linux makes of the fault."""
        cpu = self.cpu
        self.memory.write(CODE, case.code)
        self.memory.write(DATA, BESIDE + case.window + BESIDE)
        for name, value in zip(GPR, case.regs, strict=True):
            setattr(cpu, name, value)
        cpu.set_rflags(case.flags)
        cpu.stop_at = NEVER
        cpu.shadow = NO_SHADOW
        start = cpu.rip = CODE - self.base
        signal, trap = 0, (0, 0, 0)
        try:
            insn = cpu.code[start]
            cpu.rip = insn.next
            insn.function(cpu, *insn.operands)
        except Fault as fault:
            if isinstance(fault, PageFault | AlignmentCheck):
                fault = cpu.checked_as_write(fault, cpu.code[start])
            address = fault.address if isinstance(fault, PageFault) else 0
            trap = (fault.vector, fault.error_code or 0, address)
            signal = SIGNALS.get(fault.vector, SIGSEGV)
        after = start + len(case.code)
        assert signal or cpu.rip in (after, after + TAKEN), f"RIP {cpu.rip:#x}"
        taken = not signal and cpu.rip == after + TAKEN
        bases = (cpu.fs.base, cpu.gs.base) if self.bits == 64 else (0, 0)
        segments = (*(segment.selector for segment in cpu.segments), *bases)
        if segments != self.segments:
            self.reset_segments()
        window = self.memory.read(WINDOW, WINDOW_SIZE)
        return Outcome(signal, registers(cpu), cpu.rflags(), window, taken, segments, trap)


registers = attrgetter(*GPR)


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
    for name, a, b in zip((*SEGMENTS, "fs.base", "gs.base"), native.segments, ours.segments, strict=True):
        if a != b:
            found.append(f"{name} {a:#x}, ours {b:#x}")
    for name, a, b in zip(("vector", "error", "cr2"), native.fault, ours.fault, strict=True):
        if a != b:
            found.append(f"{name} {a:#x}, ours {b:#x}")
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
