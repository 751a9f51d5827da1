"""One sentence for each row of a record, in a student's words. It reads no file and no machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from isa.exits import (
    CpuDown,
    CpuUp,
    ExitReason,
    ExternalInterrupt,
    FailEntry,
    Halt,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    Nothing,
    SendIPI,
    SysRegRead,
    SysRegWrite,
    SystemDown,
)
from pysim_vm.report import VECTOR_NAMES, exit_kind, exit_words, value_words, vector_words

ACCESSES: Final = ("mmio_read", "mmio_write", "io_read", "io_write", "sys_reg_read", "sys_reg_write")
READS: Final = ("mmio_read", "io_read", "sys_reg_read")
PAGE_FAULT: Final = 14
NOBODY: Final = "nobody, an open bus"
# Exits whose record has no more than their kind
PLAIN_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "triple_fault": ("triple fault", "the CPU shut down"),
    "unimplemented": ("an instruction that this CPU lacks", "exit"),
    "nothing": ("a pause for the caller", "exit"),
    "budget": ("the budget is used up", "exit"),
}


# By kind of software interrupt, as isa.interrupts numbers them; INT n needs no reason
SOFTWARE_WORDS: Final = ("", "the guest executed INT3", "INTO with OF=1", "the guest executed INT1")


def sentence(words: str, kind: str, answered_by: Sequence[str] = ()) -> str:
    """`OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550`."""
    by = f", answered by {' and '.join(answered_by)}" if answered_by else ""
    return f"{words}: {kind}{by}"


def reason_of(kind: str, address: int, width: int, value: int) -> ExitReason | None:
    """The exit reason that a row stands for, or None where the row does not hold all of it."""
    match kind:
        case "mmio_read":
            return MmioRead(address, width)
        case "mmio_write":
            return MmioWrite(address, width, value)
        case "io_read":
            return IoRead(address, width)
        case "io_write":
            return IoWrite(address, width, value)
        case "sys_reg_read":
            return SysRegRead(address)
        case "sys_reg_write":
            return SysRegWrite(address, value)
        case "nested_page_fault":
            return NestedPageFault(address, value)
        case "halt":
            return Halt()
        case "external_interrupt":
            return ExternalInterrupt(value)
        case "cpu_up":
            return CpuUp(address, value)
        case "cpu_down":
            return CpuDown(value)
        case "send_ipi":
            return SendIPI(address, vector=value)
        case "system_down":
            return SystemDown()
        case "nothing":
            return Nothing()
        case "fail_entry":
            return FailEntry(value)
        case _:
            return None


def exit_sentence(
    kind: str, address: int, width: int, value: int, device: str = "", raised: Sequence[int] = ()
) -> str:
    """What the guest did, which exit that is, who answered it, and what came of it."""
    reason = reason_of(kind, address, width, value)
    if kind in PLAIN_WORDS or reason is None:
        words, what = PLAIN_WORDS.get(kind, (kind.replace("_", " "), "exit"))
        if kind == "hypercall":
            words, what = f"VMCALL {address:#x}", "hypercall"
        return sentence(words, what)
    answered_by = []
    if kind in ACCESSES:
        answered_by = [device or NOBODY]
    text = sentence(exit_words(reason, value if kind in READS else None), exit_kind(reason), answered_by)
    if kind == "halt" and value:
        text += f", the CPU sleeps {time_words(value)}"
    if raised:
        text += f", raises {irq_words(raised)}"
    return text


def irq_words(lines: Sequence[int]) -> str:
    """`IRQ 4` or `IRQ 0 and 4`."""
    return "IRQ " + " and ".join(str(line) for line in lines)


def store_sentence(by: str, address: int, linear: int, size: int, value: int) -> str:
    """`store [0x7bfe] <- 0x7c13 (2 bytes)`."""
    at = f"[{address:#x}]"
    if by == "dma":
        return f"{size:,} bytes at {at} written from outside the CPU: DMA or the host"
    width = "" if size == 1 else f" ({size} bytes)"
    if by == "walk":
        return f"page-table entry {at} <- {value:#x}{width}: accessed and dirty bits"
    where = at if linear in (address, 0) else f"[{linear:#x}] (physical {address:#x})"
    return f"store {where} <- {value_words(value, size)}{width}"


def load_sentence(address: int, linear: int, size: int, value: int) -> str:
    """`load [0x7bfe] -> 0x7c13 (2 bytes)`."""
    at = f"[{address:#x}]" if linear == address else f"[{linear:#x}] (physical {address:#x})"
    return f"load {at} -> {value_words(value, size)}" + ("" if size == 1 else f" ({size} bytes)")


def event_sentence(event: str, vector: int) -> str:
    """What came in place of an instruction, or out of it; "" for a plain one."""
    if event == "interrupt":
        return f"interrupt, vector {vector_words(vector)}"
    if event == "exception":
        return f"exception, vector {vector_words(vector)}"
    return ""


def exception_sentence(vector: int, error_code: int | None, address: int, why: str) -> str:
    """`#PF(0x7) at 0x401000: user write, PTE at 0x3008 has R/W=0`."""
    title = VECTOR_NAMES.get(vector, f"exception {vector:#x}")
    if error_code is not None:
        title += f"({error_code:#x})"
    if vector == PAGE_FAULT:
        title += f" at {address:#x}"
    return f"{title}: {why}" if why else title


def time_words(ns: float) -> str:
    """A time with three digits: `64 ns`, `1.28 us`, `10.0 ms`, `2.35 s`."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            shown = ns / size
            return f"{shown:,.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
    return f"{ns:.3g} ns"
