"""SSE integer instructions: lane operations against one lane at a time, shuffles and shapes by example."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.state import CR4_OSFXSR
from tests.isa.machine import execute

X = 0x0F0E0D0C_0B0A0908_07060504_03020100  # byte i is i
Y = 0x1F1E1D1C_1B1A1918_17161514_13121110  # byte i is 16 + i
REGISTERS = st.integers(0, (1 << 128) - 1)


def run(text: str, code: str, a: int, b: int = 0) -> int:
    """XMM0 after the instruction, with XMM0 = a and XMM1 = b before."""
    return execute(text, code, cr4=CR4_OSFXSR, xmm0=a, xmm1=b).xmm0


def signed(lane: int, width: int) -> int:
    """Two's complement."""
    return lane - (lane >> width - 1 << width)


def clamp(low: int, value: int, high: int) -> int:
    """Saturation."""
    return max(low, min(high, value))


def s(function: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """A lane function of signed lanes."""
    return lambda a, b, width: function(signed(a, width), signed(b, width), width)


# text, code, lane width, f(a, b, width) for one lane; the result is cut to the width
LANE_OPERATIONS: list[tuple[str, str, int, Callable[[int, int, int], int]]] = [
    *((f"padd{n}", code, w, lambda a, b, w: a + b)
      for n, code, w in (("b", "fc", 8), ("w", "fd", 16), ("d", "fe", 32), ("q", "d4", 64))),
    *((f"psub{n}", code, w, lambda a, b, w: a - b)
      for n, code, w in (("b", "f8", 8), ("w", "f9", 16), ("d", "fa", 32), ("q", "fb", 64))),
    *((f"padds{n}", code, w, s(lambda a, b, w: clamp(-1 << w - 1, a + b, (1 << w - 1) - 1)))
      for n, code, w in (("b", "ec", 8), ("w", "ed", 16))),
    *((f"psubs{n}", code, w, s(lambda a, b, w: clamp(-1 << w - 1, a - b, (1 << w - 1) - 1)))
      for n, code, w in (("b", "e8", 8), ("w", "e9", 16))),
    *((f"paddus{n}", code, w, lambda a, b, w: min(a + b, (1 << w) - 1))
      for n, code, w in (("b", "dc", 8), ("w", "dd", 16))),
    *((f"psubus{n}", code, w, lambda a, b, w: max(a - b, 0))
      for n, code, w in (("b", "d8", 8), ("w", "d9", 16))),
    *((f"pavg{n}", code, w, lambda a, b, w: a + b + 1 >> 1)
      for n, code, w in (("b", "e0", 8), ("w", "e3", 16))),
    *((f"pcmpeq{n}", code, w, lambda a, b, w: -(a == b))
      for n, code, w in (("b", "74", 8), ("w", "75", 16), ("d", "76", 32), ("q", "3829", 64))),
    *((f"pcmpgt{n}", code, w, s(lambda a, b, w: -(a > b)))
      for n, code, w in (("b", "64", 8), ("w", "65", 16), ("d", "66", 32), ("q", "3837", 64))),
    *((f"pminu{n}", code, w, lambda a, b, w: min(a, b))
      for n, code, w in (("b", "da", 8), ("w", "383a", 16), ("d", "383b", 32))),
    *((f"pmaxu{n}", code, w, lambda a, b, w: max(a, b))
      for n, code, w in (("b", "de", 8), ("w", "383e", 16), ("d", "383f", 32))),
    *((f"pmins{n}", code, w, s(lambda a, b, w: min(a, b)))
      for n, code, w in (("b", "3838", 8), ("w", "ea", 16), ("d", "3839", 32))),
    *((f"pmaxs{n}", code, w, s(lambda a, b, w: max(a, b)))
      for n, code, w in (("b", "383c", 8), ("w", "ee", 16), ("d", "383d", 32))),
    *((f"pabs{n}", code, w, s(lambda a, b, w: abs(b)))
      for n, code, w in (("b", "381c", 8), ("w", "381d", 16), ("d", "381e", 32))),
    *((f"psign{n}", code, w, s(lambda a, b, w: a * ((b > 0) - (b < 0))))
      for n, code, w in (("b", "3808", 8), ("w", "3809", 16), ("d", "380a", 32))),
    ("pmullw", "d5", 16, lambda a, b, w: a * b),
    ("pmulhw", "e5", 16, s(lambda a, b, w: a * b >> 16)),
    ("pmulhuw", "e4", 16, lambda a, b, w: a * b >> 16),
    ("pmulhrsw", "380b", 16, s(lambda a, b, w: (a * b >> 14) + 1 >> 1)),
    ("pmulld", "3840", 32, lambda a, b, w: a * b),
    ("pmuludq", "f4", 64, lambda a, b, w: (a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF)),
    ("pmuldq", "3828", 64, lambda a, b, w: signed(a & 0xFFFF_FFFF, 32) * signed(b & 0xFFFF_FFFF, 32)),
    ("pmaddwd", "f5", 32, lambda a, b, w: sum(signed(a >> n & 0xFFFF, 16) * signed(b >> n & 0xFFFF, 16)
                                              for n in (0, 16))),
    ("pmaddubsw", "3804", 16, lambda a, b, w: clamp(-0x8000, sum((a >> n & 0xFF) * signed(b >> n & 0xFF, 8)
                                                                 for n in (0, 8)), 0x7FFF)),
    ("psadbw", "f6", 64, lambda a, b, w: sum(abs((a >> n & 0xFF) - (b >> n & 0xFF))
                                             for n in range(0, 64, 8))),
    ("pand", "db", 128, lambda a, b, w: a & b),
    ("pandn", "df", 128, lambda a, b, w: ~a & b),
    ("por", "eb", 128, lambda a, b, w: a | b),
    ("pxor", "ef", 128, lambda a, b, w: a ^ b),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "width", "lane"), LANE_OPERATIONS, ids=lambda p: str(p)[:9])
