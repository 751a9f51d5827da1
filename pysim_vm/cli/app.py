"""`pysim-vm`, the command line: options and what they are called. The work is in the other modules.

Only click is imported here; a command imports its own part when it runs, so that help and mistakes are quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import click

from pysim_vm import __version__
from pysim_vm.cli.bench import add_bench_commands
from pysim_vm.cli.notebook import add_notebook_commands
from pysim_vm.cli.records import add_commands, record_options
from pysim_vm.cli.status import CommandError, ExitStatus
from pysim_vm.cli.sweeps import add_sweep_commands
from pysim_vm.cli.translations import add_translation_commands, engine_options

F = TypeVar("F", bound=Callable[..., Any])

PROTOCOLS = ("flat", "boot-sector", "elf", "multiboot", "axvm-multiboot", "linux", "pvh", "firmware")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _stacked(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several click options as one decorator, shown in the order given."""

    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


machine_options = _stacked(
    click.option("--memory", metavar="SIZE", help="RAM, such as 128M (the default for a guest file) or 2G."),
    click.option("--append", metavar="CMDLINE", help="Command line of a kernel."),
    click.option("--initrd", metavar="FILE", help="Initial RAM disk of a Linux kernel."),
    click.option("--disk", "disks", multiple=True, metavar="FILE[,write]",
                 help="IDE disk, at most two. Changes are kept in memory; with ,write they go to the file."),
    click.option("--rom", "roms", multiple=True, metavar="NAME=FILE",
                 help="File for the firmware's fw_cfg, such as vgaroms/vgabios.bin=FILE."),
    click.option("--module", "modules", multiple=True, metavar="'FILE ARGS'", help="Multiboot module."),
    click.option("--load-address", metavar="ADDRESS", help="Where a raw image goes."),
    click.option("--entry", metavar="ADDRESS", help="First instruction of a raw image [load address]."),
    click.option("--mode", type=click.Choice(("real", "protected", "long")), default="real",
                 show_default=True, help="CPU mode in which a raw image starts."),
    click.option("--protocol", type=click.Choice(PROTOCOLS), help="What the guest file is [found out]."),
    click.option("--symbols", metavar="FILE", help="ELF file or System.map to name addresses."),
    click.option("--seed", metavar="NUMBER", help="Seed of RDRAND."),
    click.option("--ns-per-instruction", metavar="N", help="Virtual nanoseconds an instruction takes [64]."),
    click.option("--cpu", multiple=True, metavar="+FEAT,-FEAT", help="CPU features to add and take away."),
    click.option("--missing-device", type=click.Choice(("raise", "ones", "gp")),
                 help="An access nobody answers: an error, all ones, or all ones and #GP for an MSR "
                      "[raise for your own code, gp for systems]."),
    click.option("--max-output", metavar="SIZE", help="Console output to keep and pass on [16M]."),
    click.option("--platform", type=click.Choice(("pc", "none")), help="The board around the CPU [pc]."),
    click.option("--no-board", is_flag=True, help="The same as --platform none."),
)  # fmt: skip

common_options = _stacked(
    click.option("--json", "as_json", is_flag=True, help="JSON on standard output."),
    click.option("--debug", is_flag=True, help="Show Python's traceback for an internal error."),
)


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="pysim-vm", message="%(prog)s %(version)s")
def cli() -> None:
    """An x86-64 machine in pure Python.

    Exit codes are listed in docs/exit-codes.md; a guest's own code (isa-debug-exit) is always odd.
    """


