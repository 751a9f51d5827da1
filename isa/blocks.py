"""The block engine: finds hot code, keeps its translations, runs them. It translates nothing itself.

Code starts in the step engine. Where control arrives often by a jump, `isa.translate` makes a Python
function of the run that starts there; from then on arriving there calls it. Whatever such a function cannot
do it leaves to the step engine, one instruction at a time, so both engines execute the same definitions and
count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from isa.code_cache import MAX_TRANSLATED
from isa.decode import Insn
from isa.exits import VmExit
from isa.faults import Fault
from isa.interrupts import InterruptUnit
from isa.memory import EXECUTE
from isa.mmu import ACCESS_FETCH
from isa.translate import Block, translate

if TYPE_CHECKING:
    from isa.code_cache import CodeContext
    from isa.cpu import Cpu

HOT = 128  # arrivals before a run is translated: translating one costs about as many executions
MAX_HEAT = 1 << 16  # heads counted at a time
PATIENCE = 1 << 18  # instructions that a loop may run inside its block before it looks up again
NEVER_HOT = -1  # the head of a run that cannot be translated

# Values of `Cpu.attention`: bits
LOOK = 1  # events may be due at the next boundary
RECOUNT = 2  # a REP instruction counted its iterations in `retired`: the loop starts counting from there


class BlockUnit(InterruptUnit):
    """The part of the CPU that runs translated code. 64-bit mode only; other modes step."""

    __slots__ = ("at_fault", "hot", "pending_flags", "use_blocks")
    at_fault: tuple[int, Insn | None]
    hot: int
    pending_flags: tuple[Any, ...] | None
    use_blocks: bool

    def settle_flags(self) -> None:
        """Compute the flags that the last block left as a recipe."""
        recipe = self.pending_flags
        if recipe is not None:
            self.pending_flags = None
            recipe[0](self, *recipe[1:])

    def run_blocks(self, until: int) -> None:
        """Run until `retired` reaches `until` or `attention` is set. Raises what an instruction raises;
        `at_fault` then holds its address and the instruction."""
        cpu = cast("Cpu", self)
        ip = cpu.rip
        insn: Insn | None = None
        # 1: control arrived here by a jump; 2: from a block, or this can never head one: what follows can
        fresh = 1
        try:
            code = cpu.code
            blocks = code.blocks
            while cpu.retired < until:
                ip = cpu.rip
                block = blocks.get(ip)
                if block is None:
                    if fresh:
                        if self._warm(code, ip):
                            continue
                        if code.heat.get(ip) == NEVER_HOT:
                            fresh = 2
                elif cpu.retired + block.length <= until:
                    fresh = 2
                    if not block.run(cpu, min(until, cpu.retired + PATIENCE)):
                        if cpu.attention:  # set by a signal handler or another thread
                            return
                        continue
                    ip = cpu.rip
                if cpu.pending_flags is not None:
                    cpu.settle_flags()
                insn = code[ip]
                cpu.rip = insn.next
                insn.function(*insn.arguments)
                cpu.retired += 1
                if cpu.attention:
                    if cpu.attention != RECOUNT:
                        return
                    cpu.attention = 0
                fresh = 1 if fresh == 2 or cpu.rip != insn.next else 0
                if cpu.code is not code:
                    code = cpu.code
                    blocks = code.blocks
                    if not cpu.mode64:
                        return
        except BaseException:
            self.at_fault = (ip, insn)
            raise
        finally:
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
        if block is None:
            block = translate(code.__getitem__, cpu.definition_of, head, cpu.cpl)
            if block is None:
                heat[head] = NEVER_HOT
                return False
            if not self._still_decoded(code, block):
                return False
            if cpu.cache.translated >= MAX_TRANSLATED:
                cpu.cache.drop_blocks()
                heat[head] = self.hot
            cpu.cache.translated += block.length
            for number in block.pages.values():
                cpu.cache.pages[number].blocks[code.key, head] = block
        elif not self._still_mapped(code, block):
            return False
        code.blocks[head] = block
        return True

    def _still_decoded(self, code: CodeContext, block: Block) -> bool:
        """Decoding the rest of a run neither filled the cache nor, by an accessed bit, wrote the run."""
        for ip in block.ips:
            page = cast("Cpu", self).cache.pages.get(block.pages[ip >> 12])
            if page is None or (code.key, ip) not in page.insns:
                return False
        return True

    def _still_mapped(self, code: CodeContext, block: Block) -> bool:
        """After a TLB flush: the code pages of a block lie where they did. Raises nothing."""
        try:
            for page, host in block.pages.items():
                if code.frames.get(page) == host << 12:
                    continue
                gpa = self.translate(page << 12, ACCESS_FETCH, self.cpl == 3)
                if self.memory.host_page(gpa, EXECUTE) != host << 12:
                    return False
        except (Fault, VmExit):
            return False
        return True
