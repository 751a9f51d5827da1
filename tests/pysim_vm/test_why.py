"""Words for why: what the VM says about the guest's last exception, and the events that a record holds."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from isa.assembler import assemble
from pysim_vm import AxVM
from pysim_vm.cli import run_command
from pysim_vm.demo import BUDGET, build_demo
from pysim_vm.record_format import PREAMBLE
from pysim_vm.recorder import SENTENCES_KNOWN, Recorder
from pysim_vm.trace import Trace

FAULTS = """
        lidt [idtr]
lp:     mov rax, [rbx]
        add rbx, 0x1000
        int3
        int 0x80
        dec ecx
        jnz lp
        hlt
skip:   add rsp, 8
        add qword [rsp], 3
back:   iretq
idtr:   dw 0xfff
        dq 0x20000
"""


def faulting(rounds: int, **pysim: Any) -> AxVM:
    """A guest that takes #PF, #BP and INT 0x80 in each round, and comes back from all three."""
    vm = AxVM.from_asm(FAULTS, regs={"rcx": rounds, "rbx": 0x2_0000_0000, "rsp": 0x9000}, **pysim)
    code = vm.read_from_guest(0x1000, 0x80)
    skip = 0x1000 + code.index(bytes.fromhex("4883c408"))
    back = 0x1000 + code.index(bytes.fromhex("48cf"))
    for vector, handler in ((14, skip), (3, back), (0x80, back)):
        gate = handler.to_bytes(2, "little") + vm.vcpu(0).regs.cs.to_bytes(2, "little") + b"\x00\x8e"
        vm.write_to_guest(0x20000 + vector * 16, gate + bytes(10))
    return vm


def test_before_the_first_exception_there_is_nothing_to_explain() -> None:
    vm = AxVM.from_asm("hlt")
    vm.run()
    assert vm.last_exception is None
    assert vm.why() == "VM[1]: the guest got no exception so far"


def test_the_last_exception_says_what_failed_and_where() -> None:
    vm = faulting(2)
    vm.run()
    row = vm.last_exception
    assert row is not None
    assert row.words() == "#PF(0x0) at 0x200001000: supervisor read, PDPTE at 0xa040 has P=0"
    assert (row.rip, row.cpl, row.nested) == (0x1008, 0, False)
    assert vm.why() == f"{row.words()}; at 0x1008, CPL 0, after {row.retired} instructions"


def test_a_triple_fault_is_told_from_the_first_exception_to_the_shutdown() -> None:
    vm = AxVM.from_asm("mov rax, [0x200000000]")
    vm.run()
    assert vm.why() == (
        "first #PF(0x0) at 0x200000000: supervisor read, PDPTE at 0xa040 has P=0; "
        "then #GP(0x73): vector 0x0e outside the IDT limit 0x7; then #DF(0x0): #GP while delivering #PF; "
        "then #GP(0x43): vector 0x08 outside the IDT limit 0x7; then the CPU shut down (triple fault); "
        "at 0x1000, CPL 0, after 0 instructions"
    )


def test_a_record_holds_every_event_with_its_words() -> None:
    vm = faulting(3)
    with vm.record():
        vm.run()
    events = vm.trace.events
    assert [row.event for row in events] == ["exception", "exception", "software"] * 3
    assert [row.words() for row in events[:3]] == [
        "#PF(0x0) at 0x200000000: supervisor read, PDPTE at 0xa040 has P=0",
        "#BP: the guest executed INT3",
        "INT 0x80",
    ]
    assert [row.address for row in vm.trace.exceptions.where(vector=14)] == [
        0x2_0000_0000, 0x2_0000_1000, 0x2_0000_2000
    ]  # fmt: skip
    assert [row.retired for row in events.where(event="software")] == [8, 19, 30]
    assert events[0].as_dict()["why"] == "supervisor read, PDPTE at 0xa040 has P=0"


def test_both_engines_record_the_same_events() -> None:
    found = set()
    for engine in ("step", "block"):
        vm = faulting(700, engine=engine)
        with vm.record():
            vm.run()
        found.add((vm.trace.digest(), len(vm.trace.events)))
    assert len(found) == 1 and found.pop()[1] == 2100


def test_interrupts_are_events_too() -> None:
    vm = build_demo()
    with vm.record():
        vm.run(BUDGET)
    assert {row.words() for row in vm.trace.events.where(event="interrupt")} == {"interrupt, vector 0x20"}


def test_sentences_that_the_recorder_has_forgotten_are_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert SENTENCES_KNOWN > 1
    monkeypatch.setattr("pysim_vm.recorder.SENTENCES_KNOWN", 1)
    vm = faulting(40)
    with vm.record():
        vm.run()
    pages = vm.trace.exceptions.where(vector=14)
    assert {row.why for row in pages} == {"supervisor read, PDPTE at 0xa040 has P=0"} and len(pages) == 40


def test_a_record_that_lost_its_words_still_opens() -> None:
    vm = faulting(3)
    with vm.record() as recorder:
        vm.run()
    assert isinstance(recorder, Recorder)
    data = recorder.source()
    assert isinstance(data, bytes)
    trace = Trace.open(data)
    trace.record.chunks[type(trace.kind).WORDS] = []
    assert [row.words() for row in trace.exceptions[:2]] == ["#PF(0x0) at 0x200000000", "#BP"]


def test_a_record_of_version_1_has_no_events_and_can_be_read() -> None:
    vm = AxVM.from_asm("hlt")
    with vm.record() as recorder:
        vm.run()
    source = recorder.source()
    assert isinstance(source, bytes)
    data = bytearray(source)
    magic, _, size, crc, _ = PREAMBLE.unpack_from(data)
    head = PREAMBLE.pack(magic, 1, size, crc, 0)[:-4]
    data[: PREAMBLE.size] = head + struct.pack("<I", zlib.crc32(head))
    assert list(Trace.open(bytes(data)).events) == []


def test_the_command_line_shows_exceptions_as_text_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "faults.rec")
    vm = faulting(2)
    with vm.record(path):
        vm.run()
    assert run_command(["trace", path, "--exceptions", "--last", "1"]) == 0
    assert capsys.readouterr().out == "@17 0x1012: #BP: the guest executed INT3\n"
    assert run_command(["trace", path, "--events", "--first", "1", "--json"]) == 0
    assert '"error_code": "0x0"' in capsys.readouterr().out


def test_a_recording_that_ended_in_the_middle_of_a_run_lets_the_guest_run_on() -> None:
    vm = faulting(200)
    recorder = vm.record()
    vm.hooks.on_interrupt(lambda row: recorder.close(), vector=0x80)
    vm.run()
    assert vm.vcpu(0).regs.ecx == 0
    assert len(Trace.open(recorder.source()).events) <= 3


def test_step_prints_the_sentence_where_the_exception_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "divide.bin"
    image.write_bytes(assemble("mov ax, 1000\nmov bl, 2\ndiv bl\nhlt", bits=16, origin=0x7C00))
    run_command(["step", str(image), "--load-address", "0x7c00", "--count", "3"])
    out = capsys.readouterr().out
    assert (
        "! exception #DE: DIV quotient 0x1f4 does not fit 8 bits goes to vector 0 (#DE, divide error)" in out
    )


def test_step_and_run_tell_the_chain_of_a_triple_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "shutdown.bin"
    text = "lidt [table]\nud2\ntable: dw 0\ndd 0"
    image.write_bytes(assemble(text, bits=16, origin=0x7C00))
    run_command(["step", str(image), "--load-address", "0x7c00", "--count", "9"])
    out = capsys.readouterr().out
    assert "! exception #UD: UD0, UD1 or UD2: undefined on purpose goes to vector 6" in out
    assert "! while that was delivered: exception #GP(0x1): vector 0x06 outside the IDT limit 0x0" in out
    assert "the CPU shut down (triple fault)" in out
