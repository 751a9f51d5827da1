"""The short way to execute one instruction, for whoever steps. It is no engine: what is not plain it refuses.

`Cpu.run` for one instruction spends more on getting ready than on the instruction. Most instructions need
none of that: nothing is due before them, they are decoded already, and they follow the rule that a block
relies on too, that nothing has changed when they raise. Those are executed here, once; for all others the
answer is False and the CPU is as it was, for `Cpu.run` to do it from the start.
"""

from __future__ import annotations

from functools import cache

from isa.cpu import Cpu
from isa.exits import VmExit
from isa.faults import Fault
from isa.semantics import instruction_table
from isa.semantics.registry import Semantics


@cache
def plain_functions() -> frozenset[Semantics]:
    """Definitions that may become part of a block: they commit nothing before they raise."""
    table = instruction_table().values()
    others = {definition.function for definition in table if not definition.inline}
    return frozenset(definition.function for definition in table) - others


def step_plainly(cpu: Cpu, plain: frozenset[Semantics]) -> bool:
    """Execute the instruction at RIP and count it, if it is one of `plain` and nothing is due before it.

    False, and nothing changed, if it is not, if it has to be decoded first, if it would fault or leave the
    guest, or if somebody watches its instructions or memory. What it makes due is for the next boundary.
    """
    ip = cpu.rip
    insn = cpu.code.get(ip)
    if insn is None or cpu.attention or insn.function not in plain or not cpu.steps_plainly:
        return False
    cpu.exit_ip = -1  # no short way to a device from here
    cpu.rip = insn.next
    try:
        insn.function(*insn.arguments)
    except (VmExit, Fault):
        cpu.rip = ip
        return False
    cpu.retired += 1
    return True
