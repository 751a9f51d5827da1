"""The machine as the models see it: registers, segments and RAM as plain data. It executes nothing.

Nothing here or in the `model_*` rooms comes from `isa/`: numbers and names are the manual's. A model changes
a
`Machine` as the manual's pseudo code says, and raises `Fault` where that says #XX; what it changed before
stays changed, so a model checks everything first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

M16, M32, M64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
PLAIN = (*GPRS, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7",
         "cpl", "xmm0", "mxcsr", "cr8", "xcr0", "halted")  # fmt: skip

# SDM Vol. 3, "Control Registers" and "IA32_EFER"
PE, TS, NE, ET, WP, AM, PG = 1 << 0, 1 << 3, 1 << 5, 1 << 4, 1 << 16, 1 << 18, 1 << 31
VME, PVI, DE, PSE, PAE, PGE, OSFXSR, OSXMMEXCPT, SMEP, SMAP = (
    1 << n for n in (0, 1, 3, 4, 5, 7, 9, 10, 20, 21)
)
SCE, LME, LMA, NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

# SDM Vol. 1, "EFLAGS Register"
CF, PF, AF, ZF, SF, TF, IF, DF, OF = (1 << n for n in (0, 2, 4, 6, 7, 8, 9, 10, 11))
IOPL, NT, RF, VM, AC, VIF, VIP, ID = 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21
ARITHMETIC = CF | PF | AF | ZF | SF | OF

# SDM Vol. 3, "Protected-Mode Exceptions and Interrupts", the table of vectors
DE_VECTOR, DB, NMI, BP, OV, BR, UD, NM, DFAULT = 0, 1, 2, 3, 4, 5, 6, 7, 8
TSF, NP, SS, GP, PFAULT, MF, ACF, MC, XM = 10, 11, 12, 13, 14, 16, 17, 18, 19
HAS_ERROR_CODE = frozenset((DFAULT, TSF, NP, SS, GP, PFAULT, ACF))
VECTOR_NAMES = {0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
                10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
                19: "#XM"}  # fmt: skip


class Fault(Exception):
    """An exception of the CPU: vector, error code (None where none is pushed), CR2 of a page fault.

    `trap`: the return address is that of the next instruction. `dr6` are status bits of a debug exception.
    """

    def __init__(
        self, vector: int, error: int | None = None, *, cr2: int = 0, dr6: int = 0, trap: bool = False
    ) -> None:
        super().__init__(vector, error)
        self.vector = vector
        self.error = error
        self.cr2 = cr2
        self.dr6 = dr6
        self.trap = trap

    @property
    def name(self) -> str:
        """As the manual writes it: #GP(58), the selector in hex."""
        code = "" if self.error is None else f"({self.error:x})"
        return VECTOR_NAMES.get(self.vector, f"INT {self.vector}") + code


class Shutdown(Exception):
    """A third exception: the CPU stops (SDM Vol. 3, "Double Fault Exception (#DF)")."""

    name = "shutdown"


class Endless(Exception):
    """A benign exception whose delivery raises it again: the CPU never comes out of it."""

    name = "endless"


class Seg(NamedTuple):
    """A segment register with its hidden part. `attributes` are bits 40-47 and 52-55 of the descriptor,
    `limit` is in bytes."""

    selector: int
    base: int
    limit: int
    attributes: int
    null: bool = False

    @property
    def type(self) -> int:
        """Bits 40-43."""
        return self.attributes & 15

    @property
    def dpl(self) -> int:
        """Bits 45-46."""
        return self.attributes >> 5 & 3

    @property
    def is_code(self) -> bool:
        """S and the executable bit."""
        return self.attributes & 0x18 == 0x18

    @property
    def conforming(self) -> bool:
        """A conforming code segment."""
        return self.attributes & 0x1C == 0x1C

    @property
    def l(self) -> int:  # noqa: E743  (the manual's name)
        """Bit 53: 64-bit code."""
        return self.attributes >> 13 & 1

    @property
    def db(self) -> int:
        """Bit 54: 32-bit code, stack or upper bound."""
        return self.attributes >> 14 & 1


