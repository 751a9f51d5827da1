"""Every instruction keeps to the language of `registry` and writes the flags that iced's table names."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache, reduce
from importlib import import_module
from operator import or_
from types import FunctionType
from typing import Any

import pytest
from iced_x86 import RflagsBits

from isa.decode import code_names
from isa.semantics import FAMILIES
from isa.semantics.registry import Definition
from tests.isa.forms import definition_of, example, implemented_forms

Function = ast.FunctionDef
SIMPLE = (ast.Assign, ast.AnnAssign, ast.If, ast.Raise, ast.Expr, ast.Pass)
FORBIDDEN = (
    ast.For, ast.While, ast.Try, ast.With, ast.Lambda, ast.NamedExpr, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp, ast.Yield, ast.YieldFrom, ast.Await, ast.AugAssign, ast.Delete, ast.Global,
    ast.Nonlocal, ast.Starred, ast.ClassDef, ast.Import, ast.ImportFrom, ast.JoinedStr,
)  # fmt: skip


def tagged_functions() -> list[tuple[FunctionType, tuple[Definition, ...]]]:
    """Every tagged function with its definitions, in the order of the families."""
    found = []
    for family in FAMILIES:
        module = import_module(f"isa.semantics.{family}")
        for value in vars(module).values():
            tags = getattr(value, "__insn__", None)
            if tags and getattr(value, "__module__", "") == module.__name__:
                found.append((value, tuple(definition for _, definition in tags)))
    return found


TAGGED = tagged_functions()


@cache
def tree_of(function: Callable[..., Any]) -> Function:
    """The AST of a function."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, Function)
    return node


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a body, those inside `if` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from statements(statement.body)
            yield from statements(statement.orelse)


def violations(function: Callable[..., Any]) -> list[str]:
    """What an inlineable function or statement helper does that the language does not have."""
    node = tree_of(function)
    found = []
    arguments = node.args
    if arguments.kwonlyargs or arguments.kwarg or arguments.defaults or arguments.posonlyargs:
        found.append("parameters other than plain ones")
    for statement in statements(node.body):
        if not isinstance(statement, SIMPLE):
            found.append(f"line {statement.lineno}: {type(statement).__name__}")
        if isinstance(statement, ast.Assign):
            if len(statement.targets) != 1:
                found.append(f"line {statement.lineno}: several targets")
            target = statement.targets[0]
            if isinstance(target, ast.Tuple):
                plain = all(isinstance(element, ast.Name) for element in target.elts)
                if not plain:
                    found.append(f"line {statement.lineno}: a tuple of other things than names")
            elif not isinstance(target, ast.Name | ast.Attribute):
                found.append(f"line {statement.lineno}: assignment to {type(target).__name__}")
        if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Call | ast.Constant):
            found.append(f"line {statement.lineno}: an expression without effect")
        if isinstance(statement, ast.Raise):
            continue  # the text of a fault may be formatted
        children = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
        for child in children:
            found += [f"line {statement.lineno}: {type(part).__name__}"
                      for part in ast.walk(child) if isinstance(part, FORBIDDEN)]  # fmt: skip
    return found


