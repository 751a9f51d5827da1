#!/usr/bin/env python3
"""Set up and run on a machine with nothing but python3: `python3 bootstrap.py demo` or `... test`.

The packages go into .venv/ beside this file and nowhere else: a virtual environment where the venv module
works, else a plain folder filled by pip. A second call starts at once. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"
FOLDER = ENVIRONMENT / "packages"  # where pip puts things when there is no venv
USAGE = "usage: python3 bootstrap.py demo | test [PYTEST ARGS] | dev COMMAND ... | any pysim-vm command"


def requirements(extra: str) -> list[str]:
    """The project's dependencies with those of an extra, from pyproject.toml."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    pending = [extra] if extra else []
    while pending:
        for line in project["optional-dependencies"][pending.pop()]:
            if line.startswith("pysim-vm["):
                pending.append(line[len("pysim-vm[") : -1])
            else:
                wanted.append(line)
    return sorted(set(wanted))


def has_module(name: str) -> bool:
    """True if `python3 -m name` can start."""
    probe = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def fail(sentence: str) -> None:
    """One sentence, exit code 1."""
    sys.exit(f"bootstrap: {sentence}")


def run_quietly(command: list[str], what: str) -> None:
    """Run a set-up step; its output is shown only when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        fail(f"{what} failed; is the package index reachable?\n{tail}")


def prepare(extra: str) -> tuple[str, dict[str, str]]:
    """The interpreter to use and its environment, with the packages of `extra` installed."""
    wanted = requirements(extra)
    mark = ENVIRONMENT / f"ready-{extra or 'core'}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]}"
    python = ENVIRONMENT / "bin" / "python"
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join((str(HERE), str(FOLDER))))
    if not mark.exists():
        print(
            f"bootstrap: installing {len(wanted)} packages into {ENVIRONMENT.name}/ (once)", file=sys.stderr
        )
        ENVIRONMENT.mkdir(exist_ok=True)
        if has_module("venv") and has_module("ensurepip"):
            if not python.exists():
                run_quietly(
                    [sys.executable, "-m", "venv", str(ENVIRONMENT)], "creating the virtual environment"
                )
            run_quietly([str(python), "-m", "pip", "install", "--quiet", *wanted], "pip install")
        elif has_module("pip"):
            target = ["--upgrade", "--target", str(FOLDER)]
            run_quietly([sys.executable, "-m", "pip", "install", "--quiet", *target, *wanted], "pip install")
        else:
            fail("neither venv nor pip is here; run: apt install python3-venv")
        mark.touch()
    return (str(python) if python.exists() else sys.executable), variables


def main(arguments: list[str]) -> int:
    """Dispatch; the exit code is that of the command that runs."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file is what tells so)
        fail(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    match arguments[0]:
        case "test":
            python, variables = prepare("test")
            command = [python, "-m", "pytest", "-n", "auto", *arguments[1:]]
        case "dev":
            python, variables = prepare("dev")
            command = [python, *arguments[1:]]
        case _:
            python, variables = prepare("")
            command = [python, "-m", "pysim_vm", *arguments]
    folder = HERE if arguments[0] == "test" else None
    return subprocess.run(command, cwd=folder, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
