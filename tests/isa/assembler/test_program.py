"""Labels and layout: jumps that grow, names that settle, the same bytes in every process."""

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from isa.assembler import assemble, assemble_program
from tests.isa.assembler.mistakes import error_of


def test_a_jump_is_short_as_far_as_it_reaches_and_near_beyond() -> None:
    assert assemble("jmp end\ntimes 127 nop\nend:")[:2].hex() == "eb7f"
    assert assemble("jmp end\ntimes 128 nop\nend:")[:5].hex() == "e980000000"
    assert assemble("start: times 126 nop\njmp start")[126:].hex() == "eb80"
    assert assemble("start: times 127 nop\njmp start")[127:].hex() == "e97cffffff"
    assert assemble("jz end\ntimes 128 nop\nend:")[:6].hex() == "0f8480000000"


def test_short_and_near_are_obeyed() -> None:
    assert assemble("jmp near $").hex() == "e9fbffffff"
    assert assemble("jmp short $").hex() == "ebfe"
    assert "too far away" in error_of("jmp short end\ntimes 128 nop\nend:")


def test_growing_one_jump_makes_the_next_one_grow() -> None:
    # Were both short, the first would span 127 bytes; the second must be near and pushes it out of reach.
    text = "jmp outer\njmp inner\ntimes 125 nop\nouter: times 3 nop\ninner:"
    code = assemble(text)
    assert code[:5].hex() == "e982000000"
    assert code[5:10].hex() == "e980000000"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["jmp", "jnz", "call", "lea"]), st.integers(0, 11), st.integers(0, 90)),
        max_size=12,
    )
)
def test_every_branch_of_a_random_program_hits_its_label(blocks: list[tuple[str, int, int]]) -> None:
    lines = []
    for number, (mnemonic, target, padding) in enumerate(blocks):
        operand = f"rax, [rel l{target}]" if mnemonic == "lea" else f"l{target}"
        lines.append(f"l{number}: {mnemonic} {operand}\ntimes {padding} nop\nalign 8")
    lines.extend(f"l{number}:" for number in range(len(blocks), 12))
    program = assemble_program("\n".join(lines), origin=0x1000)
    rows = [row for row in program.listing if ": " in row.text]
    assert len(rows) == len(blocks)
    for row, (_, target, _) in zip(rows, blocks, strict=True):
        width = 1 if row.code[0] in (0xEB, 0x75) else 4
        distance = int.from_bytes(row.code[-width:], "little", signed=True)
        assert row.address + len(row.code) + distance == program.labels[f"l{target}"]


def test_a_local_label_belongs_to_the_label_above_it() -> None:
    program = assemble_program("a:\n.loop: jmp .loop\nb:\n.loop: jmp .loop\njmp a.loop")
    assert program.code.hex() == "ebfe" + "ebfe" + "ebfa"
    assert program.labels == {"a": 0, "a.loop": 0, "b": 2, "b.loop": 2}


def test_times_repeats_a_jump_each_at_its_own_address() -> None:
    assert assemble("times 2 jmp start\nstart:").hex() == "eb02eb00"


def test_an_immediate_or_displacement_that_holds_a_label_settles_to_the_shortest_form() -> None:
    assert assemble("add eax, end-$$\nend:").hex() == "83c003"
    assert assemble("mov eax, [rbx+end-$$]\nend:").hex() == "8b4303"


def test_a_name_that_depends_on_itself_is_an_error() -> None:
    assert "never settles" in error_of("a equ b+1\nb equ a+1\ndb 0")


def test_16_bit_code_above_64_kib_jumps_within_its_64_kib() -> None:
    assert assemble("top: jmp top", bits=16, origin=0xF0000).hex() == "ebfe"
    assert "out of reach of a 16-bit IP" in error_of("jmp 0x20000", bits=16)


def test_the_bytes_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from isa.assembler import assemble\n"
        "print(assemble('a: xchg eax, ebx\\nadd eax, a\\nvaddps xmm0, xmm1, xmm2\\njz a\\nmov ds, ax').hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {"93" + "83c000" + "c5f058c2" + "74f6" + "8ed8\n"}
