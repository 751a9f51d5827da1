"""machine.py: configurations and images become machines that run; axvm's real files too."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from isa.assembler import assemble
from isa.exits import Budget, Halt, SystemDown, TripleFault
from pysim_vm import AxError, AxVM, AxVMConfig, AxVMCrateConfig, vm_from_config, vm_from_image
from pysim_vm.axtypes import StopReason
from pysim_vm.boot_plan import RamMap
from pysim_vm.config import PhysCpuList, check
from pysim_vm.errors import InvalidConfig, InvalidTransition, LoadError
from pysim_vm.lifecycle import VCpuState
from pysim_vm.loader import LoadOptions
from pysim_vm.machine import plan_of_config
from tests.elf_files import Part, build_elf
from tests.guests import guest
from tests.pysim_vm.config_files import ARCEOS_X86_64, BASE, DEVICES, LINUX_SMP1

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# What arceos-x86_64.bin does first: it looks at EAX and EBX, prints, and switches off as axvm's guests do.
MULTIBOOT_KERNEL = """
        cmp eax, 0x2badb002
        jne bad
        mov ecx, [ebx + 8]      ; mem_upper in KiB
        mov [0x300000], ecx
        mov esi, message
next:   lodsb
        test al, al
        jz done
        mov edx, 0x3f8
        out dx, al
        jmp next
done:   mov ax, 0x2000
        mov edx, 0x604
        out dx, ax
bad:    hlt
message: db "Hello from arceos", 10, 0
"""
# A flat image: writes what it finds at 0x9000 to the debug-exit port.
FLAT = assemble("mov al, [0x9000]\nout 0xf4, al\nhlt", bits=16, origin=0x8000)


def kernel_file(directory: Path, name: str = "arceos-x86_64.bin") -> None:
    """The raw multiboot kernel as axvm's arceos file names it."""
    (directory / name).write_bytes(assemble(MULTIBOOT_KERNEL, bits=32, origin=0x20_0000))


def write(directory: Path, text: str) -> Path:
    """`text` as vm.toml."""
    path = directory / "vm.toml"
    path.write_text(text)
    return path


def flat(directory: Path, kernel: str = "", pysim: str = 'platform = "pc"\n', code: bytes = FLAT) -> Path:
    """A configuration for the raw image `code` at 0x8000, with more keys for [kernel] and for [pysim]."""
    (directory / "flat.bin").write_bytes(code)
    addresses = "entry_point = 0x8000\nkernel_load_addr = 0x8000\n" if "boot_protocol" not in kernel else ""
    return write(
        directory,
        '[base]\nid = 7\nname = "flat"\n[kernel]\nkernel_path = "flat.bin"\n'
        f'{addresses}{kernel}\n[pysim]\nmemory = "4M"\n{pysim}',
    )


def notes(vm: AxVM) -> list[tuple[str, str]]:
    """Key and message of every warning about the machine."""
    return [(problem.key, problem.message) for problem in vm.config().warnings]


# --- axvm's real files --------------------------------------------------------------------------------------


def test_axvms_arceos_file_boots_its_kernel_through_the_built_in_blob(tmp_path: Path) -> None:
    kernel_file(tmp_path)
    text = ARCEOS_X86_64.replace('bios_path = "axvm-bios.bin"\n', "enable_bios = true\n")
    vm = AxVM.from_file(write(tmp_path, text))
    assert vm.vcpu(0).regs.rip == 0x8000
    assert vm.run(1000) == SystemDown()
    assert vm.console.text() == "Hello from arceos\n"
    assert int.from_bytes(vm.read_from_guest(0x30_0000, 4), "little") == 15 * 1024


def test_axvms_arceos_file_boots_its_kernel_through_its_own_bios_file(tmp_path: Path) -> None:
    kernel_file(tmp_path)
    bios = """
            cli
            lgdt [gdtr]
            mov eax, cr0
            or al, 1
            mov cr0, eax
            jmp 8:enter
    gdt:    dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
    gdtr:   dw 23
            dd gdt
            bits 32
    enter:  mov ax, 16
            mov ds, ax
            mov eax, 0x2badb002
            mov ebx, 0x6000
            mov ecx, 0x200000
            jmp ecx
    """
    (tmp_path / "axvm-bios.bin").write_bytes(assemble(bios, bits=16, origin=0x8000))
    vm = AxVM.from_file(write(tmp_path, ARCEOS_X86_64))
    assert vm.run(1000) == SystemDown()
    assert vm.console.text() == "Hello from arceos\n"


