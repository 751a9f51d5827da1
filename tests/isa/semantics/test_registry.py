"""The table of instructions: its names exist, win in the right order and cover what CPUID offers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from iced_x86 import EncodingKind, OpCodeInfo

from isa.cpuid import feature_set
from isa.decode import code_names, form_features, mnemonic_names
from isa.operands import Width
from isa.semantics import instruction_table
from isa.semantics.registry import build_table, insn
from tests.isa.forms import definition_of, encodings, example, exists_in, implemented_forms
from tests.isa.machine import make_cpu

PSEUDO = {"REP"}  # the driver of repeated string instructions


def room(**functions: Any) -> ModuleType:
    """A module holding `functions` as if it had defined them."""
    module = ModuleType("a_room")
    for name, function in functions.items():
        function.__module__ = "a_room"
        setattr(module, name, function)
    return module


def test_every_name_of_the_table_is_an_iced_mnemonic_or_form() -> None:
    known = {*mnemonic_names().values(), *code_names().values(), *PSEUDO}
    assert instruction_table().keys() <= known


def test_no_definition_is_unreachable() -> None:
    """Every definition serves some form that the decoder produces in some mode."""
    used = {id(definition_of(code)) for code in implemented_forms() if example(code) is not None}
    idle = {name for name, definition in instruction_table().items() if id(definition) not in used}
    assert idle == PSEUDO


def test_a_form_wins_over_its_mnemonic() -> None:
    table = instruction_table()
    assert definition_of(code("MOV_RM16_SREG")) is table["MOV_RM16_SREG"]
    assert definition_of(code("ADD_RM64_R64")) is table["ADD"]


def code(name: str) -> int:
    """iced's number of a form."""
    return next(number for number, known in code_names().items() if known == name)


def test_a_name_that_two_rooms_define_is_refused() -> None:
    @insn("ADD")
    def one(cpu: Any) -> None:
        """One"""

    @insn("ADD")
    def two(cpu: Any) -> None:
        """Two"""

    with pytest.raises(ValueError, match="ADD is defined in a_room and before"):
        build_table([room(one=one), room(two=two)])


def test_a_function_imported_from_another_room_is_not_defined_again() -> None:
    @insn("ADD")
    def add(cpu: Any) -> None:
        """Add"""

    home = room(add=add)
    guest = ModuleType("elsewhere")
    guest.add = add  # type: ignore[attr-defined]
    assert build_table([home, guest]).keys() == {"ADD"}


def test_one_function_may_be_tagged_several_times() -> None:
    @insn("ADD", inline=False)
    @insn("SUB", sized=True)
    def both(cpu: Any) -> None:
        """Both"""

    table = build_table([room(both=both)])
    assert (table["ADD"].inline, table["SUB"].inline) == (False, True)
    assert (table["ADD"].sized, table["SUB"].sized) == (False, True)


def test_a_sized_instruction_gets_its_operand_size_first() -> None:
    cpu = make_cpu(64, bytes.fromhex("669c"))  # pushf with 16 bits
    (width,) = cpu.code[cpu.rip].operands
    assert isinstance(width, Width) and (width.bits, width.bytes, width.mask) == (16, 2, 0xFFFF)


# Forms that the default CPU's features allow by iced's table and that are of processors of the past
_PAST = ("486", "KNC", "386", "JMPE", "LOADALL", "SMINT", "UMOV", "IBTS", "XBTS", "TR")


def test_every_form_of_the_default_cpu_is_implemented() -> None:
    features = feature_set()
    missing = []
    for number, name in code_names().items():
        info: Any = OpCodeInfo(number)
        if not info.is_instruction or info.encoding != EncodingKind.LEGACY or any(p in name for p in _PAST):
            continue
        if not set(form_features(number)) <= features or definition_of(number) is not None:
            continue
        if any(exists_in(number, bits) and list(encodings(number, bits)) for bits in (16, 32, 64)):
            missing.append(name)
    assert missing == []
