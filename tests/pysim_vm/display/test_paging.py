"""display/paging.py: page walks agree with the CPU, whatever the tables hold, and leave no trace."""

from __future__ import annotations

import random
from typing import Any

import pytest

from isa.faults import PageFault
from isa.mmu import ACCESS_FETCH, ACCESS_READ, ACCESS_WRITE, PF_PRESENT, PF_RESERVED
from isa.state import CR0_PE, CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_NXE
from pysim_vm import AxVM
from tests.pysim_vm.html_text import seen

MEMORY = 1 << 20
TABLES = 0x1_0000
CASES = 150
ACCESS = {"read": ACCESS_READ, "write": ACCESS_WRITE, "fetch": ACCESS_FETCH}


def looks(vm: AxVM) -> list[Any]:
    """Every picture that a guest could notice, drawn."""
    show = vm.show
    pictures: list[Any] = [
        show.registers(), show.disassembly(), show.disassembly(0x200000, 3), show.memory(0x1000, 0x2000),
        show.memory(0x1000, 64, physical=True), show.page_walk(0x1234), show.page_walk(0x200000),
        show.page_walk(1 << 47), show.gdt(), show.ldt(), show.idt(), show.console(), vm.vcpu(0).regs,
    ]  # fmt: skip
    if vm.board is not None:
        pictures.append(show.screen())
    return [(str(picture), picture._repr_html_()) for picture in pictures]


# ---- what a walk says --------------------------------------------------------------------------------------


def test_a_walk_shows_the_fields_of_the_address_and_every_entry() -> None:
    vm = AxVM.from_asm("nop")
    walk = vm.show.page_walk(0x4020_1234)
    assert walk.physical == 0x4020_1234
    assert [step.level for step in walk.walk.steps] == ["PML4E", "PDPTE", "PDE"]
    lines = [line.split() for line in str(walk).splitlines()]
    assert ["0x40201234", "0x0", "0x1", "0x1", "0x1234"] in lines
    assert ["bits", "47-39", "bits", "38-30", "bits", "29-21", "bits", "20-0"] in lines
    assert "0x40201234 is physical 0x40201234, in a page of 2 MiB" in str(walk)


def test_a_walk_that_ends_early_says_at_which_entry_and_why() -> None:
    walk = AxVM.from_asm("nop").show.page_walk(0x0000_7F00_0000_0000)
    assert walk.physical is None
    assert walk.why == "0x7f0000000000 is not mapped: the PML4E is not present"
    assert seen(walk).marked("bad") == ["0x0"]


def test_a_page_tells_who_may_do_what_and_which_check_forbids_it() -> None:
    vm = AxVM.from_asm("nop")
    cpu = vm.vcpu(0).cpu
    cpu.cr0 |= CR0_WP
    pde = 0xB008
    assert vm.show.page_walk(0x200000).walk.steps[-1].address == pde
    value = int.from_bytes(vm.read_from_guest(pde, 8), "little")
    vm.write_to_guest(pde, (value & ~2).to_bytes(8, "little"))
    verdicts = {(v.who, v.access): (v.code, v.why) for v in vm.show.page_walk(0x200000).verdicts}
    assert verdicts["supervisor", "read"] == (None, "")
    assert verdicts["supervisor", "write"] == (3, "supervisor write, CR0.WP=1 and PDE at 0xb008 has R/W=0")
    assert verdicts["user", "read"] == (5, "user read, PML4E at 0x9000 has U/S=0")


def test_an_address_that_is_not_canonical_has_no_walk() -> None:
    walk = AxVM.from_asm("nop").show.page_walk(1 << 47)
    assert walk.walk.steps == ()
    assert "0x800000000000 is not canonical" in str(walk)


def test_a_reserved_bit_ends_the_walk_where_the_cpu_ends_it() -> None:
    vm = AxVM.from_asm("nop")
    value = int.from_bytes(vm.read_from_guest(0xB000, 8), "little")
    vm.write_to_guest(0xB000, (value | 1 << 50 | 1 << 14).to_bytes(8, "little"))
    walk = vm.show.page_walk(0x1000)
    assert walk.physical is None
    assert "not mapped" in walk.why
    assert "PDE at 0xb000" in walk.why
    vm.write_to_guest(0x9000, (1 << 50 | 0xA003).to_bytes(8, "little"))
    assert [step.level for step in vm.show.page_walk(0x1000).walk.steps] == ["PML4E"]


def test_without_paging_an_address_is_itself() -> None:
    walk = AxVM.from_asm("nop", mode="protected").show.page_walk(0x12345)
    assert walk.physical == 0x12345
    assert walk.verdicts == ()
    assert "CR0.PG = 0" in str(walk)


def test_the_pdptes_of_pae_paging_are_the_cpus_copies() -> None:
    vm = AxVM.from_asm("nop", mode="protected", memory="1M")
    cpu = vm.vcpu(0).cpu
    vm.write_to_guest(0x11000, (0x83).to_bytes(8, "little"))
    cpu.cr3, cpu.cr4, cpu.cr0 = 0x10000, CR4_PAE, CR0_PE | CR0_PG
    cpu.pdptes = [0x11001, 0, 0, 0]
    walk = vm.show.page_walk(0x1234)
    assert [(step.level, step.words) for step in walk.walk.steps] == [
        ("PDPTE", "present"), ("PDE", "writable, supervisor, large page"),
    ]  # fmt: skip
    assert walk.physical == 0x1234


