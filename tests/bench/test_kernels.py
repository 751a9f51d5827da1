"""The compute kernels as guests: right results, the same count of instructions on both engines."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import replace

import pytest

from bench import answers
from bench.kernels import INPUT, KERNELS, WORK, Kernel, WrongResult

# Retired instructions of the short sizes: the images are fixed, so these are
COUNTS = {
    "alu": 102_020,
    "array_sum": 98_356,
    "memcpy_loop": 81_939,
    "memcpy_rep": 4_194_832,
    "crc32": 85_780,
    "sha256": 142_646,
    "quicksort": 88_063,
    "fib": 44_711,
    "sieve": 130_625,
    "matmul": 32_446,
    "bytecode": 83_458,
}


def kernel_of(image: str) -> Kernel:
    """The kernel with that image, at its short size."""
    (kernel,) = (kernel for kernel in KERNELS if kernel.image == image)
    return kernel


@pytest.mark.parametrize("engine", ["step", "block"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.image)
def test_a_kernel_finds_pythons_result_in_the_recorded_number_of_instructions(
    kernel: Kernel, engine: str
) -> None:
    vm = kernel.machine(engine)
    operations = kernel.run(vm)
    assert vm.vcpu(0).retired == COUNTS[kernel.image]
    assert operations == (kernel.size * 64 if kernel.bulk else COUNTS[kernel.image])


@pytest.mark.parametrize("engine", ["warm", "kept"])
@pytest.mark.parametrize("image", ["quicksort", "bytecode"])
def test_a_kernel_runs_again_with_what_is_known_of_it(image: str, engine: str) -> None:
    assert kernel_of(image).fresh(engine)() == COUNTS[image]


def test_a_kernel_that_was_told_another_result_ends_at_an_invalid_instruction() -> None:
    kernel = replace(kernel_of("fib"), size=5, answer=lambda size, data: 6)
    with pytest.raises(WrongResult, match=r"TripleFault.* and 0x5 instead of 0x6"):
        kernel.fresh("step")()


def test_sha256_leaves_the_whole_digest() -> None:
    kernel = kernel_of("sha256")
    vm = kernel.machine("block")
    kernel.run(vm)
    assert vm.read_from_guest(WORK, 32) == hashlib.sha256(answers.noise(kernel.size)).digest()


def test_quicksort_leaves_the_numbers_in_order() -> None:
    kernel = kernel_of("quicksort")
    vm = kernel.machine("block")
    kernel.run(vm)
    size = 4 * kernel.size
    ordered = sorted(struct.unpack(f"<{kernel.size}I", answers.noise(size)))
    assert vm.read_from_guest(INPUT, size) == struct.pack(f"<{kernel.size}I", *ordered)


def test_the_full_sizes_are_the_larger_ones() -> None:
    for kernel in KERNELS:
        assert kernel.longer().size == kernel.full > kernel.size


# ---- the answers themselves --------------------------------------------------------------------------------


def test_answers_that_are_well_known() -> None:
    assert answers.fib(10, b"") == 55
    assert answers.sieve(100, b"") == 25
    assert answers.crc32(9, b"123456789") == 0xCBF4_3926
    assert answers.sha256(3, b"abc") == 0xBA78_16BF_8F01_CFEA
    assert answers.bytecode(10, b"") == 0 + 1 + 7 + 2 + 5 + 8 + 16 + 3 + 19
    assert answers.memcpy_loop(16, bytes(range(16))) == 0x0F0E_0D0C_0B0A_0908
    assert answers.quicksort(3, struct.pack("<3I", 30, 10, 20)) == 10 * 1 + 20 * 2 + 30 * 3


def test_a_matrix_product_by_hand() -> None:
    data = struct.pack("<8d", 1, 2, 3, 4, 5, 6, 7, 8)
    check = 0
    for value in (19.0, 22.0, 43.0, 50.0):
        check = answers.rotated(check, 1) ^ struct.unpack("<Q", struct.pack("<d", value))[0]
    assert answers.matmul(2, data) == check


def test_the_matrices_are_finite_and_not_round() -> None:
    values = struct.unpack("<32d", answers.matrices(4))
    assert all(-1 < value < 1 and math.frexp(value)[0] * 2**20 % 1 for value in values)


def test_the_array_is_added_up_with_a_rotation_after_each_pass() -> None:
    data = struct.pack(f"<{answers.NUMBERS}Q", *([0] * (answers.NUMBERS - 1)), 1 << 63)
    assert answers.array_sum(1, data) == 1
    assert answers.array_sum(2, data) == (1 + (1 << 63)) << 1 & answers.M64 | 1
