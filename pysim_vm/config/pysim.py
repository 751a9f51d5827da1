"""Reading the table [pysim], from a file or from keywords: sizes, dates, CPU features. No other table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, date, datetime, time
from typing import Any, Final

from devices.manager import MISSING_POLICIES
from isa.cpuid import DEFAULT_FEATURES, LEVELS, OPTIONAL_FEATURES, UnknownFeature, feature_set
from pysim_vm.config.conflicts import PORT_SPACE
from pysim_vm.config.model import BUDGET_UNLIMITED, PysimConfig
from pysim_vm.config.problems import SHOWN_MAX, Problems, kind_of, nearest, show
from pysim_vm.config.table import Table
from pysim_vm.layout import DEBUG_EXIT_PORT_COUNT, GIB, KIB, MIB, PAGE_SIZE

RAM_MAX: Final = 64 * GIB  # sum of a VM's RAM; more is a slip in a number


NS_PER_INSTRUCTION_MAX: Final = 1_000_000  # a CPU of 1 kHz; guests stop booting long before
TSC_HZ_MAX: Final = 1_000_000_000_000


PLATFORMS: Final = ("none", "pc")
ENGINES: Final = ("step", "block", "auto")
EXIT_PATHS: Final = ("short", "full")
CACHE_WORDS: Final = ("on", "off")


# The least that boots Linux and glibc; the other levels are the default set, all that the silicon has, and
# those of the x86-64 psABI.
_MINIMAL_FEATURES: Final = frozenset(
    ("FPU", "TSC", "MSR", "PAE", "CX8", "PGE", "CMOV", "FXSR", "SSE", "SSE2", "SYSCALL", "NX", "X64")
)
CPU_LEVELS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "minimal": tuple(f"-{name.lower()}" for name in DEFAULT_FEATURES if name not in _MINIMAL_FEATURES),
    "all": tuple(f"+{name.lower()}" for name in OPTIONAL_FEATURES),
    **{level: tuple(f"+{name.lower()}" for name in added) for level, added in LEVELS.items()},
}

_SIZE_UNITS: Final = {"": 1, "k": KIB, "m": MIB, "g": GIB}
_SIZE: Final = re.compile(r"\s*(0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)\s*(?:([kKmMgG])(?:i?[bB])?)?\s*")


def parse_size(text: str) -> int:
    """Bytes of a size such as "128M", "64 KiB", "0x1000" or "4096"; K, M and G count in 1024s.

    Raises ValueError with one sentence.
    """
    found = _SIZE.fullmatch(text) if len(text) <= SHOWN_MAX else None
    if found is None:
        raise ValueError(f'{show(text)} is no size; write a number with K, M or G, such as "128M"')
    return (
        int(found[1].replace("_", ""), 0 if found[1][:2] in ("0x", "0X") else 10)
        * _SIZE_UNITS[(found[2] or "").lower()]
    )


def _read_size(table: Table, key: str, low: int, high: int) -> int | None:
    """A number of bytes, or a string such as "128M"."""
    value = table.data.get(key)
    if isinstance(value, str):
        table.known.append(key)
        try:
            value = parse_size(value)
        except ValueError as error:
            table.error(key, str(error))
            return None
    else:
        value = table.get(key, int, 'a size such as "128M"')
    if value is not None and not low <= value <= high:
        table.error(key, f"{show(value)} bytes are out of range; give {show(low)} to {show(high)}")
        return None
    return value


def pysim_from_keywords(keywords: Mapping[str, Any]) -> PysimConfig:
    """What `PysimConfig.from_keywords` does; it has the errors."""
    problems = Problems("[pysim] keywords", None)
    pysim = read_pysim(Table(problems, keywords, ()))
    known = [each.name for each in fields(PysimConfig)]
    for key in keywords:
        if key not in known:
            problems.error((key,), "no such key; leave it out", nearest(key, known))
    problems.raise_errors()
    return pysim


def read_pysim(table: Table) -> PysimConfig:
    """The table; a key that is wrong is reported and has its default."""
    memory = _read_size(table, "memory", PAGE_SIZE, RAM_MAX)
    if memory is not None and memory % PAGE_SIZE:
        table.error("memory", f"{show(memory)} is no multiple of {PAGE_SIZE:#x}; RAM is whole pages")
        memory = None
    given = {
        "memory": memory,
        "platform": table.word("platform", PLATFORMS),
        "missing_device": table.word("missing_device", MISSING_POLICIES),
        "ns_per_instruction": table.integer("ns_per_instruction", 1, NS_PER_INSTRUCTION_MAX),
        "tsc_hz": table.integer("tsc_hz", 1, TSC_HZ_MAX),
        "engine": table.word("engine", ENGINES),
        "exit_path": table.word("exit_path", EXIT_PATHS),
        "translation_cache": _read_cache(table),
        "translation_cache_limit": _read_size(table, "translation_cache_limit", MIB, RAM_MAX),
        "seed": table.integer("seed"),
        "cpu_features": _read_cpu_features(table),
        "budget_instructions": table.integer("budget_instructions", 1, BUDGET_UNLIMITED),
        "output_limit": _read_size(table, "output_limit", 0, RAM_MAX),
        "rtc_start": _read_date(table, "rtc_start"),
        "exit_on_triple_fault": table.boolean("exit_on_triple_fault"),
        "vga": table.boolean("vga"),
        "debug_exit_port": table.integer("debug_exit_port", 0, PORT_SPACE - DEBUG_EXIT_PORT_COUNT),
    }
    return PysimConfig(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def _read_cache(table: Table) -> str | None:
    """ "on", "off" or a directory. A path has a "/", so that a slip of the pen makes no directory."""
    key = "translation_cache"
    value = table.get(key, str, '"on"')
    if value is None or value in CACHE_WORDS or "/" in value:
        return value
    message = f'{show(value)} is neither on nor off nor a path with a "/"; write one of them'
    table.error(key, message, nearest(value, CACHE_WORDS))
    return None


def _read_cpu_features(table: Table) -> tuple[str, ...] | None:
    """A level, or a list of changes that may name a level; the CPU itself says which features it has."""
    key = "cpu_features"
    value = table.data.get(key)
    if isinstance(value, str):
        table.known.append(key)
        words: tuple[str, ...] = (value,)
    elif isinstance(value, tuple):  # keywords of Python code
        table.known.append(key)
        words = value
    else:
        rows = table.rows(key)
        if not rows:
            return None
        words = tuple(element for _, element in rows)
    changes: list[str] = []
    for index, word in enumerate(words):
        place = table.place(key) if isinstance(value, str) else (*table.place(key), index)
        if not isinstance(word, str) or len(word) > SHOWN_MAX:
            table.problems.error(place, f'{show(word)} is no CPU feature; write "+name", "-name" or a level')
            continue
        if word[:1] not in ("+", "-") and word not in CPU_LEVELS:
            levels = ", ".join(CPU_LEVELS)
            message = f'{show(word)} is no CPU level ({levels}); write "+name" or "-name" for a feature'
            table.problems.error(place, message, nearest(word, CPU_LEVELS))
            continue
        changes += CPU_LEVELS.get(word, (word,))
    try:
        feature_set(changes)
    except UnknownFeature as error:
        table.error(key, str(error))
    return tuple(changes)


def _read_date(table: Table, key: str) -> datetime | None:
    """A TOML date or date-time, or an ISO 8601 string; without an offset it is UTC."""
    table.known.append(key)
    value = table.data.get(key)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            message = f'{show(value)} is no date; write it as "2026-01-01T00:00:00"'
            table.error(key, message)
            return None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if value is None:
        return None
    if not isinstance(value, datetime):
        table.error(key, f"{show(value)} is {kind_of(value)}; write a date such as 2026-01-01T00:00:00")
        return None
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        table.error(key, f"{show(value)} leaves the years 1 to 9999; choose another date")
        return None
