"""Translated code does what the instruction functions do: flags, order, bails, exits, loops, budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from isa.assembler import assemble
from isa.cpu import Cpu
from isa.decode import Insn
from isa.exits import Budget, ExitReason, MmioRead, MmioWrite, NestedPageFault
from isa.faults import Fault, GeneralProtection
from isa.memory import READ, WRITE
from isa.state import M64
from isa.translate import BAILED, CodeSource, Translation, compile_recipe, draft_of, explained
from tests.isa.machine import ALL_FEATURES, CODE, make_cpu, visible_state

DATA = 0x2_0000
DEVICE = 0x3_0000
HERE = 0x40_0000  # behind RAM: nothing is there


def program(text: str) -> bytes:
    """Machine code of `text`, instructions separated by semicolons or lines."""
    return assemble(text.replace(";", "\n"), bits=64, origin=CODE)


def machine(code: bytes, use_blocks: bool, **registers: int) -> Cpu:
    """`make_cpu` with a device page, translating what is arrived at for the second time."""
    cpu = make_cpu(64, code, ALL_FEATURES, **registers)
    cpu.memory.set_mmio([(DEVICE, 0x1000)])
    cpu.use_blocks = use_blocks
    cpu.hot = 1
    return cpu


def agree(text: str, stops: list[int], **registers: int) -> Cpu:
    """Run on both engines to each count of `stops`; the same at each. Exits are answered with 0x55AA...

    A block runs only where it fits between two stops.
    """
    code = program(text)
    stepped, translated = machine(code, False, **registers), machine(code, True, **registers)
    for until in stops:
        for _ in range(100):
            reason, other = stepped.run(until), translated.run(until)
            assert reason == other
            assert visible_state(translated) == visible_state(stepped), f"at {until}: {reason}"
            assert translated.retired == stepped.retired
            assert np.array_equal(stepped.memory.pool, translated.memory.pool)
            if isinstance(reason, Budget):
                break
            stepped.complete(0x55AA_1234_55AA_1234)
            translated.complete(0x55AA_1234_55AA_1234)
    assert translated.code.blocks, "nothing was translated"
    return translated


def agree_at_each(text: str, counts: Iterable[int], **registers: int) -> None:
    """`agree` with fresh machines for each of the counts to stop at."""
    for count in counts:
        agree(text, [count], **registers)


@dataclass(frozen=True)
class Block:
    """A function made of one trace."""

    made: Translation
    source: str

    @property
    def length(self) -> int:
        """Instructions."""
        return self.made.length

    def run(self, cpu: Cpu, until: int) -> bool:
        """Run it; True if it gave up in the middle."""
        return self.made.run(cpu, until, 0) == BAILED


def block_of(text: str, **registers: int) -> tuple[Cpu, Block]:
    """A machine at a block made of all of `text`."""
    code = program(text)
    cpu = machine(code, True, **registers)

    def fetch(ip: int) -> Insn:
        if not CODE <= ip < CODE + len(code):
            raise GeneralProtection(0, "the text ends here")
        return cpu.code[ip]

    source = CodeSource(fetch, cpu.definition_of, cpu.code.mode)
    draft = draft_of(source, (CODE,), shortest=1)
    assert draft is not None
    return cpu, Block(draft.realise(source), explained(source, (CODE,)))


def lines_of(block: Block) -> list[str]:
    """The lines of the body, without the disassembly."""
    lines = block.source.splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip().startswith(("while ", "for n in")))
    return [line.strip() for line in lines[start:] if not line.strip().startswith("#")]


# ---- templates and folding --------------------------------------------------------------------------------


def test_a_move_between_registers_is_one_assignment() -> None:
    _, block = block_of("mov rax, rbx; mov rcx, rdx")
    assert "rax = rbx" in lines_of(block)
    assert "rcx = rdx" in lines_of(block)


def test_flags_that_nothing_reads_are_not_computed() -> None:
    _, block = block_of("add rax, rbx; add rax, rcx; add rax, rdx")
    assert not any(
        line.startswith(("cf =", "of =", "af =", "zf =", "sf =", "pf =")) for line in lines_of(block)
    )


def test_only_the_flag_that_a_branch_reads_is_computed() -> None:
    _, block = block_of("start: dec rax; jnz start")
    computed = [line[:2] for line in lines_of(block) if line[2:5] == " = "]
    assert "zf" in computed
    assert not {"cf", "of", "af", "sf", "pf"} & set(computed)


def test_a_shift_by_a_constant_has_no_condition() -> None:
    _, block = block_of("shl rax, 3; mov rcx, rax")
    assert not any(line.startswith("if") for line in lines_of(block))


def test_the_explained_source_names_each_instruction_above_its_statements() -> None:
    _, block = block_of("mov rax, rbx; mov rcx, rax")
    lines = [line.strip() for line in block.source.splitlines()]
    assert lines[lines.index(f"# {CODE:#x}: mov rax, rbx  [4889d8]") + 1] == "rax = rbx"


@pytest.mark.parametrize(
    "text", ("nop", "endbr64", "nop dword ptr [rax]", "prefetchnta [rax]", "pause", "mfence")
)
def test_an_instruction_that_does_nothing_does_not_end_a_block(text: str) -> None:
    cpu, block = block_of(f"inc rbx; {text}; inc rbx", rax=HERE)
    assert block.length == 3
    assert not block.run(cpu, 100)
    assert cpu.rbx == 2


def test_a_block_of_an_instruction_that_may_not_be_called_does_not_exist() -> None:
    cpu = machine(program("lar eax, ebx; nop"), True)
    assert draft_of(CodeSource(cpu.code.__getitem__, cpu.definition_of, cpu.code.mode), (CODE,)) is None


def test_recipes_with_the_same_text_are_one_function() -> None:
    text = "def recipe(cpu, p0):\n    cpu.zf = not p0\n"
    assert compile_recipe(text) is compile_recipe(text)


def test_the_recipes_kept_are_bounded() -> None:
    assert compile_recipe.cache_info().maxsize is not None


# ---- flags -------------------------------------------------------------------------------------------------

FLAG_MAKERS = (
    "add al, bl", "adc rax, rbx", "sub ax, bx", "sbb eax, ebx", "cmp rax, rbx", "inc rcx", "dec ecx",
    "neg rdx", "and rax, rbx", "test al, al", "shl rax, 1", "shl rax, cl", "sar edx, cl", "shr bl, 3",
    "rol rax, 1", "ror bx, cl", "rcl rax, 1", "rcr edx, cl", "bt rax, rbx",
    "bts rax, 3", "btc rcx, rdx", "imul rax, rbx", "bsf rax, rbx",
    "popcnt rax, rbx", "xadd rax, rbx", "cmpxchg rbx, rcx", "stc", "clc", "cmc", "sahf", "adcx rax, rbx",
    "adox rax, rbx", "shld rax, rbx, 4", "shrd eax, ebx, cl", "xor ecx, ecx", "cmpxchg8b [0x20000]",
)  # fmt: skip
FLAG_READERS = (
    "setc dl",
    "setg sil",
    "cmovo rdi, rax",
    "adc rdi, 0",
    "rcr rsi, 1",
    "cmc",
    "mov rbx, 5; mov rcx, 77",
)


@pytest.mark.parametrize("maker", FLAG_MAKERS)
def test_flags_survive_what_comes_after_them(maker: str) -> None:
    """A recipe runs after the registers and flags that its formula used have changed."""
    for reader in FLAG_READERS:
        text = f"again: {maker}; {reader}; lea rbx, [rbx+5]; lea rcx, [rcx+rax+1]; jmp again"
        agree(text, [30, 60, 91, 122], rax=0x8765_4321_0FED_CBA9, rbx=0x11, rcx=0x41, rdx=0x7FFF_FFFF)


@pytest.mark.parametrize("first", FLAG_MAKERS)
def test_two_instructions_that_set_different_flags_leave_both(first: str) -> None:
    for second in (
        "inc rsi",
        "stc",
        "cmc",
        "bt rdi, 5",
        "rol rdi, 1",
        "shl rdi, cl",
        "adox rsi, rdi",
        "sahf",
    ):
        text = f"again: {first}; {second}; mov rbp, rdi; jmp again"
        agree(text, [25, 50, 83, 111], rax=0x8000_0000_0000_00FF, rbx=0x7F, rcx=0, rdi=0xF0F0, cf=1, of=1)


def test_a_loop_carries_the_carry_of_adc() -> None:
    text = "clc; again: adc rax, rbx; lea rcx, [rcx-1]; jrcxz done; jmp again; done: mov rcx, 9; jmp again"
    agree(text, [30, 61, 93, 140, 200], rax=M64 - 5, rbx=M64 - 1, rcx=7)


def test_a_partial_recipe_keeps_the_flags_from_before_the_block() -> None:
    for flags in range(4):
        agree_at_each("again: inc rax; jmp again", [9, 10, 11], rax=M64 - 5, cf=flags & 1, of=flags >> 1)


def test_a_loop_that_leaves_in_its_first_round_keeps_the_flags_from_before() -> None:
    text = (
        "again: mov rdx, 1; jrcxz out; cmp rax, rbx; dec rcx; jmp again; out: setc al; mov rcx, 0; jmp again"
    )
    agree_at_each(text, range(20, 44), rax=1, rbx=2, rcx=3)


# ---- order and bails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(6))
def test_a_bail_at_any_instruction_leaves_the_state_before_it(at: int) -> None:
    """A load without page behind `at` instructions: registers, flags and count are those before the load."""
    lines = [f"add rax, {3 + n}; sbb rdx, rax; inc qword ptr [0x20000]" for n in range(6)]
    lines.insert(at, "add rsi, [rdi]")
    cpu, block = block_of(";".join(lines), rdi=HERE, rax=M64 - 7, rdx=5)
    other = machine(program(";".join(lines)), False, rdi=HERE, rax=M64 - 7, rdx=5)
    assert block.run(cpu, 1000)
    cpu.settle_flags()
    other.run(3 * at)
    assert cpu.retired == 3 * at
    assert visible_state(cpu) == visible_state(other)
    assert np.array_equal(cpu.memory.pool, other.memory.pool)


WRITERS = (
    "add [rdi], rax", "xadd [rdi], rax", "inc dword ptr [rdi]", "bts [rdi], rcx", "cmpxchg [rdi], rbx",
    "rcl word ptr [rdi], 1", "xchg [rdi], rax", "push rax", "shld [rdi], rax, cl", "not byte ptr [rdi]",
)  # fmt: skip
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")


@pytest.mark.parametrize("text", WRITERS)
def test_a_read_only_target_of_a_read_modify_write_changes_nothing(text: str) -> None:
    cpu, block = block_of(f"sub rdx, 1; {text}; stc", rdi=0x20_0010, rsp=0x20_0010, rax=7, rdx=0, rcx=3, cf=1)
    cpu.memory.add_ram(0x20_0000, 0x1000, READ, name="rom")
    assert block.run(cpu, 1000)
    cpu.settle_flags()
    assert (cpu.retired, cpu.rax, cpu.rsp, cpu.rdx) == (1, 7, 0x20_0010, M64)
    assert cpu.cf == 1


def test_a_loop_that_bails_in_its_second_round_knows_the_flags_of_the_first() -> None:
    text = "again: mov rdx, [rsi]; add rax, rdx; lea rsi, [rsi+0x1000]; jmp again"
    for start in (0xF_D000, 0xF_E008, 0xF_F010):
        code = program(text)
        pair = [machine(code, use, rsi=start, rax=M64) for use in (False, True)]
        for cpu in pair:
            cpu.memory.add_ram(0x10_0000, 0x2000, name="more")
        reasons = [cpu.run(400) for cpu in pair]
        assert reasons[0] == reasons[1]
        assert visible_state(pair[0]) == visible_state(pair[1])
        assert pair[0].retired == pair[1].retired


LOOP_WRITERS = (
    "add [rsi], rax", "sbb [rsi], rax", "inc qword ptr [rsi]", "rol qword ptr [rsi], 3",
    "neg qword ptr [rsi]", "shl dword ptr [rsi], cl", "xadd [rsi], rax",
)  # fmt: skip


@pytest.mark.parametrize("text", LOOP_WRITERS)
def test_a_store_that_bails_in_a_loop_keeps_the_flags_of_the_round_before(text: str) -> None:
    """The values that this round's flags would come from are computed already when the store finds ROM."""
    code = program(f"again: {text}; lea rsi, [rsi+0x800]; jmp again")
    pair = [machine(code, use, rsi=0xF_8000, rax=0x80, rcx=1) for use in (False, True)]
    for cpu in pair:
        cpu.memory.write(0xF_F800, b"\xff" * 8)
        cpu.memory.add_ram(0x10_0000, 0x1000, READ, name="rom")
        cpu.memory.view[0x10_0000:0x10_0008] = (0x7FFF_FFFF_FFFF_FF80).to_bytes(8, "little")
        cpu.tlb_read[0xFF], cpu.tlb_write[0xFF]  # known before the loop arrives
        reason = cpu.run(400)
        assert reason == NestedPageFault(0x10_0000, WRITE)
    assert pair[1].code.blocks
    assert visible_state(pair[0]) == visible_state(pair[1])
    assert pair[0].retired == pair[1].retired == 48


