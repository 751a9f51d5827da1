"""For every test: translations of hot code are not kept in the user's cache, nor taken from it.

With PYSIM_TEST_ENGINE=other the suite runs on the engine that it does not run on by default: a bare `Cpu`
translates everything that it arrives at by a jump, and a VM that leaves the choice open steps. Tests marked
`default_engine` look at the engine itself and keep the one they expect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from isa.cpu import Cpu
from pysim_vm import AxVM

os.environ["PYSIM_VM_CACHE"] = "off"

OTHER = os.environ.get("PYSIM_TEST_ENGINE") == "other"


@pytest.fixture(autouse=OTHER)
def _other_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.node.get_closest_marker("default_engine") is not None:
        yield
        return
    make_cpu, build_vm = Cpu.__init__, AxVM._build

    def translating(cpu: Cpu, *arguments: Any) -> None:
        make_cpu(cpu, *arguments)
        cpu.use_blocks = True
        cpu.hot = 0
        cpu.sample_every = cpu.first_due = 1

    def stepping(vm: AxVM) -> None:
        build_vm(vm)
        if vm.config().pysim.engine == "auto":
            vm.vcpu(0).cpu.use_blocks = False

    monkeypatch.setattr(Cpu, "__init__", translating)
    monkeypatch.setattr(AxVM, "_build", stepping)
    yield
