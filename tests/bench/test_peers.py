"""Emulators beside ours: without one nothing is missing, with one the kernels are checked alike."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import peers
from bench.kernels import KERNELS, Kernel, WrongResult
from bench.table import measured_beside

KERNEL = KERNELS[0]


def test_without_a_peer_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert peers.installed() == []


def test_unicorn_is_a_peer_as_soon_as_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: object() if name == "unicorn" else None)
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert [peer.name for peer in peers.installed()] == ["unicorn"]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.image)
def test_unicorn_agrees_with_python(kernel: Kernel) -> None:
    pytest.importorskip("unicorn")
    peers.Unicorn().fresh(kernel)()


@pytest.fixture
def host_cpu(tmp_path: Path) -> peers.UserMode:
    """A user-mode "emulator" that lets the host's CPU run the program."""
    if (platform.machine(), sys.platform) != ("x86_64", "linux"):
        pytest.skip("needs Linux on x86-64")
    script = tmp_path / "qemu-x86_64-static"
    script.write_text('#!/bin/sh\nexec "$1"\n')
    script.chmod(0o755)
    return peers.UserMode(str(script))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.image)
def test_a_kernel_as_a_linux_program_is_right_on_the_hosts_cpu(
    host_cpu: peers.UserMode, kernel: Kernel
) -> None:
    host_cpu.fresh(kernel)()


def test_a_peer_that_is_wrong_says_which_kernel(host_cpu: peers.UserMode) -> None:
    wrong = replace(KERNEL, answer=lambda size, data: 1)
    with pytest.raises(WrongResult, match="ALU on qemu-x86_64: not what Python computes"):
        host_cpu.fresh(wrong)()


def test_a_row_beside_ours_counts_our_instructions(host_cpu: peers.UserMode) -> None:
    short = replace(KERNEL, full=1_000)
    row = measured_beside(host_cpu, short, 2)
    assert row.found is not None
    assert (row.engine, row.found.operations) == ("qemu-x86_64", 20 * peers.operations(short.longer()))
