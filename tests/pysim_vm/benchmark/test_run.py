"""The model of a workload: the same whatever runs it, the one that is committed, and how a run may end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pysim_vm.benchmark.model import default_costs
from pysim_vm.benchmark.result import parse_results, results_of, text_of
from pysim_vm.benchmark.run import build, measured, model_of, operations_of, suite
from pysim_vm.benchmark.workload import find_workload, library, workload_from_toml
from pysim_vm.errors import DeviceFault, InvalidConfig
from pysim_vm.record_format import RecordError
from pysim_vm.trace import Trace

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "bench" / "model.json"

OUT = """
summary = "x"
count = 100
{top}
[guest]
asm = '''
        mov edi, count
loop:   out 0x80, al
        dec edi
        jnz loop
        {last}
'''
{guest}
[devices]
emu_devices = [["port_latch", 0x80, 1]]
"""


def guest(last: str = "hlt", guest: str = "", top: str = "") -> str:
    """A workload of a hundred OUTs and a last instruction."""
    return OUT.format(last=last, guest=guest, top=top)


@pytest.mark.parametrize("name", library())
def test_the_model_is_the_same_on_both_engines_and_both_exit_paths(name: str) -> None:
    workload = find_workload(name)
    if workload.text:
        workload = workload.with_count(min(workload.count, 500))  # the full way is slow
    model = model_of(workload, "step", "full")
    assert model == model_of(workload, "step", "short")
    assert model == model_of(workload, "block", "full")
    assert model == model_of(workload, "block", "short")


def test_the_committed_model_is_what_this_machine_makes() -> None:
    """After a change that is meant to change it: pysim-vm bench --model-only --output bench/model.json."""
    runs = suite([find_workload(name) for name in library()], engines=())
    made = results_of(runs, default_costs())
    committed = COMMITTED.read_bytes()
    assert {row.workload: row for row in parse_results(committed).models} == {
        row.workload: row for row in made.models
    }
    assert text_of(made).encode() == committed


@pytest.mark.parametrize("name", ["mixed", "pit_tick"])
def test_the_results_are_the_same_bytes_under_any_hash_seed(name: str, tmp_path: Path) -> None:
    files = []
    for seed in ("0", "1", "4711"):
        files.append(tmp_path / f"{seed}.json")
        subprocess.run(
            [sys.executable, "-m", "pysim_vm", "bench", name, "--model-only", "--output", str(files[-1])],
            env={**os.environ, "PYTHONHASHSEED": seed,
                 "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            check=True, capture_output=True, cwd=tmp_path,
        )  # fmt: skip
    assert len({file.read_bytes() for file in files}) == 1
    (row,) = json.loads(files[0].read_bytes())["model"]
    (ours,) = (each for each in json.loads(COMMITTED.read_bytes())["model"] if each["workload"] == name)
    assert row == ours


def test_the_digest_sees_a_value_that_no_count_sees() -> None:
    one = workload_from_toml(guest("mov al, 1\nout 0x80, al\nhlt"), "it")
    two = workload_from_toml(guest("mov al, 2\nout 0x80, al\nhlt"), "it")
    a, b = model_of(one), model_of(two)
    assert (a.instructions, a.exits, a.virtual_ns) == (b.instructions, b.exits, b.virtual_ns)
    assert a.exits_sha256 != b.exits_sha256


@pytest.mark.parametrize(
    ("last", "keys", "sentence"),
    [
        ("hlt", 'end = "power-off"', r'with Halt \(HLT\), and not with end = "power-off"'),
        ("jmp loop", "instructions = 5_000", 'after 5,000 instructions with Budget .*end = "halt"'),
        ("hlt", 'end = "instructions"\ninstructions = 5_000', 'with Halt.*end = "instructions"'),
        ("ud2", "", "with TripleFault"),
        ("mov [0xfee00000], eax", "", "with NestedPageFault .* of guest-physical 0xfee00000"),
    ],
)  # fmt: skip
def test_a_guest_that_ends_otherwise_is_one_sentence(last: str, keys: str, sentence: str) -> None:
    workload = workload_from_toml(guest(last, keys), "it")
    with pytest.raises(InvalidConfig, match=f"workload it: it ended at 0x.*{sentence}"):
        model_of(workload)


def test_an_access_without_a_device_is_one_sentence_with_the_workloads_name() -> None:
    workload = workload_from_toml(guest("out 0x90, al"), "it")
    with pytest.raises(DeviceFault, match=r"^workload it: .* port write 0x90 width 1: no device"):
        model_of(workload)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("base = 0x7fff_0000", "workload it: code: the image at 0x7fff0000-0x.* lies outside RAM"),
        ("lazy = [[0x80_0000, 0x1000], [0x80_0000, 0x1000]]", "workload it: .* overlaps "),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence_with_the_workloads_name(keys: str, sentence: str) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        build(workload_from_toml(guest(guest=keys), "it"))


def test_two_devices_of_one_model_are_tables_of_virtual_devices() -> None:
    text = guest("out 0x90, al\nhlt") + '[[devices.virtual]]\nmodel = "port_latch"\nports = [0x90, 1]\n'
    assert model_of(workload_from_toml(text, "it")).exits == {"io_write": 101, "halt": 1}


def test_a_restarted_guest_runs_count_times() -> None:
    text = guest("ud2", 'end = "triple-fault"\nrestart = true', "").replace("mov edi, count", "mov edi, 2")
    assert model_of(workload_from_toml(text, "it")).exits == {"io_write": 200, "triple_fault": 100}


def test_units_per_exit_need_an_exit() -> None:
    text = 'summary = "x"\ncount = 7\n[guest]\nasm = "nop"\nend = "instructions"\ninstructions = 1\n'
    workload = workload_from_toml(text, "it")
    with pytest.raises(InvalidConfig, match=r'it takes no exit, .*; set per = "iteration"'):
        operations_of(workload, model_of(workload))
    workload = workload_from_toml(text.replace("count = 7", 'count = 7\nper = "iteration"'), "it")
    assert operations_of(workload, model_of(workload)) == 7


def test_a_measurement_has_the_operations_of_the_model_and_a_ratio_for_each_round() -> None:
    workload = find_workload("mixed")
    found = measured(workload, model_of(workload), "step", rounds=3)
    assert found.operations == 12_000
    assert len(found.ratios) == 3
    assert found.low <= found.units <= found.high
    assert found.seconds > 0


def test_a_record_of_a_workload_holds_the_exits_of_its_model(tmp_path: Path) -> None:
    model = model_of(find_workload("uart_hello"), record=tmp_path / "u.rec")
    trace = Trace.open(tmp_path / "u.rec")
    assert len(trace) == model.taken
    assert trace.where(port=0x3F8)[0].value == ord("H")
    assert model == model_of(find_workload("uart_hello"))


def test_a_record_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be written"):
        model_of(find_workload("mixed"), record=tmp_path / "no" / "u.rec")


def test_the_ide_sectors_hold_their_number() -> None:
    workload = find_workload("ide_sector")
    vm = build(workload.with_count(3))
    vm.run_vcpu(0)
    assert vm.read_from_guest(0x6_0000, 512) == (2).to_bytes(4, "little") * 128


def test_lazy_memory_is_given_page_by_page() -> None:
    assert model_of(find_workload("nested_page_fault")).exits == {"nested_page_fault": 1024, "halt": 1}
