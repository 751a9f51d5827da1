"""The state of our CPU and of a KVM vCPU in one vocabulary: copied there, read from both. It runs nothing.

Names are those of `Registers` (rax ... r15, rip, rflags, cr0, xmm0, mxcsr) plus a segment's parts: `cs`,
`cs_base`, `cs_limit`, `cs_attributes`. A null or unusable segment has only its selector, FS and GS in 64-bit
code also their base: the rest means nothing.
"""

from __future__ import annotations

import struct
from typing import Final

from isa.cpu import Cpu
from isa.state import (
    CR0_PE,
    EFER_LMA,
    GPR_NAMES,
    M64,
    SEGMENT_NAMES,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
    XMM_NAMES,
    YMM_HIGH_NAMES,
    Segment,
)
from pysim_vm.kvm.abi import XSAVE_SIZE, KvmDebugRegs, KvmSegment, KvmSregs
from pysim_vm.kvm.binding import KvmVcpu

# Our names and KVM's
SEGMENTS: Final = (*((name, name) for name in SEGMENT_NAMES), ("tr", "tr"), ("ldtr", "ldt"))
TABLES: Final = (("gdtr", "gdt"), ("idtr", "idt"))
CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
# Leaves of CPUID whose answer depends on ECX, and how many subleaves our table has
SUBLEAVES: Final = {0x4: 4, 0x7: 1, 0xB: 3, 0xD: 3}
HYPERVISOR_LEAVES: Final = (0x4000_0000, 0x4000_0001)
# The XSAVE area (SDM Vol. 1, "XSAVE Area"): control, status, tags, opcode, FIP, FDP, MXCSR and its mask
_FX_HEAD: Final = struct.Struct("<HHBxHQQII")
FX_ST, FX_XMM, XSTATE_BV, YMM_HIGH = 32, 160, 512, 576
MXCSR_MASK: Final = 0xFFFF
M80: Final = (1 << 80) - 1

State = dict[str, int]


def cpuid_leaves(cpu: Cpu) -> list[tuple[int, int | None, tuple[int, int, int, int]]]:
    """Our CPUID table, for `KvmVcpu.set_cpuid`."""
    leaves: list[tuple[int, int | None, tuple[int, int, int, int]]] = []
    for first in (0, 0x8000_0000):
        last = cpu.cpuid(cpu, first, 0)[0]
        for leaf in range(first, last + 1):
            if leaf in SUBLEAVES:
                leaves += [(leaf, n, cpu.cpuid(cpu, leaf, n)) for n in range(SUBLEAVES[leaf])]
            else:
                leaves.append((leaf, None, cpu.cpuid(cpu, leaf, 0)))
    leaves += [(leaf, None, cpu.cpuid(cpu, leaf, 0)) for leaf in HYPERVISOR_LEAVES]
    return leaves


def load(vcpu: KvmVcpu, cpu: Cpu) -> None:
    """Put the vCPU into the state of `cpu`: every register, nothing pending. KvmError if the host refuses it.

    The feature bits of CPUID are not among it (`cpuid_leaves`), nor is time.
    """
    vcpu.clear_events()
    load_system(vcpu, cpu)
    load_registers(vcpu, cpu)
    load_float(vcpu, cpu)
    debug = KvmDebugRegs(dr6=cpu.dr6, dr7=cpu.dr7)
    for n, value in enumerate((cpu.dr0, cpu.dr1, cpu.dr2, cpu.dr3)):
        debug.db[n] = value
    vcpu.set_debug_regs(debug)
    for index, value in cpu.msr.items():
        vcpu.set_msr(index, value)


def load_registers(vcpu: KvmVcpu, cpu: Cpu) -> None:
    """The general registers, RIP and RFLAGS."""
    registers = {name: getattr(cpu, name) for name in (*GPR_NAMES, "rip")}
    vcpu.set_regs({**registers, "rflags": cpu.rflags()})


def load_system(vcpu: KvmVcpu, cpu: Cpu) -> None:
    """Segments, tables and control registers."""
    sregs = vcpu.sregs()
    for ours, theirs in SEGMENTS:
        setattr(sregs, theirs, _segment(getattr(cpu, ours)))
    for ours, theirs in TABLES:
        table, register = getattr(sregs, theirs), getattr(cpu, ours)
        table.base, table.limit = register.base, register.limit
    for name in CONTROL:
        setattr(sregs, name, getattr(cpu, name))
    for n in range(4):
        sregs.interrupt_bitmap[n] = 0
    vcpu.set_sregs(sregs)
    if cpu.xcr0 != 1:
        vcpu.set_xcr0(cpu.xcr0)


def load_float(vcpu: KvmVcpu, cpu: Cpu) -> None:
    """x87, SSE and AVX registers."""
    ours = cpu.fpu
    area = bytearray(XSAVE_SIZE)
    tags = sum(1 << n for n in range(8) if not ours.tags[n])
    _FX_HEAD.pack_into(
        area, 0, ours.control, ours.status_word(), tags, ours.opcode, ours.ip & M64, ours.dp & M64,
        cpu.mxcsr, MXCSR_MASK,
    )  # fmt: skip
    for n in range(8):
        at = FX_ST + 16 * n
        area[at : at + 10] = (ours.regs[ours.top + n & 7] & M80).to_bytes(10, "little")
    for n, (low, high) in enumerate(zip(XMM_NAMES, YMM_HIGH_NAMES, strict=True)):
        area[FX_XMM + 16 * n : FX_XMM + 16 * n + 16] = getattr(cpu, low).to_bytes(16, "little")
        area[YMM_HIGH + 16 * n : YMM_HIGH + 16 * n + 16] = getattr(cpu, high).to_bytes(16, "little")
    parts = XCR0_X87 | XCR0_SSE | cpu.xcr0 & XCR0_AVX
    area[XSTATE_BV : XSTATE_BV + 8] = parts.to_bytes(8, "little")
    vcpu.set_xsave(area)


