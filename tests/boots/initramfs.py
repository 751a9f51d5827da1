"""A minimal initramfs: busybox, a console and a script. Format: the kernel's buffer-format.rst.

As a command it makes one: `python3 tests/boots/initramfs.py .guests/busybox .guests/busybox.cpio`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

DIRECTORY, FILE, LINK, CHARACTER_DEVICE = 0o040755, 0o100755, 0o120777, 0o020600

SHELL = b"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox uname -a
echo initramfs is up
exec /bin/busybox sh
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive; `device` is (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def newc(entries: list[Entry]) -> bytes:
    """The archive of `entries`, in order, with its trailer."""
    archive = b""
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += header + bytes(-len(header) % 4) + entry.data + bytes(-len(entry.data) % 4)
    return archive


def busybox_initramfs(busybox: bytes, init: bytes = SHELL) -> bytes:
    """An initramfs whose /init is a busybox script."""
    return newc(
        [
            Entry("bin", DIRECTORY),
            Entry("dev", DIRECTORY),
            Entry("proc", DIRECTORY),
            Entry("dev/console", CHARACTER_DEVICE, device=(5, 1)),
            Entry("bin/busybox", FILE, busybox),
            Entry("bin/sh", LINK, b"busybox"),
            Entry("init", FILE, init),
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("initramfs: write the path of a static busybox and that of the archive to make")
    Path(sys.argv[2]).write_bytes(busybox_initramfs(Path(sys.argv[1]).read_bytes()))
