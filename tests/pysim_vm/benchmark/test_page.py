"""docs/benchmarks.md keeps its word: its commands run one after the other and print what it shows."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from pysim_vm.benchmark.guest import ACCESS_KINDS
from pysim_vm.cli import run_command

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks.md"
TEXT = PAGE.read_text(encoding="utf-8")
LAB = re.search(r"^```text\n(name = .*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def sessions() -> list[tuple[str, list[str]]]:
    """Each command of the page with the lines it shows."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def test_the_commands_of_the_page_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    assert LAB is not None
    (tmp_path / "lab.toml").write_text(LAB[1], encoding="utf-8")
    commands = sessions()
    assert len(commands) >= 10
    for command, shown in commands:
        words = shlex.split(command)
        assert words[0] == "pysim-vm"
        assert run_command(words[1:]) == 0, command
        out = capsys.readouterr().out
        if shown:
            assert [line.rstrip() for line in out.splitlines()] == [line.rstrip() for line in shown], command
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_workload_of_the_page_is_the_example() -> None:
    block = re.search(r"^```toml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert block[1] == (ROOT / "examples" / "nic.toml").read_text(encoding="utf-8")


def test_the_page_names_every_kind_of_access_and_every_option() -> None:
    for kind in ACCESS_KINDS:
        assert f"`{kind}`" in TEXT, kind
    for key in ("asm", "image", "mode", "base", "end", "instructions", "restart", "lazy", "disk"):
        assert f"`{key}`" in TEXT, key
