"""The PC board: each chip at its address, each wire where it belongs."""

from __future__ import annotations

import pytest

from isa.assembler import assemble
from pysim_vm import AxVMConfig, Budget, Halt, SystemDown
from pysim_vm.board import ram_split
from pysim_vm.config import PysimConfig
from pysim_vm.vm import AxVM

GATE_TAIL = b"\x00\x8e" + bytes(10)


def pc(text: str, *features: str, handlers: dict[int, int] | None = None) -> AxVM:
    """A PC in 64-bit mode, IDT at 0x20000 with gates vector -> offset, each handler HLT."""
    vm = AxVM.from_asm(
        f"lidt [idtr]\n{text}\nidtr: dw 0xfff\ndq 0x20000", platform="pc", cpu_features=list(features)
    )
    selector = vm.vcpu(0).regs.cs.to_bytes(2, "little")
    for vector, offset in (handlers or {}).items():
        vm.write_to_guest(0x20000 + vector * 16, offset.to_bytes(2, "little") + selector + GATE_TAIL)
        vm.write_to_guest(offset, b"\xf4")
    return vm


PIC_AT_0X30 = """
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, 0x30
    out 0x21, al
    mov al, 0x38
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0x21, al
    out 0xa1, al
    xor eax, eax
    out 0x21, al
    out 0xa1, al
"""


@pytest.mark.parametrize(
    ("port", "chip"),
    [
        (0x20, "pic8259"), (0xA1, "pic8259"), (0x4D0, "pic8259"), (0x4D1, "pic8259"), (0x40, "pit8254"),
        (0x43, "pit8254"), (0x61, "pit8254"), (0x60, "i8042"), (0x64, "i8042"), (0x70, "rtc_cmos"),
        (0x71, "rtc_cmos"), (0x80, "post_code"), (0x92, "port92"), (0xE9, "debug_console"),
        (0xF0, "coprocessor_error"), (0x402, "debug_console"), (0xF4, "debug_exit"), (0x3F8, "uart16550"),
        (0x3FF, "uart16550"), (0x510, "fw_cfg"), (0x514, "fw_cfg"), (0x604, "acpi_pm"), (0x608, "acpi_pm"),
        (0xCF8, "pci_host"), (0xCFF, "pci_host"), (0x3D4, "vga_text"),
    ],
)  # fmt: skip
def test_each_chip_sits_at_its_port(port: int, chip: str) -> None:
    entry = AxVM.from_asm("hlt", platform="pc").get_devices().port.find(port)
    assert entry is not None
    assert entry.device.name.replace("-", "_") == chip


def test_the_vga_window_is_mmio_and_a_board_without_vga_has_ram_there() -> None:
    assert AxVM.from_asm("hlt", platform="pc").get_devices().find_mmio_dev(0xB8000) is not None
    plain = AxVM.from_asm("mov word [0xb8000], 0x741\nmov ax, [0xb8000]\nhlt", platform="pc", vga=False)
    assert plain.run_vcpu(0) == Halt()
    assert plain.vcpu(0).regs.ax == 0x741
    assert plain.read_from_guest(0xB8000, 2) == b"\x41\x07"


def test_a_pc_without_the_apic_feature_has_neither_page_nor_msr() -> None:
    vm = AxVM.from_asm("mov eax, 1\ncpuid\nmov ebx, 0xfee00000\nmov ecx, [rbx+0x30]\nhlt", platform="pc")
    vm.get_devices().missing_device = "ones"
    assert vm.board is not None
    assert vm.board.local_apic is None
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.edx >> 9 & 1 == 0
    assert vm.vcpu(0).regs.rcx == 0xFFFF_FFFF


def test_the_pit_interrupts_through_the_8259() -> None:
    vm = pc(
        PIC_AT_0X30
        + "mov al, 0x30\nout 0x43, al\nmov al, 0xe8\nout 0x40, al\nmov al, 3\nout 0x40, al\nsti\nhlt",
        handlers={0x30: 0x7000},
    )
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001
    expected = 1000 * 1_000_000_000 // 1_193_182  # mode 0 counts 1000 periods of the 8254's clock
    assert expected < vm.now_ns() < expected + 64 * 60


def test_com1_interrupts_on_line_4_when_a_character_arrives() -> None:
    vm = pc(
        PIC_AT_0X30 + "mov dx, 0x3f9\nmov al, 1\nout dx, al\nmov dx, 0x3fc\nmov al, 8\nout dx, al\nsti\nhlt",
        handlers={0x34: 0x7000},
    )
    assert vm.run_vcpu(0) == Halt()
    assert vm.board is not None
    vm.board.com1.receive(b"x")
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001


