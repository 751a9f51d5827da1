"""The rows of a record as small frozen objects: an exit, event, store or instruction. It reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isa.decode import disassemble
from pysim_vm.report import Change
from pysim_vm.trace.words import (
    ACCESSES,
    READS,
    event_sentence,
    exception_sentence,
    exit_sentence,
    load_sentence,
    store_sentence,
)


class ShownRow:
    """What all rows have in common: where the guest was, a line of text, and that a notebook shows a page."""

    __slots__ = ()

    if TYPE_CHECKING:  # the fields of every row, each in the order of its own

        @property
        def retired(self) -> int: ...
        @property
        def rip(self) -> int: ...
        @property
        def symbol(self) -> str: ...

        def words(self) -> str: ...

    @property
    def where(self) -> str:
        """The address of the instruction, with its symbol."""
        return f"{self.rip:#x}" + (f" <{self.symbol}>" if self.symbol else "")

    def line(self) -> str:
        """`@1,234 0x7c31: ` and the words."""
        return f"@{self.retired:,} {self.where}: {self.words()}"

    def _repr_html_(self) -> str:
        from pysim_vm.display.exits import row_picture

        return row_picture(self)._repr_html_()


@dataclass(frozen=True, slots=True)
class ExitRow(ShownRow):
    """One VM exit.

    `number` counts exits from 0, `retired` instructions before it, `ns` virtual time. `reason` is axvm's name
    in snake case, `address` a guest-physical address, port or MSR, `width` bytes, `value` what was written
    or the answer. `device` answered ("" if none did), `raised` are the IRQ lines that went up meanwhile.
    """

    number: int
    retired: int
    ns: int
    vcpu: int
    rip: int
    symbol: str
    reason: str
    address: int
    width: int
    value: int
    device: str
    raised: tuple[int, ...]

    @property
    def direction(self) -> str:
        """`read`, `write`, or "" for an exit that is no access."""
        if self.reason not in ACCESSES:
            return ""
        return "read" if self.reason in READS else "write"

    def words(self) -> str:
        """`OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550`."""
        return exit_sentence(self.reason, self.address, self.width, self.value, self.device, self.raised)

    def line(self) -> str:
        """`#12 @1,234 0x7c31: ` and the words; exits are counted from 1 here, as in a live trace."""
        return f"#{self.number + 1:,} @{self.retired:,} {self.where}: {self.words()}"

    def as_dict(self) -> dict[str, object]:
        """The row for JSON: what may exceed 2**53 as hexadecimal text."""
        return {
            "number": self.number,
            "retired": self.retired,
            "ns": self.ns,
            "vcpu": self.vcpu,
            "rip": f"{self.rip:#x}",
            "symbol": self.symbol,
            "reason": self.reason,
            "address": f"{self.address:#x}",
            "width": self.width,
            "direction": self.direction,
            "value": f"{self.value:#x}",
            "device": self.device,
            "raised": list(self.raised),
            "words": self.words(),
        }


@dataclass(frozen=True, slots=True)
class StoreRow(ShownRow):
    """One write to RAM of `size` bytes at guest-physical `address`.

    `by` is "cpu", "walk" (accessed and dirty bits) or "dma" (a device, a loader, the host); `rip` is the
    instruction that ran, `value` 0 and `linear` 0 for DMA.
    """

    number: int
    retired: int
    vcpu: int
    rip: int
    symbol: str
    address: int
    linear: int
    size: int
    value: int
    by: str

    def words(self) -> str:
        """`store [0x7bfe] <- 0x7c13 (2 bytes)`."""
        return store_sentence(self.by, self.address, self.linear, self.size, self.value)

    def as_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return {
            "number": self.number,
            "retired": self.retired,
            "vcpu": self.vcpu,
            "rip": f"{self.rip:#x}",
            "symbol": self.symbol,
            "address": f"{self.address:#x}",
            "linear": f"{self.linear:#x}",
            "size": self.size,
            "value": f"{self.value:#x}",
            "by": self.by,
            "words": self.words(),
        }


@dataclass(frozen=True, slots=True)
class InstructionRow(ShownRow):
    """One step of the CPU: an instruction, or the interrupt or exception that came in its place.

    `retired` is the count before it, `bits` 16, 32 or 64, `raw` its bytes. `changes` are the registers that
    are different afterwards (but for RIP), `stores` what it wrote to RAM.
    """

    number: int
    retired: int
    vcpu: int
    rip: int
    symbol: str
    bits: int
    raw: bytes
    event: str
    vector: int
    changes: tuple[Change, ...]
    stores: tuple[StoreRow, ...]

    @property
    def text(self) -> str:
        """The instruction in assembly language."""
        return disassemble(self.raw, self.bits, self.rip) if self.raw else ""

    def words(self) -> str:
        """`mov al, 0x48: RAX 0x0 -> 0x48`."""
        effects = [str(change) for change in self.changes]
        effects += [store.words() for store in self.stores]
        told = [text for text in (self.text, event_sentence(self.event, self.vector)) if text]
        return "; ".join(told) + (": " + ", ".join(effects) if effects else "")

    def as_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return {
            "number": self.number,
            "retired": self.retired,
            "vcpu": self.vcpu,
            "rip": f"{self.rip:#x}",
            "symbol": self.symbol,
            "bytes": self.raw.hex(),
            "text": self.text,
            "event": self.event,
            "vector": self.vector,
            "changes": {
                change.name: [f"{change.before:#x}", f"{change.after:#x}"] for change in self.changes
            },
            "stores": [store.as_dict() for store in self.stores],
        }


@dataclass(frozen=True, slots=True)
class EventRow(ShownRow):
    """One exception, interrupt, INT n or shutdown.

    `event` is "exception", "interrupt", "software" or "shutdown"; `retired` is the count before it, `rip` the
    instruction that raised it, or that has to wait. `error_code` is None where none is pushed, `address` the
    linear address of a page fault. `nested`: it came while another event was delivered. `why` is the check
    that failed, with its values; "" where there is nothing to explain.
    """

    number: int
    retired: int
    vcpu: int
    rip: int
    symbol: str
    event: str
    vector: int
    error_code: int | None
    address: int
    cpl: int
    nested: bool
    why: str

    def words(self) -> str:
        """`#GP(0x18): DS load: DPL 0 < RPL 3`."""
        match self.event:
            case "exception":
                text = exception_sentence(self.vector, self.error_code, self.address, self.why)
            case "software":
                text = f"INT {self.vector:#04x}"
            case "shutdown":
                text = f"while that was delivered: {self.why}; the CPU shut down (triple fault)"
            case _:
                text = event_sentence(self.event, self.vector)
        return f"while that was delivered: {text}" if self.nested else text

    def as_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return {
            "number": self.number,
            "retired": self.retired,
            "vcpu": self.vcpu,
            "rip": f"{self.rip:#x}",
            "symbol": self.symbol,
            "event": self.event,
            "vector": self.vector,
            "error_code": None if self.error_code is None else f"{self.error_code:#x}",
            "address": f"{self.address:#x}",
            "cpl": self.cpl,
            "nested": self.nested,
            "why": self.why,
            "words": self.words(),
        }


@dataclass(frozen=True, slots=True)
class LoadRow(ShownRow):
    """One read of `size` bytes of RAM at guest-physical `address`: it gave `value`. Only hooks see them."""

    number: int
    retired: int
    vcpu: int
    rip: int
    symbol: str
    address: int
    linear: int
    size: int
    value: int

    def words(self) -> str:
        """`load [0x7bfe] -> 0x7c13 (2 bytes)`."""
        return load_sentence(self.address, self.linear, self.size, self.value)


@dataclass(frozen=True, slots=True)
class RegisterRow(ShownRow):
    """One change of a register by the instruction or event at `rip`. Only hooks see them."""

    number: int
    retired: int
    vcpu: int
    rip: int
    symbol: str
    change: Change

    def words(self) -> str:
        """`CR3 0x1000 -> 0x2000`."""
        return str(self.change)
