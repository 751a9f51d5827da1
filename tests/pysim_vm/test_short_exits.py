"""The short way of an exit and the full one: same exits in the same order, same counts, times, errors, state.

PYSIM_EXIT_CASES sets the number of random programs, PYSIM_EXIT_SEED the first one's seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devices.base import Device, DeviceError
from isa.blocks import LOOK
from isa.cpu import Cpu
from isa.exits import Hypercall
from pysim_vm import AxError, AxVM, Budget, ExitReason, Halt, Nothing, SystemDown
from pysim_vm.axtypes import VmStatus
from pysim_vm.demo import CALCULATOR_WINDOWS, ORIGIN, Calculator, image_path
from pysim_vm.exit_kinds import IO_READ, IO_WRITE, KINDS, MMIO_READ, MMIO_WRITE
from pysim_vm.exit_log import ExitLog, ExitRow
from pysim_vm.lifecycle import VCpuState
from pysim_vm.machine import vm_from_image
from pysim_vm.short_exits import EXIT_CHUNK, LOG_SLICE, ShortExits
from pysim_vm.vcpu import VCpu
from tests.guests import guest
from tests.isa.machine import CODE
from tests.isa.semantics.test_exits_replay import SIZE, WINDOW, finish, followed_forms, prepared, state
from tests.oracles.exit_programs import exit_program, trace_of
from tests.oracles.random_programs import random_program
from tests.pysim_vm.test_determinism import GUEST

CASES = int(os.environ.get("PYSIM_EXIT_CASES", "24"))
SEED = int(os.environ.get("PYSIM_EXIT_SEED", "1"))
OTHER_WAYS = (("short", "step"), ("short", "block"), ("full", "block"))
POLICIES = ("ones", "raise", "gp")
CALM = (0.7, 0.95, 0.3, 1.0)  # how often a device only answers
BOX = 0x1000_0000  # guest-physical address of the devices below


# ---- random programs ---------------------------------------------------------------------------------------


def differences(make: Callable[[int], Any], seeds: range) -> Iterator[str]:
    """What differs from the full way on the step engine, for each program and way."""
    for seed in seeds:
        program = make(seed)
        machine = {"missing_device": POLICIES[seed % 3], "calm": CALM[seed % 4]}
        expected = trace_of(program, "full", "step", **machine)
        for exit_path, engine in OTHER_WAYS:
            difference = expected.difference(trace_of(program, exit_path, engine, **machine))
            if difference:
                yield f"seed {seed}, {exit_path} way, {engine} engine: {difference}"


@pytest.mark.parametrize("start", range(SEED, SEED + CASES, 6))
def test_programs_full_of_exits_run_alike_on_both_ways(start: int) -> None:
    assert list(differences(exit_program, range(start, min(start + 6, SEED + CASES)))) == []


@pytest.mark.parametrize("start", range(SEED, SEED + CASES, 12))
def test_random_programs_with_devices_run_alike_on_both_ways(start: int) -> None:
    assert list(differences(random_program, range(start, min(start + 12, SEED + CASES)))) == []


# ---- a short way that is wrong is caught -------------------------------------------------------------------


def _rip_of_the_next(patch: pytest.MonkeyPatch) -> None:
    def connect(short: ShortExits, on: bool) -> None:
        real(short, on)
        cpu = short._vcpu.cpu
        port_out = cpu.port_out

        def wrong(port: int, size: int, value: int) -> None:
            if cpu.exit_ip >= 0:
                cpu.exit_ip = cpu.rip
            port_out(port, size, value)

        cpu.port_out = wrong

    real = ShortExits.connect
    patch.setattr(ShortExits, "connect", connect)


def _deaf_to_what_devices_do(patch: pytest.MonkeyPatch) -> None:
    def request_attention(cpu: Cpu) -> None:
        cpu.attention |= LOOK
        cpu.stop_at = 0

    patch.setattr(Cpu, "request_attention", request_attention)


def _answers_lost(patch: pytest.MonkeyPatch) -> None:
    def connect(short: ShortExits, on: bool) -> None:
        real(short, on)
        cpu = short._vcpu.cpu
        mmio_load = cpu.mmio_load

        def wrong(gpa: int, size: int) -> int | None:
            value = mmio_load(gpa, size)
            cpu.taken_at = -1
            return value

        cpu.mmio_load = wrong

    real = ShortExits.connect
    patch.setattr(ShortExits, "connect", connect)


def _deadlines_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AxVM, "_deadline_added", lambda vm: None)


def _errors_swallowed(patch: pytest.MonkeyPatch) -> None:
    real = AxVM._settle

    def settle(vm: AxVM, vcpu: VCpu, reason: ExitReason, outcome: Any) -> None:
        outcome.error = None
        real(vm, vcpu, reason, outcome)

    patch.setattr(AxVM, "_settle", settle)


@pytest.mark.parametrize(
    "break_it",
    [_rip_of_the_next, _deaf_to_what_devices_do, _answers_lost, _deadlines_missed, _errors_swallowed],
)
def test_a_wrong_short_way_is_caught(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    assert next(differences(exit_program, range(100, 124)), "")


# ---- every form of every instruction -----------------------------------------------------------------------


def answer_on_the_spot(cpu: Cpu, contents: bytearray) -> None:
    """What `finish` answers from outside, answered in the middle of the instruction."""

    def mmio_load(gpa: int, size: int) -> int | None:
        at = gpa - WINDOW
        whole = cpu.exit_ip >= 0 and at >= 0 and at + size <= SIZE and size in (1, 2, 4, 8)
        return int.from_bytes(contents[at : at + size], "little") if whole else None

    def mmio_store(gpa: int, size: int, value: int) -> bool:
        at = gpa - WINDOW
        if cpu.exit_ip < 0 or not 0 <= at <= SIZE - size or size not in (1, 2, 4, 8):
            return False
        contents[at : at + size] = value.to_bytes(size, "little")
        return True

    cpu.mmio_load, cpu.mmio_store = mmio_load, mmio_store
    cpu.port_in = lambda port, size: 0x1234_5678 & (1 << 8 * size) - 1
    cpu.port_out = lambda port, size, value: None
    cpu.sys_reg_read = lambda index: 0x1234_5678
    cpu.sys_reg_write = lambda index, value: None
    cpu.exit_ip = CODE


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_every_form_does_on_the_short_way_what_it_does_on_the_full_way(bits: int) -> None:
    rng = random.Random(f"short {bits}")
    answered = 0
    for name, raw in followed_forms(bits):
        contents = rng.randbytes(SIZE)
        seed = f"{name} {raw.hex()}"
        full, short = (prepared(bits, True, seed, contents) for _ in range(2))
        for cpu in (full, short):
            cpu.memory.write(CODE, raw)
        behind_full, behind_short = bytearray(contents), bytearray(contents)
        answer_on_the_spot(short, behind_short)
        end = finish(full, behind_full, name)
        assert finish(short, behind_short, name) == end, seed
        assert state(short) == state(full), seed
        assert behind_short == behind_full, seed
        assert short.rip == full.rip, seed
        answered += not short.answers and bool(full.answers)
    assert answered > 300


# ---- guests ------------------------------------------------------------------------------------------------


def outcome(vm: AxVM, run: Callable[[AxVM], object]) -> tuple[Any, ...]:
    """The exits, counts, output, registers, time and RAM of a run."""
    rows: list[ExitRow] = []

    def take(log: ExitLog) -> None:
        rows.extend(log)
        log.clear()

    vm.exit_log, vm.exit_sink = ExitLog(), take
    result = str(run(vm))
    assert len(rows) >= sum(vm.exit_counts.values()) > 0
    return (
        rows, dict(vm.exit_counts), result, bytes(vm.console.data), bytes(vm.debug_console.data),
        vm.vcpu(0).regs.as_dict(), vm.now_ns(), bytes(vm.memory.view),
    )  # fmt: skip


def alike(
    make: Callable[[str, str], AxVM], run: Callable[[AxVM], object], engines: bool = True
) -> list[ExitRow]:
    """The exits of a run, which are the same on every way and engine."""
    expected = outcome(make("full", "step"), run)
    for exit_path, engine in OTHER_WAYS if engines else OTHER_WAYS[:1]:
        found = outcome(make(exit_path, engine), run)
        for n, (one, other) in enumerate(zip(expected[0], found[0], strict=False)):
            assert one == other, f"exit {n}, {exit_path} way, {engine} engine"
        assert found == expected
    rows: list[ExitRow] = expected[0]
    return rows


def from_asm(text: str, *devices: Callable[[AxVM], object], **options: Any) -> Callable[[str, str], AxVM]:
    """Makers of the same machine for every way."""

    def make(exit_path: str, engine: str) -> AxVM:
        vm = AxVM.from_asm(text, exit_path=exit_path, engine=engine, **options)
        vm.vcpu(0).cpu.hot = 1
        for add in devices:
            add(vm)
        return vm

    return make


def test_the_demo_has_the_same_exits_on_both_ways() -> None:
    def make(exit_path: str, engine: str) -> AxVM:
        image = image_path().read_bytes()
        options: dict[str, Any] = {"exit_path": exit_path, "engine": engine, "vga": False}
        vm = AxVM.from_code(image, mode="real", base=ORIGIN, platform="pc", **options)
        vm.get_devices().add_device(Calculator(), CALCULATOR_WINDOWS)
        return vm

    rows = alike(make, lambda vm: vm.run(100_000))
    assert {KINDS[row[3]] for row in rows} >= {"io_read", "io_write", "mmio_read", "mmio_write", "halt"}


def test_a_guest_with_timers_and_interrupts_has_the_same_exits_on_both_ways() -> None:
    def gate(vm: AxVM) -> None:
        handler = 0x1000 + vm.read_from_guest(0x1000, 0x200).index(bytes.fromhex("b020e62048cf"))
        selector = vm.vcpu(0).regs.cs.to_bytes(2, "little")
        gate = handler.to_bytes(2, "little") + selector + b"\x00\x8e" + bytes(10)
        vm.write_to_guest(0x20000 + 0x30 * 16, gate)

    rows = alike(from_asm(GUEST, gate, platform="pc", seed=11), lambda vm: vm.run(100_000))
    assert len(rows) > 500


@pytest.mark.guest
def test_seabios_has_the_same_exits_on_both_ways() -> None:
    image = guest("bios.bin")
    rows = alike(
        lambda exit_path, engine: vm_from_image(image, memory="16M", exit_path=exit_path, engine=engine),
        lambda vm: vm.run(1_500_000),
        engines=False,
    )
    assert len(rows) > 1_000


# ---- one thing at a time -----------------------------------------------------------------------------------


class Box(Device):
    """Reads count up; `act` is called at every access. `seen` notes offset, RIP, time, the vCPU's state and
    whether the instruction is still on its way."""

    name = "box"

    def __init__(self, vm: AxVM, act: Callable[[AxVM, int], object] | None = None) -> None:
        self.vm = vm
        self.act = act
        self.count = 0
        self.seen: list[tuple[int, int, int, VCpuState, bool]] = []

    def _access(self, offset: int) -> None:
        vcpu = self.vm.vcpu(0)
        self.seen.append(
            (offset, vcpu.regs.rip, self.vm.now_ns(), vcpu.state(), vcpu.answering >= 0)
        )  # fmt: skip
        self.count += 1
        if self.act is not None:
            self.act(self.vm, self.count)

    def read(self, offset: int, width: int) -> int:
        self._access(offset)
        return self.count

    def write(self, offset: int, width: int, value: int) -> None:
        self._access(offset)


def box(act: Callable[[AxVM, int], object] | None = None) -> Callable[[AxVM], Box]:
    """Adds a box on ports 0x300-0x307 and at BOX."""

    def add(vm: AxVM) -> Box:
        made = Box(vm, act)
        vm.get_devices().add_port_dev(made, 0x300, 8)
        vm.get_devices().add_mmio_dev(made, BOX, 0x1000)
        return made

    return add


def test_a_plain_exit_is_answered_in_the_middle_of_its_instruction() -> None:
    text = f"mov dx, 0x300\nout dx, al\nin al, dx\nmov ebx, {BOX:#x}\nmov eax, [rbx]\nadd [rbx], eax\nhlt"
    for exit_path, short in (("short", True), ("full", False)):
        vm = AxVM.from_asm(text, exit_path=exit_path)
        device = box()(vm)
        assert vm.run_vcpu(0) == Halt()
        # The first access to a page is walked to like any other and takes the short way only then
        assert [answering for *_, answering in device.seen] == [short] * 5
        assert {state for _, _, _, state, _ in device.seen} == {VCpuState.Ready}
        assert [rip - 0x1000 for _, rip, _, _, _ in device.seen] == [4, 5, 11, 13, 13]
        assert vm.exit_counts == {"IoWrite": 1, "IoRead": 1, "MmioRead": 2, "MmioWrite": 1, "Halt": 1}


def test_an_exit_that_a_block_calls_is_answered_in_the_middle_of_its_instruction() -> None:
    vm = AxVM.from_asm("mov dx, 0x300\nlp: out dx, al\nin al, dx\njmp lp", engine="block")
    device = box()(vm)
    vm.run_vcpu(0, 3_000)  # hot after 256 turns
    assert vm.vcpu(0).cpu.code.blocks
    device.seen.clear()
    vm.run_vcpu(0, 300)
    assert [answering for *_, answering in device.seen] == [True] * 200


def test_short_is_the_default_and_a_listener_makes_exits_take_the_full_way() -> None:
    vm = AxVM.from_asm("mov dx, 0x300\nlp: out dx, al\njmp lp")
    device = box()(vm)
    vm.run_vcpu(0, 10)
    vm.on_exit = lambda vcpu, reason: None
    vm.run_vcpu(0, 10)
    vm.on_exit = None
    vm.get_devices().on_access = lambda *access: None
    vm.run_vcpu(0, 10)
    vm.get_devices().on_access = None
    vm.run_vcpu(0, 10)
    ways = [answering for *_, answering in device.seen]
    assert ways == [True] * 5 + [False] * 10 + [True] * 5


def test_a_load_before_a_store_that_faults_reaches_the_device_once() -> None:
    # The fault finds no IDT: a triple fault, after one read
    text = f"mov esi, {BOX:#x}\nmov edi, 0x7fffffff\nshl rdi, 12\nmovsb\nhlt"
    for exit_path in ("short", "full"):
        vm = AxVM.from_asm(text, exit_path=exit_path)
        device = box()(vm)
        vm.run_vcpu(0)
        assert device.count == 1


def test_an_error_after_an_answer_leaves_the_answer_for_the_next_run() -> None:
    # MOVS reads the box and writes to where no device is; a device added later gets the byte, and the box is
    # not read again
    for exit_path in ("short", "full"):
        text = f"mov esi, {BOX:#x}\nmov edi, {BOX + 0x2000:#x}\nmovsb\nhlt"
        vm = AxVM.from_asm(text, exit_path=exit_path, missing_device="ones")
        vm.get_devices().missing_device = "raise"
        device = box()(vm)
        with pytest.raises(AxError, match="mmio write 0x10002000 width 1: no device"):
            vm.run_vcpu(0)
        assert (vm.vcpu(0).state(), vm.vcpu(0).regs.rip, device.count) == (VCpuState.Free, 0x100A, 1)
        got: list[int] = []

        class Late(Device):
            def write(self, offset: int, width: int, value: int, got: list[int] = got) -> None:
                got.append(value)

        vm.get_devices().add_mmio_dev(Late(), BOX + 0x2000, 0x1000)
        assert vm.run_vcpu(0) == Halt()
        assert (device.count, got) == (1, [1])


@pytest.mark.parametrize("failure", [DeviceError("out of paper"), ValueError("slipped"), KeyboardInterrupt()])
def test_a_device_that_fails_gives_the_same_error_and_is_asked_again(failure: BaseException) -> None:
    def act(vm: AxVM, count: int) -> None:
        if count == 2:
            raise failure

    said = []
    for exit_path in ("short", "full"):
        vm = AxVM.from_asm("mov dx, 0x300\nout dx, al\nin al, dx\nhlt", exit_path=exit_path)
        device = box(act)(vm)
        with pytest.raises((AxError, KeyboardInterrupt)) as caught:
            vm.run_vcpu(0)
        said.append((str(caught.value), vm.vcpu(0).state(), vm.vcpu(0).regs.rip, dict(vm.exit_counts)))
        assert vm.run_vcpu(0) == Halt()
        assert (device.count, vm.vcpu(0).regs.al) == (3, 3)
    assert said[0] == said[1]


def test_a_timer_that_a_device_arms_fires_after_the_same_instruction() -> None:
    def act(vm: AxVM, count: int) -> None:
        vm.clock.call_at(vm.now_ns() + 64 * 5, lambda now: fired.append((vm.vcpu(0).retired, now)))

    for exit_path, engine in (("full", "step"), *OTHER_WAYS):
        fired: list[tuple[int, int]] = []
        vm = from_asm("mov dx, 0x300\nout dx, al\nlp: inc rax\njmp lp", box(act))(exit_path, engine)
        vm.run_vcpu(0, 1_000)
        assert fired == [(6, 384)], (exit_path, engine)


@pytest.mark.parametrize(
    ("act", "returned", "retired"),
    [
        (lambda vm, count: vm.power_off(), SystemDown(), 2),
        (lambda vm, count: vm.kick(), Nothing(), 2),
        (lambda vm, count: vm.set_vm_status(VmStatus.Paused), Nothing(), 2),
        (lambda vm, count: vm.request_reset(), Budget(100), 100),
    ],
)
def test_news_from_a_device_is_heard_after_the_same_instruction(
    act: Callable[[AxVM, int], object], returned: ExitReason, retired: int
) -> None:
    for exit_path, engine in (("full", "step"), *OTHER_WAYS):
        vm = from_asm("mov dx, 0x300\nout dx, al\nlp: inc rax\njmp lp", box(act))(exit_path, engine)
        assert vm.run_vcpu(0, 100) == returned, (exit_path, engine)
        assert vm.vcpu(0).retired == retired, (exit_path, engine)


def test_registers_that_a_device_changes_count_when_the_instruction_goes_on() -> None:
    # Where a device moves the pointer, the instruction starts again and finds RAM there
    def act(vm: AxVM, count: int) -> None:
        vm.vcpu(0).regs.rbx = 0x8000

    for exit_path in ("full", "short"):
        vm = AxVM.from_asm(f"mov ebx, {BOX:#x}\nmov eax, [rbx]\nmov ecx, [rbx]\nhlt", exit_path=exit_path)
        box(act)(vm)
        vm.write_to_guest(0x8000, b"\x11\x22\x33\x44")
        assert vm.run_vcpu(0) == Halt()
        assert (vm.vcpu(0).regs.eax, vm.vcpu(0).regs.ecx) == (0x4433_2211, 0x4433_2211)


def test_set_gpr_in_a_device_answers_the_read() -> None:
    for exit_path in ("full", "short"):
        text = f"mov dx, 0x300\nin eax, dx\nmov ebx, {BOX:#x}\nmov ecx, [rbx]\nhlt"
        vm = AxVM.from_asm(text, exit_path=exit_path)
        box(lambda vm, count: vm.vcpu(0).set_gpr(0 if count == 1 else 1, 0x70 + count))(vm)
        assert vm.run_vcpu(0) == Halt()
        assert (vm.vcpu(0).regs.eax, vm.vcpu(0).regs.ecx) == (0x71, 0x72)


def test_a_window_that_its_own_write_takes_away_gets_that_write_once() -> None:
    for exit_path in ("full", "short"):
        text = f"mov ebx, {BOX:#x}\nmov [rbx], eax\nmov eax, [rbx]\nhlt"
        vm = AxVM.from_asm(text, exit_path=exit_path, missing_device="ones")
        device = Box(vm)
        device.act = lambda vm, count, device=device: vm.get_devices().remove_dev(device)
        vm.get_devices().add_mmio_dev(device, BOX, 0x1000)
        assert vm.run_vcpu(0) == Halt()
        assert (device.count, vm.vcpu(0).regs.eax) == (1, 0xFFFF_FFFF)


# ---- the log -----------------------------------------------------------------------------------------------


def test_an_entry_tells_when_where_what_who_and_which_lines_rose() -> None:
    def add(vm: AxVM) -> None:
        line = vm.irq_line(5, "box")
        box(lambda vm, count: line.set_level(count % 2 == 1))(vm)

    text = f"mov dx, 0x300\nout dx, ax\nin ax, dx\nmov ebx, {BOX:#x}\nmov byte [rbx+3], 7\nmov al, [rbx]\nhlt"
    rows = alike(from_asm(text, add, platform="pc"), lambda vm: vm.run_vcpu(0))
    vm = from_asm(text, add, platform="pc")("short", "step")
    number = vm.get_devices().device_names.index("box")
    assert rows == [
        (1, 0, 0x1004, IO_WRITE, 0x300, 2, 0, number, 1 << 5),
        (2, 0, 0x1006, IO_READ, 0x300, 2, 2, number, 0),
        (4, 0, 0x100D, MMIO_WRITE, BOX + 3, 1, 7, number, 1 << 5),
        (5, 0, 0x1011, MMIO_READ, BOX, 1, 4, number, 0),
        (7, 0, 0x1014, KINDS.index("halt"), 0, 0, 0, -1, 0),
    ]


def test_nobody_is_minus_one_and_a_failed_access_is_an_entry_too() -> None:
    def run(vm: AxVM) -> object:
        vm.run_vcpu(0, 2)
        vm.get_devices().missing_device = "raise"
        with pytest.raises(AxError):
            vm.run_vcpu(0)
        return None

    rows = alike(from_asm("mov dx, 0x400\nin al, dx\nout dx, al\nhlt", missing_device="ones"), run)
    assert [row[3:] for row in rows] == [(IO_READ, 0x400, 1, 0xFF, -1, 0), (IO_WRITE, 0x400, 1, 0xFF, -1, 0)]


def test_a_hypercall_is_an_entry_with_its_number() -> None:
    rows = alike(from_asm("mov eax, 0x1234\nvmcall\nhlt"), lambda vm: vm.run_vcpu(0))
    assert rows == [(1, 0, 0x1005, KINDS.index("hypercall"), 0x1234, 0, 0, -1, 0)]
    assert isinstance(AxVM.from_asm("vmcall").run_vcpu(0), Hypercall)


def test_the_log_is_handed_on_before_it_grows_large_and_when_run_vcpu_returns() -> None:
    for exit_path in ("short", "full"):
        vm = AxVM.from_asm("mov dx, 0x300\nlp: out dx, al\njmp lp", exit_path=exit_path)
        box()(vm)
        sizes: list[int] = []

        def take(log: ExitLog, sizes: list[int] = sizes) -> None:
            sizes.append(len(log))
            log.clear()

        vm.exit_log, vm.exit_sink = ExitLog(), take
        vm.run_vcpu(0, 40_001)
        assert sum(sizes) == 20_000 == vm.exit_counts["IoWrite"]
        assert all(EXIT_CHUNK <= size <= EXIT_CHUNK + LOG_SLICE for size in sizes[:-1])
        assert len(sizes) > 2
        assert len(vm.exit_log) == 0


def test_without_a_sink_the_log_stays_with_the_vm() -> None:
    vm = AxVM.from_asm("mov dx, 0x300\nout dx, al\nhlt")
    box()(vm)
    vm.exit_log = ExitLog()
    vm.run_vcpu(0)
    assert [row[3] for row in vm.exit_log] == [IO_WRITE, KINDS.index("halt")]
