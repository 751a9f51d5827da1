"""Architectural state of one CPU: registers, flags, segments, tables, MSRs. It executes nothing."""

from __future__ import annotations

M16 = 0xFFFF
M32 = 0xFFFF_FFFF
M64 = 0xFFFF_FFFF_FFFF_FFFF

GPR_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
             "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
XMM_NAMES = tuple(f"xmm{n}" for n in range(16))
YMM_HIGH_NAMES = tuple(f"ymmh{n}" for n in range(16))
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")

# CR0 (SDM Vol. 3, "Control Registers")
CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_AM = 1 << 18
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31
# CR4
CR4_VME = 1 << 0
CR4_PVI = 1 << 1
CR4_TSD = 1 << 2
CR4_DE = 1 << 3
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_MCE = 1 << 6
CR4_PGE = 1 << 7
CR4_PCE = 1 << 8
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_UMIP = 1 << 11
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17
CR4_OSXSAVE = 1 << 18
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
# XCR0: the states that XSAVE manages and the OS has enabled
XCR0_X87 = 1 << 0
XCR0_SSE = 1 << 1
XCR0_AVX = 1 << 2
# IA32_EFER
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

# Bit positions in EFLAGS
CF_BIT, PF_BIT, AF_BIT, ZF_BIT, SF_BIT, TF_BIT, IF_BIT, DF_BIT, OF_BIT = 0, 2, 4, 6, 7, 8, 9, 10, 11
IOPL_SHIFT, NT_BIT, RF_BIT, VM_BIT, AC_BIT, VIF_BIT, VIP_BIT, ID_BIT = 12, 14, 16, 17, 18, 19, 20, 21
RFLAGS_FIXED = 0x2

# Interrupt shadow: what the next instruction boundary holds back
NO_SHADOW = 0
STI_SHADOW = 1  # maskable interrupts
MOV_SS_SHADOW = 2  # maskable interrupts, NMI and debug traps

# Segment types (SDM Vol. 3, "Code- and Data-Segment Descriptor Types", "System Descriptor Types")
TYPE_ACCESSED = 1
TYPE_WRITABLE = 2  # data
TYPE_READABLE = 2  # code
TYPE_EXPAND_DOWN = 4  # data
TYPE_CONFORMING = 4  # code
TYPE_CODE = 8
SYS_TSS16_AVAILABLE, SYS_LDT, SYS_TSS16_BUSY, SYS_CALL_GATE16, SYS_TASK_GATE = 1, 2, 3, 4, 5
SYS_INTERRUPT_GATE16, SYS_TRAP_GATE16 = 6, 7
SYS_TSS_AVAILABLE, SYS_TSS_BUSY, SYS_CALL_GATE, SYS_INTERRUPT_GATE, SYS_TRAP_GATE = 9, 11, 12, 14, 15


