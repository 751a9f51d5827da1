"""Custom devices: each way to add one, several buses, interrupts, DMA, timers, reset, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from devices.base import AccessWidth, Clock, Device, DeviceError, IrqLine
from devices.bus import BusError, BusKind, Window
from devices.contract import (
    BaseMmioDeviceOps,
    BasePortDeviceOps,
    BaseSysRegDeviceOps,
    EmulatedDeviceType,
    GuestPhysAddr,
    GuestPhysAddrRange,
    Port,
    PortRange,
    SysRegAddr,
    SysRegAddrRange,
)
from devices.local_apic import SysRegFault
from pysim_vm import AxError, Halt
from pysim_vm.vm import AxVM, GuestRam

PORT, WINDOW, MSR = 0x300, 0xFEB0_0000, 0x4B56_4D00


@dataclass
class Counts:
    """All that changes in the device below."""

    reads: int = 0
    last: int = 0


class Counter(Device):
    """Offset 0 counts reads, offset 8 holds what was written last."""

    name = "counter"
    state: Counts

    def __init__(self) -> None:
        self.state = Counts()

    def read(self, offset: int, width: int) -> int:
        if offset == 8:
            return self.state.last
        self.state.reads += 1
        return self.state.reads

    def write(self, offset: int, width: int, value: int) -> None:
        self.state.last = value

    def reset(self) -> None:
        self.state = Counts()


# ---- adding ------------------------------------------------------------------------------------------------


def test_one_object_serves_ports_memory_and_msrs() -> None:
    vm = AxVM.from_asm(
        f"""
        mov dx, {PORT}
        in al, dx
        mov ebx, {WINDOW:#x}
        mov esi, [rbx]
        mov ecx, {MSR:#x}
        rdmsr
        mov edi, eax
        mov byte [rbx+8], 0x5a
        mov dx, {PORT + 8}
        in al, dx
        hlt
        """
    )
    counter = Counter()
    devices = vm.get_devices()
    devices.add_port_dev(counter, PORT, 16)
    devices.add_mmio_dev(counter, WINDOW, 0x1000)
    devices.add_sys_reg_dev(counter, MSR)
    assert vm.run_vcpu(0) == Halt()
    regs = vm.vcpu(0).regs
    assert (regs.esi, regs.edi, regs.al, counter.state.reads) == (2, 3, 0x5A, 3)
    assert vm.device_count() == 1


def test_all_windows_of_a_device_are_added_or_none() -> None:
    vm = AxVM.from_asm("hlt")
    vm.get_devices().add_port_dev(Counter(), PORT, 16)
    windows = (Window(BusKind.MMIO, WINDOW, 0x1000), Window(BusKind.PORT, PORT + 8, 16))
    with pytest.raises(BusError, match=r"port window 0x308-0x317 of counter overlaps 0x300-0x30f of counter"):
        vm.get_devices().add_device(Counter(), windows)
    assert vm.get_devices().find_mmio_dev(WINDOW) is None


def test_a_device_of_axvms_contract_gets_absolute_addresses() -> None:
    seen: list[str] = []

    class Mmio(BaseMmioDeviceOps):
        def emu_type(self) -> EmulatedDeviceType:
            return EmulatedDeviceType.Dummy

        def address_range(self) -> GuestPhysAddrRange:
            return GuestPhysAddrRange.from_start_size(WINDOW, 0x1000)

        def handle_read(self, addr: GuestPhysAddr, width: AccessWidth) -> int:
            seen.append(f"read {addr} {width.name}")
            return 1

        def handle_write(self, addr: GuestPhysAddr, width: AccessWidth, val: int) -> None:
            seen.append(f"write {addr} {width.name} {val:#x}")

    class Ports(BasePortDeviceOps):
        def emu_type(self) -> EmulatedDeviceType:
            return EmulatedDeviceType.Dummy

        def address_range(self) -> PortRange:
            return PortRange(PORT, PORT + 3)

        def handle_read(self, addr: Port, width: AccessWidth) -> int:
            seen.append(f"read {addr} {width.name}")
            return 2

        def handle_write(self, addr: Port, width: AccessWidth, val: int) -> None:
            seen.append(f"write {addr} {width.name} {val:#x}")

    class Registers(BaseSysRegDeviceOps):
        def emu_type(self) -> EmulatedDeviceType:
            return EmulatedDeviceType.Dummy

        def address_range(self) -> SysRegAddrRange:
            return SysRegAddrRange(MSR, MSR)

        def handle_read(self, addr: SysRegAddr, width: AccessWidth) -> int:
            seen.append(f"read {addr} {width.name}")
            return 3

        def handle_write(self, addr: SysRegAddr, width: AccessWidth, val: int) -> None:
            seen.append(f"write {addr} {width.name} {val:#x}")

    vm = AxVM.from_asm(
        f"mov ebx, {WINDOW + 4:#x}\nmov ax, [rbx]\nmov [rbx], rax\nmov dx, {PORT + 1}\n"
        f"in al, dx\nout dx, ax\nmov ecx, {MSR:#x}\nrdmsr\nwrmsr\nhlt"
    )
    vm.get_devices().add_mmio_dev(Mmio())
    vm.get_devices().add_port_dev(Ports())
    vm.get_devices().add_sys_reg_dev(Registers())
    assert vm.run_vcpu(0) == Halt()
    assert seen == [
        "read GPA:0xfeb00004 WORD", "write GPA:0xfeb00004 QWORD 0x1",
        "read Port(0x301) BYTE", "write Port(0x301) WORD 0x2",
        "read SysRegAddr(0x4b564d00) QWORD", "write SysRegAddr(0x4b564d00) QWORD 0x3",
    ]  # fmt: skip


def test_the_handler_of_axvms_page_on_custom_devices_works_as_it_stands() -> None:
    class CustomDeviceHandler:
        """The class of axvm's page: device_state and four methods."""

        def __init__(self) -> None:
            self.device_state = {"register": 0}

        def handle_mmio_read(self, addr: int, width: AccessWidth) -> int:
            return self.device_state["register"]

        def handle_mmio_write(self, addr: int, width: AccessWidth, data: int) -> None:
            self.device_state["register"] = data

        def handle_port_read(self, port: int, width: AccessWidth) -> int:
            return self.device_state["register"] + 1

        def handle_port_write(self, port: int, width: AccessWidth, data: int) -> None:
            self.device_state["register"] = data

    handler = CustomDeviceHandler()
    vm = AxVM.from_asm(
        f"mov ebx, {WINDOW:#x}\nmov dword [rbx], 41\nmov dx, {PORT}\nin eax, dx\nout dx, eax\n"
        "mov ecx, [rbx]\nhlt"
    )
    vm.get_devices().add_mmio_dev(handler, WINDOW, 0x1000)
    vm.get_devices().add_port_dev(handler, PORT, 4)
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.rax, vm.vcpu(0).regs.rcx) == (42, 42)
    assert vm.get_devices().find_port_dev(PORT) is handler


def test_a_device_can_be_taken_off_again() -> None:
    vm = AxVM.from_asm(f"again: mov dx, {PORT}\nin al, dx\nhlt\njmp again", missing_device="ones")
    counter = Counter()
    vm.get_devices().add_port_dev(counter, PORT, 16)
    vm.run_vcpu(0)
    vm.get_devices().remove_dev(counter)
    vm.vcpu(0).cpu.halted = False
    vm.run_vcpu(0)
    assert (vm.vcpu(0).regs.al, counter.state.reads) == (0xFF, 1)


def test_a_window_that_comes_or_goes_is_seen_by_the_next_access() -> None:
    vm = AxVM.from_asm("again: mov al, [0x8000]\nhlt\njmp again")
    vm.write_to_guest(0x8000, b"\x77")
    counter = Counter()
    seen = []
    for step in ("as it was", "add", "remove"):
        if step == "add":
            vm.get_devices().add_mmio_dev(counter, 0x8000, 16)
        elif step == "remove":
            vm.get_devices().remove_dev(counter)
        vm.vcpu(0).cpu.halted = False
        vm.run_vcpu(0)
        seen.append(vm.vcpu(0).regs.al)
    assert seen == [0x77, 1, 0x77]


def test_a_window_over_ram_hides_only_its_own_bytes() -> None:
    vm = AxVM.from_asm("mov dword [0x8004], -1\nmov eax, [0x8000]\nmov ecx, [0x8004]\nhlt")
    vm.get_devices().add_mmio_dev(Counter(), 0x8000, 4)
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.eax, vm.vcpu(0).regs.ecx) == (1, 0xFFFF_FFFF)


