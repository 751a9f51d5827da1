"""A recorded run done again: from the command in a record's header to the machine at one instruction.

Only runs from the command line name their command, and only what was in files or in the command itself can
come again: what somebody typed is not in a record. Whether it came again is checked, by the guest's images
and by the number of exits.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from pysim_vm.cli.machine import MachineOptions, build_machine
from pysim_vm.cli.status import CommandError
from pysim_vm.errors import AxError
from pysim_vm.recorder import identity
from pysim_vm.report import instruction_at, snapshot
from pysim_vm.trace import Trace
from pysim_vm.trace.diff import MachineState, recorded_state

if TYPE_CHECKING:
    from pysim_vm.cli.run import RunOptions

HOW_FAST = ("engine", "translation_cache", "default_cache")  # these change only the time a run takes
SCRIPT = ("input_file", "type_text", "type_after", "keys")  # of RunOptions: what the guest gets to read


def command_of(guest: str, machine: MachineOptions, options: RunOptions) -> dict[str, Any]:
    """What a record says about the command that made it: paths and options as typed."""
    given = {
        name: value
        for name, value in asdict(machine).items()
        if value not in (None, ()) and name not in HOW_FAST
    }
    script = {name: getattr(options, name) for name in SCRIPT if getattr(options, name)}
    return {"guest": guest, "machine": given, "script": script}


def state_at(trace: Trace, retired: int) -> MachineState:
    """The machine before the instruction with this number: from the record itself, or run again.

    Where neither is possible the state is empty and its `note` says why.
    """
    found = recorded_state(trace, retired)
    if found is not None:
        return found
    command = trace.header.get("command")
    if not isinstance(command, dict):
        return MachineState({}, "", "the record does not say how its machine was made")
    try:
        return _run_again(trace, command, retired)
    except (CommandError, AxError) as error:
        return MachineState({}, "", f"the guest cannot be run again: {error}")


def _run_again(trace: Trace, command: Mapping[str, Any], retired: int) -> MachineState:
    from pysim_vm.cli.run import RunOptions, Session

    names = {each.name for each in fields(MachineOptions)}
    given = command.get("machine")
    script = command.get("script")
    guest = command.get("guest")
    if not (isinstance(given, dict) and isinstance(script, dict) and isinstance(guest, str)):
        return MachineState({}, "", "the record's command is damaged")
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if name in names and isinstance(value, str | list):
            settings[name] = tuple(map(str, value)) if isinstance(value, list) else value
    settings["disks"] = tuple(_harmless(disk) for disk in settings.get("disks", ()))
    machine = build_machine(guest, MachineOptions(**settings))
    vm = machine.vm
    now = identity(vm, (), 0, False, False, [], None)["guest"]
    if now != trace.header.get("guest"):
        return MachineState({}, "", f"{guest} is not the guest that was recorded")
    typed = {name: str(script[name]) for name in SCRIPT if name in script}
    if retired > vm.vcpu(0).retired:
        options = RunOptions(budget=retired - vm.vcpu(0).retired, quiet=True, read_stdin=False, **typed)  # type: ignore[arg-type]
        Session(machine, options, io.BytesIO(), io.StringIO()).run()
    cpu = vm.vcpu(0).cpu
    expected = len(trace.where(retired=range(retired)))
    if cpu.retired != retired or sum(vm.exit_counts.values()) < expected:
        return MachineState({}, "", "the guest ran another way than in the record, as with typed input")
    return MachineState(snapshot(cpu), instruction_at(cpu, cpu.rip)[1], "")


def _harmless(disk: str) -> str:
    """A disk whose file the guest could write, so that it cannot."""
    return disk.removesuffix(",write")
