"""SSE4.2 string instructions: the uses that the manual names, lengths, masks, flags."""

from __future__ import annotations

import pytest

from isa.state import CR4_OSFXSR
from tests.isa.machine import execute, flags_of


def text128(text: bytes) -> int:
    """Up to 16 characters, zero behind them."""
    return int.from_bytes(text, "little")


def words128(text: str) -> int:
    """Up to 8 characters as words."""
    return int.from_bytes(text.encode("utf-16-le"), "little")


def implicit(imm8: int, first: int, second: int) -> tuple[int, str]:
    """(ECX, flags) of PCMPISTRI."""
    cpu = execute(
        f"pcmpistri xmm0, xmm1, {imm8:#x}", f"660f3a63c1{imm8:02x}", cr4=CR4_OSFXSR, rcx=-1 & 2**64 - 1,
        af=1, pf=1, xmm0=first, xmm1=second,
    )  # fmt: skip
    return cpu.rcx, flags_of(cpu)


def test_equal_any_finds_the_first_character_of_a_set() -> None:
    assert implicit(0x00, text128(b"xyz"), text128(b"oh, lazy dogs")) == (6, "CF ZF SF")


def test_the_last_match_is_asked_for_with_bit_6() -> None:
    assert implicit(0x40, text128(b"xyz"), text128(b"oh, lazy dogs")) == (7, "CF ZF SF")


def test_no_match_answers_the_number_of_elements() -> None:
    assert implicit(0x00, text128(b"q"), text128(b"abcdefghijklmnop")) == (16, "SF")
    assert implicit(0x01, words128("q"), words128("abc")) == (8, "ZF SF")


def test_ranges_are_pairs_of_bounds() -> None:
    assert implicit(0x04, text128(b"09AF"), text128(b"xyz C 5")) == (4, "CF ZF SF")


def test_ranges_of_signed_bytes_order_by_sign() -> None:
    # From -2 to 3: 0xFE is inside as a signed byte and an empty range as an unsigned one
    assert implicit(0x06, text128(b"\xfe\x03"), text128(b"\x10\xff")) == (1, "CF ZF SF")
    assert implicit(0x04, text128(b"\xfe\x03"), text128(b"\x10\xff")) == (16, "ZF SF")


def test_equal_each_with_negative_polarity_finds_the_first_difference() -> None:
    assert implicit(0x18, text128(b"same text"), text128(b"same test")) == (7, "CF ZF SF")
    assert implicit(0x18, text128(b"same"), text128(b"same")) == (16, "ZF SF")
    assert implicit(0x18, text128(b"same"), text128(b"same!")) == (4, "CF ZF SF")


def test_masked_negative_polarity_looks_at_valid_elements_only() -> None:
    # imm8[5:4] = 11: elements behind the end of the text keep their result
    assert implicit(0x30, text128(b"a"), text128(b"aab")) == (2, "CF ZF SF")
    assert implicit(0x30, text128(b"ab"), text128(b"aab")) == (16, "ZF SF")


def test_equal_ordered_finds_a_substring_or_its_beginning_at_the_end() -> None:
    assert implicit(0x0C, text128(b"dog"), text128(b"a dolly, a dog")) == (11, "CF ZF SF")
    assert implicit(0x0C, text128(b"dog"), text128(b"abcdefghijklmndo")) == (14, "CF SF")
    assert implicit(0x0C, text128(b"dog"), text128(b"abcdefghijklmdo")) == (16, "ZF SF")


def test_an_empty_needle_is_everywhere() -> None:
    assert implicit(0x0C, 0, text128(b"abc")) == (0, "CF ZF SF OF")


def test_of_is_the_match_of_the_first_element() -> None:
    assert implicit(0x00, text128(b"a"), text128(b"abc")) == (0, "CF ZF SF OF")


@pytest.mark.parametrize(("length", "valid"), [(0, 0), (3, 3), (-3, 3), (16, 16), (-100, 16), (1 << 31, 16)])
def test_explicit_lengths_are_absolute_and_saturate(length: int, valid: int) -> None:
    cpu = execute(
        "pcmpestri xmm0, xmm1, 0x40", "660f3a61c140", cr4=CR4_OSFXSR, rax=1, rdx=length & 0xFFFF_FFFF,
        xmm0=0, xmm1=0,
    )  # fmt: skip
    assert cpu.rcx == (valid - 1 if valid else 16)
    assert flags_of(cpu) == (
        ("CF " if valid else "") + ("ZF " if valid < 16 else "") + "SF" + (" OF" if valid else "")
    )


def test_only_rex_w_takes_lengths_of_64_bits() -> None:
    registers = {"cr4": CR4_OSFXSR, "rax": 1, "rdx": 1 << 32 | 2, "xmm0": 0, "xmm1": 0}
    assert execute("pcmpestri xmm0, xmm1, 0x40", "660f3a61c140", **registers).rcx == 1
    assert execute("pcmpestri64 xmm0, xmm1, 0x40", "66480f3a61c140", **registers).rcx == 15


def test_masks_are_bits_or_whole_elements() -> None:
    registers = {"cr4": CR4_OSFXSR, "xmm0": words128("bd"), "xmm1": words128("abcd")}
    assert execute("pcmpistrm xmm0, xmm1, 0x1", "660f3a62c101", **registers).xmm0 == 0b1010
    assert execute("pcmpistrm xmm0, xmm1, 0x41", "660f3a62c141", **registers).xmm0 == 0xFFFF_0000_FFFF_0000
    registers |= {"rax": 2, "rdx": 3}
    assert execute("pcmpestrm xmm0, xmm1, 0x41", "660f3a60c141", **registers).xmm0 == 0xFFFF_0000
