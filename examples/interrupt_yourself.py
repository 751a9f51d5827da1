"""Interrupts from outside: the host injects a vector, the guest's handler counts it.

    python examples/interrupt_yourself.py

`run` returns Halt when the guest sleeps and nothing will wake it; then it is the host's turn.
"""

from pysim_vm import AxVM, Halt

GUEST = """
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x8000
        mov word [0x21 * 4], handler    ; the interrupt vector table of real mode
        mov word [0x21 * 4 + 2], 0
        xor bx, bx
sleep:  sti
        hlt
        jmp sleep
handler:
        inc bx
        iret
"""


def main() -> int:
    vm = AxVM.from_asm(GUEST, mode="real")
    vcpu = vm.vcpu(0)
    for count in range(3):
        reason = vm.run(1000)
        assert isinstance(reason, Halt), reason
        print(f"asleep after {vcpu.retired} instructions, BX = {vcpu.regs.bx}; injecting vector 0x21")
        assert vcpu.regs.bx == count
        vcpu.inject_interrupt(0x21)
    vm.run(1000)
    print(f"BX = {vcpu.regs.bx}")
    return vcpu.regs.bx


if __name__ == "__main__":
    main()
