"""config/conflicts.py: ranges, lines and IVC ranges that two owners want."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysim_vm.errors import ConfigError
from tests.pysim_vm.config_files import (
    ARCEOS_X86_64,
    LINUX_SMP1,
    devices_with,
    kernel_with,
    read,
    refusals,
)


def test_overlapping_regions_are_refused_and_both_named() -> None:
    assert refusals(kernel_with("", "[[0, 0x2000, 7, 0],\n  [0x1000, 0x1000, 7, 0]]")) == [
        "vm.toml:11: kernel.memory_regions[1]: RAM 0x1000-0x1fff overlaps RAM 0x0-0x1fff "
        "(kernel.memory_regions[0], line 10); move or shrink one of them"
    ]


@pytest.mark.parametrize(
    "regions",
    [
        "[[0, 0x2000, 7, 1], [0x1000, 0x2000, 7, 0]]",  # sticks out
        "[[0, 0x2000, 7, 0], [0, 0x1000, 7, 0]]",  # the outer one is not identical
        "[[0, 0x2000, 7, 1], [0, 0x1000, 7, 1]]",  # the inner one is identical too
        "[[0, 0x2000, 7, 0], [0, 0x1000, 7, 1]]",  # the wrong way round
        "[[0, 0x2000, 7, 1], [0, 0x1000, 7, 2]]",  # reserved memory is no scratch
        "[[0, 0x4000, 7, 1], [0, 0x2000, 7, 0], [0x1000, 0x1000, 7, 0]]",  # scratch over scratch
    ],
)
def test_only_map_alloc_wholly_inside_map_identical_may_overlap(regions: str) -> None:
    found = refusals(kernel_with("", regions))
    assert len(found) == 1
    assert "overlaps" in found[0]


def test_two_scratch_regions_may_lie_side_by_side() -> None:
    crate = read(kernel_with("", "[[0, 0x4000, 7, 1], [0, 0x1000, 7, 0], [0x1000, 0x1000, 7, 0]]"))
    assert len(crate.kernel.memory_regions) == 3


def test_touching_regions_are_no_overlap() -> None:
    read(kernel_with("", "[[0x1000, 0x20_0000, 7, 0], [0, 0x1000, 7, 0]]"))


def test_emulated_devices_on_the_same_ports_are_refused() -> None:
    text = devices_with(
        'emu_devices = [["com1", 0x3f8, 8, 4, 2, []],\n["pit", 0x3ff, 1, 0, 0x24, []]]\n'
        "passthrough_devices = []\n"
    )
    assert refusals(text) == [
        'vm.toml:13: devices.emu_devices[1]: emulated device "pit" 0x3ff-0x3ff overlaps '
        'emulated device "com1" 0x3f8-0x3ff (devices.emu_devices[0], line 12); move or shrink one of them'
    ]


def test_ports_and_memory_are_different_spaces() -> None:
    crate = read(
        devices_with('emu_devices = [["com1", 0x3f8, 8, 4, 2, []]]\npassthrough_devices = []\n')
    )  # RAM starts at 0
    assert len(crate.devices.emu_devices) == 1


@pytest.mark.parametrize(
    ("lines", "owners"),
    [
        (
            'emu_devices = [["ioapic", 0x1000, 0x1000, 0, 0x23, []]]\npassthrough_devices = []',
            ("ioapic", "RAM"),
        ),
        ('emu_devices = []\npassthrough_devices = [["x", 0x1000, 0x1000, 0x1000, 0]]', ('"x"', "RAM")),
        (
            'emu_devices = [["i", 0xfec0_0000, 0x1000, 0, 0x23, []]]\n'
            'passthrough_devices = [["x", 0xfec0_0800, 0xfec0_0800, 4, 0]]',
            ('"x"', '"i"'),
        ),
        (
            "emu_devices = []\npassthrough_devices = []\npassthrough_addresses = [[0x1000, 0x1000]]",
            ("addresses 0x1000-0x1fff", "RAM"),
        ),
        (
            'emu_devices = [["c", 0x3f8, 8, 0, 2, []]]\npassthrough_devices = []\n'
            "passthrough_ports = [[0x3f0, 9]]",
            ("ports 0x3f0-0x3f8", '"c"'),
        ),
        (
            "emu_devices = []\npassthrough_devices = []\npassthrough_ports = [[0x10, 9], [0x18, 1]]",
            ("ports 0x10-0x18", "ports 0x18-0x18"),
        ),
        (
            'emu_devices = [["c", 0x3f8, 8, 0, 2, []]]\npassthrough_devices = []\n'
            '[[devices.virtual]]\nmodel = "uart16550"\nports = [0x3f8, 8]',
            ('"uart16550"', '"c"'),
        ),
    ],
)
def test_a_conflict_names_both_owners(lines: str, owners: tuple[str, str]) -> None:
    found = refusals(devices_with(lines + "\n"))
    assert len(found) == 1
    assert "overlaps" in found[0]
    assert all(owner in found[0] for owner in owners)


def test_passthrough_ranges_merge_if_they_lead_to_the_same_place() -> None:
    read(
        devices_with(
            "emu_devices = []\n"
            'passthrough_devices = [["a", 0xd000_0000, 0xd000_0000, 0x2000, 0]]\n'
            "passthrough_addresses = [[0xd000_1000, 0x2000]]\n"
        )
    )


def test_passthrough_ranges_that_lead_elsewhere_are_refused() -> None:
    found = refusals(
        devices_with(
            "emu_devices = []\n"
            'passthrough_devices = [["a", 0xd000_0000, 0xe000_0000, 0x2000, 0]]\n'
            "passthrough_addresses = [[0xd000_1000, 0x2000]]\n"
        )
    )
    assert len(found) == 1
    assert "overlaps" in found[0]


def test_two_emulated_devices_cannot_have_one_interrupt_line() -> None:
    text = devices_with(
        'emu_devices = [["a", 0x3f8, 8, 4, 2, []], ["b", 0x2f8, 8, 4, 2, []]]\npassthrough_devices = []\n'
    )
    assert refusals(text) == [
        'vm.toml:12: devices.emu_devices[1]: "b" wants interrupt line 4 of "a" '
        "(devices.emu_devices[0], line 12); give one of them another line"
    ]


def test_a_virtual_device_cannot_take_an_emulated_devices_line() -> None:
    text = devices_with(
        'emu_devices = [["a", 0x3f8, 8, 4, 2, []]]\npassthrough_devices = []\n'
        '[[devices.virtual]]\nmodel = "b"\nirq = 4\n'
    )
    assert '"b" wants interrupt line 4 of "a"' in refusals(text)[0]


def test_passthrough_rows_share_a_line_as_axvisors_own_files_do() -> None:
    rows = [row.irq_id for row in read(ARCEOS_X86_64).devices.passthrough_devices]
    assert rows == [1, 1, 1]


def test_a_passthrough_line_next_to_an_emulated_one_is_a_warning() -> None:
    crate = read(
        devices_with(
            'emu_devices = [["a", 0x3f8, 8, 4, 2, []]]\n'
            'passthrough_devices = [["x", 0xd000_0000, 0xd000_0000, 0x1000, 4]]\n'
        )
    )
    assert '"x" shares interrupt line 4 with emulated "a"' in [each.message for each in crate.warnings]


def test_line_0_is_no_line() -> None:
    assert len(read(LINUX_SMP1).devices.emu_devices) == 3  # all with line 0


def test_an_unaligned_ivc_range_is_refused_and_a_second_one_a_warning() -> None:
    assert (
        "is not whole pages"
        in refusals(
            devices_with('emu_devices = [["i", 0xd000_0000, 0x800, 0, 0xa, []]]\npassthrough_devices = []\n')
        )[0]
    )
    crate = read(
        devices_with(
            'emu_devices = [["i", 0xd000_0000, 0x1000, 0, 0xa, []], '
            '["j", 0xd100_0000, 0x1000, 0, 0xa, []]]\npassthrough_devices = []\n'
        )
    )
    assert crate.warnings[0].message.startswith('"j" is ignored: "i" holds')


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from([0, 1, 2])), max_size=6))
def test_overlaps_are_found_exactly_when_a_pair_overlaps(rows: list[tuple[int, int, int]]) -> None:
    def contradict(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        (a, size_a, map_a), (b, size_b, map_b) = one, other
        if a + size_a <= b or b + size_b <= a:
            return False
        a_in_b = b <= a and a + size_a <= b + size_b
        b_in_a = a <= b and b + size_b <= a + size_a
        return not ((map_a == 0 and map_b == 1 and a_in_b) or (map_b == 0 and map_a == 1 and b_in_a))

    expected = any(contradict(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))
    regions = ", ".join(f"[{a * 0x1000}, {size * 0x1000}, 7, {kind}]" for a, size, kind in rows)
    try:
        read(kernel_with("", f"[{regions}]"))
        found = False
    except ConfigError as error:
        found = True
        assert all("overlaps" in problem.message for problem in error.problems)
    assert found == expected
