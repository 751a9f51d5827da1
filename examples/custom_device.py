"""A device of your own: one Python class, on a port and in memory at once.

    python examples/custom_device.py

The guest asks the dice for three throws through the port and reads the sum from memory.
"""

from dataclasses import dataclass

from devices.base import Device
from devices.bus import BusKind, Window
from pysim_vm import AxVM

GUEST = """
        mov ecx, 3
throw:  in al, 0x70             ; one throw
        loop throw
        mov eax, [0xFEB00000]   ; the sum of all throws
        hlt
"""


@dataclass
class DiceState:
    """All that changes: a snapshot copies it."""

    thrown: int = 0
    total: int = 0


class Dice(Device):
    """Offset 0 throws, offset 16 tells the sum. The throws are fixed, so that every run is the same run."""

    name = "dice"
    state: DiceState

    def __init__(self, throws: list[int]) -> None:
        self.throws = throws
        self.reset()

    def read(self, offset: int, width: int) -> int:
        if offset == 16:
            return self.state.total
        throw = self.throws[self.state.thrown % len(self.throws)]
        self.state.thrown += 1
        self.state.total += throw
        return throw

    def reset(self) -> None:
        self.state = DiceState()


def main() -> int:
    vm = AxVM.from_asm(GUEST, mode="long")
    windows = (Window(BusKind.PORT, 0x70, 1), Window(BusKind.MMIO, 0xFEB00000, 4096, offset=16))
    vm.get_devices().add_device(Dice([6, 1, 4]), windows)
    reason = vm.run(1000)
    print(f"the guest stopped with {reason}; EAX = {vm.vcpu(0).regs.eax}")
    return vm.vcpu(0).regs.eax


if __name__ == "__main__":
    main()
