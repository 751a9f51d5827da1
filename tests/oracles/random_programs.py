"""Random 64-bit programs and the machine they run in, for comparing the engines. It compares nothing itself.

A program is what a hostile guest could be: arithmetic of every form that blocks can hold, loops, calls and
returns, stores into its own code, accesses to every kind of page, exits; and a script of what happens to it
from outside. Its faults are answered by handlers inside the guest that go on behind the faulting instruction.
The same seed gives the same program.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from iced_x86 import Code, Encoder, Instruction, OpCodeInfo, OpCodeOperandKind, OpKind, Register

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.decode import mnemonic_names
from isa.exits import (
    Budget,
    ExitReason,
    Halt,
    Hypercall,
    IoRead,
    MmioRead,
    NestedPageFault,
    SysRegRead,
    SysRegWrite,
    TripleFault,
    Unimplemented,
)
from isa.faults import Fault, GeneralProtection
from isa.memory import EXECUTE, READ, PhysicalMemory
from isa.semantics import instruction_table
from isa.state import (
    CR0_AM,
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_FSGSBASE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_SMAP,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    GPR_NAMES,
    M64,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
    XMM_NAMES,
    YMM_HIGH_NAMES,
    FpuState,
)
from tests.isa.machine import ALL_FEATURES
from tests.isa.tables import descriptor, gate64

# ---- the map: linear page -> guest-physical page, all in the 2 MiB behind BASE ----------------------------

HIGH = 0xFFFF_FFFF_8000_0000  # the same map once more in the upper half
CODE, CODE_PAGES = 0x40_0000, 3
CODE_ALIAS = 0x41_0000  # the same bytes, writable, not executable
DATA, DATA_PAGES = 0x42_0000, 4
READ_ONLY, ABSENT, SUPERVISOR, MMIO = 0x42_4000, 0x42_5000, 0x42_6000, 0x42_7000
ROM, LAZY, DATA_GPA_ALIAS, DATA_ALIAS = 0x42_8000, 0x42_9000, 0x42_A000, 0x42_B000
STACK, STACK_PAGES = 0x43_0000, 2
KERNEL, COUNTERS, IDT, GDT, TSS = 0x44_0000, 0x44_1000, 0x44_2000, 0x44_3000, 0x44_3400
KERNEL_STACKS, PAGE_TABLE = 0x44_4000, 0x44_8000
RECOVERY = 0x45_0000  # 16 bits for every byte of code: where to go on after a fault there

PML4, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
CODE_AT = (0x1_0000, 0x1_2000, 0x1_1000)
DATA_AT = (0x2_0000, 0x2_3000, 0x2_1000, 0x2_2000)
STACK_AT, KERNEL_AT, RECOVERY_AT = 0x3_0000, 0x3_8000, 0x4_0000
RAM = 0x5_0000
ROM_GPA, LAZY_GPA, ALIAS_GPA, MMIO_GPA = 0x8_0000, 0x9_0000, 0xA_0000, 0xB_0000

P, RW, US, A, NX = 1, 2, 4, 1 << 5, 1 << 63
CODE0, DATA0, DATA3, CODE3, TSS_SELECTOR = 0x08, 0x10, 0x23, 0x2B, 0x38
TF, AC = 0x100, 0x4_0000
WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21)
FIRST_INTERRUPT, INTERRUPTS = 32, 4
LSTAR, STAR, FMASK, EFER_MSR = 0xC000_0082, 0xC000_0081, 0xC000_0084, 0xC000_0080
UNKNOWN_MSR = 0x1234

# Entries of the kernel page, at multiples of 128 bytes
FAULT_WITH_CODE, FAULT, DEBUG, INTERRUPT, SYSTEM_CALL = 0, 128, 256, 384, 512
_HANDLERS = """
        add rsp, 8
        jmp fault
        align 128
    fault:
        push rax
        mov rax, [rsp+8]
        sub rax, {code}
        cmp rax, {size:#x}
        jae lost
        movzx eax, word ptr [{recovery:#x}+rax*2]
        jmp back
    lost:
        xor eax, eax
    back:
        add rax, {code}
        mov [rsp+8], rax
        add qword ptr [{counters:#x}], 1
        pop rax
        iretq
        align 128
        dec dword ptr [{counters:#x}+8]
        jns more
        mov dword ptr [{counters:#x}+8], 7
        and qword ptr [rsp+16], -257
    more:
        iretq
        align 128
        push rcx
        mov ecx, 3
    again:
        add dword ptr [{counters:#x}+rcx*4+16], ecx
        loop again
        pop rcx
        iretq
        align 128
        inc qword ptr [{counters:#x}+64]
        cmp byte ptr [{counters:#x}+64], 0x55
        sysretq
"""


@cache
def handlers(base: int) -> bytes:
    """Code of the kernel page for programs at `base`."""
    code = CODE if not base else CODE - 0x8000_0000
    text = _HANDLERS.format(code=code, size=CODE_PAGES << 12, recovery=RECOVERY, counters=COUNTERS)
    return assemble(text, bits=64, origin=KERNEL)


# ---- what a program is ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Something from outside, `after` retired instructions since the one before."""

    after: int
    action: str  # "", "interrupt", "store", "trap", "flush", "kick", "nmi", "point"
    where: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Program:
    """Code, where its instructions start, the state it starts in, and what happens to it."""

    seed: int
    level: int
    base: int
    smap: bool
    alignment_checks: bool
    code: bytes
    starts: tuple[int, ...]
    registers: tuple[int, ...]
    flags: int
    data: bytes
    script: tuple[Event, ...]
    vectors: tuple[int, ...]
    mxcsr: int
    ymm: bool


# ---- the machine ------------------------------------------------------------------------------------------


class ObservedCpu(Cpu):
    """A CPU that keeps the stream of its faults."""

    __slots__ = ("faults",)
    faults: list[tuple[int, int, str]]

    def deliver_fault(self, fault: Fault) -> tuple[str, ...] | None:
        """Note the fault, then deliver it."""
        self.faults.append((self.retired, self.rip, str(fault)))
        return super().deliver_fault(fault)


class Machine:
    """One program on one engine."""

    def __init__(self, program: Program, use_blocks: bool, hot: int = 1) -> None:
        self.program = program
        self.exits = 0
        self.over = False
        memory = self.memory = PhysicalMemory()
        memory.add_ram(0, RAM)
        memory.add_ram(ROM_GPA, 0x1000, READ | EXECUTE, name="rom")
        self.lazy = memory.add_ram(LAZY_GPA, 0x2000, name="lazy", lazy=True)
        memory.add_ram(ALIAS_GPA, 0x4000, name="alias", host=DATA_AT[0])
        memory.set_mmio([(MMIO_GPA, 0x1000)])
        self._fill_memory()
        self.cpu = ObservedCpu(memory, ALL_FEATURES, lambda cpu, leaf, subleaf: (leaf, subleaf, 3, 4))
        self.cpu.faults = []
        self.cpu.use_blocks = use_blocks
        self.cpu.hot = hot
        self.cpu.sample_every = self.cpu.first_due = 1  # regions as soon as two blocks ran
        self.cpu.recorded = (3, 8, 24)[program.seed % 3]
        self._set_registers()

    def _fill_memory(self) -> None:
        program = self.program
        pool = self.memory.view

        def put(at: int, data: bytes) -> None:
            pool[at : at + len(data)] = data

        def put64(at: int, value: int) -> None:
            put(at, (value & M64).to_bytes(8, "little"))

        rights = P | RW | US
        put64(PML4, PDPT | rights)
        put64(PML4 + 8 * 511, PDPT | rights)
        put64(PDPT, PD | rights)
        put64(PDPT + 8 * 510, PD | rights)
        put64(PD + 8 * 2, PT | rights)
        for linear, entry in page_entries(program.level).items():
            put64(PT + 8 * (linear >> 12 & 511), entry)
        for n, at in enumerate(CODE_AT):
            put(at, program.code[n << 12 : n + 1 << 12])
        for n, at in enumerate(DATA_AT):
            put(at, program.data[n << 12 : n + 1 << 12])
        rom = self.memory.regions[1].host
        put(rom, program.data[0x800:0x1800])
        put(KERNEL_AT, handlers(program.base))
        idt, gdt, tss = (KERNEL_AT + linear - KERNEL for linear in (IDT, GDT, TSS))
        for vector in range(FIRST_INTERRUPT + INTERRUPTS):
            entry = FAULT_WITH_CODE if vector in WITH_ERROR_CODE else FAULT
            if vector in (1, 2):
                entry = DEBUG if vector == 1 else INTERRUPT
            elif vector >= FIRST_INTERRUPT:
                entry = INTERRUPT
            ist = 2 if vector >= FIRST_INTERRUPT else 3 if vector in (1, 2) else 1
            raw = gate64(0xE, CODE0, KERNEL + entry, dpl=3 if vector in (3, 4) else 0, ist=ist)
            put(idt + 16 * vector, raw.to_bytes(16, "little"))
        put64(gdt + CODE0, descriptor(0x1A, 0, flags=0xA))
        put64(gdt + DATA0, descriptor(0x12, 0))
        put64(gdt + (DATA3 & 0xF8), descriptor(0x12, 3))
        put64(gdt + (CODE3 & 0xF8), descriptor(0x1A, 3, flags=0xA))
        put64(gdt + TSS_SELECTOR, descriptor(0x0B, base=TSS, limit=0x67, flags=0))
        for n in range(4):  # RSP0 and three IST stacks
            put64(tss + (4 if n == 0 else 0x24 + 8 * (n - 1)), KERNEL_STACKS + 0x400 * (n + 1))
        recover = bytearray()
        starts = (*program.starts, 0)
        following = 0
        for offset in range(CODE_PAGES << 12):
            while following < len(starts) - 1 and starts[following] <= offset:
                following += 1
            recover += starts[following].to_bytes(2, "little")
        put(RECOVERY_AT, bytes(recover))

    def _set_registers(self) -> None:
        cpu, program = self.cpu, self.program
        cpu.cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_NE | CR0_ET | (CR0_AM if program.alignment_checks else 0)
        cpu.cr4 = CR4_PAE | CR4_FSGSBASE | CR4_OSFXSR | CR4_OSXMMEXCPT | (CR4_SMAP if program.smap else 0)
        if program.ymm:
            cpu.cr4 |= CR4_OSXSAVE
            cpu.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX
        cpu.mxcsr = program.mxcsr
        cpu.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        cpu.cr3 = PML4
        cpu.msr.update({LSTAR: KERNEL + SYSTEM_CALL, STAR: 0x1B << 48 | CODE0 << 32, FMASK: TF})
        cpu.gdtr.base, cpu.gdtr.limit = GDT, 0x4F
        cpu.idtr.base, cpu.idtr.limit = IDT, 16 * (FIRST_INTERRUPT + INTERRUPTS) - 1
        cpu.tr.load_raw(TSS_SELECTOR, TSS, 0x67, 0x8B)
        cpu.ldtr.load_null(0)
        level = program.level
        cpu.cs.load_raw(CODE3 if level else CODE0, 0, 0xFFFF_FFFF, 0xA09B | level << 5)
        for segment in (cpu.ss, cpu.ds, cpu.es, cpu.fs, cpu.gs):
            segment.load_raw(DATA3 if level else DATA0, 0, 0xFFFF_FFFF, 0xC093 | level << 5)
        cpu.cpl = level
        for name, value in zip(GPR_NAMES, program.registers, strict=True):
            setattr(cpu, name, value)
        cpu.fs.base = DATA + 0x100
        cpu.gs.base = program.base + DATA + 0x2000 & M64
        for name, value in zip((*XMM_NAMES, *YMM_HIGH_NAMES), program.vectors, strict=True):
            setattr(cpu, name, value)
        cpu.set_rflags_raw(program.flags)
        cpu.rip = program.base + CODE
        cpu.flush_tlb()
        cpu.update_mode()
        cpu.request_attention()

    # ---- running ---------------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """What the event does to the machine."""
        cpu = self.cpu
        match event.action:
            case "interrupt":
                cpu.injected.append(event.where)
            case "nmi":
                cpu.nmi_pending = True
            case "store":
                self.memory.write(event.where, event.data)
            case "trap":
                cpu.tf = 1
            case "point":  # pointers that a hot loop used on data
                cpu.r12 = cpu.rsi = event.where
                cpu.rdi = event.where + 8
            case "flush":
                cpu.flush_tlb()
            case "kick":
                cpu.kick()
        cpu.request_attention()

    def run(self, until: int) -> ExitReason:
        """To the next exit, which is answered."""
        reason = self.cpu.run(until)
        if not isinstance(reason, Budget):
            self._answer(reason)
        return reason

    def _answer(self, reason: ExitReason) -> None:
        self.exits += 1
        value = (self.exits * 0x9E37_79B9_7F4A_7C15 + self.program.seed) & M64
        match reason:
            case IoRead() | MmioRead() | Hypercall():
                self.cpu.complete(value)
            case SysRegRead() | SysRegWrite() if value >> 62 == 3:
                self.cpu.fail(GeneralProtection(0, "no such MSR"))
            case NestedPageFault(addr=addr) if LAZY_GPA <= addr < LAZY_GPA + 0x2000:
                populated = self.lazy.populated
                assert populated is not None
                page = addr - LAZY_GPA >> 12
                if populated[page]:
                    self.over = True
                populated[page] = True
            case Halt():
                self.cpu.injected.append(FIRST_INTERRUPT)
                self.cpu.request_attention()
                self.over = not self.cpu.if_
            case TripleFault() | Unimplemented() | NestedPageFault():
                self.over = True
            case _:
                self.cpu.complete(value)

    def state(self) -> dict[str, Any]:
        """Everything architectural except memory."""
        cpu = self.cpu
        made: dict[str, Any] = {name: getattr(cpu, name) for name in GPR_NAMES}
        made.update({name: getattr(cpu, name) for name in (*XMM_NAMES, *YMM_HIGH_NAMES)})
        made.update({f"x87 {name}": str(getattr(cpu.fpu, name)) for name in FpuState.__slots__})
        made.update(
            rip=cpu.rip, rflags=cpu.rflags(), cf=cpu.cf, retired=cpu.retired, cpl=cpu.cpl, cr0=cpu.cr0,
            cr2=cpu.cr2, cr3=cpu.cr3, cr4=cpu.cr4, cr8=cpu.cr8, dr6=cpu.dr6, dr7=cpu.dr7, efer=cpu.efer,
            mxcsr=cpu.mxcsr,
            cs=cpu.cs.selector, ss=cpu.ss.selector, fs=cpu.fs.base, gs=cpu.gs.base,
            shadow=cpu.shadow, halted=cpu.halted, rf=cpu.rf, msr=dict(cpu.msr),
            faults=len(cpu.faults), last_fault=cpu.faults[-1:],
            gdtr=(cpu.gdtr.base, cpu.gdtr.limit), idtr=(cpu.idtr.base, cpu.idtr.limit),
        )  # fmt: skip
        return made


def page_entries(level: int) -> dict[int, int]:
    """Linear page -> page-table entry. User pages also for level 0, which may use them without SMAP."""
    user, data = P | RW | US, P | RW | US | NX
    made: dict[int, int] = {}
    for n, at in enumerate(CODE_AT):
        made[CODE + (n << 12)] = at | user | A  # translating looks ahead, so it may set A bits early
        made[CODE_ALIAS + (n << 12)] = at | data
    for n, at in enumerate(DATA_AT):
        made[DATA + (n << 12)] = at | data
    made[READ_ONLY] = 0x2_4000 | P | US
    made[ABSENT] = 0x2_5000 | RW | US
    made[SUPERVISOR] = 0x2_6000 | P | RW
    made[MMIO] = MMIO_GPA | data
    made[ROM] = ROM_GPA | user
    made[LAZY] = LAZY_GPA | data
    made[DATA_GPA_ALIAS] = ALIAS_GPA + 0x1000 | data
    made[DATA_ALIAS] = DATA_AT[0] | user
    for n in range(STACK_PAGES):
        made[STACK + (n << 12)] = STACK_AT + (n << 12) | data
    for n in range(6):
        made[KERNEL + (n << 12)] = KERNEL_AT + (n << 12) | P | RW
        made[RECOVERY + (n << 12)] = RECOVERY_AT + (n << 12) | P
    made[PAGE_TABLE] = PT | P | RW
    return made


# ---- choosing instructions --------------------------------------------------------------------------------

_KIND = {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}
_CODE: dict[str, Any] = {name: value for name, value in vars(Code).items() if isinstance(value, int)}
_REGISTER = {name: value for name, value in vars(Register).items() if isinstance(value, int)}
_LEGACY8 = ("AL", "CL", "DL", "BL", "AH", "CH", "DH", "BH")
_IMMEDIATES = {
    "IMM8": (8, OpKind.IMMEDIATE8), "IMM16": (16, OpKind.IMMEDIATE16), "IMM32": (32, OpKind.IMMEDIATE32),
    "IMM64": (64, OpKind.IMMEDIATE64), "IMM32SEX64": (32, OpKind.IMMEDIATE32TO64),
    "IMM8SEX16": (8, OpKind.IMMEDIATE8TO16), "IMM8SEX32": (8, OpKind.IMMEDIATE8TO32),
    "IMM8SEX64": (8, OpKind.IMMEDIATE8TO64),
}  # fmt: skip
_FIXED = frozenset(("AL", "CL", "AX", "DX", "EAX", "RAX"))
_STRINGS = {"SEG_RSI": OpKind.MEMORY_SEG_RSI, "ES_RDI": OpKind.MEMORY_ESRDI}
_SIZES = ("R8", "R16", "R32", "R64")
_BYTES = {"XMM": 16, "YMM": 32}
# They would end the program's machine and with it the program
_FATAL = frozenset(("LGDT", "LIDT", "WRFSBASE", "WRGSBASE", "SWAPGS", "LMSW", "CLTS"))
# Kept out of blocks, or answered from outside: what a trace has to end at
_OTHER = (
    "PDEP_VEX", "CRC32_R32_RM32", "CPUID", "RDTSC", "PUSHFQ", "POPFQ", "ENTERQ_IMM16_IMM8", "POP_RM64",
    "LAHF", "IN_AL_IMM8", "IN_EAX_DX", "OUT_DX_AX", "OUT_IMM8_AL", "VMCALL", "INT3", "UD2", "SYSCALL",
    "CLI", "STI", "RDMSR", "WRMSR", "STAC", "CLAC", "PAUSE", "MFENCE",
    "ADDSD_XMM_XMMM64", "MOVDQU_XMM_XMMM128", "PADDD_XMM_XMMM128", "MOVQ_XMM_RM64",
    "MOVQ_RM64_XMM", "MOVUPS_XMMM128_XMM", "FNSTSW_AX", "FLD1", "HLT",
    "RDFSBASE_R64", "INVLPG_M", "XLAT_M8", "MOV_RM64_SREG", "CMPXCHG16B_M128",
)  # fmt: skip

_BRANCHES = (
    "JO", "JNO", "JB", "JAE", "JE", "JNE", "JBE", "JA", "JS", "JNS", "JP", "JNP", "JL", "JGE", "JLE", "JG",
    "JMP",
)  # fmt: skip
_COUNTER_BRANCHES = (
    "LOOP_REL8_64_RCX", "LOOPE_REL8_64_RCX", "LOOPNE_REL8_64_RCX", "LOOP_REL8_64_ECX", "JRCXZ_REL8_64",
    "JECXZ_REL8_64",
)  # fmt: skip
_SPECIAL_PAGES = (
    READ_ONLY, ABSENT, SUPERVISOR, MMIO, MMIO, ROM, LAZY, DATA_GPA_ALIAS, DATA_ALIAS, STACK - 0x1000,
    CODE_ALIAS,
)  # fmt: skip

RSP, RBP, RSI, RDI, POINTER, SECOND, COUNTER = 4, 5, 6, 7, 12, 13, 14  # register numbers with a role


def register_name(number: int, bits: int, rex: bool = True) -> str:
    """iced's name of a general register; without `rex`, byte registers 4-7 are AH CH DH BH."""
    if bits == 8 and number < 8 and not rex:
        return _LEGACY8[number]
    if number >= 8:
        return f"R{number}" + {64: "", 32: "D", 16: "W", 8: "L"}[bits]
    short = GPR_NAMES[number][1:].upper()
    if bits == 8:
        return _LEGACY8[number] if number < 4 else short + "L"
    return {64: "R", 32: "E", 16: ""}[bits] + short


@cache
def inlineable_forms() -> tuple[tuple[int, ...], ...]:
    """Form numbers of 64-bit mode that a block may hold, grouped by mnemonic, branches left out."""
    table = instruction_table()
    groups: dict[str, list[int]] = {}
    for name, code in sorted(_CODE.items()):
        if name == "INVALID":
            continue
        info: Any = OpCodeInfo(code)
        mnemonic = mnemonic_names()[info.mnemonic]
        definition = table.get(name) or table.get(mnemonic)
        if definition is None or not definition.inline or not info.mode64 or mnemonic in _FATAL:
            continue
        if any(word in name for word in ("KNC", "XOP", "486")) or not info.is_instruction:
            continue
        kinds = [_KIND[info.op_kind(n)] for n in range(info.op_count)]
        if all(_known(kind) for kind in kinds) and mnemonic not in ("JMP", "CALL", "RET", "IN", "OUT"):
            groups.setdefault(mnemonic, []).append(code)
    return tuple(tuple(codes) for codes in groups.values())


@cache
def vector_forms() -> tuple[tuple[int, ...], ...]:
    """Form numbers of 64-bit mode with XMM or YMM registers that a block may hold, grouped by mnemonic."""
    table = instruction_table()
    groups: dict[str, list[int]] = {}
    for name, code in sorted(_CODE.items()):
        if name == "INVALID" or name.startswith(("EVEX_", "MVEX_", "VEX_KNC")):
            continue
        info: Any = OpCodeInfo(code)
        mnemonic = mnemonic_names()[info.mnemonic]
        definition = table.get(name) or table.get(mnemonic)
        if definition is None or not definition.inline or not info.mode64:
            continue
        kinds = [_KIND[info.op_kind(n)] for n in range(info.op_count)]
        sizes = {kind.partition("_")[0] for kind in kinds}
        if sizes & {"XMM", "YMM"} and all(_known_other(kind) for kind in kinds):
            groups.setdefault(mnemonic, []).append(code)
    return tuple(tuple(codes) for codes in groups.values())


@cache
def called_forms() -> tuple[tuple[int, ...], ...]:
    """Form numbers of 64-bit mode that a block calls because they are no statements, grouped by mnemonic."""
    table = instruction_table()
    groups: dict[str, list[int]] = {}
    for name, code in sorted(_CODE.items()):
        info: Any = OpCodeInfo(code)
        mnemonic = mnemonic_names()[info.mnemonic]
        definition = table.get(name) or table.get(mnemonic)
        if definition is None or definition.inline or not definition.callable or not info.mode64:
            continue
        kinds = [_KIND[info.op_kind(n)] for n in range(info.op_count)]
        if all(_known_other(kind) or kind in ("ST0", "STI_OPCODE") for kind in kinds):
            groups.setdefault(mnemonic, []).append(code)
    return tuple(tuple(codes) for codes in groups.values())


# What programs are made of most often
_COMMON_VECTORS = (
    "MOVSD_XMM_XMMM64", "MOVSD_XMMM64_XMM", "MOVSS_XMM_XMMM32", "MOVAPD_XMM_XMMM128", "MOVUPD_XMM_XMMM128",
    "MOVUPS_XMMM128_XMM", "MOVAPS_XMM_XMMM128", "MOVDQU_XMM_XMMM128", "MOVDQA_XMMM128_XMM",
    "MOVQ_XMM_XMMM64", "MOVQ_XMMM64_XMM", "MOVHPD_XMM_M64", "MOVLPD_M64_XMM", "UNPCKLPD_XMM_XMMM128",
    "SHUFPD_XMM_XMMM128_IMM8", "ADDSD_XMM_XMMM64", "SUBSD_XMM_XMMM64", "MULSD_XMM_XMMM64",
    "DIVSD_XMM_XMMM64", "SQRTSD_XMM_XMMM64", "MINSD_XMM_XMMM64", "MAXSD_XMM_XMMM64", "ADDPD_XMM_XMMM128",
    "MULPD_XMM_XMMM128", "SUBPD_XMM_XMMM128", "DIVPD_XMM_XMMM128", "SQRTPD_XMM_XMMM128",
    "MAXPD_XMM_XMMM128", "COMISD_XMM_XMMM64", "UCOMISD_XMM_XMMM64", "CVTSI2SD_XMM_RM32",
    "CVTSI2SD_XMM_RM64", "CVTTSD2SI_R32_XMMM64", "CVTSD2SI_R64_XMMM64", "CVTSD2SS_XMM_XMMM64",
    "CVTSS2SD_XMM_XMMM32", "ADDSS_XMM_XMMM32", "MULSS_XMM_XMMM32", "PXOR_XMM_XMMM128", "XORPD_XMM_XMMM128",
    "ANDPD_XMM_XMMM128", "PADDD_XMM_XMMM128", "PCMPEQB_XMM_XMMM128", "PMOVMSKB_R32_XMM",
    "VEX_VADDSD_XMM_XMM_XMMM64", "VEX_VMULPD_XMM_XMM_XMMM128", "VEX_VMOVUPD_XMM_XMMM128",
    "VEX_VMOVDQU_YMM_YMMM256", "VEX_VMOVDQU_YMMM256_YMM", "VEX_VPCMPEQB_YMM_YMM_YMMM256",
)  # fmt: skip


@cache
def common_vector_forms() -> tuple[tuple[int, ...], ...]:
    """The vector forms that compilers use most, each a group."""
    return tuple((_CODE[name],) for name in sorted(_COMMON_VECTORS))


_SPECIAL_DOUBLES = (0, 1 << 63, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0x7FF0_0000_0000_0001, 1,
                    0x000F_FFFF_FFFF_FFFF, 1 << 52, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0_0000)  # fmt: skip


def quadword(rng: random.Random) -> int:
    """64 bits that are a double of some sort, two singles, or anything."""
    kind = rng.randrange(12)
    if kind < 4:
        return int(struct.unpack("<Q", struct.pack("<d", float(rng.randrange(-40, 40))))[0])
    if kind < 7:
        return int(struct.unpack("<Q", struct.pack("<d", rng.uniform(-4.0, 4.0)))[0])
    if kind < 9:
        pair = rng.uniform(-4.0, 4.0), float(rng.randrange(9))
        return int(struct.unpack("<Q", struct.pack("<2f", *pair))[0])
    if kind == 9:
        return rng.choice(_SPECIAL_DOUBLES)
    return rng.getrandbits(64)


def _known(kind: str) -> bool:
    size, _, rest = kind.partition("_")
    return (
        kind in _FIXED or kind in _IMMEDIATES or kind in _STRINGS
        or kind in ("IMM8_CONST_1", "MEM", "MEM_OFFS", "SEG_RBX_AL")
        or (size in _SIZES and rest in ("OR_MEM", "REG", "OPCODE", "RM", "VVVV"))
    )  # fmt: skip


def edge_value(rng: random.Random, bits: int) -> int:
    """A `bits`-wide number, often one where carries, signs and overflows happen."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice((0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 0x7F, 0x80, 0xFF)) & (1 << bits) - 1
    if kind == 1:
        return (1 << bits - 1) - rng.randrange(2)
    if kind == 2:
        return (1 << bits) - 1 - rng.randrange(3)
    if kind == 3:
        return 1 << rng.randrange(bits)
    return rng.getrandbits(bits)


@dataclass(slots=True)
class Item:
    """One instruction; `target` is the number of the item it jumps to, takes the address of or patches."""

    instruction: Any
    target: int | None = None
    kind: str = ""  # "branch", "address" or "patch"
    offset: int = 0
    raw: bytes = b""


class Builder:
    """Writes one program."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.seed = seed
        self.level = rng.choice((0, 3))
        self.base = HIGH if rng.random() < 0.25 else 0
        self.smap = self.level == 0 and rng.random() < 0.15
        self.patches = rng.random() < 0.35
        self.wild = rng.choice((0.0, 0.05, 0.2, 0.5))  # how often an access goes where it should not
        self.items: list[Item] = []
        self.groups = inlineable_forms()
        if rng.random() < 0.5:  # a program with few different instructions meets itself more often
            self.groups = tuple(rng.sample(self.groups, rng.randrange(4, 20)))
        own = random.Random(f"vectors of {seed}")
        self.vector_share = own.choice((0.0, 0.0, 0.3, 0.6, 0.95))
        self.vector_groups = own.choice((common_vector_forms(), vector_forms()))
        if own.random() < 0.6:
            self.vector_groups = tuple(own.sample(self.vector_groups, own.randrange(4, 14)))
        self.vector_registers = own.choice((2, 4, 16))
        self.ymm = own.random() < 0.6
        calls = random.Random(f"calls of {seed}")
        self.called_share = calls.choice((0.0, 0.0, 0.0, 0.2, 0.6))
        self.called_groups = called_forms()
        if calls.random() < 0.6:
            self.called_groups = tuple(calls.sample(self.called_groups, calls.randrange(3, 12)))
        self.mxcsr = own.choice((0x1F80, 0x1F80, 0x1F80, 0x1FA0, 0x1FA0, 0x1FBF, 0x9FC0, 0x5F80, 0x1F00))

    def build(self) -> Program:
        """The program and its script."""
        rng = self.rng
        length = rng.choice((6, 12, 25, 60, 120))
        functions = rng.randrange(3)
        body = length * (functions + 1)
        heads = [0] + [length * (n + 1) for n in range(functions)]
        while len(self.items) < body:
            part = len(self.items) // length
            start, end = part * length, (part + 1) * length
            if len(self.items) == end - 1:
                self._end(part)
                continue
            self._item(start, end, heads)
        code, starts = self._lay_out()
        flags = rng.getrandbits(12) & 0xCD5 | 0x202 | (3 << 12 if rng.random() < 0.7 else 0)
        if rng.random() < 0.1 or (self.smap and rng.random() < 0.7):
            flags |= AC
        registers = [edge_value(rng, 64) for _ in GPR_NAMES]
        registers[RSP] = (
            STACK + 0x1000 + 8 * rng.randrange(-8, 64) + (rng.randrange(8) if rng.random() < 0.1 else 0)
        )
        registers[RBP] = STACK + 0x1800
        registers[RSI], registers[RDI] = self._data(), self._data()
        registers[POINTER], registers[SECOND] = DATA + 0x1800, DATA + 0x2FF8
        registers[COUNTER] = 5
        aligned, data, script = rng.random() < 0.1, rng.randbytes(DATA_PAGES << 12), self._script(starts)
        vectors = [n * 0x0123_4567_89AB_CDEF_0011 for n in range(16)] + [0] * 16
        if self.vector_share:
            vectors = [quadword(rng) | quadword(rng) << 64 for _ in range(32)]
            data = b"".join(quadword(rng).to_bytes(8, "little") for _ in range(DATA_PAGES << 9))
        return Program(
            self.seed, self.level, self.base, self.smap, aligned, code, starts, tuple(registers),
            flags, data, tuple(script), tuple(vectors), self.mxcsr, self.ymm,
        )  # fmt: skip

    # ---- items -----------------------------------------------------------------------------------------

    def _item(self, start: int, end: int, heads: list[int]) -> None:
        rng = self.rng
        here = len(self.items)
        choice = rng.random()
        if choice < 0.11:
            self._branch(rng.randrange(start, end))
        elif choice < 0.15:
            self._loop(start, end)
        elif choice < 0.18 and here < heads[-1]:
            self._call(rng.choice(heads))
        elif choice < 0.22:
            self._pointer()
        elif choice < 0.27:
            self._other()
        elif choice < 0.29:
            self._string()
        elif choice < 0.30:
            self._indirect(rng.randrange(start, end))
        elif choice < 0.34 and self.patches:
            self._patch(rng.randrange(start, end) if rng.random() < 0.6 else here + rng.randrange(1, 3))
        elif choice < 0.35 and self.level == 0 and not self.patches:
            self._remap()
        elif self.called_share and rng.random() < self.called_share:
            self._called()
        elif self.vector_share and rng.random() < self.vector_share:
            self._vector()
        else:
            self._form(rng.choice(rng.choice(self.groups)))

    def _add(self, instruction: Any, target: int | None = None, kind: str = "", offset: int = 0) -> None:
        self.items.append(Item(instruction, target, kind, offset))

    def _text(self, text: str) -> None:
        """Instructions spelled out; none of them refers to its own address."""
        for line in text.split(";"):
            item = Item(None)
            item.raw = _assembled(line.strip())
            self.items.append(item)

    def _end(self, part: int) -> None:
        rng = self.rng
        if part == 0:
            self._add(Instruction.create_branch(Code.JMP_REL32_64, 0), 0, "branch")
        else:
            self._text(rng.choice(("ret", "ret", "ret", "ret 8", "ret 0")))

    def _branch(self, target: int) -> None:
        name = self.rng.choice(_BRANCHES)
        self._add(Instruction.create_branch(_CODE[f"{name}_REL32_64"], 0), target, "branch")

    def _loop(self, start: int, end: int) -> None:
        """A counted loop back over a few items, or forward by one of the counter branches."""
        rng = self.rng
        here = len(self.items)
        back = max(start, here - rng.randrange(1, 12))
        kind = rng.randrange(4)
        if kind == 0:
            name = rng.choice(_COUNTER_BRANCHES)
            self._add(Instruction.create_branch(_CODE[name], 0), rng.choice((back, here + 1)), "branch")
        elif kind == 1:
            self._text(f"mov ecx, {rng.randrange(1, 40)}")
        elif kind == 2:
            self._text(f"mov r14d, {rng.randrange(1, 60)}")
        else:
            self._text(rng.choice(("dec r14d", "sub r14d, 1", "dec r14", "add r14b, 255", "dec r14w")))
            name = rng.choice(("JNE", "JNS", "JG"))
            self._add(Instruction.create_branch(_CODE[f"{name}_REL32_64"], 0), back, "branch")

    def _call(self, target: int) -> None:
        self._add(Instruction.create_branch(Code.CALL_REL32_64, 0), target, "branch")

    def _indirect(self, target: int) -> None:
        """A computed jump or call."""
        self._text("mov r11d, 0")
        self.items[-1] = Item(_lea_rip("R11"), target, "address")
        self._text(self.rng.choice(("jmp r11", "call r11", "push r11; ret", "mov [rsp-8], r11; jmp [rsp-8]")))

    def _pointer(self) -> None:
        """Give the pointer registers a useful value again."""
        rng = self.rng
        match rng.randrange(6):
            case 0:
                self._text(f"mov r12d, {self._data():#x}")
            case 1:
                self._text(f"mov r13d, {self._data():#x}")
            case 2:
                self._text(f"mov esi, {self._data():#x}; mov edi, {self._data():#x}")
                if self.patches and rng.random() < 0.2:
                    self._text(f"mov r12d, {CODE + rng.randrange(0x300):#x}")
            case 3:
                self._text(f"mov esp, {STACK + 0x1000 + 8 * rng.randrange(-100, 100):#x}")
            case 4:
                self._text(f"mov ebp, {STACK + 0x1000 + 8 * rng.randrange(-4, 100):#x}")
            case 5:
                self._text(rng.choice(("and ecx, 255", "movzx ebx, bl", "and edx, 0x78", "shr rax, 52")))

    def _vector(self) -> None:
        """A vector instruction; seldom one that changes what they do."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.02:
            control = rng.choice((0x1F80, 0x1FA0, 0x1F9F, 0x1FBF, 0x9FC0, 0x3F80, 0x7FA0, 0x1000, 0x1F20))
            place = f"dword ptr [{DATA + 8 * rng.randrange(0x200):#x}]"
            self._text(f"mov {place}, {control:#x}; ldmxcsr {place}")
        elif choice < 0.03:
            self._text(f"stmxcsr dword ptr [{DATA + 8 * rng.randrange(0x200):#x}]")
        elif choice < 0.04 and self.level == 0:
            self._text(rng.choice(("mov rax, cr0; or al, 8; mov cr0, rax", "clts", "clts")))
        elif choice < 0.05 and self.ymm:
            self._text(rng.choice(("vzeroupper", "vzeroall")))
        else:
            self._form(rng.choice(rng.choice(self.vector_groups)))

    def _called(self) -> None:
        """An instruction of x87, of the system or of the newer extensions; at times one that frees registers
        or masks errors."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.06:
            self._text(rng.choice(("fninit", "fninit", "emms", "fnclex")))
        elif choice < 0.1:
            self._text("ffree st(0)")
        else:
            self._form(rng.choice(rng.choice(self.called_groups)))

    def _string(self) -> None:
        rng = self.rng
        name = rng.choice(("movs", "stos", "lods", "cmps", "scas"))
        text = name + rng.choice("bwdq")
        if rng.random() < 0.6:
            prefix = rng.choice(("repe", "repne")) if name in ("cmps", "scas") else "rep"
            text = f"mov ecx, {rng.choice((0, 1, 3, 9, 50))}; {prefix} {text}"
        if rng.random() < 0.3:
            text = f"{rng.choice(('cld', 'std'))}; {text}"
        self._text(text)

    def _other(self) -> None:
        rng = self.rng
        name = rng.choice(_OTHER)
        if name == "RDMSR":
            self._text(f"mov ecx, {rng.choice((UNKNOWN_MSR, LSTAR, 0xC000_0100)):#x}; rdmsr")
        elif name == "WRMSR":
            self._text(f"mov ecx, {UNKNOWN_MSR:#x}; wrmsr")
        elif name == "POPFQ":
            flags = rng.getrandbits(22) & 0x24_4ED5 | (TF if rng.random() < 0.2 else 0) | (3 << 12)
            if rng.random() < 0.9:
                flags &= ~AC
            self._text(f"push {flags:#x}; popfq")
        elif name == "HLT":
            self._text("sti; hlt" if rng.random() < 0.5 else "nop")
        elif name == "CLI":
            self._text(rng.choice(("cli", "sti")))
        elif name == "INVLPG_M":
            self._text(f"invlpg [{self._data():#x}]")
        elif name == "RDFSBASE_R64":
            base = f"mov edx, {self._data():#x}; wrfsbase rdx"
            self._text(rng.choice(("rdfsbase rax", "rdgsbase rcx", base, base.replace("fs", "gs"))))
        elif name in _CODE and all(_known_other(kind) for kind in _kinds(_CODE[name])):
            self._form(_CODE[name])
        else:
            self._text("nop")

    def _patch(self, target: int) -> None:
        """A store into the last byte of another instruction: often its immediate."""
        rng = self.rng
        kind = rng.randrange(4)
        alias = rng.random() < 0.4
        text = {0: "mov byte ptr [0x400000], {v}", 1: "xor byte ptr [0x400000], {v}",
                2: "inc byte ptr [0x400000]", 3: "mov dword ptr [0x400000], 0x90909090"}[kind]  # fmt: skip
        raw = _assembled(text.format(v=rng.choice((1, 4, 0x3C, 0x40, 0x7F, rng.getrandbits(7)))))
        item = Item(None, target, "patch", CODE_ALIAS - CODE if alias else 0, raw)
        if kind == 3:
            item.offset -= 3
        self.items.append(item)

    def _remap(self) -> None:
        """Change a right of a data page and forget its translation."""
        rng = self.rng
        page = DATA + (rng.randrange(0, 9) << 12)
        entry = PAGE_TABLE + 8 * (page >> 12 & 511)
        bit = rng.choice((1, 2, 0x1000, 0x2000))
        self._text(f"xor qword ptr [{entry:#x}], {bit}; invlpg [{page:#x}]")

    # ---- forms -------------------------------------------------------------------------------------------

    def _form(self, code: Any) -> None:
        """One instruction of a form; nothing where the draw has no encoding."""
        rng = self.rng
        instruction: Any = Instruction()
        instruction.code = code
        info: Any = OpCodeInfo(code)
        rex = rng.random() < 0.7
        for n in range(info.op_count):
            self._operand(instruction, n, _KIND[info.op_kind(n)], rex, info)
        if info.can_use_lock_prefix and instruction.op0_kind == OpKind.MEMORY and rng.random() < 0.3:
            instruction.has_lock_prefix = True
        if _encode(instruction, CODE):
            self._add(instruction)

    def _operand(self, instruction: Any, n: int, kind: str, rex: bool, info: Any) -> None:
        rng = self.rng
        size, _, rest = kind.partition("_")
        if kind in _FIXED or kind == "ST0":
            _set_register(instruction, n, kind)
        elif kind == "STI_OPCODE":
            _set_register(instruction, n, f"ST{rng.randrange(8)}")
        elif kind in _STRINGS:
            instruction.set_op_kind(n, _STRINGS[kind])
        elif kind == "SEG_RBX_AL":
            instruction.set_op_kind(n, OpKind.MEMORY)
            instruction.memory_base, instruction.memory_index = Register.RBX, Register.AL
        elif kind == "MEM_OFFS":
            instruction.set_op_kind(n, OpKind.MEMORY)
            instruction.memory_displ_size = 8
            instruction.memory_displacement = self._address(8)
        elif kind == "MEM" or (rest == "OR_MEM" and rng.random() < 0.5):
            self._memory(instruction, n, _BYTES.get(size, int(size[1:]) // 8 if size in _SIZES else 8))
        elif size in _SIZES:
            _set_register(instruction, n, register_name(self._register(n), int(size[1:]), rex))
        elif size in ("XMM", "YMM", "MM"):
            count = 8 if size == "MM" else self.vector_registers
            _set_register(instruction, n, f"{size}{rng.randrange(count)}")
        elif kind == "SEG":
            _set_register(instruction, n, rng.choice(("DS", "ES", "FS")))
        elif kind == "IMM8_CONST_1":
            instruction.set_op_kind(n, OpKind.IMMEDIATE8)
            instruction.set_immediate_i64(n, 1)
        else:
            bits, op_kind = _IMMEDIATES[kind]
            instruction.set_op_kind(n, op_kind)
            value = edge_value(rng, bits)
            if bits == 64:
                instruction.set_immediate_u64(n, value)
            else:
                instruction.set_immediate_i64(
                    n, value - (value >> bits - 1 << bits) if "SEX" in kind else value
                )

    def _register(self, n: int) -> int:
        """A register; seldom one whose value something rests on."""
        rng = self.rng
        number = rng.choice((0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 15, 0, 1, 2, 3))
        if rng.random() < 0.04 or (n and rng.random() < 0.2):
            number = rng.choice((4, 12, 13, 14))
        if number in (6, 7) and n == 0 and rng.random() < 0.8:
            number = 0
        return number

    def _memory(self, instruction: Any, n: int, size: int) -> None:
        rng = self.rng
        instruction.set_op_kind(n, OpKind.MEMORY)
        choice = rng.random()
        instruction.memory_displ_size = 8
        displacement = rng.choice((0, 0, size, -size, rng.randrange(-16, 16), rng.randrange(-0x900, 0x900)))
        base, index = "", ""
        if self.vector_share and rng.random() < self.vector_share:  # values that programs meet again
            displacement, instruction.memory_displ_size = DATA + 32 * rng.randrange(n * 60 + 4), 4
        elif choice < 0.30:
            displacement, instruction.memory_displ_size = self._address(size), 4
        elif choice < 0.42:
            base, displacement = "RIP", self._address(size) + self.base
        elif choice < 0.70:
            base = rng.choice(("R12", "R12", "R13", "RSI", "RDI"))
            if size > 8 and rng.random() < 0.7:
                base, displacement = "R12", rng.randrange(-0x40, 0x40) * size
        elif choice < 0.80:
            base, index = rng.choice(("R12", "RSI")), rng.choice(("RCX", "RAX", "RDX", "R14"))
        elif choice < 0.88:
            base, displacement = rng.choice(("RSP", "RBP")), 8 * rng.randrange(-4, 8)
        elif choice < 0.93:
            base = rng.choice(("R12D", "ESI", "EDI"))
        elif choice < 0.98:
            instruction.segment_prefix = rng.choice((Register.FS, Register.GS))
            displacement, instruction.memory_displ_size = rng.randrange(0, 0x1800), 4
            base = rng.choice(("", "", "RCX"))
        else:
            base = register_name(self._register(1), 64)
        if base and base != "RIP" and displacement == 0 and base not in ("R12", "RSP", "RBP", "R13"):
            instruction.memory_displ_size = 0
        if base:
            instruction.memory_base = _REGISTER[base]
        if index:
            instruction.memory_index = _REGISTER[index]
            instruction.memory_index_scale = rng.choice((1, 2, 4, 8))
        instruction.memory_displacement = displacement & M64

    def _data(self) -> int:
        return self._address(8, plain=self.rng.random() < 0.5)

    def _address(self, size: int, plain: bool = False) -> int:
        """A linear address for `size` bytes."""
        rng = self.rng
        choice = rng.random()
        if not plain and choice < self.wild:
            page = rng.choice((*_SPECIAL_PAGES, CODE + rng.randrange(CODE_PAGES) * 0x1000))
            if page in (CODE, CODE_ALIAS) and not self.patches:
                page = DATA
            return page + rng.choice((0, 8, 0xFF8, rng.randrange(0x1000)))
        end = DATA + (DATA_PAGES << 12)
        if choice > 0.93:
            return (
                DATA + (rng.randrange(1, DATA_PAGES + (self.wild > 0.1)) << 12) - rng.randrange(1, size + 1)
            )
        if choice > 0.8:
            return rng.randrange(DATA, end - 16)
        if choice > 0.5:
            return DATA + 0x1800 + 8 * rng.randrange(8)
        return rng.randrange(DATA, end - 16) & -size

    # ---- layout ------------------------------------------------------------------------------------------

    def _lay_out(self) -> tuple[bytes, tuple[int, ...]]:
        """Bytes of all items. The sizes are known from a first pass; short branches that miss go nowhere."""
        rng = self.rng
        items = self.items
        at = 0 if rng.random() < 0.5 else 0x1000 - rng.randrange(0x80)
        first = self.base + CODE & M64
        lead = b"\xe9" + (at - 5).to_bytes(4, "little") if at >= 5 else b""
        at = at if lead else 0
        starts = []
        room = (CODE_PAGES << 12) - 32
        for item in items:
            starts.append(at)
            raw = item.raw or _encode(item.instruction, first + at)
            if item.kind == "branch":
                item.instruction.near_branch64 = first + at
                raw = _encode(item.instruction, first + at)
            at += len(raw)
        assert at < room
        ends = [*starts[1:], at]
        image = bytearray(b"\xcc" * (CODE_PAGES << 12))
        image[: len(lead)] = lead
        for n, item in enumerate(items):
            ip = first + starts[n]
            target = (item.target or 0) % len(items)
            raw = item.raw
            if item.kind == "branch":
                item.instruction.near_branch64 = first + starts[target] & M64
                raw = _encode(item.instruction, ip)
                if len(raw) != ends[n] - starts[n]:
                    item.instruction.near_branch64 = first + ends[n] & M64
                    raw = _encode(item.instruction, ip)
            elif item.kind == "address":
                item.instruction.memory_displacement = first + starts[target] & M64
                raw = _encode(item.instruction, ip)
            elif item.kind == "patch":
                where = CODE + item.offset + ends[target] - 1
                raw = raw.replace(bytes.fromhex("00004000"), where.to_bytes(4, "little"))
            elif not raw:
                raw = _encode(item.instruction, ip)
            assert len(raw) == ends[n] - starts[n], (item, raw.hex())
            image[starts[n] : ends[n]] = raw
        image[at : at + 5] = b"\xe9" + (-(at + 5) & 0xFFFF_FFFF).to_bytes(4, "little")
        return bytes(image), (*starts, at)

    def _script(self, starts: tuple[int, ...]) -> list[Event]:
        rng = self.rng
        events: list[Event] = []
        pace = rng.choice((3, 30, 300))
        total = 0
        limit = rng.choice((400, 1500, 4000))
        while total < limit and len(events) < 120:
            after = rng.choice((1, 2, rng.randrange(1, 2 * pace), rng.randrange(1, 2 * pace), pace * 3))
            total += after
            choice = rng.random()
            event = Event(after, "")
            if choice < 0.25:
                event = Event(after, "interrupt", FIRST_INTERRUPT + rng.randrange(INTERRUPTS))
            elif choice < 0.27:
                event = Event(after, "trap")
            elif choice < 0.32:
                event = Event(after, "flush")
            elif choice < 0.35:
                event = Event(after, "kick")
            elif choice < 0.37:
                event = Event(after, "nmi")
            elif choice < 0.40 and (self.patches or self.wild):
                place = CODE + rng.choice(starts) if self.patches else rng.choice(_SPECIAL_PAGES[:-1])
                event = Event(after, "point", place + (rng.randrange(-8, 8) if rng.random() < 0.5 else 0))
            elif choice < 0.42:
                event = Event(after, "store", rng.choice(DATA_AT) + rng.randrange(0xF00), rng.randbytes(8))
            elif choice < 0.46 and self.patches:
                start = rng.choice(starts)
                at = CODE_AT[start >> 12] + (start & 0xFF0)
                event = Event(after, "store", at, rng.choice((b"\x90", rng.randbytes(1), b"\x90" * 8)))
            events.append(event)
        return events


def _kinds(code: int) -> list[str]:
    info: Any = OpCodeInfo(code)  # type: ignore[arg-type]
    return [_KIND[info.op_kind(n)] for n in range(info.op_count)]


def _known_other(kind: str) -> bool:
    return _known(kind) or kind.partition("_")[0] in ("XMM", "YMM", "MM", "SEG")


def _set_register(instruction: Any, n: int, name: str) -> None:
    instruction.set_op_kind(n, OpKind.REGISTER)
    instruction.set_op_register(n, _REGISTER[name])


def _lea_rip(register: str) -> Any:
    instruction: Any = Instruction()
    instruction.code = Code.LEA_R64_M
    _set_register(instruction, 0, register)
    instruction.op1_kind = OpKind.MEMORY
    instruction.memory_base = Register.RIP
    instruction.memory_displ_size = 8
    instruction.memory_displacement = CODE
    return instruction


def _encode(instruction: Any, ip: int) -> bytes:
    """Its bytes; none where it cannot be encoded there."""
    encoder = Encoder(64)
    try:
        encoder.encode(instruction, ip & M64)
    except ValueError:
        return b""
    return bytes(encoder.take_buffer())


@cache
def _assembled(text: str) -> bytes:
    return assemble(text, bits=64, origin=CODE)


def random_program(seed: int) -> Program:
    """The program of a seed."""
    return Builder(seed).build()
