"""Build the kernels' images from their sources: `python bench/guests/build.py`. It runs none of them.

It wants gcc and binutils for x86-64; the committed images come from the compiler that `images.json` names.
Each source becomes one flat image for 0x100000, with `start.S` in front. `images.json` keeps the hashes of
what an image was made from beside its own, and tests/bench/test_images.py compares them with the files.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "images.json"
KERNELS = (
    "alu", "array_sum", "memcpy_loop", "memcpy_rep", "crc32", "sha256", "quicksort", "fib", "sieve", "matmul",
    "bytecode",
)  # fmt: skip
SHARED = ("start.S", "flat.ld")  # part of every image
FLAGS = (
    "-O2", "-march=x86-64", "-mtune=generic",  # what a distribution's package has: SSE2 and nothing newer
    "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie",
    "-fno-tree-vectorize",  # the scalar code that most programs are
    "-fno-tree-loop-distribute-patterns",  # a loop that copies stays a loop
    "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-fno-ident",
    "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments",
)  # fmt: skip
# Fibonacci is here for its calls, of which -O2 would make loops
MORE_FLAGS = {"fib": ("-fno-inline", "-fno-optimize-sibling-calls", "-fno-partial-inlining")}


def flags_of(name: str) -> list[str]:
    """The compiler's arguments for a kernel, without its files."""
    return [*FLAGS, *MORE_FLAGS.get(name, ())]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources_of(name: str) -> dict[str, str]:
    """What a kernel's image is made from: file name -> SHA-256."""
    return {source: digest(HERE / source) for source in (f"{name}.c", *SHARED)}


def image_of(name: str) -> Path:
    """Where a kernel's image is."""
    return HERE / f"{name}.bin"


def compiler() -> str:
    """The compiler's name and version. FileNotFoundError without one."""
    version = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    return version.splitlines()[0]


def build(name: str) -> bytes:
    """Compile one kernel; its image. CalledProcessError, the compiler's own words shown, if it does not."""
    with tempfile.TemporaryDirectory() as scratch:
        program, image = Path(scratch) / name, Path(scratch) / f"{name}.bin"
        files = ["-T", "flat.ld", "start.S", f"{name}.c", "-o", str(program)]
        subprocess.run(["gcc", *flags_of(name), *files], cwd=HERE, check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".image", str(program), str(image)], check=True)
        return image.read_bytes()


def main() -> int:
    """Build all of them and write the record; the exit code is 0."""
    record: dict[str, Any] = {"compiler": compiler(), "images": {}}
    for name in KERNELS:
        image_of(name).write_bytes(build(name))
        record["images"][name] = {
            "flags": flags_of(name),
            "sources": sources_of(name),
            "bytes": image_of(name).stat().st_size,
            "sha256": digest(image_of(name)),
        }
        print(f"{image_of(name).name:<16} {image_of(name).stat().st_size:>5} bytes")
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
