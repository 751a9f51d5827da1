"""From instruction functions to Python source: what the block engine executes. It decides nothing about when.

`isa.specialise` makes statements of one instruction; here a run of instructions becomes one Python function
with the registers in locals. 64-bit mode only: there segments are flat.

What makes that exact:
- A block never faults, exits or writes code itself. Whatever is not the plain case raises; the handler puts
  registers, flags and the count back to the start of that instruction, and the step engine executes it.
- Flags that nothing in the block reads are not computed. An exit leaves a *recipe* in `cpu.pending_flags`: a
  function and the values it needs; who looks at the flags runs it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from isa.decode import Insn, disassemble
from isa.exits import VmExit
from isa.faults import Fault
from isa.folding import REGISTERS
from isa.mmu import NotPlain
from isa.semantics.helpers import PARITY
from isa.semantics.registry import Definition
from isa.specialise import ARCHITECTURAL, FLAGS, Statement, fill
from isa.state import GPR_NAMES


@dataclass(slots=True)
class Step:
    """One instruction on its way into a block."""

    insn: Insn
    statements: list[Statement]
    jump: tuple[str, str] = ("", "")
    follow: int | None = None  # where the trace goes on; None: it ends here
    sources: dict[str, Statement | str] = field(default_factory=dict)  # flags before this instruction


class Block:
    """Translated code: `run(cpu, until)` returns True if the step engine has to execute one instruction."""

    __slots__ = ("head", "ips", "length", "pages", "run", "source")

    def __init__(
        self,
        head: int,
        length: int,
        run: Callable[..., bool],
        source: str,
        ips: frozenset[int],
        pages: dict[int, int],
    ) -> None:
        self.head = head
        self.length = length
        self.run = run
        self.source = source
        self.ips = ips  # every instruction in it
        self.pages = pages  # linear page -> host page of its code


_FLAG_SET = frozenset(FLAGS)
LIVE = "local"
ENTRY = "entry"


class Emitter:
    """Puts a trace of steps together into one function."""

    def __init__(self, steps: list[Step], loops: bool, end: str) -> None:
        self.steps = steps
        self.loops = loops
        self.end = end  # the expression of RIP where the trace ends, "" if it loops
        self.recipes: dict[str, Any] = {}
        self.partial = False

    def emit(self) -> tuple[str, dict[str, Any]]:
        """The source of the function and the names it needs beside the standard ones."""
        kept = self.kept_flags()
        current: dict[str, Statement | str] = dict.fromkeys(FLAGS, ENTRY)
        for index, step in enumerate(self.steps):
            step.sources = dict(current)
            for n, statement in enumerate(step.statements):
                if statement.flag:
                    current[statement.flag] = LIVE if (index, n) in kept else statement
                else:
                    current.update(dict.fromkeys(statement.stores & _FLAG_SET, LIVE))
        self.final = current
        body, at = self.body(kept)
        return self.assemble(body, at, kept)

    def kept_flags(self) -> set[tuple[int, int]]:
        """(instruction, statement) of flag assignments that something in the block reads."""
        kept: set[tuple[int, int]] = set()
        pending: dict[str, tuple[int, int]] = {}
        for _ in range(2 if self.loops else 1):  # the second time round: what the loop carries over
            for index, step in enumerate(self.steps):
                for n, statement in enumerate(step.statements):
                    for flag in statement.uses:
                        if flag in pending:
                            kept.add(pending[flag])
                    if statement.flag:
                        pending[statement.flag] = (index, n)
        for index, step in enumerate(self.steps):  # a register may be something else when the recipe runs
            for n, statement in enumerate(step.statements):
                if statement.flag and statement.uses & ARCHITECTURAL:
                    kept.add((index, n))
        if self.loops:  # a bail inside must find the last round's values whole
            for index, step in enumerate(self.steps):
                self.keep_fragile(kept, index, step)
        return kept

    @staticmethod
    def keep_fragile(kept: set[tuple[int, int]], index: int, step: Step) -> None:
        last = max((n for n, s in enumerate(step.statements) if s.raises), default=0)
        early = {d for s in step.statements[:last] for d in s.defs}
        if any(statement.flag and statement.uses & early for statement in step.statements):
            kept.update((index, n) for n, statement in enumerate(step.statements) if statement.flag)

    def recipe(self, sources: dict[str, Statement | str]) -> str:
        """The expression for `cpu.pending_flags`, or "" if no flag was touched."""
        lines, arguments = [], []
        for flag in FLAGS:
            source = sources[flag]
            if source == ENTRY:
                continue
            if source == LIVE:
                lines.append(f"cpu.{flag} = {flag}")
                arguments.append(flag)
            else:
                assert isinstance(source, Statement)
                lines.append(f"cpu.{source.text}")
                arguments += sorted(source.uses)
        if not lines:
            return ""
        if len(lines) < len(FLAGS):
            self.partial = True
        names = list(dict.fromkeys(arguments))
        renamed = {old: f"p{n}" for n, old in enumerate(names)}
        pattern = re.compile(r"(?<![.\w])(" + "|".join(map(re.escape, names)) + r")\b") if names else None
        text = "\n    ".join(
            pattern.sub(lambda m: renamed[m[0]], line) if pattern else line for line in lines
        )
        source_text = f"def recipe(cpu{''.join(', ' + p for p in renamed.values())}):\n    {text}\n"
        key = f"R{len(self.recipes)}"
        function = compile_recipe(source_text)
        for known, made in self.recipes.items():
            if made is function:
                key = known
        self.recipes[key] = function
        return f"({key}, {''.join(n + ', ' for n in names)})"

    def set_flags(
        self, sources: dict[str, Statement | str], indent: str, first_known: bool = False
    ) -> list[str]:
        """Lines that leave the recipe for the flags at an exit."""
        if not self.loops or all(sources[f] == self.final[f] or sources[f] != ENTRY for f in FLAGS):
            text = self.recipe(sources)
            return [f"{indent}cpu.pending_flags = {text}"] if text else []
        later = {f: self.final[f] if sources[f] == ENTRY else sources[f] for f in FLAGS}
        lines = [f"{indent}if n != start:", f"{indent}    cpu.pending_flags = {self.recipe(later)}"]
        text = self.recipe(sources)
        if text:
            lines += [f"{indent}else:", f"{indent}    cpu.pending_flags = {text}"]
        return lines

    def body(self, kept: set[tuple[int, int]]) -> tuple[list[str], dict[int, int]]:
        """The lines inside the loop and, by line number within them, the instruction."""
        lines: list[str] = []
        at: dict[int, int] = {}
        indent = "            "
        count = len(self.steps)
        for index, step in enumerate(self.steps):
            code = f"{step.insn.raw.hex()}"
            lines.append(
                f"{indent}# {step.insn.ip:#x}: {disassemble(step.insn.raw, 64, step.insn.ip)}  [{code}]"
            )
            start = len(lines)
            for n, statement in enumerate(step.statements):
                if statement.jump[1] or (statement.flag and (index, n) not in kept):
                    continue
                lines += [indent + line for line in statement.text.splitlines()]
            at.update(dict.fromkeys(range(start, len(lines)), index))
            after = self.steps[index + 1].sources if index + 1 < count else self.final
            condition, target = step.jump
            if condition and step.follow is not None:
                taken = step.follow == _number(target)
                leave = negated(condition) if taken else condition
                where = f"{step.insn.next:#x}" if taken else target
                lines.append(f"{indent}if {leave}:")
                lines += self.leave(after, index + 1, where, indent + "    ")
            elif condition:
                lines += self.set_flags(after, indent)
                lines.append(f"{indent}rip = {target} if {condition} else {step.insn.next:#x}")
                lines += [f"{indent}n += {index + 1}", f"{indent}break"]
            elif target and step.follow is not None and not _is_number(target):
                lines.append(f"{indent}if {target} != {step.follow:#x}:")  # a predicted return
                lines += self.leave(after, index + 1, target, indent + "    ")
        if not self.loops and not (self.steps[-1].jump[0] and self.steps[-1].follow is None):
            lines += self.leave(self.final, count, self.end, indent)
        return lines, at

    def leave(self, sources: dict[str, Statement | str], count: int, where: str, indent: str) -> list[str]:
        return [
            *self.set_flags(sources, indent),
            f"{indent}rip = {where}",
            f"{indent}n += {count}",
            f"{indent}break",
        ]

    def entry_flags(self, kept: set[tuple[int, int]]) -> list[str]:
        """Flags that the block reads before it sets them."""
        wanted: set[str] = set()
        known: set[str] = set()
        for index, step in enumerate(self.steps):
            for n, statement in enumerate(step.statements):
                if statement.flag and (index, n) not in kept:
                    continue
                wanted |= statement.uses & _FLAG_SET - known
                known |= statement.defs & _FLAG_SET
        return [flag for flag in FLAGS if flag in wanted]

    def assemble(
        self, body: list[str], at: dict[int, int], kept: set[tuple[int, int]]
    ) -> tuple[str, dict[str, Any]]:
        """Prologue, loop, handler and epilogue around the body."""
        steps, count = self.steps, len(self.steps)
        statements = [s for step in steps for s in step.statements]
        written = {register for s in statements for register in s.stores if register in REGISTERS}
        handler: list[str] = []
        for index, step in enumerate(steps):
            made = self.set_flags(step.sources, "            ")
            if made and any(s.raises for s in step.statements):
                handler += [f"        if at == {index}:", *made]
        after = self.after_loop() if self.loops else []
        body, at = without_dead(body, at, [*handler, *after])
        if not at:
            body.append("            pass")
        text = "\n".join((*body, *handler, *after))
        used = set(re.findall(r"(?<![.\w])[a-z]\w*", text))
        entry_flags = self.entry_flags(kept)
        lines = ["def block(cpu, until):"]
        if entry_flags or self.partial:
            lines += ["    if cpu.pending_flags is not None:", "        cpu.settle_flags()"]
            lines += [f"    {flag} = cpu.{flag}" for flag in entry_flags]
        if "df" in used:
            lines.append("    df = cpu.df")
        for register in GPR_NAMES:
            if register in used or register in written:
                lines.append(f"    {register} = cpu.{register}")
        for local, value in (
            ("tr", "cpu.tlb_read"), ("tw", "cpu.tlb_write"), ("mb", "cpu.ram"), ("mw", "cpu.ram16"),
            ("md", "cpu.ram32"), ("mq", "cpu.ram64"), ("load", "cpu.load"), ("store", "cpu.store_plain"),
            ("fs_base", "cpu.fs.base"), ("gs_base", "cpu.gs.base"),
        ):  # fmt: skip
            if local in used:
                lines.append(f"    {local} = {value}")
        lines.append("    n = start = cpu.retired")
        lines.append("    bailed = False")
        lines.append("    try:")
        if self.loops:
            lines.append(f"        for n in range(start, until - {count - 1}, {count}):")
        else:
            lines.append("        while True:")
        first = len(lines) + 1
        lines += body
        if self.loops:
            head = f"{steps[0].insn.ip:#x}"
            lines += ["        else:", *after, f"            rip = {head}", f"            n += {count}"]
        lines.append("    except (NotPlain, Fault, VmExit) as event:")
        lines.append("        at = AT[event.__traceback__.tb_lineno]")
        lines += handler
        lines += ["        rip = IPS[at]", "        n += at", "        bailed = True"]
        lines += [f"    cpu.{register} = {register}" for register in GPR_NAMES if register in written]
        if any("df" in s.defs for s in statements):
            lines.append("    cpu.df = df")
        lines += ["    cpu.rip = rip", "    cpu.retired = n", "    return bailed", ""]
        names = {
            **self.recipes,
            "AT": {first + line: index for line, index in at.items()},
            "IPS": tuple(step.insn.ip for step in steps),
            "PARITY": PARITY, "NotPlain": NotPlain, "Fault": Fault, "VmExit": VmExit,
        }  # fmt: skip
        return "\n".join(lines), names

    def after_loop(self) -> list[str]:
        text = self.recipe(self.final)
        return [f"            cpu.pending_flags = {text}"] if text else []


_TEMPORARY = re.compile(r"\s+(\w+_\d+) = (?!.*\b(?:load|tr)\b)")


def without_dead(body: list[str], at: dict[int, int], handler: list[str]) -> tuple[list[str], dict[int, int]]:
    """Drop assignments to temporaries that nothing reads: most flags' operands."""
    while True:
        words = Counter(re.findall(r"\w+_\d+", "\n".join((*body, *handler))))
        dead = {
            n for n, line in enumerate(body)
            if (match := _TEMPORARY.match(line)) and words[match[1]] == 1
        }  # fmt: skip
        if not dead:
            return body, at
        kept = [n for n in range(len(body)) if n not in dead]
        at = {new: at[old] for new, old in enumerate(kept) if old in at}
        body = [body[n] for n in kept]


