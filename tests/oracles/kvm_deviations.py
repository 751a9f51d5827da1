"""Where KVM does something else than the manual says, and why: one table, consulted by the comparison.

Each row is exact about when it holds: which instructions, which circumstances, which kind of difference. What
is not in here and differs is a finding. `kvm_pvm` executes kernel mode, real mode and 32-bit code in software
and lets the host's CPU run 64-bit user code alone; every KVM executes in software what touches a device.
Source of the explanations: Linux, arch/x86/kvm/emulate.c and x86.c, and the SDM sections named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from iced_x86 import Decoder, EncodingKind, InstructionInfoFactory, OpAccess, OpKind

from isa.decode import code_names, mnemonic_names
from tests.oracles.kvm_twins import (
    HANDLER_SIZE,
    HANDLERS,
    KERNEL_STACK,
    MODES,
    Case,
    Outcome,
    pool_address,
)

FRAME_SIZE = 48  # of an exception in 64-bit mode, with error code; the others are smaller
INVALID_OPCODE, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 6, 12, 13, 14


@dataclass(frozen=True, slots=True)
class Difference:
    """One case that differs, taken apart. `mnemonic` and `form` are those of its first instruction."""

    variant: str
    case: Case
    ours: Outcome
    theirs: Outcome
    found: tuple[str, ...]
    instruction: Any
    mnemonic: str
    form: str

    @property
    def mnemonics(self) -> set[str]:
        """Those of all instructions of the case."""
        decoder = Decoder(MODES[self.case.mode].bits, self.case.code)
        return {mnemonic_names()[instruction.mnemonic] for instruction in decoder}

    @property
    def starts_with_load(self) -> bool:
        """KVM's first exit is a load."""
        return self.theirs.events[:1] != [] and self.theirs.events[0][0] == "MmioRead"

    @property
    def topics(self) -> set[str]:
        """What differs: "exit", "end", "memory", or register names."""
        return {text.split(":")[0].split(" ")[0].split(",")[0] for text in self.found}

    @property
    def emulated(self) -> bool:
        """KVM executed it in software: a device was touched, or the variant does nothing else here."""
        whole = self.variant == "kvm_pvm" and self.case.mode != "user64"
        return whole or any(event[0].startswith("Mmio") for event in self.ours.events + self.theirs.events)

    def vector(self, outcome: Outcome) -> int | None:
        """The exception that ended a case, None if none did."""
        if outcome.end != "halt" or outcome.state["rip"] < HANDLERS:
            return None
        number = (outcome.state["rip"] - 1 - HANDLERS) // HANDLER_SIZE
        return number if number < 256 else None

    @property
    def touches_device(self) -> bool:
        """Our CPU loaded from, or stored to, a device."""
        return any(event[0].startswith("Mmio") for event in self.ours.events)

    @property
    def frame(self) -> range:
        """Where the frame of a delivered exception is."""
        if MODES[self.case.mode].level:
            return range(KERNEL_STACK - FRAME_SIZE, KERNEL_STACK)
        state = self.ours.state
        base = 0 if MODES[self.case.mode].bits == 64 else state["ss_base"]
        top = state["rsp"] if state["ss_attributes"] >> 14 & 1 or base == 0 else state["rsp"] & 0xFFFF
        return range(base + top, base + top + FRAME_SIZE)

    @property
    def stack_bits(self) -> int:
        """How wide the stack pointer is."""
        if MODES[self.case.mode].bits == 64:
            return 64
        return 32 if self.case.segments["ss"][2] >> 14 & 1 else 16

    @property
    def stores(self) -> bool:
        """The instruction writes a memory operand."""
        access = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)
        info: Any = InstructionInfoFactory().info(self.instruction)
        return any(memory.access in access for memory in info.used_memory())


@dataclass(frozen=True, slots=True)
class Deviation:
    """A row: what KVM does, the reason, and the circumstances in which it explains a difference."""

    what: str
    why: str
    explains: Callable[[Difference], bool]


