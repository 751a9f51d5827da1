"""Translations of earlier runs, kept on disk: the `Drafts` of the block engine. It translates nothing.

A file serves one program (version, sources of `isa`, Python, iced-x86) and one CPU (its features): its name
and its header carry their digests, so that a translation made by anything else is never looked at. The block
engine compares the guest's machine code byte by byte before it uses one. A run is the same with and without;
only its seconds differ.

A directory or file that somebody else could write is refused, since what is in it gets executed. No trouble
with the host (no space, no permission, damaged files) stops a run: it goes on without, and `notes` says why.
"""

from __future__ import annotations

import os
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Final, NamedTuple

import isa
from isa.translate import Draft
from pysim_vm import __version__
from pysim_vm.config.model import DEFAULT_CACHE_LIMIT
from pysim_vm.translation_file import (
    MAGIC,
    Entry,
    Header,
    Numbers,
    Packed,
    batch_of,
    pack,
    read_contents,
    read_payload,
    unpack,
    variant_of,
    write_at,
)

ENVIRONMENT: Final = "PYSIM_VM_CACHE"
PREFIX: Final = "translations-"
SUFFIX: Final = ".bin"
NEW: Final = ".new"  # behind the name of a file that is being written anew
LOCK_NAME: Final = "translations.lock"
DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

VARIANTS_MAX: Final = 8  # translations of the same heads: code that is patched or shares its address
SUPERSETS_TRIED: Final = 4  # larger regions looked at where none of exactly these heads is known
WRITE_FROM: Final = 256  # new translations that are worth a write between two runs of the guest
WAITING_MAX: Final = 8192  # new translations held in memory; more are not kept
BATCH: Final = 1024  # entries of a batch when a file is written anew
LOCK_TRIES: Final = 20  # with LOCK_PAUSE between them: another process that writes needs about a second
LOCK_PAUSE: Final = 0.1  # seconds

_LOADED_NS: Final = time.time_ns()  # the modules of `isa` were read at about this time


class CacheRefused(Exception):
    """The cache cannot be used; the sentence says why and what to do."""


