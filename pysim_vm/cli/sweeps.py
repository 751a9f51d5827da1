"""The commands about sweeps on `pysim-vm`: their options and what they are called. The work is in `sweep`.

Only click is imported here, as in `cli`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click


class _DefaultGroup(click.Group):
    """A group whose first word may be a jobs file: then it is the command `run` with that file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`JOBS_FILE ...` as `run JOBS_FILE ...`."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def add_sweep_commands(
    cli: click.Group, common: Callable[[Any], Any], context: dict[str, Any]
) -> None:  # fmt: skip
    """Put `sweep` and `sweep merge` on the command line; `common` are the options of every command."""

    @cli.group(
        cls=_DefaultGroup, context_settings=context, subcommand_metavar="JOBS_FILE [OPTIONS] | COMMAND ...",
        short_help="Run guests x configurations x seeds, and go on after a kill.",
    )  # fmt: skip
    def sweep() -> None:
        """Run every guest of JOBS_FILE (TOML) with every configuration and every seed.

        The results go to JOBS.results.jsonl and are the same, byte for byte, whatever ran the jobs. Killed
        in the middle, the same command goes on. `pysim-vm sweep run --help` shows the options.
        """

    @sweep.command(context_settings=context, short_help="Run a jobs file; the word run may be left out.")
    @click.argument("jobs_file")
    @click.option(
        "--jobs", "-j", type=click.IntRange(1, 4096), metavar="N", help="Worker processes [one for each CPU]."
    )
    @click.option(
        "--dask",
        metavar="ADDRESS|local",
        help="Use a dask scheduler, such as tcp://10.0.0.1:8786; local starts one on this machine.",
    )
    @click.option("--output", metavar="FILE", help="Where the results go [JOBS.results.jsonl].")
    @click.option("--journal", metavar="FILE", help="What a killed sweep goes on from [OUTPUT.journal].")
    @click.option("--shard", metavar="I/N", help="Run only the I-th of N parts; sweep merge joins them.")
    @click.option("--seconds", metavar="FILE", help="Write what each job took on this host, as CSV.")
    @click.option("--fresh", is_flag=True, help="Run every job again, whatever was done before.")
    @click.option(
        "--keep-unfinished", is_flag=True, help="Do not run jobs again that ran out of wall time or memory."
    )
    @click.option("--quiet", "-q", is_flag=True, help="No bar and no table.")
    @common
    def run(
        jobs_file: str, jobs: int | None, dask: str | None, output: str | None, journal: str | None,
        shard: str | None, seconds: str | None, fresh: bool, keep_unfinished: bool, quiet: bool,
        as_json: bool, debug: bool,
    ) -> int:  # fmt: skip
        """Run every guest of JOBS_FILE with every configuration and every seed, or go on with it."""
        from pysim_vm.cli.sweep import SweepOptions, run_sweep

        options = SweepOptions(
            jobs=jobs, dask=dask, output=output, journal=journal, shard=shard, seconds=seconds, fresh=fresh,
            keep_unfinished=keep_unfinished, quiet=quiet, as_json=as_json,
            color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        )  # fmt: skip
        return run_sweep(jobs_file, options, sys.stdout, sys.stderr)

    @sweep.command(context_settings=context, short_help="Put the results of shards together.")
    @click.argument("output")
    @click.argument("results", nargs=-1, required=True)
    @common
    def merge(output: str, results: tuple[str, ...], as_json: bool, debug: bool) -> int:
        """Write to OUTPUT what the RESULTS of all shards say, as one run would have written it."""
        from pysim_vm.cli.sweep import merge_sweeps

        return merge_sweeps(output, results, sys.stdout, sys.stderr, as_json=as_json)
