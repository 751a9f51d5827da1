"""Delivery of events: gates against a model of SDM Vol. 2 "INT n", faults in delivery, frames, exits."""

from __future__ import annotations

from itertools import product

import pytest

from isa.cpu import Cpu
from isa.exits import MmioWrite, NestedPageFault, TripleFault
from isa.faults import (
    AlignmentCheck,
    BoundRange,
    DebugException,
    DeviceNotAvailable,
    DivideError,
    DoubleFault,
    Fault,
    FpuError,
    GeneralProtection,
    InvalidOpcode,
    InvalidTss,
    MachineCheck,
    PageFault,
    SegmentNotPresent,
    SimdException,
    StackFault,
)
from isa.interrupts import INT3, INT_N, escalates
from isa.state import CR0_AM, CR4_VME
from tests.isa.machine import CODE as ORIGIN
from tests.isa.machine import RAM, STACK, make_cpu
from tests.isa.tables import (
    CODE,
    CODE_SELECTOR,
    CONFORMING_CODE,
    DATA,
    DATA_SELECTOR,
    HANDLER,
    IDT,
    IST_TOP,
    SLOT,
    STACK_TOP,
    TSS,
    TSS_SELECTOR,
    descriptor,
    gate,
    gate64,
    get,
    outcome,
    put,
    set_entry,
    set_gate,
    set_level,
    table_cpu,
    words,
)

VECTOR = 0x41
GATE_ERROR = VECTOR * 8 | 2
RF, VM, IF, TF, NT = 1 << 16, 1 << 17, 1 << 9, 1 << 8, 1 << 14


def all_state(cpu: Cpu) -> list[object]:
    """Everything a failed delivery must leave alone."""
    segments = [
        (s.selector, s.base, s.limit, s.attributes, s.null) for s in (*cpu.segments, cpu.ldtr, cpu.tr)
    ]
    names = ("rax", "rsp", "rbp", "rip", "cpl", "cr0", "cr3", "dr7", "stack_mask", "code_bits", "mode64")
    return [segments, [getattr(cpu, name) for name in names], cpu.rflags()]


def to_v86(cpu: Cpu, iopl: int = 0) -> None:
    """Put a protected-mode CPU into virtual-8086 mode with distinct segments."""
    for n, segment in enumerate(cpu.segments):
        segment.load_v86(0x100 + n)
    cpu.cpl, cpu.vm, cpu.iopl = 3, 1, iopl
    cpu.rsp, cpu.rip = 0x300, 0x200
    cpu.update_mode()


# ---- gates against the manual ------------------------------------------------------------------------------


def expected_delivery(
    bits: int, kind: int, gate_dpl: int, gate_present: int, code: int, code_dpl: int, code_present: int,
    cpl: int, software: bool,
) -> str:  # fmt: skip
    """SDM Vol. 2, INT n: PROTECTED-MODE, IA-32e-MODE and TRAP-OR-INTERRUPT-GATE, as "#GP(code)" or ""."""
    ext = 0 if software else 1
    if kind not in ((6, 7, 14, 15) if bits == 32 else (14, 15)):
        return f"#GP({GATE_ERROR | ext:#x})"
    if software and gate_dpl < cpl:
        return f"#GP({GATE_ERROR:#x})"
    if not gate_present:
        return f"#NP({GATE_ERROR | ext:#x})"
    if code not in (CODE, CONFORMING_CODE) or code_dpl > cpl:
        return f"#GP({SLOT | ext:#x})"
    return "" if code_present else f"#NP({SLOT | ext:#x})"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("software", [False, True])
