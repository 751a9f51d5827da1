"""CPUID, MSRs, time stamps, random numbers, fast system calls, hypercalls.

Source: SDM Vol. 2 for each instruction; SYSCALL and SYSRET as Intel's CPUs have them (64-bit mode only).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.exits import Hypercall
from isa.faults import GeneralProtection, InvalidOpcode
from isa.msr import (
    IA32_FMASK,
    IA32_LSTAR,
    IA32_STAR,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_EIP,
    IA32_SYSENTER_ESP,
    IA32_TSC_AUX,
    is_canonical,
    read_msr,
    tsc,
    write_msr,
)
from isa.operands import Operand
from isa.semantics.registry import insn
from isa.state import AC_BIT, CR0_PE, CR4_PCE, CR4_TSD, EFER_LMA, EFER_SCE, IF_BIT, M32, M64, RF_BIT, VM_BIT

if TYPE_CHECKING:
    from isa.cpu import Cpu

CODE64, CODE32, DATA = 0xA09B, 0xC09B, 0xC093  # fixed attributes of SYSCALL and friends
DPL3 = 3 << 5


@insn("CPUID", inline=False, called=True)
def cpuid(cpu: Cpu) -> None:
    """EAX, EBX, ECX, EDX := identification of leaf EAX, subleaf ECX"""
    cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx = cpu.cpuid(cpu, cpu.rax & M32, cpu.rcx & M32)


@insn("RDMSR", inline=False, called=True)
def rdmsr(cpu: Cpu) -> None:
    """EDX:EAX := MSR[ECX]"""
    value = read_msr(cpu, cpu.rcx & M32)
    cpu.rax = value & M32
    cpu.rdx = value >> 32


@insn("WRMSR", inline=False)
def wrmsr(cpu: Cpu) -> None:
    """MSR[ECX] := EDX:EAX"""
    write_msr(cpu, cpu.rcx & M32, (cpu.rdx & M32) << 32 | cpu.rax & M32)


@insn("RDTSC", inline=False, called=True)
def rdtsc(cpu: Cpu) -> None:
    """EDX:EAX := time-stamp counter"""
    check_tsd(cpu)
    now = tsc(cpu)
    cpu.rax = now & M32
    cpu.rdx = now >> 32


@insn("RDTSCP", inline=False, called=True)
def rdtscp(cpu: Cpu) -> None:
    """EDX:EAX := time-stamp counter; ECX := IA32_TSC_AUX"""
    rdtsc(cpu)
    cpu.rcx = cpu.msr.get(IA32_TSC_AUX, 0)


def check_tsd(cpu: Cpu) -> None:
    """CR4.TSD: #GP(0) outside ring 0."""
    if cpu.cr4 & CR4_TSD and cpu.cpl:
        raise GeneralProtection(0, f"RDTSC at CPL {cpu.cpl} with CR4.TSD")


@insn("RDPID", inline=False, called=True)
def rdpid(cpu: Cpu, dst: Operand) -> None:
    """DEST := IA32_TSC_AUX"""
    dst.value = cpu.msr.get(IA32_TSC_AUX, 0)


@insn("RDPMC", inline=False)
def rdpmc(cpu: Cpu) -> None:
    """EDX:EAX := performance counter ECX; this CPU has none"""
    if cpu.cpl and cpu.cr0 & CR0_PE and not cpu.cr4 & CR4_PCE:
        raise GeneralProtection(0, f"RDPMC at CPL {cpu.cpl} without CR4.PCE")
    raise GeneralProtection(0, f"RDPMC: there is no counter {cpu.rcx & M32:#x}")


@insn("RDRAND", "RDSEED", inline=False, called=True)
def rdrand(cpu: Cpu, dst: Operand) -> None:
    """DEST := random number; CF := 1"""
    dst.value = cpu.random64() & dst.mask
    cpu.cf = 1
    cpu.of = cpu.sf = cpu.zf = cpu.af = cpu.pf = 0


