"""The commands about records on `pysim-vm`: their options and what they are called. The work is in `trace`.

Only click is imported here, as in `cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

GROUPS: Final = ("reason", "device", "port", "address", "rip", "symbol", "vcpu")
FORMATS: Final = ("perfetto", "csv", "jsonl", "sqlite", "parquet", "ftrace")


def record_options(command: F) -> F:
    """`--record` and its kin, for commands that run a guest."""
    for option in (
        click.option("--record-compress", is_flag=True, help="Deflate the record."),
        click.option("--record-limit", metavar="SIZE", help="Bytes a record may take [4G]."),
        click.option("--record-instructions", is_flag=True,
                     help="Record every instruction with what it changed; slow."),
        click.option("--record-stores-to", multiple=True, metavar="ADDRESS[-ADDRESS]",
                     help="Record the writes to this RAM as well; may be given several times."),
        click.option("--record-stores", is_flag=True, help="Record every write to RAM as well; slow."),
        click.option("--record", metavar="FILE", help="Record every exit into FILE (see stat and trace)."),
    ):  # fmt: skip
        command = option(command)
    return command


def _filter_options(command: F) -> F:
    for option in (
        click.option("--until", metavar="WHEN", help="Only exits before WHEN."),
        click.option("--since", metavar="WHEN",
                     help="Only exits from WHEN on: instructions (5000) or virtual time (2ms)."),
        click.option("--direction", type=click.Choice(("read", "write")), help="Only accesses that way."),
        click.option("--irq", metavar="N", help="Only exits during which interrupt line N rose."),
        click.option("--symbol", multiple=True, metavar="NAME", help="Only from this function."),
        click.option("--msr", metavar="N[-N]", help="Only accesses to these model-specific registers."),
        click.option("--gpa", metavar="ADDRESS[-ADDRESS]", help="Only accesses to this device memory."),
        click.option("--port", metavar="PORT[-PORT]", help="Only accesses to these ports."),
        click.option("--device", multiple=True, metavar="NAME", help="Only exits that this device answered."),
        click.option("--reason", multiple=True, metavar="NAME",
                     help="Only exits of this reason, such as io_write, mmio or halt."),
    ):  # fmt: skip
        command = option(command)
    return command


def _filters(given: dict[str, Any]) -> Any:
    from pysim_vm.cli.trace import Filters

    return Filters(**given)


def add_commands(cli: click.Group, common: Callable[[Any], Any], context: dict[str, Any]) -> None:
    """Put stat, trace, diff and export on the command line; `common` are the options of every command."""

    @cli.command(context_settings=context, short_help="Count the exits of a record.")
    @click.argument("record")
    @click.option(
        "--by", type=click.Choice(GROUPS), default="reason", show_default=True, help="What to count by."
    )
    @click.option("--top", type=click.IntRange(1), metavar="N", help="Show the N most frequent lines.")
    @click.option("--live", is_flag=True, help="Show it again every second while the recording goes on.")
    @_filter_options
    @common
    def stat(
        record: str, by: str, top: int | None, live: bool, as_json: bool, debug: bool, **filters: Any
    ) -> int:
        """Count the exits in RECORD, as perf kvm stat does: how many, how often, how long to the next one.

        An answer takes no virtual time here, so the time of an exit is that until the next exit: the sleep
        of a HLT, and for any other how long the guest ran on.
        """
        from pysim_vm.cli.trace import run_stat, terminal_color

        return run_stat(record, by, _filters(filters), sys.stdout, sys.stderr, live=live, top=top,
                        as_json=as_json, color=terminal_color())  # fmt: skip

    @cli.command(context_settings=context, short_help="Show the exits of a record in words.")
    @click.argument("record")
    @click.option("--first", "-n", type=click.IntRange(1), metavar="N", help="Show the first N rows.")
    @click.option("--last", type=click.IntRange(1), metavar="N", help="Show the last N rows.")
    @click.option("--stores", "rows", flag_value="stores", help="Show the writes to RAM.")
    @click.option("--instructions", "rows", flag_value="instructions", help="Show the instructions.")
    @click.option("--exceptions", "rows", flag_value="exceptions",
                  help="Show the exceptions, each with the check that failed.")  # fmt: skip
    @click.option("--events", "rows", flag_value="events",
                  help="Show exceptions, interrupts and INT n.")  # fmt: skip
    @click.option("--who-wrote", metavar="ADDRESS",
                  help="Show who wrote there, the newest first: 0xb8000, port:0x3f8, msr:0x1b.")  # fmt: skip
    @_filter_options
    @common
    def trace(
        record: str, first: int | None, last: int | None, rows: str | None, who_wrote: str | None,
        as_json: bool, debug: bool, **filters: Any,
    ) -> int:  # fmt: skip
        """Show the exits in RECORD, one line each; with --json one object a line."""
        from pysim_vm.cli.trace import TraceOptions, run_trace, terminal_color

        options = TraceOptions(_filters(filters), rows or "exits", first, last, who_wrote, as_json)
        return run_trace(record, options, sys.stdout, sys.stderr, terminal_color())

    @cli.command(context_settings=context, short_help="Find where two records part.")
    @click.argument("record")
    @click.argument("other")
    @click.option("--context", type=click.IntRange(0, 1000), default=5, show_default=True,
                  help="Rows shown before the first different one.")  # fmt: skip
    @click.option("--no-state", is_flag=True, help="Do not run the guests again for the machine states.")
    @common
    def diff(record: str, other: str, context: int, no_state: bool, as_json: bool, debug: bool) -> int:
        """Find the first row in which RECORD and OTHER differ, and the state of both machines there.

        The states come from the records if they hold instructions; otherwise both guests are run again up to
        that instruction, if their files are still where they were.
        """
        from pysim_vm.cli.trace import run_diff

        return run_diff((record, other), sys.stdout, context=context, states=not no_state, as_json=as_json)

    @cli.command(context_settings=context, short_help="Write a record in another format.")
    @click.argument("record")
    @click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="The format.")
    @click.option("--output", "-O", metavar="FILE", help="Where it goes; texts may go to standard output.")
    @_filter_options
    @common
    def export(record: str, form: str, output: str | None, as_json: bool, debug: bool, **filters: Any) -> int:
        """Write the exits of RECORD for other programs.

        perfetto is for https://ui.perfetto.dev, ftrace the text of the kernel's kvm events, sqlite a database
        with one table, parquet needs pyarrow.
        """
        from pysim_vm.cli.trace import run_export

        return run_export(record, form, output, _filters(filters), sys.stdout, sys.stderr)
