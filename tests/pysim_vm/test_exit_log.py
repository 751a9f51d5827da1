"""The exit log: columns and whole rows come out as the rows that went in."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pysim_vm import AxVM, Device
from pysim_vm.exit_kinds import IO_READ, IO_WRITE, MMIO_WRITE
from pysim_vm.exit_log import SITES_MAX, ExitLog, ExitRow
from pysim_vm.record_format import (
    EXIT_TYPE,
    ROW_TYPES,
    Kind,
    RecordError,
    columns_of,
    packed_columns,
    unpacked_columns,
)


def noted(log: ExitLog, site: int, retired: int, rip: int, value: int) -> None:
    """Note an exit as the short way does."""
    log.retired.append(retired)
    log.rip.append(rip)
    log.site.append(site)
    log.value.append(value)


def filled(count: int, rng: random.Random) -> tuple[ExitLog, list[ExitRow]]:
    """A log with exits of both ways, and its rows."""
    log, rows = ExitLog(), []
    sites = [(IO_READ, 0x60, 1, 4), (IO_WRITE, 0xFFFF, 4, -1), (MMIO_WRITE, (1 << 52) - 8, 8, 0x7FFF)]
    numbers = [log.site_number(0, *site) for site in sites]
    for retired in range(count):
        rip, value = rng.getrandbits(64), rng.getrandbits(rng.choice((1, 30, 64)))
        at = rng.randrange(4)
        if at == 3:
            row = (retired, 0, rip, 8, 0, 0, value, -1, 0)
            log.append(row)
        else:
            kind, address, width, device = sites[at]
            lines = rng.choice((0, 0, 1 << 63))
            noted(log, numbers[at], retired, rip, value)
            if lines:
                log.raised(lines)
            row = (retired, 0, rip, kind, address, width, value, device, lines)
        rows.append(row)
    return log, rows


def test_rows_come_out_in_the_order_in_which_both_ways_noted_them() -> None:
    rng = random.Random(1)
    for count in (0, 1, 2, 300):
        log, rows = filled(count, rng)
        assert list(log) == rows and len(log) == count
        assert log.packed() == np.array(rows, EXIT_TYPE).tobytes()
        log.clear()
        assert len(log) == 0 and list(log) == [] and log.packed() == b""


def test_the_rows_before_sites_were_forgotten_keep_theirs() -> None:
    log = ExitLog()
    noted(log, log.site_number(0, IO_READ, 0x60, 1, 3), 1, 0x10, 7)
    log.forget_sites()
    noted(log, log.site_number(0, IO_WRITE, 0x61, 2, 4), 2, 0x12, 8)
    assert list(log) == [(1, 0, 0x10, IO_READ, 0x60, 1, 7, 3, 0), (2, 0, 0x12, IO_WRITE, 0x61, 2, 8, 4, 0)]
    assert len(log) == 2 and not log.plain


def test_a_log_of_columns_alone_gives_the_columns_of_its_rows() -> None:
    rng = random.Random(2)
    for sites in (1, 5):
        log = ExitLog()
        numbers = [log.site_number(0, n % 6, 0x300 + n, 1 << n % 4, n - 1) for n in range(sites)]
        for retired in range(100):
            noted(log, rng.choice(numbers), 7 * retired, 0x1000, rng.getrandbits(40))
        rows = log.packed()[: 60 * EXIT_TYPE.itemsize]
        assert packed_columns(log.columns(60)) == packed_columns(columns_of(Kind.EXITS, rows))
        log.drop(60)
        assert len(log) == 40 and next(iter(log))[0] == 420


@pytest.mark.parametrize("odd", (1, 49, 51, 98))
def test_one_exit_that_differs_in_a_loop_around_another_keeps_its_place(odd: int) -> None:
    """The first, the middle and the last one are the same: there columns of one value are looked for."""
    log = ExitLog()
    usual, other = (log.site_number(0, IO_WRITE, port, 1, 2) for port in (0x80, 0x81))
    for n in range(100):
        noted(log, *((other, n, 0x2000, 7) if n == odd else (usual, n, 0x1000, 5)))
    rows = log.packed()
    assert packed_columns(log.columns(100)) == packed_columns(columns_of(Kind.EXITS, rows))
    assert log.columns(odd)["rip"].most == 0x1000 and log.columns(odd + 1)["rip"].most == 0x2000


def test_raised_lines_and_whole_rows_are_no_plain_columns() -> None:
    log = ExitLog()
    noted(log, log.site_number(0, IO_READ, 0x60, 1, 3), 1, 0x10, 7)
    assert log.plain
    log.raised(2)
    assert not log.plain
    log.clear()
    assert log.plain
    log.append((1, 0, 0, 8, 0, 0, 0, -1, 0))
    assert not log.plain


@pytest.mark.parametrize("kind", [Kind.EXITS, Kind.STORES, Kind.CHANGES, Kind.EVENTS])
def test_columns_are_the_rows_again(kind: Kind) -> None:
    rng = np.random.default_rng(int(kind))
    for count in (1, 2, 1000):
        for bits in (0, 1, 8, 9, 16, 31, 33, 64):
            table = np.zeros(count, ROW_TYPES[kind])
            for name in table.dtype.names or ():
                wide = rng.integers(0, 1 << bits, count, np.uint64, endpoint=True) if bits < 64 else (
                    rng.integers(0, (1 << 64) - 1, count, np.uint64, endpoint=True)
                )  # fmt: skip
                table[name] = wide.astype(f"<u{table[name].itemsize}").view(table[name].dtype)
            packed = packed_columns(columns_of(kind, table.tobytes()))
            assert unpacked_columns(kind, count, packed) == table.tobytes()


def test_columns_that_are_none_are_refused() -> None:
    packed = packed_columns(columns_of(Kind.EXITS, bytes(46) + b"\1" * 46))
    assert unpacked_columns(Kind.EXITS, 2, packed) is not None
    for wrong in (b"", packed[:-1], packed + b"\0", b"\3" + packed[1:], b"\xff" * len(packed)):
        assert unpacked_columns(Kind.EXITS, 2, wrong) is None
    with pytest.raises(RecordError, match="have no columns"):
        columns_of(Kind.INSTRUCTIONS, b"")


class Sink(Device):
    """Takes everything."""

    name = "sink"


def test_a_guest_that_sweeps_more_addresses_than_the_log_knows_sites_is_noted_all_the_same() -> None:
    vm = AxVM.from_asm("mov ebx, 0x800000\nlp: mov [rbx], al\n inc rbx\n jmp lp", memory="4M")
    vm.get_devices().add_mmio_dev(Sink(), 0x80_0000, 0x10_0000)
    count = SITES_MAX + 1_000
    with vm.record() as recorder:
        vm.run_vcpu(0, 1 + 3 * count)
    table = vm.trace.to_numpy()
    assert recorder.stopped == ""
    assert np.array_equal(table["address"], 0x80_0000 + np.arange(count, dtype=np.uint64))
    assert np.array_equal(table["retired"], 1 + 3 * np.arange(count, dtype=np.uint64))


class Recording(Device):
    """Starts a recording in the middle of an exit."""

    name = "recording"

    def __init__(self, vm: AxVM) -> None:
        self.vm = vm

    def write(self, offset: int, width: int, value: int) -> None:
        if self.vm.recorder is None:
            self.vm.record()


def test_a_recording_that_a_device_starts_begins_with_that_exit() -> None:
    vm = AxVM.from_asm("mov dx, 0x300\nout dx, al\nout dx, ax\nhlt")
    vm.get_devices().add_port_dev(Recording(vm), 0x300, 8)
    vm.run_vcpu(0)
    assert [(row.reason, row.width) for row in vm.trace] == [("io_write", 1), ("io_write", 2), ("halt", 0)]
