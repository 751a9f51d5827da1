"""`pysim-vm sweep`: files, words and exit codes; and docs/sweeps.md keeps its word."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pysim_vm.cli import run_command
from pysim_vm.cli.sweep import SweepOptions, run_sweep
from pysim_vm.sweep import Results
from tests.pysim_vm.sweeps import SIX, sweep_of

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "sweeps.md"
SLOW = (
    '[guests.endless]\nasm = "endless.asm"\nmemory = "1M"\n'
    "budget = {instructions = 1_000_000_000_000, seconds = 0.2}\n"
)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a sweep of six jobs in jobs.toml."""
    monkeypatch.chdir(tmp_path)
    sweep_of(tmp_path, SIX)
    return tmp_path


def sweep(*options: str) -> int:
    return run_command(["sweep", "jobs.toml", "--jobs", "1", *options])


def test_a_sweep_leaves_its_results_and_no_journal(folder: Path, capsys: Captured) -> None:
    assert sweep() == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "  guest   configuration  outcome    jobs  instructions  exits",
        "  die     default        power-off     3             8      2",
        "  longer  default        power-off     3         1,009      2",
        "",
        "6 jobs; the results are in jobs.results.jsonl",
    ]
    assert err == ""  # no bar without a terminal
    assert sorted(path.name for path in folder.glob("jobs*")) == ["jobs.results.jsonl", "jobs.toml"]
    assert Results.open("jobs.results.jsonl").complete