@lru_cache(maxsize=1 << 14)  # the guest's immediates are part of the text
def compile_recipe(source: str) -> Callable[..., None]:
    """A flag recipe's function; blocks with the same formulas share it."""
    namespace: dict[str, Any] = {"PARITY": PARITY}
    exec(compile(source, "<flags>", "exec"), namespace)
    made: Callable[..., None] = namespace["recipe"]
    return made


def negated(condition: str) -> str:
    """The source of `not condition`."""
    if re.fullmatch(r"not \w+", condition):
        return condition[4:]
    return f"not {condition}" if re.fullmatch(r"\w+", condition) else f"not ({condition})"


def _is_number(text: str) -> bool:
    return text[:1].isdigit()


def _number(text: str) -> int | None:
    return int(text, 0) if _is_number(text) else None


MAX_TRACE = 64  # instructions
MAX_PAGES = 4  # pages of code: a TLB flush has to look each of them up again


def build_trace(
    fetch: Callable[[int], Insn], definition_of: Callable[[Insn], Definition | None], head: int, cpl: int
) -> tuple[list[Step], bool, str]:
    """Follow the code from `head`: straight on, through direct jumps and calls, back to `head` in a loop."""
    steps: list[Step] = []
    seen: set[int] = set()
    returns: list[int] = []
    pages: dict[int, int] = {}
    ip = head
    while len(steps) < MAX_TRACE and ip not in seen:
        try:
            insn = fetch(ip)
        except (Fault, VmExit):
            break
        definition = definition_of(insn)
        if definition is None or not definition.inline or insn.function is not definition.function:
            break
        if insn.ip + len(insn.raw) - 1 >> 12 != ip >> 12:
            break
        if ip >> 12 not in pages and len(pages) == MAX_PAGES:
            break
        operands_sized = fill(insn, definition, len(steps), cpl)
        if operands_sized is None:
            break
        step = Step(insn, operands_sized)
        jumps = [s.jump for s in operands_sized if s.jump[1]]
        if len(jumps) > 1 or (jumps and not _jump_can_move(operands_sized)):
            break
        seen.add(ip)
        steps.append(step)
        pages[ip >> 12] = insn.page
        if not jumps:
            ip = step.follow = insn.next
            continue
        step.jump = jumps[0]
        condition, target = step.jump
        where = _number(target)
        if condition:
            if where == head:
                step.follow = head
                return steps, True, ""
            if where is not None and where <= insn.ip:
                return steps, False, ""  # an inner loop: its head gets a block of its own
            ip = step.follow = insn.next
        elif where is not None:
            if where == head:
                step.follow = head
                return steps, True, ""
            if any("store" in s.text or "tw[" in s.text for s in operands_sized):
                returns.append(insn.next)  # a call
            ip = step.follow = where
        else:
            if not returns:
                return steps, False, target
            ip = returns.pop()
            if ip in seen:
                return steps, False, target
            step.follow = ip
    end = f"{ip:#x}"
    if steps and steps[-1].jump[0] and steps[-1].follow is None:
        end = ""
    return steps, False, end


