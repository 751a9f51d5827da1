"""bootstrap.py: what it decides. Nothing is installed or fetched: its steps are replaced by notes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bootstrap

CHECKOUT = Path(__file__).resolve().parent.parent


class Machine:
    """A computer for bootstrap: which modules its Python has, and what was called on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, modules: set[str]) -> None:
        self.modules = modules
        self.steps: list[list[str]] = []
        self.became: tuple[str, list[str], dict[str, str]] | None = None
        self.root = root / ".venv"
        monkeypatch.setattr(bootstrap, "ENVIRONMENT", self.root)
        monkeypatch.setattr(bootstrap, "PYTHON", self.root / "bin" / "python")
        monkeypatch.setattr(bootstrap, "FOLDER", self.root / "packages")
        monkeypatch.setattr(bootstrap, "can_import", self._can_import)
        monkeypatch.setattr(bootstrap, "run_quietly", self._run_quietly)
        monkeypatch.setattr(os, "execve", self._execve)
        monkeypatch.setattr(os, "chdir", lambda path: None)

    def _can_import(self, name: str, python: str = sys.executable) -> bool:
        return name in self.modules

    def _run_quietly(self, command: list[str], what: str, advice: str) -> None:
        self.steps.append(command)
        if "venv" in command:
            (self.root / "bin").mkdir(parents=True, exist_ok=True)
            (self.root / "bin" / "python").touch()
        if "--target" in command:
            (self.root / "packages").mkdir(exist_ok=True)

    def _execve(self, python: str, arguments: list[str], variables: dict[str, str]) -> None:
        self.became = (python, arguments, variables)


def test_venv_is_preferred_and_the_command_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, tmp_path, {"venv", "ensurepip"})
    assert bootstrap.main(["demo"]) == 0
    make, fill = machine.steps
    assert make == [sys.executable, "-m", "venv", "--clear", str(tmp_path / ".venv")]
    assert fill[:4] == [str(tmp_path / ".venv/bin/python"), "-m", "pip", "install"]
    assert any(package.startswith("iced-x86") for package in fill)
    assert machine.became is not None
    python, arguments, variables = machine.became
    assert python == str(tmp_path / ".venv/bin/python")
    assert arguments[1:] == ["-m", "pysim_vm", "demo"]
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(CHECKOUT)


def test_pip_without_ensurepip_fills_a_folder_that_pep_668_does_not_protect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, tmp_path, {"venv", "pip"})
    assert bootstrap.main(["run", "x"]) == 0
    (fill,) = machine.steps
    assert fill[:4] == [sys.executable, "-m", "pip", "install"]
    assert fill[fill.index("--target") + 1] == str(tmp_path / ".venv/packages")
    assert machine.became is not None
    python, arguments, variables = machine.became
    assert (python, arguments[1:]) == (sys.executable, ["-m", "pysim_vm", "run", "x"])
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(CHECKOUT), str(tmp_path / ".venv/packages")]


def test_neither_venv_nor_pip_is_one_line_with_the_apt_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, tmp_path, {"venv"})
    assert bootstrap.main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "bootstrap: neither venv nor pip is here; run: apt install python3-venv\n"
    )
    assert machine.became is None
    assert not machine.root.exists()


@pytest.mark.parametrize("modules", [{"venv", "ensurepip"}, {"pip"}])
def test_a_second_call_installs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: set[str]
) -> None:
    machine = Machine(monkeypatch, tmp_path, modules)
    bootstrap.main(["demo"])
    machine.steps.clear()
    assert bootstrap.main(["demo"]) == 0
    assert machine.steps == []


def test_the_tests_need_packages_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, tmp_path, {"venv", "ensurepip", "pip"})
    bootstrap.main(["demo"])
    machine.steps.clear()
    bootstrap.main(["test", "tests/isa", "-x"])
    (fill,) = machine.steps  # the environment is there already
    assert any(package.startswith("pytest-xdist") for package in fill)
    assert machine.became is not None
    assert machine.became[1][1:5] == ["-m", "pytest", "-n", "auto"]
    assert machine.became[1][-2:] == ["tests/isa", "-x"]


def test_an_interrupted_installation_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, tmp_path, {"pip"})

    def interrupted(command: list[str], what: str, advice: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "run_quietly", interrupted)
        assert bootstrap.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert bootstrap.main(["demo"]) == 0
    assert len(machine.steps) == 1


def test_an_environment_whose_python_was_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, tmp_path, {"venv", "ensurepip", "pip"})
    bootstrap.main(["demo"])
    (machine.root / "bin/python").unlink()
    (machine.root / "bin/python").symlink_to("/nowhere/python3.11")
    machine.steps.clear()
    monkeypatch.setattr(bootstrap, "run_quietly", lambda command, *_: machine.steps.append(command))
    bootstrap.main(["demo"])
    assert machine.steps[0][2:4] == ["venv", "--clear"]


def test_another_python_installs_again_because_compiled_packages_fit_one_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["numpy"]
    ours = bootstrap.mark_of("", wanted)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    assert bootstrap.mark_of("", wanted) != ours
    assert bootstrap.mark_of("", [*wanted, "click"]) != bootstrap.mark_of("", wanted)


def test_a_checkout_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, tmp_path, {"pip"})

    def refuse(path: Path, *, exist_ok: bool) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert bootstrap.main(["demo"]) == 1
    assert capsys.readouterr().err == (
        f"bootstrap: {tmp_path}/.venv: Read-only file system; put the checkout where you can read and write\n"
    )


def test_a_step_that_fails_shows_the_end_of_its_output() -> None:
    with pytest.raises(bootstrap.SetupError, match="pip install failed; try again\n    no such package"):
        bootstrap.run_quietly(
            [sys.executable, "-c", "print('no such package'); raise SystemExit(1)"],
            "pip install",
            "try again",
        )


def test_an_old_python_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert bootstrap.main(["demo"]) == 1
    assert capsys.readouterr().err.startswith("bootstrap: Python 3.11 or later is needed, this is ")


def test_an_old_python_can_parse_and_import_it() -> None:
    tree = ast.parse((CHECKOUT / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    imported = [node for node in tree.body if isinstance(node, ast.Import)]
    assert "tomllib" not in {alias.name for node in imported for alias in node.names}


def test_the_developers_packages_include_those_of_the_tests() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    developer = set(bootstrap.requirements("dev"))
    assert developer >= {*project["dependencies"], *project["optional-dependencies"]["test"]}
    assert not any(line.startswith("pysim-vm") for line in developer)


def test_without_a_command_the_usage_is_shown() -> None:
    result = subprocess.run(
        [sys.executable, str(CHECKOUT / "bootstrap.py")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", bootstrap.USAGE + "\n")
