"""Real guests from their first instruction to the point where a person would type. It measures one boot each.

The files come from .guests/ (.ci/fetch-guests); a guest whose files are not there is skipped and says so.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import TypeVar

from bench.unit import unit_seconds
from isa.exits import Budget
from pysim_vm import AxVM
from pysim_vm.loader import LoadOptions
from tests.boots.initramfs import busybox_initramfs
from tests.boots.kernel_options import BLACKLIST, COMMAND_LINE, DEFAULT_COMMAND_LINE
from tests.boots.sessions import screen, type_line
from tests.guests import find_guest

SLICE = 200_000  # instructions between two looks at what the guest printed
SAMPLE = 10_000  # units timed before each slice

T = TypeVar("T")


class NotReached(Exception):
    """A guest did not get where it had to in its budget."""


class Meter:
    """CPU time of a boot, in seconds and in units as long as they were at the time. `machine` is what the VM
    is made with: engine and translation cache."""

    def __init__(self, **machine: str) -> None:
        self.machine = machine
        self.seconds = 0.0
        self.units = 0.0

    def timed(self, work: Callable[[], T]) -> T:
        """What `work` returns; its time is added."""
        unit = unit_seconds(SAMPLE) / SAMPLE
        start = process_time()
        result = work()
        seconds = process_time() - start
        self.seconds += seconds
        self.units += seconds / unit
        return result

    def start(self, name: str, memory: str, options: LoadOptions | None = None) -> AxVM:
        """A machine that is about to start the guest file `name`."""
        return self.timed(lambda: AxVM.from_image(path(name), options, memory=memory, **self.machine))

    def run_to(self, vm: AxVM, shown: Callable[[], str], text: str, budget: int) -> None:
        """Run until `shown()` contains `text`. NotReached if the run ends or `budget` is used up before."""
        end = vm.vcpu(0).retired + budget
        while text not in shown():
            reason = self.timed(lambda: vm.run(SLICE))
            if text not in shown() and (not isinstance(reason, Budget) or vm.vcpu(0).retired >= end):
                raise NotReached(f'"{text}" did not come in {budget:,} instructions; the run said {reason}')


def seabios(meter: Meter) -> AxVM:
    """SeaBIOS through POST until it finds nothing to boot."""
    vm = meter.start("bios.bin", "64M")
    meter.run_to(vm, vm.debug_console.text, "No bootable device", 10_000_000)
    return vm


def u_boot(meter: Meter) -> AxVM:
    """U-Boot to the prompt of its shell."""
    vm = meter.start("u-boot-x86_64.rom", "128M")
    meter.run_to(vm, vm.console.text, "Hit any key to stop autoboot", 30_000_000)
    type_line(vm, "")
    meter.run_to(vm, vm.console.text, "=> ", 30_000_000)
    return vm


def memtest(meter: Meter) -> AxVM:
    """memtest86+ to its menu."""
    vm = meter.start("memtest86+x64.bin", "32M", LoadOptions(text_screen=True))
    meter.run_to(vm, lambda: screen(vm), "to start testing", 20_000_000)
    return vm


def linux_banner(meter: Meter) -> AxVM:
    """Debian's kernel through its decompressor to its first line."""
    vm = meter.start("vmlinuz-cloud-amd64", "128M", LoadOptions(cmdline=COMMAND_LINE))
    meter.run_to(vm, vm.console.text, "Linux version 6.", 30_000_000)
    return vm


def linux_shell(meter: Meter) -> AxVM:
    """Debian's kernel to the prompt of busybox, without what it can do without."""
    return shell(meter, COMMAND_LINE + BLACKLIST, 230_000_000)


def linux_default(meter: Meter) -> AxVM:
    """The same with the kernel's self-checks and tables: RSA and elliptic curves for the most part."""
    return shell(meter, DEFAULT_COMMAND_LINE, 1_500_000_000)