@insn("SYSCALL", inline=False)
def syscall(cpu: Cpu) -> None:
    """RCX := RIP; R11 := RFLAGS; RIP := LSTAR; CS, SS := STAR[47:32]; RFLAGS := RFLAGS AND NOT FMASK"""
    if not cpu.mode64 or not cpu.efer & EFER_SCE:
        why = f"SYSCALL in {cpu.mode_name()} mode with EFER.SCE={int(bool(cpu.efer & EFER_SCE))}"
        raise InvalidOpcode(why)
    flags = cpu.rflags() & ~(1 << RF_BIT)
    selector = cpu.msr.get(IA32_STAR, 0) >> 32 & 0xFFFC
    cpu.rcx = cpu.rip
    cpu.r11 = flags
    cpu.rip = cpu.msr.get(IA32_LSTAR, 0)
    cpu.cs.load_raw(selector, 0, M32, CODE64)
    cpu.ss.load_raw(selector + 8 & 0xFFFF, 0, M32, DATA)
    cpu.cpl = 0
    cpu.set_rflags_raw(flags & ~cpu.msr.get(IA32_FMASK, 0) | 2)
    if not cpu.tf:
        cpu.trap_cancelled = True
    cpu.update_mode()
    cpu.request_attention()


@insn("SYSRETD", inline=False, own_privilege=True)
def sysret(cpu: Cpu) -> None:
    """RIP := ECX; RFLAGS := R11; CS := STAR[63:48] OR 3 (compatibility mode); SS := STAR[63:48] + 8"""
    return_from_syscall(cpu, False)


@insn("SYSRETQ", inline=False, own_privilege=True)
def sysretq(cpu: Cpu) -> None:
    """RIP := RCX; RFLAGS := R11; CS := (STAR[63:48] + 16) OR 3 (64-bit mode); SS := STAR[63:48] + 8"""
    return_from_syscall(cpu, True)


def return_from_syscall(cpu: Cpu, to_64bit: bool) -> None:
    """The common part of both SYSRET forms."""
    if not cpu.mode64 or not cpu.efer & EFER_SCE:
        why = f"SYSRET in {cpu.mode_name()} mode with EFER.SCE={int(bool(cpu.efer & EFER_SCE))}"
        raise InvalidOpcode(why)
    if cpu.cpl:
        raise GeneralProtection(0, f"SYSRET at CPL {cpu.cpl}")
    if to_64bit and not is_canonical(cpu.rcx):
        raise GeneralProtection(0, f"SYSRET to the non-canonical RIP {cpu.rcx:#x}")
    selector = cpu.msr.get(IA32_STAR, 0) >> 48
    if to_64bit:
        cpu.rip = cpu.rcx
        cpu.cs.load_raw(selector + 16 & 0xFFFF | 3, 0, M32, CODE64 | DPL3)
    else:
        cpu.rip = cpu.rcx & M32
        cpu.cs.load_raw(selector | 3, 0, M32, CODE32 | DPL3)
    cpu.ss.load_raw(selector + 8 & 0xFFFF | 3, 0, M32, DATA | DPL3)
    cpu.cpl = 3
    cpu.set_rflags_raw(cpu.r11 & 0x3C_7FD7 | 2)
    cpu.update_mode()
    cpu.request_attention()


@insn("SYSENTER", inline=False)
def sysenter(cpu: Cpu) -> None:
    """CS:RIP := SYSENTER_CS:SYSENTER_EIP; SS:RSP := SYSENTER_CS + 8:SYSENTER_ESP; CPL := 0"""
    selector = cpu.msr.get(IA32_SYSENTER_CS, 0) & 0xFFFC
    if not cpu.cr0 & CR0_PE or not selector:
        raise GeneralProtection(0, f"SYSENTER in {cpu.mode_name()} mode with SYSENTER_CS {selector:#x}")
    long_mode = bool(cpu.efer & EFER_LMA)
    mask = M64 if long_mode else M32
    cpu.set_rflags_raw(cpu.rflags() & ~(1 << VM_BIT | 1 << IF_BIT | 1 << RF_BIT))
    cpu.cs.load_raw(selector, 0, M32, CODE64 if long_mode else CODE32)
    cpu.ss.load_raw(selector + 8 & 0xFFFF, 0, M32, DATA)
    cpu.rip = cpu.msr.get(IA32_SYSENTER_EIP, 0) & mask
    cpu.rsp = cpu.msr.get(IA32_SYSENTER_ESP, 0) & mask
    cpu.cpl = 0
    cpu.update_mode()


