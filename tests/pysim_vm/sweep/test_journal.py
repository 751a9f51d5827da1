"""The journal: what a kill leaves behind, and files that are no journal of this sweep."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysim_vm.sweep import JobResult, Sweep, SweepError
from pysim_vm.sweep.job import run_job
from pysim_vm.sweep.journal import LINE_LIMIT, Journal, result_of, row_of, sealed, unsealed
from tests.pysim_vm.sweeps import SIX, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path, SIX)


@pytest.fixture
def journal(tmp_path: Path, sweep: Sweep) -> Path:
    """A journal with the results of three jobs."""
    path = tmp_path / "journal"
    with Journal(path, sweep.plan) as log:
        for number in (2, 0, 5):
            log.append(result(sweep, number), 0.25)
    return path


def result(sweep: Sweep, number: int) -> JobResult:
    found = run_job(sweep.plan[number]).result
    assert found is not None
    return found


def numbers(path: Path, sweep: Sweep) -> tuple[list[int], str]:
    """The jobs that a journal knows, and what it says about itself."""
    with Journal(path, sweep.plan) as log:
        return sorted(log.results), log.note


# ---- lines -------------------------------------------------------------------------------------------------


def test_a_sealed_line_is_json_with_a_checksum_at_its_end() -> None:
    line = sealed({"a": 1, "b": "ü\n"})
    text = b'{"a":1,"b":"\\u00fc\\n"}'
    assert line == text[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(text)
    assert json.loads(line)["b"] == "ü\n"
    assert unsealed(line) == {"a": 1, "b": "ü\n"}


def test_a_line_with_any_byte_changed_is_none() -> None:
    line = sealed({"a": 12345, "b": [True, None]})
    for at in range(len(line) - 1):
        changed = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
        assert unsealed(changed) is None, at


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_bytes_that_are_no_sealed_line_are_none(data: bytes) -> None:
    assert unsealed(data) is None
    text = data.replace(b"\n", b"")
    assert unsealed(text[:-1] + b',"crc32":"%08x"}' % zlib.crc32(text[:-1] + b"}")) in (None, {})


def test_a_line_that_nests_deeply_is_none() -> None:
    text = b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    assert unsealed(text[:-1] + b',"crc32":"%08x"}' % zlib.crc32(text)) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("number", -1), ("number", True), ("number", "0"), ("seed", 1.5), ("exits", {"Halt": "1"}),
     ("exits", []), ("final", 1), ("job", "other/name"), ("instructions", "many"), ("sentence", None)],
)  # fmt: skip
def test_a_row_with_a_wrong_value_is_no_result(sweep: Sweep, key: str, value: Any) -> None:
    row = row_of(result(sweep, 0))
    assert result_of(row) == result(sweep, 0)
    assert result_of(row | {key: value}) is None


def test_a_row_with_a_key_too_many_or_too_few_is_no_result(sweep: Sweep) -> None:
    row = row_of(result(sweep, 0))
    assert result_of(row | {"extra": 1}) is None
    row.popitem()
    assert result_of(row) is None
    assert result_of(None) is None


# ---- kills -------------------------------------------------------------------------------------------------


def test_a_journal_keeps_results_and_seconds(journal: Path, sweep: Sweep) -> None:
    with Journal(journal, sweep.plan) as log:
        assert log.results == {number: result(sweep, number) for number in (0, 2, 5)}
        assert log.seconds == {0: 0.25, 2: 0.25, 5: 0.25}
        assert log.note == ""


def test_a_journal_cut_anywhere_opens_and_has_the_jobs_whose_lines_are_whole(
    journal: Path, sweep: Sweep, tmp_path: Path
) -> None:
    data = journal.read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    cuts = sorted({*range(0, len(data), 37), *ends, *(end - 1 for end in ends), len(data)})
    for cut in cuts:
        torn = tmp_path / "torn"
        torn.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends[1:])
        with Journal(torn, sweep.plan) as log:
            assert list(log.results) == [2, 0, 5][:whole], cut
            log.append(result(sweep, 1), 0.5)
        assert numbers(torn, sweep) == (sorted([1, *[2, 0, 5][:whole]]), ""), cut


def test_a_torn_last_line_is_named_and_its_job_is_run_again(journal: Path, sweep: Sweep) -> None:
    journal.write_bytes(journal.read_bytes()[:-10])
    with Journal(journal, sweep.plan) as log:
        assert sorted(log.results) == [0, 2]
        assert log.note == f"{journal}: 1 line torn or damaged, as after a kill; those jobs are run again"


def test_damage_in_the_middle_costs_that_line_alone(journal: Path, sweep: Sweep) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"seed":1', b'"seed":2')
    journal.write_bytes(b"".join(lines))
    found, note = numbers(journal, sweep)
    assert found == [2, 5]
    assert "1 line torn or damaged" in note


def test_of_two_lines_for_a_job_the_later_counts(journal: Path, sweep: Sweep) -> None:
    with Journal(journal, sweep.plan) as log:
        log.append(result(sweep, 2), 0.75)
    with Journal(journal, sweep.plan) as log:
        assert log.seconds[2] == 0.75


# ---- files of others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [("[1, 2, 3]", "[1, 2, 4]"), ("50_000", "50_001"), ("[guests.longer]", "[guests.other]")],
)
def test_a_journal_of_another_jobs_file_is_refused_and_left_alone(
    journal: Path, sweep: Sweep, tmp_path: Path, change: tuple[str, str]
) -> None:
    before = journal.read_bytes()
    other = sweep_of(tmp_path, SIX.replace(*change))
    with pytest.raises(SweepError) as caught:
        Journal(journal, other.plan)
    assert str(caught.value) == (
        f"{journal} is the journal of another sweep: {tmp_path}/jobs.toml or a guest has changed since; "
        "put back what was changed, or remove the journal to start anew"
    )
    assert journal.read_bytes() == before


def test_the_digest_is_that_of_the_guests_files_too(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "die.asm").write_text("hlt\n", encoding="utf-8")
    with pytest.raises(SweepError, match="a guest has changed since"):
        Journal(journal, Sweep.load(tmp_path / "jobs.toml").plan)


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"\0" * 1000, b"{}\n", b'{"journal":1}\n', b"x" * (3 * LINE_LIMIT), b"\n",
     sealed({"journal": "of something else", "version": 1})],
)  # fmt: skip
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    tmp_path: Path, sweep: Sweep, data: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(SweepError, match="is no journal of a sweep"):
        Journal(path, sweep.plan)
    assert path.read_bytes() == data


def test_a_journal_of_another_version_is_refused(journal: Path, sweep: Sweep) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    head = unsealed(lines[0])
    assert head is not None
    journal.write_bytes(b"".join([sealed(head | {"version": 2}), *lines[1:]]))
    with pytest.raises(SweepError, match="another version"):
        Journal(journal, sweep.plan)


def test_a_huge_file_is_refused_unread(journal: Path, sweep: Sweep) -> None:
    with journal.open("r+b") as file:
        file.truncate(1 << 40)  # a hole, so that it costs nothing
    with pytest.raises(SweepError, match="1,099,511,627,776 bytes, too many for this sweep"):
        Journal(journal, sweep.plan)


def test_a_line_without_an_end_is_passed_over_in_little_memory(journal: Path, sweep: Sweep) -> None:
    with journal.open("ab") as file:
        file.write(b"y" * (LINE_LIMIT * 3 + 17))
    with Journal(journal, sweep.plan) as log:
        assert sorted(log.results) == [0, 2, 5]
        log.append(result(sweep, 1), 0.5)
    assert numbers(journal, sweep) == ([0, 1, 2, 5], "")


@pytest.mark.parametrize(
    "row", [{"number": 6, "seed": 4, "job": "die/default/4"}, {"guest": "b", "job": "b/default/1"}]
)
def test_a_line_of_a_job_that_the_sweep_does_not_have_is_passed_over(
    journal: Path, sweep: Sweep, row: dict[str, Any]
) -> None:
    with journal.open("ab") as file:
        file.write(sealed({"result": row_of(result(sweep, 0)) | row, "seconds": 0.5}))
    found, note = numbers(journal, sweep)
    assert found == [0, 2, 5]
    assert "1 line" in note


def test_two_sweeps_do_not_write_to_one_journal(journal: Path, sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(journal, sweep.plan):
        done = subprocess.run(
            [sys.executable, "-m", "pysim_vm", "sweep", f"{tmp_path}/jobs.toml", "--journal", str(journal),
             "--output", str(tmp_path / "out")],
            capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr == (
        f"pysim-vm: another sweep writes to {journal}; wait for it or name another journal\n"
    )


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, sweep: Sweep) -> None:
    for path in (tmp_path / "no" / "journal", tmp_path):
        with pytest.raises(SweepError, match="cannot be opened"):
            Journal(path, sweep.plan)


def test_a_device_is_no_journal(sweep: Sweep) -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("this host has no /dev/zero")
    with pytest.raises(SweepError, match=r"/dev/zero is no regular file; name another journal"):
        Journal("/dev/zero", sweep.plan)


def test_a_disk_that_is_full_is_one_sentence_and_loses_nothing(journal: Path, sweep: Sweep) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(journal, sweep.plan) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, hard))
        try:
            with pytest.raises(SweepError, match=r"journal .* cannot be written \(.*\); check the path and"):
                log.append(result(sweep, 1), 0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert numbers(journal, sweep)[0] == [0, 2, 5]
