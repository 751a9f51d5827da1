"""Every model-specific register read and written in every mode, with every bit of it turned over.

With it what a CPU does that has few features: instructions, registers and bits that CPUID does not offer.
"""

from __future__ import annotations

import pytest

from isa.cpuid import BASELINE
from tests.matrices import model_control as control
from tests.matrices import model_machine as machine
from tests.matrices import model_msr as msr
from tests.matrices.model_paging import bits
from tests.matrices.model_system import privileged_nothing
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import GP, M32, M64, PF, ZF, Fault, Machine, low
from tests.matrices.test_machine import ALL, GARBAGE, level
from tests.matrices.world import BITS, DATA, World

BOARD = (0x1B, 0x3C, 0x802, 0x4000_0000, 0xC001_0015, M32)  # registers that the CPU does not have
INDICES = (*msr.REGISTERS, *msr.READ_ONLY, *msr.BASES, msr.TSC, msr.SIGNATURE, msr.EFER, *BOARD)
# a value that each of them takes, in EDX:EAX
VALUES = (0, 0x0606_0606_0606_0606, 0x0000_7FFF_FFFF_F000, 0x0107_0506_0004_0001)


def read(world: World, c: Combination) -> Case | None:
    """RDMSR of a register that somebody has written before, or nobody."""
    cpl = level(c)
    if cpl is None:
        return None
    m = world.machine(c["mode"], cpl)
    above = GARBAGE if c["mode"] == "64" else 0
    m.rcx, m.rax, m.rdx = c["index"] | above, m.rax | above, m.rdx | above
    if c["written"] and c["index"] in msr.REGISTERS:
        m.msrs = {c["index"]: 0x0000_1234_5678_9ABC}
    if c["index"] == msr.TSC and c["written"]:
        m.msrs = {msr.TSC_ADJUST: M64 - 0xFFFF}
    m.fs, m.gs = m.fs._replace(base=0x1234_5000), m.gs._replace(base=0x7FFF_1234_5678 if m.long else 0x5678)
    return Case(m, b"\x0f\x32", msr.rdmsr)


def write(world: World, c: Combination) -> Case | None:
    """WRMSR of a value with a bit turned over, or with a byte that is some memory type."""
    cpl = level(c)
    if cpl is None:
        return None
    m = world.machine(c["mode"], cpl)
    value = c["value"] ^ (1 << c["bit"] if c["bit"] >= 0 else 0)
    if "kind" in c:
        value = value & ~(0xFF << 8 * c["field"]) | c["kind"] << 8 * c["field"]
    above = GARBAGE if c["mode"] == "64" else 0
    m.rcx, m.rax, m.rdx = c["index"] | above, value & M32 | above, value >> 32 | above
    if c["index"] == msr.TSC and c["bit"] & 1:
        m.msrs = {msr.TSC_ADJUST: 0x1_0000}
    return Case(m, b"\x0f\x30", msr.wrmsr)


READS = Matrix(
    "RDMSR",
    (Space("registers", mode=ALL, cpl=(0, 0, 0, 1, 3), index=INDICES, written=(0, 1)),),
    read,
    600,
)
WRITES = Matrix(
    "WRMSR",
    (
        Space("bits", mode=("64", "32", "real"), cpl=(0,), index=INDICES, value=VALUES,
              bit=(*(-1,) * 30, *range(64))),
        Space("levels", mode=ALL, cpl=range(4), index=INDICES, value=VALUES[:2], bit=(-1,)),
        Space("memory types", mode=("64",), cpl=(0,), index=(msr.PAT, msr.DEF_TYPE, 0x200, 0x20E, *msr.FIXED),
              value=(0,), bit=(-1,), field=range(8), kind=(*range(16), 0x16, 0x80, 0xFF)),
    ),
    write,
    800,
)  # fmt: skip


# ---- what CPUID does not offer -----------------------------------------------------------------------------

FEW = BASELINE | {"FPU", "MSR", "PAE", "X64", "CX8", "FXSR", "SSE", "SSE2"}
OFFERED_CR4 = bits(5, 8, 9, 10)  # PAE, PCE, OSFXSR, OSXMMEXCPT
OFFERED_EFER = bits(8, 10)  # LME, LMA


def scan(reverse: bool) -> machine.Model:
    """TZCNT and LZCNT without their features are BSF and BSR, whatever F3 says, of EBX into EAX.

    The manual leaves all flags but ZF undefined; here PF is the result's and the others stay 0.
    """

    def instruction(m: Machine) -> None:
        value = m.rbx & M32
        if value:
            m.rax = low(m.rax, (value.bit_length() if reverse else (value & -value).bit_length()) - 1, M32)
        even = (m.rax & 0xFF).bit_count() % 2 == 0
        m.rflags = m.rflags & ~(ZF | PF) | (0 if value else ZF) | (PF if even else 0)

    return instruction


