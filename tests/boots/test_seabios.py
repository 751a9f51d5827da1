"""SeaBIOS, unmodified, from the reset vector."""

from __future__ import annotations

import pytest
from boots.sessions import screen

from isa.assembler import assemble
from isa.exits import SystemDown
from pysim_vm.machine import vm_from_image
from tests.guests import guest

pytestmark = pytest.mark.guest

BOOT_SECTOR = """
start:  mov si, message
        cld
next:   lodsb
        test al, al
        jz done
        mov ah, 0x0e            ; INT 10h teletype
        mov bx, 7
        int 0x10
        jmp next
done:   mov dx, 0x604           ; ACPI power-off
        mov ax, 0x2000
        out dx, ax
        hlt
message: db "Hello from a boot sector", 13, 10, 0
        times 510 - ($ - $$) db 0
        dw 0xaa55
"""


def test_seabios_goes_through_post_to_its_boot_attempt():
    vm = vm_from_image(guest("bios.bin"), memory="64M")
    vm.run(7_500_000)
    log = vm.debug_console.text()
    assert log.startswith("SeaBIOS (version")
    assert "Found QEMU fw_cfg" in log
    assert "e820 map has" in log
    assert "No bootable device" in log


def test_seabios_boots_a_boot_sector_that_prints_through_int_10h(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(assemble(BOOT_SECTOR, bits=16, origin=0x7C00) + bytes(1 << 20))
    before = disk.read_bytes()
    vm = vm_from_image(
        guest("bios.bin"), memory="64M", disks=[disk], roms={"vgaroms/vgabios.bin": guest("vgabios.bin")}
    )
    assert isinstance(vm.run(10_000_000), SystemDown)
    assert "SeaBIOS (version" in screen(vm)
    assert "Booting from Hard Disk..." in screen(vm)
    assert "Hello from a boot sector" in screen(vm)
    assert disk.read_bytes() == before
