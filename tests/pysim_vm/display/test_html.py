"""display/html.py: tables and notes as text and HTML; what a guest wrote cannot break out of either."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pysim_vm.display.html import (
    CELL_MAX,
    Drawn,
    Note,
    Row,
    Span,
    Table,
    cut,
    ends,
    joined,
    number,
    visible,
)
from tests.pysim_vm.html_text import seen

EVIL = '<script>alert("1")</script>&amp;'


def table(*cells: object, head: tuple[str, ...] = ()) -> Drawn:
    return Drawn((Table(head, "l" * len(cells), (Row(cells),)),))  # type: ignore[arg-type]


def test_a_picture_is_the_same_words_as_text_and_as_html() -> None:
    picture = Drawn((Note("Title", "title"), Table(("a", "b"), "lr", (Row(("x", "1")), Row(("yy", "22"))))))
    assert str(picture) == "Title\n  a    b\n  x    1\n  yy  22"
    assert repr(picture) == str(picture)
    assert seen(picture).text == "Titleabx1yy22"


def test_text_of_a_guest_is_escaped_in_every_part() -> None:
    picture = Drawn((Note(EVIL), Table((EVIL,), "l", (Row((EVIL,)), Row((Span(EVIL, "dim"),))))))
    page = seen(picture)
    assert "script" not in page.tags
    assert page.text == EVIL * 4


def test_control_characters_and_bidirectional_marks_are_spelled_out() -> None:
    assert visible("a\x1b[31mb\nc\u202ed\x00") == "a\\x1b[31mb\\nc\\u202ed\\x00"
    assert visible("plain – ☺") == "plain – ☺"
    assert visible("\ud800") == "\\ud800"  # a lone surrogate cannot be written to a file


def test_a_long_cell_is_cut() -> None:
    assert len(visible("x" * 100_000)) == CELL_MAX
    assert visible("x" * 100_000).endswith("x…")


@given(st.text(max_size=60))
def test_any_text_in_any_cell_gives_well_formed_html_and_printable_text(text: str) -> None:
    picture = Drawn((Note(text), Table((), "nl", (Row((text, (Span(text, "changed"), Span(text)))),))))
    assert seen(picture).text == visible(text) * 4
    assert all(line.isprintable() for line in str(picture).split("\n"))


def test_leading_zeros_are_dim_and_the_last_digit_never_is() -> None:
    assert number(0x1F, 8) == (Span("000000", "dim"), Span("1f"))
    assert number(0, 4) == (Span("000", "dim"), Span("0"))
    assert number(0xABCD, 4) == (Span("abcd"),)
    assert number(1, 4, "changed") == (Span("0001", "changed"),)


def test_what_changed_has_a_star_in_text_and_a_colour_in_html() -> None:
    picture = table(Span("12", "changed"), Span("ZF", "gone"))
    assert str(picture) == "  12*  ZF off*"
    assert seen(picture).marked("changed") == ["12"]
    assert seen(picture).marked("gone") == ["ZF"]


def test_a_bar_is_as_long_as_its_share_and_never_longer_than_full() -> None:
    assert 'style="width:3.500em"' in table(Span("", "bar", 0.5))._repr_html_()
    assert 'style="width:7.000em"' in table(Span("", "bar", 9.0))._repr_html_()


def test_a_table_without_a_head_has_no_head_row() -> None:
    assert "thead" not in seen(table("x")).tags
    assert str(table("x")) == "  x"
    assert "thead" in seen(table("x", head=("h",))).tags


def test_a_marked_row_and_an_empty_table() -> None:
    marked = Drawn((Table((), "l", (Row(("x",), "here"),)),))
    assert '<tr class="here">' in marked._repr_html_()
    assert str(Drawn((Table(("a",), "l", ()),))) == ""
    assert "table" not in seen(Drawn((Table(("a",), "l", ()),))).tags


def test_what_is_left_out_is_counted() -> None:
    assert [note.words for note in cut(12, 10, "row")] == ["… 2 more rows"]
    assert [note.words for note in cut(11, 10, "row")] == ["… 1 more row"]
    assert list(cut(10, 10, "row")) == []


def test_the_ends_of_many_rows_are_as_many_as_fit() -> None:
    assert list(ends(5, 10)) == [range(5)]
    assert list(ends(100, 5)) == [range(3), range(98, 100)]


def test_joined_spans_have_the_separator_between_them_only() -> None:
    assert joined((Span("a"), Span("b", "dim")), ", ") == (Span("a"), Span(", "), Span("b", "dim"))
    assert joined(()) == ()


def test_the_style_works_on_light_and_dark_pages_and_loads_nothing() -> None:
    html = table("x")._repr_html_()
    assert "prefers-color-scheme:dark" in html
    for remote in ("http", "url(", "@import", "<link", "src="):
        assert remote not in html
