"""From instruction functions to Python source: what the block engine executes. It decides nothing about when.

`isa.specialise` makes statements of one instruction; here runs of instructions (*traces*) become one Python
function with the registers in locals. A function of several traces is a *region*: a jump from one of its
traces to another is an assignment to `pc` and stays inside.

What makes that exact:
- The statements of a block never fault, exit or write code. Whatever is not the plain case raises; the
  handler puts registers, flags and the count back to the start of that instruction, and the step engine
  executes it.
- An instruction that cannot be statements (IN, OUT), or that gave up again and again (a device is behind its
  address), is *called*: the block hands everything back to the CPU, calls its function as the step engine
  does, and takes over again, unless events or code changed meanwhile. What it raises goes out of the block.
- Flags that nothing in the block reads are not computed. An exit leaves a *recipe* in `cpu.pending_flags`: a
  function and the values it needs; who looks at the flags runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from isa.decode import Insn, disassemble, effects_of
from isa.exits import VmExit
from isa.faults import Fault
from isa.lanes import STICKY, VECTOR_LOCALS, entry_lines, exit_lines, locals_of_vector, runtime_names
from isa.mmu import NotPlain
from isa.semantics.helpers import PARITY
from isa.semantics.registry import Definition
from isa.simplify import Formulas, Lines, fuse
from isa.specialise import ARCHITECTURAL, FLAGS, Statement, fill
from isa.state import GPR_NAMES, SEGMENT_NAMES, XMM_NAMES, YMM_HIGH_NAMES
from isa.windows import share

if TYPE_CHECKING:
    from isa.modes import ContextKey, Mode

Pending = tuple[Any, ...] | None  # `cpu.pending_flags`: a function and its arguments
Fetch = Callable[[int], Insn]
Find = Callable[[Insn], Definition | None]


class CodeSource(NamedTuple):
    """Where the code to translate is found, and how it runs."""

    fetch: Fetch
    definition_of: Find
    mode: Mode
    base: int = 0  # of CS
    apart: Collection[int] = ()  # instructions that are to be called

    def page_of(self, ip: int) -> int:
        """The number of the linear page of CS:`ip`."""
        return (ip + self.base & self.mode.address_mask) >> 12

    def pages_of(self, ips: Iterable[int]) -> dict[int, int]:
        """Linear page -> host page of the instructions at `ips`."""
        first: dict[int, int] = {}
        for ip in ips:
            first.setdefault(self.page_of(ip), ip)
        return {page: self.fetch(ip).page for page, ip in first.items()}


Sources = Mapping[str, "Statement | str"]  # flag -> who computed it last: a statement, LIVE or ENTRY

LIVE = "local"  # the local variable of the flag's name holds it
ENTRY = "entry"  # as it was when control came to the trace
_FLAG_SET = frozenset(FLAGS)
_AT_ENTRY: dict[str, Statement | str] = dict.fromkeys(FLAGS, ENTRY)


@dataclass(slots=True)
class Step:
    """One instruction on its way into a block."""

    insn: Insn
    statements: list[Statement]
    jump: tuple[str, str] = ("", "")
    follow: int | None = None  # where the trace goes on; None: it ends here
    index: int = 0  # in its function
    called: bool = False  # it is no statements, but a call of its function
    dirty: frozenset[str] = frozenset()  # the registers that the CPU has to get before
    settled: bool = False  # and has the flags already
    kept: set[int] = field(default_factory=set)  # the flag assignments that something in the block reads
    before: Sources = field(default_factory=dict)
    after: Sources = field(default_factory=dict)


@dataclass(slots=True)
class Trace:
    """Instructions in the order in which they are executed, left through a jump that goes elsewhere."""

    head: int
    steps: list[Step]
    loops: bool  # the last one jumps to `head`
    end: str  # the expression of RIP behind the last one, "" if that one decides
    stop: int | None = None  # the instruction that follows, if it is for the step engine
    needs: set[str] = field(default_factory=set)  # the flags that have to be in locals when it starts


STEP = 1
BAILED = 2


class Block:
    """Where a translated function may be entered.

    `run(cpu, until, entry)` executes at most to `until` retired instructions and returns 0, or what the step
    engine has to do before blocks go on: STEP, the next instruction; BAILED, one that was tried in vain.
    """

    __slots__ = ("due", "entry", "head", "heads", "ips", "length", "pages", "run", "samples", "shape", "size")

    def __init__(self, head: int, entry: int, made: Translation) -> None:
        self.head = head
        self.entry = entry
        self.run = made.run
        self.heads = made.heads
        self.length = made.length
        self.size = made.size
        self.ips = made.ips
        self.shape = made.shape
        self.pages = made.pages
        self.samples = 0  # how often it was seen running...
        self.due = made.due  # ... and when it is time to look which others it runs with


@dataclass(slots=True)
class Translation:
    """A function made of traces, with what the engine has to know about it."""

    run: Callable[..., int]
    heads: tuple[int, ...]  # of its traces, in the order of `entry`
    length: int  # instructions of the longest trace: what has to fit before `until`
    size: int  # instructions in all traces
    ips: frozenset[int]  # every instruction in it
    shape: frozenset[int]  # and those that it stops at: what it would be another one without
    pages: dict[int, int]  # linear page -> host page of its code
    due: int = 0

    def blocks(self) -> list[Block]:
        """One for each place where it may be entered."""
        return [Block(head, entry, self) for entry, head in enumerate(self.heads)]


class Draft(NamedTuple):
    """A translation without anything of this process: numbers, texts and a code object."""

    code: CodeType  # defines the function `block`
    recipes: tuple[str, ...]  # the sources of R0, R1 ...
    lines: dict[int, int]  # number of a line that may raise -> its instruction, counted in the function
    offsets: tuple[int, ...]  # of each instruction: how many of its trace are before it
    before: tuple[Recipe | None, ...]  # of each instruction: the flags before it, if it gives up
    heads: tuple[int, ...]
    length: int  # instructions of the longest trace
    insns: tuple[tuple[int, bytes], ...]  # (RIP, machine code) of each instruction
    stops: tuple[int, ...]  # instructions for the step engine that end a trace
    calls: tuple[int, ...]  # numbers of the instructions that are called

    def realise(self, code: CodeSource) -> Translation:
        """The function, for this code: it has to be that of the draft."""
        namespace: dict[str, Any] = {
            "__name__": self.code.co_filename,
            "AT": self.lines,
            "IPS": tuple(ip for ip, _ in self.insns),
            "OFFSETS": self.offsets,
            "BEFORE": self.before,
            "HEADS": self.heads,
            "PCS": {head: n for n, head in enumerate(self.heads)},
            "PARITY": PARITY, "NotPlain": NotPlain, "Fault": Fault, "VmExit": VmExit, "recover": recover,
        }  # fmt: skip
        called = namespace["CALLED"] = {n: code.fetch(self.insns[n][0]) for n in self.calls}
        for n, insn in called.items():
            namespace[f"F{n}"], namespace[f"OF{n}"] = insn.function, insn.arguments
        for n, source in enumerate(self.recipes):
            namespace[f"R{n}"] = compile_recipe(source)
        for constant in self.code.co_consts:
            if isinstance(constant, CodeType):
                namespace.update(runtime_names(constant.co_names))
        exec(self.code, namespace)
        return Translation(
            run=namespace["block"],
            heads=self.heads,
            length=self.length,
            size=len(self.insns),
            ips=frozenset(namespace["IPS"]),
            shape=frozenset((*namespace["IPS"], *self.stops)),
            pages=code.pages_of(namespace["IPS"]),
        )


class Drafts(Protocol):
    """Where drafts are kept from one run to the next. It may forget any of them at any time."""

    def find(self, key: ContextKey, heads: tuple[int, ...]) -> Iterable[Draft]:
        """Drafts made for these heads in this mode, the first made first, and perhaps larger ones that have
        these heads among others. Whoever asks has to compare their machine code."""

    def keep(self, key: ContextKey, heads: tuple[int, ...], draft: Draft) -> None:
        """Remember a draft."""


# ---- following the code ----------------------------------------------------------------------------------

MAX_TRACE = 64  # instructions
MAX_PAGES = 4  # pages of code: a TLB flush has to look each of them up again
LONG_ENOUGH = 16  # instructions: from here on a trace ends where another one begins


def build_trace(
    code: CodeSource, head: int, heads: Collection[int], number: int
) -> Trace | None:  # fmt: skip
    """Follow the code from `head`: straight on, through direct jumps and calls, back to `head` in a loop.

    `heads` are other traces of the same function, `number` that of its first instruction in the function.
    None if that one has to be stepped.
    """
    steps: list[Step] = []
    stop: int | None = None
    seen: set[int] = set()
    returns: list[int] = []
    narrow: set[str] = set()
    pages: set[int] = set()
    ip = head
    while len(steps) < MAX_TRACE and ip not in seen:
        if ip in heads and ip != head and len(steps) >= LONG_ENOUGH:
            break
        page = code.page_of(ip)
        if page not in pages and len(pages) == MAX_PAGES:
            break
        step = _step(code, ip, number + len(steps), narrow)
        if step is None:
            stop = ip
            break
        insn = step.insn
        seen.add(ip)
        steps.append(step)
        pages.add(page)
        condition, target = step.jump
        if not target:
            ip = step.follow = insn.next
            continue
        where = _number(target)
        if condition:
            if where == head:
                step.follow = head
                return Trace(head, steps, True, "")
            if where is not None and where <= insn.ip:
                return Trace(head, steps, False, "")  # an inner loop: its head gets a trace of its own
            ip = step.follow = insn.next
        elif where is not None:
            if where == head:
                step.follow = head
                return Trace(head, steps, True, "")
            if any("store" in s.text or "tw[" in s.text for s in step.statements):
                returns.append(insn.next)  # a call
            ip = step.follow = where
        else:
            if not returns:
                return Trace(head, steps, False, target)
            ip = returns.pop()
            if ip in seen:
                return Trace(head, steps, False, target)
            step.follow = ip
    return Trace(head, steps, False, f"{ip:#x}", stop) if steps else None


def _step(code: CodeSource, ip: int, number: int, narrow: set[str]) -> Step | None:
    """The instruction at `ip` as statements or as a call; None if the step engine has to execute it."""
    try:
        insn = code.fetch(ip)
    except (Fault, VmExit, NotPlain):
        return None
    definition = code.definition_of(insn)
    if definition is None or not definition.callable:
        return None
    if code.page_of(insn.ip + len(insn.raw) - 1) != code.page_of(ip):
        return None
    statements = None
    if definition.inline and ip not in code.apart:
        statements = fill(insn, definition, number, code.mode, narrow)
    if statements is None:
        return _call(insn, code.mode, narrow)
    jumps = [n for n, statement in enumerate(statements) if statement.jump[1]]
    if not jumps:
        return Step(insn, statements)
    # The branch is decided where the instruction ends: nothing behind it may change what it reads.
    at = jumps[0]
    if len(jumps) > 1 or any(after.stores & statements[at].uses for after in statements[at + 1 :]):
        return None
    return Step(insn, statements, statements[at].jump)


def _call(insn: Insn, mode: Mode, narrow: set[str]) -> Step | None:
    """The instruction as a call of its function; None if the step engine has to execute it."""
    effects = effects_of(insn.raw, mode.code_bits)
    if not effects.straight:
        return None
    narrow -= effects.registers
    vectors = {name for n in effects.vectors for name in (XMM_NAMES[n], YMM_HIGH_NAMES[n])}
    call = Statement("", frozenset(), frozenset(), True, effects.registers | vectors | _FLAG_SET)
    return Step(insn, [call], called=True)


def _is_number(text: str) -> bool:
    return text[:1].isdigit()


def _number(text: str) -> int | None:
    return int(text, 0) if _is_number(text) else None


# ---- flags as recipes --------------------------------------------------------------------------------------

_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")


class Recipe(NamedTuple):
    """How to compute flags."""

    source: str  # of a function `recipe(cpu, ...)`
    names: tuple[str, ...]  # the locals that hold its other arguments
    whole: bool  # it computes all six


def recipe_of(sources: Sources, known: Formulas) -> Recipe | None:
    """The recipe for the flags; None if none was touched. `known` are the temporaries that it can compute by
    itself."""
    touched = [(flag, source) for flag in FLAGS if (source := sources[flag]) != ENTRY]
    if not touched:
        return None
    wanted = [name for flag, source in touched
              for name in ((flag,) if isinstance(source, str) else sorted(source.uses))]  # fmt: skip
    kept, before = known.kept(wanted), known.lines(wanted)
    names = {name: f"p{n}" for n, name in enumerate(kept)}
    for line in before:
        names[line.partition(" = ")[0]] = f"t{len(names)}"

    def renamed(text: str) -> str:
        return _NAME.sub(lambda match: names.get(match[0], match[0]), text)

    lines = [renamed(line) for line in before]
    for flag, source in touched:
        value = names[flag] if isinstance(source, str) else renamed(source.text.partition(" = ")[2])
        lines.append(f"cpu.{flag} = {value}")
    parameters = ", ".join(("cpu", *(names[name] for name in kept)))
    text = "\n    ".join(lines)
    return Recipe(f"def recipe({parameters}):\n    {text}\n", tuple(kept), len(touched) == len(FLAGS))


@lru_cache(maxsize=1 << 14)  # the guest's immediates are part of the text
def compile_recipe(source: str) -> Callable[..., None]:
    """A flag recipe's function; blocks with the same formulas share it."""
    namespace: dict[str, Any] = {"PARITY": PARITY}
    exec(compile(source, "<flags>", "exec"), namespace)
    made: Callable[..., None] = namespace["recipe"]
    return made


