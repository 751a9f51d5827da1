"""The Python in README.md and docs/: every block runs, a page's blocks from top to bottom as one program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r"<!-- snippet: (\S+) -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Names that a page's excerpt from a module takes from the top of that module
PRELUDE = {
    "architecture.md": "from isa.cpu import Cpu\nfrom isa.operands import Operand\n"
    "from isa.semantics.registry import insn\n",
}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block in a language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(2)) + 1, match[2])
        for match in BLOCK.finditer(text)
        if match[1] == language
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _, text in blocks(page, "toml")[:1]:
        (tmp_path / "vm.toml").write_text(text, encoding="utf-8")  # the file that the page's code reads
    names: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    exec(compile(PRELUDE.get(page.name, ""), "prelude", "exec"), names)
    for line, text in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)


def test_there_is_something_to_run() -> None:
    assert len(blocks(ROOT / "docs" / "custom-devices.md", "python")) >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_marked_with_a_file_is_an_excerpt_of_it(page: Path) -> None:
    for path, text in SNIPPET.findall(page.read_text(encoding="utf-8")):
        assert text in (ROOT / path).read_text(encoding="utf-8"), f"{page.name}: {path} was changed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_documentation_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        other = page if not name else page.parent / name
        if other.exists() and other.suffix == ".md" and anchor:
            body = other.read_text(encoding="utf-8")
            headings = {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
                for heading in re.findall(r"^#+ (.*)$", body, re.MULTILINE)
            }
            assert anchor in headings or f'id="{anchor}"' in body, f"{page.name}: {target}"


def test_the_page_on_custom_devices_has_the_table_of_contents_of_axvms() -> None:
    text = (ROOT / "docs" / "custom-devices.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Introduction", "Project Structure", "Core Components", "Architecture Overview",
        "Detailed Component Analysis", "Dependency Analysis", "Performance Considerations",
        "Troubleshooting Guide", "Conclusion",
    ]  # fmt: skip


def test_the_files_that_the_page_names_exist() -> None:
    text = (ROOT / "docs" / "custom-devices.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:devices|isa|pysim_vm|tests)/[\w/.-]+\.py)`", text):
        assert (ROOT / path).exists(), path
