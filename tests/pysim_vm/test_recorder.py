"""Recording: the same guest is the same file, whatever runs it; no row is lost; the guest notices nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isa.exits import Halt
from pysim_vm import AxError, AxVM, Device
from pysim_vm.demo import BUDGET, build_demo
from pysim_vm.exit_kinds import KINDS
from pysim_vm.record_format import CHUNK_ROWS, Kind, RecordError
from pysim_vm.recorder import FLUSH_ROWS, Recorder
from pysim_vm.trace import Trace
from tests.pysim_vm.records import mixed, recorded

ROOT = Path(__file__).resolve().parents[2]
ROUND = 6  # exits of one round of MIXED

DIGEST = """
import hashlib, sys
from tests.pysim_vm.records import mixed
from tests.pysim_vm.test_recorder import file_digest
print(file_digest(sys.argv[1], engine=sys.argv[2]))
"""


def file_digest(path: str, engine: str = "step", exit_path: str = "short", piece: int = 1 << 60) -> str:
    """SHA-256 of the file that a recording of MIXED leaves."""
    vm = mixed(3000, engine=engine, exit_path=exit_path, seed=5)
    recorder = vm.record(path)
    while not isinstance(vm.run(piece), Halt):
        pass
    recorder.close()
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_both_engines_and_both_exit_paths_give_the_same_file(tmp_path: Path) -> None:
    path = str(tmp_path / "a.rec")
    found = {
        file_digest(path, engine, exit_path)
        for engine in ("step", "block")
        for exit_path in ("short", "full")
    }
    assert len(found) == 1


def test_hash_seeds_and_processes_give_the_same_file(tmp_path: Path) -> None:
    found = {file_digest(str(tmp_path / "here.rec"))}
    for seed, engine in (("0", "step"), ("1", "block"), ("4711", "step")):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        result = subprocess.run(
            [sys.executable, "-c", DIGEST, str(tmp_path / "there.rec"), engine],
            env=environment, capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        found.add(result.stdout.strip())
    assert len(found) == 1


@pytest.mark.parametrize("piece", [7, 1000, 5000])
def test_a_run_in_pieces_gives_the_same_file(piece: int, tmp_path: Path) -> None:
    path = str(tmp_path / "a.rec")
    assert file_digest(path, piece=piece) == file_digest(path)


def test_stores_and_instructions_are_the_same_on_both_engines() -> None:
    digests = set()
    for engine in ("step", "block"):
        vm = mixed(400, engine=engine)
        with vm.record(stores=True):
            vm.run(1_000_000)
        assert len(vm.trace.stores.where(by="cpu")) == 400
        digests.add(vm.trace.digest())
    assert len(digests) == 1
    assert recorded(20, instructions=True).digest() == recorded(20, instructions=True).digest()


def test_recording_changes_nothing_for_the_guest() -> None:
    runs = set()
    for options in (None, {}, {"stores": True}, {"instructions": True}):
        vm = build_demo()
        if options is not None:
            vm.record(**options)
        vm.run(BUDGET)
        registers = tuple(sorted(vm.vcpu(0).regs.as_dict().items()))
        runs.add((vm.vcpu(0).retired, vm.now_ns(), bytes(vm.console.data), registers,
                  hashlib.sha256(vm.read_from_guest(0, 1 << 20)).hexdigest()))  # fmt: skip
    assert len(runs) == 1


def test_every_exit_is_a_row_with_the_answer_of_its_device() -> None:
    trace = recorded(2)
    rows = [(row.reason, row.address, row.width, row.value, row.device) for row in trace]
    assert rows == [
        ("io_read", 0x300, 1, 1, "counter"), ("io_write", 0x300, 1, 1, "counter"),
        ("mmio_read", 0x80_0000, 4, 2, "counter"), ("mmio_write", 0x80_0008, 8, 2, "counter"),
        ("sys_reg_read", 0x1234, 8, 3, "counter"), ("sys_reg_write", 0x1234, 8, 3, "counter"),
        ("io_read", 0x300, 1, 4, "counter"), ("io_write", 0x300, 1, 4, "counter"),
        ("mmio_read", 0x80_0000, 4, 5, "counter"), ("mmio_write", 0x80_0008, 8, 5, "counter"),
        ("sys_reg_read", 0x1234, 8, 6, "counter"), ("sys_reg_write", 0x1234, 8, 6, "counter"),
        ("halt", 0, 0, 0, ""),
    ]  # fmt: skip
    assert trace[0].rip == trace[6].rip and trace[0].retired == 2


def test_virtual_time_of_a_row_includes_what_hlt_skipped() -> None:
    vm = build_demo()
    seen: list[tuple[int, int]] = []
    vm.on_exit = lambda vcpu, reason: seen.append((vcpu.retired, vm.now_ns()))
    with vm.record():
        vm.run(BUDGET)
    rows = [(row.retired, row.ns) for row in vm.trace if row.reason != "system_down"]
    assert rows == seen
    assert any(row.value > 1_000_000 for row in vm.trace.where(reason="halt"))


def test_a_timer_that_wakes_a_halted_cpu_is_an_interrupt_raised_by_the_halt() -> None:
    vm = build_demo()
    with vm.record():
        vm.run(BUDGET)
    assert {row.reason for row in vm.trace.where(irq=0)} >= {"halt"}


def test_a_record_longer_than_a_chunk_keeps_every_row_in_order() -> None:
    rounds = CHUNK_ROWS[Kind.EXITS] // ROUND + 100
    trace = recorded(rounds)
    assert len(trace) == ROUND * rounds + 1
    assert len(trace.record.chunks[Kind.EXITS]) == 2
    assert [row.number for row in trace] == list(range(len(trace)))
    reads = trace.where(reason="io_read").to_numpy()["value"]
    assert reads.tolist() == [(1 + 3 * n) & 0xFF for n in range(rounds)]


def test_an_open_recording_can_be_asked_and_goes_on() -> None:
    vm = mixed(2000)
    vm.record()
    vm.run(500)
    first = len(vm.trace)
    vm.run(500)
    second = vm.trace
    assert 0 < first < len(second)
    assert "was not closed" in second.notes[0]
    assert [row.number for row in second] == list(range(len(second)))


def test_a_killed_recording_opens(tmp_path: Path) -> None:
    path = tmp_path / "killed.rec"
    program = (
        "import sys\nfrom tests.pysim_vm.records import mixed\nvm = mixed(1 << 60)\nvm.record(sys.argv[1])\n"
        "vm.run(20_000)\nprint('running', flush=True)\nvm.run()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stdout.close()
    trace = Trace.open(path)
    assert len(trace) >= 20_000 // 12 * ROUND - FLUSH_ROWS
    assert trace.notes
    assert trace[len(trace) - 1].line()
    whole = recorded(len(trace) // ROUND + 1)
    assert trace.to_numpy()["value"].tolist() == whole[: len(trace)].to_numpy()["value"].tolist()


def test_a_limit_ends_the_recording_and_not_the_guest(tmp_path: Path) -> None:
    path = tmp_path / "small.rec"
    vm = mixed(5000)
    recorder = vm.record(path, limit=100_000)
    assert isinstance(vm.run(10_000_000), Halt)
    recorder.close()
    assert path.stat().st_size <= 100_000
    assert "its limit; a larger --record-limit" in recorder.stopped
    assert vm.exit_log is None
    assert 0 < len(Trace.open(path)) < 5000 * ROUND


def test_a_host_that_cannot_write_ends_the_recording_and_not_the_guest() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("/dev/full is Linux's")
    vm = mixed(50)
    with pytest.raises(RecordError, match="cannot be written"):
        vm.record("/no/such/folder/x.rec")
    assert isinstance(vm.run(1_000_000), Halt)


def test_a_write_that_fails_later_sets_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = mixed(5000)
    recorder = vm.record(tmp_path / "a.rec")

    def refuse(self: Recorder, at: int, *parts: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recorder, "_write", refuse)
    assert isinstance(vm.run(10_000_000), Halt)
    recorder.close()
    assert recorder.failed
    assert "cannot be written (No space left on device)" in recorder.stopped


def test_a_second_recording_ends_the_first(tmp_path: Path) -> None:
    vm = mixed(10)
    vm.record(tmp_path / "one.rec")
    vm.run(60)
    vm.record(tmp_path / "two.rec")
    vm.run(1_000_000)
    assert vm.recorder is not None
    vm.recorder.close()
    one, two = Trace.open(tmp_path / "one.rec"), Trace.open(tmp_path / "two.rec")
    assert one.notes == two.notes == []
    assert len(one) + len(two) == 10 * ROUND + 1
    assert two.header["start"]["retired"] == 60


def test_a_closed_recording_gives_the_cpu_back_as_it_was() -> None:
    vm = mixed(10)
    before, host_write = type(vm.vcpu(0).cpu), vm.memory.on_write
    recorder = vm.record(stores=True, instructions=True)
    assert type(vm.vcpu(0).cpu) is not before
    vm.run(50)
    recorder.close()
    recorder.close()
    assert type(vm.vcpu(0).cpu) is before
    assert vm.memory.on_write == host_write
    assert vm.exit_log is None and vm.exit_sink is None


def test_a_vm_without_a_recording_says_what_to_do() -> None:
    with pytest.raises(AxError, match="records nothing; call record"):
        _ = mixed().trace


def test_a_device_that_comes_later_has_its_name_in_the_record() -> None:
    vm = mixed(10)
    vm.record()
    vm.run(60)
    late = type(vm.get_devices().find_port_dev(0x300))()
    late.name = "latecomer"
    vm.get_devices().remove_dev(vm.get_devices().find_port_dev(0x300))
    vm.get_devices().add_port_dev(late, 0x300, 8)
    vm.get_devices().add_mmio_dev(late, 0x80_0000, 0x1000)
    vm.get_devices().add_sys_reg_dev(late, 0x1234, 1)
    vm.run(1_000_000)
    assert vm.recorder is not None
    vm.recorder.close()
    assert [row.device for row in vm.trace.where(reason="io_read")] == ["counter"] * 5 + ["latecomer"] * 5


def test_a_compressed_record_is_smaller_and_says_the_same(tmp_path: Path) -> None:
    plain = recorded(3000, tmp_path / "plain.rec")
    packed = recorded(3000, tmp_path / "packed.rec", compress=True)
    assert (tmp_path / "packed.rec").stat().st_size * 3 < (tmp_path / "plain.rec").stat().st_size
    assert packed.digest() == plain.digest()


def test_the_header_names_guest_and_machine_and_no_engine() -> None:
    header = recorded().header
    assert header["kinds"] == list(KINDS)
    assert header["devices"] == ["counter"]
    assert header["memory"] == [[0, 4 << 20]]
    assert header["guest"]["images"][0]["gpa"] >= 0
    assert "engine" not in str(header) and "exit_path" not in str(header)


def test_instructions_are_recorded_with_what_they_changed() -> None:
    trace = recorded(1, instructions=True)
    rows = list(trace.instructions)
    assert rows[0].text == "mov ebx, 0x800000"
    assert [str(change) for change in rows[0].changes] == ["RBX 0x0 -> 0x800000"]
    store = next(row for row in rows if any(each.by == "cpu" for each in row.stores))
    assert store.text == "mov [0x40000], rsi"
    assert store.words().endswith("store [0x40000] <- 0x0 (8 bytes)")
    assert len(rows) == trace.retired


def test_an_interrupt_is_recorded_in_place_of_an_instruction() -> None:
    vm = build_demo()
    with vm.record(instructions=True):
        vm.run(BUDGET)
    events = list(vm.trace.instructions.where(event="interrupt"))
    assert len(events) == 3
    assert all(row.raw == b"" and row.stores and "interrupt, vector" in row.words() for row in events)


def test_dma_and_the_host_are_recorded_as_such() -> None:
    vm = mixed()
    with vm.record(stores=True):
        vm.write_to_guest(0x5_0000, b"x" * 300)
        vm.run(50)
    dma = list(vm.trace.stores.where(by="dma"))
    assert [(row.address, row.size) for row in dma] == [(0x5_0000, 300)]
    assert vm.trace.who_wrote(0x5_0000 + 299) == dma


def test_wide_stores_are_recorded_eight_bytes_at_a_time() -> None:
    from pysim_vm import AxVM

    vm = AxVM.from_asm("movdqa [0x40000], xmm0\nhlt")
    vm.vcpu(0).regs["xmm0"] = 0x1111 << 64 | 0x2222
    with vm.record(stores=True):
        vm.run(10)
    stores = [(row.address, row.size, row.value) for row in vm.trace.stores.where(by="cpu")]
    assert stores == [(0x40000, 8, 0x2222), (0x40008, 8, 0x1111)]


def test_the_page_walks_own_writes_are_recorded_as_such() -> None:
    walks = list(recorded(1, stores=True).stores.where(by="walk"))
    assert walks and all(row.value & 0x20 for row in walks)


def test_nothing_is_noted_while_nothing_is_recorded() -> None:
    vm = mixed(5)
    vm.run(1_000_000)
    assert vm.exit_log is None and vm.recorder is None


def test_stores_to_some_ranges_are_those_among_all_stores() -> None:
    text = """
