"""`vm.show`: a look into a VM - registers, code, memory, tables, pages, screen. It changes nothing.

Every method returns a picture: `print` gives text, a notebook shows it as a page, and its fields are data.
What it shows is a copy of that moment. Nothing in the guest can tell that it was looked at: no accessed bit,
no TLB entry, no lazy page, no device register is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pysim_vm.display.html import Picture
from pysim_vm.display.memory import DUMP_MAX, INSTRUCTIONS_MAX, Listing, MemoryView
from pysim_vm.display.paging import WalkView
from pysim_vm.display.registers import RegisterView, steps_picture
from pysim_vm.display.screen import CONSOLE_LINES, ConsoleView, ScreenView
from pysim_vm.display.tables import DescriptorTable, InterruptTable
from pysim_vm.errors import AxError, AxErrorKind

if TYPE_CHECKING:
    from isa.cpu import Cpu
    from pysim_vm.stepping import Moment
    from pysim_vm.symbols import SymbolTable
    from pysim_vm.vm import AxVM


class Show:
    """Pictures of one VM and its vCPU 0: `vm.show.registers()`, `vm.show.page_walk(0x401000)` ...

    Addresses are linear, as the guest's instructions use them, unless a method says otherwise.
    """

    __slots__ = ("_vm",)

    def __init__(self, vm: AxVM) -> None:
        self._vm = vm

    @property
    def _cpu(self) -> Cpu:
        return self._vm.vcpu(0).cpu

    @property
    def _symbols(self) -> SymbolTable | None:
        return None if self._vm.plan is None else self._vm.plan.symbols

    def registers(self, since: RegisterView | None = None) -> RegisterView:
        """All registers as they are now; what is different from an earlier picture is highlighted::

        before = vm.show.registers()
        vm.run(100)
        vm.show.registers(since=before)
        """
        view = RegisterView.of(self._cpu, self._symbols)
        return view if since is None else view.since(since)

    def steps(self, moments: Iterable[Moment | RegisterView]) -> Picture:
        """The moments of `AxVM.steps`, each with its instruction and what had changed by the next one.

        To see the first instruction too, put the registers before it in front::

            vm.show.steps([vm.show.registers(), *vm.steps(12)])
        """
        return steps_picture(self._cpu, moments, self._symbols)

    def disassembly(self, ip: int | None = None, count: int = 10) -> Listing:
        """`count` instructions (at most INSTRUCTIONS_MAX) from CS:`ip`; without it around RIP, whose row is
        marked, with those before it that the CPU has met. Code that cannot be read ends the listing."""
        return Listing.of(self._cpu, ip, _count("disassembly", count, INSTRUCTIONS_MAX), self._symbols)

    def memory(self, address: int, size: int = 256, *, physical: bool = False) -> MemoryView:
        """A hex dump of `size` bytes (at most DUMP_MAX) at a linear or guest-physical address. Device memory
        is not read."""
        size = _count("memory", size, DUMP_MAX)
        if physical:
            return MemoryView.at_physical(self._cpu, address, size, self._device)
        return MemoryView.linear(self._cpu, address, size, self._device)

    def page_walk(self, linear: int) -> WalkView:
        """How the CPU translates an address: each paging-structure entry, where the walk ends and why, and
        which accesses the page allows."""
        return WalkView.of(self._cpu, linear)

    def gdt(self) -> DescriptorTable:
        """The global descriptor table, every entry decoded."""
        return DescriptorTable.gdt(self._cpu)

    def ldt(self) -> DescriptorTable:
        """The local descriptor table; it says so if there is none."""
        return DescriptorTable.ldt(self._cpu)

    def idt(self) -> InterruptTable:
        """The interrupt descriptor table, or real mode's vector table."""
        return InterruptTable.of(self._cpu, self._symbols)

    def screen(self) -> ScreenView:
        """The VGA text screen, in the guest's colours. NotFound if the machine has no VGA adapter."""
        board = self._vm.board
        if board is None or board.vga is None:
            raise AxError(
                AxErrorKind.NotFound,
                f'screen: VM[{self._vm.id()}] has no VGA adapter; build it with platform = "pc"',
            )
        return ScreenView.of(board.vga)

    def console(self, lines: int = CONSOLE_LINES) -> ConsoleView:
        """The last lines that the guest printed on its serial port."""
        console = self._vm.console
        return ConsoleView.of(console.data, console.dropped, _count("console", lines, CONSOLE_LINES))

    def _device(self, gpa: int) -> str:
        """The name of the device whose memory hides RAM at `gpa`, or ""."""
        memory = self._vm.memory
        region = memory.region_at(gpa)
        if region is not None and not region.flags & 2:  # ROM: it reads as memory, also under a window
            return ""
        entry = self._vm.get_devices().mmio.find(gpa)
        return "" if entry is None else entry.device.name

    def __repr__(self) -> str:
        names = [name for name in type(self).__dict__ if not name.startswith("_")]
        return f"vm.show of VM[{self._vm.id()}]: " + ", ".join(f"{name}()" for name in names)


def _count(what: str, count: int, most: int) -> int:
    if count < 0:
        raise AxError(AxErrorKind.InvalidInput, f"{what}: {count} is negative; give 0 to {most:,}")
    return min(count, most)
