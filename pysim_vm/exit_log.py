"""The exit log: exits on their way to whoever wants to see them. It answers no exit and writes no file.

The short way notes an exit as four numbers in four columns: when, from where, at which site, and the value. A
site is everything that stays the same from one such exit to the next: kind, address, width and device. That
takes a third of the time of a tuple an exit and makes no work for the garbage collector; the columns become
rows, in numpy, when the log is taken. An exit that went the full way is a tuple in between.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import starmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pysim_vm.record_format import EXIT_PACK, EXIT_TYPE, Column, Columns

SITES_MAX: Final = 1 << 16  # sites known at a time: a guest may sweep all addresses
FIELDS: Final = EXIT_TYPE.names or ()
SAME: Final = ("vcpu", "kind", "address", "width", "device")  # fields of a site
WORD: Final = "L" if array("L").itemsize == 8 else "Q"  # of the same size; from large numbers L is faster

Rows = npt.NDArray[Any]
ExitRow = tuple[int, int, int, int, int, int, int, int, int]
"""One exit: (retired, vcpu_id, rip, kind, address, width, value, device, raised)."""


class ExitLog:
    """Exits since the last `clear`, in the order in which they were answered.

    `append` takes one as an ExitRow; iteration gives ExitRows, `table` an array of EXIT_TYPE. The columns
    `retired`, `rip`, `site` and `value` are open for ShortExits alone, which appends to all four and gets its
    sites from `site_number`.
    """

    __slots__ = (
        "_before", "_earlier", "_places", "_raised", "_room", "_sites", "_table", "_whole",
        "retired", "rip", "site", "value",
    )  # fmt: skip

    def __init__(self) -> None:
        self.retired: list[int] = []
        self.rip: list[int] = []
        self.site: list[int] = []
        self.value: list[int] = []
        self._raised: list[tuple[int, int]] = []  # of the columns: which exit, and the lines
        self._whole: list[ExitRow] = []
        self._places: list[int] = []  # of the whole rows: how many in the columns came before
        self._before: list[Rows] = []  # of sites that are forgotten
        self._earlier = 0  # rows there
        self._sites: list[bytes] = []  # rows with all that stays the same
        self._table = np.zeros(0, EXIT_TYPE)  # the same
        self._room = np.zeros(0, EXIT_TYPE)  # for rows; used again, as the host's fresh pages are slow

    # ---- noting --------------------------------------------------------------------------------------------

    def append(self, row: ExitRow) -> None:
        """Note one exit."""
        self._whole.append(row)
        self._places.append(len(self.retired))

    def raised(self, lines: int) -> None:
        """The exit noted last in the columns raised these interrupt lines (a mask)."""
        self._raised.append((len(self.retired) - 1, lines))

    @property
    def full(self) -> bool:
        """Whether no more sites have room: forget all their numbers, then call `forget_sites`."""
        return len(self._sites) >= SITES_MAX

    def forget_sites(self) -> None:
        """Start numbering sites at 0 again."""
        self._before.append(self._rows().copy())
        self._earlier += len(self._before[-1])
        self._clear_rows()
        self._sites.clear()
        self._table = self._table[:0]

    def site_number(self, vcpu: int, kind: int, address: int, width: int, device: int) -> int:
        """A number for a new site."""
        self._sites.append(EXIT_PACK.pack(0, vcpu, 0, kind, address, width, 0, device, 0))
        return len(self._sites) - 1

    # ---- taking --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.retired) + len(self._whole) + self._earlier

    def __iter__(self) -> Iterator[ExitRow]:
        rows: list[ExitRow] = self.table().tolist()
        return iter(rows)

    def table(self) -> Rows:
        """The rows as an array of EXIT_TYPE. It is read-only for the caller and good until the next call."""
        return np.concatenate((*self._before, self._rows())) if self._before else self._rows()

    def packed(self) -> bytes:
        """The rows as bytes, as quick for one as for many."""
        if self.retired or self._earlier:
            return self.table().tobytes()
        return b"".join(starmap(EXIT_PACK.pack, self._whole))

    @property
    def plain(self) -> bool:
        """Whether all rows lie in the columns and raised no interrupt line."""
        return not (self._whole or self._raised or self._earlier)

    def columns(self, count: int) -> Columns:
        """The first `count` rows of a log that is `plain`, by field, without making rows of them."""
        table, first_site = self._known(), self.site[0]
        one = table[first_site].item()
        found = {name: Column(value, value) for name, value in zip(FIELDS, one, strict=True)}
        if not _uniform(self.site):
            numbers = _numbers(self.site, np.int64)[:count]
            used = table[np.bincount(numbers).nonzero()[0]]
            for name in SAME:
                if (used[name] != used[name][0]).any():
                    column = np.ascontiguousarray(table[name])
                    found[name] = Column.of(column.view(f"<u{column.itemsize}").take(numbers))
        if found["device"].least < 0:
            found["device"] = Column(0xFFFF, 0xFFFF)  # -1 in 16 bits
        first, last = self.retired[0], self.retired[count - 1]  # of one CPU: never back in time
        times = _numbers(self.retired)[:count] if first != last else None
        found["retired"] = Column(first, last, times)
        for name, values in ("rip", self.rip), ("value", self.value):
            if _uniform(values):
                found[name] = Column(values[0], values[0])
            else:
                found[name] = Column.of(_numbers(values)[:count])
        return found

    def drop(self, count: int) -> None:
        """Forget the first `count` rows of a log that is `plain`."""
        if count == len(self.retired):
            self._clear_rows()
        else:
            del self.retired[:count], self.rip[:count], self.site[:count], self.value[:count]

    def clear(self) -> None:
        """Forget the rows; the sites keep their numbers."""
        self._clear_rows()
        if self._earlier:
            self._before.clear()
            self._earlier = 0

    def _clear_rows(self) -> None:
        if self.retired:
            self.retired.clear()
            self.rip.clear()
            self.site.clear()
            self.value.clear()
            self._raised.clear()
        self._whole.clear()
        self._places.clear()

    def _rows(self) -> Rows:
        if not self.retired:
            return _packed(self._whole)
        table = self._short()
        if not self._whole:
            return table
        rows = np.empty(len(table) + len(self._whole), EXIT_TYPE)
        places = np.array(self._places) + np.arange(len(self._whole))
        others = np.ones(len(rows), bool)
        others[places] = False
        rows[places], rows[others] = _packed(self._whole), table
        return rows

    def _known(self) -> Rows:
        """A row for each site."""
        if len(self._table) < len(self._sites):
            new = np.frombuffer(b"".join(self._sites[len(self._table) :]), EXIT_TYPE)
            self._table = np.concatenate((self._table, new))
        return self._table

    def _short(self) -> Rows:
        """The columns as rows."""
        count = len(self.retired)
        if len(self._room) < count:
            self._room = np.empty(count + count // 2, EXIT_TYPE)
        table = self._room[:count]
        # `take` copies each row in one go; indexing by an array would do it field by field
        self._known().take(_numbers(self.site, np.int64), out=table, mode="clip")
        table["retired"] = _numbers(self.retired)
        table["rip"] = _numbers(self.rip)
        table["value"] = _numbers(self.value)
        for at, lines in self._raised:
            table["raised"][at] = lines
        return table


def _uniform(values: list[int]) -> bool:
    """Whether they are all equal, asked in earnest only where they look like one object, as in a loop around
    one exit: then it takes a tenth of the time of an array, and elsewhere next to nothing."""
    one = values[0]
    return one is values[-1] and one is values[len(values) // 2] and values.count(one) == len(values)


def _numbers(values: list[int], type_: type[np.integer[Any]] = np.uint64) -> npt.NDArray[Any]:
    """All of the list as an array, to be cut afterwards: a slice of the list would cost as much again."""
    return np.frombuffer(array(WORD, values), type_)


def _packed(rows: list[ExitRow]) -> Rows:
    return np.frombuffer(b"".join(starmap(EXIT_PACK.pack, rows)), EXIT_TYPE)
