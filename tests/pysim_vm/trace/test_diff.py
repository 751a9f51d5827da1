"""Where two records part: the first difference of any kind, and both machines there."""

from __future__ import annotations

from pysim_vm import AxVM
from pysim_vm.record_format import CHUNK_ROWS, Kind
from pysim_vm.trace import Trace
from pysim_vm.trace.diff import diff, diff_lines, recorded_state
from tests.pysim_vm.records import mixed, recorded


def poked(rounds: int, at: int, **options: bool) -> Trace:
    """MIXED, with RSI made one larger after `at` instructions."""
    vm = mixed(rounds)
    with vm.record(**options):
        vm.run(at)
        vm.vcpu(0).regs.rsi += 1
        vm.run(1_000_000)
    return vm.trace


def test_records_of_the_same_run_do_not_differ() -> None:
    found = diff(recorded(50), recorded(50, compress=True))
    assert found.divergence is None
    assert found.alike == 301
    assert diff_lines(found, ("a", "b")) == ["no difference: 301 exits are the same in both records"]


def test_the_first_different_exit_is_found_with_what_came_before() -> None:
    found = diff(recorded(50), poked(50, 100), context=2)
    assert found.divergence is not None
    assert found.divergence.kind == "exits"
    assert found.divergence.number == 49 * 6 == found.alike
    assert len(found.divergence.before) == 2
    assert "reason" in found.divergence.fields
    assert "HLT" in found.divergence.rows[1]


def test_a_difference_behind_the_first_chunk_is_found() -> None:
    rounds = CHUNK_ROWS[Kind.EXITS] // 4
    found = diff(recorded(rounds), poked(rounds, 6 * rounds))
    assert found.divergence is not None
    assert found.divergence.number == 6 * (rounds - 1)


def test_a_record_that_ends_earlier_differs_where_it_ends() -> None:
    vm = mixed(50)
    with vm.record():
        vm.run(60)
    found = diff(recorded(50), vm.trace)
    assert found.divergence is not None
    assert found.divergence.rows[1] == "(the record ends here)"
    assert found.divergence.number == len(vm.trace)


def test_a_store_that_differs_comes_before_the_exit_that_does() -> None:
    found = diff(recorded(50, stores=True), poked(50, 100, stores=True))
    assert found.divergence is not None
    assert found.divergence.kind == "stores"
    assert 100 <= found.divergence.retired < 112
    assert found.divergence.fields == ("value",)


def test_a_register_that_differs_is_shown_as_its_instruction() -> None:
    found = diff(recorded(20, instructions=True), poked(20, 100, instructions=True))
    assert found.divergence is not None
    assert found.divergence.kind == "instructions"
    assert found.divergence.retired == 100
    assert "changes" in found.divergence.fields


def test_the_state_in_a_record_of_instructions_is_that_of_the_machine() -> None:
    trace = recorded(5, instructions=True)
    vm = mixed(5)
    vm.run(31)
    state = recorded_state(trace, 31)
    assert state is not None
    regs = vm.vcpu(0).regs.as_dict()
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rip", "rflags"):
        assert state.registers.get(name, 0) == regs[name], name
    assert state.text


def test_a_record_of_exits_holds_no_state() -> None:
    assert recorded_state(recorded(), 5) is None


def test_headers_that_differ_are_named() -> None:
    vm = AxVM.from_asm("hlt", memory="8M")
    with vm.record():
        vm.run(5)
    found = diff(recorded(), vm.trace)
    assert found.headers == ("guest", "memory", "devices")