# Instructions that arch/x86/kvm/emulate.c does not decode; KVM then gives the guest #UD, or says so
UNKNOWN = frozenset(
    ("AAA", "AAS", "ADCX", "ADOX", "ARPL", "BOUND", "CLWB", "CRC32", "DAA", "INT", "INT3", "INTO", "LAR",
     "LDDQU", "LSL", "MOVBE", "POPCNT", "VERR", "VERW")
)  # fmt: skip
NT, AC = 1 << 14, 1 << 18
M32 = 0xFFFF_FFFF
FLAT_STACK = (0, 0xFFFF_FFFF, 0xC093)
FAR_POINTERS = ("LDS_", "LES_", "LFS_", "LGS_", "LSS_", "JMP_M16", "CALL_M16")
# More than one load, or more than one store
SEVERAL_ACCESSES = ("PUSHA", "POPA", "ENTER", "CALL_PTR", "CALL_M16", "RETF", "IRET")
OPERAND_BITS = {"ENTERW": 16, "ENTERD": 32, "ENTERQ": 64}


def _calls_through_memory(it: Difference) -> bool:
    return it.form.startswith("CALL_RM") and it.instruction.op0_kind == OpKind.MEMORY


def _unknown(it: Difference) -> bool:
    known = it.mnemonic in UNKNOWN or it.instruction.encoding == EncodingKind.VEX
    nested = it.mnemonic == "ENTER" and it.instruction.immediate8_2nd & 31 != 0
    ends = it.vector(it.theirs) == INVALID_OPCODE or it.theirs.end == "triple fault"
    # kvm_pvm looks into a #GP of 64-bit user code by executing the instruction in software
    looked = it.variant == "kvm_pvm" and it.vector(it.ours) == GENERAL_PROTECTION
    software = it.emulated or looked
    return software and (known or nested) and ends and it.vector(it.ours) != INVALID_OPCODE


def _write_checked_late(it: Difference) -> bool:
    """We refuse a store at once; KVM has loaded the operand before, or has faulted in doing so."""
    refused = it.vector(it.ours) in (STACK_FAULT, GENERAL_PROTECTION) and it.emulated and it.stores
    loaded = it.vector(it.theirs) == PAGE_FAULT or it.theirs.events[: len(it.ours.events)] == it.ours.events
    later = it.vector(it.theirs) == PAGE_FAULT or len(it.theirs.events) > len(it.ours.events)
    return refused and loaded and later


def _other_order(it: Difference) -> bool:
    """Both page faults are of one CMPS; KVM's came before the exits of the operand that we read first."""
    before = it.theirs.events == it.ours.events[: len(it.theirs.events)]
    faulted = it.vector(it.theirs) == PAGE_FAULT
    return any(name.startswith("CMPS") for name in it.mnemonics) and before and faulted


def _wraps(it: Difference) -> bool:
    """We refused an access that KVM made at the last bytes below 4 GiB, or that faulted there."""
    if it.vector(it.ours) not in (STACK_FAULT, GENERAL_PROTECTION) and it.ours.end != "triple fault":
        return False
    faulted = it.vector(it.theirs) == PAGE_FAULT and it.theirs.state["cr2"] & M32 > M32 - 16
    beyond = it.theirs.events[len(it.ours.events) :]
    return faulted or any(M32 - 16 < event[1] <= M32 for event in beyond if event[0].startswith("Mmio"))


def _half_stored(it: Difference) -> bool:
    """Both took the same page fault, and only bytes before the border of its page differ."""
    if it.topics != {"memory"} or it.vector(it.ours) != PAGE_FAULT or not it.emulated:
        return False
    border = it.ours.state["cr2"]
    places = [pool_address(n) for n in np.flatnonzero(it.ours.ram != it.theirs.ram).tolist()]
    return border & 0xFFF == 0 and all(border - 16 < place < border for place in places)


