"""`pysim-vm cache`: what the translation cache holds, and how to be rid of it. It changes no translation."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TextIO

from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.table import table_text
from pysim_vm.translation_cache import (
    ENVIRONMENT,
    LOCK_NAME,
    NEW,
    CacheRefused,
    cache_directory,
    open_directory,
    open_file,
    our_files,
    program_digest,
)
from pysim_vm.translation_file import read_contents

OFF: Final = f"the translation cache is off; {ENVIRONMENT} or --translation-cache names a directory\n"
UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of the cache. `state` is "current" (this program uses it), "other version", "foreign" or
    "unfinished"; `lost` are bytes at its end that count as not there."""

    name: str
    size: int
    entries: int
    batches: int
    lost: int
    state: str
    made_for: str


def size_words(size: int) -> str:
    """`1.8 MiB`, `512 bytes`."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def rows_of(path: Path, directory: int) -> list[FileRow]:
    """The cache's files, described."""
    try:
        current: bytes | None = program_digest()
    except CacheRefused:
        current = None
    rows = []
    for name, status in our_files(directory):
        if name.endswith(NEW):
            rows.append(FileRow(name, status.st_size, 0, 0, status.st_size, "unfinished", ""))
            continue
        fd = open_file(path / name, directory)
        try:
            contents = read_contents(fd)
        finally:
            os.close(fd)
        if contents is None:
            rows.append(FileRow(name, status.st_size, 0, 0, status.st_size, "foreign", ""))
            continue
        state = "current" if contents.header.program == current else "other version"
        rows.append(
            FileRow(
                name, contents.size, len(contents.entries), contents.batches, contents.size - contents.end,
                state, contents.header.text.strip(),
            )
        )  # fmt: skip
    return rows


def show_cache(setting: str, stdout: TextIO, *, as_json: bool = False, color: bool = False) -> int:
    """The table of `cache info`; the exit code. CommandError for a directory that is not the user's alone."""
    path, directory = _opened(setting)
    rows = []
    if path is not None and directory is not None:
        try:
            rows = rows_of(path, directory)
        except CacheRefused as refusal:
            raise CommandError(ExitStatus.HOST_IO, str(refusal)) from None
        finally:
            os.close(directory)
    total = sum(row.size for row in rows)
    if as_json:
        files = [asdict(row) for row in rows]
        where = path and str(path)
        document = {"exit_status": 0, "directory": where, "bytes": total, "files": files}
        stdout.write(json.dumps(document, indent=2) + "\n")
        return ExitStatus.OK
    if path is None or not rows:
        stdout.write(OFF if path is None else f"{path}: empty\n")
        return ExitStatus.OK
    stdout.write(f"{path}: {size_words(total)}\n\n")
    cells = []
    for row in rows:
        state = f"{row.state}, {size_words(row.lost)} damaged" if row.lost and row.entries else row.state
        cells.append((row.name, state, size_words(row.size), f"{row.entries:,}"))
    stdout.write(table_text(("file", "state", "size", "translations"), cells, "llrr", color=color))
    return ExitStatus.OK


def clear_cache(setting: str, stdout: TextIO, *, as_json: bool = False) -> int:
    """Remove the cache's files; the exit code. CommandError as `show_cache`, or if one cannot be removed."""
    path, directory = _opened(setting)
    removed, total = 0, 0
    if directory is not None:
        try:
            for name, status in our_files(directory):
                os.unlink(name, dir_fd=directory)
                removed += 1
                total += status.st_size
            if LOCK_NAME in os.listdir(directory):
                os.unlink(LOCK_NAME, dir_fd=directory)
        except OSError as error:
            raise CommandError(
                ExitStatus.HOST_IO,
                f"{path}: {error.filename} cannot be removed ({error.strerror}); check its permissions",
            ) from None
        finally:
            os.close(directory)
    if as_json:
        document = {"exit_status": 0, "directory": path and str(path), "removed": removed, "bytes": total}
        stdout.write(json.dumps(document, indent=2) + "\n")
    elif path is None:
        stdout.write(OFF)
    else:
        files = "1 file" if removed == 1 else f"{removed} files"
        stdout.write(f"{path}: {files} removed, {size_words(total)}\n" if removed else f"{path}: empty\n")
    return ExitStatus.OK


def _opened(setting: str) -> tuple[Path | None, int | None]:
    """The directory that a setting means, None if that is none; and a descriptor of it if it is there."""
    if setting not in ("on", "off") and "/" not in setting:
        raise CommandError(
            ExitStatus.USAGE,
            f'--translation-cache: "{setting}" is neither on nor off nor a path with a "/"; write one',
        )
    try:
        path = cache_directory(setting)
        if path is None:
            return None, None
        try:
            return path, open_directory(path)
        except FileNotFoundError:
            return path, None
    except CacheRefused as refusal:
        raise CommandError(ExitStatus.HOST_IO, str(refusal)) from None