lp:     mov [0x40000], rcx
        mov [0x40008], ecx
        mov [0x41000], cl
        mov [0x3fffc], rcx
        inc ecx
        cmp ecx, 5
        jb lp
        hlt
"""
    wanted = [range(0x4_0000, 0x4_0008), range(0x4_1000, 0x4_1001)]
    for engine in ("step", "block"):
        traces = []
        for stores in (True, wanted):
            vm = AxVM.from_asm(text, memory="1M", engine=engine)
            with vm.record(stores=stores):
                vm.run(1_000)
            traces.append(vm.trace)
        whole, some = traces
        touched = (0x4_0000, 0x4_1000)  # the last store of a round is two, one on each page
        expected = [row for row in whole.stores if row.address in touched]
        assert [(row.retired, row.address, row.value) for row in some.stores] == [
            (row.retired, row.address, row.value) for row in expected
        ]
        assert len(expected) == 15
        assert [row.retired for row in some.who_wrote(0x4_0001)] == [
            row.retired for row in whole.who_wrote(0x4_0001)
        ]
        with pytest.raises(RecordError, match="holds the stores to other addresses"):
            some.who_wrote(0x4_0008)
        assert some.header["stores"] == [[0x4_0000, 0x4_0008], [0x4_1000, 0x4_1001]]


def test_short_and_full_way_and_both_engines_write_the_same_bytes(tmp_path: Path) -> None:
    files, counts = set(), set()
    for n, (exit_path, engine) in enumerate((("short", "step"), ("short", "block"), ("full", "step"))):
        vm = AxVM.from_asm(
            "mov dx, 0x300\nlp: out dx, al\n in al, dx\n jmp lp", exit_path=exit_path, engine=engine
        )
        device = Device()
        vm.get_devices().add_port_dev(device, 0x300, 8)
        path = tmp_path / f"{n}.rec"
        with vm.record(path):
            vm.run_vcpu(0, 40_000)
            vm.run_vcpu(0, 100)
            vm.run_vcpu(0, 1_000)
        counts.add(len(Trace.open(path)))
        files.add(path.read_bytes())
    assert len(files) == len(counts) == 1
    assert len(files.pop()) < counts.pop() * 8  # columns: a row would take 46 bytes
