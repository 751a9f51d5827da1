"""config.py: checking files, and the page about them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pysim_vm.config import (
    PysimConfig,
    VMBaseConfig,
    VMDevicesConfig,
    VMKernelConfig,
    check,
)
from tests.pysim_vm.config_files import (
    BASE,
    DEVICES,
    KERNEL,
    devices_with,
    kernel_with,
    read,
    refusals,
)


def test_check_says_nothing_about_a_clean_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(BASE + KERNEL + DEVICES)
    assert check(path) == []


def test_check_lists_errors_and_warnings(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(BASE + KERNEL + DEVICES + "colour = 1\n")
    bad.write_text("[base]\n")
    messages = check(good, bad)
    assert messages[0] == f"warning: {good}:14: devices.colour: unknown key, ignored; correct or remove it"
    assert messages[1] == f"error: {bad}: kernel: missing; add a table [kernel]"
    assert len(messages) == 7


def test_check_finds_two_files_with_one_id(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(BASE + KERNEL + DEVICES)
    two.write_text(BASE + KERNEL + DEVICES)
    assert check(one, two) == [f"error: {two}: base.id: 1 is the id in {one}; give each VM its own"]
    assert check(one, one) == []


def test_check_of_a_missing_file_is_a_message() -> None:
    assert check("/nowhere/vm.toml") == [
        "error: /nowhere/vm.toml: cannot be read: No such file or directory; check the path"
    ]


PAGE = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_every_toml_example_of_the_page_is_read_without_a_warning() -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert read(example).warnings == ()


@pytest.mark.parametrize("table", [VMBaseConfig, VMKernelConfig, VMDevicesConfig, PysimConfig])
def test_the_page_lists_every_key(table: type[Any]) -> None:
    missing = [key for key in table.__slots__ if f"`{key}`" not in PAGE]
    assert missing == []


def test_the_page_tells_the_sentences_that_are_really_said() -> None:
    said = [
        *refusals((BASE + KERNEL + DEVICES).replace("entry_point = 0x8000", "")),
        *refusals(
            (BASE + KERNEL + DEVICES)
            .replace("id = 1", 'id = "one"')
            .replace("name =", "nmae =")
            .replace("cpu_num = 1", "cpu_num = 100")
        ),
        *refusals(kernel_with('boot_protocol = "mulitboot"')),
        *refusals(kernel_with("", "[[0, 0x2000, 7, 0],\n  [0x1000, 0x1000, 7, 0]]")),
        *refusals(
            devices_with(
                'emu_devices = [["a", 0x3f8, 8, 4, 2, []], ["b", 0x2f8, 8, 4, 2, []]]\n'
                "passthrough_devices = []\n"
            )
        ),
        *refusals(kernel_with("", "[[0, 0x1000, 0x47, 0]]")),
        *refusals(BASE + KERNEL + DEVICES + "passthrough_ports = [[0x6000, 0]]\n"),
        *refusals((BASE + KERNEL + DEVICES).replace("cpu_num = 1", "cpu_num = 2")),
        *refusals("[base]\nid = = 1\n"),
    ]
    rows = re.findall(r"^\| [^|]+ \| `(vm\.toml:\d+: .*)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 11
    assert [row for row in rows if row not in said] == []