def test_every_interrupt_and_trap_gate_agrees_with_the_manual(bits: int, software: bool) -> None:
    cpu = table_cpu(bits)
    kinds = [kind for kind in range(32) if kind != 5]
    few = (0, 6, 7, 14, 15)  # with these, every target
    cases = [(kind, 3, 1, CODE, 0, 1, cpl) for kind in kinds for cpl in range(4)]
    cases += list(product(few, range(4), (0, 1), (CODE, CONFORMING_CODE, DATA), range(4), (0, 1), range(4)))
    size_of = {6: 2, 7: 2, 14: 8 if bits == 64 else 4, 15: 8 if bits == 64 else 4}
    for kind, gate_dpl, gate_present, code, code_dpl, code_present, cpl in cases:
        set_level(cpu, cpl)
        cpu.rsp, cpu.rip = STACK, ORIGIN
        cpu.set_rflags_raw(IF | TF | NT | 0x8D7)
        flags = cpu.rflags()
        old_cs, old_ss = cpu.cs.selector, cpu.ss.selector
        make = gate64 if bits == 64 else gate
        set_gate(cpu, VECTOR, make(kind, SLOT | 3, dpl=gate_dpl, present=gate_present))
        set_entry(
            cpu, SLOT, descriptor(code, code_dpl, present=code_present, flags=0xA if bits == 64 else 0xC)
        )
        before = all_state(cpu)
        case = (hex(kind), gate_dpl, gate_present, hex(code), code_dpl, code_present, cpl)
        want = expected_delivery(
            bits, kind, gate_dpl, gate_present, code, code_dpl, code_present, cpl, software
        )
        if software:
            assert outcome(cpu.software_interrupt, VECTOR, INT_N) == want, case
        else:
            put(cpu, IDT, 0, 16)
            cpu.idtr.limit = (VECTOR + 1) * (16 if bits == 64 else 8) - 1
            chain = first_failure(cpu)
            assert chain == want, case
        if want:
            assert all_state(cpu) == before, case
            continue
        level = code_dpl if code == CODE else cpl
        size = size_of[kind]
        assert (cpu.cs.selector, cpu.rip, cpu.cpl) == (SLOT | level, HANDLER, level), case
        assert (cpu.if_, cpu.tf, cpu.nt, cpu.rf) == (kind & 1, 0, 0, 0), case
        frame = [ORIGIN, old_cs, flags & (1 << 8 * size) - 1]
        if level < cpl or bits == 64:
            frame += [STACK, old_ss]
        top = (STACK_TOP[level] if level < cpl else STACK) - size * len(frame)
        assert cpu.rsp == top, case
        assert words(cpu, top, len(frame), size) == frame, case


def first_failure(cpu: Cpu) -> str:
    """Deliver VECTOR as hardware does; "" or the first fault of the delivery, its text cut at the colon."""
    chain = cpu.deliver_external(VECTOR)
    if chain is None:
        return ""
    assert chain[0] == f"interrupt {VECTOR:#04x}"
    return chain[1].split(":")[0]


def test_an_exception_ignores_the_gate_dpl() -> None:
    cpu = table_cpu(32, 3)
    set_gate(cpu, 6, gate(14, CODE_SELECTOR[0], dpl=0))
    assert cpu.deliver_fault(InvalidOpcode()) is None
    assert cpu.rip == HANDLER


@pytest.mark.parametrize(("bits", "size"), [(32, 8), (64, 16)])
def test_a_vector_past_the_idt_limit_is_a_protection_fault_with_the_idt_bit(bits: int, size: int) -> None:
    cpu = table_cpu(bits)
    set_gate(cpu, VECTOR, (gate64 if bits == 64 else gate)(14, 8, dpl=3))
    cpu.idtr.limit = (VECTOR + 1) * size - 2
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == f"#GP({GATE_ERROR:#x})"
    cpu.idtr.limit += 1
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == ""


def test_a_null_code_selector_in_a_gate_faults_with_zero() -> None:
    cpu = table_cpu(32)
    set_gate(cpu, VECTOR, gate(14, 3, dpl=3))
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#GP(0x0)"


