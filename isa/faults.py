"""Exceptions of the CPU (SDM Vol. 3, "Interrupt and Exception Handling"). Not software INT n.

A fault leaves an instruction as a Python exception before anything is committed. `why` names the check that
failed, in the words of the manual; it is what traces and reports show.
"""

from __future__ import annotations


class Fault(Exception):
    """An architectural exception. Subclasses fix `vector`; `error_code` is None where none is pushed."""

    vector = -1
    name = "#??"
    has_error_code = False
    benign = True  # False: contributory or page fault, see "Double Fault Exception (#DF)"
    is_trap = False  # True: RIP is that of the next instruction

    def __init__(self, error_code: int = 0, why: str = "") -> None:
        super().__init__(error_code, why)
        self.error_code = error_code if self.has_error_code else None
        self.why = why

    def __str__(self) -> str:
        code = f"({self.error_code:#x})" if self.error_code is not None else ""
        return f"{self.name}{code}" + (f": {self.why}" if self.why else "")


class DivideError(Fault):
    """#DE: DIV or IDIV by zero, or a quotient that does not fit."""

    vector, name, benign = 0, "#DE", False

    def __init__(self, why: str = "") -> None:
        super().__init__(0, why)


class DebugException(Fault):
    """#DB: single step, breakpoint registers, ICEBP. `dr6` holds the status bits to set."""

    vector, name = 1, "#DB"

    def __init__(self, dr6: int, why: str = "", *, trap: bool = True) -> None:
        super().__init__(0, why)
        self.dr6 = dr6
        self.is_trap = trap


class BoundRange(Fault):
    """#BR: BOUND index outside its limits."""

    vector, name = 5, "#BR"

    def __init__(self, why: str = "") -> None:
        super().__init__(0, why)


class InvalidOpcode(Fault):
    """#UD."""

    vector, name = 6, "#UD"

    def __init__(self, why: str = "") -> None:
        super().__init__(0, why)


class DeviceNotAvailable(Fault):
    """#NM: FPU or SSE instruction with CR0.EM or CR0.TS."""

    vector, name = 7, "#NM"

    def __init__(self, why: str = "") -> None:
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
    """#PF. `error_code` bits: 0 present, 1 write, 2 user, 3 reserved bit, 4 fetch; `address` goes to CR2."""

    vector, name, has_error_code, benign = 14, "#PF", True, False

    def __init__(self, address: int, error_code: int, why: str = "") -> None:
        super().__init__(error_code, why)
        self.address = address

    def __str__(self) -> str:
        return f"{super().__str__()} (CR2 {self.address:#x})"


class FpuError(Fault):
    """#MF: a pending x87 exception."""

    vector, name = 16, "#MF"

    def __init__(self, why: str = "") -> None:
        super().__init__(0, why)


class AlignmentCheck(Fault):
    """#AC(0): unaligned user access with CR0.AM and EFLAGS.AC."""

    vector, name, has_error_code = 17, "#AC", True


class MachineCheck(Fault):
    """#MC."""

    vector, name = 18, "#MC"

    def __init__(self, why: str = "") -> None:
        super().__init__(0, why)


class SimdException(Fault):
    """#XM: an unmasked SSE exception."""

    vector, name = 19, "#XM"

    def __init__(self, why: str = "") -> None:
        super().__init__(0, why)


class Restart(Exception):
    """A REP instruction stops between two elements: registers are committed, RIP stays at the instruction."""