# What an instruction is without its feature: #UD, nothing, or an older one
WITHOUT = {
    "rdrand": (b"\x0f\xc7\xf0", machine.undefined), "rdseed": (b"\x0f\xc7\xf8", machine.undefined),
    "rdtsc": (b"\x0f\x31", machine.undefined), "rdtscp": (b"\x0f\x01\xf9", machine.undefined),
    "rdpid": (b"\xf3\x0f\xc7\xf8", machine.undefined), "monitor": (b"\x0f\x01\xc8", machine.undefined),
    "mwait": (b"\x0f\x01\xc9", machine.undefined), "clac": (b"\x0f\x01\xca", machine.undefined),
    "invpcid": (b"\x66\x0f\x38\x82\x00", machine.undefined), "xgetbv": (b"\x0f\x01\xd0", machine.undefined),
    "xsetbv": (b"\x0f\x01\xd1", machine.undefined), "serialize": (b"\x0f\x01\xe8", machine.undefined),
    "sysenter": (b"\x0f\x34", machine.undefined), "sysexit": (b"\x0f\x35", machine.undefined),
    "xsave": (b"\x0f\xae\x20", machine.undefined), "popcnt": (b"\xf3\x0f\xb8\xc1", machine.undefined),
    "pshufb": (b"\x0f\x38\x00\xc1", machine.undefined),
    "aesenc": (b"\x66\x0f\x38\xdc\xc1", machine.undefined),
    "vaddps": (b"\xc5\xf8\x58\xc1", machine.undefined), "adcx": (b"\x66\x0f\x38\xf6\xc1", machine.undefined),
    "rdssp": (b"\xf3\x0f\x1e\xc9", machine.nothing), "endbr": (b"\xf3\x0f\x1e\xfa", machine.nothing),
    "prefetchw": (b"\x0f\x0d\x08", machine.nothing), "wbnoinvd": (b"\xf3\x0f\x09", privileged_nothing),
    "tzcnt": (b"\xf3\x0f\xbc\xc3", scan(False)), "lzcnt": (b"\xf3\x0f\xbd\xc3", scan(True)),
    "vmcall": (b"\x0f\x01\xc1", machine.hypercall),
}  # fmt: skip


def without(world: World, c: Combination) -> Case | None:
    """An instruction that this CPU does not have."""
    cpl, mode, what = level(c), c["mode"], c["what"]
    if cpl is None or (what in ("tzcnt", "lzcnt", "rdssp") and BITS[mode] == 16):
        return None
    if what == "vaddps" and mode in ("real", "v86"):  # LDS there
        return None
    m = world.machine(mode, cpl)
    m.rbx = c["rbx"]
    return Case(m, WITHOUT[what][0], WITHOUT[what][1])


def refused(world: World, c: Combination) -> Case | None:
    """A bit of CR4 or EFER whose feature is not offered; a register of such a feature."""
    m = world.machine(c["mode"], 0)
    number, what = c["bit"], c["what"]
    if what == "cr4":
        if number >= BITS[c["mode"]] or (number == 5 and c["mode"] in ("64", "compat")):
            return None
        m.rax = value = m.cr4 ^ 1 << number
        return Case(m, b"\x0f\x22\xe0", lambda m: control.write_cr4(m, value, OFFERED_CR4))
    if what == "efer":
        value = m.efer ^ 1 << number
        m.rcx, m.rdx, m.rax = msr.EFER, value >> 32, value & M32
        return Case(m, b"\x0f\x30", lambda m: control.write_efer(m, value, OFFERED_EFER))
    index = ABSENT[number % len(ABSENT)]
    m.rcx, m.rax, m.rdx = index, DATA, number

    def leave(m: Machine) -> None:
        if m.cpl:
            raise Fault(GP, 0)
        if what == "rdmsr":
            m.ports, m.rax, m.rdx = (("rdmsr", index),), machine.ANSWER & M32, machine.ANSWER >> 32
        else:
            m.ports = (("wrmsr", index, number << 32 | DATA),)

    return Case(m, b"\x0f\x32" if what == "rdmsr" else b"\x0f\x30", leave)


ABSENT = (msr.TSC, msr.MTRRCAP, msr.PAT, msr.DEF_TYPE, 0x200, 0x20F, *msr.FIXED, 0xC000_0081, 0xC000_0082,
          0xC000_0083, 0xC000_0084, 0xC000_0103)  # fmt: skip
OTHER_INSTRUCTIONS = Matrix(
    "instructions that CPUID does not offer",
    (
        Space("instructions", mode=ALL, cpl=range(4), what=tuple(WITHOUT),
              rbx=(0, 1, 0x8000_0000, 0x1234_5600)),
    ),
    without,
    1000,
    features=FEW,
)  # fmt: skip
OTHER_BITS = Matrix(
    "bits and registers that CPUID does not offer",
    (
        Space("bits", mode=("real", "16", "32", "compat", "64"), what=("cr4", "efer", "rdmsr", "wrmsr"),
              bit=range(64)),
    ),
    refused,
    900,
    features=FEW,
)  # fmt: skip

MATRICES = (READS, WRITES, OTHER_INSTRUCTIONS, OTHER_BITS)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [
        (READS, ("done", "#GP")), (WRITES, ("done", "#GP")), (OTHER_INSTRUCTIONS, ("done", "#GP", "#UD")),
        (OTHER_BITS, ("done", "#GP")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_model_specific_registers_and_missing_features_follow_the_manual(
    matrix: Matrix, outcomes: tuple[str, ...], blocks: bool
) -> None:
    verify(matrix, *outcomes, blocks=blocks)