@insn("SYSEXITD", inline=False, own_privilege=True)
def sysexit(cpu: Cpu) -> None:
    """CS:EIP := SYSENTER_CS + 16:EDX; SS:ESP := SYSENTER_CS + 24:ECX; CPL := 3"""
    leave_sysenter(cpu, False)


@insn("SYSEXITQ", inline=False, own_privilege=True)
def sysexitq(cpu: Cpu) -> None:
    """CS:RIP := SYSENTER_CS + 32:RDX; SS:RSP := SYSENTER_CS + 40:RCX; CPL := 3"""
    leave_sysenter(cpu, True)


def leave_sysenter(cpu: Cpu, to_64bit: bool) -> None:
    """The common part of both SYSEXIT forms."""
    selector = cpu.msr.get(IA32_SYSENTER_CS, 0) & 0xFFFC
    if not cpu.cr0 & CR0_PE or cpu.cpl or not selector:
        why = f"SYSEXIT in {cpu.mode_name()} mode, CPL {cpu.cpl} and SYSENTER_CS {selector:#x}"
        raise GeneralProtection(0, why)
    if to_64bit and not (is_canonical(cpu.rcx) and is_canonical(cpu.rdx)):
        why = f"SYSEXIT to RIP {cpu.rdx:#x} with RSP {cpu.rcx:#x}, not both canonical"
        raise GeneralProtection(0, why)
    mask = M64 if to_64bit else M32
    first = selector + (32 if to_64bit else 16)
    cpu.cs.load_raw(first & 0xFFFF | 3, 0, M32, (CODE64 if to_64bit else CODE32) | DPL3)
    cpu.ss.load_raw(first + 8 & 0xFFFF | 3, 0, M32, DATA | DPL3)
    cpu.rip = cpu.rdx & mask
    cpu.rsp = cpu.rcx & mask
    cpu.cpl = 3
    cpu.update_mode()


@insn("VMCALL", "VMMCALL", inline=False, own_privilege=True)
def hypercall(cpu: Cpu) -> None:
    """RAX := the hypervisor's answer to call RAX (RDI, RSI, RDX, RCX, R8, R9); a guest leaves at every CPL"""
    mask = M64 if cpu.mode64 else M32
    args = (cpu.rdi & mask, cpu.rsi & mask, cpu.rdx & mask, cpu.rcx & mask,
            cpu.r8 if cpu.mode64 else 0, cpu.r9 if cpu.mode64 else 0)  # fmt: skip
    cpu.rax = cpu.outside(Hypercall, cpu.rax & mask, args) & mask


@insn("CLAC", inline=False, own_privilege=True)
def clac(cpu: Cpu) -> None:
    """RFLAGS.AC := 0"""
    set_ac(cpu, 0)


@insn("STAC", inline=False, own_privilege=True)
def stac(cpu: Cpu) -> None:
    """RFLAGS.AC := 1"""
    set_ac(cpu, 1)


def set_ac(cpu: Cpu, ac: int) -> None:
    """CLAC and STAC: #UD outside ring 0."""
    if cpu.cpl:
        raise InvalidOpcode(f"CLAC or STAC at CPL {cpu.cpl}")
    cpu.set_rflags(cpu.rflags() & ~(1 << AC_BIT) | ac << AC_BIT)


@insn("RSM", inline=False, own_privilege=True)
def rsm(cpu: Cpu) -> None:
    """Return from system-management mode, which this CPU never enters"""
    raise InvalidOpcode("RSM outside system-management mode")


@insn("GETSEC", inline=False)
def getsec(cpu: Cpu) -> None:
    """#UD without CR4.SMXE, which this CPU does not have"""
    raise InvalidOpcode("GETSEC with CR4.SMXE=0")
