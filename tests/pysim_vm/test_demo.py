"""demo.py, cli/demo.py and demos/: the image is its source, and the tour shows what it promises."""

import json
import os
import subprocess
import sys
import time
from io import BytesIO, StringIO
from pathlib import Path

import pytest

from devices.base import DeviceError
from pysim_vm import SystemDown, demo
from pysim_vm.cli.demo import LESSONS, run_demo

CHECKOUT = Path(__file__).resolve().parents[2]

CONSOLE = (
    "real mode       16 bits, a segment is an address divided by 16\r\n"
    "protected mode  32 bits, a segment is an entry of the GDT\r\n"
    "long mode       64 bits, an address goes through four page tables\r\n"
    "your device     port 0x2a0 says CALC, memory 0xfeb00000 says 6 * 7 = 42, MSR 0x4b560000 says 1\r\n"
    "timer           HLT until the 8254 interrupts: tick tick tick\r\n"
    "power off       0x2000 to port 0x604\r\n"
)


def test_the_image_is_its_source_assembled() -> None:
    assert demo.image_path().read_bytes() == demo.assemble_source()


def test_the_tour_prints_its_six_lines_and_powers_off() -> None:
    vm = demo.build_demo()
    assert vm.run(demo.BUDGET) == SystemDown()
    assert vm.console.text() == CONSOLE


def test_the_tour_ends_in_64_bit_mode_and_stays_far_below_its_budget() -> None:
    vm = demo.build_demo()
    vm.run(demo.BUDGET)
    assert vm.vcpu(0).cpu.mode_name() == "64-bit"
    assert vm.vcpu(0).retired < demo.BUDGET // 5


def test_the_tour_takes_every_kind_of_device_exit_and_sleeps() -> None:
    vm = demo.build_demo()
    vm.run(demo.BUDGET)
    assert set(vm.exit_counts) == {"IoRead", "IoWrite", "MmioRead", "MmioWrite", "SysRegRead", "Halt"}


def test_two_tours_take_the_same_exits() -> None:
    counts = []
    for _ in range(2):
        vm = demo.build_demo()
        vm.run(demo.BUDGET)
        counts.append((vm.vcpu(0).retired, vm.now_ns(), dict(vm.exit_counts)))
    assert counts[0] == counts[1]


def test_three_timer_interrupts_take_three_periods_of_the_8254() -> None:
    vm = demo.build_demo()
    vm.run(demo.BUDGET)
    period_ns = 11932 * 1_000_000_000 // 1_193_182
    assert vm.now_ns() > 2 * period_ns


def test_the_demo_shows_the_console_a_table_and_every_lesson_in_the_order_of_the_run() -> None:
    out, err = BytesIO(), StringIO()
    assert run_demo(out, err) == 0
    text = out.getvalue().decode()
    assert CONSOLE in text
    assert "calculator" in text
    assert all(lesson.words in text for lesson in LESSONS)
    numbers = [int(line.split()[0][1:]) for line in text.splitlines() if line.startswith("  #")]
    assert numbers == sorted(numbers)
    assert err.getvalue() == ""


def test_the_table_counts_every_exit_that_the_vm_took() -> None:
    out = BytesIO()
    run_demo(out, StringIO(), as_json=True)
    document = json.loads(out.getvalue())
    vm = demo.build_demo()
    vm.run(demo.BUDGET)
    assert sum(row["count"] for row in document["exits"]) == sum(vm.exit_counts.values())
    assert document["console"] == CONSOLE
    assert document["exit_status"] == 0


def test_a_reader_that_goes_away_ends_the_demo_with_a_sentence() -> None:
    class Closed(BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    err = StringIO()
    assert run_demo(Closed(), err) == 74
    assert "cannot be written to standard output (Broken pipe)" in err.getvalue()


def test_first_guest_output_comes_within_a_second() -> None:
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "pysim_vm", "demo"], cwd=CHECKOUT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = b""
        while b"real mode" not in line:
            line = process.stdout.readline()
            assert line, "the demo printed no guest output"
        seconds = time.monotonic() - started
        process.stdout.read()
    assert process.returncode == 0
    # A second on an idle machine; the limit leaves room for a test run that shares its cores.
    assert seconds < (10 if os.environ.get("CI") else 4)


# ---- the calculator ----------------------------------------------------------------------------------------


def test_the_calculator_multiplies_and_counts_what_was_read() -> None:
    calculator = demo.Calculator()
    calculator.write(demo.OPERAND_A, 8, 1 << 40)
    calculator.write(demo.OPERAND_B, 8, 1 << 40)
    assert calculator.read(demo.PRODUCT, 8) == 0  # 2**80 does not fit a qword
    calculator.write(demo.OPERAND_B, 8, 3)
    assert calculator.read(demo.PRODUCT, 8) == 3 << 40
    assert calculator.read(demo.PRODUCTS_READ, 8) == 2
    calculator.reset()
    assert calculator.read(demo.OPERAND_A, 8) == calculator.read(demo.PRODUCTS_READ, 8) == 0


def test_the_calculator_names_the_registers_it_has() -> None:
    calculator = demo.Calculator()
    with pytest.raises(DeviceError, match=r"no register at offset 0x18; read 0x0, 0x8 or 0x10"):
        calculator.read(0x18, 8)
    with pytest.raises(DeviceError, match=r"offset 0x10 cannot be written"):
        calculator.write(demo.PRODUCT, 8, 1)


def test_the_module_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([]) == 2
    assert "--assemble" in capsys.readouterr().err


def test_a_terminal_gets_a_coloured_table() -> None:
    out = BytesIO()
    assert run_demo(out, StringIO(), color=True) == 0
    assert b"\x1b[" in out.getvalue()
    assert b"calculator" in out.getvalue()