@cli.command(
    context_settings=CONTEXT, short_help="Run a configuration, kernel, ROM, disk, program or raw image."
)
@click.argument("guest")
@machine_options
@click.option("--budget", metavar="N", help="Instructions to run at most, such as 20000000 or 20M.")
@click.option(
    "--trace", type=click.Choice(("exits", "instructions")), help="A line for each, on standard error."
)
@click.option("--trace-file", metavar="FILE", help="Where the trace goes instead.")
@click.option("--screen", is_flag=True, help="Show the VGA text screen at the end.")
@click.option("--registers", is_flag=True, help="Show the registers at the end.")
@click.option("--output", metavar="FILE", help="Where the console's output goes instead of standard output.")
@click.option("--log-file", metavar="FILE", help="Where the firmware's debug port 0x402 goes.")
@click.option("--input", "input_file", metavar="FILE", help="File to type into the console.")
@click.option(
    "--type", "type_text", multiple=True, metavar="TEXT", help=r"Text to type; \r is Enter, \x03 Ctrl-C."
)
@click.option("--after", "type_after", default="", metavar="TEXT", help="Type once the console printed TEXT.")
@click.option(
    "--keys",
    type=click.Choice(("serial", "ps2")),
    default="serial",
    show_default=True,
    help="Where keys go: the serial port or the PS/2 keyboard.",
)
@click.option("--no-input", is_flag=True, help="Do not read standard input.")
@click.option("--stop-on", default="", metavar="TEXT", help="Stop when the console has printed TEXT.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing when all went well.")
@engine_options
@click.option(
    "--exit-path",
    type=click.Choice(("short", "full")),
    help="short: a device answers a plain exit in the middle of its instruction; full: every exit leaves it "
    "[short].",
)
@record_options
@common_options
def run(
    guest: str,
    budget: str | None,
    trace: str | None,
    trace_file: str | None,
    screen: bool,
    registers: bool,
    output: str | None,
    log_file: str | None,
    input_file: str | None,
    type_text: tuple[str, ...],
    type_after: str,
    keys: str,
    no_input: bool,
    stop_on: str,
    quiet: bool,
    engine: str | None,
    translation_cache: str | None,
    exit_path: str | None,
    record: str | None,
    record_stores: bool,
    record_stores_to: tuple[str, ...],
    record_instructions: bool,
    record_limit: str | None,
    record_compress: bool,
    as_json: bool,
    debug: bool,
    **machine: Any,
) -> int:
    """Run GUEST: a TOML configuration, a kernel, a ROM, a disk, an ELF program or a raw image.

    The guest's console is this terminal; Ctrl-A x leaves, Ctrl-A h shows more.
    """
    from pysim_vm.cli.machine import EngineOptions, build_machine, parse_budget, size
    from pysim_vm.cli.run import RunOptions, run_machine

    stores: bool | list[range] = record_stores
    if record_stores_to and not record_stores:
        from pysim_vm.cli.trace import addresses

        stores = [addresses("--record-stores-to", text) for text in record_stores_to]
    if record is None and (stores or record_instructions or record_limit or record_compress):
        raise CommandError(ExitStatus.USAGE, "the options of a record need --record FILE")
    if record is not None and trace == "instructions":
        raise CommandError(
            ExitStatus.USAGE, "--trace instructions with --record: record them with --record-instructions"
        )
    if trace_file is not None and trace is None:
        raise CommandError(ExitStatus.USAGE, "--trace-file needs --trace exits or --trace instructions")
    options = RunOptions(
        budget=parse_budget(budget), trace=trace or "", trace_file=trace_file, screen=screen,
        registers=registers, as_json=as_json, quiet=quiet, output=output, log_file=log_file,
        input_file=input_file, type_text="".join(type_text), type_after=type_after, keys=keys,
        stop_on=stop_on, read_stdin=not no_input, record=record, record_stores=stores,
        record_instructions=record_instructions, record_compress=record_compress,
        record_limit=None if record_limit is None else size("--record-limit", record_limit),
    )  # fmt: skip
    chosen = _machine_options(machine)
    if record is not None:
        from pysim_vm.cli.rerun import command_of

        options = replace(options, command=command_of(guest, chosen, options))
    how = EngineOptions(engine, translation_cache, default_cache="on", exit_path=exit_path)
    built = build_machine(guest, chosen, how)
    return run_machine(built, options, sys.stdout.buffer, sys.stderr)


@cli.command(context_settings=CONTEXT, short_help="Show instruction by instruction what each one changes.")
@click.argument("guest")
@machine_options
@click.option("--count", "-n", metavar="N", help="Instructions to show [20, then ask at a terminal].")
@click.option("--skip", metavar="N", help="Instructions to run before the first one shown.")
@click.option("--until", metavar="ADDRESS", help="Stop when RIP is ADDRESS.")
@click.option("--registers", is_flag=True, help="Show the registers at the end.")
@common_options
def step(
    guest: str,
    count: str | None,
    skip: str | None,
    until: str | None,
    registers: bool,
    as_json: bool,
    debug: bool,
    **machine: Any,
) -> int:
    """Run GUEST one instruction at a time and show what each one changed.

    With --json every line is one JSON object, the last one says how it ended.
    """
    from pysim_vm.cli.machine import build_machine
    from pysim_vm.cli.machine import count as number
    from pysim_vm.cli.step import DEFAULT_COUNT, StepOptions, step_machine
    from pysim_vm.config import parse_number

    try:
        stop = None if until is None else parse_number(until)
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"--until: {error}") from None
    shown = DEFAULT_COUNT if count is None else number("--count", count)
    options = StepOptions(
        count=shown if count is not None or stop is None else 1 << 62,
        skip=0 if skip is None or skip == "0" else number("--skip", skip),
        until=stop,
        registers=registers,
        as_json=as_json,
    )
    asks = count is None and stop is None and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    built = build_machine(guest, _machine_options(machine))
    return step_machine(built, options, sys.stdout, sys.stderr, _ask if asks else None)


