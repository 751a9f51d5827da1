"""Vector instructions in translated code do what their functions do, however the registers are held.

Cases are the native oracle's, of every legacy and VEX form. Each runs as a block of its own four times: with
the registers as numbers, as pairs of doubles, as both and mixed. PYSIM_ENGINE_CASES scales their number.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection

import numpy as np
import pytest

from isa import translate
from isa.assembler import assemble
from isa.cpu import Cpu
from isa.decode import Insn
from isa.faults import GeneralProtection
from isa.lanes import entry_lines
from isa.state import CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT
from isa.translate import BAILED, CodeSource, draft_of, explained
from tests.isa.machine import ALL_FEATURES, CODE, make_cpu, vector_state, visible_state
from tests.oracles import vector_model
from tests.oracles.vector_cases import cases
from tests.oracles.vector_forms import forms, vex_forms

ROUNDS = max(1, int(os.environ.get("PYSIM_ENGINE_CASES", "150")) // 75)
SEED = int(os.environ.get("PYSIM_ENGINE_SEED", "1"))
DATA = 0x2_0000
ONE, TENTH, NAN, DENORMAL = 0x3FF0 << 48, 0x3FB9_9999_9999_999A, 0x7FF8_0000_0000_0001, 1
MASKED, INEXACT = 0x1F80, 0x1FA0  # MXCSR without and with its precision flag


class TranslatedCpu(Cpu):
    """A CPU that executes what `_bind` gives as a block of one instruction."""

    __slots__ = ("translated",)
    translated: Counter[str]

    def _bind(self, instruction: object, raw: bytes, ip: int) -> Insn:
        insn = super()._bind(instruction, raw, ip)
        insn.page = 0

        def fetch(at: int) -> Insn:
            if at != ip:
                raise GeneralProtection(0, "the block ends here")
            return insn

        def run(cpu: Cpu, *operands: object) -> None:
            source = CodeSource(fetch, self.definition_of, self.code.mode)
            draft = draft_of(source, (ip,), shortest=1)
            if draft is not None:
                before = visible_state(cpu), vector_state(cpu)[:-1]
                left = draft.realise(source).run(cpu, cpu.retired + 1, 0)
                cpu.settle_flags()
                if left != BAILED:
                    self.translated["done"] += 1
                    return
                self.translated["left"] += 1
                cpu.rip = before[0][0]
                assert (visible_state(cpu), vector_state(cpu)[:-1]) == before
            insn.function(cpu, *operands)

        return Insn(ip, raw, insn.code, run, insn.arguments, insn.next)


def as_pairs(used: Collection[str]) -> list[str]:
    """`entry_lines` for registers that are pairs of doubles."""
    lines = []
    for line in entry_lines(used):
        lines.append(line)
        if line.startswith("lo"):
            n = line[2:].partition(" ")[0]
            lines += [f"lo{n}, hi{n} = v_split(xmm{n})", f"xmm{n} = None"]
    return lines


def as_both(used: Collection[str]) -> list[str]:
    """`entry_lines` for registers that are numbers and pairs of doubles."""
    return [line for line in as_pairs(used) if not line.endswith("= None") or line.startswith("lo")]


def as_mixed(used: Collection[str]) -> list[str]:
    """`entry_lines` for registers of which the odd ones are pairs of doubles, the others numbers."""
    odd = {local for local in used if local[-1] in "13579"}
    return as_pairs(odd) + entry_lines(set(used) - odd)


@pytest.mark.parametrize("entry", (entry_lines, as_pairs, as_both, as_mixed))
def test_every_vector_form_does_in_a_block_what_its_function_does(
    entry: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate, "entry_lines", entry)
    stepped = vector_model.Model()
    monkeypatch.setattr(vector_model, "Cpu", TranslatedCpu)
    translated = vector_model.Model()
    cpu = translated.cpu
    assert isinstance(cpu, TranslatedCpu)
    cpu.translated = Counter()
    wrong = []
    count = 0
    for name, case in cases(SEED, ROUNDS, among=forms() + vex_forms()):
        one, other = stepped.run(case), translated.run(case)
        count += 1
        if one != other:
            found = vector_model.differences(name, case, other, one)
            wrong.append(f"{name} {case.code.hex()} mxcsr {case.fx.mxcsr:#x}: {'; '.join(found)}")
    assert not wrong, f"{len(wrong)} of {count} cases differ, among them:\n" + "\n".join(wrong[:20])
    assert cpu.translated["done"] > count * 0.4


# ---- a few instructions together ---------------------------------------------------------------------------


def machine(text: str, use_blocks: bool = True, **registers: int) -> Cpu:
    """A CPU at `text` with SSE enabled, translating what is arrived at for the second time."""
    code = assemble(text.replace(";", "\n"), bits=64, origin=CODE)
    cpu = make_cpu(64, code, ALL_FEATURES, **{"cr4": CR4_OSFXSR | CR4_OSXMMEXCPT, **registers})
    cpu.use_blocks, cpu.hot = use_blocks, 1
    for n in range(16):
        cpu.memory.write(DATA + 8 * n, (TENTH + (n << 40)).to_bytes(8, "little"))
    return cpu


def agree(text: str, count: int = 400, **registers: int) -> Cpu:
    """Run on both engines; the same in the end. The one with blocks."""
    pair = [machine(text, use_blocks, **registers) for use_blocks in (False, True)]
    for cpu in pair:
        cpu.run(count)
    stepped, translated = pair
    assert visible_state(translated) == visible_state(stepped)
    assert vector_state(translated) == vector_state(stepped)
    assert stepped.memory.read(DATA, 0x200) == translated.memory.read(DATA, 0x200)
    assert translated.code.blocks
    return translated


def body_of(text: str) -> str:
    """The translated loop at `text`, without what is around it."""
    cpu = machine(text)
    lines = explained(CodeSource(cpu.code.__getitem__, cpu.definition_of, cpu.code.mode), (CODE,)).split("\n")
    first = next(n for n, line in enumerate(lines) if line.strip().startswith("for n in"))
    last = next((n for n, line in enumerate(lines) if line.strip().startswith("except")), len(lines))
    return "\n".join(lines[first:last])


DOT = "again: movsd xmm0, [rsi]; mulsd xmm0, [rdi]; addsd xmm1, xmm0; jmp again"


def test_a_loop_over_doubles_neither_packs_nor_unpacks_them() -> None:
    body = body_of(DOT)
    assert "v_join" not in body
    assert "v_split" not in body.replace("v_split(load(", "")
    assert "lo0 * " in body
    assert "lo1 + lo0" in body


def test_a_loop_over_integers_works_on_numbers() -> None:
    body = body_of("again: movdqu xmm0, [rsi]; pcmpeqb xmm0, xmm1; pmovmskb eax, xmm0; jmp again")
    assert "v_dd" not in body
    assert "xmm0 ^ xmm1" in body


def test_a_register_cleared_with_itself_is_zero_both_ways() -> None:
    body = body_of("again: pxor xmm3, xmm3; jmp again")
    assert "xmm3 = 0" in body
    assert "lo3 = hi3 = 0.0" in body


@pytest.mark.parametrize("control", (MASKED, INEXACT, 0x9FC0, 0x3FA0))
def test_a_sum_of_products_ends_alike_whatever_mxcsr_says(control: int) -> None:
    cpu = agree(DOT, rsi=DATA, rdi=DATA + 24, mxcsr=control)
    assert cpu.xmm1


def test_exact_arithmetic_leaves_the_precision_flag_clear_and_the_first_inexact_result_sets_it() -> None:
    text = "again: addsd xmm1, xmm0; mulsd xmm2, xmm0; jmp again"
    assert agree(text, xmm0=ONE, xmm1=ONE, xmm2=ONE, mxcsr=MASKED).mxcsr == MASKED
    assert agree(text, xmm0=ONE, xmm1=TENTH, xmm2=ONE, mxcsr=MASKED).mxcsr == INEXACT


@pytest.mark.parametrize("strange", (NAN, DENORMAL, 0x7FF0 << 48, 0xFFF4 << 48))
def test_strange_numbers_are_moved_in_blocks_and_computed_outside(strange: int) -> None:
    text = """
        again: movsd xmm0, [rsi]
        movapd xmm1, xmm0
        unpcklpd xmm1, xmm0
        movups [rsi+16], xmm1
        addsd xmm0, xmm1
        movsd [rsi+32], xmm0
        jmp again
    """
    pair = [machine(text, use_blocks, rsi=DATA, mxcsr=INEXACT) for use_blocks in (False, True)]
    for cpu in pair:
        cpu.memory.write(DATA, strange.to_bytes(8, "little"))
        cpu.run(300)
    assert vector_state(pair[0]) == vector_state(pair[1])
    assert pair[0].memory.read(DATA, 64) == pair[1].memory.read(DATA, 64)
    assert pair[1].memory.read(DATA + 16, 16) == 2 * strange.to_bytes(8, "little")


def test_a_pair_becomes_a_number_for_integers_and_a_pair_again() -> None:
    agree(
        "again: addsd xmm0, xmm1; pshufd xmm0, xmm0, 0x4e; paddq xmm2, xmm0; mulsd xmm0, xmm1; jmp again",
        xmm0=TENTH | ONE << 64, xmm1=ONE + (1 << 40), mxcsr=INEXACT,
    )  # fmt: skip


@pytest.mark.parametrize("mask", (1 << 63, 1 << 127 | 1 << 63, (1 << 63) - 1, (1 << 127) - 1 ^ 1 << 63, 3))
def test_absolute_values_and_changes_of_sign_are_bit_masks(mask: int) -> None:
    text = "again: addpd xmm0, xmm1; andpd xmm0, xmm2; addpd xmm0, xmm1; xorpd xmm0, xmm2; jmp again"
    agree(text, xmm0=TENTH | ONE << 64 | 1 << 127, xmm1=TENTH << 64 | TENTH, xmm2=mask, mxcsr=INEXACT)


def test_a_vex_instruction_zeroes_the_upper_half_where_a_legacy_one_leaves_it() -> None:
    text = "again: addsd xmm0, xmm2; vaddsd xmm1, xmm0, xmm2; jmp again"
    registers = {"ymmh0": 7, "ymmh1": 8, "xmm2": ONE, "cr4": CR4_OSFXSR | CR4_OSXMMEXCPT | 1 << 18, "xcr0": 7}
    cpu = agree(text, mxcsr=INEXACT, **registers)
    assert (cpu.ymmh0, cpu.ymmh1) == (7, 0)


def test_blocks_made_before_cr0_ts_do_not_run_with_it() -> None:
    """Lazy FPU switching: the next SSE instruction is #NM, which here has no handler."""
    pair = [machine("again: addsd xmm0, xmm1; jmp again", b, xmm1=ONE) for b in (False, True)]
    reasons = []
    for cpu in pair:
        cpu.run(100)
        cpu.cr0 |= CR0_TS
        cpu.update_mode()
        reasons.append(cpu.run(200))
    assert reasons[0] == reasons[1]
    assert "TripleFault" in type(reasons[0]).__name__
    assert pair[1].retired == pair[0].retired == 101


