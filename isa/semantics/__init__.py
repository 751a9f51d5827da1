"""The instructions, one readable function each, in rooms by family."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from isa.semantics.registry import Definition, build_table

FAMILIES = (
    "arith",
    "bits",
    "control",
    "convert",
    "decimal",
    "far",
    "flags",
    "flow",
    "fpu_control",
    "interrupt",
    "io",
    "logic",
    "mmx",
    "move",
    "muldiv",
    "segment",
    "shift",
    "sse_crypto",
    "sse_float",
    "sse_int",
    "sse_move",
    "sse_string",
    "stack",
    "string",
    "system",
    "x87_arith",
    "x87_move",
    "x87_transcendental",
)


@cache
def instruction_table() -> dict[str, Definition]:
    """iced mnemonic or form name -> its definition."""
    return build_table(import_module(f"isa.semantics.{name}") for name in FAMILIES)
