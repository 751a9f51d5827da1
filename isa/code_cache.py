"""Decoded instructions, found again by address and dropped when their bytes change. It executes nothing.

Two levels. A `CodeContext` is a dict RIP -> Insn for one way of running code (mode, privilege, CS base and
limit); a TLB flush empties it. Behind it, a `CodePage` keeps what was decoded from one physical page, so that
a flush costs a look-up and not a decode; pages are counted by host offset, so that aliases are one. A store
into a code page drops exactly the instructions it touches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from isa.decode import MAX_LENGTH, Insn
from isa.modes import ContextKey, Mode

if TYPE_CHECKING:
    from isa.cpu import Cpu
    from isa.translate import Block

MAX_CONTEXTS = 256  # real-mode code with many CS bases: beyond this, start again
MAX_INSNS = 1 << 20  # decoded instructions kept (about 1 GiB of host memory): beyond this, start again
MAX_TRANSLATED = 1 << 19  # instructions in translated blocks (about 1 GiB): beyond this, start again


class CodeContext(dict[int, Insn]):
    """RIP -> Insn; a miss decodes. `blocks` are translated runs by head, `heat` counts arrivals at a head.

    `apart` are instructions that blocks have to call, `bails` counts the times that one made a block give up.
    """

    __slots__ = ("apart", "bails", "base", "blocks", "cpu", "frames", "heat", "key", "limit", "mode")

    def __init__(self, cpu: Cpu, key: ContextKey, base: int, limit: int) -> None:
        super().__init__()
        self.cpu = cpu
        self.key = key
        self.mode = Mode.of(key)
        self.base = base
        self.limit = limit
        self.frames: dict[int, int] = {}  # the instruction TLB: linear page -> pool offset of its code
        self.blocks: dict[int, Block] = {}
        self.heat: dict[int, int] = {}
        self.apart: set[int] = set()
        self.bails: dict[int, tuple[int, int]] = {}

    def linear(self, ip: int) -> int:
        """The linear address of CS:`ip`."""
        return ip + self.base & self.mode.address_mask

    def __missing__(self, ip: int) -> Insn:
        insn = self.cpu.fetch(self, ip)
        self[ip] = insn
        return insn


class CodePage:
    """What was decoded from one physical page: by context and RIP, and by the offset where it starts."""

    __slots__ = ("blocks", "insns", "starts")

    def __init__(self) -> None:
        self.blocks: dict[tuple[ContextKey, int], Block] = {}  # by context and head
        self.insns: dict[tuple[ContextKey, int], Insn] = {}
        # offset -> (context, RIP) of what starts there; the value is the offset behind it
        self.starts: dict[int, dict[tuple[ContextKey, int], int]] = {}

    def add(self, offset: int, key: ContextKey, insn: Insn) -> bool:
        """Remember an instruction starting at `offset` (negative: in the page before). False if known."""
        entries = self.starts.setdefault(offset, {})
        known = len(entries)
        entries[key, insn.ip] = offset + len(insn.raw)
        return len(entries) > known

    def take(self, offset: int, size: int) -> list[tuple[ContextKey, int]]:
        """Forget and return every instruction with a byte in [offset, offset + size)."""
        first, end = offset - MAX_LENGTH + 1, offset + size
        near: Iterable[int] = range(first, end)
        if end - first > len(self.starts):
            near = [start for start in self.starts if first <= start < end]
        gone: list[tuple[ContextKey, int]] = []
        for start in near:
            entries = self.starts.get(start)
            if entries is None:
                continue
            hit = [entry for entry, behind in entries.items() if behind > offset]
            for entry in hit:
                del entries[entry]
                self.insns.pop(entry, None)
            if not entries:
                del self.starts[start]
            gone += hit
        return gone


class CodeCache:
    """All contexts and code pages of one CPU."""

    __slots__ = ("contexts", "count", "pages", "shifts", "translated")

    def __init__(self) -> None:
        self.contexts: dict[ContextKey, CodeContext] = {}
        self.pages: dict[int, CodePage] = {}
        self.count = 0  # entries in all pages
        self.translated = 0  # instructions in all blocks made since the last `drop_blocks`
        self.shifts = 0  # times that code may have moved or changed: what a running block has to hear of

    def context(self, cpu: Cpu, key: ContextKey, base: int, limit: int) -> CodeContext:
        """The context for `key`, made on first use."""
        found = self.contexts.get(key)
        if found is None:
            if len(self.contexts) >= MAX_CONTEXTS:
                self.contexts.clear()
            found = self.contexts[key] = CodeContext(cpu, key, base, limit)
        return found

    def flush(self) -> None:
        """The linear-to-physical map may have changed: empty the first level."""
        self.shifts += 1
        for context in self.contexts.values():
            context.clear()
            context.frames.clear()
            context.blocks.clear()

    def remember(self, context: CodeContext, insn: Insn, host: int, second: int | None) -> None:
        """Keep an instruction decoded at pool offset `host`, whose tail lies at `second` in another page."""
        if self.count >= MAX_INSNS:
            self.pages.clear()
            self.flush()
            self.count = 0
        page = self._page(host >> 12)
        insn.page = host >> 12
        self.count += page.add(host & 0xFFF, context.key, insn)
        if second is None:
            page.insns[context.key, insn.ip] = insn
        else:  # kept in the first level only: two translations decide
            self.count += self._page(second >> 12).add((host & 0xFFF) - 4096, context.key, insn)

    def drop_blocks(self) -> None:
        """Forget every translation; the decoded instructions stay."""
        for page in self.pages.values():
            page.blocks.clear()
        for context in self.contexts.values():
            context.blocks.clear()
            context.heat.clear()
        self.translated = 0

    def _page(self, number: int) -> CodePage:
        found = self.pages.get(number)
        if found is None:
            found = self.pages[number] = CodePage()
        return found

    def written(self, host: int, size: int) -> None:
        """Bytes in [host, host + size) changed: drop what was decoded from them."""
        while size > 0:
            offset = host & 0xFFF
            length = min(size, 4096 - offset)
            page = self.pages.get(host >> 12)
            if page is not None:
                gone = page.take(offset, length)
                self.count -= len(gone)
                for _, ip in gone:
                    for context in self.contexts.values():
                        context.pop(ip, None)
                        context.heat.pop(ip, None)  # what could not be translated there is gone
                        context.apart.discard(ip)
                self.shifts += 1
                if gone and page.blocks:
                    self._drop_blocks(page, gone)
                if not page.starts:
                    del self.pages[host >> 12]
            host += length
            size -= length

    def _drop_blocks(self, page: CodePage, gone: list[tuple[ContextKey, int]]) -> None:
        """Translated runs that hold, or end before, one of the `gone` instructions."""
        stale = [place for place, block in page.blocks.items()
                 if any(key == place[0] and ip in block.shape for key, ip in gone)]  # fmt: skip
        for key, head in stale:
            self._forget(page.blocks[key, head], key)
            context = self.contexts.get(key)
            if context is not None:
                context.heat.pop(head, None)

    def drop(self, context: CodeContext, ip: int, number: int) -> None:
        """Forget the functions with the instruction at `ip`, in host page `number`; their heads stay hot."""
        page = self.pages.get(number)
        if page is not None:
            for (key, _), block in list(page.blocks.items()):
                if key == context.key and ip in block.ips:
                    self._forget(block, key)

    def _forget(self, block: Block, key: ContextKey) -> None:
        """Take one entry of a function out of its pages and its context."""
        for number in block.pages.values():
            page = self.pages.get(number)
            if page is not None and page.blocks.get((key, block.head)) is block:
                del page.blocks[key, block.head]
        context = self.contexts.get(key)
        if context is not None and context.blocks.get(block.head) is block:
            del context.blocks[block.head]
