"""Model-specific registers that the CPU itself holds. Everything else leaves as SysRegRead / SysRegWrite.

Source: SDM Vol. 4, "Model-Specific Registers". A register that is listed here only with a feature does not
exist without it. A device registered over an index wins over this table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from isa.faults import GeneralProtection
from isa.memory import PHYSICAL_BITS
from isa.state import CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

IA32_TSC = 0x10
IA32_FEATURE_CONTROL = 0x3A
IA32_TSC_ADJUST = 0x3B
IA32_BIOS_SIGN_ID = 0x8B
PLATFORM_INFO = 0xCE
IA32_MTRRCAP = 0xFE
IA32_SYSENTER_CS = 0x174
IA32_SYSENTER_ESP = 0x175
IA32_SYSENTER_EIP = 0x176
IA32_MISC_ENABLE = 0x1A0
IA32_PAT = 0x277
IA32_MTRR_DEF_TYPE = 0x2FF
IA32_EFER = 0xC000_0080
IA32_STAR = 0xC000_0081
IA32_LSTAR = 0xC000_0082
IA32_CSTAR = 0xC000_0083
IA32_FMASK = 0xC000_0084
IA32_FS_BASE = 0xC000_0100
IA32_GS_BASE = 0xC000_0101
IA32_KERNEL_GS_BASE = 0xC000_0102
IA32_TSC_AUX = 0xC000_0103

MTRR_VARIABLE_COUNT = 8
MTRR_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
PAT_RESET = 0x0007_0406_0007_0406
MISC_ENABLE_RESET = 1 << 0 | 1 << 11 | 1 << 12  # fast strings; no BTS, no PEBS
PHYSICAL_MASK = (1 << PHYSICAL_BITS) - 1
MEMORY_TYPES = (0, 1, 4, 5, 6)  # UC WC WT WP WB; PAT also knows 7, UC-


class Register(NamedTuple):
    """How one MSR is read and written. `write` is None for a read-only one; it is there with any of the
    features that `needs` lists."""

    read: Callable[[Cpu], int]
    write: Callable[[Cpu, int], None] | None
    needs: tuple[str, ...] = ()


def is_canonical(address: int) -> bool:
    """Bits 63-47 are all equal (4-level paging)."""
    return address + 0x8000_0000_0000 & M64 < 1 << 48


def own_register(cpu: Cpu, index: int) -> Register | None:
    """The MSR if the CPU itself answers for it: no device is registered over it, its feature is there."""
    register = None if cpu.msr_intercepted(index) else MSRS.get(index)
    if register is None or (register.needs and cpu.features.isdisjoint(register.needs)):
        return None
    return register


def read_msr(cpu: Cpu, index: int) -> int:
    """RDMSR: the value, from the CPU or from whoever answers the exit. GeneralProtection if nobody has it."""
    register = own_register(cpu, index)
    if register is None:
        return cpu.sys_reg_read(index)
    return register.read(cpu)


def write_msr(cpu: Cpu, index: int, value: int) -> None:
    """WRMSR; GeneralProtection for a reserved bit, a non-canonical address or a read-only register."""
    register = own_register(cpu, index)
    if register is None:
        cpu.sys_reg_write(index, value)
    elif register.write is None:
        raise GeneralProtection(0, f"MSR {index:#x} is read-only")
    else:
        register.write(cpu, value)


def tsc(cpu: Cpu) -> int:
    """The time-stamp counter: virtual time plus what the guest wrote."""
    return cpu.tsc() + cpu.msr.get(IA32_TSC_ADJUST, 0) & M64


def _stored(index: int, reset: int = 0, writable: int = M64, *, canonical: bool = False) -> Register:
    """A register that only remembers; bits outside `writable` are reserved."""

    def write(cpu: Cpu, value: int) -> None:
        if value & ~writable:
            raise GeneralProtection(0, f"MSR {index:#x}: reserved bits {value & ~writable:#x}")
        if canonical and not is_canonical(value):
            raise GeneralProtection(0, f"MSR {index:#x}: {value:#x} is not canonical")
        cpu.msr[index] = value

    return Register(lambda cpu: cpu.msr.get(index, reset), write)


def _write_efer(cpu: Cpu, value: int) -> None:
    allowed = EFER_LMA
    if "X64" in cpu.features:
        allowed |= EFER_LME
    if "SYSCALL" in cpu.features:
        allowed |= EFER_SCE
    if "NX" in cpu.features:
        allowed |= EFER_NXE
    if value & ~allowed:
        raise GeneralProtection(0, f"EFER: reserved bits {value & ~allowed:#x}")
    if (value ^ cpu.efer) & EFER_LME and cpu.cr0 & CR0_PG:
        raise GeneralProtection(0, "EFER.LME changed with CR0.PG=1")
    cpu.efer = value & ~EFER_LMA | cpu.efer & EFER_LMA  # LMA is read-only
    cpu.flush_tlb()
    cpu.update_mode()


def _segment_base(name: str) -> Register:
    def read(cpu: Cpu) -> int:
        base: int = getattr(cpu, name).base
        return base

    def write(cpu: Cpu, value: int) -> None:
        if not is_canonical(value):
            raise GeneralProtection(0, f"{name.upper()} base {value:#x} is not canonical")
        getattr(cpu, name).base = value

    return Register(read, write, ("X64",))


def _write_tsc(cpu: Cpu, value: int) -> None:
    cpu.msr[IA32_TSC_ADJUST] = value - cpu.tsc() & M64


def _write_pat(cpu: Cpu, value: int) -> None:
    for entry in value.to_bytes(8, "little"):
        if entry not in (*MEMORY_TYPES, 7):
            raise GeneralProtection(0, f"PAT: memory type {entry:#x} is reserved")
    cpu.msr[IA32_PAT] = value


def _mtrr_base(index: int) -> Register:
    def write(cpu: Cpu, value: int) -> None:
        if value & ~PHYSICAL_MASK or value & 0xF00 or value & 0xFF not in MEMORY_TYPES:
            raise GeneralProtection(0, f"MTRR {index:#x}: {value:#x} has a reserved bit or memory type")
        cpu.msr[index] = value

    return Register(lambda cpu: cpu.msr.get(index, 0), write, ("MTRR",))


def _mtrr_mask(index: int) -> Register:
    def write(cpu: Cpu, value: int) -> None:
        if value & ~PHYSICAL_MASK or value & 0x7FF:
            raise GeneralProtection(0, f"MTRR {index:#x}: reserved bits in {value:#x}")
        cpu.msr[index] = value

    return Register(lambda cpu: cpu.msr.get(index, 0), write, ("MTRR",))


def _mtrr_fixed(index: int) -> Register:
    def write(cpu: Cpu, value: int) -> None:
        if any(kind not in MEMORY_TYPES for kind in value.to_bytes(8, "little")):
            raise GeneralProtection(0, f"MTRR {index:#x}: reserved memory type in {value:#x}")
        cpu.msr[index] = value

    return Register(lambda cpu: cpu.msr.get(index, 0), write, ("MTRR",))


def _write_mtrr_def_type(cpu: Cpu, value: int) -> None:
    if value & ~0xCFF or value & 0xFF not in MEMORY_TYPES:
        raise GeneralProtection(0, f"MTRR default type: {value:#x} has a reserved bit or memory type")
    cpu.msr[IA32_MTRR_DEF_TYPE] = value


def _ignore(cpu: Cpu, value: int) -> None:
    """Writable, without effect."""


MSRS: dict[int, Register] = {
    IA32_TSC: Register(tsc, _write_tsc, ("TSC",)),
    IA32_TSC_ADJUST: _stored(IA32_TSC_ADJUST),
    IA32_FEATURE_CONTROL: Register(lambda cpu: 1, None),  # VMX off, and locked
    IA32_BIOS_SIGN_ID: Register(lambda cpu: 0, _ignore),  # no microcode update is loaded
    PLATFORM_INFO: Register(lambda cpu: 0, None),
    IA32_SYSENTER_CS: _stored(IA32_SYSENTER_CS, writable=M32),
    IA32_SYSENTER_ESP: _stored(IA32_SYSENTER_ESP, canonical=True),
    IA32_SYSENTER_EIP: _stored(IA32_SYSENTER_EIP, canonical=True),
    IA32_MISC_ENABLE: _stored(IA32_MISC_ENABLE, MISC_ENABLE_RESET),
    IA32_PAT: Register(lambda cpu: cpu.msr.get(IA32_PAT, PAT_RESET), _write_pat, ("PAT",)),
    IA32_MTRRCAP: Register(lambda cpu: MTRR_VARIABLE_COUNT | 1 << 8 | 1 << 10, None, ("MTRR",)),
    IA32_MTRR_DEF_TYPE: Register(
        lambda cpu: cpu.msr.get(IA32_MTRR_DEF_TYPE, 0), _write_mtrr_def_type, ("MTRR",)
    ),
    **{0x200 + 2 * n: _mtrr_base(0x200 + 2 * n) for n in range(MTRR_VARIABLE_COUNT)},
    **{0x201 + 2 * n: _mtrr_mask(0x201 + 2 * n) for n in range(MTRR_VARIABLE_COUNT)},
    **{index: _mtrr_fixed(index) for index in MTRR_FIXED},
    IA32_EFER: Register(lambda cpu: cpu.efer, _write_efer, ("X64", "NX", "SYSCALL")),
    IA32_STAR: _stored(IA32_STAR)._replace(needs=("SYSCALL",)),
    IA32_LSTAR: _stored(IA32_LSTAR, canonical=True)._replace(needs=("SYSCALL",)),
    IA32_CSTAR: _stored(IA32_CSTAR, canonical=True)._replace(needs=("SYSCALL",)),
    IA32_FMASK: _stored(IA32_FMASK, writable=M32)._replace(needs=("SYSCALL",)),
    IA32_FS_BASE: _segment_base("fs"),
    IA32_GS_BASE: _segment_base("gs"),
    IA32_KERNEL_GS_BASE: _stored(IA32_KERNEL_GS_BASE, canonical=True)._replace(needs=("X64",)),
    IA32_TSC_AUX: _stored(IA32_TSC_AUX, writable=M32)._replace(needs=("RDTSCP",)),
}