def test_pop_into_rsp_and_push_of_rsp_order_like_the_manual() -> None:
    agree(
        "again: push rsp; pop rax; push rax; pop rsp; xchg [rsp-8], rsp; mov rsp, rax; jmp again",
        [25, 26, 33],
    )


# ---- memory that is not plain ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ("byte", "word", "dword", "qword"))
@pytest.mark.parametrize("address", (DATA, DATA + 1, DATA + 3, DATA + 0xFF9, DATA + 0xFFD, DATA + 0xFFF))
def test_unaligned_and_page_crossing_accesses_reach_every_byte(size: str, address: int) -> None:
    text = f"again: rol {size} ptr [rdi], 3; add {size} ptr [rdi], 0x5b; mov rax, [rdi-3]; jmp again"
    agree_at_each(text, [18, 19, 20, 21, 40], rdi=address)


@pytest.mark.parametrize("offset", (0, 3, 0xFFC, -2))
def test_a_device_is_read_and_written_once_per_access(offset: int) -> None:
    text = "again: inc rbx; add dword ptr [rdi], 5; mov ecx, [rdi]; jmp again"
    code = program(text)
    streams: list[list[ExitReason]] = []
    for use_blocks in (False, True):
        cpu = machine(code, use_blocks, rdi=DEVICE + offset)
        stream: list[ExitReason] = []
        while cpu.retired < 40:
            reason = cpu.run(40)
            stream.append(reason)
            if not isinstance(reason, Budget):
                cpu.complete(0x1020_3040)
        streams.append(stream)
    assert streams[0] == streams[1]
    assert sum(isinstance(reason, MmioRead) for reason in streams[1]) >= 20
    assert any(isinstance(reason, MmioWrite) for reason in streams[1])


