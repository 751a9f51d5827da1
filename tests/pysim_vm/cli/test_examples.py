"""examples/: every script runs as printed and shows what it claims."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
EXAMPLES = CHECKOUT / "examples"
SCRIPTS = ("custom_device", "watch_exits", "interrupt_yourself", "grade_homework")


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_custom_device_answers_on_its_port_in_memory_and_as_an_msr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load("custom_device")
    assert capsys.readouterr().out == "Halt() EBX = 11 EAX = 11\n"


def test_string_output_is_one_exit_a_character() -> None:
    assert load("watch_exits").main() == {"uart16550": 6, "acpi_pm": 1}


def test_three_injected_interrupts_are_handled() -> None:
    assert load("interrupt_yourself").main() == 3


def test_the_homework_checker_tells_good_from_endless() -> None:
    good, endless = load("grade_homework").main()
    assert (good.passed, good.failed, good.remark) == (5, 0, "fine")
    assert (endless.passed, endless.failed) == (0, 5)
    assert endless.remark == "does not end within 1000 instructions"


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_by_the_command_it_names(name: str) -> None:
    command = f"python examples/{name}.py"
    assert command in (EXAMPLES / f"{name}.py").read_text()
    result = subprocess.run(
        [sys.executable, f"examples/{name}.py"], cwd=CHECKOUT, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout
