"""Mixes of accesses as guests: what stands in the loop, and that its length is what the machine counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.assembler import assemble
from pysim_vm.benchmark.guest import ACCESS_KINDS, MEMORY_KINDS, PORT_KINDS, STRING_KINDS, Access, guest_of
from pysim_vm.benchmark.run import model_of
from pysim_vm.benchmark.workload import Workload, workload_from_toml

DEVICES = """
summary = "all latches"
count = 3
[[access]]
kind = "hypercall"
[devices]
emu_devices = [
    ["port_latch", 0x300, 16], ["mmio_latch", 0x80_0000, 0x1000], ["msr_latch", 0x1234, 2],
]
"""
EXITS_OF = {  # the exits of one access, whatever its width
    "io_read": {"io_read": 1},
    "io_write": {"io_write": 1},
    "io_read_string": {"io_read": 1},
    "io_write_string": {"io_write": 1},
    "mmio_read": {"mmio_read": 1},
    "mmio_write": {"mmio_write": 1},
    "mmio_modify": {"mmio_read": 1, "mmio_write": 1},
    "sys_reg_read": {"sys_reg_read": 1},
    "sys_reg_write": {"sys_reg_write": 1},
    "hypercall": {"hypercall": 1},
}


def lines(*mix: Access) -> list[str]:
    """The guest of a mix, line by line."""
    return [line.strip() for line in guest_of(mix).text.splitlines()]


def workload_of(mix: list[Access], count: int) -> Workload:
    """A workload of a mix on a machine with latches everywhere."""
    guest = guest_of(mix)
    plain = workload_from_toml(DEVICES, "mix")
    return replace(
        plain, code=assemble(guest.text, bits=64, origin=plain.base), mix=guest, text=guest.text, count=count,
        instructions=guest.before + guest.round * count,
    )  # fmt: skip


def test_a_loop_of_one_out_is_out_and_jmp() -> None:
    assert lines(Access("io_write", 0x300)) == ["mov edx, 0x300", "loop:", "out dx, al", "jmp loop"]


def test_a_port_is_loaded_each_time_where_rdmsr_spoils_edx() -> None:
    mix = (Access("io_read", 0x300), Access("sys_reg_read", 0x1234, (8,)), Access("io_read", 0x300))
    assert lines(*mix) == [
        "mov ecx, 0x1234", "loop:", "mov edx, 0x300", "in al, dx", "rdmsr", "mov edx, 0x300", "in al, dx",
        "jmp loop",
    ]  # fmt: skip


def test_a_register_number_is_loaded_each_time_where_a_string_spoils_ecx() -> None:
    mix = (Access("io_write_string", 0x300, (2,), elements=7), Access("sys_reg_write", 0x1234, (8,)))
    assert lines(*mix)[3:] == [
        "mov esi, 0x40000", "mov ecx, 0x7", "rep outsw", "mov ecx, 0x1234", "wrmsr", "jmp loop",
    ]  # fmt: skip


def test_widths_and_times_repeat_an_access() -> None:
    assert lines(Access("mmio_modify", 0x80_0000, (1, 8), times=2))[2:-1] == [
        "add byte [rbx], 1", "add qword [rbx], 1", "add byte [rbx], 1", "add qword [rbx], 1",
    ]  # fmt: skip


def accesses() -> st.SearchStrategy[Access]:
    """Any row that a file could have."""

    def row(kind: str, place: int, widths: list[int], times: int, elements: int) -> Access:
        address = (
            0x300 + place if kind in PORT_KINDS else 0x80_0000 + 16 * place if kind in MEMORY_KINDS else 0
        )
        if kind.startswith("sys_reg"):
            address = 0x1234 + place % 2
        allowed = [w for w in widths if w < 8 or kind in MEMORY_KINDS] or [1]
        return Access(kind, address, tuple(allowed), times, elements if kind in STRING_KINDS else 1)

    return st.builds(
        row, st.sampled_from(ACCESS_KINDS), st.integers(0, 8),
        st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 9),
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(mix=st.lists(accesses(), min_size=1, max_size=6), count=st.integers(1, 4))
def test_a_mix_takes_the_exits_it_lists_in_the_instructions_it_promises(
    mix: list[Access], count: int
) -> None:
    workload = workload_of(mix, count)
    model = model_of(workload, "step")
    assert model.instructions == workload.instructions
    expected: dict[str, int] = {}
    for access in mix:
        for kind, exits in EXITS_OF[access.kind].items():
            expected[kind] = expected.get(kind, 0) + exits * access.length * access.elements * count
    assert model.exits == expected


@pytest.mark.parametrize("kind", ACCESS_KINDS)
def test_every_kind_of_access_assembles_to_an_exit(kind: str) -> None:
    address = {"p": 0x300, "m": 0x80_0000, "s": 0x1234}.get(kind[0], 0x300)
    model = model_of(workload_of([Access(kind, address)], 2))
    assert model.exits == {name: 2 * exits for name, exits in EXITS_OF[kind].items()}
