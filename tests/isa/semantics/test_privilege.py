"""Where each form is legal: iced's CPL, mode and LOCK columns against what the CPU does, form by form."""

from __future__ import annotations

from typing import Any

import pytest
from iced_x86 import OpCodeInfo

from isa.cpu import Cpu
from isa.decode import code_names, mnemonic_names
from isa.exits import ExitReason, Hypercall, VmExit
from isa.faults import Fault, GeneralProtection, InvalidOpcode, Restart
from isa.state import CR0_PE, CR4_OSFXSR, CR4_OSXSAVE, CR4_PCE
from tests.isa.forms import definition_of, encodings, exists_in, implemented_forms
from tests.isa.machine import CODE, make_cpu

# Forms that CPUs of the past decode differently; iced lists them under the same mnemonics
PAST = ("KNC", "XOP", "486")
MODES = ("real", "virtual-8086", "16-bit protected", "32-bit protected", "compatibility", "64-bit")


def mode_cpu(mode: str, cpl: int) -> Cpu:
    """A flat machine in that mode and ring, IOPL 0, SSE and x87 switched on."""
    cpu = make_cpu({"64-bit": 64, "compatibility": 64, "32-bit protected": 32}.get(mode, 16))
    if mode in ("virtual-8086", "16-bit protected"):
        cpu.cr0 |= CR0_PE
    if mode == "compatibility":
        cpu.cs.load_raw(0x08, 0, 0xFFFF_FFFF, 0xC09B)
    cpu.vm = int(mode == "virtual-8086")
    cpu.cpl = cpl
    cpu.cr4 = CR4_OSFXSR | CR4_OSXSAVE | CR4_PCE
    cpu.idtr.limit = 0
    cpu.rax = cpu.rbx = cpu.rcx = cpu.rdx = cpu.rsi = cpu.rdi = 0x4000
    cpu.update_mode()
    return cpu


def outcome(cpu: Cpu, raw: bytes) -> Fault | ExitReason | None:
    """What the one instruction raises, before any delivery."""
    cpu.memory.write(CODE, raw)
    cpu.rip = CODE
    try:
        insn = cpu.code[CODE]
        cpu.rip = insn.next
        insn.function(cpu, *insn.operands)
    except (Fault, Restart) as fault:
        return fault if isinstance(fault, Fault) else None
    except VmExit as event:
        return event.reason
    return None


def forms_in(bits: int) -> list[tuple[Any, bytes]]:
    """(form, encoding) of every implemented form that exists in code of `bits`."""
    return [(code, raw) for code in implemented_forms()
            if exists_in(code, bits) and not any(past in code_names()[code] for past in PAST)
            for raw in encodings(code, bits)]  # fmt: skip


def code_bits(mode: str) -> int:
    """Width of the code in a mode."""
    return {"64-bit": 64, "compatibility": 32, "32-bit protected": 32}.get(mode, 16)


# Ring 3 is told that these do not exist (SDM Vol. 2, each instruction)
UNDEFINED_IN_RING_3 = {"CLAC", "STAC", "MONITOR", "MWAIT", "RSM"}
# What iced says of VMCALL holds in VMX root operation; a guest leaves by it at every CPL
LEAVES_IN_RING_3 = {"VMCALL"}


@pytest.mark.parametrize("mode", MODES[1:])
def test_what_only_ring_0_may_do_is_a_general_protection_fault_in_ring_3(mode: str) -> None:
    seen = 0
    for code, raw in forms_in(code_bits(mode)):
        info: Any = OpCodeInfo(code)
        if info.cpl3 or (mode == "virtual-8086" and not info.real_mode):
            continue
        name = code_names()[code]
        found = outcome(mode_cpu(mode, 3), raw)
        if mnemonic_names()[info.mnemonic] in LEAVES_IN_RING_3:
            assert isinstance(found, Hypercall), name
        elif mnemonic_names()[info.mnemonic] in UNDEFINED_IN_RING_3 or name.startswith("SYSRET"):
            assert isinstance(found, InvalidOpcode | GeneralProtection), name
        else:
            assert isinstance(found, GeneralProtection), f"{name}: {found}"
            assert found.error_code == 0, name
        seen += 1
    assert seen >= 15


@pytest.mark.parametrize("mode", MODES[1:])
def test_what_every_ring_may_do_is_not_refused_for_its_privilege_in_ring_3(mode: str) -> None:
    for code, raw in forms_in(code_bits(mode)):
        info: Any = OpCodeInfo(code)
        definition = definition_of(code)
        assert definition is not None
        if info.cpl3 and not definition.own_privilege:
            found = outcome(mode_cpu(mode, 3), raw)
            assert not (isinstance(found, GeneralProtection) and "at CPL" in found.why), code_names()[code]


@pytest.mark.parametrize("mode", ["real", "virtual-8086"])
def test_forms_that_real_and_virtual_8086_mode_do_not_know_are_invalid_opcodes(mode: str) -> None:
    """iced calls HLT, MOV CR and the like unknown to virtual-8086 mode: there they are #GP(0) (SDM Vol. 2,
    each instruction, "Virtual-8086 Mode Exceptions"), which monitors of DOS extenders live on."""
    unknown = []
    for code, raw in forms_in(16):
        info: Any = OpCodeInfo(code)
        legal = info.real_mode or (mode == "virtual-8086" and info.virtual8086_mode)
        found = outcome(mode_cpu(mode, 3 if mode == "virtual-8086" else 0), raw)
        if not legal:
            unknown.append(code_names()[code])
            assert isinstance(found, InvalidOpcode), f"{code_names()[code]}: {found}"
        elif isinstance(found, InvalidOpcode):
            assert "is not recognized" not in found.why, code_names()[code]
    assert {"LLDT_RM16", "ARPL_RM16_R16", "VERR_RM16"} <= {name.replace("R32M16", "RM16") for name in unknown}


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_lock_is_an_invalid_opcode_unless_the_form_locks_memory(bits: int) -> None:
    cpu = mode_cpu({16: "real", 32: "32-bit protected", 64: "64-bit"}[bits], 0)
    locked = 0
    for code, raw in forms_in(bits):
        info: Any = OpCodeInfo(code)
        in_memory = _is_memory_encoding(code, raw, bits)
        found = outcome(cpu, b"\xf0" + raw)
        name = code_names()[code]
        if info.can_use_lock_prefix and in_memory:
            assert not isinstance(found, InvalidOpcode), f"{name}: {found}"
            locked += 1
        else:
            assert isinstance(found, InvalidOpcode), f"lock {name} {raw.hex()}: {found}"
        cpu.halted = False
    assert locked > 20


def _is_memory_encoding(code: Any, raw: bytes, bits: int) -> bool:
    from iced_x86 import Decoder, OpKind

    instruction = Decoder(bits, raw, ip=CODE).decode()
    return instruction.op_count > 0 and instruction.op_kind(0) == OpKind.MEMORY


def test_every_form_without_a_privilege_check_of_its_own_runs_in_ring_0_of_its_mode() -> None:
    """No form is refused for mode or privilege where iced's table allows it."""
    for mode, cpl in (("32-bit protected", 0), ("64-bit", 0)):
        for code, raw in forms_in(code_bits(mode)):
            found = outcome(mode_cpu(mode, cpl), raw)
            assert not (isinstance(found, GeneralProtection) and "at CPL" in found.why), code_names()[code]
