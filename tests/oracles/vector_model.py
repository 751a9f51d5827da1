"""The vector oracle's other side: this CPU on the native worker's pages, and the comparison.

Nothing here needs a host of a certain kind: recorded cases are replayed on the same machine.
"""

from __future__ import annotations

import struct
from operator import attrgetter

from isa.cpu import NEVER, Cpu
from isa.decode import decode, feature_names
from isa.faults import AlignmentCheck, Fault, PageFault
from isa.memory import PhysicalMemory
from isa.state import (
    CR0_AM,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    GPR_NAMES,
    M32,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
)
from tests.oracles.image_cases import without_mxcsr_mask
from tests.oracles.native_vector import (
    BASE,
    CODE,
    DATA,
    DATA_SIZE,
    FS_BASE,
    GS_BASE,
    SIGFPE,
    Case,
    FxState,
    Outcome,
)
from tests.oracles.pages import PML4, map_pages
from tests.oracles.vector_forms import IMAGES

# Results that differ from CPU to CPU within the manual's error bound
ESTIMATES = (
    "RCPPS", "RCPSS", "RSQRTPS", "RSQRTSS",
    "VEX_VRCPPS", "VEX_VRCPSS", "VEX_VRSQRTPS", "VEX_VRSQRTSS",
)  # fmt: skip
ALL_FEATURES = frozenset(feature_names().values())
# Exception vector -> signal that Linux makes of it
SIGNALS = {6: 4, 12: 7, 13: 11, 14: 11, 16: 8, 17: 7, 19: 8}
CHECKED_FLAGS = 0x8D5

_general = attrgetter(*GPR_NAMES)
_XMM, _YMMH = tuple(f"xmm{n}" for n in range(16)), tuple(f"ymmh{n}" for n in range(16))
_xmm, _ymmh = attrgetter(*_XMM), attrgetter(*_YMMH)


