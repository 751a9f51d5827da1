"""One job: each budget ends a guest that would not end, and what goes wrong is a result with a sentence."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pysim_vm.sweep import JobResult, Sweep
from pysim_vm.sweep.job import Job, memory_limit, run_job
from tests.pysim_vm.sweeps import SIX, one, sweep_of

FOR_EVER = 1 << 60  # instructions


def result_of(sweep: Sweep, number: int = 0) -> JobResult:
    """What a job comes to in this process."""
    result = run_job(sweep.plan[number]).result
    assert result is not None
    return result


# ---- what a result says ------------------------------------------------------------------------------------


def test_a_result_has_the_end_the_counts_and_the_digests(tmp_path: Path) -> None:
    result = result_of(sweep_of(tmp_path, SIX))
    assert (result.job, result.guest, result.configuration, result.seed) == (
        "die/default/1",
        "die",
        "default",
        1,
    )
    assert (result.outcome, result.exit_status, result.final) == ("power-off", 0, True)
    assert result.sentence == "the guest switched the machine off after 8 instructions"
    assert (result.instructions, result.virtual_ns) == (8, 8 * 64)
    assert result.exits == {"IoWrite": 2}
    assert result.console_tail is not None
    assert (result.console_bytes, len(result.console_tail)) == (1, 1)
    assert result.console_sha256 == hashlib.sha256(result.console_tail.encode()).hexdigest()
    assert result.memory_sha256 is not None
    assert result.record_sha256 is None


def test_a_record_of_every_job_comes_to_a_digest(tmp_path: Path) -> None:
    first, second = (result_of(sweep_of(tmp_path, "record = true\n" + SIX), number) for number in (0, 1))
    again = result_of(sweep_of(tmp_path, "record = true\n" + SIX))
    assert first.record_sha256 == again.record_sha256 != second.record_sha256
    assert first == replace(result_of(sweep_of(tmp_path, SIX)), record_sha256=first.record_sha256)


def test_engine_and_exit_path_change_nothing_but_the_name(tmp_path: Path) -> None:
    text = SIX.replace("[1, 2, 3]", "[5]") + (
        '[configurations.a]\nengine = "step"\n[configurations.b]\nengine = "block"\nexit_path = "full"\n'
    )
    sweep = sweep_of(tmp_path, text)
    for guest in (0, 1):
        step, block = result_of(sweep, 2 * guest), result_of(sweep, 2 * guest + 1)
        assert replace(block, number=step.number, job=step.job, configuration="a") == step


def test_text_can_be_typed_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "echo.asm").write_text(
        "mov dx, 0x3fd\nwait: in al, dx\ntest al, 1\njz wait\nmov dx, 0x3f8\nin al, dx\nout dx, al\n"
        "mov dx, 0x3fd\njmp wait\n", encoding="utf-8",
    )  # fmt: skip
    text = (
        'seeds = [42]\n[budget]\ninstructions = 100_000\n[guests.echo]\nasm = "echo.asm"\nmemory = "1M"\n'
        'type = "seed {seed}!"\nstop_on = "!"\n'
    )
    result = result_of(sweep_of(tmp_path, text))
    assert (result.outcome, result.exit_status, result.console_tail) == ("stop-on", 0, "seed 42!")


# ---- budgets -----------------------------------------------------------------------------------------------


def test_the_instruction_budget_ends_a_guest_at_the_instruction(tmp_path: Path) -> None:
    result = result_of(one(tmp_path, "endless", "instructions = 12_345"))
    assert (result.outcome, result.exit_status, result.final) == ("budget", 82, True)
    assert result.instructions == 12_345


def test_the_wall_time_budget_ends_a_guest_and_the_result_is_not_final(tmp_path: Path) -> None:
    result = result_of(one(tmp_path, "endless", f"instructions = {FOR_EVER}\nseconds = 0.2"))
    assert (result.outcome, result.exit_status, result.final) == ("wall-time", 82, False)
    assert result.sentence == "wall time budget of 0.2 s used up; seconds in [budget] gives more"
    assert (result.instructions, result.virtual_ns, result.exits, result.memory_sha256) == (
        None,
        None,
        {},
        None,
    )


def test_a_time_that_is_up_before_the_guest_runs_ends_it_too(tmp_path: Path) -> None:
    result = result_of(one(tmp_path, "endless", f"instructions = {FOR_EVER}\nseconds = 1e-9"))
    assert result.outcome == "wall-time"


def test_the_wall_time_budget_works_in_threads(tmp_path: Path) -> None:
    sweep = one(tmp_path, "endless", f"instructions = {FOR_EVER}\nseconds = 0.2")
    with ThreadPoolExecutor(2) as threads:
        assert sweep.run(threads).outcomes() == {"wall-time": 1}


@pytest.mark.parametrize("engine", ["step", "block"])
@pytest.mark.parametrize("path", ["short", "full"])
def test_the_output_budget_ends_a_guest_at_the_same_byte_on_every_engine(
    tmp_path: Path, engine: str, path: str
) -> None:
    rest = f'engine = "{engine}"\nexit_path = "{path}"\n'
    result = result_of(one(tmp_path, "chatty", f"instructions = {FOR_EVER}\noutput = 100", rest))
    assert (result.outcome, result.exit_status, result.final) == ("output", 82, True)
    assert (result.console_bytes, result.console_tail) == (100, "x" * 100)
    assert result.sentence.startswith("output budget of 100 bytes used up after ")
    assert result.instructions == 2 + 2 * 100 + 1  # the 101st OUT is one too many


def test_as_much_output_as_the_budget_is_fine(tmp_path: Path) -> None:
    assert result_of(one(tmp_path, "die", "instructions = 100\noutput = 1")).outcome == "power-off"
    assert result_of(one(tmp_path, "die", "instructions = 100\noutput = 0")).outcome == "output"


def test_the_record_budget_leaves_the_digest_out_and_says_so(tmp_path: Path) -> None:
    sweep = one(tmp_path, "chatty", "instructions = 80_000\nrecord = 65_536")
    result = result_of(sweep)
    assert result.outcome == "budget"
    recorded = replace(sweep.plan[0], record=True)
    done = run_job(recorded).result
    assert done is not None
    assert done.record_sha256 is None
    assert done.sentence == f"record budget of 65,536 bytes used up; {result.sentence}"
    assert replace(done, sentence=result.sentence) == result


def in_worker(job: Job) -> JobResult | None:
    """A job in the main thread of a worker process, where memory can be limited."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(run_job, job).result().result


