"""The commands about records: what they print, how they end, and that mistakes are one sentence."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pysim_vm.cli import run_command
from pysim_vm.cli import trace as cli_trace
from pysim_vm.cli.status import ExitStatus
from pysim_vm.cli.trace import bar, run_stat, stat_text
from pysim_vm.demo import image_path
from pysim_vm.record_format import RecordError
from pysim_vm.trace import Trace
from pysim_vm.trace.stat import stat

# Prints "Hi" on COM1, then powers off
HELLO = bytes.fromhex("bafa03 b048 ba f803 ee b069 ee ba0406 b80020 ef".replace(" ", ""))


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "hello.bin").write_bytes(HELLO)
    return tmp_path


@pytest.fixture
def record(hello: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run("run", "hello.bin", "--load-address", "0x7c00", "--no-input", "--record", "a.rec") == 0
    capsys.readouterr()
    return "a.rec"


def run(*arguments: str) -> int:
    return run_command(arguments)


def test_a_run_with_record_leaves_a_closed_record(record: str) -> None:
    trace = Trace.open(record)
    assert trace.notes == []
    assert [row.value for row in trace.where(port=0x3F8)] == [0x48, 0x69]
    assert trace.header["command"]["guest"] == "hello.bin"


def test_the_demo_leaves_a_record(hello: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--record", "demo.rec") == 0
    assert len(Trace.open("demo.rec").where(device="calculator")) == 5


def test_trace_prints_words(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trace", record) == 0
    assert capsys.readouterr().out.splitlines() == [
        "#1 @3 0x7c08: OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550",
        "#2 @5 0x7c0b: OUT 0x3f8 <- 'i' (0x69): I/O exit, answered by uart16550",
        "#3 @8 0x7c12: OUT 0x604 (2 bytes) <- 0x2000: I/O exit, answered by acpi_pm",
        "#4 @9 0x7c13: power off: exit",
    ]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (("--device", "uart16550"), [0, 1]), (("--port", "0x600-0x60f"), [2]), (("--first", "1"), [0]),
        (("--last", "2"), [2, 3]), (("--since", "5", "--until", "9"), [1, 2]), (("--since", "512ns"), [2, 3]),
        (("--reason", "system_down"), [3]), (("--direction", "read"), []),
    ],
)  # fmt: skip
def test_filters_choose_exits(
    record: str, options: tuple[str, ...], numbers: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("trace", record, "--json", *options) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["number"] for row in rows] == numbers


def test_who_wrote_on_the_command_line(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trace", record, "--who-wrote", "port:0x3f8", "-n", "1") == 0
    assert "'i'" in capsys.readouterr().out
    assert run("trace", record, "--who-wrote", "0x7c00") == ExitStatus.USAGE
    assert "holds no stores; record with --record-stores" in capsys.readouterr().err


def test_stores_and_instructions_on_the_command_line(hello: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--load-address", "0x7c00", "--no-input", "-q", "--record-instructions", "--record", "i.rec")
    assert run("run", "hello.bin", *options) == 0
    capsys.readouterr()
    assert run("trace", "i.rec", "--instructions", "--first", "2") == 0
    assert capsys.readouterr().out == (
        "@0 0x7c00: mov dx, 0x3fa: RDX 0x0 -> 0x3fa\n@1 0x7c03: mov al, 0x48: RAX 0x0 -> 0x48\n"
    )
    assert run("trace", "i.rec", "--stores") == 0
    assert capsys.readouterr().out == ""


def test_rows_that_were_not_recorded_say_how_to_record_them(
    record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("trace", record, "--instructions") == ExitStatus.USAGE
    assert "make it with run --record-instructions" in capsys.readouterr().err


def test_stat_prints_a_table(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stat", record) == 0
    out = capsys.readouterr().out
    assert re.search(r"io_write +uart16550 +2 +50\.0% ", out)
    assert "4 exits in 9 instructions" in out
    assert run("stat", record, "--by", "port", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["key"] for row in rows] == [["0x3f8", "uart16550"], ["0x604", "acpi_pm"]]


def test_the_table_fits_a_narrow_and_a_wide_terminal(hello: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("demo", "--record", "demo.rec")
    found = stat(Trace.open("demo.rec"))
    for width in (80, 120):
        plain = stat_text(found, None, False, width).splitlines()
        colored = stat_text(found, None, True, width)
        bare = re.sub(r"\x1b\[[0-9;]*m", "", colored).splitlines()
        assert max(map(len, plain)) <= width and max(map(len, bare)) <= width
        assert "\x1b[" in colored
        assert [line.rstrip() for line in bare] == plain
    assert "█" in stat_text(found, None, False, 120) and "█" not in stat_text(found, None, False, 80)
    assert "█" not in stat_text(found, None, False, 120, draws=False)
    assert "and 10 more lines; --top 11" in stat_text(found, 1, False, 80)


def test_a_bar_is_as_long_as_its_share() -> None:
    assert bar(1.0) == "█" * 12 and bar(0.5) == "█" * 6 + " " * 6
    assert bar(1 / 96).rstrip() == "▏" and bar(0).strip() == ""


def test_live_stat_ends_with_the_recording(record: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    from pysim_vm.cli.trace import Filters

    assert run_stat(record, "reason", Filters(), out, err, live=True) == 0
    assert out.getvalue().count("4 exits in 9 instructions") == 1


def test_diff_of_a_record_with_itself_is_ok(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diff", record, record) == 0
    assert "no difference: 4 exits" in capsys.readouterr().out


def test_diff_shows_both_machines_by_running_the_guests_again(
    record: str, hello: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = HELLO.replace(b"\xb0\x69", b"\xb0\x21")
    Path("other.bin").write_bytes(other)
    run("run", "other.bin", "--load-address", "0x7c00", "--no-input", "--record", "b.rec")
    capsys.readouterr()
    assert run("diff", record, "b.rec") == ExitStatus.DIFFERENT
    out = capsys.readouterr().out
    assert "the headers differ in guest" in out
    assert "A #2 @5 0x7c0b: OUT 0x3f8 <- 'i'" in out and "B #2 @5 0x7c0b: OUT 0x3f8 <- '!'" in out
    assert "RAX     A 0x69  B 0x21" in out
    Path("other.bin").write_bytes(HELLO)
    assert run("diff", record, "b.rec", "--json") == ExitStatus.DIFFERENT
    states = json.loads(capsys.readouterr().out)["divergence"]["states"]
    assert states[0]["registers"]["rax"] == "0x69"
    assert "is not the guest that was recorded" in states[1]["note"]
    assert run("diff", record, "b.rec", "--no-state") == ExitStatus.DIFFERENT


@pytest.mark.parametrize("form", ["csv", "jsonl", "ftrace"])
def test_texts_are_exported_to_standard_output(
    record: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", record, "--format", form, "--port", "0x3f8") == 0
    assert capsys.readouterr().out.count("0x3f8") >= 2


def test_binary_formats_want_a_file(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", record, "--format", "perfetto") == ExitStatus.USAGE
    assert "--output FILE" in capsys.readouterr().err
    assert run("export", record, "--format", "perfetto", "--output", "a.pftrace") == 0
    assert "a.pftrace: 4 exits as a Perfetto trace" in capsys.readouterr().err
    assert run("export", record, "--format", "csv", "--output", "/no/such/x.csv") == ExitStatus.HOST_IO


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("stat", "none.rec"), ExitStatus.HOST_IO, "none.rec cannot be read"),
        (("stat", "hello.bin"), ExitStatus.LOAD, "hello.bin is no record of pysim-vm"),
        (("trace", "a.rec", "--reason", "io_rite"), ExitStatus.USAGE, 'did you mean "io_write"'),
        (("trace", "a.rec", "--port", "zz"), ExitStatus.USAGE, "--port: "),
        (("trace", "a.rec", "--since", "soon"), ExitStatus.USAGE, "'soon' is no moment"),
        (("trace", "a.rec", "--who-wrote", "disk:0x1"), ExitStatus.USAGE, "port:0x3f8"),
        (("run", "hello.bin", "--record-stores"), ExitStatus.USAGE, "need --record FILE"),
        (("run", "hello.bin", "--load-address", "0x7c00", "--record", "/no/such/a.rec"),
         ExitStatus.HOST_IO, "/no/such/a.rec cannot be written"),
        (("demo", "--record", "/no/such/a.rec"), ExitStatus.HOST_IO, "/no/such/a.rec cannot be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    record: str, arguments: tuple[str, ...], status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == status
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


def test_a_record_at_its_limit_says_so_and_the_run_goes_on(
    hello: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", str(image_path()), "--load-address", "0x7c00", "--missing-device", "ones")
    arguments += ("--no-input", "--output", "console.txt", "--record", "x.rec")
    assert run(*arguments, "--record-limit", "8K") == 0
    assert "its limit; a larger --record-limit" in capsys.readouterr().err
    assert Path("x.rec").stat().st_size <= 8192


def test_live_opens_the_record_again_when_a_chunk_was_replaced_under_it(
    record: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage = [True, True]
    counted = cli_trace.stat

    def damaged(*arguments: Any) -> Any:
        if damage:
            damage.pop()
            raise RecordError("x.rec: the chunk at offset 0x10 (exits) is damaged; record it again")
        return counted(*arguments)

    monkeypatch.setattr(cli_trace, "stat", damaged)
    assert run("stat", record, "--live") == ExitStatus.OK
    assert "exits in" in capsys.readouterr().out
    damage.append(True)
    assert run("stat", record) == ExitStatus.LOAD
