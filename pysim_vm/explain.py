"""What hot code became: the Python function of a run of instructions, with the instructions as comments.

It reads what the block engine made and changes nothing: no instruction is fetched, no accessed bit is set.
Where nothing was made it says why. `Profile` finds out where the time goes.
"""

from __future__ import annotations

import builtins
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import kwlist
from types import FunctionType
from typing import TYPE_CHECKING, Final, cast

from isa.blocks import NEVER_HOT
from isa.cpu import Cpu
from isa.decode import Insn, disassemble
from isa.exits import Budget, ExternalInterrupt, Hypercall
from isa.faults import GeneralProtection
from isa.modes import ContextKey, Mode
from isa.state import GPR_NAMES
from isa.translate import Block, CodeSource, draft_of, explained
from pysim_vm.errors import DeviceFault
from pysim_vm.report import exit_words, plural
from pysim_vm.symbols import SymbolTable

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

LOOPED: Final = 64  # times that a loop goes round, where nobody counted
SAMPLE_SLICE: Final = 10_007  # instructions between two samples; a prime, so that no loop keeps step with it

# The names of a block's source in the words of a course. The first pattern that fits a name tells it.
LEGEND: Final = (
    (r"cpu", "the processor: between two calls all registers live in it"),
    (r"until", "the count of instructions at which the function has to be left, for the next timer event"),
    (r"pc", "the number of the trace that runs (-1: none of this function); as a parameter: where to begin"),
    (r"n", "instructions executed so far (`cpu.retired` outside)"),
    (r"limit", "the last `n` at which the longest trace fits before `until`"),
    (r"rip", "the address at which the guest goes on after the function"),
    (r"left", "what the step engine has to do next: 0 nothing, 1 the next instruction, 2 one that gave up"),
    (r"HEADS|PCS", "the addresses at which traces begin, by number; the numbers, by address"),
    (r"tr|tw", "the TLB for loads and for stores: for each page what has to be added to a linear address to "
               "get its place in RAM; a page that is not there raises NotPlain"),
    (r"m[bwdq]|mf", "the guest's RAM as a list of numbers of 1 (mb), 2 (mw), 4 (md) or 8 bytes (mq) or of "
                    "doubles (mf)"),
    (r"load|store", "an access that may cross a page or lie unaligned; NotPlain where there is more to it"),
    (r"k\d+_\d+p?", "accesses around one register share a look-up of their page: its place in RAM, or None"),
    (r"[cdefgs]s_base", "the base address of a segment"),
    (r"[cdefgs]s_(read|write)", "the last offset in a segment that may be read or written"),
    (r"df", "the direction flag"),
    (r"cf|pf|af|zf|sf|of", "flags; those that nobody reads are not computed"),
    (r"R\d+", "a recipe: computes the flags, should anybody ever look at them"),
    (r"via", "which of the ways out was taken: it decides which recipe holds"),
    (r"rest", "a recipe for those flags that changed last; the others are settled before it"),
    (r"recover|BEFORE", "which flags hold before the instruction that gave up"),
    (r"F\d+|OF\d+", "the function of an instruction that is called as in the step engine; its operands"),
    (r"cache|shifts", "where decoded code is kept; how often code there changed or moved"),
    (r"CALLED", "the instructions that are called: what they raise is not handled here"),
    (r"AT|IPS|OFFSETS|event|at", "from the line that raised to the instruction, its address and its count"),
    (r"NotPlain", "raised where an access is not plain RAM: a device, another page, a fault perhaps"),
    (r"Fault|VmExit", "what an instruction raises inside the guest, and what leaves it"),
    (r"PARITY", "the parity flag of each byte"),
    (r"xmm\d+|ymmh\d+", "a vector register as one number, and the upper half of a YMM register"),
    (r"(lo|hi|ok)\d+", "the two doubles of an XMM register, and whether both are easy to compute with"),
    (r"sticky", "MXCSR is as usual and its precision flag is set: it stays set, whatever is inexact"),
    (r"v_\w+|\w+__\w+", "a helper of the CPU that is called"),
    (r"\w+_\d+", "an intermediate value; the number at its end is that of its instruction, counted from 0"),
)  # fmt: skip
_REGISTERS: Final = "the general registers, as numbers from 0 to 2**64 - 1"
_NAME: Final = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_FAMILIAR: Final = frozenset((*kwlist, *dir(builtins), "block", "get", "locals"))
_LONG_NUMBER: Final = re.compile(r"(?<![\w.])\d{5,}(?![\w.])")
_COMMENT: Final = re.compile(r"(\s*)# (0x[0-9a-f]+): ")