def test_the_passed_through_apics_of_the_arceos_file_are_the_boards(tmp_path: Path) -> None:
    kernel_file(tmp_path)
    vm = AxVM.from_file(
        write(tmp_path, ARCEOS_X86_64.replace('bios_path = "axvm-bios.bin"\n', "enable_bios = true\n"))
    )
    assert vm.get_devices().find_mmio_dev(0xFEC0_0000).name == "io-apic"
    assert vm.get_devices().find_mmio_dev(0xFEE0_0000) is not None
    assert [key for key, _ in notes(vm)] == ["devices.passthrough_devices[2]"]  # the HPET


def test_nimbos_with_images_in_memory_and_passthrough_interrupts_boots_too(tmp_path: Path) -> None:
    kernel_file(tmp_path, "nimbos.bin")
    text = (
        ARCEOS_X86_64.replace('image_location = "fs"', 'image_location = "memory"')
        .replace("arceos-x86_64.bin", "nimbos.bin")
        .replace('bios_path = "axvm-bios.bin"\n', 'boot_protocol = "multiboot"\n')
    )
    vm = AxVM.from_file(write(tmp_path, text + 'interrupt_mode = "passthrough"\n'))
    assert vm.run(1000) == SystemDown()


@pytest.mark.guest
def test_axvms_linux_smp1_file_boots_debians_kernel(tmp_path: Path) -> None:
    shutil.copy(guest("vmlinuz-cloud-amd64"), tmp_path / "bzImage")
    text = LINUX_SMP1.replace(
        "console=ttyS0", "earlyprintk=ttyS0 console=ttyS0 nokaslr acpi=off pci=off nopti"
    )
    crate = AxVMCrateConfig.from_file(write(tmp_path, text))
    vm = vm_from_config(replace(crate, pysim=replace(crate.pysim, engine="block")))
    found = dict(notes(vm))
    assert "bzImage is of the kind linux and is entered at" in found["kernel.entry_point"]
    assert "which places itself" in found["kernel.kernel_load_addr"]
    while "BIOS-e820" not in vm.console.text() and vm.vcpu(0).retired < 30_000_000:
        assert isinstance(vm.run(1_000_000), Budget)
    assert "Linux version 6." in vm.console.text()
    assert vm.address_space.translate(0x7FF_F000) is not None


def test_axvms_uefi_file_starts_its_firmware_at_the_reset_vector(tmp_path: Path) -> None:
    rom = bytearray(b"\x90" * 0x1_0000)
    code = assemble("mov al, 0x21\nout 0xf4, al\nhlt", bits=16, origin=0xFF00)
    rom[0xFF00 : 0xFF00 + len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<h", 0xFF00 - 0xFFF3)
    (tmp_path / "OVMF.fd").write_bytes(rom)
    text = BASE + (
        '[kernel]\nentry_point = 0xffff_fff0\nboot_protocol = "uefi"\nuefi_firmware_path = "OVMF.fd"\n'
        'bios_load_addr = 0xffc0_0000\nkernel_path = ""\nkernel_load_addr = 0x20_0000\n'
        "memory_regions = [[0x0, 0x100_0000, 0x7, 0], [0xffc0_0000, 0x40_0000, 0x7, 0]]\n"
    )
    vm = AxVM.from_file(write(tmp_path, text + DEVICES))
    assert vm.run(20) == SystemDown()
    assert vm.exit_code == 0x43
    assert ("kernel.bios_load_addr", "OVMF.fd has 0x10000 bytes and ends at 4 GiB, so it is at 0xffff0000; "
            "write that") in notes(vm)  # fmt: skip
    assert vm.board is not None
    devices = vm.get_devices()
    devices.handle_port_write(0x70, 1, 0x34)  # RAM above 16 MiB in units of 64 KiB, low byte
    assert devices.handle_port_read(0x71, 1) == 0  # the firmware's region is not counted as RAM


# --- [kernel] -----------------------------------------------------------------------------------------------


def test_a_flat_image_runs_in_real_mode_at_its_entry(tmp_path: Path) -> None:
    vm = AxVM.from_file(flat(tmp_path))
    assert vm.run(10) == SystemDown()
    assert vm.exit_code == 1
    assert notes(vm) == []


def test_a_flat_image_above_64_kib_is_entered_as_axvm_enters_it(tmp_path: Path) -> None:
    path = flat(tmp_path)
    path.write_text(path.read_text().replace("0x8000", "0x20_0000"))
    vm = AxVM.from_file(path)
    assert vm.vcpu(0).regs.rip == 0x20_0000
    assert vm.run(10) == SystemDown()


def test_a_ramdisk_of_a_raw_image_goes_where_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"\x05")
    vm = AxVM.from_file(flat(tmp_path, 'ramdisk_path = "initrd"\nramdisk_load_addr = 0x9000'))
    assert vm.run(10) == SystemDown()
    assert vm.exit_code == 11


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "a raw kernel finds it by its address; add ramdisk_load_addr"),
        (
            "ramdisk_load_addr = 0x8000",
            "RAM disk initrd at 0x8000-0x8000 overlaps what the loader puts at 0x8000",
        ),
        ("ramdisk_load_addr = 0x40_0000", r"RAM disk initrd at 0x400000-0x400000 lies outside RAM"),
    ],
)
def test_a_ramdisk_that_fits_nowhere_is_one_sentence(tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "initrd").write_bytes(b"\x05")
    with pytest.raises(LoadError, match=words):
        AxVM.from_file(flat(tmp_path, 'ramdisk_path = "initrd"\n' + lines))


