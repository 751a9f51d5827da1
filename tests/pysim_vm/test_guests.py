"""tests/guests.py: where guest files are found, and what happens without them."""

import re
from pathlib import Path

import pytest

from tests.guests import CHECKOUT, GUESTS, find_guest, guest


def test_the_directory_of_pysim_guests_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bios.bin").write_bytes(b"rom")
    monkeypatch.setenv("PYSIM_GUESTS", str(tmp_path))
    assert guest("bios.bin") == tmp_path / "bios.bin"


def test_a_missing_guest_skips_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.guests.find_guest", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"fetch-guests, or apt-get install seabios"):
        guest("bios.bin")


def test_a_missing_guest_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.guests.find_guest", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="fetch-guests"):
        guest("bios.bin")


def test_an_unknown_name_is_a_mistake_of_the_test() -> None:
    with pytest.raises(KeyError):
        find_guest("no-such-guest")


def test_the_fetch_script_makes_every_known_guest() -> None:
    script = (CHECKOUT / ".ci/fetch-guests").read_text()
    kept = re.findall(r'=([\w.+-]+)"?(?: \\)?$', script, re.MULTILINE)
    made = re.findall(r'"\$guests/([\w+][\w.+-]*)"$', script, re.MULTILINE)
    assert {*kept, *made} >= set(GUESTS)
