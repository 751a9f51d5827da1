"""Every VM exit of a guest, with the device that answered it: what a hypervisor sees of its guest.

python examples/watch_exits.py
"""

from collections import Counter

from devices.bus import BusKind
from pysim_vm import AxVM, ExitReason, VCpu

GUEST = """
        mov esi, text
        mov dx, 0x3F8           ; COM1
        mov ecx, 6
        rep outsb               ; one instruction, one exit a character
        mov ax, 0x2000
        mov dx, 0x604           ; ACPI: power off
        out dx, ax
        hlt
text:   db "Hello", 10
"""


def main() -> Counter[str]:
    vm = AxVM.from_asm(GUEST, mode="protected", platform="pc")
    answered: Counter[str] = Counter()

    def on_exit(vcpu: VCpu, reason: ExitReason) -> None:
        print(f"{vcpu.retired:>4} instructions, EIP {vcpu.regs.eip:#x}: {reason}")

    def on_access(name: str, bus: BusKind, direction: str, address: int, width: int, value: int) -> None:
        print(f"       answered by {name}: {bus} {direction} {address:#x} width {width} value {value:#x}")
        answered[name] += 1

    vm.on_exit = on_exit
    vm.get_devices().on_access = on_access
    reason = vm.run(1000)
    print(f"the end: {reason}; the console says {vm.console.text()!r}")
    return answered


if __name__ == "__main__":
    main()
