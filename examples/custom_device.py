"""A device of your own, on a port and in memory at once.

python examples/custom_device.py
"""

from pysim_vm import AxVM, Device

GUEST = """
        mov ecx, 3
throw:  in al, 0x70             ; one throw of the dice
        loop throw
        mov eax, [0xFEB00000]   ; the sum of all throws
        hlt
"""


class Dice(Device):
    name = "dice"
    state = 0  # the sum so far: all that changes, so all that a snapshot needs

    def read(self, offset: int, width: int) -> int:
        if offset == 16:
            return self.state
        throw = 1 + (self.state + 4) % 6  # no true chance: every run is the same run
        self.state += throw
        return throw


def main() -> int:
    vm, dice = AxVM.from_asm(GUEST), Dice()
    vm.get_devices().add_port_dev(dice, 0x70, 1)
    vm.get_devices().add_mmio_dev(dice, 0xFEB00000, 4096, offset=16)
    print(f"the guest stopped with {vm.run()}; EAX = {vm.vcpu(0).regs.eax}")
    return vm.vcpu(0).regs.eax


if __name__ == "__main__":
    main()