# ---- interrupts, DMA, time ---------------------------------------------------------------------------------


class Disk(Device):
    """Writes a block into guest memory 10 us after it was asked to, and then interrupts.

    Offset 0: destination address, which starts it. Offset 4: status; reading it lowers the line.
    """

    name = "disk"
    state: int

    def __init__(self, clock: Clock, memory: GuestRam, line: IrqLine) -> None:
        self._clock, self._memory, self._line = clock, memory, line
        self.state = 0

    def read(self, offset: int, width: int) -> int:
        self._line.lower()
        return self.state

    def write(self, offset: int, width: int, value: int) -> None:
        self._clock.call_at(self._clock.now_ns() + 10_000, lambda now_ns: self._done(value))

    def _done(self, target: int) -> None:
        self._memory.write(target, b"block")
        self.state = 1
        self._line.raise_()

    def reset(self) -> None:
        self.state = 0
        self._line.lower()


DISK_GUEST = f"""
        lidt [idtr]
        mov al, 0x11
        out 0x20, al
        mov al, 0x30
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xdf
        out 0x21, al
        mov ebx, {WINDOW:#x}
        mov dword [rbx], 0x18000
        sti
        hlt
        cli
        hlt
    handler:
        mov r8d, [rbx+4]
        mov al, 0x20
        out 0x20, al
        iretq
    idtr: dw 0xfff
          dq 0x20000
"""