def _kinds_in_order(it: Difference) -> bool:
    """Taken reason by reason, both saw the same exits, as far as they came."""
    for reason in ("IoRead", "MmioWrite"):
        ours, theirs = (
            [event for event in side.events if event[0] == reason] for side in (it.ours, it.theirs)
        )
        if any(a != b for a, b in zip(ours, theirs, strict=False)):
            return False
    return True


def _frame_on_device(it: Difference) -> bool:
    """An exception was delivered on the stack that it interrupted; only the stores of its frame differ."""
    if MODES[it.case.mode].level or it.ours.end not in ("halt", "triple fault"):
        return False
    if it.ours.end == "triple fault":  # the state is nobody's, so the frame cannot be told from the rest
        return any(event[0] == "MmioWrite" for event in it.ours.events)
    rest, theirs = (
        [event for event in side.events if not (event[0] == "MmioWrite" and event[1] in it.frame)]
        for side in (it.ours, it.theirs)
    )
    return rest != it.ours.events and theirs[: len(rest)] == rest


def _flags_in_frame(it: Difference) -> bool:
    """At most RFLAGS and bytes of the exception's frame differ."""
    places = [pool_address(n) for n in np.flatnonzero(it.ours.ram != it.theirs.ram).tolist()]
    return it.topics <= {"rflags", "memory"} and all(place in it.frame for place in places)


