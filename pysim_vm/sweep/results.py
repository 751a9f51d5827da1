"""The results of a sweep: rows sorted by job, as a file, as columns, and put together from shards.

The file has a sealed line of JSON for every job and nothing that depends on the host, so two runs of one
sweep give the same bytes, whatever executor, order, shards or interruptions they had.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from pysim_vm.errors import AxErrorKind
from pysim_vm.sweep.file import JOBS_MAX, SweepError
from pysim_vm.sweep.job import JobResult
from pysim_vm.sweep.journal import lines_of, result_of, row_of, sealed, unsealed

DIGEST_SHOWN: Final = 16  # hexadecimal digits of the sweep's digest in every row


@dataclass(frozen=True, slots=True)
class Results:
    """Results of one sweep, sorted by job: all of them, or those of a shard.

    `sweep` is the beginning of the plan's digest, `jobs` how many the whole sweep has, `seconds` what each
    job took on this host, by job number, where that is known: it is no part of the file.
    """

    sweep: str
    jobs: int
    results: tuple[JobResult, ...]
    seconds: Mapping[int, float]

    @classmethod
    def of(
        cls, digest: str, jobs: int, results: Iterable[JobResult], seconds: Mapping[int, float]
    ) -> Results:
        """Results in any order, made one."""
        ordered = tuple(sorted(results, key=lambda result: result.number))
        return cls(digest[:DIGEST_SHOWN], jobs, ordered, seconds)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Results:
        """Read a file of results. SweepError, one sentence, if it is none or damaged."""
        return _read(Path(path))

    @classmethod
    def merge(cls, paths: Iterable[str | os.PathLike[str]]) -> Results:
        """The results of shards as those of the whole sweep.

        SweepError if they are of different sweeps, a job is in none of them, or two files disagree on one.
        """
        return _merged([(Path(path), _read(Path(path))) for path in paths])

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[JobResult]:
        return iter(self.results)

    def __getitem__(self, name: str) -> JobResult:
        """The result of a job by its name; KeyError if there is none."""
        for result in self.results:
            if result.job == name:
                return result
        raise KeyError(name)

    @property
    def complete(self) -> bool:
        """Whether every job of the sweep is here with a final result."""
        return len(self.results) == self.jobs and all(result.final for result in self.results)

    def outcomes(self) -> Counter[str]:
        """How many jobs had which outcome."""
        return Counter(result.outcome for result in self.results)

    def to_bytes(self) -> bytes:
        """The file: one sealed line a job."""
        head = {"sweep": self.sweep, "jobs": self.jobs}
        return b"".join(sealed({**head, **row_of(result)}) for result in self.results)

    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all. SweepError if the host cannot."""
        write_whole(Path(path), self.to_bytes())

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each job."""
        return [asdict(result) for result in self.results]

    def columns(self) -> dict[str, list[Any]]:
        """A list for each field of JobResult; exits are columns of their own, such as `exits.IoWrite`."""
        plain = [each.name for each in fields(JobResult) if each.name != "exits"]
        table = {name: [getattr(result, name) for result in self.results] for name in plain}
        for kind in sorted({kind for result in self.results for kind in result.exits}):
            table[f"exits.{kind}"] = [
                result.exits.get(kind, 0) if result.final else None for result in self.results
            ]
        return table

    def to_pandas(self) -> Any:
        """A pandas DataFrame of `columns`; SweepError with the line to type if pandas is not there."""
        return _library("pandas", "to_pandas").DataFrame(self.columns())

    def to_polars(self) -> Any:
        """A polars DataFrame of `columns`; SweepError with the line to type if polars is not there."""
        return _library("polars", "to_polars").DataFrame(self.columns())


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place when it is complete. SweepError if the host cannot."""
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:  # fmt: skip
            scratch = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o666 & ~umask)
        scratch.replace(path)
    except (OSError, ValueError) as error:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SweepError(f"{path} cannot be written ({reason}); check the path", AxErrorKind.Io) from None


def _read(path: Path) -> Results:
    found: dict[int, JobResult] = {}
    sweep: object = None
    jobs: object = None
    try:
        with path.open("rb") as file:
            for number, (line, _, _) in enumerate(lines_of(file), 1):
                values = unsealed(line)
                result = None
                if values is not None and number == 1:
                    sweep, jobs = values.get("sweep"), values.get("jobs")
                if values is not None and (values.pop("sweep", 0), values.pop("jobs", 0)) == (sweep, jobs):
                    result = result_of(values)
                if result is None or not _fits(result, jobs, found):
                    raise SweepError(f"{path}:{number}: no result of a sweep, or damaged; make it again")
                found[result.number] = result
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SweepError(f"{path} cannot be read ({reason}); check the path", AxErrorKind.Io) from None
    if not isinstance(sweep, str) or not isinstance(jobs, int):
        raise SweepError(f"{path} holds no results; `pysim-vm sweep` makes such a file")
    return Results.of(sweep, jobs, found.values(), {})


def _fits(result: JobResult, jobs: object, found: Mapping[int, JobResult]) -> bool:
    if not isinstance(jobs, int) or isinstance(jobs, bool) or not 0 < jobs <= JOBS_MAX:
        return False
    return result.number < jobs and result.number not in found


def _merged(parts: list[tuple[Path, Results]]) -> Results:
    if not parts:
        raise SweepError("nothing to merge; name the results of the shards", AxErrorKind.InvalidInput)
    first_path, first = parts[0]
    found: dict[int, tuple[Path, JobResult]] = {}
    for path, part in parts:
        if (part.sweep, part.jobs) != (first.sweep, first.jobs):
            raise SweepError(
                f"{path} and {first_path} are results of different sweeps; merge those of one jobs file"
            )
        for result in part:
            other_path, other = found.get(result.number, (path, result))
            if other.final and result.final and other != result:
                raise SweepError(f"{path} and {other_path} disagree on {result.job}; run both shards again")
            found[result.number] = (path, result) if result.final else (other_path, other)
    if len(found) < first.jobs:
        missing = next(number for number in range(first.jobs) if number not in found)
        raise SweepError(
            f"{first.jobs - len(found):,} of {first.jobs:,} jobs are in none of the files, such as number "
            f"{missing}; name the results of every shard"
        )
    return Results.of(first.sweep, first.jobs, (result for _, result in found.values()), {})


def _library(name: str, who: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SweepError(
            f"{who}: {name} is not installed; pip install {name}", AxErrorKind.Unsupported
        ) from None
