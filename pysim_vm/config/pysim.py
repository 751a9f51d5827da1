"""Reading the table [pysim], from a file or from keywords: sizes, dates, CPU features. No other table."""

from __future__ import annotations

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
from pysim_vm.layout import DEBUG_EXIT_PORT_COUNT, GIB, MIB, PAGE_SIZE

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
    memory = table.size("memory", PAGE_SIZE, RAM_MAX)
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
        "translation_cache_limit": table.size("translation_cache_limit", MIB, RAM_MAX),
        "seed": table.integer("seed"),
        "cpu_features": _read_cpu_features(table),
        "budget_instructions": table.integer("budget_instructions", 1, BUDGET_UNLIMITED),
        "output_limit": table.size("output_limit", 0, RAM_MAX),
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
