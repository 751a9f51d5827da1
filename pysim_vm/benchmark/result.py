"""Results of a benchmark as a file: JSON with a version, written the same way everywhere, read with checks.

A file has the model of each workload and the cost model behind its cycles; measurements and the machine they
were made on are there if anything was measured. A file without them is the same, byte for byte, wherever it
is made. Nothing is run, compared or shown here.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pysim_vm.benchmark.model import CostModel
from pysim_vm.benchmark.run import EXIT_PATHS, Model, Timed
from pysim_vm.benchmark.unit import cpu_name
from pysim_vm.benchmark.workload import PERS, Workload
from pysim_vm.config.problems import show
from pysim_vm.errors import AxError, AxErrorKind
from pysim_vm.exit_kinds import KINDS

FORMAT: Final = "pysim-vm bench"
VERSION: Final = 1
FILE_MAX: Final = 4 << 20  # bytes: a suite of hundreds of workloads has a tenth of that
ROWS_MAX: Final = 4096
TEXT_MAX: Final = 4096
INTEGER_MAX: Final = 1 << 200  # cycles of the longest run under the dearest cost model are far below
ROUNDS_MAX: Final = 1000

T = TypeVar("T")


class ResultError(AxError):
    """A file of results cannot be read or written: one sentence with the file, the place and what to do."""

    def __init__(self, message: str, kind: AxErrorKind = AxErrorKind.InvalidData) -> None:
        super().__init__(kind, message)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """The model of one workload: the same on every machine."""

    workload: str
    summary: str
    workload_sha256: str
    count: int
    per: str
    instructions: int
    exits: Mapping[str, int]
    exits_sha256: str
    virtual_ns: int
    virtual_cycles: int

    @property
    def taken(self) -> int:
        """Exits of all kinds."""
        return sum(self.exits.values())

    @property
    def operations(self) -> int:
        """What a figure for one operation is divided by."""
        return self.taken if self.per == "exit" else self.count


@dataclass(frozen=True, slots=True)
class TimedRow:
    """One workload on one engine: units per operation (median and quartiles, and those of each round), and
    what that was here: the median of the seconds of a round, and nanoseconds of a unit."""

    workload: str
    engine: str
    exit_path: str
    per: str
    operations: int
    units: float
    low: float
    high: float
    rounds: tuple[float, ...]
    seconds: float
    unit_ns: float

    @property
    def ns(self) -> float:
        """Nanoseconds per operation on the machine of the results."""
        return self.units * self.unit_ns


@dataclass(frozen=True, slots=True)
class Results:
    """A file of results. `machine` is empty if nothing was measured."""

    costs: CostModel
    models: tuple[ModelRow, ...]
    timed: tuple[TimedRow, ...] = ()
    machine: Mapping[str, str] | None = None


def results_of(runs: Iterable[tuple[Workload, Model, Iterable[Timed]]], costs: CostModel) -> Results:
    """What `run.suite` yields, under a cost model, with this machine's name if anything was timed."""
    models, timed = [], []
    for workload, model, times in runs:
        models.append(
            ModelRow(
                workload.name, workload.summary, workload.digest, workload.count, workload.per,
                model.instructions, model.exits, model.exits_sha256, model.virtual_ns,
                costs.cycles(model.instructions, model.exits),
            )
        )  # fmt: skip
        for row in times:
            found = row.found
            timed.append(
                TimedRow(
                    row.workload, row.engine, row.exit_path, row.per, found.operations,
                    round(found.units, 4), round(found.low, 4), round(found.high, 4),
                    tuple(round(ratio, 4) for ratio in found.ratios),
                    round(found.seconds, 6), round(found.unit_ns, 3),
                )
            )  # fmt: skip
    return Results(costs, tuple(models), tuple(timed), this_machine() if timed else None)


