"""When code is translated, when translations die, and what holds while they run."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from isa.assembler import assemble
from isa.blocks import HOT, MAX_HEAT, NEVER_HOT
from isa.code_cache import MAX_INSNS, MAX_TRANSLATED
from isa.cpu import Cpu
from isa.exits import Budget, MmioRead
from isa.state import CR0_PG, CR4_PAE
from tests.isa.machine import ALL_FEATURES, CODE, make_cpu, visible_state

ALIAS = 0x30_0000
PML4, PDPT, PD, PT = 0x8_0000, 0x8_1000, 0x8_2000, 0x8_3000


def program(text: str, origin: int = CODE) -> bytes:
    """Machine code of `text`, instructions separated by semicolons or lines."""
    return assemble(text.replace(";", "\n"), bits=64, origin=origin)


def machine(text: str, use_blocks: bool = True, hot: int = 1, **registers: int) -> Cpu:
    """`make_cpu` with the block engine on."""
    cpu = make_cpu(64, program(text), ALL_FEATURES, **registers)
    cpu.use_blocks = use_blocks
    cpu.hot = hot
    return cpu


def both(text: str, **registers: int) -> tuple[Cpu, Cpu]:
    """The same machine on the step engine and on blocks."""
    return machine(text, False, **registers), machine(text, True, **registers)


def same(stepped: Cpu, translated: Cpu) -> None:
    """Registers, count and RAM are equal."""
    assert visible_state(translated) == visible_state(stepped)
    assert translated.retired == stepped.retired
    assert np.array_equal(stepped.memory.pool, translated.memory.pool)


def paged(cpu: Cpu) -> Cpu:
    """Map the first 2 MiB one to one in small pages, so that a test can change one of them."""
    for table, entry in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
        cpu.memory.write(table, (entry | 3).to_bytes(8, "little"))
    for n in range(256):
        set_page(cpu, n << 12, n << 12)
    cpu.cr3 = PML4
    cpu.cr4 |= CR4_PAE
    cpu.cr0 |= CR0_PG
    cpu.flush_tlb()
    cpu.update_mode()
    return cpu


def set_page(cpu: Cpu, linear: int, physical: int, rights: int = 0x63) -> None:
    """Write a page-table entry behind the CPU's back; accessed and dirty already."""
    cpu.memory.write(PT + (linear >> 12) * 8, (physical | rights).to_bytes(8, "little"))


# ---- hotness -----------------------------------------------------------------------------------------------


def test_code_is_translated_at_its_hot_th_arrival_and_not_before() -> None:
    cpu = machine("again: inc rax; jmp again", hot=HOT)
    cpu.run(2 * HOT)
    assert not cpu.code.blocks
    cpu.run(2 * HOT + 4)
    assert list(cpu.code.blocks) == [CODE]


def test_straight_code_that_runs_once_is_not_translated() -> None:
    cpu = machine("; ".join(["inc rax"] * 100) + "; stop: hlt")
    cpu.run(101)
    assert not cpu.code.blocks
    assert cpu.rax == 100


def test_without_use_blocks_nothing_is_translated() -> None:
    cpu = machine("again: inc rax; jmp again", use_blocks=False)
    cpu.run(1000)
    assert not cpu.code.blocks
    assert not cpu.code.heat


def test_what_cannot_be_translated_is_tried_once() -> None:
    cpu = machine("again: lsl eax, ebx; jmp again")
    cpu.run(100)
    assert cpu.code.heat[CODE] == NEVER_HOT
    assert CODE not in cpu.code.blocks


def test_the_counters_are_bounded() -> None:
    cpu = machine("again: inc rax; jmp again", hot=HOT)
    cpu.code.heat.update(dict.fromkeys(range(0x10_0000, 0x10_0000 + MAX_HEAT), 1))
    cpu.run(10)
    assert len(cpu.code.heat) < 10


def test_a_full_cache_of_translations_starts_again() -> None:
    cpu = machine("again: inc rax; jmp again")
    cpu.run(20)
    first = cpu.code.blocks[CODE]
    cpu.memory.write(0x2000, program("more: inc rbx; jmp more", 0x2000))
    cpu.cache.translated = MAX_TRANSLATED
    cpu.rip = 0x2000
    cpu.run(40)
    assert CODE not in cpu.code.blocks
    cpu.rip = CODE
    cpu.run(60)
    assert cpu.code.blocks[CODE] is not first
    assert (cpu.rax, cpu.rbx) == (20, 10)


def test_a_cache_of_instructions_that_overflows_while_translating_does_no_harm() -> None:
    for room in range(1, 12):
        never = "; ".join(f"add rbx, {n}" for n in range(1, 9))  # first decoded by the translation
        step = "pdep rdx, rdx, rdx"  # which blocks do not hold
        stepped, cpu = both(f"again: {step}; inc rax; jnz over; {never}; jmp again; over: {step}; jmp again")
        cpu.run(1)
        stepped.run(1)
        cpu.cache.count = MAX_INSNS - room
        for until in (200, 400):
            stepped.run(until)
            cpu.run(until)
            same(stepped, cpu)
            for one in (stepped, cpu):
                assert one.memory.read(CODE + 10, 4).hex() in ("4883c301", "4883c340")
                one.memory.write(CODE + 13, b"\x40")  # the immediate of the first ADD
                one.rax = -5 & (1 << 64) - 1  # from 0 on the ADDs run


