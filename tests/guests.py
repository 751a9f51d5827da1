"""Where the tests find real guest software. It downloads nothing: .ci/fetch-guests does.

Looked for, in this order: the directory named by PYSIM_GUESTS, `.guests/` in the checkout, and where
Debian's packages install the file. A guest that is nowhere skips its test with the line that fetches it;
under CI=true it fails the test, so that CI cannot pass by testing nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Guest:
    """A file of a Debian package; `installed` are glob patterns, of which the last match is taken."""

    package: str
    installed: tuple[str, ...]


# The names are the file names in .guests/; .ci/fetch-guests makes the same.
GUESTS = {
    "bios.bin": Guest("seabios", ("/usr/share/seabios/bios.bin",)),
    "bios-256k.bin": Guest("seabios", ("/usr/share/seabios/bios-256k.bin",)),
    "bios-microvm.bin": Guest("seabios", ("/usr/share/seabios/bios-microvm.bin",)),
    "vgabios.bin": Guest("seabios", ("/usr/share/seabios/vgabios-isavga.bin",)),
    "vgabios-stdvga.bin": Guest("seabios", ("/usr/share/seabios/vgabios-stdvga.bin",)),
    "u-boot-x86_64.rom": Guest("u-boot-qemu", ("/usr/lib/u-boot/qemu-x86_64/u-boot.rom",)),
    "u-boot-x86.rom": Guest("u-boot-qemu", ("/usr/lib/u-boot/qemu-x86/u-boot.rom",)),
    "memtest86+x64.bin": Guest("memtest86+", ("/boot/memtest86+x64.bin",)),
    "memtest86+ia32.bin": Guest("memtest86+", ("/boot/memtest86+ia32.bin",)),
    "busybox": Guest("busybox-static", ("/bin/busybox",)),
    "busybox.cpio": Guest("busybox-static", ()),  # an initial RAM disk that fetch-guests makes of it
    "vmlinuz-cloud-amd64": Guest("linux-image-cloud-amd64", ("/boot/vmlinuz-*-cloud-amd64",)),
    "config-cloud-amd64": Guest("linux-image-cloud-amd64", ("/boot/config-*-cloud-amd64",)),
}


def find_guest(name: str) -> Path | None:
    """The path of a guest file, or None. Raises KeyError for a name that is not in GUESTS."""
    known = GUESTS[name]
    directories = [Path(os.environ["PYSIM_GUESTS"])] if os.environ.get("PYSIM_GUESTS") else []
    for directory in [*directories, CHECKOUT / ".guests"]:
        if (directory / name).is_file():
            return directory / name
    for pattern in known.installed:
        matches = sorted(path for path in Path("/").glob(pattern.lstrip("/")) if path.is_file())
        if matches:
            return matches[-1]
    return None


def guest(name: str) -> Path:
    """The path of a guest file; without it the test is skipped, or fails under CI=true."""
    found = find_guest(name)
    if found is not None:
        return found
    reason = f"guest {name} is missing: run .ci/fetch-guests, or apt-get install {GUESTS[name].package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
