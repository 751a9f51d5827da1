"""Block back-ends: copy-on-write, bounds, padding, messages."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from devices.base import DeviceError
from devices.block import BlockError, FileBlock, MemoryBlock


def pattern(sectors: int) -> bytes:
    return b"".join(bytes([number + 1]) * 512 for number in range(sectors))


def test_memory_block_reads_what_it_was_given() -> None:
    block = MemoryBlock(pattern(4))
    assert block.sectors == 4
    assert block.read(1, 2) == pattern(4)[512:1536]
    assert block.read(4, 0) == b""


def test_an_odd_size_is_padded_with_zeros() -> None:
    block = MemoryBlock(b"abc")
    assert block.sectors == 1
    assert block.read(0, 1) == b"abc" + bytes(509)


def test_writes_lie_over_the_source_and_reset_forgets_them() -> None:
    block = MemoryBlock(pattern(4))
    block.write(1, b"x" * 512 + b"y" * 512)
    assert block.read(0, 4) == b"\x01" * 512 + b"x" * 512 + b"y" * 512 + b"\x04" * 512
    block.reset()
    assert block.read(0, 4) == pattern(4)


def test_a_copy_of_the_state_is_a_snapshot() -> None:
    block = MemoryBlock(pattern(2))
    block.write(0, b"a" * 512)
    saved = copy.deepcopy(block.state)
    block.write(0, b"b" * 512)
    block.state = saved
    assert block.read(0, 1) == b"a" * 512


@pytest.mark.parametrize(("sector", "count"), [(4, 1), (0, 5), (3, 2), (-1, 1), (1 << 60, 1)])
def test_accesses_beyond_the_end_are_refused(sector: int, count: int) -> None:
    block = MemoryBlock(pattern(4))
    with pytest.raises(BlockError, match="stay below the end"):
        block.read(sector, count)
    with pytest.raises(BlockError, match="stay below the end"):
        block.write(sector, bytes(512 * count))


def test_a_full_overlay_refuses_new_sectors_whole_and_takes_old_ones() -> None:
    block = MemoryBlock(pattern(4), overlay_limit=1024)
    block.write(0, bytes(512))
    with pytest.raises(BlockError, match="raise overlay_limit"):
        block.write(1, bytes(1024))
    assert block.read(1, 2) == pattern(4)[512:1536]
    block.write(0, b"z" * 512)
    block.write(3, b"z" * 512)
    assert block.read(3, 1) == b"z" * 512


def test_read_only_and_partial_writes_are_refused() -> None:
    with pytest.raises(BlockError, match="read-only"):
        MemoryBlock(pattern(1), read_only=True).write(0, bytes(512))
    with pytest.raises(BlockError, match="multiples of 512"):
        MemoryBlock(pattern(1)).write(0, bytes(100))


def test_a_file_is_never_changed_by_default(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(3))
    block = FileBlock(path)
    block.write(1, b"w" * 512)
    block.flush()
    assert block.read(0, 3) == b"\x01" * 512 + b"w" * 512 + b"\x03" * 512
    assert path.read_bytes() == pattern(3)
    block.close()


def test_a_writable_file_is_changed_and_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(2) + b"tail")
    block = FileBlock(path, writable=True)
    assert block.sectors == 3
    assert block.read(2, 1) == b"tail" + bytes(508)
    block.write(1, b"w" * 1024)
    block.flush()
    assert path.read_bytes() == b"\x01" * 512 + b"w" * 516
    assert block.state.overlay == {}
    block.close()


def test_a_file_that_shrinks_under_us_reads_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(2))
    block = FileBlock(path)
    os.truncate(path, 512)
    assert block.read(0, 2) == b"\x01" * 512 + bytes(512)
    block.close()
    with pytest.raises(BlockError, match="check the host's disk"):
        block.read(0, 1)


def test_wrong_paths_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no such file"):
        FileBlock(tmp_path / "missing.img")
    with pytest.raises(DeviceError, match="this is a directory"):
        FileBlock(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeviceError, match="neither a file nor a block device"):
        FileBlock(tmp_path / "pipe")
    with pytest.raises(DeviceError, match="cannot be opened"):
        FileBlock("nul\0byte")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "secret.img"
    path.write_bytes(b"")
    path.chmod(0)
    with pytest.raises(DeviceError, match="may not be read"):
        FileBlock(path)


def test_a_negative_overlay_limit_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="overlay_limit"):
        MemoryBlock(b"", overlay_limit=-1)
