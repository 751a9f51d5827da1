"""Files of results: what is written is read back, and a file that is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pysim_vm.benchmark.result import (
    FILE_MAX,
    ResultError,
    as_document,
    parse_results,
    read_results,
    text_of,
    write_results,
)
from tests.pysim_vm.bench_results import TIMED, results

FULL = results(TIMED)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for made in (FULL, results()):
        write_results(made, tmp_path / "r.json")
        assert read_results(tmp_path / "r.json") == made


def test_a_model_alone_names_no_machine_and_no_version_of_python() -> None:
    assert set(as_document(results())) == {"format", "version", "cost_model", "model"}


def changed(path: str, value: Any) -> str:
    """The text of FULL with another value at a dotted path; None removes the key."""
    document = json.loads(text_of(FULL))
    place: Any = document
    *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parts:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("format", "other", 'format: "other" is not "pysim-vm bench"; give a file that pysim-vm bench wrote'),
        ("format", None, "format: missing; give a file that pysim-vm bench wrote"),
        ("version", 2, "version: 2 is not 1, the one that this program reads; write the file anew with it"),
        ("version", True, "version: true is wrong here; give a file that pysim-vm bench wrote"),
        ("model", {}, "model: a table is wrong here"),
        ("model.0", 1, "model[0]: 1 is no object"),
        ("model.0.instructions", -1, "model[0].instructions: -1 is out of range"),
        ("model.0.instructions", 1.5, "model[0].instructions: 1.5 is wrong here"),
        ("model.0.exits", {"nothing_such": 1}, 'model[0].exits."nothing_such": no kind of exit; known '),
        ("model.0.exits_sha256", "abc", 'model[0].exits_sha256: "abc" is no SHA-256 in hexadecimal'),
        ("model.0.per", "byte", 'model[0].per: "byte" is none of exit, iteration'),
        ("model.0.summary", "x" * 5000, "model[0].summary: 5000 characters are too many"),
        ("model.0.extra", 1, "model[0].\"extra\": an unknown key; write the file anew"),
        ("cost_model.exit", {}, "cost_model.exit: mmio_read is missing; write the file anew"),
        ("measured.0.workload", "x", 'measured[0].workload: "x" has no row in model; write the file anew'),
        ("measured.0.normalised.units", "x", 'measured[0].normalised.units: "x" is no number from 0 on'),
        ("measured.0.normalised.units", -1, "measured[0].normalised.units: -1 is no number from 0 on"),
        ("measured.0.normalised.units", 99, "measured[0].normalised.units: the median does not lie between"),
        ("measured.0.normalised.rounds", [1] * 1001, "measured[0].normalised.rounds: 1001 elements are too "),
        ("measured.0.operations", 0, "measured[0].operations: 0 is out of range"),
        ("machine", None, "machine: missing"),
        ("machine.cpu", 1, "machine.cpu: 1 is wrong here"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_sentence_with_its_place(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(ResultError) as caught:
        parse_results(changed(path, value), "r.json")
    assert str(caught.value).startswith(f"r.json: {sentence}"), str(caught.value)


def test_a_row_that_is_there_twice_is_refused() -> None:
    document = json.loads(text_of(FULL))
    for key, sentence in (("model", 'model[1]: "io_write"'), ("measured", 'measured[1]: "io_write block')):
        twice = {**document, key: document[key] * 2}
        with pytest.raises(ResultError) as caught:
            parse_results(json.dumps(twice))
        assert sentence in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"version": NaN}', b"1" * 5000])
def test_what_is_no_json_is_one_sentence(data: bytes) -> None:
    with pytest.raises(ResultError, match=r"r.json: no JSON"):
        parse_results(data, "r.json")


def test_a_list_is_no_file_of_results() -> None:
    with pytest.raises(ResultError, match=r"r.json: an array of 0 is no object"):
        parse_results("[]", "r.json")


def test_a_file_that_is_too_large_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b" " * (FILE_MAX + 1))
    with pytest.raises(ResultError, match=r"big.json: more than 4194304 bytes are no results"):
        read_results(tmp_path / "big.json")
    with pytest.raises(ResultError, match=r"none.json cannot be read \(No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(ResultError, match=r"cannot be read .*; check the path"):
        read_results("nul\0.json")
    with pytest.raises(ResultError, match="cannot be written"):
        write_results(FULL, tmp_path)