def _jump_can_move(statements: list[Statement]) -> bool:
    """The branch is decided where the instruction ends: nothing behind it may change what it reads."""
    at = next(n for n, statement in enumerate(statements) if statement.jump[1])
    return not any(statement.stores & statements[at].uses for statement in statements[at + 1 :])


class SourceLoader:
    """Shows the lines of a block in tracebacks (linecache asks for it only then)."""

    __slots__ = ("source",)

    def __init__(self, source: str) -> None:
        self.source = source

    def get_source(self, module: str) -> str:
        """PEP 302."""
        return self.source


def translate(
    fetch: Callable[[int], Insn], definition_of: Callable[[Insn], Definition | None], head: int, cpl: int,
    shortest: int = 2,
) -> Block | None:  # fmt: skip
    """A block starting at `head`, or None if its first instructions have to stay with the step engine.

    Runs of fewer than `shortest` instructions are not worth a call unless they jump.
    """
    steps, loops, end = build_trace(fetch, definition_of, head, cpl)
    if not steps or (len(steps) < shortest and not loops and not steps[0].jump[1]):
        return None
    source, names = Emitter(steps, loops, end).emit()
    filename = f"block {head:#x}"
    namespace = {**names, "__name__": filename, "__loader__": SourceLoader(source)}
    exec(compile(source, filename, "exec"), namespace)
    ips = frozenset(step.insn.ip for step in steps)
    pages = {step.insn.ip >> 12: step.insn.page for step in steps}
    return Block(head, len(steps), namespace["block"], source, ips, pages)