class Segment:
    """A segment register with its hidden part. `limit` is in bytes, already scaled by G.

    `read_last` / `write_last` are the last byte offsets that a plain read / write may touch, or -1 where the
    full check has to decide (null, not readable, expand-down).
    """

    __slots__ = ("avl", "base", "db", "dpl", "g", "l", "limit", "name", "null", "present", "read_last", "s",
                 "selector", "type", "write_last")  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.load_raw(0, 0, 0xFFFF, 0x93)

    def load_raw(self, selector: int, base: int, limit: int, attributes: int, *, null: bool = False) -> None:
        """Set everything at once; `attributes` packs descriptor bits 40-47 and 52-55 (as 0xA09B)."""
        self.selector = selector
        self.base = base
        self.limit = limit
        self.type = attributes & 15
        self.s = attributes >> 4 & 1
        self.dpl = attributes >> 5 & 3
        self.present = attributes >> 7 & 1
        self.avl = attributes >> 12 & 1
        self.l = attributes >> 13 & 1
        self.db = attributes >> 14 & 1
        self.g = attributes >> 15 & 1
        self.null = null
        self.update_bounds()

    @property
    def attributes(self) -> int:
        """Descriptor bits 40-47 and 52-55, packed as in `load_raw`."""
        return (
            self.type | self.s << 4 | self.dpl << 5 | self.present << 7
            | self.avl << 12 | self.l << 13 | self.db << 14 | self.g << 15
        )  # fmt: skip

    def update_bounds(self) -> None:
        """Recompute `read_last` and `write_last` after a field changed."""
        self.read_last = self.write_last = -1
        if self.null:
            return
        if self.type & TYPE_CODE:
            if self.type & TYPE_READABLE:
                self.read_last = self.limit
        elif not self.type & TYPE_EXPAND_DOWN:
            self.read_last = self.limit
            if self.type & TYPE_WRITABLE:
                self.write_last = self.limit

    def load_descriptor(self, selector: int, raw: int) -> None:
        """Set from the 8 descriptor bytes `raw` (a little-endian integer)."""
        limit = raw & 0xFFFF | raw >> 32 & 0xF_0000
        if raw >> 55 & 1:
            limit = limit << 12 | 0xFFF
        base = raw >> 16 & 0xFF_FFFF | raw >> 32 & 0xFF00_0000
        self.load_raw(selector, base, limit, raw >> 40 & 0xF0FF)

    def load_null(self, selector: int) -> None:
        """A null selector: every access faults (outside 64-bit mode). The old base and limit stay."""
        self.selector = selector
        self.null = True
        self.update_bounds()

    def load_real(self, selector: int) -> None:
        """Real mode: base := selector * 16; limit and rights stay, which is what makes "unreal" mode."""
        self.selector = selector
        self.base = selector << 4
        self.null = False
        self.type = 3
        self.s = 1
        self.present = 1
        self.update_bounds()

    def load_v86(self, selector: int) -> None:
        """Virtual-8086 mode: base := selector * 16, limit 0xFFFF, DPL 3, read/write."""
        self.load_raw(selector, selector << 4, 0xFFFF, 0xF3)


class TableRegister:
    """GDTR or IDTR."""

    __slots__ = ("base", "limit")

    def __init__(self) -> None:
        self.base = 0
        self.limit = 0xFFFF


