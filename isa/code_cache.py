"""Decoded instructions, found again by address and dropped when their bytes change. It executes nothing.

Two levels. A `CodeContext` is a dict RIP -> Insn for one way of running code (mode, privilege, CS base and
limit); a TLB flush empties it. Behind it, a `CodePage` keeps what was decoded from one physical page, so that
a flush costs a look-up and not a decode; pages are counted by host offset, so that aliases are one. A store
into a code page drops exactly the instructions it touches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.decode import MAX_LENGTH, Insn

if TYPE_CHECKING:
    from isa.cpu import Cpu

ContextKey = tuple[int, int, int, int, int]
MAX_CONTEXTS = 256  # real-mode code with many CS bases: beyond this, start again
MAX_PAGES = 65536  # pages of decoded code kept (256 MiB of guest code)


class CodeContext(dict[int, Insn]):
    """RIP -> Insn; a miss decodes."""

    __slots__ = ("base", "cpu", "key", "limit")

    def __init__(self, cpu: Cpu, key: ContextKey, base: int, limit: int) -> None:
        super().__init__()
        self.cpu = cpu
        self.key = key
        self.base = base
        self.limit = limit

    def __missing__(self, ip: int) -> Insn:
        insn = self.cpu.fetch(self, ip)
        self[ip] = insn
        return insn


class CodePage:
    """What was decoded from one physical page: by context and RIP, and by the offset where it starts."""

    __slots__ = ("insns", "starts")

    def __init__(self) -> None:
        self.insns: dict[tuple[ContextKey, int], Insn] = {}
        self.starts: dict[int, list[tuple[ContextKey, int]]] = {}

    def add(self, offset: int, key: ContextKey, insn: Insn) -> None:
        """Remember an instruction starting at `offset` (negative: in the page before)."""
        self.starts.setdefault(offset, []).append((key, insn.ip))

    def take(self, offset: int, size: int) -> list[tuple[ContextKey, int]]:
        """Forget and return every instruction with a byte in [offset, offset + size)."""
        gone = []
        for start in range(max(offset - MAX_LENGTH + 1, 1 - MAX_LENGTH), min(offset + size, 4096)):
            entries = self.starts.get(start)
            if entries is None:
                continue
            kept = []
            for entry in entries:
                insn = self.insns.get(entry)
                if insn is None or start + len(insn.raw) > offset:
                    gone.append(entry)
                    self.insns.pop(entry, None)
                else:
                    kept.append(entry)
            if kept:
                self.starts[start] = kept
            else:
                del self.starts[start]
        return gone


class CodeCache:
    """All contexts and code pages of one CPU."""

    __slots__ = ("contexts", "pages")

    def __init__(self) -> None:
        self.contexts: dict[ContextKey, CodeContext] = {}
        self.pages: dict[int, CodePage] = {}

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
        for context in self.contexts.values():
            context.clear()

    def page(self, number: int) -> CodePage:
        """The code page of host page `number`, made on first use."""
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
                for _, ip in page.take(offset, length):
                    for context in self.contexts.values():
                        context.pop(ip, None)
                if not page.starts:
                    del self.pages[host >> 12]
            host += length
            size -= length