def test_a_finished_sweep_is_not_run_again_unless_asked(folder: Path, capsys: Captured) -> None:
    assert sweep("--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert sweep("--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert sweep("--json", "--fresh") == 0
    third = json.loads(capsys.readouterr().out)
    assert [first["new"], second["new"], third["new"]] == [6, 0, 6]
    assert first | {"new": 0} == second == third | {"new": 0}
    assert first["outcomes"] == {"power-off": 6}
    assert (first["results"], first["unfinished"], first["exit_status"]) == ("jobs.results.jsonl", [], 0)


def test_the_word_run_may_be_there(folder: Path, capsys: Captured) -> None:
    assert run_command(["sweep", "run", "jobs.toml", "--jobs", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_shards_and_merge(folder: Path, capsys: Captured) -> None:
    for shard in ("1/2", "2/2"):
        assert sweep("--quiet", "--shard", shard) == 0
    parts = ["jobs.1-of-2.results.jsonl", "jobs.2-of-2.results.jsonl"]
    assert run_command(["sweep", "merge", "all.jsonl", *parts]) == 0
    assert capsys.readouterr().out == "6 jobs of 2 files are now in all.jsonl\n"
    assert sweep("--quiet") == 0
    assert Path("all.jsonl").read_bytes() == Path("jobs.results.jsonl").read_bytes()
    assert run_command(["sweep", "merge", "all.jsonl", parts[0]]) == 74
    assert capsys.readouterr().err == (
        "pysim-vm: 3 of 6 jobs are in none of the files, such as number 1; name the results of every shard\n"
    )


def test_a_job_without_a_final_result_is_named_and_run_again(folder: Path, capsys: Captured) -> None:
    sweep_of(folder, SIX + SLOW)
    assert sweep("--json") == 100
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["outcomes"] == {"power-off": 6, "wall-time": 3}
    assert document["unfinished"] == ["endless/default/1", "endless/default/2", "endless/default/3"]
    assert err.splitlines()[0] == (
        "pysim-vm: endless/default/1: wall time budget of 0.2 s used up; seconds in [budget] gives more"
    )
    assert Path("jobs.results.jsonl.journal").exists()
    assert sweep("--json", "--keep-unfinished") == 100
    assert json.loads(capsys.readouterr().out)["new"] == 0
    assert sweep("--json") == 100
    assert json.loads(capsys.readouterr().out)["new"] == 3


def test_the_seconds_are_written_apart(folder: Path) -> None:
    assert sweep("--quiet", "--seconds", "seconds.csv") == 0
    lines = Path("seconds.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "job,seconds"
    assert [line.partition(",")[0] for line in lines[1:3]] == ["die/default/1", "die/default/2"]
    assert all(float(line.partition(",")[2]) > 0 for line in lines[1:])
    assert sweep("--quiet", "--seconds", "seconds.csv") == 0  # from an earlier run, whose time is not known
    assert Path("seconds.csv").read_text(encoding="utf-8").splitlines()[1] == "die/default/1,"


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(folder: Path) -> None:
    out, err = io.StringIO(), Terminal()
    assert run_sweep("jobs.toml", SweepOptions(jobs=1), out, err) == 0
    assert "sweep" in err.getvalue()
    assert "6/6" in err.getvalue()
    quiet = Terminal()
    assert run_sweep("jobs.toml", SweepOptions(jobs=1, fresh=True, quiet=True), out, quiet) == 0
    assert quiet.getvalue() == ""


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["no.toml"], 78, "no.toml: cannot be read: No such file or directory; check the path"),
        (["jobs.toml", "--shard", "half"], 2, "--shard: 'half' is no shard; write I/N, such as 1/4"),
        (["jobs.toml", "--shard", "3/2"], 2, "shard 3/2: write 1/2 to 2/2"),
        (["jobs.toml", "--output", "jobs.toml"], 74,
         "jobs.toml:1: no result of a sweep, or damaged; make it again"),
        (["jobs.toml", "--journal", "jobs.toml"], 74,
         "jobs.toml is no journal of a sweep; name another file, or remove it"),
        (["jobs.toml", "--journal", "no/journal"], 74,
         "journal no/journal cannot be opened (No such file or directory); check the path and the disk"),
        (["merge", "out", "nowhere"], 74,
         "nowhere cannot be read (No such file or directory); check the path"),
        (["jobs.toml", "--jobs", "0"], 2,
         "Invalid value for '--jobs' / '-j': 0 is not in the range 1<=x<=4096; pysim-vm sweep run --help "
         "shows the options"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    folder: Path, capsys: Captured, words: list[str], status: int, sentence: str
) -> None:
    before = Path("jobs.toml").read_bytes()
    assert run_command(["sweep", *words]) == status
    assert capsys.readouterr().err == f"pysim-vm: {sentence}\n"
    assert Path("jobs.toml").read_bytes() == before


def test_results_of_an_edited_jobs_file_take_the_place_of_the_old_ones(folder: Path) -> None:
    assert sweep("--quiet") == 0
    before = Path("jobs.results.jsonl").read_bytes()
    sweep_of(folder, SIX.replace("[1, 2, 3]", "[4]"))
    assert sweep("--quiet") == 0
    assert len(Results.open("jobs.results.jsonl")) == 2
    assert Path("jobs.results.jsonl").read_bytes() != before


# ---- the page ----------------------------------------------------------------------------------------------


def sessions() -> list[tuple[str, list[str]]]:
    """Each command of the page with the lines it shows."""
    found: list[tuple[str, list[str]]] = []
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in "".join(blocks).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def test_the_commands_of_the_page_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    commands = sessions()
    assert len(commands) == 7
    for command, shown in commands:
        words = shlex.split(command)
        if "--dask" in words:
            continue  # test_sweep_dask.py runs it
        if words[0] == "cmp":
            assert Path(words[1]).read_bytes() == Path(words[2]).read_bytes()
            continue
        assert words[0] == "pysim-vm"
        assert run_command(words[1:]) == 0, command
        assert capsys.readouterr().out.splitlines() == shown, command


def test_the_command_of_the_section_on_sweeps_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    block = (
        text.partition("\n## sweep\n")[2].partition("\n## ")[0].partition("```sh\n")[2].partition("```")[0]
    )
    (command,) = block.splitlines()
    assert run_command(shlex.split(command)[1:]) == 0
    assert "24 jobs; the results are in sweep.results.jsonl" in capsys.readouterr().out


def test_the_jobs_file_of_the_page_is_that_of_the_example(tmp_path: Path) -> None:
    from pysim_vm.sweep import Sweep

    text = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "page.toml").write_text(text, encoding="utf-8")
    names = [job.name for job in Sweep.load(ROOT / "examples" / "sweep.toml") if job.guest != "tour"]
    assert [job.name for job in Sweep.load(tmp_path / "examples" / "page.toml")] == names


def test_the_page_names_every_key() -> None:
    from pysim_vm.sweep import file as sweep_file

    text = PAGE.read_text(encoding="utf-8")
    for key in (
        *sweep_file.KINDS, *sweep_file.PYSIM_KEYS, *sweep_file.ENGINE_KEYS, *sweep_file.BOOT_KEYS,
        *sweep_file.IMAGE_KEYS, *sweep_file.SCRIPT_KEYS, "seeds", "record", "budget", "instructions",
        "seconds", "memory", "output",
    ):  # fmt: skip
        assert f"`{key}`" in text, key
