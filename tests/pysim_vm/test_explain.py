"""explain.py and cli/explain.py: what hot code became, and why other code did not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest
from iced_x86 import Decoder

from isa.assembler import assemble
from isa.decode import disassemble
from pysim_vm import explain
from pysim_vm.cli import run_command
from pysim_vm.cli.status import ExitStatus
from pysim_vm.explain import Profile, functions_of, legend_of, readable
from pysim_vm.symbols import Symbol, SymbolTable
from pysim_vm.vm import AxVM
from tests.pysim_vm.translated_guests import BUDGET, sums

pytestmark = pytest.mark.default_engine

STRINGS = """
        mov ebp, 400
next:   mov rsi, 0x100000
        mov rdi, 0x110000
        mov ecx, 8
        rep movsb
        lsl eax, ecx
        movsd xmm0, [rsi]
        addsd xmm0, xmm1
        push rbp
        pop rbp
        dec ebp
        jnz next
        hlt
"""


def ran(vm: AxVM) -> AxVM:
    vm.run(BUDGET)
    return vm


def address_of(vm: AxVM, text: str) -> int:
    """Where the guest has the first instruction whose text begins like that."""
    code = vm.read_from_guest(0x1000, 0x100)
    addresses = (int(instruction.ip) for instruction in Decoder(64, code, ip=0x1000))
    return next(at for at in addresses if disassemble(code[at - 0x1000 :], 64, at).startswith(text))


def digest(vm: AxVM) -> str:
    cpu = vm.vcpu(0).cpu
    return blake2b(vm.read_from_guest(0, 0x200000) + repr((cpu.rip, cpu.retired)).encode()).hexdigest()


def test_the_hottest_function_is_python_with_the_guests_instructions_above_their_statements() -> None:
    vm = ran(sums())
    text = vm.explain()
    assert re.match(r"\d+ instructions in \d+ traces?, which begins? at 0x", text)
    source = text[text.index("def block") : text.index("\n\nThe names")]
    compile(source, "explained", "exec")
    at = address_of(vm, "movzx edx, byte [rsi]")
    comment = f"# {at:#x}: movzx edx, byte [rsi]  [0fb616]\n"
    assert comment in source
    below = source[source.index(comment) :].splitlines()[1]
    assert below.strip().startswith("rdx = ")


def test_an_address_in_the_middle_of_a_function_finds_it() -> None:
    vm = ran(sums())
    inner = address_of(vm, "add eax, edx")
    assert f"# {inner:#x}: add eax, edx" in vm.explain(inner)


def test_long_numbers_are_hexadecimal_and_comments_stay_as_they_are() -> None:
    source = "rax = rax + 18446744073709551615 & 65535  \n    # 0x10: nop  [12345678]\nx = 1234\n"
    assert (
        readable(source)
        == "rax = rax + 0xffffffffffffffff & 0xffff  \n    # 0x10: nop  [12345678]\nx = 1234\n"
    )


def test_the_guests_symbols_stand_where_they_begin() -> None:
    symbols = SymbolTable([Symbol("again", 0x1010)])
    source = "    # 0x1010: nop  [90]\n    # 0x1011: nop  [90]\n"
    assert readable(source, symbols) == "    # again:\n" + source
    assert readable(source, symbols, base=0x10) == source


def test_the_recipes_have_the_names_under_which_the_source_uses_them() -> None:
    text = ran(sums()).explain()
    used = set(re.findall(r"\bR\d+\b", text[: text.index("The names")]))
    defined = set(re.findall(r"^def (R\d+)\(cpu", text, re.MULTILINE))
    assert used == defined != set()


@pytest.mark.parametrize("program", [STRINGS, None])
def test_every_name_of_a_source_is_in_the_legend(program: str | None) -> None:
    vm = ran(sums() if program is None else AxVM.from_asm(program, engine="block"))
    cpu = vm.vcpu(0).cpu
    patterns = [pattern for pattern, _ in explain.LEGEND]
    for function in functions_of(cpu):
        source = explain.explain_function(cpu, function).source
        assert legend_of(source)
        code = re.sub(r"#.*", "", source)
        names = set(explain._NAME.findall(code)) - explain._FAMILIAR - set(explain.GPR_NAMES)
        assert [name for name in sorted(names) if not any(re.fullmatch(p, name) for p in patterns)] == []


def test_explaining_changes_nothing_in_the_guest() -> None:
    vm = sums()
    vm.run(50_000)
    before = digest(vm)
    for address in (None, 0x1000, 0x1013, 0x101A, 0x5000, 0xFFFF_8000_0000_0000, 1 << 63):
        vm.explain(address)
    assert digest(vm) == before
    vm.run(BUDGET)
    assert digest(vm) == digest(ran(sums()))


# ---- why not -----------------------------------------------------------------------------------------------


def test_code_that_is_not_hot_says_so_and_shows_what_it_would_become() -> None:
    vm = ran(sums())
    text = vm.explain(0x1000)
    assert "0x1000 is not hot: control came there by a jump 1 time, and 256 make a function of it" in text
    assert "If it were, this would become of it" in text
    assert "# 0x1000: mov ebp, 0x28" in text


def test_code_that_was_never_executed_says_so() -> None:
    assert (
        ran(sums()).explain(0x1001)
        == "0x1001 is not translated: no instruction that begins there was executed.\n"
    )


def test_the_step_engine_says_how_to_get_the_other_one() -> None:
    vm = ran(AxVM.from_asm("nop\nhlt", engine="step"))
    assert vm.explain() == 'Nothing is translated: this VM steps; make it with engine = "block".\n'
    assert vm.explain(0x1000) == '0x1000 is not translated: this VM steps; make it with engine = "block".\n'


def test_a_guest_without_hot_code_says_so() -> None:
    vm = ran(AxVM.from_asm("nop\nhlt", engine="block"))
    assert "no run of instructions began 256 times" in vm.explain()


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("rep movsb", "repeats by itself, many elements in one step of the step engine"),
        (
            "lsl eax",
            "lsl eax, ecx (isa.semantics.segment.lsl) is tagged inline=False without called=True",
        ),
    ],
)
def test_an_instruction_that_stays_with_the_step_engine_says_why(instruction: str, reason: str) -> None:
    vm = ran(AxVM.from_asm(STRINGS, engine="block"))
    text = vm.explain(address_of(vm, instruction))
    assert "stays with the step engine" in text
    assert reason in text
    assert "def block" not in text


def test_an_instruction_across_two_pages_says_so() -> None:
    program = assemble("mov ecx, 300\njmp 0x1ffe", bits=64, origin=0x1000)
    loop = assemble("add eax, 1000\ndec ecx\njnz 0x1ffe\nhlt", bits=64, origin=0x1FFE)
    vm = AxVM.from_code(program.ljust(0xFFE, b"\x90") + loop, engine="block")
    vm.run(BUDGET)
    assert "lies across two pages" in vm.explain(0x1FFE)


def test_an_instruction_that_makes_functions_give_up_is_called() -> None:
    body = "next: mov eax, [rsi + 2]\ninc ebx\nadd ebx, 3\ndec ecx\njnz next\nhlt"
    loop = f"mov rsi, 0x3ffffd\nmov ecx, 3000\n{body}"  # there is no RAM there
    vm = ran(AxVM.from_asm(loop, engine="block", memory="2M", missing_device="ones"))
    at = address_of(vm, "mov eax")
    text = vm.explain(at)
    assert re.search(r"# 0x\w+: mov eax.*\n(?:.*\n){1,12}? +F\d\(\*OF\d\)", text)


# ---- where the time goes -----------------------------------------------------------------------------------


def test_a_profile_finds_the_loop_in_which_the_guest_is() -> None:
    vm = AxVM.from_asm(
        "a: dec eax\njnz a\nb: inc ebx\ntest ebx, 0xff\njnz b\nmov eax, 9000\njmp a", engine="block"
    )
    profile = Profile(vm)
    profile.run(1_000_000)
    functions, elsewhere = profile.functions()
    total = sum(profile.places.values())
    assert (total, profile.ended) == (100, "")
    assert sum(each.samples for each in functions) + elsewhere == total
    assert 0x1000 in functions[0].blocks[0].ips
    assert functions[0].samples > total // 2


def test_a_profile_changes_no_result() -> None:
    profiled, plain = sums(), ran(sums())
    Profile(profiled).run(BUDGET)
    assert digest(profiled) == digest(plain)


def test_a_profile_says_how_the_guest_ended() -> None:
    profile = Profile(sums())
    profile.run(BUDGET)
    assert profile.ended == "HLT"


def test_a_profile_ends_with_the_vms_own_budget() -> None:
    profile = Profile(sums(budget_instructions=30_000))
    profile.run(BUDGET)
    assert profile.ended == "its budget is used up"


# ---- the command -------------------------------------------------------------------------------------------

HOT = """
        mov ecx, 60000
