"""display/notebook.py and the notebooks of examples/: cells are read, run in order, and become a page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pysim_vm.cli import run_command
from pysim_vm.cli.status import ExitStatus
from pysim_vm.display.notebook import (
    CellError,
    CellRun,
    NotebookCell,
    NotebookError,
    notebook_page,
    parse_cells,
    read_notebook,
    run_cells,
)
from tests.pysim_vm.html_text import Seen

NOTEBOOKS = Path(__file__).resolve().parents[3] / "examples" / "notebooks"

SMALL = """# ---
# jupyter: {}
# ---

# %% [markdown]
# # A title
#
# Some *words* & <b>more</b>.

# %%
x = 20
print("x is", x)

# %% a title of its own
def double(n):
    return 2 * n


double(x) + 2  # shown

# %%
"""


# ---- cells -------------------------------------------------------------------------------------------------


def test_cells_are_found_with_their_lines_and_without_header_and_blank_ones() -> None:
    cells = parse_cells(SMALL)
    assert cells == [
        NotebookCell("# A title\n\nSome *words* & <b>more</b>.", 6, words=True),
        NotebookCell('x = 20\nprint("x is", x)', 11),
        NotebookCell("def double(n):\n    return 2 * n\n\n\ndouble(x) + 2  # shown", 15),
    ]


def test_a_cell_gives_what_it_printed_and_the_value_of_its_last_expression() -> None:
    words, first, second = run_cells(parse_cells(SMALL), "small.py")
    assert words == CellRun(words.cell)
    assert (first.printed, first.value, first.html) == ("x is 20\n", None, "")
    assert (second.printed, second.value, second.text) == ("", 42, "42")
    assert second.html == "<pre>42</pre>"


def test_a_value_is_shown_as_it_was_when_its_cell_ended() -> None:
    runs = run_cells(parse_cells("# %%\nvalues = [1]\nvalues\n# %%\nvalues.append(2)\n"), "x.py")
    assert runs[0].text == "[1]"


def test_an_object_with_a_page_of_its_own_is_shown_by_it_and_a_class_is_not() -> None:
    text = "# %%\nclass Page:\n    def _repr_html_(self): return '<i>page</i>'\nPage()\n# %%\nPage\n"
    runs = run_cells(parse_cells(text), "x.py")
    assert runs[0].html == "<i>page</i>"
    assert runs[1].html.startswith("<pre>&lt;class")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# %%\nx = 1\n\n1 / 0\n", "notebook n.py line 4: ZeroDivisionError: division by zero"),
        ("# %%\nx = 1\n# %%\nx = = 2\n", "notebook n.py line 4: SyntaxError"),
        ("# %%\ndef f():\n    raise ValueError('no')\n\nf()\n", "notebook n.py line 3: ValueError: no"),
    ],
)
def test_a_cell_that_raises_is_one_sentence_with_its_line(text: str, message: str) -> None:
    with pytest.raises(CellError, match=message):
        run_cells(parse_cells(text), "n.py")


def test_a_file_without_cells_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(NotebookError, match="has no cells"):
        read_notebook(empty)
    with pytest.raises(NotebookError, match="cannot be read"):
        read_notebook(tmp_path / "missing.py")
    empty.write_bytes(b"# %%\n\xff\n")
    with pytest.raises(NotebookError, match="not UTF-8"):
        read_notebook(empty)


# ---- the page ----------------------------------------------------------------------------------------------


def test_the_page_has_words_code_and_output() -> None:
    html = notebook_page(run_cells(parse_cells(SMALL), "small.py"), "small.py")
    page = Seen(html)
    assert "<title>A title</title>" in html
    assert "<h1>A title</h1>" in html
    assert "b" not in page.tags  # HTML in the words is text
    assert "x is 20" in page.text
    assert "42" in page.text
    assert page.marked("key") == ["def", "return"]
    assert page.marked("com") == ["# shown"]


def test_code_with_markup_and_many_lines_is_shown_as_written() -> None:
    text = 'x = f"""<b>{1 + 1}\n&amp;"""  # <i>\nif x < "ü" > "": y = 0x1F\n'
    cell = NotebookCell(text, 1)
    page = Seen(notebook_page([CellRun(cell)], "x.py"))
    assert text in page.text
    assert "i" not in page.tags
    assert page.marked("num")[-1] == "0x1F"


def test_endless_output_is_cut() -> None:
    runs = run_cells(parse_cells("# %%\nprint('x' * 1_000_000)\n'y' * 1_000_000\n"), "x.py")
    html = notebook_page(runs, "x.py")
    assert len(html) < 500_000
    assert "… 800,001 more characters" in html


def test_a_page_loads_nothing_from_elsewhere() -> None:
    html = notebook_page(run_cells(read_notebook(NOTEBOOKS / "paging.py"), "paging.py"), "paging.py")
    for remote in ("src=", "url(", "@import", "<link", "<script"):
        assert remote not in html
    assert "prefers-color-scheme:dark" in html


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_beside_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    assert run_command(["notebook", "small.py"]) == ExitStatus.OK
    assert "3 cells ran; the page is small.html" in capsys.readouterr().err
    assert "<h1>A title</h1>" in (tmp_path / "small.html").read_text(encoding="utf-8")
    assert run_command(["notebook", "small.py", "--output", "other.html", "--json"]) == ExitStatus.OK
    assert json.loads(capsys.readouterr().out) == {"exit_status": 0, "file": "other.html", "cells": 3}


def test_the_command_turns_failures_into_sentences_and_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("# %%\n1 / 0\n", encoding="utf-8")
    assert run_command(["notebook", "bad.py"]) == ExitStatus.CELL
    error = capsys.readouterr().err
    assert error == "pysim-vm: notebook bad.py line 2: ZeroDivisionError: division by zero\n"
    assert not (tmp_path / "bad.html").exists()
    assert run_command(["notebook", "missing.py"]) == ExitStatus.HOST_IO
    (tmp_path / "good.py").write_text("# %%\n1\n", encoding="utf-8")
    assert run_command(["notebook", "good.py", "--output", "no/such/folder.html"]) == ExitStatus.HOST_IO
    assert "--output: no/such/folder.html cannot be written" in capsys.readouterr().err


def test_the_commands_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(NOTEBOOKS, tmp_path / "examples" / "notebooks")
    text = (NOTEBOOKS.parents[1] / "docs" / "notebooks.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ pysim-vm (.*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert run_command(shlex.split(command)) == ExitStatus.OK, command
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["exits.html", "paging.html"]


# ---- the notebooks of examples/ ----------------------------------------------------------------------------


def shown_by(name: str) -> list[CellRun]:
    """A notebook of examples/, run; only its code."""
    return [run for run in run_cells(read_notebook(NOTEBOOKS / name), name) if not run.cell.words]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.name)
def test_every_cell_of_a_notebook_runs_and_gives_the_same_page_twice(path: Path) -> None:
    pages = [notebook_page(run_cells(read_notebook(path), path.name), path.name) for _ in range(2)]
    assert pages[0] == pages[1]
    page = Seen(pages[0])
    assert page.tags.count("h1") == 1
    assert page.tags.count("table") >= 12


def test_the_notebook_on_exits_shows_what_its_words_say() -> None:
    runs = shown_by("exits.py")
    texts = [run.html for run in runs]
    store = next(text for text in texts if "MmioWrite" in text)
    assert "0xfeb00000" in store
    registers = next(text for text in texts if "changes marked" in text)
    assert Seen(registers).marked("changed") == ["00000000000000de"]
    assert sum("answered by thermometer" in text for text in texts) >= 3
    assert any("io_write" in text and 'class="bar"' in text for text in texts)
    assert Seen(texts[-2]).text.count("de") >= 1
    assert "*****" in texts[-1]


def test_the_notebook_on_paging_shows_what_its_words_say() -> None:
    texts = [Seen(run.html).text for run in shown_by("paging.py") if run.html]
    walks = [text for text in texts if text.startswith("Page walk of 0x200010")]
    assert len(walks) == 3
    assert "#PF(0x3): supervisor write, CR0.WP=1 and PDE at 0xb008 has R/W=0" in walks[1]
    assert "#PF(0x3)" not in walks[0] + walks[2]
    assert any("exception, vector 14 (#PF, page fault)" in text for text in texts)
    assert any("Page fault: repaired, going on." in text for text in texts)
    assert any(text.startswith("TripleFault") and "PDPTE at" in text for text in texts)
    assert any(text.endswith("CPL0") and "PDE at 0xb008 has R/W=0" in text for text in texts)
    fault = next(text for text in texts if "4 instructions later" in text)
    assert "0x200010" in fault
    assert "0000000000008fc0" in fault


def test_the_notebook_on_paging_starts_48_bytes_higher() -> None:
    first = next(run.value for run in shown_by("paging.py") if run.value is not None)
    assert first["rsp"] - 0x8FC0 == 48
