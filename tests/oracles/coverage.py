"""Which form was checked against a real CPU how often, and why the others cannot be. It runs nothing.

`tests/vectors/coverage.json` is written by `python -m tests.oracles --update` and read by docs/generate.py.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from iced_x86 import EncodingKind, OpCodeInfo

from isa.decode import code_names, mnemonic_names
from tests.isa.forms import definition_of, implemented_forms

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
COVERAGE = VECTORS / "coverage.json"
VERSION = 1

PAST = ("486", "KNC", "XOP")
# By mnemonic, else by the room that holds the definition
REASONS_BY_MNEMONIC = {
    "WAIT": "only an x87 exception that is delivered shows what it does",
    "SMSW": "Linux keeps user code from it (UMIP) or answers in its place",
    "SGDT": "Linux keeps user code from it (UMIP) or answers in its place",
    "SIDT": "Linux keeps user code from it (UMIP) or answers in its place",
    "SLDT": "Linux keeps user code from it (UMIP) or answers in its place",
    "STR": "Linux keeps user code from it (UMIP) or answers in its place",
    "MONITOR": "ring 0 only unless the system allows more",
    "MWAIT": "ring 0 only unless the system allows more",
    "SYSCALL": "enters the kernel",
    "SYSENTER": "enters the kernel",
    "VMMCALL": "enters the hypervisor",
    "RSM": "leaves system management mode only",
    "GETSEC": "leaves for safer mode (SMX)",
}
REASONS_BY_ROOM = {
    "far": "needs descriptors, which belong to Linux",
    "segment": "needs descriptors, which belong to Linux",
    "interrupt": "needs the IDT or descriptors, which belong to Linux",
    "control": "the answer is the machine's own, not the instruction's",
    "system": "the answer is the machine's own, not the instruction's",
    "fpu_control": "its image holds x87 pointers and a mask of MXCSR that are the host's own",
    "xsave": "its image depends on what the host's kernel enables",
    "flow": "CPU makers differ in it",
    "move": "nothing but time tells what it does",
}


def reason(code: Any) -> str:
    """Why no case of a form is checked."""
    info: Any = OpCodeInfo(code)
    name = code_names()[code]
    definition = definition_of(code)
    if any(word in name for word in PAST):
        return "is of CPUs of the past"
    if not info.cpl3:
        return "ring 0 only"
    if info.encoding != EncodingKind.LEGACY:
        return "no case is generated for it"
    mnemonic = mnemonic_names()[info.mnemonic]
    if mnemonic in REASONS_BY_MNEMONIC:
        return REASONS_BY_MNEMONIC[mnemonic]
    room = definition.function.__module__.rpartition(".")[2] if definition is not None else ""
    return REASONS_BY_ROOM.get(room, "no case is generated for it")


def summary(
    cpu: str, command: str, agreed: Mapping[str, int], missing: Container[str], before: Mapping[str, Any]
) -> dict[str, Any]:
    """What coverage.json holds after a run.

    `agreed`: cases by form; `missing`: forms that the host lacks; `before`: what the file held, {} for
    nothing. Counts of earlier runs on the same CPU are kept.
    """
    earlier: dict[str, int] = before["checked"] if before and before["cpu"] == cpu else {}
    runs: list[str] = before["runs"] if earlier else []
    lacking = f"the recording host ({cpu}) lacks it"
    checked = {}
    unchecked: dict[str, list[str]] = {}
    for code in implemented_forms():
        name = code_names()[code]
        cases = agreed.get(name, 0) + earlier.get(name, 0)
        if cases:
            checked[name] = cases
        else:
            known_lacking = earlier and name in before["unchecked"].get(lacking, ())
            why = lacking if name in missing or known_lacking else reason(code)
            unchecked.setdefault(why, []).append(name)
    return {
        "version": VERSION,
        "cpu": cpu,
        "runs": [*runs, command],
        "cases": sum(checked.values()),
        "checked": dict(sorted(checked.items())),
        "unchecked": {why: sorted(names) for why, names in sorted(unchecked.items())},
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write coverage.json, one form a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path = COVERAGE) -> dict[str, Any]:
    """The content of coverage.json. ValueError if it is of another version."""
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("version") != VERSION:
        raise ValueError(f"{path}: version {content.get('version')}, this reads {VERSION}; run --update")
    return content