# ---- invalidation ------------------------------------------------------------------------------------------


def test_a_block_that_patches_its_next_instruction_executes_the_new_one() -> None:
    text = "again: inc rax; xor byte ptr [patched+2], 0x38; patched: add rbx, 5; jmp again"  # ADD and CMP
    for until in range(1, 60):
        stepped, cpu = both(text)
        stepped.run(until)
        cpu.run(until)
        same(stepped, cpu)


STORES = ("mov [rdi], ecx", "add [rdi], cx", "mov [rdi], rcx", "push rcx", "rol dword ptr [rdi], 4")


@pytest.mark.parametrize("text", STORES)
@pytest.mark.parametrize("offset", range(8))
def test_a_store_that_for_once_goes_into_the_block_itself_is_seen_at_once(text: str, offset: int) -> None:
    """Aligned, unaligned, and through RSP; the block is hot by then."""
    patched = "mov ebx, 0x11223344; mov edx, 0x55667788; lea rsi, [rsi+rbx]; lea rsi, [rsi+rdx]"
    pair = both(f"again: {text}; align 16; {patched}; jmp again", rcx=0x41)
    for cpu in pair:
        cpu.rdi = cpu.rsp = 0x2_0000
        if text.startswith("push"):
            cpu.rsp = 0x1_0000
        cpu.run(52)
        while cpu.rip != CODE:
            cpu.run(cpu.retired + 1)
        assert not cpu.use_blocks or cpu.code.blocks[CODE].length > 15
        cpu.rdi = CODE + 16 + 1 + offset
        cpu.rsp = CODE + 16 + 1 + offset + 8
        cpu.run(cpu.retired + 60)
    same(*pair)


def test_a_store_from_another_block_invalidates() -> None:
    text = """
        again: mov ecx, 4
        first: add rbx, 5
        loop first
        mov ecx, 3
        second: add byte ptr [first+3], 1
        loop second
        jmp again
    """
    stepped, cpu = both(text)
    for until in range(20, 700, 31):
        stepped.run(until)
        cpu.run(until)
        same(stepped, cpu)


def test_dma_into_a_block_invalidates_it() -> None:
    cpu = machine("again: add rax, 1; jmp again")
    cpu.run(100)
    assert cpu.code.blocks
    cpu.memory.write(CODE + 3, b"\x07")
    assert not cpu.code.blocks
    before = cpu.rax
    cpu.run(102)
    assert cpu.rax == before + 7


def test_dma_beside_a_block_in_its_page_leaves_it() -> None:
    cpu = machine("again: add rax, 1; jmp again")
    cpu.run(100)
    block = cpu.code.blocks[CODE]
    cpu.memory.write(CODE + 0x800, b"\x07")
    assert cpu.code.blocks[CODE] is block


def test_a_store_through_an_alias_of_the_code_page_invalidates() -> None:
    text = f"again: mov ecx, 6; first: add rbx, 5; loop first; inc byte ptr [{ALIAS + 8}]; jmp again"
    code = program(text)
    assert code[8] == 5
    stepped, cpu = both(text)
    for one in (stepped, cpu):
        one.memory.add_ram(ALIAS, 0x1000, name="alias", host=CODE)
    for until in range(20, 700, 31):
        stepped.run(until)
        cpu.run(until)
        same(stepped, cpu)
    assert code[8] != cpu.memory.read(CODE + 8, 1)[0]


def test_a_data_page_that_becomes_code_is_watched_from_then_on() -> None:
    """A block stores into a page that holds no code yet; later that page does, and stores are seen."""
    text = """
        again: mov eax, 0x00c3c3ff
        mov [0x6000], eax
        mov dword ptr [0x6000], 0xc301eb83
        inc rdx
        cmp rdx, 20
        jb again
        call 0x6000
        add byte ptr [0x6002], 3
        call 0x6000
        jmp again
    """
    stepped, cpu = both(text)
    for until in range(50, 900, 41):
        stepped.run(until)
        cpu.run(until)
        same(stepped, cpu)


# ---- mappings ----------------------------------------------------------------------------------------------


def test_a_tlb_flush_finds_the_same_block_again() -> None:
    cpu = machine("again: add rax, 1; jmp again")
    cpu.run(100)
    block = cpu.code.blocks[CODE]
    cpu.flush_tlb()
    assert not cpu.code.blocks
    cpu.run(110)
    assert cpu.code.blocks[CODE] is block


def test_a_remapped_code_page_runs_the_new_code() -> None:
    cpu = paged(machine("again: add rax, 1; jmp again"))
    cpu.memory.write(0x6000, program("again: add rax, 1000; jmp again"))
    cpu.run(100)
    assert cpu.code.blocks
    set_page(cpu, CODE, 0x6000)
    cpu.flush_tlb()
    before = cpu.rax
    cpu.run(120)
    assert cpu.rax == before + 10_000