TABLE = (
    Deviation(
        "an instruction that it does not know is #UD",
        "the software emulator decodes a part of the instruction set only",
        _unknown,
    ),
    Deviation(
        "TZCNT and LZCNT are BSF and BSR",
        "the emulator ignores the F3 prefix of 0F BC and 0F BD",
        lambda it: it.mnemonic in ("TZCNT", "LZCNT") and it.emulated and "end" not in it.topics
        and "exit" not in it.topics,
    ),
    Deviation(
        "CLFLUSH and CLFLUSHOPT read the device",
        "the emulator loads the operand of an instruction that only names a cache line",
        lambda it: it.mnemonic in ("CLFLUSH", "CLFLUSHOPT") and it.theirs.events[:1] != it.ours.events[:1]
        and it.starts_with_load,
    ),
    Deviation(
        "INS reads the port first and many elements ahead",
        "the emulator fetches as many elements as fit a page before it stores, or checks, the first one",
        lambda it: it.mnemonic.startswith("INS") and "exit" in it.topics
        and (_kinds_in_order(it) or it.touches_device),
    ),
    Deviation(
        "MOVSXD with a 16-bit operand reads four bytes",
        "the emulator's table has one source width for 63 /r; SDM, MOVSXD: r/m16",
        lambda it: it.form == "MOVSXD_R16_RM16" and it.emulated and "exit" in it.topics,
    ),
    Deviation(
        "a far pointer in device memory is one access",
        "the emulator loads offset and selector together; the SDM does not say how many accesses they are",
        lambda it: it.emulated and it.form.startswith(FAR_POINTERS) and "exit" in it.topics,
    ),
    Deviation(
        "LGDT and LIDT from a device load the limit first, and do not come to an end",
        "the emulator starts the instruction anew after each of the two loads",
        lambda it: it.mnemonic in ("LGDT", "LIDT") and it.emulated and "exit" in it.topics,
    ),
    Deviation(
        "SLDT, STR and SMSW load what they store to",
        "the emulator's table has them as read-modify-write",
        lambda it: it.mnemonic in ("SLDT", "STR", "SMSW") and it.emulated
        and (it.starts_with_load or it.vector(it.theirs) == PAGE_FAULT or it.theirs.end == "triple fault"),
    ),
    Deviation(
        "PUSH of a segment register stores two bytes, POP loads two",
        "SDM, PUSH: \"either a zero-extended value is pushed on the stack or the segment selector is written "
        "on the stack using a 16-bit move\"; the emulator moves 16 bits",
        lambda it: it.form.startswith(("PUSHD_", "PUSHQ_", "POPD_", "POPQ_")) and it.emulated
        and it.instruction.op0_kind == OpKind.REGISTER
        and (it.topics == {"memory"} or it.touches_device
             or it.vector(it.ours) in (PAGE_FAULT, STACK_FAULT)),
    ),
    Deviation(
        "the error code of LTR with a selector of the LDT is 0",
        "the emulator leaves before it has set one; SDM, LTR: #GP(selector)",
        lambda it: it.mnemonic == "LTR" and it.emulated and it.case.registers["rax"] & 4 != 0
        and it.vector(it.ours) == it.vector(it.theirs) == GENERAL_PROTECTION,
    ),
    Deviation(
        "far transfers and IRET of 32-bit user code are #UD or #GP",
        "kvm_pvm executes such code in software, and the emulator has no protected-mode IRET",
        lambda it: it.variant == "kvm_pvm" and it.case.mode.startswith("compat")
        and it.form.startswith(("IRET", "RETF", "CALL_M16", "JMP_M16", "CALL_PTR", "JMP_PTR"))
        and it.vector(it.theirs) in (INVALID_OPCODE, GENERAL_PROTECTION),
    ),
    Deviation(
        "IRET in 64-bit kernel mode checks little of what it loads",
        "it is kvm_pvm's own; SDM, IRET: #GP(selector) and more",
        lambda it: it.variant == "kvm_pvm" and it.case.mode == "long" and it.mnemonic.startswith("IRET"),
    ),
    Deviation(
        "AAD and AAM set SF, ZF and PF from AX",
        "the emulator's operand is 16 bits wide; SDM, AAD and AAM: according to AL",
        lambda it: it.mnemonic in ("AAD", "AAM") and it.topics == {"rflags"} and it.emulated,
    ),
    Deviation(
        "reserved NOPs other than 0F 18, 0F 1D and 0F 1F are two bytes long",
        "the emulator's table has them without a ModRM byte, so it goes on in the middle of the instruction",
        lambda it: it.form.startswith(("RESERVEDNOP", "CLDEMOTE")) and it.emulated,
    ),
    Deviation(
        "ENTER ignores an operand-size prefix",
        "the emulator pushes, and loads rBP, as wide as the stack pointer; SDM, ENTER: as the operand size",
        lambda it: it.mnemonic == "ENTER" and it.emulated and it.instruction.immediate8_2nd & 31 == 0
        and OPERAND_BITS[it.form[:6]] != it.stack_bits,
    ),
    Deviation(
        "a read-modify-write loads before it checks that the segment may be written",
        "the emulator checks each access by itself; SDM Vol. 3, \"Priority Among Concurrent Events\"",
        _write_checked_late,
    ),
    Deviation(
        "CMPXCHG of a 32-bit register that does not compare equal clears the upper half",
        "the emulator writes the destination back, as the pseudo code of the SDM has it; silicon does not",
        lambda it: it.form == "CMPXCHG_RM32_R32" and it.emulated and it.case.mode in ("long", "user64")
        and it.instruction.op0_kind == OpKind.REGISTER and len(it.found) == 1,
    ),
    Deviation(
        "BSF and BSR of a zero clear the upper half of a 32-bit destination",
        "SDM, BSF: the destination is undefined then; silicon keeps all of it, the emulator writes it back",
        lambda it: it.form.startswith(("BSF_R32", "BSR_R32")) and it.emulated and len(it.found) == 1,
    ),
    Deviation(
        "REP with a 32-bit address and ECX = 0 clears the upper half of RCX, RSI and RDI",
        "what KVM knows of Intel's silicon, for a guest whose CPUID says GenuineIntel; SDM, REP: nothing is "
        "written when the count is zero",
        lambda it: it.emulated and it.topics <= {"rcx", "rsi", "rdi"} and it.case.registers["rcx"] & M32 == 0
        and b"\x67" in it.case.code[: it.instruction.len - 1],
    ),
    Deviation(
        "POPF in 64-bit user code does not set NT",
        "kvm_pvm's user code runs with flags that its host can return to",
        lambda it: it.variant == "kvm_pvm" and it.case.mode == "user64" and it.mnemonic.startswith("POPF")
        and it.topics == {"rflags"} and it.ours.state["rflags"] ^ it.theirs.state["rflags"] == NT,
    ),
    Deviation(
        "of the two operands of CMPS the second is looked at first",
        "SDM, CMPS, gives no order; this is the host's CPU, not KVM",
        _other_order,
    ),
    Deviation(
        "a fault in the middle of REP CMPS or SCAS finds the flags from before the instruction",
        "SDM, REP: \"restored to the state prior to the execution\"; silicon (AMD Zen 4) and our CPU have "
        "those of the last element, which nothing but the frame shows",
        lambda it: any(name.startswith(("CMPS", "SCAS")) for name in it.mnemonics) and it.emulated
        and it.vector(it.ours) is not None and it.vector(it.ours) == it.vector(it.theirs)
        and _flags_in_frame(it),
    ),
    Deviation(
        "an offset that wraps around 4 GiB is no limit violation",
        "SDM Vol. 3, \"Limit Checking\": with a limit of 4 GiB it may or may not cause an exception",
        _wraps,
    ),
    Deviation(
        "a store over two pages leaves its first half behind when the second page faults",
        "the emulator stores page by page",
        _half_stored,
    ),
    Deviation(
        "an instruction with several accesses to a device loses some of them",
        "an access to a device restarts the instruction; the stack pointer has moved on, and of several "
        "stores only the last is kept",
        lambda it: (it.form.startswith(SEVERAL_ACCESSES) or _calls_through_memory(it))
        and it.touches_device,
    ),
    Deviation(
        "delivery of an exception in real mode clears the upper half of ESP",
        "the emulator delivers with 16-bit addresses; SDM, INT n: SP",
        lambda it: it.case.mode == "real" and it.topics == {"rsp"} and it.vector(it.ours) is not None
        and it.theirs.state["rsp"] == it.ours.state["rsp"] & 0xFFFF,
    ),
    Deviation(
        "delivery of an exception in protected mode clears RFLAGS.AC",
        "kvm_pvm does it as for its own guests; SDM Vol. 3, \"Flag Usage By Exception- or Interrupt-Handler "
        "Procedure\": TF, VM, RF and NT",
        lambda it: it.variant == "kvm_pvm" and it.vector(it.ours) is not None and it.topics == {"rflags"}
        and it.ours.state["rflags"] ^ it.theirs.state["rflags"] == AC,
    ),
    Deviation(
        "the frame of an exception in protected mode goes to the linear address ESP",
        "kvm_pvm ignores base, limit and size of SS in delivery; SDM Vol. 3, \"Exception- or "
        "Interrupt-Handler Procedures\"",
        lambda it: it.variant == "kvm_pvm" and it.case.mode.startswith("protected")
        and it.topics <= {"memory", "end", "rflags"} and it.case.segments["ss"] != FLAT_STACK
        and {it.ours.end, it.theirs.end} <= {"halt", "triple fault"},
    ),
    Deviation(
        "an exception whose frame goes to a device is a triple fault, or loses its frame",
        "delivery in software cannot wait for user space",
        lambda it: "exit" in it.topics and _frame_on_device(it),
    ),
)  # fmt: skip


def deviation(variant: str, case: Case, ours: Outcome, theirs: Outcome, found: list[str]) -> str:
    """What KVM does, if a row of the table explains the difference, else ""."""
    instruction: Any = Decoder(MODES[case.mode].bits, case.code).decode()
    name = code_names()[instruction.code]
    it = Difference(
        variant, case, ours, theirs, tuple(found), instruction, mnemonic_names()[instruction.mnemonic], name
    )
    return next((row.what for row in TABLE if row.explains(it)), "")