class CpuState:
    """Every register of the CPU, by its manual name in lower case.

    While an instruction executes, `rip` is the address of the *next* one, as the manual's pseudo code has
    it; a fault or an exit puts it back. Arithmetic flags are kept one by one, as truth values.
    """

    __slots__ = (
        *GPR_NAMES, "rip",
        "cf", "pf", "af", "zf", "sf", "of", "df",
        "tf", "if_", "iopl", "nt", "rf", "vm", "ac", "vif", "vip", "id_",
        *SEGMENT_NAMES, "ldtr", "tr", "gdtr", "idtr", "segments",
        "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0",
        "dr0", "dr1", "dr2", "dr3", "dr6", "dr7",
        *XMM_NAMES, *YMM_HIGH_NAMES, "mxcsr", "fpu",
        "msr", "cpl",
        "shadow", "nmi_blocked", "halted", "retired",
    )  # fmt: skip

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    xmm0: int
    xmm1: int
    xmm2: int
    xmm3: int
    xmm4: int
    xmm5: int
    xmm6: int
    xmm7: int
    xmm8: int
    xmm9: int
    xmm10: int
    xmm11: int
    xmm12: int
    xmm13: int
    xmm14: int
    xmm15: int
    ymmh0: int
    ymmh1: int
    ymmh2: int
    ymmh3: int
    ymmh4: int
    ymmh5: int
    ymmh6: int
    ymmh7: int
    ymmh8: int
    ymmh9: int
    ymmh10: int
    ymmh11: int
    ymmh12: int
    ymmh13: int
    ymmh14: int
    ymmh15: int

    def __init__(self) -> None:
        self.es, self.cs, self.ss, self.ds, self.fs, self.gs = (Segment(name) for name in SEGMENT_NAMES)
        self.segments = (self.es, self.cs, self.ss, self.ds, self.fs, self.gs)
        self.ldtr = Segment("ldtr")
        self.tr = Segment("tr")
        self.gdtr = TableRegister()
        self.idtr = TableRegister()
        self.msr: dict[int, int] = {}
        self.retired = 0
        self.fpu = FpuState()
        self.power_on()

    def power_on(self) -> None:
        """State after RESET (SDM Vol. 3, "Processor State After Reset")."""
        for name in (*GPR_NAMES, *XMM_NAMES, *YMM_HIGH_NAMES):
            setattr(self, name, 0)
        self.rdx = 0x06F1  # family 6, model 15, stepping 1: CPUID.1:EAX (SDM: "000n06xxH")
        self.rip = 0xFFF0
        self.set_rflags_raw(RFLAGS_FIXED)
        for segment in self.segments:
            segment.load_raw(0, 0, 0xFFFF, 0x93)
        self.cs.load_raw(0xF000, 0xFFFF_0000, 0xFFFF, 0x93)
        self.ldtr.load_raw(0, 0, 0xFFFF, 0x82)
        self.tr.load_raw(0, 0, 0xFFFF, 0x8B)
        self.gdtr.base, self.gdtr.limit = 0, 0xFFFF
        self.idtr.base, self.idtr.limit = 0, 0xFFFF
        self.cr0 = CR0_ET | CR0_NW | CR0_CD
        self.cr2 = self.cr3 = self.cr4 = self.cr8 = 0
        self.efer = 0
        self.xcr0 = 1
        self.dr0 = self.dr1 = self.dr2 = self.dr3 = 0
        self.dr6 = 0xFFFF_0FF0
        self.dr7 = 0x400
        self.mxcsr = 0x1F80
        self.fpu.power_on()
        self.msr.clear()
        self.cpl = 0
        self.shadow = NO_SHADOW
        self.nmi_blocked = False
        self.halted = False

    def rflags(self) -> int:
        """RFLAGS as a number, RF and VM included."""
        return (
            RFLAGS_FIXED
            | bool(self.cf) | bool(self.pf) << PF_BIT | bool(self.af) << AF_BIT | bool(self.zf) << ZF_BIT
            | bool(self.sf) << SF_BIT | self.tf << TF_BIT | self.if_ << IF_BIT | bool(self.df) << DF_BIT
            | bool(self.of) << OF_BIT | self.iopl << IOPL_SHIFT | self.nt << NT_BIT | self.rf << RF_BIT
            | self.vm << VM_BIT | self.ac << AC_BIT | self.vif << VIF_BIT | self.vip << VIP_BIT
            | self.id_ << ID_BIT
        )  # fmt: skip

    def set_rflags_raw(self, value: int) -> None:
        """Set every flag without a check and without telling the engine (see `Cpu.set_rflags`)."""
        self.cf = value & 1
        self.pf = value >> PF_BIT & 1
        self.af = value >> AF_BIT & 1
        self.zf = value >> ZF_BIT & 1
        self.sf = value >> SF_BIT & 1
        self.tf = value >> TF_BIT & 1
        self.if_ = value >> IF_BIT & 1
        self.df = value >> DF_BIT & 1
        self.of = value >> OF_BIT & 1
        self.iopl = value >> IOPL_SHIFT & 3
        self.nt = value >> NT_BIT & 1
        self.rf = value >> RF_BIT & 1
        self.vm = value >> VM_BIT & 1
        self.ac = value >> AC_BIT & 1
        self.vif = value >> VIF_BIT & 1
        self.vip = value >> VIP_BIT & 1
        self.id_ = value >> ID_BIT & 1


class FpuState:
    """The x87 unit's registers. `regs` are the eight physical 80-bit registers R0-R7 as integers.

    `tags` hold 1 where a register is empty. ST(i) is `regs[(top + i) & 7]`; MMi is the low 64 bits of Ri.
    """

    __slots__ = ("control", "cs", "dp", "ds", "ip", "opcode", "regs", "status", "tags", "top")

    def __init__(self) -> None:
        self.power_on()

    def power_on(self) -> None:
        """State after RESET; FNINIT differs in the control and tag words."""
        self.regs = [0] * 8
        self.tags = [0] * 8
        self.top = 0
        self.control = 0x40
        self.status = 0
        self.ip = self.dp = self.cs = self.ds = self.opcode = 0

    def init(self) -> None:
        """FNINIT: control 0x37F, everything empty; register contents stay."""
        self.tags = [1] * 8
        self.top = 0
        self.control = 0x37F
        self.status = 0
        self.ip = self.dp = self.cs = self.ds = self.opcode = 0

    def status_word(self) -> int:
        """FSW with TOP in bits 11-13."""
        return self.status & ~0x3800 | self.top << 11