def test_a_64_bit_gate_must_lead_to_64_bit_code() -> None:
    cpu = table_cpu(64)
    set_gate(cpu, VECTOR, gate64(14, SLOT))
    for flags in (0xC, 0xE):
        set_entry(cpu, SLOT, descriptor(CODE, 0, flags=flags))
        assert outcome(cpu.software_interrupt, VECTOR, INT_N) == f"#GP({SLOT:#x})"


def test_a_handler_outside_its_code_segment_faults_with_zero() -> None:
    cpu = table_cpu(32)
    set_entry(cpu, SLOT, descriptor(CODE, 0, limit=HANDLER - 1, flags=4))
    set_gate(cpu, VECTOR, gate(14, SLOT))
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#GP(0x0)"


def test_a_noncanonical_handler_or_stack_is_refused() -> None:
    cpu = table_cpu(64)
    set_gate(cpu, VECTOR, gate64(14, 8, 0x8000_0000_0000))
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#GP(0x0)"
    set_gate(cpu, VECTOR, gate64(14, 8, ist=1))
    put(cpu, TSS + 0x24, 0x8000_0000_0020)
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#SS(0x0)"


# ---- frames ------------------------------------------------------------------------------------------------


def test_an_error_code_is_pushed_last_with_the_gates_size() -> None:
    for kind, size in ((6, 2), (14, 4)):
        cpu = table_cpu(32, 3, rsp=STACK)
        set_gate(cpu, 13, gate(kind, CODE_SELECTOR[0]))
        assert cpu.deliver_fault(GeneralProtection(0x1234)) is None
        assert cpu.rsp == STACK_TOP[0] - 6 * size
        assert get(cpu, cpu.rsp, size) == 0x1234


def test_long_mode_aligns_the_stack_and_always_pushes_ss_and_rsp() -> None:
    cpu = table_cpu(64, rsp=STACK + 13)
    set_gate(cpu, 13, gate64(14, 8))
    assert cpu.deliver_fault(GeneralProtection(0x10)) is None
    assert cpu.rsp == STACK - 48
    assert words(cpu, cpu.rsp, 6, 8) == [0x10, ORIGIN, 8, 2 | RF, STACK + 13, 0x10]
    assert (cpu.ss.selector, cpu.ss.null) == (0x10, False)  # the same level keeps SS


@pytest.mark.parametrize("ist", range(1, 8))
@pytest.mark.parametrize("level", [0, 3])
def test_ist_gives_the_stack_at_any_level(ist: int, level: int) -> None:
    cpu = table_cpu(64, level, rsp=STACK)
    set_gate(cpu, 8, gate64(14, 8, ist=ist))
    assert cpu.deliver_fault(DoubleFault(0)) is None
    assert cpu.rsp == IST_TOP + 0x40 * (ist - 1) - 48
    assert (cpu.ss.null, cpu.ss.selector) == ((True, 0) if level else (False, 0x10))


def test_an_ist_entry_outside_the_tss_is_invalid() -> None:
    cpu = table_cpu(64)
    set_gate(cpu, VECTOR, gate64(14, 8, ist=7))
    cpu.tr.limit = 0x24 + 6 * 8 + 6
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == f"#TS({TSS_SELECTOR:#x})"


def test_compatibility_mode_is_left_through_a_64_bit_gate() -> None:
    cpu = table_cpu(64, 3, rsp=0x1_0000_8000)
    cpu.cs.load_raw(0x63, 0, 0xFFFF_FFFF, 0xC0FB)
    cpu.update_mode()
    set_gate(cpu, VECTOR, gate64(14, 8, dpl=3))
    cpu.software_interrupt(VECTOR, INT_N)
    assert (cpu.mode_name(), cpu.cpl, cpu.rsp) == ("64-bit", 0, STACK_TOP[0] - 40)
    assert words(cpu, cpu.rsp, 2, 8) == [ORIGIN, 0x63]


