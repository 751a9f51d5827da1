"""cli/cache.py and the command line's own use of the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from isa.assembler import assemble
from pysim_vm.cli import run_command
from pysim_vm.cli.cache import size_words
from pysim_vm.cli.status import ExitStatus
from tests.elf_files import Part, build_elf

pytestmark = pytest.mark.default_engine

HOT = "mov ecx, 60000\nnext: add eax, ecx\ndec ecx\njnz next\nhlt"
Runs = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(capfd: pytest.CaptureFixture[str]) -> Runs:
    """Run a command; exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = run_command(arguments)
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory, which the command line would use."""
    monkeypatch.delenv("PYSIM_VM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "pysim_vm"


@pytest.fixture
def guest(tmp_path: Path) -> list[str]:
    """`run` of a 64-bit guest with a hot loop."""
    image = tmp_path / "hot.bin"
    image.write_bytes(assemble(HOT, bits=64, origin=0x7C00))
    return ["run", str(image), "--load-address", "0x7c00", "--mode", "long", "--no-board", "--no-input"]


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_run_keeps_translations_of_the_block_engine_by_default(
    runs: Runs, home: Path, guest: list[str]
) -> None:
    status, _, err = runs(*guest, "--engine", "block")
    assert (status, "warning" in err) == (ExitStatus.HALTED, False)
    assert any(name.startswith("translations-") for name in files(home))
    _, out, _ = runs("cache", "info", "--json")
    (row,) = json.loads(out)["files"]
    assert (row["state"], row["entries"], row["lost"]) == ("current", 1, 0)
    assert row["made_for"].startswith("pysim_vm ")


@pytest.mark.parametrize(
    "options", [("--engine", "step"), ("--engine", "block", "--translation-cache", "off")]
)
def test_run_keeps_nothing_where_there_is_nothing_to_keep(
    runs: Runs, home: Path, guest: list[str], options: tuple[str, ...]
) -> None:
    assert runs(*guest, *options)[0] == ExitStatus.HALTED
    assert files(home) == []


def test_a_directory_on_the_command_line_is_used_instead(
    runs: Runs, home: Path, guest: list[str], tmp_path: Path
) -> None:
    runs(*guest, "--engine", "auto", "--translation-cache", str(tmp_path / "mine"))
    assert files(home) == []
    assert len(files(tmp_path / "mine")) == 2


def test_a_configuration_decides_where_the_command_line_does_not(
    runs: Runs, home: Path, guest: list[str], tmp_path: Path
) -> None:
    config = (
        '[base]\nid = 1\nname = "vm"\n[kernel]\nkernel_path = "hot.elf"\n[pysim]\nmemory = "2M"\n'
        'engine = "block"\ntranslation_cache = "./kept"\n'
    )
    (tmp_path / "vm.toml").write_text(config)
    (tmp_path / "hot.elf").write_bytes(_elf(assemble(HOT, bits=64, origin=0x10000)))
    assert runs("run", str(tmp_path / "vm.toml"), "--no-input")[0] == ExitStatus.HALTED
    assert len(files(tmp_path / "kept")) == 2
    assert (
        runs("run", str(tmp_path / "vm.toml"), "--no-input", "--translation-cache", "on")[0]
        == ExitStatus.HALTED
    )
    assert len(files(home)) == 2


def _elf(code: bytes) -> bytes:
    return build_elf(Part(code, 0x10000), entry=0x10000)


def test_a_refused_cache_is_a_warning_and_the_run_goes_on(runs: Runs, home: Path, guest: list[str]) -> None:
    home.mkdir(parents=True)
    home.chmod(0o777)
    status, _, err = runs(*guest, "--engine", "block")
    assert status == ExitStatus.HALTED
    assert f"pysim-vm: warning: the translation cache is off: others may write {home}" in err
    assert files(home) == []
    _, out, _ = runs(*guest, "--engine", "block", "--json")
    assert f"others may write {home}" in json.loads(out)["warnings"][0]
    status, _, err = runs("cache", "info")
    assert (status, f"others may write {home}" in err) == (ExitStatus.HOST_IO, True)


def test_info_tells_foreign_damaged_and_unfinished_files_apart(
    runs: Runs, home: Path, guest: list[str]
) -> None:
    runs(*guest, "--engine", "block")
    (file,) = home.glob("*.bin")
    data = bytearray(file.read_bytes())
    (home / "translations-aa.bin").write_bytes(b"something else")
    (home / "translations-bb.bin").write_bytes(data + b"cut")
    (home / "translations-cc.bin.new").write_bytes(b"half")
    (home / "notes.txt").write_text("mine")
    _, out, _ = runs("cache", "info")
    assert "translations-aa.bin" in out and "foreign" in out
    assert "current, 3 bytes damaged" in out
    assert "unfinished" in out
    assert "notes.txt" not in out


def test_clear_removes_our_files_only(runs: Runs, home: Path, guest: list[str]) -> None:
    runs(*guest, "--engine", "block")
    (home / "notes.txt").write_text("mine")
    (home / "translations-dir.bin").mkdir()
    status, out, _ = runs("cache", "clear")
    assert (status, "1 file removed" in out) == (ExitStatus.OK, True)
    assert files(home) == ["notes.txt", "translations-dir.bin"]
    assert runs("cache", "clear")[1] == f"{home}: empty\n"


def test_an_empty_cache_is_no_mistake(runs: Runs, home: Path) -> None:
    assert runs("cache", "info") == (ExitStatus.OK, f"{home}: empty\n", "")
    assert json.loads(runs("cache", "clear", "--json")[1])["removed"] == 0
    assert not home.exists()


@pytest.mark.parametrize("what", ["info", "clear"])
def test_a_cache_that_is_off_says_so(
    runs: Runs, home: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSIM_VM_CACHE", "off")
    status, out, _ = runs("cache", what)
    assert (status, out.startswith("the translation cache is off; ")) == (ExitStatus.OK, True)
    assert json.loads(runs("cache", what, "--json")[1])["directory"] is None


def test_a_word_that_is_no_directory_is_a_mistake(runs: Runs, home: Path, guest: list[str]) -> None:
    status, _, err = runs("cache", "info", "--translation-cache", "of")
    assert (status, "neither on nor off" in err) == (ExitStatus.USAGE, True)
    status, _, err = runs(*guest, "--translation-cache", "of")
    assert (status, err.startswith("pysim-vm: --translation-cache: ")) == (ExitStatus.CONFIG, True)


def test_sizes_are_in_the_largest_unit_that_fits() -> None:
    assert [size_words(size) for size in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip
