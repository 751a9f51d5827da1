"""layout.py: the addresses of one boot must not collide."""

from itertools import pairwise

import pysim_vm.layout as at


def test_every_constant_is_a_non_negative_number() -> None:
    values = {name: value for name, value in vars(at).items() if name.isupper()}
    assert all(isinstance(value, int) and value >= 0 for value in values.values())


def test_the_structures_of_a_linux_boot_are_disjoint_and_ascending() -> None:
    ranges = [
        (at.IVT_BASE, at.IVT_SIZE),
        (at.BIOS_DATA_AREA, at.BIOS_DATA_AREA_SIZE),
        (at.BOOT_GDT_BASE, at.BOOT_GDT_SIZE),
        (at.BOOT_IDT_BASE, at.BOOT_IDT_LIMIT + 1),
        (at.ZERO_PAGE, at.PAGE_SIZE),
        (at.BOOT_STACK_BASE, at.PAGE_SIZE),
        (at.PAGE_TABLES, 6 * at.PAGE_SIZE),
        (at.LINUX_SETUP, at.LINUX_SETUP_HEAP_END),
        (at.COMMAND_LINE, 2048),
        (at.EBDA_BASE, at.KIB),
        (at.VGA_WINDOW_BASE, at.VGA_WINDOW_SIZE),
    ]
    assert all(base + size <= following for (base, size), (following, _) in pairwise(ranges))


def test_the_chips_below_4_gib_are_disjoint_and_outside_ram() -> None:
    ranges = [
        (at.PCI_HOLE_BASE, 0),
        (at.VIRTIO_MMIO_BASE, 32 * at.VIRTIO_MMIO_STRIDE),
        (at.PCI_MMCONFIG_BASE, at.PCI_MMCONFIG_SIZE),
        (at.IO_APIC_BASE, at.IO_APIC_SIZE),
        (at.HPET_BASE, at.HPET_SIZE),
        (at.TPM_BASE, at.TPM_SIZE),
        (at.LOCAL_APIC_BASE, at.LOCAL_APIC_SIZE),
        (at.ROM_TOP - at.ROM_SIZE_MAX, at.ROM_SIZE_MAX),
    ]
    assert all(base + size <= following for (base, size), (following, _) in pairwise(ranges))


def test_the_ports_that_guests_know_are_where_guests_look() -> None:
    assert (at.COM1_PORT, at.COM1_IRQ) == (0x3F8, 4)
    assert (at.PIC_MASTER_PORT, at.PIC_SLAVE_PORT, at.PIT_PORT, at.RTC_PORT) == (0x20, 0xA0, 0x40, 0x70)
    assert (at.I8042_DATA_PORT, at.I8042_COMMAND_PORT) == (0x60, 0x64)
    assert (at.DEBUGCON_PORT, at.E9_PORT, at.DEBUG_EXIT_PORT) == (0x402, 0xE9, 0xF4)
    assert (at.ACPI_PM_BASE, at.ACPI_PM_CONTROL_PORT, at.PM_TIMER_PORT) == (0x600, 0x604, 0x608)
    assert at.FW_CFG_PORT == 0x510