def test_virtual_8086_mode_pushes_and_nulls_its_segments() -> None:
    cpu = table_cpu(32)
    to_v86(cpu)
    set_gate(cpu, VECTOR, gate(14, CODE_SELECTOR[0]))
    flags = cpu.rflags()
    assert cpu.deliver_external(VECTOR) is None
    es, cs, ss, ds, fs, gs = range(0x100, 0x106)
    assert words(cpu, cpu.rsp, 9) == [0x200, cs, flags, 0x300, ss, es, ds, fs, gs]
    assert flags & VM
    assert (cpu.rsp, cpu.vm, cpu.cpl, cpu.mode_name()) == (STACK_TOP[0] - 36, 0, 0, "32-bit protected")
    assert all(s.null and not s.selector for s in (cpu.ds, cpu.es, cpu.fs, cpu.gs))


@pytest.mark.parametrize(("kind", "dpl"), [(CODE, 1), (CODE, 3), (CONFORMING_CODE, 0)])
def test_a_handler_for_virtual_8086_mode_must_be_nonconforming_ring_0(kind: int, dpl: int) -> None:
    cpu = table_cpu(32)
    to_v86(cpu, iopl=3)
    set_entry(cpu, SLOT, descriptor(kind, dpl))
    set_gate(cpu, VECTOR, gate(14, SLOT, dpl=3))
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == f"#GP({SLOT:#x})"


def test_real_mode_pushes_three_words_and_clears_if_tf_ac() -> None:
    cpu = make_cpu(16, if_=1, tf=1, ac=1, cf=1)
    put(cpu, VECTOR * 4, 0x2000_0123, 4)
    assert cpu.deliver_external(VECTOR) is None
    assert (cpu.cs.base, cpu.rip, cpu.rsp) == (0x20000, 0x123, STACK - 6)
    assert words(cpu, STACK - 6, 3, 2) == [ORIGIN, 0, 0x303]
    assert (cpu.if_, cpu.tf, cpu.ac, cpu.cf) == (0, 0, 0, 1)


def test_real_mode_has_no_error_codes_and_follows_idtr() -> None:
    cpu = make_cpu(16)
    cpu.idtr.base = 0x7000
    put(cpu, 0x7000 + 13 * 4, 0x0000_0123, 4)
    assert cpu.deliver_fault(GeneralProtection(0x10)) is None
    assert (cpu.rip, cpu.rsp) == (0x123, STACK - 6)


def test_a_16_bit_inner_stack_changes_sp_only() -> None:
    cpu = table_cpu(32, 3, rsp=0x5_4321)
    set_entry(cpu, SLOT, descriptor(DATA, 0, limit=0xFFFF, flags=0))
    put(cpu, TSS + 8, SLOT, 2)
    set_gate(cpu, VECTOR, gate(14, 8, dpl=3))
    cpu.software_interrupt(VECTOR, INT_N)
    assert cpu.rsp == 0x5_0000 | STACK_TOP[0] - 20
    assert get(cpu, STACK_TOP[0] - 8, 4) == 0x5_4321


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (InvalidOpcode(), RF), (PageFault(0, 0), RF), (DoubleFault(0), 0), (MachineCheck(), 0),
        (DebugException(1 << 14), 0), (DebugException(1, trap=False), 0),
        (DebugException(1 << 13, trap=False), RF),
    ],
    ids=["#UD", "#PF", "#DF", "#MC", "single step", "breakpoint", "general detect"],
)  # fmt: skip
def test_rf_is_set_in_the_pushed_image_of_faults_only(fault: Fault, expected: int) -> None:
    cpu = table_cpu(32, rsp=STACK)
    set_gate(cpu, fault.vector, gate(14, 8))
    assert cpu.deliver_fault(fault) is None
    image = get(cpu, STACK - 4, 4)
    assert image & RF == expected


def test_an_interrupt_between_two_rep_iterations_pushes_rf() -> None:
    cpu = table_cpu(32, code=bytes.fromhex("f3 aa"), rcx=100, rdi=0x9000, if_=1)
    set_gate(cpu, VECTOR, gate(14, 8))
    cpu.run(cpu.retired + 10)
    assert cpu.rip == ORIGIN
    cpu.injected.append(VECTOR)
    cpu.request_attention()
    cpu.step()
    assert get(cpu, cpu.rsp, 4) == ORIGIN
    assert get(cpu, cpu.rsp + 8, 4) & RF


