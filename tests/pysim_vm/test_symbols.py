"""symbols.py: names from ELF files and System.map."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysim_vm.errors import LoadError
from pysim_vm.symbols import Symbol, SymbolTable
from tests.elf_files import Part, build_elf

GLOBAL_FUNC, LOCAL_FUNC, GLOBAL_OBJECT, LOCAL_LABEL, SECTION = 0x12, 0x02, 0x11, 0x00, 0x03


def test_an_address_is_named_by_the_nearest_symbol_before_it() -> None:
    table = SymbolTable([Symbol("start", 0x1000), Symbol("end", 0x2000)])
    assert str(table.lookup(0x1000)) == "start"
    assert str(table.lookup(0x101C)) == "start+0x1c"
    assert str(table.lookup(0x2000)) == "end"
    assert table.lookup(0xFFF) is None


def test_an_address_far_behind_the_last_symbol_has_no_name() -> None:
    table = SymbolTable([Symbol("end", 0x1000), Symbol("heap", 0x4000_0000, 0x20_0000)])
    assert table.lookup(0x1000 + (1 << 20)) is None
    assert str(table.lookup(0x4000_0000 + 0x1F_FFFF)) == "heap+0x1fffff"
    assert table.format(0x9000_0000) == "0x90000000"
    assert table.format(0x1004) == "end+0x4 (0x1004)"


def test_a_name_is_found_and_an_unknown_one_is_not() -> None:
    table = SymbolTable([Symbol("main", 0x1000)])
    assert (table.address_of("main"), table.address_of("other")) == (0x1000, None)


def test_symbols_iterate_by_address_and_count_by_name() -> None:
    table = SymbolTable([Symbol("b", 2), Symbol("a", 1), Symbol("alias", 2)])
    assert [symbol.name for symbol in table] == ["a", "alias", "b"]
    assert len(table) == 3


def test_a_relocated_table_wraps_at_64_bits() -> None:
    table = SymbolTable([Symbol("text", 0xFFFF_FFFF_8100_0000)]).relocated(0x1_0000_0000 - 0x8000_0000)
    assert table.address_of("text") == 0x100_0000


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_symbol_table_gives_functions_objects_and_labels(bits: int) -> None:
    data = build_elf(
        Part(b"\x90" * 16, 0x1000),
        entry=0x1000,
        bits=bits,
        symbols=(
            ("loop", 0x1004, 0, LOCAL_LABEL),
            ("main", 0x1000, 8, GLOBAL_FUNC),
            ("table", 0x1008, 8, GLOBAL_OBJECT),
            ("section", 0x1000, 0, SECTION),
        ),
    )
    table = SymbolTable.from_elf(data)
    assert list(table) == [Symbol("main", 0x1000, 8), Symbol("loop", 0x1004, 0), Symbol("table", 0x1008, 8)]


def test_a_global_function_is_shown_before_a_label_at_the_same_address() -> None:
    symbols = (
        ("label", 0x1000, 0, LOCAL_LABEL),
        ("main", 0x1000, 4, GLOBAL_FUNC),
        ("aux", 0x1000, 4, LOCAL_FUNC),
    )
    table = SymbolTable.from_elf(build_elf(Part(b"\x90", 0x1000), entry=0x1000, symbols=symbols))
    assert str(table.lookup(0x1000)) == "main"
    assert table.address_of("label") == 0x1000


def test_a_stripped_elf_has_no_symbols() -> None:
    assert len(SymbolTable.from_elf(build_elf(Part(b"\x90", 0x1000), entry=0x1000))) == 0


def test_a_string_table_without_an_end_costs_only_short_names() -> None:
    data = build_elf(Part(b"\x90", 0x1000), entry=0x1000, symbols=(("x" * 5000, 0x1000, 0, GLOBAL_FUNC),))
    assert len(next(iter(SymbolTable.from_elf(data))).name) == 1024


def test_a_section_behind_the_end_of_the_file_is_refused() -> None:
    data = bytearray(build_elf(Part(b"\x90", 0x1000), entry=0x1000, symbols=(("f", 0x1000, 0, GLOBAL_FUNC),)))
    struct.pack_into("<Q", data, len(data) - 64 + 0x20, 1 << 40)  # sh_size of .symtab
    with pytest.raises(LoadError, match="truncated"):
        SymbolTable.from_elf(bytes(data), "kernel")


@given(st.data())
def test_no_damage_to_an_elf_file_escapes_as_another_exception(data: st.DataObject) -> None:
    image = bytearray(
        build_elf(Part(b"\x90", 0x1000), entry=0x1000, symbols=(("f", 0x1000, 0, GLOBAL_FUNC),))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(4, len(image) - 1))] = data.draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
        )
    del image[data.draw(st.integers(4, len(image))) :]
    try:
        SymbolTable.from_elf(bytes(image))
    except LoadError as error:
        assert "\n" not in str(error)


def test_a_system_map_gives_its_places_and_skips_absolute_values() -> None:
    text = "0000000000000000 A VDSO32_PRELINK\nffffffff81000000 T _text\nffffffff81000050 t helper [ext4]\n"
    table = SymbolTable.from_system_map(text)
    assert list(table) == [Symbol("_text", 0xFFFFFFFF81000000), Symbol("helper", 0xFFFFFFFF81000050)]


def test_a_bad_line_of_a_system_map_is_named() -> None:
    with pytest.raises(LoadError, match=r'System.map line 2 is not "address type name"'):
        SymbolTable.from_system_map("ffffffff81000000 T _text\nhello\n")


def test_debians_placeholder_map_says_where_the_real_one_is() -> None:
    text = "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n"
    with pytest.raises(LoadError, match=r"the real file is in the kernel.s -dbg package"):
        SymbolTable.from_system_map(text)


def test_the_kind_of_symbol_file_is_told_by_its_contents() -> None:
    elf = build_elf(Part(b"\x90", 0x1000), entry=0x1000, symbols=(("f", 0x1000, 0, GLOBAL_FUNC),))
    assert SymbolTable.from_bytes(elf, "a").address_of("f") == 0x1000
    assert SymbolTable.from_bytes(b"1000 T g\n", "b").address_of("g") == 0x1000
    with pytest.raises(LoadError, match=r"neither an ELF file nor a System.map"):
        SymbolTable.from_bytes(b"\xff\xfe", "c")
