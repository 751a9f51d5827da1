"""Why the guest got its last exception, or shut down: words for what the CPU remembers. It runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isa.faults import DoubleFault, Fault, PageFault
from pysim_vm.report import plural
from pysim_vm.trace.rows import EventRow

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM


def exception_row(
    fault: Fault, *, number: int, retired: int, rip: int, symbol: str, cpl: int, nested: bool
) -> EventRow:
    """An exception as a row of a trace."""
    address = fault.address if isinstance(fault, PageFault) else 0
    return EventRow(
        number, retired, 0, rip, symbol, "exception", fault.vector, fault.error_code, address, cpl, nested,
        fault.why,
    )  # fmt: skip


def symbol_at(vm: AxVM, address: int) -> str:
    """`name+0x1c`, or "" where the guest has no symbol."""
    symbols = None if vm.plan is None else vm.plan.symbols
    location = None if symbols is None else symbols.lookup(address)
    return "" if location is None else str(location)


def last_exception(vm: AxVM) -> EventRow | None:
    """The exception that came last, or None; of several in one delivery the last one."""
    known = vm.vcpu(0).cpu.last_events
    if known is None:
        return None
    retired, rip, cpl, chain = known
    fault = chain[-1]
    assert isinstance(fault, Fault)  # an interrupt alone is no chain
    return exception_row(
        fault, number=0, retired=retired, rip=rip, symbol=symbol_at(vm, rip), cpl=cpl, nested=len(chain) > 1
    )


def why(vm: AxVM) -> str:
    """One sentence about the last exception and what came of its delivery."""
    known = vm.vcpu(0).cpu.last_events
    if known is None:
        return f"VM[{vm.id()}]: the guest got no exception so far"
    retired, rip, cpl, chain = known
    symbol = symbol_at(vm, rip)
    place = f"{rip:#x}" + (f" <{symbol}>" if symbol else "")
    return f"{chain_sentence(chain)}; at {place}, CPL {cpl}, after {plural(retired, 'instruction')}"


def chain_sentence(chain: Sequence[Fault | int]) -> str:
    """`first #PF(...): ...; then #DF(...): ...; then the CPU shut down (triple fault)`."""
    words = [f"interrupt {link:#04x}" if isinstance(link, int) else str(link) for link in chain]
    if len(words) > 1:
        words = [f"first {words[0]}", *(f"then {text}" for text in words[1:])]
    before, last = chain[-2] if len(chain) > 1 else None, chain[-1]
    if isinstance(before, DoubleFault) and isinstance(last, Fault) and not last.benign:
        words.append("then the CPU shut down (triple fault)")
    return "; ".join(words)