# ---- CR2, DR6, DR7 -----------------------------------------------------------------------------------------


def test_a_page_fault_writes_cr2_even_if_its_delivery_fails() -> None:
    cpu = table_cpu(32)
    assert cpu.deliver_fault(PageFault(0xDEAD_B000, 2)) is not None
    assert cpu.cr2 == 0xDEAD_B000


def test_a_debug_exception_replaces_the_breakpoint_bits_and_keeps_the_others() -> None:
    cpu = table_cpu(32)
    set_gate(cpu, 1, gate(14, 8))
    cpu.dr6 |= 1 << 14 | 3
    cpu.dr7 |= 1 << 13
    assert cpu.deliver_fault(DebugException(8)) is None
    assert cpu.dr6 == 0xFFFF_0FF0 | 1 << 14 | 8
    assert not cpu.dr7 & 1 << 13


# ---- faults while delivering -------------------------------------------------------------------------------

# SDM Vol. 3, "Double Fault Exception (#DF)", the table of classes
BENIGN = (DebugException(1), BoundRange(), InvalidOpcode(), DeviceNotAvailable(), FpuError(),
          AlignmentCheck(0), MachineCheck(), SimdException())  # fmt: skip
CONTRIBUTORY = (DivideError(), InvalidTss(0), SegmentNotPresent(0), StackFault(0), GeneralProtection(0))
PAGE_FAULT = (PageFault(0, 0),)


@pytest.mark.parametrize(
    ("first", "second", "double"),
    [
        (BENIGN, BENIGN, False), (BENIGN, CONTRIBUTORY, False), (BENIGN, PAGE_FAULT, False),
        (CONTRIBUTORY, BENIGN, False), (CONTRIBUTORY, CONTRIBUTORY, True), (CONTRIBUTORY, PAGE_FAULT, False),
        (PAGE_FAULT, BENIGN, False), (PAGE_FAULT, CONTRIBUTORY, True), (PAGE_FAULT, PAGE_FAULT, True),
    ],
)  # fmt: skip
def test_every_pair_of_exceptions_is_serial_or_a_double_fault(
    first: tuple[Fault, ...], second: tuple[Fault, ...], double: bool
) -> None:
    for one, two in product(first, second):
        assert escalates(one, two) == double, (one.name, two.name)


def test_a_fault_delivering_a_benign_exception_replaces_it() -> None:
    cpu = table_cpu(32, rsp=STACK)
    set_gate(cpu, 11, gate(14, 8))
    set_gate(cpu, 6, gate(14, 8, present=0))
    assert cpu.deliver_fault(InvalidOpcode()) is None
    assert words(cpu, cpu.rsp, 2) == [6 * 8 | 2 | 1, ORIGIN]  # #NP with IDT and EXT


def test_a_fault_delivering_a_contributory_exception_is_a_double_fault_with_code_zero() -> None:
    cpu = table_cpu(32, rsp=STACK)
    set_gate(cpu, 8, gate(14, 8))
    assert cpu.deliver_fault(GeneralProtection(0x10)) is None
    assert words(cpu, cpu.rsp, 2) == [0, ORIGIN]
    assert cpu.rip == HANDLER


def test_double_fault_through_ist_survives_a_broken_stack() -> None:
    cpu = table_cpu(64, rsp=0x8000_0000_0000_0000)
    set_gate(cpu, 8, gate64(14, 8, ist=2))
    set_gate(cpu, 14, gate64(14, 8))
    set_gate(cpu, 12, gate64(14, 8))
    assert cpu.deliver_fault(PageFault(0x1234, 0)) is None
    assert (cpu.rip, cpu.rsp, cpu.cr2) == (HANDLER, IST_TOP + 0x40 - 48, 0x1234)
    assert words(cpu, cpu.rsp, 2, 8) == [0, ORIGIN]