class Model:
    """This CPU on the oracle's memory map, in 64-bit mode at CPL 3."""

    def __init__(self) -> None:
        self.memory = PhysicalMemory()
        for start, size in ((BASE, 0x4000), (DATA - 0x1000, 0x3000)):
            self.memory.add_ram(start, size)
        user = (*range(BASE, BASE + 0x4000, 0x1000), *range(DATA, DATA + 0x2000, 0x1000))
        map_pages(self.memory, BASE, user, DATA - 0x1000)
        self.cpu = Cpu(self.memory, ALL_FEATURES, lambda cpu, leaf, subleaf: (0, 0, 0, 0))
        cpu = self.cpu
        cpu.cr0 |= CR0_NE | CR0_PE | CR0_PG | CR0_AM
        cpu.cr3 = PML4
        cpu.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_PAE
        cpu.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX
        cpu.efer |= EFER_LME | EFER_LMA
        cpu.cs.load_raw(0x33, 0, 0xFFFF_FFFF, 0xA0FB)
        for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
            segment.load_raw(0x2B, 0, 0xFFFF_FFFF, 0xC0F3)
        cpu.fs.base, cpu.gs.base = FS_BASE, GS_BASE
        cpu.cpl = 3
        cpu.update_mode()

    def run(self, case: Case, fresh: bool = True) -> Outcome:
        """What this CPU makes of `case`; with `fresh`, memory beside the window is zero before."""
        cpu = self.cpu
        for name, value in zip(GPR_NAMES, case.regs, strict=True):
            setattr(cpu, name, value)
        for name, value in zip(_XMM, case.fx.xmm, strict=True):
            setattr(cpu, name, value)
        for name, value in zip(_YMMH, case.fx.ymmh, strict=True):
            setattr(cpu, name, value)
        cpu.set_rflags(case.flags)
        cpu.mxcsr = case.fx.mxcsr
        fpu = cpu.fpu
        fpu.control = case.fx.control
        fpu.top = case.fx.status >> 11 & 7
        fpu.status = case.fx.status & ~0x3800
        fpu.tags = [1 - (case.fx.tags >> n & 1) for n in range(8)]
        for n in range(8):
            fpu.regs[(fpu.top + n) & 7] = case.fx.st[n]
        fpu.ip = fpu.dp = fpu.cs = fpu.ds = fpu.opcode = 0
        beside = bytes((DATA_SIZE - len(case.window)) // 2)
        at = DATA + len(beside)
        if fresh:
            self.memory.write(DATA, beside + case.window + beside)
        else:
            self.memory.write(at, case.window)
        cpu.stop_at = NEVER
        insn = cpu._bind(decode(case.code, 64, CODE), case.code, CODE)
        signal, trap = 0, (0, 0, 0)
        try:
            insn.function(cpu, *insn.operands)
        except Fault as fault:
            if isinstance(fault, PageFault | AlignmentCheck):
                fault = cpu.checked_as_write(fault, insn)
            address = fault.address if isinstance(fault, PageFault) else 0
            signal, trap = SIGNALS[fault.vector], (fault.vector, fault.error_code or 0, address)
        fx = FxState(
            fpu.control, fpu.status_word(), sum((1 - tag) << n for n, tag in enumerate(fpu.tags)), cpu.mxcsr,
            tuple(fpu.regs[(fpu.top + n) & 7] for n in range(8)), _xmm(cpu), _ymmh(cpu),
        )  # fmt: skip
        window = bytes(self.memory.read(at, len(case.window)))
        return Outcome(signal, _general(cpu), cpu.rflags(), fx, window, trap)


def close(ours: int, host: int) -> bool:
    """Two estimates of one single: equal, or both within the manual's 1.5 * 2**-12 of the exact value."""
    if ours == host or (ours & 0x7FFF_FFFF == 0x0080_0000 and host == ours & 0x8000_0000):
        return True  # around the least normal number a result may or may not be tiny
    a, b = (struct.unpack("<f", struct.pack("<I", single))[0] for single in (ours, host))
    return bool(abs(a - b) <= 1.5 * 2.0**-12 * abs(a))  # ours is the nearest single


def close_lanes(ours: int, host: int) -> bool:
    """`close` in all four lanes."""
    return all(close(ours >> at & M32, host >> at & M32) for at in (0, 32, 64, 96))


def differences(name: str, case: Case, ours: Outcome, host: Outcome) -> list[str]:
    """What the two outcomes of the form `name` disagree on, one line each; empty where they agree."""
    same = close_lanes if name.startswith(ESTIMATES) else int.__eq__
    found = []
    # Quirk of ours: CVTPS2PI and friends leave the x87 state alone when they raise #XM
    transition = ours.signal == host.signal == SIGFPE and host.fx.status == 0 and host.fx.tags == 0xFF
    if ours.signal != host.signal:
        found.append(f"signal {ours.signal}, host {host.signal}")
    for n in range(16):
        if n != 4 and ours.regs[n] != host.regs[n]:
            found.append(f"{GPR_NAMES[n]} {ours.regs[n]:#x}, host {host.regs[n]:#x}")
        if not same(ours.fx.xmm[n], host.fx.xmm[n]):
            found.append(
                f"xmm{n} {ours.fx.xmm[n]:032x}, host {host.fx.xmm[n]:032x}, was {case.fx.xmm[n]:032x}"
            )
        if not same(ours.fx.ymmh[n], host.fx.ymmh[n]):
            found.append(
                f"ymmh{n} {ours.fx.ymmh[n]:032x}, host {host.fx.ymmh[n]:032x}, was {case.fx.ymmh[n]:032x}"
            )
    for n in range(0 if transition else 8):
        if ours.fx.st[n] != host.fx.st[n]:
            found.append(f"st{n} {ours.fx.st[n]:020x}, host {host.fx.st[n]:020x}, was {case.fx.st[n]:020x}")
    if (ours.flags ^ host.flags) & CHECKED_FLAGS:
        found.append(f"flags {ours.flags & CHECKED_FLAGS:#x}, host {host.flags & CHECKED_FLAGS:#x}")
    for register in ("mxcsr",) if transition else ("mxcsr", "tags", "status"):
        a, b = getattr(ours.fx, register), getattr(host.fx, register)
        if a != b:
            found.append(f"{register} {a:#x}, host {b:#x}, was {getattr(case.fx, register):#x}")
    # An image has many bytes: which of them in the page that is not mapped is tried first is the CPU's own
    digits = 12 if name.startswith(IMAGES) else 0
    for word, a, b in zip(("vector", "error", "cr2"), ours.fault, host.fault, strict=True):
        if a >> digits != b >> digits if word == "cr2" else a != b:
            found.append(f"{word} {a:#x}, host {b:#x}")
    windows = ours.window, host.window
    if name.startswith(IMAGES) and windows[0] != windows[1]:
        windows = without_mxcsr_mask(case, windows[0]), without_mxcsr_mask(case, windows[1])
    if windows[0] != windows[1]:
        first = next(n for n in range(len(windows[0])) if windows[0][n] != windows[1][n])
        found.append(f"memory from {first:#x} of the window")
    return found