def shell(meter: Meter, command_line: str, budget: int) -> AxVM:
    """Debian's kernel to the prompt of busybox, in at most `budget` instructions."""
    with TemporaryDirectory() as scratch:
        initrd = Path(scratch) / "initrd.cpio"
        initrd.write_bytes(busybox_initramfs(path("busybox").read_bytes()))
        options = LoadOptions(cmdline=command_line, initrd=initrd)
        vm = meter.start("vmlinuz-cloud-amd64", "128M", options)
    meter.run_to(vm, vm.console.text, "initramfs is up", budget)
    meter.run_to(vm, vm.console.text, "# ", 10_000_000)
    return vm


def path(name: str) -> Path:
    """A guest file that is there."""
    found = find_guest(name)
    assert found is not None, name
    return found


@dataclass(frozen=True, slots=True)
class Boot:
    """A guest, the files it needs, and how to get it where it should be. A `long` one takes many minutes and
    boots only if it is asked for by its name."""

    name: str
    files: tuple[str, ...]
    boot: Callable[[Meter], AxVM]
    long: bool = False

    @property
    def missing(self) -> list[str]:
        """Files that are not there."""
        return [name for name in self.files if find_guest(name) is None]


BOOTS = (
    Boot("SeaBIOS, POST", ("bios.bin",), seabios),
    Boot("U-Boot, prompt", ("u-boot-x86_64.rom",), u_boot),
    Boot("memtest86+, menu", ("memtest86+x64.bin",), memtest),
    Boot("Debian, first line", ("vmlinuz-cloud-amd64",), linux_banner),
    Boot("Debian, shell", ("vmlinuz-cloud-amd64", "busybox"), linux_shell),
    Boot("Debian, default", ("vmlinuz-cloud-amd64", "busybox"), linux_default, long=True),
)


@dataclass(frozen=True, slots=True)
class Booted:
    """One boot on one engine, from making the machine to the end."""

    name: str
    engine: str
    instructions: int
    seconds: float
    units: float

    def line(self) -> str:
        """Its row in the table."""
        return (
            f"| {self.name:<18} | {self.engine:<6} | {self.instructions:>12,} | {self.seconds:7.1f} s "
            f"| {self.instructions / self.seconds / 1e6:9.2f} | {self.units / self.instructions:6.1f} |"
        )


HEADER = "\n".join(
    (
        f"| {'Guest':<18} | {'Engine':<6} | {'Instructions':>12} | {'CPU time':>9} | {'Million/s':>9} "
        f"| {'Units':>6} |",
        f"|{'-' * 20}|{'-' * 8}|{'-' * 13}:|{'-' * 10}:|{'-' * 10}:|{'-' * 7}:|",
    )
)


def measured(boot: Boot, row: str, **machine: str) -> Booted:
    """Boot it once on such a machine; `row` is what the table calls its engine."""
    gc.collect()  # what an earlier boot left is not to be looked through during this one
    meter = Meter(**machine)
    vm = boot.boot(meter)
    meter.timed(vm.keep_translations)
    return Booted(boot.name, row, vm.vcpu(0).retired, meter.seconds, meter.units)


def boots_of(boot: Boot, engine: str) -> Iterator[Booted]:
    """Boot it on an engine; on the block engine once more, with the translations that the first boot kept,
    unless it is a long one."""
    if engine == "step":
        yield measured(boot, engine, engine=engine)
        return
    with TemporaryDirectory() as kept:
        yield measured(boot, engine, engine=engine, translation_cache=kept)
        if not boot.long:
            yield measured(boot, "kept", engine=engine, translation_cache=kept)


def show(engines: list[str], only: str) -> None:
    """Boot what is there and print a table; what is not is named below it with the line that fetches it."""
    missing: list[str] = []
    print(HEADER)
    for boot in BOOTS:
        if only.lower() not in boot.name.lower() or (boot.long and only.lower() != boot.name.lower()):
            continue
        missing += boot.missing
        for engine in engines if not boot.missing else []:
            for booted in boots_of(boot, engine):
                print(booted.line(), flush=True)
    if missing:
        print(f"\nnot there: {', '.join(dict.fromkeys(missing))}; run .ci/fetch-guests")