def test_a_triple_fault_tells_the_whole_chain() -> None:
    cpu = table_cpu(32, code=bytes.fromhex("0f 0b"))
    set_gate(cpu, 6, gate(14, SLOT))
    set_gate(cpu, 13, gate(14, 8, present=0))
    reason = cpu.step()
    assert isinstance(reason, TripleFault)
    assert [link.split(":")[0] for link in reason.chain] == [
        "#UD", "#GP(0x59)", "#NP(0x6b)", "#DF(0x0)", "#GP(0x43)",
    ]  # fmt: skip
    assert reason.chain[1].endswith("gate to reserved type 0, which is not a code segment")
    assert reason.chain[3].endswith("#NP while delivering #GP")
    assert cpu.rip == ORIGIN and cpu.halted


def test_ext_is_set_for_hardware_and_exceptions_but_not_for_int_n() -> None:
    cpu = table_cpu(32, rsp=STACK, code=bytes.fromhex("cd 41"))
    set_gate(cpu, 13, gate(14, 8))
    assert cpu.step() is None
    assert words(cpu, cpu.rsp, 2) == [GATE_ERROR, ORIGIN]  # INT n itself is the return address
    cpu = table_cpu(32, rsp=STACK)
    set_gate(cpu, 13, gate(14, 8))
    assert cpu.deliver_external(VECTOR) is None
    assert words(cpu, cpu.rsp, 2) == [GATE_ERROR | 1, ORIGIN]


def test_int1_sets_ext_and_ignores_the_gate_dpl() -> None:
    cpu = table_cpu(32, 3, rsp=STACK, code=bytes.fromhex("f1"))
    set_gate(cpu, 13, gate(14, 8))
    assert cpu.step() is None
    assert get(cpu, cpu.rsp, 4) == 1 * 8 | 2 | 1
    cpu = table_cpu(32, 3, rsp=STACK, code=bytes.fromhex("f1"))
    set_gate(cpu, 1, gate(14, 8, dpl=0))
    dr6 = cpu.dr6
    assert cpu.step() is None
    assert (cpu.rip, get(cpu, cpu.rsp, 4), cpu.dr6) == (HANDLER, ORIGIN + 1, dr6)


def test_endless_alignment_checks_give_the_budget_a_chance() -> None:
    cpu = table_cpu(32, 3, rsp=STACK + 1)
    cpu.cr0 |= CR0_AM
    cpu.ac = 1
    cpu.update_mode()
    set_entry(cpu, SLOT, descriptor(CODE, 3))
    set_gate(cpu, 17, gate(14, SLOT | 3))
    before = all_state(cpu)
    assert cpu.deliver_fault(AlignmentCheck(0)) is None
    assert all_state(cpu) == before


# ---- exits in the middle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_an_unmapped_stack_exits_with_nothing_changed_and_delivery_goes_on(bits: int) -> None:
    code = bytes.fromhex("0f 0b")
    cpu = make_cpu(16, code) if bits == 16 else table_cpu(bits, code=code)
    if bits == 16:
        put(cpu, 6 * 4, HANDLER, 4)
        cpu.ss.base = RAM
    else:
        set_gate(cpu, 6, gate64(14, 8) if bits == 64 else gate(14, 8))
        cpu.rsp = RAM + 0x800
    before = all_state(cpu)
    assert isinstance(cpu.step(), NestedPageFault)
    assert all_state(cpu) == before
    cpu.memory.add_ram(RAM, 0x10000)
    assert cpu.step() is None
    assert cpu.rip == HANDLER