@pytest.mark.parametrize(
    ("features", "pin"), [((), None), (("+apic",), 5)], ids=["through the 8259", "through the I/O APIC"]
)
def test_a_card_of_our_own_interrupts_on_line_5(features: tuple[str, ...], pin: int | None) -> None:
    routing = (
        ""
        if pin is None
        else (
            "mov ebx, 0xfec00000\nmov dword [rbx], 0x1a\nmov dword [rbx+16], 0x45\n"  # pin 5: vector 0x45
            "mov dword [rbx], 0x1b\nmov dword [rbx+16], 0\n"
            "mov ebx, 0xfee00000\nmov dword [rbx+0xf0], 0x1ff\n"
            "mov al, 0xff\nout 0x21, al\nout 0xa1, al\n"
        )
    )
    vector = 0x35 if pin is None else 0x45
    vm = pc(PIC_AT_0X30 + routing + "sti\nhlt", *features, handlers={vector: 0x7000})
    line = vm.irq_line(5, "our card")
    assert vm.run_vcpu(0) == Halt()
    line.raise_()
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001


def test_an_interrupt_ends_hlt_only_if_it_is_enabled() -> None:
    vm = pc(PIC_AT_0X30 + "cli\nhlt", handlers={0x35: 0x7000})
    line = vm.irq_line(5, "our card")
    assert vm.run_vcpu(0) == Halt()
    line.raise_()
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip != 0x7001


@pytest.mark.parametrize(
    ("text", "pressed"),
    [
        ("mov al, 0xfe\nout 0x64, al", "keyboard controller"),
        ("mov al, 1\nout 0x92, al", "port 0x92"),
        ("mov dx, 0xcf9\nmov al, 6\nout dx, al", "PIIX3 reset control"),
    ],
)
def test_every_reset_wire_restarts_the_guest(text: str, pressed: str) -> None:
    guest = f"inc dword [0x8000]\ncmp dword [0x8000], 2\nje done\n{text}\nspin: jmp spin\ndone: hlt"
    vm = AxVM.from_asm(guest, platform="pc")
    assert vm.run_vcpu(0, budget=100) == Halt(), pressed


def test_the_a20_gate_wraps_addresses_at_1_mib() -> None:
    vm = AxVM.from_asm(
        "mov byte [0x8000], 1\nmov byte [0x108000], 2\nmov al, 0\nout 0x92, al\nmov bl, [0x108000]\n"
        "mov al, 2\nout 0x92, al\nmov cl, [0x108000]\nhlt",
        platform="pc",
    )
    assert vm.run_vcpu(0) == Halt()
    assert (vm.vcpu(0).regs.bl, vm.vcpu(0).regs.cl) == (1, 2)


def test_a_reset_opens_the_a20_gate() -> None:
    vm = AxVM.from_asm("mov al, 0\nout 0x92, al\nhlt", platform="pc")
    vm.run_vcpu(0)
    vm.reset()
    assert vm.memory.address_mask >> 20 & 1 == 1


def test_soft_off_is_sleep_type_0_and_nothing_else_powers_down() -> None:
    vm = AxVM.from_asm(
        "mov dx, 0x604\nmov ax, 0x0400\nout dx, ax\nmov ax, 0x2000\nout dx, ax\nhlt", platform="pc"
    )
    assert vm.run_vcpu(0) == SystemDown()
    assert vm.vcpu(0).retired == 5


def test_the_local_apic_follows_its_base_register() -> None:
    vm = pc(
        "mov ecx, 0x1b\nrdmsr\nmov esi, eax\nmov eax, 0x50000900\nwrmsr\nmov ebx, 0x50000000\n"
        "mov edi, [rbx+0x30]\nhlt",
        "+apic",
    )
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.esi == 0xFEE0_0900
    assert vm.vcpu(0).regs.edi & 0xF0 == 0x10  # the version register: an integrated APIC, 0x10-0x1f
    assert vm.get_devices().find_mmio_dev(0xFEE0_0000) is None


def test_the_tsc_deadline_wakes_the_cpu_at_its_time() -> None:
    vm = pc(
        "mov ebx, 0xfee00000\nmov dword [rbx+0xf0], 0x1ff\nmov dword [rbx+0x320], 0x40040\n"
        "mov ecx, 0x6e0\nmov edx, 0\nmov eax, 1000000\nwrmsr\nsti\nhlt",
        "+apic", "+tsc_deadline", handlers={0x40: 0x7000},
    )  # fmt: skip
    assert vm.run_vcpu(0) == Halt()
    assert vm.vcpu(0).regs.rip == 0x7001
    assert 1_000_000 <= vm.now_ns() < 1_000_000 + 64 * 4


@pytest.mark.parametrize(
    ("size", "below", "above"),
    [
        (1 << 20, 1 << 20, 0),
        (3 << 30, 3 << 30, 0),
        ((3 << 30) + 4096, 3 << 30, 4096),
        (8 << 30, 3 << 30, 5 << 30),
    ],
)
def test_ram_over_3_gib_continues_at_4_gib(size: int, below: int, above: int) -> None:
    assert ram_split(size) == (below, above)


