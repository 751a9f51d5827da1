"""display/tables.py: GDT, LDT and IDT of well-behaved and of hostile guests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.state import CR0_PE, EFER_LMA
from pysim_vm import AxVM
from pysim_vm.boot_plan import BootPlan
from pysim_vm.display.tables import ROWS_SHOWN
from pysim_vm.report import segment_kind
from pysim_vm.symbols import Symbol, SymbolTable
from tests.pysim_vm.html_text import seen

TABLE = 0x4000


def with_gdt(*entries: int, mode: str = "protected") -> AxVM:
    """A machine whose GDT holds these integers of 8 bytes."""
    vm = AxVM.from_asm("nop", mode=mode, memory="1M")
    cpu = vm.vcpu(0).cpu
    vm.write_to_guest(TABLE, b"".join(entry.to_bytes(8, "little") for entry in entries))
    cpu.gdtr.base, cpu.gdtr.limit = TABLE, 8 * len(entries) - 1
    return vm


def with_idt(data: bytes, mode: str = "long") -> AxVM:
    """A machine whose interrupt table holds these bytes."""
    vm = AxVM.from_asm("nop", mode=mode, memory="1M")
    vm.write_to_guest(TABLE, data)
    cpu = vm.vcpu(0).cpu
    cpu.idtr.base, cpu.idtr.limit = TABLE, len(data) - 1
    return vm


# ---- GDT and LDT -------------------------------------------------------------------------------------------


def test_the_gdt_of_a_64_bit_program_is_decoded() -> None:
    gdt = AxVM.from_asm("nop").show.gdt()
    code, data, tss = gdt[0x10], gdt[0x18], gdt[0x20]
    assert (code.what, code.limit, code.dpl, code.flags) == (
        "64-bit readable code", 0xFFFF_FFFF, 0, "P A G L",
    )  # fmt: skip
    assert (data.what, data.flags, data.used) == (
        "32-bit writable data", "P A G B", ("es", "ss", "ds", "fs", "gs"),
    )  # fmt: skip
    assert (tss.what, tss.used) == ("busy TSS", ("tr",))
    assert len(gdt) == 5  # the TSS takes two
    assert gdt[0x23] is tss


def test_bits_of_a_descriptor_have_the_names_of_the_manual() -> None:
    gdt = with_gdt(0, 0x00DF_FE00_0000_FFFF, 0x0040_7600_0000_0000, 0x00FF_9A00_0000_FFFF).show.gdt()
    assert (gdt[8].what, gdt[8].dpl, gdt[8].flags) == ("32-bit conforming readable code", 3, "P G D C AVL")
    assert gdt[16].flags == "B E"
    assert gdt[16].wrong == "not present: loading it is #NP"
    assert gdt[24].wrong == "L and D are both 1: reserved"


def test_base_and_limit_are_put_together() -> None:
    entry = with_gdt(0, 0x12C0_9334_5678_9ABC).show.gdt()[8]
    assert (entry.base, entry.limit) == (0x1234_5678, 0x9AB_CFFF)


def test_a_system_descriptor_of_ia_32e_mode_takes_sixteen_bytes() -> None:
    low = 0x0000_8900_0000_0067 | 0x1000 << 16
    vm = with_gdt(0, low, 0xFFFF_8000, low, 0x1F << 40, low, mode="long")
    gdt = vm.show.gdt()
    assert [entry.selector for entry in gdt] == [0, 8, 0x18, 0x28]
    assert gdt[8].base == 0xFFFF_8000_0000_1000
    assert gdt[8].wrong == ""
    assert gdt[0x18].wrong == "the type field of its upper half is not 0"
    assert gdt[0x28].wrong == "its upper 8 bytes lie outside the table or cannot be read"


def test_types_that_ia_32e_mode_reserves_are_called_so() -> None:
    entry = with_gdt(0, 0x0000_8100_0000_0067, mode="long").show.gdt()[8]
    assert entry.wrong == "type 0x1 is reserved in IA-32e mode"
    assert with_gdt(0, 0x0000_8100_0000_0067).show.gdt()[8].wrong == ""


def test_call_gates_name_their_target() -> None:
    gdt = with_gdt(0, 0x0012_EC00_0008_3456, 0x0000_8E00_0008_0000).show.gdt()
    assert gdt[8].what == "call gate to 0x0008:0x123456"
    assert gdt[8].dpl == 3
    assert gdt[16].wrong == "an interrupt or trap gate belongs into the IDT"


def test_empty_entries_in_a_row_are_one_line() -> None:
    vm = with_gdt(0, *[0] * 20, 0x00CF_9300_0000_FFFF)
    lines = str(vm.show.gdt()).splitlines()
    assert "0x0000-0x00a0  empty" in lines[2]
    assert "0x00a8" in lines[3]
    assert len(lines) == 4


def test_a_full_gdt_is_cut() -> None:
    vm = with_gdt(*[0x00CF_9300_0000_FFFF] * 8192)
    view = vm.show.gdt()
    assert len(view) == 8192
    assert str(view).splitlines()[-1] == f"… {8192 - ROWS_SHOWN:,} more descriptors"
    assert len(view._repr_html_()) < 40_000


def test_a_gdt_that_cannot_be_read_says_so() -> None:
    vm = AxVM.from_asm("nop", memory="1M")
    vm.vcpu(0).cpu.gdtr.base = 1 << 46
    page = seen(vm.show.gdt())
    assert page.text.count("cannot be read") == 6
    with pytest.raises(KeyError, match="GDT: no descriptor for selector 0x100"):
        vm.show.gdt()[0x100]


def test_a_descriptor_across_two_pages_is_whole() -> None:
    vm = AxVM.from_asm("nop", mode="protected", memory="1M")
    cpu = vm.vcpu(0).cpu
    vm.write_to_guest(0x4FFC, (0).to_bytes(8, "little") + (0x00CF_9300_0000_FFFF).to_bytes(8, "little"))
    cpu.gdtr.base, cpu.gdtr.limit = 0x4FF4, 23
    assert vm.show.gdt()[16].value == 0x00CF_9300_0000_FFFF
    assert vm.show.gdt()[8].value == 0


def test_there_is_an_ldt_only_after_lldt() -> None:
    vm = with_gdt(0, 0x0000_8200_5000_000F)
    assert str(vm.show.ldt()).startswith("There is no LDT")
    vm.write_to_guest(0x5008, (0x00CF_F300_0000_FFFF).to_bytes(8, "little"))
    cpu = vm.vcpu(0).cpu
    cpu.ldtr.load_descriptor(8, 0x0000_8200_5000_000F)
    cpu.fs.load_descriptor(0xF, 0x00CF_F300_0000_FFFF)
    ldt = vm.show.ldt()
    assert ldt[0xC].dpl == 3
    assert ldt[0xF].used == ("fs",)  # whatever the RPL
    assert ldt[0x4].used == ()
    cpu.ldtr.load_null(0)
    assert str(vm.show.ldt()) == "There is no LDT: LDTR is null."


# ---- IDT ---------------------------------------------------------------------------------------------------


def gate(selector: int, offset: int, rights: int, ist: int = 0) -> bytes:
    low = offset & 0xFFFF | selector << 16 | ist << 32 | rights << 40 | (offset >> 16 & 0xFFFF) << 48
    return (low | offset >> 32 << 64).to_bytes(16, "little")


def test_gates_of_ia_32e_mode_are_decoded() -> None:
    data = bytes(14 * 16) + gate(0x10, 0xFFFF_8000_1234_5678, 0xEE, ist=3) + gate(0x10, 0x1000, 0x0F)
    idt = with_idt(data).show.idt()
    entry = idt[14]
    assert (entry.name, entry.what, entry.selector, entry.offset, entry.dpl, entry.ist, entry.wrong) == (
        "#PF", "interrupt gate", 0x10, 0xFFFF_8000_1234_5678, 3, 3, "",
    )  # fmt: skip
    assert (idt[15].what, idt[15].wrong) == ("trap gate", "not present: #NP")
    assert "14 #PF" in str(idt)
    assert "0-13" in str(idt)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (gate(0x10, 0x1000, 0x8C), "not an interrupt, trap or task gate: #GP"),
        (gate(0x10, 0x1000, 0x85), "not an interrupt, trap or task gate: #GP"),
        (gate(0x10, 0x1000, 0x9E), "not an interrupt, trap or task gate: #GP"),
        (gate(0x00, 0x1000, 0x8E), "the handler's selector is null: #GP"),
        (gate(0x10, 0x8000_0000_0000, 0x8E), "the handler's offset is not canonical: #GP"),
    ],
)
def test_a_gate_that_cannot_be_used_says_why(data: bytes, wrong: str) -> None:
    view = with_idt(data).show.idt()
    assert view[0].wrong == wrong
    assert seen(view).marked("bad") == [wrong]


def test_gates_of_protected_mode_have_eight_bytes_and_16_bit_ones_a_short_offset() -> None:
    words = (0x1234_8E00_0008_5678, 0x1234_8600_0008_5678, 0x0000_8500_0018_0000)
    idt = with_idt(b"".join(word.to_bytes(8, "little") for word in words), "protected").show.idt()
    assert [entry.offset for entry in idt] == [0x1234_5678, 0x5678, 0]
    assert [entry.wrong for entry in idt] == ["", "", ""]


def test_real_mode_has_a_table_of_far_addresses() -> None:
    vm = AxVM.from_asm("nop", mode="real")
    vm.write_to_guest(0x10 * 4, bytes.fromhex("34 12 00 f0"))
    idt = vm.show.idt()
    assert len(idt) == 256
    assert "f000:1234" in str(idt)
    assert str(idt).startswith("Interrupt vector table at 0x0")


def test_a_handler_has_its_name_and_the_name_is_escaped() -> None:
    vm = with_idt(gate(0x10, 0x1008, 0x8E))
    assert isinstance(vm.plan, BootPlan)
    object.__setattr__(vm.plan, "symbols", SymbolTable([Symbol("<u>handler", 0x1000)]))
    page = seen(vm.show.idt())
    assert "<u>handler+0x8" in page.text
    assert "u" not in page.tags


def test_no_idt_has_no_vectors() -> None:
    vm = AxVM.from_asm("nop")
    assert "room for 0 vectors" in str(vm.show.idt())
    assert len(vm.show.idt()) == 0


# ---- hostile tables ----------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    data=st.binary(max_size=600),
    base=st.one_of(st.just(TABLE), st.just(0x10_0000 - 64), st.integers(0, (1 << 64) - 1)),
    limit=st.integers(0, 0xFFFF),
    mode=st.sampled_from(("real", "protected", "long")),
    table=st.sampled_from(("gdt", "ldt", "idt")),
)
def test_any_bytes_at_any_address_are_shown_without_an_error(
    data: bytes, base: int, limit: int, mode: str, table: str
) -> None:
    vm = AxVM.from_asm("nop", mode=mode, memory="1M")
    vm.write_to_guest(TABLE, data)
    cpu = vm.vcpu(0).cpu
    for register in (cpu.gdtr, cpu.idtr, cpu.ldtr):
        register.base, register.limit = base, limit
    cpu.ldtr.selector = 8
    view = getattr(vm.show, table)()
    page = seen(view)
    assert len(view._repr_html_()) < 60_000
    assert all(line.isprintable() for line in str(view).split("\n"))
    assert page.text
    for entry in view:
        assert entry.value is None or entry.what
    long_mode = bool(cpu.efer & EFER_LMA)
    assert long_mode == (mode == "long") and bool(cpu.cr0 & CR0_PE) == (mode != "real")


@settings(max_examples=200, deadline=None)
@given(raw=st.integers(1, (1 << 64) - 1))
def test_every_descriptor_that_the_cpu_loads_is_shown_as_the_cpu_loaded_it(raw: int) -> None:
    vm = with_gdt(0, raw)
    cpu = vm.vcpu(0).cpu
    entry = vm.show.gdt()[8]
    cpu.fs.load_descriptor(8, raw)
    assert (entry.dpl, entry.present) == (cpu.fs.dpl, bool(cpu.fs.present))
    if cpu.fs.s:
        assert (entry.base, entry.limit) == (cpu.fs.base, cpu.fs.limit)
        assert entry.what == segment_kind(cpu.fs).rpartition(",")[0]
