"""KVM: what is said where it is missing; the vCPU, its state, and a machine of ours on it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.base import Device
from isa.exits import ExitReason, Halt, IoRead, IoWrite, MmioRead, MmioWrite, NestedPageFault, SysRegRead
from pysim_vm import AxVM
from pysim_vm.kvm import abi, binding
from pysim_vm.kvm import state as kvm_state
from pysim_vm.kvm.binding import HaltExit, Kvm, KvmError, PortExit, host_problem, variant
from pysim_vm.kvm.machine import KvmEnd, KvmMachine
from tests.kvm_host import needs_kvm

SECONDS = 10.0


class Latch(Device):
    """Answers with its count of reads; keeps what is written."""

    name = "latch"

    def __init__(self) -> None:
        self.reads = 0
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        self.reads += 1
        return self.reads

    def write(self, offset: int, width: int, value: int) -> None:
        self.written.append((offset, width, value))


# ---- where there is no KVM -------------------------------------------------------------------------------


def test_a_missing_device_is_one_sentence_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        KvmError, match=r"is not there: CPU or kernel offer no KVM; load kvm_intel or kvm_amd"
    ):
        Kvm(str(tmp_path / "kvm"))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "may not be opened .*; become a member of the group that owns it"),
        (errno.ENODEV, "is not there"),
        (errno.EBUSY, "cannot be opened .*; see the kernel's log"),
    ],
)
def test_a_device_that_cannot_be_opened_says_why(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pysim_vm.kvm.binding.os.open", refuse)
    monkeypatch.setattr(binding, "host_problem", lambda: "")
    with pytest.raises(KvmError, match=words):
        Kvm()


def test_a_host_that_is_no_linux_pc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysim_vm.kvm.binding.platform.machine", lambda: "arm64")
    monkeypatch.setattr("pysim_vm.kvm.binding.platform.system", lambda: "Darwin")
    assert host_problem() == "KVM is part of Linux on x86-64, and this host is Darwin on arm64"
    with pytest.raises(KvmError, match=r"Darwin on arm64; compare on a Linux PC"):
        Kvm()


def test_a_file_that_is_no_kvm_is_refused_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "host_problem", lambda: "")
    before = open_files()
    with pytest.raises(KvmError, match="/dev/null is no KVM device"):
        Kvm("/dev/null")
    assert open_files() == before


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({abi.GET_API_VERSION: 11}, "speaks version 11 of KVM's API, not 12"),
        ({abi.GET_API_VERSION: 12, abi.CHECK_EXTENSION: 0}, "lacks KVM_CAP_USER_MEMORY; a newer kernel"),
    ],
)
def test_a_kernel_that_is_too_old_is_refused(
    answers: dict[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "host_problem", lambda: "")
    monkeypatch.setattr("pysim_vm.kvm.binding.fcntl.ioctl", lambda fd, code, argument: answers[code])
    with pytest.raises(KvmError, match=words):
        Kvm("/dev/null")


def test_the_variant_is_the_loaded_module(tmp_path: Path) -> None:
    assert variant(str(tmp_path)) == "kvm"
    (tmp_path / "kvm").mkdir()
    (tmp_path / "kvm_amd").mkdir()
    assert variant(str(tmp_path)) == "kvm_amd"
    assert variant(str(tmp_path / "nowhere")) == "kvm"


def test_structures_have_the_sizes_of_the_kernel_header() -> None:
    sizes = {
        abi.KvmSegment: 24, abi.KvmTable: 16, abi.KvmSregs: 312, abi.KvmDebugRegs: 128, abi.KvmEvents: 64,
        abi.KvmMemoryRegion: 32, abi.KvmEnableCap: 104, abi.KvmMsrRange: 24, abi.KvmMsrFilter: 392,
    }  # fmt: skip
    assert {made: ctypes.sizeof(made) for made in sizes} == sizes
    assert (abi.REGISTERS.size, abi.XCRS.size, abi.CPUID_ENTRY.size) == (144, 392, 40)
    codes = (abi.SET_USER_MEMORY_REGION, abi.GET_SREGS, abi.SET_CPUID2, abi.GET_MSRS, abi.X86_SET_MSR_FILTER)
    assert codes == (0x4020_AE46, 0x8138_AE83, 0x4008_AE90, 0xC008_AE88, 0x4188_AEC6)


# ---- a vCPU ----------------------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return sum("kvm-vcpu" in line for line in Path("/proc/self/maps").read_text().splitlines())


@needs_kvm
def test_opening_and_closing_leaves_no_file_and_no_mapping() -> None:
    with KvmMachine(AxVM.from_asm("hlt")):
        pass
    files, maps = open_files(), mappings()
    machine = KvmMachine(AxVM.from_asm("hlt"))
    assert (open_files(), mappings()) == (files + 3, maps + 1)  # VM, vCPU, its page
    machine.close()
    machine.close()
    assert (open_files(), mappings()) == (files, maps)


@needs_kvm
@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_the_state_of_our_cpu_arrives_unchanged(mode: str) -> None:
    vm = AxVM.from_asm("hlt", mode=mode, cpu_features=["v3"])
    cpu = vm.vcpu(0).cpu
    cpu.rax, cpu.rbp, cpu.rsi = 0x1122_3344, 5, 6
    cpu.xmm3, cpu.mxcsr = 0x0123_4567_89AB_CDEF_0011_2233, 0x1FA0
    cpu.fpu.init()
    cpu.fpu.top, cpu.fpu.regs[6], cpu.fpu.tags[6], cpu.fpu.control = 6, 0x4000_C90F_DAA2_2168_C235, 0, 0x27F
    cpu.fs.base, cpu.dr0, cpu.dr6 = 0x1230, 0x5678, 0xFFFF_0FF1
    cpu.set_rflags(0x8D7)
    with KvmMachine(vm) as machine:
        assert kvm_state.differences(kvm_state.state_of_cpu(cpu), kvm_state.state_of_vcpu(machine.vcpu)) == []


@needs_kvm
def test_a_string_output_arrives_as_its_elements() -> None:
    vm = AxVM.from_asm("mov esi, 0x2000\n mov edx, 0x300\n mov ecx, 3\n rep outsw\n hlt")
    vm.write_to_guest(0x2000, bytes(range(1, 7)))
    values: tuple[int, ...] = ()
    with KvmMachine(vm) as machine:
        while isinstance(leaving := machine.vcpu.run(), PortExit):
            assert (leaving.port, leaving.width, leaving.write) == (0x300, 2, True)
            assert leaving.count == len(leaving.values)
            values += leaving.values
        assert isinstance(leaving, HaltExit)
    assert values == (0x0201, 0x0403, 0x0605)


@needs_kvm
def test_a_state_that_no_cpu_has_is_refused_in_one_sentence() -> None:
    vm = AxVM.from_asm("hlt")
    vm.vcpu(0).cpu.cr4 = 0  # long mode without PAE
    before = open_files()
    with pytest.raises(KvmError, match=r"KVM refuses the CPU state, CR0 0x\w+ CR4 0x0 EFER 0x\w+"):
        KvmMachine(vm)
    assert open_files() == before


@needs_kvm
def test_cpuid_names_our_machine() -> None:
    # Brand and signature; kvm_pvm shows feature bits of its host whatever it is told
    text = "mov eax, 0x80000002\n cpuid\n mov [0x3000], eax\n mov eax, 1\n cpuid\n mov [0x3004], eax\n hlt"
    ours, theirs = AxVM.from_asm(text), AxVM.from_asm(text)
    ours.run(100)
    with KvmMachine(theirs) as machine:
        machine.run(lambda reason, answer: True, SECONDS)
    assert theirs.read_from_guest(0x3000, 8) == ours.read_from_guest(0x3000, 8)


# ---- a machine -------------------------------------------------------------------------------------------


def exits_of(vm: AxVM) -> tuple[list[tuple[ExitReason, int | None]], KvmEnd]:
    """Every exit on KVM with its answer, and the end."""
    seen: list[tuple[ExitReason, int | None]] = []

    def note(reason: ExitReason, answer: int | None) -> bool:
        seen.append((reason, answer))
        return True

    with KvmMachine(vm) as machine:
        end = machine.run(note, SECONDS)
    return seen, end


@needs_kvm
def test_ports_memory_and_registers_reach_the_same_device_methods() -> None:
    vm = AxVM.from_asm(
        """
        mov edx, 0x300
        mov eax, 0x11223344
        out dx, ax
        in eax, dx
        mov ebx, 0x800000
        mov [rbx + 8], rax
        movzx ecx, word [rbx + 4]
        mov ecx, 0x1234
        rdmsr
        hlt
        """
    )
    latch = Latch()
    devices = vm.get_devices()
    devices.add_port_dev(latch, 0x300, 4)
    devices.add_mmio_dev(latch, 0x80_0000, 0x1000)
    devices.add_sys_reg_dev(latch, 0x1234, 1)
    seen, end = exits_of(vm)
    assert seen == [
        (IoWrite(0x300, 2, 0x3344), None),
        (IoRead(0x300, 4), 1),
        (MmioWrite(0x80_0008, 8, 1), None),
        (MmioRead(0x80_0004, 2), 2),
        (SysRegRead(0x1234), 3),
        (Halt(), None),
    ]
    assert end.kind == "Halt"
    assert latch.written == [(0, 2, 0x3344), (8, 8, 1)]


@needs_kvm
def test_an_msr_of_the_kernel_goes_to_the_device_that_claims_it() -> None:
    vm = AxVM.from_asm("mov ecx, 0x277\n rdmsr\n hlt")  # IA32_PAT
    vm.get_devices().add_sys_reg_dev(Latch(), 0x277, 1)
    assert exits_of(vm)[0][0] == (SysRegRead(0x277), 1)


@needs_kvm
def test_ram_beside_a_window_in_one_page_is_no_exit() -> None:
    vm = AxVM.from_asm(
        "mov eax, [0x50000]\n mov [0x50004], eax\n mov ecx, [0x500fe]\n mov [0x5010e], ecx\n hlt"
    )
    vm.get_devices().add_mmio_dev(Latch(), 0x5_0100, 0x10)
    vm.write_to_guest(0x5_0000, b"\x78\x56\x34\x12")
    vm.write_to_guest(0x5_00FE, b"\xaa\xbb")
    seen, _ = exits_of(vm)
    kinds = [type(reason).__name__ for reason, _ in seen]
    assert kinds == ["MmioRead", "MmioRead", "MmioWrite", "MmioWrite", "Halt"]  # the split ones, byte by byte
    assert vm.read_from_guest(0x5_0004, 4) == b"\x78\x56\x34\x12"
    assert vm.read_from_guest(0x5_0110, 2) == b"\x01\x02"


@needs_kvm
def test_dma_and_guest_see_one_memory_while_the_machine_is_open() -> None:
    vm = AxVM.from_asm("mov edx, 0x300\n out dx, al\n mov eax, [0x5000]\n mov [0x5008], eax\n hlt")

    class Writer(Device):
        name = "writer"

        def write(self, offset: int, width: int, value: int) -> None:
            vm.guest_memory().write(0x5000, b"DMA!")

    vm.get_devices().add_port_dev(Writer(), 0x300, 1)
    exits_of(vm)
    assert vm.read_from_guest(0x5008, 4) == b"DMA!"


@needs_kvm
def test_the_vm_runs_on_with_its_memory_after_kvm_is_closed() -> None:
    vm = AxVM.from_asm("inc dword [0x5000]\n hlt")
    vm.run(1)
    with KvmMachine(vm) as machine:
        pool = vm.memory.pool
        machine.run(lambda reason, answer: True, SECONDS)
    assert vm.memory.pool is not pool
    assert vm.read_from_guest(0x5000, 1) == b"\x01"
    vm.write_to_guest(0x1000, bytes.fromhex("c6 04 25 00 50 00 00 07 f4"))  # mov byte [0x5000], 7; hlt
    vm.vcpu(0).regs.rip = 0x1000
    vm.vcpu(0).cpu.halted = False
    vm.run(2)
    assert vm.read_from_guest(0x5000, 1) == b"\x07"


@needs_kvm
def test_rom_can_be_read_and_a_store_to_it_leaves() -> None:
    vm = AxVM.from_asm("mov eax, [0x700000]\n mov [0x5000], eax\n mov [0x700000], eax\n hlt", memory="2M")
    vm.address_space.map_alloc(0x70_0000, 0x1000, 5, name="rom")
    vm.write_to_guest(0x70_0000, b"ROM.")
    seen, end = exits_of(vm)
    assert vm.read_from_guest(0x5000, 4) == b"ROM."
    assert seen == [(NestedPageFault(0x70_0000, 2), None)]
    assert end.words == "the guest used 0x700000, where nothing is"


@needs_kvm
def test_a_guest_that_never_exits_ends_with_the_time() -> None:
    with KvmMachine(AxVM.from_asm("jmp $")) as machine:
        end = machine.run(lambda reason, answer: True, 0.2)
    assert end.kind == "Timeout"


@needs_kvm
def test_the_listener_can_end_the_run() -> None:
    vm = AxVM.from_asm("loop: out 0x80, al\n jmp loop", missing_device="ones")
    count = 0

    def three(reason: ExitReason, answer: int | None) -> bool:
        nonlocal count
        count += 1
        return count < 3

    with KvmMachine(vm) as machine:
        assert machine.run(three, SECONDS).kind == "Stopped"
    assert count == 3


@pytest.fixture
def board() -> Iterator[dict[str, Any]]:
    """A PC without the parts that take long to make."""
    yield {"platform": "pc", "vga": False, "memory": "2M"}


@needs_kvm
def test_a_timer_interrupt_ends_hlt(board: dict[str, Any]) -> None:
    text = """
        mov word [0x80], handler            ; vector 0x20 of real mode
        mov word [0x82], 0
        mov al, 0x11
        out 0x20, al
        mov al, 0x20
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0x10
        out 0x40, al
        out 0x40, al
        sti
        hlt
        hlt
        cli
        hlt
