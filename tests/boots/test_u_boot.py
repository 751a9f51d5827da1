"""U-Boot's ROMs, unmodified: real, protected and long mode up to a shell that answers."""

from __future__ import annotations

import zlib

import pytest
from boots.sessions import run_until, type_line

from pysim_vm.machine import vm_from_image
from tests.guests import guest

pytestmark = pytest.mark.guest


def at_prompt(rom: str):
    """A U-Boot whose countdown was stopped by a key."""
    vm = vm_from_image(guest(rom), memory="128M")
    assert run_until(vm, "Hit any key to stop autoboot", 30_000_000) is None
    type_line(vm, "")
    assert run_until(vm, "=> ", 30_000_000) is None
    return vm


def test_u_boot_x86_64_reaches_its_prompt_in_long_mode_and_answers_crc32_and_md():
    vm = at_prompt("u-boot-x86_64.rom")
    assert "U-Boot SPL" in vm.console.text()
    assert vm.vcpu(0).cpu.mode_name() == "64-bit"
    vm.write_to_guest(0x100_0000, bytes(range(256)))
    type_line(vm, "crc32 1000000 100")
    expected = f"{zlib.crc32(bytes(range(256))):08x}"
    assert run_until(vm, f"==> {expected}", 10_000_000) is None
    type_line(vm, "md.b 1000000 10")
    assert run_until(vm, "01000000: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f", 10_000_000) is None


def test_u_boot_x86_reaches_its_banner_in_protected_mode():
    vm = vm_from_image(guest("u-boot-x86.rom"), memory="128M")
    assert run_until(vm, "U-Boot 20", 5_000_000) is None
    assert vm.vcpu(0).cpu.mode_name() == "32-bit protected"
