"""report.py: words for exits, places, registers, page walks, descriptors and triple faults."""

import pytest

from isa.exits import (
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    SysRegRead,
    SysRegWrite,
    TripleFault,
)
from pysim_vm import AxVM
from pysim_vm.report import (
    Change,
    bit_names,
    changes,
    descriptor_words,
    exit_kind,
    exit_words,
    gate_words,
    instruction_at,
    page_walk,
    peek,
    place,
    register_dump,
    registers_dict,
    selector_words,
    snapshot,
    surroundings,
    triple_fault_report,
    value_words,
)
from pysim_vm.symbols import Symbol, SymbolTable


def triple_fault(text: str, mode: str = "long") -> tuple[AxVM, TripleFault]:
    """A bare machine that ran `text` into a triple fault."""
    vm = AxVM.from_asm(text, mode=mode)
    reason = vm.run(1000)
    assert isinstance(reason, TripleFault)
    return vm, reason


# ---- exits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "answer", "words"),
    [
        (IoWrite(0x3F8, 1, 0x48), None, "OUT 0x3f8 <- 'H' (0x48)"),
        (IoWrite(0x604, 2, 0x2000), None, "OUT 0x604 (2 bytes) <- 0x2000"),
        (IoRead(0x3FD, 1), 0x60, "IN 0x3fd -> 0x60"),
        (IoRead(0xCFC, 4), None, "IN 0xcfc (4 bytes)"),
        (MmioRead(0xFEE00020, 4), 0, "load 0xfee00020 (4 bytes) -> 0x0"),
        (MmioWrite(0xFEE000B0, 4, 0), None, "store 0xfee000b0 (4 bytes) <- 0x0"),
        (SysRegRead(0x1B), 0xFEE00900, "RDMSR 0x1b -> 0xfee00900"),
        (SysRegWrite(0x1B, 5), None, "WRMSR 0x1b <- 0x5"),
        (Halt(), None, "HLT"),
        (Hypercall(2, (1, 0, 0, 0, 0, 0)), None, "VMCALL 0x2(0x1, 0x0, 0x0, 0x0, 0x0, 0x0)"),
        (NestedPageFault(0x1000, 4), None, "fetch of guest-physical 0x1000"),
        (NestedPageFault(0x1000, 2), None, "write of guest-physical 0x1000"),
    ],
)
def test_an_exit_says_what_the_guest_did(reason: object, answer: int | None, words: str) -> None:
    assert exit_words(reason, answer) == words  # type: ignore[arg-type]


def test_the_kinds_of_exits_are_the_buses_names() -> None:
    assert exit_kind(IoRead(1, 1)) == "I/O exit"
    assert exit_kind(MmioWrite(1, 1, 1)) == "MMIO exit"
    assert exit_kind(SysRegRead(1)) == "MSR exit"


def test_only_printable_bytes_are_shown_as_characters() -> None:
    assert value_words(0x41, 1) == "'A' (0x41)"
    assert value_words(0x41, 2) == "0x41"
    assert value_words(0x0A, 1) == "0xa"


# ---- places and instructions -------------------------------------------------------------------------------


def test_a_place_is_segmented_only_in_real_mode_with_a_segment() -> None:
    cpu = AxVM.from_asm("nop", mode="real").vcpu(0).cpu
    assert place(cpu) == "0x1000"
    cpu.cs.load_real(0xF000)
    assert place(cpu, 0xE05B) == "f000:e05b"


def test_a_place_carries_its_symbol() -> None:
    cpu = AxVM.from_asm("nop").vcpu(0).cpu
    symbols = SymbolTable([Symbol("start_kernel", 0xFF0)])
    assert place(cpu, symbols=symbols) == "0x1000 <start_kernel+0x10>"


def test_an_instruction_at_the_end_of_memory_is_still_read() -> None:
    vm = AxVM.from_asm("nop", mode="real", memory="64K")
    vm.write_to_guest(0xFFFF, b"\xf4")
    vm.unmap_region(0, 0x10000)
    assert instruction_at(vm.vcpu(0).cpu, 0xFFFF) == (b"", "(the bytes here cannot be read)")
    vm = AxVM.from_asm("nop", mode="protected", memory="64K")
    vm.write_to_guest(0xFFFF, b"\xf4")
    assert instruction_at(vm.vcpu(0).cpu, 0xFFFF) == (b"\xf4", "hlt")


def test_surroundings_show_executed_instructions_and_mark_rip() -> None:
    vm = AxVM.from_asm("mov eax, 1\nmov ebx, 2\nhlt")
    vm.run(2)
    lines = [line.split() for line in surroundings(vm.vcpu(0).cpu)]
    assert [line[-3:] for line in lines[:2]] == [["mov", "eax,", "0x1"], ["mov", "ebx,", "0x2"]]
    assert lines[2] == [">", "0x100a", "f4", "hlt"]


# ---- memory ------------------------------------------------------------------------------------------------


