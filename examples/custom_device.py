"""A device of your own: one Python class, on a port and in memory at once.

    python examples/custom_device.py

The guest asks the dice for three throws through the port and reads the sum from memory.
"""

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


class Dice(Device):
    """Offset 0 throws, offset 16 tells the sum. The throws are fixed, so that every run is the same run."""

    name = "dice"

    def __init__(self, throws: list[int]) -> None:
        self.throws = throws
        self.state = {"next": 0, "sum": 0}

    def read(self, offset: int, width: int) -> int:
        if offset == 16:
            return self.state["sum"]
        throw = self.throws[self.state["next"] % len(self.throws)]
        self.state["next"] += 1
        self.state["sum"] += throw
        return throw

    def reset(self) -> None:
        self.state = {"next": 0, "sum": 0}


def main() -> int:
    vm = AxVM.from_asm(GUEST, mode="long")
    windows = (Window(BusKind.PORT, 0x70, 1), Window(BusKind.MMIO, 0xFEB00000, 4096, offset=16))
    vm.get_devices().add_device(Dice([6, 1, 4]), windows)
    reason = vm.run(1000)
    print(f"the guest stopped with {reason}; EAX = {vm.vcpu(0).regs.eax}")
    return vm.vcpu(0).regs.eax


if __name__ == "__main__":
    main()
