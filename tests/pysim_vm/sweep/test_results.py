"""The results file: the same bytes for the same results, put together from shards; damage is refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pysim_vm.sweep import JobResult, Results, Sweep, SweepError
from pysim_vm.sweep.job import run_job
from pysim_vm.sweep.journal import sealed
from tests.pysim_vm.sweeps import SIX, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path, SIX)


@pytest.fixture
def results(sweep: Sweep) -> Results:
    found = [run_job(job).result for job in sweep]
    return Results.of(sweep.digest, len(sweep), [result for result in found if result is not None], {})


def part(results: Results, *numbers: int) -> Results:
    """Some of the results."""
    return replace(results, results=tuple(result for result in results if result.number in numbers))


def unfinished(result: JobResult) -> JobResult:
    return replace(result, outcome="wall-time", exit_status=82, sentence="too slow", final=False,
                   instructions=None, exits={})  # fmt: skip


def test_a_file_has_a_line_of_json_for_each_job_in_order(results: Results) -> None:
    shuffled = Results.of(results.sweep, 6, reversed(results.results), {3: 1.5})
    assert shuffled.to_bytes() == results.to_bytes()
    rows = [json.loads(line) for line in results.to_bytes().splitlines()]
    assert [row["number"] for row in rows] == list(range(6))
    assert {(row["sweep"], row["jobs"]) for row in rows} == {(results.sweep, 6)}
    assert rows[0]["job"] == "die/default/1"
    assert results.digest() == hashlib.sha256(results.to_bytes()).hexdigest()


def test_a_file_read_again_is_the_same(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "a.jsonl")
    again = Results.open(tmp_path / "a.jsonl")
    assert list(again) == list(results)
    assert again.to_bytes() == (tmp_path / "a.jsonl").read_bytes() == results.to_bytes()
    assert again.complete


def test_a_file_is_there_whole_or_not_at_all(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(SweepError, match="cannot be written"):
        results.write(tmp_path / "no" / "a.jsonl")
    results.write(path)
    assert path.read_bytes() == results.to_bytes()
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_rows_and_columns(results: Results) -> None:
    assert results["longer/default/2"].number == 4
    with pytest.raises(KeyError):
        results["longer/default/9"]
    assert results.rows()[0]["exits"] == {"IoWrite": 2}
    columns = results.columns()
    assert columns["seed"] == [1, 2, 3, 1, 2, 3]
    assert columns["exits.IoWrite"] == [2] * 6
    assert "exits" not in columns
    assert len({len(column) for column in columns.values()}) == 1
    assert results.outcomes() == {"power-off": 6}


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_or_the_line_to_type(results: Results, library: str) -> None:
    try:
        frame = getattr(results, f"to_{library}")()
    except SweepError as error:
        assert str(error) == f"to_{library}: {library} is not installed; pip install {library}"
    else:
        assert list(frame["seed"]) == [1, 2, 3, 1, 2, 3]


# ---- merging -----------------------------------------------------------------------------------------------


def written(folder: Path, *parts: Results) -> list[Path]:
    paths = [folder / f"{number}.jsonl" for number in range(len(parts))]
    for path, results in zip(paths, parts, strict=True):
        results.write(path)
    return paths


def test_parts_in_any_order_and_overlapping_are_the_whole(results: Results, tmp_path: Path) -> None:
    parts = [part(results, 5, 1), part(results, 0, 1, 2), part(results, 3, 4)]
    assert Results.merge(written(tmp_path, *parts)).to_bytes() == results.to_bytes()


def test_a_final_result_beats_one_that_is_not(results: Results, tmp_path: Path) -> None:
    slow = Results.of(results.sweep, 6, [unfinished(results.results[0]), *results.results[1:]], {})
    for order in ((results, slow), (slow, results)):
        assert Results.merge(written(tmp_path, *order)).to_bytes() == results.to_bytes()
    alone = Results.merge(written(tmp_path, slow))
    assert not alone.complete
    assert alone.columns()["exits.IoWrite"][0] is None


def test_a_job_that_is_nowhere_is_named(results: Results, tmp_path: Path) -> None:
    paths = written(tmp_path, part(results, 0, 1, 5))
    with pytest.raises(SweepError, match=r"3 of 6 jobs are in none of the files, such as number 2; name the"):
        Results.merge(paths)


def test_results_of_different_sweeps_are_not_mixed(results: Results, tmp_path: Path) -> None:
    other = replace(part(results, 1), sweep="0123456789abcdef")
    paths = written(tmp_path, part(results, 0), other)
    with pytest.raises(SweepError, match=rf"{paths[1]} and {paths[0]} are results of different sweeps"):
        Results.merge(paths)


def test_files_that_disagree_are_refused(results: Results, tmp_path: Path) -> None:
    wrong = Results.of(results.sweep, 6, [replace(results.results[2], instructions=9)], {})
    with pytest.raises(SweepError, match=r"disagree on die/default/3; run both shards again"):
        Results.merge(written(tmp_path, results, wrong))


def test_nothing_to_merge_is_one_sentence() -> None:
    with pytest.raises(SweepError, match="nothing to merge"):
        Results.merge([])


# ---- files of others ---------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_or_empty_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"cannot be read \(No such file or directory\); check the path"):
        Results.open(tmp_path / "no")
    (tmp_path / "empty").touch()
    with pytest.raises(SweepError, match="holds no results"):
        Results.open(tmp_path / "empty")


@pytest.mark.parametrize("data", [b"hello", b"\0" * 200, b"{}\n", b"[" * 100_000, b"x" * 1_000_000])
def test_a_file_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(SweepError, match=r"file:1: no result of a sweep, or damaged; make it again"):
        Results.open(tmp_path / "file")


def test_any_damage_is_noticed(results: Results, tmp_path: Path) -> None:
    data = results.to_bytes()
    path = tmp_path / "file"
    for at in range(0, len(data), 53):
        path.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        with pytest.raises(SweepError, match="no result of a sweep, or damaged"):
            Results.open(path)
    path.write_bytes(data[:-7])
    with pytest.raises(SweepError, match=r"file:6: no result"):
        Results.open(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("jobs", 0),
        ("jobs", 1 << 60),
        ("jobs", True),
        ("jobs", "6"),
        ("sweep", 5),
        ("number", 6),
        ("number", 1),
    ],
)
def test_a_line_that_does_not_fit_is_refused(
    results: Results, tmp_path: Path, key: str, value: object
) -> None:
    rows = [{"sweep": results.sweep, "jobs": 6, **row} for row in results.rows()]
    rows[0][key] = value
    (tmp_path / "file").write_bytes(b"".join(sealed(row) for row in rows))
    with pytest.raises(SweepError, match=r"file:[12]: no result of a sweep"):
        Results.open(tmp_path / "file")
