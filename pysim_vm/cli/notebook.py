"""`pysim-vm notebook`: run a notebook that is kept as text and write its page. It imports only click here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.translations import Decorator


def add_notebook_commands(cli: click.Group, common: Decorator, context: dict[str, Any]) -> None:
    """Put `notebook` on the command line; `common` are the options of every command."""

    @cli.command(context_settings=context, short_help="Run a notebook kept as text and write its page.")
    @click.argument("file")
    @click.option(
        "--output", "-O", metavar="PAGE", help="Where the page goes [the name of FILE, with .html]."
    )
    @common
    def notebook(file: str, output: str | None, as_json: bool, debug: bool) -> int:
        """Run the cells of FILE, a Python file with `# %%` between them, and write one HTML page.

        FILE is a program of yours: it runs with your rights.
        """
        return write_notebook(file, output, as_json=as_json)


def write_notebook(file: str, output: str | None, *, as_json: bool = False) -> int:
    """Run a notebook and write its page. CommandError if a cell raises or a file fails."""
    import json

    from pysim_vm.display.notebook import CellError, NotebookError, notebook_page, read_notebook, run_cells

    target = output if output is not None else Path(file).with_suffix(".html").name
    try:
        runs = run_cells(read_notebook(file), file)
    except CellError as error:
        raise CommandError(ExitStatus.CELL, str(error)) from error
    except NotebookError as error:
        raise CommandError(ExitStatus.HOST_IO, str(error)) from error
    page = notebook_page(runs, Path(file).name)
    try:
        Path(target).write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(
            ExitStatus.HOST_IO, f"--output: {target} cannot be written ({reason}); check the path"
        ) from error
    if as_json:
        click.echo(json.dumps({"exit_status": 0, "file": target, "cells": len(runs)}, indent=2))
    else:
        click.echo(f"pysim-vm: {len(runs)} cells ran; the page is {target}", file=sys.stderr)
    return ExitStatus.OK
