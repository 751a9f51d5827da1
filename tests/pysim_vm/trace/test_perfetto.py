"""A record in Perfetto's own words: its trace processor reads the export and is asked in SQL what it saw."""

from __future__ import annotations

import io
from collections import Counter

import pytest

from pysim_vm.demo import build_demo
from pysim_vm.trace import Trace
from pysim_vm.trace.perfetto import write_perfetto
from tests.oracles import perfetto

pytestmark = pytest.mark.skipif(bool(perfetto.missing()), reason=perfetto.missing())

QUERIES = (
    "select name, value from stats where severity != 'info' and value > 0",
    "select t.name, count(*) from slice s join track t on s.track_id = t.id group by 1",
    "select s.name, s.ts, s.dur from slice s join track t on s.track_id = t.id where t.name = 'vCPU 0'",
    "select t.name, max(c.value), c.ts from counter c join counter_track t on c.track_id = t.id group by 1",
    "select distinct p.name from track t join track p on t.parent_id = p.id",
    "select display_value from args where key = 'debug.words' and display_value like '%calculator%'",
)


@pytest.fixture(scope="module")
def trace() -> Trace:
    vm = build_demo()
    with vm.record():
        vm.run(1_000_000)
    return vm.trace


@pytest.fixture(scope="module")
def answers(trace: Trace) -> list[list[tuple[perfetto.Cell, ...]]]:
    file = io.BytesIO()
    assert write_perfetto(trace, file) == len(trace)
    return perfetto.ask(file.getvalue(), *QUERIES)


def test_perfettos_own_parser_has_nothing_against_the_file(
    answers: list[list[tuple[perfetto.Cell, ...]]],
) -> None:
    assert answers[0] == []


def test_perfetto_sees_every_exit_on_its_vcpu_and_device(
    trace: Trace, answers: list[list[tuple[perfetto.Cell, ...]]]
) -> None:
    expected: Counter[object] = Counter(row.device for row in trace if row.device)
    expected["vCPU 0"] = len(trace)
    assert Counter({str(name): count for name, count in answers[1]}) == expected


def test_perfetto_sees_exits_when_they_came_and_halts_as_long_as_they_slept(
    trace: Trace, answers: list[list[tuple[perfetto.Cell, ...]]]
) -> None:
    rows = [
        ("HLT", row.ns, row.value) if row.reason == "halt" and row.value else (row.reason, row.ns, 0)
        for row in trace
    ]
    assert Counter(rows) == Counter(answers[2])


def test_perfetto_sees_the_counters_the_machine_and_the_words(
    trace: Trace, answers: list[list[tuple[perfetto.Cell, ...]]]
) -> None:
    counters = {name: most for name, most, _ in answers[3]}
    assert set(counters) == {"exits per ms", "instructions retired"}
    last_ms = trace[-1].ns // 1_000_000
    assert counters["instructions retired"] == next(
        row.retired for row in trace if row.ns // 1_000_000 == last_ms
    )
    assert answers[4] == [(f"VM[1] {trace.header['vm']['name']}",)]
    assert len(answers[5]) >= 3


def test_a_file_that_is_no_trace_is_refused() -> None:
    with pytest.raises(perfetto.PerfettoError):
        perfetto.ask(b"\xff" * 100, "select 1")