# ---- against the CPU ---------------------------------------------------------------------------------------


def _random_machine(paging: str, draw: random.Random) -> AxVM:
    """A CPU over tables of a hostile guest: any bits, frames mostly inside RAM."""
    vm = AxVM.from_asm("nop", mode="long" if paging == "4-level" else "protected", memory=MEMORY)
    cpu = vm.vcpu(0).cpu
    size = 4 if paging == "32-bit" else 8
    tables = bytearray()
    for _ in range(0x8000 // size):
        frame = draw.choice([TABLES + 0x1000 * n for n in range(8)] + [MEMORY + 0x1000])
        entry = frame | draw.getrandbits(7) | (1 if draw.random() < 0.9 else 0)
        if draw.random() < 0.1:
            entry |= 0x80
        if draw.random() < 0.05:
            entry |= draw.getrandbits(8 * size) & ~0xFFF
        if size == 8 and draw.random() < 0.1:
            entry |= 1 << 63
        tables += (entry & (1 << 8 * size) - 1).to_bytes(size, "little")
    vm.write_to_guest(TABLES, bytes(tables))
    cpu.cr3 = TABLES
    cpu.cr0 |= CR0_PE | CR0_PG | draw.choice((0, CR0_WP))
    cpu.cr4 |= draw.choice((0, CR4_SMEP)) | draw.choice((0, CR4_SMAP)) | draw.choice((0, CR4_PSE))
    if paging != "32-bit":
        cpu.cr4 |= CR4_PAE
        cpu.efer |= draw.choice((0, EFER_NXE))
    cpu.pdptes = [int.from_bytes(tables[8 * n : 8 * n + 8], "little") for n in range(4)]
    return vm


@pytest.mark.parametrize("paging", ["32-bit", "PAE", "4-level"])
def test_walks_and_verdicts_are_what_the_cpu_does_with_any_tables(paging: str) -> None:
    draw = random.Random(1)
    mapped = refused = 0
    for _ in range(CASES):
        vm = _random_machine(paging, draw)
        cpu = vm.vcpu(0).cpu
        linear = draw.getrandbits(47 if paging == "4-level" else 32)
        before = bytes(vm.read_from_guest(0, MEMORY))
        view = vm.show.page_walk(linear)
        assert str(view) and seen(view).text
        assert bytes(vm.read_from_guest(0, MEMORY)) == before
        for verdict in view.verdicts:
            vm.write_to_guest(0, before)
            smap = bool(cpu.cr4 & CR4_SMAP) and not cpu.ac
            try:
                gpa = cpu.translate(linear, ACCESS[verdict.access], verdict.who == "user", smap=smap)
            except PageFault as fault:
                refused += 1
                assert (verdict.code, verdict.why) == (fault.error_code, fault.why)
                code = fault.error_code or 0
                no_page = not code & PF_PRESENT or bool(code & PF_RESERVED)
                assert (view.physical is None) == no_page
            except Exception:  # a table outside RAM
                assert view.physical is None
            else:
                mapped += 1
                assert verdict.code is None
                assert view.physical == gpa
    assert mapped > CASES / 10
    assert refused > CASES / 10


# ---- no trace ----------------------------------------------------------------------------------------------

GUEST = """
        mov rbx, 0x8000
again:  mov [rbx], rcx
        mov dx, 0x3f8
        mov al, cl
        and al, 7
        add al, '0'
        out dx, al
        mov [0x200000], rcx
        inc rcx
        cmp rcx, 20
        jb again
        hlt
"""


def test_looking_changes_no_memory_no_register_and_no_tlb_entry() -> None:
    vm = AxVM.from_asm(GUEST, platform="pc", memory="4M")
    vm.run(40)
    cpu = vm.vcpu(0).cpu
    memory = bytes(cpu.memory.view)
    registers = vm.show.registers().values
    tlbs = {key: [dict(tlb) for tlb in pair] for key, pair in cpu._tlb_sets.items()}
    counts = dict(vm.exit_counts)
    looks(vm)
    assert bytes(cpu.memory.view) == memory
    assert vm.show.registers().values == registers
    assert {key: [dict(tlb) for tlb in pair] for key, pair in cpu._tlb_sets.items()} == tlbs
    assert dict(vm.exit_counts) == counts
    assert cpu.looking_ahead is False


def test_a_lazy_page_stays_unpopulated() -> None:
    vm = AxVM.from_asm("nop", memory="1M")
    vm.alloc_memory_region(0x10000, 0x20_0000, populate=False)
    assert vm.show.memory(0x20_0000, 16).data == (None,) * 16
    region = vm.memory.region_at(0x20_0000)
    assert region is not None and region.populated is not None
    assert not region.populated.any()


@pytest.mark.parametrize("engine", ["step", "block"])
def test_a_guest_that_is_looked_at_gives_the_same_record(engine: str) -> None:
    digests = []
    for curious in (False, True):
        vm = AxVM.from_asm(GUEST, platform="pc", memory="4M", engine=engine)
        with vm.record(stores=True):
            for _ in range(30):
                vm.run(11)
                if curious:
                    looks(vm)
        digests.append(vm.trace.digest())
    assert digests[0] == digests[1]
