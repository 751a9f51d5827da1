"""Where two records part: the first row that differs, what came before it, and both machines there.

It compares rows, not files: records that were cut or compressed differently are alike. It runs no guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from isa.state import GPR_NAMES
from pysim_vm.record_format import Kind
from pysim_vm.report import changes
from pysim_vm.trace.record import Array, Record
from pysim_vm.trace.trace import Rows, Trace

PIECE: Final = 1 << 14  # rows compared at a time
COMPARED: Final = (Kind.EXITS, Kind.INSTRUCTIONS, Kind.CHANGES, Kind.STORES)
REGISTER_KINDS: Final = ("rip", "rflags", *GPR_NAMES)
HEADER_KEYS: Final = ("guest", "memory", "ns_per_instruction", "settings", "vm", "devices", "start")


@dataclass(frozen=True, slots=True)
class MachineState:
    """The registers of a vCPU by name and the instruction it is at; empty with a `note` if unknown."""

    registers: Mapping[str, int]
    text: str
    note: str


@dataclass(slots=True)
class Divergence:
    """The first difference: row `number` of a `kind`, at `retired` instructions.

    `rows` are both rows in words, "(the record ends here)" for one that is not there; `fields` the columns
    that differ; `before` the rows before it, which are the same; `states` both machines, if known.
    """

    kind: str
    number: int
    retired: int
    fields: tuple[str, ...]
    rows: tuple[str, str]
    before: list[str] = field(default_factory=list)
    states: tuple[MachineState, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """What a comparison found: how many exits are alike, keys of the headers that are not, a divergence."""

    alike: int
    headers: tuple[str, ...]
    divergence: Divergence | None


def diff(one: Trace, other: Trace, *, context: int = 5) -> Difference:
    """Compare two records row by row. Of exits, instructions and stores the earliest difference counts."""
    found: list[Divergence] = []
    alike = 0
    for kind in COMPARED:
        if not (one.record.count(kind) and other.record.count(kind)) and kind is not Kind.EXITS:
            continue
        number = first_difference(one.record, other.record, kind)
        if kind is Kind.EXITS:
            total = min(one.record.count(kind), other.record.count(kind))
            alike = total if number is None else number
        if number is not None:
            found.append(_divergence(one, other, kind, number, context))
    headers = tuple(key for key in HEADER_KEYS if one.header.get(key) != other.header.get(key))
    earliest = min(found, key=lambda each: each.retired, default=None)
    return Difference(alike, headers, earliest)


def first_difference(one: Record, other: Record, kind: Kind) -> int | None:
    """The number of the first row that differs, or None if all rows of this kind are the same."""
    counts = one.count(kind), other.count(kind)
    for start in range(0, min(counts), PIECE):
        span = range(start, min(start + PIECE, *counts))
        mine, its = _piece(one, kind, span), _piece(other, kind, span)
        different = np.zeros(len(mine), np.bool_)
        for name in mine.dtype.names or ():
            left, right = mine[name], its[name]
            if name == "device" and one.devices != other.devices:
                left, right = _by_name(left, one.devices), _by_name(right, other.devices)
            if name == "kind" and one.kinds != other.kinds:
                left, right = _by_name(left, one.kinds), _by_name(right, other.kinds)
            unequal = left != right
            different |= unequal.any(axis=1) if unequal.ndim > 1 else unequal
        if different.any():
            return start + int(np.argmax(different))
    return min(counts) if counts[0] != counts[1] else None


def _piece(record: Record, kind: Kind, span: range) -> Array:
    rows: Rows[Any] = Rows(record, kind, (), span)
    return rows.to_numpy()


def _by_name(column: Array, names: list[str]) -> Array:
    table = np.array([*names, ""], object)
    named: Array = table[np.where((column >= 0) & (column < len(names)), column, len(names)).astype(np.intp)]
    return named


def _divergence(one: Trace, other: Trace, kind: Kind, number: int, context: int) -> Divergence:
    if kind is Kind.CHANGES:  # shown as the instruction that made the change
        retired = min(_retired(trace.record, kind, number) for trace in (one, other))
        kind = Kind.INSTRUCTIONS
        numbers = Rows[Any](one.record, kind).where(retired=retired).numbers()
        number = int(numbers[0]) if len(numbers) else 0
    else:
        retired = min(_retired(trace.record, kind, number) for trace in (one, other))
    rows = [Rows[Any](trace.record, kind) for trace in (one, other)]
    pair: list[Any] = [row[number] if number < len(row) else None for row in rows]
    shown = tuple("(the record ends here)" if row is None else row.line() for row in pair)
    names: tuple[str, ...] = ()
    if pair[0] is not None and pair[1] is not None:
        dicts = [row.as_dict() for row in pair]
        names = tuple(key for key in dicts[0] if dicts[0][key] != dicts[1][key] and key != "words")
    before = [row.line() for row in rows[0][max(0, number - context) : number]]
    return Divergence(kind.name.lower(), number, retired, names, (shown[0], shown[1]), before)


def _retired(record: Record, kind: Kind, number: int) -> int:
    """The retired count of a row, or that of the end of the record."""
    if number < record.count(kind):
        return int(_piece(record, kind, range(number, number + 1))["retired"][0])
    return Trace(record).retired


def recorded_state(trace: Trace, retired: int) -> MachineState | None:
    """The registers before an instruction, put together from a record of instructions; None without one."""
    start = trace.header.get("registers_at_start")
    if trace.header.get("instructions") is not True or not isinstance(start, dict):
        return None
    values: dict[str, int] = {}
    for name, text in start.items():
        try:
            values[str(name)] = int(str(text), 16)
        except ValueError:
            return MachineState({}, "", "the record's registers are damaged")
    row = None
    for row in trace.instructions.where(retired=range(trace.record.start_retired, retired + 1)):
        if row.retired >= retired:
            break
        for change in row.changes:
            _apply(values, change.name, change.after)
    text = ""
    if row is not None and row.retired == retired:
        values["rip"], text = row.rip, row.text
    return MachineState(values, text, "")


def _apply(values: dict[str, int], name: str, after: int) -> None:
    """One change; a flag, which `changes` tells apart from RFLAGS, goes back into RFLAGS."""
    from pysim_vm.report import FLAG_NAMES

    bits = {flag: bit for bit, flag in FLAG_NAMES}
    if name in bits:
        values["rflags"] = values.get("rflags", 0) & ~(1 << bits[name]) | after << bits[name]
    elif name == "IOPL":
        values["rflags"] = values.get("rflags", 0) & ~0x3000 | after << 12
    else:
        values[name] = after


def diff_lines(found: Difference, names: tuple[str, str]) -> list[str]:
    """The comparison for people."""
    lines = [f"the headers differ in {', '.join(found.headers)}"] if found.headers else []
    at = found.divergence
    if at is None:
        return [*lines, f"no difference: {found.alike:,} exits are the same in both records"]
    lines.append(
        f"the first difference is {at.kind.removesuffix('s')} {at.number + 1:,}, at {at.retired:,} retired "
        f"instructions" + (f": {', '.join(at.fields)}" if at.fields else "")
    )
    lines += ["", *(f"    {line}" for line in at.before)]
    lines += [f"  A {at.rows[0]}", f"  B {at.rows[1]}", "", f"  A is {names[0]}, B is {names[1]}"]
    if at.states:
        lines += ["", *state_lines(at.states)]
    return lines


def state_lines(states: tuple[MachineState, ...]) -> list[str]:
    """Both machines: the general registers, and of the others those that differ."""
    one, other = states
    if one.note or other.note:
        lines = []
        for name, state in zip("AB", states, strict=True):
            lines.append(f"machine {name}: {state.note or 'it is at ' + state.text}")
            lines += [] if state.note else _registers(state)
        return lines
    lines = [f"both machines before that instruction: {one.text}"]
    if one.text != other.text:
        lines = [f"machine A is at: {one.text}", f"machine B is at: {other.text}"]
    different = changes(one.registers, other.registers)
    if one.registers.get("rip", 0) != other.registers.get("rip", 0):
        lines.append(f"  RIP     A {one.registers.get('rip', 0):#x}  B {other.registers.get('rip', 0):#x}")
    lines += [f"  {each.name.upper():<7} A {each.before:#x}  B {each.after:#x}" for each in different]
    if not different:
        lines.append("  all registers are the same")
    return lines + _registers(one)


def _registers(state: MachineState) -> list[str]:
    cells = [f"{name.upper():<6} {state.registers.get(name, 0):016x}" for name in REGISTER_KINDS]
    return ["", *("  " + "  ".join(cells[n : n + 3]) for n in range(0, len(cells), 3))]


def diff_dict(found: Difference) -> dict[str, object]:
    """The comparison for JSON."""
    at = found.divergence
    document: dict[str, object] = {"alike": found.alike, "headers": list(found.headers), "divergence": None}
    if at is not None:
        document["divergence"] = {
            "kind": at.kind,
            "number": at.number,
            "retired": at.retired,
            "fields": list(at.fields),
            "rows": list(at.rows),
            "before": at.before,
            "states": [
                {
                    "registers": {name: f"{value:#x}" for name, value in state.registers.items()},
                    "text": state.text,
                    "note": state.note,
                }
                for state in at.states
            ],
        }
    return document