# ---- finding functions -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Function:
    """A translated function: the blocks through which it is entered, all in one mode."""

    key: ContextKey
    blocks: list[Block]
    samples: int = 0  # of a Profile

    @property
    def heads(self) -> tuple[int, ...]:
        """The addresses at which its traces begin; it may be entered at each."""
        return self.blocks[0].heads

    @property
    def calls(self) -> int:
        """How often the engine saw it called: it looks at one call of `sample_every`."""
        return sum(block.samples for block in self.blocks)

    @property
    def weight(self) -> int:
        """A guess at the time spent in it, for want of a Profile: a loop goes round many times a call."""
        run = cast(FunctionType, self.blocks[0].run)
        loops = len(self.heads) > 1 or "range" in run.__code__.co_names
        return (self.calls + 1) * self.size * (LOOPED if loops else 1)

    @property
    def size(self) -> int:
        """Instructions in all traces."""
        return self.blocks[0].size


def functions_of(cpu: Cpu) -> list[Function]:
    """Every translated function that is there now, in the order of the pages of its code."""
    found: dict[object, Function] = {}
    for page in cpu.cache.pages.values():
        for (key, _), block in page.blocks.items():
            function = found.setdefault(block.run, Function(key, []))
            if block not in function.blocks:
                function.blocks.append(block)
    return list(found.values())


def function_at(cpu: Cpu, rip: int, functions: Iterable[Function] | None = None) -> Function | None:
    """The function that holds the instruction at `rip`, one of the present mode if possible; the largest."""
    holding = [each for each in functions or functions_of(cpu) if rip in each.blocks[0].ips]
    return max(holding, key=lambda each: (each.key == cpu.code.key, each.size), default=None)


class Decoded:
    """The instructions of one mode that are decoded already: a `Fetch` that fetches nothing.

    `pages` says in which host page the code of a linear page is; without, any page will do.
    """

    def __init__(self, cpu: Cpu, key: ContextKey, pages: Mapping[int, int] | None = None) -> None:
        self._cpu = cpu
        self._key = key
        self._pages = {} if pages is None else pages
        context = cpu.cache.contexts.get(key)
        self.apart: frozenset[int] = frozenset() if context is None else frozenset(context.apart)
        self.source = CodeSource(self, cpu.definition_of, Mode.of(key), key[2], self.apart)

    def find(self, ip: int) -> Insn | None:
        """The instruction at `ip`, or None."""
        cache, place = self._cpu.cache, (self._key, ip)
        host = self._pages.get(self.source.page_of(ip))
        if host is not None:
            page = cache.pages.get(host)
            return None if page is None else page.insns.get(place)
        context = cache.contexts.get(self._key)
        known = context.get(ip) if context is not None else None
        if known is not None:
            return known
        return next((page.insns[place] for page in cache.pages.values() if place in page.insns), None)

    def __call__(self, ip: int) -> Insn:
        insn = self.find(ip)
        if insn is None:
            raise GeneralProtection(0, f"{ip:#x} is not decoded")
        return insn


# ---- explaining one ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explanation:
    """The source of a function, in words. `legend` has (names, what they are) in a reader's order."""

    title: str
    source: str
    legend: tuple[tuple[str, str], ...]
    recipes: tuple[str, ...]  # sources of R0, R1 ...

    def parts(self) -> Iterator[tuple[str, bool]]:
        """The text in parts: (text, whether it is Python)."""
        yield self.title + "\n\n", False
        yield self.source, True
        width = min(24, max(len(names) for names, _ in self.legend))
        lines = ["\nThe names:\n"]
        for names, meaning in self.legend:
            lines += _wrapped(names, meaning, width)
        yield "\n".join(lines) + "\n", False
        if self.recipes:
            yield "\nThe recipes for the flags, each run when somebody looks at them:\n\n", False
            yield "\n".join(self.recipes), True

    def text(self) -> str:
        """All of it."""
        return "".join(text for text, _ in self.parts())


def explain_function(cpu: Cpu, function: Function, symbols: SymbolTable | None = None) -> Explanation:
    """A translated function, as it would be translated now."""
    heads, key = function.heads, function.key
    begin, run = ("begin", "they run") if len(heads) > 1 else ("begins", "it runs")
    title = (
        f"{plural(function.size, 'instruction')} in {plural(len(heads), 'trace')}, which {begin} at "
        + ", ".join(place_words(key, head, symbols) for head in heads)
        + f"; {run} as {mode_words(key)}."
    )
    return _explanation(title, Decoded(cpu, key, function.blocks[0].pages), heads, symbols)