def test_fs_and_gs_bases_are_added_and_wrap() -> None:
    code = program("again: add rax, fs:[rcx]; mov gs:[rdx+8], rax; lea rbx, fs:[rcx]; jmp again")
    pair = [machine(code, use, rcx=M64 - 7, rdx=0x100) for use in (False, True)]
    for cpu in pair:
        cpu.fs.base, cpu.gs.base = DATA + 0x10, DATA + 0x200
        cpu.memory.write(DATA + 8, (0x1234).to_bytes(8, "little"))
        cpu.run(43)
    assert visible_state(pair[0]) == visible_state(pair[1])
    assert pair[1].rax == 0x1234 * 11
    assert np.array_equal(pair[0].memory.pool, pair[1].memory.pool)


def test_a_32_bit_address_is_cut_before_the_base_is_added() -> None:
    agree_at_each("again: mov eax, [edi+esi]; add [esi*2+0x10], ecx; jmp again", [13, 14, 15],
          rdi=0xFFFF_FFFF_0001_0000, rsi=0xDEAD_0000_0001_0000)  # fmt: skip


# ---- exits, calls, loops -----------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_leaves_and_stays_like_the_step_engine(condition: str) -> None:
    text = f"""
        again: add al, 37
        j{condition} other
        xor rbx, rax
        jmp again
        other: add rbx, 3
        rol rbx, 5
        jmp again
    """
    agree(text, list(range(30, 500, 31)))