def test_a_block_over_two_pages_dies_when_its_second_page_is_remapped() -> None:
    second = CODE + 0x1000
    cpu = paged(machine(f"add rax, 1; jmp {second:#x}"))
    cpu.memory.write(second, program(f"inc rbx; jmp {CODE:#x}", second))
    cpu.memory.write(0x6000, program(f"dec rbx; jmp {CODE:#x}", second))
    cpu.run(100)
    assert cpu.code.blocks[CODE].pages == {CODE >> 12: CODE >> 12, second >> 12: second >> 12}
    set_page(cpu, second, 0x6000)
    cpu.flush_tlb()
    cpu.run(140)
    assert (cpu.rax, cpu.rbx) == (35, 15)


def test_a_code_page_made_no_execute_faults_in_the_middle_of_a_run() -> None:
    text = "; ".join(["inc rax"] * 4) + f"; jmp {CODE + 0x1000:#x}"
    pair = []
    for use_blocks in (False, True):
        cpu = paged(machine(text, use_blocks))
        cpu.memory.write(CODE + 0x1000, program(f"inc rbx; jmp {CODE:#x}", CODE + 0x1000))
        cpu.run(70)
        set_page(cpu, CODE + 0x1000, 0x2000, 0x62)  # not present
        cpu.flush_tlb()
        cpu.run(90)
        pair.append(cpu)
    assert pair[0].cr2 == pair[1].cr2 == CODE + 0x1000
    same(*pair)


def test_privilege_levels_have_blocks_of_their_own() -> None:
    cpu = machine("again: add rax, 1; jmp again")
    cpu.run(100)
    kernel = cpu.code
    cpu.cpl = 3
    cpu.update_mode()
    assert cpu.code is not kernel
    assert not cpu.code.blocks
    cpu.run(200)
    assert cpu.code.blocks[CODE] is not kernel.blocks[CODE]


def test_32_bit_code_is_translated_too() -> None:
    cpu = make_cpu(32, bytes.fromhex("40ebfd"))  # inc eax; jmp to it
    cpu.use_blocks = True
    cpu.hot = 0
    assert cpu.run(1000) == Budget(1000)
    assert cpu.code.blocks
    assert cpu.rax == 500


# ---- events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ("again: jmp again", "again: add rax, rbx; lea rcx, [rcx+rax]; jmp again"))
def test_a_kick_from_another_thread_ends_a_loop_of_blocks(text: str) -> None:
    cpu = machine(text)
    timer = threading.Timer(0.05, cpu.kick)
    timer.start()
    reason = cpu.run(1 << 62)
    timer.join()
    assert isinstance(reason, Budget)
    assert reason.retired < 1 << 40


def test_flags_are_settled_whenever_run_returns() -> None:
    cpu = machine("again: add al, 100; mov rdx, [rdi]; jmp again", rdi=0x2_0000)
    for until in range(20, 40):
        cpu.run(until)
        assert cpu.pending_flags is None
    cpu.memory.set_mmio([(0x2_0000, 0x1000)])
    reason = cpu.run(100)
    assert isinstance(reason, MmioRead)
    assert cpu.pending_flags is None


def test_single_stepping_leaves_blocks_alone_and_traps_after_each_instruction() -> None:
    pair = []
    for cpu in both("again: add rax, 3; adc rbx, rax; jmp again"):
        cpu.run(100)
        cpu.tf = 1
        cpu.request_attention()
        cpu.run(101)  # the instruction; its trap finds no IDT and shuts down
        pair.append((cpu.run(110), visible_state(cpu)))
    assert pair[0] == pair[1]


def test_an_exit_in_a_block_names_the_instruction_and_its_destination() -> None:
    reasons = []
    for cpu in both("again: inc rax; movsx ebx, byte ptr [rdi]; jmp again", rdi=0x2_0000):
        cpu.run(50)
        cpu.memory.set_mmio([(0x2_0000, 0x1000)])
        reasons.append((cpu.run(100), cpu.rip, cpu.retired))
    assert reasons[0] == reasons[1]
    assert reasons[0][0] == MmioRead(0x2_0000, 1, reg=3, reg_width=4, signed_ext=True)


def test_translating_sets_no_accessed_bit_of_a_page_that_is_not_executed() -> None:
    text = "again: inc rax; cmp rax, 900; jb skip; jmp 0x2000; skip: jmp again"
    bits = []
    for use_blocks in (False, True):
        cpu = paged(machine(text, use_blocks))
        cpu.memory.write(0x2000, program("inc rbx; jmp 0x2000", origin=0x2000))
        set_page(cpu, 0x2000, 0x2000, rights=0x03)  # not accessed yet
        cpu.flush_tlb()
        for until in (3000, 3700):
            cpu.run(until)
            bits.append(bytes(cpu.memory.view[PT + 16 : PT + 24]))
    assert bits[:2] == bits[2:]
    assert bits[0] != bits[1], "the page was executed in the end"