def _explanation(
    title: str, decoded: Decoded, heads: tuple[int, ...], symbols: SymbolTable | None
) -> Explanation:
    source = explained(decoded.source, heads)
    draft = draft_of(decoded.source, heads, 1)
    recipes = () if draft is None else draft.recipes
    return Explanation(
        title,
        readable(source, symbols, decoded.source.base),
        legend_of(source),
        tuple(readable(text.replace("def recipe(", f"def R{n}(", 1)) for n, text in enumerate(recipes)),
    )


def mode_words(key: ContextKey) -> str:
    """`64-bit code at CPL 3`."""
    return f"{key[0]}-bit code at CPL {key[1]}"


def place_words(key: ContextKey, ip: int, symbols: SymbolTable | None) -> str:
    """An address with the guest's name for it: `next+0x4 (0x1012)`."""
    if symbols is None:
        return f"{ip:#x}"
    location = symbols.lookup(ip + key[2])
    return f"{ip:#x}" if location is None else f"{location} ({ip:#x})"


def readable(source: str, symbols: SymbolTable | None = None, base: int = 0) -> str:
    """Source for people: long numbers in hexadecimal, and the guest's names where they begin. `base` is
    that of CS."""
    lines = []
    for line in source.splitlines():
        comment = _COMMENT.match(line)
        if comment is None:
            lines.append(_LONG_NUMBER.sub(lambda number: f"{int(number[0]):#x}", line))
            continue
        location = None if symbols is None else symbols.lookup(int(comment[2], 16) + base)
        if location is not None and not location.offset:
            lines.append(f"{comment[1]}# {location}:")
        lines.append(line)
    return "\n".join(lines) + "\n"


def legend_of(source: str) -> tuple[tuple[str, str], ...]:
    """(names, meaning) for the names that a source uses; what nobody knows is left out."""
    code = re.sub(r"#.*", "", source)
    used = sorted(set(_NAME.findall(code)) - _FAMILIAR)
    registers = [name for name in GPR_NAMES if name in used]
    rows = [(", ".join(registers), _REGISTERS)] if registers else []
    left = [name for name in used if name not in registers]
    for pattern, meaning in LEGEND:
        names = [name for name in left if re.fullmatch(pattern, name)]
        left = [name for name in left if name not in names]
        if names:
            shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            rows.append((shown, meaning))
    order = [meaning for _, meaning in LEGEND]
    order.insert(1, _REGISTERS)
    return tuple(sorted(rows, key=lambda row: order.index(row[1])))


def _wrapped(names: str, meaning: str, width: int) -> list[str]:
    """A row of the legend as lines of at most 100 letters."""
    lines, room = [], 96 - width
    while len(meaning) > room:
        at = meaning.rfind(" ", 0, room)
        lines.append(meaning[:at])
        meaning = meaning[at + 1 :]
    lines.append(meaning)
    head = [] if len(names) <= width else [f"  {names}"]
    starts = ["" if head else names, *[""] * (len(lines) - 1)]
    return head + [f"  {start:<{width}}  {line}" for start, line in zip(starts, lines, strict=True)]


# ---- explaining why not ------------------------------------------------------------------------------------


def why_stepped(cpu: Cpu, insn: Insn, decoded: Decoded) -> str:
    """Why an instruction stays with the step engine whatever its heat; "" if it does not have to."""
    bits = decoded.source.mode.code_bits
    text = disassemble(insn.raw, bits, insn.ip)
    definition = cpu.definition_of(insn)
    if definition is None:
        return f"this CPU has no definition for {text}"
    where = f"{definition.function.__module__}.{definition.function.__name__}"
    if definition.rep and insn.function is cpu.table["REP"].function:
        return f"{text} repeats by itself, many elements in one step of the step engine ({where})"
    if not definition.callable:
        return (
            f"the definition of {text} ({where}) is tagged inline=False without called=True, because it "
            "does more than a function of registers, flags and RAM can"
        )
    page_of = decoded.source.page_of
    if page_of(insn.ip) != page_of(insn.ip + len(insn.raw) - 1):
        return f"{text} lies across two pages, which the guest may map elsewhere one by one"
    if draft_of(decoded.source, (insn.ip,), 1) is None:
        return f"{text} may not be executed here, or has operands that functions do not know ({where})"
    return ""