def recover(recipe: Recipe | None, via: int, values: Mapping[str, Any]) -> tuple[int, Pending]:
    """The flags before an instruction that gave up: (via, `cpu.pending_flags`) for the end of
    the block; via 0: that says everything."""
    if recipe is None:
        return via, None
    source, names, whole = recipe
    return 0 if whole else via, (compile_recipe(source), *[values[name] for name in names])


# ---- putting a function together ---------------------------------------------------------------------------

VIA = "@via"  # a line of the body until all ways are known
# What the function of an instruction raised is for the engine that runs blocks: all is as that left it
CALL_RAISED = (
    "        if at in CALLED:",
    "            cpu.at_fault = IPS[at], CALLED[at]",
    "            raise",
)

# Locals of a block that are not registers: how it gets them
_ENVIRONMENT = {
    "df": "cpu.df", "tr": "cpu.tlb_read", "tw": "cpu.tlb_write", "mb": "cpu.ram", "mw": "cpu.ram16",
    "md": "cpu.ram32", "mq": "cpu.ram64", "load": "cpu.load_plain", "store": "cpu.store_plain",
    "mf": "cpu.ram_doubles", "sticky": STICKY,
    **{f"{name}_base": f"cpu.{name}.base" for name in SEGMENT_NAMES},
    **{f"{name}_read": f"cpu.{name}.read_last" for name in SEGMENT_NAMES},
    **{f"{name}_write": f"cpu.{name}.write_last" for name in SEGMENT_NAMES},
}  # fmt: skip

