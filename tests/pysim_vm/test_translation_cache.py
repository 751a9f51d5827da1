"""translation_cache.py and translation_file.py: speed is all that a kept translation changes."""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import stat
from pathlib import Path
from random import Random

import pytest

from pysim_vm import translation_cache, translation_file
from pysim_vm.config import AxVMConfig, ConfigError
from pysim_vm.translation_cache import CacheRefused, TranslationCache, cache_directory, program_digest
from pysim_vm.translation_file import Contents, Header, read_contents
from tests.pysim_vm.translated_guests import cache_of, finished, sums

pytestmark = pytest.mark.default_engine


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def full(directory: Path) -> Path:
    """The file that a first run leaves."""
    finished(sums(directory))
    return file_of(directory)


def file_of(directory: Path) -> Path:
    (file,) = directory.glob("translations-*.bin")
    return file


def contents_of(file: Path) -> Contents:
    fd = os.open(file, os.O_RDONLY)
    try:
        contents = read_contents(fd)
    finally:
        os.close(fd)
    assert contents is not None
    return contents


def places(file: Path) -> list[tuple[object, ...]]:
    """What the file has translations of, in order."""
    return [(entry.key, entry.heads, entry.variant) for entry in contents_of(file).entries]


# ---- what it is for ----------------------------------------------------------------------------------------


def test_the_second_run_translates_nothing(full: Path) -> None:
    before = full.read_bytes()
    vm = sums(full.parent)
    finished(vm)
    cache = cache_of(vm)
    assert (cache.kept, cache.notes) == (0, [])
    assert cache.found >= len(contents_of(full).entries) > 0
    assert full.read_bytes() == before


def test_cold_warm_damaged_and_foreign_caches_give_the_same_exits_and_the_same_state(directory: Path) -> None:
    without = finished(sums())
    assert len(without[0]) == 41  # 40 OUTs and a HLT
    assert finished(sums(directory)) == without
    file = file_of(directory)
    whole = file.read_bytes()
    assert finished(sums(directory)) == without
    for damaged in (
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:200] + bytes(len(whole) - 200),
        whole[:-2000] + bytes(1000) + whole[-1000:],
        b"",
        b"not ours at all" * 100,
    ):
        file.write_bytes(damaged)
        vm = sums(directory)
        assert finished(vm) == without
        assert cache_of(vm).notes == []
        assert places(file)
    other = Header(b"\1" * 32, b"\2" * 32, "another program\n").encoded()
    file.write_bytes(other + whole[len(contents_of(file).header.encoded()) :])
    assert finished(sums(directory)) == without


def test_a_guest_whose_code_changed_gets_no_translation_of_the_old_code(directory: Path) -> None:
    finished(sums(directory))
    vm, cold = sums(directory), sums()
    for each in (vm, cold):
        code = each.read_from_guest(0x1000, 0x80)
        changed = code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05"))  # shr ebx, 5
        assert changed != code
        each.write_to_guest(0x1000, changed)
    assert finished(vm) == finished(cold)
    assert cache_of(vm).kept > 0


def test_both_translations_of_code_that_changes_are_kept(full: Path) -> None:
    known = places(full)
    vm = sums(full.parent)
    code = vm.read_from_guest(0x1000, 0x80)
    vm.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05")))
    finished(vm)
    assert places(full)[: len(known)] == known
    assert len(places(full)) > len(known)
    for shift in ("c1eb07", "c1eb05"):
        vm = sums(full.parent)
        vm.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex(shift)))
        finished(vm)
        assert cache_of(vm).kept == 0


def test_a_vm_has_no_cache_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSIM_VM_CACHE", str(tmp_path / "never"))
    for vm in (sums(), sums("off"), sums(tmp_path / "x", exit_path="full")):
        finished(vm)
    assert sums().translation_cache is None
    assert sums("off").translation_cache is None
    assert not (tmp_path / "never").exists()
    assert (tmp_path / "x").exists()


def test_the_step_engine_has_no_cache(directory: Path) -> None:
    config = AxVMConfig.for_code("2M", engine="step", translation_cache=str(directory))
    from pysim_vm.vm import AxVM

    assert AxVM(config).translation_cache is None


