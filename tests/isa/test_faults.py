"""Faults and exit reasons: vectors, error codes and the text that traces and reports show."""

from __future__ import annotations

import pytest

from isa import faults
from isa.exits import IoRead, MmioWrite, Unimplemented, VmExit
from isa.faults import DebugException, DivideError, Fault, GeneralProtection, InvalidOpcode, PageFault

# SDM Vol. 3, "Protected-Mode Exceptions and Interrupts": vector, mnemonic, pushes an error code
TABLE = {
    "DivideError": (0, "#DE", False),
    "DebugException": (1, "#DB", False),
    "BoundRange": (5, "#BR", False),
    "InvalidOpcode": (6, "#UD", False),
    "DeviceNotAvailable": (7, "#NM", False),
    "DoubleFault": (8, "#DF", True),
    "InvalidTss": (10, "#TS", True),
    "SegmentNotPresent": (11, "#NP", True),
    "StackFault": (12, "#SS", True),
    "GeneralProtection": (13, "#GP", True),
    "PageFault": (14, "#PF", True),
    "FpuError": (16, "#MF", False),
    "AlignmentCheck": (17, "#AC", True),
    "MachineCheck": (18, "#MC", False),
    "SimdException": (19, "#XM", False),
}
# SDM Vol. 3, "Double Fault Exception (#DF)": contributory exceptions and page faults
CONTRIBUTORY = {"DivideError", "DoubleFault", "InvalidTss", "SegmentNotPresent", "StackFault",
                "GeneralProtection", "PageFault"}  # fmt: skip


def test_every_exception_of_the_manual_is_there_and_no_other() -> None:
    assert {cls.__name__ for cls in Fault.__subclasses__()} == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_vector_name_error_code_and_class_follow_the_manual(name: str) -> None:
    cls = getattr(faults, name)
    assert (cls.vector, cls.name, cls.has_error_code) == TABLE[name]
    assert cls.benign == (name not in CONTRIBUTORY)
    assert cls.__doc__.startswith(cls.name)


def test_the_text_has_name_error_code_and_reason() -> None:
    assert str(GeneralProtection(0x33, "limit")) == "#GP(0x33): limit"
    assert str(InvalidOpcode("why")) == "#UD: why"
    assert str(DivideError()) == "#DE"
    assert str(PageFault(0x1234, 6, "not present")) == "#PF(0x6): not present (CR2 0x1234)"
    assert InvalidOpcode("why").error_code is None


def test_a_debug_exception_is_a_trap_unless_it_says_otherwise() -> None:
    assert DebugException(0x4000).is_trap and not DebugException(1, trap=False).is_trap
    assert DebugException(0x4000).dr6 == 0x4000
    assert not GeneralProtection().is_trap


def test_exit_reasons_are_values_that_compare_match_and_cannot_change() -> None:
    assert IoRead(0x60, 1) == IoRead(0x60, 1) != IoRead(0x60, 2)
    match VmExit(MmioWrite(0x1000, 4, 7)).reason:
        case MmioWrite(addr=addr, width=4, data=data):
            assert (addr, data) == (0x1000, 7)
        case _:
            raise AssertionError
    with pytest.raises(AttributeError):
        IoRead(1, 1).port = 2  # type: ignore[misc]


def test_an_unimplemented_instruction_names_everything_a_report_needs() -> None:
    reason = Unimplemented(b"\x0f\xff", "ud0", 0x7C00, "real")
    assert str(reason) == "unimplemented instruction at 0x7c00 in real mode: 0f ff  ud0"