def test_the_clock_chip_tells_the_guest_how_much_ram_there_is() -> None:
    def cmos(index: int) -> int:
        vm = AxVM.from_asm(f"mov al, {index}\nout 0x70, al\nin al, 0x71\nhlt", platform="pc", memory="48M")
        vm.run_vcpu(0)
        return vm.vcpu(0).regs.al

    assert cmos(0x34) | cmos(0x35) << 8 == (48 - 16) * 16  # 64 KiB blocks above 16 MiB


def test_interrupt_lines_know_their_owners() -> None:
    devices = AxVM.from_asm("hlt", platform="pc").get_devices()
    assert {line: devices.irq_owners(line) for line in range(16) if devices.irq_owners(line)} == {
        0: ["pit8254"], 1: ["i8042"], 4: ["uart16550"], 8: ["rtc_cmos"], 9: ["acpi_pm"], 12: ["i8042"],
        13: ["coprocessor_error"],
    }  # fmt: skip


def test_a_configuration_can_move_the_debug_exit_port() -> None:
    config = AxVMConfig.for_code("1M", platform="pc", debug_exit_port=0x501)
    assert AxVM(config).get_devices().find_port_dev(0x501).name.replace("-", "_") == "debug_exit"
    assert PysimConfig().debug_exit_port == 0xF4


def test_an_idle_pc_runs_to_its_budget_without_an_exit() -> None:
    vm = AxVM.from_asm("spin: jmp spin", platform="pc")
    assert vm.run_vcpu(0, budget=5000) == Budget(5000)
    assert vm.exit_counts == {}


def test_edx_after_reset_is_the_signature_that_cpuid_gives() -> None:
    vm = AxVM.from_asm("hlt")
    vm.vcpu(0).cpu.reset()
    assert vm.vcpu(0).regs.edx == vm.vcpu(0).cpu.cpuid(vm.vcpu(0).cpu, 1, 0)[0]


FPU_ERROR = f"""
    mov rsp, 0x9000
    {PIC_AT_0X30}
    mov rax, cr0
    and eax, ~0x20              ; CR0.NE = 0: errors take the pin
    mov cr0, rax
    fninit
    fldcw [control]             ; division by zero unmasked
    sti
    fld1
    fldz
    fdivp st1, st0
    nop                         ; the interrupt comes here
    fld1                        ; before this one meets the error
    cli
    hlt
control: dw 0x37b
"""
FPU_HANDLER = """
    inc ebx
    xor eax, eax
    out 0xf0, al
    fnstsw ax
    mov edx, eax
    fnclex
    mov al, 0x20
    out 0xa0, al
    out 0x20, al
    iretq
"""


@pytest.mark.parametrize("engine", ["step", "block"])
def test_an_x87_error_without_cr0_ne_is_interrupt_13(engine: str) -> None:
    vm = pc(FPU_ERROR, handlers={0x3D: 0x6000})
    vm.vcpu(0).cpu.use_blocks = engine == "block"
    vm.write_to_guest(0x6000, assemble(FPU_HANDLER, origin=0x6000))
    assert vm.run(10_000) == Halt()
    regs = vm.vcpu(0).regs
    assert (regs.ebx, regs.edx & 0x84) == (1, 0x84)  # once, with ZE and ES
    assert vm.board is not None
    assert not vm.board.coprocessor_error.state.ferr


PIT_EVERY_MILLISECOND = """
    mov al, 0x34
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 4
    out 0x40, al
"""
NMI_BY_IO_APIC = """
    mov rbx, 0xfec00000
    mov dword [rbx], 0x15       ; destination of pin 2, the PIT: APIC 0
    mov dword [rbx + 16], 0
    mov dword [rbx], 0x14
    mov dword [rbx + 16], 0x400 ; NMI, not masked
"""
NMI_BY_LINT0 = """
    mov rbx, 0xfee00000
    mov dword [rbx + 0x350], 0x400
"""


@pytest.mark.parametrize("route", [NMI_BY_IO_APIC, PIC_AT_0X30 + NMI_BY_LINT0], ids=["I/O APIC", "LINT0"])
def test_hlt_without_if_wakes_for_a_timer_that_is_wired_to_nmi(route: str) -> None:
    vm = pc(f"mov rsp, 0x9000\n{PIT_EVERY_MILLISECOND}{route}cli\nhlt", "+APIC", handlers={2: 0x6000})
    assert vm.run(1_000) == Halt()
    assert vm.vcpu(0).regs.rip == 0x6001  # the handler halts in turn, with further NMIs blocked
    assert 900_000 < vm.now_ns() < 1_200_000


def test_hlt_without_if_ends_the_run_when_nothing_is_wired_to_nmi() -> None:
    vm = pc(f"mov rsp, 0x9000\n{PIT_EVERY_MILLISECOND}cli\nhlt", "+APIC", handlers={2: 0x6000})
    assert vm.run(1_000) == Halt()
    assert vm.now_ns() < 100_000
