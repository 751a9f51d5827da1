"""config/effects.py: no key is ignored in silence, and what cannot be is refused."""

from __future__ import annotations

import pytest

from pysim_vm.config import PysimConfig
from pysim_vm.config.effects import board_ports, board_windows
from pysim_vm.vm import AxVM, AxVMConfig
from tests.pysim_vm.config_files import BASE, DEVICES, KERNEL, devices_with, kernel_with, read, refusals

UEFI = 'boot_protocol = "uefi"\nuefi_firmware_path = "f"\nbios_load_addr = 0xffc0_0000\n'


def warned(text: str) -> list[tuple[str, str]]:
    """Key and message of each warning."""
    return [(warning.key, warning.message) for warning in read(text).warnings]


def test_a_second_cpu_is_refused_with_its_line() -> None:
    assert refusals((BASE + KERNEL + DEVICES).replace("cpu_num = 1", "cpu_num = 2")) == [
        "vm.toml:5: base.cpu_num: 2 vCPUs are too many: this machine has one CPU for now; write cpu_num = 1"
    ]


def test_files_for_other_architectures_are_not_judged_by_this_machine() -> None:
    text = (BASE + KERNEL + DEVICES).replace("cpu_num = 1", "cpu_num = 2") + 'excluded_devices = [["/a"]]\n'
    assert read(text, arch="riscv64").warnings == ()


def test_a_physical_id_that_the_guest_does_not_see_is_a_warning() -> None:
    text = (BASE + KERNEL + DEVICES).replace("cpu_num = 1", "cpu_num = 1\nphys_cpu_ids = [4]")
    assert warned(text) == [("base.phys_cpu_ids", "only the host sees this id; the guest's APIC id stays 0")]


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        ('dtb_path = "d"', "kernel.dtb_path", "an x86 guest has no device tree"),
        ("dtb_load_addr = 0x9000", "kernel.dtb_load_addr", "an x86 guest has no device tree"),
        ('image_location = "memory"', "kernel.image_location", "they are read from their paths"),
        ("ramdisk_load_addr = 0x9000", "kernel.ramdisk_load_addr", "no effect without ramdisk_path"),
        ("bios_load_addr = 0x8000", "kernel.bios_load_addr", 'no effect with boot_protocol = "direct"'),
        (
            'bios_path = "b"\nbios_load_addr = 0x8000\ncmdline = "x"',
            "kernel.cmdline",
            'no effect with boot_protocol = "multiboot"',
        ),
        (
            'boot_protocol = "multiboot"\nuefi_firmware_path = "f"',
            "kernel.uefi_firmware_path",
            'no effect with boot_protocol = "multiboot"',
        ),
    ],
)
def test_a_kernel_key_without_an_effect_is_a_warning(line: str, key: str, words: str) -> None:
    found = warned(kernel_with(line))
    assert [name for name, _ in found] == [key]
    assert words in found[0][1]


def test_an_uncached_region_is_a_warning() -> None:
    found = warned(kernel_with("", "[[0, 0x100_0000, 7, 0], [0x100_0000, 0x1000, 0x27, 0]]"))
    assert [key for key, _ in found] == ["kernel.memory_regions[1].flags"]


def test_a_firmware_has_no_use_for_a_kernel_and_says_so_for_each_key() -> None:
    text = kernel_with(UEFI + 'bios_path = "b"\ncmdline = "x"\nramdisk_path = "r"')
    assert [key for key, _ in warned(text)] == [
        "kernel.entry_point", "kernel.kernel_path", "kernel.kernel_load_addr", "kernel.bios_path",
        "kernel.cmdline", "kernel.ramdisk_path",
    ]  # fmt: skip


def test_a_firmware_at_the_reset_vector_without_a_kernel_is_no_warning() -> None:
    kernel = "[kernel]\nentry_point = 0xffff_fff0\n" + UEFI
    assert warned(BASE + kernel + '[pysim]\nmemory = "16M"\nplatform = "pc"\n') == []


