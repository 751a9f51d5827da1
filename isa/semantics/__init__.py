"""The instructions, one readable function each, in rooms by family."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from isa.semantics.registry import Definition, build_table

FAMILIES = (
    "arith",
    "avx_gather",
    "avx_move",
    "avx_permute",
    "bits",
    "control",
    "convert",
    "decimal",
    "far",
    "flags",
    "flow",
    "fma",
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
    "xsave",
)


@cache
def instruction_table() -> dict[str, Definition]:
    """iced mnemonic or form name -> its definition."""
    return build_table(import_module(f"isa.semantics.{name}") for name in FAMILIES)


_NEVER_BY_MNEMONIC = ("EVEX_", "MVEX_", "VEX_KNC_")  # they share mnemonics with VEX forms and mean more


def definition_for(name: str, mnemonic: str) -> Definition | None:
    """What defines the iced form `name` of `mnemonic`: the form's own definition or its mnemonic's."""
    table = instruction_table()
    found = table.get(name)
    if found is None and not name.startswith(_NEVER_BY_MNEMONIC):
        found = table.get(mnemonic)
    return found
