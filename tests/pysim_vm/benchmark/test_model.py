"""Cost models: integers times integers, the default's figures, and files of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pysim_vm.benchmark.model import costs_from_toml, default_costs, load_costs
from pysim_vm.errors import ConfigError
from pysim_vm.exit_kinds import KINDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
GOOD = 'name = "lab"\nsource = "measured"\n[exit]\nio_read = 2310\n'


def test_cycles_are_instructions_and_exits_times_their_figures() -> None:
    costs = costs_from_toml(GOOD.replace("[exit]", "instruction = 3\n[exit]"))
    assert costs.cycles(10, {"io_read": 2, "hypercall": 1}) == 30 + 2 * 2310 + 1200


def test_what_a_file_leaves_out_keeps_the_default() -> None:
    costs, default = costs_from_toml(GOOD), default_costs()
    assert costs.instruction == default.instruction == 1
    assert {kind for kind in KINDS if costs.exits[kind] != default.exits[kind]} == {"io_read"}


def test_the_default_says_that_it_is_not_measured_and_has_every_kind() -> None:
    costs = default_costs()
    assert "not measured" in costs.source
    assert set(costs.exits) == set(KINDS)


def test_the_page_has_the_figures_of_the_default() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| Exit | Cycles |")[2].partition("\n\n")[0]
    found = {}
    for names, cycles in re.findall(r"^\| (`.*?`) \| ([\d,]+) \|", table, re.MULTILINE):
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", names), int(cycles.replace(",", ""))))
    costs = default_costs()
    assert found == {
        kind: costs.exits[kind]
        for kind in KINDS
        if kind not in ("nothing", "fail_entry", "unimplemented", "budget")
    }


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "lab"\n', "", ' name: missing; add name = "my machine"'),
        ('source = "measured"\n', "", ' source: missing; add source = "where the figures come from"'),
        ("io_read = 2310", "io_read = -1", "4: exit.io_read: -1 is out of range; write 0 to "),
        ("io_read = 2310", "io_read = 1.5", "4: exit.io_read: 1.5 is a float; write an integer"),
        ("io_read = 2310", "io_raed = 1", "4: exit.io_raed: no kind of exit; known are mmio_read, "),
        ("[exit]\nio_read = 2310", "", " exit: missing; add exit = { io_read = 1000 }"),
        ("[exit]", "instructoin = 1\n[exit]", "3: instructoin: unknown key"),
        ("[exit]", "[exit", "3: no TOML: "),
    ],
)
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        costs_from_toml(GOOD.replace(old, new), "lab.toml")
    assert str(caught.value.problems[0]).startswith(f"lab.toml:{sentence}")


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"nope.toml: cannot be read"):
        load_costs("nope.toml")
