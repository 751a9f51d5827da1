"""Real guests in the benchmark: one that is not there is named, one that gets stuck says where."""

from __future__ import annotations

import pytest

from bench import guest_boots
from bench.guest_boots import BOOTS, Boot, Meter, NotReached
from pysim_vm import AxVM
from tests.guests import GUESTS, guest

PRINT = "mov dx, 0xe9\n mov al, 'A'\n loop: out dx, al\n inc al\n cmp al, 'D'\n jne loop\n cli\n hlt"


def test_every_file_of_a_boot_is_one_that_can_be_fetched() -> None:
    assert {name for boot in BOOTS for name in boot.files} <= set(GUESTS)


def test_without_guests_the_line_that_fetches_them_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guest_boots, "find_guest", lambda name: None)
    guest_boots.show(["step", "block"], "bios")
    assert capsys.readouterr().out.splitlines()[2:] == ["", "not there: bios.bin; run .ci/fetch-guests"]


def test_a_run_ends_when_the_text_has_come() -> None:
    vm, meter = AxVM.from_asm(PRINT, platform="pc"), Meter()
    meter.run_to(vm, vm.console.text, "ABC", 100)
    assert "ABC" in vm.console.text()
    assert meter.seconds > 0 and meter.units > 0


def test_a_guest_that_stops_before_is_an_error_that_says_what_was_waited_for() -> None:
    vm = AxVM.from_asm(PRINT, platform="pc")
    with pytest.raises(NotReached, match=r'"Z" did not come in 100 instructions; the run said Halt'):
        Meter().run_to(vm, vm.console.text, "Z", 100)


def test_the_block_engine_boots_a_second_time_with_what_the_first_time_kept() -> None:
    found: list[dict[str, str]] = []

    def boot(meter: Meter) -> AxVM:
        found.append(meter.machine)
        vm = AxVM.from_asm("mov ecx, 5000\nagain: loop again\ncli\nhlt", **meter.machine)
        meter.timed(vm.run)
        return vm

    rows = list(guest_boots.boots_of(Boot("it", (), boot), "block"))
    assert [(row.engine, row.instructions) for row in rows] == [("block", 5003), ("kept", 5003)]
    assert found[0] == found[1] and set(found[0]) == {"engine", "translation_cache"}
    assert [row.engine for row in guest_boots.boots_of(Boot("it", (), boot), "step")] == ["step"]
    assert found[2] == {"engine": "step"}


@pytest.mark.guest
def test_memtest_is_measured_to_its_menu() -> None:
    (boot,) = (boot for boot in BOOTS if boot.boot is guest_boots.memtest)
    for name in boot.files:
        guest(name)
    (booted,) = guest_boots.boots_of(boot, "step")
    assert 10_000_000 < booted.instructions < 11_000_000
    assert booted.seconds > 0


def test_a_row_has_millions_a_second_and_units() -> None:
    line = guest_boots.Booted("it", "step", 6_000_000, 3.0, 54_000_000).line()
    assert [cell.strip() for cell in line.split("|")][1:-1] == [
        "it",
        "step",
        "6,000,000",
        "3.0 s",
        "2.00",
        "9.0",
    ]