def test_predicted_returns_and_others() -> None:
    """A function that sometimes returns elsewhere than its caller expects."""
    text = """
        again: call work
        back: inc rbx
        jmp again
        elsewhere: add rbx, 100
        jmp again
        work: add al, 77
        jnc fine
        mov qword ptr [rsp], elsewhere
        fine: ret
    """
    agree(text, list(range(40, 400, 29)))


def test_nested_calls_return_in_order() -> None:
    text = """
        again: call one
        inc rax
        jmp again
        one: call two
        add rbx, rax
        ret
        two: push rcx
        inc rcx
        call three
        pop rdx
        ret
        three: xor rdx, rcx
        ret 0
    """
    agree(text, list(range(20, 300, 23)))


def test_an_inner_loop_and_its_outer_loop() -> None:
    inner = "mov ecx, 5; inner: add rax, rcx; loop inner"
    text = f"outer: {inner}; inc rbx; cmp rbx, 30; jne outer; xor ebx, ebx; jmp outer"
    agree(text, list(range(1, 900, 29)))


def test_a_self_loop_ends_at_every_budget() -> None:
    text = "again: add rax, 7; adc rbx, rax; rol rbx, 3; dec rcx; jnz again; mov ecx, 9; jmp again"
    agree_at_each(text, range(24, 90), rcx=9, rax=M64 - 50)


