"""Who may import whom: isa is the silicon, devices the board, pysim_vm the hypervisor. Read with ast."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSES = ("isa", "devices", "pysim_vm")
STDLIB = frozenset(sys.stdlib_module_names)
# What would make a run depend on the host instead of the guest
UNSTABLE_MODULES = frozenset(("time", "random", "secrets", "pickle", "uuid", "shelve"))
UNSTABLE_CALLS = frozenset(
    ("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.urandom", "id")
)
# The rooms of the assembler: each imports only rooms before it
ASSEMBLER_ROOMS = (
    *("results", "words", "tokens", "kinds", "mnemonics", "expressions", "operands"),
    *("forms", "resolve", "encode", "statements", "instructions", "parser", "program", "__init__"),
)
# iced's users in the silicon: the decoder, and of the assembler those that speak of registers and opcodes
ICED_USERS = frozenset(
    (
        "isa/decode.py",
        *("isa/assembler/words.py", "isa/assembler/kinds.py", "isa/assembler/mnemonics.py"),
        *("isa/assembler/operands.py", "isa/assembler/forms.py", "isa/assembler/resolve.py"),
        *("isa/assembler/encode.py", "isa/assembler/instructions.py"),
    )
)
# Bulk data: RAM, string instructions on it, framebuffers and disks
NUMPY_USERS_ISA = frozenset(("isa/memory.py", "isa/semantics/string.py"))
# Imported name -> the package of pyproject.toml that brings it
PACKAGE_OF = {
    "elftools": "pyelftools",
    "iced_x86": "iced-x86",
    "lz4": "lz4",
    "markdown_it": "markdown-it-py",
    "zstandard": "zstandard",
}


def sources(house: str) -> list[Path]:
    """Every module of a package."""
    return sorted((ROOT / house).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names that a module imports, wherever in the file, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield (node.module or "").split(".")[0], node.lineno


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names of the modules that a module imports, wherever in the file, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in HOUSES:
            for name in node.names:
                yield f"{node.module}.{name.name}", node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("house", ["isa", "devices"])
def test_silicon_and_board_import_neither_each_other_nor_the_hypervisor(house: str) -> None:
    others = set(HOUSES) - {house}
    wrong = [where(path, line) for path in sources(house) for name, line in imports(path) if name in others]
    assert wrong == []


@pytest.mark.parametrize(("house", "allowed"), [("isa", {"numpy", "iced_x86"}), ("devices", {"numpy"})])
def test_silicon_and_board_need_little_from_outside(house: str, allowed: set[str]) -> None:
    known = STDLIB | allowed | {house}
    wrong = [f"{where(path, line)} {name}" for path in sources(house) for name, line in imports(path)
             if name not in known]  # fmt: skip
    assert wrong == []


def test_iced_is_used_in_the_silicon_by_the_decoder_and_the_assembler_alone() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources("isa")
        for name, _ in imports(path)
        if name == "iced_x86"
    }
    assert users == ICED_USERS


def test_no_room_of_the_assembler_imports_a_later_one() -> None:
    folder = ROOT / "isa" / "assembler"
    assert {path.stem for path in folder.rglob("*.py")} == set(ASSEMBLER_ROOMS)
    wrong = []
    for number, room in enumerate(ASSEMBLER_ROOMS):
        earlier = {f"isa.assembler.{name}" for name in ASSEMBLER_ROOMS[:number]}
        path = folder / f"{room}.py"
        for name, line in imported_modules(path):
            if name.split(".")[0] == "isa" and name not in earlier:
                wrong.append(f"{where(path, line)} {name}")
    assert wrong == []


def test_the_cpu_knows_nothing_of_the_assembler() -> None:
    wrong = [
        where(path, line)
        for path in sources("isa")
        if path.parent.name != "assembler"
        for name, line in imported_modules(path)
        if name.startswith("isa.assembler")
    ]
    assert wrong == []


def test_numpy_in_the_silicon_is_for_memory_and_strings() -> None:
    users = {
        str(path.relative_to(ROOT)) for path in sources("isa") for name, _ in imports(path) if name == "numpy"
    }
    assert users == NUMPY_USERS_ISA


def test_the_hypervisor_imports_what_pyproject_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["linux"]]
    packages = {
        requirement.split("[")[0].split(">")[0].split("<")[0].split("=")[0].strip()
        for requirement in declared
    }
    wrong = [
        f"{where(path, line)} {name}"
        for path in sources("pysim_vm")
        for name, line in imports(path)
        if name not in STDLIB and name not in HOUSES and PACKAGE_OF.get(name, name) not in packages
    ]
    assert wrong == []


def called_name(node: ast.Call) -> str:
    """`f` or `module.f` of a call, "" for anything else."""
    match node.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return f"{owner}.{name}"
        case ast.Attribute(value=ast.Attribute(attr=owner), attr=name):
            return f"{owner}.{name}"
    return ""


@pytest.mark.parametrize("house", ["isa", "devices"])
def test_nothing_in_silicon_and_board_asks_the_host_for_time_or_chance(house: str) -> None:
    wrong = [
        where(path, line)
        for path in sources(house)
        for name, line in imports(path)
        if name in UNSTABLE_MODULES
    ]
    for path in sources(house):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and called_name(node) in UNSTABLE_CALLS:
                wrong.append(where(path, node.lineno))
    assert wrong == []


def test_no_device_executes_data() -> None:
    wrong = [
        where(path, node.lineno)
        for path in sources("devices")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and called_name(node) in ("eval", "exec", "compile", "__import__")
    ]
    assert wrong == []


def test_the_exit_loop_knows_nothing_of_the_command_line() -> None:
    core = (
        "vm",
        "vcpu",
        "address_space",
        "board",
        "emulated",
        "registers",
        "hal",
        "lifecycle",
        "errors",
        "axtypes",
    )
    wrong = []
    for module in core:
        path = ROOT / "pysim_vm" / f"{module}.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("pysim_vm.cli", "pysim_vm.cli.terminal", "pysim_vm.demo", "pysim_vm.report", "rich", "click")
            ):
                wrong.append(where(path, node.lineno))
    assert wrong == []
