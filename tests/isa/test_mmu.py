"""The memory unit against an independent model of paging; the rules of segments, splits and the TLB."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from isa.cpu import Cpu
from isa.cpuid import FEATURE_BITS
from isa.exits import MmioRead, MmioWrite, NestedPageFault, VmExit
from isa.faults import AlignmentCheck, Fault, GeneralProtection, PageFault, StackFault
from isa.memory import EXECUTE, READ, WRITE
from isa.mmu import ACCESS_FETCH, ACCESS_READ, ACCESS_WRITE, TLB_ENTRIES
from isa.state import (
    CR0_AM,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
)
from tests.isa.machine import ALL_FEATURES, make_cpu, run_one

P, RW, US, A, D, PS, G, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
RIGHTS = P | RW | US
TABLES = 0x10000  # PML4 or page directory, then one page per lower level
LEVELS = {"32-bit": (22, 12), "PAE": (21, 12), "4-level": (39, 30, 21, 12)}
FEATURES = ALL_FEATURES | frozenset(FEATURE_BITS)  # iced has no names for PSE36, PDPE1GB, PGE ...


def paged_cpu(paging: str, **registers: int) -> Cpu:
    """A CPU with that kind of paging switched on and empty tables at TABLES."""
    cpu = make_cpu(64 if paging == "4-level" else 32, None, FEATURES, **registers)
    cpu.cr0 |= CR0_PE | CR0_PG
    cpu.cr3 = TABLES
    cpu.cr4 |= {"32-bit": CR4_PSE, "PAE": CR4_PAE, "4-level": CR4_PAE}[paging]
    if paging == "PAE":
        cpu.pdptes = [TABLES | P] * 4
    cpu.flush_tlb()
    cpu.update_mode()
    return cpu


def put(cpu: Cpu, address: int, value: int, size: int = 8) -> None:
    """Store into RAM behind the CPU's back."""
    cpu.memory.write(address, value.to_bytes(size, "little"))


def get(cpu: Cpu, address: int, size: int = 8) -> int:
    """Read RAM behind the CPU's back."""
    return int.from_bytes(cpu.memory.read(address, size), "little")


def map_page(cpu: Cpu, linear: int, frame: int, rights: int = RIGHTS) -> int:
    """Map a 4 KiB page in 4-level tables whose upper levels allow everything; the address of its PTE."""
    table = TABLES
    for level, shift in enumerate((39, 30, 21)):
        put(cpu, table + (linear >> shift & 511) * 8, TABLES + (level + 1) * 0x1000 | RIGHTS)
        table = TABLES + (level + 1) * 0x1000
    at = table + (linear >> 12 & 511) * 8
    put(cpu, at, frame | rights)
    return at


# ---- the walk against a model --------------------------------------------------------------------------


@dataclass(slots=True)
class Setting:
    """What decides about an access beside the entries."""

    paging: str
    user: bool
    access: int
    wp: bool
    smep: bool
    smap: bool
    ac: bool
    nxe: bool
    pse: bool
    pse36: bool
    gigabyte: bool


@dataclass(slots=True)
class Expected:
    """What the model says: a fault's error code, an exit's address, or a physical address."""

    error: int | None = None
    exit: int | None = None
    gpa: int = -1
    marked: tuple[tuple[int, int], ...] = ()  # (address, entry afterwards)


def reserved_bits(s: Setting, shift: int, large: bool) -> set[int]:
    """Bit numbers that must be zero in an entry (SDM Vol. 3, "Paging", the tables of entry formats)."""
    if s.paging == "32-bit":
        if not large:
            return set()
        return {21} if s.pse36 else set(range(13, 22))
    bits = set(range(48, 52)) | (set() if s.nxe else {63})
    if s.paging == "PAE":
        bits |= set(range(52, 63))
    if shift == 39 or (shift == 30 and not s.gigabyte):
        bits.add(7)
    elif large:
        bits |= set(range(13, shift))
    return bits


