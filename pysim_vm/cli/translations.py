"""The commands about translated code on `pysim-vm`: their options and what they are called. The work is in
`cache` and `explain`.

Only click is imported here, as in `cli`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import click

from pysim_vm.cli.status import CommandError, ExitStatus

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """Options that are put on a command."""

    def __call__(self, command: F, /) -> F:
        """The command with the options."""


cache_option = click.option(
    "--translation-cache", metavar="on|off|DIR", help="Where translations are kept from run to run [on]."
)


def engine_options(command: F) -> F:
    """How a guest is executed, for commands that run one."""
    engine = click.option(
        "--engine",
        type=click.Choice(("step", "block", "auto")),
        help="step: one instruction at a time; block, auto: hot code is translated.",
    )
    return engine(cache_option(command))


def add_translation_commands(
    cli: click.Group, machine: Decorator, common: Decorator, context: dict[str, Any]
) -> None:
    """Put `cache` and `explain` on the command line; `machine` are the options that make a machine, `common`
    those of every command."""

    @cli.group(context_settings=context, short_help="The translations kept on disk.")
    def cache() -> None:
        """Translations of hot code are kept on disk, so that the next run starts with them."""

    @cache.command(context_settings=context, short_help="What is in the cache.")
    @cache_option
    @common
    def info(translation_cache: str | None, as_json: bool, debug: bool) -> int:
        """List the files of the cache: size, translations, and if this program would use them."""
        from pysim_vm.cli.cache import show_cache

        return show_cache(translation_cache or "on", sys.stdout, as_json=as_json, color=_color())

    @cache.command(context_settings=context, short_help="Remove the cache's files.")
    @cache_option
    @common
    def clear(translation_cache: str | None, as_json: bool, debug: bool) -> int:
        """Remove the files of the cache, and nothing else in its directory."""
        from pysim_vm.cli.cache import clear_cache

        return clear_cache(translation_cache or "on", sys.stdout, as_json=as_json)

    @cli.command(context_settings=context, short_help="The Python that hot code became.")
    @click.argument("guest")
    @machine
    @click.option("--at", metavar="ADDRESS|SYMBOL", help="Show the function that holds this instruction.")
    @click.option("--after", metavar="N", help="Instructions to run first [20M].")
    @click.option("--top", type=click.IntRange(1), default=10, show_default=True, metavar="N",
                  help="Functions in the list.")  # fmt: skip
    @common
    def explain(
        guest: str, at: str | None, after: str | None, top: int, as_json: bool, debug: bool, **options: Any
    ) -> int:
        """Run GUEST on the block engine and show what became of its hot code.

        Without --at: the functions in which most of the time went, the hottest first, and the first of them
        as Python, with the guest's instructions as comments.
        """
        from pysim_vm.cli.explain import DEFAULT_AFTER, ExplainOptions, explain_machine
        from pysim_vm.cli.machine import EngineOptions, MachineOptions, build_machine
        from pysim_vm.cli.machine import count as number

        if options.pop("no_board"):
            if options["platform"] == "pc":
                raise CommandError(
                    ExitStatus.USAGE, "--no-board and --platform pc contradict each other; give one"
                )
            options["platform"] = "none"
        wanted = ExplainOptions(
            at=at,
            after=DEFAULT_AFTER if after is None else number("--after", after),
            top=top,
            as_json=as_json,
            color=_color() and not as_json,
        )
        built = build_machine(guest, MachineOptions(**options), EngineOptions("block", "off"))
        return explain_machine(built, wanted, sys.stdout)


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