def disk_vm() -> tuple[AxVM, Disk]:
    """A PC with a disk on line 5."""
    vm = AxVM.from_asm(DISK_GUEST, platform="pc")
    handler = 0x1000 + vm.read_from_guest(0x1000, 0x200).index(bytes.fromhex("448b4304"))
    selector = vm.vcpu(0).regs.cs.to_bytes(2, "little")
    vm.write_to_guest(0x20000 + 0x35 * 16, handler.to_bytes(2, "little") + selector + b"\x00\x8e" + bytes(10))
    disk = Disk(vm.clock, vm.guest_memory(), vm.irq_line(5, "disk"))
    vm.get_devices().add_mmio_dev(disk, WINDOW, 8)
    return vm, disk


def test_a_device_with_timer_dma_and_interrupt() -> None:
    vm, disk = disk_vm()
    assert vm.run_vcpu(0) == Halt()
    assert vm.read_from_guest(0x18000, 5) == b"block"
    assert (vm.vcpu(0).regs.r8, disk.state) == (1, 1)
    assert 10_000 < vm.now_ns() < 10_000 + 64 * 40


def test_a_reset_reaches_custom_devices_and_cancels_their_timers() -> None:
    vm, disk = disk_vm()
    vm.run_vcpu(0, budget=14)  # the disk was started
    assert vm.clock.next_deadline_ns() is not None
    vm.reset()
    assert vm.clock.next_deadline_ns() is None
    assert disk.state == 0
    assert vm.run_vcpu(0) == Halt()  # and once more, from the start
    assert disk.state == 1


def test_a_device_may_ask_for_a_general_protection_fault() -> None:
    class Locked(Device):
        name = "locked"

        def write(self, offset: int, width: int, value: int) -> None:
            raise SysRegFault("the register is locked")

    vm = AxVM.from_asm(f"lidt [idtr]\nmov ecx, {MSR:#x}\nwrmsr\nidtr: dw 0xfff\ndq 0x20000")
    selector = vm.vcpu(0).regs.cs.to_bytes(2, "little")
    vm.write_to_guest(0x20000 + 13 * 16, (0x7000).to_bytes(2, "little") + selector + b"\x00\x8e" + bytes(10))
    vm.write_to_guest(0x7000, b"\xf4")
    vm.get_devices().add_sys_reg_dev(Locked(), MSR)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001


def test_a_device_over_an_msr_of_the_cpu_takes_it_over() -> None:
    vm = AxVM.from_asm("mov ecx, 0xc0000080\nrdmsr\nhlt")
    vm.get_devices().add_sys_reg_dev(Counter(), 0xC000_0080)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rax == 1


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_a_device_error_is_passed_on_as_it_was_said() -> None:
    class Picky(Device):
        name = "picky"

        def read(self, offset: int, width: int) -> int:
            raise DeviceError("picky: only dwords; widen the access")

    vm = AxVM.from_asm(f"mov dx, {PORT}\nin al, dx\nhlt")
    vm.get_devices().add_port_dev(Picky(), PORT, 4)
    with pytest.raises(
        AxError, match="device picky 0x300-0x303 failed with picky: only dwords; widen the access"
    ):
        vm.run_vcpu(0)


def test_the_cause_of_a_failure_keeps_its_traceback() -> None:
    class Broken(Device):
        name = "broken"

        def read(self, offset: int, width: int) -> int:
            return 1 // 0

    vm = AxVM.from_asm(f"mov dx, {PORT}\nin al, dx\nhlt")
    vm.get_devices().add_port_dev(Broken(), PORT, 4)
    with pytest.raises(AxError) as failure:
        vm.run_vcpu(0)
    cause = failure.value.__cause__
    assert cause is not None
    assert isinstance(cause.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (object(), "object cannot go on the port bus: it is no Device"),
        (Counter, "cannot go on the port bus"),
    ],
)
def test_what_is_no_device_is_refused_with_a_hint(device: object, text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        AxVM.from_asm("hlt").get_devices().add_port_dev(device, PORT, 1)


@pytest.mark.parametrize(
    ("base", "length", "text"),
    [(0xFFFF, 2, "run outside 0x0-0xffff"), (PORT, 0, "length 0 is not positive"), (-1, 1, "run outside")],
)
def test_a_window_that_cannot_be_is_refused(base: int, length: int, text: str) -> None:
    with pytest.raises(BusError, match=text):
        AxVM.from_asm("hlt").get_devices().add_port_dev(Counter(), base, length)


def test_an_instruction_that_spans_two_ports_of_two_devices_asks_both() -> None:
    vm = AxVM.from_asm(f"mov dx, {PORT}\nin ax, dx\nhlt")
    first, second = Counter(), Counter()
    second.state.reads = 0x40
    vm.get_devices().add_port_dev(first, PORT, 1)
    vm.get_devices().add_port_dev(second, PORT + 1, 1)
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.ax == 0x4101