_IDENTIFIER = re.compile(r"(?<![.\w])[a-z]\w*")


class Emitter:
    """Puts traces together into one function.

    Inside it `pc` is the number of the trace to go on with and `via` the way by which control came to it: at
    the end it tells which recipe holds for flags that the trace did not touch (0: `cpu.pending_flags` as the
    function found it). `n` counts instructions up to the start of the trace.
    """

    def __init__(self, traces: Sequence[Trace], mode: Mode, explained: bool = False) -> None:
        self.traces = traces
        self.explained = explained
        self.steps = [step for trace in traces for step in trace.steps]
        self.numbers = {trace.head: n for n, trace in enumerate(traces)}
        self.mode = mode
        self.region = len(traces) > 1
        self.raising = any(s.raises for step in self.steps for s in step.statements)
        self.calls = [step for step in self.steps if step.called]
        self.again = self.region or traces[0].loops  # something in it may be executed twice
        self.recipes: dict[str, str] = {}  # source -> the name of its function in the text
        self.vias: dict[str, int] = {}
        self.known = Formulas()
        self.partial = False
        self.before: list[Recipe | None] = []  # for each instruction that may give up
        self.names: set[str] = set()  # all that the statements read or assign
        self.looked_up = ""  # the address whose trace is in `pc` already
        self.lines: list[str] = []
        self.plain: set[int] = set()  # numbers of lines that are a whole statement
        self.at: dict[int, int] = {}  # number of a line -> the instruction it belongs to

    def emit(self) -> str:
        """The source of the function."""
        runs = 0
        for trace in self.traces:
            fuse([step.statements for step in trace.steps])
            for run in between_calls(trace.steps):
                share(run, runs)
                runs += 1
        for index, step in enumerate(self.steps):
            step.index = index
            step.jump = next((s.jump for s in step.statements if s.jump[1]), ("", ""))
            self.known.learn(step.statements)
        for trace in self.traces:
            self.keep_flags(trace)
            self.trace_sources(trace)
        self.find_needs()
        return self.assemble()

    # -- which flags are computed, and where they come from --

    def keep_flags(self, trace: Trace) -> None:
        """Flag assignments that something in the trace reads, or that could not wait for a recipe."""
        pending: dict[str, tuple[Step, int]] = {}
        for step in trace.steps:
            if step.called:
                pending.clear()
                continue
            early: set[str] = set()
            last = max((n for n, s in enumerate(step.statements) if s.raises), default=0)
            for n, statement in enumerate(step.statements):
                for flag in statement.uses:
                    if flag in pending:
                        keeper, kept = pending[flag]
                        keeper.kept.add(kept)
                if statement.flag:
                    pending[statement.flag] = (step, n)
                    if statement.uses & ARCHITECTURAL:
                        step.kept.add(n)  # a register may be something else when the recipe runs
                if n < last:
                    early |= statement.defs
            # Executed again, a bail in its middle has to find the flags of the last time whole
            if self.again and any(
                s.flag and not early.isdisjoint(self.known.kept(s.uses)) for s in step.statements
            ):
                step.kept.update(n for n, s in enumerate(step.statements) if s.flag)

    @staticmethod
    def trace_sources(trace: Trace) -> None:
        """Who computed each flag last, before and after each instruction."""
        current: Sources = _AT_ENTRY
        for step in trace.steps:
            step.before = current
            if step.called:  # the flags are where they were when control came to the trace
                step.after = current = _AT_ENTRY
                continue
            changed: dict[str, Statement | str] = {}
            for n, statement in enumerate(step.statements):
                if statement.flag:
                    changed[statement.flag] = LIVE if n in step.kept else statement
                else:
                    changed.update(dict.fromkeys(statement.stores & _FLAG_SET, LIVE))
            if changed:
                current = {**current, **changed}
            step.after = current

    def find_needs(self) -> None:
        """Flags that have to be in locals where a trace starts: it or a trace behind it reads them."""
        for trace in self.traces:
            known: set[str] = set()
            for step in trace.steps:
                if step.called:
                    known.clear()
                    continue
                for n, statement in enumerate(step.statements):
                    if statement.flag and n not in step.kept:
                        continue
                    trace.needs |= statement.uses & _FLAG_SET - known
                    known |= statement.defs & _FLAG_SET
        ways = [(trace, sources, where) for trace in self.traces for sources, where in self.ways(trace)]
        changed = True
        while changed:
            changed = False
            for trace, sources, where in ways:
                untouched = {flag for flag in FLAGS if sources[flag] == ENTRY}
                if len(untouched) == len(FLAGS):  # `via` stays what it is
                    untouched &= self.wanted(where)
                if not untouched <= trace.needs:
                    trace.needs |= untouched
                    changed = True

    def ways(self, trace: Trace) -> Iterable[tuple[Sources, str]]:
        """(flags, target) of every way from this trace to a trace of the same function."""
        for step in trace.steps:
            condition, target = step.jump
            places = [target] if condition or (target and not _is_number(target)) else []
            if condition:
                places.append(f"{step.insn.next:#x}")
            for place in places:
                if self.is_inside(place):
                    yield step.after, place
        if trace.loops:
            yield trace.steps[-1].after, f"{trace.head:#x}"
        elif trace.end and self.is_inside(trace.end):
            yield trace.steps[-1].after, trace.end

    def is_inside(self, where: str) -> bool:
        """True if the target may be a trace of this function, to go on with by `pc`."""
        place = _number(where)
        return self.region and (place is None or place in self.numbers)

    def wanted(self, where: str) -> set[str]:
        """The flags that the trace at `where` has to find in locals; of all traces if it is not known."""
        place = _number(where)
        if place is not None:
            return self.traces[self.numbers[place]].needs
        return {flag for trace in self.traces for flag in trace.needs}

    # -- leaving a trace --

    def recipe(self, sources: Sources) -> tuple[str, bool]:
        """The expression for `cpu.pending_flags` ("" if no flag was touched), and if it says everything."""
        made = recipe_of(sources, self.known)
        if made is None:
            return "", False
        key = self.recipes.setdefault(made.source, f"R{len(self.recipes)}")
        return f"({key}, {''.join(name + ', ' for name in made.names)})", made.whole

    def put(self, indent: str, *lines: str) -> None:
        """Append lines to the body."""
        self.lines += [indent + line for line in lines]

    def leave(self, indent: str, trace: Trace, sources: Sources, count: int, where: str) -> None:
        """Lines that go from `count` instructions into a trace to the address `where`."""
        place = _number(where)
        if not self.is_inside(where):
            self.put(indent, f"rip = {where}", f"n += {count}")
            text, whole = self.recipe(sources)
            if whole:
                self.put(indent, f"cpu.pending_flags = {text}", *["via = 0"] * self.again)
            elif text:
                self.partial = True
                self.put(indent, f"rest = {text}")
            if trace.stop is not None and count == len(trace.steps) and where == trace.end:
                self.put(indent, "left = 1")  # STEP
            self.put(indent, *["pc = -1"] * (self.region and trace.loops), "break")
            return
        go_on = "break" if trace.loops else "continue"  # a loop's function goes on behind the loop
        self.put(indent, f"n += {count}", *self.locals_for(sources, where), *self.via(sources))
        if place is not None:
            self.put(indent, f"pc = {self.numbers[place]}", go_on)
            return
        self.put(indent, f"rip = {where}")
        if where != self.looked_up:
            self.put(indent, "pc = PCS.get(rip, -1)")
        self.put(indent, *(("break",) if trace.loops else ("if pc < 0:", "    break", "continue")))

    def locals_for(self, sources: Sources, where: str) -> list[str]:
        """Lines that put the flags that the next trace reads into locals."""
        wanted = self.wanted(where)
        lines: list[str] = []
        for flag in FLAGS:
            source = sources[flag]
            if flag in wanted and not isinstance(source, str):
                lines.append(source.text)
        return lines

    def via(self, sources: Sources) -> list[str]:
        """The line that says where the flags of the trace that ends here are to be found."""
        if all(source == ENTRY for source in sources.values()):
            return []
        text, _ = self.recipe({flag: LIVE if s == ENTRY else s for flag, s in sources.items()})
        return [f"via = {self.vias.setdefault(text, len(self.vias) + 1)}"]

    # -- calling an instruction's function --

    def emit_call(self, indent: str, trace: Trace, step: Step, count: int) -> None:
        """The lines that hand everything back to the CPU, execute an instruction as the step engine does, and
        take over again; or end the block if code or events changed meanwhile."""
        insn, number = step.insn, step.index
        effects = effects_of(insn.raw, self.mode.code_bits)
        text, whole = self.recipe(step.before)
        if self.again and not whole:
            self.put(indent, VIA)
        if text:
            self.put(indent, *["cpu.settle_flags()"] * (not whole), f"cpu.pending_flags = {text}")
        self.put(indent, *["via = 0"] * self.again)
        if effects.flags and not step.settled:
            self.put(indent, "if cpu.pending_flags is not None:", "    cpu.settle_flags()")
        self.put(indent, *hand_back(step.dirty, self.names))
        self.put(indent, f"cpu.retired = n + {count - 1}", f"cpu.exit_ip = {insn.ip:#x}")
        self.put(indent, f"cpu.rip = {insn.next:#x}", f"F{number}(*OF{number})")
        self.at[len(self.lines) - 1] = number
        vectors = {name for n in effects.vectors for name in locals_of_vector(n)}
        self.put(
            indent,
            *(f"{name} = cpu.{name}" for name in (*GPR_NAMES, "df")
              if name in self.names and name in (*effects.registers, "df")),
            *entry_lines(vectors & self.names),
        )  # fmt: skip
        flags = self.needed_flags()
        if flags:
            self.put(indent, "cpu.settle_flags()", *(f"{flag} = cpu.{flag}" for flag in flags))
        inner = indent + "    "
        self.put(indent, "if cpu.attention or cache.shifts != shifts:")
        self.put(inner, f"rip = {insn.next:#x}", f"n += {count}")
        self.put(inner, *["pc = -1"] * (self.region and trace.loops), "break")

    def find_dirty(self, trace: Trace, stored: Set[str]) -> None:
        """For each call of a trace: which locals the CPU does not have yet, and whether it has all flags."""
        calls = [n for n, step in enumerate(trace.steps) if step.called]
        if not calls:
            return
        behind = {p for step in trace.steps[calls[-1] + 1 :] for s in step.statements for p in s.stores}
        dirty: set[str] = set(stored) if self.region else behind if trace.loops else set()
        settled = False
        for step in trace.steps:
            if step.called:
                step.dirty, step.settled = frozenset(dirty), settled
                dirty = set()
                settled = settled or effects_of(step.insn.raw, self.mode.code_bits).flags
                continue
            for statement in step.statements:
                dirty |= statement.stores
                settled = settled and statement.stores.isdisjoint(_FLAG_SET)

    def needed_flags(self) -> list[str]:
        """The flags that have to be in locals where some trace starts."""
        return [flag for flag in FLAGS if any(flag in trace.needs for trace in self.traces)]

    # -- the body --

    def emit_step(self, indent: str, trace: Trace, step: Step, count: int) -> None:
        """The lines of one instruction, with the way out of the trace if it jumps."""
        insn = step.insn
        if self.explained:
            self.put(
                indent,
                f"# {insn.ip:#x}: {disassemble(insn.raw, self.mode.code_bits, insn.ip)}  [{insn.raw.hex()}]",
            )
        if step.called:
            self.emit_call(indent, trace, step, count)
            return
        condition, target = step.jump
        predicted = f"{step.follow:#x}" if step.follow is not None and _is_dynamic(target) else ""
        for n, statement in enumerate(step.statements):
            if statement.jump[1] or (statement.flag and n not in step.kept):
                continue
            text = statement.text
            if statement.uses == {target} and predicted:
                text = _unless(f"{target} != {predicted}", text)
            elif statement.uses == {target} and self.region and step.follow is None:
                text = f"pc = PCS.get({target}, -1)\n" + _unless("pc < 0", text)
                self.looked_up = target
            first = len(self.lines)
            self.put(indent, *text.splitlines())
            if len(self.lines) == first + 1:
                self.plain.add(first)
            if statement.raises:
                self.at.update(dict.fromkeys(range(first, len(self.lines)), step.index))
        inner = indent + "    "
        if condition and step.follow is None:
            self.put(indent, f"if {condition}:")
            self.leave(inner, trace, step.after, count, target)
            self.leave(indent, trace, step.after, count, f"{insn.next:#x}")
        elif condition:
            taken = step.follow == _number(target)
            self.put(indent, f"if {negated(condition) if taken else condition}:")
            self.leave(inner, trace, step.after, count, f"{insn.next:#x}" if taken else target)
        elif predicted:
            self.put(indent, f"if {target} != {predicted}:")
            self.leave(inner, trace, step.after, count, target)

    def emit_trace(self, indent: str, trace: Trace) -> None:
        """The lines of one trace; a loop is a loop."""
        count, last = len(trace.steps), trace.steps[-1].after
        if not trace.loops:
            for n, step in enumerate(trace.steps):
                self.emit_step(indent, trace, step, n + 1)
            if trace.end:
                self.leave(indent, trace, last, count, trace.end)
            return
        inner = indent + "    "
        self.put(indent, f"for n in range(n, until - {count - 1}, {count}):")
        for n, step in enumerate(trace.steps):
            self.emit_step(inner, trace, step, n + 1)
        via = self.via(last)
        self.put(inner, *self.locals_for(last, f"{trace.head:#x}"), *(via if shows_entry(trace) else ()))
        self.put(inner, "pass")  # everything else may turn out to be dead
        self.put(indent, "else:", f"    n += {count}", *(f"    {line}" for line in via))
        if self.region:
            self.put(indent, "    continue", "if pc < 0:", "    break")
        else:
            self.put(indent, f"    rip = {trace.head:#x}", "break")

    def emit_choice(self, indent: str, first: int, last: int) -> None:
        """Lines that find trace `pc` among [first, last) by halves."""
        if last - first == 1:
            self.emit_trace(indent, self.traces[first])
            return
        middle = (first + last) // 2
        self.put(indent, f"if pc < {middle}:")
        self.emit_choice(indent + "    ", first, middle)
        self.put(indent, "else:")
        self.emit_choice(indent + "    ", middle, last)

    # -- around the body --

    def assemble(self) -> str:
        """Prologue, loop, handler and epilogue around the body."""
        longest = max(len(trace.steps) for trace in self.traces)
        outer = "        " if self.raising else "    "
        statements = [s for step in self.steps for s in step.statements if not step.called]
        stored = {place for s in statements for place in s.stores}
        self.names = stored.union(
            _IDENTIFIER.findall("\n".join(t for s in statements for t in (s.text, *s.jump)))
        )
        for trace in self.traces if self.calls else ():
            self.find_dirty(trace, stored)
        self.emit_choice(outer + "    ", 0, len(self.traces))
        before: list[Recipe | None] = []
        sources: Sources = _AT_ENTRY
        made: Recipe | None = None
        for step in self.steps:
            if step.called:
                before.append(None)
                continue
            if any(s.raises for s in step.statements) and step.before is not sources:
                sources = step.before
                made = recipe_of(sources, self.known)
            before.append(made if step.before is sources else None)
        awaited = {name for recipe in before if recipe is not None for name in recipe.names}
        recover = bool(awaited) or any(recipe is not None for recipe in before)
        after: list[str] = []
        for number, recipe in enumerate(self.vias, 1):
            after += [
                f"    {'el' * (number > 1)}if via == {number}:",
                f"        cpu.pending_flags = {recipe}",
            ]
        if self.partial or recover:
            after += [
                "    if rest is not None:",
                "        cpu.settle_flags()",
                "        cpu.pending_flags = rest",
            ]
        body = Lines(self.lines, self.plain, [*after, *awaited])
        body.drop_dead()
        body.forward()
        self.lines, self.at = body.kept(self.at)
        self.spell_out_via(after)

        text = "\n".join((*self.lines, *after))
        used = set(_IDENTIFIER.findall(text))
        needs = self.needed_flags()

        lines = ["def block(cpu, until, pc):"]
        if needs:
            lines += ["    if cpu.pending_flags is not None:", "        cpu.settle_flags()"]
            lines += [f"    {flag} = cpu.{flag}" for flag in needs]
        lines += [f"    {place} = cpu.{place}" for place in GPR_NAMES if place in used or place in stored]
        lines += [f"    {line}" for line in entry_lines(VECTOR_LOCALS & (used | stored))]
        lines += [f"    {local} = {value}" for local, value in _ENVIRONMENT.items() if local in used]
        lines += ["    cache = cpu.cache", "    shifts = cache.shifts"] * bool(self.calls)
        lines += ["    n = cpu.retired", "    left = 0"]
        lines += ["    rest = None"] * (self.partial or recover)
        lines += ["    via = 0"] * (self.again or recover)
        lines += [f"    limit = until - {longest}"] * self.region
        lines += ["    try:"] * self.raising
        lines.append(outer + ("while n <= limit:" if self.region else "while True:"))
        first = len(lines) + 1
        lines += self.lines
        if self.region:
            lines += [outer + "else:", outer + "    rip = HEADS[pc]"]
        if self.raising:
            lines += [
                "    except (NotPlain, Fault, VmExit) as event:",
                "        at = AT[event.__traceback__.tb_lineno]",
                *CALL_RAISED * bool(self.calls),
                "        rip = IPS[at]",
                "        n += OFFSETS[at]",
                "        left = 2",  # BAILED
            ]
            if recover:
                lines.append("        via, rest = recover(BEFORE[at], via, locals())")
        lines += after
        lines += [f"    {line}" for line in hand_back(stored, used)]
        lines += ["    cpu.exit_ip = -1"] * bool(self.calls)
        lines += ["    cpu.rip = rip", "    cpu.retired = n", "    return left", ""]
        self.before = before
        self.at = {first + line: index for line, index in self.at.items()}
        return "\n".join(lines)

    def spell_out_via(self, after: Sequence[str]) -> None:
        """Put what `via` stands for where a call needs it: known only when all ways are."""
        choice = [line[4:] for line in after[: 2 * len(self.vias)]]
        lines: list[str] = []
        at: dict[int, int] = {}
        for n, line in enumerate(self.lines):
            if line.endswith(VIA):
                lines += [line.removesuffix(VIA) + each for each in choice]
                continue
            if n in self.at:
                at[len(lines)] = self.at[n]
            lines.append(line)
        self.lines, self.at = lines, at