def test_the_memory_budget_ends_a_job_and_not_its_worker(tmp_path: Path) -> None:
    # RAM takes the whole budget, so there is nothing left for the rest of the machine
    sweep = sweep_of(
        tmp_path,
        f"[budget]\ninstructions = {FOR_EVER}\n"
        '[guests.greedy]\nasm = "endless.asm"\nmemory = "64M"\nbudget = {memory = "64M"}\n'
        '[guests.die]\nasm = "die.asm"\nmemory = "1M"\n',
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        results = sweep.run(processes)
    greedy = results["greedy/default"]
    assert (greedy.outcome, greedy.exit_status, greedy.final) == ("memory", 82, False)
    assert greedy.sentence == "memory budget of 67,108,864 bytes used up; memory in [budget] gives more"
    assert results["die/default"].outcome == "power-off"


def test_enough_memory_changes_nothing(tmp_path: Path) -> None:
    sweep = one(tmp_path, "die", 'instructions = 1000\nmemory = "512M"')
    assert in_worker(sweep.plan[0]) == result_of(sweep)


def limits_inside_and_after() -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """RLIMIT_AS before, within and behind a limit."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(MemoryError), memory_limit(64 << 20):
        inside = resource.getrlimit(resource.RLIMIT_AS)
        bytearray(128 << 20)
        raise AssertionError("128 MiB fitted into 64")
    return before, inside, resource.getrlimit(resource.RLIMIT_AS)


def test_the_limit_of_a_worker_is_lifted_behind_the_job() -> None:
    pytest.importorskip("resource")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        before, inside, after = processes.submit(limits_inside_and_after).result()
    assert before == after
    assert inside[0] != before[0]


def test_the_process_of_the_caller_is_never_limited() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with memory_limit(1 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS) == before


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_a_guest_that_cannot_be_booted_is_a_final_result(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\x01" * 100)
    sweep = sweep_of(tmp_path, '[budget]\ninstructions = 5\n[guests.a]\nimage = "noise"\n')
    result = result_of(sweep)
    assert (result.outcome, result.exit_status, result.final) == ("load", 66, True)
    assert str(tmp_path) not in result.sentence


def test_assembly_with_a_mistake_is_a_final_result_that_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.asm").write_text("nop\nmov eax, [\n", encoding="utf-8")
    result = result_of(sweep_of(tmp_path, '[budget]\ninstructions = 5\n[guests.a]\nasm = "bad.asm"\n'))
    assert (result.outcome, result.exit_status, result.final) == ("load", 66, True)
    assert result.sentence.startswith("bad.asm: ")
    assert "2" in result.sentence


def test_a_guest_that_changed_since_the_start_is_not_run(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SIX)
    (tmp_path / "die.asm").write_text("hlt\n", encoding="utf-8")
    result = result_of(sweep)
    assert (result.outcome, result.exit_status, result.final) == ("file-changed", 66, False)
    assert result.sentence == "die.asm is not the file that the sweep began with; start the sweep again"


def test_a_bug_of_ours_is_a_result_that_is_not_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("what now")

    monkeypatch.setattr("pysim_vm.sweep.job.build_machine", broken)
    result = result_of(sweep_of(tmp_path, SIX))
    assert (result.outcome, result.exit_status, result.final) == ("internal", 70, False)
    assert result.sentence == "internal error, RuntimeError: what now; please report it"


def test_a_job_leaves_no_thread_and_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = threading.active_count()
    result_of(sweep_of(tmp_path, "record = true\n" + SIX))
    assert threading.active_count() == before
    assert list(scratch.iterdir()) == []
