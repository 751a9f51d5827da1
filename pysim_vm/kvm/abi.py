"""KVM's binary interface: numbers, structures, ioctl codes, the layout of the shared page. It calls nothing.

Source: Linux, include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h; names are theirs, without KVM_.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

API_VERSION: Final = 12  # frozen since Linux 2.6.22

# KVM_CHECK_EXTENSION
CAP_USER_MEMORY: Final = 3
CAP_EXT_CPUID: Final = 7
CAP_VCPU_EVENTS: Final = 41
CAP_DEBUGREGS: Final = 50
CAP_XSAVE: Final = 55
CAP_READONLY_MEM: Final = 81
CAP_IMMEDIATE_EXIT: Final = 136
CAP_X86_USER_SPACE_MSR: Final = 188
CAP_X86_MSR_FILTER: Final = 189
CAP_EXIT_ON_EMULATION_FAILURE: Final = 204
NEEDED: Final = {
    CAP_USER_MEMORY: "KVM_CAP_USER_MEMORY",
    CAP_EXT_CPUID: "KVM_CAP_EXT_CPUID",
    CAP_VCPU_EVENTS: "KVM_CAP_VCPU_EVENTS",
    CAP_DEBUGREGS: "KVM_CAP_DEBUGREGS",
    CAP_XSAVE: "KVM_CAP_XSAVE",
    CAP_IMMEDIATE_EXIT: "KVM_CAP_IMMEDIATE_EXIT",
}

# kvm_run.exit_reason
EXIT_IO: Final = 2
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_IRQ_WINDOW_OPEN: Final = 7
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_INTERNAL_ERROR: Final = 17
EXIT_X86_RDMSR: Final = 29
EXIT_X86_WRMSR: Final = 30

INTERNAL_ERROR_EMULATION: Final = 1
MSR_EXIT_REASONS: Final = 0b110  # unknown and filtered MSRs; an invalid value is #GP without an exit
MSR_FILTER_READ, MSR_FILTER_WRITE, MSR_FILTER_RANGES = 1, 2, 16
MEM_READONLY: Final = 2
VCPUEVENT_VALID_SHADOW: Final = 4
CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1  # the subleaf counts; the header spells it so

# Offsets in the page that vCPU and user space share (struct kvm_run)
REQUEST_INTERRUPT_WINDOW, IMMEDIATE_EXIT, EXIT_REASON, READY_FOR_INTERRUPT, IF_FLAG = 0, 1, 8, 12, 13
EXIT_DATA: Final = 32
IO_EXIT: Final = struct.Struct("<BBHIQ")  # direction, width, port, count, where the data is in the page
MMIO_EXIT: Final = struct.Struct("<QQIB")  # address, data, width, is_write
MMIO_DATA: Final = EXIT_DATA + 8
MSR_EXIT: Final = struct.Struct("<B7xIIQ")  # error, why, index, data
MSR_DATA: Final = EXIT_DATA + 16
ERROR_EXIT: Final = struct.Struct("<II16Q")  # suberror, number of words, words
WIDTH_FORMAT: Final = {1: "B", 2: "H", 4: "I"}


# ---- structures ------------------------------------------------------------------------------------------


class KvmSegment(ctypes.Structure):
    """A segment register with its hidden part; `limit` is in bytes whatever G says."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int
    g: int
    avl: int
    unusable: int
    _fields_ = (
        ("base", ctypes.c_uint64), ("limit", ctypes.c_uint32), ("selector", ctypes.c_uint16),
        ("type", ctypes.c_uint8), ("present", ctypes.c_uint8), ("dpl", ctypes.c_uint8),
        ("db", ctypes.c_uint8), ("s", ctypes.c_uint8), ("l", ctypes.c_uint8), ("g", ctypes.c_uint8),
        ("avl", ctypes.c_uint8), ("unusable", ctypes.c_uint8), ("padding", ctypes.c_uint8),
    )  # fmt: skip