@settings(max_examples=30, deadline=None)
@given(a=REGISTERS, b=REGISTERS, same=st.integers(0, 0xFFFF))
def test_lanes_are_computed_one_by_one_without_disturbing_each_other(
    name: str, code: str, width: int, lane: Callable[[int, int, int], int], a: int, b: int, same: int
) -> None:
    for n in range(16):  # equal bytes here and there, or no comparison is ever true
        if same >> n & 1:
            b = b & ~(0xFF << 8 * n) | a & 0xFF << 8 * n
    mask = (1 << width) - 1
    expected = 0
    for at in range(0, 128, width):
        expected |= (lane(a >> at & mask, b >> at & mask, width) & mask) << at
    assert run(f"{name} xmm0, xmm1", f"660f{code}c1", a, b) == expected


@pytest.mark.parametrize(
    ("name", "immediate", "by_register", "width"),
    [("psllw", "71f0", "f1", 16), ("pslld", "72f0", "f2", 32), ("psllq", "73f0", "f3", 64),
     ("psrlw", "71d0", "d1", 16), ("psrld", "72d0", "d2", 32), ("psrlq", "73d0", "d3", 64),
     ("psraw", "71e0", "e1", 16), ("psrad", "72e0", "e2", 32)],
)  # fmt: skip
@settings(max_examples=30, deadline=None)
@given(a=REGISTERS, count=st.integers(0, 70))
def test_shifts_by_immediate_and_register_agree_with_single_lanes(
    name: str, immediate: str, by_register: str, width: int, a: int, count: int
) -> None:
    mask = (1 << width) - 1
    expected = 0
    for at in range(0, 128, width):
        lane = a >> at & mask
        if name.startswith("psll"):
            lane = lane << count & mask
        elif name.startswith("psrl"):
            lane >>= count
        else:
            lane = signed(lane, width) >> count & mask
        expected |= lane << at
    assert run(f"{name} xmm0, {count:#x}", f"660f{immediate}{count:02x}", a) == expected
    # Bits 127:64 of the count are ignored, all of 63:0 count
    assert run(f"{name} xmm0, xmm1", f"660f{by_register}c1", a, 0xABC << 64 | count) == expected


