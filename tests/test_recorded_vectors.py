"""What a real CPU answered, replayed: needs neither that CPU nor an x86 at all. The format and its guards."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from iced_x86 import Decoder, OpCodeOperandKind, Register

from isa.decode import code_names, opcode_info
from tests.isa.forms import implemented_forms
from tests.oracles import coverage
from tests.oracles.__main__ import Finding, as_test, generated, schedule
from tests.oracles.families import FAMILIES, Family, Sample, describe
from tests.oracles.mutants import MUTANTS, ROOT, mutated
from tests.oracles.reasons import only_fault, reason
from tests.oracles.recorded import (
    LARGEST_FILE,
    Recorded,
    from_line,
    read,
    replay,
    replay_line,
    tidied,
    to_line,
    write,
)
from tests.oracles.shrink import minimize

FILES = sorted(coverage.VECTORS.glob("*.jsonl.gz"))
MOST_BYTES = 1_000_000  # all files together
OPERAND_KINDS = {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_every_recorded_case_comes_out_as_on_the_real_cpu(path: Path) -> None:
    name, cases = read(path)
    family: Family = FAMILIES[name]()
    wrong = []
    for case in cases:
        words = replay(family, case)
        if words:
            wrong.append(f"{describe(family, case.sample)}: {'; '.join(words)}\n    {to_line(name, case)}")
    assert not wrong, f"{len(wrong)} of {len(cases)} cases differ, among them:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recorded_cases_have_every_form_that_the_real_cpu_was_asked(name: str) -> None:
    checked = coverage.read()["checked"]
    _, cases = read(coverage.VECTORS / f"{name}.jsonl.gz")
    recorded = {case.sample.form for case in cases}
    assert {form for form, _, _ in FAMILIES[name]().every_form() if form in checked} <= recorded


def test_the_recorded_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < MOST_BYTES


# ---- coverage.json -----------------------------------------------------------------------------------------


def test_coverage_names_every_implemented_form_or_why_it_is_not_checked() -> None:
    content = coverage.read()
    known = {*content["checked"], *(name for names in content["unchecked"].values() for name in names)}
    implemented = {code_names()[code] for code in implemented_forms()}
    assert implemented == known, "run: python -m tests.oracles --cases 500_000 --update"


def test_every_implemented_form_is_generated_or_has_a_reason() -> None:
    generated_names = {form for name in FAMILIES for form, _, _ in FAMILIES[name]().every_form()}
    for code in implemented_forms():
        name = code_names()[code]
        assert (name in generated_names) != bool(reason(code)), name


def test_a_form_that_is_not_checked_has_the_reason_of_the_table_or_is_not_on_the_recording_host() -> None:
    content = coverage.read()
    codes = {name: code for code, name in code_names().items()}
    for why, names in content["unchecked"].items():
        for name in names:
            assert why == (reason(codes[name]) or f"the recording host ({content['cpu']}) lacks it"), name


def test_every_checked_form_has_enough_cases_that_end_without_a_fault() -> None:
    content = coverage.read()
    codes = {name: code for code, name in code_names().items()}
    for name, cases in content["checked"].items():
        completed = cases - content["faults"].get(name, 0)
        assert cases >= coverage.ENOUGH, name
        assert completed == 0 if only_fault(codes[name]) else completed >= coverage.ENOUGH, name


def test_coverage_names_no_form_twice_and_none_that_is_unknown() -> None:
    content = coverage.read()
    names = [*content["checked"], *(name for names in content["unchecked"].values() for name in names)]
    assert len(names) == len(set(names))
    assert set(names) <= set(code_names().values())
    assert sum(content["checked"].values()) == content["cases"]


def test_each_deliberate_break_still_finds_its_line() -> None:
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text()
        assert mutated(source, mutant) != source
        assert all((ROOT / file).exists() for file in mutant.caught_by)


# ---- the format --------------------------------------------------------------------------------------------

ADD = (
    '{"bits":64,"code":"4801c8","form":"ADD_RM64_R64",'
    '"in":{"flags":"247","rax":"ffffffffffffffff","rcx":"1"},"out":{"flags":"257","rax":"0"}}'
)


def test_add_rax_rcx_carries_out_of_the_top_as_recorded() -> None:
    assert replay_line("general", ADD) == []


def test_a_wrong_result_is_named_with_both_values() -> None:
    wrong = ADD.replace('"rax":"0"', '"rax":"5"')
    assert replay_line("general", wrong) == ["rax 0x5, ours 0x0"]


def test_undefined_flags_are_not_compared() -> None:
    wrong = ADD.replace('"257"', '"256"')  # CF
    assert replay_line("general", wrong) == ["flags 0x256, ours 0x257, differ in 0x1"]
    assert replay_line("general", wrong[:-1] + ',"undefined":"1"}') == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_case_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    family: Family = FAMILIES[name]()
    samples = list(generated(family, 3, 0, 100))
    cases = [Recorded(sample, family.run(sample), 0x10) for sample in samples]
    path = tmp_path / "cases.jsonl.gz"
    size = write(path, name, "a CPU", cases)
    assert read(path) == (name, cases)
    assert size == path.stat().st_size
    before = path.read_bytes()
    write(path, name, "a CPU", cases)
    assert path.read_bytes() == before


def one_case(tmp_path: Path) -> Path:
    path = tmp_path / "one.jsonl.gz"
    write(path, "general", "a CPU", [from_line("general", ADD)])
    return path


def test_a_changed_case_does_not_fit_the_checksum(tmp_path: Path) -> None:
    path = one_case(tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"rcx":"1"', b'"rcx":"2"')))
    with pytest.raises(ValueError, match="the checksum does not fit"):
        read(path)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = one_case(tmp_path)
    head, _, body = gzip.decompress(path.read_bytes()).partition(b"\n")
    head = json.dumps(json.loads(head) | {"version": 2}).encode()
    path.write_bytes(gzip.compress(head + b"\n" + body, mtime=0))
    with pytest.raises(ValueError, match="version 2, this reads 1"):
        read(path)


@pytest.mark.parametrize(
    "damage", [b"", b"not gzip", gzip.compress(b"[]\n", mtime=0), gzip.compress(b"\xff", mtime=0)]
)
def test_a_file_that_is_something_else_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.jsonl.gz"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match="not a file of recorded cases"):
        read(path)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = one_case(tmp_path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"checksum|not a file of recorded cases"):
        read(path)


def test_a_file_too_large_to_be_ours_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl.gz"
    path.write_bytes(bytes(LARGEST_FILE + 1))
    with pytest.raises(ValueError, match="record fewer cases"):
        read(path)


def test_memory_outside_the_window_is_refused() -> None:
    line = ADD.replace('"rcx":"1"', '"memory":[[511,"0000"]]')
    with pytest.raises(ValueError, match="outside the window"):
        from_line("general", line)


# ---- cases and shrinking -----------------------------------------------------------------------------------


def test_the_schedule_gives_every_form_the_same_share() -> None:
    chunks = schedule(tuple(FAMILIES), 1_000_000)
    keys = {name: len(FAMILIES[name]().every_form()) for name in FAMILIES}
    shares = {name: sum(count for n, _, count in chunks if n == name) / keys[name] for name in keys}
    assert max(shares.values()) - min(shares.values()) < 0.1
    assert 0 <= sum(count for _, _, count in chunks) - 1_000_000 < len(FAMILIES)


def test_a_chunk_of_cases_depends_on_its_seed_and_number_only() -> None:
    family = FAMILIES["general"]()
    first = list(generated(family, 7, 2, 40))
    assert first == list(generated(FAMILIES["general"](), 7, 2, 40))
    assert first != list(generated(family, 8, 2, 40))
    assert first != list(generated(family, 7, 3, 40))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_form_can_be_generated(name: str) -> None:
    family: Family = FAMILIES[name]()
    rng = random.Random(5)
    assert [key for key in family.every_form() if not any(family.make(rng, key) for _ in range(60))] == []


def variants(code: bytes, bits: int) -> set[str]:
    """What is special about an instruction: its prefixes, and an address size that is not the mode's."""
    instruction = Decoder(bits, code).decode()
    found = {
        "lock": instruction.has_lock_prefix, "rep": instruction.has_rep_prefix,
        "repne": instruction.has_repne_prefix, "fs": instruction.segment_prefix == Register.FS,
        "gs": instruction.segment_prefix == Register.GS, "address size": 0x67 in code[:4],
        "rip": instruction.is_ip_rel_memory_operand,
    }  # fmt: skip
    return {name for name, is_there in found.items() if is_there}