def test_a_command_line_for_a_raw_image_is_a_warning(tmp_path: Path) -> None:
    vm = AxVM.from_file(flat(tmp_path, 'cmdline = "quiet"'))
    assert notes(vm) == [
        ("kernel.cmdline", "no effect: flat.bin is of the kind flat, which takes no command line")
    ]


def test_an_elf_program_ignores_the_addresses_and_says_so(tmp_path: Path) -> None:
    program = build_elf(Part(b"\xf4", 0x10_0000), entry=0x10_0000)
    vm = AxVM.from_file(flat(tmp_path, code=program))
    assert vm.run(10) == Halt()
    assert notes(vm) == [
        ("kernel.entry_point", "no effect: flat.bin is of the kind elf and is entered at 0x100000"),
        ("kernel.kernel_load_addr", "no effect: flat.bin is of the kind elf, which places itself"),
    ]


def test_multiboot_refuses_a_kernel_that_is_no_raw_image(tmp_path: Path) -> None:
    program = build_elf(Part(b"\xf4", 0x10_0000), entry=0x10_0000)
    path = flat(tmp_path, 'boot_protocol = "multiboot"', code=program)
    with pytest.raises(
        LoadError, match=r'flat\.bin is of the kind elf, and boot_protocol = "multiboot" starts raw'
    ):
        AxVM.from_file(path)


def test_multiboot_starts_at_the_entry_point_of_the_file(tmp_path: Path) -> None:
    path = flat(tmp_path, 'boot_protocol = "multiboot"\nentry_point = 0x20_0000')
    assert AxVM.from_file(path).vcpu(0).regs.rip == 0x20_0000


def test_the_disk_of_the_file_is_the_boards_first_and_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"\x5a" * 512)
    code = assemble(
        """
        mov dx, 0x1f2
        mov al, 1
        out dx, al              ; one sector
        inc dx
        mov al, 0
        out dx, al              ; LBA 0
        inc dx
        out dx, al
        inc dx
        out dx, al
        inc dx
        mov al, 0xe0
        out dx, al
        inc dx
        mov al, 0x20            ; READ SECTORS
        out dx, al
wait:   in al, dx
        test al, 8
        jz wait
        mov dx, 0x1f0
        in ax, dx
        out 0xf4, al
        hlt
        """,
        bits=16,
        origin=0x8000,
    )
    vm = AxVM.from_file(flat(tmp_path, 'disk_path = "disk.img"', code=code))
    assert vm.run(100_000) == SystemDown()
    assert vm.exit_code == 2 * 0x5A + 1


def test_each_mapping_type_gives_the_guest_its_ram(tmp_path: Path) -> None:
    path = flat(
        tmp_path,
        "memory_regions = [[0, 0x10_0000, 7, 0], [0x10_0000, 0x1000, 7, 1], [0x20_0000, 0x1000, 7, 2]]",
    )
    path.write_text(path.read_text().replace('memory = "4M"\n', ""))
    vm = AxVM.from_file(path)
    assert [(region.gpa, region.size) for region in vm.memory_regions()] == [
        (0, 0x10_0000), (0x10_0000, 0x1000), (0x20_0000, 0x1000),
    ]  # fmt: skip
    assert [region.is_identical() for region in vm.memory_regions()[1:]] == [True, True]
    assert [region.needs_dealloc for region in vm.memory_regions()] == [True, True, False]
    vm.write_to_guest(0x20_0FF8, b"reserved")