next:   add eax, ecx
        dec ecx
        jnz next
        hlt
"""
ORIGIN = 0x7C00

Explains = Callable[..., tuple[int, str, str]]


@pytest.fixture
def explains(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Explains:
    """Run `pysim-vm explain` on a 64-bit raw image; exit code, output, errors."""
    image = tmp_path / "hot.bin"
    image.write_bytes(assemble(HOT, bits=64, origin=ORIGIN))
    (tmp_path / "System.map").write_text(f"{ORIGIN:016x} T start\n{ORIGIN + 5:016x} t next\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = run_command(
            ["explain", str(image), "--load-address", hex(ORIGIN), "--mode", "long", "--no-board",
             "--symbols", str(tmp_path / "System.map"), *arguments]
        )  # fmt: skip
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_the_command_lists_hot_functions_and_shows_the_first(explains: Explains) -> None:
    status, out, _ = explains()
    assert status == ExitStatus.OK
    assert "1 function of hot code; it ended with HLT" in out
    assert re.search(r"next \(0x7c05\)\s+64-bit code at CPL 0\s+\d+\.\d %\s+3\s+1\n", out)
    assert "# next:\n" in out
    assert "def block(cpu, until, pc):" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("at", ["next", "next+2", "0x7c05", "31749"])
def test_at_takes_an_address_or_a_symbol(explains: Explains, at: str) -> None:
    status, out, _ = explains("--at", at)
    assert status == ExitStatus.OK
    assert out.startswith("3 instructions in 1 trace, which begins at next (0x7c05); it runs as 64-bit code")


def test_a_symbol_that_the_guest_does_not_have_is_a_mistake(explains: Explains) -> None:
    status, _, err = explains("--at", "nxt")
    assert status == ExitStatus.USAGE
    assert err == 'pysim-vm: --at: the guest has no symbol nxt; did you mean "next"?\n'
    status, _, err = explains("--at", "next+x")
    assert status == ExitStatus.USAGE
    assert err.startswith("pysim-vm: --at: ")


def test_too_few_instructions_make_nothing_hot(explains: Explains) -> None:
    status, out, _ = explains("--after", "100")
    assert status == ExitStatus.OK
    assert out.startswith("After 100 instructions: 0 functions of hot code.\nNothing is translated")


def test_the_command_in_json(explains: Explains) -> None:
    status, out, _ = explains("--json")
    document = json.loads(out)
    assert (status, document["exit_status"], document["ended"]) == (0, 0, "HLT")
    (function,) = document["functions"]
    assert (function["heads"], function["symbol"], function["instructions"]) == (["0x7c05"], "next", 3)
    assert document["explanation"]["source"].startswith("def block(")
    assert {row["names"] for row in document["explanation"]["legend"]} >= {"cpu", "rax, rcx", "until"}
    _, out, _ = explains("--json", "--at", "0x9000")
    assert "no instruction that begins there was executed" in json.loads(out)["explanation"]["reason"]
