"""The block engine: finds hot code, keeps its translations, runs them. It translates nothing itself.

Code starts in the step engine. Where control arrives often by a jump, `isa.translate` makes a Python
function of the run that starts there; from then on arriving there calls it. Blocks that are seen running one
after the other again and again become one function, a region. Whatever such a function cannot do it leaves to
the step engine, one instruction at a time, so both engines execute the same definitions and count alike.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from isa.code_cache import MAX_TRANSLATED
from isa.decode import Insn
from isa.exits import VmExit
from isa.faults import Fault
from isa.interrupts import InterruptUnit
from isa.memory import EXECUTE
from isa.mmu import ACCESS_FETCH, NotPlain
from isa.specialise import part_of
from isa.translate import BAILED, Block, CodeSource, Draft, Drafts, Translation, draft_of

if TYPE_CHECKING:
    from isa.code_cache import CodeContext
    from isa.cpu import Cpu

HOT = 256  # arrivals before a run is translated: translating costs about as much as executing it so often
MAX_HEAT = 1 << 16  # heads counted at a time
PATIENCE = 1 << 18  # instructions that a loop may run inside its block before it looks up again
NEVER_HOT = -1  # the head of a run that cannot be translated

# Regions. Every SAMPLE_EVERY-th call of a block is counted; when one has been counted `due` times, the next
# RECORDED calls tell which blocks run together.
SAMPLE_EVERY = 61
FIRST_DUE = 32
DUE_GROWTH = 4  # a region that still leaves often is looked at again, ever later
NEVER_DUE = 1 << 30
RECORDED = 256
MAX_REGION_TRACES = 48
MAX_REGION = 768  # instructions

# Code that for so many turns found no block to run, though loops had time to get hot, is stepped LEAN_STEPS
# instructions at a time before blocks are looked for again.
LEAN = 4096
LEAN_STEPS = 4096

# An instruction that makes blocks give up MAX_BAILS times, each within BAIL_DISTANCE instructions of the last
# on average, is called instead: the exception costs about as much as forty instructions.
MAX_BAILS = 128
BAIL_DISTANCE = 500

# Values of `Cpu.attention`: bits
LOOK = 1  # events may be due at the next boundary
RECOUNT = 2  # a REP instruction counted its iterations in `retired`: the loop starts counting from there


class BlockUnit(InterruptUnit):
    """The part of the CPU that runs translated code."""

    __slots__ = (
        "_lean", "_recording", "_tick", "at_fault", "drafts", "first_due", "hot", "pending_flags", "recorded",
        "sample_every", "use_blocks",
    )  # fmt: skip
    _recording: list[Block] | None  # the blocks run since it was begun
    _lean: int  # turns without a block
    _tick: int  # calls of blocks to the next sample
    at_fault: tuple[int, Insn | None]
    drafts: Drafts | None  # translations of earlier runs
    first_due: int
    hot: int
    recorded: int
    sample_every: int
    pending_flags: tuple[Any, ...] | None
    use_blocks: bool

    def settle_flags(self) -> None:
        """Compute the flags that the last block left as a recipe."""
        recipe = self.pending_flags
        if recipe is not None:
            self.pending_flags = None
            recipe[0](self, *recipe[1:])

    def rflags(self) -> int:
        """RFLAGS as a number. A device may ask while a block that called it has a recipe pending."""
        self.settle_flags()
        return super().rflags()

    def run_blocks(self, until: int) -> None:
        """Run until `retired` reaches `until` or `attention` is set. Raises what an instruction raises;
        `at_fault` then holds its address and the instruction."""
        cpu = cast("Cpu", self)
        ip = cpu.rip
        insn: Insn | None = None
        # 1: control arrived here by a jump; 2: from a block, or this can never head one: what follows can
        fresh = 1
        tick, recording, lean = self._tick, self._recording, self._lean
        try:
            code = cpu.code
            blocks, heat = code.blocks, code.heat
            while cpu.retired < until:
                ip = cpu.rip
                block = blocks.get(ip)
                if block is None:
                    if fresh:
                        if heat.get(ip) == NEVER_HOT:
                            fresh = 2
                        elif self._warm(code, ip):
                            continue
                elif cpu.retired + block.length <= until:
                    fresh, lean = 2, 0
                    tick -= 1
                    if not tick:
                        tick = self.sample_every
                        block.samples += 1
                        if block.samples >= block.due and recording is None:
                            recording = []
                    if recording is not None:
                        recording.append(block)
                        if len(recording) >= self.recorded:
                            self._make_region(code, recording)
                            recording = None
                    try:
                        left = block.run(cpu, min(until, cpu.retired + PATIENCE), block.entry)
                    except BaseException:  # out of an instruction that it called
                        ip, insn = self.at_fault
                        raise
                    if not left:
                        if cpu.attention:  # set by a signal handler or another thread
                            return
                        continue
                    ip = cpu.rip
                    if left == BAILED:
                        self._note_bail(code, block, ip)
                    elif cpu.retired >= until or cpu.attention:
                        return
                if cpu.pending_flags is not None:
                    cpu.settle_flags()
                lean += 1
                if lean > LEAN:  # nothing to translate here: as the step engine does it, without looking
                    lean -= LEAN >> 3
                    fresh = 1
                    turns = range(cpu.retired, min(until, cpu.retired + LEAN_STEPS))
                    for cpu.retired in turns:
                        ip = cpu.exit_ip = cpu.rip
                        insn = cpu.code[ip]
                        cpu.rip = insn.next
                        insn.function(*insn.arguments)
                        if cpu.attention:
                            break
                    cpu.retired += 1
                    if cpu.attention:
                        if cpu.attention != RECOUNT:
                            return
                        cpu.attention = 0
                    cpu.exit_ip = -1
                    code = cpu.code
                    blocks, heat = code.blocks, code.heat
                    continue
                while True:  # straight code: what control falls into is not looked up
                    insn = code[ip]
                    cpu.exit_ip = ip
                    after = cpu.rip = insn.next
                    insn.function(*insn.arguments)
                    cpu.retired += 1
                    if cpu.attention:
                        if cpu.attention != RECOUNT:
                            return
                        cpu.attention = 0
                    ip = cpu.rip
                    if ip != after or fresh == 2:
                        fresh = 1
                        break
                    if cpu.retired >= until or cpu.code is not code:
                        fresh = 0
                        break
                cpu.exit_ip = -1  # blocks leave every exit to the loop above
                if cpu.code is not code:
                    code = cpu.code
                    blocks, heat = code.blocks, code.heat
        except BaseException:
            self.at_fault = (ip, insn)
            raise
        finally:
            self._tick, self._recording, self._lean = tick, recording, lean
            self.settle_flags()

    def _warm(self, code: CodeContext, head: int) -> bool:
        """Count an arrival; at the HOT-th translate. True if a block stands there now."""
        heat = code.heat
        count = heat.get(head, 0)
        if count < 0:
            return False
        if count < self.hot:
            if len(heat) >= MAX_HEAT:
                heat.clear()
            heat[head] = count + 1
            return False
        cpu = cast("Cpu", self)
        insn = code.get(head)
        page = cpu.cache.pages.get(insn.page) if insn is not None else None
        if page is None:
            return False  # not decoded since the last flush: the step to come does it
        block = page.blocks.get((code.key, head))
        if block is not None:
            if not self._still_mapped(code, block):
                return False
            for other in block.heads:  # the rest of its region is where it was, too
                found = page.blocks.get((code.key, other))
                if found is not None and found.run is block.run:
                    code.blocks[other] = found
            code.blocks[head] = block
            return True
        made = self._translate(code, (head,))
        if made is None:
            heat[head] = NEVER_HOT
            return False
        made.due = self.first_due
        return self._install(code, made)

    def _translate(self, code: CodeContext, heads: tuple[int, ...]) -> Translation | None:
        """The function of the traces at `heads`, from `drafts` if one there is of the same machine code."""
        self.looking_ahead = True
        try:
            return self._look_ahead(code, heads)
        finally:
            self.looking_ahead = False

    def _look_ahead(self, code: CodeContext, heads: tuple[int, ...]) -> Translation | None:
        definition_of = cast("Cpu", self).definition_of
        source = CodeSource(code.__getitem__, definition_of, code.mode, code.base, code.apart)
        drafts = self.drafts
        for known in drafts.find(code.key, heads) if drafts is not None else ():
            if self._same_code(code, known):
                return known.realise(source)
        draft = draft_of(source, heads)
        if draft is None:
            return None
        if drafts is not None:
            drafts.keep(code.key, heads, draft)
        return draft.realise(source)

    def _same_code(self, code: CodeContext, draft: Draft) -> bool:
        """Here and now the machine code of a draft is in memory and may be translated. Raises nothing."""
        definition_of = cast("Cpu", self).definition_of
        try:
            for n, (ip, raw) in enumerate(draft.insns):
                insn = code[ip]
                definition = definition_of(insn)
                if insn.raw != raw or definition is None:
                    return False
                if n not in draft.calls and (ip in code.apart or part_of(insn, definition) is None):
                    return False
        except (Fault, VmExit, NotPlain):
            return False
        return True

    def _install(self, code: CodeContext, made: Translation) -> bool:
        """Put a translation where its heads are found. False if its code changed meanwhile."""
        cache = cast("Cpu", self).cache
        if not self._still_decoded(code, made):
            return False
        if cache.translated >= MAX_TRANSLATED:
            cache.drop_blocks()
            code.heat[made.heads[0]] = self.hot
        cache.translated += made.size
        for block in made.blocks():
            for number in made.pages.values():
                cache.pages[number].blocks[code.key, block.head] = block
            code.blocks[block.head] = block
        return True

    def _make_region(self, code: CodeContext, recording: list[Block]) -> None:
        """Make one function of the blocks that were seen running together."""
        calls: Counter[Block] = Counter(
            block for block in recording if code.blocks.get(block.head) is block
        )  # in the order of their first call
        heads: dict[int, None] = {}
        functions = set()
        size = 0
        due = 1
        for block, count in calls.most_common():
            if count < 2 or block.head in heads:
                continue
            if size + block.size > MAX_REGION or len(heads) + len(block.heads) > MAX_REGION_TRACES:
                continue
            heads.update(dict.fromkeys(block.heads))
            functions.add(block.run)
            size += block.size
            due = max(due, block.due)
        if len(functions) > 1:
            made = self._translate(code, tuple(heads))
            if made is not None:
                made.due = due * DUE_GROWTH
                self._install(code, made)
                return
        for block in calls:
            block.due = block.samples + block.due * DUE_GROWTH

    def _note_bail(self, code: CodeContext, block: Block, ip: int) -> None:
        """An instruction made a block give up. If it does so all the time, blocks call it."""
        retired = cast("Cpu", self).retired
        count, since = code.bails.get(ip, (0, retired))
        if count < MAX_BAILS:
            code.bails[ip] = count + 1, since
            return
        del code.bails[ip]
        if retired - since < MAX_BAILS * BAIL_DISTANCE:
            code.apart.add(ip)
            cast("Cpu", self).cache.drop(code, ip, block.pages[code.linear(ip) >> 12])

    def _still_decoded(self, code: CodeContext, made: Translation) -> bool:
        """Decoding the rest of a run neither filled the cache nor, by an accessed bit, wrote the run."""
        for ip in made.ips:
            page = cast("Cpu", self).cache.pages.get(made.pages[code.linear(ip) >> 12])
            if page is None or (code.key, ip) not in page.insns:
                return False
        return True

    def _still_mapped(self, code: CodeContext, block: Block) -> bool:
        """After a TLB flush: the code pages of a block lie where they did. Raises nothing."""
        self.looking_ahead = True
        try:
            for page, host in block.pages.items():
                if code.frames.get(page) == host << 12:
                    continue
                gpa = self.translate(page << 12, ACCESS_FETCH, self.cpl == 3)
                if self.memory.host_page(gpa, EXECUTE) != host << 12:
                    return False
        except (Fault, VmExit, NotPlain):
            return False
        finally:
            self.looking_ahead = False
        return True