def why_not(cpu: Cpu, rip: int, symbols: SymbolTable | None = None) -> str:
    """Why no function holds the instruction at `rip`, in one sentence."""
    key, insn = _decoded_at(cpu, rip)
    at = place_words(key, rip, symbols)
    if not cpu.use_blocks:
        return f'{at} is not translated: this VM steps; make it with engine = "block".'
    if insn is None:
        return f"{at} is not translated: no instruction that begins there was executed."
    decoded = Decoded(cpu, key)
    context = cpu.cache.contexts.get(key)
    heat = context.heat.get(rip, 0) if context is not None else 0
    reason = why_stepped(cpu, insn, decoded)
    if reason:
        return f"{at} stays with the step engine: {reason}."
    if heat == NEVER_HOT:
        return f"{at} is not translated: the run that begins there is too short to be worth a call."
    if heat:
        return (
            f"{at} is not hot: control came there by a jump {plural(heat, 'time')}, and {cpu.hot} make a "
            "function of it."
        )
    return (
        f"{at} is not hot: it was executed, but no run of instructions that holds it began {cpu.hot} times."
    )


def _decoded_at(cpu: Cpu, rip: int) -> tuple[ContextKey, Insn | None]:
    """The instruction at `rip` and its mode: the present one, else any in which it was executed."""
    for key in sorted(cpu.cache.contexts, key=lambda key: (key != cpu.code.key, key)):
        insn = Decoded(cpu, key).find(rip)
        if insn is not None:
            return key, insn
    return cpu.code.key, None


def explanation_at(
    cpu: Cpu, rip: int, symbols: SymbolTable | None = None, functions: Iterable[Function] | None = None
) -> Explanation | str:
    """The function that holds the instruction at `rip`; for one that could be in a function and is not, what
    it would become; otherwise the reason."""
    function = function_at(cpu, rip, functions)
    if function is not None:
        return explain_function(cpu, function, symbols)
    reason = why_not(cpu, rip, symbols)
    key, insn = _decoded_at(cpu, rip)
    decoded = Decoded(cpu, key)
    if insn is None or not cpu.use_blocks or why_stepped(cpu, insn, decoded):
        return reason + "\n"
    title = reason + " If it were, this would become of it, as far as it was executed:"
    return _explanation(title, decoded, (rip,), symbols)


def explanation_of_hottest(
    cpu: Cpu, functions: Sequence[Function], symbols: SymbolTable | None = None
) -> Explanation | str:
    """The first of the functions, or why there is none."""
    if functions:
        return explain_function(cpu, functions[0], symbols)
    if not cpu.use_blocks:
        return 'Nothing is translated: this VM steps; make it with engine = "block".\n'
    return f"Nothing is translated: no run of instructions began {cpu.hot} times; let the guest run longer.\n"


def explain(cpu: Cpu, rip: int | None = None, symbols: SymbolTable | None = None) -> str:
    """What `AxVM.explain` returns; it has the meaning of `rip`, which is relative to CS as RIP itself is."""
    if rip is None:
        by_weight = sorted(functions_of(cpu), key=lambda each: (-each.weight, each.heads))
        found = explanation_of_hottest(cpu, by_weight, symbols)
    else:
        found = explanation_at(cpu, rip, symbols)
    return found if isinstance(found, str) else found.text()


# ---- where the time goes -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Profile:
    """Where a VM was after every SAMPLE_SLICE instructions; `ended` says why it stopped early."""

    vm: AxVM
    places: Counter[tuple[ContextKey, int]] = field(default_factory=Counter)
    ended: str = ""

    def run(self, budget: int) -> None:
        """Run vCPU 0 for `budget` instructions at most."""
        cpu = self.vm.vcpu(0).cpu
        end = cpu.retired + budget
        while cpu.retired < end and not self.ended:
            before = cpu.retired
            try:
                reason = self.vm.run(min(SAMPLE_SLICE, end - before))
            except DeviceFault as error:
                self.ended = str(error)
                return
            match reason:
                case Budget() if cpu.retired == before:
                    self.ended = "its budget is used up"
                case Budget():
                    self.places[cpu.code.key, cpu.rip] += 1
                case Hypercall() | ExternalInterrupt():
                    pass
                case _:
                    self.ended = exit_words(reason)

    def functions(self) -> tuple[list[Function], int]:
        """The functions, the hottest first, with the samples that fell into each; and how many fell into
        none."""
        cpu = self.vm.vcpu(0).cpu
        functions = functions_of(cpu)
        by_size = sorted(functions, key=lambda each: each.size)
        holds = {(each.key, ip): each for each in by_size for ip in each.blocks[0].ips}
        elsewhere = 0
        for place, count in self.places.items():
            holding = holds.get(place)
            if holding is None:
                elsewhere += count
            else:
                holding.samples += count
        functions.sort(key=lambda each: (-each.samples, -each.calls, each.heads))
        return functions, elsewhere
