"""One job of a sweep: a guest, a configuration and a seed, run to its end. It knows no pool and no file.

`run_job` is what an executor calls, in whatever process or thread: it takes a `Job`, which can be pickled,
and raises nothing. What a guest does depends on the job alone, so the result does as well; only a host that
is too slow, too small or in trouble gives a result that is not `final`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pysim_vm.cli.machine import EngineOptions, Machine, MachineOptions, build_machine, pysim_keywords
from pysim_vm.cli.run import Outcome, RunOptions, Session
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.errors import AxError
from pysim_vm.kvm.compare import memory_digest
from pysim_vm.report import plural

ASM_BITS: Final[Mapping[str, int]] = {"real": 16, "protected": 32, "long": 64}
ASM_ORIGIN: Final = 0x7C00  # where a raw image goes that says nothing else, as on the command line
SLICE: Final = 1_000_000  # instructions after which a job looks up even if nobody asked for attention
TAIL: Final = 240  # bytes of console output that a result repeats
SENTENCE: Final = 600  # characters of a sentence that a result keeps
READ_SIZE: Final = 1 << 20
NOT_FINAL: Final = ("wall-time", "memory", "file-changed", "worker-died", "internal")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use up: instructions, seconds of host time, bytes of host memory on top of what its
    process had before, bytes of console output, bytes of its record. None is without limit."""

    instructions: int
    seconds: float | None = None
    memory: int | None = None
    output: int | None = None
    record: int = 256 << 20


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file that a job reads: its name in messages, where it is, and the SHA-256 it had at the start."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker needs. `kind` is image, config, asm or demo; `path` is absolute; `folder` is
    where the jobs file is, and is left out of sentences. `attempt` changes nothing, but dask would answer the
    second time it is asked the same with what came of the first."""

    number: int
    guest: str
    configuration: str
    seed: int | None
    kind: str
    path: str
    machine: MachineOptions
    engine: EngineOptions
    script: RunOptions
    limits: Limits
    record: bool = False
    files: tuple[GuestFile, ...] = ()
    folder: str = ""
    attempt: int = 1

    @property
    def name(self) -> str:
        """`guest/configuration/seed`, or without the last part if the jobs file names no seeds."""
        return job_name(self.guest, self.configuration, self.seed)


def job_name(guest: str, configuration: str, seed: int | None) -> str:
    """The name of a job."""
    return f"{guest}/{configuration}" if seed is None else f"{guest}/{configuration}/{seed}"


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended: the same on every host, whatever ran it.

    `outcome` and `exit_status` are those of `pysim-vm run`, and besides "output" and "record" for a budget of
    that kind, and the words in NOT_FINAL, for which `final` is False: then the host ended the job, and the
    numbers are None. `exits` counts by reason; `virtual_ns` is guest time.
    """

    number: int
    job: str
    guest: str
    configuration: str
    seed: int | None
    outcome: str
    exit_status: int
    sentence: str
    final: bool
    instructions: int | None = None
    virtual_ns: int | None = None
    exits: Mapping[str, int] = field(default_factory=dict)
    console_bytes: int | None = None
    console_sha256: str | None = None
    console_tail: str | None = None
    memory_sha256: str | None = None
    record_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What comes back from a worker: the result, None if a signal ended the job, and the seconds it took."""

    result: JobResult | None
    seconds: float


class JobSession(Session):
    """A run without a terminal, which ends as well when its output or its time is used up."""

    def __init__(self, machine: Machine, options: RunOptions, limits: Limits) -> None:
        super().__init__(machine, options, io.BytesIO(), io.StringIO())
        self._output_limit = limits.output
        self._seconds = limits.seconds

    def time_is_up(self) -> None:
        """End the run at the next instruction; another thread calls this."""
        self._end(Outcome(ExitStatus.BUDGET, "", "wall-time"))

    def _slice(self, budget: int) -> Any:
        return super()._slice(min(budget, SLICE))

    def _printed(self, data: bytes) -> None:
        super()._printed(data)
        limit = self._output_limit
        if limit is not None and len(self.vm.console.data) > limit:
            sentence = (
                f"output budget of {plural(limit, 'byte')} used up after "
                f"{plural(self.cpu.retired, 'instruction')}; output in [budget] gives more"
            )
            self._end(Outcome(ExitStatus.BUDGET, sentence, "output"))


def run_job(job: Job) -> Done:
    """Run a job to its end. It raises nothing: whatever goes wrong is a result with a sentence."""
    begin = perf_counter()
    result: JobResult | None
    try:
        with (
            _Alarm(job.limits.seconds) as alarm,
            memory_limit(job.limits.memory),
            tempfile.TemporaryDirectory(prefix="pysim-vm-") as scratch,
        ):
            result = _run(job, Path(scratch), alarm)
    except MemoryError:
        result = failed(job, "memory", ExitStatus.BUDGET, _memory_words(job.limits.memory))
    except CommandError as error:
        if _is_about_memory(error):
            result = failed(job, "memory", ExitStatus.BUDGET, _memory_words(job.limits.memory))
        else:
            result = _ended(job, error.status.name.lower().replace("_", "-"), error.status, error.message)
    except OSError as error:
        words = f"the host failed ({error.strerror or error}); see that the worker can write its files"
        result = failed(job, "internal", ExitStatus.HOST_IO, words)
    except Exception as error:  # a bug of ours must not take the sweep with it
        words = f"internal error, {type(error).__name__}: {error}; please report it"
        result = failed(job, "internal", ExitStatus.INTERNAL, words)
    return Done(result, perf_counter() - begin)


def failed(job: Job, outcome: str, status: ExitStatus, sentence: str) -> JobResult:
    """A result that is not final: the host, and not the guest, ended the job."""
    return replace(_ended(job, outcome, status, sentence), final=False)


def _run(job: Job, scratch: Path, alarm: _Alarm) -> JobResult | None:
    for file in job.files:
        if file_digest(file.path) != file.sha256:
            words = f"{file.name} is not the file that the sweep began with; start the sweep again"
            return failed(job, "file-changed", ExitStatus.LOAD, words)
    try:
        machine = _machine(job, scratch)
    except CommandError as error:  # no result names a place that is another one in the next run
        raise CommandError(error.status, error.message.replace(f"{scratch}/", "")) from error
    options = job.script
    if job.record:
        options = replace(options, record=str(scratch / "job.rec"), record_limit=job.limits.record)
    session = JobSession(machine, options, job.limits)
    alarm.ends(session)
    outcome = session.run()
    if outcome.kind == "interrupted":
        return None
    if outcome.kind == "wall-time":
        words = f"wall time budget of {job.limits.seconds:g} s used up; seconds in [budget] gives more"
        return failed(job, "wall-time", ExitStatus.BUDGET, words)
    if outcome.kind == "host-io":
        return failed(job, "internal", ExitStatus.HOST_IO, outcome.sentence)
    return _result(job, machine, outcome)


def _machine(job: Job, scratch: Path) -> Machine:
    """The machine of a job, at its first instruction."""
    match job.kind:
        case "demo":
            from pysim_vm.demo import build_demo

            return Machine(build_demo(**pysim_keywords(job.machine, job.engine)), "demo")
        case "asm":
            image = scratch / f"{Path(job.path).stem}.bin"
            image.write_bytes(_assembled(job))
            return build_machine(str(image), replace(job.machine, protocol="flat"), job.engine)
        case _:
            return build_machine(job.path, job.machine, job.engine)


def _assembled(job: Job) -> bytes:
    from isa.assembler import AssemblerError, assemble
    from pysim_vm.loader import read_image

    origin = ASM_ORIGIN if job.machine.load_address is None else int(job.machine.load_address, 0)
    try:
        text = read_image(job.path, "assembly text").decode()
        return assemble(text, bits=ASM_BITS[job.machine.mode], origin=origin)
    except (AxError, AssemblerError, UnicodeDecodeError) as error:
        raise CommandError(ExitStatus.LOAD, f"{Path(job.path).name}: {error}") from None


def _result(job: Job, machine: Machine, outcome: Outcome) -> JobResult:
    vm = machine.vm
    limit = job.limits.output
    data = bytes(vm.console.data if limit is None else vm.console.data[:limit])
    recorder = vm.recorder
    record = None
    if recorder is not None:
        if recorder.stopped:
            words = f"record budget of {plural(job.limits.record, 'byte')} used up; {outcome.sentence}"
            outcome = Outcome(outcome.status, words, outcome.kind)
        else:
            with vm.trace as trace:
                record = trace.digest()
    return replace(
        _ended(job, outcome.kind, outcome.status, outcome.sentence),
        instructions=vm.vcpu(0).retired,
        virtual_ns=vm.now_ns(),
        exits=dict(sorted(vm.exit_counts.items())),
        console_bytes=len(data) + (0 if limit is not None else vm.console.dropped),
        console_sha256=hashlib.sha256(data).hexdigest(),
        console_tail=data[-TAIL:].decode("utf-8", "replace"),
        memory_sha256=memory_digest(vm),
        record_sha256=record,
    )


def _ended(job: Job, outcome: str, status: int, sentence: str) -> JobResult:
    """A result without numbers. Sentences are the same wherever the jobs file is."""
    if job.folder:
        sentence = sentence.replace(job.folder + "/", "")
    return JobResult(
        number=job.number, job=job.name, guest=job.guest, configuration=job.configuration, seed=job.seed,
        outcome=outcome, exit_status=int(status), sentence=sentence[:SENTENCE],
        final=outcome not in NOT_FINAL,
    )  # fmt: skip


def file_digest(path: str) -> str:
    """SHA-256 of a file, "" for one that cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while data := file.read(READ_SIZE):
                digest.update(data)
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()