def test_a_jump_to_itself_counts_every_round() -> None:
    cpu = agree("again: jmp again", [2, 3, 50, 1000])
    assert cpu.retired == 1000


def test_a_longer_block_than_the_budget_does_not_run() -> None:
    text = "again: " + "; ".join(f"add rax, {n}" for n in range(1, 21)) + "; jmp again"
    cpu = agree(text, [42, 63, 84, 106, 126, 140, 161])
    assert max(block.length for block in cpu.code.blocks.values()) == 21


@pytest.mark.parametrize(("text", "before", "after"), (("std", 0, 1), ("cld", 1, 0)))
def test_a_block_that_changes_the_direction_flag_leaves_it_changed(
    text: str, before: int, after: int
) -> None:
    cpu, block = block_of(f"mov rax, 1; {text}; mov rbx, 1", df=before)
    assert not block.run(cpu, 100)
    assert cpu.df == after


def test_string_instructions_follow_the_direction_flag_set_in_their_block() -> None:
    text = "mov rsi, 0x20100; mov rdi, 0x20200; again: std; lodsb; stosw; cld; movsq; stosb; std; jmp again"
    cpu = agree(text, [20, 40, 61, 87])
    assert cpu.df in (0, 1)
    agree(text, [59], df=1)


@pytest.mark.parametrize("text", ("div rcx", "idiv cl", "div dword ptr [rdi]"))
def test_a_divide_error_leaves_the_operands(text: str) -> None:
    cpu, block = block_of(f"mov rax, 5; {text}; mov rbx, 1", rdi=DATA, rdx=3)
    assert block.run(cpu, 100)
    assert (cpu.rax, cpu.rdx, cpu.rbx, cpu.retired) == (5, 3, 0, 1)


def test_a_return_to_an_address_that_is_not_canonical_is_left_to_the_step_engine() -> None:
    cpu, block = block_of("mov rax, 1; ret", rsp=DATA)
    cpu.memory.write(DATA, (1 << 60).to_bytes(8, "little"))
    assert block.run(cpu, 100)
    assert (cpu.rsp, cpu.retired) == (DATA, 1)
    insn = cpu.code[cpu.rip]
    with pytest.raises(Fault, match="not canonical"):
        insn.function(cpu, *insn.operands)


def test_every_line_that_may_raise_knows_its_instruction() -> None:
    _, block = block_of("push rax; pop rbx; add [rsi], rcx; mov rdx, [rdi+1]; call next; next: ret")
    lines = [line for line in block.source.splitlines() if not line.strip().startswith("#")]
    known = block.made.run.__globals__["AT"]
    for before, (number, line) in pairwise(enumerate(lines, 1)):
        if any(word in line for word in ("tr[", "tw[", "load(", "store(", "raise ")):
            assert number in known, f"{before}: {line}"
