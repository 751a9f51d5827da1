"""memtest86+, unmodified, up to its menu on the VGA text screen."""

from __future__ import annotations

import pytest
from boots.sessions import SLICE, screen

from pysim_vm.loader import LoadOptions
from pysim_vm.machine import vm_from_image
from tests.guests import guest

pytestmark = pytest.mark.guest


def test_memtest_measures_the_machine_and_shows_its_menu():
    vm = vm_from_image(
        guest("memtest86+x64.bin"), LoadOptions(text_screen=True), memory="32M", engine="block"
    )
    while "to start testing" not in screen(vm) and vm.vcpu(0).retired < 16_000_000:
        vm.run(5 * SLICE)
    shown = screen(vm)
    assert "Memtest86+ v6.10" in shown
    assert "pysim_vm virtual CPU" in shown
    assert "<F1> Configuration" in shown
    assert "<Enter> to start testing" in shown
    assert "L1 Cache:   32KB" in shown
