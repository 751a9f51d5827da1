"""The memory unit: segmentation, paging and the TLB, down to RAM, a device exit or a nested page fault.

Sources: SDM Vol. 3, "Protected-Mode Memory Management" and "Paging". A plain access costs one dict look-up:
`tlb_read[page]` / `tlb_write[page]` hold host offset minus linear address. Whatever is not plain RAM with the
right permission is absent from these dicts and takes the slow road, which knows every rule.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from isa.exits import ExitReason, MmioRead, MmioWrite, NestedPageFault, VmExit
from isa.faults import AlignmentCheck, Fault, GeneralProtection, PageFault, StackFault, Why
from isa.memory import EXECUTE, PAGE, PAGE_SHIFT, PHYSICAL_BITS, READ, WRITE, PhysicalMemory
from isa.state import (
    CR0_AM,
    CR0_PG,
    CR0_WP,
    CR4_DE,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    M32,
    M64,
    TYPE_CODE,
    TYPE_EXPAND_DOWN,
    TYPE_READABLE,
    TYPE_WRITABLE,
    CpuState,
    Segment,
)

ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 0, 1, 2
_MEMORY_FLAG = (READ, WRITE, EXECUTE)

# Page-table entry bits (SDM Vol. 3, "Paging")
P, RW, US, A, D, PS, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
FRAME = (1 << PHYSICAL_BITS) - 1 & -PAGE
RESERVED_PHYSICAL = (1 << 52) - (1 << PHYSICAL_BITS)  # entry bits above MAXPHYADDR
PDPTE_RESERVED = RESERVED_PHYSICAL | 0xFFF0_0000_0000_0000 | 0x1E6

# Bytes of an access -> what #AC wants its address to be a multiple of (SDM Vol. 3, "Alignment Requirements by
# Data Type"): 6 is a far pointer, 10 an extended real, 14 and 28 x87 environments
ALIGNMENT = {2: 2, 4: 4, 6: 4, 8: 8, 10: 8, 14: 2, 16: 16, 28: 4}
BUS_WIDTHS = (1, 2, 4, 8)  # bytes that one device access carries
TLB_ENTRIES = 1 << 16  # a guest may map one page at every address: beyond this, a TLB starts again

PF_PRESENT, PF_WRITE, PF_USER, PF_RESERVED, PF_FETCH = 1, 2, 4, 8, 16

Unpack = Callable[[memoryview, int], tuple[Any, ...]]
Pack = Callable[[memoryview, int, int], None]


def _wide_unpack(size: int) -> Unpack:
    return lambda view, at: (int.from_bytes(view[at : at + size], "little"),)


def _wide_pack(size: int) -> Pack:
    def pack(view: memoryview, at: int, value: int) -> None:
        view[at : at + size] = value.to_bytes(size, "little")

    return pack


_FORMATS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
UNPACK: tuple[Unpack, ...] = tuple(
    struct.Struct(_FORMATS[n]).unpack_from if n in _FORMATS else _wide_unpack(n) for n in range(65)
)
PACK: tuple[Pack, ...] = tuple(
    struct.Struct(_FORMATS[n]).pack_into if n in _FORMATS else _wide_pack(n) for n in range(65)
)
LAST_START = tuple(PAGE - n for n in range(65))  # highest page offset where n bytes still fit


class NotPlain(Exception):
    """The access is not to plain RAM with the right permission: the step engine knows what to do."""


class Tlb(dict[int, int]):
    """Linear page -> host offset minus linear address. Subscripting walks on a miss; `get` does not.

    `devices` are the pages that are not plain RAM: linear page -> guest-physical minus linear address.
    """

    __slots__ = ("devices", "unit", "write")

    def __init__(self, unit: MemoryUnit, write: bool) -> None:
        super().__init__()
        self.devices: dict[int, int] = {}
        self.unit = unit
        self.write = write

    def __missing__(self, page: int) -> int:
        return self.unit.fill_tlb(self, page)


class MemoryUnit(CpuState):
    """Loads, stores and fetches. All addresses called `linear` are past segmentation."""

    __slots__ = (
        "_tlb_sets",
        "answers",
        "code_bits",
        "cursor",
        "debug_hits",
        "exit_ip",
        "gigabyte_pages",
        "looking_ahead",
        "memory",
        "mmio_load",
        "mmio_store",
        "mode64",
        "pdptes",
        "protected",
        "pse36",
        "ram",
        "ram16",
        "ram32",
        "ram64",
        "ram_doubles",
        "stack_mask",
        "taken",
        "taken_at",
        "tlb_read",
        "tlb_system_read",
        "tlb_system_write",
        "tlb_write"
    )  # fmt: skip

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.adopt_pool()
        self.answers: list[int | Fault] = []  # what the VM answered to this instruction's exits so far
        self.cursor = 0
        # The VM's short way to a device in the middle of an instruction; an answer of None or False sends the
        # access the full way, as it always does over the end of a page. `load` and `store` ask at
        # once where the TLB knows a device page: all but the alignment is checked then. What was answered is
        # kept until the instruction (or, of a REP, the element) at `retired == taken_at` is over: should it
        # leave after all, it goes on with these answers.
        self.mmio_load: Callable[[int, int], int | None] = self.no_mmio_load
        self.mmio_store: Callable[[int, int, int], bool] = self.no_mmio_store
        self.exit_ip = -1  # address of the instruction that runs, where the short way may be taken; else -1
        self.taken: int | list[int] = 0  # one answer or all
        self.taken_at = -1
        self.pdptes = [0, 0, 0, 0]
        self.looking_ahead = False  # at code that is not executed yet: it leaves no trace in memory
        self.debug_hits = 0
        self.gigabyte_pages = True  # CPUID: PDPE1GB, PSE36
        self.pse36 = True
        self.mode64 = False
        self.protected = False
        self.code_bits = 16
        self.stack_mask = 0xFFFF
        self._tlb_sets: dict[tuple[bool, bool, bool], tuple[Tlb, Tlb]] = {}
        super().__init__()

    # ---- the TLB -----------------------------------------------------------------------------------------

    def adopt_pool(self) -> None:
        """Views of the host memory in the widths that blocks use."""
        self.ram = self.memory.view
        self.ram16, self.ram32, self.ram64 = self.ram.cast("H"), self.ram.cast("I"), self.ram.cast("Q")
        self.ram_doubles = self.ram.cast("d")

    def flush_tlb(self) -> None:
        """Forget every translation. The SDM lets a TLB forget at any time, so this serves INVLPG as well."""
        if self.ram is not self.memory.view:
            self.adopt_pool()
        for pair in self._tlb_sets.values():
            for tlb in pair:
                tlb.clear()
                tlb.devices.clear()
        self.select_tlb()

    def select_tlb(self) -> None:
        """Choose the TLB of the current privilege; call after CPL, EFLAGS.AC, CR0 or CR4 changed."""
        user = self.cpl == 3
        smap = bool(self.cr4 & CR4_SMAP) and not user
        aligned = user and bool(self.ac and self.cr0 & CR0_AM)
        self.tlb_read, self.tlb_write = self._tlb_set((user, smap and not self.ac, aligned))
        self.tlb_system_read, self.tlb_system_write = self._tlb_set((False, bool(self.cr4 & CR4_SMAP), False))

    def _tlb_set(self, key: tuple[bool, bool, bool]) -> tuple[Tlb, Tlb]:
        pair = self._tlb_sets.get(key)
        if pair is None:
            pair = self._tlb_sets[key] = (Tlb(self, False), Tlb(self, True))
        return pair

    def fill_tlb(self, tlb: Tlb, page: int) -> int:
        """Walk for a miss of the current TLB. NotPlain, and nothing else, if RAM does not answer."""
        linear = page << PAGE_SHIFT
        if page >> (64 if self.mode64 else 32) - PAGE_SHIFT:  # an effective address before it wraps around
            raise NotPlain
        if page in tlb.devices or self.dr7 & 0xFF or (self.cr0 & CR0_AM and self.ac):
            raise NotPlain
        if self.mode64 and linear + 0x8000_0000_0000 & M64 >= 1 << 48:
            raise NotPlain
        try:
            smap = bool(self.cr4 & CR4_SMAP) and not self.ac
            access = ACCESS_WRITE if tlb.write else ACCESS_READ
            gpa = self.translate(linear, access, self.cpl == 3, smap=smap)
        except (Fault, VmExit):
            raise NotPlain from None
        host = self.memory.host_page(gpa, WRITE if tlb.write else READ)
        if host is None or (tlb.write and host >> PAGE_SHIFT in self.memory.code_pages):
            raise NotPlain
        if len(tlb) >= TLB_ENTRIES:
            tlb.clear()
        tlb[page] = host - linear
        return host - linear

    def forget_writes(self) -> None:
        """Drop write translations, after a page became a code page."""
        for _, writes in self._tlb_sets.values():
            writes.clear()

    # ---- paging ------------------------------------------------------------------------------------------

    def translate(
        self, linear: int, access: int, user: bool, *, smap: bool = False, dirty: bool = True
    ) -> int:
        """Guest-physical address of `linear`; sets accessed and dirty bits. PageFault if not allowed.

        `smap`: a supervisor data access that SMAP forbids on user pages. `dirty` False: a write that is only
        checked, because something may still come between.
        """
        if not self.cr0 & CR0_PG:
            return linear & self.memory.address_mask
        if self.cr4 & CR4_PAE:
            return self._translate_wide(linear, access, user, smap, dirty)
        return self._translate_32bit(linear, access, user, smap, dirty)

    def _translate_32bit(self, linear: int, access: int, user: bool, smap: bool, dirty: bool) -> int:
        """32-bit paging, 4 KiB and (with PSE) 4 MiB pages."""
        pde_at = self.cr3 & 0xFFFF_F000 | linear >> 20 & 0xFFC
        pde = self._entry(pde_at, 4)
        if not pde & P:
            raise self._page_fault(linear, access, user, 0, (_absent, ("PDE", pde_at)))
        if pde & PS and self.cr4 & CR4_PSE:
            reserved = 1 << 21 if self.pse36 else 0x3F_E000
            if pde & reserved:
                why = _reserved, ("4 MiB PDE", pde_at, pde & reserved)
                raise self._page_fault(linear, access, user, PF_RESERVED, why)
            self._check_rights(linear, access, user, smap, pde, ((pde_at, pde),))
            self._mark(pde_at, pde, 4, A | D if access == ACCESS_WRITE and dirty else A)
            frame = pde & 0xFFC0_0000 | (pde & 0x1F_E000) << 19  # PSE-36: bits 39-32
            return (frame | linear & 0x3F_FFFF) & self.memory.address_mask
        pte_at = pde & 0xFFFF_F000 | linear >> 10 & 0xFFC
        pte = self._entry(pte_at, 4)
        if not pte & P:
            raise self._page_fault(linear, access, user, 0, (_absent, ("PTE", pte_at)))
        self._check_rights(linear, access, user, smap, pde & pte, ((pde_at, pde), (pte_at, pte)))
        self._mark(pde_at, pde, 4, A)
        self._mark(pte_at, pte, 4, A | D if access == ACCESS_WRITE and dirty else A)
        return (pte & 0xFFFF_F000 | linear & 0xFFF) & self.memory.address_mask

    def _translate_wide(self, linear: int, access: int, user: bool, smap: bool, dirty: bool) -> int:
        """PAE paging (3 levels from the PDPTE registers) and 4-level paging."""
        reserved = RESERVED_PHYSICAL | (0 if self.efer & EFER_NXE else NX)
        path: list[tuple[int, int]] = []
        rights = US | RW
        no_execute = 0
        if self.efer & EFER_LMA:
            table, shift = self.cr3 & FRAME, 39
            largest = 30 if self.gigabyte_pages else 21
        else:
            pdpte = self.pdptes[linear >> 30 & 3]
            if not pdpte & P:
                raise self._page_fault(linear, access, user, 0, (_absent_pdpte, (linear >> 30 & 3,)))
            table, shift = pdpte & FRAME, 21
            largest = 21
            reserved |= 0x7FF0_0000_0000_0000  # PAE entries: bits 62-52 are reserved
        while True:
            at = table | (linear >> shift & 0x1FF) << 3
            entry = self._entry(at, 8)
            if not entry & P:
                raise self._page_fault(linear, access, user, 0, (_absent, (_LEVEL[shift], at)))
            large = shift != 12 and bool(entry & PS)
            if entry & reserved or (large and (shift > largest or entry & (1 << shift) - 1 & ~0x1FFF)):
                bits = entry & reserved
                if large:
                    bits |= PS if shift > largest else entry & (1 << shift) - 1 & ~0x1FFF
                why = _reserved, (_LEVEL[shift], at, bits)
                raise self._page_fault(linear, access, user, PF_RESERVED, why)
            rights &= entry
            no_execute |= entry & NX
            path.append((at, entry))
            if large or shift == 12:
                break
            table, shift = entry & FRAME, shift - 9
        self._check_rights(linear, access, user, smap, rights | P | no_execute, path)
        for at, entry in path[:-1]:
            self._mark(at, entry, 8, A)
        at, entry = path[-1]
        self._mark(at, entry, 8, A | D if access == ACCESS_WRITE and dirty else A)
        offset = (1 << shift) - 1
        return (entry & FRAME & ~offset | linear & offset) & self.memory.address_mask

    def _check_rights(
        self, linear: int, access: int, user: bool, smap: bool, rights: int, path: Sequence[tuple[int, int]]
    ) -> None:
        """SDM Vol. 3, "Access Rights": `rights` are the AND of R/W and U/S and the OR of NX over the walk;
        `path` are its entries with their addresses, from the root."""
        bit, rule = 0, ""
        if user:
            if not rights & US:
                bit = US
            elif access == ACCESS_WRITE and not rights & RW:
                bit = RW
        elif rights & US:
            if access == ACCESS_FETCH and self.cr4 & CR4_SMEP:
                bit, rule = US, "CR4.SMEP=1 and"
            elif access != ACCESS_FETCH and smap:
                bit, rule = US, "CR4.SMAP=1, EFLAGS.AC=0 and"
        if not bit and access == ACCESS_WRITE and not user and not rights & RW and self.cr0 & CR0_WP:
            bit, rule = RW, "CR0.WP=1 and"
        if not bit and access == ACCESS_FETCH and rights & NX:
            bit = NX
        if bit:
            why = _refused, (bool(self.efer & EFER_LMA), bit, rule, *path)
            raise self._page_fault(linear, access, user, PF_PRESENT, why)

    def _page_fault(self, linear: int, access: int, user: bool, bits: int, why: Why) -> PageFault:
        code = bits
        if bits & PF_RESERVED:
            code |= PF_PRESENT
        if access == ACCESS_WRITE:
            code |= PF_WRITE
        if user:
            code |= PF_USER
        fetch = access == ACCESS_FETCH
        if fetch and (self.cr4 & CR4_SMEP or (self.cr4 & CR4_PAE and self.efer & EFER_NXE)):
            code |= PF_FETCH
        return PageFault(linear, code, why, fetch=fetch)

    def _entry(self, gpa: int, size: int) -> int:
        """Read a paging-structure entry from RAM; an open bus reads as ones."""
        gpa &= self.memory.address_mask
        host = self.memory.host_page(gpa, READ)
        if host is None:
            if self.memory.unclaimed_is_mmio and self.memory.region_at(gpa) is None:
                return (1 << 8 * size) - 1
            raise VmExit(NestedPageFault(gpa, READ))
        value: int = UNPACK[size](self.ram, host + (gpa & 0xFFF))[0]
        return value

    def _mark(self, gpa: int, entry: int, size: int, bits: int) -> None:
        """Set accessed and dirty bits in an entry that the walk used; NotPlain while looking ahead."""
        if entry & bits != bits:
            if self.looking_ahead:
                raise NotPlain
            gpa &= self.memory.address_mask
            host = self.memory.host_page(gpa, WRITE)
            if host is not None:  # tables in ROM keep their bits
                PACK[size](self.ram, host + (gpa & 0xFFF), entry | bits)
                if host >> 12 in self.memory.code_pages:
                    self.code_written(host + (gpa & 0xFFF), size)

    def load_pdptes(self, cr3: int) -> None:
        """PAE: load the four PDPTE registers; #GP(0) if a present one has reserved bits set."""
        entries = [self._entry((cr3 & 0xFFFF_FFE0) + 8 * n, 8) for n in range(4)]
        for n, entry in enumerate(entries):
            if entry & P and entry & PDPTE_RESERVED:
                raise GeneralProtection(0, f"reserved bit in PDPTE {n}")
        self.pdptes = entries

    # ---- loads and stores at linear addresses ----------------------------------------------------------

    def load(self, linear: int, size: int) -> int:
        """Data read at the current privilege."""
        delta = self.tlb_read.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START[size]:
            return UNPACK[size](self.ram, linear + delta)[0]  # type: ignore[no-any-return]
        delta = self.tlb_read.devices.get(linear >> 12)
        if delta is not None and not self.ac:
            value = self.mmio_load(linear + delta, size)
            if value is not None:
                return value
        return self._load_slow(linear, size, self.tlb_read, self.cpl == 3, False)

    def store(self, linear: int, size: int, value: int) -> None:
        """Data write at the current privilege; `value` fits `size` bytes."""
        delta = self.tlb_write.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START[size]:
            PACK[size](self.ram, linear + delta, value)
            return
        delta = self.tlb_write.devices.get(linear >> 12)
        if delta is not None and not self.ac and self.mmio_store(linear + delta, size, value):
            return
        self._store_slow(linear, size, value, self.tlb_read, self.tlb_write, self.cpl == 3, False)

    def load_plain(self, linear: int, size: int) -> int:
        """`load` for translated code: from plain RAM, or NotPlain."""
        delta = self.tlb_read[linear >> 12]
        first = 4096 - (linear & 0xFFF)
        if first >= size:
            return UNPACK[size](self.ram, linear + delta)[0]  # type: ignore[no-any-return]
        beyond = linear + first
        rest = beyond + self.tlb_read[beyond >> 12]
        low = int.from_bytes(self.ram[linear + delta : linear + delta + first], "little")
        return low | int.from_bytes(self.ram[rest : rest + size - first], "little") << 8 * first

    def store_plain(self, linear: int, size: int, value: int) -> None:
        """`store` for translated code, which may not change code: to plain RAM, or NotPlain."""
        first = 4096 - (linear & 0xFFF)
        if first >= size:
            delta = self.tlb_write[linear >> 12]
            PACK[size](self.ram, linear + delta, value)
            return
        beyond = linear + first
        if linear >> 12 not in self.tlb_write or beyond >> 12 not in self.tlb_write:
            raise NotPlain  # a walk sets dirty bits, and the other page may refuse
        delta = self.tlb_write[linear >> 12]
        rest = beyond + self.tlb_write[beyond >> 12]
        data = value.to_bytes(size, "little")
        self.ram[linear + delta : linear + delta + first] = data[:first]
        self.ram[rest : rest + size - first] = data[first:]

    def load_stack(self, linear: int, size: int) -> int:
        """`load` through SS: a non-canonical address is #SS(0)."""
        delta = self.tlb_read.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START[size]:
            return UNPACK[size](self.ram, linear + delta)[0]  # type: ignore[no-any-return]
        return self._load_slow(linear, size, self.tlb_read, self.cpl == 3, True)

    def store_stack(self, linear: int, size: int, value: int) -> None:
        """`store` through SS: a non-canonical address is #SS(0)."""
        delta = self.tlb_write.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START[size]:
            PACK[size](self.ram, linear + delta, value)
        else:
            self._store_slow(linear, size, value, self.tlb_read, self.tlb_write, self.cpl == 3, True)

    def load_system(self, linear: int, size: int) -> int:
        """Implicit supervisor read: descriptor tables, TSS, IDT."""
        delta = self.tlb_system_read.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START[size]:
            return UNPACK[size](self.ram, linear + delta)[0]  # type: ignore[no-any-return]
        return self._load_slow(linear, size, self.tlb_system_read, False, False)

    def store_system(self, linear: int, size: int, value: int) -> None:
        """Implicit supervisor write: descriptor tables, TSS, an inner stack."""
        delta = self.tlb_system_write.get(linear >> 12)
        if delta is not None and linear & 0xFFF <= LAST_START[size]:
            PACK[size](self.ram, linear + delta, value)
        else:
            self._store_slow(linear, size, value, self.tlb_system_read, self.tlb_system_write, False, False)

    def check_read(self, linear: int, size: int, stack: bool = False) -> None:
        """Raise what a load of `size` bytes within one page at the current privilege would raise."""
        user = self.cpl == 3
        self._check_access(linear, size, ACCESS_READ, user, stack)
        self.translate(linear, ACCESS_READ, user, smap=self._smap_blocks())

    def check_write(self, linear: int, size: int, stack: bool = False) -> None:
        """Raise what a store of `size` bytes at the current privilege would raise; store nothing."""
        self._check_access(linear, size, ACCESS_WRITE, self.cpl == 3, stack)
        smap, user = self._smap_blocks(), self.cpl == 3
        self.translate(linear, ACCESS_WRITE, user, smap=smap, dirty=False)
        if (linear & 0xFFF) + size > PAGE:
            beyond = self._wrap((linear | 0xFFF) + 1)
            self.translate(beyond, ACCESS_WRITE, user, smap=smap, dirty=False)

    def _smap_blocks(self) -> bool:
        return bool(self.cr4 & CR4_SMAP) and not self.ac

    def _check_access(self, linear: int, size: int, access: int, user: bool, stack: bool) -> None:
        """Canonical form, alignment and data breakpoints: what comes before translation."""
        if self.mode64:
            last = linear + size - 1
            if (linear + 0x8000_0000_0000 | last + 0x8000_0000_0000) & M64 >= 1 << 48 or last > M64:
                why = f"non-canonical address {linear:#x}"
                raise StackFault(0, why) if stack else GeneralProtection(0, why)
        if user and self.ac and self.cr0 & CR0_AM and linear & ALIGNMENT.get(size, 1) - 1:
            raise AlignmentCheck(0, f"{size}-byte access at {linear:#x}")
        if self.dr7 & 0xFF:
            self.match_data_breakpoints(linear, size, access == ACCESS_WRITE)

    def match_data_breakpoints(self, linear: int, size: int, write: bool) -> None:
        """Collect in `debug_hits` the DR6 bits of enabled data breakpoints that this access touches."""
        for n, address in enumerate((self.dr0, self.dr1, self.dr2, self.dr3)):
            if self.dr7 >> 2 * n & 3:
                kind = self.dr7 >> 16 + 4 * n & 3
                length = (1, 2, 8, 4)[self.dr7 >> 18 + 4 * n & 3]
                start = address & -length
                if (kind == 3 or (kind == 1 and write)) and linear < start + length and start < linear + size:
                    self.debug_hits |= 1 << n

    def match_io_breakpoints(self, port: int, size: int) -> None:
        """As `match_data_breakpoints`, for ports [port, port + size): breakpoints of kind 2, with CR4.DE."""
        for n, address in enumerate((self.dr0, self.dr1, self.dr2, self.dr3)):
            if self.dr7 >> 2 * n & 3 and self.dr7 >> 16 + 4 * n & 3 == 2 and self.cr4 & CR4_DE:
                length = (1, 2, 8, 4)[self.dr7 >> 18 + 4 * n & 3]
                start = address & -length
                if port < start + length and start < port + size:
                    self.debug_hits |= 1 << n

    def _wrap(self, linear: int) -> int:
        """Where the second page of a split access begins. Outside 64-bit mode 4 GiB wraps to 0; higher is a
        table or an inner stack of IA-32e mode."""
        return linear & M64 if self.mode64 or linear != 1 << 32 else 0

    def _load_slow(self, linear: int, size: int, tlb: Tlb, user: bool, stack: bool) -> int:
        self._check_access(linear, size, ACCESS_READ, user, stack)
        first = PAGE - (linear & 0xFFF)
        delta = tlb.devices.get(linear >> 12)
        if delta is not None and first >= size:
            if size in BUS_WIDTHS and self.memory.in_window(linear + delta, size):
                return self._device_load(linear + delta, size)
            return self._physical_load(linear + delta, size, linear, tlb)
        smap = tlb is self.tlb_system_read or self._smap_blocks()
        smap = smap and bool(self.cr4 & CR4_SMAP)
        gpa = self.translate(linear, ACCESS_READ, user, smap=smap)
        if first >= size:
            return self._physical_load(gpa, size, linear, tlb)
        beyond = self._wrap(linear + first)
        gpa2 = self.translate(beyond, ACCESS_READ, user, smap=smap)
        low = self._physical_load(gpa, first, linear, tlb)
        return low | self._physical_load(gpa2, size - first, beyond, tlb) << 8 * first

    def _store_slow(
        self, linear: int, size: int, value: int, reads: Tlb, writes: Tlb, user: bool, stack: bool
    ) -> None:
        self._check_access(linear, size, ACCESS_WRITE, user, stack)
        first = PAGE - (linear & 0xFFF)
        delta = writes.devices.get(linear >> 12)
        if delta is not None and first >= size:
            if size in BUS_WIDTHS and self.memory.in_window(linear + delta, size):
                self._device_store(linear + delta, size, value)
            else:
                self._physical_store(linear + delta, size, value, linear, reads, writes)
            return
        smap = writes is self.tlb_system_write or self._smap_blocks()
        smap = smap and bool(self.cr4 & CR4_SMAP)
        gpa = self.translate(linear, ACCESS_WRITE, user, smap=smap, dirty=first >= size)
        if first >= size:
            self._physical_store(gpa, size, value, linear, reads, writes)
            return
        beyond = self._wrap(linear + first)
        gpa2 = self.translate(beyond, ACCESS_WRITE, user, smap=smap)
        self._require_store(gpa2)  # nothing of a split store lands if its second page cannot
        self.translate(linear, ACCESS_WRITE, user, smap=smap)  # and only then is its first page dirty
        low, high = value & (1 << 8 * first) - 1, value >> 8 * first
        # RAM last: an exit on the way executes the instruction again, which may read that RAM
        last = self.memory.host_page(gpa2, WRITE) is None and not self._outside_kind(gpa, first, ACCESS_WRITE)
        if last:
            self._physical_store(gpa2, size - first, high, beyond, reads, writes)
        self._physical_store(gpa, first, low, linear, reads, writes)
        if not last:
            self._physical_store(gpa2, size - first, high, beyond, reads, writes)

    def _physical_load(self, gpa: int, size: int, linear: int, tlb: Tlb) -> int:
        host = self.memory.host_page(gpa, READ)
        if host is not None:
            if not self.dr7 & 0xFF and not (self.cr0 & CR0_AM and self.ac):
                if len(tlb) >= TLB_ENTRIES:
                    tlb.clear()
                tlb[linear >> 12] = host - (linear & -PAGE)
            value: int = UNPACK[size](self.ram, host + (gpa & 0xFFF))[0]
            return value
        _remember(tlb.devices, linear, gpa)
        return self._outside_load(gpa, size)

    def _physical_store(self, gpa: int, size: int, value: int, linear: int, reads: Tlb, writes: Tlb) -> None:
        host = self.memory.host_page(gpa, WRITE)
        if host is None:
            _remember(writes.devices, linear, gpa)
            self._outside_store(gpa, size, value)
            return
        PACK[size](self.ram, host + (gpa & 0xFFF), value)
        if host >> 12 in self.memory.code_pages:
            self.code_written(host + (gpa & 0xFFF), size)
        elif not self.dr7 & 0xFF and not (self.cr0 & CR0_AM and self.ac):
            if len(reads) >= TLB_ENTRIES or len(writes) >= TLB_ENTRIES:
                reads.clear()
                writes.clear()
            writes[linear >> 12] = reads[linear >> 12] = host - (linear & -PAGE)

    def code_written(self, host: int, size: int) -> None:
        """RAM at pool offset `host` that holds decoded instructions changed; the CPU overrides this."""

    # ---- outside of RAM ----------------------------------------------------------------------------------

    def outside(self, reason: Callable[..., ExitReason], *fields: Any) -> int:
        """First time: leave with `reason(*fields)`. After the VM's answer: hand the answer back."""
        if self.cursor < len(self.answers):
            answer = self.answers[self.cursor]
            self.cursor += 1
            if isinstance(answer, Fault):
                raise answer
            return answer
        raise VmExit(reason(*fields))

    def take(self, answer: int) -> None:
        """Keep one more answer of the short way, after the first one in `taken`."""
        if isinstance(self.taken, int):
            self.taken = [self.taken]
        self.taken.append(answer)

    def _device_load(self, gpa: int, size: int) -> int:
        """1, 2, 4 or 8 bytes from a device: the short way, or out of the guest as MmioRead."""
        value = self.mmio_load(gpa, size)
        return self.outside(MmioRead, gpa, size) & (1 << 8 * size) - 1 if value is None else value

    def _device_store(self, gpa: int, size: int, value: int) -> None:
        """1, 2, 4 or 8 bytes to a device: the short way, or out of the guest as MmioWrite."""
        if not self.mmio_store(gpa, size, value):
            self.outside(MmioWrite, gpa, size, value)

    def no_mmio_load(self, gpa: int, size: int) -> int | None:
        """The short way to a device where there is none: no answer."""
        return None

    def no_mmio_store(self, gpa: int, size: int, value: int) -> bool:
        """The short way to a device where there is none: nobody took it."""
        return False

    def _outside_kind(self, gpa: int, size: int, access: int) -> bool:
        """True: a device access. False: RAM beside a window in the same page, or a nested page fault."""
        memory = self.memory
        if memory.is_mmio(gpa, size):
            return True
        region = memory.region_at(gpa)
        if region is None:
            return memory.unclaimed_is_mmio
        if region.flags & _MEMORY_FLAG[access] and region.populated is None:
            return False
        return memory.unclaimed_is_mmio and region.populated is None and access == ACCESS_WRITE

    def _outside_load(self, gpa: int, size: int) -> int:
        if self.memory.straddles(gpa, size):
            return sum(self._outside_load(gpa + n, 1) << 8 * n for n in range(size))
        if not self._outside_kind(gpa, size, ACCESS_READ):
            if self.memory.is_plain(gpa, READ):
                return int.from_bytes(self.memory.read(gpa, size), "little")
            raise VmExit(NestedPageFault(gpa, READ))
        value = 0
        for at, part in split(gpa, size):
            value |= self._device_load(at, part) << 8 * (at - gpa)
        return value

    def _outside_store(self, gpa: int, size: int, value: int) -> None:
        if self.memory.straddles(gpa, size):
            kinds = [self._outside_kind(gpa + n, 1, ACCESS_WRITE) for n in range(size)]
            for n in sorted(range(size), key=lambda n: not kinds[n]):  # devices first, as in `_store_slow`
                self._outside_store(gpa + n, 1, value >> 8 * n & 0xFF)
            return
        if not self._outside_kind(gpa, size, ACCESS_WRITE):
            if self.memory.is_plain(gpa, WRITE):
                self.memory.write(gpa, value.to_bytes(size, "little"))
                return
            raise VmExit(NestedPageFault(gpa, WRITE))
        for at, part in split(gpa, size):
            self._device_store(at, part, value >> 8 * (at - gpa) & (1 << 8 * part) - 1)

    def _require_store(self, gpa: int) -> None:
        """Raise the nested page fault that a store to this page would take."""
        memory = self.memory
        if (
            memory.host_page(gpa, WRITE) is None
            and not self._outside_kind(gpa, 1, ACCESS_WRITE)
            and not memory.is_plain(gpa, WRITE)
        ):
            raise VmExit(NestedPageFault(gpa, WRITE))

    # ---- segmentation --------------------------------------------------------------------------------------

    def linear_address(self, segment: Segment, offset: int, size: int, write: bool) -> int:
        """Linear address of `size` bytes at segment:offset after limit and type checks. #GP(0) or #SS(0)."""
        if self.mode64:
            if segment is self.fs or segment is self.gs:
                return segment.base + offset & M64
            return offset
        if offset + size - 1 > (segment.write_last if write else segment.read_last):
            self._segment_check(segment, offset, size, write)
        return segment.base + offset & M32

    def _segment_check(self, segment: Segment, offset: int, size: int, write: bool) -> None:
        """The whole rule behind `read_last` and `write_last`."""
        if segment.null:
            raise GeneralProtection(0, f"access through null {segment.name}")
        if self.protected:  # real mode knows limits, but no types
            if write and (segment.type & TYPE_CODE or not segment.type & TYPE_WRITABLE):
                raise GeneralProtection(0, f"write through {segment.name}, which is not writable data")
            if not write and segment.type & TYPE_CODE and not segment.type & TYPE_READABLE:
                raise GeneralProtection(0, f"read through execute-only {segment.name}")
        if not segment.type & TYPE_CODE and segment.type & TYPE_EXPAND_DOWN:
            top = M32 if segment.db else 0xFFFF
            inside = offset > segment.limit and offset + size - 1 <= top
        else:
            inside = offset + size - 1 <= segment.limit
        if not inside:
            why = f"offset {offset:#x} size {size} outside {segment.name} limit {segment.limit:#x}"
            raise StackFault(0, why) if segment is self.ss else GeneralProtection(0, why)

    def read_data(self, segment: Segment, offset: int, size: int) -> int:
        """Load `size` bytes (up to 64) at segment:offset."""
        linear = self.linear_address(segment, offset, size, False)
        return self.load_stack(linear, size) if segment is self.ss else self.load(linear, size)

    def write_data(self, segment: Segment, offset: int, size: int, value: int) -> None:
        """Store `size` bytes (up to 64) at segment:offset."""
        linear = self.linear_address(segment, offset, size, True)
        if segment is self.ss:
            self.store_stack(linear, size, value)
        else:
            self.store(linear, size, value)

    def read_bytes(self, segment: Segment, offset: int, size: int) -> bytes:
        """Load any number of bytes at segment:offset, checked as one access."""
        linear = self.linear_address(segment, offset, size, False)
        mask = M64 if self.mode64 else M32
        parts = [self.load(linear + n & mask, min(64, size - n)).to_bytes(min(64, size - n), "little")
                 for n in range(0, size, 64)]  # fmt: skip
        return b"".join(parts)

    def write_bytes(self, segment: Segment, offset: int, data: bytes | Sequence[int]) -> None:
        """Store any number of bytes at segment:offset; every page is checked before the first store."""
        size = len(data)
        linear = self.linear_address(segment, offset, size, True)
        mask = M64 if self.mode64 else M32
        self.check_write(linear, size, segment is self.ss)
        for n in range(0, size, 64):
            part = bytes(data[n : n + 64])
            self.store(linear + n & mask, len(part), int.from_bytes(part, "little"))