class Machine:
    """One processor and its RAM. Copying is cheap: segments are values, only RAM is copied byte for byte."""

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
    r11: int
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    dr0: int
    dr2: int
    dr6: int
    dr7: int
    cpl: int
    xmm0: int
    mxcsr: int
    cr8: int
    xcr0: int
    halted: bool  # by HLT or MWAIT
    x87_error: bool  # an unmasked x87 exception is pending
    es: Seg
    cs: Seg
    ss: Seg
    ds: Seg
    fs: Seg
    gs: Seg
    ldtr: Seg
    tr: Seg
    gdtr: tuple[int, int]
    idtr: tuple[int, int]
    pdptes: tuple[int, int, int, int]
    mem: bytearray
    retired: int
    nmi_blocked: bool
    pse36: bool  # CPUID: PSE-36, PDPE1GB
    pages_1g: bool
    # What asked the machine around the CPU, in its order: ("in", port, size), ("out", port, size, value),
    # ("rdmsr", index), ("wrmsr", index, value), ("hypercall", number, arguments), ("random",)
    ports: tuple[Any, ...]
    msrs: dict[int, int]  # those that were written or read as something else than after RESET
    log: list[tuple[int, int, bool]] | None  # data references (linear, size, write), if anyone wants them
    flat: int  # below this, linear addresses are physical ones and may be used for what they are used for

    def __init__(self, ram: int) -> None:
        for name in PLAIN:
            setattr(self, name, 0)
        flat = Seg(0, 0, M32, 0xC093)
        for name in (*SEGMENTS, "ldtr", "tr"):
            setattr(self, name, flat)
        self.rflags = 2
        self.cr0 = ET
        self.mxcsr = 0x1F80
        self.xcr0 = 1
        self.halted = False
        self.x87_error = False
        self.dr6, self.dr7 = 0xFFFF_0FF0, 0x400
        self.gdtr = self.idtr = (0, 0)
        self.pdptes = (0, 0, 0, 0)
        self.mem = bytearray(ram)
        self.retired = 0
        self.nmi_blocked = False
        self.pse36 = self.pages_1g = True
        self.flat = 0
        self.ports = ()
        self.log = None
        self.msrs = {}

    def copy(self) -> Machine:
        """A second machine in the same state."""
        other = Machine.__new__(Machine)
        other.__dict__.update(self.__dict__)
        other.mem = bytearray(self.mem)
        return other

    def set(self, **values: Any) -> Machine:
        """Assign several registers."""
        self.__dict__.update(values)
        return self

    # ---- modes (SDM Vol. 3, "Modes of Operation") ---------------------------------------------------------

    @property
    def long(self) -> bool:
        """IA-32e mode."""
        return bool(self.efer & LMA)

    @property
    def mode64(self) -> bool:
        """64-bit mode."""
        return bool(self.efer & LMA and self.cs.l)

    @property
    def v86(self) -> bool:
        """Virtual-8086 mode."""
        return bool(self.rflags & VM)

    @property
    def protected(self) -> bool:
        """Protected mode, not virtual-8086 mode."""
        return bool(self.cr0 & PE) and not self.rflags & VM

    @property
    def stack_mask(self) -> int:
        """The bits of RSP that a stack access uses."""
        return M64 if self.mode64 else M32 if self.ss.db else M16

    # ---- RAM -----------------------------------------------------------------------------------------------

    def get(self, at: int, size: int) -> int:
        """Little-endian bytes at a physical address."""
        return int.from_bytes(self.mem[at : at + size], "little")

    def put(self, at: int, size: int, value: int) -> None:
        """Store little-endian bytes at a physical address."""
        self.mem[at : at + size] = value.to_bytes(size, "little")


def canonical(linear: int) -> bool:
    """SDM Vol. 1, "Canonical Addressing": bits 63-47 are alike."""
    return linear >> 47 in (0, 0x1_FFFF)


def low(register: int, value: int, mask: int) -> int:
    """A register after a write of its low part: 32 bits clear the upper half, 16 and 8 keep it."""
    return value & mask if mask > M16 else register & ~mask | value & mask