class KvmTable(ctypes.Structure):
    """GDTR or IDTR."""

    base: int
    limit: int
    _fields_ = (("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3))


class KvmSregs(ctypes.Structure):
    """What only system software writes: segments, tables, control registers."""

    cs: KvmSegment
    ds: KvmSegment
    es: KvmSegment
    fs: KvmSegment
    gs: KvmSegment
    ss: KvmSegment
    tr: KvmSegment
    ldt: KvmSegment
    gdt: KvmTable
    idt: KvmTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: Any
    _fields_ = (
        *((name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", KvmTable), ("idt", KvmTable),
        *((name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    )  # fmt: skip


REGISTER_ORDER: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
REGISTERS: Final = struct.Struct("<18Q")  # struct kvm_regs


class KvmDebugRegs(ctypes.Structure):
    """DR0-DR3, DR6, DR7."""

    db: Any
    dr6: int
    dr7: int
    _fields_ = (
        ("db", ctypes.c_uint64 * 4), ("dr6", ctypes.c_uint64), ("dr7", ctypes.c_uint64),
        ("flags", ctypes.c_uint64), ("reserved", ctypes.c_uint64 * 9),
    )  # fmt: skip


class KvmEvents(ctypes.Structure):
    """What waits to be delivered. All zeros: nothing does, and no instruction casts an interrupt shadow."""

    shadow: int
    flags: int
    _fields_ = (
        ("exception", ctypes.c_uint8 * 8), ("interrupt", ctypes.c_uint8 * 3), ("shadow", ctypes.c_uint8),
        ("nmi", ctypes.c_uint8 * 4), ("sipi_vector", ctypes.c_uint32), ("flags", ctypes.c_uint32),
        ("smi", ctypes.c_uint8 * 4), ("triple_fault", ctypes.c_uint8), ("reserved", ctypes.c_uint8 * 26),
        ("payload_there", ctypes.c_uint8), ("payload", ctypes.c_uint64),
    )  # fmt: skip


class KvmMemoryRegion(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("gpa", ctypes.c_uint64),
        ("size", ctypes.c_uint64), ("address", ctypes.c_uint64),
    )  # fmt: skip


class KvmEnableCap(ctypes.Structure):
    _fields_ = (
        ("cap", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("args", ctypes.c_uint64 * 4),
        ("pad", ctypes.c_uint8 * 64),
    )  # fmt: skip


class KvmMsrRange(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint32), ("count", ctypes.c_uint32), ("base", ctypes.c_uint32),
        ("bitmap", ctypes.c_void_p),
    )  # fmt: skip


class KvmMsrFilter(ctypes.Structure):
    ranges: Any
    _fields_ = (("flags", ctypes.c_uint32), ("ranges", KvmMsrRange * MSR_FILTER_RANGES))


CPUID_HEAD: Final = struct.Struct("<II")  # number of entries, padding
CPUID_ENTRY: Final = struct.Struct("<10I")  # function, index, flags, eax, ebx, ecx, edx, padding
MSRS_HEAD: Final = struct.Struct("<II")
MSR_ENTRY: Final = struct.Struct("<IIQ")
XSAVE_SIZE: Final = 4096  # struct kvm_xsave: the XSAVE area in its standard format
XCRS: Final = struct.Struct("<IIIIQ368x")  # one entry of sixteen, XCR0, and padding


def _io(number: int) -> int:
    return 0xAE << 8 | number


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


GET_API_VERSION: Final = _io(0x00)
CREATE_VM: Final = _io(0x01)
CHECK_EXTENSION: Final = _io(0x03)
GET_VCPU_MMAP_SIZE: Final = _io(0x04)
CREATE_VCPU: Final = _io(0x41)
SET_USER_MEMORY_REGION: Final = _iow(0x46, ctypes.sizeof(KvmMemoryRegion))
RUN: Final = _io(0x80)
GET_REGS, SET_REGS = _ior(0x81, REGISTERS.size), _iow(0x82, REGISTERS.size)
GET_SREGS, SET_SREGS = _ior(0x83, ctypes.sizeof(KvmSregs)), _iow(0x84, ctypes.sizeof(KvmSregs))
INTERRUPT: Final = _iow(0x86, 4)
SET_MSRS: Final = _iow(0x89, MSRS_HEAD.size)
GET_MSRS: Final = 3 << 30 | MSRS_HEAD.size << 16 | _io(0x88)
SET_CPUID2: Final = _iow(0x90, CPUID_HEAD.size)
SET_VCPU_EVENTS: Final = _iow(0xA0, ctypes.sizeof(KvmEvents))
GET_DEBUGREGS: Final = _ior(0xA1, ctypes.sizeof(KvmDebugRegs))
SET_DEBUGREGS: Final = _iow(0xA2, ctypes.sizeof(KvmDebugRegs))
ENABLE_CAP: Final = _iow(0xA3, ctypes.sizeof(KvmEnableCap))
GET_XSAVE, SET_XSAVE = _ior(0xA4, XSAVE_SIZE), _iow(0xA5, XSAVE_SIZE)
SET_XCRS: Final = _iow(0xA7, XCRS.size)
X86_SET_MSR_FILTER: Final = _iow(0xC6, ctypes.sizeof(KvmMsrFilter))
