"""The code cache: what a store drops, what a flush keeps, and that a guest cannot make it grow for ever."""

from __future__ import annotations

import random

import pytest

from isa import code_cache
from isa.assembler import assemble
from isa.code_cache import CodePage
from isa.cpu import Cpu
from isa.decode import Insn
from tests.isa.machine import CODE, make_cpu
from tests.isa.test_cpu import CROSSING, paged

KEY = (64, 0, 0, 0, 6)


def insn(ip: int, length: int) -> Insn:
    """A decoded instruction of that many bytes."""
    return Insn(ip, bytes(length), 0, lambda cpu: None, (None,), ip + length)


def test_a_page_forgets_exactly_the_instructions_that_a_store_touches() -> None:
    rng = random.Random("pages")
    for _ in range(200):
        page = CodePage()
        kept = {}
        for _ in range(40):
            start, length = rng.randrange(-14, 4096), rng.randrange(1, 16)
            page.add(start, KEY, insn(start, length))
            kept[start] = length
        at, size = rng.randrange(4096), rng.choice((1, 2, 4, 8, 64, 2000))
        gone = {ip for _, ip in page.take(at, size)}
        assert gone == {start for start, length in kept.items() if start < at + size and start + length > at}
        assert page.starts.keys() == kept.keys() - gone


def test_the_same_instruction_is_remembered_once() -> None:
    page = CodePage()
    assert page.add(0x10, KEY, insn(0x10, 3))
    assert not page.add(0x10, KEY, insn(0x10, 3))
    assert page.take(0x10, 1) == [(KEY, 0x10)]
    assert page.take(0x10, 1) == []


def test_a_flush_keeps_the_decoded_instruction_behind_its_physical_page() -> None:
    cpu = make_cpu(64, b"\x90")
    first = cpu.code[CODE]
    cpu.flush_tlb()
    assert CODE not in dict(cpu.code)
    assert cpu.code[CODE] is first


def test_flushing_in_a_loop_over_a_page_crossing_instruction_does_not_grow_the_cache() -> None:
    cpu = paged("nop")
    cpu.memory.write(CROSSING, assemble("mov rax, 0x1111111111111111"))
    for _ in range(50):
        _ = cpu.code[CROSSING]
        cpu.flush_tlb()
    assert cpu.cache.count == 2  # one entry in each page
    for _ in range(50):
        cpu.memory.write(CROSSING, b"\x48")
        _ = cpu.code[CROSSING]
    assert cpu.cache.count == 2


def entries(cpu: Cpu) -> int:
    """What all pages hold, counted one by one."""
    return sum(len(entry) for page in cpu.cache.pages.values() for entry in page.starts.values())


def test_the_count_is_the_number_of_entries_whatever_happens() -> None:
    cpu = make_cpu(64)
    rng = random.Random("count")
    cpu.memory.write(0x2000, rng.randbytes(0x4000))
    for _ in range(400):
        ip = 0x2000 + rng.randrange(0x4000)
        try:
            _ = cpu.code[ip]
        except Exception as error:
            assert type(error).__module__.startswith("isa."), error
        if rng.random() < 0.3:
            cpu.memory.write(0x2000 + rng.randrange(0x3F00), rng.randbytes(rng.randrange(1, 200)))
        assert cpu.cache.count == entries(cpu)


def test_the_cache_starts_again_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "MAX_INSNS", 100)
    cpu = make_cpu(64)
    cpu.memory.write(0x2000, b"\x90" * 0x1000)
    for n in range(1000):
        assert cpu.code[0x2000 + n].raw == b"\x90"
        assert cpu.cache.count <= 100 and len(cpu.code) <= 101
    cpu.memory.write(0x2000 + 999, b"\xf4")
    assert cpu.code[0x2000 + 999].raw == b"\xf4"


def test_a_store_is_noticed_by_every_mode_that_decoded_the_byte() -> None:
    cpu = make_cpu(64, b"\x48\x90")
    assert cpu.code[CODE].raw == b"\x48\x90"
    cpu.cs.load_raw(8, 0, 0xFFFF_FFFF, 0xC09B)
    cpu.update_mode()
    assert cpu.code[CODE].raw == b"\x48"  # DEC EAX in compatibility mode
    cpu.memory.write(CODE, b"\x90")
    assert cpu.code[CODE].raw == b"\x90"
    cpu.cs.load_raw(8, 0, 0xFFFF_FFFF, 0xA09B)
    cpu.update_mode()
    assert cpu.code[CODE].raw == b"\x90"