def cache_directory(setting: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """Where a setting ("on", "off" or a path) puts the cache; None if it is off.

    "on" is the directory named by PYSIM_VM_CACHE ("off" there turns every "on" off), else pysim_vm below
    $XDG_CACHE_HOME or ~/.cache. CacheRefused if there is no home directory.
    """
    variables = os.environ if environment is None else environment
    if setting == "on":
        setting = variables.get(ENVIRONMENT) or "on"
    if setting == "off":
        return None
    try:
        if setting != "on":
            return Path(setting).expanduser().absolute()
        base = Path(variables.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "pysim_vm"
    except RuntimeError:
        raise CacheRefused(
            f"the translation cache has no place: no home directory is known; name one in {ENVIRONMENT}"
        ) from None


# ---- what a translation depends on -------------------------------------------------------------------------


@cache
def program_digest() -> bytes:
    """The digest of everything in this process that decides what a translation looks like.

    CacheRefused if the sources cannot be read, or were changed after they were loaded.
    """
    digest = blake2b(digest_size=32)
    for part in (MAGIC.decode(), __version__, sys.implementation.name, sys.version, _iced_version()):
        digest.update(f"{part}\n".encode())
    digest.update(MAGIC_NUMBER)
    root = Path(str(isa.__file__)).parent
    sources = sorted(root.rglob("*.py"))
    try:
        for path in sources:
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode())
            digest.update(data)
            if path.stat().st_mtime_ns > _LOADED_NS:
                raise CacheRefused(
                    f"the translation cache is off: {path} was changed after it was loaded; start again"
                )
    except OSError as error:
        raise CacheRefused(
            f"the translation cache is off: {error.filename} cannot be read ({error.strerror}); install "
            "pysim_vm with its sources"
        ) from None
    if not sources:
        raise CacheRefused(
            f"the translation cache is off: {root} has no sources; install pysim_vm with its sources"
        )
    return digest.digest()


def _iced_version() -> str:
    try:
        return version("iced-x86")
    except PackageNotFoundError:
        return "unknown"


def header_for(features: Iterable[str]) -> Header:
    """The header of this program's file for a CPU with `features`. CacheRefused as `program_digest`."""
    names = sorted(features)
    python = f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"
    text = f"pysim_vm {__version__}, {python}, CPU features: {' '.join(names)}\n"
    return Header(program_digest(), blake2b(" ".join(names).encode(), digest_size=32).digest(), text)


def file_name(header: Header) -> str:
    """The name of the file for a header."""
    digest = blake2b(header.program + header.machine, digest_size=12).hexdigest()
    return f"{PREFIX}{digest}{SUFFIX}"


# ---- files that belong to the user alone -------------------------------------------------------------------


def _refuse_if_shared(path: Path, status: os.stat_result) -> None:
    if not hasattr(os, "geteuid"):
        raise CacheRefused(f"the translation cache is off: this host cannot say who may write {path}")
    if status.st_uid != os.geteuid():
        raise CacheRefused(
            f"the translation cache is off: {path} belongs to another user; name a directory of your own in "
            f"{ENVIRONMENT}"
        )
    if status.st_mode & WRITABLE_BY_OTHERS:
        raise CacheRefused(
            f"the translation cache is off: others may write {path}; take that away with chmod go-w"
        )


def _open(path: Path, flags: int, wanted: Callable[[int], bool], kind: str, directory: int | None) -> int:
    """A descriptor of a file or directory that is ours alone. CacheRefused, FileNotFoundError or OSError."""
    name = str(path) if directory is None else path.name
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CacheRefused(
            f"the translation cache is off: {path} cannot be opened as a {kind} ({error.strerror}); remove it"
        ) from None
    try:
        status = os.fstat(fd)
        if not wanted(status.st_mode):
            raise CacheRefused(f"the translation cache is off: {path} is no {kind}; remove it")
        _refuse_if_shared(path, status)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_directory(path: Path, create: bool = False) -> int:
    """A descriptor of the cache's directory. CacheRefused if it is not ours alone, FileNotFoundError."""
    if not hasattr(os, "O_NOFOLLOW"):
        raise CacheRefused("the translation cache is off: this host cannot keep links out")
    try:
        if create:
            path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    except FileExistsError:
        pass  # no directory: the next line says so
    except OSError as error:
        raise CacheRefused(
            f"the translation cache is off: {path} cannot be made ({error.strerror}); name another directory "
            f"in {ENVIRONMENT}"
        ) from None
    return _open(path, os.O_RDONLY | os.O_DIRECTORY, stat.S_ISDIR, "directory", None)


def open_file(path: Path, directory: int, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file in the directory that `directory` is open on; errors as `open_directory`."""
    return _open(path, flags | os.O_NONBLOCK, stat.S_ISREG, "plain file", directory)


def our_files(directory: int) -> list[tuple[str, os.stat_result]]:
    """The cache's files, by name: those that are named as ours and are plain files."""
    found = []
    for name in sorted(os.listdir(directory)):
        if name.startswith(PREFIX) and (name.endswith((SUFFIX, SUFFIX + NEW))):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                found.append((name, status))
    return found


class _Locked:
    """Alone among the processes that write this cache, for the length of a `with`."""

    def __init__(self, path: Path, directory: int) -> None:
        try:
            import fcntl
        except ImportError:
            raise CacheRefused("the translation cache is not written: this host has no file locks") from None
        self._fd = open_file(path / LOCK_NAME, directory, os.O_RDWR | os.O_CREAT)
        for tries in range(LOCK_TRIES, 0, -1):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if tries == 1:
                    os.close(self._fd)
                    raise
            time.sleep(LOCK_PAUSE)

    def __enter__(self) -> None:
        """Nothing more to do."""

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class _OpenFile:
    """A descriptor and what is behind it; closed when nobody needs it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.close = weakref.finalize(self, os.close, fd)


# ---- the cache ---------------------------------------------------------------------------------------------


class _Waiting(NamedTuple):
    """A draft that is not in the file yet."""

    variant: bytes
    draft: Draft


class TranslationCache:
    """The drafts of one kind of CPU in one directory. It is an `isa.translate.Drafts`.

    Nothing is written before `flush`, and the directory is made then. `limit` are bytes of all files in the
    directory: to stay below, files of other programs and CPUs go first, the oldest ahead; then of this one
    what the run did not use; then what is new.
    """

    def __init__(
        self, directory: Path, features: Iterable[str], limit: int = DEFAULT_CACHE_LIMIT, refusal: str = ""
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.notes: list[str] = []  # sentences about what went wrong, for the user
        self.asked = 0  # translations that the engine wanted
        self.found = 0  # drafts that it was shown: it takes the first that fits
        self.kept = 0  # drafts that were new
        self.path: Path | None = None
        self._file: _OpenFile | None = None
        self._known: dict[tuple[Numbers, Numbers], list[Entry]] = {}  # mode and sorted heads -> in order
        self._regions: dict[tuple[Numbers, int], list[Entry]] = {}  # mode and head -> regions that hold it
        self._waiting: dict[tuple[Numbers, Numbers], list[_Waiting]] = {}
        self._waiting_count = 0
        self._used: set[tuple[Numbers, Numbers, bytes]] = set()
        self._damaged: set[tuple[Numbers, Numbers, bytes]] = set()  # the checksum of their payload is wrong
        self._writes = True
        if refusal:  # known before: there is no directory
            self._refuse(refusal)
            return
        try:
            self._header = header_for(features)
            self.path = directory / file_name(self._header)
            self._load()
        except CacheRefused as why:
            self._refuse(str(why))
        except OSError as error:
            self._refuse(f"the translation cache is off: {directory} cannot be read ({error.strerror})")

    # -- what the block engine asks --

    def find(self, key: Numbers, heads: Numbers) -> Iterator[Draft]:
        """Drafts for these heads in this mode, in the order in which they were made; then a few whose
        function has these heads among others. Whoever asks has to compare their machine code."""
        self.asked += 1
        place = key, tuple(sorted(heads))
        for entry in self._known.get(place, ()):
            yield from self._shown(entry)
        for waiting in self._waiting.get(place, ()):
            self.found += 1
            yield waiting.draft
        if len(heads) > 1:
            wanted = set(heads)
            larger = [
                entry for entry in self._regions.get((key, heads[0]), ())
                if len(entry.heads) > len(heads) and wanted.issubset(entry.heads)
            ]  # fmt: skip
            for entry in sorted(larger, key=lambda entry: len(entry.heads))[:SUPERSETS_TRIED]:
                yield from self._shown(entry)

    def _shown(self, entry: Entry) -> Iterator[Draft]:
        """The draft of an entry, if it is whole. Nobody asks for the next one once it fits: so it is used."""
        draft = self._read(entry)
        if draft is not None:
            self._used.add(_identity(entry))
            yield draft
            self._used.discard(_identity(entry))

    def keep(self, key: Numbers, heads: Numbers, draft: Draft) -> None:
        """Remember a draft until the next `flush`."""
        if not self._writes or self._waiting_count >= WAITING_MAX:
            return
        place = key, tuple(sorted(heads))
        waiting = self._waiting.setdefault(place, [])
        if len(waiting) + len(self._known.get(place, ())) >= VARIANTS_MAX:
            return
        waiting.append(_Waiting(variant_of(draft), draft))
        self._waiting_count += 1
        self.kept += 1

    # -- reading --

    def _load(self) -> None:
        """Read the index of this program's file, if there is one; a foreign file counts as none."""
        self._known, self._regions, self._file = {}, {}, None
        assert self.path is not None
        try:
            directory = open_directory(self.directory)
        except FileNotFoundError:
            return
        try:
            fd = open_file(self.path, directory)
        except FileNotFoundError:
            return
        finally:
            os.close(directory)
        contents = read_contents(fd)
        if contents is None or contents.header[:2] != self._header[:2]:
            os.close(fd)
            return
        self._file = _OpenFile(fd)
        for entry in contents.entries:
            self._known.setdefault((entry.key, tuple(sorted(entry.heads))), []).append(entry)
            if len(entry.heads) > 1:
                for head in entry.heads:
                    self._regions.setdefault((entry.key, head), []).append(entry)

    def _read(self, entry: Entry) -> Draft | None:
        """The draft of an entry; a damaged one is as good as none."""
        if self._file is None:
            return None
        try:
            payload = read_payload(self._file.fd, entry)
        except OSError:
            payload = None
        draft = None if payload is None else unpack(payload)
        if draft is None:
            self._damaged.add(_identity(entry))
            return None
        self.found += 1
        return draft

    # -- writing --

    @property
    def waiting(self) -> int:
        """New drafts that are not in the file yet."""
        return self._waiting_count

    def flush(self, at_least: int = 1) -> None:
        """Write what is new if there are `at_least` so many. Raises nothing: `notes` has what went wrong."""
        if not self._writes or (self._waiting_count < at_least and not self._damaged):
            if self._used and self._file is not None and at_least == 1:
                with suppress(OSError):
                    os.utime(self._file.fd)  # the oldest file goes first
            return
        try:
            self._write()
            self._load()
        except CacheRefused as why:
            self._refuse(str(why))
        except OSError as error:
            self._refuse(
                f"the translation cache in {self.directory} cannot be written ({error.strerror}); what this "
                "run translated is not kept"
            )
        self._waiting.clear()
        self._waiting_count = 0
        self._damaged.clear()

    def _write(self) -> None:
        """Append the waiting drafts, or write the file anew."""
        assert self.path is not None
        directory = open_directory(self.directory, create=True)
        try:
            with _Locked(self.directory, directory):
                for name, _ in our_files(directory):
                    if name.endswith(NEW):  # left by a writer that was killed: nobody else writes now
                        os.unlink(name, dir_fd=directory)
                fd = open_file(self.path, directory, os.O_RDWR | os.O_CREAT)
                try:
                    self._append(fd, directory)
                finally:
                    os.close(fd)
        finally:
            os.close(directory)

    def _append(self, fd: int, directory: int) -> None:
        contents = read_contents(fd)
        if contents is not None and contents.header[:2] != self._header[:2]:
            contents = None
        known = contents.entries if contents is not None else []
        known = [entry for entry in known if _identity(entry) not in self._damaged]
        new = self._packed(known)
        batch = batch_of(new) if new else b""
        header = self._header.encoded()
        end = len(header) if contents is None else contents.end
        others = self._make_room(directory, end + len(batch))
        if self._damaged or others + end + len(batch) > self.limit:
            self._rewrite(fd, directory, known, new, self.limit - others)
            return
        if contents is None:
            os.ftruncate(fd, 0)
            write_at(fd, header, 0)
        else:
            os.ftruncate(fd, end)  # what a killed writer left
        if batch:
            write_at(fd, batch, end)

    def _packed(self, known: Iterable[Entry]) -> list[Packed]:
        """The waiting drafts as bytes, without those that another process has written meanwhile."""
        there = {_identity(entry) for entry in known}
        packed = []
        for (key, heads), drafts in self._waiting.items():
            for waiting in drafts:
                if (key, heads, waiting.variant) not in there:
                    made = pack(key, heads, waiting.variant, waiting.draft)
                    if made is not None:
                        packed.append(made)
                        self._used.add((key, heads, waiting.variant))  # so it counts when there is no room
        return packed

    def _make_room(self, directory: int, wanted: int) -> int:
        """Remove the oldest files of others until `wanted` bytes fit; how many bytes of others are left."""
        assert self.path is not None
        others = [(status.st_mtime_ns, name, status.st_size)
                  for name, status in our_files(directory) if name != self.path.name]  # fmt: skip
        total = sum(size for _, _, size in others)
        for _, name, size in sorted(others):
            if total + wanted <= self.limit:
                break
            os.unlink(name, dir_fd=directory)
            total -= size
        return total

    def _rewrite(self, fd: int, directory: int, known: list[Entry], new: list[Packed], room: int) -> None:
        """The file anew, with what of it is whole and, if that is too much, what this run has used."""
        assert self.path is not None
        header = self._header.encoded()
        room -= len(header) + sum(map(_size_of, new))
        if sum(map(_size_of, known)) > room:
            known = [entry for entry in known if _identity(entry) in self._used]
        name = self.path.name + NEW
        made = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE, dir_fd=directory)
        try:
            write_at(made, header, 0)
            at = len(header)
            for first in range(0, len(known), BATCH):
                some: list[Packed] = []
                for entry in known[first : first + BATCH]:
                    payload = read_payload(fd, entry)
                    room -= _size_of(entry)
                    if payload is not None and room >= 0:
                        some.append(Packed(entry.key, entry.heads, entry.variant, payload))
                batch = batch_of(some) if some else b""
                write_at(made, batch, at)
                at += len(batch)
            while new and at + sum(map(_size_of, new)) > self.limit:
                new.pop()
            if new:
                write_at(made, batch_of(new), at)
            os.rename(name, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(name, dir_fd=directory)
            raise
        finally:
            os.close(made)

    def _refuse(self, note: str) -> None:
        self.notes.append(note)
        self._writes = False


def _identity(entry: Entry) -> tuple[Numbers, Numbers, bytes]:
    """Which translation of which heads an entry is."""
    return entry.key, entry.heads, entry.variant


def _size_of(each: Entry | Packed) -> int:
    """Bytes that an entry takes in a file, rather more than less."""
    size = each.size if isinstance(each, Entry) else len(each.payload)
    return size + 8 * (len(each.key) + len(each.heads)) + 128


def cache_for(setting: str | None, limit: int, features: frozenset[str]) -> TranslationCache | None:
    """The cache that a configuration asks for ("on", "off" or a path; None is "off"); None without one."""
    if setting is None or setting == "off":
        return None
    try:
        directory = cache_directory(setting)
    except CacheRefused as refusal:
        return TranslationCache(Path(), features, limit, str(refusal))
    return None if directory is None else TranslationCache(directory, features, limit)