def statement_helpers(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Module functions that are called as statements."""
    for statement in statements(tree_of(function).body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            called = statement.value.func
            if isinstance(called, ast.Name):
                yield inspect.unwrap(function).__globals__[called.id]


INLINE = [function for function, definitions in TAGGED if any(d.inline for d in definitions)]


@pytest.mark.parametrize("function", INLINE, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}")
def test_an_inlineable_function_keeps_to_the_language(function: FunctionType) -> None:
    assert violations(function) == []
    assert tree_of(function).args.args[0].arg == "cpu"
    assert not any(isinstance(node, ast.Return) for node in ast.walk(tree_of(function)))


@pytest.mark.parametrize("function", INLINE, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}")
def test_the_helpers_of_an_inlineable_function_keep_to_the_language_too(function: FunctionType) -> None:
    todo = list(statement_helpers(function))
    seen = set()
    while todo:
        helper = todo.pop()
        if helper in seen:
            continue
        seen.add(helper)
        assert violations(helper) == [], helper.__name__
        assert not any(isinstance(node, ast.Return) for node in ast.walk(tree_of(helper))), helper.__name__
        todo += statement_helpers(helper)


@pytest.mark.parametrize("function", [f for f, _ in TAGGED],
                         ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}")  # fmt: skip
def test_every_instruction_has_a_docstring_of_one_line(function: FunctionType) -> None:
    text = inspect.getdoc(function)
    assert text
    if function.__name__ != "repeat":  # REP's explains when a repetition may stop
        assert "\n" not in text and not text.endswith(".")


# ---- flags -------------------------------------------------------------------------------------------------

FLAGS = {"cf": RflagsBits.CF, "pf": RflagsBits.PF, "af": RflagsBits.AF, "zf": RflagsBits.ZF,
         "sf": RflagsBits.SF, "of": RflagsBits.OF, "df": RflagsBits.DF, "if_": RflagsBits.IF}  # fmt: skip


def written_flags(function: Callable[..., Any]) -> set[str] | None:
    """Flags that a function or its statement helpers may write; None where RFLAGS is written as a whole."""
    found: set[str] = set()
    for node in ast.walk(tree_of(function)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "cpu" and node.attr in FLAGS:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("set_rflags", "set_rflags_raw", "software_interrupt"):
                return None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            helper = function.__globals__.get(node.func.id)
            first = node.args[0] if node.args else None
            takes_cpu = isinstance(first, ast.Name) and first.id == "cpu"
            if takes_cpu and isinstance(helper, FunctionType):
                inner = written_flags(helper)
                if inner is None:
                    return None
                found |= inner
    return found


def names(mask: int) -> set[str]:
    """Our names of iced's flag bits."""
    return {name for name, bit in FLAGS.items() if mask & bit}


# The table counts what a hypervisor or SMM does to RFLAGS
_BEYOND_THE_CPU = ("hypercall", "rsm")


def forms_by_function() -> dict[Callable[..., Any], list[int]]:
    """The forms that each function defines."""
    found: dict[Callable[..., Any], list[int]] = {}
    for code in implemented_forms():
        definition = definition_of(code)
        assert definition is not None
        if "KNC" not in code_names()[code] and "XOP" not in code_names()[code]:
            found.setdefault(definition.function, []).append(code)
    return found


def test_a_definition_writes_the_flags_that_the_table_calls_modified_and_no_others() -> None:
    """Written, cleared and set flags must be among those a function assigns, the assigned ones among those
    and the undefined ones. System transfers, which write RFLAGS as a whole, are left out."""
    wrong = []
    for function, codes in forms_by_function().items():
        assigned = written_flags(function)
        if assigned is None or function.__name__ in _BEYOND_THE_CPU:
            continue
        examples = [found for found in map(example, codes) if found is not None]
        required = names(
            reduce(or_, (e.rflags_written | e.rflags_cleared | e.rflags_set for e in examples), 0)
        )
        allowed = names(reduce(or_, (e.rflags_modified for e in examples), 0))
        if not (required <= assigned <= allowed):
            name = f"{function.__module__}.{function.__name__}"
            wrong.append((name, sorted(required - assigned), sorted(assigned - allowed)))
    assert wrong == []


# What changes modes, segments, address translation or code, whoever does it
BEYOND_BLOCKS = frozenset(
    (
        *("update_mode", "select_tlb", "flush_tlb", "flush", "load_segment", "set_rflags", "set_rflags_raw"),
        *("set_cr0", "set_cr3", "set_cr4", "write_cr", "write_msr", "xcr0", "efer", "cr0", "cr3", "cr4"),
        *("cs", "ds", "es", "fs", "gs", "ss", "gdtr", "idtr", "ldtr", "tr", "halted", "code", "rip"),
    )
)


def changed_by(function: Callable[..., Any], seen: set[Any]) -> set[str]:
    """Parts of the CPU that a function assigns to, and what it calls, with those of the functions called."""
    if function in seen:
        return set()
    seen.add(function)
    found = set()
    for node in ast.walk(tree_of(function)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            parts = ast.unparse(node).split(".")
            if parts[0] == "cpu":
                found.add(parts[1])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.add(node.func.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
            callee = function.__globals__.get(node.func.id)
            if isinstance(callee, FunctionType):
                found |= changed_by(callee, seen)
    return found


@pytest.mark.parametrize(
    "function",
    [function for function, definitions in TAGGED
     if any(definition.callable and not definition.inline for definition in definitions)],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_what_a_block_may_call_changes_nothing_that_the_block_was_made_for(function: FunctionType) -> None:
    assert changed_by(function, set()) & BEYOND_BLOCKS == set()


@pytest.mark.parametrize("name", ("lmsw", "wrmsr", "xsetbv", "swapgs", "hlt", "clts", "retf"))
def test_what_changes_that_is_found_out(name: str) -> None:
    (function,) = (function for function, _ in TAGGED if function.__name__ == name)
    assert changed_by(function, set()) & BEYOND_BLOCKS