def _remember(pages: dict[int, int], linear: int, gpa: int) -> None:
    """Keep a translation to a page that is not plain RAM."""
    if len(pages) >= TLB_ENTRIES:
        pages.clear()
    pages[linear >> 12] = gpa - linear


_LEVEL = {39: "PML4E", 30: "PDPTE", 21: "PDE", 12: "PTE"}
_BIT_NAMES = {RW: "R/W", US: "U/S", NX: "XD"}


def _absent(level: str, at: int) -> str:
    """The words of a page fault: a paging-structure entry with P = 0."""
    return f"{level} at {at:#x} has P=0"


def _absent_pdpte(number: int) -> str:
    """PAE paging takes its four PDPTEs from registers, which were loaded with CR3."""
    return f"PDPTE register {number} has P=0"


def _reserved(level: str, at: int, bits: int) -> str:
    """The words of a page fault: reserved bits that are 1."""
    return f"{level} at {at:#x} has the reserved bits {bits:#x} set"


def _refused(long: bool, bit: int, rule: str, *path: tuple[int, int]) -> str:
    """The words of a page fault: the first entry of the walk that forbids the access by `bit`; with SMEP and
    SMAP (`rule` about U/S) they all do."""
    wrong = bit if bit == NX or (bit == US and rule) else 0
    levels = ("PML4E", "PDPTE", "PDE", "PTE")[0 if long else 2 :]
    found = [(level, at) for level, (at, entry) in zip(levels, path, strict=False) if entry & bit == wrong]
    level, at = found[-1 if bit == US and rule else 0]
    lead = f"{rule} " if rule else ""
    return f"{lead}{level} at {at:#x} has {_BIT_NAMES[bit]}={1 if wrong else 0}"


def split(gpa: int, size: int) -> list[tuple[int, int]]:
    """(address, width) parts of an access as a bus carries them: 1, 2, 4 or 8 bytes each."""
    if size in BUS_WIDTHS:
        return [(gpa, size)]
    parts = []
    while size:
        width = 8 if size >= 8 else 4 if size >= 4 else 2 if size >= 2 else 1
        parts.append((gpa, width))
        gpa += width
        size -= width
    return parts