def test_a_page_walk_names_every_level_and_the_physical_address() -> None:
    cpu = AxVM.from_asm("nop").vcpu(0).cpu
    walk = page_walk(cpu, 0x12345)
    assert [step.level for step in walk.steps] == ["PML4E", "PDPTE", "PDE"]
    assert walk.physical == 0x12345
    assert walk.steps[-1].words == "writable, supervisor, large page"


def test_a_page_walk_ends_at_the_entry_that_is_not_present() -> None:
    cpu = AxVM.from_asm("nop").vcpu(0).cpu
    walk = page_walk(cpu, 8 << 30)
    assert walk.physical is None
    assert walk.steps[-1].level == "PDPTE"
    assert walk.why == "0x200000000 is not mapped: the PDPTE is not present"


def test_a_page_walk_sets_no_accessed_bit() -> None:
    vm = AxVM.from_asm("nop")
    before = vm.read_from_guest(vm.vcpu(0).cpu.cr3, 0x1000)
    page_walk(vm.vcpu(0).cpu, 0x12345)
    assert vm.read_from_guest(vm.vcpu(0).cpu.cr3, 0x1000) == before


def test_a_page_walk_follows_32_bit_tables_with_4_kib_and_4_mib_pages() -> None:
    vm = AxVM.from_asm("nop", mode="protected", memory="16M")
    vm.write_to_guest(0x10000, (0x11003).to_bytes(4, "little") + (0x00400083).to_bytes(4, "little"))
    vm.write_to_guest(0x11004, (0x23003).to_bytes(4, "little"))
    cpu = vm.vcpu(0).cpu
    cpu.cr3, cpu.cr4, cpu.cr0 = 0x10000, 0x10, 0x8000_0011
    assert page_walk(cpu, 0x1ABC).physical == 0x23ABC
    assert page_walk(cpu, 0x412345).physical == 0x412345
    assert page_walk(cpu, 0x2000).why == "0x2000 is not mapped: the PTE is not present"


def test_a_page_walk_with_a_root_outside_ram_says_so() -> None:
    cpu = AxVM.from_asm("nop").vcpu(0).cpu
    cpu.cr3 = 0xF000_0000
    assert page_walk(cpu, 0).why == "the PML4E lies outside RAM: CR3 or a table is wrong"


def test_peek_crosses_pages_and_refuses_what_is_not_mapped() -> None:
    vm = AxVM.from_asm("nop")
    vm.write_to_guest(0x4FFE, b"abcd")
    assert peek(vm.vcpu(0).cpu, 0x4FFE, 4) == b"abcd"
    assert peek(vm.vcpu(0).cpu, (4 << 30) - 2, 4) is None


# ---- registers ---------------------------------------------------------------------------------------------


def test_changes_name_flags_one_by_one_and_leave_rip_out() -> None:
    vm = AxVM.from_asm("xor eax, eax")
    cpu = vm.vcpu(0).cpu
    cpu.rax = 5
    before = snapshot(cpu)
    vm.run(1)
    assert changes(before, snapshot(cpu)) == [Change("rax", 5, 0), Change("PF", 0, 1), Change("ZF", 0, 1)]


def test_small_changes_are_decimal_and_large_ones_hexadecimal() -> None:
    assert str(Change("ZF", 0, 1)) == "ZF 0 -> 1"
    assert str(Change("rsp", 0x8000, 0x7FF8)) == "RSP 0x8000 -> 0x7ff8"


def test_the_dump_has_64_bit_names_in_64_bit_mode_only() -> None:
    long_rows = "\n".join(register_dump(AxVM.from_asm("nop").vcpu(0).cpu))
    real_rows = "\n".join(register_dump(AxVM.from_asm("nop", mode="real").vcpu(0).cpu))
    assert "R15 0000000000000000" in long_rows
    assert "RIP 0000000000001000" in long_rows
    assert "EFER 500 [LME LMA]" in long_rows
    assert "EAX 00000000" in real_rows
    assert "R15" not in real_rows


def test_json_registers_are_texts() -> None:
    assert registers_dict(AxVM.from_asm("nop").vcpu(0).cpu)["rip"] == "0x1000"


def test_bit_names_come_in_bit_order() -> None:
    assert bit_names(0x8000_0011, ((0, "PE"), (4, "ET"), (31, "PG"))) == "PE ET PG"


# ---- descriptors and gates ---------------------------------------------------------------------------------


def test_a_selector_is_followed_to_its_descriptor() -> None:
    cpu = AxVM.from_asm("nop").vcpu(0).cpu
    assert "GDT entry 2" in selector_words(cpu, 0x10)
    assert "64-bit readable code" in selector_words(cpu, 0x10)


def test_a_selector_outside_its_table_says_how_much_room_there_is() -> None:
    cpu = AxVM.from_asm("nop").vcpu(0).cpu
    assert selector_words(cpu, 0x100).endswith(
        "outside the GDT, whose limit 0x2f leaves room for 6 descriptors"
    )
    assert "is null" in selector_words(cpu, 3)


def test_a_descriptor_that_is_not_present_shouts() -> None:
    assert "NOT present" in descriptor_words(0x00CF_1A00_0000_FFFF)
    assert descriptor_words(0) == "all zeros, an empty entry"


