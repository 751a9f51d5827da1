"""The short way of an exit: a device answers in the middle of the instruction. It is no second exit loop.

An access that `AxVM.run_vcpu` would hand to a device goes to that device at once, as KVM answers its
in-kernel devices: no unwinding, no second execution. This is for the plain case only, in which the device
just answers. As soon as anything else comes of it (an error, an interrupt, an earlier deadline, DMA, another
memory map, news for the VM, a changed register), the instruction leaves after all and goes on along the full
way *with* this answer. So whatever is hard about an exit is written down once, in `AxVM`.

The device, the records and the counts see what they see on the full way: RIP at the instruction, `retired`
before it, the vCPU Ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from devices.base import DeviceError, ones
from devices.bus import BusEntry, BusKind
from devices.manager import AxVmDevices
from isa.exits import ExitReason, IoRead, IoWrite, MmioRead, MmioWrite, SysRegRead, SysRegWrite, VmExit
from isa.memory import PAGE
from pysim_vm.exit_kinds import (
    IO_READ,
    IO_WRITE,
    MMIO_READ,
    MMIO_WRITE,
    SYS_REG_BYTES,
    SYS_REG_READ,
    SYS_REG_WRITE,
)
from pysim_vm.exit_log import SITES_MAX, ExitLog
from pysim_vm.vcpu import VCpu

EXIT_CHUNK: Final = 8_192  # entries after which the log is handed on: few enough for the host CPU's cache
LOG_SLICE: Final = 16_384  # instructions after which the log is looked at
LINES: Final = 64  # interrupt lines that the mask of a log entry has room for

READ_KIND: Final = {BusKind.MMIO: MMIO_READ, BusKind.PORT: IO_READ, BusKind.SYS_REG: SYS_REG_READ}
WRITE_KIND: Final = {BusKind.MMIO: MMIO_WRITE, BusKind.PORT: IO_WRITE, BusKind.SYS_REG: SYS_REG_WRITE}

Reader = tuple[Callable[[int, int], int], int, int, BusEntry | None, int, int]
"""Who answers a read: the device's method, offset, mask, window, the device's number, site."""
Writer = tuple[Callable[[int, int, int], None], int, BusEntry | None, int, int]
"""Who takes a write: the device's method, offset, window, the device's number, site."""


@dataclass(slots=True)
class Outcome:
    """What came of an exit that was taken the short way and had to leave its instruction after all.

    `value` is the device's answer, or `error` what it raised; `rip` is where the device left RIP, `device`
    its number and `raised` the mask of interrupt lines that went up.
    """

    value: int
    error: BaseException | None
    rip: int
    device: int
    raised: int


def _float(offset: int, width: int) -> int:
    """An undriven port."""
    return ones(width)


def _ignore(offset: int, width: int, value: int) -> None:
    """Nobody hears it."""


class ShortExits:
    """The short way of one vCPU to its VM's devices.

    `take_counts()` hands out how many exits were taken, for `AxVM` to add to its own. `outcome` is set while
    an exit that was answered here waits for the full way. `on_line(number, level)` has to hear of every
    interrupt line, `forget()` of every change on a bus; `set_log` says where exits are noted.
    """

    def __init__(self, vcpu: VCpu, devices: AxVmDevices) -> None:
        self.outcome: Outcome | None = None
        self._vcpu = vcpu
        self._connect(vcpu, devices)

    def connect(self, on: bool) -> None:
        """Let accesses take the short way, or send all of them the full way."""
        cpu = self._vcpu.cpu
        if on:
            cpu.port_in, cpu.port_out = self._port_in, self._port_out
            cpu.mmio_load, cpu.mmio_store = self._mmio_load, self._mmio_store
            cpu.sys_reg_read, cpu.sys_reg_write = self._sys_reg_read, self._sys_reg_write
        else:
            cpu.port_in, cpu.port_out = cpu.leave_port_in, cpu.leave_port_out
            cpu.mmio_load, cpu.mmio_store = cpu.no_mmio_load, cpu.no_mmio_store
            cpu.sys_reg_read, cpu.sys_reg_write = cpu.leave_sys_reg_read, cpu.leave_sys_reg_write

    def _connect(self, vcpu: VCpu, devices: AxVmDevices) -> None:
        """Make the six accesses. They share their variables: a cell is cheaper than an attribute."""
        cpu, vcpu_id = vcpu.cpu, vcpu.id()
        leave_port_in, leave_port_out = cpu.leave_port_in, cpu.leave_port_out
        leave_sys_reg_read, leave_sys_reg_write = cpu.leave_sys_reg_read, cpu.leave_sys_reg_write
        log: ExitLog | None = None
        columns = ExitLog()
        retireds, rips, sites, values = columns.retired, columns.rip, columns.site, columns.value
        raised = 0
        port_reads = port_writes = mmio_reads = mmio_writes = reg_reads = reg_writes = 0
        # By width: address -> who is there
        port_readers: list[dict[int, Reader]] = [{} for _ in range(9)]
        port_writers: list[dict[int, Writer]] = [{} for _ in range(9)]
        mmio_readers: list[dict[int, Reader]] = [{} for _ in range(65)]
        mmio_writers: list[dict[int, Writer]] = [{} for _ in range(65)]
        reg_readers: dict[int, Reader] = {}
        reg_writers: dict[int, Writer] = {}

        def forget() -> None:
            for reads in (*port_readers, *mmio_readers, reg_readers):
                reads.clear()
            for writes in (*port_writers, *mmio_writers, reg_writers):
                writes.clear()

        def set_log(noted: ExitLog | None) -> None:
            nonlocal log, retireds, rips, sites, values
            forget()  # the sites are those of another log
            if vcpu.answering >= 0:
                cpu.exit_ip = -1  # the exit under way has no site in this one: on along the full way
            log = noted
            if log is not None:
                retireds, rips, sites, values = log.retired, log.rip, log.site, log.value

        def on_line(number: int, level: bool) -> None:
            nonlocal raised
            if level and number < LINES:
                raised |= 1 << number

        def take_raised() -> int:
            """The lines that went up since the last call."""
            nonlocal raised
            mask, raised = raised, 0
            return mask

        def take_counts() -> tuple[int, ...]:
            """How many exits of each kind there were since the last call, by their numbers."""
            nonlocal port_reads, port_writes, mmio_reads, mmio_writes, reg_reads, reg_writes
            taken = mmio_reads, mmio_writes, port_reads, port_writes, reg_reads, reg_writes
            port_reads = port_writes = mmio_reads = mmio_writes = reg_reads = reg_writes = 0
            return taken

        def floats(kind: BusKind, address: int, width: int) -> bool:
            """Nobody is at these addresses, and that is no error."""
            if kind is not BusKind.PORT or devices.missing_device == "raise":
                return False
            return not any(devices.port.find(address + n) for n in range(width))

        def site(kind: int, address: int, width: int, number: int) -> int:
            """The number that the log gives this access."""
            if log is None:
                return 0
            if log.full:
                forget()
                log.forget_sites()
            return log.site_number(vcpu_id, kind, address, width, number)

        def reader(kind: BusKind, table: dict[int, Reader], address: int, width: int) -> bool:
            """Fill in who answers; False if only the full way can tell."""
            if kind is BusKind.MMIO and address & PAGE - 1 > PAGE - width:
                return False  # in the guest's eyes the next page may be anywhere
            entry = devices.whole_window(kind, address, width, writes=False)
            if entry is None and not floats(kind, address, width):
                return False
            if len(table) >= SITES_MAX:
                table.clear()
            number = devices.device_number(None if entry is None else entry.device)
            here = site(READ_KIND[kind], address, width, number)
            if entry is None:
                table[address] = _float, 0, ones(width), None, number, here
            else:
                table[address] = entry.read, address + entry.delta, ones(width), entry, number, here
            return True

        def writer(kind: BusKind, table: dict[int, Writer], address: int, width: int) -> bool:
            if kind is BusKind.MMIO and address & PAGE - 1 > PAGE - width:
                return False  # in the guest's eyes the next page may be anywhere
            entry = devices.whole_window(kind, address, width, writes=True)
            if entry is None and not floats(kind, address, width):
                return False
            if len(table) >= SITES_MAX:
                table.clear()
            number = devices.device_number(None if entry is None else entry.device)
            here = site(WRITE_KIND[kind], address, width, number)
            if entry is None:
                table[address] = _ignore, 0, None, number, here
            else:
                table[address] = entry.write, address + entry.delta, entry, number, here
            return True

        def leave(reason: ExitReason, value: int, error: BaseException | None, number: int) -> VmExit:
            """The instruction leaves after all: to be raised."""
            vcpu.answering = cpu.exit_ip = -1
            self.outcome = Outcome(value, error, cpu.rip, number, raised)
            return VmExit(reason)

        def leave_read(reason: ExitReason, kind: BusKind, address: int, width: int, value: int,
                       entry: BusEntry | None, number: int) -> VmExit:  # fmt: skip
            """The same for a read whose answer may be an odd one."""
            try:
                if value.__class__ is not int or not 0 <= value <= ones(width):
                    assert entry is not None
                    value = devices.checked_value(kind, address, width, entry, value)
            except DeviceError as error:
                return leave(reason, 0, error, number)
            return leave(reason, value, None, number)

        def failed(reason: ExitReason, kind: BusKind, address: int, width: int, entry: BusEntry | None,
                   number: int, error: BaseException) -> VmExit:  # fmt: skip
            """The same for an access whose device raised `error`."""
            assert entry is not None
            direction = "read" if reason.__class__ in (IoRead, MmioRead, SysRegRead) else "write"
            wrapped = devices.access_failed(kind, direction, address, width, entry, error)
            return leave(reason, 0, wrapped, number)

        def port_in(port: int, size: int) -> int:
            nonlocal raised, port_reads
            ip = cpu.exit_ip
            if ip < 0:
                return leave_port_in(port, size)
            try:
                read, offset, mask, entry, number, here = port_readers[size][port]
            except KeyError:
                if not reader(BusKind.PORT, port_readers[size], port, size):
                    return leave_port_in(port, size)
                read, offset, mask, entry, number, here = port_readers[size][port]
            port_reads += 1
            raised = 0
            following = cpu.rip
            cpu.rip = ip
            vcpu.answering = IO_READ
            try:
                value = read(offset, size)
            except BaseException as error:
                raise failed(IoRead(port, size), BusKind.PORT, port, size, entry, number, error) from None
            if cpu.exit_ip < 0 or type(value) is not int or not 0 <= value <= mask:
                raise leave_read(IoRead(port, size), BusKind.PORT, port, size, value, entry, number)
            vcpu.answering = -1
            cpu.rip = following
            retired = cpu.retired
            if log is not None:
                retireds.append(retired)
                rips.append(ip)
                sites.append(here)
                values.append(value)
                if raised:
                    log.raised(raised)
            if cpu.taken_at == retired:
                cpu.take(value)
            else:
                cpu.taken_at = retired
                cpu.taken = value
            return value

        def port_out(port: int, size: int, value: int) -> None:
            nonlocal raised, port_writes
            ip = cpu.exit_ip
            if ip < 0:
                leave_port_out(port, size, value)
                return
            try:
                write, offset, entry, number, here = port_writers[size][port]
            except KeyError:
                if not writer(BusKind.PORT, port_writers[size], port, size):
                    leave_port_out(port, size, value)
                    return
                write, offset, entry, number, here = port_writers[size][port]
            port_writes += 1
            raised = 0
            following = cpu.rip
            cpu.rip = ip
            vcpu.answering = IO_WRITE
            try:
                write(offset, size, value)
            except BaseException as error:
                raise failed(
                    IoWrite(port, size, value), BusKind.PORT, port, size, entry, number, error
                ) from None
            if cpu.exit_ip < 0:
                raise leave(IoWrite(port, size, value), 0, None, number)
            vcpu.answering = -1
            cpu.rip = following
            if log is not None:
                retireds.append(cpu.retired)
                rips.append(ip)
                sites.append(here)
                values.append(value)
                if raised:
                    log.raised(raised)
            # Nothing in OUT or in an element of OUTS comes after this: no need to keep the answer

        def mmio_load(gpa: int, size: int) -> int | None:
            nonlocal raised, mmio_reads
            ip = cpu.exit_ip
            if ip < 0:
                return None
            try:
                read, offset, mask, entry, number, here = mmio_readers[size][gpa]
            except KeyError:
                if not reader(BusKind.MMIO, mmio_readers[size], gpa, size):
                    return None
                read, offset, mask, entry, number, here = mmio_readers[size][gpa]
            mmio_reads += 1
            raised = 0
            following = cpu.rip
            cpu.rip = ip
            vcpu.answering = MMIO_READ
            try:
                value = read(offset, size)
            except BaseException as error:
                raise failed(MmioRead(gpa, size), BusKind.MMIO, gpa, size, entry, number, error) from None
            if cpu.exit_ip < 0 or type(value) is not int or not 0 <= value <= mask:
                raise leave_read(MmioRead(gpa, size), BusKind.MMIO, gpa, size, value, entry, number)
            vcpu.answering = -1
            cpu.rip = following
            retired = cpu.retired
            if log is not None:
                retireds.append(retired)
                rips.append(ip)
                sites.append(here)
                values.append(value)
                if raised:
                    log.raised(raised)
            if cpu.taken_at == retired:
                cpu.take(value)
            else:
                cpu.taken_at = retired
                cpu.taken = value
            return value

        def mmio_store(gpa: int, size: int, value: int) -> bool:
            nonlocal raised, mmio_writes
            ip = cpu.exit_ip
            if ip < 0:
                return False
            try:
                write, offset, entry, number, here = mmio_writers[size][gpa]
            except KeyError:
                if not writer(BusKind.MMIO, mmio_writers[size], gpa, size):
                    return False
                write, offset, entry, number, here = mmio_writers[size][gpa]
            mmio_writes += 1
            raised = 0
            following = cpu.rip
            cpu.rip = ip
            vcpu.answering = MMIO_WRITE
            try:
                write(offset, size, value)
            except BaseException as error:
                raise failed(
                    MmioWrite(gpa, size, value), BusKind.MMIO, gpa, size, entry, number, error
                ) from None
            if cpu.exit_ip < 0:
                raise leave(MmioWrite(gpa, size, value), 0, None, number)
            vcpu.answering = -1
            cpu.rip = following
            retired = cpu.retired
            if log is not None:
                retireds.append(retired)
                rips.append(ip)
                sites.append(here)
                values.append(value)
                if raised:
                    log.raised(raised)
            if cpu.taken_at == retired:
                cpu.take(0)
            else:
                cpu.taken_at = retired
                cpu.taken = 0
            return True

        def sys_reg_read(index: int) -> int:
            nonlocal raised, reg_reads
            ip = cpu.exit_ip
            if ip < 0:
                return leave_sys_reg_read(index)
            width = SYS_REG_BYTES
            try:
                read, offset, mask, entry, number, here = reg_readers[index]
            except KeyError:
                if not reader(BusKind.SYS_REG, reg_readers, index, width):
                    return leave_sys_reg_read(index)
                read, offset, mask, entry, number, here = reg_readers[index]
            reg_reads += 1
            raised = 0
            following = cpu.rip
            cpu.rip = ip
            vcpu.answering = SYS_REG_READ
            try:
                value = read(offset, width)
            except BaseException as error:
                raise failed(
                    SysRegRead(index, 0), BusKind.SYS_REG, index, width, entry, number, error
                ) from None
            if cpu.exit_ip < 0 or type(value) is not int or not 0 <= value <= mask:
                raise leave_read(SysRegRead(index, 0), BusKind.SYS_REG, index, width, value, entry, number)
            vcpu.answering = -1
            cpu.rip = following
            if log is not None:
                retireds.append(cpu.retired)
                rips.append(ip)
                sites.append(here)
                values.append(value)
                if raised:
                    log.raised(raised)
            return value  # RDMSR and WRMSR take no other exit: no need to keep the answer

        def sys_reg_write(index: int, value: int) -> None:
            nonlocal raised, reg_writes
            ip = cpu.exit_ip
            if ip < 0:
                leave_sys_reg_write(index, value)
                return
            width = SYS_REG_BYTES
            try:
                write, offset, entry, number, here = reg_writers[index]
            except KeyError:
                if not writer(BusKind.SYS_REG, reg_writers, index, width):
                    leave_sys_reg_write(index, value)
                    return
                write, offset, entry, number, here = reg_writers[index]
            reg_writes += 1
            raised = 0
            following = cpu.rip
            cpu.rip = ip
            vcpu.answering = SYS_REG_WRITE
            try:
                write(offset, width, value)
            except BaseException as error:
                raise failed(
                    SysRegWrite(index, value), BusKind.SYS_REG, index, width, entry, number, error
                ) from None
            if cpu.exit_ip < 0:
                raise leave(SysRegWrite(index, value), 0, None, number)
            vcpu.answering = -1
            cpu.rip = following
            if log is not None:
                retireds.append(cpu.retired)
                rips.append(ip)
                sites.append(here)
                values.append(value)
                if raised:
                    log.raised(raised)

        self.forget, self.set_log, self.on_line = forget, set_log, on_line
        self.take_raised, self.take_counts = take_raised, take_counts
        self._port_in, self._port_out = port_in, port_out
        self._mmio_load, self._mmio_store = mmio_load, mmio_store
        self._sys_reg_read, self._sys_reg_write = sys_reg_read, sys_reg_write
