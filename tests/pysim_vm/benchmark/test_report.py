"""The report: one page that needs nothing else, whatever the names in the results are."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pysim_vm.benchmark.plots import figures_of
from pysim_vm.benchmark.report import CYCLES, UNITS, cycles_per_operation, page
from pysim_vm.benchmark.result import Results
from tests.pysim_vm.bench_results import MODEL, TIMED, results, timed

EVIL = r"<script>alert('&')</script>$\frac$"
VOID = {"meta", "br", "path", "use"}


class Page(HTMLParser):
    """Its tags, attributes and text; a tag that is closed in the wrong place is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def evil() -> Results:
    """Results full of markup."""
    model = replace(MODEL, workload=EVIL, summary=EVIL)
    row = timed(13.0, 12.0, 14.0, workload=EVIL, engine=EVIL)
    return results(row, models=(model,), machine={"cpu": EVIL, "python": EVIL, "system": EVIL})


MANY = results(
    TIMED, timed(20.0, 19.0, 21.0, engine="step"),
    models=(MODEL, replace(MODEL, workload="io_read", per="iteration", exits={"io_read": 50, "halt": 1})),
)  # fmt: skip


@pytest.mark.parametrize("made", [results(), MANY, evil()], ids=["model", "many", "evil"])
@pytest.mark.parametrize("drawn", [True, False], ids=["figures", "bars"])
def test_the_page_is_well_formed_and_refers_to_nothing_outside(made: Results, drawn: bool) -> None:
    text = page(made, title=EVIL, author=EVIL, figures=figures_of(made) if drawn else None)
    found = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href", "clip-path"):
            assert value.startswith(("#", "url(#")), (name, value)
        elif not name.startswith("xmlns"):
            assert "://" not in value, (name, value)
    assert "://" not in found.text
    assert "@import" not in text
    assert found.text.count("alert('&')") >= 2  # as text


def test_every_number_of_the_results_is_on_the_page() -> None:
    text = Page(page(MANY, title="T", author="A. Student")).text
    for words in ("A. Student", "a CPU", "200,201", "io_write 100", "io_read 50, halt 1", "13.0", "12.5–13.5",
                  "20.0", "19.0–21.0", "650.0 ns", "per iteration", "2,000"):  # fmt: skip
        assert words in text, words


def test_a_model_alone_has_no_columns_of_time() -> None:
    text = Page(page(results(), title="T")).text
    assert "Middle half" not in text
    assert "normalised" not in text


@pytest.mark.parametrize("drawn", [True, False])
def test_the_same_results_give_the_same_page(drawn: bool) -> None:
    pages = {page(MANY, title="T", figures=figures_of(MANY) if drawn else None) for _ in range(2)}
    assert len(pages) == 1


def test_figures_have_the_colour_of_the_page_and_no_date() -> None:
    figures = figures_of(MANY)
    assert set(figures) == {CYCLES, UNITS}
    for svg in figures.values():
        assert svg.startswith("<svg")
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "metadata" not in svg
        assert "io_write" in svg  # text stays text
    assert set(figures_of(results())) == {CYCLES}


@pytest.mark.parametrize(("most", "tick"), [(27.0, "20"), (44.0, "30"), (900.0, "500")])
def test_the_axis_of_units_has_numbers_and_no_formulas(most: float, tick: str) -> None:
    wide = results(TIMED, timed(most, most - 1, most + 1, engine="step"), models=(MODEL,))
    labels = Page(figures_of(wide)[UNITS]).text
    assert "mathdefault" not in labels and "$" not in labels
    assert tick in labels.split()


def test_ids_of_two_figures_never_meet() -> None:
    ids = [value for name, value in Page(page(MANY, title="T", figures=figures_of(MANY))).attributes
           if name == "id"]  # fmt: skip
    assert ids
    assert len(ids) == len(set(ids))


def test_cycles_are_split_by_what_they_are_spent_on() -> None:
    row = replace(MODEL, exits={"io_write": 50, "mmio_read": 30, "halt": 20}, instructions=200)
    parts = {label: cycles for label, _, cycles in cycles_per_operation(results(), row)}
    assert parts == {
        "instructions": 2.0, "ports": 1000.0, "device memory": 1050.0, "registers (MSR)": 0.0,
        "everything else": 400.0,
    }  # fmt: skip


def test_bars_are_as_long_as_their_numbers() -> None:
    made = results(timed(10.0, 9.0, 20.0), timed(20.0, 20.0, 20.0, engine="step"))
    text = page(made, title="T")
    assert 'style="width:50.00%' in text
    assert 'style="width:100.00%' in text