def test_without_a_board_the_boards_keys_are_warnings() -> None:
    text = (
        kernel_with('disk_path = "d"')
        + "[pysim]\nvga = true\ndebug_exit_port = 0x501\nrtc_start = 2026-01-01\n"
    )
    assert [key for key, _ in warned(text)] == [
        "kernel.disk_path", "pysim.vga", "pysim.debug_exit_port", "pysim.rtc_start",
    ]  # fmt: skip
    assert warned(text + 'platform = "pc"\n') == []


def test_a_passthrough_row_that_begins_on_a_chip_of_the_board_is_satisfied() -> None:
    rows = (
        "emu_devices = []\n"
        'passthrough_devices = [["IO APIC", 0xfec0_0000, 0xfec0_0000, 0x1000, 1]]\n'
        "passthrough_addresses = [[0xfee0_0000, 0x1000]]\n"
        "passthrough_ports = [[0x3f8, 8]]\n"
    )
    assert warned(devices_with(rows)) == []
    assert [key for key, _ in warned(devices_with(rows) + '[pysim]\nplatform = "pc"\n')] == [
        "devices.passthrough_devices[0]",
        "devices.passthrough_addresses",
    ]  # fmt: skip  (no APIC in that CPU)
    assert len(warned(devices_with(rows) + "[pysim]\n")) == 3


def test_a_warning_about_many_ranges_names_three_and_counts_the_rest() -> None:
    rows = ", ".join(f"[{0x8000_0000 + 0x1000 * n:#x}, 0x1000]" for n in range(5))
    text = devices_with(f"emu_devices = []\npassthrough_devices = []\npassthrough_addresses = [{rows}]\n")
    assert warned(text) == [
        (
            "devices.passthrough_addresses",
            "passthrough has no effect yet: the guest finds nothing at 0x80000000-0x80000fff, "
            "0x80001000-0x80001fff, 0x80002000-0x80002fff and 2 more",
        )
    ]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('passthrough_devices = [["/pci"]]', "devices.passthrough_devices[0]"),
        ('passthrough_devices = []\nexcluded_devices = [["/a"]]', "devices.excluded_devices"),
        ('passthrough_devices = []\ninterrupt_mode = "pt"', "devices.interrupt_mode"),
        ('passthrough_devices = []\ninterrupt_mode = "no_irq"', "devices.interrupt_mode"),
        ('passthrough_devices = []\naddress_space_policy = "pt"', "devices.address_space_policy"),
    ],
)
def test_what_would_need_the_host_is_a_warning(line: str, key: str) -> None:
    assert [name for name, _ in warned(devices_with("emu_devices = []\n" + line + "\n"))] == [key]


def test_emulated_interrupts_and_a_virtualized_address_space_are_what_the_machine_has() -> None:
    text = BASE + KERNEL + DEVICES + 'interrupt_mode = "emu"\naddress_space_policy = "virtualized"\n'
    assert warned(text) == []


def test_an_unknown_model_is_a_warning_with_a_suggestion() -> None:
    text = devices_with("[[devices.virtual]]\nmodel = 'debug-exit'\nports = [0x501, 4]\n")
    assert [str(warning) for warning in read(text).warnings] == [
        'vm.toml:13: devices.virtual[0].model: "debug-exit" is no device of this machine; only a registry of '
        'your own builds it; did you mean "debug_exit"?'
    ]


def test_the_boards_windows_and_ports_are_those_of_a_real_board() -> None:
    pysim = PysimConfig.from_keywords({"platform": "pc", "cpu_features": ["+apic"], "memory": "1M"})
    vm = AxVM(AxVMConfig(1, "board", memory_regions=pysim.ram_regions(), pysim=pysim))
    devices = vm.get_devices()
    covered = {gpa for base, length in board_windows(pysim) for gpa in range(base, base + length, 0x1000)}
    assert covered == {
        gpa for entry in devices.mmio for gpa in range(entry.base, entry.base + entry.length, 0x1000)
    }
    ports = {port for base, length in board_ports(pysim) for port in range(base, base + length)}
    assert ports == {port for entry in devices.port for port in range(entry.base, entry.base + entry.length)}
    assert board_windows(PysimConfig()) == board_ports(PysimConfig()) == []
