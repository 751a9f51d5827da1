"""Debian's unmodified cloud kernel."""

from __future__ import annotations

import pytest
from boots.sessions import run_until

from isa.exits import Budget
from pysim_vm.loader import LoadOptions
from pysim_vm.machine import vm_from_image
from tests.guests import guest

pytestmark = pytest.mark.guest

COMMAND_LINE = (
    "earlyprintk=ttyS0 console=ttyS0 reboot=t panic=-1 nokaslr cryptomgr.notests acpi=off pci=off noapic "
    "nolapic nopti noreplace-smp rodata=off random.trust_cpu=on"
)


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
