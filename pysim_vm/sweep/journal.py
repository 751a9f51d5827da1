"""The files of a sweep, line by line: sealed JSON, and the journal that survives a kill. It runs nothing.

A sealed line is a JSON object whose last key, `crc32`, is the CRC-32 of the object without it. The journal
is a head, which names the sweep, and a sealed line for every job that ended, in the order in which they
ended. A line is written at once and whole or, if the process is killed in the middle, torn: such a line does
not count, and its job is run again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Final

from pysim_vm.errors import AxErrorKind
from pysim_vm.sweep.file import SweepError, SweepPlan
from pysim_vm.sweep.job import JobResult, job_name

LINE_LIMIT: Final = 64 << 10  # bytes of a line; a result takes a twentieth of it
LINES_PER_JOB: Final = 64  # a job that is not final leaves a line in every run
JOURNAL: Final = "pysim-vm sweep journal"
VERSION: Final = 1
_SEAL: Final = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\Z')
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "number": (int,), "job": (str,), "guest": (str,), "configuration": (str,), "seed": (int, type(None)),
    "outcome": (str,), "exit_status": (int,), "sentence": (str,), "final": (bool,),
    "instructions": (int, type(None)), "virtual_ns": (int, type(None)), "exits": (dict,),
    "console_bytes": (int, type(None)), "console_sha256": (str, type(None)),
    "console_tail": (str, type(None)), "memory_sha256": (str, type(None)),
    "record_sha256": (str, type(None)),
}  # fmt: skip


# ---- lines -------------------------------------------------------------------------------------------------


def sealed(values: Mapping[str, Any]) -> bytes:
    """The object as one line with its checksum. The order of the keys is kept; the text is ASCII."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    return text[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(text)


def unsealed(line: bytes) -> dict[str, Any] | None:
    """The object of a sealed line, without its checksum; None for anything else."""
    line = line.rstrip(b"\r\n")
    found = _SEAL.search(line[-32:])
    if found is None or len(line) > LINE_LIMIT:
        return None
    text = line[: -len(found[0])] + b"}"
    if zlib.crc32(text) != int(found[1], 16):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def lines_of(file: BinaryIO) -> Iterator[tuple[bytes, int, bool]]:
    """Each line with the offset behind it and whether it is whole; b"" for one that is too long."""
    at = 0
    while line := file.readline(LINE_LIMIT + 1):
        at += len(line)
        rest = line
        while len(rest) > LINE_LIMIT and not rest.endswith(b"\n"):
            rest = file.readline(LINE_LIMIT + 1)
            at += len(rest)
        yield (line if rest is line else b""), at, rest.endswith(b"\n")


# ---- results as objects ------------------------------------------------------------------------------------


def row_of(result: JobResult) -> dict[str, Any]:
    """A result as JSON keeps it."""
    return asdict(result)


def result_of(row: object) -> JobResult | None:
    """The result that a row stands for; None if it is none."""
    if not isinstance(row, dict) or list(row) != [each.name for each in fields(JobResult)]:
        return None
    for name, kinds in _TYPES.items():
        value = row[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return None
    counts = row["exits"].values()
    if any(not isinstance(count, int) or isinstance(count, bool) for count in counts):
        return None
    result = JobResult(**row)
    named = job_name(result.guest, result.configuration, result.seed)
    return result if result.number >= 0 and result.job == named else None


# ---- the journal -------------------------------------------------------------------------------------------


class Journal:
    """An open journal: `results` and `seconds` by job number are what it held, `note` says what was dropped.

    SweepError if the file belongs to another sweep, is none, or another process writes to it. Use it in a
    `with` statement.
    """

    def __init__(self, path: str | os.PathLike[str], plan: SweepPlan) -> None:
        self.path = Path(path)
        self.results: dict[int, JobResult] = {}
        self.seconds: dict[int, float] = {}
        self.note = ""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except (OSError, ValueError) as error:
            raise self._host_error("opened", error) from None
        self._file = io.FileIO(descriptor, "r+")
        try:
            self._lock()
            self._read(plan)
        except BaseException:
            self._file.close()
            raise

    def append(self, result: JobResult, seconds: float) -> None:
        """Add a line; SweepError if the host cannot write it."""
        self._write(sealed({"result": row_of(result), "seconds": round(seconds, 6)}))
        self.results[result.number] = result
        self.seconds[result.number] = seconds

    def close(self) -> None:
        """Bring everything to the disk and let the file go."""
        if not self._file.closed:
            with contextlib.suppress(OSError):  # a pipe or a file system that has no disk
                os.fsync(self._file.fileno())
            self._file.close()

    def remove(self) -> None:
        """Close it and delete the file: every job has its result elsewhere."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _lock(self) -> None:
        """One writer at a time; where the host has no such locks, the user sees to it."""
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SweepError(
                f"another sweep writes to {self.path}; wait for it or name another journal",
                AxErrorKind.ResourceBusy,
            ) from None

    def _read(self, plan: SweepPlan) -> None:
        """What the file holds. A torn last line is cut off; other lines that are none are passed over."""
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SweepError(f"{self.path} is no regular file; name another journal")
        size = status.st_size
        head = {"journal": JOURNAL, "version": VERSION, "sweep": plan.digest, "jobs": len(plan)}
        if size > (len(plan) * LINES_PER_JOB + 16) * LINE_LIMIT:
            raise SweepError(f"{self.path} has {size:,} bytes, too many for this sweep; name another journal")
        good = dropped = 0
        # No second descriptor: closing one gives back the locks that this process has on the file.
        reader = io.BufferedReader(self._file)
        for number, (line, end, whole) in enumerate(lines_of(reader)):
            if number == 0:
                if not whole and line and sealed(head).startswith(line):
                    break  # killed before the first line was whole
                self._check_head(unsealed(line), plan)
            good = end if whole else good
            if number and not (whole and self._take(line, plan)):
                dropped += 1
        reader.detach()
        try:
            self._file.truncate(good)
            self._file.seek(good)
        except OSError as error:
            raise self._host_error("written", error) from None
        if good == 0:
            self._write(sealed(head))
        if dropped:
            lines = "1 line" if dropped == 1 else f"{dropped:,} lines"
            self.note = f"{self.path}: {lines} torn or damaged, as after a kill; those jobs are run again"

    def _check_head(self, head: dict[str, Any] | None, plan: SweepPlan) -> None:
        if head is None or head.get("journal") != JOURNAL:
            raise SweepError(f"{self.path} is no journal of a sweep; name another file, or remove it")
        if head.get("version") != VERSION:
            raise SweepError(
                f"{self.path} is a journal of another version of pysim-vm; finish it there or remove it"
            )
        if head.get("sweep") != plan.digest:
            raise SweepError(
                f"{self.path} is the journal of another sweep: {plan.source} or a guest has changed since; "
                "put back what was changed, or remove the journal to start anew"
            )

    def _take(self, line: bytes, plan: SweepPlan) -> bool:
        """Note the result in a line; False if there is none in it."""
        values = unsealed(line)
        if values is None or list(values) != ["result", "seconds"]:
            return False
        result, seconds = result_of(values["result"]), values["seconds"]
        if result is None or result.number >= len(plan) or result.job != plan.name_of(result.number):
            return False
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            return False
        self.results[result.number] = result
        self.seconds[result.number] = float(seconds)
        return True

    def _write(self, line: bytes) -> None:
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            raise self._host_error("written", error) from None

    def _host_error(self, what: str, error: Exception) -> SweepError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return SweepError(
            f"journal {self.path} cannot be {what} ({reason}); check the path and the disk", AxErrorKind.Io
        )