def test_clts_finds_the_blocks_again() -> None:
    cpu = machine("again: addsd xmm0, xmm1; clts; jmp again", xmm1=ONE)
    cpu.run(100)
    code = cpu.code
    cpu.cr0 |= CR0_TS
    cpu.update_mode()
    assert cpu.code is not code
    cpu.rip = CODE + 4
    cpu.run(cpu.retired + 1)
    assert cpu.code is code


def test_a_control_word_loaded_between_two_runs_of_a_block_holds() -> None:
    text = """
        again: mov ecx, 5
        inner: divsd xmm0, xmm1
        dec ecx
        jnz inner
        xor dword ptr [rsi], 0x6000
        ldmxcsr [rsi]
        addsd xmm0, xmm2
        jmp again
    """
    pair = [machine(text, b, rsi=DATA, xmm0=TENTH, xmm1=TENTH ^ 1 << 44, xmm2=ONE) for b in (False, True)]
    for cpu in pair:
        cpu.memory.write(DATA, INEXACT.to_bytes(4, "little"))
        cpu.run(1000)
    assert vector_state(pair[0]) == vector_state(pair[1])


@pytest.mark.parametrize("offset", (0xFF0, 0xFF1, 0xFF8, 0xFFF))
@pytest.mark.parametrize(
    "text", ("movups xmm0, [rsi]", "movdqu xmm0, [rsi]", "movups [rsi], xmm0", "movq xmm0, [rsi]",
             "movsd [rsi], xmm0", "movdqu [rsi], xmm1")
)  # fmt: skip
def test_accesses_at_the_end_of_a_page(text: str, offset: int) -> None:
    agree(f"again: {text}; addpd xmm0, xmm2; paddd xmm1, xmm2; jmp again", rsi=DATA + offset - 0x1000,
          xmm0=TENTH, xmm1=5, xmm2=ONE, mxcsr=INEXACT)  # fmt: skip


