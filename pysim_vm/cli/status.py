"""Exit codes of the command line and the sentences that go with them. No command is here.

A guest's own code, written to isa-debug-exit, comes out as `2 * value + 1`: always odd. Every code below is
even, so that the two never meet. docs/exit-codes.md is the table for people.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What `pysim-vm` tells the shell; `meaning` is the line of the table."""

    OK = 0, "the guest switched the machine off, or the run was left on purpose"
    USAGE = 2, "the command line makes no sense"
    LOAD = 66, "a guest file cannot be read or booted"
    INTERNAL = 70, "the machine itself failed: a bug in pysim_vm"
    HOST_IO = 74, "a host file or the terminal failed"
    CONFIG = 78, "a configuration, or a setting of the command line, is wrong"
    TRIPLE_FAULT = 80, "the guest's CPU shut down after a triple fault"
    BUDGET = 82, "the instruction budget is used up"
    UNIMPLEMENTED = 84, "the guest used an instruction or feature that this CPU lacks"
    NESTED_PAGE_FAULT = 86, "the guest used a physical address where nothing is"
    DEVICE = 88, "no device answered an access, or a device failed"
    HALTED = 90, "the CPU sleeps in HLT and nothing can wake it"
    UNANSWERED = 92, "an exit that nobody here answers"
    UNAVAILABLE = 94, "KVM is not there, may not be used, or cannot run this guest"
    TEXT_MISSING = 96, "the run ended before the console had printed the text of --stop-on"
    DIFFERENT = 98, "kvm-compare, diff or bench compare found that its two sides differ"
    UNFINISHED = 100, "a sweep ended with jobs that have no final result"
    CELL = 102, "a cell of a notebook raised an exception"
    INTERRUPTED = 130, "a signal from outside ended the run"

    meaning: str

    def __new__(cls, value: int, meaning: str = "") -> ExitStatus:
        """An IntEnum member that carries its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class CommandError(Exception):
    """A command that ends with one sentence: who, what, where, what to do."""

    def __init__(self, status: ExitStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