def model(s: Setting, read: Callable[[int], int | None], linear: int) -> Expected:
    """The page walk, written from the SDM's text."""
    size = 4 if s.paging == "32-bit" else 8
    table, path = TABLES, []
    code = (2 if s.access == ACCESS_WRITE else 0) | (4 if s.user else 0)
    if s.access == ACCESS_FETCH and (s.smep or (s.nxe and s.paging != "32-bit")):
        code |= 16
    for shift in LEVELS[s.paging]:
        index_bits = 10 if size == 4 else 9
        at = table + (linear >> shift) % (1 << index_bits) * size
        entry = read(at)
        if entry is None:
            return Expected(exit=at)
        if not entry & 1:
            return Expected(error=code)
        large = shift > 12 and bool(entry & 0x80) and (s.paging != "32-bit" or s.pse)
        if any(entry >> bit & 1 for bit in reserved_bits(s, shift, large)):
            return Expected(error=code | 8 | 1)
        path.append((at, entry))
        if large or shift == 12:
            break
        table = entry & (0xFFFF_F000 if size == 4 else 0xFFFF_FFFF_F000)
    entries = [entry for _, entry in path]
    writable = all(entry & 2 for entry in entries)
    user_page = all(entry & 4 for entry in entries)
    executable = not any(entry >> 63 for entry in entries)
    if s.user:
        allowed = user_page and (True, writable, executable)[s.access]
    elif s.access == ACCESS_FETCH:
        allowed = executable and not (s.smep and user_page)
    else:
        allowed = not (s.smap and user_page and not s.ac)
        allowed = allowed and (s.access == ACCESS_READ or writable or not s.wp)
    if not allowed:
        return Expected(error=code | 1)
    marked = dict(path)
    for at, _ in path:
        marked[at] |= A
    if s.access == ACCESS_WRITE:
        marked[path[-1][0]] |= D
    leaf, page = entries[-1], 1 << shift
    frame = leaf & 0xFFFF_FFFF_F000 if size == 8 else leaf & 0xFFFF_F000
    if size == 4 and large:
        frame = leaf & 0xFFC0_0000 | (leaf >> 13 & 0xFF) << 32
    return Expected(gpa=frame // page * page + linear % page, marked=tuple(marked.items()))


def random_case(rng: random.Random, paging: str) -> tuple[Cpu, Setting, int]:
    """A machine whose walk for the returned address meets mostly present entries with random bits."""

    def coin(chance: float = 0.5) -> bool:
        return rng.random() < chance

    s = Setting(
        paging, coin(), rng.randrange(3), wp=coin(), smep=coin(), smap=coin(), ac=coin(), nxe=coin(),
        pse=coin(0.8), pse36=coin(), gigabyte=coin(0.7),
    )  # fmt: skip
    cpu = paged_cpu(paging)
    cpu.cr0 |= CR0_WP if s.wp else 0
    cpu.cr4 |= (CR4_SMEP if s.smep else 0) | (CR4_SMAP if s.smap else 0)
    cpu.cr4 = cpu.cr4 & ~CR4_PSE | (CR4_PSE if s.pse else 0)
    cpu.efer |= EFER_NXE if s.nxe else 0
    cpu.ac, cpu.pse36, cpu.gigabyte_pages = int(s.ac), s.pse36, s.gigabyte
    cpu.cpl = 3 if s.user else 0
    cpu.flush_tlb()
    cpu.update_mode()
    linear = rng.getrandbits(64) & ~0xFFF | rng.randrange(0, 4093)
    linear = linear & 0x7FFF_FFFF_FFFF if paging == "4-level" else linear & 0xFFFF_FFFF
    linear &= ~0x3FF0_0000  # large pages end up in the first MiB too
    size = 4 if paging == "32-bit" else 8
    for level, shift in enumerate(LEVELS[paging]):
        leaf = shift == 12
        entry = (0x20000 if leaf else TABLES + (level + 1) * 0x1000) | RIGHTS
        for bit in (1, 2, 3, 4, 5, 6, 8, 9, 63):
            if rng.random() < 0.12:
                entry ^= 1 << bit
        if not leaf and rng.random() < 0.25:
            entry = entry & 0xFFF | 1 << 63 & entry | PS  # a large page at 0
        if rng.random() < 0.06:
            entry ^= 1 << rng.randrange(8 * size)
        if rng.random() < 0.03:
            entry &= ~P
        bits = 10 if size == 4 else 9
        at = TABLES + level * 0x1000 + (linear >> shift) % (1 << bits) * size
        put(cpu, at, entry & (1 << 8 * size) - 1, size)
    return cpu, s, linear


def outcome(cpu: Cpu, s: Setting, linear: int) -> Expected:
    """Do the access and say what became of it in the model's terms."""
    try:
        if s.access == ACCESS_FETCH:
            return Expected(gpa=cpu.translate(linear, ACCESS_FETCH, s.user))
        if s.access == ACCESS_WRITE:
            cpu.store(linear, 4, 0xA5A5_5A5A)
        else:
            cpu.load(linear, 4)
    except PageFault as fault:
        assert fault.address == linear
        return Expected(error=fault.error_code)
    except VmExit as event:
        assert isinstance(event.reason, NestedPageFault)
        return Expected(exit=event.reason.addr)
    return Expected()


@pytest.mark.parametrize("paging", LEVELS)
def test_page_walks_agree_with_a_model_in_rights_error_codes_and_accessed_and_dirty_bits(paging: str) -> None:
    rng = random.Random(f"walks {paging}")
    size = 4 if paging == "32-bit" else 8
    kinds = {"fault": 0, "exit": 0, "ok": 0}
    for number in range(700):
        cpu, s, linear = random_case(rng, paging)
        before = cpu.memory.read(0, 1 << 20)

        def read(at: int, before: bytes = before) -> int | None:
            return int.from_bytes(before[at : at + size], "little") if at < len(before) else None

        expected = model(s, read, linear)
        found = outcome(cpu, s, linear)
        where = f"case {number}: {s} {linear:#x}"
        after = bytearray(before)
        for at, entry in expected.marked:
            after[at : at + size] = entry.to_bytes(size, "little")
        if expected.error is not None:
            kinds["fault"] += 1
            assert found.error == expected.error, where
        elif expected.exit is not None or expected.gpa >= len(before) - 3:
            kinds["exit"] += 1
            gpa = expected.gpa if s.access == ACCESS_FETCH else -1
            outside = expected.exit if expected.exit is not None else expected.gpa
            assert (found.gpa == gpa and gpa >= 0) or found.exit == outside, where
        else:
            kinds["ok"] += 1
            assert (found.error, found.exit) == (None, None), where
            if s.access == ACCESS_FETCH:
                assert found.gpa == expected.gpa, where
            elif s.access == ACCESS_WRITE:
                after[expected.gpa : expected.gpa + 4] = bytes.fromhex("5a5aa5a5")
        assert cpu.memory.read(0, 1 << 20) == bytes(after), where
    assert min(kinds["fault"], kinds["ok"]) > 100, kinds


def test_a_load_returns_the_byte_at_the_translated_address() -> None:
    cpu = paged_cpu("4-level")
    map_page(cpu, 0x7000_1234_5000, 0x23000)
    put(cpu, 0x23678, 0x1122_3344, 4)
    assert cpu.load(0x7000_1234_5678, 4) == 0x1122_3344
    assert cpu.load(0x7000_1234_5678, 4) == 0x1122_3344  # out of the TLB
    cpu.store(0x7000_1234_5678, 2, 0xBEEF)
    assert get(cpu, 0x23678, 4) == 0x1122_BEEF


def test_present_pdpte_with_a_reserved_bit_is_refused_when_the_registers_are_loaded() -> None:
    cpu = paged_cpu("PAE")
    put(cpu, 0x3000, 0x20000 | P)
    put(cpu, 0x3008, 0x21000 | P | RW)  # R/W is reserved in a PDPTE
    with pytest.raises(GeneralProtection):
        cpu.load_pdptes(0x3000)
    assert cpu.pdptes == [TABLES | P] * 4
    put(cpu, 0x3008, 0x21000 | RW)  # not present: anything goes
    cpu.load_pdptes(0x3000)
    assert cpu.pdptes[:2] == [0x20000 | P, 0x21000 | RW]


def test_pae_entries_are_read_through_the_pdpte_registers_and_not_from_memory() -> None:
    cpu = paged_cpu("PAE")
    cpu.pdptes = [0, TABLES | P, 0, 0]
    put(cpu, TABLES, 0x0 | RIGHTS | PS)
    put(cpu, 0x12345, 0x77, 1)
    assert cpu.load(0x4001_2345, 1) == 0x77
    with pytest.raises(PageFault) as caught:
        cpu.load(0x12345, 1)
    assert (caught.value.address, caught.value.error_code) == (0x12345, 0)


def test_a_page_table_in_a_hole_of_a_pc_reads_as_ones_and_is_a_reserved_bit_fault() -> None:
    cpu = paged_cpu("4-level")
    cpu.memory.unclaimed_is_mmio = True
    put(cpu, TABLES, 0x8000_0000 | RIGHTS)
    with pytest.raises(PageFault) as caught:
        cpu.load(0x1000, 1)
    assert caught.value.error_code == 9


def test_accessed_bits_are_not_written_into_tables_in_rom() -> None:
    cpu = paged_cpu("32-bit")
    rom = cpu.memory.add_ram(0x20_0000, 0x1000, READ | EXECUTE, name="rom")
    cpu.memory.write(0x20_0000, (RIGHTS | PS).to_bytes(4, "little"))
    cpu.cr3 = rom.base
    cpu.flush_tlb()
    cpu.store(0x5000, 1, 9)
    assert get(cpu, 0x5000, 1) == 9
    assert get(cpu, 0x20_0000, 4) == RIGHTS | PS


def test_accessed_bit_in_a_page_table_that_is_also_code_drops_the_decoded_instruction() -> None:
    cpu = paged_cpu("4-level")
    pte = map_page(cpu, 0x6000, 0x20000, P)  # its bytes 01 00: add [rax], eax; accessed 21 00: and
    table = pte & -0x1000
    map_page(cpu, table, table)
    assert cpu.code[pte].raw.hex() == "0100"
    cpu.load(0x6000, 1)
    assert cpu.code[pte].raw.hex() == "2100"


# ---- the TLB -------------------------------------------------------------------------------------------


def test_changed_entry_is_seen_after_invlpg_and_after_every_write_of_cr3_cr0_wp_and_cr4() -> None:
    for raw, text in (("0f01 3b", "invlpg [rbx]"), ("0f22 d8", "mov cr3, rax"), ("0f22 e1", "mov cr4, rcx")):
        cpu = paged_cpu("4-level", rax=TABLES, rbx=0x6000)
        cpu.rcx = cpu.cr4 ^ CR4_PGE
        for page in range(0x10):
            map_page(cpu, page << 12, page << 12)
        pte = map_page(cpu, 0x6000, 0x20000 | G)
        put(cpu, 0x20000, 0xAA, 1)
        put(cpu, 0x21000, 0xBB, 1)
        assert cpu.load(0x6000, 1) == 0xAA
        put(cpu, pte, 0x21000 | RIGHTS)
        run_one(cpu, text, bytes.fromhex(raw))
        assert cpu.load(0x6000, 1) == 0xBB, text


def test_write_protect_takes_effect_when_cr0_wp_is_set() -> None:
    cpu = paged_cpu("4-level")
    map_page(cpu, 0x1000, 0x1000)
    map_page(cpu, 0x6000, 0x20000, P)
    cpu.store(0x6000, 1, 1)
    cpu.rax = cpu.cr0 | CR0_WP
    run_one(cpu, "mov cr0, rax", bytes.fromhex("0f22c0"))
    with pytest.raises(PageFault) as caught:
        cpu.store(0x6000, 1, 2)
    assert caught.value.error_code == 3


def test_dirty_bit_is_set_by_the_first_write_after_reads() -> None:
    cpu = paged_cpu("4-level")
    pte = map_page(cpu, 0x6000, 0x20000)
    cpu.load(0x6000, 8)
    assert get(cpu, pte) == 0x20000 | RIGHTS | A
    cpu.store(0x6008, 8, 1)
    assert get(cpu, pte) == 0x20000 | RIGHTS | A | D


def test_ring_3_does_not_use_what_ring_0_put_into_the_tlb() -> None:
    cpu = paged_cpu("4-level")
    map_page(cpu, 0x6000, 0x20000, P | RW)
    cpu.store(0x6000, 1, 5)
    cpu.cpl = 3
    cpu.update_mode()
    with pytest.raises(PageFault) as caught:
        cpu.load(0x6000, 1)
    assert caught.value.error_code == 5
    assert cpu.load_system(0x6000, 1) == 5  # a descriptor table is read by the supervisor


def test_stac_opens_and_clac_closes_user_pages_but_never_for_implicit_accesses() -> None:
    cpu = paged_cpu("4-level")
    cpu.cr4 |= CR4_SMAP
    map_page(cpu, 0x1000, 0x1000, P | RW)
    map_page(cpu, 0x6000, 0x20000)
    cpu.flush_tlb()
    cpu.update_mode()
    with pytest.raises(PageFault):
        cpu.load(0x6000, 1)
    run_one(cpu, "stac", bytes.fromhex("0f01cb"))
    assert cpu.load(0x6000, 1) == 0
    with pytest.raises(PageFault) as caught:
        cpu.load_system(0x6000, 1)
    assert caught.value.error_code == 1
    cpu.rip = 0x1000
    run_one(cpu, "clac", bytes.fromhex("0f01ca"))
    with pytest.raises(PageFault):
        cpu.load(0x6000, 1)


def test_pcid_bits_of_cr3_do_not_reach_the_table_address() -> None:
    cpu = paged_cpu("4-level")
    cpu.cr4 |= CR4_PCIDE
    map_page(cpu, 0x6000, 0x20000)
    put(cpu, 0x20000, 0x5A, 1)
    cpu.cr3 = TABLES | 0x123
    cpu.flush_tlb()
    assert cpu.load(0x6000, 1) == 0x5A


def test_the_tlb_starts_again_before_it_eats_the_host() -> None:
    cpu = paged_cpu("4-level")
    put(cpu, TABLES, TABLES + 0x1000 | RIGHTS)
    for n in range(512):
        put(cpu, TABLES + 0x1000 + 8 * n, RIGHTS | PS)  # 512 views of the first GiB
    for n in range(TLB_ENTRIES + 50):
        cpu.load(n % 512 << 30 | n // 512 << 12, 1)
    assert len(cpu.tlb_read) <= TLB_ENTRIES
    for n in range(TLB_ENTRIES + 50):
        cpu.store(n % 512 << 30 | 0x40000 | n // 512 << 12, 1, 1)
    assert len(cpu.tlb_write) <= TLB_ENTRIES


def test_the_a20_gate_folds_addresses_and_opening_it_forgets_translations() -> None:
    cpu = make_cpu(32)
    cpu.memory.add_ram(0x10_0000, 0x1000, name="high")
    put(cpu, 0x500, 0x11, 1)
    put(cpu, 0x10_0500, 0x22, 1)
    assert cpu.load(0x10_0500, 1) == 0x22
    cpu.memory.set_a20(False)
    assert cpu.load(0x10_0500, 1) == 0x11
    cpu.memory.set_a20(True)
    assert cpu.load(0x10_0500, 1) == 0x22


def test_a_device_page_is_found_again_without_a_walk_until_the_next_flush() -> None:
    cpu = paged_cpu("4-level")
    cpu.memory.set_mmio([(0x20_0000, 0x2000)])
    pte = map_page(cpu, 0x6000, 0x20_0000)
    for access, first, second in (
        (lambda: cpu.load(0x6010, 4), MmioRead(0x20_0010, 4), MmioRead(0x20_1010, 4)),
        (lambda: cpu.store(0x6010, 4, 5), MmioWrite(0x20_0010, 4, 5), MmioWrite(0x20_1010, 4, 5)),
    ):
        put(cpu, pte, 0x20_0000 | RIGHTS)
        cpu.flush_tlb()
        seen = []
        for frame, flush in ((0x20_0000, False), (0x20_1000, False), (0x20_1000, True)):
            put(cpu, pte, frame | RIGHTS)
            if flush:
                cpu.flush_tlb()
            with pytest.raises(VmExit) as caught:
                access()
            seen.append(caught.value.reason)
        assert seen == [first, first, second]


def test_a_page_mapped_at_run_time_is_seen_without_a_flush_by_the_guest() -> None:
    cpu = make_cpu(32)
    with pytest.raises(VmExit) as caught:
        cpu.load(0x20_0000, 4)
    assert caught.value.reason == NestedPageFault(0x20_0000, READ)
    cpu.memory.add_ram(0x20_0000, 0x1000, name="late")
    cpu.store(0x20_0000, 4, 0xCAFE)
    assert cpu.load(0x20_0000, 4) == 0xCAFE


# ---- accesses over two pages ---------------------------------------------------------------------------


def test_a_split_load_joins_two_pages_that_lie_apart() -> None:
    cpu = paged_cpu("4-level")
    map_page(cpu, 0x6000, 0x20000)
    map_page(cpu, 0x7000, 0x33000)
    put(cpu, 0x20FFD, 0x33_2211, 3)
    put(cpu, 0x33000, 0x88_7766_5544, 5)
    assert cpu.load(0x6FFD, 8) == 0x8877_6655_4433_2211


def test_a_split_store_whose_second_page_is_read_only_stores_nothing_and_reports_that_page() -> None:
    cpu = paged_cpu("4-level", cpl=3)
    map_page(cpu, 0x6000, 0x20000)
    map_page(cpu, 0x7000, 0x21000, P | US)
    with pytest.raises(PageFault) as caught:
        cpu.store(0x6FFE, 4, 0xFFFF_FFFF)
    assert (caught.value.address, caught.value.error_code) == (0x7000, 7)
    assert get(cpu, 0x20FFE, 2) == 0


def test_a_split_store_into_a_hole_leaves_before_the_first_page_changes() -> None:
    cpu = make_cpu(32)
    with pytest.raises(VmExit) as caught:
        cpu.store(0xF_FFFE, 4, 0xFFFF_FFFF)
    assert caught.value.reason == NestedPageFault(0x10_0000, WRITE)
    assert get(cpu, 0xF_FFFE, 2) == 0


def test_a_split_store_between_a_device_and_a_hole_does_not_touch_the_device() -> None:
    cpu = make_cpu(32)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    with pytest.raises(VmExit) as caught:
        cpu.store(0x20_0FFE, 4, 0)
    assert caught.value.reason == NestedPageFault(0x20_1000, WRITE)


def test_a_split_between_ram_and_a_device_asks_the_device_once() -> None:
    cpu = make_cpu(32)
    cpu.memory.set_mmio([(0x10_0000, 0x1000)])
    put(cpu, 0xF_FFFE, 0x2211, 2)
    with pytest.raises(VmExit) as caught:
        cpu.load(0xF_FFFE, 4)
    assert caught.value.reason == MmioRead(0x10_0000, 2)
    cpu.complete(0x4433)
    assert cpu.load(0xF_FFFE, 4) == 0x4433_2211


def test_a_split_between_two_devices_writes_each_part_once_in_order() -> None:
    cpu = make_cpu(32)
    cpu.memory.set_mmio([(0x20_0000, 0x1000), (0x20_1000, 0x1000)])
    seen = []
    for _ in range(2):
        with pytest.raises(VmExit) as caught:
            cpu.store(0x20_0FFC, 8, 0x8877_6655_4433_2211)
        seen.append(caught.value.reason)
        cpu.complete()
    cpu.cursor = 0
    cpu.store(0x20_0FFC, 8, 0x8877_6655_4433_2211)
    assert seen == [MmioWrite(0x20_0FFC, 4, 0x4433_2211), MmioWrite(0x20_1000, 4, 0x8877_6655)]


def test_a_wide_load_from_a_device_is_split_as_a_bus_carries_it() -> None:
    cpu = make_cpu(64)
    cpu.memory.set_mmio([(0x20_0000, 0x1000)])
    asked = []
    while True:
        cpu.cursor = 0
        try:
            value = cpu.load(0x20_0000, 10)
            break
        except VmExit as event:
            assert isinstance(event.reason, MmioRead)
            asked.append((event.reason.addr, event.reason.width))
            cpu.complete(len(asked))
    assert asked == [(0x20_0000, 8), (0x20_0008, 2)]
    assert value == 2 << 64 | 1


def test_linear_addresses_wrap_at_4_gib_outside_64_bit_mode() -> None:
    cpu = make_cpu(32)
    cpu.memory.add_ram(0xFFFF_F000, 0x1000, name="top")
    put(cpu, 0xFFFF_FFFE, 0x2211, 2)
    put(cpu, 0, 0x4433, 2)
    assert cpu.load(0xFFFF_FFFE, 4) == 0x4433_2211
    cpu.ds.base = 0x1000
    assert cpu.read_data(cpu.ds, 0xFFFF_F000, 4) == 0x4433
    put(cpu, 0x1F0, 0xAB, 1)
    assert cpu.read_bytes(cpu.ds, 0xFFFF_EFF0, 0x200)[0x10 + 0x1E0 + 0xF] == 0
    assert cpu.read_bytes(cpu.ds, 0xFFFF_EF00, 0x300)[0x100 + 0x1F0] == 0xAB


# ---- canonical addresses, alignment, breakpoints --------------------------------------------------------


@pytest.mark.parametrize("linear", [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x7FFF_FFFF_FFFD, 1 << 63])
def test_a_non_canonical_address_is_gp_and_through_the_stack_ss(linear: int) -> None:
    cpu = make_cpu(64)
    for access, kind in (
        (lambda: cpu.load(linear, 4), GeneralProtection),
        (lambda: cpu.store(linear, 4, 0), GeneralProtection),
        (lambda: cpu.load_stack(linear, 4), StackFault),
        (lambda: cpu.store_stack(linear, 4, 0), StackFault),
    ):
        with pytest.raises(Fault) as caught:
            access()
        assert type(caught.value) is kind and caught.value.error_code == 0


@pytest.mark.parametrize(
    ("cpl", "am", "ac", "address", "size", "faults"),
    [
        (3, True, 1, 0x6001, 2, True), (3, True, 1, 0x6002, 4, True), (3, True, 1, 0x6004, 8, True),
        (3, True, 1, 0x6004, 4, False), (3, True, 1, 0x6003, 1, False), (3, False, 1, 0x6001, 4, False),
        (3, True, 1, 0x6008, 10, False),
        (3, True, 1, 0x6004, 10, True),
        (3, True, 1, 0x6002, 6, True),
        (3, True, 1, 0x6008, 16, True),
        (3, True, 1, 0x6010, 64, False),
        (3, True, 0, 0x6001, 4, False), (0, True, 1, 0x6001, 4, False),
    ],
)  # fmt: skip
def test_alignment_check_needs_ring_3_cr0_am_and_eflags_ac(
    cpl: int, am: bool, ac: int, address: int, size: int, faults: bool
) -> None:
    cpu = make_cpu(32, cpl=cpl, ac=ac)
    cpu.cr0 |= CR0_AM if am else 0
    cpu.update_mode()
    for _ in range(2):  # the second time through whatever the TLB kept
        for access in (lambda: cpu.load(address, size), lambda: cpu.store(address, size, 0)):
            if faults:
                with pytest.raises(AlignmentCheck) as caught:
                    access()
                assert caught.value.error_code == 0
            else:
                access()


def test_an_aligned_access_does_not_open_its_page_for_misaligned_ones() -> None:
    cpu = make_cpu(32, cpl=3, ac=1)
    cpu.cr0 |= CR0_AM
    cpu.update_mode()
    cpu.store(0x6000, 4, 0)
    cpu.load(0x6000, 4)
    with pytest.raises(AlignmentCheck):
        cpu.load(0x6002, 4)
    with pytest.raises(AlignmentCheck):
        cpu.store(0x6002, 4, 0)


def test_implicit_system_accesses_are_not_alignment_checked() -> None:
    cpu = make_cpu(32, cpl=3, ac=1)
    cpu.cr0 |= CR0_AM
    cpu.update_mode()
    assert cpu.load_system(0x6001, 4) == 0


@pytest.mark.parametrize(
    ("kind", "length", "at", "size", "write", "hit"),
    [
        (1, 0, 0x6000, 1, True, True), (1, 0, 0x6000, 1, False, False), (1, 3, 0x6003, 1, True, True),
        (3, 3, 0x6003, 1, False, True), (3, 3, 0x6004, 1, False, False), (3, 3, 0x5FFE, 4, True, True),
        (3, 3, 0x5FFC, 4, True, False), (3, 1, 0x6001, 1, False, True), (3, 2, 0x6007, 1, False, True),
        (3, 2, 0x6008, 1, False, False), (0, 0, 0x6000, 1, True, False),
    ],
)  # fmt: skip
def test_data_breakpoints_compare_kind_and_length_with_the_access(
    kind: int, length: int, at: int, size: int, write: bool, hit: bool
) -> None:
    cpu = make_cpu(32, dr2=0x6000, dr7=0x400 | 1 << 4 | (kind | length << 2) << 24)
    if write:
        cpu.store(at, size, 0)
    else:
        cpu.load(at, size)
    assert cpu.debug_hits == (4 if hit else 0)


@pytest.mark.parametrize("write", [False, True])
def test_every_access_to_a_watched_page_is_compared_not_only_the_first(write: bool) -> None:
    cpu = make_cpu(32, dr0=0x6000, dr7=0x402 | 3 << 16)
    for at, hits in ((0x6800, 0), (0x6000, 1)):
        if write:
            cpu.store(at, 1, 0)
        else:
            cpu.load(at, 1)
        assert cpu.debug_hits == hits


# ---- segments ---------------------------------------------------------------------------------------------


def test_every_byte_of_an_access_lies_within_the_limit() -> None:
    cpu = make_cpu(32)
    cpu.ds.load_raw(0x10, 0x1000, 0x4FFF, 0x93)
    assert cpu.read_data(cpu.ds, 0x4FFC, 4) == 0
    for offset, size in ((0x4FFD, 4), (0x5000, 1), (0xFFFF_FFFF, 1)):
        with pytest.raises(GeneralProtection):
            cpu.read_data(cpu.ds, offset, size)
        with pytest.raises(GeneralProtection):
            cpu.write_data(cpu.ds, offset, size, 0)


def test_the_stack_segment_reports_its_limit_as_ss() -> None:
    cpu = make_cpu(32)
    cpu.ss.load_raw(0x10, 0, 0xFFF, 0x93)
    with pytest.raises(StackFault) as caught:
        cpu.read_data(cpu.ss, 0xFFE, 4)
    assert caught.value.error_code == 0


@pytest.mark.parametrize(("big", "top"), [(0, 0xFFFF), (1, 0xFFFF_FFFF)])
def test_an_expand_down_segment_begins_behind_its_limit(big: int, top: int) -> None:
    cpu = make_cpu(32)
    cpu.memory.add_ram(0xFFFF_F000, 0x1000, name="top")
    cpu.ds.load_raw(0x10, 0, 0x0FFF, 0x97 | big << 14)
    assert cpu.read_data(cpu.ds, 0x1000, 4) == 0
    cpu.write_data(cpu.ds, top, 1, 7)
    assert cpu.read_data(cpu.ds, top, 1) == 7
    for offset, size in ((0x0FFF, 1), (0x0FFE, 4), (0, 1), (top, 2), (top - 2, 4)):
        with pytest.raises(GeneralProtection):
            cpu.read_data(cpu.ds, offset, size)


@pytest.mark.parametrize(
    ("attributes", "readable", "writable"),
    [(0x91, True, False), (0x93, True, True), (0x99, False, False), (0x9B, True, False), (0x95, True, False)],
)
def test_the_segment_type_decides_about_reads_and_writes(
    attributes: int, readable: bool, writable: bool
) -> None:
    cpu = make_cpu(32)
    cpu.ds.load_raw(0x10, 0, 0xFFF, attributes)
    offset = 0x2000 if attributes & 0xC == 4 else 0x10
    for allowed, access in (
        (readable, lambda: cpu.read_data(cpu.ds, offset, 2)),
        (writable, lambda: cpu.write_data(cpu.ds, offset, 2, 1)),
    ):
        if allowed:
            access()
        else:
            with pytest.raises(GeneralProtection):
                access()


def test_real_mode_stores_through_cs_whatever_its_type() -> None:
    cpu = make_cpu(16, bytes.fromhex("2e c6 06 00 20 5a"))
    assert cpu.cs.type == 0xB  # as loaders leave it: a code segment, which protected mode would not write
    run_one(cpu, "mov byte [cs:0x2000], 0x5a", bytes.fromhex("2e c6 06 00 20 5a"))
    assert cpu.memory.read(0x2000, 1) == b"\x5a"
    with pytest.raises(GeneralProtection):
        cpu.write_data(cpu.cs, 0xFFFF, 2, 0)  # the limit still counts


def test_a_null_segment_faults_in_protected_mode_and_is_flat_in_64_bit_mode() -> None:
    cpu = make_cpu(32)
    cpu.ds.load_null(0)
    with pytest.raises(GeneralProtection):
        cpu.read_data(cpu.ds, 0, 1)
    cpu = make_cpu(64)
    cpu.ds.load_null(0)
    assert cpu.read_data(cpu.ds, 0x100, 1) == 0


def test_only_fs_and_gs_have_a_base_in_64_bit_mode() -> None:
    cpu = make_cpu(64)
    put(cpu, 0x5010, 0x77, 1)
    for segment in (cpu.ds, cpu.es, cpu.ss, cpu.cs):
        segment.base = 0x5000
        assert cpu.read_data(segment, 0x10, 1) == 0
    for segment in (cpu.fs, cpu.gs):
        segment.base = 0x5000
        assert cpu.read_data(segment, 0x10, 1) == 0x77
        segment.base = 0xFFFF_FFFF_FFFF_F000
        assert cpu.read_data(segment, 0x6010, 1) == 0x77  # the sum wraps


def test_write_bytes_stores_nothing_if_its_last_page_is_not_writable() -> None:
    cpu = paged_cpu("4-level", cpl=3)
    map_page(cpu, 0x6000, 0x20000)
    map_page(cpu, 0x7000, 0x21000, P | US)
    with pytest.raises(PageFault) as caught:
        cpu.write_bytes(cpu.ds, 0x6F00, bytes([0xFF]) * 512)
    assert caught.value.address == 0x7000
    assert cpu.memory.read(0x20F00, 0x100) == bytes(0x100)