def test_a_real_mode_vector_is_a_far_address() -> None:
    vm = AxVM.from_asm("nop", mode="real")
    vm.write_to_guest(0x10 * 4, bytes((0x34, 0x12, 0x00, 0xF0)))
    assert gate_words(vm.vcpu(0).cpu, 0x10) == "vector 16 (#MF, x87 floating-point error): handler f000:1234"


def test_a_long_mode_gate_is_taken_apart() -> None:
    vm = AxVM.from_asm("nop")
    cpu = vm.vcpu(0).cpu
    cpu.idtr.base, cpu.idtr.limit = 0x3000, 0xFFF
    handler = 0xFFFF_8000_1234_5678
    low = handler & 0xFFFF | 0x10 << 16 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48
    vm.write_to_guest(0x3000 + 14 * 16, (low | handler >> 32 << 64).to_bytes(16, "little"))
    assert gate_words(cpu, 14) == (
        "vector 14 (#PF, page fault): interrupt gate to 0x0010:0xffff800012345678, DPL 0, present"
    )


# ---- the triple fault --------------------------------------------------------------------------------------


def test_a_page_fault_without_an_idt_is_told_from_cause_to_end() -> None:
    vm, reason = triple_fault("mov rax, [0x200000000]")
    report = triple_fault_report(vm.vcpu(0).cpu, reason)
    sections = dict(report.sections)
    story = sections["The guest's CPU shut down: triple fault"]
    assert story[0] == "at 0x1000 in 64-bit mode, CPL 0, after 1 instruction"
    assert story[1].endswith("(page fault), because: supervisor read, PDPTE at 0xa040 has P=0")
    assert story[2].startswith("2. #GP(0x73) (general protection) while that was delivered, because: vector")
    assert story[3] == "3. #DF(0x0) (double fault), because: #GP while delivering #PF"
    assert "no LIDT was executed yet" in sections["What to look at first"][0]
    assert "0x200000000 is not mapped: the PDPTE is not present" in sections["Page walk of CR2 = 0x200000000"]
    assert any("outside the table" in row for row in sections["Tables"])


def test_a_stack_that_is_not_mapped_is_recognised() -> None:
    vm, reason = triple_fault("lidt [table]\nmov rsp, 0x200000000\npush rax\ntable: dw 0xfff\ndq 0x3000")
    vm2, reason2 = triple_fault(
        """
        lidt [table]
        mov rdi, 0x3000
        mov word [rdi + 14 * 16], handler
        mov word [rdi + 14 * 16 + 2], 0x10
        mov word [rdi + 14 * 16 + 4], 0x8e00
        mov word [rdi + 8 * 16], handler
        mov word [rdi + 8 * 16 + 2], 0x10
        mov word [rdi + 8 * 16 + 4], 0x8e00
        mov rsp, 0x200000000
        push rax
        handler: hlt
        table: dw 0xfff
        dq 0x3000
        """
    )
    text = triple_fault_report(vm2.vcpu(0).cpu, reason2).text()
    assert "the stack is not mapped" in text
    assert "the stack is not mapped" in triple_fault_report(vm.vcpu(0).cpu, reason).text()
    assert "has no usable gate" in triple_fault_report(vm.vcpu(0).cpu, reason).text()


def test_a_jump_to_unmapped_code_is_recognised() -> None:
    vm, reason = triple_fault("mov rax, 0x200000000\njmp rax")
    assert "CR2 is RIP itself" in triple_fault_report(vm.vcpu(0).cpu, reason).text()


def test_ud2_and_real_garbage_get_different_advice() -> None:
    vm, reason = triple_fault("ud2")
    assert "executed UD2" in triple_fault_report(vm.vcpu(0).cpu, reason).text()
    vm, reason = triple_fault("db 0x06")  # PUSH ES does not exist in 64-bit mode
    assert "may have run into data" in triple_fault_report(vm.vcpu(0).cpu, reason).text()


def test_a_bad_selector_is_decoded() -> None:
    vm, reason = triple_fault("mov ax, 0x100\nmov ds, ax")
    text = triple_fault_report(vm.vcpu(0).cpu, reason).text()
    assert "#GP: selector 0x0100 = GDT entry 32: outside the GDT" in text


def test_the_report_is_data_too_and_shows_traced_instructions() -> None:
    vm, reason = triple_fault("ud2")
    document = triple_fault_report(vm.vcpu(0).cpu, reason, recent=("0x1000 ud2",)).as_dict()
    assert document["chain"] == list(reason.chain)
    sections = document["sections"]
    assert isinstance(sections, dict)
    assert sections["The last instructions"] == ["0x1000 ud2"]


def test_the_report_survives_tables_that_point_nowhere() -> None:
    vm, reason = triple_fault("ud2")
    cpu = vm.vcpu(0).cpu
    cpu.cr3 = 0xFFFF_F000
    cpu.idtr.base, cpu.idtr.limit = 0xFFFF_FFFF_FFFF_F000, 0xFFFF
    cpu.gdtr.base = 0x7FFF_FFFF_F000
    assert "cannot be read" in triple_fault_report(cpu, reason).text()
