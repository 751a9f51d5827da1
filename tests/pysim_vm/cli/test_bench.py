"""`pysim-vm bench`: what it prints and writes, how it ends, and that a mistake is one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pysim_vm.benchmark.result import read_results, write_results
from pysim_vm.cli import run_command
from pysim_vm.cli.status import ExitStatus
from tests.pysim_vm.bench_results import MODEL, TIMED, results, timed

QUICK = """
summary = "three OUTs"
count = 3
[[access]]
kind = "io_write"
address = 0x300
[devices]
emu_devices = [["port_latch", 0x300, 8]]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "quick.toml").write_text(QUICK)
    return tmp_path


def run(*arguments: str) -> int:
    return run_command(["bench", *arguments])


def test_a_model_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quick.toml", "--model-only") == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "  workload  exits  mostly    instructions  virtual cycles",
        "  quick         3  io_write             7           6,007",
    ]


def test_measuring_gives_a_line_an_engine_and_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quick.toml", "--rounds", "2", "--output", "r.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["quick", "3"], ["block", lines[2].split()[1]]]
    found = read_results("r.json")
    assert [(row.engine, row.exit_path, row.per, row.operations) for row in found.timed] == [
        ("step", "short", "exit", 3), ("block", "short", "exit", 3),
    ]  # fmt: skip
    assert found.machine is not None


def test_one_engine_and_the_full_way_can_be_asked_for() -> None:
    assert run("quick.toml", "--rounds", "2", "--engine", "block", "--exit-path", "full", "-O", "r.json") == 0
    assert [(row.engine, row.exit_path) for row in read_results("r.json").timed] == [("block", "full")]


def test_json_is_what_the_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "quick.toml", "--model-only", "--json", "-O", "r.json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("exit_status") == 0
    assert document == json.loads(Path("r.json").read_text())


def test_a_cost_model_of_ones_own_changes_the_cycles_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("lab.toml").write_text('name = "lab"\nsource = "x"\n[exit]\nio_write = 1\n')
    assert run("quick.toml", "--model-only", "-O", "a.json") == 0
    assert run("quick.toml", "--model-only", "--cost-model", "lab.toml", "-O", "b.json") == 0
    assert read_results("b.json").models[0].virtual_cycles == 10
    capsys.readouterr()
    assert run("compare", "a.json", "b.json") == 0
    assert "the cost models differ, so virtual cycles were not compared" in capsys.readouterr().out