def _segment(segment: Segment) -> KvmSegment:
    made = KvmSegment(
        base=segment.base, limit=segment.limit, selector=segment.selector, type=segment.type,
        present=segment.present, dpl=segment.dpl, db=segment.db, s=segment.s, l=segment.l, g=segment.g,
    )  # fmt: skip
    made.avl = segment.avl
    made.unusable = segment.null or not segment.present
    return made


# ---- reading ---------------------------------------------------------------------------------------------


def state_of_cpu(cpu: Cpu) -> State:
    """Every register of our CPU."""
    state: State = {name: getattr(cpu, name) for name in (*GPR_NAMES, "rip", *CONTROL)}
    state["rflags"] = cpu.rflags()
    for name, _ in SEGMENTS:
        segment: Segment = getattr(cpu, name)
        hidden = (segment.base, segment.limit, segment.attributes)
        usable = not segment.null and bool(segment.present)
        _put_segment(state, name, segment.selector, hidden, usable, cpu.mode64)
    for name, _ in TABLES:
        table = getattr(cpu, name)
        state[f"{name}_base"], state[f"{name}_limit"] = table.base, table.limit
    for name in ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "mxcsr", *XMM_NAMES, *YMM_HIGH_NAMES):
        state[name] = getattr(cpu, name)
    fpu = cpu.fpu
    state["fcw"], state["fsw"] = fpu.control, fpu.status_word()
    state["ftw"] = sum(1 << n for n in range(8) if not fpu.tags[n])
    for n in range(8):
        state[f"st{n}"] = fpu.regs[fpu.top + n & 7] & M80
    return state


def state_of_vcpu(vcpu: KvmVcpu) -> State:
    """Every register of a KVM vCPU."""
    state: State = vcpu.regs()
    put_system(state, vcpu.sregs())
    debug = vcpu.debug_regs()
    for n in range(4):
        state[f"dr{n}"] = debug.db[n]
    state["dr6"], state["dr7"] = debug.dr6, debug.dr7
    put_float(state, vcpu.xsave())
    return state


def put_float(state: State, area: bytearray) -> None:
    """x87, SSE and AVX registers of an XSAVE area into `state`."""
    parts = int.from_bytes(area[XSTATE_BV : XSTATE_BV + 8], "little")
    state["fcw"], state["fsw"], state["ftw"], *_, state["mxcsr"], _ = _FX_HEAD.unpack_from(area)
    if not parts & XCR0_X87:  # in its initial state, and then not part of the area
        state["fcw"], state["fsw"], state["ftw"] = 0x37F, 0, 0
    for n in range(8):
        at = FX_ST + 16 * n
        state[f"st{n}"] = int.from_bytes(area[at : at + 10], "little") if parts & XCR0_X87 else 0
    for names, first, part in ((XMM_NAMES, FX_XMM, XCR0_SSE), (YMM_HIGH_NAMES, YMM_HIGH, XCR0_AVX)):
        for n, name in enumerate(names):
            at = first + 16 * n
            state[name] = int.from_bytes(area[at : at + 16], "little") if parts & part else 0


def put_system(state: State, sregs: KvmSregs) -> None:
    """Segments, tables and control registers into `state`."""
    for name in CONTROL:
        state[name] = getattr(sregs, name)
    mode64 = bool(sregs.cs.l and sregs.efer & EFER_LMA)
    for ours, theirs in SEGMENTS:
        segment: KvmSegment = getattr(sregs, theirs)
        attributes = (
            segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
            | segment.avl << 12 | segment.l << 13 | segment.db << 14 | segment.g << 15
        )  # fmt: skip
        hidden = (segment.base, segment.limit, attributes)
        usable = bool(segment.present) and not segment.unusable
        _put_segment(state, ours, segment.selector, hidden, usable, mode64)
    for ours, theirs in TABLES:
        table = getattr(sregs, theirs)
        state[f"{ours}_base"], state[f"{ours}_limit"] = table.base, table.limit


def _put_segment(
    state: State, name: str, selector: int, hidden: tuple[int, int, int], usable: bool, mode64: bool
) -> None:
    base, limit, attributes = hidden
    state[name] = selector
    state[f"{name}_base"] = base if usable or (mode64 and name in ("fs", "gs")) else 0
    state[f"{name}_limit"] = limit if usable else 0
    state[f"{name}_attributes"] = attributes if usable else 0


def differences(ours: State, theirs: State) -> list[tuple[str, int, int]]:
    """(register, our value, KVM's value) where they differ, in the order of the manual.

    What no instruction can see is left out: the type of CS in real mode, which VMX wants to be that of code,
    and the hidden part of a null SS in 64-bit mode.
    """
    unseen = set()
    if not ours["cr0"] & CR0_PE:
        unseen.add("cs_attributes")
    if ours["ss"] & ~3 == theirs["ss"] & ~3 == 0 and ours["cr0"] & CR0_PE:
        unseen |= {"ss_limit", "ss_attributes"}
    return [
        (name, value, theirs[name])
        for name, value in ours.items()
        if theirs[name] != value and name not in unseen
    ]
