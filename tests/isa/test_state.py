"""Architectural state: what RESET leaves, RFLAGS as a number, and the hidden parts of segment registers."""

from __future__ import annotations

import random

import pytest

from isa.state import GPR_NAMES, M32, CpuState, FpuState, Segment

RFLAGS_BITS = 0x3F_7FD5  # every flag that exists; bit 1 always reads as 1


def test_reset_leaves_what_the_manual_lists() -> None:
    state = CpuState()
    assert (state.rip, state.cs.selector, state.cs.base, state.cs.limit) == (
        0xFFF0,
        0xF000,
        0xFFFF_0000,
        0xFFFF,
    )
    assert (state.rflags(), state.cr0, state.cr2, state.cr3, state.cr4) == (2, 0x6000_0010, 0, 0, 0)
    assert {name: getattr(state, name) for name in GPR_NAMES if getattr(state, name)} == {"rdx": 0x6F1}
    for segment in (state.ds, state.es, state.ss, state.fs, state.gs):
        assert (segment.selector, segment.base, segment.limit, segment.attributes) == (0, 0, 0xFFFF, 0x93)
    assert (state.ldtr.attributes, state.tr.attributes) == (0x82, 0x8B)
    assert (state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit) == (0, 0xFFFF, 0, 0xFFFF)
    assert (state.dr6, state.dr7, state.mxcsr, state.xcr0) == (0xFFFF_0FF0, 0x400, 0x1F80, 1)
    assert (state.fpu.control, state.fpu.status_word(), state.fpu.tags) == (0x40, 0, [0] * 8)


def test_reset_again_gives_the_same_state_but_keeps_counting_time() -> None:
    state = CpuState()
    fresh = {name: getattr(state, name) for name in (*GPR_NAMES, "rip", "cr0", "xmm3", "ymmh7")}
    for name in fresh:
        setattr(state, name, 0x1234)
    state.retired = 99
    state.msr[0x10] = 5
    state.power_on()
    assert {name: getattr(state, name) for name in fresh} == fresh
    assert (state.retired, state.msr) == (99, {})


def test_rflags_is_read_back_bit_for_bit_whatever_was_set() -> None:
    state = CpuState()
    rng = random.Random("rflags")
    for _ in range(300):
        value = rng.getrandbits(64)
        state.set_rflags_raw(value)
        assert state.rflags() == value & RFLAGS_BITS | 2


def test_flags_count_as_set_when_they_are_true() -> None:
    state = CpuState()
    state.set_rflags_raw(0)
    state.af = 16  # a definition may leave any true value
    state.zf = True
    state.of = state.sf = 1 << 63
    assert state.rflags() == 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11


@pytest.mark.parametrize("attributes", range(0x80, 0xA0))
def test_attributes_pack_and_unpack(attributes: int) -> None:
    segment = Segment("ds")
    for high in (0, 0xF000, 0x5000):
        segment.load_raw(0x23, 0x1000, 0xFFF, attributes | high)
        assert segment.attributes == attributes | high


@pytest.mark.parametrize(
    ("raw", "base", "limit", "attributes"),
    [
        (0x00CF_9B00_0000_FFFF, 0, M32, 0xC09B),
        (0x12AF_F334_5678_9ABC, 0x1234_5678, 0xF_9ABC << 12 | 0xFFF, 0xA0F3),
        (0x0040_9300_1000_0FFF, 0x1000, 0xFFF, 0x4093),
        (0xFF0F_82FF_FFFF_FFFF, M32, 0xF_FFFF, 0x0082),
    ],
)
def test_a_descriptors_scattered_fields_are_gathered(
    raw: int, base: int, limit: int, attributes: int
) -> None:
    segment = Segment("ds")
    segment.load_descriptor(0x10, raw)
    assert (segment.base, segment.limit, segment.attributes, segment.null) == (base, limit, attributes, False)


@pytest.mark.parametrize(
    ("attributes", "read_last", "write_last"),
    [
        (0x93, 0xFFF, 0xFFF),
        (0x91, 0xFFF, -1),
        (0x9B, 0xFFF, -1),
        (0x99, -1, -1),
        (0x97, -1, -1),
        (0x95, -1, -1),
    ],
)
def test_the_quick_bounds_are_open_only_where_a_plain_limit_decides(
    attributes: int, read_last: int, write_last: int
) -> None:
    segment = Segment("ds")
    segment.load_raw(0x10, 0, 0xFFF, attributes)
    assert (segment.read_last, segment.write_last) == (read_last, write_last)
    segment.load_null(0)
    assert (segment.read_last, segment.write_last, segment.base, segment.limit) == (-1, -1, 0, 0xFFF)


def test_a_real_mode_load_keeps_the_limit_and_a_v86_load_does_not() -> None:
    segment = Segment("ds")
    segment.load_raw(0x10, 0, M32, 0xC093)
    segment.load_real(0x1234)
    assert (segment.base, segment.limit, segment.write_last) == (0x1_2340, M32, M32)  # "unreal" mode
    segment.load_v86(0x1234)
    assert (segment.base, segment.limit, segment.attributes) == (0x1_2340, 0xFFFF, 0xF3)


def test_fninit_differs_from_reset_in_control_and_tags() -> None:
    fpu = FpuState()
    fpu.regs[2], fpu.top, fpu.status = 5, 3, 0x41
    assert fpu.status_word() == 0x1841
    fpu.init()
    assert (fpu.control, fpu.tags, fpu.top, fpu.status_word(), fpu.regs[2]) == (0x37F, [1] * 8, 0, 0, 5)