def test_a_shift_count_of_2_to_the_63_clears_every_lane() -> None:
    assert run("pslld xmm0, xmm1", "660ff2c1", X, 1 << 63) == 0


def test_byte_shifts_of_the_whole_register_end_at_16() -> None:
    assert run("psrldq xmm0, 0x4", "660f73d804", X) == X >> 32
    assert run("pslldq xmm0, 0x4", "660f73f804", X) == X << 32 & (1 << 128) - 1
    assert run("pslldq xmm0, 0xff", "660f73f8ff", X) == 0


def test_shuffles_take_two_bits_for_each_lane() -> None:
    assert run("pshufd xmm0, xmm1, 0x1b", "660f70c11b", 0, X) == 0x03020100_07060504_0B0A0908_0F0E0D0C
    assert run("pshuflw xmm0, xmm1, 0x1b", "f20f70c11b", 0, X) == 0x0F0E0D0C0B0A0908_0100030205040706
    assert run("pshufhw xmm0, xmm1, 0x1b", "f30f70c11b", 0, X) == 0x09080B0A0D0C0F0E_0706050403020100


def test_shufps_takes_two_lanes_of_each_operand() -> None:
    assert run("shufps xmm0, xmm1, 0x4e", "0fc6c14e", X, Y) == 0x17161514_13121110_0F0E0D0C_0B0A0908
    assert run("shufpd xmm0, xmm1, 0x1", "660fc6c101", X, Y) == 0x17161514_13121110_0F0E0D0C_0B0A0908


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [("punpcklbw", "60", 0x1707_1606_1505_1404_1303_1202_1101_1000),
     ("punpckhbw", "68", 0x1F0F_1E0E_1D0D_1C0C_1B0B_1A0A_1909_1808),
     ("punpcklwd", "61", 0x1716_0706_1514_0504_1312_0302_1110_0100),
     ("punpckhwd", "69", 0x1F1E_0F0E_1D1C_0D0C_1B1A_0B0A_1918_0908),
     ("punpckldq", "62", 0x17161514_07060504_13121110_03020100),
     ("punpckhdq", "6a", 0x1F1E1D1C_0F0E0D0C_1B1A1918_0B0A0908),
     ("punpcklqdq", "6c", 0x1716151413121110_0706050403020100),
     ("punpckhqdq", "6d", 0x1F1E1D1C1B1A1918_0F0E0D0C0B0A0908)],
)  # fmt: skip
def test_unpacking_interleaves_the_halves(text: str, code: str, expected: int) -> None:
    assert run(f"{text} xmm0, xmm1", f"660f{code}c1", X, Y) == expected


def test_packing_saturates_and_puts_the_source_above() -> None:
    words = 0x7FFF_8000_0100_00FF_0080_007F_FF80_FF7F
    assert run("packsswb xmm0, xmm1", "660f63c1", words, 0) == 0x7F80_7F7F_7F7F_8080
    assert run("packuswb xmm0, xmm1", "660f67c1", 0, words) == 0xFF00_FFFF_807F_0000 << 64
    dwords = 0x7FFFFFFF_80000000_00008000_FFFF8000
    assert run("packssdw xmm0, xmm1", "660f6bc1", dwords, 0) == 0x7FFF_8000_7FFF_8000
    assert run("packusdw xmm0, xmm1", "660f382bc1", dwords, 0) == 0xFFFF_0000_8000_0000


def test_pshufb_clears_bytes_whose_index_has_bit_7() -> None:
    order = 0x80_00_01_0F_1F_FF_02_03_00_00_00_00_00_00_00_07
    assert (
        run("pshufb xmm0, xmm1", "660f3800c1", Y, order) == 0x00_10_11_1F_1F_00_12_13_10_10_10_10_10_10_10_17
    )


