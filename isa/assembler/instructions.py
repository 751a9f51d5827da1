"""The instruction as a statement: the ways to read its line, and the shortest bytes of the first that fits.

Not the opcodes themselves (`forms.py`, `encode.py`), but what custom lets one leave out, add or turn round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from iced_x86 import Register, RegisterExt

from isa.assembler.encode import Encoders, Encoding, build, set_prefixes
from isa.assembler.expressions import Scope
from isa.assembler.forms import Plan, Query, Shape, candidates
from isa.assembler.kinds import BRANCHES, K, registers
from isa.assembler.mnemonics import alias_tables
from isa.assembler.operands import FarOperand, Operand
from isa.assembler.resolve import Place, Resolved, number_kinds, resolve
from isa.assembler.results import Problem
from isa.assembler.statements import Layout, Statement

READS_SELECTOR: Final = frozenset({"lldt", "ltr", "verr", "verw", "lmsw", "lkgs", "arpl"})
"""Instructions that read 16 bits whatever the operand size: 66 before their 16-bit register is waste."""

POPS_AFTER: Final[Mapping[str, str]] = {
    n: n + "p" for n in ("fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr")
}
"""x87 arithmetic without operands pops, SDM Volume 2, "FADD/FADDP/FIADD"."""

RIP_BASES: Final = frozenset({Register.RIP, Register.EIP})

LOOPS: Final = frozenset({"loop", "loope", "loopz", "loopne", "loopnz"})

COUNTERS: Final[Mapping[str, str]] = {"cx": "w", "ecx": "d", "rcx": "q"}

IMPLICIT_XMM0: Final = frozenset({"blendvps", "blendvpd", "pblendvb", "sha256rnds2"})


@dataclass(slots=True)
class Insn(Statement):
    """An instruction with its prefixes and the settings of its line."""

    mnemonic: str
    operands: tuple[Operand, ...]
    prefixes: tuple[str, ...]
    operand_size: int
    place: Place
    constant: bool  # no symbol and no $ in it
    floor: int = 0
    frozen: bytes | None = None

    def emit(self, scope: Scope, layout: Layout) -> bytes:
        if self.frozen is not None:
            return self.frozen
        here = scope.here
        items = [resolve(operand, self.place, scope) for operand in self.operands]
        found = list(self.encodings(items, here, layout.encoders))
        best = min(found, key=lambda encoding: len(encoding.code))
        if layout.is_late() and not self.constant and len(best.code) != self.floor:
            best = max(found, key=lambda encoding: len(encoding.code))
        elif len(best.code) < self.floor:
            found.extend(self.encodings(items, here, layout.encoders, wide=True))
            longer = [encoding for encoding in found if len(encoding.code) >= self.floor]
            best = min(longer or found, key=lambda encoding: len(encoding.code))
        if self.constant and best.fixed:
            self.frozen = best.code
        elif layout.may_only_grow():
            self.floor = max(self.floor, len(best.code))
        return best.code

    def is_fixed(self) -> bool:
        return self.frozen is not None

    def encodings(
        self, items: list[Resolved], here: int, encoders: Encoders, wide: bool = False
    ) -> Iterator[Encoding]:
        """Every accepted encoding of the first reading of the operands that has any. Raises `Problem`."""
        first: Problem | None = None
        found = False
        for mnemonic, variant in _readings(self.mnemonic, items, self.place.bits, self.operand_size):
            try:
                plans = candidates(self.query(mnemonic, variant))
            except Problem as problem:
                first = first or problem
                continue
            for plan in plans:
                try:
                    yield self.encoding(plan, variant, here, encoders, wide)
                except Problem as problem:
                    first = first or problem
                else:
                    found = True
            if found:
                return
        raise first or Problem(f"{self.mnemonic} does not take these operands; look at its forms in the SDM")

    def needed_size(self, items: Sequence[Resolved]) -> int:
        """The operand size that the values of a 16-bit PUSH or far jump ask for; 0: the mode's own."""
        if self.place.bits != 16 or len(items) != 1 or -0x8000 <= items[0].number <= 0xFFFF:
            return 0
        return 32 if self.mnemonic == "push" or isinstance(self.operands[0], FarOperand) else 0

    def query(self, mnemonic: str, items: Sequence[Resolved]) -> Query:
        """The candidate search for one reading of the line."""
        shapes = tuple(item.shape for item in items)
        operand_size = self.operand_size or self.needed_size(items)
        address_size = self.place.address_size
        alias = alias_tables()[0].get(mnemonic)
        if alias is not None:
            operand_size = operand_size or alias.operand_size
            address_size = address_size or alias.address_size
        return Query(mnemonic, shapes, self.place.bits, operand_size, address_size)

    def encoding(
        self, plan: Plan, items: Sequence[Resolved], here: int, encoders: Encoders, wide: bool
    ) -> Encoding:
        """One candidate as bytes. Raises `Problem`."""
        instruction = build(plan, items, self.place, here, wide)
        set_prefixes(instruction, plan, self.prefixes, self.mnemonic)
        code = encoders.encode(instruction, self.place.bits, here)
        relative = next(
            (item.address for item in items if item.address and item.address.base in RIP_BASES), None
        )
        if relative is not None and relative.from_next:
            # The displacement is given, so the target depends on the length, which is known only now.
            width = (1 << relative.bits) - 1
            instruction.memory_displacement = (here + len(code) + relative.displacement) & width
            code = encoders.encode(instruction, self.place.bits, here)
        fixed = not (relative is not None and not relative.from_next) and BRANCHES.keys().isdisjoint(
            plan.kinds
        )
        return Encoding(code, fixed)