def possible_variants(code: int, bits: int) -> set[str]:
    """What `variants` may find for a form."""
    info = opcode_info(code)
    kinds = {OPERAND_KINDS[info.op_kind(n)] for n in range(info.op_count)}
    if kinds & {"SEG_RSI", "ES_RDI"}:
        return {"rep", "repne", "address size"} | ({"fs", "gs"} if "SEG_RSI" in kinds else set())
    if not any(kind.startswith("MEM") or "OR_MEM" in kind for kind in kinds) or any(
        "VSIB" in k for k in kinds
    ):
        return set()
    found = {"fs", "gs", "address size"}
    if bits == 64 and "MEM_OFFS" not in kinds:
        found.add("rip")
    return found | ({"lock"} if info.can_use_lock_prefix else set())


@pytest.mark.parametrize("name", ["general", "vector", "avx", "image"])
def test_every_variant_of_a_form_is_drawn(name: str) -> None:
    family: Family = FAMILIES[name]()
    rng = random.Random(9)
    for key in family.every_form()[::17]:
        form, bits, code = key
        missing = possible_variants(code, bits)
        for _ in range(1000):
            if not missing:
                break
            sample = family.make(rng, key)
            missing -= variants(sample.code, bits) if sample is not None else set()
        assert not missing, f"{form} in {bits}-bit code is never drawn with {missing}"


