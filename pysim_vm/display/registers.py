"""Registers as a picture: one moment of a vCPU, what changed since another, and instructions with both.

A `RegisterView` is a copy: it stays what it was when the guest runs on. It changes no register.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from isa.cpu import Cpu
from isa.decode import Insn
from isa.state import GPR_NAMES, SEGMENT_NAMES, XMM_NAMES, YMM_HIGH_NAMES
from pysim_vm.display.html import (
    Cell,
    Drawn,
    Note,
    Part,
    Picture,
    Row,
    Span,
    Table,
    cut,
    joined,
    number,
)
from pysim_vm.report import (
    CR0_NAMES,
    CR4_NAMES,
    EFER_NAMES,
    FLAG_NAMES,
    Change,
    changes,
    instruction_at,
    place,
    plural,
    segment_kind,
    snapshot,
)
from pysim_vm.symbols import SymbolTable

if TYPE_CHECKING:
    from pysim_vm.stepping import Moment

ARITHMETIC: Final = ("OF", "DF", "IF", "TF", "SF", "ZF", "AF", "PF", "CF")  # shown whether set or not
CHANGES_SHOWN: Final = 24  # of one instruction, or of what has no place in the picture
STEPS_SHOWN: Final = 200
SEGMENTS: Final = (*SEGMENT_NAMES, "ldtr", "tr")
DEBUG_REGISTERS: Final = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
DEBUG_AT_RESET: Final = {"dr6": 0xFFFF_0FF0, "dr7": 0x400}
FPU_AT_RESET: Final = {"mxcsr": 0x1F80}


@dataclass(frozen=True, slots=True, repr=False)
class RegisterView(Picture):
    """The registers of one vCPU at one moment.

    `values` are `report.snapshot`'s, also by `view["rax"]`; `retired` counts the instructions before it.
    `earlier` is the view that the changes, highlighted, refer to, or None.
    """

    values: Mapping[str, int]
    retired: int
    mode: str
    place: str
    next: str
    kinds: Mapping[str, str]
    wide: bool
    earlier: RegisterView | None = None

    @classmethod
    def of(cls, cpu: Cpu, symbols: SymbolTable | None = None) -> RegisterView:
        """The registers of a CPU as they are now."""
        return cls(
            snapshot(cpu), cpu.retired, cpu.mode_name(), place(cpu, symbols=symbols),
            instruction_at(cpu, cpu.rip)[1],
            {name: segment_kind(getattr(cpu, name)) for name in SEGMENTS}, cpu.mode64,
        )  # fmt: skip

    def __getitem__(self, name: str) -> int:
        return self.values[name.lower()]

    def since(self, earlier: RegisterView) -> RegisterView:
        """The same registers with what is different from `earlier` highlighted."""
        return replace(self, earlier=earlier)

    def changes(self, later: RegisterView) -> list[Change]:
        """What is different in `later`: RFLAGS flag by flag, RIP left out."""
        return changes(self.values, later.values)

    def parts(self) -> Iterator[Part]:
        """A sentence, the general registers, RIP and RFLAGS, segments, control registers, the others."""
        yield Note(self._title(), "title")
        yield self._general()
        yield self._place_and_flags()
        yield self._segments()
        yield Table((), "nlw", tuple(self._control()))
        vectors = tuple(self._vectors())
        if vectors:
            yield Table((), "nl", vectors)
        yield from self._others()

    def _title(self) -> str:
        title = f"{self.mode} mode, CPL {self['cpl']}, after {plural(self.retired, 'instruction')}"
        if self.earlier is not None and self.retired >= self.earlier.retired:
            title += f"; {plural(self.retired - self.earlier.retired, 'instruction')} later, changes marked"
        return title

    def _tone(self, name: str) -> str:
        old = self.earlier
        return "changed" if old is not None and old.values.get(name, 0) != self.values.get(name, 0) else ""

    def _number(self, name: str, digits: int) -> tuple[Span, ...]:
        value = self.values[name] & (1 << 4 * digits) - 1
        return number(value, digits, self._tone(name))

    def _hex(self, name: str) -> Span:
        return Span(f"{self.values[name]:#x}", self._tone(name))

    def _general(self) -> Table:
        columns, digits, count = 4, 16 if self.wide else 8, 16 if self.wide else 8
        lines = count // columns
        rows = []
        for line in range(lines):
            cells: list[Cell] = []
            for name in GPR_NAMES[line:count:lines]:
                cells += [self._label(name), self._number(name, digits)]
            rows.append(Row(tuple(cells)))
        return Table((), "nl" * columns, tuple(rows))

    def _label(self, name: str) -> str:
        return name.upper() if self.wide else f"E{name[1:].upper()}"

    def _place_and_flags(self) -> Table:
        digits = 16 if self.wide else 8
        where = self.place if self.place != f"{self['rip']:#x}" else ""
        at = (Span(where + "  ", "dim"), Span(self.next)) if where else Span(self.next)
        return Table((), "nll", (
            Row((self._label("rip"), number(self["rip"], digits), at)),
            Row((self._label("rflags"), number(self["rflags"], digits), self._flags())),
        ))  # fmt: skip

    def _flags(self) -> Cell:
        value = self["rflags"]
        before = value if self.earlier is None else self.earlier["rflags"]
        shown = []
        for bit, name in reversed(FLAG_NAMES):
            now, then = value >> bit & 1, before >> bit & 1
            if name in ARITHMETIC or now or then:
                shown.append(Span(name, _bit_tone(now, then) or ("strong" if now else "dim")))
        tone = "changed" if (value ^ before) & 0x3000 else "" if value & 0x3000 else "dim"
        return joined((*shown, Span(f"IOPL {value >> 12 & 3}", tone)), "  ")

    def _segments(self) -> Table:
        rows = []
        for name in SEGMENTS:
            kind = self.kinds[name]
            fields = (name, f"{name}.base", f"{name}.limit", f"{name}.rights")
            tone = "" if kind != "null" or any(map(self._tone, fields)) else "dim"
            rows.append(Row((
                name.upper(), Span(f"{self[name]:04x}", self._tone(name) or tone),
                Span(f"{self[fields[1]]:#x}", self._tone(fields[1]) or tone),
                Span(f"{self[fields[2]]:#x}", self._tone(fields[2]) or tone),
                Span(kind, self._tone(fields[3]) or tone),
            )))  # fmt: skip
        for name in ("gdtr", "idtr"):
            rows.append(
                Row((name.upper(), "", self._hex(f"{name}.base"), self._hex(f"{name}.limit"), "table"))
            )
        return Table(("", "selector", "base", "limit", "segment"), "nlrrl", tuple(rows))

    def _control(self) -> Iterator[Row]:
        for name, names in (("cr0", CR0_NAMES), ("cr4", CR4_NAMES), ("efer", EFER_NAMES)):
            value = self[name]
            before = value if self.earlier is None else self.earlier[name]
            bits = [
                Span(text, _bit_tone(value >> bit & 1, before >> bit & 1))
                for bit, text in names
                if (value | before) >> bit & 1
            ]
            yield Row((name.upper(), self._hex(name), joined(bits)))
        yield Row(("CR2", self._hex("cr2"), Span("last address of a page fault", "dim")))
        yield Row(("CR3", self._hex("cr3"), Span("root of the page tables", "dim")))
        for name in ("cr8", *DEBUG_REGISTERS, "mxcsr"):
            usual = {**DEBUG_AT_RESET, **FPU_AT_RESET}.get(name, 0)
            if self[name] != usual or self._tone(name):
                yield Row((name.upper(), self._hex(name), ""))

    def _vectors(self) -> Iterator[Row]:
        """Vector registers that hold something or changed."""
        for low, high in zip(XMM_NAMES, YMM_HIGH_NAMES, strict=True):
            upper = self[high] or self._tone(high)
            if self[low] or upper or self._tone(low):
                digits = (*self._number(high, 32), *self._number(low, 32)) if upper else self._number(low, 32)
                yield Row(((low.replace("xmm", "ymm") if upper else low).upper(), digits))

    def _others(self) -> Iterator[Note]:
        """Changes of what is not shown above."""
        if self.earlier is None:
            return
        found = [
            str(change)
            for change in self.earlier.changes(self)
            if change.name.startswith(("msr ", "fcw", "fsw", "xcr0")) or change.name.endswith(".x87")
        ]
        if found:
            yield Note("also changed: " + ", ".join(found[:CHANGES_SHOWN]))
            yield from cut(len(found), CHANGES_SHOWN, "change")


def _bit_tone(now: int, then: int) -> str:
    if now == then:
        return ""
    return "changed" if now else "gone"


# ---- step by step ------------------------------------------------------------------------------------------


def moment_values(moment: Moment) -> dict[str, int]:
    """A Moment of `AxVM.steps` in the form of `report.snapshot`: the general registers, RIP and RFLAGS."""
    values: dict[str, int] = {name: getattr(moment, name) for name in GPR_NAMES}
    return values | {"rip": moment.rip, "rflags": moment.rflags}


def moment_picture(moment: Moment) -> Picture:
    """One Moment: the general registers and the flags."""
    rows = []
    for line in range(4):
        cells: list[Cell] = []
        for name in GPR_NAMES[line::4]:
            cells += [name.upper(), number(getattr(moment, name), 16)]
        rows.append(Row(tuple(cells)))
    flags = [
        Span(name, "strong" if moment.rflags >> bit & 1 else "dim")
        for bit, name in reversed(FLAG_NAMES)
        if name in ARITHMETIC or moment.rflags >> bit & 1
    ]
    place_row = ("RIP", number(moment.rip, 16), "RFLAGS", number(moment.rflags, 16), "", joined(flags))
    return Drawn((
        Note(f"after {plural(moment.retired, 'instruction')}", "title"),
        Table((), "nlnlnlnl", tuple(rows)),
        Table((), "nlnlnl", (Row(place_row),)),
    ))  # fmt: skip


def change_spans(found: Sequence[Change]) -> Iterator[Span]:
    """Changes one by one, the first CHANGES_SHOWN."""
    for change in found[:CHANGES_SHOWN]:
        yield Span(str(change))
    if len(found) > CHANGES_SHOWN:
        yield Span(f"… {plural(len(found) - CHANGES_SHOWN, 'more change')}", "dim")


def steps_picture(
    cpu: Cpu, moments: Iterable[Moment | RegisterView], symbols: SymbolTable | None = None
) -> Picture:
    """Moments in a row: at each the instruction that came next, and what had changed by the next moment.

    Instructions are read as they are in memory now, where the CPU does not know them from executing them.
    """
    rows: list[Row] = []
    more = 0
    before: tuple[int, dict[str, int]] | None = None
    for moment in moments:
        if isinstance(moment, RegisterView):
            now = moment.retired, {
                name: moment.values[name] for name in (*GPR_NAMES, "rip", "rflags")
            }  # fmt: skip
        else:
            now = moment.retired, moment_values(moment)
        if len(rows) >= STEPS_SHOWN:
            more += 1
            continue
        if before is not None:
            rows.append(_step_row(cpu, before, symbols, changes(before[1], now[1])))
        before = now
    if before is not None and len(rows) < STEPS_SHOWN:
        rows.append(_step_row(cpu, before, symbols, (), "here"))
    head = ("#", "at", "instruction", "what changed")
    parts: list[Part] = [Table(head, "rllw", tuple(rows)), *cut(STEPS_SHOWN + more, STEPS_SHOWN, "step")]
    return Drawn(tuple(parts))


def _step_row(
    cpu: Cpu,
    at: tuple[int, Mapping[str, int]],
    symbols: SymbolTable | None,
    found: Sequence[Change],
    tone: str = "",
) -> Row:
    rip = at[1]["rip"]
    _, text = known_instruction(cpu, rip)
    return Row((f"{at[0]:,}", place(cpu, rip, symbols), text, joined(change_spans(found), ", ")), tone)


def known_instruction(cpu: Cpu, ip: int) -> tuple[bytes, str]:
    """Bytes and text of the instruction at CS:`ip`, from those the CPU decoded or else from memory."""
    insn: Insn | None = cpu.code.get(ip)
    if insn is None:
        return instruction_at(cpu, ip)
    from isa.decode import disassemble

    return insn.raw, disassemble(insn.raw, cpu.code_bits, ip)
