"""Faults and exit reasons: vectors, error codes and the text that traces and reports show."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from isa import faults, interrupts
from isa.cpu import Cpu
from isa.descriptors import load_segment
from isa.exits import IoRead, MmioWrite, Unimplemented, VmExit
from isa.faults import DebugException, DivideError, Fault, GeneralProtection, InvalidOpcode, PageFault
from isa.state import CR0_WP, CR4_SMAP, CR4_SMEP
from tests.isa.machine import RAM
from tests.isa.tables import CODE, CONFORMING_CODE, DATA, descriptor, set_entry, table_cpu
from tests.isa.test_mmu import LEVELS, TABLES, Setting, get, outcome, paged_cpu, put, random_case

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
    assert str(PageFault(0x1234, 6, "PTE at 0x8 has P=0")) == (
        "#PF(0x6) at 0x1234: user write, PTE at 0x8 has P=0"
    )
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


# ---- every raise has words -----------------------------------------------------------------------------

ISA = Path(faults.__file__).parent
# Where the words stand among the arguments: of the classes, of the variable that stands for one of them, and
# of functions that only pass them on
PLACES = {name: 1 if found else 0 for name, (_, _, found) in TABLE.items()}
PLACES |= {"PageFault": 2, "DebugException": 1, "fault": 1, "_page_fault": 4, "_invalid": 0, "_privileged": 0}
PASSED_ON = {"_page_fault", "_invalid", "_privileged"}  # their parameter `why`
# Sentences without a value, because there is none beside the one in the sentence
COMPLETE = {"AAM with base 0", "DIV by zero", "IDIV by zero", "RSM outside system-management mode",
            "UD0, UD1 or UD2: undefined on purpose"}  # fmt: skip
BITS_NAMED = re.compile(r"[A-Z][A-Z0-9.]*=[01]")


def words_of_faults() -> Iterator[tuple[str, list[ast.expr]]]:
    """Every place that makes a fault, and the expressions that its words may be."""
    for path in sorted(ISA.rglob("*.py")):
        if path.name != "faults.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from words_within(tree, None, path)


def words_within(
    node: ast.AST, function: ast.FunctionDef | None, path: Path
) -> Iterator[tuple[str, list[ast.expr]]]:
    """The same for a part of a file, which lies in `function`."""
    if isinstance(node, ast.FunctionDef):
        function = node
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = PLACES.get(called)
        if place is not None:
            where = f"{path.relative_to(ISA)}:{node.lineno} {called}"
            assert len(node.args) > place, f"{where}: no words"
            assert function is not None, where
            yield where, values_of(node.args[place], function)
    for child in ast.iter_child_nodes(node):
        yield from words_within(child, function, path)


def values_of(why: ast.expr, function: ast.FunctionDef) -> list[ast.expr]:
    """The words, or what a variable with them is set to."""
    if not isinstance(why, ast.Name):
        return [why]
    names = {why.id}
    found: list[ast.expr] = []
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in names:
                found.append(node.value)
    return found


def test_every_fault_has_words_with_the_values_that_its_check_compared() -> None:
    seen = 0
    for where, values in words_of_faults():
        if not values:
            source = (ISA / where.partition(":")[0]).read_text(encoding="utf-8")
            assert any(f"def {name}(" in source for name in PASSED_ON), f"{where}: nothing sets its words"
            continue
        for value in values:
            seen += 1
            if isinstance(value, ast.Constant):
                text = str(value.value)
                assert text in COMPLETE or BITS_NAMED.search(text), f"{where}: {text!r} names no value"
            elif isinstance(value, ast.JoinedStr):
                assert any(isinstance(part, ast.FormattedValue) for part in value.values), where
            else:  # a function and its arguments
                assert isinstance(value, ast.Tuple) and len(value.elts) == 2, where
                assert isinstance(value.elts[1], ast.Tuple) and value.elts[1].elts, where
    assert seen > 150


def test_words_are_made_when_they_are_asked_for_and_only_once() -> None:
    made: list[int] = []

    def make(number: int) -> str:
        made.append(number)
        return f"number {number}"

    fault = GeneralProtection(0, (make, (7,)))
    assert made == []
    assert (fault.why, str(fault), made) == ("number 7", "#GP(0x0): number 7", [7])


# ---- page faults: the entry and the bit that the words name ------------------------------------------------

ENTRY = re.compile(r"(PML4E|PDPTE|PDE|PTE|4 MiB PDE) at (0x[0-9a-f]+) has (?:(P|R/W|U/S|XD)=([01])|"
                   r"the reserved bits (0x[0-9a-f]+) set)$")  # fmt: skip
BIT = {"P": 0, "R/W": 1, "U/S": 2, "XD": 63}
LEVEL_NAMES = {"4-level": ("PML4E", "PDPTE", "PDE", "PTE"), "PAE": ("PDE", "PTE"), "32-bit": ("PDE", "PTE")}


def fault_of(cpu: Cpu, s: Setting, linear: int) -> PageFault | None:
    """The page fault of an access, which has no effect otherwise."""
    try:
        cpu.translate(linear, s.access, s.user, smap=s.smap and not s.ac)
    except PageFault as fault:
        return fault
    except VmExit:  # a repaired entry leads out of RAM
        return None
    return None


def levels_at(cpu: Cpu, paging: str, linear: int, address: int) -> set[str]:
    """As what a walk meets the entry at `address`; a table may be one of several levels."""
    size = 4 if paging == "32-bit" else 8
    table, found = TABLES, set()
    for name, shift in zip(LEVEL_NAMES[paging], LEVELS[paging], strict=True):
        at = table + (linear >> shift) % (4096 // size) * size
        if at == address:
            found.add(name)
        if at + size > RAM:
            break
        table = get(cpu, at, size) & 0xFFFF_FFFF_F000
    return found


@pytest.mark.parametrize("paging", LEVELS)
def test_repairing_what_the_words_name_is_what_it_takes(paging: str) -> None:
    rng = random.Random(f"words {paging}")
    size = 4 if paging == "32-bit" else 8
    named: dict[str, int] = {}
    for number in range(500):
        cpu, s, linear = random_case(rng, paging)
        if outcome(cpu, s, linear).exit is not None:
            continue
        before = ""
        for _ in range(24):
            fault = fault_of(cpu, s, linear)
            if fault is None:
                break
            text = str(fault)
            assert text != before, f"case {number}: {text} again, after that was repaired"
            before = text
            access = "fetch" if s.access == 2 else "write" if s.access == 1 else "read"
            lead = (
                f"#PF({fault.error_code:#x}) at {linear:#x}: {'user' if s.user else 'supervisor'} {access}, "
            )
            assert text.startswith(lead), text
            found = ENTRY.search(text)
            assert found, text
            level, at, name, value, reserved = found.groups()
            address = int(at, 16)
            entry = get(cpu, address, size)
            assert level.split()[-1] in levels_at(cpu, paging, linear, address), text
            rule = text[len(lead) : found.start()]
            if reserved:
                bits = int(reserved, 16)
                assert entry & bits == bits and (fault.error_code or 0) & 8
                put(cpu, address, entry & ~bits, size)
            elif rule and name == "U/S":  # SMEP or SMAP: a user page is what forbids it
                assert value == "1" and entry >> 2 & 1
                cpu.cr4 &= ~(CR4_SMEP if "SMEP" in rule else CR4_SMAP)
                s.smap = s.smap and "SMAP" not in rule
            else:
                assert str(entry >> BIT[name] & 1) == value, text
                if rule:
                    assert rule == "CR0.WP=1 and " and cpu.cr0 & CR0_WP
                put(cpu, address, entry ^ 1 << BIT[name], size)
            named[name or "reserved"] = named.get(name or "reserved", 0) + 1
        else:
            raise AssertionError(f"case {number}: still {before}")
    wanted = {"P", "R/W", "U/S"} | ({"XD", "reserved"} if size == 8 else {"reserved"})
    assert named.keys() == wanted, named


def test_a_read_modify_write_is_told_as_a_write() -> None:
    cpu = paged_cpu("4-level", rip=0x2000, rax=0x40_0000)
    put(cpu, TABLES, TABLES + 0x1000 | 3)
    put(cpu, TABLES + 0x1000, TABLES + 0x2000 | 3)
    put(cpu, TABLES + 0x2000, 0x83)
    cpu.memory.write(0x2000, bytes.fromhex("ff00"))  # inc dword [rax]
    cpu.step()
    assert cpu.last_events is not None
    assert str(cpu.last_events[3][0]) == "#PF(0x2) at 0x400000: supervisor write, PDE at 0x12010 has P=0"


# ---- segment loads: the levels that the words compare ------------------------------------------------------


def test_the_words_of_refused_segment_loads_have_the_levels_that_were_compared() -> None:
    seen: dict[str, int] = {}
    for cpl in range(4):
        cpu = table_cpu(32, level=cpl)
        for kind in (DATA, CODE, CONFORMING_CODE, 0x18, 0x10, 0x0B):
            for dpl in range(4):
                for present in (0, 1):
                    set_entry(cpu, 0x60, descriptor(kind, dpl, present=present))
                    for rpl in range(4):
                        for register in (cpu.ds, cpu.ss):
                            try:
                                load_segment(cpu, register, 0x60 | rpl)
                            except Fault as fault:
                                check_load(fault, register.name, cpl, dpl, rpl, present, seen)
    assert seen.keys() == {"present", "DPL < RPL", "DPL < CPL", "DPL is not", "RPL is not", "type"}, seen


def check_load(
    fault: Fault, register: str, cpl: int, dpl: int, rpl: int, present: int, seen: dict[str, int]
) -> None:
    """One refused load against the numbers that went into it."""
    assert str(fault).startswith(f"{fault.name}(0x60): {register.upper()} load: "), fault
    if "not present" in fault.why:
        what = "present"
        assert not present
    elif found := re.search(r"DPL (\d) < (RPL|CPL) (\d)$", fault.why):
        what = f"DPL < {found[2]}"
        level = rpl if found[2] == "RPL" else cpl
        assert (int(found[1]), int(found[3])) == (dpl, level) and dpl < level
    elif found := re.search(r"(DPL|RPL) (\d) is not (\d)$", fault.why):
        what = f"{found[1]} is not"
        actual = dpl if found[1] == "DPL" else rpl
        assert (int(found[2]), int(found[3])) == (actual, cpl) and actual != cpl
    else:
        what = "type"
        assert " is not a " in fault.why
    seen[what] = seen.get(what, 0) + 1


# ---- what the CPU remembers --------------------------------------------------------------------------------


def test_the_cpu_remembers_the_last_exception_and_what_came_of_its_delivery() -> None:
    cpu = table_cpu(32, rip=0x1000)
    assert cpu.last_events is None
    cpu.memory.write(0x1000, bytes.fromhex("0f0b"))  # ud2, and no gate for #UD
    cpu.step()
    assert cpu.last_events is not None
    retired, rip, cpl, chain = cpu.last_events
    assert (retired, rip, cpl) == (0, 0x1000, 0)
    assert interrupts.chain_words(chain)[:2] == (
        "#UD: UD0, UD1 or UD2: undefined on purpose",
        "#GP(0x33): IDT entry 0x06 is reserved type 0, not a gate",
    )
    assert all(fault.__traceback__ is None for fault in chain if isinstance(fault, Fault))