# ---- host limits -------------------------------------------------------------------------------------------


class _Alarm:
    """A thread that ends a session when its time is up: between two instructions, however long the run was
    meant to go on, and in a worker's thread as well, where no signal can do it.

    It starts before memory is limited, as a thread needs a stack.
    """

    def __init__(self, seconds: float | None) -> None:
        self._session: JobSession | None = None
        self._rang = False
        self._timer = None if seconds is None else threading.Timer(seconds, self._ring)

    def ends(self, session: JobSession) -> None:
        """The session to end; at once if the time was up before it began."""
        self._session = session
        if self._rang:
            session.time_is_up()

    def _ring(self) -> None:
        self._rang = True
        if self._session is not None:
            self._session.time_is_up()

    def __enter__(self) -> _Alarm:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()


@contextlib.contextmanager
def memory_limit(size: int | None) -> Iterator[None]:
    """Let the process take at most `size` bytes more; beyond that Python raises MemoryError.

    The limit is one of the whole process, so it is set only where the process belongs to the job: in the main
    thread of a worker process, on a host that has setrlimit and /proc. Elsewhere nothing happens.
    """
    own = multiprocessing.parent_process() is not None
    own = own and threading.current_thread() is threading.main_thread()
    if size is None or not own:
        yield
        return
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        now = pages * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + size if hard == resource.RLIM_INFINITY else min(now + size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _is_about_memory(error: BaseException) -> bool:
    """Whether it began with a MemoryError, which a loader or the machine's memory has put into words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _memory_words(size: int | None) -> str:
    if size is None:
        return "the host has no memory left; give the guest less memory or run fewer jobs at once"
    return f"memory budget of {plural(size, 'byte')} used up; memory in [budget] gives more"
