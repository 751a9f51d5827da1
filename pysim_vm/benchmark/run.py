"""Running workloads: the model of one, the measurement of one, a whole suite. It shows nothing.

A model run notes every exit, so that its result can be compared to the last one; a measured run notes
nothing. Both run the same guest on the same machine, for the same instructions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from devices.block import MemoryBlock
from isa.exits import (
    Budget,
    CpuDown,
    CpuUp,
    ExitReason,
    ExternalInterrupt,
    Halt,
    Hypercall,
    Nothing,
    SendIPI,
    SystemDown,
    TripleFault,
)
from pysim_vm.benchmark.devices import Wires, bench_registry
from pysim_vm.benchmark.unit import Measurement, measure
from pysim_vm.benchmark.workload import SECTOR, Workload
from pysim_vm.config.vm import AxVMConfig
from pysim_vm.errors import AxError, DeviceFault, InvalidConfig
from pysim_vm.exit_kinds import KINDS
from pysim_vm.loader.flat import code_plan
from pysim_vm.recorder import DEFAULT_LIMIT
from pysim_vm.report import exit_words, plural
from pysim_vm.vm import AxVM

ENGINES: Final = ("step", "block")
EXIT_PATHS: Final = ("short", "full")
END_OF: Final = {Halt: "halt", SystemDown: "power-off", TripleFault: "triple-fault", Budget: "instructions"}
_GO_ON: Final = (SendIPI, CpuUp, CpuDown, ExternalInterrupt, Nothing)  # the guest goes on after these
RECORD_LIMIT: Final = 1 << 30  # bytes of a record in memory: twenty million exits
# An exit in the digest: all but the vCPU and the device's number, which another chip on the board changes
_ROW: Final = np.dtype(
    [("retired", "<u8"), ("rip", "<u8"), ("kind", "u1"), ("address", "<u8"), ("width", "u1"),
     ("value", "<u8"), ("raised", "<u8")]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """What a run did, the same on every machine: instructions, exits by kind in the order of KINDS, virtual
    nanoseconds, and the SHA-256 of all exits with their place, time, address, width and value."""

    instructions: int
    exits: dict[str, int]
    virtual_ns: int
    exits_sha256: str

    @property
    def taken(self) -> int:
        """Exits of all kinds."""
        return sum(self.exits.values())


def build(workload: Workload, engine: str = "block", exit_path: str = "short") -> AxVM:
    """The machine of a workload, about to start. InvalidConfig if its parts do not fit each other."""
    try:
        return _built(workload, engine, exit_path)
    except AxError as error:
        raise InvalidConfig(f"workload {workload.name}: {error}") from error


def _built(workload: Workload, engine: str, exit_path: str) -> AxVM:
    pysim = replace(
        workload.pysim, engine=engine, exit_path=exit_path, translation_cache=None,
        budget_instructions=1 << 62,
    )  # fmt: skip
    config = AxVMConfig(
        1, workload.name, memory_regions=pysim.ram_regions(), pysim=pysim,
        emu_devices=workload.devices.emu_devices, virtual_devices=workload.devices.virtual,
    )  # fmt: skip
    plan = code_plan(workload.code, workload.mode, workload.base, config.memory_size())
    wires = Wires()
    disks = (MemoryBlock(_numbered(workload.disk)),) if workload.disk else ()
    vm = AxVM(config, plan=plan, disks=disks, registry=bench_registry(wires, workload.factories))
    wires.vm = vm
    for base, length in workload.lazy:
        vm.alloc_memory_region(length, base, populate=False)
    return vm


def _numbered(size: int) -> bytes:
    """A disk whose sectors are full of their number."""
    return b"".join(number.to_bytes(4, "little") * (SECTOR // 4) for number in range(size // SECTOR))


def run(vm: AxVM, workload: Workload) -> None:
    """Run the guest to its end. InvalidConfig if it ends in another way than the workload says, DeviceFault
    if a device fails or is missing."""
    restarts = workload.restarts
    cpu = vm.vcpu(0).cpu
    while True:
        try:
            reason = vm.run_vcpu(0, workload.instructions - cpu.retired)
        except DeviceFault as error:
            raise DeviceFault(f"workload {workload.name}: {error}", error.kind) from error
        if isinstance(reason, Hypercall):
            vm.vcpu(0).set_return_value(0)
        elif not isinstance(reason, _GO_ON):
            if END_OF.get(type(reason)) != workload.end:
                raise _unexpected(vm, workload, reason)
            if restarts == 0:
                return
            restarts -= 1
            vm.reset()


def _unexpected(vm: AxVM, workload: Workload, reason: ExitReason) -> InvalidConfig:
    vcpu = vm.vcpu(0)
    return InvalidConfig(
        f"workload {workload.name}: it ended at {vcpu.regs.rip:#x} after "
        f"{plural(vcpu.retired, 'instruction')} with {type(reason).__name__} ({exit_words(reason)}), and not "
        f'with end = "{workload.end}"; correct the guest, or its end'
    )


def model_of(
    workload: Workload,
    engine: str = "block",
    exit_path: str = "short",
    record: str | Path | None = None,
) -> Model:
    """Run a workload once, its exits being recorded: into the file `record`, which is for docs/records.md, or
    in memory. AxError if the guest or the record fails."""
    vm = build(workload, engine, exit_path)
    limit = RECORD_LIMIT if record is None else DEFAULT_LIMIT
    with vm.record(record, limit=limit) as recorder:
        run(vm, workload)
    if recorder.stopped:
        raise InvalidConfig(f"workload {workload.name}: {recorder.stopped}; a lower count takes fewer exits")
    counts = np.zeros(256, np.int64)
    digest = hashlib.sha256()
    for block in vm.trace.blocks():
        rows = np.zeros(len(block.table), _ROW)
        for name in _ROW.names or ():
            rows[name] = block.table[name]
        counts += np.bincount(rows["kind"], minlength=len(counts))
        digest.update(rows.tobytes())
    exits = {name: int(counts[kind]) for kind, name in enumerate(KINDS) if counts[kind]}
    return Model(vm.vcpu(0).retired, exits, vm.now_ns(), digest.hexdigest())


def operations_of(workload: Workload, model: Model) -> int:
    """What the time of a run is divided by. InvalidConfig for `per = "exit"` and no exit."""
    if workload.per == "iteration":
        return workload.count
    if not model.taken:
        raise InvalidConfig(
            f'workload {workload.name}: it takes no exit, so there is no time per exit; set per = "iteration"'
        )
    return model.taken


def measured(
    workload: Workload, model: Model, engine: str = "block", exit_path: str = "short", rounds: int = 7
) -> Measurement:
    """Time a workload in turns with the unit, each round on a fresh machine; units per operation."""
    operations = operations_of(workload, model)

    def setup() -> Callable[[], int]:
        vm = build(workload, engine, exit_path)

        def work() -> int:
            run(vm, workload)
            return operations

        return work

    return measure(setup, max(rounds, 2))


@dataclass(frozen=True, slots=True)
class Timed:
    """A measured workload: on which engine, by which exit path."""

    workload: str
    engine: str
    exit_path: str
    per: str
    found: Measurement


def suite(
    workloads: Iterable[Workload], engines: Iterable[str] = ENGINES, exit_path: str = "short", rounds: int = 7
) -> Iterator[tuple[Workload, Model, list[Timed]]]:
    """Model and measurements of each workload, one after the other; without `engines` the model only."""
    chosen = tuple(engines)
    for workload in workloads:
        model = model_of(workload, chosen[0] if chosen else "block", exit_path)
        yield workload, model, [
            Timed(workload.name, engine, exit_path, workload.per,
                  measured(workload, model, engine, exit_path, rounds))
            for engine in chosen
        ]  # fmt: skip
