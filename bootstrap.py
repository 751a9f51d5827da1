#!/usr/bin/env python3
"""Set up and run on a machine with nothing but python3: `python3 bootstrap.py demo` or `... test`.

The packages go into .venv/ beside this file and nowhere else: a virtual environment where the venv module
works, else a plain folder filled by pip. A second call starts at once. Standard library only, and no syntax
younger than Python 3.7, so that an old Python gets a sentence and not a SyntaxError.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
FOLDER = ENVIRONMENT / "packages"  # where pip puts things when there is no venv
OLDEST = (3, 11)
USAGE = """\
usage: python3 bootstrap.py demo               a small guest and every VM exit it takes
       python3 bootstrap.py test [ARGUMENTS]   the whole test run; arguments go to pytest
       python3 bootstrap.py dev ARGUMENTS      Python with the developer's tools: dev -m ruff check .
       python3 bootstrap.py COMMAND ...        any other pysim-vm command: run, step, check"""


class SetupError(Exception):
    """Why nothing can start, as a sentence for the person at the keyboard."""


def requirements(extra: str) -> list[str]:
    """The project's dependencies with those of an extra ("" for none), from pyproject.toml."""
    import tomllib  # here, because a Python that is too old has none and must still get its sentence

    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    pending = [extra] if extra else []
    while pending:
        for line in project["optional-dependencies"][pending.pop()]:
            if line.startswith("pysim-vm["):
                pending.append(line[len("pysim-vm[") : -1])
            else:
                wanted.append(line)
    return sorted(set(wanted))


def mark_of(extra: str, wanted: list[str]) -> Path:
    """The empty file that says "installed". Compiled packages fit one Python only, so its name has both."""
    digest = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()[:16]
    return ENVIRONMENT / f"ready-{extra or 'core'}-{digest}"


def can_import(name: str, python: str = sys.executable) -> bool:
    """True if this Python can import the module."""
    probe = [python, "-c", f"import {name}"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def run_quietly(command: list[str], what: str, advice: str) -> None:
    """Run a step of the installation; its output is shown only when it fails, in the SetupError it raises."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "".join(f"\n    {line}" for line in done.stdout.strip().splitlines()[-12:])
        raise SetupError(f"{what} failed; {advice}{tail}")


def installer() -> str:
    """How packages can be installed here: "venv" or "pip". Raises SetupError when there is no way."""
    # Debian takes venv apart: the module is always there, but without python3-venv it lacks ensurepip.
    if can_import("venv") and can_import("ensurepip"):
        return "venv"
    if can_import("pip"):
        return "pip"
    raise SetupError("neither venv nor pip is here; run: apt install python3-venv")


def install(how: str, wanted: list[str]) -> None:
    """Fill .venv/ with these packages. Raises SetupError."""
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if how == "venv":
        # Also a .venv/ that is there may be without pip, or dead because its Python was upgraded away.
        alive = PYTHON.exists()
        if not alive or not can_import("pip", str(PYTHON)):
            where = [str(ENVIRONMENT)] if alive else ["--clear", str(ENVIRONMENT)]
            venv = [sys.executable, "-m", "venv", *where]
            run_quietly(venv, "creating .venv/", f"remove {ENVIRONMENT} and try again")
        command = [str(PYTHON), *pip, *wanted]
    else:
        # --target, because a distribution's pip refuses to install for itself (PEP 668).
        command = [sys.executable, *pip, "--upgrade", "--target", str(FOLDER), *wanted]
    run_quietly(command, "pip install", "is the package index reachable and the disk not full?")


def prepare(extra: str) -> tuple[str, dict[str, str]]:
    """The Python to use and its environment variables, with the packages of `extra` installed.

    Raises SetupError.
    """
    try:
        wanted = requirements(extra)
        mark = mark_of(extra, wanted)
        if not (mark.exists() and (PYTHON.exists() or FOLDER.is_dir())):
            how = installer()
            ENVIRONMENT.mkdir(exist_ok=True)
            print(
                f"bootstrap: installing {len(wanted)} packages into .venv/ (only once)",
                file=sys.stderr,
                flush=True,
            )
            install(how, wanted)
            mark.touch()
    except OSError as error:
        advice = "put the checkout where you can read and write"
        raise SetupError(f"{error.filename}: {error.strerror}; {advice}") from None
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join((str(HERE), str(FOLDER))))
    return (str(PYTHON) if PYTHON.exists() else sys.executable), variables


def command_line(arguments: list[str]) -> tuple[str, list[str]]:
    """The extra that a command needs, and what Python is called with for it."""
    if arguments[0] == "test":
        # worksteal, because a boot takes minutes and nothing may wait behind it
        return "test", ["-m", "pytest", "-n", "auto", "--dist", "worksteal", *arguments[1:]]
    if arguments[0] == "dev":
        return "dev", arguments[1:]
    extra = "" if arguments[0] == "demo" else "linux"  # what unpacks distributions' kernels
    return extra, ["-m", "pysim_vm", *arguments]


def main(arguments: list[str]) -> int:
    """Prepare, then become the command: its exit code is ours. 1 is a failure to prepare, 2 no command."""
    if sys.version_info[:2] < OLDEST:
        print(f"bootstrap: Python 3.11 or later is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        extra, rest = command_line(arguments)
        python, variables = prepare(extra)
    except SetupError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bootstrap: interrupted; the next call starts over", file=sys.stderr)
        return 130
    if extra == "test":
        os.chdir(HERE)
    # exec and not a child: a signal, the terminal and the exit code then need no passing on.
    os.execve(python, [python, *rest], variables)
    return 0  # only a replaced execve comes back


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
