"""A device of your own: on a port, in memory and behind an MSR at once.

python examples/custom_device.py
"""

from pysim_vm import AxVM, Device


class Dice(Device):
    name = "dice"
    total = 0

    def read(self, offset: int, width: int) -> int:
        if offset == 0:  # the port: throw
            self.total += 1 + (self.total + 4) % 6  # no true chance: every run is the same run
        return self.total

    def write(self, offset: int, width: int, value: int) -> None:
        self.total = value


dice = Dice()
vm = AxVM.from_asm("""
        mov ecx, 3
throw:  in eax, 0x70            ; three throws
        loop throw
        mov ebx, [0xFEB00000]   ; the total so far, from memory
        mov ecx, 0xC0010000     ; a machine-specific register
        rdmsr                   ; EDX:EAX := the total once more
        hlt
""")
vm.get_devices().add_port_dev(dice, 0x70, 4)
vm.get_devices().add_mmio_dev(dice, 0xFEB00000, 0x1000, offset=16)
vm.get_devices().add_sys_reg_dev(dice, 0xC0010000, offset=32)
print(vm.run(), "EBX =", vm.vcpu(0).regs.ebx, "EAX =", vm.vcpu(0).regs.eax)
