"""loader/elf.py: program headers, and bare-metal programs."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysim_vm.boot_plan import RamMap
from pysim_vm.errors import LoadError
from pysim_vm.loader.elf import load_elf, parse_elf
from tests.elf_files import PT_INTERP, PT_NOTE, Part, build_elf

RAM = RamMap.pc(16 << 20)
CODE = b"\xf4\xeb\xfd"
XEN_NOTE = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", 0x100040)


def test_a_64_bit_program_starts_in_long_mode_with_sse_and_a_stack() -> None:
    plan = load_elf(build_elf(Part(CODE, 0x100000), entry=0x100000), RAM)
    assert (plan.start.mode, plan.start.rip) == ("long", 0x100000)
    assert plan.start.cr4 & 0x200
    assert plan.start.regs["rsp"] == 0x8FF0
    assert (0x100000, CODE) in plan.writes


def test_a_32_bit_program_starts_in_protected_mode_with_a_stack() -> None:
    plan = load_elf(build_elf(Part(CODE, 0x100000), entry=0x100001, bits=32), RAM)
    assert (plan.start.mode, plan.start.rip, plan.start.regs["rsp"]) == ("protected", 0x100001, 0x8FF0)


def test_bss_is_cleared_and_not_written() -> None:
    plan = load_elf(build_elf(Part(CODE, 0x100000, memory_size=0x1000), entry=0x100000), RAM)
    assert (0x100003, 0xFFD) in plan.clears
    assert dict(plan.writes)[0x100000] == CODE


def test_segments_go_to_their_physical_addresses_and_so_does_a_virtual_entry() -> None:
    part = Part(CODE, 0x200000, vaddr=0xFFFF_FFFF_8020_0000)
    plan = load_elf(build_elf(part, entry=0xFFFF_FFFF_8020_0001), RAM)
    assert plan.start.rip == 0x200001


def test_the_programs_symbols_come_with_the_plan() -> None:
    plan = load_elf(
        build_elf(Part(CODE, 0x100000), entry=0x100000, symbols=(("start", 0x100000, 3, 0x12),)), RAM
    )
    assert plan.symbols is not None and plan.symbols.address_of("start") == 0x100000


def test_a_pvh_note_is_found_behind_another_note() -> None:
    notes = struct.pack("<III", 4, 2, 1) + b"GNU\0ab\0\0" + XEN_NOTE
    data = build_elf(Part(CODE, 0x100000), Part(notes, kind=PT_NOTE), entry=0x100000)
    assert parse_elf(data, "kernel").pvh_entry == 0x100040


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"hello", "hello.bin is no ELF file"),
        (b"\x7fELF", "ELF header of 4 bytes is truncated"),
        (build_elf(Part(CODE, 0x100000), entry=0x100000)[:40], "truncated"),
        (build_elf(Part(CODE, 0x100000), entry=0x100000, machine=183), "for AArch64, not for x86"),
        (build_elf(Part(CODE, 0x100000), entry=0x100000, machine=9999), "for machine 9999, not for x86"),
        (build_elf(Part(CODE, 0x100000), entry=0x100000, machine=3), "contradicts itself"),
        (build_elf(Part(CODE, 0x100000), entry=0x100000, kind=1), "object file, not a program; link it"),
        (build_elf(entry=0), "has 0 ELF program headers"),
        (build_elf(Part(b"/lib/ld.so", kind=PT_INTERP), entry=0), "dynamically linked"),
        (build_elf(Part(CODE, 0x100000, file_size=1 << 40), entry=0x100000), "truncated"),
        (build_elf(Part(CODE, 0x100000, memory_size=1), entry=0x100000), "larger in the file than in RAM"),
        (build_elf(Part(b"", 0x100000), entry=0x100000), "no loadable ELF segment"),
        (build_elf(Part(CODE, 0x100000), entry=0x300000), "entry point 0x300000 lies in no segment"),
        (build_elf(Part(CODE, 0x100000, memory_size=1 << 50), entry=0x100000), "outside RAM"),
        (
            build_elf(Part(CODE, 0x100000), Part(CODE, 0x100002), entry=0x100000),
            "segment 1 .* overlaps segment 0",
        ),
        (build_elf(Part(CODE, 0xFFFF_FFFF_FFFF_FFF0), entry=0), "lies in no segment"),
    ],
)
def test_a_file_that_cannot_run_is_refused_in_one_sentence(data: bytes, text: str) -> None:
    with pytest.raises(LoadError, match=text) as caught:
        load_elf(data, RAM, name="hello.bin")
    assert "hello.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_an_entry_above_the_mapped_4_gib_is_refused() -> None:
    ram = RamMap.pc(5 << 30)
    with pytest.raises(LoadError, match="above the mapped 4 GiB"):
        load_elf(build_elf(Part(CODE, 1 << 32), entry=1 << 32), ram)


@given(st.data())
def test_no_damage_to_a_program_escapes_as_another_exception(data: st.DataObject) -> None:
    image = bytearray(build_elf(Part(CODE, 0x100000), Part(XEN_NOTE, kind=PT_NOTE), entry=0x100000))
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(4, len(image) - 1))] = data.draw(st.integers(0, 255))
    del image[data.draw(st.integers(4, len(image))) :]
    try:
        load_elf(bytes(image), RAM)
    except LoadError as error:
        assert "\n" not in str(error)
