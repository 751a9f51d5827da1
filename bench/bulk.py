"""REP MOVS and STOS on blocks of 64 KiB: what a guest's memcpy and memset reach. They count KiB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isa.exits import Budget
from pysim_vm import AxVM

SOURCE, TARGET, BLOCK = 0x4_0000, 0x6_0000, 0x1_0000
TEXT = """
loop:   mov rsi, {source}
        mov rdi, {target}
        mov ecx, {count}
        rep {mnemonic}
        jmp loop
"""
AROUND = 4  # instructions of the loop besides the elements


@dataclass(frozen=True, slots=True)
class Bulk:
    """`blocks` blocks by one REP instruction each, in elements of `width` bytes; `skew` bytes off alignment
    at the source, twice as many at the target."""

    name: str
    mnemonic: str
    width: int
    skew: int = 0
    blocks: int = 256

    @property
    def per(self) -> str:
        """What one operation is."""
        return "KiB"

    def longer(self, _: int) -> Bulk:
        """The same: there is nothing to warm up."""
        return self

    def fresh(self, engine: str) -> Callable[[], int]:
        """A new VM that runs when it is called, and returns the KiB done."""
        count = BLOCK // self.width
        text = TEXT.format(
            source=SOURCE + self.skew, target=TARGET + 2 * self.skew, count=count, mnemonic=self.mnemonic
        )
        vm = AxVM.from_asm(text, memory="4M", engine=engine)

        def run() -> int:
            reason = vm.run_vcpu(0, self.blocks * (count + AROUND))
            assert isinstance(reason, Budget), f"{self.name}: {reason}"
            return self.blocks * BLOCK // 1024

        return run


BULK = (
    Bulk("REP MOVSB", "movsb", 1),
    Bulk("REP MOVSB, skewed", "movsb", 1, skew=3),
    Bulk("REP MOVSQ", "movsq", 8),
    Bulk("REP STOSB", "stosb", 1),
    Bulk("REP STOSQ", "stosq", 8),
)
