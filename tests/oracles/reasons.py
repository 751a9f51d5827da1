"""Why no native case of a form is generated: one table, which the generators and the coverage page read.

A form that is implemented and has no reason here is generated (`tests/test_recorded_vectors.py` counts).
Of some forms user code can only see that they fault: `only_fault`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from iced_x86 import OpCodeInfo

from isa.decode import code_names, mnemonic_names

PAST = "of CPUs of the past, not in any that runs Linux today"
UMIP = "Linux keeps user code from it (UMIP) or answers in its place"
KERNEL = "enters the kernel"
MAKERS = "AMD's and Intel's CPUs differ in it"
SYSTEM = "ring 0 only unless the system allows more"
OWN = "the answer is the machine's own, not the instruction's"

WORDS_OF_THE_PAST = ("486", "KNC", "XOP")
BY_FORM = {
    # 64-bit code with an operand size of 16: Intel ignores the prefix, AMD cuts RIP
    "JRCXZ_REL8_16": MAKERS,
    "LOOP_REL8_16_RCX": MAKERS,
    "LOOPE_REL8_16_RCX": MAKERS,
    "LOOPNE_REL8_16_RCX": MAKERS,
    # AMD ignores REX.W of far branches and of loads of far pointers
    "CALL_M1664": MAKERS,
    "JMP_M1664": MAKERS,
    "LFS_R64_M1664": MAKERS,
    "LGS_R64_M1664": MAKERS,
    "LSS_R64_M1664": MAKERS,
    # With a register #UD on AMD's CPUs; with memory these bytes are PREFETCH
    "RESERVEDNOP_RM16_R16_0F0D": MAKERS,
    "RESERVEDNOP_RM32_R32_0F0D": MAKERS,
    "RESERVEDNOP_RM64_R64_0F0D": MAKERS,
}
REFUSED = "ring 0 only: its fault at CPL 3"
PORTS = "needs IOPL 3: its fault with IOPL 0"
BY_DEFINITION = "#UD by definition"
BY_MNEMONIC = {
    **dict.fromkeys(("SGDT", "SIDT", "SLDT", "STR", "SMSW"), UMIP),
    **dict.fromkeys(("SYSCALL", "SYSENTER", "INT", "INT3", "INT1", "INTO"), KERNEL),
    **dict.fromkeys(("MONITOR", "MWAIT"), SYSTEM),
    **dict.fromkeys(("CPUID", "RDPID", "RDPMC", "RDTSC", "RDTSCP", "XGETBV"), OWN),
    **dict.fromkeys(("RDRAND", "RDSEED"), OWN),
    **dict.fromkeys(("VMCALL", "VMMCALL"), "enters the hypervisor"),
    "RSM": "leaves system management mode only",
    "GETSEC": "leaves for safer mode (SMX)",
}


@cache
def reason(code: Any) -> str:
    """Why no native case of a form is generated, "" where cases are."""
    info: Any = OpCodeInfo(code)
    name = code_names()[code]
    if any(word in name for word in WORDS_OF_THE_PAST):
        return PAST
    return BY_FORM.get(name) or BY_MNEMONIC.get(mnemonic_names()[info.mnemonic], "")


@cache
def only_fault(code: Any) -> str:
    """What is compared of a form that user code can try but not complete, "" of any other."""
    info: Any = OpCodeInfo(code)
    name = code_names()[code]
    if not info.cpl3:
        return REFUSED
    if mnemonic_names()[info.mnemonic] in ("IN", "OUT", "CLI", "STI") or name.startswith(("INS", "OUTS")):
        return PORTS if not name.startswith("INSERT") else ""
    return BY_DEFINITION if name.startswith(("UD0", "UD1", "UD2")) else ""
