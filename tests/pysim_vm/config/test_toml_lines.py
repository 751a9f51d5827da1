"""The line finder against odd TOML, and against tomllib for completeness."""

from __future__ import annotations

import time
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pysim_vm.config.toml_lines import DEPTH_MAX, PLACES_MAX, Path, TomlLines


def lines(text: str) -> dict[Path, int]:
    return TomlLines(text).lines


def test_keys_and_tables_have_their_lines() -> None:
    assert lines('[base]\nid = 1\n\nname = "a"\n') == {("base",): 1, ("base", "id"): 2, ("base", "name"): 4}


def test_a_comment_is_no_key_and_hides_nothing() -> None:
    text = "# [not.a.table]\n[a] # one = 2\n# b = 1\nc = 3 # d = 4\n"
    assert lines(text) == {("a",): 2, ("a", "c"): 4}


def test_elements_of_a_multi_line_array_have_their_own_lines() -> None:
    text = (
        "regions = [\n  [0x0, 0x1000],  # first\n\n  # a comment, with ] and [\n"
        "  [\n    1,\n    2,\n  ],\n]\nlast = 1\n"
    )
    found = lines(text)
    assert found[("regions",)] == 1
    assert found[("regions", 0)] == 2
    assert found[("regions", 1)] == 5
    assert found[("regions", 1, 0)] == 6
    assert found[("regions", 1, 1)] == 7
    assert ("regions", 2) not in found  # a trailing comma adds no element
    assert found[("last",)] == 10


def test_brackets_and_quotes_inside_strings_are_text() -> None:
    text = 'a = "]#\'"\nb = [\'[\', "}\\"]"]\nc = 3\n'
    assert lines(text) == {("a",): 1, ("b",): 2, ("b", 0): 2, ("b", 1): 2, ("c",): 3}


def test_multi_line_strings_hide_what_looks_like_keys() -> None:
    text = 'a = """\nx = 1\n[t]\n\\""" still """\nb = \'\'\'\ny = 2\n\'\'\'\'\'\nc = 1\n'
    assert tomllib.loads(text).keys() == {"a", "b", "c"}
    assert lines(text) == {("a",): 1, ("b",): 5, ("c",): 8}


def test_dotted_and_quoted_keys_are_split_as_toml_splits_them() -> None:
    text = 'a.b."c.d" = 1\n"e\\u0041" . \'f"g\' = 2\n'
    assert tomllib.loads(text) == {"a": {"b": {"c.d": 1}}, "eA": {'f"g': 2}}
    assert lines(text) == {
        ("a",): 1,
        ("a", "b"): 1,
        ("a", "b", "c.d"): 1,
        ("eA",): 2,
        ("eA", 'f"g'): 2,
    }


def test_inline_tables_inside_arrays_are_followed() -> None:
    text = "rows = [\n  { gpa = 0,\n    size = 1 },\n  { 'gpa' = 2 },\n]\n"  # a newline in one is tolerated
    found = lines(text)
    assert found[("rows", 0, "gpa")] == 2
    assert found[("rows", 0, "size")] == 3
    assert found[("rows", 1, "gpa")] == 4


def test_arrays_of_tables_count_their_elements_and_own_their_sub_tables() -> None:
    text = (
        '[[devices.virtual]]\nmodel = "a"\n[[devices.virtual]]\nmodel = "b"\n'
        "[devices.virtual.options]\nx = 1\n"
    )
    found = lines(text)
    assert found[("devices", "virtual")] == 1
    assert found[("devices", "virtual", 0, "model")] == 2
    assert found[("devices", "virtual", 1)] == 3
    assert found[("devices", "virtual", 1, "model")] == 4
    assert found[("devices", "virtual", 1, "options", "x")] == 6


def test_windows_line_ends_count_once() -> None:
    assert lines("[a]\r\nb = 1\r\nc = [\r\n 1,\r\n]\r\nd = 2\r\n")[("a", "d")] == 6


def test_line_of_falls_back_to_the_enclosing_key() -> None:
    found = TomlLines("[kernel]\nmemory_regions = [[0, 1]]\n")
    assert found.line_of(("kernel", "memory_regions", 0, "size")) == 2
    assert found.line_of(("kernel", "entry_point")) == 1
    assert found.line_of(("base", "id")) == 0


def test_scanning_goes_on_after_a_broken_line() -> None:
    text = 'a = [1, 2\nb = "open\n= 3\n]]}\n[t\nc = 4\n'
    found = lines(text)
    assert found[("a", 1)] == 1
    assert found[("t", "c")] == 6


def test_depth_is_told_so_that_the_parser_can_be_spared() -> None:
    found = TomlLines("a = 1\nb = " + "[" * 5000 + "]" * 5000 + "\nc = 1\n")
    assert found.deepest == 5001
    assert found.deepest_line == 2
    assert found.lines[("c",)] == 3  # the scan comes out of the nest on the other side


def test_dotted_parts_count_as_depth() -> None:
    found = TomlLines("a = 1\n" + ".".join("k" * 3000) + " = 1\n")
    assert found.deepest == 3000
    assert found.deepest_line == 2
    assert max(map(len, found.lines)) == DEPTH_MAX


def test_the_number_of_remembered_places_is_bounded() -> None:
    found = TomlLines("a = [" + "1," * (PLACES_MAX + 100) + "]\n")
    assert len(found.lines) == PLACES_MAX
    assert found.line_of(("a", PLACES_MAX + 50)) == 1


def test_hostile_texts_take_no_quadratic_time() -> None:
    size = 1 << 18
    hostile = [
        "[" * size,
        "a=[" * (size // 3),
        '"' * size,
        "'''" + "'" * size,
        "a." * (size // 2),
        "{a=" * 9999,
        "a=1\n" * (size // 4),
        "[[a]]\n" * (size // 6),
        "\\" * size,
        'a="""' + '\\""' * (size // 3),
        "a=" + "[" * 100 + "[]," * (size // 3),
    ]
    for text in hostile:
        begin = time.perf_counter()
        TomlLines(text)
        assert (
            time.perf_counter() - begin < 10
        )  # linear ones take well under a second, quadratic ones minutes


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab=.[]{}\"'#,\\ \n1", max_size=60))
def test_any_text_is_scanned_and_every_tomllib_key_found(text: str) -> None:
    found = TomlLines(text).lines
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return

    def visit(value: Any, path: Path) -> None:
        if path:
            assert path in found
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in items:
            visit(inner, (*path, key))

    visit(data, ())
