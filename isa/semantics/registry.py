"""The `@insn` tag that makes a function the definition of an instruction, and the table built from the tags.

The language of these functions (what lets the block engine derive its code from them):
signature `(cpu, *operands)`; assignments, `if`/`else`, `raise`, helper calls; loops, `try` and early
`return` only with `inline=False`, which a block may call if `called=True` says so. Order inside: read, store
to memory, commit registers, flags - so that a fault needs no undo. `tests/isa/semantics/test_language.py`
holds every function to this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

Semantics = Callable[..., None]
# bulk(cpu, count, while_equal, *operands) -> elements done; 0 where they have to go one by one
Bulk = Callable[..., int]


# How a definition serves the 256-bit VEX forms that share it
WIDE = 0  # it takes any width
HALVES = 128  # it is executed for each half; smaller: so many bits of a source make 128 bits of the result


@dataclass(frozen=True, slots=True)
class Definition:
    """One tagged function and how it is called."""

    function: Semantics
    inline: bool  # may become part of a translated block
    sized: bool  # the operand size comes as an extra first operand (RET, ENTER, PUSHF ...)
    own_privilege: bool  # the function checks CPL itself instead of iced's CPL table
    rep: bool  # a string instruction: REP prefixes repeat it through `string.repeat`
    bulk: Bulk | None  # does many elements at once where nothing can tell the difference
    located: bool = False  # an `operands.Location` comes as an extra first operand (x87: FIP and FOP)
    named: bool = False  # the mnemonic comes as an extra first operand (FMA)
    part: int = WIDE  # of a 256-bit VEX form: WIDE, HALVES or less
    called: bool = False  # for one that is not inline: a translated block may call it

    @property
    def callable(self) -> bool:
        """Whether a translated block may call the function where it cannot be statements: it changes nothing
        that the block was made for, no mode, no segment and no memory map. What is located is x87, which
        has its registers to itself. `tests/isa/semantics/test_language.py` looks into every one."""
        return self.inline or self.located or self.called

    @property
    def arity(self) -> int:
        """Operands of the function. A VEX form with one more has its first source apart from DEST."""
        count: int = self.function.__code__.co_argcount
        return count - 1


def insn(
    *names: str,
    inline: bool = True,
    sized: bool = False,
    own_privilege: bool = False,
    rep: bool = False,
    bulk: Bulk | None = None,
    located: bool = False,
    named: bool = False,
    part: int = WIDE,
    called: bool = False,
    vex: int | None = None,
) -> Callable[[Semantics], Semantics]:
    """Tag a function as the definition of iced mnemonics ("ADD") or single forms ("MOV_CR_R64").

    A form's name wins over its mnemonic's. One function may be tagged several times. With `vex` it also
    defines the VEX forms, whose names begin with V: DEST then reads the first source, and writing it zeroes
    the bits above its width. The value says what to do about 256 bits: WIDE, HALVES or less.
    """

    def tag(function: Semantics) -> Semantics:
        definition = Definition(
            function, inline, sized, own_privilege, rep, bulk, located, named, part, called
        )
        tags: list[tuple[tuple[str, ...], Definition]] = getattr(function, "__insn__", [])
        tags = [*tags, (names, definition)]
        if vex is not None:
            twins = tuple(f"VEX_V{name}" if "_" in name else f"V{name}" for name in names)
            tags.append((twins, replace(definition, part=vex)))
        function.__insn__ = tags  # type: ignore[attr-defined]  # the tag itself
        return function

    return tag


def build_table(modules: Iterable[ModuleType]) -> dict[str, Definition]:
    """Name -> definition over every tagged function of `modules`; ValueError if a name is defined twice."""
    table: dict[str, Definition] = {}
    for module in modules:
        for value in vars(module).values():
            tags: Any = getattr(value, "__insn__", ())
            if value.__class__ is ModuleType or getattr(value, "__module__", None) != module.__name__:
                continue
            for names, definition in tags:
                for name in names:
                    if name in table:
                        raise ValueError(f"{name} is defined in {module.__name__} and before")
                    table[name] = definition
    return table
