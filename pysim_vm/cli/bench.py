"""The benchmark commands on `pysim-vm`: their options and what they are called. The work is in
`bench_show`.

Only click is imported here, as in `cli`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from pysim_vm.cli.status import CommandError, ExitStatus


class BenchGroup(click.Group):
    """`bench WORKLOAD...` is `bench run WORKLOAD...`."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Put `run` in front of whatever is no other command and no call for help."""
        if not arguments or arguments[0] not in (*self.commands, "-h", "--help"):
            arguments = ["run", *arguments]
        return super().parse_args(context, arguments)


def add_bench_commands(cli: click.Group, common: Callable[[Any], Any], context: dict[str, Any]) -> None:
    """Put `bench` on the command line; `common` are the options of every command."""

    @cli.group(cls=BenchGroup, context_settings=context, short_help="What exits cost: run, compare, report.")
    def bench() -> None:
        """Measure what exits cost. `pysim-vm bench WORKLOAD...` is short for `bench run WORKLOAD...`.

        A workload is a name of the library (--list) or your own TOML file; without one it is the whole
        library. Each row has three layers: the model, equal on every machine; units, a ratio to a Python
        loop; and what it took here.
        """

    @bench.command(context_settings=context, short_help="Run workloads; the default.")
    @click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
    @click.option("--list", "listed", is_flag=True, help="Show the workloads of the library.")
    @click.option(
        "--engine",
        "engines",
        type=click.Choice(("step", "block")),
        multiple=True,
        help="Measure this engine only [both].",
    )
    @click.option(
        "--exit-path",
        type=click.Choice(("short", "full")),
        default="short",
        show_default=True,
        help="short: a device answers in the middle of the instruction; full: every exit leaves it.",
    )
    @click.option(
        "--rounds",
        type=click.IntRange(2, 1000),
        default=7,
        show_default=True,
        metavar="N",
        help="Rounds of each measurement, each in turns with the unit.",
    )
    @click.option("--model-only", is_flag=True, help="The model alone: nothing is timed.")
    @click.option("--cost-model", metavar="FILE", help="Cycles of each exit on your own hardware.")
    @click.option("--output", "-O", metavar="FILE", help="Write the results to FILE, as JSON.")
    @click.option("--record", metavar="FILE", help="Record the exits of one workload into FILE.")
    @common
    def run(
        workloads: tuple[str, ...],
        listed: bool,
        engines: tuple[str, ...],
        exit_path: str,
        rounds: int,
        model_only: bool,
        cost_model: str | None,
        output: str | None,
        record: str | None,
        as_json: bool,
        debug: bool,
    ) -> int:
        """Run WORKLOADs and show model, units and time of each; without one, the whole library."""
        from pysim_vm.cli.bench_show import BenchOptions, run_bench, show_library

        if listed:
            return show_library(sys.stdout, as_json=as_json, color=_color())
        if record is not None and len(workloads) != 1:
            raise CommandError(ExitStatus.USAGE, "--record takes the exits of one workload; name one")
        if model_only and engines:
            raise CommandError(
                ExitStatus.USAGE, "--engine with --model-only: the model is the same on both; leave it out"
            )
        options = BenchOptions(
            workloads=workloads, engines=() if model_only else tuple(dict.fromkeys(engines)) or None,
            exit_path=exit_path, rounds=rounds, cost_model=cost_model, output=output, record=record,
            as_json=as_json, color=_color(),
        )  # fmt: skip
        return run_bench(options, sys.stdout, sys.stderr)

    @bench.command(context_settings=context, short_help="A verdict for each row of two results.")
    @click.argument("first")
    @click.argument("second")
    @click.option(
        "--fail-on",
        type=click.Choice(("model", "slower")),
        default="model",
        show_default=True,
        help="What ends with code 98: a model that changed, or a measurement that is slower too.",
    )
    @common
    def compare(first: str, second: str, fail_on: str, as_json: bool, debug: bool) -> int:
        """Compare the results FIRST and SECOND, two files of --output, row by row.

        A model is the same or changed. A measurement is faster or slower if the middle halves do not touch
        and the medians are at least 3 % apart.
        """
        from pysim_vm.cli.bench_show import run_compare

        return run_compare((first, second), sys.stdout, fail_on=fail_on, as_json=as_json, color=_color())

    @bench.command(context_settings=context, short_help="Results as a page to hand in.")
    @click.argument("results")
    @click.option("--output", "-O", metavar="FILE", help="Where the page goes [standard output].")
    @click.option("--title", default="What exits cost", show_default=True, help="The page's heading.")
    @click.option("--author", default="", help="Your name.")
    @click.option(
        "--plots",
        type=click.Choice(("auto", "figures", "bars")),
        default="auto",
        show_default=True,
        help="figures need matplotlib; bars are plain HTML.",
    )
    @common
    def report(
        results: str, output: str | None, title: str, author: str, plots: str, as_json: bool, debug: bool
    ) -> int:
        """Make one HTML file of RESULTS, a file of --output: no other file, no script, no network."""
        from pysim_vm.cli.bench_show import ReportOptions, run_report

        options = ReportOptions(output, title, author, plots, as_json)
        return run_report(results, options, sys.stdout, sys.stderr)


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
