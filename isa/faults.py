"""Exceptions of the CPU (SDM Vol. 3, "Interrupt and Exception Handling"). Not software INT n.

A fault leaves an instruction as a Python exception before anything is committed. `why` names the check that
failed and its values, in the words of the manual; it is what traces and reports show. A kernel takes page
faults by the thousand and nobody reads their words, so these come as a function and its arguments, which are
put together when `why` is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The failing check: a sentence, or a function that makes it of the values behind it
Why = str | tuple[Callable[..., str], tuple[Any, ...]]


class Fault(Exception):
    """An architectural exception. Subclasses fix `vector`; `error_code` is None where none is pushed."""

    vector = -1
    name = "#??"
    has_error_code = False
    benign = True  # False: contributory or page fault, see "Double Fault Exception (#DF)"
    is_trap = False  # True: RIP is that of the next instruction

    def __init__(self, error_code: int = 0, why: Why = "") -> None:
        super().__init__(error_code)
        self.error_code = error_code if self.has_error_code else None
        self._why = why

    @property
    def why(self) -> str:
        """The check that failed, with the values that it compared."""
        if not isinstance(self._why, str):
            make, values = self._why
            self._why = make(*values)
        return self._why

    @property
    def title(self) -> str:
        """`#GP(0x18)`: the mnemonic and the error code, if one is pushed."""
        return self.name if self.error_code is None else f"{self.name}({self.error_code:#x})"

    def __str__(self) -> str:
        why = self.why
        return f"{self.title}: {why}" if why else self.title


class DivideError(Fault):
    """#DE: DIV or IDIV by zero, or a quotient that does not fit."""

    vector, name, benign = 0, "#DE", False

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class DebugException(Fault):
    """#DB: single step, breakpoint registers, ICEBP. `dr6` holds the status bits to set."""

    vector, name = 1, "#DB"

    def __init__(self, dr6: int, why: Why = "", *, trap: bool = True) -> None:
        super().__init__(0, why)
        self.dr6 = dr6
        self.is_trap = trap


class BoundRange(Fault):
    """#BR: BOUND index outside its limits."""

    vector, name = 5, "#BR"

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class InvalidOpcode(Fault):
    """#UD."""

    vector, name = 6, "#UD"

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class DeviceNotAvailable(Fault):
    """#NM: FPU or SSE instruction with CR0.EM or CR0.TS."""

    vector, name = 7, "#NM"

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class DoubleFault(Fault):
    """#DF: a second exception that cannot be handled serially."""

    vector, name, has_error_code, benign = 8, "#DF", True, False


class InvalidTss(Fault):
    """#TS(selector)."""

    vector, name, has_error_code, benign = 10, "#TS", True, False


class SegmentNotPresent(Fault):
    """#NP(selector)."""

    vector, name, has_error_code, benign = 11, "#NP", True, False


class StackFault(Fault):
    """#SS(selector or 0)."""

    vector, name, has_error_code, benign = 12, "#SS", True, False


class GeneralProtection(Fault):
    """#GP(selector or 0)."""

    vector, name, has_error_code, benign = 13, "#GP", True, False


class PageFault(Fault):
    """#PF. `error_code` bits: 0 present, 1 write, 2 user, 3 reserved bit, 4 fetch; `address` goes to CR2.

    The error code tells a fetch from a read only while NXE or SMEP is on; `fetch` always does. `check` is
    the part of `why` behind the kind of access: `PTE at 0x3008 has R/W=0`.
    """

    vector, name, has_error_code, benign = 14, "#PF", True, False

    def __init__(self, address: int, error_code: int, check: Why = "", *, fetch: bool = False) -> None:
        super().__init__(error_code, check)
        self.address = address
        self.fetch = fetch

    @property
    def why(self) -> str:
        """The access and the paging-structure entry that forbade it."""
        check = super().why
        code = self.error_code or 0
        kind = "fetch" if self.fetch else "write" if code & 2 else "read"
        return f"{'user' if code & 4 else 'supervisor'} {kind}" + (f", {check}" if check else "")

    @property
    def title(self) -> str:
        """`#PF(0x7) at 0x401000`: with the address that goes to CR2."""
        return f"{super().title} at {self.address:#x}"


class FpuError(Fault):
    """#MF: a pending x87 exception."""

    vector, name = 16, "#MF"

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class AlignmentCheck(Fault):
    """#AC(0): unaligned user access with CR0.AM and EFLAGS.AC."""

    vector, name, has_error_code = 17, "#AC", True


class MachineCheck(Fault):
    """#MC."""

    vector, name = 18, "#MC"

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class SimdException(Fault):
    """#XM: an unmasked SSE exception."""

    vector, name = 19, "#XM"

    def __init__(self, why: Why = "") -> None:
        super().__init__(0, why)


class Restart(Exception):
    """A REP instruction stops between two elements: registers are committed, RIP stays at the instruction."""