def test_a_rom_of_a_configuration_gets_the_cpu_that_firmware_wants(tmp_path: Path) -> None:
    path = flat(tmp_path, code=bytes(0xFFF0) + b"\xeb\xfe" + bytes(14))
    vm = AxVM.from_file(path)
    assert vm.plan is not None and vm.plan.protocol == "firmware"
    assert vm.board is not None and vm.board.local_apic is not None
    (tmp_path / "vm.toml").write_text(path.read_text() + 'cpu_features = ["-rdrand"]\n')
    own = AxVM.from_file(path)
    assert own.board is not None and own.board.local_apic is None


def test_the_plan_of_a_configuration_can_be_had_alone(tmp_path: Path) -> None:
    crate = AxVMCrateConfig.from_file(flat(tmp_path))
    assert plan_of_config(crate, RamMap.of([(0, 0x10_0000)])).protocol == "flat"


# --- [base] and [pysim] -------------------------------------------------------------------------------------


def test_a_second_cpu_is_refused_also_without_a_file() -> None:
    config = AxVMConfig(5, "pair", phys_cpu_ls=PhysCpuList(2))
    with pytest.raises(InvalidConfig, match=r"VM\[5\] has 2 vCPUs: this machine has one CPU for now"):
        AxVM(config)


@pytest.mark.default_engine
def test_the_engine_of_the_file_decides_whether_blocks_are_used(tmp_path: Path) -> None:
    used = {}
    for engine in ("step", "block", "auto"):
        path = flat(tmp_path, pysim=f'platform = "pc"\nengine = "{engine}"\n')
        used[engine] = AxVM.from_file(path).vcpu(0).cpu.use_blocks
    assert used == {"step": False, "block": True, "auto": True}
    assert AxVM.from_file(flat(tmp_path)).vcpu(0).cpu.use_blocks is True


# Counts its starts at 0x9000, and triple-faults until the third.
TRIPLE_FAULT = assemble(
    """
        inc byte [0x9000]
        cmp byte [0x9000], 3
        je done
        lidt [limit]
        ud2
done:   mov al, 3
        out 0xf4, al
        hlt
limit:  dw 0
        dd 0
    """,
    bits=16,
    origin=0x8000,
)


def test_a_triple_fault_ends_the_run_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    vm = AxVM.from_file(flat(tmp_path, code=TRIPLE_FAULT))
    vm.boot()
    assert isinstance(vm.run_vcpu(0, 100), TripleFault)


def test_a_triple_fault_can_reset_the_machine_as_on_a_pc(tmp_path: Path) -> None:
    path = flat(tmp_path, code=TRIPLE_FAULT, pysim='platform = "pc"\nexit_on_triple_fault = false\n')
    vm = AxVM.from_file(path)
    assert vm.run(100) == SystemDown()
    assert vm.exit_code == 7  # RAM is kept: the third start counted three
    assert vm.exit_counts["TripleFault"] == 2


def test_endless_triple_faults_use_up_the_budget(tmp_path: Path) -> None:
    code = assemble("lidt [0x9000]\nud2", bits=16, origin=0x8000)
    path = flat(tmp_path, code=code, pysim='platform = "pc"\nexit_on_triple_fault = false\n')
    vm = AxVM.from_file(path)
    assert isinstance(vm.run(1000), Budget)
    assert vm.exit_counts["TripleFault"] > 100


# --- messages -----------------------------------------------------------------------------------------------


def test_a_wrong_step_of_a_vm_names_it(tmp_path: Path) -> None:
    vm = AxVM.from_file(flat(tmp_path))
    with pytest.raises(InvalidTransition, match=r'^VM\[7\]: "resume" cannot lead from'):
        vm.resume()
    vm.stop(StopReason.clean())
    with pytest.raises(InvalidTransition, match=r"^VM\[7\]: "):
        vm.pause()


def test_a_wrong_step_of_a_vcpu_names_it_and_its_vm(tmp_path: Path) -> None:
    vcpu = AxVM.from_file(flat(tmp_path)).vcpu(0)
    with pytest.raises(InvalidTransition, match=r'^VM\[7\] vCPU\[0\]: "unbind" cannot lead from Free'):
        vcpu.unbind()
    with pytest.raises(InvalidTransition, match=r"^VM\[7\] vCPU\[0\]: "):
        vcpu.with_state_transition(VCpuState.Ready, VCpuState.Running, lambda: None)


