"""config/devices.py: the rows of [devices]."""

from __future__ import annotations

import pytest

from pysim_vm.axtypes import (
    AddressSpacePolicy,
)
from tests.pysim_vm.config_files import (
    BASE,
    DEVICES,
    KERNEL,
    devices_with,
    read,
    refusals,
)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "passthrough_ports = [[0x6000, 0]]",
            "vm.toml:14: devices.passthrough_ports[0].length: a length of 0 covers nothing; "
            "give the length of the range",
        ),
        (
            "passthrough_ports = [[0xfff0, 0x11]]",
            "vm.toml:14: devices.passthrough_ports[0].length: 0xfff0-0x10000 leaves the 65536 ports; "
            "end below 0x10000",
        ),
        (
            "passthrough_addresses = [[0xffff_ffff_ffff_f000, 0x2000]]",
            "vm.toml:14: devices.passthrough_addresses[0].length: 0xfffffffffffff000-0x10000000000000fff "
            "leaves the guest's address space; end below 0x7ffffffff000",
        ),
    ],
)
def test_an_empty_or_overflowing_range_is_refused(lines: str, message: str) -> None:
    assert refusals(BASE + KERNEL + DEVICES + lines + "\n") == [message]


def test_a_passthrough_device_without_length_is_refused() -> None:
    found = refusals(devices_with('emu_devices = []\npassthrough_devices = [["HPET", 0xfed0_0000]]\n'))
    assert found == [
        "vm.toml:13: devices.passthrough_devices[0].length: a length of 0 covers nothing; "
        "give the length of the range"
    ]


def test_an_unknown_device_type_is_refused_with_the_known_ones() -> None:
    found = refusals(devices_with('emu_devices = [["a", 0, 0, 0, 0x99, []]]\npassthrough_devices = []\n'))
    assert found[0].startswith("vm.toml:12: devices.emu_devices[0].emu_type: 0x99 is no device type; known")
    assert "0x2 Console" in found[0]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("virtualized", AddressSpacePolicy.Virtualized),
        ("virtual", AddressSpacePolicy.Virtualized),
        ("passthrough", AddressSpacePolicy.Passthrough),
        ("pt", AddressSpacePolicy.Passthrough),
    ],
)
def test_address_space_policies_have_aliases(text: str, policy: AddressSpacePolicy) -> None:
    crate = read(BASE + KERNEL + DEVICES + f'address_space_policy = "{text}"\n')
    assert crate.devices.address_space_policy is policy


def test_an_unknown_interrupt_mode_is_refused() -> None:
    found = refusals(BASE + KERNEL + DEVICES + 'interrupt_mode = "emulate"\n')
    assert 'did you mean "emulated"?' in found[0]


def test_excluded_devices_are_lists_of_strings() -> None:
    assert refusals(BASE + KERNEL + DEVICES + 'excluded_devices = ["/a", [1]]\n') == [
        'vm.toml:14: devices.excluded_devices[0]: "/a" is no list of strings; write a list of strings',
        "vm.toml:14: devices.excluded_devices[1]: an array of 1 is no list of strings; "
        "write a list of strings",
    ]


def test_a_virtual_device_needs_a_model() -> None:
    assert refusals(devices_with("[[devices.virtual]]\nirq = 1\n")) == [
        'vm.toml:12: devices.virtual[0].model: missing; add model = "uart16550"'
    ]