def test_cpus_with_other_features_have_another_file(full: Path) -> None:
    vm = sums(full.parent, cpu_features=["+apic"])
    finished(vm)
    assert (cache_of(vm).found, cache_of(vm).kept) == (0, cache_of(vm).asked)
    assert len(list(full.parent.glob("translations-*.bin"))) == 2


def test_a_stopped_vm_has_written_its_translations(directory: Path) -> None:
    vm = sums(directory)
    vm.run(100_000)
    assert not directory.exists()
    assert cache_of(vm).waiting > 0
    vm.shutdown()
    assert cache_of(vm).waiting == 0
    assert places(file_of(directory))


def test_between_two_runs_of_the_guest_many_translations_are_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysim_vm.vm.WRITE_FROM", 2)
    vm = sums(directory)
    vm.run(100_000)
    assert places(file_of(directory))


# ---- where it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("on", {"XDG_CACHE_HOME": "/x"}, "/x/pysim_vm"),
        ("on", {"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/pysim_vm"),
        ("on", {"HOME": "/h"}, "/h/.cache/pysim_vm"),
        ("on", {"PYSIM_VM_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ("on", {"PYSIM_VM_CACHE": "on", "XDG_CACHE_HOME": "/x"}, "/x/pysim_vm"),
        ("on", {"PYSIM_VM_CACHE": "off"}, None),
        ("off", {"PYSIM_VM_CACHE": "/c"}, None),
        ("/d/e", {"PYSIM_VM_CACHE": "off"}, "/d/e"),
        ("~/e", {"HOME": "/h"}, "/h/e"),
    ],
)
def test_the_setting_and_the_environment_choose_the_directory(
    setting: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", environment.get("HOME", "/nowhere"))
    assert cache_directory(setting, environment) == (None if expected is None else Path(expected))


def test_directory_and_files_are_made_for_the_user_alone(full: Path) -> None:
    assert stat.S_IMODE(full.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in full.parent.iterdir()} == {0o600}


def test_a_word_that_is_no_path_is_refused_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r'"of" is neither on nor off nor a path with a "/".*"off"'):
        AxVMConfig.for_code("2M", translation_cache="of")


# ---- who may write it --------------------------------------------------------------------------------------


def refused(directory: Path) -> str:
    """The one note of a run that got no cache; the run itself is as without."""
    vm = sums(directory)
    assert finished(vm) == finished(sums())
    cache = cache_of(vm)
    assert (cache.found, len(cache.notes)) == (0, 1)
    assert "Traceback" not in cache.notes[0]
    return cache.notes[0]


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_may_write_is_refused(full: Path, mode: int) -> None:
    before = full.read_bytes()
    full.parent.chmod(mode)
    assert "others may write" in refused(full.parent)
    assert full.read_bytes() == before


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(full: Path, mode: int) -> None:
    full.chmod(mode)
    assert "others may write" in refused(full.parent)


def test_what_belongs_to_another_user_is_refused(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "belongs to another user" in refused(full.parent)


def test_a_link_in_place_of_the_directory_is_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(full.parent)
    assert "cannot be opened as a directory" in refused(tmp_path / "link")


def test_a_link_in_place_of_the_file_is_refused(full: Path, tmp_path: Path) -> None:
    full.rename(tmp_path / "elsewhere")
    full.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    assert "cannot be opened as a plain file" in refused(full.parent)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_pipe_in_place_of_the_file_is_refused_and_nobody_waits(full: Path) -> None:
    full.unlink()
    os.mkfifo(full, 0o600)
    assert "is no plain file" in refused(full.parent)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be opened as a directory" in refused(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_sources_that_changed_after_they_were_loaded_switch_it_off(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_digest.cache_clear()
    monkeypatch.setattr(translation_cache, "_LOADED_NS", 0)
    assert "was changed after it was loaded" in refused(directory)
    monkeypatch.undo()
    assert len(program_digest()) == 32


# ---- damage ------------------------------------------------------------------------------------------------


def test_nothing_is_unmarshalled_before_its_checksum_fits(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = contents_of(full)
    data = bytearray(full.read_bytes())
    for entry in contents.entries:
        data[entry.offset + entry.size // 2] ^= 1
    full.write_bytes(data)

    def never(*_: object) -> None:
        raise AssertionError("a damaged payload was unmarshalled")

    monkeypatch.setattr(marshal, "loads", never)
    vm = sums(full.parent)
    vm.run(200_000)
    assert cache_of(vm).found == 0
    monkeypatch.undo()
    vm.keep_translations()
    assert cache_of(vm).notes == []


def test_after_a_run_a_damaged_translation_is_whole_again(full: Path) -> None:
    known = places(full)
    entry = contents_of(full).entries[0]
    data = bytearray(full.read_bytes())
    data[entry.offset] ^= 0xFF
    full.write_bytes(data)
    finished(sums(full.parent))
    assert sorted(map(repr, places(full))) == sorted(map(repr, known))
    vm = sums(full.parent)
    finished(vm)
    assert cache_of(vm).kept == 0


def test_a_file_cut_anywhere_is_read_as_far_as_whole_batches_go(full: Path) -> None:
    whole = full.read_bytes()
    start = contents_of(full).start
    for cut in {0, 1, 8, start - 1, start, start + 1, start + 52, len(whole) // 2, len(whole) - 1}:
        full.write_bytes(whole[:cut])
        fd = os.open(full, os.O_RDONLY)
        contents = read_contents(fd)
        os.close(fd)
        assert (contents is None) == (cut < start)
        assert contents is None or (contents.entries, contents.end) == ([], start)


def test_what_a_killed_writer_left_is_dropped_by_the_next(full: Path) -> None:
    known = places(full)
    whole = full.read_bytes()
    start = contents_of(full).start
    full.write_bytes(whole + whole[start : start + len(whole) // 3])
    (full.parent / (full.name + ".new")).write_bytes(b"half a file")
    assert places(full) == known
    vm = sums(full.parent)
    vm.write_to_guest(0x1800, b"\x90")  # somewhere else: the same guest
    code = vm.read_from_guest(0x1000, 0x80)
    vm.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05")))
    finished(vm)
    contents = contents_of(full)
    assert contents.end == contents.size
    assert contents.batches == 2
    assert places(full)[: len(known)] == known
    assert not (full.parent / (full.name + ".new")).exists()


@pytest.mark.parametrize("field", range(5))
def test_a_header_with_any_field_changed_is_not_ours(full: Path, field: int) -> None:
    data = bytearray(full.read_bytes())
    data[(0, 8, 40, 72, 80)[field]] ^= 1
    full.write_bytes(data)
    fd = os.open(full, os.O_RDONLY)
    assert read_contents(fd) is None
    os.close(fd)


def test_an_index_with_a_right_checksum_and_wrong_numbers_is_no_batch(full: Path) -> None:
    header = contents_of(full).header.encoded()
    index = translation_file._ENTRY.pack(1 << 40, 5, bytes(32), bytes(16), 255, 65535)
    check = translation_file._batch_check(1, 5, index)
    batch = translation_file._BATCH.pack(translation_file.MARKER, 1, len(index), 5, check)
    full.write_bytes(header + batch + index + b"12345")
    assert contents_of(full).entries == []


def test_a_payload_that_is_no_draft_is_ignored(full: Path) -> None:
    for value in (None, 5, (1, 2, 3), tuple(b"x" for _ in range(9))):
        assert translation_file.unpack(marshal.dumps(value)) is None
    assert translation_file.unpack(b"") is None


def test_no_byte_of_a_file_can_make_reading_it_fail(full: Path) -> None:
    whole = full.read_bytes()
    features = sums().vcpu(0).cpu.features
    known = contents_of(full).entries
    index_end = min(entry.offset for entry in known)
    chance = Random(1)
    shown = 0
    for at in [*range(index_end), *(chance.randrange(len(whole)) for _ in range(200))]:
        data = bytearray(whole)
        data[at] ^= 1 << chance.randrange(8)
        full.write_bytes(data)
        cache = TranslationCache(full.parent, features)
        found = [draft for entry in known for draft in cache.find(entry.key, entry.heads)]
        assert cache.notes == []
        assert len(found) < len(known) or at >= index_end
        shown += len(found)
    assert shown > 0


# ---- bounds ------------------------------------------------------------------------------------------------


def directory_size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_to_stay_below_the_limit_the_oldest_file_of_another_program_goes_first(full: Path) -> None:
    size = full.stat().st_size
    for number, name in enumerate(("translations-aa.bin", "translations-bb.bin", "mine.txt")):
        other = full.parent / name
        other.write_bytes(bytes(size))
        os.utime(other, (number + 1, number + 1))
    full.unlink()
    cache = sums(full.parent)
    cache_of(cache).limit = 2 * size + size // 2
    finished(cache)
    assert sorted(path.name for path in full.parent.glob("*.*")) == sorted(
        ("translations-bb.bin", "mine.txt", full.name, "translations.lock")
    )


def test_a_file_at_its_limit_keeps_what_the_run_used(full: Path) -> None:
    size = full.stat().st_size
    vm = sums(full.parent)
    code = vm.read_from_guest(0x1000, 0x80)
    vm.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05")))
    cache_of(vm).limit = size + size // 4
    finished(vm)
    assert 0 < full.stat().st_size <= size + size // 4
    again = sums(full.parent)
    again.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05")))
    finished(again)
    assert cache_of(again).kept == 0


def test_a_limit_below_anything_leaves_a_valid_file(directory: Path) -> None:
    vm = sums(directory)
    cache_of(vm).limit = 1000
    finished(vm)
    assert cache_of(vm).notes == []
    assert places(file_of(directory)) == []


def test_translations_of_the_same_heads_are_bounded(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation_cache, "VARIANTS_MAX", 1)
    vm = sums(full.parent)
    code = vm.read_from_guest(0x1000, 0x80)
    vm.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05")))
    known = {place[:2] for place in places(full)}
    finished(vm)
    assert len({place[:2] for place in places(full)}) == len(places(full)) >= len(known)


# ---- several at once ---------------------------------------------------------------------------------------


def test_two_that_translate_the_same_write_it_once(directory: Path) -> None:
    first, second = sums(directory), sums(directory)
    finished(first)
    finished(second)
    assert cache_of(second).kept > 0
    assert len(set(places(file_of(directory)))) == len(places(file_of(directory)))


def test_a_reader_goes_on_when_another_process_replaces_the_file(full: Path) -> None:
    vm = sums(full.parent)
    vm.run(3000)
    full.unlink()
    finished(vm)
    assert cache_of(vm).notes == []


def test_a_cache_that_another_process_is_writing_is_not_waited_for_without_end(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation_cache, "LOCK_TRIES", 2)
    monkeypatch.setattr(translation_cache, "LOCK_PAUSE", 0.0)
    full.unlink()
    with open(full.parent / "translations.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "cannot be written" in refused(full.parent)


# ---- a host that fails -------------------------------------------------------------------------------------


def test_a_full_disk_is_a_note_and_the_file_stays_valid(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = places(full)
    pwrite = os.pwrite

    def half(fd: int, data: memoryview, offset: int) -> int:
        if len(data) <= 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:100], offset)

    monkeypatch.setattr(os, "pwrite", half)
    vm = sums(full.parent)
    code = vm.read_from_guest(0x1000, 0x80)
    vm.write_to_guest(0x1000, code.replace(bytes.fromhex("c1eb07"), bytes.fromhex("c1eb05")))
    finished(vm)
    (note,) = cache_of(vm).notes
    assert "cannot be written (No space left on device)" in note
    assert places(full) == known
    assert contents_of(full).end == full.stat().st_size


def test_a_directory_that_cannot_be_made_is_a_note(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "cannot be made (Read-only file system)" in refused(directory)


def test_without_a_home_directory_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("PYSIM_VM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(CacheRefused, match="no home directory is known"):
        cache_directory("on")
    vm = sums("on")
    finished(vm)
    assert "no home directory is known" in cache_of(vm).notes[0]


def test_a_missing_directory_is_an_empty_cache_and_is_made_only_to_write(directory: Path) -> None:
    cache = TranslationCache(directory, ("FPU",))
    assert list(cache.find((64, 0, 0, 0, 0), (0x1000,))) == []
    cache.flush()
    assert not directory.exists()
