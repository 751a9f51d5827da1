"""The devices of benchmarks: latches forget, tickers tick, and a row that cannot be is one sentence."""

from __future__ import annotations

import pytest

from devices.base import DeviceError
from devices.clock import VirtualClock
from pysim_vm.benchmark.devices import Latch, Ticker, Wires, bench_registry
from pysim_vm.benchmark.run import build
from pysim_vm.benchmark.workload import workload_from_toml
from pysim_vm.errors import InvalidConfig

TICKING = """
summary = "x"
count = 1
[guest]
asm = "hlt"
[devices]
emu_devices = [["ticker", 0, 0, 0, 0, {cfg}]]
"""


def test_a_latch_answers_0_whatever_was_written() -> None:
    latch = Latch()
    latch.write(0, 4, 7)
    assert latch.read(0, 4) == 0


def test_a_ticker_ticks_every_period_and_starts_anew_at_a_reset() -> None:
    now = [0]
    clock = VirtualClock(lambda: now[0])
    ticks: list[int] = []
    ticker = Ticker(clock, 1_000, lambda: ticks.append(now[0]))
    for moment in range(0, 3_001, 500):
        now[0] = moment
        clock.fire_due()
    assert ticks == [1_000, 2_000, 3_000]
    clock.clear()
    now[0] = 3_500
    ticker.reset()
    assert clock.next_deadline_ns() == 4_500


@pytest.mark.parametrize("cfg", ["[]", "[0x40]", "[256, 6400]", "[0x40, 99]"])
def test_a_ticker_without_vector_and_period_is_refused(cfg: str) -> None:
    workload = workload_from_toml(TICKING.format(cfg=cfg), "it")
    with pytest.raises(InvalidConfig, match=r"is no \[vector, period\]; write a vector below 256"):
        build(workload)


def test_a_name_that_is_taken_is_refused() -> None:
    registry = bench_registry(Wires())
    with pytest.raises(DeviceError, match="'port_latch' is registered already"):
        bench_registry(Wires(), {"port_latch": registry._factory("port_latch")})
