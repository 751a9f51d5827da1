"""config/table.py: hostile and broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysim_vm.config import (
    FILE_SIZE_MAX,
    AxVMCrateConfig,
    PysimConfig,
    VMBaseConfig,
    VMDevicesConfig,
    VMKernelConfig,
)
from pysim_vm.errors import ConfigError
from tests.pysim_vm.config_files import (
    BASE,
    DEVICES,
    KERNEL,
    devices_with,
    kernel_with,
    read,
    refusals,
)


def test_a_file_over_one_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_bytes(b"#" * (FILE_SIZE_MAX + 1))
    with pytest.raises(ConfigError, match="1048576 bytes are no configuration"):
        AxVMCrateConfig.from_file(path)
    with pytest.raises(ConfigError, match="1048576 bytes are no configuration"):
        read("#" * (FILE_SIZE_MAX + 1))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 33 + "]" * 33,
        "a = " + "{ b = " * 5000,
        ".".join("a" * 100_000) + " = 1",
        "[" + ".".join("a" * 100_000) + "]",
    ],
)
def test_deep_nesting_is_refused_before_the_parser_sees_it(text: str) -> None:
    assert "levels of nesting are no configuration; stay below 32" in refusals("x = 1\n" + text)[0]


def test_a_number_of_a_million_digits_is_refused() -> None:
    assert "no TOML" in refusals("a = " + "9" * 100_000)[0]
    found = refusals((BASE + KERNEL + DEVICES).replace("id = 1", "id = 0x" + "f" * 100_000))
    assert found == [
        "vm.toml:2: base.id: a number of 400000 bits is out of range; write 0 to 0xffffffffffffffff"
    ]


def test_long_values_are_shortened_in_messages() -> None:
    found = refusals((BASE + KERNEL + DEVICES).replace("id = 1", f'id = "{"x" * 10_000}"'))
    assert len(found[0]) < 150


def test_a_list_of_too_many_rows_is_refused() -> None:
    rows = "[" + '["/a"],' * 5000 + "]"
    found = refusals(devices_with(f"emu_devices = []\npassthrough_devices = {rows}\n"))
    assert found == [
        "vm.toml:13: devices.passthrough_devices: 5000 elements are too many; at most 4096 are allowed"
    ]


def test_a_thousand_overlapping_regions_give_a_bounded_message() -> None:
    rows = ",".join(["[0, 0x1000, 7, 0]"] * 1000)
    with pytest.raises(ConfigError) as caught:
        read(kernel_with("", f"[{rows}]"))
    assert len(caught.value.problems) == 999
    assert len(str(caught.value).splitlines()) == 102


def test_a_hundred_thousand_unknown_keys_give_bounded_warnings() -> None:
    crate = read(BASE + KERNEL + DEVICES + "".join(f"x{n} = 1\n" for n in range(5_000)))
    assert len(crate.warnings) == 100


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as caught:
        AxVMCrateConfig.from_file(path)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory; check the path"


def test_a_directory_and_a_nul_path_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        AxVMCrateConfig.from_file(tmp_path)
    with pytest.raises(ConfigError, match="is no path"):
        AxVMCrateConfig.from_file("a\0b")


def test_a_file_that_is_no_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_bytes(b"[base]\nname = '\xff'\n")
    with pytest.raises(ConfigError) as caught:
        AxVMCrateConfig.from_file(path)
    assert str(caught.value) == f"{path}:2: byte 0xff is no UTF-8; save the file as UTF-8 text"


TOML_SCALAR = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["true", "1.5", "nan", '"x"', '""', "2026-01-01", "12:00:00", "[]", "{}"]),
)


TOML_VALUE = st.recursive(
    TOML_SCALAR, lambda inner: st.lists(inner, max_size=5).map(lambda v: f"[{', '.join(v)}]"), max_leaves=8
)


KEYS = st.sampled_from(
    sorted(
        {
            *VMBaseConfig.__slots__,
            *VMKernelConfig.__slots__,
            *VMDevicesConfig.__slots__,
            *PysimConfig.__slots__,
        }
    )
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["base", "kernel", "devices", "pysim", "other"]),
        st.dictionaries(KEYS, TOML_VALUE, max_size=6),
    )
)
def test_any_values_give_a_configuration_or_a_config_error(tables: dict[str, dict[str, str]]) -> None:
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
        for name, keys in tables.items()
    )
    try:
        crate = read(text)
    except ConfigError as error:
        assert all(str(problem).startswith("vm.toml:") for problem in error.problems)
        assert all("\n" not in str(problem) for problem in error.problems)
    else:
        assert read(crate.to_toml()) == crate


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_a_configuration_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        read(text)
