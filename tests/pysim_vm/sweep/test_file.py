"""Jobs files: what they may say, and that every mistake is one sentence with its line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pysim_vm.errors import ConfigError
from pysim_vm.sweep import Sweep
from pysim_vm.sweep.job import run_job
from tests.pysim_vm.sweeps import sweep_of

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
GUEST = '[guests.a]\nasm = "die.asm"\n'
BUDGET = "[budget]\ninstructions = 1000\n"


def problems(folder: Path, text: str) -> list[str]:
    """What is wrong with a jobs file, without its path."""
    with pytest.raises(ConfigError) as caught:
        sweep_of(folder, text)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "jobs.toml: budget: missing; add a table [budget]"),
        (GUEST, "jobs.toml: budget: missing; add a table [budget]"),
        (BUDGET, "jobs.toml: guests: missing; add a table [guests]"),
        (BUDGET + "[guests]", "jobs.toml:3: guests: no guests, so no jobs; add a table [guests.NAME]"),
        ("[budget]\n" + GUEST, "jobs.toml:1: budget.instructions: missing; add instructions = 20_000_000"),
        ("budget = 5\n" + GUEST, "jobs.toml:1: budget: 5 is an integer; write a table [budget]"),
        ("seeds = \n", "jobs.toml:1: no TOML: Invalid value at column 9; correct the line"),
        ("seeds = []\n" + BUDGET + GUEST,
         "jobs.toml:1: seeds: no seeds, so no jobs; give one or leave the key out"),
        ("seeds = [1, 1]\n" + BUDGET + GUEST, "jobs.toml:1: seeds: a seed is there twice; give each once"),
        ("seeds = [-1]\n" + BUDGET + GUEST,
         "jobs.toml:1: seeds[0]: -1 is out of range; write 0 to 0xffffffffffffffff"),
        ("seeds = [true]\n" + BUDGET + GUEST, "jobs.toml:1: seeds[0]: true is a boolean; write an integer"),
        ("seeds = 7\n" + BUDGET + GUEST, "jobs.toml:1: seeds: 7 is an integer; write an array"),
        ('seeds = "one"\n' + BUDGET + GUEST,
         'jobs.toml:1: seeds: "one" is no range; write "FIRST-LAST", such as "1-50"'),
        ('seeds = "9-1"\n' + BUDGET + GUEST,
         'jobs.toml:1: seeds: "9-1" ends before it begins or after 2^64; write it the other way'),
        ('seeds = "1-99999999999"\n' + BUDGET + GUEST,
         "jobs.toml:1: seeds: 99,999,999,999 seeds are too many; stay below 1,000,000"),
        ('seeds = "1-1000000"\n' + BUDGET + GUEST + '[guests.b]\nasm = "die.asm"\n',
         "jobs.toml:4: guests: 2,000,000 jobs are too many for one sweep; stay below 1,000,000"),
        ('sheds = "1-2"\n' + BUDGET + GUEST,
         'jobs.toml:1: sheds: no such key here; correct or remove it; did you mean "seeds"?'),
        ("record = 1\n" + BUDGET + GUEST, "jobs.toml:1: record: 1 is an integer; write true or false"),
        ("[budget]\ninstructions = 0\n" + GUEST,
         "jobs.toml:2: budget.instructions: 0 is out of range; write 1 to 0x3fffffffffffffff"),
        (BUDGET + 'seconds = "10"\n' + GUEST,
         'jobs.toml:3: budget.seconds: "10" is a string; write a number of seconds'),
        (BUDGET + "seconds = nan\n" + GUEST,
         "jobs.toml:3: budget.seconds: nan is out of range; write a number above 0 up to 1e+06"),
        (BUDGET + 'memory = "lots"\n' + GUEST,
         'jobs.toml:3: budget.memory: "lots" is no size; write a number with K, M or G, such as "128M"'),
        (BUDGET + "output = -1\n" + GUEST,
         "jobs.toml:3: budget.output: -1 bytes are out of range; give 0 to 0x1000000000"),
        (BUDGET + 'memory = "64M"\n' + GUEST,
         "jobs.toml:4: guests.a: with configuration default its RAM of 0x8000000 bytes is more than the "
         "memory budget of 0x4000000; give less memory or a larger budget"),
        (BUDGET + "time = 5\n" + GUEST, "jobs.toml:3: budget.time: no such key here; correct or remove it"),
        (BUDGET + "[guests.a]\n",
         "jobs.toml:3: guests.a: no guest; write one of image = FILE, config = FILE, asm = FILE, demo = "),
        (BUDGET + '[guests.a]\nasm = "die.asm"\ndemo = true\n',
         "jobs.toml:3: guests.a: both asm and demo; write one of image = FILE, config = FILE, asm = FILE, "
         "demo = true"),
        (BUDGET + "[guests.a]\ndemo = false\n",
         "jobs.toml:4: guests.a.demo: false is no guest; write demo = true or name a file"),
        (BUDGET + "[guests.a]\nasm = 3\n", "jobs.toml:4: guests.a.asm: 3 is an integer; write a string"),
        (BUDGET + '[guests.a]\nasm = "no.asm"\n',
         'jobs.toml:4: guests.a.asm: "no.asm" cannot be read; check the path, which starts at the jobs file'),
        (BUDGET + '[guests.a]\nasm = "."\n',
         'jobs.toml:4: guests.a.asm: "." cannot be read; check the path, which starts at the jobs file'),
        (BUDGET + '[guests."a b"]\nasm = "die.asm"\n',
         'jobs.toml:3: guests."a b": is no name for a job; use up to 64 letters, digits and _ . + -'),
        (BUDGET + '[guests]\na = "die.asm"\n',
         'jobs.toml:4: guests.a: "die.asm" is a string; write a table [guests.a]'),
        (BUDGET + GUEST + 'mode = "virtual"\n',
         'jobs.toml:5: guests.a.mode: "virtual" is none of real, protected, long; use one'),
        (BUDGET + GUEST + "disks = []\n",
         "jobs.toml:5: guests.a.disks: no such key here; correct or remove it"),
        (BUDGET + GUEST + 'keys = "usb"\n',
         'jobs.toml:5: guests.a.keys: "usb" is none of serial, ps2; use one'),
        (BUDGET + GUEST + 'input = "no.txt"\n',
         'jobs.toml:5: guests.a.input: "no.txt" cannot be read; check the path, which starts at the jobs '),
        (BUDGET + '[guests.a]\nimage = "die.asm"\ndisks = ["die.asm,write"]\n',
         'jobs.toml:5: guests.a.disks: "die.asm,write": jobs run side by side; leave out ",write"'),
        (BUDGET + '[guests.a]\nimage = "die.asm"\ndisks = "die.asm"\n',
         'jobs.toml:5: guests.a.disks: "die.asm" is no list of strings; write a list of strings'),
        (BUDGET + '[guests.a]\nimage = "die.asm"\nroms = ["die.asm"]\n',
         'jobs.toml:5: guests.a.roms: "die.asm" is not NAME=FILE; write "vgaroms/vgabios.bin=FILE"'),
        (BUDGET + '[guests.a]\nconfig = "die.asm"\n', "no TOML"),
        (BUDGET + GUEST + '[configurations.x]\nengine = "fast"\n',
         'jobs.toml:6: configurations.x.engine: "fast" is none of step, block, auto; use one'),
        (BUDGET + GUEST + "[configurations.x]\nns_per_instruction = 0\n",
         "jobs.toml:6: configurations.x.ns_per_instruction: 0 is out of range; write 1 to 0xf4240"),
        (BUDGET + GUEST + '[configurations.x]\ncpu_features = ["+warp"]\n',
         'jobs.toml:6: configurations.x.cpu_features: unknown CPU feature \'+warp\''),
        (BUDGET + GUEST + '[configurations.x]\nappend = "quiet"\n',
         "jobs.toml:6: configurations.x.append: guest a takes no append; leave it out or sweep apart"),
        (BUDGET + GUEST + "[configurations.x]\nseed = 5\n",
         "jobs.toml:6: configurations.x.seed: no such key here; correct or remove it"),
        (BUDGET + GUEST + "[configurations.x]\nnanoseconds = 5\n",
         "jobs.toml:6: configurations.x.nanoseconds: no such key here; correct or remove it"),
        (BUDGET + GUEST + "[configurations]\nx = 1\n",
         "jobs.toml:6: configurations.x: 1 is an integer; write a table [configurations.x]"),
        (BUDGET + GUEST + "[guests.a.budget]\nhours = 1\n",
         "jobs.toml:6: guests.a.budget.hours: no such key here; correct or remove it"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(tmp_path, text)), problems(tmp_path, text)


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    text = 'seeds = "x"\n[budget]\nseconds = 0\n[guests.a]\n[configurations.b]\nmemory = 5\n'
    assert [problem.partition(" ")[0] for problem in problems(tmp_path, text)] == [
        "jobs.toml:1:", "jobs.toml:2:", "jobs.toml:3:", "jobs.toml:4:", "jobs.toml:6:",
    ]  # fmt: skip


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: cannot be read: No such file or directory; check the"):
        Sweep.load(tmp_path / "no.toml")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a=" + b"[" * 5000, b"x" * (1 << 20) + b"y", b"[guests\0.a]"])
def test_hostile_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "jobs.toml").write_bytes(data)
    with pytest.raises(ConfigError):
        Sweep.load(tmp_path / "jobs.toml")


def test_jobs_are_numbered_guest_by_guest_and_named_for_people(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        'seeds = "0x10-0x11"\n' + BUDGET + GUEST + '[guests.b]\nasm = "longer.asm"\n'
        "[configurations.x]\n[configurations.y]\n",
    )
    assert [job.name for job in sweep] == [
        "a/x/16", "a/x/17", "a/y/16", "a/y/17", "b/x/16", "b/x/17", "b/y/16", "b/y/17",
    ]  # fmt: skip
    assert [job.number for job in sweep] == list(range(8))


def test_without_seeds_and_configurations_there_is_one_job_for_each_guest(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BUDGET + GUEST)
    assert [(job.name, job.seed, job.machine.seed) for job in sweep] == [("a/default", None, None)]


def test_a_configuration_overrules_a_guest_and_a_guests_budget_the_common_one(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        '[budget]\ninstructions = 1000\noutput = "1K"\n' + GUEST + 'memory = "1M"\nengine = "step"\n'
        "[guests.a.budget]\ninstructions = 5\n"
        '[configurations.own]\n[configurations.large]\nmemory = "2M"\nengine = "block"\n'
        'cpu_features = ["-rdrand"]\n',
    )
    own, large = sweep
    assert (own.machine.memory, own.engine.engine, own.machine.cpu) == ("1048576", "step", ())
    assert (large.machine.memory, large.engine.engine, large.machine.cpu) == (
        "2097152",
        "block",
        ("-rdrand",),
    )
    assert (own.limits.instructions, own.limits.output, own.script.budget) == (5, 1024, 5)


def test_the_seed_can_be_written_into_command_line_and_input(tmp_path: Path) -> None:
    text = (
        "seeds = [7]\n"
        + BUDGET
        + '[guests.a]\nimage = "die.asm"\nappend = "run={seed}"\ntype = "{seed}\\r"\n'
    )
    job = next(iter(sweep_of(tmp_path, text)))
    assert (job.machine.append, job.script.type_text, job.machine.seed) == ("run=7", "7\r", "7")


def test_paths_start_at_the_jobs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir("/")
    text = (
        BUDGET + '[guests.a]\nimage = "die.asm"\ninitrd = "longer.asm"\ndisks = ["chatty.asm"]\n'
        'roms = ["genroms/x=die.asm"]\nmodules = ["endless.asm -v"]\n'
    )
    job = next(iter(sweep_of(tmp_path / "deep", text)))
    folder = str(tmp_path / "deep")
    assert job.path == f"{folder}/die.asm"
    assert job.machine.initrd == f"{folder}/longer.asm"
    assert job.machine.disks == (f"{folder}/chatty.asm",)
    assert job.machine.roms == (f"genroms/x={folder}/die.asm",)
    assert job.machine.modules == (f"{folder}/endless.asm -v",)
    assert {file.name for file in job.files} == {"die.asm", "longer.asm", "chatty.asm", "endless.asm"}


@pytest.mark.parametrize(
    "change",
    [
        ("instructions = 1000", "instructions = 1001"),
        ("[1, 2]", "[1, 3]"),
        ("[guests.a]", "[guests.b]"),
        ('"1M"', '"2M"'),
        ("record = false", "record = true"),
        ("ns_per_instruction = 5", "ns_per_instruction = 6"),
        ("[configurations.c]", "[configurations.d]"),
    ],
)
def test_the_digest_follows_everything_that_a_result_depends_on(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    text = (
        "seeds = [1, 2]\nrecord = false\n[budget]\ninstructions = 1000\n" + GUEST + 'memory = "1M"\n'
        "[configurations.c]\nns_per_instruction = 5\n"
    )
    assert text.count(change[0]) == 1
    assert sweep_of(tmp_path, text).digest != sweep_of(tmp_path, text.replace(*change)).digest


def test_the_digest_follows_the_guests_files_and_not_remarks_or_wall_time(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BUDGET + GUEST)
    assert sweep_of(tmp_path, "# remark\n" + BUDGET + "seconds = 5\n" + GUEST).digest == sweep.digest
    (tmp_path / "die.asm").write_text("hlt\n", encoding="utf-8")
    assert Sweep.load(tmp_path / "jobs.toml").digest != sweep.digest


def test_a_configuration_file_brings_its_images_into_the_digest(tmp_path: Path) -> None:
    for name in ("flat.toml", "hello.bin"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    text = BUDGET + '[guests.a]\nconfig = "flat.toml"\n'
    sweep = sweep_of(tmp_path, text)
    job = next(iter(sweep))
    assert [file.name for file in job.files] == ["flat.toml", "flat.toml: hello.bin"]
    result = run_job(job).result
    assert result is not None
    assert (result.outcome, result.exit_status) == ("guest-exit", 33)
    (tmp_path / "hello.bin").write_bytes(b"\xf4")
    assert Sweep.load(tmp_path / "jobs.toml").digest != sweep.digest
    changed = run_job(job).result
    assert changed is not None
    assert (changed.outcome, changed.final) == ("file-changed", False)


def test_the_example_is_a_sweep_of_24_jobs() -> None:
    assert len(Sweep.load(EXAMPLES / "sweep.toml")) == 24
