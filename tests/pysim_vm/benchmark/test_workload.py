"""Workload files: the library, what a file may say, and that every mistake is a line with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.registry import DeviceBundle
from pysim_vm.benchmark.guest import BODY_MAX
from pysim_vm.benchmark.run import model_of
from pysim_vm.benchmark.workload import find_workload, library, load_workload, workload_from_toml
from pysim_vm.errors import ConfigError
from pysim_vm.exit_kinds import KINDS

GOOD = """\
summary = "an OUT"
count = 5
[[access]]
kind = "io_write"
address = 0x300
[devices]
emu_devices = [["port_latch", 0x300, 8]]
"""
GUEST = """\
summary = "a guest"
count = 5
[guest]
asm = "hlt"
"""


def mistakes(text: str) -> list[str]:
    """The problems of a text, without its name."""
    with pytest.raises(ConfigError) as caught:
        workload_from_toml(text, "it", "it.toml")
    return [str(problem).removeprefix("it.toml:") for problem in caught.value.problems]


def test_a_good_file_is_read() -> None:
    workload = workload_from_toml(GOOD, "out")
    assert (workload.name, workload.count, workload.per, workload.end) == ("out", 5, "exit", "instructions")
    assert workload.instructions == 1 + 2 * 5
    assert len(workload.digest) == 64
    assert workload_from_toml(GOOD + "# other\n", "out").digest != workload.digest


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('summary = "an OUT"\n', "", " summary: missing; add summary = \"what it does\""),
        ("count = 5", "count = 0", "2: count: 0 is out of range; write 1 to 0x5f5e100"),
        ("count = 5", 'count = "5"', '2: count: "5" is a string; remove the quotes'),
        ("count = 5", "cuont = 5", '2: cuont: unknown key; did you mean "count"?'),
        ("count = 5", "count = 5\nmore = 1", "3: more: unknown key; correct or remove it"),
        ("count = 5", 'count = 5\nper = "byte"', '3: per: "byte" is none of exit, iteration; use one'),
        ("io_write", "io_writ",
         '4: access[0].kind: "io_writ" is none of io_read, io_write, io_read_string, io_write_string, '
         'mmio_read, mmio_write, mmio_modify, sys_reg_read, sys_reg_write, hypercall; use one; did you mean '
         '"io_write"?'),
        ('kind = "io_write"\n', "", '3: access[0].kind: missing; add kind = "io_read"'),
        ("address = 0x300\n", "", "3: access[0].address: missing; add address = 0x300"),
        ("address = 0x300", "address = 0x10000",
         "5: access[0].address: 0x10000 is out of range; write 0 to 0xffff"),
        ("address = 0x300", "address = 0x300\nwidths = [8]",
         "6: access[0].widths: io_write is 1, 2 or 4 bytes wide; list one or more of these"),
        ("address = 0x300", "address = 0x300\nwidths = []",
         "6: access[0].widths: io_write is 1, 2 or 4 bytes wide; list one or more of these"),
        ("address = 0x300", "address = 0x300\nelements = 9",
         "6: access[0].elements: only io_read_string and io_write_string have elements; remove it"),
        ("address = 0x300", f"address = 0x300\ntimes = {BODY_MAX}",
         "3: access: more than 1024 accesses in one round; raise count instead of times"),
        ("port_latch", "port_lach",
         '7: devices.emu_devices[0]: no device model "port_lach"; known are '),
        ("[devices]", "[devices]\npassthrough_ports = [[0x300, 8]]",
         "7: devices.passthrough_ports: no effect in a workload; remove it"),
        ("[devices]", '[pysim]\nengine = "step"\n[devices]',
         "7: pysim.engine: how a workload is run is said on the command line; remove it"),
        ("[devices]", '[pysim]\nmemory = "64K"\n[devices]',
         "7: pysim.memory: rows [[access]] need 0x80000 bytes of RAM; give more"),
        ("[devices]", '[guest]\nasm = "hlt"\n[devices]',
         "6: guest: [guest] and [[access]] both say what runs; remove one of them"),
        ("count = 5", "count = 100_000_000\nper = [", "4: no TOML: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    found = mistakes(GOOD.replace(old, new))
    assert any(line.startswith(sentence) for line in found), found


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('asm = "hlt"', "", '3: guest.asm: missing; add asm = "..." or image = "FILE"'),
        ('asm = "hlt"', 'asm = "hlt"\nimage = "x"', "4: guest.asm: asm and image are both there; remove one"),
        ('asm = "hlt"', 'asm = ""', "4: guest.asm: the text has no instruction; write one"),
        ('asm = "hlt"', 'asm = "nop\\nmvo eax, 1"', "4: guest.asm: line 2: `mvo eax, 1`: "),
        ('asm = "hlt"', 'image = "nope.bin"', "4: guest.image: nope.bin cannot be read (No such file or "),
        ('asm = "hlt"', 'asm = "hlt"\nend = "instructions"',
         '3: guest.instructions: missing for end = "instructions"; say after how many it ends'),
        ('asm = "hlt"', 'asm = "hlt"\nrestart = true',
         '5: guest.restart: a guest with end = "halt" is not reset; remove it'),
        ('asm = "hlt"', 'asm = "hlt"\ndisk = 512',
         '5: guest.disk: the IDE channel is on the PC board; set platform = "pc" in [pysim]'),
        ('asm = "hlt"', 'asm = "hlt"\ndisk = 700', "5: guest.disk: 700 bytes are no whole sectors; give a "),
        ('asm = "hlt"', 'asm = "hlt"\nlazy = [[0x1000, 0x1000]]',
         "5: guest.lazy[0]: 0x1000 lies in the RAM of [pysim]; put it above"),
        ('asm = "hlt"', 'asm = "hlt"\nlazy = [[0x80_0001, 0x1000]]',
         "5: guest.lazy[0]: no whole pages; give multiples of 0x1000"),
        ('[guest]\nasm = "hlt"', "access = []", "3: access: an empty list; add a row [[access]]"),
        ('[guest]\nasm = "hlt"', "", " guest: nothing runs; add rows [[access]] or a table [guest]"),
        ('[guest]\nasm = "hlt"', "guest = 1", "3: guest: 1 is an integer; write a table [guest]"),
        ('[guest]\nasm = "hlt"', "access = [1]", "3: access[0]: 1 is an integer; write a table [[access]]"),
    ],
)  # fmt: skip
def test_a_mistake_about_the_guest_is_one_line_with_its_place(old: str, new: str, sentence: str) -> None:
    assert old in GUEST
    found = mistakes(GUEST.replace(old, new))
    assert any(line.startswith(sentence) for line in found), found


def test_too_many_memory_addresses_are_refused() -> None:
    rows = "".join(f'[[access]]\nkind = "mmio_read"\naddress = {n * 16}\n' for n in range(11))
    assert mistakes(f'summary = "x"\ncount = 1\n{rows}') == [
        "3: access: more than 10 different memory addresses; use fewer"
    ]


def test_too_many_instructions_are_refused() -> None:
    text = GOOD.replace("count = 5", "count = 100_000_000").replace("0x300\n", "0x300\ntimes = 100\n", 1)
    assert mistakes(text) == [
        "2: count: 10,100,000,001 instructions are too many; at most 1,000,000,000 are allowed"
    ]


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    assert len(mistakes(GOOD.replace("count = 5", "count = -1").replace("0x300\n", "-1\n", 1))) == 2


def test_a_name_that_is_none_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r'no workload of the library .*; did you mean "io_write"'):
        find_workload("io_wirte")


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"nope.toml: cannot be read: No such file or directory"):
        find_workload("nope.toml")


def test_a_file_is_named_by_its_stem_and_its_image_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "h.bin").write_bytes(b"\xf4")
    (tmp_path / "mine.toml").write_text('summary = "x"\ncount = 1\n[guest]\nimage = "h.bin"\n')
    workload = load_workload(tmp_path / "mine.toml")
    assert (workload.name, workload.code) == ("mine", b"\xf4")
    (tmp_path / "h.bin").write_bytes(b"\x90\xf4")
    assert load_workload(tmp_path / "mine.toml").digest != workload.digest
    with pytest.raises(ConfigError, match="an image cannot run longer"):
        workload.with_count(2)


def test_a_model_of_ones_own_comes_with_its_factory() -> None:
    text = GOOD.replace("port_latch", "mine")
    with pytest.raises(ConfigError, match='no device model "mine"'):
        workload_from_toml(text, "it")
    built = []

    def factory(row: object, services: object) -> DeviceBundle:
        built.append(row)
        from devices.bus import BusKind, Window
        from devices.registry import DevicePart
        from pysim_vm.benchmark.devices import Latch

        return DeviceBundle((DevicePart(Latch(), (Window(BusKind.PORT, 0x300, 8),)),))

    workload = workload_from_toml(text, "it", factories={"mine": factory})
    assert model_of(workload).exits == {"io_write": 5}
    assert len(built) == 1


def test_every_workload_of_the_library_loads_and_has_a_line() -> None:
    names = library()
    assert len(names) >= 26
    for name in names:
        workload = find_workload(name)
        assert workload.name == name
        assert 10 < len(workload.summary) <= 80, name


def test_the_library_takes_every_exit_that_a_guest_can_take() -> None:
    seen: set[str] = set()
    for name in library():
        seen.update(model_of(find_workload(name)).exits)
    assert set(KINDS) - seen == {"nothing", "fail_entry", "unimplemented", "budget"}


@pytest.mark.parametrize("name", ["io_write", "uart_hello", "triple_fault", "external_interrupt"])
def test_twice_the_count_takes_twice_the_exits(name: str) -> None:
    workload = find_workload(name)
    once, twice = model_of(workload.with_count(20)), model_of(workload.with_count(40))
    kind = max(once.exits, key=lambda kind: once.exits[kind])
    assert twice.exits[kind] in (2 * once.exits[kind], 2 * once.exits[kind] + 1)
