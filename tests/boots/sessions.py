"""Talking to a guest from a test: run until it printed something, type an answer."""

from __future__ import annotations

from isa.exits import Budget, ExitReason
from pysim_vm.vm import AxVM

SLICE = 200_000  # instructions between two looks at the output


def run_until(vm: AxVM, text: str, budget: int) -> ExitReason | None:
    """Run until the console has printed `text` (None), or an exit or `budget` instructions ended the run."""
    end = vm.vcpu(0).retired + budget
    while text not in vm.console.text():
        reason = vm.run(min(SLICE, max(end - vm.vcpu(0).retired, 0)))
        if not isinstance(reason, Budget) or vm.vcpu(0).retired >= end:
            return None if text in vm.console.text() else reason
    return None


def type_line(vm: AxVM, line: str) -> None:
    """What a person at the serial console types."""
    assert vm.board is not None
    vm.board.com1.receive(line.encode() + b"\r")


def screen(vm: AxVM) -> str:
    """The VGA text screen as one string."""
    assert vm.board is not None and vm.board.vga is not None
    return "\n".join(row.rstrip() for row in vm.board.vga.screen())
