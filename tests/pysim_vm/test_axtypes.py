"""Flags, modes, states, masks and host addresses."""

from __future__ import annotations

import pytest

from pysim_vm.axtypes import (
    AddressSpacePolicy,
    CpuMask,
    GuestVirtAddr,
    HostPhysAddr,
    HostVirtAddr,
    MappingFlags,
    MemoryLayout,
    StopReason,
    VMBootProtocol,
    VMInterruptMode,
    VmMemMappingType,
    VMMemoryRegion,
    VMStatus,
    VmStatus,
    VMType,
)


def test_mapping_flags_have_axaddrspaces_bits() -> None:
    assert [flag.value for flag in MappingFlags] == [1, 2, 4, 8, 0x10, 0x20]
    assert MappingFlags(7) == MappingFlags.READ | MappingFlags.WRITE | MappingFlags.EXECUTE


def test_numbered_types_have_axvmconfigs_numbers() -> None:
    assert [(kind.name, kind.value) for kind in VMType] == [
        ("VMTHostVM", 0),
        ("VMTRTOS", 1),
        ("VMTLinux", 2),
    ]
    assert VMType.from_usize(2) is VMType.VMTLinux
    assert VMType.from_usize(3) is None
    assert [kind.value for kind in VmMemMappingType] == [0, 1, 2]


@pytest.mark.parametrize("text", ["no_irq", "no", "none", "NONE"])
def test_no_irq_has_three_spellings(text: str) -> None:
    assert VMInterruptMode.from_str(text) is VMInterruptMode.NoIrq


@pytest.mark.parametrize("text", ["emu", "emulated"])
def test_emulated_interrupts_have_two_spellings(text: str) -> None:
    assert VMInterruptMode.from_str(text) is VMInterruptMode.Emulated


@pytest.mark.parametrize("text", ["passthrough", "pt"])
def test_passthrough_has_a_short_spelling_in_both_enums(text: str) -> None:
    assert VMInterruptMode.from_str(text) is VMInterruptMode.Passthrough
    assert AddressSpacePolicy.from_str(text) is AddressSpacePolicy.Passthrough


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("direct", VMBootProtocol.Direct),
        ("kernel", VMBootProtocol.Direct),
        ("multiboot", VMBootProtocol.Multiboot),
        ("bios", VMBootProtocol.Multiboot),
        ("axvm-bios", VMBootProtocol.Multiboot),
        ("uefi", VMBootProtocol.Uefi),
        ("efi", VMBootProtocol.Uefi),
    ],
)
def test_boot_protocols_have_their_aliases(text: str, protocol: VMBootProtocol) -> None:
    assert VMBootProtocol.from_str(text) is protocol


def test_an_unknown_word_is_none() -> None:
    assert VMBootProtocol.from_str("pxe") is None


def test_the_older_status_shows_its_word_and_icon() -> None:
    assert [status.as_str_with_icon() for status in VMStatus] == [
        "🔄 loading",
        "📦 loaded",
        "🚀 running",
        "🛑 suspended",
        "⏹️ stopping",
        "💤 stopped",
    ]
    assert VMStatus.Loaded.as_str() == "loaded"


def test_every_status_of_the_lifecycle_has_an_older_name() -> None:
    assert len(VmStatus) == 9
    assert VmStatus.Ready.as_vm_status() is VMStatus.Loaded
    assert VmStatus.Paused.as_vm_status() is VMStatus.Suspended
    assert all(isinstance(status.as_vm_status(), VMStatus) for status in VmStatus)


def test_stop_reasons_compare_by_variant_and_text() -> None:
    assert StopReason.clean() == StopReason("Clean")
    assert StopReason.clean() != StopReason.forced()
    assert StopReason.fault("a") != StopReason.fault("b")
    assert StopReason.fault("a").is_fault()
    assert not StopReason.system_down().is_fault()


def test_stop_reasons_print_their_text() -> None:
    assert str(StopReason.system_down()) == "SystemDown"
    assert str(StopReason.fault("uart burns")) == "Fault: uart burns"


def test_host_addresses_print_their_kind() -> None:
    assert f"{HostPhysAddr(0x1000)} {HostVirtAddr(16)} {GuestVirtAddr(0)!r}" == "PA:0x1000 VA:0x10 GVA:0x0"
    assert HostPhysAddr(0x1000) + 1 == 0x1001


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_host_address_is_a_u64(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit 64 bits"):
        HostPhysAddr(value)


def test_a_memory_region_knows_whether_it_is_identical() -> None:
    assert VMMemoryRegion(0x1000, 0x1000, 0x2000).is_identical()
    region = VMMemoryRegion(gpa=0x1000, hva=0x5000, size=0x2000)
    assert not region.is_identical()
    assert region.layout == MemoryLayout(0x2000, 0x1000)


@pytest.mark.parametrize(("size", "align"), [(0, 16), (-1, 16), (16, 3), (16, 0)])
def test_a_layout_has_a_size_and_a_power_of_two(size: int, align: int) -> None:
    with pytest.raises(ValueError, match=r"layout|power of two"):
        MemoryLayout(size, align)


def test_a_cpu_mask_is_an_int_and_a_set() -> None:
    mask = CpuMask.from_ids([3, 0, 63])
    assert mask == 1 | 8 | 1 << 63
    assert list(mask) == [0, 3, 63]
    assert len(mask) == 3
    assert 3 in mask
    assert 4 not in mask
    assert 64 not in mask
    assert mask.get(63)
    assert repr(mask) == "CpuMask(0, 3, 63)"


def test_an_empty_cpu_mask_is_false_and_has_no_first_cpu() -> None:
    assert not CpuMask()
    assert CpuMask().first_index() is None
    assert CpuMask(0b1000).first_index() == 3


def test_cpu_masks_can_be_full_or_have_one_cpu() -> None:
    assert CpuMask.full() == (1 << 64) - 1
    assert CpuMask.full(2) == 3
    assert CpuMask.one_shot(5) == 32


@pytest.mark.parametrize("cpu", [-1, 64])
def test_a_cpu_outside_the_mask_is_refused(cpu: int) -> None:
    with pytest.raises(ValueError, match="outside 0-63"):
        CpuMask.from_ids([cpu])


@pytest.mark.parametrize("bits", [-1, 1 << 64])
def test_a_mask_has_64_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        CpuMask(bits)