def test_an_unmapped_stack_does_not_lose_a_hardware_interrupt() -> None:
    cpu = table_cpu(32, rsp=RAM + 0x800, if_=1, code=b"\x90\x90")
    set_gate(cpu, VECTOR, gate(14, 8))
    cpu.injected.append(VECTOR)
    cpu.request_attention()
    assert isinstance(cpu.step(), NestedPageFault)
    assert (cpu.rip, cpu.if_) == (ORIGIN, 1)
    cpu.memory.add_ram(RAM, 0x1000)
    cpu.step()
    assert (cpu.rip, get(cpu, cpu.rsp, 4)) == (HANDLER, ORIGIN)


def test_an_unmapped_stack_does_not_lose_a_debug_trap() -> None:
    cpu = table_cpu(32, rsp=RAM + 0x800, tf=1, code=b"\x90\x90")
    set_gate(cpu, 1, gate(14, 8))
    assert cpu.step() is None
    assert isinstance(cpu.step(), NestedPageFault)
    cpu.memory.add_ram(RAM, 0x1000)
    cpu.step()
    assert (cpu.rip, get(cpu, cpu.rsp, 4), cpu.dr6 >> 14 & 1) == (HANDLER, ORIGIN + 1, 1)


def test_a_stack_in_a_device_receives_each_push_once() -> None:
    cpu = table_cpu(32, code=bytes.fromhex("0f 0b"), rsp=RAM + 0x800)
    cpu.memory.set_mmio([(RAM, 0x1000)])
    set_gate(cpu, 6, gate(14, 8))
    pushes = []
    for _ in range(3):
        reason = cpu.step()
        assert isinstance(reason, MmioWrite)
        pushes.append((reason.addr - RAM, reason.data))
        assert cpu.rip == ORIGIN and cpu.rsp == RAM + 0x800
        cpu.complete()
    assert cpu.step() is None
    assert pushes == [(0x7FC, 2 | RF), (0x7F8, 8), (0x7F4, ORIGIN)]
    assert (cpu.rip, cpu.rsp) == (HANDLER, RAM + 0x7F4)


# ---- virtual-8086 mode extensions --------------------------------------------------------------------------


def test_int_n_in_virtual_8086_mode_needs_iopl_3_but_int3_does_not() -> None:
    for iopl in range(4):
        cpu = table_cpu(32)
        to_v86(cpu, iopl)
        set_gate(cpu, VECTOR, gate(14, 8, dpl=3))
        assert outcome(cpu.software_interrupt, VECTOR, INT_N) == ("" if iopl == 3 else "#GP(0x0)")
        cpu = table_cpu(32)
        to_v86(cpu, iopl)
        set_gate(cpu, 3, gate(14, 8, dpl=3))
        assert outcome(cpu.software_interrupt, 3, INT3) == ""


@pytest.mark.parametrize("iopl", [0, 3])
def test_vme_redirects_int_n_to_the_8086_program(iopl: int) -> None:
    cpu = table_cpu(32)
    to_v86(cpu, iopl)
    cpu.cr4 |= CR4_VME
    cpu.vif, cpu.if_, cpu.tf = 1, 1, 1
    cpu.tr.limit = 0x100
    put(cpu, TSS + 0x66, 0x88, 2)  # the redirection map is at TSS + 0x68
    put(cpu, TSS + 0x68, 0, 32)
    put(cpu, VECTOR * 4, 0x0200_0123, 4)
    cpu.software_interrupt(VECTOR, INT_N)
    image = get(cpu, 0x1020 + 0x300 - 2, 2)
    assert (cpu.cs.base, cpu.rip, cpu.rsp, cpu.vm, cpu.cpl) == (0x2000, 0x123, 0x300 - 6, 1, 3)
    assert words(cpu, 0x1020 + 0x300 - 6, 2, 2) == [0x200, 0x101]
    assert (image >> 9 & 1, image >> 12 & 3) == (1, 3)
    assert (cpu.vif, cpu.if_, cpu.tf) == ((0, 1, 0) if iopl == 0 else (1, 0, 0))