def test_the_list_has_a_line_a_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    assert "  io_write            OUT to a port whose device forgets it\n" in capsys.readouterr().out
    assert run("--list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["workloads"]
    assert {"workload": "cpuid", "summary": "CPUID, which this machine answers without an exit",
            "count": 10_000, "per": "iteration"} in rows  # fmt: skip


def test_a_record_holds_the_exits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quick.toml", "--model-only", "--record", "q.rec") == 0
    capsys.readouterr()
    assert run_command(["trace", "q.rec"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("nope",), ExitStatus.CONFIG, '"nope": no workload of the library and no file *.toml;'),
        (("nope.toml",), ExitStatus.CONFIG, "nope.toml: cannot be read: No such file or directory"),
        (("--record", "x.rec", "--model-only"), ExitStatus.USAGE, "--record takes the exits of one workload"),
        (("mixed", "quick.toml", "--record", "x"), ExitStatus.USAGE, "--record takes the exits of one "),
        (("quick.toml", "--model-only", "--record", "no/x"), ExitStatus.HOST_IO, "record no/x cannot be "),
        (("quick.toml", "--engine", "step", "--model-only"), ExitStatus.USAGE, "--engine with --model-only"),
        (("quick.toml", "--rounds", "1"), ExitStatus.USAGE, "Invalid value for '--rounds'"),
        (("quick.toml", "-O", "no/r.json"), ExitStatus.HOST_IO, "--output: no/r.json cannot be written (No "),
        (("quick.toml", "--cost-model", "no.toml"), ExitStatus.CONFIG, "no.toml: cannot be read"),
        (("quick.toml", "./quick.toml", "--model-only"), ExitStatus.CONFIG, "two workloads are called quick"),
        (("compare", "a.json", "b.json"), ExitStatus.HOST_IO, "a.json cannot be read (No such file"),
        (("compare", "quick.toml", "b.json"), ExitStatus.CONFIG, "quick.toml: no JSON ("),
        (("report", "quick.toml"), ExitStatus.CONFIG, "quick.toml: no JSON ("),
        (("report", "good.json", "-O", "no/r.html"), ExitStatus.HOST_IO, "--output: no/r.html cannot be "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], status: ExitStatus, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(results(), "good.json")
    assert run(*arguments) == status
    err = capsys.readouterr().err
    assert err.startswith(f"pysim-vm: {sentence}"), err
    assert err.count("\n") == 1
    assert not Path("r.json").exists()


def test_a_guest_that_ends_otherwise_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_text('summary = "x"\ncount = 1\n[guest]\nasm = "ud2"\n')
    assert run("bad.toml", "--model-only", "--output", "r.json") == ExitStatus.CONFIG
    assert "workload bad: it ended at 0x1000 after" in capsys.readouterr().err
    assert not Path("r.json").exists()


def test_an_access_without_a_device_ends_as_it_does_for_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_text('summary = "x"\ncount = 1\n[guest]\nasm = "in al, 0x60"\n')
    assert run("bad.toml", "--model-only") == ExitStatus.DEVICE
    assert "workload bad: VM[1] vCPU[0] at RIP 0x1000: port read 0x60" in capsys.readouterr().err


def test_compare_shows_a_verdict_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    write_results(results(timed(10.0, 9.5, 10.5)), "a.json")
    write_results(results(timed(12.0, 11.5, 12.5), models=(replace(MODEL, instructions=205),)), "b.json")
    assert run("compare", "a.json", "b.json") == ExitStatus.DIFFERENT
    assert capsys.readouterr().out.splitlines() == [
        "  workload  model    what changed",
        "  io_write  changed  instructions 201 -> 205",
        "",
        "  workload  engine  units  then   change  verdict",
        "  io_write  block    10.0  12.0  +20.0 %  slower",
        "",
        "1 model, 1 changed; 1 measurement, 0 faster, 1 slower beyond the spread: the middle halves do not "
        "touch and the medians are 3% or more apart",
    ]
    assert run("compare", "a.json", "b.json", "--json") == ExitStatus.DIFFERENT
    document = json.loads(capsys.readouterr().out)
    assert document["exit_status"] == 98
    assert document["model"][0]["changes"] == ["instructions 201 -> 205"]
    assert document["measured"][0]["verdict"] == "slower"


def test_slower_fails_only_if_it_is_asked_to() -> None:
    write_results(results(timed(10.0, 9.5, 10.5)), "a.json")
    write_results(results(timed(12.0, 11.5, 12.5)), "b.json")
    assert run("compare", "a.json", "b.json") == 0
    assert run("compare", "a.json", "b.json", "--fail-on", "slower") == ExitStatus.DIFFERENT
    assert run("compare", "b.json", "a.json", "--fail-on", "slower") == 0


def test_a_report_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    write_results(results(TIMED), "a.json")
    assert run("report", "a.json", "--title", "Exits & I", "--author", "A. Student", "-O", "r.html") == 0
    text = Path("r.html").read_text(encoding="utf-8")
    assert "<h1>Exits &amp; I</h1>" in text
    assert "<svg" in text
    assert run("report", "a.json", "--plots", "bars") == 0
    assert "<svg" not in capsys.readouterr().out
    assert run("report", "a.json", "--json", "-O", "r.html") == 0
    assert json.loads(capsys.readouterr().out)["plots"] == "figures"


def test_a_report_without_matplotlib_has_bars_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "pysim_vm.benchmark.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_results(results(TIMED), "a.json")
    assert run("report", "a.json") == 0
    out, err = capsys.readouterr()
    assert 'class="bars"' in out
    assert err == (
        'pysim-vm: matplotlib is not there, so the plots are plain bars; pip install "pysim-vm[report]"\n'
    )
    assert run("report", "a.json", "--plots", "figures") == ExitStatus.USAGE
    assert "--plots figures needs matplotlib; pip install" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n  {word} " in out for word in ("compare", "report", "run"))
    assert run("run", "--help") == 0
    assert "--model-only" in capsys.readouterr().out