@pytest.mark.parametrize("short", (1, 8, 15))
@pytest.mark.parametrize(
    "text", ("movups xmm0, [rsi]", "movdqu xmm0, [rsi]", "addps xmm0, xmm1; movups [rsi], xmm0",
             "movdqu [rsi], xmm2", "vmovdqu ymm0, [rsi]", "vmovdqu [rsi], ymm0", "vmovups [rsi], xmm1")
)  # fmt: skip
def test_an_access_over_the_end_of_ram_leaves_like_one_outside_of_blocks(text: str, short: int) -> None:
    wide = {"cr4": CR4_OSFXSR | CR4_OSXMMEXCPT | 1 << 18, "xcr0": 7}
    pair = [machine(f"again: {text}; inc rax; jmp again", b, rsi=DATA, **wide) for b in (False, True)]
    for cpu in pair:
        cpu.run(90)
        cpu.rsi = (1 << 20) - 32 + short if "ymm" in text else (1 << 20) - 16 + short
    assert pair[1].code.blocks
    assert pair[0].run(120) == pair[1].run(120)
    assert visible_state(pair[0]) == visible_state(pair[1])
    assert np.array_equal(pair[0].memory.pool, pair[1].memory.pool)


@pytest.mark.parametrize("text", ("mulsd xmm0, xmm1", "mulpd xmm0, xmm1", "divsd xmm0, xmm2"))
@pytest.mark.parametrize("control", (MASKED, INEXACT))
def test_a_product_too_small_for_a_double_sets_the_underflow_flag(text: str, control: int) -> None:
    tiny, huge = 0x20 << 48, 0x7FE0 << 48
    values = {"xmm0": tiny | ONE << 64, "xmm1": tiny | ONE << 64, "xmm2": huge | ONE << 64}
    pair = [machine(f"again: addsd xmm4, xmm5; {text}; jmp again", b, mxcsr=control) for b in (False, True)]
    for cpu in pair:
        cpu.run(90)  # zeros
        for name, value in values.items():
            setattr(cpu, name, value)
        cpu.run(120)
        assert cpu.mxcsr & 0x30 == 0x30
    assert vector_state(pair[0]) == vector_state(pair[1])
    assert pair[1].code.blocks


