"""The x87 instructions against the host's own x87 unit: generated cases of every encoding, bit for bit.

`PYSIM_NATIVE_CASES` sets the number of cases (default 6000), `PYSIM_NATIVE_SEED` the seed. What the SDM
leaves open follows an AMD Zen 4; on a CPU of another vendor only `PYSIM_NATIVE_X87=1` runs the comparison.
The transcendental functions are compared within bounds: the manual allows an error of one unit in the last
place.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.oracles.native import available
from tests.oracles.native_x87 import NativeX87, vendor
from tests.oracles.x87_cases import make_case
from tests.oracles.x87_model import (
    ENCODINGS,
    TRANSCENDENTAL,
    describe,
    difference,
    forgive_rounding,
    machine,
    run,
)

pytestmark = pytest.mark.skipif(
    not (available() and (vendor() == "AuthenticAMD" or os.environ.get("PYSIM_NATIVE_X87") == "1")),
    reason="needs Linux on an x86-64 CPU of AMD",
)

CASES = int(os.environ.get("PYSIM_NATIVE_CASES", "6000"))
SEED = int(os.environ.get("PYSIM_NATIVE_SEED", "1"))
BATCH = 2000


@pytest.fixture(scope="module")
def host() -> Iterator[NativeX87]:
    with NativeX87() as native:
        yield native


def compare_all(host: NativeX87, chosen: list[int], count: int, seed: int) -> list[str]:
    """Run `count` cases of the chosen encodings on both; descriptions of those that differ."""
    rng = random.Random(seed)
    cpu = machine()
    wrong = []
    for start in range(0, count, BATCH):
        numbers = [chosen[i % len(chosen)] for i in range(start, min(start + BATCH, count))]
        cases = [make_case(rng, *ENCODINGS[n][:2]) for n in numbers]
        for n, case, theirs in zip(numbers, cases, host.run(cases), strict=True):
            ours = run(cpu, n, case, host.at)
            if ENCODINGS[n][2] in TRANSCENDENTAL:
                ours = forgive_rounding(ours, theirs)
            found = difference(case, ours, theirs)
            if found:
                wrong.append(describe(case, found))
    return wrong


def test_every_exact_instruction_agrees_with_the_host_bit_for_bit(host: NativeX87) -> None:
    exact = [n for n, (_, _, mnemonic) in enumerate(ENCODINGS) if mnemonic not in TRANSCENDENTAL]
    wrong = compare_all(host, exact, CASES, SEED)
    assert not wrong, f"{len(wrong)} of {CASES} cases differ:\n" + "\n".join(wrong[:20])


def test_transcendental_instructions_agree_with_the_host_within_one_unit(host: NativeX87) -> None:
    chosen = [n for n, (_, _, mnemonic) in enumerate(ENCODINGS) if mnemonic in TRANSCENDENTAL]
    wrong = compare_all(host, chosen, CASES // 3, SEED)
    assert not wrong, f"{len(wrong)} of {CASES // 3} cases differ:\n" + "\n".join(wrong[:20])