# --- images and the short way -------------------------------------------------------------------------------


def test_an_image_becomes_a_pc_by_either_name(tmp_path: Path) -> None:
    (tmp_path / "flat.bin").write_bytes(FLAT)
    options = LoadOptions(load_address=0x8000)
    for make in (AxVM.from_image, vm_from_image):
        vm = make(tmp_path / "flat.bin", options, memory="1M", ns_per_instruction=8)
        assert vm.ns_per_instruction == 8
        assert vm.run(10) == SystemDown()


def test_a_third_disk_and_a_rom_without_a_board_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flat.bin").write_bytes(FLAT)
    options = LoadOptions(load_address=0x8000)
    with pytest.raises(LoadError, match="3 disks given, the IDE channel takes two"):
        vm_from_image(tmp_path / "flat.bin", options, disks=[tmp_path / "flat.bin"] * 3)
    with pytest.raises(LoadError, match='ROM a: fw_cfg is part of the PC board; use platform = "pc"'):
        vm_from_image(tmp_path / "flat.bin", options, roms={"a": tmp_path / "flat.bin"}, platform="none")


def test_a_missing_image_of_a_configuration_is_one_sentence(tmp_path: Path) -> None:
    path = flat(tmp_path)
    (tmp_path / "flat.bin").unlink()
    with pytest.raises(
        LoadError, match=r"flat\.bin cannot be read \(No such file or directory\); check the path"
    ):
        AxVM.from_file(path)


# --- examples/ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flat", "board", "seabios", "linux"])
def test_an_example_is_a_clean_file(name: str) -> None:
    assert check(EXAMPLES / f"{name}.toml") == []


def test_the_examples_have_ids_of_their_own() -> None:
    files = [path for path in sorted(EXAMPLES.glob("*.toml")) if "[base]" in path.read_text()]
    assert len(files) >= 4  # the others are no machines, but workloads and sweeps
    assert check(*files) == []


def test_the_image_of_the_examples_is_its_source_assembled() -> None:
    source = (EXAMPLES / "hello.asm").read_text()
    assert (EXAMPLES / "hello.bin").read_bytes() == assemble(source, bits=16, origin=0x8000)


@pytest.mark.parametrize("name", ["flat", "board"])
def test_the_small_examples_greet_and_end(name: str) -> None:
    vm = AxVM.from_file(EXAMPLES / f"{name}.toml")
    assert vm.run(1000) == SystemDown()
    assert vm.exit_code == 33
    assert vm.console.text() == "Hello from a configured machine\n"
    assert (vm.board is None) == (name == "board")


@pytest.mark.guest
def test_the_seabios_example_prints_its_banner() -> None:
    crate = AxVMCrateConfig.from_file(EXAMPLES / "seabios.toml")
    vm = vm_from_config(replace(crate, kernel=replace(crate.kernel, kernel_path=str(guest("bios.bin")))))
    vm.run(2000)
    assert vm.debug_console.text().startswith("SeaBIOS (version")


@pytest.mark.guest
def test_the_linux_example_loads_debians_kernel() -> None:
    crate = AxVMCrateConfig.from_file(EXAMPLES / "linux.toml")
    paths = {"kernel_path": str(guest("vmlinuz-cloud-amd64")), "ramdisk_path": str(guest("busybox"))}
    vm = vm_from_config(replace(crate, kernel=replace(crate.kernel, **paths)))
    assert vm.config().warnings == []
    assert isinstance(vm.run(100_000), Budget)
    assert vm.vcpu(0).cpu.mode_name() == "64-bit"


def test_an_unknown_model_of_a_configuration_is_an_error_with_its_vm(tmp_path: Path) -> None:
    path = flat(tmp_path, pysim='platform = "pc"\n[[devices.virtual]]\nmodel = "uart16551"\n')
    with pytest.raises(
        AxError, match=r"VM\[7\]: devices\.virtual: model 'uart16551' is unknown; did you mean 'uart16550'\?"
    ):
        AxVM.from_file(path)


def test_a_model_at_the_place_of_the_boards_own_chip_is_that_chip(tmp_path: Path) -> None:
    path = flat(
        tmp_path, pysim='platform = "pc"\n[[devices.virtual]]\nmodel = "uart16550"\nports = [0x3f8, 8]\n'
    )
    vm = AxVM.from_file(path)
    assert vm.board is not None
    assert vm.get_devices().find_port_dev(0x3F8) is vm.board.com1
