"""Memory of translated code: what is counted, and that a process that is measured can be started."""

from __future__ import annotations

import sys

import pytest

from bench import memory
from bench.guest_boots import BOOTS
from bench.memory import Kept
from pysim_vm import AxVM

LOOP = "mov ecx, 5000\nagain: add eax, ecx\nloop again\ncli\nhlt"


def test_instructions_in_functions_that_can_be_called_are_counted_once() -> None:
    vm = AxVM.from_asm(LOOP, engine="block")
    cache = vm.vcpu(0).cpu.cache
    assert memory.translated(cache) == 0
    vm.run()
    assert memory.translated(cache) == 2
    cache.drop_blocks()
    assert memory.translated(cache) == 0


def test_the_step_engine_is_what_the_block_engine_is_held_against(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"step": Kept(1000, 0), "block": Kept(1500, 512)}
    monkeypatch.setattr(memory, "kept_by", lambda name, engine: found[engine])
    assert memory.bytes_per_instruction("it") == 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_a_process_has_a_resident_set() -> None:
    assert memory.resident_kib() > 10_000  # Python and numpy alone take more


def test_a_long_boot_is_one_of_the_library_and_needs_its_name() -> None:
    assert [boot.name for boot in BOOTS if boot.long] == ["Debian, default"]
