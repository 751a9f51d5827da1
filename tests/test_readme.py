"""README.md and docs/command-line.md keep their word: `console` commands run, links lead somewhere.

`python3 bootstrap.py COMMAND` is run as bootstrap would run it, without installing. A run of a guest gets a
small instruction budget and no terminal; the one that runs the tests is only asked for its version.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap
from pysim_vm.cli.status import ExitStatus
from tests.guests import guest

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/command-line.md")
BUDGET = "200_000"


def console_commands(page: str) -> list[str]:
    """The lines after `$ ` in the `console` blocks of a page."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


COMMANDS = [(page, line) for page in PAGES for line in console_commands(page)]


def bounded(arguments: list[str]) -> list[str]:
    """The arguments of a pysim-vm command, so that they end soon and ask nobody."""
    if arguments[0] != "run":
        return arguments
    if "--budget" in arguments:
        arguments[arguments.index("--budget") + 1] = BUDGET
    else:
        arguments += ["--budget", BUDGET]
    return [*arguments, "--no-input"]


def test_the_readme_promises_something() -> None:
    commands = console_commands("README.md")
    assert "python3 bootstrap.py demo" in commands
    assert "python3 bootstrap.py test" in commands
    assert any(" run " in command for command in commands)


@pytest.mark.guest
@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_printed_command_runs(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[:2] == ["python3", "bootstrap.py"]:
        words = words[2:]
    elif words[0] == "pysim-vm":
        words = words[1:]
    else:
        pytest.fail(f"{page}: nobody knows how to test {line!r}")
    files = [word for word in words if word.startswith(".guests/")]
    words = [str(guest(word[len(".guests/") :])) if word in files else word for word in words]
    if "examples/linux.toml" in words:
        for needed in ("vmlinuz-cloud-amd64", "busybox.cpio"):
            guest(needed)
    if words[0] == "test":
        words = [*words, "--version"]
    elif words[0] != "dev":
        words = bounded(words)
    _, rest = bootstrap.command_line(words)
    result = subprocess.run(
        [sys.executable, *rest],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    expected = ExitStatus.BUDGET if words[0] == "run" else ExitStatus.OK
    assert result.returncode == expected, result.stderr.decode(errors="replace")
    assert b"Traceback" not in result.stderr
    if words[0] == "demo":
        assert b"power off" in result.stdout


def test_a_printed_program_is_part_of_the_example_it_names() -> None:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"<!-- snippet: (\S+) -->\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(snippets) == text.count("<!-- snippet:") > 0
    for name, code in snippets:
        assert code in (CHECKOUT / name).read_text(encoding="utf-8"), f"{name} has changed: copy it again"


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))]
)
def test_every_link_leads_to_a_file_of_the_checkout(page: str) -> None:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [target for target in targets if not ((CHECKOUT / page).parent / target).exists()]
    assert missing == []
