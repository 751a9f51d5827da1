"""`python -m tests.oracles`: this CPU against the host's own, as many cases as asked. Linux on x86-64 only.

    python -m tests.oracles --cases 1_000_000 --seed 5 --family all --jobs 2
    python -m tests.oracles --cases 1_000_000 --update      and add to tests/vectors/coverage.json
    python -m tests.oracles --record                        write tests/vectors/*.jsonl.gz

The same seed and number give the same cases whatever the jobs. Every form gets the same share. A case that
differs is made as small as possible, written as a file of recorded cases and printed as a test to paste;
the exit code is then 1. Copy the file to tests/vectors/ and the test suite replays it.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from tests.oracles import coverage, recorded
from tests.oracles.families import FAMILIES, Family, Sample, describe, differences
from tests.oracles.forms import LOCK
from tests.oracles.native import SIGILL, available
from tests.oracles.native_x87 import vendor
from tests.oracles.recorded import Recorded
from tests.oracles.shrink import shrink

CHUNK = 2000  # cases between two reports of a worker
PATIENCE = 20.0  # seconds for one case and its shrinking: an instruction that never ends is a finding
DRAWS = 20  # attempts at a form whose first draw has no encoding
FINDINGS_PER_FORM = 1
MOST_FINDINGS = 40
RECORD_SEED = 1
RECORD_CASES = {"general": 4, "vector": 4, "avx": 4, "image": 3, "x87": 3}  # of every key
RECORD_SIGNALS = 1  # of them at most, if one was drawn


@dataclass(frozen=True, slots=True)
class Finding:
    """A case on which this CPU and the host differ, as small as it gets."""

    family: str
    case: Recorded
    text: str
    words: tuple[str, ...]
    found_by: str


@dataclass(slots=True)
class Report:
    """What became of some chunks."""

    cases: int = 0
    agreed: Counter[str] = field(default_factory=Counter)
    faulted: Counter[str] = field(default_factory=Counter)  # of those that agreed
    missing: Counter[str] = field(default_factory=Counter)  # the host does not have the instruction
    signals: int = 0
    differing: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    failure: str = ""

    def add(self, other: Report) -> None:
        """Take in another report."""
        self.cases += other.cases
        self.signals += other.signals
        self.agreed.update(other.agreed)
        self.faulted.update(other.faulted)
        self.missing.update(other.missing)
        self.differing.update(other.differing)
        self.findings += other.findings
        self.failure = self.failure or other.failure


def schedule(families: Sequence[str], cases: int) -> list[tuple[str, int, int]]:
    """(family, chunk number, cases in it), families mixed, each with its forms' share of `cases`."""
    sizes = {name: len(FAMILIES[name]().every_form()) for name in families}
    total = sum(sizes.values())
    chunks = []
    for name, size in sizes.items():
        share = -(-cases * size // total)
        numbers = range(-(-share // CHUNK))
        for n in numbers:
            position = (n + 0.5) / len(numbers)
            chunks.append((position, name, n, min(CHUNK, share - n * CHUNK)))
    return [(name, n, count) for _, name, n, count in sorted(chunks)]


def generated(family: Family, seed: int, chunk: int, count: int) -> Iterator[Sample]:
    """The cases of a chunk: the forms in turn, going on where the chunk before stopped."""
    keys = family.every_form()
    rng = random.Random(f"{seed} {family.name} {chunk}")
    for n in range(chunk * CHUNK, chunk * CHUNK + count):
        for _ in range(DRAWS):
            sample = family.make(rng, keys[n % len(keys)])
            if sample is not None:
                yield sample
                break


def compare(family: Family, samples: Sequence[Sample], undefined_too: bool, found_by: str) -> Report:
    """Run samples on both and shrink what differs."""
    report = Report(cases=len(samples))
    for sample, theirs in zip(samples, family.host(samples), strict=True):
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        words = differences(family, sample, theirs, 0)
        ignored = 0
        if words and not undefined_too:  # seldom: so only here the flags that may differ are looked up
            ignored = family.undefined(sample)
            words = differences(family, sample, theirs, ignored)
        if words and theirs.signal == SIGILL and LOCK not in sample.code[:-1]:
            report.missing[sample.form] += 1
            continue
        report.signals += theirs.signal != 0
        if not words:
            report.agreed[sample.form] += 1
            report.faulted[sample.form] += theirs.signal != 0
            continue
        report.differing[sample.form] += 1
        if report.differing[sample.form] > FINDINGS_PER_FORM:
            continue
        try:
            small, answer, left = shrink(family, sample, ignored)
        except ValueError:  # the host does not do it twice: something outside the case has a hand in it
            small, answer, left = sample, theirs, [f"{text} (not at a second run)" for text in words]
        case = Recorded(small, answer, ignored)
        report.findings.append(
            Finding(family.name, case, describe(family, small), tuple(left), found_by)
        )  # fmt: skip
    signal.setitimer(signal.ITIMER_REAL, 0)
    return report


def _out_of_patience(*_: object) -> None:
    raise TimeoutError(f"no end after {PATIENCE} s")


def work(chunks: Sequence[tuple[str, int, int]], seed: int, undefined_too: bool, answers: Any) -> None:
    """A worker process: do some chunks, put a Report of each into the queue `answers`."""
    families: dict[str, Family] = {}
    signal.signal(signal.SIGALRM, _out_of_patience)
    try:
        for name, number, count in chunks:
            if name not in families:
                families[name] = FAMILIES[name]()
            family = families[name]
            samples = list(generated(family, seed, number, count))
            answers.put(compare(family, samples, undefined_too, f"seed {seed}, {name} chunk {number}"))
    except Exception as error:
        answers.put(Report(failure=f"{name} chunk {number} of seed {seed}: {type(error).__name__}: {error}"))
    finally:
        for family in families.values():
            family.close()


def long_run(families: Sequence[str], cases: int, seed: int, jobs: int, undefined_too: bool) -> Report:
    """Compare `cases` generated cases in `jobs` processes, with a line of progress on stderr."""
    chunks = schedule(families, cases)
    wanted = sum(count for _, _, count in chunks)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [
        context.Process(target=work, args=(chunks[n::jobs], seed, undefined_too, answers))
        for n in range(jobs)
    ]
    for worker in workers:
        worker.start()
    total, done, start = Report(), 0, time.monotonic()
    while done < len(chunks) and not total.failure and len(total.findings) < MOST_FINDINGS:
        try:
            total.add(answers.get(timeout=5))
        except Empty:
            if not any(worker.is_alive() for worker in workers) and answers.empty():
                total.failure = total.failure or "a worker process ended early"
            continue
        done += 1
        rate = total.cases / max(time.monotonic() - start, 0.001)
        line = f"{total.cases:,} of {wanted:,} cases, {rate:,.0f}/s, {sum(total.differing.values())} differ"
        end = "\n" if done == len(chunks) or (not sys.stderr.isatty() and done % 100 == 0) else "\r"
        if end == "\n" or sys.stderr.isatty():
            print(line, end=end, file=sys.stderr, flush=True)
    for worker in workers:
        if done < len(chunks):
            worker.terminate()
        worker.join()
    return total


def distinct(findings: Sequence[Finding]) -> list[Finding]:
    """The shortest finding of each form."""
    best: dict[tuple[str, int], Finding] = {}
    for finding in findings:
        key = (finding.case.sample.form, finding.case.sample.bits)
        size = len(recorded.to_line(finding.family, finding.case))
        if key not in best or size < len(recorded.to_line(best[key].family, best[key].case)):
            best[key] = finding
    return list(best.values())


def as_test(finding: Finding) -> str:
    """A test to paste into the family's test file."""
    sample = finding.case.sample
    line = recorded.to_line(finding.family, finding.case)
    topic = re.sub(r"[^a-z0-9]+", "_", finding.words[0].split()[0].lower()).strip("_")
    name = f"test_{sample.form.lower()}_in_{sample.bits}_bit_code_gives_the_{topic}_of_the_host"
    pieces = "".join(f"\n        {line[at : at + 90]!r}" for at in range(0, len(line), 90))
    return (
        f"def {name}() -> None:\n"
        f'    """{finding.text}"""\n'
        f"    case = ({pieces}\n    )\n"
        f'    assert replay_line("{finding.family}", case) == []\n'
    )


def show(finding: Finding, folder: Path, cpu: str) -> None:
    """Print a finding and write its file."""
    line = recorded.to_line(finding.family, finding.case)
    digest = hashlib.sha256(line.encode()).hexdigest()[:8]
    path = folder / f"{finding.family}-{finding.case.sample.form.lower()}-{digest}.jsonl.gz"
    recorded.write(path, finding.family, cpu, [finding.case])
    print(f"\n{finding.text} ({finding.found_by})")
    for words in finding.words:
        print(f"    {words}")
    print(f"    written to {path}; the test, with `from tests.oracles.recorded import replay_line`:\n")
    print(as_test(finding))


def table(total: Report, families: Sequence[str]) -> str:
    """The summary, a row a family."""
    rows = ["", f"{'family':10}{'forms':>7}{'cases':>12}{'least/form':>12}{'differ':>8}{'not on host':>13}"]
    for name in families:
        known = {form for form, _, _ in FAMILIES[name]().every_form()}
        counts = [total.agreed[form] for form in known if total.agreed[form]]
        absent = len(known & total.missing.keys() - total.agreed.keys())
        differ = sum(total.differing[form] for form in known)
        rows.append(
            f"{name:10}{len(known):>7}{sum(counts):>12,}{min(counts, default=0):>12,}{differ:>8}{absent:>13}"
        )
    rows.append(f"{total.cases:,} cases, {total.signals:,} of them faults")
    return "\n".join(rows)


def record(names: Sequence[str], folder: Path, cpu: str) -> None:
    """Write the recorded cases of the families: a few of each form, most of them without a fault."""
    for name in names:
        family: Family = FAMILIES[name]()
        rng = random.Random(f"{RECORD_SEED} {name}")
        cases: list[Recorded] = []
        for key in family.every_form():
            drawn = [family.make(rng, key) for _ in range(4 * RECORD_CASES[name])]
            samples = [recorded.tidied(family, sample) for sample in drawn if sample is not None]
            alike: dict[bytes, Recorded] = {}
            for sample, result in zip(samples, family.host(samples), strict=True):
                case = Recorded(sample, result, family.undefined(sample))
                if not recorded.replay(family, case):
                    alike.setdefault(sample.code + repr(sample.state).encode(), case)
            faults = [case for case in alike.values() if case.result.signal][:RECORD_SIGNALS]
            others = [case for case in alike.values() if not case.result.signal]
            cases += others[: RECORD_CASES[name] - len(faults)] + faults
        size = recorded.write(folder / f"{name}.jsonl.gz", name, cpu, cases)
        print(f"{folder / name}.jsonl.gz: {len(cases)} cases, {size:,} bytes")
        family.close()


def cpu_name() -> str:
    """Vendor, family and model of the host CPU as Linux tells them."""
    fields = dict.fromkeys(("cpu family", "model"), "?")
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() in fields:
                fields[key.strip()] = value.strip()
    return f"{vendor()} family {fields['cpu family']} model {fields['model']}"


def main(arguments: Sequence[str]) -> int:
    """0 if all cases agree, 1 if some differ or a worker died, 2 where this cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.oracles", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--cases", type=int, default=100_000, help="number of cases, as 10_000_000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--undefined", action="store_true", help="compare flags the manual leaves undefined")
    parser.add_argument("--found", type=Path, default=Path("mismatches"), help="folder for cases that differ")
    parser.add_argument("--update", action="store_true", help="add to tests/vectors/coverage.json")
    parser.add_argument("--record", action="store_true", help="write tests/vectors/*.jsonl.gz and stop")
    options = parser.parse_args(arguments)
    if not available():
        print("python -m tests.oracles: needs Linux on an x86-64 CPU", file=sys.stderr)
        return 2
    names = list(FAMILIES) if options.family == "all" else [options.family]
    if options.record:
        record(names, coverage.VECTORS, cpu_name())
        return 0
    total = long_run(names, options.cases, options.seed, max(options.jobs, 1), options.undefined)
    for finding in distinct(total.findings):
        show(finding, options.found, cpu_name())
    print(table(total, names))
    if total.failure:
        print(f"stopped: {total.failure}", file=sys.stderr)
    if total.failure or total.differing:
        return 1
    if options.update:
        command = f"--cases {options.cases:_} --seed {options.seed} --family {options.family}"
        before = coverage.read() if coverage.COVERAGE.exists() else {}
        content = coverage.summary(cpu_name(), command, total, before)
        coverage.write(coverage.COVERAGE, content)
        print(f"written: {coverage.COVERAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