def test_vme_with_the_map_bit_set_goes_to_the_monitor() -> None:
    cpu = table_cpu(32)
    to_v86(cpu, 3)
    cpu.cr4 |= CR4_VME
    cpu.tr.limit = 0x100
    put(cpu, TSS + 0x66, 0x88, 2)
    put(cpu, TSS + 0x68 + VECTOR // 8, 1 << VECTOR % 8, 1)
    set_gate(cpu, VECTOR, gate(14, 8, dpl=3))
    cpu.software_interrupt(VECTOR, INT_N)
    assert (cpu.vm, cpu.cpl, cpu.rip) == (0, 0, HANDLER)
    to_v86(cpu, 0)
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#GP(0x0)"


# ---- stacks of the TSS -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ss0", "expected"),
    [(0, "#TS(0x0)"), (0x11, "#TS(0x10)"), (0x40, "#TS(0x40)"), (8, "#TS(0x8)"), (0x1F0, "#TS(0x1f0)")],
)
def test_a_bad_ss0_is_an_invalid_tss(ss0: int, expected: str) -> None:
    cpu = table_cpu(32, 3)
    put(cpu, TSS + 8, ss0, 2)
    set_gate(cpu, VECTOR, gate(14, 8, dpl=3))
    before = all_state(cpu)
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == expected
    assert all_state(cpu) == before


def test_an_inner_stack_needs_room_for_the_whole_frame() -> None:
    for error, need in ((None, 20), (0, 24)):
        cpu = table_cpu(32, 3)
        set_gate(cpu, 13, gate(14, 8))
        set_entry(cpu, SLOT, descriptor(0x16, 0, limit=0x5FFF - need, flags=4))  # expand-down
        put(cpu, TSS + 8, SLOT, 2)
        fault = GeneralProtection(error) if error is not None else DivideError()
        set_gate(cpu, 0, gate(14, 8))
        assert cpu.deliver_fault(fault) is None
        set_level(cpu, 3)
        set_entry(cpu, SLOT, descriptor(0x16, 0, limit=0x5FFF - need + 1, flags=4))
        chain = cpu.deliver_fault(fault)
        assert chain is not None and chain[1].startswith(f"#SS({SLOT | 1:#x})")


def test_a_same_level_interrupt_without_stack_room_is_a_stack_fault_with_zero() -> None:
    cpu = table_cpu(32)
    cpu.ss.load_raw(SLOT, 0, 0x7FF7, 0x4093)
    set_gate(cpu, VECTOR, gate(14, 8))
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#SS(0x0)"
    cpu.rsp = 0x7FF8
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == ""


def test_ring_3_to_ring_0_uses_the_stack_of_the_target_level() -> None:
    for level in range(3):
        cpu = table_cpu(32, 3, rsp=STACK)
        set_gate(cpu, VECTOR, gate(15, CODE_SELECTOR[level], dpl=3))
        cpu.software_interrupt(VECTOR, INT_N)
        assert (cpu.cpl, cpu.rsp) == (level, STACK_TOP[level] - 20)
        assert cpu.ss.selector == DATA_SELECTOR[level]


def test_real_mode_vectors_past_the_idt_limit_shut_down() -> None:
    cpu = make_cpu(16, bytes.fromhex("0f 0b"))
    cpu.idtr.limit = 6 * 4 + 2
    reason = cpu.step()
    assert isinstance(reason, TripleFault)
    assert [link.split("(")[0].split(":")[0] for link in reason.chain] == ["#UD", "#GP", "#GP", "#DF", "#GP"]


@pytest.mark.parametrize(("limit", "kind"), [(0x66, 0xB), (0x100, 3), (0x68, 0xB)])
def test_vme_without_a_redirection_map_is_a_protection_fault(limit: int, kind: int) -> None:
    cpu = table_cpu(32)
    to_v86(cpu, 3)
    cpu.cr4 |= CR4_VME
    cpu.tr.limit, cpu.tr.type = limit, kind
    put(cpu, TSS + 0x66, 0x88, 2)
    assert outcome(cpu.software_interrupt, VECTOR, INT_N) == "#GP(0x0)"