def this_machine() -> dict[str, str]:
    """What raw seconds depend on."""
    return {
        "cpu": cpu_name(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
    }


# ---- writing -----------------------------------------------------------------------------------------------


def as_document(results: Results) -> dict[str, Any]:
    """The file as dictionaries."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "cost_model": results.costs.as_dict(),
        "model": [
            {
                "workload": row.workload,
                "summary": row.summary,
                "workload_sha256": row.workload_sha256,
                "count": row.count,
                "per": row.per,
                "instructions": row.instructions,
                "exits": dict(row.exits),
                "exits_sha256": row.exits_sha256,
                "virtual_ns": row.virtual_ns,
                "virtual_cycles": row.virtual_cycles,
            }
            for row in results.models
        ],
    }
    if results.machine is not None:
        document["measured"] = [
            {
                "workload": row.workload,
                "engine": row.engine,
                "exit_path": row.exit_path,
                "per": row.per,
                "operations": row.operations,
                "normalised": {
                    "units": row.units,
                    "low": row.low,
                    "high": row.high,
                    "rounds": list(row.rounds),
                },
                "raw": {"seconds": row.seconds, "unit_ns": row.unit_ns},
            }
            for row in results.timed
        ]
        document["machine"] = dict(results.machine)
    return document


def text_of(results: Results) -> str:
    """The file as text."""
    return json.dumps(as_document(results), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def write_results(results: Results, path: str | Path) -> None:
    """Write the file. ResultError if the host refuses."""
    try:
        Path(path).write_bytes(text_of(results).encode())
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be written ({_reason(error)}); check the path",
                          AxErrorKind.Io) from None  # fmt: skip


# ---- reading -----------------------------------------------------------------------------------------------


def read_results(path: str | Path) -> Results:
    """Read a file. ResultError, one sentence, for a file that is not there, too large, of another format or
    version, or that has a value which cannot be."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except (OSError, ValueError) as error:
        raise ResultError(
            f"{path} cannot be read ({_reason(error)}); check the path", AxErrorKind.Io
        ) from None
    if len(data) > FILE_MAX:
        raise ResultError(f"{path}: more than {FILE_MAX} bytes are no results; name another file")
    return parse_results(data, str(path))


def parse_results(data: bytes | str, source: str = "<string>") -> Results:
    """`read_results` on the contents of a file."""
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ResultError(
            f"{source}: no JSON ({reason}); give a file that pysim-vm bench --output wrote"
        ) from None
    top = _Object(source, "", document)
    found = top.value("format", str)
    if found != FORMAT:
        raise ResultError(
            f'{source}: format: {show(found)} is not "{FORMAT}"; give a file that pysim-vm bench wrote'
        )
    version = top.integer("version")
    if version != VERSION:
        raise ResultError(
            f"{source}: version: {version} is not {VERSION}, the one that this program reads; write the file "
            "anew with it"
        )
    costs = _costs(top.object("cost_model"))
    models = tuple(_model(row) for row in top.rows("model"))
    _unique(source, "model", [(row.workload,) for row in models])
    if "machine" not in top.fields and "measured" not in top.fields:
        top.finish()
        return Results(costs, models)
    known = {row.workload for row in models}
    timed = tuple(_timed(row, known) for row in top.rows("measured"))
    _unique(source, "measured", [(row.workload, row.engine, row.exit_path) for row in timed])
    place = top.object("machine")
    machine = {key: place.text(key) for key in ("cpu", "python", "system")}
    place.finish()
    top.finish()
    return Results(costs, models, timed, machine)


def _costs(place: _Object) -> CostModel:
    name, source, instruction = place.text("name"), place.text("source"), place.integer("instruction")
    exits = place.counts("exit")
    missing = [kind for kind in KINDS if kind not in exits]
    if missing:
        place.fail("exit", f"{missing[0]} is missing; write the file anew")
    place.finish()
    return CostModel(name, source, instruction, exits)


def _model(place: _Object) -> ModelRow:
    row = ModelRow(
        workload=place.text("workload"),
        summary=place.text("summary"),
        workload_sha256=place.digest("workload_sha256"),
        count=place.integer("count", 1),
        per=place.word("per", PERS),
        instructions=place.integer("instructions"),
        exits=place.counts("exits"),
        exits_sha256=place.digest("exits_sha256"),
        virtual_ns=place.integer("virtual_ns"),
        virtual_cycles=place.integer("virtual_cycles"),
    )
    place.finish()
    return row


def _timed(place: _Object, known: set[str]) -> TimedRow:
    workload = place.text("workload")
    if workload not in known:
        place.fail("workload", f"{show(workload)} has no row in model; write the file anew")
    normalised, raw = place.object("normalised"), place.object("raw")
    row = TimedRow(
        workload, place.text("engine"), place.word("exit_path", EXIT_PATHS), place.word("per", PERS),
        place.integer("operations", 1), normalised.number("units"), normalised.number("low"),
        normalised.number("high"), normalised.numbers("rounds"), raw.number("seconds"), raw.number("unit_ns"),
    )  # fmt: skip
    if not row.low <= row.units <= row.high:
        normalised.fail("units", "the median does not lie between low and high; write the file anew")
    for part in (normalised, raw, place):
        part.finish()
    return row


def _unique(source: str, key: str, names: list[tuple[str, ...]]) -> None:
    for n, name in enumerate(names):
        if name in names[:n]:
            raise ResultError(f"{source}: {key}[{n}]: {show(' '.join(name))} is there twice; remove one")


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


class _Object:
    """One JSON object, read key by key; ResultError for a key that is missing, wrong or not known."""

    def __init__(self, source: str, path: str, found: object) -> None:
        self.source, self.path = source, path
        if not isinstance(found, dict):
            where = f"{source}: {path}" if path else source
            raise ResultError(f"{where}: {show(found)} is no object; give a file that pysim-vm bench wrote")
        self.fields: dict[str, Any] = found
        self.known: set[str] = set()

    def fail(self, key: str, message: str) -> None:
        """Refuse the file because of `key`."""
        raise ResultError(f"{self.source}: {self._place(key)}: {message}")

    def _place(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def value(self, key: str, kind: type[T]) -> T:
        self.known.add(key)
        if key not in self.fields:
            self.fail(key, "missing; give a file that pysim-vm bench wrote")
        found = self.fields[key]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            self.fail(key, f"{show(found)} is wrong here; give a file that pysim-vm bench wrote")
        return found  # type: ignore[no-any-return]

    def integer(self, key: str, low: int = 0) -> int:
        return self._checked_integer(key, self.value(key, int), low)

    def _checked_integer(self, key: str, found: int, low: int = 0) -> int:
        if not low <= found <= INTEGER_MAX:
            self.fail(key, f"{show(found)} is out of range; give a file that pysim-vm bench wrote")
        return found

    def number(self, key: str) -> float:
        return self._checked_number(key, self.value(key, object))

    def _checked_number(self, key: str, found: object) -> float:
        good = isinstance(found, int | float) and not isinstance(found, bool)
        if not good or not 0 <= found < 1e18 or not math.isfinite(found):  # type: ignore[operator,arg-type]
            self.fail(key, f"{show(found)} is no number from 0 on; give a file that pysim-vm bench wrote")
        return float(found)  # type: ignore[arg-type]

    def numbers(self, key: str) -> tuple[float, ...]:
        found = self._limited(key, ROUNDS_MAX)
        return tuple(self._checked_number(f"{key}[{n}]", value) for n, value in enumerate(found))

    def text(self, key: str) -> str:
        found = self.value(key, str)
        if len(found) > TEXT_MAX:
            self.fail(key, f"{len(found)} characters are too many; at most {TEXT_MAX} are allowed")
        return found

    def word(self, key: str, words: tuple[str, ...]) -> str:
        found = self.text(key)
        if found not in words:
            self.fail(key, f"{show(found)} is none of {', '.join(words)}; write the file anew")
        return found

    def digest(self, key: str) -> str:
        found = self.text(key)
        if len(found) != 64 or set(found) - set("0123456789abcdef"):
            self.fail(key, f"{show(found)} is no SHA-256 in hexadecimal; write the file anew")
        return found

    def counts(self, key: str) -> dict[str, int]:
        """An object of exit kinds and numbers, in the order of KINDS."""
        place = self.object(key)
        for kind in place.fields:
            if kind not in KINDS:
                place.fail(show(kind), f"no kind of exit; known are {', '.join(KINDS)}")
        return {kind: place.integer(kind) for kind in KINDS if kind in place.fields}

    def object(self, key: str) -> _Object:
        return _Object(self.source, self._place(key), self.value(key, object))

    def rows(self, key: str) -> list[_Object]:
        place = self._place(key)
        return [
            _Object(self.source, f"{place}[{n}]", row) for n, row in enumerate(self._limited(key, ROWS_MAX))
        ]

    def _limited(self, key: str, most: int) -> list[Any]:
        found = self.value(key, list)
        if len(found) > most:
            self.fail(key, f"{len(found)} elements are too many; at most {most} are allowed")
        return found

    def finish(self) -> None:
        for key in self.fields:
            if key not in self.known:
                self.fail(show(key), "an unknown key; write the file anew")