handler: inc byte [0x5000]
        mov al, 0x20
        out 0x20, al
        iret
    """
    vm = AxVM.from_asm(text, mode="real", base=0x7000, **board)
    seen, end = exits_of(vm)
    assert end.kind == "Halt"
    assert vm.read_from_guest(0x5000, 1) == b"\x02"
    assert Halt() in [reason for reason, _ in seen]


@needs_kvm
@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("mov dx, 0x604\n mov ax, 0x2000\n out dx, ax", "SystemDown", "switched the machine off"),
        ("mov al, 3\n out 0xf4, al", "GuestExit", "ended the run with code 7"),
        ("mov al, 0xfe\n out 0x64, al", "Reset", "the guest reset the machine"),
        ("cli\n hlt", "Halt", "sleeps in HLT and nothing can wake it"),
        ("mov al, 0\n out 0x92, al\n nop\n out 0x80, al", "Unable", "closed the A20 gate"),
        ("mov dx, 0x2e8\n out dx, al", "Device", "port write 0x2e8 width 1: no device"),
    ],
)
def test_every_end_of_a_guest_has_its_word(text: str, kind: str, words: str, board: dict[str, Any]) -> None:
    vm = AxVM.from_asm(text, mode="real", base=0x7000, **board)
    end = exits_of(vm)[1]
    assert end.kind == kind
    assert words in end.words
