"""A boot plan: what lies in memory and how the CPU stands before the first guest instruction.

No file format is known here and no machine is touched: the loaders make plans, the VM carries them out.
This module holds what every loader needs for that: the RAM map, the bookkeeping that refuses overlaps, the
boot GDT and the identity page tables.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pysim_vm.errors import LoadError
from pysim_vm.layout import (
    BIOS_DATA_AREA_SIZE,
    BOOT_GDT_BASE,
    BOOT_GDT_SIZE,
    BOOT_IDT_BASE,
    BOOT_IDT_LIMIT,
    BOOT_STACK_BASE,
    BOOT_STACK_TOP,
    FOUR_GIB,
    HIGH_MEMORY,
    IVT_SIZE,
    LOW_RAM_TOP,
    MIB,
    PAGE_SIZE,
    PAGE_TABLES,
    PCI_HOLE_BASE,
    VGA_WINDOW_BASE,
    VGA_WINDOW_SIZE,
)

if TYPE_CHECKING:
    from pysim_vm.symbols import SymbolTable

Mode = Literal["reset", "real", "protected", "long"]

CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_ET: Final = 1 << 4  # hard-wired to 1 since the Pentium
CR0_NE: Final = 1 << 5
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
RFLAGS_FIXED: Final = 0x2  # bit 1 reads as one; IF is clear in every boot protocol below

CODE_SELECTOR: Final = 0x10  # Linux boot.rst: __BOOT_CS
DATA_SELECTOR: Final = 0x18  # Linux boot.rst: __BOOT_DS
TASK_SELECTOR: Final = 0x20
FLAT_LIMIT: Final = 0xFFFF_FFFF
ATTRIBUTES_CODE_16: Final = 0x009B  # present, execute/read, accessed; byte granular, 16-bit
ATTRIBUTES_DATA_16: Final = 0x0093  # present, read/write, accessed
ATTRIBUTES_CODE_32: Final = 0xC09B  # the same with G and D
ATTRIBUTES_DATA_32: Final = 0xC093
ATTRIBUTES_CODE_64: Final = 0xA09B  # G and L
ATTRIBUTES_TASK_BUSY: Final = 0x008B  # 32/64-bit TSS, busy: what LTR leaves in the hidden part
ATTRIBUTES_TASK_BUSY_PAGES: Final = 0x808B  # the same with G; Firecracker's value
ATTRIBUTES_LDT: Final = 0x0082

GPR_NAMES: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
DATA_SEGMENT_NAMES: Final = ("ds", "es", "fs", "gs", "ss")

IMAGE_SIZE_MAX: Final = 2 << 30  # no guest file is larger; keeps a wrong path from filling the host's memory

_PAGE_TABLE_FLAGS: Final = 0x3  # present, writable
_LARGE_PAGE_FLAGS: Final = 0x83  # present, writable, 2 MiB page
_LARGE_PAGE_SIZE: Final = 2 * MIB
_ENTRIES_PER_TABLE: Final = 512


class Segment(NamedTuple):
    """A segment register with its hidden part.

    `limit` counts bytes whatever G says. `attributes` are bits 40-55 of the descriptor with the four limit
    bits zero: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15 (SDM volume 3, "Segment
    Descriptors").
    """

    selector: int
    base: int
    limit: int
    attributes: int


@dataclass(frozen=True, slots=True)
class CpuStart:
    """The registers of the boot processor at its first instruction.

    `regs` holds all sixteen general registers (`rax` ... `r15`) and `rflags`; `segments` holds `cs ds es fs
    gs ss`, `tr` and `ldtr`. A register that is not named here keeps its reset value. In mode "reset" the
    CPU's own reset state holds, EDX's processor signature included, and the fields repeat it (SDM volume 3,
    "Processor State After Reset").
    """

    mode: Mode
    rip: int
    regs: Mapping[str, int]
    segments: Mapping[str, Segment]
    gdt_base: int = 0
    gdt_limit: int = 0xFFFF
    idt_base: int = 0
    idt_limit: int = 0xFFFF
    cr0: int = CR0_ET
    cr3: int = 0
    cr4: int = 0
    efer: int = 0


@dataclass(frozen=True, slots=True)
class BootPlan:
    """Everything a VM needs to start a guest.

    `writes` and `roms` are (guest-physical address, bytes), ascending and disjoint; `clears` are (address,
    size) ranges that the guest expects as zeros, which fresh RAM is and RAM after a warm reset is not.
    `description` is one sentence for the user.
    """

    protocol: str
    description: str
    start: CpuStart
    writes: tuple[tuple[int, bytes], ...]
    roms: tuple[tuple[int, bytes], ...] = ()
    clears: tuple[tuple[int, int], ...] = ()
    symbols: SymbolTable | None = None

    def with_symbols(self, symbols: SymbolTable) -> BootPlan:
        """The same plan with another symbol table."""
        return replace(self, symbols=symbols)


@dataclass(frozen=True, slots=True)
class RamMap:
    """Where the machine has RAM: (base, size) ranges in bytes, ascending, disjoint and not adjacent.

    Make one with `pc` for the PC board or with `of` for the regions of a configuration.
    """

    regions: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, regions: Iterable[tuple[int, int]]) -> RamMap:
        """Sorts and joins regions. Raises LoadError for an empty, negative or overlapping one."""
        merged: list[tuple[int, int]] = []
        for base, size in sorted(regions):
            if base < 0 or size <= 0:
                raise LoadError(
                    f"RAM region {base:#x} of {size:#x} bytes is empty or negative; correct or drop it"
                )
            if merged and base < sum(merged[-1]):
                raise LoadError(
                    f"RAM region {base:#x} starts inside the region that ends at {sum(merged[-1]):#x}; "
                    "separate them"
                )
            if merged and base == sum(merged[-1]):
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((base, size))
        if not merged:
            raise LoadError("the machine has no RAM region; give it memory")
        return cls(tuple(merged))

    @classmethod
    def pc(cls, ram_size: int) -> RamMap:
        """The PC board's map of `ram_size` bytes: a hole for video memory, and one from 3 GiB to 4 GiB.

        Raises LoadError unless the size is a positive multiple of 4096.
        """
        if ram_size <= 0 or ram_size % PAGE_SIZE:
            raise LoadError(
                f"RAM size {ram_size:#x} is no positive multiple of 4096; round it to whole pages"
            )
        regions = [(0, min(ram_size, VGA_WINDOW_BASE))]
        shadow = VGA_WINDOW_BASE + VGA_WINDOW_SIZE
        if ram_size > shadow:
            regions.append((shadow, min(ram_size, PCI_HOLE_BASE) - shadow))
        if ram_size > PCI_HOLE_BASE:
            regions.append((FOUR_GIB, ram_size - PCI_HOLE_BASE))
        return cls(tuple(regions))

    def contains(self, base: int, size: int) -> bool:
        """Whether every byte of [base, base + size) is RAM."""
        return any(start <= base and base + size <= start + length for start, length in self.regions)

    def usable(self) -> tuple[tuple[int, int], ...]:
        """The ranges a guest may use as (base, size): RAM without [639 KiB, 1 MiB), which belongs to the
        BIOS."""
        ranges = []
        for base, size in self.regions:
            for start, end in (
                (base, min(base + size, LOW_RAM_TOP)),
                (max(base, HIGH_MEMORY), base + size),
            ):
                if start < end:
                    ranges.append((start, end - start))
        return tuple(ranges)

    @property
    def extended_end(self) -> int:
        """End of the RAM that starts at 1 MiB, at most 4 GiB; 1 MiB itself when there is none."""
        for base, size in self.regions:
            if base <= HIGH_MEMORY < base + size:
                return min(base + size, FOUR_GIB)
        return HIGH_MEMORY

    def __str__(self) -> str:
        return ", ".join(f"{base:#x}-{base + size - 1:#x}" for base, size in self.regions)


class Placement:
    """The memory of one plan while it is being made: who put what where. No copy of the data is made.

    `guest` names the image in error sentences. Every method raises LoadError naming both owners of an
    overlap, or the RAM there is when something lies outside it.
    """

    __slots__ = ("_bases", "_ranges", "_writes", "clears", "guest", "ram")

    def __init__(self, ram: RamMap, guest: str) -> None:
        self.ram = ram
        self.guest = guest
        self.clears: list[tuple[int, int]] = []
        self._bases: list[int] = []
        self._ranges: list[tuple[int, int, str]] = []  # base, end, owner; parallel to _bases
        self._writes: list[tuple[int, bytes]] = []

    @property
    def writes(self) -> tuple[tuple[int, bytes], ...]:
        """The writes so far, ascending by address."""
        return tuple(sorted(self._writes, key=lambda item: item[0]))

    def reserve(self, what: str, gpa: int, size: int) -> None:
        """Claims [gpa, gpa + size) without writing it."""
        if size <= 0:
            return
        if not self.ram.contains(gpa, size):
            raise LoadError(
                f"{self.guest}: {what} at {gpa:#x}-{gpa + size - 1:#x} lies outside RAM ({self.ram}); "
                f"{self._remedy(gpa + size)}"
            )
        at = bisect_left(self._bases, gpa)
        for neighbour in (at - 1, at):
            if 0 <= neighbour < len(self._ranges):
                base, end, owner = self._ranges[neighbour]
                if base < gpa + size and gpa < end:
                    raise LoadError(
                        f"{self.guest}: {what} at {gpa:#x}-{gpa + size - 1:#x} overlaps {owner} at "
                        f"{base:#x}-{end - 1:#x}; move one of them"
                    )
        self._bases.insert(at, gpa)
        self._ranges.insert(at, (gpa, gpa + size, what))

    def write(self, what: str, gpa: int, data: bytes, size: int | None = None) -> None:
        """Claims `size` bytes (the data's length when None) and writes `data` at their start; the rest is
        zeros."""
        total = len(data) if size is None else size
        self.reserve(what, gpa, total)
        if data:
            self._writes.append((gpa, data))
        if total > len(data):
            self.clears.append((gpa + len(data), total - len(data)))

    def lowest_free(self, size: int, *, align: int, low: int, high: int) -> int | None:
        """The lowest aligned address of `size` free bytes of RAM inside [low, high), or None."""
        for base, length in self.ram.regions:
            at = _align_up(max(base, low), align)
            top = min(base + length, high)
            for taken, end, _ in self._ranges:
                if at + size <= taken:
                    break
                if end > at:
                    at = _align_up(end, align)
            if at + size <= top:
                return at
        return None

    def highest_free(self, size: int, *, align: int, low: int, high: int) -> int | None:
        """The highest aligned address of `size` free bytes of RAM inside [low, high), or None."""
        for base, length in reversed(self.ram.regions):
            bottom = max(base, low)
            at = (min(base + length, high) - size) // align * align
            for taken, end, _ in reversed(self._ranges):
                if end <= at:
                    break
                if taken < at + size:
                    at = (taken - size) // align * align
            if at >= bottom:
                return at
        return None

    def _remedy(self, end: int) -> str:
        if end <= PCI_HOLE_BASE and end > self.ram.extended_end:
            return f"give the machine at least {_align_up(end, MIB) // MIB} MiB of RAM"
        return "choose another address"


def _align_up(value: int, align: int) -> int:
    return (value + align - 1) // align * align


def registers(**given: int) -> dict[str, int]:
    """All sixteen general registers and RFLAGS: the given ones, zero for the rest, RFLAGS with IF clear."""
    values = dict.fromkeys(GPR_NAMES, 0)
    values["rflags"] = RFLAGS_FIXED
    unknown = given.keys() - values.keys()
    if unknown:
        raise LoadError(f"boot register {min(unknown)} does not exist; use rax ... r15 or rflags")
    values.update(given)
    return values


def reset_start() -> CpuStart:
    """The state after RESET: the first fetch is at 0xfffffff0, 16 bytes below the top of the firmware ROM."""
    segments = _real_segments()
    segments["cs"] = Segment(0xF000, 0xFFFF0000, 0xFFFF, ATTRIBUTES_CODE_16)
    return CpuStart("reset", 0xFFF0, registers(), segments, cr0=CR0_CD | CR0_NW | CR0_ET)


def real_start(*, cs: int, ip: int, data_selector: int = 0, **regs: int) -> CpuStart:
    """Real mode at cs:ip with all data segments equal and the vector table at 0.

    `ip` may exceed 16 bits, as axvm's entry points do; the CPU then fetches beyond the segment's limit.
    """
    segments = _real_segments(data_selector)
    segments["cs"] = Segment(cs, cs << 4, 0xFFFF, ATTRIBUTES_CODE_16)
    return CpuStart("real", ip, registers(**regs), segments)


def _real_segments(data_selector: int = 0) -> dict[str, Segment]:
    data = Segment(data_selector, data_selector << 4, 0xFFFF, ATTRIBUTES_DATA_16)
    segments = dict.fromkeys(DATA_SEGMENT_NAMES, data)
    segments["tr"] = Segment(0, 0, 0xFFFF, ATTRIBUTES_TASK_BUSY)
    segments["ldtr"] = Segment(0, 0, 0xFFFF, ATTRIBUTES_LDT)
    return segments


def protected_start(placement: Placement, rip: int, *, stack: bool = False, **regs: int) -> CpuStart:
    """Flat 32-bit protected mode, paging off, interrupts off; writes the boot GDT into the plan.

    The state that multiboot, PVH and the 32-bit entry of Linux ask for. They promise no stack; `stack`
    gives one page of it, and ESP.
    """
    code = Segment(CODE_SELECTOR, 0, FLAT_LIMIT, ATTRIBUTES_CODE_32)
    task = Segment(TASK_SELECTOR, 0, 0x67, ATTRIBUTES_TASK_BUSY)
    segments, gdt_base = _write_gdt(placement, code, task)
    if stack:
        regs["rsp"] = _reserve_stack(placement)
    return CpuStart(
        "protected",
        rip,
        registers(**regs),
        segments,
        gdt_base=gdt_base,
        gdt_limit=BOOT_GDT_SIZE - 1,
        idt_base=gdt_base + BOOT_IDT_BASE - BOOT_GDT_BASE,
        idt_limit=BOOT_IDT_LIMIT,
        cr0=CR0_PE | CR0_ET,
    )


def long_start(placement: Placement, rip: int, *, sse: bool = False, **regs: int) -> CpuStart:
    """64-bit mode with the first 4 GiB mapped onto themselves; writes GDT and page tables into the plan.

    The state that the 64-bit entry of Linux asks for (boot.rst, "64-bit BOOT PROTOCOL"). `sse` also
    switches on what compiled C code takes for granted: SSE and native x87 errors. RSP is set unless given.
    """
    code = Segment(CODE_SELECTOR, 0, FLAT_LIMIT, ATTRIBUTES_CODE_64)
    task = Segment(TASK_SELECTOR, 0, FLAT_LIMIT, ATTRIBUTES_TASK_BUSY_PAGES)
    segments, gdt_base = _write_gdt(placement, code, task)
    gib_count = 4
    root = _place(placement, "the boot page tables", PAGE_TABLES, (2 + gib_count) * PAGE_SIZE, PAGE_SIZE)
    for gpa, table in build_identity_page_tables(gib_count, root):
        placement.write("the boot page tables", gpa, table)
    if "rsp" not in regs:
        regs["rsp"] = _reserve_stack(placement)
    return CpuStart(
        "long",
        rip,
        registers(**regs),
        segments,
        gdt_base=gdt_base,
        gdt_limit=BOOT_GDT_SIZE - 1,
        idt_base=gdt_base + BOOT_IDT_BASE - BOOT_GDT_BASE,
        idt_limit=BOOT_IDT_LIMIT,
        cr0=CR0_PE | CR0_ET | CR0_PG | (CR0_MP | CR0_NE if sse else 0),
        cr3=root,
        cr4=CR4_PAE | (CR4_OSFXSR | CR4_OSXMMEXCPT if sse else 0),
        efer=EFER_LME | EFER_LMA,
    )


def _reserve_stack(placement: Placement) -> int:
    """One page of stack below the page tables, or elsewhere when the guest lies there; returns its top."""
    base = _place(placement, "the boot stack", BOOT_STACK_BASE, PAGE_SIZE, PAGE_SIZE)
    placement.reserve("the boot stack", base, PAGE_SIZE)
    return base + BOOT_STACK_TOP - BOOT_STACK_BASE


def _write_gdt(placement: Placement, code: Segment, task: Segment) -> tuple[dict[str, Segment], int]:
    data = Segment(DATA_SELECTOR, 0, FLAT_LIMIT, ATTRIBUTES_DATA_32)
    size = BOOT_GDT_SIZE + BOOT_IDT_LIMIT + 1
    base = _place(placement, "the boot GDT", BOOT_GDT_BASE, size, 16)
    placement.write("the boot GDT", base, build_boot_gdt(code, data, task), size)
    segments = dict.fromkeys(DATA_SEGMENT_NAMES, data)
    segments["cs"] = code
    segments["tr"] = task
    segments["ldtr"] = Segment(0, 0, 0xFFFF, ATTRIBUTES_LDT)
    return segments, base


def _place(placement: Placement, what: str, preferred: int, size: int, align: int) -> int:
    """The preferred address, or the highest free one below 4 GiB when the guest's image lies there."""
    low = IVT_SIZE + BIOS_DATA_AREA_SIZE
    if placement.lowest_free(size, align=1, low=preferred, high=preferred + size) == preferred:
        return preferred
    for bottom, top in ((low, LOW_RAM_TOP), (HIGH_MEMORY, FOUR_GIB)):
        found = placement.highest_free(size, align=align, low=bottom, high=top)
        if found is not None:
            return found
    raise LoadError(
        f"{placement.guest}: no {size:#x} free bytes below 4 GiB for {what} (RAM: {placement.ram}); "
        "give the machine more RAM"
    )


def build_boot_gdt(code: Segment, data: Segment, task: Segment) -> bytes:
    """The boot GDT, 48 bytes: null, unused, code (0x10), data (0x18), and a 16-byte TSS descriptor (0x20)."""
    descriptors = (0, 0, descriptor(code), descriptor(data), descriptor(task), task.base >> 32)
    return struct.pack("<6Q", *descriptors)


def descriptor(segment: Segment) -> int:
    """The 8-byte segment descriptor of a register's hidden part (SDM volume 3, "Segment Descriptors")."""
    limit = segment.limit >> 12 if segment.attributes & 0x8000 else segment.limit
    return (
        (limit & 0xFFFF)
        | (segment.base & 0xFF_FFFF) << 16
        | segment.attributes << 40
        | (limit >> 16 & 0xF) << 48
        | (segment.base >> 24 & 0xFF) << 56
    )


def build_identity_page_tables(
    first_gib_count: int = 4, at: int = PAGE_TABLES
) -> tuple[tuple[int, bytes], ...]:
    """Page tables that map the first GiBs onto themselves with 2 MiB pages, supervisor, writable.

    Returns one (address, 4096 bytes) per table: the PML4 at `at`, the PDPT behind it, then one page
    directory a GiB. Raises LoadError for a count outside 1..512 or an address that is not page aligned.
    """
    if not 1 <= first_gib_count <= _ENTRIES_PER_TABLE or at % PAGE_SIZE or at < 0:
        raise LoadError(
            f"identity page tables for {first_gib_count} GiB at {at:#x} are impossible; "
            "use 1 to 512 GiB and a page-aligned address"
        )
    pdpt = at + PAGE_SIZE
    directories = [pdpt + PAGE_SIZE * (1 + gib) for gib in range(first_gib_count)]
    tables = [
        (at, _table([pdpt | _PAGE_TABLE_FLAGS])),
        (pdpt, _table([directory | _PAGE_TABLE_FLAGS for directory in directories])),
    ]
    for gib, directory in enumerate(directories):
        first = gib * _ENTRIES_PER_TABLE
        pages = range(first, first + _ENTRIES_PER_TABLE)
        tables.append((directory, _table([page * _LARGE_PAGE_SIZE | _LARGE_PAGE_FLAGS for page in pages])))
    return tuple(tables)


def _table(entries: list[int]) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(PAGE_SIZE, b"\0")
