"""config/pysim.py: the table [pysim]."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from isa.cpuid import feature_set
from pysim_vm.axtypes import (
    VMType,
)
from pysim_vm.config import (
    BUDGET_UNLIMITED,
    CPU_LEVELS,
    HOST_PC,
    AxVMConfig,
    PysimConfig,
    VmMemConfig,
    parse_size,
)
from pysim_vm.layout import MIB
from tests.pysim_vm.config_files import (
    BASE,
    DEVICES,
    KERNEL,
    pysim_with,
    read,
    refusals,
)


def test_pysim_defaults_are_the_documented_ones() -> None:
    pysim = pysim_with("")
    assert pysim == PysimConfig()
    assert (pysim.memory, pysim.platform, pysim.missing_device, pysim.engine) == (
        None,
        "none",
        "raise",
        "auto",
    )
    assert pysim.exit_path == "short"
    assert (pysim.ns_per_instruction, pysim.tsc_hz, pysim.seed) == (64, 1_000_000_000, 0)
    assert (pysim.budget_instructions, pysim.output_limit) == (BUDGET_UNLIMITED, 16 * MIB)
    assert (pysim.rtc_start, pysim.cpu_features) == (None, ())
    assert (pysim.exit_on_triple_fault, pysim.vga, pysim.debug_exit_port) == (True, True, 0xF4)


def test_with_a_pysim_table_the_loader_and_the_short_form_fill_gaps() -> None:
    crate = read('[base]\nid = 1\nname = "vm"\n[kernel]\nkernel_path = "vmlinuz"\n[pysim]\nmemory = "128M"\n')
    assert crate.warnings == ()
    assert (crate.base.vm_type, crate.base.cpu_num) == (VMType.VMTRTOS, 1)
    assert (crate.kernel.entry_point, crate.kernel.kernel_load_addr) == (None, None)
    config = AxVMConfig.from_crate(crate)
    assert config.memory_regions() == (VmMemConfig(0, 128 * MIB),)
    assert config.image_config().kernel_load_gpa is None
    assert read(crate.to_toml()) == crate


@pytest.mark.parametrize("engine", ["step", "block", "auto"])
def test_each_engine_can_be_chosen(engine: str) -> None:
    assert pysim_with(f'engine = "{engine}"\n').engine == engine


@pytest.mark.parametrize("way", ["short", "full"])
def test_each_way_of_an_exit_can_be_chosen(way: str) -> None:
    assert pysim_with(f'exit_path = "{way}"\n').exit_path == way


def test_a_file_without_the_table_gets_the_pc_that_axvisor_runs_on() -> None:
    assert read(BASE + KERNEL + DEVICES).pysim == HOST_PC
    assert (HOST_PC.platform, HOST_PC.missing_device) == ("pc", "gp")
    assert "APIC" in feature_set(HOST_PC.cpu_features)


def test_memory_above_3_gib_continues_at_4_gib() -> None:
    regions = replace(PysimConfig(), memory=5 << 30).ram_regions()
    assert regions == (VmMemConfig(0, 3 << 30), VmMemConfig(4 << 30, 2 << 30))


def test_memory_and_memory_regions_exclude_each_other() -> None:
    text = BASE + KERNEL + DEVICES + '[pysim]\nmemory = "1M"\n'
    assert refusals(text) == [
        "vm.toml:10: kernel.memory_regions: pysim.memory gives the RAM already; remove one of the two"
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0x1000", 4096),
        ("64K", 65536),
        ("64 KiB", 65536),
        ("128M", 128 * MIB),
        ("128mb", 128 * MIB),
        ("1_000k", 1000 * 1024),
        ("2G", 2 << 30),
    ],
)
def test_sizes_count_in_1024s(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12Q", "1.5G", "-1M", "9" * 5000, "0x", "_1", "1__0x"])
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; write a number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('memory = "12Q"', 'pysim.memory: "12Q" is no size; write a number with K, M or G, such as "128M"'),
        ("memory = 4097", "pysim.memory: 0x1001 is no multiple of 0x1000; RAM is whole pages"),
        ("memory = 0", "pysim.memory: 0 bytes are out of range; give 0x1000 to 0x1000000000"),
        ("memory = 1.5", 'pysim.memory: 1.5 is a float; write a size such as "128M"'),
        ('platform = "pcc"', 'pysim.platform: "pcc" is none of none, pc; use one; did you mean "pc"?'),
        ('missing_device = "one"', 'did you mean "ones"?'),
        ("ns_per_instruction = 0", "pysim.ns_per_instruction: 0 is out of range; write 1 to 0xf4240"),
        ("tsc_hz = 0", "pysim.tsc_hz: 0 is out of range"),
        ('engine = "jit"', 'pysim.engine: "jit" is none of step, block, auto; use one'),
        ('exit_path = "long"', 'pysim.exit_path: "long" is none of short, full; use one'),
        ('translation_cache = "of"', 'pysim.translation_cache: "of" is neither on nor off nor a path'),
        ("translation_cache = true", "pysim.translation_cache: true is a boolean"),
        ("translation_cache_limit = 4096", "pysim.translation_cache_limit: 0x1000 bytes are out of range"),
        ("seed = -1", "pysim.seed: -1 is out of range"),
        ('cpu_features = ["+rdrnad"]', "unknown CPU feature '+rdrnad'; did you mean \"rdrand\"?"),
        ('cpu_features = ["+avx512f"]', "CPU feature '+avx512f' is not implemented by this CPU"),
        ('cpu_features = ["-apic", "+x2apic"]', 'needs "apic"'),
        ('cpu_features = "minimul"', 'did you mean "minimal"?'),
        ("cpu_features = [3]", '3 is no CPU feature; write "+name", "-name" or a level'),
        ('rtc_start = "soon"', '"soon" is no date; write it as "2026-01-01T00:00:00"'),
        ("rtc_start = 12:00:00", "12:00:00 is a date or time; write a date"),
        ("rtc_start = 5", "5 is an integer; write a date"),
        ('rtc_start = "0001-01-01T00:00:00+10:00"', "leaves the years 1 to 9999"),
        ("debug_exit_port = 0xfffd", "pysim.debug_exit_port: 0xfffd is out of range; write 0 to 0xfffc"),
        ("vga = 1", "pysim.vga: 1 is an integer; write true or false"),
        ("output_limit = -1", "pysim.output_limit: -1 bytes are out of range"),
        ("budget_instructions = 0", "pysim.budget_instructions: 0 is out of range"),
    ],
)
def test_an_impossible_pysim_setting_is_refused(lines: str, message: str) -> None:
    found = refusals(BASE + KERNEL.replace("[[0, 0x100_0000, 7, 0]]", "[]") + DEVICES + "[pysim]\n" + lines)
    assert len(found) == 1
    assert found[0].startswith("vm.toml:15: ")
    assert message in found[0]


def test_a_cpu_level_is_spelled_out_as_changes() -> None:
    assert pysim_with('cpu_features = "default"').cpu_features == ()
    minimal = pysim_with('cpu_features = ["minimal", "+rdrand"]').cpu_features
    assert minimal == (*CPU_LEVELS["minimal"], "+rdrand")
    assert "ERMS" not in feature_set(minimal)
    assert {"SSE2", "X64", "RDRAND"} <= feature_set(minimal)


@pytest.mark.parametrize("level", list(CPU_LEVELS))
def test_every_cpu_level_is_one_the_cpu_has(level: str) -> None:
    assert "FPU" in feature_set(CPU_LEVELS[level])


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+01:00", datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)),
        ('"2026-01-02T03:04:05"', datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ('"2026-01-02"', datetime(2026, 1, 2, tzinfo=UTC)),
    ],
)
def test_the_clocks_start_is_a_date_in_utc(value: str, moment: datetime) -> None:
    assert pysim_with(f"rtc_start = {value}").rtc_start == moment
