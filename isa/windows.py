"""One look-up for the accesses of a trace that lie around one register: pushes, pops, the fields of a record.

The first of them looks the page up and checks that all of them lie in it, aligned; each of the others is then
a subscript. Where that does not hold the accesses take the general way, one by one. It changes no result: no
instruction of a block can change a translation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from isa.specialise import Statement
from isa.state import GPR_NAMES

FEWEST = 3  # accesses that are worth a look-up of their own
FARTHEST = 2048  # bytes between the first access and another one

_VIEW_SIZES = {"mb": 1, "mw": 2, "md": 4, "mq": 8}
_STORE = re.compile(
    r"if (\w+) & \d:\n    store\(\1, \d, (\w+)\)\nelse:\n    (m[wdq])\[\1 \+ tw\[\1 >> 12\] >> \d\] = \2"
)
_LOAD = re.compile(
    r"load\((\w+), \d\) if (?:\1|\(\1 := ([^()]+)\)) & \d else (m[wdq])\[\1 \+ tr\[\1 >> 12\] >> \d\]"
)
_SUM = re.compile(r"\(?(\w+) ([+-]) (\d\w*)(?: & (?:18446744073709551615|0xffffffffffffffff))?\)?")
_MASKED = re.compile(r"(\w+) & 18446744073709551615")
_NAME = re.compile(r"[A-Za-z_]\w*")

Place = tuple[str, int]  # (a value that is not known, displacement from it)


class Access(NamedTuple):
    """A load or store of 2, 4 or 8 bytes at a known distance from a value."""

    step: int
    statement: int
    address: str  # the name of its linear address
    inner: str  # what the statement computes the address from, "" if it is a name already
    view: str
    displacement: int
    writes: bool


def share(steps: Sequence[list[Statement]], number: int) -> None:
    """Rewrite the statements of a trace; `number` makes its names unique in the function."""
    groups = [group for group in find(steps).values() if len(group) >= FEWEST]
    guards = [
        (group[0], _rewrite(steps, group, f"k{n}_{number}"))
        for n, group in enumerate(map(near, groups))
        if group
    ]
    for first, guard in sorted(guards, key=lambda pair: pair[0][:2], reverse=True):
        steps[first.step].insert(first.statement, guard)


def near(group: list[Access]) -> list[Access]:
    """Those of a group that can share a look-up; [] if they are too few."""
    widest = max(group, key=lambda access: _VIEW_SIZES[access.view])
    kept = [
        access for access in group
        if (access.displacement - widest.displacement) % _VIEW_SIZES[access.view] == 0
        and abs(access.displacement - widest.displacement) <= FARTHEST
    ]  # fmt: skip
    return kept if len(kept) >= FEWEST else []


def find(steps: Sequence[list[Statement]]) -> dict[str, list[Access]]:
    """The accesses of a trace by the value that their addresses are relative to."""
    known: dict[str, Place] = {name: (name, 0) for name in GPR_NAMES}
    found: dict[str, list[Access]] = {}

    def place_of(expression: str) -> Place | None:
        if expression in known:
            return known[expression]
        if match := _MASKED.fullmatch(expression):
            return known.get(match[1])
        match = _SUM.fullmatch(expression)
        if match and match[1] in known:
            root, displacement = known[match[1]]
            distance = int(match[3], 0)
            if distance >> 63:  # a negative immediate
                distance -= 1 << 64
            return root, displacement + (distance if match[2] == "+" else -distance)
        return None

    def note(step: int, n: int, address: str, inner: str, view: str, writes: bool) -> None:
        place = place_of(inner or address)
        if place is not None:
            found.setdefault(place[0], []).append(Access(step, n, address, inner, view, place[1], writes))

    for step, statements in enumerate(steps):
        for n, statement in enumerate(statements):
            if statement.raises:
                if match := _STORE.fullmatch(statement.text):
                    note(step, n, match[1], "", match[3], True)
                elif len(matches := list(_LOAD.finditer(statement.text))) == 1:
                    note(step, n, matches[0][1], matches[0][2] or "", matches[0][3], False)
            target, _, value = statement.text.partition(" = ")
            place = place_of(value) if _NAME.fullmatch(target) and not statement.raises else None
            for name in statement.stores:
                known[name] = (f"{name}@{step}.{n}", 0)
            if place is not None:
                known[target] = place
    return found


def _rewrite(steps: Sequence[list[Statement]], group: list[Access], name: str) -> Statement:
    """Let the accesses of a group use `name`; the statement that computes it before the first of them."""
    widest = max(_VIEW_SIZES[access.view] for access in group)
    origin = next(a.displacement for a in group if _VIEW_SIZES[a.view] == widest)
    first = group[0]
    uniform = all(_VIEW_SIZES[a.view] == widest for a in group)
    shift = {2: 1, 4: 2, 8: 3}
    for access in group:
        distance = access.displacement - first.displacement
        size = _VIEW_SIZES[access.view]
        if uniform:
            index = _plus(name, distance // size)
        else:
            index = f"{_plus(name, distance)} >> {shift[size]}"
        statement = steps[access.step][access.statement]
        address = access.inner or access.address
        if access.writes:
            value = statement.text.rpartition(" = ")[2]
            text = (
                f"if {name} is None:\n    store({address}, {size}, {value})\n"
                f"else:\n    {access.view}[{index}] = {value}"
            )
        else:
            text = _LOAD.sub(
                f"load({address}, {size}) if {name} is None else {access.view}[{index}]", statement.text
            )
        uses = (statement.uses | {name}) - ({access.address} if access.inner else set())
        steps[access.step][access.statement] = statement._replace(text=text, uses=frozenset(uses))
    low = first.displacement - min(a.displacement for a in group)
    high = 4096 - max(a.displacement + _VIEW_SIZES[a.view] for a in group) + first.displacement
    address = f"({first.inner})" if first.inner else first.address
    within = f"{name}p"
    unaligned = f"({_plus(within, origin - first.displacement)}) & {widest - 1}"
    tlb = "tw" if any(a.writes for a in group) else "tr"
    position = f"{address} + {name}"
    text = (
        f"{within} = {address} & 4095\n"
        f"{name} = None if {unaligned} or not {low} <= {within} <= {high} else {tlb}.get({address} >> 12)\n"
        f"if {name} is not None:\n"
        f"    {name} = {f'{position} >> {shift[widest]}' if uniform else position}"
    )
    uses = frozenset(_NAME.findall(first.inner) if first.inner else (first.address,))
    return Statement(text, frozenset((name,)), uses, False, frozenset((name,)))


def _plus(text: str, distance: int) -> str:
    if not distance:
        return text
    return f"{text} + {distance}" if distance > 0 else f"{text} - {-distance}"