def hand_back(places: Set[str], used: Set[str]) -> list[str]:
    """Lines that give the CPU these registers; `used` are all names of the function."""
    lines = [f"cpu.{place} = {place}" for place in (*GPR_NAMES, "df") if place in places]
    return lines + exit_lines(used, places)


def between_calls(steps: Sequence[Step]) -> list[list[list[Statement]]]:
    """The statements of each instruction, in runs without a call."""
    runs: list[list[list[Statement]]] = [[]]
    for step in steps:
        if step.called:
            runs.append([])
        else:
            runs[-1].append(step.statements)
    return [run for run in runs if run]


def shows_entry(trace: Trace) -> bool:
    """True if a way out of the trace shows flags as they were at its start."""
    for step in trace.steps:
        if ENTRY in step.before.values() and any(statement.raises for statement in step.statements):
            return True
        if ENTRY in step.after.values() and (step.jump[0] or _is_dynamic(step.jump[1])):
            return True
    return False


def _is_dynamic(target: str) -> bool:
    return bool(target) and not _is_number(target)


def _unless(condition: str, text: str) -> str:
    """A check of a jump's target is made only under `condition`: the others are known to be good."""
    head, _, rest = text.partition(":\n")
    if head.startswith("if ") and rest.strip() == "raise NotPlain":
        return f"if {condition} and ({head[3:]}):\n{rest}"
    return text