@pytest.mark.parametrize(
    "text", ("minsd xmm0, xmm1", "maxsd xmm0, xmm1", "minpd xmm0, xmm1", "maxpd xmm0, xmm1")
)
def test_of_two_zeros_the_second_is_both_the_smaller_and_the_larger_one(text: str) -> None:
    for first, second in ((0, 1 << 63), (1 << 63, 0)):
        registers = {"xmm0": first | first << 64, "xmm1": second | second << 64}
        cpu = agree(f"again: {text}; jmp again", mxcsr=INEXACT, **registers)
        assert cpu.xmm0 & (1 << 64) - 1 == second


@pytest.mark.parametrize("text", ("cvttsd2si rax, xmm0", "cvtsd2si eax, xmm0"))
@pytest.mark.parametrize("number", (0x4004 << 48, 0xC004 << 48, 0x400C << 48, 0x43E0 << 48, 0x41E0 << 48))
def test_conversions_to_integers_round_and_set_flags(text: str, number: int) -> None:
    for control in (MASKED, INEXACT):
        pair = [
            machine(f"again: addsd xmm4, xmm5; {text}; jmp again", b, mxcsr=control) for b in (False, True)
        ]
        for cpu in pair:
            cpu.run(90)
            cpu.xmm0 = number
            cpu.run(120)
        assert visible_state(pair[0]) == visible_state(pair[1])
        assert vector_state(pair[0]) == vector_state(pair[1])
        assert pair[1].code.blocks


@pytest.mark.parametrize("number", ((1 << 53) + 1, (1 << 53), -(1 << 53) - 1 & (1 << 64) - 1, (1 << 63) - 1))
def test_conversions_from_integers_round_and_set_flags(number: int) -> None:
    for control in (MASKED, INEXACT):
        agree("again: cvtsi2sd xmm0, rax; addsd xmm1, xmm0; jmp again", rax=number, mxcsr=control)


@pytest.mark.parametrize("text", ("sqrtsd xmm0, xmm1", "sqrtpd xmm0, xmm1"))
def test_the_root_of_a_negative_number_is_invalid(text: str) -> None:
    cpu = machine(f"again: addsd xmm4, xmm5; {text}; jmp again", xmm1=ONE, mxcsr=INEXACT)
    cpu.run(90)
    cpu.xmm1 = 1 << 63 | ONE
    cpu.run(120)
    assert cpu.mxcsr == INEXACT | 1
    assert cpu.xmm0 & (1 << 64) - 1 == 0xFFF8 << 48


def test_division_by_zero_sets_its_flag() -> None:
    text = "again: addsd xmm4, xmm5; divsd xmm0, xmm1; jmp again"
    cpu = machine(text, xmm0=ONE, xmm1=ONE, mxcsr=INEXACT)
    cpu.run(90)
    cpu.xmm1 = 0
    cpu.run(120)
    assert cpu.mxcsr == INEXACT | 4
    assert cpu.xmm0 == 0x7FF0 << 48


def test_an_unmasked_exception_faults_at_its_instruction() -> None:
    text = "again: addsd xmm0, xmm1; inc rax; divsd xmm0, xmm2; jmp again"
    pair = [machine(text, b, xmm0=ONE, xmm1=ONE, xmm2=ONE, mxcsr=0x1D80) for b in (False, True)]
    for cpu in pair:
        cpu.run(100)
        cpu.xmm2 = 0  # divide by zero is unmasked
        reason = cpu.run(200)
        assert "TripleFault" in type(reason).__name__  # there is no IDT
        assert cpu.last_ip == CODE + 7
    assert vector_state(pair[0]) == vector_state(pair[1])
    assert visible_state(pair[0]) == visible_state(pair[1])
