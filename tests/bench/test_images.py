"""The kernels' images and their sources: neither changes without the other."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from bench.guests import build
from bench.kernels import KERNELS

RECORD = json.loads(build.RECORD.read_text(encoding="utf-8"))
BIGGEST = 4096  # bytes of an image: one page of code is enough for a kernel
AGAIN = "; run python bench/guests/build.py"


def test_every_kernel_has_an_image_and_every_image_a_kernel() -> None:
    assert {kernel.image for kernel in KERNELS} == set(build.KERNELS) == set(RECORD["images"])
    assert {path.stem for path in build.HERE.glob("*.bin")} == set(build.KERNELS)
    assert {path.stem for path in build.HERE.glob("*.c")} == set(build.KERNELS)


@pytest.mark.parametrize("name", build.KERNELS)
def test_an_image_is_the_recorded_one(name: str) -> None:
    entry = RECORD["images"][name]
    assert build.digest(build.image_of(name)) == entry["sha256"]
    assert build.image_of(name).stat().st_size == entry["bytes"] <= BIGGEST


@pytest.mark.parametrize("name", build.KERNELS)
def test_an_image_was_made_from_the_sources_and_flags_that_are_here(name: str) -> None:
    entry = RECORD["images"][name]
    assert build.sources_of(name) == entry["sources"], f"{name}.bin is older than its source{AGAIN}"
    assert build.flags_of(name) == entry["flags"], f"{name}.bin was made with other flags{AGAIN}"


@pytest.mark.parametrize("name", build.KERNELS)
def test_the_recorded_compiler_makes_the_same_image_again(name: str) -> None:
    if shutil.which("gcc") is None or build.compiler() != RECORD["compiler"]:
        pytest.skip(f"needs {RECORD['compiler']}")
    assert build.build(name) == build.image_of(name).read_bytes()


def test_the_flags_allow_no_instruction_beyond_the_first_x86_64() -> None:
    for name in build.KERNELS:
        flags = build.flags_of(name)
        assert "-march=x86-64" in flags
        assert not [flag for flag in flags if re.match(r"-m(avx|sse[34]|bmi|arch=x86-64-v)", flag)]
