"""Counting exits: counts, shares, rates and times add up, by any group."""

from __future__ import annotations

import pytest

from pysim_vm import AxError
from pysim_vm.demo import BUDGET, build_demo
from pysim_vm.record_format import CHUNK_ROWS, Kind
from pysim_vm.trace import Trace
from pysim_vm.trace.stat import GROUPS, stat
from tests.pysim_vm.records import recorded


@pytest.fixture(scope="module")
def demo() -> Trace:
    vm = build_demo()
    with vm.record():
        vm.run(BUDGET)
    return vm.trace


def test_exits_are_counted_by_reason_and_device() -> None:
    found = stat(recorded(100))
    assert [(row.key, row.count) for row in found.rows] == [
        (("io_read", "counter"), 100), (("io_write", "counter"), 100), (("mmio_read", "counter"), 100),
        (("mmio_write", "counter"), 100), (("sys_reg_read", "counter"), 100),
        (("sys_reg_write", "counter"), 100), (("halt", ""), 1),
    ]  # fmt: skip
    assert found.exits == 601
    assert found.instructions == 1 + 100 * 12 + 1


def test_the_time_of_an_exit_is_that_to_the_next_one() -> None:
    rows = {row.key[0]: row for row in stat(recorded(100)).rows}
    assert (rows["io_read"].min_ns, rows["io_read"].mean_ns, rows["io_read"].max_ns) == (64, 64, 64)
    assert rows["sys_reg_write"].max_ns == 6 * 64
    assert rows["io_write"].total_ns == 100 * 64


def test_times_shares_and_rates_add_up(demo: Trace) -> None:
    found = stat(demo)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert sum(row.total_ns for row in found.rows) == found.ns - demo[0].ns
    assert sum(row.per_thousand for row in found.rows) == pytest.approx(len(demo) * 1000 / 10_001)
    assert all(row.min_ns <= row.mean_ns <= row.max_ns for row in found.rows)


def test_a_sleep_is_the_time_of_the_halt(demo: Trace) -> None:
    halt = next(row for row in stat(demo).rows if row.key[0] == "halt")
    assert halt.count == 2 and halt.min_ns > 9_000_000


@pytest.mark.parametrize("by", GROUPS)
def test_every_group_counts_every_exit_once(demo: Trace, by: str) -> None:
    found = stat(demo, by)
    expected = len(demo.where(reason="io")) if by == "port" else len(demo)
    assert sum(row.count for row in found.rows) == expected == found.exits
    assert [row.count for row in found.rows] == sorted((row.count for row in found.rows), reverse=True)


def test_groups_are_named_as_people_know_them(demo: Trace) -> None:
    assert ("0x3f8", "uart16550") in [row.key for row in stat(demo, "port").rows]
    assert ("mmio_read", "0xfeb00010", "calculator") in [row.key for row in stat(demo, "address").rows]
    assert ("0x7c32",) in [row.key for row in stat(demo, "rip").rows]
    assert ("uart16550",) in [row.key for row in stat(demo, "device").rows]


def test_a_selection_keeps_the_times_of_the_whole_record(demo: Trace) -> None:
    whole = {row.key: row for row in stat(demo).rows}
    for row in stat(demo.where(device="pic8259")).rows:
        assert (row.count, row.total_ns) == (whole[row.key].count, whole[row.key].total_ns)


def test_times_go_on_across_chunks() -> None:
    trace = recorded(CHUNK_ROWS[Kind.EXITS] // 3 + 5)
    assert len(trace.record.chunks[Kind.EXITS]) == 3
    found = stat(trace)
    assert sum(row.total_ns for row in found.rows) == found.ns - trace[0].ns
    assert {row.key[0]: row.max_ns for row in found.rows}["mmio_write"] == 2 * 64


def test_an_empty_selection_is_an_empty_table(demo: Trace) -> None:
    found = stat(demo.where(retired=0))
    assert (found.exits, found.rows) == (0, [])


def test_an_unknown_group_says_which_there_are(demo: Trace) -> None:
    with pytest.raises(AxError, match="no group 'colour'; there are reason, device, port"):
        stat(demo, "colour")
