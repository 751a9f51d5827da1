"""Debian's unmodified cloud kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from boots.initramfs import busybox_initramfs
from boots.kernel_options import BLACKLIST, COMMAND_LINE
from boots.sessions import run_until, type_line

from isa.exits import Budget, SystemDown
from pysim_vm.loader import LoadOptions
from pysim_vm.machine import vm_from_image
from tests.guests import guest

pytestmark = pytest.mark.guest

# The engine of the long boot: PYSIM_BOOT_ENGINE=step is the hardest proof and takes three times as long
ENGINE = os.environ.get("PYSIM_BOOT_ENGINE", "block")
ARTEFACTS = Path(__file__).resolve().parent.parent.parent / "artefacts"


def test_debian_kernel_prints_its_banner_and_goes_on_with_memory_and_time():
    vm = vm_from_image(guest("vmlinuz-cloud-amd64"), LoadOptions(cmdline=COMMAND_LINE), memory="128M")
    assert run_until(vm, "Linux version 6.", 25_000_000) is None
    assert isinstance(vm.run(10_000_000), Budget)
    log = vm.console.text()
    assert "BIOS-e820: [mem 0x0000000000100000-0x0000000007ffffff] usable" in log
    assert "tsc: Detected 1000.000 MHz processor" in log
    assert "Zone ranges:" in log


@pytest.mark.parametrize("entry", ["stub64", "stub32", "real"])
def test_debian_kernel_starts_through_each_entry_of_its_own_stub(entry: str):
    vm = vm_from_image(
        guest("vmlinuz-cloud-amd64"),
        LoadOptions(cmdline="earlyprintk=ttyS0 nokaslr", linux_entry=entry),
        memory="256M",
    )
    assert isinstance(vm.run(4_000_000), Budget)
    assert "KASLR disabled: 'nokaslr' on cmdline." in vm.console.text()
    assert vm.vcpu(0).cpu.mode_name() == "64-bit"


def test_debian_kernel_prints_its_banner_when_entered_by_its_pvh_note():
    vm = vm_from_image(
        guest("vmlinuz-cloud-amd64"), LoadOptions(cmdline=COMMAND_LINE, linux_entry="pvh"), memory="128M"
    )
    assert run_until(vm, "Linux version 6.", 30_000_000) is None


@pytest.mark.slow
def test_debian_kernel_boots_to_a_busybox_shell_that_answers_and_switches_off(tmp_path: Path):
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(busybox_initramfs(guest("busybox").read_bytes()))
    vm = vm_from_image(
        guest("vmlinuz-cloud-amd64"),
        LoadOptions(cmdline=COMMAND_LINE + BLACKLIST, initrd=initrd),
        memory="128M",
        engine=ENGINE,
    )
    try:
        assert run_until(vm, "initramfs is up", 230_000_000) is None
        assert run_until(vm, "# ", 10_000_000) is None
        type_line(vm, "echo the answer is $((6 * 7)); head -c 64 /proc/version")
        assert run_until(vm, "the answer is 42", 10_000_000) is None
        assert run_until(vm, "Linux version 6.1", 10_000_000) is None
        type_line(vm, "/bin/busybox reboot -f")
        assert isinstance(vm.run(30_000_000), SystemDown)
    finally:
        ARTEFACTS.mkdir(exist_ok=True)
        (ARTEFACTS / f"debian-console-{ENGINE}.log").write_text(vm.console.text())