@pytest.mark.parametrize("name", FAMILIES)
def test_tidying_a_case_changes_nothing_that_its_instruction_computes(name: str) -> None:
    """What a tidied case writes is what the case wrote; x87 registers may lie elsewhere, with other tags."""
    family: Family = FAMILIES[name]()
    for sample in generated(family, 11, 0, 300):
        small = tidied(family, sample)
        long, short = family.run(sample), family.run(small)
        assert (long.signal, long.taken) == (short.signal, short.taken), describe(family, sample)
        for register, value in long.state.registers.items():
            if value != sample.state.registers[register] and not register.startswith(("st", "tags")):
                assert short.state.registers[register] == value, (register, describe(family, sample))


def test_shrinking_keeps_what_matters_and_nothing_else() -> None:
    """A bug that shows where RAX is odd with bit 4 clear leaves a case with nothing but such a RAX."""
    family = FAMILIES["general"]()
    line = '{"bits":64,"code":"4801c8","form":"ADD_RM64_R64","in":%s,"out":{}}'
    noise: dict[str, object] = {f"r{n}": f"{0x1234567 * n:x}" for n in range(8, 16)}
    noise |= {"flags": "a57", "rax": "123456789", "rcx": "7"}
    start = from_line("general", line % json.dumps(noise | {"memory": [[0, "aa" * 500]]})).sample

    def holds(sample: Sample) -> bool:
        rax = sample.state.registers["rax"]
        return bool(rax & 1 and rax >> 4 & 1 == 0)

    small = minimize(family, start, holds)
    left = json.loads(to_line("general", Recorded(small, family.run(small), 0)))["in"]
    assert left == {"rax": "1"}


def test_a_finding_reads_as_a_test_that_runs() -> None:
    case = from_line("general", ADD.replace('"rax":"0"', '"rax":"5"'))
    text = as_test(Finding("general", case, "add rax, rcx", ("rax 0x5, ours 0x0",), "seed 1"))
    room: dict[str, object] = {"replay_line": replay_line}
    exec(text, room)
    (test,) = (value for name, value in room.items() if name.startswith("test_"))
    assert test.__name__ == "test_add_rm64_r64_in_64_bit_code_gives_the_rax_of_the_host"  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        test()  # type: ignore[operator]
    right = Finding("general", from_line("general", ADD), "add rax, rcx", ("rax",), "seed 1")
    exec(as_test(right), room)
    assert replace(right.case, undefined=1) != right.case