@cli.command(context_settings=CONTEXT, short_help="Check configuration files.")
@click.argument("config", nargs=-1, required=True)
@click.option(
    "--arch",
    type=click.Choice(("x86_64", "aarch64", "riscv64", "loongarch64")),
    default="x86_64",
    show_default=True,
    help="The guest's architecture.",
)
@common_options
def check(config: tuple[str, ...], arch: str, as_json: bool, debug: bool) -> int:  # fmt: skip
    """Check CONFIG files: every error and warning, with file, line and what to do."""
    import json

    from pysim_vm.config import check as check_files

    messages = check_files(*config, arch=arch)
    errors = sum(message.startswith("error: ") for message in messages)
    status = ExitStatus.CONFIG if errors else ExitStatus.OK
    if as_json:
        rows = [
            dict(zip(("severity", "message"), message.split(": ", 1), strict=True)) for message in messages
        ]
        click.echo(
            json.dumps({"exit_status": int(status), "files": list(config), "messages": rows}, indent=2)
        )
        return status
    for message in messages:
        click.echo(message, err=message.startswith("error: "))
    if not messages:
        click.echo(f"{', '.join(config)}: no errors, no warnings")
    return status


@cli.command(context_settings=CONTEXT, short_help="Write a configuration.")
@click.option("--name", "-n", default="guest", show_default=True, help="The VM's name.")
@click.option("--id", "-i", "vm_id", default="1", show_default=True, help="The VM's id.")
@click.option("--vm-type", "-t", default="1", show_default=True, help="0 host, 1 RTOS, 2 Linux.")
@click.option("--cpu-num", "-c", default="1", show_default=True, help="vCPUs.")
@click.option("--entry", "-e", default="0x8000", show_default=True, help="Entry point.")
@click.option("--kernel-path", "-k", default="kernel.bin", show_default=True, help="The guest's image.")
@click.option("--load-addr", "-l", default="0x200000", show_default=True, help="Where the image goes.")
@click.option("--image-location", default="fs", show_default=True, type=click.Choice(("fs", "memory")))
@click.option("--cmdline", help="The kernel's command line.")
@click.option(
    "--arch",
    "-a",
    default="x86_64",
    show_default=True,
    type=click.Choice(("x86_64", "aarch64", "riscv64", "loongarch64")),
)
@click.option("--output", "-O", metavar="FILE", help="Where it goes instead of standard output.")
@common_options
def generate(
    name: str,
    vm_id: str,
    vm_type: str,
    cpu_num: str,
    entry: str,
    kernel_path: str,
    load_addr: str,
    image_location: str,
    cmdline: str | None,
    arch: str,
    output: str | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Write the configuration of one VM, as axvmconfig's generate does."""
    import json

    from pysim_vm.config import generate as generate_text
    from pysim_vm.errors import ConfigError

    try:
        text = generate_text(
            arch=arch, id=vm_id, name=name, vm_type=vm_type, cpu_num=cpu_num, entry=entry,
            kernel_path=kernel_path, load_addr=load_addr, image_location=image_location, cmdline=cmdline,
        )  # fmt: skip
    except ConfigError as error:
        raise CommandError(ExitStatus.CONFIG, str(error)) from error
    except ValueError as error:
        raise CommandError(ExitStatus.USAGE, f"generate: {error}") from error
    if output is not None:
        try:
            with open(output, "w", encoding="utf-8") as file:
                file.write(text)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CommandError(
                ExitStatus.HOST_IO, f"--output: {output} cannot be written ({reason}); check the path"
            ) from error
    if as_json:
        click.echo(json.dumps({"exit_status": 0, "file": output, "toml": text}, indent=2))
    elif output is None:
        click.echo(text, nl=False)
    return ExitStatus.OK


@cli.command(context_settings=CONTEXT, short_help="A small guest from real mode to power off, and its exits.")
@click.option("--record", metavar="FILE", help="Record every exit into FILE (see stat and trace).")
@common_options
def demo(record: str | None, as_json: bool, debug: bool) -> int:
    """Take a small guest from real mode to the power switch and show every exit it took."""
    from pysim_vm.cli.demo import run_demo

    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return run_demo(sys.stdout.buffer, sys.stderr, as_json=as_json, color=color, record=record)


@cli.command("kvm-compare", context_settings=CONTEXT, short_help="Run a guest here and on KVM, exit by exit.")
@click.argument("guest", required=False)
@machine_options
@click.option("--limit", metavar="N", help="Exits to compare at most [100,000].")
@click.option("--budget", metavar="N", help="Instructions our CPU runs at most, such as 20M.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Host time that each side may take.",
)
@click.option("--all", "show_all", is_flag=True, help="Show every exit, not only the beginning and the end.")
@common_options
def kvm_compare(
    guest: str | None,
    limit: str | None,
    budget: str | None,
    timeout: float,
    show_all: bool,
    as_json: bool,
    debug: bool,
    **machine: Any,
) -> int:  # fmt: skip
    """Run GUEST on this machine and on the host's KVM and hold their exits against each other.

    Both sides get the same kind of devices. Without GUEST it is the guest of pysim-vm demo. Out of scope are
    guests that poll a timer, as KVM counts no instructions; a timer that ends a HLT is fine.
    """
    from pysim_vm.cli.kvm import KvmOptions, compare_machines, demo_machine, refuse_shared_disks
    from pysim_vm.cli.machine import build_machine, parse_budget
    from pysim_vm.cli.machine import count as number

    options = KvmOptions(
        budget=parse_budget(budget), seconds=timeout, show_all=show_all, as_json=as_json,
        **({} if limit is None else {"limit": number("--limit", limit)}),
    )  # fmt: skip
    chosen = _machine_options(machine)
    refuse_shared_disks(chosen)

    def build() -> Any:
        return demo_machine() if guest is None else build_machine(guest, chosen)

    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return compare_machines(build, options, sys.stdout, sys.stderr, color=color)


add_commands(cli, common_options, CONTEXT)
add_translation_commands(cli, machine_options, common_options, CONTEXT)
add_notebook_commands(cli, common_options, CONTEXT)
add_sweep_commands(cli, common_options, CONTEXT)
add_bench_commands(cli, common_options, CONTEXT)


def _machine_options(given: dict[str, Any]) -> Any:
    from pysim_vm.cli.machine import MachineOptions

    if given.pop("no_board"):
        if given["platform"] == "pc":
            raise CommandError(
                ExitStatus.USAGE, "--no-board and --platform pc contradict each other; give one"
            )
        given["platform"] = "none"
    return MachineOptions(**given)


def _ask() -> int:
    """How many more steps: Enter is one, a number that many, q none."""
    try:
        answer = input("Enter: one more, a number: so many, q: leave > ").strip()
    except (EOFError, KeyboardInterrupt):
        return 0
    if not answer:
        return 1
    return int(answer) if answer.isascii() and answer.isdigit() and len(answer) < 10 else 0


# ---- the way out ---------------------------------------------------------------------------------------


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. A mistake becomes one sentence on standard error.

    With `--json` among the arguments the sentence is on standard output as well, as {"error": ...}.
    """
    try:
        result = cli.main(list(arguments), prog_name="pysim-vm", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except CommandError as error:
        return _complain(arguments, error.status, error.message)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return ExitStatus.USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = "pysim-vm" if context is None else context.command_path
        message = error.format_message().rstrip(".")
        return _complain(arguments, ExitStatus.USAGE, f"{message}; {where} --help shows the options")
    except (click.Abort, KeyboardInterrupt):
        return _complain(arguments, ExitStatus.INTERRUPTED, "interrupted")
    except BrokenPipeError:
        return ExitStatus.HOST_IO  # whoever read our output is gone, and wants no sentence about it
    except SystemExit as error:
        # So click ends by itself when whoever read our output is gone, and after shell completion (0).
        return ExitStatus.HOST_IO if error.code else ExitStatus.OK
    except OSError as error:
        what = f"{error.filename}: " if error.filename else "standard output cannot be written, "
        return _complain(
            arguments, ExitStatus.HOST_IO, f"{what}{error.strerror or error}; check where it goes"
        )
    except MemoryError:
        return _complain(
            arguments, ExitStatus.HOST_IO, "the host has no memory left; give the guest less --memory"
        )
    except Exception as error:
        return _internal(arguments, error)


def _complain(arguments: Sequence[str], status: ExitStatus, message: str) -> int:
    if "--json" in arguments:
        import json

        document = {"exit_status": int(status), "error": {"kind": status.name.lower(), "message": message}}
        with contextlib.suppress(OSError):  # the sentence below is for a reader of errors, who may be left
            click.echo(json.dumps(document, indent=2))
    click.echo(f"pysim-vm: {message}", err=True)
    return status


def _internal(arguments: Sequence[str], error: Exception) -> int:
    """A bug of ours: one sentence with the place, and with --debug the traceback before it."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}" if frames else ""
    if "--debug" in arguments:
        traceback.print_exception(error)
        advice = "please report it with the traceback above"
    else:
        advice = "run it again with --debug for the traceback and report it"
    what = f"{type(error).__name__}: {error}".replace("\n", " ")
    return _complain(arguments, ExitStatus.INTERNAL, f"internal error{where}, {what}; {advice}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    if sys.stdout is None:  # closed by the caller (`>&-`): as good as thrown away
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open to the end
    status = run_command(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # What is left cannot be written; Python's own flush at exit must not fail over it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = status or ExitStatus.HOST_IO
    sys.exit(status)
