"""One guest on both CPUs: equal streams, registers and RAM; differences found where they are; the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices.base import Device
from isa.exits import MmioRead
from pysim_vm import AxVM
from pysim_vm.cli import run_command
from pysim_vm.cli.status import ExitStatus
from pysim_vm.demo import build_demo
from pysim_vm.kvm.compare import AFTERWARDS, Comparison, compare, run_ours
from pysim_vm.machine import vm_from_config, vm_from_image
from tests.kvm_host import needs_kvm

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 10.0
HELLO = """
        mov si, text
next:   lodsb
        test al, al
        jz done
        mov ah, 0x0e
        int 0x10
        jmp next
done:   mov dx, 0x604
        mov ax, 0x2000
        out dx, ax
text:   db "Hello", 0
        times 510-($-$$) db 0
        dw 0xaa55
"""


class Counter(Device):
    """Answers with how often it was read, plus `first`."""

    name = "counter"

    def __init__(self, first: int = 0) -> None:
        self.value = first

    def read(self, offset: int, width: int) -> int:
        self.value += 1
        return self.value & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        self.value ^= value


def both(build: Callable[[], AxVM], **options: Any) -> Comparison:
    """Compare two machines that `build` makes."""
    return compare(build(), build(), seconds=SECONDS, **options)


def with_counter(text: str, first: int = 0, **options: Any) -> AxVM:
    """A bare machine with a Counter at port 0x300 and at 0x800000."""
    vm = AxVM.from_asm(text, **options)
    counter = Counter(first)
    vm.get_devices().add_port_dev(counter, 0x300, 8)
    vm.get_devices().add_mmio_dev(counter, 0x80_0000, 0x1000)
    return vm


# ---- the guests that everybody has -----------------------------------------------------------------------


@needs_kvm
def test_the_demo_guest_takes_the_same_793_exits_and_ends_in_the_same_state() -> None:
    result = both(build_demo)
    assert (result.first, result.registers, result.memory) == (None, [], [])
    assert result.ours.end == result.theirs.end
    assert result.ours.end.kind == "SystemDown"
    assert result.compared == 793 == len(result.theirs.events)
    assert result.ours.counts() == result.theirs.counts()
    assert result.whole
    assert not result.differs


@needs_kvm
@pytest.mark.parametrize("name", ["flat.toml", "board.toml"])
def test_the_example_guests_do_not_differ(name: str) -> None:
    result = both(lambda: vm_from_config(ROOT / "examples" / name))
    assert result.whole
    assert not result.differs
    assert result.ours.end.words == "the guest ended the run with code 33"


@needs_kvm
def test_a_boot_sector_on_the_tiny_bios_does_not_differ(tmp_path: Path) -> None:
    from isa.assembler import assemble

    disk = tmp_path / "hello.img"
    disk.write_bytes(assemble(HELLO, bits=16, origin=0x7C00))
    result = both(lambda: vm_from_image(disk, memory="2M"))
    assert result.whole
    assert not result.differs
    assert result.ours.counts()["IoWrite"] == 6


@needs_kvm
@pytest.mark.parametrize(
    "text",
    [
        "mov dx, 0x300\nloop: out dx, al\n jmp loop",
        "mov dx, 0x300\nloop: in al, dx\n jmp loop",
        "mov ebx, 0x800000\nloop: mov eax, [rbx]\n jmp loop",
        "mov ebx, 0x800000\nloop: mov [rbx], eax\n jmp loop",
        "mov ecx, 0x1234\nloop: rdmsr\n jmp loop",
    ],
)
def test_a_guest_that_does_nothing_but_exit_does_not_differ(text: str) -> None:
    def build() -> AxVM:
        vm = with_counter(text)
        vm.get_devices().add_sys_reg_dev(Counter(), 0x1234, 1)
        return vm

    result = both(build, limit=500)
    assert not result.differs
    assert result.compared == 500
    assert result.ours.end.words == "the limit of exits is reached"
    assert not result.whole  # neither guest ended by itself


@needs_kvm
@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_string_instructions_are_compared_element_by_element(mode: str) -> None:
    text = """
        mov esi, 0x2000
        mov edi, 0x3000
        mov edx, 0x300
        mov ecx, 5
        rep outsb
        mov ecx, 3
        rep insw
        mov ecx, 2
        rep outsd
        hlt
    """
    result = both(lambda: with_counter(text, mode=mode))
    assert not result.differs
    assert result.ours.counts() == {"IoWrite": 7, "IoRead": 3, "Halt": 1}
    assert result.whole


@needs_kvm
def test_every_kind_of_access_to_a_device_page_is_the_same() -> None:
    text = """
        mov ebx, 0x800000
        mov eax, [rbx]
        mov [rbx + 8], rax
        movzx ecx, byte [rbx + 1]
        movsx rcx, word [rbx + 2]
        add dword [rbx + 4], 0x11
        xchg [rbx + 16], rdx
        lock xadd [rbx + 24], ecx
        cmpxchg [rbx + 32], rdx
        push qword [rbx + 40]
        pop qword [rbx + 48]
        inc word [rbx + 56]
        test byte [rbx + 60], 3
        mov rsi, 0x800100
        mov rdi, 0x800200
        movsd
        mov edi, 0x4000
        movsq
        mov edi, 0x800300
        stosw
        lodsb
        mov esi, 0x800400
        cmpsb
        scasd
        hlt
    """
    result = both(lambda: with_counter(text))
    assert result.first is None
    assert (result.registers, result.memory) == ([], [])
    assert result.compared > 25


@needs_kvm
def test_accesses_over_the_border_of_ram_and_device_are_the_same() -> None:
    text = """
        mov ebx, 0x50000
        mov rax, [rbx - 3]
        mov [rbx - 5], rax
        add dword [rbx - 1], 7
        mov rcx, [rbx + 0xffd]
        mov [rbx + 0xfff], cx
        hlt
    """

    def build() -> AxVM:
        vm = AxVM.from_asm(text)
        vm.get_devices().add_mmio_dev(Counter(), 0x5_0000, 0x1000)
        return vm

    result = both(build)
    assert (result.first, result.registers, result.memory) == (None, [], [])
    assert result.compared == 12  # 5, 3, 1 and 3 bytes are two accesses each, an ADD reads and writes


@needs_kvm
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mov dx, 0x2f8\n in al, dx", "Device"),
        ("mov dword [0x900000], 1", "NestedPageFault"),
        ("ud2", "TripleFault"),
        ("cli\n hlt", "Halt"),
    ],
)
def test_guests_that_end_badly_end_alike(text: str, kind: str) -> None:
    result = both(lambda: with_counter(text))
    assert result.first is None
    assert (result.ours.end.kind, result.theirs.end.kind) == (kind, kind)
    assert result.ours.end.words.endswith(result.theirs.end.words)  # ours names the VM and RIP first


@needs_kvm
def test_a_triple_fault_that_resets_the_machine_ends_the_comparison() -> None:
    text = "mov edx, 0x300\n out dx, al\n ud2"
    result = both(lambda: with_counter(text, exit_on_triple_fault=False), limit=6)
    assert not result.differs
    assert (result.compared, result.theirs.end.words) == (2, "a triple fault reset the machine")


# ---- differences -----------------------------------------------------------------------------------------


@needs_kvm
def test_the_first_different_answer_is_found_and_what_follows_is_shown() -> None:
    text = "mov edx, 0x300\n mov edi, 0x3000\n out dx, al\n mov ecx, 20\nnext: in al, dx\n loop next\n hlt"
    result = compare(with_counter(text), with_counter(text, 5), seconds=SECONDS)
    assert result.differs
    assert result.first == 1
    assert len(result.theirs.events) == result.first + 1 + AFTERWARDS
    assert result.where.startswith("RIP 0x10")
    assert [result.ours.events[1].words(), result.theirs.events[1].words()] == [
        "IN 0x300 -> 0x1",
        "IN 0x300 -> 0x6",
    ]
    assert result.registers is None


@needs_kvm
def test_a_guest_that_goes_on_where_the_other_one_ended_differs_after_the_last_exit() -> None:
    short, long = "mov edx, 0x300\n out dx, al\n hlt", "mov edx, 0x300\n out dx, al\n out dx, ax\n hlt"
    result = compare(with_counter(short), with_counter(long), seconds=SECONDS)
    assert result.first == 1
    result = compare(with_counter("ud2"), with_counter("mov edx, 0x300\n ud2"), seconds=SECONDS)
    assert result.first is None
    result = compare(with_counter("cli\n hlt"), with_counter("ud2"), seconds=SECONDS)
    assert result.first == 0


@needs_kvm
def test_registers_and_ram_that_differ_at_the_end_are_named() -> None:
    ours, theirs = (with_counter(f"mov word [0x4001], {n:#x}\n mov ebx, {n}\n hlt") for n in (0x1111, 0x2222))
    result = compare(ours, theirs, seconds=SECONDS)
    assert result.first is None
    assert result.registers == [("rbx", 0x1111, 0x2222)]
    assert result.memory is not None
    assert (0x4001, 2) in result.memory
    assert result.differs


@needs_kvm
def test_an_instruction_that_kvm_cannot_execute_is_no_difference() -> None:
    text = "mov edx, 0x300\n out dx, al\n addsd xmm0, xmm1\n out dx, al\n hlt"
    result = both(lambda: with_counter(text))
    if result.theirs.end.kind == "Halt":
        pytest.skip("this KVM executes kernel code on the CPU, so it lacks nothing")
    assert not result.differs
    assert result.theirs.end.kind == "Unable"
    assert "lacks the instruction at RIP 0x1006 (f2 0f 58 c1" in result.theirs.end.words
    assert result.compared == 1


def test_our_side_stops_at_the_limit_of_exits_and_of_instructions() -> None:
    text = "mov edx, 0x300\nloop: out dx, al\n jmp loop"
    side = run_ours(with_counter(text), 7, None, SECONDS)
    assert (len(side.events), side.end.kind, side.end.words) == (
        7,
        "Stopped",
        "the limit of exits is reached",
    )
    side = run_ours(with_counter(text), 100, 11, SECONDS)
    assert (len(side.events), side.end.words) == (5, "the budget of instructions is used up")


def test_our_side_stops_with_the_time() -> None:
    side = run_ours(AxVM.from_asm("jmp $"), 100, None, 0.2)
    assert (side.events, side.end.kind) == ([], "Timeout")


def test_an_answer_in_pieces_is_one_answer() -> None:
    vm = AxVM.from_asm("mov eax, [0x80000e]\n hlt", missing_device="ones")
    vm.get_devices().add_mmio_dev(Counter(), 0x80_0000, 0x10)  # two bytes are the counter's, two nobody's
    event = run_ours(vm, 10, None, SECONDS).events[0]
    assert (event.reason, event.answer) == (MmioRead(0x80_000E, 4, 0, 4), 0xFFFF_0201)


# ---- the command -----------------------------------------------------------------------------------------


@needs_kvm
def test_the_command_shows_both_streams_and_a_verdict(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["kvm-compare"]) == ExitStatus.OK
    lines = capfd.readouterr().out.splitlines()
    assert "   2  OUT 0x3f8 <- 'r' (0x72)" in " ".join(lines)
    assert any(line.startswith("   2") and line.count("OUT 0x3f8 <- 'r' (0x72)") == 2 for line in lines)
    assert " ...  779 more, the same on both" in lines
    assert any(line.split() == ["SysRegRead", "1", "1"] for line in lines)
    assert lines[-1] == ("793 exits, no difference; all registers and 2 MiB of RAM at the end are the same.")


@needs_kvm
def test_all_exits_are_listed_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["kvm-compare", str(ROOT / "examples" / "flat.toml"), "--all"]) == ExitStatus.OK
    out = capfd.readouterr().out
    assert "more, the same on both" not in out
    assert out.count("OUT 0x3f8 <- 'o' (0x6f)") == 6  # three of them, on both sides


@needs_kvm
def test_a_timer_that_is_polled_is_named_as_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from isa.assembler import assemble

    text = "mov al, 0x34\n out 0x43, al\n mov al, 0\n out 0x40, al\n out 0x40, al\n mov cx, 2000\nl: loop l\n"
    text += "mov al, 0\n out 0x43, al\n in al, 0x40\n mov dx, 0x604\n mov ax, 0x2000\n out dx, ax"
    guest = tmp_path / "timer.bin"
    guest.write_bytes(assemble(text, bits=16, origin=0x7000))
    arguments = ["kvm-compare", str(guest), "--load-address", "0x7000"]
    assert run_command(arguments) == ExitStatus.DIFFERENT
    out = capfd.readouterr().out
    assert "4 exits are the same, number 5 differs" in out
    assert "(pit8254 tells the time, and KVM's is another)." in out
    assert run_command([*arguments, "--json"]) == ExitStatus.DIFFERENT
    document = json.loads(capfd.readouterr().out)
    assert (document["exit_status"], document["first_difference"], document["compared"]) == (98, 5, 4)
    assert [row["same"] for row in document["exits"]] == [True] * 4 + [False, True]


@needs_kvm
def test_json_holds_counts_ends_and_all_exits_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["kvm-compare", "--json", "--all", "--limit", "12"]) == ExitStatus.OK
    document = json.loads(capfd.readouterr().out)
    assert document["pysim_vm"]["counts"] == document["kvm_side"]["counts"] == {"IoRead": 6, "IoWrite": 6}
    assert document["kvm_side"]["instructions"] is None
    assert document["sentence"] == (
        "12 exits, no difference as far as we looked: the limit of exits is reached"
    )
    assert [row["exit"] for row in document["exits"]] == list(range(1, 13))
    assert document["registers"] is None


def test_a_host_without_kvm_gets_one_sentence_and_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pysim_vm.kvm.binding.host_problem", lambda: "this host is a teapot")
    assert run_command(["kvm-compare"]) == ExitStatus.UNAVAILABLE
    assert capfd.readouterr().err == "pysim-vm: this host is a teapot; compare on a Linux PC\n"
    assert run_command(["kvm-compare", "--json"]) == ExitStatus.UNAVAILABLE
    assert json.loads(capfd.readouterr().out)["error"]["kind"] == "unavailable"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--disk", "x.img,write"], "two machines run, and both would write it"),
        (["--limit", "0"], "--limit"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["kvm-compare", *arguments]) == ExitStatus.USAGE
    assert words in capfd.readouterr().err
