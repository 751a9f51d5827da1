"""`python -m tests.matrices.mutants`: breaks the CPU on purpose, in a copy; every matrix has to notice one.

One break for each matrix, each a line of `isa/`. The exit code is 1 if a matrix does not notice its break.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.matrices.everything import matrices
from tests.oracles.mutants import COPIED, ROOT, Mutant, mutated

LONGEST_RUN = 600  # seconds
DESCRIPTORS, MMU, CPU, INTERRUPTS = "isa/descriptors.py", "isa/mmu.py", "isa/cpu.py", "isa/interrupts.py"
FAR, IRET, CONTROL = "isa/semantics/far.py", "isa/semantics/interrupt.py", "isa/semantics/control.py"
SEGMENT, STRING, TASKS = "isa/semantics/segment.py", "isa/semantics/string.py", "isa/tasks.py"
SYSTEM = "isa/semantics/system.py"


def _break(matrix: str, file: str, old: str, new: str) -> Mutant:
    """The break that `matrix` has to notice."""
    return Mutant(matrix, file, old, new, ())


MUTANTS = (
    _break("segment loads", DESCRIPTORS, "if rpl > descriptor.dpl:", "if rpl > descriptor.dpl + 2:"),
    _break("selectors", DESCRIPTORS, "+ size - 1 > table.limit", "+ size - 2 > table.limit"),
    _break("real mode", "isa/state.py", "self.base = selector << 4", "self.base = selector << 3"),
    _break("LLDT and LTR", DESCRIPTORS, "upper >> 40 & 0x1F", "upper >> 40 & 0x0F"),
    _break("LAR, LSL, VERR, VERW", SEGMENT, "cpu.cpl > found.dpl or", "cpu.cpl > found.dpl + 1 or"),
    _break(
        "segment limits", MMU, "inside = offset > segment.limit and", "inside = offset >= segment.limit and"
    ),
    _break("canonical addresses", MMU, "or last > M64:", "and last > M64:"),
    _break(
        "stack addresses",
        MMU,
        "raise StackFault(0, why) if stack else",
        "raise GeneralProtection(0, why) if stack else",
    ),
    _break(
        "page permissions",
        MMU,
        "elif access != ACCESS_FETCH and smap:",
        "elif access == ACCESS_READ and smap:",
    ),
    _break("paging entries", MMU, "reserved |= 0x7FF0_0000_0000_0000", "reserved |= 0x3FF0_0000_0000_0000"),
    _break(
        "bits of control registers",
        CONTROL,
        "if value & CR0_NW and not value & CR0_CD:",
        "if value & CR0_NW and not value:",
    ),
    _break(
        "numbers of control and debug registers", CONTROL, "if cpu.cr4 & CR4_DE:", "if cpu.cr4 & CR4_PSE:"
    ),
    _break("page-directory-pointer registers", MMU, "| 0x1E6", "| 0x1E4"),
    _break("far JMP and CALL", DESCRIPTORS, "if selector & 3 > cpu.cpl:", "if selector & 3 > cpu.cpl + 1:"),
    _break(
        "far selectors",
        FAR,
        'if is_null(selector):\n        raise GeneralProtection(0, f"far transfer',
        'if not selector:\n        raise GeneralProtection(0, f"far transfer',
    ),
    _break("call gates", FAR, "for n in reversed(range(count))", "for n in range(count)"),
    _break(
        "task switches by JMP and CALL",
        TASKS,
        "cpu.dr7 &= ~DR7_LOCAL_ENABLES",
        "cpu.dr7 &= ~DR7_LOCAL_ENABLES << 1",
    ),
    _break("far RET", DESCRIPTORS, "            segment.selector = 0\n", "            segment.null = True\n"),
    _break(
        "far transfers without descriptors",
        FAR,
        "cpu.check_room(cpu.ss, cpu.rsp, cpu.stack_mask, size, 2, 0)\n        check_real",
        "check_real",
    ),
    _break(
        "interrupt and trap gates",
        INTERRUPTS,
        "if software and gate.dpl < self.cpl:",
        "if gate.dpl < self.cpl:",
    ),
    _break("task gates", TASKS, "fault.is_trap = True", "fault.is_trap = False"),
    _break(
        "the interrupt vector table",
        INTERRUPTS,
        "self.if_ = self.tf = self.ac = self.rf = 0",
        "self.if_ = self.tf = self.rf = 0",
    ),
    _break(
        "INT n in virtual-8086 mode", INTERRUPTS, "self.vif << IF_BIT | 3 << IOPL_SHIFT", "self.vif << IF_BIT"
    ),
    _break("IRET", IRET, "if cpu.cpl <= cpu.iopl:", "if cpu.cpl < cpu.iopl:"),
    _break(
        "IRET to virtual-8086 mode",
        IRET,
        "(es, selector, ss, ds, fs, gs), strict=True",
        "(es, selector, ss, ds, gs, fs), strict=True",
    ),
    _break(
        "IRET without descriptors",
        IRET,
        "popped >> IF_BIT & 1 and cpu.vip",
        "popped >> IF_BIT & 1 and cpu.vif",
    ),
    _break("IRET to the previous task", TASKS, "image=cpu.rflags() & ~(1 << NT_BIT)", "image=cpu.rflags()"),
    _break(
        "exception pairs",
        INTERRUPTS,
        "return isinstance(first, PageFault) or not isinstance(second, PageFault)",
        "return isinstance(first, PageFault) or True",
    ),
    _break("strings over pages", STRING, "cpu.count_iterations(done)\n", "cpu.count_iterations(done - 1)\n"),
    _break("strings over limits", STRING, "or offset + size - 1 > last:", "or offset > last:"),
    _break(
        "INS and OUTS",
        STRING,
        "if count == 0 and definition.own_privilege:",
        "if count < 0 and definition.own_privilege:",
    ),
    _break("split accesses", MMU, "smap=smap, dirty=first >= size)", "smap=smap, dirty=True)"),
    _break(
        "instructions over a border", CPU, "beyond = linear + len(raw) &", "beyond = linear + len(raw) + 1 &"
    ),
    _break("instructions too long", "isa/decode.py", "MAX_LENGTH = 15", "MAX_LENGTH = 16"),
    _break(
        "bytes that are no instruction",
        CPU,
        'raise InvalidOpcode(f"no instruction',
        'raise GeneralProtection(0, f"no instruction',
    ),
    _break(
        "the last canonical byte",
        CPU,
        "if self.mode64 and beyond + 0x8000_0000_0000",
        "if self.mode64 and linear + 0x8000_0000_0000",
    ),
    _break(
        "targets of a jump",
        "isa/semantics/flow.py",
        "elif target > cpu.cs.limit:",
        "elif target > cpu.cs.limit + 1:",
    ),
    _break(
        "ranges of breakpoints",
        MMU,
        "and linear < start + length and start < linear + size:",
        "and linear <= start + length and start < linear + size:",
    ),
    _break(
        "enabled breakpoints",
        INTERRUPTS,
        "self.dr6 = self.dr6 & ~DR6_BREAKPOINTS | fault.dr6",
        "self.dr6 |= fault.dr6",
    ),
    _break(
        "order of events",
        CPU,
        "if self.nmi_pending and not self.nmi_blocked and self.shadow != MOV_SS_SHADOW:",
        "if self.nmi_pending and not self.nmi_blocked and self.shadow == NO_SHADOW:",
    ),
    _break(
        "events step by step",
        CPU,
        "if self.rf or self.answers or self.shadow == MOV_SS_SHADOW:",
        "if self.rf or self.answers:",
    ),
    _break(
        "events and flags that are loaded",
        CPU,
        "self.rf = 0\n        self.rip = insn.next",
        "self.rip = insn.next",
    ),
    _break(
        "CLI, STI, PUSHF, POPF",
        "isa/semantics/stack.py",
        "changeable = changeable & M16 | 1 << VIF_BIT",
        "changeable = changeable | 1 << VIF_BIT",
    ),
    _break(
        "fast system calls",
        SYSTEM,
        "cpu.set_rflags_raw(cpu.r11 & 0x3C_7FD7 | 2)",
        "cpu.set_rflags_raw(cpu.r11 & 0x3D_7FD7 | 2)",
    ),
    _break(
        "descriptor-table registers",
        SEGMENT,
        "if cpu.cr4 & CR4_UMIP and cpu.cpl:",
        "if cpu.cr4 & CR4_UMIP and cpu.cpl == 3:",
    ),
    _break(
        "system instructions",
        SYSTEM,
        "if cpu.cr4 & CR4_TSD and cpu.cpl:",
        "if cpu.cr4 & CR4_TSD and cpu.cpl == 3:",
    ),
    _break(
        "IN and OUT",
        "isa/semantics/io.py",
        "if at + 1 > tr.limit:",
        "if at > tr.limit:",
    ),
    _break("CPUID", "isa/cpuid.py", "return self._basic(cpu, 0x16, 0)", "return 0, 0, 0, 0"),
    _break(
        "RDRAND and RDSEED",
        SYSTEM,
        "cpu.of = cpu.sf = cpu.zf = cpu.af = cpu.pf = 0",
        "cpu.of = cpu.sf = cpu.zf = cpu.pf = 0",
    ),
    _break("VMCALL and VMMCALL", SYSTEM, "cpu.rax & mask, args) & mask", "cpu.rax & mask, args)"),
    _break("MONITOR and MWAIT", CONTROL, "arm_monitor(cpu, cpu.rax & M32)", "arm_monitor(cpu, cpu.rax)"),
    _break("INVPCID", CONTROL, "if low >> 12:", "if low >> 13:"),
    _break("XSETBV", CONTROL, "value & 0b110 == 0b100", "value & 0b110 == 0b111"),
    _break("LMSW", CONTROL, "src.value & 0xF | cpu.cr0 & CR0_PE", "src.value & 0xF"),
    _break("instructions without a result", SYSTEM, 'InvalidOpcode("RSM', 'GeneralProtection(0, "RSM'),
    _break("LOOP and JRCXZ", "isa/semantics/flow.py", "if count and condition:", "if condition:"),
    _break("RDMSR", SYSTEM, "cpu.rdx = value >> 32", "cpu.rdx = value >> 33"),
    _break("WRMSR", "isa/msr.py", "or value & 0xF00 or", "or value & 0x700 or"),
    _break(
        "instructions that CPUID does not offer",
        CPU,
        "elif missing and mnemonic not in HYPERCALLS:",
        "elif missing and mnemonic in HYPERCALLS:",
    ),
    _break(
        "bits and registers that CPUID does not offer",
        "isa/msr.py",
        'if "NX" in cpu.features:',
        'if "MSR" in cpu.features:',
    ),
)


def check(mutant: Mutant, folder: Path) -> str:
    """What the matrix says with the break in `folder`: how many differ, or "" if it notices nothing."""
    path = folder / mutant.file
    original = path.read_text()
    path.write_text(mutated(original, mutant))
    command = [sys.executable, "-B", "-m", "tests.matrices", mutant.what]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_RUN, check=False
        )
    finally:
        path.write_text(original)
    found = re.search(r"(\d+) cases.*?, (\d+) differ", done.stdout)
    if found is None:
        return f"a traceback: {done.stderr.strip().splitlines()[-1][:100]}" if done.stderr else ""
    return f"{found[2]} of {found[1]} cases differ" if done.returncode else ""


def main(arguments: Sequence[str]) -> int:
    """Run the breaks of the matrices whose names contain an argument, or all of them; print a table."""
    names = {name for name, _ in matrices()}
    lacking = names - {mutant.what for mutant in MUTANTS}
    if lacking:
        print(
            f"no break for {', '.join(sorted(lacking))}; add one to tests/matrices/mutants.py",
            file=sys.stderr,
        )
        return 2
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        print("| matrix | break | noticed |\n|---|---|---|")
        for mutant in MUTANTS:
            if arguments and not any(word in mutant.what for word in arguments):
                continue
            found = check(mutant, folder)
            missed += not found
            line = mutant.new.splitlines()[0].strip()
            print(f"| {mutant.what} | `{mutant.file}`: `{line}` | {found or '**no**'} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
