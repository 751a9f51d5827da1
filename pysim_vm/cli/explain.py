"""`pysim-vm explain`: runs a guest, lists its hot functions, shows one as Python. The guest gets no input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TextIO

from pysim_vm.cli.machine import Machine
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.table import table_text
from pysim_vm.config import parse_number
from pysim_vm.explain import (
    SAMPLE_SLICE,
    Explanation,
    Function,
    Profile,
    explanation_at,
    explanation_of_hottest,
    mode_words,
    place_words,
)
from pysim_vm.report import plural
from pysim_vm.symbols import SymbolTable

DEFAULT_AFTER: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """`at` is an address or a symbol, None for the hottest function; `after` instructions are run first."""

    at: str | None = None
    after: int = DEFAULT_AFTER
    top: int = 10
    as_json: bool = False
    color: bool = False


def explain_machine(machine: Machine, options: ExplainOptions, stdout: TextIO) -> int:
    """Run a machine and show what became of its hot code; the exit code: 0, also if nothing was hot.

    CommandError USAGE for an `at` that is neither an address nor a symbol of the guest.
    """
    symbols = machine.symbols
    address = None if options.at is None else address_of(options.at, symbols)
    cpu = machine.vm.vcpu(0).cpu
    profile = Profile(machine.vm)
    profile.run(options.after)
    functions, elsewhere = profile.functions()
    shown: Explanation | str
    if address is not None:
        shown = explanation_at(cpu, address, symbols, functions)
    else:
        shown = explanation_of_hottest(cpu, functions, symbols)
    total = sum(profile.places.values())
    if options.as_json:
        document = {
            "exit_status": int(ExitStatus.OK),
            "instructions": cpu.retired,
            "ended": profile.ended,
            "samples": total,
            "stepped": elsewhere,
            "functions": [_row_dict(each, symbols) for each in functions[: options.top]],
            "explanation": _dict(shown),
        }
        stdout.write(json.dumps(document, indent=2) + "\n")
        return ExitStatus.OK
    if address is None:
        stdout.write(_list(cpu.retired, profile.ended, functions, elsewhere, total, symbols, options))
    if isinstance(shown, str):
        stdout.write(shown)
        return ExitStatus.OK
    for text, is_python in shown.parts():
        stdout.write(_colored(text) if is_python and options.color else text)
    return ExitStatus.OK


def address_of(text: str, symbols: SymbolTable | None) -> int:
    """The address that `--at` means: a number, a symbol, or a symbol and a distance. CommandError USAGE."""
    name, plus, distance = text.partition("+")
    try:
        if text[:1].isdigit():
            return parse_number(text)
        offset = parse_number(distance) if plus else 0
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"--at: {error}") from None
    if symbols is None or not len(symbols):
        raise CommandError(
            ExitStatus.USAGE, f"--at {text}: the guest has no symbols; give an address, or --symbols FILE"
        )
    address = symbols.address_of(name)
    if address is None:
        near = get_close_matches(name, (symbol.name for symbol in symbols), 1)
        hint = f'; did you mean "{near[0]}"?' if near else "; give an address or another name"
        raise CommandError(ExitStatus.USAGE, f"--at: the guest has no symbol {name}{hint}")
    return address + offset


def _list(
    retired: int, ended: str, functions: list[Function], elsewhere: int, total: int,
    symbols: SymbolTable | None, options: ExplainOptions,
) -> str:  # fmt: skip
    """The hottest functions as a table."""
    end = f"; it ended with {ended}" if ended else ""
    text = f"After {plural(retired, 'instruction')}: {plural(len(functions), 'function')} of hot code{end}.\n"
    if not functions:
        return text
    rows = []
    for each in functions[: options.top]:
        name = place_words(each.key, each.heads[0], symbols)
        rows.append(
            (
                name,
                mode_words(each.key),
                _share(each.samples, total),
                f"{each.size:,}",
                f"{len(each.heads):,}",
            )
        )
    if elsewhere:
        rows.append(("(the step engine)", "", _share(elsewhere, total), "", ""))
    head_row = ("begins at", "runs as", "time", "instructions", "traces")
    text += f"Time is where the guest was after every {SAMPLE_SLICE:,} instructions.\n\n"
    return text + table_text(head_row, rows, "llrrr", color=options.color) + "\n"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _row_dict(function: Function, symbols: SymbolTable | None) -> dict[str, object]:
    location = None if symbols is None else symbols.lookup(function.heads[0] + function.key[2])
    return {
        "heads": [f"{head:#x}" for head in function.heads],
        "symbol": None if location is None else str(location),
        "mode": mode_words(function.key),
        "instructions": function.size,
        "samples": function.samples,
    }


def _dict(shown: Explanation | str) -> dict[str, object]:
    if isinstance(shown, str):
        return {"reason": shown.strip()}
    return {
        "title": shown.title,
        "source": shown.source,
        "legend": [{"names": names, "meaning": meaning} for names, meaning in shown.legend],
        "recipes": list(shown.recipes),
    }


def _colored(source: str) -> str:
    """Python for a terminal."""
    from io import StringIO

    from rich.console import Console
    from rich.syntax import Syntax

    buffer = StringIO()
    width = max(map(len, source.splitlines()), default=1)
    console = Console(file=buffer, force_terminal=True, width=max(width, 80))
    console.print(Syntax(source, "python", theme="ansi_dark", background_color="default"))
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())
