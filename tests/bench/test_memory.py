"""Memory of translated code: what is counted, and that a process that is measured can be started."""

from __future__ import annotations

from pathlib import Path

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


def test_the_resident_set_is_read_from_the_status_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t  90000 kB\nVmSize:\t  80000 kB\nVmRSS:\t  12345 kB\nThreads:\t1\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory.resident_kib() == 12345
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    with pytest.raises(OSError, match="none"):
        memory.resident_kib()


def test_a_long_boot_is_one_of_the_library_and_needs_its_name() -> None:
    assert [boot.name for boot in BOOTS if boot.long] == ["Debian, default"]