def test_palignr_shifts_the_pair_and_ends_at_32() -> None:
    assert run("palignr xmm0, xmm1, 0x5", "660f3a0fc105", Y, X) == (Y << 128 | X) >> 40 & (1 << 128) - 1
    assert run("palignr xmm0, xmm1, 0x20", "660f3a0fc120", Y, X) == 0


def test_horizontal_sums_put_the_destination_below() -> None:
    a, b = 0x0008_0007_0006_0005_0004_0003_0002_0001, 0x7FFF_0001_8000_FFFF_0000_0000_0001_0001
    assert run("phaddw xmm0, xmm1", "660f3801c1", a, b) == 0x8000_7FFF_0000_0002_000F_000B_0007_0003
    assert run("phaddsw xmm0, xmm1", "660f3803c1", a, b) == 0x7FFF_8000_0000_0002_000F_000B_0007_0003
    assert run("phsubw xmm0, xmm1", "660f3805c1", a, b) == 0x8002_7FFF_0000_0000_FFFF_FFFF_FFFF_FFFF
    assert run("phsubsw xmm0, xmm1", "660f3807c1", a, b) == 0x8002_7FFF_0000_0000_FFFF_FFFF_FFFF_FFFF


def test_extensions_take_the_low_lanes() -> None:
    a = 0x80_7F_FF_01_8000_7FFF_FFFF_80FE
    assert run("pmovzxbw xmm0, xmm1", "660f3830c1", 0, a) == 0x0080_0000_007F_00FF_00FF_00FF_0080_00FE
    assert run("pmovsxbd xmm0, xmm1", "660f3821c1", 0, a) == 0xFFFFFFFF_FFFFFFFF_FFFFFF80_FFFFFFFE
    assert run("pmovsxwq xmm0, xmm1", "660f3824c1", 0, a) == 0xFFFFFFFFFFFFFFFF_FFFFFFFFFFFF80FE
    assert run("pmovzxdq xmm0, xmm1", "660f3835c1", 0, a) == 0x80007FFF_00000000_FFFF80FE


def test_phminposuw_answers_the_first_of_the_smallest_words() -> None:
    assert (
        run("phminposuw xmm0, xmm1", "660f3841c1", X, 0x9999_0003_8000_0003_FFFF_7FFF_0004_0005) == 0x4_0003
    )


def test_mpsadbw_slides_four_source_bytes_over_the_destination() -> None:
    # imm8 5: destination from byte 4, source bytes 4 to 7
    expected = 0
    for n in range(8):
        expected |= sum(abs((4 + n + j) - (16 + 4 + j)) for j in range(4)) << 16 * n
    assert run("mpsadbw xmm0, xmm1, 0x5", "660f3a42c105", X, Y) == expected


def test_blends_choose_by_immediate_or_by_xmm0() -> None:
    assert run("pblendw xmm0, xmm1, 0xa5", "660f3a0ec1a5", 0, (1 << 128) - 1) == (
        0xFFFF_0000_FFFF_0000_0000_FFFF_0000_FFFF
    )
    mask = 0x80_7F_FF_00 << 96
    assert run("pblendvb xmm0, xmm1, xmm0", "660f3810c1", mask, Y) == 0x1F7F1D00 << 96


def test_ptest_sets_zf_and_cf_and_clears_the_rest() -> None:
    flags = {"af": 1, "of": 1, "sf": 1, "pf": 1}
    cpu = execute("ptest xmm0, xmm1", "660f3817c1", cr4=CR4_OSFXSR, xmm0=0xF0, xmm1=0x0F, **flags)
    assert (bool(cpu.zf), bool(cpu.cf), cpu.af, cpu.of, cpu.sf, cpu.pf) == (True, False, 0, 0, 0, 0)
    cpu = execute("ptest xmm0, xmm1", "660f3817c1", cr4=CR4_OSFXSR, xmm0=0xFF, xmm1=0x0F)
    assert (bool(cpu.zf), bool(cpu.cf)) == (False, True)
