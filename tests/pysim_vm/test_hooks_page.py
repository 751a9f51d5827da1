"""docs/hooks.md keeps its word: its Python runs, and its commands then print what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pysim_vm import AxVM
from pysim_vm.cli import run_command
from pysim_vm.hooks import Hooks
from pysim_vm.trace.rows import EventRow

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "hooks.md"


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_commands_of_the_page_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs_hooks"}
    for text in blocks("python"):
        exec(compile(text, str(PAGE), "exec"), names)
        comments = [
            line.partition("  # ")[2] for line in text.splitlines() if line.strip().startswith("print(")
        ]
        printed = capsys.readouterr().out
        for comment in comments:
            assert comment in printed
    assert len(blocks("console")) == 1
    shown: list[str] = []
    for line in blocks("console")[0].splitlines():
        if line.startswith("$ "):
            assert shown == []
            assert run_command(shlex.split(line)[2:]) == 0
            shown = [each.rstrip() for each in capsys.readouterr().out.splitlines()]
        else:
            assert line == shown.pop(0)
    assert shown == []


def test_the_page_names_every_hook_and_no_other() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `(on_\w+)\(", text, re.MULTILINE))
    assert table == {name for name in vars(Hooks) if name.startswith("on_")}


def test_the_sentences_of_the_page_are_those_of_the_machine() -> None:
    """Those that a few bytes bring about; the others are in tests/isa/test_faults.py."""
    text = PAGE.read_text(encoding="utf-8")
    for guest, mode in (
        ("mov rax, [0x200000000]", "long"),
        ("mov eax, 0\nmov cr4, eax\nmovaps xmm0, xmm1", "protected"),
    ):
        vm = AxVM.from_asm(guest, mode=mode)
        seen: list[EventRow] = []
        vm.hooks.on_exception(seen.append)
        vm.run(100)
        assert f"`{seen[0].words()}`" in text
