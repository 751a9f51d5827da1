"""docs/records.md keeps its word: its commands run one after the other and print what it shows."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from pysim_vm.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "records.md"


def sessions() -> list[tuple[str, list[str]]]:
    """Each command of the page with the lines it shows."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(
        r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
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
    commands = sessions()
    assert len(commands) >= 12
    for command, shown in commands:
        words = shlex.split(command)
        assert words[0] == "pysim-vm"
        status = run_command([*words[1:], *(["--no-input"] if words[1] == "run" else [])])
        out = capsys.readouterr().out
        assert status == (33 if words[1] == "run" else 0), command  # hello.bin ends with 2 * 16 + 1
        if shown:
            assert [line.rstrip() for line in out.splitlines()] == [line.rstrip() for line in shown], command


def test_the_commands_of_the_section_on_records_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = text.partition("### Records")[2].partition("###")[0]
    commands = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(commands) >= 7
    for command in commands:
        assert run_command(shlex.split(command)[1:]) == 0, command


def test_the_page_names_every_condition() -> None:
    from pysim_vm.record_format import Kind
    from pysim_vm.trace.where import _PLAIN, _SPECIAL

    text = PAGE.read_text(encoding="utf-8")
    for name in (*_PLAIN[Kind.EXITS], *_SPECIAL[Kind.EXITS]):
        assert f"`{name}`" in text, name