def _constant_item(number: int) -> Resolved:
    return Resolved(Shape(number_kinds(0, "")), number=number)


def _register_item(name: str) -> Resolved:
    entry = registers()[0][name]
    return Resolved(Shape(entry.kinds, name=entry.name), register=entry.id)


def _reads_selector(mnemonic: str, items: Sequence[Resolved]) -> bool:
    """Whether the last operand is a 16-bit register whose upper part the instruction ignores."""
    if not items or K.R16_REG not in items[-1].shape.kinds:
        return False
    if mnemonic == "mov":
        return len(items) == 2 and K.SEG_REG in items[0].shape.kinds
    return mnemonic in READS_SELECTOR


def _widened(item: Resolved, width: int) -> Resolved:
    """A 16-bit register as the 32- or 64-bit one it is part of; everything else as it is."""
    if K.R16_REG not in item.shape.kinds:
        return item
    register = item.register
    wide = RegisterExt.full_register(register) if width == 64 else RegisterExt.full_register32(register)
    return _register_item(registers()[1][wide].name)


def _readings(
    mnemonic: str, items: list[Resolved], bits: int, operand_size: int
) -> Iterator[tuple[str, Sequence[Resolved]]]:
    """The ways to read a line: as written, then with what custom lets one leave out, add or turn round."""
    pseudo = alias_tables()[1].get(mnemonic)
    if pseudo is not None:
        yield pseudo.mnemonic, [*items, _constant_item(pseudo.immediate)]
        return
    names = [item.shape.name for item in items]
    width = operand_size or (16 if bits == 16 else 32)
    if width != 16 and _reads_selector(mnemonic, items):
        yield mnemonic, [_widened(item, width) for item in items]
    if mnemonic == "xchg" and bits == 64 and names == ["eax", "eax"]:
        # 90 is NOP and leaves the upper half of RAX alone; XCHG EAX, EAX clears it.
        yield mnemonic, [items[0], Resolved(Shape(frozenset({K.R32_REG})), register=items[1].register)]
        return
    if not items and mnemonic in POPS_AFTER:
        yield POPS_AFTER[mnemonic], [_register_item("st1"), _register_item("st0")]
        return
    if mnemonic == "xchg" and names and names[0] in ("ax", "eax", "rax"):
        yield mnemonic, items[::-1]  # the one-byte forms name the accumulator last
    yield mnemonic, items
    if mnemonic in ("xchg", "test") and len(items) == 2:
        yield mnemonic, items[::-1]
    elif mnemonic == "imul" and len(items) == 2:
        yield mnemonic, [items[0], *items]
    elif mnemonic in ("aam", "aad") and not items:
        yield mnemonic, [_constant_item(10)]
    elif mnemonic in LOOPS and len(items) == 2 and names[1] in COUNTERS:
        base = {"loopz": "loope", "loopnz": "loopne"}.get(mnemonic, mnemonic)
        yield base + COUNTERS[names[1]], items[:1]
    elif mnemonic in IMPLICIT_XMM0 and len(items) == 3 and names[2] == "xmm0":
        yield mnemonic, items[:2]
    elif mnemonic.startswith("f"):
        top = _register_item("st0")
        if not items:
            below = _register_item("st1")
            yield from ((mnemonic, other) for other in ([below, top], [top, below], [below]))
        elif len(items) == 1:
            yield mnemonic, [top, *items]
            yield mnemonic, [*items, top]
        elif len(items) == 2 and names[0] == "st0":
            yield mnemonic, items[1:]
        elif len(items) == 2 and names[1] == "st0":
            yield mnemonic, items[:1]
