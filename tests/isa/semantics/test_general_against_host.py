"""The general-purpose instructions against the host's own CPU: generated cases of every form, in all modes.

`PYSIM_NATIVE_CASES` sets the number of cases a mode (default 4000), `PYSIM_NATIVE_SEED` the seed. Flags that
iced's tables call undefined are counted, not compared, unless `PYSIM_NATIVE_UNDEFINED=1`: they follow an AMD
Zen 4 (see the comments in `isa/semantics`), and another CPU may differ.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from isa.decode import code_names
from tests.oracles.forms import make_case
from tests.oracles.general_model import (
    Machine,
    describe,
    difference,
    forms,
    is_long_double_shift,
    undefined_flags,
)
from tests.oracles.native import SIGILL, Case, NativeCpu, available

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on an x86-64 CPU")

CASES = int(os.environ.get("PYSIM_NATIVE_CASES", "4000"))
SEED = int(os.environ.get("PYSIM_NATIVE_SEED", "1"))
COMPARE_UNDEFINED = os.environ.get("PYSIM_NATIVE_UNDEFINED") == "1"
BATCH = 2000


@pytest.mark.parametrize("bits", [64, 32, 16])
def test_every_general_form_does_what_the_host_cpu_does(bits: int) -> None:
    machine = Machine(bits)
    rng = random.Random(SEED * 1000 + bits)
    codes = forms(bits)
    missing_on_host: Counter[str] = Counter()
    undefined_seen: Counter[str] = Counter()
    undefined_equal: Counter[str] = Counter()
    failures: list[str] = []
    tried = 0
    with NativeCpu() as native:
        if bits not in native.modes():
            pytest.skip(f"this kernel gives user code no {bits}-bit segment")
        while tried < CASES and len(failures) < 40:
            batch: list[tuple[int, Case]] = []
            while len(batch) < min(BATCH, CASES - tried):
                code = codes[(tried + len(batch)) % len(codes)]
                case = make_case(rng, code, bits)
                if case is None:
                    code = codes[rng.randrange(len(codes))]
                    case = make_case(rng, code, bits)
                if case is not None:
                    batch.append((code, case))
            tried += len(batch)
            for (code, case), host in zip(batch, native.run([case for _, case in batch]), strict=True):
                name = code_names()[code]
                ours = machine.run(case)
                if host.signal == SIGILL and not ours.signal:
                    missing_on_host[name] += 1
                    continue
                undefined = undefined_flags(case)
                if undefined and not host.signal:
                    undefined_seen[name] += 1
                    undefined_equal[name] += not (host.flags ^ ours.flags) & undefined
                if is_long_double_shift(case) and not COMPARE_UNDEFINED:
                    continue
                what = difference(case, host, ours, 0 if COMPARE_UNDEFINED else undefined)
                if what:
                    failures.append(f"{name}: {what}\n    {describe(case)}")
    unlike = sorted(name for name, seen in undefined_seen.items() if undefined_equal[name] != seen)
    print(
        f"{bits}-bit: {tried} cases of {len(codes)} forms; {len(undefined_seen)} forms have undefined flags, "
        f"unlike the host's in {', '.join(unlike) or 'none'}; not on this host: {sorted(missing_on_host)}"
    )
    assert not failures, "\n".join(failures)