def negated(condition: str) -> str:
    """The source of `not condition`."""
    if re.fullmatch(r"not \w+", condition):
        return condition[4:]
    return f"not {condition}" if re.fullmatch(r"\w+", condition) else f"not ({condition})"


# ---- translating -------------------------------------------------------------------------------------------


def draft_of(code: CodeSource, heads: Sequence[int], shortest: int = 3) -> Draft | None:
    """A function of the traces at `heads`, or None if the first instructions have to stay with the step
    engine.

    A single run of fewer than `shortest` instructions up to one for the step engine is not worth a call.
    """
    traces = build_traces(code, heads)
    if not traces:
        return None
    first = traces[0]
    short = len(first.steps) < shortest and first.stop is not None and not first.loops
    if len(traces) == 1 and short:
        return None
    emitter = Emitter(traces, code.mode)
    source = emitter.emit()
    return Draft(
        code=compile(source, f"block {first.head:#x}", "exec"),
        recipes=tuple(emitter.recipes),
        lines=emitter.at,
        offsets=tuple(n for trace in traces for n in range(len(trace.steps))),
        before=tuple(emitter.before),
        heads=tuple(trace.head for trace in traces),
        length=max(len(trace.steps) for trace in traces),
        insns=tuple((step.insn.ip, step.insn.raw) for step in emitter.steps),
        stops=tuple(trace.stop for trace in traces if trace.stop is not None),
        calls=tuple(step.index for step in emitter.calls),
    )


def build_traces(code: CodeSource, heads: Sequence[int]) -> list[Trace]:
    """The traces at those of `heads` where one can begin."""
    traces: list[Trace] = []
    number = 0
    for head in heads:
        trace = build_trace(code, head, heads, number)
        if trace is not None:
            traces.append(trace)
            number += len(trace.steps)
    return traces


def explained(code: CodeSource, heads: Sequence[int]) -> str:
    """The source of the function of the traces at `heads`, each guest instruction above its statements."""
    return Emitter(build_traces(code, heads), code.mode, explained=True).emit()
