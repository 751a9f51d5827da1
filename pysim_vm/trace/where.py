"""Conditions on rows: what `where(reason="mmio_read", gpa=range(...))` means, as tests of whole arrays.

It reads no file. A wrong condition is one sentence that says what there is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from pysim_vm.errors import AxErrorKind
from pysim_vm.record_format import Event, Kind, RecordError, StoreBy
from pysim_vm.trace.record import M64, Block, Mask, Record, Test
from pysim_vm.trace.words import ACCESSES, READS

REASON_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "mmio": ("mmio_read", "mmio_write"),
    "io": ("io_read", "io_write"),
    "msr": ("sys_reg_read", "sys_reg_write"),
}
_PLAIN: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.EXITS: ("retired", "vcpu", "rip", "address", "width", "value"),
    Kind.STORES: ("retired", "vcpu", "rip", "address", "linear", "size", "value"),
    Kind.INSTRUCTIONS: ("retired", "vcpu", "rip", "vector"),
    Kind.EVENTS: ("retired", "vcpu", "rip", "vector", "nested", "cpl", "address"),
}
_SPECIAL: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.EXITS: ("number", "ns", "reason", "device", "symbol", "direction", "irq", "gpa", "port", "msr"),
    Kind.STORES: ("number", "symbol", "by", "gpa"),
    Kind.INSTRUCTIONS: ("number", "symbol", "event"),
    Kind.EVENTS: ("number", "symbol", "event"),
}
_BUSES: Final = {"gpa": ("mmio_read", "mmio_write"), "port": ("io_read", "io_write"),
                 "msr": ("sys_reg_read", "sys_reg_write")}  # fmt: skip


def condition(record: Record, kind: Kind, name: str, wanted: Any) -> Test:
    """The test that `where(name=wanted)` stands for; AxError with what is possible for a wrong one."""
    known = (*_PLAIN[kind], *_SPECIAL[kind])
    if name not in known:
        raise _unknown("where", f"no condition {name!r}", name, known)
    if name in _PLAIN[kind]:
        test = _number_test(name, wanted)
        return lambda block: test(block.table[name])
    match name:
        case "number":
            test = _number_test(name, wanted)
            return lambda block: test(block.numbers.astype(np.uint64))
        case "ns":
            test = _number_test(name, wanted)
            return lambda block: test(block.ns)
        case "reason":
            kinds = _kinds(record, wanted)
            return lambda block: np.isin(block.table["kind"], kinds)
        case "direction":
            if wanted not in ("read", "write"):
                raise _unknown("where", f"no direction {wanted!r}", str(wanted), ("read", "write"))
            kinds = _kinds(
                record, [n for n in ACCESSES if n in record.kinds and (n in READS) == (wanted == "read")]
            )
            return lambda block: np.isin(block.table["kind"], kinds)
        case "device":
            devices = _devices(record, wanted)
            return lambda block: np.isin(block.table["device"], devices)
        case "irq":
            mask = np.uint64(sum(1 << line for line in {*_numbers("irq", wanted)} if 0 <= line < 64))
            return lambda block: (block.table["raised"] & mask) != 0
        case "symbol":
            return _symbol_test(record, wanted)
        case "by":
            number = _member("by", wanted, StoreBy)
            return lambda block: block.table["by"] == number
        case "event":
            number = _member("event", wanted, Event)
            return lambda block: block.table["event"] == number
        case _:
            return _touch_test(record, kind, name, wanted)


def _number_test(name: str, wanted: Any) -> Callable[[Any], Mask]:
    """A test of a column of unsigned numbers."""
    if isinstance(wanted, range) and wanted.step > 0:
        low, high = max(wanted.start, 0), min(wanted.stop, 1 << 64)
        if low >= high:
            return lambda column: np.zeros(len(column), np.bool_)
        step, first, last = np.uint64(wanted.step & M64), np.uint64(low), np.uint64(high - 1)
        offset = np.uint64((low - wanted.start) % wanted.step)

        def inside(column: Any) -> Mask:
            wide = column.astype(np.uint64)
            mask: Mask = (wide >= first) & (wide <= last)
            return mask if step == 1 else mask & ((wide - first + offset) % step == 0)

        return inside
    numbers = np.array(sorted(n for n in {*_numbers(name, wanted)} if 0 <= n <= M64), np.uint64)
    if len(numbers) == 1:
        only = numbers[0]
        return lambda column: column.astype(np.uint64) == only
    return lambda column: np.isin(column.astype(np.uint64), numbers)


def _numbers(name: str, wanted: Any) -> list[int]:
    if isinstance(wanted, int):
        return [int(wanted)]
    try:
        numbers = list(wanted)
    except TypeError:
        numbers = [None]
    if not all(isinstance(number, int) for number in numbers):
        raise RecordError(f"where: {name}={wanted!r}; give a number, a range or several numbers",
                          AxErrorKind.InvalidInput)  # fmt: skip
    return [int(number) for number in numbers]


def _kinds(record: Record, wanted: Any) -> list[int]:
    names: list[str] = []
    for name in [wanted] if isinstance(wanted, str) else list(wanted):
        names += REASON_GROUPS.get(str(name), (str(name),))
    for name in names:
        if name not in record.kinds:
            raise _unknown("where", f"no reason {name!r}", name, (*record.kinds, *REASON_GROUPS))
    return [record.kinds.index(name) for name in names]


def _devices(record: Record, wanted: Any) -> list[int]:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name and name not in record.devices:
            raise _unknown("where", f"no device {name!r} in this machine", str(name), record.devices)
    return [n for n, device in enumerate(record.devices) if device in names] + ([-1] if "" in names else [])


def _symbol_test(record: Record, wanted: Any) -> Test:
    names = {wanted} if isinstance(wanted, str) else {str(name) for name in wanted}
    for name in names:
        if record.symbols.address_of(name) is None:
            raise _unknown("where", f"no symbol {name!r} in this record", name, ())

    def test(block: Block) -> Mask:
        places, inverse = np.unique(block.table["rip"], return_inverse=True)
        found = [record.symbols.lookup(int(place)) for place in places]
        inside = np.array([location is not None and location.symbol.name in names for location in found])
        mask: Mask = inside[inverse]
        return mask

    return test


def _touch_test(record: Record, kind: Kind, name: str, wanted: Any) -> Test:
    """Accesses of one bus that touch an address of `wanted`; a register is one address whatever its width."""
    kinds = _kinds(record, [n for n in _BUSES[name] if n in record.kinds]) if kind is Kind.EXITS else []
    size = "width" if kind is Kind.EXITS else "size"
    spans: list[tuple[int, int]]
    if isinstance(wanted, range) and wanted.step == 1:
        spans = [(wanted.start, wanted.stop)]
    else:
        spans = [(number, number + 1) for number in sorted({*_numbers(name, wanted)})]
    spans = [
        (max(low, 0), min(high, 1 << 64)) for low, high in spans if low < 1 << 64 and high > 0 and low < high
    ]

    def test(block: Block) -> Mask:
        table = block.table
        first = table["address"].astype(np.uint64)
        length = (
            np.uint64(0) if name == "msr" else np.maximum(table[size], 1).astype(np.uint64) - np.uint64(1)
        )
        last = first + length
        mask = np.zeros(len(table), np.bool_)
        for low, high in spans:
            mask |= (first <= np.uint64(high - 1)) & (last >= np.uint64(low))
        if kinds:
            mask &= np.isin(table["kind"], kinds)
        return mask

    return test


def _member(name: str, wanted: Any, names: type[StoreBy] | type[Event]) -> int:
    known = [member.name.lower() for member in names]
    if wanted not in known:
        raise _unknown("where", f"no {name} {wanted!r}", str(wanted), known)
    return known.index(wanted)


def _unknown(who: str, what: str, name: str, known: Iterable[str]) -> RecordError:
    near = difflib.get_close_matches(name, list(known), 1)
    hint = (
        f'; did you mean "{near[0]}"?'
        if near
        else f"; there are {', '.join(sorted({*known}))}"
        if known
        else ""
    )
    return RecordError(f"{who}: {what}{hint}", AxErrorKind.InvalidInput)
